//! What a cursor has not settled, in every unit in which a limit may be written.
//!
//! Two books: the log's state knows what is durable and not settled, exactly and under its lock; a [`Tally`] adds what
//! is promised to requests on their way, in atomics, so that the front door asks in constant time and without a lock.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::settings::Sizer;

/// Requests, items and stored bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    pub records: u64,
    pub items: u64,
    pub bytes: u64,
}

impl Weight {
    /// One request of which nothing but its size is known.
    pub fn request(bytes: u64) -> Weight {
        Weight { records: 1, items: 1, bytes }
    }

    pub fn measure(&self, sizer: Sizer) -> u64 {
        match sizer {
            Sizer::Requests => self.records,
            Sizer::Items => self.items,
            Sizer::Bytes => self.bytes,
        }
    }

    pub fn plus(&self, other: &Weight) -> Weight {
        Weight {
            records: self.records.saturating_add(other.records),
            items: self.items.saturating_add(other.items),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    pub fn minus(&self, other: &Weight) -> Weight {
        Weight {
            records: self.records.saturating_sub(other.records),
            items: self.items.saturating_sub(other.items),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    /// About the part of it that `part` is of `whole`, for records spread evenly.
    pub fn share(&self, part: &Range<u64>, whole: &Range<u64>) -> Weight {
        let (part, whole) = (u128::from(part.end - part.start), u128::from((whole.end - whole.start).max(1)));
        let share = |n: u64| u64::try_from(u128::from(n) * part / whole).unwrap_or(n);
        Weight { records: share(self.records), items: share(self.items), bytes: share(self.bytes) }
    }
}

/// `sending_queue.queue_size` of one exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub sizer: Sizer,
    pub size: u64,
}

/// One cursor's backlog with what is promised to requests on their way.
#[derive(Debug)]
pub struct Tally {
    pub cursor: String,
    limit: OnceLock<Limit>,
    /// Its oldest records give way at the limit, instead of intake.
    gives_way: AtomicBool,
    records: AtomicU64,
    items: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    pub fn new(cursor: &str, backlog: &Weight) -> Tally {
        Tally {
            cursor: cursor.to_owned(),
            limit: OnceLock::new(),
            gives_way: AtomicBool::new(false),
            records: AtomicU64::new(backlog.records),
            items: AtomicU64::new(backlog.items),
            bytes: AtomicU64::new(backlog.bytes),
        }
    }

    /// The first limit that is set holds.
    pub fn set_limit(&self, limit: Limit) {
        self.limit.get_or_init(|| limit);
    }

    pub fn limit(&self) -> Option<Limit> {
        self.limit.get().copied()
    }

    pub fn let_give_way(&self) {
        self.gives_way.store(true, Ordering::Release);
    }

    pub fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Acquire)
    }

    /// Adds a request, or says how much waits already and what the limit is. A request larger than the whole limit is
    /// taken when nothing waits: its client would come again for ever. Ok(true): beyond the limit, and older records
    /// have to give way.
    pub fn try_add(&self, weight: &Weight) -> Result<bool, (u64, Limit)> {
        let before = Weight {
            records: self.records.fetch_add(weight.records, Ordering::AcqRel),
            items: self.items.fetch_add(weight.items, Ordering::AcqRel),
            bytes: self.bytes.fetch_add(weight.bytes, Ordering::AcqRel),
        };
        let Some(limit) = self.limit() else { return Ok(false) };
        let waiting = before.measure(limit.sizer);
        if waiting > 0 && waiting.saturating_add(weight.measure(limit.sizer)) > limit.size {
            if self.gives_way() {
                return Ok(true);
            }
            self.subtract(weight);
            return Err((waiting, limit));
        }
        Ok(false)
    }

    pub fn subtract(&self, weight: &Weight) {
        for (counter, amount) in
            [(&self.records, weight.records), (&self.items, weight.items), (&self.bytes, weight.bytes)]
        {
            // Never below zero: what was promised before the cursor was born is not in its count.
            let update = |now: u64| Some(now.saturating_sub(amount));
            let _ = counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, update);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_in_its_own_unit_and_takes_one_that_is_larger_than_itself_when_nothing_waits() {
        let one = Weight { records: 1, items: 60, bytes: 700 };
        for (sizer, fits) in [(Sizer::Requests, 100), (Sizer::Items, 1), (Sizer::Bytes, 1)] {
            let tally = Tally::new("x", &Weight::default());
            tally.set_limit(Limit { sizer, size: 100 });
            let taken = (0..200).take_while(|_| tally.try_add(&one).is_ok()).count();
            assert_eq!(taken, fits, "{sizer:?}");
            let (waiting, limit) = tally.try_add(&one).expect_err("full");
            assert_eq!((waiting, limit.size), (one.measure(sizer) * fits as u64, 100));
            tally.subtract(&one);
            assert!(tally.try_add(&one).is_ok(), "{sizer:?}: what was settled makes room");
        }
    }

    #[test]
    fn what_was_never_added_cannot_make_a_count_wrap() {
        let tally = Tally::new("x", &Weight::default());
        tally.subtract(&Weight::request(5));
        tally.set_limit(Limit { sizer: Sizer::Bytes, size: 10 });
        assert!(tally.try_add(&Weight::request(10)).is_ok());
    }
}
