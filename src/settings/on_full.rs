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
}

/// `park` is known, and needs a dead-letter queue that is not built yet.
const CHOICES: &[(&str, Option<OnFull>)] =
    &[("block", Some(OnFull::Block)), ("drop", Some(OnFull::Drop)), ("park", None)];

impl OnFull {
    /// Reads the key `on_full` of `table`.
    pub fn read(table: &mut Table<'_>) -> Option<OnFull> {
        let choice = table.choice("on_full", CHOICES)?;
        if choice.is_none() {
            table.problem(
                "on_full",
                "park needs the dead-letter queue, which this version has not got; write block (intake is refused, \
                 nothing is lost) or drop (the exporter's oldest records are given up and counted)",
            );
        }
        choice
    }
}
