//! What a checkpoint writes down, and what may go once that is durable.

use std::collections::BTreeMap;
use std::io;

use crate::storage::catalog::{QueueRow, SegmentRow};
use crate::storage::cursor::Cursor;
use crate::storage::ledger::Ledger;
use crate::storage::record::end_after;
use crate::storage::segment;

use super::prepare::SPARE_PREFIX;
use super::{Log, Segment, SegmentState};

/// One queue at one moment, as a checkpoint sees it.
#[derive(Clone, Debug)]
pub struct QueueSnapshot {
    pub row: QueueRow,
    pub segments: Vec<SegmentRow>,
    pub cursors: BTreeMap<String, Cursor>,
    pub ledgers: BTreeMap<String, Ledger>,
}

impl Log {
    pub fn snapshot(&self) -> QueueSnapshot {
        let state = &mut *self.inner.state.lock();
        // A segment may have lost its own front.
        let floor = state.segments.values().map(|segment| segment.identity.sequence_floor).next();
        state.holes = state.holes.iter().filter(|hole| floor.is_some_and(|floor| hole.end > floor)).collect();
        let segments = state
            .segments
            .values()
            .filter(|segment| segment.state == SegmentState::Sealed && segment.records > 0)
            .map(|segment| SegmentRow {
                id: segment.identity.id,
                nonce: segment.identity.nonce.to_vec(),
                first_sequence: segment.first,
                last_sequence: segment.last,
                records: segment.records,
                valid_end: segment.valid_end,
                sequence_floor: segment.identity.sequence_floor,
                items: segment.items,
                previous_end: segment.previous_end,
            })
            .collect();
        let mut row = QueueRow {
            next_sequence: state.next_sequence,
            next_segment_id: state.next_segment_id,
            durable_end: end_after(state.previous),
            holes: Vec::new(),
            incarnation: state.incarnation,
        };
        row.set_holes(&state.holes);
        QueueSnapshot { row, segments, cursors: state.cursors.clone(), ledgers: state.ledgers.clone() }
    }

    /// Removes (or keeps for recycling) the segments that every one of the cursors `durable` has settled. Call it only
    /// when those are durable. Returns how many went.
    pub fn reclaim(&self, durable: &BTreeMap<String, Cursor>) -> io::Result<u64> {
        let inner = &self.inner;
        if durable.is_empty() {
            return Ok(0);
        }
        let mut gone = Vec::new();
        let mut keep_spare = None;
        {
            let mut state = inner.state.lock();
            // A cursor added after the snapshot holds on to what it has not settled.
            let all_settled = |first: u64, last: u64, cursors: &BTreeMap<String, Cursor>| {
                cursors.values().all(|cursor| cursor.has_settled(first..last + 1))
            };
            let ids: Vec<u64> = state
                .segments
                .values()
                .filter(|segment| segment.state != SegmentState::Active)
                .filter(|segment| {
                    segment.records == 0
                        || (all_settled(segment.first, segment.last, durable)
                            && all_settled(segment.first, segment.last, &state.cursors))
                })
                .map(|segment| segment.identity.id)
                .collect();
            let busy = state.active.is_some();
            for id in ids {
                let Some(segment) = state.segments.remove(&id) else { continue };
                let recyclable = segment.allocated_bytes == inner.shared.segment_bytes
                    && segment.state == SegmentState::Sealed
                    && busy
                    && state.spare.is_none()
                    && keep_spare.is_none();
                if recyclable {
                    keep_spare = Some(segment);
                } else {
                    gone.push(segment);
                }
            }
        }
        let mut count = 0;
        let mut failure = None;
        // What cannot go stays, counted and known, for the next checkpoint; the others go all the same.
        let mut stays = |segment: Segment, error: io::Error| {
            inner.state.lock().segments.insert(segment.identity.id, segment);
            failure.get_or_insert(error);
        };
        let disk = &inner.shared.disk;
        if let Some(segment) = keep_spare {
            let id = segment.identity.id;
            let path = inner.dir.join(format!("{SPARE_PREFIX}{id:016x}"));
            match disk.rename(&segment::path_in(&inner.dir, id), &path) {
                Ok(()) => {
                    inner.state.lock().spare = Some((path, segment.file));
                    count += 1;
                }
                // Somebody removed it. Everyone had settled it, and its room is free.
                Err(error) if error.kind() == io::ErrorKind::NotFound => gone.push(segment),
                Err(error) => stays(segment, error),
            }
        }
        for segment in gone {
            let path = segment::path_in(&inner.dir, segment.identity.id);
            match disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => stays(segment, error),
                removed => {
                    if removed.is_err() {
                        tracing::warn!(path = %path.display(), "a segment that was delivered had been removed by somebody else");
                    }
                    inner.shared.space.subtract(segment.allocated_bytes);
                    count += 1;
                }
            }
        }
        if count > 0 {
            disk.sync_dir(&inner.dir)?;
        }
        failure.map_or(Ok(count), Err)
    }
}
