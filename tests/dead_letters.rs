//! Dead letters with the real binary: isolated, looked at, repaired, sent again; with the process and without.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use support::dlq::{dlq, letters, stderr, stdout};
use support::setup::Setup;
use support::{Forebay, Sink, client, eventually, request};

const POISON: &str = "tool-call";

struct Scene {
    sink: Arc<Sink>,
    setup: Setup,
    client: reqwest::Client,
    data_dir: PathBuf,
}

async fn scene() -> Scene {
    let (sink, address) = Sink::start().await;
    *sink.poison.lock() = POISON.to_owned();
    let exporter = format!(
        "{{endpoint: 'http://{address}', retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}, \
         sending_queue: {{num_consumers: 4, batch: {{flush_timeout: 20ms, min_size: 500, max_size: 2000}}}}}}"
    );
    let setup = Setup::new("otlp_http", &exporter, "{}");
    let data_dir = setup.dir.path().join("data");
    Scene { sink, setup, client: client(), data_dir }
}

impl Scene {
    async fn post(&self, names: &[String]) {
        let url = format!("http://127.0.0.1:{}/v1/traces", self.setup.http_port);
        let request = self.client.post(url).header("content-type", "application/x-protobuf").body(request(names));
        assert!(request.send().await.expect("answered").status().is_success());
    }

    /// Others' spans, and among them one that the destination does not take, where that is wanted.
    async fn traffic(&self, prefix: &str, count: usize, poison: Option<&str>) -> Duration {
        let started = Instant::now();
        let names: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        for (index, chunk) in names.chunks(1000).enumerate() {
            let mut chunk = chunk.to_vec();
            chunk.extend(poison.filter(|_| index == 3).map(str::to_owned));
            self.post(&chunk).await;
        }
        eventually("all others are delivered", async || {
            let taken = self.sink.taken.lock();
            names.iter().all(|name| taken.contains_key(name))
        })
        .await;
        started.elapsed()
    }

    async fn start(&self) -> Forebay {
        self.setup.start(&self.client).await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.setup.dir.path().join("log")).unwrap_or_default()
    }
}

/// The payload of a letter with the poison's name replaced.
fn repaired(scene: &Scene, id: &str) -> PathBuf {
    let text = stdout(&dlq(&["export", id], &scene.data_dir));
    assert_eq!(text.lines().count(), 1);
    let path = scene.setup.dir.path().join(format!("{id}.json"));
    std::fs::write(&path, text.replace(&format!("\"name\":\"{POISON}"), "\"name\":\"repaired")).expect("written");
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_call_that_the_backend_rejects_is_isolated_inspected_repaired_and_sent_while_others_flow_on() {
    let scene = scene().await;
    let forebay = scene.start().await;
    let alone = scene.traffic("before", 100_000, None).await;
    let with_poison = scene.traffic("during", 100_000, Some("tool-call-1")).await;
    assert!(with_poison < alone * 5 + Duration::from_secs(2), "{with_poison:?} with poison, {alone:?} without");
    let dir = &scene.data_dir;
    eventually("the poison is parked", async || letters(dir).len() == 1).await;
    let letter = &letters(dir)[0];
    let id = letter["id"].as_str().expect("an id");
    assert_eq!((&letter["reason"], &letter["exporter"]), (&"rejected".into(), &"otlp_http".into()), "{letter}");
    assert_eq!((&letter["status"], &letter["items"]), (&"HTTP 400".into(), &1.into()), "{letter}");
    assert!(!letter.to_string().contains("tool-call"), "a list shows no payload: {letter}");

    // Looked at: the payload only when it is asked for.
    let shown = stdout(&dlq(&["show", id], dir));
    assert!(shown.contains("HTTP 400") && !shown.contains("tool-call-1"), "{shown}");
    assert!(stdout(&dlq(&["show", id, "--show-payload"], dir)).contains("tool-call-1"));

    // Sent as it is it fails again, and stays, with its history.
    let failed = dlq(&["replay", id], dir);
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("stays"), "{}", stderr(&failed));
    assert!(stdout(&dlq(&["show", id], dir)).contains("replayed   1 times in vain"));

    // Nonsense is refused with its place, and changes nothing.
    let bad = scene.setup.dir.path().join("bad.json");
    std::fs::write(&bad, "{\"resourceSpans\": 3}").expect("written");
    let refused = dlq(&["edit", id, "--from", &bad.display().to_string()], dir);
    assert!(stderr(&refused).contains("line 1 column"), "{}", stderr(&refused));

    let path = repaired(&scene, id).display().to_string();
    assert!(stdout(&dlq(&["edit", id, "--from", &path], dir)).contains("1 items now"));
    assert!(stdout(&dlq(&["replay", "--reason", "rejected"], dir)).contains("1 letters with 1 items delivered"));
    assert!(scene.sink.taken.lock().contains_key("repaired-1"));
    assert!(letters(dir).is_empty());
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_process_letters_are_listed_repaired_sent_and_purged_off_the_files() {
    let scene = scene().await;
    let forebay = scene.start().await;
    let names: Vec<String> = (0..5).map(|n| format!("tool-call-{n}")).chain(["good".to_owned()]).collect();
    scene.post(&names).await;
    let dir = &scene.data_dir;
    eventually("the poison is parked", async || letters(dir).len() == 5).await;
    forebay.kill();
    let found = letters(dir);
    assert_eq!(found.len(), 5, "they survive kill -9");
    let ids: Vec<&str> = found.iter().map(|letter| letter["id"].as_str().expect("an id")).collect();

    assert!(stdout(&dlq(&["purge", ids[0], "--dry-run"], dir)).contains("1 letters with 1 items would be purged"));
    assert_eq!(letters(dir).len(), 5);
    assert!(stdout(&dlq(&["purge", ids[0]], dir)).contains("1 letters with 1 items were purged"));
    assert_eq!(letters(dir).len(), 4);
    let vague = dlq(&["purge"], dir);
    assert_eq!(vague.status.code(), Some(1), "nothing named, nothing purged");
    assert!(stdout(&dlq(&["list", "--exporter", "somebody-else"], dir)).contains("no dead letters"));

    let path = repaired(&scene, ids[1]).display().to_string();
    stdout(&dlq(&["edit", ids[1], "--from", &path], dir));
    let nowhere = dlq(&["replay", ids[1]], dir);
    assert!(stderr(&nowhere).contains("--config"), "{}", stderr(&nowhere));
    let config = scene.setup.config().display().to_string();
    // The others are refused and stay; the repaired one is delivered and gone.
    let replayed = dlq(&["replay", "--all", "--config", &config, "--rate", "1000"], dir);
    assert_eq!(replayed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&replayed.stdout).contains("1 letters with 1 items delivered, 3 failed and stay"));
    assert_eq!(letters(dir).len(), 3);
    assert_eq!(scene.sink.taken.lock().keys().filter(|name| name.starts_with("repaired")).count(), 1);

    // The process takes over what the command has left, and the backend is well again.
    let forebay = scene.start().await;
    scene.sink.poison.lock().clear();
    assert!(stdout(&dlq(&["replay", "--all", "--to", "otlp_http"], dir)).contains("3 letters with 3 items delivered"));
    assert!(letters(dir).is_empty());
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_editor_that_is_set_opens_the_payload_and_what_it_leaves_is_taken() {
    let scene = scene().await;
    let forebay = scene.start().await;
    scene.post(&["good".to_owned(), "tool-call-9".to_owned()]).await;
    let dir = &scene.data_dir;
    eventually("the poison is parked", async || letters(dir).len() == 1).await;
    let id = letters(dir)[0]["id"].as_str().expect("an id").to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["dlq", "edit", &id, "--data-dir"]).arg(dir).env_remove("VISUAL");
    let output = command.env("EDITOR", "sed -i s/tool-call/repaired/").output().expect("forebay runs");
    // The variable is a command of its own here, as `env VISUAL="code --wait"` would be.
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&dlq(&["replay", &id], dir));
    assert!(scene.sink.taken.lock().keys().any(|name| name.starts_with("repaired")));
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_ill_costs_no_dead_letter_and_no_split_and_gets_everything_when_it_is_well() {
    for status in [500, 401, 404] {
        let scene = scene().await;
        let forebay = scene.start().await;
        scene.sink.refuse_with.store(status, Ordering::SeqCst);
        let names: Vec<String> = (0..4000).map(|n| format!("span-{n}")).collect();
        for chunk in names.chunks(100) {
            scene.post(chunk).await;
        }
        // At 100 ms at the most between two tries: the time in which a real one would have been ill for an hour.
        eventually("it was tried time and again", async || scene.sink.refused_spans.lock().len() >= 120).await;
        assert!(letters(&scene.data_dir).is_empty(), "{status}");
        scene.sink.refuse_with.store(0, Ordering::SeqCst);
        eventually("all are delivered", async || {
            let taken = scene.sink.taken.lock();
            names.iter().all(|name| taken.contains_key(name))
        })
        .await;
        let refused = scene.sink.refused_spans.lock().clone();
        assert!(refused.iter().all(|spans| spans.is_multiple_of(100)), "{status}: a request was split: {refused:?}");
        assert!(scene.sink.taken.lock().values().all(|(times, _)| *times == 1), "{status}: each once");
        assert!(letters(&scene.data_dir).is_empty(), "{status}");
        assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_interrupted_loses_nothing_and_goes_on_where_it_was() {
    let scene = scene().await;
    let forebay = scene.start().await;
    let names: Vec<String> = (0..12).map(|n| format!("tool-call-{n}")).chain(["good".to_owned()]).collect();
    scene.post(&names).await;
    let dir = &scene.data_dir;
    eventually("the poison is parked", async || letters(dir).len() == 12).await;
    scene.sink.poison.lock().clear();
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["dlq", "replay", "--all", "--rate", "20", "--data-dir"]).arg(dir).env_remove("FOREBAY_DATA_DIR");
    let mut replay =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("runs");
    let delivered = || scene.sink.taken.lock().keys().filter(|name| name.starts_with(POISON)).count();
    eventually("some are sent", async || delivered() >= 3).await;
    replay.kill().expect("killed");
    replay.wait().expect("reaped");
    // What was delivered is gone, what was not is there; the one under way may be both.
    let left = letters(dir).len();
    assert!((1..=9).contains(&left) && left + delivered() >= 12, "{left} left, {} delivered", delivered());
    // The process ends the broken replay when it sees that its connection is gone.
    let mut output = dlq(&["replay", "--all"], dir);
    eventually("the next replay may begin", async || {
        if stderr(&output).contains("another replay") {
            output = dlq(&["replay", "--all"], dir);
        }
        !stderr(&output).contains("another replay")
    })
    .await;
    assert!(stdout(&output).contains("0 failed and stay"));
    assert_eq!((letters(dir).len(), delivered()), (0, 12));
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_goes_in_parts_and_no_part_is_uploaded_twice_for_nothing() {
    let scene = scene().await;
    scene.sink.poison.lock().clear();
    scene.sink.request_bytes_max.store(100_000, Ordering::SeqCst);
    let forebay = scene.start().await;
    let names: Vec<String> = (0..3000).map(|n| format!("span-{n}")).collect();
    // One request of about 700 kB, which no other limit cuts.
    scene.post(&names).await;
    eventually("all are delivered", async || scene.sink.taken.lock().len() == 3000).await;
    assert!(scene.sink.taken.lock().values().all(|(times, _)| *times == 1), "each once");
    let mut refused = scene.sink.too_large.lock().clone();
    let count = refused.len();
    refused.sort_unstable();
    refused.dedup();
    assert!((1..=8).contains(&count) && refused.len() == count, "{count} refused, {} of them different", refused.len());
    assert!(letters(&scene.data_dir).is_empty());
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_parked_and_of_what_is_taken_in_part_a_copy_where_that_is_wanted() {
    let (sink, address) = Sink::start().await;
    let exporter = format!(
        "{{endpoint: 'http://{address}', \
         retry_on_failure: {{initial_interval: 20ms, max_interval: 50ms, max_elapsed_time: 300ms}}}}"
    );
    let setup = Setup::new("otlp_http", &exporter, "{exporters: {otlp_http: {on_partial_success: park}}}");
    let scene = Scene { data_dir: setup.dir.path().join("data"), sink, setup, client: client() };
    let forebay = scene.start().await;
    scene.sink.refuse_with.store(503, Ordering::SeqCst);
    scene.post(&["too-late".to_owned()]).await;
    let dir = &scene.data_dir;
    let reasons = || letters(dir).iter().map(|letter| letter["reason"].clone()).collect::<Vec<_>>();
    eventually("it expires", async || reasons() == ["expired"]).await;
    scene.sink.refuse_with.store(0, Ordering::SeqCst);
    scene.sink.reject_spans.store(1, Ordering::SeqCst);
    scene.post(&["one".to_owned(), "two".to_owned()]).await;
    eventually("a copy is parked", async || reasons() == ["expired", "ambiguous"]).await;
    assert!(stdout(&dlq(&["list", "--reason", "ambiguous"], dir)).contains("1 of 2 items rejected: not these"));
    assert!(scene.sink.taken.lock().values().all(|(times, _)| *times == 1), "never sent again");
    scene.sink.reject_spans.store(0, Ordering::SeqCst);
    assert!(stdout(&dlq(&["replay", "--reason", "expired"], dir)).contains("1 letters with 1 items delivered"));
    assert!(scene.sink.taken.lock().contains_key("too-late"));
    let mode =
        |path: PathBuf| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).expect("there").permissions());
    let files = std::fs::read_dir(dir.join("dlq")).expect("listed").map(|entry| entry.expect("entry").path());
    let modes: Vec<u32> = files.filter(|path| path.is_file()).map(|path| mode(path) & 0o777).collect();
    assert!(!modes.is_empty() && modes.iter().all(|mode| *mode == 0o600), "{modes:?}");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}
