use std::sync::Arc;

use super::*;
use crate::settings::{self, Entry, Node, Origin, Value};

fn node(value: Value) -> Node {
    Node::new(Origin::whole("test"), value)
}

fn text(value: &str) -> Node {
    node(Value::Text(value.to_owned()))
}

fn map(entries: Vec<(&str, Node)>) -> Node {
    let file: Arc<str> = Arc::from("test");
    let entry = |(key, node): (&str, Node)| Entry { key: key.to_owned(), key_origin: Origin::new(&file, 1, 1), node };
    node(Value::Map(entries.into_iter().map(entry).collect()))
}

/// The settings of these keys, or the problems as shown.
fn read(protocols: Vec<(&str, Node)>) -> Result<Settings, String> {
    let problems =
        |problems: Vec<settings::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    settings::read(&map(vec![("protocols", map(protocols))]), Settings::read).map_err(problems)
}

#[test]
fn a_protocol_without_a_value_has_the_collectors_defaults() {
    let settings = read(vec![("grpc", node(Value::Null)), ("http", node(Value::Null))]).expect("valid");
    let (grpc, http) = (settings.grpc.expect("on"), settings.http.expect("on"));
    assert_eq!((grpc.endpoint.as_str(), grpc.request_bytes_max), ("localhost:4317", 64 << 20));
    assert_eq!((http.endpoint.as_str(), http.request_bytes_max), ("localhost:4318", 64 << 20));
    assert_eq!(http.paths, ["/v1/traces", "/v1/metrics", "/v1/logs"]);
    assert!(http.cors.is_none() && grpc.max_connection_age.is_none() && grpc.max_connection_idle.is_none());
    assert!(read(vec![]).expect_err("neither").contains("needs `grpc:` or `http:`"));
}

#[test]
fn paths_that_the_router_cannot_take_or_that_collide_are_problems() {
    for path in ["v1/traces", "/v1/{signal", "/:tenant/v1", "/v1/*"] {
        let problems = read(vec![("http", map(vec![("traces_url_path", text(path))]))]).expect_err(path);
        assert!(problems.contains("a path begins with `/`"), "{problems}");
    }
    // Also with the default of another signal.
    let problems = read(vec![("http", map(vec![("traces_url_path", text("/v1/logs"))]))]).expect_err("taken");
    assert!(problems.contains("another signal has the path /v1/logs"), "{problems}");
}

#[test]
fn a_zero_in_keepalive_is_the_default_and_a_timeout_of_zero_does_not_refuse_everything() {
    let zero = || text("0s");
    let parameters = ["time", "timeout", "max_connection_idle", "max_connection_age"].map(|key| (key, zero())).to_vec();
    let grpc = map(vec![("keepalive", map(vec![("server_parameters", map(parameters))]))]);
    let http = map(vec![("read_timeout", zero()), ("idle_timeout", zero())]);
    let settings = read(vec![("grpc", grpc), ("http", http)]).expect("valid");
    let (grpc, http) = (settings.grpc.expect("on"), settings.http.expect("on"));
    assert_eq!(grpc.keepalive_time, GrpcSettings::default().keepalive_time);
    assert_eq!(grpc.keepalive_timeout, GrpcSettings::default().keepalive_timeout);
    assert!(grpc.max_connection_idle.is_none() && grpc.max_connection_age.is_none());
    assert_eq!((http.read_timeout, http.idle_timeout), (READ_TIMEOUT_DEFAULT, IDLE_TIMEOUT_DEFAULT));
}

#[test]
fn compression_algorithms_outside_the_list_are_problems_and_the_collectors_are_named_as_such() {
    let algorithms = |names: &[&str]| {
        let list = node(Value::List(names.iter().map(|name| text(name)).collect()));
        read(vec![("http", map(vec![("compression_algorithms", list)]))])
    };
    let problems = algorithms(&["gzip", "snappy", "gzpi"]).expect_err("two are wrong");
    assert!(problems.contains("not supported here: snappy") && problems.contains("did you mean gzip?"), "{problems}");
    assert!(algorithms(&[]).expect_err("empty").contains("every request would be refused"));
    let every = algorithms(&["", "gzip", "zstd", "zlib", "deflate"]).expect("valid").http.expect("on");
    assert_eq!(every.encodings, Encodings::default());
}

#[test]
fn include_metadata_is_accepted_and_said_to_have_no_effect() {
    let flag = || map(vec![("include_metadata", node(Value::Bool(true)))]);
    let tree = map(vec![("protocols", map(vec![("grpc", flag()), ("http", flag())]))]);
    let (_, warnings) = settings::read_with_warnings(&tree, Settings::read).expect("valid");
    assert_eq!(warnings.len(), 2);
    assert!(warnings.iter().all(|warning| warning.message.contains("has no effect")), "{warnings:?}");
}
