//! How a queue stands.

use crate::storage::backlog::{Limit, Weight};
use crate::storage::ledger::Ledger;

use super::Log;

/// Figures of one queue, for metrics and messages.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub segments: u64,
    pub allocated_bytes: u64,
    pub next_sequence: u64,
    pub failure: Option<String>,
    pub cursors: Vec<CursorStatus>,
}

#[derive(Clone, Debug)]
pub struct CursorStatus {
    pub name: String,
    /// The lowest sequence that is not settled.
    pub low: u64,
    /// What is durable and not settled.
    pub backlog: Weight,
    pub ledger: Ledger,
    pub limit: Option<Limit>,
}

impl Log {
    pub fn status(&self) -> Status {
        let state = self.inner.state.lock();
        let cursors = state
            .cursors
            .iter()
            .map(|(name, cursor)| CursorStatus {
                name: name.clone(),
                low: cursor.low(),
                backlog: state.backlogs.get(name).copied().unwrap_or_default(),
                ledger: state.ledgers.get(name).copied().unwrap_or_default(),
                limit: self.limit_of(name),
            })
            .collect();
        Status {
            segments: state.segments.len() as u64,
            allocated_bytes: state.segments.values().map(|segment| segment.allocated_bytes).sum(),
            next_sequence: state.next_sequence,
            failure: self.inner.failure.lock().clone(),
            cursors,
        }
    }

    /// Why intake is refused at the moment, if it is.
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.lock().clone()
    }
}
