//! What a restart, a kill and a power cut leave of what was seen.

use std::path::Path;
use std::time::Duration;

use super::rig::{CURSOR, Rig, TRACES, WINDOW, Want, names, request, span};
use crate::dedup::Match;
use crate::otlp::{Encoding, Signal};
use crate::queue::Subscription;
use crate::storage::simulated::Dishonesty;

const BY_SPAN: Want = Want { spans: Some(Match::Exact), ..TRACES };
const KEY: &str = "/volume/data/fingerprints/secret";
const FINGERPRINTS: &str = "/volume/data/fingerprints/0000000000000001.fps";

fn message(id: u16) -> Vec<u8> {
    request(vec![span(1, id, "a"), span(2, id, "b")])
}

#[test]
fn what_was_written_down_is_known_after_a_kill_and_after_a_power_cut() {
    for want in [TRACES, BY_SPAN] {
        let mut rig = Rig::new(&[want]);
        rig.send(&message(1));
        rig.running().dedup.write(true);
        // Nothing is left to make them again from.
        rig.log().settle(CURSOR, 0..1);
        rig.log().rest();
        rig.running().store.checkpoint().expect("written");
        assert_eq!(rig.log().status().segments, 0);
        rig.kill();
        assert_eq!(rig.send(&message(1)), 2);
        rig.cut_power();
        assert_eq!((rig.send(&message(1)), rig.restored().rebuilt_records), (2, 0));
    }
}

#[test]
fn a_crash_between_append_and_acknowledgement_leaves_no_duplicate() {
    for (want, encoding) in [(TRACES, Encoding::Identity), (BY_SPAN, Encoding::Gzip)] {
        let mut rig = Rig::new(&[want]);
        let unanswered = rig.offer(Signal::Traces, &message(1), encoding, None);
        rig.log().write_pending();
        assert!(!unanswered.is_finished());
        rig.cut_power();
        assert_eq!(rig.restored().rebuilt_records, 1, "the fingerprint was made again from the record");
        assert_eq!(rig.send(&message(1)), 2);
        assert_eq!(rig.stored(rig.log()).len(), 1);
        // What was made again is written down, and need not be made a third time.
        rig.running().dedup.write(true);
        rig.kill();
        assert_eq!((rig.send(&message(1)), rig.restored().rebuilt_records), (2, 0));
    }
}

#[test]
fn a_crash_before_the_sync_leaves_nothing_seen() {
    let mut rig = Rig::new(&[BY_SPAN]);
    let _unanswered = rig.traces(&message(1));
    rig.cut_power();
    assert_eq!(rig.send(&message(1)), 0);
    assert_eq!(rig.stored(rig.log()).len(), 1);
}

/// A queue that had two records and lost the second, whose fingerprint stayed.
fn with_a_torn_record(want: Want) -> Rig {
    for seed in 1..50 {
        let mut rig = Rig::seeded(seed, &[want]);
        rig.send(&message(1));
        rig.running().store.checkpoint().expect("written");
        rig.world.set_dishonesty(Some(Dishonesty::LyingSync));
        rig.send(&message(2));
        rig.world.set_dishonesty(None);
        rig.running().dedup.write(true);
        rig.cut_power();
        // What the lying sync left unwritten may be there after all; until it is not, the cut is made again.
        if rig.stored(rig.log()).len() == 1 {
            return rig;
        }
    }
    panic!("the record was never torn away");
}

#[test]
fn a_fingerprint_whose_record_was_torn_away_does_not_count_now_or_later() {
    for want in [TRACES, BY_SPAN] {
        let mut rig = with_a_torn_record(want);
        assert!(rig.restored().ignored > 0);
        // Another record under its sequence gives it nothing to stand for, also after another restart.
        assert_eq!(rig.send(&message(3)), 0);
        rig.running().dedup.write(true);
        rig.cut_power();
        assert_eq!(rig.restored().ignored, 0);
        assert_eq!(rig.send(&message(2)), 0, "the lost one is taken again");
        assert_eq!(rig.send(&message(3)), 2);
        assert_eq!(rig.send(&message(1)), 2);
    }
}

#[test]
fn what_is_given_up_under_a_sequence_that_was_forgotten_before_its_use_may_come_again() {
    let mut rig = with_a_torn_record(TRACES);
    assert_eq!(rig.send(&message(3)), 0);
    let sequence = rig.stored(rig.log())[1].0;
    rig.running().dedup.write(true);
    forget_settled(&rig, 0..sequence + 1, [sequence]);
    rig.kill();
    assert_eq!(rig.send(&message(3)), 0);
}

#[test]
fn a_record_given_up_among_more_others_than_are_told_apart_may_come_again_after_a_restart() {
    let mut rig = Rig::new(&[TRACES]);
    for id in 1..=140 {
        rig.send(&message(id));
    }
    rig.running().dedup.write(true);
    // Every other one; then one between the first two, which by then are remembered as one range.
    forget_settled(&rig, 0..140, (0..140).step_by(2).chain([1]));
    rig.kill();
    assert_eq!(rig.send(&message(2)), 0);
    assert_eq!(rig.send(&message(4)), 2, "and nobody else may");
}

/// Gives records up that are in no file any more.
fn forget_settled(rig: &Rig, settled: std::ops::Range<u64>, given_up: impl IntoIterator<Item = u64>) {
    rig.log().settle(CURSOR, settled);
    rig.log().rest();
    rig.running().store.checkpoint().expect("written");
    given_up.into_iter().for_each(|sequence| rig.running().dedup.forget("traces", sequence..sequence + 1));
}

#[test]
fn what_is_given_up_may_come_again_also_after_a_restart() {
    for want in [TRACES, BY_SPAN] {
        let mut rig = Rig::new(&[want]);
        // Far enough apart not to share an epoch.
        for id in 1..=3 {
            rig.send(&message(id));
            rig.clock.advance(Duration::from_secs(60));
        }
        rig.running().dedup.write(true);
        rig.log().let_give_way(CURSOR);
        let subscription = Subscription::new(rig.log().clone(), CURSOR);
        let given = subscription.give_up(1..2, None).expect("reads");
        assert_eq!(given.weight.records, 1);
        rig.running().store.checkpoint().expect("written");
        drop(subscription);
        for is_after in [false, true] {
            if is_after {
                rig.cut_power();
            }
            assert_eq!((rig.send(&message(1)), rig.send(&message(3))), (2, 2), "after a restart: {is_after}");
        }
        assert_eq!(rig.send(&message(2)), 0);
        assert_eq!(rig.send(&message(2)), 2);
    }
}

#[test]
fn what_a_queue_had_seen_does_not_count_after_a_run_without_a_gate_before_it() {
    let others = Want { queue: "logs", signal: Signal::Logs, ..TRACES };
    let mut rig = Rig::new(&[TRACES, others]);
    rig.send(&message(1));
    assert_eq!(rig.send(&message(1)), 2);
    // Settled, or given up: nobody notes it meanwhile.
    rig.log().settle(CURSOR, 0..1);
    rig.log().rest();
    rig.restart_with(|wants| wants[0].requests = false);
    rig.restart_with(|wants| wants[0].requests = true);
    assert_eq!(rig.send(&message(1)), 0);
    assert_eq!(rig.send(&message(1)), 2);
}

#[test]
fn a_record_forgotten_while_it_was_being_written_is_not_seen() {
    let rig = Rig::new(&[BY_SPAN]);
    let answer = rig.traces(&message(1));
    rig.running().dedup.forget("traces", 0..1);
    rig.commit();
    assert_eq!(rig.answer(answer), Ok(0));
    assert_eq!(rig.send(&message(1)), 0);
}

#[test]
fn the_window_goes_on_across_a_restart() {
    let mut rig = Rig::new(&[BY_SPAN]);
    rig.send(&message(1));
    rig.clock.advance(WINDOW / 2);
    rig.send(&message(2));
    rig.running().dedup.write(true);
    rig.kill();
    assert_eq!(rig.send(&message(1)), 2);
    rig.clock.advance(WINDOW / 2 + WINDOW / 8);
    rig.kill();
    assert_eq!((rig.send(&message(2)), rig.send(&message(1))), (2, 0));
}

#[test]
fn a_clock_set_back_ends_no_window_early() {
    let mut rig = Rig::new(&[TRACES]);
    rig.clock.advance(Duration::from_secs(1000));
    rig.send(&message(1));
    rig.running().dedup.write(true);
    rig.clock = crate::dedup::clock::Clock::set(5);
    rig.kill();
    assert_eq!(rig.send(&message(1)), 2);
}

#[test]
fn without_the_secret_or_with_damaged_fingerprints_data_is_only_stored_twice() {
    for path in [KEY, FINGERPRINTS] {
        let mut rig = Rig::new(&[TRACES]);
        rig.send(&message(1));
        rig.running().dedup.write(true);
        rig.log().settle(CURSOR, 0..1);
        rig.log().rest();
        rig.running().store.checkpoint().expect("written");
        rig.world.spoil(Path::new(path)).expect("there");
        rig.kill();
        assert_eq!(rig.send(&message(1)), 0);
        assert_eq!(rig.send(&message(1)), 2);
        rig.running().dedup.write(true);
        rig.kill();
        assert_eq!(rig.send(&message(1)), 2, "and it works again");
    }
}

#[test]
fn a_level_that_is_turned_on_later_knows_what_the_queue_still_has() {
    let mut rig = Rig::new(&[TRACES]);
    rig.send(&message(1));
    rig.restart_with(|wants| wants[0] = BY_SPAN);
    let part = request(vec![span(1, 1, "a"), span(9, 9, "new")]);
    assert_eq!(rig.send(&part), 1);
    assert_eq!(names(&rig.stored(rig.log())[1].1), ["new"]);
    // Under another rule no key of the first one matches, and those of the records are made again.
    rig.restart_with(|wants| wants[0].spans = Some(Match::Id));
    assert_eq!(rig.send(&request(vec![span(1, 1, "other content"), span(8, 8, "newer")])), 1);
}

#[test]
fn fingerprints_stay_within_their_bound_on_disk() {
    let mut rig = Rig::new(&[BY_SPAN]);
    for id in 1..=1500_u16 {
        let spans = (0..60).map(|n| span(1 + n, id, "s")).collect();
        rig.send(&request(spans));
        rig.log().settle(CURSOR, 0..u64::from(id));
        if id % 10 == 0 {
            rig.running().dedup.write(false);
            rig.running().store.checkpoint().expect("written");
        }
    }
    rig.running().dedup.write(true);
    let bytes = rig.running().dedup.disk_bytes();
    assert!(bytes <= 2 << 20 && bytes > 1 << 20, "{bytes}");
    rig.kill();
    let last = request((0..60).map(|n| span(1 + n, 1500, "s")).collect());
    assert_eq!(rig.send(&last), 60);
    assert_eq!(rig.running().dedup.disk_bytes(), bytes);
}
