//! The simulated disk is as treacherous as it says, and no more.

use std::io::IoSlice;

use super::*;
use crate::storage::read_only::ReadOnlyDisk;
use crate::storage::{Disk, DiskFile, RealDisk};

fn world(seed: u64) -> Arc<World> {
    World::new(seed, 1 << 20)
}

fn write(disk: &dyn Disk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.create(Path::new(path), 0).expect("created");
    file.write_all_at(&mut [IoSlice::new(bytes)], 0).expect("written");
    file
}

fn read(disk: &dyn Disk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(Path::new(path)).ok()?;
    let mut bytes = vec![0; file.size().expect("measured") as usize];
    file.read_at(&mut bytes, 0).expect("read");
    Some(bytes)
}

/// What a file holds after each of many fates.
fn fates(prepare: impl Fn(&World, &dyn Disk)) -> BTreeSet<Option<Vec<u8>>> {
    (0..200)
        .map(|seed| {
            let world = world(seed);
            prepare(&world, world.disk().as_ref());
            world.cut_power(Fate::Any);
            read(world.disk().as_ref(), "/f")
        })
        .collect()
}

/// Real files read without zeros first, the others by way of `read_at`: one meaning.
#[test]
fn a_read_gives_just_the_bytes_asked_for_and_fewer_only_at_the_end_on_every_disk() {
    let bytes: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("f");
    let text = path.to_str().expect("text");
    let world = world(1);
    let files = [
        write(world.disk().as_ref(), "/f", &bytes),
        write(&RealDisk, text, &bytes),
        ReadOnlyDisk.open(&path).expect("opened"),
    ];
    for (len, offset) in [(0, 0), (1, 0), (7, 3), (4096, 4096), (5000, 5000), (5001, 5000), (9999, 9000), (10, 10_000)]
    {
        let expected: Vec<u8> = bytes.iter().skip(offset).take(len).copied().collect();
        for file in &files {
            assert_eq!(file.read(len, offset as u64).expect("read"), expected, "{len} at {offset}: {file:?}");
        }
    }
    assert_eq!(files.map(|file| file.read(64, 20_000).expect("read").len()), [0; 3], "past the end");
}

#[test]
fn what_was_synced_with_its_name_survives_and_nothing_else_is_sure() {
    let both = fates(|_, disk| {
        write(disk, "/f", b"first").sync_data().expect("synced");
        disk.sync_dir(Path::new("/")).expect("synced");
    });
    assert_eq!(both, BTreeSet::from([Some(b"first".to_vec())]));
    let nameless = fates(|_, disk| {
        write(disk, "/f", b"first").sync_data().expect("synced");
    });
    assert_eq!(nameless, BTreeSet::from([None, Some(b"first".to_vec())]));
}

#[test]
fn pages_that_were_not_synced_are_kept_in_any_combination_and_torn_at_sectors() {
    let found = fates(|_, disk| {
        let file = write(disk, "/f", &[1; 3 * PAGE_LEN]);
        file.sync_data().expect("synced");
        disk.sync_dir(Path::new("/")).expect("synced");
        file.write_all_at(&mut [IoSlice::new(&[2; 3 * PAGE_LEN])], 0).expect("written");
    });
    let pages = |bytes: &Vec<u8>| bytes.chunks(PAGE_LEN).map(|page| (page[0], page[PAGE_LEN - 1])).collect::<Vec<_>>();
    let found: BTreeSet<_> = found.iter().flatten().map(pages).collect();
    for expected in [[(1, 1); 3], [(2, 2); 3], [(1, 1), (2, 2), (1, 1)], [(2, 2), (1, 1), (2, 2)]] {
        assert!(found.contains(expected.as_slice()), "{expected:?}");
    }
    assert!(found.iter().flatten().any(|page| *page == (2, 1)), "a torn page");
}

#[test]
fn a_rename_is_whole_or_not_at_all() {
    let found: BTreeSet<(bool, bool)> = (0..50)
        .map(|seed| {
            let world = world(seed);
            let disk = world.disk();
            write(disk.as_ref(), "/old", b"x").sync_data().expect("synced");
            disk.sync_dir(Path::new("/")).expect("synced");
            disk.rename(Path::new("/old"), Path::new("/new")).expect("renamed");
            world.cut_power(Fate::Any);
            let disk = world.disk();
            (read(disk.as_ref(), "/old").is_some(), read(disk.as_ref(), "/new").is_some())
        })
        .collect();
    assert_eq!(found, BTreeSet::from([(true, false), (false, true)]));
}

#[test]
fn a_failed_sync_is_not_made_good_by_a_later_one() {
    let found = fates(|world, disk| {
        let file = write(disk, "/f", b"old");
        file.sync_data().expect("synced");
        disk.sync_dir(Path::new("/")).expect("synced");
        file.write_all_at(&mut [IoSlice::new(b"new")], 0).expect("written");
        world.update_faults(|faults| faults.failing_syncs = 1);
        assert!(file.sync_data().is_err());
        file.sync_data().expect("says that it is synced");
        assert_eq!(read(disk, "/f"), Some(b"new".to_vec()), "the page cache");
    });
    assert_eq!(found, BTreeSet::from([Some(b"old".to_vec()), Some(b"new".to_vec())]));
}

#[test]
fn the_power_goes_off_at_the_operation_that_was_named_and_the_old_boot_stays_dead() {
    let world = world(1);
    let disk = world.disk();
    let file = write(disk.as_ref(), "/f", b"x");
    world.cut_power_in(Some(1));
    file.sync_data().expect("the last but one");
    assert!(file.sync_data().is_err() && world.is_off());
    world.cut_power(Fate::Any);
    assert!(file.sync_data().is_err() && disk.list(Path::new("/")).is_err());
    assert!(world.disk().list(Path::new("/")).is_ok());
}

#[test]
fn a_kill_keeps_the_page_cache() {
    let world = world(1);
    write(world.disk().as_ref(), "/f", b"x");
    world.kill();
    assert_eq!(read(world.disk().as_ref(), "/f"), Some(b"x".to_vec()));
}
