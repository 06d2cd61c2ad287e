//! What an error says, and what it must not; what JSON cannot show.

use serde_json::{Value, json};

use super::*;
use crate::otlp::wire;

/// Stands for a client's words and numbers.
const SECRET: &str = "s3cr3t prompt";
const SECRET_NUMBER: u64 = 86_753_090_421;
/// Longest error: names of fields, what is expected, line and column.
const ERROR_BYTES_MAX: usize = 300;

/// A request with every kind of value in it.
fn whole(signal: Signal) -> Value {
    let attributes = json!([
        {"key": "a", "value": {"stringValue": "b"}},
        {"key": "c", "value": {"arrayValue": {"values": [{"intValue": "1"}, {"boolValue": true}]}}},
        {"key": "d", "value": {"kvlistValue": {"values": [{"key": "e", "value": {"doubleValue": 1.5}}]}}},
        {"key": "f", "value": {"bytesValue": "AAEC"}},
    ]);
    let resource = json!({"attributes": attributes, "droppedAttributesCount": 1});
    let scope = json!({"name": "n", "version": "1", "attributes": attributes});
    match signal {
        Signal::Traces => {
            json!({"resourceSpans": [{"resource": resource, "schemaUrl": "u", "scopeSpans": [{"scope": scope, "spans": [{
                "traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331", "name": "n", "kind": 2,
                "startTimeUnixNano": "1", "attributes": attributes, "status": {"code": "STATUS_CODE_ERROR", "message": "m"},
                "events": [{"name": "n", "timeUnixNano": "1", "attributes": attributes}],
                "links": [{"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331"}],
            }]}]}]})
        }
        Signal::Metrics => {
            json!({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"scope": scope, "metrics": [
                {"name": "n", "sum": {"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [{"asInt": "1", "attributes": attributes}]}},
                {"name": "n", "histogram": {"dataPoints": [{"count": "1", "sum": 1.5, "bucketCounts": ["1"], "explicitBounds": [1.5]}]}},
            ]}]}]})
        }
        Signal::Logs => json!({"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": [{
            "timeUnixNano": "1", "severityNumber": "SEVERITY_NUMBER_INFO", "body": {"stringValue": "b"}, "attributes": attributes,
            "flags": 1, "traceId": "0af7651916cd43dd8448eb211c80319c",
        }]}]}]}),
    }
}

/// The places of all values within one.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(list) => list.iter().enumerate().for_each(|(n, one)| places(one, &format!("{at}/{n}"), found)),
        Value::Object(map) => map.iter().for_each(|(key, one)| places(one, &format!("{at}/{key}"), found)),
        _ => {}
    }
}

#[test]
fn no_error_quotes_a_value_whatever_is_wrong_and_wherever_it_is() {
    let wrong = [
        json!(SECRET),
        json!(format!("{SECRET}\n").repeat(300)),
        json!([SECRET]),
        json!({ SECRET: SECRET }),
        json!([[SECRET, SECRET_NUMBER]]),
        json!(SECRET_NUMBER),
        json!(-(SECRET_NUMBER as i64)),
        json!(SECRET_NUMBER as f64 + 0.5),
        json!(true),
    ];
    let mut refused = 0;
    for signal in Signal::ALL {
        let whole = whole(signal);
        to_protobuf_strictly(signal, whole.to_string().as_bytes()).expect("it is right as it is");
        let mut found = Vec::new();
        places(&whole, "", &mut found);
        for (place, wrong) in found.iter().flat_map(|place| wrong.iter().map(move |wrong| (place, wrong))) {
            let mut text = whole.clone();
            *text.pointer_mut(place).expect("there") = wrong.clone();
            for text in [text.to_string(), serde_json::to_string_pretty(&text).expect("writes")] {
                let cut = &text[..text.floor_char_boundary(text.len() * 2 / 3)];
                let broken = text.replacen(SECRET, &format!("{SECRET}\\q"), 1);
                for text in [&text, cut, &broken, &format!("{text}{SECRET}")] {
                    let Err(error) = to_protobuf(signal, text.as_bytes()) else { continue };
                    refused += 1;
                    let said = error.to_string();
                    assert!(!said.contains("s3cr3t") && !said.contains("86753090421"), "{place}: {said}");
                    assert!(said.len() <= ERROR_BYTES_MAX && said.contains(" at line "), "{place}: {said}");
                }
            }
        }
    }
    assert!(refused > 5000, "{refused}");
}

#[test]
fn a_slip_of_the_pen_is_an_error_with_its_name_and_place_for_who_edits_and_nothing_for_who_receives() {
    let text = whole(Signal::Traces).to_string().replace("\"startTimeUnixNano\"", "\n\"startTimeUnixNanos\"");
    to_protobuf(Signal::Traces, text.as_bytes()).expect("passed over");
    let error = to_protobuf_strictly(Signal::Traces, text.as_bytes()).expect_err("refused").to_string();
    let expected =
        "there is no field `startTimeUnixNanos` in Span (did you mean `startTimeUnixNano`?) at line 2 column 20";
    assert_eq!(error, expected);
    for (text, expected) in [
        (r#"{"name": "a", "flags": 1, "name": "b"}"#, "`name` is there twice in Span"),
        (r#"{"traceId": "", "trace_id": ""}"#, "`traceId` is there twice in Span"),
        (
            r#"{"attributes": [{"key": "k", "value": {"intValue": 1, "stringValue": "1"}}]}"#,
            "AnyValue has `intValue` or `stringValue`, not both",
        ),
    ] {
        let text = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{text}]}}]}}]}}"#);
        to_protobuf(Signal::Traces, text.as_bytes()).expect("the last holds");
        let error = to_protobuf_strictly(Signal::Traces, text.as_bytes()).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    let long = format!("{{\"{}\": 1}}", "\u{1b}x".repeat(100_000));
    let error = to_protobuf_strictly(Signal::Logs, long.as_bytes()).expect_err("refused").to_string();
    assert!(error.len() <= ERROR_BYTES_MAX && !error.contains('\u{1b}'), "{error}");
    let proto_names = br#"{"resource_spans":[{"scope_spans":[{"spans":[{"trace_id":"","end_time_unix_nano":1}]}]}]}"#;
    to_protobuf_strictly(Signal::Traces, proto_names).expect("these are names too");
}

#[test]
fn fields_that_no_table_has_are_found_at_every_level() {
    let mut whole = to_protobuf(Signal::Traces, whole(Signal::Traces).to_string().as_bytes()).expect("valid").to_vec();
    assert_eq!(unknown_fields(Signal::Traces, &whole), Ok(None));
    // A span with field 99, twice: as a number and as a group.
    let span = [&[0x98, 0x06, 7][..], &[0x9b, 0x06, 0x08, 1, 0x9c, 0x06]].concat();
    for number in [2, 2, 1] {
        let inner = std::mem::take(&mut whole);
        let inner = if number == 2 && inner.len() > 100 { span.clone() } else { inner };
        whole = [&[number << 3 | 2, inner.len() as u8][..], &inner].concat();
    }
    wire::scan(Signal::Traces, &whole).expect("valid");
    let found = unknown_fields(Signal::Traces, &whole).expect("read").expect("there are");
    assert_eq!(found, Unknown { fields: 2, first_number: 99, first_in: "Span" });
    assert!(found.to_string().starts_with("2 fields that this version does not know, the first is number 99 of Span"));
}
