//! Settings of the whole process, seen from outside.

mod support;

use std::process::Command;

use support::setup::Setup;
use support::{Sink, client, eventually, free_ports};

#[tokio::test]
async fn a_full_sending_queue_answers_503_shows_in_the_metrics_and_takes_again_when_it_drains() {
    let [dead_port] = free_ports();
    let exporter = format!(
        "{{endpoint: \"http://127.0.0.1:{dead_port}\", sending_queue: {{queue_size: 3}}, \
         retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}}}"
    );
    let setup = Setup::new("otlp_http", &exporter, "{}");
    let client = client();
    let forebay = setup.start(&client).await;
    for n in 0..3 {
        assert_eq!(setup.post(&client, &format!("span-{n}")).await.status(), 200);
    }
    let refused = setup.post(&client, "one-too-many").await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let body = String::from_utf8_lossy(&refused.bytes().await.expect("body")).into_owned();
    assert!(body.contains("exporter \"otlp_http\"") && body.contains("3 of 3 requests"), "{body}");
    let capacity = format!("http://127.0.0.1:{}/readyz?capacity=1", setup.health_port);
    assert_eq!(client.get(capacity).send().await.expect("answered").status(), 503);
    let label = "exporter=\"otlp_http\"";
    assert_eq!(setup.sample(&client, "otelcol_exporter_queue_size", label).await, Some(3.0));
    assert_eq!(setup.sample(&client, "otelcol_exporter_queue_capacity", label).await, Some(3.0));
    let age = async || setup.sample(&client, "forebay_queue_oldest_age_seconds", label).await.expect("a sample");
    let first = age().await;
    assert!(first > 0.0 && age().await > first, "the oldest record ages: {first}");

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", dead_port)).await.expect("the port is still free");
    let sink = Sink::start_on(listener);
    eventually("the queue has drained", async || sink.taken.lock().len() == 3).await;
    eventually("nothing waits", async || age().await == 0.0).await;
    eventually("it takes again", async || setup.post(&client, "later").await.status() == 200).await;
    assert_eq!(forebay.stop().await, 0);
}

#[test]
fn validate_prints_the_outage_that_each_exporter_covers() {
    let setup = Setup::new(
        "otlp_http",
        "{endpoint: \"https://example.org\", sending_queue: {queue_size: 1000}}",
        "{queue: {max_size: 1GB}}",
    );
    let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("validate")
        .arg("--config")
        .arg(setup.config())
        .output()
        .expect("forebay runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("at 100 requests, 10000 items, 5000000 stored bytes"), "{text}");
    let line = text.lines().find(|line| line.contains("otlp_http")).expect("a line for it");
    assert!(line.contains("10s") && line.contains("queue_size: 1000 requests"), "{line}");
}
