//! Files as written → validated plan.
//!
//! ```text
//! --config sources, --set ─▶ source (parse, merge, substitute) ─▶ one positioned tree ─▶ read ─▶ Plan
//! ```
//! Every error is found in one go and says file, line and column. `docs/configuration.md` is the users' side.

pub mod components;
pub mod data_dir;
mod ids;
pub mod outage;
mod plan;
pub mod print;
mod read;
mod source;
mod substitute;
#[cfg(test)]
mod tests;
pub mod toml;
pub mod yaml;

pub use plan::{
    AdminPlan, DataDirSetting, DedupPlan, ExporterPlan, HEALTH_ENDPOINT_DEFAULT, HealthPlan, LogEncoding,
    METRICS_ENDPOINT_DEFAULT, PipelinePlan, Plan, QueuePlan, ReceiverPlan, ShutdownPlan, SpanDedupPlan, StartAt,
    TelemetryPlan, TokenPlan,
};
pub use read::{known_keys, plan};
pub use source::{RealWorld, Sources, World, load};

use crate::settings::Problem;

/// What runs when nothing is configured: everything that arrives is kept and written to `out/` in the data directory.
pub const EMBEDDED_DEFAULT: &str = "\
receivers:
  otlp:
    protocols:
      grpc:
      http:
exporters:
  file:
    path: out/telemetry.jsonl
service:
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [file]
    metrics:
      receivers: [otlp]
      exporters: [file]
    logs:
      receivers: [otlp]
      exporters: [file]
";

/// Reads, merges and validates; Err holds every problem, warnings among them.
pub fn load_plan(sources: &Sources, world: &dyn World) -> Result<Plan, Vec<Problem>> {
    let tree = load(sources, world)?;
    let mut plan = plan(&tree)?;
    plan.is_embedded_default = sources.configs.is_empty();
    Ok(plan)
}
