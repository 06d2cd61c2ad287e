//! What is lost, weighed: how many letters it costs.

use std::fmt;

use super::index::Index;
use super::seals::SealRow;

/// Damage to one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub(super) what: String,
    /// Letters that are lost, at the most; None where nothing tells how many.
    pub letters: Option<u64>,
}

impl Damage {
    /// For a count: what is not known is one at the least.
    pub fn letters_at_least(&self) -> u64 {
        self.letters.unwrap_or(1)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.letters {
            None => f.write_str(": letters are lost, nothing tells how many"),
            Some(0) => f.write_str(": no letter is lost; ended ones or older notes may be back"),
            Some(1) => f.write_str(": 1 letter is lost"),
            Some(letters) => write!(f, ": {letters} letters are lost"),
        }
    }
}

/// Damage, before all segments were read.
pub(super) struct Loss {
    pub what: String,
    pub seal: Option<SealRow>,
    /// Records of letters that are still there.
    pub found: u64,
}

impl Loss {
    pub fn weigh(self, index: &Index) -> Damage {
        let letters = self.seal.as_ref().filter(|seal| seal.is_sealed).map(|seal| {
            // What was ended in the same segment is known where the whole of it is gone; else it may be among the lost.
            let is_gone = !index.segments.contains_key(&seal.id);
            let ended = if is_gone { seal.ended } else { 0 };
            let missing = seal.letters.saturating_sub(self.found + ended);
            // Of a letter that was born here and was ended or replaced elsewhere nothing is lost.
            let born = seal.sequence_floor..=seal.last_sequence;
            missing.saturating_sub(if missing > 0 { index.settled_elsewhere(seal.id, born) } else { 0 })
        });
        Damage { what: self.what, letters }
    }
}
