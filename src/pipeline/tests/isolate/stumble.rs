//! What makes a destination fail, as if it were ill itself, while it takes others.

use super::*;

/// As a backend that answers 500 where it should answer 400.
fn stumbles_over_poison() -> Arc<Scripted> {
    scripted(|batch, _| match has_poison(batch) {
        true => failure(Class::Retryable),
        false => Outcome::Delivered,
    })
}

fn has_poison(batch: &Batch) -> bool {
    names_of(batch).iter().any(|name| name.starts_with("poison"))
}

/// What is taken twice would be here twice.
fn good_taken(exporter: &Scripted) -> Vec<String> {
    names_in(&exporter.taken.lock()).into_iter().filter(|name| name.starts_with("good")).collect()
}

/// `records` of six spans each, of which one is poison.
async fn put_poisonous(case: &Case, records: usize) {
    for record in 0..records {
        let names: Vec<String> =
            (0..6).map(|at| format!("{} {record} {at}", if at == 2 { "poison" } else { "good" })).collect();
        put_spans(&case.router, &names).await;
    }
}

#[tokio::test]
async fn what_makes_a_destination_stumble_while_others_pass_is_set_aside_alone() {
    let case = case();
    put_spans(&case.router, &named(16, &[3])).await;
    let exporter = scripted(|batch, _| match names_of(batch).iter().any(|name| name.starts_with("poison")) {
        true => failure(Class::Retryable),
        false => Outcome::Delivered,
    });
    let destination = case.destination(&exporter, |policy| {
        policy.batch.max_items = 16;
        policy.consumers = 2;
    });
    let subscription = Subscription::new(Arc::clone(&case.log), "x");
    let stop = Drain::default();
    let running = tokio::spawn(run(Arc::clone(&subscription), Arc::clone(&destination), stop.clone()));
    let others_pass = async {
        while subscription.status().held_ranges == 0 {
            put_spans(&case.router, &["other".to_owned()]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, others_pass).await;
    let mut sizes = BTreeMap::new();
    for batch in exporter.seen.lock().iter() {
        let poison = names_of(batch).iter().any(|name| name.starts_with("poison"));
        *sizes.entry((batch.items, poison)).or_insert(0) += 1;
    }
    assert!(in_time.is_ok(), "not set aside in time: {:?}, {sizes:?}", subscription.status());
    stop.abort.cancel();
    running.await.expect("no panic");
    let good = taken(&exporter).into_iter().filter(|name| name.starts_with("good")).collect::<Vec<_>>();
    assert_eq!(good.len(), 15, "{good:?}");
    assert_eq!(
        case.letters.shelf().parked().status().letters,
        0,
        "it may be the destination's fault: kept, not parked"
    );
}

#[tokio::test]
async fn a_destination_that_fails_now_and_then_sets_nothing_aside() {
    let case = case();
    for record in 0..3000 {
        put_spans(&case.router, &[format!("good {record}")]).await;
    }
    let exporter = scripted(|_, n| if n % 7 == 6 { failure(Class::Retryable) } else { Outcome::Delivered });
    let destination = case.destination(&exporter, |policy| {
        policy.batch.max_items = 2;
        policy.consumers = 4;
    });
    let subscription = case.deliver_all(&destination).await;
    assert_eq!(taken(&exporter).len(), 3000);
    assert_eq!(subscription.status().held_ranges, 0);
}

#[tokio::test]
async fn more_batches_than_places_that_make_it_stumble_keep_no_others_from_it_and_lose_their_poison_alone() {
    for consumers in [1, 3] {
        let case = case();
        put_poisonous(&case, 8).await;
        for record in 0..20 {
            put_spans(&case.router, &[format!("good alone {record}")]).await;
        }
        let exporter = stumbles_over_poison();
        let destination = case.destination(&exporter, |policy| {
            policy.batch.max_items = 6;
            policy.consumers = consumers;
        });
        let running = Running::start(&case, &destination);
        // Some others go on coming, or nothing would show whose fault it is.
        let in_time = tokio::time::timeout(PATIENCE, async {
            for n in 0.. {
                if running.subscription.status().held_ranges == 8 && good_taken(&exporter).len() >= 60 {
                    break;
                }
                put_spans(&case.router, &[format!("other {n}")]).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let in_time = in_time.await.is_ok();
        let mut good = good_taken(&exporter);
        assert!(in_time, "{consumers}: {} good, {:?}", good.len(), running.subscription.status());
        running.end().await;
        good.sort_unstable();
        good.dedup();
        assert_eq!((good.len(), good_taken(&exporter).len()), (60, 60), "{consumers}: all, and none twice");
    }
}

#[tokio::test]
async fn what_fails_while_others_pass_closes_the_way_for_nobody_after_its_first_failure() {
    let case = case();
    put_spans(&case.router, &["poison".to_owned()]).await;
    let exporter = stumbles_over_poison();
    let destination = case.destination(&exporter, |policy| {
        policy.consumers = 2;
        // Others pass between two of its tries.
        policy.retry.initial_interval = Duration::from_millis(100);
        policy.retry.max_interval = Duration::from_millis(100);
        policy.retry.randomization_factor = 0.0;
    });
    let running = Running::start(&case, &destination);
    let failures = || exporter.seen.lock().iter().filter(|batch| has_poison(batch)).count();
    running.wait("the first failure", || destination.clock.is_waiting()).await;
    put_spans(&case.router, &["first".to_owned()]).await;
    running.wait("others pass", || !destination.clock.is_waiting() && !exporter.taken.lock().is_empty()).await;
    // Set aside, and tried again: it keeps nobody waiting either way.
    for round in 0..2 {
        let before = failures();
        let in_time = tokio::time::timeout(PATIENCE, async {
            for n in 0.. {
                if running.subscription.status().held_ranges == 1 && failures() > before {
                    break;
                }
                assert!(!destination.clock.is_waiting(), "round {round}: others wait after failure {}", failures());
                put_spans(&case.router, &[format!("other {round} {n}")]).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(in_time.await.is_ok(), "round {round}: {:?}", running.subscription.status());
        assert_eq!(running.subscription.retry_held(), 1);
    }
    running.end().await;
}

#[tokio::test]
async fn of_a_record_that_is_held_what_was_taken_is_not_sent_again_however_often_it_is_tried() {
    for is_full in [false, true] {
        let mut case = case();
        let dir = tempfile::tempdir().expect("temporary directory");
        if is_full {
            case.letters = letters_in(dir.path(), 0, OnFull::Block);
        }
        put_poisonous(&case, 2).await;
        // Held for want of room among the dead letters, or because it is not known whose fault it is.
        let exporter = if is_full { scripted(hates_poison) } else { stumbles_over_poison() };
        let destination = case.destination(&exporter, |policy| {
            policy.batch.max_items = 12;
            policy.consumers = 2;
        });
        let running = Running::start(&case, &destination);
        let poison_seen = || {
            let alone = |batch: &&Batch| has_poison(batch) && batch.items == 1;
            exporter.seen.lock().iter().filter(alone).count()
        };
        for round in 0..4 {
            let before = poison_seen();
            let in_time = tokio::time::timeout(PATIENCE, async {
                for n in 0.. {
                    if running.subscription.status().held_ranges == 2 && poison_seen() >= before + 2 {
                        break;
                    }
                    put_spans(&case.router, &[format!("other {round} {n}")]).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            assert!(in_time.await.is_ok(), "{is_full}: round {round}, {:?}", running.subscription.status());
            assert_eq!(good_taken(&exporter).len(), 10, "{is_full}: each once, after round {round}");
            assert_eq!(running.subscription.retry_held(), 2);
        }
        running.end().await;
        // Once there is room, the account of the whole record is right.
        if is_full {
            case.letters = letters_in(case._dir.path(), 64 << 20, OnFull::Block);
            let destination = case.destination(&exporter, |policy| policy.batch.max_items = 12);
            case.deliver_all(&destination).await;
            let ledger = case.log.status().cursors[0].ledger;
            assert_eq!(ledger.fates.get(Fate::DeadLettered), 2);
            assert_eq!(ledger.fates.get(Fate::Delivered), ledger.accepted - 2);
        }
    }
}
