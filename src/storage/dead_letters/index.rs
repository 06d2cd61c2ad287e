//! Which letters there are, where each lies, and how much of each segment is alive.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::disk::DiskFile;
use crate::storage::record::{self, Header, Record};
use crate::storage::segment::{Identity, RECORDS_START};

use super::seals::SealRow;
use super::segments::Kind;

/// One letter, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: u64,
    pub signal: u8,
    pub encoding: u8,
    pub items: u32,
    pub raw_len: u32,
    pub stored_len: u32,
    pub parked_unix_ns: u64,
    /// Changes when it is replaced, not when it is moved.
    edition: u64,
    sequence: u64,
    segment: u64,
    offset: u64,
    record_len: u64,
}

impl Row {
    /// Whether nobody replaced the letter between the two.
    pub fn is_same_edition(&self, other: &Row) -> bool {
        self.id == other.id && self.edition == other.edition
    }
}

/// Where a record lies.
#[derive(Clone, Debug)]
pub(super) struct Place {
    file: Arc<dyn DiskFile>,
    identity: Identity,
    offset: u64,
    record_len: u64,
}

impl Place {
    /// The record, or None when its bytes are not what was written.
    pub fn read(&self) -> io::Result<Option<Record>> {
        let mut bytes = vec![0; self.record_len as usize];
        let read = self.file.read_at(&mut bytes, self.offset)?;
        bytes.truncate(read);
        Ok(record::decode(&Bytes::from(bytes), self.identity.id, self.identity.seed()).map(|(_, record)| record))
    }

    /// The record's metadata alone, without its payload of that length, which the check at the end covers too: only the
    /// header is checked. None when that is not what was written.
    pub fn read_metadata(&self, payload_len: u32) -> io::Result<Option<Bytes>> {
        let mut bytes = vec![0; self.record_len.saturating_sub(u64::from(payload_len)) as usize];
        let read = self.file.read_at(&mut bytes, self.offset)?;
        bytes.truncate(read);
        let header = Header::decode(&bytes, self.identity.id, self.identity.seed());
        let end = header.map(|header| record::HEADER_LEN + header.metadata_len as usize);
        Ok(end.filter(|end| *end <= bytes.len()).map(|end| Bytes::from(bytes).slice(record::HEADER_LEN..end)))
    }
}

/// One file.
#[derive(Debug)]
pub(super) struct SegmentRow {
    pub identity: Identity,
    pub file: Arc<dyn DiskFile>,
    pub allocated_bytes: u64,
    /// End of the last record.
    pub end: u64,
    /// Nothing more is written to it.
    pub is_sealed: bool,
    /// Damage in here that was told: offset, length, and so on.
    pub told: Vec<u64>,
    /// Where its seal says that it ends, and how many records of letters lie before; None: as it is.
    seal: Option<(u64, u64)>,
    live_bytes: u64,
    last_sequence: u64,
    letter_records: u64,
    /// Letters with a record in here, alive or not.
    letters: BTreeSet<u64>,
    /// Letters that a tombstone in here ends.
    ended: BTreeSet<u64>,
}

impl SegmentRow {
    /// Letters that were new in here have these ids.
    fn born(&self) -> RangeInclusive<u64> {
        self.identity.sequence_floor..=self.last_sequence
    }

    /// What its seal tells of.
    pub fn expect(&mut self, seal: &SealRow) {
        self.seal_at(seal.end, seal.letters);
        self.told = seal.told.clone();
        self.last_sequence = self.last_sequence.max(seal.last_sequence);
        self.is_sealed = true;
    }

    /// It was found, and so much of it is expected to be there from now on.
    pub fn seal_at(&mut self, end: u64, letters: u64) {
        self.seal = Some((end, letters));
    }
}

#[derive(Clone, Copy, Debug)]
struct NoteRow {
    sequence: u64,
    segment: u64,
    offset: u64,
    record_len: u64,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    rows: BTreeMap<u64, Row>,
    notes: HashMap<u64, NoteRow>,
    /// The sequence of the tombstone that ended a letter, while some segment has a record of it.
    ended: HashMap<u64, u64>,
    pub segments: BTreeMap<u64, SegmentRow>,
    /// Of segments that are gone, which is still to be told.
    pub missing: Vec<SealRow>,
    last_sequence: Option<u64>,
    items: u64,
}

impl Index {
    pub fn add_segment(&mut self, identity: Identity, file: Arc<dyn DiskFile>, allocated_bytes: u64, end: u64) {
        let row = SegmentRow {
            identity,
            file,
            allocated_bytes,
            end,
            is_sealed: false,
            told: Vec::new(),
            seal: None,
            live_bytes: 0,
            last_sequence: identity.sequence_floor,
            letter_records: 0,
            letters: BTreeSet::new(),
            ended: BTreeSet::new(),
        };
        self.last_sequence = self.last_sequence.max(identity.sequence_floor.checked_sub(1));
        self.segments.insert(identity.id, row);
    }

    /// Takes in a record of that header at `offset`; `metadata` is asked for where it is needed.
    pub fn take(&mut self, header: &Header, offset: u64, ended: &[u64]) {
        self.last_sequence = self.last_sequence.max(Some(header.sequence));
        let record_len = header.record_len();
        let (sequence, segment) = (header.sequence, header.segment_id);
        self.touch(segment, |segment| segment.last_sequence = segment.last_sequence.max(sequence));
        match Kind::of(header) {
            Some(Kind::Letter) => {
                let id = header.previous;
                self.touch(segment, |segment| {
                    segment.letters.insert(id);
                    segment.letter_records += 1;
                });
                let newer = self.rows.get(&id).is_none_or(|row| row.sequence < sequence);
                if !newer || self.ended.get(&id).is_some_and(|end| *end > sequence) {
                    return;
                }
                self.forget_row(id);
                let row = Row {
                    id,
                    signal: header.signal,
                    encoding: header.encoding,
                    items: header.items,
                    raw_len: header.raw_len,
                    stored_len: header.stored_len,
                    parked_unix_ns: header.received_unix_ns,
                    edition: sequence,
                    sequence,
                    segment,
                    offset,
                    record_len,
                };
                self.items += u64::from(row.items);
                self.rows.insert(id, row);
                self.touch(segment, |segment| segment.live_bytes += record_len);
            }
            Some(Kind::Note) => {
                let id = header.previous;
                self.touch(segment, |segment| {
                    segment.letters.insert(id);
                });
                let newer = self.notes.get(&id).is_none_or(|note| note.sequence < sequence);
                if !newer || self.ended.get(&id).is_some_and(|end| *end > sequence) {
                    return;
                }
                self.forget_note(id);
                self.notes.insert(id, NoteRow { sequence, segment, offset, record_len });
                self.touch(segment, |segment| segment.live_bytes += record_len);
            }
            Some(Kind::Tombstone) => {
                for id in ended {
                    self.touch(segment, |segment| {
                        segment.ended.insert(*id);
                    });
                    let end = self.ended.entry(*id).or_default();
                    *end = (*end).max(sequence);
                    if self.rows.get(id).is_some_and(|row| row.sequence < sequence) {
                        self.forget_row(*id);
                    }
                    if self.notes.get(id).is_some_and(|note| note.sequence < sequence) {
                        self.forget_note(*id);
                    }
                }
            }
            None => {}
        }
    }

    fn touch(&mut self, segment: u64, change: impl FnOnce(&mut SegmentRow)) {
        if let Some(row) = self.segments.get_mut(&segment) {
            change(row);
        }
    }

    fn forget_row(&mut self, id: u64) {
        if let Some(row) = self.rows.remove(&id) {
            self.items -= u64::from(row.items);
            self.touch(row.segment, |segment| segment.live_bytes -= row.record_len);
        }
    }

    fn forget_note(&mut self, id: u64) {
        if let Some(note) = self.notes.remove(&id) {
            self.touch(note.segment, |segment| segment.live_bytes -= note.record_len);
        }
    }

    /// Notes whose letters are nowhere: their letters were lost to damage.
    pub fn drop_orphans(&mut self) {
        let orphans: Vec<u64> = self.notes.keys().copied().filter(|id| !self.rows.contains_key(id)).collect();
        for id in orphans {
            self.forget_note(id);
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn items(&self) -> u64 {
        self.items
    }

    pub fn get(&self, id: u64) -> Option<&Row> {
        self.rows.get(&id)
    }

    /// The letter was moved, and is as it was in `before`.
    pub fn keep_edition(&mut self, before: &Row) {
        if let Some(row) = self.rows.get_mut(&before.id) {
            row.edition = before.edition;
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    pub fn rows_after(&self, after: Option<u64>) -> impl Iterator<Item = &Row> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.rows.range((start, Bound::Unbounded)).map(|(_, row)| row)
    }

    pub fn place(&self, row: &Row) -> Option<Place> {
        self.at(row.segment, row.offset, row.record_len)
    }

    pub fn note(&self, id: u64) -> Option<Place> {
        let note = self.notes.get(&id)?;
        self.at(note.segment, note.offset, note.record_len)
    }

    fn at(&self, segment: u64, offset: u64, record_len: u64) -> Option<Place> {
        let segment = self.segments.get(&segment)?;
        Some(Place { file: Arc::clone(&segment.file), identity: segment.identity, offset, record_len })
    }

    /// What each segment holds, to be written down beside them.
    pub fn seals(&self) -> Vec<SealRow> {
        let row = |segment: &SegmentRow| {
            let (end, letters) = segment.seal.unwrap_or((segment.end, segment.letter_records));
            let row = SealRow {
                id: segment.identity.id,
                nonce: segment.identity.nonce.to_vec(),
                sequence_floor: segment.identity.sequence_floor,
                ..SealRow::default()
            };
            match segment.is_sealed {
                true => SealRow {
                    is_sealed: true,
                    end,
                    last_sequence: segment.last_sequence,
                    letters,
                    told: segment.told.clone(),
                    ended: segment.ended.range(segment.born()).count() as u64,
                    ..row
                },
                false => row,
            }
        };
        let mut rows: Vec<SealRow> = self.segments.values().map(row).chain(self.missing.iter().cloned()).collect();
        rows.sort_by_key(|row| row.id);
        rows
    }

    /// Letters with these ids that have no record in the segment, and were ended or have one elsewhere.
    pub fn settled_elsewhere(&self, segment: u64, ids: RangeInclusive<u64>) -> u64 {
        let here = self.segments.get(&segment).map(|segment| &segment.letters);
        let is_here = |id: &u64| here.is_some_and(|letters| letters.contains(id));
        let ended = self.ended.keys().filter(|id| ids.contains(id) && !is_here(id)).count();
        let elsewhere = |id: &&u64| !is_here(id) && !self.ended.contains_key(id);
        (ended + self.rows.range(ids.clone()).map(|(id, _)| id).filter(elsewhere).count()) as u64
    }

    pub fn live_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.live_bytes).sum()
    }

    pub fn allocated_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.allocated_bytes).sum()
    }

    pub fn last_sequence(&self) -> Option<u64> {
        self.last_sequence
    }

    /// Letters and notes that live in a segment, and the tombstones in it that are still needed elsewhere.
    pub fn contents(&self, segment: u64) -> Contents {
        let Some(row) = self.segments.get(&segment) else { return Contents::default() };
        let needed = |id: &&u64| {
            self.segments.iter().any(|(other, row)| *other != segment && row.letters.contains(id))
                && !self.segments.iter().any(|(other, row)| *other > segment && row.ended.contains(id))
        };
        Contents {
            letters: row.letters.iter().copied().filter(|id| self.lies_in(*id, segment)).collect(),
            notes: row
                .letters
                .iter()
                .copied()
                .filter(|id| self.notes.get(id).is_some_and(|note| note.segment == segment))
                .collect(),
            ended: row.ended.iter().filter(needed).copied().collect(),
        }
    }

    fn lies_in(&self, id: u64, segment: u64) -> bool {
        self.rows.get(&id).is_some_and(|row| row.segment == segment)
    }

    /// Forgets a segment whose file is going; letters that still lie in it are gone. Returns how many.
    pub fn remove_segment(&mut self, segment: u64) -> u64 {
        let contents = self.contents(segment);
        for id in &contents.letters {
            self.forget_row(*id);
            self.forget_note(*id);
        }
        for id in &contents.notes {
            self.forget_note(*id);
        }
        if let Some(row) = self.segments.remove(&segment) {
            for id in row.letters {
                if !self.segments.values().any(|row| row.letters.contains(&id)) {
                    self.ended.remove(&id);
                }
            }
        }
        contents.letters.len() as u64
    }

    /// The oldest segment that is less than half alive, without those that `is_exempt`.
    pub fn wasteful(&self, is_exempt: impl Fn(u64) -> bool) -> Option<u64> {
        let is_wasteful = |row: &SegmentRow| row.live_bytes * 2 < (row.end - RECORDS_START).max(1);
        self.segments.iter().find(|(id, row)| !is_exempt(**id) && is_wasteful(row)).map(|(id, _)| *id)
    }
}

/// What has to be written elsewhere before a segment goes.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub letters: Vec<u64>,
    pub notes: Vec<u64>,
    pub ended: Vec<u64>,
}
