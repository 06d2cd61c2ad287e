//! The front door: one request into every queue that wants it, all or none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::otlp::Signal;
use crate::otlp::wire::Summary;
use crate::storage::{AppendError, Full, Log, Weight, unix_now_ns};

use super::admission::{self, Lane};
use super::gate::{Gate, Marks, Offered};
use super::{Accepted, Budget, Intake, Offer, Refused, RefusedReason, metadata};

/// When a client may come back after a full queue, and after a failed disk.
pub const RETRY_AFTER_FULL: Duration = Duration::from_secs(5);
/// Where the room comes back whatever destinations do.
pub const RETRY_AFTER_BRIEF: Duration = Duration::from_secs(1);
pub const RETRY_AFTER_STORAGE: Duration = Duration::from_secs(10);
pub const RETRY_AFTER_STOPPING: Duration = Duration::from_secs(1);

/// The queues that one receiver feeds, by signal.
#[derive(Clone, Default)]
pub struct Router {
    lanes: [Vec<Lane>; 3],
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = self.lanes.each_ref().map(|lanes| lanes.iter().map(|lane| lane.log.id()).collect::<Vec<_>>());
        f.debug_struct("Router").field("queues", &queues).finish()
    }
}

impl Router {
    pub fn new() -> Router {
        Router::default()
    }

    pub fn add(&mut self, signal: Signal, queue: Arc<Log>) {
        self.add_behind(signal, queue, None);
    }

    /// A queue that a gate stands before.
    pub fn add_behind(&mut self, signal: Signal, log: Arc<Log>, gate: Option<Arc<dyn Gate>>) {
        self.lanes[signal as usize - 1].push(Lane { log, gate });
    }

    fn of(&self, signal: Signal) -> &[Lane] {
        &self.lanes[signal as usize - 1]
    }

    async fn put(&self, offer: Offer) -> Result<Accepted, Refused> {
        let lanes = self.of(offer.signal);
        if lanes.is_empty() {
            return Err(no_pipeline(offer.signal));
        }
        if offer.items == 0 {
            return Ok(Accepted::new(vec![Log::durable_for_nothing()], 0));
        }
        let offered = Offered {
            signal: offer.signal,
            encoding: offer.encoding,
            items: offer.items,
            raw_len: offer.raw_len,
            received_unix_ns: unix_now_ns(),
            metadata: metadata::encode(&offer.metadata),
            payload: offer.payload,
            marks: offer.marks,
            peer: offer.peer,
        };
        let admission = admission::admit(lanes.to_vec(), offered, offer.permit);
        if lanes.iter().all(|lane| lane.gate.is_none()) {
            return admission.await;
        }
        // A client that hangs up must not leave its claims behind: its retry is what they are for.
        match tokio::spawn(admission).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "taking in a request failed");
                Err(unavailable("the request could not be taken in; try again"))
            }
        }
    }
}

pub(super) fn unavailable(message: &str) -> Refused {
    Refused { reason: RefusedReason::Storage, message: message.to_owned(), retry_after: RETRY_AFTER_STORAGE }
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

pub(super) fn refused_full(full: &Full) -> Refused {
    let (reason, retry_after) = match full {
        full if full.is_brief() => (RefusedReason::Full, RETRY_AFTER_BRIEF),
        Full::Cap { .. } | Full::FileSystem { .. } | Full::Backlog { .. } => (RefusedReason::Full, RETRY_AFTER_FULL),
        Full::Failed(_) => (RefusedReason::Storage, RETRY_AFTER_STORAGE),
        Full::Closed => (RefusedReason::Stopping, RETRY_AFTER_STOPPING),
    };
    Refused { reason, message: full.to_string(), retry_after }
}

pub(super) fn refused_append(error: &AppendError) -> Refused {
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

    fn mark(&self, signal: Signal, message: &[u8], summary: &Summary, budget: &Budget) -> Option<Marks> {
        let gates = || self.of(signal).iter().filter_map(|lane| lane.gate.as_ref());
        let bytes = gates().map(|gate| gate.marks_bytes(summary)).sum();
        let mut marks = Marks { permit: Some(budget.try_reserve(bytes)?), ..Marks::default() };
        gates().for_each(|gate| gate.mark(signal, message, summary, &mut marks));
        Some(marks)
    }

    fn check(&self, signal: Signal, size_hint_bytes: u64) -> Result<(), Refused> {
        for lane in self.of(signal) {
            drop(lane.log.reserve(Weight::request(size_hint_bytes)).map_err(|full| refused_full(&full))?);
        }
        if self.takes(signal) { Ok(()) } else { Err(no_pipeline(signal)) }
    }
}
