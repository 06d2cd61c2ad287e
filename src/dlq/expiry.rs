//! Letters that are older than `max_age` go, and are counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::otlp::Signal;
use crate::storage::dead_letters::{LetterError, Row};
use crate::storage::unix_now_ns;

use super::{DeadLetters, Records, scan};

/// Nothing expires this soon after the start: a clock that was wrong then may be set by now.
pub const GRACE: Duration = Duration::from_secs(600);

/// Letters that are forgotten at once, since each forgetting is synced.
const GROUP_MAX: usize = 1024;

/// Wall time that never runs ahead of the time that has passed since the start: a clock that is set forward makes no
/// letter older. One that is set back makes all younger, which keeps them longer.
#[derive(Debug)]
pub struct Calendar {
    started: Instant,
    started_unix_ns: u64,
}

impl Calendar {
    pub fn start() -> Calendar {
        Calendar { started: Instant::now(), started_unix_ns: unix_now_ns() }
    }

    pub fn now_unix_ns(&self) -> u64 {
        self.clamped(self.started.elapsed(), unix_now_ns())
    }

    fn clamped(&self, passed: Duration, wall_unix_ns: u64) -> u64 {
        let passed_ns = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        wall_unix_ns.min(self.started_unix_ns.saturating_add(passed_ns))
    }
}

/// What went, by exporter (empty for what was malformed) and signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    pub letters: u64,
    pub items: BTreeMap<(String, Signal), u64>,
}

/// Ends the letters that were parked more than `max_age` ago. Reads and writes the disk.
pub fn expire(letters: &DeadLetters, now_unix_ns: u64, max_age: Duration) -> Result<Expired, LetterError> {
    let shelf = letters.shelf();
    let max_age_ns = u64::try_from(max_age.as_nanos()).unwrap_or(u64::MAX);
    let is_old = |row: &Row| now_unix_ns.saturating_sub(row.parked_unix_ns) > max_age_ns;
    let mut expired = Expired::default();
    let mut old = scan::letters(shelf, None).filter(|letter| is_old(&letter.row));
    loop {
        let mut records = Records::default();
        let mut group = Vec::new();
        for letter in old.by_ref().take(GROUP_MAX) {
            // Damaged ones expire like others.
            let exporter = records.add_letter(&letter)?.and_then(|known| known.exporter);
            group.push((letter.row, exporter));
        }
        if group.is_empty() {
            return Ok(expired);
        }
        letters.memory.forget(&records)?;
        for (row, exporter) in group {
            // What somebody repaired meanwhile is young only by its content; it keeps its age and goes the next time.
            if shelf.remove_unchanged(&row)? {
                expired.letters += 1;
                if let Some(signal) = Signal::from_u8(row.signal) {
                    *expired.items.entry((exporter.unwrap_or_default(), signal)).or_default() += u64::from(row.items);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use parking_lot::Mutex;

    use super::*;
    use crate::dlq::{Description, OnFull, Reason, SeenBefore, Shelf};
    use crate::storage::dead_letters::NewLetter;
    use crate::storage::{Disk, RealDisk};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn rule_10_letters_past_their_age_go_and_are_counted_and_no_jump_of_the_clock_makes_them_old() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (shelf, _) = Shelf::open(&disk, dir.path(), 64 << 20, None).expect("opens");
        let told = Arc::new(Mutex::new(Vec::new()));
        let memory = Arc::clone(&told);
        let letters = DeadLetters::new(shelf, OnFull::Block).remembered_by(SeenBefore::new(move |records| {
            memory.lock().extend(records.iter().map(|(queue, sequences)| (queue.to_owned(), sequences.clone())));
            Ok(())
        }));
        let shelf = letters.shelf();
        let now = unix_now_ns();
        let letter = |age: Duration, items| {
            let mut description = Description::new(Reason::Rejected, "no", now);
            description.exporter = Some("backend".to_owned());
            (description.queue, description.sequence) = ("logs".to_owned(), Some(u64::from(items)));
            NewLetter {
                signal: Signal::Logs as u8,
                encoding: 0,
                items,
                raw_len: 0,
                parked_unix_ns: now - age.as_nanos() as u64,
                description: description.to_bytes(),
                payload: Bytes::new(),
            }
        };
        shelf.parked().append(vec![letter(3 * HOUR, 5), letter(HOUR, 7), letter(2 * HOUR, 2)]).map(drop).expect("kept");
        shelf.ring().append(vec![letter(3 * HOUR, 0)]).map(drop).expect("kept");
        assert_eq!(expire(&letters, now, 4 * HOUR).expect("done"), Expired::default());
        let expired = expire(&letters, now, HOUR + HOUR / 2).expect("done");
        assert_eq!((expired.letters, shelf.rows().len()), (3, 1));
        assert_eq!(expired.items.into_iter().collect::<Vec<_>>(), [(("backend".to_owned(), Signal::Logs), 7)]);
        // Nobody has them any more.
        let records = |sequences: &[u64]| sequences.iter().map(|sequence| *sequence..sequence + 1).collect();
        assert_eq!(*told.lock(), [("logs".to_owned(), records(&[0, 2, 5]))]);

        let calendar = Calendar { started: Instant::now(), started_unix_ns: now };
        let minute_ns = 60_000_000_000;
        let minute = Duration::from_nanos(minute_ns);
        assert_eq!(calendar.clamped(minute, now + minute_ns), now + minute_ns);
        assert_eq!(calendar.clamped(minute, now + 365 * 24 * 60 * minute_ns), now + minute_ns, "set forward");
        assert_eq!(calendar.clamped(minute, now - 60 * minute_ns), now - 60 * minute_ns, "set back");
    }
}
