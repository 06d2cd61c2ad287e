//! Lines of an export, in pieces that end anywhere: payloads go on as the bytes that they are, and the lines that stand for
//! letters that were left out are told.

use std::fmt::Display;

use crate::admin::api::{
    INCOMPLETE_START, Incomplete, IncompleteLetter, LEFT_OUT_START, LeftOut, LeftOutLetter, NO_LETTER,
};
use crate::cli::Failure;

use super::hints::Hints;
use super::select::strangers;
use super::show::plain;

/// How lines begin that are no payload's.
const STARTS: [&[u8]; 2] = [LEFT_OUT_START, INCOMPLETE_START];

/// Says a line to whoever looks on.
type Tell = fn(&dyn Display);

pub struct Sieve {
    tell: Tell,
    hints: Hints,
    /// The beginning of a line that may be no payload's.
    held: Vec<u8>,
    /// The line at hand is a payload's: the rest of it goes on at once.
    is_payload: bool,
    left_out: usize,
    /// Ids that were asked for and that no letter has.
    strangers: Vec<String>,
}

impl Sieve {
    pub fn new(tell: Tell, hints: Hints) -> Sieve {
        Sieve { tell, hints, held: Vec::new(), is_payload: false, left_out: 0, strangers: Vec::new() }
    }

    pub fn take(&mut self, piece: &[u8], write: &mut impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let ends = part.ends_with(b"\n");
            if self.is_payload {
                write(part)?;
            } else {
                self.held.extend_from_slice(part);
                let is_told = STARTS.iter().any(|start| self.held.starts_with(start));
                let may_be_told = STARTS.iter().any(|start| start.starts_with(&self.held));
                if is_told && ends {
                    self.tell();
                }
                if !is_told && (ends || !may_be_told) {
                    write(&self.held)?;
                    self.is_payload = true;
                }
                if self.is_payload || ends {
                    self.held.clear();
                }
            }
            self.is_payload &= !ends;
        }
        Ok(())
    }

    fn tell(&mut self) {
        if self.held.starts_with(INCOMPLETE_START) {
            return match serde_json::from_slice(&self.held) {
                Ok(Incomplete { incomplete: IncompleteLetter { id, missing } }) => (self.tell)(&format_args!(
                    "note: letter {} is exported without {}: JSON has no place for them",
                    plain(&id),
                    plain(&missing)
                )),
                Err(error) => (self.tell)(&format_args!("note: a letter is not whole; why cannot be read: {error}")),
            };
        }
        let left_out = serde_json::from_slice(&self.held);
        if let Ok(LeftOut { left_out: LeftOutLetter { id, error } }) = &left_out
            && error == NO_LETTER
        {
            return self.strangers.push(plain(id));
        }
        self.left_out += 1;
        match left_out {
            Ok(LeftOut { left_out: LeftOutLetter { id, error } }) => {
                let error = self.hints.complete(&plain(&error));
                (self.tell)(&format_args!("letter {} is left out: {error}", plain(&id)));
            }
            Err(error) => (self.tell)(&format_args!("a letter is left out; why cannot be read: {error}")),
        }
    }

    /// What is left out is a failure of the command.
    pub fn end(self) -> Result<(), Failure> {
        match self.left_out {
            0 => strangers(&self.strangers),
            count => Err(Failure::Other(format!(
                "{count} letters could not be exported; all others were\n  help: they stay; `forebay dlq show ID` says what is known"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wherever_pieces_end_payloads_pass_unchanged_and_lines_of_what_is_left_out_do_not() {
        let left_out = "{\"forebayLeftOut\":{\"id\":\"12\",\"error\":\"damaged\"}}\n";
        let incomplete = "{\"forebayIncomplete\":{\"id\":\"12\",\"missing\":\"2 fields\"}}\n";
        let payloads = ["{\"resourceSpans\":[\"😀\"]}\n", "{}\n", "{\"forebay\":1}\n", "\n"];
        let lines = [payloads[0], left_out, payloads[1], incomplete, payloads[2], left_out, payloads[3]].concat();
        for len in 1..=lines.len() {
            let (mut sieve, mut written) = (Sieve::new(|_| {}, Hints::none()), Vec::new());
            for piece in lines.as_bytes().chunks(len) {
                let mut write = |bytes: &[u8]| {
                    written.extend_from_slice(bytes);
                    Ok(())
                };
                assert!(sieve.take(piece, &mut write).is_ok());
            }
            assert_eq!(written, payloads.concat().as_bytes(), "in pieces of {len}");
            assert!(sieve.left_out == 2 && sieve.end().is_err());
        }
        assert!(Sieve::new(|_| {}, Hints::none()).end().is_ok());
    }
}
