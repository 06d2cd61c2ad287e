//! A batch that is refused is halved until what is refused stands alone; everything else is delivered.
//!
//! With p items of n refused this takes at most about 2·p·(log2(n/p)+1) requests: a half whose sibling was taken must
//! hold the poison and is split without being sent. Cuts fall between records, resources or scopes where one lies near
//! the middle. Until the destination has taken something, the search goes down to a single item and then on with the
//! largest part left: either something is taken soon, or the destination is found to refuse everything
//! ([`REFUSALS_IN_ROW_MAX`]) and the batch is held. When it refuses that many in a row later, an item that it
//! took is sent once more, to learn whether it still takes anything.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::dlq::Reason;
use crate::exporters::{Batch, Failure, Payload};
use crate::otlp::edit;
use crate::queue::Why;
use crate::storage::RangeSet;

use super::batch;
use super::deliver::{Answer, Leased};
use super::parking::Envelope;
use super::proof::REFUSALS_IN_ROW_MAX;
use super::records::Records;
use super::tries::{Leave, Place, Tries};

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
pub(super) struct Poison {
    pub items: Range<usize>,
    pub attempts: u32,
    pub refusal: Refusal,
    pub failure: Failure,
    /// When it was refused nothing showed that the destination takes anything: it may have refused everything just then.
    is_doubtful: bool,
}

pub(super) struct Isolation {
    pub(super) leased: Leased,
    pub(super) envelope: Envelope,
    /// Of all of the batch. Empty while it waits for its destination without a place.
    payload: Bytes,
    items: Vec<edit::Item>,
    pub(super) records: Records,
    /// Small ones at the back.
    parts: VecDeque<Part>,
    pub(super) poison: Vec<Poison>,
    /// Items that were taken, also in an earlier try.
    pub(super) taken: RangeSet,
    /// One of them, from this try.
    pub(super) sample: Option<usize>,
    /// Parts that were taken but for so many items.
    pub(super) rejected: Vec<(Range<usize>, u64)>,
    /// Refusals since the destination took something, from anybody, and when that was.
    refusals_in_row: u32,
    accepted_at: Option<Instant>,
    /// A part passed `max_elapsed_time`: the others have one try each.
    is_late: bool,
    /// A single item was refused and nothing was ever taken: the poison is less likely in the largest part left.
    looks_elsewhere: bool,
    /// What is left waits for the next start, which is no news.
    pub(super) is_quiet: bool,
    pub(super) began_at: Instant,
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
        let records = Records::of(leased.lease.records());
        let whole = Part { items: 0..items.len(), attempts: 0, is_suspect: false, is_certain: false };
        Isolation {
            leased,
            envelope,
            payload,
            items,
            records,
            parts: VecDeque::from([whole]),
            poison: Vec::new(),
            taken: RangeSet::new(),
            sample: None,
            rejected: Vec::new(),
            refusals_in_row: 0,
            accepted_at: None,
            is_late: false,
            looks_elsewhere: false,
            is_quiet: false,
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

    /// Some of its one record was taken before it was set aside.
    pub fn begin_with_the_left(&mut self) {
        let Some(left) = self.leased.lease.left().cloned() else { return };
        if left.items().last().is_none_or(|last| last.end > self.items.len()) {
            return;
        }
        self.parts.clear();
        let mut taken_from = 0;
        for items in left.items() {
            self.taken.insert(taken_from..items.start as u64);
            taken_from = items.end as u64;
            self.parts.push_back(Part { items: items.clone(), attempts: 0, is_suspect: false, is_certain: false });
        }
        self.taken.insert(taken_from..self.items.len() as u64);
    }

    pub async fn run(mut self) {
        if self.items.is_empty() {
            let reason = self.poison.pop().map(|poison| poison.failure.message);
            return self.hold_rest(Why::of(reason.unwrap_or_else(|| "it cannot be taken apart".to_owned())));
        }
        let mut last_failure = self.poison.last().map(|poison| poison.failure.message.clone());
        while let Some(part) = self.next_part() {
            let checked_at = Instant::now();
            if self.is_row_long() && !self.still_takes_something().await {
                let destination = Arc::clone(&self.leased.destination);
                destination.proof.found_to_refuse_everything();
                let message = format!("the destination refuses everything: {}", last_failure.unwrap_or_default());
                let since = self.refused_at();
                self.hold_rest(Why::unproven(message, since));
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
                Sent::Ended => return self.stay(),
                Sent::Taken { rejected_items } => {
                    self.was_taken(&part, rejected_items);
                    self.mark_sibling(&part);
                }
                Sent::Not(refusal, failure) => {
                    last_failure = Some(failure.message.clone());
                    self.not_taken(part, refusal, failure);
                }
            }
        }
        match self.ask_again().await {
            true => self.conclude().await,
            false => self.stay(),
        }
    }

    /// A destination that takes something now may take what it refused before: each of that has one more try. False: the
    /// process is stopping.
    async fn ask_again(&mut self) -> bool {
        let takes_now = self.sample.is_some() || self.leased.destination.proof.took_something_since(self.began_at);
        if !takes_now {
            return true;
        }
        for poison in std::mem::take(&mut self.poison) {
            if !poison.is_doubtful || poison.refusal != Refusal::Permanent {
                self.poison.push(poison);
                continue;
            }
            let attempts = poison.attempts + 1;
            let part = Part { items: poison.items.clone(), attempts, is_suspect: false, is_certain: false };
            match self.send(&part).await {
                Sent::Ended => return false,
                Sent::Taken { rejected_items } => self.was_taken(&part, rejected_items),
                Sent::Not(refusal, failure) => {
                    self.poison.push(Poison { attempts, refusal, failure, ..poison });
                }
            }
        }
        true
    }

    fn was_taken(&mut self, part: &Part, rejected_items: u64) {
        self.taken.insert(part.items.start as u64..part.items.end as u64);
        self.sample = Some(part.items.start);
        if rejected_items > 0 {
            self.rejected.push((part.items.clone(), rejected_items));
        }
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

    pub(super) fn item_count(&self) -> usize {
        self.items.len()
    }

    /// When something in it was refused first, as far as is known.
    pub(super) fn refused_at(&self) -> Instant {
        self.leased.lease.unproven_since().unwrap_or(self.began_at)
    }

    async fn still_takes_something(&mut self) -> bool {
        let Some(item) = self.sample else { return self.leased.takes_what_it_took(&self.envelope).await };
        let part = Part { items: item..item + 1, attempts: 0, is_suspect: false, is_certain: false };
        matches!(self.send(&part).await, Sent::Taken { .. })
    }

    fn not_taken(&mut self, part: Part, refusal: Refusal, failure: Failure) {
        if let Refusal::Final(reason) = refusal {
            // Nothing is wrong with it that a search would find.
            self.is_late |= reason == Reason::Expired;
            let of_records = self.records.apart(part.items).into_iter();
            self.poison.extend(of_records.map(|(_, items)| Poison {
                items,
                attempts: part.attempts,
                refusal,
                failure: failure.clone(),
                is_doubtful: false,
            }));
            return;
        }
        self.refusals_in_row += 1;
        if part.items.len() <= 1 {
            self.looks_elsewhere = self.sample.is_none();
            let is_doubtful = self.sample.is_none() && !self.leased.destination.proof.takes_others();
            self.poison.push(Poison { items: part.items, attempts: part.attempts, refusal, failure, is_doubtful });
            return;
        }
        if failure.too_large {
            self.leased.destination.learn_too_large(self.bytes_of(&part));
        }
        self.split(part, failure.too_large, refusal == Refusal::Permanent && !failure.too_large);
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
        nearest(&|at| self.records.begins_at(at))
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

    /// The message of these items alone.
    pub(super) fn payload_of(&self, items: &Range<usize>) -> Bytes {
        if items.len() == self.items.len() {
            return self.payload.clone();
        }
        let kept = edit::retain(self.leased.signal, &self.payload, &mut |index| items.contains(&index));
        // What was walked once is walked again without an error.
        kept.ok().flatten().map_or_else(|| self.payload.clone(), Bytes::from)
    }

    async fn send(&mut self, part: &Part) -> Sent {
        let destination = Arc::clone(&self.leased.destination);
        let bytes = self.bytes_of(part);
        let first_attempt = Instant::now();
        let mut tries = Tries::of_part(part.items.len());
        loop {
            let leave = tries.leave(&self.leased.place, &destination, &self.leased.draining, bytes);
            let Some(leave) = leave.await else { return Sent::Ended };
            if let Err(error) = self.restore(&leave).await {
                tracing::error!(exporter = %destination.id, %error, "failed to read a batch again; trying later");
                leave.pass.failed(None);
                continue;
            }
            let payload = self.payload_of(&part.items);
            let request = Batch {
                signal: self.leased.signal,
                items: part.items.len() as u64,
                payload: Payload::from(payload),
                metadata: self.envelope.metadata.clone(),
            };
            let failure = match self.leased.export(request, leave, &self.envelope, &mut tries).await {
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
            if tries.are_spent() {
                return Sent::Not(Refusal::Stubborn, failure);
            }
            tries.give_way(&mut self.leased.place, &destination);
            if matches!(self.leased.place, Place::Aside { .. }) {
                self.shed();
            }
        }
    }

    /// Reads again what was given back.
    async fn restore(&mut self, leave: &Leave<'_>) -> std::io::Result<()> {
        if self.payload.is_empty() {
            self.leased.take_memory(&leave.pass).await;
            self.read_again().await?;
        }
        Ok(())
    }

    /// The same, for the letters.
    pub(super) async fn restore_unsent(&mut self) -> std::io::Result<()> {
        if self.payload.is_empty() {
            self.leased.wait_for_memory().await;
            self.read_again().await?;
        }
        Ok(())
    }

    async fn read_again(&mut self) -> std::io::Result<()> {
        self.leased.lease.reload_these(|sequence| self.records.has(sequence)).await?;
        let request = batch::build(self.leased.signal, self.leased.lease.records()).await;
        self.payload = request.map_err(std::io::Error::other)?.payload.into_bytes();
        Ok(())
    }

    /// Gives the memory back while it waits.
    fn shed(&mut self) {
        self.payload = Bytes::new();
        self.leased.lease.shed();
        self.leased.memory = None;
    }
}
