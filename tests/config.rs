//! The annotated examples, and the commands that read configurations, through the real binary.

use forebay::config::{self, RealWorld, Sources, World};
use forebay::settings::{Node, Value};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The real files, and a value for every variable: examples may ask for any.
struct ExampleWorld;

impl World for ExampleWorld {
    fn variable(&self, _name: &str) -> Result<Option<String>, String> {
        Ok(Some("https://example.org:4317".to_owned()))
    }
    fn file(&self, path: &Path) -> Result<String, String> {
        if path.starts_with("/run/secrets") { Ok("hush".to_owned()) } else { RealWorld.file(path) }
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn sources(name: &str) -> Sources {
    Sources { configs: vec![example(name).display().to_string()], sets: Vec::new() }
}

fn forebay(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(arguments).env_remove("FOREBAY_DATA_DIR").output().expect("forebay starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_example_is_a_valid_configuration() {
    let directory = std::fs::read_dir(example("")).expect("config/ is there");
    let mut count = 0;
    for entry in directory {
        let name = entry.expect("entry").file_name().into_string().expect("UTF-8");
        let plan = config::load_plan(&sources(&name), &ExampleWorld);
        let problems = plan.as_ref().err().into_iter().flatten().map(|p| p.to_string()).collect::<Vec<_>>();
        assert!(plan.is_ok(), "{name}:\n{}", problems.join("\n"));
        count += 1;
    }
    assert!(count >= 5, "only {count} examples");
}

/// Structure without positions, keys sorted: TOML keeps no order between scalars and tables. Null reads as an empty map.
fn shape(node: &Node) -> String {
    match &node.value {
        Value::Map(entries) => {
            let mut parts: Vec<String> =
                entries.iter().map(|entry| format!("{}: {}", entry.key, shape(&entry.node))).collect();
            parts.sort();
            format!("{{{}}}", parts.join(", "))
        }
        Value::List(items) => format!("[{}]", items.iter().map(shape).collect::<Vec<_>>().join(", ")),
        Value::Null => "{}".to_owned(),
        value => format!("{value:?}"),
    }
}

#[test]
fn the_toml_example_says_the_same_as_the_yaml_one() {
    let yaml = config::load(&sources("everything.yaml"), &ExampleWorld).expect("YAML loads");
    let toml = config::load(&sources("everything.toml"), &ExampleWorld).expect("TOML loads");
    assert_eq!(shape(&toml), shape(&yaml));
}

/// Receivers' and exporters' own keys stand in their rooms' documentation; all other sections are complete here.
#[test]
fn everything_yaml_shows_every_key_of_the_sections_that_configuration_owns() {
    let tree = config::load(&sources("everything.yaml"), &ExampleWorld).expect("loads");
    let owned = |path: &&String| {
        let component = path.starts_with("receivers.") || path.starts_with("exporters.");
        !component || path.contains(".retry_on_failure.") || path.contains(".sending_queue.")
    };
    let known = config::known_keys(&tree);
    // Only what the file opens is read; `later` keys and those of components without a table do not count.
    let missing: Vec<&String> = known.iter().filter(owned).filter(|path| !shows(&tree, path)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    assert!(known.len() > 60, "the readers noted only {} keys", known.len());
}

/// Whether the tree has the dotted path; a list is looked through item by item.
fn shows(node: &Node, path: &str) -> bool {
    if let Value::List(items) = &node.value {
        return items.iter().any(|item| shows(item, path));
    }
    let Value::Map(entries) = &node.value else { return false };
    entries.iter().any(|entry| match path.strip_prefix(entry.key.as_str()) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('.').is_some_and(|rest| shows(&entry.node, rest)),
        None => false,
    })
}

#[test]
fn a_bad_configuration_exits_78_with_every_problem_and_no_backtrace() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("bad.yaml");
    std::fs::write(&path, "receivers:\n  otpl:\nexporters:\n  debug:\n    verbosity: loud\nservise:\n")
        .expect("written");
    let path = path.to_str().expect("UTF-8");
    for arguments in [["--config", path].as_slice(), &["run", "--config", path], &["validate", "--config", path]] {
        let output = forebay(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}: {text}");
        assert!(text.contains(&format!("error: {path}:2:3: unknown receiver type `otpl`")), "{text}");
        assert!(text.contains(&format!("error: {path}:5:16: exporters.debug.verbosity")), "{text}");
        assert!(text.contains(&format!("error: {path}:6:1: unknown key `servise`")), "{text}");
        assert!(text.contains("did you mean `service`?"), "{text}");
        assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
    }
    let missing = forebay(&["--config", "/nowhere/forebay.yaml"]);
    assert_eq!(missing.status.code(), Some(78), "{}", stderr(&missing));
    assert!(stderr(&missing).starts_with("error: /nowhere/forebay.yaml: cannot read the configuration file"));
}

#[test]
fn a_valid_configuration_exits_0_and_is_printed_without_its_secrets() {
    let output = forebay(&["validate"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let config = "yaml:exporters: {otlp_http: {endpoint: 'http://x:1', headers: {authorization: hush}}}";
    let output = forebay(&["print-config", "--config", config, "--set", "exporters.otlp_http.timeout=3s"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(text.contains("authorization: \"[REDACTED]\"") && text.contains("timeout: \"3s\""), "{text}");
    assert!(!text.contains("hush"), "{text}");
}

#[test]
fn version_and_components_answer_and_a_bad_command_line_exits_2() {
    let version = format!("forebay {}\n", env!("CARGO_PKG_VERSION"));
    for argument in ["version", "--version"] {
        assert_eq!(String::from_utf8_lossy(&forebay(&[argument]).stdout), version);
    }
    let components = forebay(&["components"]);
    assert!(String::from_utf8_lossy(&components.stdout).contains("otlp_grpc"));
    assert_eq!(forebay(&["--no-such-option"]).status.code(), Some(2));
    let gates = forebay(&["validate", "--feature-gates=a.b"]);
    assert_eq!(gates.status.code(), Some(0));
    assert!(stderr(&gates).starts_with("warning: --feature-gates has no effect"));
}

#[test]
fn healthcheck_is_success_only_on_200() {
    for (answer, code) in [("HTTP/1.1 200 OK\r\n\r\n", 0), ("HTTP/1.1 503 Service Unavailable\r\n\r\n", 1), ("", 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let endpoint = format!("http://{}/livez", listener.local_addr().expect("address"));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut request = [0_u8; 1024];
            let count = stream.read(&mut request).expect("read");
            stream.write_all(answer.as_bytes()).expect("written");
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let output = forebay(&["healthcheck", "--endpoint", &endpoint]);
        assert_eq!(output.status.code(), Some(code), "{answer:?}: {}", stderr(&output));
        assert!(server.join().expect("server").starts_with("GET /livez HTTP/1.1\r\n"));
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let output =
        command.arg("components").stdout(writer).stderr(std::process::Stdio::piped()).output().expect("starts");
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}
