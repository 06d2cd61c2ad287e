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
mod listing;
mod scan;
pub mod shelf;

use std::sync::Arc;

use bytes::Bytes;

use crate::otlp::{Encoding, Signal};
use crate::storage::dead_letters::{LetterError, NewLetter};
use crate::storage::{DeadLetterLog, Durable, Log, unix_now_ns};

pub use capture::{Capture, Captures};
pub use description::{Description, Origin, Reason};
pub use edit::{EditError, edit};
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
}

impl DeadLetters {
    pub fn new(shelf: Shelf, on_full: OnFull) -> DeadLetters {
        DeadLetters { shelf: Arc::new(shelf), on_full }
    }

    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// Keeps the letters, all or none; with [`OnFull::Drop`] those for which there is room.
    pub async fn park(&self, parcels: Vec<Parcel>) -> Result<Parked, LetterError> {
        let log = Arc::clone(self.shelf.parked());
        let on_full = self.on_full;
        let letters: Vec<NewLetter> = parcels.into_iter().map(new_letter).collect();
        let write = move || match on_full {
            OnFull::Block => log.append(letters).map(|(ids, durable)| (ids.into_iter().map(Some).collect(), durable)),
            OnFull::Drop => keep_what_fits(&log, letters),
        };
        let written = tokio::task::spawn_blocking(write).await;
        let cause = |error| LetterError::Io { operation: "write", cause: std::io::Error::other(error) };
        let (ids, durable) = written.map_err(cause)??;
        Ok(Parked { durable, ids })
    }
}

/// Halves what there is no room for as a whole, until a letter is given up alone.
fn keep_what_fits(log: &DeadLetterLog, letters: Vec<NewLetter>) -> Result<(Vec<Option<u64>>, Durable), LetterError> {
    let mut ids = Vec::with_capacity(letters.len());
    let mut durable = Log::durable_for_nothing();
    let mut why_dropped = None;
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
                why_dropped = Some(error);
            }
            Err(error) => {
                // The batch comes again, whole: what was kept of it would be there twice.
                let kept: Vec<u64> = ids.into_iter().flatten().collect();
                if let Err(error) = log.remove(&kept) {
                    tracing::warn!(%error, letters = kept.len(), "dead letters may be parked twice");
                }
                return Err(error);
            }
        }
    }
    if let Some(error) = why_dropped {
        let dropped = ids.iter().filter(|id| id.is_none()).count();
        tracing::error!(%error, dropped, "dead letters are dropped, as dead_letters.on_full says");
    }
    Ok((ids, durable))
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
