//! Counting the spans of a request while it arrives: only the outer three levels are looked at, so that a sink on the
//! same machine takes little from what is measured.

/// Fields that lead to spans: `resource_spans`, `scope_spans`, `spans`.
const PATH: [u64; 3] = [1, 2, 2];
const DELIMITED: u64 = 2;

/// Takes an uncompressed `ExportTraceServiceRequest` in pieces.
#[derive(Debug, Default)]
pub struct SpanCounter {
    spans: u64,
    offset: u64,
    /// Where the messages that enclose the offset end.
    ends: Vec<u64>,
    skip_to: u64,
    /// A field's key that was read, whose length comes next.
    key: Option<u64>,
    varint: u64,
    shift: u32,
    malformed: bool,
}

impl SpanCounter {
    /// For a request with so many other bytes before it.
    pub fn behind(prefix_bytes: usize) -> SpanCounter {
        SpanCounter { skip_to: prefix_bytes as u64, ..SpanCounter::default() }
    }

    pub fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && !self.malformed {
            let skipped = (self.skip_to - self.offset).min(piece.len() as u64);
            if skipped > 0 {
                self.offset += skipped;
                piece = &piece[skipped as usize..];
            } else {
                self.offset += 1;
                self.skip_to = self.offset;
                self.byte(piece[0]);
                piece = &piece[1..];
            }
            while self.ends.last() == Some(&self.offset) {
                self.ends.pop();
            }
        }
    }

    fn byte(&mut self, byte: u8) {
        self.varint |= u64::from(byte & 0x7F) << self.shift;
        self.shift += 7;
        if byte >= 0x80 {
            self.malformed = self.shift > 56;
            return;
        }
        let value = std::mem::take(&mut self.varint);
        self.shift = 0;
        let Some(key) = self.key.take() else {
            // At these levels every field has a length.
            self.malformed = value & 7 != DELIMITED;
            self.key = Some(value);
            return;
        };
        let level = self.ends.len();
        let end = self.offset + value;
        self.malformed = self.ends.last().is_some_and(|outer| end > *outer);
        if key >> 3 != PATH[level] {
            self.skip_to = end;
        } else if level + 1 < PATH.len() {
            self.ends.push(end);
        } else {
            self.spans += 1;
            self.skip_to = end;
        }
    }

    /// The spans of the whole request; None when it did not end where its lengths say.
    pub fn finish(&self) -> Option<u64> {
        let whole = !self.malformed && self.ends.is_empty() && self.key.is_none() && self.shift == 0;
        (whole && self.skip_to == self.offset).then_some(self.spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Template;

    #[test]
    fn spans_are_counted_however_the_request_is_cut_and_a_cut_request_is_none() {
        let request = Template::new(7, 50, 551).expect("made").render(1, 2);
        for piece_len in [1, 7, 551, 4096, request.len()] {
            let mut counter = SpanCounter::default();
            request.chunks(piece_len).for_each(|piece| counter.push(piece));
            assert_eq!(counter.finish(), Some(50), "in pieces of {piece_len}");
        }
        for len in [1, 2, 3, 100, request.len() - 1] {
            let mut counter = SpanCounter::default();
            counter.push(&request[..len]);
            assert_eq!(counter.finish(), None, "{len} bytes of it");
        }
    }
}
