//! What the two OTLP exporters share: compression by choice, bounded messages, partial success.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;

use crate::otlp::{Encoding, Signal, compression};
use crate::settings::Table;

use super::{Outcome, Payload, heavy};

/// What `User-Agent` says.
pub const USER_AGENT: &str = concat!("forebay/", env!("CARGO_PKG_VERSION"));
/// Of a server's message this much is kept.
const MESSAGE_CHARS_MAX: usize = 1024;

/// `compression` of an exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// gzip, but none to this machine.
    #[default]
    Auto,
    Always(Encoding),
}

impl Compression {
    pub fn read(table: &mut Table<'_>) -> Compression {
        table.unsupported(&["compression_params"]);
        let choices = [
            ("auto", Compression::Auto),
            ("gzip", Compression::Always(Encoding::Gzip)),
            ("zstd", Compression::Always(Encoding::Zstd)),
            ("none", Compression::Always(Encoding::Identity)),
        ];
        table.choice("compression", &choices).unwrap_or_default()
    }

    pub fn for_host(self, host: &str) -> Encoding {
        match self {
            Compression::Always(encoding) => encoding,
            Compression::Auto if is_loopback(host) => Encoding::Identity,
            Compression::Auto => Encoding::Gzip,
        }
    }
}

/// `timeout` of one attempt. Zero would fail every request, and an attempt without end would hold its consumer.
pub fn read_timeout(table: &mut Table<'_>, default: Duration) -> Duration {
    let timeout = table.duration("timeout").unwrap_or(default);
    if timeout.is_zero() {
        table.problem("timeout", "an attempt needs a limit above zero, such as 30s");
    }
    timeout
}

pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The value of `Content-Encoding` and `grpc-encoding`; None: leave it out.
pub fn encoding_name(encoding: Encoding) -> Option<&'static str> {
    match encoding {
        Encoding::Identity => None,
        Encoding::Gzip => Some("gzip"),
        Encoding::Zstd => Some("zstd"),
    }
}

/// Compresses a request's body, off the async worker when it is large.
pub async fn compress(encoding: Encoding, body: Payload) -> std::io::Result<Payload> {
    if encoding == Encoding::Identity {
        return Ok(body);
    }
    let packed = heavy::run(body.len() as u64, move || compression::compress(encoding, &body.into_bytes())).await?;
    packed.map(Payload::from)
}

/// A server's words, on one line and bounded.
pub fn bounded(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The outcome that a whole protobuf answer stands for. An answer that cannot be read is a delivery all the same:
/// the status said so.
pub fn outcome_of_answer(signal: Signal, answer: &[u8]) -> Outcome {
    let partial = match signal {
        Signal::Traces => ExportTraceServiceResponse::decode(answer)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| (partial.rejected_spans, partial.error_message)),
        Signal::Metrics => ExportMetricsServiceResponse::decode(answer)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| (partial.rejected_data_points, partial.error_message)),
        Signal::Logs => ExportLogsServiceResponse::decode(answer)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| (partial.rejected_log_records, partial.error_message)),
    };
    outcome_of_partial(partial)
}

pub fn outcome_of_partial(partial: Option<(i64, String)>) -> Outcome {
    match partial {
        // Nothing rejected and nothing said is full success.
        None => Outcome::Delivered,
        Some((0, message)) if message.is_empty() => Outcome::Delivered,
        Some((rejected, message)) => {
            Outcome::Partial { rejected_items: u64::try_from(rejected).unwrap_or(0), message: bounded(&message) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_compresses_with_gzip_but_not_to_this_machine() {
        for host in ["localhost", "127.0.0.1", "[::1]", "::1", "127.8.8.8"] {
            assert_eq!(Compression::Auto.for_host(host), Encoding::Identity, "{host}");
        }
        assert_eq!(Compression::Auto.for_host("otlp.example.com"), Encoding::Gzip);
        assert_eq!(Compression::Always(Encoding::Zstd).for_host("localhost"), Encoding::Zstd);
    }

    #[test]
    fn a_servers_message_is_one_bounded_line() {
        let text = bounded(&"line\n\u{7}é".repeat(5000));
        assert_eq!(text.chars().count(), MESSAGE_CHARS_MAX);
        assert!(!text.contains('\n'));
    }
}
