//! What strace saw of names and files: whatever a start makes is durable, with its name, before the first answer of
//! success leaves; and a segment goes only when a checkpoint that passed it is durable in catalogue and witness, sled's
//! log synced by a descriptor that is not sled's.
//!
//! Says SKIPPED where strace is missing or may not trace. The checker must fail on traces that were tampered with.

mod checker;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checker::{Seen, check};
use support::strace::{self, Event, token};
use support::{Forebay, Sink, client, eventually, free_ports, request};

const REQUESTS: usize = 20;

/// A run under strace in a fresh data directory that goes two directories deep: one segment goes while the process is
/// idle, one when it stops.
async fn trace(dir: &Path) -> (Vec<String>, PathBuf) {
    let (sink, address) = Sink::start().await;
    let [http_port, health_port] = free_ports();
    let (config, data, log, trace) =
        (dir.join("forebay.yaml"), dir.join("fresh/data"), dir.join("forebay.log"), dir.join("trace"));
    let text = format!(
        "receivers:\n  otlp:\n    protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}}}\n\
         exporters: {{otlp_http: {{endpoint: \"http://{address}\", compression: none}}}}\n\
         extensions: {{health_check: {{endpoint: 127.0.0.1:{health_port}}}}}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    );
    std::fs::write(&config, text).expect("configuration written");
    let wrapper = strace::wrapper(&trace);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut forebay = Forebay::start_under(&wrapper, &config, &data, health_port, &log);
    let (pid, client) = (forebay.pid(), client());
    forebay.ready(&client).await;
    let url = format!("http://127.0.0.1:{http_port}/v1/traces");
    for half in 0..2 {
        for n in half * REQUESTS..(half + 1) * REQUESTS {
            let sending = client.post(&url).header("content-type", "application/x-protobuf").body(request(&[token(n)]));
            assert!(sending.send().await.expect("answered").status().is_success());
        }
        eventually("all is delivered", async || sink.taken.lock().len() == (half + 1) * REQUESTS).await;
        let queue = data.join("queues/traces");
        let is_gone = || std::fs::read_dir(&queue).is_ok_and(|mut entries| entries.next().is_none());
        if half == 0 {
            eventually("the segment of an idle queue goes", async || is_gone()).await;
        }
    }
    assert_eq!(forebay.stop().await, 0, "{}", std::fs::read_to_string(&log).unwrap_or_default());
    (strace::finished(&trace, pid).await, data)
}

type Events = Vec<Arc<Event>>;

fn without(events: &Events, unwanted: &BTreeSet<usize>) -> Events {
    events.iter().filter(|event| !unwanted.contains(&event.line)).cloned().collect()
}

/// Traces as a careless program would leave them, and what the checker must say of each.
fn tampered(events: &Events, seen: &Seen, data: &Path) -> Vec<(String, Events, &'static str)> {
    let of_path = |path: &Path| {
        let node = seen.names[path];
        seen.syncs.iter().filter(move |(synced, ..)| *synced == node)
    };
    let lines_of = |(_, begun, ended): &(usize, usize, usize)| [*begun, *ended];
    let syncs_of = |path: &Path| of_path(path).flat_map(lines_of).collect::<BTreeSet<usize>>();
    let mut all = Vec::new();
    for path in &seen.made {
        let above = path.parent().expect("a parent");
        let unnamed = without(events, &syncs_of(above));
        all.push((format!("without syncs of {}", above.display()), unnamed, "success before the name of"));
        if path.is_file() || path.extension().is_some() {
            let unsynced = without(events, &syncs_of(path));
            all.push((format!("without syncs of {}", path.display()), unsynced, "success before what is in"));
        }
    }
    let (db, witness) = (data.join("catalog/db"), data.join("witness"));
    let syncs = syncs_of(&db);
    let by_sled = |event: &Arc<Event>| {
        let is_ours = syncs.contains(&event.line) && event.fd == seen.catalog_syncer;
        if is_ours { Arc::new(Event { fd: seen.catalog_writer, ..Event::clone(event) }) } else { Arc::clone(event) }
    };
    let by_sled = events.iter().map(by_sled).collect();
    all.push(("with syncs of the catalogue by sled's descriptor".to_owned(), by_sled, "by our own descriptor"));
    // The ones of the start stay.
    let (removal, allowed_at) = seen.removals[0];
    let answered_at = seen.answered_at;
    let later = |path: &Path| of_path(path).filter(|sync| sync.1 > answered_at).flat_map(lines_of).collect();
    let catalog = without(events, &later(&db));
    all.push(("without later syncs of the catalogue".to_owned(), catalog, "before the same checkpoint is synced"));
    let witness = without(events, &later(&witness));
    all.push(("without later syncs of the witness".to_owned(), witness, "before the cursor that passed it"));
    let mut early = events.clone();
    early.retain(|event| event.line != removal);
    let at = early.iter().position(|event| event.line == allowed_at).expect("a sync");
    early.insert(at, events.iter().find(|event| event.line == removal).cloned().expect("a removal"));
    all.push(("with a segment removed before the sync".to_owned(), early, "before the cursor that passed it"));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_is_synced_before_the_first_success_and_a_segment_goes_after_our_own_sync_of_the_checkpoint() {
    if !strace::is_permitted() {
        println!("sync files: SKIPPED, strace is not installed or may not trace here");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (lines, data) = trace(dir.path()).await;
    let events: Events = strace::events(&lines).expect("a trace").into_iter().map(Arc::new).collect();
    let seen = check(&events, &data).unwrap_or_else(|error| panic!("{error}"));
    assert!(seen.removed_segments >= 2, "{} segments went", seen.removed_segments);
    assert_ne!(seen.catalog_writer, seen.catalog_syncer);
    let tampered = tampered(&events, &seen, &data);
    for (what, events, expected) in &tampered {
        let verdict = check(events, &data).err();
        assert!(verdict.as_ref().is_some_and(|error| error.contains(expected)), "a trace {what}: {verdict:?}");
    }
    println!(
        "sync files: {} names and contents durable before the first success, {} segments gone after a synced checkpoint, \
         {} lines of trace; {} tampered traces fail",
        seen.made.len(),
        seen.removed_segments,
        lines.len(),
        tampered.len()
    );
}
