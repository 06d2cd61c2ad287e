//! Writing: records into the segment in use, new segments, and segments that are written anew to get room back.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::clock::unix_now_ns;
use crate::storage::disk::DiskFile;
use crate::storage::record::{self, ALIGN, Header, TRAILER_LEN};
use crate::storage::segment::{self, HEADER_PAGE_LEN, Identity, RECORDS_START};

use super::seals;
use super::{AtCap, DeadLetterLog, LetterError, NewLetter, State, TOMBSTONE_IDS_MAX, check_len};

/// Beginnings of names that are no segments yet; removed at open.
pub(super) const TEMPORARY_PREFIX: &str = "new.";
/// Bytes of letters that are written anew before one sync.
const MOVE_BYTES_MAX: u64 = 8 << 20;

/// Whether the cap counts. What leads to room, tombstones and segments written anew, may go beyond it for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Capped,
    /// It may be passed by one segment, for letters that grow while they are mended.
    Repair,
    Beyond,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Letter = 0,
    Tombstone = 1,
    Note = 2,
}

impl Kind {
    pub fn of(header: &Header) -> Option<Kind> {
        [Kind::Letter, Kind::Tombstone, Kind::Note].into_iter().find(|kind| *kind as u16 == header.flags)
    }
}

/// The letters that a tombstone names.
pub(super) fn tombstone_ids(metadata: &[u8]) -> Vec<u64> {
    metadata.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}

/// A record to be written.
#[derive(Debug)]
pub(super) struct Entry {
    kind: Kind,
    /// The letter it is about; None: a new one, whose id is its sequence.
    id: Option<u64>,
    letter: NewLetter,
}

impl Entry {
    pub fn letter(id: Option<u64>, letter: NewLetter) -> Entry {
        Entry { kind: Kind::Letter, id, letter }
    }

    pub fn note(id: u64, note: Bytes) -> Entry {
        Entry { kind: Kind::Note, id: Some(id), letter: without_payload(note) }
    }

    /// At most [`TOMBSTONE_IDS_MAX`].
    pub fn tombstone(ids: &[u64]) -> Entry {
        let metadata: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Entry { kind: Kind::Tombstone, id: Some(0), letter: without_payload(Bytes::from(metadata)) }
    }

    fn record_len(&self) -> u64 {
        record::record_len(self.letter.description.len(), self.letter.payload.len())
    }
}

fn without_payload(description: Bytes) -> NewLetter {
    NewLetter {
        signal: 0,
        encoding: 0,
        items: 0,
        raw_len: 0,
        parked_unix_ns: unix_now_ns(),
        description,
        payload: Bytes::new(),
    }
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Active {
    pub identity: Identity,
    file: Arc<dyn DiskFile>,
    allocated_bytes: u64,
    end: u64,
}

impl Active {
    /// What it gives back when it is sealed.
    fn unused_bytes(&self) -> u64 {
        self.allocated_bytes - self.end.next_multiple_of(HEADER_PAGE_LEN)
    }
}

impl DeadLetterLog {
    /// Of a fresh segment with room for records of so many bytes.
    pub(super) fn segment_len(&self, needed: u64) -> u64 {
        (RECORDS_START + needed).next_multiple_of(HEADER_PAGE_LEN).max(self.options.segment_bytes())
    }

    /// Writes and syncs the records as one, rolling first when they do not fit; returns the letters' ids.
    pub(super) fn write(&self, state: &mut State, entries: Vec<Entry>, room: Room) -> Result<Vec<u64>, LetterError> {
        entries.iter().try_for_each(|entry| check_len(&entry.letter))?;
        let needed: u64 = entries.iter().map(Entry::record_len).sum();
        let fits = |active: &Active| active.allocated_bytes - active.end >= needed;
        if !state.active.as_ref().is_some_and(fits) {
            // Before the segment in use gives back its room, which a smaller group may need.
            if let (Some(cap), AtCap::Refuse) = (self.cap(room), self.options.at_cap) {
                let unused = state.active.as_ref().map_or(0, Active::unused_bytes);
                if state.index.allocated_bytes() - unused + self.segment_len(needed) > cap {
                    return Err(self.no_room(state, needed));
                }
            }
            self.seal(state);
            state.active = Some(self.roll(state, needed, room)?);
        }
        match self.write_active(state, &entries) {
            Ok(ids) => Ok(ids),
            Err(error) => {
                // After a failed write or sync nothing more goes into that segment, and nobody may find what was cut off.
                self.seal(state);
                Err(error)
            }
        }
    }

    fn write_active(&self, state: &mut State, entries: &[Entry]) -> Result<Vec<u64>, LetterError> {
        let Some(active) = &mut state.active else { return Err(self.at_cap(state)) };
        let seed = active.identity.seed();
        let first = state.next_sequence.max(self.options.first_id | (unix_now_ns() / 1_000_000) << 16);
        let mut offset = active.end;
        let mut written = Vec::with_capacity(entries.len());
        let mut frames = Vec::with_capacity(entries.len());
        for (sequence, entry) in (first..).zip(entries) {
            let letter = &entry.letter;
            let header = Header {
                segment_id: active.identity.id,
                sequence,
                previous: entry.id.unwrap_or(sequence),
                durable_end: active.end,
                received_unix_ns: letter.parked_unix_ns,
                raw_len: letter.raw_len,
                stored_len: letter.payload.len() as u32,
                metadata_len: letter.description.len() as u32,
                items: letter.items,
                signal: letter.signal,
                encoding: letter.encoding,
                flags: entry.kind as u16,
            };
            let head = header.encode(seed);
            let mut tail = [0; TRAILER_LEN + ALIGN as usize];
            let check = record::trailer(seed, &head, &letter.description, &letter.payload);
            tail[..TRAILER_LEN].copy_from_slice(&check.to_le_bytes());
            let tail_len =
                entry.record_len() as usize - record::HEADER_LEN - letter.description.len() - letter.payload.len();
            frames.push((head, tail, tail_len));
            written.push((header, offset));
            offset += entry.record_len();
        }
        // Used up even when the write fails: its bytes may surface after a crash.
        state.next_sequence = first + entries.len() as u64;
        let mut parts = Vec::with_capacity(entries.len() * 4);
        for (entry, (head, tail, tail_len)) in entries.iter().zip(&frames) {
            for part in [&head[..], &entry.letter.description, &entry.letter.payload, &tail[..*tail_len]] {
                if !part.is_empty() {
                    parts.push(IoSlice::new(part));
                }
            }
        }
        active.file.write_all_at(&mut parts, active.end).map_err(LetterError::during("write"))?;
        active.file.sync_data().map_err(LetterError::during("sync"))?;
        active.end = offset;
        let id = active.identity.id;
        if let Some(segment) = state.index.segments.get_mut(&id) {
            segment.end = offset;
        }
        for ((header, offset), entry) in written.iter().zip(entries) {
            let ended =
                if entry.kind == Kind::Tombstone { tombstone_ids(&entry.letter.description) } else { Vec::new() };
            state.index.take(header, *offset, &ended);
        }
        Ok(written.iter().map(|(header, _)| header.previous).collect())
    }

    /// Nothing more is written to the segment in use: what it has not filled goes back.
    pub(super) fn seal(&self, state: &mut State) {
        let Some(active) = state.active.take() else { return };
        let len = active.end.next_multiple_of(HEADER_PAGE_LEN);
        if let Err(error) = active.file.set_len(len).and_then(|()| active.file.sync_data()) {
            tracing::warn!(dir = %self.dir.display(), %error, "failed to shorten a dead-letter segment; it keeps its size");
            return;
        }
        if let Some(segment) = state.index.segments.get_mut(&active.identity.id) {
            segment.allocated_bytes = len;
            segment.is_sealed = true;
        }
        if let Some(space) = &self.space {
            space.came_back(active.allocated_bytes - len);
        }
    }

    /// Writes down what each segment holds. That it fails costs what can be told of later damage, and no letter.
    pub(super) fn write_seals(&self, state: &State) {
        if let Err(error) = seals::write(self.disk.as_ref(), &self.dir, state.index.seals()) {
            tracing::warn!(path = %seals::path(&self.dir).display(), %error, "failed to write down what the dead-letter segments hold");
        }
    }

    /// A fresh segment with room for `needed`, its name durable.
    fn roll(&self, state: &mut State, needed: u64, room: Room) -> Result<Active, LetterError> {
        let len = self.segment_len(needed);
        while self.cap(room).is_some_and(|cap| state.index.allocated_bytes() + len > cap) {
            let oldest = state.index.segments.keys().next().copied();
            match (self.options.at_cap, oldest) {
                (AtCap::DropOldest, Some(oldest)) => state.dropped += self.remove_segment(state, oldest)?,
                _ => return Err(self.no_room(state, needed)),
            }
        }
        if let Some(space) = &self.space {
            space.check_floor(len)?;
        }
        let id = state.next_segment_id;
        state.next_segment_id += 1;
        let mut nonce = [0; 16];
        nonce.fill_with(|| fastrand::u8(..));
        let identity = Identity { id, nonce, sequence_floor: state.next_sequence };
        let temporary = self.dir.join(format!("{TEMPORARY_PREFIX}{id:016x}"));
        let path = segment::path_in(&self.dir, id);
        let file = self.disk.create(&temporary, len).map_err(LetterError::during("allocate"))?;
        let finish = || {
            let page = identity.encode();
            file.write_all_at(&mut [IoSlice::new(&page)], 0).map_err(LetterError::during("write the header of"))?;
            file.sync_data().map_err(LetterError::during("sync the header of"))?;
            self.disk.rename_new(&temporary, &path).map_err(LetterError::during("name"))?;
            self.disk.sync_dir(&self.dir).map_err(LetterError::during("sync the directory of"))
        };
        if let Err(error) = finish() {
            // Whatever is left of it is swept up at the next open: an empty segment, if its name was given.
            let _ = self.disk.remove(&temporary);
            return Err(error);
        }
        state.index.add_segment(identity, Arc::clone(&file), len, RECORDS_START);
        self.write_seals(state);
        Ok(Active { identity, file, allocated_bytes: len, end: RECORDS_START })
    }

    /// Writes anew what lives in segments that are less than half alive, and removes them. What fails is tried again
    /// after the next change; nothing is lost by it.
    pub(super) fn tidy(&self, state: &mut State) {
        let mut left_alone = Vec::new();
        // Each round removes a segment and writes less than half of one, or leaves one alone: it ends.
        loop {
            let active = state.active.as_ref().map(|active| active.identity.id);
            let Some(segment) = state.index.wasteful(|id| Some(id) == active || left_alone.contains(&id)) else {
                return;
            };
            let moved = self.move_out(state, segment).and_then(|()| self.remove_segment(state, segment));
            match moved {
                Ok(_) => {}
                // The file is the only place where a damaged letter might still be read from by other means.
                Err(LetterError::Damaged { .. }) => left_alone.push(segment),
                Err(error) => {
                    tracing::warn!(dir = %self.dir.display(), %error, "dead-letter segments are not tidied now");
                    return;
                }
            }
        }
    }

    fn move_out(&self, state: &mut State, segment: u64) -> Result<(), LetterError> {
        let contents = state.index.contents(segment);
        let mut entries = Vec::new();
        let mut moved = Vec::new();
        let mut bytes = 0;
        for some in contents.ended.chunks(TOMBSTONE_IDS_MAX) {
            entries.push(Entry::tombstone(some));
        }
        for id in contents.letters {
            let Some(row) = state.index.get(id).copied() else { continue };
            let record = self.record(id, state.index.place(&row))?;
            let letter = NewLetter {
                signal: row.signal,
                encoding: row.encoding,
                items: row.items,
                raw_len: row.raw_len,
                parked_unix_ns: row.parked_unix_ns,
                description: record.metadata,
                payload: record.payload,
            };
            entries.push(Entry::letter(Some(id), letter));
            moved.push(row);
            bytes += row.stored_len as u64;
            if bytes >= MOVE_BYTES_MAX {
                self.write(state, std::mem::take(&mut entries), Room::Beyond)?;
                bytes = 0;
            }
        }
        for id in contents.notes {
            let record = self.record(id, state.index.note(id))?;
            entries.push(Entry::note(id, record.metadata));
        }
        if !entries.is_empty() {
            self.write(state, entries, Room::Beyond)?;
        }
        moved.iter().for_each(|row| state.index.keep_edition(row));
        Ok(())
    }

    /// Returns how many letters went with it.
    fn remove_segment(&self, state: &mut State, id: u64) -> Result<u64, LetterError> {
        let Some(segment) = state.index.segments.get(&id) else { return Ok(0) };
        let allocated_bytes = segment.allocated_bytes;
        // Before it goes: nobody may miss it.
        let others = state.index.seals().into_iter().filter(|row| row.id != id).collect();
        seals::write(self.disk.as_ref(), &self.dir, others).map_err(LetterError::during("write down the end of"))?;
        self.disk.remove(&segment::path_in(&self.dir, id)).map_err(LetterError::during("remove"))?;
        let lost = state.index.remove_segment(id);
        if let Some(space) = &self.space {
            space.came_back(allocated_bytes);
        }
        self.disk.sync_dir(&self.dir).map_err(LetterError::during("sync the directory of"))?;
        Ok(lost)
    }
}
