//! What an opening costs: bytes read, not time.

use std::sync::atomic::Ordering;

use super::*;
use crate::storage::counting::CountingDisk;

const LARGE_SEGMENT_BYTES: u64 = 256 << 10;
const SEGMENTS: u64 = 32;

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn an_opening_after_a_crash_reads_headers_and_a_few_segments_and_not_the_backlog() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    let options = Options {
        max_size_bytes: Some(2 * SEGMENTS * LARGE_SEGMENT_BYTES),
        segment_bytes: Some(LARGE_SEGMENT_BYTES),
        ..options()
    };
    let (store, _, _) = open_on(Arc::new(RealDisk), &live, &options).expect("opens");
    let log = store.queue("q", &cursor("x")).expect("queue");
    let per_segment = (LARGE_SEGMENT_BYTES - segment::RECORDS_START) / 10_080;
    let count = SEGMENTS * per_segment + per_segment / 2;
    for _ in 0..count {
        let new = record(vec![7; 10_000]);
        let reserved = log.reserve(new.weight()).expect("room");
        let _durable = log.append(reserved, new).blocking_recv().expect("answered").expect("durable");
    }
    // In the middle of a segment, so that what is left of it has to be counted.
    log.settle("x", 0..per_segment / 2);
    store.checkpoint().expect("written");
    // As a kill leaves it: the last segment is not in the catalogue. Copied again if the keeper was at work meanwhile,
    // for a copy of the witness that is newer than that of the catalogue is nothing that a kill leaves.
    let checkpoint = || witness::peek(&RealDisk, &live).expect("readable").map(|account| account.meta().checkpoint);
    loop {
        let before = checkpoint();
        copy_dir(&live, &crashed);
        if checkpoint() == before {
            break;
        }
    }

    let disk = CountingDisk::default();
    let read_bytes = Arc::clone(&disk.read_bytes);
    let (reopened, report, seen) = open_on(Arc::new(disk), &crashed, &options).expect("opens");
    let found = &report.queues["q"];
    assert_eq!(found.records, count);
    assert!(found.scanned <= 2, "{} segments were scanned", found.scanned);
    assert!(seen.lost.lock().is_empty());
    let log = reopened.queue("q", &cursor("x")).expect("queue");
    assert_eq!(log.status().cursors[0].backlog.records, count - per_segment / 2);
    let (read, backlog) = (read_bytes.load(Ordering::SeqCst), count * 10_080);
    let witness = 512 << 10;
    let most = witness + (SEGMENTS + 2) * segment::RECORDS_START + 3 * LARGE_SEGMENT_BYTES;
    println!("opened {backlog} bytes of backlog by reading {read}");
    assert!(read <= most && most < backlog / 4, "{read} bytes were read, at most {most} are needed of {backlog}");
}

/// Before, each of them moved the window, and 64 KiB were read again: seconds for one segment.
#[test]
fn a_segment_full_of_magic_numbers_is_read_once_while_it_is_searched() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = CountingDisk::default();
    let identity = segment::Identity { id: 0, nonce: [7; 16], sequence_floor: 0 };
    let path = dir.path().join(segment::file_name(0));
    let mut bytes = identity.encode();
    bytes.resize(1 << 20, 0);
    for word in bytes[RECORDS_START..].chunks_exact_mut(record::ALIGN as usize) {
        word[..4].copy_from_slice(&record::MAGIC);
    }
    std::fs::write(&path, &bytes).expect("written");
    let file = disk.open(&path).expect("opens");
    let scan = segment::scan_all(&file, identity).expect("scanned");
    assert!(scan.records.is_empty());
    let read = disk.read_bytes.load(Ordering::SeqCst);
    assert!(read <= 2 * bytes.len() as u64, "{read} bytes were read");
}

/// Before, the ids wrapped around, and the first new segment took the name of one with acknowledged records.
#[test]
fn files_of_absurd_ids_use_no_ids_up_and_no_segment_is_written_over() {
    for name in ["ffffffffffffffff", "fffffffffffffffe", "8000000000000000", "7fffffffffffffff", "7ffffffffffffffe"] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..50);
        store.close();
        drop((log, store));
        let stray = dir.path().join("queues/traces").join(format!("{name}.seg"));
        std::fs::write(&stray, b"").expect("written");
        for round in 1..4 {
            let (store, report, _) = open(dir.path());
            let log = store.queue("traces", &cursor("a")).expect("queue");
            append_all(&log, round * 50..(round + 1) * 50);
            assert_eq!(read_all(&log, 0), (0..(round + 1) * 50).collect::<Vec<u64>>(), "{name}");
            let is_stranger = name.starts_with(['8', 'f']);
            assert_eq!(report.queues["traces"].strangers.len(), usize::from(is_stranger), "{name}");
            store.close();
        }
    }
}

#[test]
fn a_file_that_took_the_name_of_the_next_segment_is_not_replaced() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, seen) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..1);
    let newest = segments(dir.path(), "traces").len() as u64;
    let taken: Vec<PathBuf> =
        (newest..newest + 4).map(|id| segment::path_in(&dir.path().join("queues/traces"), id)).collect();
    let taken: Vec<PathBuf> = taken.into_iter().filter(|path| !path.exists()).collect();
    taken.iter().for_each(|path| std::fs::write(path, b"somebody's").expect("written"));
    append_all(&log, 1..100);
    assert_eq!(read_all(&log, 0), (0..100).collect::<Vec<u64>>());
    assert!(taken.iter().all(|path| std::fs::read(path).expect("there") == b"somebody's"));
    assert!(seen.failures.lock().iter().any(|failure| failure.contains("name")), "{:?}", seen.failures.lock());
}
