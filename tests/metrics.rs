//! The metrics page: names as dashboards written for the collector expect them, in text that Prometheus reads.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use forebay::admin;
use forebay::telemetry::{self, BacklogFigures, ExporterMetrics, ReceiverMetrics};
use support::client;
use tokio_util::sync::CancellationToken;

/// Every sample by name and labels; panics where Prometheus would refuse the page.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    let mut samples = BTreeMap::new();
    let mut types = BTreeMap::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().expect("a word"), words.next().expect("a name"));
            assert!(is_name(name), "{line}");
            if kind == "TYPE" {
                let of = words.next().expect("a type");
                assert!(["counter", "gauge", "histogram"].contains(&of), "{line}");
                assert!(types.insert(name.to_owned(), of.to_owned()).is_none(), "twice: {line}");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(is_name(name), "{line}");
        assert!(labels.ends_with('}'), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(types.contains_key(name) || types[family] == "histogram", "no type: {line}");
        assert!(samples.insert(series.to_owned(), value.parse().expect("a number")).is_none(), "twice: {line}");
    }
    samples
}

#[tokio::test]
async fn the_page_has_the_collectors_plain_names_and_prometheus_can_read_it() {
    let handle = telemetry::install_metrics().expect("the only recorder of this process");
    let receiver = ReceiverMetrics::new("otlp", "grpc");
    receiver.accepted(0, 1000, Duration::from_millis(3));
    receiver.refused(1, 7, "full");
    receiver.failed(2, 1, "malformed");
    let exporter = ExporterMetrics::new("otlp_http/odd \"name\"\\");
    exporter.sent(0, 900);
    exporter.send_failed(0, 100);
    exporter.in_flight(0, 2);
    exporter.in_flight(0, -1);
    exporter.rejected(0, 3);
    let figures = BacklogFigures { records: 3, size: 4096, capacity: 1 << 20, ..BacklogFigures::default() };
    telemetry::backlog("traces", "otlp_http", "traces", &figures);
    telemetry::storage_space(1, 2, None);
    telemetry::memory(1, 2);
    telemetry::storage_failed("traces", "sync");
    telemetry::storage_damaged("traces", 1, 2);
    telemetry::synced("traces", Duration::from_millis(2), 4, 5000);

    let page = admin::metrics_page("127.0.0.1:0", handle, telemetry::observe_process).await.expect("bound");
    let (url, end) = (format!("http://{}/metrics", page.addresses()[0]), CancellationToken::new());
    page.serve(&end);
    let response = client().get(url).send().await.expect("answered");
    assert!(response.headers()["content-type"].to_str().expect("text").starts_with("text/plain; version=0.0.4"));
    let text = response.text().await.expect("text");
    let samples = parse(&text);
    end.cancel();

    let sample = |series: &str| *samples.get(series).unwrap_or_else(|| panic!("no {series} in\n{text}"));
    assert_eq!(sample(r#"otelcol_receiver_accepted_spans{receiver="otlp",transport="grpc"}"#), 1000.0);
    assert_eq!(sample(r#"otelcol_receiver_refused_metric_points{receiver="otlp",transport="grpc"}"#), 7.0);
    assert_eq!(sample(r#"otelcol_receiver_failed_log_records{receiver="otlp",transport="grpc"}"#), 1.0);
    let odd = r#"exporter="otlp_http/odd \"name\"\\""#;
    assert_eq!(sample(&format!(r#"otelcol_exporter_sent_spans{{{odd},data_type="traces"}}"#)), 900.0);
    assert_eq!(sample(&format!(r#"otelcol_exporter_send_failed_spans{{{odd},data_type="traces"}}"#)), 100.0);
    assert_eq!(sample(&format!(r#"otelcol_exporter_enqueue_failed_spans{{{odd},data_type="traces"}}"#)), 0.0);
    assert_eq!(sample(&format!(r#"otelcol_exporter_in_flight_requests{{{odd},data_type="traces"}}"#)), 1.0);
    let dropped = format!(r#"forebay_exporter_dropped_spans{{{odd},data_type="traces",reason="rejected"}}"#);
    assert_eq!(sample(&dropped), 3.0);
    let queue = r#"{exporter="otlp_http",data_type="traces",queue="traces"}"#;
    assert_eq!(sample(&format!("otelcol_exporter_queue_size{queue}")), 4096.0);
    assert_eq!(sample(&format!("otelcol_exporter_queue_capacity{queue}")), 1048576.0, "same labels, same unit");
    assert_eq!(sample(r#"forebay_sync_duration_seconds_bucket{queue="traces",le="0.0025"}"#), 1.0);
    for process in ["otelcol_process_uptime", "otelcol_process_cpu_seconds", "otelcol_process_memory_rss"] {
        assert!(sample(process) > 0.0, "{process}");
    }
    assert_eq!(sample("forebay_storage_time_to_full_seconds"), f64::INFINITY, "nothing grows");
    assert!(!text.contains("_total"), "plain names");

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let documented = std::fs::read_to_string(path).expect("docs/metrics.md");
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let items = ["_spans", "_metric_points", "_log_records"].iter().find_map(|items| name.strip_suffix(items));
        let shown = items.map_or(format!("`{name}`"), |stem| format!("`{stem}_*`"));
        assert!(documented.contains(&shown), "{shown} is not in docs/metrics.md");
    }
}
