//! A data directory that was damaged after kill -9, with the real binary: it starts, says what is lost, counts it, and
//! goes on.

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::setup::Setup;
use support::{Sink, client, eventually};

const REQUESTS: usize = 5;

fn segments(setup: &Setup) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(setup.dir.path().join("data/queues/traces")).expect("listed");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

/// Flips a bit in the span of that name.
fn flip(path: &Path, name: &str) {
    let mut bytes = std::fs::read(path).expect("read");
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).expect("there");
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_is_one_error_each_counted_and_may_come_again_and_the_rest_is_delivered() {
    type Harm = fn(&[PathBuf]);
    let cases: [(&str, Harm, &[&str]); 3] = [
        ("a bit of one record", |paths| flip(&paths[0], "span-2"), &["span-2"]),
        (
            "two places",
            |paths| ["span-1", "span-3"].iter().for_each(|name| flip(&paths[0], name)),
            &["span-1", "span-3"],
        ),
        (
            "everything",
            |paths| paths.iter().for_each(|path| std::fs::remove_file(path).expect("removed")),
            &["span-0", "span-1", "span-2", "span-3", "span-4"],
        ),
    ];
    for (what, harm, lost) in cases {
        let (sink, address) = Sink::start().await;
        sink.refuse_with.store(503, Ordering::SeqCst);
        let retry = "retry_on_failure: {initial_interval: 20ms, max_interval: 50ms}";
        let setup = Setup::new("otlp_http", &format!("{{endpoint: 'http://{address}', {retry}}}"), "{}");
        let client = client();
        let forebay = setup.start(&client).await;
        for n in 0..REQUESTS {
            assert!(setup.post(&client, &format!("span-{n}")).await.status().is_success());
        }
        // What is acknowledged after the last checkpoint cannot be told from a torn group: none is due any more.
        let witness = setup.dir.path().join("data/witness");
        let age = || std::fs::metadata(&witness).and_then(|found| found.modified()).map(|at| at.elapsed());
        eventually("the last checkpoint is some time ago", async || {
            age().is_ok_and(|age| age.is_ok_and(|age| age > Duration::from_secs(1)))
        })
        .await;
        forebay.kill();
        harm(&segments(&setup));
        let log = setup.dir.path().join("log");
        std::fs::write(&log, "").expect("emptied");
        sink.refuse_with.store(0, Ordering::SeqCst);
        let forebay = setup.start(&client).await;
        let damaged = setup.sample(&client, "forebay_storage_damaged_records", "queue=\"traces\"").await;
        assert_eq!(damaged, Some(lost.len() as f64), "{what}");
        eventually("the rest is delivered", async || sink.taken.lock().len() == REQUESTS - lost.len()).await;
        for name in lost {
            let answer = setup.post(&client, name).await;
            assert!(answer.status().is_success() && answer.headers().get("forebay-deduplicated").is_none(), "{what}");
        }
        eventually("it is stored again", async || sink.taken.lock().len() == REQUESTS).await;
        assert!(sink.taken.lock().values().all(|(times, _)| *times == 1), "{what}");
        assert_eq!(forebay.stop().await, 0);
        let said = std::fs::read_to_string(&log).expect("read");
        let errors: Vec<&str> = said.lines().filter(|line| line.contains("ERROR")).collect();
        let places = if lost.len() == REQUESTS { 1 } else { lost.len() };
        assert_eq!(errors.len(), places, "{what}: {errors:#?}");
        assert!(errors.iter().all(|line| line.contains("damaged and lost")), "{what}: {errors:#?}");
    }
}
