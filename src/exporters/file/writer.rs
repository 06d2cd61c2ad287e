//! The thread that owns the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Settings, Waiting};

/// What must stay free on the file system: this share, and never more than so much. Below it the exporter holds.
const FREE_SHARE_PERCENT: u64 = 5;
const FREE_BYTES_MAX: u64 = 1 << 30;
/// Bytes written before one sync.
const GROUP_BYTES_MAX: usize = 32 << 20;
/// Read backwards in steps of this while looking for the last whole line.
const TAIL_STEP_LEN: u64 = 64 << 10;

/// What the writer does to the disk and tests make fail.
pub(super) trait Disk: Send + 'static {
    fn write(&mut self, file: &mut File, line: &[u8]) -> io::Result<()> {
        file.write_all(line)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Bytes of the file system: free to us, and in all.
    fn space(&mut self, file: &File) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstatfs(file)?;
        let block = stat.f_bsize as u64;
        Ok((stat.f_bavail.saturating_mul(block), stat.f_blocks.saturating_mul(block)))
    }
}

pub(super) struct RealDisk;
impl Disk for RealDisk {}

pub(super) struct Writer<D> {
    disk: D,
    path: PathBuf,
    file: File,
    /// Bytes of whole, synced lines.
    len: u64,
    rotate_at_bytes: u64,
    max_backups: Option<u64>,
}

impl<D: Disk> Writer<D> {
    pub fn open(settings: &Settings, disk: D) -> io::Result<Writer<D>> {
        let path = settings.path.clone();
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = open(&path)?;
        let len = cut_torn_line(&path, &mut file)?;
        let (rotate_at_bytes, max_backups) = (settings.rotate_at_bytes, settings.max_backups);
        Ok(Writer { disk, path, file, len, rotate_at_bytes, max_backups })
    }

    /// Writes groups until every sender is gone.
    pub fn run(&mut self, waiting: &Receiver<Waiting>) {
        while let Ok(first) = waiting.recv() {
            let mut bytes = first.line.len();
            let mut group = vec![first];
            while bytes < GROUP_BYTES_MAX
                && let Ok(next) = waiting.try_recv()
            {
                bytes += next.line.len();
                group.push(next);
            }
            let result = self
                .write(&group, bytes as u64)
                .map_err(|error| format!("failed to write {}: {error}", self.path.display()));
            for waiting in group {
                // A request that was given up wants no answer.
                let _ = waiting.answer.send(result.clone());
            }
        }
    }

    fn write(&mut self, group: &[Waiting], bytes: u64) -> io::Result<()> {
        self.check_space(bytes)?;
        if self.len > 0 && self.len + bytes > self.rotate_at_bytes {
            self.rotate()?;
        }
        let written = group
            .iter()
            .try_for_each(|waiting| self.disk.write(&mut self.file, &waiting.line))
            .and_then(|()| self.disk.sync(&self.file));
        if let Err(error) = written {
            // What may be half there is taken back; a failed sync is not tried again on the same pages.
            let undone = self.file.set_len(self.len).and_then(|()| open(&self.path)).map(|file| self.file = file);
            if let Err(undo) = undone {
                tracing::error!(path = %self.path.display(), error = %undo, "failed to take back a half-written line");
            }
            return Err(error);
        }
        self.len += bytes;
        Ok(())
    }

    fn check_space(&mut self, bytes: u64) -> io::Result<()> {
        let (free, total) = self.disk.space(&self.file)?;
        let floor = (total / 100 * FREE_SHARE_PERCENT).min(FREE_BYTES_MAX);
        if free < floor.saturating_add(bytes) {
            let message = format!("{free} bytes are free on its file system and {floor} must stay free");
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        }
        Ok(())
    }

    /// Gives the file a name with the time and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let target = self.backup_name()?;
        fs::rename(&self.path, &target)?;
        self.file = open(&self.path)?;
        self.len = 0;
        if let Some(max) = self.max_backups {
            let backups = self.backups()?;
            let excess = backups.len().saturating_sub(usize::try_from(max).unwrap_or(usize::MAX));
            for path in &backups[..excess] {
                tracing::info!(path = %path.display(), "deleting an old file: max_backups is set");
                fs::remove_file(path)?;
            }
        }
        sync_parent(&self.path)
    }

    /// `telemetry-00001764000000000.jsonl` beside `telemetry.jsonl`: milliseconds, so that names sort by time.
    fn backup_name(&self) -> io::Result<PathBuf> {
        let (stem, extension) = self.name_parts();
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        (0..1000)
            .map(|n| self.path.with_file_name(format!("{stem}-{:017}{extension}", millis + n)))
            .find(|path| !path.exists())
            .ok_or_else(|| io::Error::other("no free name for the rotated file"))
    }

    fn name_parts(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
        let extension = part(self.path.extension()).map(|extension| format!(".{extension}")).unwrap_or_default();
        (part(self.path.file_stem()).unwrap_or_default(), extension)
    }

    /// Rotated files, oldest first.
    fn backups(&self) -> io::Result<Vec<PathBuf>> {
        let (stem, extension) = self.name_parts();
        let parent = self.path.parent().unwrap_or(Path::new("."));
        let mut found = Vec::new();
        for entry in fs::read_dir(parent)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let time = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            if time.is_some_and(|time| time.len() == 17 && time.bytes().all(|byte| byte.is_ascii_digit())) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let is_new = !path.exists();
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    if is_new {
        file.sync_all()?;
        sync_parent(path)?;
    }
    Ok(file)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Cuts off what follows the last newline; returns the length that is left.
fn cut_torn_line(path: &Path, file: &mut File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let mut end = len;
    let mut whole = 0;
    while end > 0 {
        let start = end.saturating_sub(TAIL_STEP_LEN);
        let mut bytes = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut bytes)?;
        if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
            whole = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if whole < len {
        tracing::warn!(
            path = %path.display(), bytes = len - whole,
            "the last line is torn (a crash while writing); it is cut off and its request comes again"
        );
        file.set_len(whole)?;
        file.sync_data()?;
    }
    Ok(whole)
}
