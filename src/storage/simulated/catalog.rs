//! The catalogue's twin: rows in memory, and what a power cut makes of them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;

use super::directory::Directory;
use super::{Node, SimulatedDisk, World, eio, power_off};
use crate::storage::Disk;
use crate::storage::catalog::{Catalog, CatalogError, Change, Row};
use crate::storage::store::OpenCatalog;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a power cut makes of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Any state between the last confirmed sync and now.
    Any,
    /// Opening it fails.
    Torn,
    /// It opens without an error and holds nothing.
    Empty,
}

/// The states since the last confirmed sync, oldest first; never without one.
pub(super) struct Commits {
    states: Vec<Rows>,
    is_torn: bool,
}

impl Commits {
    fn new() -> Commits {
        Commits { states: vec![Rows::new()], is_torn: false }
    }

    fn last(&self) -> Rows {
        self.states.last().cloned().unwrap_or_default()
    }

    pub fn lose_power(&mut self, fate: Fate, rng: &mut Rng) {
        let kept = match fate {
            Fate::Any => self.states.swap_remove(rng.usize(..self.states.len())),
            Fate::Torn | Fate::Empty => Rows::new(),
        };
        self.states = vec![kept];
        self.is_torn |= fate == Fate::Torn;
    }

    pub fn kill(&mut self) {
        self.states = vec![self.last()];
    }
}

struct SimulatedCatalog {
    world: Arc<World>,
    boot: u64,
    node: u64,
}

fn error(operation: &'static str) -> impl FnOnce(io::Error) -> CatalogError {
    move |cause| CatalogError::io(operation, &cause)
}

impl World {
    /// Opens catalogues of this boot.
    pub fn catalogs(self: &Arc<Self>) -> OpenCatalog {
        let disk = self.disk();
        Box::new(move |path| {
            let catalog = SimulatedCatalog::open(&disk, path).map_err(error("open"))?;
            Ok(Box::new(catalog) as Box<dyn Catalog>)
        })
    }
}

impl SimulatedCatalog {
    fn open(disk: &SimulatedDisk, path: &Path) -> io::Result<SimulatedCatalog> {
        disk.create_dir(path)?;
        disk.sync_dir(path.parent().unwrap_or(Path::new("")))?;
        let mut state = disk.world.0.lock();
        let node = state.resolve(path)?;
        if !matches!(state.nodes.get(&node), Some(Node::Directory(Directory { .. }))) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let commits = state.catalogs.entry(node).or_insert_with(Commits::new);
        if commits.is_torn {
            return Err(io::ErrorKind::InvalidData.into());
        }
        drop(state);
        Ok(SimulatedCatalog { world: Arc::clone(&disk.world), boot: disk.boot, node })
    }

    fn write(&self, changes: &[Change]) -> io::Result<()> {
        let state = &mut *self.world.0.lock();
        let is_last = state.begin(self.boot)?;
        let fails = state.strikes(|f| &mut f.failing_syncs);
        let is_cut_short = is_last && state.rng.bool();
        let commits = state.catalogs.get_mut(&self.node).ok_or_else(power_off)?;
        let mut rows = commits.last();
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        if !fails && !is_cut_short {
            commits.states.clear();
        }
        commits.states.push(rows);
        if fails { Err(eio()) } else { state.end(is_last, ()) }
    }
}

impl Catalog for SimulatedCatalog {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        let mut state = self.world.0.lock();
        let is_last = state.begin(self.boot).map_err(error("read"))?;
        let rows = state.catalogs.get(&self.node).map(Commits::last).unwrap_or_default();
        state.end(is_last, rows.into_iter().collect()).map_err(error("read"))
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError> {
        self.write(changes).map_err(error("write"))
    }
}
