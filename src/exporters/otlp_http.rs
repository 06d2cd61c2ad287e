//! The `otlp_http` exporter: OTLP over HTTP with reqwest.

mod client;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use prost::Message;
use reqwest::{Response, Url};

use crate::otlp::{Encoding, Signal};
use crate::settings::{Secret, Table};

use super::remote::{self, Compression};
use super::{Batch, BuildError, Class, Context, Exporter, Failure, Outcome, Payload, RemoteStatus, StatusPolicy, tls};
use client::{Clients, Target};

/// Of an answer's body this much is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
pub const MAX_REQUEST_BYTES_DEFAULT: u64 = 16_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Form {
    #[default]
    Proto,
    Json,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub endpoint: Option<String>,
    /// Traces, metrics and logs: used as they are.
    pub signal_endpoints: [Option<String>; 3],
    pub form: Form,
    pub compression: Compression,
    pub headers: Vec<(String, Secret)>,
    pub timeout: Duration,
    /// None: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the environment.
    pub proxy_url: Option<String>,
    pub tls: tls::Settings,
    pub max_request_bytes: u64,
    pub status_policy: StatusPolicy,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            endpoint: None,
            signal_endpoints: [None, None, None],
            form: Form::Proto,
            compression: Compression::Auto,
            headers: Vec::new(),
            timeout: TIMEOUT_DEFAULT,
            proxy_url: None,
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
            "read_buffer_size",
            "write_buffer_size",
            "http2_ping_timeout",
            "http2_read_idle_timeout",
            "max_idle_conns",
            "max_idle_conns_per_host",
            "max_conns_per_host",
            "idle_conn_timeout",
            "disable_keep_alives",
            "cookies",
        ]);
        let settings = Settings {
            endpoint: table.text("endpoint"),
            signal_endpoints: [
                table.text("traces_endpoint"),
                table.text("metrics_endpoint"),
                table.text("logs_endpoint"),
            ],
            form: table.choice("encoding", &[("proto", Form::Proto), ("json", Form::Json)]).unwrap_or_default(),
            compression: Compression::read(table),
            headers: table.text_map("headers").unwrap_or_default(),
            timeout: remote::read_timeout(table, TIMEOUT_DEFAULT),
            proxy_url: table.text("proxy_url").filter(|url| !url.is_empty()),
            tls: table.table("tls", tls::Settings::read).unwrap_or_default(),
            max_request_bytes: MAX_REQUEST_BYTES_DEFAULT,
            status_policy: StatusPolicy::default(),
        };
        if settings.endpoint.is_none()
            && settings.signal_endpoints.iter().all(Option::is_none)
            && !table.has("endpoint")
        {
            table.problem("", "an endpoint is required");
        }
        settings
    }

    /// The URL of a signal; None when nothing is configured for it.
    fn url(&self, signal: Signal) -> Result<Option<Url>, BuildError> {
        if let Some(whole) = &self.signal_endpoints[signal as usize - 1] {
            return self.parse(whole).map(Some);
        }
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let mut url = self.parse(endpoint)?;
        let path = format!("{}/v1/{}", url.path().trim_end_matches('/'), signal.name());
        url.set_path(&path);
        Ok(Some(url))
    }

    /// Without a scheme it is https, but http to this machine or with `tls.insecure`.
    fn parse(&self, endpoint: &str) -> Result<Url, BuildError> {
        let invalid = |reason: String| {
            BuildError(format!("the endpoint \"{endpoint}\" is no URL ({reason}); write it as https://host:port/path"))
        };
        let written = if endpoint.contains("://") {
            endpoint.to_owned()
        } else {
            let plain = format!("http://{endpoint}");
            let host =
                Url::parse(&plain).map_err(|error| invalid(error.to_string()))?.host_str().unwrap_or("").to_owned();
            if self.tls.insecure || remote::is_loopback(&host) { plain } else { format!("https://{endpoint}") }
        };
        let url = Url::parse(&written).map_err(|error| invalid(error.to_string()))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(url),
            "http" | "https" => Err(invalid("no host".to_owned())),
            other => Err(invalid(format!("the scheme {other} is not http or https"))),
        }
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

struct OtlpHttp {
    clients: Clients,
    encodings: [Encoding; 3],
    form: Form,
    headers: HeaderMap,
    max_request_bytes: u64,
    status_policy: StatusPolicy,
}

pub fn build(settings: &Settings) -> Result<impl Exporter + use<>, BuildError> {
    let mut targets = [None, None, None];
    let mut encodings = [Encoding::Identity; 3];
    for (index, signal) in Signal::ALL.into_iter().enumerate() {
        let Some(url) = settings.url(signal)? else { continue };
        encodings[index] = settings.compression.for_host(url.host_str().unwrap_or(""));
        targets[index] = Some(Target::new(settings, url)?);
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.headers {
        let name = HeaderName::try_from(name.as_str())
            .map_err(|_| BuildError(format!("headers: \"{name}\" is not a header name")))?;
        let mut value = HeaderValue::try_from(value.0.as_str()).map_err(|_| {
            BuildError(format!("headers: the value of \"{name}\" has characters that a header cannot have"))
        })?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(OtlpHttp {
        clients: Clients::new(settings, targets)?,
        encodings,
        form: settings.form,
        headers,
        max_request_bytes: settings.max_request_bytes,
        status_policy: settings.status_policy.clone(),
    })
}

impl Exporter for OtlpHttp {
    fn export(&self, batch: Batch) -> BoxFuture<'_, Outcome> {
        async move { self.send(batch).await.unwrap_or_else(Outcome::Failed) }.boxed()
    }

    fn max_request_bytes(&self) -> u64 {
        self.max_request_bytes
    }
}

fn local(class: Class, message: String) -> Failure {
    Failure { class, status: None, retry_after: None, too_large: false, message }
}

impl OtlpHttp {
    async fn send(&self, batch: Batch) -> Result<Outcome, Failure> {
        let index = batch.signal as usize - 1;
        let Some(target) = &self.clients.targets[index] else {
            let message =
                format!("no endpoint is configured for {0}; set endpoint or {0}_endpoint", batch.signal.name());
            return Err(local(Class::Destination, message));
        };
        let (body, content_type) = match self.form {
            Form::Proto => (batch.payload, "application/x-protobuf"),
            Form::Json => {
                let text = batch.payload.into_json(batch.signal).await;
                let text = text.map_err(|error| local(error.class(), error.to_string()))?;
                (Payload::from(Bytes::from(text)), "application/json")
            }
        };
        let encoding = self.encodings[index];
        let body = remote::compress(encoding, body)
            .await
            .map_err(|error| local(Class::Retryable, format!("failed to compress a batch: {error}")))?;
        let (number, client) = self.clients.of(index).await;
        let mut request = client.post(target.request_url.clone());
        if let Some(host) = &target.host_header {
            request = request.header(HOST, host);
        }
        request = request
            .header(CONTENT_TYPE, HeaderValue::from_static(content_type))
            .headers(self.headers.clone())
            .body(reqwest::Body::wrap(body));
        if let Some(name) = remote::encoding_name(encoding) {
            request = request.header(CONTENT_ENCODING, HeaderValue::from_static(name));
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                if error.is_timeout() {
                    self.clients.renew(number).await;
                }
                return Err(transport(&target.url, &error));
            }
        };
        self.outcome(batch.signal, &target.url, response).await
    }

    async fn outcome(&self, signal: Signal, url: &Url, response: Response) -> Result<Outcome, Failure> {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(parse_retry_after);
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let is_json = content_type.starts_with("application/json");
        let body = read_bounded(response).await;
        if status.is_success() {
            if content_type.starts_with("text/html") {
                let message = format!("{} answered {status} with a web page; is the path right?", shown(url));
                let failure =
                    Failure { status: Some(RemoteStatus::Http(status.as_u16())), ..local(Class::Destination, message) };
                return Err(failure);
            }
            return Ok(match (body, is_json) {
                // The status has been read; a body that broke off takes nothing back.
                (None, _) => Outcome::Delivered,
                (Some(body), true) => outcome_of_json(signal, &body),
                (Some(body), false) => remote::outcome_of_answer(signal, &body),
            });
        }
        let (class, too_large) = self.status_policy.http(status.as_u16());
        let said = body.as_deref().map(|body| words_of(body, is_json)).unwrap_or_default();
        let message = format!("{} answered {status}{}{said}", shown(url), if said.is_empty() { "" } else { ": " });
        Err(Failure { class, status: Some(RemoteStatus::Http(status.as_u16())), retry_after, too_large, message })
    }
}

/// A URL for logs: without user, password and query.
fn shown(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), url.authority().rsplit('@').next().unwrap_or(""), url.path())
}

fn transport(url: &Url, error: &reqwest::Error) -> Failure {
    // reqwest says "error sending request"; what happened stands at the end of its chain.
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let what = if error.is_timeout() {
        "did not answer in time".to_owned()
    } else if error.is_connect() {
        format!("cannot be reached: {cause}")
    } else {
        format!("broke off: {cause}")
    };
    local(Class::Retryable, remote::bounded(&format!("{} {what}", shown(url))))
}

/// Up to the limit; None when the connection broke before the end of a short body.
async fn read_bounded(mut response: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == ANSWER_BYTES_MAX {
            break;
        }
    }
    Some(body)
}

/// Seconds, or an HTTP date (RFC 9110 10.2.3).
fn parse_retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// What an error body says: the message of a `google.rpc.Status`, or the start of a text.
fn words_of(body: &[u8], is_json: bool) -> String {
    if is_json
        && let Ok(value) = serde_json::from_slice::<serde_json::Value>(body)
        && let Some(message) = value.get("message").and_then(|message| message.as_str())
    {
        return remote::bounded(message);
    }
    if let Ok(text) = std::str::from_utf8(body)
        && text.chars().all(|c| !c.is_control() || c.is_whitespace())
    {
        return remote::bounded(text.trim());
    }
    match tonic_types::Status::decode(body) {
        Ok(status) => remote::bounded(&status.message),
        Err(_) => String::new(),
    }
}

fn outcome_of_json(signal: Signal, body: &[u8]) -> Outcome {
    let key = match signal {
        Signal::Traces => "rejectedSpans",
        Signal::Metrics => "rejectedDataPoints",
        Signal::Logs => "rejectedLogRecords",
    };
    let partial = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|answer| {
        let partial = answer.get("partialSuccess")?;
        let rejected = partial.get(key).and_then(|n| n.as_i64().or_else(|| n.as_str()?.parse().ok())).unwrap_or(0);
        let message = partial.get("errorMessage").and_then(|message| message.as_str()).unwrap_or("").to_owned();
        Some((rejected, message))
    });
    remote::outcome_of_partial(partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(endpoint: &str, insecure: bool) -> String {
        let mut settings = Settings { endpoint: Some(endpoint.to_owned()), ..Settings::default() };
        settings.tls.insecure = insecure;
        settings.url(Signal::Traces).map(|url| url.expect("configured").to_string()).unwrap_or_else(|error| error.0)
    }

    #[test]
    fn the_signal_path_is_added_and_a_prefix_is_kept() {
        assert_eq!(url("https://host/api/public/otel", false), "https://host/api/public/otel/v1/traces");
        assert_eq!(url("https://host:4318/", false), "https://host:4318/v1/traces");
        assert_eq!(url("localhost:4318", false), "http://localhost:4318/v1/traces");
        assert_eq!(url("collector:4318", false), "https://collector:4318/v1/traces");
        assert_eq!(url("collector:4318", true), "http://collector:4318/v1/traces");
        assert!(url("ftp://host", false).contains("not http or https"));
        assert!(url("", false).contains("no URL"));
    }

    #[test]
    fn a_signal_endpoint_is_used_as_it_is() {
        let whole = "https://host/custom/path".to_owned();
        let settings = Settings { signal_endpoints: [Some(whole.clone()), None, None], ..Settings::default() };
        assert_eq!(settings.url(Signal::Traces).expect("valid").expect("configured").to_string(), whole);
        assert_eq!(settings.url(Signal::Logs).expect("valid"), None);
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let seconds = parse_retry_after(&HeaderValue::from_static("7")).expect("seconds");
        assert_eq!(seconds, Duration::from_secs(7));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let until = parse_retry_after(&HeaderValue::from_str(&date).expect("header")).expect("date");
        assert!(until > Duration::from_secs(90) && until <= Duration::from_secs(100));
        assert_eq!(parse_retry_after(&HeaderValue::from_static("Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        assert_eq!(parse_retry_after(&HeaderValue::from_static("soon")), None);
    }
}
