//! What the simulated disk found, each by its name. Driven step by step, without threads.

use super::*;
use crate::storage::log::Drive;
use crate::storage::simulated::{Fate, Faults, World};

const DIR: &str = "/volume/data";

fn world() -> Arc<World> {
    world_of(1)
}

fn world_of(seed: u64) -> Arc<World> {
    let world = World::new(seed, 64 << 20);
    let disk = world.disk();
    disk.create_dir(Path::new("/volume")).expect("made");
    disk.sync_dir(Path::new("/")).expect("synced");
    world
}

fn try_start(world: &Arc<World>) -> Result<(Store, store::OpenReport, Arc<Seen>), StoreError> {
    let seen = Arc::new(Seen::default());
    let observer = Arc::clone(&seen) as Arc<dyn Observer>;
    let (store, report) =
        Store::open_with(world.disk(), Path::new(DIR), &options(), observer, world.catalogs(), Drive::Caller)?;
    Ok((store, report, seen))
}

fn start(world: &Arc<World>) -> (Store, Arc<Log>, Arc<Seen>) {
    let (store, _, seen) = try_start(world).expect("starts");
    let log = store.queue("traces", &cursor("a")).expect("queue");
    (store, log, seen)
}

/// Offers some records and writes them as one group; says how many were acknowledged.
fn write(log: &Log, payloads: &[Vec<u8>]) -> usize {
    let answers: Vec<_> = payloads
        .iter()
        .map(|payload| {
            let record = record(payload.clone());
            log.append(log.reserve(record.weight()).expect("room"), record)
        })
        .collect();
    log.write_pending();
    answers.into_iter().filter_map(|answer| answer.blocking_recv().ok()).filter(Result::is_ok).count()
}

fn payloads(numbers: Range<u64>) -> Vec<Vec<u8>> {
    numbers.map(payload).collect()
}

fn segment_paths(world: &Arc<World>) -> Vec<PathBuf> {
    let dir = Path::new(DIR).join("queues/traces");
    let entries = world.disk().list(&dir).expect("listed");
    entries.into_iter().filter(|entry| entry.name.ends_with(".seg")).map(|entry| dir.join(entry.name)).collect()
}

#[test]
fn rule_5_what_is_missing_of_a_torn_group_is_never_reported_as_loss() {
    let mut torn_in_the_middle = 0;
    for seed in 0..60 {
        let world = world_of(seed);
        let (store, log, _) = start(&world);
        assert_eq!(write(&log, &payloads(0..2)), 2);
        // A group of several pages; the power goes off before its sync.
        world.cut_power_in(Some(1));
        assert_eq!(write(&log, &payloads(2..10)), 0);
        drop((store, log));
        world.cut_power(Fate::Any);
        for _ in 0..2 {
            let (store, log, seen) = start(&world);
            let found = read_all(&log, 0);
            torn_in_the_middle += u64::from(found.len() > 2 && !found.contains(&2));
            assert_eq!(write(&log, &payloads(20..21)), 1);
            assert_eq!(read_all(&log, 0).last(), Some(&20));
            assert!(seen.lost.lock().is_empty(), "case {seed}: {:?}", seen.lost.lock());
            drop((store, log));
            // The catalogue is rebuilt: all segments are scanned again.
            world.cut_power(Fate::Empty);
        }
    }
    assert!(torn_in_the_middle > 0, "some groups lost their front");
}

#[test]
fn rule_6_what_a_failed_sync_left_behind_is_neither_loss_nor_taken_for_durable() {
    for seed in 0..60 {
        let world = world_of(seed);
        let (store, log, _) = start(&world);
        // In every other case the first group of all fails.
        let durable = if seed % 2 == 0 { 2 } else { 0 };
        assert_eq!(write(&log, &payloads(0..durable)) as u64, durable);
        world.update_faults(|faults| faults.failing_syncs = 1);
        assert_eq!(write(&log, &payloads(durable..10)) as u64, 10 - durable, "written again elsewhere");
        store.checkpoint().expect("durable");
        drop((store, log));
        // The page cache still shows what the failed sync should have written; the next cut takes it away.
        world.kill();
        for _ in 0..2 {
            let (store, log, seen) = start(&world);
            let found = read_all(&log, 0);
            assert!((0..10).all(|number| found.contains(&number)), "case {seed}: {found:?}");
            assert!(seen.lost.lock().is_empty(), "case {seed}: {:?}", seen.lost.lock());
            store.checkpoint().expect("durable");
            drop((store, log));
            world.cut_power(Fate::Any);
        }
    }
}

#[test]
fn rule_5_a_read_error_while_starting_is_not_damage_and_destroys_nothing() {
    let mut refused = 0;
    for operation in 0..40 {
        let world = world();
        let (store, log, _) = start(&world);
        assert_eq!(write(&log, &payloads(0..8)), 8);
        drop((store, log));
        world.kill();
        // One read fails, now this and now that.
        world.fail_read_in(operation);
        refused += u64::from(try_start(&world).is_err());
        world.set_faults(Faults::default());
        world.kill();
        let (_store, log, seen) = start(&world);
        assert_eq!(read_all(&log, 0), (0..8).collect::<Vec<_>>(), "the read at operation {operation} failed");
        assert!(seen.lost.lock().is_empty());
    }
    assert!(refused > 0, "a disk that cannot be read is said so");
}

#[test]
fn rule_4_a_queue_whose_new_cursor_cannot_be_written_down_takes_nothing() {
    let world = world();
    let (store, _, _) = try_start(&world).expect("starts");
    // Catalogue and witness both.
    world.update_faults(|faults| faults.failing_syncs = 2);
    assert!(store.queue("traces", &cursor("a")).is_err());
}

#[test]
fn rule_1_a_data_directory_made_by_a_process_that_died_is_made_durable_by_the_next() {
    for seed in 0..80 {
        let world = world_of(seed);
        // Dies between making the directory and syncing its name, or thereabouts.
        world.cut_power_in(Some(seed % 8));
        assert!(try_start(&world).is_err());
        world.kill();
        let (store, log, _) = start(&world);
        assert_eq!(write(&log, &payloads(0..3)), 3);
        drop((store, log));
        world.cut_power(Fate::Any);
        let (_store, log, _) = start(&world);
        assert_eq!(read_all(&log, 0), vec![0, 1, 2], "case {seed}");
    }
}

#[test]
fn rule_2_only_settled_ranges_that_were_written_down_let_a_segment_go() {
    let world = world();
    let (store, log, _) = start(&world);
    let count = 2 * cursor::PERSISTED_RANGES_MAX as u64 + 300;
    for number in 0..count {
        assert_eq!(write(&log, &[format!("{number:<60}").into_bytes()]), 1);
    }
    // Every other record, and whole segments behind them: more ranges than a row holds.
    for number in (1..count - 200).step_by(2) {
        log.settle("a", number..number + 1);
    }
    log.settle("a", count - 199..count);
    let before = log.status().segments;
    store.checkpoint().expect("durable");
    assert_eq!(log.status().segments, before, "the last range is not written down");
    drop((store, log));
    world.cut_power(Fate::Any);
    let (_store, log, seen) = start(&world);
    let cursor = log.cursor("a").expect("cursor");
    let found = read_all(&log, 0);
    let missing: Vec<u64> = (0..count).filter(|n| !cursor.is_settled(*n) && !found.contains(n)).collect();
    assert!(missing.is_empty(), "not settled and gone: {missing:?}");
    assert!(seen.lost.lock().is_empty(), "{:?}", seen.lost.lock());
}

#[test]
fn a_segment_with_one_damaged_copy_of_its_header_loses_nothing() {
    for copy in 0..2 {
        let world = world();
        let (store, log, _) = start(&world);
        assert_eq!(write(&log, &payloads(0..3)), 3);
        drop((store, log));
        world.kill();
        let file = world.disk().open(&segment_paths(&world)[0]).expect("opens");
        let zeros = [0; segment::HEADER_PAGE_LEN as usize];
        file.write_all_at(&mut [std::io::IoSlice::new(&zeros)], copy * segment::HEADER_PAGE_LEN).expect("overwritten");
        let (_store, log, seen) = start(&world);
        assert_eq!(read_all(&log, 0), [0, 1, 2]);
        assert!(seen.lost.lock().is_empty(), "{:?}", seen.lost.lock());
    }
}

#[test]
fn rule_5_a_segment_whose_header_is_damaged_is_reported() {
    let world = world();
    let (store, log, _) = start(&world);
    assert_eq!(write(&log, &payloads(0..3)), 3);
    drop((store, log));
    world.kill();
    for copy in 0..2 {
        world.flip(&segment_paths(&world)[0], copy * segment::HEADER_PAGE_LEN + 30, 1).expect("flipped");
    }
    let (_store, _, seen) = start(&world);
    let lost = seen.lost.lock();
    assert!(lost.iter().any(|lost| lost.reason.contains("header")), "{lost:?}");
}

#[test]
fn rule_5_a_flipped_bit_costs_at_most_its_record_and_is_reported() {
    const RECORDS: u64 = 30;
    let mut damaged = 0;
    for seed in 0..150 {
        let world = world_of(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let (store, log, _) = start(&world);
        for first in (0..RECORDS).step_by(3) {
            assert_eq!(write(&log, &payloads(first..first + 3)), 3);
            if rng.u8(..4) == 0 {
                store.checkpoint().expect("durable");
            }
        }
        drop((store, log));
        world.kill();
        let paths = segment_paths(&world);
        let flips = rng.usize(1..4);
        for _ in 0..flips {
            let path = &paths[rng.usize(..paths.len())];
            let len = world.len_of(path).expect("measured");
            world.flip(path, rng.u64(segment::RECORDS_START..len), rng.u8(..8)).expect("flipped");
        }
        let (_store, log, seen) = start(&world);
        let found = read_all(&log, 0);
        let missing: Vec<u64> = (0..RECORDS).filter(|number| !found.contains(number)).collect();
        assert!(missing.len() <= flips, "case {seed}: {flips} flips cost {missing:?}");
        // Nothing tells damage in the last group from a torn one, unless a checkpoint came behind it.
        let lost = seen.lost.lock();
        let is_reported = |number: &u64| lost.iter().any(|lost| lost.sequences.contains(number));
        let silent: Vec<&u64> =
            missing.iter().filter(|number| **number < RECORDS - 3 && !is_reported(number)).collect();
        assert!(silent.is_empty(), "case {seed}: {silent:?} lost without a word");
        drop(lost);
        damaged += missing.len();
        assert_eq!(write(&log, &payloads(RECORDS..RECORDS + 1)), 1);
        assert_eq!(read_all(&log, 0).last(), Some(&RECORDS), "case {seed}");
    }
    assert!(damaged > 50, "the flips hit: {damaged}");
}
