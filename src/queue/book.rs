//! What of a queue is out, set aside, or to be leased once more.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::Left;

/// Ranges that may be set aside at once; then the exporter stops taking fresh records, but for probes.
pub const HELD_RANGES_MAX: usize = 256;
/// The same with the probes that were refused.
const PROBED_RANGES_MAX: usize = 2 * HELD_RANGES_MAX;
/// How long a range that was set aside waits for its next try.
pub const HELD_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Records that were refused or could not be read, until they are tried again.
#[derive(Debug)]
pub(super) struct Held {
    pub range: Range<u64>,
    pub at: Instant,
    pub reason: Why,
    pub left: Option<Left>,
}

impl Held {
    pub fn retry_at(&self) -> Instant {
        self.at + HELD_RETRY_AFTER
    }
}

/// What is known of records that are tried again; nothing of what a restart finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Again {
    pub unproven_since: Option<Instant>,
    pub held_at: Option<Instant>,
    /// Some of it is the destination's already.
    pub left: Option<Left>,
}

/// Why something is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    pub message: String,
    /// It was refused, then for the first time, and nothing has shown that its destination takes anything at all: that
    /// must take something else first.
    pub unproven_since: Option<Instant>,
}

impl Why {
    pub fn of(message: String) -> Why {
        Why { message, unproven_since: None }
    }

    pub fn stopping() -> Why {
        Why::of("the process was stopping".to_owned())
    }

    pub fn unproven(message: String, since: Instant) -> Why {
        Why { message, unproven_since: Some(since) }
    }
}

/// What a lease that is out answers for.
#[derive(Debug)]
pub(super) struct Out {
    pub range: Range<u64>,
    /// On its way to the destination at this moment: it must not be given up, or it would be sent and dropped.
    pub is_sending: bool,
    pub turn: Turn,
}

/// Where a lease's records come from, and go back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Fresh ones, and those of a lease that was dropped.
    First,
    /// Those whose time has come after they were set aside, or after a restart: such as may fail once more.
    Retry(Again),
}

#[derive(Debug, Default)]
pub(super) struct Book {
    /// Ranges whose lease came back unsettled, in the order they came back.
    redeliver: VecDeque<Range<u64>>,
    /// Ranges that are tried again, in turn with fresh records.
    retry: VecDeque<(Range<u64>, Again)>,
    was_retry: bool,
    held: Vec<Held>,
    /// With as much set aside as may be, one fresh lease shows whether the destination takes something else.
    may_probe: bool,
    /// What is being given up at this moment: no lease that has some of it is sent meanwhile.
    pub giving: Option<Range<u64>>,
    /// Leases out at the moment, by number.
    pub out: BTreeMap<u64, Out>,
    next_lease: u64,
}

impl Book {
    /// After a restart, with what was left unsettled between what was settled.
    pub fn begin(unsettled: Vec<Range<u64>>) -> Book {
        let retry = unsettled.into_iter().map(|range| (range, Again::default())).collect();
        Book { retry, may_probe: true, ..Book::default() }
    }

    /// The number of a lease that goes out.
    pub fn lend(&mut self, range: Range<u64>, turn: Turn) -> u64 {
        let number = self.next_lease;
        self.next_lease += 1;
        self.out.insert(number, Out { range, is_sending: false, turn });
        number
    }

    /// What comes before fresh records. While there are some, what failed before takes every other turn and half of what
    /// is out at the most, lest those who wait for their answers the longest keep all others waiting.
    pub fn next_again(&mut self, has_fresh: bool) -> Option<(Range<u64>, Turn)> {
        if let Some(range) = self.redeliver.pop_front() {
            return Some((range, Turn::First));
        }
        let is_fair = !self.was_retry && 2 * self.retries_out() <= self.out.len();
        self.was_retry = (is_fair || !has_fresh) && !self.retry.is_empty();
        if !self.was_retry {
            return None;
        }
        let (range, again) = self.retry.pop_front()?;
        Some((range, Turn::Retry(again)))
    }

    /// The rest of a range that was too much for one lease, to be the next one.
    pub fn put_back_first(&mut self, range: Range<u64>, turn: Turn) {
        match turn {
            Turn::First => self.redeliver.push_front(range),
            Turn::Retry(again) => self.retry.push_front((range, again)),
        }
    }

    /// A lease that was dropped.
    pub fn take_back(&mut self, number: u64) {
        match self.out.remove(&number) {
            Some(Out { range, turn: Turn::First, .. }) => self.redeliver.push_back(range),
            Some(Out { range, turn: Turn::Retry(again), .. }) => self.retry.push_back((range, again)),
            None => {}
        }
    }

    /// True: from now on no fresh records may be leased.
    pub fn hold(&mut self, range: Range<u64>, reason: Why, left: Option<Left>) -> bool {
        self.held.push(Held { range, at: Instant::now(), reason, left });
        self.held.len() == HELD_RANGES_MAX
    }

    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// Moves those of the ranges set aside among those to lease again; how many that are.
    pub fn release_held(&mut self, is_due: impl Fn(&Held) -> bool) -> u64 {
        let (due, later): (Vec<_>, Vec<_>) = self.held.drain(..).partition(is_due);
        self.held = later;
        self.may_probe |= due.iter().any(|held| held.reason.unproven_since.is_some());
        let count = due.len() as u64;
        self.retry.extend(due.into_iter().map(|Held { range, at, reason, left }| {
            (range, Again { unproven_since: reason.unproven_since, held_at: Some(at), left })
        }));
        count
    }

    /// Whether something is to be leased before fresh records.
    pub fn has_again(&self) -> bool {
        !self.redeliver.is_empty() || !self.retry.is_empty()
    }

    /// Whether fresh records may be leased. Where too much is set aside, all of it may be poison, which only the taking of
    /// something else can prove: then one fresh lease passes each time that it is tried again.
    pub fn takes_fresh(&self) -> bool {
        !self.is_full() || (self.may_probe && self.set_aside() < PROBED_RANGES_MAX)
    }

    /// The same for who leases them now: the one lease is spent.
    pub fn take_fresh(&mut self) -> bool {
        let takes = self.takes_fresh();
        self.may_probe &= !self.is_full();
        takes
    }

    fn is_full(&self) -> bool {
        self.set_aside() >= HELD_RANGES_MAX
    }

    fn set_aside(&self) -> usize {
        self.held.len() + self.retry.len() + self.retries_out()
    }

    fn retries_out(&self) -> usize {
        self.out.values().filter(|out| matches!(out.turn, Turn::Retry(_))).count()
    }

    /// Of ranges that are settled nothing is left to lease.
    pub fn forget(&mut self, is_settled: impl Fn(&Range<u64>) -> bool) {
        self.held.retain(|held| !is_settled(&held.range));
        self.redeliver.retain(|range| !is_settled(range));
        self.retry.retain(|(range, _)| !is_settled(range));
    }
}
