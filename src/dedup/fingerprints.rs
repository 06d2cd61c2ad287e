//! A file of fingerprints: its name, its header, its blocks.
//!
//! ```text
//! fingerprints/secret            what the keys are hashed under
//! fingerprints/<id>.fps          header: magic · version · reserved · CRC   then blocks
//! block                          length u32 · CRC32C u32 · protobuf
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use prost::Message;

use crate::storage::{Disk, RangeSet};

use super::gate::QueueGate;
use super::keys::Match;

const MAGIC: [u8; 8] = *b"FOREBAYP";
const VERSION: u32 = 1;
pub const HEADER_LEN: u64 = 24;
pub const BLOCK_HEADER_LEN: usize = 8;
/// A block announced as longer is none.
const BLOCK_LEN_MAX: usize = 32 << 20;

/// A queue and its incarnation.
pub type Queue = (String, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Request,
    Span,
}

#[derive(Clone, PartialEq, Message)]
pub struct Block {
    #[prost(message, repeated, tag = "1")]
    pub sections: Vec<Section>,
    /// When it was written.
    #[prost(uint64, tag = "2")]
    pub unix_seconds: u64,
}

/// Keys of one queue on one level.
#[derive(Clone, PartialEq, Message)]
pub struct Section {
    #[prost(string, tag = "1")]
    pub queue: String,
    /// 1 requests, 2 spans by content, 3 spans by id.
    #[prost(uint32, tag = "2")]
    pub level: u32,
    #[prost(fixed64, tag = "3")]
    pub incarnation: u64,
    #[prost(message, repeated, tag = "4")]
    pub groups: Vec<Group>,
    /// Sequences whose keys before this block do not count, on any level: start, end, and so on.
    #[prost(uint64, repeated, tag = "5")]
    pub forgotten: Vec<u64>,
}

/// The keys of one record.
#[derive(Clone, PartialEq, Message)]
pub struct Group {
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    #[prost(uint64, tag = "2")]
    pub unix_seconds: u64,
    /// 16 bytes each.
    #[prost(bytes = "bytes", tag = "3")]
    pub keys: bytes::Bytes,
}

pub fn level_code(gate: &QueueGate, level: Level) -> u32 {
    match (level, &gate.spans) {
        (Level::Request, _) => 1,
        (Level::Span, Some((Match::Id, _))) => 3,
        (Level::Span, _) => 2,
    }
}

impl Block {
    /// What stands before it, and its bytes.
    pub fn encoded(&self) -> ([u8; BLOCK_HEADER_LEN], Vec<u8>) {
        let body = self.encode_to_vec();
        let mut head = [0; BLOCK_HEADER_LEN];
        head[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        head[4..].copy_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        (head, body)
    }
}

/// What does not count, as sections of a block.
pub fn forgotten_sections(forgotten: BTreeMap<Queue, RangeSet>) -> Vec<Section> {
    let section = |((queue, incarnation), ranges): (Queue, RangeSet)| {
        let forgotten = ranges.iter().flat_map(|range| [range.start, range.end]).collect();
        Section { queue, level: 0, incarnation, groups: Vec::new(), forgotten }
    };
    forgotten.into_iter().map(section).collect()
}

pub fn file_name(id: u64) -> String {
    format!("{id:016x}.fps")
}

pub fn parse_file_name(name: &str) -> Option<u64> {
    name.strip_suffix(".fps")
        .filter(|digits| digits.len() == 16)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        // So many were never given out.
        .filter(|id| *id < u64::MAX / 2)
}

pub fn header() -> [u8; HEADER_LEN as usize] {
    let mut bytes = [0; HEADER_LEN as usize];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let check = crc32c::crc32c(&bytes[..20]);
    bytes[20..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// The blocks of one file up to the first that is not whole.
pub fn read_file(disk: &dyn Disk, path: &Path, len: u64) -> io::Result<Vec<Block>> {
    let mut bytes = vec![0; len as usize];
    let read = disk.open(path)?.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    let mut blocks = Vec::new();
    let Some((head, mut rest)) = bytes.split_first_chunk::<{ HEADER_LEN as usize }>() else { return Ok(blocks) };
    if *head != header() {
        return Ok(blocks);
    }
    while let Some((head, body)) = rest.split_first_chunk::<BLOCK_HEADER_LEN>() {
        let [a, b, c, d, check @ ..] = *head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let Some((body, behind)) = body.split_at_checked(len).filter(|_| len > 0 && len <= BLOCK_LEN_MAX) else {
            break;
        };
        if crc32c::crc32c(body).to_le_bytes() != check {
            break;
        }
        let Ok(block) = Block::decode(body) else { break };
        blocks.push(block);
        rest = behind;
    }
    Ok(blocks)
}
