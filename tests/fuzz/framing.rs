//! Requests of any headers and any body, in any pieces, through both transports: each is answered, success only for what
//! is valid and was offered as it came, and the memory comes back.

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use forebay::otlp::{Encoding, Signal, compression, wire};
use forebay::queue::{Accepted, Budget, Intake, Offer, Refused};
use forebay::receivers::otlp::{GrpcSettings, HttpSettings, Settings, routers};
use forebay::storage::Log;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::BodyExt;
use tower::ServiceExt;

/// Of one request, inflated.
const REQUEST_BYTES_MAX: u64 = 256 << 10;
const BUDGET_BYTES: u64 = 1 << 20;
const TYPES: [&str; 6] = [
    "application/x-protobuf",
    "application/json",
    "application/grpc",
    "application/grpc+proto",
    "application/json; charset=utf-8",
    "text/plain",
];
const ENCODINGS: [&str; 7] = ["identity", "gzip", "zstd", "deflate", "x", "gzip, gzip", ""];

/// Takes what is valid.
struct Checker;

impl Intake for Checker {
    fn offer(&self, offer: Offer) -> BoxFuture<'_, Result<Accepted, Refused>> {
        async move {
            let mut inflated = Vec::new();
            let payload: &[u8] = match offer.encoding {
                Encoding::Identity => &offer.payload,
                encoding => {
                    let limit = REQUEST_BYTES_MAX as usize;
                    compression::inflate(encoding, &offer.payload, limit, &mut inflated, &mut |_| true)
                        .expect("what is offered can be inflated");
                    &inflated
                }
            };
            assert!(payload.len() as u64 <= REQUEST_BYTES_MAX && payload.len() as u64 == offer.raw_len);
            let scanned = wire::scan(offer.signal, payload).expect("what is offered is valid");
            assert_eq!(scanned.items, offer.items);
            Ok(Accepted::new(vec![Log::durable_for_nothing()], 0))
        }
        .boxed()
    }

    fn takes(&self, _signal: Signal) -> bool {
        true
    }

    fn check(&self, _signal: Signal, _size_hint_bytes: u64) -> Result<(), Refused> {
        Ok(())
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    budget: Budget,
    http: Router,
    grpc: Router,
}

impl Bench {
    fn new() -> Bench {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let budget = Budget::new(BUDGET_BYTES);
        let settings = Settings {
            grpc: Some(GrpcSettings { request_bytes_max: REQUEST_BYTES_MAX, ..GrpcSettings::default() }),
            http: Some(HttpSettings { request_bytes_max: REQUEST_BYTES_MAX, ..HttpSettings::default() }),
        };
        let [http, grpc] = runtime.block_on(routers("fuzz", &settings, Arc::new(Checker), budget.clone()));
        Bench { runtime, budget, http: http.expect("on"), grpc: grpc.expect("on") }
    }
}

/// Up to 16 pieces, cut where `cuts` says.
fn body(bytes: &[u8], cuts: u8, is_announced: bool) -> Body {
    let bytes = Bytes::copy_from_slice(bytes);
    if is_announced {
        return Body::from(bytes);
    }
    let piece = (bytes.len() / (usize::from(cuts % 16) + 1)).max(1);
    let pieces: Vec<_> =
        (0..bytes.len()).step_by(piece).map(|at| bytes.slice(at..(at + piece).min(bytes.len()))).collect();
    Body::from_stream(futures_util::stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
}

/// Six bytes of head (transport and signal, type, encoding, cuts, flags, length of a header of the input's own), that
/// header, then the body.
pub fn check(input: &[u8]) {
    thread_local!(static BENCH: RefCell<Bench> = RefCell::new(Bench::new()));
    let Some((&[route, kind, encoding, cuts, flags, own_len], rest)) = input.split_first_chunk::<6>() else { return };
    let (own, payload) = rest.split_at(rest.len().min(usize::from(own_len % 32)));
    let signal = Signal::ALL[usize::from(route >> 1) % 3];
    let is_grpc = route & 1 == 1;
    let path =
        if is_grpc { signal.grpc_path() } else { ["/v1/traces", "/v1/metrics", "/v1/logs"][signal as usize - 1] };
    let mut payload = payload.to_vec();
    if is_grpc && flags & 1 == 1 {
        // A frame that is right; any other is for the fuzzer to make.
        let mut framed = vec![u8::from(flags & 2 == 2)];
        framed.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        framed.append(&mut payload);
        payload = framed;
    }
    let mut request = Request::new(body(&payload, cuts, flags & 4 == 4));
    *request.method_mut() = if flags & 8 == 8 { Method::PUT } else { Method::POST };
    *request.uri_mut() = path.parse().expect("a path");
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(TYPES[usize::from(kind) % TYPES.len()]));
    let name = if is_grpc { "grpc-encoding" } else { "content-encoding" };
    let value = ENCODINGS[usize::from(encoding) % ENCODINGS.len()];
    if !value.is_empty() {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(colon) = own.iter().position(|byte| *byte == b':')
        && let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&own[..colon]), HeaderValue::from_bytes(&own[colon + 1..]))
    {
        headers.append(name, value);
    }
    BENCH.with_borrow(|bench| {
        let router = if is_grpc { &bench.grpc } else { &bench.http };
        bench.runtime.block_on(async {
            let response = router.clone().oneshot(request).await.expect("infallible");
            let status = response.status().as_u16();
            assert!(matches!(status, 200 | 204 | 400 | 404 | 405 | 408 | 411 | 413 | 415 | 429 | 503), "{status}");
            assert!(response.body().size_hint().lower() < 64 << 10);
            let _answer = response.into_body().collect().await.expect("an answer has an end");
            // What is left of a refused body is read in the background.
            tokio::task::yield_now().await;
        });
        assert_eq!(bench.budget.used_bytes(), 0, "the memory comes back");
    });
}
