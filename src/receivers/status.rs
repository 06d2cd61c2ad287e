//! `google.rpc.Status`, which is the body of every HTTP error in the request's encoding.

use bytes::Bytes;
use prost::Message;

use super::ingest::Content;

/// Answers stay below this (OTLP: 4 MiB); the message is what gives.
const MESSAGE_LEN_MAX: usize = 16 << 10;

/// Codes of `google.rpc.Code`.
pub mod code {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const DEADLINE_EXCEEDED: i32 = 4;
    pub const NOT_FOUND: i32 = 5;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const UNIMPLEMENTED: i32 = 12;
    pub const UNAVAILABLE: i32 = 14;
}

/// Shortened on a character boundary.
pub fn bounded(message: &str) -> &str {
    match message.char_indices().find(|(at, _)| *at >= MESSAGE_LEN_MAX) {
        Some((at, _)) => &message[..at],
        None => message,
    }
}

pub fn encode(content: Content, code: i32, message: &str) -> Bytes {
    let message = bounded(message);
    match content {
        Content::Protobuf => {
            let status = tonic_types::Status { code, message: message.to_owned(), details: Vec::new() };
            Bytes::from(status.encode_to_vec())
        }
        Content::Json => Bytes::from(serde_json::json!({ "code": code, "message": message }).to_string()),
    }
}
