//! What strace saw of files: each is durable, and its name in its directory, before the first answer of success; a segment
//! goes only after catalogue and witness have been synced, sled's file by a descriptor of our own.
//!
//! Says SKIPPED where strace is missing or may not trace. The checker must fail on traces that were tampered with.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use support::strace::{self, Event, Moment};
use support::{Forebay, Sink, client, eventually, free_ports, request};

/// Requests of about a megabyte, so that segments of 4 MiB fill and go.
const REQUESTS: usize = 24;
const SPANS_PER_REQUEST: usize = 1200;

fn is_sync(event: &Event) -> bool {
    ["fsync", "fdatasync"].contains(&event.call.as_str())
}

/// A sync that has returned well.
fn synced(event: &Event) -> bool {
    is_sync(event) && event.moment == Moment::Leaves(0)
}

/// What a call that has returned well put into place: a new file, or one under a new name.
fn placed(event: &Event) -> Option<PathBuf> {
    let Moment::Leaves(result) = event.moment else { return None };
    let name = match event.call.as_str() {
        "openat" if result >= 0 && event.text.contains("O_CREAT") => event.strings.first(),
        "rename" | "renameat" | "renameat2" if result == 0 => event.strings.get(1),
        _ => None,
    };
    name.map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned()))
}

/// What a call that is about to begin takes away from its place.
fn taken_away(event: &Event) -> Option<PathBuf> {
    let is_removal = ["unlink", "unlinkat", "rename", "renameat", "renameat2"].contains(&event.call.as_str());
    let name = event.strings.first().filter(|_| is_removal && event.moment == Moment::Enters)?;
    Some(PathBuf::from(String::from_utf8_lossy(name).into_owned()))
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "seg") && path.components().any(|part| part.as_os_str() == "queues")
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    created: BTreeSet<PathBuf>,
    removed_segments: usize,
}

/// Err says what was not durable in time.
fn check(lines: &[String], data_dir: &Path) -> Result<Seen, String> {
    let events = strace::file_events(lines)?;
    let is_answer = |event: &Event| {
        event.moment == Moment::Enters
            && event.bytes.starts_with(b"HTTP/1.1 200")
            && event.bytes.windows(10).any(|window| window == b"x-protobuf")
    };
    let first_answer = events.iter().position(is_answer).ok_or("no answer of success")?;
    let mut seen = Seen::default();
    let before = &events[..first_answer];
    // The last time that each file came into its place; what was a step on the way there is gone again.
    for (index, event) in before.iter().enumerate() {
        let Some(path) = placed(event).filter(|path| path.starts_with(data_dir)) else { continue };
        let rest = &before[index + 1..];
        let is_replaced = rest.iter().any(|later| placed(later).as_ref() == Some(&path));
        let goes_again = rest.iter().any(|later| taken_away(later).as_ref() == Some(&path));
        // The lock holds nothing, and a socket is no file; sled's snapshots are its own matter, which it may lose.
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if is_replaced || goes_again || name == "LOCK" || name.starts_with("snap.") {
            continue;
        }
        let dir = path.parent().ok_or("a file without a directory")?;
        let is_in_dir = rest.iter().any(|later| synced(later) && Path::new(&later.path) == dir);
        if !is_in_dir {
            return Err(format!(
                "line {}: {} is answered for before its directory was synced",
                event.line,
                path.display()
            ));
        }
        // Also before it got its name.
        let is_synced = before.iter().any(|other| {
            synced(other) && (Path::new(&other.path) == path || is_renamed_to(before, &other.path, &path))
        });
        if !is_synced {
            return Err(format!("line {}: {} is answered for before it was synced", event.line, path.display()));
        }
        seen.created.insert(path);
    }
    let db = data_dir.join("catalog/db");
    let witness = data_dir.join("witness");
    let mut sleds_descriptors = BTreeSet::new();
    let (mut catalogue_at, mut witness_written, mut witness_at, mut removed_at) = (None, None, None, None);
    for event in &events {
        let path = Path::new(&event.path);
        if path == db && event.call.starts_with("pwrite") {
            sleds_descriptors.insert(event.fd);
        }
        if path == db && synced(event) && event.call == "fdatasync" && !sleds_descriptors.contains(&event.fd) {
            catalogue_at = Some(event.line);
        }
        if path == witness && event.call.starts_with("pwrite") && event.moment == Moment::Enters {
            witness_written = Some(event.line);
        }
        if path == witness && synced(event) && witness_written > catalogue_at {
            witness_at = Some(event.line);
        }
        if taken_away(event).is_some_and(|path| is_segment(&path)) {
            // Since the last removal, or in the same checkpoint as that.
            let is_backed =
                catalogue_at.is_some() && witness_at > catalogue_at && catalogue_at.max(removed_at) == catalogue_at
                    || removed_at.is_some() && removed_at > witness_at && witness_at.is_some();
            if !is_backed {
                return Err(format!("line {}: a segment goes before catalogue and witness were synced", event.line));
            }
            seen.removed_segments += 1;
            removed_at = Some(event.line);
        }
    }
    Ok(seen)
}

/// Whether the file that lay at `from` was put to `to`.
fn is_renamed_to(events: &[Event], from: &str, to: &Path) -> bool {
    events.iter().any(|event| {
        placed(event).as_deref() == Some(to)
            && event.call.starts_with("rename")
            && event.strings.first().is_some_and(|name| name == from.as_bytes())
    })
}

async fn trace(dir: &Path) -> Vec<String> {
    let (sink, address) = Sink::start().await;
    let [http_port, health_port] = free_ports();
    let config = dir.join("forebay.yaml");
    let text = format!(
        "receivers: {{otlp: {{protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}}}}}}}\n\
         exporters: {{otlp_http: {{endpoint: \"http://{address}\", compression: none}}}}\n\
         extensions: {{health_check: {{endpoint: 127.0.0.1:{health_port}}}}}\n\
         forebay: {{queue: {{max_size: 64MiB}}}}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    );
    std::fs::write(&config, text).expect("configuration written");
    let trace = dir.join("trace");
    let wrapper = strace::file_wrapper(&trace);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let log = dir.join("forebay.log");
    let forebay = Forebay::start_under(&wrapper, &config, &dir.join("data"), health_port, &log);
    let pid = forebay.pid();
    let client = client();
    forebay.ready(&client).await;
    for round in 0..REQUESTS {
        let names: Vec<String> = (0..SPANS_PER_REQUEST).map(|n| format!("a-span-of-some-length-{round}-{n}")).collect();
        let url = format!("http://127.0.0.1:{http_port}/v1/traces");
        let sending = client.post(url).header("content-type", "application/x-protobuf").body(request(&names)).send();
        assert!(sending.await.expect("answered").status().is_success());
    }
    eventually("all is sent on", async || sink.taken.lock().len() == REQUESTS * SPANS_PER_REQUEST).await;
    assert_eq!(forebay.stop().await, 0, "{}", std::fs::read_to_string(&log).unwrap_or_default());
    let mut text = String::new();
    // strace notes the end a moment after the process has ended.
    eventually("the trace is whole", async || {
        text = std::fs::read_to_string(&trace).expect("readable");
        text.lines().any(|line| line.starts_with(&format!("{pid} ")) && line.ends_with("+++ exited with 0 +++"))
    })
    .await;
    text.lines().map(str::to_owned).collect()
}

/// As strace writes it.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_and_their_names_are_durable_before_the_first_success_and_segments_go_after_the_checkpoint() {
    if !strace::is_permitted() {
        println!("sync creation: SKIPPED, strace is not installed or may not trace here");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let root = dir.path().canonicalize().expect("a path");
    let data_dir = root.join("data");
    let lines = trace(&root).await;
    let seen = check(&lines, &data_dir).unwrap_or_else(|error| panic!("{error}"));
    let created: BTreeSet<String> =
        seen.created.iter().map(|path| path.strip_prefix(&data_dir).expect("below").display().to_string()).collect();
    for name in ["FORMAT", "witness", "ballast", "catalog/db", "catalog/conf", "queues/traces/0000000000000000.seg"] {
        assert!(created.contains(name), "{name} is not among {created:?}");
    }
    assert!(seen.removed_segments >= 2, "{seen:?}");
    let without = |is_meant: &dyn Fn(&str) -> bool| -> Vec<String> {
        let meant = |line: &String| (line.contains(" fsync(") || line.contains(" fdatasync(")) && is_meant(line);
        // Both halves of a call go, or strace's file would not be one.
        let halves: Vec<&str> = lines
            .iter()
            .filter(|line| meant(line) && line.ends_with("<unfinished ...>"))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let is_second = |line: &&String| {
            line.contains("sync resumed>") && halves.iter().any(|thread| line.starts_with(&format!("{thread} ")))
        };
        lines.iter().filter(|line| !meant(line) && !is_second(line)).cloned().collect()
    };
    let of = |path: &Path| format!("<{}>", escaped(&path.display().to_string()));
    let tampered = [
        ("without syncs of sled's file", without(&|line| line.contains(&of(&data_dir.join("catalog/db"))))),
        ("without syncs of the witness", without(&|line| line.contains(&of(&data_dir.join("witness"))))),
        (
            "without syncs of the queue's directory",
            without(&|line| line.contains(&of(&data_dir.join("queues/traces")))),
        ),
        ("without syncs of the data directory", without(&|line| line.contains(&of(&data_dir)))),
    ];
    for (what, lines) in tampered {
        assert!(check(&lines, &data_dir).is_err(), "a trace {what} passes");
    }
    println!(
        "sync creation: {} files durable before the first answer, {} segments gone after their checkpoint, in {} lines; \
         4 tampered traces fail",
        seen.created.len(),
        seen.removed_segments,
        lines.len()
    );
}
