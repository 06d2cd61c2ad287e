//! The whole process: linger, drain, a second signal, bad starts.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::{Forebay, Sink, client, eventually, free_ports, request};

struct Bench {
    dir: tempfile::TempDir,
    url: String,
    health_port: u16,
}

/// Writes a configuration with that shutdown and an exporter to `sink_port`.
fn bench(sink_port: u16, shutdown: &str) -> Bench {
    let dir = tempfile::tempdir().expect("temporary directory");
    let [http_port, health_port] = free_ports();
    let text = format!(
        "receivers:\n  otlp: {{protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}}}}}\n\
         exporters:\n  otlp_http:\n    endpoint: http://127.0.0.1:{sink_port}\n    \
         retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}\n    \
         sending_queue: {{batch: {{flush_timeout: 5ms}}}}\n\
         extensions:\n  health_check: {{endpoint: 127.0.0.1:{health_port}}}\n\
         forebay:\n  shutdown: {shutdown}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    );
    std::fs::write(dir.path().join("forebay.yaml"), text).expect("configuration written");
    Bench { dir, url: format!("http://127.0.0.1:{http_port}/v1/traces"), health_port }
}

impl Bench {
    fn start(&self) -> Forebay {
        let dir = self.dir.path();
        Forebay::start(&dir.join("forebay.yaml"), &dir.join("data"), self.health_port, &dir.join("log"))
    }

    async fn send(&self, client: &reqwest::Client, name: &str) -> bool {
        let body = request(&[name.to_owned()]);
        let sending = client.post(&self.url).header("content-type", "application/x-protobuf").body(body).send();
        sending.await.is_ok_and(|response| response.status().is_success())
    }
}

#[tokio::test]
async fn an_agent_that_flushes_two_seconds_after_sigterm_loses_nothing_with_linger() {
    let (sink, address) = Sink::start().await;
    let bench = bench(address.port(), "{linger: 5s, deadline: 20s}");
    let client = client();
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    assert!(bench.send(&client, "before").await);
    forebay.signal("-TERM");
    let readyz = format!("http://127.0.0.1:{}/readyz", bench.health_port);
    eventually("not ready any more", async || client.get(&readyz).send().await.is_ok_and(|r| r.status() == 503)).await;
    // The two seconds are what is tested: agent and sidecar get the signal together.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(bench.send(&client, "late").await, "receivers stay open");
    assert_eq!(forebay.stop_waiting().await, 0);
    let taken = sink.taken.lock();
    assert!(taken.contains_key("before") && taken.contains_key("late"), "drained before the end");
}

#[tokio::test]
async fn what_a_dead_destination_leaves_behind_is_kept_and_sent_after_the_next_start() {
    let [dead_port] = free_ports();
    let bench = bench(dead_port, "{deadline: 50s}");
    let client = client();
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    for n in 0..10 {
        assert!(bench.send(&client, &format!("span-{n}")).await);
    }
    let stopping = std::time::Instant::now();
    assert_eq!(forebay.stop().await, 0);
    assert!(stopping.elapsed() < Duration::from_secs(20), "a dead destination does not hold up the stop");
    let (sink, address) = Sink::start().await;
    let config = bench.dir.path().join("forebay.yaml");
    let text = std::fs::read_to_string(&config).expect("readable");
    std::fs::write(&config, text.replace(&dead_port.to_string(), &address.port().to_string())).expect("written");
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    eventually("all ten arrive", async || sink.taken.lock().len() == 10).await;
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test]
async fn a_second_signal_exits_at_once_and_loses_nothing() {
    let (sink, address) = Sink::start().await;
    sink.fail_every.store(1, Ordering::SeqCst);
    let bench = bench(address.port(), "{linger: 30s, deadline: 60s}");
    let client = client();
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    assert!(bench.send(&client, "one").await);
    forebay.signal("-TERM");
    let readyz = format!("http://127.0.0.1:{}/readyz", bench.health_port);
    eventually("stopping", async || client.get(&readyz).send().await.is_ok_and(|r| r.status() == 503)).await;
    forebay.signal("-INT");
    let mut code = None;
    eventually("it ends long before the linger", async || {
        code = forebay.has_exited();
        code.is_some()
    })
    .await;
    assert_eq!(code, Some(130));
    sink.fail_every.store(0, Ordering::SeqCst);
    let mut forebay = bench.start();
    forebay.ready(&client).await;
    eventually("it is delivered after the restart", async || sink.taken.lock().contains_key("one")).await;
    // Not stopped: that would linger for half a minute.
    forebay.kill();
}

/// Runs to its end, which must come by itself, and returns exit code and what it said.
fn run_to_end(config: &Path, data_dir: &Path) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["run", "--config"])
        .arg(config)
        .arg("--data-dir")
        .arg(data_dir)
        .stdin(Stdio::null())
        .output()
        .expect("forebay runs");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn bad_starts_name_the_object_and_the_remedy() {
    let (_sink, address) = Sink::start().await;
    let first = bench(address.port(), "{deadline: 10s}");
    let client = client();
    let mut forebay = first.start();
    forebay.ready(&client).await;

    // The same ports.
    let config = first.dir.path().join("forebay.yaml");
    let (code, said) = run_to_end(&config, &first.dir.path().join("other"));
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("extensions.health_check.endpoint") && said.contains("another process holds the port"),
        "{said}"
    );

    // The same data directory, other ports.
    let second = bench(address.port(), "{deadline: 10s}");
    let (code, said) = run_to_end(&second.dir.path().join("forebay.yaml"), &first.dir.path().join("data"));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("in use by another process") && said.contains(&forebay.pid().to_string()), "{said}");

    // A file where the directory should be.
    let third = bench(address.port(), "{deadline: 10s}");
    let file = third.dir.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let (code, said) = run_to_end(&third.dir.path().join("forebay.yaml"), &file);
    assert!(code == 1 && said.contains("file") && said.contains("--data-dir"), "{said}");

    // No such configuration.
    let (code, said) = run_to_end(Path::new("/nonexistent/forebay.yaml"), &file);
    assert!(code == 78 && said.contains("/nonexistent/forebay.yaml"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test]
async fn the_running_process_takes_no_huge_pages() {
    let [dead_port] = free_ports();
    let bench = bench(dead_port, "{}");
    let mut forebay = bench.start();
    forebay.ready(&client()).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", forebay.pid())).expect("its status");
    assert!(status.lines().any(|line| line.split_whitespace().eq(["THP_enabled:", "0"])), "{status}");
    assert_eq!(forebay.stop().await, 0);
}

/// A port that the kernel gave away between a choice and a start, or while a process was down, failed a run of these tests.
#[test]
fn a_port_is_given_out_once_and_never_by_the_kernel() {
    let mut given: Vec<u16> = (0..100).flat_map(|_| free_ports::<3>()).collect();
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("the kernel's range");
    let lowest: u16 = range.split_whitespace().next().and_then(|port| port.parse().ok()).expect("a port");
    assert!(given.iter().all(|port| *port < lowest), "{range}");
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 300);
}

#[tokio::test]
#[should_panic(expected = "instead of getting ready")]
async fn a_start_that_fails_is_told_from_a_slow_one() {
    let [dead_port] = free_ports();
    let bench = bench(dead_port, "{}");
    std::fs::write(bench.dir.path().join("forebay.yaml"), "receivers: 7").expect("configuration written");
    bench.start().ready(&client()).await;
}
