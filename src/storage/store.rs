//! The data directory: opened once per process, checkpointed by its keeper thread.

mod ballast;
mod error;
pub mod format;
mod keeper;
pub(super) mod mend;
mod opening;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::catalog::{self, Catalog, CatalogError, Contents, MetaRow, QueueContents, SledCatalog};
use super::cursor::StartAt;
use super::disk::{DirEntry, Disk};
use super::log::{Drive, Log, Observer, Pool, Shared, Signal};
use super::recovery::{self, QueueReport};
use super::salvage::Salvaged;
use super::space::Space;
use super::witness::{Account, QueueAccount};
use ballast::Ballast;
pub use error::StoreError;
use format::Format;
use keeper::{CATALOG_RETRY, CatalogFailure, Keeper};
pub use opening::lock;
use opening::{Ground, create_dirs};

/// The first pause between checkpoints is this much shorter than the interval; each is twice as long as the last.
const FIRST_PAUSE_DIVISOR: u32 = 16;
/// Queues of one process; each costs two threads and a few files.
const QUEUES_MAX: usize = 64;

/// How storage is to behave. The defaults are the product's.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cap on allocated bytes, without dead letters; None: ten GiB, or half of what is free or ours already.
    pub max_size_bytes: Option<u64>,
    /// None: [`Space::segment_bytes`].
    pub segment_bytes: Option<u64>,
    /// Recent records kept in memory, over all queues.
    pub tail_bytes_max: u64,
    pub checkpoint_interval: Duration,
    /// A catalogue that takes more on disk is written anew into a fresh directory.
    pub catalog_bytes_max: u64,
    /// A catalogue that failed is opened again no sooner than this.
    pub catalog_retry: Duration,
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
            catalog_bytes_max: 64 << 20,
            catalog_retry: CATALOG_RETRY,
            syncs_per_second_max: None,
        }
    }
}

/// What opening found.
#[derive(Debug, Default)]
pub struct OpenReport {
    pub queues: BTreeMap<String, QueueReport>,
    /// False when the catalogue was lost, behind the witness, or rebuilt.
    pub catalog_intact: bool,
    pub notes: Vec<String>,
    /// The `FORMAT` file was damaged, and written anew.
    pub format_was_damaged: bool,
    /// The catalogue tells of checkpoints, and there was no valid witness of them.
    pub witness_lost: bool,
    /// Directories among those of the queues that are none.
    pub strangers: Vec<PathBuf>,
    pub generation: u64,
    /// Segments that the disk could not read as a whole, and a repair copied.
    pub salvaged: Vec<Salvaged>,
}

pub type OpenCatalog = Box<dyn Fn(&Path) -> Result<Box<dyn Catalog>, CatalogError> + Send>;

type Logs = BTreeMap<String, Arc<Log>>;

/// An open data directory.
pub struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shared: Shared,
    intact: bool,
    logs: Arc<Mutex<Logs>>,
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
        format::check(disk.as_ref(), dir)?;
        let lock = lock(disk.as_ref(), dir)?;
        // Again, now that nobody else may be writing it.
        let found = format::check(disk.as_ref(), dir)?;
        let ground = ballast::with_its_room(disk.as_ref(), dir, |is_full| {
            Ground::lay(disk.as_ref(), dir, found, &open_catalog, is_full)
        })?;
        let Ground { witness, account, catalog, rows, note, entries } = ground;

        let mut report = OpenReport { format_was_damaged: found == Format::Damaged, ..OpenReport::default() };
        report.notes.extend(note);
        let (contents, errors) = Contents::from_rows(&rows);
        report.notes.extend(errors.iter().cloned());
        let witnessed = account.as_ref().map(Account::meta).unwrap_or_default();
        let behind =
            (contents.meta.generation, contents.meta.checkpoint) < (witnessed.generation, witnessed.checkpoint);
        let is_queue = |entry: &DirEntry| entry.is_dir && catalog::queue_of_dir(&entry.name).is_some();
        let never_written = contents.meta.generation == 0 && entries.iter().any(is_queue);
        report.witness_lost = account.is_none() && contents.meta.checkpoint > 0;
        report.catalog_intact = errors.is_empty() && !behind && !never_written && report.notes.is_empty();
        // One that was not opened was told of.
        if behind && catalog.is_some() {
            report.notes.push(format!(
                "the catalogue is older than the witness (checkpoint {} against {}): segments are scanned",
                contents.meta.checkpoint, witnessed.checkpoint
            ));
        }

        let space = Space::new(Arc::clone(&disk), dir.to_owned(), options.max_size_bytes)
            .map_err(StoreError::io("measure the file system of", dir))?;
        let segment_bytes = options.segment_bytes.unwrap_or_else(|| space.segment_bytes());
        let shared = Shared {
            disk: Arc::clone(&disk),
            space: Arc::new(space),
            observer,
            segment_bytes,
            tails: Arc::new(Pool::new(options.tail_bytes_max)),
            peers: Arc::default(),
            sync_interval_min: options
                .syncs_per_second_max
                .map_or(Duration::ZERO, |n| Duration::from_secs(1) / n.max(1)),
            drive,
            dirty: Arc::default(),
            pressure: Arc::default(),
        };
        let generation = contents.meta.generation.max(witnessed.generation) + 1;
        report.generation = generation;
        let space = Arc::clone(&shared.space);
        let ballast =
            Ballast::open(Arc::clone(&disk), dir, space).map_err(StoreError::io("open", &ballast::path(dir)))?;
        let keeper = Keeper {
            disk: Arc::clone(&disk),
            dir: dir.to_owned(),
            open_catalog,
            catalog_failed: catalog.is_none().then(CatalogFailure::for_want_of_room),
            catalog,
            catalog_bytes_max: options.catalog_bytes_max,
            catalog_retry: options.catalog_retry,
            compacted_bytes: 0,
            ballast,
            written: rows.into_iter().collect(),
            witness,
            is_behind: false,
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
        let mut names: BTreeSet<String> = contents.queues.keys().cloned().collect();
        names.extend(account.iter().flat_map(|account| account.queues.keys().cloned()));
        let (found, strangers) = opening::queues(store.disk.as_ref(), dir, &entries, &names)?;
        names.extend(found);
        report.strangers = strangers;
        let nothing = QueueContents::default();
        // A catalogue behind the witness may know segments under states that are no longer true; only its cursors count.
        let cursors_only: BTreeMap<String, QueueContents> = contents
            .queues
            .iter()
            .map(|(name, queue)| {
                let row = queue.row.clone();
                let (cursors, ledgers) = (queue.cursors.clone(), queue.ledgers.clone());
                (name.clone(), QueueContents { row, cursors, ledgers, segments: BTreeMap::new() })
            })
            .collect();
        let trusted = if behind { &cursors_only } else { &contents.queues };
        for name in names {
            let account = account.as_ref().and_then(|account| account.queues.get(&name));
            let known = trusted.get(&name).unwrap_or(&nothing);
            let report_of_queue = store.with_room(|| store.open_queue(&name, known, account))?;
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
                self.with_room(|| self.open_queue(name, &QueueContents::default(), None))?;
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

    /// Does it once more with the room of the ballast where the file system has none: a start must not need what a full
    /// disk has not got.
    pub fn with_room<T>(&self, work: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match work() {
            Err(error) if error.is_full() => {
                let released = self.keeper.lock().ballast.release();
                if !released.map_err(StoreError::io("release the ballast of", &self.dir))? {
                    return Err(error.without_room(&self.dir));
                }
                tracing::warn!(%error, "the file system is full: the ballast's room is used");
                work().map_err(|error| error.without_room(&self.dir))
            }
            done => done,
        }
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
        let retry = self.keeper.lock().catalog_retry;
        let work = move || {
            let mut again = keeper.lock().wants_to_wake().then_some(retry);
            let mut pause = interval / FIRST_PAUSE_DIVISOR;
            loop {
                let waiting = Instant::now();
                let has_changed = dirty.wait(again);
                if stopping.load(Ordering::Acquire) {
                    return;
                }
                // Others may have made room on the disk while nothing changes here.
                if !has_changed && keeper.lock().lacks_ballast_only() {
                    let mut keeper = keeper.lock();
                    keeper.restore_ballast(observer.as_ref());
                    again = keeper.wants_to_wake().then_some(retry);
                    continue;
                }
                // What was idle, or has just begun, may end as soon: its first checkpoints come quickly, so that a
                // process that dies young is not sent back to its beginning.
                if waiting.elapsed() > interval {
                    pause = interval / FIRST_PAUSE_DIVISOR;
                }
                // A failure was reported; it is tried again with the next change, or after a while.
                let _ = checkpoint(&keeper, &logs, observer.as_ref());
                again = keeper.lock().wants_to_wake().then_some(retry);
                std::thread::sleep(pause);
                pause = (pause * 2).min(interval);
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
        checkpoint(&self.keeper, &self.logs, self.shared.observer.as_ref())
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

fn checkpoint(keeper: &Mutex<Keeper>, logs: &Mutex<Logs>, observer: &dyn Observer) -> io::Result<()> {
    let mut keeper = keeper.lock();
    // Not before it is our turn: what an older copy lacks would be written out of the books. And no more than a copy:
    // who asks for the queues must not wait for the disk.
    let logs = logs.lock().clone();
    keeper.checkpoint(&logs, observer)
}
