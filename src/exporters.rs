//! Destinations: what an exporter is, what can come of a request, and the registry of kinds.

pub mod debug;
pub mod file;
pub mod otlp_grpc;
pub mod otlp_http;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::time::Duration;

use crate::otlp::{Metadata, Signal};

/// One outgoing request: OTLP protobuf, uncompressed.
#[derive(Clone, Debug)]
pub struct Batch {
    pub signal: Signal,
    pub items: u64,
    pub payload: Bytes,
    pub metadata: Metadata,
}

/// A status that the server itself sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteStatus {
    Http(u16),
    Grpc(i32),
}

/// Whose fault a failure is (DESIGN "Who is ill").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Transport errors, statuses made up locally, and codes that the specification calls retryable.
    Retryable,
    /// The destination refuses everything or is misconfigured: hold and probe, never split, never park.
    Destination,
    /// The batch itself is refused.
    Batch,
}

/// What went wrong, for the retry clock, the log and the status page.
#[derive(Clone, Debug)]
pub struct Failure {
    pub class: Class,
    pub status: Option<RemoteStatus>,
    /// `Retry-After` or `RetryInfo`: the floor for the next attempt.
    pub retry_after: Option<Duration>,
    /// The refusal was about size (413, or a gRPC message-size error).
    pub too_large: bool,
    /// One sentence: operation, object, cause; with the answer's message, bounded.
    pub message: String,
}

/// What came of one request.
#[derive(Clone, Debug)]
pub enum Outcome {
    Delivered,
    /// Taken, but the answer's `partial_success` was populated. Never retried.
    Partial {
        rejected_items: u64,
        message: String,
    },
    Failed(Failure),
}

/// A destination. Called concurrently; one instance per configured exporter.
pub trait Exporter: Send + Sync + 'static {
    fn export(&self, batch: Batch) -> BoxFuture<'_, Outcome>;

    /// Upper bound for `Batch::payload`, in uncompressed bytes.
    fn max_request_bytes(&self) -> u64;

    /// Whether what is exported leaves this machine (the file and debug exporters do not).
    fn leaves_machine(&self) -> bool {
        true
    }
}
