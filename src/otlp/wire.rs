//! Bounded structural validation of an `Export*ServiceRequest` without decoding it.

use super::Signal;

/// Nesting of messages, key-value lists and arrays below the request; prost's own limit is 100.
pub const MAX_DEPTH: u32 = 100;

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Spans, data points or log records.
    pub items: u64,
    /// Items whose identity is complete (spans: non-zero 16-byte trace id and 8-byte span id).
    pub identified: u64,
}

/// Why a message is not valid OTLP protobuf, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {offset} in {path}")]
pub struct WireError {
    pub offset: usize,
    /// Field path, such as `resource_spans.scope_spans.spans.attributes.key`.
    pub path: String,
    pub reason: &'static str,
}

/// Walks the whole message; agrees with prost on what is accepted.
pub fn scan(_signal: Signal, _message: &[u8]) -> Result<Summary, WireError> {
    todo!("otlp helper")
}
