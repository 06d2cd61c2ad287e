//! Destinations: what an exporter is, what can come of a request, and the registry of kinds.

pub mod classify;
pub mod debug;
pub mod file;
pub mod heavy;
pub mod otlp_grpc;
pub mod otlp_http;
pub mod payload;
pub mod remote;
pub mod tls;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::otlp::{Metadata, Signal};
use crate::settings::Kind;
pub use classify::StatusPolicy;

pub use payload::Payload;

/// Why an exporter cannot be made: a mistake in its settings that only building it shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

/// Every kind of exporter: a new one is a file and a line here. Configuration, `components` and the process take
/// their names from this list.
pub const KINDS: &[Kind<Arc<dyn Settings>>] = &[
    Kind {
        name: "otlp_grpc",
        aliases: &["otlp"],
        summary: "OTLP over gRPC",
        read: |table| Arc::new(otlp_grpc::Settings::read(table)),
    },
    Kind {
        name: "otlp_http",
        aliases: &["otlphttp"],
        summary: "OTLP over HTTP",
        read: |table| Arc::new(otlp_http::Settings::read(table)),
    },
    Kind {
        name: "file",
        aliases: &[],
        summary: "OTLP-JSON lines in a file on this machine",
        read: |table| Arc::new(file::Settings::read(table)),
    },
    Kind {
        name: "debug",
        aliases: &[],
        summary: "a line per request in the log",
        read: |table| Arc::new(debug::Settings::read(table)),
    },
];

/// What an exporter is told beside the keys of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub id: &'a str,
    /// Relative paths stand below it.
    pub data_dir: &'a Path,
    /// None: the kind's default.
    pub max_request_bytes: Option<u64>,
    pub status_policy: &'a StatusPolicy,
}

/// The settings of one exporter, read and not built yet.
pub trait Settings: std::fmt::Debug + Send + Sync {
    fn build(&self, context: &Context<'_>) -> Result<Arc<dyn Exporter>, BuildError>;

    /// Whether a server answers it: then statuses and the size of requests can be configured.
    fn is_remote(&self) -> bool;
}

/// One outgoing request: OTLP protobuf, uncompressed.
#[derive(Clone, Debug)]
pub struct Batch {
    pub signal: Signal,
    pub items: u64,
    pub payload: Payload,
    pub metadata: Metadata,
}

/// A status that the server itself sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteStatus {
    Http(u16),
    Grpc(i32),
}

impl std::fmt::Display for RemoteStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RemoteStatus::Http(status) => write!(f, "HTTP {status}"),
            RemoteStatus::Grpc(code) => match classify::grpc_name(*code) {
                Some(name) => write!(f, "gRPC {code} {name}"),
                None => write!(f, "gRPC {code}"),
            },
        }
    }
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

    /// The file that it writes, if it writes one.
    fn local_path(&self) -> Option<&Path> {
        None
    }
}

#[cfg(test)]
mod tests;
