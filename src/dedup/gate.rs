//! The gate before one queue: what it has seen, and what it says of an offer.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;

use crate::otlp::Signal;
use crate::otlp::wire::Summary;
use crate::queue::Marks;
use crate::queue::gate::{Claim, Gate, Offered, Selection, Verdict};

use super::clock::Clock;
use super::fingerprints::Level;
use super::journal::Journal;
use super::keys::{self, Keys, Match};
use super::seen::{Known, Seen, Ticket, ticket};

/// Memory per item while an offer is under way: its key, its place in the verdict, its entry among the held keys.
const ITEM_BYTES: u64 = 96;

/// What one queue has seen.
pub struct QueueGate {
    pub queue: String,
    pub incarnation: u64,
    pub signal: Signal,
    pub keys: Arc<Keys>,
    pub clock: Clock,
    /// Whole requests.
    pub requests: Option<Seen>,
    pub spans: Option<(Match, Seen)>,
    pub journal: Arc<Journal>,
}

/// The gate as the queue knows it.
pub struct Handle(pub Arc<QueueGate>);

impl QueueGate {
    /// Two replicas may send equal logs and metrics, so there the sender is part of what is told apart.
    fn request_key(&self, offered: &Offered) -> u128 {
        match (offered.marks.request, self.signal) {
            (0, _) => 0,
            (message, Signal::Traces) => self.keys.request(message, self.signal, &offered.metadata, None),
            (message, _) => match offered.peer {
                None => 0,
                peer => self.keys.request(message, self.signal, &offered.metadata, peer),
            },
        }
    }

    /// As [`Gate::mark`]; also for what is read back from the log.
    pub fn mark_message(&self, message: &[u8], summary: &Summary, marks: &mut Marks) {
        if self.requests.is_some() && marks.request == 0 && keys::is_identified(self.signal, message, summary) {
            marks.request = self.keys.hash(message);
        }
        if let Some((by, _)) = &self.spans {
            let found = match by {
                Match::Exact => &mut marks.by_content,
                Match::Id => &mut marks.by_id,
            };
            if found.is_empty() {
                self.keys.spans(message, *by, found);
            }
        }
    }

    /// The request's key and its spans' keys, without those that have no identity: for what is durable already.
    pub fn all_keys(&self, offered: &Offered) -> (Option<u128>, Vec<u128>) {
        let request = Some(self.request_key(offered)).filter(|key| *key != 0 && self.requests.is_some());
        let spans = self.spans.as_ref().map(|(by, _)| marks_of(&offered.marks, *by)).unwrap_or_default();
        (request, spans.iter().copied().filter(|key| *key != 0).collect())
    }

    fn sort_spans(&self, offered: &Offered, left: &Selection, claim: &mut Held) -> Option<Verdict> {
        let (by, seen) = self.spans.as_ref()?;
        let marks = marks_of(&offered.marks, *by);
        if marks.len() as u64 != offered.items {
            return None;
        }
        let left: Vec<u32> = match left {
            Selection::None => Vec::new(),
            Selection::All => (0..marks.len() as u32).collect(),
            Selection::Some(chosen) => chosen.clone(),
        };
        // What has no identity is never a duplicate.
        let (known, mut fresh): (Vec<u32>, Vec<u32>) = left.iter().partition(|index| marks[**index as usize] != 0);
        let keys: Vec<u128> = known.iter().map(|index| marks[*index as usize]).collect();
        let mut verdict = Verdict::store(Selection::None);
        let mut waiting = Vec::new();
        let mut others: Vec<watch::Receiver<()>> = Vec::new();
        seen.claim(&keys, &claim.ticket, self.clock.now(), |index, found| match found {
            Known::Fresh => {
                fresh.push(known[index]);
                claim.spans.push(keys[index]);
            }
            Known::Own | Known::Durable => verdict.duplicates += 1,
            Known::Held(other) => {
                waiting.push(known[index]);
                if !others.iter().any(|waited| waited.same_channel(&other)) {
                    others.push(other);
                }
            }
        });
        fresh.sort_unstable();
        waiting.sort_unstable();
        verdict.fresh = Selection::of(fresh, offered.items);
        verdict.waiting = Selection::of(waiting, offered.items);
        verdict.waits = others.into_iter().map(|other| ended(other).boxed()).collect();
        Some(verdict)
    }
}

fn marks_of(marks: &Marks, by: Match) -> &[u128] {
    match by {
        Match::Exact => &marks.by_content,
        Match::Id => &marks.by_id,
    }
}

/// Resolves when nobody holds the ticket any more.
async fn ended(mut other: watch::Receiver<()>) {
    while other.changed().await.is_ok() {}
}

impl Gate for Handle {
    fn marks_bytes(&self, summary: &Summary) -> u64 {
        if self.0.spans.is_some() { summary.items * ITEM_BYTES } else { 0 }
    }

    fn mark(&self, _signal: Signal, message: &[u8], summary: &Summary, marks: &mut Marks) {
        self.0.mark_message(message, summary, marks);
    }

    fn claim(&self, offered: &Offered, left: &Selection) -> Verdict {
        let gate = &self.0;
        let mut claim = Held { gate: Arc::clone(gate), ticket: ticket(), request: 0, spans: Vec::new() };
        let key = if *left == Selection::All { gate.request_key(offered) } else { 0 };
        if key != 0
            && let Some(seen) = &gate.requests
        {
            let mut known = Known::Own;
            seen.claim(&[key], &claim.ticket, gate.clock.now(), |_, found| known = found);
            match known {
                Known::Fresh | Known::Own => claim.request = key,
                Known::Durable => {
                    return Verdict { duplicates: offered.items, ..Verdict::store(Selection::None) };
                }
                Known::Held(other) => {
                    return Verdict {
                        waiting: Selection::All,
                        waits: vec![ended(other).boxed()],
                        ..Verdict::store(Selection::None)
                    };
                }
            }
        }
        let mut verdict = gate.sort_spans(offered, left, &mut claim).unwrap_or_else(|| Verdict::store(left.clone()));
        if verdict.fresh != Selection::All {
            // The request as a whole is in no one record: what becomes of its parts is known by their own keys.
            claim.let_go_of_request();
        }
        verdict.claim = Some(Box::new(claim));
        verdict
    }
}

/// Keys held for one offer's record.
struct Held {
    gate: Arc<QueueGate>,
    ticket: Ticket,
    /// 0: none.
    request: u128,
    spans: Vec<u128>,
}

impl Held {
    fn let_go_of_request(&mut self) {
        if let Some(seen) = &self.gate.requests
            && self.request != 0
        {
            seen.void(&[self.request]);
            self.request = 0;
        }
    }
}

impl Claim for Held {
    fn durable(mut self: Box<Self>, sequence: u64) {
        let (request, spans) = (std::mem::take(&mut self.request), std::mem::take(&mut self.spans));
        let gate = &self.gate;
        let now = gate.clock.now();
        if let Some(seen) = &gate.requests
            && request != 0
        {
            seen.add(&[request], sequence, now);
        }
        if let Some((_, seen)) = &gate.spans {
            seen.add(&spans, sequence, now);
        }
        gate.journal.add(gate, sequence, Level::Request, &[request][..usize::from(request != 0)]);
        if gate.spans.is_some() {
            gate.journal.add(gate, sequence, Level::Span, &spans);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.let_go_of_request();
        if let Some((_, seen)) = &self.gate.spans
            && !self.spans.is_empty()
        {
            seen.void(&self.spans);
        }
    }
}
