//! The typed reader of one map.

use super::node::{Entry, Node, Origin, Value};
use super::problem::{Problem, Problems};
use super::units::{parse_byte_size, parse_duration};
use super::{Secret, Severity};
use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

/// One map of the configuration being read. Each getter marks its key as known; what nobody asked for when the
/// reading ends is reported as unknown, with the nearest known key. A getter returns None when the key is absent or
/// its value was wrong (the problem is then noted): the caller goes on with the default, so all errors come at once.
pub struct Table<'a> {
    entries: &'a [Entry],
    origin: &'a Origin,
    path: String,
    known: Vec<Cow<'static, str>>,
    unsupported: Vec<&'static str>,
    problems: &'a mut Problems,
}

/// At this similarity (0 to 1) a known key is offered for an unknown one.
const SIMILARITY_MIN: f64 = 0.7;

/// The candidate that is most like `word`, if any is like it.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

impl<'a> Table<'a> {
    /// The whole tree. Null is an empty map; anything but a map is noted as a problem.
    pub fn root(node: &'a Node, problems: &'a mut Problems) -> Table<'a> {
        let entries = match &node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            _ => {
                problems.add(Problem::error(node.origin.clone(), format!("expected a map, found {}", node.describe())));
                &[]
            }
        };
        Table {
            entries,
            origin: &node.origin,
            path: String::new(),
            known: Vec::new(),
            unsupported: Vec::new(),
            problems,
        }
    }

    /// Reads the table and then reports the keys that nobody asked for.
    pub fn read<R>(mut self, read: impl FnOnce(&mut Table<'_>) -> R) -> R {
        let result = read(&mut self);
        self.finish();
        result
    }

    /// Where the map starts.
    pub fn origin(&self) -> &Origin {
        self.origin
    }

    /// Where the value of `key` stands, else the map itself.
    pub fn origin_of(&self, key: &str) -> Origin {
        self.find(key).map_or(self.origin, |entry| &entry.node.origin).clone()
    }

    /// Where `key` itself stands, else the map.
    pub fn key_origin_of(&self, key: &str) -> Origin {
        self.find(key).map_or(self.origin, |entry| &entry.key_origin).clone()
    }

    /// Dotted path of the map, empty for the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The keys as written, for maps with free keys.
    pub fn keys(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.key.clone()).collect()
    }

    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let node = self.value(key)?;
        let text = node.scalar_text();
        self.expected(key, node, "text", text)
    }

    pub fn secret(&mut self, key: &'static str) -> Option<Secret> {
        let node = self.value(key)?;
        let text = node.scalar_text().map(Secret);
        self.expected(key, node, "text", text)
    }

    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        let node = self.value(key)?;
        let flag = match node.value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        };
        self.expected(key, node, "true or false", flag)
    }

    pub fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let node = self.value(key)?;
        let integer = match node.value {
            Value::Int(value) => u64::try_from(value).ok().filter(|value| range.contains(value)),
            _ => None,
        };
        let expectation = match (*range.start(), *range.end()) {
            (0, u64::MAX) => "an integer of at least 0".to_owned(),
            (low, u64::MAX) => format!("an integer of at least {low}"),
            (low, high) => format!("an integer from {low} to {high}"),
        };
        self.expected(key, node, &expectation, integer)
    }

    pub fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let node = self.value(key)?;
        let number = match node.value {
            Value::Int(value) => Some(value as f64),
            Value::Float(value) => Some(value),
            _ => None,
        };
        let expectation = format!("a number from {} to {}", range.start(), range.end());
        self.expected(key, node, &expectation, number.filter(|value| range.contains(value)))
    }

    /// `200ms`, `1h30m`, `0`.
    pub fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let node = self.value(key)?;
        let duration = match &node.value {
            Value::Text(text) => parse_duration(text).ok(),
            Value::Int(0) => Some(Duration::ZERO),
            _ => None,
        };
        self.expected(key, node, "a duration with a unit, such as 200ms, 5s or 1h30m", duration)
    }

    /// Integers (bytes) or `64MiB`.
    pub fn byte_size(&mut self, key: &'static str) -> Option<u64> {
        let node = self.value(key)?;
        let size = match &node.value {
            Value::Text(text) => parse_byte_size(text).ok(),
            Value::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        };
        self.expected(key, node, "a size in bytes, such as 1048576 or 64MiB", size)
    }

    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&'static str, T)]) -> Option<T> {
        let node = self.value(key)?;
        self.chosen(key, node, choices)
    }

    /// The same under a key that the user chose; it must have a value.
    pub fn named_choice<T: Copy>(&mut self, key: &str, choices: &[(&'static str, T)]) -> Option<T> {
        self.known.push(Cow::Owned(key.to_owned()));
        let node = &self.find(key)?.node;
        self.chosen(key, node, choices)
    }

    fn chosen<T: Copy>(&mut self, key: &str, node: &Node, choices: &[(&'static str, T)]) -> Option<T> {
        let written = node.scalar_text();
        let chosen = choices.iter().find(|(name, _)| Some(*name) == written.as_deref()).map(|(_, value)| *value);
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.expected(key, node, &format!("one of {}", names.join(", ")), chosen)
    }

    pub fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        Some(self.texts_with_origins(key)?.into_iter().map(|(text, _)| text).collect())
    }

    /// A list of texts, each with its position, for references that are checked later.
    pub fn texts_with_origins(&mut self, key: &'static str) -> Option<Vec<(String, Origin)>> {
        let node = self.value(key)?;
        let Value::List(items) = &node.value else {
            return self.expected(key, node, "a list of texts", None);
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item.scalar_text() {
                Some(text) => texts.push((text, item.origin.clone())),
                None => return self.expected(key, item, "text in the list", None),
            }
        }
        Some(texts)
    }

    /// A map with free keys and text values, such as `headers`.
    pub fn text_map(&mut self, key: &'static str) -> Option<Vec<(String, Secret)>> {
        let node = self.value(key)?;
        let Value::Map(entries) = &node.value else {
            return self.expected(key, node, "a map of texts", None);
        };
        let mut pairs = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.node.scalar_text() {
                Some(text) => pairs.push((entry.key.clone(), Secret(text))),
                None => {
                    let message = format!(
                        "{}: expected text, found {}",
                        join(&self.path, key, &entry.key),
                        entry.node.describe()
                    );
                    self.problems.add(Problem::error(entry.node.origin.clone(), message));
                }
            }
        }
        Some(pairs)
    }

    /// A nested map; a null value is an empty map ("with defaults").
    pub fn table<R>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'_>) -> R) -> Option<R> {
        self.mark(Cow::Borrowed(key));
        self.child(key, read)
    }

    /// A nested map under a key that the user chose, such as a component id.
    pub fn named_table<R>(&mut self, key: &str, read: impl FnOnce(&mut Table<'_>) -> R) -> Option<R> {
        self.known.push(Cow::Owned(key.to_owned()));
        self.child(key, read)
    }

    /// A list of maps.
    pub fn tables<R>(&mut self, key: &'static str, mut read: impl FnMut(&mut Table<'_>) -> R) -> Option<Vec<R>> {
        let node = self.value(key)?;
        let Value::List(items) = &node.value else {
            return self.expected(key, node, "a list of maps", None);
        };
        let path = self.path_of(key);
        Some(items.iter().map(|item| sub_table(item, path.clone(), self.problems).read(&mut read)).collect())
    }

    /// Keys that the OpenTelemetry Collector knows here and Forebay does not: refused, and named as such.
    pub fn unsupported(&mut self, keys: &[&'static str]) {
        self.unsupported.extend_from_slice(keys);
    }

    /// Takes a key whose whole content has no meaning here, so that it is not reported as unknown.
    pub fn ignore(&mut self, key: &'static str) {
        self.mark(Cow::Borrowed(key));
    }

    /// The same for a key that the user chose.
    pub fn ignore_named(&mut self, key: &str) {
        self.known.push(Cow::Owned(key.to_owned()));
    }

    /// Notes an error at `key` (or at the table when the key is absent).
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.note(Severity::Error, key, message.into());
    }

    /// Notes a warning, shown by `validate` and logged at start.
    pub fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.note(Severity::Warning, key, message.into());
    }

    /// Notes a finding with a position of its own.
    pub fn report(&mut self, problem: Problem) {
        self.problems.add(problem);
    }

    fn note(&mut self, severity: Severity, key: &str, message: String) {
        let path = if key.is_empty() { self.path.clone() } else { self.path_of(key) };
        let message = if path.is_empty() { message } else { format!("{path}: {message}") };
        self.problems.add(Problem { severity, origin: Some(self.origin_of(key)), message, help: None });
    }

    fn find(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn mark(&mut self, key: Cow<'static, str>) {
        self.problems.note_known(join(&self.path, &key, ""));
        if !self.known.contains(&key) {
            self.known.push(key);
        }
    }

    /// The value of a key that is now known; null counts as absent.
    fn value(&mut self, key: &'static str) -> Option<&'a Node> {
        self.mark(Cow::Borrowed(key));
        self.find(key).map(|entry| &entry.node).filter(|node| node.value != Value::Null)
    }

    fn expected<T>(&mut self, key: &str, node: &Node, expectation: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            let message = format!("{}: expected {expectation}, found {}", self.path_of(key), node.describe());
            self.problems.add(Problem::error(node.origin.clone(), message));
        }
        value
    }

    fn child<R>(&mut self, key: &str, read: impl FnOnce(&mut Table<'_>) -> R) -> Option<R> {
        let entry = self.find(key)?;
        let path = self.path_of(key);
        Some(sub_table(&entry.node, path, self.problems).read(read))
    }

    fn path_of(&self, key: &str) -> String {
        join(&self.path, key, "")
    }

    fn finish(self) {
        for entry in self.entries {
            if self.known.iter().any(|known| *known == entry.key) {
                continue;
            }
            let path = self.path_of(&entry.key);
            if self.unsupported.contains(&entry.key.as_str()) {
                let message =
                    format!("{path}: known to the OpenTelemetry Collector, not supported here: {}", entry.key);
                self.problems.add(Problem::error(entry.key_origin.clone(), message).with_help("remove the key"));
                continue;
            }
            let mut known: Vec<&str> = self.known.iter().map(|key| &**key).collect();
            known.sort_unstable();
            let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let help = match nearest(&entry.key, known.iter().copied()) {
                Some(key) => format!("did you mean `{key}`? Known keys here: {list}"),
                None => format!("known keys here: {list}"),
            };
            let place = if self.path.is_empty() { String::new() } else { format!(" in {}", self.path) };
            let message = format!("unknown key `{}`{place}", entry.key.escape_debug());
            self.problems.add(Problem::error(entry.key_origin.clone(), message).with_help(help));
        }
    }
}

fn sub_table<'n>(node: &'n Node, path: String, problems: &'n mut Problems) -> Table<'n> {
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        Value::Null => &[],
        _ => {
            let message = format!("{path}: expected a map, found {}", node.describe());
            problems.add(Problem::error(node.origin.clone(), message));
            &[]
        }
    };
    Table { entries, origin: &node.origin, path, known: Vec::new(), unsupported: Vec::new(), problems }
}

/// `a.b.c`, leaving out what is empty.
fn join(path: &str, key: &str, last: &str) -> String {
    [path, key, last].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}
