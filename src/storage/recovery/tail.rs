//! The end of a segment whose writer died.

use std::io::{self, IoSlice};
use std::ops::Range;

use crate::storage::disk::DiskFile;
use crate::storage::record::{HEADER_LEN, MAGIC};

const CHUNK_BYTES: u64 = 1 << 20;

/// How far a write got that was broken off at `start`. What was allocated and never written is none of it, nor what an earlier
/// life of a recycled file left there.
pub(super) fn torn_bytes(file: &dyn DiskFile, segment_id: u64, start: u64, end: u64) -> io::Result<u64> {
    let head = file.read(HEADER_LEN, start)?;
    if head.get(..4) == Some(&MAGIC) && head.get(8..16).is_some_and(|id| id != segment_id.to_le_bytes()) {
        return Ok(0);
    }
    let mut torn_end = start;
    let mut at = start;
    while at < end {
        let chunk = file.read((end - at).min(CHUNK_BYTES) as usize, at)?;
        // Writes go on without holes: behind so many zeros nothing follows.
        let Some(last) = chunk.iter().rposition(|byte| *byte != 0) else { break };
        torn_end = at + last as u64 + 1;
        at += chunk.len() as u64;
    }
    Ok(torn_end - start)
}

/// Writes a stretch of a file over itself, to be synced. What a dead process left in the page cache may be clean there
/// and missing on the disk: a sync that failed leaves it so, and no later sync would write it.
pub(in crate::storage) fn rewrite(file: &dyn DiskFile, stretch: Range<u64>) -> io::Result<()> {
    let mut at = stretch.start;
    let mut chunk = vec![0; (stretch.end - stretch.start).min(CHUNK_BYTES) as usize];
    while at < stretch.end {
        chunk.truncate((stretch.end - at) as usize);
        let read = file.read_at(&mut chunk, at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match file.write_all_at(&mut [IoSlice::new(&chunk[..read])], at) {
            // Of what is not acknowledged nothing is promised; a full disk must not stop the start.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            written => written?,
        }
        at += read as u64;
    }
    Ok(())
}
