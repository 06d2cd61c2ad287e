//! One batch on its way: from its first attempt to the settled cursor, however often the destination says no.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dlq::Reason;
use crate::exporters::{Batch, Class, Failure, Outcome};
use crate::otlp::Signal;
use crate::queue::{Lease, Settled, Why};

use super::clock::Pass;
use super::gather::{item_count, memory_share};
use super::isolate::{Isolation, Refusal};
use super::parking::{Envelope, unix_now_ms};
use super::tries::{Fault, Leave, Place, Tries};
use super::{Destination, batch};

/// Errors of one destination are logged this often at the most; the count is in the metrics.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A lease with its place among the batches of its destination.
pub(super) struct Leased {
    pub signal: Signal,
    pub destination: Arc<Destination>,
    pub lease: Lease,
    /// The bytes that the batch may hold; given back while the destination is waited for.
    pub memory: Option<OwnedSemaphorePermit>,
    /// Inflated bytes of all its records.
    pub bytes: u64,
    pub place: Place,
    /// It was refused before, and the destination has taken something since: another refusal says nothing new.
    pub was_refused: bool,
    pub draining: CancellationToken,
}

/// What came of one request.
pub(super) enum Answer {
    /// The destination has it, or what it wanted of it.
    Taken { rejected_items: u64 },
    /// It refused the content.
    Refused(Failure),
    /// It, or the way to it, is ill, or the batch makes it so.
    Failed(Failure),
}

impl Leased {
    pub async fn run(mut self) {
        let destination = Arc::clone(&self.destination);
        let bytes = self.bytes;
        let first_attempt = Instant::now();
        let first_attempt_unix_ms = unix_now_ms();
        let mut attempts = 0;
        let mut tries = Tries::of_batch(self.lease.held_at());
        let unproven_since = self.lease.unproven_since();
        self.was_refused = unproven_since.is_some_and(|at| destination.proof.took_something_since(at));
        loop {
            if !destination.clock.is_open() {
                self.lease.shed();
                self.memory = None;
            }
            let Some(leave) = tries.leave(&self.place, &destination, &self.draining, bytes).await else {
                return self.stay();
            };
            self.take_memory(&leave.pass).await;
            let items = match self.lease.claim().await {
                Ok(true) => item_count(&self.lease),
                Ok(false) => {
                    drop(leave);
                    return self.lease.settle_empty();
                }
                Err(error) => {
                    self.lease.unclaim();
                    tracing::error!(exporter = %destination.id, %error, "failed to read a batch again; trying later");
                    leave.pass.failed(None);
                    continue;
                }
            };
            let built = batch::build(self.signal, self.lease.records()).await;
            let request = match built {
                Ok(request) => request,
                Err(error) => {
                    drop(leave);
                    tracing::error!(exporter = %destination.id, %error, "a stored record cannot be sent");
                    return self.hold(items, Why::of(error.to_string()));
                }
            };
            let envelope = self.envelope(&request, first_attempt_unix_ms);
            let records = self.lease.records().len();
            if self.lease.left().is_some() {
                drop(leave);
                return self.resume(request, envelope).await;
            }
            if items > 1 && request.payload.len() as u64 > destination.request_bytes_max() {
                // One record, larger than the destination takes: it goes in parts from the beginning.
                drop(leave);
                return Isolation::new(self, request, envelope).await.run().await;
            }
            // The request has the bytes now.
            self.lease.shed();
            attempts += 1;
            let answer = self.export(request, leave, &envelope, &mut tries).await;
            self.memory = None;
            let failure = match answer {
                Answer::Taken { rejected_items } => {
                    return self.lease.settle(Settled::by_delivery().rejected(rejected_items));
                }
                Answer::Refused(failure) => {
                    return self.refused(envelope, items, records, attempts, failure).await;
                }
                Answer::Failed(failure) => failure,
            };
            self.lease.unclaim();
            let expired =
                !destination.max_elapsed_time.is_zero() && first_attempt.elapsed() >= destination.max_elapsed_time;
            if expired || !destination.retry_enabled {
                let reason = if expired { Reason::Expired } else { Reason::RetryDisabled };
                return self.park_all(envelope, items, attempts, reason, failure).await;
            }
            if tries.are_spent() {
                return self.isolate(envelope, items, attempts, Refusal::Stubborn, failure).await;
            }
            tries.give_way(&mut self.place, &destination);
        }
    }

    /// Memory for the batch, if it has none.
    pub(super) async fn take_memory(&mut self, pass: &Pass<'_>) {
        if self.memory.is_none() {
            let share = memory_share(self.bytes, &self.destination);
            let memory = Arc::clone(&self.destination.memory);
            // Who has the memory may wait for the probe to end: the probe, of which there is one, does without.
            self.memory = match pass.is_probe() {
                true => memory.try_acquire_many_owned(share).ok(),
                false => memory.acquire_many_owned(share).await.ok(),
            };
        }
    }

    /// The same for what is not sent.
    pub(super) async fn wait_for_memory(&mut self) {
        if self.memory.is_none() {
            let share = memory_share(self.bytes, &self.destination);
            self.memory = Arc::clone(&self.destination.memory).acquire_many_owned(share).await.ok();
        }
    }

    /// The process is stopping: the batch stays in the queue for the next start. Not dropped, or it would be leased again.
    pub(super) fn stay(self) {
        self.lease.hold(Why::stopping());
    }

    /// Sends one request and counts what comes of it.
    pub(super) async fn export(
        &self,
        request: Batch,
        leave: Leave<'_>,
        envelope: &Envelope,
        tries: &mut Tries,
    ) -> Answer {
        let pass = leave.pass;
        let destination = &self.destination;
        let (signal, items) = (request.signal, request.items);
        let keeps_partial = destination.parking.as_ref().is_some_and(|parking| parking.keeps_partial);
        let copy = keeps_partial.then(|| request.payload.clone());
        // Innermost: who has one waits for the answer alone. The semaphore is never closed.
        let slot = destination.slots.acquire().await;
        destination.meter.in_flight(&destination.id, signal, 1);
        let sent_at = Instant::now();
        let outcome = destination.exporter.export(request).await;
        destination.meter.in_flight(&destination.id, signal, -1);
        drop(slot);
        let failure = match outcome {
            Outcome::Delivered => {
                pass.succeeded();
                destination.proof.accepted();
                destination.meter.sent(&destination.id, signal, items);
                *destination.last_error.lock() = None;
                return Answer::Taken { rejected_items: 0 };
            }
            Outcome::Partial { rejected_items, message } => {
                pass.succeeded();
                destination.proof.accepted();
                let rejected = rejected_items.min(items);
                destination.meter.sent(&destination.id, signal, items - rejected);
                destination.meter.rejected(&destination.id, signal, rejected);
                tracing::warn!(
                    exporter = %destination.id, rejected_items = rejected, %message,
                    "the destination took a batch but rejected items in it"
                );
                if let Some(copy) = copy.filter(|_| rejected > 0) {
                    let failure = Failure {
                        class: Class::Batch,
                        status: None,
                        retry_after: None,
                        too_large: false,
                        message: format!("{rejected} of {items} items rejected: {message}"),
                    };
                    let payload = copy.into_bytes();
                    let letter = envelope.letter(&destination.id, Reason::Ambiguous, &failure, 1, items, payload);
                    // It was taken and is never sent again: without room for the copy the message must do.
                    let _copied = destination.park(vec![letter]).await;
                }
                *destination.last_error.lock() = Some(message);
                return Answer::Taken { rejected_items: rejected };
            }
            Outcome::Failed(failure) => failure,
        };
        destination.meter.failed(&destination.id, signal, items);
        *destination.last_error.lock() = Some(failure.message.clone());
        if failure.class == Class::Batch {
            // An answer about the batch is the answer of a destination that is well.
            pass.succeeded();
            if !self.was_refused {
                destination.proof.refused();
            }
            return Answer::Refused(failure);
        }
        // A destination that names a time means everybody.
        let waits_alone =
            tries.failed(destination, sent_at, failure.status.is_some()) == Fault::Own && failure.retry_after.is_none();
        let delay = if waits_alone { pass.failed_alone() } else { Some(pass.failed(failure.retry_after)) };
        let delay = delay.unwrap_or_else(|| tries.wait_alone(destination));
        log_failure(destination, &failure, delay);
        Answer::Failed(failure)
    }

    fn envelope(&self, request: &Batch, first_attempt_unix_ms: u64) -> Envelope {
        Envelope {
            signal: self.signal,
            queue: self.lease.queue().to_owned(),
            sequence: None,
            metadata: request.metadata.clone(),
            received_unix_ns: self.lease.records().first().map_or(0, |record| record.received_unix_ns),
            first_attempt_unix_ms,
        }
    }

    async fn refused(self, envelope: Envelope, items: u64, records: usize, attempts: u32, failure: Failure) {
        let bytes = self.bytes;
        if failure.too_large {
            if items > 1 {
                tracing::warn!(
                    exporter = %self.destination.id, bytes, message = %failure.message,
                    "a batch is too large for the destination; smaller ones from now on"
                );
                self.destination.learn_too_large(bytes);
            }
            if records > 1 && self.destination.request_bytes_max() < bytes {
                // Dropped: its records come again in smaller leases.
                return;
            }
        }
        self.isolate(envelope, items, attempts, Refusal::Permanent, failure).await;
    }

    /// Finds what in a refused batch is refused, and delivers the rest.
    async fn isolate(mut self, envelope: Envelope, items: u64, attempts: u32, refusal: Refusal, failure: Failure) {
        let Some(still_to_do) = self.hold_if_hopeless(&envelope, items, &failure.message).await else { return };
        self = still_to_do;
        match self.reload_and_claim().await {
            Ok(true) => {}
            Ok(false) => return self.lease.settle_empty(),
            Err(error) => {
                tracing::error!(exporter = %self.destination.id, %error, "failed to read a refused batch again");
                return self.hold(items, Why::of(failure.message));
            }
        }
        match batch::build(self.signal, self.lease.records()).await {
            Ok(request) => {
                let mut isolation = Isolation::new(self, request, envelope).await;
                isolation.begin_refused(attempts, refusal, failure);
                isolation.run().await;
            }
            Err(error) => self.hold(items, Why::of(error.to_string())),
        }
    }

    /// Goes on with what the destination has not taken of it yet.
    async fn resume(self, request: Batch, envelope: Envelope) {
        let reason = "held before";
        if let Some(still_to_do) = self.hold_if_hopeless(&envelope, request.items, reason).await {
            let mut isolation = Isolation::new(still_to_do, request, envelope).await;
            isolation.begin_with_the_left();
            isolation.run().await;
        }
    }

    /// Sets it aside if its destination refuses everything. None: it did.
    async fn hold_if_hopeless(self, envelope: &Envelope, items: u64, message: &str) -> Option<Leased> {
        let destination = Arc::clone(&self.destination);
        let checked_at = Instant::now();
        if !destination.proof.refuses_everything() || self.takes_what_it_took(envelope).await {
            return Some(self);
        }
        let message = format!("the destination refuses everything: {message}");
        let since = self.lease.unproven_since().unwrap_or(checked_at);
        self.hold(items, Why::unproven(message, since));
        destination.proof.is_wanted_since(checked_at);
        None
    }

    /// False: it was given up while it waited.
    async fn reload_and_claim(&mut self) -> std::io::Result<bool> {
        self.wait_for_memory().await;
        self.lease.claim().await
    }

    /// Parks the whole batch, record by record.
    async fn park_all(mut self, envelope: Envelope, items: u64, attempts: u32, reason: Reason, failure: Failure) {
        match self.reload_and_claim().await {
            Ok(true) => {}
            Ok(false) => return self.lease.settle_empty(),
            Err(error) => {
                tracing::error!(exporter = %self.destination.id, %error, "failed to read a failed batch again");
                return self.hold(items, Why::of(failure.message));
            }
        }
        let mut letters = Vec::new();
        for record in self.lease.records() {
            match batch::build(self.signal, std::slice::from_ref(record)).await {
                Ok(request) => {
                    let (sequence, received_unix_ns) = (Some(record.sequence), record.received_unix_ns);
                    let envelope = Envelope { sequence, received_unix_ns, ..envelope.clone() };
                    let payload = request.payload.into_bytes();
                    let id = &self.destination.id;
                    letters.push(envelope.letter(id, reason, &failure, attempts, request.items, payload));
                }
                Err(error) => return self.hold(items, Why::of(error.to_string())),
            }
        }
        match self.destination.park(letters).await {
            Some((durable, fates)) => self.lease.settle(Settled::by_dead_letters(durable, fates)),
            None => self.hold(items, Why::of(failure.message)),
        }
    }

    pub(super) fn hold(self, items: u64, reason: Why) {
        self.log_held(items, &reason.message);
        self.lease.hold(reason);
    }

    pub(super) fn log_held(&self, items: u64, reason: &str) {
        tracing::error!(
            exporter = %self.destination.id, items, sequences = ?self.lease.covers(), %reason,
            "a batch was refused and is set aside; later ones go on. It is kept and tried again every {} s and at restart",
            crate::queue::book::HELD_RETRY_AFTER.as_secs()
        );
        // What comes again and is held again was counted.
        if self.lease.held_at().is_none() {
            self.destination.meter.held(&self.destination.id, self.signal, items);
        }
    }
}

/// One line per destination and some seconds; the rest is counted.
fn log_failure(destination: &Destination, failure: &Failure, delay: Duration) {
    let exporter = destination.id.as_str();
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    static LAST: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());
    let mut last = LAST.lock();
    if last.get(exporter).is_some_and(|at| at.elapsed() < LOG_EVERY) {
        return;
    }
    last.insert(exporter.to_owned(), Instant::now());
    let (class, status, message) = (failure.class, failure.status, &failure.message);
    if !destination.retry_enabled {
        tracing::warn!(exporter, ?class, ?status, %message, "a request failed, and is not tried again: retry is disabled");
        return;
    }
    tracing::warn!(
        exporter, ?class, ?status, retry_in_ms = delay.as_millis() as u64, %message,
        "a request failed; its data is kept and tried again"
    );
}
