//! Dedup of the whole process, seen from outside: retries, restarts, kill -9, parts of requests.

mod support;

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use support::dedup::{HEADER, names, rewrite, send, send_message, setup};
use support::{Sink, client, eventually, free_ports, request, span, spans_message};

#[tokio::test]
async fn a_retry_is_acknowledged_and_not_stored_also_after_a_restart_and_after_kill_9() {
    let (sink, address) = Sink::start().await;
    let setup = setup(&format!("http://{address}"));
    let client = client();
    let forebay = setup.start(&client).await;
    let first = names(0..10);
    assert_eq!(send(&setup, &client, &first).await, None);
    assert_eq!(send(&setup, &client, &first).await, Some(10));
    eventually("the first is delivered", async || sink.taken.lock().len() == 10).await;
    let queue = "queue=\"traces\"";
    assert_eq!(setup.sample(&client, "forebay_deduplicated_spans", queue).await, Some(10.0));
    assert_eq!(setup.sample(&client, "otelcol_receiver_accepted_spans", "receiver=\"otlp\"").await, Some(20.0));
    assert_eq!(setup.sample(&client, "forebay_dedup_keys", queue).await, Some(1.0));
    assert_eq!(setup.sample(&client, "forebay_dedup_effective_window_seconds", queue).await, Some(600.0));
    assert_eq!(forebay.stop().await, 0);

    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &first).await, Some(10));
    // Killed at once: its fingerprint may not be written yet, and is made again from the record.
    let second = names(10..20);
    assert_eq!(send(&setup, &client, &second).await, None);
    forebay.kill();
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &second).await, Some(10));
    assert_eq!(send(&setup, &client, &first).await, Some(10));
    eventually("all is delivered", async || sink.taken.lock().len() == 20).await;
    assert_eq!(forebay.stop().await, 0);
    let log = std::fs::read_to_string(setup.dir.path().join("log")).expect("a log");
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn of_a_thousand_spans_of_which_400_were_seen_600_are_stored_over_http_and_grpc() {
    let (sink, address) = Sink::start().await;
    let setup = setup(&format!("http://{address}"));
    let [grpc_port] = free_ports();
    rewrite(&setup, "protocols: {http:", &format!("protocols: {{grpc: {{endpoint: 127.0.0.1:{grpc_port}}}, http:"));
    rewrite(&setup, "exporters: [otlp_http]}", "processors: [dedup], exporters: [otlp_http]}\nprocessors: {dedup: }");
    let client = client();
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(300..700)).await, None);
    let message = request(&names(0..1000));
    let frame = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().expect("client");
    let path = forebay::otlp::Signal::Traces.grpc_path();
    let call = http2.post(format!("http://127.0.0.1:{grpc_port}{path}")).header("content-type", "application/grpc");
    let answer = call.header("te", "trailers").body(frame).send().await.expect("answered");
    assert_eq!(answer.headers().get(HEADER).map(|value| value.to_str().expect("text")), Some("400"));
    assert_eq!(answer.bytes().await.expect("a message")[..], [0; 5], "full success");
    assert_eq!(send(&setup, &client, &names(500..1001)).await, Some(500));
    eventually("all is delivered", async || sink.taken.lock().len() == 1001).await;
    assert!(sink.taken.lock().values().all(|(times, _)| *times == 1), "each span once");
    let label = "queue=\"traces\"";
    assert_eq!(setup.sample(&client, "forebay_deduplicated_spans", label).await, Some(900.0));
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test]
async fn real_double_senders_keep_their_data() {
    let (sink, address) = Sink::start().await;
    let setup = setup(&format!("http://{address}"));
    rewrite(&setup, "exporters: [otlp_http]}", "processors: [dedup], exporters: [otlp_http]}\nprocessors: {dedup: }");
    let client = client();
    let forebay = setup.start(&client).await;
    // One id: the client's and the server's side of Zipkin, a pending span and its end.
    let sides = ["client side", "server side", "pending", "ended"];
    let twins = sides.map(|name| spans_message(vec![Span { name: name.to_owned(), ..span("twin") }]));
    for twin in twins.iter().chain(&twins[..1]) {
        send_message(&setup, &client, twin.clone()).await;
    }
    // No id: the request is exempt, its other span is not.
    let nameless = Span { span_id: Vec::new(), ..span("without an id") };
    let mixed = spans_message(vec![span("with an id"), nameless]);
    assert_eq!(send_message(&setup, &client, mixed.clone()).await, None);
    assert_eq!(send_message(&setup, &client, mixed).await, Some(1));
    eventually("all is delivered", async || {
        setup.sample(&client, "forebay_queue_backlog_items", "queue=\"traces\"").await == Some(0.0)
    })
    .await;
    let times = |name: &str| sink.taken.lock().get(name).map(|(times, _)| *times);
    assert_eq!(sides.map(times), [Some(1); 4]);
    assert_eq!((times("with an id"), times("without an id")), (Some(1), Some(2)));
    assert_eq!(setup.sample(&client, "forebay_deduplicated_spans", "queue=\"traces\"").await, Some(2.0));
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_and_comes_again_is_stored_once() {
    let [dead_port] = free_ports();
    let setup = setup(&format!("http://127.0.0.1:{dead_port}"));
    // Syncs are a second apart: the client is gone before its answer.
    rewrite(&setup, "forebay: {}", "forebay: {max_syncs_per_second: 1}");
    let client = client();
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..1)).await, None);
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let hasty = client.post(url).header("content-type", "application/x-protobuf").body(request(&names(1..5)));
    let gone = hasty.timeout(Duration::from_millis(50)).send().await;
    assert!(gone.is_err_and(|error| error.is_timeout()));
    assert_eq!(send(&setup, &client, &names(1..5)).await, Some(4));
    let backlog = setup.sample(&client, "forebay_queue_backlog_records", "queue=\"traces\"").await;
    assert_eq!(backlog, Some(2.0));
    forebay.kill();
}

#[tokio::test]
async fn turned_off_every_request_is_stored() {
    let [dead_port] = free_ports();
    let setup = setup(&format!("http://127.0.0.1:{dead_port}"));
    rewrite(&setup, "forebay: {}", "forebay: {dedup: {requests: []}}");
    let client = client();
    let forebay = setup.start(&client).await;
    for _ in 0..2 {
        assert_eq!(send(&setup, &client, &names(0..5)).await, None);
    }
    let backlog = setup.sample(&client, "forebay_queue_backlog_records", "queue=\"traces\"").await;
    assert_eq!(backlog, Some(2.0));
    assert!(!setup.dir.path().join("data/fingerprints").exists());
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test]
async fn what_a_person_took_out_of_the_queue_may_come_again() {
    let [dead_port] = free_ports();
    let dead = format!("http://127.0.0.1:{dead_port}");
    let setup = setup(&dead);
    let client = client();
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, None);
    assert_eq!(send(&setup, &client, &names(0..10)).await, Some(10));
    // Its destination never had it.
    assert_eq!(forebay.stop().await, 0);
    let mut forget = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
    forget.args(["queue", "forget", "--exporter", "otlp_http", "--data-dir"]).arg(setup.dir.path().join("data"));
    let forgotten = forget.env_remove("FOREBAY_DATA_DIR").output().expect("forebay runs");
    assert!(forgotten.status.success(), "{}", String::from_utf8_lossy(&forgotten.stderr));
    let (sink, address) = Sink::start().await;
    rewrite(&setup, &dead, &format!("http://{address}"));
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, None, "it is stored again");
    eventually("it is delivered", async || sink.taken.lock().len() == 10).await;
    assert_eq!(forebay.stop().await, 0);
}
