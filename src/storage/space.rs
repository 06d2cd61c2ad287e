//! What storage may occupy: a cap on allocated bytes and a floor of free space on the file system.
//!
//! The cap counts everything in the data directory but dead letters and the ring of what was malformed: those have bounds
//! of their own, and what was parked to make room must not take that room (docs/decisions/009). The floor guards all.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::backlog::{Tally, Weight};
use super::disk::Disk;
use super::held;

/// The share of the file system that is left to others, and the most that share may come to.
pub const FREE_SHARE_PERCENT: u64 = 15;
pub const FREE_FLOOR_BYTES_MAX: u64 = 4 << 30;
pub const DEFAULT_MAX_SIZE_BYTES: u64 = 10 << 30;
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Where even eight of those do not fit.
const SEGMENT_BYTES_LEAST: u64 = 256 << 10;
/// How old a reading of the file system's free space may be.
const READING_AGE_MAX: Duration = Duration::from_millis(100);

/// Why there is no room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error(
        "the queue is at its cap: {allocated_bytes} of {max_bytes} bytes are allocated, and {wanted_bytes} more, in whole \
         segments, do not fit{holder}"
    )]
    Cap { allocated_bytes: u64, max_bytes: u64, wanted_bytes: u64, holder: Holder },
    #[error(
        "the file system of {path} has {available_bytes} bytes free, and {floor_bytes} must stay free: {wanted_bytes} more, \
         in whole segments, do not fit; the queue takes {allocated_bytes} bytes{holder}"
    )]
    FileSystem {
        path: String,
        available_bytes: u64,
        floor_bytes: u64,
        wanted_bytes: u64,
        allocated_bytes: u64,
        holder: Holder,
    },
    #[error(
        "the sending queue of exporter \"{exporter}\" in queue \"{queue}\" is full: {waiting} of {size} {unit} wait \
         (sending_queue.queue_size)"
    )]
    Backlog { exporter: String, queue: String, waiting: u64, size: u64, unit: &'static str },
    #[error("storage failed and is being retried: {0}")]
    Failed(String),
    #[error("the queue is closed")]
    Closed,
}

/// Who keeps records in the room that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Holder {
    /// Not looked for.
    #[default]
    Unknown,
    Nobody,
    /// Not even one segment fits.
    Never,
    Exporter(Box<Holding>),
}

/// An exporter that waits for its records, or for its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub exporter: String,
    pub queue: String,
    pub records_behind: u64,
    /// At the cap it gives its records up, or over.
    pub gives_way: bool,
}

impl Holder {
    fn gives_way(&self) -> bool {
        matches!(self, Holder::Exporter(holding) if holding.gives_way)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Unknown => Ok(()),
            Holder::Nobody => f.write_str(", held by no exporter: in use, or back with the next checkpoint"),
            Holder::Never => {
                f.write_str(", and never will: it takes a higher forebay.queue.max_size, or a larger file system")
            }
            Holder::Exporter(holding) => {
                let Holding { exporter, queue, records_behind, .. } = holding.as_ref();
                write!(f, ", held by exporter \"{exporter}\" in queue \"{queue}\", {records_behind} records behind")
            }
        }
    }
}

impl Full {
    fn held_by(mut self, find: impl FnOnce() -> Holder) -> Full {
        if let Full::FileSystem { holder, .. } = &mut self {
            *holder = find();
        }
        self
    }

    /// Whether the room comes back by itself, whatever destinations do.
    pub fn is_brief(&self) -> bool {
        match self {
            Full::Cap { holder, .. } => *holder == Holder::Nobody || holder.gives_way(),
            Full::FileSystem { holder, .. } => holder.gives_way(),
            Full::Backlog { .. } | Full::Failed(_) | Full::Closed => false,
        }
    }
}

/// Process-wide accounting of allocated bytes, without those of dead letters.
#[derive(Debug)]
pub struct Space {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    max_bytes: u64,
    floor_bytes: u64,
    /// Of the file system, empty, without what must stay free.
    usable_bytes: u64,
    kind: u64,
    allocated_bytes: AtomicU64,
    /// The most that a request was refused since [`Space::take_wanted`].
    wanted_bytes: AtomicU64,
    reading: Mutex<Option<(Instant, u64)>>,
}

impl Space {
    /// `max_bytes` None: ten GiB, or half of what is free or ours already if that is less. Without what is ours a backlog
    /// would shrink the cap at each start.
    pub fn new(disk: Arc<dyn Disk>, path: PathBuf, max_bytes: Option<u64>) -> std::io::Result<Space> {
        let space = disk.space(&path)?;
        let floor_bytes = (space.total_bytes / 100 * FREE_SHARE_PERCENT).min(FREE_FLOOR_BYTES_MAX);
        let max_bytes = match max_bytes {
            Some(max_bytes) => max_bytes,
            None => {
                let usable_bytes = space.available_bytes.saturating_add(held::bytes(disk.as_ref(), &path)?);
                (usable_bytes / 2).min(DEFAULT_MAX_SIZE_BYTES)
            }
        };
        Ok(Space {
            disk,
            path,
            max_bytes,
            floor_bytes,
            usable_bytes: space.total_bytes - floor_bytes,
            kind: space.kind,
            allocated_bytes: AtomicU64::new(0),
            wanted_bytes: AtomicU64::new(0),
            reading: Mutex::new(None),
        })
    }

    /// Type number of the file system, as `statfs` gives it.
    pub fn kind(&self) -> u64 {
        self.kind
    }

    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// What the queues may come to at the most: the cap, or all that the file system has for them.
    pub fn reachable_bytes(&self) -> u64 {
        self.max_bytes.min(self.usable_bytes)
    }

    /// What must stay free on the file system.
    pub fn floor_bytes(&self) -> u64 {
        self.floor_bytes
    }

    /// How large segments are where nobody says it: a sixteenth of what there is, so that space comes back in small parts, and
    /// several fit wherever anything does.
    pub fn segment_bytes(&self) -> u64 {
        let reachable = self.reachable_bytes();
        let least = (reachable / 8).clamp(SEGMENT_BYTES_LEAST, SEGMENT_BYTES_MIN);
        (reachable / 16).clamp(least, SEGMENT_BYTES_MAX) / 4096 * 4096
    }

    /// How many bytes may be allocated now.
    pub fn room_bytes(&self) -> u64 {
        let below_cap = self.max_bytes.saturating_sub(self.allocated_bytes());
        below_cap.min(self.available_bytes().saturating_sub(self.floor_bytes))
    }

    pub fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    pub fn add(&self, bytes: u64) {
        self.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn subtract(&self, bytes: u64) {
        let before = self.allocated_bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more bytes given back than were taken");
        self.came_back(bytes);
    }

    /// Bytes that do not count against the cap are free again.
    pub fn came_back(&self, bytes: u64) {
        // A reading from before would have more given up than is needed.
        if let Some((_, available_bytes)) = &mut *self.reading.lock() {
            *available_bytes = available_bytes.saturating_add(bytes);
        }
    }

    /// Whether `bytes` more may be allocated now. `holder` finds who holds the space.
    pub fn check(&self, bytes: u64, holder: impl FnOnce() -> Holder) -> Result<(), Full> {
        let allocated_bytes = self.allocated_bytes();
        if allocated_bytes.saturating_add(bytes) > self.max_bytes {
            let (max_bytes, wanted_bytes) = (self.max_bytes, bytes);
            return Err(Full::Cap { allocated_bytes, max_bytes, wanted_bytes, holder: holder() });
        }
        self.check_floor(bytes).map_err(|full| full.held_by(holder))
    }

    /// The same for what has a cap of its own: only the file system's free space counts.
    pub fn check_floor(&self, bytes: u64) -> Result<(), Full> {
        let available_bytes = self.available_bytes();
        if available_bytes < self.floor_bytes.saturating_add(bytes) {
            return Err(Full::FileSystem {
                path: self.path.display().to_string(),
                available_bytes,
                floor_bytes: self.floor_bytes,
                wanted_bytes: bytes,
                allocated_bytes: self.allocated_bytes(),
                holder: Holder::default(),
            });
        }
        Ok(())
    }

    /// Notes what was refused, for who makes room.
    pub fn want(&self, bytes: u64) {
        self.wanted_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    pub fn take_wanted(&self) -> u64 {
        self.wanted_bytes.swap(0, Ordering::Relaxed)
    }

    /// How many bytes have to come back before `bytes` more may be allocated.
    pub fn shortfall(&self, bytes: u64) -> u64 {
        let over_cap = self.allocated_bytes().saturating_add(bytes).saturating_sub(self.max_bytes);
        over_cap.max(self.shortfall_of_disk(bytes))
    }

    /// The same of the file system alone, on which dead letters take room too.
    pub fn shortfall_of_disk(&self, bytes: u64) -> u64 {
        self.floor_bytes.saturating_add(bytes).saturating_sub(self.available_bytes())
    }

    fn available_bytes(&self) -> u64 {
        let mut reading = self.reading.lock();
        if let Some((at, available_bytes)) = *reading
            && at.elapsed() < READING_AGE_MAX
        {
            return available_bytes;
        }
        // A file system that cannot be asked is treated as full: refusing is safe, and the next reading may succeed.
        let available_bytes = self.disk.space(&self.path).map_or(0, |space| space.available_bytes);
        *reading = Some((Instant::now(), available_bytes));
        available_bytes
    }
}

/// Room promised to one record, on disk and in every exporter's backlog; given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    pub(super) pending_bytes: Arc<AtomicU64>,
    pub(super) weight: Weight,
    /// Backlogs that count the record already.
    pub(super) tallies: Vec<Arc<Tally>>,
}

impl Reservation {
    /// The record is durable: the backlogs keep it until it is settled.
    pub(super) fn keep(mut self) {
        self.tallies.clear();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.pending_bytes.fetch_sub(self.weight.bytes, Ordering::AcqRel);
        for tally in &self.tallies {
            tally.subtract(&self.weight);
        }
    }
}
