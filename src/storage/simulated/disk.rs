//! The disk of one boot, as storage sees it.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory::Directory;
use super::file::File;
use super::{Dishonesty, Node, STALE_PAGES_MAX, State, World, eio, power_off};
use crate::storage::disk::{DirEntry, Disk, DiskFile, DiskSpace};

/// The disk of one boot.
#[derive(Debug)]
pub struct SimulatedDisk {
    pub(super) world: Arc<World>,
    pub(super) boot: u64,
}

#[derive(Debug)]
struct SimulatedFile {
    world: Arc<World>,
    boot: u64,
    node: u64,
    /// Where it lay when it was opened.
    dir: PathBuf,
}

/// Held by one process of one boot.
#[derive(Debug)]
struct Lock {
    world: Arc<World>,
    boot: u64,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.world.0.lock();
        if state.boot == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

impl SimulatedDisk {
    fn open_node(&self, node: u64, path: &Path) -> Arc<dyn DiskFile> {
        let dir = path.parent().unwrap_or(path).to_owned();
        Arc::new(SimulatedFile { world: Arc::clone(&self.world), boot: self.boot, node, dir })
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let state = &mut *self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if state.used_bytes() + allocate_bytes > state.total_bytes || state.is_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = File::allocated(allocate_bytes as usize, &mut state.rng, &state.stale);
        let node = state.add(path, Node::File(file))?;
        state.end(is_last, self.open_node(node, path))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        let node = state.resolve(path)?;
        state.file_of(node)?;
        state.end(is_last, self.open_node(node, path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if state.directory(path).is_err() {
            state.add(path, Node::Directory(Directory::default()))?;
        }
        state.end(is_last, ())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        let names: Vec<(String, u64)> =
            state.directory(dir)?.now.iter().map(|(name, id)| (name.clone(), *id)).collect();
        let entries = names.into_iter().map(|(name, id)| match state.nodes.get(&id) {
            Some(Node::File(file)) => DirEntry { name, is_dir: false, len: file.now.len() as u64 },
            _ => DirEntry { name, is_dir: true, len: 0 },
        });
        let entries = entries.collect();
        state.end(is_last, entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if state.strikes(|f| &mut f.failing_names) {
            return Err(eio());
        }
        if from.parent() != to.parent() {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let node = state.resolve(from)?;
        let target = to.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let (parent, name) = state.parent_of(from)?;
        parent.change(vec![(name.into_owned(), None), (target, Some(node))]);
        state.end(is_last, ())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if state.strikes(|f| &mut f.failing_names) {
            return Err(eio());
        }
        // A directory as rmdir does it: an empty one.
        let pages = match state.directory(path) {
            Ok(directory) if directory.now.is_empty() => Vec::new(),
            Ok(_) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
            Err(_) => state.file(path)?.some_pages(),
        };
        let (parent, name) = state.parent_of(path)?;
        parent.change(vec![(name.into_owned(), None)]);
        state.stale.extend(pages);
        let too_many = state.stale.len().saturating_sub(STALE_PAGES_MAX);
        state.stale.drain(..too_many);
        state.end(is_last, ())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if state.strikes(|f| &mut f.failing_names) {
            return Err(eio());
        }
        if is_last && state.rng.bool() {
            return Err(power_off());
        }
        let is_honest = state.dishonesty != Some(Dishonesty::NoDirectorySync);
        let directory = state.directory(path)?;
        if is_honest {
            directory.sync();
        }
        state.end(is_last, ())
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        state.resolve(path)?;
        let space = DiskSpace {
            total_bytes: state.total_bytes,
            available_bytes: state.total_bytes.saturating_sub(state.used_bytes()),
            kind: 0,
        };
        state.end(is_last, space)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        drop(state);
        let lock = Lock { world: Arc::clone(&self.world), boot: self.boot, path: path.to_owned() };
        if is_last { Err(power_off()) } else { Ok(Box::new(lock)) }
    }
}

impl DiskFile for SimulatedFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let state = &mut *self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        let mut bytes = Vec::new();
        for part in parts.iter() {
            bytes.extend_from_slice(part);
        }
        let full = state.is_full();
        let written = if full || is_last { state.rng.usize(..=bytes.len()) } else { bytes.len() };
        state.file_of(self.node)?.write(&bytes[..written], offset as usize);
        if full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.end(is_last, ())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if state.faults.failing_read_in == Some(0) && !state.is_oracle {
            state.faults.failing_read_in = None;
            return Err(eio());
        }
        if state.strikes(|f| &mut f.failing_reads) {
            return Err(eio());
        }
        let read = state.file_of(self.node)?.read(buffer, offset as usize);
        state.end(is_last, read)
    }

    fn sync_data(&self) -> io::Result<()> {
        let delay = self.world.0.lock().faults.sync_delay;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let state = &mut *self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if is_last && state.rng.bool() {
            return Err(power_off());
        }
        let fails = state.strikes(|f| &mut f.failing_syncs);
        let is_honest = match state.dishonesty {
            Some(Dishonesty::LyingSync) => false,
            Some(Dishonesty::LyingSyncIn(dir)) => self.dir != Path::new(dir),
            _ => true,
        };
        let State { nodes, rng, .. } = state;
        let Some(Node::File(file)) = nodes.get_mut(&self.node) else { return Err(io::ErrorKind::NotFound.into()) };
        if fails {
            file.fail_sync(rng);
            return Err(eio());
        }
        if is_honest {
            file.sync();
        }
        state.end(is_last, ())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        if state.dishonesty != Some(Dishonesty::NoTruncation) {
            state.file_of(self.node)?.set_len(len as usize);
        }
        state.end(is_last, ())
    }

    fn size(&self) -> io::Result<u64> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        let len = state.file_of(self.node)?.now.len() as u64;
        state.end(is_last, len)
    }
}
