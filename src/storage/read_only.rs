//! A disk that is only looked at: for commands that run beside the process that owns the data directory.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::disk::{DirEntry, Disk, DiskFile, DiskSpace, RealDisk, RealFile};

/// Opens files for reading; everything that would change something fails.
#[derive(Debug, Default)]
pub struct ReadOnlyDisk;

#[derive(Debug)]
struct ReadOnlyFile(RealFile);

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the data directory is only looked at")
}

impl DiskFile for ReadOnlyFile {
    fn write_all_at(&self, _parts: &mut [IoSlice<'_>], _offset: u64) -> io::Result<()> {
        Err(refused())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn read(&self, len: usize, offset: u64) -> io::Result<Vec<u8>> {
        self.0.read(len, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(refused())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(refused())
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

impl Disk for ReadOnlyDisk {
    fn create(&self, _path: &Path, _allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        Err(refused())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(ReadOnlyFile(RealFile(File::open(path)?))))
    }

    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Gone since the directory was read: its owner is at work.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(DirEntry { name, is_dir: metadata.is_dir(), len: metadata.len() });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        RealDisk.space(path)
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        Err(refused())
    }
}

/// The process that holds the lock of the data directory, as far as this process may see it. Takes no lock.
pub fn owner(dir: &Path) -> Option<u32> {
    let path = dir.join("LOCK");
    let inode = std::fs::metadata(&path).ok()?.ino();
    let pid: u32 = std::fs::read_to_string(&path).ok()?.trim().parse().ok()?;
    // "7: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF"
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let held = locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.contains(&"FLOCK")
            && words.contains(&pid.to_string().as_str())
            && words.iter().any(|word| {
                word.rsplit(':').next() == Some(inode.to_string().as_str()) && word.matches(':').count() == 2
            })
    });
    held.then_some(pid)
}
