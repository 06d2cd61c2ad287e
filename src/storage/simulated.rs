//! A disk that loses its power, for tests.
//!
//! ```text
//! File       now (page cache)  ──sync_data──▶  durable       a cut keeps any subset of unsynced pages, some torn
//! Directory  now               ──sync_dir───▶  durable       a cut keeps a prefix or any subset of unsynced changes
//! Catalogue  history of commits since the last sync          a cut keeps any of them, or leaves it torn or empty
//! ```
//! One [`World`] is one machine with its disk. Everything random comes from its seed, so a single thread that does the
//! same things meets the same fate. A [`SimulatedDisk`] belongs to one boot: after [`World::cut_power`] or
//! [`World::kill`] whatever still holds it gets errors, as a process that is dead would do nothing at all.

mod catalog;
mod directory;
mod disk;
mod file;
mod sled;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;

use catalog::Commits;
pub use catalog::Fate;
use directory::Directory;
pub use disk::SimulatedDisk;
use file::File;
pub use sled::SledDirectories;

pub const PAGE_LEN: usize = 4096;
/// A torn page keeps whole sectors.
const SECTOR_LEN: usize = 512;
/// Pages of removed files kept to show up again in new ones.
const STALE_PAGES_MAX: usize = 64;
const ROOT: u64 = 0;

/// Mistakes of a disk that claims to be honest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dishonesty {
    /// `sync_data` returns without having written anything.
    LyingSync,
    /// The same for the files in this directory alone.
    LyingSyncIn(&'static str),
    /// The directory is never synced.
    NoDirectorySync,
    /// `set_len` does nothing.
    NoTruncation,
}

/// Errors that were ordered. Counts go down with each one given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// `sync_data` fails; of what it should have written, some is written and the rest forgotten.
    pub failing_syncs: u32,
    pub failing_reads: u32,
    /// The first read this many operations from now fails.
    pub failing_read_in: Option<u64>,
    /// So many writes and allocations succeed before the next fault.
    pub passing_writes: u32,
    /// Writes and allocations fail with ENOSPC, some of them halfway.
    pub failing_writes: u32,
    /// `rename`, `remove` and `sync_dir` fail and change nothing.
    pub failing_names: u32,
    pub sync_delay: Duration,
}

enum Node {
    File(File),
    Directory(Directory),
}

struct State {
    rng: Rng,
    boot: u64,
    is_off: bool,
    /// Operations until the power goes off.
    cut_in: Option<u64>,
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    locks: BTreeSet<PathBuf>,
    catalogs: BTreeMap<u64, Commits>,
    stale: Vec<Vec<u8>>,
    faults: Faults,
    dishonesty: Option<Dishonesty>,
    /// The test itself looks: no faults, and it works without power.
    is_oracle: bool,
    total_bytes: u64,
    operations: u64,
}

/// One machine.
pub struct World(Mutex<State>);

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

fn power_off() -> io::Error {
    io::Error::other("the power is off")
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// Whether an operation is the last one before the lights go out: it may take effect, but nobody hears of it.
type IsLast = bool;

impl World {
    pub fn new(seed: u64, total_bytes: u64) -> Arc<World> {
        Arc::new(World(Mutex::new(State {
            rng: Rng::with_seed(seed),
            boot: 0,
            is_off: false,
            cut_in: None,
            nodes: BTreeMap::from([(ROOT, Node::Directory(Directory::default()))]),
            next_node: ROOT + 1,
            locks: BTreeSet::new(),
            catalogs: BTreeMap::new(),
            stale: Vec::new(),
            faults: Faults::default(),
            dishonesty: None,
            is_oracle: false,
            total_bytes,
            operations: 0,
        })))
    }

    /// The disk as this boot sees it.
    pub fn disk(self: &Arc<Self>) -> Arc<SimulatedDisk> {
        Arc::new(SimulatedDisk { boot: self.0.lock().boot, world: Arc::clone(self) })
    }

    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    pub fn update_faults(&self, update: impl FnOnce(&mut Faults)) {
        update(&mut self.0.lock().faults);
    }

    pub fn set_dishonesty(&self, dishonesty: Option<Dishonesty>) {
        self.0.lock().dishonesty = dishonesty;
    }

    pub fn set_oracle(&self, on: bool) {
        self.0.lock().is_oracle = on;
    }

    /// The power goes off during the `operations`-th operation from now.
    pub fn cut_power_in(&self, operations: Option<u64>) {
        self.0.lock().cut_in = operations;
    }

    /// The first read from the `operations`-th operation on fails.
    pub fn fail_read_in(&self, operations: u64) {
        self.0.lock().faults.failing_read_in = Some(operations);
    }

    pub fn is_off(&self) -> bool {
        self.0.lock().is_off
    }

    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// The power goes off now, and comes back: what was not synced is there or not, as chance has it.
    pub fn cut_power(&self, fate: Fate) {
        let state = &mut *self.0.lock();
        state.restart();
        let reachable = state.settle_directories();
        let State { nodes, rng, stale, catalogs, .. } = state;
        nodes.retain(|id, _| reachable.contains(id));
        for node in nodes.values_mut() {
            if let Node::File(file) = node {
                file.lose_power(rng, stale);
            }
        }
        catalogs.retain(|id, _| reachable.contains(id));
        for commits in catalogs.values_mut() {
            commits.lose_power(fate, rng);
        }
    }

    /// The process dies and the machine lives on: its page cache stays.
    pub fn kill(&self) {
        let state = &mut *self.0.lock();
        state.restart();
        for commits in state.catalogs.values_mut() {
            commits.kill();
        }
    }

    /// Flips one bit of a file where it lies, on disk and in memory.
    pub fn flip(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        self.0.lock().file(path)?.flip(offset, bit);
        Ok(())
    }

    /// Overwrites a whole file with rubbish, on disk and in memory.
    pub fn spoil(&self, path: &Path) -> io::Result<()> {
        self.0.lock().file(path)?.spoil();
        Ok(())
    }

    /// Length of a file and whether all of it is durable.
    pub fn len_of(&self, path: &Path) -> io::Result<u64> {
        Ok(self.0.lock().file(path)?.now.len() as u64)
    }
}

impl State {
    fn restart(&mut self) {
        self.boot += 1;
        self.is_off = false;
        self.cut_in = None;
        self.locks.clear();
    }

    /// Counts the operation; says whether it is the last.
    fn begin(&mut self, boot: u64) -> io::Result<IsLast> {
        if self.is_oracle {
            return Ok(false);
        }
        if self.is_off || boot != self.boot {
            return Err(power_off());
        }
        self.operations += 1;
        if let Some(left) = &mut self.faults.failing_read_in {
            *left = left.saturating_sub(1);
        }
        match &mut self.cut_in {
            Some(0) => {
                self.is_off = true;
                self.cut_in = None;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn end<T>(&self, is_last: IsLast, value: T) -> io::Result<T> {
        if is_last { Err(power_off()) } else { Ok(value) }
    }

    /// Whether the disk is full for this write.
    fn is_full(&mut self) -> bool {
        if self.faults.failing_writes == 0 || self.is_oracle {
            return false;
        }
        let passes = self.strikes(|faults| &mut faults.passing_writes);
        !passes && self.strikes(|faults| &mut faults.failing_writes)
    }

    /// Takes one from a count of ordered errors.
    fn strikes(&mut self, which: impl FnOnce(&mut Faults) -> &mut u32) -> bool {
        let left = which(&mut self.faults);
        let strikes = *left > 0 && !self.is_oracle;
        if strikes {
            *left -= 1;
        }
        strikes
    }

    fn resolve(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let Some(Node::Directory(directory)) = self.nodes.get(&at) else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            let name = name.to_string_lossy();
            at = *directory.now.get(name.as_ref()).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn directory(&mut self, path: &Path) -> io::Result<&mut Directory> {
        let id = self.resolve(path)?;
        match self.nodes.get_mut(&id) {
            Some(Node::Directory(directory)) => Ok(directory),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<&mut File> {
        let id = self.resolve(path)?;
        self.file_of(id)
    }

    fn file_of(&mut self, id: u64) -> io::Result<&mut File> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// The directory that holds the path's last name, and that name.
    fn parent_of<'p>(&mut self, path: &'p Path) -> io::Result<(&mut Directory, std::borrow::Cow<'p, str>)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<u64> {
        let id = self.next_node;
        let (parent, name) = self.parent_of(path)?;
        if parent.now.contains_key(name.as_ref()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        parent.change(vec![(name.into_owned(), Some(id))]);
        self.next_node += 1;
        self.nodes.insert(id, node);
        Ok(id)
    }

    /// Decides what became of unsynced names; returns the nodes that still have one.
    fn settle_directories(&mut self) -> BTreeSet<u64> {
        let mut reachable = BTreeSet::new();
        let mut rest = vec![ROOT];
        while let Some(id) = rest.pop() {
            reachable.insert(id);
            if let Some(Node::Directory(directory)) = self.nodes.get_mut(&id) {
                directory.lose_power(&mut self.rng);
                rest.extend(directory.now.values());
            }
        }
        reachable
    }

    fn used_bytes(&self) -> u64 {
        let len = |node: &Node| if let Node::File(file) = node { file.now.len() as u64 } else { 0 };
        self.nodes.values().map(len).sum()
    }
}
