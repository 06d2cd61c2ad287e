//! Component ids (`type[/name]`) and the names under which queues and cursors are kept on disk.

use crate::otlp::Signal;
use crate::settings::{Origin, Problem};
use std::collections::HashMap;

/// Longest component id, and longest queue or cursor id, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// `type[/name]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentId {
    pub kind: String,
    pub name: Option<String>,
}

impl ComponentId {
    /// The error says what is wrong, to follow a quotation of the text.
    pub fn parse(text: &str) -> Result<ComponentId, String> {
        if text.len() > ID_BYTES_MAX {
            return Err(format!("is longer than {ID_BYTES_MAX} bytes"));
        }
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (kind, Some(name)),
            None => (text, None),
        };
        let kind_ok = kind.starts_with(|c: char| c.is_ascii_alphabetic())
            && kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !kind_ok {
            return Err("must start with a type of letters, digits and `_`".to_owned());
        }
        if name.is_some_and(|name| !is_plain(name)) {
            return Err("has a name that is not of letters, digits, `_`, `-` and `.`, or starts with `.`".to_owned());
        }
        Ok(ComponentId { kind: kind.to_owned(), name: name.map(str::to_owned) })
    }

    /// The id with another type, such as the present name for an older one.
    pub fn with_kind(&self, kind: &str) -> String {
        match &self.name {
            Some(name) => format!("{kind}/{name}"),
            None => kind.to_owned(),
        }
    }
}

/// The signal that a pipeline's type names.
pub fn signal(kind: &str) -> Option<Signal> {
    match kind {
        "traces" => Some(Signal::Traces),
        "metrics" => Some(Signal::Metrics),
        "logs" => Some(Signal::Logs),
        _ => None,
    }
}

/// Safe as a file name on any file system.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.len() <= ID_BYTES_MAX
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// The name on disk of a component without a name of its own: its id, with `-` for `/`. Types have no `-`, so two
/// ids never share a name.
pub fn stored_name(id: &str) -> String {
    id.replace('/', "-")
}

/// Stored names in use, to find two that would share a queue or a cursor.
pub struct StoredNames {
    what: &'static str,
    owners: HashMap<String, String>,
}

impl StoredNames {
    /// `what`: `queue_id` or `cursor_id`.
    pub fn new(what: &'static str) -> StoredNames {
        StoredNames { what, owners: HashMap::new() }
    }

    /// Takes a name for `owner`. File systems may ignore case, so names that differ in case alone collide.
    pub fn claim(&mut self, name: &str, owner: &str, origin: &Origin) -> Result<(), Problem> {
        let what = self.what;
        if !is_plain(name) {
            let message = format!("the {what} \"{}\" of {owner} cannot be stored", name.escape_debug());
            let help = format!("use at most {ID_BYTES_MAX} letters, digits, `_`, `-` and `.`, not starting with `.`");
            return Err(Problem::error(origin.clone(), message).with_help(help));
        }
        match self.owners.insert(name.to_ascii_lowercase(), owner.to_owned()) {
            None => Ok(()),
            Some(first) => {
                let message = format!("{owner} and {first} have the same {what} \"{name}\"");
                Err(Problem::error(origin.clone(), message).with_help(format!("give one of them another {what}")))
            }
        }
    }
}
