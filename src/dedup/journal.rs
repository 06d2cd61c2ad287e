//! Fingerprints on disk: which keys belong to which durable record, so that a restart forgets nothing.
//!
//! They are written after the data's sync, some at a time, and synced once a second: what is lost costs duplicates, or
//! is made again from the records. A file is written by one process and never appended to by another. That keys are
//! *not* to count any more is written too, and synced at once; if it cannot be written, the secret and all files go.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;

use crate::storage::log::Signal;
use crate::storage::{Disk, DiskFile, RangeSet, Space};

use super::clock::Clock;
use super::fingerprints::{
    BLOCK_HEADER_LEN, Block, Group, HEADER_LEN, Level, Queue, Section, file_name, forgotten_sections, header,
    level_code, parse_file_name, read_file,
};
use super::gate::QueueGate;
use super::keys::SECRET_FILE;
use super::seen::join_oldest;

/// What waits to be written; beyond it fingerprints are left out, and made again from the records after a restart.
const PENDING_BYTES_MAX: usize = 8 << 20;
const FLUSH_EVERY: Duration = Duration::from_millis(50);
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// After a failure nothing is written for so long.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const FORGOTTEN_RANGES_MAX: usize = 64;
/// Ranges of one queue that wait to be written; more are joined, which forgets too much.
const PENDING_RANGES_MAX: usize = 4096;

#[derive(Default)]
struct Pending {
    sections: BTreeMap<(String, u32, u64), Vec<Group>>,
    bytes: usize,
    /// To be written.
    forgotten: BTreeMap<Queue, RangeSet>,
    /// Of this process, so that what is forgotten is not added behind it.
    ever_forgotten: BTreeMap<String, RangeSet>,
    /// Of all that is on disk: each new file begins with it, since the old ones go.
    carried: BTreeMap<Queue, RangeSet>,
}

impl Pending {
    fn carry(&mut self, queue: Queue, range: Range<u64>) {
        let ranges = self.carried.entry(queue).or_default();
        ranges.insert(range);
        join_oldest(ranges, FORGOTTEN_RANGES_MAX);
    }

    fn forget(&mut self, queue: Queue, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.carry(queue.clone(), range.clone());
        let ranges = self.forgotten.entry(queue).or_default();
        ranges.insert(range);
        join_oldest(ranges, PENDING_RANGES_MAX);
    }
}

#[derive(Debug)]
struct File {
    id: u64,
    len: u64,
    newest_unix_seconds: u64,
}

struct Files {
    current: Option<Arc<dyn DiskFile>>,
    /// Oldest first; the last is the current one, if there is one.
    known: VecDeque<File>,
    next_id: u64,
    unsynced: bool,
    last_sync: Instant,
    failed_at: Option<Instant>,
}

pub struct Journal {
    disk: Arc<dyn Disk>,
    space: Arc<Space>,
    dir: PathBuf,
    clock: Clock,
    bytes_max: u64,
    window_max: Duration,
    pending: Mutex<Pending>,
    files: Mutex<Files>,
    dirty: Signal,
    stopping: AtomicBool,
}

impl Journal {
    /// Opens the directory and reads what is in it, oldest first. `is_fresh`: nothing in it can be of use.
    pub fn open(
        disk: Arc<dyn Disk>,
        space: Arc<Space>,
        dir: &Path,
        clock: Clock,
        (bytes_max, window_max): (u64, Duration),
        is_fresh: bool,
    ) -> io::Result<(Journal, Vec<Block>)> {
        let mut known = VecDeque::new();
        let mut blocks = Vec::new();
        let mut next_id = 1;
        for entry in disk.list(dir)? {
            let Some(id) = parse_file_name(&entry.name) else { continue };
            let path = dir.join(&entry.name);
            next_id = next_id.max(id + 1);
            if entry.is_dir {
                tracing::warn!(path = %path.display(), "a directory in the place of a file of fingerprints is left alone");
                continue;
            }
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let found =
                if is_fresh { Vec::new() } else { read_file(disk.as_ref(), &path, entry.len).map_err(named)? };
            if known.back().is_some_and(|before: &File| before.id + 1 != id) {
                tracing::warn!(
                    before = %path.display(), "files of fingerprints are missing: what they held may come again, or is made anew"
                );
            }
            if found.is_empty() {
                if !is_fresh && entry.len > HEADER_LEN {
                    tracing::warn!(
                        path = %path.display(), bytes = entry.len,
                        "a file of fingerprints is damaged and goes: what it held may come again, or is made anew"
                    );
                }
                disk.remove(&path)?;
                continue;
            }
            let newest_unix_seconds = found.iter().map(|block| block.unix_seconds).max().unwrap_or(0);
            space.add(entry.len);
            known.push_back(File { id, len: entry.len, newest_unix_seconds });
            blocks.extend(found);
        }
        let files =
            Files { current: None, known, next_id, unsynced: false, last_sync: Instant::now(), failed_at: None };
        let mut pending = Pending::default();
        for section in blocks.iter().flat_map(|block: &Block| &block.sections) {
            let ranges = section.forgotten.chunks_exact(2).map(|pair| pair[0]..pair[1]);
            ranges.for_each(|range| pending.carry((section.queue.clone(), section.incarnation), range));
        }
        let journal = Journal {
            disk,
            space,
            dir: dir.to_owned(),
            clock,
            bytes_max,
            window_max,
            pending: Mutex::new(pending),
            files: Mutex::new(files),
            dirty: Signal::default(),
            stopping: AtomicBool::new(false),
        };
        Ok((journal, blocks))
    }

    /// The keys of a durable record; none means that it is known to have none.
    pub fn add(&self, gate: &QueueGate, sequence: u64, level: Level, keys: &[u128]) {
        let mut bytes = Vec::with_capacity(keys.len() * 16);
        keys.iter().for_each(|key| bytes.extend_from_slice(&key.to_le_bytes()));
        let group = Group { sequence, unix_seconds: self.clock.unix_seconds(), keys: bytes.into() };
        self.add_group(gate, level, group);
    }

    pub fn add_group(&self, gate: &QueueGate, level: Level, group: Group) {
        let mut pending = self.pending.lock();
        let len = group.keys.len() + 16;
        let is_forgotten = |ranges: &RangeSet| ranges.contains(group.sequence);
        if pending.bytes + len > PENDING_BYTES_MAX || pending.ever_forgotten.get(&gate.queue).is_some_and(is_forgotten)
        {
            return;
        }
        pending.bytes += len;
        let section = (gate.queue.clone(), level_code(gate, level), gate.incarnation);
        pending.sections.entry(section).or_default().push(group);
        drop(pending);
        self.dirty.raise();
    }

    /// What was written under these sequences does not count any more, nor what comes: durable when it returns.
    ///
    /// Written also if it seems to be on disk: what is carried was joined over others that lie between, and may be of an
    /// earlier use of a sequence; and who forgot the same a moment ago may be waiting for its sync.
    pub fn forget(&self, queue: &str, incarnation: u64, sequences: &RangeSet) {
        let mut pending = self.pending.lock();
        for groups in pending.sections.iter_mut().filter(|((name, ..), _)| name == queue).map(|(_, groups)| groups) {
            groups.retain(|group| !sequences.contains(group.sequence));
        }
        for range in sequences.iter() {
            let ever = pending.ever_forgotten.entry(queue.to_owned()).or_default();
            ever.insert(range.clone());
            join_oldest(ever, FORGOTTEN_RANGES_MAX);
            pending.forget((queue.to_owned(), incarnation), range);
        }
        drop(pending);
        self.write();
    }

    /// As [`Journal::forget`], for sequences that may be used again from now on.
    pub fn forget_before(&self, queue: &str, incarnation: u64, sequences: Range<u64>) {
        self.pending.lock().forget((queue.to_owned(), incarnation), sequences);
    }

    /// Of a queue that has no gate nobody notes what is given up: what it had seen does not count when it has one again.
    pub fn forget_unwatched(&self, blocks: &[Block], is_watched: impl Fn(&str) -> bool) {
        for section in blocks.iter().flat_map(|block| &block.sections).filter(|section| !is_watched(&section.queue)) {
            let end = section.groups.iter().map(|group| group.sequence + 1).max().unwrap_or(0);
            self.forget_before(&section.queue, section.incarnation, 0..end);
        }
    }

    /// The writer: until [`Journal::stop`].
    pub fn run(&self) {
        loop {
            let wait = self.files.lock().unsynced.then_some(SYNC_EVERY);
            self.dirty.wait(wait);
            let is_last = self.stopping.load(Ordering::Acquire);
            if !is_last {
                std::thread::sleep(FLUSH_EVERY);
            }
            self.write();
            self.sync(is_last);
            if is_last {
                return;
            }
        }
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.dirty.raise();
    }

    /// Writes what is pending. What fails is logged and left out.
    pub fn write(&self) {
        let mut files = self.files.lock();
        let (sections, forgotten) = {
            let mut pending = self.pending.lock();
            pending.bytes = 0;
            (std::mem::take(&mut pending.sections), std::mem::take(&mut pending.forgotten))
        };
        let has_forgotten = !forgotten.is_empty();
        let mut block = Block { sections: forgotten_sections(forgotten), unix_seconds: self.clock.unix_seconds() };
        for ((queue, level, incarnation), groups) in sections.into_iter().filter(|(_, groups)| !groups.is_empty()) {
            block.sections.push(Section { queue, level, incarnation, groups, forgotten: Vec::new() });
        }
        let is_waiting = files.failed_at.is_some_and(|at| at.elapsed() < RETRY_AFTER);
        if block.sections.is_empty() || (is_waiting && !has_forgotten) {
            return;
        }
        let written = self.write_block(&mut files, &block).and_then(|()| {
            // Nobody may learn again what is forgotten.
            if has_forgotten { self.sync_file(&mut files) } else { Ok(()) }
        });
        let Err(error) = written else { return };
        files.current = None;
        files.failed_at = Some(Instant::now());
        tracing::warn!(%error, "failed to write fingerprints; a restart may let duplicates through");
        if !has_forgotten {
            return;
        }
        if let Err(error) = self.remove_all(&mut files) {
            tracing::error!(
                %error,
                "failed to remove fingerprints of data that is gone; after a restart its repetition may be taken for a duplicate"
            );
            let mut pending = self.pending.lock();
            for section in block.sections.into_iter().filter(|section| section.level == 0) {
                let ranges = pending.forgotten.entry((section.queue, section.incarnation)).or_default();
                section.forgotten.chunks_exact(2).for_each(|pair| ranges.insert(pair[0]..pair[1]));
            }
        }
    }

    fn write_block(&self, files: &mut Files, block: &Block) -> io::Result<()> {
        let len = (block.encoded_len() + BLOCK_HEADER_LEN) as u64;
        let file = self.file_for(files, len)?;
        self.append(files, file.as_ref(), block)
    }

    /// Behind what the newest file has.
    fn append(&self, files: &mut Files, file: &dyn DiskFile, block: &Block) -> io::Result<()> {
        let (head, body) = block.encoded();
        let Some(known) = files.known.back_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        file.write_all_at(&mut [IoSlice::new(&head), IoSlice::new(&body)], known.len)?;
        let len = (body.len() + BLOCK_HEADER_LEN) as u64;
        known.len += len;
        known.newest_unix_seconds = block.unix_seconds;
        self.space.add(len);
        files.unsynced = true;
        Ok(())
    }

    /// The current file, or a new one when that is full; then the oldest go, by the bound and by the window.
    fn file_for(&self, files: &mut Files, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file_bytes_max = (self.bytes_max / 16).clamp(64 << 10, 4 << 20);
        if let (Some(file), Some(known)) = (&files.current, files.known.back())
            && (known.len + len <= file_bytes_max || known.len <= HEADER_LEN)
        {
            return Ok(Arc::clone(file));
        }
        if files.current.is_some() {
            self.sync_file(files)?;
        }
        self.space.check(file_bytes_max, Default::default).map_err(io::Error::other)?;
        let id = files.next_id;
        files.next_id += 1;
        let file = self.disk.create(&self.dir.join(file_name(id)), 0)?;
        file.write_all_at(&mut [IoSlice::new(&header())], 0)?;
        self.space.add(HEADER_LEN);
        let unix_seconds = self.clock.unix_seconds();
        files.known.push_back(File { id, len: HEADER_LEN, newest_unix_seconds: unix_seconds });
        files.current = Some(Arc::clone(&file));
        let carried = self.pending.lock().carried.clone();
        if !carried.is_empty() {
            self.append(files, file.as_ref(), &Block { sections: forgotten_sections(carried), unix_seconds })?;
            self.sync_file(files)?;
        }
        self.disk.sync_dir(&self.dir)?;
        let oldest_second = unix_seconds.saturating_sub(self.window_max.as_secs() + 1);
        while files.known.len() > 1 {
            let sum: u64 = files.known.iter().map(|file| file.len).sum();
            let is_old = files.known.front().is_some_and(|oldest| oldest.newest_unix_seconds < oldest_second);
            if !is_old && sum + file_bytes_max.max(len) <= self.bytes_max {
                break;
            }
            self.remove_oldest(files)?;
        }
        Ok(file)
    }

    fn remove_oldest(&self, files: &mut Files) -> io::Result<()> {
        let Some(oldest) = files.known.front() else { return Ok(()) };
        self.disk.remove(&self.dir.join(file_name(oldest.id)))?;
        self.space.subtract(oldest.len);
        files.known.pop_front();
        if files.known.is_empty() {
            files.current = None;
        }
        Ok(())
    }

    /// Without the secret a start believes no fingerprint, and makes none from records.
    fn remove_all(&self, files: &mut Files) -> io::Result<()> {
        match self.disk.remove(&self.dir.join(SECRET_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        while !files.known.is_empty() {
            self.remove_oldest(files)?;
        }
        self.disk.sync_dir(&self.dir)
    }

    fn sync_file(&self, files: &mut Files) -> io::Result<()> {
        if let Some(file) = &files.current {
            file.sync_data()?;
        }
        files.unsynced = false;
        files.last_sync = Instant::now();
        Ok(())
    }

    /// Syncs what was written, if that is a second ago.
    pub fn sync(&self, now: bool) {
        let mut files = self.files.lock();
        if !files.unsynced || (!now && files.last_sync.elapsed() < SYNC_EVERY) {
            return;
        }
        if let Err(error) = self.sync_file(&mut files) {
            tracing::warn!(%error, "failed to sync fingerprints; a power cut may let duplicates through");
            files.current = None;
            files.unsynced = false;
        }
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.files.lock().known.iter().map(|file| file.len).sum()
    }
}
