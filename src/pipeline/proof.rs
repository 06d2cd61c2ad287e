//! Who is ill, the batch or its destination? What shows whether a destination takes anything at all.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::batch;
use super::deliver::{Answer, Leased};
use super::parking::Envelope;
use super::tries::Tries;

/// A destination that took nothing while it refused this many requests in a row is taken to refuse everything: then its
/// batches are held, not split and parked.
pub(super) const REFUSALS_IN_ROW_MAX: u32 = 64;
/// A refusal speaks of the batch if the destination took something else not longer ago than this, and has refused no
/// more requests than that since.
const PROOF_AGE_MAX: Duration = Duration::from_secs(60);
pub(super) const PROOF_ROW_MAX: u32 = 8;
/// When so many records that were settled before were refused too, others are tried no sooner than this.
const REPEATS_MAX: usize = 8;
const REPEAT_AFTER: Duration = PROOF_AGE_MAX;

/// What one destination has taken and refused of late.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// When it took something last.
    accepted_at: Mutex<Option<Instant>>,
    /// Requests that it refused for their content since then.
    refusals_in_row: AtomicU32,
    /// An isolation found so; until it takes something.
    refuses_everything: AtomicBool,
    /// Something is set aside until it takes something.
    is_wanted: AtomicBool,
    /// Counts when it took something and that was wanted.
    given: watch::Sender<u64>,
    repeated_in_vain_at: Mutex<Option<Instant>>,
}

impl Proof {
    pub fn accepted(&self) {
        *self.accepted_at.lock() = Some(Instant::now());
        self.refusals_in_row.store(0, Ordering::Relaxed);
        self.refuses_everything.store(false, Ordering::Relaxed);
        if self.is_wanted.swap(false, Ordering::AcqRel) {
            self.given.send_modify(|count| *count += 1);
        }
    }

    pub fn refused(&self) {
        self.refusals_in_row.fetch_add(1, Ordering::Relaxed);
    }

    pub fn found_to_refuse_everything(&self) {
        self.refuses_everything.store(true, Ordering::Relaxed);
    }

    pub fn refuses_everything(&self) -> bool {
        self.refuses_everything.load(Ordering::Relaxed)
    }

    pub fn accepted_at(&self) -> Option<Instant> {
        *self.accepted_at.lock()
    }

    /// Whether it took something after that, and has not begun to refuse everything since.
    pub fn took_something_since(&self, then: Instant) -> bool {
        self.accepted_at().is_some_and(|at| at > then)
            && self.refusals_in_row.load(Ordering::Relaxed) < REFUSALS_IN_ROW_MAX
    }

    /// Whether a refusal now is as good as known to be the batch's own fault.
    pub fn takes_others(&self) -> bool {
        self.refusals_in_row.load(Ordering::Relaxed) <= PROOF_ROW_MAX
            && self.accepted_at().is_some_and(|at| at.elapsed() <= PROOF_AGE_MAX)
    }

    /// Something was set aside because nothing had been taken when that was `checked_at`.
    pub fn is_wanted_since(&self, checked_at: Instant) {
        self.is_wanted.store(true, Ordering::Release);
        if self.accepted_at().is_some_and(|at| at > checked_at) {
            // Before it was set aside: nobody else would tell.
            self.given.send_modify(|count| *count += 1);
        }
    }

    /// Changes when what was set aside for want of proof may be tried again.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.given.subscribe()
    }

    fn may_repeat(&self) -> bool {
        self.repeated_in_vain_at.lock().is_none_or(|at| at.elapsed() >= REPEAT_AFTER)
    }
}

impl Leased {
    /// Where nothing can come in any more that would prove it, and what is refused holds the room: whether the destination
    /// still takes what it may have taken before. Some of that is sent once more, which is the lesser evil.
    pub(super) async fn takes_what_it_took(&self, envelope: &Envelope) -> bool {
        let destination = &self.destination;
        if !self.lease.is_last_resort() || !destination.proof.may_repeat() {
            return false;
        }
        let samples = match self.lease.settled_samples(REPEATS_MAX, destination.lease_limits()).await {
            Ok(samples) => samples,
            Err(error) => {
                tracing::error!(exporter = %destination.id, %error, "failed to read what was settled before");
                return false;
            }
        };
        for record in samples.iter().filter(|record| record.signal == self.signal as u8) {
            let Ok(request) = batch::build(self.signal, std::slice::from_ref(record)).await else { continue };
            if request.payload.len() as u64 > destination.request_bytes_max() {
                continue;
            }
            let mut tries = Tries::of_part(1);
            let leave = tries.leave(&self.place, destination, &self.draining, request.payload.len() as u64);
            let Some(leave) = leave.await else { return false };
            match self.export(request, leave, envelope, &mut tries).await {
                Answer::Taken { .. } => {
                    tracing::warn!(
                        exporter = %destination.id, sequence = record.sequence,
                        "the queue is full of what was refused: a record was sent once more to learn that the destination takes \
                         others"
                    );
                    return true;
                }
                Answer::Refused(_) => {}
                Answer::Failed(_) => break,
            }
        }
        *destination.proof.repeated_in_vain_at.lock() = Some(Instant::now());
        false
    }
}
