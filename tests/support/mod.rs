//! What the tests of the whole process share: a child that is always ended, a sink that remembers, a client.

#![allow(dead_code, reason = "each test uses its part")]

pub mod dedup;
pub mod dlq;
pub mod ledger;
mod ports;
pub mod proxy;
pub mod scene;
pub mod setup;
pub mod strace;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use parking_lot::Mutex;
use prost::Message;

pub use ports::free_ports;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// An HTTP client that gives up in bounded time.
pub fn client() -> reqwest::Client {
    // The second call in one process finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build().expect("client")
}

pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A running `forebay`; killed when dropped.
pub struct Forebay {
    child: Child,
    pub health_port: u16,
    log: PathBuf,
}

impl Forebay {
    pub fn start(config: &Path, data_dir: &Path, health_port: u16, log: &Path) -> Forebay {
        Forebay::start_with(&[], config, data_dir, health_port, log, &[])
    }

    /// Under a command that becomes `forebay`, or has it as its only child.
    pub fn start_under(wrapper: &[&str], config: &Path, data_dir: &Path, health_port: u16, log: &Path) -> Forebay {
        Forebay::start_with(wrapper, config, data_dir, health_port, log, &[])
    }

    /// `variables` are all that its environment says of proxies and authorities.
    pub fn start_with(
        wrapper: &[&str],
        config: &Path,
        data_dir: &Path,
        health_port: u16,
        log: &Path,
        variables: &[(&str, &str)],
    ) -> Forebay {
        let stderr = std::fs::File::options().create(true).append(true).open(log).expect("log file");
        let words = [wrapper, &[env!("CARGO_BIN_EXE_forebay")]].concat();
        let mut command = Command::new(words[0]);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_ascii_lowercase());
        }
        let child = command
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR")
            .envs(variables.iter().copied())
            .args(&words[1..])
            .arg("run")
            .arg("--config")
            .arg(config)
            .arg("--data-dir")
            .arg(data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("forebay starts");
        Forebay { child, health_port, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(name).arg(self.pid().to_string()).status().expect("kill runs");
        assert!(status.success());
    }

    pub fn has_exited(&mut self) -> Option<i32> {
        self.child.try_wait().expect("waited").map(|status| status.code().unwrap_or(-1))
    }

    /// SIGTERM, and its exit code.
    pub async fn stop(self) -> i32 {
        self.signal("-TERM");
        self.stop_waiting().await
    }

    /// The exit code of a process that was told to stop.
    pub async fn stop_waiting(mut self) -> i32 {
        let mut code = None;
        eventually("the process ends after SIGTERM", async || {
            code = self.has_exited();
            code.is_some()
        })
        .await;
        code.unwrap_or(-1)
    }

    /// Waits for it, and says at once what it said itself where it ended instead.
    pub async fn ready(&mut self, client: &reqwest::Client) {
        let url = format!("http://127.0.0.1:{}/readyz", self.health_port);
        eventually("ready", async || {
            if let Some(code) = self.has_exited() {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                panic!("ended with {code} instead of getting ready: {log}");
            }
            client.get(&url).send().await.is_ok_and(|r| r.status().is_success())
        })
        .await;
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        // Already reaped in the ordinary case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a sink has taken: span name → (times seen, encoded span).
pub type Taken = BTreeMap<String, (u64, Vec<u8>)>;

#[derive(Default)]
pub struct Sink {
    pub taken: Mutex<Taken>,
    /// When each span came for the first time.
    pub first_taken: Mutex<BTreeMap<String, Instant>>,
    pub requests: AtomicU64,
    /// Every n-th request is answered 503 (0: none).
    pub fail_every: AtomicU64,
    /// Every request is answered with this status (0: as it deserves).
    pub refuse_with: AtomicU64,
    /// How many spans each request had that was answered so.
    pub refused_spans: Mutex<Vec<usize>>,
    /// Each answer comes this much later.
    pub delay_ms: AtomicU64,
    /// A request with a span whose name begins so is answered `poison_status` (empty: none).
    pub poison: Mutex<String>,
    /// 0: 400.
    pub poison_status: AtomicU64,
    /// Of the largest request that came.
    pub bytes_most: AtomicU64,
    /// A larger request is answered 413 (0: none).
    pub request_bytes_max: AtomicU64,
    /// Checksums of the requests that were.
    pub too_large: Mutex<Vec<u32>>,
    /// So many spans of each request that is taken are said to be rejected.
    pub reject_spans: AtomicU64,
    /// Requests of logs that were taken; one with the poison's name anywhere in it is answered 400.
    pub logs: AtomicU64,
}

impl Sink {
    /// Serves OTLP/HTTP traces on a port of its own.
    pub async fn start() -> (Arc<Sink>, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address");
        (Sink::start_on(listener), address)
    }

    /// Whether a span came for the first time since then.
    pub fn arrived_since(&self, moment: Instant) -> bool {
        self.first_taken.lock().values().any(|at| *at > moment)
    }

    pub fn start_on(listener: tokio::net::TcpListener) -> Arc<Sink> {
        let sink = Arc::new(Sink::default());
        let router = Router::new()
            .route("/v1/traces", post(take))
            .route("/v1/logs", post(take_logs))
            .layer(axum::extract::DefaultBodyLimit::max(256 << 20))
            .with_state(Arc::clone(&sink));
        tokio::spawn(async move { axum::serve(listener, router).await });
        sink
    }
}

async fn take(State(sink): State<Arc<Sink>>, body: Bytes) -> Response {
    let status = take_spans(&sink, body).await;
    let rejected_spans = sink.reject_spans.load(Ordering::SeqCst) as i64;
    if status != StatusCode::OK || rejected_spans == 0 {
        return status.into_response();
    }
    let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message: "not these".to_owned() });
    let answer = ExportTraceServiceResponse { partial_success }.encode_to_vec();
    ([("content-type", "application/x-protobuf")], answer).into_response()
}

async fn take_logs(State(sink): State<Arc<Sink>>, body: Bytes) -> StatusCode {
    let poison = sink.poison.lock().clone();
    if !poison.is_empty() && body.windows(poison.len()).any(|found| found == poison.as_bytes()) {
        return StatusCode::BAD_REQUEST;
    }
    sink.logs.fetch_add(1, Ordering::SeqCst);
    StatusCode::OK
}

async fn take_spans(sink: &Sink, body: Bytes) -> StatusCode {
    let number = sink.requests.fetch_add(1, Ordering::SeqCst) + 1;
    sink.bytes_most.fetch_max(body.len() as u64, Ordering::SeqCst);
    let fail_every = sink.fail_every.load(Ordering::SeqCst);
    if fail_every > 0 && number.is_multiple_of(fail_every) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    tokio::time::sleep(Duration::from_millis(sink.delay_ms.load(Ordering::SeqCst))).await;
    let refuse_with = sink.refuse_with.load(Ordering::SeqCst);
    if refuse_with > 0 {
        let request = ExportTraceServiceRequest::decode(body).expect("a request");
        let spans = request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum();
        sink.refused_spans.lock().push(spans);
        return StatusCode::from_u16(refuse_with as u16).expect("a status");
    }
    let bytes_max = sink.request_bytes_max.load(Ordering::SeqCst);
    if bytes_max > 0 && body.len() as u64 > bytes_max {
        sink.too_large.lock().push(crc32c::crc32c(&body));
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let poison = sink.poison.lock().clone();
    let mut names = request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
    if !poison.is_empty() && names.any(|span| span.name.starts_with(&poison)) {
        let status = sink.poison_status.load(Ordering::SeqCst) as u16;
        return StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    }
    let mut taken = sink.taken.lock();
    let spans = request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
    for span in spans {
        let entry = taken.entry(span.name.clone()).or_insert_with(|| (0, span.encode_to_vec()));
        entry.0 += 1;
        if entry.0 == 1 {
            sink.first_taken.lock().insert(span.name.clone(), Instant::now());
        }
        assert_eq!(entry.1, span.encode_to_vec(), "one name, one span");
    }
    StatusCode::OK
}

/// A span that is known by its name, with content that follows from it.
pub fn span(name: &str) -> Span {
    let mut id = [0; 16];
    id[..8]
        .copy_from_slice(&u64::from(crc32c::crc32c(name.as_bytes())).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    id[8] = 1;
    Span {
        trace_id: id.to_vec(),
        span_id: id[..8].iter().map(|byte| byte | 1).collect(),
        name: name.to_owned(),
        trace_state: name.repeat(20),
        start_time_unix_nano: 1,
        end_time_unix_nano: 2,
        ..Span::default()
    }
}

pub fn request(names: &[String]) -> Vec<u8> {
    spans_message(names.iter().map(|name| span(name)).collect())
}

/// One message of these spans, as it is sent.
pub fn spans_message(spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
        .encode_to_vec()
}
