//! Records on their way to a destination.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use crate::storage::log::Position;
use crate::storage::{Record, Weight};

use super::book::{Again, Turn, Why};
use super::subscription::{is_disks, overlap};
use super::{LeaseLimits, Left, Settled, Subscription};

fn weight_of(records: &[Record]) -> Weight {
    records.iter().fold(Weight::default(), |sum, record| sum.plus(&record.weight()))
}

/// Records of a lease that are set aside.
#[derive(Debug)]
pub struct HeldPart {
    pub sequences: Range<u64>,
    /// If its destination has some of it, which is one record then: the rest.
    pub left: Option<Left>,
}

/// Records on their way to a destination. Dropping it redelivers them.
#[derive(Debug)]
#[must_use = "dropping a lease redelivers its records"]
pub struct Lease {
    subscription: Arc<Subscription>,
    number: u64,
    turn: Turn,
    covers: Range<u64>,
    records: Vec<Record>,
    /// Of all records in `covers`, also while they are shed.
    weight: Weight,
    open: bool,
}

impl Lease {
    pub(super) fn new(subscription: &Arc<Subscription>, covers: Range<u64>, turn: Turn, records: Vec<Record>) -> Lease {
        let number = subscription.book.lock().lend(covers.clone(), turn.clone());
        let weight = weight_of(&records);
        Lease { subscription: Arc::clone(subscription), number, turn, covers, records, weight, open: true }
    }

    pub(super) fn cover_to(&mut self, end: u64) {
        self.covers.end = end;
        if let Some(out) = self.subscription.book.lock().out.get_mut(&self.number) {
            out.range = self.covers.clone();
        }
    }

    pub(super) fn fill(&mut self, records: Vec<Record>) {
        self.weight = weight_of(&records);
        self.records = records;
    }

    /// Keeps the records from being given up while they are sent, leaves out what has been given up since they were
    /// leased, and reads them again if they were shed. False: nothing is left to send; settle it with
    /// [`Lease::settle_empty`].
    pub async fn claim(&mut self) -> std::io::Result<bool> {
        let mut left = vec![self.covers()];
        if self.subscription.gives_way {
            self.begin_sending().await;
            left = self.subscription.log.unsettled(&self.subscription.cursor, self.covers());
        }
        if left.is_empty() {
            self.records = Vec::new();
            self.weight = Weight::default();
            return Ok(false);
        }
        if self.records.is_empty() {
            self.reload().await?;
        }
        if left != [self.covers()] {
            self.records.retain(|record| left.iter().any(|range| range.contains(&record.sequence)));
            self.weight = weight_of(&self.records);
        }
        Ok(self.weight.records > 0)
    }

    /// The opposite of [`Lease::claim`]: the attempt is over, and did not succeed.
    pub fn unclaim(&self) {
        if self.subscription.gives_way {
            self.end_sending();
        }
    }

    /// Waits while some of it is being given up.
    async fn begin_sending(&self) {
        loop {
            let changed = self.subscription.changed.notified();
            {
                let mut book = self.subscription.book.lock();
                if book.giving.as_ref().is_none_or(|giving| !overlap(giving, &self.covers)) {
                    if let Some(out) = book.out.get_mut(&self.number) {
                        out.is_sending = true;
                    }
                    return;
                }
            }
            changed.await;
        }
    }

    fn end_sending(&self) {
        if let Some(out) = self.subscription.book.lock().out.get_mut(&self.number) {
            out.is_sending = false;
        }
    }

    /// Everything in it was given up while it waited.
    pub fn settle_empty(self) {
        debug_assert_eq!(self.weight.records, 0);
        self.settle(Settled::of_nothing());
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The queue that they lie in.
    pub fn queue(&self) -> &str {
        self.subscription.queue()
    }

    /// When its records were refused first, if they come again because nothing showed that the destination takes anything.
    pub fn unproven_since(&self) -> Option<Instant> {
        self.again().and_then(|again| again.unproven_since)
    }

    /// When it was set aside, if it comes again for that.
    pub fn held_at(&self) -> Option<Instant> {
        self.again().and_then(|again| again.held_at)
    }

    /// What of its one record is to be sent, if the destination has some of it already.
    pub fn left(&self) -> Option<&Left> {
        self.again().and_then(|again| again.left.as_ref())
    }

    fn again(&self) -> Option<&Again> {
        match &self.turn {
            Turn::First => None,
            Turn::Retry(again) => Some(again),
        }
    }

    /// Sequences that this lease answers for.
    pub fn covers(&self) -> Range<u64> {
        self.covers.clone()
    }

    /// Whether it comes again, no fresh records can be leased beside it, and none like it could come in.
    pub fn is_last_resort(&self) -> bool {
        self.turn != Turn::First && self.subscription.is_starved(self.weight)
    }

    /// Up to `count` records, with gaps between them, that this exporter has settled and the disk still has.
    pub async fn settled_samples(&self, count: usize, limits: LeaseLimits) -> std::io::Result<Vec<Record>> {
        self.subscription.settled_samples(count, limits).await
    }

    /// Adds what comes behind this lease, waiting for it; false when nothing can be added any more (limits reached,
    /// other metadata, or somebody else has gone on reading).
    pub async fn extend(&mut self, limits: LeaseLimits) -> std::io::Result<bool> {
        // What is left of one record is told by places in that record.
        if self.left().is_some() {
            return Ok(false);
        }
        let mut durable_end = self.subscription.log.watch_durable_end();
        let subscription = Arc::clone(&self.subscription);
        loop {
            let end = *durable_end.borrow_and_update();
            let mut position = subscription.reader.lock().await;
            if position.sequence != self.covers.end {
                return Ok(false);
            }
            if position.sequence < end {
                let (mut records, mut next) = match subscription.read(*position, end, limits).await {
                    // Whoever leases it next meets it; this lease is delivered as it is.
                    Err(error) if is_disks(&error) => return Ok(false),
                    read => read?,
                };
                let first = self.records.first();
                let mut bytes: u64 = self.records.iter().map(|record| u64::from(record.raw_len)).sum();
                let mut items: u64 = self.records.iter().map(|record| u64::from(record.items)).sum();
                let fits = |record: &Record| {
                    bytes += u64::from(record.raw_len);
                    items += u64::from(record.items);
                    first.is_none_or(|first| first.metadata == record.metadata)
                        && bytes <= limits.bytes_max
                        && items <= limits.items_max
                };
                let fitting = records.iter().map(fits).take_while(|fits| *fits).count();
                let all = fitting == records.len() && self.records.len() + fitting < limits.records_max;
                if fitting < records.len() {
                    next = Position::at(records[fitting].sequence);
                    records.truncate(fitting);
                }
                *position = next;
                self.cover_to(next.sequence);
                self.weight = self.weight.plus(&weight_of(&records));
                self.records.extend(records);
                return Ok(all);
            }
            drop(position);
            if durable_end.changed().await.is_err() {
                return Ok(false);
            }
        }
    }

    /// Gives the memory back while the destination is waited for; [`Lease::reload`] reads the records again.
    pub fn shed(&mut self) {
        self.records = Vec::new();
    }

    /// Reads the records again after [`Lease::shed`].
    pub async fn reload(&mut self) -> std::io::Result<()> {
        let limits = LeaseLimits { bytes_max: u64::MAX, records_max: usize::MAX, items_max: u64::MAX };
        let mut position = Position::at(self.covers.start);
        let mut records = Vec::new();
        while position.sequence < self.covers.end {
            let (more, next) = self.subscription.read(position, self.covers.end, limits).await?;
            records.extend(more);
            position = next;
        }
        self.records = records;
        Ok(())
    }

    /// The same, of those records alone.
    pub async fn reload_these(&mut self, is_meant: impl Fn(u64) -> bool) -> std::io::Result<()> {
        self.reload().await?;
        self.records.retain(|record| is_meant(record.sequence));
        Ok(())
    }

    /// The records are somebody else's now.
    pub fn settle(mut self, mut settled: Settled) {
        self.open = false;
        let fates = settled.others.take(self.weight.items, settled.rest);
        self.subscription.log.settle_weighed(&self.subscription.cursor, self.covers.clone(), self.weight, &fates);
        self.finish();
    }

    /// Settles all records but those in `held` (ascending). `weights`: of all records (ascending), which need not be in memory.
    pub fn settle_except(mut self, mut settled: Settled, weights: &[(u64, Weight)], held: Vec<HeldPart>, reason: &Why) {
        if held.is_empty() {
            return self.settle(settled);
        }
        self.open = false;
        let Lease { subscription, covers, .. } = &self;
        let mut settle = |range: Range<u64>| {
            let at = |sequence: u64| weights.partition_point(|(other, _)| *other < sequence);
            let inside = &weights[at(range.start)..at(range.end)];
            let weight = inside.iter().fold(Weight::default(), |sum, (_, weight)| sum.plus(weight));
            if !range.is_empty() {
                let fates = settled.others.take(weight.items, settled.rest);
                subscription.log.settle_weighed(&subscription.cursor, range, weight, &fates);
            }
        };
        let mut from = covers.start;
        for HeldPart { sequences, left } in held {
            settle(from..sequences.start);
            from = sequences.end;
            subscription.hold(sequences, reason.clone(), left);
        }
        settle(from..covers.end);
        self.finish();
    }

    /// Sets the records aside; later ones go on. They are tried again after [`super::book::HELD_RETRY_AFTER`] and after a restart.
    pub fn hold(mut self, reason: Why) {
        self.open = false;
        self.subscription.hold(self.covers.clone(), reason, self.left().cloned());
        self.finish();
    }

    fn finish(&self) {
        self.subscription.book.lock().out.remove(&self.number);
        self.subscription.changed.notify_waiters();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.open {
            self.subscription.book.lock().take_back(self.number);
            self.subscription.changed.notify_waiters();
        }
    }
}
