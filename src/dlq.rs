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
mod twins;

use std::sync::Arc;

use bytes::Bytes;

use crate::otlp::{Encoding, Signal};
use crate::storage::dead_letters::{LetterError, NewLetter};
use crate::storage::{DeadLetterLog, Durable, Log, unix_now_ns};

pub use capture::{Capture, Captures};
pub use description::{Description, Origin, Reason, cut};
pub use edit::{Edit, EditError, edit, unknown_fields};
pub use given_up::{Records, SeenBefore};
pub use listing::{
    BASE64_KEY, Entry, Filter, Listed, Note, PAGE_MAX, format_id, is_exporter, list, name_on_disk, parse_id,
    payload_json, payload_protobuf, show,
};
pub use shelf::Shelf;
use twins::Twins;

/// What gives way when the dead-letter queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnFull {
    /// The batch is held in its queue until there is room.
    #[default]
    Block,
    /// What does not fit is given up, and counted as dropped.
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
    /// One for each letter, in their order; None: there was no room for it, and [`OnFull::Drop`] gave it up.
    pub ids: Vec<Option<u64>>,
}

/// The dead-letter queue of a process.
#[derive(Debug)]
pub struct DeadLetters {
    shelf: Arc<Shelf>,
    on_full: OnFull,
    memory: SeenBefore,
    twins: Arc<Twins>,
}

impl DeadLetters {
    pub fn new(shelf: Shelf, on_full: OnFull) -> DeadLetters {
        DeadLetters { shelf: Arc::new(shelf), on_full, memory: SeenBefore::none(), twins: Arc::default() }
    }

    /// Who is told of what ends undelivered.
    pub fn remembered_by(self, memory: SeenBefore) -> DeadLetters {
        DeadLetters { memory, ..self }
    }

    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// Keeps the letters, all or none; with [`OnFull::Drop`] those for which there is room.
    pub async fn park(&self, parcels: Vec<Parcel>) -> Result<Parked, LetterError> {
        let (shelf, twins) = (Arc::clone(&self.shelf), Arc::clone(&self.twins));
        let on_full = self.on_full;
        let memory = self.memory.clone();
        let write = move || {
            let found = twins.find(&shelf, &parcels);
            let descriptions: Vec<Description> = parcels.iter().map(|parcel| parcel.description.clone()).collect();
            let fresh = parcels.into_iter().zip(&found).filter(|(_, twin)| twin.is_none()).map(|(parcel, _)| parcel);
            let (records, letters): (Vec<Records>, Vec<NewLetter>) =
                fresh.map(|parcel| (Records::of(&parcel.description), new_letter(parcel))).unzip();
            let log = shelf.parked();
            let (ids, durable) = match on_full {
                _ if letters.is_empty() => (Vec::new(), Log::durable_for_nothing()),
                OnFull::Block => {
                    let (ids, durable) = log.append(letters)?;
                    (ids.into_iter().map(Some).collect(), durable)
                }
                OnFull::Drop => keep_what_fits(log, letters, &records, &memory)?,
            };
            twins.forget(descriptions.iter());
            let mut ids = ids.into_iter();
            let ids = found.into_iter().map(|twin| twin.or_else(|| ids.next().flatten())).collect();
            Ok(Parked { durable, ids })
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|error| LetterError::Io { operation: "write", cause: std::io::Error::other(error) })?
    }

    /// The same for records that are taken over at once; how to undo it. Reads and writes the disk.
    pub fn take_over(&self, parcels: Vec<Parcel>) -> Result<impl FnOnce() + use<>, LetterError> {
        let found = self.twins.find(&self.shelf, &parcels);
        let fresh = parcels.into_iter().zip(&found).filter(|(_, twin)| twin.is_none());
        let letters: Vec<NewLetter> = fresh.map(|(parcel, _)| new_letter(parcel)).collect();
        let log = Arc::clone(self.shelf.parked());
        let mut ids: Vec<u64> = found.into_iter().flatten().collect();
        if !letters.is_empty() {
            let (new, _durable) = log.append(letters)?;
            ids.extend(new);
        }
        Ok(move || {
            // They are on their way after all: as letters they would be sent twice.
            if let Err(error) = log.remove(&ids) {
                tracing::warn!(%error, "what is sent after all stays a dead letter too");
            }
        })
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

/// One for each letter, in their order; None: there is no room for it.
type Places = Vec<Option<u64>>;

/// What has no room is forgotten by `memory` before it is given up. `records`: of each letter.
fn keep_what_fits(
    log: &DeadLetterLog,
    letters: Vec<NewLetter>,
    records: &[Records],
    memory: &SeenBefore,
) -> Result<(Places, Durable), LetterError> {
    let mut ids = Vec::with_capacity(letters.len());
    let kept = fill(log, letters, &mut ids).and_then(|(durable, full)| {
        if let Some(error) = full {
            let mut dropped = Records::default();
            ids.iter().zip(records).filter(|(id, _)| id.is_none()).for_each(|(_, records)| dropped.extend(records));
            memory.forget(&dropped)?;
            let count = ids.iter().filter(|id| id.is_none()).count();
            tracing::error!(%error, dropped = count, "dead letters are dropped, as dead_letters.on_full says");
        }
        Ok(durable)
    });
    match kept {
        Ok(durable) => Ok((ids, durable)),
        Err(error) => {
            // The batch comes again, whole: what was kept of it would be there twice.
            let kept: Vec<u64> = ids.into_iter().flatten().collect();
            if let Err(error) = log.remove(&kept) {
                tracing::warn!(%error, letters = kept.len(), "dead letters may be parked twice");
            }
            Err(error)
        }
    }
}

/// Halves what there is no room for as a whole, until one letter has none alone; why that was.
fn fill(
    log: &DeadLetterLog,
    letters: Vec<NewLetter>,
    ids: &mut Places,
) -> Result<(Durable, Option<LetterError>), LetterError> {
    let mut durable = Log::durable_for_nothing();
    let mut full = None;
    let mut parts = vec![letters];
    while let Some(mut part) = parts.pop() {
        // The bytes are shared, not copied.
        match log.append(part.clone()) {
            Ok((kept, synced)) => {
                ids.extend(kept.into_iter().map(Some));
                durable = synced;
            }
            Err(error) if error.is_full() && part.len() > 1 => {
                let behind = part.split_off(part.len() / 2);
                parts.extend([behind, part]);
            }
            Err(error) if error.is_full() => {
                ids.push(None);
                full = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((durable, full))
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
