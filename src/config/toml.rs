//! TOML text → the same positioned tree as YAML.

use super::yaml::{DEPTH_MAX, NODES_MAX, check_size};
use crate::settings::{Entry, Node, Origin, Problem, Value};
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Parses a document that came from `file`. Every syntax error is returned, not the first alone.
pub fn parse_named(file: &str, text: &str) -> Result<Node, Vec<Problem>> {
    let file: Arc<str> = file.into();
    check_size(&file, text).map_err(|problem| vec![problem])?;
    let places = Places::of(&file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: &toml::de::Error| {
            Problem::error(places.origin(error.span().unwrap_or(0..0)), format!("not TOML: {}", error.message()))
        };
        return Err(errors.iter().map(problem).collect());
    }
    let mut loader = Loader { places, nodes: 0 };
    let origin = loader.places.origin(0..0);
    let map = loader.map(table.into_inner(), 0).map_err(|problem| vec![problem])?;
    Ok(Node::new(origin, map))
}

/// Byte offsets → lines and columns.
struct Places<'t> {
    file: Arc<str>,
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Places<'t> {
    fn of(file: &Arc<str>, text: &'t str) -> Places<'t> {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Places { file: file.clone(), text, line_starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        let line = self.line_starts.partition_point(|start| *start <= span.start).max(1);
        let line_start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(line_start..span.start).map_or(0, |before| before.chars().count());
        Origin::new(&self.file, line as u32, column as u32 + 1)
    }
}

struct Loader<'t> {
    places: Places<'t>,
    nodes: usize,
}

impl Loader<'_> {
    fn map(&mut self, table: DeTable<'_>, depth: usize) -> Result<Value, Problem> {
        let mut entries = Vec::with_capacity(table.len());
        for (key, value) in table {
            let key_origin = self.places.origin(key.span());
            let node = self.node(value, depth + 1)?;
            entries.push(Entry { key: key.into_inner().into_owned(), key_origin, node });
        }
        // In the order of the file, for messages and for print-config.
        entries.sort_by_key(|entry| (entry.key_origin.line, entry.key_origin.column));
        Ok(Value::Map(entries))
    }

    fn node(&mut self, spanned: Spanned<DeValue<'_>>, depth: usize) -> Result<Node, Problem> {
        let origin = self.places.origin(spanned.span());
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(Problem::error(origin, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        if self.nodes > NODES_MAX {
            return Err(Problem::error(origin, format!("more than {NODES_MAX} values")));
        }
        let (value, written) = match spanned.into_inner() {
            DeValue::String(text) => (Value::Text(text.into_owned()), None),
            DeValue::Integer(integer) => {
                let parsed = i128::from_str_radix(integer.as_str(), integer.radix())
                    .map_err(|_| Problem::error(origin.clone(), "the integer is too large"))?;
                (Value::Int(parsed), Some(integer.to_string()))
            }
            DeValue::Float(float) => {
                let parsed =
                    float.as_str().parse().map_err(|_| Problem::error(origin.clone(), "the number cannot be read"))?;
                (Value::Float(parsed), Some(float.to_string()))
            }
            DeValue::Boolean(value) => (Value::Bool(value), Some(value.to_string())),
            DeValue::Datetime(time) => (Value::Text(time.to_string()), None),
            DeValue::Array(items) => {
                let nodes = items.into_iter().map(|item| self.node(item, depth + 1)).collect::<Result<_, _>>()?;
                (Value::List(nodes), None)
            }
            DeValue::Table(table) => (self.map(table, depth)?, None),
        };
        let mut node = Node::new(origin, value);
        node.written = written;
        Ok(node)
    }
}
