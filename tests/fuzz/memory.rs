//! A disk and a catalogue in memory, whose bytes can be spoiled.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay::storage::catalog::{Catalog, CatalogError, Change, Row};
use forebay::storage::disk::{Disk, DiskFile, DiskSpace};
use parking_lot::Mutex;

/// A file whose length is beyond this was asked for by damage.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub type Files = BTreeMap<PathBuf, Vec<u8>>;
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Default)]
pub struct MemoryDisk {
    files: Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>,
    dirs: Mutex<BTreeSet<PathBuf>>,
}

#[derive(Debug, Default)]
struct MemoryFile(Mutex<Vec<u8>>);

impl MemoryDisk {
    pub fn holding(files: Files) -> MemoryDisk {
        let dirs = files.keys().flat_map(|path| path.ancestors().skip(1)).map(Path::to_owned).collect();
        let files = files.into_iter().map(|(path, bytes)| (path, Arc::new(MemoryFile(Mutex::new(bytes)))));
        MemoryDisk { files: Mutex::new(files.collect()), dirs: Mutex::new(dirs) }
    }

    pub fn files(&self) -> Files {
        self.files.lock().iter().map(|(path, file)| (path.clone(), file.0.lock().clone())).collect()
    }
}

impl DiskFile for MemoryFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = self.0.lock();
        let mut at = offset as usize;
        for part in parts.iter() {
            let end = at + part.len();
            if end as u64 > FILE_BYTES_MAX {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(part);
            at = end;
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock();
        let rest = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().resize(len as usize, 0);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
}

impl Disk for MemoryDisk {
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        if allocate_bytes > FILE_BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = Arc::new(MemoryFile(Mutex::new(vec![0; allocate_bytes as usize])));
        match self.files.lock().entry(path.to_owned()) {
            std::collections::btree_map::Entry::Occupied(_) => Err(io::ErrorKind::AlreadyExists.into()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Arc::clone(&file));
                Ok(file)
            }
        }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.files.lock().get(path).cloned();
        file.map(|file| file as Arc<dyn DiskFile>).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.dirs.lock().insert(path.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<forebay::storage::disk::DirEntry>> {
        let dirs = self.dirs.lock();
        if !dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let entry = |path: &Path, is_dir, len| {
            let name = path.file_name()?.to_str()?.to_owned();
            (path.parent() == Some(dir)).then_some(forebay::storage::disk::DirEntry { name, is_dir, len })
        };
        let files = self.files.lock();
        let files = files.iter().filter_map(|(path, file)| entry(path, false, file.0.lock().len() as u64));
        let mut entries: Vec<_> = dirs.iter().filter_map(|path| entry(path, true, 0)).chain(files).collect();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let was_file = self.files.lock().remove(path).is_some();
        if was_file || self.dirs.lock().remove(path) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        Ok(DiskSpace { total_bytes: 1 << 40, available_bytes: 1 << 40, kind: 0 })
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        Ok(Box::new(()))
    }
}

#[derive(Clone, Default)]
pub struct MemoryCatalog(pub Arc<Mutex<Rows>>);

impl Catalog for MemoryCatalog {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        Ok(self.0.lock().clone().into_iter().collect())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError> {
        let mut rows = self.0.lock();
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(())
    }
}
