//! The retry clock of one destination: exponential backoff with jitter, and one probe at a time.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Failures in a row after which the probe goes to a smaller batch, and to one more than are leased.
const ROTATE_AFTER: u32 = 3;
/// The longest `Retry-After` that is believed; a server that says a year is not believed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// `retry_on_failure`, as the collector names it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    pub enabled: bool,
    pub initial_interval: Duration,
    pub max_interval: Duration,
    pub multiplier: f64,
    /// Kept for the collector's sake: any value above zero means full jitter, zero means none.
    pub randomization_factor: f64,
    /// Zero: never give up.
    pub max_elapsed_time: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            enabled: true,
            initial_interval: Duration::from_secs(5),
            max_interval: Duration::from_secs(30),
            multiplier: 1.5,
            randomization_factor: 0.5,
            max_elapsed_time: Duration::ZERO,
        }
    }
}

impl RetryPolicy {
    /// The wait after `failures` in a row: uniform between nothing and the exponential step, never below `floor`.
    fn delay(&self, failures: u32, floor: Option<Duration>) -> Duration {
        let exponent = failures.saturating_sub(1).min(64) as i32;
        let step = self.initial_interval.as_secs_f64() * self.multiplier.max(1.0).powi(exponent);
        let step = step.min(self.max_interval.as_secs_f64()).max(0.0);
        let jittered = if self.randomization_factor > 0.0 { step * fastrand::f64() } else { step };
        Duration::from_secs_f64(jittered).max(floor.unwrap_or_default().min(RETRY_AFTER_MAX))
    }
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    until: Option<Instant>,
    probe: Option<u64>,
    waiting: Vec<Waiting>,
    next_ticket: u64,
    /// Counts changes of health, so that many requests that fail together count once.
    epoch: u64,
    delay: Duration,
}

/// A request that waits for its turn.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: u64,
    bytes: u64,
    /// How often it failed before.
    failures: u32,
}

/// One per destination.
#[derive(Debug)]
pub struct Clock {
    policy: RetryPolicy,
    state: Mutex<State>,
    changed: Notify,
}

/// Leave to send one request. Report what came of it with [`Clock::succeeded`] or [`Clock::failed`].
#[derive(Debug)]
pub struct Pass<'a> {
    clock: &'a Clock,
    ticket: u64,
    epoch: u64,
    open: bool,
}

/// For the status page and metrics.
#[derive(Clone, Copy, Debug)]
pub struct ClockStatus {
    pub failures: u32,
    pub delay: Duration,
}

impl Clock {
    pub fn new(policy: RetryPolicy) -> Clock {
        Clock { policy, state: Mutex::default(), changed: Notify::new() }
    }

    pub fn status(&self) -> ClockStatus {
        let state = self.state.lock();
        ClockStatus { failures: state.failures, delay: if state.failures == 0 { Duration::ZERO } else { state.delay } }
    }

    /// Whether the destination is in backoff.
    pub fn is_waiting(&self) -> bool {
        self.state.lock().failures > 0
    }

    /// Whether a request could go now without waiting.
    pub fn is_open(&self) -> bool {
        self.state.lock().failures == 0
    }

    /// Waits until one more batch is of use: in backoff those that wait are enough, until each was tried in vain.
    pub async fn wants_batch(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                let was_tried = |waiting: &Waiting| waiting.failures > 0;
                if state.failures == 0
                    || state.waiting.is_empty()
                    || (state.failures >= ROTATE_AFTER && state.waiting.iter().all(was_tried))
                {
                    return;
                }
            }
            changed.await;
        }
    }

    /// How long a request waits that has failed so often while others passed.
    pub fn delay_alone(&self, failures: u32) -> Duration {
        self.policy.delay(failures, None)
    }

    /// Whether the destination fails time and again, and everything that waits has failed at least so often: what is
    /// wrong may be wrong with just these, and something else should be tried.
    pub fn wants_another(&self, failures: u32) -> bool {
        let state = self.state.lock();
        state.failures >= ROTATE_AFTER && state.waiting.iter().all(|waiting| waiting.failures >= failures)
    }

    /// Waits until this request of `bytes`, which failed so often before, may go: at once while the destination is well, as
    /// its only probe else.
    pub async fn enter(&self, bytes: u64, failures: u32) -> Pass<'_> {
        let ticket = {
            let mut state = self.state.lock();
            state.next_ticket += 1;
            let ticket = state.next_ticket;
            state.waiting.push(Waiting { ticket, bytes, failures });
            ticket
        };
        let mut queued = Queued { clock: self, ticket, entered: false };
        loop {
            let changed = self.changed.notified();
            let until = {
                let mut state = self.state.lock();
                let now = Instant::now();
                let due = state.until.is_none_or(|until| until <= now);
                if state.failures == 0 || (due && state.probe.is_none() && state.chosen() == Some(ticket)) {
                    if state.failures > 0 {
                        state.probe = Some(ticket);
                    }
                    queued.entered = true;
                    state.waiting.retain(|other| other.ticket != ticket);
                    return Pass { clock: self, ticket, epoch: state.epoch, open: true };
                }
                // A probe that is out, or another's turn, ends with a notification.
                state.until.filter(|until| *until > now)
            };
            match until {
                Some(until) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(until) => {}
                },
                None => changed.await,
            }
        }
    }
}

/// A place among those who wait; given up when the waiter is dropped.
struct Queued<'a> {
    clock: &'a Clock,
    ticket: u64,
    entered: bool,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if !self.entered {
            self.clock.state.lock().waiting.retain(|other| other.ticket != self.ticket);
            self.clock.changed.notify_waiters();
        }
    }
}

impl State {
    /// Who probes next: what failed the least often, and of those the longest waiting; after some failures the smallest.
    fn chosen(&self) -> Option<u64> {
        let is_small_first = self.failures >= ROTATE_AFTER;
        let rank =
            |waiting: &&Waiting| (waiting.failures, if is_small_first { waiting.bytes } else { 0 }, waiting.ticket);
        self.waiting.iter().min_by_key(rank).map(|waiting| waiting.ticket)
    }
}

impl Pass<'_> {
    /// Nobody else may send before what becomes of it is reported.
    pub fn is_probe(&self) -> bool {
        self.clock.state.lock().probe == Some(self.ticket)
    }

    /// The destination answered as a well one does.
    pub fn succeeded(mut self) {
        self.open = false;
        let mut state = self.clock.state.lock();
        if state.failures > 0 {
            state.epoch += 1;
        }
        state.failures = 0;
        state.until = None;
        state.probe = None;
        drop(state);
        self.clock.changed.notify_waiters();
    }

    /// It failed while others passed. None: the others go on, and this one waits alone.
    pub fn failed_alone(mut self) -> Option<Duration> {
        if self.clock.is_open() {
            self.open = false;
            return None;
        }
        Some(self.failed(None))
    }

    /// The destination did not take it for reasons of its own; returns the wait now in force.
    pub fn failed(mut self, retry_after: Option<Duration>) -> Duration {
        self.open = false;
        let mut state = self.clock.state.lock();
        if state.epoch == self.epoch {
            state.epoch += 1;
            state.failures = state.failures.saturating_add(1);
            state.delay = self.clock.policy.delay(state.failures, retry_after);
            state.until = Some(Instant::now() + state.delay);
        } else if let Some(floor) = retry_after {
            // One of several that failed together; the longest wish holds.
            let wish = Instant::now() + floor.min(RETRY_AFTER_MAX);
            state.until = Some(state.until.map_or(wish, |until| until.max(wish)));
        }
        if state.probe == Some(self.ticket) {
            state.probe = None;
        }
        let delay = state.delay;
        drop(state);
        self.clock.changed.notify_waiters();
        delay
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.open {
            let mut state = self.clock.state.lock();
            if state.probe == Some(self.ticket) {
                state.probe = None;
            }
            drop(state);
            self.clock.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn policy() -> RetryPolicy {
        RetryPolicy { initial_interval: Duration::from_secs(4), ..RetryPolicy::default() }
    }

    #[test]
    fn delays_grow_to_the_limit_are_jittered_and_never_below_retry_after() {
        let policy = policy();
        let mut longest = Duration::ZERO;
        for failures in 1..200 {
            let step = 4.0 * 1.5f64.powi(failures as i32 - 1);
            let delay = policy.delay(failures, None);
            assert!(delay.as_secs_f64() <= step.min(30.0));
            longest = longest.max(delay);
            assert!(policy.delay(failures, Some(Duration::from_secs(77))) >= Duration::from_secs(77));
        }
        assert!(longest > Duration::from_secs(20), "200 draws reach the upper third");
        assert_eq!(policy.delay(1, Some(Duration::from_secs(1 << 40))), RETRY_AFTER_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_that_fail_together_count_once_and_one_probe_goes_out() {
        let clock = Arc::new(Clock::new(policy()));
        let mut passes = Vec::new();
        for _ in 0..10 {
            passes.push(clock.enter(1, 0).await);
        }
        for pass in passes {
            pass.failed(None);
        }
        assert_eq!(clock.status().failures, 1);
        let probing = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let (clock, probing) = (Arc::clone(&clock), Arc::clone(&probing));
                tokio::spawn(async move {
                    let pass = clock.enter(1, 0).await;
                    let before = probing.fetch_add(1, Ordering::SeqCst);
                    assert!(clock.is_open() || before == 0, "two probes at once");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    pass.succeeded();
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert!(clock.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn after_three_failures_the_probe_goes_to_the_smallest_batch_that_failed_the_least_often() {
        let clock = Arc::new(Clock::new(RetryPolicy { randomization_factor: 0.0, ..policy() }));
        for _ in 0..3 {
            clock.enter(1000, 0).await.failed(None);
        }
        let order = Arc::new(Mutex::new(Vec::new()));
        let enter = |name: &'static str, bytes: u64, failures: u32| {
            let (clock, order) = (Arc::clone(&clock), Arc::clone(&order));
            tokio::spawn(async move {
                let pass = clock.enter(bytes, failures).await;
                order.lock().push(name);
                pass.succeeded();
            })
        };
        let (tried, large, small) = (enter("tried", 1, 3), enter("large", 1000, 0), enter("small", 10, 0));
        for task in [tried, large, small] {
            task.await.expect("no panic");
        }
        assert_eq!(order.lock()[0], "small", "the smallest of those that failed the least often");
    }
}
