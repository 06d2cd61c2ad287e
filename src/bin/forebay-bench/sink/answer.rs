//! One request: inflate, count, record, answer.

use super::count::SpanCounter;
use super::{Counters, Options};
use crate::payload::{IDENTITY_KEY, REQUEST_BYTES_MAX};
use crate::wire::{FRAME_HEADER_BYTES, frame, unframe};
use bytes::Bytes;
use forebay::otlp::{Encoding, Signal, compression, wire};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

type Reply = Response<BoxBody<Bytes, Infallible>>;

/// Why a connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed on purpose")]
pub struct Reset;

#[derive(Clone)]
pub struct Service {
    counters: Arc<Counters>,
    options: Arc<Options>,
    record: Option<Arc<Mutex<File>>>,
}

struct Received {
    signal: Signal,
    message: Bytes,
}

impl Service {
    pub fn new(counters: Arc<Counters>, options: Options) -> Result<Service, String> {
        let record = match &options.record {
            None => None,
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                let file = file.map_err(|error| format!("cannot open the record {}: {error}", path.display()))?;
                Some(Arc::new(Mutex::new(file)))
            }
        };
        Ok(Service { counters, options: Arc::new(options), record })
    }

    /// Counts after the faults: what was failed is not counted as taken.
    pub async fn answer(&self, request: Request<Incoming>) -> Result<Reply, Reset> {
        let grpc =
            request.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let encoding = if grpc { HeaderName::from_static("grpc-encoding") } else { CONTENT_ENCODING };
        let path = if grpc { Signal::Traces.grpc_path() } else { "/v1/traces" };
        if !request.headers().contains_key(encoding) && request.uri().path() == path && self.only_counts() {
            return self.count(grpc, request.into_body()).await;
        }
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, REQUEST_BYTES_MAX).collect().await else { return Err(Reset) };
        let body = body.to_bytes();
        if let Some(delay) = self.options.delay {
            tokio::time::sleep(delay).await;
        }
        let number = self.counters.requests.fetch_add(1, Relaxed) + 1;
        let faulty = self.options.fail_reset || self.options.fail_status.is_some();
        if faulty && number.is_multiple_of(self.options.fail_every.max(1)) {
            self.counters.failed.fetch_add(1, Relaxed);
            return match self.options.fail_status {
                Some(status) => Ok(self.failure(grpc, status, "failed on purpose")),
                None => Err(Reset),
            };
        }
        let bytes = body.len() as u64;
        match receive(grpc, head.uri.path(), &head.headers, body).and_then(|received| self.take(&received)) {
            Ok(()) => {
                self.counters.bytes.fetch_add(bytes, Relaxed);
                Ok(success(grpc))
            }
            Err(message) => {
                self.counters.malformed.fetch_add(1, Relaxed);
                eprintln!("sink: refused a request: {message}");
                Ok(self.failure(grpc, 400, &message))
            }
        }
    }

    /// Nothing is asked of it but to count.
    fn only_counts(&self) -> bool {
        let Options { record, fail_status, fail_reset, delay, .. } = self.options.as_ref();
        record.is_none() && fail_status.is_none() && !fail_reset && delay.is_none()
    }

    async fn count(&self, grpc: bool, mut body: Incoming) -> Result<Reply, Reset> {
        let mut counter = SpanCounter::behind(if grpc { FRAME_HEADER_BYTES } else { 0 });
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Err(Reset) };
            if let Some(data) = frame.data_ref() {
                bytes += data.len() as u64;
                counter.push(data);
            }
        }
        self.counters.requests.fetch_add(1, Relaxed);
        match counter.finish() {
            Some(spans) => {
                self.counters.spans.fetch_add(spans, Relaxed);
                self.counters.bytes.fetch_add(bytes, Relaxed);
                Ok(success(grpc))
            }
            None => {
                self.counters.malformed.fetch_add(1, Relaxed);
                eprintln!("sink: refused a request: the lengths in it do not add up");
                Ok(self.failure(grpc, 400, "the lengths in it do not add up"))
            }
        }
    }

    fn take(&self, received: &Received) -> Result<(), String> {
        let summary = wire::scan(received.signal, &received.message).map_err(|error| error.to_string())?;
        if let (Some(record), Signal::Traces) = (&self.record, received.signal) {
            let lines = identities(&received.message)?;
            let mut file = record.lock().map_err(|_| "the record's lock is poisoned".to_owned())?;
            file.write_all(lines.as_bytes()).map_err(|error| format!("cannot write the record: {error}"))?;
        }
        let counter = match received.signal {
            Signal::Traces => &self.counters.spans,
            Signal::Metrics => &self.counters.metric_points,
            Signal::Logs => &self.counters.log_records,
        };
        counter.fetch_add(summary.items, Relaxed);
        Ok(())
    }

    fn failure(&self, grpc: bool, status: u16, message: &str) -> Reply {
        let mut response = if grpc {
            let code = match status {
                400 => "3",
                401 => "16",
                403 => "7",
                404 | 501 => "12",
                413 => "8",
                429 | 502..=504 => "14",
                _ => "13",
            };
            let mut response = respond(Full::new(Bytes::new()).boxed(), "application/grpc");
            response.headers_mut().insert("grpc-status", HeaderValue::from_static(code));
            response
        } else {
            let mut response = respond(Full::new(Bytes::from(message.to_owned())).boxed(), "text/plain");
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            response
        };
        if let Some(seconds) = self.options.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn respond(body: BoxBody<Bytes, Infallible>, content_type: &'static str) -> Reply {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn success(grpc: bool) -> Reply {
    if !grpc {
        return respond(Full::new(Bytes::new()).boxed(), "application/x-protobuf");
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // An empty message is five bytes of frame.
    let body = Full::new(frame(&[], false).unwrap_or_default()).with_trailers(async move { Some(Ok(trailers)) });
    respond(body.boxed(), "application/grpc")
}

fn receive(grpc: bool, path: &str, headers: &HeaderMap, body: Bytes) -> Result<Received, String> {
    let signal = Signal::ALL
        .into_iter()
        .find(|signal| path == signal.grpc_path() || path.strip_prefix("/v1/") == Some(signal.name()))
        .ok_or_else(|| format!("no such path: {path}"))?;
    let (body, compressed) = if grpc { unframe(body)? } else { (body, true) };
    let header = if grpc { headers.get("grpc-encoding") } else { headers.get(CONTENT_ENCODING) };
    let encoding = match header.filter(|_| compressed).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Encoding::Identity,
        Some(b"gzip") => Encoding::Gzip,
        Some(b"zstd") => Encoding::Zstd,
        Some(other) => return Err(format!("no such encoding: {}", String::from_utf8_lossy(other))),
    };
    if encoding == Encoding::Identity {
        return Ok(Received { signal, message: body });
    }
    let mut message = Vec::new();
    compression::inflate(encoding, &body, REQUEST_BYTES_MAX, &mut message, &mut |_| true)
        .map_err(|error| error.to_string())?;
    Ok(Received { signal, message: Bytes::from(message) })
}

/// A line for each resource that carries an identity: the identity and its number of spans.
fn identities(message: &[u8]) -> Result<String, String> {
    let request = ExportTraceServiceRequest::decode(message).map_err(|error| error.to_string())?;
    let mut lines = String::new();
    for resource_spans in &request.resource_spans {
        let spans: usize = resource_spans.scope_spans.iter().map(|scope| scope.spans.len()).sum();
        let attributes = resource_spans.resource.iter().flat_map(|resource| &resource.attributes);
        for attribute in attributes.filter(|attribute| attribute.key == IDENTITY_KEY) {
            if let Some(Value::StringValue(identity)) = attribute.value.as_ref().and_then(|value| value.value.as_ref())
            {
                lines.push_str(&format!("{identity} {spans}\n"));
            }
        }
    }
    Ok(lines)
}
