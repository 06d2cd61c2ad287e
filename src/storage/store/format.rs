//! The `FORMAT` file: which version of the data directory this is, with a check of its own.
//!
//! A file whose check is right and whose version is unknown refuses to start. One that is damaged says nothing; then the
//! headers of the segments decide, and it is written anew.

use std::io::IoSlice;
use std::path::Path;

use super::StoreError;
use crate::storage::disk::Disk;
use crate::storage::segment::{self, HeaderPage, Identity};

const NAME: &str = "FORMAT";
const LINE: &str = "forebay data directory, format 1\n";
const BEGINNING: &str = "forebay data directory, format ";

/// What stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Known,
    /// There is no such file yet.
    Absent,
    /// It says nothing that its check confirms.
    Damaged,
}

fn text() -> String {
    format!("{LINE}crc32c {:08x}\n", crc32c::crc32c(LINE.as_bytes()))
}

/// Looks without writing. An unknown format is an error.
pub fn check(disk: &dyn Disk, dir: &Path) -> Result<Format, StoreError> {
    let path = dir.join(NAME);
    let entries = disk.list(dir).map_err(StoreError::io("read", dir))?;
    if !entries.iter().any(|entry| entry.name == NAME) {
        return Ok(Format::Absent);
    }
    let mut bytes = vec![0; 256];
    let read = disk.open(&path).and_then(|file| file.read_at(&mut bytes, 0)).map_err(StoreError::io("read", &path))?;
    let found = String::from_utf8_lossy(&bytes[..read]);
    if found == text() {
        return Ok(Format::Known);
    }
    let unknown = || StoreError::Format { path: path.clone(), found: found.trim().to_owned() };
    let Some((line, check)) = found.split_once('\n') else { return Ok(Format::Damaged) };
    let confirmed = match check.trim().strip_prefix("crc32c ") {
        Some(check) => check == format!("{:08x}", crc32c::crc32c(format!("{line}\n").as_bytes())),
        // A version that writes no check, or none that this one knows.
        None => {
            check.is_empty() && line.strip_prefix(BEGINNING).is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n != 1))
        }
    };
    if confirmed {
        return Err(unknown());
    }
    for path in segment_paths(disk, dir)? {
        let id = path.file_name().and_then(|name| segment::parse_file_name(&name.to_string_lossy())).unwrap_or(0);
        let page = disk.open(&path).and_then(|file| Identity::read(file.as_ref(), id));
        if let HeaderPage::UnknownVersion(version) = page.map_err(StoreError::io("read", &path))? {
            return Err(StoreError::Format { path, found: format!("segment version {version}") });
        }
    }
    Ok(Format::Damaged)
}

fn segment_paths(disk: &dyn Disk, dir: &Path) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let mut paths = Vec::new();
    let queues = dir.join("queues");
    let top = disk.list(dir).map_err(StoreError::io("read", dir))?;
    if !top.iter().any(|entry| entry.name == "queues" && entry.is_dir) {
        return Ok(paths);
    }
    for queue in disk.list(&queues).map_err(StoreError::io("read", &queues))?.iter().filter(|entry| entry.is_dir) {
        let queue = queues.join(&queue.name);
        let files = disk.list(&queue).map_err(StoreError::io("read", &queue))?;
        let segments = files.iter().filter(|file| segment::parse_file_name(&file.name).is_some());
        paths.extend(segments.map(|file| queue.join(&file.name)));
    }
    Ok(paths)
}

/// Writes the file where it is missing or damaged.
pub(super) fn write(disk: &dyn Disk, dir: &Path, found: Format) -> Result<(), StoreError> {
    if found == Format::Known {
        return Ok(());
    }
    let (path, temporary) = (dir.join(NAME), dir.join("FORMAT.new"));
    let entries = disk.list(dir).map_err(StoreError::io("read", dir))?;
    if entries.iter().any(|entry| entry.name == "FORMAT.new") {
        disk.remove(&temporary).map_err(StoreError::io("remove", &temporary))?;
    }
    let write = || {
        let file = disk.create(&temporary, 0)?;
        file.write_all_at(&mut [IoSlice::new(text().as_bytes())], 0)?;
        file.sync_data()?;
        disk.rename(&temporary, &path)?;
        disk.sync_dir(dir)
    };
    write().map_err(StoreError::io("write", &path))
}
