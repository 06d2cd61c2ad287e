//! Real sled in a real directory beside the simulated disk, with power cuts.
//!
//! Between the last commit that was confirmed and the one under way a cut keeps any mixture of the pages of both, or
//! leaves the files torn, or empties the directory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;

use super::{Fate, PAGE_LEN, World, power_off};
use crate::storage::Disk;
use crate::storage::catalog::{Catalog, CatalogError, Change, Row, SledCatalog};
use crate::storage::store::OpenCatalog;

/// A directory's files by their names.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// sled's directories, one for each of the simulated disk's.
pub struct SledDirectories {
    root: tempfile::TempDir,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    /// For each directory the files as last confirmed, and as the commit under way left them.
    commits: BTreeMap<u64, Vec<Files>>,
}

fn read_files(dir: &Path, below: &Path, files: &mut Files) -> io::Result<()> {
    for entry in std::fs::read_dir(dir.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            read_files(dir, &path, files)?;
        } else {
            files.insert(path, std::fs::read(entry.path())?);
        }
    }
    Ok(())
}

fn write_files(dir: &Path, files: &Files) -> io::Result<()> {
    std::fs::remove_dir_all(dir)?;
    std::fs::create_dir(dir)?;
    for (path, bytes) in files {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, bytes)?;
    }
    Ok(())
}

/// Each page as it was before or as it is now.
fn mix(before: &Files, now: &Files, rng: &mut Rng) -> Files {
    let mut mixed = Files::new();
    for (path, new) in now {
        let Some(old) = before.get(path) else {
            if rng.bool() {
                mixed.insert(path.clone(), new.clone());
            }
            continue;
        };
        let mut bytes = if rng.bool() { new.clone() } else { old.clone() };
        for (index, page) in bytes.chunks_mut(PAGE_LEN).enumerate() {
            let source = if rng.bool() { new } else { old };
            let start = index * PAGE_LEN;
            if let Some(source) = source.get(start..start + page.len()) {
                page.copy_from_slice(source);
            }
        }
        mixed.insert(path.clone(), bytes);
    }
    for (path, old) in before.iter().filter(|(path, _)| !now.contains_key(*path)) {
        if rng.bool() {
            mixed.insert(path.clone(), old.clone());
        }
    }
    mixed
}

fn tear(files: &mut Files, rng: &mut Rng) {
    for bytes in files.values_mut() {
        match rng.u8(..3) {
            0 => bytes.truncate(rng.usize(..=bytes.len())),
            1 => {
                let pages = bytes.len().div_ceil(PAGE_LEN).max(1);
                if let Some(page) = bytes.chunks_mut(PAGE_LEN).nth(rng.usize(..pages)) {
                    page.fill(0x5A);
                }
            }
            _ => {}
        }
    }
}

impl SledDirectories {
    pub fn new(seed: u64) -> io::Result<Arc<SledDirectories>> {
        let state = State { rng: Rng::with_seed(seed), commits: BTreeMap::new() };
        Ok(Arc::new(SledDirectories { root: tempfile::tempdir()?, state: Mutex::new(state) }))
    }

    /// Opens catalogues of the present boot.
    pub fn catalogs(self: &Arc<Self>, world: &Arc<World>) -> OpenCatalog {
        let (directories, world, disk) = (Arc::clone(self), Arc::clone(world), world.disk());
        Box::new(move |path| {
            let failed = |cause: io::Error| CatalogError::io("open", &cause);
            disk.create_dir(path).map_err(failed)?;
            disk.sync_dir(path.parent().unwrap_or(Path::new(""))).map_err(failed)?;
            let node = world.0.lock().resolve(path).map_err(failed)?;
            let real = directories.path(node);
            let inner = SledCatalog::open(&real)?;
            let mut opened = SledUnderCuts {
                directories: Arc::clone(&directories),
                world: Arc::clone(&world),
                boot: disk.boot,
                node,
                inner,
            };
            opened.note(true)?;
            Ok(Box::new(opened) as Box<dyn Catalog>)
        })
    }

    fn path(&self, node: u64) -> PathBuf {
        self.root.path().join(node.to_string())
    }

    /// Call it when nothing has them open any more.
    pub fn cut_power(&self, fate: Fate) -> io::Result<()> {
        let State { rng, commits } = &mut *self.state.lock();
        for (node, states) in commits.iter_mut() {
            let (Some(before), Some(now)) = (states.first(), states.last()) else { continue };
            let files = match fate {
                Fate::Any => mix(before, now, rng),
                Fate::Torn => {
                    let mut files = now.clone();
                    tear(&mut files, rng);
                    files
                }
                Fate::Empty => Files::new(),
            };
            write_files(&self.path(*node), &files)?;
            *states = vec![files];
        }
        Ok(())
    }

    /// The process died, and what it wrote is in the page cache.
    pub fn kill(&self) -> io::Result<()> {
        for (node, states) in &mut self.state.lock().commits {
            states.drain(..states.len().saturating_sub(1));
            if let Some(files) = states.first() {
                write_files(&self.path(*node), files)?;
            }
        }
        Ok(())
    }
}

struct SledUnderCuts {
    directories: Arc<SledDirectories>,
    world: Arc<World>,
    boot: u64,
    node: u64,
    inner: SledCatalog,
}

impl SledUnderCuts {
    /// Remembers the files as they are; confirmed: nothing older can come back.
    fn note(&mut self, is_confirmed: bool) -> Result<(), CatalogError> {
        let mut files = Files::new();
        read_files(&self.directories.path(self.node), Path::new(""), &mut files)
            .map_err(|cause| CatalogError::io("look at", &cause))?;
        let mut state = self.directories.state.lock();
        let states = state.commits.entry(self.node).or_default();
        if is_confirmed {
            states.clear();
        }
        states.push(files);
        Ok(())
    }
}

impl Catalog for SledUnderCuts {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        self.inner.load()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError> {
        let failed = |cause: io::Error| CatalogError::io("write", &cause);
        let is_last = self.world.0.lock().begin(self.boot).map_err(failed)?;
        self.inner.commit(changes)?;
        self.note(!is_last)?;
        if is_last { Err(failed(power_off())) } else { Ok(()) }
    }
}
