//! Which letters there are, as people and programs see them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::otlp::{Encoding, Signal, compression, json};
use crate::storage::dead_letters::{Letter, LetterError, Row};

use super::{Description, Reason, Shelf};

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

    /// What can be told without reading the letter.
    fn takes_row(&self, row: &Row) -> bool {
        let parked_ms = row.parked_unix_ns / 1_000_000;
        let signal = Signal::from_u8(row.signal).map(Signal::name);
        (self.ids.is_empty() || self.ids.iter().any(|id| parse_id(id) == Some(row.id)))
            && self.signal.as_deref().is_none_or(|wanted| Some(wanted) == signal)
            && self.since_unix_ms.is_none_or(|since| parked_ms >= since)
            && self.until_unix_ms.is_none_or(|until| parked_ms <= until)
    }

    fn takes(&self, description: &Description) -> bool {
        let same =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| Some(wanted) == found);
        same(&self.queue, Some(&description.queue))
            && same(&self.exporter, description.exporter.as_deref())
            && same(&self.service, description.service_name.as_deref())
            && self.reason.is_none_or(|reason| reason == description.reason)
    }

    /// The ids of all letters that are meant, oldest first. Reads their descriptions where it must.
    pub fn select(&self, log: &Shelf) -> Result<Vec<u64>, LetterError> {
        let rows = log.rows().into_iter().filter(|row| self.takes_row(row));
        let by_row = self.queue.is_none() && self.exporter.is_none() && self.service.is_none() && self.reason.is_none();
        if by_row {
            return Ok(rows.map(|row| row.id).collect());
        }
        let mut ids = Vec::new();
        for row in rows {
            if let Some(letter) = readable(log, row.id)?
                && self.takes(&Entry::new(&letter).description)
            {
                ids.push(row.id);
            }
        }
        Ok(ids)
    }
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
    /// OTLP-JSON; there only when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<serde_json::Value>,
}

impl Entry {
    pub fn new(letter: &Letter) -> Entry {
        let row = &letter.row;
        // Written by a later version, or by nobody we know: the letter is shown all the same.
        let description = Description::from_bytes(&letter.description).unwrap_or_else(|error| {
            Description::new(Reason::Rejected, &format!("no readable description: {error}"), 0)
        });
        Entry {
            id: format_id(row.id),
            signal: Signal::from_u8(row.signal).map_or("unknown", Signal::name).to_owned(),
            items: row.items,
            bytes: row.stored_len,
            parked_unix_ms: row.parked_unix_ns / 1_000_000,
            description,
            replay: letter.note.as_ref().and_then(|note| serde_json::from_slice(note).ok()),
            payload: None,
        }
    }
}

pub fn format_id(id: u64) -> String {
    format!("{id:016x}")
}

pub fn parse_id(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// The letter; None when it is gone, or damaged, which whoever reads it alone is told.
fn readable(log: &Shelf, id: u64) -> Result<Option<Letter>, LetterError> {
    match log.read(id) {
        Err(LetterError::Damaged { .. }) => Ok(None),
        read => read,
    }
}

/// One page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub letters: Vec<Entry>,
    /// All that are meant, on this page and on others.
    pub matching: usize,
    /// Where the next page begins: after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The letters that are meant, oldest first, those behind `after`, at most `limit`.
pub fn list(log: &Shelf, filter: &Filter, after: Option<u64>, limit: usize) -> Result<Listed, LetterError> {
    let ids = filter.select(log)?;
    let limit = limit.clamp(1, PAGE_MAX);
    let mut listed = Listed { matching: ids.len(), ..Listed::default() };
    let mut rest = ids.into_iter().filter(|id| after.is_none_or(|after| *id > after)).peekable();
    while let Some(id) = rest.next() {
        listed.letters.extend(readable(log, id)?.map(|letter| Entry::new(&letter)));
        if listed.letters.len() >= limit {
            listed.next = rest.peek().map(|_| format_id(id));
            break;
        }
    }
    Ok(listed)
}

/// One letter, with its payload where that is wanted.
pub fn show(log: &Shelf, id: u64, with_payload: bool) -> Result<Option<Entry>, LetterError> {
    let Some(letter) = log.read(id)? else { return Ok(None) };
    let mut entry = Entry::new(&letter);
    if with_payload {
        let read = if log.is_malformed(id) { None } else { payload_json(&letter).ok() };
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
