//! `${env:X}`, `${X}`, `${env:X:-default}`, `${file:/path}`, and `$$` for a dollar.

use super::source::World;
use super::yaml;
use crate::settings::{Node, Origin, Problem, Value};
use std::path::Path;

/// Longest value after substitution, in bytes.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most bytes that all substitutions of one configuration bring.
const TOTAL_BYTES_MAX: usize = 16 << 20;

/// Replaces every reference in the tree's values; keys are left alone. Every error is noted.
pub fn substitute(node: &mut Node, world: &dyn World, problems: &mut Vec<Problem>) {
    walk(node, world, problems, &mut 0);
}

fn walk(node: &mut Node, world: &dyn World, problems: &mut Vec<Problem>, total_bytes: &mut usize) {
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| walk(item, world, problems, total_bytes)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| walk(&mut entry.node, world, problems, total_bytes)),
        Value::Text(text) if text.contains('$') => {
            // Only unquoted text is typed anew.
            let quoted = node.written.is_none();
            match expand(text, world, total_bytes) {
                Ok(Expanded::Literal(literal)) => node.value = Value::Text(literal),
                Ok(Expanded::Mixed(mixed)) => {
                    node.value = Value::Text(mixed);
                    node.substituted = true;
                }
                Ok(Expanded::Whole(whole)) => {
                    let value = if quoted { Value::Text(whole.clone()) } else { typed(&whole, &node.origin) };
                    node.value = value;
                    node.written = (!quoted).then_some(whole);
                    node.substituted = true;
                }
                Err(found) => {
                    problems.push(Problem { origin: Some(node.origin.clone()), ..found });
                    // So that no reader complains a second time about this key.
                    node.value = Value::Null;
                }
            }
        }
        _ => {}
    }
}

enum Expanded {
    /// Only `$$`, or a dollar that starts no reference.
    Literal(String),
    /// References inside other text.
    Mixed(String),
    /// One reference is the whole value.
    Whole(String),
}

/// A substitution that is the whole value is typed as YAML would type it, lists and maps included.
fn typed(text: &str, origin: &Origin) -> Value {
    match yaml::parse_named(&origin.file, text.trim()) {
        Ok(Node { value: Value::Text(_), .. }) | Err(_) => Value::Text(text.to_owned()),
        Ok(mut node) => {
            mark(&mut node, origin);
            node.value
        }
    }
}

fn mark(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    node.substituted = true;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| mark(item, origin)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_origin = origin.clone();
            mark(&mut entry.node, origin);
        }),
        _ => {}
    }
}

fn expand(text: &str, world: &dyn World, total_bytes: &mut usize) -> Result<Expanded, Problem> {
    let mut out = String::with_capacity(text.len());
    let mut references = 0;
    let mut whole = false;
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(reference) = after.strip_prefix('{') {
            let Some(end) = reference.find('}') else {
                return Err(problem("a `${` without its `}`").with_help("write $$ for a dollar sign"));
            };
            references += 1;
            whole = rest.len() == text.len() && dollar == 0 && end + 1 == reference.len();
            let value = resolve(&reference[..end], world)?;
            *total_bytes = total_bytes.saturating_add(value.len());
            if *total_bytes > TOTAL_BYTES_MAX {
                return Err(problem(&format!("the substitutions bring more than {TOTAL_BYTES_MAX} bytes altogether")));
            }
            out.push_str(&value);
            rest = &reference[end + 1..];
        } else {
            out.push('$');
            rest = after;
        }
        if out.len() > VALUE_BYTES_MAX {
            return Err(problem(&format!("the value is larger than {VALUE_BYTES_MAX} bytes after substitution")));
        }
    }
    out.push_str(rest);
    Ok(match (references, whole) {
        (0, _) => Expanded::Literal(out),
        (1, true) => Expanded::Whole(out),
        _ => Expanded::Mixed(out),
    })
}

fn problem(message: &str) -> Problem {
    Problem::error(Origin::whole(""), message)
}

fn resolve(reference: &str, world: &dyn World) -> Result<String, Problem> {
    if let Some(path) = reference.strip_prefix("file:") {
        return match world.file(Path::new(path)) {
            // The line break that editors and `echo` put at the end is no part of a secret.
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(why) => Err(problem(&format!("cannot read the file {path} of ${{file:{path}}}: {why}"))
                .with_help("create the file or correct the path")),
        };
    }
    let body = reference.strip_prefix("env:").unwrap_or(reference);
    let (name, default) = match body.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (body, None),
    };
    let first_ok = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first_ok || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(problem(&format!("`${{{}}}` is no reference that is known here", reference.escape_debug()))
            .with_help("write ${env:NAME}, ${env:NAME:-default} or ${file:/path}; $$ is a dollar sign"));
    }
    match (world.variable(name), default) {
        (Ok(Some(value)), _) => Ok(value),
        (Ok(None), Some(default)) => Ok(default.to_owned()),
        (Ok(None), None) => Err(problem(&format!("the environment variable {name} is not set"))
            .with_help(format!("set {name}, or give a default: ${{env:{name}:-default}}"))),
        (Err(why), _) => Err(problem(&format!("cannot read the environment variable {name}: {why}"))),
    }
}
