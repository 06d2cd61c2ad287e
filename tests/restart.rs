//! What a restart costs: how much is sent twice after kill -9, and how much memory a backlog takes while it drains.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use forebay::storage::survey::{Depth, survey};
use support::ledger::{Ledger, check, drained, load};
use support::setup::Setup;
use support::{Sink, client, eventually, request};

/// One checkpoint interval is 250 ms; the rest is for syncs on a busy machine.
const CHECKPOINT_MAX: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_only_what_was_in_flight_or_newer_than_a_checkpoint_is_sent_twice() {
    let (sink, address) = Sink::start().await;
    let exporter = format!(
        "{{endpoint: 'http://{address}', sending_queue: {{batch: {{flush_timeout: 5ms, min_size: 50, max_size: 200}}}}}}"
    );
    let setup = Setup::new("otlp_http", &exporter, "{}");
    let client = client();
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let forebay = setup.start(&client).await;
    let loading = tokio::spawn(load(client.clone(), url, 10, Arc::clone(&ledger), Arc::clone(&stop)));
    let started = Instant::now();
    // Several checkpoints' worth, so that "everything" would be noticed.
    eventually("enough is delivered", async || {
        sink.taken.lock().len() > 5000 && started.elapsed() > 3 * CHECKPOINT_MAX
    })
    .await;
    forebay.kill();
    let killed_at = Instant::now();
    stop.store(true, Ordering::SeqCst);
    loading.await.expect("no panic");
    let delivered = sink.taken.lock().len();
    let found = survey(&setup.dir.path().join("data"), Depth::Records).expect("readable");
    assert!(!found.is_damaged(), "{found:?}");
    let unsettled_items = found.queues[0].cursors[0].lag_items;

    let forebay = setup.start(&client).await;
    eventually("the rest is delivered", async || drained(&ledger, &sink).await).await;
    assert_eq!(forebay.stop().await, 0);
    check(&ledger, &sink.taken.lock()).expect("nothing is lost");
    let taken = sink.taken.lock();
    let twice: Vec<&String> = taken.iter().filter(|(_, (times, _))| *times > 1).map(|(name, _)| name).collect();
    let first = sink.first_taken.lock();
    let age = |name: &&String| killed_at.saturating_duration_since(first[*name]);
    let oldest = twice.iter().map(age).max().unwrap_or_default();
    println!(
        "kill -9: {delivered} delivered before, {unsettled_items} not settled on disk, {} sent twice, the oldest of them {oldest:?} old",
        twice.len()
    );
    assert!(twice.len() as u64 <= unsettled_items, "{} were settled on disk and sent again", twice.len());
    assert!(oldest <= CHECKPOINT_MAX, "sent again {oldest:?} after it was delivered");
    assert!(twice.len() < delivered / 2, "{} of {delivered}", twice.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_larger_than_memory_drains_within_128_mib() {
    const REQUESTS: u64 = 256;
    let taken = Arc::new(AtomicU64::new(0));
    let refusing = Arc::new(AtomicBool::new(true));
    let (counted, refuse) = (Arc::clone(&taken), Arc::clone(&refusing));
    let take = move |body: Bytes| async move {
        if refuse.load(Ordering::SeqCst) {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        counted.fetch_add(body.len() as u64, Ordering::SeqCst);
        StatusCode::OK
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("address");
    let limit = axum::extract::DefaultBodyLimit::max(256 << 20);
    let router = axum::Router::new().route("/v1/traces", post(take)).layer(limit);
    tokio::spawn(async move { axum::serve(listener, router).await });
    let exporter =
        format!("{{endpoint: 'http://{address}', retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}}}");
    let setup = Setup::new("otlp_http", &exporter, "{memory: {limit: 64MiB}, queue: {max_size: 1GiB}}");
    let client = client();
    let forebay = setup.start(&client).await;
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let mut backlog = 0;
    for n in 0..REQUESTS {
        let body = Bytes::from(request(&[format!("{n:08}{}", "x".repeat(50_000))]));
        backlog += body.len() as u64;
        let sending = client.post(&url).header("content-type", "application/x-protobuf").body(body).send();
        assert!(sending.await.expect("answered").status().is_success());
    }
    forebay.kill();
    refusing.store(false, Ordering::SeqCst);
    let forebay = setup.start(&client).await;
    eventually("the backlog is delivered", async || taken.load(Ordering::SeqCst) >= backlog).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", forebay.pid())).expect("readable");
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    let peak_mib = peak.expect("a peak") >> 10;
    println!("drain: {} MiB of backlog, {peak_mib} MiB of memory at the most", backlog >> 20);
    assert!(backlog > 256 << 20 && peak_mib <= 128, "{peak_mib} MiB");
    assert_eq!(forebay.stop().await, 0);
}
