//! Intake, leases and settling over the segment log, and the byte budget that bounds memory.

pub mod admission;
pub mod book;
pub mod budget;
pub mod gate;
mod giving;
pub mod lease;
pub mod left;
pub mod metadata;
pub mod overflow;
pub mod router;
pub mod subscription;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::net::IpAddr;
use std::time::Duration;

use crate::otlp::wire::Summary;
use crate::otlp::{Encoding, Metadata, Signal};
pub use crate::storage::Durable;
pub use book::{HELD_RANGES_MAX, Why};
pub use budget::{Budget, Permit};
pub use gate::{Gate, Marks};
pub use giving::GivenUp;
pub use lease::{HeldPart, Lease};
pub use left::Left;
pub use overflow::{Giver, Overflow, Park, Undo};
pub use router::Router;
pub use subscription::{LeaseLimits, Settled, Subscription, SubscriptionStatus};

/// One request, validated, on its way into the queues of its pipelines.
#[derive(Debug)]
pub struct Offer {
    pub signal: Signal,
    /// How `payload` is compressed; it is stored as it came.
    pub encoding: Encoding,
    /// Spans, data points or log records in it; 0 needs no storing.
    pub items: u64,
    /// Length of the payload when inflated.
    pub raw_len: u64,
    pub metadata: Metadata,
    pub payload: Bytes,
    /// The memory that `payload` occupies; given back when the record is written or refused.
    pub permit: Permit,
    /// What gates know it by ([`Intake::mark`]).
    pub marks: Marks,
    /// Who sent it, where that is known.
    pub peer: Option<IpAddr>,
}

/// Proof that every pipeline has the request on disk. Only this lets a receiver answer success.
#[derive(Debug)]
#[must_use]
pub struct Accepted {
    _durable: Vec<Durable>,
    deduplicated: u64,
}

impl Accepted {
    /// Every queue's receipt for one request.
    pub fn new(durable: Vec<Durable>, deduplicated: u64) -> Accepted {
        Accepted { _durable: durable, deduplicated }
    }

    /// Items that were durable already in at least one queue, and not stored there again.
    pub fn deduplicated(&self) -> u64 {
        self.deduplicated
    }
}

/// Why intake said no. Always retryable for the client: nothing was stored, or not in every queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// A queue or the disk is full; the message names who holds the space.
    Full,
    /// The process is stopping.
    Stopping,
    /// The disk failed.
    Storage,
    /// No pipeline of this receiver takes this signal (HTTP 404, gRPC UNIMPLEMENTED: not retryable).
    NoPipeline,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub reason: RefusedReason,
    pub message: String,
    pub retry_after: Duration,
}

/// The front door of the queues, one per receiver.
pub trait Intake: Send + Sync + 'static {
    /// Resolves when the request is durable in every pipeline, or refused. Dropping the future does not undo the
    /// write.
    fn offer(&self, offer: Offer) -> BoxFuture<'_, Result<Accepted, Refused>>;

    /// Whether any pipeline of this receiver takes the signal.
    fn takes(&self, signal: Signal) -> bool;

    /// What the gates of the queues will know a valid message by; None when there is no memory for it.
    fn mark(&self, signal: Signal, message: &[u8], summary: &Summary, budget: &Budget) -> Option<Marks> {
        let _nobody_asks = (signal, message, summary, budget);
        Some(Marks::default())
    }

    /// Refuses early, before a body is read, when an offer of about this size would be refused.
    fn check(&self, signal: Signal, size_hint_bytes: u64) -> Result<(), Refused>;
}

#[cfg(test)]
mod tests;
