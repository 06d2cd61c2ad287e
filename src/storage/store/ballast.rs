//! Real blocks set aside, given up when the catalogue needs room on a full disk and taken again when there is some.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;
use crate::storage::disk::Disk;
use crate::storage::space::Space;

/// sled grows by segments of half a MiB, and wants some more to start.
const BYTES_MAX: u64 = 8 << 20;
/// Of what the queues may take, where that is small.
const SHARE: u64 = 16;
const NAME: &str = "ballast";
const CHUNK_BYTES: usize = 64 << 10;

/// What a start does before its ballast is open, and once more without the ballast where the disk has no room for it. The last
/// try of all, which `work` is told of, must do without that room too.
pub(super) fn with_its_room<T>(
    disk: &dyn Disk,
    dir: &Path,
    work: impl Fn(bool) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let error = match work(false) {
        Err(error) if error.is_full() => error,
        done => return done,
    };
    let path = path(dir);
    match disk.remove(&path) {
        Ok(()) => {
            disk.sync_dir(dir).map_err(StoreError::io("sync", dir))?;
            tracing::warn!(%error, path = %path.display(), "the file system is full: the ballast's room is used");
            match work(false) {
                Err(error) if error.is_full() => {}
                done => return done,
            }
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        Err(cause) => return Err(StoreError::io("release the ballast", &path)(cause)),
    }
    work(true).map_err(|error| error.without_room(dir))
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

pub(super) struct Ballast {
    disk: Arc<dyn Disk>,
    space: Arc<Space>,
    dir: PathBuf,
    len: u64,
    is_held: bool,
}

impl Ballast {
    /// Takes what a former life left, or makes it if there is room. That there is none is no failure.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, space: Arc<Space>) -> io::Result<Ballast> {
        let len = (space.reachable_bytes() / SHARE).min(BYTES_MAX) / 4096 * 4096;
        let mut ballast = Ballast { disk, space, dir: dir.to_owned(), len, is_held: false };
        match ballast.disk.open(&ballast.path()).and_then(|file| file.size()) {
            Ok(found) if found == len => {
                ballast.is_held = true;
                ballast.space.add(len);
            }
            Ok(_) => ballast.disk.remove(&ballast.path())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Err(error) = ballast.restore() {
            tracing::warn!(dir = %dir.display(), %error, "failed to set aside room for a full disk; going on without");
        }
        Ok(ballast)
    }

    fn path(&self) -> PathBuf {
        path(&self.dir)
    }

    pub fn is_missing(&self) -> bool {
        !self.is_held && self.len > 0
    }

    /// Gives its blocks to whoever needs them now; whether there were any.
    pub fn release(&mut self) -> io::Result<bool> {
        if !self.is_held {
            return Ok(false);
        }
        self.disk.remove(&self.path())?;
        self.is_held = false;
        self.space.subtract(self.len);
        self.disk.sync_dir(&self.dir)?;
        Ok(true)
    }

    /// Takes its blocks again, if there is room for it and for what comes.
    pub fn restore(&mut self) -> io::Result<()> {
        if self.is_held || self.len == 0 || self.space.check(2 * self.len, Default::default).is_err() {
            return Ok(());
        }
        match self.make() {
            Ok(()) => {
                self.is_held = true;
                self.space.add(self.len);
                Ok(())
            }
            Err(error) => {
                // Half a ballast is none; what cannot be removed now is replaced at the next open.
                let removed = self.disk.remove(&self.path());
                if error.kind() == io::ErrorKind::StorageFull { removed } else { Err(error) }
            }
        }
    }

    fn make(&self) -> io::Result<()> {
        let file = self.disk.create(&self.path(), self.len)?;
        // Written, so that file systems without fallocate give real blocks too.
        let chunk = vec![0; CHUNK_BYTES.min(self.len as usize)];
        let mut at = 0;
        while at < self.len {
            let len = chunk.len().min((self.len - at) as usize);
            file.write_all_at(&mut [IoSlice::new(&chunk[..len])], at)?;
            at += len as u64;
        }
        file.sync_data()?;
        self.disk.sync_dir(&self.dir)
    }
}
