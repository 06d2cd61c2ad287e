//! `sending_queue` and its `batch`.

use super::Table;
use std::time::Duration;

/// What sizes are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizer {
    Requests,
    Items,
    Bytes,
}

const SIZERS: &[(&str, Sizer)] = &[("requests", Sizer::Requests), ("items", Sizer::Items), ("bytes", Sizer::Bytes)];

/// How requests are merged before they are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchLimits {
    /// Send what there is after this time.
    pub flush_timeout: Duration,
    /// Send at once from this size on.
    pub min_size: u64,
    /// Never send more than this; 0: only the exporter's byte limit counts.
    pub max_size: u64,
    /// [`Sizer::Items`] or [`Sizer::Bytes`].
    pub sizer: Sizer,
}

impl Default for BatchLimits {
    fn default() -> BatchLimits {
        BatchLimits { flush_timeout: Duration::from_millis(200), min_size: 8192, max_size: 0, sizer: Sizer::Items }
    }
}

/// How one exporter takes from its queue.
#[derive(Clone, Debug, PartialEq)]
pub struct SendingQueue {
    /// Requests in flight at most.
    pub num_consumers: usize,
    /// Backlog in one pipeline's queue at which intake is refused, in `sizer`. None: bytes on disk alone
    /// (`forebay.queue.max_size`).
    pub queue_size: Option<u64>,
    pub sizer: Sizer,
    pub batch: BatchLimits,
    /// Whether `batch` was written here: then it wins over a `batch` processor.
    pub batch_is_set: bool,
    /// The storage extension named by `storage`.
    pub storage: Option<String>,
}

impl Default for SendingQueue {
    fn default() -> SendingQueue {
        SendingQueue {
            num_consumers: 10,
            queue_size: None,
            sizer: Sizer::Requests,
            batch: BatchLimits::default(),
            batch_is_set: false,
            storage: None,
        }
    }
}

/// Most requests in flight that one exporter may ask for.
const CONSUMERS_MAX: u64 = 1_000;

impl SendingQueue {
    /// Reads the table under `sending_queue`.
    pub fn read(table: &mut Table<'_>) -> SendingQueue {
        let default = SendingQueue::default();
        if table.flag("enabled") == Some(false) {
            table.warn(
                "enabled",
                "the queue stays on: everything acknowledged here is durable, so there is no path without a queue",
            );
        }
        if table.flag("block_on_overflow") == Some(false) {
            table.warn(
                "block_on_overflow",
                "a full queue refuses new data with a retryable answer and drops nothing; false is read as true. To give up \
                 the oldest data instead, set forebay.exporters.<id>.on_full: drop",
            );
        }
        table.flag("wait_for_result").filter(|wait| *wait).inspect(|_| {
            table.warn("wait_for_result", "an answer means that the data is durable here, not that it was delivered");
        });
        let batch = table.table("batch", BatchLimits::read);
        let queue = SendingQueue {
            num_consumers: table
                .integer("num_consumers", 1..=CONSUMERS_MAX)
                .map_or(default.num_consumers, |n| n as usize),
            queue_size: table.integer("queue_size", 1..=u64::MAX),
            sizer: table.choice("sizer", SIZERS).unwrap_or(default.sizer),
            batch_is_set: batch.is_some(),
            batch: batch.unwrap_or(default.batch),
            storage: table.text("storage"),
        };
        if let Some(size) = queue.queue_size {
            table.warn(
                "queue_size",
                format!(
                    "intake is refused (503, UNAVAILABLE) while {size} {} wait for this exporter in one pipeline, or, \
                     with forebay.exporters.<id>.on_full: drop, its oldest records are given up; \
                     `validate` says how long an outage that covers; unset, bytes on disk alone bound it",
                    queue.sizer.name()
                ),
            );
        }
        queue
    }
}

impl Sizer {
    pub fn name(self) -> &'static str {
        match self {
            Sizer::Requests => "requests",
            Sizer::Items => "items",
            Sizer::Bytes => "bytes",
        }
    }
}

impl BatchLimits {
    fn read(table: &mut Table<'_>) -> BatchLimits {
        let default = BatchLimits::default();
        let limits = BatchLimits {
            flush_timeout: table.duration("flush_timeout").unwrap_or(default.flush_timeout),
            min_size: table.integer("min_size", 0..=u64::MAX).unwrap_or(default.min_size),
            max_size: table.integer("max_size", 0..=u64::MAX).unwrap_or(default.max_size),
            sizer: table.choice("sizer", &SIZERS[1..]).unwrap_or(default.sizer),
        };
        if limits.max_size > 0 && limits.max_size < limits.min_size {
            table
                .problem("max_size", format!("max_size {} is less than min_size {}", limits.max_size, limits.min_size));
        }
        limits
    }
}
