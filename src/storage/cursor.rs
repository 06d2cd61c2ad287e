//! How far one exporter has come in one queue.

use std::ops::Range;

use super::ranges::RangeSet;

/// Settled ranges beyond the low mark that are written down, as far as they fit a row; more are kept in memory only, and a
/// crash redelivers them. Far more than the ranges that an exporter may set aside (256), whose neighbours would pin the
/// disk otherwise.
pub const PERSISTED_RANGES_MAX: usize = 1024;

/// Where an exporter that was never seen before begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StartAt {
    /// The oldest record still retained.
    Beginning,
    /// Only what arrives from now on. Honoured only when the catalogue is known to be intact.
    #[default]
    End,
}

/// Everything below `low` is settled, and so is what lies in `above`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    low: u64,
    above: RangeSet,
}

impl Cursor {
    pub fn at(low: u64) -> Cursor {
        Cursor { low, above: RangeSet::new() }
    }

    /// The lowest sequence that is not settled.
    pub fn low(&self) -> u64 {
        self.low
    }

    pub fn above(&self) -> &RangeSet {
        &self.above
    }

    pub fn settle(&mut self, range: Range<u64>) {
        if range.end <= self.low {
            return;
        }
        self.above.insert(range.start.max(self.low)..range.end);
        while let Some(end) = self.above.pop_through(self.low) {
            self.low = self.low.max(end);
        }
    }

    pub fn has_settled(&self, range: Range<u64>) -> bool {
        range.end <= self.low || self.above.contains_all(range.start.max(self.low)..range.end)
    }

    pub fn is_settled(&self, sequence: u64) -> bool {
        sequence < self.low || self.above.contains(sequence)
    }

    /// Of two valid cursors the greater holds: what either has settled is settled.
    pub fn merge(&mut self, other: &Cursor) {
        self.settle(0..other.low);
        for range in other.above.iter() {
            self.settle(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_moves_only_over_what_is_settled_without_a_gap() {
        let mut cursor = Cursor::at(10);
        cursor.settle(12..14);
        assert_eq!(cursor.low(), 10);
        assert!(cursor.is_settled(13) && !cursor.is_settled(11));
        cursor.settle(10..12);
        assert_eq!(cursor.low(), 14);
        assert!(cursor.above().is_empty());
        cursor.settle(0..5);
        assert_eq!(cursor.low(), 14);
    }

    #[test]
    fn of_two_valid_cursors_the_greater_holds() {
        let mut one = Cursor::at(5);
        one.settle(8..10);
        let mut other = Cursor::at(7);
        other.settle(20..21);
        one.merge(&other);
        assert_eq!(one.low(), 7);
        assert!(one.has_settled(8..10) && one.has_settled(20..21) && !one.is_settled(7));
    }
}
