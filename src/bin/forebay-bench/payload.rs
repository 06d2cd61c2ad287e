//! Requests to send: realistic spans of a given size, each with ids of its own.

use bytes::Bytes;
use clap::ValueEnum;
use forebay::otlp::{Encoding, compression};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn encoding(self) -> Encoding {
        match self {
            Compression::None => Encoding::Identity,
            Compression::Gzip => Encoding::Gzip,
            Compression::Zstd => Encoding::Zstd,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn span(span_bytes: usize) -> Span {
    let random = |len: usize| (0..len).map(|_| fastrand::u8(..)).collect::<Vec<u8>>();
    let mut span = Span {
        trace_id: random(16),
        span_id: random(8),
        parent_span_id: random(8),
        name: "POST /v1/chat/completions".to_owned(),
        kind: 3,
        start_time_unix_nano: 1_700_000_000_000_000_000 + fastrand::u64(..1 << 40),
        end_time_unix_nano: 1_700_000_001_000_000_000 + fastrand::u64(..1 << 40),
        attributes: vec![
            text("http.request.method", "POST"),
            text("url.path", "/v1/chat/completions"),
            text("server.address", "api.example.com"),
            attribute("server.port", Value::IntValue(443)),
            attribute("http.response.status_code", Value::IntValue(200)),
            text("gen_ai.system", "example"),
            text("gen_ai.request.model", "large-2"),
            attribute("gen_ai.usage.input_tokens", Value::IntValue(fastrand::i64(1..100_000))),
        ],
        ..Span::default()
    };
    // Key, tag and lengths of the padding attribute take about 20 bytes.
    let missing = span_bytes.saturating_sub(span.encoded_len() + 20);
    let words = ["the ", "agent ", "calls ", "a ", "tool ", "and ", "waits ", "for ", "its ", "answer "];
    let mut padding = String::with_capacity(missing + 8);
    while padding.len() < missing {
        padding.push_str(words[fastrand::usize(..words.len())]);
    }
    padding.truncate(missing);
    span.attributes.push(text("gen_ai.prompt", &padding));
    span
}

/// One whole request, compressed as asked.
pub fn request(spans: usize, span_bytes: usize, compression: Compression) -> std::io::Result<Bytes> {
    let scope = InstrumentationScope { name: "forebay-bench".to_owned(), ..InstrumentationScope::default() };
    let scope_spans = ScopeSpans {
        scope: Some(scope),
        spans: (0..spans).map(|_| span(span_bytes)).collect(),
        ..ScopeSpans::default()
    };
    let resource = Resource {
        attributes: vec![text("service.name", "bench"), text("host.name", "host-1")],
        ..Resource::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![scope_spans],
            ..ResourceSpans::default()
        }],
    };
    compression::compress(compression.encoding(), &Bytes::from(request.encode_to_vec()))
}
