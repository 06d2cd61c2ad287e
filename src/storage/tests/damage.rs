//! Any file of a data directory with 10,000 records and some dead letters is damaged at random, after a clean stop or kill
//! -9: it opens, loses at most what was damaged, says so, and gives out no wrong byte.
//!
//! `FOREBAY_DAMAGES=10000 cargo test --lib any_damage -- --nocapture` for the long form.

use std::collections::{BTreeMap, BTreeSet};

mod letters;

use super::*;
use crate::storage::log::Drive;

const RECORDS: u64 = 10_000;
const SHORT_FORM: u64 = 60;
const SEGMENT: u64 = 256 << 10;

fn directory_options() -> Options {
    Options { segment_bytes: Some(SEGMENT), max_size_bytes: Some(64 << 20), ..options() }
}

/// A few hundred bytes that tell their number and cannot be mistaken for another's.
fn content(n: u64) -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(n);
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.extend(std::iter::repeat_with(|| dice.u8(..)).take(100 + (n % 300) as usize));
    bytes
}

/// How the process that wrote the directory ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    /// kill -9, with this many of the records written behind the last checkpoint.
    Killed {
        unrecorded: u64,
    },
}

const ENDS: [End; 3] = [End::Closed, End::Killed { unrecorded: 0 }, End::Killed { unrecorded: RECORDS / 3 }];
const SETTLED: u64 = 1000;

/// Two cursors, of which one has settled nothing and the other the first thousand. The same for each call.
fn build(dir: &Path, end: End) {
    let open_catalog = Box::new(|path: &Path| {
        catalog::SledCatalog::open(path).map(|catalog| Box::new(catalog) as Box<dyn catalog::Catalog>)
    });
    let (disk, observer) = (Arc::new(RealDisk), Arc::new(Seen::default()));
    let (store, _) =
        Store::open_with(disk, dir, &directory_options(), observer, open_catalog, Drive::Caller).expect("opens");
    let cursors = ["idle", "busy"].map(|name| (name.to_owned(), StartAt::Beginning));
    let log = store.queue("traces", &cursors).expect("queue");
    let unrecorded = if let End::Killed { unrecorded } = end { unrecorded } else { 0 };
    let mut next = 0;
    let mut write_until = |end: u64| {
        while next < end {
            let group = next..(next + 37).min(end);
            next = group.end;
            let answers: Vec<_> = group
                .map(|n| {
                    let record = record(content(n));
                    log.append(log.reserve(record.weight()).expect("room"), record)
                })
                .collect();
            log.write_pending();
            for answer in answers {
                let _receipt = answer.blocking_recv().expect("answered").expect("durable");
            }
        }
    };
    write_until(RECORDS - unrecorded);
    log.settle("busy", 0..SETTLED);
    store.checkpoint().expect("written");
    write_until(RECORDS);
    letters::write(&dir.join("dlq"), end);
    if end == End::Closed {
        drop(log);
        store.close();
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).map(drop).expect("copied");
        }
    }
}

/// What was done to which file, and the records that it can have cost at the most.
struct Damage {
    what: String,
    at: Range<u64>,
    path: PathBuf,
}

fn harm(dir: &Path, dice: &mut fastrand::Rng) -> Damage {
    let mut paths = Vec::new();
    files(dir, &mut paths);
    paths.sort();
    let path = dice.choice(&paths).expect("some").clone();
    let mut bytes = std::fs::read(&path).expect("read");
    let len = bytes.len() as u64;
    let name = path.strip_prefix(dir).expect("below").display().to_string();
    let at = dice.u64(..len.max(1));
    let is_letters = name.starts_with("dlq");
    let (what, at) = match dice.u8(..4) {
        // Of the queue's segments another test removes one.
        _ if is_letters && dice.u8(..6) == 0 => {
            std::fs::remove_file(&path).expect("removed");
            return Damage { what: format!("{name} removed"), at: 0..u64::MAX, path };
        }
        0 => {
            bytes.truncate(at as usize);
            ("cut off at", at..u64::MAX)
        }
        1 => {
            let end = (at / 4096 * 4096 + 4096).min(len);
            let start = at / 4096 * 4096;
            bytes[start as usize..end as usize].fill(0);
            ("a page zeroed at", start..end)
        }
        _ if len == 0 => ("left empty at", 0..0),
        _ => {
            bytes[at as usize] ^= 1 << dice.u8(..8);
            ("a bit flipped at", at..at + 1)
        }
    };
    std::fs::write(&path, bytes).expect("written");
    Damage { what: format!("{name} {what} {}", at.start), at, path }
}

/// Where in which segment each record lies, and what was durable when it was written.
pub(super) fn places(dir: &Path) -> BTreeMap<u64, (PathBuf, Range<u64>, u64)> {
    let mut places = BTreeMap::new();
    for path in segments(dir, "traces") {
        let id = segment::parse_file_name(&path.file_name().expect("a name").to_string_lossy()).expect("an id");
        let file = RealDisk.open(&path).expect("opens");
        let segment::HeaderPage::Valid(identity) = segment::Identity::read(file.as_ref(), id).expect("read") else {
            panic!("{} has no header", path.display())
        };
        for located in segment::scan_all(&file, identity).expect("scanned").records {
            let end = located.offset + located.header.record_len();
            places.insert(located.header.sequence, (path.clone(), located.offset..end, located.header.durable_end));
        }
    }
    places
}

/// Everything that can still be read, by sequence.
fn read_everything(log: &Log) -> BTreeMap<u64, Bytes> {
    let mut position = Position::at(0);
    let mut found = BTreeMap::new();
    while position.sequence < log.durable_end() {
        let chunk = log.read_file(position, 1 << 20, 4096).expect("readable");
        assert!(chunk.next.sequence > position.sequence, "no progress at {position:?}");
        position = chunk.next;
        found.extend(chunk.records.into_iter().map(|record| (record.sequence, record.payload)));
    }
    found
}

#[test]
fn any_damage_costs_at_most_what_it_hit_and_is_reported() {
    let count = std::env::var("FOREBAY_DAMAGES").ok().and_then(|count| count.parse().ok()).unwrap_or(SHORT_FORM);
    let seed = std::env::var("FOREBAY_DAMAGES_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let dir = tempfile::tempdir().expect("temporary directory");
    let wholes = ENDS.map(|end| {
        let whole = dir.path().join(format!("{end:?}"));
        build(&whole, end);
        let places = places(&whole);
        assert_eq!(places.len() as u64, RECORDS);
        let letters = letters::Letters::of(&whole.join("dlq"));
        (end, whole, places, letters)
    });
    let contents: Vec<Vec<u8>> = (0..RECORDS).map(content).collect();
    let (mut cost, mut lost_in_all) = (BTreeMap::<String, u64>::new(), 0);
    for case in seed..seed + count {
        let mut dice = fastrand::Rng::with_seed(case);
        let (end, whole, places, letters) = &wholes[case as usize % wholes.len()];
        let hurt = dir.path().join("hurt");
        copy(whole, &hurt);
        let damage = harm(&hurt, &mut dice);
        let told = format!(
            "FOREBAY_DAMAGES_SEED={case} FOREBAY_DAMAGES=1 cargo test --lib any_damage: {end:?}, {}",
            damage.what
        );
        let opened = open_on(Arc::new(RealDisk), &hurt, &directory_options());
        let (store, _, seen) = opened.unwrap_or_else(|error| panic!("{told}: it does not start: {error}"));
        let log = store.queue("traces", &[]).expect("queue");
        let found = read_everything(&log);
        for (sequence, payload) in &found {
            assert_eq!(*payload, contents[*sequence as usize], "{told}: record {sequence} has changed");
        }
        let original = whole.join(damage.path.strip_prefix(&hurt).expect("below"));
        let lost: BTreeSet<u64> = (0..RECORDS).filter(|sequence| !found.contains_key(sequence)).collect();
        for sequence in &lost {
            let (path, range, _) = &places[sequence];
            let is_hit = *path == original && range.start < damage.at.end && damage.at.start < range.end;
            assert!(is_hit, "{told}: record {sequence} is gone and was not hit");
        }
        let reported: BTreeSet<u64> = seen.lost.lock().iter().flat_map(|lost| lost.sequences.clone()).collect();
        // What was acknowledged after the last checkpoint cannot be told from a torn group where nothing behind it is left.
        let unrecorded = if let End::Killed { unrecorded } = end { *unrecorded } else { 0 };
        let vouched = found.keys().map(|sequence| places[sequence].2).max().unwrap_or(0).max(RECORDS - unrecorded);
        let silent: Vec<_> = lost.difference(&reported).filter(|sequence| **sequence < vouched).collect();
        assert!(silent.is_empty(), "{told}: lost without a word: {silent:?}");
        assert!(reported.is_subset(&lost), "{told}: reported and there: {:?}", reported.difference(&lost));
        for (cursor, settled) in [("idle", 0), ("busy", SETTLED)] {
            let cursor = log.cursor(cursor).unwrap_or_else(|| panic!("{told}: the cursor {cursor} is gone"));
            let hidden = found.keys().find(|sequence| **sequence >= settled && cursor.is_settled(**sequence));
            assert_eq!(hidden, None, "{told}: never delivered");
        }
        // And it goes on.
        let _receipt = append(&log, content(RECORDS)).expect("durable");
        lost_in_all += lost.len();
        lost_in_all += letters.check(&hurt.join("dlq"), *end, &original, &damage.at, &told);
        let kind = damage.path.strip_prefix(&hurt).expect("below").components().next().expect("a name");
        *cost.entry(kind.as_os_str().to_string_lossy().into_owned()).or_default() += 1;
        drop(log);
        drop(store);
        std::fs::remove_dir_all(&hurt).expect("removed");
    }
    println!(
        "{count} damages, by file: {cost:?}; {lost_in_all} records and letters lost, all of them hit and reported"
    );
}

/// Found by seed 1422.
#[test]
fn an_oldest_segment_of_which_nothing_is_left_is_reported_as_lost() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let whole = dir.path().join("whole");
    build(&whole, End::Closed);
    let oldest = segments(&whole, "traces").into_iter().min().expect("a segment");
    let file = std::fs::File::options().write(true).open(&oldest).expect("opens");
    file.set_len(23).expect("cut");
    let (store, _, seen) = open_on(Arc::new(RealDisk), &whole, &directory_options()).expect("opens");
    let log = store.queue("traces", &[]).expect("queue");
    let found = read_everything(&log);
    let lost: BTreeSet<u64> = (0..RECORDS).filter(|sequence| !found.contains_key(sequence)).collect();
    let reported: Vec<u64> = seen.lost.lock().iter().flat_map(|lost| lost.sequences.clone()).collect();
    assert!(!lost.is_empty() && (lost.len() as u64) < RECORDS, "{} lost", lost.len());
    assert_eq!(reported, lost.into_iter().collect::<Vec<_>>(), "each once");
}

/// Before, nothing was said, and a retry was answered as a duplicate of what was nowhere.
#[test]
fn what_a_killed_process_had_acknowledged_is_reported_when_every_segment_is_cut_or_gone() {
    for is_gone in [false, true] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _, _) = open(dir.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        append_all(&log, 0..5);
        log.settle("a", 0..2);
        store.checkpoint().expect("written");
        let crashed = crash_copy(dir.path());
        // The first has the records; another may be ready behind it.
        let found = segments(crashed.path(), "traces");
        for path in &found {
            match is_gone {
                true => std::fs::remove_file(path).expect("removed"),
                false => {
                    std::fs::File::options().write(true).open(path).and_then(|file| file.set_len(3000)).expect("cut")
                }
            }
        }
        let (store, _, seen) = open(crashed.path());
        let log = store.queue("traces", &cursor("a")).expect("queue");
        let reported: Vec<u64> = seen.lost.lock().iter().flat_map(|lost| lost.sequences.clone()).collect();
        assert_eq!(reported, [2, 3, 4], "what was delivered is no loss");
        assert_eq!(log.missing_at_start().gaps(2..5), [], "no fingerprint of them counts");
        assert_eq!(
            std::fs::exists(found[0].with_extension("seg.damaged")).expect("known"),
            !is_gone,
            "for somebody to look into"
        );
        append_all(&log, 5..8);
        assert_eq!(read_all(&log, 0), [5, 6, 7]);
        drop((log, store));
        let (store, _, seen) = open(crashed.path());
        store.queue("traces", &[]).map(drop).expect("queue");
        assert!(seen.lost.lock().is_empty(), "once");
    }
}
