//! Cutting items out of an `Export*ServiceRequest` without decoding it: byte ranges are left out and the lengths around
//! them rewritten. Everything else stays as it came, unknown fields too.

use std::ops::Range;

use super::Signal;
use super::schema::{self, Kind, Message};
use super::wire::{self, MAX_DEPTH, WireError};

/// The only or the last place where an item lies: a span, data point or log record of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its bytes in the request, the key of its field included.
    pub start: usize,
    pub end: usize,
    /// Which of the request's resources it lies in, and which of all its scopes; both count from 0.
    pub resource: u32,
    pub scope: u32,
}

/// The items of a valid request, in their order on the wire. As many as [`wire::scan`] counts.
pub fn items(signal: Signal, request: &[u8]) -> Result<Vec<Item>, WireError> {
    let mut list = List::default();
    walk(signal, request, &mut list)?;
    Ok(list.items)
}

/// The request with only those items for whose index `keep` is true; None when that is all of them. A resource, scope
/// or metric that has no item left goes too, and so does one that never had any.
pub fn retain(
    signal: Signal,
    request: &[u8],
    keep: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Vec<u8>>, WireError> {
    let mut cut = Cut { request, keep, parts: Vec::new(), len: 0, copied: 0, open: Vec::new(), seen: 0, kept: 0 };
    walk(signal, request, &mut cut)?;
    if cut.seen == cut.kept {
        return Ok(None);
    }
    cut.copy_to(request.len());
    Ok(Some(cut.into_bytes()))
}

/// What a walk meets, from the outside in.
trait Visitor {
    /// An envelope's key begins at `key`, its length at `length`; its body is `body`. `depth` is 0 for a resource, 1
    /// for a scope.
    fn enter(&mut self, depth: u32, key: usize, length: usize, body: Range<usize>);
    fn item(&mut self, whole: Range<usize>);
    /// The body of the envelope entered last ends here.
    fn leave(&mut self, end: usize);
}

fn walk(signal: Signal, request: &[u8], visitor: &mut dyn Visitor) -> Result<(), WireError> {
    let message = schema::request(signal);
    walk_message(request, message, 0..request.len(), 0, visitor).map_err(|trouble| *trouble)
}

fn walk_message(
    bytes: &[u8],
    message: &'static Message,
    body: Range<usize>,
    depth: u32,
    visitor: &mut dyn Visitor,
) -> Result<(), wire::Trouble> {
    let chosen = chosen_member(bytes, message, body.clone())?;
    let mut at = body.start;
    while at < body.end {
        let field = next_field(bytes, at, body.end)?;
        at = field.end;
        let Some(known) = message.field(field.number) else { continue };
        if field.wire_type != known.wire_type as u8 {
            continue;
        }
        if known.item {
            visitor.item(field.key..field.end);
        } else if known.envelope
            && (!known.oneof || chosen.is_some_and(|(number, from)| number == field.number && field.key >= from))
            && let Kind::Message(inner) = known.kind
        {
            visitor.enter(depth, field.key, field.length, field.value..field.end);
            walk_message(bytes, inner, field.value..field.end, depth + 1, visitor)?;
            visitor.leave(field.end);
        }
    }
    Ok(())
}

/// Where one field lies: its key, its length (or value), its value, its end.
struct Place {
    number: u32,
    wire_type: u8,
    key: usize,
    length: usize,
    value: usize,
    end: usize,
}

fn next_field(bytes: &[u8], key: usize, end: usize) -> Result<Place, wire::Trouble> {
    let (number, wire_type, length) = wire::key(bytes, key, end)?;
    let (value, stop) = match wire_type {
        2 => wire::delimited(bytes, length, end)?,
        _ => (length, wire::skip(bytes, number, wire_type, length, end, MAX_DEPTH)?),
    };
    Ok(Place { number, wire_type, key, length, value, end: stop })
}

/// Which kind of data a metric has, and from where on: of several, a decoder keeps the last.
fn chosen_member(
    bytes: &[u8],
    message: &'static Message,
    body: Range<usize>,
) -> Result<Option<(u32, usize)>, wire::Trouble> {
    let mut chosen: Option<(u32, usize)> = None;
    if !message.fields.iter().any(|field| field.oneof && field.envelope) {
        return Ok(None);
    }
    let mut at = body.start;
    while at < body.end {
        let field = next_field(bytes, at, body.end)?;
        at = field.end;
        let is_member =
            message.field(field.number).is_some_and(|known| known.oneof && field.wire_type == known.wire_type as u8);
        if is_member && chosen.is_none_or(|(number, _)| number != field.number) {
            chosen = Some((field.number, field.key));
        }
    }
    Ok(chosen)
}

/// Collects the items.
#[derive(Default)]
struct List {
    items: Vec<Item>,
    resources: u32,
    scopes: u32,
}

impl Visitor for List {
    fn enter(&mut self, depth: u32, _key: usize, _length: usize, _body: Range<usize>) {
        match depth {
            0 => self.resources += 1,
            1 => self.scopes += 1,
            _ => {}
        }
    }

    fn item(&mut self, whole: Range<usize>) {
        let item = Item {
            start: whole.start,
            end: whole.end,
            resource: self.resources.saturating_sub(1),
            scope: self.scopes.saturating_sub(1),
        };
        self.items.push(item);
    }

    fn leave(&mut self, _end: usize) {}
}

/// A piece of the shortened request.
enum Part {
    Copy(Range<usize>),
    /// The key of an envelope and the length of what follows.
    Head {
        key: Range<usize>,
        body_len: usize,
    },
}

/// An envelope whose end is not reached.
struct Open {
    /// Its head among the parts.
    head: usize,
    /// Bytes written before its head, and before its body.
    before: usize,
    kept_before: usize,
}

struct Cut<'a> {
    request: &'a [u8],
    keep: &'a mut dyn FnMut(usize) -> bool,
    parts: Vec<Part>,
    /// Bytes of the parts, without the heads of open envelopes.
    len: usize,
    /// The request up to here is copied or left out.
    copied: usize,
    open: Vec<Open>,
    seen: usize,
    kept: usize,
}

impl Cut<'_> {
    fn copy_to(&mut self, end: usize) {
        if end > self.copied {
            self.parts.push(Part::Copy(self.copied..end));
            self.len += end - self.copied;
        }
        self.copied = end;
    }

    fn into_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len);
        for part in self.parts {
            match part {
                Part::Copy(range) => out.extend_from_slice(&self.request[range]),
                Part::Head { key, body_len } => {
                    out.extend_from_slice(&self.request[key]);
                    put_varint(&mut out, body_len as u64);
                }
            }
        }
        debug_assert_eq!(out.len(), self.len);
        out
    }
}

impl Visitor for Cut<'_> {
    fn enter(&mut self, _depth: u32, key: usize, length: usize, body: Range<usize>) {
        self.copy_to(key);
        self.open.push(Open { head: self.parts.len(), before: self.len, kept_before: self.kept });
        self.parts.push(Part::Head { key: key..length, body_len: 0 });
        self.copied = body.start;
    }

    fn item(&mut self, whole: Range<usize>) {
        let keep = (self.keep)(self.seen);
        self.seen += 1;
        if keep {
            self.kept += 1;
        } else {
            self.copy_to(whole.start);
            self.copied = whole.end;
        }
    }

    fn leave(&mut self, end: usize) {
        self.copy_to(end);
        let Some(open) = self.open.pop() else { return };
        if self.kept == open.kept_before {
            self.parts.truncate(open.head);
            self.len = open.before;
            return;
        }
        let written = self.len - open.before;
        if let Some(Part::Head { key, body_len }) = self.parts.get_mut(open.head) {
            *body_len = written;
            self.len += key.len() + varint_len(written as u64);
        }
    }
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests;
