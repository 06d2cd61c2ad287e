//! The OTLP exporters against servers on real sockets: what they send, and what they make of each answer.

mod grpc;
mod http;
mod server;
mod tls;

use bytes::Bytes;

use super::*;
use crate::otlp::json;
use crate::settings::{Entry, Node, Origin, Value};

/// A traces request with one span of that name.
fn batch(name: &str) -> Batch {
    let text = format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{{\"name\":\"{name}\"}}]}}]}}]}}");
    let payload: Bytes = json::to_protobuf(Signal::Traces, text.as_bytes()).expect("valid");
    Batch { signal: Signal::Traces, items: 1, payload: payload.into(), metadata: Vec::new() }
}

/// A policy as it is written.
fn policy(section: &'static str, status: &str, class: &str) -> StatusPolicy {
    let origin = || Origin::whole("test");
    let map = |key: &str, node: Node| {
        Node::new(origin(), Value::Map(vec![Entry { key: key.to_owned(), key_origin: origin(), node }]))
    };
    let class = Node::new(origin(), Value::Text(class.to_owned()));
    crate::settings::read(&map(section, map(status, class)), StatusPolicy::read).expect("valid")
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
async fn every_kind_of_the_registry_is_built_by_its_settings_and_only_two_leave_the_machine() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let policy = StatusPolicy::default();
    let context = Context { id: "an_id", data_dir: dir.path(), max_request_bytes: Some(5000), status_policy: &policy };
    let key = |key: &str, value: &str| {
        let origin = Origin::whole("test");
        let node = Node::new(origin.clone(), Value::Text(value.to_owned()));
        Node::new(origin.clone(), Value::Map(vec![Entry { key: key.to_owned(), key_origin: origin, node }]))
    };
    let written = |name: &str| match name {
        "file" => key("path", "out.jsonl"),
        "debug" => Node::empty_map(Origin::whole("test")),
        _ => key("endpoint", "localhost:4317"),
    };
    for kind in KINDS {
        let settings = crate::settings::read(&written(kind.name), kind.read).expect(kind.name);
        let exporter = settings.build(&context).unwrap_or_else(|error| panic!("{}: {error}", kind.name));
        let is_remote = kind.name.starts_with("otlp_");
        assert_eq!((settings.is_remote(), exporter.leaves_machine()), (is_remote, is_remote), "{}", kind.name);
        assert_eq!(exporter.max_request_bytes() == 5000, is_remote, "{}", kind.name);
        assert_eq!(exporter.local_path(), (kind.name == "file").then(|| dir.path().join("out.jsonl")).as_deref());
        for alias in kind.aliases {
            assert_eq!(Kind::find(KINDS, alias).map(|found| found.name), Some(kind.name));
        }
    }
}
