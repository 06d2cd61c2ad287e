//! kill -9 while clients send each request until it is acknowledged: nothing acknowledged is missing, nothing comes twice.
//!
//! `FOREBAY_DEDUP_KILLS` sets the number of kills (default 6), `FOREBAY_DEDUP_SEED` repeats their moments.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use support::dedup::{HEADER, log, names, setup_with};
use support::{Sink, client, eventually, free_ports, request};

const CLIENTS: u32 = 4;
const SPANS_PER_REQUEST: u32 = 5;

#[derive(Default)]
struct Told {
    acknowledged: Mutex<Vec<String>>,
    next: AtomicU64,
    retries: AtomicU64,
    /// Requests of which an answer said that they were known.
    known: AtomicU64,
}

/// Each request again and again until it is acknowledged; now and then without waiting for the answer.
async fn insist(url: String, told: Arc<Told>, stop: Arc<AtomicBool>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let client = client();
    while !stop.load(Ordering::SeqCst) {
        let number = told.next.fetch_add(1, Ordering::SeqCst) as u32 * SPANS_PER_REQUEST;
        let names = names(number..number + SPANS_PER_REQUEST);
        let mut tries = 0;
        loop {
            let patience = Duration::from_millis(if random.u8(..8) == 0 { random.u64(1..20) } else { 5000 });
            let sending = client.post(&url).header("content-type", "application/x-protobuf").body(request(&names));
            match sending.timeout(patience).send().await {
                Ok(answer) if answer.status() == 200 => {
                    told.known.fetch_add(u64::from(answer.headers().contains_key(HEADER)), Ordering::SeqCst);
                    told.acknowledged.lock().extend(names);
                    break;
                }
                // Refused, given up, or the process is dead.
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
            tries += 1;
        }
        told.retries.fetch_add(tries, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn across_kill_9_every_retry_is_answered_and_each_span_is_delivered_exactly_once() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = variable("FOREBAY_DEDUP_SEED").unwrap_or_else(|| fastrand::u64(..));
    let kills = variable("FOREBAY_DEDUP_KILLS").unwrap_or(6);
    println!("FOREBAY_DEDUP_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Nobody is there yet: what comes twice later was stored twice, and not only sent twice.
    let [sink_port] = free_ports();
    // A request waits for its sync long enough to be killed there.
    let setup = setup_with(&format!("http://127.0.0.1:{sink_port}"), "", "{max_syncs_per_second: 50}");
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let (told, stop) = (Arc::new(Told::default()), Arc::new(AtomicBool::new(false)));
    let client = client();
    let mut forebay = setup.start(&client).await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| tokio::spawn(insist(url.clone(), Arc::clone(&told), Arc::clone(&stop), seed ^ u64::from(n))))
        .collect();
    for _ in 0..kills {
        let before = told.acknowledged.lock().len();
        let requests = random.usize(1..200);
        eventually("some are acknowledged", async || {
            told.acknowledged.lock().len() >= before + requests * SPANS_PER_REQUEST as usize
        })
        .await;
        tokio::time::sleep(Duration::from_micros(random.u64(..40_000))).await;
        forebay.kill();
        forebay = setup.start(&client).await;
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no client ends badly");
    }
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", sink_port)).await.expect("the port is ours");
    let sink = Sink::start_on(listener);
    eventually("all is delivered", async || {
        setup.sample(&client, "forebay_queue_backlog_records", "queue=\"traces\"").await == Some(0.0)
    })
    .await;
    assert_eq!(forebay.stop().await, 0, "{}", log(&setup));
    let (acknowledged, taken) = (told.acknowledged.lock(), sink.taken.lock());
    let missing = acknowledged.iter().filter(|name| !taken.contains_key(*name)).count();
    let twice = taken.values().filter(|(times, _)| *times > 1).count();
    let (retries, known) = (told.retries.load(Ordering::SeqCst), told.known.load(Ordering::SeqCst));
    println!("{} spans, {retries} retries, {known} of them known", acknowledged.len());
    assert_eq!((missing, twice, taken.len()), (0, 0, acknowledged.len()), "{retries} retries, {known} of them known");
    assert!(retries >= kills && known > 0, "the run showed nothing: {retries} retries, {known} of them known");
}
