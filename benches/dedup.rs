//! What dedup costs: hashing a request and its spans, looking keys up among ten million, and ending them.
//!
//! `cargo bench --bench dedup`. Latencies of single batches, while the table fills too, and what expiry takes are printed.

#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forebay::dedup::Match;
use forebay::dedup::keys::{Keys, SECRET_LEN};
use forebay::dedup::seen::{Known, Seen, ticket};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

const SPANS: usize = 1000;
const SPAN_BYTES: usize = 551;
const LIVE_KEYS: usize = 10_000_000;
/// 24 bytes for each.
const TABLE_BYTES: u64 = 24 * LIVE_KEYS as u64;
const WINDOW: Duration = Duration::from_secs(600);
const NOW: Duration = Duration::from_secs(1000);

fn request() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let spans = (0..SPANS).map(|_| {
        let mut span = Span {
            trace_id: std::iter::repeat_with(|| random.u8(1..)).take(16).collect(),
            span_id: std::iter::repeat_with(|| random.u8(1..)).take(8).collect(),
            ..Span::default()
        };
        while span.encoded_len() < SPAN_BYTES {
            span.name.push(random.alphanumeric());
        }
        span
    });
    let scope_spans = vec![ScopeSpans { spans: spans.collect(), ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
        .encode_to_vec()
}

fn hashes(criterion: &mut Criterion) {
    let request = request();
    let mut random = fastrand::Rng::with_seed(1);
    let keys = Keys::new(std::array::from_fn(|_| random.u8(..)));
    assert_eq!(SECRET_LEN, 192);
    let mut group = criterion.benchmark_group("keys");
    group.throughput(Throughput::Bytes(request.len() as u64));
    group.bench_function("request", |bencher| bencher.iter(|| keys.hash(black_box(&request))));
    let mut found = Vec::new();
    for (name, by) in [("spans/exact", Match::Exact), ("spans/id", Match::Id)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| keys.spans(black_box(&request), by, &mut found));
            assert_eq!(found.len(), SPANS);
        });
    }
    group.finish();
}

fn percentiles(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: batches of {SPANS}: p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
        at(0.5),
        at(0.99),
        at(0.999),
        took[took.len() - 1]
    );
}

/// The same measure of work that waits for nothing: what of the longest batches is the machine's.
fn control() {
    let keys = Keys::new([3; SECRET_LEN]);
    let bytes = vec![7; 6 << 20];
    let took = (0..LIVE_KEYS / SPANS).map(|_| {
        let started = Instant::now();
        black_box(keys.hash(black_box(&bytes)));
        started.elapsed()
    });
    percentiles("control, one hash of 6 MiB instead", took.collect());
}

fn lookups(criterion: &mut Criterion) {
    control();
    let mut random = fastrand::Rng::with_seed(2);
    let seen = Seen::new(TABLE_BYTES, WINDOW, NOW);
    let keys: Vec<u128> = (0..LIVE_KEYS).map(|_| random.u128(1..)).collect();
    let mut took = Vec::new();
    for (number, batch) in keys.chunks(SPANS).enumerate() {
        let started = Instant::now();
        let holder = ticket();
        seen.claim(batch, &holder, NOW, |_, _| ());
        seen.add(batch, number as u64, NOW);
        took.push(started.elapsed());
    }
    percentiles("claim and add, from empty to full", took);
    let figures = seen.figures(NOW);
    let missing = keys.iter().filter(|key| !is_known(&seen, **key)).count();
    println!(
        "{LIVE_KEYS} keys added, {missing} of them gone early, {:.1} bytes a key, effective window {:?}",
        figures.bytes as f64 / figures.keys as f64,
        figures.effective_window
    );
    let mut order = keys.clone();
    random.shuffle(&mut order);
    let took = order.chunks(SPANS).map(|batch| {
        let started = Instant::now();
        let mut known = 0;
        seen.claim(batch, &ticket(), NOW, |_, found| known += u32::from(matches!(found, Known::Durable)));
        assert!(known > 0);
        started.elapsed()
    });
    percentiles("probe of known keys", took.collect());

    let mut group = criterion.benchmark_group("seen_of_10M");
    group.throughput(Throughput::Elements(SPANS as u64));
    let mut batches = order.chunks(SPANS).cycle();
    group.bench_function(BenchmarkId::new("probe", "known"), |bencher| {
        bencher.iter(|| {
            let batch = batches.next().expect("endless");
            seen.claim(batch, &ticket(), NOW, |_, found| {
                black_box(found);
            });
        });
    });
    group.bench_function(BenchmarkId::new("claim and let go", "new"), |bencher| {
        bencher.iter(|| {
            let batch: Vec<u128> = (0..SPANS).map(|_| random.u128(1..)).collect();
            seen.claim(&batch, &ticket(), NOW, |_, found| {
                black_box(found);
            });
            seen.void(&batch);
        });
    });
    let mut sequence = LIVE_KEYS as u64;
    group.bench_function(BenchmarkId::new("claim and add", "new"), |bencher| {
        bencher.iter(|| {
            let batch: Vec<u128> = (0..SPANS).map(|_| random.u128(1..)).collect();
            seen.claim(&batch, &ticket(), NOW, |_, found| {
                black_box(found);
            });
            sequence += 1;
            seen.add(&batch, sequence, NOW);
        });
    });
    group.finish();
}

/// What the end of the window costs, whatever it ends: all keys are of one moment, so they go in one call. The call
/// after it, in which nothing ends, is what asking costs. A table that has grown stays as large.
fn expiry(_: &mut Criterion) {
    let mut random = fastrand::Rng::with_seed(4);
    let seen = Seen::new(TABLE_BYTES, WINDOW, NOW);
    let mut now = NOW;
    for (count, rounds) in [(1_000, 201), (100_000, 51), (LIVE_KEYS, 5), (100_000, 51), (1_000, 201)] {
        let (mut ending, mut resting) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let keys: Vec<u128> = (0..count).map(|_| random.u128(1..)).collect();
            keys.chunks(SPANS).for_each(|batch| seen.add(batch, round, now));
            // Another epoch begins, so that the last one ends as well.
            now += WINDOW / 8;
            let before = seen.figures(now).keys;
            assert!(before > count as u64 * 99 / 100, "{before} of {count}");
            now += WINDOW + Duration::from_secs(1);
            let ask = || {
                let started = Instant::now();
                assert_eq!(seen.figures(now).keys, 0);
                started.elapsed()
            };
            ending.push(ask());
            resting.push(ask());
        }
        let mib = seen.figures(now).bytes >> 20;
        for (what, took) in [("they end", &mut ending), ("nothing ends", &mut resting)] {
            took.sort_unstable();
            let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
            println!("expiry of {count} keys in {mib} MiB, {what}: median {median:?}, longest {longest:?} of {rounds}");
        }
    }
}

fn is_known(seen: &Seen, key: u128) -> bool {
    let mut is_known = false;
    seen.claim(&[key], &ticket(), NOW, |_, found| is_known = matches!(found, Known::Durable));
    if !is_known {
        seen.void(&[key]);
    }
    is_known
}

criterion_group!(benches, hashes, lookups, expiry);
criterion_main!(benches);
