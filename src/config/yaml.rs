//! YAML text → positioned tree, by the events of `saphyr-parser` (`docs/decisions/003-yaml.md`).
//!
//! Everything is bounded: text size, nesting depth, and the number of nodes after aliases are expanded, so a
//! document of aliases to aliases ends in an error. Duplicate keys are refused; a second document too.

use crate::settings::{Entry, Node, Origin, Problem, Value};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Largest source, in bytes.
pub const SOURCE_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of lists and maps.
pub const DEPTH_MAX: usize = 64;
/// Most nodes of a tree, aliases expanded; a long text counts as one for every [`NODE_TEXT_BYTES`].
pub const NODES_MAX: usize = 50_000;

/// Parses one document; the file name in positions is `yaml`.
pub fn parse(text: &str) -> Result<Node, Problem> {
    parse_named("yaml", text)
}

/// Parses one document that came from `file`. An empty document is Null.
pub fn parse_named(file: &str, text: &str) -> Result<Node, Problem> {
    let file: Arc<str> = file.into();
    check_size(&file, text)?;
    let mut loader = Loader { file, parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    loader.document()
}

/// Refuses a source that is too large to be a configuration.
pub fn check_size(file: &Arc<str>, text: &str) -> Result<(), Problem> {
    if text.len() <= SOURCE_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("the source has {} bytes, more than the {SOURCE_BYTES_MAX} that a configuration may have", text.len());
    Err(Problem::error(Origin::whole(file), message))
}

/// An unquoted scalar, typed as the YAML 1.2 core schema types it; integers may have underscores.
pub fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    if let Some(integer) = integer(text) {
        return Value::Int(integer);
    }
    // Only what looks like a number: Rust also parses `inf` and `nan`.
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && text.bytes().any(|b| b.is_ascii_digit());
    match text.parse::<f64>() {
        Ok(number) if numeric => Value::Float(number),
        _ => Value::Text(text.to_owned()),
    }
}

fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) || digits.ends_with('_') {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// Text that one node pays for, so that aliases to a long text are bounded too.
const NODE_TEXT_BYTES: usize = 256;

/// What a node costs when an alias repeats it.
#[derive(Clone, Copy)]
struct Extent {
    nodes: usize,
    height: usize,
}

impl Extent {
    const LEAF: Extent = Extent { nodes: 1, height: 0 };

    fn add(&mut self, child: Extent) {
        self.nodes += child.nodes;
        self.height = self.height.max(child.height + 1);
    }
}

struct Loader<'input> {
    file: Arc<str>,
    parser: Parser<'input, StrInput<'input>>,
    anchors: HashMap<usize, (Node, Extent)>,
    nodes: usize,
}

impl<'input> Loader<'input> {
    fn document(&mut self) -> Result<Node, Problem> {
        let mut tree = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if tree.is_some() => {
                    return Err(
                        self.error(&span.start, "a second YAML document starts here; a configuration is one document")
                    );
                }
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                event => tree = Some(self.node(event, span, 0)?.0),
            }
        }
        Ok(tree.unwrap_or_else(|| Node::new(Origin::new(&self.file, 1, 1), Value::Null)))
    }

    fn next(&mut self) -> Result<(Event<'input>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.error(error.marker(), &format!("not YAML: {}", error.info()))),
            None => Ok((Event::StreamEnd, Span::empty(Marker::new(0, 1, 0)))),
        }
    }

    fn origin(&self, marker: &Marker) -> Origin {
        Origin::new(&self.file, marker.line() as u32, marker.col() as u32 + 1)
    }

    fn error(&self, marker: &Marker, message: &str) -> Problem {
        Problem::error(self.origin(marker), message)
    }

    /// The node that `event` starts, and what it costs.
    fn node(&mut self, event: Event<'input>, span: Span, depth: usize) -> Result<(Node, Extent), Problem> {
        if depth > DEPTH_MAX {
            return Err(self.error(&span.start, &format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.count(1, &span.start)?;
        let origin = self.origin(&span.start);
        let (node, extent, anchor) = match event {
            Event::Alias(id) => {
                let Some((node, extent)) = self.anchors.get(&id).cloned() else {
                    return Err(self.error(&span.start, "an alias to an anchor that is not complete here"));
                };
                if depth + extent.height > DEPTH_MAX {
                    return Err(self.error(&span.start, &format!("nested deeper than {DEPTH_MAX} levels")));
                }
                self.count(extent.nodes, &span.start)?;
                return Ok((node, extent));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let extent = Extent { nodes: 1 + text.len() / NODE_TEXT_BYTES, height: 0 };
                (self.scalar(text, style, tag, origin), extent, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                let mut extent = Extent::LEAF;
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                        break;
                    }
                    let (item, item_extent) = self.node(event, span, depth + 1)?;
                    extent.add(item_extent);
                    items.push(item);
                }
                (Node::new(origin, Value::List(items)), extent, anchor)
            }
            Event::MappingStart(anchor, _) => {
                let (entries, extent) = self.mapping(depth)?;
                // The marker of a block map is its first key's.
                (Node::new(origin, Value::Map(entries)), extent, anchor)
            }
            _ => return Err(self.error(&span.start, "not YAML: a value was expected here")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), extent));
        }
        Ok((node, extent))
    }

    fn mapping(&mut self, depth: usize) -> Result<(Vec<Entry>, Extent), Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Origin> = HashMap::new();
        let mut merged: Vec<Entry> = Vec::new();
        let mut extent = Extent::LEAF;
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd | Event::StreamEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.error(&span.start, "a key must be plain text")),
            };
            let key_origin = self.origin(&span.start);
            let (event, value_span) = self.next()?;
            let (node, node_extent) = self.node(event, value_span, depth + 1)?;
            extent.add(node_extent);
            if key == "<<" {
                let sources = match node.value {
                    Value::List(items) => items,
                    _ => vec![node],
                };
                for source in sources {
                    let Value::Map(source) = source.value else {
                        return Err(Problem::error(key_origin, "`<<` merges maps; this is none"));
                    };
                    merged.extend(source);
                }
                continue;
            }
            if let Some(first) = seen.insert(key.clone(), key_origin.clone()) {
                let message = format!("the key `{}` is given twice in one map", key.escape_debug());
                return Err(Problem::error(key_origin, message)
                    .with_help(format!("the first stands at {first}; remove one of them")));
            }
            entries.push(Entry { key, key_origin, node });
        }
        for entry in merged {
            if !seen.contains_key(&entry.key) {
                seen.insert(entry.key.clone(), entry.key_origin.clone());
                entries.push(entry);
            }
        }
        Ok((entries, extent))
    }

    fn count(&mut self, nodes: usize, at: &Marker) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX {
            return Err(self.error(at, &format!("more than {NODES_MAX} values, aliases expanded")));
        }
        Ok(())
    }

    fn scalar(&self, text: Cow<'_, str>, style: ScalarStyle, tag: Option<Cow<'_, Tag>>, origin: Origin) -> Node {
        let forced_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
        if style != ScalarStyle::Plain || forced_text {
            return Node::new(origin, Value::Text(text.into_owned()));
        }
        let mut node = Node::new(origin, plain_scalar(&text));
        node.written = Some(text.into_owned());
        node
    }
}
