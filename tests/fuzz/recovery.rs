//! Opening a data directory that was spoiled: no panic, never a wrong byte, and what is left goes on working.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use forebay::storage::log::{Drive, Log, Observer, Position};
use forebay::storage::{NewRecord, OpenCatalog, Options, StartAt, Store, StoreError};
use parking_lot::Mutex;

use super::memory::{Files, MemoryCatalog, MemoryDisk, Rows};

const RECORDS: u64 = 12;
const SETTLED: u64 = 3;
const SEGMENT_BYTES: u64 = 12 << 10;
const EDITS_MAX: usize = 16;

struct Unobserved;
impl Observer for Unobserved {}

fn options() -> Options {
    Options {
        // The witness under a segment's name is a large segment.
        max_size_bytes: Some(64 << 20),
        segment_bytes: Some(SEGMENT_BYTES),
        tail_bytes_max: 0,
        checkpoint_interval: Duration::from_secs(3600),
        ..Options::default()
    }
}

fn open(disk: Arc<MemoryDisk>, catalog: &MemoryCatalog) -> Result<Store, StoreError> {
    let catalog = catalog.clone();
    let open_catalog: OpenCatalog = Box::new(move |_| Ok(Box::new(catalog.clone())));
    let opened =
        Store::open_with(disk, Path::new("/data"), &options(), Arc::new(Unobserved), open_catalog, Drive::Caller);
    opened.map(|(store, _)| store)
}

fn payload(n: u64) -> Bytes {
    Bytes::from(format!("record {n} ").repeat(60 + n as usize))
}

fn append(log: &Log, payload: Bytes) -> Result<(), String> {
    let record = NewRecord {
        signal: 1,
        encoding: 0,
        items: 1,
        raw_len: payload.len() as u32,
        received_unix_ns: 1,
        metadata: Bytes::new(),
        payload,
        guard: Arc::new(()),
    };
    let room = log.reserve(record.weight()).map_err(|full| full.to_string())?;
    let mut answer = log.append(room, record);
    log.write_pending();
    let answer = answer.try_recv().map_err(|error| error.to_string())?;
    answer.map(|_receipt| ()).map_err(|error| error.to_string())
}

/// A directory with some segments, as a crash would leave it.
fn whole() -> &'static (Files, Rows) {
    static WHOLE: OnceLock<(Files, Rows)> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let (disk, catalog) = (Arc::new(MemoryDisk::holding(Files::new())), MemoryCatalog::default());
        let store = open(Arc::clone(&disk), &catalog).expect("opens");
        let log = store.queue("q", &[("x".to_owned(), StartAt::Beginning)]).expect("queue");
        for n in 0..RECORDS {
            append(&log, payload(n)).expect("written");
            if n == RECORDS / 2 {
                log.settle("x", 0..SETTLED);
                store.checkpoint().expect("written");
            }
        }
        let files = disk.files();
        assert!(files.keys().filter(|path| path.extension().is_some_and(|e| e == "seg")).count() >= 2);
        (files, catalog.0.lock().clone())
    })
}

/// Four bytes to an edit: what, of which file or row, where, and a value.
fn spoil(input: &[u8], files: &mut Files, rows: &mut Rows) {
    for edit in input.chunks_exact(5).take(EDITS_MAX) {
        let &[what, which, high, low, value] = edit else { continue };
        if what >= 0xf0 {
            // A file of a name that nobody gave out, as it is or with another's bytes.
            let id = match what & 3 {
                0 => u64::MAX - u64::from(value),
                1 => (u64::MAX / 2).wrapping_add(u64::from(value) % 5).wrapping_sub(2),
                2 => u64::from(high) << 56 | u64::from(low),
                _ => u64::from(value) % 32,
            };
            let suffix = [".seg", ".seg.damaged", ".seg.salvaged", ""][usize::from(what >> 2 & 3)];
            let bytes = files.values().nth(usize::from(which) % 16).cloned().unwrap_or_default();
            files.entry(Path::new("/data/queues/q").join(format!("{id:016x}{suffix}"))).or_insert(bytes);
            continue;
        }
        if what >= 0xc0 {
            let Some(row) = rows.values_mut().nth(usize::from(which) % 8) else { continue };
            match row.len() {
                len if len > 0 && value > 0 => row[usize::from(low) % len] ^= value,
                _ => row.clear(),
            }
            continue;
        }
        let count = files.len().max(1);
        let Some(path) = files.keys().nth(usize::from(which) % count).cloned() else { continue };
        let Some(bytes) = files.get_mut(&path) else { continue };
        if bytes.is_empty() {
            continue;
        }
        let at = (usize::from(high) << 8 | usize::from(low)) % bytes.len();
        match what % 8 {
            0..=2 => bytes[at] ^= value.max(1),
            3 => bytes.truncate(at),
            // A stretch of the file once more, elsewhere: stale or misdirected writes.
            4 => {
                let len = (usize::from(value) * 8).min(bytes.len() - at);
                bytes.copy_within(at / 2..at / 2 + len, at);
            }
            5 => bytes[at..].fill(value),
            6 => {
                files.remove(&path);
            }
            _ => {
                // A file under another's name.
                let copy = bytes.clone();
                if let Some(other) = files.values_mut().nth(usize::from(value) % count) {
                    *other = copy;
                }
            }
        }
    }
}

/// Everything that can be read; every byte must be as it was written.
fn read(log: &Log) -> Vec<u64> {
    let mut position = Position::at(0);
    let mut found = Vec::new();
    while position.sequence < log.durable_end() {
        let chunk = log.read_file(position, u64::MAX, 4).expect("memory can be read");
        assert!(chunk.next.sequence > position.sequence, "no progress at {position:?}");
        position = chunk.next;
        for record in chunk.records {
            assert!(found.last().is_none_or(|last| *last < record.sequence), "sequences rise");
            // A number of which nothing is left, and that no cursor knows, may be given again.
            let is_written = record.sequence < RECORDS && record.payload == payload(record.sequence);
            assert!(is_written || record.payload == "new", "record {}: {:?}", record.sequence, record.payload);
            found.push(record.sequence);
        }
    }
    found
}

pub fn check(input: &[u8]) {
    let (mut files, mut rows) = whole().clone();
    spoil(input, &mut files, &mut rows);
    let disk = Arc::new(MemoryDisk::holding(files));
    let catalog = MemoryCatalog(Arc::new(Mutex::new(rows)));
    // An unknown format refuses to start, and nothing else may.
    let store = match open(Arc::clone(&disk), &catalog) {
        Ok(store) => store,
        Err(StoreError::Format { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let log = store.queue("q", &[("x".to_owned(), StartAt::End)]).expect("queue");
    let found = read(&log);
    if input.len() < 5 {
        assert_eq!(found.len() as u64, RECORDS);
    }
    let next = log.durable_end();
    append(&log, Bytes::from("new")).unwrap_or_else(|error| panic!("what is left does not go on: {error}"));
    assert!(log.durable_end() > next);
    store.checkpoint().expect("written");
    store.close();
    let expected = read(&log);
    drop((log, store));
    let store = open(disk, &catalog).expect("opens again");
    let log = store.queue("q", &[("x".to_owned(), StartAt::End)]).expect("queue");
    assert_eq!(read(&log), expected, "what was found once is found again");
}
