//! The checkpoint: catalogue, then witness, then what nobody needs any more goes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;

use super::ballast::Ballast;
use super::{OpenCatalog, StoreError};
use crate::storage::catalog::{self, Catalog, CatalogError, Change, CursorRow, META_KEY, MetaRow, Row};
use crate::storage::cursor::PERSISTED_RANGES_MAX;
use crate::storage::disk::Disk;
use crate::storage::log::{Log, Observer, QueueSnapshot};
use crate::storage::witness::{Account, QueueAccount, Witness};

/// A catalogue that failed is opened again no sooner than this, and a checkpoint that failed repeated after it.
pub(super) const CATALOG_RETRY: Duration = Duration::from_secs(5);
/// A catalogue that was just compacted is not compacted again before it has grown this many times.
const COMPACT_GROWTH: u64 = 4;

pub(super) struct Keeper {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub open_catalog: OpenCatalog,
    pub catalog: Option<Box<dyn Catalog>>,
    pub catalog_failed: Option<CatalogFailure>,
    /// How large the catalogue may grow on disk before it is written anew; see `compacted_bytes`.
    pub catalog_bytes_max: u64,
    pub catalog_retry: Duration,
    /// Its size after it was written anew.
    pub compacted_bytes: u64,
    /// Rows as the catalogue has them.
    pub written: BTreeMap<Vec<u8>, Vec<u8>>,
    pub witness: Witness,
    pub ballast: Ballast,
    pub meta: MetaRow,
    /// The last checkpoint could not do all that it had to, and is repeated also if nothing changes: at the cap nothing
    /// may change before a segment goes.
    pub is_behind: bool,
}

/// Why there is no catalogue at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct CatalogFailure {
    at: Instant,
    was_full: bool,
}

impl CatalogFailure {
    pub fn for_want_of_room() -> CatalogFailure {
        CatalogFailure { at: Instant::now(), was_full: true }
    }
}

impl Keeper {
    /// Catalogue, then witness, and only then the segments that nobody needs any more.
    pub fn checkpoint(&mut self, logs: &BTreeMap<String, Arc<Log>>, observer: &dyn Observer) -> io::Result<()> {
        self.meta.checkpoint += 1;
        self.is_behind = true;
        let snapshots: BTreeMap<&String, QueueSnapshot> =
            logs.iter().map(|(name, log)| (name, log.snapshot())).collect();
        if let Err(error) = self.write_catalog(&snapshots, observer) {
            // sled stays poisoned after an error; it is opened afresh. Until then the witness alone authorises.
            self.catalog = None;
            self.catalog_failed = Some(CatalogFailure { at: Instant::now(), was_full: error.is_full });
            observer.failed("", "write the catalogue for", &io::Error::other(error));
        }
        let written = match self.witness.write(account(self.meta, &snapshots)) {
            Ok(written) => written,
            Err(error) => {
                observer.failed("", "write the witness of", &error);
                return Err(error);
            }
        };
        self.is_behind = false;
        for (name, account) in &written.queues {
            let Some(log) = logs.get(name) else { continue };
            // As written down: memory may know of more settled ranges than a row holds.
            let cursors = account.cursors.iter().map(|(name, row)| (name.clone(), row.cursor())).collect();
            match log.reclaim(&cursors) {
                // Its rows go with the next checkpoint.
                Ok(_) => {}
                Err(error) => {
                    self.is_behind = true;
                    observer.failed(name, "reclaim a segment of", &error);
                }
            }
            log.uncache();
        }
        Ok(())
    }

    fn write_catalog(
        &mut self,
        snapshots: &BTreeMap<&String, QueueSnapshot>,
        observer: &dyn Observer,
    ) -> Result<(), CatalogError> {
        if self.catalog.is_none() && self.catalog_failed.is_none_or(|failed| failed.at.elapsed() >= self.catalog_retry)
        {
            self.reopen(observer)?;
        }
        let Some(catalog) = &mut self.catalog else { return Ok(()) };
        let rows = rows(self.meta, snapshots);
        let mut changes: Vec<Change> = Vec::new();
        for key in self.written.keys().filter(|key| !rows.contains_key(*key)) {
            changes.push((key.clone(), None));
        }
        for (key, value) in &rows {
            if self.written.get(key) != Some(value) {
                changes.push((key.clone(), Some(value.clone())));
            }
        }
        catalog.commit(&changes)?;
        self.written = rows;
        self.catalog_failed = None;
        let size_bytes = catalog.size_bytes();
        if size_bytes > self.catalog_bytes_max.max(COMPACT_GROWTH * self.compacted_bytes) {
            let rows: Vec<Row> = self.written.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            catalog.compact(&rows)?;
            self.compacted_bytes = catalog.size_bytes();
            tracing::info!(size_bytes, compacted_bytes = self.compacted_bytes, "the catalogue was written anew");
        }
        self.restore_ballast(observer);
        Ok(())
    }

    /// Whether there is something to be done though nothing changes: others may have made room.
    pub fn wants_to_wake(&self) -> bool {
        self.is_behind || self.catalog.is_none() || self.ballast.is_missing()
    }

    pub fn lacks_ballast_only(&self) -> bool {
        !self.is_behind && self.catalog.is_some()
    }

    /// Takes the ballast's room again where there is some.
    pub fn restore_ballast(&mut self, observer: &dyn Observer) {
        if let Err(error) = self.ballast.restore() {
            observer.failed("", "restore the ballast of", &error);
        }
    }

    /// Opens the catalogue again, with the ballast's room if it had run out of it.
    fn reopen(&mut self, observer: &dyn Observer) -> Result<(), CatalogError> {
        if self.catalog_failed.is_some_and(|failed| failed.was_full)
            && let Err(error) = self.ballast.release()
        {
            observer.failed("", "release the ballast of", &error);
        }
        let opened = open_or_rebuild(self.disk.as_ref(), &self.dir, &self.open_catalog);
        let (catalog, rows, note) = opened.map_err(|error| match error {
            StoreError::Catalog(error) => error,
            error => CatalogError {
                operation: "open",
                reason: error.to_string(),
                is_full: error.is_full(),
                is_locked: false,
            },
        })?;
        if let Some(note) = note {
            tracing::warn!(%note, "the catalogue is written anew from what is known");
        }
        self.written = rows.into_iter().collect();
        self.catalog = Some(catalog);
        Ok(())
    }
}

fn rows(meta: MetaRow, snapshots: &BTreeMap<&String, QueueSnapshot>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut rows = BTreeMap::new();
    rows.insert(META_KEY.to_vec(), meta.encode_to_vec());
    for (queue, snapshot) in snapshots {
        rows.insert(catalog::queue_key(queue), snapshot.row.encode_to_vec());
        for segment in &snapshot.segments {
            rows.insert(catalog::segment_key(queue, segment.id), segment.encode_to_vec());
        }
        for (name, row) in cursor_rows(snapshot) {
            rows.insert(catalog::cursor_key(queue, &name), row.encode_to_vec());
        }
    }
    rows
}

fn cursor_rows(snapshot: &QueueSnapshot) -> impl Iterator<Item = (String, CursorRow)> + '_ {
    snapshot.cursors.iter().map(|(name, cursor)| {
        let ledger = snapshot.ledgers.get(name).copied().unwrap_or_default();
        (name.clone(), CursorRow::new(cursor, &ledger, PERSISTED_RANGES_MAX))
    })
}

fn account(meta: MetaRow, snapshots: &BTreeMap<&String, QueueSnapshot>) -> Account {
    let queues = snapshots
        .iter()
        .map(|(queue, snapshot)| {
            let cursors = cursor_rows(snapshot).collect();
            ((*queue).clone(), QueueAccount { row: Some(snapshot.row.clone()), cursors })
        })
        .collect();
    Account { meta: Some(meta), queues }
}

/// A catalogue, its rows, and what there is to tell about it.
pub(super) type Opened = (Box<dyn Catalog>, Vec<Row>, Option<String>);

/// The catalogue with its rows; one that cannot be opened is set aside, which the note tells, and begun anew.
pub(super) fn open_or_rebuild(disk: &dyn Disk, dir: &Path, open_catalog: &OpenCatalog) -> Result<Opened, StoreError> {
    let path = dir.join("catalog");
    let open = || {
        let mut catalog = open_catalog(&path)?;
        let rows = catalog.load()?;
        Ok::<_, CatalogError>((catalog, rows))
    };
    match open() {
        Ok((catalog, rows)) => Ok((catalog, rows, None)),
        // Without room it would fail in a fresh directory too; it may well be whole.
        Err(error) if error.is_full => Err(error.into()),
        // Somebody is at work in it: the last to be called damage. Our own lock is on a file that was removed.
        Err(error) if error.is_locked => {
            let pid = "unknown: its LOCK file was removed".to_owned();
            Err(StoreError::InUse { path: dir.to_owned(), pid })
        }
        Err(error) => {
            let before = set_aside(disk, dir).map_err(StoreError::io("list", dir))?;
            let aside = aside_path(dir, before.last().map_or(0, |newest| newest + 1));
            let note = format!("{error}; it was set aside as {} and is rebuilt", aside.display());
            disk.rename(&path, &aside).map_err(StoreError::io("set aside", &path))?;
            disk.sync_dir(dir).map_err(StoreError::io("sync", dir))?;
            for n in before.iter().rev().skip(SET_ASIDE_MAX - 1) {
                // For whoever wants to look; that one more stays harms nobody.
                if let Err(error) = remove_all(disk, &aside_path(dir, *n)) {
                    tracing::warn!(%error, "failed to remove a catalogue that was set aside long ago");
                }
            }
            let (catalog, rows) = open()?;
            Ok((catalog, rows, Some(note)))
        }
    }
}

/// Catalogues set aside that are kept, the newest.
const SET_ASIDE_MAX: usize = 2;
const SET_ASIDE_PREFIX: &str = "catalog.damaged.";

fn aside_path(dir: &Path, n: u64) -> PathBuf {
    dir.join(format!("{SET_ASIDE_PREFIX}{n}"))
}

/// Their numbers, ascending.
fn set_aside(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u64>> {
    let entries = disk.list(dir)?;
    let mut numbers: Vec<u64> =
        entries.iter().filter_map(|entry| entry.name.strip_prefix(SET_ASIDE_PREFIX)?.parse().ok()).collect();
    // So many there never were.
    numbers.retain(|n| *n < u64::MAX / 2);
    numbers.sort_unstable();
    Ok(numbers)
}

/// A directory of sled's, which has files and directories of files.
fn remove_all(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for entry in disk.list(dir)? {
        let path = dir.join(entry.name);
        if entry.is_dir {
            for file in disk.list(&path)? {
                disk.remove(&path.join(file.name))?;
            }
        }
        disk.remove(&path)?;
    }
    disk.remove(dir)
}
