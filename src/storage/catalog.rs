//! What the catalogue holds, and the trait that its stores fulfil. Rebuildable: losing it may cost duplicates,
//! never data.

mod sled;

pub use self::sled::SledCatalog;

use std::ops::Range;

use prost::Message;
use prost::encoding::encoded_len_varint;

use super::cursor::{Cursor, PERSISTED_RANGES_MAX};
use super::ledger::{Ledger, LedgerRow};
use super::ranges::RangeSet;

/// Rows stay in sled's inline size: larger values become blob files that sled never syncs.
pub const ROW_LEN_MAX: usize = 4096;
/// Of a cursor's row, for its settled ranges: the low mark and the ledger take less than the rest.
const RANGES_LEN_MAX: usize = ROW_LEN_MAX - 256;
/// So many fit whatever the numbers.
pub const RANGES_SURE: usize = RANGES_LEN_MAX / 20;

#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} the catalogue: {reason}")]
pub struct CatalogError {
    pub operation: &'static str,
    pub reason: String,
    /// The disk has no room.
    pub is_full: bool,
    /// Another process has it open.
    pub is_locked: bool,
}

impl CatalogError {
    pub fn io(operation: &'static str, cause: &std::io::Error) -> CatalogError {
        let full = [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded];
        CatalogError { operation, reason: cause.to_string(), is_full: full.contains(&cause.kind()), is_locked: false }
    }
}

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// One change: the row's new value, or None to delete it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// A small ordered store of rows. Called from one thread.
pub trait Catalog: Send {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError>;
    /// Applies all changes at once; durable when it returns.
    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError>;

    /// Bytes on disk, also those that nothing refers to any more.
    fn size_bytes(&self) -> u64 {
        0
    }

    /// Writes `rows`, which are all there are, into a fresh place and goes on there; a crash leaves one or the other.
    fn compact(&mut self, _rows: &[Row]) -> Result<(), CatalogError> {
        Ok(())
    }
}

/// Key of the row that says which life of the data directory this is.
pub const META_KEY: &[u8] = b"meta";

#[derive(Clone, PartialEq, Message)]
pub struct MetaRow {
    /// Counts the openings of the data directory.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// Counts checkpoints within all generations.
    #[prost(uint64, tag = "2")]
    pub checkpoint: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct QueueRow {
    #[prost(uint64, tag = "1")]
    pub next_sequence: u64,
    #[prost(uint64, tag = "2")]
    pub next_segment_id: u64,
    #[prost(uint64, tag = "3")]
    pub durable_end: u64,
    /// Sequences below the durable end that are known to be missing, left behind by a torn group or reported as lost:
    /// start, end, and so on.
    #[prost(uint64, repeated, tag = "4")]
    pub holes: Vec<u64>,
    /// Random, chosen when the queue is made or something is taken out of it by hand; 0 before there was one.
    #[prost(fixed64, tag = "5")]
    pub incarnation: u64,
}

/// Holes that a row remembers, the newest; forgetting one can only cost a false report of loss.
const HOLES_MAX: usize = 64;

impl QueueRow {
    pub fn set_holes(&mut self, holes: &RangeSet) {
        let newest = holes.iter().skip(holes.len().saturating_sub(HOLES_MAX));
        self.holes = newest.flat_map(|hole| [hole.start, hole.end]).collect();
    }

    pub fn holes(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.holes.chunks_exact(2).map(|pair| pair[0]..pair[1])
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct SegmentRow {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub nonce: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub first_sequence: u64,
    #[prost(uint64, tag = "4")]
    pub last_sequence: u64,
    #[prost(uint64, tag = "5")]
    pub records: u64,
    #[prost(uint64, tag = "6")]
    pub valid_end: u64,
    #[prost(uint64, tag = "7")]
    pub sequence_floor: u64,
    #[prost(uint64, tag = "8")]
    pub items: u64,
    /// Behind the sequence published before the first record; 0 when there was none.
    #[prost(uint64, tag = "9")]
    pub previous_end: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct CursorRow {
    #[prost(uint64, tag = "1")]
    pub low: u64,
    /// Distances: from `low` to the first range's start, its length, from its end to the next start, and so on.
    #[prost(uint64, repeated, tag = "2")]
    pub ranges: Vec<u64>,
    /// What became of what is settled.
    #[prost(message, optional, tag = "3")]
    pub ledger: Option<LedgerRow>,
}

impl CursorRow {
    pub fn new(cursor: &Cursor, ledger: &Ledger, ranges_max: usize) -> CursorRow {
        let mut at = cursor.low();
        let mut ranges = Vec::new();
        let mut len = 0;
        for range in cursor.above().iter().take(ranges_max.min(PERSISTED_RANGES_MAX)) {
            let pair = [range.start - at, range.end - range.start];
            len += pair.iter().map(|distance| encoded_len_varint(*distance)).sum::<usize>();
            if len > RANGES_LEN_MAX {
                break;
            }
            ranges.extend(pair);
            at = range.end;
        }
        CursorRow { low: cursor.low(), ranges, ledger: Some(ledger.row()) }
    }

    pub fn ledger(&self) -> Ledger {
        self.ledger.as_ref().map(Ledger::from_row).unwrap_or_default()
    }

    pub fn cursor(&self) -> Cursor {
        let mut cursor = Cursor::at(self.low);
        let mut at = self.low;
        for pair in self.ranges.chunks_exact(2) {
            let start = at.saturating_add(pair[0]);
            let end = start.saturating_add(pair[1]);
            cursor.settle(start..end);
            at = end;
        }
        cursor
    }
}

/// Makes an id safe as a file name and as a part of a key: anything but letters, digits, `.`, `_` and `-` becomes
/// `%XX`, and so does a leading dot.
pub fn encode_name(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    for (index, byte) in id.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' || (byte == b'.' && index > 0);
        if plain {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

/// The id that [`encode_name`] made `name` from.
pub fn decode_name(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The queue whose directory has that name; None where no queue's can.
pub fn queue_of_dir(name: &str) -> Option<String> {
    decode_name(name).filter(|queue| encode_name(queue) == name)
}

pub fn queue_key(queue: &str) -> Vec<u8> {
    format!("q/{}", encode_name(queue)).into_bytes()
}

pub fn segment_key(queue: &str, id: u64) -> Vec<u8> {
    format!("s/{}/{id:016x}", encode_name(queue)).into_bytes()
}

pub fn cursor_key(queue: &str, cursor: &str) -> Vec<u8> {
    format!("c/{}/{}", encode_name(queue), encode_name(cursor)).into_bytes()
}

/// Everything that the catalogue says, in memory.
#[derive(Debug, Default)]
pub struct Contents {
    pub meta: MetaRow,
    pub queues: std::collections::BTreeMap<String, QueueContents>,
}

#[derive(Debug, Default)]
pub struct QueueContents {
    pub row: QueueRow,
    pub segments: std::collections::BTreeMap<u64, SegmentRow>,
    pub cursors: std::collections::BTreeMap<String, Cursor>,
    pub ledgers: std::collections::BTreeMap<String, Ledger>,
}

impl Contents {
    /// Rows that cannot be read are named in the error list and left out: recovery then scans instead.
    pub fn from_rows(rows: &[Row]) -> (Contents, Vec<String>) {
        let mut contents = Contents::default();
        let mut errors = Vec::new();
        for (key, value) in rows {
            if contents.take_row(key, value).is_none() {
                errors.push(format!("unreadable catalogue row {}", String::from_utf8_lossy(key)));
            }
        }
        (contents, errors)
    }

    fn take_row(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if key == META_KEY {
            self.meta = MetaRow::decode(value).ok()?;
            return Some(());
        }
        let mut parts = std::str::from_utf8(key).ok()?.split('/');
        let kind = parts.next()?;
        let queue = self.queues.entry(decode_name(parts.next()?)?).or_default();
        match kind {
            "q" => queue.row = QueueRow::decode(value).ok()?,
            "s" => {
                let row = SegmentRow::decode(value).ok()?;
                queue.segments.insert(row.id, row);
            }
            "c" => {
                let name = decode_name(parts.next()?)?;
                let row = CursorRow::decode(value).ok()?;
                queue.ledgers.insert(name.clone(), row.ledger());
                queue.cursors.insert(name, row.cursor());
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_encoding_and_stay_in_their_directory() {
        for id in ["traces", "traces/team a", "..", ".hidden", "ünïcode", "a%2Fb", "logs/x/y"] {
            let name = encode_name(id);
            assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
            assert_eq!(decode_name(&name).as_deref(), Some(id));
        }
    }

    #[test]
    fn a_cursor_row_with_the_most_ranges_fits_a_row_and_comes_back() {
        let mut cursor = Cursor::at(1 << 40);
        for n in 0..1000u64 {
            cursor.settle((1 << 41) + n * (1 << 30)..(1 << 41) + n * (1 << 30) + (1 << 29));
        }
        let ledger = Ledger::from_row(&LedgerRow { accepted: u64::MAX, fates: vec![u64::MAX; 7], rebased: u64::MAX });
        let row = CursorRow::new(&cursor, &ledger, PERSISTED_RANGES_MAX);
        let bytes = row.encode_to_vec();
        assert!(bytes.len() < ROW_LEN_MAX, "{} bytes", bytes.len());
        let back = CursorRow::decode(&bytes[..]).expect("decodes").cursor();
        assert_eq!(back.low(), cursor.low());
        assert!(bytes.len() > ROW_LEN_MAX - 256 && back.above().len() > 256, "{} ranges", back.above().len());
        assert!(back.above().iter().all(|range| cursor.has_settled(range)));
        // Distances of ten bytes: what is called sure fits all the same.
        let far = CursorRow { low: u64::MAX, ranges: vec![u64::MAX; 2 * RANGES_SURE], ledger: Some(ledger.row()) };
        assert!(far.encode_to_vec().len() < ROW_LEN_MAX);
        let mut near = Cursor::at(0);
        (0..3000).for_each(|n| near.settle(2 * n + 1..2 * n + 2));
        let row = CursorRow::new(&near, &ledger, usize::MAX);
        assert!(row.cursor().above().len() == PERSISTED_RANGES_MAX && row.encode_to_vec().len() < ROW_LEN_MAX);
    }
}
