//! What letters that end undelivered held: nobody has it then, so it must not count as seen before.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::storage::RangeSet;
use crate::storage::dead_letters::{LetterError, Located};

use super::Description;

/// Records by their queues. Of a letter whose description is damaged, or too old to tell, there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(BTreeMap<String, RangeSet>);

impl Records {
    pub fn of(description: &Description) -> Records {
        let mut records = Records::default();
        records.add(description);
        records
    }

    pub fn extend(&mut self, others: &Records) {
        for (queue, sequences) in &others.0 {
            let ours = self.0.entry(queue.clone()).or_default();
            sequences.iter().for_each(|range| ours.insert(range));
        }
    }

    pub fn add(&mut self, description: &Description) {
        if let Some(sequence) = description.sequence {
            self.0.entry(description.queue.clone()).or_default().insert(sequence..sequence + 1);
        }
    }

    /// Reads the description of a letter; None where it is damaged.
    pub fn add_letter(&mut self, letter: &Located) -> Result<Option<Description>, LetterError> {
        let description = letter.description()?.and_then(|bytes| Description::from_bytes(&bytes).ok());
        description.iter().for_each(|description| self.add(description));
        Ok(description)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &RangeSet)> {
        self.0.iter().map(|(queue, sequences)| (queue.as_str(), sequences))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

type Forget = dyn Fn(&Records) -> io::Result<()> + Send + Sync;

/// Who remembers what was seen. Told before letters end; what it is told is durable when it returns.
#[derive(Clone)]
pub struct SeenBefore(Arc<Forget>);

impl SeenBefore {
    pub fn new(forget: impl Fn(&Records) -> io::Result<()> + Send + Sync + 'static) -> SeenBefore {
        SeenBefore(Arc::new(forget))
    }

    /// Nobody remembers anything.
    pub fn none() -> SeenBefore {
        SeenBefore::new(|_| Ok(()))
    }

    /// May wait for the disk.
    pub fn forget(&self, records: &Records) -> Result<(), LetterError> {
        if records.is_empty() {
            return Ok(());
        }
        (self.0)(records).map_err(|cause| LetterError::Io { operation: "forget what was seen of", cause })
    }
}

impl fmt::Debug for SeenBefore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeenBefore").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dlq::{DeadLetters, OnFull, Parcel, Reason, Shelf};
    use crate::otlp::{Encoding, Signal};
    use crate::storage::{Disk, RealDisk};

    fn parcel(queue: &str, sequence: Option<u64>) -> Parcel {
        let mut description = Description::new(Reason::Rejected, "no", 5);
        (description.queue, description.sequence) = (queue.to_owned(), sequence);
        let payload = Bytes::from_static(b"x");
        Parcel { signal: Signal::Traces, encoding: Encoding::Identity, items: 1, raw_len: 1, description, payload }
    }

    fn letters(dir: &std::path::Path, max_bytes: u64, memory: SeenBefore) -> DeadLetters {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (shelf, _) = Shelf::open(&disk, dir, max_bytes, None).expect("opens");
        DeadLetters::new(shelf, OnFull::Drop).remembered_by(memory)
    }

    fn forgetful() -> SeenBefore {
        SeenBefore::new(|_| Err(io::Error::other("no disk")))
    }

    #[tokio::test]
    async fn what_cannot_be_forgotten_is_neither_purged_nor_dropped() {
        let (dir, other_dir) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let letters = letters(dir.path(), 16 << 20, forgetful());
        let parked = letters.park(vec![parcel("traces", Some(7)), parcel("traces", None)]).await.expect("room");
        let ids: Vec<u64> = parked.ids.into_iter().flatten().collect();
        let error = letters.purge(&ids).expect_err("it cannot be forgotten");
        assert!(error.to_string().contains("failed to forget what was seen"), "{error}");
        assert_eq!(letters.shelf().rows().len(), 2);
        // What says of no record that it is gone needs no memory.
        assert_eq!(letters.purge(&ids[1..]).expect("purged"), 1);
        let full = self::letters(other_dir.path(), 0, forgetful());
        let refused = full.park(vec![parcel("traces", Some(7))]).await.expect_err("it cannot be forgotten");
        assert!(!refused.is_full());
    }

    #[test]
    fn records_are_told_by_queue_each_once() {
        let mut records = Records::default();
        for (queue, sequence) in [("a", Some(3)), ("b", Some(3)), ("a", Some(4)), ("a", Some(3)), ("a", None)] {
            records.add(&parcel(queue, sequence).description);
        }
        let told: Vec<_> =
            records.iter().flat_map(|(queue, set)| set.iter().map(move |range| (queue, range))).collect();
        assert_eq!(told, [("a", 3..5), ("b", 3..4)]);
    }
}
