//! Reads what `strace -f -v -y -xx` wrote: the order in which a process's threads entered and left their system calls.
//!
//! A thread stands still while strace notes that it enters or leaves a call, so what one thread does because of what
//! another has done stands behind it in the file.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TOKEN: &[u8] = b"token-";
const TOKEN_DIGITS: usize = 6;

/// Names of spans, to be found again in whatever the process reads and writes.
pub type Tokens = BTreeSet<String>;

pub fn token(n: usize) -> String {
    format!("token-{n:06}")
}

/// The tokens that stand whole in `bytes`.
pub fn tokens(bytes: &[u8]) -> Tokens {
    let len = TOKEN.len() + TOKEN_DIGITS;
    let whole = |window: &&[u8]| window.starts_with(TOKEN) && window[TOKEN.len()..].iter().all(u8::is_ascii_digit);
    bytes.windows(len).filter(whole).map(|window| String::from_utf8_lossy(window).into_owned()).collect()
}

/// Calls that move bytes or make them durable, and `close`, because descriptors are used again.
const MOVING_BYTES: &str = "trace=network,read,readv,write,writev,pwrite64,pwritev,pwritev2,fdatasync,fsync,close";
/// Calls that give files their names and take them away; those with `?` are not on every architecture.
const NAMING_FILES: &str = "?open,openat,?mkdir,mkdirat,?rename,?renameat,renameat2,?unlink,unlinkat,sync_file_range";

/// The words that go before the traced command; the process has its own pid, strace is nobody's child.
pub fn wrapper(trace: &Path) -> Vec<String> {
    let (trace, calls) = (trace.display().to_string(), format!("{MOVING_BYTES},{NAMING_FILES}"));
    ["strace", "-D", "-f", "-v", "-y", "-xx", "-s", "1000000", "-e", &calls, "-o", &trace].map(str::to_owned).to_vec()
}

/// Whether strace is installed and may trace here.
pub fn is_permitted() -> bool {
    let status = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Enters,
    /// With the call's result.
    Leaves(i64),
}

/// One end of one system call.
#[derive(Clone, Debug)]
pub struct Event {
    pub thread: u32,
    pub call: String,
    pub moment: Moment,
    /// The first argument, where it is one.
    pub fd: i32,
    /// What the call moves, or the paths it names; of a call that reads, known when it leaves.
    pub strings: Vec<Vec<u8>>,
    /// It opens a file, and makes it if it is not there.
    pub creates: bool,
    pub line: usize,
}

impl Event {
    pub fn bytes(&self) -> Vec<u8> {
        self.strings.concat()
    }

    pub fn path(&self, index: usize) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.strings.get(index).cloned().unwrap_or_default()))
    }
}

/// Every event in order. Lines about signals and exits are none.
pub fn events(lines: &[String]) -> Result<Vec<Event>, String> {
    let mut unfinished: HashMap<u32, String> = HashMap::new();
    let mut events = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let wrong = |what: &str| format!("line {}: {what}: {}", index + 1, &line[..line.len().min(200)]);
        let (thread, rest) = line.split_once(' ').ok_or_else(|| wrong("no thread"))?;
        let thread: u32 = thread.parse().map_err(|_| wrong("no thread"))?;
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        let is_first_half = rest.ends_with("<unfinished ...>");
        let (text, enters_here) = match rest.strip_prefix("<... ") {
            Some(resumed) => {
                let first = unfinished.remove(&thread).ok_or_else(|| wrong("resumes nothing"))?;
                let (_, second) = resumed.split_once("resumed>").ok_or_else(|| wrong("unknown"))?;
                (first + second, false)
            }
            None => (rest.trim_end_matches("<unfinished ...>").to_owned(), true),
        };
        let (call, arguments) = text.split_once('(').ok_or_else(|| wrong("no call"))?;
        // `exit` and calls that fail before they have a descriptor are of no interest.
        let digits = arguments.find(|c: char| !c.is_ascii_digit()).unwrap_or(arguments.len());
        let fd = arguments[..digits].parse().unwrap_or(-1);
        let strings = strings(arguments).ok_or_else(|| wrong("a string that was cut"))?;
        let creates = call.starts_with("open") && arguments.contains("O_CREAT");
        let event = |moment| {
            let (call, strings, line) = (call.to_owned(), strings.clone(), index + 1);
            Event { thread, call, moment, fd, strings, creates, line }
        };
        if enters_here {
            events.push(event(Moment::Enters));
        }
        if is_first_half {
            unfinished.insert(thread, text);
        } else {
            let result = text.rsplit_once(" = ").map_or("?", |(_, result)| result);
            // A descriptor is followed by its path in `<>`.
            let result = result.split([' ', '<']).next().unwrap_or("?");
            // `?`: the process ended in the middle.
            events.push(event(Moment::Leaves(result.parse().unwrap_or(-1))));
        }
    }
    Ok(events)
}

/// All quoted strings; None when one was cut short. Each byte is written as `\x00`.
fn strings(arguments: &str) -> Option<Vec<Vec<u8>>> {
    let mut strings = Vec::new();
    let mut parts = arguments.split('"');
    parts.next();
    while let Some(quoted) = parts.next() {
        let pairs = quoted.split("\\x").skip(1);
        strings.push(pairs.map(|pair| u8::from_str_radix(pair, 16).ok()).collect::<Option<Vec<u8>>>()?);
        if parts.next()?.starts_with("...") {
            return None;
        }
    }
    Some(strings)
}

/// The whole trace of a process that has ended; strace notes that a moment later.
pub async fn finished(trace: &Path, pid: u32) -> Vec<String> {
    let mut text = String::new();
    super::eventually("the trace is whole", async || {
        text = std::fs::read_to_string(trace).expect("readable");
        text.lines().any(|line| line.starts_with(&format!("{pid} ")) && line.ends_with("+++ exited with 0 +++"))
    })
    .await;
    text.lines().map(str::to_owned).collect()
}
