//! What both ends share: protocol names and gRPC's framing.

use bytes::{BufMut, Bytes, BytesMut};
use clap::ValueEnum;
use forebay::otlp::Encoding;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }

    pub fn encoding(self) -> Encoding {
        match self {
            Compression::None => Encoding::Identity,
            Compression::Gzip => Encoding::Gzip,
            Compression::Zstd => Encoding::Zstd,
        }
    }
}

/// Bytes before a gRPC message: a flag and a length.
pub const FRAME_HEADER_BYTES: usize = 5;

/// Frames one gRPC message.
pub fn frame(message: &[u8], compressed: bool) -> Result<Bytes, String> {
    let len = u32::try_from(message.len()).map_err(|_| format!("a message of {} bytes is too long", message.len()))?;
    let mut framed = BytesMut::with_capacity(FRAME_HEADER_BYTES + message.len());
    framed.put_u8(u8::from(compressed));
    framed.put_u32(len);
    framed.put_slice(message);
    Ok(framed.freeze())
}

/// The one message of a unary request, and whether it is compressed.
pub fn unframe(mut body: Bytes) -> Result<(Bytes, bool), &'static str> {
    if body.len() < FRAME_HEADER_BYTES {
        return Err("the body ends within a frame's header");
    }
    let header = body.split_to(FRAME_HEADER_BYTES);
    let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if len != body.len() {
        return Err("the frame's length is not the body's");
    }
    Ok((body, header[0] == 1))
}
