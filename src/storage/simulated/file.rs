//! A file's bytes: as the page cache has them, and as the disk has them.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::{PAGE_LEN, SECTOR_LEN};

#[derive(Default)]
pub(super) struct File {
    pub now: Vec<u8>,
    durable: Vec<u8>,
    /// Pages in which `now` differs from `durable` and that a sync would write.
    dirty: BTreeSet<usize>,
    /// Pages that a failed sync forgot: clean in memory, old on disk, written by no later sync.
    forgotten: BTreeSet<usize>,
}

fn page(bytes: &[u8], index: usize) -> &[u8] {
    let start = (index * PAGE_LEN).min(bytes.len());
    &bytes[start..(start + PAGE_LEN).min(bytes.len())]
}

/// Files that were allocated large and cut short are many after a thousand starts.
fn give_back(bytes: &mut Vec<u8>) {
    if bytes.capacity() > 2 * bytes.len() {
        bytes.shrink_to_fit();
    }
}

impl File {
    /// Blocks that were reserved show what lay there before, now and then.
    pub fn allocated(len: usize, rng: &mut Rng, stale: &[Vec<u8>]) -> File {
        let mut now = vec![0; len];
        if !stale.is_empty() && rng.u8(..4) == 0 {
            for page in now.chunks_exact_mut(PAGE_LEN) {
                page.copy_from_slice(&stale[rng.usize(..stale.len())]);
            }
        }
        File { dirty: (0..len.div_ceil(PAGE_LEN)).collect(), now, ..File::default() }
    }

    pub fn write(&mut self, bytes: &[u8], offset: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        for page in offset / PAGE_LEN..end.div_ceil(PAGE_LEN) {
            self.dirty.insert(page);
            self.forgotten.remove(&page);
        }
    }

    pub fn read(&self, buffer: &mut [u8], offset: usize) -> usize {
        let there = self.now.get(offset..).unwrap_or_default();
        let read = there.len().min(buffer.len());
        buffer[..read].copy_from_slice(&there[..read]);
        read
    }

    pub fn set_len(&mut self, len: usize) {
        self.now.resize(len, 0);
        self.dirty.retain(|page| page * PAGE_LEN < len);
        self.forgotten.retain(|page| page * PAGE_LEN < len);
        give_back(&mut self.now);
    }

    pub fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        give_back(&mut self.durable);
        for index in std::mem::take(&mut self.dirty) {
            self.persist(index, PAGE_LEN);
        }
    }

    /// Linux marks the pages clean whether they were written or not.
    pub fn fail_sync(&mut self, rng: &mut Rng) {
        let all = rng.u8(..3) == 0;
        if all || rng.bool() {
            self.durable.resize(self.now.len(), 0);
        }
        for index in std::mem::take(&mut self.dirty) {
            if all || rng.bool() {
                self.persist(index, PAGE_LEN);
            } else {
                self.forgotten.insert(index);
            }
        }
    }

    pub fn lose_power(&mut self, rng: &mut Rng, stale: &[Vec<u8>]) {
        let old_len = self.durable.len();
        if old_len != self.now.len() && rng.bool() {
            self.durable.resize(self.now.len(), 0);
        }
        // Blocks that were never synced may show what lay there before.
        if self.durable.len() > old_len && !stale.is_empty() && rng.u8(..4) == 0 {
            for index in old_len.div_ceil(PAGE_LEN)..self.durable.len() / PAGE_LEN {
                let start = index * PAGE_LEN;
                self.durable[start..start + PAGE_LEN].copy_from_slice(&stale[rng.usize(..stale.len())]);
            }
        }
        // Now and then nothing or everything made it, else each page has its own luck.
        let luck = rng.u8(..6);
        for index in std::mem::take(&mut self.dirty) {
            match luck {
                0 => {}
                1 => self.persist(index, PAGE_LEN),
                _ => match rng.u8(..8) {
                    0..=2 => {}
                    3 => {
                        let sectors = rng.usize(1..PAGE_LEN / SECTOR_LEN);
                        self.persist(index, sectors * SECTOR_LEN);
                    }
                    _ => self.persist(index, PAGE_LEN),
                },
            }
        }
        self.forgotten.clear();
        give_back(&mut self.durable);
        self.now = self.durable.clone();
    }

    /// Writes the first `len` bytes of a page, as far as the file on disk reaches.
    fn persist(&mut self, index: usize, len: usize) {
        let start = index * PAGE_LEN;
        let end = (start + len).min(self.now.len()).min(self.durable.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.now[start..end]);
        }
    }

    pub fn flip(&mut self, offset: u64, bit: u8) {
        for bytes in [&mut self.now, &mut self.durable] {
            if let Some(byte) = bytes.get_mut(offset as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    pub fn spoil(&mut self) {
        self.now.fill(0x5A);
        self.durable.fill(0x5A);
        self.dirty.clear();
    }

    /// Some whole pages that hold anything, for others to find.
    pub fn some_pages(&self) -> Vec<Vec<u8>> {
        (1..self.now.len() / PAGE_LEN)
            .map(|index| page(&self.now, index))
            .filter(|page| page.iter().any(|byte| *byte != 0))
            .take(4)
            .map(<[u8]>::to_vec)
            .collect()
    }
}
