//! Segments on failing disks: what can be read is copied, page by page, around what cannot. Only when a person asks for
//! it (`forebay queue repair`): an error may pass, and until somebody has given up on it nothing may be settled as lost.
//!
//! The copy takes the segment's name and the original stays beside it as `*.damaged`. In the copy unreadable pages are
//! zeros, which recovery takes for the damage that they are.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile};
use super::segment;

/// A copy that is whole and not in its place yet.
const COPY_SUFFIX: &str = ".salvaged";
const DAMAGED_SUFFIX: &str = ".damaged";
/// Read at once where nothing is wrong.
const CHUNK_LEN: usize = 1 << 20;
/// The least that a disk fails to read.
const PAGE_LEN: usize = 4096;

/// A segment that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvaged {
    /// Where the original is now.
    pub original: PathBuf,
    pub unreadable_bytes: u64,
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Ends what a crash broke off: a copy whose original has made way for it takes its place, any other is worthless.
pub(super) fn finish(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let entries = disk.list(dir)?;
    let mut has_changed = false;
    for entry in &entries {
        let Some(name) = entry.name.strip_suffix(COPY_SUFFIX) else { continue };
        let (copy, place) = (dir.join(&entry.name), dir.join(name));
        if entries.iter().any(|other| other.name == name) {
            disk.remove(&copy)?;
        } else {
            disk.rename(&copy, &place)?;
        }
        has_changed = true;
    }
    if has_changed { disk.sync_dir(dir) } else { Ok(()) }
}

/// Copies the segments of a directory that cannot be read as a whole. A missing directory has none.
pub(super) fn segments(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Salvaged>> {
    match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map(drop)?,
    }
    finish(disk, dir)?;
    let mut salvaged = Vec::new();
    for entry in disk.list(dir)? {
        if segment::parse_file_name(&entry.name).is_none() {
            continue;
        }
        let path = dir.join(&entry.name);
        let file = disk.open(&path)?;
        let len = file.size()?;
        let mut chunk = vec![0; CHUNK_LEN];
        let is_readable = (0..len).step_by(CHUNK_LEN).all(|at| file.read_at(&mut chunk, at).is_ok());
        if is_readable {
            continue;
        }
        let copy = with_suffix(&path, COPY_SUFFIX);
        let unreadable_bytes = copy_around(file.as_ref(), disk.create(&copy, len)?.as_ref(), len)?;
        disk.sync_dir(dir)?;
        let original = with_suffix(&path, DAMAGED_SUFFIX);
        disk.rename(&path, &original)?;
        disk.rename(&copy, &path)?;
        disk.sync_dir(dir)?;
        salvaged.push(Salvaged { original, unreadable_bytes });
    }
    Ok(salvaged)
}

/// Returns how much could not be read. The copy is synced.
fn copy_around(from: &dyn DiskFile, to: &dyn DiskFile, len: u64) -> io::Result<u64> {
    let mut unreadable_bytes = 0;
    let mut page = vec![0; PAGE_LEN];
    for at in (0..len).step_by(PAGE_LEN) {
        let wanted = (PAGE_LEN as u64).min(len - at) as usize;
        match from.read_at(&mut page[..wanted], at) {
            Ok(read) => to.write_all_at(&mut [IoSlice::new(&page[..read])], at)?,
            Err(_) => {
                unreadable_bytes += wanted as u64;
                // What `create` allocated may show an older file's bytes.
                to.write_all_at(&mut [IoSlice::new(&[0; PAGE_LEN][..wanted])], at)?;
            }
        }
    }
    to.sync_data()?;
    Ok(unreadable_bytes)
}
