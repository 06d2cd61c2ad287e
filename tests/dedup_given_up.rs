//! What nobody has any more may come again: given up at a cap, dropped, purged, past its age, forgotten.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use support::dedup::{log, names, rewrite, send, setup_with};
use support::dlq::{dlq, letters, stdout};
use support::setup::Setup;
use support::{Forebay, Sink, client, eventually, free_ports};

const POISON: &str = "tool-call";

struct Scene {
    sink: Arc<Sink>,
    setup: Setup,
    client: reqwest::Client,
}

/// With a destination that does not take the poison.
async fn scene(forebay: &str) -> Scene {
    let (sink, address) = Sink::start().await;
    *sink.poison.lock() = POISON.to_owned();
    Scene { sink, setup: setup_with(&format!("http://{address}"), "", forebay), client: client() }
}

impl Scene {
    async fn start(&self) -> Forebay {
        self.setup.start(&self.client).await
    }

    async fn send(&self, names: &[String]) -> Option<u64> {
        send(&self.setup, &self.client, names).await
    }

    async fn sample(&self, name: &str, label: &str) -> f64 {
        self.setup.sample(&self.client, name, label).await.unwrap_or(0.0)
    }

    fn data_dir(&self) -> std::path::PathBuf {
        self.setup.dir.path().join("data")
    }

    /// One poisoned span and one that is taken: the first becomes a letter, and the request is known.
    async fn with_a_letter(&self) -> Vec<String> {
        let names = vec![POISON.to_owned(), "good".to_owned()];
        assert_eq!(self.send(&names).await, None);
        eventually("the poison is parked", async || letters(&self.data_dir()).len() == 1).await;
        assert_eq!(self.send(&names).await, Some(2));
        names
    }

    /// The request is stored, and its destination takes all of it now.
    async fn comes_again(&self, names: &[String]) {
        self.sink.poison.lock().clear();
        assert_eq!(self.send(names).await, None, "it is stored again: {}", log(&self.setup));
        eventually("it is delivered", async || self.sink.taken.lock().contains_key(&names[0])).await;
        assert_eq!(self.send(names).await, Some(names.len() as u64));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_purges_may_come_again_at_once_and_after_kill_9() {
    for is_after in [false, true] {
        let scene = scene("{}").await;
        let mut forebay = scene.start().await;
        let names = scene.with_a_letter().await;
        assert!(stdout(&dlq(&["purge", "--all", "--dry-run"], &scene.data_dir())).contains("1 letters"));
        assert_eq!(scene.send(&names).await, Some(2), "nothing was purged");
        assert!(stdout(&dlq(&["purge", "--all"], &scene.data_dir())).contains("1 letters"));
        if is_after {
            forebay.kill();
            forebay = scene.start().await;
        }
        scene.comes_again(&names).await;
        assert_eq!(forebay.stop().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_purges_without_a_process_may_come_again() {
    let scene = scene("{}").await;
    let forebay = scene.start().await;
    let names = scene.with_a_letter().await;
    forebay.kill();
    assert!(stdout(&dlq(&["purge", "--all"], &scene.data_dir())).contains("1 letters"));
    let forebay = scene.start().await;
    scene.comes_again(&names).await;
    assert_eq!(forebay.stop().await, 0);
}

/// In its files, behind their headers.
fn fingerprint_bytes(dir: &std::path::Path) -> u64 {
    const HEADER_BYTES: u64 = 24;
    let entries = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("entry"));
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "fps"));
    files.map(|entry| entry.metadata().map_or(0, |found| found.len()).saturating_sub(HEADER_BYTES)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_replayed_stays_known() {
    let scene = scene("{}").await;
    let forebay = scene.start().await;
    let names = scene.with_a_letter().await;
    scene.sink.poison.lock().clear();
    assert!(stdout(&dlq(&["replay", "--all"], &scene.data_dir())).contains("1 letters with 1 items delivered"));
    assert_eq!(scene.send(&names).await, Some(2));
    // What was delivered within the last moments before a kill may come through twice.
    let dir = scene.data_dir().join("fingerprints");
    eventually("its fingerprint is written", async || fingerprint_bytes(&dir) > 0).await;
    forebay.kill();
    let forebay = scene.start().await;
    assert_eq!(scene.send(&names).await, Some(2), "{}", log(&scene.setup));
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_past_max_age_may_come_again() {
    let scene = scene("{dead_letters: {max_age: 1s}}").await;
    let forebay = scene.start().await;
    let names = vec![POISON.to_owned(), "good".to_owned()];
    assert_eq!(scene.send(&names).await, None);
    eventually("the letter is dropped", async || {
        scene.sample("forebay_exporter_dropped_spans", "reason=\"dead_letters_expired\"").await == 1.0
    })
    .await;
    forebay.kill();
    let forebay = scene.start().await;
    scene.comes_again(&names).await;
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_full_dead_letter_queue_drops_may_come_again_and_what_it_keeps_stays_known() {
    let scene = scene("{dead_letters: {max_size: 16MiB, on_full: drop}}").await;
    let forebay = scene.start().await;
    // Each a request of its own, of some 3 MB.
    let large = |n: u32| vec![format!("{POISON}-{n}-{}", "x".repeat(150_000))];
    let parked = async || scene.sample("forebay_exporter_dead_lettered_spans", "reason=\"rejected\"").await;
    let dropped = async || scene.sample("forebay_exporter_dropped_spans", "reason=\"dead_letters_full\"").await;
    // The destination takes something in between, else nothing is proven to be poison.
    assert_eq!(scene.send(&names(0..1)).await, None);
    eventually("something is taken", async || scene.sink.taken.lock().len() == 1).await;
    let mut sent = 0;
    while dropped().await == 0.0 {
        assert!(sent < 10, "16 MiB hold no ten of them");
        assert_eq!(scene.send(&large(sent)).await, None);
        sent += 1;
        eventually("it is parked or dropped", async || parked().await + dropped().await == f64::from(sent)).await;
    }
    assert!(parked().await >= 2.0);
    // A restart knows records one by one; until then what was stored at about the same time is forgotten as well.
    forebay.kill();
    let forebay = scene.start().await;
    assert_eq!(scene.send(&large(0)).await, Some(1), "it is a letter");
    scene.comes_again(&large(sent - 1)).await;
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gives_way_in_a_full_queue_may_come_again_and_the_rest_stays_known() {
    let [dead_port] = free_ports();
    let sink = format!("http://127.0.0.1:{dead_port}");
    let forebay = "{exporters: {otlp_http: {on_full: drop}}}";
    let setup = setup_with(&sink, ", sizer: items, queue_size: 20", forebay);
    let client = client();
    let forebay = setup.start(&client).await;
    for n in 0..3 {
        assert_eq!(send(&setup, &client, &names(n * 10..n * 10 + 10)).await, None);
    }
    let dropped = async |setup: &Setup| {
        setup.sample(&client, "forebay_exporter_dropped_spans", "reason=\"queue_full\"").await.unwrap_or(0.0)
    };
    eventually("the oldest gives way", async || dropped(&setup).await >= 10.0).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, None, "it is stored again");
    eventually("the next oldest gives way", async || dropped(&setup).await >= 20.0).await;
    forebay.kill();
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, Some(10), "it waits again");
    assert_eq!(send(&setup, &client, &names(20..30)).await, Some(10), "it has waited all the time");
    assert_eq!(send(&setup, &client, &names(10..20)).await, None, "nobody has it");
    forebay.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_forgotten_queue_had_may_come_again() {
    let [dead_port] = free_ports();
    let dead = format!("http://127.0.0.1:{dead_port}");
    let setup = setup_with(&dead, "", "{}");
    let client = client();
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, None);
    assert_eq!(send(&setup, &client, &names(0..10)).await, Some(10));
    assert_eq!(forebay.stop().await, 0);
    let mut forget = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
    forget.args(["queue", "forget", "--queue", "traces", "--data-dir"]).arg(setup.dir.path().join("data"));
    stdout(&forget.env_remove("FOREBAY_DATA_DIR").output().expect("forebay runs"));
    let (sink, address) = Sink::start().await;
    rewrite(&setup, &dead, &format!("http://{address}"));
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, None, "it is stored again");
    eventually("it is delivered", async || sink.taken.lock().len() == 10).await;
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_seen_before_dedup_was_off_for_a_run_may_come_again() {
    let (sink, address) = Sink::start().await;
    sink.refuse_with.store(503, Ordering::SeqCst);
    let setup = setup_with(&format!("http://{address}"), "", "{dedup: {requests: [traces]}}");
    let client = client();
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, None);
    assert_eq!(forebay.stop().await, 0);
    // Nobody notes what becomes of it.
    rewrite(&setup, "requests: [traces]", "requests: []");
    let forebay = setup.start(&client).await;
    assert_eq!(forebay.stop().await, 0);
    rewrite(&setup, "requests: []", "requests: [traces]");
    let forebay = setup.start(&client).await;
    assert_eq!(send(&setup, &client, &names(0..10)).await, None);
    assert_eq!(send(&setup, &client, &names(0..10)).await, Some(10));
    forebay.kill();
}

/// Flips a bit in the only place in the queues' segments where that text stands first.
fn damage(data_dir: &std::path::Path, text: &str) {
    let mut dirs = vec![data_dir.join("queues")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path).expect("read");
            if let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
                bytes[at] ^= 1;
                return std::fs::write(&path, bytes).expect("written");
            }
        }
    }
    panic!("{text} is in no segment");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_on_disk_may_come_again_whether_a_start_or_a_delivery_finds_it() {
    for is_killed in [true, false] {
        let [dead_port] = free_ports();
        let setup = setup_with(&format!("http://127.0.0.1:{dead_port}"), "", "{}");
        let client = client();
        let forebay = setup.start(&client).await;
        for n in 1..4 {
            assert_eq!(send(&setup, &client, &names(n * 10..n * 10 + 10)).await, None);
        }
        // A start looks at what no checkpoint covers; after a clean stop whoever reads it first meets it.
        if is_killed {
            forebay.kill()
        } else {
            assert_eq!(forebay.stop().await, 0)
        }
        damage(&setup.dir.path().join("data"), "span-25");
        let forebay = setup.start(&client).await;
        let reason = if is_killed { "records failed their check" } else { "a record failed its check" };
        eventually("the damage is found", async || log(&setup).contains(reason)).await;
        if is_killed {
            assert_eq!(send(&setup, &client, &names(10..20)).await, Some(10), "its neighbour is whole");
        }
        assert_eq!(send(&setup, &client, &names(20..30)).await, None, "nobody has it: {}", log(&setup));
        assert_eq!(send(&setup, &client, &names(20..30)).await, Some(10));
        // Where a delivery found it, it finds it again after a start, and what is near in time may come again with it.
        if is_killed {
            forebay.kill();
            let forebay = setup.start(&client).await;
            assert_eq!(send(&setup, &client, &names(20..30)).await, Some(10), "the new one is there");
            forebay.kill();
        }
    }
}
