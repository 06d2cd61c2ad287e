//! What somebody else put into a data directory, or took out of it: left alone, and named.

use super::*;

/// A queue with so many records; the process has ended in order.
fn prepared(records: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..records);
    store.close();
    dir
}

/// Before, `lost+found` became a queue of that name, with a directory `lost%2Bfound`.
#[test]
fn directories_that_are_no_queues_are_left_alone() {
    let dir = prepared(5);
    let queues = dir.path().join("queues");
    for name in ["lost+found", "notes"] {
        std::fs::create_dir(queues.join(name)).expect("made");
        std::fs::write(queues.join(name).join("somebody's"), b"text").expect("written");
    }
    std::fs::create_dir(queues.join("empty")).expect("made");
    let (store, report, _) = open(dir.path());
    assert_eq!(report.strangers, [queues.join("empty"), queues.join("lost+found"), queues.join("notes")]);
    let ids: Vec<String> = store.queues().iter().map(|log| log.id().to_owned()).collect();
    assert_eq!(ids, ["traces"]);
    assert!(report.catalog_intact, "{:?}", report.notes);
    assert_eq!(std::fs::read_dir(&queues).expect("listed").count(), 4);
}

/// Before, each checkpoint failed with an error, until a restart.
#[test]
fn a_settled_segment_that_somebody_removed_counts_as_reclaimed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, seen) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..60);
    let before = log.status().allocated_bytes;
    for path in &segments(dir.path(), "traces")[..2] {
        std::fs::remove_file(path).expect("removed");
    }
    log.settle("a", 0..60);
    store.checkpoint().expect("written");
    assert_eq!(*seen.failures.lock(), Vec::<String>::new());
    assert!(log.status().allocated_bytes <= before / 2, "{} of {before}", log.status().allocated_bytes);
    append_all(&log, 60..80);
    assert_eq!(read_all(&log, 60), (60..80).collect::<Vec<u64>>());
}

/// Before, the first was called missing.
#[test]
fn of_two_files_that_changed_places_each_loss_names_its_cause() {
    let dir = prepared(60);
    let paths = segments(dir.path(), "traces");
    let (one, other) = (std::fs::read(&paths[0]).expect("read"), std::fs::read(&paths[1]).expect("read"));
    std::fs::write(&paths[0], other).expect("written");
    std::fs::write(&paths[1], one).expect("written");
    let (_store, report, seen) = open(dir.path());
    let lost = seen.lost.lock();
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert!(lost.iter().all(|lost| lost.reason == "its file holds another segment"), "{lost:?}");
    assert_eq!(report.queues["traces"].quarantined.len(), 2);
}

/// Before, the zeros that were allocated ahead counted as torn, and the header as a loss of 0 records beside the true one.
#[test]
fn an_end_that_was_never_written_is_not_torn_and_a_file_without_a_header_is_told_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..30);
    store.checkpoint().expect("written");
    let crashed = crash_copy(dir.path());
    let (again, report, seen) = open(crashed.path());
    assert_eq!(report.queues["traces"].torn_tail_bytes, 0);
    assert!(seen.lost.lock().is_empty());
    drop(again);

    let crashed = crash_copy(dir.path());
    std::fs::remove_dir_all(crashed.path().join("catalog")).expect("removed");
    let paths = segments(crashed.path(), "traces");
    for path in &paths[paths.len() - 2..] {
        let mut bytes = std::fs::read(path).expect("read");
        bytes[..RECORDS_START].fill(0);
        std::fs::write(path, bytes).expect("written");
    }
    let (_store, report, seen) = open(crashed.path());
    assert!(!report.queues["traces"].quarantined.is_empty());
    let lost = seen.lost.lock();
    assert!(lost.iter().all(|lost| !lost.sequences.is_empty()), "{lost:?}");
    assert_eq!(lost.iter().map(|lost| lost.sequences.end).max(), Some(30), "{lost:?}");
}

#[test]
fn a_witness_that_is_garbage_is_said_and_costs_nothing() {
    for garbage in [None, Some(vec![0xA5; 512 << 10])] {
        let dir = prepared(10);
        let witness = dir.path().join("witness");
        match garbage {
            None => std::fs::remove_file(&witness).expect("removed"),
            Some(bytes) => std::fs::write(&witness, bytes).expect("written"),
        }
        let (store, report, seen) = open(dir.path());
        assert!(report.witness_lost && seen.lost.lock().is_empty());
        assert_eq!(read_all(&store.queue("traces", &cursor("a")).expect("queue"), 0), (0..10).collect::<Vec<u64>>());
        store.close();
        drop(store);
        assert!(!open(dir.path()).1.witness_lost, "it is written anew");
    }
}

#[test]
fn a_directory_in_a_files_place_is_named() {
    let dir = prepared(5);
    let ballast = dir.path().join("ballast");
    std::fs::remove_file(&ballast).expect("removed");
    std::fs::create_dir(&ballast).expect("made");
    let error =
        open_on(Arc::new(RealDisk), dir.path(), &options()).map(drop).expect_err("it is in the way").to_string();
    assert!(error.contains(&ballast.display().to_string()), "{error}");
    std::fs::remove_dir(&ballast).expect("removed");
    // In a queue it is nobody's, and takes no segment's name away.
    let next = dir.path().join("queues/traces/0000000000000040.seg");
    std::fs::create_dir(&next).expect("made");
    let (store, report, seen) = open(dir.path());
    assert_eq!(report.queues["traces"].strangers, [next]);
    append_all(&store.queue("traces", &cursor("a")).expect("queue"), 5..50);
    assert!(seen.failures.lock().is_empty(), "{:?}", seen.failures.lock());
}
