//! The spans of an `ExportTraceServiceRequest` one by one, with what stands around them, undecoded.

use super::wire::{self, MAX_DEPTH, Trouble, WireError};

/// `resource_spans`, `scope_spans` and `spans` where they are nested.
const RESOURCE_SPANS: u32 = 1;
const SCOPE_SPANS: u32 = 2;
const SPANS: u32 = 2;
const TRACE_ID: u32 = 1;
const SPAN_ID: u32 = 2;

/// What a walk meets, from the outside in.
pub trait Visitor {
    /// Everything of a `ResourceSpans` but its scopes.
    fn resource(&mut self, parts: &[&[u8]]);
    /// Everything of a `ScopeSpans` but its spans.
    fn scope(&mut self, parts: &[&[u8]]);
    fn span(&mut self, span: Span<'_>);
}

#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    pub bytes: &'a [u8],
    /// Empty when absent.
    pub trace_id: &'a [u8],
    pub span_id: &'a [u8],
}

impl Span<'_> {
    /// Trace id and span id, if both are whole and not all zeros.
    pub fn identity(&self) -> Option<[u8; 24]> {
        let (trace, span) = (<[u8; 16]>::try_from(self.trace_id).ok()?, <[u8; 8]>::try_from(self.span_id).ok()?);
        if trace == [0; 16] || span == [0; 8] {
            return None;
        }
        let mut identity = [0; 24];
        identity[..16].copy_from_slice(&trace);
        identity[16..].copy_from_slice(&span);
        Some(identity)
    }
}

/// Walks a valid request; spans come in their order on the wire, as [`super::edit`] counts them.
pub fn walk(request: &[u8], visitor: &mut dyn Visitor) -> Result<(), WireError> {
    let mut parts = Vec::new();
    each(request, RESOURCE_SPANS, |resource| {
        split(resource, SCOPE_SPANS, &mut parts)?;
        visitor.resource(&parts);
        parts.clear();
        each(resource, SCOPE_SPANS, |scope| {
            split(scope, SPANS, &mut parts)?;
            visitor.scope(&parts);
            parts.clear();
            each(scope, SPANS, |span| {
                visitor.span(read_span(span)?);
                Ok(())
            })
        })
    })
    .map_err(|trouble| *trouble)
}

/// One field: number, wire type, where its key begins, its value, and where it ends.
type Place = (u32, u8, usize, usize, usize);

fn next_field(bytes: &[u8], at: usize) -> Result<Place, Trouble> {
    let (number, wire_type, length) = wire::key(bytes, at, bytes.len())?;
    let (value, end) = match wire_type {
        2 => wire::delimited(bytes, length, bytes.len())?,
        _ => (length, wire::skip(bytes, number, wire_type, length, bytes.len(), MAX_DEPTH)?),
    };
    Ok((number, wire_type, at, value, end))
}

fn each<'a>(
    bytes: &'a [u8],
    wanted: u32,
    mut visit: impl FnMut(&'a [u8]) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut at = 0;
    while at < bytes.len() {
        let (number, wire_type, _, value, end) = next_field(bytes, at)?;
        if number == wanted && wire_type == 2 {
            visit(&bytes[value..end])?;
        }
        at = end;
    }
    Ok(())
}

/// Everything but the fields `without`, as the stretches between them.
fn split<'a>(bytes: &'a [u8], without: u32, parts: &mut Vec<&'a [u8]>) -> Result<(), Trouble> {
    let (mut at, mut from) = (0, 0);
    while at < bytes.len() {
        let (number, wire_type, key, _, end) = next_field(bytes, at)?;
        if number == without && wire_type == 2 {
            if key > from {
                parts.push(&bytes[from..key]);
            }
            from = end;
        }
        at = end;
    }
    if from < bytes.len() {
        parts.push(&bytes[from..]);
    }
    Ok(())
}

/// Ids come first in nearly every encoder, but they may stand anywhere, and the last one counts.
fn read_span(bytes: &[u8]) -> Result<Span<'_>, Trouble> {
    let mut span = Span { bytes, trace_id: &[], span_id: &[] };
    let mut at = 0;
    while at < bytes.len() {
        let (number, wire_type, _, value, end) = next_field(bytes, at)?;
        match (number, wire_type) {
            (TRACE_ID, 2) => span.trace_id = &bytes[value..end],
            (SPAN_ID, 2) => span.span_id = &bytes[value..end],
            _ => {}
        }
        at = end;
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen {
        around: Vec<u8>,
        spans: Vec<(Vec<u8>, Option<[u8; 24]>)>,
    }

    impl Visitor for Seen {
        fn resource(&mut self, parts: &[&[u8]]) {
            self.around.extend(parts.concat());
        }
        fn scope(&mut self, parts: &[&[u8]]) {
            self.around.extend(parts.concat());
        }
        fn span(&mut self, span: Span<'_>) {
            self.spans.push((span.bytes.to_vec(), span.identity()));
        }
    }

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, value.len() as u8][..], value].concat()
    }

    #[test]
    fn what_stands_around_spans_is_seen_wherever_it_stands() {
        let ids = [field(1, &[7; 16]), field(2, &[8; 8])].concat();
        let scope = [field(2, &ids), field(1, b""), field(2, &ids[..18]), field(3, b"url")].concat();
        let resource = [field(2, &scope), field(1, b""), field(9, b"??")].concat();
        let mut seen = Seen::default();
        walk(&field(1, &resource), &mut seen).expect("walks");
        let around = [field(1, b""), field(9, b"??"), field(1, b""), field(3, b"url")].concat();
        assert_eq!(seen.around, around);
        let mut identity = [8; 24];
        identity[..16].fill(7);
        assert_eq!(seen.spans, vec![(ids.clone(), Some(identity)), (ids[..18].to_vec(), None)]);
    }

    #[test]
    fn the_last_id_of_a_span_counts_and_zeros_are_none() {
        let twice = [field(1, &[7; 16]), field(2, &[8; 8]), field(2, &[0; 8])].concat();
        assert_eq!(read_span(&twice).expect("reads").identity(), None);
        let back = [twice, field(2, &[9; 8])].concat();
        assert!(read_span(&back).expect("reads").identity().is_some_and(|identity| identity[16..] == [9; 8]));
    }
}
