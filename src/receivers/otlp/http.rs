//! OTLP/HTTP: POST with protobuf or JSON, HTTP/1.1 and h2c on one port.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::otlp::{Encoding, Signal};
use crate::queue::{Accepted, Permit};
use crate::receivers::body::{self, BodyLimits, BodyReader};
use crate::receivers::ingest::{Arrival, Client, Content, Ingest, Rejection, WireEncoding};
use crate::receivers::serve::{self, ConnectionLimits, ConnectionMemory};
use crate::receivers::status::{self, code};
use crate::settings::Table;

use super::{CONNECTION_WINDOW_BYTES, Encodings, HEADER_BYTES_MAX, HttpSettings, STREAM_WINDOW_BYTES};

const STREAMS_MAX: u32 = 128;

/// `cors` of the HTTP protocol.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// `*`, or origins in full, or with one `*` in them.
    pub allowed_origins: Vec<String>,
    pub allowed_headers: Vec<String>,
    pub max_age_seconds: u64,
}

impl Cors {
    pub(super) fn read(table: &mut Table<'_>) -> Option<Cors> {
        let cors = Cors {
            allowed_origins: table.texts("allowed_origins").unwrap_or_default(),
            allowed_headers: table.texts("allowed_headers").unwrap_or_default(),
            max_age_seconds: table.integer("max_age", 0..=86_400).unwrap_or(0),
        };
        (!cors.allowed_origins.is_empty()).then_some(cors)
    }

    fn allows(&self, origin: &str) -> bool {
        self.allowed_origins.iter().any(|allowed| match allowed.split_once('*') {
            Some((start, end)) => {
                origin.len() >= start.len() + end.len() && origin.starts_with(start) && origin.ends_with(end)
            }
            None => allowed == origin,
        })
    }
}

struct Http {
    ingest: Arc<Ingest>,
    limits: BodyLimits,
    cors: Option<Cors>,
    encodings: Encodings,
}

/// The paths of the three signals; what else is asked for is not found.
pub(super) fn router(settings: &HttpSettings, ingest: Arc<Ingest>) -> Router {
    let limits = BodyLimits { bytes_max: settings.request_bytes_max, read_timeout: settings.read_timeout };
    let state = Arc::new(Http { ingest, limits, cors: settings.cors.clone(), encodings: settings.encodings.clone() });
    let mut router = Router::new();
    for (signal, path) in Signal::ALL.into_iter().zip(&settings.paths) {
        let handler = move |State(state): State<Arc<Http>>, request: Request<Body>| async move {
            state.handle(signal, request).await
        };
        router = router.route(path, any(handler));
    }
    router.fallback(not_found).with_state(state)
}

pub(super) async fn serve(
    listeners: Vec<TcpListener>,
    settings: HttpSettings,
    ingest: Arc<Ingest>,
    shutdown: CancellationToken,
) {
    let memory = ConnectionMemory::beside(ingest.budget.limit_bytes());
    let router = router(&settings, ingest);
    let idle = settings.idle_timeout.max(Duration::from_secs(1));
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(memory.read_buffer_bytes)
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20));
    let limits = ConnectionLimits { memory, idle: Some(idle), age: None, age_grace: None };
    serve::serve(listeners, builder, router, limits, shutdown).await;
}

async fn not_found(request: Request<Body>) -> Response {
    let content = content_of(request.headers()).unwrap_or(Content::Protobuf);
    let path = request.uri().path().to_owned();
    let message = format!(
        "nothing is served at {}; OTLP is taken at /v1/traces, /v1/metrics and /v1/logs",
        status::bounded(&path)
    );
    body::discard_unread(request);
    error(content, StatusCode::NOT_FOUND, code::NOT_FOUND, &message)
}

impl Http {
    async fn handle(&self, signal: Signal, request: Request<Body>) -> Response {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let wants_gzip = request
            .headers()
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(accepts_gzip);
        let mut response = if request.method() == Method::OPTIONS && origin.is_some() && self.cors.is_some() {
            empty(StatusCode::NO_CONTENT)
        } else {
            self.post(signal, request).await
        };
        if let (Some(cors), Some(origin)) = (&self.cors, origin) {
            allow_origin(cors, &origin, response.headers_mut());
        }
        if wants_gzip { compressed(response).await } else { response }
    }

    async fn post(&self, signal: Signal, request: Request<Body>) -> Response {
        let content = content_of(request.headers());
        if request.method() != Method::POST {
            let message = format!("{} is not allowed here; send a POST", request.method());
            body::discard_unread(request);
            let mut response = error(
                content.unwrap_or(Content::Protobuf),
                StatusCode::METHOD_NOT_ALLOWED,
                code::UNIMPLEMENTED,
                &message,
            );
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let Some(content) = content else {
            body::discard_unread(request);
            let message = "the content type must be application/x-protobuf or application/json";
            return error(Content::Protobuf, StatusCode::UNSUPPORTED_MEDIA_TYPE, code::INVALID_ARGUMENT, message);
        };
        let Some(encoding) = self.encodings.of(request.headers()) else {
            body::discard_unread(request);
            let (known, message) = self.encodings.shown();
            let mut response = error(content, StatusCode::UNSUPPORTED_MEDIA_TYPE, code::INVALID_ARGUMENT, &message);
            response.headers_mut().insert(header::ACCEPT_ENCODING, known);
            return response;
        };
        match self.ingest(signal, content, encoding, request).await {
            Ok(accepted) => success(content, &accepted),
            Err(rejection) => rejected(content, &rejection),
        }
    }

    async fn ingest(
        &self,
        signal: Signal,
        content: Content,
        encoding: WireEncoding,
        request: Request<Body>,
    ) -> Result<Accepted, Rejection> {
        let announced = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<u64>().ok());
        let waits = body::waits_for_continue(request.headers());
        let peer = serve::peer(&request);
        let (parts, body) = request.into_parts();
        let mut reader = BodyReader::new(body, self.limits, &self.ingest.budget);
        match self.read(signal, announced, &mut reader).await {
            Ok((body, permit)) => {
                let client = Client { peer, headers: &parts.headers };
                let arrival = Arrival { client, content, encoding, body, permit };
                self.ingest.accept(signal, arrival, self.limits.bytes_max).await
            }
            Err(rejection) => {
                self.ingest.count(signal, &rejection);
                if !waits && !matches!(rejection, Rejection::TooSlow | Rejection::Broken(_)) {
                    tokio::spawn(body::discard(reader.into_rest()));
                }
                Err(rejection)
            }
        }
    }

    async fn read(
        &self,
        signal: Signal,
        announced: Option<u64>,
        reader: &mut BodyReader<Body>,
    ) -> Result<(Bytes, Permit), Rejection> {
        if let Some(bytes) = announced {
            reader.announce(bytes)?;
            self.ingest.admit(signal, bytes)?;
        }
        reader.finish().await
    }
}

/// One element of `Accept-Encoding`.
fn accepts_gzip(part: &str) -> bool {
    let mut pieces = part.split(';').map(str::trim);
    pieces.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"))
        && !pieces.any(|weight| weight.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0)))
}

fn content_of(headers: &HeaderMap) -> Option<Content> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match value.split(';').next()?.trim().to_ascii_lowercase().as_str() {
        "application/x-protobuf" | "application/protobuf" => Some(Content::Protobuf),
        "application/json" => Some(Content::Json),
        _ => None,
    }
}

fn content_type(content: Content) -> HeaderValue {
    HeaderValue::from_static(match content {
        Content::Protobuf => "application/x-protobuf",
        Content::Json => "application/json",
    })
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Full success: an `Export*ServiceResponse` without `partial_success`. Only the receipt makes one.
fn success(content: Content, accepted: &Accepted) -> Response {
    let body = match content {
        Content::Protobuf => Bytes::new(),
        Content::Json => Bytes::from_static(b"{}"),
    };
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type(content));
    super::note_duplicates(accepted, response.headers_mut());
    response
}

fn error(content: Content, status: StatusCode, code: i32, message: &str) -> Response {
    let mut response = Response::new(Body::from(status::encode(content, code, message)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type(content));
    response
}

fn rejected(content: Content, rejection: &Rejection) -> Response {
    match rejection {
        Rejection::Malformed(flaw) => error(content, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, &flaw.message),
        Rejection::TooLarge(message) => {
            error(content, StatusCode::PAYLOAD_TOO_LARGE, code::RESOURCE_EXHAUSTED, message)
        }
        Rejection::Unavailable { message, retry_after, .. } => {
            let mut response = error(content, StatusCode::SERVICE_UNAVAILABLE, code::UNAVAILABLE, message);
            let seconds = retry_after.as_secs().max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
        Rejection::NoPipeline(message) => error(content, StatusCode::NOT_FOUND, code::NOT_FOUND, message),
        Rejection::TooSlow => {
            error(content, StatusCode::REQUEST_TIMEOUT, code::DEADLINE_EXCEEDED, "the body stopped arriving")
        }
        Rejection::Broken(message) => error(content, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, message),
    }
}

fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    if !origin.to_str().is_ok_and(|origin| cors.allows(origin)) {
        return;
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
    let mut names = vec!["Content-Type".to_owned(), "Content-Encoding".to_owned()];
    names.extend(cors.allowed_headers.iter().cloned());
    if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    if cors.max_age_seconds > 0 {
        headers.insert(HeaderName::from_static("access-control-max-age"), HeaderValue::from(cors.max_age_seconds));
    }
}

/// Our answers are small and whole in memory.
async fn compressed(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 20).await else { return Response::from_parts(parts, Body::empty()) };
    if body.is_empty() {
        return Response::from_parts(parts, Body::from(body));
    }
    match crate::otlp::compression::compress(Encoding::Gzip, &body) {
        Ok(packed) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            Response::from_parts(parts, Body::from(packed))
        }
        Err(_) => Response::from_parts(parts, Body::from(body)),
    }
}
