//! The first steps of a start: the directory, its lock, and what has to be there before a queue is opened.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use super::format::{self, Format};
use super::keeper::open_or_rebuild;
use super::{OpenCatalog, StoreError};
use crate::storage::catalog::{self, Catalog, Row};
use crate::storage::disk::{DirEntry, Disk};
use crate::storage::witness::{Account, Witness};

const CANNOT_SYNC: [io::ErrorKind; 4] = [
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::ReadOnlyFilesystem,
    io::ErrorKind::InvalidInput,
    io::ErrorKind::Unsupported,
];

/// What the queues stand on. Laying it twice is as good as once.
pub(super) struct Ground {
    pub witness: Witness,
    pub account: Option<Account>,
    /// None: the disk has no room for it, and segments and witness tell what it would.
    pub catalog: Option<Box<dyn Catalog>>,
    pub rows: Vec<Row>,
    /// What there is to tell about the catalogue.
    pub note: Option<String>,
    /// Of the directory of queues.
    pub entries: Vec<DirEntry>,
}

impl Ground {
    /// `found`: what the `FORMAT` file was found to be. On a disk that `is_full` it does without the catalogue, so that what was
    /// acknowledged drains and makes room; the witness must then know the cursors.
    pub fn lay(
        disk: &dyn Disk,
        dir: &Path,
        found: Format,
        open_catalog: &OpenCatalog,
        is_full: bool,
    ) -> Result<Ground, StoreError> {
        format::write(disk, dir, found)?;
        let (witness, account) = Witness::open(disk, dir).map_err(StoreError::io("open", &dir.join("witness")))?;
        let (catalog, rows, note) = match (is_full, &account) {
            // sled, opened without room, would damage what it has.
            (true, Some(_)) => {
                let note = "the disk has no room to open the catalogue: it is opened when there is some".to_owned();
                (None, Vec::new(), Some(note))
            }
            _ => {
                let (catalog, rows, note) = open_or_rebuild(disk, dir, open_catalog)?;
                (Some(catalog), rows, note)
            }
        };
        let queues_dir = dir.join("queues");
        disk.create_dir(&queues_dir).map_err(StoreError::io("create", &queues_dir))?;
        disk.sync_dir(dir).map_err(StoreError::io("sync", dir))?;
        let entries = disk.list(&queues_dir).map_err(StoreError::io("list", &queues_dir))?;
        Ok(Ground { witness, account, catalog, rows, note, entries })
    }
}

/// Which of the entries are queues, and which are directories of somebody else's: those whose names no queue has, and those
/// without a segment, of which nobody `known` tells.
pub(super) fn queues(
    disk: &dyn Disk,
    dir: &Path,
    entries: &[DirEntry],
    known: &BTreeSet<String>,
) -> Result<(Vec<String>, Vec<PathBuf>), StoreError> {
    let (mut queues, mut strangers) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|entry| entry.is_dir) {
        let path = dir.join("queues").join(&entry.name);
        let Some(queue) = catalog::queue_of_dir(&entry.name) else {
            strangers.push(path);
            continue;
        };
        let is_queue = known.contains(&queue) || {
            let files = disk.list(&path).map_err(StoreError::io("list", &path))?;
            files.iter().any(|file| file.name.contains(".seg") || file.name.starts_with("new."))
        };
        if is_queue { queues.push(queue) } else { strangers.push(path) }
    }
    Ok((queues, strangers))
}

pub(super) fn create_dirs(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let mut missing = Vec::new();
    // One that is there may have been made by a process that died before it synced it.
    let mut unsure = dir.parent().into_iter().collect::<Vec<_>>();
    for ancestor in dir.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        match disk.list(ancestor) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) if ancestor == dir => return Err(StoreError::io("read", ancestor)(error)),
            _ => break,
        }
    }
    for path in missing.into_iter().rev() {
        disk.create_dir(path).map_err(StoreError::io("create the data directory", path))?;
        unsure.extend(path.parent());
    }
    for parent in unsure.into_iter().filter(|parent| !parent.as_os_str().is_empty()) {
        match disk.sync_dir(parent) {
            // What is above a mount point may not be ours to open, nor able to sync.
            Err(error) if CANNOT_SYNC.contains(&error.kind()) => {}
            synced => synced.map_err(StoreError::io("sync", parent))?,
        }
    }
    Ok(())
}

/// Takes the data directory for this process, until the guard is dropped.
pub fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Debug + Send + Sync>, StoreError> {
    let path = dir.join("LOCK");
    disk.lock(&path).map_err(|cause| match cause.kind() {
        io::ErrorKind::WouldBlock => StoreError::InUse { path: dir.to_owned(), pid: read_text(disk, &path) },
        _ => StoreError::Io { operation: "lock", path: path.clone(), cause },
    })
}

fn read_text(disk: &dyn Disk, path: &Path) -> String {
    let mut bytes = vec![0; 256];
    let read = disk.open(path).and_then(|file| file.read_at(&mut bytes, 0)).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
}
