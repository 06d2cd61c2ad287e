//! The `otlp` receiver: settings, binding, serving.

mod encodings;
mod grpc;
mod http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::dlq::Captures;
use crate::queue::{Accepted, Budget, Intake};
use crate::settings::Table;
use crate::telemetry::ReceiverMetrics;

use super::ingest::Ingest;
use super::listen;

pub use super::listen::BindError;
pub use encodings::Encodings;
pub use http::Cors;

pub const GRPC_ENDPOINT_DEFAULT: &str = "localhost:4317";
pub const HTTP_ENDPOINT_DEFAULT: &str = "localhost:4318";
/// Compressed or not, a request has at most this many bytes once inflated.
pub const REQUEST_BYTES_MAX_DEFAULT: u64 = 64 << 20;
const READ_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const CONCURRENT_STREAMS_DEFAULT: u32 = 128;
const PATH_KEYS: [&str; 3] = ["traces_url_path", "metrics_url_path", "logs_url_path"];
/// Bytes that HTTP/2 lets a client send before they are read, per stream and per connection: memory that no budget
/// sees, so it is small. Over a round trip of 10 ms this is 50 MB/s on one connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// `protocols` of an `otlp` receiver; None: that protocol is off.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub grpc: Option<GrpcSettings>,
    pub http: Option<HttpSettings>,
}

#[derive(Clone, Debug)]
pub struct GrpcSettings {
    pub endpoint: String,
    pub request_bytes_max: u64,
    pub max_concurrent_streams: u32,
    pub keepalive_time: Option<Duration>,
    pub keepalive_timeout: Duration,
    pub max_connection_idle: Option<Duration>,
    pub max_connection_age: Option<Duration>,
    pub max_connection_age_grace: Option<Duration>,
    pub read_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct HttpSettings {
    pub endpoint: String,
    /// Paths of traces, metrics and logs.
    pub paths: [String; 3],
    pub request_bytes_max: u64,
    pub read_timeout: Duration,
    pub idle_timeout: Duration,
    pub cors: Option<Cors>,
    pub encodings: Encodings,
}

impl Default for GrpcSettings {
    fn default() -> GrpcSettings {
        GrpcSettings {
            endpoint: GRPC_ENDPOINT_DEFAULT.to_owned(),
            request_bytes_max: REQUEST_BYTES_MAX_DEFAULT,
            max_concurrent_streams: CONCURRENT_STREAMS_DEFAULT,
            keepalive_time: Some(Duration::from_secs(7200)),
            keepalive_timeout: Duration::from_secs(20),
            max_connection_idle: None,
            max_connection_age: None,
            max_connection_age_grace: None,
            read_timeout: READ_TIMEOUT_DEFAULT,
        }
    }
}

impl Default for HttpSettings {
    fn default() -> HttpSettings {
        HttpSettings {
            endpoint: HTTP_ENDPOINT_DEFAULT.to_owned(),
            paths: ["/v1/traces", "/v1/metrics", "/v1/logs"].map(str::to_owned),
            request_bytes_max: REQUEST_BYTES_MAX_DEFAULT,
            read_timeout: READ_TIMEOUT_DEFAULT,
            idle_timeout: IDLE_TIMEOUT_DEFAULT,
            cors: None,
            encodings: Encodings::default(),
        }
    }
}

impl Settings {
    pub fn read(table: &mut Table<'_>) -> Settings {
        let protocols = table.table("protocols", |table| Settings {
            grpc: table.table("grpc", GrpcSettings::read),
            http: table.table("http", HttpSettings::read),
        });
        let settings = protocols.unwrap_or_default();
        if settings.grpc.is_none() && settings.http.is_none() {
            table.problem("protocols", "an otlp receiver needs `grpc:` or `http:` (or both) under `protocols`");
        }
        settings
    }
}

impl GrpcSettings {
    fn read(table: &mut Table<'_>) -> GrpcSettings {
        table.unsupported(&["tls", "auth", "transport", "read_buffer_size", "write_buffer_size", "dialer"]);
        read_include_metadata(table);
        let mut settings = GrpcSettings::default();
        if let Some(endpoint) = table.text("endpoint") {
            settings.endpoint = endpoint;
        }
        if let Some(mib) = table.integer("max_recv_msg_size_mib", 1..=1024) {
            settings.request_bytes_max = mib << 20;
        }
        if let Some(streams) = table.integer("max_concurrent_streams", 1..=100_000) {
            settings.max_concurrent_streams = streams as u32;
        }
        table.table("keepalive", |table| {
            table.table("enforcement_policy", |table| {
                // The library has no such policy; clients that ping often are served.
                table.ignore("min_time");
                table.ignore("permit_without_stream");
            });
            table.table("server_parameters", |table| {
                // Zero stands for the default, as in gRPC's own server.
                let mut duration = |key| table.duration(key).filter(|duration| !duration.is_zero());
                if let Some(time) = duration("time") {
                    settings.keepalive_time = Some(time);
                }
                if let Some(timeout) = duration("timeout") {
                    settings.keepalive_timeout = timeout;
                }
                settings.max_connection_idle = duration("max_connection_idle");
                settings.max_connection_age = duration("max_connection_age");
                settings.max_connection_age_grace = duration("max_connection_age_grace");
            })
        });
        settings
    }
}

impl HttpSettings {
    fn read(table: &mut Table<'_>) -> HttpSettings {
        table.unsupported(&["tls", "auth", "response_headers", "write_timeout", "read_header_timeout"]);
        read_include_metadata(table);
        let mut settings = HttpSettings::default();
        if let Some(endpoint) = table.text("endpoint") {
            settings.endpoint = endpoint;
        }
        for (index, key) in PATH_KEYS.into_iter().enumerate() {
            if let Some(path) = table.text(key) {
                if !is_plain_path(&path) {
                    table.problem(key, "a path begins with `/` and holds no `{`, `}`, `*` or `:`");
                } else {
                    settings.paths[index] = path;
                }
            }
        }
        for (index, key) in PATH_KEYS.into_iter().enumerate() {
            if settings.paths[..index].contains(&settings.paths[index]) {
                table.problem(key, format!("another signal has the path {} already", settings.paths[index]));
            }
        }
        if let Some(bytes) = table.byte_size("max_request_body_size") {
            settings.request_bytes_max = bytes.clamp(1, 1 << 30);
        }
        for (key, timeout) in
            [("read_timeout", &mut settings.read_timeout), ("idle_timeout", &mut settings.idle_timeout)]
        {
            match table.duration(key) {
                Some(Duration::ZERO) => table.warn(key, "without a limit is not offered; the default holds"),
                Some(given) => *timeout = given,
                None => {}
            }
        }
        settings.cors = table.table("cors", Cors::read).flatten();
        settings.encodings = Encodings::read(table);
        settings
    }
}

/// In the Collector it makes request metadata known to later parts; none of those is here yet.
fn read_include_metadata(table: &mut Table<'_>) {
    if table.flag("include_metadata") == Some(true) {
        table.warn("include_metadata", "has no effect: nothing here uses the metadata of requests yet");
    }
}

/// Says how many items were durable before this request, if any were.
fn note_duplicates(accepted: &Accepted, headers: &mut HeaderMap) {
    if accepted.deduplicated() > 0 {
        headers.insert(HeaderName::from_static("forebay-deduplicated"), HeaderValue::from(accepted.deduplicated()));
    }
}

/// What the router matches literally.
fn is_plain_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains(['{', '}', '*', ':'])
}

/// A receiver with its ports open, not serving yet.
#[derive(Debug)]
pub struct Bound {
    id: String,
    settings: Settings,
    grpc: Vec<TcpListener>,
    http: Vec<TcpListener>,
}

/// Opens the ports. `localhost` means 127.0.0.1 and ::1, where there is one.
pub async fn bind(id: &str, settings: Settings) -> Result<Bound, BindError> {
    let mut bound = Bound { id: id.to_owned(), grpc: Vec::new(), http: Vec::new(), settings };
    if let Some(grpc) = &bound.settings.grpc {
        bound.grpc = listen::bind(&format!("receivers.{id}.protocols.grpc.endpoint"), &grpc.endpoint).await?;
    }
    if let Some(http) = &bound.settings.http {
        bound.http = listen::bind(&format!("receivers.{id}.protocols.http.endpoint"), &http.endpoint).await?;
    }
    Ok(bound)
}

/// What each transport of one receiver needs; large bodies wait for each other.
fn ingests(
    id: String,
    intake: Arc<dyn Intake>,
    budget: Budget,
    captures: Option<Captures>,
) -> impl Fn(&'static str) -> Arc<Ingest> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let heavy = Arc::new(Semaphore::new(processors));
    move |transport| {
        Arc::new(Ingest {
            intake: Arc::clone(&intake),
            budget: budget.clone(),
            heavy: Arc::clone(&heavy),
            metrics: ReceiverMetrics::new(&id, transport),
            receiver: id.clone(),
            captures: captures.clone(),
        })
    }
}

/// What answers requests of HTTP and of gRPC, without connections.
pub async fn routers(id: &str, settings: &Settings, intake: Arc<dyn Intake>, budget: Budget) -> [Option<Router>; 2] {
    let ingest = ingests(id.to_owned(), intake, budget, None);
    let http = settings.http.as_ref().map(|settings| http::router(settings, ingest("http")));
    let grpc = match &settings.grpc {
        Some(settings) => Some(grpc::router(settings, ingest("grpc")).await),
        None => None,
    };
    [http, grpc]
}

impl Bound {
    pub fn grpc_addresses(&self) -> Vec<SocketAddr> {
        self.grpc.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.http.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `shutdown`, then answers what is under way and ends.
    pub async fn serve(
        self,
        intake: Arc<dyn Intake>,
        budget: Budget,
        captures: Option<Captures>,
        shutdown: CancellationToken,
    ) {
        let ingest = ingests(self.id, intake, budget, captures);
        let http =
            self.settings.http.map(|settings| http::serve(self.http, settings, ingest("http"), shutdown.clone()));
        let grpc =
            self.settings.grpc.map(|settings| grpc::serve(self.grpc, settings, ingest("grpc"), shutdown.clone()));
        tokio::join!(
            async {
                if let Some(http) = http {
                    http.await;
                }
            },
            async {
                if let Some(grpc) = grpc {
                    grpc.await;
                }
            }
        );
    }
}

#[cfg(test)]
mod tests;
