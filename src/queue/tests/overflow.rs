//! `on_full: drop` past the cap.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::queue::overflow::{Giver, relieve};
use crate::storage::counting::CountingDisk;

const ALL: LeaseLimits = LeaseLimits { bytes_max: 1 << 20, records_max: 1000, items_max: u64::MAX };

/// A store whose only queue has the cursors named; those in `giving_way` may give up records.
fn bench(dir: &Path, cursors: &[&str], giving_way: &[&str]) -> (Store, Arc<Log>, Router) {
    bench_on(open(dir), cursors, giving_way)
}

fn bench_on(store: Store, cursors: &[&str], giving_way: &[&str]) -> (Store, Arc<Log>, Router) {
    let cursors: Vec<_> = cursors.iter().map(|name| ((*name).to_owned(), StartAt::Beginning)).collect();
    let log = store.queue("one", &cursors).expect("queue");
    giving_way.iter().for_each(|name| log.let_give_way(name));
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    (store, log, router)
}

fn giver(log: &Arc<Log>, name: &str) -> (Giver, Arc<AtomicU64>) {
    let dropped = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&dropped);
    let on_gone = Box::new(move |weight: &crate::storage::Weight| {
        counted.fetch_add(weight.items, Ordering::SeqCst);
    });
    (Giver { subscription: Subscription::new(Arc::clone(log), name), park: None, on_gone }, dropped)
}

/// Offers until `count` are accepted, relieving in between as the thread would; how many were refused.
async fn fill(store: &Store, router: &Router, givers: &[Giver], count: u64) -> u64 {
    let budget = Budget::new(1 << 20);
    let (mut accepted, mut refused) = (0, 0);
    while accepted < count {
        match router.offer(offer(&budget, accepted as u8, Vec::new())).await {
            Ok(_receipt) => accepted += 1,
            Err(_) => refused += 1,
        }
        assert!(refused < 1000, "intake does not go on after {accepted}");
        relieve(store, givers);
        store.checkpoint().expect("written");
    }
    refused
}

async fn take_all(subscription: &Arc<Subscription>) -> u64 {
    let mut items = 0;
    while let Some(mut lease) = subscription.lease(ALL).await.expect("reads") {
        if lease.claim().await.expect("reads") {
            items += lease.records().len() as u64;
            lease.settle(Settled::by_delivery());
        } else {
            lease.settle_empty();
        }
    }
    items
}

#[tokio::test]
async fn past_the_cap_a_dead_exporter_that_drops_keeps_the_newest_and_every_item_is_accounted_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["dead"], &["dead"]);
    let (giver, dropped) = giver(&log, "dead");
    let givers = [giver];
    // Five times what the cap of 256 KiB holds.
    let count = 5 * (256 << 10) / 776;
    let refused = fill(&store, &router, &givers, count).await;
    assert_eq!(refused, 0, "room was made before it ran out");
    assert!(store.space().allocated_bytes() <= store.space().max_bytes());
    let dropped = dropped.load(Ordering::SeqCst);
    assert!(dropped > count / 2, "{dropped} of {count} dropped");
    assert_eq!(log.status().cursors[0].backlog.records, count - dropped, "accepted = queued + dropped");
    let low = log.cursor("dead").expect("cursor").low();
    assert_eq!(low, dropped, "the oldest went");
    assert_eq!(take_all(&givers[0].subscription).await, count - dropped, "accepted = delivered + dropped");
}

#[tokio::test]
async fn past_the_cap_a_blocking_exporter_stops_intake_and_nobody_drops_for_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["blocks", "drops"], &["drops"]);
    let (giver, dropped) = giver(&log, "drops");
    let givers = [giver];
    let budget = Budget::new(1 << 20);
    let refused = loop {
        match router.offer(offer(&budget, 0, Vec::new())).await {
            Ok(_receipt) => assert!(!relieve(&store, &givers)),
            Err(refused) => break refused,
        }
    };
    assert!(refused.message.contains("held by exporter \"blocks\""), "{refused}");
    assert_eq!(refused.retry_after, crate::queue::router::RETRY_AFTER_FULL, "that may take long");
    assert_eq!(dropped.load(Ordering::SeqCst), 0, "giving up what another holds as well frees nothing");
    // The blocking one catches up: now the other gives way.
    let end = log.durable_end();
    log.settle("blocks", 0..end);
    store.checkpoint().expect("written");
    // The first one met the cap as it was.
    assert!(fill(&store, &router, &givers, 50).await <= 1);
    assert!(dropped.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn past_its_queue_size_an_exporter_that_drops_keeps_about_that_many() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["small"], &["small"]);
    log.limit_backlog("small", Sizer::Requests, 10);
    let (giver, dropped) = giver(&log, "small");
    let givers = [giver];
    assert_eq!(fill(&store, &router, &givers, 64).await, 0);
    assert_eq!(log.status().cursors[0].backlog.records, 10);
    assert_eq!(dropped.load(Ordering::SeqCst), 54);
    assert_eq!(take_all(&givers[0].subscription).await, 10);
}

#[tokio::test]
async fn what_is_being_sent_is_not_given_up_and_what_only_waits_is_not_sent() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["x"], &["x"]);
    let (giver, _) = giver(&log, "x");
    let subscription = &giver.subscription;
    fill(&store, &router, &[], 12).await;
    let mut sending = subscription.lease(LIMITS).await.expect("reads").expect("records");
    let mut waiting = subscription.lease(LIMITS).await.expect("reads").expect("records");
    let held = subscription.lease(LIMITS).await.expect("reads").expect("records");
    held.hold(Why::of("refused".to_owned()));
    assert!(sending.claim().await.expect("reads"));
    waiting.shed();
    let given = subscription.give_up(0..5, None).expect("reads");
    assert_eq!((given.weight.records, given.is_all), (2, false), "0..3 is on its way");
    assert!(waiting.claim().await.expect("reads"), "one record is left in it");
    assert_eq!(waiting.records().iter().map(|record| record.sequence).collect::<Vec<_>>(), [5]);
    sending.settle(Settled::by_delivery());
    waiting.unclaim();
    let given = subscription.give_up(0..9, None).expect("reads");
    assert_eq!((given.weight.records, given.is_all), (4, true), "5, and what was set aside");
    assert!(!waiting.claim().await.expect("reads"));
    waiting.settle_empty();
    assert_eq!(subscription.status().held_ranges, 0);
    assert_eq!(log.status().cursors[0].backlog.records, 3);
    assert_eq!(take_all(subscription).await, 3);
}

#[tokio::test]
async fn what_another_exporter_is_sending_is_not_given_up_for_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["dead", "slow"], &["dead", "slow"]);
    let (dead, dropped) = giver(&log, "dead");
    let (slow, _) = giver(&log, "slow");
    let oldest = slow.subscription.clone();
    let givers = [dead, slow];
    fill(&store, &router, &[], 1).await;
    let mut sending = oldest.lease(LIMITS).await.expect("reads").expect("records");
    assert!(sending.claim().await.expect("reads"));
    // A segment holds fifteen.
    let first_segment = 0..15;
    fill(&store, &router, &givers, 250).await;
    let kept = log.unsettled("dead", first_segment.clone());
    assert_eq!(kept, [first_segment], "the segment could not go: the slow one is sending from it");
    assert!(dropped.load(Ordering::SeqCst) > 0);
    sending.settle(Settled::by_delivery());
    fill(&store, &router, &givers, 50).await;
    assert!(log.cursor("dead").expect("cursor").low() >= 15, "then it went first");
}

#[tokio::test]
async fn for_a_request_larger_than_the_room_kept_free_room_is_made_and_for_one_that_never_fits_nothing_goes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["dead"], &["dead"]);
    let (giver, dropped) = giver(&log, "dead");
    let givers = [giver];
    fill(&store, &router, &givers, 250).await;
    let budget = Budget::new(1 << 20);
    let large =
        |len: usize| Offer { payload: Bytes::from(vec![1; len]), raw_len: len as u64, ..offer(&budget, 1, Vec::new()) };
    let before = dropped.load(Ordering::SeqCst);
    let refused = router.offer(large(300 << 10)).await.expect_err("larger than the cap");
    assert_eq!(refused.reason, RefusedReason::Full);
    relieve(&store, &givers);
    // What a request of ordinary size may need at the most.
    assert!(dropped.load(Ordering::SeqCst) - before <= 3 * 21, "{before} and {dropped:?}");
    let before = dropped.load(Ordering::SeqCst);
    let mut refusals = 0;
    while router.offer(large(100 << 10)).await.is_err() {
        refusals += 1;
        assert!(refusals < 10, "room is never made for it");
        relieve(&store, &givers);
        store.checkpoint().expect("written");
    }
    // Six segments of fifteen hold as much; one more may go while room comes back.
    let gone = dropped.load(Ordering::SeqCst) - before;
    assert!(gone <= 7 * 15, "{gone} went, more than needed");
}

#[tokio::test]
async fn a_queue_that_nobody_reads_any_more_is_not_counted_as_room_to_come() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["dead"], &["dead"]);
    let other = store.queue("left", &[("gone".to_owned(), StartAt::Beginning)]).expect("queue");
    let mut to_other = Router::new();
    to_other.add(Signal::Traces, Arc::clone(&other));
    fill(&store, &to_other, &[], 64).await;
    store.forget_cursor("left", "gone").expect("written").expect("there");
    let (giver, dropped) = giver(&log, "dead");
    let givers = [giver];
    fill(&store, &router, &givers, 250).await;
    assert!(dropped.load(Ordering::SeqCst) > 0);
    assert_eq!(other.oldest_sequence(), 0, "its records stay");
}

#[tokio::test]
async fn past_the_cap_an_exporter_that_parks_hands_its_oldest_over_and_without_room_there_it_blocks() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["dead"], &["dead"]);
    let parked: Arc<parking_lot::Mutex<Vec<u64>>> = Arc::default();
    let has_room = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (mut giver, counted) = giver(&log, "dead");
    let (kept, room) = (Arc::clone(&parked), Arc::clone(&has_room));
    giver.park = Some(Box::new(move |records| {
        if !room.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        kept.lock().extend(records.iter().map(|record| record.sequence));
        Ok(Box::new(|| ()))
    }));
    let givers = [giver];
    fill(&store, &router, &givers, 500).await;
    let handed_over = parked.lock().clone();
    assert!(!handed_over.is_empty());
    assert!(handed_over.is_sorted_by(|a, b| a < b), "the oldest first, each once");
    assert_eq!(counted.load(Ordering::SeqCst), handed_over.len() as u64);
    let waiting = log.status().cursors[0].backlog.records;
    assert_eq!(waiting + handed_over.len() as u64, 500, "every one waits or is parked");

    has_room.store(false, Ordering::SeqCst);
    let budget = Budget::new(1 << 20);
    let mut refused = None;
    for n in 0..300 {
        refused = router.offer(offer(&budget, n as u8, Vec::new())).await.err();
        relieve(&store, &givers);
        store.checkpoint().expect("written");
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.expect("blocked").reason, RefusedReason::Full);
    assert_eq!(parked.lock().len(), handed_over.len(), "nothing went");
}

#[tokio::test]
async fn where_the_disk_is_full_nothing_is_parked_since_that_would_free_nothing_and_what_is_dropped_goes() {
    for is_parked in [true, false] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let disk = CountingDisk::default();
        let store = open_on(Arc::new(disk.clone()), dir.path(), 1 << 20);
        let (store, log, router) = bench_on(store, &["dead"], &["dead"]);
        let (mut giver, gone) = giver(&log, "dead");
        if is_parked {
            giver.park = Some(Box::new(|_| Ok(Box::new(|| ()))));
        }
        let givers = [giver];
        fill(&store, &router, &givers, 200).await;
        assert_eq!(gone.load(Ordering::SeqCst), 0, "far from the cap");
        // Others have taken the rest.
        disk.available_bytes.store(1, Ordering::SeqCst);
        let budget = Budget::new(1 << 20);
        let refused = async || {
            relieve(&store, &givers);
            store.checkpoint().expect("written");
            router.offer(offer(&budget, 0, Vec::new())).await.err()
        };
        // Until an earlier reading of what is free is too old, and the segment in use is full.
        let in_time = tokio::time::timeout(Duration::from_secs(20), async {
            while refused().await.is_none_or(|refused| refused.reason != RefusedReason::Full) {}
        });
        in_time.await.expect("refused");
        refused().await;
        assert_eq!(gone.load(Ordering::SeqCst) == 0, is_parked, "{gone:?}");
    }
}

#[tokio::test]
async fn what_was_being_sent_when_the_limit_was_passed_gives_way_later_also_if_nothing_new_comes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = bench(dir.path(), &["x"], &["x"]);
    let (giver, dropped) = giver(&log, "x");
    let subscription = Arc::clone(&giver.subscription);
    let budget = Budget::new(1 << 20);
    for n in 0..8 {
        let _receipt = router.offer(offer(&budget, n, Vec::new())).await.expect("accepted");
    }
    let mut lease = subscription.lease(ALL).await.expect("reads").expect("records");
    assert_eq!(lease.records().len(), 8);
    assert!(lease.claim().await.expect("reads"));
    log.limit_backlog("x", Sizer::Requests, 5);
    let store = Arc::new(store);
    let overflow = crate::queue::Overflow::start(&store, vec![giver]).expect("starts");
    let _receipt = router.offer(offer(&budget, 8, Vec::new())).await.expect("accepted");
    let becomes = async |count| {
        let counted = async {
            while dropped.load(Ordering::SeqCst) != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), counted).await.is_ok();
        assert!(in_time, "{dropped:?} are dropped, not {count}");
    };
    // The only one that is idle.
    becomes(1).await;
    lease.unclaim();
    becomes(4).await;
    assert_eq!(log.status().cursors[0].backlog.records, 5);
    drop(lease);
    overflow.close();
}
