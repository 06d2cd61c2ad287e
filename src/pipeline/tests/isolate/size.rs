//! What is too large, for one destination or for all that may be sent to it.

use super::*;
use crate::pipeline::proof::REFUSALS_IN_ROW_MAX;

#[tokio::test]
async fn what_is_too_large_goes_in_parts_none_is_sent_twice_and_a_giant_is_parked_alone() {
    let case = case();
    let limit = 100 << 10;
    let mut names: Vec<String> = (0..300).map(|n| format!("{n} {}", "x".repeat(2000))).collect();
    names[150] = format!("giant {}", "x".repeat(limit));
    put_spans(&case.router, &names).await;
    let exporter = scripted(move |batch, _| if batch.payload.len() > limit { too_large() } else { Outcome::Delivered });
    case.deliver_all(&case.destination(&exporter, |_| {})).await;
    assert_eq!(taken(&exporter).len(), 299);
    let parked = case.parked();
    assert_eq!(parked.len(), 1);
    let (parked_names, description) = parked.iter().next().expect("one");
    assert!(parked_names[0].starts_with("giant") && parked_names.len() == 1);
    assert_eq!(description.reason, Reason::TooLarge);
    let seen = exporter.seen.lock();
    let oversize: Vec<Bytes> =
        seen.iter().map(|batch| batch.payload.clone().into_bytes()).filter(|payload| payload.len() > limit).collect();
    let distinct: BTreeSet<&Bytes> = oversize.iter().collect();
    assert_eq!(distinct.len(), oversize.len(), "an oversize part was uploaded twice");
    assert!(oversize.len() <= 12, "{} oversize uploads", oversize.len());
}

#[tokio::test]
async fn one_record_larger_than_the_configured_limit_goes_in_parts_from_the_beginning() {
    let case = case();
    let names: Vec<String> = (0..200).map(|n| format!("{n} {}", "x".repeat(1000))).collect();
    put_spans(&case.router, &names).await;
    let exporter = Arc::new(Scripted {
        script: Box::new(|_, _| Outcome::Delivered),
        seen: Mutex::default(),
        taken: Mutex::default(),
        max_request_bytes: 32 << 10,
    });
    case.deliver_all(&case.destination(&exporter, |_| {})).await;
    assert_eq!(taken(&exporter).len(), 200);
    let largest = exporter.seen.lock().iter().map(|batch| batch.payload.len()).max().expect("some");
    assert!(largest <= (32 << 10) + 64, "{largest}");
}

/// Less than the smallest limit that refusals teach: smaller leases alone do not help.
#[tokio::test]
async fn small_records_that_are_too_large_together_are_delivered_and_none_is_sent_twice() {
    let case = case();
    let limit = 20 << 10;
    for record in 0..50 {
        put_spans(&case.router, &[format!("{record} {}", "x".repeat(1000))]).await;
    }
    let exporter = scripted(move |batch, _| if batch.payload.len() > limit { too_large() } else { Outcome::Delivered });
    case.deliver_all(&case.destination(&exporter, |_| {})).await;
    assert_eq!(taken(&exporter).len(), 50);
    let requests = exporter.seen.lock().len();
    assert!(requests <= 16, "{requests} requests");
}

#[tokio::test]
async fn a_destination_to_which_everything_is_too_large_is_recognised_and_nothing_is_parked() {
    let case = case();
    for _ in 0..50 {
        put_spans(&case.router, &named(10, &[])).await;
    }
    let exporter = scripted(|_, _| too_large());
    let destination = case.destination(&exporter, |_| {});
    let subscription = Subscription::new(Arc::clone(&case.log), "x");
    let stop = Drain::default();
    let running = tokio::spawn(run(Arc::clone(&subscription), Arc::clone(&destination), stop.clone()));
    let held = async {
        while subscription.status().held_ranges == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("held");
    stop.abort.cancel();
    running.await.expect("no panic");
    let requests = exporter.seen.lock().len();
    assert!(requests <= REFUSALS_IN_ROW_MAX as usize + 8, "{requests} requests to find out");
    assert_eq!(case.letters.shelf().parked().status().letters, 0);
}
