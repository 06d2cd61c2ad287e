//! Offers in flight at once, commits that fail, clients that hang up, requests seen in part.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

use super::rig::{CURSOR, Rig, TRACES, Want, names, request, span};
use crate::dedup::Match;
use crate::otlp::{Encoding, Signal};
use crate::queue::RefusedReason;
use crate::settings::Sizer;

const BY_SPAN: Want = Want { spans: Some(Match::Exact), ..TRACES };
/// As many failures in a row make the writer give up a group.
const FAILURES: u32 = 3;

#[test]
fn two_identical_requests_in_flight_at_once_are_stored_once_and_both_acknowledged_when_durable() {
    for want in [TRACES, BY_SPAN, Want { requests: false, ..BY_SPAN }] {
        let rig = Rig::new(&[want]);
        let message = request(vec![span(1, 1, "a"), span(1, 2, "b")]);
        let (first, second) = (rig.traces(&message), rig.traces(&message));
        assert!(!first.is_finished() && !second.is_finished(), "nothing is durable yet");
        rig.commit();
        assert_eq!(rig.answer(first), Ok(0));
        assert_eq!(rig.answer(second), Ok(2));
        assert_eq!(rig.stored(rig.log()).len(), 1);
        assert_eq!(rig.send(&message), 2);
        assert_eq!(rig.stored(rig.log()).len(), 1);
    }
}

#[test]
fn when_the_commit_between_fails_the_one_that_waited_is_stored() {
    for want in [TRACES, BY_SPAN] {
        let rig = Rig::new(&[want]);
        let message = request(vec![span(1, 1, "a")]);
        let (first, second) = (rig.traces(&message), rig.traces(&message));
        rig.world.update_faults(|faults| faults.failing_syncs = FAILURES);
        rig.commit();
        assert_eq!(rig.answer(first).map_err(|refused| refused.reason), Err(RefusedReason::Storage));
        // A log that gave up takes a step to find out that it works again; meanwhile the one that waited is refused.
        rig.log().write_pending();
        rig.commit();
        let waited = rig.answer(second);
        let stored = rig.stored(rig.log()).len();
        assert_eq!(stored, usize::from(waited == Ok(0)), "{waited:?}");
        assert_eq!(rig.send(&message), stored as u64, "a duplicate only of what is stored");
        assert_eq!(rig.stored(rig.log()).len(), 1);
    }
}

#[test]
fn a_full_disk_between_fails_one_request_and_the_one_that_waited_is_stored() {
    let rig = Rig::new(&[TRACES]);
    let message = request(vec![span(1, 1, "a")]);
    let (first, second) = (rig.traces(&message), rig.traces(&message));
    rig.world.update_faults(|faults| faults.failing_writes = 1);
    rig.commit();
    assert_eq!(rig.answer(first).map_err(|refused| refused.reason), Err(RefusedReason::Full));
    assert!(!second.is_finished(), "it is the original now");
    rig.commit();
    assert_eq!(rig.answer(second), Ok(0));
    assert_eq!(rig.stored(rig.log()).len(), 1);
}

#[test]
fn a_client_that_hangs_up_and_comes_again_finds_its_request_stored() {
    for want in [TRACES, BY_SPAN] {
        let rig = Rig::new(&[want]);
        let message = request(vec![span(1, 1, "a")]);
        let first = rig.traces(&message);
        first.abort();
        rig.turn();
        let second = rig.traces(&message);
        rig.commit();
        assert_eq!(rig.answer(second), Ok(1), "it waited for the first, which nobody else waits for");
        assert_eq!(rig.stored(rig.log()).len(), 1);
    }
}

#[test]
fn requests_that_hold_each_others_spans_do_not_wait_for_ever() {
    let rig = Rig::new(&[BY_SPAN]);
    let (a, b, c) = (span(1, 1, "a"), span(1, 2, "b"), span(1, 3, "c"));
    let first = rig.traces(&request(vec![a.clone(), b.clone()]));
    let second = rig.traces(&request(vec![c.clone(), b.clone(), a.clone()]));
    let third = rig.traces(&request(vec![a, c, b]));
    rig.commit();
    assert_eq!([rig.answer(first), rig.answer(second), rig.answer(third)], [Ok(0), Ok(2), Ok(3)]);
    let stored: Vec<_> = rig.stored(rig.log()).iter().map(|(_, message)| names(message)).collect();
    assert_eq!(stored, [vec!["a", "b"], vec!["c"]]);
}

#[test]
fn a_group_that_fails_after_a_cut_voids_what_was_new_and_only_that() {
    let rig = Rig::new(&[BY_SPAN]);
    let (old, new) = (span(1, 1, "old"), span(1, 2, "new"));
    assert_eq!(rig.send(&request(vec![old.clone()])), 0);
    let both = request(vec![old, new]);
    let failing = rig.traces(&both);
    rig.world.update_faults(|faults| faults.failing_syncs = FAILURES);
    rig.commit();
    assert!(rig.answer(failing).is_err());
    rig.log().write_pending();
    assert_eq!(rig.send(&both), 1, "the old one is a duplicate, the new one is stored");
    assert_eq!(names(&rig.stored(rig.log()).last().expect("stored").1), ["new"]);
    assert_eq!(rig.send(&both), 2);
}

#[test]
fn what_one_queue_has_and_another_could_not_take_is_stored_only_where_it_is_missing() {
    let one = Want { queue: "one", ..TRACES };
    let two = Want { queue: "two", ..BY_SPAN };
    let rig = Rig::new(&[one, two]);
    let message = request(vec![span(1, 1, "a")]);
    let answer = rig.traces(&message);
    rig.running().logs[0].write_pending();
    rig.world.update_faults(|faults| faults.failing_syncs = FAILURES);
    rig.running().logs[1].write_pending();
    rig.turn();
    assert!(rig.answer(answer).is_err());
    rig.running().logs[1].write_pending();
    assert_eq!(rig.send(&message), 1);
    let counts: Vec<usize> = rig.running().logs.iter().map(|log| rig.stored(log).len()).collect();
    assert_eq!(counts, [1, 1]);
}

#[test]
fn a_queue_without_room_refuses_what_is_new_and_takes_what_it_has() {
    let rig = Rig::new(&[BY_SPAN]);
    rig.log().limit_backlog(CURSOR, Sizer::Requests, 1);
    let message = request(vec![span(1, 1, "a")]);
    assert_eq!(rig.send(&message), 0);
    let refused = rig.traces(&request(vec![span(1, 2, "b")]));
    assert_eq!(rig.answer(refused).map_err(|refused| refused.reason), Err(RefusedReason::Full));
    assert_eq!(rig.send(&message), 1, "a repetition needs no room");
    rig.log().settle(CURSOR, 0..1);
    assert_eq!(rig.send(&request(vec![span(1, 2, "b")])), 0, "what was refused was never seen");
}

/// Spans in several scopes of several resources, with fields that nobody knows.
fn large(count: u16) -> ExportTraceServiceRequest {
    let resource = |number: usize| Resource {
        attributes: vec![KeyValue {
            key: "service.name".to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue(format!("service-{number}"))) }),
            ..KeyValue::default()
        }],
        ..Resource::default()
    };
    let spans: Vec<Span> = (1..=count).map(|id| span(1, id, &format!("span-{id}"))).collect();
    let scopes = spans.chunks(50).enumerate().map(|(number, spans)| ScopeSpans {
        scope: Some(InstrumentationScope { name: format!("scope-{number}"), ..InstrumentationScope::default() }),
        spans: spans.to_vec(),
        schema_url: "scope".to_owned(),
    });
    let scopes: Vec<ScopeSpans> = scopes.collect();
    let resource_spans = scopes.chunks(4).enumerate().map(|(number, scopes)| ResourceSpans {
        resource: Some(resource(number)),
        scope_spans: scopes.to_vec(),
        schema_url: "resource".to_owned(),
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
}

#[test]
fn of_a_thousand_spans_of_which_400_were_seen_exactly_the_other_600_are_stored() {
    for (encoding, by) in
        [(Encoding::Identity, Match::Exact), (Encoding::Gzip, Match::Exact), (Encoding::Zstd, Match::Id)]
    {
        let rig = Rig::new(&[Want { spans: Some(by), ..TRACES }]);
        let whole = large(1000);
        // Every span of the first scope, so that it goes wholly, and some of the others.
        let is_seen = |id: usize| id <= 50 || (id > 300 && id <= 300 + 350);
        let keep = |mut request: ExportTraceServiceRequest, wanted: &dyn Fn(usize) -> bool| {
            for resource in &mut request.resource_spans {
                for scope in &mut resource.scope_spans {
                    scope.spans.retain(|span| wanted(span.name[5..].parse().expect("a number")));
                }
                resource.scope_spans.retain(|scope| !scope.spans.is_empty());
            }
            request.resource_spans.retain(|resource| !resource.scope_spans.is_empty());
            request
        };
        let seen = keep(whole.clone(), &is_seen);
        assert_eq!(rig.send(&seen.encode_to_vec()), 0);
        // An unknown field behind it all stays.
        let unknown = [0xFA, 0x01, 0x02, b'?', b'?'];
        let message = [whole.encode_to_vec(), unknown.to_vec()].concat();
        let answer = rig.offer(Signal::Traces, &message, encoding, None);
        rig.commit();
        assert_eq!(rig.answer(answer), Ok(400));
        let stored = rig.stored(rig.log());
        let left = keep(whole, &|id| !is_seen(id));
        assert_eq!(stored.len(), 2);
        assert_eq!(stored[1].1, [left.encode_to_vec(), unknown.to_vec()].concat());
        assert_eq!(names(&stored[1].1).len(), 600);
        assert_eq!(rig.send(&message), 1000);
    }
}

#[test]
fn memory_comes_back_whatever_became_of_the_request() {
    let rig = Rig::new(&[BY_SPAN]);
    let message = large(1000).encode_to_vec();
    rig.send(&message);
    let half = large(1500).encode_to_vec();
    assert_eq!(rig.send(&half), 1000);
    rig.send(&half);
    rig.log().settle(CURSOR, 0..rig.log().durable_end());
    assert_eq!(rig.budget.used_bytes(), 0);
}
