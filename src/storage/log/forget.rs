//! Removing what left the configuration, because a person said so.

use crate::storage::backlog::Weight;
use crate::storage::segment::RECORDS_START;

use super::Log;

impl Log {
    /// Removes the cursor and returns what it had not settled; durable with the next checkpoint.
    pub(in crate::storage) fn forget_cursor(&self, name: &str) -> Option<Weight> {
        let mut state = self.inner.state.lock();
        state.cursors.remove(name)?;
        let backlog = state.backlogs.remove(name).unwrap_or_default();
        state.ledgers.remove(name);
        if backlog.records > 0 {
            // What was given up is not to count as seen.
            state.incarnation = fastrand::u64(1..);
        }
        self.inner.tallies.write().retain(|tally| tally.cursor != name);
        drop(state);
        self.inner.shared.dirty.raise();
        Some(backlog)
    }

    /// Everything in its segments.
    pub(in crate::storage) fn held(&self) -> Weight {
        let state = self.inner.state.lock();
        let weights = state.segments.values().map(|segment| Weight {
            records: segment.records,
            items: segment.items,
            bytes: segment.valid_end - RECORDS_START,
        });
        weights.fold(Weight::default(), |sum, weight| sum.plus(&weight))
    }
}
