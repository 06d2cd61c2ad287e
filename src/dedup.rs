//! Seen before: a client's repetition is acknowledged and not stored again.
//!
//! ```text
//! receiver: marks ─▶ Gate::claim ─┬─ nobody had it ──▶ append ──▶ durable ──▶ seen, fingerprint to disk
//!                                 ├─ somebody else is at it ──▶ wait for the end of that claim, ask again
//!                                 └─ durable ──▶ acknowledged as a duplicate
//! ```
//! A key counts as seen only once its record is durable, and a duplicate is acknowledged only then. Sets are exact:
//! whole 128-bit keys, no filter. What has no identity is never a duplicate. Lost fingerprints cost duplicates only;
//! fingerprints without their record are ignored (`docs/dedup.md`, `docs/decisions/006-dedup.md`).
//!
//! | file | what |
//! |---|---|
//! | `keys` | what requests and spans are known by |
//! | `epochs`, `table`, `seen` | the keys of one queue: alive, durable, held |
//! | `gate` | what one queue says of an offer |
//! | `fingerprints`, `journal`, `restore` | fingerprints on disk, and what a restart makes of them |
//! | `clock` | time that never goes back |

pub mod clock;
pub mod epochs;
pub mod fingerprints;
pub mod gate;
pub mod journal;
pub mod keys;
pub mod restore;
pub mod seen;
pub mod table;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::otlp::Signal;
use crate::queue::Gate;
use crate::storage::log::Drive;
#[cfg(test)]
use crate::storage::mutant::{self, Mutant};
use crate::storage::{Disk, Log, RangeSet, Space};

use clock::Clock;
use gate::{Handle, QueueGate};
use journal::Journal;
use keys::Keys;
pub use keys::Match;
pub use restore::Restored;
use seen::{Seen, SeenFigures};

const DIR_NAME: &str = "fingerprints";

/// How long keys are known, and how much memory they may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub window: Duration,
    pub bytes_max: u64,
}

/// What one queue wants.
pub struct Wanted {
    pub log: Arc<Log>,
    pub signal: Signal,
    pub requests: Option<Bounds>,
    pub spans: Option<(Match, Bounds)>,
}

/// Where and how it works.
pub struct Ground {
    pub disk: Arc<dyn Disk>,
    pub space: Arc<Space>,
    pub data_dir: PathBuf,
    pub clock: Clock,
    pub drive: Drive,
}

/// The gates of one process and the fingerprints behind them.
pub struct Dedup {
    gates: BTreeMap<String, Arc<QueueGate>>,
    journal: Arc<Journal>,
    clock: Clock,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Figures of one queue on one level.
pub struct Figures<'a> {
    pub queue: &'a str,
    pub level: &'static str,
    pub seen: SeenFigures,
}

impl Dedup {
    /// Before the first offer. None when nobody wants it.
    pub fn open(ground: Ground, wanted: Vec<Wanted>) -> io::Result<Option<(Dedup, BTreeMap<String, Restored>)>> {
        let wanted: Vec<Wanted> =
            wanted.into_iter().filter(|queue| queue.requests.is_some() || queue.spans.is_some()).collect();
        let Ground { disk, space, data_dir, clock, drive } = ground;
        if wanted.is_empty() {
            // From now on nobody notes what is given up.
            forget_everything(disk.as_ref(), &data_dir)?;
            return Ok(None);
        }
        let dir = make_dir(disk.as_ref(), &data_dir)?;
        let (keys, is_fresh) = Keys::open(disk.as_ref(), &dir)?;
        if is_fresh && wanted.iter().any(|queue| queue.log.durable_end() > 0) {
            tracing::warn!(
                dir = %dir.display(),
                "no fingerprint of what came before counts: there is no valid secret, as after a purge without a process, or at first; \
                 what came before may come again"
            );
        }
        let bounds = || wanted.iter().flat_map(|queue| queue.requests.into_iter().chain(queue.spans.map(|(_, b)| b)));
        let bytes_max = bounds().map(|bounds| bounds.bytes_max).sum();
        let window_max = bounds().map(|bounds| bounds.window).max().unwrap_or_default();
        let limits = (bytes_max, window_max);
        let (journal, blocks) = Journal::open(disk, space, &dir, clock.clone(), limits, is_fresh)?;
        let is_wanted = |queue: &str| wanted.iter().any(|wanted| wanted.log.id() == queue);
        journal.forget_unwatched(&blocks, is_wanted);
        let (journal, keys) = (Arc::new(journal), Arc::new(keys));
        let mut gates = BTreeMap::new();
        let mut report = BTreeMap::new();
        for queue in wanted {
            // Keys of the whole window that has passed come first.
            let begin = |bounds: &Bounds| clock.now().saturating_sub(bounds.window);
            let set = |bounds: Bounds| Seen::new(bounds.bytes_max, bounds.window, begin(&bounds));
            let gate = QueueGate {
                queue: queue.log.id().to_owned(),
                incarnation: queue.log.incarnation(),
                signal: queue.signal,
                keys: Arc::clone(&keys),
                clock: clock.clone(),
                requests: queue.requests.map(set),
                spans: queue.spans.map(|(by, bounds)| (by, set(bounds))),
                journal: Arc::clone(&journal),
            };
            report.insert(gate.queue.clone(), restore::restore(&gate, &queue.log, &blocks, is_fresh)?);
            gates.insert(gate.queue.clone(), Arc::new(gate));
        }
        // What does not count must not come back with another restart.
        journal.write();
        let thread = match drive {
            Drive::Caller => None,
            Drive::Threads => {
                let journal = Arc::clone(&journal);
                Some(std::thread::Builder::new().name("fingerprints".to_owned()).spawn(move || journal.run())?)
            }
        };
        Ok(Some((Dedup { gates, journal, clock, thread: Mutex::new(thread) }, report)))
    }

    /// What stands before that queue.
    pub fn gate(&self, queue: &str) -> Option<Arc<dyn Gate>> {
        self.gates.get(queue).map(|gate| Arc::new(Handle(Arc::clone(gate))) as Arc<dyn Gate>)
    }

    /// These records are gone or given up: what they held may come again.
    pub fn forget(&self, queue: &str, sequences: Range<u64>) {
        self.forget_all(queue, &RangeSet::from_iter([sequences]));
    }

    pub fn forget_all(&self, queue: &str, sequences: &RangeSet) {
        #[cfg(test)]
        if mutant::is_on(Mutant::NothingForgotten) {
            return;
        }
        if let Some(gate) = self.gates.get(queue).filter(|_| !sequences.is_empty()) {
            restore::forget(gate, sequences);
            self.journal.forget(queue, gate.incarnation, sequences);
        }
    }

    pub fn figures(&self) -> Vec<Figures<'_>> {
        let now = self.clock.now();
        let mut figures = Vec::new();
        for (queue, gate) in &self.gates {
            let mut note = |level, seen: &Seen| figures.push(Figures { queue, level, seen: seen.figures(now) });
            if let Some(seen) = &gate.requests {
                note("request", seen);
            }
            if let Some((_, seen)) = &gate.spans {
                note("span", seen);
            }
        }
        figures
    }

    pub fn disk_bytes(&self) -> u64 {
        self.journal.bytes()
    }

    /// Writes and syncs what is pending. For [`Drive::Caller`].
    pub fn write(&self, and_sync: bool) {
        self.journal.write();
        if and_sync {
            self.journal.sync(true);
        }
    }

    pub fn close(&self) {
        self.journal.stop();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes fingerprints panicked");
        }
    }
}

impl Drop for Dedup {
    fn drop(&mut self) {
        self.close();
    }
}

/// Of a directory that no process has open: the next start believes no fingerprint, and makes none from records.
pub fn forget_everything(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    let dir = data_dir.join(DIR_NAME);
    match disk.remove(&dir.join(keys::SECRET_FILE)) {
        Ok(()) => disk.sync_dir(&dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_dir(disk: &dyn Disk, data_dir: &Path) -> io::Result<PathBuf> {
    let dir = data_dir.join(DIR_NAME);
    disk.create_dir(&dir)?;
    disk.sync_dir(data_dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests;
