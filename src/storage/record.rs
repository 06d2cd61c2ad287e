//! One record: the bytes of its header, and the check that covers it.
//!
//! ```text
//!  0 magic u32          4 header CRC32C u32     8 segment id u64       16 sequence u64
//! 24 previous u64      32 durable end u64      40 received u64 (ns)    48 raw length u32
//! 52 stored length u32 56 metadata length u32  60 items u32            64 signal u8
//! 65 encoding u8       66 flags u16            68 reserved u32         72 metadata, payload, CRC32C u32, zeros to 8
//! ```
//! Numbers are little-endian. Both checks start from the CRC of the segment's random nonce, so neither a recycled
//! file's old bytes nor a header forged inside a client's payload can pass.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::backlog::Weight;
#[cfg(test)]
use super::mutant::{self, Mutant};

pub const HEADER_LEN: usize = 72;
pub const TRAILER_LEN: usize = 4;
/// Records start on this boundary, so that resynchronising need not try every byte.
pub const ALIGN: u64 = 8;
/// "no record before this one": the value of `previous` for the first record of a queue.
pub const NO_PREVIOUS: u64 = u64::MAX;
/// The sequence behind `previous`: the durable end, as far as records were ever written.
pub fn end_after(previous: u64) -> u64 {
    if previous == NO_PREVIOUS { 0 } else { previous + 1 }
}

/// Longest payload that a record may hold; receivers bound theirs well below.
pub const PAYLOAD_LEN_MAX: u64 = 1 << 30;
pub const METADATA_LEN_MAX: usize = 64 << 10;

/// First bytes of every record.
pub const MAGIC: [u8; 4] = *b"FBR1";

/// What stands in a record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub segment_id: u64,
    pub sequence: u64,
    /// The sequence written before this one, so that recovery can tell a lost record from a number never used.
    pub previous: u64,
    /// Every record of the queue below this sequence was durable when this one was written.
    pub durable_end: u64,
    pub received_unix_ns: u64,
    pub raw_len: u32,
    pub stored_len: u32,
    pub metadata_len: u32,
    pub items: u32,
    pub signal: u8,
    pub encoding: u8,
    pub flags: u16,
}

/// The CRC that every check in one segment starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonceSeed(u32);

impl NonceSeed {
    pub fn new(nonce: &[u8; 16]) -> NonceSeed {
        NonceSeed(crc32c::crc32c(nonce))
    }
}

impl Header {
    pub fn encode(&self, seed: NonceSeed) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.segment_id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.previous.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable_end.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.received_unix_ns.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.metadata_len.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.items.to_le_bytes());
        bytes[64] = self.signal;
        bytes[65] = self.encoding;
        bytes[66..68].copy_from_slice(&self.flags.to_le_bytes());
        let check = crc32c::crc32c_append(seed.0, &bytes[8..]);
        bytes[4..8].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, if it is one of this segment's and whole.
    pub fn decode(bytes: &[u8], segment_id: u64, seed: NonceSeed) -> Option<Header> {
        let bytes: &[u8; HEADER_LEN] = bytes.get(..HEADER_LEN)?.try_into().ok()?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        #[cfg(test)]
        let segment_id = if mutant::is_on(Mutant::StaleRecord) { u64_at(8) } else { segment_id };
        if bytes[0..4] != MAGIC || u64_at(8) != segment_id || u32_at(4) != crc32c::crc32c_append(seed.0, &bytes[8..]) {
            return None;
        }
        Some(Header {
            segment_id,
            sequence: u64_at(16),
            previous: u64_at(24),
            durable_end: u64_at(32),
            received_unix_ns: u64_at(40),
            raw_len: u32_at(48),
            stored_len: u32_at(52),
            metadata_len: u32_at(56),
            items: u32_at(60),
            signal: bytes[64],
            encoding: bytes[65],
            flags: u16::from_le_bytes([bytes[66], bytes[67]]),
        })
    }

    /// Bytes from the start of this record to the start of the next.
    pub fn record_len(&self) -> u64 {
        record_len(self.metadata_len as usize, self.stored_len as usize)
    }
}

/// The CRC at the end of a record. Shape: header as encoded, metadata, payload.
pub fn trailer(seed: NonceSeed, header: &[u8; HEADER_LEN], metadata: &[u8], payload: &[u8]) -> u32 {
    let check = crc32c::crc32c_append(seed.0, header);
    crc32c::crc32c_append(crc32c::crc32c_append(check, metadata), payload)
}

/// Bytes that a record of these parts takes in a segment.
pub fn record_len(metadata_len: usize, payload_len: usize) -> u64 {
    ((HEADER_LEN + metadata_len + payload_len + TRAILER_LEN) as u64).next_multiple_of(ALIGN)
}

/// A durable record as read back.
#[derive(Clone)]
pub struct Record {
    pub sequence: u64,
    pub signal: u8,
    pub encoding: u8,
    pub items: u32,
    pub raw_len: u32,
    pub received_unix_ns: u64,
    pub metadata: Bytes,
    pub payload: Bytes,
    /// Keeps the memory of `payload` accounted for as long as it is held.
    pub guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl Record {
    pub fn weight(&self) -> Weight {
        let bytes = record_len(self.metadata.len(), self.payload.len());
        Weight { records: 1, items: u64::from(self.items), bytes }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("sequence", &self.sequence)
            .field("items", &self.items)
            .field("stored_len", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// Checks a whole record (`bytes` starts at its header and is at least `record_len` long) and takes it apart.
pub fn decode(bytes: &Bytes, segment_id: u64, seed: NonceSeed) -> Option<(Header, Record)> {
    let header = Header::decode(bytes, segment_id, seed)?;
    let metadata_end = HEADER_LEN + header.metadata_len as usize;
    let payload_end = metadata_end + header.stored_len as usize;
    let stored = bytes.get(payload_end..payload_end + TRAILER_LEN)?;
    let check = crc32c::crc32c_append(seed.0, &bytes[..payload_end]);
    if stored != check.to_le_bytes() {
        return None;
    }
    let record = Record {
        sequence: header.sequence,
        signal: header.signal,
        encoding: header.encoding,
        items: header.items,
        raw_len: header.raw_len,
        received_unix_ns: header.received_unix_ns,
        metadata: bytes.slice(HEADER_LEN..metadata_end),
        payload: bytes.slice(metadata_end..payload_end),
        guard: None,
    };
    Some((header, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Header, Vec<u8>, NonceSeed) {
        let seed = NonceSeed::new(&[7; 16]);
        let (metadata, payload) = (b"meta".to_vec(), b"payload bytes".to_vec());
        let header = Header {
            segment_id: 3,
            sequence: 42,
            previous: 41,
            durable_end: 40,
            received_unix_ns: 5,
            raw_len: 99,
            stored_len: payload.len() as u32,
            metadata_len: metadata.len() as u32,
            items: 2,
            signal: 1,
            encoding: 0,
            flags: 0,
        };
        let head = header.encode(seed);
        let mut bytes = head.to_vec();
        bytes.extend_from_slice(&metadata);
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(&trailer(seed, &head, &metadata, &payload).to_le_bytes());
        bytes.resize(header.record_len() as usize, 0);
        (header, bytes, seed)
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let (header, bytes, seed) = sample();
        let (found, record) = decode(&Bytes::from(bytes), 3, seed).expect("whole");
        assert_eq!(found, header);
        assert_eq!((&record.metadata[..], &record.payload[..]), (&b"meta"[..], &b"payload bytes"[..]));
    }

    #[test]
    fn every_flipped_bit_of_header_metadata_payload_and_check_is_noticed() {
        let (header, bytes, seed) = sample();
        let covered = HEADER_LEN + header.metadata_len as usize + header.stored_len as usize + TRAILER_LEN;
        for bit in 0..covered * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&Bytes::from(damaged), 3, seed).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_segment_or_nonce_does_not_pass() {
        let (_, bytes, seed) = sample();
        let bytes = Bytes::from(bytes);
        assert!(decode(&bytes, 4, seed).is_none());
        assert!(decode(&bytes, 3, NonceSeed::new(&[8; 16])).is_none());
    }
}
