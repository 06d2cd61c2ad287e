//! The front and the back door over a real log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

mod model;
mod power_cuts;
mod rig;
mod sights;

use super::*;
use crate::settings::Sizer;
use crate::storage::log::Observer;
use crate::storage::{Disk, Log, Options, RealDisk, StartAt, Store};

mod held;
mod overflow;
mod retry;
mod unreadable;

struct Unobserved;
impl Observer for Unobserved {}

const LIMITS: LeaseLimits = LeaseLimits { bytes_max: 1 << 20, records_max: 3, items_max: u64::MAX };

fn open(dir: &Path) -> Store {
    open_with(dir, 256 << 10)
}

fn open_with(dir: &Path, max_size_bytes: u64) -> Store {
    open_on(Arc::new(RealDisk), dir, max_size_bytes)
}

fn open_on(disk: Arc<dyn Disk>, dir: &Path, max_size_bytes: u64) -> Store {
    let options = Options {
        max_size_bytes: Some(max_size_bytes),
        segment_bytes: Some(20 << 10),
        tail_bytes_max: 2 << 10,
        checkpoint_interval: Duration::from_millis(5),
        ..Options::default()
    };
    Store::open(disk, dir, &options, Arc::new(Unobserved)).expect("opens").0
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
        marks: Marks::default(),
        peer: None,
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

/// Offers until one is refused; how many were taken, and the refusal.
async fn fill(router: &Router, budget: &Budget, items: u64) -> (u64, Refused) {
    for taken in 0..1000 {
        let offer = Offer { items, ..offer(budget, taken as u8, Vec::new()) };
        match router.offer(offer).await {
            Ok(_receipt) => {}
            Err(refused) => return (taken, refused),
        }
    }
    panic!("nothing was refused");
}

#[tokio::test]
async fn queue_size_bounds_the_backlog_in_the_unit_of_its_sizer_and_delivery_makes_room() {
    // Records of 700 bytes are stored in 776.
    for (sizer, size, fits) in [(Sizer::Requests, 9, 9), (Sizer::Items, 100, 10), (Sizer::Bytes, 8 * 776 + 775, 8)] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = open(dir.path());
        let log = queue(&store, "one");
        log.limit_backlog("x", sizer, size);
        let mut router = Router::new();
        router.add(Signal::Traces, Arc::clone(&log));
        let budget = Budget::new(1 << 20);
        let (taken, refused) = fill(&router, &budget, 10).await;
        assert_eq!(taken, fits, "{sizer:?}");
        assert_eq!(refused.reason, RefusedReason::Full);
        let words = ["exporter \"x\"", "queue \"one\"", "sending_queue.queue_size", sizer.name()];
        assert!(words.iter().all(|word| refused.message.contains(word)), "{refused}");
        assert!(refused.retry_after > Duration::ZERO);
        assert!(router.check(Signal::Traces, 1000).is_err(), "also before a body is read");

        let subscription = Subscription::new(Arc::clone(&log), "x");
        let lease = subscription.lease(LIMITS).await.expect("reads").expect("records");
        drop(lease);
        assert_eq!(fill(&router, &budget, 10).await.0, 0, "what was not delivered still counts");
        let lease = subscription.lease(LIMITS).await.expect("reads").expect("records");
        let delivered = lease.records().len() as u64;
        lease.settle(Settled::by_delivery());
        assert_eq!(fill(&router, &budget, 10).await.0, delivered, "{sizer:?}");
        assert_eq!(log.status().cursors[0].backlog.items, fits * 10);
    }
}

#[tokio::test]
async fn a_full_sending_queue_of_one_exporter_refuses_for_all_queues_of_the_request() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let (one, two) = (queue(&store, "one"), queue(&store, "two"));
    two.limit_backlog("x", Sizer::Requests, 4);
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&one));
    router.add(Signal::Traces, Arc::clone(&two));
    let budget = Budget::new(1 << 20);
    assert_eq!(fill(&router, &budget, 1).await.0, 4);
    assert_eq!((one.durable_end(), two.durable_end()), (4, 4));
    let backlogs = [&one, &two].map(|log| log.status().cursors[0].backlog.records);
    assert_eq!(backlogs, [4, 4], "what was refused is counted nowhere");
}

#[tokio::test]
async fn many_offers_at_once_do_not_overrun_queue_size() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let log = queue(&store, "one");
    log.limit_backlog("x", Sizer::Requests, 10);
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    let offers = (0..50).map(|n| router.offer(offer(&budget, n, Vec::new())));
    let answers = futures_util::future::join_all(offers).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 10);
    assert_eq!(log.durable_end(), 10);
}

#[tokio::test]
async fn a_request_larger_than_queue_size_is_taken_when_nothing_waits() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let log = queue(&store, "one");
    log.limit_backlog("x", Sizer::Items, 5);
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    assert_eq!(fill(&router, &budget, 10).await.0, 1);
}

#[tokio::test]
async fn the_backlog_is_counted_again_after_a_restart_from_the_middle_of_a_segment() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let log = queue(&store, "one");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    // Uneven: an estimate by position would be wrong.
    for n in 0..60u64 {
        let offer = Offer { items: n, ..offer(&budget, n as u8, Vec::new()) };
        let _receipt = router.offer(Offer { items: offer.items + 1, ..offer }).await.expect("accepted");
    }
    let subscription = Subscription::new(Arc::clone(&log), "x");
    for n in 0..12 {
        let lease = subscription.lease(LIMITS).await.expect("reads").expect("records");
        // Every other lease stays: holes in the cursor.
        if n % 2 == 0 { lease.settle(Settled::by_delivery()) } else { lease.hold(Why::of("refused".to_owned())) }
    }
    let before = log.status().cursors[0].backlog;
    assert_eq!(before.records, 60 - 18);
    assert!(before.items > 0 && before.bytes == before.records * 776);
    store.close();
    drop((store, router, subscription));
    assert_eq!(Arc::strong_count(&log), 1);
    drop(log);
    let store = open(dir.path());
    let log = queue(&store, "one");
    assert_eq!(log.status().cursors[0].backlog, before);
    log.limit_backlog("x", Sizer::Requests, before.records + 1);
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    assert_eq!(fill(&router, &budget, 1).await.0, 1);
    let subscription = Subscription::new(Arc::clone(&log), "x");
    while let Some(lease) = subscription.lease(LIMITS).await.expect("reads") {
        lease.settle(Settled::by_delivery());
    }
    assert_eq!(log.status().cursors[0].backlog, Default::default());
}
