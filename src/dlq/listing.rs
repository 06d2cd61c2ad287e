//! Which letters there are, as people and programs see them.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::otlp::{Encoding, Signal, compression, json};
use crate::storage::dead_letters::{Letter, LetterError, Row};

use super::scan::{Doubt, Scan};
use super::{Description, Reason, Shelf, unknown_fields};

/// The only key of a payload that is shown as bytes.
pub const BASE64_KEY: &str = "base64";
/// More of a malformed body is not inflated to be shown.
const SHOWN_BYTES_MAX: usize = 64 << 20;
/// Letters of one page, unless fewer are asked for.
pub const PAGE_MAX: usize = 1000;

/// Which letters are meant; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// By id, hexadecimal; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exporter: Option<String>,
    /// `traces`, `metrics` or `logs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// `service.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// When it was parked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_unix_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
}

impl Filter {
    /// Whether it names every letter there is.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// What no letter can be, if it names such a thing.
    pub fn check(&self) -> Result<(), String> {
        if let Some(id) = self.ids.iter().find(|id| parse_id(id).is_none()) {
            return Err(format!("`{id}` is no id of a letter"));
        }
        match &self.signal {
            Some(name) if Signal::ALL.iter().all(|signal| signal.name() != name) => {
                Err(format!("there is no signal `{name}`; there are traces, metrics and logs"))
            }
            _ => Ok(()),
        }
    }

    /// What can be told without reading the letter; whoever asks has seen to the ids.
    pub(super) fn takes_row(&self, row: &Row) -> bool {
        let parked_ms = row.parked_unix_ns / 1_000_000;
        let signal = Signal::from_u8(row.signal).map(Signal::name);
        self.signal.as_deref().is_none_or(|wanted| Some(wanted) == signal)
            && self.since_unix_ms.is_none_or(|since| parked_ms >= since)
            && self.until_unix_ms.is_none_or(|until| parked_ms <= until)
    }

    pub(super) fn asks_for_descriptions(&self) -> bool {
        self.queue.is_some() || self.exporter.is_some() || self.service.is_some() || self.reason.is_some()
    }

    pub(super) fn takes(&self, description: &Description) -> bool {
        let same =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| Some(wanted) == found);
        let queue = self.queue.as_deref();
        let exporter = self.exporter.as_deref().zip(description.exporter.as_deref());
        // A pipeline goes by its queue's name, an exporter also by its cursor's, which other commands print.
        queue.is_none_or(|wanted| wanted == description.queue || name_on_disk(wanted) == description.queue)
            && (self.exporter.is_none() || exporter.is_some_and(|(wanted, found)| is_exporter(wanted, found)))
            && same(&self.service, description.service_name.as_deref())
            && self.reason.is_none_or(|reason| reason == description.reason)
    }

    /// The ids that it names and that no letter has.
    pub fn strangers(&self, shelf: &Shelf) -> Vec<u64> {
        let named: BTreeSet<u64> = self.ids.iter().filter_map(|id| parse_id(id)).collect();
        named.into_iter().filter(|id| shelf.row(*id).is_none()).collect()
    }

    /// The ids of all letters that are meant, oldest first.
    pub fn select(&self, shelf: &Shelf) -> Result<Vec<u64>, LetterError> {
        Scan::new(shelf, self, None).undamaged().map(|found| Ok(found?.letter.row.id)).collect()
    }

    /// The same, and apart from them the letters of which it cannot be told, for whoever has to say what is missing.
    pub fn select_with_doubts(&self, shelf: &Shelf) -> (Vec<u64>, Vec<Doubt>) {
        let (mut ids, mut doubtful) = (Vec::new(), Vec::new());
        for found in Scan::new(shelf, self, None) {
            match found {
                Ok(found) => ids.push(found.letter.row.id),
                Err(doubt) => doubtful.push(doubt),
            }
        }
        (ids, doubtful)
    }
}

/// A pipeline's or an exporter's id as queues and cursors are named, unless the configuration says otherwise.
pub fn name_on_disk(id: &str) -> String {
    id.replace('/', "-")
}

/// Whether an exporter is meant by its id, or by the name of its cursor.
pub fn is_exporter(wanted: &str, id: &str) -> bool {
    wanted == id || !wanted.contains('/') && wanted == name_on_disk(id)
}

/// What was last noted about a letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Replays that failed.
    pub replays: u32,
    pub message: String,
    pub at_unix_ms: u64,
}

/// One letter, without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: String,
    pub signal: String,
    pub items: u32,
    /// Of the payload as it is kept.
    pub bytes: u32,
    pub parked_unix_ms: u64,
    #[serde(flatten)]
    pub description: Description,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Note>,
    /// What the payload has that JSON cannot show; there only where the payload was asked for and something is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_fields: Option<String>,
    /// OTLP-JSON; there only when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<serde_json::Value>,
}

impl Entry {
    pub fn new(row: &Row, description: Description, note: Option<&[u8]>) -> Entry {
        Entry {
            id: format_id(row.id),
            signal: Signal::from_u8(row.signal).map_or("unknown", Signal::name).to_owned(),
            items: row.items,
            bytes: row.stored_len,
            parked_unix_ms: row.parked_unix_ns / 1_000_000,
            description,
            replay: note.and_then(|note| serde_json::from_slice(note).ok()),
            unknown_fields: None,
            payload: None,
        }
    }
}

/// A description as it was written; by a later version, or by nobody we know: the letter is shown all the same.
pub(super) fn describe(bytes: &[u8]) -> Description {
    Description::from_bytes(bytes)
        .unwrap_or_else(|error| Description::new(Reason::Rejected, &format!("no readable description: {error}"), 0))
}

pub fn format_id(id: u64) -> String {
    format!("{id:016x}")
}

pub fn parse_id(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// One page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub letters: Vec<Entry>,
    /// All that are meant, on this page and on others; where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matching: Option<usize>,
    /// There if there are more: they begin after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The letters that are meant, oldest first, those behind `after`, at most `limit`. Payloads are neither read nor checked.
/// To count all that are meant may take reading every description.
pub fn list(
    shelf: &Shelf,
    filter: &Filter,
    after: Option<u64>,
    limit: usize,
    counts: bool,
) -> Result<Listed, LetterError> {
    let limit = limit.clamp(1, PAGE_MAX);
    let mut listed = Listed::default();
    let mut last = None;
    for found in Scan::new(shelf, filter, after).undamaged() {
        let found = found?;
        if listed.letters.len() == limit {
            listed.next = last.map(format_id);
            break;
        }
        last = Some(found.letter.row.id);
        listed.letters.extend(found.entry()?);
    }
    if counts {
        let is_all = after.is_none() && listed.next.is_none();
        let count = || Scan::new(shelf, filter, None).undamaged().try_fold(0, |count, found| found.map(|_| count + 1));
        listed.matching = Some(if is_all { listed.letters.len() } else { count()? });
    }
    Ok(listed)
}

/// One letter, with its payload where that is wanted.
pub fn show(shelf: &Shelf, id: u64, with_payload: bool) -> Result<Option<Entry>, LetterError> {
    let Some(letter) = shelf.read(id)? else { return Ok(None) };
    let mut entry = Entry::new(&letter.row, describe(&letter.description), letter.note.as_deref());
    if with_payload {
        let is_malformed = shelf.is_malformed(id);
        let read = if is_malformed { None } else { payload_json(&letter).ok() };
        entry.unknown_fields =
            if is_malformed { None } else { unknown_fields(&letter).map(|fields| fields.to_string()) };
        entry.payload = Some(match read.map(|text| serde_json::from_slice(&text)) {
            Some(Ok(value)) => value,
            Some(Err(_)) | None => as_it_is(&letter),
        });
    }
    Ok(Some(entry))
}

/// The bytes of a payload that is no message, inflated if they can be: text, or an object with them in base64.
fn as_it_is(letter: &Letter) -> serde_json::Value {
    let mut inflated = Vec::new();
    let bytes = match Encoding::from_u8(letter.row.encoding) {
        Some(encoding) if encoding != Encoding::Identity => {
            let done = compression::inflate(encoding, &letter.payload, SHOWN_BYTES_MAX, &mut inflated, &mut |_| true);
            if done.is_ok() { &inflated[..] } else { &letter.payload[..] }
        }
        _ => &letter.payload[..],
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => serde_json::json!({ BASE64_KEY: STANDARD.encode(bytes) }),
    }
}

/// The payload as OTLP protobuf, inflated.
pub fn payload_protobuf(letter: &Letter) -> Result<Vec<u8>, String> {
    let encoding = Encoding::from_u8(letter.row.encoding).ok_or("its encoding is unknown to this version")?;
    if encoding == Encoding::Identity {
        return Ok(letter.payload.to_vec());
    }
    let mut out = Vec::new();
    compression::inflate(encoding, &letter.payload, letter.row.raw_len as usize, &mut out, &mut |_| true)
        .map_err(|error| error.to_string())?;
    Ok(out)
}

/// The payload as one line of OTLP-JSON.
pub fn payload_json(letter: &Letter) -> Result<Vec<u8>, String> {
    let signal = Signal::from_u8(letter.row.signal).ok_or("its signal is unknown to this version")?;
    let mut text = Vec::new();
    json::write_json(signal, &payload_protobuf(letter)?, &mut text).map_err(|error| error.to_string())?;
    Ok(text)
}
