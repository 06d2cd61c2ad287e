//! What may give way when there is no room: the backlog of cursors that gave leave to it, and nothing else.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::settings::Sizer;
use crate::storage::backlog::Weight;
use crate::storage::catalog::{CursorRow, RANGES_SURE};
use crate::storage::cursor::{Cursor, PERSISTED_RANGES_MAX};
use crate::storage::ledger::Ledger;
use crate::storage::segment::{RECORDS_START, Scanner};

use super::read::start_offset;
use super::{Inner, Log, Position, SegmentState};

/// A segment that only cursors which give way hold on to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Droppable {
    pub sequences: Range<u64>,
    pub allocated_bytes: u64,
}

/// Enough of a backlog, in one unit.
pub type Enough = Option<(Sizer, u64)>;

/// The cursor as a checkpoint writes it, which alone lets segments go: of very many ranges a row keeps the first.
fn written_down(cursor: &Cursor) -> Cow<'_, Cursor> {
    if cursor.above().len() <= RANGES_SURE {
        Cow::Borrowed(cursor)
    } else {
        Cow::Owned(CursorRow::new(cursor, &Ledger::default(), PERSISTED_RANGES_MAX).cursor())
    }
}

impl Inner {
    /// The cursors that give way. Taken before the state's lock, which others hold while they take that of the tallies.
    pub(super) fn giving_way(&self) -> BTreeSet<String> {
        let tallies = self.tallies.read();
        tallies.iter().filter(|tally| tally.gives_way()).map(|tally| tally.cursor.clone()).collect()
    }
}

impl Log {
    /// At the cap, this cursor's oldest records may be given up: its limit never refuses, and who watches
    /// [`crate::storage::Store::pressure`] makes room.
    pub fn let_give_way(&self, cursor: &str) {
        if let Some(tally) = self.tally(cursor) {
            tally.let_give_way();
        }
    }

    /// The parts of `range` that the cursor has not settled.
    pub fn unsettled(&self, cursor: &str, range: Range<u64>) -> Vec<Range<u64>> {
        let state = self.inner.state.lock();
        let range = range.start..range.end.min(state.durable_end);
        state.cursors.get(cursor).map_or(Vec::new(), |cursor| super::backlog::unsettled(cursor, range))
    }

    /// Tells who watches that these records are given up.
    pub fn giving_up(&self, sequences: Range<u64>) {
        self.inner.shared.observer.giving_up(&self.inner.id, sequences);
    }

    pub fn gives_way(&self, cursor: &str) -> bool {
        self.tally(cursor).is_some_and(|tally| tally.gives_way())
    }

    /// By how much the backlog of a cursor that gives way is beyond its limit.
    pub fn excess(&self, cursor: &str) -> Option<(Sizer, u64)> {
        let tally = self.tally(cursor).filter(|tally| tally.gives_way())?;
        let limit = tally.limit()?;
        let waiting = self.inner.state.lock().backlogs.get(cursor)?.measure(limit.sizer);
        waiting.checked_sub(limit.size).filter(|excess| *excess > 0).map(|excess| (limit.sizer, excess))
    }

    /// Segments whose space comes back when cursors that give way do so, oldest first. What a blocking cursor holds as
    /// well is not among them: giving it up would free nothing.
    pub fn droppable(&self) -> Vec<Droppable> {
        let giving_way = self.inner.giving_way();
        let state = self.inner.state.lock();
        let sealed = state.segments.values().filter(|s| s.state != SegmentState::Active && s.records > 0);
        sealed
            .filter_map(|segment| {
                let sequences = segment.first..segment.last + 1;
                let mut held = false;
                let all_give_way = state.cursors.iter().all(|(name, cursor)| {
                    if giving_way.contains(name) {
                        held |= !cursor.has_settled(sequences.clone());
                        return true;
                    }
                    written_down(cursor).has_settled(sequences.clone())
                });
                (held && all_give_way).then_some(Droppable { sequences, allocated_bytes: segment.allocated_bytes })
            })
            .collect()
    }

    /// Bytes of segments that everyone has settled: they come back with the next checkpoint.
    pub fn reclaimable_bytes(&self) -> u64 {
        let state = self.inner.state.lock();
        let cursors: Vec<Cow<'_, Cursor>> = state.cursors.values().map(written_down).collect();
        // Without cursors nothing is ever given back.
        let settled =
            |range: Range<u64>| !cursors.is_empty() && cursors.iter().all(|cursor| cursor.has_settled(range.clone()));
        let sealed = state.segments.values().filter(|s| s.state != SegmentState::Active && s.records > 0);
        sealed.filter(|s| settled(s.first..s.last + 1)).map(|s| s.allocated_bytes).sum()
    }

    /// The records in `range` up to where they are `enough`: where that is, and their weight. Reads the headers from
    /// the disk where a segment is not wanted whole.
    pub fn weigh(&self, range: Range<u64>, enough: Enough) -> io::Result<(u64, Weight)> {
        let mut sum = Weight::default();
        let is_enough = |sum: &Weight| enough.is_some_and(|(sizer, size)| sum.measure(sizer) >= size);
        let segments: Vec<_> = {
            let state = self.inner.state.lock();
            let within =
                state.segments.values().filter(|s| s.records > 0 && s.last >= range.start && s.first < range.end);
            within
                .map(|s| {
                    let bytes = s.valid_end - RECORDS_START;
                    let whole = Weight { records: s.records, items: s.items, bytes };
                    let offset = start_offset(s, Position::at(range.start.max(s.first)));
                    (s.first..s.last + 1, whole, Arc::clone(&s.file), s.identity, offset..s.valid_end)
                })
                .collect()
        };
        for (sequences, whole, file, identity, offsets) in segments {
            let wanted = range.start <= sequences.start && sequences.end <= range.end;
            if wanted && !is_enough(&sum.plus(&whole)) {
                sum = sum.plus(&whole);
                continue;
            }
            let mut scanner = Scanner::new(file, identity, offsets.start, offsets.end);
            while let Some(header) = scanner.next_header()? {
                if header.sequence >= range.end || scanner.offset() > offsets.end {
                    break;
                }
                if header.sequence >= range.start {
                    sum = sum.plus(&Weight { records: 1, items: u64::from(header.items), bytes: header.record_len() });
                    if is_enough(&sum) {
                        return Ok((header.sequence + 1, sum));
                    }
                }
            }
        }
        Ok((range.end, sum))
    }
}
