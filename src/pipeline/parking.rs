//! Dead letters of one destination: what is written beside them.

use std::sync::Arc;

use bytes::Bytes;

use crate::dlq::{DeadLetters, Description, Parcel, Reason};
use crate::exporters::Failure;
use crate::otlp::{Encoding, Metadata, Signal, resource};
use crate::storage::dead_letters::LetterError;
use crate::storage::{Durable, Fate, Fates, unix_now_ns};

use super::Destination;

/// Where a destination's dead letters go.
#[derive(Clone, Debug)]
pub struct Parking {
    pub letters: Arc<DeadLetters>,
    /// Whether a copy is kept of what was taken only in part.
    pub keeps_partial: bool,
}

/// What all letters of one batch have in common.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub signal: Signal,
    pub queue: String,
    /// The one record of that queue that the letter is of.
    pub sequence: Option<u64>,
    pub metadata: Metadata,
    pub received_unix_ns: u64,
    pub first_attempt_unix_ms: u64,
}

pub(super) fn unix_now_ms() -> u64 {
    unix_now_ns() / 1_000_000
}

impl Envelope {
    /// A letter of one message, `payload`, that is not compressed.
    pub fn letter(
        &self,
        exporter: &str,
        reason: Reason,
        failure: &Failure,
        attempts: u32,
        items: u64,
        payload: Bytes,
    ) -> Parcel {
        let mut description = Description::new(reason, &failure.message, self.received_unix_ns);
        description.queue.clone_from(&self.queue);
        description.sequence = self.sequence;
        description.exporter = Some(exporter.to_owned());
        description.status = failure.status.map(|status| status.to_string());
        description.attempts = attempts;
        description.first_attempt_unix_ms = Some(self.first_attempt_unix_ms);
        description.set_service_name(resource::service_name(&payload));
        description.set_metadata(&self.metadata);
        let raw_len = payload.len() as u64;
        Parcel { signal: self.signal, encoding: Encoding::Identity, items, raw_len, description, payload }
    }
}

impl Destination {
    /// Parks the letters and counts them; what became of their items. None: there is no dead-letter queue, or it cannot
    /// take them, which is logged.
    pub(super) async fn park(&self, parcels: Vec<Parcel>) -> Option<(Durable, Fates)> {
        let parking = self.parking.as_ref()?;
        let counts: Vec<_> =
            parcels.iter().map(|parcel| (parcel.signal, parcel.items, parcel.description.reason)).collect();
        let parked = match parking.letters.park(parcels).await {
            Ok(parked) => parked,
            Err(error) => {
                log_failure(&self.id, &error);
                return None;
            }
        };
        let mut fates = Fates::default();
        for ((signal, items, reason), id) in counts.into_iter().zip(&parked.ids) {
            fates.add(if id.is_some() { Fate::DeadLettered } else { Fate::DeadLettersFull }, items);
            match id {
                None => self.meter.dropped(&self.id, signal, items, "dead_letters_full"),
                // A copy: the items themselves were counted as what became of them.
                Some(_) if reason == Reason::Ambiguous => {}
                Some(_) => self.meter.dead_lettered(&self.id, signal, items, reason.name()),
            }
        }
        let mut kept = parked.ids.iter().flatten();
        if let Some(first) = kept.next() {
            tracing::warn!(
                exporter = %self.id, letters = kept.count() + 1, first = format!("{first:016x}"),
                "dead letters were parked; see `forebay dlq list`"
            );
        }
        Some((parked.durable, fates))
    }
}

fn log_failure(exporter: &str, error: &LetterError) {
    tracing::error!(%exporter, %error, "dead letters cannot be parked; their records are held and tried again");
}
