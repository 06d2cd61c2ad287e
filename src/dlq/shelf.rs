//! All letters of a data directory: those that are parked, and the ring of what was malformed at the door.
//!
//! Their ids never meet: those of the ring begin at [`RING_FIRST_ID`]. An edited letter moves from the ring among the
//! parked ones and keeps its id.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::dead_letters::{AtCap, Damage, Letter, LetterError, Located, NewLetter, Options, Row};
use crate::storage::{DeadLetterLog, Disk, Space};

/// Where the parked letters lie in the data directory, and where the ring.
const PARKED_DIR: &str = "dlq";
const RING_DIR: &str = "dlq/invalid";
/// The ring takes no more than this; its oldest letters give way.
pub const RING_BYTES_MAX: u64 = 16 << 20;
const RING_FIRST_ID: u64 = 1 << 63;

#[derive(Clone, Debug)]
pub struct Shelf {
    parked: Arc<DeadLetterLog>,
    ring: Arc<DeadLetterLog>,
}

impl Shelf {
    /// Opens (or makes) both, the parked ones of at most `max_bytes`; returns what is damaged as well. Only one process
    /// may have them open: the data directory's lock sees to that. `space`: the process's; a command has none.
    pub fn open(
        disk: &Arc<dyn Disk>,
        data_dir: &Path,
        max_bytes: u64,
        space: Option<&Arc<Space>>,
    ) -> io::Result<(Shelf, Vec<Damage>)> {
        let open =
            |name: &str, options| DeadLetterLog::open(Arc::clone(disk), &data_dir.join(name), options, space.cloned());
        let settles_damage = space.is_some();
        let parked = Options { max_bytes, at_cap: AtCap::Refuse, first_id: 0, settles_damage };
        let (parked, opened) = open(PARKED_DIR, parked)?;
        let (max_bytes, first_id) = (RING_BYTES_MAX, RING_FIRST_ID);
        let ring = Options { max_bytes, at_cap: AtCap::DropOldest, first_id, settles_damage };
        let (ring, ring_opened) = open(RING_DIR, ring)?;
        let damage = [opened.damage, ring_opened.damage].concat();
        Ok((Shelf { parked: Arc::new(parked), ring: Arc::new(ring) }, damage))
    }

    pub fn parked(&self) -> &Arc<DeadLetterLog> {
        &self.parked
    }

    pub fn ring(&self) -> &Arc<DeadLetterLog> {
        &self.ring
    }

    /// Whether it could not be decoded, and nobody has repaired it yet.
    pub fn is_malformed(&self, id: u64) -> bool {
        id >= RING_FIRST_ID && self.parked.row(id).is_none()
    }

    fn log_of(&self, id: u64) -> &DeadLetterLog {
        if self.is_malformed(id) { &self.ring } else { &self.parked }
    }

    /// Every letter's row, by id: the parked ones first, each kind by age.
    pub fn rows(&self) -> Vec<Row> {
        super::scan::letters(self, None).map(|letter| letter.row).collect()
    }

    /// The letters behind that id, by id, at most `max`.
    pub fn located_after(&self, after: Option<u64>, max: usize) -> Vec<Located> {
        // One that moves meanwhile leaves the ring after it is among the parked ones: in this order it is not missed.
        let ring = self.ring.located_after(after, max);
        let mut letters = self.parked.located_after(after, max);
        letters.extend(ring);
        // Stable: of one that is in both the parked one stays.
        letters.sort_by_key(|letter| letter.row.id);
        letters.dedup_by_key(|letter| letter.row.id);
        letters.truncate(max);
        letters
    }

    pub fn located(&self, id: u64) -> Option<Located> {
        self.log_of(id).located(id)
    }

    pub fn row(&self, id: u64) -> Option<Row> {
        self.log_of(id).row(id)
    }

    pub fn read(&self, id: u64) -> Result<Option<Letter>, LetterError> {
        self.log_of(id).read(id)
    }

    /// Puts a repaired letter in the place of this one; one of the ring becomes a parked one. False: there is none.
    pub fn replace(&self, id: u64, letter: NewLetter) -> Result<bool, LetterError> {
        if !self.is_malformed(id) {
            return self.parked.replace(id, letter);
        }
        if self.ring.row(id).is_none() {
            return Ok(false);
        }
        self.parked.adopt(id, letter)?;
        self.ring.remove(&[id])?;
        Ok(true)
    }

    pub fn note(&self, id: u64, note: Bytes) -> Result<bool, LetterError> {
        self.log_of(id).note(id, note)
    }

    /// Ends letters for good; returns how many there were.
    pub fn remove(&self, ids: &[u64]) -> Result<usize, LetterError> {
        let (malformed, parked): (Vec<u64>, Vec<u64>) = ids.iter().partition(|id| self.is_malformed(**id));
        Ok(self.parked.remove(&parked)? + self.ring.remove(&malformed)?)
    }

    pub fn remove_unchanged(&self, row: &Row) -> Result<bool, LetterError> {
        self.log_of(row.id).remove_unchanged(row)
    }

    pub fn close(&self) {
        self.parked.close();
        self.ring.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{RealDisk, unix_now_ns};

    fn open(dir: &std::path::Path) -> Shelf {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (shelf, damage) = Shelf::open(&disk, dir, 64 << 20, None).expect("opens");
        assert_eq!(damage, []);
        shelf
    }

    fn letter(payload: &'static str) -> NewLetter {
        NewLetter {
            signal: 1,
            encoding: 0,
            items: 1,
            raw_len: 0,
            parked_unix_ns: unix_now_ns(),
            description: Bytes::from_static(b"{}"),
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    #[test]
    fn a_repaired_letter_leaves_the_ring_and_keeps_its_id_over_a_restart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let shelf = open(dir.path());
        let (parked, _) = shelf.parked().append(vec![letter("parked")]).expect("kept");
        let (malformed, _) = shelf.ring().append(vec![letter("bad"), letter("worse")]).expect("kept");
        assert!(!shelf.is_malformed(parked[0]) && shelf.is_malformed(malformed[0]));
        assert!(shelf.replace(malformed[0], letter("good")).expect("replaced"));
        for shelf in [shelf, open(dir.path())] {
            let ids: Vec<u64> = shelf.rows().iter().map(|row| row.id).collect();
            assert_eq!(ids, [parked[0], malformed[0], malformed[1]]);
            assert!(!shelf.is_malformed(malformed[0]) && shelf.is_malformed(malformed[1]));
            let read = |id| shelf.read(id).expect("readable").expect("there").payload;
            assert_eq!(read(malformed[0]), "good");
            assert_eq!(read(malformed[1]), "worse");
            shelf.close();
        }
        let shelf = open(dir.path());
        // Later letters have ids of their own.
        let (later, _) = shelf.parked().append(vec![letter("later")]).expect("kept");
        assert!(later[0] > parked[0] && !shelf.is_malformed(later[0]));
        assert_eq!(shelf.remove(&[malformed[0], malformed[1], 7]).expect("removed"), 2);
        assert_eq!(shelf.rows().len(), 2);
    }

    #[test]
    fn the_ring_stays_within_its_bytes_and_keeps_the_newest() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let shelf = open(dir.path());
        let large = || NewLetter { payload: Bytes::from(vec![7; 700 << 10]), ..letter("") };
        let mut last = 0;
        for _ in 0..60 {
            last = shelf.ring().append(vec![large()]).expect("kept").0[0];
            assert!(shelf.ring().status().allocated_bytes <= RING_BYTES_MAX);
        }
        let rows = shelf.rows();
        assert!(rows.len() >= 10 && rows.len() < 40, "{}", rows.len());
        assert_eq!(rows.last().map(|row| row.id), Some(last));
    }
}
