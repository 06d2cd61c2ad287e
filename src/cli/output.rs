//! Writing to people: a reader that went away is no error, and never a panic.

use super::Failure;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Writes to standard output. A closed pipe, as after `| head`, counts as success.
pub fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// The same for a piece of something, which may end within a character.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Other(format!("cannot write to standard output: {error}"))),
    }
}

/// Writes a line to standard error. Where that fails, there is nobody left to tell.
pub fn complain(line: &dyn Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
