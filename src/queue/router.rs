//! The front door: one request into every queue that wants it, all or none.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::otlp::Signal;
use crate::storage::{AppendError, Full, Log, NewRecord, Weight};

use super::{Accepted, Intake, Offer, Refused, RefusedReason, metadata};

/// When a client may come back after a full queue, and after a failed disk.
pub const RETRY_AFTER_FULL: Duration = Duration::from_secs(5);
pub const RETRY_AFTER_STORAGE: Duration = Duration::from_secs(10);
pub const RETRY_AFTER_STOPPING: Duration = Duration::from_secs(1);

/// The queues that one receiver feeds, by signal.
#[derive(Clone, Default)]
pub struct Router {
    queues: [Vec<Arc<Log>>; 3],
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("queues", &self.queues).finish()
    }
}

impl Router {
    pub fn new() -> Router {
        Router::default()
    }

    pub fn add(&mut self, signal: Signal, queue: Arc<Log>) {
        self.queues[signal as usize - 1].push(queue);
    }

    fn of(&self, signal: Signal) -> &[Arc<Log>] {
        &self.queues[signal as usize - 1]
    }

    async fn put(&self, offer: Offer) -> Result<Accepted, Refused> {
        let queues = self.of(offer.signal);
        if queues.is_empty() {
            return Err(no_pipeline(offer.signal));
        }
        if offer.items == 0 {
            return Ok(Accepted::new(vec![Log::durable_for_nothing()]));
        }
        let received = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let guard: Arc<super::Permit> = Arc::new(offer.permit);
        let metadata: Bytes = metadata::encode(&offer.metadata);
        let record = || NewRecord {
            signal: offer.signal as u8,
            encoding: offer.encoding as u8,
            items: u32::try_from(offer.items).unwrap_or(u32::MAX),
            raw_len: u32::try_from(offer.raw_len).unwrap_or(u32::MAX),
            received_unix_ns: u64::try_from(received.as_nanos()).unwrap_or(u64::MAX),
            metadata: metadata.clone(),
            payload: offer.payload.clone(),
            guard: guard.clone(),
        };
        // Room in all of them first: when one refuses, nothing is written anywhere.
        let reservations = queues
            .iter()
            .map(|queue| queue.reserve(record().weight()))
            .collect::<Result<Vec<_>, Full>>()
            .map_err(|full| refused_full(&full))?;
        let answers: Vec<_> =
            queues.iter().zip(reservations).map(|(queue, room)| queue.append(room, record())).collect();
        let mut receipts = Vec::with_capacity(answers.len());
        for answer in answers {
            let answer = answer.await.unwrap_or(Err(AppendError::Closed));
            receipts.push(answer.map_err(|error| refused_append(&error))?);
        }
        Ok(Accepted::new(receipts))
    }
}

fn no_pipeline(signal: Signal) -> Refused {
    Refused {
        reason: RefusedReason::NoPipeline,
        message: format!(
            "no pipeline of this receiver takes {0}; add one named \"{0}\" to service.pipelines",
            signal.name()
        ),
        retry_after: Duration::ZERO,
    }
}

fn refused_full(full: &Full) -> Refused {
    let (reason, retry_after) = match full {
        Full::Cap { .. } | Full::FileSystem { .. } | Full::Backlog { .. } => (RefusedReason::Full, RETRY_AFTER_FULL),
        Full::Failed(_) => (RefusedReason::Storage, RETRY_AFTER_STORAGE),
        Full::Closed => (RefusedReason::Stopping, RETRY_AFTER_STOPPING),
    };
    Refused { reason, message: full.to_string(), retry_after }
}

fn refused_append(error: &AppendError) -> Refused {
    let (reason, retry_after) = match error {
        AppendError::Full(_) => (RefusedReason::Full, RETRY_AFTER_FULL),
        AppendError::Closed => (RefusedReason::Stopping, RETRY_AFTER_STOPPING),
        AppendError::Failed(_) | AppendError::TooLarge { .. } => (RefusedReason::Storage, RETRY_AFTER_STORAGE),
    };
    Refused { reason, message: error.to_string(), retry_after }
}

impl Intake for Router {
    fn offer(&self, offer: Offer) -> BoxFuture<'_, Result<Accepted, Refused>> {
        self.put(offer).boxed()
    }

    fn takes(&self, signal: Signal) -> bool {
        !self.of(signal).is_empty()
    }

    fn check(&self, signal: Signal, size_hint_bytes: u64) -> Result<(), Refused> {
        for queue in self.of(signal) {
            drop(queue.reserve(Weight::request(size_hint_bytes)).map_err(|full| refused_full(&full))?);
        }
        if self.takes(signal) { Ok(()) } else { Err(no_pipeline(signal)) }
    }
}
