//! Rule 6 and its neighbours: what the log does when the disk says no.

use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::storage::disk::{DirEntry, DiskSpace};

/// Failures that the tests order.
#[derive(Debug, Default)]
struct Orders {
    /// So many syncs of segments fail, then they succeed again.
    failing_syncs: AtomicU32,
    /// So many removals and so many renames of segments fail.
    failing_removals: AtomicU32,
    failing_renames: AtomicU32,
    /// Creating a file fails with ENOSPC.
    no_space: AtomicBool,
    /// What `space` reports as available, when set (in MiB, 0: the truth).
    available_mib: AtomicU32,
    armed: AtomicBool,
    /// Pages that cannot be read: of the file with that inode, at that offset.
    bad_pages: parking_lot::Mutex<Vec<(u64, u64)>>,
    /// Inodes of files that were let go from the page cache, in that order.
    uncached: parking_lot::Mutex<Vec<u64>>,
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
    inode: u64,
}

impl DiskFile for FaultyFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(parts, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = offset..offset + buffer.len() as u64;
        let is_bad = |(inode, page): &(u64, u64)| *inode == self.inode && read.start < page + 4096 && *page < read.end;
        if self.orders.bad_pages.lock().iter().any(is_bad) {
            return Err(io::Error::from_raw_os_error(5));
        }
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
    fn uncache(&self) {
        self.orders.uncached.lock().push(self.inode);
    }
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }
}

/// Fails while there are failures left of what was ordered.
fn fail(path: &Path, left: &AtomicU32) -> io::Result<()> {
    let is_segment = path.extension().is_some_and(|extension| extension == "seg");
    let take = |left: u32| left.checked_sub(1);
    match is_segment && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
        true => Err(io::Error::from_raw_os_error(5)),
        false => Ok(()),
    }
}

impl FaultyDisk {
    fn wrap(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        if path.to_string_lossy().contains("/queues/") {
            let inode = std::fs::metadata(path).expect("there").ino();
            Arc::new(FaultyFile { inner: file, orders: Arc::clone(&self.orders), inode })
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
        fail(from, &self.orders.failing_renames)?;
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        fail(path, &self.orders.failing_removals)?;
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

#[test]
fn a_bad_sector_refuses_the_start_and_a_repair_reads_around_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let orders = Arc::new(Orders::default());
    let disk: Arc<dyn Disk> = Arc::new(FaultyDisk { inner: RealDisk, orders: Arc::clone(&orders) });
    let (store, _, _) = open_on(Arc::clone(&disk), dir.path(), &options()).expect("opens");
    let log = store.queue("traces", &cursor("a")).expect("queue");
    for n in 0..40 {
        let _receipt = append(&log, vec![n; 1000]).expect("durable");
    }
    drop((log, store));
    // Neither catalogue nor witness vouches for what the segment holds.
    std::fs::remove_dir_all(dir.path().join("catalog")).expect("removed");
    let oldest = segments(dir.path(), "traces").into_iter().min().expect("a segment");
    let inode = std::fs::metadata(&oldest).expect("there").ino();
    orders.bad_pages.lock().push((inode, 16384));
    let refused = open_on(Arc::clone(&disk), dir.path(), &options()).map(drop);
    assert!(refused.is_err_and(|error| error.to_string().contains("Input/output error")), "it starts");

    let seen = Arc::new(Seen::default());
    let (store, report) = Store::repair(Arc::clone(&disk), dir.path(), seen).expect("repairs");
    assert_eq!(report.salvaged.iter().map(|one| one.unreadable_bytes).collect::<Vec<_>>(), [4096]);
    assert!(report.salvaged[0].original.exists(), "the original stays");
    let lost: u64 = report.queues["traces"].lost.iter().map(|lost| lost.sequences.end - lost.sequences.start).sum();
    assert!((4..=5).contains(&lost), "a page touches four or five records: {:?}", report.queues["traces"].lost);
    drop(store);
    // And starts again, also over the broken disk: what could be read is delivered.
    let (store, _, _) = open_on(disk, dir.path(), &options()).expect("opens");
    let log = store.queue("traces", &cursor("a")).expect("queue");
    let (mut position, mut found) = (Position::at(0), 0);
    while position.sequence < log.durable_end() {
        let chunk = log.read_file(position, u64::MAX, 100).expect("readable");
        position = chunk.next;
        found += chunk.records.len() as u64;
    }
    assert_eq!(found, 40 - lost);
}

#[test]
fn a_repair_that_broke_off_between_its_renames_is_ended_by_the_next_start() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..5);
    drop((log, store));
    let segment = segments(dir.path(), "traces").into_iter().min().expect("a segment");
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", segment.display()));
    std::fs::copy(&segment, beside(".salvaged")).expect("copied");
    std::fs::rename(&segment, beside(".damaged")).expect("renamed");
    let (store, report, seen) = open(dir.path());
    assert!(report.queues["traces"].lost.is_empty() && seen.lost.lock().is_empty());
    assert_eq!(read_all(&store.queue("traces", &cursor("a")).expect("queue"), 0), [0, 1, 2, 3, 4]);
    drop(store);
    // A copy beside its original is one that was not whole.
    std::fs::write(beside(".salvaged"), b"half").expect("written");
    let (store, _, _) = open(dir.path());
    assert_eq!(read_all(&store.queue("traces", &cursor("a")).expect("queue"), 0), [0, 1, 2, 3, 4]);
    assert!(!beside(".salvaged").exists());
}

#[test]
fn what_one_exporter_has_passed_and_another_has_not_leaves_the_page_cache_once_and_what_was_found_at_start_stays() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, orders) = faulty(dir.path());
    let log =
        store.queue("traces", &[("fine".to_owned(), StartAt::Beginning), ("dead".to_owned(), StartAt::Beginning)]);
    let log = log.expect("queue");
    let fill = |log: &Log, count: usize| {
        let before = segments(dir.path(), "traces").len();
        while segments(dir.path(), "traces").len() < before + count {
            let _receipt = append(log, vec![7; 1000]).expect("durable");
        }
    };
    let inodes = || -> Vec<u64> {
        let mut paths = segments(dir.path(), "traces");
        paths.sort();
        paths.iter().map(|path| std::fs::metadata(path).expect("there").ino()).collect()
    };
    fill(&log, 7);
    store.checkpoint().expect("written");
    let unread = orders.uncached.lock().clone();
    assert!(!unread.is_empty() && unread.len() <= inodes().len() - 4, "nobody has come past them: {unread:?}");
    log.settle("fine", 0..log.durable_end());
    store.checkpoint().expect("written");
    store.checkpoint().expect("written");
    let mut uncached = orders.uncached.lock().clone();
    assert!(uncached.len() > unread.len() && uncached.len() <= inodes().len() - 2, "{uncached:?} of {:?}", inodes());
    let (expected, count) = (inodes()[..uncached.len()].to_vec(), uncached.len());
    uncached.sort_unstable();
    uncached.dedup();
    assert_eq!(uncached.len(), count, "each once");
    assert!(expected.iter().all(|inode| uncached.contains(inode)), "the oldest: {uncached:?} of {expected:?}");
    log.settle("dead", 0..5);
    drop((log, store));
    let (store, _, orders) = faulty(dir.path());
    store.queue("traces", &[]).map(drop).expect("queue");
    store.checkpoint().expect("written");
    assert!(orders.uncached.lock().is_empty());
}

#[test]
fn a_segment_that_cannot_be_removed_stays_counted_keeps_no_other_and_goes_later() {
    for is_removal in [true, false] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let orders = Arc::new(Orders::default());
        let disk = Arc::new(FaultyDisk { inner: RealDisk, orders: Arc::clone(&orders) });
        let options = Options { catalog_retry: Duration::from_millis(20), ..options() };
        let (store, _, seen) = open_on(disk, dir.path(), &options).expect("opens");
        let log = store.queue("traces", &cursor("a")).expect("queue");
        let ballast_bytes = std::fs::metadata(dir.path().join("ballast")).expect("a ballast").len();
        append_all(&log, 0..100);
        let most = segments(dir.path(), "traces").len();
        let left = if is_removal { &orders.failing_removals } else { &orders.failing_renames };
        left.store(1, Ordering::SeqCst);
        log.settle("a", 0..100);
        eventually("it has failed", || !seen.failures.lock().is_empty());
        assert!(seen.failures.lock()[0].contains("reclaim"), "{:?}", seen.failures.lock());
        // Nothing changes any more, and all the same what failed is tried again: only the one in use, the one behind it
        // and a spare are left.
        eventually("the others are gone", || segments(dir.path(), "traces").len() <= 3);
        assert!(most >= 8, "{most} segments: the run was no run");
        eventually("what is counted is what is there", || {
            let files = std::fs::read_dir(dir.path().join("queues/traces")).expect("listed");
            let len = |file: std::fs::DirEntry| file.metadata().map_or(0, |metadata| metadata.len());
            let bytes: u64 = files.map(|file| len(file.expect("entry"))).sum();
            store.space().allocated_bytes() == ballast_bytes + bytes
        });
        append_all(&log, 100..130);
        assert_eq!(read_all(&log, 100), (100..130).collect::<Vec<u64>>());
    }
}
