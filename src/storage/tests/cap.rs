//! What the cap is where nobody has set one, and whom a refusal at it names.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::storage::disk::{DirEntry, DiskSpace};

const MIB: u64 = 1 << 20;

/// A file system of its own: what the data directory holds is not free.
#[derive(Debug)]
struct OwnFileSystem {
    dir: PathBuf,
    total_bytes: u64,
    /// Held by others.
    others_bytes: AtomicU64,
}

fn len_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("entry"));
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => len_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Removed while we look.
            Err(_) => 0,
        })
        .sum()
}

impl Disk for OwnFileSystem {
    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let used = len_below(&self.dir) + self.others_bytes.load(Ordering::SeqCst);
        let available_bytes = self.total_bytes.saturating_sub(used);
        Ok(DiskSpace { total_bytes: self.total_bytes, available_bytes, ..RealDisk.space(path)? })
    }
    fn create(&self, path: &Path, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.create(path, allocate_bytes)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path)
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
    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        RealDisk.lock(path)
    }
}

#[test]
fn the_cap_that_nobody_set_is_the_same_after_a_restart_with_a_backlog() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = Arc::new(OwnFileSystem {
        dir: dir.path().to_owned(),
        total_bytes: 100 * MIB,
        others_bytes: AtomicU64::new(20 * MIB),
    });
    let options = Options { max_size_bytes: None, segment_bytes: Some(MIB), ..options() };
    let mut caps = Vec::new();
    for n in 0..3 {
        let (store, _, _) = open_on(Arc::clone(&disk) as Arc<dyn Disk>, dir.path(), &options).expect("opens");
        caps.push(store.space().max_bytes());
        let log = store.queue("traces", &cursor("dead")).expect("queue");
        for _ in 0..10 {
            let _receipt = append(&log, vec![n; MIB as usize - (16 << 10)]).expect("durable");
        }
        // What others leave in our directory was not ours and is not.
        std::fs::create_dir_all(dir.path().join("out")).expect("made");
        std::fs::write(dir.path().join("out/telemetry.jsonl"), vec![0; MIB as usize]).expect("written");
        drop(log);
        store.close();
    }
    for cap in &caps {
        assert!(cap.abs_diff(40 * MIB) <= MIB, "half of what was free at first: {caps:?}");
    }
}

#[test]
fn a_refusal_names_the_queue_that_holds_the_room_and_not_the_one_that_asks() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let (busy, full) =
        (store.queue("busy", &cursor("well")).expect("queue"), store.queue("full", &cursor("dead")).expect("queue"));
    append_all(&busy, 0..1);
    let refused = |log: &Log, n| append(log, payload(n)).is_err();
    let written = (0..10_000).take_while(|n| !refused(&full, *n)).count();
    assert!((100..10_000).contains(&written), "{written}: the cap does not hold");
    let Err(refusal) = busy.reserve(Weight::request(4 * SEGMENT_BYTES)) else { panic!("there is room") };
    assert!(refusal.to_string().contains("held by exporter \"dead\" in queue \"full\""), "{refusal}");
    // Nor does it go without a name where nobody is behind.
    busy.settle("well", 0..1);
    full.settle("dead", 0..written as u64);
    let Err(refusal) = busy.reserve(Weight::request(1000 * SEGMENT_BYTES)) else { panic!("there is room") };
    assert!(refusal.to_string().contains("held by no exporter"), "{refusal}");
}

/// Before, 64 MiB segments on a volume of 64 MiB refused everything, and nothing said why.
#[test]
fn on_a_volume_smaller_than_the_cap_segments_shrink_until_several_fit() {
    for (volume_mib, segment_bytes) in
        [(4, 435 << 10), (16, 1740 << 10), (64, 4 << 20), (200, 10_880 << 10), (1 << 20, 64 << 20)]
    {
        let dir = tempfile::tempdir().expect("temporary directory");
        let total_bytes = volume_mib * MIB;
        let disk = OwnFileSystem { dir: dir.path().to_owned(), total_bytes, others_bytes: AtomicU64::new(0) };
        let options = Options { max_size_bytes: Some(10 << 30), ..Options::default() };
        let (store, _, _) = open_on(Arc::new(disk), dir.path(), &options).expect("opens");
        let found = store.segment_bytes();
        assert!(found.abs_diff(segment_bytes) <= segment_bytes / 20, "{volume_mib} MiB: {found}");
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..10);
        assert_eq!(read_all(&log, 0), (0..10).collect::<Vec<u64>>());
    }
}

#[test]
fn a_refusal_says_so_where_not_even_one_segment_ever_fits() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = OwnFileSystem { dir: dir.path().to_owned(), total_bytes: 64 * MIB, others_bytes: AtomicU64::new(0) };
    let options = Options { max_size_bytes: Some(10 << 30), segment_bytes: Some(64 << 20), ..Options::default() };
    let (store, _, _) = open_on(Arc::new(disk), dir.path(), &options).expect("opens");
    let log = store.queue("traces", &cursor("a")).expect("queue");
    let refused = log.reserve(Weight::request(100)).expect_err("too much").to_string();
    assert!(
        refused.contains("67108864 more, in whole segments, do not fit") && refused.contains("never will"),
        "{refused}"
    );
    assert!(log.is_full_for(100));
}
