//! What a record costs on its way through: the scan, the durable append, and the building of a batch.
//!
//! `cargo bench --bench wire_scan`. The appends go to the file system of the temporary directory (`TMPDIR`), with its
//! real fdatasync; on tmpfs they measure nothing.

#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forebay::otlp::{Encoding, Signal, compression, json, wire};
use forebay::pipeline::batch;
use forebay::storage::log::Observer;
use forebay::storage::{Log, NewRecord, Options, RealDisk, Record, StartAt, Store};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

const SPANS: usize = 1000;
const SPAN_BYTES: usize = 551;
/// Requests on their way to the disk at one time, as many connections would have it.
const IN_FLIGHT: usize = 8;
const CURSOR: &str = "bench";

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn span(random: &mut fastrand::Rng) -> Span {
    let text = |key: &str, value: &str| attribute(key, Value::StringValue(value.to_owned()));
    let mut span = Span {
        trace_id: std::iter::repeat_with(|| random.u8(1..)).take(16).collect(),
        span_id: std::iter::repeat_with(|| random.u8(1..)).take(8).collect(),
        parent_span_id: std::iter::repeat_with(|| random.u8(1..)).take(8).collect(),
        name: "POST /v1/chat/completions".to_owned(),
        kind: 3,
        start_time_unix_nano: 1_700_000_000_000_000_000 + random.u64(..1 << 40),
        end_time_unix_nano: 1_700_000_001_000_000_000 + random.u64(..1 << 40),
        attributes: vec![
            text("http.request.method", "POST"),
            text("url.path", "/v1/chat/completions"),
            text("server.address", "api.example.com"),
            attribute("server.port", Value::IntValue(443)),
            attribute("http.response.status_code", Value::IntValue(200)),
            text("gen_ai.system", "example"),
            text("gen_ai.request.model", "large-2"),
            attribute("gen_ai.usage.input_tokens", Value::IntValue(random.i64(1..100_000))),
            text("gen_ai.prompt", ""),
        ],
        ..Span::default()
    };
    let words = ["the ", "agent ", "calls ", "a ", "tool ", "and ", "waits ", "for ", "its ", "answer "];
    let mut prompt = String::new();
    while span.encoded_len() < SPAN_BYTES {
        prompt.push_str(words[random.usize(..words.len())]);
        span.attributes[8] = text("gen_ai.prompt", &prompt);
        while span.encoded_len() > SPAN_BYTES && prompt.pop().is_some() {
            span.attributes[8] = text("gen_ai.prompt", &prompt);
        }
    }
    span
}

fn request() -> Bytes {
    let mut random = fastrand::Rng::with_seed(7);
    let service = attribute("service.name", Value::StringValue("bench".to_owned()));
    let spans = (0..SPANS).map(|_| span(&mut random)).collect();
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![service], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    };
    Bytes::from(request.encode_to_vec())
}

fn encodings() -> [(&'static str, Encoding); 3] {
    [("none", Encoding::Identity), ("gzip", Encoding::Gzip), ("zstd", Encoding::Zstd)]
}

fn otlp(criterion: &mut Criterion) {
    let request = request();
    let summary = wire::scan(Signal::Traces, &request).expect("valid");
    assert_eq!((summary.items, summary.identified), (SPANS as u64, SPANS as u64));
    let mut group = criterion.benchmark_group("otlp");
    group.throughput(Throughput::Bytes(request.len() as u64));
    group.bench_function("scan", |bencher| {
        bencher.iter(|| wire::scan(Signal::Traces, black_box(&request)).expect("valid"));
    });
    let mut out = Vec::new();
    for (name, encoding) in &encodings()[1..] {
        let packed = compression::compress(*encoding, &request).expect("compresses");
        group.bench_function(BenchmarkId::new("inflate", name), |bencher| {
            bencher.iter(|| {
                compression::inflate(*encoding, black_box(&packed), request.len(), &mut out, &mut |_| true)
                    .expect("inflates");
            });
        });
        group.bench_function(BenchmarkId::new("compress", name), |bencher| {
            bencher.iter(|| compression::compress(*encoding, black_box(&request)).expect("compresses"));
        });
    }
    let mut line = Vec::new();
    json::write_json(Signal::Traces, &request, &mut line).expect("writes");
    group.bench_function("json/read", |bencher| {
        bencher.iter(|| json::to_protobuf(Signal::Traces, black_box(&line)).expect("reads"));
    });
    group.bench_function("json/write", |bencher| {
        bencher.iter(|| {
            line.clear();
            json::write_json(Signal::Traces, black_box(&request), &mut line).expect("writes");
        });
    });
    group.finish();
}

/// A bench that loses data is none.
struct Strict;

impl Observer for Strict {
    fn failed(&self, queue: &str, operation: &'static str, error: &std::io::Error) {
        panic!("{operation} in {queue}: {error}");
    }
    fn damaged(&self, queue: &str, lost: &forebay::storage::log::Lost) {
        panic!("{queue} lost {lost:?}");
    }
}

fn append(
    log: &Log,
    payload: &Bytes,
) -> tokio::sync::oneshot::Receiver<Result<forebay::storage::Durable, forebay::storage::AppendError>> {
    let record = NewRecord {
        signal: Signal::Traces as u8,
        encoding: Encoding::Identity as u8,
        items: 1,
        raw_len: payload.len() as u32,
        received_unix_ns: 1,
        metadata: Bytes::new(),
        payload: payload.clone(),
        guard: Arc::new(()),
    };
    let reservation = log.reserve(record.weight()).expect("the queue has room");
    log.append(reservation, record)
}

/// Time for `count` appends, `IN_FLIGHT` at a time, each waited for until it is synced. What is durable is settled at
/// once, so that segments are recycled as they are behind a healthy destination.
fn append_all(log: &Log, payload: &Bytes, count: u64) -> Duration {
    let started = Instant::now();
    let mut left = count;
    while left > 0 {
        let some = left.min(IN_FLIGHT as u64);
        let pending: Vec<_> = (0..some).map(|_| append(log, payload)).collect();
        for answer in pending {
            let _receipt = answer.blocking_recv().expect("the writer answers").expect("durable");
        }
        log.settle(CURSOR, 0..log.durable_end());
        left -= some;
    }
    started.elapsed()
}

fn storage(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) =
        Store::open(Arc::new(RealDisk), dir.path(), &Options::default(), Arc::new(Strict)).expect("the store opens");
    let log = store.queue("bench", &[(CURSOR.to_owned(), StartAt::End)]).expect("a queue");
    let mut group = criterion.benchmark_group("append_and_sync");
    group.sample_size(20);
    let whole = request();
    for payload in [whole.slice(..1 << 10), whole.slice(..64 << 10), whole] {
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(payload.len()), |bencher| {
            bencher.iter_custom(|count| append_all(&log, &payload, count));
        });
    }
    group.finish();
    store.close();
}

fn batches(criterion: &mut Criterion) {
    let request = request();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut group = criterion.benchmark_group("build_batch_of_8");
    group.throughput(Throughput::Bytes(8 * request.len() as u64));
    for (name, encoding) in encodings() {
        let payload = compression::compress(encoding, &request).expect("compresses");
        let record = |sequence| Record {
            sequence,
            signal: Signal::Traces as u8,
            encoding: encoding as u8,
            items: SPANS as u32,
            raw_len: request.len() as u32,
            received_unix_ns: 1,
            metadata: Bytes::new(),
            payload: payload.clone(),
            guard: None,
        };
        let records: Vec<Record> = (0..8).map(record).collect();
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(batch::build(Signal::Traces, black_box(&records))).expect("builds"));
        });
    }
    group.finish();
}

criterion_group!(benches, otlp, storage, batches);
criterion_main!(benches);
