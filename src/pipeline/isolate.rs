//! A batch that is refused is halved until what is refused stands alone; everything else is delivered.
//!
//! With p items of n refused this takes at most about 2·p·(log2(n/p)+1) requests: a half whose sibling was taken must
//! hold the poison and is split without being sent. Cuts fall between records, resources or scopes where one lies near
//! the middle. Until the destination has taken something, the search goes down to a single item and then on with the
//! largest part left: either something is taken soon, or the destination is found to refuse everything
//! ([`REFUSALS_IN_ROW_MAX`]) and the batch is held. When it refuses that many in a row later, an item that it
//! took is sent once more, to learn whether it still takes anything.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::dlq::{Parcel, Reason};
use crate::exporters::{Batch, Failure, Payload};
use crate::otlp::edit;
use crate::queue::{Settled, Why};
use crate::storage::Record;

use super::deliver::{Answer, Leased, Stumbles, leave_to_send};
use super::parking::Envelope;
use super::proof::REFUSALS_IN_ROW_MAX;

/// Cuts at a boundary must leave at least this many eighths on each side.
const SIDE_EIGHTHS_MIN: usize = 3;

/// Why a part is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The destination says that it never will.
    Permanent,
    /// It fails again and again while others pass.
    Stubborn,
    /// It may not be tried any longer.
    Final(Reason),
}

/// Some items of the batch.
#[derive(Debug)]
struct Part {
    items: Range<usize>,
    /// Requests that held it.
    attempts: u32,
    /// It is half of a part that was refused for its content.
    is_suspect: bool,
    /// It holds the poison: it is suspect, and its sibling was taken. It is split unsent.
    is_certain: bool,
}

/// One item that was refused alone, or items of one record that may not be tried again.
#[derive(Debug)]
struct Poison {
    items: Range<usize>,
    attempts: u32,
    refusal: Refusal,
    failure: Failure,
}

pub(super) struct Isolation {
    leased: Leased,
    envelope: Envelope,
    payload: Bytes,
    items: Vec<edit::Item>,
    /// Where in `items` each record of the lease begins.
    record_starts: Vec<usize>,
    /// Small ones at the back.
    parts: VecDeque<Part>,
    poison: Vec<Poison>,
    /// An item that was taken.
    taken: Option<usize>,
    /// Parts that were taken but for so many items.
    rejected: Vec<(Range<usize>, u64)>,
    /// Refusals since the destination took something, from anybody, and when that was.
    refusals_in_row: u32,
    accepted_at: Option<Instant>,
    /// A part passed `max_elapsed_time`: the others have one try each.
    is_late: bool,
    /// A single item was refused and nothing was ever taken: the poison is less likely in the largest part left.
    looks_elsewhere: bool,
    began_at: Instant,
}

/// What became of sending a part.
enum Sent {
    Taken { rejected_items: u64 },
    Not(Refusal, Failure),
    Ended,
}

impl Isolation {
    pub async fn new(leased: Leased, request: Batch, envelope: Envelope) -> Isolation {
        let payload = request.payload.into_bytes();
        let mut items = edit::items(leased.signal, &payload).unwrap_or_default();
        if items.len() as u64 != request.items {
            // It was validated and counted at the door; what is not as it was then is not taken apart.
            items.clear();
        }
        let mut next = 0;
        let starts = leased.lease.records().iter().map(|record| {
            next += record.items as usize;
            next - record.items as usize
        });
        let record_starts = starts.collect();
        let whole = Part { items: 0..items.len(), attempts: 0, is_suspect: false, is_certain: false };
        Isolation {
            leased,
            envelope,
            payload,
            items,
            record_starts,
            parts: VecDeque::from([whole]),
            poison: Vec::new(),
            taken: None,
            rejected: Vec::new(),
            refusals_in_row: 0,
            accepted_at: None,
            is_late: false,
            looks_elsewhere: false,
            began_at: Instant::now(),
        }
    }

    /// The whole batch was refused already.
    pub fn begin_refused(&mut self, attempts: u32, refusal: Refusal, failure: Failure) {
        if let Some(mut whole) = self.parts.pop_back() {
            whole.attempts = attempts;
            self.not_taken(whole, refusal, failure);
        }
    }

    pub async fn run(mut self) {
        if self.items.is_empty() {
            let reason = self.poison.pop().map(|poison| poison.failure.message);
            return self.hold_all(Why::of(reason.unwrap_or_else(|| "it cannot be taken apart".to_owned())));
        }
        let mut last_failure = self.poison.last().map(|poison| poison.failure.message.clone());
        while let Some(part) = self.next_part() {
            let checked_at = Instant::now();
            if self.is_row_long() && !self.still_takes_something().await {
                let destination = Arc::clone(&self.leased.destination);
                destination.proof.found_to_refuse_everything();
                let message = format!("the destination refuses everything: {}", last_failure.unwrap_or_default());
                let since = self.refused_at();
                self.hold_all(Why::unproven(message, since));
                return destination.proof.is_wanted_since(checked_at);
            }
            let count = part.items.len();
            let is_large = self.bytes_of(&part) > self.leased.destination.request_bytes_max();
            if count > 1 && (part.is_certain || is_large) {
                let is_suspect = part.is_certain;
                self.split(part, is_large, is_suspect);
                continue;
            }
            let part = Part { attempts: part.attempts + 1, ..part };
            match self.send(&part).await {
                Sent::Ended => return,
                Sent::Taken { rejected_items } => {
                    self.taken = Some(part.items.start);
                    if rejected_items > 0 {
                        self.rejected.push((part.items.clone(), rejected_items));
                    }
                    self.mark_sibling(&part);
                }
                Sent::Not(refusal, failure) => {
                    last_failure = Some(failure.message.clone());
                    self.not_taken(part, refusal, failure);
                }
            }
        }
        self.conclude().await;
    }

    fn next_part(&mut self) -> Option<Part> {
        if std::mem::take(&mut self.looks_elsewhere) { self.parts.pop_front() } else { self.parts.pop_back() }
    }

    /// Counts what was refused in a row, as far as this batch knows.
    fn is_row_long(&mut self) -> bool {
        let accepted_at = self.leased.destination.proof.accepted_at();
        if self.accepted_at != accepted_at {
            self.accepted_at = accepted_at;
            self.refusals_in_row = 0;
        }
        self.refusals_in_row >= REFUSALS_IN_ROW_MAX && !self.leased.was_refused
    }

    /// When something in it was refused first, as far as is known.
    fn refused_at(&self) -> Instant {
        self.leased.lease.unproven_since().unwrap_or(self.began_at)
    }

    async fn still_takes_something(&self) -> bool {
        let Some(item) = self.taken else { return self.leased.takes_what_it_took(&self.envelope).await };
        let part = Part { items: item..item + 1, attempts: 0, is_suspect: false, is_certain: false };
        matches!(self.send(&part).await, Sent::Taken { .. })
    }

    fn not_taken(&mut self, part: Part, refusal: Refusal, failure: Failure) {
        if let Refusal::Final(reason) = refusal {
            // Nothing is wrong with it that a search would find.
            self.is_late |= reason == Reason::Expired;
            let of_records = self.by_record(part.items).into_iter();
            self.poison.extend(of_records.map(|items| Poison {
                items,
                attempts: part.attempts,
                refusal,
                failure: failure.clone(),
            }));
            return;
        }
        self.refusals_in_row += 1;
        if part.items.len() <= 1 {
            self.looks_elsewhere = self.taken.is_none();
            self.poison.push(Poison { items: part.items, attempts: part.attempts, refusal, failure });
            return;
        }
        if failure.too_large {
            self.leased.destination.learn_too_large(self.bytes_of(&part));
        }
        self.split(part, failure.too_large, refusal == Refusal::Permanent && !failure.too_large);
    }

    /// These items, those of each record apart.
    fn by_record(&self, items: Range<usize>) -> Vec<Range<usize>> {
        let mut cuts = vec![items.start];
        cuts.extend(self.record_starts.iter().copied().filter(|start| *start > items.start && *start < items.end));
        cuts.dedup();
        cuts.push(items.end);
        cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    /// Puts both halves among the parts.
    fn split(&mut self, part: Part, by_bytes: bool, is_suspect: bool) {
        let Range { start, end } = part.items;
        let cut = if by_bytes { self.middle_byte(start, end) } else { self.middle(start, end) };
        let half = |items: Range<usize>| Part { items, attempts: part.attempts, is_suspect, is_certain: false };
        self.parts.push_back(half(cut..end));
        self.parts.push_back(half(start..cut));
    }

    /// The boundary between records, resources or scopes that is nearest to the middle, if one is near; else the middle.
    fn middle(&self, start: usize, end: usize) -> usize {
        let middle = start + (end - start) / 2;
        let margin = ((end - start) * SIDE_EIGHTHS_MIN).div_ceil(8);
        let near = start + margin.max(1)..end - margin.max(1) + 1;
        let nearest = |is_boundary: &dyn Fn(usize) -> bool| {
            near.clone().filter(|at| is_boundary(*at)).min_by_key(|at| at.abs_diff(middle))
        };
        nearest(&|at| self.record_starts.binary_search(&at).is_ok())
            .or_else(|| nearest(&|at| self.items[at].resource != self.items[at - 1].resource))
            .or_else(|| nearest(&|at| self.items[at].scope != self.items[at - 1].scope))
            .unwrap_or(middle)
    }

    /// Where half of the bytes are on each side, with at least one item.
    fn middle_byte(&self, start: usize, end: usize) -> usize {
        let middle = (self.items[start].start + self.items[end - 1].end) / 2;
        let at = start + self.items[start..end].partition_point(|item| item.start < middle);
        at.clamp(start + 1, end - 1)
    }

    /// About as many bytes as the part will have: its items, and no envelope twice.
    fn bytes_of(&self, part: &Part) -> u64 {
        match (self.items.get(part.items.start), self.items.get(part.items.end.wrapping_sub(1))) {
            (Some(first), Some(last)) => (last.end - first.start) as u64,
            _ => self.payload.len() as u64,
        }
    }

    /// The part beside one that was taken must hold what its parent was refused for.
    fn mark_sibling(&mut self, taken: &Part) {
        if let Some(next) = self.parts.back_mut()
            && next.is_suspect
            && taken.is_suspect
            && next.items.start == taken.items.end
            && next.attempts + 1 == taken.attempts
        {
            next.is_certain = true;
        }
    }

    fn part_payload(&self, part: &Part) -> Bytes {
        if part.items.len() == self.items.len() {
            return self.payload.clone();
        }
        let kept = edit::retain(self.leased.signal, &self.payload, &mut |index| part.items.contains(&index));
        // What was walked once is walked again without an error.
        kept.ok().flatten().map_or_else(|| self.payload.clone(), Bytes::from)
    }

    async fn send(&self, part: &Part) -> Sent {
        let destination = &self.leased.destination;
        let payload = self.part_payload(part);
        let first_attempt = Instant::now();
        let mut stumbles = Stumbles::default();
        loop {
            let leave = leave_to_send(destination, &self.leased.draining, payload.len() as u64);
            // Dropped: the whole batch comes again.
            let Some(pass) = leave.await else { return Sent::Ended };
            let request = Batch {
                signal: self.leased.signal,
                items: part.items.len() as u64,
                payload: Payload::from(payload.clone()),
                metadata: self.envelope.metadata.clone(),
            };
            let failure = match self.leased.export(request, pass, &self.envelope).await {
                Answer::Taken { rejected_items } => return Sent::Taken { rejected_items },
                Answer::Refused(failure) => return Sent::Not(Refusal::Permanent, failure),
                Answer::Failed(failure) => failure,
            };
            let limit = destination.max_elapsed_time;
            if !limit.is_zero() && (self.is_late || first_attempt.elapsed() >= limit) {
                return Sent::Not(Refusal::Final(Reason::Expired), failure);
            }
            if !destination.retry_enabled {
                return Sent::Not(Refusal::Final(Reason::RetryDisabled), failure);
            }
            if stumbles.failed(destination) {
                return Sent::Not(Refusal::Stubborn, failure);
            }
        }
    }

    /// Every part was taken, stands alone, or had its last try: the poison is parked or held, the rest is settled.
    async fn conclude(self) {
        let destination = &self.leased.destination;
        let checked_at = Instant::now();
        // Only a destination that takes something else says something about this batch.
        let proof = &destination.proof;
        let is_proven = self.taken.is_some()
            || self.leased.was_refused
            || proof.took_something_since(self.began_at)
            || proof.takes_others()
            || (self.poison.iter().any(|poison| poison.refusal == Refusal::Permanent)
                && self.leased.takes_what_it_took(&self.envelope).await);
        let reason = |poison: &Poison| match poison.refusal {
            Refusal::Permanent if is_proven && poison.failure.too_large => Some(Reason::TooLarge),
            Refusal::Permanent if is_proven => Some(Reason::Rejected),
            Refusal::Final(reason) => Some(reason),
            Refusal::Permanent | Refusal::Stubborn => None,
        };
        let (parked, unparked): (Vec<_>, Vec<_>) = self.poison.iter().partition(|poison| reason(poison).is_some());
        let mut held: BTreeSet<u64> =
            unparked.iter().filter_map(|poison| self.sequence_of(poison.items.start)).collect();
        let mut why_held = unparked.last().map(|poison| poison.failure.message.as_str());
        // A held record comes again whole, with whatever else is refused in it.
        let is_free =
            |poison: &&&Poison| self.sequence_of(poison.items.start).is_none_or(|record| !held.contains(&record));
        let parked: Vec<_> = parked.iter().filter(is_free).collect();
        let mut letters = Vec::new();
        for poison in &parked {
            letters.extend(reason(poison).map(|reason| self.letter(poison, reason)));
            // Each walks over the whole batch, and there may be thousands: others have their turn.
            tokio::task::yield_now().await;
        }
        let settled = match parked.last() {
            None => Settled::by_delivery(),
            Some(last) => match destination.park(letters).await {
                Some((durable, fates)) => Settled::in_part_by_dead_letters(durable, fates),
                None => {
                    held.extend(parked.iter().filter_map(|poison| self.sequence_of(poison.items.start)));
                    why_held = Some(last.failure.message.as_str());
                    Settled::by_delivery()
                }
            },
        };
        // Items of records that are held come again, and count when those are settled.
        let is_settled = |item: &usize| self.sequence_of(*item).is_none_or(|record| !held.contains(&record));
        let rejected =
            self.rejected.iter().map(|(part, items)| (*items).min(part.clone().filter(is_settled).count() as u64));
        let settled = settled.rejected(rejected.sum());
        let why_held = why_held.unwrap_or_default().to_owned();
        let is_unproven = !is_proven && unparked.iter().any(|poison| poison.refusal == Refusal::Permanent);
        let why_held = if is_unproven { Why::unproven(why_held, self.refused_at()) } else { Why::of(why_held) };
        let is_held =
            |poison: &&Poison| self.sequence_of(poison.items.start).is_some_and(|record| held.contains(&record));
        let held_items = self.poison.iter().filter(is_held).map(|poison| poison.items.len() as u64).sum();
        if held_items > 0 {
            self.leased.log_held(held_items, &why_held.message);
        }
        self.leased.lease.settle_except(settled, &held, &why_held);
        if is_unproven {
            self.leased.destination.proof.is_wanted_since(checked_at);
        }
    }

    fn letter(&self, poison: &Poison, reason: Reason) -> Parcel {
        let items = poison.items.clone();
        let count = items.len() as u64;
        let payload = self.part_payload(&Part { items, attempts: 0, is_suspect: false, is_certain: false });
        let id = &self.leased.destination.id;
        let record = self.record_of(poison.items.start);
        let envelope = Envelope {
            received_unix_ns: record.map_or(self.envelope.received_unix_ns, |record| record.received_unix_ns),
            sequence: record.map(|record| record.sequence),
            ..self.envelope.clone()
        };
        envelope.letter(id, reason, &poison.failure, poison.attempts, count, payload)
    }

    /// The record that an item came in.
    fn record_of(&self, item: usize) -> Option<&Record> {
        let place = self.record_starts.partition_point(|start| *start <= item).checked_sub(1)?;
        self.leased.lease.records().get(place)
    }

    fn sequence_of(&self, item: usize) -> Option<u64> {
        self.record_of(item).map(|record| record.sequence)
    }

    fn hold_all(self, reason: Why) {
        let records = self.leased.lease.records();
        let items = records.iter().map(|record| u64::from(record.items)).sum();
        self.leased.hold(items, reason);
    }
}
