//! What prost makes of a request.

#![allow(dead_code, reason = "each target uses its part")]

use forebay::otlp::Signal;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use prost::{DecodeError, Message};

/// The request in its canonical form.
pub struct Opinion {
    pub canonical: Vec<u8>,
    pub items: usize,
    pub identified: usize,
}

/// The first byte of an input chooses the signal.
pub fn signal(input: &[u8]) -> Option<(Signal, &[u8])> {
    let (first, rest) = input.split_first()?;
    Some((Signal::ALL[usize::from(*first) % Signal::ALL.len()], rest))
}

pub fn of(signal: Signal, bytes: &[u8]) -> Result<Opinion, DecodeError> {
    Ok(match signal {
        Signal::Traces => {
            let request = ExportTraceServiceRequest::decode(bytes)?;
            let spans = || request.resource_spans.iter().flat_map(|of| &of.scope_spans).flat_map(|of| &of.spans);
            let set = |id: &[u8], len: usize| id.len() == len && id.iter().any(|byte| *byte != 0);
            Opinion {
                canonical: request.encode_to_vec(),
                items: spans().count(),
                identified: spans().filter(|span| set(&span.trace_id, 16) && set(&span.span_id, 8)).count(),
            }
        }
        Signal::Metrics => {
            let request = ExportMetricsServiceRequest::decode(bytes)?;
            let metrics = request.resource_metrics.iter().flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics);
            let items = metrics.map(|metric| match &metric.data {
                Some(Data::Gauge(data)) => data.data_points.len(),
                Some(Data::Sum(data)) => data.data_points.len(),
                Some(Data::Histogram(data)) => data.data_points.len(),
                Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
                Some(Data::Summary(data)) => data.data_points.len(),
                None => 0,
            });
            Opinion { items: items.sum(), identified: 0, canonical: request.encode_to_vec() }
        }
        Signal::Logs => {
            let request = ExportLogsServiceRequest::decode(bytes)?;
            let items = request.resource_logs.iter().flat_map(|of| &of.scope_logs).map(|of| of.log_records.len()).sum();
            Opinion { items, identified: 0, canonical: request.encode_to_vec() }
        }
    })
}
