//! Reading durable records: from memory when they are recent, from the segment file otherwise.

use std::io;
use std::sync::Arc;

use crate::storage::record::{Record, end_after};
use crate::storage::segment::{RECORDS_START, Scanner, Step};

use super::{Inner, Log, Segment, State};

/// Where a reader stands. The hint saves looking for the offset again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub sequence: u64,
    /// Segment id and the offset in it where `sequence` is.
    pub hint: Option<(u64, u64)>,
}

impl Position {
    pub fn at(sequence: u64) -> Position {
        Position { sequence, hint: None }
    }
}

/// Records that are gone, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub segment_id: u64,
    pub offset: u64,
    pub bytes: u64,
    /// Sequences that lay there: from, to (exclusive). May be empty when nothing is known to be missing.
    pub sequences: std::ops::Range<u64>,
    pub reason: String,
}

/// What one read brought.
#[derive(Debug, Default)]
pub struct Chunk {
    pub records: Vec<Record>,
    /// Where to go on. Everything between the old and the new position is in `records`, lost, or was never used.
    pub next: Position,
    pub lost: Vec<Lost>,
}

impl Chunk {
    /// The next read begins before a gap that is still open, and meets it again.
    fn leave_open_gaps(&mut self) {
        self.lost.retain(|lost| lost.sequences.end != u64::MAX);
    }
}

impl Log {
    /// Reads records from `from` on that are still in memory; None when the file must be asked. Never blocks for
    /// long, so an async task may call it.
    pub fn read_tail(&self, from: Position, bytes_max: u64, records_max: usize) -> Option<Chunk> {
        let state = self.inner.state.lock();
        state.tail.read(from, state.durable_end, bytes_max, records_max)
    }

    /// Reads records from `from` on out of the segment file that holds them; at least one if there is one. Blocks on
    /// the disk. Raw lengths count against `bytes_max`. Where the disk fails behind the first record it ends there.
    pub fn read_file(&self, from: Position, bytes_max: u64, records_max: usize) -> io::Result<Chunk> {
        let inner = &self.inner;
        let (mut scanner, id, first, last, valid_end) = {
            let state = inner.state.lock();
            let Some(segment) = segment_of(&state, from.sequence) else {
                return Ok(Chunk { next: Position::at(from.sequence.max(state.durable_end)), ..Chunk::default() });
            };
            let offset = start_offset(segment, from);
            let scanner = Scanner::new(Arc::clone(&segment.file), segment.identity, offset, segment.valid_end);
            (scanner, segment.identity.id, segment.first, segment.last, segment.valid_end)
        };
        let mut chunk = Chunk { next: from, ..Chunk::default() };
        let mut bytes = 0;
        loop {
            let header = match scanner.peek_header() {
                Err(_) if !chunk.records.is_empty() => break chunk.leave_open_gaps(),
                read => read?,
            };
            if let Some(header) = header.filter(|header| header.sequence < from.sequence) {
                scanner.hop(&header);
                continue;
            }
            if let Some(header) = header {
                let full = bytes + u64::from(header.raw_len) > bytes_max || chunk.records.len() >= records_max;
                if full && !chunk.records.is_empty() {
                    break chunk.leave_open_gaps();
                }
            }
            let step = match scanner.step() {
                Err(_) if !chunk.records.is_empty() => break chunk.leave_open_gaps(),
                step => step?,
            };
            match step {
                Step::Record(located, record) => {
                    bytes += u64::from(located.header.raw_len);
                    let next = Position { sequence: record.sequence + 1, hint: Some((id, scanner.offset())) };
                    if let Some(open) = chunk.lost.last_mut().filter(|lost| lost.sequences.end == u64::MAX) {
                        // Numbers behind the record published before this one were never used.
                        let end = end_after(located.header.previous).min(record.sequence);
                        open.sequences.end = end.max(open.sequences.start);
                        if open.sequences.is_empty() {
                            chunk.lost.pop();
                        }
                    }
                    if record.sequence >= from.sequence {
                        chunk.records.push(record);
                        chunk.next = next;
                    }
                }
                Step::Gap(gap) => chunk.lost.push(Lost {
                    segment_id: id,
                    offset: gap.offset,
                    bytes: gap.len,
                    sequences: chunk.next.sequence.max(first)..u64::MAX,
                    reason: "a record failed its check".to_owned(),
                }),
                Step::End => {
                    // A gap that is open still lies before what was asked for.
                    chunk.lost.retain(|lost| lost.sequences.end != u64::MAX);
                    // Sequences up to `last` were durable here, so what is missing at the end is damage as well.
                    let at = scanner.offset();
                    if at < valid_end {
                        chunk.lost.push(Lost {
                            segment_id: id,
                            offset: at,
                            bytes: valid_end - at,
                            sequences: chunk.next.sequence..last + 1,
                            reason: "records at the end of the segment failed their check".to_owned(),
                        });
                    }
                    chunk.next = Position::at(last + 1);
                    break;
                }
            }
        }
        report(inner, &chunk.lost);
        Ok(chunk)
    }

    /// The sequence behind the last of the segment that holds `sequence`.
    pub fn end_of_segment(&self, sequence: u64) -> u64 {
        let state = self.inner.state.lock();
        segment_of(&state, sequence).map_or(state.durable_end, |segment| segment.last + 1)
    }
}

/// Each damaged place is reported once, however many exporters pass it, and nobody passes it before that is done.
fn report(inner: &Inner, lost: &[Lost]) {
    if lost.is_empty() {
        return;
    }
    // Who is told may wait for the disk: not under the state's lock, which the writer needs.
    let _turn = inner.reporting.lock();
    for lost in lost.iter().filter(|lost| is_news(&inner.state.lock(), lost)) {
        inner.shared.observer.damaged(&inner.id, lost);
        let mut state = inner.state.lock();
        state.is_damaged = true;
        if let Some(segment) = state.segments.get_mut(&lost.segment_id) {
            segment.damage_seen.insert(place_of(lost));
        }
    }
}

fn is_news(state: &State, lost: &Lost) -> bool {
    // What a torn group left behind is no loss.
    let is_hole = !lost.sequences.is_empty() && state.holes.contains_all(lost.sequences.clone());
    let segment = state.segments.get(&lost.segment_id);
    !is_hole && segment.is_some_and(|segment| !segment.damage_seen.contains_all(place_of(lost)))
}

fn place_of(lost: &Lost) -> std::ops::Range<u64> {
    lost.offset..lost.offset + lost.bytes
}

fn segment_of(state: &State, sequence: u64) -> Option<&Segment> {
    // Ids and sequences rise together.
    state.segments.values().find(|segment| segment.records > 0 && segment.last >= sequence)
}

pub(super) fn start_offset(segment: &Segment, from: Position) -> u64 {
    if let Some((id, offset)) = from.hint
        && id == segment.identity.id
        && offset <= segment.valid_end
    {
        return offset;
    }
    let after = segment.index.partition_point(|(sequence, _)| *sequence <= from.sequence);
    after.checked_sub(1).map_or(RECORDS_START, |index| segment.index[index].1)
}
