//! What the data directory holds before anything is opened in it.

use std::io;
use std::path::Path;

use super::disk::Disk;

/// Names in the data directory that storage and its neighbours make. Others, such as what a `file` exporter writes, are
/// not theirs to reuse.
const OURS: [&str; 6] = ["queues", "dlq", "fingerprints", "catalog", "witness", "ballast"];
/// Directories below each other.
const DEPTH_MAX: usize = 4;

/// Bytes of the files that are ours.
pub fn bytes(disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
    let is_ours = |name: &str| OURS.iter().any(|ours| name.strip_prefix(ours).is_some_and(is_suffix));
    let mut sum = 0;
    for entry in disk.list(dir)?.into_iter().filter(|entry| is_ours(&entry.name)) {
        sum += if entry.is_dir { below(disk, &dir.join(&entry.name), DEPTH_MAX)? } else { entry.len };
    }
    Ok(sum)
}

/// Of `catalog` there are others under names with a suffix: set aside, or being written.
fn is_suffix(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('.')
}

fn below(disk: &dyn Disk, dir: &Path, depth_max: usize) -> io::Result<u64> {
    let mut sum = 0;
    for entry in disk.list(dir)? {
        if !entry.is_dir {
            sum += entry.len;
        } else if depth_max > 0 {
            sum += below(disk, &dir.join(&entry.name), depth_max - 1)?;
        }
    }
    Ok(sum)
}
