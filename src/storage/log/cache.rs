//! Segments that somebody has not settled for long leave the page cache: who keeps up reads from memory, and who does not
//! reads them once, much later. The pages that come back are used for what is written next. Without this a dead
//! destination fills the machine's memory, and each write pays for fresh pages (docs/performance.md).

use std::sync::Arc;

use crate::storage::cursor::Cursor;
use crate::storage::disk::DiskFile;

use super::{Log, Segment, SegmentState, State};

/// So many of the newest segments stay: whoever is just behind reads them soon.
const KEPT_SEGMENTS: usize = 2;
/// And so many while nobody has come past them, such as when the only destination is slow to answer.
const KEPT_UNREAD_SEGMENTS: usize = 4;

impl Log {
    /// Lets go of what is not read soon. Call it when segments that everybody has settled are gone.
    pub(in crate::storage) fn uncache(&self) {
        let files = take_cold(&mut self.inner.state.lock());
        files.iter().for_each(|file| file.uncache());
    }
}

/// The files of segments that turned cold since the last time.
fn take_cold(state: &mut State) -> Vec<Arc<dyn DiskFile>> {
    let foremost = state.cursors.values().map(Cursor::low).max().unwrap_or(0);
    let is_cold = |segment: &Segment, newer: usize| {
        let kept = if segment.last < foremost { KEPT_SEGMENTS } else { KEPT_UNREAD_SEGMENTS };
        newer >= kept && segment.state == SegmentState::Sealed && !segment.is_uncached
    };
    let by_age = state.segments.values_mut().rev().enumerate();
    let cold = by_age.filter(|(newer, segment)| is_cold(segment, *newer));
    cold.map(|(_, segment)| {
        segment.is_uncached = true;
        Arc::clone(&segment.file)
    })
    .collect()
}
