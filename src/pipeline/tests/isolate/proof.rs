//! A refusal is held against the batch only when the destination takes something else.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::pipeline::proof::{PROOF_ROW_MAX, REFUSALS_IN_ROW_MAX};
use crate::queue::book::HELD_RANGES_MAX;

/// A destination that is well until told otherwise.
fn takes_or_refuses_everything() -> (Arc<Scripted>, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = Arc::clone(&well);
    let exporter = scripted(move |_, _| match is_well.load(Ordering::Relaxed) {
        true => Outcome::Delivered,
        false => refused("no"),
    });
    (exporter, well)
}

#[tokio::test]
async fn a_destination_that_refuses_everything_is_recognised_held_and_gets_everything_when_it_recovers() {
    let case = case();
    put_spans(&case.router, &named(2000, &[])).await;
    put_spans(&case.router, &named(2000, &[])).await;
    let (exporter, well) = takes_or_refuses_everything();
    well.store(false, Ordering::Relaxed);
    let destination = case.destination(&exporter, |policy| policy.batch.max_items = 2000);
    let running = Running::start(&case, &destination);
    running.wait("held", || running.subscription.status().held_ranges == 2).await;
    let requests = exporter.seen.lock().len();
    assert!(requests <= REFUSALS_IN_ROW_MAX as usize + 2, "{requests} requests to find out");
    assert_eq!(case.letters.shelf().parked().status().letters, 0, "nothing is parked");
    assert_eq!(settled(&case.log), 0);
    well.store(true, Ordering::Relaxed);
    // Whatever comes next shows that it takes something again, and all that was held follows at once.
    put_spans(&case.router, &named(1, &[])).await;
    running.wait("delivered", || settled(&case.log) == 3).await;
    running.end().await;
    assert_eq!(taken(&exporter).len(), 4001);
}

#[tokio::test]
async fn a_lone_poison_is_held_and_parked_as_soon_as_the_destination_takes_something_else() {
    let case = case();
    put_spans(&case.router, &named(1, &[0])).await;
    let exporter = scripted(hates_poison);
    let destination = case.destination(&exporter, |_| {});
    let running = Running::start(&case, &destination);
    running.wait("held", || running.subscription.status().held_ranges == 1).await;
    assert_eq!(case.letters.shelf().parked().status().letters, 0);
    put_spans(&case.router, &named(1, &[])).await;
    running.wait("parked", || settled(&case.log) == 2).await;
    assert_eq!(case.parked().into_keys().collect::<Vec<_>>(), [["poison 0"]]);
    running.end().await;
}

#[tokio::test]
async fn with_nothing_but_poison_set_aside_and_no_place_left_fresh_records_are_tried_and_prove_it() {
    let case = case();
    let poison = HELD_RANGES_MAX + 3;
    for _ in 0..poison {
        put_spans(&case.router, &named(1, &[0])).await;
    }
    let exporter = scripted(hates_poison);
    let destination = case.destination(&exporter, |policy| policy.batch.max_items = 1);
    let running = Running::start(&case, &destination);
    let held = || running.subscription.status().held_ranges;
    // The first probe is poison too.
    running.wait("as many held as may be", || held() == HELD_RANGES_MAX + 1).await;
    let mut good = 0;
    let rounds = async {
        while settled(&case.log) < case.log.durable_end() {
            // Refused in a row too often they prove nothing: what comes in does, each time.
            put_spans(&case.router, &named(1, &[])).await;
            good += 1;
            running.subscription.retry_held();
            running.wait("tried", || held() > 0 || settled(&case.log) == case.log.durable_end()).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, rounds).await;
    assert!(in_time.is_ok(), "{:?}", running.subscription.status());
    running.end().await;
    assert_eq!(case.parked().len(), 1, "all of one name");
    assert_eq!(case.letters.shelf().parked().status().letters, poison as u64);
    assert_eq!(taken(&exporter).len(), good);
}

#[tokio::test]
async fn requests_that_are_refused_whole_are_parked_once_others_are_taken_between_them() {
    let case = case();
    let all: Vec<usize> = (0..2 * REFUSALS_IN_ROW_MAX as usize).collect();
    let exporter = scripted(hates_poison);
    let destination = case.destination(&exporter, |policy| policy.batch.max_items = all.len() as u64);
    for _ in 0..2 {
        put_spans(&case.router, &named(all.len(), &all)).await;
    }
    let running = Running::start(&case, &destination);
    running.wait("held", || running.subscription.status().held_ranges == 2).await;
    let asked = exporter.seen.lock().len();
    assert!(asked <= REFUSALS_IN_ROW_MAX as usize + 2, "{asked} requests to find out");
    assert_eq!(case.letters.shelf().parked().status().letters, 0, "nothing is parked unproven");
    put_spans(&case.router, &named(1, &[])).await;
    running.wait("parked", || settled(&case.log) == 3).await;
    running.end().await;
    assert_eq!(case.letters.shelf().parked().status().letters, 2 * all.len() as u64);
    let requests = exporter.seen.lock().len() - asked;
    // Each again whole and in halves, and the good one.
    assert!(requests <= 2 * (2 * all.len()) + 1, "{requests} requests");
}

#[tokio::test]
async fn when_a_destination_begins_to_refuse_everything_few_are_parked_and_the_rest_is_delivered_when_it_ends() {
    let case = case();
    let (exporter, well) = takes_or_refuses_everything();
    let destination = case.destination(&exporter, |policy| policy.batch.max_items = 1);
    let running = Running::start(&case, &destination);
    put_spans(&case.router, &named(1, &[])).await;
    running.wait("delivered", || settled(&case.log) == 1).await;
    well.store(false, Ordering::Relaxed);
    let count = 2 * REFUSALS_IN_ROW_MAX as usize;
    for _ in 0..count {
        put_spans(&case.router, &named(1, &[])).await;
    }
    let parked = || case.letters.shelf().parked().status().letters as usize;
    running.wait("held", || running.subscription.status().held_ranges + parked() == count).await;
    assert!(parked() <= PROOF_ROW_MAX as usize, "{} are parked", parked());
    well.store(true, Ordering::Relaxed);
    put_spans(&case.router, &named(1, &[])).await;
    running.wait("all of it", || settled(&case.log) == case.log.durable_end()).await;
    running.end().await;
    assert_eq!(taken(&exporter).len() + parked(), count + 2);
}

#[tokio::test]
async fn when_what_was_refused_fills_the_queue_something_taken_before_is_sent_once_more_to_prove_it() {
    let options = Options { segment_bytes: Some(20 << 10), max_size_bytes: Some(256 << 10), ..Options::default() };
    let case = case_with(options);
    let exporter = scripted(hates_poison);
    // Nothing is parked in this life, and with that the next one finds the queue full of it.
    let destination = case.destination(&exporter, |policy| {
        policy.batch.max_items = 1;
        policy.parking = None;
    });
    let running = Running::start(&case, &destination);
    let settled_but = |log: &Log| log.unsettled("x", 0..log.durable_end()).len();
    let (mut good, mut poison, mut refused_in_a_row) = (0, 0, 0);
    let in_time = tokio::time::timeout(PATIENCE, async {
        loop {
            let is_poison = (good + poison) % 8 == 0;
            let name = format!("{} {}", if is_poison { "poison" } else { "good" }, "x".repeat(1000));
            match try_put(&case.router, request(&[name]), 1).await {
                Ok(_) if is_poison => poison += 1,
                Ok(_) => good += 1,
                // Closed for good: nothing but poison is unsettled, and what could be given back is.
                Err(_) if refused_in_a_row == 3 => break,
                Err(_) => {
                    running.wait("idle", || settled_but(&case.log) == poison).await;
                    refused_in_a_row += 1;
                    case.store.checkpoint().expect("written");
                    continue;
                }
            }
            refused_in_a_row = 0;
        }
    });
    assert!(in_time.await.is_ok(), "{good} good, {poison} poison");
    running.end().await;

    let exporter = scripted(hates_poison);
    let destination = case.destination(&exporter, |policy| policy.batch.max_items = 1);
    let running = Running::start(&case, &destination);
    // As clients do: in vain, until something is proven and makes room. The rest is proven by what they bring.
    let mut brought = 0;
    let in_time = tokio::time::timeout(PATIENCE, async {
        while brought == 0 || settled(&case.log) < case.log.durable_end() {
            let is_due = brought == 0 || running.subscription.status().held_ranges > 0;
            brought += usize::from(is_due && try_put(&case.router, request(&named(1, &[])), 1).await.is_ok());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(in_time.await.is_ok(), "{:?}, {brought} brought", running.subscription.status());
    running.end().await;
    assert_eq!(case.letters.shelf().parked().status().letters as usize, poison);
    let (again, most) = (taken(&exporter).len() - brought, poison.div_ceil(PROOF_ROW_MAX as usize));
    assert!((1..=most).contains(&again), "{again} were sent twice for {poison} poison");
}

#[tokio::test]
async fn a_destination_that_fails_now_and_then_while_poison_is_searched_for_stops_nobody_for_want_of_memory() {
    let case = case();
    for _ in 0..60 {
        put_spans(&case.router, &named(20, &[3])).await;
    }
    let exporter = scripted(|batch, n| if n % 3 == 1 { failure(Class::Retryable) } else { hates_poison(batch, n) });
    // A lease that is prepared takes all of it for a moment.
    let destination = case.destination(&exporter, |policy| {
        policy.batch.max_items = 20;
        policy.consumers = 6;
        policy.memory_bytes = 4 << 10;
    });
    case.deliver_all(&destination).await;
    assert_eq!(case.letters.shelf().parked().status().letters, 60);
    assert_eq!(taken(&exporter).len(), 60 * 19);
}

#[tokio::test]
async fn what_a_destination_refused_before_it_was_well_is_asked_for_again_and_not_parked() {
    for refusals in [1, 5, 12, 30] {
        let case = case();
        put_spans(&case.router, &named(16, &[9])).await;
        let exporter = scripted(move |batch, n| if n < refusals { refused("not yet") } else { hates_poison(batch, n) });
        let destination = case.destination(&exporter, |policy| policy.batch.max_items = 16);
        let running = Running::start(&case, &destination);
        // The refusals may have been of everything, which something else has to show then.
        let in_time = tokio::time::timeout(PATIENCE, async {
            for n in 0.. {
                if settled(&case.log) >= 1 && running.subscription.status().held_ranges == 0 {
                    break;
                }
                put_spans(&case.router, &[format!("other {n}")]).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(in_time.await.is_ok(), "{refusals}: {:?}", running.subscription.status());
        running.end().await;
        let good: Vec<_> = taken(&exporter).into_iter().filter(|name| name.starts_with("good")).collect();
        assert_eq!(good.len(), 15, "{refusals}: each once, {good:?}");
        assert_eq!(case.parked().into_keys().collect::<Vec<_>>(), [["poison 9"]], "{refusals}");
    }
}
