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
    /// None only while a compaction has closed it.
    db: Option<::sled::Db>,
    /// Our own descriptor of sled's log, open from creation, to sync what `flush` only hands to the kernel.
    log_file: File,
    dir: PathBuf,
}

fn is_locked(error: &::sled::Error) -> bool {
    matches!(error, ::sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock"))
}

fn error(operation: &'static str, reason: impl ToString) -> CatalogError {
    let reason = reason.to_string();
    // sled may panic over it, or wrap it in words.
    let is_full = reason.contains("No space left on device");
    CatalogError { operation, reason, is_full, is_locked: false }
}

fn failed(operation: &'static str) -> impl FnOnce(::sled::Error) -> CatalogError {
    move |cause| match cause {
        cause if is_locked(&cause) => CatalogError { is_locked: true, ..error(operation, cause) },
        ::sled::Error::Io(cause) => CatalogError::io(operation, &cause),
        cause => error(operation, cause),
    }
}

fn io_failed(operation: &'static str) -> impl FnOnce(std::io::Error) -> CatalogError {
    move |cause| CatalogError::io(operation, &cause)
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
        SledCatalog::open_within(dir, OPEN_TIMEOUT)
    }

    fn open_within(dir: &Path, timeout: Duration) -> Result<SledCatalog, CatalogError> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = dir.to_owned();
        std::thread::Builder::new()
            .name("catalog-open".to_owned())
            .spawn(move || {
                // Nobody listens any more when the time limit has passed; the late catalogue is then just closed.
                let _ = sender.send(guarded("open", || SledCatalog::open_here(&path)));
            })
            .map_err(io_failed("open"))?;
        receiver
            .recv_timeout(timeout)
            .map_err(|_| error("open", format!("sled did not answer within {} s", timeout.as_secs_f32())))?
    }

    fn open_here(dir: &Path) -> Result<SledCatalog, CatalogError> {
        finish_compaction(dir).map_err(io_failed("look at"))?;
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
                opened => break opened.map_err(failed("open"))?,
            }
        };
        let log_file = File::options().read(true).write(true).open(dir.join("db")).map_err(io_failed("open"))?;
        // sled syncs neither its files' creation nor their directory entries.
        let sync = |path: PathBuf| File::open(path).and_then(|file| file.sync_all());
        log_file
            .sync_all()
            .and_then(|()| sync(dir.join("conf")))
            .and_then(|()| sync(dir.to_owned()))
            .and_then(|()| dir.parent().map_or(Ok(()), |parent| sync(parent.to_owned())))
            .map_err(io_failed("sync the creation of"))?;
        Ok(SledCatalog { db: Some(db), log_file, dir: dir.to_owned() })
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

/// The place of a catalogue that is written anew, and of the one that it replaces.
fn beside(dir: &Path, what: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(what);
    PathBuf::from(name)
}

/// What a crash in the middle of a compaction left: the fresh one holds when the old one is gone from its place, and was
/// synced before it went.
fn finish_compaction(dir: &Path) -> std::io::Result<()> {
    let (fresh, old) = (beside(dir, ".new"), beside(dir, ".old"));
    if !dir.try_exists()? && fresh.try_exists()? {
        std::fs::rename(&fresh, dir)?;
        sync_parent(dir)?;
    }
    for leftover in [fresh, old] {
        if leftover.try_exists()? {
            std::fs::remove_dir_all(leftover)?;
        }
    }
    Ok(())
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Waits until nothing of a closed sled is left: its lock goes with its last thread.
fn wait_closed(dir: &Path) -> std::io::Result<()> {
    let file = File::open(dir.join("db"))?;
    let started = Instant::now();
    while file.try_lock().is_err() {
        if started.elapsed() > LOCK_PATIENCE {
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "sled does not let its files go"));
        }
        std::thread::sleep(LOCK_POLL);
    }
    Ok(())
}

impl Catalog for SledCatalog {
    fn size_bytes(&self) -> u64 {
        // One that cannot be measured is not compacted now.
        self.log_file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn compact(&mut self, rows: &[Row]) -> Result<(), CatalogError> {
        let dir = self.dir.clone();
        let (fresh, old) = (beside(&dir, ".new"), beside(&dir, ".old"));
        finish_compaction(&dir).map_err(io_failed("look at"))?;
        let mut replacement = SledCatalog::open(&fresh)?;
        let rows: Vec<Change> = rows.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        replacement.commit(&rows)?;
        drop(replacement);
        self.db = None;
        let swap = || {
            wait_closed(&fresh)?;
            wait_closed(&dir)?;
            std::fs::rename(&dir, &old)?;
            std::fs::rename(&fresh, &dir)?;
            sync_parent(&dir)
        };
        swap().map_err(io_failed("replace"))?;
        *self = SledCatalog::open(&dir)?;
        Ok(())
    }

    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        guarded("read", || {
            let mut rows = Vec::new();
            // Collecting stops at the first error, which sled's iterator would repeat for ever.
            for row in self.db.iter().flat_map(|db| db.iter()) {
                let (key, value) = row.map_err(failed("read"))?;
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
            let db = self.db.as_ref().ok_or_else(|| error("write", "it was closed to be replaced"))?;
            db.apply_batch(batch).map_err(failed("write"))?;
            db.flush().map_err(failed("write"))?;
            self.log_file.sync_data().map_err(io_failed("sync"))
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
    fn a_catalogue_that_another_has_open_is_locked_and_no_damage() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("catalog");
        let _held = SledCatalog::open(&path).expect("opens");
        let error = SledCatalog::open(&path).err().expect("locked");
        assert!(error.is_locked && !error.is_full, "{error}");
    }

    #[test]
    fn an_open_that_hangs_is_given_up_in_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("catalog");
        drop(SledCatalog::open(&path).expect("opens"));
        wait_closed(&path).expect("closed");
        // Reading a pipe that nobody writes to never ends.
        std::fs::remove_file(path.join("conf")).expect("removed");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path.join("conf"), kind, 0o600.into(), 0).expect("a pipe");
        let started = Instant::now();
        let error = SledCatalog::open_within(&path, Duration::from_millis(200)).err().expect("given up");
        assert!(error.to_string().contains("did not answer within 0.2 s"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
        // The thread that waits for the pipe is let go.
        drop(File::options().read(true).write(true).open(path.join("conf")).expect("opens"));
    }

    #[test]
    fn a_panic_of_sled_is_an_error_that_says_so() {
        let panics = || -> Result<(), CatalogError> { panic!("out of bounds: {}", 7) };
        let error = guarded("open", panics).expect_err("it panicked");
        assert!(error.to_string().contains("sled panicked: out of bounds: 7"), "{error}");
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
