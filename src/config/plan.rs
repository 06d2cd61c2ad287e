//! The validated plan: what a process is to do. It cannot be wrong: references are resolved, numbers in range.

use crate::dedup::Match;
use crate::exporters::{self, StatusPolicy};
use crate::otlp::Signal;
use crate::settings::{OnFull, Origin, Problem, Retry, Secret, SendingQueue};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Plan {
    /// `forebay.data_dir`, else the `directory` of `file_storage`.
    pub data_dir: Option<DataDirSetting>,
    pub receivers: Vec<ReceiverPlan>,
    pub pipelines: Vec<PipelinePlan>,
    /// Those that a pipeline uses.
    pub exporters: Vec<ExporterPlan>,
    pub queue: QueuePlan,
    pub dedup: DedupPlan,
    pub dead_letters: DeadLettersPlan,
    pub shutdown: ShutdownPlan,
    /// None: half of the cgroup's limit.
    pub memory_limit_bytes: Option<u64>,
    pub max_syncs_per_second: Option<u32>,
    pub telemetry: TelemetryPlan,
    pub health: HealthPlan,
    /// None: the admin API is reached over the socket in the data directory alone.
    pub admin: Option<AdminPlan>,
    /// Nothing was configured, and the embedded default runs.
    pub is_embedded_default: bool,
    pub warnings: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DataDirSetting {
    pub path: PathBuf,
    pub origin: Origin,
}

#[derive(Clone, Debug)]
pub struct ReceiverPlan {
    /// As the user wrote it, such as `otlp/internal`.
    pub id: String,
    pub settings: crate::receivers::Settings,
}

#[derive(Clone, Debug)]
pub struct PipelinePlan {
    /// Such as `traces` or `traces/agents`.
    pub id: String,
    pub signal: Signal,
    /// Name of the queue on disk: letters, digits, `_`, `-`, `.`; at most 128.
    pub queue_id: String,
    /// Ids in [`Plan::receivers`], each once.
    pub receivers: Vec<String>,
    /// Ids in [`Plan::exporters`], each once.
    pub exporters: Vec<String>,
    /// A `dedup` processor.
    pub dedup: Option<SpanDedupPlan>,
}

/// `forebay.dedup`: whole requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupPlan {
    pub requests: Vec<Signal>,
    pub window: Duration,
    /// Over all queues; None: 32 MiB, at most an eighth of the memory budget.
    pub max_memory_bytes: Option<u64>,
}

impl Default for DedupPlan {
    fn default() -> DedupPlan {
        DedupPlan { requests: vec![Signal::Traces], window: DEDUP_WINDOW_DEFAULT, max_memory_bytes: None }
    }
}

pub const DEDUP_WINDOW_DEFAULT: Duration = Duration::from_secs(600);

/// The `dedup` processor of one pipeline: single spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanDedupPlan {
    pub by: Match,
    pub window: Duration,
    /// As in [`DedupPlan`].
    pub max_memory_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct ExporterPlan {
    /// As the user wrote it.
    pub id: String,
    /// Name of the cursor on disk, as [`PipelinePlan::queue_id`]; alike under old and new component names.
    pub cursor_id: String,
    pub settings: Arc<dyn exporters::Settings>,
    pub retry: Retry,
    pub sending_queue: SendingQueue,
    pub on_full: OnFull,
    pub start_at: StartAt,
    /// None: the exporter kind's default.
    pub max_request_bytes: Option<u64>,
    pub status_policy: StatusPolicy,
    /// Whether a copy is parked of what was taken only in part.
    pub parks_partial: bool,
}

/// Where an exporter that has no cursor yet begins in an existing queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StartAt {
    #[default]
    End,
    Beginning,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuePlan {
    /// None: min(10 GiB, half of what is free or ours already). Dead letters do not count.
    pub max_size_bytes: Option<u64>,
    /// Of exporters that say nothing themselves.
    pub on_full: OnFull,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLettersPlan {
    /// Beside `queue.max_size`.
    pub max_size_bytes: u64,
    /// At the cap letters are dropped, and counted; otherwise their records are held.
    pub drops: bool,
    /// Whether what cannot be decoded at the door is kept, in a ring beside them.
    pub captures_invalid: bool,
    /// Older letters are dropped, and counted; None: they wait for ever.
    pub max_age: Option<Duration>,
}

impl Default for DeadLettersPlan {
    fn default() -> DeadLettersPlan {
        DeadLettersPlan { max_size_bytes: 1 << 30, drops: false, captures_invalid: true, max_age: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownPlan {
    /// How long receivers stay open after the signal.
    pub linger: Duration,
    /// From the signal to the end.
    pub deadline: Duration,
}

impl Default for ShutdownPlan {
    fn default() -> ShutdownPlan {
        ShutdownPlan { linger: Duration::ZERO, deadline: Duration::from_secs(25) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEncoding {
    Console,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryPlan {
    /// A tracing level: `trace`, `debug`, `info`, `warn`, `error`.
    pub log_level: &'static str,
    pub log_encoding: LogEncoding,
    /// `host:port`; None: no metrics page.
    pub metrics_endpoint: Option<String>,
}

pub const METRICS_ENDPOINT_DEFAULT: &str = "localhost:8888";
pub const HEALTH_ENDPOINT_DEFAULT: &str = "localhost:13133";

impl Default for TelemetryPlan {
    fn default() -> TelemetryPlan {
        let metrics_endpoint = Some(METRICS_ENDPOINT_DEFAULT.to_owned());
        TelemetryPlan { log_level: "info", log_encoding: LogEncoding::Console, metrics_endpoint }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPlan {
    /// `host:port`.
    pub endpoint: String,
    /// A further path, beside `/livez` and `/readyz`.
    pub path: String,
}

impl Default for HealthPlan {
    fn default() -> HealthPlan {
        HealthPlan { endpoint: HEALTH_ENDPOINT_DEFAULT.to_owned(), path: "/".to_owned() }
    }
}

/// `forebay.admin`: the admin API over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminPlan {
    /// `host:port`; without a token it is a loopback address.
    pub endpoint: String,
    pub token: Option<TokenPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlan {
    Text(Secret),
    /// Read at every request.
    File(PathBuf),
}

pub const ADMIN_ENDPOINT_DEFAULT: &str = "localhost:13134";
