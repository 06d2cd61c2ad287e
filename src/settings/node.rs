//! A configuration value and where it was written.

use std::fmt;
use std::sync::Arc;

/// Where something was written. Lines and columns count from 1; line 0 means that the source has no lines (`--set`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl Origin {
    pub fn new(file: &Arc<str>, line: u32, column: u32) -> Origin {
        Origin { file: file.clone(), line, column }
    }

    /// A source as a whole.
    pub fn whole(file: &str) -> Origin {
        Origin { file: file.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}:{}", self.file, self.line, self.column) }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map with its value. Keys are unique within a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_origin: Origin,
    pub node: Node,
}

#[derive(Clone, PartialEq)]
pub struct Node {
    pub origin: Origin,
    pub value: Value,
    /// The characters of an unquoted scalar, so that a key that wants text gets `007` and not `7`.
    pub written: Option<String>,
    /// Came from the environment or a file by substitution: not printed, not quoted in messages.
    pub substituted: bool,
}

/// Hides substituted values, which may be secrets.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.substituted {
            write!(f, "[REDACTED]@{}", self.origin)
        } else {
            write!(f, "{:?}@{}", self.value, self.origin)
        }
    }
}

/// Longest piece of a value that a message quotes, in characters.
const QUOTED_CHARS_MAX: usize = 60;

impl Node {
    pub fn new(origin: Origin, value: Value) -> Node {
        Node { origin, value, written: None, substituted: false }
    }

    pub fn empty_map(origin: Origin) -> Node {
        Node::new(origin, Value::Map(Vec::new()))
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The scalar as text: what was written, for a number or a boolean.
    pub fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Bool(value) => Some(self.written.clone().unwrap_or_else(|| value.to_string())),
            Value::Int(value) => Some(self.written.clone().unwrap_or_else(|| value.to_string())),
            Value::Float(value) => Some(self.written.clone().unwrap_or_else(|| value.to_string())),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What was found, for a message: kind and, unless it may be a secret, value.
    pub fn describe(&self) -> String {
        let kind = match &self.value {
            Value::Null => return "nothing".to_owned(),
            Value::List(items) => return format!("a list of {}", items.len()),
            Value::Map(_) => return "a map".to_owned(),
            Value::Bool(_) => "the boolean",
            Value::Int(_) => "the integer",
            Value::Float(_) => "the number",
            Value::Text(_) => "the text",
        };
        if self.substituted {
            return format!("{kind} of a substitution (not shown)");
        }
        let text = self.scalar_text().unwrap_or_default();
        let mut shown: String = text.chars().take(QUOTED_CHARS_MAX).flat_map(char::escape_debug).collect();
        if text.chars().count() > QUOTED_CHARS_MAX {
            shown.push('…');
        }
        match &self.value {
            Value::Text(_) => format!("{kind} \"{shown}\""),
            _ => format!("{kind} {shown}"),
        }
    }
}
