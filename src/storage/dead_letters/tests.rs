//! Letters through power cuts, caps, rewriting and damage, on a simulated disk.

use std::collections::BTreeMap;

mod loss;

use super::*;
use crate::storage::segment::RECORDS_START;
use crate::storage::simulated::{Fate, Faults, World};

const DIR: &str = "/volume/dlq";
const SMALL: Options = Options { max_bytes: 1 << 20, at_cap: AtCap::Refuse, first_id: 0, settles_damage: true };

fn world(seed: u64) -> Arc<World> {
    let world = World::new(seed, 64 << 20);
    let disk = world.disk();
    disk.create_dir(Path::new("/volume")).expect("made");
    disk.sync_dir(Path::new("/")).expect("synced");
    world
}

fn open(world: &Arc<World>, options: Options) -> (DeadLetterLog, Opened) {
    DeadLetterLog::open(world.disk(), Path::new(DIR), options, None).expect("opens")
}

fn letter(text: &str, payload_len: usize) -> NewLetter {
    NewLetter {
        signal: 1,
        encoding: 0,
        items: 3,
        raw_len: payload_len as u32,
        parked_unix_ns: 1_700_000_000_000_000_000,
        description: Bytes::copy_from_slice(text.as_bytes()),
        payload: Bytes::from(vec![text.len() as u8; payload_len]),
    }
}

/// What the log holds: description, payload length, note.
type Held = BTreeMap<u64, (Bytes, usize, Option<Bytes>)>;

fn held(log: &DeadLetterLog) -> Held {
    let read = |row: Row| {
        let letter = log.read(row.id).expect("readable").expect("there");
        (row.id, (letter.description, letter.payload.len(), letter.note))
    };
    log.rows().into_iter().map(read).collect()
}

#[test]
fn what_was_confirmed_survives_power_cuts_and_what_was_ended_never_returns() {
    for seed in 0..120 {
        let world = world(seed);
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut model = Held::new();
        let mut ended: Vec<u64> = Vec::new();
        for _ in 0..4 {
            let (log, opened) = open(&world, SMALL);
            assert!(opened.damage.is_empty(), "case {seed}: {:?}", opened.damage);
            assert_eq!(held(&log), model, "case {seed}");
            world.cut_power_in(Some(dice.u64(5..120)));
            // What an operation under way may have left, beside what was confirmed before it.
            let mut after = None;
            for step in 0..200 {
                let some = |dice: &mut fastrand::Rng| model.keys().copied().nth(dice.usize(..model.len().max(1)));
                let mut next = model.clone();
                let text = format!("seed {seed} step {step}");
                let result = match (dice.u8(..10), some(&mut dice)) {
                    (0..=3, _) | (_, None) => {
                        let letters: Vec<_> =
                            (0..dice.usize(1..4)).map(|_| letter(&text, dice.usize(..9000))).collect();
                        log.append(letters.clone()).map(|(ids, _)| {
                            for (id, letter) in ids.into_iter().zip(letters) {
                                assert!(!ended.contains(&id) && !next.contains_key(&id), "case {seed}: an id twice");
                                next.insert(id, (letter.description, letter.payload.len(), None));
                            }
                        })
                    }
                    (4..=6, Some(id)) => {
                        next.remove(&id);
                        ended.push(id);
                        log.remove(&[id]).map(|_| ())
                    }
                    (7, Some(id)) => {
                        let new = letter(&text, dice.usize(..9000));
                        if let Some(entry) = next.get_mut(&id) {
                            (entry.0, entry.1) = (new.description.clone(), new.payload.len());
                        }
                        log.replace(id, new).map(|_| ())
                    }
                    (_, Some(id)) => {
                        if let Some(entry) = next.get_mut(&id) {
                            entry.2 = Some(Bytes::from(text.clone()));
                        }
                        log.note(id, Bytes::from(text)).map(|_| ())
                    }
                };
                match result {
                    Ok(()) => model = next,
                    Err(error) if error.is_full() => {}
                    Err(_) => {
                        after = Some(next);
                        break;
                    }
                }
            }
            drop(log);
            world.cut_power(Fate::Any);
            let (log, _) = open(&world, SMALL);
            let found = held(&log);
            // New letters of an append that was cut off are nobody's; everything else is as before or as after.
            let known: Held = found.clone().into_iter().filter(|(id, _)| model.contains_key(id)).collect();
            let strangers = found.len() - known.len();
            assert!(strangers <= 3, "case {seed}: {strangers} letters nobody wrote");
            let is_after = after.is_some_and(|after| {
                known == after.into_iter().filter(|(id, _)| model.contains_key(id)).collect::<Held>()
            });
            assert!(known == model || is_after, "case {seed}");
            assert!(found.keys().all(|id| model.contains_key(id) || !ended.contains(id)), "case {seed}: one came back");
            model = found;
            ended.retain(|id| !model.contains_key(id));
        }
    }
}

#[test]
fn at_the_cap_letters_are_refused_and_room_comes_back_as_they_end() {
    let world = world(1);
    let (log, _) = open(&world, SMALL);
    let mut ids = Vec::new();
    let refused = loop {
        match log.append(vec![letter("full", 20_000)]) {
            Ok((new, _)) => ids.extend(new),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LetterError::Cap { .. }), "{refused}");
    assert!(ids.len() > 30 && log.status().allocated_bytes <= SMALL.max_bytes);
    let (keep, end): (Vec<u64>, Vec<u64>) = ids.iter().partition(|id| *id % 10 == 0);
    assert_eq!(log.remove(&end).expect("removed"), end.len());
    assert!(log.status().allocated_bytes < SMALL.max_bytes / 2, "{:?}", log.status());
    let before = held(&log);
    assert_eq!(before.keys().copied().collect::<Vec<_>>(), keep);
    log.close();
    assert!(log.status().allocated_bytes < SMALL.max_bytes / 3);
    drop(log);
    let (log, _) = open(&world, SMALL);
    assert_eq!(held(&log), before);
    let _ = log.append(vec![letter("again", 20_000)]).expect("room");
}

#[test]
fn edits_keep_to_the_cap_but_for_one_segment_and_what_makes_a_letter_smaller_always_finds_room() {
    let world = world(1);
    let (log, _) = open(&world, SMALL);
    let mut ids = Vec::new();
    while let Ok((new, _)) = log.append(vec![letter("full", 20_000)]) {
        ids.extend(new);
    }
    let bound = SMALL.max_bytes + SMALL.segment_bytes();
    let mut grown = 0;
    let refused = loop {
        match log.replace(ids[grown], letter("grown", 40_000)) {
            Ok(found) => assert!(found),
            Err(error) => break error,
        }
        grown += 1;
        assert!(log.status().allocated_bytes <= bound, "{grown}: {:?}", log.status());
    };
    assert!(grown > 0 && matches!(refused, LetterError::Cap { .. }), "{grown}: {refused}");
    assert!(log.status().allocated_bytes <= bound, "{:?}", log.status());
    for id in &ids {
        assert!(log.replace(*id, letter("small", 10_000)).expect("room"));
    }
    assert!(log.status().allocated_bytes <= SMALL.max_bytes, "{:?}", log.status());
    let large = log.append(vec![letter("large", SMALL.max_bytes as usize)]).expect_err("more than all there is");
    assert!(large.is_full() && large.to_string().contains("even when it is empty"), "{large}");
}

#[test]
fn a_group_that_does_not_fit_costs_the_segment_in_use_none_of_its_room() {
    let world = world(1);
    let (log, _) = open(&world, SMALL);
    while log.append(vec![letter("full", 10_000)]).is_ok() {}
    for _ in 0..3 {
        let error = log.append(vec![letter("large", 5_000); 100]).expect_err("no room");
        assert!(matches!(error, LetterError::Cap { .. }), "{error}");
        let _ = log.append(vec![letter("small", 100)]).expect("room");
    }
}

#[test]
fn a_ring_gives_up_its_oldest_and_stays_within_its_cap() {
    let world = world(1);
    let ring = Options { max_bytes: 1 << 20, at_cap: AtCap::DropOldest, first_id: 0, settles_damage: true };
    let (log, _) = open(&world, ring);
    for number in 0..300 {
        let _ = log.append(vec![letter(&format!("{number}"), 10_000)]).expect("kept");
        assert!(log.status().allocated_bytes <= ring.max_bytes);
    }
    let status = log.status();
    assert_eq!(status.letters + status.dropped, 300);
    assert!(status.letters > 60, "{status:?}");
    assert_eq!(held(&log).values().next_back().expect("some").0, "299");
    let before = held(&log);
    drop(log);
    assert_eq!(held(&open(&world, ring).0), before);
}

#[test]
fn a_damaged_letter_is_named_and_the_others_are_read() {
    let world = world(1);
    let (log, _) = open(&world, SMALL);
    let (ids, _) = log.append((0..20).map(|n| letter(&format!("{n}"), 3000)).collect()).expect("kept");
    let row = log.row(ids[7]).expect("there");
    let path = segment::path_in(Path::new(DIR), 1);
    let file = world.disk().open(&path).expect("opens");
    let mut byte = [0];
    let offset = segment::RECORDS_START + 7 * (row.stored_len as u64 + 80) + 200;
    file.read_at(&mut byte, offset).expect("read");
    file.write_all_at(&mut [io::IoSlice::new(&[byte[0] ^ 1])], offset).expect("written");
    assert!(matches!(log.read(ids[7]), Err(LetterError::Damaged { id }) if id == ids[7]));
    assert!(log.read(ids[8]).expect("readable").is_some());
    // Ending the others leaves the damaged one where it is, and is no failure.
    assert_eq!(log.remove(&ids[8..]).expect("removed"), 12);
    drop(log);
    let (log, opened) = open(&world, SMALL);
    assert_eq!(opened.damage.len(), 1, "{:?}", opened.damage);
    assert_eq!(log.rows().iter().map(|row| row.id).collect::<Vec<_>>(), ids[..7]);
}

/// Before, it was taken for a write that a crash had broken off, and cut off without a word.
#[test]
fn after_an_orderly_close_damage_to_the_last_letter_is_named_too() {
    let world = world(1);
    let (log, _) = open(&world, SMALL);
    let (ids, _receipt) = log.append(vec![letter("first", 1000), letter("last", 1000)]).expect("kept");
    log.close();
    drop(log);
    let file = world.disk().open(&segment::path_in(Path::new(DIR), 1)).expect("opens");
    let offset = segment::RECORDS_START + 1500;
    let mut byte = [0];
    file.read_at(&mut byte, offset).expect("read");
    file.write_all_at(&mut [io::IoSlice::new(&[byte[0] ^ 1])], offset).expect("written");
    let (log, opened) = open(&world, SMALL);
    assert_eq!(opened.damage.len(), 1, "{:?}", opened.damage);
    assert_eq!(log.rows().iter().map(|row| row.id).collect::<Vec<_>>(), ids[..1]);
    // What vouches is no letter, and nothing more is written for an idle log.
    log.close();
    drop(log);
    assert_eq!(open(&world, SMALL).0.rows().len(), 1);
}

#[test]
fn a_failed_sync_is_an_error_and_the_next_letter_goes_into_a_fresh_segment() {
    let world = world(1);
    let (log, _) = open(&world, SMALL);
    let _ = log.append(vec![letter("first", 100)]).expect("kept");
    world.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
    let error = log.append(vec![letter("second", 100)]).expect_err("the sync failed");
    assert!(matches!(error, LetterError::Io { operation: "sync", .. }), "{error}");
    let _ = log.append(vec![letter("third", 100)]).expect("kept");
    let texts = |log: &DeadLetterLog| held(log).into_values().map(|held| held.0).collect::<Vec<_>>();
    assert_eq!(texts(&log), ["first", "third"]);
    drop(log);
    world.cut_power(Fate::Any);
    let (log, _) = open(&world, SMALL);
    let found = texts(&log);
    assert!(found.contains(&Bytes::from("first")) && found.contains(&Bytes::from("third")), "{found:?}");
}

#[test]
fn a_letter_that_was_replaced_since_it_was_read_is_not_removed_and_one_that_was_only_moved_is() {
    let world = world(1);
    let (log, _) = open(&world, SMALL);
    let (ids, _) = log.append((0..40).map(|n| letter(&format!("{n}"), 6000)).collect()).expect("kept");
    let (kept, edited) = (log.row(ids[0]).expect("there"), log.row(ids[1]).expect("there"));
    log.replace(ids[1], letter("repaired", 10)).expect("replaced");
    // Its segment is written anew.
    log.remove(&ids[2..]).expect("removed");
    log.append(vec![letter("roll", 60_000)]).map(drop).expect("kept");
    log.remove(&[0]).expect("tidied");
    assert!(!log.remove_unchanged(&edited).expect("asked"), "somebody repaired it");
    assert!(log.remove_unchanged(&kept).expect("asked"));
    assert_eq!(held(&log).len(), 2);
}

#[test]
fn a_file_that_cannot_be_read_is_never_written_over_whatever_its_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let open = || {
        DeadLetterLog::open(Arc::new(crate::storage::RealDisk), dir.path(), SMALL, None).map(|(log, opened)| {
            let damage = opened.damage.len();
            (log, damage)
        })
    };
    let one_more = |log: &DeadLetterLog| {
        let (ids, _receipt) = log.append(vec![letter("kept", 100)]).expect("kept");
        // Each in a segment of its own.
        log.close();
        ids[0]
    };
    let (log, _) = open().expect("opens");
    let ids = [one_more(&log), one_more(&log), one_more(&log)];
    drop(log);
    // The newest is damaged in both copies of its header, and one was set aside by a repair.
    let path = segment::path_in(dir.path(), 3);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[..RECORDS_START as usize].fill(0xA5);
    std::fs::write(&path, &bytes).expect("damaged");
    let aside = dir.path().join("0000000000000007.seg.damaged");
    std::fs::write(&aside, b"what could be read of it").expect("written");
    // Nothing else knows what its header said.
    std::fs::remove_file(seals::path(dir.path())).expect("removed");
    let (log, damage) = open().expect("opens");
    assert_eq!((damage, log.rows().len()), (1, 2));
    let fresh = one_more(&log);
    assert!(fresh > ids[2]);
    assert!(segment::path_in(dir.path(), 8).exists());
    assert_eq!(std::fs::read(path.with_extension("seg.damaged")).expect("still there"), bytes);
    assert_eq!(std::fs::read(&aside).expect("still there"), b"what could be read of it");
}
