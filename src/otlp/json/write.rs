//! Protobuf → one line of JSON.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::otlp::schema::{FIELDS_MAX, Field, Kind, Message, WireType};
use crate::otlp::wire::{self, WireError};

/// A single message that came in several parts is put together in a copy, and those within it in copies of copies. No
/// SDK writes such messages; made with intent they would cost their size again at each of a hundred levels.
const MERGED_BYTES_MAX: usize = 64 << 20;

/// One occurrence of a field: its place among the message's fields, whether it is packed, where its key lies, and
/// where its value.
#[derive(Clone, Copy)]
struct Occurrence {
    place: usize,
    packed: bool,
    key: usize,
    start: usize,
    end: usize,
}

/// The known fields of one message, in their order on the wire.
struct Walk<'a> {
    message: &'static Message,
    bytes: &'a [u8],
    at: usize,
    depth_left: u32,
}

impl Walk<'_> {
    fn next(&mut self) -> Result<Option<Occurrence>, WriteError> {
        let (bytes, end) = (self.bytes, self.bytes.len());
        while self.at < end {
            let key = self.at;
            let (number, wire_type, next) = wire::key(bytes, key, end)?;
            let Some(place) = self.message.place(number) else {
                self.at = wire::skip(bytes, number, wire_type, next, end, self.depth_left)?;
                continue;
            };
            let expected = self.message.fields[place].kind.wire_type();
            let (start, stop) = match (wire_type, expected) {
                (2, _) => wire::delimited(bytes, next, end)?,
                (_, WireType::Varint) => (next, wire::varint(bytes, next, end)?.1),
                (_, WireType::Fixed64) => (next, next + 8),
                _ => (next, next + 4),
            };
            if stop > end {
                return Err(WriteError::Cut);
            }
            self.at = stop;
            return Ok(Some(Occurrence { place, packed: wire_type != expected as u8, key, start, end: stop }));
        }
        Ok(None)
    }
}

/// What a message holds of one field. Nothing is kept per occurrence: a client may send an empty one in two bytes.
#[derive(Clone, Copy, Default)]
struct Slot {
    count: usize,
    /// Where the first occurrence's key lies.
    first: usize,
    last: (usize, usize),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("a stored message is not valid OTLP: {0}")]
    Wire(#[from] Box<WireError>),
    #[error("a stored message is nested too deeply")]
    Depth,
    #[error("a stored message ends within a number")]
    Cut,
    #[error("a stored message repeats what may stand once, level below level, in more than {MERGED_BYTES_MAX} bytes")]
    Merges,
    #[error("a stored string is not UTF-8")]
    Utf8,
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// The text so far, and what may still be copied for it.
struct Out<'a> {
    text: &'a mut Vec<u8>,
    merged_bytes_left: usize,
}

pub(super) fn request(
    request: &'static Message,
    bytes: &[u8],
    text: &mut Vec<u8>,
    depth: u32,
) -> Result<(), WriteError> {
    message(request, bytes, &mut Out { text, merged_bytes_left: MERGED_BYTES_MAX }, depth)
}

fn message(message: &'static Message, bytes: &[u8], out: &mut Out<'_>, depth_left: u32) -> Result<(), WriteError> {
    let slots = survey(message, bytes, depth_left)?;
    out.text.push(b'{');
    let mut first = true;
    for (field, slot) in message.fields.iter().zip(slots) {
        if slot.count == 0 {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.text.push(b',');
        }
        write!(out.text, "\"{}\":", field.json)?;
        let walk = Walk { message, bytes, at: slot.first, depth_left };
        if field.repeated {
            write_list(field, walk, out)?;
        } else if slot.count > 1 && matches!(field.kind, Kind::Message(_)) {
            let merged = merged(field, walk, out.merged_bytes_left)?;
            out.merged_bytes_left -= merged.len();
            write_value(field, &merged, out, depth_left)?;
            out.merged_bytes_left += merged.len();
        } else {
            // Of anything but a message the last occurrence holds.
            write_value(field, &bytes[slot.last.0..slot.last.1], out, depth_left)?;
        }
    }
    out.text.push(b'}');
    Ok(())
}

/// What each of the message's fields has; of a oneof only the member that holds.
fn survey(message: &'static Message, bytes: &[u8], depth_left: u32) -> Result<[Slot; FIELDS_MAX], WriteError> {
    let mut slots = [Slot::default(); FIELDS_MAX];
    let mut chosen: Option<usize> = None;
    let mut walk = Walk { message, bytes, at: 0, depth_left };
    while let Some(Occurrence { place, key, start, end, .. }) = walk.next()? {
        if message.fields[place].oneof
            && let Some(replaced) = chosen.replace(place).filter(|other| *other != place)
        {
            slots[replaced] = Slot::default();
        }
        let slot = &mut slots[place];
        if slot.count == 0 {
            slot.first = key;
        }
        slot.count += 1;
        slot.last = (start, end);
    }
    Ok(slots)
}

/// Messages merge, which is concatenation.
fn merged(field: &'static Field, mut walk: Walk<'_>, bytes_left: usize) -> Result<Vec<u8>, WriteError> {
    let mut merged = Vec::new();
    while let Some(occurrence) = walk.next()? {
        if walk.message.fields[occurrence.place].number == field.number {
            let part = &walk.bytes[occurrence.start..occurrence.end];
            if merged.len() + part.len() > bytes_left {
                return Err(WriteError::Merges);
            }
            merged.extend_from_slice(part);
        }
    }
    Ok(merged)
}

fn write_list(field: &'static Field, mut walk: Walk<'_>, out: &mut Out<'_>) -> Result<(), WriteError> {
    out.text.push(b'[');
    let mut first = true;
    while let Some(occurrence) = walk.next()? {
        if walk.message.fields[occurrence.place].number != field.number {
            continue;
        }
        let mut at = occurrence.start;
        while at < occurrence.end || !occurrence.packed {
            let stop = match (occurrence.packed, field.kind.wire_type()) {
                (false, _) => occurrence.end,
                (true, WireType::Fixed64) => at + 8,
                (true, WireType::Fixed32) => at + 4,
                (true, _) => wire::varint(walk.bytes, at, occurrence.end)?.1,
            };
            if !std::mem::take(&mut first) {
                out.text.push(b',');
            }
            let value = walk.bytes.get(at..stop).ok_or(WriteError::Cut)?;
            write_value(field, value, out, walk.depth_left)?;
            at = stop;
            if !occurrence.packed {
                break;
            }
        }
    }
    out.text.push(b']');
    Ok(())
}

fn write_value(field: &'static Field, value: &[u8], out: &mut Out<'_>, depth_left: u32) -> Result<(), WriteError> {
    let varint = || wire::varint(value, 0, value.len()).map(|(number, _)| number);
    let fixed64 = || value.try_into().map(u64::from_le_bytes).unwrap_or_default();
    match field.kind {
        Kind::Message(inner) => {
            let depth_left = depth_left.checked_sub(1).ok_or(WriteError::Depth)?;
            return message(inner, value, out, depth_left);
        }
        Kind::Text => {
            let text = std::str::from_utf8(value).map_err(|_| WriteError::Utf8)?;
            serde_json::to_writer(&mut *out.text, text)?;
        }
        Kind::Id => write!(out.text, "\"{}\"", hex::encode(value))?,
        Kind::Blob => write!(out.text, "\"{}\"", STANDARD.encode(value))?,
        Kind::Bool => write!(out.text, "{}", varint()? != 0)?,
        Kind::Int32 | Kind::Enum(_) => write!(out.text, "{}", varint()? as i32)?,
        Kind::Uint32 => write!(out.text, "{}", varint()? as u32)?,
        Kind::Sint32 => {
            let raw = varint()? as u32;
            write!(out.text, "{}", ((raw >> 1) as i32) ^ -((raw & 1) as i32))?;
        }
        Kind::Int64 => write!(out.text, "\"{}\"", varint()? as i64)?,
        Kind::Uint64 => write!(out.text, "\"{}\"", varint()?)?,
        Kind::Fixed32 => write!(out.text, "{}", value.try_into().map(u32::from_le_bytes).unwrap_or_default())?,
        Kind::Fixed64 => write!(out.text, "\"{}\"", fixed64())?,
        Kind::Sfixed64 => write!(out.text, "\"{}\"", fixed64() as i64)?,
        Kind::Double => match f64::from_bits(fixed64()) {
            number if number.is_nan() => out.text.extend_from_slice(b"\"NaN\""),
            f64::INFINITY => out.text.extend_from_slice(b"\"Infinity\""),
            f64::NEG_INFINITY => out.text.extend_from_slice(b"\"-Infinity\""),
            number => serde_json::to_writer(&mut *out.text, &number)?,
        },
    }
    Ok(())
}
