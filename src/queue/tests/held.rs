//! The most ranges that may be set aside, and what was delivered between them.

use super::*;
use crate::queue::book::HELD_RANGES_MAX;

const ONE: LeaseLimits = LeaseLimits { bytes_max: 1 << 20, records_max: 1, items_max: u64::MAX };
/// Delivered before the last range that is set aside: several segments full.
const RUN: u64 = 200;
/// Records of an offer that a segment has room for.
const SEGMENT_RECORDS: u64 = 15;

#[tokio::test]
async fn what_is_delivered_between_the_most_ranges_that_may_be_held_is_given_back_and_not_sent_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open_with(dir.path(), 2 << 20);
    let log = queue(&store, "traces");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(4 << 20);
    let mut delivered = 0;
    let mut held = Vec::new();
    let subscription = Subscription::new(Arc::clone(&log), "x");
    while held.len() < HELD_RANGES_MAX {
        let _receipt = router.offer(offer(&budget, 0, Vec::new())).await.expect("room");
        let lease = subscription.lease(ONE).await.expect("reads").expect("a record");
        let sequence = lease.records()[0].sequence;
        if sequence % 2 == 1 || (held.len() == HELD_RANGES_MAX - 1 && delivered < HELD_RANGES_MAX as u64 + RUN) {
            lease.settle(Settled::by_delivery());
            delivered += 1;
        } else {
            lease.hold(Why::of("refused".to_owned()));
            held.push(sequence..sequence + 1);
        }
    }
    assert!(subscription.lease(ONE).await.expect("reads").is_none(), "no more than that");
    store.checkpoint().expect("written");
    let (filled, left) = (log.durable_end().div_ceil(SEGMENT_RECORDS), log.status().segments);
    assert!(left <= filled - (RUN / SEGMENT_RECORDS - 2), "{left} segments are left of {filled}");
    drop((subscription, router));
    drop(log);
    store.close();
    drop(store);

    let store = open_with(dir.path(), 2 << 20);
    let log = queue(&store, "traces");
    assert_eq!(log.unsettled("x", 0..u64::MAX), held);
    let subscription = Subscription::new(log, "x");
    let mut again = Vec::new();
    while let Some(lease) = subscription.lease(ONE).await.expect("reads") {
        again.push(lease.records()[0].sequence);
        lease.settle(Settled::by_delivery());
    }
    again.sort_unstable();
    assert_eq!(again, held.iter().map(|range| range.start).collect::<Vec<_>>());
}
