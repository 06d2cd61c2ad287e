//! The process's own figures, read from `/proc/self`.

use std::sync::OnceLock;
use std::time::Instant;

use metrics::gauge;

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Sets uptime, processor seconds and resident memory; called before each scrape. The first call starts the uptime.
pub fn observe_process() {
    let started = STARTED.get_or_init(Instant::now);
    gauge!("otelcol_process_uptime").set(started.elapsed().as_secs_f64());
    if let Some(seconds) = cpu_seconds() {
        gauge!("otelcol_process_cpu_seconds").set(seconds);
    }
    if let Some(bytes) = resident_bytes() {
        gauge!("otelcol_process_memory_rss").set(bytes as f64);
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(usage.tv_sec as f64 + usage.tv_nsec as f64 / 1e9)
}

fn resident_bytes() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
