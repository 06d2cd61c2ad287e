//! What a restart brings back: fingerprints that still stand for records, and those of records that have none yet.

use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::otlp::{Encoding, compression, wire};
use crate::queue::Marks;
use crate::queue::gate::Offered;
use crate::storage::log::Position;
#[cfg(test)]
use crate::storage::mutant::{self, Mutant};
use crate::storage::{Log, RangeSet, Record};

use super::fingerprints::{Block, Group, Level, level_code};
use super::gate::QueueGate;

/// Records read back to make fingerprints that were not written; the newest first.
const REBUILD_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: u64 = 8 << 20;

/// What was found for one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub fingerprints: u64,
    /// Fingerprints whose record is not there: they do not count, now or later.
    pub ignored: u64,
    /// Records read to make fingerprints that were not written.
    pub rebuilt_records: u64,
}

type Ages = Vec<(u64, u64, Level, Bytes)>;

/// `is_fresh`: nothing is known of the past, also not which records were given up.
pub fn restore(gate: &QueueGate, log: &Log, blocks: &[Block], is_fresh: bool) -> io::Result<Restored> {
    let mut restored = Restored::default();
    let end = log.durable_end();
    let mut found: Ages = Vec::new();
    let mut covered = RangeSet::new();
    let mut void = RangeSet::new();
    let mut forgotten = RangeSet::new();
    // The last first: what is forgotten is so for all that was written before.
    let sections = blocks.iter().rev().flat_map(|block| block.sections.iter().rev());
    for section in sections.filter(|section| section.queue == gate.queue && section.incarnation == gate.incarnation) {
        for range in section.forgotten.chunks_exact(2).map(|pair| pair[0]..pair[1]) {
            covered.insert(range.clone());
            forgotten.insert(range);
        }
        let levels = [Level::Request, Level::Span];
        let Some(level) = levels.into_iter().find(|level| level_code(gate, *level) == section.level) else { continue };
        for group in section.groups.iter().filter(|group| !forgotten.contains(group.sequence)) {
            let is_there = group.sequence < end && !log.missing_at_start().contains(group.sequence);
            #[cfg(test)]
            let is_there = is_there || mutant::is_on(Mutant::UncheckedFingerprint);
            if !is_there {
                restored.ignored += group.keys.len() as u64 / 16;
                void.insert(group.sequence..group.sequence + 1);
                continue;
            }
            // A span level that was not there when the record came is made again.
            if level == Level::Span || gate.spans.is_none() {
                covered.insert(group.sequence..group.sequence + 1);
            }
            found.push((group.unix_seconds, group.sequence, level, group.keys.clone()));
        }
    }
    for range in void.iter() {
        gate.journal.forget_before(&gate.queue, gate.incarnation, range);
    }
    if is_fresh {
        // The next start is not fresh, and knows no more of these.
        gate.journal.forget_before(&gate.queue, gate.incarnation, 0..end);
    } else {
        rebuild(gate, log, &covered, &mut found, &mut restored)?;
    }
    found.sort_by_key(|(unix_seconds, sequence, ..)| (*unix_seconds, *sequence));
    let now = gate.clock.now();
    for (unix_seconds, sequence, level, keys) in found {
        let keys: Vec<u128> = keys.as_chunks().0.iter().map(|key| u128::from_le_bytes(*key)).collect();
        let seen = match level {
            Level::Request => gate.requests.as_ref(),
            Level::Span => gate.spans.as_ref().map(|(_, seen)| seen),
        };
        let at = gate.clock.at_unix_seconds(unix_seconds);
        let Some(seen) = seen.filter(|seen| now.saturating_sub(at) <= seen.window()) else { continue };
        restored.fingerprints += keys.len() as u64;
        seen.add(&keys, sequence, at);
    }
    Ok(restored)
}

pub fn forget(gate: &QueueGate, sequences: &RangeSet) {
    let now = gate.clock.now();
    let sets = [gate.requests.as_ref(), gate.spans.as_ref().map(|(_, seen)| seen)];
    for seen in sets.into_iter().flatten() {
        sequences.iter().for_each(|range| seen.forget(&range, now));
    }
}

/// Reads the records that no fingerprint covers, from the newest gap down.
fn rebuild(
    gate: &QueueGate,
    log: &Log,
    covered: &RangeSet,
    found: &mut Ages,
    restored: &mut Restored,
) -> io::Result<()> {
    let sets = [gate.requests.as_ref(), gate.spans.as_ref().map(|(_, seen)| seen)];
    let window = sets.into_iter().flatten().map(|seen| seen.window()).max().unwrap_or(Duration::ZERO);
    let oldest_second = gate.clock.unix_seconds().saturating_sub(window.as_secs());
    let mut left = REBUILD_BYTES_MAX;
    for gap in covered.gaps(log.oldest_sequence()..log.durable_end()).into_iter().rev() {
        let mut position = Position::at(gap.start);
        while position.sequence < gap.end {
            if left == 0 {
                return Ok(());
            }
            let chunk = log.read_file(position, CHUNK_BYTES.min(left), usize::MAX)?;
            if chunk.next.sequence <= position.sequence {
                break;
            }
            position = chunk.next;
            for lost in &chunk.lost {
                // Whoever comes by later is not told of it again. Its fingerprint may be there all the same.
                found.retain(|(_, sequence, ..)| !lost.sequences.contains(sequence));
                gate.journal.forget_before(&gate.queue, gate.incarnation, lost.sequences.clone());
            }
            for record in chunk.records.iter().filter(|record| gap.contains(&record.sequence)) {
                left = left.saturating_sub(u64::from(record.raw_len).max(1));
                let unix_seconds = record.received_unix_ns / 1_000_000_000;
                if unix_seconds < oldest_second {
                    continue;
                }
                restored.rebuilt_records += 1;
                for (level, keys) in keys_of(gate, record) {
                    let group = Group { sequence: record.sequence, unix_seconds, keys };
                    found.push((unix_seconds, record.sequence, level, group.keys.clone()));
                    gate.journal.add_group(gate, level, group);
                }
            }
        }
    }
    Ok(())
}

/// The keys of a stored record, as they were when it came. Those that hold its sender cannot be made again.
fn keys_of(gate: &QueueGate, record: &Record) -> Vec<(Level, Bytes)> {
    let Some(encoding) = Encoding::from_u8(record.encoding) else { return Vec::new() };
    let mut inflated = Vec::new();
    let message: &[u8] = match encoding {
        Encoding::Identity => &record.payload,
        encoding => {
            let limit = record.raw_len as usize;
            // Every record was inflated once before it was stored.
            if compression::inflate(encoding, &record.payload, limit, &mut inflated, &mut |_| true).is_err() {
                return Vec::new();
            }
            &inflated
        }
    };
    let Ok(summary) = wire::scan(gate.signal, message) else { return Vec::new() };
    let mut marks = Marks::default();
    gate.mark_message(message, &summary, &mut marks);
    let offered = Offered {
        signal: gate.signal,
        encoding,
        items: summary.items,
        raw_len: u64::from(record.raw_len),
        received_unix_ns: record.received_unix_ns,
        metadata: record.metadata.clone(),
        payload: record.payload.clone(),
        marks,
        peer: None,
    };
    let (request, spans) = gate.all_keys(&offered);
    let bytes = |keys: &[u128]| Bytes::from(keys.iter().flat_map(|key| key.to_le_bytes()).collect::<Vec<u8>>());
    let mut found = vec![(Level::Request, bytes(request.as_slice()))];
    if gate.spans.is_some() {
        found.push((Level::Span, bytes(&spans)));
    }
    found
}
