//! The whole process under load, with a destination that misbehaves in every way, killed at random.
//!
//! It ends with the conservation check (acknowledged ⊆ delivered ∪ dead-lettered, both ⊆ sent, nothing changed) and a fresh
//! request as a proof of life. `FOREBAY_CHAOS_SECONDS` makes it longer (default 12), `FOREBAY_CHAOS_SEED` repeats the
//! choices of a run.

#[path = "../support/mod.rs"]
mod support;

mod moods;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay::otlp::Signal;
use moods::{Destination, MOODS, Mood, is_poison};
use prost::Message;
use support::dlq::{dlq, stdout};
use support::ledger::{Ledger, check, load, post};
use support::setup::Setup;
use support::{Taken, client, eventually};

const CLIENTS: u64 = 3;
const SPANS_PER_REQUEST: u64 = 10;
const SECONDS_DEFAULT: u64 = 12;
/// How long a mood lasts, and how often the process is killed.
const MOOD_MS: std::ops::Range<u64> = 100..600;
const LIFE_MS: std::ops::Range<u64> = 500..2500;

/// What `forebay dlq export` has, as if it were delivered.
fn spans_in_letters(data_dir: &Path) -> Taken {
    let mut spans = Taken::new();
    for line in stdout(&dlq(&["export"], data_dir)).lines() {
        let payload = forebay::otlp::json::to_protobuf(Signal::Traces, line.as_bytes()).expect("OTLP-JSON");
        for span in moods::spans_of(&payload) {
            let bytes = span.encode_to_vec();
            spans.entry(span.name).or_insert((0, bytes)).0 += 1;
        }
    }
    spans
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_however_the_destination_misbehaves_and_the_process_dies() {
    let seed = variable("FOREBAY_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = variable("FOREBAY_CHAOS_SECONDS").unwrap_or(SECONDS_DEFAULT);
    println!("chaos: seed {seed}, {seconds} s");
    let mut random = fastrand::Rng::with_seed(seed);
    let destination = Destination::start(random.u64(..)).await;
    let exporter = format!(
        "{{endpoint: 'http://{}', timeout: 300ms, retry_on_failure: {{initial_interval: 10ms, max_interval: 50ms}}, \
         sending_queue: {{num_consumers: 4, batch: {{flush_timeout: 5ms, min_size: 20, max_size: 200}}}}}}",
        destination.address
    );
    let setup = Setup::new("otlp_http", &exporter, "{queue: {max_size: 32MiB}, shutdown: {deadline: 2s}}");
    let client = client();
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (url, ledger, stop) = (url.clone(), Arc::clone(&ledger), Arc::clone(&stop));
            tokio::spawn(load(client.clone(), url, SPANS_PER_REQUEST, ledger, stop))
        })
        .collect();

    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut kills, mut stops) = (0, 0);
    let mut turn = 0;
    while Instant::now() < end {
        let mut forebay = setup.start(&client).await;
        let death = Instant::now() + Duration::from_millis(random.u64(LIFE_MS));
        while Instant::now() < death {
            // Each mood once in turn, then by chance: a short run meets them all.
            let mood = if turn < MOODS.len() { MOODS[turn] } else { MOODS[random.usize(..MOODS.len())] };
            turn += 1;
            destination.set(mood);
            tokio::time::sleep(Duration::from_millis(random.u64(MOOD_MS))).await;
            assert_eq!(forebay.has_exited(), None, "seed {seed}: it died by itself");
        }
        if random.bool() {
            forebay.kill();
            kills += 1;
        } else {
            let code = forebay.stop().await;
            assert_eq!(code, 0, "seed {seed}");
            stops += 1;
        }
    }
    stop.store(true, Ordering::SeqCst);
    for task in clients {
        task.await.expect("no panic");
    }

    destination.set(Mood::Well);
    let forebay = setup.start(&client).await;
    let probe = async |name: &str| post(&ledger, &setup, &client, name).await;
    // A long run ends with a full queue: then room has to come first.
    eventually("it takes a new request", async || probe("probe").await).await;
    let data_dir = setup.dir.path().join("data");
    let mut parked = Taken::new();
    let mut probes = 0;
    // The default patience of a batch that was set aside is five minutes: a restart has made all of them due.
    eventually("everything acknowledged is delivered or a dead letter", async || {
        let missing: Vec<String> = {
            let taken = destination.taken.lock();
            ledger.acknowledged.lock().iter().filter(|name| !taken.contains_key(*name)).cloned().collect()
        };
        parked = spans_in_letters(&data_dir);
        let mut left = missing.iter().filter(|name| !parked.contains_key(*name)).peekable();
        let is_done = left.peek().is_none();
        if left.any(|name| !name.starts_with("probe")) {
            // What is left may be poison alone, which only what else is taken can prove.
            probes += 1;
            probe(&format!("probe-{probes}")).await;
        }
        is_done
    })
    .await;
    assert_eq!(forebay.stop().await, 0);
    let log = std::fs::read_to_string(setup.dir.path().join("log")).unwrap_or_default();
    let all: Taken =
        parked.iter().chain(destination.taken.lock().iter()).map(|(k, v)| (k.clone(), v.clone())).collect();
    check(&ledger, &all).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{log}"));
    assert!(destination.taken.lock().keys().all(|name| !is_poison(name)), "seed {seed}");
    assert!(!log.contains("panicked"), "seed {seed}: {log}");
    let duplicates: u64 = destination.taken.lock().values().map(|(times, _)| times - 1).sum();
    let moods = destination.counts();
    println!(
        "chaos: {kills} kills, {stops} stops, {} acknowledged, {} delivered, {} dead letters' spans, {} of them poison, \
         {duplicates} sent twice, 0 missing; {moods:?}",
        ledger.acknowledged.lock().len(),
        destination.taken.lock().len(),
        parked.len(),
        parked.keys().filter(|name| is_poison(name)).count()
    );
    // The run was interesting.
    assert!(kills + stops >= 3 && ledger.acknowledged.lock().len() > 100, "seed {seed}");
    if turn >= MOODS.len() {
        let unmet: Vec<_> = moods.iter().filter(|(_, count)| *count == 0).collect();
        assert!(unmet.len() <= 4, "seed {seed}: no request met {unmet:?}");
    }
}
