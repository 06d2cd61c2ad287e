//! Records that are damaged after they were seen: nobody has them any more.

use std::time::Duration;

use super::rig::{Rig, TRACES, Want, request, span};
use crate::dedup::Match;

const BY_SPAN: Want = Want { spans: Some(Match::Exact), ..TRACES };

fn message(id: u16) -> Vec<u8> {
    request(vec![span(1, id, "a"), span(2, id, "b")])
}

/// Three records far enough apart not to share an epoch, their fingerprints written, the second damaged.
fn with_a_damaged_record(want: Want) -> Rig {
    let rig = Rig::new(&[want]);
    for id in 1..=3 {
        rig.send(&message(id));
        rig.clock.advance(Duration::from_secs(60));
    }
    rig.running().dedup.write(true);
    assert_eq!(rig.stored(rig.log()).len(), 3);
    rig.damage(rig.log(), 1);
    rig
}

#[test]
fn what_a_read_finds_damaged_may_come_again_at_once_and_after_a_restart() {
    for (want, is_after) in [(TRACES, false), (BY_SPAN, false), (TRACES, true), (BY_SPAN, true)] {
        let mut rig = with_a_damaged_record(want);
        assert_eq!(rig.send(&message(2)), 2, "nobody knows yet");
        assert_eq!(rig.stored(rig.log()).len(), 2);
        if is_after {
            rig.cut_power();
        }
        assert_eq!((rig.send(&message(1)), rig.send(&message(3))), (2, 2), "after a restart: {is_after}");
        assert_eq!(rig.send(&message(2)), 0, "after a restart: {is_after}");
        assert_eq!(rig.stored(rig.log()).len(), 3);
        assert_eq!(rig.send(&message(2)), 2);
    }
}

#[test]
fn what_a_start_finds_damaged_may_come_again_then_and_after_another() {
    for (want, starts) in [(TRACES, 1), (BY_SPAN, 1), (TRACES, 2), (BY_SPAN, 2)] {
        let mut rig = with_a_damaged_record(want);
        for start in 1..=starts {
            rig.kill();
            assert_eq!(rig.restored().ignored > 0, start == 1, "it is said once");
        }
        assert_eq!(rig.send(&message(2)), 0, "after {starts} starts");
        assert_eq!((rig.send(&message(1)), rig.send(&message(3))), (2, 2), "after {starts} starts");
    }
}

#[test]
fn what_the_search_for_missing_fingerprints_finds_damaged_may_come_again() {
    let mut rig = with_a_damaged_record(TRACES);
    // After a clean stop no record is read but for the level that is new.
    rig.restart_with(|wants| wants[0] = BY_SPAN);
    assert_eq!((rig.restored().ignored, rig.restored().rebuilt_records), (0, 2));
    for is_after in [false, true] {
        if is_after {
            rig.kill();
        }
        assert_eq!((rig.send(&message(1)), rig.send(&message(3))), (2, 2));
    }
    assert_eq!(rig.send(&message(2)), 0);
}
