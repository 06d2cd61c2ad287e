//! The segment log, its catalogue, and recovery. Returns outcomes; knows no metrics.
//!
//! ```text
//! data directory
//!   LOCK  FORMAT  witness  admin.sock (the running process's, made by `admin`)
//!   fingerprints/                 what was seen before (`dedup`); losing it costs duplicates
//!   catalog/                      sled: segment rows, cursor rows, generation; rebuildable
//!   queues/<queue id>/<id>.seg    the source of truth: records, synced before they are acknowledged
//!   dlq/<id>.seg                  dead letters, their tombstones and notes; dlq/invalid/ what was malformed at the door
//!   dlq.seals                     what each of their segments holds, so that what is lost is missed; rebuildable
//!
//! segment                         two 4096-byte header pages, alike, then records, each on an 8-byte boundary
//!   header page   magic · version · segment id · nonce · sequence floor · CRC
//!   record        72-byte header · metadata · payload · CRC32C over all of it and the segment's nonce
//! ```
//!
//! Invariants (numbers as in the design's segment log; each has a test of its name in `storage/tests.rs`):
//!
//! 1. Nobody reads a record before its sync returned; sequences and segment ids are never used twice.
//! 2. A segment goes only after the cursors that passed it are durable in catalogue and witness.
//! 3. A segment goes when every cursor has settled all of it, even while an older one is pinned.
//! 4. A new exporter starts at the end only when the catalogue is known to be intact.
//! 5. Damage below the durable end is reported as loss, above it truncated as a torn tail.
//! 6. A failed sync is final for its segment.
//! 7. Space is refused before writing, not found out by failing.
//! 8. A request for several queues is written to all of them or to none.
//! 9. An unknown format refuses to start before anything is written.
//! 10. Wall-clock jumps never make anything disappear.

pub mod backlog;
pub mod catalog;
mod clock;
#[cfg(test)]
pub mod counting;
pub mod cursor;
pub mod dead_letters;
pub mod disk;
mod held;
pub mod ledger;
pub mod log;
#[cfg(test)]
pub mod mutant;
pub mod ranges;
pub mod read_only;
pub mod record;
pub mod recovery;
pub mod salvage;
pub mod segment;
#[cfg(test)]
pub mod simulated;
pub mod space;
pub mod store;
pub mod survey;
pub mod witness;

pub use backlog::{Limit, Weight};
pub use clock::unix_now_ns;
pub use cursor::{Cursor, StartAt};
pub use dead_letters::DeadLetterLog;
pub use disk::{Disk, DiskFile, RealDisk};
pub use ledger::{Fate, Fates, Ledger};
pub use log::{AppendError, Log, NewRecord};
pub use ranges::RangeSet;
pub use record::Record;
pub use space::{Full, Reservation, Space};
pub use store::{OpenCatalog, Options, Store, StoreError};

/// Proof that a record's bytes were synced (front door). Only the log makes one, after the sync returned Ok.
///
/// ```compile_fail
/// let forged = forebay::storage::Durable { sequence: None, _sealed: () };
/// ```
#[derive(Debug)]
#[must_use]
pub struct Durable {
    sequence: Option<u64>,
    _sealed: (),
}

impl Durable {
    /// The record's; None when there was nothing to write.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }
}

#[cfg(test)]
mod tests;
