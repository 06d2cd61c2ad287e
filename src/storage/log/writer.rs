//! The writer thread: takes what is pending as one group, writes it, syncs once, and only then answers.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::storage::backlog::Weight;
use crate::storage::cursor::Cursor;
use crate::storage::disk::DiskFile;
use crate::storage::record::{self, ALIGN, Header, Record, TRAILER_LEN, end_after};
use crate::storage::segment::{HEADER_PAGE_LEN, Identity, RECORDS_START};

use super::prepare;
use super::{AppendError, Durable, Inbox, Inner, Pending, Segment, SegmentState, State};

/// Bytes written before one sync, so that nobody waits for a giant group.
const GROUP_BYTES_MAX: u64 = 32 << 20;
const GROUP_RECORDS_MAX: usize = 4096;
/// Failures in a row after which intake is refused.
const FAILURES_MAX: u32 = 3;
const RETRY_BACKOFF_MIN: Duration = Duration::from_secs(1);
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long the log must be quiet before a wholly settled segment is sealed, so that its space comes back.
const IDLE_SEAL_AFTER: Duration = Duration::from_secs(5);
/// One index entry for about this many bytes of a segment.
const INDEX_EVERY_BYTES: u64 = 256 << 10;

/// What one step leaves for the next.
pub(super) struct Pace {
    last_sync: Option<Instant>,
    /// Time until the next try while intake is refused.
    backoff: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { last_sync: None, backoff: RETRY_BACKOFF_MIN }
    }
}

pub(super) fn run(inner: &Inner) {
    let mut pace = Pace::default();
    while let Some(group) = next_group(inner, pace.backoff) {
        step(inner, group, &mut pace);
    }
    end(inner);
}

/// Writes a group; with none, tries whether a failed log works again, or gives back what an idle one does not need.
pub(super) fn step(inner: &Inner, group: VecDeque<Pending>, pace: &mut Pace) {
    if !group.is_empty() {
        write_group(inner, group, &mut pace.last_sync);
    } else if inner.failure.lock().is_some() {
        pace.backoff = probe(inner, pace.backoff);
        return;
    } else if inner.state.lock().last_append.is_none_or(|at| at.elapsed() >= IDLE_SEAL_AFTER) {
        rest(inner);
    }
    pace.backoff = RETRY_BACKOFF_MIN;
}

/// Nothing more will be written.
pub(super) fn end(inner: &Inner) {
    let mut state = inner.state.lock();
    seal_active(inner, &mut state);
}

/// Everything pending, up to the limits; empty when nothing came for a while; None when closed and done.
fn next_group(inner: &Inner, backoff: Duration) -> Option<VecDeque<Pending>> {
    let mut inbox = inner.inbox.lock();
    if inbox.pending.is_empty() {
        if inbox.closed {
            return None;
        }
        let timeout = if inner.failure.lock().is_some() { Some(backoff) } else { idle_timeout(inner) };
        match timeout {
            Some(timeout) => {
                inner.inbox_ready.wait_for(&mut inbox, timeout);
            }
            None => inner.inbox_ready.wait(&mut inbox),
        }
        if inbox.pending.is_empty() {
            return if inbox.closed { None } else { Some(VecDeque::new()) };
        }
    }
    Some(take_group(&mut inbox))
}

/// What is pending, up to the limits.
pub(super) fn take_group(inbox: &mut Inbox) -> VecDeque<Pending> {
    let mut bytes = 0;
    let mut count = 0;
    for pending in &inbox.pending {
        let len = pending.record.stored_len();
        if count > 0 && (bytes + len > GROUP_BYTES_MAX || count >= GROUP_RECORDS_MAX) {
            break;
        }
        bytes += len;
        count += 1;
    }
    inbox.pending.drain(..count).collect()
}

/// A quiet log wakes only while there is something to give back.
fn idle_timeout(inner: &Inner) -> Option<Duration> {
    let state = inner.state.lock();
    (state.active.is_some() || state.prepared.is_some() || state.spare.is_some()).then_some(IDLE_SEAL_AFTER)
}

fn write_group(inner: &Inner, mut group: VecDeque<Pending>, last_sync: &mut Option<Instant>) {
    let mut failures = 0;
    while !group.is_empty() {
        let written = ensure_active(inner, group[0].record.stored_len())
            .and_then(|(segment_id, room)| write_prefix(inner, segment_id, room, &mut group, last_sync));
        let Err(error) = written else {
            failures = 0;
            continue;
        };
        inner.shared.observer.failed(&inner.id, error.operation, &error.cause);
        abandon_active(inner);
        if error.cause.kind() == io::ErrorKind::StorageFull || error.cause.kind() == io::ErrorKind::QuotaExceeded {
            return refuse(group, &AppendError::Full(error.to_string()));
        }
        failures += 1;
        if failures >= FAILURES_MAX {
            let reason = error.to_string();
            *inner.failure.lock() = Some(reason.clone());
            return refuse(group, &AppendError::Failed(reason));
        }
    }
}

fn refuse(group: VecDeque<Pending>, error: &AppendError) {
    for pending in group {
        // A client that hung up wants no answer.
        let _ = pending.answer.send(Err(error.clone()));
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} a segment: {cause}")]
pub(super) struct WriteError {
    pub operation: &'static str,
    pub cause: io::Error,
}

impl WriteError {
    pub fn during(operation: &'static str) -> impl FnOnce(io::Error) -> WriteError {
        move |cause| WriteError { operation, cause }
    }
}

/// The active segment and the bytes left in it, at least `needed`; rolls when the present one has not got them.
fn ensure_active(inner: &Inner, needed: u64) -> Result<(u64, u64), WriteError> {
    let mut state = inner.state.lock();
    if let Some(segment) = state.active.and_then(|id| state.segments.get(&id)) {
        let room = segment.allocated_bytes.saturating_sub(segment.valid_end);
        if room >= needed {
            return Ok((segment.identity.id, room));
        }
    }
    seal_active(inner, &mut state);
    drop(state);
    // Waits for the helper if it is at work: its segment has the lower id and must be written first.
    let making = inner.maker.lock();
    let prepared = inner.state.lock().prepared.take();
    let (identity, file) = match prepared {
        Some(prepared) if inner.shared.segment_bytes >= RECORDS_START + needed => prepared,
        unfit => {
            prepare::discard(inner, unfit, None);
            prepare::make(
                inner,
                inner.shared.segment_bytes.max((RECORDS_START + needed).next_multiple_of(HEADER_PAGE_LEN)),
            )?
        }
    };
    drop(making);
    let allocated_bytes = file.size().map_err(WriteError::during("measure"))?;
    let mut state = inner.state.lock();
    let id = identity.id;
    state.segments.insert(
        id,
        Segment {
            identity,
            file,
            state: SegmentState::Active,
            allocated_bytes,
            valid_end: RECORDS_START,
            first: 0,
            previous_end: 0,
            last: 0,
            records: 0,
            items: 0,
            index: Vec::new(),
            is_uncached: false,
            damage_seen: Default::default(),
        },
    );
    state.active = Some(id);
    publish_room(inner, &state);
    Ok((id, allocated_bytes - RECORDS_START))
}

pub(super) fn publish_room(inner: &Inner, state: &State) {
    let active = state.active.and_then(|id| state.segments.get(&id));
    let room = active.map_or(0, |segment| segment.allocated_bytes.saturating_sub(segment.valid_end));
    let prepared = if state.prepared.is_some() { inner.shared.segment_bytes - RECORDS_START } else { 0 };
    inner.room_bytes.store(room + prepared, Ordering::Release);
    if state.prepared.is_none() && active.is_some() && room < inner.shared.segment_bytes / 2 {
        inner.prepare_wanted.raise();
    }
}

/// Writes as many records from the front of the group as fit, syncs, publishes and answers them.
fn write_prefix(
    inner: &Inner,
    segment_id: u64,
    room: u64,
    group: &mut VecDeque<Pending>,
    last_sync: &mut Option<Instant>,
) -> Result<(), WriteError> {
    let mut used = 0;
    let mut count = 0;
    for pending in group.iter() {
        let len = pending.record.stored_len();
        if used + len > room {
            break;
        }
        used += len;
        count += 1;
    }
    debug_assert!(count > 0, "ensure_active made room for the first record");

    let mut state = inner.state.lock();
    let (identity, file, offset): (Identity, Arc<dyn DiskFile>, u64) = {
        let Some(segment) = state.segments.get(&segment_id) else {
            return Err(WriteError { operation: "find", cause: io::ErrorKind::NotFound.into() });
        };
        (segment.identity, Arc::clone(&segment.file), segment.valid_end)
    };
    let first_sequence = state.next_sequence;
    // Numbers are used up even when the write fails: its bytes may surface after a crash.
    state.next_sequence += count as u64;
    let mut previous = state.previous;
    let durable_end = record::end_after(previous);
    drop(state);

    let seed = identity.seed();
    let mut ends = Vec::with_capacity(count);
    for (index, pending) in group.iter().take(count).enumerate() {
        let record = &pending.record;
        let header = Header {
            segment_id,
            sequence: first_sequence + index as u64,
            previous,
            durable_end,
            received_unix_ns: record.received_unix_ns,
            raw_len: record.raw_len,
            stored_len: record.payload.len() as u32,
            metadata_len: record.metadata.len() as u32,
            items: record.items,
            signal: record.signal,
            encoding: record.encoding,
            flags: 0,
        };
        previous = header.sequence;
        let head = header.encode(seed);
        let mut tail = [0; TRAILER_LEN + ALIGN as usize];
        let check = record::trailer(seed, &head, &record.metadata, &record.payload);
        tail[..TRAILER_LEN].copy_from_slice(&check.to_le_bytes());
        let padded = header.record_len() as usize - record::HEADER_LEN - record.metadata.len() - record.payload.len();
        ends.push((head, tail, padded));
    }
    let mut parts = Vec::with_capacity(count * 4);
    for (pending, (head, tail, padded)) in group.iter().zip(&ends) {
        parts.push(IoSlice::new(head));
        if !pending.record.metadata.is_empty() {
            parts.push(IoSlice::new(&pending.record.metadata));
        }
        parts.push(IoSlice::new(&pending.record.payload));
        parts.push(IoSlice::new(&tail[..*padded]));
    }
    file.write_all_at(&mut parts, offset).map_err(WriteError::during("write"))?;
    drop(parts);
    if let Some(earlier) = *last_sync {
        let wait = inner.shared.sync_interval_min.saturating_sub(Instant::elapsed(&earlier));
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
    let started = Instant::now();
    *last_sync = Some(started);
    file.sync_data().map_err(WriteError::during("sync"))?;
    inner.shared.observer.synced(&inner.id, started.elapsed(), count as u64, used);
    publish(inner, segment_id, first_sequence, group.drain(..count));
    Ok(())
}

/// Makes synced records visible to readers and answers their requests.
fn publish(inner: &Inner, segment_id: u64, first_sequence: u64, written: impl Iterator<Item = Pending>) {
    let mut answers = Vec::new();
    let mut state = inner.state.lock();
    let mut sequence = first_sequence;
    let previous = state.previous;
    let mut added = Weight::default();
    for Pending { record, reservation, answer } in written {
        let len = record.stored_len();
        added = added.plus(&record.weight());
        if let Some(segment) = state.segments.get_mut(&segment_id) {
            let indexed = segment.index.last().map_or(RECORDS_START, |(_, offset)| *offset);
            if segment.records == 0 {
                segment.first = sequence;
                segment.previous_end = end_after(previous);
            }
            if segment.records == 0 || segment.valid_end - indexed >= INDEX_EVERY_BYTES {
                segment.index.push((sequence, segment.valid_end));
            }
            segment.last = sequence;
            segment.records += 1;
            segment.items += u64::from(record.items);
            segment.valid_end += len;
        }
        let record = Record {
            sequence,
            signal: record.signal,
            encoding: record.encoding,
            items: record.items,
            raw_len: record.raw_len,
            received_unix_ns: record.received_unix_ns,
            metadata: record.metadata,
            payload: record.payload,
            guard: Some(record.guard),
        };
        state.tail.push(record);
        answers.push((answer, reservation, sequence));
        sequence += 1;
    }
    for backlog in state.backlogs.values_mut() {
        *backlog = backlog.plus(&added);
    }
    for ledger in state.ledgers.values_mut() {
        ledger.accept(added.items);
    }
    state.previous = sequence - 1;
    state.durable_end = sequence;
    state.last_append = Some(Instant::now());
    publish_room(inner, &state);
    drop(state);
    inner.shared.tails.make_room();
    inner.durable_end.send_replace(sequence);
    for (answer, reservation, sequence) in answers {
        reservation.keep();
        // A client that hung up gets no answer; its record is kept all the same.
        let _ = answer.send(Ok(Durable { sequence: Some(sequence), _sealed: () }));
    }
    inner.shared.dirty.raise();
}

fn seal_active(inner: &Inner, state: &mut State) {
    if let Some(id) = state.active.take()
        && let Some(segment) = state.segments.get_mut(&id)
    {
        segment.state = SegmentState::Sealed;
        inner.shared.dirty.raise();
    }
    publish_room(inner, state);
}

/// After a failed write or sync nothing more goes into the segment; its durable part stays.
fn abandon_active(inner: &Inner) {
    let mut state = inner.state.lock();
    if let Some(id) = state.active.take()
        && let Some(segment) = state.segments.get_mut(&id)
    {
        segment.state = SegmentState::Abandoned;
    }
    publish_room(inner, &state);
    drop(state);
    inner.shared.dirty.raise();
}

/// Seals a quiet segment that everyone has settled, and gives back what was kept ready for load.
pub(super) fn rest(inner: &Inner) {
    let mut state = inner.state.lock();
    let settled = state.active.and_then(|id| state.segments.get(&id)).is_some_and(|segment| {
        let all = segment.first..segment.last + 1;
        segment.records > 0 && state.cursors.values().all(|cursor: &Cursor| cursor.has_settled(all.clone()))
    });
    if settled {
        seal_active(inner, &mut state);
    }
    let prepared = state.prepared.take();
    let spare = state.spare.take();
    publish_room(inner, &state);
    drop(state);
    prepare::discard(inner, prepared, spare);
}

/// Tries a fresh segment while intake is refused; returns the time until the next try.
fn probe(inner: &Inner, backoff: Duration) -> Duration {
    match ensure_active(inner, 0) {
        Ok(_) => {
            *inner.failure.lock() = None;
            RETRY_BACKOFF_MIN
        }
        Err(error) => {
            inner.shared.observer.failed(&inner.id, error.operation, &error.cause);
            (backoff * 2).min(RETRY_BACKOFF_MAX)
        }
    }
}
