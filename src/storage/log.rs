//! One queue's segment log: append on its writer thread, read what is durable, settle, reclaim.

pub(super) mod backlog;
mod cache;
mod forget;
mod holder;
mod intake;
mod overflow;
mod prepare;
mod read;
mod reclaim;
mod shared;
mod signal;
mod status;
mod tail;
mod writer;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::backlog::{Tally, Weight};
use super::cursor::Cursor;
use super::disk::DiskFile;
use super::ledger::Ledger;
use super::record;
use super::segment::Identity;
use super::space::Reservation;
use super::{Durable, RangeSet};

use tail::Tail;

pub use holder::Peers;
pub use overflow::{Droppable, Enough};
pub use read::{Chunk, Lost, Position};
pub use reclaim::QueueSnapshot;
pub use shared::{Drive, Observer, Shared};
pub use signal::Signal;
pub use status::{CursorStatus, Status};
pub use tail::Pool;

/// A record on its way in. `guard` is dropped when the log no longer holds the payload in memory.
pub struct NewRecord {
    pub signal: u8,
    pub encoding: u8,
    pub items: u32,
    pub raw_len: u32,
    pub received_unix_ns: u64,
    pub metadata: Bytes,
    pub payload: Bytes,
    pub guard: Arc<dyn Any + Send + Sync>,
}

impl NewRecord {
    /// Bytes that this record will take.
    pub fn stored_len(&self) -> u64 {
        record::record_len(self.metadata.len(), self.payload.len())
    }

    pub fn weight(&self) -> Weight {
        Weight { records: 1, items: u64::from(self.items), bytes: self.stored_len() }
    }
}

/// Why a record did not become durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the disk is full: {0}")]
    Full(String),
    #[error("storage failed: {0}")]
    Failed(String),
    #[error("the record is too large: {len} bytes, at most {max} fit")]
    TooLarge { len: u64, max: u64 },
    #[error("the queue was closed before the record was written")]
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentState {
    Active,
    Sealed,
    /// A sync failed: nothing is written here any more, and what was durable before stays readable.
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub identity: Identity,
    pub file: Arc<dyn DiskFile>,
    pub state: SegmentState,
    pub allocated_bytes: u64,
    /// End of the last durable record.
    pub valid_end: u64,
    pub first: u64,
    /// Behind the sequence published before `first`.
    pub previous_end: u64,
    /// Last durable sequence; meaningful when `records` > 0.
    pub last: u64,
    pub records: u64,
    pub items: u64,
    /// Now and then a (sequence, offset), so that reading from the middle need not start at the front.
    pub index: Vec<(u64, u64)>,
    /// It was let go from the page cache.
    pub is_uncached: bool,
    /// Offsets of damage already reported.
    pub damage_seen: RangeSet,
}

pub(super) struct State {
    pub segments: BTreeMap<u64, Segment>,
    pub active: Option<u64>,
    pub next_sequence: u64,
    pub next_segment_id: u64,
    /// Every record below is synced (or was never written); readers stay below.
    pub durable_end: u64,
    /// The last sequence written, for the next record's `previous`.
    pub previous: u64,
    /// Sequences known to be missing since a restart: left behind by a torn group, or reported as lost.
    pub holes: RangeSet,
    pub tail: Tail,
    pub cursors: BTreeMap<String, Cursor>,
    /// What is durable and not settled, for each cursor.
    pub backlogs: BTreeMap<String, Weight>,
    pub ledgers: BTreeMap<String, Ledger>,
    /// Damage was found since the start.
    pub is_damaged: bool,
    pub incarnation: u64,
    /// Segments made ready by the helper thread.
    pub prepared: Option<(Identity, Arc<dyn DiskFile>)>,
    /// A reclaimed segment kept to be recycled, under its spare name.
    pub spare: Option<(PathBuf, Arc<dyn DiskFile>)>,
    pub last_append: Option<Instant>,
}

struct Pending {
    record: NewRecord,
    reservation: Reservation,
    answer: oneshot::Sender<Result<Durable, AppendError>>,
}

#[derive(Default)]
struct Inbox {
    pending: VecDeque<Pending>,
    closed: bool,
}

pub(super) struct Inner {
    pub id: String,
    pub dir: PathBuf,
    pub shared: Shared,
    pub state: Mutex<State>,
    inbox: Mutex<Inbox>,
    inbox_ready: Condvar,
    /// Bytes promised to records that are not written yet.
    pending_bytes: Arc<AtomicU64>,
    /// Bytes left in the active segment and in the one prepared behind it.
    room_bytes: AtomicU64,
    missing_at_start: RangeSet,
    /// One for each cursor.
    tallies: RwLock<Vec<Arc<Tally>>>,
    durable_end: watch::Sender<u64>,
    /// Why intake is refused, after failures in a row.
    failure: Mutex<Option<String>>,
    prepare_wanted: Signal,
    /// One reader at a time tells of damage; taken before the state's lock.
    reporting: Mutex<()>,
    /// One segment is made at a time, so that ids rise in the order in which segments are written.
    maker: Mutex<()>,
    stopping: AtomicBool,
}

/// A queue's log. Cheap to share; closed by [`Log::close`].
pub struct Log {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("queue", &self.inner.id).finish_non_exhaustive()
    }
}

/// What recovery hands over.
pub(super) struct Recovered {
    pub segments: BTreeMap<u64, Segment>,
    pub next_sequence: u64,
    pub next_segment_id: u64,
    pub previous: u64,
    pub holes: RangeSet,
    pub cursors: BTreeMap<String, Cursor>,
    pub incarnation: u64,
    pub backlogs: BTreeMap<String, Weight>,
    pub ledgers: BTreeMap<String, Ledger>,
}

impl Log {
    pub(super) fn start(id: String, dir: PathBuf, shared: Shared, recovered: Recovered) -> std::io::Result<Log> {
        let durable_end = recovered.next_sequence;
        let tallies = recovered.backlogs.iter().map(|(name, backlog)| Arc::new(Tally::new(name, backlog))).collect();
        let missing_at_start = recovered.holes.clone();
        let tail = Tail::new(&shared.tails);
        let inner = Arc::new(Inner {
            id,
            dir,
            shared,
            state: Mutex::new(State {
                segments: recovered.segments,
                active: None,
                next_sequence: recovered.next_sequence,
                next_segment_id: recovered.next_segment_id,
                durable_end,
                previous: recovered.previous,
                holes: recovered.holes,
                incarnation: recovered.incarnation,
                tail,
                cursors: recovered.cursors,
                backlogs: recovered.backlogs,
                ledgers: recovered.ledgers,
                is_damaged: false,
                prepared: None,
                spare: None,
                last_append: None,
            }),
            inbox: Mutex::default(),
            inbox_ready: Condvar::new(),
            pending_bytes: Arc::default(),
            room_bytes: AtomicU64::new(0),
            missing_at_start,
            tallies: RwLock::new(tallies),
            durable_end: watch::channel(durable_end).0,
            failure: Mutex::new(None),
            prepare_wanted: Signal::default(),
            reporting: Mutex::new(()),
            maker: Mutex::new(()),
            stopping: AtomicBool::new(false),
        });
        inner.shared.peers.join(&inner);
        let spawn = |name: &str, work: fn(&Inner), inner: Arc<Inner>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&inner))
        };
        let threads = match inner.shared.drive {
            Drive::Threads => vec![
                spawn("log-writer", writer::run, Arc::clone(&inner))?,
                spawn("log-prepare", prepare::run, Arc::clone(&inner))?,
            ],
            Drive::Caller => Vec::new(),
        };
        Ok(Log { inner, threads: Mutex::new(threads) })
    }

    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// One step of the writer: writes and answers one group of what is pending. For [`Drive::Caller`].
    pub fn write_pending(&self) {
        let group = writer::take_group(&mut self.inner.inbox.lock());
        writer::step(&self.inner, group, &mut writer::Pace::default());
    }

    /// One step of the helper: makes a segment ahead if one is wanted and has room. For [`Drive::Caller`].
    pub fn prepare(&self) {
        prepare::step(&self.inner);
    }

    /// What the writer does when nothing came for long. For [`Drive::Caller`].
    pub fn rest(&self) {
        writer::rest(&self.inner);
    }

    #[cfg(test)]
    pub fn has_spare(&self) -> bool {
        self.inner.state.lock().spare.is_some()
    }

    /// The receipt for a request with nothing to store.
    pub fn durable_for_nothing() -> Durable {
        Durable { sequence: None, _sealed: () }
    }

    /// The receipt for a request whose every item is synced already: whoever asks for it has seen their receipts.
    pub fn durable_already() -> Durable {
        Durable { sequence: None, _sealed: () }
    }

    /// This life of the queue: another one has other records under the same sequences.
    pub fn incarnation(&self) -> u64 {
        self.inner.state.lock().incarnation
    }

    /// Sequences below the end that recovery knew to be missing, lost or never acknowledged.
    pub fn missing_at_start(&self) -> &RangeSet {
        &self.inner.missing_at_start
    }

    /// Follows the end of what is durable: the sequence that the next record will have at the least.
    pub fn watch_durable_end(&self) -> watch::Receiver<u64> {
        self.inner.durable_end.subscribe()
    }

    pub fn durable_end(&self) -> u64 {
        *self.inner.durable_end.borrow()
    }

    /// Adds a cursor where none of that name is.
    pub fn ensure_cursor(&self, name: &str, at: u64) {
        let mut state = self.inner.state.lock();
        if !state.cursors.contains_key(name) {
            let cursor = Cursor::at(at);
            let backlog = backlog::estimate(&state.segments, &cursor, &(at..state.durable_end));
            self.inner.tallies.write().push(Arc::new(Tally::new(name, &backlog)));
            state.ledgers.insert(name.to_owned(), Ledger::at_birth(&backlog));
            state.backlogs.insert(name.to_owned(), backlog);
            state.cursors.insert(name.to_owned(), cursor);
            self.inner.shared.dirty.raise();
        }
    }

    pub fn has_cursor(&self, name: &str) -> bool {
        self.inner.state.lock().cursors.contains_key(name)
    }

    /// A copy of where the cursor stands.
    pub fn cursor(&self, name: &str) -> Option<Cursor> {
        self.inner.state.lock().cursors.get(name).cloned()
    }

    /// The oldest sequence still retained.
    pub fn oldest_sequence(&self) -> u64 {
        let state = self.inner.state.lock();
        state.segments.values().find(|segment| segment.records > 0).map_or(state.durable_end, |segment| segment.first)
    }

    /// Writes and answers what is pending, then ends the threads. Later appends are refused.
    pub fn close(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.inbox.lock().closed = true;
        self.inner.inbox_ready.notify_all();
        self.inner.prepare_wanted.raise();
        if self.inner.shared.drive == Drive::Caller {
            while !self.inner.inbox.lock().pending.is_empty() {
                self.write_pending();
            }
            writer::end(&self.inner);
            prepare::end(&self.inner);
        }
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!(queue = %self.inner.id, "a storage thread panicked");
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Without threads nothing outlives the caller, who closes when that is meant.
        if self.inner.shared.drive == Drive::Threads {
            self.close();
        }
    }
}
