use std::time::{Duration, SystemTime};

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};

use super::server::{Answer, Asked, Server};
use super::*;
use crate::otlp::{Encoding, compression};
use crate::settings::Secret;
use otlp_http::{Form, Settings};
use remote::Compression;

fn settings(address: std::net::SocketAddr) -> Settings {
    Settings { endpoint: Some(format!("http://{address}")), ..Settings::default() }
}

async fn send(settings: &Settings) -> Outcome {
    otlp_http::build(settings).expect("built").export(batch("a")).await
}

/// What becomes of one answer, and what the server was asked.
async fn outcome_of(answer: Answer) -> (Outcome, Asked) {
    let server = Server::start(answer).await;
    let outcome = send(&settings(server.address)).await;
    let asked = server.asked();
    assert_eq!(asked.len(), 1, "one request, one attempt");
    (outcome, asked[0].clone())
}

#[tokio::test]
async fn a_request_is_a_protobuf_post_to_the_signals_path_with_our_user_agent() {
    let (outcome, asked) = outcome_of(Answer::http(200, &[("content-type", "application/x-protobuf")], "")).await;
    assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    assert_eq!(asked.path, "/v1/traces");
    assert_eq!(asked.headers["content-type"], "application/x-protobuf");
    assert_eq!(asked.headers["user-agent"], remote::USER_AGENT);
    assert!(!asked.headers.contains_key("content-encoding"), "auto does not compress to this machine");
    assert_eq!(asked.body, batch("a").payload.into_bytes());
}

#[tokio::test]
async fn every_compression_inflates_to_the_payload_and_is_named() {
    for (encoding, name) in [(Encoding::Gzip, "gzip"), (Encoding::Zstd, "zstd")] {
        let server = Server::start(Answer::http(200, &[], "")).await;
        let settings = Settings { compression: Compression::Always(encoding), ..settings(server.address) };
        assert!(matches!(send(&settings).await, Outcome::Delivered));
        let asked = &server.asked()[0];
        assert_eq!(asked.headers["content-encoding"], name);
        let mut out = Vec::new();
        compression::inflate(encoding, &asked.body, 1 << 20, &mut out, &mut |_| true).expect("inflates");
        assert_eq!(out, batch("a").payload.into_bytes());
    }
}

#[tokio::test]
async fn json_is_sent_as_json_and_configured_headers_go_along() {
    let server = Server::start(Answer::http(200, &[("content-type", "application/json")], "{}")).await;
    let settings = Settings {
        endpoint: Some(format!("http://{}/api/public/otel", server.address)),
        form: Form::Json,
        headers: vec![("Authorization".to_owned(), Secret("Bearer t".to_owned()))],
        ..Settings::default()
    };
    assert!(matches!(send(&settings).await, Outcome::Delivered));
    let asked = &server.asked()[0];
    assert_eq!(asked.path, "/api/public/otel/v1/traces");
    assert_eq!(asked.headers["content-type"], "application/json");
    assert_eq!(asked.headers["authorization"], "Bearer t");
    assert_eq!(json::to_protobuf(Signal::Traces, &asked.body).expect("JSON"), batch("a").payload.into_bytes());
}

#[tokio::test]
async fn every_error_status_has_its_class_and_is_the_servers() {
    for status in (400..=431).chain(500..=511) {
        let (outcome, _) = outcome_of(Answer::http(status, &[("content-type", "text/plain")], "because")).await;
        let failure = failure(outcome);
        let (class, too_large) = StatusPolicy::default().http(status);
        assert_eq!((failure.class, failure.too_large), (class, too_large), "{status}");
        assert_eq!(failure.status, Some(RemoteStatus::Http(status)));
        assert!(failure.message.ends_with("because"), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_speaks_of_the_destination() {
    let elsewhere = Server::start(Answer::http(200, &[], "")).await;
    let location = format!("http://{}/v1/traces", elsewhere.address);
    for status in [301, 302, 303, 307, 308] {
        let failure = failure(outcome_of(Answer::http(status, &[("location", &location)], "")).await.0);
        assert_eq!((failure.class, failure.status), (Class::Destination, Some(RemoteStatus::Http(status))));
    }
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn a_web_page_is_no_delivery() {
    let answer = Answer::http(200, &[("content-type", "text/html; charset=utf-8")], "<html>Log in</html>");
    let failure = failure(outcome_of(answer).await.0);
    assert_eq!((failure.class, failure.status), (Class::Destination, Some(RemoteStatus::Http(200))));
    assert!(failure.message.contains("web page"), "{}", failure.message);
}

#[tokio::test]
async fn partial_success_is_read_in_both_encodings_and_an_empty_one_is_success() {
    let full = |rejected_spans, error_message: &str| ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess { rejected_spans, error_message: error_message.to_owned() }),
    };
    let protobuf = ("content-type", "application/x-protobuf");
    let json = ("content-type", "application/json");
    let text = r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too old"}}"#;
    for answer in [
        Answer::http(200, &[protobuf], full(3, "too old").encode_to_vec()),
        Answer::http(200, &[json], text.to_owned()),
    ] {
        let (outcome, _) = outcome_of(answer).await;
        assert!(
            matches!(&outcome, Outcome::Partial { rejected_items: 3, message } if message == "too old"),
            "{outcome:?}"
        );
    }
    let (warned, _) = outcome_of(Answer::http(200, &[protobuf], full(0, "deprecated").encode_to_vec())).await;
    assert!(matches!(warned, Outcome::Partial { rejected_items: 0, .. }), "{warned:?}");
    for answer in [
        Answer::http(200, &[protobuf], full(0, "").encode_to_vec()),
        Answer::http(200, &[json], "{\"partialSuccess\":{}}"),
        Answer::http(202, &[json], "not JSON"),
    ] {
        assert!(matches!(outcome_of(answer).await.0, Outcome::Delivered));
    }
}

#[tokio::test]
async fn retry_after_is_kept_in_both_forms() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    for (written, seconds) in [("7", 7..=7), (date.as_str(), 90..=100)] {
        let failure = failure(outcome_of(Answer::http(503, &[("retry-after", written)], "")).await.0);
        let retry_after = failure.retry_after.expect("kept").as_secs_f64().round() as u64;
        assert!(seconds.contains(&retry_after), "{written}: {retry_after}");
    }
}

#[tokio::test]
async fn a_status_message_is_read_in_both_encodings() {
    let status = tonic_types::Status { code: 3, message: "bad span".to_owned(), details: Vec::new() };
    for answer in [
        Answer::http(400, &[("content-type", "application/x-protobuf")], status.encode_to_vec()),
        Answer::http(400, &[("content-type", "application/json")], r#"{"code":3,"message":"bad span"}"#),
    ] {
        let failure = failure(outcome_of(answer).await.0);
        assert!(failure.message.ends_with("bad span"), "{}", failure.message);
    }
}

#[tokio::test]
async fn an_endless_answer_is_read_up_to_a_bound() {
    let answer = Answer::http(500, &[("content-type", "text/plain")], vec![b'x'; 8 << 20]);
    let failure = failure(outcome_of(answer).await.0);
    assert!(failure.message.len() < 2048);
}

#[tokio::test]
async fn what_no_server_said_is_retried_and_has_no_status() {
    let refused = failure(send(&settings(closed_port().await)).await);
    // A server that hangs up after the request, and one that never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let hangs_up = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let reset = failure(send(&settings(hangs_up)).await);
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = silent.local_addr().expect("bound");
    let timeout = Duration::from_millis(100);
    let late = failure(send(&Settings { timeout, ..settings(address) }).await);
    assert!(late.message.contains("in time"), "{}", late.message);
    for failure in [refused, reset, late] {
        assert_eq!((failure.class, failure.status), (Class::Retryable, None), "{failure:?}");
    }
}

#[tokio::test]
async fn a_proxy_is_asked_to_connect_and_its_refusal_is_retried() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let proxy = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = vec![0; 4096];
        let len = stream.read(&mut head).await.expect("a request");
        stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await.expect("answered");
        String::from_utf8_lossy(&head[..len]).into_owned()
    });
    let settings = Settings {
        endpoint: Some("https://otlp.example.com".to_owned()),
        proxy_url: Some(format!("http://{address}")),
        ..Settings::default()
    };
    let failure = failure(send(&settings).await);
    assert_eq!((failure.class, failure.status), (Class::Retryable, None), "{failure:?}");
    let head = proxy.await.expect("no panic");
    assert!(head.starts_with("CONNECT otlp.example.com:443 HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn a_signal_without_an_endpoint_holds_and_says_which_key_is_missing() {
    let settings =
        Settings { signal_endpoints: [None, None, Some("http://localhost:1/logs".to_owned())], ..Settings::default() };
    let failure = failure(send(&settings).await);
    assert_eq!(failure.class, Class::Destination);
    assert!(failure.message.contains("traces_endpoint"), "{}", failure.message);
}

#[tokio::test]
async fn a_configured_status_has_its_class_and_a_size_refusal_is_one_only_about_a_batch() {
    for (status, class, expected) in [(404, "batch", Class::Batch), (413, "destination", Class::Destination)] {
        let server = Server::start(Answer::http(status, &[], "")).await;
        let status_policy = policy("http", &status.to_string(), class);
        let failure = failure(send(&Settings { status_policy, ..settings(server.address) }).await);
        assert_eq!((failure.class, failure.too_large), (expected, false), "{status}");
    }
}
