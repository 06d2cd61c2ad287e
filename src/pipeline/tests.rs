//! Delivery from a real log to a scripted destination.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::exporters::{Batch, Class, Failure, Outcome};
use crate::otlp::Encoding;
use crate::queue::{Accepted, Budget, Intake, Offer, Refused, Router};
use crate::storage::log::Observer;
use crate::storage::{Log, NewRecord, Options, RealDisk, StartAt, Store};

mod isolate;

const PATIENCE: Duration = Duration::from_secs(20);

struct Unobserved;
impl Observer for Unobserved {}
impl Meter for Unobserved {}

type Script = Box<dyn Fn(&Batch, usize) -> Outcome + Send + Sync>;

/// Records what it took; answers as the script says (arguments: the batch, and how many came before).
struct Scripted {
    script: Script,
    seen: Mutex<Vec<Batch>>,
    taken: Mutex<Vec<u8>>,
    max_request_bytes: u64,
}

impl Exporter for Scripted {
    fn export(&self, batch: Batch) -> BoxFuture<'_, Outcome> {
        async move {
            let mut seen = self.seen.lock();
            let outcome = (self.script)(&batch, seen.len());
            seen.push(batch.clone());
            if matches!(outcome, Outcome::Delivered | Outcome::Partial { .. }) {
                self.taken.lock().extend_from_slice(&batch.payload.clone().into_bytes());
            }
            outcome
        }
        .boxed()
    }
    fn max_request_bytes(&self) -> u64 {
        self.max_request_bytes
    }
}

fn scripted(script: impl Fn(&Batch, usize) -> Outcome + Send + Sync + 'static) -> Arc<Scripted> {
    Arc::new(Scripted {
        script: Box::new(script),
        seen: Mutex::default(),
        taken: Mutex::default(),
        max_request_bytes: 16 << 20,
    })
}

fn failure(class: Class) -> Outcome {
    Outcome::Failed(Failure {
        class,
        status: Some(crate::exporters::RemoteStatus::Http(503)),
        retry_after: None,
        too_large: false,
        message: "scripted".to_owned(),
    })
}

fn open(dir: &Path) -> (Store, Arc<Log>, Router) {
    open_with(dir, Options::default())
}

fn open_with(dir: &Path, options: Options) -> (Store, Arc<Log>, Router) {
    let options = Options { checkpoint_interval: Duration::from_millis(5), ..options };
    let (store, _) = Store::open(Arc::new(RealDisk), dir, &options, Arc::new(Unobserved)).expect("opens");
    let log = store.queue("traces", &[("x".to_owned(), StartAt::Beginning)]).expect("queue");
    let mut router = Router::new();
    router.add(Signal::Traces, Arc::clone(&log));
    (store, log, router)
}

async fn put(router: &Router, payload: Vec<u8>) -> Accepted {
    let budget = Budget::new(1 << 20);
    router
        .offer(Offer {
            signal: Signal::Traces,
            encoding: Encoding::Identity,
            items: 1,
            raw_len: payload.len() as u64,
            metadata: Vec::new(),
            payload: Bytes::from(payload),
            permit: budget.empty_permit(),
            marks: crate::queue::Marks::default(),
            peer: None,
        })
        .await
        .expect("accepted")
}

fn destination(exporter: &Arc<Scripted>, consumers: usize) -> Arc<Destination> {
    let retry = RetryPolicy {
        initial_interval: Duration::from_millis(5),
        max_interval: Duration::from_millis(20),
        ..RetryPolicy::default()
    };
    let batch = BatchPolicy { min_items: 1, max_items: 4, flush_timeout: Duration::ZERO };
    let exporter: Arc<dyn Exporter> = Arc::clone(exporter) as _;
    let policy = Policy { retry, batch, consumers, memory_bytes: 4 << 20, parking: None };
    Destination::new("x", exporter, policy, Arc::new(Unobserved))
}

/// Delivers until everything is settled or `until` holds.
async fn deliver(log: &Arc<Log>, destination: &Arc<Destination>, until: impl Fn() -> bool) -> Arc<Subscription> {
    let subscription = Subscription::new(Arc::clone(log), "x");
    let stop = Drain::default();
    let running = tokio::spawn(run(Arc::clone(&subscription), Arc::clone(destination), stop.clone()));
    let done = async {
        while !until() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, done).await.is_err() {
        panic!("not delivered in time: settled {}, {:?}", settled(log), subscription.status());
    }
    stop.abort.cancel();
    running.await.expect("no panic");
    subscription
}

fn settled(log: &Log) -> u64 {
    log.cursor("x").expect("cursor").low()
}

#[tokio::test]
async fn everything_accepted_is_delivered_once_and_settled_when_the_destination_is_well() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, log, router) = open(dir.path());
    for n in 0..50u8 {
        let _receipt = put(&router, vec![n]).await;
    }
    let exporter = scripted(|_, _| Outcome::Delivered);
    deliver(&log, &destination(&exporter, 4), || settled(&log) == 50).await;
    let mut taken = exporter.taken.lock().clone();
    taken.sort_unstable();
    assert_eq!(taken, (0..50).collect::<Vec<u8>>());
    assert!(exporter.seen.lock().iter().all(|batch| batch.items <= 4), "max_items holds");
}

#[tokio::test]
async fn a_destination_that_fails_gets_everything_when_it_recovers_and_nothing_is_settled_before() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, log, router) = open(dir.path());
    for n in 0..20u8 {
        let _receipt = put(&router, vec![n]).await;
    }
    let class_of = |n: usize| if n.is_multiple_of(2) { Class::Destination } else { Class::Retryable };
    let exporter = scripted(move |_, n| if n < 8 { failure(class_of(n)) } else { Outcome::Delivered });
    let down = Arc::clone(&exporter);
    let watched = Arc::clone(&log);
    deliver(&log, &destination(&exporter, 2), move || {
        assert!(down.seen.lock().len() > 8 || settled(&watched) == 0, "settled without a delivery");
        settled(&watched) == 20
    })
    .await;
    assert_eq!(exporter.taken.lock().iter().collect::<BTreeSet<_>>().len(), 20);
}

#[tokio::test]
async fn a_refused_batch_is_set_aside_and_later_ones_go_on_and_it_comes_again_after_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let (store, log, router) = open(dir.path());
        for n in 0..12u8 {
            let _receipt = put(&router, vec![n]).await;
        }
        let exporter = scripted(|batch, _| {
            if batch.payload.clone().into_bytes().contains(&5) { failure(Class::Batch) } else { Outcome::Delivered }
        });
        let watched = Arc::clone(&log);
        let subscription = deliver(&log, &destination(&exporter, 1), move || {
            watched.cursor("x").is_some_and(|cursor| cursor.is_settled(11))
        })
        .await;
        assert_eq!(subscription.status().held_ranges, 1);
        assert!(!log.cursor("x").expect("cursor").is_settled(5));
        store.close();
    }
    let (_store, log, _) = open(dir.path());
    let exporter = scripted(|_, _| Outcome::Delivered);
    deliver(&log, &destination(&exporter, 1), || settled(&log) == 12).await;
    let taken: BTreeSet<u8> = exporter.taken.lock().iter().copied().collect();
    assert_eq!(taken, (4..8).collect(), "exactly the batch that was set aside");
}

#[tokio::test]
async fn a_batch_too_large_comes_again_in_smaller_ones() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, log, router) = open(dir.path());
    for n in 0..8u8 {
        let _receipt = put(&router, vec![n; 60 << 10]).await;
    }
    let exporter = scripted(|batch, _| {
        if batch.payload.len() <= 130 << 10 {
            return Outcome::Delivered;
        }
        let Outcome::Failed(mut failure) = failure(Class::Batch) else { unreachable!() };
        failure.too_large = true;
        Outcome::Failed(failure)
    });
    deliver(&log, &destination(&exporter, 1), || settled(&log) == 8).await;
    assert_eq!(exporter.taken.lock().iter().collect::<BTreeSet<_>>().len(), 8);
    let refused = exporter.seen.lock().iter().filter(|batch| batch.payload.len() > 130 << 10).count();
    assert!(refused <= 2, "the limit is learned, not tried again and again: {refused}");
}

#[tokio::test]
async fn a_small_batch_waits_for_more_up_to_the_flush_timeout() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, log, router) = open(dir.path());
    let exporter = scripted(|_, _| Outcome::Delivered);
    let shared: Arc<dyn Exporter> = Arc::clone(&exporter) as _;
    let batch = BatchPolicy { min_items: 10, max_items: 0, flush_timeout: Duration::from_secs(3600) };
    let retry = RetryPolicy::default();
    let policy = Policy { retry, batch, consumers: 1, memory_bytes: 4 << 20, parking: None };
    let destination = Destination::new("x", shared, policy, Arc::new(Unobserved));
    let _receipt = put(&router, vec![0]).await;
    let feeding = async {
        for n in 1..10u8 {
            let _receipt = put(&router, vec![n]).await;
        }
    };
    let watched = Arc::clone(&log);
    tokio::join!(feeding, deliver(&log, &destination, move || settled(&watched) == 10));
    assert_eq!(exporter.seen.lock().len(), 1, "one request of ten");
}

#[tokio::test]
async fn a_partial_success_is_never_retried() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, log, router) = open(dir.path());
    let _receipt = put(&router, vec![1]).await;
    let exporter = scripted(|_, _| Outcome::Partial { rejected_items: 1, message: "no".to_owned() });
    deliver(&log, &destination(&exporter, 1), || settled(&log) == 1).await;
    assert_eq!(exporter.seen.lock().len(), 1);
}

/// A record that came at that wall time, as another process or another clock may have written it.
async fn put_at(log: &Log, received_unix_ns: u64) {
    let record = NewRecord {
        signal: Signal::Traces as u8,
        encoding: Encoding::Identity as u8,
        items: 1,
        raw_len: 4,
        received_unix_ns,
        metadata: Bytes::new(),
        payload: Bytes::from_static(b"span"),
        guard: Arc::new(()),
    };
    let reservation = log.reserve(record.weight()).expect("room");
    let _receipt = log.append(reservation, record).await.expect("answered").expect("durable");
}

/// Batches that never fill, so that only age sends them.
fn aged(exporter: &Arc<Scripted>, flush_timeout: Duration) -> Arc<Destination> {
    let batch = BatchPolicy { min_items: 1000, max_items: 0, flush_timeout };
    let exporter: Arc<dyn Exporter> = Arc::clone(exporter) as _;
    let retry = RetryPolicy::default();
    let policy = Policy { retry, batch, consumers: 1, memory_bytes: 4 << 20, parking: None };
    Destination::new("x", exporter, policy, Arc::new(Unobserved))
}

#[tokio::test]
async fn rule_10_a_record_of_a_former_process_is_as_old_as_the_wall_clock_says() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let (store, log, _) = open(dir.path());
        put_at(&log, 1).await;
        store.close();
    }
    let (_store, log, _) = open(dir.path());
    let exporter = scripted(|_, _| Outcome::Delivered);
    // Half a century has passed: the hour is over.
    deliver(&log, &aged(&exporter, Duration::from_secs(3600)), || settled(&log) == 1).await;
    assert_eq!(*exporter.taken.lock(), b"span", "age sends, it drops nothing");
}

#[tokio::test]
async fn rule_10_a_record_from_the_future_is_taken_for_new_and_waits_no_longer() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, log, _) = open(dir.path());
    let exporter = scripted(|_, _| Outcome::Delivered);
    // The wall clock was set back by five centuries.
    put_at(&log, u64::MAX).await;
    let flush_timeout = Duration::from_millis(50);
    let started = std::time::Instant::now();
    deliver(&log, &aged(&exporter, flush_timeout), || settled(&log) == 1).await;
    assert!(started.elapsed() >= flush_timeout, "it waited for others as a new one does");
    assert_eq!(*exporter.taken.lock(), b"span");
}

#[test]
fn rule_10_age_limits_are_off_by_default() {
    assert_eq!(RetryPolicy::default().max_elapsed_time, Duration::ZERO);
    assert_eq!(crate::settings::Retry::default().max_elapsed_time, None);
}
