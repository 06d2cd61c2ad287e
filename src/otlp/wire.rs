//! Bounded structural validation of an `Export*ServiceRequest` without decoding it.
//!
//! Accepts and rejects exactly what prost does for the generated types: wire types, varint bounds, lengths, UTF-8 of
//! strings, groups in unknown fields, and the recursion limit. Nothing is allocated unless there is an error.

use super::Signal;
use super::schema::{self, Field, Kind, Message, WireType};

/// Nesting of messages, key-value lists and arrays below the request, as prost limits it.
pub const MAX_DEPTH: u32 = 100;

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Spans, data points or log records. Where one metric carries several kinds of data, the last counts, as the
    /// decoder keeps only that.
    pub items: u64,
    /// Spans whose identity is complete: a trace id of 16 bytes and a span id of 8, neither all zeros.
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

/// Boxed on the way up, so that a result fits into registers.
pub(super) type Trouble = Box<WireError>;

impl WireError {
    #[cold]
    fn new(offset: usize, reason: &'static str) -> Trouble {
        Box::new(WireError { offset, path: String::new(), reason })
    }

    /// Written from the inside out, as the error travels up.
    #[cold]
    fn within(mut self: Box<Self>, name: &str) -> Trouble {
        self.path = if self.path.is_empty() { name.to_owned() } else { format!("{name}.{}", self.path) };
        self
    }
}

/// Walks the whole message.
pub fn scan(signal: Signal, message: &[u8]) -> Result<Summary, WireError> {
    let mut scanner = Scanner { bytes: message, summary: Summary::default() };
    let request = schema::request(signal);
    match scanner.message(request, 0, message.len(), MAX_DEPTH) {
        Ok(()) => Ok(scanner.summary),
        Err(error) if error.path.is_empty() => Err(*error.within(request.name)),
        Err(error) => Err(*error),
    }
}

/// Reads a varint at `at`; returns it and the offset behind it.
#[inline(always)]
pub(super) fn varint(bytes: &[u8], at: usize, end: usize) -> Result<(u64, usize), Trouble> {
    let rest = bytes.get(at..end).unwrap_or(&[]);
    match rest {
        [byte, ..] if *byte < 0x80 => Ok((u64::from(*byte), at + 1)),
        [low, high, ..] if *high < 0x80 => Ok((u64::from(low & 0x7F) | u64::from(*high) << 7, at + 2)),
        [] => Err(WireError::new(at, "the message ends within a number")),
        _ => long_varint(bytes, at, end),
    }
}

/// Short texts, which most are, are nearly always ASCII: eight bytes at a time are looked at before asking further.
#[inline]
fn is_utf8(text: &[u8]) -> bool {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    if text.len() >= 64 {
        return simdutf8::basic::from_utf8(text).is_ok();
    }
    let (words, rest) = text.as_chunks::<8>();
    let high = words.iter().fold(0, |high, word| high | u64::from_le_bytes(*word)) & HIGH_BITS;
    (high == 0 && rest.is_ascii()) || std::str::from_utf8(text).is_ok()
}

fn long_varint(bytes: &[u8], at: usize, end: usize) -> Result<(u64, usize), Trouble> {
    let mut value = 0;
    for index in 0..10 {
        let Some(&byte) = bytes[..end].get(at + index) else {
            return Err(WireError::new(at, "the message ends within a number"));
        };
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            if index == 9 && byte > 1 {
                break;
            }
            return Ok((value, at + index + 1));
        }
    }
    Err(WireError::new(at, "a number is longer than 64 bits"))
}

/// Reads a field's key: its number, its wire type (0 to 5), and the offset behind it.
#[inline(always)]
pub(super) fn key(bytes: &[u8], at: usize, end: usize) -> Result<(u32, u8, usize), Trouble> {
    let (key, next) = varint(bytes, at, end)?;
    let Ok(key) = u32::try_from(key) else { return Err(WireError::new(at, "a field number is too large")) };
    let wire_type = (key & 7) as u8;
    if wire_type > 5 {
        return Err(WireError::new(at, "an unknown wire type"));
    }
    if key < 8 {
        return Err(WireError::new(at, "field number 0"));
    }
    Ok((key >> 3, wire_type, next))
}

/// Reads a length at `at` and returns the range that it announces.
#[inline(always)]
pub(super) fn delimited(bytes: &[u8], at: usize, end: usize) -> Result<(usize, usize), Trouble> {
    let (len, start) = varint(bytes, at, end)?;
    if len > (end - start) as u64 {
        return Err(WireError::new(at, "a length reaches beyond the end of its message"));
    }
    Ok((start, start + len as usize))
}

const GROUP_START: u8 = 3;
const GROUP_END: u8 = 4;

/// Steps over the value of a field that is not in the schema.
pub(super) fn skip(
    bytes: &[u8],
    number: u32,
    wire_type: u8,
    at: usize,
    end: usize,
    depth_left: u32,
) -> Result<usize, Trouble> {
    if depth_left == 0 {
        return Err(WireError::new(at, "nested too deeply"));
    }
    let fixed = |len: usize| {
        if end - at < len { Err(WireError::new(at, "the message ends within a number")) } else { Ok(at + len) }
    };
    match wire_type {
        0 => varint(bytes, at, end).map(|(_, next)| next),
        1 => fixed(8),
        5 => fixed(4),
        2 => delimited(bytes, at, end).map(|(_, next)| next),
        GROUP_START => {
            let mut at = at;
            loop {
                let (inner, wire_type, next) = key(bytes, at, end)?;
                if wire_type == GROUP_END {
                    if inner != number {
                        return Err(WireError::new(at, "a group ends that did not begin"));
                    }
                    return Ok(next);
                }
                at = skip(bytes, inner, wire_type, next, end, depth_left - 1)?;
            }
        }
        _ => Err(WireError::new(at, "a group ends that did not begin")),
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    summary: Summary,
}

impl Scanner<'_> {
    fn message(
        &mut self,
        message: &'static Message,
        mut at: usize,
        end: usize,
        depth_left: u32,
    ) -> Result<(), Trouble> {
        // The oneof member that holds now, and the items counted under it.
        let mut chosen: Option<(u32, u64)> = None;
        let (mut trace_id, mut span_id) = (false, false);
        while at < end {
            let (number, wire_type, next) = key(self.bytes, at, end)?;
            let Some(field) = message.field(number) else {
                at = skip(self.bytes, number, wire_type, next, end, depth_left)?;
                continue;
            };
            let expected = field.wire_type;
            if wire_type != expected as u8 {
                let packed = field.repeated && wire_type == WireType::Delimited as u8;
                if !packed {
                    return Err(WireError::new(at, "the wrong wire type").within(field.name));
                }
                at = self.packed(field, expected, next, end).map_err(|error| error.within(field.name))?;
                continue;
            }
            at = match expected {
                WireType::Varint => varint(self.bytes, next, end).map(|(_, next)| next),
                WireType::Fixed64 if end - next >= 8 => Ok(next + 8),
                WireType::Fixed32 if end - next >= 4 => Ok(next + 4),
                WireType::Fixed64 | WireType::Fixed32 => Err(WireError::new(next, "the message ends within a number")),
                WireType::Delimited => {
                    let (start, stop) = delimited(self.bytes, next, end).map_err(|error| error.within(field.name))?;
                    match field.kind {
                        Kind::Message(inner) => {
                            if depth_left == 0 {
                                return Err(WireError::new(start, "nested too deeply").within(field.name));
                            }
                            let before = self.summary.items;
                            self.message(inner, start, stop, depth_left - 1)
                                .map_err(|error| error.within(field.name))?;
                            if field.item {
                                self.summary.items += 1;
                            }
                            if field.oneof {
                                let within = self.summary.items - before;
                                chosen = Some(match chosen {
                                    Some((same, counted)) if same == number => (number, counted + within),
                                    Some((_, replaced)) => {
                                        self.summary.items -= replaced;
                                        (number, within)
                                    }
                                    None => (number, within),
                                });
                            }
                        }
                        Kind::Text if !is_utf8(&self.bytes[start..stop]) => {
                            return Err(WireError::new(start, "text that is not UTF-8").within(field.name));
                        }
                        Kind::Id if number <= 2 => {
                            let id = &self.bytes[start..stop];
                            let set = id.iter().any(|byte| *byte != 0);
                            if number == 1 {
                                trace_id = set && id.len() == 16;
                            } else {
                                span_id = set && id.len() == 8;
                            }
                        }
                        _ => {}
                    }
                    Ok(stop)
                }
            }
            .map_err(|error: Trouble| error.within(field.name))?;
        }
        if trace_id && span_id && schema::is_span(message) {
            self.summary.identified += 1;
        }
        Ok(())
    }

    fn packed(&self, field: &Field, element: WireType, at: usize, end: usize) -> Result<usize, Trouble> {
        debug_assert!(field.repeated);
        let (mut at, stop) = delimited(self.bytes, at, end)?;
        let uneven = match element {
            WireType::Fixed64 => !(stop - at).is_multiple_of(8),
            WireType::Fixed32 => !(stop - at).is_multiple_of(4),
            WireType::Varint | WireType::Delimited => false,
        };
        if uneven {
            return Err(WireError::new(at, "a packed list ends within a number"));
        }
        if element == WireType::Varint {
            while at < stop {
                at = varint(self.bytes, at, stop)?.1;
            }
        }
        Ok(stop)
    }
}
