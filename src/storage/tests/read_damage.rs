//! Damage that a read meets: who is told of it, and what others do meanwhile.

use std::io::IoSlice;
use std::sync::mpsc;

use super::damage::places;
use super::log::Chunk;
use super::*;

/// Says that it was told, and does not return before it may.
struct Doorkeeper {
    told: mpsc::Sender<Lost>,
    may_go: Mutex<mpsc::Receiver<()>>,
}

impl Observer for Doorkeeper {
    fn damaged(&self, _queue: &str, lost: &Lost) {
        self.told.send(lost.clone()).expect("heard");
        self.may_go.lock().recv_timeout(PATIENCE).expect("let go");
    }
}

/// Flips a bit of these records, so far behind where each begins.
fn flip(dir: &Path, sequences: &[u64], behind: u64) {
    let places = places(dir);
    for sequence in sequences {
        let (path, place, _) = &places[sequence];
        let file = RealDisk.open(path).expect("opens");
        let mut byte = [0];
        file.read_at(&mut byte, place.start + behind).expect("read");
        file.write_all_at(&mut [IoSlice::new(&[byte[0] ^ 1])], place.start + behind).expect("written");
    }
}

fn read(log: &Log, from: u64) -> Chunk {
    log.read_file(Position::at(from), u64::MAX, usize::MAX).expect("reads")
}

/// From, to.
fn ends(lost: &[Lost]) -> Vec<(u64, u64)> {
    lost.iter().map(|lost| (lost.sequences.start, lost.sequences.end)).collect()
}

#[test]
fn who_is_told_of_damage_holds_up_those_who_read_it_and_nobody_else() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (told, hears) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let observer = Arc::new(Doorkeeper { told, may_go: Mutex::new(may_go) });
    let (store, _) = Store::open(Arc::new(RealDisk), dir.path(), &options(), observer).expect("the store opens");
    let log = store.queue("traces", &cursor("x")).expect("queue");
    (0..5).for_each(|n| drop(append(&log, payload(n)).expect("durable")));
    flip(dir.path(), &[2], 500);
    let (done, chunks) = mpsc::channel();
    for _ in 0..2 {
        let (log, done) = (Arc::clone(&log), done.clone());
        std::thread::spawn(move || done.send(read(&log, 0)));
    }
    hears.recv_timeout(PATIENCE).expect("told");
    // The writer takes the state's lock.
    drop(append(&log, payload(5)).expect("durable"));
    assert!(chunks.try_recv().is_err(), "nobody acts on a loss of which not everybody knows");
    go.send(()).expect("waits");
    for _ in 0..2 {
        assert_eq!(ends(&chunks.recv_timeout(PATIENCE).expect("read").lost), [(2, 3)]);
    }
    assert!(hears.try_recv().is_err(), "told once");
}

#[test]
fn damage_before_what_was_asked_for_is_no_loss_without_an_end_also_when_nothing_follows() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _, seen) = open(dir.path());
    let log = store.queue("traces", &cursor("x")).expect("queue");
    (0..5).for_each(|n| drop(append(&log, payload(n)).expect("durable")));
    // In their headers: the search for the last begins before the first.
    flip(dir.path(), &[1, 4], 8);
    assert_eq!(ends(&read(&log, 4).lost), [(4, 5)]);
    assert_eq!(ends(&read(&log, 0).lost), [(1, 2), (4, 5)]);
    assert_eq!(ends(&seen.lost.lock()), [(4, 5), (1, 2)]);
}
