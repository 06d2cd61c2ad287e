//! Protobuf → one line of JSON.

use std::borrow::Cow;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::otlp::schema::{Field, Kind, Message, WireType};
use crate::otlp::wire::{self, WireError};

/// One occurrence of a field: its place among the message's fields, whether it is packed, and where its value lies.
#[derive(Clone, Copy)]
struct Occurrence {
    field: &'static Field,
    packed: bool,
    start: usize,
    end: usize,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("a stored message is not valid OTLP: {0}")]
    Wire(#[from] Box<WireError>),
    #[error("a stored message is nested too deeply")]
    Depth,
    #[error("a stored string is not UTF-8")]
    Utf8,
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

pub(super) fn message(
    message: &'static Message,
    bytes: &[u8],
    out: &mut Vec<u8>,
    depth_left: u32,
) -> Result<(), WriteError> {
    let occurrences = collect(message, bytes, depth_left)?;
    out.push(b'{');
    let mut first = true;
    for field in message.fields {
        let mut mine = occurrences.iter().filter(|occurrence| occurrence.field.number == field.number).peekable();
        if mine.peek().is_none() {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        write!(out, "\"{}\":", field.json)?;
        if field.repeated {
            write_list(mine, bytes, out, depth_left)?;
        } else {
            write_single(field, mine, bytes, out, depth_left)?;
        }
    }
    out.push(b'}');
    Ok(())
}

/// Every known field's occurrences in order; of a oneof only those of the member that holds.
fn collect(message: &'static Message, bytes: &[u8], depth_left: u32) -> Result<Vec<Occurrence>, WriteError> {
    let mut occurrences: Vec<Occurrence> = Vec::new();
    let end = bytes.len();
    let mut at = 0;
    while at < end {
        let (number, wire_type, next) = wire::key(bytes, at, end)?;
        let Some(field) = message.field(number) else {
            at = wire::skip(bytes, number, wire_type, next, end, depth_left)?;
            continue;
        };
        let packed = wire_type != field.kind.wire_type() as u8;
        let (start, stop) = match (wire_type, field.kind.wire_type()) {
            (2, _) => wire::delimited(bytes, next, end)?,
            (_, WireType::Varint) => (next, wire::varint(bytes, next, end)?.1),
            (_, WireType::Fixed64) => (next, next + 8),
            _ => (next, next + 4),
        };
        if stop > end {
            return Err(WriteError::Depth);
        }
        if field.oneof {
            occurrences.retain(|other| !other.field.oneof || other.field.number == number);
        }
        occurrences.push(Occurrence { field, packed, start, end: stop });
        at = stop;
    }
    Ok(occurrences)
}

fn write_list<'a>(
    occurrences: impl Iterator<Item = &'a Occurrence>,
    bytes: &[u8],
    out: &mut Vec<u8>,
    depth_left: u32,
) -> Result<(), WriteError> {
    out.push(b'[');
    let mut first = true;
    for occurrence in occurrences {
        let mut at = occurrence.start;
        while at < occurrence.end || !occurrence.packed {
            let stop = match (occurrence.packed, occurrence.field.kind.wire_type()) {
                (false, _) => occurrence.end,
                (true, WireType::Fixed64) => at + 8,
                (true, WireType::Fixed32) => at + 4,
                (true, _) => wire::varint(bytes, at, occurrence.end)?.1,
            };
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            write_value(occurrence.field, &bytes[at..stop], out, depth_left)?;
            at = stop;
            if !occurrence.packed {
                break;
            }
        }
    }
    out.push(b']');
    Ok(())
}

/// The last occurrence holds; messages merge, which is concatenation.
fn write_single<'a>(
    field: &'static Field,
    occurrences: impl Iterator<Item = &'a Occurrence>,
    bytes: &[u8],
    out: &mut Vec<u8>,
    depth_left: u32,
) -> Result<(), WriteError> {
    let mut value: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut count = 0;
    for occurrence in occurrences {
        let range = &bytes[occurrence.start..occurrence.end];
        count += 1;
        if count > 1 && matches!(field.kind, Kind::Message(_)) {
            value.to_mut().extend_from_slice(range);
        } else {
            value = Cow::Borrowed(range);
        }
    }
    write_value(field, &value, out, depth_left)
}

fn write_value(field: &'static Field, value: &[u8], out: &mut Vec<u8>, depth_left: u32) -> Result<(), WriteError> {
    let varint = || wire::varint(value, 0, value.len()).map(|(number, _)| number);
    let fixed64 = || value.try_into().map(u64::from_le_bytes).unwrap_or_default();
    match field.kind {
        Kind::Message(inner) => {
            let depth_left = depth_left.checked_sub(1).ok_or(WriteError::Depth)?;
            return message(inner, value, out, depth_left);
        }
        Kind::Text => {
            let text = std::str::from_utf8(value).map_err(|_| WriteError::Utf8)?;
            serde_json::to_writer(out, text)?;
        }
        Kind::Id => write!(out, "\"{}\"", hex::encode(value))?,
        Kind::Blob => write!(out, "\"{}\"", STANDARD.encode(value))?,
        Kind::Bool => write!(out, "{}", varint()? != 0)?,
        Kind::Int32 | Kind::Enum(_) => write!(out, "{}", varint()? as i32)?,
        Kind::Uint32 => write!(out, "{}", varint()? as u32)?,
        Kind::Sint32 => {
            let raw = varint()? as u32;
            write!(out, "{}", ((raw >> 1) as i32) ^ -((raw & 1) as i32))?;
        }
        Kind::Int64 => write!(out, "\"{}\"", varint()? as i64)?,
        Kind::Uint64 => write!(out, "\"{}\"", varint()?)?,
        Kind::Fixed32 => write!(out, "{}", value.try_into().map(u32::from_le_bytes).unwrap_or_default())?,
        Kind::Fixed64 => write!(out, "\"{}\"", fixed64())?,
        Kind::Sfixed64 => write!(out, "\"{}\"", fixed64() as i64)?,
        Kind::Double => match f64::from_bits(fixed64()) {
            number if number.is_nan() => out.extend_from_slice(b"\"NaN\""),
            f64::INFINITY => out.extend_from_slice(b"\"Infinity\""),
            f64::NEG_INFINITY => out.extend_from_slice(b"\"-Infinity\""),
            number => serde_json::to_writer(out, &number)?,
        },
    }
    Ok(())
}
