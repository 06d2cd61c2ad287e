//! What is lost of sealed segments is told, once, in letters.

use super::*;
use crate::storage::RealDisk;

/// Three segments of eight letters each, the ids of each; the process has ended in order.
fn shelf(dir: &Path) -> Vec<Vec<u64>> {
    let (log, _) = open_in(dir);
    let eight = || (0..8).map(|n| letter(&format!("{n}"), 7000)).collect();
    let ids = (0..3).map(|_| {
        let (ids, _receipt) = log.append(eight()).expect("kept");
        // Rolls: the next group does not fit.
        ids
    });
    let ids = ids.collect();
    log.close();
    ids
}

fn open_in(dir: &Path) -> (DeadLetterLog, Vec<Damage>) {
    let (log, opened) = DeadLetterLog::open(Arc::new(RealDisk), dir, SMALL, None).expect("opens");
    (log, opened.damage)
}

/// As a command opens it.
fn looked_at(dir: &Path) -> Vec<Damage> {
    let options = Options { settles_damage: false, ..SMALL };
    let (log, opened) = DeadLetterLog::open(Arc::new(RealDisk), dir, options, None).expect("opens");
    let _ = log.append(vec![letter("written by a command", 100)]).expect("kept");
    log.close();
    opened.damage
}

fn ids(log: &DeadLetterLog) -> Vec<u64> {
    log.rows().into_iter().map(|row| row.id).collect()
}

/// Opens twice: what is told the first time is not told again.
fn told_once(dir: &Path, lost: u64, left: &[u64]) -> Vec<Damage> {
    let (log, damage) = open_in(dir);
    assert_eq!(damage.iter().map(|damage| damage.letters).collect::<Vec<_>>(), [Some(lost)], "{damage:?}");
    assert_eq!(ids(&log), left);
    drop(log);
    let (log, again) = open_in(dir);
    assert_eq!(again, [], "it was told");
    assert_eq!(ids(&log), left);
    let _ = log.append(vec![letter("later", 100)]).expect("it goes on");
    damage
}

fn cut(path: &Path, len: u64) {
    std::fs::File::options().write(true).open(path).and_then(|file| file.set_len(len)).expect("cut");
}

/// Before, only zeros up to the next page were looked at, and whole letters went without a word.
#[test]
fn a_sealed_segment_that_was_cut_short_is_told_in_letters() {
    for segment in 1..=3usize {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = dir.path().join("dlq");
        let all = shelf(&data);
        let path = segment::path_in(&data, segment as u64);
        cut(&path, RECORDS_START + 3 * 7088);
        let left: Vec<u64> =
            all.iter().enumerate().flat_map(|(n, ids)| ids[..if n + 1 == segment { 3 } else { 8 }].to_vec()).collect();
        told_once(&data, 5, &left);
    }
}

/// Before, of the last group nothing stood behind, not even the segments that follow.
#[test]
fn a_flipped_bit_in_the_last_letter_of_a_sealed_segment_is_told() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = dir.path().join("dlq");
    let all = shelf(&data);
    let path = segment::path_in(&data, 2);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[RECORDS_START as usize + 7 * 7088 + 500] ^= 1;
    std::fs::write(&path, &bytes).expect("damaged");
    let left: Vec<u64> = all.concat().into_iter().filter(|id| *id != all[1][7]).collect();
    told_once(&data, 1, &left);
}

#[test]
fn a_segment_that_is_gone_and_all_that_are_gone_with_their_directory_are_told() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = dir.path().join("dlq");
    let all = shelf(&data);
    std::fs::remove_file(segment::path_in(&data, 2)).expect("removed");
    let damage = told_once(&data, 8, &[&all[0][..], &all[2]].concat());
    assert!(damage[0].to_string().contains("0000000000000002.seg is missing: 8 letters are lost"), "{}", damage[0]);
    std::fs::remove_dir_all(&data).expect("removed");
    let (log, damage) = open_in(&data);
    assert_eq!(damage.iter().filter_map(|damage| damage.letters).sum::<u64>(), 16, "{damage:?}");
    // One was being written when this process was killed, as it were.
    assert_eq!(damage.iter().filter(|damage| damage.letters.is_none()).count(), 1, "{damage:?}");
    assert!(log.rows().is_empty());
}

#[test]
fn letters_that_had_ended_before_are_no_loss_and_segments_written_anew_are_not_missed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = dir.path().join("dlq");
    let all = shelf(&data);
    let (log, _) = open_in(&data);
    // The first goes; of the second three letters have ended.
    log.remove(&all[0]).map(drop).expect("removed");
    log.remove(&all[1][..3]).map(drop).expect("removed");
    assert!(!segment::path_in(&data, 1).exists(), "it was less than half alive");
    log.close();
    drop(log);
    let (log, damage) = open_in(&data);
    assert_eq!(damage, []);
    drop(log);
    std::fs::remove_file(segment::path_in(&data, 2)).expect("removed");
    told_once(&data, 5, &all[2]);
}

#[test]
fn a_damaged_header_is_written_anew_from_what_its_seal_says_and_a_swapped_file_is_set_aside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = dir.path().join("dlq");
    let all = shelf(&data);
    let path = segment::path_in(&data, 2);
    let whole = std::fs::read(&path).expect("read");
    let mut bytes = whole.clone();
    bytes[..RECORDS_START as usize].fill(0);
    std::fs::write(&path, &bytes).expect("damaged");
    let (log, damage) = open_in(&data);
    assert_eq!((damage, ids(&log)), (vec![], all.concat()));
    assert_eq!(std::fs::read(&path).expect("read"), whole);
    drop(log);
    let other = segment::path_in(&data, 1);
    std::fs::copy(&other, &path).expect("copied over it");
    told_once(&data, 8, &[&all[0][..], &all[2]].concat());
    assert!(path.with_extension("seg.damaged").exists());
}

/// A directory from before there were seals, and one whose seals are damaged.
#[test]
fn without_seals_segments_stand_for_themselves_and_are_expected_from_then_on() {
    for is_gone in [true, false] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = dir.path().join("dlq");
        let all = shelf(&data);
        match is_gone {
            true => std::fs::remove_file(seals::path(&data)).expect("removed"),
            false => std::fs::write(seals::path(&data), b"garbage").expect("written"),
        }
        let (log, damage) = open_in(&data);
        assert_eq!((damage, ids(&log)), (vec![], all.concat()));
        drop(log);
        std::fs::remove_file(segment::path_in(&data, 3)).expect("removed");
        told_once(&data, 8, &all[..2].concat());
    }
}

/// A process counts what is lost; that somebody listed the letters before it started must not take that from it.
#[test]
fn what_a_command_finds_to_be_lost_is_left_for_the_next_start_to_tell() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = dir.path().join("dlq");
    let all = shelf(&data);
    cut(&segment::path_in(&data, 1), RECORDS_START + 3 * 7088);
    std::fs::remove_file(segment::path_in(&data, 2)).expect("removed");
    std::fs::copy(segment::path_in(&data, 1), segment::path_in(&data, 3)).expect("written over");
    let lost = |damage: &[Damage]| {
        let mut lost: Vec<_> = damage.iter().map(|damage| damage.letters).collect();
        lost.sort();
        lost
    };
    for _ in 0..2 {
        let damage = looked_at(&data);
        assert_eq!(lost(&damage), [Some(5), Some(8), Some(8)], "{damage:?}");
    }
    let (log, damage) = open_in(&data);
    assert_eq!(lost(&damage), [Some(5), Some(8), Some(8)], "{damage:?}");
    assert_eq!(ids(&log)[..3], all[0][..3]);
    drop(log);
    assert_eq!(open_in(&data).1, []);
}

/// Opening writes seals, sets aside and cuts off; wherever it is broken off, and whatever fails meanwhile, nothing is missed
/// that is there.
#[test]
fn power_cuts_kills_and_failures_while_it_opens_rolls_and_tidies_make_no_loss_of_what_is_there() {
    let mut cut_while_opening = 0;
    for seed in 0..150 {
        let world = world(seed);
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut model = Vec::new();
        for boot in 0..6 {
            world.cut_power_in(Some(dice.u64(1..60)));
            if DeadLetterLog::open(world.disk(), Path::new(DIR), SMALL, None).is_err() {
                cut_while_opening += 1;
            }
            if dice.bool() {
                world.kill()
            } else {
                world.cut_power(Fate::Any)
            }
            world.cut_power_in(None);
            let (log, opened) = open(&world, SMALL);
            assert_eq!(opened.damage, [], "case {seed}, boot {boot}");
            let found = ids(&log);
            assert!(model.iter().all(|id| found.contains(id)), "case {seed}, boot {boot}");
            model = found;
            let failing = dice.u32(..3);
            world.set_faults(match dice.u8(..4) {
                0 => Faults { failing_syncs: failing, ..Faults::default() },
                1 => Faults { failing_names: failing, ..Faults::default() },
                _ => Faults::default(),
            });
            // It ends in the middle of something, or when it has done enough.
            world.cut_power_in(dice.bool().then(|| dice.u64(1..150)));
            for _ in 0..dice.usize(..16) {
                if let Ok((new, _receipt)) = log.append(vec![letter("kept", dice.usize(..30_000))]) {
                    model.extend(new);
                }
                let end: Vec<u64> = model.iter().copied().filter(|_| dice.u8(..3) == 0).collect();
                // What fails may have ended them all the same.
                model.retain(|id| !end.contains(id));
                let _ = log.remove(&end);
            }
            world.set_faults(Faults::default());
            if dice.bool() {
                log.close();
            }
            drop(log);
            if dice.bool() { world.kill() } else { world.cut_power(Fate::Any) }
        }
    }
    assert!(cut_while_opening > 100, "{cut_while_opening}");
}
