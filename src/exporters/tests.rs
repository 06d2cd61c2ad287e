//! The OTLP exporters against servers on real sockets: what they send, and what they make of each answer.

mod grpc;
mod http;
mod server;
mod tls;

use bytes::Bytes;

use super::*;
use crate::otlp::json;

/// A traces request with one span of that name.
fn batch(name: &str) -> Batch {
    let text = format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{{\"name\":\"{name}\"}}]}}]}}]}}");
    let payload: Bytes = json::to_protobuf(Signal::Traces, text.as_bytes()).expect("valid");
    Batch { signal: Signal::Traces, items: 1, payload: payload.into(), metadata: Vec::new() }
}

fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// A port on which nobody listens.
async fn closed_port() -> std::net::SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("bound")
}

#[tokio::test]
async fn every_kind_is_built_by_its_settings_and_only_two_leave_the_machine() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let endpoint = Some("localhost:4317".to_owned());
    let mut file = Settings::File(file::Settings { path: "out.jsonl".into(), ..file::Settings::default() });
    file.resolve(dir.path());
    let kinds = [
        (Settings::OtlpGrpc(otlp_grpc::Settings { endpoint: endpoint.clone(), ..Default::default() }), true),
        (Settings::OtlpHttp(otlp_http::Settings { endpoint, ..Default::default() }), true),
        (file, false),
        (Settings::Debug(debug::Settings::default()), false),
    ];
    for (settings, leaves) in kinds {
        let exporter = settings.build("an_id").unwrap_or_else(|error| panic!("{settings:?}: {error}"));
        assert_eq!(exporter.leaves_machine(), leaves, "{settings:?}");
        assert!(exporter.max_request_bytes() > 0);
    }
}
