//! Requests that come again, and what the answers say of them.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;

use super::request;
use super::setup::Setup;

pub const HEADER: &str = "forebay-deduplicated";

pub fn setup(sink: &str) -> Setup {
    setup_with(sink, "", "{}")
}

/// `queue`: more of the exporter's `sending_queue`; `forebay`: that section.
pub fn setup_with(sink: &str, queue: &str, forebay: &str) -> Setup {
    let exporter = format!(
        "{{endpoint: \"{sink}\", compression: none, retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}, \
         sending_queue: {{batch: {{flush_timeout: 5ms}}{queue}}}}}"
    );
    Setup::new("otlp_http", &exporter, forebay)
}

pub fn rewrite(setup: &Setup, from: &str, to: &str) {
    let text = std::fs::read_to_string(setup.config()).expect("readable");
    assert!(text.contains(from), "{text}");
    std::fs::write(setup.config(), text.replace(from, to)).expect("written");
}

pub fn names(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("span-{n}")).collect()
}

pub async fn send(setup: &Setup, client: &reqwest::Client, names: &[String]) -> Option<u64> {
    send_message(setup, client, request(names)).await
}

pub async fn send_message(setup: &Setup, client: &reqwest::Client, message: Vec<u8>) -> Option<u64> {
    send_to(setup, client, "traces", message).await
}

/// How many of its items were known already, as the answer says.
pub async fn send_to(setup: &Setup, client: &reqwest::Client, signal: &str, message: Vec<u8>) -> Option<u64> {
    let url = format!("http://127.0.0.1:{}/v1/{signal}", setup.http_port);
    let sending = client.post(url).header("content-type", "application/x-protobuf").body(message).send();
    let answer = sending.await.expect("answered");
    assert_eq!(answer.status(), 200);
    let header = answer.headers().get(HEADER).map(|value| value.to_str().expect("text").parse().expect("a number"));
    // Answers of all signals have one shape.
    let body = answer.bytes().await.expect("a body");
    assert_eq!(ExportTraceServiceResponse::decode(body).expect("decodes"), Default::default(), "full success");
    header
}

/// The log of its process.
pub fn log(setup: &Setup) -> String {
    std::fs::read_to_string(setup.dir.path().join("log")).unwrap_or_default()
}
