//! The real disk, how much is read from it, a sector of it that cannot be read, and how much of it is said to be free: for
//! tests of what reading costs, of what happens when it fails, and of what happens where others fill the disk.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{DirEntry, Disk, DiskFile, DiskSpace, RealDisk};
use super::segment;

#[derive(Clone, Debug, Default)]
pub struct CountingDisk {
    pub read_bytes: Arc<AtomicU64>,
    /// Where in each first segment a byte lies that cannot be read (0: nowhere).
    pub bad_byte: Arc<AtomicU64>,
    /// What is said to be free; 0: the truth.
    pub available_bytes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct CountingFile {
    inner: Arc<dyn DiskFile>,
    read_bytes: Arc<AtomicU64>,
    bad_byte: Option<Arc<AtomicU64>>,
}

impl DiskFile for CountingFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(parts, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bad_byte = self.bad_byte.as_ref().map_or(0, |byte| byte.load(Ordering::SeqCst));
        if bad_byte > 0 && (offset..offset + buffer.len() as u64).contains(&bad_byte) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let read = self.inner.read_at(buffer, offset)?;
        self.read_bytes.fetch_add(read as u64, Ordering::SeqCst);
        Ok(read)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }
}

impl CountingDisk {
    fn wrap(&self, path: &Path, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let is_first = path.file_name().is_some_and(|name| name == segment::file_name(0).as_str());
        let bad_byte = is_first.then(|| Arc::clone(&self.bad_byte));
        Arc::new(CountingFile { inner, read_bytes: Arc::clone(&self.read_bytes), bad_byte })
    }
}

impl Disk for CountingDisk {
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, RealDisk.create(path, allocate_bytes)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, RealDisk.open(path)?))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        RealDisk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }
    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let space = RealDisk.space(path)?;
        match self.available_bytes.load(Ordering::SeqCst) {
            0 => Ok(space),
            available_bytes => Ok(DiskSpace { available_bytes, ..space }),
        }
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        RealDisk.lock(path)
    }
}
