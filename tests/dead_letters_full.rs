//! A dead-letter queue at its cap with the real binary: it holds what it cannot take, or drops and counts it.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use support::dlq::{letters, stdout};
use support::eventually;
use support::scene::{POISON, Scene};

const COUNT: usize = 20;
/// The least that can be configured; no more than 16 letters of a megabyte find room.
const MAX_BYTES: u64 = 16 << 20;
const KEPT_MIN: usize = 14;

fn name(number: usize) -> String {
    format!("{POISON}-{number:02} {}", "x".repeat(1_000_000))
}

/// Names of the letters, without what makes them long.
fn waiting(scene: &Scene) -> BTreeSet<String> {
    let exported = stdout(&scene.dlq(&["export"]));
    let short = |line: &str| line.find(POISON).map(|at| line[at..at + POISON.len() + 3].to_owned());
    exported.lines().map(|line| short(line).expect("a name")).collect()
}

fn sent() -> BTreeSet<String> {
    (0..COUNT).map(|number| format!("{POISON}-{number:02}")).collect()
}

/// The sum of a metric's series with this label.
async fn metric(scene: &Scene, metric: &str, label: &str) -> usize {
    let url = format!("http://127.0.0.1:{}/metrics", scene.metrics_port);
    let page = scene.client.get(url).send().await.expect("a page").text().await.expect("text");
    let lines = page.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as usize
}

/// Bytes of the segments.
fn allocated(scene: &Scene) -> u64 {
    let entries = std::fs::read_dir(scene.data_dir().join("dlq")).expect("listed");
    let files = entries.map(|entry| entry.expect("entry").metadata().expect("there"));
    files.filter(|file| file.is_file()).map(|file| file.len()).sum()
}

async fn send_all(scene: &Scene) {
    for number in 0..COUNT {
        scene.spans("checkout", &[format!("good-{number}"), name(number)]).await;
    }
}

fn retry(dir: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let retried = command.args(["queue", "retry", "--data-dir"]).arg(dir).env_remove("FOREBAY_DATA_DIR").output();
    stdout(&retried.expect("forebay runs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_block_what_finds_no_room_is_held_over_kill_9_and_parked_once_there_is() {
    let scene = Scene::new(&format!("  dead_letters: {{max_size: {MAX_BYTES}}}\n")).await;
    let mut forebay = scene.start().await;
    send_all(&scene).await;
    let dir = scene.data_dir();
    let is_full = async || {
        let (kept, held) =
            (letters(&dir).len(), metric(&scene, "forebay_exporter_held_ranges", "otlp_http/first").await);
        // Each record has one poison: none is under way any more.
        (KEPT_MIN..COUNT).contains(&kept) && kept + held == COUNT
    };
    eventually("it is full and the rest is held", is_full).await;
    forebay.kill();
    forebay = scene.start().await;
    // Without proof that others are taken nothing would be parked.
    scene.spans("checkout", &["good-again".to_owned()]).await;
    eventually("the rest is held again", is_full).await;
    assert!(allocated(&scene) <= MAX_BYTES, "{} bytes", allocated(&scene));
    let first = waiting(&scene);
    let purged = stdout(&scene.dlq(&["purge", "--all"]));
    assert_eq!(purged, format!("{0} letters with {0} items were purged\n", first.len()));
    let mut more = 0;
    eventually("the rest is parked", async || {
        more += 1;
        scene.spans("checkout", &[format!("good-more-{more}")]).await;
        retry(&dir);
        letters(&dir).len() == COUNT - first.len()
    })
    .await;
    let second = waiting(&scene);
    assert_eq!(&first | &second, sent());
    assert!(first.is_disjoint(&second), "each once: {first:?} {second:?}");
    assert_eq!(metric(&scene, "forebay_exporter_dropped_spans", "dead_letters_full").await, 0);
    let taken: BTreeSet<String> = scene.first.taken.lock().keys().cloned().collect();
    assert!((0..COUNT).all(|number| taken.contains(&format!("good-{number}"))), "the good parts are delivered");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_drop_what_finds_no_room_is_counted_and_what_comes_when_there_is_room_is_kept() {
    let scene = Scene::new(&format!("  dead_letters: {{max_size: {MAX_BYTES}, on_full: drop}}\n")).await;
    let forebay = scene.start().await;
    send_all(&scene).await;
    let dir = scene.data_dir();
    let dropped = async || metric(&scene, "forebay_exporter_dropped_spans", "reason=\"dead_letters_full\"").await;
    eventually("each is kept or counted", async || letters(&dir).len() + dropped().await == COUNT).await;
    let kept = waiting(&scene);
    assert!(kept.len() >= KEPT_MIN && kept.len() < COUNT && kept.is_subset(&sent()), "{kept:?}");
    assert!(allocated(&scene) <= MAX_BYTES, "{} bytes", allocated(&scene));
    let parked = metric(&scene, "forebay_exporter_dead_lettered_spans", "reason=\"rejected\"").await;
    assert_eq!((parked, dropped().await), (kept.len(), COUNT - kept.len()));
    let small = [format!("{POISON}-s"), "good-small".to_owned()];
    stdout(&scene.dlq(&["purge", "--all"]));
    scene.spans("checkout", &small).await;
    eventually("there is room again", async || letters(&dir).len() == 1).await;
    assert_eq!(dropped().await, COUNT - kept.len());
    assert_eq!(metric(&scene, "forebay_exporter_held_ranges", "otlp_http/first").await, 0, "nothing is held");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}
