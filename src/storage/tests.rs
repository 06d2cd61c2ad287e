//! The numbered rules of the log, each by its name, on the real disk.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::log::{Lost, Observer, Position};
use super::*;

mod cap;
mod damage;
mod faults;
mod power;
mod read_damage;
mod restart;
mod sled_damage;
mod strays;
mod survey;
mod waiting;

/// Segments of five blocks, two of them the header, so that rolls and reclaims happen after a few records.
const SEGMENT_BYTES: u64 = 20 << 10;
const RECORDS_START: usize = segment::RECORDS_START as usize;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Seen {
    lost: Mutex<Vec<Lost>>,
    failures: Mutex<Vec<String>>,
}

impl Observer for Seen {
    fn failed(&self, _queue: &str, operation: &'static str, error: &std::io::Error) {
        self.failures.lock().push(format!("{operation}: {error}"));
    }
    fn damaged(&self, _queue: &str, lost: &Lost) {
        self.lost.lock().push(lost.clone());
    }
}

fn options() -> Options {
    Options {
        max_size_bytes: Some(64 * SEGMENT_BYTES),
        segment_bytes: Some(SEGMENT_BYTES),
        tail_bytes_max: 8 << 10,
        checkpoint_interval: Duration::from_millis(5),
        ..Options::default()
    }
}

fn open(dir: &Path) -> (Store, store::OpenReport, Arc<Seen>) {
    open_on(Arc::new(RealDisk), dir, &options()).expect("the store opens")
}

fn open_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &Options,
) -> Result<(Store, store::OpenReport, Arc<Seen>), StoreError> {
    let seen = Arc::new(Seen::default());
    let (store, report) = Store::open(disk, dir, options, Arc::clone(&seen) as Arc<dyn Observer>)?;
    Ok((store, report, seen))
}

fn cursor(name: &str) -> [(String, StartAt); 1] {
    [(name.to_owned(), StartAt::End)]
}

fn record(payload: impl Into<Bytes>) -> NewRecord {
    let payload = payload.into();
    NewRecord {
        signal: 1,
        encoding: 0,
        items: 1,
        raw_len: payload.len() as u32,
        received_unix_ns: 1,
        metadata: Bytes::new(),
        payload,
        guard: Arc::new(()),
    }
}

fn payload(n: u64) -> Vec<u8> {
    format!("{n:<900}").into_bytes()
}

fn append(log: &Log, bytes: impl Into<Bytes>) -> Result<Durable, AppendError> {
    let record = record(bytes);
    let reservation = log.reserve(record.weight()).map_err(|full| AppendError::Full(full.to_string()))?;
    log.append(reservation, record).blocking_recv().expect("the writer answers")
}

fn append_all(log: &Log, numbers: Range<u64>) {
    for n in numbers {
        let _receipt = append(log, payload(n)).expect("durable");
    }
}

/// Everything from `from` on that can be read, by its number.
fn read_all(log: &Log, from: u64) -> Vec<u64> {
    let mut position = Position::at(from);
    let mut found = Vec::new();
    while position.sequence < log.durable_end() {
        let chunk = match log.read_tail(position, 4000, 3) {
            Some(chunk) => chunk,
            None => log.read_file(position, 4000, 3).expect("readable"),
        };
        assert!(chunk.next.sequence > position.sequence, "no progress at {position:?}");
        position = chunk.next;
        for record in chunk.records {
            found.push(String::from_utf8_lossy(&record.payload).trim().parse().expect("a number"));
        }
    }
    found
}

fn segments(dir: &Path, queue: &str) -> Vec<PathBuf> {
    let dir = dir.join("queues").join(queue);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

/// Copies a data directory as a crash would leave it: without closing anything.
fn crash_copy(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).expect("listed") {
            let entry = entry.expect("entry");
            let target = to.join(entry.file_name());
            if entry.file_type().expect("type").is_dir() {
                std::fs::create_dir(&target).expect("made");
                copy(&entry.path(), &target);
            } else if let Err(error) = std::fs::copy(entry.path(), &target) {
                // The log goes on renaming spares while we copy.
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            }
        }
    }
    let to = tempfile::tempdir().expect("temporary directory");
    copy(from, to.path());
    to
}

#[test]
fn what_was_acknowledged_is_read_back_after_reopening_in_order_and_unchanged() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..100);
        assert_eq!(read_all(&log, 0), (0..100).collect::<Vec<_>>());
        store.close();
    }
    let (store, report, seen) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(read_all(&log, 0), (0..100).collect::<Vec<_>>());
    assert!(report.catalog_intact, "{:?}", report.notes);
    assert_eq!(report.queues["traces"].scanned, 0, "a clean stop leaves nothing to scan");
    assert!(seen.lost.lock().is_empty(), "{:?}", seen.lost.lock());
    assert!(seen.failures.lock().is_empty(), "{:?}", seen.failures.lock());
}

#[test]
fn rule_1_sequences_and_segment_ids_rise_above_everything_found_and_a_recovered_segment_is_not_appended_to() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..5);
    let crashed = crash_copy(dir.path());
    let (again, report, _) = open(crashed.path());
    let before = segments(crashed.path(), "traces");
    assert_eq!(report.queues["traces"].records, 5);
    let log = again.queue("traces", &cursor("a")).expect("queue");
    let untouched: Vec<Vec<u8>> = before.iter().map(|path| std::fs::read(path).expect("read")).collect();
    append_all(&log, 5..10);
    assert_eq!(read_all(&log, 0), (0..10).collect::<Vec<_>>());
    let after = segments(crashed.path(), "traces");
    assert!(after.last() > before.last(), "the log rolled");
    let unchanged: Vec<Vec<u8>> = before.iter().map(|path| std::fs::read(path).expect("read")).collect();
    assert_eq!(untouched, unchanged);
}

#[test]
fn rule_1_a_cursor_beyond_the_end_is_reported_and_hides_no_later_record() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..3);
        log.settle("a", 0..1000);
        store.close();
    }
    let (store, report, _) = open(dir.path());
    assert_eq!(report.queues["traces"].cursors_beyond_end, vec!["a".to_owned()]);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 3..5);
    let low = log.cursor("a").expect("cursor").low();
    assert_eq!(read_all(&log, low), vec![3, 4]);
}

#[test]
fn rule_2_a_segment_goes_only_after_the_cursor_that_passed_it_is_durable() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..60);
    let snapshot = log.snapshot();
    log.settle("a", 0..60);
    assert_eq!(log.reclaim(&snapshot.cursors).expect("reclaims"), 0, "that snapshot does not say so");
    eventually("reclaim after a checkpoint", || segments(dir.path(), "traces").len() <= 3);
    let crashed = crash_copy(dir.path());
    let (again, _, seen) = open(crashed.path());
    let log = again.queue("traces", &cursor("a")).expect("queue");
    assert!(log.cursor("a").expect("cursor").low() >= 60 || !read_all(&log, 0).is_empty());
    assert!(seen.lost.lock().is_empty());
}

#[test]
fn rule_3_a_later_segment_goes_while_an_older_one_is_pinned() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..100);
    let all = segments(dir.path(), "traces");
    assert!(all.len() >= 5);
    log.settle("a", 1..100);
    eventually("only the pinned and the active segment stay", || segments(dir.path(), "traces").len() <= 3);
    assert_eq!(segments(dir.path(), "traces")[0], all[0]);
    assert_eq!(log.read_file(Position::at(0), 1, 1).expect("readable").records[0].sequence, 0);
}

#[test]
fn rule_4_a_new_exporter_starts_at_the_end_only_when_the_catalogue_is_intact() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..10);
        store.close();
    }
    {
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("b")).expect("queue");
        assert_eq!(log.cursor("b").expect("cursor").low(), 10);
        store.close();
    }
    std::fs::remove_dir_all(dir.path().join("catalog")).expect("removed");
    let (store, report, _) = open(dir.path());
    assert!(!report.catalog_intact);
    let log = store.queue("traces", &cursor("c")).expect("queue");
    assert_eq!(log.cursor("c").expect("cursor").low(), 0, "nothing retained may be skipped");
    assert_eq!(log.cursor("b").expect("cursor").low(), 10, "the witness remembers it");
}

#[test]
fn rule_4_a_new_cursor_is_durable_before_the_first_record_so_a_crash_does_not_bear_it_again_behind_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = Options { checkpoint_interval: PATIENCE, ..options() };
    let (store, _, _) = open_on(Arc::new(RealDisk), dir.path(), &options).expect("opens");
    // The keeper checkpoints at once for another queue, and then sleeps: no checkpoint comes by itself.
    let witness = || std::fs::read(dir.path().join("witness")).expect("read");
    let before = witness();
    append_all(&store.queue("other", &[]).expect("queue"), 0..1);
    eventually("the keeper's only checkpoint", || witness() != before);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..3);
    let crashed = crash_copy(dir.path());
    let (again, _, _) = open(crashed.path());
    let log = again.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(log.cursor("a").expect("cursor").low(), 0);
    drop(again);
    // The keeper of the first store sleeps for long; it is not waited for.
    std::mem::forget(store);
}

#[test]
fn rule_5_damage_below_the_durable_end_is_loss_and_reading_goes_on_behind_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..8);
    let crashed = crash_copy(dir.path());
    let path = &segments(crashed.path(), "traces")[0];
    let mut bytes = std::fs::read(path).expect("read");
    let at = bytes.windows(4).position(|window| window == b"3   ").expect("the payload of number 3");
    bytes[at + 20] ^= 1;
    std::fs::write(path, bytes).expect("written");
    let (again, report, seen) = open(crashed.path());
    let log = again.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(read_all(&log, 0), vec![0, 1, 2, 4, 5, 6, 7]);
    assert_eq!(report.queues["traces"].lost.len(), 1);
    assert_eq!(report.queues["traces"].lost[0].sequences, 3..4);
    assert_eq!(seen.lost.lock().len(), 1, "reported once");
}

#[test]
fn rule_5_a_torn_tail_is_truncated_and_is_no_loss() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 0..3);
    let crashed = crash_copy(dir.path());
    let path = &segments(crashed.path(), "traces")[0];
    let mut bytes = std::fs::read(path).expect("read");
    // Half of a record that was never acknowledged.
    let torn: Vec<u8> = bytes[RECORDS_START..RECORDS_START + 500].to_vec();
    let end = RECORDS_START + 3 * record::record_len(0, 900) as usize;
    bytes[end..end + 500].copy_from_slice(&torn);
    std::fs::write(path, bytes).expect("written");
    let (again, report, seen) = open(crashed.path());
    assert_eq!(std::fs::metadata(path).expect("there").len(), end as u64);
    assert!(report.queues["traces"].torn_tail_bytes >= 500);
    assert!(report.queues["traces"].lost.is_empty() && seen.lost.lock().is_empty());
    let log = again.queue("traces", &cursor("a")).expect("queue");
    append_all(&log, 3..5);
    assert_eq!(read_all(&log, 0), vec![0, 1, 2, 3, 4]);
}

#[test]
fn rule_5_a_header_forged_inside_a_payload_is_not_taken_for_a_record() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    // A whole record of a guessed segment, as a client could send it: all but the nonce can be known.
    let seed = record::NonceSeed::new(&[0; 16]);
    let header = record::Header {
        segment_id: 0,
        sequence: 7,
        previous: 6,
        durable_end: 7,
        received_unix_ns: 0,
        raw_len: 4,
        stored_len: 4,
        metadata_len: 0,
        items: 1,
        signal: 1,
        encoding: 0,
        flags: 0,
    }
    .encode(seed);
    let mut forged = header.to_vec();
    forged.extend_from_slice(b"evil");
    forged.extend_from_slice(&record::trailer(seed, &header, b"", b"evil").to_le_bytes());
    let forged = forged.repeat(8);
    let _receipt = append(&log, forged.clone()).expect("durable");
    let _receipt = append(&log, payload(1)).expect("durable");
    let crashed = crash_copy(dir.path());
    let path = &segments(crashed.path(), "traces")[0];
    let mut bytes = std::fs::read(path).expect("read");
    // Damage the carrier's header, so that the scan looks for the next record inside the payload.
    bytes[RECORDS_START + 10] ^= 0xFF;
    std::fs::write(path, bytes).expect("written");
    let (again, report, _) = open(crashed.path());
    let log = again.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(read_all(&log, 0), vec![1]);
    assert_eq!(report.queues["traces"].records, 1);
}

#[test]
fn rule_7_space_is_refused_before_writing_and_names_who_holds_it_and_comes_back_by_itself() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, seen) = open(dir.path());
    let log = store.queue("traces", &cursor("slow")).expect("queue");
    let mut written = 0;
    let refusal = loop {
        match append(&log, payload(written)) {
            Ok(_receipt) => written += 1,
            Err(error) => break error.to_string(),
        }
        assert!(written < 10_000, "the cap does not hold");
    };
    assert!(refusal.contains("held by exporter \"slow\""), "{refusal}");
    assert!(
        store.space().allocated_bytes() <= store.space().max_bytes(),
        "{} allocated",
        store.space().allocated_bytes()
    );
    assert!(seen.failures.lock().is_empty(), "refused, not failed: {:?}", seen.failures.lock());
    assert_eq!(read_all(&log, 0).len() as u64, written);
    log.settle("slow", 0..written / 2);
    eventually("intake returns", || append(&log, payload(written)).is_ok());
}

#[test]
fn rule_9_an_unknown_format_refuses_to_start_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("FORMAT"), "forebay data directory, format 99\n").expect("written");
    let error = open_on(Arc::new(RealDisk), dir.path(), &options()).err().expect("refused");
    assert!(error.to_string().contains("format 99"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
}

#[test]
fn rule_9_an_unknown_segment_version_refuses_to_start_and_is_not_taken_for_damage() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..1);
        store.close();
    }
    let path = &segments(dir.path(), "traces")[0];
    let mut bytes = std::fs::read(path).expect("read");
    bytes[8] = 99;
    let check = crc32c::crc32c(&bytes[..56]);
    bytes[56..60].copy_from_slice(&check.to_le_bytes());
    std::fs::write(path, &bytes).expect("written");
    let error = open_on(Arc::new(RealDisk), dir.path(), &options()).err().expect("refused");
    assert!(error.to_string().contains("segment version 99"), "{error}");
    assert_eq!(std::fs::read(path).expect("read"), bytes);
}

#[test]
fn a_data_directory_in_use_is_refused_and_the_owner_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_store, _, _) = open(dir.path());
    let error = open_on(Arc::new(RealDisk), dir.path(), &options()).err().expect("refused");
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    let large = vec![b'x'; 3 * SEGMENT_BYTES as usize];
    append_all(&log, 0..2);
    let _receipt = append(&log, large.clone()).expect("durable");
    append_all(&log, 3..4);
    let chunk = log.read_file(Position::at(2), 1, 1).expect("readable");
    assert_eq!(chunk.records[0].payload, large);
    assert!(
        store.space().allocated_bytes() <= store.space().max_bytes(),
        "{} allocated",
        store.space().allocated_bytes()
    );
}

#[test]
fn a_lost_catalogue_costs_no_record_and_no_cursor() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..50);
        log.settle("a", 0..7);
        store.close();
    }
    std::fs::remove_dir_all(dir.path().join("catalog")).expect("removed");
    std::fs::create_dir(dir.path().join("catalog")).expect("made");
    std::fs::write(dir.path().join("catalog/db"), vec![0x5A; 1 << 16]).expect("written");
    std::fs::write(dir.path().join("catalog/conf"), b"rubbish").expect("written");
    let (store, report, _) = open(dir.path());
    assert!(!report.catalog_intact);
    let log = store.queue("traces", &cursor("a")).expect("queue");
    assert_eq!(log.cursor("a").expect("cursor").low(), 7);
    assert_eq!(read_all(&log, 7), (7..50).collect::<Vec<_>>());
}

#[test]
fn idle_means_no_writes_and_no_spare_space() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, _) = open(dir.path());
    let log = store.queue("traces", &cursor("a")).expect("queue");
    let ballast_bytes = std::fs::metadata(dir.path().join("ballast")).expect("a ballast").len();
    append_all(&log, 0..100);
    log.settle("a", 0..100);
    eventually("all space comes back", || {
        store.space().allocated_bytes() == ballast_bytes && segments(dir.path(), "traces").is_empty()
    });
}
