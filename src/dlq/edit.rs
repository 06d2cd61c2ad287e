//! Putting a repaired payload in the place of a broken one.

use crate::otlp::{Encoding, Signal, json, resource, wire};
use crate::storage::dead_letters::{Letter, LetterError, NewLetter};
use crate::storage::unix_now_ns;

use super::{Description, Shelf, payload_protobuf};

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("there is no letter {0}")]
    Unknown(String),
    /// With line and column.
    #[error("the text is no OTLP-JSON of {signal}: {reason}")]
    Malformed { signal: &'static str, reason: String },
    #[error("there is no item in it; to end a letter use purge")]
    Empty,
    /// JSON cannot show them, so no text can have them.
    #[error("its payload has {0}; whatever is put in its place is without them")]
    UnknownFields(json::Unknown),
    #[error(transparent)]
    Log(#[from] LetterError),
}

/// What became of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit {
    pub items: u64,
    /// Whether it is known which exporter it goes to.
    pub has_exporter: bool,
}

/// Replaces the payload by `text`, OTLP-JSON of the same signal without unknown names. The letter keeps its id and
/// history. `drops_unknown`: also when the payload has fields that no text can have.
pub fn edit(shelf: &Shelf, id: u64, text: &[u8], drops_unknown: bool) -> Result<Edit, EditError> {
    let unknown = || EditError::Unknown(super::listing::format_id(id));
    let letter = shelf.read(id)?.ok_or_else(unknown)?;
    let signal = Signal::from_u8(letter.row.signal).ok_or_else(unknown)?;
    let malformed = |reason: String| EditError::Malformed { signal: signal.name(), reason };
    let payload = json::to_protobuf_strictly(signal, text).map_err(|error| malformed(error.to_string()))?;
    let items = wire::scan(signal, &payload).map_err(|error| malformed(error.to_string()))?.items;
    if items == 0 {
        return Err(EditError::Empty);
    }
    if !drops_unknown
        && !shelf.is_malformed(id)
        && let Some(fields) = unknown_fields(&letter)
    {
        return Err(EditError::UnknownFields(fields));
    }
    let mut description = letter.description;
    let mut has_exporter = false;
    if let Ok(mut known) = Description::from_bytes(&description) {
        known.set_service_name(resource::service_name(&payload));
        (known.offset_bytes, known.cut_from_bytes) = (None, None);
        known.edited_unix_ms = Some(unix_now_ns() / 1_000_000);
        has_exporter = known.exporter.is_some();
        description = known.to_bytes();
    }
    let replaced = NewLetter {
        signal: signal as u8,
        encoding: Encoding::Identity as u8,
        items: u32::try_from(items).unwrap_or(u32::MAX),
        raw_len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        parked_unix_ns: letter.row.parked_unix_ns,
        description,
        payload,
    };
    if shelf.replace(id, replaced)? { Ok(Edit { items, has_exporter }) } else { Err(unknown()) }
}

/// What the letter's payload has that JSON cannot show. None also for what is no message, which has nothing to lose.
pub fn unknown_fields(letter: &Letter) -> Option<json::Unknown> {
    let signal = Signal::from_u8(letter.row.signal)?;
    json::unknown_fields(signal, &payload_protobuf(letter).ok()?).ok().flatten()
}
