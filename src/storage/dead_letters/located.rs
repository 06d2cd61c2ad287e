//! Letters whose place is known and of which nothing is read yet: what lists go through.

use bytes::Bytes;

use super::index::Place;
use super::{DeadLetterLog, LetterError, Row, State};

/// One letter, as the index has it. Its bytes can be read without the log's lock, also after it was ended.
#[derive(Clone, Debug)]
pub struct Located {
    pub row: Row,
    place: Option<Place>,
    note: Option<Place>,
}

impl Located {
    fn new(state: &State, row: &Row) -> Located {
        Located { row: *row, place: state.index.place(row), note: state.index.note(row.id) }
    }

    /// Its description. The payload is neither read nor checked; None: the record is damaged before it.
    pub fn description(&self) -> Result<Option<Bytes>, LetterError> {
        let Some(place) = &self.place else { return Ok(None) };
        place.read_metadata(self.row.stored_len).map_err(LetterError::during("read"))
    }

    /// What was last noted about it; None also when that is damaged.
    pub fn note(&self) -> Result<Option<Bytes>, LetterError> {
        let Some(place) = &self.note else { return Ok(None) };
        Ok(place.read().map_err(LetterError::during("read"))?.map(|record| record.metadata))
    }
}

impl DeadLetterLog {
    /// The letters behind that id, by id, at most `max`.
    pub fn located_after(&self, after: Option<u64>, max: usize) -> Vec<Located> {
        let state = self.state.lock();
        state.index.rows_after(after).take(max).map(|row| Located::new(&state, row)).collect()
    }

    pub fn located(&self, id: u64) -> Option<Located> {
        let state = self.state.lock();
        state.index.get(id).map(|row| Located::new(&state, row))
    }
}
