//! A component kind, as a registry lists it.

use super::Table;

/// A kind under its present name, the older names that mean the same, what it is, and how its settings are read.
pub struct Kind<S: 'static> {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub summary: &'static str,
    pub read: fn(&mut Table<'_>) -> S,
}

impl<S> Kind<S> {
    /// Finds a kind by its name or an older one.
    pub fn find(kinds: &'static [Kind<S>], name: &str) -> Option<&'static Kind<S>> {
        kinds.iter().find(|kind| kind.name == name || kind.aliases.contains(&name))
    }
}
