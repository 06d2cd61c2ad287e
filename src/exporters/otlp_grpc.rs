//! The `otlp_grpc` exporter: OTLP over gRPC on tonic's channel.
//!
//! The call is made on the channel itself, not through tonic's client: a status that the server sent can then be told
//! from one that the library made up for a broken connection.

mod connect;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use prost::Message;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic_types::pb::RetryInfo;
use tower::ServiceExt;

use crate::otlp::{Encoding, compression};
use crate::settings::{Secret, Table};

use super::remote::{self, Compression};
use super::{Batch, BuildError, Class, Context, Exporter, Failure, Outcome, Payload, RemoteStatus, StatusPolicy, tls};

pub const MAX_REQUEST_BYTES_DEFAULT: u64 = 4_000_000;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// An answer is a few bytes; more than this is no OTLP server's.
const ANSWER_BYTES_MAX: usize = 64 << 10;
const PREFIX_LEN: usize = 5;
const RETRY_INFO_TYPE: &str = "type.googleapis.com/google.rpc.RetryInfo";
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`, or with `http://` (no TLS), `https://` or `dns:///` before it.
    pub endpoint: Option<String>,
    pub compression: Compression,
    pub headers: Vec<(String, Secret)>,
    pub timeout: Duration,
    pub keepalive_time: Option<Duration>,
    pub keepalive_timeout: Duration,
    pub keepalive_while_idle: bool,
    pub tls: tls::Settings,
    pub max_request_bytes: u64,
    pub status_policy: StatusPolicy,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            endpoint: None,
            compression: Compression::Auto,
            headers: Vec::new(),
            timeout: TIMEOUT_DEFAULT,
            keepalive_time: None,
            keepalive_timeout: Duration::from_secs(10),
            keepalive_while_idle: false,
            tls: tls::Settings::default(),
            max_request_bytes: MAX_REQUEST_BYTES_DEFAULT,
            status_policy: StatusPolicy::default(),
        }
    }
}

impl Settings {
    pub fn read(table: &mut Table<'_>) -> Settings {
        table.unsupported(&[
            "auth",
            "balancer_name",
            "authority",
            "wait_for_ready",
            "read_buffer_size",
            "write_buffer_size",
        ]);
        let mut settings = Settings {
            endpoint: table.text("endpoint"),
            compression: Compression::read(table),
            headers: table.text_map("headers").unwrap_or_default(),
            timeout: remote::read_timeout(table, TIMEOUT_DEFAULT),
            tls: table.table("tls", tls::Settings::read).unwrap_or_default(),
            ..Settings::default()
        };
        table.table("keepalive", |table| {
            settings.keepalive_time = table.duration("time");
            if let Some(timeout) = table.duration("timeout") {
                settings.keepalive_timeout = timeout;
            }
            settings.keepalive_while_idle = table.flag("permit_without_stream").unwrap_or(false);
        });
        if settings.endpoint.is_none() && !table.has("endpoint") {
            table.problem("", "an endpoint is required");
        }
        settings
    }

    /// `host:port` and whether it speaks TLS.
    fn target(&self) -> Result<(String, bool), BuildError> {
        let endpoint = self.endpoint.as_deref().unwrap_or("").trim();
        let (bare, scheme_tls) = if let Some(rest) = endpoint.strip_prefix("https://") {
            (rest, Some(true))
        } else if let Some(rest) = endpoint.strip_prefix("http://") {
            (rest, Some(false))
        } else {
            (endpoint.strip_prefix("dns:///").unwrap_or(endpoint), None)
        };
        let bare = bare.trim_end_matches('/');
        let authority: http::uri::Authority = bare.parse().map_err(|_| {
            BuildError(format!("the endpoint \"{endpoint}\" is not host:port, such as collector.example.com:4317"))
        })?;
        if bare.contains('/') || authority.host().is_empty() {
            return Err(BuildError(format!("the endpoint \"{endpoint}\" has a path; gRPC takes host:port only")));
        }
        let tls = scheme_tls.unwrap_or(true) && !self.tls.insecure;
        let port = authority.port_u16().unwrap_or(if scheme_tls.is_some() { if tls { 443 } else { 80 } } else { 4317 });
        Ok((format!("{}:{port}", authority.host()), tls))
    }
}

impl super::Settings for Settings {
    fn build(&self, context: &Context<'_>) -> Result<Arc<dyn Exporter>, BuildError> {
        let mut settings = self.clone();
        settings.max_request_bytes = context.max_request_bytes.unwrap_or(settings.max_request_bytes);
        settings.status_policy = context.status_policy.clone();
        Ok(Arc::new(build(&settings)?))
    }

    fn is_remote(&self) -> bool {
        true
    }
}

struct OtlpGrpc {
    settings: Settings,
    /// With a number that rises when it is made anew.
    channel: Mutex<(u64, Channel)>,
    target: String,
    encoding: Encoding,
    headers: HeaderMap,
    timeout: Duration,
    max_request_bytes: u64,
    status_policy: StatusPolicy,
}

/// Sets up the channel; it connects with the first request. Must be called within a tokio runtime.
pub fn build(settings: &Settings) -> Result<impl Exporter + use<>, BuildError> {
    let (target, with_tls) = settings.target()?;
    let host = target.rsplit_once(':').map_or("", |(host, _)| host);
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.headers {
        let name = HeaderName::try_from(name.to_ascii_lowercase())
            .map_err(|_| BuildError(format!("headers: \"{name}\" is not a metadata name")))?;
        let mut value = HeaderValue::try_from(value.0.as_str()).map_err(|_| {
            BuildError(format!("headers: the value of \"{name}\" has characters that metadata cannot have"))
        })?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let channel = connect::channel(settings, &target, with_tls)?;
    Ok(OtlpGrpc {
        settings: settings.clone(),
        channel: Mutex::new((0, channel)),
        encoding: settings.compression.for_host(host),
        target,
        headers,
        timeout: settings.timeout,
        max_request_bytes: settings.max_request_bytes,
        status_policy: settings.status_policy.clone(),
    })
}

impl Exporter for OtlpGrpc {
    fn export(&self, batch: Batch) -> BoxFuture<'_, Outcome> {
        async move {
            let (number, channel) = self.channel.lock().clone();
            match tokio::time::timeout(self.timeout, self.send(channel, batch)).await {
                Ok(result) => result.unwrap_or_else(Outcome::Failed),
                Err(_) => {
                    self.renew(number);
                    Outcome::Failed(local(format!("{} did not answer in time", self.target)))
                }
            }
        }
        .boxed()
    }

    fn max_request_bytes(&self) -> u64 {
        self.max_request_bytes
    }
}

/// A failure that no server spoke about: a retry may help.
fn local(message: String) -> Failure {
    Failure {
        class: Class::Retryable,
        status: None,
        retry_after: None,
        too_large: false,
        message: remote::bounded(&message),
    }
}

impl OtlpGrpc {
    /// A connection that carries many requests may be dead without a word, and TCP alone finds out after a quarter of an
    /// hour: after a timeout the next request gets a new one. Requests under way keep theirs.
    fn renew(&self, number: u64) {
        let mut channel = self.channel.lock();
        if channel.0 != number {
            return;
        }
        match self.settings.target().and_then(|(target, with_tls)| connect::channel(&self.settings, &target, with_tls))
        {
            Ok(fresh) => *channel = (number + 1, fresh),
            Err(error) => tracing::warn!(target = %self.target, %error, "the old connection is kept"),
        }
    }

    async fn send(&self, channel: Channel, batch: Batch) -> Result<Outcome, Failure> {
        let message = remote::compress(self.encoding, batch.payload)
            .await
            .map_err(|error| local(format!("failed to compress a batch: {error}")))?;
        let mut prefix = BytesMut::with_capacity(PREFIX_LEN);
        prefix.put_u8(u8::from(self.encoding != Encoding::Identity));
        let len = u32::try_from(message.len()).map_err(|_| local("a batch is beyond gRPC's 4 GiB".to_owned()))?;
        prefix.put_u32(len);
        let mut framed = Payload::from(prefix.freeze());
        message.pieces().for_each(|piece| framed.push(piece.clone()));
        let mut request = Request::new(Body::new(framed));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(batch.signal.grpc_path());
        *request.headers_mut() = self.headers.clone();
        let fixed = [
            (CONTENT_TYPE, "application/grpc"),
            (TE, "trailers"),
            (USER_AGENT, remote::USER_AGENT),
            (HeaderName::from_static("grpc-accept-encoding"), "identity,gzip,zstd"),
        ];
        for (name, value) in fixed {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if let Some(name) = remote::encoding_name(self.encoding) {
            request.headers_mut().insert("grpc-encoding", HeaderValue::from_static(name));
        }
        let timeout = format!("{}m", self.timeout.as_millis().min(99_999_999));
        if let Ok(timeout) = HeaderValue::from_str(&timeout) {
            request.headers_mut().insert("grpc-timeout", timeout);
        }
        let response = channel.oneshot(request).await.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            local(format!("{} cannot be reached: {cause}", self.target))
        })?;
        let answer = self.read(response).await?;
        self.outcome(batch.signal, answer)
    }

    async fn read(&self, response: Response<Body>) -> Result<Answer, Failure> {
        let (parts, mut body) = response.into_parts();
        let mut message = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| local(format!("{} broke off its answer: {error}", self.target)))?;
            match frame.into_data() {
                Ok(data) => {
                    let room = ANSWER_BYTES_MAX.saturating_sub(message.len());
                    message.extend_from_slice(&data[..data.len().min(room)]);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok(Answer { http_status: parts.status.as_u16(), headers: parts.headers, trailers, message: message.freeze() })
    }

    fn outcome(&self, signal: crate::otlp::Signal, answer: Answer) -> Result<Outcome, Failure> {
        let from = |map: &HeaderMap| map.get("grpc-status").map(|status| (status.clone(), map.clone()));
        let status = answer.trailers.as_ref().and_then(from).or_else(|| from(&answer.headers));
        let Some((status, metadata)) = status else {
            if answer.http_status == 200 {
                return Err(local(format!("{} ended its answer without a status", self.target)));
            }
            // A proxy or a web server in between.
            let (class, too_large) = self.status_policy.http(answer.http_status);
            let message =
                format!("{} answered HTTP {} and no gRPC; is it a gRPC port?", self.target, answer.http_status);
            let status = Some(RemoteStatus::Http(answer.http_status));
            return Err(Failure { class, status, retry_after: None, too_large, message });
        };
        let code: i32 = status.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(2);
        if code == 0 {
            return Ok(match answer.payload() {
                Some(payload) => remote::outcome_of_answer(signal, &payload),
                None => Outcome::Delivered,
            });
        }
        let said = metadata.get("grpc-message").map(|message| percent_decoded(message.as_bytes())).unwrap_or_default();
        let retry_after = metadata.get("grpc-status-details-bin").and_then(retry_info);
        let (class, too_large) = self.status_policy.grpc(code, retry_after.is_some(), &said);
        let message = remote::bounded(&format!("{} answered {:?}: {said}", self.target, tonic::Code::from_i32(code)));
        Err(Failure { class, status: Some(RemoteStatus::Grpc(code)), retry_after, too_large, message })
    }
}

struct Answer {
    http_status: u16,
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    message: Bytes,
}

impl Answer {
    /// The message without its prefix, inflated.
    fn payload(&self) -> Option<Vec<u8>> {
        let (prefix, rest) = self.message.split_first_chunk::<PREFIX_LEN>()?;
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let body = rest.get(..len)?;
        if prefix[0] == 0 {
            return Some(body.to_vec());
        }
        let encoding = match self.headers.get("grpc-encoding")?.as_bytes() {
            b"gzip" => Encoding::Gzip,
            b"zstd" => Encoding::Zstd,
            _ => return None,
        };
        let mut out = Vec::new();
        compression::inflate(encoding, body, ANSWER_BYTES_MAX, &mut out, &mut |_| true).ok()?;
        Some(out)
    }
}

fn retry_info(value: &HeaderValue) -> Option<Duration> {
    let status = tonic_types::Status::decode(BASE64.decode(value.as_bytes()).ok()?.as_slice()).ok()?;
    let info = status.details.iter().find(|detail| detail.type_url == RETRY_INFO_TYPE)?;
    // RetryInfo without a delay still says that a retry may help.
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay.unwrap_or_default();
    Some(Duration::new(u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?))
}

fn percent_decoded(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(endpoint: &str, insecure: bool) -> Result<(String, bool), BuildError> {
        let mut settings = Settings { endpoint: Some(endpoint.to_owned()), ..Settings::default() };
        settings.tls.insecure = insecure;
        settings.target()
    }

    #[test]
    fn tls_is_on_unless_the_scheme_or_insecure_says_otherwise() {
        assert_eq!(target("host:4317", false), Ok(("host:4317".to_owned(), true)));
        assert_eq!(target("host:4317", true), Ok(("host:4317".to_owned(), false)));
        assert_eq!(target("http://host:4317", false), Ok(("host:4317".to_owned(), false)));
        assert_eq!(target("https://host", false), Ok(("host:443".to_owned(), true)));
        assert_eq!(target("dns:///host:1", true), Ok(("host:1".to_owned(), false)));
        assert_eq!(target("[::1]:4317", true), Ok(("[::1]:4317".to_owned(), false)));
        assert!(target("https://host/path", false).is_err());
        assert!(target("", false).is_err());
    }

    #[test]
    fn messages_are_percent_decoded() {
        assert_eq!(percent_decoded(b"caf%C3%A9 100% %zz"), "caf\u{e9} 100% %zz");
    }
}
