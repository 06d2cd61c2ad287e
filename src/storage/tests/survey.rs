//! What a look calls damage, and what it does not.

use std::io;

use super::*;
use crate::storage::disk::{DirEntry, DiskFile, DiskSpace};
use crate::storage::read_only::ReadOnlyDisk;
use crate::storage::survey::{Depth, survey, survey_on};

fn damage(dir: &Path) -> Vec<String> {
    let found = survey(dir, Depth::Records).expect("readable");
    let all = found.queues.into_iter().flat_map(|queue| queue.damage);
    all.map(|damage| format!("{} {:?} {}", damage.offset, damage.sequences, damage.reason)).collect()
}

#[test]
fn what_was_given_back_is_no_damage_when_nobody_reads_any_more_or_the_witness_is_gone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("q", &cursor("x")).expect("queue");
    append_all(&log, 0..40);
    log.settle("x", 0..30);
    store.checkpoint().expect("written");
    store.checkpoint().expect("written");
    assert!(log.oldest_sequence() > 0, "something was given back");
    store.close();
    assert_eq!(damage(dir.path()), [""; 0]);
    let copy = crash_copy(dir.path());
    std::fs::write(copy.path().join("witness"), b"").expect("written");
    assert_eq!(damage(copy.path()), [""; 0]);
    drop((log, store));
    let (store, _, _) = open(dir.path());
    store.forget_cursor("q", "x").expect("written").expect("there");
    store.close();
    assert_eq!(damage(dir.path()), [""; 0]);
}

#[test]
fn what_repair_has_settled_is_reported_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("q", &cursor("x")).expect("queue");
    append_all(&log, 0..10);
    store.close();
    drop((log, store));
    let path = segments(dir.path(), "q").remove(0);
    let mut bytes = std::fs::read(&path).expect("readable");
    let at = bytes.windows(5).position(|window| window == b"4    ").expect("its payload");
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let found = damage(dir.path());
    assert!(found.iter().any(|line| line.contains("Some((4, 5))")), "{found:?}");
    assert!(found.iter().any(|line| line.contains("no record")), "{found:?}");
    let (store, report) =
        Store::repair(Arc::new(RealDisk), dir.path(), Arc::new(Seen::default())).expect("the store opens");
    assert_eq!(report.queues["q"].lost.len(), 1);
    store.close();
    drop(store);
    assert_eq!(damage(dir.path()), [""; 0], "it lies there still, and is no news");
}

/// A data directory whose owner writes something the first time that a certain file is opened.
#[derive(Debug)]
struct Busy {
    opened: PathBuf,
    written: Mutex<Option<(PathBuf, Vec<u8>)>>,
}

impl Disk for Busy {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if path == self.opened
            && let Some((path, bytes)) = self.written.lock().take()
        {
            std::fs::write(path, bytes)?;
        }
        ReadOnlyDisk.open(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        ReadOnlyDisk.list(dir)
    }
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        ReadOnlyDisk.create(path, allocate_bytes)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        ReadOnlyDisk.create_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        ReadOnlyDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        ReadOnlyDisk.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        ReadOnlyDisk.sync_dir(path)
    }
    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        ReadOnlyDisk.space(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        ReadOnlyDisk.lock(path)
    }
}

#[test]
fn what_was_written_into_a_segment_after_the_look_at_it_is_not_missing_before_the_next_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("q", &cursor("x")).expect("queue");
    append_all(&log, 0..40);
    store.close();
    let paths = segments(dir.path(), "q");
    let whole = std::fs::read(&paths[0]).expect("readable");
    let start = whole.windows(4).rposition(|found| found == b"FBR1").expect("a record");
    let mut earlier = whole.clone();
    earlier[start..].fill(0);
    std::fs::write(&paths[0], &earlier).expect("written");
    assert_eq!(damage(dir.path()).len(), 1, "were it so it would be damage");
    let busy = Busy { opened: paths[1].clone(), written: Mutex::new(Some((paths[0].clone(), whole))) };
    let disk: Arc<dyn Disk> = Arc::new(busy);
    let found = survey_on(&disk, dir.path(), Depth::Records).expect("readable");
    assert_eq!((found.is_damaged(), found.queues[0].records), (false, 40), "{:?}", found.queues[0]);
}
