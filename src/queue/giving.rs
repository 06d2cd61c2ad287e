//! Records that an exporter gives up unsent, or hands over to the dead letters, where the queue has no more room.

use std::ops::Range;

use crate::storage::log::{Enough, Position};
use crate::storage::{Fate, Fates, RangeSet, Record, Weight};

use super::Subscription;
use super::overflow::Park;
use super::subscription::overlap;

/// What is handed over at once.
const HAND_OVER_BYTES_MAX: u64 = 4 << 20;
const HAND_OVER_RECORDS_MAX: usize = 256;

/// What [`Subscription::give_up`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    pub weight: Weight,
    /// Nothing in the range is unsettled any more.
    pub is_all: bool,
}

impl Subscription {
    /// Settles what is unsettled in `range` unsent, oldest first, until that is `enough`; what is being sent at this
    /// moment stays. Blocks on the disk.
    pub fn give_up(&self, range: Range<u64>, mut enough: Enough) -> std::io::Result<GivenUp> {
        let mut weight = Weight::default();
        for part in self.idle_parts(&range) {
            let (end, part_weight) = self.log.weigh(part.clone(), enough)?;
            let part = part.start..end.min(part.end);
            {
                let mut book = self.book.lock();
                // Weighing took a while: a part that is settled or on its way by now waits for the next round.
                let is_idle = book.out.values().all(|out| !out.is_sending || !overlap(&out.range, &part));
                if part.is_empty() || !is_idle || self.log.unsettled(&self.cursor, part.clone()) != [part.clone()] {
                    continue;
                }
                book.giving = Some(part.clone());
            }
            // Before they are, lest a crash in between leaves them seen; without the lock, since it may wait for the disk.
            self.log.giving_up(part.clone());
            let mut book = self.book.lock();
            book.giving = None;
            let fates = Fates::of(Fate::QueueFull, part_weight.items);
            self.log.settle_weighed(&self.cursor, part.clone(), part_weight, &fates);
            book.forget(|range| !self.has_unsettled(range));
            drop(book);
            self.changed.notify_waiters();
            weight = weight.plus(&part_weight);
            if let Some((sizer, size)) = &mut enough {
                *size = size.saturating_sub(part_weight.measure(*sizer));
                if *size == 0 {
                    break;
                }
            }
        }
        self.changed.notify_waiters();
        Ok(GivenUp { weight, is_all: !self.has_unsettled(&range) })
    }

    /// The same for records that somebody else takes over first, in pieces.
    pub fn hand_over(&self, range: Range<u64>, mut enough: Enough, park: &Park) -> std::io::Result<GivenUp> {
        let mut weight = Weight::default();
        'parts: for part in self.idle_parts(&range) {
            let mut start = part.start;
            while start < part.end {
                let chunk = self.log.read_file(Position::at(start), HAND_OVER_BYTES_MAX, HAND_OVER_RECORDS_MAX)?;
                let piece = start..chunk.next.sequence.min(part.end);
                start = piece.end;
                let records: Vec<Record> =
                    chunk.records.into_iter().filter(|record| piece.contains(&record.sequence)).collect();
                let piece_weight = records.iter().fold(Weight::default(), |sum, record| sum.plus(&record.weight()));
                if piece.is_empty() {
                    continue 'parts;
                }
                let undo = if records.is_empty() { None } else { Some(park(&records)?) };
                let mut book = self.book.lock();
                let is_idle = book.out.values().all(|out| !out.is_sending || !overlap(&out.range, &piece));
                if !is_idle || self.log.unsettled(&self.cursor, piece.clone()) != [piece.clone()] {
                    drop(book);
                    undo.into_iter().for_each(|undo| undo());
                    continue 'parts;
                }
                let fates = Fates::of(Fate::DeadLettered, piece_weight.items);
                self.log.settle_weighed(&self.cursor, piece.clone(), piece_weight, &fates);
                book.forget(|range| !self.has_unsettled(range));
                drop(book);
                weight = weight.plus(&piece_weight);
                if let Some((sizer, size)) = &mut enough {
                    *size = size.saturating_sub(piece_weight.measure(*sizer));
                    if *size == 0 {
                        break 'parts;
                    }
                }
            }
        }
        self.changed.notify_waiters();
        Ok(GivenUp { weight, is_all: !self.has_unsettled(&range) })
    }

    /// Whether something in `range` is on its way at this moment.
    pub fn is_sending(&self, range: &Range<u64>) -> bool {
        self.book.lock().out.values().any(|out| out.is_sending && overlap(&out.range, range))
    }

    pub fn has_unsettled(&self, range: &Range<u64>) -> bool {
        !self.log.unsettled(&self.cursor, range.clone()).is_empty()
    }

    /// What is unsettled in `range` and not on its way, ascending.
    fn idle_parts(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut sending = RangeSet::new();
        for out in self.book.lock().out.values().filter(|out| out.is_sending) {
            sending.insert(out.range.clone());
        }
        let unsettled = self.log.unsettled(&self.cursor, range.clone());
        unsettled.into_iter().flat_map(|part| sending.gaps(part)).collect()
    }
}
