//! A dead destination whose exporter parks, far past the cap of the queue, and what the dead letters leave to others.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::ledger::{Ledger, check, drained, load, post};
use support::setup::Setup;
use support::{Sink, client, dlq, eventually};

const CAP_BYTES: f64 = 32.0 * 1024.0 * 1024.0;
const SEGMENT_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
const SPANS_PER_REQUEST: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_past_the_cap_leave_intake_open_and_everything_is_delivered_or_a_dead_letter() {
    let (sink, address) = Sink::start().await;
    sink.refuse_with.store(503, Ordering::SeqCst);
    let exporter = format!(
        "{{endpoint: 'http://{address}', retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}, \
         sending_queue: {{num_consumers: 2}}}}"
    );
    let setup = Setup::new("otlp_http", &exporter, "{queue: {max_size: 32MiB, on_full: park}}");
    let client = client();
    let forebay = setup.start(&client).await;
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (url, ledger, stop) = (url.clone(), Arc::clone(&ledger), Arc::clone(&stop));
            tokio::spawn(load(client.clone(), url, SPANS_PER_REQUEST, ledger, stop))
        })
        .collect();
    let mut allocated_max: f64 = 0.0;
    eventually("the dead letters alone are more than the cap, and still more is taken", async || {
        allocated_max = allocated_max.max(setup.sum(&client, "forebay_storage_allocated_bytes").await);
        let letters = setup.sum(&client, "forebay_dead_letters_allocated_bytes").await;
        letters > 1.2 * CAP_BYTES && setup.sum(&client, "forebay_storage_synced_bytes").await > 2.2 * CAP_BYTES
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    for task in clients {
        task.await.expect("no panic");
    }
    assert!(allocated_max <= CAP_BYTES + SEGMENT_BYTES, "{allocated_max} bytes of the queue on disk");
    assert_eq!(setup.sum(&client, "forebay_storage_capacity_bytes").await, CAP_BYTES);

    sink.refuse_with.store(0, Ordering::SeqCst);
    eventually("the rest of the queue is delivered", async || {
        setup.sum(&client, "forebay_queue_backlog_records").await == 0.0
    })
    .await;
    let parked = setup.sum(&client, "forebay_dead_letters_items").await;
    let (accepted, sent) = (
        setup.sum(&client, "otelcol_receiver_accepted_spans").await,
        setup.sum(&client, "otelcol_exporter_sent_spans").await,
    );
    assert_eq!(accepted, sent + parked, "delivered or a dead letter");
    let one_more = async |name: &str| post(&ledger, &setup, &client, name).await;
    eventually("intake is open beside the dead letters", async || one_more("afterwards").await).await;
    assert_eq!(forebay.stop().await, 0);
    let forebay = setup.start(&client).await;
    eventually("intake is open after a restart", async || one_more("after a restart").await).await;
    assert_eq!(setup.sum(&client, "forebay_dead_letters_items").await, parked);

    dlq::stdout(&dlq::dlq(&["replay", "--all"], &setup.dir.path().join("data")));
    eventually("everything acknowledged is delivered", async || drained(&ledger, &sink).await).await;
    check(&ledger, &sink.taken.lock()).expect("unchanged");
    assert_eq!(forebay.stop().await, 0);
    println!(
        "park: {accepted} accepted, {sent} delivered, {parked} parked, the queue had {:.1} MiB on disk at the most",
        allocated_max / 1_048_576.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_found_among_the_dead_letters_at_start_is_counted_and_logged() {
    let setup = Setup::new("debug", "{}", "{}");
    let dlq = setup.dir.path().join("data/dlq");
    std::fs::create_dir_all(&dlq).expect("made");
    std::fs::write(dlq.join("0000000000000009.seg"), vec![0xA5; 16 << 10]).expect("written");
    let client = client();
    let forebay = setup.start(&client).await;
    assert_eq!(setup.sum(&client, "forebay_dead_letters_damaged").await, 1.0);
    assert_eq!(forebay.stop().await, 0);
    let log = std::fs::read_to_string(setup.dir.path().join("log")).expect("a log");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(lines.len() == 1 && lines[0].contains("0000000000000009.seg has no valid header"), "{log}");
}
