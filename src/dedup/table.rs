//! One shard's keys: a set-associative table in which the whole key is kept, so that none is reported that is not there.
//!
//! ```text
//! bucket, 128 bytes   key 0 · key 1 · … · key 6 (16 bytes each) · 7 epochs of 2 bytes · 2 spare
//! ```
//! A key may lie in one of two buckets and goes to the emptier. Nothing is ever rehashed or swept at once: an epoch that
//! ends makes all of its keys dead where they lie. The table is used from its front; an epoch begun when that is half
//! full uses sixteen times as much, so that few keys touch little memory. While epochs of several sizes live, each is
//! looked up in its own two buckets: the sizes are few.

use std::ops::Range;
use std::time::Duration;

use super::epochs::Epochs;

const WAYS: usize = 7;
/// Words of a bucket: its keys, and one for their epochs.
const WORDS: usize = 8;
pub const BUCKET_BYTES: usize = WORDS * 16;
/// A new table is used from the front: this many buckets at first.
const FRONT_BITS_MIN: u32 = 7;
const FRONT_BITS_STEP: u32 = 4;
/// A front of no more buckets stays in the processor's cache.
const CACHED_BITS_MAX: u32 = 9;
/// The part of the slots that may be live: two choices of seven then find a free one nearly always.
const LIVE_PERCENT_MAX: u64 = 83;
/// The part of the front that is live when a larger one is taken.
const FRONT_PERCENT_MAX: u64 = 50;
/// Each new epoch clears dead slots in this part of the table: its number comes round again after 65,535.
const SWEEP_PARTS: usize = 256;

type Bucket = [u128; WORDS];

pub struct Table {
    /// Zeroed memory, which the operating system gives when it is touched.
    words: Vec<u128>,
    /// The first word on a bucket's boundary.
    base: usize,
    bits_max: u32,
    epochs: Epochs,
    swept: usize,
    /// Front sizes of the live epochs, each once.
    fronts: Vec<u32>,
}

fn epoch_of(bucket: &Bucket, way: usize) -> u16 {
    (bucket[WAYS] >> (16 * way)) as u16
}

fn set_epoch(bucket: &mut Bucket, way: usize, epoch: u16) {
    bucket[WAYS] = bucket[WAYS] & !(0xFFFF << (16 * way)) | u128::from(epoch) << (16 * way);
}

impl Table {
    /// At most 2^`bits_max` buckets.
    pub fn new(bits_max: u32, window: Duration, now: Duration) -> Table {
        let words = vec![0_u128; (WORDS << bits_max) + WORDS];
        let base = words.as_ptr().align_offset(BUCKET_BYTES).min(WORDS);
        let bits = bits_max.min(FRONT_BITS_MIN);
        let keys_max = slots(bits_max) * LIVE_PERCENT_MAX / 100;
        Table { words, base, bits_max, epochs: Epochs::new(window, keys_max, bits, now), swept: 0, fronts: vec![bits] }
    }

    pub fn keys(&self) -> u64 {
        self.epochs.keys()
    }

    /// Memory that has been touched.
    pub fn bytes(&self) -> u64 {
        (BUCKET_BYTES as u64) << self.epochs.bits()
    }

    pub fn effective_window(&self, now: Duration) -> Duration {
        self.epochs.effective_window(now)
    }

    /// Ends epochs whose time is over. Costs the same whatever they hold.
    pub fn tick(&mut self, now: Duration) {
        let bits = self.epochs.bits();
        let is_crowded = bits < self.bits_max && self.keys() > slots(bits) * FRONT_PERCENT_MAX / 100;
        let wanted = if is_crowded { (bits + FRONT_BITS_STEP).min(self.bits_max) } else { bits };
        if self.epochs.tick(now, wanted) {
            self.after_change();
        }
    }

    /// Everything that was added under these sequences is forgotten, and what shares an epoch with it.
    pub fn forget(&mut self, sequences: &Range<u64>, now: Duration) {
        if self.epochs.forget(sequences, now) {
            self.after_change();
        }
    }

    fn after_change(&mut self) {
        self.fronts = self.epochs.fronts();
        let count = ((1 << self.epochs.bits()) / SWEEP_PARTS).max(1);
        for _ in 0..count {
            let at = self.swept & ((1 << self.epochs.bits()) - 1);
            self.swept = at + 1;
            let mut bucket = *self.bucket(at);
            let mut is_changed = false;
            for way in 0..WAYS {
                let epoch = epoch_of(&bucket, way);
                if epoch != 0 && !self.epochs.is_live(epoch) {
                    set_epoch(&mut bucket, way, 0);
                    is_changed = true;
                }
            }
            if is_changed {
                self.buckets_mut()[at] = bucket;
            }
        }
    }

    fn buckets(&self) -> &[Bucket] {
        self.words[self.base..].as_chunks().0
    }

    fn buckets_mut(&mut self) -> &mut [Bucket] {
        self.words[self.base..].as_chunks_mut().0
    }

    fn bucket(&self, index: usize) -> &Bucket {
        &self.buckets()[index]
    }

    /// Reads a word of each line that looking for these keys will need, so that the waits for memory overlap.
    pub fn touch(&self, keys: impl Iterator<Item = u128>) -> u128 {
        let buckets = self.buckets();
        let mut sum = 0;
        for key in keys {
            for bits in self.fronts.iter().filter(|bits| **bits > CACHED_BITS_MAX) {
                for index in places(key, *bits) {
                    let bucket = &buckets[index];
                    sum ^= bucket[0] ^ bucket[WAYS];
                }
            }
        }
        sum
    }

    pub fn contains(&self, key: u128) -> bool {
        let buckets = self.buckets();
        self.fronts.iter().any(|bits| {
            places(key, *bits).into_iter().any(|index| {
                let bucket = &buckets[index];
                (0..WAYS).any(|way| bucket[way] == key && self.epochs.is_live(epoch_of(bucket, way)))
            })
        })
    }

    /// Adds a key that is not there. Where all its places are taken the oldest key in them goes.
    pub fn insert(&mut self, key: u128, sequence: u64, now: Duration) {
        self.tick(now);
        let indices = places(key, self.epochs.bits());
        let [first, second] = indices.map(|index| self.free_way(self.bucket(index)));
        let (index, way, evicted) = match (first, second) {
            (Err((_, way, epoch)), Err((age, ..))) if self.epochs.age(epoch) >= age => (indices[0], way, Some(epoch)),
            (Err(_), Err((_, way, epoch))) => (indices[1], way, Some(epoch)),
            (Ok((way, _)), Err(_)) => (indices[0], way, None),
            (Err(_), Ok((way, _))) => (indices[1], way, None),
            (Ok((way, free)), Ok((_, other))) if free >= other => (indices[0], way, None),
            (Ok(_), Ok((way, _))) => (indices[1], way, None),
        };
        if let Some(epoch) = evicted {
            self.epochs.evicted(epoch, now);
        }
        let epoch = self.epochs.added(sequence);
        let bucket = &mut self.buckets_mut()[index];
        bucket[way] = key;
        set_epoch(bucket, way, epoch);
    }

    /// A way that is free, and how many are; else the oldest: its age, where it is, its epoch.
    fn free_way(&self, bucket: &Bucket) -> Result<(usize, usize), (u16, usize, u16)> {
        let (mut free, mut count, mut oldest) = (None, 0, (0, 0, 0));
        for way in 0..WAYS {
            let epoch = epoch_of(bucket, way);
            if !self.epochs.is_live(epoch) {
                free = free.or(Some(way));
                count += 1;
            } else if self.epochs.age(epoch) >= oldest.0 {
                oldest = (self.epochs.age(epoch), way, epoch);
            }
        }
        free.map(|way| (way, count)).ok_or(oldest)
    }
}

fn slots(bits: u32) -> u64 {
    (WAYS as u64) << bits
}

/// The two buckets of a key. Its highest bits choose the shard.
fn places(key: u128, bits: u32) -> [usize; 2] {
    let mask = (1_u64 << bits) - 1;
    [(key as u64 & mask) as usize, ((key >> 40) as u64 & mask) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const WINDOW: Duration = Duration::from_secs(600);

    fn key(random: &mut fastrand::Rng) -> u128 {
        random.u128(1..)
    }

    #[test]
    fn no_key_is_reported_that_is_not_there_and_none_is_forgotten_below_the_bound() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut table = Table::new(10, WINDOW, Duration::ZERO);
        let keys: Vec<u128> = (0..slots(10) * 7 / 10).map(|_| key(&mut random)).collect();
        for (n, key) in keys.iter().enumerate() {
            table.insert(*key, n as u64, Duration::from_millis(n as u64));
        }
        let missing = keys.iter().filter(|key| !table.contains(**key)).count();
        assert!(missing * 1000 <= keys.len(), "{missing} of {}", keys.len());
        assert!((0..100_000).all(|_| !table.contains(key(&mut random))));
        assert_eq!(table.effective_window(Duration::from_secs(10)) == WINDOW, missing == 0);
    }

    #[test]
    fn past_the_bound_the_oldest_go_and_the_effective_window_says_so() {
        let mut random = fastrand::Rng::with_seed(4);
        let mut table = Table::new(8, WINDOW, Duration::ZERO);
        let keys: Vec<u128> = (0..20_000).map(|_| key(&mut random)).collect();
        for (n, key) in keys.iter().enumerate() {
            table.insert(*key, n as u64, Duration::from_millis(n as u64));
        }
        assert!(table.keys() <= slots(8));
        let newest = &keys[keys.len() - 1000..];
        let kept = newest.iter().filter(|key| table.contains(**key)).count();
        assert!(kept > 990, "{kept} of the newest thousand are known");
        assert!(!keys[..10_000].iter().any(|key| table.contains(*key)));
        let effective = table.effective_window(Duration::from_millis(20_000));
        assert!(effective < Duration::from_secs(3), "{effective:?}");
    }

    #[test]
    fn a_key_lives_for_the_window_and_not_much_longer() {
        let mut table = Table::new(8, WINDOW, Duration::ZERO);
        table.insert(42, 1, Duration::from_secs(1));
        for second in 1..=601 {
            table.tick(Duration::from_secs(second));
            assert!(table.contains(42), "after {second} s");
        }
        table.tick(WINDOW + WINDOW / 8);
        assert!(!table.contains(42));
    }

    #[test]
    fn few_keys_touch_little_memory_and_stay_known_while_it_grows() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut table = Table::new(14, WINDOW, Duration::ZERO);
        assert!(table.bytes() <= 16 << 10);
        let keys: Vec<u128> = (0..20_000).map(|_| key(&mut random)).collect();
        for (n, key) in keys.iter().enumerate() {
            table.insert(*key, n as u64, Duration::from_millis(n as u64));
        }
        let missing = keys.iter().filter(|key| !table.contains(**key)).count();
        assert!(missing <= 20, "{missing} are missing");
        assert!(table.bytes() <= 2 << 20, "{}", table.bytes());
    }

    #[test]
    fn epoch_numbers_that_come_round_again_bring_no_key_back() {
        let mut table = Table::new(FRONT_BITS_MIN, Duration::from_secs(16), Duration::ZERO);
        let mut alive: BTreeMap<u128, u64> = BTreeMap::new();
        let mut random = fastrand::Rng::with_seed(6);
        // Every second begins a new epoch; their numbers come round.
        for second in 0..70_000_u64 {
            let now = Duration::from_secs(second);
            let key = key(&mut random);
            table.insert(key, second, now);
            alive.insert(key, second);
            if second % 1000 == 0 {
                alive.retain(|key, at| {
                    let age = second - *at;
                    assert!(age > 15 || table.contains(*key), "{age} s old and gone");
                    assert!(age < 19 || !table.contains(*key), "{age} s old and back");
                    age < 69_000
                });
            }
        }
    }

    #[test]
    fn forgetting_sequences_forgets_their_keys_and_no_older_epochs() {
        let mut table = Table::new(8, WINDOW, Duration::ZERO);
        for n in 0..10_u64 {
            table.insert(u128::from(n) + 1, n, Duration::from_secs(n * 60));
        }
        table.forget(&(7..8), Duration::from_secs(600));
        assert!(!table.contains(8));
        assert!(table.contains(1) && table.contains(5));
        table.insert(99, 20, Duration::from_secs(600));
        assert!(table.contains(99));
    }
}
