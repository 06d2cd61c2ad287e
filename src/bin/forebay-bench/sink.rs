//! Takes OTLP over HTTP and gRPC, counts it, and fails when asked to.

mod answer;
mod count;
mod counters;

use crate::units::duration;
use answer::Service;
use clap::Args;
pub use counters::Counters;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// HTTP/2 windows: wide enough that flow control is not what is measured.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Rest after accept failed, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Address for OTLP/HTTP; both addresses take both protocols
    #[arg(long, default_value = "127.0.0.1:4318")]
    pub http: SocketAddr,
    /// Address for OTLP/gRPC
    #[arg(long, default_value = "127.0.0.1:4317")]
    pub grpc: SocketAddr,
    #[command(flatten)]
    pub options: Options,
    /// Print counts this often
    #[arg(long, value_parser = duration)]
    pub interval: Option<Duration>,
}

#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Append the identity of every request of `forebay-bench load` that arrives, with its spans
    #[arg(long)]
    pub record: Option<PathBuf>,
    /// Answer this HTTP status, or its gRPC twin, instead of success
    #[arg(long)]
    pub fail_status: Option<u16>,
    /// Close the connection instead of answering
    #[arg(long, conflicts_with = "fail_status")]
    pub fail_reset: bool,
    /// Only every Nth request fails
    #[arg(long, default_value_t = 1)]
    pub fail_every: u64,
    /// Seconds in the Retry-After header of failures
    #[arg(long)]
    pub retry_after: Option<u64>,
    /// Wait before every answer
    #[arg(long, value_parser = duration)]
    pub delay: Option<Duration>,
}

/// `forebay-bench sink`
pub fn main(arguments: Arguments) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(async {
        let http = bind(arguments.http).await?;
        let grpc = bind(arguments.grpc).await?;
        let counters = Arc::new(Counters::default());
        let service = Service::new(Arc::clone(&counters), arguments.options)?;
        eprintln!("sink: http {}, grpc {}", arguments.http, arguments.grpc);
        for listener in [http, grpc] {
            tokio::spawn(serve(listener, service.clone()));
        }
        let handler = |kind| signal(kind).map_err(|error| format!("cannot handle signals: {error}"));
        let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
        let mut ticks = tokio::time::interval(arguments.interval.unwrap_or(Duration::from_secs(3600)));
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = ticks.tick() => if arguments.interval.is_some() { println!("{}", counters.json()) },
            }
        }
        println!("{}", counters.json());
        Ok(())
    })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}; is another process there?"))
}

/// Starts a sink on `listener`, for `forebay-bench run`.
pub fn start(listener: TcpListener, counters: Arc<Counters>, delay: Option<Duration>) -> Result<(), String> {
    let service = Service::new(counters, Options { fail_every: 1, delay, ..Options::default() })?;
    tokio::spawn(serve(listener, service));
    Ok(())
}

async fn serve(listener: TcpListener, service: Service) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX);
    let builder = Arc::new(builder);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("sink: cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("sink: cannot set TCP_NODELAY: {error}");
        }
        let (service, builder) = (service.clone(), Arc::clone(&builder));
        tokio::spawn(async move {
            let handler = hyper::service::service_fn(move |request| {
                let service = service.clone();
                async move { service.answer(request).await }
            });
            // A peer that goes away, or a reset that was asked for, ends the connection: nothing to report.
            let _ended = builder.serve_connection(TokioIo::new(stream), handler).await;
        });
    }
}
