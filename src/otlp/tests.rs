//! The scan and the JSON walkers against prost, over messages made from the tables and then damaged.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use proptest::prelude::*;
use prost::Message as _;

use super::schema::{self, Kind, Message};
use super::{Signal, json, wire};

/// Small repeatable random numbers (xorshift), so that a proptest seed makes a whole message.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_key(out: &mut Vec<u8>, number: u32, wire_type: u64) {
    put_varint(out, u64::from(number) << 3 | wire_type);
}

pub(super) fn put_delimited(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A message with each field there or not, lists of some length, and unknown fields in between.
pub(super) fn make(message: &'static Message, dice: &mut Dice, depth: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for field in message.fields {
        let count = if field.repeated { dice.below(3) } else { dice.below(2) };
        for _ in 0..count {
            if dice.below(20) == 0 {
                put_unknown(&mut out, dice);
            }
            match field.kind {
                Kind::Message(_) if depth == 0 => {}
                Kind::Message(inner) => {
                    let body = make(inner, dice, depth - 1);
                    put_key(&mut out, field.number, 2);
                    put_delimited(&mut out, &body);
                }
                Kind::Text => {
                    let text: String = (0..dice.below(6))
                        .map(|_| ['a', '\n', '"', 'é', '\u{1F600}'][dice.below(5) as usize])
                        .collect();
                    put_key(&mut out, field.number, 2);
                    put_delimited(&mut out, text.as_bytes());
                }
                Kind::Id | Kind::Blob => {
                    let len = [0, 8, 16, 3][dice.below(4) as usize];
                    let bytes: Vec<u8> = (0..len).map(|_| dice.roll() as u8).collect();
                    put_key(&mut out, field.number, 2);
                    put_delimited(&mut out, &bytes);
                }
                kind if field.repeated && dice.below(2) == 0 => {
                    let mut packed = Vec::new();
                    for _ in 0..dice.below(4) {
                        put_number(&mut packed, kind, dice);
                    }
                    put_key(&mut out, field.number, 2);
                    put_delimited(&mut out, &packed);
                }
                kind => {
                    put_key(&mut out, field.number, kind.wire_type() as u64);
                    put_number(&mut out, kind, dice);
                }
            }
        }
    }
    out
}

fn put_number(out: &mut Vec<u8>, kind: Kind, dice: &mut Dice) {
    let number = dice.roll() >> dice.below(64);
    match kind {
        Kind::Bool => put_varint(out, number & 1),
        Kind::Int32 | Kind::Enum(_) => put_varint(out, number as i32 as i64 as u64),
        Kind::Uint32 | Kind::Sint32 => put_varint(out, number & u64::from(u32::MAX)),
        Kind::Int64 | Kind::Uint64 => put_varint(out, number),
        Kind::Fixed32 => out.extend_from_slice(&(number as u32).to_le_bytes()),
        Kind::Double => {
            let double =
                [number as f64 / 3.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -0.0][dice.below(5) as usize];
            out.extend_from_slice(&double.to_le_bytes());
        }
        _ => out.extend_from_slice(&number.to_le_bytes()),
    }
}

fn put_unknown(out: &mut Vec<u8>, dice: &mut Dice) {
    let number = 1000 + dice.below(1000) as u32;
    match dice.below(5) {
        0 => {
            put_key(out, number, 0);
            put_varint(out, dice.roll());
        }
        1 => {
            put_key(out, number, 1);
            out.extend_from_slice(&[1; 8]);
        }
        2 => {
            put_key(out, number, 2);
            put_delimited(out, &[0xFF, 0xFE]);
        }
        3 => {
            put_key(out, number, 5);
            out.extend_from_slice(&[1; 4]);
        }
        _ => {
            put_key(out, number, 3);
            put_key(out, 7, 0);
            put_varint(out, 3);
            put_key(out, number, 4);
        }
    }
}

/// A request with one span that has one attribute of these bytes.
fn with_attribute(attribute: &[u8]) -> Vec<u8> {
    [9, 2, 2, 1].into_iter().fold(attribute.to_vec(), |inner, number| {
        let mut outer = Vec::new();
        put_key(&mut outer, number, 2);
        put_delimited(&mut outer, &inner);
        outer
    })
}

#[test]
fn every_single_damage_of_a_short_attribute_is_judged_as_prost_judges_it() {
    let values: [&[u8]; 7] = [
        b"\x0A\x04POST",
        b"\x0A\x0Banswers \xC3\xA9!",
        b"\x10\x01",
        b"\x18\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01",
        b"\x18\x80\x01",
        b"\x21\x00\x00\x00\x00\x00\x00\xF0\x3F",
        b"",
    ];
    let pair = |key: &[u8], value: &[u8]| {
        let mut pair = Vec::new();
        put_key(&mut pair, 1, 2);
        put_delimited(&mut pair, key);
        put_key(&mut pair, 2, 2);
        put_delimited(&mut pair, value);
        pair
    };
    let check = |attribute: &[u8]| agree(Signal::Traces, &with_attribute(attribute)).expect("agrees");
    for key in [&b""[..], b"key", b"server.address"] {
        for value in values {
            let whole = pair(key, value);
            check(&whole);
            for at in 0..whole.len() {
                let mut damaged = whole.clone();
                for byte in 0..=255 {
                    damaged[at] = byte;
                    check(&damaged);
                }
                check(&whole[..at]);
            }
        }
    }
    // Around the length that takes two bytes.
    for len in 95..140 {
        check(&pair(b"gen_ai.prompt", &[b"\x0A", &[len as u8][..], &vec![b'x'; len][..]].concat()));
        check(&pair(&vec![b'k'; len], b"\x0A\x01x"));
        check(&pair(&vec![0xFF; len], b"\x0A\x01x"));
    }
}

/// What prost makes of it: the canonical bytes and the number of items.
fn decode(signal: Signal, bytes: &[u8]) -> Result<(Vec<u8>, u64), prost::DecodeError> {
    Ok(match signal {
        Signal::Traces => {
            let request = ExportTraceServiceRequest::decode(bytes)?;
            let items =
                request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum::<usize>();
            (request.encode_to_vec(), items as u64)
        }
        Signal::Metrics => {
            let request = ExportMetricsServiceRequest::decode(bytes)?;
            let metrics = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics);
            let items = metrics
                .map(|metric| match &metric.data {
                    Some(Data::Gauge(data)) => data.data_points.len(),
                    Some(Data::Sum(data)) => data.data_points.len(),
                    Some(Data::Histogram(data)) => data.data_points.len(),
                    Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
                    Some(Data::Summary(data)) => data.data_points.len(),
                    None => 0,
                })
                .sum::<usize>();
            (request.encode_to_vec(), items as u64)
        }
        Signal::Logs => {
            let request = ExportLogsServiceRequest::decode(bytes)?;
            let items =
                request.resource_logs.iter().flat_map(|r| &r.scope_logs).map(|s| s.log_records.len()).sum::<usize>();
            (request.encode_to_vec(), items as u64)
        }
    })
}

fn agree(signal: Signal, bytes: &[u8]) -> Result<(), TestCaseError> {
    let ours = wire::scan(signal, bytes);
    let theirs = decode(signal, bytes);
    match (&ours, &theirs) {
        (Ok(summary), Ok((_, items))) => prop_assert_eq!(summary.items, *items),
        (Err(error), Err(_)) => prop_assert!(error.offset <= bytes.len() && !error.path.is_empty()),
        _ => prop_assert!(false, "the scan says {:?}, prost says {:?}", ours, theirs.map(|(_, items)| items)),
    }
    Ok(())
}

pub(super) fn signals() -> impl Strategy<Value = Signal> {
    prop_oneof![Just(Signal::Traces), Just(Signal::Metrics), Just(Signal::Logs)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_scan_agrees_with_prost_on_whole_and_on_damaged_messages(
        signal in signals(),
        seed in 1u64..,
        depth in 3u32..9,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..5), 0..4),
    ) {
        let mut bytes = make(schema::request(signal), &mut Dice(seed), depth);
        agree(signal, &bytes)?;
        for (place, value, how) in damage {
            if bytes.is_empty() {
                break;
            }
            let at = place.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, value),
                _ => { bytes.remove(at); }
            }
            agree(signal, &bytes)?;
        }
    }

    #[test]
    fn the_scan_agrees_with_prost_on_noise(signal in signals(), bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        agree(signal, &bytes)?;
    }

    #[test]
    fn a_message_survives_json_and_back(signal in signals(), seed in 1u64.., depth in 3u32..9) {
        let bytes = make(schema::request(signal), &mut Dice(seed), depth);
        let mut line = Vec::new();
        json::write_json(signal, &bytes, &mut line).expect("writes");
        prop_assert!(!line.contains(&b'\n'));
        let back = json::to_protobuf(signal, &line).map_err(|e| TestCaseError::fail(format!("{e}: {}", String::from_utf8_lossy(&line))))?;
        prop_assert_eq!(decode(signal, &bytes).expect("valid").0, decode(signal, &back).expect("valid").0);
    }

    #[test]
    fn json_noise_is_an_error_and_never_a_panic(signal in signals(), text in "[\\[\\]{}\":,a-z0-9.eE+-]{0,80}") {
        let _ = json::to_protobuf(signal, text.as_bytes());
    }
}

/// `depth` arrays within one attribute's value.
fn nested(depth: usize) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..depth {
        let mut array = Vec::new();
        put_key(&mut array, 1, 2);
        put_delimited(&mut array, &value);
        value = Vec::new();
        put_key(&mut value, 5, 2);
        put_delimited(&mut value, &array);
    }
    for number in [2, 9, 2, 2, 1] {
        let mut outer = Vec::new();
        put_key(&mut outer, number, 2);
        put_delimited(&mut outer, &value);
        value = outer;
    }
    value
}

#[test]
fn the_depth_limit_is_prosts_to_the_level_and_ten_thousand_levels_are_refused_clearly() {
    for depth in 40..60 {
        let bytes = nested(depth);
        assert_eq!(wire::scan(Signal::Traces, &bytes).is_ok(), decode(Signal::Traces, &bytes).is_ok(), "{depth}");
    }
    let error = wire::scan(Signal::Traces, &nested(10_000)).expect_err("refused");
    assert_eq!(error.reason, "nested too deeply");
    let json = format!(
        "{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{{\"value\":{}{}}}]}}}}]}}",
        "{\"arrayValue\":{\"values\":[".repeat(10_000),
        "]}}".repeat(10_000)
    );
    let error = json::to_protobuf(Signal::Traces, json.as_bytes()).expect_err("refused");
    assert!(
        error.to_string().contains("recursion limit") || error.to_string().contains("nested too deeply"),
        "{error}"
    );
}

#[test]
fn an_error_names_the_byte_and_the_path() {
    let mut span = Vec::new();
    put_key(&mut span, 5, 2);
    put_delimited(&mut span, &[0xFF]);
    for number in [2, 2, 1] {
        let mut outer = Vec::new();
        put_key(&mut outer, number, 2);
        put_delimited(&mut outer, &span);
        span = outer;
    }
    let error = wire::scan(Signal::Traces, &span).expect_err("not UTF-8");
    assert_eq!(error.to_string(), "text that is not UTF-8 at byte 8 in resource_spans.scope_spans.spans.name");
}

#[test]
fn spans_with_both_ids_are_counted_as_identified() {
    let span = |trace: &[u8], id: &[u8]| {
        let mut span = Vec::new();
        put_key(&mut span, 1, 2);
        put_delimited(&mut span, trace);
        put_key(&mut span, 2, 2);
        put_delimited(&mut span, id);
        span
    };
    let mut scope = Vec::new();
    for span in [span(&[1; 16], &[2; 8]), span(&[0; 16], &[2; 8]), span(&[1; 16], &[]), span(&[1; 15], &[2; 8])] {
        put_key(&mut scope, 2, 2);
        put_delimited(&mut scope, &span);
    }
    for number in [2, 1] {
        let mut outer = Vec::new();
        put_key(&mut outer, number, 2);
        put_delimited(&mut outer, &scope);
        scope = outer;
    }
    let summary = wire::scan(Signal::Traces, &scope).expect("valid");
    assert_eq!(summary, wire::Summary { items: 4, identified: 1 });
}

#[test]
fn json_is_read_as_leniently_as_the_collector_reads_it() {
    let json = br#"{"resource_spans":[{"scopeSpans":[{"spans":[{"traceId":"5B8EFFF798038103D269B633813FC60C",
        "spanId":"eee19b7ec3c1b174","kind":"SPAN_KIND_SERVER","startTimeUnixNano":1544712660000000000,
        "endTimeUnixNano":"1544712661000000000","status":null,"notAField":{"x":[1,2]},"attributes":[
        {"key":"n","value":{"intValue":"-7"}},{"key":"m","value":{"intValue":7}},{"key":"d","value":{"doubleValue":"NaN"}},
        {"key":"b","value":{"bytesValue":"_-8"}},{"key":"e","value":{}},{"key":"f","value":{"boolValue":false}}]}]}]}]}"#;
    let bytes = json::to_protobuf(Signal::Traces, json).expect("read");
    let request = ExportTraceServiceRequest::decode(&bytes[..]).expect("valid");
    let span = &request.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!((span.trace_id.len(), span.kind, span.end_time_unix_nano), (16, 2, 1_544_712_661_000_000_000));
    let mut line = Vec::new();
    json::write_json(Signal::Traces, &bytes, &mut line).expect("writes");
    let line = String::from_utf8(line).expect("text");
    for part in [
        r#""traceId":"5b8efff798038103d269b633813fc60c""#,
        r#""kind":2"#,
        r#""startTimeUnixNano":"1544712660000000000""#,
        r#"{"intValue":"-7"}"#,
        r#"{"doubleValue":"NaN"}"#,
        r#"{"bytesValue":"/+8="}"#,
        r#"{"boolValue":false}"#,
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn a_json_error_names_line_column_and_field() {
    let error = json::to_protobuf(
        Signal::Logs,
        b"{\"resourceLogs\":[\n{\"scopeLogs\":[{\"logRecords\":[{\"traceId\":\"xyz\"}]}]}]}",
    )
    .expect_err("not hexadecimal");
    assert!(
        error.to_string().starts_with("traceId must be hexadecimal") && error.to_string().contains("line 2"),
        "{error}"
    );
}

#[test]
fn a_million_occurrences_of_a_oneof_are_written_as_json_without_stalling() {
    // An any-value that says again and again what it is, and each time something else: the last holds.
    let value: Vec<u8> = [0x10, 0x01, 0x18, 0x07].repeat(500_000);
    let mut message = value;
    for number in [5, 2, 2, 1] {
        let mut outer = Vec::new();
        put_key(&mut outer, number, 2);
        put_delimited(&mut outer, &message);
        message = outer;
    }
    assert_eq!(wire::scan(Signal::Logs, &message).expect("valid").items, 1);
    let started = std::time::Instant::now();
    let mut line = Vec::new();
    json::write_json(Signal::Logs, &message, &mut line).expect("writes");
    assert_eq!(
        String::from_utf8_lossy(&line),
        r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"intValue":"7"}}]}]}]}"#
    );
    assert!(started.elapsed().as_secs() < 20, "took {:?}", started.elapsed());
}

/// A log body of so many levels of key-value lists, where every value comes in two parts.
fn in_two_parts(levels: usize, text_len: usize) -> Vec<u8> {
    let wrap = |number, inner: &[u8]| {
        let mut outer = Vec::new();
        put_key(&mut outer, number, 2);
        put_delimited(&mut outer, inner);
        outer
    };
    let mut value = wrap(1, &vec![b'x'; text_len]);
    for _ in 0..levels {
        let pair = [vec![0x12, 0], wrap(2, &value)].concat();
        value = wrap(6, &wrap(1, &pair));
    }
    [5, 2, 2, 1].into_iter().fold(value, |inner, number| wrap(number, &inner))
}

#[test]
fn parts_of_a_single_message_merge_in_json_within_a_bound_on_copies() {
    let mut line = Vec::new();
    json::write_json(Signal::Logs, &in_two_parts(2, 3), &mut line).expect("writes");
    assert_eq!(String::from_utf8_lossy(&line).matches("kvlistValue").count(), 2);
    assert!(String::from_utf8_lossy(&line).contains(r#""stringValue":"xxx""#));
    let crafted = in_two_parts(30, 4 << 20);
    assert_eq!(wire::scan(Signal::Logs, &crafted).expect("valid").items, 1);
    let error = json::write_json(Signal::Logs, &crafted, &mut line).expect_err("30 copies of 4 MiB");
    assert!(error.to_string().contains("repeats what may stand once"), "{error}");
}
