//! Opening: which letters the files hold.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::storage::disk::{Disk, DiskFile};
use crate::storage::record::NO_PREVIOUS;
use crate::storage::salvage;
use crate::storage::segment::{self, Gap, HEADER_PAGE_LEN, HeaderPage, Identity, RECORDS_START, Scanner, Step};

use super::index::Index;
use super::segments::{Kind, TEMPORARY_PREFIX, tombstone_ids};

/// What opening found.
#[derive(Debug, Default)]
pub struct Opened {
    /// Stretches that are no records, with records behind them, and files that are no segments: lost letters.
    pub damage: Vec<String>,
}

/// The id in a file's name, whatever stands around it: of a segment, one that was set aside, or one that was begun.
fn id_in(name: &str) -> Option<u64> {
    let name = name.strip_prefix(TEMPORARY_PREFIX).unwrap_or(name);
    let id = name.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    // So many were never given out.
    id.filter(|id| *id < u64::MAX / 2)
}

/// The index, what there is to tell, and the id that the next segment may have at the least: a file that cannot be read
/// is in no index, and must not be written over.
pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> io::Result<(Index, Opened, u64)> {
    disk.create_dir(dir)?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent)?;
    }
    salvage::finish(disk, dir)?;
    let mut index = Index::default();
    let mut opened = Opened::default();
    let mut ids = Vec::new();
    let mut next_id = 1;
    for entry in disk.list(dir)? {
        next_id = next_id.max(id_in(&entry.name).map_or(1, |id| id + 1));
        if entry.name.starts_with(TEMPORARY_PREFIX) {
            disk.remove(&dir.join(&entry.name))?;
        } else if let Some(id) = segment::parse_file_name(&entry.name) {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    let newest = ids.last().copied();
    for id in ids {
        let path = segment::path_in(dir, id);
        let file = disk.open(&path)?;
        match Identity::read(file.as_ref(), id)? {
            HeaderPage::Valid(identity) if identity.id == id => {
                let allocated_bytes = file.size()?;
                index.add_segment(identity, Arc::clone(&file), allocated_bytes, allocated_bytes);
                let mut scanner = Scanner::new(file, identity, RECORDS_START, allocated_bytes);
                let end = read_segment(&mut scanner, &mut index, &path, &mut opened)?;
                let Some(segment) = index.segments.get_mut(&id) else { continue };
                segment.end = end;
                let used = end.next_multiple_of(HEADER_PAGE_LEN);
                if used < allocated_bytes {
                    let is_blank = is_zero(segment.file.as_ref(), end, allocated_bytes)?;
                    if Some(id) == newest && !is_blank {
                        tracing::warn!(
                            segment = %path.display(), byte = end,
                            "the end of the dead letters is no whole letter and is cut off: a write that a crash broke off, or damage"
                        );
                    }
                    if Some(id) != newest && !is_blank {
                        opened.damage.push(format!("{} is damaged from byte {end} on", path.display()));
                    } else {
                        // What was allocated and never written, or never confirmed.
                        segment.file.set_len(used)?;
                        segment.file.sync_data()?;
                        segment.allocated_bytes = used;
                    }
                }
            }
            HeaderPage::UnknownVersion(version) => {
                let message = format!("{} has format {version}, which this version does not know", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            HeaderPage::Valid(_) | HeaderPage::Damaged => {
                opened.damage.push(format!("{} has no valid header", path.display()));
            }
        }
    }
    index.drop_orphans();
    Ok((index, opened, next_id))
}

/// Takes the records in, checking each; returns the end of the last.
fn read_segment(scanner: &mut Scanner, index: &mut Index, path: &Path, opened: &mut Opened) -> io::Result<u64> {
    let mut end = RECORDS_START;
    let mut gaps: Vec<Gap> = Vec::new();
    loop {
        match scanner.step()? {
            Step::Record(located, record) => {
                // Of a group whose sync never returned any part may be missing. What a later group stands behind was
                // confirmed: its loss is damage.
                let confirmed = located.header.durable_end;
                for gap in gaps.extract_if(.., |gap| gap.offset < confirmed) {
                    let Gap { offset, len } = gap;
                    opened.damage.push(format!("{} is damaged at byte {offset}, {len} bytes", path.display()));
                }
                end = scanner.offset();
                debug_assert_ne!(located.header.previous, NO_PREVIOUS);
                let is_tombstone = Kind::of(&located.header) == Some(Kind::Tombstone);
                let ended = if is_tombstone { tombstone_ids(&record.metadata) } else { Vec::new() };
                index.take(&located.header, located.offset, &ended);
            }
            Step::Gap(gap) => gaps.push(gap),
            // Nothing after it is whole: the end, or a write that was never confirmed.
            Step::End => return Ok(end),
        }
    }
}

fn is_zero(file: &dyn DiskFile, mut at: u64, end: u64) -> io::Result<bool> {
    let mut chunk = vec![0; 64 << 10];
    while at < end {
        let read = file.read_at(&mut chunk, at)?;
        if chunk[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        if read == 0 {
            break;
        }
        at += read as u64;
    }
    Ok(true)
}
