//! What a load counted.

use crate::histogram::Histogram;
use serde::Serialize;
use std::time::Duration;

pub struct Tally {
    requests: u64,
    spans: u64,
    bytes: u64,
    pub refused: u64,
    pub errors: u64,
    pub last_error: Option<String>,
    latency: Histogram,
}

/// What was sent.
#[derive(Debug, Serialize)]
pub struct Identity {
    pub protocol: &'static str,
    pub compression: &'static str,
    pub connections: usize,
    pub spans_per_request: usize,
    pub span_bytes: usize,
    /// 16 hex digits; the first half of every request's identity.
    pub run: String,
}

/// The result of a load, as it is printed.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub identity: Identity,
    pub seconds: f64,
    pub acked_requests: u64,
    pub acked_spans: u64,
    /// Bytes of the acknowledged requests as they went over the wire, without headers.
    pub acked_bytes: u64,
    /// Requests that were answered with anything but success.
    pub refused_requests: u64,
    /// Requests without an answer.
    pub failed_requests: u64,
    pub spans_per_second: f64,
    pub ack_p50_ms: f64,
    pub ack_p99_ms: f64,
    pub ack_p999_ms: f64,
    pub ack_max_ms: f64,
    pub last_error: Option<String>,
}

impl Tally {
    pub fn new() -> Tally {
        Tally { requests: 0, spans: 0, bytes: 0, refused: 0, errors: 0, last_error: None, latency: Histogram::new() }
    }

    pub fn acknowledged(&mut self, spans: u64, bytes: u64, latency: Duration) {
        self.requests += 1;
        self.spans += spans;
        self.bytes += bytes;
        self.latency.record(latency);
    }

    pub fn merge(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.spans += other.spans;
        self.bytes += other.bytes;
        self.refused += other.refused;
        self.errors += other.errors;
        self.latency.merge(&other.latency);
        if other.last_error.is_some() {
            self.last_error.clone_from(&other.last_error);
        }
    }

    pub fn report(self, identity: Identity, elapsed: Duration) -> Report {
        let seconds = elapsed.as_secs_f64();
        Report {
            identity,
            seconds,
            acked_requests: self.requests,
            acked_spans: self.spans,
            acked_bytes: self.bytes,
            refused_requests: self.refused,
            failed_requests: self.errors,
            spans_per_second: self.spans as f64 / seconds,
            ack_p50_ms: self.latency.quantile_ms(0.5),
            ack_p99_ms: self.latency.quantile_ms(0.99),
            ack_p999_ms: self.latency.quantile_ms(0.999),
            ack_max_ms: self.latency.quantile_ms(1.0),
            last_error: self.last_error,
        }
    }
}

impl Report {
    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{} {}: {} spans acknowledged in {:.2} s, {:.0} spans/s\nack p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, \
             max {:.2} ms\nrefused {} requests, {} without an answer",
            self.identity.protocol,
            self.identity.compression,
            self.acked_spans,
            self.seconds,
            self.spans_per_second,
            self.ack_p50_ms,
            self.ack_p99_ms,
            self.ack_p999_ms,
            self.ack_max_ms,
            self.refused_requests,
            self.failed_requests,
        );
        if let Some(error) = &self.last_error {
            text.push_str("\nlast error: ");
            text.push_str(error);
        }
        text
    }
}
