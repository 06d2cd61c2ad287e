//! `on_full`: what gives way when a queue is at its cap.

use super::Table;

/// Of one exporter, at `forebay.queue.max_size` and at its own `sending_queue.queue_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnFull {
    /// Intake: clients are refused, retryably, and nothing is lost.
    #[default]
    Block,
    /// This exporter's oldest records: they are settled unsent and counted as dropped.
    Drop,
    /// The same, but they become dead letters first. While those have no room it is as `Block`.
    Park,
}

const CHOICES: &[(&str, OnFull)] = &[("block", OnFull::Block), ("drop", OnFull::Drop), ("park", OnFull::Park)];

impl OnFull {
    /// Reads the key `on_full` of `table`.
    pub fn read(table: &mut Table<'_>) -> Option<OnFull> {
        table.choice("on_full", CHOICES)
    }
}
