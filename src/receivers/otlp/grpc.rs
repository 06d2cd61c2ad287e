//! OTLP/gRPC. The message is read frame by frame here, not by tonic's codec, so that the memory budget covers it while
//! it arrives and while it inflates; health and reflection are tonic's (`docs/decisions/002-grpc-framing.md`).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_types::{ErrorDetails, StatusExt};

use crate::otlp::{Encoding, Signal};
use crate::queue::{Accepted, Permit};
use crate::receivers::body::{BodyLimits, BodyReader};
use crate::receivers::ingest::{Arrival, Client, Content, Flaw, Ingest, Rejection, WireEncoding};
use crate::receivers::serve::{self, ConnectionLimits, ConnectionMemory};
use crate::receivers::status;

use super::{CONNECTION_WINDOW_BYTES, GrpcSettings, HEADER_BYTES_MAX, STREAM_WINDOW_BYTES};

/// One flag byte and a big-endian length before each message.
const PREFIX_LEN: usize = 5;
const ACCEPTED_ENCODINGS: &str = "identity,gzip,zstd";

struct Grpc {
    ingest: Arc<Ingest>,
    limits: BodyLimits,
}

pub(super) async fn serve(
    listeners: Vec<TcpListener>,
    settings: GrpcSettings,
    ingest: Arc<Ingest>,
    shutdown: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(settings.keepalive_time)
        .keep_alive_timeout(settings.keepalive_timeout);
    let connection_limits = ConnectionLimits {
        memory: ConnectionMemory::beside(ingest.budget.limit_bytes()),
        idle: settings.max_connection_idle,
        age: settings.max_connection_age,
        age_grace: settings.max_connection_age_grace,
    };
    let router = router(&settings, ingest).await;
    serve::serve(listeners, builder, router, connection_limits, shutdown).await;
}

/// The three services, health and reflection; what is not there is UNIMPLEMENTED.
pub(super) async fn router(settings: &GrpcSettings, ingest: Arc<Ingest>) -> Router {
    let limits = BodyLimits {
        // The prefix is not the message's.
        bytes_max: settings.request_bytes_max + PREFIX_LEN as u64,
        read_timeout: settings.read_timeout,
    };
    let state = Arc::new(Grpc { ingest, limits });
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut otlp = Router::new();
    for signal in Signal::ALL {
        let handler = move |State(state): State<Arc<Grpc>>, request: Request<Body>| async move {
            state.handle(signal, request).await
        };
        let path = signal.grpc_path();
        otlp = otlp.route(path, any(handler));
        if let Some(service) = path.split('/').nth(1) {
            reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
        }
    }
    let mut routes = Routes::new(health);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(opentelemetry_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Older clients know the alpha only.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(alpha)) => routes = routes.add_service(v1).add_service(alpha),
        (Err(error), _) | (_, Err(error)) => tracing::warn!(%error, "gRPC reflection is not available"),
    }
    routes.into_axum_router().merge(otlp.with_state(state))
}

impl Grpc {
    async fn handle(&self, signal: Signal, request: Request<Body>) -> Response {
        let is_grpc = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
            value == "application/grpc"
                || value.starts_with("application/grpc+proto")
                || value.starts_with("application/grpc;")
        });
        if request.method() != Method::POST || !is_grpc {
            let mut response = Response::new(Body::from("this port speaks gRPC; OTLP over HTTP is on port 4318\n"));
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        match self.ingest(signal, request).await {
            Ok(accepted) => success(&accepted),
            Err(rejection) => failure(rejection),
        }
    }

    async fn ingest(&self, signal: Signal, request: Request<Body>) -> Result<Accepted, GrpcRejection> {
        let encoding = encoding_of(request.headers())?;
        let peer = serve::peer(&request);
        let (parts, body) = request.into_parts();
        let mut reader = BodyReader::new(body, self.limits, &self.ingest.budget);
        let client = Client { peer, headers: &parts.headers };
        let message = self.read(signal, encoding, client, &mut reader).await;
        let (encoding, body, permit) = message.inspect_err(|rejection| self.ingest.count(signal, rejection))?;
        let encoding = WireEncoding::Stored(encoding);
        let arrival = Arrival { client, content: Content::Protobuf, encoding, body, permit };
        Ok(self.ingest.accept(signal, arrival, self.message_bytes_max()).await?)
    }

    fn message_bytes_max(&self) -> u64 {
        self.limits.bytes_max - PREFIX_LEN as u64
    }

    /// The one message of a request, and whether it is compressed.
    async fn read(
        &self,
        signal: Signal,
        encoding: Encoding,
        client: Client<'_>,
        reader: &mut BodyReader<Body>,
    ) -> Result<(Encoding, Bytes, Permit), Rejection> {
        let prefix = reader.take(PREFIX_LEN).await?;
        let prefix = prefix.ok_or_else(|| Rejection::Malformed("the request has no message".to_owned().into()))?;
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let encoding = match prefix[0] {
            0 => Encoding::Identity,
            1 if encoding == Encoding::Identity => {
                let message = "the message is flagged as compressed, and grpc-encoding does not say how";
                return Err(Rejection::Malformed(message.to_owned().into()));
            }
            1 => encoding,
            other => return Err(Rejection::Malformed(format!("the message has an unknown flag ({other})").into())),
        };
        let max = self.message_bytes_max();
        if u64::from(len) > max {
            return Err(Rejection::TooLarge(format!(
                "the message is too large: it has {len} bytes, at most {max} are taken"
            )));
        }
        reader.announce(u64::from(len) + PREFIX_LEN as u64)?;
        self.ingest.admit(signal, u64::from(len))?;
        let (body, permit) = reader.finish().await?;
        if body.len() as u64 != u64::from(len) {
            let flaw = Flaw::from(format!("the message should have {len} bytes and has {}", body.len()));
            self.ingest.capture(signal, WireEncoding::Stored(encoding), &flaw, body, client);
            return Err(Rejection::Malformed(flaw));
        }
        Ok((encoding, body, permit))
    }
}

enum GrpcRejection {
    Ingest(Rejection),
    UnknownEncoding(String),
}

impl From<Rejection> for GrpcRejection {
    fn from(rejection: Rejection) -> GrpcRejection {
        GrpcRejection::Ingest(rejection)
    }
}

fn encoding_of(headers: &HeaderMap) -> Result<Encoding, GrpcRejection> {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(Encoding::Identity),
        Some(b"gzip") => Ok(Encoding::Gzip),
        Some(b"zstd") => Ok(Encoding::Zstd),
        Some(other) => Err(GrpcRejection::UnknownEncoding(String::from_utf8_lossy(other).into_owned())),
    }
}

/// An empty `Export*ServiceResponse`, uncompressed, and status OK. Only the receipt makes one.
fn success(accepted: &Accepted) -> Response {
    let trailers = async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let message = Bytes::from_static(&[0; PREFIX_LEN]);
    let mut response = Response::new(Body::new(Full::new(message).with_trailers(trailers)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    super::note_duplicates(accepted, response.headers_mut());
    response
}

fn failure(rejection: GrpcRejection) -> Response {
    let status = match rejection {
        GrpcRejection::UnknownEncoding(name) => {
            let message =
                format!("grpc-encoding {} is not supported; use one of {ACCEPTED_ENCODINGS}", status::bounded(&name));
            tonic::Status::unimplemented(message)
        }
        GrpcRejection::Ingest(rejection) => match rejection {
            Rejection::Malformed(Flaw { message, .. }) | Rejection::Broken(message) => {
                tonic::Status::invalid_argument(status::bounded(&message))
            }
            Rejection::TooLarge(message) => tonic::Status::resource_exhausted(status::bounded(&message)),
            Rejection::Unavailable { message, retry_after, .. } => tonic::Status::with_error_details(
                tonic::Code::Unavailable,
                status::bounded(&message),
                ErrorDetails::with_retry_info(Some(retry_after.max(Duration::from_millis(1)))),
            ),
            Rejection::NoPipeline(message) => tonic::Status::unimplemented(status::bounded(&message)),
            Rejection::TooSlow => tonic::Status::deadline_exceeded("the message stopped arriving"),
        },
    };
    let unsupported = status.code() == tonic::Code::Unimplemented;
    let mut response: Response = status.into_http();
    if unsupported {
        response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED_ENCODINGS));
    }
    response
}
