//! The newest durable records, in memory for the exporters that keep up.
//!
//! All logs of a store share one bound. When it is passed, the oldest record of all goes, whosever it is: a queue that is
//! quiet, or whose destinations are dead, holds nothing that a busy one needs. What goes is on disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::storage::record::Record;

use super::read::{Chunk, Position};

/// Of the bound so many parts in a hundred are kept for exporters that fall behind others; they read the file. Without
/// this one dead destination would keep the tail full, and every request would pay for fresh memory.
const LAGGARDS_PERCENT: u64 = 6;
/// What a tail without records says of its oldest.
const NONE: u64 = u64::MAX;

/// The tails of one store, and what they may hold together.
pub struct Pool {
    bytes_max: u64,
    bytes: AtomicU64,
    /// Records are numbered as they come, over all tails: the lowest is the oldest.
    next_number: AtomicU64,
    tails: Mutex<Vec<Arc<Shelf>>>,
}

impl Pool {
    pub fn new(bytes_max: u64) -> Pool {
        Pool { bytes_max, bytes: AtomicU64::new(0), next_number: AtomicU64::new(0), tails: Mutex::default() }
    }

    /// Lets the oldest records go until the rest is within the bound. Call it without a tail's lock.
    pub(super) fn make_room(&self) {
        if self.bytes.load(Ordering::Acquire) <= self.bytes_max {
            return;
        }
        let tails = self.tails.lock();
        while self.bytes.load(Ordering::Acquire) > self.bytes_max {
            let oldest = |tail: &&Arc<Shelf>| tail.oldest.load(Ordering::Acquire);
            let Some(tail) = tails.iter().min_by_key(oldest).filter(|tail| oldest(tail) != NONE) else { return };
            let next = tails.iter().filter(|other| !Arc::ptr_eq(other, tail)).map(|other| oldest(&other)).min();
            let mut kept = tail.kept.lock();
            while self.bytes.load(Ordering::Acquire) > self.bytes_max
                && kept.records.front().is_some_and(|(number, _)| next.is_none_or(|next| *number < next))
            {
                kept.pop(self);
            }
            tail.note_oldest(&kept);
        }
    }
}

/// What one log has in memory. Its lock is taken last of all, and under no other tail's.
struct Shelf {
    kept: Mutex<Kept>,
    /// The number of its oldest record.
    oldest: AtomicU64,
}

impl Shelf {
    fn note_oldest(&self, kept: &Kept) {
        self.oldest.store(kept.records.front().map_or(NONE, |(number, _)| *number), Ordering::Release);
    }
}

#[derive(Default)]
struct Kept {
    records: VecDeque<(u64, Record)>,
    /// Records below this are settled by somebody.
    passed_to: u64,
    /// Their bytes.
    passed_bytes: u64,
}

impl Kept {
    fn pop(&mut self, pool: &Pool) {
        let Some((_, record)) = self.records.pop_front() else { return };
        let bytes = record.payload.len() as u64;
        pool.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if record.sequence < self.passed_to {
            self.passed_bytes -= bytes;
        }
    }

    fn from(&self, sequence: u64) -> usize {
        self.records.partition_point(|(_, record)| record.sequence < sequence)
    }
}

/// One log's part of it.
pub(in crate::storage) struct Tail {
    pool: Arc<Pool>,
    shelf: Arc<Shelf>,
}

impl Tail {
    pub fn new(pool: &Arc<Pool>) -> Tail {
        let shelf = Arc::new(Shelf { kept: Mutex::default(), oldest: AtomicU64::new(NONE) });
        pool.tails.lock().push(Arc::clone(&shelf));
        Tail { pool: Arc::clone(pool), shelf }
    }

    /// [`Pool::make_room`] is to follow.
    pub fn push(&mut self, record: Record) {
        let mut kept = self.shelf.kept.lock();
        self.pool.bytes.fetch_add(record.payload.len() as u64, Ordering::AcqRel);
        kept.records.push_back((self.pool.next_number.fetch_add(1, Ordering::Relaxed), record));
        self.shelf.note_oldest(&kept);
    }

    /// Everybody has settled what is below `lowest`, somebody what is below `foremost`.
    pub fn settled(&mut self, lowest: u64, foremost: u64) {
        let kept = &mut *self.shelf.kept.lock();
        let from = kept.from(kept.passed_to);
        let passed = kept.records.iter().skip(from).take_while(|(_, record)| record.sequence < foremost);
        kept.passed_bytes += passed.map(|(_, record)| record.payload.len() as u64).sum::<u64>();
        kept.passed_to = kept.passed_to.max(foremost);
        let laggards_max = self.pool.bytes_max / 100 * LAGGARDS_PERCENT;
        while kept.records.front().is_some_and(|(_, record)| record.sequence < lowest)
            || kept.passed_bytes > laggards_max
        {
            kept.pop(&self.pool);
        }
        self.shelf.note_oldest(kept);
    }

    /// Records from `from` on, below `durable_end`; None when they are not here.
    pub fn read(&self, from: Position, durable_end: u64, bytes_max: u64, records_max: usize) -> Option<Chunk> {
        if from.sequence >= durable_end {
            return Some(Chunk { next: from, ..Chunk::default() });
        }
        let kept = self.shelf.kept.lock();
        if kept.records.front()?.1.sequence > from.sequence {
            return None;
        }
        let mut chunk = Chunk { next: from, ..Chunk::default() };
        let mut bytes = 0;
        for (_, record) in kept.records.iter().skip(kept.from(from.sequence)).take(records_max) {
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

impl Drop for Tail {
    fn drop(&mut self) {
        self.pool.tails.lock().retain(|tail| !Arc::ptr_eq(tail, &self.shelf));
        let mut kept = self.shelf.kept.lock();
        while !kept.records.is_empty() {
            kept.pop(&self.pool);
        }
    }
}

#[cfg(test)]
mod tests {
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

    impl Tail {
        fn add(&mut self, sequence: u64) {
            self.push(record(sequence));
            self.pool.make_room();
        }

        fn bytes(&self) -> u64 {
            self.shelf.kept.lock().records.iter().map(|(_, record)| record.payload.len() as u64).sum()
        }

        fn passed_bytes(&self) -> u64 {
            self.shelf.kept.lock().passed_bytes
        }
    }

    fn has(tail: &Tail, sequence: u64) -> bool {
        tail.read(Position::at(sequence), u64::MAX, 1, 1).is_some()
    }

    #[test]
    fn for_who_falls_behind_others_little_is_kept_and_for_who_is_alone_all_that_fits() {
        let mut tail = Tail::new(&Arc::new(Pool::new(MAX)));
        for sequence in 0..90 {
            tail.add(sequence);
        }
        tail.settled(0, 0);
        assert!(has(&tail, 0), "nobody is ahead");
        // One has settled fifty, another nothing: six hundred bytes stay for it.
        tail.settled(0, 50);
        assert!(!has(&tail, 43) && has(&tail, 44) && tail.bytes() == 4600, "{} bytes", tail.bytes());
        tail.settled(50, 50);
        assert!(!has(&tail, 49) && has(&tail, 50) && tail.passed_bytes() == 0);
        for sequence in 90..400 {
            tail.add(sequence);
            tail.settled(50, sequence + 1);
        }
        assert_eq!((tail.bytes(), tail.passed_bytes()), (600, 600));
        for sequence in 400..600 {
            tail.add(sequence);
        }
        assert_eq!((tail.bytes(), tail.passed_bytes()), (MAX, 0), "never more than fits");
    }

    #[test]
    fn all_queues_share_one_bound_and_the_oldest_record_of_all_goes_first() {
        let pool = Arc::new(Pool::new(MAX));
        let held = || pool.bytes.load(Ordering::SeqCst);
        let (mut quiet, mut busy) = (Tail::new(&pool), Tail::new(&pool));
        for sequence in 0..100 {
            quiet.add(sequence);
        }
        for sequence in 0..40 {
            busy.add(sequence);
        }
        assert_eq!((quiet.bytes(), busy.bytes(), held()), (6000, 4000, MAX));
        assert!(!has(&quiet, 39) && has(&quiet, 40) && has(&busy, 0));
        quiet.add(100);
        assert!(!has(&quiet, 40) && has(&busy, 0), "its own are older");
        for sequence in 40..200 {
            busy.add(sequence);
        }
        assert_eq!((quiet.bytes(), busy.bytes(), held()), (0, MAX, MAX), "an idle queue holds nothing");
        // What one gives back is there for all, and what is gone holds nothing.
        busy.settled(150, 150);
        assert_eq!(held(), 5000);
        quiet.add(101);
        drop(busy);
        assert_eq!((held(), pool.tails.lock().len()), (100, 1));
        assert!(has(&quiet, 101));
    }

    #[test]
    fn many_logs_that_write_and_settle_at_once_stay_within_the_bound_and_count_right() {
        let pool = Arc::new(Pool::new(MAX));
        std::thread::scope(|threads| {
            for n in 0..6 {
                let pool = &pool;
                threads.spawn(move || {
                    let mut tail = Tail::new(pool);
                    for sequence in 0..2000 {
                        tail.add(sequence);
                        // At the most what the others are just adding.
                        assert!(pool.bytes.load(Ordering::SeqCst) <= MAX + 6 * 100);
                        if sequence % 50 == n {
                            tail.settled(sequence, sequence);
                        }
                    }
                });
            }
        });
        assert_eq!((pool.bytes.load(Ordering::SeqCst), pool.tails.lock().len()), (0, 0));
    }
}
