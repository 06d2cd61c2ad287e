//! Servers that answer as they are told and keep what they were asked.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a server was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// The server that TLS was asked for.
    pub server_name: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// One answer, given to every request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    pub trailers: Option<Vec<(&'static str, String)>>,
}

impl Answer {
    pub fn http(status: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> Answer {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Answer { status, headers, body: body.into(), trailers: None }
    }

    /// A message and a status in the trailers.
    pub fn grpc(message: &[u8], trailers: &[(&'static str, &str)]) -> Answer {
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(message);
        let trailers = trailers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Answer { trailers: Some(trailers), ..Answer::http(200, &[("content-type", "application/grpc")], body) }
    }

    /// A status without a message: all in the headers.
    pub fn grpc_status(code: i32, message: &str) -> Answer {
        let code = code.to_string();
        let headers = [("content-type", "application/grpc"), ("grpc-status", code.as_str()), ("grpc-message", message)];
        Answer::http(200, &headers, "")
    }
}

/// Ends with the test's runtime.
pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub async fn start(answer: Answer) -> Server {
        Server::start_with(answer, None).await
    }

    /// On a port that was free a moment ago.
    pub async fn start_at(address: SocketAddr, answer: Answer) -> Server {
        Server::run(TcpListener::bind(address).await.expect("bound"), answer, None)
    }

    /// HTTP/1.1 and HTTP/2 on one port, over TLS with an acceptor.
    pub async fn start_with(answer: Answer, tls: Option<TlsAcceptor>) -> Server {
        Server::run(TcpListener::bind("127.0.0.1:0").await.expect("bound"), answer, tls)
    }

    fn run(listener: TcpListener, answer: Answer, tls: Option<TlsAcceptor>) -> Server {
        let address = listener.local_addr().expect("bound");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, kept, tls) = (answer.clone(), Arc::clone(&kept), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, None, answer, kept).await,
                        Some(tls) => {
                            // A client that does not trust us hangs up here.
                            if let Ok(stream) = tls.accept(stream).await {
                                let name = stream.get_ref().1.server_name().map(str::to_owned);
                                serve(stream, name, answer, kept).await;
                            }
                        }
                    }
                });
            }
        });
        Server { address, asked }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    server_name: Option<String>,
    answer: Answer,
    kept: Arc<Mutex<Vec<Asked>>>,
) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (answer, kept, server_name) = (answer.clone(), Arc::clone(&kept), server_name.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let host = parts.headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
            let authority = parts.uri.authority().map(|authority| authority.to_string()).or(host).unwrap_or_default();
            kept.lock().push(Asked {
                path: parts.uri.path().to_owned(),
                authority,
                server_name,
                headers: parts.headers,
                body,
            });
            let mut response = Response::builder().status(answer.status);
            for (name, value) in &answer.headers {
                response = response.header(*name, value);
            }
            let mut frames = vec![];
            if !answer.body.is_empty() {
                frames.push(Ok::<_, hyper::Error>(Frame::data(answer.body)));
            }
            if let Some(trailers) = answer.trailers {
                let pairs = trailers
                    .into_iter()
                    .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().expect("a header value")));
                frames.push(Ok(Frame::trailers(pairs.collect())));
            }
            Ok::<_, hyper::Error>(response.body(StreamBody::new(stream::iter(frames))).expect("a response"))
        }
    });
    // How a connection ends is the client's side of the test.
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
