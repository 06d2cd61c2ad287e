//! What `forebay queue` prints for people, and the shape of its reports.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Forgotten;
use crate::storage::Log;
use crate::storage::log::Lost;
use crate::storage::store::OpenReport;
use crate::storage::survey::{Depth, LettersSurvey, QueueSurvey, Survey};

pub fn survey(found: &Survey, depth: Depth) -> String {
    let mut text = format!("data directory  {}\n", found.data_dir);
    line(&mut text, "format", &found.format);
    line(&mut text, "used by", &found.owner_pid.map_or("nobody".to_owned(), |pid| format!("process {pid}")));
    match (found.generation, found.checkpoint) {
        (Some(generation), Some(checkpoint)) => {
            line(&mut text, "witness", &format!("generation {generation}, checkpoint {checkpoint}"));
        }
        _ => line(&mut text, "witness", "none is valid: cursors are unknown here"),
    }
    for name in &found.catalogs_set_aside {
        line(&mut text, "set aside", name);
    }
    for queue in &found.queues {
        show_queue(&mut text, queue);
    }
    for letters in &found.dead_letters {
        let LettersSurvey { directory, letters, segments, allocated_bytes, damage } = letters;
        let _ = writeln!(text, "\n{directory}: {letters} dead letters, {segments} segments of {allocated_bytes} bytes");
        for damage in damage {
            let _ = writeln!(text, "  DAMAGE {}", damage.reason);
        }
    }
    let in_queues: usize = found.queues.iter().map(|queue| queue.damage.len()).sum();
    let damage = in_queues + found.dead_letters.iter().map(|letters| letters.damage.len()).sum::<usize>();
    let checked = match depth {
        Depth::Headers => "headers alone were read; verify reads every record",
        Depth::Records => "every record was read",
    };
    text.push('\n');
    line(
        &mut text,
        "damage",
        &format!("{} ({checked})", if damage == 0 { "none".to_owned() } else { damage.to_string() }),
    );
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{name:<15} {value}");
}

fn show_queue(text: &mut String, queue: &QueueSurvey) {
    let _ = writeln!(
        text,
        "\nqueue {}: {} records, {} items, {} segments of {} bytes, next sequence {}",
        queue.queue,
        queue.records,
        queue.items,
        queue.segments.len(),
        queue.allocated_bytes,
        queue.next_sequence
    );
    for segment in &queue.segments {
        let range = match (segment.first_sequence, segment.last_sequence) {
            (Some(first), Some(last)) => format!("{first}..={last}"),
            _ => "empty".to_owned(),
        };
        let _ = writeln!(
            text,
            "  segment {}  {range:<24} {:>9} records {:>11} items  {:>11} of {:>11} bytes used",
            segment.segment, segment.records, segment.items, segment.used_bytes, segment.allocated_bytes
        );
    }
    for cursor in &queue.cursors {
        let age = cursor.oldest_unix_ns.map_or(String::new(), |ns| format!(", oldest {} s old", age(ns).as_secs()));
        let _ = writeln!(
            text,
            "  exporter {}  at {} (+{} ranges)  lag {} records, {} items, {} bytes{age}",
            cursor.exporter, cursor.low, cursor.ranges_above, cursor.lag_records, cursor.lag_items, cursor.lag_bytes
        );
    }
    for damage in &queue.damage {
        let sequences = damage.sequences.map_or(String::new(), |(from, to)| format!(" (records {from}..{to})"));
        let _ = writeln!(
            text,
            "  DAMAGE segment {} at {}, {} bytes: {}{sequences}",
            damage.segment, damage.offset, damage.bytes, damage.reason
        );
    }
    for name in &queue.set_aside {
        let _ = writeln!(text, "  set aside: {name}");
    }
}

fn age(received_unix_ns: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(received_unix_ns))
}

pub fn known(log: &Log) -> String {
    let cursors: Vec<String> = log.status().cursors.into_iter().map(|cursor| cursor.name).collect();
    format!("queue {} with {}", log.id(), cursors.join(", "))
}

pub(super) fn forgotten(forgotten: &Forgotten) -> String {
    match &forgotten.exporter {
        Some(exporter) => format!(
            "exporter {exporter} is forgotten in queue {}: {} records ({} items) will not be sent to it\n",
            forgotten.queue, forgotten.records, forgotten.items
        ),
        None => format!(
            "queue {} is forgotten with {} records ({} items)\n",
            forgotten.queue, forgotten.records, forgotten.items
        ),
    }
}

/// What an opening found that somebody should know.
pub fn findings(report: &OpenReport) -> impl Iterator<Item = String> + '_ {
    let lost = report.queues.iter().flat_map(|(queue, found)| {
        found.lost.iter().map(move |lost| format!("queue {queue}: lost: {}", describe(lost)))
    });
    let aside = report.queues.iter().flat_map(|(queue, found)| {
        found.quarantined.iter().map(move |path| format!("queue {queue}: set aside: {}", path.display()))
    });
    report.notes.iter().cloned().chain(lost).chain(aside)
}

fn describe(lost: &Lost) -> String {
    format!("segment {:016x} at {}, records {:?}: {}", lost.segment_id, lost.offset, lost.sequences, lost.reason)
}

/// What `repair` found and did.
#[derive(Serialize)]
pub struct Repaired {
    pub queues: Vec<RepairedQueue>,
    pub notes: Vec<String>,
    pub failures: Vec<String>,
}

#[derive(Serialize)]
pub struct RepairedQueue {
    pub queue: String,
    pub segments: u64,
    pub records: u64,
    pub torn_tail_bytes: u64,
    pub lost_records: u64,
    pub lost: Vec<String>,
    pub set_aside: Vec<String>,
}

impl Repaired {
    pub fn new(report: &OpenReport, failures: &[String]) -> Repaired {
        let queues = report.queues.iter().map(|(name, found)| RepairedQueue {
            queue: name.clone(),
            segments: found.segments,
            records: found.records,
            torn_tail_bytes: found.torn_tail_bytes,
            lost_records: found.lost.iter().map(|lost| lost.sequences.end.saturating_sub(lost.sequences.start)).sum(),
            lost: found.lost.iter().map(describe).collect(),
            set_aside: found.quarantined.iter().map(|path| path.display().to_string()).collect(),
        });
        let salvaged = report.salvaged.iter().map(|one| {
            let (bytes, original) = (one.unreadable_bytes, one.original.display());
            format!(
                "the disk could not read {bytes} bytes of a segment; the rest was copied, the original is {original}"
            )
        });
        let notes = report.notes.iter().cloned().chain(salvaged).collect();
        Repaired { queues: queues.collect(), notes, failures: failures.to_vec() }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for queue in &self.queues {
            let _ = writeln!(
                text,
                "queue {}: {} records in {} segments are whole; {} lost; {} bytes of torn tails cut off",
                queue.queue, queue.records, queue.segments, queue.lost_records, queue.torn_tail_bytes
            );
            queue.lost.iter().for_each(|lost| line(&mut text, "  lost", lost));
            queue.set_aside.iter().for_each(|path| line(&mut text, "  set aside", path));
        }
        self.notes.iter().for_each(|note| line(&mut text, "note", note));
        self.failures.iter().for_each(|failure| line(&mut text, "FAILED", failure));
        text
    }
}
