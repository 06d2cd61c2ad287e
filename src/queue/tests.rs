//! The front and the back door over a real log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::storage::log::Observer;
use crate::storage::{Log, Options, RealDisk, StartAt, Store};

struct Unobserved;
impl Observer for Unobserved {}

const LIMITS: LeaseLimits = LeaseLimits { bytes_max: 1 << 20, records_max: 3, items_max: u64::MAX };

fn open(dir: &Path) -> Store {
    let options = Options {
        max_size_bytes: Some(256 << 10),
        segment_bytes: Some(16 << 10),
        tail_bytes_max: 2 << 10,
        checkpoint_interval: Duration::from_millis(5),
        syncs_per_second_max: None,
    };
    Store::open(Arc::new(RealDisk), dir, &options, Arc::new(Unobserved)).expect("opens").0
}

fn queue(store: &Store, name: &str) -> Arc<Log> {
    store.queue(name, &[("x".to_owned(), StartAt::Beginning)]).expect("queue")
}

fn offer(budget: &Budget, n: u8, metadata: Metadata) -> Offer {
    Offer {
        signal: Signal::Traces,
        encoding: Encoding::Identity,
        items: 1,
        raw_len: 700,
        metadata,
        payload: Bytes::from(vec![n; 700]),
        permit: budget.try_reserve(700).expect("budget"),
    }
}

#[tokio::test]
async fn rule_8_a_request_for_several_queues_is_written_to_all_of_them_or_to_none() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let (one, two) = (queue(&store, "one"), queue(&store, "two"));
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&one));
    router.add(Signal::Traces, Arc::clone(&two));
    let budget = Budget::new(1 << 20);
    let mut accepted = 0;
    let refused = loop {
        match router.offer(offer(&budget, accepted as u8, Vec::new())).await {
            Ok(_receipt) => accepted += 1,
            Err(refused) => break refused,
        }
        assert!(accepted < 10_000);
    };
    assert_eq!(refused.reason, RefusedReason::Full);
    assert!(refused.retry_after > Duration::ZERO && refused.message.contains("held by exporter \"x\""), "{refused}");
    assert_eq!((one.durable_end(), two.durable_end()), (accepted, accepted), "none got what the other refused");
}

#[tokio::test]
async fn memory_comes_back_when_a_request_is_refused_or_no_longer_held() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let log = queue(&store, "one");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    for n in 0..20 {
        let _receipt = router.offer(offer(&budget, n, Vec::new())).await.expect("accepted");
    }
    assert!(budget.used_bytes() <= 2 << 10, "only the tail is held: {}", budget.used_bytes());
    let mut metrics = offer(&budget, 0, Vec::new());
    metrics.signal = Signal::Metrics;
    let refused = router.offer(metrics).await.expect_err("no pipeline");
    assert_eq!(refused.reason, RefusedReason::NoPipeline);
    log.settle("x", 0..20);
    assert_eq!(budget.used_bytes(), 0);
}

#[tokio::test]
async fn a_lease_that_is_dropped_comes_again_and_one_that_is_settled_does_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let log = queue(&store, "one");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    for n in 0..9 {
        let _receipt = router.offer(offer(&budget, n, Vec::new())).await.expect("accepted");
    }
    let subscription = Subscription::new(Arc::clone(&log), "x");
    let first = subscription.lease(LIMITS).await.expect("reads").expect("records");
    let second = subscription.lease(LIMITS).await.expect("reads").expect("records");
    assert_eq!((first.covers(), second.covers()), (0..3, 3..6));
    second.settle(Settled::by_delivery());
    drop(first);
    let again = subscription.lease(LIMITS).await.expect("reads").expect("records");
    assert_eq!(again.covers(), 0..3);
    assert_eq!(again.records()[1].payload[..], [1; 700]);
    drop(again);
    store.close();
    drop(store);
    let store = open(dir.path());
    let log = queue(&store, "one");
    let subscription = Subscription::new(Arc::clone(&log), "x");
    let mut seen = Vec::new();
    while let Some(lease) = subscription.lease(LIMITS).await.expect("reads") {
        seen.extend(lease.records().iter().map(|record| record.payload[0]));
        lease.settle(Settled::by_delivery());
    }
    assert_eq!(seen, vec![0, 1, 2, 6, 7, 8]);
    assert_eq!(log.cursor("x").expect("cursor").low(), 9);
}

#[tokio::test]
async fn records_whose_metadata_differs_never_share_a_lease() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let log = queue(&store, "one");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    for n in 0..4u8 {
        let metadata = vec![("tenant".to_owned(), vec![n / 2])];
        let _receipt = router.offer(offer(&budget, n, metadata)).await.expect("accepted");
    }
    let subscription = Subscription::new(log, "x");
    let lease = subscription.lease(LIMITS).await.expect("reads").expect("records");
    assert_eq!(lease.covers(), 0..2);
    lease.settle(Settled::by_delivery());
    let lease = subscription.lease(LIMITS).await.expect("reads").expect("records");
    assert_eq!(lease.covers(), 2..4);
    lease.settle(Settled::by_delivery());
}

#[tokio::test]
async fn an_empty_request_is_accepted_and_not_stored() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let log = queue(&store, "one");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    let mut empty = offer(&budget, 0, Vec::new());
    empty.items = 0;
    let _receipt = router.offer(empty).await.expect("accepted");
    assert_eq!(log.durable_end(), 0);
}
