//! gzip, zstd and deflate with a bound on what comes out, checked while inflating.

use bytes::Bytes;

use super::Encoding;

/// Why a compressed body could not be inflated.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    #[error("the body inflates beyond {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("malformed {encoding} body: {reason}")]
    Malformed { encoding: &'static str, reason: String },
    #[error("no memory left for the inflated body")]
    NoMemory,
}

/// Inflates `body` into `out` (cleared first), never beyond `limit_bytes`. `reserve` is asked before each growth
/// of `out` with the number of bytes to be added, and may refuse.
pub fn inflate(
    _encoding: Encoding,
    _body: &[u8],
    _limit_bytes: usize,
    _out: &mut Vec<u8>,
    _reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<(), InflateError> {
    todo!("otlp helper")
}

/// Compresses for sending: gzip level 1 or zstd level 1; `Identity` returns the bytes as they are.
pub fn compress(_encoding: Encoding, _body: &Bytes) -> std::io::Result<Bytes> {
    todo!("otlp helper")
}
