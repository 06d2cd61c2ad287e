//! Letters whose records come again: a crash between a letter's sync and the next checkpoint of its queue leaves both.
//!
//! Such a record is sent and refused once more, and its letter would be there twice. It is recognised by what it is of,
//! exporter, queue and sequence, and by its payload. Only letters of former processes can be meant, and of those the last.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use super::{Description, Parcel, Shelf, scan};

/// Letters of former processes that are looked through, the newest.
const LETTERS_MAX: usize = 1 << 16;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Of {
    exporter: String,
    queue: String,
    sequence: u64,
}

impl Of {
    fn new(description: &Description) -> Option<Of> {
        let exporter = description.exporter.clone()?;
        Some(Of { exporter, queue: description.queue.clone(), sequence: description.sequence? })
    }
}

/// What former processes left, read when the first letter is parked.
#[derive(Debug, Default)]
pub struct Twins(Mutex<Option<HashMap<Of, Vec<u64>>>>);

impl Twins {
    /// For each parcel the letter that it is already, if it is one. Reads the disk; what cannot be read is nobody's twin.
    pub fn find(&self, shelf: &Shelf, parcels: &[Parcel]) -> Vec<Option<u64>> {
        let mut left = self.0.lock();
        let left = left.get_or_insert_with(|| read(shelf));
        let mut used = HashSet::new();
        let mut find = |parcel: &Parcel| {
            let ids = Of::new(&parcel.description).and_then(|of| left.get(&of))?;
            let twin = ids.iter().copied().find(|id| !used.contains(id) && is_same(shelf, *id, parcel))?;
            used.insert(twin);
            Some(twin)
        };
        parcels.iter().map(&mut find).collect()
    }

    /// The records of these letters are settled: they do not come again.
    pub fn forget<'a>(&self, descriptions: impl Iterator<Item = &'a Description>) {
        if let Some(left) = self.0.lock().as_mut().filter(|left| !left.is_empty()) {
            for of in descriptions.filter_map(Of::new) {
                left.remove(&of);
            }
        }
    }
}

fn read(shelf: &Shelf) -> HashMap<Of, Vec<u64>> {
    let mut left: HashMap<Of, Vec<u64>> = HashMap::new();
    let rows = shelf.parked().rows();
    let after = rows.len().checked_sub(LETTERS_MAX + 1).map(|at| rows[at].id);
    for letter in scan::letters(shelf, after) {
        let description = match letter.description() {
            Ok(Some(bytes)) => Description::from_bytes(&bytes).ok(),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "a dead letter cannot be read; what it is of may be parked again");
                None
            }
        };
        if let Some(of) = description.as_ref().and_then(Of::new) {
            left.entry(of).or_default().push(letter.row.id);
        }
    }
    left
}

fn is_same(shelf: &Shelf, id: u64, parcel: &Parcel) -> bool {
    let letter = shelf.read(id).ok().flatten();
    letter.is_some_and(|letter| letter.payload == parcel.payload && letter.row.encoding == parcel.encoding as u8)
}
