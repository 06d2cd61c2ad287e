//! What `forebay.dedup` and the processor `dedup` can be told, with the real binary.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use support::dedup::{names, rewrite, send, send_message, send_to, setup, setup_with};
use support::setup::Setup;
use support::{PATIENCE, Sink, client, eventually, free_ports, span, spans_message};

const PIPELINE: &str = "exporters: [otlp_http]}";

/// A destination that is not there: what is stored stays.
fn setup_to_nobody(forebay: &str) -> Setup {
    let [dead_port] = free_ports();
    setup_with(&format!("http://127.0.0.1:{dead_port}"), "", forebay)
}

/// A client of another address, as a replica of an agent would be.
fn client_at(last: u8) -> reqwest::Client {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    reqwest::Client::builder().timeout(PATIENCE).no_proxy().local_address(address).build().expect("client")
}

fn logs(times: &[u64]) -> Vec<u8> {
    let record =
        |time: &u64| LogRecord { time_unix_nano: *time, severity_text: "INFO".to_owned(), ..LogRecord::default() };
    let scope_logs = vec![ScopeLogs { log_records: times.iter().map(record).collect(), ..ScopeLogs::default() }];
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }
        .encode_to_vec()
}

fn metrics(times: &[u64]) -> Vec<u8> {
    let point = |time: &u64| NumberDataPoint { time_unix_nano: *time, ..NumberDataPoint::default() };
    let data = Some(Data::Gauge(Gauge { data_points: times.iter().map(point).collect() }));
    let metrics = vec![Metric { name: "load".to_owned(), data, ..Metric::default() }];
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }],
    }
    .encode_to_vec()
}

#[tokio::test]
async fn logs_and_metrics_that_opt_in_are_known_by_their_sender_and_only_with_times() {
    let setup = setup_to_nobody("{dedup: {requests: [traces, logs, metrics]}}");
    let traces = "traces: {receivers: [otlp], exporters: [otlp_http]}";
    let more =
        format!("{traces}\n    {}\n    {}", traces.replace("traces", "logs"), traces.replace("traces", "metrics"));
    rewrite(&setup, traces, &more);
    let (client, replica) = (client_at(1), client_at(2));
    let forebay = setup.start(&client).await;
    let stored = async |signal: &str| {
        setup.sample(&client, "forebay_queue_backlog_records", &format!("queue=\"{signal}\"")).await
    };
    for (signal, timed, untimed) in
        [("logs", logs(&[5, 6]), logs(&[5, 0])), ("metrics", metrics(&[5, 6]), metrics(&[5, 0]))]
    {
        let send = async |from: &reqwest::Client, message: &[u8]| send_to(&setup, from, signal, message.to_vec()).await;
        assert_eq!(send(&client, &timed).await, None, "{signal}");
        assert_eq!(send(&client, &timed).await, Some(2), "{signal}");
        // Two replicas may send the same bytes, and mean two things.
        assert_eq!(send(&replica, &timed).await, None, "{signal}");
        assert_eq!(send(&replica, &timed).await, Some(2), "{signal}");
        for _ in 0..2 {
            assert_eq!(send(&client, &untimed).await, None, "{signal}: one without a time exempts the request");
        }
        assert_eq!(stored(signal).await, Some(4.0), "{signal}");
    }
    // A trace is the same whoever brings it.
    assert_eq!(send(&setup, &client, &names(0..3)).await, None);
    assert_eq!(send(&setup, &replica, &names(0..3)).await, Some(3));
    assert_eq!(stored("traces").await, Some(1.0));
    forebay.kill();
}

#[tokio::test]
async fn by_default_neither_logs_nor_metrics_are_known() {
    let setup = setup_to_nobody("{}");
    let traces = "traces: {receivers: [otlp], exporters: [otlp_http]}";
    let more =
        format!("{traces}\n    {}\n    {}", traces.replace("traces", "logs"), traces.replace("traces", "metrics"));
    rewrite(&setup, traces, &more);
    let client = client();
    let forebay = setup.start(&client).await;
    for _ in 0..2 {
        assert_eq!(send_to(&setup, &client, "logs", logs(&[5])).await, None);
        assert_eq!(send_to(&setup, &client, "metrics", metrics(&[5])).await, None);
    }
    forebay.kill();
}

#[tokio::test]
async fn by_id_the_first_of_two_with_one_id_is_kept_whatever_they_hold() {
    let (sink, address) = Sink::start().await;
    let setup = setup(&format!("http://{address}"));
    rewrite(&setup, PIPELINE, &format!("processors: [dedup], {PIPELINE}\nprocessors: {{dedup: {{match: id}}}}"));
    let client = client();
    let forebay = setup.start(&client).await;
    let named = |name: &str| Span { name: name.to_owned(), ..span("twin") };
    assert_eq!(send_message(&setup, &client, spans_message(vec![named("pending")])).await, None);
    let rest = spans_message(vec![named("ended"), span("another")]);
    assert_eq!(send_message(&setup, &client, rest).await, Some(1));
    eventually("both are delivered", async || sink.taken.lock().contains_key("another")).await;
    assert_eq!(forebay.stop().await, 0);
    assert_eq!(sink.taken.lock().keys().collect::<Vec<_>>(), ["another", "pending"]);
}

#[tokio::test]
async fn after_the_window_the_same_request_is_stored_again_and_not_before() {
    let setup = setup_to_nobody("{dedup: {window: 2s}}");
    let client = client();
    let forebay = setup.start(&client).await;
    let window = "forebay_dedup_effective_window_seconds";
    let (mut known, mut first) = (0, Instant::now());
    for round in 0..3 {
        // Until it is stored; the repetitions before do not make it younger.
        eventually("it is stored again", async || {
            let asked = Instant::now();
            let seen = send(&setup, &client, &names(0..5)).await;
            known += u32::from(seen == Some(5));
            if seen.is_none() {
                assert!(round == 0 || first.elapsed() >= Duration::from_secs(2), "{:?}", first.elapsed());
                first = asked;
            }
            seen.is_none()
        })
        .await;
        assert_eq!(setup.sample(&client, window, "queue=\"traces\"").await, Some(2.0));
    }
    assert!(known > 1, "it was known in between");
    forebay.kill();
}

#[tokio::test]
async fn past_max_memory_the_oldest_may_come_again_and_the_effective_window_says_so() {
    let setup = setup_to_nobody("{dedup: {requests: []}}");
    let processor = "processors: {dedup: {window: 10m, max_memory_mib: 1}}";
    rewrite(&setup, PIPELINE, &format!("processors: [dedup], {PIPELINE}\n{processor}"));
    let client = client();
    let forebay = setup.start(&client).await;
    let label = "level=\"span\"";
    let sample = async |name: &str| setup.sample(&client, name, label).await.unwrap_or(-1.0);
    let batch = |number: u32| names(number * 1000..number * 1000 + 1000);
    assert_eq!(send(&setup, &client, &batch(0)).await, None);
    assert_eq!(send(&setup, &client, &batch(0)).await, Some(1000));
    assert_eq!(sample("forebay_dedup_effective_window_seconds").await, 600.0);
    // 1 MiB holds some 44,000 keys.
    let mut sent = 1;
    while sample("forebay_dedup_effective_window_seconds").await >= 600.0 {
        assert!(sent < 60, "the bound is passed by now");
        assert_eq!(send(&setup, &client, &batch(sent)).await, None);
        sent += 1;
    }
    for number in sent..sent + 60 {
        assert_eq!(send(&setup, &client, &batch(number)).await, None);
    }
    assert!(sample("forebay_dedup_memory_bytes").await <= 1_048_576.0);
    let keys = sample("forebay_dedup_keys").await;
    assert!((20_000.0..=48_000.0).contains(&keys), "{keys}");
    assert_eq!(send(&setup, &client, &batch(sent + 59)).await, Some(1000), "the newest is known");
    assert_eq!(send(&setup, &client, &batch(0)).await, None, "the oldest is stored again");
    forebay.kill();
}
