//! What a sink has taken.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub struct Counters {
    pub spans: AtomicU64,
    pub metric_points: AtomicU64,
    pub log_records: AtomicU64,
    pub requests: AtomicU64,
    /// Requests that were failed on purpose.
    pub failed: AtomicU64,
    /// Requests that were no valid OTLP.
    pub malformed: AtomicU64,
    /// Of request bodies as they came.
    pub bytes: AtomicU64,
}

impl Counters {
    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::json!({
            "spans": self.spans.load(Relaxed),
            "metric_points": self.metric_points.load(Relaxed),
            "log_records": self.log_records.load(Relaxed),
            "requests": self.requests.load(Relaxed),
            "failed": self.failed.load(Relaxed),
            "malformed": self.malformed.load(Relaxed),
            "bytes": self.bytes.load(Relaxed),
        })
        .to_string()
    }
}
