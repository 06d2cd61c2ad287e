//! How much memory the process may use for data.

use std::fs;

/// Of the limit, this share is for data; the rest is for everything else.
const DATA_SHARE_PERCENT: u64 = 50;
/// Without a cgroup limit: no more than this, however large the machine.
const UNLIMITED_BYTES_MAX: u64 = 2 << 30;
const FLOOR_BYTES: u64 = 16 << 20;

/// The shares of the data budget.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bodies as they arrive and inflate, and recent records.
    pub intake_bytes: u64,
    /// Recent records kept for the exporters; part of the intake's share.
    pub tail_bytes: u64,
    /// Batches of one exporter.
    pub delivery_bytes: u64,
    /// Keys of what was seen before, where no bound is configured. Stands beside the budget: it fills over time.
    pub dedup_bytes: u64,
}

const DEDUP_BYTES_DEFAULT: u64 = 32 << 20;

impl Memory {
    /// `configured`: `forebay.memory.limit`, taken as it is.
    pub fn new(configured: Option<u64>, exporters: usize) -> Memory {
        let total = configured.unwrap_or_else(detected).max(FLOOR_BYTES);
        Memory {
            intake_bytes: total / 8 * 5,
            tail_bytes: total / 8,
            dedup_bytes: (total / 8).min(DEDUP_BYTES_DEFAULT),
            delivery_bytes: total / 8 * 3 / exporters.max(1) as u64,
        }
    }
}

/// Huge pages of which a few bytes are used would double what a small process takes, and make it no faster
/// (docs/performance.md). The allocator is built to ask for none; where the machine hands them to everyone, they are
/// turned down here.
pub fn refuse_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "failed to turn transparent huge pages down; more memory may be resident");
    }
}

fn detected() -> u64 {
    match [cgroup_v2(), cgroup_v1()].into_iter().flatten().min() {
        Some(limit) if limit < machine().unwrap_or(u64::MAX) => limit / 100 * DATA_SHARE_PERCENT,
        _ => (machine().unwrap_or(UNLIMITED_BYTES_MAX) / 100 * DATA_SHARE_PERCENT).min(UNLIMITED_BYTES_MAX),
    }
}

/// The least `memory.max` from the process's cgroup up to the root.
fn cgroup_v2() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    least_limit("/sys/fs/cgroup", path, "memory.max")
}

fn cgroup_v1() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = cgroups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        parts.next()?.split(',').any(|controller| controller == "memory").then(|| parts.next()).flatten()
    })?;
    least_limit("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
}

fn least_limit(root: &str, path: &str, file: &str) -> Option<u64> {
    let root = std::path::Path::new(root);
    let mut at = root.join(path.trim_start_matches('/'));
    let mut least = None;
    loop {
        // "max", and a container that shows its own cgroup as the root, simply yield no number here.
        let limit = fs::read_to_string(at.join(file)).ok().and_then(|text| text.trim().parse::<u64>().ok());
        least = [least, limit].into_iter().flatten().min();
        if at == root || !at.pop() || !at.starts_with(root) {
            return least;
        }
    }
}

fn machine() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_whole() {
        for total in [1, 64 << 20, 10 << 30] {
            let memory = Memory::new(Some(total), 3);
            assert!(memory.intake_bytes + 3 * memory.delivery_bytes <= total.max(FLOOR_BYTES));
            assert!(memory.tail_bytes < memory.intake_bytes);
        }
    }
}
