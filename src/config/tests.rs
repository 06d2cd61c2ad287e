mod admin;
mod retry;
mod status_policy;

use super::*;
use crate::settings::{Node, OnFull, Severity, Value};
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// An environment and a file system of the test's own.
#[derive(Default)]
struct FakeWorld {
    variables: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static str>,
}

impl World for FakeWorld {
    fn variable(&self, name: &str) -> Result<Option<String>, String> {
        Ok(self.variables.get(name).map(|value| value.to_string()))
    }
    fn file(&self, path: &Path) -> Result<String, String> {
        let found = self.files.get(path.to_str().unwrap_or_default());
        found.map(|text| text.to_string()).ok_or_else(|| "No such file or directory".to_owned())
    }
}

const BASE: &str = "\
receivers:
  otlp:
    protocols:
      grpc:
exporters:
  debug:
service:
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [debug]
";

fn files(text: &'static str) -> FakeWorld {
    FakeWorld { files: HashMap::from([("c.yaml", text), ("base.yaml", BASE)]), ..FakeWorld::default() }
}

fn sources(configs: &[&str], sets: &[&str]) -> Sources {
    let owned = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
    Sources { configs: owned(configs), sets: owned(sets) }
}

/// The plan of one file.
fn plan_of(text: &'static str) -> Result<Plan, Vec<Problem>> {
    load_plan(&sources(&["c.yaml"], &[]), &files(text))
}

/// The errors of one file over [`BASE`], as a user sees them.
fn errors_over_base(text: &'static str) -> Vec<String> {
    let problems = load_plan(&sources(&["base.yaml", "c.yaml"], &[]), &files(text)).expect_err("it is wrong");
    shown(&problems)
}

fn shown(problems: &[Problem]) -> Vec<String> {
    problems.iter().filter(|p| p.severity == Severity::Error).map(|p| p.to_string()).collect()
}

fn value(node: &Node, path: &str) -> Value {
    let mut node = node;
    for key in path.split('.') {
        node = &node.get(key).unwrap_or_else(|| panic!("{path} is there")).node;
    }
    node.value.clone()
}

#[test]
fn the_embedded_default_is_a_valid_plan_for_all_signals() {
    let plan = load_plan(&Sources::default(), &FakeWorld::default()).expect("valid");
    assert!(plan.is_embedded_default);
    assert_eq!(plan.pipelines.len(), 3);
    assert_eq!(plan.warnings, Vec::new());
    assert_eq!(plan.telemetry.metrics_endpoint.as_deref(), Some("localhost:8888"));
    assert_eq!(plan.health.endpoint, "localhost:13133");
}

#[test]
fn all_errors_come_at_once_with_line_and_column() {
    let errors = errors_over_base(
        "\
exporters:
  debug:
    retry_on_failure:
      initial_intervall: 5s
      multiplier: fast
    sending_queue:
      num_consumers: 0
      batch:
        flush_timeout: 200
forebay:
  queue:
    max_size: plenty
",
    );
    assert_eq!(
        errors,
        [
            "error: c.yaml:5:19: exporters.debug.retry_on_failure.multiplier: expected a number from 1 to 100, found the text \"fast\"",
            "error: c.yaml:4:7: unknown key `initial_intervall` in exporters.debug.retry_on_failure\n  help: did you mean \
             `initial_interval`? Known keys here: enabled, initial_interval, max_elapsed_time, max_interval, multiplier, randomization_factor",
            "error: c.yaml:9:24: exporters.debug.sending_queue.batch.flush_timeout: expected a duration with a unit, such as 200ms, 5s or 1h30m, found the integer 200",
            "error: c.yaml:7:22: exporters.debug.sending_queue.num_consumers: expected an integer from 1 to 1000, found the integer 0",
            "error: c.yaml:12:15: forebay.queue.max_size: expected a size in bytes, such as 1048576 or 64MiB, found the text \"plenty\"",
        ]
    );
}

#[test]
fn unknown_and_unsupported_components_are_told_apart() {
    let errors = errors_over_base("exporters:\n  otlp_htp:\n    endpoint: x\n  kafka:\n  a/b/c:\n");
    assert_eq!(
        errors,
        [
            "error: c.yaml:2:3: unknown exporter type `otlp_htp`\n  help: did you mean `otlp_http`? exporter types here: otlp_grpc, otlp_http, file, debug",
            "error: c.yaml:4:3: known to the OpenTelemetry Collector, not supported here: the exporter type `kafka`\n  help: exporter types here: otlp_grpc, otlp_http, file, debug",
            "error: c.yaml:5:3: the exporter id \"a/b/c\" has a name that is not of letters, digits, `_`, `-` and `.`, or starts with `.`\n  help: write type or type/name, such as otlp_http/eu",
        ]
    );
}

#[test]
fn references_must_exist_and_pipelines_must_have_both_ends() {
    let errors = errors_over_base(
        "service:\n  pipelines:\n    logs:\n      receivers: [otpl]\n      processors: [batch]\n    profiles:\n      receivers: [otlp]\n      exporters: [debug]\n",
    );
    assert_eq!(
        errors,
        [
            "error: c.yaml:4:19: the receiver `otpl` is not defined\n  help: define it under `receivers:`; defined there: otlp",
            "error: c.yaml:3:5: the pipeline `logs` has no exporter\n  help: name at least one under `exporters:`",
            "error: c.yaml:5:20: the processor `batch` is not defined\n  help: define it under `processors:`",
            "error: c.yaml:6:5: the pipeline id \"profiles\" names no signal that is known here\n  help: write traces, metrics or logs, with /name if there are several",
        ]
    );
}

#[test]
fn keys_of_the_collector_alone_are_named_as_such() {
    let errors = errors_over_base("connectors:\n  forward:\nservice:\n  telemetry:\n    traces:\n");
    assert_eq!(
        errors,
        [
            "error: c.yaml:2:3: connectors: known to the OpenTelemetry Collector, not supported here: connectors",
            "error: c.yaml:5:5: service.telemetry.traces: known to the OpenTelemetry Collector, not supported here: traces\n  help: remove the key",
        ]
    );
}

#[test]
fn dedup_is_for_spans_once_a_pipeline_and_for_known_signals() {
    let errors = errors_over_base(
        "\
processors:
  dedup: {match: name, window: 0s}
  dedup/b:
service:
  pipelines:
    logs: {receivers: [otlp], processors: [dedup], exporters: [debug]}
    traces: {receivers: [otlp], processors: [dedup/b, dedup], exporters: [debug]}
forebay: {dedup: {requests: [traces, spans], max_memory_mib: 0}}
",
    );
    let words = [
        "processors.dedup.match: expected one of exact, id",
        "processors.dedup.window: must be from 1s to 168h",
        "the pipeline `logs` has the processor `dedup`: only spans have ids",
        "the pipeline `traces` has two dedup processors",
        "forebay.dedup.requests: there is no signal `spans`",
        "forebay.dedup.max_memory_mib: expected an integer from 1 to 65536",
    ];
    for word in words {
        assert!(errors.iter().any(|error| error.contains(word)), "{word} in {errors:#?}");
    }
    assert_eq!(errors.len(), words.len(), "{errors:#?}");
}

#[test]
fn queue_and_cursor_names_that_collide_or_cannot_be_stored_are_refused() {
    let errors = errors_over_base(
        "\
service:
  pipelines:
    logs: {receivers: [otlp], exporters: [debug, debug/b]}
exporters:
  debug/b:
forebay:
  pipelines:
    logs: {queue_id: Traces}
    traces/no: {queue_id: x}
  exporters:
    debug/b: {cursor_id: ../x}
",
    );
    assert_eq!(
        errors,
        [
            "error: c.yaml:8:22: pipeline `logs` and pipeline `traces` have the same queue_id \"Traces\"\n  help: give one of them another queue_id",
            "error: c.yaml:9:5: forebay.pipelines: there is no `traces/no`\n  help: use an id that is defined, or remove the entry",
            "error: c.yaml:11:26: the cursor_id \"../x\" of exporter `debug/b` cannot be stored\n  help: use at most 128 letters, digits, `_`, `-` and `.`, not starting with `.`",
        ]
    );
}

#[test]
fn old_and_new_names_of_a_kind_keep_the_same_cursor() {
    let world = files(
        "exporters:\n  otlphttp/eu: {endpoint: 'http://x:1'}\nservice:\n  pipelines:\n    traces: {exporters: [otlphttp/eu]}\nforebay:\n  exporters:\n    otlp_http/eu: {start_at: beginning}\n",
    );
    let plan = load_plan(&sources(&["base.yaml", "c.yaml"], &[]), &world).expect("valid");
    assert_eq!(plan.exporters[0].cursor_id, "otlp_http-eu");
    assert_eq!(plan.exporters[0].start_at, StartAt::Beginning);
    let errors =
        errors_over_base("exporters:\n  otlp: {endpoint: 'http://x:1'}\n  otlp_grpc: {endpoint: 'http://x:1'}\n");
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0]
            .starts_with("error: c.yaml:3:3: the exporters `otlp_grpc` and `otlp` are one under an old and a new name")
    );
}

#[test]
fn missing_and_empty_sources_are_bad_configurations() {
    let problems =
        load_plan(&sources(&["none.yaml", "c.yaml", "env:NOPE"], &[]), &files("# nothing\n")).expect_err("bad");
    assert_eq!(
        shown(&problems),
        [
            "error: none.yaml: cannot read the configuration file: No such file or directory\n  help: check the path after --config; without any --config an embedded default runs",
            "error: c.yaml: the configuration is empty\n  help: write receivers, exporters and service.pipelines, or leave --config out for the embedded default",
            "error: env:NOPE: the environment variable NOPE is not set\n  help: set it to a YAML document",
        ]
    );
}

#[test]
fn syntax_errors_say_where() {
    let yaml = plan_of("a:\n  b: [1, 2\nc: 3\n").expect_err("bad");
    assert!(shown(&yaml)[0].starts_with("error: c.yaml:"), "{}", yaml[0]);
    let twice = plan_of("receivers:\nexporters:\nreceivers:\n").expect_err("bad");
    assert_eq!(
        shown(&twice),
        [
            "error: c.yaml:3:1: the key `receivers` is given twice in one map\n  help: the first stands at c.yaml:1:1; remove one of them"
        ]
    );
    let toml = toml::parse_named("c.toml", "a = 1\nb = \n").expect_err("bad");
    assert!(shown(&toml)[0].starts_with("error: c.toml:2:"), "{}", toml[0]);
}

#[test]
fn alias_bombs_deep_nesting_and_second_documents_are_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", ")));
    }
    assert!(yaml::parse(&bomb).expect_err("bomb").message.contains("more than 50000 values"));
    let mut tower = "a0: &a0 [x]\n".to_owned();
    for level in 1..200 {
        tower.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(yaml::parse(&tower).expect_err("tower").message.contains("nested deeper than 64 levels"));
    let deep = format!("{}x{}", "[".repeat(20_000), "]".repeat(20_000));
    assert!(yaml::parse(&deep).is_err());
    assert!(toml::parse_named("t", &format!("a = {deep}")).is_err());
    assert!(yaml::parse("a: &x [*x]\n").is_err());
    assert!(yaml::parse("a: 1\n---\nb: 2\n").expect_err("two").message.contains("second YAML document"));
    let large = "#".repeat(yaml::SOURCE_BYTES_MAX + 1);
    assert!(yaml::parse(&large).expect_err("large").message.contains("4194305 bytes"));
}

#[test]
fn substitutions_are_typed_and_bounded_to_values() {
    let world = FakeWorld {
        variables: HashMap::from([("N", "12"), ("T", "tok en"), ("L", "[a, b]"), ("EMPTY", "")]),
        files: HashMap::from([
            (
                "c.yaml",
                "n: ${env:N}\nq: \"${env:N}\"\nm: x-${N}-y\nd: ${env:NO:-7s}\nf: ${file:/s}\ndollar: $$${T}\nl: ${L}\ne: ${EMPTY}\nlone: a$b\n",
            ),
            ("/s", "secret\n"),
        ]),
    };
    let tree = load(&sources(&["c.yaml"], &[]), &world).expect("loads");
    let text = |text: &str| Value::Text(text.to_owned());
    assert_eq!(value(&tree, "n"), Value::Int(12));
    assert_eq!(value(&tree, "q"), text("12"));
    assert_eq!(value(&tree, "m"), text("x-12-y"));
    assert_eq!(value(&tree, "d"), text("7s"));
    assert_eq!(value(&tree, "f"), text("secret"));
    assert_eq!(value(&tree, "dollar"), text("$tok en"));
    assert_eq!(value(&tree, "e"), Value::Null);
    assert_eq!(value(&tree, "lone"), text("a$b"));
    assert!(matches!(value(&tree, "l"), Value::List(items) if items.len() == 2));
}

#[test]
fn references_to_nothing_are_errors_that_name_it() {
    let problems = plan_of("a: ${env:NOPE}\nb: ${file:/none}\nc: ${bad name}\nd: ${open\n").expect_err("bad");
    assert_eq!(
        shown(&problems),
        [
            "error: c.yaml:1:4: the environment variable NOPE is not set\n  help: set NOPE, or give a default: ${env:NOPE:-default}",
            "error: c.yaml:2:4: cannot read the file /none of ${file:/none}: No such file or directory\n  help: create the file or correct the path",
            "error: c.yaml:3:4: `${bad name}` is no reference that is known here\n  help: write ${env:NAME}, ${env:NAME:-default} or ${file:/path}; $$ is a dollar sign",
            "error: c.yaml:4:4: a `${` without its `}`\n  help: write $$ for a dollar sign",
        ]
    );
}

#[test]
fn later_sources_merge_maps_and_replace_lists_and_overrides_come_last() {
    let configs = ["yaml:{a: {b: 1, c: [1, 2]}, d: {e: 1}}", "yaml:{a: {c: [3]}, d: }"];
    let tree =
        load(&sources(&configs, &["a.b=5_000", "x::y.z=text: with: colons"]), &FakeWorld::default()).expect("loads");
    assert_eq!(value(&tree, "a.b"), Value::Int(5000));
    assert!(matches!(value(&tree, "a.c"), Value::List(items) if items.len() == 1));
    assert_eq!(value(&tree, "d.e"), Value::Int(1));
    let problems = load(&sources(&["yaml:a: 1"], &["novalue", "a..b=1"]), &FakeWorld::default()).expect_err("bad");
    assert_eq!(problems.len(), 2);
    assert!(problems[0].to_string().starts_with("error: --set novalue: no `=` in the override"));
}

#[test]
fn batch_and_memory_limiter_are_honoured_in_spirit_with_a_warning() {
    let world = files(
        "processors:\n  batch: {send_batch_size: 10, timeout: 1s}\n  memory_limiter: {limit_mib: 100, check_interval: 1s}\nservice:\n  pipelines:\n    traces: {processors: [memory_limiter, batch]}\n",
    );
    let plan = load_plan(&sources(&["base.yaml", "c.yaml"], &[]), &world).expect("valid");
    assert_eq!(plan.memory_limit_bytes, Some(100 << 20));
    assert_eq!(plan.exporters[0].sending_queue.batch.min_size, 10);
    assert_eq!(plan.warnings.len(), 2);
}

#[test]
fn what_nothing_uses_is_warned_of() {
    let world = files("exporters:\n  debug/unused:\nextensions:\n  file_storage: {directory: /data}\n");
    let plan = load_plan(&sources(&["base.yaml", "c.yaml"], &[]), &world).expect("valid");
    let warnings: Vec<String> = plan.warnings.iter().map(|warning| warning.to_string()).collect();
    assert_eq!(
        warnings,
        [
            "warning: c.yaml:2:3: the exporter `debug/unused` is used by nothing",
            "warning: c.yaml:4:3: the extension `file_storage` is used by nothing",
        ]
    );
    assert_eq!(plan.data_dir, None);
}

#[test]
fn the_data_directory_comes_from_the_first_place_that_applies() {
    use data_dir::{DataDirError, resolve};
    let world = |pairs: &[(&'static str, &'static str)]| FakeWorld {
        variables: pairs.iter().copied().collect(),
        ..FakeWorld::default()
    };
    let setting = DataDirSetting { path: "/set".into(), origin: crate::settings::Origin::whole("c.yaml") };
    let all = [
        ("FOREBAY_DATA_DIR", "/env"),
        ("STATE_DIRECTORY", "/state:/b"),
        ("XDG_STATE_HOME", "/xdg"),
        ("HOME", "/home/u"),
    ];
    let at = |flag: Option<&str>, setting: Option<&DataDirSetting>, from: usize, writable: bool| {
        resolve(flag.map(Path::new), setting, &world(&all[from..]), |_| writable)
    };
    let path = |text: &str| Ok(PathBuf::from(text));
    assert_eq!(at(Some("/flag"), Some(&setting), 0, true), path("/flag"));
    assert_eq!(at(None, Some(&setting), 0, true), path("/env"));
    assert_eq!(at(None, Some(&setting), 1, true), path("/set"));
    assert_eq!(at(None, None, 1, true), path("/state"));
    assert_eq!(at(None, None, 2, true), path("/var/lib/forebay"));
    assert_eq!(at(None, None, 2, false), path("/xdg/forebay"));
    assert_eq!(at(None, None, 3, false), path("/home/u/.local/state/forebay"));
    assert_eq!(at(None, None, 4, false), Err(DataDirError::NoPlace));
    let relative = DataDirSetting { path: "data".into(), ..setting };
    assert!(matches!(at(None, Some(&relative), 1, true), Err(DataDirError::Relative { .. })));
}

#[test]
fn printing_redacts_secrets_and_reads_back() {
    let world = FakeWorld {
        variables: HashMap::from([("T", "hush")]),
        files: HashMap::from([(
            "c.yaml",
            "e:\n  headers: {x-key: hush}\n  token: hush\n  u: https://me:hush@host/p\n  s: ${env:T}\n  key_pem: |\n    hush\n  list: [1, {a: b}, [], two words]\n  price: $$5\n  n:\n",
        )]),
    };
    let tree = load(&sources(&["c.yaml"], &[]), &world).expect("loads");
    let printed = print::to_yaml(&tree);
    assert!(!printed.contains("hush"), "{printed}");
    assert!(!format!("{tree:?}").contains("s\", node: \"hush"));
    let again = load(&sources(&[&format!("yaml:{printed}")], &[]), &world).expect("reads back");
    assert_eq!(print::to_yaml(&again), printed);
    assert_eq!(value(&again, "e.price"), Value::Text("$5".to_owned()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*|[\\[\\]{}:,&*!|>'\"%@`#?\\- \\n\\ta-c0-9.$=<_]{0,200}") {
        let world = FakeWorld::default();
        let _ = yaml::parse(&text);
        let _ = toml::parse_named("t", &text);
        let _ = load_plan(&sources(&[&format!("yaml:{text}")], &[&text]), &world);
        let _ = crate::settings::parse_duration(&text);
        let _ = crate::settings::parse_byte_size(&text);
        let escaped = format!("yaml:a: ${{{text}}}\nservice: {{}}\n");
        let _ = load_plan(&sources(&[&escaped], &[]), &world);
    }

    #[test]
    fn printed_text_reads_back(text in "\\PC*|[\\x00-\\x7f]{0,50}") {
        let node = Node::new(crate::settings::Origin::whole("t"), Value::Text(text.clone()));
        let entry = crate::settings::Entry { key: "k".into(), key_origin: node.origin.clone(), node: node.clone() };
        let printed = print::to_yaml(&Node::new(node.origin.clone(), Value::Map(vec![entry])));
        prop_assume!(!text.contains("://"));
        let read = yaml::parse(&printed).expect("reads");
        prop_assert_eq!(value(&read, "k"), Value::Text(text.replace('$', "$$")));
    }
}

#[test]
fn on_full_is_read_by_exporter_and_several_that_block_one_queue_are_warned_of() {
    let world = files(
        "\
exporters:
  debug/b:
  debug/c:
service:
  pipelines:
    traces: {exporters: [debug, debug/b, debug/c]}
forebay:
  queue: {on_full: drop}
  exporters:
    debug/b: {on_full: block}
    debug/c: {on_full: block}
",
    );
    let plan = load_plan(&sources(&["base.yaml", "c.yaml"], &[]), &world).expect("valid");
    let by_id = |id: &str| plan.exporters.iter().find(|exporter| exporter.id == id).expect("there").on_full;
    assert_eq!([by_id("debug"), by_id("debug/b")], [OnFull::Drop, OnFull::Block]);
    let blocking: Vec<_> =
        plan.warnings.iter().map(ToString::to_string).filter(|line| line.contains("share one queue")).collect();
    assert_eq!(blocking.len(), 1, "{blocking:?}");
    assert!(blocking[0].contains("`debug/b`, `debug/c` of the pipeline `traces`"), "{blocking:?}");
    let world = files("forebay: {exporters: {debug: {on_full: park}}}\n");
    let plan = load_plan(&sources(&["base.yaml", "c.yaml"], &[]), &world).expect("valid");
    assert_eq!(plan.exporters[0].on_full, OnFull::Park);
}
