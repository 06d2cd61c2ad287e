//! The data directory's lock, which commands on the files take one after the other.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::ask::{self, Way};
use crate::cli::{Failure, queue};
use crate::storage::{RealDisk, StoreError, store};

/// How long another command, or a process that starts or stops, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Held until it is dropped.
type Lock = Box<dyn std::fmt::Debug + Send + Sync>;

/// Who answers for the letters.
pub enum Held {
    Process(Way),
    Files(Lock),
}

/// The process that uses the directory if it answers, else the lock on the files.
pub async fn take(dir: &Path) -> Result<Held, Failure> {
    let started = Instant::now();
    loop {
        if let Some(way) = ask::process(dir).await? {
            return Ok(Held::Process(way));
        }
        match store::lock(&RealDisk, dir) {
            Ok(lock) => return Ok(Held::Files(lock)),
            Err(StoreError::InUse { .. }) if started.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            Err(StoreError::InUse { pid, .. }) => return Err(in_use(dir, &pid)),
            Err(error) => return Err(queue::failed(&error)),
        }
    }
}

fn in_use(dir: &Path, pid: &str) -> Failure {
    let who = match (pid, command(pid)) {
        ("", _) => "another process".to_owned(),
        (pid, None) => format!("process {pid}"),
        (pid, Some(command)) => format!("process {pid} ({command})"),
    };
    Failure::Other(format!(
        "{} is in use by {who}, which answers nobody; waited {} s\n  help: run this again when it has ended, or end it",
        dir.display(),
        PATIENCE.as_secs()
    ))
}

/// What a process was called to do, without its options.
fn command(pid: &str) -> Option<String> {
    let pid: u32 = pid.parse().ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let program = Path::new(&words.next()?).file_name()?.to_string_lossy().into_owned();
    let is_word =
        |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let words = words.take(2).take_while(|word| is_word(word) && !word.starts_with('-'));
    let is_plain = program.chars().all(|c| !c.is_control());
    is_plain.then(|| std::iter::once(program).chain(words).collect::<Vec<_>>().join(" "))
}
