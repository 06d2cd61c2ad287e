use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};

use super::server::{Answer, Server};
use super::*;
use crate::otlp::{Encoding, compression};
use crate::settings::Secret;
use otlp_grpc::Settings;
use remote::Compression;

fn settings(address: std::net::SocketAddr) -> Settings {
    Settings { endpoint: Some(format!("http://{address}")), ..Settings::default() }
}

async fn send(settings: &Settings) -> Outcome {
    otlp_grpc::build(settings).expect("built").export(batch("a")).await
}

async fn outcome_of(answer: Answer) -> Outcome {
    let server = Server::start(answer).await;
    let outcome = send(&settings(server.address)).await;
    assert_eq!(server.asked().len(), 1, "one request, one attempt");
    outcome
}

#[tokio::test]
async fn a_request_is_one_framed_message_to_export_with_headers_as_metadata() {
    for (encoding, name) in [(Encoding::Identity, None), (Encoding::Gzip, Some("gzip")), (Encoding::Zstd, Some("zstd"))]
    {
        let server = Server::start(Answer::grpc(b"", &[("grpc-status", "0")])).await;
        let settings = Settings {
            compression: Compression::Always(encoding),
            headers: vec![("X-Token".to_owned(), Secret("t".to_owned()))],
            ..settings(server.address)
        };
        let outcome = send(&settings).await;
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
        let asked = &server.asked()[0];
        assert_eq!(asked.path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        assert_eq!(asked.headers["content-type"], "application/grpc");
        assert_eq!(asked.headers["te"], "trailers");
        assert_eq!(asked.headers["x-token"], "t");
        assert_eq!(asked.headers["grpc-timeout"], "5000m");
        assert!(asked.headers["user-agent"].as_bytes().starts_with(remote::USER_AGENT.as_bytes()));
        assert_eq!(asked.headers.get("grpc-encoding").map(|name| name.to_str().expect("text")), name);
        assert_eq!(asked.body[0], u8::from(name.is_some()));
        assert_eq!(u32::from_be_bytes(asked.body[1..5].try_into().expect("four")) as usize, asked.body.len() - 5);
        let mut out = Vec::new();
        compression::inflate(encoding, &asked.body[5..], 1 << 20, &mut out, &mut |_| true).expect("inflates");
        assert_eq!(out, batch("a").payload.into_bytes());
    }
}

#[tokio::test]
async fn every_code_that_the_server_sent_has_its_class_in_headers_and_in_trailers() {
    for code in 1..=16 {
        let text = code.to_string();
        let in_trailers = Answer::grpc(b"", &[("grpc-status", &text), ("grpc-message", "because%20of")]);
        for answer in [Answer::grpc_status(code, "because%20of"), in_trailers] {
            let failure = failure(outcome_of(answer).await);
            assert_eq!(failure.class, StatusPolicy::default().grpc(code, false, "").0, "{code}");
            assert_eq!(failure.status, Some(RemoteStatus::Grpc(code)));
            assert!(failure.message.ends_with("because of"), "{}", failure.message);
        }
    }
}

/// `grpc-status-details-bin` with a RetryInfo, with or without a delay.
fn details(code: i32, delay: Option<Duration>) -> Vec<u8> {
    let delay = delay
        .map(|delay| prost_types::Duration { seconds: delay.as_secs() as i64, nanos: delay.subsec_nanos() as i32 });
    let info = tonic_types::pb::RetryInfo { retry_delay: delay };
    let info = prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
        value: info.encode_to_vec(),
    };
    tonic_types::Status { code, message: String::new(), details: vec![info] }.encode_to_vec()
}

#[tokio::test]
async fn retry_info_is_the_floor_and_makes_resource_exhausted_retryable() {
    let delay = Duration::from_millis(2500);
    for code in [8, 14] {
        for padded in [true, false] {
            let bytes = details(code, Some(delay));
            let text = if padded { STANDARD.encode(&bytes) } else { STANDARD_NO_PAD.encode(&bytes) };
            let mut answer = Answer::grpc_status(code, "");
            answer.headers.push(("grpc-status-details-bin", text));
            let failure = failure(outcome_of(answer).await);
            assert_eq!((failure.class, failure.retry_after), (Class::Retryable, Some(delay)));
        }
    }
}

#[tokio::test]
async fn retry_info_without_a_delay_still_says_retry() {
    let mut answer = Answer::grpc_status(8, "");
    answer.headers.push(("grpc-status-details-bin", STANDARD.encode(details(8, None))));
    let failure = failure(outcome_of(answer).await);
    assert_eq!((failure.class, failure.retry_after), (Class::Retryable, Some(Duration::ZERO)));
}

#[tokio::test]
async fn a_refusal_over_size_is_about_the_batch() {
    let message = "grpc: received message larger than max (17000000 vs. 4194304)";
    for code in [8, 11] {
        let failure = failure(outcome_of(Answer::grpc_status(code, message)).await);
        assert_eq!((failure.class, failure.too_large), (Class::Batch, true), "{code}");
    }
}

#[tokio::test]
async fn partial_success_is_read_and_an_empty_one_is_success() {
    let answer = |rejected_spans, error_message: &str| {
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: error_message.to_owned() };
        let message = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        Answer::grpc(&message, &[("grpc-status", "0")])
    };
    let outcome = outcome_of(answer(2, "too old")).await;
    assert!(matches!(&outcome, Outcome::Partial { rejected_items: 2, message } if message == "too old"), "{outcome:?}");
    assert!(matches!(outcome_of(answer(0, "")).await, Outcome::Delivered));
}

#[tokio::test]
async fn an_http_status_without_grpc_is_a_proxys_and_keeps_its_class() {
    for (status, class) in [(404, Class::Destination), (502, Class::Retryable), (413, Class::Batch)] {
        let failure = failure(outcome_of(Answer::http(status, &[("content-type", "text/plain")], "no")).await);
        assert_eq!((failure.class, failure.status), (class, Some(RemoteStatus::Http(status))));
    }
}

#[tokio::test]
async fn what_no_server_said_is_retried_and_has_no_status() {
    let refused = failure(send(&settings(closed_port().await)).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let hangs_up = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let reset = failure(send(&settings(hangs_up)).await);
    let without_status = failure(outcome_of(Answer::grpc(b"", &[("other", "trailer")])).await);
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = silent.local_addr().expect("bound");
    let late = failure(send(&Settings { timeout: Duration::from_millis(100), ..settings(address) }).await);
    for failure in [refused, reset, without_status, late] {
        assert_eq!((failure.class, failure.status), (Class::Retryable, None), "{failure:?}");
    }
}

#[tokio::test]
async fn a_server_that_comes_back_is_reached_again_on_the_same_channel() {
    let address = closed_port().await;
    let exporter = otlp_grpc::build(&settings(address)).expect("built");
    assert_eq!(failure(exporter.export(batch("a")).await).status, None);
    let server = Server::start_at(address, Answer::grpc(b"", &[("grpc-status", "0")])).await;
    let outcome = exporter.export(batch("a")).await;
    assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_configured_code_has_its_class_unless_the_answer_speaks_of_size_or_of_a_retry() {
    let size = "grpc: received message larger than max (17000000 vs. 4194304)";
    for (message, class, too_large) in [("slow down", Class::Retryable, false), (size, Class::Batch, true)] {
        let server = Server::start(Answer::grpc_status(8, message)).await;
        let status_policy = policy("grpc", "RESOURCE_EXHAUSTED", "retryable");
        let failure = failure(send(&Settings { status_policy, ..settings(server.address) }).await);
        assert_eq!((failure.class, failure.too_large), (class, too_large), "{message}");
    }
    let server = Server::start(Answer::http(404, &[], "")).await;
    let status_policy = policy("http", "404", "batch");
    let failure = failure(send(&Settings { status_policy, ..settings(server.address) }).await);
    assert_eq!(failure.class, Class::Batch, "what stands in between is judged by its HTTP status");
}
