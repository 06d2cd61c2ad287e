use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use bytes::Bytes;

use crate::otlp::json;

use super::*;
use crate::otlp::{Signal, wire};

/// A traces request with one span of that name.
fn batch(name: &str) -> Batch {
    let text = format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{{\"name\":\"{name}\"}}]}}]}}]}}");
    let payload = json::to_protobuf(Signal::Traces, text.as_bytes()).expect("valid");
    Batch { signal: Signal::Traces, items: 1, payload: payload.into(), metadata: Vec::new() }
}

fn settings(dir: &Path) -> Settings {
    let mut settings = Settings { path: "out/telemetry.jsonl".into(), ..Settings::default() };
    settings.resolve(dir);
    settings
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).expect("readable").lines().map(str::to_owned).collect()
}

async fn deliver(exporter: &impl Exporter, name: &str) {
    let outcome = exporter.export(batch(name)).await;
    assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
}

#[tokio::test]
async fn every_delivered_request_is_one_line_that_reads_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let settings = settings(dir.path());
    let exporter = Arc::new(build(&settings).expect("built"));
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let exporter = Arc::clone(&exporter);
            tokio::spawn(async move { deliver(&*exporter, &format!("span-{n}")).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let lines = lines(&settings.path);
    assert_eq!(lines.len(), 50);
    for line in &lines {
        let back: Bytes = json::to_protobuf(Signal::Traces, line.as_bytes()).expect("valid");
        assert_eq!(wire::scan(Signal::Traces, &back).expect("valid").items, 1);
    }
    assert!((0..50).all(|n| lines.iter().any(|line| line.contains(&format!("\"span-{n}\"")))));
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_at_start() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let settings = settings(dir.path());
    deliver(&build(&settings).expect("built"), "whole").await;
    let mut torn = std::fs::read(&settings.path).expect("readable");
    let whole = torn.len();
    torn.extend(vec![b'x'; 200_000]);
    std::fs::write(&settings.path, &torn).expect("written");
    deliver(&build(&settings).expect("built"), "next").await;
    let lines = lines(&settings.path);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].len() + 1, whole);
    assert!(lines[1].contains("next"));
}

#[tokio::test]
async fn a_full_file_is_rotated_and_nothing_is_deleted_unless_max_backups_says_so() {
    for max_backups in [None, Some(2)] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let settings = Settings { rotate_at_bytes: 100, max_backups, ..settings(dir.path()) };
        let exporter = build(&settings).expect("built");
        for n in 0..6 {
            deliver(&exporter, &format!("span-{n}")).await;
        }
        let mut names: Vec<String> = std::fs::read_dir(dir.path().join("out"))
            .expect("listed")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names.len() as u64, max_backups.map_or(6, |max| max + 1), "{names:?}");
        assert!(lines(&settings.path)[0].contains("span-5"));
        assert!(names.iter().all(|name| name.starts_with("telemetry") && name.ends_with(".jsonl")));
    }
}

#[test]
fn a_path_that_cannot_be_written_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("out"), b"a file, not a directory").expect("written");
    let error = build(&settings(dir.path())).err().expect("refused");
    assert!(error.0.contains("telemetry.jsonl") && error.0.contains("check `path`"), "{}", error.0);
}

/// What the next operations do; without an entry they succeed.
#[derive(Default)]
struct Faults {
    /// Half of the line is written, then the disk is full.
    write: Option<io::ErrorKind>,
    sync: Option<io::ErrorKind>,
    /// Free and total bytes.
    space: Option<(u64, u64)>,
    /// Told when a sync begins; the sync ends when the other side says so.
    gate: Option<(Sender<()>, Receiver<()>)>,
}

struct FaultyDisk(Arc<Mutex<Faults>>);

impl writer::Disk for FaultyDisk {
    fn write(&mut self, file: &mut std::fs::File, line: &[u8]) -> io::Result<()> {
        match self.0.lock().write.take() {
            None => io::Write::write_all(file, line),
            Some(kind) => io::Write::write_all(file, &line[..line.len() / 2]).and(Err(kind.into())),
        }
    }

    fn sync(&mut self, file: &std::fs::File) -> io::Result<()> {
        let gate = self.0.lock().gate.take();
        if let Some((begun, go_on)) = gate {
            begun.send(()).expect("the test listens");
            go_on.recv().expect("the test answers");
        }
        match self.0.lock().sync.take() {
            None => file.sync_data(),
            Some(kind) => Err(kind.into()),
        }
    }

    fn space(&mut self, _file: &std::fs::File) -> io::Result<(u64, u64)> {
        Ok(self.0.lock().space.unwrap_or((1 << 40, 1 << 40)))
    }
}

/// An exporter with one line delivered, on a disk that fails as it is told.
async fn faulty(dir: &Path) -> (File, PathBuf, Arc<Mutex<Faults>>) {
    let faults = Arc::new(Mutex::new(Faults::default()));
    let settings = settings(dir);
    let exporter = build_on(&settings, FaultyDisk(Arc::clone(&faults))).expect("built");
    deliver(&exporter, "first").await;
    (exporter, settings.path, faults)
}

async fn failure(exporter: &File, name: &str) -> Failure {
    match exporter.export(batch(name)).await {
        Outcome::Failed(failure) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test]
async fn a_line_that_a_full_disk_or_a_failed_sync_cuts_short_is_taken_back_and_comes_again() {
    for full_at_write in [true, false] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (exporter, path, faults) = faulty(dir.path()).await;
        let whole = std::fs::read(&path).expect("readable");
        let kind = Some(io::ErrorKind::StorageFull);
        if full_at_write {
            faults.lock().write = kind
        } else {
            faults.lock().sync = kind
        }
        let failure = failure(&exporter, "second").await;
        assert_eq!(failure.class, Class::Retryable);
        assert!(failure.message.contains("telemetry.jsonl"), "{}", failure.message);
        assert_eq!(std::fs::read(&path).expect("readable"), whole, "no half line stays");
        deliver(&exporter, "second").await;
        let lines = lines(&path);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains("second") && json::to_protobuf(Signal::Traces, lines[1].as_bytes()).is_ok());
    }
}

#[tokio::test]
async fn below_the_floor_of_free_space_nothing_is_written_until_there_is_room_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (exporter, path, faults) = faulty(dir.path()).await;
    // Five percent, and at the most 1 GiB, stay free.
    for (free, total) in [((5 << 20) - 1, 100 << 20), (1 << 30, 1 << 40)] {
        faults.lock().space = Some((free, total));
        let failure = failure(&exporter, "second").await;
        assert_eq!(failure.class, Class::Retryable);
        assert!(failure.message.contains("must stay free"), "{}", failure.message);
        assert_eq!(lines(&path).len(), 1);
    }
    faults.lock().space = Some((6 << 20, 100 << 20));
    deliver(&exporter, "second").await;
    assert_eq!(lines(&path).len(), 2);
}

#[tokio::test]
async fn nothing_is_delivered_before_its_sync_has_returned() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (exporter, path, faults) = faulty(dir.path()).await;
    let ((begun, has_begun), (go_on, goes_on)) = (channel(), channel());
    faults.lock().gate = Some((begun, goes_on));
    let delivery = tokio::spawn(async move { exporter.export(batch("second")).await });
    let waited =
        tokio::task::spawn_blocking(move || has_begun.recv_timeout(Duration::from_secs(20))).await.expect("no panic");
    waited.expect("the sync begins");
    assert_eq!(lines(&path).len(), 2, "it is written");
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(!delivery.is_finished(), "and not delivered");
    }
    go_on.send(()).expect("the disk waits");
    let outcome = delivery.await.expect("no panic");
    assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
}
