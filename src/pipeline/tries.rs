//! Between two tries of a batch, or part of one: whose fault the last failure was, and whom it keeps waiting.
//!
//! A batch that is leased has a place, of which there are as many as requests may be in flight. What fails while others
//! pass waits alone, and keeps nobody from the destination. What failed so twice, or is what the destination fails at
//! when everything leased was tried in vain, gives its place to another: else as many poisonous batches as there are
//! places would be all that is ever tried.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::HELD_RANGES_MAX;

use super::Destination;
use super::clock::Pass;

/// A batch, or part of one, that fails retryably this often while others pass is split.
const STUMBLES_MAX: u32 = 5;
/// The same for one item, which is set aside then: a destination that fails now and then must not seem to mean it.
const ITEM_STUMBLES_MAX: u32 = 8;
/// With so many failures while others passed a batch gives its place to another.
const STUMBLES_IN_PLACE: u32 = 2;
/// Failures without an answer after which it is no longer taken for the network's fault. What was sent may have arrived, and
/// each other batch that is tried then may arrive twice.
const UNANSWERED_IN_PLACE: u32 = 8;
/// Batches of one destination that may be without a place.
pub(super) const ASIDE_MAX: usize = HELD_RANGES_MAX;

/// A leased batch's place.
#[derive(Debug)]
pub(super) enum Place {
    /// One of those that the destination has requests for.
    Own { _permit: OwnedSemaphorePermit },
    /// It has given that away.
    Aside { _permit: OwnedSemaphorePermit },
}

/// What a batch, or part of one, has failed at so far.
#[derive(Debug)]
pub(super) struct Tries {
    /// Requests that failed.
    pub failures: u32,
    /// Failures between which the destination took something else.
    stumbles: u32,
    stumbles_max: u32,
    /// Of the last failure.
    was_answered: bool,
    last: Option<Instant>,
    alone_until: Option<Instant>,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// As far as is known it is the destination that is ill.
    Destinations,
    /// Others passed meanwhile.
    Own,
}

/// Leave to send one request.
pub(super) struct Leave<'d> {
    pub pass: Pass<'d>,
    /// Of those that try again without a place of their own, half as many as have one send at a time.
    _turn: Option<OwnedSemaphorePermit>,
}

impl Tries {
    /// `failed_at`: when the same failed before it was set aside, if it was.
    pub fn of_batch(failed_at: Option<Instant>) -> Tries {
        Tries {
            failures: 0,
            stumbles: 0,
            stumbles_max: STUMBLES_MAX,
            was_answered: false,
            last: failed_at,
            alone_until: None,
        }
    }

    pub fn of_part(items: usize) -> Tries {
        let stumbles_max = if items > 1 { STUMBLES_MAX } else { ITEM_STUMBLES_MAX };
        Tries { stumbles_max, ..Tries::of_batch(None) }
    }

    /// A request failed that was sent at `sent_at`.
    pub fn failed(&mut self, destination: &Destination, sent_at: Instant, is_answered: bool) -> Fault {
        let accepted_at = destination.proof.accepted_at();
        let others_passed = accepted_at.is_some_and(|at| at > self.last.unwrap_or(sent_at));
        if others_passed || self.last.is_none() {
            self.stumbles += 1;
        }
        self.failures += 1;
        self.was_answered = is_answered;
        self.last = Some(Instant::now());
        if others_passed { Fault::Own } else { Fault::Destinations }
    }

    /// The destination is well, and this waits by itself; for how long.
    pub fn wait_alone(&mut self, destination: &Destination) -> Duration {
        let delay = destination.clock.delay_alone(self.failures);
        self.alone_until = Some(Instant::now() + delay);
        delay
    }

    /// Whether it fails while others pass, time and again.
    pub fn are_spent(&self) -> bool {
        self.stumbles >= self.stumbles_max
    }

    /// Whether it should wait without a place.
    fn should_give_way(&self, destination: &Destination) -> bool {
        match self.alone_until {
            Some(_) => self.stumbles >= STUMBLES_IN_PLACE,
            None => {
                (self.was_answered || self.failures >= UNANSWERED_IN_PLACE)
                    && destination.clock.wants_another(self.failures)
            }
        }
    }

    /// Gives the place to another batch, if that is due and not too many have.
    pub fn give_way(&self, place: &mut Place, destination: &Destination) {
        if matches!(place, Place::Own { .. })
            && self.should_give_way(destination)
            && let Ok(aside) = Arc::clone(&destination.aside).try_acquire_owned()
        {
            *place = Place::Aside { _permit: aside };
        }
    }

    /// Waits for the time at which a request of `bytes` may go. None when the process is stopping and nobody waits any more
    /// for this one, or its destination.
    pub async fn leave<'d>(
        &mut self,
        place: &Place,
        destination: &'d Destination,
        draining: &CancellationToken,
        bytes: u64,
    ) -> Option<Leave<'d>> {
        if let Some(until) = self.alone_until.take() {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = draining.cancelled() => return None,
            }
        }
        let entered = async {
            let turn = match place {
                Place::Own { .. } => None,
                Place::Aside { .. } => Arc::clone(&destination.turns).acquire_owned().await.ok(),
            };
            Leave { pass: destination.clock.enter(bytes, self.failures).await, _turn: turn }
        };
        tokio::select! {
            leave = entered => Some(leave),
            () = hopeless(draining, destination) => None,
        }
    }
}

/// The process is stopping, and the destination is in backoff.
async fn hopeless(draining: &CancellationToken, destination: &Destination) {
    draining.cancelled().await;
    while !destination.clock.is_waiting() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
