//! The data directory: opened once per process, checkpointed by its keeper thread.

mod mend;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;

use super::catalog::{
    self, Catalog, CatalogError, Change, Contents, CursorRow, META_KEY, MetaRow, QueueContents, Row, SledCatalog,
};
use super::cursor::{PERSISTED_RANGES_MAX, StartAt};
use super::disk::Disk;
use super::log::{Drive, Log, Observer, QueueSnapshot, Shared, Signal};
use super::recovery::{self, QueueReport};
use super::space::Space;
use super::witness::{Account, QueueAccount, Witness};

/// The format of this data directory, as its `FORMAT` file says it.
const FORMAT: &str = "forebay data directory, format 1\n";
/// Queues of one process; each costs two threads and a few files.
const QUEUES_MAX: usize = 64;
const CANNOT_SYNC: [io::ErrorKind; 4] = [
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::ReadOnlyFilesystem,
    io::ErrorKind::InvalidInput,
    io::ErrorKind::Unsupported,
];
/// A catalogue that failed is opened again no sooner than this.
const CATALOG_RETRY: Duration = Duration::from_secs(5);

/// How storage is to behave. The defaults are the product's.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cap on allocated bytes; None: ten GiB or half of what is free.
    pub max_size_bytes: Option<u64>,
    /// None: a sixteenth of the cap, between 4 and 64 MiB.
    pub segment_bytes: Option<u64>,
    /// Recent records kept in memory, over all queues.
    pub tail_bytes_max: u64,
    pub checkpoint_interval: Duration,
    /// None: as many syncs as it takes.
    pub syncs_per_second_max: Option<u32>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_size_bytes: None,
            segment_bytes: None,
            tail_bytes_max: 32 << 20,
            checkpoint_interval: Duration::from_millis(250),
            syncs_per_second_max: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to {operation} {}: {cause}", path.display())]
    Io { operation: &'static str, path: PathBuf, cause: io::Error },
    #[error(
        "the data directory {} is in use by another process (pid {pid}); stop it, or give this one another --data-dir",
        path.display()
    )]
    InUse { path: PathBuf, pid: String },
    #[error(
        "{} has an unknown format ({found}); this version knows format 1. Use the version that wrote it, or an empty data directory",
        path.display()
    )]
    Format { path: PathBuf, found: String },
    #[error("a process may have at most {QUEUES_MAX} queues; the data directory and the configuration have more")]
    TooManyQueues,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl StoreError {
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |cause| StoreError::Io { operation, path, cause }
    }
}

/// What opening found.
#[derive(Debug, Default)]
pub struct OpenReport {
    pub queues: BTreeMap<String, QueueReport>,
    /// False when the catalogue was lost, behind the witness, or rebuilt.
    pub catalog_intact: bool,
    pub notes: Vec<String>,
    pub generation: u64,
}

pub type OpenCatalog = Box<dyn Fn(&Path) -> Result<Box<dyn Catalog>, CatalogError> + Send>;

struct Keeper {
    dir: PathBuf,
    open_catalog: OpenCatalog,
    catalog: Option<Box<dyn Catalog>>,
    catalog_failed_at: Option<Instant>,
    /// Rows as the catalogue has them.
    written: BTreeMap<Vec<u8>, Vec<u8>>,
    witness: Witness,
    meta: MetaRow,
}

/// An open data directory.
pub struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shared: Shared,
    intact: bool,
    logs: Arc<Mutex<BTreeMap<String, Arc<Log>>>>,
    keeper: Arc<Mutex<Keeper>>,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    _lock: Box<dyn Debug + Send + Sync>,
}

impl Store {
    /// Opens (or makes) the data directory with sled as its catalogue.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: &Options,
        observer: Arc<dyn Observer>,
    ) -> Result<(Store, OpenReport), StoreError> {
        let open_catalog: OpenCatalog =
            Box::new(|path| SledCatalog::open(path).map(|catalog| Box::new(catalog) as Box<dyn Catalog>));
        Store::open_with(disk, dir, options, observer, open_catalog, Drive::Threads)
    }

    pub fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: &Options,
        observer: Arc<dyn Observer>,
        open_catalog: OpenCatalog,
        drive: Drive,
    ) -> Result<(Store, OpenReport), StoreError> {
        create_dirs(disk.as_ref(), dir)?;
        check_format(disk.as_ref(), dir)?;
        let lock_path = dir.join("LOCK");
        let lock = disk.lock(&lock_path).map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock => {
                StoreError::InUse { path: dir.to_owned(), pid: read_text(disk.as_ref(), &lock_path) }
            }
            _ => StoreError::Io { operation: "lock", path: lock_path.clone(), cause },
        })?;
        write_format(disk.as_ref(), dir)?;

        let mut report = OpenReport::default();
        let (witness, account) =
            Witness::open(disk.as_ref(), dir).map_err(StoreError::io("open", &dir.join("witness")))?;
        let (catalog, rows) = open_or_rebuild(disk.as_ref(), dir, &open_catalog, &mut report)?;
        let (contents, errors) = Contents::from_rows(&rows);
        report.notes.extend(errors.iter().cloned());
        let witnessed = account.as_ref().map(Account::meta).unwrap_or_default();
        let queues_dir = dir.join("queues");
        disk.create_dir(&queues_dir).map_err(StoreError::io("create", &queues_dir))?;
        disk.sync_dir(dir).map_err(StoreError::io("sync", dir))?;
        let entries = disk.list(&queues_dir).map_err(StoreError::io("list", &queues_dir))?;
        let behind =
            (contents.meta.generation, contents.meta.checkpoint) < (witnessed.generation, witnessed.checkpoint);
        let never_written = contents.meta.generation == 0 && !entries.is_empty();
        report.catalog_intact = errors.is_empty() && !behind && !never_written && report.notes.is_empty();
        if behind {
            report.notes.push(format!(
                "the catalogue is older than the witness (checkpoint {} against {}): segments are scanned",
                contents.meta.checkpoint, witnessed.checkpoint
            ));
        }

        let space = Space::new(Arc::clone(&disk), dir.to_owned(), options.max_size_bytes)
            .map_err(StoreError::io("measure the file system of", dir))?;
        let segment_bytes =
            options.segment_bytes.unwrap_or_else(|| (space.max_bytes() / 16).clamp(4 << 20, 64 << 20) / 4096 * 4096);
        let shared = Shared {
            disk: Arc::clone(&disk),
            space: Arc::new(space),
            observer,
            segment_bytes,
            tail_bytes_max: options.tail_bytes_max,
            sync_interval_min: options
                .syncs_per_second_max
                .map_or(Duration::ZERO, |n| Duration::from_secs(1) / n.max(1)),
            drive,
            dirty: Arc::default(),
            pressure: Arc::default(),
        };
        let generation = contents.meta.generation.max(witnessed.generation) + 1;
        report.generation = generation;
        let keeper = Keeper {
            dir: dir.to_owned(),
            open_catalog,
            catalog: Some(catalog),
            catalog_failed_at: None,
            written: rows.into_iter().collect(),
            witness,
            meta: MetaRow { generation, checkpoint: contents.meta.checkpoint.max(witnessed.checkpoint) },
        };
        let store = Store {
            disk,
            dir: dir.to_owned(),
            shared,
            intact: report.catalog_intact,
            logs: Arc::default(),
            keeper: Arc::new(Mutex::new(keeper)),
            stopping: Arc::default(),
            thread: Mutex::new(None),
            _lock: lock,
        };
        // A queue that the catalogue or the witness knows counts even when its directory is gone.
        let mut names: std::collections::BTreeSet<String> =
            entries.iter().filter(|entry| entry.is_dir).filter_map(|entry| catalog::decode_name(&entry.name)).collect();
        names.extend(contents.queues.keys().cloned());
        names.extend(account.iter().flat_map(|account| account.queues.keys().cloned()));
        let nothing = QueueContents::default();
        // A catalogue behind the witness may know segments under states that are no longer true; only its cursors count.
        let cursors_only: BTreeMap<String, QueueContents> = contents
            .queues
            .iter()
            .map(|(name, queue)| {
                let row = queue.row.clone();
                (name.clone(), QueueContents { row, cursors: queue.cursors.clone(), segments: BTreeMap::new() })
            })
            .collect();
        let trusted = if behind { &cursors_only } else { &contents.queues };
        for name in names {
            let account = account.as_ref().and_then(|account| account.queues.get(&name));
            let report_of_queue = store.open_queue(&name, trusted.get(&name).unwrap_or(&nothing), account)?;
            report.queues.insert(name, report_of_queue);
        }
        // A failure was reported; a checkpoint comes with the next change.
        let _ = store.checkpoint();
        if drive == Drive::Threads {
            store.start_keeper(options.checkpoint_interval)?;
        }
        Ok((store, report))
    }

    fn open_queue(
        &self,
        name: &str,
        known: &QueueContents,
        account: Option<&QueueAccount>,
    ) -> Result<QueueReport, StoreError> {
        if self.logs.lock().len() >= QUEUES_MAX {
            return Err(StoreError::TooManyQueues);
        }
        let queues_dir = self.dir.join("queues");
        let dir = queues_dir.join(catalog::encode_name(name));
        self.disk.create_dir(&dir).map_err(StoreError::io("create", &dir))?;
        self.disk.sync_dir(&queues_dir).map_err(StoreError::io("sync", &queues_dir))?;
        let (recovered, report) = recovery::recover(&self.disk, &dir, known, account)?;
        for segment in recovered.segments.values() {
            self.shared.space.add(segment.allocated_bytes);
        }
        for lost in &report.lost {
            self.shared.observer.damaged(name, lost);
        }
        let log = Log::start(name.to_owned(), dir.clone(), self.shared.clone(), recovered)
            .map_err(StoreError::io("start the writer of", &dir))?;
        self.logs.lock().insert(name.to_owned(), Arc::new(log));
        Ok(report)
    }

    /// The queue of that id, made if it is new, with a cursor for each exporter named.
    pub fn queue(&self, name: &str, cursors: &[(String, StartAt)]) -> Result<Arc<Log>, StoreError> {
        let existing = self.logs.lock().get(name).cloned();
        let log = match existing {
            Some(log) => log,
            None => {
                self.open_queue(name, &QueueContents::default(), None)?;
                self.logs.lock().get(name).cloned().ok_or(StoreError::TooManyQueues)?
            }
        };
        let mut is_new = false;
        for (cursor, start) in cursors {
            if !log.has_cursor(cursor) {
                is_new = true;
                let born = recovery::birth_of_cursor(*start, self.intact, log.oldest_sequence(), log.durable_end());
                log.ensure_cursor(cursor, born.low());
            }
        }
        if is_new {
            // Before the first record: after a crash a cursor that nobody wrote down would be born again, at an end
            // behind records that were acknowledged.
            self.checkpoint().map_err(StoreError::io("write down the new cursors in", &self.dir))?;
        }
        Ok(log)
    }

    /// Every queue that exists, also those without a pipeline.
    pub fn queues(&self) -> Vec<Arc<Log>> {
        self.logs.lock().values().cloned().collect()
    }

    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn space(&self) -> &Arc<Space> {
        &self.shared.space
    }

    /// Raised when a queue needs room that is not there.
    pub fn pressure(&self) -> &Arc<Signal> {
        &self.shared.pressure
    }

    pub fn segment_bytes(&self) -> u64 {
        self.shared.segment_bytes
    }

    fn start_keeper(&self, interval: Duration) -> Result<(), StoreError> {
        let (keeper, logs) = (Arc::clone(&self.keeper), Arc::clone(&self.logs));
        let (dirty, stopping) = (Arc::clone(&self.shared.dirty), Arc::clone(&self.stopping));
        let observer = Arc::clone(&self.shared.observer);
        let work = move || {
            loop {
                dirty.wait(None);
                if stopping.load(Ordering::Acquire) {
                    return;
                }
                // A failure was reported; whatever changes next raises the flag again.
                let _ = keeper.lock().checkpoint(&logs.lock().clone(), observer.as_ref());
                std::thread::sleep(interval);
            }
        };
        let thread = std::thread::Builder::new()
            .name("log-keeper".to_owned())
            .spawn(work)
            .map_err(StoreError::io("start the keeper of", &self.dir))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Writes down now what the keeper would write down soon. Fails when the witness could not be written: then nothing
    /// new is durable for certain, and nothing was reclaimed.
    pub fn checkpoint(&self) -> io::Result<()> {
        self.keeper.lock().checkpoint(&self.logs.lock().clone(), self.shared.observer.as_ref())
    }

    /// Answers what is pending, checkpoints and ends all threads.
    pub fn close(&self) {
        for log in self.queues() {
            log.close();
        }
        self.stopping.store(true, Ordering::Release);
        self.shared.dirty.raise();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper thread of the storage panicked");
        }
        // A failure was reported, and costs redelivery only.
        let _ = self.checkpoint();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.thread.lock().is_some() {
            self.close();
        }
    }
}

impl Keeper {
    /// Catalogue, then witness, and only then the segments that nobody needs any more.
    fn checkpoint(&mut self, logs: &BTreeMap<String, Arc<Log>>, observer: &dyn Observer) -> io::Result<()> {
        self.meta.checkpoint += 1;
        let snapshots: BTreeMap<&String, QueueSnapshot> =
            logs.iter().map(|(name, log)| (name, log.snapshot())).collect();
        if let Err(error) = self.write_catalog(&snapshots) {
            observer.failed("", "write the catalogue for", &io::Error::other(error));
            // sled stays poisoned after an error; it is opened afresh. Until then the witness alone authorises.
            self.catalog = None;
            self.catalog_failed_at = Some(Instant::now());
        }
        let written = match self.witness.write(account(self.meta, &snapshots)) {
            Ok(written) => written,
            Err(error) => {
                observer.failed("", "write the witness of", &error);
                return Err(error);
            }
        };
        for (name, account) in &written.queues {
            let Some(log) = logs.get(name) else { continue };
            // As written down: memory may know of more settled ranges than a row holds.
            let cursors = account.cursors.iter().map(|(name, row)| (name.clone(), row.cursor())).collect();
            match log.reclaim(&cursors) {
                // Its rows go with the next checkpoint.
                Ok(_) => {}
                Err(error) => observer.failed(name, "reclaim a segment of", &error),
            }
        }
        Ok(())
    }

    fn write_catalog(&mut self, snapshots: &BTreeMap<&String, QueueSnapshot>) -> Result<(), CatalogError> {
        if self.catalog.is_none() && self.catalog_failed_at.is_none_or(|at| at.elapsed() > CATALOG_RETRY) {
            let mut catalog = (self.open_catalog)(&self.dir.join("catalog"))?;
            self.written = catalog.load()?.into_iter().collect();
            self.catalog = Some(catalog);
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
        self.catalog_failed_at = None;
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
        for (name, cursor) in &snapshot.cursors {
            let row = CursorRow::new(cursor, PERSISTED_RANGES_MAX);
            rows.insert(catalog::cursor_key(queue, name), row.encode_to_vec());
        }
    }
    rows
}

fn account(meta: MetaRow, snapshots: &BTreeMap<&String, QueueSnapshot>) -> Account {
    let queues = snapshots
        .iter()
        .map(|(queue, snapshot)| {
            let cursors = snapshot
                .cursors
                .iter()
                .map(|(name, cursor)| (name.clone(), CursorRow::new(cursor, PERSISTED_RANGES_MAX)))
                .collect();
            ((*queue).clone(), QueueAccount { row: Some(snapshot.row.clone()), cursors })
        })
        .collect();
    Account { meta: Some(meta), queues }
}

fn open_or_rebuild(
    disk: &dyn Disk,
    dir: &Path,
    open_catalog: &OpenCatalog,
    report: &mut OpenReport,
) -> Result<(Box<dyn Catalog>, Vec<Row>), StoreError> {
    let path = dir.join("catalog");
    let open = || {
        let mut catalog = open_catalog(&path)?;
        let rows = catalog.load()?;
        Ok::<_, CatalogError>((catalog, rows))
    };
    match open() {
        Ok(opened) => Ok(opened),
        Err(error) => {
            let aside = (0..)
                .map(|n| dir.join(format!("catalog.damaged.{n}")))
                .find(|aside| disk.list(aside).is_err())
                .unwrap_or_else(|| dir.join("catalog.damaged"));
            report.notes.push(format!("{error}; it was set aside as {} and is rebuilt", aside.display()));
            disk.rename(&path, &aside).map_err(StoreError::io("set aside", &path))?;
            disk.sync_dir(dir).map_err(StoreError::io("sync", dir))?;
            Ok(open()?)
        }
    }
}

fn create_dirs(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
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

fn read_text(disk: &dyn Disk, path: &Path) -> String {
    let mut bytes = vec![0; 256];
    let read = disk.open(path).and_then(|file| file.read_at(&mut bytes, 0)).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
}

pub(super) fn check_format(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("FORMAT");
    let entries = disk.list(dir).map_err(StoreError::io("read", dir))?;
    if !entries.iter().any(|entry| entry.name == "FORMAT") {
        return Ok(());
    }
    let mut bytes = vec![0; 256];
    let read = disk.open(&path).and_then(|file| file.read_at(&mut bytes, 0)).map_err(StoreError::io("read", &path))?;
    if &bytes[..read] == FORMAT.as_bytes() {
        return Ok(());
    }
    Err(StoreError::Format { path, found: String::from_utf8_lossy(&bytes[..read]).trim().to_owned() })
}

fn write_format(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("FORMAT");
    let entries = disk.list(dir).map_err(StoreError::io("read", dir))?;
    if entries.iter().any(|entry| entry.name == "FORMAT") {
        return Ok(());
    }
    let temporary = dir.join("FORMAT.new");
    if entries.iter().any(|entry| entry.name == "FORMAT.new") {
        disk.remove(&temporary).map_err(StoreError::io("remove", &temporary))?;
    }
    let write = || {
        let file = disk.create(&temporary, 0)?;
        file.write_all_at(&mut [IoSlice::new(FORMAT.as_bytes())], 0)?;
        file.sync_data()?;
        disk.rename(&temporary, &path)?;
        disk.sync_dir(dir)
    };
    write().map_err(StoreError::io("write", &path))
}
