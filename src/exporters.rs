//! Destinations: what an exporter is, what can come of a request, and the registry of kinds.

pub mod classify;
pub mod debug;
pub mod file;
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
use crate::settings::Table;

pub use payload::Payload;

/// Why an exporter cannot be made: a mistake in its settings that only building it shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

/// Settings of one exporter, by kind. A new kind is a file, a line in `config/components.rs`, and its lines here.
#[derive(Clone, Debug)]
pub enum Settings {
    OtlpGrpc(otlp_grpc::Settings),
    OtlpHttp(otlp_http::Settings),
    File(file::Settings),
    Debug(debug::Settings),
}

impl Settings {
    /// Reads the settings of a kind by its present name; None for any other.
    pub fn read(kind: &str, table: &mut Table<'_>) -> Option<Settings> {
        Some(match kind {
            "otlp_grpc" => Settings::OtlpGrpc(otlp_grpc::Settings::read(table)),
            "otlp_http" => Settings::OtlpHttp(otlp_http::Settings::read(table)),
            "file" => Settings::File(file::Settings::read(table)),
            "debug" => Settings::Debug(debug::Settings::read(table)),
            _ => return None,
        })
    }

    /// Paths that are relative stand below the data directory.
    pub fn resolve(&mut self, data_dir: &Path) {
        if let Settings::File(settings) = self {
            settings.resolve(data_dir);
        }
    }

    pub fn set_max_request_bytes(&mut self, bytes: u64) {
        match self {
            Settings::OtlpGrpc(settings) => settings.max_request_bytes = bytes,
            Settings::OtlpHttp(settings) => settings.max_request_bytes = bytes,
            Settings::File(_) | Settings::Debug(_) => {}
        }
    }

    pub fn build(&self, id: &str) -> Result<Arc<dyn Exporter>, BuildError> {
        Ok(match self {
            Settings::OtlpGrpc(settings) => Arc::new(otlp_grpc::build(settings)?),
            Settings::OtlpHttp(settings) => Arc::new(otlp_http::build(settings)?),
            Settings::File(settings) => Arc::new(file::build(settings)?),
            Settings::Debug(settings) => Arc::new(debug::build(id, settings)?),
        })
    }
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

#[cfg(test)]
mod tests;
