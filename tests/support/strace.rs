//! Reads what `strace -f -v -y -xx` wrote: the order in which a process's threads entered and left their system calls.
//!
//! A thread stands still while strace notes that it enters or leaves a call, so what one thread does because of what
//! another has done stands behind it in the file.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Calls that move bytes or make them durable, and `close`, because descriptors are used again.
const CALLS: &str = "trace=network,read,readv,write,writev,pwrite64,pwritev,pwritev2,fdatasync,fsync,close";

/// Calls that make, rename, remove and sync files, and what tells when: writes.
const FILE_CALLS: &str = "trace=openat,creat,rename,renameat,renameat2,unlink,unlinkat,write,writev,sendto,sendmsg,\
                          pwrite64,pwritev,pwritev2,fdatasync,fsync,close";

/// The words that go before the traced command; the process has its own pid, strace is nobody's child.
pub fn wrapper(trace: &Path) -> Vec<String> {
    words(trace, CALLS, "1000000")
}

/// The same for what becomes of files.
pub fn file_wrapper(trace: &Path) -> Vec<String> {
    words(trace, FILE_CALLS, "4096")
}

fn words(trace: &Path, calls: &str, string_len: &str) -> Vec<String> {
    let trace = trace.display().to_string();
    ["strace", "-D", "-f", "-v", "-y", "-xx", "-s", string_len, "-e", calls, "-o", &trace].map(str::to_owned).to_vec()
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
#[derive(Debug)]
pub struct Event {
    pub thread: u32,
    pub call: String,
    pub moment: Moment,
    pub fd: i32,
    /// What stands behind the descriptor.
    pub path: String,
    /// What the call moves; of a call that reads, known when it leaves.
    pub bytes: Vec<u8>,
    /// Each string among its arguments by itself, such as the names of files.
    pub strings: Vec<Vec<u8>>,
    /// All arguments and the result, as they stand there.
    pub text: String,
    pub line: usize,
}

/// Every event in order. Lines about signals and exits are none.
pub fn events(lines: &[String]) -> Result<Vec<Event>, String> {
    read(lines, false)
}

/// The same where long strings were cut short.
pub fn file_events(lines: &[String]) -> Result<Vec<Event>, String> {
    read(lines, true)
}

fn read(lines: &[String], may_be_cut: bool) -> Result<Vec<Event>, String> {
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
        let path = arguments[digits..].strip_prefix('<').and_then(|rest| rest.split('>').next()).unwrap_or_default();
        let path = String::from_utf8_lossy(&unescaped(path).unwrap_or_default()).into_owned();
        let strings = strings(arguments, may_be_cut).ok_or_else(|| wrong("a string that was cut"))?;
        let event = |moment| Event {
            thread,
            call: call.to_owned(),
            moment,
            fd,
            path: path.clone(),
            bytes: strings.concat(),
            strings: strings.clone(),
            text: arguments.to_owned(),
            line: index + 1,
        };
        if enters_here {
            events.push(event(Moment::Enters));
        }
        if is_first_half {
            unfinished.insert(thread, text);
        } else {
            let result = text.rsplit_once(" = ").map_or("?", |(_, result)| result);
            let result = result.split([' ', '<']).next().unwrap_or("?");
            // `?`: the process ended in the middle.
            events.push(event(Moment::Leaves(result.parse().unwrap_or(-1))));
        }
    }
    Ok(events)
}

/// All quoted strings; None when one was cut short and must not be.
fn strings(arguments: &str, may_be_cut: bool) -> Option<Vec<Vec<u8>>> {
    let mut parts = arguments.split('"');
    parts.next();
    let mut strings = Vec::new();
    while let Some(quoted) = parts.next() {
        strings.push(unescaped(quoted)?);
        let is_cut = parts.next()?.starts_with("...");
        if is_cut && !may_be_cut {
            return None;
        }
    }
    Some(strings)
}

/// Bytes that are written as `\x00` each.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    text.split("\\x").skip(1).map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
