//! The keys of one queue on one level: those that are durable, and those that somebody is about to make so.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::storage::RangeSet;
#[cfg(test)]
use crate::storage::mutant::{self, Mutant};

use super::table::{BUCKET_BYTES, Table};

const SHARDS_MAX: usize = 16;
/// A shard has 2^n buckets, and there are at least half of [`SHARDS_MAX`] unless the whole is tiny.
const SHARD_BYTES_MIN: u64 = 8 << 10;
/// Forgotten ranges that a shard remembers for records on their way; the oldest are joined, which forgets too much.
const FORGOTTEN_RANGES_MAX: usize = 64;

/// One offer's hold on the keys that it was first to bring. Those who wait are told when the last clone is dropped.
pub type Ticket = Arc<watch::Sender<()>>;

pub fn ticket() -> Ticket {
    Arc::new(watch::Sender::new(()))
}

/// Keys are keyed hashes: any of their bits will do.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = (key >> 32) as u64;
    }
}

/// What is known of one key.
#[derive(Debug)]
pub enum Known {
    /// Nobody had it; now the ticket holds it.
    Fresh,
    /// The ticket itself holds it already.
    Own,
    /// Somebody else holds it.
    Held(watch::Receiver<()>),
    Durable,
}

struct Shard {
    table: Table,
    held: HashMap<u128, Ticket, BuildHasherDefault<KeyHasher>>,
    forgotten: RangeSet,
}

pub struct Seen {
    shards: Box<[Mutex<Shard>]>,
    window: Duration,
}

/// Figures of one set.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeenFigures {
    pub keys: u64,
    pub bytes: u64,
    pub effective_window: Duration,
}

impl Seen {
    /// Of at most `bytes_max`, rounded down to shards of a power of two.
    pub fn new(bytes_max: u64, window: Duration, now: Duration) -> Seen {
        let bytes_max = bytes_max.max(SHARD_BYTES_MIN);
        let shard_bytes = (bytes_max / SHARDS_MAX as u64).max(SHARD_BYTES_MIN / 2);
        // Between half as many and as many shards as there may be.
        let bits = (shard_bytes * 2 / BUCKET_BYTES as u64).max(2).ilog2();
        let count = (bytes_max / ((BUCKET_BYTES as u64) << bits)).clamp(1, SHARDS_MAX as u64);
        let shard = || {
            let table = Table::new(bits, window, now);
            Mutex::new(Shard { table, held: HashMap::default(), forgotten: RangeSet::new() })
        };
        Seen { shards: (0..count).map(|_| shard()).collect(), window }
    }

    pub fn window(&self) -> Duration {
        self.window
    }

    fn shard_of(&self, key: u128) -> usize {
        (((key >> 96) as u64 * self.shards.len() as u64) >> 32) as usize
    }

    /// Calls `work` once for each shard that has some of the keys, with their indices.
    fn by_shard(&self, keys: &[u128], mut work: impl FnMut(&mut Shard, &[u32])) {
        if let [key] = keys {
            return work(&mut self.shards[self.shard_of(*key)].lock(), &[0]);
        }
        let mut ends = [0_u32; SHARDS_MAX + 1];
        for key in keys {
            ends[self.shard_of(*key) + 1] += 1;
        }
        for shard in 0..SHARDS_MAX {
            ends[shard + 1] += ends[shard];
        }
        let mut order = vec![0_u32; keys.len()];
        let mut next = ends;
        for (index, key) in keys.iter().enumerate() {
            let place = &mut next[self.shard_of(*key)];
            order[*place as usize] = index as u32;
            *place += 1;
        }
        for (index, shard) in self.shards.iter().enumerate() {
            let indices = &order[ends[index] as usize..ends[index + 1] as usize];
            if !indices.is_empty() {
                work(&mut shard.lock(), indices);
            }
        }
    }

    /// Says of each key what is known, and holds the fresh ones for the ticket.
    pub fn claim(&self, keys: &[u128], ticket: &Ticket, now: Duration, mut found: impl FnMut(usize, Known)) {
        self.by_shard(keys, |shard, indices| {
            shard.table.tick(now);
            black_box(shard.table.touch(indices.iter().map(|index| keys[*index as usize])));
            for index in indices {
                let key = keys[*index as usize];
                let known = match shard.held.get(&key) {
                    Some(holder) if Arc::ptr_eq(holder, ticket) => Known::Own,
                    #[cfg(test)]
                    Some(_) if mutant::is_on(Mutant::HeldIsDurable) => Known::Durable,
                    Some(holder) => Known::Held(holder.subscribe()),
                    None if shard.table.contains(key) => Known::Durable,
                    None => {
                        shard.held.insert(key, Arc::clone(ticket));
                        Known::Fresh
                    }
                };
                found(*index as usize, known);
            }
        });
    }

    /// Lets go of keys that were held; they were never seen.
    pub fn void(&self, keys: &[u128]) {
        #[cfg(test)]
        if mutant::is_on(Mutant::FailedIsDurable) {
            return self.add(keys, 0, Duration::ZERO);
        }
        self.by_shard(keys, |shard, indices| {
            for index in indices {
                shard.held.remove(&keys[*index as usize]);
            }
        });
    }

    /// The keys' record is durable under that sequence. Lets go of them if they were held.
    pub fn add(&self, keys: &[u128], sequence: u64, now: Duration) {
        self.by_shard(keys, |shard, indices| {
            shard.table.tick(now);
            black_box(shard.table.touch(indices.iter().map(|index| keys[*index as usize])));
            let is_forgotten = shard.forgotten.contains(sequence);
            for index in indices {
                let key = keys[*index as usize];
                shard.held.remove(&key);
                if !is_forgotten {
                    shard.table.insert(key, sequence, now);
                }
            }
        });
    }

    /// Nothing that was added under these sequences counts as seen any more, nor what will be.
    pub fn forget(&self, sequences: &Range<u64>, now: Duration) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.forgotten.insert(sequences.clone());
            join_oldest(&mut shard.forgotten, FORGOTTEN_RANGES_MAX);
            shard.table.forget(sequences, now);
        }
    }

    pub fn figures(&self, now: Duration) -> SeenFigures {
        let mut sum = SeenFigures { effective_window: self.window, ..SeenFigures::default() };
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.table.tick(now);
            sum.keys += shard.table.keys();
            sum.bytes += shard.table.bytes();
            sum.effective_window = sum.effective_window.min(shard.table.effective_window(now));
        }
        sum
    }
}

/// Joins the lowest ranges until there are no more than `max`.
pub fn join_oldest(ranges: &mut RangeSet, max: usize) {
    if ranges.len() > max {
        let lowest: Vec<Range<u64>> = ranges.iter().take(2).collect();
        if let [first, second] = &lowest[..] {
            ranges.insert(first.start..second.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const WINDOW: Duration = Duration::from_secs(600);

    fn known(seen: &Seen, keys: &[u128], ticket: &Ticket) -> Vec<Known> {
        let mut found: Vec<Option<Known>> = keys.iter().map(|_| None).collect();
        seen.claim(keys, ticket, NOW, |index, known| found[index] = Some(known));
        found.into_iter().map(|known| known.expect("each is answered")).collect()
    }

    #[test]
    fn a_key_is_durable_only_after_its_record_is() {
        let seen = Seen::new(1 << 20, WINDOW, NOW);
        let mut random = fastrand::Rng::with_seed(1);
        let keys: Vec<u128> = (0..500).map(|_| random.u128(1..)).collect();
        let (first, second) = (ticket(), ticket());
        assert!(known(&seen, &keys, &first).iter().all(|known| matches!(known, Known::Fresh)));
        assert!(known(&seen, &keys, &first).iter().all(|known| matches!(known, Known::Own)));
        assert!(known(&seen, &keys, &second).iter().all(|known| matches!(known, Known::Held(_))));
        seen.add(&keys[..200], 7, NOW);
        seen.void(&keys[200..]);
        let found = known(&seen, &keys, &second);
        assert!(found[..200].iter().all(|known| matches!(known, Known::Durable)));
        assert!(found[200..].iter().all(|known| matches!(known, Known::Fresh)));
        assert_eq!(seen.figures(NOW).keys, 200);
    }

    #[test]
    fn what_is_forgotten_before_it_is_added_is_not_added() {
        let seen = Seen::new(1 << 20, WINDOW, NOW);
        let ticket = ticket();
        known(&seen, &[5, 6], &ticket);
        seen.forget(&(3..10), NOW);
        seen.add(&[5], 9, NOW);
        seen.add(&[6], 10, NOW);
        assert!(matches!(known(&seen, &[5, 6], &ticket)[..], [Known::Fresh, Known::Durable]));
    }

    #[test]
    fn a_key_takes_no_more_than_24_bytes_and_none_goes_before_that() {
        let bytes_max = 8 << 20;
        let seen = Seen::new(bytes_max, WINDOW, NOW);
        let mut random = fastrand::Rng::with_seed(7);
        let count = bytes_max / 24;
        let mut first = Vec::new();
        for batch in 0..count / 1000 {
            let keys: Vec<u128> = (0..1000).map(|_| random.u128(1..)).collect();
            seen.add(&keys, batch, NOW + Duration::from_micros(batch));
            if batch == 0 {
                first = keys;
            }
        }
        let figures = seen.figures(NOW + Duration::from_secs(1));
        assert!(
            figures.bytes <= bytes_max && figures.keys >= count / 1000 * 1000 * 999 / 1000,
            "{figures:?} of {count}"
        );
        let gone = known(&seen, &first, &ticket()).iter().filter(|known| !matches!(known, Known::Durable)).count();
        assert!(gone <= 10, "{gone} of the first thousand are gone");
    }

    #[test]
    fn memory_stays_within_its_bound_whatever_that_is() {
        for bytes in [1, 1 << 10, 1 << 20, 3 << 20, 48 << 20, 100 << 20] {
            let seen = Seen::new(bytes, WINDOW, NOW);
            let mut random = fastrand::Rng::with_seed(1);
            let keys: Vec<u128> = (0..100_000).map(|_| random.u128(1..)).collect();
            seen.add(&keys, 1, NOW);
            assert!(seen.figures(NOW).bytes <= bytes.max(SHARD_BYTES_MIN), "{bytes}: {:?}", seen.figures(NOW));
        }
    }
}
