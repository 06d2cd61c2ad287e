//! The positioned configuration tree and its typed reader. A leaf: components read their own settings with
//! [`Table`] and see neither YAML nor TOML.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A value that never shows in logs, `Debug` or `print-config`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// One map of the configuration being read. Each getter marks its key as known; what nobody asked for when the
/// reading ends is reported as unknown, with the nearest known key. A getter returns None when the key is absent or
/// its value was wrong (the problem is then noted): the caller goes on with the default, so all errors come at once.
pub struct Table<'a> {
    _todo: std::marker::PhantomData<&'a ()>,
}

impl Table<'_> {
    pub fn has(&self, _key: &str) -> bool {
        todo!()
    }
    pub fn text(&mut self, _key: &'static str) -> Option<String> {
        todo!()
    }
    pub fn secret(&mut self, _key: &'static str) -> Option<Secret> {
        todo!()
    }
    pub fn flag(&mut self, _key: &'static str) -> Option<bool> {
        todo!()
    }
    pub fn integer(&mut self, _key: &'static str, _range: RangeInclusive<u64>) -> Option<u64> {
        todo!()
    }
    pub fn number(&mut self, _key: &'static str, _range: RangeInclusive<f64>) -> Option<f64> {
        todo!()
    }
    pub fn duration(&mut self, _key: &'static str) -> Option<Duration> {
        todo!()
    }
    /// Integers (bytes) or `64MiB`.
    pub fn byte_size(&mut self, _key: &'static str) -> Option<u64> {
        todo!()
    }
    pub fn choice<T: Copy>(&mut self, _key: &'static str, _choices: &[(&'static str, T)]) -> Option<T> {
        todo!()
    }
    pub fn texts(&mut self, _key: &'static str) -> Option<Vec<String>> {
        todo!()
    }
    /// A map with free keys and text values, such as `headers`.
    pub fn text_map(&mut self, _key: &'static str) -> Option<Vec<(String, Secret)>> {
        todo!()
    }
    /// A nested map; a null value is an empty map ("with defaults").
    pub fn table<R>(&mut self, _key: &'static str, _read: impl FnOnce(&mut Table<'_>) -> R) -> Option<R> {
        todo!()
    }
    /// Keys that the OpenTelemetry Collector knows here and Forebay does not: refused, and named as such.
    pub fn unsupported(&mut self, _keys: &[&'static str]) {
        todo!()
    }
    /// Notes an error at `key` (or at the table when the key is absent).
    pub fn problem(&mut self, _key: &str, _message: impl Into<String>) {
        todo!()
    }
    /// Notes a warning, shown by `validate` and logged at start.
    pub fn warn(&mut self, _key: &str, _message: impl Into<String>) {
        todo!()
    }
}
