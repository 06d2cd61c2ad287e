//! Several queues beside each other whose destinations are dead: what bounds them is the disk.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::ledger::{Ledger, check, drained, load};
use support::{Forebay, Sink, client, eventually, free_ports};

const QUEUES: usize = 6;
const SPANS_PER_REQUEST: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_whose_destinations_are_dead_take_what_the_disk_holds_and_not_what_memory_holds() {
    let (sink, address) = Sink::start().await;
    sink.refuse_with.store(503, Ordering::SeqCst);
    let ports: [u16; QUEUES] = free_ports();
    let [health_port] = free_ports();
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = dir.path().join("forebay.yaml");
    let each = |line: &dyn Fn(usize) -> String| (0..QUEUES).map(line).collect::<String>();
    let receivers = each(&|n| format!("  otlp/{n}: {{protocols: {{http: {{endpoint: 127.0.0.1:{}}}}}}}\n", ports[n]));
    let retry = "retry_on_failure: {initial_interval: 20ms, max_interval: 100ms}";
    let exporters = each(&|n| format!("  otlp_http/{n}: {{endpoint: 'http://{address}', {retry}}}\n"));
    let pipelines = each(&|n| format!("    traces/{n}: {{receivers: [otlp/{n}], exporters: [otlp_http/{n}]}}\n"));
    let text = format!(
        "receivers:\n{receivers}exporters:\n{exporters}\
         extensions:\n  health_check: {{endpoint: 127.0.0.1:{health_port}}}\n\
         forebay: {{memory: {{limit: 16MiB}}, queue: {{max_size: 64MiB}}}}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}\n  \
         pipelines:\n{pipelines}"
    );
    std::fs::write(&config, text).expect("configuration written");
    let mut forebay = Forebay::start(&config, &dir.path().join("data"), health_port, &dir.path().join("log"));
    let client = client();
    forebay.ready(&client).await;
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = ports
        .iter()
        .map(|port| {
            let url = format!("http://127.0.0.1:{port}/v1/traces");
            tokio::spawn(load(client.clone(), url, SPANS_PER_REQUEST, Arc::clone(&ledger), Arc::clone(&stop)))
        })
        .collect();
    let mut refusal = String::new();
    eventually("intake goes on to the cap of the disk", async || {
        let url = format!("http://127.0.0.1:{health_port}/readyz?capacity=1");
        refusal = client.get(url).send().await.expect("answered").text().await.expect("a body");
        refusal.contains("the queue is at its cap")
    })
    .await;
    assert!(refusal.contains("held by exporter"), "{refusal}");
    stop.store(true, Ordering::SeqCst);
    for task in clients {
        task.await.expect("no panic");
    }
    let acknowledged = ledger.acknowledged.lock().len();
    sink.refuse_with.store(0, Ordering::SeqCst);
    eventually("everything acknowledged is delivered", async || drained(&ledger, &sink).await).await;
    check(&ledger, &sink.taken.lock()).expect("unchanged");
    assert_eq!(forebay.stop().await, 0);
    println!("many queues: {acknowledged} spans acknowledged before the disk's cap");
}
