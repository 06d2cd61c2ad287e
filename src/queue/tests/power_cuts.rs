//! Power cuts by the thousand: random steps on a simulated disk, in lockstep with the model.
//!
//! `FOREBAY_CUTS=100000 cargo test --lib power_cuts` goes on until so many cuts are made; `FOREBAY_SEED=n` begins with
//! that case; `FOREBAY_SLED_CUTS` is the same with real sled as the catalogue. What a case does follows from its seed alone.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::rig::{Blunder, EXPORTERS, Op, Rig};
use super::sights::Sights;
use crate::storage::mutant::{self, Mutant};
use crate::storage::simulated::{Dishonesty, Fate};

/// Cuts of the short form.
const CUTS: u64 = 2_000;
/// Opening sled takes its time.
const SLED_CUTS: u64 = 100;
const OPS_MAX: usize = 100;
/// Cases in which each mutant must be found.
const MUTANT_CASES_MAX: u64 = 3_000;

#[derive(Clone, Copy, Debug)]
enum Catalogue {
    Twin,
    /// The real one, in a temporary directory.
    Sled,
}

/// A case's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    Disk(Dishonesty),
    Driver(Blunder),
    Code(Mutant),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Any), 1 => Just(Fate::Torn), 1 => Just(Fate::Empty)]
}

fn op() -> impl Strategy<Value = Op> {
    let small = (1..6usize, prop_oneof![4 => 8..1_500u16, 2 => 1_500..5_000u16]);
    let size = prop_oneof![9 => small, 1 => (Just(1usize), 5_000..30_000u16)];
    prop_oneof![
        12 => (size, prop::bool::weighted(0.05))
            .prop_map(|((count, len), is_forged)| Op::Offer { count, len, is_forged }),
        12 => Just(Op::Commit),
        3 => Just(Op::Prepare),
        1 => Just(Op::Rest),
        10 => (0..EXPORTERS.len(), 1..12usize).prop_map(|(exporter, records)| Op::Lease { exporter, records }),
        10 => (0..4usize).prop_map(|lease| Op::Settle { lease }),
        2 => (0..4usize).prop_map(|lease| Op::Release { lease }),
        3 => Just(Op::Drain),
        6 => Just(Op::Checkpoint),
        1 => (1..5u32).prop_map(Op::FailSyncs),
        1 => (0..12u32, 1..4u32).prop_map(|(passing, failing)| Op::FailWrites { passing, failing }),
        1 => (1..3u32).prop_map(Op::FailNames),
        1 => (1..3u32).prop_map(Op::FailReads),
        4 => (0..25u64, prop::option::weighted(0.2, 0..40u64), fate())
            .prop_map(|(operations, again, fate)| Op::Cut { operations, again, fate }),
        1 => (0..25u64).prop_map(|operations| Op::Kill { operations }),
        1 => Just(Op::Forget),
        1 => Just(Op::Restart),
        1 => (0..3u32, 0..3u32, 0..3u32).prop_map(|(syncs, reads, writes)| Op::FaultyStart { syncs, reads, writes }),
    ]
}

fn run(seed: u64, ops: &[Op], catalogue: Catalogue, mistake: Option<Mistake>) -> Result<Sights, String> {
    let code = if let Some(Mistake::Code(mutant)) = mistake { Some(mutant) } else { None };
    mutant::set(code);
    let result = (|| {
        let mut rig = match catalogue {
            Catalogue::Twin => Rig::new(seed)?,
            Catalogue::Sled => Rig::with_sled(seed)?,
        };
        match mistake {
            Some(Mistake::Disk(dishonesty)) => rig.world.set_dishonesty(Some(dishonesty)),
            Some(Mistake::Driver(blunder)) => rig.blunder = Some(blunder),
            Some(Mistake::Code(_)) | None => {}
        }
        for op in ops {
            rig.run(op)?;
        }
        rig.finish()?;
        Ok(rig.sights)
    })();
    mutant::set(None);
    result
}

/// One case, shrunk when it fails.
fn case(seed: u64, catalogue: Catalogue, mistake: Option<Mistake>, shrinks_max: u32) -> Result<Sights, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: shrinks_max, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let sights = RefCell::new(Sights::default());
    let outcome = runner.run(&proptest::collection::vec(op(), 5..OPS_MAX), |ops| {
        *sights.borrow_mut() = run(seed, &ops, catalogue, mistake).map_err(TestCaseError::fail)?;
        Ok(())
    });
    // A case that panicked has not tidied up.
    mutant::set(None);
    match outcome {
        Ok(()) => Ok(sights.into_inner()),
        Err(TestError::Fail(reason, ops)) => Err(format!("{reason}\nsteps: {ops:#?}")),
        Err(TestError::Abort(reason)) => Err(reason.to_string()),
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Case after case until so many cuts are made.
fn cut(test: &str, variable: &str, cuts_default: u64, catalogue: Catalogue) -> Sights {
    let cuts = number_of(variable).unwrap_or(cuts_default);
    let first = number_of("FOREBAY_SEED").unwrap_or(1);
    let mut sum = Sights::default();
    for seed in first.. {
        match case(seed, catalogue, None, 2_000) {
            Ok(sights) => sum.add(&sights),
            Err(reason) => panic!(
                "case {seed} after {} cuts: {reason}\nagain: FOREBAY_SEED={seed} {variable}=1 cargo test --lib {test}",
                sum.count("cuts")
            ),
        }
        if sum.count("cuts") >= cuts {
            println!("{} cases, {sum:?}", seed - first + 1);
            break;
        }
    }
    sum
}

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    let sum = cut("what_was_acknowledged_survives_power_cuts", "FOREBAY_CUTS", CUTS, Catalogue::Twin);
    if sum.count("cuts") >= CUTS {
        assert_eq!(sum.never_met(), Vec::<&str>::new(), "the run was not interesting: {sum:?}");
    }
}

#[test]
fn with_real_sled_what_was_acknowledged_survives_power_cuts() {
    let test = "with_real_sled_what_was_acknowledged_survives_power_cuts";
    cut(test, "FOREBAY_SLED_CUTS", SLED_CUTS, Catalogue::Sled);
}

/// Makes the mistake in one case after another until it is noticed, in one that is fine without it.
fn assert_caught(mistake: Mistake) {
    for seed in 1..=MUTANT_CASES_MAX {
        if let Err(reason) = case(seed, Catalogue::Twin, Some(mistake), 0) {
            println!("{mistake:?}: case {seed}: {}", reason.lines().next().unwrap_or_default());
            assert_eq!(
                case(seed, Catalogue::Twin, None, 0).err(),
                None,
                "case {seed} fails without the mistake as well"
            );
            return;
        }
    }
    panic!("{mistake:?} was not noticed in {MUTANT_CASES_MAX} cases");
}

#[test]
fn mutant_a_sync_that_lies_is_caught() {
    assert_caught(Mistake::Disk(Dishonesty::LyingSync));
}

#[test]
fn mutant_a_missing_directory_sync_is_caught() {
    assert_caught(Mistake::Disk(Dishonesty::NoDirectorySync));
}

#[test]
fn mutant_a_torn_tail_that_is_not_truncated_is_caught() {
    assert_caught(Mistake::Disk(Dishonesty::NoTruncation));
}

#[test]
fn mutant_a_reclaim_before_the_checkpoint_is_caught() {
    assert_caught(Mistake::Driver(Blunder::ReclaimBeforeCheckpoint));
}

#[test]
fn mutant_a_cursor_written_ahead_of_the_delivery_is_caught() {
    assert_caught(Mistake::Driver(Blunder::SettleBeforeDelivery));
}

#[test]
fn mutant_a_sequence_reused_below_a_cursor_is_caught() {
    assert_caught(Mistake::Code(Mutant::ReusedSequence));
}

#[test]
fn mutant_a_rebuilt_catalogue_that_starts_an_exporter_at_the_end_is_caught() {
    assert_caught(Mistake::Code(Mutant::CursorBornAtEnd));
}

#[test]
fn mutant_a_stale_record_replayed_from_a_recycled_segment_is_caught() {
    assert_caught(Mistake::Code(Mutant::StaleRecord));
}

#[test]
fn mutant_a_header_forged_inside_a_payload_is_caught() {
    assert_caught(Mistake::Code(Mutant::KnownNonce));
}
