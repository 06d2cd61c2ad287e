//! Two exporters, one of traces and one of logs, and what they refuse: letters that differ in everything.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use super::dlq::{dlq, letters};
use super::{Forebay, Sink, client, eventually, free_ports};

/// What neither destination takes.
pub const POISON: &str = "tool-call";

pub struct Scene {
    /// Gets traces over `otlp_http/first`.
    pub first: Arc<Sink>,
    /// Gets logs over `otlp_http/second`, and can take traces.
    pub second: Arc<Sink>,
    pub dir: tempfile::TempDir,
    pub client: reqwest::Client,
    pub admin_port: u16,
    pub metrics_port: u16,
    http_port: u16,
    health_port: u16,
}

impl Scene {
    /// `forebay`: what stands in the section beside the admin API.
    pub async fn new(forebay: &str) -> Scene {
        let (first, first_address) = Sink::start().await;
        let (second, second_address) = Sink::start().await;
        for sink in [&first, &second] {
            *sink.poison.lock() = POISON.to_owned();
        }
        let [http_port, health_port, metrics_port, admin_port] = free_ports();
        let more = "retry_on_failure: {initial_interval: 20ms, max_interval: 100ms}, \
                    sending_queue: {batch: {flush_timeout: 20ms}}";
        let text = format!(
            "receivers:\n  otlp: {{protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}}}}}\n\
             exporters:\n  otlp_http/first: {{endpoint: 'http://{first_address}', {more}}}\n\
             \x20 otlp_http/second: {{endpoint: 'http://{second_address}', {more}}}\n\
             extensions:\n  health_check: {{endpoint: 127.0.0.1:{health_port}}}\n\
             forebay:\n  admin: {{endpoint: '127.0.0.1:{admin_port}'}}\n{forebay}\
             service:\n  extensions: [health_check]\n  \
             telemetry: {{metrics: {{address: 127.0.0.1:{metrics_port}}}}}\n  pipelines:\n    \
             traces: {{receivers: [otlp], exporters: [otlp_http/first]}}\n    \
             logs: {{receivers: [otlp], exporters: [otlp_http/second]}}\n"
        );
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("forebay.yaml"), text).expect("configuration written");
        Scene { first, second, dir, client: client(), admin_port, metrics_port, http_port, health_port }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("forebay.yaml")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub async fn start(&self) -> Forebay {
        let log = self.dir.path().join("log");
        let mut forebay = Forebay::start(&self.config(), &self.data_dir(), self.health_port, &log);
        forebay.ready(&self.client).await;
        forebay
    }

    pub fn dlq(&self, words: &[&str]) -> Output {
        dlq(words, &self.data_dir())
    }

    /// Posts OTLP-JSON; the status.
    pub async fn post(&self, signal: &str, text: String) -> u16 {
        self.answer(signal, text).await.0
    }

    /// The same, with what the answer says.
    pub async fn answer(&self, signal: &str, text: String) -> (u16, String) {
        let url = format!("http://127.0.0.1:{}/v1/{signal}", self.http_port);
        let sending = self.client.post(url).header("content-type", "application/json").body(text).send();
        let answer = sending.await.expect("answered");
        (answer.status().as_u16(), answer.text().await.expect("whole"))
    }

    /// Posts traces as protobuf; they are acknowledged.
    pub async fn post_protobuf(&self, body: Vec<u8>) {
        let url = format!("http://127.0.0.1:{}/v1/traces", self.http_port);
        let request = self.client.post(url).header("content-type", "application/x-protobuf");
        assert_eq!(request.body(body).send().await.expect("answered").status(), 200);
    }

    /// Posts a request with spans of these names; it is acknowledged.
    pub async fn spans(&self, service: &str, names: &[String]) {
        assert_eq!(self.post("traces", spans(service, names)).await, 200);
    }

    /// `count` poisoned spans beside a good one, and waits for their letters; the ids, oldest first.
    pub async fn parked(&self, count: usize) -> Vec<String> {
        let poison = (0..count).map(|n| format!("{POISON}-{n}"));
        self.spans("checkout", &poison.chain(["good".to_owned()]).collect::<Vec<_>>()).await;
        let dir = self.data_dir();
        eventually("the poison is parked", async || letters(&dir).len() == count).await;
        letters(&dir).iter().map(|letter| letter["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Names of poison that a sink has taken after all.
    pub fn delivered(sink: &Sink) -> Vec<String> {
        sink.taken.lock().keys().filter(|name| name.starts_with(POISON)).cloned().collect()
    }

    pub fn cure(&self) {
        for sink in [&self.first, &self.second] {
            sink.poison.lock().clear();
        }
    }
}

/// OTLP-JSON with a span of each name.
pub fn spans(service: &str, names: &[String]) -> String {
    let span = |name: &String| {
        let id = u64::from(crc32c::crc32c(name.as_bytes())) + 1;
        serde_json::json!({"traceId": format!("{id:032x}"), "spanId": format!("{id:016x}"), "name": name})
    };
    let spans: Vec<_> = names.iter().map(span).collect();
    let resource = serde_json::json!({"attributes": [{"key": "service.name", "value": {"stringValue": service}}]});
    serde_json::json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}).to_string()
}

/// OTLP-JSON with one record.
pub fn log(service: &str, body: &str) -> String {
    let resource = serde_json::json!({"attributes": [{"key": "service.name", "value": {"stringValue": service}}]});
    let record = serde_json::json!({"body": {"stringValue": body}});
    serde_json::json!({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}).to_string()
}
