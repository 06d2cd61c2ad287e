//! What cannot be decoded at the door: answered 400, kept with the reason, repaired, sent; and letters that grow too old.

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use support::dlq::{self, stderr, stdout};
use support::setup::Setup;
use support::{Sink, client, eventually, free_ports, request};

const SECRET: &str = "s3cret-of-the-client";

fn setup(sink: &str, forebay: &str) -> Setup {
    let exporter =
        format!("{{endpoint: 'http://{sink}', retry_on_failure: {{initial_interval: 20ms, max_interval: 50ms}}}}");
    Setup::new("otlp_http", &exporter, forebay)
}

fn data_dir(setup: &Setup) -> PathBuf {
    setup.dir.path().join("data")
}

fn ask(words: &[&str], setup: &Setup) -> Output {
    dlq::dlq(words, &data_dir(setup))
}

fn letters(setup: &Setup) -> Vec<Value> {
    dlq::letters(&data_dir(setup))
}

async fn post(setup: &Setup, client: &reqwest::Client, headers: &[(&str, &str)], body: Vec<u8>) -> u16 {
    let mut call = client.post(format!("http://127.0.0.1:{}/v1/traces", setup.http_port)).body(body);
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    call.send().await.expect("answered").status().as_u16()
}

fn bytes_below(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            all.extend(bytes_below(&path));
        } else if path.is_file() {
            all.extend(std::fs::read(&path).expect("read"));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_payload_is_kept_without_the_clients_secrets_repaired_and_sent() {
    let (sink, address) = Sink::start().await;
    let setup = setup(&address.to_string(), "{}");
    let [grpc_port] = free_ports();
    let text = std::fs::read_to_string(setup.config()).expect("readable");
    let both = format!("protocols: {{grpc: {{endpoint: 127.0.0.1:{grpc_port}}}, http:");
    std::fs::write(setup.config(), text.replace("protocols: {http:", &both)).expect("written");
    let client = client();
    let forebay = setup.start(&client).await;
    let json = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"oh no","name":"agent-step"}]}]}]}"#;
    let secret = format!("Bearer {SECRET}");
    let headers = [
        ("content-type", "application/json"),
        ("authorization", &secret),
        ("x-api-key", SECRET),
        ("user-agent", "agent/1"),
    ];
    assert_eq!(post(&setup, &client, &headers, json.into()).await, 400);
    let mut cut = request(&["whole".to_owned()]);
    cut.truncate(cut.len() - 3);
    let protobuf = [("content-type", "application/x-protobuf")];
    assert_eq!(post(&setup, &client, &protobuf, cut.clone()).await, 400);
    let frame = [&[0][..], &(cut.len() as u32).to_be_bytes(), &cut].concat();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().expect("client");
    let path = forebay::otlp::Signal::Traces.grpc_path();
    let call = http2.post(format!("http://127.0.0.1:{grpc_port}{path}")).header("content-type", "application/grpc");
    let answer = call.header("te", "trailers").header("x-tenant", SECRET).body(frame).send().await.expect("answered");
    assert_eq!(answer.headers()["grpc-status"], "3", "INVALID_ARGUMENT");

    eventually("all three are kept", async || letters(&setup).len() == 3).await;
    // A frame that says more than it brings.
    let short = [&[0][..], &(cut.len() as u32 + 9).to_be_bytes(), &cut].concat();
    let call = http2.post(format!("http://127.0.0.1:{grpc_port}{path}")).header("content-type", "application/grpc");
    let answer = call.header("te", "trailers").body(short).send().await.expect("answered");
    assert_eq!(answer.headers()["grpc-status"], "3", "INVALID_ARGUMENT");
    eventually("it is kept too", async || letters(&setup).len() == 4).await;
    let found = letters(&setup);
    assert!(found[3]["message"].as_str().is_some_and(|message| message.contains("bytes and has")), "{}", found[3]);
    for letter in &found[..3] {
        assert_eq!((&letter["reason"], &letter["items"]), (&"malformed".into(), &0.into()), "{letter}");
        assert_eq!(letter["origin"]["peer"], "127.0.0.1", "{letter}");
        assert!(letter["offset_bytes"].as_u64().is_some(), "{letter}");
    }
    let id = found[0]["id"].as_str().expect("an id");
    // The value ends at its closing quote, where it is found wanting.
    let offset = found[0]["offset_bytes"].as_u64().expect("an offset") as usize;
    assert!(json[..offset].contains("oh no") && !json[..offset].contains("agent-step"), "{offset}");
    let shown = stdout(&ask(&["show", id], &setup));
    assert!(shown.contains("user-agent: agent/1") && shown.contains("authorization: (left out)"), "{shown}");
    assert!(!shown.contains("agent-step"), "{shown}");
    assert!(stdout(&ask(&["show", id, "--show-payload"], &setup)).contains("agent-step"));
    let other = found[1]["id"].as_str().expect("an id");
    assert!(stdout(&ask(&["show", other, "--show-payload"], &setup)).contains("base64"));
    let everything = bytes_below(&data_dir(&setup));
    assert!(!everything.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "a secret is on disk");

    // Neither exported nor sent as it is.
    assert_eq!(stdout(&ask(&["export"], &setup)), "");
    assert!(stderr(&ask(&["replay", id, "--to", "otlp_http"], &setup)).contains("forebay dlq edit"));
    assert!(stdout(&ask(&["replay", "--all"], &setup)).contains("0 letters with 0 items delivered, 0 failed"));
    let mended = setup.dir.path().join("mended.json");
    std::fs::write(&mended, json.replace("oh no", "0af7651916cd43dd8448eb211c80319c")).expect("written");
    let mended = mended.display().to_string();
    assert!(stdout(&ask(&["edit", id, "--from", &mended], &setup)).contains("1 items now"));
    // It is a letter like others now, also for a process of its own.
    forebay.kill();
    let forebay = setup.start(&client).await;
    assert_eq!(letters(&setup).len(), 4);
    assert!(stderr(&ask(&["replay", id], &setup)).contains("--to"));
    assert!(stdout(&ask(&["replay", id, "--to", "otlp_http"], &setup)).contains("1 letters with 1 items delivered"));
    assert!(sink.taken.lock().contains_key("agent-step"));
    assert!(stdout(&ask(&["purge", "--reason", "malformed"], &setup)).contains("3 letters with 0 items were purged"));
    assert!(letters(&setup).is_empty());
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_malformed_payloads_stays_within_its_ring_and_leaves_letters_and_intake_alone() {
    let (sink, address) = Sink::start().await;
    *sink.poison.lock() = "poison".to_owned();
    let setup = setup(&address.to_string(), "{}");
    let client = client();
    let forebay = setup.start(&client).await;
    let protobuf = [("content-type", "application/x-protobuf")];
    assert_eq!(post(&setup, &client, &protobuf, request(&["poison".to_owned(), "good".to_owned()])).await, 200);
    eventually("the poison is parked", async || letters(&setup).len() == 1).await;
    let parked = letters(&setup)[0]["id"].clone();
    for round in 0..300 {
        assert_eq!(post(&setup, &client, &protobuf, vec![0xFF; 200 << 10]).await, 400);
        if round % 30 == 0 {
            assert_eq!(post(&setup, &client, &protobuf, request(&[format!("good-{round}")])).await, 200);
        }
    }
    let captured = async || {
        let name = "forebay_invalid_captured_requests";
        let kept = setup.sample(&client, name, "outcome=\"kept\"").await.unwrap_or(0.0);
        kept + setup.sample(&client, name, "outcome=\"busy\"").await.unwrap_or(0.0)
    };
    eventually("none waits any more", async || captured().await == 300.0).await;
    // Larger than the ring keeps whole.
    assert_eq!(post(&setup, &client, &protobuf, vec![0xFF; 6 << 20]).await, 400);
    eventually("the large one is kept, in part", async || {
        letters(&setup).iter().any(|letter| letter["cut_from_bytes"] == 6 << 20)
    })
    .await;
    let ring: u64 = std::fs::read_dir(data_dir(&setup).join("dlq/invalid"))
        .expect("listed")
        .map(|entry| entry.expect("entry").metadata().expect("metadata").len())
        .sum();
    assert!(ring <= 16 << 20, "{ring} bytes");
    assert_eq!(letters(&setup)[0]["id"], parked, "the parked letter is where it was");
    eventually("the good ones are delivered", async || sink.taken.lock().len() == 11).await;
    assert_eq!(captured().await, 301.0);
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_past_max_age_are_dropped_and_counted_and_nothing_is_captured_where_that_is_off() {
    let (sink, address) = Sink::start().await;
    *sink.poison.lock() = "poison".to_owned();
    let setup = setup(&address.to_string(), "{dead_letters: {max_age: 1s, capture_invalid: false}}");
    let client = client();
    let forebay = setup.start(&client).await;
    let protobuf = [("content-type", "application/x-protobuf")];
    assert_eq!(post(&setup, &client, &protobuf, vec![0xFF; 100]).await, 400);
    assert_eq!(post(&setup, &client, &protobuf, request(&["poison".to_owned(), "good".to_owned()])).await, 200);
    let parked = "forebay_exporter_dead_lettered_spans";
    eventually("the poison is parked", async || setup.sample(&client, parked, "rejected").await == Some(1.0)).await;
    let dropped = "forebay_exporter_dropped_spans";
    eventually("it is dropped", async || {
        setup.sample(&client, dropped, "reason=\"dead_letters_expired\"").await == Some(1.0)
    })
    .await;
    assert!(letters(&setup).is_empty());
    assert_eq!(forebay.stop().await, 0);
}
