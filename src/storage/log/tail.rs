//! The newest durable records, in memory for the exporters that keep up.

use std::collections::VecDeque;

use crate::storage::record::Record;

use super::read::{Chunk, Position};

/// Of the tail so many parts in a hundred are kept for exporters that fall behind others; they read the file. Without
/// this one dead destination would keep the tail full, and every request would pay for fresh memory.
const LAGGARDS_PERCENT: u64 = 6;

#[derive(Debug, Default)]
pub(in crate::storage) struct Tail {
    records: VecDeque<Record>,
    bytes: u64,
    /// Records below this are settled by somebody.
    passed_to: u64,
    /// Their bytes.
    passed_bytes: u64,
}

impl Tail {
    pub fn push(&mut self, record: Record, bytes_max: u64) {
        self.bytes += record.payload.len() as u64;
        self.records.push_back(record);
        while self.bytes > bytes_max && self.pop() {}
    }

    fn pop(&mut self) -> bool {
        let Some(record) = self.records.pop_front() else { return false };
        let bytes = record.payload.len() as u64;
        self.bytes -= bytes;
        if record.sequence < self.passed_to {
            self.passed_bytes -= bytes;
        }
        true
    }

    /// Everybody has settled what is below `lowest`, somebody what is below `foremost`.
    pub fn settled(&mut self, lowest: u64, foremost: u64, bytes_max: u64) {
        let from = self.records.partition_point(|record| record.sequence < self.passed_to);
        let passed = self.records.iter().skip(from).take_while(|record| record.sequence < foremost);
        self.passed_bytes += passed.map(|record| record.payload.len() as u64).sum::<u64>();
        self.passed_to = self.passed_to.max(foremost);
        let laggards_max = bytes_max / 100 * LAGGARDS_PERCENT;
        while self.records.front().is_some_and(|record| record.sequence < lowest) || self.passed_bytes > laggards_max {
            self.pop();
        }
    }

    /// Records from `from` on, below `durable_end`; None when they are not here.
    pub fn read(&self, from: Position, durable_end: u64, bytes_max: u64, records_max: usize) -> Option<Chunk> {
        if from.sequence >= durable_end {
            return Some(Chunk { next: from, ..Chunk::default() });
        }
        if self.records.front()?.sequence > from.sequence {
            return None;
        }
        let start = self.records.partition_point(|record| record.sequence < from.sequence);
        let mut chunk = Chunk { next: from, ..Chunk::default() };
        let mut bytes = 0;
        for record in self.records.iter().skip(start).take(records_max) {
            bytes += u64::from(record.raw_len).max(record.payload.len() as u64);
            if bytes > bytes_max && !chunk.records.is_empty() {
                return Some(chunk);
            }
            chunk.records.push(record.clone());
            chunk.next = Position::at(record.sequence + 1);
        }
        if chunk.records.is_empty() {
            chunk.next = Position::at(durable_end);
        }
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    const MAX: u64 = 10_000;

    fn record(sequence: u64) -> Record {
        Record {
            sequence,
            signal: 1,
            encoding: 0,
            items: 1,
            raw_len: 100,
            received_unix_ns: 0,
            metadata: Bytes::new(),
            payload: Bytes::from(vec![0; 100]),
            guard: Some(Arc::new(())),
        }
    }

    fn has(tail: &Tail, sequence: u64) -> bool {
        tail.read(Position::at(sequence), u64::MAX, 1, 1).is_some()
    }

    #[test]
    fn for_who_falls_behind_others_little_is_kept_and_for_who_is_alone_all_that_fits() {
        let mut tail = Tail::default();
        for sequence in 0..90 {
            tail.push(record(sequence), MAX);
        }
        tail.settled(0, 0, MAX);
        assert!(has(&tail, 0), "nobody is ahead");
        // One has settled fifty, another nothing: six hundred bytes stay for it.
        tail.settled(0, 50, MAX);
        assert!(!has(&tail, 43) && has(&tail, 44) && tail.bytes == 4600, "{} bytes", tail.bytes);
        tail.settled(50, 50, MAX);
        assert!(!has(&tail, 49) && has(&tail, 50) && tail.passed_bytes == 0);
        for sequence in 90..400 {
            tail.push(record(sequence), MAX);
            tail.settled(50, sequence + 1, MAX);
        }
        assert_eq!((tail.bytes, tail.passed_bytes, tail.records.len()), (600, 600, 6));
        for sequence in 400..600 {
            tail.push(record(sequence), MAX);
        }
        assert_eq!((tail.bytes, tail.passed_bytes), (MAX, 0), "never more than fits");
    }
}
