//! What the process says about itself: counters, gauges, log lines, health checks.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::admin::api::RetryRequest;
use crate::dedup::Dedup;
use crate::otlp::Signal;
use crate::pipeline::{Destination, Meter};
use crate::queue::{Budget, Subscription};
use crate::storage::log::{Lost, Observer};
use crate::storage::store::OpenReport;
use crate::storage::{Space, Store, Weight};
use crate::telemetry::{self, ExporterMetrics};

/// Room that `/readyz?capacity=1` asks for.
pub const CAPACITY_PROBE_BYTES: u64 = 64 << 10;

/// Two in use by one queue, and one for what waits.
const SEGMENTS_LEAST: u64 = 3;

/// Storage's outcomes as counters and log lines; what is gone or given up is no longer seen before.
#[derive(Default)]
pub struct StorageObserver {
    pub dedup: Arc<OnceLock<Arc<Dedup>>>,
}

impl Observer for StorageObserver {
    fn synced(&self, queue: &str, took: Duration, records: u64, bytes: u64) {
        telemetry::synced(queue, took, records, bytes);
    }

    fn failed(&self, queue: &str, operation: &'static str, error: &std::io::Error) {
        telemetry::storage_failed(queue, operation);
        tracing::error!(queue, operation, %error, "storage failed to {operation}; nothing acknowledged is lost");
    }

    fn giving_up(&self, queue: &str, sequences: Range<u64>) {
        if let Some(dedup) = self.dedup.get() {
            dedup.forget(queue, sequences);
        }
    }

    fn damaged(&self, queue: &str, lost: &Lost) {
        if let Some(dedup) = self.dedup.get() {
            dedup.forget(queue, lost.sequences.clone());
        }
        let records = lost.sequences.end.saturating_sub(lost.sequences.start);
        telemetry::storage_damaged(queue, records, lost.bytes);
        if records == 0 {
            // An unused segment, as a rule: of what is known to have been acknowledged nothing is missing.
            tracing::warn!(
                queue, segment = format!("{:016x}", lost.segment_id), bytes = lost.bytes, reason = %lost.reason,
                "a segment is damaged; no record is known to be lost with it"
            );
            return;
        }
        tracing::error!(
            queue, segment = format!("{:016x}", lost.segment_id), offset = lost.offset, bytes = lost.bytes,
            records, reason = %lost.reason, "durable records are damaged and lost; later ones go on"
        );
    }
}

/// One exporter's counters.
pub struct ExporterMeter(pub ExporterMetrics);

impl Meter for ExporterMeter {
    fn sent(&self, _exporter: &str, signal: Signal, items: u64) {
        self.0.sent(signal as usize - 1, items);
    }
    fn rejected(&self, _exporter: &str, signal: Signal, items: u64) {
        self.0.rejected(signal as usize - 1, items);
    }
    fn failed(&self, _exporter: &str, signal: Signal, items: u64) {
        self.0.send_failed(signal as usize - 1, items);
    }
    fn dead_lettered(&self, _exporter: &str, signal: Signal, items: u64, reason: &'static str) {
        self.0.dead_lettered(signal as usize - 1, items, reason);
    }
    fn dropped(&self, _exporter: &str, signal: Signal, items: u64, reason: &'static str) {
        self.0.dropped(signal as usize - 1, items, reason);
    }
    fn held(&self, _exporter: &str, signal: Signal, items: u64) {
        self.0.held(signal as usize - 1, items);
    }
    fn in_flight(&self, _exporter: &str, signal: Signal, requests: i64) {
        self.0.in_flight(signal as usize - 1, requests);
    }
}

/// One exporter's part of one queue.
#[derive(Clone)]
pub struct Observed {
    pub signal: &'static str,
    pub subscription: Arc<Subscription>,
    pub destination: Arc<Destination>,
}

/// Makes what is set aside due now, as the admin API is asked to.
pub fn answer_retry(observed: &[Observed]) -> impl Fn(&RetryRequest) -> Result<u64, String> + Send + Sync + 'static {
    let subscriptions: Vec<Arc<Subscription>> = observed.iter().map(|one| Arc::clone(&one.subscription)).collect();
    move |RetryRequest { queue, exporter }| {
        let wanted = |subscription: &&Arc<Subscription>| {
            queue.as_deref().is_none_or(|queue| queue == subscription.queue())
                && exporter.as_deref().is_none_or(|exporter| exporter == subscription.cursor())
        };
        let mut found = subscriptions.iter().filter(wanted).peekable();
        if found.peek().is_none() {
            let known: Vec<String> =
                subscriptions.iter().map(|one| format!("{} in {}", one.cursor(), one.queue())).collect();
            return Err(format!("no exporter of a queue has that name; there are: {}", known.join(", ")));
        }
        let ranges = found.map(|subscription| subscription.retry_held()).sum();
        tracing::info!(ranges, ?queue, ?exporter, "what was set aside is tried again, as asked over the admin API");
        Ok(ranges)
    }
}

pub fn disk_check(store: &Arc<Store>) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
    let store = Arc::clone(store);
    move || match store.queues().iter().find_map(|log| log.failure()) {
        Some(failure) => Err(format!("the disk failed: {failure}")),
        None => Ok(()),
    }
}

pub fn capacity_check(store: &Arc<Store>, budget: &Budget) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
    let (store, budget) = (Arc::clone(store), budget.clone());
    move || {
        if budget.try_reserve(CAPACITY_PROBE_BYTES).is_none() {
            return Err("memory for requests is used up".to_owned());
        }
        store
            .queues()
            .iter()
            .try_for_each(|log| log.reserve(Weight::request(CAPACITY_PROBE_BYTES)).map(drop))
            .map_err(|full| full.to_string())
    }
}

/// What opening the data directory found, loss loudest.
pub fn log_recovery(data_dir: &Path, store: &Store, report: &OpenReport) {
    let space = store.space();
    tracing::info!(
        data_dir = %data_dir.display(), generation = report.generation, queues = report.queues.len(),
        capacity_bytes = space.max_bytes(), segment_bytes = store.segment_bytes(), "data directory opened"
    );
    warn_of_small_volume(data_dir, space, store.segment_bytes());
    match volume_kind(space.kind()) {
        None => {}
        Some(kind) => tracing::warn!(
            data_dir = %data_dir.display(), kind,
            "the data directory is on {kind}: what it promises is what that volume promises"
        ),
    }
    if report.format_was_damaged {
        tracing::error!(data_dir = %data_dir.display(), "the FORMAT file was damaged; the segments are of this format, and it was written anew");
    }
    if report.witness_lost {
        tracing::warn!(
            path = %data_dir.join("witness").display(),
            "the witness was missing or damaged and is written anew; what it alone knew may be sent twice"
        );
    }
    for path in &report.strangers {
        tracing::warn!(path = %path.display(), "no queue has that name or lies there: the directory is left alone");
    }
    for note in &report.notes {
        tracing::warn!(%note, "the segments and the witness stand in for the catalogue; nothing is lost, some data may be sent twice");
    }
    for (queue, found) in &report.queues {
        if found.records > 0 || found.torn_tail_bytes > 0 {
            tracing::info!(
                %queue, records = found.records, segments = found.segments, scanned = found.scanned,
                torn_tail_bytes = found.torn_tail_bytes, "queue recovered"
            );
        }
        for path in &found.quarantined {
            // What is lost with it is an error of its own.
            tracing::warn!(%queue, path = %path.display(), "a segment file was set aside: it holds nothing of its segment that can be read");
        }
        for path in &found.strangers {
            tracing::warn!(%queue, path = %path.display(), "it is no segment, and is left alone; remove it");
        }
        for cursor in &found.cursors_beyond_end {
            tracing::warn!(%queue, exporter = %cursor, "the cursor stood beyond the end of the queue; new records get higher numbers");
        }
    }
}

/// A cap that cannot be reached is no bound: the file system refuses first, and may refuse everything.
fn warn_of_small_volume(data_dir: &Path, space: &Space, segment_bytes: u64) {
    let (max_size_bytes, usable_bytes, floor_bytes) = (space.max_bytes(), space.reachable_bytes(), space.floor_bytes());
    if usable_bytes < SEGMENTS_LEAST * segment_bytes {
        tracing::warn!(
            data_dir = %data_dir.display(), usable_bytes, segment_bytes, floor_bytes,
            "the file system of the data directory, or forebay.queue.max_size, is so small that little or nothing can be taken in: \
             give it more"
        );
    } else if usable_bytes < max_size_bytes {
        tracing::warn!(
            data_dir = %data_dir.display(), max_size_bytes, usable_bytes, floor_bytes,
            "forebay.queue.max_size is more than the file system can ever hold, of which {floor_bytes} bytes must stay free: \
             intake is refused at {usable_bytes} bytes or before; set it lower, or use a larger volume"
        );
    }
}

/// Volumes on which a sync promises less than on a disk.
fn volume_kind(kind: u64) -> Option<&'static str> {
    match kind {
        0x0102_1994 => Some("tmpfs (gone with the machine)"),
        0x794c_7630 => Some("overlay (gone with the container)"),
        0x6969 => Some("NFS (as durable as its server)"),
        _ => None,
    }
}

pub fn log_left_behind(data_dir: &Path, store: &Store) {
    let mut behind = 0;
    for log in store.queues() {
        for cursor in log.status().cursors.iter().filter(|cursor| cursor.backlog.records > 0) {
            behind += cursor.backlog.records;
            tracing::info!(
                queue = log.id(), exporter = %cursor.name, records = cursor.backlog.records,
                "left in the queue; sent after the next start"
            );
        }
    }
    tracing::info!(records = behind, data_dir = %data_dir.display(), "stopped");
}
