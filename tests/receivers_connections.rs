//! The receivers as a network server: what misbehaving, slow, old and browser clients meet.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::otlp::Signal;
use forebay::queue::{Accepted, Budget, Intake, Offer, Refused, RefusedReason, Router};
use forebay::receivers::otlp::{self, Cors, GrpcSettings, HttpSettings, Settings};
use forebay::storage::log::Observer;
use forebay::storage::{Options, RealDisk, StartAt, Store};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{client, eventually, request};
use tokio_util::sync::CancellationToken;
use tonic_types::StatusExt;

const LIMIT_BYTES: u64 = 1 << 20;
const MEMORY_BYTES: u64 = 8 << 20;
const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Longer than any test here should take.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);

struct Unobserved;
impl Observer for Unobserved {}

struct Bench {
    store: Option<(tempfile::TempDir, Store)>,
    http: SocketAddr,
    grpc: SocketAddr,
    budget: Budget,
    end: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// A receiver with a traces pipeline over a real store.
async fn bench(adjust: impl FnOnce(&mut GrpcSettings, &mut HttpSettings)) -> Bench {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = Options { segment_bytes: Some(256 << 10), tail_bytes_max: 0, ..Options::default() };
    let store = Store::open(Arc::new(RealDisk), dir.path(), &options, Arc::new(Unobserved)).expect("opens").0;
    let mut router = Router::new();
    let cursors = [("x".to_owned(), StartAt::Beginning)];
    router.add(Signal::Traces, store.queue("traces", &cursors).expect("queue"));
    let mut bench = bench_over(Arc::new(router), adjust).await;
    bench.store = Some((dir, store));
    bench
}

async fn bench_over(intake: Arc<dyn Intake>, adjust: impl FnOnce(&mut GrpcSettings, &mut HttpSettings)) -> Bench {
    let endpoint = "127.0.0.1:0".to_owned();
    let mut grpc =
        GrpcSettings { endpoint: endpoint.clone(), request_bytes_max: LIMIT_BYTES, ..GrpcSettings::default() };
    let mut http = HttpSettings { endpoint, request_bytes_max: LIMIT_BYTES, ..HttpSettings::default() };
    adjust(&mut grpc, &mut http);
    let settings = Settings { grpc: Some(grpc), http: Some(http) };
    let bound = otlp::bind("otlp", settings).await.expect("bound");
    let (http, grpc) = (bound.http_addresses()[0], bound.grpc_addresses()[0]);
    let (budget, end) = (Budget::new(MEMORY_BYTES), CancellationToken::new());
    let serving = tokio::spawn(bound.serve(intake, budget.clone(), None, end.clone()));
    Bench { store: None, http, grpc, budget, end, serving }
}

impl Bench {
    fn stored(&self) -> u64 {
        let (_, store) = self.store.as_ref().expect("a real store");
        store.queues().iter().map(|log| log.durable_end()).sum()
    }

    fn url(&self) -> String {
        format!("http://{}/v1/traces", self.http)
    }

    /// One gRPC call, byte for byte: the answer's headers and trailers together.
    async fn call(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> HeaderMap {
        let mut request = Request::post(format!("http://{}{path}", self.grpc))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut sender, connection) = h2_connect(self.grpc).await;
        let connection = tokio::spawn(connection);
        let request = request.body(Full::new(Bytes::from(body))).expect("request");
        let (parts, body) = sender.send_request(request).await.expect("answered").into_parts();
        let mut all = parts.headers;
        if let Some(trailers) = body.collect().await.expect("body").trailers() {
            all.extend(trailers.clone());
        }
        connection.abort();
        all
    }
}

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn h2_connect(address: SocketAddr) -> (Sender, impl Future<Output = hyper::Result<()>>) {
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("handshake")
}

/// The prefix of one gRPC message, and the message.
fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut framed = vec![flag];
    framed.extend_from_slice(&u32::try_from(message.len()).expect("small").to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(SOCKET_TIMEOUT)).expect("set");
    stream.set_write_timeout(Some(SOCKET_TIMEOUT)).expect("set");
    stream
}

fn head(length: &str) -> String {
    format!("POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n{length}\r\n\r\n")
}

/// The head of the next answer; its body is read away.
fn answer(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).expect("the body");
    head
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

fn one_span() -> Vec<u8> {
    request(&["one".to_owned()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_writes_all_before_it_reads_sees_413_and_can_go_on_over_the_connection() {
    let bench = bench(|_, _| {}).await;
    let address = bench.http;
    blocking(move || {
        let mut stream = connect(address);
        let body = vec![0; 48 << 20];
        stream.write_all(head(&format!("content-length: {}", body.len())).as_bytes()).expect("sent");
        stream.write_all(&body).expect("no reset while sending");
        assert!(answer(&mut stream).starts_with("HTTP/1.1 413"));
        let body = one_span();
        stream.write_all(head(&format!("content-length: {}", body.len())).as_bytes()).expect("sent");
        stream.write_all(&body).expect("sent");
        assert!(answer(&mut stream).starts_with("HTTP/1.1 200"));
    })
    .await;
    eventually("the memory comes back", async || bench.budget.used_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_runs_short_in_the_middle_of_a_chunked_body_is_503_and_all_of_it_comes_back() {
    let bench = bench(|_, _| {}).await;
    let address = bench.http;
    let held = bench.budget.try_reserve(MEMORY_BYTES - (256 << 10)).expect("reserved");
    let answered = blocking(move || {
        let mut stream = connect(address);
        stream.write_all(head("transfer-encoding: chunked").as_bytes()).expect("sent");
        for _ in 0..12 {
            stream.write_all(b"10000\r\n").expect("sent");
            stream.write_all(&vec![0; 0x10000]).expect("sent");
            stream.write_all(b"\r\n").expect("sent");
        }
        stream.write_all(b"0\r\n\r\n").expect("sent");
        answer(&mut stream)
    })
    .await;
    assert!(answered.starts_with("HTTP/1.1 503") && answered.contains("retry-after: 1"), "{answered}");
    drop(held);
    eventually("the memory comes back", async || bench.budget.used_bytes() == 0).await;
    assert_eq!(bench.stored(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_request_is_closed_also_when_it_says_nothing_or_half_a_word() {
    let bench = bench(|_, http| http.idle_timeout = Duration::from_secs(1)).await;
    let address = bench.http;
    let said: [&[u8]; 3] = [b"", b"P", b"POST /v1/traces HTTP/1.1\r\nhost"];
    let waiting = said.map(|said| {
        blocking(move || {
            let mut stream = connect(address);
            stream.write_all(said).expect("sent");
            let mut rest = Vec::new();
            // An end or a reset; not a timeout.
            match stream.read_to_end(&mut rest) {
                Ok(_) => true,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        })
    });
    assert_eq!(futures_util::future::join_all(waiting).await, [true; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_at_the_end_is_answered_and_the_connection_closed() {
    let mut bench = bench(|_, _| {}).await;
    let (address, end, budget) = (bench.http, bench.end.clone(), bench.budget.clone());
    let body = one_span();
    let length = body.len();
    let mut stream = blocking(move || {
        let mut stream = connect(address);
        stream.write_all(head(&format!("content-length: {length}")).as_bytes()).expect("sent");
        stream
    })
    .await;
    eventually("the request is under way", async || budget.used_bytes() > 0).await;
    end.cancel();
    eventually("the port is closed", async || tokio::net::TcpStream::connect(address).await.is_err()).await;
    blocking(move || {
        stream.write_all(&body).expect("sent");
        assert!(answer(&mut stream).starts_with("HTTP/1.1 200"));
        assert_eq!(stream.read(&mut [0]).expect("closed in order"), 0);
    })
    .await;
    (&mut bench.serving).await.expect("no panic");
    assert_eq!(bench.stored(), 1);
}

/// Refuses everything, by its size.
struct Filled;

impl Intake for Filled {
    fn offer(&self, _offer: Offer) -> BoxFuture<'_, Result<Accepted, Refused>> {
        async { Err(full()) }.boxed()
    }
    fn takes(&self, _signal: Signal) -> bool {
        true
    }
    fn check(&self, _signal: Signal, _size_hint_bytes: u64) -> Result<(), Refused> {
        Err(full())
    }
}

fn full() -> Refused {
    let (message, retry_after) = ("the queue is full".to_owned(), Duration::from_millis(2500));
    Refused { reason: RefusedReason::Full, message, retry_after }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_queue_would_refuse_is_refused_before_its_body_arrives() {
    let bench = bench_over(Arc::new(Filled), |_, _| {}).await;
    let address = bench.http;
    let answered = blocking(move || {
        let mut stream = connect(address);
        stream.write_all(head("content-length: 1000000").as_bytes()).expect("sent");
        answer(&mut stream)
    })
    .await;
    assert!(answered.starts_with("HTTP/1.1 503"), "{answered}");
}

#[tokio::test]
async fn unavailable_carries_a_retry_info_that_tonic_types_decodes() {
    let bench = bench_over(Arc::new(Filled), |_, _| {}).await;
    let answer = bench.call(TRACES, &[], framed(0, &one_span())).await;
    let status = tonic::Status::from_header_map(&answer).expect("a status");
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "the queue is full"));
    let retry = status.get_details_retry_info().expect("RetryInfo").retry_delay;
    assert_eq!(retry, Some(Duration::from_millis(2500)));
}

#[tokio::test]
async fn grpc_framing_mistakes_have_the_statuses_of_the_protocol() {
    let bench = bench(|_, _| {}).await;
    let span = one_span();
    let status = |headers: &HeaderMap| headers["grpc-status"].to_str().expect("text").to_owned();

    assert_eq!(status(&bench.call(TRACES, &[], framed(0, &span)).await), "0");
    let unknown = bench.call("/opentelemetry.proto.collector.trace.v1.TraceService/Import", &[], Vec::new()).await;
    assert_eq!(status(&unknown), "12");
    assert_eq!(status(&bench.call("/no.Such/Service", &[], Vec::new()).await), "12");
    let encoding = bench.call(TRACES, &[("grpc-encoding", "snappy")], framed(1, &span)).await;
    assert_eq!(status(&encoding), "12");
    assert_eq!(encoding["grpc-accept-encoding"], "identity,gzip,zstd");

    let mut longer = framed(0, &span);
    longer[4] += 1;
    let twice = [framed(0, &span), framed(0, &span)].concat();
    for wrong in [Vec::new(), vec![0, 0], longer, twice, framed(1, &span), framed(7, &span)] {
        let answer = bench.call(TRACES, &[], wrong.clone()).await;
        assert_eq!(status(&answer), "3", "{wrong:?}");
    }
    let large = bench.call(TRACES, &[], [&[0][..], &u32::MAX.to_be_bytes()].concat()).await;
    assert_eq!(status(&large), "8");
    assert!(!large.contains_key("grpc-status-details-bin"), "no RetryInfo: it is not retryable");
    assert_eq!(bench.stored(), 1);
    eventually("all memory comes back", async || bench.budget.used_bytes() == 0).await;
}

#[tokio::test]
async fn health_and_reflection_answer_on_the_grpc_port() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};

    let bench = bench(|_, _| {}).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", bench.grpc)).expect("address");
    let channel = channel.timeout(Duration::from_secs(10)).connect().await.expect("connected");
    for service in ["", "opentelemetry.proto.collector.logs.v1.LogsService"] {
        let check = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel.clone()).check(check).await.expect("healthy").into_inner();
        assert_eq!(answer.status, tonic_health::ServingStatus::Serving as i32);
    }
    let list = MessageRequest::ListServices(String::new());
    let ask = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let asking = futures_util::stream::iter([ask]);
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(asking).await.expect("answered").into_inner();
    let answer = answers.message().await.expect("read").expect("one answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"opentelemetry.proto.collector.trace.v1.TraceService"), "{names:?}");
}

#[tokio::test]
async fn an_old_grpc_connection_is_told_to_go_well_before_its_grace_ends() {
    let bench = bench(|grpc, _| {
        grpc.max_connection_age = Some(Duration::from_millis(200));
        grpc.max_connection_age_grace = Some(Duration::from_secs(600));
    })
    .await;
    let (_sender, connection) = h2_connect(bench.grpc).await;
    tokio::time::timeout(SOCKET_TIMEOUT, connection).await.expect("asked to go").expect("in order");
}

#[tokio::test]
async fn an_idle_grpc_connection_is_closed_when_the_configuration_says_so() {
    let bench = bench(|grpc, _| grpc.max_connection_idle = Some(Duration::from_millis(100))).await;
    let (_sender, connection) = h2_connect(bench.grpc).await;
    tokio::time::timeout(SOCKET_TIMEOUT, connection).await.expect("asked to go").expect("in order");
}

#[tokio::test]
async fn http_2_without_tls_and_deflate_are_taken_on_the_http_port() {
    use std::io::Write as _;
    let bench = bench(|_, _| {}).await;
    drop(client());
    let h2c = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().expect("client");
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&one_span()).expect("packed");
    let sending = h2c.post(bench.url()).header("content-type", "application/x-protobuf");
    let sending = sending.header("content-encoding", "deflate").body(packed.finish().expect("packed"));
    let response = sending.send().await.expect("answered");
    assert_eq!((response.version(), response.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    assert_eq!(bench.stored(), 1);
}

#[tokio::test]
async fn the_answer_is_compressed_only_where_gzip_is_accepted() {
    let bench = bench(|_, _| {}).await;
    let client = client();
    for (accepted, compressed) in [(None, false), (Some("br, gzip"), true), (Some("gzip;q=0"), false)] {
        let mut sending = client.post(bench.url()).header("content-type", "application/json").body("{}");
        if let Some(accepted) = accepted {
            sending = sending.header("accept-encoding", accepted);
        }
        let response = sending.send().await.expect("answered");
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers().contains_key("content-encoding"), compressed, "{accepted:?}");
        let body = response.bytes().await.expect("body");
        let mut plain = Vec::new();
        if compressed {
            flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).expect("gzip");
        } else {
            plain.extend_from_slice(&body);
        }
        assert_eq!(plain, b"{}");
    }
}

#[tokio::test]
async fn browsers_are_let_in_only_from_configured_origins() {
    let cors = Cors {
        allowed_origins: vec!["https://*.example.com".to_owned()],
        allowed_headers: vec!["x-tenant".to_owned()],
        max_age_seconds: 600,
    };
    let open = bench(move |_, http| http.cors = Some(cors)).await;
    let closed = bench(|_, _| {}).await;
    let client = client();
    let ask = async |bench: &Bench, method: &str, origin: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("method");
        let sending = client.request(method, bench.url()).header("origin", origin).body("{}");
        sending.header("content-type", "application/json").send().await.expect("answered")
    };
    let origin = "https://app.example.com";
    let preflight = ask(&open, "OPTIONS", origin).await;
    assert!(preflight.status().is_success());
    let headers = preflight.headers();
    assert_eq!(headers["access-control-allow-origin"], origin);
    assert_eq!(headers["access-control-max-age"], "600");
    assert!(headers["access-control-allow-headers"].to_str().expect("text").contains("x-tenant"));
    assert_eq!(ask(&open, "POST", origin).await.headers()["access-control-allow-origin"], origin);
    for (bench, origin) in [(&open, "https://example.org"), (&closed, origin)] {
        for method in ["OPTIONS", "POST"] {
            let answer = ask(bench, method, origin).await;
            assert!(!answer.headers().contains_key("access-control-allow-origin"), "{method} {origin}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_announces_much_and_sends_little_is_cut_off() {
    let bench = bench(|_, http| http.read_timeout = Duration::from_millis(400)).await;
    let address = bench.http;
    let started = Instant::now();
    let answered = blocking(move || {
        let mut stream = connect(address);
        stream.write_all(head("content-length: 1000000").as_bytes()).expect("sent");
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
        let mut answer = [0; 12];
        while started.elapsed() < SOCKET_TIMEOUT {
            // Each pause is well within the timeout; the whole is not.
            if stream.write_all(b"x").is_err() || stream.read_exact(&mut answer).is_ok() {
                break;
            }
        }
        answer
    })
    .await;
    assert_eq!(&answered, b"HTTP/1.1 408");
    eventually("the memory comes back", async || bench.budget.used_bytes() == 0).await;
}
