//! Which keys of a table are alive, by the time in which they were added.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// Epochs that make up the window; one more lives, so that a key is known for the whole of it.
const EPOCHS_PER_WINDOW: u32 = 16;
/// An epoch ends early when it has this part of the keys that may live.
const EPOCH_KEYS_PART: u64 = 32;
/// Ages that are told apart; no epoch lives on beyond.
const AGE_MAX: u16 = 63;

#[derive(Debug)]
struct Epoch {
    number: u16,
    began: Duration,
    /// When the next one began; meaningless in the present one.
    ended: Duration,
    /// Bits of a bucket's index.
    bits: u32,
    keys: u64,
    /// Sequences of the records whose keys it has.
    sequences: Range<u64>,
}

pub struct Epochs {
    window: Duration,
    keys_max: u64,
    /// The present one first.
    live: VecDeque<Epoch>,
    /// Bit n: the epoch begun n before the present one is alive.
    alive: u64,
    number: u16,
    keys: u64,
    /// What the bound has cut the window to, and until when that is so.
    cut: Option<(Duration, Duration)>,
}

impl Epochs {
    pub fn new(window: Duration, keys_max: u64, bits: u32, now: Duration) -> Epochs {
        let first = Epoch { number: 1, began: now, ended: now, bits, keys: 0, sequences: 0..0 };
        Epochs { window, keys_max, live: VecDeque::from([first]), alive: 1, number: 1, keys: 0, cut: None }
    }

    pub fn keys(&self) -> u64 {
        self.keys
    }

    pub fn bits(&self) -> u32 {
        self.live.front().map_or(0, |epoch| epoch.bits)
    }

    pub fn fronts(&self) -> Vec<u32> {
        let mut fronts: Vec<u32> = self.live.iter().map(|epoch| epoch.bits).collect();
        fronts.dedup();
        fronts
    }

    #[inline]
    pub fn age(&self, number: u16) -> u16 {
        self.number.wrapping_sub(number)
    }

    #[inline]
    pub fn is_live(&self, number: u16) -> bool {
        let age = self.age(number);
        number != 0 && age <= AGE_MAX && self.alive >> age & 1 == 1
    }

    pub fn effective_window(&self, now: Duration) -> Duration {
        match self.cut {
            Some((window, until)) if now < until => window,
            _ => self.window,
        }
    }

    /// Ends what has lived long enough, and begins a new epoch when the present one is old or full or has another size.
    /// Says whether anything changed.
    pub fn tick(&mut self, now: Duration, bits: u32) -> bool {
        let mut is_changed = false;
        while self.live.len() > 1 && self.live.back().is_some_and(|oldest| oldest.ended + self.window < now) {
            self.pop();
            is_changed = true;
        }
        let Some(present) = self.live.front_mut() else { return is_changed };
        if present.keys == 0 && present.bits == bits {
            present.began = present.began.max(now);
            return is_changed;
        }
        let is_over = now.saturating_sub(present.began) >= self.window / EPOCHS_PER_WINDOW
            || present.keys >= (self.keys_max / EPOCH_KEYS_PART).max(1)
            || present.bits != bits;
        if is_over {
            self.begin(now, bits);
        }
        is_changed || is_over
    }

    fn begin(&mut self, now: Duration, bits: u32) {
        while self.keys + self.keys_max / EPOCH_KEYS_PART > self.keys_max && self.live.len() > 1 {
            self.pop();
            self.shorten(self.live.back().map_or(now, |oldest| oldest.began), now);
        }
        self.step();
        if self.number == 0 {
            // 0 stands for an empty slot.
            self.step();
        }
        self.alive |= 1;
        while self.live.back().is_some_and(|oldest| self.age(oldest.number) > AGE_MAX) {
            self.pop();
            self.shorten(self.live.back().map_or(now, |oldest| oldest.began), now);
        }
        if let Some(before) = self.live.front_mut() {
            before.ended = now;
        }
        self.live.push_front(Epoch { number: self.number, began: now, ended: now, bits, keys: 0, sequences: 0..0 });
    }

    fn step(&mut self) {
        self.number = self.number.wrapping_add(1);
        self.alive <<= 1;
    }

    fn pop(&mut self) {
        if let Some(oldest) = self.live.pop_back() {
            self.keys -= oldest.keys;
            let age = self.age(oldest.number);
            if age <= AGE_MAX {
                self.alive &= !(1 << age);
            }
        }
    }

    /// What is older than `since` may be gone although the window is not over.
    fn shorten(&mut self, since: Duration, now: Duration) {
        let window = now.saturating_sub(since).min(self.window);
        let window = self.cut.filter(|(_, until)| now < *until).map_or(window, |(known, _)| known.min(window));
        self.cut = Some((window, now + self.window));
    }

    /// A live key of that epoch had to make room.
    pub fn evicted(&mut self, number: u16, now: Duration) {
        if let Some(epoch) = self.live.iter_mut().find(|epoch| epoch.number == number) {
            epoch.keys -= 1;
            self.keys -= 1;
            let began = epoch.began;
            self.shorten(began, now);
        }
    }

    /// The number of the present epoch, which now has one key more.
    pub fn added(&mut self, sequence: u64) -> u16 {
        if let Some(present) = self.live.front_mut() {
            present.sequences = if present.keys == 0 {
                sequence..sequence + 1
            } else {
                present.sequences.start.min(sequence)..present.sequences.end.max(sequence + 1)
            };
            present.keys += 1;
            self.keys += 1;
        }
        self.number
    }

    /// Ends every epoch that has a key from these sequences; says whether there was one.
    pub fn forget(&mut self, sequences: &Range<u64>, now: Duration) -> bool {
        let is_hit = |epoch: &Epoch| epoch.sequences.start < sequences.end && sequences.start < epoch.sequences.end;
        if !self.live.iter().any(is_hit) {
            return false;
        }
        let bits = self.bits();
        if self.live.front().is_some_and(is_hit) {
            self.begin(now, bits);
        }
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.live).into_iter().partition(is_hit);
        for epoch in gone {
            self.keys -= epoch.keys;
            self.alive &= !(1 << self.age(epoch.number));
        }
        self.live = kept;
        true
    }
}
