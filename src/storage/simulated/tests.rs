//! The simulated disk is as treacherous as it says, and no more.

use std::io::IoSlice;

use super::*;
use crate::storage::{Disk, DiskFile};

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
