//! Lines of an export, in pieces that end anywhere: payloads go on as the bytes that they are, and the lines that stand for
//! letters that were left out are told.

use std::fmt::Display;

use crate::admin::api::{LEFT_OUT_START, LeftOut, LeftOutLetter};
use crate::cli::Failure;

use super::show::plain;

/// Says a line to whoever looks on.
type Tell = fn(&dyn Display);

pub struct Sieve {
    tell: Tell,
    /// The beginning of a line that may be no payload's.
    held: Vec<u8>,
    /// The line at hand is a payload's: the rest of it goes on at once.
    is_payload: bool,
    left_out: usize,
}

impl Sieve {
    pub fn new(tell: Tell) -> Sieve {
        Sieve { tell, held: Vec::new(), is_payload: false, left_out: 0 }
    }

    pub fn take(&mut self, piece: &[u8], write: &mut impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let ends = part.ends_with(b"\n");
            if self.is_payload {
                write(part)?;
            } else {
                self.held.extend_from_slice(part);
                let is_told = self.held.starts_with(LEFT_OUT_START);
                if is_told && ends {
                    self.tell();
                }
                if !is_told && (ends || !LEFT_OUT_START.starts_with(&self.held)) {
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
        self.left_out += 1;
        match serde_json::from_slice(&self.held) {
            Ok(LeftOut { left_out: LeftOutLetter { id, error } }) => {
                (self.tell)(&format_args!("letter {} is left out: {}", plain(&id), plain(&error)));
            }
            Err(error) => (self.tell)(&format_args!("a letter is left out; why cannot be read: {error}")),
        }
    }

    /// What is left out is a failure of the command.
    pub fn end(self) -> Result<(), Failure> {
        match self.left_out {
            0 => Ok(()),
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
        let payloads = ["{\"resourceSpans\":[\"😀\"]}\n", "{}\n", "{\"forebay\":1}\n", "\n"];
        let lines = [payloads[0], left_out, payloads[1], payloads[2], left_out, payloads[3]].concat();
        for len in 1..=lines.len() {
            let (mut sieve, mut written) = (Sieve::new(|_| {}), Vec::new());
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
        assert!(Sieve::new(|_| {}).end().is_ok());
    }
}
