//! Trace requests of a given size whose ids are written in place, so that every span of a run is unique.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

/// The resource attribute that carries a request's identity: `<run id, 16 hex digits>-<number, 12 digits>`.
pub const IDENTITY_KEY: &str = "forebay.bench.request";
const TRACE_ID_PLACE: [u8; 16] = *b"\xF1trace id place\xF2";
const IDENTITY_PLACE: &str = "0000000000000000-000000000000";
/// The smallest span this generator can make, in encoded bytes.
pub const SPAN_BYTES_MIN: usize = 400;
/// A request must fit a receiver's default limit.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;

/// One encoded request and where its ids are.
pub struct Template {
    bytes: Vec<u8>,
    identity_at: usize,
    /// Offsets of the spans' trace ids; each span id follows 2 bytes behind its trace id.
    trace_ids_at: Vec<usize>,
}

impl Template {
    /// `seed` makes templates differ in content.
    pub fn new(seed: u64, spans: usize, span_bytes: usize) -> Result<Template, String> {
        if span_bytes < SPAN_BYTES_MIN {
            return Err(format!("--span-bytes is {span_bytes}; the smallest is {SPAN_BYTES_MIN}"));
        }
        if spans == 0 || spans.saturating_mul(span_bytes) > REQUEST_BYTES_MAX {
            return Err(format!(
                "{spans} spans of {span_bytes} bytes make no request; take 1 to {} spans a request",
                REQUEST_BYTES_MAX / span_bytes
            ));
        }
        let mut random = fastrand::Rng::with_seed(seed);
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: vec![
                        text("service.name", "forebay-bench"),
                        text("service.version", env!("CARGO_PKG_VERSION")),
                        text(IDENTITY_KEY, IDENTITY_PLACE),
                    ],
                    ..Default::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope { name: "forebay.bench".into(), ..Default::default() }),
                    spans: (0..spans).map(|_| span(&mut random, span_bytes)).collect(),
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        };
        let bytes = request.encode_to_vec();
        let identity_at = positions(&bytes, IDENTITY_PLACE.as_bytes()).next();
        let trace_ids_at: Vec<usize> = positions(&bytes, &TRACE_ID_PLACE).collect();
        match identity_at {
            Some(identity_at) if trace_ids_at.len() == spans => Ok(Template { bytes, identity_at, trace_ids_at }),
            _ => Err("the ids are not where the encoder puts them: a bug in forebay-bench".into()),
        }
    }

    /// The request with the identity and the ids of number `number` of run `run`.
    pub fn render(&self, run: u64, number: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let identity = identity(run, number);
        bytes[self.identity_at..self.identity_at + IDENTITY_PLACE.len()].copy_from_slice(identity.as_bytes());
        let first = number.wrapping_mul(self.trace_ids_at.len() as u64);
        for (at, index) in self.trace_ids_at.iter().zip(1..) {
            bytes[*at..at + 8].copy_from_slice(&run.to_be_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&(number + 1).to_be_bytes());
            bytes[at + 18..at + 26].copy_from_slice(&(first + index).to_be_bytes());
        }
        bytes
    }

    pub fn spans(&self) -> u64 {
        self.trace_ids_at.len() as u64
    }
}

/// The text that names one request of one run.
pub fn identity(run: u64, number: u64) -> String {
    format!("{run:016x}-{:012}", number % 1_000_000_000_000)
}

fn positions<'a>(bytes: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(wanted.len()).enumerate().filter(move |(_, window)| *window == wanted).map(|(at, _)| at)
}

fn value(value: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

fn text(key: &str, content: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value(Value::StringValue(content.into())), ..Default::default() }
}

fn number(key: &str, content: i64) -> KeyValue {
    KeyValue { key: key.into(), value: value(Value::IntValue(content)), ..Default::default() }
}

/// A model call of an agent, padded to `span_bytes` encoded bytes with words of its own.
fn span(random: &mut fastrand::Rng, span_bytes: usize) -> Span {
    let start_ns = 1_700_000_000_000_000_000 + random.u64(..1_000_000_000_000);
    let mut span = Span {
        trace_id: TRACE_ID_PLACE.to_vec(),
        span_id: vec![0; 8],
        parent_span_id: random.u64(1..).to_be_bytes().to_vec(),
        name: "chat.completion".into(),
        kind: 3,
        start_time_unix_nano: start_ns,
        end_time_unix_nano: start_ns + random.u64(1_000_000..30_000_000_000),
        attributes: vec![
            text("gen_ai.system", "openai"),
            text("gen_ai.request.model", "gpt-4o-mini"),
            number("gen_ai.usage.input_tokens", random.i64(1..100_000)),
            number("gen_ai.usage.output_tokens", random.i64(1..4_000)),
            text("session.id", &format!("{:032x}", random.u128(..))),
            text("http.request.method", "POST"),
            text("gen_ai.prompt", ""),
        ],
        status: Some(Status { message: String::new(), code: 1 }),
        ..Default::default()
    };
    // Lengths grow by a byte each at 128, so the padding is found by trying; it converges at once.
    let mut words = String::new();
    for _ in 0..4 {
        let missing = span_bytes as i64 - span.encoded_len() as i64;
        let wanted = (words.len() as i64 + missing).max(0) as usize;
        while words.len() < wanted {
            words.push_str(WORDS[random.usize(..WORDS.len())]);
        }
        words.truncate(wanted);
        if let Some(padded) = span.attributes.last_mut() {
            *padded = text("gen_ai.prompt", &words);
        }
    }
    span
}

const WORDS: [&str; 16] = [
    "the ", "agent ", "asked ", "for ", "a ", "summary ", "of ", "invoice ", "4711 ", "and ", "then ", "called ",
    "tool ", "search ", "with ", "query ",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn spans_have_the_asked_size_and_unique_ids() {
        let template = Template::new(7, 10, 551).unwrap();
        let mut seen = HashSet::new();
        for request_number in 0..3 {
            let bytes = template.render(42, request_number);
            let request = ExportTraceServiceRequest::decode(bytes.as_slice()).unwrap();
            let resource = &request.resource_spans[0];
            let Some(Value::StringValue(found)) =
                resource.resource.as_ref().unwrap().attributes[2].value.clone().unwrap().value
            else {
                panic!("the identity is no text")
            };
            assert_eq!(found, identity(42, request_number));
            for span in &resource.scope_spans[0].spans {
                assert!((550..=552).contains(&span.encoded_len()), "{}", span.encoded_len());
                assert!(seen.insert((span.trace_id.clone(), span.span_id.clone())));
            }
        }
        assert_eq!(seen.len(), 30);
    }

    #[test]
    fn sizes_that_make_no_request_are_refused() {
        assert!(Template::new(0, 1, 10).is_err());
        assert!(Template::new(0, 0, 551).is_err());
        assert!(Template::new(0, 1_000_000, 551).is_err());
    }
}
