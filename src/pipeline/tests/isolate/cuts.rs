//! Where a refused batch is cut.

use opentelemetry_proto::tonic::common::v1::InstrumentationScope;

use super::*;

/// Puts one record of spans in these envelopes: for each resource its scopes, for each scope how many spans.
async fn put_shape(router: &Router, resources: &[&[usize]], poison: usize) {
    let mut at = 0;
    let mut spans = |count: usize| {
        let names = (at..at + count).map(|n| if n == poison { format!("poison {n}") } else { format!("good {n}") });
        at += count;
        names.map(|name| Span { name, ..Span::default() }).collect()
    };
    let resource_spans = resources.iter().map(|scopes| ResourceSpans {
        scope_spans: scopes
            .iter()
            .enumerate()
            .map(|(n, count)| ScopeSpans {
                scope: Some(InstrumentationScope { name: format!("scope {n}"), ..InstrumentationScope::default() }),
                spans: spans(*count),
                ..ScopeSpans::default()
            })
            .collect(),
        ..ResourceSpans::default()
    });
    let message = ExportTraceServiceRequest { resource_spans: resource_spans.collect() };
    put_payload(router, message.encode_to_vec(), at as u64).await;
}

/// Items of the requests, in their order, and what was parked.
async fn sent(resources: &[&[usize]], poison: usize) -> (Vec<u64>, Vec<Vec<String>>) {
    let case = case();
    put_shape(&case.router, resources, poison).await;
    let exporter = scripted(hates_poison);
    case.deliver_all(&case.destination(&exporter, |_| {})).await;
    let sizes = exporter.seen.lock().iter().map(|batch| batch.items).collect();
    (sizes, case.parked().into_keys().collect())
}

#[tokio::test]
async fn a_batch_is_cut_between_resources_then_scopes_where_one_ends_near_the_middle() {
    let parked = vec![vec!["poison 99".to_owned()]];
    // The whole, then what lies before the poison's own envelope.
    let (sizes, poison) = sent(&[&[42], &[58]], 99).await;
    assert_eq!((&sizes[..2], &poison), (&[100, 42][..], &parked), "between resources");
    let (sizes, poison) = sent(&[&[44, 56]], 99).await;
    assert_eq!((&sizes[..2], &poison), (&[100, 44][..], &parked), "between scopes");
    let (sizes, poison) = sent(&[&[40, 10], &[50]], 99).await;
    assert_eq!((&sizes[..2], &poison), (&[100, 50][..], &parked), "resources before scopes, the nearest to the middle");
    let (sizes, poison) = sent(&[&[5], &[95]], 99).await;
    assert_eq!((&sizes[..2], &poison), (&[100, 50][..], &parked), "none is near");
}
