//! Looking at dead letters beside the process that may own them: everything is read, nothing is written.

use std::io;
use std::path::Path;

use crate::storage::disk::Disk;

use super::Damage;
use super::recover::look;

/// Looks at what seems damaged: its owner may have been writing it, or removing it.
const LOOKS_MAX: u32 = 3;

/// What the files hold.
#[derive(Debug, Default)]
pub struct Verified {
    pub segments: u64,
    pub letters: u64,
    pub allocated_bytes: u64,
    pub damage: Vec<Damage>,
}

/// Reads and checks every letter. A directory that is not there holds none; what its seals tell of is missing then.
pub fn verify(disk: &dyn Disk, dir: &Path) -> io::Result<Verified> {
    let mut verified: Option<Verified> = None;
    for last in (0..LOOKS_MAX).rev() {
        let found = match look(disk, dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && last > 0 => continue,
            found => found?,
        };
        // What was seen once only was on its way.
        let seen_before = |damage: &Damage| {
            verified.as_ref().is_none_or(|before| before.damage.iter().any(|other| other.what == damage.what))
        };
        let damage: Vec<Damage> = found.damage.iter().filter(|damage| seen_before(damage)).cloned().collect();
        let is_sure = damage.is_empty();
        verified = Some(Verified {
            segments: found.index.segments.len() as u64,
            letters: found.index.len() as u64,
            allocated_bytes: found.index.allocated_bytes(),
            damage,
        });
        if is_sure {
            break;
        }
    }
    Ok(verified.unwrap_or_default())
}
