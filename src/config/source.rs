//! Where a configuration comes from: `--config` sources and `--set` overrides, merged into one tree.

use super::{substitute, toml, yaml};
use crate::settings::{Entry, Node, Origin, Problem, Value};
use std::io::Read;
use std::path::Path;

/// What the outside world offers to a configuration. Tests give their own.
pub trait World {
    /// An environment variable. Err: it is set but is not UTF-8.
    fn variable(&self, name: &str) -> Result<Option<String>, String>;
    /// A file's text, at most [`yaml::SOURCE_BYTES_MAX`] bytes of it.
    fn file(&self, path: &Path) -> Result<String, String>;
}

/// The process's environment and file system.
pub struct RealWorld;

impl World for RealWorld {
    fn variable(&self, name: &str) -> Result<Option<String>, String> {
        match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err("its value is not UTF-8".to_owned()),
        }
    }

    fn file(&self, path: &Path) -> Result<String, String> {
        let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        let limit = yaml::SOURCE_BYTES_MAX as u64 + 1;
        file.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() > yaml::SOURCE_BYTES_MAX {
            return Err(format!("it is larger than {} bytes", yaml::SOURCE_BYTES_MAX));
        }
        String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
    }
}

/// What the user named on the command line.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Paths, `file:…`, `yaml:…`, `env:NAME`; later ones win. None at all: the embedded default.
    pub configs: Vec<String>,
    /// `a.b.c=value`, applied last.
    pub sets: Vec<String>,
}

/// Most sources and overrides of one command line.
const SOURCES_MAX: usize = 256;

/// Reads and merges everything, with substitutions made.
pub fn load(sources: &Sources, world: &dyn World) -> Result<Node, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut tree: Option<Node> = None;
    let embedded = [format!("yaml:{}", super::EMBEDDED_DEFAULT)];
    let configs = if sources.configs.is_empty() { &embedded[..] } else { &sources.configs[..] };
    if configs.len() + sources.sets.len() > SOURCES_MAX {
        let message = format!("more than {SOURCES_MAX} --config and --set");
        return Err(vec![Problem::error(Origin::whole("command line"), message)]);
    }
    for config in configs {
        let name = if sources.configs.is_empty() { "embedded default" } else { source_name(config) };
        match read_one(config, name, world) {
            Ok(node) => tree = Some(tree.map_or(node.clone(), |below| merge(below, node))),
            Err(found) => problems.extend(found),
        }
    }
    for set in &sources.sets {
        match parse_set(set) {
            Ok(node) => tree = Some(tree.map_or(node.clone(), |below| merge(below, node))),
            Err(problem) => problems.push(problem),
        }
    }
    let mut tree = tree.unwrap_or_else(|| Node::empty_map(Origin::whole("command line")));
    substitute::substitute(&mut tree, world, &mut problems);
    if problems.is_empty() { Ok(tree) } else { Err(problems) }
}

fn source_name(config: &str) -> &str {
    if config.starts_with("yaml:") { "--config=yaml:" } else { config.strip_prefix("file:").unwrap_or(config) }
}

fn read_one(config: &str, name: &str, world: &dyn World) -> Result<Node, Vec<Problem>> {
    let fail = |message: String, help: &str| vec![Problem::error(Origin::whole(name), message).with_help(help)];
    let text = if let Some(text) = config.strip_prefix("yaml:") {
        // As the collector: `yaml:a::b: 1` is the shorthand for nested keys; a plain document is taken as it is.
        text.to_owned()
    } else if let Some(variable) = config.strip_prefix("env:") {
        match world.variable(variable) {
            Ok(Some(text)) => text,
            Ok(None) => {
                return Err(fail(
                    format!("the environment variable {variable} is not set"),
                    "set it to a YAML document",
                ));
            }
            Err(why) => {
                return Err(fail(format!("cannot read the environment variable {variable}: {why}"), "use UTF-8"));
            }
        }
    } else {
        world.file(Path::new(name)).map_err(|why| {
            fail(
                format!("cannot read the configuration file: {why}"),
                "check the path after --config; without any --config an embedded default runs",
            )
        })?
    };
    let node = if is_toml(name) {
        toml::parse_named(name, &text)?
    } else {
        yaml::parse_named(name, &text).map_err(|problem| vec![problem])?
    };
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => Ok(node),
        Value::Map(_) | Value::Null => Err(fail(
            "the configuration is empty".to_owned(),
            "write receivers, exporters and service.pipelines, or leave --config out for the embedded default",
        )),
        _ => {
            let message = format!("expected a map of receivers, exporters and service, found {}", node.describe());
            Err(vec![Problem::error(node.origin.clone(), message)])
        }
    }
}

fn is_toml(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
}

/// Maps merge, anything else is replaced by what came later. Null over a map leaves the map.
pub fn merge(below: Node, above: Node) -> Node {
    match (below.value, above.value) {
        (Value::Map(mut entries), Value::Map(later)) => {
            for entry in later {
                match entries.iter_mut().find(|present| present.key == entry.key) {
                    Some(present) => {
                        let hole = Node::new(entry.node.origin.clone(), Value::Null);
                        let lower = std::mem::replace(&mut present.node, hole);
                        present.node = merge(lower, entry.node);
                        present.key_origin = entry.key_origin;
                    }
                    None => entries.push(entry),
                }
            }
            Node { origin: above.origin, value: Value::Map(entries), written: None, substituted: false }
        }
        (Value::Map(entries), Value::Null) => Node::new(below.origin, Value::Map(entries)),
        (_, value) => Node { origin: above.origin, value, written: above.written, substituted: above.substituted },
    }
}

/// `exporters.otlp_http.endpoint=https://…`. The value is read as YAML. `::` separates too; a dot inside a key cannot
/// be written, but for keys in the configuration file.
fn parse_set(set: &str) -> Result<Node, Problem> {
    let origin = Origin::whole(&format!("--set {}", set.split('=').next().unwrap_or_default()));
    let help = "write --set path.to.key=value, such as --set exporters.otlp_http.endpoint=https://example.org";
    let Some((path, value)) = set.split_once('=') else {
        return Err(Problem::error(origin, "no `=` in the override").with_help(help));
    };
    let keys: Vec<&str> = if path.contains("::") { path.split("::").collect() } else { path.split('.').collect() };
    if keys.iter().any(|key| key.trim().is_empty()) || keys.len() > yaml::DEPTH_MAX {
        return Err(Problem::error(origin, "an empty key in the override's path").with_help(help));
    }
    let parsed = yaml::parse_named(&origin.file, value);
    // What is no YAML by itself, such as `a: b: c` or `@x`, is text.
    let mut node = parsed.unwrap_or_else(|_| Node::new(origin.clone(), Value::Text(value.to_owned())));
    relocate(&mut node, &origin);
    Ok(keys.into_iter().rev().fold(node, |node, key| {
        let entry = Entry { key: key.trim().to_owned(), key_origin: origin.clone(), node };
        Node::new(origin.clone(), Value::Map(vec![entry]))
    }))
}

/// Positions inside a command-line argument say nothing: the argument itself is the place.
fn relocate(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| relocate(item, origin)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_origin = origin.clone();
            relocate(&mut entry.node, origin);
        }),
        _ => {}
    }
}
