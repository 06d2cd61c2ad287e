//! The admin API over TCP with the real binary: who is let in, what is refused, and how it is said.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use support::setup::Setup;
use support::{Forebay, PATIENCE, client, eventually, free_ports};

const LIST: &str = "/api/v1/dlq";
const JSON: &str = "Content-Type: application/json";

/// An answer: status, head and body as text.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}{}", self.head, self.body))
    }

    /// A refusal with its status, reason and help; the reason.
    fn refusal(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}{}", self.head, self.body);
        let refusal = self.json();
        assert!(refusal["help"].as_str().is_some_and(|help| !help.is_empty()), "{refusal}");
        refusal["error"].as_str().expect("a reason").to_owned()
    }
}

/// One request as its bytes go over the wire; the connection is closed by whoever answers, or by the last header.
fn raw(port: u16, first: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.set_write_timeout(Some(PATIENCE)).expect("set");
    let mut head = format!("{first} HTTP/1.1\r\nConnection: close\r\n");
    for header in headers {
        head.push_str(&format!("{header}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).expect("sent");
    // What is refused early may not be read to its end.
    let _ = stream.write_all(body);
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {read:?} {text}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

struct Scene {
    setup: Setup,
    port: u16,
    host: String,
}

/// `admin`: what stands in the section beside a loopback endpoint.
fn scene(admin: &str) -> Scene {
    let [port] = free_ports();
    let setup = Setup::new("debug", "{}", &format!("{{admin: {{endpoint: '127.0.0.1:{port}'{admin}}}}}"));
    Scene { setup, port, host: format!("Host: localhost:{port}") }
}

impl Scene {
    async fn start(&self) -> Forebay {
        self.setup.start(&client()).await
    }

    fn get(&self, headers: &[&str]) -> Answer {
        raw(self.port, &format!("GET {LIST}"), headers, b"")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.setup.dir.path().join("log")).unwrap_or_default()
    }
}

fn command(words: &[&str], config: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(words).arg("--config").arg(config).env_remove("FOREBAY_DATA_DIR").output().expect("forebay runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_loopback_without_a_token_this_machine_is_answered_and_no_page_of_another_name() {
    let scene = scene("");
    let forebay = scene.start().await;
    let answer = scene.get(&[&scene.host]);
    assert_eq!((answer.status, answer.json()), (200, serde_json::json!({"letters": []})));
    assert_eq!(scene.get(&["Host: 127.0.0.1"]).status, 200);
    let own = format!("Origin: http://localhost:{}", scene.port);
    assert_eq!(scene.get(&[&scene.host, &own]).status, 200);
    for headers in [
        &["Host: evil.example"][..],
        &["Host: 10.0.0.1:13134"],
        &[&scene.host, "Origin: http://evil.example"],
        &[&scene.host, "Origin: null"],
        &[&scene.host, "Origin: http://localhost:3000"],
    ] {
        scene.get(headers).refusal(403);
    }
    // A page's form cannot purge either, were its origin not said.
    let purge = format!("POST {LIST}/purge");
    let form = raw(scene.port, &purge, &[&scene.host, "Content-Type: text/plain"], b"{\"all\": true}");
    assert!(form.refusal(415).contains("application/json"));
    let purged = raw(scene.port, &purge, &[&scene.host, JSON], b"{\"all\": true}");
    assert_eq!((purged.status, &purged.json()["letters"]), (200, &Value::from(0)));
    // It serves nothing else, and nothing else serves it.
    for path in ["/", "/metrics", "/readyz"] {
        raw(scene.port, &format!("GET {path}"), &[&scene.host], b"").refusal(404);
    }
    for port in [scene.setup.metrics_port, scene.setup.health_port, scene.setup.http_port] {
        assert_eq!(raw(port, &format!("GET {LIST}"), &[&scene.host], b"").status, 404);
    }
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_token_nobody_is_answered_without_it_and_it_is_printed_nowhere() {
    let scene = scene(", token: open-sesame");
    let forebay = scene.start().await;
    for headers in [&[][..], &["Authorization: Bearer open-sesam"], &["Authorization: Basic open-sesame"]] {
        let headers = [&[scene.host.as_str()][..], headers].concat();
        let answer = scene.get(&headers);
        answer.refusal(401);
        assert!(answer.head.contains("\r\nwww-authenticate: bearer"), "{}", answer.head);
        // What changes something is refused before its body is looked at.
        let purge = format!("POST {LIST}/purge");
        raw(scene.port, &purge, &[&headers[..], &[JSON]].concat(), b"{\"all\": true}").refusal(401);
        raw(scene.port, "GET /nowhere", &headers, b"").refusal(401);
    }
    // Whoever shows it may come by any name, but not from a page of another.
    let bearer = "Authorization: Bearer open-sesame";
    for host in [&scene.host, "Host: collector.example"] {
        assert_eq!(scene.get(&[host, bearer]).status, 200);
        scene.get(&[host, bearer, "Origin: http://evil.example"]).refusal(403);
    }
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    let config = scene.setup.config();
    let (validated, printed) = (command(&["validate"], &config), command(&["print-config"], &config));
    assert!(validated.status.success() && printed.status.success());
    let printed = [validated.stdout, validated.stderr, printed.stdout, printed.stderr].concat();
    let said = format!("{}{}", String::from_utf8_lossy(&printed), scene.log());
    assert!(said.contains("token: \"[REDACTED]\"") && !said.contains("sesame"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_a_file_is_renewed_while_the_process_runs_and_without_one_nobody_is_let_in() {
    let secrets = tempfile::tempdir().expect("temporary directory");
    let path = secrets.path().join("token");
    let scene = scene(&format!(", token_file: '{}'", path.display()));
    let forebay = scene.start().await;
    let status = |token: &str| scene.get(&[&scene.host, &format!("Authorization: Bearer {token}")]).status;
    assert_eq!((status("first"), status("")), (401, 401), "there is no file yet");
    assert_eq!(scene.log().matches("cannot be read").count(), 1, "said once: {}", scene.log());
    // As a secret is mounted: a link that changes.
    for (name, token) in [("a", "first"), ("b", "second")] {
        let (file, link) = (secrets.path().join(name), secrets.path().join("new"));
        std::fs::write(&file, format!("{token}\n")).expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        std::fs::rename(&link, &path).expect("renamed");
        assert_eq!(status(token), 200, "{token}");
    }
    assert_eq!(status("first"), 401, "it is over");
    std::fs::write(&path, "").expect("written");
    assert_eq!((status("second"), status("")), (401, 401), "empty");
    assert!(scene.log().contains("is empty; every request to the admin API over TCP is refused"), "{}", scene.log());
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[test]
fn an_endpoint_that_others_reach_needs_a_token_and_validate_says_so() {
    for endpoint in ["0.0.0.0:13134", ":13134", "[::]:13134", "10.0.0.1:13134", "forebay.example:13134"] {
        let setup = Setup::new("debug", "{}", &format!("{{admin: {{endpoint: '{endpoint}'}}}}"));
        for words in [&["validate"][..], &["run"]] {
            let output = command(words, &setup.config());
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{endpoint}: {text}");
            assert!(text.contains("there is no token") && text.contains("help: set token or token_file"), "{text}");
        }
        let setup = Setup::new("debug", "{}", &format!("{{admin: {{endpoint: '{endpoint}', token: hush}}}}"));
        let output = command(&["validate"], &setup.config());
        assert!(output.status.success(), "{endpoint}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_long_headers_and_strange_requests_are_refused_and_others_go_on() {
    let scene = scene("");
    let forebay = scene.start().await;
    let host = scene.host.as_str();
    let purge = format!("POST {LIST}/purge");
    let large = vec![b'0'; 10 << 20];
    assert!(raw(scene.port, &purge, &[host, JSON], &large).refusal(413).contains("10485760 bytes"));
    // Announced is enough: not one byte of it is sent.
    let put = format!("PUT {LIST}/12");
    let announced = raw(scene.port, &put, &[host, JSON, "Expect: 100-continue", "Content-Length: 99999999999"], b"");
    assert!(announced.refusal(413).contains("99999999999 bytes"));
    let long = format!("X-Long: {}", "x".repeat(64 << 10));
    assert_eq!(raw(scene.port, &format!("GET {LIST}"), &[host, &long], b"").status, 431);
    raw(scene.port, &format!("DELETE {LIST}"), &[host], b"").refusal(405);
    raw(scene.port, &format!("GET {LIST}?reason=spite"), &[host], b"").refusal(400);
    raw(scene.port, &format!("GET {LIST}?ids=nonsense"), &[host], b"").refusal(400);
    raw(scene.port, &format!("GET {LIST}?signal=profiles"), &[host], b"").refusal(400);
    raw(scene.port, &purge, &[host, JSON], b"{\"filter\": {\"ids\": [\"nonsense\"]}}").refusal(400);
    raw(scene.port, &purge, &[host, JSON], b"{").refusal(400);
    // Who says nothing takes one place; there are others, up to a bound, and each comes free.
    let silent: Vec<TcpStream> =
        (0..63).map(|_| TcpStream::connect(("127.0.0.1", scene.port)).expect("connected")).collect();
    assert_eq!(scene.get(&[host]).status, 200);
    let mut over: Vec<TcpStream> =
        (0..2).map(|_| TcpStream::connect(("127.0.0.1", scene.port)).expect("connected")).collect();
    let waiting = over.last_mut().expect("two");
    waiting.write_all(format!("GET {LIST} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n").as_bytes()).expect("sent");
    waiting.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    assert!(waiting.read(&mut [0; 1]).is_err(), "the 65th waits");
    drop(silent);
    waiting.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_commands_do_over_the_socket_the_api_does_over_tcp() {
    let scene = scene(", token: hush");
    let forebay = scene.start().await;
    let bearer = "Authorization: Bearer hush";
    let bad = client().post(format!("http://127.0.0.1:{}/v1/traces", scene.setup.http_port));
    let bad = bad.header("content-type", "application/json").body("{\"resourceSpans\": 3}");
    assert_eq!(bad.send().await.expect("answered").status(), 400);
    let mut listed = Value::Null;
    eventually("what was malformed is kept", async || {
        listed =
            raw(scene.port, &format!("GET {LIST}?reason=malformed&count=true"), &[&scene.host, bearer], b"").json();
        listed["matching"] == 1
    })
    .await;
    let id = listed["letters"][0]["id"].as_str().expect("an id").to_owned();
    let one = |query: &str| raw(scene.port, &format!("GET {LIST}/{id}{query}"), &[&scene.host, bearer], b"").json();
    assert_eq!(one("")["payload"], Value::Null, "no payload unless it is asked for");
    assert!(one("?payload=true")["payload"].to_string().contains("resourceSpans"));
    let body = format!("{{\"filter\": {{\"ids\": [\"{id}\"]}}}}");
    let purged = raw(scene.port, &format!("POST {LIST}/purge"), &[&scene.host, bearer, JSON], body.as_bytes());
    assert_eq!((purged.status, &purged.json()["letters"]), (200, &Value::from(1)));
    let document = raw(scene.port, "GET /api/v1/openapi.yaml", &[&scene.host, bearer], b"");
    assert!(document.status == 200 && document.body.contains("openapi: 3.1.0"));
    let retried = raw(scene.port, "POST /api/v1/queue/retry", &[&scene.host, bearer, JSON], b"{}");
    assert_eq!((retried.status, &retried.json()["ranges"]), (200, &Value::from(0)));
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}
