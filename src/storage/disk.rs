//! Every byte that storage reads or writes passes through [`Disk`], so that tests can put a failing one in its place.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, CWD, FallocateFlags, FlockOperation, RenameFlags};

/// Vectors handed to one `pwritev`; Linux takes 1024 (IOV_MAX).
const WRITE_VECTORS_MAX: usize = 1024;

/// Room on the file system that holds a path, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct DiskSpace {
    pub total_bytes: u64,
    pub available_bytes: u64,
    /// `statfs` type number, to name tmpfs, overlay and NFS at start.
    pub kind: u64,
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    pub name: String,
    pub is_dir: bool,
    pub len: u64,
}

/// An open file. Offsets are absolute; no shared position.
pub trait DiskFile: Send + Sync + Debug {
    /// Writes all of `parts`, one after the other, from `offset` on.
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The `len` bytes at `offset`; fewer only at the end of the file.
    fn read(&self, len: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = self.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }
    fn sync_data(&self) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn size(&self) -> io::Result<u64>;
    /// Synced bytes of it need not stay in the page cache. Advice: it cannot fail.
    fn uncache(&self) {}
}

/// A disk. Paths are absolute or relative to the working directory, as std's are.
pub trait Disk: Send + Sync + Debug {
    /// Creates a file (0600) that must not exist, with `allocate_bytes` of real blocks.
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates one directory (0700); fine if it is there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// The same where nothing has the new name yet; `AlreadyExists` otherwise.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let parent = to.parent().unwrap_or(Path::new(""));
        let name = to.file_name().unwrap_or_default();
        if self.list(parent)?.iter().any(|entry| name == entry.name.as_str()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }
    /// A file, or an empty directory.
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;
    /// Takes the lock file for this process; `WouldBlock` when another has it. Held until dropped.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>>;
}

/// The operating system's.
#[derive(Debug, Default)]
pub struct RealDisk;

/// A file of the operating system's.
#[derive(Debug)]
pub(super) struct RealFile(pub(super) File);

impl DiskFile for RealFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut rest = parts;
        loop {
            IoSlice::advance_slices(&mut rest, 0);
            if rest.is_empty() {
                return Ok(());
            }
            let vectors = &rest[..rest.len().min(WRITE_VECTORS_MAX)];
            match rustix::io::pwritev(&self.0, vectors, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Without writing zeros first: exporters that are behind read all they deliver this way.
    fn read(&self, len: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&self.0, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn uncache(&self) {
        // Advice that is not taken costs nothing but what it was meant to spare.
        let _ = rustix::fs::fadvise(&self.0, 0, None, Advice::DontNeed);
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        if allocate_bytes > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, allocate_bytes) {
                Ok(()) => {}
                // Not every file system can reserve blocks; a full disk then shows at the write.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(allocate_bytes)?,
                Err(error) => {
                    drop(file);
                    std::fs::remove_file(path)?;
                    return Err(error.into());
                }
            }
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(DirEntry { name, is_dir: metadata.is_dir(), len: metadata.len() });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        use rustix::io::Errno;
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Not every file system can refuse by itself; nobody else makes names here.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match std::fs::symlink_metadata(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.rename(from, to),
                Err(error) => Err(error),
            },
            renamed => Ok(renamed?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => std::fs::remove_dir(path),
            other => other,
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statfs(path)?;
        let block = stat.f_bsize as u64;
        Ok(DiskSpace {
            total_bytes: stat.f_blocks.saturating_mul(block),
            available_bytes: stat.f_bavail.saturating_mul(block),
            kind: stat.f_type as u64,
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        // Over what is there, which a full disk has room for. Without its pid the lock holds all the same.
        let pid = format!("{}\n", std::process::id());
        match file.write_all_at(pid.as_bytes(), 0) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => file.set_len(0)?,
            written => written.and_then(|()| file.set_len(pid.len() as u64))?,
        }
        Ok(Box::new(file))
    }
}
