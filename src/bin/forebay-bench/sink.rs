//! A backend that takes everything over OTLP/HTTP and counts it.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use clap::Args;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;

#[derive(Clone, Debug, Args)]
pub struct Options {
    #[arg(long, default_value = "127.0.0.1:14318")]
    pub http: SocketAddr,
}

#[derive(Default)]
pub struct Counts {
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
}

pub fn main(options: &Options) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let counts = Arc::new(Counts::default());
        let listener = TcpListener::bind(options.http).await?;
        eprintln!("taking OTLP/HTTP on {}; ends with ctrl-c", listener.local_addr()?);
        tokio::spawn(serve(listener, Arc::clone(&counts)));
        tokio::signal::ctrl_c().await?;
        let requests = counts.requests.load(Ordering::Relaxed);
        println!("{}", serde_json::json!({ "requests": requests, "bytes": counts.bytes.load(Ordering::Relaxed) }));
        Ok(())
    })
}

/// Answers 200 to everything.
pub async fn serve(listener: TcpListener, counts: Arc<Counts>) {
    while let Ok((stream, _)) = listener.accept().await {
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            let service = service_fn(move |request| take(request, Arc::clone(&counts)));
            if let Err(error) = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
            {
                eprintln!("a connection to the sink ended early: {error}");
            }
        });
    }
}

async fn take(request: Request<Incoming>, counts: Arc<Counts>) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    counts.requests.fetch_add(1, Ordering::Relaxed);
    counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    Ok(Response::new(Empty::new()))
}
