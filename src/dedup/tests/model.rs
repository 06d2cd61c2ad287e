//! Random interleavings of clients, commits, failures, kills and power cuts: whatever a client was told is durable is in
//! the queue, or was taken from it by its exporter.
//!
//! `FOREBAY_DEDUP_CASES=20000 cargo test --lib no_interleaving` goes on for so many cases; `FOREBAY_SEED=n` begins with
//! that one. What a case does follows from its seed alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::rig::{Answer, CURSOR, Rig, TRACES, Want, names, request, span};
use crate::dedup::Match;
use crate::otlp::{Encoding, Signal};
use crate::queue::Subscription;
use crate::storage::mutant::{self, Mutant};
use crate::storage::simulated::Dishonesty;

const CASES: u64 = 100;
const MUTANT_CASES_MAX: u64 = 2_000;
const SPANS: u16 = 10;
const QUEUES: [Want; 2] =
    [Want { queue: "whole", ..TRACES }, Want { queue: "spans", spans: Some(Match::Exact), ..TRACES }];

#[derive(Clone, Debug)]
enum Op {
    /// Bit n: span n is in it.
    Offer {
        spans: u16,
        is_packed: bool,
    },
    HangUp(usize),
    Commit(usize),
    FailSyncs(u32),
    FailWrites(u32),
    /// The exporter takes all there is.
    Deliver(usize),
    GiveUpOldest(usize),
    Checkpoint,
    Write {
        and_sync: bool,
    },
    Advance(u64),
    Kill,
    Cut,
    /// What was synced last was not, and the power goes.
    Lie {
        spans: u16,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let spans = prop_oneof![3 => 1..16u16, 1 => 1..1u16 << SPANS];
    prop_oneof![
        16 => (spans.clone(), prop::bool::weighted(0.2)).prop_map(|(spans, is_packed)| Op::Offer { spans, is_packed }),
        3 => (0..4usize).prop_map(Op::HangUp),
        16 => (0..QUEUES.len()).prop_map(Op::Commit),
        2 => (1..5u32).prop_map(Op::FailSyncs),
        2 => (1..3u32).prop_map(Op::FailWrites),
        2 => (0..QUEUES.len()).prop_map(Op::Deliver),
        2 => (0..QUEUES.len()).prop_map(Op::GiveUpOldest),
        3 => Just(Op::Checkpoint),
        4 => prop::bool::ANY.prop_map(|and_sync| Op::Write { and_sync }),
        2 => prop_oneof![1..60u64, 100..700u64].prop_map(Op::Advance),
        2 => Just(Op::Kill),
        1 => Just(Op::Cut),
        1 => spans.prop_map(|spans| Op::Lie { spans }),
    ]
}

#[derive(Default)]
struct Queue {
    /// Spans that a client was told are durable.
    owed: BTreeSet<String>,
    /// Spans that the exporter has taken.
    delivered: BTreeSet<String>,
    /// Sequences below are delivered or given up.
    settled: u64,
}

/// A client that has no answer yet.
struct Client {
    spans: Vec<String>,
    answer: Answer,
    /// For each queue, what was given up meanwhile: durable once, and owed no more.
    given_up: [BTreeSet<String>; 2],
}

struct Model {
    rig: Rig,
    waiting: Vec<Client>,
    queues: [Queue; 2],
    sights: BTreeMap<&'static str, u64>,
}

fn message_of(spans: u16) -> Vec<u8> {
    let chosen = (0..SPANS).filter(|n| spans >> n & 1 == 1);
    request(chosen.map(|n| span(1, n + 1, &format!("s{n}"))).collect())
}

impl Model {
    fn see(&mut self, what: &'static str, count: u64) {
        *self.sights.entry(what).or_default() += count;
    }

    fn offer(&mut self, spans: u16, encoding: Encoding) {
        let message = message_of(spans);
        let answer = self.rig.offer(Signal::Traces, &message, encoding, None);
        self.waiting.push(Client { spans: names(&message), answer, given_up: Default::default() });
    }

    fn take_answers(&mut self) -> Result<(), String> {
        self.rig.turn();
        let (done, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|client| client.answer.is_finished());
        self.waiting = waiting;
        let done: Vec<Client> = done;
        for client in done {
            match self.rig.answer(client.answer) {
                Ok(duplicates) => {
                    self.see("acknowledged", 1);
                    self.see("duplicates", duplicates);
                    for (queue, given_up) in self.queues.iter_mut().zip(&client.given_up) {
                        queue.owed.extend(client.spans.iter().filter(|span| !given_up.contains(*span)).cloned());
                    }
                }
                Err(_) => self.see("refused", 1),
            }
        }
        self.check()
    }

    /// Whether all that is owed is there.
    fn check(&mut self) -> Result<(), String> {
        for (index, want) in QUEUES.iter().enumerate() {
            let stored = self.rig.stored(&self.rig.running().logs[index].clone());
            let queue = &self.queues[index];
            let waiting = stored.iter().filter(|(sequence, _)| *sequence >= queue.settled);
            let there: BTreeSet<String> = waiting.flat_map(|(_, message)| names(message)).collect();
            let lost: Vec<_> =
                queue.owed.iter().filter(|span| !there.contains(*span) && !queue.delivered.contains(*span)).collect();
            if !lost.is_empty() {
                return Err(format!("queue {}: {lost:?} were acknowledged and are nowhere", want.queue));
            }
        }
        Ok(())
    }

    /// The spans of the next records that are not settled, and the sequence behind them.
    fn next(&self, index: usize, records: usize) -> (Vec<String>, u64) {
        let settled = self.queues[index].settled;
        let stored = self.rig.stored(&self.rig.running().logs[index].clone());
        let next: Vec<_> = stored.into_iter().filter(|(sequence, _)| *sequence >= settled).take(records).collect();
        let end = next.last().map_or(settled, |(sequence, _)| sequence + 1);
        (next.iter().flat_map(|(_, message)| names(message)).collect(), end)
    }

    fn deliver(&mut self, index: usize) {
        let (spans, end) = self.next(index, usize::MAX);
        self.queues[index].delivered.extend(spans);
        self.rig.running().logs[index].settle(CURSOR, 0..end);
        self.queues[index].settled = end;
    }

    fn give_up_oldest(&mut self, index: usize) {
        let (spans, end) = self.next(index, 1);
        let log = self.rig.running().logs[index].clone();
        log.let_give_way(CURSOR);
        let subscription = Subscription::new(log, CURSOR);
        let Ok(given) = subscription.give_up(self.queues[index].settled..end, None) else { return };
        if given.weight.records == 0 {
            return;
        }
        self.queues[index].settled = end;
        // What is given up is owed no more, unless another record has it.
        let (left, _) = self.next(index, usize::MAX);
        for span in spans.iter().filter(|span| !left.contains(span)) {
            self.queues[index].owed.remove(span);
            for client in &mut self.waiting {
                client.given_up[index].insert(span.clone());
            }
        }
        self.see("given up", 1);
    }

    /// Everything in memory is gone. What was settled and not written down will be delivered again.
    fn restarted(&mut self) -> Result<(), String> {
        self.waiting.clear();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.settled = self.rig.running().logs[index].cursor(CURSOR).map_or(0, |cursor| cursor.low());
        }
        let restored: Vec<_> = self.rig.running().restored.values().copied().collect();
        for found in restored {
            self.see("restored", found.fingerprints);
            self.see("ignored", found.ignored);
            self.see("rebuilt", found.rebuilt_records);
        }
        self.check()
    }

    fn lie(&mut self, spans: u16) -> Result<(), String> {
        self.rig.world.set_faults(Default::default());
        self.rig.world.set_dishonesty(Some(Dishonesty::LyingSync));
        self.offer(spans, Encoding::Identity);
        self.rig.commit();
        self.rig.commit();
        self.rig.world.set_dishonesty(None);
        self.rig.running().dedup.write(true);
        self.rig.world.cut_power(crate::storage::simulated::Fate::Any);
        self.waiting.clear();
        self.rig.reopen();
        // The disk has lost what it will have lost; from now on it is honest, and owes only what it has.
        for index in 0..QUEUES.len() {
            self.queues[index].settled = self.rig.running().logs[index].cursor(CURSOR).map_or(0, |cursor| cursor.low());
            let (there, _) = self.next(index, usize::MAX);
            let queue = &mut self.queues[index];
            queue.owed.retain(|span| there.contains(span) || queue.delivered.contains(span));
            // Delivered, but perhaps lost by a disk that lied about the cursor too: known as far as it is known.
        }
        self.see("lies", 1);
        self.restarted()
    }

    fn run(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Offer { spans, is_packed } => {
                self.offer(spans, if is_packed { Encoding::Gzip } else { Encoding::Identity });
            }
            Op::HangUp(index) => {
                if !self.waiting.is_empty() {
                    self.waiting.remove(index % self.waiting.len()).answer.abort();
                    self.see("hung up", 1);
                }
            }
            Op::Commit(index) => self.rig.running().logs[index].write_pending(),
            Op::FailSyncs(count) => self.rig.world.update_faults(|faults| faults.failing_syncs = count),
            Op::FailWrites(count) => self.rig.world.update_faults(|faults| faults.failing_writes = count),
            Op::Deliver(index) => self.deliver(index),
            Op::GiveUpOldest(index) => self.give_up_oldest(index),
            Op::Checkpoint => {
                // One that fails was ordered to.
                let _ = self.rig.running().store.checkpoint();
            }
            Op::Write { and_sync } => self.rig.running().dedup.write(and_sync),
            Op::Advance(seconds) => self.rig.clock.advance(Duration::from_secs(seconds)),
            Op::Kill | Op::Cut => {
                self.rig.world.set_faults(Default::default());
                self.waiting.clear();
                if matches!(op, Op::Kill) {
                    self.rig.kill()
                } else {
                    self.rig.cut_power()
                }
                self.see("restarts", 1);
                return self.restarted();
            }
            Op::Lie { spans } => return self.lie(spans),
        }
        self.take_answers()
    }

    /// Every client comes again, until each has an answer; then everything is there.
    fn finish(&mut self) -> Result<(), String> {
        self.rig.world.set_faults(Default::default());
        for n in 0..SPANS {
            self.offer(1 << n, Encoding::Identity);
        }
        self.offer((1 << SPANS) - 1, Encoding::Identity);
        for _ in 0..20 {
            self.rig.commit();
            self.take_answers()?;
        }
        if self.waiting.is_empty() { Ok(()) } else { Err("somebody waits for ever".to_owned()) }
    }
}

fn run(seed: u64, ops: &[Op], mistake: Option<Mutant>) -> Result<BTreeMap<&'static str, u64>, String> {
    mutant::set(mistake);
    let mut model = Model {
        rig: Rig::seeded(seed, &QUEUES),
        waiting: Vec::new(),
        queues: Default::default(),
        sights: BTreeMap::new(),
    };
    let result = ops.iter().try_for_each(|op| model.run(op)).and_then(|()| model.finish());
    mutant::set(None);
    result.map(|()| model.sights)
}

fn case(seed: u64, mistake: Option<Mutant>, shrinks_max: u32) -> Result<BTreeMap<&'static str, u64>, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: shrinks_max, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let sights = RefCell::new(BTreeMap::new());
    let outcome = runner.run(&proptest::collection::vec(op(), 10..80), |ops| {
        *sights.borrow_mut() = run(seed, &ops, mistake).map_err(TestCaseError::fail)?;
        Ok(())
    });
    mutant::set(None);
    match outcome {
        Ok(()) => Ok(sights.into_inner()),
        Err(TestError::Fail(reason, ops)) => Err(format!("{reason}\nsteps: {ops:#?}")),
        Err(TestError::Abort(reason)) => Err(reason.to_string()),
    }
}

#[test]
fn no_interleaving_loses_what_was_acknowledged() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("FOREBAY_SEED").unwrap_or(1);
    let cases = number("FOREBAY_DEDUP_CASES").unwrap_or(CASES);
    let mut sum: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + cases {
        match case(seed, None, 2_000) {
            Ok(sights) => sights.into_iter().for_each(|(what, count)| *sum.entry(what).or_default() += count),
            Err(reason) => panic!("case {seed}: {reason}"),
        }
    }
    println!("{cases} cases: {sum:?}");
    let wanted = [
        "acknowledged",
        "duplicates",
        "refused",
        "hung up",
        "given up",
        "restarts",
        "restored",
        "rebuilt",
        "ignored",
        "lies",
    ];
    if cases >= CASES {
        let missing: Vec<_> = wanted.into_iter().filter(|what| !sum.contains_key(what) || sum[what] == 0).collect();
        assert!(missing.is_empty(), "the run was not interesting: {missing:?} in {sum:?}");
    }
}

/// Makes the mistake in one case after another until it is noticed, in one that is fine without it.
fn assert_caught(mistake: Mutant) {
    for seed in 1..=MUTANT_CASES_MAX {
        if let Err(reason) = case(seed, Some(mistake), 0) {
            println!("{mistake:?}: case {seed}: {}", reason.lines().next().unwrap_or_default());
            assert_eq!(case(seed, None, 0).err(), None, "case {seed} fails without the mistake as well");
            return;
        }
    }
    panic!("{mistake:?} was not noticed in {MUTANT_CASES_MAX} cases");
}

#[test]
fn mutant_a_duplicate_acknowledged_before_its_original_is_durable_is_caught() {
    assert_caught(Mutant::HeldIsDurable);
}

#[test]
fn mutant_a_failed_commit_that_leaves_its_keys_behind_is_caught() {
    assert_caught(Mutant::FailedIsDurable);
}

#[test]
fn mutant_a_fingerprint_without_its_record_is_caught() {
    assert_caught(Mutant::UncheckedFingerprint);
}

#[test]
fn mutant_keys_that_outlive_what_was_given_up_are_caught() {
    assert_caught(Mutant::NothingForgotten);
}
