//! A sector of the disk that cannot be read while the process runs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::*;
use crate::storage::counting::CountingDisk;

#[tokio::test]
async fn what_cannot_be_read_is_set_aside_what_lies_before_and_behind_it_is_leased_and_it_comes_when_the_disk_recovers()
{
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = CountingDisk::default();
    let options = Options {
        segment_bytes: Some(20 << 10),
        max_size_bytes: Some(1 << 20),
        tail_bytes_max: 0,
        checkpoint_interval: Duration::from_millis(5),
        ..Options::default()
    };
    let start = || Store::open(Arc::new(disk.clone()), dir.path(), &options, Arc::new(Unobserved)).expect("opens").0;
    let store = start();
    let log = queue(&store, "traces");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    let budget = Budget::new(1 << 20);
    for n in 0..60 {
        let _receipt = router.offer(offer(&budget, n, Metadata::new())).await.expect("accepted");
    }
    drop((log, router, store));
    let store = start();
    let log = queue(&store, "traces");
    // In the first segment, with whole records before it.
    disk.bad_byte.store(14 << 10, Ordering::SeqCst);
    let subscription = Subscription::new(Arc::clone(&log), "x");
    let mut leased = BTreeSet::new();
    let mut take_all = async || {
        while let Ok(true) = tokio::time::timeout(Duration::from_millis(50), subscription.ready()).await.map(|()| true)
        {
            if let Some(mut lease) = subscription.lease(LIMITS).await.expect("no error ends it") {
                // Where nothing follows it waits.
                let extended = lease.extend(LeaseLimits { records_max: 9, ..LIMITS });
                if let Ok(extended) = tokio::time::timeout(Duration::from_millis(20), extended).await {
                    extended.expect("nor this");
                }
                leased.extend(lease.records().iter().map(|record| record.sequence));
                lease.settle(Settled::by_delivery());
            }
        }
        leased.clone()
    };
    let before = take_all().await;
    assert!(before.contains(&0) && before.contains(&59), "{before:?}");
    let missing: Vec<u64> = (0..60).filter(|sequence| !before.contains(sequence)).collect();
    let first = missing.first().copied().expect("some are missing");
    assert!(first > 2 && missing.len() < 20, "those of one segment from the bad place on: {missing:?}");
    let status = subscription.status();
    assert_eq!(status.held_ranges, 1);
    assert!(status.held_reason.is_some_and(|reason| reason.contains("cannot be read")));
    assert_eq!(log.cursor("x").expect("cursor").low(), first, "what is set aside is not settled");
    disk.bad_byte.store(0, Ordering::SeqCst);
    assert_eq!(subscription.retry_held(), 1);
    assert_eq!(take_all().await.len(), 60);
    assert_eq!(log.cursor("x").expect("cursor").low(), 60);
}
