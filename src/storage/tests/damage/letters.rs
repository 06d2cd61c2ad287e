//! The dead letters of the directory that is damaged.

use super::*;
use crate::storage::dead_letters::{AtCap, Damage, DeadLetterLog, NewLetter, Options as Bounds};

const GROUPS: u64 = 40;
const LETTERS_OF_GROUP: u64 = 4;
/// Of each group the first has ended.
const ENDED: u64 = 0;

fn open(dir: &Path) -> (DeadLetterLog, Vec<Damage>) {
    let bounds = Bounds { max_bytes: 1 << 20, at_cap: AtCap::Refuse, first_id: 0, settles_damage: true };
    let (log, opened) = DeadLetterLog::open(Arc::new(RealDisk), dir, bounds, None).expect("opens");
    (log, opened.damage)
}

fn letter(n: u64) -> NewLetter {
    NewLetter {
        signal: 1,
        encoding: 0,
        items: 1,
        raw_len: 0,
        parked_unix_ns: 1,
        description: Bytes::from(n.to_string()),
        payload: content(n).repeat(10).into(),
    }
}

/// The same for each call, but for the ids.
pub fn write(dir: &Path, end: End) {
    let (log, _) = open(dir);
    for group in 0..GROUPS {
        let numbers = group * LETTERS_OF_GROUP..(group + 1) * LETTERS_OF_GROUP;
        let (ids, _receipt) = log.append(numbers.map(letter).collect()).expect("kept");
        log.remove(&ids[..1]).map(drop).expect("ended");
    }
    if end == End::Closed {
        log.close();
    }
}

/// What was there before the damage.
pub struct Letters {
    /// By its number: where its record lies.
    alive: BTreeMap<u64, (PathBuf, Range<u64>)>,
    newest: PathBuf,
    ended: Vec<PathBuf>,
}

fn number(description: &[u8]) -> u64 {
    String::from_utf8_lossy(description).parse().expect("a number")
}

fn segment_paths(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    files(dir, &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

impl Letters {
    pub fn of(dir: &Path) -> Letters {
        let (mut alive, mut ended) = (BTreeMap::new(), Vec::new());
        let paths = segment_paths(dir);
        assert!(paths.len() >= 4, "{} segments: the run is no run", paths.len());
        for path in &paths {
            let id = segment::parse_file_name(&path.file_name().expect("a name").to_string_lossy()).expect("an id");
            let file = RealDisk.open(path).expect("opens");
            let segment::HeaderPage::Valid(identity) = segment::Identity::read(file.as_ref(), id).expect("read") else {
                panic!("{} has no header", path.display())
            };
            for located in segment::scan_all(&file, identity).expect("scanned").records {
                let header = located.header;
                let at = located.offset + record::HEADER_LEN as u64;
                let description = file.read(header.metadata_len as usize, at).expect("read");
                // Tombstones have no payload.
                if header.stored_len == 0 {
                    continue;
                }
                if number(&description) % LETTERS_OF_GROUP == ENDED {
                    ended.push(path.clone());
                } else {
                    let range = located.offset..located.offset + header.record_len();
                    alive.insert(number(&description), (path.clone(), range));
                }
            }
        }
        assert_eq!(alive.len() as u64, GROUPS * (LETTERS_OF_GROUP - 1));
        Letters { alive, newest: paths.last().expect("some").clone(), ended }
    }

    fn ended_in(&self, path: &Path) -> u64 {
        self.ended.iter().filter(|ended| *ended == path).count() as u64
    }

    /// Opens what was damaged: `original` is the file as it was. Returns how many letters are lost.
    pub fn check(&self, dir: &Path, end: End, original: &Path, at: &Range<u64>, told: &str) -> usize {
        let (log, damage) = open(dir);
        let mut found = BTreeSet::new();
        for row in log.rows() {
            let Ok(Some(read)) = log.read(row.id) else { panic!("{told}: letter {:016x} is listed only", row.id) };
            let number = number(&read.description);
            assert_eq!(read.payload, letter(number).payload, "{told}: letter {number} has changed");
            found.insert(number);
        }
        let lost: Vec<u64> = self.alive.keys().copied().filter(|number| !found.contains(number)).collect();
        for number in &lost {
            let (path, range) = &self.alive[number];
            let is_hit = path == original && range.start < at.end && at.start < range.end;
            assert!(is_hit || path == original && at.start < segment::RECORDS_START, "{told}: letter {number} is gone");
        }
        // An ended letter is back only where the record that ended it was hit.
        let is_hit = original.starts_with(self.newest.parent().expect("a directory"));
        assert!(is_hit || found.iter().all(|number| number % LETTERS_OF_GROUP != ENDED), "{told}: one came back");
        let reported: u64 = damage.iter().map(Damage::letters_at_least).sum();
        // The end of what was being written cannot be told from a write that was never confirmed.
        if end == End::Closed || original != self.newest {
            assert!(reported >= lost.len() as u64, "{told}: {damage:?}");
        }
        // With the record of an ended letter that of its end may be gone.
        let is_whole = !original.exists() || at.end == u64::MAX && at.start == 0;
        let ended = if is_whole { 0 } else { self.ended_in(original) };
        assert!(reported <= lost.len().max(1) as u64 + ended, "{told}: {damage:?}");
        log.append(vec![letter(0)]).map(drop).unwrap_or_else(|error| panic!("{told}: it does not go on: {error}"));
        drop(log);
        assert_eq!(open(dir).1, [], "{told}: told once");
        lost.len()
    }
}
