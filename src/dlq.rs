//! Dead letters: what a destination refuses for good, with the reason, until a person decides.
//!
//! ```text
//! pipeline ─▶ park ══▶ storage::dead_letters: append · fdatasync ═▶ Parked ─▶ Settled
//! receivers ─▶ Captures ─▶ a ring of its own (malformed payloads, best effort)
//! forebay dlq, HTTP API ─▶ list · show · export · edit · replay · purge
//! ```

pub mod capture;
mod description;
mod edit;
pub mod expiry;
pub mod given_up;
mod listing;
mod scan;
pub mod shelf;

use std::sync::Arc;

use bytes::Bytes;

use crate::otlp::{Encoding, Signal};
use crate::storage::dead_letters::{LetterError, NewLetter};
use crate::storage::{Durable, unix_now_ns};

pub use capture::{Capture, Captures};
pub use description::{Description, Origin, Reason};
pub use edit::{EditError, edit};
pub use given_up::{Records, SeenBefore};
pub use listing::{
    BASE64_KEY, Entry, Filter, Listed, Note, format_id, list, parse_id, payload_json, payload_protobuf, show,
};
pub use shelf::Shelf;

/// What gives way when the dead-letter queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnFull {
    /// The batch is held in its queue until there is room.
    #[default]
    Block,
    /// The letter is given up, and counted as dropped.
    Drop,
}

/// A letter on its way into the queue.
#[derive(Clone, Debug)]
pub struct Parcel {
    pub signal: Signal,
    pub encoding: Encoding,
    pub items: u64,
    /// Length of the payload when inflated.
    pub raw_len: u64,
    pub description: Description,
    pub payload: Bytes,
}

/// Proof that letters are on disk, or were given up because the configuration says so.
#[derive(Debug)]
#[must_use]
pub struct Parked {
    pub durable: Durable,
    pub ids: Vec<u64>,
    /// The queue was full, and [`OnFull::Drop`] gave the letters up.
    pub dropped: bool,
}

/// The dead-letter queue of a process.
#[derive(Debug)]
pub struct DeadLetters {
    shelf: Arc<Shelf>,
    on_full: OnFull,
    memory: SeenBefore,
}

impl DeadLetters {
    pub fn new(shelf: Shelf, on_full: OnFull) -> DeadLetters {
        DeadLetters { shelf: Arc::new(shelf), on_full, memory: SeenBefore::none() }
    }

    /// Who is told of what ends undelivered.
    pub fn remembered_by(self, memory: SeenBefore) -> DeadLetters {
        DeadLetters { memory, ..self }
    }

    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// Keeps the letters, all or none.
    pub async fn park(&self, parcels: Vec<Parcel>) -> Result<Parked, LetterError> {
        let log = Arc::clone(self.shelf.parked());
        let mut records = Records::default();
        parcels.iter().for_each(|parcel| records.add(&parcel.description));
        let letters: Vec<NewLetter> = parcels.into_iter().map(new_letter).collect();
        let written = tokio::task::spawn_blocking(move || log.append(letters)).await;
        let cause = |error| LetterError::Io { operation: "write", cause: std::io::Error::other(error) };
        match written.map_err(cause)? {
            Ok((ids, durable)) => Ok(Parked { durable, ids, dropped: false }),
            Err(error) if error.is_full() && self.on_full == OnFull::Drop => {
                let memory = self.memory.clone();
                tokio::task::spawn_blocking(move || memory.forget(&records)).await.map_err(cause)??;
                tracing::error!(%error, "dead letters are dropped, as dead_letters.on_full says");
                Ok(Parked { durable: crate::storage::Log::durable_for_nothing(), ids: Vec::new(), dropped: true })
            }
            Err(error) => Err(error),
        }
    }

    /// Ends letters for good, undelivered; returns how many there were. Reads and writes the disk.
    pub fn purge(&self, ids: &[u64]) -> Result<usize, LetterError> {
        let mut records = Records::default();
        for letter in ids.iter().filter_map(|id| self.shelf.located(*id)) {
            records.add_letter(&letter)?;
        }
        self.memory.forget(&records)?;
        self.shelf.remove(ids)
    }
}

/// As the log keeps it.
pub fn new_letter(parcel: Parcel) -> NewLetter {
    NewLetter {
        signal: parcel.signal as u8,
        encoding: parcel.encoding as u8,
        items: u32::try_from(parcel.items).unwrap_or(u32::MAX),
        raw_len: u32::try_from(parcel.raw_len).unwrap_or(u32::MAX),
        parked_unix_ns: unix_now_ns(),
        description: parcel.description.to_bytes(),
        payload: parcel.payload,
    }
}
