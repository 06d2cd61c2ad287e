//! What is cut is what prost would leave out, and nothing else changes.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::otlp::tests::{Dice, make, put_delimited, put_key, signals};

/// The same by prost: decode, leave out, encode.
fn retain_decoded(signal: Signal, request: &[u8], keep: &dyn Fn(usize) -> bool) -> Vec<u8> {
    let mut index = 0;
    let mut keep_next = || {
        index += 1;
        keep(index - 1)
    };
    match signal {
        Signal::Traces => {
            let mut request = ExportTraceServiceRequest::decode(request).expect("valid");
            for resource in &mut request.resource_spans {
                resource.scope_spans.iter_mut().for_each(|scope| scope.spans.retain(|_| keep_next()));
                resource.scope_spans.retain(|scope| !scope.spans.is_empty());
            }
            request.resource_spans.retain(|resource| !resource.scope_spans.is_empty());
            request.encode_to_vec()
        }
        Signal::Logs => {
            let mut request = ExportLogsServiceRequest::decode(request).expect("valid");
            for resource in &mut request.resource_logs {
                resource.scope_logs.iter_mut().for_each(|scope| scope.log_records.retain(|_| keep_next()));
                resource.scope_logs.retain(|scope| !scope.log_records.is_empty());
            }
            request.resource_logs.retain(|resource| !resource.scope_logs.is_empty());
            request.encode_to_vec()
        }
        Signal::Metrics => {
            let mut request = ExportMetricsServiceRequest::decode(request).expect("valid");
            for resource in &mut request.resource_metrics {
                for scope in &mut resource.scope_metrics {
                    scope.metrics.retain_mut(|metric| {
                        let left = match &mut metric.data {
                            None => 0,
                            Some(Data::Gauge(data)) => only(&mut data.data_points, &mut keep_next),
                            Some(Data::Sum(data)) => only(&mut data.data_points, &mut keep_next),
                            Some(Data::Histogram(data)) => only(&mut data.data_points, &mut keep_next),
                            Some(Data::ExponentialHistogram(data)) => only(&mut data.data_points, &mut keep_next),
                            Some(Data::Summary(data)) => only(&mut data.data_points, &mut keep_next),
                        };
                        left > 0
                    });
                }
                resource.scope_metrics.retain(|scope| !scope.metrics.is_empty());
            }
            request.resource_metrics.retain(|resource| !resource.scope_metrics.is_empty());
            request.encode_to_vec()
        }
    }
}

fn only<T>(points: &mut Vec<T>, keep_next: &mut dyn FnMut() -> bool) -> usize {
    points.retain(|_| keep_next());
    points.len()
}

fn canonical(signal: Signal, request: &[u8]) -> Vec<u8> {
    match signal {
        Signal::Traces => ExportTraceServiceRequest::decode(request).expect("valid").encode_to_vec(),
        Signal::Metrics => ExportMetricsServiceRequest::decode(request).expect("valid").encode_to_vec(),
        Signal::Logs => ExportLogsServiceRequest::decode(request).expect("valid").encode_to_vec(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_cut_request_is_what_prost_would_have_left(signal in signals(), seed in 1u64.., mask in any::<u64>()) {
        let request = make(schema::request(signal), &mut Dice(seed), 6);
        let counted = wire::scan(signal, &request).expect("valid").items as usize;
        prop_assert_eq!(items(signal, &request).expect("valid").len(), counted);
        let keep = |index: usize| mask >> (index % 64) & 1 == 1;
        let kept = (0..counted).filter(|index| keep(*index)).count();
        match retain(signal, &request, &mut { keep }).expect("valid") {
            None => prop_assert_eq!(kept, counted),
            Some(cut) => {
                prop_assert!(kept < counted);
                prop_assert_eq!(wire::scan(signal, &cut).expect("still valid").items as usize, kept);
                prop_assert_eq!(canonical(signal, &cut), retain_decoded(signal, &request, &keep));
            }
        }
    }

    #[test]
    fn noise_is_an_error_and_never_a_panic(signal in signals(), bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let listed = items(signal, &bytes);
        let cut = retain(signal, &bytes, &mut |index| index % 2 == 0);
        if wire::scan(signal, &bytes).is_ok() {
            prop_assert!(listed.is_ok() && cut.is_ok());
        }
    }
}

fn wrapped(number: u32, inner: &[u8], unknown: &[u8]) -> Vec<u8> {
    let mut outer = unknown.to_vec();
    put_key(&mut outer, number, 2);
    put_delimited(&mut outer, inner);
    outer.extend_from_slice(unknown);
    outer
}

#[test]
fn unknown_fields_stay_at_every_level_and_lengths_shrink_by_a_byte_where_they_must() {
    let mut unknown = Vec::new();
    put_key(&mut unknown, 1000, 2);
    put_delimited(&mut unknown, &[0xFF, 0xFE]);
    let span = |name: &[u8]| wrapped(5, name, &unknown);
    let (long, short) = (span(&[b'l'; 200]), span(b"short"));
    let scope = [wrapped(2, &long, &[]), unknown.clone(), wrapped(2, &short, &[])].concat();
    let request = |scope: &[u8]| wrapped(1, &wrapped(2, scope, &unknown), &unknown);
    let cut = retain(Signal::Traces, &request(&scope), &mut |index| index == 1).expect("valid").expect("cut");
    assert_eq!(cut, request(&[unknown.clone(), wrapped(2, &short, &[])].concat()));
    let none = retain(Signal::Traces, &request(&scope), &mut |_| false).expect("valid").expect("cut");
    assert_eq!(none, unknown.repeat(2));
    assert_eq!(retain(Signal::Traces, &request(&scope), &mut |_| true), Ok(None));
}

#[test]
fn items_know_their_resource_and_their_scope() {
    let span = wrapped(2, &[], &[]);
    let scope = |spans: usize| wrapped(2, &span.repeat(spans), &[]);
    let request =
        [wrapped(1, &[scope(2), scope(0), scope(1)].concat(), &[]), wrapped(1, &[], &[]), wrapped(1, &scope(1), &[])]
            .concat();
    let places: Vec<_> =
        items(Signal::Traces, &request).expect("valid").iter().map(|item| (item.resource, item.scope)).collect();
    assert_eq!(places, [(0, 0), (0, 0), (0, 2), (2, 3)]);
}
