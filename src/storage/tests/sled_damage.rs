//! Real sled, held at arm's length: whatever happens to its files costs duplicates at the most.

use super::*;
use crate::storage::catalog::{Catalog, CatalogError, Change, Row, SledCatalog};
use crate::storage::log::Drive;
use std::sync::atomic::{AtomicU32, Ordering};

/// A data directory with ten records of which one cursor has settled four.
fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..10);
    log.settle("a", 0..4);
    drop(log);
    store.close();
    drop(store);
    dir
}

/// Opens after the damage: nothing is lost, and the cursor, which the witness has too, stands where it stood.
fn nothing_is_lost(dir: &Path, what: &str) {
    let (store, report, seen) = open(dir);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(log.cursor("a").expect("cursor").low(), 4, "{what}: the cursor");
    assert_eq!(read_all(&log, 4), (4..10).collect::<Vec<u64>>(), "{what}");
    assert!(seen.lost.lock().is_empty(), "{what}: {:?}", seen.lost.lock());
    assert!(!report.catalog_intact, "{what} was noticed");
    append_all(&log, 10..12);
    drop(log);
    store.close();
    drop(store);
    let (store, report, _) = open(dir);
    assert!(report.catalog_intact, "{what}: rebuilt for good: {:?}", report.notes);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(read_all(&log, 4), (4..12).collect::<Vec<u64>>(), "{what}");
}

fn sled_files(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir.join("catalog"))
        .expect("listed")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

#[test]
fn a_catalogue_that_is_missing_is_rebuilt_from_the_segments() {
    let dir = prepared();
    std::fs::remove_dir_all(dir.path().join("catalog")).expect("removed");
    nothing_is_lost(dir.path(), "a missing catalogue");
}

#[test]
fn a_catalogue_whose_files_are_empty_is_rebuilt_from_the_segments() {
    let dir = prepared();
    for path in sled_files(dir.path()) {
        std::fs::write(path, b"").expect("emptied");
    }
    nothing_is_lost(dir.path(), "an empty catalogue");
}

#[test]
fn a_catalogue_whose_log_is_cut_short_is_rebuilt_from_the_segments() {
    for keep in [1, 16, 64] {
        let dir = prepared();
        let log = dir.path().join("catalog").join("db");
        let file = std::fs::File::options().write(true).open(log).expect("opens");
        file.set_len(keep).expect("cut");
        // sled's snapshot would otherwise know the rows without the log.
        for path in sled_files(dir.path()) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("snap")) {
                std::fs::remove_file(path).expect("removed");
            }
        }
        nothing_is_lost(dir.path(), &format!("a log of {keep} bytes"));
    }
}

#[test]
fn a_catalogue_full_of_garbage_is_set_aside_and_rebuilt_from_the_segments() {
    let dir = prepared();
    for path in sled_files(dir.path()) {
        let len = std::fs::metadata(&path).expect("there").len();
        std::fs::write(&path, vec![0xA5; len.max(1) as usize]).expect("overwritten");
    }
    nothing_is_lost(dir.path(), "garbage");
    assert!(dir.path().join("catalog.damaged.0").is_dir(), "kept for whoever wants to look");
}

/// Fails as it is told, the first times that it is opened or written to.
struct Trouble {
    opens: u32,
}

fn open_with_trouble(dir: &Path, trouble: Trouble) -> (Store, store::OpenReport, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let opened = AtomicU32::new(0);
    let open_catalog: OpenCatalog = Box::new(move |path| {
        if opened.fetch_add(1, Ordering::SeqCst) < trouble.opens {
            assert!(path.is_dir());
            let reason = "sled did not answer within 30 s".to_owned();
            return Err(CatalogError { operation: "open", reason, is_full: false, is_locked: false });
        }
        SledCatalog::open(path).map(|catalog| Box::new(catalog) as Box<dyn Catalog>)
    });
    let observer = Arc::clone(&seen) as Arc<dyn Observer>;
    let (store, report) =
        Store::open_with(Arc::new(RealDisk), dir, &options(), observer, open_catalog, Drive::Threads).expect("opens");
    (store, report, seen)
}

#[test]
fn a_catalogue_that_does_not_open_in_time_is_set_aside_and_rebuilt() {
    let dir = prepared();
    let (store, report, seen) = open_with_trouble(dir.path(), Trouble { opens: 1 });
    assert!(report.notes.iter().any(|note| note.contains("did not answer")), "{:?}", report.notes);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(read_all(&log, 4), (4..10).collect::<Vec<u64>>());
    assert!(seen.lost.lock().is_empty());
}

/// Says that the disk is full while `full` is above zero.
struct Starved {
    inner: SledCatalog,
    full: Arc<AtomicU32>,
}

impl Catalog for Starved {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        self.inner.load()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError> {
        if self.full.load(Ordering::SeqCst) > 0 {
            return Err(CatalogError::io("write", &std::io::ErrorKind::StorageFull.into()));
        }
        self.inner.commit(changes)
    }
}

#[test]
fn rule_7_when_sled_has_no_room_the_witness_alone_lets_segments_go_and_the_ballast_gives_way_and_returns() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let full = Arc::new(AtomicU32::new(0));
    let ballast = dir.path().join("ballast");
    let (is_full, watched) = (Arc::clone(&full), ballast.clone());
    let open_catalog: OpenCatalog = Box::new(move |path| {
        let inner = SledCatalog::open(path)?;
        // It opens again only with the ballast's room.
        if is_full.load(Ordering::SeqCst) > 0 && !watched.exists() {
            is_full.store(0, Ordering::SeqCst);
        }
        Ok(Box::new(Starved { inner, full: Arc::clone(&is_full) }) as Box<dyn Catalog>)
    });
    let seen = Arc::new(Seen::default());
    let observer = Arc::clone(&seen) as Arc<dyn Observer>;
    let options = Options { catalog_retry: Duration::from_millis(20), ..options() };
    let (store, _) = Store::open_with(Arc::new(RealDisk), dir.path(), &options, observer, open_catalog, Drive::Threads)
        .expect("opens");
    let len = std::fs::metadata(&ballast).expect("a ballast").len();
    assert_eq!(len, 64 * SEGMENT_BYTES / 16 / 4096 * 4096);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..60);
    let before = segments(dir.path(), "traces").len();
    full.store(1, Ordering::SeqCst);
    log.settle("a", 0..60);
    eventually("segments go by the witness alone", || segments(dir.path(), "traces").len() < before);
    eventually("the ballast gives way", || {
        log.settle("a", 0..60);
        let _written = store.checkpoint();
        !ballast.exists() || full.load(Ordering::SeqCst) == 0
    });
    eventually("the ballast returns", || {
        append_all(&log, 0..1);
        ballast.exists() && full.load(Ordering::SeqCst) == 0
    });
    assert_eq!(std::fs::metadata(&ballast).expect("a ballast").len(), len);
    assert!(seen.failures.lock().iter().any(|failure| failure.contains("catalogue")), "{:?}", seen.failures.lock());
    assert!(seen.lost.lock().is_empty());
    drop(log);
    store.close();
    drop(store);
    let (_store, report, _) = open(dir.path());
    assert!(report.catalog_intact, "{:?}", report.notes);
}

#[test]
fn a_catalogue_past_its_size_is_written_anew_and_a_crash_at_any_step_of_it_loses_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("catalog");
    let mut catalog = SledCatalog::open(&path).expect("opens");
    let row = |n: u32| (n.to_be_bytes().to_vec(), vec![n as u8; 2000]);
    for round in 0..20u32 {
        let changes: Vec<Change> = (0..100).map(|n| (row(n).0, Some(vec![round as u8; 3000]))).collect();
        catalog.commit(&changes).expect("commits");
    }
    let rows: Vec<Row> = (0..100).map(row).collect();
    let before = catalog.size_bytes();
    catalog.compact(&rows).expect("compacts");
    assert!(catalog.size_bytes() < before, "{} against {before}", catalog.size_bytes());
    assert_eq!(catalog.load().expect("loads"), rows);
    catalog.commit(&[(row(5).0, None)]).expect("goes on");
    drop(catalog);
    let (new, old) = (dir.path().join("catalog.new"), dir.path().join("catalog.old"));
    assert!(!new.exists() && !old.exists(), "nothing is left over");
    let expected: Vec<Row> = rows.iter().filter(|(key, _)| *key != row(5).0).cloned().collect();
    let reopened = |what: &str| {
        let found = SledCatalog::open(&path).expect("opens").load().expect("loads");
        assert_eq!(found, expected, "{what}");
        assert!(!new.exists() && !old.exists(), "{what}: nothing is left over");
    };
    reopened("after the swap");
    std::fs::create_dir(&new).expect("made");
    std::fs::write(new.join("db"), b"half of one").expect("written");
    reopened("killed while the fresh one was written");
    wait_for_sled(&path);
    std::fs::rename(&path, &new).expect("renamed");
    std::fs::create_dir(&old).expect("made");
    reopened("killed between the renames");
}

/// sled lets its lock go a moment after it was closed.
fn wait_for_sled(path: &Path) {
    let file = std::fs::File::open(path.join("db")).expect("opens");
    eventually("sled is closed", || file.try_lock().is_ok());
}

#[test]
fn a_store_compacts_a_catalogue_past_its_limit_and_goes_on() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = Options { catalog_bytes_max: 1, ..options() };
    {
        let (store, _, seen) = open_on(Arc::new(RealDisk), dir.path(), &options).expect("opens");
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..30);
        log.settle("a", 0..7);
        store.checkpoint().expect("written");
        assert!(seen.failures.lock().is_empty(), "{:?}", seen.failures.lock());
        drop(log);
        store.close();
    }
    let (store, report, _) = open(dir.path());
    assert!(report.catalog_intact, "{:?}", report.notes);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(log.cursor("a").expect("cursor").low(), 7);
}

#[test]
fn of_catalogues_set_aside_the_newest_two_are_kept() {
    let dir = prepared();
    for _ in 0..4 {
        for path in sled_files(dir.path()) {
            let len = std::fs::metadata(&path).expect("there").len();
            std::fs::write(&path, vec![0xA5; len.max(1) as usize]).expect("overwritten");
        }
        let (store, report, _) = open(dir.path());
        assert!(!report.catalog_intact);
        store.close();
    }
    let names = std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("entry").file_name());
    let mut aside: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
    aside.retain(|name| name.starts_with("catalog."));
    aside.sort();
    assert_eq!(aside, ["catalog.damaged.2", "catalog.damaged.3"]);
}

/// sled as it is on a full disk: it opens only with the ballast's room.
fn opens_without(ballast: &Path) -> OpenCatalog {
    let ballast = ballast.to_owned();
    Box::new(move |path| match ballast.exists() {
        true => Err(CatalogError::io("open", &std::io::ErrorKind::StorageFull.into())),
        false => SledCatalog::open(path).map(|catalog| Box::new(catalog) as Box<dyn Catalog>),
    })
}

/// Before, the start failed at once, and the ballast stayed where it was.
#[test]
fn a_start_on_a_full_disk_opens_the_catalogue_with_the_ballasts_room_and_takes_it_again_later() {
    let dir = prepared();
    let ballast = dir.path().join("ballast");
    let len = std::fs::metadata(&ballast).expect("a ballast").len();
    let seen = Arc::new(Seen::default());
    let observer = Arc::clone(&seen) as Arc<dyn Observer>;
    let (store, report) =
        Store::open_with(Arc::new(RealDisk), dir.path(), &options(), observer, opens_without(&ballast), Drive::Threads)
            .expect("opens with the ballast's room");
    assert!(report.catalog_intact, "{:?}", report.notes);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(read_all(&log, 4), (4..10).collect::<Vec<u64>>());
    assert!(seen.lost.lock().is_empty());
    eventually("the ballast is there again", || std::fs::metadata(&ballast).is_ok_and(|found| found.len() == len));
}

/// Killed again while the disk is full: the ballast's room is used up. sled would damage its files in each attempt.
#[test]
fn a_start_without_any_room_drains_by_segments_and_witness_and_opens_the_catalogue_later() {
    let dir = prepared();
    std::fs::remove_file(dir.path().join("ballast")).expect("removed");
    let is_full = Arc::new(AtomicU32::new(1));
    let full = Arc::clone(&is_full);
    let open_catalog: OpenCatalog = Box::new(move |path| match full.load(Ordering::SeqCst) {
        0 => SledCatalog::open(path).map(|catalog| Box::new(catalog) as Box<dyn Catalog>),
        _ => Err(CatalogError::io("open", &std::io::ErrorKind::StorageFull.into())),
    });
    let seen = Arc::new(Seen::default());
    let observer = Arc::clone(&seen) as Arc<dyn Observer>;
    let options = Options { catalog_retry: Duration::from_millis(20), ..options() };
    let (store, report) =
        Store::open_with(Arc::new(RealDisk), dir.path(), &options, observer, open_catalog, Drive::Threads)
            .expect("opens");
    assert!(report.notes.iter().any(|note| note.contains("no room to open the catalogue")), "{:?}", report.notes);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(log.cursor("a").expect("cursor").low(), 4);
    assert_eq!(read_all(&log, 4), (4..10).collect::<Vec<u64>>());
    // The catalogue would bring it back.
    let kept = store.forget_cursor("traces", "a").map(drop).expect_err("not now").to_string();
    assert!(kept.contains("free a few MiB") && store.forget_queue("traces").is_err(), "{kept}");
    assert!(log.has_cursor("a") && !segments(dir.path(), "traces").is_empty());
    log.settle("a", 4..7);
    store.checkpoint().expect("by the witness");
    is_full.store(0, Ordering::SeqCst);
    assert!(seen.lost.lock().is_empty());
    // Of itself, and although nothing changes.
    let sled = dir.path().join("catalog/db");
    let before = std::fs::metadata(&sled).expect("there").modified().expect("a time");
    eventually("the catalogue is written again", || {
        std::fs::metadata(&sled).and_then(|found| found.modified()).is_ok_and(|at| at > before)
    });
    drop(log);
    store.close();
    drop(store);
    let (store, report, _) = open(dir.path());
    assert!(report.catalog_intact, "{:?}", report.notes);
    assert_eq!(store.queue("traces", &[]).expect("queue").cursor("a").expect("cursor").low(), 7);
}

/// The catalogue alone knows the cursors then.
#[test]
fn a_start_without_any_room_and_without_a_witness_says_what_to_do_and_changes_nothing() {
    let dir = prepared();
    std::fs::remove_file(dir.path().join("ballast")).expect("removed");
    std::fs::remove_file(dir.path().join("witness")).expect("removed");
    let full: OpenCatalog = Box::new(|_| Err(CatalogError::io("open", &std::io::ErrorKind::StorageFull.into())));
    let observer = Arc::new(Seen::default());
    let refused = Store::open_with(Arc::new(RealDisk), dir.path(), &options(), observer, full, Drive::Threads);
    let error = refused.map(drop).expect_err("no room").to_string();
    assert!(error.contains(&dir.path().display().to_string()) && error.contains("free a few MiB"), "{error}");
    let (store, report, _) = open(dir.path());
    assert!(report.catalog_intact, "{:?}", report.notes);
    assert_eq!(read_all(&store.queue("traces", &[]).expect("queue"), 4), (4..10).collect::<Vec<u64>>());
    assert!(!dir.path().join("catalog.damaged.0").exists());
}

/// Before, the second one took the catalogue of the first for damaged, put its own in its place and was ready.
#[test]
fn a_second_process_is_refused_also_when_the_lock_file_of_the_first_was_removed() {
    let dir = prepared();
    let (store, _, _) = open(dir.path());
    std::fs::remove_file(dir.path().join("LOCK")).expect("removed");
    let refused = open_on(Arc::new(RealDisk), dir.path(), &options()).map(drop).expect_err("in use");
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    assert!(!dir.path().join("catalog.damaged.0").exists());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 10..12);
    assert_eq!(read_all(&log, 4), (4..12).collect::<Vec<u64>>());
}
