//! A set of sequence numbers as disjoint, non-adjacent ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Half-open ranges of `u64`, merged as they touch. Memory is per range, not per number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// start → end (exclusive)
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &before_end)) = self.ranges.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..=end).next() {
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    pub fn contains_all(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.ranges.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }

    pub fn contains(&self, value: u64) -> bool {
        self.ranges.range(..=value).next_back().is_some_and(|(_, &end)| end > value)
    }

    /// The parts of `range` that are not in the set, ascending.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        if range.is_empty() {
            return gaps;
        }
        let mut at = range.start;
        let first = self.ranges.range(..=at).next_back().map(|(&s, &e)| (s, e));
        let later = self.ranges.range(at.saturating_add(1)..range.end).map(|(&s, &e)| (s, e));
        for (start, end) in first.into_iter().chain(later) {
            if start > at {
                gaps.push(at..start.min(range.end));
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// Takes away the range that starts at or before `value` and returns where it ends.
    pub fn pop_through(&mut self, value: u64) -> Option<u64> {
        let (&start, &end) = self.ranges.first_key_value()?;
        if start > value {
            return None;
        }
        self.ranges.remove(&start);
        Some(end)
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> RangeSet {
        let mut set = RangeSet::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_numbers(
            ranges in proptest::collection::vec((0u64..200, 0u64..20), 0..40),
            probe in (0u64..220, 0u64..30),
        ) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (start, len) in ranges {
                set.insert(start..start + len);
                model.extend(start..start + len);
            }
            let range = probe.0..probe.0 + probe.1;
            prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.contains_all(range.clone()), range.clone().all(|n| model.contains(&n)));
            prop_assert_eq!(set.contains(probe.0), model.contains(&probe.0));
            let gaps: Vec<u64> = set.gaps(range.clone()).into_iter().flatten().collect();
            prop_assert_eq!(gaps, range.filter(|n| !model.contains(n)).collect::<Vec<_>>());
            let pairs: Vec<_> = set.iter().collect();
            prop_assert!(pairs.windows(2).all(|w| w[0].end < w[1].start), "touching ranges were not merged");
        }
    }
}
