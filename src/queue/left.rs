//! What a destination has not yet taken of a record that it took in part.

use std::ops::Range;
use std::sync::Arc;

/// Ranges that are remembered of one record; of more, neighbours become one, and what lies between them is sent again.
const RANGES_MAX: usize = 256;

/// Items of one record that are to be sent still, by their places in it. Remembered in memory alone: after a restart the whole
/// record comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    items: Arc<[Range<usize>]>,
    /// Items that the destination rejected when it took others.
    rejected: u64,
}

impl Left {
    /// `items`: ascending, none empty, none overlapping.
    pub fn new(items: &[Range<usize>], rejected: u64) -> Left {
        let width = items.len().div_ceil(RANGES_MAX).max(1);
        let hull = |ranges: &[Range<usize>]| ranges[0].start..ranges[ranges.len() - 1].end;
        Left { items: items.chunks(width).map(hull).collect(), rejected }
    }

    pub fn items(&self) -> &[Range<usize>] {
        &self.items
    }

    pub fn rejected(&self) -> u64 {
        self.rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_ranges_are_kept_as_they_are_and_many_are_covered_by_few() {
        assert_eq!(Left::new(&[3..4, 7..9], 0).items(), [3..4, 7..9]);
        let many: Vec<Range<usize>> = (0..1000).map(|n| 2 * n..2 * n + 1).collect();
        let left = Left::new(&many, 0);
        assert!(left.items().len() <= RANGES_MAX);
        assert!(
            many.iter().all(|one| left.items().iter().any(|range| range.start <= one.start && one.end <= range.end))
        );
    }
}
