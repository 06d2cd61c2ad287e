//! Who is ill, the batch or the destination, with the real binary and real answers.

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use support::dlq::{letters, stdout};
use support::setup::Setup;
use support::{Forebay, Sink, client, eventually, request};

const POISON: &str = "poison";
const RETRY: &str = "retry_on_failure: {initial_interval: 20ms, max_interval: 100ms}";

struct Scene {
    sink: Arc<Sink>,
    setup: Setup,
    client: reqwest::Client,
    forebay: Forebay,
}

/// `settings`: of the exporter, under `forebay.exporters`.
async fn scene(settings: &str) -> Scene {
    let (sink, address) = Sink::start().await;
    *sink.poison.lock() = POISON.to_owned();
    // One batch of whatever comes within a second: requests to the sink can be counted.
    let exporter = format!(
        "{{endpoint: 'http://{address}', compression: none, {RETRY}, \
         sending_queue: {{num_consumers: 1, batch: {{flush_timeout: 1s, min_size: 1000}}}}}}"
    );
    let setup = Setup::new("otlp_http", &exporter, &format!("{{exporters: {{otlp_http: {settings}}}}}"));
    let client = client();
    let forebay = setup.start(&client).await;
    Scene { sink, setup, client, forebay }
}

impl Scene {
    async fn post(&self, names: &[String]) {
        let url = format!("http://127.0.0.1:{}/v1/traces", self.setup.http_port);
        let request = self.client.post(url).header("content-type", "application/x-protobuf").body(request(names));
        assert!(request.send().await.expect("answered").status().is_success());
    }

    fn data_dir(&self) -> std::path::PathBuf {
        self.setup.dir.path().join("data")
    }

    async fn held_ranges(&self) -> Option<f64> {
        self.setup.sample(&self.client, "forebay_exporter_held_ranges", "otlp_http").await
    }

    async fn delivered(&self, names: &[String]) {
        eventually("what is good is delivered", async || {
            let taken = self.sink.taken.lock();
            names.iter().filter(|name| !name.starts_with(POISON)).all(|name| taken.contains_key(name))
        })
        .await;
    }

    fn retry_held(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["queue", "retry", "--data-dir"]).arg(self.data_dir()).env_remove("FOREBAY_DATA_DIR");
        stdout(&command.output().expect("forebay runs"));
    }

    async fn stop(self) {
        assert_eq!(self.forebay.stop().await, 0);
    }
}

/// `count` names, every `every`-th of them poison.
fn names(count: usize, every: usize) -> Vec<String> {
    let name = |n: usize| if n % every == every - 1 { format!("{POISON}-{n}") } else { format!("good-{n}") };
    (0..count).map(name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_poison_spans_among_a_thousand_cost_no_more_requests_than_the_bound_and_no_other_span() {
    let scene = scene("{}").await;
    let names = names(1000, 100);
    scene.post(&names).await;
    scene.delivered(&names).await;
    eventually("the poison is parked", async || letters(&scene.data_dir()).len() == 10).await;
    assert!(scene.sink.taken.lock().values().all(|(times, _)| *times == 1), "each once");
    let requests = scene.sink.requests.load(Ordering::SeqCst) as f64;
    let bound = 2.0 * 10.0 * ((1000.0_f64 / 10.0).log2() + 1.0) + 1.0;
    assert!(requests <= bound, "{requests} requests, at most {bound}");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_refuses_everything_is_recognised_and_gets_everything_once_it_is_well() {
    for status in [400, 413] {
        let scene = scene("{}").await;
        scene.sink.refuse_with.store(status, Ordering::SeqCst);
        let names = names(1000, usize::MAX);
        for chunk in names.chunks(20) {
            scene.post(chunk).await;
        }
        eventually("it is held", async || scene.held_ranges().await.is_some_and(|ranges| ranges >= 1.0)).await;
        let requests = scene.sink.requests.load(Ordering::SeqCst);
        assert!(requests <= 80, "{status}: {requests} requests to find out");
        assert!(letters(&scene.data_dir()).is_empty(), "{status}: nothing is proven");
        scene.sink.refuse_with.store(0, Ordering::SeqCst);
        scene.retry_held();
        scene.delivered(&names).await;
        assert!(letters(&scene.data_dir()).is_empty(), "{status}");
        scene.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_poison_is_held_and_parked_once_the_backend_has_taken_something_else() {
    let scene = scene("{}").await;
    scene.post(&[format!("{POISON}-1")]).await;
    eventually("it is held", async || scene.held_ranges().await == Some(1.0)).await;
    assert!(letters(&scene.data_dir()).is_empty());
    scene.post(&["good-1".to_owned()]).await;
    scene.delivered(&["good-1".to_owned()]).await;
    scene.retry_held();
    eventually("it is parked", async || letters(&scene.data_dir()).len() == 1).await;
    eventually("nothing is held", async || scene.held_ranges().await == Some(0.0)).await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_policy_says_whose_illness_a_status_is() {
    // 500 about the batch: the poison stands alone. 400 about the destination: everything waits for it.
    let scene = scene("{status_policy: {http: {500: batch, 400: destination}}}").await;
    scene.sink.poison_status.store(500, Ordering::SeqCst);
    let first = names(100, 100);
    scene.post(&first).await;
    scene.delivered(&first).await;
    eventually("the poison is parked", async || letters(&scene.data_dir()).len() == 1).await;
    scene.sink.poison_status.store(400, Ordering::SeqCst);
    let second: Vec<String> = names(100, 100).iter().map(|name| format!("{name}-again")).collect();
    scene.post(&second).await;
    let before = scene.sink.requests.load(Ordering::SeqCst);
    eventually("it is tried again and again", async || scene.sink.requests.load(Ordering::SeqCst) >= before + 10).await;
    assert!(!scene.sink.taken.lock().contains_key(&second[0]), "never split");
    assert_eq!(letters(&scene.data_dir()).len(), 1);
    scene.sink.poison.lock().clear();
    scene.delivered(&second).await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_larger_than_configured_whatever_comes_in() {
    let scene = scene("{max_request_bytes: 50000}").await;
    // One request of about 700 kB, and a hundred small ones.
    let names = names(3000, usize::MAX);
    let (large, small) = names.split_at(2500);
    scene.post(large).await;
    for chunk in small.chunks(5) {
        scene.post(chunk).await;
    }
    scene.delivered(&names).await;
    let most = scene.sink.bytes_most.load(Ordering::SeqCst);
    assert!((25_000..=50_000).contains(&most), "{most}");
    assert!(scene.sink.taken.lock().values().all(|(times, _)| *times == 1), "each once");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_requests_that_are_too_large_together_are_delivered_in_few_requests() {
    let scene = scene("{}").await;
    scene.sink.request_bytes_max.store(10_000, Ordering::SeqCst);
    let names = names(100, usize::MAX);
    // About 250 bytes each: far below what a refusal for size teaches at the least.
    for name in &names {
        scene.post(std::slice::from_ref(name)).await;
    }
    scene.delivered(&names).await;
    let requests = scene.sink.requests.load(Ordering::SeqCst);
    assert!(requests <= 24, "{requests} requests");
    assert!(letters(&scene.data_dir()).is_empty());
    scene.stop().await;
}

/// The next hop is another forebay that takes 1 MiB: RESOURCE_EXHAUSTED without RetryInfo, of a real gRPC server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc_what_is_too_large_goes_in_parts_and_a_giant_is_parked_alone() {
    let (sink, address) = Sink::start().await;
    let gateway = Setup::new("otlp_http", &format!("{{endpoint: 'http://{address}'}}"), "{}");
    let text = std::fs::read_to_string(gateway.config()).expect("readable");
    let http = format!("{{http: {{endpoint: 127.0.0.1:{}}}}}", gateway.http_port);
    let grpc = format!("{{grpc: {{endpoint: 127.0.0.1:{}, max_recv_msg_size_mib: 1}}}}", gateway.http_port);
    std::fs::write(gateway.config(), text.replace(&http, &grpc)).expect("written");
    let client = client();
    let _gateway = gateway.start(&client).await;
    let exporter = format!("{{endpoint: 'http://127.0.0.1:{}', tls: {{insecure: true}}, {RETRY}}}", gateway.http_port);
    let setup = Setup::new("otlp_grpc", &exporter, "{}");
    let forebay = setup.start(&client).await;
    let scene = Scene { sink, setup, client, forebay };
    let mut names = names(10_000, usize::MAX);
    // A span holds its name twenty times: 2 MB.
    names.insert(5000, "giant".repeat(20_000));
    scene.post(&names).await;
    names.remove(5000);
    scene.delivered(&names).await;
    eventually("the giant is parked", async || letters(&scene.data_dir()).len() == 1).await;
    let letter = &letters(&scene.data_dir())[0];
    assert_eq!((&letter["reason"], &letter["items"]), (&"too_large".into(), &1.into()), "{letter}");
    assert!(letter["status"].as_str().is_some_and(|status| status.contains("RESOURCE_EXHAUSTED")), "{letter}");
    assert!(scene.sink.taken.lock().values().all(|(times, _)| *times == 1), "each once");
    scene.stop().await;
}
