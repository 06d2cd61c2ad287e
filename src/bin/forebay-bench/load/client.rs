//! One connection: HTTP/1.1 for OTLP/HTTP, HTTP/2 with hand-made frames for OTLP/gRPC.

use super::Arguments;
use crate::wire::{Compression, Protocol};
use bytes::Bytes;
use forebay::otlp::Signal;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, RETRY_AFTER, TE};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::net::TcpStream;

/// Answers are small; a longer one is an error.
const ANSWER_BYTES_MAX: usize = 1 << 20;

pub enum Answer {
    /// 2xx, or gRPC status 0.
    Acknowledged,
    Refused {
        what: String,
        retry_after: Option<Duration>,
    },
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

pub struct Client {
    sender: Sender,
    uri: Uri,
    host: String,
    compression: Compression,
}

impl Client {
    pub async fn connect(arguments: &Arguments) -> Result<Client, String> {
        let endpoint = arguments.endpoint.strip_prefix("http://").unwrap_or(&arguments.endpoint).trim_end_matches('/');
        if endpoint.contains("://") || endpoint.contains('/') {
            return Err(format!("\"{}\" is no endpoint; write http://host:port", arguments.endpoint));
        }
        let stream = tokio::time::timeout(arguments.timeout, TcpStream::connect(endpoint))
            .await
            .map_err(|_| format!("{endpoint} does not answer"))?
            .map_err(|error| format!("cannot connect to {endpoint}: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("cannot set TCP_NODELAY: {error}"))?;
        let failed = |error: hyper::Error| format!("no HTTP with {endpoint}: {error}");
        let io = TokioIo::new(stream);
        // The connection's task ends with the connection, and its error reaches the request that was in flight.
        let (sender, target) = match arguments.protocol {
            Protocol::Http => {
                let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
                tokio::spawn(connection);
                (Sender::Http1(sender), "/v1/traces".to_owned())
            }
            Protocol::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(failed)?;
                tokio::spawn(connection);
                (Sender::Http2(sender), format!("http://{endpoint}{}", Signal::Traces.grpc_path()))
            }
        };
        let uri = target.parse().map_err(|error| format!("\"{target}\" is no address: {error}"))?;
        Ok(Client { sender, uri, host: endpoint.to_owned(), compression: arguments.compression })
    }

    /// Sends one request and reads the whole answer. After an error the connection is not to be used again.
    pub async fn send(&mut self, body: Bytes) -> Result<Answer, String> {
        let mut request = Request::builder().method(Method::POST).uri(self.uri.clone());
        let grpc = matches!(self.sender, Sender::Http2(_));
        request = if grpc {
            request.header(CONTENT_TYPE, "application/grpc").header(TE, "trailers")
        } else {
            request.header(HOST, &self.host).header(CONTENT_TYPE, "application/x-protobuf")
        };
        if self.compression != Compression::None {
            let name = if grpc { http::HeaderName::from_static("grpc-encoding") } else { CONTENT_ENCODING };
            request = request.header(name, self.compression.name());
        }
        let request = request.body(Full::new(body)).map_err(|error| format!("cannot make a request: {error}"))?;
        let failed = |error: hyper::Error| format!("the request failed: {error}");
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.map_err(failed)?;
                sender.send_request(request).await.map_err(failed)?
            }
            Sender::Http2(sender) => {
                sender.ready().await.map_err(failed)?;
                sender.send_request(request).await.map_err(failed)?
            }
        };
        let (head, mut body) = response.into_parts();
        let mut trailers = HeaderMap::new();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            match frame.map_err(failed)?.into_data() {
                Ok(data) => length += data.len(),
                Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
            if length > ANSWER_BYTES_MAX {
                return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
            }
        }
        let retry_after =
            head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        if !head.status.is_success() {
            return Ok(Answer::Refused { what: format!("HTTP {}", head.status), retry_after });
        }
        if !grpc {
            return Ok(Answer::Acknowledged);
        }
        let text = |name| trailers.get(name).or_else(|| head.headers.get(name)).and_then(|value| value.to_str().ok());
        match text("grpc-status") {
            Some("0") => Ok(Answer::Acknowledged),
            Some(status) => Ok(Answer::Refused {
                what: format!("gRPC status {status}: {}", text("grpc-message").unwrap_or_default()),
                retry_after,
            }),
            None => Err("the answer has no grpc-status".into()),
        }
    }
}
