//! Putting a repaired payload in the place of a broken one.

use crate::otlp::{Encoding, Signal, json, resource, wire};
use crate::storage::dead_letters::{LetterError, NewLetter};

use super::{Description, Shelf};

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("there is no letter {0}")]
    Unknown(String),
    /// With line and column.
    #[error("the text is no OTLP-JSON of {signal}: {reason}")]
    Malformed { signal: &'static str, reason: String },
    #[error("there is no item in it; to end a letter use purge")]
    Empty,
    #[error(transparent)]
    Log(#[from] LetterError),
}

/// Replaces the payload by `text`, OTLP-JSON of the same signal; returns its items. The letter keeps its id and history.
pub fn edit(shelf: &Shelf, id: u64, text: &[u8]) -> Result<u64, EditError> {
    let unknown = || EditError::Unknown(super::listing::format_id(id));
    let letter = shelf.read(id)?.ok_or_else(unknown)?;
    let signal = Signal::from_u8(letter.row.signal).ok_or_else(unknown)?;
    let malformed = |reason: String| EditError::Malformed { signal: signal.name(), reason };
    let payload = json::to_protobuf(signal, text).map_err(|error| malformed(error.to_string()))?;
    let items = wire::scan(signal, &payload).map_err(|error| malformed(error.to_string()))?.items;
    if items == 0 {
        return Err(EditError::Empty);
    }
    let mut description = letter.description;
    if let Ok(mut known) = Description::from_bytes(&description) {
        known.set_service_name(resource::service_name(&payload));
        (known.offset_bytes, known.cut_from_bytes) = (None, None);
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
    if shelf.replace(id, replaced)? { Ok(items) } else { Err(unknown()) }
}
