//! The end of an isolation: the poison is parked or held, the rest is settled.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use crate::dlq::{Parcel, Reason};
use crate::queue::{HeldPart, Left, Settled, Why};
use crate::storage::Weight;

use super::isolate::{Isolation, Poison, Refusal};
use super::parking::Envelope;

impl Isolation {
    /// Every part was taken, stands alone, or had its last try.
    pub(super) async fn conclude(mut self) {
        let checked_at = Instant::now();
        let is_proven = self.is_proven().await;
        let reason = |poison: &Poison| match poison.refusal {
            Refusal::Permanent if is_proven && poison.failure.too_large => Some(Reason::TooLarge),
            Refusal::Permanent if is_proven => Some(Reason::Rejected),
            Refusal::Final(reason) => Some(reason),
            Refusal::Permanent | Refusal::Stubborn => None,
        };
        let poison = std::mem::take(&mut self.poison);
        let (parked, unparked): (Vec<&Poison>, Vec<_>) = poison.iter().partition(|poison| reason(poison).is_some());
        let mut held: BTreeSet<u64> =
            unparked.iter().filter_map(|poison| self.sequence_of(poison.items.start)).collect();
        let mut why_held = unparked.last().map(|poison| poison.failure.message.as_str());
        // What is refused in a held record comes again with the rest that is left of it.
        let is_free =
            |poison: &&&Poison| self.sequence_of(poison.items.start).is_none_or(|record| !held.contains(&record));
        let parked: Vec<_> = parked.iter().filter(is_free).collect();
        if !parked.is_empty()
            && let Err(error) = self.restore_unsent().await
        {
            let exporter = &self.leased.destination.id;
            tracing::error!(%exporter, %error, "failed to read a batch again to park what was refused of it");
            return self.hold_rest(Why::of(error.to_string()));
        }
        let mut letters = Vec::new();
        for poison in &parked {
            letters.extend(reason(poison).map(|reason| self.letter(poison, reason)));
            // Each walks over the whole batch, and there may be thousands: others have their turn.
            tokio::task::yield_now().await;
        }
        let settled = match parked.last() {
            None => Settled::by_delivery(),
            Some(last) => match self.leased.destination.park(letters).await {
                Some((durable, fates)) => Settled::in_part_by_dead_letters(durable, fates),
                None => {
                    held.extend(parked.iter().filter_map(|poison| self.sequence_of(poison.items.start)));
                    why_held = Some(last.failure.message.as_str());
                    Settled::by_delivery()
                }
            },
        };
        let why_held = why_held.unwrap_or_default().to_owned();
        let is_unproven = !is_proven && unparked.iter().any(|poison| poison.refusal == Refusal::Permanent);
        let why_held = if is_unproven { Why::unproven(why_held, self.refused_at()) } else { Why::of(why_held) };
        let destination = Arc::clone(&self.leased.destination);
        self.settle_except(settled, &held, why_held);
        if is_unproven {
            destination.proof.is_wanted_since(checked_at);
        }
    }

    /// Only a destination that takes something else says something about this batch.
    async fn is_proven(&mut self) -> bool {
        let proof = &self.leased.destination.proof;
        self.sample.is_some()
            || self.leased.was_refused
            || proof.took_something_since(self.began_at)
            || proof.takes_others()
            || (self.poison.iter().any(|poison| poison.refusal == Refusal::Permanent)
                && self.leased.takes_what_it_took(&self.envelope).await)
    }

    /// The process is stopping: what was not taken waits for the next start.
    pub(super) fn stay(mut self) {
        self.is_quiet = true;
        self.hold_rest(Why::stopping());
    }

    /// Sets aside what was not taken.
    pub(super) fn hold_rest(self, why: Why) {
        if self.taken.iter().next().is_none() {
            let items = self.records.iter().map(|record| record.weight.items).sum();
            return if self.is_quiet { self.leased.stay() } else { self.leased.hold(items, why) };
        }
        let untaken: BTreeSet<u64> = self.untaken().into_keys().collect();
        self.settle_except(Settled::by_delivery(), &untaken, why);
    }

    /// Settles all records but these, of which is remembered what is still to be sent.
    fn settle_except(self, settled: Settled, held: &BTreeSet<u64>, why: Why) {
        let mut untaken = self.untaken();
        untaken.retain(|sequence, _| held.contains(sequence));
        let mut rejected = self.rejected_by_record();
        let before = self.leased.lease.left().map_or(0, Left::rejected);
        let mut parts: Vec<HeldPart> = Vec::new();
        let mut held_items = 0;
        for record in self.records.iter().filter(|record| held.contains(&record.sequence)) {
            let rejected = rejected.remove(&record.sequence).unwrap_or_default() + before;
            let items = untaken.remove(&record.sequence).unwrap_or_default();
            held_items += items.iter().map(|range| range.len() as u64).sum::<u64>();
            let is_whole = items.len() == 1 && items[0].len() as u64 == record.weight.items;
            let (sequence, end) = (record.sequence, record.sequence + 1);
            match parts.last_mut() {
                Some(last) if is_whole && last.left.is_none() && last.sequences.end == sequence => {
                    last.sequences.end = end;
                }
                _ => {
                    let left = (!is_whole).then(|| Left::new(&items, rejected));
                    parts.push(HeldPart { sequences: sequence..end, left });
                }
            }
        }
        // Of records that are held the rest: it counts when those are settled.
        let settled = settled.rejected(rejected.into_values().sum::<u64>() + if held.is_empty() { before } else { 0 });
        if held_items > 0 && !self.is_quiet {
            self.leased.log_held(held_items, &why.message);
        }
        let weights: Vec<(u64, Weight)> = self.records.iter().map(|record| (record.sequence, record.weight)).collect();
        self.leased.lease.settle_except(settled, &weights, parts, &why);
    }

    /// Of each record the items that were not taken, by their places in it.
    fn untaken(&self) -> BTreeMap<u64, Vec<Range<usize>>> {
        let mut untaken: BTreeMap<u64, Vec<Range<usize>>> = BTreeMap::new();
        for gap in self.taken.gaps(0..self.item_count() as u64) {
            for (record, items) in self.records.apart(gap.start as usize..gap.end as usize) {
                if let Some(record) = record {
                    let items = items.start - record.start..items.end - record.start;
                    untaken.entry(record.sequence).or_default().push(items);
                }
            }
        }
        untaken
    }

    /// Items that the destination rejected when it took the rest of their part; which ones, it does not say.
    fn rejected_by_record(&self) -> BTreeMap<u64, u64> {
        let mut rejected = BTreeMap::new();
        for (part, count) in &self.rejected {
            let mut count = *count;
            for (record, items) in self.records.apart(part.clone()) {
                let here = count.min(items.len() as u64);
                count -= here;
                *rejected.entry(record.map_or(0, |record| record.sequence)).or_default() += here;
            }
        }
        rejected
    }

    fn letter(&self, poison: &Poison, reason: Reason) -> Parcel {
        let count = poison.items.len() as u64;
        let payload = self.payload_of(&poison.items);
        let id = &self.leased.destination.id;
        let record = self.records.of_item(poison.items.start);
        let envelope = Envelope {
            received_unix_ns: record.map_or(self.envelope.received_unix_ns, |record| record.received_unix_ns),
            sequence: record.map(|record| record.sequence),
            ..self.envelope.clone()
        };
        envelope.letter(id, reason, &poison.failure, poison.attempts, count, payload)
    }

    fn sequence_of(&self, item: usize) -> Option<u64> {
        self.records.of_item(item).map(|record| record.sequence)
    }
}
