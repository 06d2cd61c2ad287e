//! What a data directory holds, found by looking: no lock is taken, nothing is written, and its owner may be at work.
//!
//! Cursors come from the witness, which is as old as the last checkpoint; sled cannot be read beside its owner. What
//! a busy owner changes meanwhile is looked at again before it is called damage.

mod walk;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::catalog::{self, QueueRow};
use super::cursor::Cursor;
use super::dead_letters;
use super::disk::Disk;
use super::ranges::RangeSet;
use super::read_only::{self, ReadOnlyDisk};
use super::store::StoreError;
use super::witness::{self, Account};

pub use walk::Depth;

/// A data directory as it was found.
#[derive(Debug, Serialize)]
pub struct Survey {
    pub data_dir: String,
    pub format: String,
    /// The process that uses it at the moment.
    pub owner_pid: Option<u32>,
    /// None: there is no valid witness, and the cursors are unknown here.
    pub generation: Option<u64>,
    pub checkpoint: Option<u64>,
    pub queues: Vec<QueueSurvey>,
    /// Where every record was read: the dead letters, and the ring of what was malformed.
    pub dead_letters: Vec<LettersSurvey>,
    /// Copies of a catalogue that were set aside.
    pub catalogs_set_aside: Vec<String>,
}

/// One directory of dead letters.
#[derive(Debug, Serialize)]
pub struct LettersSurvey {
    pub directory: String,
    pub letters: u64,
    pub segments: u64,
    pub allocated_bytes: u64,
    pub damage: Vec<LettersDamage>,
}

#[derive(Debug, Serialize)]
pub struct LettersDamage {
    /// Letters that are lost, at the most; None where nothing tells how many.
    pub letters: Option<u64>,
    pub reason: String,
}

#[derive(Debug, Default, Serialize)]
pub struct QueueSurvey {
    pub queue: String,
    pub records: u64,
    pub items: u64,
    pub allocated_bytes: u64,
    pub next_sequence: u64,
    pub segments: Vec<SegmentSurvey>,
    pub cursors: Vec<CursorSurvey>,
    pub damage: Vec<Damage>,
    /// Segment files that an opening set aside because nothing in them could be read.
    pub set_aside: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct SegmentSurvey {
    /// Hexadecimal, as in the file's name.
    pub segment: String,
    pub allocated_bytes: u64,
    /// Up to the end of the last record.
    pub used_bytes: u64,
    pub records: u64,
    pub items: u64,
    pub first_sequence: Option<u64>,
    pub last_sequence: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct CursorSurvey {
    pub exporter: String,
    /// The lowest sequence that is not settled.
    pub low: u64,
    /// Ranges settled beyond it.
    pub ranges_above: u64,
    pub lag_records: u64,
    pub lag_items: u64,
    pub lag_bytes: u64,
    /// When the oldest record that it has not settled was received (ns since 1970).
    pub oldest_unix_ns: Option<u64>,
}

/// Bytes that are no record where records should be, or records that are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub segment: String,
    pub offset: u64,
    pub bytes: u64,
    /// Sequences that some exporter still needs and that are gone: from, to (exclusive).
    pub sequences: Option<(u64, u64)>,
    pub reason: String,
}

impl Survey {
    pub fn is_damaged(&self) -> bool {
        self.queues.iter().any(|queue| !queue.damage.is_empty())
            || self.dead_letters.iter().any(|letters| !letters.damage.is_empty())
    }
}

/// Looks at the whole data directory. [`Depth::Records`] reads and checks every byte.
pub fn survey(dir: &Path, depth: Depth) -> Result<Survey, StoreError> {
    let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk);
    survey_on(&disk, dir, depth)
}

pub(super) fn survey_on(disk: &Arc<dyn Disk>, dir: &Path, depth: Depth) -> Result<Survey, StoreError> {
    let entries = disk.list(dir).map_err(StoreError::io("read", dir))?;
    if !entries.iter().any(|entry| entry.name == "FORMAT") {
        let cause = io::Error::new(io::ErrorKind::NotFound, "there is no FORMAT file in it: it is no data directory");
        return Err(StoreError::io("read", dir)(cause));
    }
    let format = super::store::format::check(disk.as_ref(), dir).map(|_| "1".to_owned())?;
    let account = read_witness(disk, dir)?;
    let queues_dir = dir.join("queues");
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    match disk.list(&queues_dir) {
        Ok(found) => {
            let queues = found.iter().filter(|entry| entry.is_dir);
            names.extend(queues.filter_map(|entry| Some((catalog::queue_of_dir(&entry.name)?, entry.name.clone()))));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io("list", &queues_dir)(error)),
    }
    for name in account.iter().flat_map(|account| account.queues.keys()) {
        names.entry(name.clone()).or_insert_with(|| catalog::encode_name(name));
    }
    let mut found = Vec::new();
    for (name, encoded) in &names {
        let queue_dir = queues_dir.join(encoded);
        found.push((name, walk::queue(disk, &queue_dir, &cursors_of(account.as_ref(), name), depth)?));
    }
    // Segments that went while we looked had been settled by then.
    let later = read_witness(disk, dir)?;
    let mut queues = Vec::new();
    for (name, mut queue) in found {
        let mut cursors = cursors_of(account.as_ref(), name);
        for (exporter, cursor) in cursors_of(later.as_ref(), name) {
            cursors.entry(exporter).or_default().merge(&cursor);
        }
        let (before, row) = (row_of(account.as_ref(), name), row_of(later.as_ref(), name));
        let mut holes = RangeSet::new();
        before.holes().chain(row.holes()).for_each(|hole| holes.insert(hole));
        queue.note_missing(&cursors, before.durable_end, &holes);
        queue.survey.queue = name.clone();
        queue.survey.next_sequence = queue.survey.next_sequence.max(row.next_sequence);
        queues.push(queue.survey);
    }
    let meta = later.as_ref().map(Account::meta);
    Ok(Survey {
        data_dir: dir.display().to_string(),
        format,
        owner_pid: read_only::owner(dir),
        generation: meta.map(|meta| meta.generation),
        checkpoint: meta.map(|meta| meta.checkpoint),
        queues,
        dead_letters: if depth == Depth::Records { letters(disk, dir)? } else { Vec::new() },
        catalogs_set_aside: entries
            .iter()
            .filter(|entry| entry.name.starts_with("catalog.damaged"))
            .map(|entry| entry.name.clone())
            .collect(),
    })
}

fn letters(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Vec<LettersSurvey>, StoreError> {
    let survey = |path: PathBuf| {
        let found =
            dead_letters::verify(disk.as_ref(), &path).map_err(StoreError::io("read the dead letters in", &path))?;
        let damage =
            |damage: &dead_letters::Damage| LettersDamage { letters: damage.letters, reason: damage.to_string() };
        Ok(LettersSurvey {
            directory: path.strip_prefix(dir).unwrap_or(&path).display().to_string(),
            letters: found.letters,
            segments: found.segments,
            allocated_bytes: found.allocated_bytes,
            damage: found.damage.iter().map(damage).collect(),
        })
    };
    super::store::mend::dead_letter_dirs(dir).into_iter().map(survey).collect()
}

fn read_witness(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<Account>, StoreError> {
    witness::peek(disk.as_ref(), dir).map_err(StoreError::io("read", &dir.join("witness")))
}

fn row_of(account: Option<&Account>, queue: &str) -> QueueRow {
    account.and_then(|account| account.queues.get(queue)?.row.clone()).unwrap_or_default()
}

fn cursors_of(account: Option<&Account>, queue: &str) -> BTreeMap<String, Cursor> {
    let queue = account.and_then(|account| account.queues.get(queue));
    queue.iter().flat_map(|queue| &queue.cursors).map(|(name, row)| (name.clone(), row.cursor())).collect()
}

/// Whether every cursor has settled the range.
fn settled_by_all(cursors: &BTreeMap<String, Cursor>, range: &Range<u64>) -> bool {
    cursors.values().all(|cursor| cursor.has_settled(range.clone()))
}
