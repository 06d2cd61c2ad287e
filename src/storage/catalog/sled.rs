//! The catalogue in sled 0.34.7, held at arm's length.
//!
//! sled's `flush` is `sync_file_range` only, so each commit ends with `fdatasync` on our own descriptor of its `db`
//! file. It panics on some corrupt files and may hang on others, so it is opened under `catch_unwind` on a thread
//! of its own with a time limit.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Catalog, CatalogError, Change, ROW_LEN_MAX, Row};

const CACHE_BYTES: u64 = 4 << 20;
/// Opening a healthy catalogue takes milliseconds; a corrupt one may hang.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a lock may linger, and how often it is tried.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(5);

// A panic of sled's must stay an error of ours.
const _: () = assert!(cfg!(panic = "unwind"), "Forebay must be built with panic = \"unwind\"");

pub struct SledCatalog {
    db: ::sled::Db,
    /// Our own descriptor of sled's log, open from creation, to sync what `flush` only hands to the kernel.
    log_file: File,
    dir: PathBuf,
}

fn is_locked(error: &::sled::Error) -> bool {
    matches!(error, ::sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock"))
}

fn error(operation: &'static str, reason: impl ToString) -> CatalogError {
    CatalogError { operation, reason: reason.to_string() }
}

/// Runs `work`, turning a panic into an error.
fn guarded<T>(operation: &'static str, work: impl FnOnce() -> Result<T, CatalogError>) -> Result<T, CatalogError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let reason = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "unknown panic".to_owned());
            Err(error(operation, format!("sled panicked: {reason}")))
        }
    }
}

impl SledCatalog {
    pub fn open(dir: &Path) -> Result<SledCatalog, CatalogError> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = dir.to_owned();
        std::thread::Builder::new()
            .name("catalog-open".to_owned())
            .spawn(move || {
                // Nobody listens any more when the time limit has passed; the late catalogue is then just closed.
                let _ = sender.send(guarded("open", || SledCatalog::open_here(&path)));
            })
            .map_err(|cause| error("open", cause))?;
        receiver
            .recv_timeout(OPEN_TIMEOUT)
            .map_err(|_| error("open", format!("sled did not answer within {} s", OPEN_TIMEOUT.as_secs())))?
    }

    fn open_here(dir: &Path) -> Result<SledCatalog, CatalogError> {
        let config = ::sled::Config::new()
            .path(dir)
            .mode(::sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .print_profile_on_drop(false);
        let started = Instant::now();
        let db = loop {
            match config.open() {
                // A catalogue that was closed gives its lock back a moment later, from a thread of sled's.
                Err(cause) if is_locked(&cause) && started.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_POLL),
                opened => break opened.map_err(|cause| error("open", cause))?,
            }
        };
        let log_file =
            File::options().read(true).write(true).open(dir.join("db")).map_err(|cause| error("open", cause))?;
        // sled syncs neither its files' creation nor their directory entries.
        let sync = |path: PathBuf| File::open(path).and_then(|file| file.sync_all());
        log_file
            .sync_all()
            .and_then(|()| sync(dir.join("conf")))
            .and_then(|()| sync(dir.to_owned()))
            .and_then(|()| dir.parent().map_or(Ok(()), |parent| sync(parent.to_owned())))
            .map_err(|cause| error("sync the creation of", cause))?;
        Ok(SledCatalog { db, log_file, dir: dir.to_owned() })
    }

    /// Blob files are what sled makes of rows that are too large; it never syncs them.
    pub fn blob_files(&self) -> std::io::Result<usize> {
        match std::fs::read_dir(self.dir.join("blobs")) {
            Ok(entries) => Ok(entries.count()),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(cause) => Err(cause),
        }
    }
}

impl Catalog for SledCatalog {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        guarded("read", || {
            let mut rows = Vec::new();
            // Collecting stops at the first error, which sled's iterator would repeat for ever.
            for row in self.db.iter() {
                let (key, value) = row.map_err(|cause| error("read", cause))?;
                rows.push((key.to_vec(), value.to_vec()));
            }
            Ok(rows)
        })
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError> {
        guarded("write", || {
            let mut batch = ::sled::Batch::default();
            for (key, value) in changes {
                match value {
                    Some(value) => {
                        assert!(value.len() < ROW_LEN_MAX, "a catalogue row of {} bytes", value.len());
                        batch.insert(key.as_slice(), value.as_slice());
                    }
                    None => batch.remove(key.as_slice()),
                }
            }
            self.db.apply_batch(batch).map_err(|cause| error("write", cause))?;
            self.db.flush().map_err(|cause| error("write", cause))?;
            self.log_file.sync_data().map_err(|cause| error("sync", cause))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_reopening_and_make_no_blob_files() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("catalog");
        let mut catalog = SledCatalog::open(&path).expect("opens");
        let rows: Vec<Change> =
            (0..100u32).map(|n| (n.to_be_bytes().to_vec(), Some(vec![7; ROW_LEN_MAX - 1]))).collect();
        catalog.commit(&rows).expect("commits");
        catalog.commit(&[(0u32.to_be_bytes().to_vec(), None)]).expect("commits");
        assert_eq!(catalog.blob_files().expect("readable"), 0);
        drop(catalog);
        let mut again = SledCatalog::open(&path).expect("opens again");
        let found = again.load().expect("loads");
        assert_eq!(found.len(), 99);
        assert!(found.iter().all(|(_, value)| value.len() == ROW_LEN_MAX - 1));
    }

    #[test]
    fn a_corrupt_catalogue_is_an_error_and_not_a_panic() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("catalog");
        std::fs::create_dir(&path).expect("created");
        std::fs::write(path.join("conf"), b"no configuration of sled's").expect("written");
        std::fs::write(path.join("db"), vec![0xA5; 1 << 20]).expect("written");
        assert!(SledCatalog::open(&path).is_err());
    }
}
