//! Rule 6 and its neighbours: what the log does when the disk says no.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::storage::disk::{DirEntry, DiskSpace};

/// Failures that the tests order.
#[derive(Debug, Default)]
struct Orders {
    /// So many syncs of segments fail, then they succeed again.
    failing_syncs: AtomicU32,
    /// Creating a file fails with ENOSPC.
    no_space: AtomicBool,
    /// What `space` reports as available, when set (in MiB, 0: the truth).
    available_mib: AtomicU32,
    armed: AtomicBool,
}

#[derive(Debug)]
struct FaultyDisk {
    inner: RealDisk,
    orders: Arc<Orders>,
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn DiskFile>,
    orders: Arc<Orders>,
}

impl DiskFile for FaultyFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(parts, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        let left = self.orders.failing_syncs.load(Ordering::SeqCst);
        if self.orders.armed.load(Ordering::SeqCst) && left > 0 {
            self.orders.failing_syncs.store(left - 1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(5));
        }
        self.inner.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }
}

impl FaultyDisk {
    fn wrap(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        if path.to_string_lossy().contains("/queues/") {
            Arc::new(FaultyFile { inner: file, orders: Arc::clone(&self.orders) })
        } else {
            file
        }
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        if self.orders.no_space.load(Ordering::SeqCst) && path.to_string_lossy().contains("/queues/") {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(self.wrap(path, self.inner.create(path, allocate_bytes)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.open(path)?))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }
    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let mut space = self.inner.space(path)?;
        let mib = self.orders.available_mib.load(Ordering::SeqCst);
        if mib > 0 {
            space.available_bytes = u64::from(mib) << 20;
        }
        Ok(space)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        self.inner.lock(path)
    }
}

fn faulty(dir: &Path) -> (Store, Arc<Seen>, Arc<Orders>) {
    let orders = Arc::new(Orders::default());
    let disk = Arc::new(FaultyDisk { inner: RealDisk, orders: Arc::clone(&orders) });
    let (store, _, seen) = open_on(disk, dir, &options()).expect("opens");
    (store, seen, orders)
}

#[test]
fn rule_6_a_failed_sync_is_final_for_its_segment_and_the_record_becomes_durable_in_a_fresh_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, seen, orders) = faulty(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..2);
    let before = segments(dir.path(), "traces");
    orders.failing_syncs.store(1, Ordering::SeqCst);
    orders.armed.store(true, Ordering::SeqCst);
    append_all(&log, 2..4);
    assert_eq!(seen.failures.lock().len(), 1);
    let crashed = crash_copy(dir.path());
    drop(store);
    assert!(segments(crashed.path(), "traces").len() > before.len(), "the log rolled");
    let (again, report, seen) = open(crashed.path());
    let log = again.queue("traces", &cursor("a")).expect("queue");
    let mut found = read_all(&log, 0);
    // What the failed sync left behind may surface too: a duplicate, never a loss.
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, vec![0, 1, 2, 3]);
    assert!(report.queues["traces"].lost.is_empty() && seen.lost.lock().is_empty(), "a number never used is no loss");
}

#[test]
fn rule_6_after_three_failures_in_a_row_intake_is_refused_and_comes_back_by_itself() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, orders) = faulty(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..1);
    orders.failing_syncs.store(4, Ordering::SeqCst);
    orders.armed.store(true, Ordering::SeqCst);
    let error = append(&log, payload(1)).expect_err("refused");
    assert!(matches!(error, AppendError::Failed(_)), "{error}");
    let refusal = log.reserve(Weight::request(100)).expect_err("refused at the door");
    assert!(matches!(refusal, Full::Failed(_)), "{refusal}");
    eventually("intake returns", || append(&log, payload(1)).is_ok());
    let mut found = read_all(&log, 0);
    found.dedup();
    assert_eq!(found, vec![0, 1]);
}

#[test]
fn rule_7_a_full_file_system_is_refused_as_full_also_when_the_floor_was_overrun_by_others() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, seen, orders) = faulty(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    orders.available_mib.store(1, Ordering::SeqCst);
    eventually("the floor is noticed", || {
        log.reserve(Weight::request(SEGMENT_BYTES)).is_err_and(|full| matches!(full, Full::FileSystem { .. }))
    });
    assert!(seen.failures.lock().is_empty(), "noticed before writing");
    orders.available_mib.store(0, Ordering::SeqCst);
    orders.no_space.store(true, Ordering::SeqCst);
    eventually("ENOSPC is answered as full", || {
        append(&log, payload(0))
            .is_err_and(|error| matches!(error, AppendError::Full(_)) && error.to_string().contains("allocate"))
    });
    orders.no_space.store(false, Ordering::SeqCst);
    append_all(&log, 0..3);
    assert_eq!(read_all(&log, 0), vec![0, 1, 2]);
}

#[test]
fn the_record_is_not_readable_before_its_sync_returned() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, orders) = faulty(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..1);
    orders.failing_syncs.store(3, Ordering::SeqCst);
    orders.armed.store(true, Ordering::SeqCst);
    assert!(append(&log, payload(1)).is_err());
    assert_eq!(log.durable_end(), 1);
    assert_eq!(read_all(&log, 0), vec![0]);
}
