//! Of a request of which some spans were seen, the others are stored as they are; and what is stored of two at once.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use parking_lot::Mutex;
use prost::Message;
use support::dedup::{HEADER, names, rewrite, send, send_message, setup, setup_with};
use support::{PATIENCE, client, eventually, free_ports, request, span};

/// A field of bytes.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(number << 3 | 2, &mut out);
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    [&out, bytes].concat()
}

/// A field of a version to come.
fn unknown(text: &str) -> Vec<u8> {
    field(900, text.as_bytes())
}

/// With some of the spans 1 to 6 in three scopes of two resources, and something unknown on every level.
fn message(kept: &[u8]) -> Vec<u8> {
    let spans = |wanted: &[u8]| -> Vec<u8> {
        let span = |n: &u8| field(2, &[span(&format!("span-{n}")).encode_to_vec(), unknown("in a span")].concat());
        wanted.iter().filter(|n| kept.contains(n)).flat_map(span).collect()
    };
    let scope = |name: &str, wanted: &[u8]| -> Vec<u8> {
        let scope = field(1, &[field(1, name.as_bytes()), unknown("in a scope")].concat());
        let end = [field(3, b"https://schema/scope"), unknown("beside the spans")].concat();
        let is_left = wanted.iter().any(|n| kept.contains(n));
        if is_left { field(2, &[scope, spans(wanted), end].concat()) } else { Vec::new() }
    };
    let resource = |name: &str, scopes: Vec<u8>| -> Vec<u8> {
        let resource = field(1, &unknown(name));
        let end = [field(3, b"https://schema/resource"), unknown("beside the scopes")].concat();
        if scopes.is_empty() { Vec::new() } else { field(1, &[resource, scopes, end].concat()) }
    };
    let first = resource("the first", [scope("a", &[1, 2, 3]), scope("b", &[4])].concat());
    let second = resource("the second", scope("a", &[5, 6]));
    [unknown("before"), first, unknown("between"), second, unknown("behind")].concat()
}

/// A destination that keeps the bodies as they come.
async fn keeper() -> (Arc<Mutex<Vec<Bytes>>>, std::net::SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("address");
    let bodies: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let kept = Arc::clone(&bodies);
    let take = axum::routing::post(async move |body: Bytes| kept.lock().push(body));
    let router = axum::Router::new().route("/v1/traces", take);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (bodies, address)
}

#[tokio::test]
async fn what_is_left_of_a_request_keeps_every_byte_and_loses_only_empty_envelopes() {
    let (bodies, address) = keeper().await;
    let setup = setup(&format!("http://{address}"));
    rewrite(&setup, "exporters: [otlp_http]}", "processors: [dedup], exporters: [otlp_http]}\nprocessors: {dedup: }");
    let client = client();
    let forebay = setup.start(&client).await;
    let mut expected: Vec<Vec<u8>> = Vec::new();
    // What is sent, how many of it are known, and what is stored of it.
    let rounds: [(&[u8], Option<u64>, &[u8]); 6] = [
        (&[2, 4], None, &[2, 4]),
        // The scope `b` goes.
        (&[1, 2, 3, 4], Some(2), &[1, 3]),
        // The first resource goes.
        (&[1, 2, 3, 4, 5], Some(4), &[5]),
        (&[1, 2, 3, 4, 5], Some(5), &[]),
        (&[1, 2, 3, 4, 5, 6], Some(5), &[6]),
        (&[6, 1], Some(2), &[]),
    ];
    for (sent, known, stored) in rounds {
        assert_eq!(send_message(&setup, &client, message(sent)).await, known, "{sent:?}");
        if !stored.is_empty() {
            expected.push(message(stored));
        }
        // One by one, so that no two are sent as one request.
        eventually("it is delivered", async || bodies.lock().len() == expected.len()).await;
        assert_eq!(bodies.lock().last().map(|body| body.to_vec()), expected.last().cloned(), "{sent:?}");
    }
    assert_eq!(forebay.stop().await, 0);
    assert_eq!(bodies.lock().len(), expected.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_identical_requests_in_flight_at_once_one_is_stored_and_all_are_acknowledged() {
    let [dead_port] = free_ports();
    // Syncs are half a second apart: until then none of them is durable.
    let setup = setup_with(&format!("http://127.0.0.1:{dead_port}"), "", "{max_syncs_per_second: 2}");
    let client = client();
    let forebay = setup.start(&client).await;
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let started = Instant::now();
    let mut stored = 0.0;
    let mut round = 0;
    loop {
        assert!(started.elapsed() < PATIENCE, "they were never in flight at once");
        // The sync after which the next is half a second away.
        assert_eq!(send(&setup, &client, &names(round * 100..round * 100 + 1)).await, None);
        let body = request(&names(round * 100 + 1..round * 100 + 11));
        let asking = (0..8).map(|_| {
            let asking = client.post(&url).header("content-type", "application/x-protobuf").body(body.clone());
            tokio::spawn(async move {
                let asked = Instant::now();
                let answer = asking.send().await.expect("answered");
                let known = answer.headers().get(HEADER).map(|value| value.to_str().expect("text").to_owned());
                (asked, Instant::now(), answer.status(), known)
            })
        });
        let answers = futures_util::future::join_all(asking).await;
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("no panic")).collect();
        assert!(answers.iter().all(|(_, _, status, _)| *status == 200), "{answers:?}");
        let mut known: Vec<Option<&str>> = answers.iter().map(|(_, _, _, known)| known.as_deref()).collect();
        known.sort_unstable();
        assert_eq!(known[..2], [None, Some("10")], "one is stored");
        assert!(known[1..].iter().all(|known| *known == Some("10")), "{known:?}");
        stored += 2.0;
        let backlog = setup.sample(&client, "forebay_queue_backlog_records", "queue=\"traces\"").await;
        assert_eq!(backlog, Some(stored));
        round += 1;
        let last_asked = answers.iter().map(|(asked, ..)| *asked).max();
        let first_answered = answers.iter().map(|(_, answered, ..)| *answered).min();
        if first_answered > last_asked.map(|asked| asked + Duration::from_millis(100)) {
            break;
        }
    }
    forebay.kill();
}
