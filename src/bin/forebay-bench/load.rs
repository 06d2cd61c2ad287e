//! The load generator: some connections, each with one request under way.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use clap::{Args, ValueEnum};
use forebay::otlp::Signal;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::histogram::Histogram;
use crate::payload::{self, Compression};

/// Distinct requests made before the run and sent in turn.
const DISTINCT_REQUESTS: usize = 32;
const RETRY_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Http,
    Grpc,
}

#[derive(Clone, Debug, Args)]
pub struct Options {
    #[arg(long, default_value = "http")]
    pub protocol: Protocol,
    /// host:port; 127.0.0.1:4318 for HTTP, 127.0.0.1:4317 for gRPC.
    #[arg(long)]
    pub endpoint: Option<String>,
    #[arg(long, default_value = "none")]
    pub compression: Compression,
    #[arg(long, default_value_t = 551)]
    pub span_bytes: usize,
    #[arg(long, default_value_t = 1000)]
    pub spans_per_request: usize,
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
}

/// What a load came to.
#[derive(Clone)]
pub struct Outcome {
    pub acknowledged_spans: u64,
    pub refused_requests: u64,
    pub failed_requests: u64,
    pub elapsed: Duration,
    pub latency: Histogram,
}

impl Outcome {
    pub fn spans_per_second(&self) -> f64 {
        self.acknowledged_spans as f64 / self.elapsed.as_secs_f64()
    }
}

pub fn main(options: &Options) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(options.clone()))?;
    println!(
        "{}",
        serde_json::json!({
            "acknowledged_spans": outcome.acknowledged_spans,
            "spans_per_second": outcome.spans_per_second(),
            "refused_requests": outcome.refused_requests,
            "failed_requests": outcome.failed_requests,
            "ack_p50_ms": outcome.latency.quantile_ms(0.5),
            "ack_p99_ms": outcome.latency.quantile_ms(0.99),
        })
    );
    Ok(())
}

struct Shared {
    options: Options,
    endpoint: String,
    bodies: Vec<Bytes>,
    end: Instant,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

pub async fn run(options: Options) -> Result<Outcome, Box<dyn Error>> {
    let port = if options.protocol == Protocol::Http { 4318 } else { 4317 };
    let endpoint = options.endpoint.clone().unwrap_or_else(|| format!("127.0.0.1:{port}"));
    let mut bodies = Vec::with_capacity(DISTINCT_REQUESTS);
    for _ in 0..DISTINCT_REQUESTS {
        let body = payload::request(options.spans_per_request, options.span_bytes, options.compression)?;
        bodies.push(if options.protocol == Protocol::Grpc { framed(&body, options.compression) } else { body });
    }
    let started = Instant::now();
    let shared = Arc::new(Shared {
        end: started + Duration::from_secs_f64(options.seconds),
        endpoint,
        bodies,
        options,
        acknowledged: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let connections: Vec<_> =
        (0..shared.options.connections).map(|index| tokio::spawn(connection(Arc::clone(&shared), index))).collect();
    let mut latency = Histogram::new();
    for connection in connections {
        latency.merge(&connection.await?);
    }
    Ok(Outcome {
        acknowledged_spans: shared.acknowledged.load(Ordering::Relaxed),
        refused_requests: shared.refused.load(Ordering::Relaxed),
        failed_requests: shared.failed.load(Ordering::Relaxed),
        elapsed: started.elapsed(),
        latency,
    })
}

fn framed(body: &Bytes, compression: Compression) -> Bytes {
    let mut framed = BytesMut::with_capacity(body.len() + 5);
    framed.put_u8(u8::from(compression != Compression::None));
    framed.put_u32(body.len() as u32);
    framed.extend_from_slice(body);
    framed.freeze()
}

enum Sender {
    Http(http1::SendRequest<Full<Bytes>>),
    Grpc(http2::SendRequest<Full<Bytes>>),
}

async fn connect(shared: &Shared) -> Result<Sender, Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect(&shared.endpoint).await?;
    stream.set_nodelay(true)?;
    // A connection that ends shows at the next request.
    Ok(match shared.options.protocol {
        Protocol::Http => {
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            Sender::Http(sender)
        }
        Protocol::Grpc => {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            Sender::Grpc(sender)
        }
    })
}

fn request(shared: &Shared, body: Bytes) -> Result<http::Request<Full<Bytes>>, http::Error> {
    let Options { protocol, compression, .. } = shared.options;
    let mut builder = http::Request::post(match protocol {
        Protocol::Http => "/v1/traces".to_owned(),
        Protocol::Grpc => format!("http://{}{}", shared.endpoint, Signal::Traces.grpc_path()),
    });
    builder = match protocol {
        Protocol::Http => builder.header("host", &shared.endpoint).header("content-type", "application/x-protobuf"),
        Protocol::Grpc => builder.header("te", "trailers").header("content-type", "application/grpc"),
    };
    if compression != Compression::None {
        let name = if protocol == Protocol::Http { "content-encoding" } else { "grpc-encoding" };
        builder = builder.header(name, compression.name());
    }
    builder.body(Full::new(body))
}

/// Whether the answer was success; the body is read to its end.
async fn send(shared: &Shared, sender: &mut Sender, body: Bytes) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let request = request(shared, body)?;
    let response = match sender {
        Sender::Http(sender) => {
            sender.ready().await?;
            sender.send_request(request).await?
        }
        Sender::Grpc(sender) => {
            sender.ready().await?;
            sender.send_request(request).await?
        }
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    Ok(match shared.options.protocol {
        Protocol::Http => parts.status.is_success(),
        Protocol::Grpc => {
            let status =
                body.trailers().and_then(|trailers| trailers.get("grpc-status")).or(parts.headers.get("grpc-status"));
            status.is_some_and(|status| status == "0")
        }
    })
}

async fn connection(shared: Arc<Shared>, index: usize) -> Histogram {
    let mut latency = Histogram::new();
    let mut sender = None;
    let mut turn = index;
    while Instant::now() < shared.end {
        let open = match sender.take() {
            Some(open) => Ok(open),
            None => connect(&shared).await,
        };
        let Ok(mut open) = open else {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        };
        turn += 1;
        let started = Instant::now();
        match send(&shared, &mut open, shared.bodies[turn % DISTINCT_REQUESTS].clone()).await {
            Ok(true) => {
                latency.record(started.elapsed());
                shared.acknowledged.fetch_add(shared.options.spans_per_request as u64, Ordering::Relaxed);
                sender = Some(open);
            }
            Ok(false) => {
                shared.refused.fetch_add(1, Ordering::Relaxed);
                sender = Some(open);
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(_) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    latency
}
