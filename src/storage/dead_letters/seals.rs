//! What each segment held when nothing more was written to it, kept beside the directory: what is lost of a file, or with
//! it, no other file can tell.
//!
//! ```text
//! dlq.seals (of dlq/)    magic · length of the body · CRC32C · body: a row for each segment
//! ```
//!
//! It is written anew as a whole, behind the seal that it tells of and before the removal that it allows; so it never
//! expects more than is durable. Where it is missing or cannot be written, segments stand for themselves.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use prost::Message;

use crate::storage::disk::Disk;
use crate::storage::segment::{Gap, Identity};

const MAGIC: [u8; 8] = *b"FOREBAYL";
const HEAD_LEN: usize = 20;
const SUFFIX: &str = ".seals";
const TEMPORARY_SUFFIX: &str = ".seals.new";
/// Of a million segments there never were so many.
const BODY_LEN_MAX: u64 = 256 << 20;

#[derive(Clone, PartialEq, Message)]
pub(super) struct SealRow {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub nonce: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub sequence_floor: u64,
    /// False: it was being written, and the rest says nothing.
    #[prost(bool, tag = "4")]
    pub is_sealed: bool,
    /// Of the last record.
    #[prost(uint64, tag = "5")]
    pub end: u64,
    #[prost(uint64, tag = "6")]
    pub last_sequence: u64,
    /// Records of letters.
    #[prost(uint64, tag = "7")]
    pub letters: u64,
    /// Damage that was told: offset, length, and so on.
    #[prost(uint64, repeated, tag = "8")]
    pub told: Vec<u64>,
    /// Of the letters those that a tombstone in the same segment ended.
    #[prost(uint64, tag = "9")]
    pub ended: u64,
}

impl SealRow {
    pub fn identity(&self) -> Option<Identity> {
        let nonce = <[u8; 16]>::try_from(self.nonce.as_slice()).ok()?;
        Some(Identity { id: self.id, nonce, sequence_floor: self.sequence_floor })
    }

    pub fn was_told(&self, gap: &Gap) -> bool {
        self.told.chunks_exact(2).any(|told| told[0] <= gap.offset && gap.offset + gap.len <= told[0] + told[1])
    }
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(message, repeated, tag = "1")]
    segments: Vec<SealRow>,
}

/// What stands in the file.
#[derive(Debug, PartialEq)]
pub(super) enum Seals {
    Absent,
    Damaged,
    Known(BTreeMap<u64, SealRow>),
}

impl Seals {
    pub fn into_rows(self) -> BTreeMap<u64, SealRow> {
        if let Seals::Known(rows) = self { rows } else { BTreeMap::new() }
    }
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn path(dir: &Path) -> PathBuf {
    beside(dir, SUFFIX)
}

pub(super) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Seals> {
    let file = match disk.open(&path(dir)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seals::Absent),
        // Something else has its name.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(Seals::Damaged),
        Err(error) => return Err(error),
    };
    let len = file.size()?;
    if len > BODY_LEN_MAX {
        return Ok(Seals::Damaged);
    }
    let bytes = file.read(len as usize, 0)?;
    Ok(decode(&bytes).map_or(Seals::Damaged, Seals::Known))
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<u64, SealRow>> {
    let (head, body) = bytes.split_at_checked(HEAD_LEN)?;
    let check = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), body);
    let is_whole = head[..8] == MAGIC && head[8..16] == (body.len() as u64).to_le_bytes();
    if !is_whole || head[16..] != check.to_le_bytes() {
        return None;
    }
    Some(Body::decode(body).ok()?.segments.into_iter().map(|row| (row.id, row)).collect())
}

/// Durable when it returns. Where it cannot be written the old one goes, since it may expect what is no longer there.
pub(super) fn write(disk: &dyn Disk, dir: &Path, segments: Vec<SealRow>) -> io::Result<()> {
    let body = Body { segments }.encode_to_vec();
    let mut head = [0; HEAD_LEN];
    head[..8].copy_from_slice(&MAGIC);
    head[8..16].copy_from_slice(&(body.len() as u64).to_le_bytes());
    let check = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), &body);
    head[16..].copy_from_slice(&check.to_le_bytes());
    let (place, temporary) = (path(dir), beside(dir, TEMPORARY_SUFFIX));
    let parent = dir.parent().unwrap_or(dir);
    let remove = |path: &Path| match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let write = || {
        // Of a write that a crash broke off.
        remove(&temporary)?;
        let file = disk.create(&temporary, 0)?;
        file.write_all_at(&mut [IoSlice::new(&head), IoSlice::new(&body)], 0)?;
        file.sync_data()?;
        disk.rename(&temporary, &place)?;
        disk.sync_dir(parent)
    };
    let Err(error) = write() else { return Ok(()) };
    remove(&place)?;
    disk.sync_dir(parent)?;
    tracing::warn!(
        path = %place.display(), %error,
        "failed to write down what the dead-letter segments hold; until it succeeds damage to their ends cannot be told from a torn write"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RealDisk;

    #[test]
    fn seals_come_back_and_any_flipped_bit_or_lost_end_is_noticed() {
        let data = tempfile::tempdir().expect("temporary directory");
        let dir = data.path().join("dlq");
        assert_eq!(read(&RealDisk, &dir).expect("read"), Seals::Absent);
        let row = |id| SealRow { id, nonce: vec![7; 16], is_sealed: true, letters: 12, ..SealRow::default() };
        write(&RealDisk, &dir, vec![row(1), row(2)]).expect("written");
        let rows = read(&RealDisk, &dir).expect("read").into_rows();
        assert_eq!(rows.into_values().collect::<Vec<_>>(), [row(1), row(2)]);
        let whole = std::fs::read(path(&dir)).expect("read");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            assert_eq!(decode(&bytes), None, "a bit of byte {at}");
            assert_eq!(decode(&whole[..at]), None, "cut off at {at}");
        }
    }
}
