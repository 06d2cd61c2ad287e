//! What people may do to a data directory that no process uses: check and mend all of it, and forget parts of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;

use crate::storage::backlog::Weight;
use crate::storage::catalog::{self, Catalog, CatalogError, Change, Row, SegmentRow, SledCatalog};
use crate::storage::disk::Disk;
use crate::storage::log::{Drive, Observer};
use crate::storage::salvage::{self, Salvaged};

use super::{OpenReport, Options, Store, StoreError};

/// A catalogue that vouches for no segment, so that recovery scans them all; it still knows what should be there.
struct Distrusted(SledCatalog);

impl Catalog for Distrusted {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        let mut rows = self.0.load()?;
        for (key, value) in rows.iter_mut().filter(|(key, _)| key.starts_with(b"s/")) {
            // A row that cannot be read is recovery's to report.
            if let Ok(row) = SegmentRow::decode(&value[..]) {
                debug_assert!(!key.is_empty());
                *value = SegmentRow { valid_end: 0, ..row }.encode_to_vec();
            }
        }
        Ok(rows)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError> {
        self.0.commit(changes)
    }
}

/// The dead letters, and the ring of what was malformed.
pub(in crate::storage) fn dead_letter_dirs(dir: &Path) -> Vec<PathBuf> {
    vec![dir.join("dlq"), dir.join("dlq/invalid")]
}

fn queue_dirs(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let queues_dir = dir.join("queues");
    match disk.list(&queues_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => {
            let entries = listed.map_err(StoreError::io("list", &queues_dir))?;
            Ok(entries.iter().filter(|entry| entry.is_dir).map(|entry| queues_dir.join(&entry.name)).collect())
        }
    }
}

/// Copies what the disk cannot read as a whole in these directories of segments.
fn salvage(disk: &dyn Disk, dir: &Path, segment_dirs: &[PathBuf]) -> Result<Vec<Salvaged>, StoreError> {
    let _lock = super::lock(disk, dir)?;
    super::format::check(disk, dir)?;
    let mut salvaged = Vec::new();
    for dir in segment_dirs {
        salvaged.extend(salvage::segments(disk, dir).map_err(StoreError::io("copy what can be read in", dir))?);
    }
    Ok(salvaged)
}

impl Store {
    /// Opens as a start does, but reads and checks every record, and reads around what the disk cannot read. Torn tails are cut off, files that cannot be read set
    /// aside, damage settled as lost, and a catalogue that cannot be used is rebuilt. Needs the lock.
    pub fn repair(
        disk: Arc<dyn Disk>,
        dir: &Path,
        observer: Arc<dyn Observer>,
    ) -> Result<(Store, OpenReport), StoreError> {
        let open = || {
            let open_catalog = Box::new(|path: &Path| {
                SledCatalog::open(path).map(|catalog| Box::new(Distrusted(catalog)) as Box<dyn Catalog>)
            });
            let (disk, observer) = (Arc::clone(&disk), Arc::clone(&observer));
            Store::open_with(disk, dir, &Options::default(), observer, open_catalog, Drive::Threads)
        };
        let mut salvaged = salvage(disk.as_ref(), dir, &dead_letter_dirs(dir))?;
        let (store, mut report) = match open() {
            // It has read everything that it could.
            Err(StoreError::Io { .. }) => {
                salvaged.extend(salvage(disk.as_ref(), dir, &queue_dirs(disk.as_ref(), dir)?)?);
                open()?
            }
            opened => opened?,
        };
        report.salvaged = salvaged;
        Ok((store, report))
    }

    /// Fails where the catalogue did not take what was written down: it would bring back what is forgotten.
    fn write_down_forgotten(&self) -> Result<(), StoreError> {
        self.checkpoint().map_err(StoreError::io("write down what is forgotten in", &self.dir))?;
        self.need_catalog()
    }

    fn need_catalog(&self) -> Result<(), StoreError> {
        if self.keeper.lock().catalog.is_some() {
            return Ok(());
        }
        let (operation, reason) = ("write", "it is not open for want of room".to_owned());
        let error = StoreError::from(CatalogError { operation, reason, is_full: true, is_locked: false });
        Err(error.without_room(&self.dir))
    }

    /// Removes a cursor; what it had not settled is returned, and is gone for it. None: there is no such cursor.
    pub fn forget_cursor(&self, queue: &str, cursor: &str) -> Result<Option<Weight>, StoreError> {
        let Some(log) = self.logs.lock().get(queue).cloned() else { return Ok(None) };
        self.need_catalog()?;
        let Some(forgotten) = log.forget_cursor(cursor) else { return Ok(None) };
        self.write_down_forgotten()?;
        Ok(Some(forgotten))
    }

    /// Removes a queue with its records and cursors; what it held is returned. None: there is no such queue.
    pub fn forget_queue(&self, queue: &str) -> Result<Option<Weight>, StoreError> {
        self.need_catalog()?;
        let Some(log) = self.logs.lock().remove(queue) else { return Ok(None) };
        log.close();
        let held = log.held();
        let allocated_bytes = log.status().allocated_bytes;
        // First the books, then the files: what a crash leaves behind is a queue without cursors, to be forgotten again.
        self.write_down_forgotten()?;
        let queues_dir = self.dir.join("queues");
        let dir = queues_dir.join(catalog::encode_name(queue));
        let remove = || -> io::Result<()> {
            for entry in self.disk.list(&dir)? {
                self.disk.remove(&dir.join(entry.name))?;
            }
            self.disk.sync_dir(&dir)?;
            self.disk.remove(&dir)?;
            self.disk.sync_dir(&queues_dir)
        };
        remove().map_err(StoreError::io("remove", &dir))?;
        self.shared.space.subtract(allocated_bytes);
        Ok(Some(held))
    }
}
