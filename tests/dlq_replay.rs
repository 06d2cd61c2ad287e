//! Replays with the real binary: to whom, how it shows, and what an interruption leaves.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use serde_json::Value;
use support::dlq::{letters, stderr, stdout};
use support::eventually;
use support::scene::{POISON, Scene};

fn replay(scene: &Scene, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["dlq", "replay", "--all"]).args(words).arg("--data-dir").arg(scene.data_dir());
    command.env_remove("FOREBAY_DATA_DIR").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Ended when a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Reaped already in the ordinary case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The names of the poison that still lies there.
fn waiting(scene: &Scene) -> BTreeSet<String> {
    let exported = stdout(&scene.dlq(&["export"]));
    let name = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"].as_str().expect("a name").to_owned()
    };
    exported.lines().map(name).collect()
}

/// What was delivered is gone or was on its way when it was interrupted; what was not is there. Sends the rest.
fn nothing_is_lost(scene: &Scene, count: usize, words: &[&str]) {
    let all: BTreeSet<String> = (0..count).map(|n| format!("{POISON}-{n}")).collect();
    let delivered: BTreeSet<String> = Scene::delivered(&scene.first).into_iter().collect();
    let left = waiting(scene);
    assert!(!left.is_empty() && !delivered.is_empty(), "it was interrupted: {left:?}, {delivered:?}");
    assert_eq!(&left | &delivered, all);
    assert!(
        (&left & &delivered).len() <= 1,
        "but for the one on its way nothing is sent again: {left:?}, {delivered:?}"
    );
    let rest = stdout(&scene.dlq(&[&["replay", "--all"][..], words].concat()));
    assert_eq!(rest, format!("{0} letters with {0} items delivered, 0 failed and stay\n", left.len()));
    assert_eq!((letters(&scene.data_dir()).len(), Scene::delivered(&scene.first).len()), (0, count));
    assert!(scene.first.taken.lock().values().filter(|(times, _)| *times > 1).count() <= 1, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_can_be_sent_to_another_exporter_which_gets_it_and_nobody_else_does() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(2).await;
    // The first destination would refuse them still.
    scene.second.poison.lock().clear();
    let unknown = scene.dlq(&["replay", &ids[0], "--to", "otlp_http/third"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("there are: otlp_http/first, otlp_http/second"), "{}", stderr(&unknown));
    let requests = scene.first.requests.load(Ordering::SeqCst);
    let sent = stdout(&scene.dlq(&["replay", &ids[0], "--to", "otlp_http/second"]));
    assert_eq!(sent, "1 letters with 1 items delivered, 0 failed and stay\n");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    let config = scene.config().display().to_string();
    stdout(&scene.dlq(&["replay", &ids[1], "--to", "otlp_http/second", "--config", &config]));
    assert_eq!(Scene::delivered(&scene.second), [format!("{POISON}-0"), format!("{POISON}-1")]);
    assert!(Scene::delivered(&scene.first).is_empty() && letters(&scene.data_dir()).is_empty());
    assert_eq!(scene.first.requests.load(Ordering::SeqCst), requests, "the first was not even asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_terminal_a_bar_shows_how_far_a_replay_is_and_elsewhere_none_does() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    scene.parked(4).await;
    // One of them goes on failing.
    *scene.first.poison.lock() = format!("{POISON}-3");
    let elsewhere = scene.dlq(&["replay", "--reason", "expired"]);
    assert_eq!(
        (stdout(&elsewhere).as_str(), stderr(&elsewhere).as_str()),
        ("0 letters with 0 items delivered, 0 failed and stay\n", "")
    );
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("its other side");
    let name = ptsname(&terminal, Vec::new()).expect("its name");
    let side = File::options().read(true).write(true).open(name.to_str().expect("text")).expect("opened");
    let mut command = replay(&scene, &[]);
    command.stdout(side.try_clone().expect("cloned")).stderr(side);
    let mut running = Running(command.spawn().expect("forebay runs"));
    // Nobody else has the other side any more: reading ends when the command does.
    drop(command);
    let mut shown = Vec::new();
    // Linux ends it with an error instead of nothing.
    let _ = File::from(terminal).read_to_end(&mut shown);
    let shown = String::from_utf8(shown).expect("text");
    assert_eq!(running.0.wait().expect("ended").code(), Some(1), "{shown}");
    for part in [
        "\r[##########..............................] 1 of 4, ",
        "\r[####################....................] 2 of 4, ",
        "\r[########################################] 4 of 4, 1 failed ",
        "stays: ",
        "3 letters with 3 items delivered, 1 failed and stay",
        "1 letters could not be delivered",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown:?}");
    }
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_process_amid_a_replay_loses_no_letter() {
    const COUNT: usize = 30;
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    scene.parked(COUNT).await;
    scene.cure();
    scene.first.delay_ms.store(20, Ordering::SeqCst);
    let mut command = replay(&scene, &[]);
    let mut running = Running(command.stderr(Stdio::piped()).spawn().expect("forebay runs"));
    eventually("some are sent", async || Scene::delivered(&scene.first).len() >= COUNT / 3).await;
    forebay.kill();
    assert_eq!(running.0.wait().expect("ended").code(), Some(1));
    let mut said = String::new();
    running.0.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(said.contains("broke off"), "{said}");
    scene.first.delay_ms.store(0, Ordering::SeqCst);
    let forebay = scene.start().await;
    nothing_is_lost(&scene, COUNT, &[]);
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_without_the_process_that_is_interrupted_or_killed_loses_no_letter() {
    const COUNT: usize = 30;
    for signal in ["-INT", "-KILL"] {
        let scene = Scene::new("").await;
        let forebay = scene.start().await;
        scene.parked(COUNT).await;
        assert_eq!(forebay.stop().await, 0, "{}", scene.log());
        scene.cure();
        scene.first.delay_ms.store(20, Ordering::SeqCst);
        let config = scene.config().display().to_string();
        let mut running = Running(replay(&scene, &["--config", &config]).spawn().expect("forebay runs"));
        eventually("some are sent", async || Scene::delivered(&scene.first).len() >= COUNT / 3).await;
        let killed = Command::new("kill").args([signal, &running.0.id().to_string()]).status().expect("kill runs");
        assert!(killed.success());
        assert!(!running.0.wait().expect("ended").success(), "{signal}");
        scene.first.delay_ms.store(0, Ordering::SeqCst);
        nothing_is_lost(&scene, COUNT, &["--config", &config]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_whose_command_is_gone_ends_before_its_next_turn_and_leaves_the_way_to_the_next() {
    const COUNT: usize = 5;
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    scene.parked(COUNT).await;
    scene.cure();
    // The second letter's turn is in a quarter of an hour.
    let mut running = Running(replay(&scene, &["--rate", "0.001"]).spawn().expect("forebay runs"));
    eventually("one is sent", async || letters(&scene.data_dir()).len() == COUNT - 1).await;
    let busy = scene.dlq(&["replay", "--all"]);
    assert!(stderr(&busy).contains("another replay is under way"), "{}", stderr(&busy));
    running.0.kill().and_then(|()| running.0.wait()).expect("killed");
    let ended = "a replay of dead letters ended early: nobody listens";
    eventually("it is noticed", async || scene.log().contains(ended)).await;
    assert_eq!(Scene::delivered(&scene.first).len(), 1, "not one more was sent");
    nothing_is_lost(&scene, COUNT, &[]);
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}
