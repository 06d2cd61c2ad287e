//! What a look calls damage, and what it does not.

use super::*;
use crate::storage::survey::{Depth, survey};

fn damage(dir: &Path) -> Vec<String> {
    let found = survey(dir, Depth::Records).expect("readable");
    let all = found.queues.into_iter().flat_map(|queue| queue.damage);
    all.map(|damage| format!("{} {:?} {}", damage.offset, damage.sequences, damage.reason)).collect()
}

#[test]
fn what_was_given_back_is_no_damage_when_nobody_reads_any_more_or_the_witness_is_gone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("q", &cursor("x")).expect("queue");
    append_all(&log, 0..40);
    log.settle("x", 0..30);
    store.checkpoint().expect("written");
    store.checkpoint().expect("written");
    assert!(log.oldest_sequence() > 0, "something was given back");
    store.close();
    assert_eq!(damage(dir.path()), [""; 0]);
    let copy = crash_copy(dir.path());
    std::fs::write(copy.path().join("witness"), b"").expect("written");
    assert_eq!(damage(copy.path()), [""; 0]);
    drop((log, store));
    let (store, _, _) = open(dir.path());
    store.forget_cursor("q", "x").expect("written").expect("there");
    store.close();
    assert_eq!(damage(dir.path()), [""; 0]);
}

#[test]
fn what_repair_has_settled_is_reported_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("q", &cursor("x")).expect("queue");
    append_all(&log, 0..10);
    store.close();
    drop((log, store));
    let path = segments(dir.path(), "q").remove(0);
    let mut bytes = std::fs::read(&path).expect("readable");
    let at = bytes.windows(5).position(|window| window == b"4    ").expect("its payload");
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let found = damage(dir.path());
    assert!(found.iter().any(|line| line.contains("Some((4, 5))")), "{found:?}");
    assert!(found.iter().any(|line| line.contains("no record")), "{found:?}");
    let (store, report) =
        Store::repair(Arc::new(RealDisk), dir.path(), Arc::new(Seen::default())).expect("the store opens");
    assert_eq!(report.queues["q"].lost.len(), 1);
    store.close();
    drop(store);
    assert_eq!(damage(dir.path()), [""; 0], "it lies there still, and is no news");
}
