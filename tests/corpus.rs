//! Every file of `tests/corpus` and what must become of it. See the README there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use forebay::otlp::compression::{self, InflateError};
use forebay::otlp::{Encoding, Signal, json, wire};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

/// No file inflates beyond this, but the bomb.
const LIMIT_BYTES: usize = 1 << 20;

/// Items, and how many of them have an identity.
const VALID: &[(&str, u64, u64)] = &[
    ("logs/valid/empty.json", 0, 0),
    ("logs/valid/entity-reference.json", 1, 0),
    ("logs/valid/entity-reference.pb", 1, 0),
    ("logs/valid/every-field.json", 3, 0),
    ("logs/valid/every-field.pb", 3, 0),
    ("metrics/valid/every-kind.json", 6, 0),
    ("metrics/valid/every-kind.pb", 6, 0),
    ("metrics/valid/gauge-replaced-by-sum.pb", 1, 0),
    ("metrics/valid/not-numbers.json", 5, 0),
    ("metrics/valid/not-numbers.pb", 5, 0),
    // Skipped without recursion.
    ("metrics/valid/unknown-name-of-10000-levels.json.gz", 0, 0),
    ("metrics/valid/unpacked-bucket-counts.pb", 1, 0),
    ("traces/valid/empty.pb", 0, 0),
    ("traces/valid/every-field.json", 4, 2),
    ("traces/valid/every-field.pb", 4, 2),
    ("traces/valid/every-field.pb.gz", 4, 2),
    ("traces/valid/lenient.json", 1, 1),
    ("traces/valid/nested-47-levels.pb", 1, 0),
    ("traces/valid/singular-fields-twice.pb", 1, 0),
    ("traces/valid/two-resources.json", 3, 3),
    ("traces/valid/two-resources.pb", 3, 3),
    ("traces/valid/unknown-fields-and-groups.pb", 1, 1),
];

/// What the error says.
const BAD: &[(&str, &str)] = &[
    ("logs/bad/a-bomb-of-10-mib.pb.gz", "inflates beyond 1048576 bytes"),
    ("logs/bad/an-object-as-text.json", "invalid type: map"),
    ("logs/bad/body-not-utf8.pb", "not UTF-8 at byte 10 in resource_logs.scope_logs.log_records.body.string_value"),
    ("logs/bad/bytes-not-base64.json", "bytesValue must be base64"),
    ("logs/bad/nested-10000-levels.json.gz", "recursion limit exceeded at line 1"),
    ("logs/bad/nested-10000-levels.pb.gz", "nested too deeply"),
    ("logs/bad/truncated.pb", "a length reaches beyond the end of its message"),
    ("metrics/bad/count-beyond-64-bits.json", "count must be an integer from 0 to 18446744073709551615"),
    ("metrics/bad/count-negative.json", "count must be an integer from 0"),
    ("metrics/bad/nested-10000-levels.pb.gz", "nested too deeply"),
    ("metrics/bad/packed-bounds-of-9-bytes.pb", "a packed list ends within a number"),
    ("metrics/bad/truncated.pb", "a length reaches beyond the end of its message"),
    ("metrics/bad/unit-not-utf8.pb", "resource_metrics.scope_metrics.metrics.unit"),
    ("traces/bad/a-list-as-request.json", "expected an object (ExportTraceServiceRequest)"),
    ("traces/bad/field-number-0.pb", "field number 0 at byte 0 in ExportTraceServiceRequest"),
    ("traces/bad/group-closed-by-another.pb", "a group ends that did not begin"),
    ("traces/bad/group-not-closed.pb", "the message ends within a number"),
    ("traces/bad/id-not-hexadecimal.json", "traceId must be hexadecimal"),
    ("traces/bad/json-in-a-protobuf-body.pb", "at byte 2 in ExportTraceServiceRequest"),
    ("traces/bad/key-beyond-32-bits.pb", "a field number is too large"),
    ("traces/bad/length-beyond-its-message.pb", "a length reaches beyond the end of its message"),
    ("traces/bad/more-after-the-request.json", "trailing characters"),
    ("traces/bad/name-not-utf8.pb", "resource_spans.scope_spans.spans.name"),
    ("traces/bad/nested-10000-groups.pb.gz", "nested too deeply"),
    ("traces/bad/nested-10000-levels.json.gz", "recursion limit exceeded at line 1"),
    ("traces/bad/nested-10000-levels.pb.gz", "nested too deeply"),
    ("traces/bad/nested-49-levels.pb", "nested too deeply"),
    ("traces/bad/not-utf8.json", "invalid unicode code point at line 1"),
    ("traces/bad/truncated.json", "EOF while parsing a string at line 1"),
    ("traces/bad/truncated.pb", "a length reaches beyond the end of its message"),
    ("traces/bad/varint-beyond-64-bits.pb", "a number is longer than 64 bits"),
    ("traces/bad/varint-of-11-bytes.pb", "a number is longer than 64 bits"),
    ("traces/bad/wire-type-6.pb", "an unknown wire type"),
    ("traces/bad/wrong-wire-type.pb", "the wrong wire type"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn signal_of(name: &str) -> Signal {
    let word = name.split('/').next().unwrap_or_default();
    Signal::ALL.into_iter().find(|signal| signal.name() == word).unwrap_or_else(|| panic!("{name} has no signal"))
}

/// The file as protobuf, as far as a receiver would get with it; also for JSON.
fn read(name: &str) -> Result<Vec<u8>, String> {
    let mut body = std::fs::read(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    if name.ends_with(".gz") {
        let (packed, mut asked) = (std::mem::take(&mut body), 0);
        let result = compression::inflate(Encoding::Gzip, &packed, LIMIT_BYTES, &mut body, &mut |more| {
            asked += more;
            true
        });
        assert!(asked <= LIMIT_BYTES && body.len() <= LIMIT_BYTES, "{name}: asked for {asked} bytes");
        result.map_err(|error: InflateError| error.to_string())?;
    }
    if name.contains(".json") {
        return json::to_protobuf(signal_of(name), &body).map(Vec::from).map_err(|error| error.to_string());
    }
    Ok(body)
}

/// Prost's opinion: the message in its canonical form.
fn decode(signal: Signal, bytes: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    Ok(match signal {
        Signal::Traces => ExportTraceServiceRequest::decode(bytes)?.encode_to_vec(),
        Signal::Metrics => ExportMetricsServiceRequest::decode(bytes)?.encode_to_vec(),
        Signal::Logs => ExportLogsServiceRequest::decode(bytes)?.encode_to_vec(),
    })
}

#[test]
fn the_tables_name_every_file_and_no_other() {
    let mut found = BTreeSet::new();
    for signal in Signal::ALL {
        for kind in ["valid", "bad"] {
            let dir = format!("{}/{kind}", signal.name());
            for entry in std::fs::read_dir(root().join(&dir)).expect("a directory") {
                found.insert(format!("{dir}/{}", entry.expect("an entry").file_name().to_string_lossy()));
            }
        }
    }
    let named: BTreeSet<String> = VALID
        .iter()
        .map(|(name, ..)| name)
        .chain(BAD.iter().map(|(name, _)| name))
        .map(|name| (*name).to_owned())
        .collect();
    assert_eq!(found, named);
}

#[test]
fn what_is_valid_is_counted_as_recorded() {
    for (name, items, identified) in VALID {
        let bytes = read(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let summary = wire::scan(signal_of(name), &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((summary.items, summary.identified), (*items, *identified), "{name}");
        assert!(decode(signal_of(name), &bytes).is_ok(), "{name}");
    }
}

#[test]
fn what_is_bad_is_refused_with_its_reason() {
    let mut wrong = Vec::new();
    for (name, reason) in BAD {
        let signal = signal_of(name);
        let refused = read(name).and_then(|bytes| {
            let scanned = wire::scan(signal, &bytes);
            assert_eq!(scanned.is_err(), decode(signal, &bytes).is_err(), "prost sees {name} differently");
            scanned.map_err(|error| error.to_string())
        });
        match refused {
            Err(error) if error.contains(reason) => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn json_and_protobuf_of_one_name_are_the_same_request() {
    let mut pairs = 0;
    for (name, ..) in VALID {
        let Some(protobuf) = name.strip_suffix(".json").map(|stem| format!("{stem}.pb")) else { continue };
        if !VALID.iter().any(|(other, ..)| *other == protobuf) {
            continue;
        }
        let signal = signal_of(name);
        let from_json = decode(signal, &read(name).expect("valid")).expect("valid");
        let recorded = decode(signal, &read(&protobuf).expect("valid")).expect("valid");
        assert!(from_json == recorded, "{name} and {protobuf} differ");
        pairs += 1;
    }
    assert!(pairs >= 6, "only {pairs} pairs");
}

#[test]
fn what_is_valid_survives_being_written_as_json() {
    for (name, ..) in VALID {
        let (signal, bytes) = (signal_of(name), read(name).expect("valid"));
        let mut line = Vec::new();
        let written = json::write_json(signal, &bytes, &mut line);
        if name.contains("nested") {
            // Deeper than a JSON reader goes, and still written.
            assert!(written.is_ok() && json::to_protobuf(signal, &line).is_err(), "{name}");
            continue;
        }
        written.unwrap_or_else(|error| panic!("{name}: {error}"));
        let back = json::to_protobuf(signal, &line).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(decode(signal, &back).expect("valid") == decode(signal, &bytes).expect("valid"), "{name}");
    }
}
