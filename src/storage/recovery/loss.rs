//! Tells what was lost from what was never acknowledged.
//!
//! Each record names the one published before it. Followed down from the newest, that chain passes every record that
//! was ever acknowledged and none of those that a failed sync left behind. A torn group is the exception: what of it
//! was found is kept, and what of it is missing becomes a hole, remembered beside the durable end.

use crate::storage::catalog::SegmentRow;
use crate::storage::cursor::Cursor;
use crate::storage::log::{Lost, Segment};
use crate::storage::ranges::RangeSet;
use crate::storage::record::end_after;
use crate::storage::segment::{RECORDS_START, ScanResult};

const GONE: &str = "the segment that held them is gone, or nothing in it can be read";

/// Takes the segments from the newest to the oldest, so that one scan at a time is in memory.
pub(super) struct LossFinder {
    durable_end: u64,
    holes: RangeSet,
    /// The durable end as catalogue and witness have it.
    recorded_end: u64,
    /// Behind the sequence that the chain leads to next, 0 at its start; None where nothing tells.
    wanted_end: Option<u64>,
    /// Of the segment passed last, when it was scanned.
    front: Option<Front>,
    newest_id: Option<u64>,
    last_sequence: Option<u64>,
    findings: Findings,
}

/// Where the first record of a segment lies.
struct Front {
    segment_id: u64,
    sequence_floor: u64,
    previous: u64,
    offset: u64,
}

#[derive(Default)]
pub(super) struct Findings {
    pub lost: Vec<Lost>,
    /// Missing and never acknowledged.
    pub torn: RangeSet,
    /// Found and not on the chain.
    pub stray: RangeSet,
    /// Records are lost of which no segment is left: they may have been in one in which nothing can be read.
    pub is_segment_lost: bool,
}

impl LossFinder {
    /// `holes`: what is known to be missing already.
    pub fn new(recorded_end: u64, holes: RangeSet) -> LossFinder {
        LossFinder {
            durable_end: recorded_end,
            holes,
            recorded_end,
            wanted_end: Some(recorded_end).filter(|end| *end > 0),
            front: None,
            newest_id: None,
            last_sequence: None,
            findings: Findings::default(),
        }
    }

    /// Every record below was acknowledged, or its number never used.
    pub fn durable_end(&self) -> u64 {
        self.durable_end
    }

    /// The highest sequence that was found.
    pub fn last_sequence(&self) -> Option<u64> {
        self.last_sequence
    }

    /// Whether that record of the segment passed last was perhaps never acknowledged.
    pub fn is_unsure(&self, sequence: u64) -> bool {
        sequence >= self.durable_end || self.findings.stray.contains(sequence)
    }

    /// The catalogue knows a segment of which nothing is left.
    pub fn unreadable_segment(&mut self, row: &SegmentRow, reason: &str) {
        self.findings.lost.push(Lost {
            segment_id: row.id,
            offset: 0,
            bytes: row.valid_end,
            sequences: row.first_sequence..row.last_sequence + 1,
            reason: reason.to_owned(),
        });
    }

    /// The next older segment, and its records where it was scanned.
    pub fn pass(&mut self, id: u64, segment: &Segment, scan: Option<&ScanResult>) {
        self.newest_id = self.newest_id.or(Some(id));
        if segment.records == 0 {
            return;
        }
        let known_end = match scan {
            // The catalogue vouches only for what was published.
            None => segment.last + 1,
            // The first records found may be what is left of a torn group.
            Some(scan) => scan.records.iter().map(|located| located.header.durable_end).max().unwrap_or_default(),
        };
        // Of the newest segment, which is passed first, it is the highest.
        self.durable_end = self.durable_end.max(known_end);
        if self.last_sequence.is_none() && segment.last >= self.recorded_end {
            self.wanted_end = None;
        }
        self.last_sequence = self.last_sequence.max(Some(segment.last));
        self.follow(id, segment, scan);
        self.front = scan.and_then(|scan| scan.records.first()).map(|first| Front {
            segment_id: id,
            sequence_floor: segment.identity.sequence_floor,
            previous: first.header.previous,
            offset: first.offset,
        });
    }

    /// After the oldest. `cursors`: where everybody stands.
    pub fn finish<'a>(mut self, cursors: impl Iterator<Item = &'a Cursor>) -> Findings {
        self.miss_front();
        self.miss_retained(self.newest_id.unwrap_or_default(), cursors);
        self.findings
    }

    /// What somebody has not settled was not reclaimed either: below where the chain ends it is lost with its segment.
    fn miss_retained<'a>(&mut self, segment_id: u64, cursors: impl Iterator<Item = &'a Cursor>) {
        let Some(end) = self.wanted_end.map(|end| end.min(self.durable_end)) else { return };
        let waiting: RangeSet = cursors.flat_map(|cursor| cursor.above().gaps(cursor.low()..end)).collect();
        let lost = self.findings.lost.iter().map(|lost| lost.sequences.clone());
        let known: RangeSet = self.holes.iter().chain(lost).collect();
        for sequences in waiting.iter().flat_map(|range| known.gaps(range)) {
            let reason = GONE.to_owned();
            self.findings.lost.push(Lost { segment_id, offset: 0, bytes: 0, sequences, reason });
            self.findings.is_segment_lost = true;
        }
    }

    /// The oldest segment may have lost its own front.
    fn miss_front(&mut self) {
        let Some(front) = self.front.take() else { return };
        let is_on_chain = self.wanted_end == Some(end_after(front.previous));
        if is_on_chain && front.offset > RECORDS_START {
            self.miss(front.segment_id, front.sequence_floor, RECORDS_START, front.offset - RECORDS_START);
        }
    }

    fn follow(&mut self, id: u64, segment: &Segment, scan: Option<&ScanResult>) {
        let Some(scan) = scan else {
            if self.wanted_end.is_some_and(|end| end <= segment.first) {
                return self.stray(segment.last);
            }
            self.miss(id, segment.last + 1, 0, 0);
            self.wanted_end = Some(segment.previous_end);
            return;
        };
        for located in scan.records.iter().rev() {
            let header = &located.header;
            if self.wanted_end.is_some_and(|end| end <= header.sequence) {
                // Left behind by a write that failed; its request was answered otherwise.
                self.findings.stray.insert(header.sequence..header.sequence + 1);
                self.stray(header.sequence);
                continue;
            }
            let gap = scan.gaps.iter().find(|gap| gap.offset > located.offset);
            let (offset, bytes) = gap.map_or((segment.valid_end, 0), |gap| (gap.offset, gap.len));
            self.miss(id, header.sequence + 1, offset, bytes);
            self.wanted_end = Some(end_after(header.previous));
        }
    }

    /// The chain passes by all numbers from what it wants to the one of such a record: none of them was acknowledged.
    fn stray(&mut self, sequence: u64) {
        if let Some(end) = self.wanted_end {
            self.findings.torn.insert(end..sequence + 1);
        }
    }

    /// What the chain wanted from `start` on is not there.
    fn miss(&mut self, segment_id: u64, start: u64, offset: u64, bytes: u64) {
        let Some(end) = self.wanted_end else { return };
        let missing = start..end;
        // At and above the durable end nothing was acknowledged: a torn tail, no loss.
        let below = missing.start..missing.end.min(self.durable_end);
        if missing.end > missing.start.max(self.durable_end) {
            self.findings.torn.insert(missing.start.max(self.durable_end)..missing.end);
        }
        for sequences in self.holes.gaps(below) {
            let known = self
                .findings
                .lost
                .iter()
                .any(|lost| lost.sequences.start <= sequences.start && lost.sequences.end >= sequences.end);
            if !known {
                let reason = match (offset, bytes) {
                    (0, _) => GONE,
                    (_, 0) => "the file ends before them, or holds other bytes in their place",
                    _ => "records failed their check",
                };
                let reason = reason.to_owned();
                self.findings.lost.push(Lost { segment_id, offset, bytes, sequences, reason });
            }
        }
    }
}
