//! Counters, histograms and log set-up; imports nothing of the crate.
//!
//! Names as the OpenTelemetry Collector's default reader prints them (no `_total`, no unit), so that dashboards and
//! alerts written for it work; Forebay's own begin with `forebay_`.

mod logs;
mod process;

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use logs::{LogEncoding, init_logs};
pub use process::observe_process;

/// `data_type` labels and the suffixes of item counters, in the order of the signals.
const SIGNALS: [(&str, &str); 3] = [("traces", "spans"), ("metrics", "metric_points"), ("logs", "log_records")];

/// Seconds; from a fast device to a stuck one.
const LATENCY_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const SYNC_DURATION: &str = "forebay_sync_duration_seconds";
const ACK_DURATION: &str = "forebay_acknowledge_duration_seconds";

/// How often histograms are folded, so that memory stays flat when nobody scrapes.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Installs the process's recorder. Fails when there is one already.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(SYNC_DURATION.to_owned()), &LATENCY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(ACK_DURATION.to_owned()), &LATENCY_BUCKETS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    for (_, items) in SIGNALS {
        describe_counter!(
            format!("forebay_deduplicated_{items}"),
            "Items accepted and not stored again: they were durable in that queue already."
        );
        describe_counter!(format!("otelcol_receiver_accepted_{items}"), "Items durably accepted.");
        describe_counter!(
            format!("otelcol_receiver_refused_{items}"),
            "Items refused, the client may retry; 1 where the request was not read."
        );
        describe_counter!(
            format!("otelcol_receiver_failed_{items}"),
            "Items that cannot be taken, retrying is no use; 1 where the request cannot be read."
        );
        describe_counter!(
            format!("otelcol_exporter_sent_{items}"),
            "Items delivered, without those the destination rejected."
        );
        describe_counter!(
            format!("otelcol_exporter_send_failed_{items}"),
            "Items of attempts that ended in failure; they are kept."
        );
        describe_counter!(
            format!("otelcol_exporter_enqueue_failed_{items}"),
            "Always 0: what cannot enter the queue is refused at the receiver."
        );
        describe_counter!(
            format!("forebay_exporter_dropped_{items}"),
            "Items that will never be delivered, by reason: rejected (by a partial success), queue_full (on_full: drop), \
             dead_letters_full (dead_letters.on_full: drop), dead_letters_expired (dead_letters.max_age)."
        );
        describe_counter!(
            format!("forebay_exporter_dead_lettered_{items}"),
            "Items parked in the dead-letter queue, by reason."
        );
        describe_counter!(
            format!("forebay_exporter_held_{items}"),
            "Items set aside because the destination refused their batch; they are kept."
        );
    }
    describe_gauge!(
        "otelcol_exporter_queue_size",
        "What waits for the exporter, in the unit of its sizer (bytes without a queue_size)."
    );
    describe_gauge!(
        "otelcol_exporter_queue_capacity",
        "Its queue_size, else the bytes that all queues together may allocate."
    );
    describe_gauge!(
        "forebay_dead_letters",
        "Letters that wait for somebody: parked by exporters, or malformed at the door."
    );
    describe_counter!(
        "forebay_invalid_captured_requests",
        "Requests that could not be decoded, by what became of their copy: kept, busy (too many at once), failed."
    );
    describe_counter!(
        "forebay_dead_letters_damaged",
        "Dead letters that were found to be lost to damage at the start, at the least."
    );
    describe_counter!(
        "forebay_dead_letters_replayed",
        "Letters that were sent again as somebody asked, by outcome: delivered (and removed), failed."
    );
    describe_counter!("forebay_dead_letters_purged", "Letters that somebody ended, undelivered.");
    describe_gauge!("forebay_dead_letters_items", "Items in them.");
    describe_gauge!("forebay_dead_letters_allocated_bytes", Unit::Bytes, "Bytes that they occupy on disk.");
    describe_gauge!("forebay_dead_letters_capacity_bytes", Unit::Bytes, "The most that they may occupy.");
    describe_gauge!("otelcol_exporter_in_flight_requests", "Requests on their way now.");
    describe_gauge!("otelcol_process_uptime", Unit::Seconds, "Seconds since the process started.");
    describe_gauge!("otelcol_process_cpu_seconds", Unit::Seconds, "Processor time, user and system.");
    describe_gauge!("otelcol_process_memory_rss", Unit::Bytes, "Resident memory.");
    describe_counter!("forebay_receiver_refused_requests", "Requests refused, by reason.");
    describe_histogram!(SYNC_DURATION, Unit::Seconds, "Time of one fdatasync of a queue.");
    describe_histogram!(ACK_DURATION, Unit::Seconds, "Time from a request's last byte to its durable answer.");
    describe_counter!("forebay_storage_synced_records", "Records made durable.");
    describe_counter!("forebay_storage_synced_bytes", Unit::Bytes, "Bytes made durable.");
    describe_counter!("forebay_storage_failures", "Operations of the storage that failed.");
    describe_counter!("forebay_storage_damaged_records", "Durable records lost to damage.");
    describe_counter!("forebay_storage_damaged_bytes", Unit::Bytes, "Damaged bytes found in segments.");
    describe_gauge!(
        "forebay_storage_allocated_bytes",
        Unit::Bytes,
        "Bytes allocated by all queues, without dead letters."
    );
    describe_gauge!("forebay_storage_capacity_bytes", Unit::Bytes, "Bytes that all queues may allocate.");
    describe_gauge!(
        "forebay_storage_time_to_full_seconds",
        Unit::Seconds,
        "Time until intake is refused at the present rate of growth; infinite when the queues do not grow."
    );
    describe_gauge!(
        "forebay_queue_oldest_age_seconds",
        Unit::Seconds,
        "Age of the oldest record that the exporter has not delivered; 0 when nothing waits."
    );
    describe_gauge!("forebay_queue_backlog_records", "Requests waiting for the exporter.");
    describe_gauge!("forebay_queue_backlog_bytes", Unit::Bytes, "Stored bytes waiting for the exporter.");
    describe_gauge!("forebay_queue_backlog_items", "Items waiting for the exporter.");
    describe_gauge!(
        "forebay_account_accepted_items",
        "Items accepted into the queue since the exporter's cursor was born, over all restarts; the sum of forebay_account_items."
    );
    describe_gauge!(
        "forebay_account_items",
        "What became of them, by state: queued, delivered, deduplicated, dead_lettered, dropped (with its reason)."
    );
    describe_gauge!(
        "forebay_account_rebased",
        "How often damage or an estimate kept the sums from coming out, and they were set right."
    );
    describe_gauge!("forebay_exporter_held_ranges", "Batches set aside for the exporter.");
    describe_gauge!(
        "forebay_exporter_retry_delay_seconds",
        Unit::Seconds,
        "Backoff in force; 0 when the destination is well."
    );
    describe_gauge!("forebay_dedup_keys", "Requests or spans that are known.");
    describe_gauge!("forebay_dedup_memory_bytes", Unit::Bytes, "Memory that their keys have taken.");
    describe_gauge!("forebay_dedup_disk_bytes", Unit::Bytes, "Fingerprints on disk.");
    describe_gauge!(
        "forebay_dedup_effective_window_seconds",
        Unit::Seconds,
        "For how long what was taken is known: the window, or less when memory is short."
    );
    describe_gauge!("forebay_memory_reserved_bytes", Unit::Bytes, "Memory reserved by requests and recent records.");
    describe_gauge!("forebay_memory_limit_bytes", Unit::Bytes, "Limit of that memory.");
}

/// Counters of one receiver and transport.
#[derive(Clone)]
pub struct ReceiverMetrics {
    accepted: [Counter; 3],
    refused: [Counter; 3],
    failed: [Counter; 3],
    acknowledge: Histogram,
    receiver: String,
    transport: &'static str,
}

impl ReceiverMetrics {
    pub fn new(receiver: &str, transport: &'static str) -> ReceiverMetrics {
        let counters = |what: &str| {
            SIGNALS.map(|(_, items)| {
                counter!(format!("otelcol_receiver_{what}_{items}"), "receiver" => receiver.to_owned(), "transport" => transport)
            })
        };
        ReceiverMetrics {
            accepted: counters("accepted"),
            refused: counters("refused"),
            failed: counters("failed"),
            acknowledge: histogram!(ACK_DURATION, "receiver" => receiver.to_owned(), "transport" => transport),
            receiver: receiver.to_owned(),
            transport,
        }
    }

    /// `signal`: 0 traces, 1 metrics, 2 logs, here and below.
    pub fn accepted(&self, signal: usize, items: u64, took: Duration) {
        self.accepted[signal].increment(items);
        self.acknowledge.record(took.as_secs_f64());
    }

    pub fn refused(&self, signal: usize, items: u64, reason: &'static str) {
        self.refused[signal].increment(items);
        self.refused_request(reason);
    }

    pub fn failed(&self, signal: usize, items: u64, reason: &'static str) {
        self.failed[signal].increment(items);
        self.refused_request(reason);
    }

    fn refused_request(&self, reason: &'static str) {
        counter!("forebay_receiver_refused_requests", "receiver" => self.receiver.clone(), "transport" => self.transport, "reason" => reason)
            .increment(1);
    }
}

/// Counters of one exporter.
#[derive(Clone)]
pub struct ExporterMetrics {
    sent: [Counter; 3],
    /// Stays 0: what cannot enter the queue is refused at the receiver. Dashboards ask for it.
    _enqueue_failed: [Counter; 3],
    send_failed: [Counter; 3],
    exporter: String,
    rejected: [Counter; 3],
    held: [Counter; 3],
    in_flight: [Gauge; 3],
}

impl ExporterMetrics {
    pub fn new(exporter: &str) -> ExporterMetrics {
        let counters = |prefix: &str| {
            SIGNALS.map(|(data_type, items)| {
                counter!(format!("{prefix}_{items}"), "exporter" => exporter.to_owned(), "data_type" => data_type)
            })
        };
        ExporterMetrics {
            exporter: exporter.to_owned(),
            sent: counters("otelcol_exporter_sent"),
            _enqueue_failed: counters("otelcol_exporter_enqueue_failed"),
            send_failed: counters("otelcol_exporter_send_failed"),
            rejected: SIGNALS.map(|(data_type, items)| {
                counter!(format!("forebay_exporter_dropped_{items}"), "exporter" => exporter.to_owned(), "data_type" => data_type, "reason" => "rejected")
            }),
            held: counters("forebay_exporter_held"),
            in_flight: SIGNALS.map(|(data_type, _)| {
                gauge!("otelcol_exporter_in_flight_requests", "exporter" => exporter.to_owned(), "data_type" => data_type)
            }),
        }
    }

    pub fn sent(&self, signal: usize, items: u64) {
        self.sent[signal].increment(items);
    }
    pub fn send_failed(&self, signal: usize, items: u64) {
        self.send_failed[signal].increment(items);
    }
    pub fn rejected(&self, signal: usize, items: u64) {
        self.rejected[signal].increment(items);
    }
    pub fn dead_lettered(&self, signal: usize, items: u64, reason: &'static str) {
        let (data_type, name) = SIGNALS[signal];
        counter!(format!("forebay_exporter_dead_lettered_{name}"), "exporter" => self.exporter.clone(), "data_type" => data_type, "reason" => reason)
            .increment(items);
    }
    pub fn dropped(&self, signal: usize, items: u64, reason: &'static str) {
        let (data_type, name) = SIGNALS[signal];
        counter!(format!("forebay_exporter_dropped_{name}"), "exporter" => self.exporter.clone(), "data_type" => data_type, "reason" => reason)
            .increment(items);
    }
    pub fn held(&self, signal: usize, items: u64) {
        self.held[signal].increment(items);
    }
    pub fn in_flight(&self, signal: usize, change: i64) {
        if change >= 0 {
            self.in_flight[signal].increment(change as f64);
        } else {
            self.in_flight[signal].decrement(-change as f64);
        }
    }
}

/// The dead-letter queue as it is now.
pub fn dead_letters(ring: &'static str, letters: u64, items: u64, allocated_bytes: u64, max_bytes: u64) {
    gauge!("forebay_dead_letters", "kind" => ring).set(letters as f64);
    gauge!("forebay_dead_letters_items", "kind" => ring).set(items as f64);
    gauge!("forebay_dead_letters_allocated_bytes", "kind" => ring).set(allocated_bytes as f64);
    gauge!("forebay_dead_letters_capacity_bytes", "kind" => ring).set(max_bytes as f64);
}

/// Told once at the start, also that there are none.
pub fn dead_letters_damaged(letters: u64) {
    counter!("forebay_dead_letters_damaged").increment(letters);
}

/// Letters that a person's replay sent, by what came of it: `delivered`, `failed`.
pub fn dead_letters_replayed(outcome: &'static str, letters: u64) {
    counter!("forebay_dead_letters_replayed", "outcome" => outcome).increment(letters);
}

/// Letters that a person ended.
pub fn dead_letters_purged(letters: u64) {
    counter!("forebay_dead_letters_purged").increment(letters);
}

/// Requests that could not be decoded, by what became of their copy: `kept`, `busy`, `failed`.
pub fn captured(outcome: &'static str, requests: u64) {
    counter!("forebay_invalid_captured_requests", "outcome" => outcome).increment(requests);
}

/// Items of one exporter that became dead letters at the cap.
pub fn queue_full_dead_letters(exporter: &str, signal: usize) -> Counter {
    let (data_type, items) = SIGNALS[signal];
    counter!(format!("forebay_exporter_dead_lettered_{items}"), "exporter" => exporter.to_owned(), "data_type" => data_type, "reason" => "queue_full")
}

/// Items of dead letters that were older than `max_age`.
pub fn expired_dead_letters(exporter: &str, signal: usize, items: u64) {
    let (data_type, name) = SIGNALS[signal];
    counter!(format!("forebay_exporter_dropped_{name}"), "exporter" => exporter.to_owned(), "data_type" => data_type, "reason" => "dead_letters_expired")
        .increment(items);
}

/// Items of one exporter that were given up at the cap.
pub fn queue_full_drops(exporter: &str, signal: usize) -> Counter {
    let (data_type, items) = SIGNALS[signal];
    counter!(format!("forebay_exporter_dropped_{items}"), "exporter" => exporter.to_owned(), "data_type" => data_type, "reason" => "queue_full")
}

/// One exporter's part of one queue, as it is now.
#[derive(Clone, Debug, Default)]
pub struct BacklogFigures {
    pub records: u64,
    pub items: u64,
    pub bytes: u64,
    /// In the unit of the exporter's `sizer` where it has a `queue_size`, else in bytes; so is `capacity`.
    pub size: u64,
    /// `queue_size`, else what all queues together may allocate.
    pub capacity: u64,
    /// Since the oldest record was received; zero when nothing waits.
    pub oldest_age: Duration,
    pub held_ranges: u64,
    pub retry_delay: Duration,
}

pub fn backlog(queue: &str, exporter: &str, data_type: &'static str, figures: &BacklogFigures) {
    let labels = [("exporter", exporter.to_owned()), ("data_type", data_type.to_owned()), ("queue", queue.to_owned())];
    // Size and capacity share labels and unit: people alert on their quotient.
    gauge!("otelcol_exporter_queue_size", &labels).set(figures.size as f64);
    gauge!("otelcol_exporter_queue_capacity", &labels).set(figures.capacity as f64);
    gauge!("forebay_queue_backlog_records", &labels).set(figures.records as f64);
    gauge!("forebay_queue_backlog_items", &labels).set(figures.items as f64);
    gauge!("forebay_queue_backlog_bytes", &labels).set(figures.bytes as f64);
    gauge!("forebay_queue_oldest_age_seconds", &labels).set(figures.oldest_age.as_secs_f64());
    gauge!("forebay_exporter_held_ranges", &labels).set(figures.held_ranges as f64);
    gauge!("forebay_exporter_retry_delay_seconds", "exporter" => exporter.to_owned())
        .set(figures.retry_delay.as_secs_f64());
}

/// One exporter's account of one queue since its cursor was born, in items; what waits is among `states`.
pub fn account(
    queue: &str,
    exporter: &str,
    data_type: &'static str,
    accepted: u64,
    rebased: u64,
    states: &[(&'static str, &'static str, u64)],
) {
    let labels = [("exporter", exporter.to_owned()), ("data_type", data_type.to_owned()), ("queue", queue.to_owned())];
    gauge!("forebay_account_accepted_items", &labels).set(accepted as f64);
    gauge!("forebay_account_rebased", &labels).set(rebased as f64);
    for (state, reason, items) in states {
        let [exporter, data_type, queue] = labels.clone();
        let labels = [exporter, data_type, queue, ("state", (*state).to_owned()), ("reason", (*reason).to_owned())];
        gauge!("forebay_account_items", &labels).set(*items as f64);
    }
}

/// `time_to_full` None: the queues do not grow.
pub fn storage_space(allocated_bytes: u64, capacity_bytes: u64, time_to_full: Option<Duration>) {
    gauge!("forebay_storage_time_to_full_seconds").set(time_to_full.map_or(f64::INFINITY, |time| time.as_secs_f64()));
    gauge!("forebay_storage_allocated_bytes").set(allocated_bytes as f64);
    gauge!("forebay_storage_capacity_bytes").set(capacity_bytes as f64);
}

pub fn memory(reserved_bytes: u64, limit_bytes: u64) {
    gauge!("forebay_memory_reserved_bytes").set(reserved_bytes as f64);
    gauge!("forebay_memory_limit_bytes").set(limit_bytes as f64);
}

pub fn synced(queue: &str, took: Duration, records: u64, bytes: u64) {
    histogram!(SYNC_DURATION, "queue" => queue.to_owned()).record(took.as_secs_f64());
    counter!("forebay_storage_synced_records", "queue" => queue.to_owned()).increment(records);
    counter!("forebay_storage_synced_bytes", "queue" => queue.to_owned()).increment(bytes);
}

/// Items of one queue that were durable already, and not stored again.
pub fn deduplicated(queue: &str, signal: usize, items: u64) {
    let (data_type, name) = SIGNALS[signal];
    counter!(format!("forebay_deduplicated_{name}"), "queue" => queue.to_owned(), "data_type" => data_type)
        .increment(items);
}

/// The set of one queue on one level (`request`, `span`).
pub fn dedup(queue: &str, level: &'static str, keys: u64, bytes: u64, effective_window: Duration) {
    let labels = [("queue", queue.to_owned()), ("level", level.to_owned())];
    gauge!("forebay_dedup_keys", &labels).set(keys as f64);
    gauge!("forebay_dedup_memory_bytes", &labels).set(bytes as f64);
    gauge!("forebay_dedup_effective_window_seconds", &labels).set(effective_window.as_secs_f64());
}

pub fn dedup_disk(bytes: u64) {
    gauge!("forebay_dedup_disk_bytes").set(bytes as f64);
}

pub fn storage_failed(queue: &str, operation: &'static str) {
    counter!("forebay_storage_failures", "queue" => queue.to_owned(), "operation" => operation).increment(1);
}

pub fn storage_damaged(queue: &str, records: u64, bytes: u64) {
    counter!("forebay_storage_damaged_records", "queue" => queue.to_owned()).increment(records);
    counter!("forebay_storage_damaged_bytes", "queue" => queue.to_owned()).increment(bytes);
}
