//! What strace saw: no answer of success leaves, and nothing is sent on, before the sync of its bytes has returned.
//!
//! Says SKIPPED where strace is missing or may not trace. The checker must fail on traces that were tampered with.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay::exporters::{self, Batch, Exporter, Outcome, otlp_grpc};
use forebay::otlp::{Encoding, Signal};
use parking_lot::Mutex;
use support::strace::{self, Event, Moment, Tokens, token, tokens};
use support::{Forebay, Sink, client, eventually, free_ports, request};

const CLIENTS: usize = 4;
const REQUESTS_PER_CLIENT: usize = 25;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const H2_DATA: u8 = 0;
const H2_HEADERS: u8 = 1;

/// A connection that a client opened: what it asked and has had no answer to.
#[derive(Default)]
struct Connection {
    received: Vec<u8>,
    sent: Vec<u8>,
    /// By HTTP/2 stream.
    asked: HashMap<u32, Tokens>,
}

impl Connection {
    fn is_http2(&self) -> bool {
        self.received.starts_with(H2_PREFACE)
    }

    /// The tokens whose answer these bytes begin.
    fn answers(&mut self, bytes: &[u8]) -> Tokens {
        if !self.is_http2() {
            if !bytes.starts_with(b"HTTP/1.1 200") {
                return Tokens::new();
            }
            return tokens(&std::mem::take(&mut self.received));
        }
        let mut position = H2_PREFACE.len();
        while let Some((kind, stream, payload)) = frame(&self.received, &mut position) {
            if kind == H2_DATA {
                self.asked.entry(stream).or_default().extend(tokens(payload));
            }
        }
        self.received.drain(H2_PREFACE.len()..position);
        self.sent.extend_from_slice(bytes);
        let (mut position, mut answered) = (0, Tokens::new());
        while let Some((kind, stream, _)) = frame(&self.sent, &mut position) {
            if kind == H2_HEADERS {
                answered.extend(self.asked.remove(&stream).unwrap_or_default());
            }
        }
        self.sent.drain(..position);
        answered
    }
}

/// The whole HTTP/2 frame at `position`, which moves behind it: kind, stream, payload.
fn frame<'a>(bytes: &'a [u8], position: &mut usize) -> Option<(u8, u32, &'a [u8])> {
    let head = bytes.get(*position..*position + 9)?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7FFF_FFFF;
    let payload = bytes.get(*position + 9..*position + 9 + len)?;
    *position += 9 + len;
    Some((head[3], stream, payload))
}

#[derive(Debug, Default)]
struct Seen {
    /// The lines of the answer, and of the sync's return before it.
    answered: BTreeMap<String, (usize, usize)>,
    sent_on: Tokens,
}

/// Follows each token: written into a file, synced there, only then answered or sent on. Err names the first that was not.
fn check(lines: &[String]) -> Result<Seen, String> {
    let mut connections: HashMap<i32, Connection> = HashMap::new();
    let mut written: HashMap<i32, Tokens> = HashMap::new();
    let mut syncing: HashMap<u32, Tokens> = HashMap::new();
    let mut durable: BTreeMap<String, usize> = BTreeMap::new();
    let mut seen = Seen::default();
    for event in strace::events(lines)? {
        let bytes = event.bytes();
        let Event { thread, call, moment, fd, line, .. } = event;
        let durable_since = |what: &str, token: &String| {
            let since = durable.get(token).copied();
            since.ok_or_else(|| format!("line {line}: {token} is {what} before its sync has returned"))
        };
        match (call.as_str(), moment) {
            // The number may be given to another file as soon as the call has begun.
            ("close", Moment::Enters) => {
                connections.remove(&fd);
                written.remove(&fd);
            }
            ("read" | "readv" | "recvfrom" | "recvmsg", Moment::Leaves(result)) if result > 0 => {
                let is_request = bytes.starts_with(b"POST ") || bytes.starts_with(&H2_PREFACE[..4]);
                if is_request || connections.contains_key(&fd) {
                    connections.entry(fd).or_default().received.extend_from_slice(&bytes);
                }
            }
            ("write" | "writev" | "sendto" | "sendmsg", Moment::Enters) => match connections.get_mut(&fd) {
                Some(connection) => {
                    for token in connection.answers(&bytes) {
                        let since = durable_since("answered", &token)?;
                        seen.answered.insert(token, (line, since));
                    }
                }
                None => {
                    for token in tokens(&bytes) {
                        durable_since("sent on", &token)?;
                        seen.sent_on.insert(token);
                    }
                }
            },
            ("pwrite64" | "pwritev" | "pwritev2", Moment::Leaves(result)) if result == bytes.len() as i64 => {
                written.entry(fd).or_default().extend(tokens(&bytes));
            }
            ("fdatasync" | "fsync", Moment::Enters) => {
                syncing.insert(thread, written.get(&fd).cloned().unwrap_or_default());
            }
            ("fdatasync" | "fsync", Moment::Leaves(result)) => {
                let synced = syncing.remove(&thread).unwrap_or_default();
                if result == 0 {
                    for token in synced {
                        durable.entry(token).or_insert(line);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(seen)
}

fn payload(n: usize) -> Vec<u8> {
    request(&[token(n)])
}

async fn send_http(client: reqwest::Client, url: String, first: usize, acknowledged: Arc<Mutex<Tokens>>) {
    for n in first..first + REQUESTS_PER_CLIENT {
        let sending = client.post(&url).header("content-type", "application/x-protobuf").body(payload(n)).send();
        assert!(sending.await.expect("answered").status().is_success());
        acknowledged.lock().insert(token(n));
    }
}

async fn send_grpc(endpoint: String, first: usize, acknowledged: Arc<Mutex<Tokens>>) {
    let settings = otlp_grpc::Settings {
        endpoint: Some(endpoint),
        compression: exporters::remote::Compression::Always(Encoding::Identity),
        timeout: Duration::from_secs(10),
        ..otlp_grpc::Settings::default()
    };
    let exporter = otlp_grpc::build(&settings).expect("built");
    for n in first..first + REQUESTS_PER_CLIENT {
        let payload = Bytes::from(payload(n));
        let batch = Batch { signal: Signal::Traces, items: 1, payload: payload.into(), metadata: Vec::new() };
        let outcome = exporter.export(batch).await;
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
        acknowledged.lock().insert(token(n));
    }
}

/// A run under strace: its lines, and what the clients were told is durable.
async fn trace() -> (Vec<String>, Tokens) {
    let (sink, address) = Sink::start().await;
    let dir = tempfile::tempdir().expect("temporary directory");
    let [http_port, grpc_port, health_port] = free_ports();
    let config = dir.path().join("forebay.yaml");
    let text = format!(
        "receivers:\n  otlp:\n    protocols: {{http: {{endpoint: 127.0.0.1:{http_port}}}, grpc: {{endpoint: 127.0.0.1:{grpc_port}}}}}\n\
         exporters: {{otlp_http: {{endpoint: \"http://{address}\", compression: none}}}}\n\
         extensions: {{health_check: {{endpoint: 127.0.0.1:{health_port}}}}}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    );
    std::fs::write(&config, text).expect("configuration written");
    let trace = dir.path().join("trace");
    let wrapper = strace::wrapper(&trace);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let log = dir.path().join("forebay.log");
    let mut forebay = Forebay::start_under(&wrapper, &config, &dir.path().join("data"), health_port, &log);
    let pid = forebay.pid();
    forebay.ready(&client()).await;
    let acknowledged = Arc::new(Mutex::new(Tokens::new()));
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let (first, url) = (n * REQUESTS_PER_CLIENT, format!("http://127.0.0.1:{http_port}/v1/traces"));
        clients.push(tokio::spawn(send_http(client(), url, first, Arc::clone(&acknowledged))));
        let (first, endpoint) = ((CLIENTS + n) * REQUESTS_PER_CLIENT, format!("http://127.0.0.1:{grpc_port}"));
        clients.push(tokio::spawn(send_grpc(endpoint, first, Arc::clone(&acknowledged))));
    }
    for task in clients {
        task.await.expect("no panic");
    }
    let acknowledged = std::mem::take(&mut *acknowledged.lock());
    eventually("all is sent on", async || sink.taken.lock().len() == acknowledged.len()).await;
    assert_eq!(forebay.stop().await, 0, "{}", std::fs::read_to_string(&log).unwrap_or_default());
    (strace::finished(&trace, pid).await, acknowledged)
}

fn is_sync(line: &str) -> bool {
    line.contains(" fdatasync(") || line.contains("<... fdatasync resumed>")
}

/// Lines that do to the order what a careless program would do.
fn tampered(lines: &[String], seen: &Seen) -> Vec<(&'static str, Vec<String>)> {
    let changed = |change: fn(&str) -> String| lines.iter().map(|line| change(line)).collect::<Vec<_>>();
    // A call that stands whole in its line can be moved.
    let movable = seen.answered.values().find(|(answer, _)| lines[answer - 1].contains(" = "));
    let (answer, sync) = *movable.expect("an answer in one line");
    let mut early = lines.to_vec();
    let moved = early.remove(answer - 1);
    early.insert(sync - 1, moved);
    vec![
        ("without syncs", lines.iter().filter(|line| !is_sync(line)).cloned().collect()),
        (
            "with failed syncs",
            changed(
                |line| {
                    if is_sync(line) { line.replace("= 0", "= -1 EIO (Input/output error)") } else { line.to_owned() }
                },
            ),
        ),
        ("with syncs of another file", changed(|line| line.replace(" fdatasync(", " fdatasync(9999"))),
        ("with one answer before its sync returned", early),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_success_leaves_and_nothing_is_sent_on_before_the_sync_of_its_bytes_has_returned() {
    if !strace::is_permitted() {
        println!("sync order: SKIPPED, strace is not installed or may not trace here");
        return;
    }
    let (lines, acknowledged) = trace().await;
    assert_eq!(acknowledged.len(), 2 * CLIENTS * REQUESTS_PER_CLIENT);
    let seen = check(&lines).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(seen.answered.keys().cloned().collect::<Tokens>(), acknowledged, "every answer was seen leaving");
    assert!(!seen.sent_on.is_empty(), "what was sent on was seen");
    for (what, lines) in tampered(&lines, &seen) {
        let verdict = check(&lines);
        assert!(
            verdict.as_ref().is_err_and(|error| error.contains("before its sync has returned")),
            "a trace {what} passes: {:?}",
            verdict.err()
        );
    }
    println!(
        "sync order: {} answers and {} tokens sent on in {} lines of trace, each after its sync; 4 tampered traces fail",
        seen.answered.len(),
        seen.sent_on.len(),
        lines.len()
    );
}
