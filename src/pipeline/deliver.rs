//! One batch on its way: from the lease to the settled cursor, however often the destination says no.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::exporters::{Class, Failure, Outcome};
use crate::otlp::Signal;
use crate::queue::{Lease, Settled, Subscription};

use super::{Destination, batch};

/// A batch that fails retryably this often while others pass is set aside.
const ATTEMPTS_WHILE_OTHERS_PASS_MAX: u32 = 5;
/// Errors of one destination are logged this often at the most; the count is in the metrics.
const LOG_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Delivery {
    pub subscription: Arc<Subscription>,
    pub destination: Arc<Destination>,
    pub draining: CancellationToken,
}

/// A lease with its place among the requests in flight.
pub(super) struct Leased {
    signal: Signal,
    destination: Arc<Destination>,
    lease: Lease,
    /// The bytes that the batch may hold; given back while the destination is waited for.
    memory: Option<OwnedSemaphorePermit>,
    _slot: OwnedSemaphorePermit,
    draining: CancellationToken,
}

impl Delivery {
    /// Leases the next batch; waits a little for more when it would be small.
    pub async fn next(&self, slot: OwnedSemaphorePermit) -> std::io::Result<Option<Leased>> {
        let policy = &self.destination.batch;
        let limits = self.destination.lease_limits();
        // Memory first: what the lease may bring at the most.
        let most = memory_share(limits.bytes_max, &self.destination);
        let Ok(mut memory) = Arc::clone(&self.destination.memory).acquire_many_owned(most).await else {
            return Ok(None);
        };
        let mut lease = match self.subscription.lease(limits).await? {
            Some(lease) => lease,
            None => return Ok(None),
        };
        let is_small = |lease: &Lease| item_count(lease) < policy.min_items;
        if is_small(&lease) && !policy.flush_timeout.is_zero() && self.destination.clock.is_open() {
            let flush_at = oldest(&lease) + policy.flush_timeout;
            tokio::select! {
                () = tokio::time::sleep_until(flush_at) => {}
                () = self.draining.cancelled() => {}
                grown = self.grow(&mut lease, limits, is_small) => grown?,
            }
        }
        let signal = lease.records().first().and_then(|record| Signal::from_u8(record.signal)).ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, "a record has a signal of another version")
        })?;
        let excess = most.saturating_sub(memory_share(raw_bytes(&lease), &self.destination));
        drop(memory.split(excess as usize));
        Ok(Some(Leased {
            signal,
            destination: Arc::clone(&self.destination),
            lease,
            memory: Some(memory),
            _slot: slot,
            draining: self.draining.clone(),
        }))
    }

    /// Adds what comes in behind the lease until it is no longer small.
    async fn grow(
        &self,
        lease: &mut Lease,
        limits: crate::queue::LeaseLimits,
        is_small: impl Fn(&Lease) -> bool,
    ) -> std::io::Result<()> {
        while is_small(lease) {
            if !lease.extend(limits).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn item_count(lease: &Lease) -> u64 {
    lease.records().iter().map(|record| u64::from(record.items)).sum()
}

fn raw_bytes(lease: &Lease) -> u64 {
    lease.records().iter().map(|record| u64::from(record.raw_len)).sum()
}

/// Permits for a batch of `bytes`: merging and compressing take about as much again.
fn memory_share(bytes: u64, destination: &Destination) -> u32 {
    u32::try_from(bytes.saturating_mul(2)).unwrap_or(u32::MAX).clamp(1, destination.memory_bytes)
}

/// When the oldest record of the lease came, on the clock that sleeps.
fn oldest(lease: &Lease) -> Instant {
    let now_ns = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    let received_ns = lease.records().first().map_or(now_ns, |record| record.received_unix_ns);
    // A wall clock that jumped makes the record as old as the timeout at the most, or brand-new.
    let age = Duration::from_nanos(now_ns.saturating_sub(received_ns));
    Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
}

impl Leased {
    pub async fn run(mut self) {
        let destination = Arc::clone(&self.destination);
        let bytes = raw_bytes(&self.lease);
        let first_attempt = Instant::now();
        let mut attempts_while_open = 0;
        loop {
            let was_open = destination.clock.is_open();
            if !was_open {
                self.lease.shed();
                self.memory = None;
            }
            let pass = tokio::select! {
                pass = destination.clock.enter(bytes) => pass,
                // Dropped: the batch stays in the queue for the next start.
                () = hopeless(&self.draining, &destination) => return,
            };
            if self.memory.is_none() {
                let share = memory_share(bytes, &destination);
                self.memory = Arc::clone(&destination.memory).acquire_many_owned(share).await.ok();
            }
            if self.lease.records().is_empty()
                && let Err(error) = self.lease.reload().await
            {
                tracing::error!(exporter = %destination.id, %error, "failed to read a batch again; trying later");
                pass.failed(None);
                continue;
            }
            let items = match self.lease.claim().await {
                Ok(true) => item_count(&self.lease),
                Ok(false) => {
                    drop(pass);
                    return self.lease.settle_empty();
                }
                Err(error) => {
                    self.lease.unclaim();
                    tracing::error!(exporter = %destination.id, %error, "failed to read a batch again; trying later");
                    pass.failed(None);
                    continue;
                }
            };
            let built = batch::build(self.signal, self.lease.records()).await;
            let request = match built {
                Ok(request) => request,
                Err(error) => {
                    drop(pass);
                    tracing::error!(exporter = %destination.id, %error, "a stored record cannot be sent");
                    return self.hold(items, error.to_string());
                }
            };
            // The request has the bytes now.
            self.lease.shed();
            destination.meter.in_flight(&destination.id, self.signal, 1);
            let outcome = destination.exporter.export(request).await;
            destination.meter.in_flight(&destination.id, self.signal, -1);
            self.memory = None;
            let failure = match outcome {
                Outcome::Delivered => {
                    pass.succeeded();
                    destination.meter.sent(&destination.id, self.signal, items);
                    *destination.last_error.lock() = None;
                    return self.lease.settle(Settled::by_delivery());
                }
                Outcome::Partial { rejected_items, message } => {
                    pass.succeeded();
                    let rejected = rejected_items.min(items);
                    destination.meter.sent(&destination.id, self.signal, items - rejected);
                    destination.meter.rejected(&destination.id, self.signal, rejected);
                    tracing::warn!(
                        exporter = %destination.id, rejected_items = rejected, %message,
                        "the destination took a batch but rejected items in it"
                    );
                    *destination.last_error.lock() = Some(message);
                    return self.lease.settle(Settled::by_delivery());
                }
                Outcome::Failed(failure) => failure,
            };
            self.lease.unclaim();
            destination.meter.failed(&destination.id, self.signal, items);
            *destination.last_error.lock() = Some(failure.message.clone());
            if failure.class == Class::Batch {
                // An answer about the batch is the answer of a destination that is well.
                pass.succeeded();
                return self.refused(items, bytes, failure);
            }
            let delay = pass.failed(failure.retry_after);
            log_failure(&destination.id, &failure, delay);
            if was_open {
                attempts_while_open += 1;
            }
            let elapsed = first_attempt.elapsed();
            let expired = !destination.max_elapsed_time.is_zero() && elapsed >= destination.max_elapsed_time;
            if expired || !destination.retry_enabled || attempts_while_open >= ATTEMPTS_WHILE_OTHERS_PASS_MAX {
                return self.hold(items, failure.message);
            }
        }
    }

    fn refused(self, items: u64, bytes: u64, failure: Failure) {
        let several = self.lease.covers().end - self.lease.covers().start > 1;
        if failure.too_large && several {
            tracing::warn!(
                exporter = %self.destination.id, bytes, message = %failure.message,
                "a batch is too large for the destination; smaller ones from now on"
            );
            self.destination.learn_too_large(bytes);
            // Dropped: its records come again in smaller leases.
            return;
        }
        self.hold(items, failure.message);
    }

    fn hold(self, items: u64, reason: String) {
        tracing::error!(
            exporter = %self.destination.id, items, sequences = ?self.lease.covers(), %reason,
            "a batch was refused and is set aside; later ones go on. It is kept and tried again every {} s and at restart",
            crate::queue::subscription::HELD_RETRY_AFTER.as_secs()
        );
        self.destination.meter.held(&self.destination.id, self.signal, items);
        self.lease.hold(reason);
    }
}

/// Resolves when the process is stopping and the destination is in backoff: nobody waits for it then.
async fn hopeless(draining: &CancellationToken, destination: &Destination) {
    draining.cancelled().await;
    while !destination.clock.is_waiting() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One line per destination and some seconds; the rest is counted.
fn log_failure(exporter: &str, failure: &Failure, delay: Duration) {
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    static LAST: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());
    let mut last = LAST.lock();
    if last.get(exporter).is_some_and(|at| at.elapsed() < LOG_EVERY) {
        return;
    }
    last.insert(exporter.to_owned(), Instant::now());
    tracing::warn!(
        exporter, class = ?failure.class, status = ?failure.status, retry_in_ms = delay.as_millis() as u64,
        message = %failure.message, "a request failed; its data is kept and tried again"
    );
}
