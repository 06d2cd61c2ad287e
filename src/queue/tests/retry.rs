//! What failed before, tried again beside what is fresh.

use super::*;

const ONE: LeaseLimits = LeaseLimits { bytes_max: 1 << 20, records_max: 1, items_max: u64::MAX };

/// A subscription with records 0 to 9 set aside and to be tried again, and fresh ones from 10 to 29.
async fn set_aside_and_fresh(dir: &Path) -> (Store, Arc<Subscription>) {
    let store = open(dir);
    let log = queue(&store, "traces");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    let subscription = Subscription::new(log, "x");
    for n in 0..30 {
        let _receipt = router.offer(offer(&budget, n, Vec::new())).await.expect("accepted");
        if n < 10 {
            let lease = subscription.lease(ONE).await.expect("reads").expect("a record");
            lease.hold(Why::of("refused".to_owned()));
        }
    }
    assert_eq!(subscription.retry_held(), 10);
    (store, subscription)
}

async fn next(subscription: &Arc<Subscription>) -> Lease {
    subscription.lease(ONE).await.expect("reads").expect("a record")
}

#[tokio::test]
async fn what_was_set_aside_takes_every_other_lease_while_there_are_fresh_records() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, subscription) = set_aside_and_fresh(dir.path()).await;
    let mut order = Vec::new();
    for _ in 0..30 {
        let lease = next(&subscription).await;
        order.push(lease.records()[0].sequence);
        lease.settle(Settled::by_delivery());
    }
    let expected: Vec<u64> = (0..10).flat_map(|n| [n, n + 10]).chain(20..30).collect();
    assert_eq!(order, expected);
}

#[tokio::test]
async fn tries_that_get_no_answer_take_half_of_what_is_out_and_fresh_records_go_on() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, subscription) = set_aside_and_fresh(dir.path()).await;
    let mut unanswered = Vec::new();
    let mut answered = 0;
    // As with eight requests at a time: a fresh one is answered as soon as there is no place left.
    let mut fresh: Vec<Lease> = Vec::new();
    while answered < 16 {
        let lease = next(&subscription).await;
        match lease.records()[0].sequence {
            ..10 => unanswered.push(lease),
            _ => fresh.push(lease),
        }
        if unanswered.len() + fresh.len() == 8 {
            fresh.remove(0).settle(Settled::by_delivery());
            answered += 1;
        }
        assert!(unanswered.len() <= 4, "{} of 8 are tries again", unanswered.len());
    }
    assert_eq!(unanswered.len(), 4);
    let sequences: Vec<u64> = unanswered.iter().map(|lease| lease.records()[0].sequence).collect();
    // Dropped unanswered, they keep to their turn.
    drop(unanswered);
    let answered = answered + fresh.len();
    fresh.into_iter().for_each(|lease| lease.settle(Settled::by_delivery()));
    let mut left = Vec::new();
    while let Some(lease) = subscription.lease(ONE).await.expect("reads") {
        left.push(lease.records()[0].sequence);
        lease.settle(Settled::by_delivery());
    }
    assert_eq!(left.len(), 30 - answered);
    assert!(sequences.iter().all(|sequence| left.contains(sequence)), "{left:?}");
}

#[tokio::test]
async fn after_a_restart_what_was_left_behind_takes_every_other_lease_too() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, subscription) = set_aside_and_fresh(dir.path()).await;
    // One behind them is delivered, so that they are gaps below what was read.
    for _ in 0..2 {
        let lease = next(&subscription).await;
        if lease.records()[0].sequence == 10 {
            lease.settle(Settled::by_delivery());
        }
    }
    store.checkpoint().expect("written");
    drop(subscription);
    drop(store);

    let store = open(dir.path());
    let subscription = Subscription::new(queue(&store, "traces"), "x");
    let mut order = Vec::new();
    for _ in 0..6 {
        let lease = next(&subscription).await;
        order.push(lease.records()[0].sequence);
        lease.hold(Why::of("refused".to_owned()));
    }
    // The gap is one range, leased in pieces.
    assert_eq!(order, [0, 11, 1, 12, 2, 13]);
}
