//! The dead-letter queue of this process: opened with the store, its figures and its ages watched.

use std::sync::Arc;

use crate::config::Plan;
use crate::dlq::{self, DeadLetters, Description, OnFull, Parcel, Reason};
use crate::otlp::{Encoding, Signal, resource};
use crate::queue::{Park, Undo, metadata};
use crate::storage::dead_letters::{AtCap, Options};
use crate::storage::{Record, Store};

use super::Error;

/// Opens it; what is damaged is said once, here.
pub fn open(plan: &Plan, store: &Store) -> Result<Arc<DeadLetters>, Error> {
    let options = Options { max_bytes: plan.dead_letters.max_size_bytes, at_cap: AtCap::Refuse };
    let (log, opened) = store.dead_letters("dlq", options)?;
    for damage in &opened.damage {
        tracing::error!(%damage, "dead letters are damaged and lost; others are kept");
    }
    let status = log.status();
    if status.letters > 0 {
        tracing::warn!(letters = status.letters, items = status.items, "dead letters wait; see `forebay dlq list`");
    }
    let on_full = if plan.dead_letters.drops { OnFull::Drop } else { OnFull::Block };
    Ok(Arc::new(DeadLetters::new(Arc::new(log), on_full)))
}

/// Makes dead letters of what an exporter gives up at the cap (`on_full: park`).
pub fn park_at_cap(letters: &Arc<DeadLetters>, queue: &str, exporter: &str) -> Park {
    let (letters, queue, exporter) = (Arc::clone(letters), queue.to_owned(), exporter.to_owned());
    Box::new(move |records| {
        let parcels = records.iter().map(|record| parcel(record, &queue, &exporter)).collect::<Result<Vec<_>, _>>()?;
        let log = Arc::clone(letters.log());
        let new = parcels.into_iter().map(dlq::new_letter).collect();
        let (ids, _durable) = log.append(new).map_err(std::io::Error::other)?;
        let undo: Undo = Box::new(move || {
            // They are on their way after all: as letters they would be sent twice.
            if let Err(error) = log.remove(&ids) {
                tracing::warn!(%error, "what is sent after all stays a dead letter too");
            }
        });
        Ok(undo)
    })
}

fn parcel(record: &Record, queue: &str, exporter: &str) -> std::io::Result<Parcel> {
    let unknown = || std::io::Error::new(std::io::ErrorKind::InvalidData, "a record of another version");
    let signal = Signal::from_u8(record.signal).ok_or_else(unknown)?;
    let encoding = Encoding::from_u8(record.encoding).ok_or_else(unknown)?;
    let message = "the queue was at its cap, and the exporter's on_full is park";
    let mut description = Description::new(Reason::QueueFull, message, record.received_unix_ns);
    queue.clone_into(&mut description.queue);
    description.exporter = Some(exporter.to_owned());
    description.set_metadata(&metadata::decode(&record.metadata));
    if encoding == Encoding::Identity {
        description.set_service_name(resource::service_name(&record.payload));
    }
    let (items, raw_len) = (u64::from(record.items), u64::from(record.raw_len));
    Ok(Parcel { signal, encoding, items, raw_len, description, payload: record.payload.clone() })
}
