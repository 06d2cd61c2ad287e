//! The whole application on the simulated disk: clients, receivers, queue, delivery, dead letters, and the power goes
//! off under load. Of every seventh span the destination will have nothing.
//!
//! `FOREBAY_APP_CUTS=1000 cargo test --lib application` makes so many cuts. Threads run as they like here, so a seed
//! gives the same fates at other moments; the storage's own cuts (`queue/tests`) can be repeated exactly.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use fastrand::Rng;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use parking_lot::Mutex;
use prost::Message;
use tokio::runtime::Runtime;

use super::super::build;
use super::super::limits::Memory;
use super::super::running::Running;
use crate::config::{self, Plan, RealWorld, Sources};
use crate::dlq::DeadLetters;
use crate::storage::log::{Drive, Observer};
use crate::storage::simulated::{Dishonesty, Fate, Faults, World};
use crate::storage::{Disk, Options, Store};

/// Cuts of the short form.
const CUTS: u64 = 12;
const SEGMENT_BYTES: u64 = 64 << 10;
const DIR: &str = "/volume/data";
const CLIENTS: usize = 3;
/// Spans with numbers that this divides are refused for good.
const POISON: u64 = 7;
const PATIENCE: Duration = Duration::from_secs(60);

struct Unobserved;
impl Observer for Unobserved {}

/// What was sent, acknowledged, and taken by the destination.
#[derive(Default)]
struct Ledger {
    next: AtomicU64,
    acknowledged: Mutex<BTreeSet<u64>>,
    delivered: Mutex<BTreeSet<u64>>,
    /// Requests that the destination took, for duplicates.
    taken: AtomicU64,
    /// Requests that it refused.
    refused: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

fn span(number: u64) -> Span {
    Span {
        trace_id: u128::from(number).to_be_bytes().to_vec(),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name: format!("span {number} {}", "x".repeat(number as usize % 700)),
        ..Span::default()
    }
}

fn request(number: u64) -> Vec<u8> {
    let scope_spans = vec![ScopeSpans { spans: vec![span(number)], ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
        .encode_to_vec()
}

fn spans(request: ExportTraceServiceRequest) -> impl Iterator<Item = Span> {
    request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans)
}

impl Ledger {
    /// The number of a span, which must be one that was sent, as it was sent.
    fn check(&self, found: &Span) -> u64 {
        let number = found.span_id.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)).wrapping_sub(1);
        if *found != span(number) || number >= self.next.load(Ordering::SeqCst) {
            self.wrong.lock().push(format!("span {number} was changed on the way"));
        }
        number
    }

    /// The spans that lie among the dead letters.
    fn parked(&self, letters: &DeadLetters) -> BTreeSet<u64> {
        let log = letters.shelf().parked();
        let mut parked = BTreeSet::new();
        for row in log.rows() {
            let letter = log.read(row.id).map_err(|error| error.to_string());
            match letter.map(|letter| letter.map(|letter| ExportTraceServiceRequest::decode(letter.payload))) {
                Ok(Some(Ok(request))) => parked.extend(spans(request).map(|span| self.check(&span))),
                broken => self.wrong.lock().push(format!("letter {:016x}: {broken:?}", row.id)),
            }
        }
        parked
    }
}

/// The destination.
async fn sink(ledger: Arc<Ledger>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let take = move |body: Bytes| {
        let ledger = Arc::clone(&ledger);
        async move {
            let request = match ExportTraceServiceRequest::decode(body) {
                Ok(request) => request,
                Err(error) => {
                    ledger.wrong.lock().push(error.to_string());
                    return StatusCode::OK;
                }
            };
            let numbers: Vec<u64> = spans(request).map(|span| ledger.check(&span)).collect();
            if numbers.iter().any(|number| number.is_multiple_of(POISON)) {
                ledger.refused.fetch_add(1, Ordering::SeqCst);
                return StatusCode::BAD_REQUEST;
            }
            ledger.taken.fetch_add(numbers.len() as u64, Ordering::SeqCst);
            ledger.delivered.lock().extend(numbers);
            StatusCode::OK
        }
    };
    tokio::spawn(axum::serve(listener, axum::Router::new().route("/v1/traces", post(take))).into_future());
    address
}

/// Sends one request after the other to whoever listens at the moment.
async fn load(
    client: reqwest::Client,
    target: Arc<Mutex<Option<SocketAddr>>>,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::SeqCst) {
        let Some(address) = *target.lock() else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let number = ledger.next.fetch_add(1, Ordering::SeqCst);
        let sending = client
            .post(format!("http://{address}/v1/traces"))
            .header("content-type", "application/x-protobuf")
            .body(request(number))
            .send();
        // Refused or cut off: not acknowledged.
        if let Ok(answer) = sending.await
            && answer.status().is_success()
        {
            ledger.acknowledged.lock().insert(number);
        }
    }
}

fn plan(sink: SocketAddr) -> Plan {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("forebay.yaml");
    let text = format!(
        "receivers:\n  otlp: {{protocols: {{http: {{endpoint: 127.0.0.1:0}}}}}}\n\
         exporters:\n  otlp_http: {{endpoint: 'http://{sink}', sending_queue: {{batch: {{flush_timeout: 5ms}}}}, \
         retry_on_failure: {{initial_interval: 5ms, max_interval: 20ms}}}}\n\
         service:\n  pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    );
    std::fs::write(&path, text).expect("written");
    let sources = Sources { configs: vec![path.display().to_string()], sets: Vec::new() };
    config::load_plan(&sources, &RealWorld).expect("a valid configuration")
}

/// One life of the application, until somebody cuts its power.
struct Life {
    runtime: Runtime,
    store: Arc<Store>,
    running: Running,
}

impl Life {
    /// None when the power went off while it started.
    fn start(world: &Arc<World>, plan: &Plan) -> Result<Option<(Life, SocketAddr)>, String> {
        let options = Options {
            max_size_bytes: Some(64 * SEGMENT_BYTES),
            segment_bytes: Some(SEGMENT_BYTES),
            tail_bytes_max: 32 << 10,
            checkpoint_interval: Duration::from_millis(3),
            ..Options::default()
        };
        let observer = Arc::new(Unobserved);
        let opened =
            Store::open_with(world.disk(), Path::new(DIR), &options, observer, world.catalogs(), Drive::Threads);
        let (store, report) = match opened {
            Ok(opened) => opened,
            Err(_) if world.is_off() => return Ok(None),
            Err(error) => return Err(format!("it does not start: {error}")),
        };
        let lost: Vec<_> = report.queues.values().flat_map(|queue| &queue.lost).collect();
        if !lost.is_empty() {
            return Err(format!("loss is reported: {lost:?}"));
        }
        let store = Arc::new(store);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let started = runtime.block_on(async {
            let receivers = build::bind_receivers(plan).await.expect("bound");
            let address = receivers[0].http_addresses()[0];
            let memory = Memory::new(Some(64 << 20), 1);
            Running::start(plan, Path::new(DIR), &memory, &store, receivers, &Arc::default())
                .map(|running| (running, address))
        });
        match started {
            Ok((running, address)) => Ok(Some((Life { runtime, store, running }, address))),
            Err(_) if world.is_off() => {
                store.close();
                Ok(None)
            }
            Err(error) => Err(format!("it does not start: {error}")),
        }
    }

    /// For whoever must find out why it stands still.
    fn standing(&self, world: &Arc<World>) -> String {
        let space = world.disk().space(Path::new(DIR));
        let subscriptions = self.running.subscriptions.iter().map(|observed| {
            let subscription = &observed.subscription;
            format!("{:?}, {:?}", subscription.status(), observed.destination.last_error())
        });
        let logs = self.store.queues();
        let logs = logs.iter().map(|log| format!("{:?}, {:?}", log.status(), log.failure()));
        let letters = self.running.dead_letters.shelf().parked().status();
        let parts = [subscriptions.collect::<Vec<_>>().join("; "), logs.collect::<Vec<_>>().join("; ")];
        format!("{parts:?}; {letters:?}; {space:?}; {} operations", world.operations())
    }

    /// Its power is off: nothing that it still does reaches the disk.
    fn end(self) {
        drop(self.running);
        self.runtime.shutdown_timeout(Duration::from_secs(10));
        self.store.close();
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn eventually(what: &str, condition: impl FnMut() -> bool) -> Result<(), String> {
    within(PATIENCE, what, condition)
}

fn within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > patience {
            return Err(format!("not within {patience:?}: {what}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn run(cuts: u64, seed: u64, dishonesty: Option<Dishonesty>) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let world = World::new(seed, 256 << 20);
    let disk = world.disk();
    disk.create_dir(Path::new("/volume")).and_then(|()| disk.sync_dir(Path::new("/"))).expect("a volume");
    world.set_dishonesty(dishonesty);
    let ledger = Arc::new(Ledger::default());
    let outside =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let plan = plan(outside.block_on(sink(Arc::clone(&ledger))));
    let target = Arc::new(Mutex::new(None));
    let stop = Arc::new(AtomicBool::new(false));
    // Another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client");
    for _ in 0..CLIENTS {
        outside.spawn(load(client.clone(), Arc::clone(&target), Arc::clone(&ledger), Arc::clone(&stop)));
    }
    let mut while_starting = 0;
    for cut in 0..cuts {
        // Half of the cuts may strike while it starts, half only under load.
        let strikes_starting = rng.bool();
        world.cut_power_in(strikes_starting.then(|| rng.u64(0..400)));
        match Life::start(&world, &plan).map_err(|reason| format!("after cut {cut}: {reason}"))? {
            None => while_starting += 1,
            Some((life, address)) => {
                world.set_faults(Faults {
                    failing_syncs: rng.u32(0..2),
                    failing_writes: rng.u32(0..2),
                    sync_delay: Duration::from_micros(rng.u64(0..1_000)),
                    ..Faults::default()
                });
                *target.lock() = Some(address);
                if !strikes_starting {
                    world.cut_power_in(Some(rng.u64(0..400)));
                }
                eventually("the power goes off under load", || world.is_off())
                    .map_err(|reason| format!("after cut {cut}: {reason}; {}", life.standing(&world)))?;
                *target.lock() = None;
                life.end();
                world.set_faults(Faults::default());
            }
        }
        world.cut_power([Fate::Any, Fate::Any, Fate::Any, Fate::Torn, Fate::Empty][rng.usize(..5)]);
        let wrong = ledger.wrong.lock();
        if !wrong.is_empty() {
            return Err(format!("after cut {cut}: {wrong:?}"));
        }
    }
    let (life, address) = Life::start(&world, &plan)?.ok_or("the power went off again")?;
    // What is left may be poison alone, which is parked only where something else is taken: the load goes on.
    let mut due = ledger.acknowledged.lock().clone();
    *target.lock() = Some(address);
    let patience = if dishonesty.is_some() { PATIENCE / 12 } else { PATIENCE };
    within(patience, "all that was acknowledged is delivered or a dead letter", || {
        due.retain(|number| !ledger.delivered.lock().contains(number));
        if due.iter().all(|number| number.is_multiple_of(POISON)) {
            due = &due - &ledger.parked(&life.running.dead_letters);
        }
        due.is_empty()
    })
    .map_err(|reason| {
        let standing = life.standing(&world);
        format!("{reason}; {} are missing, such as {:?}; {standing}", due.len(), due.first())
    })?;
    stop.store(true, Ordering::SeqCst);
    *target.lock() = None;
    let parked = ledger.parked(&life.running.dead_letters);
    let wrong = std::mem::take(&mut *ledger.wrong.lock());
    if !wrong.is_empty() || parked.iter().any(|number| !number.is_multiple_of(POISON)) {
        return Err(format!("at the end: {wrong:?}, parked: {parked:?}"));
    }
    life.end();
    let (acknowledged, taken) = (ledger.acknowledged.lock().len() as u64, ledger.taken.load(Ordering::SeqCst));
    let (letters, refused) = (parked.len(), ledger.refused.load(Ordering::SeqCst));
    println!(
        "{cuts} cuts, {while_starting} of them while starting: {acknowledged} acknowledged, {taken} delivered, \
         {letters} dead letters after {refused} refusals"
    );
    if acknowledged <= cuts || letters == 0 {
        return Err("it did not work between the cuts".to_owned());
    }
    Ok(())
}

#[test]
fn the_whole_application_delivers_what_it_acknowledged_through_power_cuts() {
    let cuts = number_of("FOREBAY_APP_CUTS").unwrap_or(CUTS);
    let seed = number_of("FOREBAY_SEED").unwrap_or(1);
    if let Err(reason) = run(cuts, seed, None) {
        panic!(
            "{reason}
again: FOREBAY_SEED={seed} FOREBAY_APP_CUTS={cuts} cargo test --lib whole_application"
        );
    }
}

#[test]
fn mutant_a_sync_that_lies_is_caught_by_the_whole_application() {
    let reason = run(50 * CUTS, 1, Some(Dishonesty::LyingSync)).expect_err("a lie is noticed");
    println!("{reason}");
}

#[test]
fn mutant_dead_letters_that_are_settled_before_they_are_synced_are_caught_by_the_whole_application() {
    let lie = Dishonesty::LyingSyncIn("/volume/data/dlq");
    let reason = run(2 * CUTS, 1, Some(lie)).expect_err("a letter that is gone is missed");
    println!("{reason}");
    assert!(reason.contains("is delivered or a dead letter"), "{reason}");
}
