//! The records that a batch was built of, and which of its items came in which.

use std::ops::Range;

use crate::storage::{Record, Weight};

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub sequence: u64,
    /// Its first item's place in the batch.
    pub start: usize,
    pub received_unix_ns: u64,
    pub weight: Weight,
}

/// In the order of the batch.
#[derive(Debug)]
pub(super) struct Records(Vec<Placed>);

impl Records {
    pub fn of(records: &[Record]) -> Records {
        let mut start = 0;
        let place = |record: &Record| {
            let placed = Placed {
                sequence: record.sequence,
                start,
                received_unix_ns: record.received_unix_ns,
                weight: record.weight(),
            };
            start += record.items as usize;
            placed
        };
        Records(records.iter().map(place).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Placed> {
        self.0.iter()
    }

    /// The record that an item came in.
    pub fn of_item(&self, item: usize) -> Option<&Placed> {
        self.0.get(self.0.partition_point(|record| record.start <= item).checked_sub(1)?)
    }

    pub fn has(&self, sequence: u64) -> bool {
        self.0.binary_search_by_key(&sequence, |record| record.sequence).is_ok()
    }

    pub fn begins_at(&self, item: usize) -> bool {
        self.0.binary_search_by_key(&item, |record| record.start).is_ok()
    }

    /// These items, those of each record apart, with their record.
    pub fn apart(&self, items: Range<usize>) -> Vec<(Option<&Placed>, Range<usize>)> {
        let mut apart = Vec::new();
        let mut start = items.start;
        while start < items.end {
            let next = self.0.partition_point(|record| record.start <= start);
            let end = self.0.get(next).map_or(items.end, |record| record.start.min(items.end));
            apart.push((self.of_item(start), start..end));
            start = end;
        }
        apart
    }
}
