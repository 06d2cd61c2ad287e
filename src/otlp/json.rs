//! OTLP JSON ↔ protobuf, walking the same tables as the wire scan.
//!
//! Source: opentelemetry-proto, "JSON Protobuf Encoding": ids are hexadecimal, other bytes base64, keys
//! lowerCamelCase, enums integers, 64-bit integers strings. Reading is as lenient as the Go collector's: proto names
//! as keys, enum names, numbers as strings and strings as numbers; unknown names are ignored, but in what a person edits. Reading keeps one copy
//! of the output and nothing of the input but the string at hand.

mod read;
mod scalar;
mod unknown;
mod write;

use bytes::Bytes;

use super::Signal;
use super::schema;

pub use unknown::Unknown;

/// Why a JSON request could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonError {
    pub message: String,
    /// Where reading ended, if it was reading.
    pub offset: Option<usize>,
}

/// What becomes of a name that is in no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// It is passed over with its value, as OTLP demands of whoever receives.
    Any,
    /// It is an error that quotes the name.
    Known,
}

/// Reads an OTLP-JSON `Export*ServiceRequest` and encodes it as protobuf. The result is about half the input's size. An
/// error quotes no value.
pub fn to_protobuf(signal: Signal, json: &[u8]) -> Result<Bytes, JsonError> {
    read(signal, json, Names::Any)
}

/// The same of a text that a person wrote: a name that nobody knows is a slip of the pen, and an error.
pub fn to_protobuf_strictly(signal: Signal, json: &[u8]) -> Result<Bytes, JsonError> {
    read(signal, json, Names::Known)
}

fn read(signal: Signal, json: &[u8], names: Names) -> Result<Bytes, JsonError> {
    let mut out = Vec::with_capacity(json.len() / 2);
    read::message(schema::request(signal), json, names, &mut out)?;
    Ok(Bytes::from(out))
}

/// What a message has that JSON cannot show: fields that are in no table.
pub fn unknown_fields(signal: Signal, message: &[u8]) -> Result<Option<Unknown>, JsonError> {
    unknown::find(schema::request(signal), message, super::wire::MAX_DEPTH)
        .map_err(|error| JsonError { message: error.to_string(), offset: None })
}

/// Appends the request as one line of OTLP-JSON (no newline inside, none at the end).
pub fn write_json(signal: Signal, message: &[u8], out: &mut Vec<u8>) -> Result<(), JsonError> {
    write::request(schema::request(signal), message, out, super::wire::MAX_DEPTH)
        .map_err(|error| JsonError { message: error.to_string(), offset: None })
}

#[cfg(test)]
mod tests;
