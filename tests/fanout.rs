//! Three exporters on one pipeline, one dead, one slow, one fine, far past the cap of their queue.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::ledger::{Ledger, check, drained, load};
use support::{Forebay, Sink, client, eventually, free_ports};

const CAP_BYTES: f64 = 32.0 * 1024.0 * 1024.0;
const SEGMENT_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
const CLIENTS: u64 = 2;
const SPANS_PER_REQUEST: u64 = 200;

struct Page(String);

impl Page {
    async fn read(client: &reqwest::Client, port: u16) -> Page {
        let response = client.get(format!("http://127.0.0.1:{port}/metrics")).send().await.expect("answered");
        Page(response.text().await.expect("a body"))
    }

    /// The sum of a metric's series that have all `labels`.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of_name = self
            .0
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
        let wanted = of_name.filter(|line| labels.iter().all(|label| line.contains(label)));
        wanted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stored_copy_a_bounded_disk_and_an_unaffected_neighbour_past_the_cap() {
    let (fine, fine_address) = Sink::start().await;
    let (slow, slow_address) = Sink::start().await;
    slow.delay_ms.store(400, Ordering::SeqCst);
    let [dead_port, http_port, health_port, metrics_port] = free_ports();
    let dir = tempfile::tempdir().expect("temporary directory");
    let (config, log) = (dir.path().join("forebay.yaml"), dir.path().join("log"));
    let retry = "retry_on_failure: {initial_interval: 20ms, max_interval: 100ms}";
    let text = format!(
        "receivers:\n  otlp: {{protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}}}}}\n\
         exporters:\n\
         \x20 otlp_http/dead: {{endpoint: 'http://127.0.0.1:{dead_port}', {retry}}}\n\
         \x20 otlp_http/slow: {{endpoint: 'http://{slow_address}', {retry}, sending_queue: {{num_consumers: 1, batch: {{min_size: 500, max_size: 1000}}}}}}\n\
         \x20 otlp_http/fine: {{endpoint: 'http://{fine_address}', {retry}}}\n\
         extensions:\n  health_check: {{endpoint: 127.0.0.1:{health_port}}}\n\
         forebay:\n  queue: {{max_size: 32MiB}}\n  exporters:\n    otlp_http/dead: {{on_full: drop}}\n    otlp_http/slow: {{on_full: drop}}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{address: 127.0.0.1:{metrics_port}}}, logs: {{level: warn}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http/dead, otlp_http/slow, otlp_http/fine]}}\n"
    );
    std::fs::write(&config, text).expect("configuration written");
    let mut forebay = Forebay::start(&config, &dir.path().join("data"), health_port, &log);
    let client = client();
    forebay.ready(&client).await;
    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    let url = format!("http://127.0.0.1:{http_port}/v1/traces");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (url, ledger, stop) = (url.clone(), Arc::clone(&ledger), Arc::clone(&stop));
            tokio::spawn(load(client.clone(), url, SPANS_PER_REQUEST, ledger, stop))
        })
        .collect();
    let mut allocated_max: f64 = 0.0;
    eventually("far more than the cap is stored", async || {
        let page = Page::read(&client, metrics_port).await;
        allocated_max = allocated_max.max(page.sum("forebay_storage_allocated_bytes", &[]));
        page.sum("forebay_storage_synced_bytes", &[]) > 1.7 * CAP_BYTES
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    for task in clients {
        task.await.expect("no panic");
    }
    eventually("the fine one has everything", async || drained(&ledger, &fine).await).await;
    check(&ledger, &fine.taken.lock()).expect("everything acknowledged reached the fine one, unchanged");

    // Quiet, but for the slow one: each exporter's books balance.
    let mut page = Page::read(&client, metrics_port).await;
    eventually("accepted = delivered + queued + dropped, for each exporter", async || {
        page = Page::read(&client, metrics_port).await;
        let accepted = page.sum("otelcol_receiver_accepted_spans", &[]);
        ["dead", "slow", "fine"].iter().all(|name| {
            let label = format!("exporter=\"otlp_http/{name}\"");
            let sum = |metric| page.sum(metric, &[label.as_str()]);
            let sent = sum("otelcol_exporter_sent_spans");
            let (queued, dropped) = (sum("forebay_queue_backlog_items"), sum("forebay_exporter_dropped_spans"));
            sent + queued + dropped == accepted
        })
    })
    .await;
    let dropped = |name: &str| {
        let label = format!("exporter=\"otlp_http/{name}\"");
        page.sum("forebay_exporter_dropped_spans", &[&label, "reason=\"queue_full\""])
    };
    let accepted = page.sum("otelcol_receiver_accepted_spans", &[]);
    assert!(dropped("dead") > 0.0 && dropped("slow") > 0.0 && dropped("fine") == 0.0, "{}", page.0);
    assert!(allocated_max <= CAP_BYTES + SEGMENT_BYTES, "{allocated_max} bytes on disk");
    let payload_bytes = ledger.acknowledged.lock().len() as f64
        * support::request(&(0..SPANS_PER_REQUEST).map(|n| format!("span-{}", 100_000 + n)).collect::<Vec<_>>()).len()
            as f64
        / SPANS_PER_REQUEST as f64;
    let copies = page.sum("forebay_storage_synced_bytes", &[]) / payload_bytes;
    assert!((0.9..1.1).contains(&copies), "{copies} stored copies");
    println!(
        "fanout: {accepted} accepted, {} and {} dropped by the dead and the slow, {copies:.2} stored copies, \
         {:.1} MiB on disk at the most, {} requests refused",
        dropped("dead"),
        dropped("slow"),
        allocated_max / 1_048_576.0,
        page.sum("forebay_receiver_refused_requests", &[])
    );
    forebay.kill();
}
