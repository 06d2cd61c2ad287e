use std::sync::Arc;

use bytes::Bytes;

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
