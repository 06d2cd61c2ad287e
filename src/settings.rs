//! The positioned configuration tree and its typed reader. A leaf: components read their own settings with
//! [`Table`] and see neither YAML nor TOML.
//!
//! ```text
//! YAML, TOML, --set ─▶ Node (value + file:line:column) ─▶ Table getters ─▶ typed settings
//!                                                             └▶ Problems: every error and warning, all at once
//! ```

mod kind;
mod node;
mod on_full;
mod problem;
mod retry;
mod sending_queue;
mod table;
#[cfg(test)]
mod tests;
mod units;

pub use kind::Kind;
pub use node::{Entry, Node, Origin, Value};
pub use on_full::OnFull;
pub use problem::{Problem, Problems, Severity};
pub use retry::Retry;
pub use sending_queue::{BatchLimits, SendingQueue, Sizer};
pub use table::{Table, nearest};
pub use units::{parse_byte_size, parse_duration};

/// A value that never shows in logs, `Debug` or `print-config`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Reads one tree with `read`. Ok carries the warnings beside the result; Err carries every problem, warnings too.
pub fn read_with_warnings<R>(
    node: &Node,
    read: impl FnOnce(&mut Table<'_>) -> R,
) -> Result<(R, Vec<Problem>), Vec<Problem>> {
    let mut problems = Problems::default();
    let result = Table::root(node, &mut problems).read(read);
    if problems.has_errors() { Err(problems.into_vec()) } else { Ok((result, problems.into_vec())) }
}

/// [`read_with_warnings`] for callers that do not look at warnings, such as unit tests of a component's settings.
pub fn read<R>(node: &Node, read: impl FnOnce(&mut Table<'_>) -> R) -> Result<R, Vec<Problem>> {
    read_with_warnings(node, read).map(|(result, _warnings)| result)
}
