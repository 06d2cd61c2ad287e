//! The receivers on the wire: every rule of the OTLP specification that a client can see.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay::exporters::{self, Batch, Class, Exporter, Outcome, RemoteStatus, otlp_grpc};
use forebay::otlp::{Encoding, Signal, compression};
use forebay::queue::{Budget, Router};
use forebay::receivers::otlp::{self, GrpcSettings, HttpSettings, Settings};
use forebay::settings::Secret;
use forebay::storage::log::Observer;
use forebay::storage::{Options, RealDisk, StartAt, Store};
use prost::Message;
use reqwest::{Response, StatusCode};
use support::{client, eventually, request};
use tokio_util::sync::CancellationToken;

const LIMIT_BYTES: u64 = 1 << 20;
const MEMORY_BYTES: u64 = 3 << 20;
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// A gauge with one data point.
const ONE_METRIC: &[u8] = &[10, 10, 18, 8, 18, 6, 42, 4, 10, 2, 64, 0];
const ONE_METRIC_JSON: &str = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{}]}}]}]}]}"#;

struct Unobserved;
impl Observer for Unobserved {}

/// A receiver with traces and logs (but no metrics) pipelines over a real store.
struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    http: SocketAddr,
    grpc: SocketAddr,
    budget: Budget,
    end: CancellationToken,
    client: reqwest::Client,
}

async fn bench() -> Bench {
    bench_with(None).await
}

async fn bench_with(max_size_bytes: Option<u64>) -> Bench {
    bench_of(max_size_bytes, otlp::Encodings::default()).await
}

async fn bench_of(max_size_bytes: Option<u64>, encodings: otlp::Encodings) -> Bench {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path(), max_size_bytes);
    let mut router = Router::new();
    for signal in [Signal::Traces, Signal::Logs] {
        let cursors = [("x".to_owned(), StartAt::Beginning)];
        router.add(signal, store.queue(signal.name(), &cursors).expect("queue"));
    }
    let endpoint = "127.0.0.1:0".to_owned();
    let settings = Settings {
        grpc: Some(GrpcSettings {
            endpoint: endpoint.clone(),
            request_bytes_max: LIMIT_BYTES,
            ..GrpcSettings::default()
        }),
        http: Some(HttpSettings {
            endpoint,
            request_bytes_max: LIMIT_BYTES,
            read_timeout: Duration::from_millis(300),
            encodings,
            ..HttpSettings::default()
        }),
    };
    let bound = otlp::bind("otlp", settings).await.expect("bound");
    let (http, grpc) = (bound.http_addresses()[0], bound.grpc_addresses()[0]);
    let budget = Budget::new(MEMORY_BYTES);
    let end = CancellationToken::new();
    tokio::spawn(bound.serve(Arc::new(router), budget.clone(), None, end.clone()));
    Bench { _dir: dir, store, http, grpc, budget, end, client: client() }
}

fn open(dir: &Path, max_size_bytes: Option<u64>) -> Store {
    let options = Options { max_size_bytes, segment_bytes: Some(256 << 10), tail_bytes_max: 0, ..Options::default() };
    Store::open(Arc::new(RealDisk), dir, &options, Arc::new(Unobserved)).expect("opens").0
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Bench {
    fn stored(&self) -> u64 {
        self.store.queues().iter().map(|log| log.durable_end()).sum()
    }

    async fn post(&self, path: &str, content_type: &str, encoding: Option<&str>, body: impl Into<Bytes>) -> Response {
        let mut request = self
            .client
            .post(format!("http://{}{path}", self.http))
            .header("content-type", content_type)
            .body(body.into());
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        request.send().await.expect("answered")
    }

    fn grpc(&self, compression: &str) -> impl Exporter {
        let compression = match compression {
            "gzip" => exporters::remote::Compression::Always(Encoding::Gzip),
            "zstd" => exporters::remote::Compression::Always(Encoding::Zstd),
            _ => exporters::remote::Compression::Always(Encoding::Identity),
        };
        let settings = otlp_grpc::Settings {
            endpoint: Some(format!("http://{}", self.grpc)),
            compression,
            timeout: Duration::from_secs(10),
            headers: vec![("x-test".to_owned(), Secret("1".to_owned()))],
            ..otlp_grpc::Settings::default()
        };
        otlp_grpc::build(&settings).expect("built")
    }
}

fn one_span() -> Vec<u8> {
    request(&["one".to_owned()])
}

fn traces(payload: Vec<u8>) -> Batch {
    Batch { signal: Signal::Traces, items: 1, payload: Bytes::from(payload).into(), metadata: Vec::new() }
}

/// The message of the `google.rpc.Status` that every error's body is.
async fn status_message(response: Response) -> String {
    let is_json = response.headers()["content-type"] == JSON;
    let body = response.bytes().await.expect("body");
    if is_json {
        let value: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert!(value["code"].is_i64());
        value["message"].as_str().expect("a message").to_owned()
    } else {
        let status = tonic_types::Status::decode(body).expect("a google.rpc.Status");
        assert!(status.code > 0);
        status.message
    }
}

#[tokio::test]
async fn http_takes_protobuf_and_json_compressed_or_not_and_answers_in_kind() {
    let bench = bench().await;
    let protobuf = Bytes::from(one_span());
    let json = Bytes::from_static(br#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"x"}]}]}]}"#);
    let mut sent = 0;
    let with_charset = "application/json; charset=utf-8";
    for (content_type, body) in [(PROTOBUF, protobuf), (JSON, json.clone()), (with_charset, json)] {
        for (name, encoding) in
            [(None, Encoding::Identity), (Some("gzip"), Encoding::Gzip), (Some("zstd"), Encoding::Zstd)]
        {
            let packed = compression::compress(encoding, &body).expect("compressed");
            let response = bench.post("/v1/traces", content_type, name, packed).await;
            assert_eq!(response.status(), StatusCode::OK, "{content_type} {name:?}");
            assert_eq!(response.headers()["content-type"], content_type.split(';').next().expect("a part"));
            let answer = response.bytes().await.expect("body");
            assert!(answer.is_empty() || &answer[..] == b"{}", "partial_success is not set");
            sent += 1;
        }
    }
    assert_eq!(bench.stored(), sent);
    eventually("all memory comes back", async || bench.budget.used_bytes() == 0).await;
}

#[tokio::test]
async fn an_empty_request_succeeds_and_is_not_stored() {
    let bench = bench().await;
    for (content_type, body) in [(PROTOBUF, ""), (JSON, "{}"), (JSON, "{\"resourceSpans\":[]}")] {
        assert_eq!(bench.post("/v1/traces", content_type, None, body).await.status(), StatusCode::OK);
    }
    assert!(matches!(bench.grpc("none").export(traces(Vec::new())).await, Outcome::Delivered));
    assert_eq!(bench.stored(), 0);
}

#[tokio::test]
async fn compression_algorithms_are_the_only_ones_that_are_taken() {
    let text = "protocols: {http: {compression_algorithms: [zstd, deflate]}}";
    let node = forebay::config::yaml::parse(text).expect("YAML");
    let settings = forebay::settings::read(&node, Settings::read).expect("valid");
    let bench = bench_of(None, settings.http.expect("on").encodings).await;
    let body = Bytes::from(one_span());
    let packed = compression::compress(Encoding::Zstd, &body).expect("compressed");
    assert_eq!(bench.post("/v1/traces", PROTOBUF, Some("zstd"), packed).await.status(), StatusCode::OK);
    let packed = compression::compress(Encoding::Gzip, &body).expect("compressed");
    for (encoding, body) in [(Some("gzip"), packed), (None, body), (Some("snappy"), Bytes::new())] {
        let response = bench.post("/v1/traces", PROTOBUF, encoding, body).await;
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{encoding:?}");
        assert_eq!(response.headers()["accept-encoding"], "zstd, deflate");
        let body = response.bytes().await.expect("body");
        assert!(String::from_utf8_lossy(&body).contains("must be one of zstd, deflate"), "{body:?}");
    }
    assert_eq!(bench.stored(), 1);
}

#[tokio::test]
async fn every_http_error_is_a_status_in_the_requests_encoding() {
    let bench = bench().await;
    for content_type in [PROTOBUF, JSON] {
        let not_found = bench.post("/v1/nothing", content_type, None, "").await;
        assert_eq!(not_found.status(), StatusCode::NOT_FOUND);
        assert!(status_message(not_found).await.contains("/v1/nothing"));

        let metric: Vec<u8> = if content_type == JSON { ONE_METRIC_JSON.into() } else { ONE_METRIC.into() };
        let no_pipeline = bench.post("/v1/metrics", content_type, None, metric).await;
        assert_eq!(no_pipeline.status(), StatusCode::NOT_FOUND);
        assert!(status_message(no_pipeline).await.contains("no pipeline"));

        let malformed = bench.post("/v1/traces", content_type, None, "\u{1}not otlp").await;
        assert_eq!(malformed.status(), StatusCode::BAD_REQUEST);
        let message = status_message(malformed).await;
        assert!(message.contains(if content_type == JSON { "line 1" } else { "at byte" }), "{message}");

        let large = bench.post("/v1/traces", content_type, None, vec![b' '; LIMIT_BYTES as usize + 1]).await;
        assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert!(status_message(large).await.contains(&LIMIT_BYTES.to_string()));

        let url = format!("http://{}/v1/traces", bench.http);
        let get = bench.client.get(url).header("content-type", content_type).send().await.expect("answered");
        assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(get.headers()["allow"], "POST");
        status_message(get).await;

        let unknown = bench.post("/v1/traces", content_type, Some("br"), "").await;
        assert_eq!(unknown.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        status_message(unknown).await;
    }
    let text = bench.post("/v1/traces", "text/plain", None, "hello").await;
    assert_eq!(text.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(status_message(text).await.contains("application/x-protobuf"));
    assert_eq!(bench.stored(), 0);
    eventually("all memory comes back", async || bench.budget.used_bytes() == 0).await;
}

#[tokio::test]
async fn a_bomb_is_413_and_a_cut_stream_is_400_and_neither_keeps_memory() {
    let bench = bench().await;
    let zeros = Bytes::from(vec![0; 32 << 20]);
    for (name, encoding) in [("gzip", Encoding::Gzip), ("zstd", Encoding::Zstd)] {
        let bomb = compression::compress(encoding, &zeros).expect("compressed");
        assert_eq!(bench.post("/v1/traces", PROTOBUF, Some(name), bomb).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let whole = compression::compress(encoding, &Bytes::from(one_span())).expect("compressed");
        let cut = whole.slice(..whole.len() - 5);
        assert_eq!(bench.post("/v1/traces", PROTOBUF, Some(name), cut).await.status(), StatusCode::BAD_REQUEST);
    }
    eventually("all memory comes back", async || bench.budget.used_bytes() == 0).await;
    assert_eq!(bench.stored(), 0);
}

#[tokio::test]
async fn ten_thousand_levels_are_refused_clearly_over_both_transports() {
    let bench = bench().await;
    let mut value = Vec::new();
    for _ in 0..10_000 {
        for number in [1u8, 5] {
            let mut outer = vec![number << 3 | 2];
            prost::encoding::encode_varint(value.len() as u64, &mut outer);
            outer.extend_from_slice(&value);
            value = outer;
        }
    }
    for number in [2u8, 9, 2, 2, 1] {
        let mut outer = vec![number << 3 | 2];
        prost::encoding::encode_varint(value.len() as u64, &mut outer);
        outer.extend_from_slice(&value);
        value = outer;
    }
    let response = bench.post("/v1/traces", PROTOBUF, None, value.clone()).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(status_message(response).await.contains("nested too deeply"));
    let Outcome::Failed(failure) = bench.grpc("none").export(traces(value)).await else { panic!("accepted") };
    assert_eq!(failure.status, Some(RemoteStatus::Grpc(3)));
    assert!(failure.message.contains("nested too deeply"), "{}", failure.message);
}

#[tokio::test]
async fn grpc_takes_every_encoding_and_several_requests_on_one_connection() {
    let bench = bench().await;
    for compression in ["none", "gzip", "zstd"] {
        let exporter = bench.grpc(compression);
        let outcomes = futures_util::future::join_all((0..20).map(|_| exporter.export(traces(one_span())))).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Delivered)), "{outcomes:?}");
    }
    assert_eq!(bench.stored(), 60);
    eventually("all memory comes back", async || bench.budget.used_bytes() == 0).await;
}

#[tokio::test]
async fn grpc_statuses_are_those_of_the_specification() {
    let bench = bench().await;
    let exporter = bench.grpc("none");
    let Outcome::Failed(large) = exporter.export(traces(vec![0; LIMIT_BYTES as usize + 1])).await else { panic!() };
    assert_eq!((large.status, large.retry_after), (Some(RemoteStatus::Grpc(8)), None));
    let Outcome::Failed(malformed) = exporter.export(traces(b"\x01not otlp".to_vec())).await else { panic!() };
    assert_eq!((malformed.status, malformed.class), (Some(RemoteStatus::Grpc(3)), Class::Batch));
    assert!(malformed.message.contains("at byte"), "{}", malformed.message);
    let mut metrics = traces(ONE_METRIC.to_vec());
    metrics.signal = Signal::Metrics;
    let Outcome::Failed(unwanted) = exporter.export(metrics).await else { panic!() };
    assert_eq!(unwanted.status, Some(RemoteStatus::Grpc(12)));
    assert_eq!(bench.stored(), 0);
}

#[tokio::test]
async fn a_full_queue_is_503_with_retry_after_and_unavailable_with_retry_info() {
    let bench = bench_with(Some(600 << 10)).await;
    let filling = request(&(0..400).map(|n| format!("span-{n}")).collect::<Vec<_>>());
    let mut refused = None;
    for _ in 0..200 {
        let response = bench.post("/v1/traces", PROTOBUF, None, filling.clone()).await;
        if response.status() != StatusCode::OK {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("the cap holds");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = refused.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!(seconds >= 1);
    assert!(status_message(refused).await.contains("held by exporter \"x\""));
    let Outcome::Failed(failure) = bench.grpc("none").export(traces(filling)).await else { panic!("accepted") };
    assert_eq!((failure.status, failure.class), (Some(RemoteStatus::Grpc(14)), Class::Retryable));
    assert!(failure.retry_after.is_some_and(|after| after >= Duration::from_secs(1)), "{failure:?}");
}

#[tokio::test]
async fn short_memory_is_refused_retryably_and_a_client_that_hangs_up_gives_its_memory_back() {
    let bench = bench().await;
    let held = bench.budget.try_reserve(MEMORY_BYTES - 100).expect("reserved");
    let refused = bench.post("/v1/traces", PROTOBUF, None, vec![0; 1000]).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let Outcome::Failed(failure) = bench.grpc("none").export(traces(vec![0; 1000])).await else { panic!("accepted") };
    assert!(failure.retry_after.is_some() && failure.class == Class::Retryable);
    drop(held);

    let address = bench.http;
    let hang_up = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).expect("connected");
        write!(
            stream,
            "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 500000\r\n\r\nhalf"
        )
        .expect("sent");
        stream
    });
    let stream = hang_up.await.expect("no panic");
    eventually("the body is announced", async || bench.budget.used_bytes() >= 500_000).await;
    drop(stream);
    eventually("the memory comes back", async || bench.budget.used_bytes() == 0).await;
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_answered_in_bounded_time() {
    let bench = bench().await;
    let address = bench.http;
    let slow = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        write!(
            stream,
            "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 500\r\n\r\nhalf"
        )
        .expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("answered");
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert_eq!(slow.await.expect("no panic"), "HTTP/1.1 408");
    eventually("the memory comes back", async || bench.budget.used_bytes() == 0).await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_key_and_a_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = taken.local_addr().expect("address").to_string();
    let http = HttpSettings { endpoint: endpoint.clone(), ..HttpSettings::default() };
    let error = otlp::bind("otlp/a", Settings { grpc: None, http: Some(http) }).await.expect_err("taken").to_string();
    for part in ["receivers.otlp/a.protocols.http.endpoint", &endpoint, "another process holds the port"] {
        assert!(error.contains(part), "{error}");
    }
}
