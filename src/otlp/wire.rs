//! Bounded structural validation of an `Export*ServiceRequest` without decoding it.
//!
//! Accepts and rejects exactly what prost does for the generated types: wire types, varint bounds, lengths, UTF-8 of
//! strings, groups in unknown fields, and the recursion limit. Nothing is allocated unless there is an error.

use super::Signal;
use super::schema::{self, Field, Kind, Message, Step, WireType};

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
    if text.len() >= 64 {
        return simdutf8::basic::from_utf8(text).is_ok();
    }
    is_short_ascii(text) || std::str::from_utf8(text).is_ok()
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

/// The range announced at `at` by a length of one or two bytes; None also when it reaches too far.
#[inline(always)]
fn short(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let (len, start) = match bytes.get(at..)? {
        [low, ..] if *low < 0x80 => (usize::from(*low), at + 1),
        [low, high, ..] if *high < 0x80 => (usize::from(low & 0x7F) | usize::from(*high) << 7, at + 2),
        _ => return None,
    };
    (len <= bytes.len() - start).then_some((start, start + len))
}

/// The end of a `KeyValue` whose length stands at `at`, if it is as most are: under 128 bytes, an ASCII key, then a
/// short ASCII text, a number or nothing. Every length in it is then one byte, and one look covers both texts.
#[inline(always)]
fn attribute(bytes: &[u8], at: usize) -> Option<usize> {
    let len = usize::from(*bytes.get(at)?);
    let pair = bytes.get(at + 1..at + 1 + len)?;
    let [0x0A, key_len, rest @ ..] = pair else { return None };
    let (key, value) = rest.split_at_checked(usize::from(*key_len))?;
    let [0x12, value_len, value @ ..] = value else { return None };
    if len >= 0x80 || usize::from(*value_len) != value.len() {
        return None;
    }
    let ascii = match value {
        [0x0A, text_len, text @ ..] if usize::from(*text_len) == text.len() => is_short_ascii(pair),
        [0x10 | 0x18, number @ ..] if is_varint(number) => is_short_ascii(key),
        [0x21, number @ ..] if number.len() == 8 => is_short_ascii(key),
        [] => is_short_ascii(key),
        _ => return None,
    };
    ascii.then_some(at + 1 + len)
}

/// Whether these bytes are one number of at most nine bytes.
#[inline(always)]
fn is_varint(bytes: &[u8]) -> bool {
    match bytes {
        [last] => *last < 0x80,
        [first @ .., last] => first.len() < 9 && *last < 0x80 && first.iter().all(|byte| *byte >= 0x80),
        [] => false,
    }
}

/// For texts of some dozen bytes: the ends may be looked at twice, and no loop runs byte by byte.
#[inline(always)]
fn is_short_ascii(text: &[u8]) -> bool {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let Some(last) = text.last_chunk::<8>() else { return text.is_ascii() };
    let (words, _) = text.as_chunks::<8>();
    let high = words.iter().fold(u64::from_le_bytes(*last), |high, word| high | u64::from_le_bytes(*word));
    high & HIGH_BITS == 0
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

/// The numbers of 8 bytes in the one message that a field (key, length, message) holds, with their field numbers.
pub fn fixed64_fields(field: &[u8]) -> Result<Vec<(u32, u64)>, WireError> {
    let read = || -> Result<Vec<(u32, u64)>, Trouble> {
        let (_, _, length) = key(field, 0, field.len())?;
        let (mut at, end) = delimited(field, length, field.len())?;
        let mut found = Vec::new();
        while at < end {
            let (number, wire_type, value) = key(field, at, end)?;
            at = skip(field, number, wire_type, value, end, MAX_DEPTH)?;
            if wire_type == WireType::Fixed64 as u8
                && let Some(bytes) = field[value..].first_chunk()
            {
                found.push((number, u64::from_le_bytes(*bytes)));
            }
        }
        Ok(found)
    };
    read().map_err(|trouble| *trouble)
}

struct Scanner<'a> {
    bytes: &'a [u8],
    summary: Summary,
}

/// What a message has shown so far.
#[derive(Default)]
struct Seen {
    /// The oneof member that holds now, and the items counted under it.
    chosen: Option<(u32, u64)>,
    trace_id: bool,
    span_id: bool,
}

impl Scanner<'_> {
    /// Fields as nearly all are go by one look at a table; everything else, errors too, is `field`'s.
    fn message(
        &mut self,
        message: &'static Message,
        mut at: usize,
        end: usize,
        depth_left: u32,
    ) -> Result<(), Trouble> {
        let bytes = &self.bytes[..end];
        let mut seen = Seen::default();
        while at < end {
            at = match self.usual(message, bytes, at, depth_left, &mut seen)? {
                Some(next) => next,
                None => self.field(message, at, end, depth_left, &mut seen)?,
            };
        }
        if seen.trace_id && seen.span_id && schema::is_span(message) {
            self.summary.identified += 1;
        }
        Ok(())
    }

    /// Steps over the field at `at` if it is in the schema, with a key and a length of one or two bytes.
    #[inline(always)]
    fn usual(
        &mut self,
        message: &'static Message,
        bytes: &[u8],
        at: usize,
        depth_left: u32,
        seen: &mut Seen,
    ) -> Result<Option<usize>, Trouble> {
        let key = bytes[at];
        let next = match bytes.get(at + 1) {
            _ if key < 0x80 => at + 1,
            // Then the first byte is the key: its highest bit, as the second byte's only one, stands for 128.
            Some(1) => at + 2,
            _ => return Ok(None),
        };
        let step = message.step(key);
        match step {
            Step::Varint => return Ok(bytes.get(next).filter(|byte| **byte < 0x80).map(|_| next + 1)),
            Step::Fixed64 => return Ok((bytes.len() - next >= 8).then_some(next + 8)),
            Step::Fixed32 => return Ok((bytes.len() - next >= 4).then_some(next + 4)),
            Step::Other | Step::OneofMessage => return Ok(None),
            Step::Attribute if depth_left >= 2 => {
                if let Some(stop) = attribute(bytes, next) {
                    return Ok(Some(stop));
                }
            }
            Step::Text | Step::Blob | Step::FirstId | Step::SecondId | Step::Attribute | Step::Message => {}
        }
        let Some((start, stop)) = short(bytes, next) else { return Ok(None) };
        let value = &bytes[start..stop];
        match step {
            Step::Text if !is_utf8(value) => return Ok(None),
            Step::FirstId => seen.trace_id = value.len() == 16 && value != [0; 16],
            Step::SecondId => seen.span_id = value.len() == 8 && value != [0; 8],
            Step::Attribute | Step::Message => {
                let Some(field) = message.field(u32::from(key >> 3)) else { return Ok(None) };
                let Kind::Message(inner) = field.kind else { return Ok(None) };
                if depth_left == 0 {
                    return Ok(None);
                }
                self.message(inner, start, stop, depth_left - 1).map_err(|error| error.within(field.name))?;
                self.summary.items += u64::from(field.item);
            }
            _ => {}
        }
        Ok(Some(stop))
    }

    /// Steps over any field, or says what is wrong with it.
    #[inline(never)]
    fn field(
        &mut self,
        message: &'static Message,
        at: usize,
        end: usize,
        depth_left: u32,
        seen: &mut Seen,
    ) -> Result<usize, Trouble> {
        let (number, wire_type, next) = key(self.bytes, at, end)?;
        let Some(field) = message.field(number) else {
            return skip(self.bytes, number, wire_type, next, end, depth_left);
        };
        let within = |error: Trouble| error.within(field.name);
        let expected = field.wire_type;
        if wire_type != expected as u8 {
            if !field.repeated || wire_type != WireType::Delimited as u8 {
                return Err(within(WireError::new(at, "the wrong wire type")));
            }
            return self.packed(field, expected, next, end).map_err(within);
        }
        match expected {
            WireType::Varint => varint(self.bytes, next, end).map(|(_, next)| next).map_err(within),
            WireType::Fixed64 if end - next >= 8 => Ok(next + 8),
            WireType::Fixed32 if end - next >= 4 => Ok(next + 4),
            WireType::Fixed64 | WireType::Fixed32 => {
                Err(within(WireError::new(next, "the message ends within a number")))
            }
            WireType::Delimited => {
                let (start, stop) = delimited(self.bytes, next, end).map_err(within)?;
                self.value(field, start, stop, depth_left, seen).map_err(within)?;
                Ok(stop)
            }
        }
    }

    fn value(
        &mut self,
        field: &'static Field,
        start: usize,
        stop: usize,
        depth_left: u32,
        seen: &mut Seen,
    ) -> Result<(), Trouble> {
        let value = &self.bytes[start..stop];
        match field.kind {
            Kind::Message(inner) => {
                if depth_left == 0 {
                    return Err(WireError::new(start, "nested too deeply"));
                }
                let before = self.summary.items;
                self.message(inner, start, stop, depth_left - 1)?;
                self.summary.items += u64::from(field.item);
                if field.oneof {
                    self.choose(field.number, before, seen);
                }
            }
            Kind::Text if !is_utf8(value) => return Err(WireError::new(start, "text that is not UTF-8")),
            Kind::Id if field.number == 1 => seen.trace_id = value.len() == 16 && value != [0; 16],
            Kind::Id if field.number == 2 => seen.span_id = value.len() == 8 && value != [0; 8],
            _ => {}
        }
        Ok(())
    }

    /// The member `number` of a oneof holds now; what another had counted is replaced.
    fn choose(&mut self, number: u32, before: u64, seen: &mut Seen) {
        let within = self.summary.items - before;
        seen.chosen = Some(match seen.chosen {
            Some((same, counted)) if same == number => (number, counted + within),
            Some((_, replaced)) => {
                self.summary.items -= replaced;
                (number, within)
            }
            None => (number, within),
        });
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
