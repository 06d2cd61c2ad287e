//! Delivery: one loop per queue and exporter, one retry clock per destination.
//!
//! ```text
//! ready ─▶ place ─▶ lease ─▶ gate ─▶ export ─▶ Delivered / Partial ─▶ settle
//!                             ▲                 Retryable, Destination ─▶ back to the gate, when the clock allows
//!                             └──────────────── Batch ─▶ isolate: halves, until the poison stands alone
//!                                                         good parts ─▶ settle; poison ─▶ park ─▶ settle, or hold
//! ```
//! Every batch whose destination is ill keeps its claim but sheds its memory. Only one of them probes at a time.

pub mod batch;
mod clock;
mod conclude;
mod deliver;
mod gather;
mod isolate;
mod parking;
mod proof;
mod records;
mod tries;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exporters::Exporter;
use crate::otlp::Signal;
use crate::queue::{LeaseLimits, Subscription};

pub use batch::BuildError;
pub use clock::{Clock, ClockStatus, RetryPolicy};
pub use parking::Parking;
use proof::Proof;
use tries::Place;

/// Smallest limit that a destination's refusals can teach.
const LEARNED_BYTES_MIN: u64 = 64 << 10;
/// Records in one request; each is a client's request of its own.
const RECORDS_MAX: usize = 4096;
/// How batches for one destination are cut.
#[derive(Clone, Copy, Debug)]
pub struct BatchPolicy {
    /// A smaller batch waits for more, up to `flush_timeout`.
    pub min_items: u64,
    /// 0: no limit but bytes.
    pub max_items: u64,
    pub flush_timeout: Duration,
}

impl Default for BatchPolicy {
    fn default() -> BatchPolicy {
        BatchPolicy { min_items: 8192, max_items: 0, flush_timeout: Duration::from_millis(200) }
    }
}

/// Told what comes of each request; for counting.
pub trait Meter: Send + Sync {
    fn sent(&self, _exporter: &str, _signal: Signal, _items: u64) {}
    fn rejected(&self, _exporter: &str, _signal: Signal, _items: u64) {}
    fn failed(&self, _exporter: &str, _signal: Signal, _items: u64) {}
    fn held(&self, _exporter: &str, _signal: Signal, _items: u64) {}
    fn dead_lettered(&self, _exporter: &str, _signal: Signal, _items: u64, _reason: &'static str) {}
    /// Given up, as the configuration says.
    fn dropped(&self, _exporter: &str, _signal: Signal, _items: u64, _reason: &'static str) {}
    fn in_flight(&self, _exporter: &str, _signal: Signal, _requests: i64) {}
}

/// How a destination is served.
#[derive(Debug)]
pub struct Policy {
    pub retry: RetryPolicy,
    pub batch: BatchPolicy,
    /// Requests in flight.
    pub consumers: usize,
    /// What its batches may hold in memory at once.
    pub memory_bytes: u64,
    /// None: what is refused is held.
    pub parking: Option<Parking>,
}

/// One configured exporter with what its requests share.
pub struct Destination {
    pub id: String,
    pub exporter: Arc<dyn Exporter>,
    pub clock: Clock,
    pub batch: BatchPolicy,
    /// Time from a batch's first attempt after which it becomes a dead letter; zero: never.
    max_elapsed_time: Duration,
    retry_enabled: bool,
    /// For batches that are leased, but for those that gave their place away.
    places: Arc<Semaphore>,
    /// For those.
    aside: Arc<Semaphore>,
    /// Of those as many may be about to be sent at once.
    turns: Arc<Semaphore>,
    /// For requests in flight.
    slots: Semaphore,
    /// Bytes that its batches may hold in memory.
    memory: Arc<Semaphore>,
    memory_bytes: u32,
    learned_bytes_max: Mutex<Option<u64>>,
    parking: Option<Parking>,
    proof: Proof,
    meter: Arc<dyn Meter>,
    last_error: Mutex<Option<String>>,
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Destination").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Destination {
    pub fn new(id: &str, exporter: Arc<dyn Exporter>, policy: Policy, meter: Arc<dyn Meter>) -> Arc<Destination> {
        let Policy { retry, batch, consumers, memory_bytes, parking } = policy;
        let memory_bytes = u32::try_from(memory_bytes.max(1)).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32);
        Arc::new(Destination {
            id: id.to_owned(),
            exporter,
            max_elapsed_time: retry.max_elapsed_time,
            retry_enabled: retry.enabled,
            clock: Clock::new(retry),
            batch,
            places: Arc::new(Semaphore::new(consumers.max(1))),
            aside: Arc::new(Semaphore::new(tries::ASIDE_MAX)),
            turns: Arc::new(Semaphore::new((consumers / 2).max(1))),
            slots: Semaphore::new(consumers.max(1)),
            memory: Arc::new(Semaphore::new(memory_bytes as usize)),
            memory_bytes,
            learned_bytes_max: Mutex::new(None),
            parking,
            proof: Proof::default(),
            meter,
            last_error: Mutex::new(None),
        })
    }

    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// What a request may come to: what is configured, and what refusals have taught.
    fn request_bytes_max(&self) -> u64 {
        self.exporter.max_request_bytes().min(self.learned_bytes_max.lock().unwrap_or(u64::MAX))
    }

    fn lease_limits(&self) -> LeaseLimits {
        LeaseLimits {
            // Merging and compressing take about as much again.
            bytes_max: self.request_bytes_max().min(u64::from(self.memory_bytes / 2)),
            records_max: RECORDS_MAX,
            items_max: if self.batch.max_items == 0 { u64::MAX } else { self.batch.max_items },
        }
    }

    /// A request of `bytes` was refused for its size: smaller ones from now on.
    fn learn_too_large(&self, bytes: u64) {
        let mut learned = self.learned_bytes_max.lock();
        let smaller = (bytes / 2).max(LEARNED_BYTES_MIN);
        *learned = Some(learned.map_or(smaller, |known| known.min(smaller)));
    }
}

/// Runs the delivery of one queue to one destination until `stop` says otherwise.
pub async fn run(subscription: Arc<Subscription>, destination: Arc<Destination>, stop: Drain) {
    let tasks = TaskTracker::new();
    let mut proofs = destination.proof.watch();
    loop {
        tokio::select! {
            biased;
            () = stop.abort.cancelled() => break,
            () = drained(&subscription, &destination, &stop) => break,
            Ok(()) = proofs.changed() => {
                subscription.retry_unproven();
                continue;
            }
            () = subscription.ready() => {}
        }
        let place = tokio::select! {
            () = stop.abort.cancelled() => break,
            () = drained(&subscription, &destination, &stop) => break,
            place = Arc::clone(&destination.places).acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        tokio::select! {
            () = stop.abort.cancelled() => break,
            () = drained(&subscription, &destination, &stop) => break,
            () = destination.clock.wants_batch() => {}
        }
        let work = gather::Delivery {
            subscription: Arc::clone(&subscription),
            destination: Arc::clone(&destination),
            draining: stop.drain.clone(),
        };
        match work.next(Place::Own { _permit: place }).await {
            Ok(Some(batch)) => {
                let abort = stop.abort.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = abort.cancelled() => {}
                        () = batch.run() => {}
                    }
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(
                    exporter = %destination.id, queue = %subscription.queue(), %error,
                    "failed to read the queue; trying again"
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = stop.abort.cancelled() => {}
    }
}

/// How delivery is told to end.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Nothing new will come: end when all is delivered, or the destination is in backoff.
    pub drain: CancellationToken,
    /// The deadline has passed: end now.
    pub abort: CancellationToken,
}

/// Resolves when draining was asked for and there is nothing more to do for this destination.
async fn drained(subscription: &Arc<Subscription>, destination: &Destination, stop: &Drain) {
    stop.drain.cancelled().await;
    loop {
        if subscription.is_drained().await || destination.clock.is_waiting() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests;
