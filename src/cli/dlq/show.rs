//! Dead letters as text.

use std::fmt::Write as _;
use std::io::IsTerminal;

use crate::admin::api::Progress;
use crate::cli::{Failure, output};
use crate::dlq::{Entry, Listed};
use crate::storage::unix_now_ns;

use super::hints::Hints;
use super::{select, times};

/// Longest message in a list; `show` has all of it.
const MESSAGE_CHARS_MAX: usize = 60;
const NAME_CHARS_MAX: usize = 40;

fn ago(unix_ms: u64) -> String {
    let seconds = (unix_now_ns() / 1_000_000).saturating_sub(unix_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// What clients and servers wrote, as one line that does nothing to a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A payload, lines kept; other control characters as JSON writes them, in which nothing changes by it.
fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && !matches!(c, '\n' | '\t') {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// A name in a column, or that there is none.
fn named(name: Option<&str>) -> String {
    match name.filter(|name| !name.is_empty()) {
        Some(name) => plain(name).chars().take(NAME_CHARS_MAX).collect(),
        None => "-".to_owned(),
    }
}

/// A time, and how long ago that was.
fn at(unix_ms: u64) -> String {
    format!("{} ({} ago)", times::format(unix_ms), ago(unix_ms))
}

pub fn list(found: &Listed) -> String {
    if found.letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut text = format!(
        "{:16}  {:>7}  {:7}  {:>6}  {:10}  {:14}  {:20}  {:16}  {:14}  MESSAGE\n",
        "ID", "AGE", "SIGNAL", "ITEMS", "SIZE", "QUEUE", "EXPORTER", "SERVICE", "REASON"
    );
    for entry in &found.letters {
        let description = &entry.description;
        let message: String = plain(&description.message).chars().take(MESSAGE_CHARS_MAX).collect();
        let _infallible = writeln!(
            text,
            "{:16}  {:>7}  {:7}  {:>6}  {:10}  {:14}  {:20}  {:16}  {:14}  {message}",
            entry.id,
            ago(entry.parked_unix_ms),
            entry.signal,
            entry.items,
            format!("{} B", entry.bytes),
            named(Some(&description.queue)),
            named(description.exporter.as_deref()),
            named(description.service_name.as_deref()),
            description.reason.name(),
        );
    }
    if let Some(matching) = found.matching.filter(|matching| found.letters.len() < *matching) {
        let _infallible = writeln!(text, "{} of {matching}; --limit 0 shows all", found.letters.len());
    }
    text
}

pub fn entry(entry: &Entry) -> String {
    let description = &entry.description;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _infallible = writeln!(text, "{name:10} {}", plain(value));
        }
    };
    line("letter", &entry.id);
    line("reason", description.reason.name());
    line("status", description.status.as_deref().unwrap_or_default());
    line("message", &description.message);
    line("exporter", description.exporter.as_deref().unwrap_or_default());
    line("queue", &description.queue);
    line("service", description.service_name.as_deref().unwrap_or_default());
    line("holds", &format!("{} items of {}, {} bytes", entry.items, entry.signal, entry.bytes));
    if let Some(offset) = description.offset_bytes {
        line("at byte", &offset.to_string());
    }
    if let Some(len) = description.cut_from_bytes {
        line("kept", &format!("the beginning of {len} bytes"));
    }
    if let Some(origin) = &description.origin {
        line("client", &format!("{} at receiver {}", origin.peer, origin.receiver));
        for (name, value) in &origin.headers {
            line("header", &format!("{name}: {value}"));
        }
    }
    line("received", &at(description.received_unix_ms));
    if let Some(first) = description.first_attempt_unix_ms {
        line("tried", &format!("first {}", at(first)));
    }
    line("parked", &format!("{}, after {} attempts", at(entry.parked_unix_ms), description.attempts));
    if let Some(edited) = description.edited_unix_ms {
        line("edited", &format!("{}; reason and message are of the payload before", at(edited)));
    }
    if let Some(note) = &entry.replay {
        line("replayed", &format!("{} times in vain, last {}: {}", note.replays, at(note.at_unix_ms), note.message));
    }
    if let Some(fields) = &entry.unknown_fields {
        line("not shown", fields);
    }
    match &entry.payload {
        None => line("payload", "not shown (it may hold personal data); --show-payload shows it"),
        Some(payload) => {
            let shown = match payload {
                serde_json::Value::String(text) => text.clone(),
                value => serde_json::to_string_pretty(value).unwrap_or_default(),
            };
            let _infallible = writeln!(text, "{}", harmless(&shown));
        }
    }
    text
}

/// A replay as it goes on: a bar for a terminal, failures as lines, a summary at the end.
pub struct ReplayProgress {
    json: bool,
    hints: Hints,
    has_bar: bool,
    failed: usize,
    summary: Option<Progress>,
}

impl ReplayProgress {
    pub fn new(json: bool, hints: Hints) -> ReplayProgress {
        ReplayProgress { json, hints, has_bar: std::io::stderr().is_terminal(), failed: 0, summary: None }
    }

    pub fn take(&mut self, progress: &Progress) -> Result<(), Failure> {
        if self.json {
            let text = serde_json::to_string(progress).map_err(|error| Failure::Other(error.to_string()))?;
            output::print(&format!("{text}\n"))?;
        }
        match progress {
            Progress::Letter { id, delivered, message, done, of } => {
                if !delivered {
                    self.failed += 1;
                    if !self.json {
                        let message = self.hints.complete(&plain(message.as_deref().unwrap_or("no reason")));
                        output::complain(&format_args!("letter {id} stays: {message}"));
                    }
                }
                if self.has_bar {
                    const WIDTH: usize = 40;
                    let filled = WIDTH * done / (*of).max(1);
                    let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '.' }).collect();
                    eprint!("\r[{bar}] {done} of {of}, {} failed ", self.failed);
                }
            }
            summary => self.summary = Some(summary.clone()),
        }
        Ok(())
    }

    /// What stays is a failure of the command.
    pub fn end(self) -> Result<(), Failure> {
        if self.has_bar {
            eprintln!();
        }
        let Some(Progress::Summary { delivered, failed, items, dry_run, left, stopped, unknown }) = self.summary else {
            return Err(Failure::Other(
                "the replay broke off; what was delivered is removed, the rest stays\n  help: run it again".to_owned(),
            ));
        };
        if !self.json {
            output::print(&match dry_run {
                true => format!("{delivered} letters with {items} items would be sent\n"),
                false => format!("{delivered} letters with {items} items delivered, {failed} failed and stay\n"),
            })?;
        }
        if left > 0 {
            stopped.iter().for_each(|destination| output::complain(&plain(destination)));
            return Err(Failure::Other(format!(
                "{failed} letters could not be delivered, and {left} were not tried: they stay as they were\n  help: run it \
                 again when the destination is back; --max-failures 0 tries every letter"
            )));
        }
        if failed > 0 {
            return Err(Failure::Other(format!("{failed} letters could not be delivered")));
        }
        select::strangers(&unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dlq::{Description, Note, Origin, Reason};

    #[test]
    fn what_clients_and_servers_wrote_does_nothing_to_a_terminal_wherever_it_is_shown() {
        // Clears the screen, changes the title, goes back and overwrites; C1 does the same in one character.
        let evil = "a\u{1b}[2J\u{1b}]0;b\u{7}\rc\u{9b}2J\u{7f}\nd";
        let mut description = Description::new(Reason::Malformed, evil, 0);
        description.exporter = Some(evil.to_owned());
        description.status = Some(evil.to_owned());
        description.queue = evil.to_owned();
        description.set_service_name(Some(evil));
        description.origin = Some(Origin {
            receiver: evil.to_owned(),
            peer: evil.to_owned(),
            headers: vec![(evil.to_owned(), evil.to_owned())],
        });
        let json = serde_json::json!({ "name": evil });
        for payload in [None, Some(evil.into()), Some(json.clone())] {
            let entry = Entry {
                id: "12".to_owned(),
                signal: "traces".to_owned(),
                items: 1,
                bytes: 1,
                parked_unix_ms: 0,
                description: description.clone(),
                unknown_fields: Some(evil.to_owned()),
                replay: Some(Note { replays: 1, message: evil.to_owned(), at_unix_ms: 0 }),
                payload,
            };
            let shown = super::entry(&entry);
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
            assert!(shown.contains("message    a [2J ]0;b  c 2J  d\n"), "{shown}");
        }
        let printed = harmless(&serde_json::to_string_pretty(&json).expect("writes"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).expect("JSON still"), json);
    }
}
