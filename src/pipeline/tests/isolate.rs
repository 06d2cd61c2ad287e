//! Poison is found, parked and costs nobody else anything.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::task::JoinHandle;

mod cuts;
mod expiry;
mod proof;
mod size;
mod stumble;
mod twins;

use super::*;
use crate::dlq::{DeadLetters, Description, OnFull, Reason, SeenBefore, Shelf};
use crate::exporters::{RemoteStatus, StatusPolicy};
use crate::storage::{Disk, Fate};

/// A request with spans of these names in two resources.
fn request(names: &[String]) -> Vec<u8> {
    let resource = |names: &[String]| ResourceSpans {
        scope_spans: vec![ScopeSpans {
            spans: names.iter().map(|name| Span { name: name.clone(), ..Span::default() }).collect(),
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    };
    let (first, second) = names.split_at(names.len() / 3);
    let resource_spans = [first, second].into_iter().filter(|names| !names.is_empty()).map(resource).collect();
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn names_in(payload: &[u8]) -> Vec<String> {
    let request = ExportTraceServiceRequest::decode(payload).expect("valid");
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect()
}

fn names_of(batch: &Batch) -> Vec<String> {
    names_in(&batch.payload.clone().into_bytes())
}

async fn put_spans(router: &Router, names: &[String]) {
    put_payload(router, request(names), names.len() as u64).await;
}

async fn put_payload(router: &Router, payload: Vec<u8>, items: u64) {
    let _receipt = try_put(router, payload, items).await.expect("accepted");
}

async fn try_put(router: &Router, payload: Vec<u8>, items: u64) -> Result<Accepted, Refused> {
    let budget = Budget::new(1 << 20);
    let offer = Offer {
        signal: Signal::Traces,
        encoding: Encoding::Identity,
        items,
        raw_len: payload.len() as u64,
        metadata: Vec::new(),
        payload: Bytes::from(payload),
        permit: budget.empty_permit(),
        marks: crate::queue::Marks::default(),
        peer: None,
    };
    router.offer(offer).await
}

/// `n` names, of which those at `poison` begin with that word.
fn named(n: usize, poison: &[usize]) -> Vec<String> {
    (0..n).map(|at| if poison.contains(&at) { format!("poison {at}") } else { format!("good {at}") }).collect()
}

fn refused(message: &str) -> Outcome {
    Outcome::Failed(Failure {
        class: Class::Batch,
        status: Some(RemoteStatus::Http(400)),
        retry_after: None,
        too_large: false,
        message: message.to_owned(),
    })
}

fn too_large() -> Outcome {
    let Outcome::Failed(failure) = refused("too large") else { unreachable!() };
    Outcome::Failed(Failure { too_large: true, status: Some(RemoteStatus::Http(413)), ..failure })
}

fn hates_poison(batch: &Batch, _: usize) -> Outcome {
    match names_of(batch).iter().find(|name| name.starts_with("poison")) {
        Some(name) => refused(&format!("cannot take {name}")),
        None => Outcome::Delivered,
    }
}

fn letters_in(dir: &Path, max_bytes: u64, on_full: OnFull) -> Arc<DeadLetters> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (shelf, _) = Shelf::open(&disk, dir, max_bytes, None).expect("opens");
    Arc::new(DeadLetters::new(shelf, on_full))
}

struct Case {
    _dir: tempfile::TempDir,
    store: Store,
    log: Arc<Log>,
    router: Router,
    letters: Arc<DeadLetters>,
}

fn case() -> Case {
    case_with(Options::default())
}

fn case_with(options: Options) -> Case {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, log, router) = open_with(dir.path(), options);
    let letters = letters_in(dir.path(), 64 << 20, OnFull::Block);
    Case { _dir: dir, store, log, router, letters }
}

impl Case {
    fn destination(&self, exporter: &Arc<Scripted>, change: impl FnOnce(&mut Policy)) -> Arc<Destination> {
        let retry = RetryPolicy {
            initial_interval: Duration::from_millis(2),
            max_interval: Duration::from_millis(5),
            ..RetryPolicy::default()
        };
        let batch = BatchPolicy { min_items: 1, max_items: 0, flush_timeout: Duration::ZERO };
        let parking = Some(Parking { letters: Arc::clone(&self.letters), keeps_partial: false });
        let mut policy = Policy { retry, batch, consumers: 1, memory_bytes: 64 << 20, parking };
        change(&mut policy);
        Destination::new("x", Arc::clone(exporter) as _, policy, Arc::new(Unobserved))
    }

    async fn deliver_all(&self, destination: &Arc<Destination>) -> Arc<Subscription> {
        deliver(&self.log, destination, || settled(&self.log) == self.log.durable_end()).await
    }

    /// The parked letters: names of their spans, and why.
    fn parked(&self) -> BTreeMap<Vec<String>, Description> {
        let log = self.letters.shelf().parked();
        let read = |row: crate::storage::dead_letters::Row| {
            let letter = log.read(row.id).expect("readable").expect("there");
            (names_in(&letter.payload), Description::from_bytes(&letter.description).expect("a description"))
        };
        log.rows().into_iter().map(read).collect()
    }
}

/// A delivery that goes on while the test does something.
struct Running {
    subscription: Arc<Subscription>,
    stop: Drain,
    task: JoinHandle<()>,
}

impl Running {
    fn start(case: &Case, destination: &Arc<Destination>) -> Running {
        let subscription = Subscription::new(Arc::clone(&case.log), "x");
        let stop = Drain::default();
        let task = tokio::spawn(run(Arc::clone(&subscription), Arc::clone(destination), stop.clone()));
        Running { subscription, stop, task }
    }

    async fn wait(&self, what: &str, until: impl Fn() -> bool) {
        let done = async {
            while !until() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, done).await;
        assert!(in_time.is_ok(), "not in time: {what}, {:?}", self.subscription.status());
    }

    async fn end(self) {
        self.stop.abort.cancel();
        self.task.await.expect("no panic");
    }
}

/// Names that were taken, sorted; the good ones must be there once.
fn taken(exporter: &Scripted) -> Vec<String> {
    let mut names = names_in(&exporter.taken.lock());
    names.sort();
    names
}

#[tokio::test]
async fn every_poison_is_parked_alone_everything_else_is_delivered_once_and_requests_stay_within_the_bound() {
    let n = 1000;
    let mut dice = fastrand::Rng::with_seed(7);
    let scattered = |p: usize, dice: &mut fastrand::Rng| -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        dice.shuffle(&mut all);
        all[..p].to_vec()
    };
    let mut cases: Vec<Vec<usize>> = vec![vec![0], vec![n - 1], (0..40).collect(), (n - 40..n).collect()];
    cases.push((300..500).collect());
    for p in [1, 2, 5, 10, 50, 200] {
        cases.push(scattered(p, &mut dice));
    }
    for poison in cases {
        let case = case();
        let names = named(n, &poison);
        put_spans(&case.router, &names).await;
        let exporter = scripted(hates_poison);
        case.deliver_all(&case.destination(&exporter, |_| {})).await;
        let good: BTreeSet<String> = names.iter().filter(|name| name.starts_with("good")).cloned().collect();
        let taken = taken(&exporter);
        assert_eq!(taken.iter().cloned().collect::<BTreeSet<_>>(), good, "{poison:?}");
        // Among very much poison in a row an item is sent twice now and then, to learn whether any is taken.
        assert!(taken.len() - good.len() <= poison.len() / 30, "{} sent twice", taken.len() - good.len());
        let parked = case.parked();
        assert_eq!(parked.len(), poison.len());
        for at in &poison {
            let description = &parked[&vec![format!("poison {at}")]];
            assert_eq!(description.reason, Reason::Rejected);
            assert_eq!(description.message, format!("cannot take poison {at}"));
            assert_eq!(description.status.as_deref(), Some("HTTP 400"));
            assert_eq!((description.exporter.as_deref(), description.queue.as_str()), (Some("x"), "traces"));
            assert!(description.attempts >= 2);
        }
        let p = poison.len() as f64;
        let bound = 2.0 * p * ((n as f64 / p).log2() + 1.0) + 1.0;
        let requests = exporter.seen.lock().len();
        assert!(requests as f64 <= bound, "{p} of {n}: {requests} requests, at most {bound:.0}");
    }
}

#[tokio::test]
async fn poison_in_one_of_many_records_is_cut_out_between_records() {
    let case = case();
    for record in 0..10 {
        let poison = if record == 4 { &[3usize][..] } else { &[] };
        let names: Vec<String> = named(10, poison).into_iter().map(|name| format!("{name} of {record}")).collect();
        put_spans(&case.router, &names).await;
    }
    let exporter = scripted(hates_poison);
    case.deliver_all(&case.destination(&exporter, |_| {})).await;
    assert_eq!(taken(&exporter).len(), 99);
    assert_eq!(case.parked().into_keys().collect::<Vec<_>>(), [["poison 3 of 4"]]);
    let seen = exporter.seen.lock();
    let whole_records = seen.iter().filter(|batch| batch.items.is_multiple_of(10)).count();
    assert!(whole_records >= 4, "the first cuts are between records");
}

#[tokio::test]
async fn a_copy_of_what_was_taken_in_part_is_parked_where_that_is_wanted() {
    for wanted in [false, true] {
        let case = case();
        put_spans(&case.router, &named(3, &[])).await;
        let exporter = scripted(|_, _| Outcome::Partial { rejected_items: 2, message: "bad names".to_owned() });
        let destination = case.destination(&exporter, |policy| {
            policy.parking = Some(Parking { letters: Arc::clone(&case.letters), keeps_partial: wanted });
        });
        case.deliver_all(&destination).await;
        assert_eq!(exporter.seen.lock().len(), 1, "never retried");
        let parked = case.parked();
        assert_eq!(parked.len(), usize::from(wanted));
        if let Some(description) = parked.values().next() {
            assert_eq!(description.reason, Reason::Ambiguous);
            assert_eq!(description.message, "2 of 3 items rejected: bad names");
        }
    }
}

#[tokio::test]
async fn without_room_for_letters_only_the_record_with_the_poison_is_held() {
    for on_full in [OnFull::Block, OnFull::Drop] {
        let mut case = case();
        let dir = tempfile::tempdir().expect("temporary directory");
        let told = Arc::new(Mutex::new(Vec::new()));
        let memory = Arc::clone(&told);
        let letters = Arc::into_inner(letters_in(dir.path(), 0, on_full)).expect("nobody else has them");
        case.letters = Arc::new(letters.remembered_by(SeenBefore::new(move |records| {
            memory.lock().extend(
                records.iter().flat_map(|(_, sequences)| sequences.iter()).map(|range| (range.start, range.end)),
            );
            Ok(())
        })));
        for record in 0..4 {
            put_spans(&case.router, &named(10, if record == 2 { &[5] } else { &[] })).await;
        }
        let exporter = scripted(hates_poison);
        let destination = case.destination(&exporter, |_| {});
        let expected: &[u64] = if on_full == OnFull::Block { &[2] } else { &[] };
        let unsettled = || {
            let cursor = case.log.cursor("x").expect("cursor");
            (0..4).filter(|sequence| !cursor.is_settled(*sequence)).collect::<Vec<u64>>()
        };
        let subscription = deliver(&case.log, &destination, || unsettled() == expected).await;
        assert_eq!(taken(&exporter).len(), 39);
        assert_eq!(subscription.status().held_ranges, expected.len());
        // A record that is held counts as waiting, also what was taken of it: it is settled as a whole.
        let ledger = case.log.status().cursors[0].ledger;
        let counts = [Fate::Delivered, Fate::DeadLettered, Fate::DeadLettersFull].map(|fate| ledger.fates.get(fate));
        assert_eq!(counts, if on_full == OnFull::Block { [30, 0, 0] } else { [39, 0, 1] });
        assert_eq!((ledger.accepted, ledger.rebased), (40, 0));
        // What nobody has may come again.
        assert_eq!(*told.lock(), if on_full == OnFull::Block { vec![] } else { vec![(2, 3)] });
    }
}

#[tokio::test]
async fn of_letters_that_do_not_all_fit_those_are_kept_that_do_and_the_others_are_counted_as_dropped() {
    let mut case = case();
    let dir = tempfile::tempdir().expect("temporary directory");
    // One segment, for some of ten letters.
    case.letters = letters_in(dir.path(), 64 << 10, OnFull::Drop);
    let long = "x".repeat(10_000);
    let names: Vec<String> = (0..10).map(|n| format!("poison {n} {long}")).chain(["good".to_owned()]).collect();
    put_spans(&case.router, &names).await;
    // And one that has room where they have none.
    put_spans(&case.router, &["good too".to_owned(), "poison small".to_owned()]).await;
    let exporter = scripted(hates_poison);
    case.deliver_all(&case.destination(&exporter, |policy| policy.batch.max_items = 11)).await;
    assert_eq!(taken(&exporter), ["good", "good too"]);
    let parked = case.parked();
    assert!((4..=7).contains(&parked.len()), "{} kept", parked.len());
    assert!(parked.contains_key(&vec!["poison small".to_owned()]));
    let ledger = case.log.status().cursors[0].ledger;
    let counts = [Fate::Delivered, Fate::DeadLettered, Fate::DeadLettersFull].map(|fate| ledger.fates.get(fate));
    let kept = parked.len() as u64;
    assert_eq!((counts, ledger.accepted), ([2, kept, 11 - kept], 13));
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_500_401_or_404_to_everything_parks_and_splits_nothing() {
    for status in [500, 401, 404] {
        let case = case();
        for record in 0..20 {
            let names: Vec<String> = (0..50).map(|item| format!("good-{record}-{item}")).collect();
            put_spans(&case.router, &names).await;
        }
        let ill_until = tokio::time::Instant::now() + Duration::from_secs(3600);
        let exporter = scripted(move |_, _| match tokio::time::Instant::now() < ill_until {
            true => Outcome::Failed(Failure {
                class: StatusPolicy::default().http(status).0,
                status: Some(RemoteStatus::Http(status)),
                retry_after: None,
                too_large: false,
                message: "ill".to_owned(),
            }),
            false => Outcome::Delivered,
        });
        // As configured by default, but for time that need not pass.
        let destination = case.destination(&exporter, |policy| {
            policy.retry = RetryPolicy::default();
            policy.consumers = 4;
            policy.batch.max_items = 500;
        });
        let subscription = Subscription::new(Arc::clone(&case.log), "x");
        let stop = Drain::default();
        let running = tokio::spawn(run(subscription, Arc::clone(&destination), stop.clone()));
        while settled(&case.log) < case.log.durable_end() {
            assert!(
                tokio::time::Instant::now() < ill_until + Duration::from_secs(600),
                "{status}: not delivered after it is well"
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        stop.abort.cancel();
        running.await.expect("no panic");
        let seen = exporter.seen.lock();
        assert!(seen.len() > 60 && seen.len() < 600, "{status}: {} requests in an hour", seen.len());
        assert!(seen.iter().all(|batch| batch.items.is_multiple_of(50)), "{status}: split");
        drop(seen);
        assert_eq!(taken(&exporter).len(), 1000, "{status}");
        assert_eq!(case.letters.shelf().rows().len(), 0, "{status}");
    }
}
