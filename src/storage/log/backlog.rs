//! Settling, and what each cursor has left to settle.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::settings::Sizer;
use crate::storage::backlog::{Limit, Tally, Weight};
use crate::storage::cursor::Cursor;
use crate::storage::ledger::{Fate, Fates};
use crate::storage::segment::{RECORDS_START, Scanner};
use crate::storage::space::{Full, Reservation};

use super::{Log, Position, Segment, State};

/// Records whose headers opening reads to count what a cursor has left of segments that it settled in part. Segments beyond
/// these are estimated, and the estimate ends when the cursor has settled everything.
const COUNTED_RECORDS_MAX: u64 = 1 << 18;

fn weight_of(segment: &Segment) -> Weight {
    Weight { records: segment.records, items: segment.items, bytes: segment.valid_end - RECORDS_START }
}

/// The parts of `range` that the cursor has not settled.
pub(super) fn unsettled(cursor: &Cursor, range: Range<u64>) -> Vec<Range<u64>> {
    cursor.above().gaps(range.start.max(cursor.low())..range.end)
}

/// What `cursor` has not settled in `within`: exact for whole segments, in proportion for parts.
pub(super) fn estimate(segments: &BTreeMap<u64, Segment>, cursor: &Cursor, within: &Range<u64>) -> Weight {
    let mut sum = Weight::default();
    for segment in segments.values().filter(|segment| segment.records > 0) {
        let whole = segment.first..segment.last + 1;
        for left in unsettled(cursor, whole.start.max(within.start)..whole.end.min(within.end)) {
            sum = sum.plus(&weight_of(segment).share(&left, &whole));
        }
    }
    sum
}

/// Of each record in a segment. Reads its headers.
fn weights(segment: &Segment) -> io::Result<Vec<(u64, Weight)>> {
    let mut scanner = Scanner::new(Arc::clone(&segment.file), segment.identity, RECORDS_START, segment.valid_end);
    let mut weights = Vec::new();
    while let Some(header) = scanner.next_header()? {
        // What a kill left of a group that was never confirmed lies behind the last.
        if header.sequence > segment.last || scanner.offset() > segment.valid_end {
            break;
        }
        let weight = Weight { records: 1, items: u64::from(header.items), bytes: header.record_len() };
        weights.push((header.sequence, weight));
    }
    Ok(weights)
}

/// What each cursor has left at opening.
pub(in crate::storage) fn count(
    segments: &BTreeMap<u64, Segment>,
    cursors: &BTreeMap<String, Cursor>,
) -> BTreeMap<String, Weight> {
    let mut counted: BTreeMap<u64, Vec<(u64, Weight)>> = BTreeMap::new();
    let mut records_left = COUNTED_RECORDS_MAX;
    let mut backlogs = BTreeMap::new();
    for (name, cursor) in cursors {
        let mut sum = Weight::default();
        for (id, segment) in segments.iter().filter(|(_, segment)| segment.records > 0) {
            let whole = segment.first..segment.last + 1;
            let left = unsettled(cursor, whole.clone());
            let is_partial = !left.is_empty() && left != [whole.clone()];
            if is_partial
                && !counted.contains_key(id)
                && let Some(records) = records_left.checked_sub(segment.records)
                && let Ok(weights) = weights(segment)
            {
                records_left = records;
                counted.insert(*id, weights);
            }
            let weight = match counted.get(id).filter(|_| is_partial) {
                None => estimate(segments, cursor, &whole),
                Some(weights) => weights
                    .iter()
                    .filter(|(sequence, _)| !cursor.is_settled(*sequence))
                    .fold(Weight::default(), |sum, (_, weight)| sum.plus(weight)),
            };
            sum = sum.plus(&weight);
        }
        backlogs.insert(name.clone(), sum);
    }
    backlogs
}

impl Log {
    /// `sending_queue.queue_size` of the exporter with that cursor: beyond it [`Log::reserve`] refuses.
    pub fn limit_backlog(&self, cursor: &str, sizer: Sizer, size: u64) {
        if let Some(tally) = self.tally(cursor) {
            tally.set_limit(Limit { sizer, size });
        }
    }

    /// The oldest record that the cursor has not settled: its sequence, and when it was received (ns since 1970). Reads
    /// the disk unless it is in memory or still the one that is `known`; None when nothing waits or it cannot be read.
    pub fn oldest_unsettled(&self, cursor: &str, known: Option<(u64, u64)>) -> Option<(u64, u64)> {
        let low = {
            let state = self.inner.state.lock();
            let low = state.cursors.get(cursor)?.low();
            if low >= state.durable_end {
                return None;
            }
            low
        };
        if let Some(known) = known.filter(|(sequence, _)| *sequence >= low) {
            return Some(known);
        }
        let from = Position::at(low);
        let chunk = match self.read_tail(from, 1, 1) {
            Some(chunk) => chunk,
            // Whoever delivers it meets the same error, and reports it.
            None => self.read_file(from, 1, 1).ok()?,
        };
        chunk.records.first().map(|record| (record.sequence, record.received_unix_ns))
    }

    pub(super) fn limit_of(&self, cursor: &str) -> Option<Limit> {
        self.tally(cursor).and_then(|tally| tally.limit())
    }

    pub(super) fn tally(&self, cursor: &str) -> Option<Arc<Tally>> {
        self.inner.tallies.read().iter().find(|tally| tally.cursor == cursor).cloned()
    }

    /// Counts the record in every backlog, or in none and says whose is full. Constant time: no record is looked at.
    pub(super) fn reserve_backlog(&self, mut reservation: Reservation) -> Result<Reservation, Full> {
        for tally in self.inner.tallies.read().iter() {
            let is_beyond = tally.try_add(&reservation.weight).map_err(|(waiting, limit)| Full::Backlog {
                exporter: tally.cursor.clone(),
                queue: self.inner.id.clone(),
                waiting,
                size: limit.size,
                unit: limit.sizer.name(),
            })?;
            if is_beyond {
                self.inner.shared.pressure.raise();
            }
            reservation.tallies.push(Arc::clone(tally));
        }
        Ok(reservation)
    }

    /// [`Log::settle_weighed`] for who has not read the records.
    pub fn settle(&self, cursor: &str, range: Range<u64>) {
        let weight = {
            let state = self.inner.state.lock();
            let Some(found) = state.cursors.get(cursor) else { return };
            estimate(&state.segments, found, &range)
        };
        self.settle_weighed(cursor, range, weight, &Fates::of(Fate::Delivered, weight.items));
    }

    /// Items that were offered and are in the queue already: every exporter's account has them.
    pub fn note_deduplicated(&self, items: u64) {
        for ledger in self.inner.state.lock().ledgers.values_mut() {
            ledger.deduplicate(items);
        }
        self.inner.shared.dirty.raise();
    }

    /// Moves the cursor; it becomes durable with the next checkpoint, and only then may segments go. `weight`: the
    /// records in the range; `fates`: what became of their items.
    pub fn settle_weighed(&self, cursor: &str, range: Range<u64>, weight: Weight, fates: &Fates) {
        let mut state = self.inner.state.lock();
        let State { cursors, backlogs, ledgers, is_damaged, tail, durable_end, .. } = &mut *state;
        let Some(found) = cursors.get_mut(cursor) else { return };
        // Each item settles once.
        let is_again = found.has_settled(range.clone());
        let (weight, fates) = if is_again { (Weight::default(), Fates::default()) } else { (weight, *fates) };
        found.settle(range);
        let backlog = backlogs.entry(cursor.to_owned()).or_default();
        // With nothing left the count is exact again, whatever was estimated or lost to damage.
        let left = if found.low() >= *durable_end { Weight::default() } else { backlog.minus(&weight) };
        let gone = backlog.minus(&left);
        *backlog = left;
        ledgers.entry(cursor.to_owned()).or_default().settle(&fates, gone.items, *is_damaged);
        let lows = || cursors.values().map(Cursor::low);
        let (lowest, foremost) = (lows().min().unwrap_or(0), lows().max().unwrap_or(0));
        tail.settled(lowest, foremost);
        drop(state);
        if let Some(tally) = self.tally(cursor) {
            tally.subtract(&gone);
        }
        self.inner.shared.dirty.raise();
    }
}
