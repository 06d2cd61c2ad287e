//! The network between an exporter and its destination fails in every way, and heals: everything is delivered, only what
//! was in flight twice, and nobody waits longer than one attempt and the backoff's cap.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::ledger::{Ledger, check, drained, load};
use support::proxy::{FAULTS, Fault, Proxy};
use support::setup::Setup;
use support::{Sink, client, eventually};

/// Of one attempt, and the longest wait between two.
const TIMEOUT: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_millis(200);
/// For a busy machine. A silent connection that is used once more costs a second and up; the longest stall seen is 0.5 s.
const SLACK: Duration = Duration::from_secs(2);
const CONSUMERS: usize = 2;
const BATCH_SPANS_MAX: usize = 200;
/// Long enough for several attempts.
const FAULT_LASTS: Duration = Duration::from_millis(1500);

/// Loads `setup`, whose exporter reaches its destination through `proxy`; `sink` is where everything ends.
async fn suffer(setup: &Setup, proxy: &Proxy, sink: &Sink) {
    let client = client();
    let forebay = setup.start(&client).await;
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let loading = tokio::spawn(load(client.clone(), url, 10, Arc::clone(&ledger), Arc::clone(&stop)));
    let mut stalls = Vec::new();
    for fault in FAULTS {
        eventually("it flows", async || sink.arrived_since(Instant::now() - Duration::from_millis(100))).await;
        proxy.set(fault);
        tokio::time::sleep(FAULT_LASTS).await;
        proxy.set(Fault::None);
        let healed = Instant::now();
        eventually("it flows again", async || sink.arrived_since(healed)).await;
        stalls.push((fault, healed.elapsed()));
    }
    stop.store(true, Ordering::SeqCst);
    loading.await.expect("no panic");
    let waited = Instant::now();
    while !drained(&ledger, sink).await {
        let log = std::fs::read_to_string(setup.dir.path().join("log")).unwrap_or_default();
        assert!(waited.elapsed() < support::PATIENCE, "the rest is not delivered: {log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(forebay.stop().await, 0);
    let taken = sink.taken.lock();
    check(&ledger, &taken).expect("nothing is lost or changed");
    let twice = taken.values().filter(|(times, _)| *times > 1).count();
    println!("partitions: {} delivered, {twice} more than once, stalls {stalls:?}, met {:?}", taken.len(), proxy.met());
    assert!(twice <= FAULTS.len() * CONSUMERS * BATCH_SPANS_MAX, "{twice} more than what was in flight");
    assert!(taken.len() > 500);
    let log = std::fs::read_to_string(setup.dir.path().join("log")).unwrap_or_default();
    for (fault, stall) in stalls {
        assert!(stall <= TIMEOUT + BACKOFF_MAX + SLACK, "{stall:?} after {fault:?} was healed: {log}");
    }
    assert!(proxy.met().iter().all(|(_, count)| *count > 0), "{:?}", proxy.met());
}

fn exporter(address: SocketAddr) -> String {
    format!(
        "{{endpoint: 'http://{address}', timeout: {}ms, compression: none, \
         retry_on_failure: {{initial_interval: 20ms, max_interval: {}ms}}, \
         sending_queue: {{num_consumers: {CONSUMERS}, batch: {{flush_timeout: 5ms, min_size: 20, max_size: {BATCH_SPANS_MAX}}}}}}}",
        TIMEOUT.as_millis(),
        BACKOFF_MAX.as_millis()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_nothing_is_lost_or_stuck_when_the_network_fails_and_heals() {
    let (sink, address) = Sink::start().await;
    let proxy = Proxy::start(address).await;
    let setup = Setup::new("otlp_http", &exporter(proxy.address), "{}");
    suffer(&setup, &proxy, &sink).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc_nothing_is_lost_or_stuck_when_the_network_fails_and_heals() {
    // The destination is another forebay, which sends on to the sink.
    let (sink, address) = Sink::start().await;
    let gateway = Setup::new("otlp_http", &exporter(address), "{}");
    let text = std::fs::read_to_string(gateway.config()).expect("readable");
    let http = format!("{{http: {{endpoint: 127.0.0.1:{}}}}}", gateway.http_port);
    std::fs::write(gateway.config(), text.replace(&http, &http.replace("{http:", "{grpc:"))).expect("written");
    let _gateway = gateway.start(&client()).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], gateway.http_port))).await;
    let setup = Setup::new("otlp_grpc", &exporter(proxy.address), "{}");
    suffer(&setup, &proxy, &sink).await;
}
