//! What may not be tried any longer.

use super::*;

#[tokio::test]
async fn what_may_not_be_tried_any_longer_is_parked_whole() {
    for (enabled, reason) in [(false, Reason::RetryDisabled), (true, Reason::Expired)] {
        let case = case();
        put_spans(&case.router, &named(3, &[])).await;
        let exporter = scripted(|_, _| failure(Class::Retryable));
        let destination = case.destination(&exporter, |policy| {
            policy.retry.enabled = enabled;
            policy.retry.max_elapsed_time = Duration::from_millis(20);
        });
        case.deliver_all(&destination).await;
        let parked = case.parked();
        assert_eq!(parked.keys().collect::<Vec<_>>(), [&named(3, &[])]);
        assert_eq!(parked.values().next().expect("one").reason, reason);
    }
}

/// Refused once for its content, then the destination falls ill: what is left of the batch had its only try.
#[tokio::test]
async fn a_part_that_may_not_be_tried_any_longer_is_parked_as_it_is_record_by_record() {
    for (enabled, reason) in [(false, Reason::RetryDisabled), (true, Reason::Expired)] {
        let case = case();
        let records: Vec<Vec<String>> =
            (0..8).map(|record| (0..100).map(|item| format!("good {record}-{item}")).collect()).collect();
        for names in &records {
            put_spans(&case.router, names).await;
        }
        let exporter = scripted(|_, n| if n == 0 { refused("no") } else { failure(Class::Retryable) });
        let destination = case.destination(&exporter, |policy| {
            policy.retry.enabled = enabled;
            policy.retry.max_elapsed_time = Duration::from_millis(20);
        });
        let subscription = case.deliver_all(&destination).await;
        assert_eq!(subscription.status().held_ranges, 0);
        let parked = case.parked();
        assert!(parked.values().all(|description| description.reason == reason));
        assert_eq!(parked.into_keys().collect::<BTreeSet<_>>(), records.into_iter().collect());
        let ledger = case.log.status().cursors[0].ledger;
        assert_eq!(ledger.fates.get(Fate::DeadLettered), 800);
        // One for each half: both are tried, or known to be late already.
        let tries_after_the_first_part_was_late =
            exporter.seen.lock().iter().filter(|batch| batch.items == 400).count();
        assert!(enabled || tries_after_the_first_part_was_late == 2, "{tries_after_the_first_part_was_late}");
    }
}
