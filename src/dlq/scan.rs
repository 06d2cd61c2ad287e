//! Going through the letters that a filter means, a stretch of them in memory at a time.

use std::collections::BTreeSet;

use crate::storage::dead_letters::{LetterError, Located};

use super::listing::{describe, parse_id};
use super::{Description, Entry, Filter, Shelf};

/// Letters that are looked up at once.
const STRETCH: usize = 1000;

/// A letter of which it cannot be told whether it is meant: its description cannot be read.
pub struct Doubt {
    pub id: u64,
    pub error: LetterError,
}

/// A letter that is meant.
pub struct Found {
    pub letter: Located,
    /// Read where the filter asks for it.
    description: Option<Description>,
}

impl Found {
    /// As it is shown; None when it is damaged, which whoever reads it alone is told.
    pub fn entry(self) -> Result<Option<Entry>, LetterError> {
        let description = match self.description {
            Some(description) => description,
            None => match self.letter.description()? {
                Some(bytes) => describe(&bytes),
                None => return Ok(None),
            },
        };
        Ok(Some(Entry::new(&self.letter.row, description, self.letter.note()?.as_deref())))
    }
}

/// The letters that a filter means, oldest first. Reads their descriptions where it must, their payloads never.
pub struct Scan<'a> {
    filter: &'a Filter,
    letters: Box<dyn Iterator<Item = Located> + 'a>,
}

impl<'a> Scan<'a> {
    /// Those behind `after`; what lies before it is not looked at.
    pub fn new(shelf: &'a Shelf, filter: &'a Filter, after: Option<u64>) -> Scan<'a> {
        if filter.ids.is_empty() {
            return Scan { filter, letters: Box::new(letters(shelf, after)) };
        }
        let ids: BTreeSet<u64> = filter.ids.iter().filter_map(|id| parse_id(id)).collect();
        let behind = ids.into_iter().filter(move |id| after.is_none_or(|after| *id > after));
        Scan { filter, letters: Box::new(behind.filter_map(|id| shelf.located(id))) }
    }

    fn judge(&self, letter: Located) -> Result<Option<Found>, Doubt> {
        if !self.filter.takes_row(&letter.row) {
            return Ok(None);
        }
        if !self.filter.asks_for_descriptions() {
            return Ok(Some(Found { letter, description: None }));
        }
        let id = letter.row.id;
        let read = letter.description().and_then(|found| found.ok_or(LetterError::Damaged { id }));
        let description = describe(&read.map_err(|error| Doubt { id, error })?);
        let is_meant = self.filter.takes(&description);
        Ok(is_meant.then_some(Found { letter, description: Some(description) }))
    }
}

impl Scan<'_> {
    /// Passes over what is damaged; a disk that cannot be read ends it.
    pub fn undamaged(self) -> impl Iterator<Item = Result<Found, LetterError>> {
        self.filter_map(|found| match found {
            Err(Doubt { error: LetterError::Damaged { .. }, .. }) => None,
            found => Some(found.map_err(|doubt| doubt.error)),
        })
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Found, Doubt>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let letter = self.letters.next()?;
            match self.judge(letter) {
                Ok(None) => {}
                judged => return judged.transpose(),
            }
        }
    }
}

/// Every letter behind `after`, by id, as the shelf has it when its stretch is reached.
pub fn letters(shelf: &Shelf, after: Option<u64>) -> impl Iterator<Item = Located> {
    let mut next_after = after;
    let stretches = std::iter::from_fn(move || {
        let stretch = shelf.located_after(next_after, STRETCH);
        next_after = Some(stretch.last()?.row.id);
        Some(stretch)
    });
    stretches.flatten()
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use bytes::Bytes;

    use super::*;
    use crate::dlq::listing::{format_id, list};
    use crate::dlq::{Listed, Reason};
    use crate::otlp::Signal;
    use crate::storage::counting::CountingDisk;
    use crate::storage::dead_letters::NewLetter;
    use crate::storage::{Disk, RealDisk};

    const PAYLOAD_BYTES: usize = 20_000;

    /// 2,500 letters, every tenth of them expired, and three that were malformed.
    fn shelf(dir: &Path) -> (Shelf, CountingDisk, Vec<u64>) {
        let counting = CountingDisk::default();
        let disk: Arc<dyn Disk> = Arc::new(counting.clone());
        let (shelf, _) = Shelf::open(&disk, dir, 128 << 20, None).expect("opens");
        let letter = |number: usize, reason| {
            let mut description = Description::new(reason, "no", 5);
            description.exporter = Some(format!("exporter-{}", number % 2));
            NewLetter {
                signal: Signal::Traces as u8,
                encoding: 0,
                items: 1,
                raw_len: PAYLOAD_BYTES as u32,
                parked_unix_ns: number as u64 * 1_000_000,
                description: description.to_bytes(),
                payload: Bytes::from(vec![7; PAYLOAD_BYTES]),
            }
        };
        let reason = |number| if number % 10 == 0 { Reason::Expired } else { Reason::Rejected };
        let letters = (0..2500).map(|number| letter(number, reason(number))).collect();
        let (mut ids, _) = shelf.parked().append(letters).expect("kept");
        let malformed = (0..3).map(|number| letter(number, Reason::Malformed)).collect();
        ids.extend(shelf.ring().append(malformed).expect("kept").0);
        counting.read_bytes.store(0, Ordering::Relaxed);
        (shelf, counting, ids)
    }

    fn of(reason: Reason) -> Filter {
        Filter { reason: Some(reason), ..Filter::default() }
    }

    fn ids_of(page: &Listed) -> Vec<String> {
        page.letters.iter().map(|entry| entry.id.clone()).collect()
    }

    #[test]
    fn pages_follow_one_another_without_a_gap_and_the_count_is_of_all() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (shelf, _, ids) = shelf(dir.path());
        let some = Filter { ids: ids.iter().rev().step_by(3).map(|id| format_id(*id)).collect(), ..Filter::default() };
        let early = Filter { until_unix_ms: Some(1233), exporter: Some("exporter-1".to_owned()), ..Filter::default() };
        for (filter, matching) in [
            (Filter::default(), 2503),
            (of(Reason::Expired), 250),
            (of(Reason::Malformed), 3),
            (of(Reason::Ambiguous), 0),
            (some, 835),
            (early, 617 + 1),
        ] {
            let expected: Vec<String> = filter.select(&shelf).expect("read").into_iter().map(format_id).collect();
            for limit in [1000, 250, 97] {
                let (mut found, mut after) = (Vec::new(), None);
                loop {
                    let page = list(&shelf, &filter, after, limit, after.is_none()).expect("read");
                    assert_eq!(page.matching, after.is_none().then_some(matching), "{filter:?}");
                    found.extend(ids_of(&page));
                    assert!(page.letters.len() == limit || page.next.is_none());
                    assert_eq!(page.next.is_some(), found.len() < matching, "a next page is never empty");
                    after = match page.next {
                        Some(next) => parse_id(&next),
                        None => break,
                    };
                }
                assert_eq!(found, expected, "{filter:?} by {limit}");
            }
            assert_eq!(expected.len(), matching, "{filter:?}");
        }
    }

    #[test]
    fn a_list_reads_descriptions_and_no_payload_and_nothing_that_lies_before_its_page() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (shelf, counting, ids) = shelf(dir.path());
        let read = || counting.read_bytes.swap(0, Ordering::Relaxed);
        list(&shelf, &of(Reason::Expired), None, 1000, true).map(drop).expect("read");
        let whole = read();
        let letters = ids.len() as u64;
        assert!(whole > letters * 100 && whole < letters * 500, "{whole} bytes of {letters} descriptions");
        list(&shelf, &of(Reason::Expired), Some(ids[2400]), 1000, false).map(drop).expect("read");
        let end = read();
        assert!(end < whole / 20, "{end} bytes behind the 2,400th, {whole} in all");
        list(&shelf, &of(Reason::Expired), Some(ids[100]), 5, false).map(drop).expect("read");
        let page = read();
        assert!(page < whole / 30, "{page} bytes of a page of 5 among 60");
        list(&shelf, &Filter::default(), Some(ids[1000]), 5, true).map(drop).expect("read");
        assert!(read() < 5 * 500, "by what the index knows, only the page itself is read");
    }

    #[test]
    fn a_damaged_payload_does_not_keep_a_letter_out_of_lists_and_a_damaged_header_only_that_letter() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (shelf, _, ids) = shelf(dir.path());
        let entry = |id| shelf.row(id).map(|row| row.stored_len as u64).expect("there");
        let path = std::fs::read_dir(dir.path().join("dlq")).expect("listed").map(|entry| entry.expect("entry").path());
        let path = path.filter(|path| path.is_file()).min().expect("a segment");
        let file = RealDisk.open(&path).expect("opens");
        let mut bytes = vec![0; 256 << 10];
        file.read_at(&mut bytes, 0).expect("read");
        let starts: Vec<usize> =
            bytes.windows(4).enumerate().filter(|(_, w)| *w == b"FBR1").map(|(at, _)| at).collect();
        assert!(entry(ids[0]) == PAYLOAD_BYTES as u64 && starts.len() > 3);
        for at in [starts[1] + 10_000, starts[2] + 20] {
            file.write_all_at(&mut [IoSlice::new(&[bytes[at] ^ 1])], at as u64).expect("written");
        }
        assert!(matches!(shelf.read(ids[1]), Err(LetterError::Damaged { .. })));
        let page = list(&shelf, &of(Reason::Rejected), None, 3, false).expect("read");
        assert_eq!(ids_of(&page), [ids[1], ids[3], ids[4]].map(format_id));
        // Whoever has to say what is missing is told of the other.
        let (sure, doubtful) = of(Reason::Rejected).select_with_doubts(&shelf);
        assert_eq!(sure, of(Reason::Rejected).select(&shelf).expect("read"));
        assert_eq!(doubtful.iter().map(|doubt| doubt.id).collect::<Vec<_>>(), [ids[2]]);
    }
}
