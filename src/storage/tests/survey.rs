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

/// Before, `verify` did not look at dead letters.
#[test]
fn damage_to_dead_letters_is_found_and_nothing_is_changed() {
    use crate::storage::dead_letters::{AtCap, NewLetter, Options as Bounds};
    let dir = tempfile::tempdir().expect("temporary directory");
    drop(open(dir.path()));
    assert!(survey(dir.path(), Depth::Records).expect("readable").dead_letters.iter().all(|found| found.letters == 0));
    let bounds = Bounds { max_bytes: 1 << 20, at_cap: AtCap::Refuse, first_id: 0, settles_damage: true };
    let dlq = dir.path().join("dlq");
    let (log, _) = DeadLetterLog::open(Arc::new(RealDisk), &dlq, bounds, None).expect("opens");
    let letter = NewLetter {
        signal: 1,
        encoding: 0,
        items: 1,
        raw_len: 0,
        parked_unix_ns: 1,
        description: Bytes::from_static(b"{}"),
        payload: Bytes::from(vec![7; 9000]),
    };
    let _ = log.append(vec![letter.clone(); 5]).expect("kept");
    // Beside the process that is writing, and after it.
    assert!(!survey(dir.path(), Depth::Records).expect("readable").is_damaged());
    let _ = log.append(vec![letter; 5]).expect("kept");
    log.close();
    let found = survey(dir.path(), Depth::Records).expect("readable");
    assert_eq!((found.dead_letters[0].letters, found.is_damaged()), (10, false));
    assert!(survey(dir.path(), Depth::Headers).expect("readable").dead_letters.is_empty());
    let path = segment::path_in(&dlq, 1);
    let file = std::fs::File::options().write(true).open(&path).expect("opens");
    file.set_len(30_000).expect("cut");
    for _ in 0..2 {
        let found = survey(dir.path(), Depth::Records).expect("readable");
        assert!(found.is_damaged());
        let damage = &found.dead_letters[0].damage;
        assert_eq!(damage.iter().map(|damage| damage.letters).collect::<Vec<_>>(), [Some(3)], "{damage:?}");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), 30_000);
    }
    std::fs::remove_dir_all(&dlq).expect("removed");
    let found = survey(dir.path(), Depth::Records).expect("readable");
    assert!(found.is_damaged() && !dlq.exists());
}
