//! Follows every name, write and sync below the data directory through a trace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay::storage::catalog::MetaRow;
use forebay::storage::witness::Account;
use prost::Message;

use crate::support::strace::{Event, Moment, Tokens, tokens};

/// The data directory, the one above it that was not there either, and what is in it: all must be durable when the first
/// success leaves.
const MADE_AT_START: [&str; 9] = [
    "..",
    "",
    "FORMAT",
    "witness",
    "catalog",
    "catalog/conf",
    "catalog/db",
    "queues/traces",
    "queues/traces/0000000000000000.seg",
];
/// Nothing is lost with these: the lock is taken anew, what was seen before costs duplicates.
const MAY_BE_LOST: [&str; 2] = ["LOCK", "fingerprints"];

/// One file or directory.
#[derive(Default)]
struct Node {
    is_dir: bool,
    named_at: usize,
    is_name_durable: bool,
    /// The first write that has returned.
    written_at: Option<usize>,
    is_content_durable: bool,
    /// What lies in a segment, and the last of its sequences: one record a request, in order.
    tokens: Tokens,
    last_sequence: u64,
    /// By which descriptors bytes came into it.
    writers: BTreeSet<i32>,
}

/// What a sync covers: all that was there when it began.
struct Sync {
    node: usize,
    fd: i32,
    begun_at: usize,
}

#[derive(Default)]
pub struct Seen {
    /// What was durable when the first success left, and all names at that moment.
    pub made: BTreeSet<PathBuf>,
    pub names: BTreeMap<PathBuf, usize>,
    pub answered_at: usize,
    pub removed_segments: usize,
    /// Lines of each sync's two ends, by node.
    pub syncs: Vec<(usize, usize, usize)>,
    /// Removals, and the end of the first sync of a witness that allowed each.
    pub removals: Vec<(usize, usize)>,
    pub catalog_writer: i32,
    pub catalog_syncer: i32,
}

#[derive(Default)]
struct Checker {
    data: PathBuf,
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    descriptors: HashMap<i32, usize>,
    syncing: HashMap<u32, Sync>,
    /// Connections of clients that have asked, and of the exporter with what it is sending.
    asked: BTreeSet<i32>,
    sending: HashMap<i32, Tokens>,
    delivered: Tokens,
    records: u64,
    /// Bytes that the catalogue has, and those of them that our sync has made durable.
    catalog: Vec<u8>,
    catalog_durable: usize,
    /// The account last written to the witness, and those made durable, with the end of the sync.
    account: Option<Account>,
    accounts_durable: Vec<(Account, usize)>,
    has_answered: bool,
    seen: Seen,
}

impl Checker {
    fn name(&mut self, path: PathBuf, is_dir: bool, line: usize) -> usize {
        self.nodes.push(Node { is_dir, named_at: line, ..Node::default() });
        self.names.insert(path, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn path_of(&self, node: usize) -> PathBuf {
        self.names.iter().find(|(_, id)| **id == node).map_or_else(PathBuf::new, |(path, _)| path.clone())
    }

    fn is(&self, node: usize, name: &str) -> bool {
        self.names.get(&self.data.join(name)) == Some(&node)
    }

    fn is_segment(&self, path: &Path) -> bool {
        path.starts_with(self.data.join("queues")) && path.extension().is_some_and(|extension| extension == "seg")
    }

    fn opened(&mut self, event: &Event, fd: i64) {
        let path = event.path(0);
        let node = match self.names.get(&path) {
            Some(node) => *node,
            None if event.creates => self.name(path, false, event.line),
            // One that was there before: only the directory above the data directory matters.
            None => self.name(path, true, 0),
        };
        self.descriptors.insert(fd as i32, node);
    }

    fn wrote(&mut self, event: &Event) -> Result<(), String> {
        let Some(&node) = self.descriptors.get(&event.fd) else { return Ok(()) };
        let is_segment = self.is_segment(&self.path_of(node));
        let written = &mut self.nodes[node];
        written.written_at.get_or_insert(event.line);
        written.writers.insert(event.fd);
        if is_segment {
            let found = tokens(&event.bytes());
            self.records += found.len() as u64;
            written.last_sequence = self.records.saturating_sub(1);
            written.tokens.extend(found);
        } else if self.is(node, "catalog/db") {
            self.catalog.extend(event.bytes());
        } else if self.is(node, "witness") && event.strings.len() == 2 {
            let account = Account::decode(&event.strings[1][..]);
            self.account = Some(account.map_err(|error| format!("line {}: no account: {error}", event.line))?);
        }
        Ok(())
    }

    fn sync_begins(&mut self, event: &Event) {
        if let Some(&node) = self.descriptors.get(&event.fd) {
            self.syncing.insert(event.thread, Sync { node, fd: event.fd, begun_at: event.line });
        }
    }

    fn sync_ends(&mut self, event: &Event, result: i64) {
        let Some(Sync { node, fd, begun_at }) = self.syncing.remove(&event.thread) else { return };
        let path = self.path_of(node);
        self.seen.syncs.push((node, begun_at, event.line));
        if result != 0 {
            return;
        }
        for (_, id) in self.names.iter().filter(|(child, _)| child.parent() == Some(&path)) {
            let child = &mut self.nodes[*id];
            child.is_name_durable |= child.named_at < begun_at;
        }
        let synced = &mut self.nodes[node];
        synced.is_content_durable |= synced.written_at.is_some_and(|at| at < begun_at);
        let is_anothers = !synced.writers.contains(&fd);
        if self.is(node, "catalog/db") && is_anothers {
            self.seen.catalog_syncer = fd;
            self.seen.catalog_writer = self.nodes[node].writers.iter().next().copied().unwrap_or(-1);
            // One thread writes and syncs it.
            self.catalog_durable = self.catalog.len();
        } else if self.is(node, "witness") {
            self.accounts_durable.extend(self.account.clone().map(|account| (account, event.line)));
        }
    }

    /// Everything in the data directory is there to stay.
    fn answered(&mut self, line: usize) -> Result<(), String> {
        for (path, id) in self.names.iter().filter(|(_, id)| self.nodes[**id].named_at > 0) {
            if MAY_BE_LOST.iter().any(|other| path.starts_with(self.data.join(other))) {
                continue;
            }
            let node = &self.nodes[*id];
            if !node.is_name_durable {
                return Err(format!("line {line}: success before the name of {} was synced", path.display()));
            }
            if !node.is_dir && !node.is_content_durable {
                return Err(format!("line {line}: success before what is in {} was synced", path.display()));
            }
            self.seen.made.insert(path.clone());
        }
        self.seen.names = self.names.clone();
        self.seen.answered_at = line;
        let missing = MADE_AT_START.iter().find(|name| match **name {
            ".." => !self.data.parent().is_some_and(|above| self.seen.made.contains(above)),
            name => !self.seen.made.contains(&self.data.join(name).components().collect::<PathBuf>()),
        });
        missing.map_or(Ok(()), |name| Err(format!("line {line}: {name:?} was not seen being made")))
    }

    /// A segment is about to go.
    fn removes(&mut self, path: &Path, line: usize) -> Result<(), String> {
        let Some(node) = self.names.get(path).map(|id| &self.nodes[*id]) else { return Ok(()) };
        if !self.is_segment(path) || node.tokens.is_empty() {
            return Ok(());
        }
        let fail = |what: &str| Err(format!("line {line}: a segment goes {what}"));
        if !node.tokens.is_subset(&self.delivered) {
            return fail("before its records were delivered");
        }
        let all = 0..node.last_sequence + 1;
        let has_passed = |account: &Account| {
            let cursors = account.queues.get("traces").map(|queue| &queue.cursors).filter(|rows| !rows.is_empty());
            cursors.is_some_and(|rows| rows.values().all(|row| row.cursor().has_settled(all.clone())))
        };
        let first = self.accounts_durable.iter().find(|(account, _)| has_passed(account));
        let (Some((_, allowed_at)), Some((account, _))) = (first, self.accounts_durable.last()) else {
            return fail("before the cursor that passed it is synced in the witness");
        };
        // The catalogue's row of the same checkpoint.
        let MetaRow { generation, checkpoint } = account.meta();
        let row = MetaRow { generation, checkpoint }.encode_to_vec();
        let durable = &self.catalog[..self.catalog_durable];
        if !durable.windows(row.len()).any(|window| window == row) {
            return fail("before the same checkpoint is synced in the catalogue by our own descriptor");
        }
        self.seen.removed_segments += 1;
        self.seen.removals.push((line, *allowed_at));
        Ok(())
    }

    fn pass(&mut self, event: &Event) -> Result<(), String> {
        match (event.call.as_str(), event.moment) {
            ("close", Moment::Enters) => {
                self.descriptors.remove(&event.fd);
                self.asked.remove(&event.fd);
                self.sending.remove(&event.fd);
            }
            ("open" | "openat", Moment::Leaves(fd)) if fd >= 0 => self.opened(event, fd),
            ("mkdir" | "mkdirat", Moment::Leaves(0)) => {
                self.name(event.path(0), true, event.line);
            }
            ("rename" | "renameat" | "renameat2", Moment::Enters) => self.removes(&event.path(0), event.line)?,
            ("rename" | "renameat" | "renameat2", Moment::Leaves(0)) => {
                if let Some(id) = self.names.remove(&event.path(0)) {
                    let node = &mut self.nodes[id];
                    (node.named_at, node.is_name_durable) = (event.line, false);
                    self.names.insert(event.path(1), id);
                }
            }
            ("unlink" | "unlinkat", Moment::Enters) => self.removes(&event.path(0), event.line)?,
            ("unlink" | "unlinkat", Moment::Leaves(0)) => {
                self.names.remove(&event.path(0));
            }
            ("write" | "pwrite64" | "pwritev" | "pwritev2", Moment::Leaves(written))
                if written > 0 && self.descriptors.contains_key(&event.fd) =>
            {
                self.wrote(event)?;
            }
            ("fdatasync" | "fsync", Moment::Enters) => self.sync_begins(event),
            ("fdatasync" | "fsync", Moment::Leaves(result)) => self.sync_ends(event, result),
            ("read" | "readv" | "recvfrom" | "recvmsg", Moment::Leaves(read)) if read > 0 => {
                let bytes = event.bytes();
                if bytes.starts_with(b"POST ") {
                    self.asked.insert(event.fd);
                } else if bytes.starts_with(b"HTTP/1.1 200") {
                    self.delivered.extend(self.sending.remove(&event.fd).unwrap_or_default());
                }
            }
            ("write" | "writev" | "sendto" | "sendmsg", Moment::Enters) => {
                let bytes = event.bytes();
                if self.asked.contains(&event.fd) {
                    if bytes.starts_with(b"HTTP/1.1 200") && !std::mem::replace(&mut self.has_answered, true) {
                        self.answered(event.line)?;
                    }
                } else if !self.descriptors.contains_key(&event.fd) {
                    self.sending.entry(event.fd).or_default().extend(tokens(&bytes));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Err names the first thing that was done too early.
pub fn check(events: &[Arc<Event>], data: &Path) -> Result<Seen, String> {
    let mut checker = Checker { data: data.to_owned(), ..Checker::default() };
    for event in events {
        checker.pass(event)?;
    }
    if !checker.has_answered {
        return Err("no answer of success was seen".to_owned());
    }
    Ok(checker.seen)
}
