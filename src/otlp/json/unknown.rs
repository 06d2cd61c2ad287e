//! Fields of a message that are in no table: of a later OTLP, or of nobody's. JSON cannot show them.

use std::fmt;

use crate::otlp::schema::{Kind, Message};
use crate::otlp::wire::{self, Trouble};

/// How many there are, and where the first of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    pub fields: usize,
    pub first_number: u32,
    pub first_in: &'static str,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unknown { fields, first_number, first_in } = self;
        write!(f, "{fields} fields that this version does not know, the first is number {first_number} of {first_in}")
    }
}

/// Of a valid message, which has no levels below `depth_left`.
pub(super) fn find(message: &'static Message, bytes: &[u8], depth_left: u32) -> Result<Option<Unknown>, Trouble> {
    let mut found = None;
    look(message, bytes, depth_left, &mut found)?;
    Ok(found)
}

fn look(message: &'static Message, bytes: &[u8], depth_left: u32, found: &mut Option<Unknown>) -> Result<(), Trouble> {
    let end = bytes.len();
    let mut at = 0;
    while at < end {
        let (number, wire_type, value) = wire::key(bytes, at, end)?;
        let Some(place) = message.place(number) else {
            let known = found.get_or_insert(Unknown { fields: 0, first_number: number, first_in: message.name });
            known.fields += 1;
            at = wire::skip(bytes, number, wire_type, value, end, depth_left.max(1))?;
            continue;
        };
        match (wire_type, message.fields[place].kind, depth_left.checked_sub(1)) {
            (2, Kind::Message(inner), Some(depth_left)) => {
                let (start, stop) = wire::delimited(bytes, value, end)?;
                look(inner, &bytes[start..stop], depth_left, found)?;
                at = stop;
            }
            _ => at = wire::skip(bytes, number, wire_type, value, end, depth_left.max(1))?,
        }
    }
    Ok(())
}
