//! `forebay queue` with the real binary, on data directories of the real binary.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde_json::Value;
use support::ledger::{Ledger, load};
use support::setup::Setup;
use support::{Sink, client, eventually, free_ports};

fn queue(words: &[&str], data_dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("queue").args(words).arg("--data-dir").arg(data_dir);
    command.env_remove("FOREBAY_DATA_DIR").output().expect("forebay runs")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", stderr(output)))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn data_dir(setup: &Setup) -> PathBuf {
    setup.dir.path().join("data")
}

fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data_dir.join("queues/traces")).expect("listed");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

/// Every file with its length and when it was changed.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("listed") {
        let entry = entry.expect("entry");
        let metadata = entry.metadata().expect("metadata");
        if metadata.is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path(), (metadata.len(), metadata.modified().expect("a time")));
        }
    }
    found
}

/// An exporter whose destination is not there.
fn dead() -> (Setup, String) {
    let [port] = free_ports();
    let exporter = format!(
        "{{endpoint: 'http://127.0.0.1:{port}', retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}}}"
    );
    (Setup::new("otlp_http", &exporter, "{}"), exporter)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_and_verify_work_while_it_runs_and_write_nothing() {
    let (setup, _) = dead();
    let client = client();
    let forebay = setup.start(&client).await;
    for n in 0..20 {
        assert!(setup.post(&client, &format!("span-{n}")).await.status().is_success());
    }
    let dir = data_dir(&setup);
    let mut found = Value::Null;
    eventually("a checkpoint knows the lag", async || {
        found = json(&queue(&["inspect", "--json"], &dir));
        found["queues"][0]["cursors"][0]["lag_records"] == 20
    })
    .await;
    assert_eq!(found["owner_pid"], forebay.pid(), "{found}");
    assert_eq!(found["queues"][0]["queue"], "traces");
    assert_eq!(found["queues"][0]["cursors"][0]["exporter"], "otlp_http");
    assert_eq!((&found["queues"][0]["items"], &found["queues"][0]["next_sequence"]), (&20.into(), &20.into()));
    // Idle now: whatever changed from here on, a command would have changed.
    let mut before = files(&dir);
    eventually("the process is idle", async || {
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        let now = files(&dir);
        std::mem::replace(&mut before, now) == before
    })
    .await;
    for words in [&["inspect"][..], &["verify"], &["verify", "--json"]] {
        let output = queue(words, &dir);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
    }
    assert_eq!(files(&dir), before);
    let text = String::from_utf8(queue(&["inspect"], &dir).stdout).expect("text");
    assert!(text.contains("lag 20 records, 20 items") && text.contains("damage          none"), "{text}");
    let refused = queue(&["repair"], &dir);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains(&format!("is in use by process {}", forebay.pid())), "{}", stderr(&refused));
    assert_eq!(forebay.stop().await, 0);
    assert_eq!(json(&queue(&["inspect", "--json"], &dir))["owner_pid"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_under_load_finds_no_damage_where_there_is_none() {
    let (sink, address) = Sink::start().await;
    let exporter =
        format!("{{endpoint: 'http://{address}', sending_queue: {{batch: {{flush_timeout: 5ms, min_size: 1}}}}}}");
    let setup = Setup::new("otlp_http", &exporter, "{queue: {max_size: 32MiB}}");
    let client = client();
    let forebay = setup.start(&client).await;
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let loading = tokio::spawn(load(client.clone(), url, 100, Arc::clone(&ledger), Arc::clone(&stop)));
    let dir = data_dir(&setup);
    let mut looks = 0;
    // Until some segments have been filled, recycled and given back under its eyes.
    eventually("enough has passed", async || {
        let dir = dir.clone();
        let output = tokio::task::spawn_blocking(move || queue(&["verify"], &dir)).await.expect("no panic");
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        looks += 1;
        ledger.acknowledged.lock().len() > 50_000
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    loading.await.expect("no panic");
    assert_eq!(forebay.stop().await, 0);
    let delivered = sink.taken.lock().len();
    println!("verify: {looks} looks while {delivered} spans passed");
    assert!(looks > 3 && delivered > 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_by_verify_settled_by_repair_and_the_rest_is_delivered() {
    let (setup, exporter) = dead();
    let client = client();
    let forebay = setup.start(&client).await;
    for n in 0..10 {
        assert!(setup.post(&client, &format!("span-{n}")).await.status().is_success());
    }
    assert_eq!(forebay.stop().await, 0);
    let dir = data_dir(&setup);
    assert!(queue(&["verify"], &dir).status.success());
    let path = segments(&dir).into_iter().next().expect("a segment");
    let mut bytes = std::fs::read(&path).expect("readable");
    let at = bytes.windows(6).position(|window| window == b"span-4").expect("its payload");
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("written");

    assert!(queue(&["inspect"], &dir).status.success(), "a look at the headers finds nothing wrong");
    let verified = queue(&["verify", "--json"], &dir);
    assert_eq!(verified.status.code(), Some(1));
    let damage = json(&verified)["queues"][0]["damage"].clone();
    assert!(
        damage.as_array().is_some_and(|all| all.iter().any(|one| one["sequences"] == serde_json::json!([4, 5]))),
        "{damage}"
    );
    let repaired = queue(&["repair", "--json"], &dir);
    assert!(repaired.status.success(), "{}", stderr(&repaired));
    let report = json(&repaired);
    assert_eq!(
        (&report["queues"][0]["records"], &report["queues"][0]["lost_records"]),
        (&9.into(), &1.into()),
        "{report}"
    );
    let again = json(&queue(&["repair", "--json"], &dir));
    assert_eq!(again["queues"][0]["lost_records"], 0, "lost once: {again}");

    let (sink, address) = Sink::start().await;
    let text = std::fs::read_to_string(setup.config()).expect("readable");
    let port = exporter.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('\'').next()).expect("a port");
    std::fs::write(setup.config(), text.replace(&format!("127.0.0.1:{port}"), &address.to_string())).expect("written");
    let forebay = setup.start(&client).await;
    eventually("the other nine are delivered", async || sink.taken.lock().len() == 9).await;
    assert_eq!(forebay.stop().await, 0);
    assert!(!sink.taken.lock().contains_key("span-4"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_left_the_configuration_is_forgotten_when_a_person_says_so() {
    let (setup, _) = dead();
    let client = client();
    let config = std::fs::read_to_string(setup.config()).expect("readable");
    let two = config
        .replace("exporters: [otlp_http]", "exporters: [otlp_http, otlp_http/old]")
        .replace("exporters:\n", "exporters:\n  otlp_http/old: {endpoint: 'http://127.0.0.1:1'}\n");
    std::fs::write(setup.config(), two).expect("written");
    let forebay = setup.start(&client).await;
    for n in 0..5 {
        assert!(setup.post(&client, &format!("span-{n}")).await.status().is_success());
    }
    let dir = data_dir(&setup);
    let busy = queue(&["forget", "--exporter", "otlp_http-old"], &dir);
    assert!(busy.status.code() == Some(1) && stderr(&busy).contains("is in use"), "{}", stderr(&busy));
    assert_eq!(forebay.stop().await, 0);

    let path = setup.config().display().to_string();
    let still = queue(&["forget", "--exporter", "otlp_http-old", "--config", &path], &dir);
    assert!(still.status.code() == Some(1) && stderr(&still).contains("still has it"), "{}", stderr(&still));
    std::fs::write(setup.config(), config).expect("written");
    let unknown = queue(&["forget", "--exporter", "nobody"], &dir);
    assert!(stderr(&unknown).contains("queue traces with otlp_http, otlp_http-old"), "{}", stderr(&unknown));
    let forgotten = queue(&["forget", "--exporter", "otlp_http-old", "--config", &path, "--json"], &dir);
    assert!(forgotten.status.success(), "{}", stderr(&forgotten));
    assert_eq!(json(&forgotten)[0]["records"], 5);
    let found = json(&queue(&["inspect", "--json"], &dir));
    let cursors = found["queues"][0]["cursors"].as_array().expect("cursors").clone();
    assert_eq!(cursors.len(), 1, "{found}");
    assert_eq!((&cursors[0]["exporter"], &cursors[0]["lag_records"]), (&"otlp_http".into(), &5.into()));
    // It stays forgotten, and the other one's backlog is untouched.
    let forebay = setup.start(&client).await;
    assert_eq!(forebay.stop().await, 0);
    let found = json(&queue(&["inspect", "--json"], &dir));
    assert_eq!(found["queues"][0]["cursors"].as_array().map(Vec::len), Some(1));
    let whole = json(&queue(&["forget", "--queue", "traces", "--json"], &dir));
    assert_eq!(whole[0]["records"], 5);
    assert!(!dir.join("queues/traces").exists());
    assert!(json(&queue(&["verify", "--json"], &dir))["queues"].as_array().is_some_and(Vec::is_empty));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_makes_what_is_set_aside_due_now() {
    let (sink, address) = Sink::start().await;
    sink.refuse_with.store(400, Ordering::SeqCst);
    let setup = Setup::new("otlp_http", &format!("{{endpoint: 'http://{address}'}}"), "{}");
    let client = client();
    let forebay = setup.start(&client).await;
    assert!(setup.post(&client, "poison").await.status().is_success());
    eventually("the batch is set aside", async || {
        setup.sample(&client, "forebay_exporter_held_ranges", "otlp_http").await == Some(1.0)
    })
    .await;
    sink.refuse_with.store(0, Ordering::SeqCst);
    let dir = data_dir(&setup);
    let unknown = queue(&["retry", "--exporter", "nobody"], &dir);
    assert!(stderr(&unknown).contains("otlp_http in traces"), "{}", stderr(&unknown));
    let retried = json(&queue(&["retry", "--json"], &dir));
    assert_eq!(retried, serde_json::json!({"running": true, "ranges": 1}));
    // Well within the five minutes after which it would be tried anyway.
    eventually("it is delivered", async || sink.taken.lock().contains_key("poison")).await;
    assert_eq!(forebay.stop().await, 0);
    let stopped = queue(&["retry"], &dir);
    assert!(stopped.status.success());
    assert!(String::from_utf8_lossy(&stopped.stdout).contains("no process uses the data directory"));
    let nowhere = queue(&["inspect"], setup.dir.path());
    assert!(nowhere.status.code() == Some(1) && stderr(&nowhere).contains("is no data directory"));
}
