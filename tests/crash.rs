//! kill -9 in a loop under load. The ledger of what was acknowledged is kept here, outside the victim.
//!
//! `FOREBAY_CRASH_KILLS` sets the number of kills (default 5), `FOREBAY_CRASH_SEED` repeats a run.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::ledger::{Ledger, check, drained, load};
use support::{Forebay, Sink, client, eventually, free_ports};

const CLIENTS: u64 = 4;
const SPANS_PER_REQUEST: u64 = 5;

struct Bench {
    _dir: tempfile::TempDir,
    config: PathBuf,
    data_dir: PathBuf,
    log: PathBuf,
    url: String,
    health_port: u16,
}

fn bench(sink_port: u16) -> Bench {
    let dir = tempfile::tempdir().expect("temporary directory");
    let [http_port, health_port] = free_ports();
    let config = dir.path().join("forebay.yaml");
    let text = format!(
        "receivers:\n  otlp:\n    protocols:\n      http:\n        endpoint: 127.0.0.1:{http_port}\n\
         exporters:\n  otlp_http:\n    endpoint: http://127.0.0.1:{sink_port}\n    timeout: 5s\n    \
         retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}\n    \
         sending_queue: {{num_consumers: 4, batch: {{flush_timeout: 5ms, min_size: 50, max_size: 200}}}}\n\
         extensions:\n  health_check:\n    endpoint: 127.0.0.1:{health_port}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    );
    std::fs::write(&config, text).expect("configuration written");
    Bench {
        config,
        data_dir: dir.path().join("data"),
        log: dir.path().join("forebay.log"),
        url: format!("http://127.0.0.1:{http_port}/v1/traces"),
        health_port,
        _dir: dir,
    }
}

impl Bench {
    fn start(&self) -> Forebay {
        Forebay::start(&self.config, &self.data_dir, self.health_port, &self.log)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_any_moment_loses_nothing_acknowledged() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills = variable("FOREBAY_CRASH_KILLS").unwrap_or(5);
    let seed = variable("FOREBAY_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {kills} kills");
    let mut random = fastrand::Rng::with_seed(seed);

    let (sink, address) = Sink::start().await;
    sink.fail_every.store(7, Ordering::SeqCst);
    let bench = bench(address.port());
    let client = client();
    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            tokio::spawn(load(
                client.clone(),
                bench.url.clone(),
                SPANS_PER_REQUEST,
                Arc::clone(&ledger),
                Arc::clone(&stop),
            ))
        })
        .collect();
    for _ in 0..kills {
        let mut forebay = bench.start();
        forebay.ready(&client).await;
        let before = ledger.acknowledged.lock().len();
        eventually("something is acknowledged", async || ledger.acknowledged.lock().len() > before).await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
        forebay.kill();
    }
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    stop.store(true, Ordering::SeqCst);
    for task in clients {
        task.await.expect("no panic");
    }
    // A thousand short lives leave much behind; what counts is that it goes on.
    while !drained(&ledger, &sink).await {
        let before = sink.taken.lock().len();
        eventually("more of what is acknowledged is delivered", async || {
            sink.taken.lock().len() > before || drained(&ledger, &sink).await
        })
        .await;
    }
    assert_eq!(forebay.stop().await, 0, "{}", bench.log());
    check(&ledger, &sink.taken.lock()).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", bench.log()));

    // Values that large sled would keep in files of their own, which nobody syncs.
    let blobs = std::fs::read_dir(bench.data_dir.join("catalog/blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0, "no row is too long for sled's log");
    let log = bench.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    let (acknowledged, delivered) = (ledger.acknowledged.lock().len(), sink.taken.lock().len());
    let duplicates: u64 = sink.taken.lock().values().map(|(times, _)| times - 1).sum();
    println!("{kills} kills: {acknowledged} acknowledged, {delivered} delivered, {duplicates} sent twice, 0 missing");
    assert!(acknowledged as u64 >= kills, "the run was no run: {acknowledged} acknowledged");
}

/// Removes what a disk that lies about its syncs would have lost.
fn lose_segments(data_dir: &Path) -> usize {
    let queue = data_dir.join("queues/traces");
    let mut lost = 0;
    for entry in std::fs::read_dir(queue).expect("the queue's directory") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            std::fs::remove_file(path).expect("removed");
            lost += 1;
        }
    }
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_harness_catches_a_disk_that_loses_what_was_synced() {
    // Nobody listens at the destination, so what is acknowledged is only in the queue.
    let [dead_port] = free_ports();
    let bench = bench(dead_port);
    let client = client();
    let ledger = Arc::new(Ledger::default());
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    let stop = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(
        client.clone(),
        bench.url.clone(),
        SPANS_PER_REQUEST,
        Arc::clone(&ledger),
        Arc::clone(&stop),
    ));
    eventually("something is acknowledged", async || ledger.acknowledged.lock().len() > 20).await;
    stop.store(true, Ordering::SeqCst);
    loading.await.expect("no panic");
    forebay.kill();
    assert!(lose_segments(&bench.data_dir) > 0);
    let (sink, address) = Sink::start().await;
    let text = std::fs::read_to_string(&bench.config).expect("readable");
    let text = text.replace(&format!("http://127.0.0.1:{dead_port}"), &format!("http://{address}"));
    std::fs::write(&bench.config, text).expect("written");
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    assert_eq!(forebay.stop().await, 0);
    let verdict = check(&ledger, &sink.taken.lock());
    assert!(verdict.is_err_and(|error| error.contains("acknowledged spans are missing")));
}
