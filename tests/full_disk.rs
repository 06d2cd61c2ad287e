//! The whole process on a file system of 64 MiB that its own backlog fills, and then others fill to the last byte.
//!
//! Needs a mount namespace of its own (root, or user namespaces); says SKIPPED where that is not permitted.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay::exporters::{self, Batch, Class, Exporter, Outcome, RemoteStatus, otlp_grpc};
use forebay::otlp::{Encoding, Signal};
use reqwest::StatusCode;
use support::ledger::{Ledger, check, drained, load};
use support::{Forebay, Sink, client, eventually, free_ports, request};

const DISK_MIB: u64 = 64;
const CLIENTS: u64 = 4;
const SPANS_PER_REQUEST: u64 = 200;

/// `unshare` with what this machine permits, up to the command; None where nothing is permitted.
fn namespace() -> Option<Vec<&'static str>> {
    let ways = [vec!["unshare", "--mount"], vec!["unshare", "--user", "--map-root-user", "--mount"]];
    ways.into_iter().find(|way| {
        let status = Command::new(way[0])
            .args(&way[1..])
            .args(["mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"])
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    })
}

struct Bench {
    dir: tempfile::TempDir,
    url: String,
    grpc_port: u16,
    health_port: u16,
    metrics_port: u16,
    forebay: Forebay,
}

/// Becomes the process.
const ONCE: &str = "exec \"$@\"";
/// Starts it, and once more when it has died and somebody says so: the file system stays.
const TWICE: &str = "\"$@\"; : > \"$0.died\"; while [ ! -e \"$0.again\" ]; do sleep 0.05; done; exec \"$@\"";

/// A process whose data directory is on a tmpfs that nobody else sees and that goes with it.
fn bench(namespace: &[&str], sink_port: u16, max_size_mib: u64, starts: &str) -> Bench {
    let dir = tempfile::tempdir().expect("temporary directory");
    let [http_port, grpc_port, health_port, metrics_port] = free_ports();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).expect("the mount point");
    let config = dir.path().join("forebay.yaml");
    let text = format!(
        "forebay: {{queue: {{max_size: {max_size_mib}MiB}}}}\n\
         receivers:\n  otlp:\n    protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}, grpc: {{endpoint: 127.0.0.1:{grpc_port}}}}}\n\
         exporters:\n  otlp_http:\n    endpoint: http://127.0.0.1:{sink_port}\n    timeout: 5s\n    \
         retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}\n    \
         sending_queue: {{num_consumers: 4}}\n\
         extensions:\n  health_check:\n    endpoint: 127.0.0.1:{health_port}\n\
         service:\n  extensions: [health_check]\n  \
         telemetry: {{metrics: {{address: 127.0.0.1:{metrics_port}}}, logs: {{level: warn}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    );
    std::fs::write(&config, text).expect("configuration written");
    let script = format!("mount -t tmpfs -o size={DISK_MIB}m none \"$0\" && {starts}");
    let mount_point = disk.display().to_string();
    let wrapper = [namespace, &["sh", "-c", &script, &mount_point]].concat();
    let forebay =
        Forebay::start_under(&wrapper, &config, &disk.join("data"), health_port, &dir.path().join("forebay.log"));
    let url = format!("http://127.0.0.1:{http_port}/v1/traces");
    Bench { dir, url, grpc_port, health_port, metrics_port, forebay }
}

impl Bench {
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("forebay.log")).unwrap_or_default()
    }

    /// The disk, as the process sees it.
    fn disk(&self) -> PathBuf {
        let path = self.dir.path().join("disk");
        Path::new("/proc")
            .join(self.forebay.pid().to_string())
            .join("root")
            .join(path.strip_prefix("/").unwrap_or(&path))
    }

    fn available_bytes(&self) -> u64 {
        let stat = rustix::fs::statfs(self.disk()).expect("statfs");
        stat.f_bavail * stat.f_bsize as u64
    }

    async fn ready(&self, client: &reqwest::Client, query: &str) -> (StatusCode, String) {
        let url = format!("http://127.0.0.1:{}/readyz{query}", self.health_port);
        let response = client.get(url).send().await.expect("answered");
        (response.status(), response.text().await.expect("a body"))
    }

    /// The counters of failed operations, as the metrics page has them.
    async fn storage_failures(&self, client: &reqwest::Client) -> Vec<String> {
        let url = format!("http://127.0.0.1:{}/metrics", self.metrics_port);
        let page = client.get(url).send().await.expect("answered").text().await.expect("a body");
        assert!(page.contains("forebay_storage_synced_records"), "the page has storage's counters:\n{page}");
        page.lines().filter(|line| line.starts_with("forebay_storage_failures")).map(str::to_owned).collect()
    }

    async fn grpc(&self, names: &[String]) -> Outcome {
        let settings = otlp_grpc::Settings {
            endpoint: Some(format!("http://127.0.0.1:{}", self.grpc_port)),
            compression: exporters::remote::Compression::Always(Encoding::Identity),
            timeout: Duration::from_secs(10),
            ..otlp_grpc::Settings::default()
        };
        let exporter = otlp_grpc::build(&settings).expect("built");
        let payload = Bytes::from(request(names));
        exporter.export(Batch { signal: Signal::Traces, items: 1, payload: payload.into(), metadata: Vec::new() }).await
    }
}

/// Takes whatever space there is, again and again, until told to give it back.
fn fill(path: PathBuf, stop: Arc<AtomicBool>) -> std::io::Result<u64> {
    let mut file = std::fs::File::create(&path)?;
    let chunk = vec![1; 4096];
    let mut taken = 0;
    while !stop.load(Ordering::SeqCst) {
        match file.write(&chunk) {
            Ok(written) => taken += written as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    }
    drop(file);
    std::fs::remove_file(path)?;
    Ok(taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_before_the_first_failed_write_drains_and_recovers_without_a_restart() {
    let Some(namespace) = namespace() else {
        println!("full disk: SKIPPED, a mount namespace is not permitted here");
        return;
    };
    let (sink, address) = Sink::start().await;
    sink.fail_every.store(1, Ordering::SeqCst);
    let mut bench = bench(&namespace, address.port(), 60, ONCE);
    let client = client();
    bench.forebay.ready(&client).await;
    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (url, ledger, stop) = (bench.url.clone(), Arc::clone(&ledger), Arc::clone(&stop));
            tokio::spawn(load(client.clone(), url, SPANS_PER_REQUEST, ledger, stop))
        })
        .collect();

    // The backlog fills the disk to its watermark.
    let mut refusal = String::new();
    eventually("intake says that it is full", async || {
        let (status, body) = bench.ready(&client, "?capacity=1").await;
        refusal = body;
        status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    assert!(refusal.contains("must stay free"), "{refusal}");
    assert_eq!(bench.ready(&client, "").await.0, StatusCode::OK, "back-pressure is no illness");
    eventually("HTTP is refused", async || {
        let extra = request(&["never-acknowledged".to_owned()]).repeat(1000);
        let sending = client.post(&bench.url).header("content-type", "application/x-protobuf").body(extra).send();
        let response = sending.await.expect("answered");
        // The segment in use may still have room for one.
        let refused = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        if refused {
            let seconds = response.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds");
            assert!(seconds >= 1);
        } else {
            assert!(response.status().is_success(), "{}", response.status());
        }
        ledger.sent.lock().insert("never-acknowledged".to_owned());
        refused
    })
    .await;
    let large: Vec<String> = (0..2000).map(|n| format!("grpc-{n}")).collect();
    ledger.sent.lock().extend(large.iter().cloned());
    let Outcome::Failed(failure) = bench.grpc(&large).await else { panic!("accepted on a full disk") };
    assert_eq!((failure.status, failure.class), (Some(RemoteStatus::Grpc(14)), Class::Retryable));
    assert!(failure.retry_after.is_some_and(|after| after >= Duration::from_secs(1)), "{failure:?}");
    let failures = bench.storage_failures(&client).await;
    assert!(failures.is_empty(), "refused before a write failed: {failures:?}\n{}", bench.log());
    let page = client.get(format!("http://127.0.0.1:{}/metrics", bench.metrics_port)).send().await.expect("answered");
    let page = page.text().await.expect("a body");
    assert!(page.lines().any(|line| line == "forebay_storage_time_to_full_seconds 0"), "{page}");
    assert!(page.contains("forebay_storage_damaged_records{queue=\"traces\"} 0"), "{page}");
    assert!(bench.log().contains("more than the file system can ever hold"), "{}", bench.log());
    let free_at_watermark = bench.available_bytes();
    assert!(free_at_watermark >= DISK_MIB * 15 / 100 * 1_000_000, "{free_at_watermark} bytes are left to others");

    // Others take the rest, and whatever is given back; the destination returns.
    let give_back = Arc::new(AtomicBool::new(false));
    let filling = {
        let (path, give_back) = (bench.disk().join("others"), Arc::clone(&give_back));
        std::thread::spawn(move || fill(path, give_back))
    };
    eventually("not a byte is free", async || bench.available_bytes() == 0).await;
    let acknowledged_full = ledger.acknowledged.lock().len();
    assert!(acknowledged_full > 10_000, "the run was no run: {acknowledged_full} acknowledged");
    sink.fail_every.store(0, Ordering::SeqCst);
    eventually("the backlog drains on a full disk", async || drained(&ledger, &sink).await).await;

    // The space returns, and with it the intake of the same process.
    give_back.store(true, Ordering::SeqCst);
    let taken = filling.join().expect("no panic").expect("filled and removed");
    let before = ledger.acknowledged.lock().len();
    let enough = before + 5000;
    eventually("intake returns by itself", async || ledger.acknowledged.lock().len() > enough).await;
    assert_eq!(bench.ready(&client, "").await.0, StatusCode::OK);
    stop.store(true, Ordering::SeqCst);
    for task in clients {
        task.await.expect("no panic");
    }
    eventually("everything acknowledged is delivered", async || drained(&ledger, &sink).await).await;
    let failures = bench.storage_failures(&client).await;
    let log = bench.log();
    assert_eq!(bench.forebay.stop().await, 0, "{log}");
    check(&ledger, &sink.taken.lock()).unwrap_or_else(|error| panic!("{error}\n{log}"));
    assert!(!log.contains("panicked"), "{log}");
    println!(
        "full disk: {} acknowledged ({acknowledged_full} when full), {free_at_watermark} bytes free at the watermark, \
         {taken} taken by others, then failed {failures:?}, 0 missing",
        ledger.acknowledged.lock().len()
    );
}

/// Before, it did not start: "failed to open the catalogue: No space left on device", and the ballast lay beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_with_a_backlog_starts_on_a_full_disk_with_the_ballasts_room_drains_and_takes_it_again() {
    let Some(namespace) = namespace() else {
        println!("full disk: SKIPPED, a mount namespace is not permitted here");
        return;
    };
    let (sink, address) = Sink::start().await;
    sink.fail_every.store(1, Ordering::SeqCst);
    let mut bench = bench(&namespace, address.port(), 60, TWICE);
    let client = client();
    bench.forebay.ready(&client).await;
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let loading = tokio::spawn(load(
        client.clone(),
        bench.url.clone(),
        SPANS_PER_REQUEST,
        Arc::clone(&ledger),
        Arc::clone(&stop),
    ));
    eventually("there is a backlog", async || ledger.acknowledged.lock().len() > 20_000).await;
    let data = bench.disk().join("data");
    let pid: i32 = std::fs::read_to_string(data.join("LOCK")).expect("read").trim().parse().expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let beside = |suffix: &str| bench.dir.path().join(format!("disk.{suffix}"));
    eventually("it is dead", async || beside("died").exists()).await;
    stop.store(true, Ordering::SeqCst);
    loading.await.expect("no panic");
    assert!(data.join("ballast").exists());
    let others = bench.disk().join("others");
    let mut file = std::fs::File::create(&others).expect("created");
    let error = std::iter::repeat_with(|| file.write(&[1; 4096])).find_map(Result::err).expect("it ends");
    assert_eq!((error.kind(), bench.available_bytes()), (std::io::ErrorKind::StorageFull, 0));
    drop(file);

    std::fs::write(beside("again"), b"").expect("written");
    eventually("it is ready", async || {
        let asked = client.get(format!("http://127.0.0.1:{}/readyz", bench.health_port)).send().await;
        asked.is_ok_and(|answer| answer.status() == StatusCode::OK)
    })
    .await;
    assert!(bench.log().contains("the ballast's room is used"), "{}", bench.log());
    sink.fail_every.store(0, Ordering::SeqCst);
    eventually("the backlog drains on a full disk", async || drained(&ledger, &sink).await).await;
    std::fs::remove_file(others).expect("removed");
    eventually("the ballast is there again", async || data.join("ballast").exists()).await;
    let log = bench.log();
    assert_eq!(bench.forebay.stop().await, 0, "{log}");
    check(&ledger, &sink.taken.lock()).unwrap_or_else(|error| panic!("{error}\n{log}"));
    assert!(!log.contains("panicked"), "{log}");
    println!("start on a full disk: {} acknowledged, 0 missing", ledger.acknowledged.lock().len());
}

/// Blocks of all files below, in bytes.
fn allocated_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |path: PathBuf| match std::fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => allocated_bytes(&path),
        Ok(metadata) => metadata.blocks() * 512,
        // The log removes files while we look.
        Err(_) => 0,
    };
    entries.flatten().map(|entry| size(entry.path())).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cap_holds_to_within_one_segment_with_everything_in_the_data_directory() {
    const MAX_SIZE_MIB: u64 = 40;
    const SEGMENT_BYTES: u64 = 4 << 20;
    let Some(namespace) = namespace() else {
        println!("cap: SKIPPED, a mount namespace is not permitted here");
        return;
    };
    let (sink, address) = Sink::start().await;
    sink.fail_every.store(1, Ordering::SeqCst);
    let mut bench = bench(&namespace, address.port(), MAX_SIZE_MIB, ONCE);
    let client = client();
    bench.forebay.ready(&client).await;
    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(
        client.clone(),
        bench.url.clone(),
        20 * SPANS_PER_REQUEST,
        Arc::clone(&ledger),
        Arc::clone(&stop),
    ));
    let (mut refusal, mut most, mut attempts) = (String::new(), 0, 0);
    eventually("a request like the others is refused", async || {
        most = most.max(allocated_bytes(&bench.disk()));
        attempts += 1;
        let names: Vec<String> = (0..20 * SPANS_PER_REQUEST).map(|n| format!("extra-{attempts}-{n}")).collect();
        ledger.sent.lock().extend(names.iter().cloned());
        let sending = client.post(&bench.url).header("content-type", "application/x-protobuf").body(request(&names));
        let response = sending.send().await.expect("answered");
        if response.status().is_success() {
            ledger.acknowledged.lock().extend(names);
            return false;
        }
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        refusal = String::from_utf8_lossy(&response.bytes().await.expect("a body")).into_owned();
        true
    })
    .await;
    assert!(refusal.contains("the queue is at its cap"), "{refusal}");
    most = most.max(allocated_bytes(&bench.disk()));
    let cap = MAX_SIZE_MIB << 20;
    assert!(most <= cap + SEGMENT_BYTES, "{most} bytes are allocated, {cap} is the cap");
    assert!(most >= cap - 2 * SEGMENT_BYTES, "{most} bytes: the run was no run");
    sink.fail_every.store(0, Ordering::SeqCst);
    stop.store(true, Ordering::SeqCst);
    loading.await.expect("no panic");
    eventually("everything acknowledged is delivered", async || drained(&ledger, &sink).await).await;
    let log = bench.log();
    assert_eq!(bench.forebay.stop().await, 0, "{log}");
    println!("cap: {most} bytes allocated at the most, {cap} is the cap, a segment has {SEGMENT_BYTES}");
}
