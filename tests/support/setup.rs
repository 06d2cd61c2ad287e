//! A configuration in a directory of its own, and what its process can be asked.

use std::path::PathBuf;

use super::{Forebay, free_ports};

/// A directory with a configuration: one `otlp` receiver over HTTP, one pipeline of traces.
pub struct Setup {
    pub dir: tempfile::TempDir,
    pub http_port: u16,
    pub health_port: u16,
    pub metrics_port: u16,
}

impl Setup {
    /// `exporter`: an entry of `exporters:`; `forebay`: the section's content, as flow maps.
    pub fn new(id: &str, exporter: &str, forebay: &str) -> Setup {
        let setup = Setup {
            dir: tempfile::tempdir().expect("temporary directory"),
            http_port: 0,
            health_port: 0,
            metrics_port: 0,
        };
        let [http_port, health_port, metrics_port] = free_ports();
        let text = format!(
            "receivers:\n  otlp: {{protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}}}}}\n\
             exporters:\n  {id}: {exporter}\n\
             extensions:\n  health_check: {{endpoint: 127.0.0.1:{health_port}}}\n\
             forebay: {forebay}\n\
             service:\n  extensions: [health_check]\n  \
             telemetry: {{metrics: {{address: 127.0.0.1:{metrics_port}}}}}\n  \
             pipelines:\n    traces: {{receivers: [otlp], exporters: [{id}]}}\n"
        );
        std::fs::write(setup.config(), text).expect("configuration written");
        Setup { http_port, health_port, metrics_port, ..setup }
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("forebay.yaml")
    }

    pub async fn start(&self, client: &reqwest::Client) -> Forebay {
        self.start_with(client, &[]).await
    }

    pub async fn start_with(&self, client: &reqwest::Client, variables: &[(&str, &str)]) -> Forebay {
        let (dir, config) = (self.dir.path(), self.config());
        let (data, log) = (dir.join("data"), dir.join("log"));
        let mut forebay = Forebay::start_with(&[], &config, &data, self.health_port, &log, variables);
        forebay.ready(client).await;
        forebay
    }

    pub async fn post(&self, client: &reqwest::Client, name: &str) -> reqwest::Response {
        let url = format!("http://127.0.0.1:{}/v1/traces", self.http_port);
        let request = client.post(url).header("content-type", "application/x-protobuf");
        request.body(super::request(&[name.to_owned()])).send().await.expect("answered")
    }

    /// The sum of a metric's series, as the metrics page has them.
    pub async fn sum(&self, client: &reqwest::Client, name: &str) -> f64 {
        let url = format!("http://127.0.0.1:{}/metrics", self.metrics_port);
        let page = client.get(url).send().await.expect("answered").text().await.expect("a body");
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        page.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The value of a series on the metrics page, by its name and a label.
    pub async fn sample(&self, client: &reqwest::Client, name: &str, label: &str) -> Option<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.metrics_port);
        let text = client.get(url).send().await.ok()?.text().await.ok()?;
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}
