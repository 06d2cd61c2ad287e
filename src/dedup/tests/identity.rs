//! Real double senders keep their data.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

use super::rig::{Rig, TRACES, Want, request, span};
use crate::dedup::Match;
use crate::otlp::{Encoding, Signal};

const EXACT: Want = Want { spans: Some(Match::Exact), ..TRACES };
const BY_ID: Want = Want { spans: Some(Match::Id), ..TRACES };

/// Sends one message after the other; how many items each had that were not stored.
fn duplicates(want: Want, messages: &[Vec<u8>]) -> Vec<u64> {
    let rig = Rig::new(&[want]);
    messages.iter().map(|message| rig.send(message)).collect()
}

#[test]
fn the_client_and_the_server_span_of_zipkin_share_an_id_and_are_both_kept() {
    let side = |kind| request(vec![Span { kind, ..span(1, 1, "rpc") }]);
    let pair = [side(3), side(2), side(3), side(2)];
    assert_eq!(duplicates(EXACT, &pair), [0, 0, 1, 1]);
    assert_eq!(duplicates(TRACES, &pair), [0, 0, 1, 1]);
    assert_eq!(duplicates(BY_ID, &pair), [0, 1, 1, 1], "by id alone is the user's choice");
    let both = request(vec![Span { kind: 3, ..span(1, 1, "rpc") }, Span { kind: 2, ..span(1, 1, "rpc") }]);
    assert_eq!(duplicates(EXACT, &[both]), [0]);
}

#[test]
fn a_pending_span_and_its_end_are_both_kept() {
    let update = |end_time_unix_nano| request(vec![Span { end_time_unix_nano, ..span(1, 1, "agent step") }]);
    assert_eq!(duplicates(EXACT, &[update(0), update(7), update(0)]), [0, 0, 1]);
}

#[test]
fn one_span_under_two_resources_or_scopes_is_kept_twice() {
    let within = |service: &str, scope: &str| {
        let attributes = vec![KeyValue {
            key: "service.name".to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue(service.to_owned())) }),
            ..KeyValue::default()
        }];
        let scope = InstrumentationScope { name: scope.to_owned(), ..InstrumentationScope::default() };
        let scope_spans =
            vec![ScopeSpans { scope: Some(scope), spans: vec![span(1, 1, "a")], ..ScopeSpans::default() }];
        let resource = Some(Resource { attributes, ..Resource::default() });
        let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    };
    let messages = [within("x", "s"), within("y", "s"), within("x", "t"), within("x", "s")];
    assert_eq!(duplicates(EXACT, &messages), [0, 0, 0, 1]);
}

#[test]
fn what_has_no_id_is_never_a_duplicate_and_exempts_its_request() {
    for unset in [span(0, 1, "a"), span(1, 0, "a"), Span { trace_id: vec![0; 16], ..span(1, 1, "a") }] {
        let alone = request(vec![unset.clone()]);
        let mixed = request(vec![unset.clone(), span(1, 7, "whole")]);
        for want in [TRACES, EXACT, BY_ID] {
            assert_eq!(duplicates(want, &[alone.clone(), alone.clone()]), [0, 0], "{want:?}");
        }
        assert_eq!(duplicates(TRACES, &[mixed.clone(), mixed.clone()]), [0, 0]);
        assert_eq!(duplicates(EXACT, &[mixed.clone(), mixed]), [0, 1], "the span that has an id is known by it");
    }
}

#[test]
fn a_span_twice_in_one_request_is_stored_once() {
    let twice = request(vec![span(1, 1, "a"), span(1, 1, "a"), span(1, 2, "b")]);
    assert_eq!(duplicates(EXACT, &[twice.clone(), twice]), [1, 3]);
}

fn logs(time: u64, observed: u64) -> Vec<u8> {
    let records = (0..2).map(|_| LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: observed,
        severity_text: "INFO".to_owned(),
        ..LogRecord::default()
    });
    let scope_logs = vec![ScopeLogs { log_records: records.collect(), ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec()
}

fn metrics(time: u64) -> Vec<u8> {
    let data_points = vec![NumberDataPoint { time_unix_nano: time, ..NumberDataPoint::default() }];
    let metrics = vec![Metric { data: Some(Data::Gauge(Gauge { data_points })), ..Metric::default() }];
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
    ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
}

#[test]
fn logs_and_metrics_are_known_by_their_sender_and_only_with_a_time() {
    for (signal, timed, untimed) in [(Signal::Logs, logs(5, 0), logs(0, 0)), (Signal::Metrics, metrics(5), metrics(0))]
    {
        let rig = Rig::new(&[Want { queue: "other", signal, requests: true, spans: None }]);
        let send = |message: &[u8], peer| {
            let answer = rig.offer(signal, message, Encoding::Identity, peer);
            rig.commit();
            rig.answer(answer).expect("accepted")
        };
        assert_eq!(send(&timed, Some("10.0.0.1")), 0);
        assert!(send(&timed, Some("10.0.0.1")) > 0);
        assert_eq!(send(&timed, Some("10.0.0.2")), 0, "two replicas may say the same");
        assert_eq!(send(&timed, None), 0);
        assert_eq!(send(&timed, None), 0, "whose sender is not known is never a duplicate");
        assert_eq!(send(&untimed, Some("10.0.0.1")), 0);
        assert_eq!(send(&untimed, Some("10.0.0.1")), 0);
    }
    assert_eq!(logs(0, 9).len(), logs(9, 0).len());
}
