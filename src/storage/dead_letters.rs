//! The second log: letters that wait for a person. It is its own truth; what it has taken is synced and stays until a
//! synced tombstone says otherwise.
//!
//! Segments and records are those of the queue's log ([`super::segment`], [`super::record`]), with these meanings:
//! `flags` tells the [`Kind`] of a record, `previous` names the letter that it is about, `received` is when it was
//! parked, `durable end` where in the file its group began. Of several records about one letter the one with the greatest sequence holds. Sequences, and so the ids of
//! letters, begin at the milliseconds since 1970 times 65536: they rise across restarts even when every file is gone.
//!
//! What each segment held when it was sealed is kept beside the directory ([`seals`]), so that what is lost is known.
//!
//! The index is in memory and read off the headers at open. A segment that is less than half alive is written anew into
//! the one in use, and goes; so does a tombstone when no segment has a record of its letter any more.

mod damage;
mod index;
mod located;
mod recover;
mod seals;
mod segments;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::Disk;
use super::record::{METADATA_LEN_MAX, PAYLOAD_LEN_MAX, Record};
use super::space::{Full, Space};
use super::{Durable, segment};

pub use damage::Damage;
use index::Index;
pub use index::Row;
pub use located::Located;
pub use recover::Opened;
use segments::{Active, Entry, Room};
pub use verify::{Verified, verify};

/// Letters that one log may hold; each takes about a hundred bytes of memory.
pub const LETTERS_MAX: usize = 1_000_000;
/// Letters that one tombstone record may name.
const TOMBSTONE_IDS_MAX: usize = METADATA_LEN_MAX / 8;

/// What gives way at the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtCap {
    /// Nothing: [`DeadLetterLog::append`] fails.
    Refuse,
    /// The oldest segment.
    DropOldest,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Allocated bytes, in whole segments.
    pub max_bytes: u64,
    pub at_cap: AtCap,
    /// Ids are not below this.
    pub first_id: u64,
    /// What is found to be lost is told this once, by a process that counts it; a command leaves it for the next start.
    pub settles_damage: bool,
}

impl Options {
    fn segment_bytes(&self) -> u64 {
        (self.max_bytes / 16).clamp(64 << 10, 16 << 20) / segment::HEADER_PAGE_LEN * segment::HEADER_PAGE_LEN
    }
}

/// A letter to be kept.
#[derive(Clone, Debug)]
pub struct NewLetter {
    pub signal: u8,
    pub encoding: u8,
    pub items: u32,
    /// Length of the payload when inflated.
    pub raw_len: u32,
    /// When it was parked; a letter written anew keeps its time.
    pub parked_unix_ns: u64,
    /// Why it is here, as whoever parks it writes it; at most 64 KiB.
    pub description: Bytes,
    pub payload: Bytes,
}

/// A letter as it is kept.
#[derive(Clone, Debug)]
pub struct Letter {
    pub row: Row,
    pub description: Bytes,
    pub payload: Bytes,
    /// What was last noted about it.
    pub note: Option<Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    #[error(
        "the dead-letter queue is full: {allocated_bytes} of {max_bytes} bytes are allocated, {letters} letters wait"
    )]
    Cap { allocated_bytes: u64, max_bytes: u64, letters: usize },
    #[error(
        "{len} bytes of dead letters do not fit into the dead-letter queue even when it is empty: it may hold {max_bytes} \
         bytes; raise dead_letters.max_size well above {len}"
    )]
    NeverFits { len: u64, max_bytes: u64 },
    #[error("no room for dead letters: {0}")]
    Disk(#[from] Full),
    #[error("a letter of {len} bytes is too large for the dead-letter queue")]
    TooLarge { len: u64 },
    #[error("failed to {operation} a dead-letter segment: {cause}")]
    Io { operation: &'static str, cause: io::Error },
    #[error("letter {id:016x} is damaged on disk")]
    Damaged { id: u64 },
}

impl LetterError {
    fn during(operation: &'static str) -> impl FnOnce(io::Error) -> LetterError {
        move |cause| LetterError::Io { operation, cause }
    }

    /// Whether a cap or a full disk is the reason.
    pub fn is_full(&self) -> bool {
        match self {
            LetterError::Cap { .. } | LetterError::NeverFits { .. } | LetterError::Disk(_) => true,
            LetterError::Io { cause, .. } => {
                matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Figures for metrics and messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub letters: u64,
    pub items: u64,
    /// Of the letters' records.
    pub live_bytes: u64,
    pub allocated_bytes: u64,
    pub max_bytes: u64,
    pub oldest_unix_ns: Option<u64>,
    /// Letters that [`AtCap::DropOldest`] gave up.
    pub dropped: u64,
}

#[derive(Debug)]
struct State {
    index: Index,
    active: Option<Active>,
    next_sequence: u64,
    next_segment_id: u64,
    dropped: u64,
}

/// One directory of letters. Its calls read, write and sync: not for async workers.
#[derive(Debug)]
pub struct DeadLetterLog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    /// The process's, for what must stay free on the file system; letters do not count against its cap. None where a
    /// command works on the files alone.
    space: Option<Arc<Space>>,
    state: Mutex<State>,
}

impl DeadLetterLog {
    /// Opens (or makes) the directory. Only one process may have it open: the data directory's lock sees to that.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        space: Option<Arc<Space>>,
    ) -> io::Result<(DeadLetterLog, Opened)> {
        let (index, opened, next_segment_id) = recover::recover(disk.as_ref(), dir, options.settles_damage)?;
        let state = State {
            next_sequence: index.last_sequence().map_or(0, |last| last + 1),
            next_segment_id,
            index,
            active: None,
            dropped: 0,
        };
        Ok((DeadLetterLog { disk, dir: dir.to_owned(), options, space, state: Mutex::new(state) }, opened))
    }

    /// Keeps the letters, all or none, and returns their ids in the same order. They are synced.
    pub fn append(&self, letters: Vec<NewLetter>) -> Result<(Vec<u64>, Durable), LetterError> {
        let mut state = self.state.lock();
        if state.index.len() + letters.len() > LETTERS_MAX {
            return Err(self.at_cap(&state));
        }
        let entries = letters.into_iter().map(|letter| Entry::letter(None, letter)).collect();
        let ids = self.write(&mut state, entries, Room::Capped)?;
        Ok((ids, Durable { sequence: None, _sealed: () }))
    }

    /// Puts another letter in the place of this one, under the same id. False: there is none of that id.
    pub fn replace(&self, id: u64, letter: NewLetter) -> Result<bool, LetterError> {
        let mut state = self.state.lock();
        let Some(before) = state.index.get(id).map(|row| row.stored_len as usize) else { return Ok(false) };
        // Repairs lead to room: at the cap they may go beyond it, but not by what they add.
        let room = if letter.payload.len() < before { Room::Beyond } else { Room::Repair };
        self.write(&mut state, vec![Entry::letter(Some(id), letter)], room)?;
        self.tidy(&mut state);
        Ok(true)
    }

    /// Keeps a letter that another log had under this id, which must not be among those that this one gives out.
    pub fn adopt(&self, id: u64, letter: NewLetter) -> Result<(), LetterError> {
        self.write(&mut self.state.lock(), vec![Entry::letter(Some(id), letter)], Room::Capped).map(drop)
    }

    /// Notes something about a letter, in place of what was noted before.
    pub fn note(&self, id: u64, note: Bytes) -> Result<bool, LetterError> {
        let mut state = self.state.lock();
        if state.index.get(id).is_none() {
            return Ok(false);
        }
        self.write(&mut state, vec![Entry::note(id, note)], Room::Beyond)?;
        Ok(true)
    }

    /// Ends letters for good, synced; returns how many there were.
    pub fn remove(&self, ids: &[u64]) -> Result<usize, LetterError> {
        let mut state = self.state.lock();
        let known: Vec<u64> = ids.iter().copied().filter(|id| state.index.get(*id).is_some()).collect();
        for some in known.chunks(TOMBSTONE_IDS_MAX) {
            self.write(&mut state, vec![Entry::tombstone(some)], Room::Beyond)?;
        }
        self.tidy(&mut state);
        Ok(known.len())
    }

    /// Ends a letter, unless it was replaced since `row` was read; whether it was ended.
    pub fn remove_unchanged(&self, row: &Row) -> Result<bool, LetterError> {
        let mut state = self.state.lock();
        if state.index.get(row.id).is_none_or(|now| !now.is_same_edition(row)) {
            return Ok(false);
        }
        self.write(&mut state, vec![Entry::tombstone(&[row.id])], Room::Beyond)?;
        self.tidy(&mut state);
        Ok(true)
    }

    /// Every letter's row, by id, which is by age.
    pub fn rows(&self) -> Vec<Row> {
        self.state.lock().index.rows().copied().collect()
    }

    pub fn row(&self, id: u64) -> Option<Row> {
        self.state.lock().index.get(id).copied()
    }

    /// A letter with its payload, checked.
    pub fn read(&self, id: u64) -> Result<Option<Letter>, LetterError> {
        let (row, place, note) = {
            let state = self.state.lock();
            let Some(row) = state.index.get(id).copied() else { return Ok(None) };
            (row, state.index.place(&row), state.index.note(id))
        };
        let record = self.record(id, place)?;
        let note = note.map(|place| self.record(id, Some(place))).transpose()?.map(|record| record.metadata);
        Ok(Some(Letter { row, description: record.metadata, payload: record.payload, note }))
    }

    fn record(&self, id: u64, place: Option<index::Place>) -> Result<Record, LetterError> {
        let place = place.ok_or(LetterError::Damaged { id })?;
        place.read().map_err(LetterError::during("read"))?.ok_or(LetterError::Damaged { id })
    }

    pub fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            letters: state.index.len() as u64,
            items: state.index.items(),
            live_bytes: state.index.live_bytes(),
            allocated_bytes: state.index.allocated_bytes(),
            max_bytes: self.options.max_bytes,
            oldest_unix_ns: state.index.rows().next().map(|row| row.parked_unix_ns),
            dropped: state.dropped,
        }
    }

    /// Gives back what is allocated and not used. Writing may go on.
    pub fn close(&self) {
        let mut state = self.state.lock();
        // Ends no letter, but stands behind the last group: without it damage there looks like a write that a crash broke off.
        if state.active.is_some()
            && let Err(error) = self.write(&mut state, vec![Entry::tombstone(&[])], Room::Beyond)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "failed to vouch for the last dead letters; they are kept all the same");
        }
        if state.active.is_some() {
            self.seal(&mut state);
            self.write_seals(&state);
        }
    }

    /// The most that may be allocated, if that counts.
    fn cap(&self, room: Room) -> Option<u64> {
        match room {
            Room::Capped => Some(self.options.max_bytes),
            Room::Repair => Some(self.options.max_bytes + self.options.segment_bytes()),
            Room::Beyond => None,
        }
    }

    /// Why there is no room for records of `needed` bytes.
    fn no_room(&self, state: &State, needed: u64) -> LetterError {
        let max_bytes = self.options.max_bytes;
        if self.segment_len(needed) > max_bytes {
            return LetterError::NeverFits { len: needed, max_bytes };
        }
        self.at_cap(state)
    }

    fn at_cap(&self, state: &State) -> LetterError {
        LetterError::Cap {
            allocated_bytes: state.index.allocated_bytes(),
            max_bytes: self.options.max_bytes,
            letters: state.index.len(),
        }
    }
}

/// Whether a letter of these lengths can be kept at all.
fn check_len(letter: &NewLetter) -> Result<(), LetterError> {
    let len = letter.payload.len() as u64;
    if len > PAYLOAD_LEN_MAX || letter.description.len() > METADATA_LEN_MAX {
        return Err(LetterError::TooLarge { len });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
