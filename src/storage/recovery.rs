//! Opening one queue's directory: what is there, what is whole, what is lost.

mod loss;
mod tail;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::{QueueContents, SegmentRow};
use super::cursor::Cursor;
use super::disk::{Disk, DiskFile};
use super::log::{Lost, Recovered, Segment, SegmentState, backlog};
#[cfg(test)]
use super::mutant::{self, Mutant};
use super::ranges::RangeSet;
use super::record::{NO_PREVIOUS, end_after};
use super::salvage;
use super::segment::{self, HeaderPage, Identity, Located, RECORDS_START, ScanResult};
use super::store::StoreError;
use super::witness::QueueAccount;
use loss::LossFinder;
pub(super) use tail::rewrite;
use tail::torn_bytes;

/// What recovery of one queue found worth telling.
#[derive(Debug, Default)]
pub struct QueueReport {
    pub segments: u64,
    pub records: u64,
    /// Segments whose records were scanned because the catalogue did not vouch for them.
    pub scanned: u64,
    /// Bytes behind the last whole record, cut off: never acknowledged.
    pub torn_tail_bytes: u64,
    /// Records below the durable end that are gone.
    pub lost: Vec<Lost>,
    /// Files set aside because they hold nothing of their segment that can be read.
    pub quarantined: Vec<PathBuf>,
    /// Directories, and files with the name of no segment that there can be; they are left alone.
    pub strangers: Vec<PathBuf>,
    /// Cursors that stood beyond the end of the log.
    pub cursors_beyond_end: Vec<String>,
}

/// One file with its header read.
struct Opened {
    file: Arc<dyn DiskFile>,
    identity: Identity,
    allocated_bytes: u64,
}

struct Found {
    segment: Segment,
    /// When it was scanned: from where on its records were perhaps never acknowledged.
    unsure_from: Option<u64>,
}

/// Reads a queue's directory. `known` is what the catalogue says (empty when it was lost), `account` the witness.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    known: &QueueContents,
    account: Option<&QueueAccount>,
) -> Result<(Recovered, QueueReport), StoreError> {
    let mut report = QueueReport::default();
    let mut cursors = known.cursors.clone();
    let mut ledgers = known.ledgers.clone();
    for (name, row) in account.iter().flat_map(|account| &account.cursors) {
        cursors.entry(name.clone()).or_default().merge(&row.cursor());
        let ledger = ledgers.entry(name.clone()).or_default();
        *ledger = ledger.later(row.ledger());
    }
    let witness_row = account.and_then(|account| account.row.clone()).unwrap_or_default();
    let rows = [&known.row, &witness_row];
    let behind = |id: u64| segment::id_behind(id).unwrap_or(0);
    let mut next_segment_id =
        rows.iter().map(|row| row.next_segment_id.checked_sub(1).map_or(0, behind)).fold(0, u64::max);
    let recorded_end = rows.iter().map(|row| row.durable_end).max().unwrap_or(0);
    let mut next_sequence = rows.iter().map(|row| row.next_sequence).fold(recorded_end, u64::max);

    salvage::finish(disk.as_ref(), dir).map_err(StoreError::io("end the repair of", dir))?;
    // All headers first: one of another version refuses the start before anything is written.
    let mut opened: BTreeMap<u64, Opened> = BTreeMap::new();
    let entries = disk.list(dir).map_err(StoreError::io("list", dir))?;
    for entry in entries {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            next_segment_id =
                segment::parse_file_name(&entry.name).map_or(next_segment_id, |id| next_segment_id.max(behind(id)));
            report.strangers.push(path);
            continue;
        }
        if let Some(name_id) = segment::parse_file_name(&entry.name) {
            next_segment_id = next_segment_id.max(behind(name_id));
            if let Some(file) = open_segment(disk, &path, name_id, known.segments.get(&name_id), &mut report)? {
                next_segment_id = next_segment_id.max(behind(file.identity.id));
                next_sequence = next_sequence.max(file.identity.sequence_floor);
                opened.insert(name_id, file);
            }
        } else if entry.name.starts_with("new.") || entry.name.starts_with("spare.") {
            disk.remove(&path).map_err(StoreError::io("remove", &path))?;
        } else if let Some(aside) = segment::parse_aside_name(&entry.name) {
            next_segment_id = next_segment_id.max(behind(aside));
        } else if entry.name.ends_with(".seg") {
            report.strangers.push(path);
        }
    }

    let mut holes: RangeSet = rows.iter().flat_map(|row| row.holes()).collect();
    let mut losses = LossFinder::new(recorded_end, holes.clone());
    let mut found: BTreeMap<u64, Found> = BTreeMap::new();
    let ids: BTreeSet<u64> = opened.keys().chain(known.segments.keys()).copied().collect();
    for id in ids.into_iter().rev() {
        let row = known.segments.get(&id);
        let path = segment::path_in(dir, id);
        let (read, reason) = match opened.remove(&id) {
            Some(file) => (read_segment(disk, &path, id, row, file, &mut report)?, "its file holds another segment"),
            None => (None, "the segment file is missing"),
        };
        let Some((segment, scan)) = read else {
            if let Some(row) = row {
                losses.unreadable_segment(row, reason);
            }
            continue;
        };
        if let Some(row) = row.filter(|row| segment.records == 0 && row.records > 0) {
            // Of the oldest the chain would not tell: below it nothing is expected.
            losses.unreadable_segment(row, "no record in the segment file can be read");
        }
        losses.pass(id, &segment, scan.as_ref());
        let unsure_from = scan.map(|scan| {
            let first = scan.records.iter().find(|located| losses.is_unsure(located.header.sequence));
            first.map_or(segment.valid_end, |located| located.offset)
        });
        found.insert(id, Found { segment, unsure_from });
    }
    let (durable_end, last_found) = (losses.durable_end(), losses.last_sequence());
    next_sequence = next_sequence.max(durable_end);
    let findings = losses.finish(cursors.values());
    report.lost.extend(findings.lost);
    // What everyone had settled already is no loss: its segment was on its way out.
    report.lost.retain(|lost| {
        lost.sequences.is_empty()
            || cursors.is_empty()
            || !cursors.values().all(|c| c.has_settled(lost.sequences.clone()))
    });
    // A file without a header that held what is known to be lost is told of once, by its records.
    if report.lost.iter().any(|lost| !lost.sequences.is_empty()) {
        report.lost.retain(|lost| !lost.sequences.is_empty());
    }
    // What is reported now is not reported again.
    for missing in findings.torn.iter().chain(report.lost.iter().map(|lost| lost.sequences.clone())) {
        holes.insert(missing);
    }
    for cursor in cursors.values_mut() {
        for lost in &report.lost {
            cursor.settle(lost.sequences.clone());
        }
    }

    let mut segments = BTreeMap::new();
    for (id, Found { mut segment, unsure_from }) in found {
        let path = segment::path_in(dir, id);
        if segment.records == 0 {
            drop(segment);
            if findings.is_segment_lost || report.lost.iter().any(|lost| lost.segment_id == id) {
                // Somebody may still want to look into it.
                quarantine(disk, &path, &mut report)?;
                continue;
            }
            disk.remove(&path).map_err(StoreError::io("remove", &path))?;
            continue;
        }
        if let Some(unsure_from) = unsure_from {
            if segment.allocated_bytes > segment.valid_end {
                let (file, id) = (segment.file.as_ref(), segment.identity.id);
                let torn = torn_bytes(file, id, segment.valid_end, segment.allocated_bytes);
                report.torn_tail_bytes += torn.map_err(StoreError::io("read", &path))?;
                segment.file.set_len(segment.valid_end).map_err(StoreError::io("truncate the torn tail of", &path))?;
                segment.allocated_bytes = segment.valid_end;
            }
            let unsure = unsure_from..segment.valid_end;
            rewrite(segment.file.as_ref(), unsure).map_err(StoreError::io("secure the tail of", &path))?;
            segment.file.sync_data().map_err(StoreError::io("sync", &path))?;
        }
        next_sequence = next_sequence.max(segment.last + 1);
        report.records += segment.records;
        segments.insert(id, segment);
    }
    report.segments = segments.len() as u64;
    for (name, cursor) in &cursors {
        let highest = cursor.above().iter().last().map_or(cursor.low(), |range| range.end);
        if highest > next_sequence {
            report.cursors_beyond_end.push(name.clone());
        }
        // A cursor beyond the end must never hide a record to come.
        next_sequence = next_sequence.max(highest);
    }
    let previous_end = last_found.map_or(durable_end, |last| durable_end.max(last + 1));
    let previous = previous_end.checked_sub(1).unwrap_or(NO_PREVIOUS);
    debug_assert!(end_after(previous) <= next_sequence);
    #[cfg(test)]
    if mutant::is_on(Mutant::ReusedSequence) {
        next_sequence = last_found.map_or(0, |last| last + 1);
    }
    let backlogs = backlog::count(&segments, &cursors);
    let ledgers = backlogs
        .iter()
        .map(|(name, waiting)| (name.clone(), ledgers.get(name).copied().unwrap_or_default().resumed(waiting)))
        .collect();
    // The witness is written last, and by whoever chooses another.
    let known = [witness_row.incarnation, known.row.incarnation].into_iter().find(|incarnation| *incarnation != 0);
    let incarnation = known.unwrap_or_else(|| fastrand::u64(1..));
    Ok((
        Recovered {
            incarnation,
            segments,
            next_sequence,
            next_segment_id,
            previous,
            holes,
            cursors,
            backlogs,
            ledgers,
        },
        report,
    ))
}

/// Opens one file and reads its header. None: it was set aside.
fn open_segment(
    disk: &Arc<dyn Disk>,
    path: &Path,
    name_id: u64,
    row: Option<&SegmentRow>,
    report: &mut QueueReport,
) -> Result<Option<Opened>, StoreError> {
    let file = disk.open(path).map_err(StoreError::io("open", path))?;
    let allocated_bytes = file.size().map_err(StoreError::io("measure", path))?;
    let header = Identity::read(file.as_ref(), name_id).map_err(StoreError::io("read", path))?;
    let row_identity = row.and_then(|row| {
        let nonce = <[u8; 16]>::try_from(row.nonce.as_slice()).ok()?;
        Some(Identity { id: row.id, nonce, sequence_floor: row.sequence_floor })
    });
    let identity = match (header, row_identity) {
        (HeaderPage::UnknownVersion(version), _) => {
            return Err(StoreError::Format { path: path.to_owned(), found: format!("segment version {version}") });
        }
        (HeaderPage::Valid(identity), _) => identity,
        // Both copies are damaged, but the catalogue remembers the nonce, and the records can be read.
        (HeaderPage::Damaged, Some(identity)) => identity,
        (HeaderPage::Damaged, None) => {
            quarantine(disk, path, report)?;
            report.lost.push(Lost {
                segment_id: name_id,
                offset: 0,
                bytes: allocated_bytes,
                sequences: 0..0,
                reason: "the segment's header is damaged and the catalogue does not know it: what it held is not known"
                    .to_owned(),
            });
            return Ok(None);
        }
    };
    Ok(Some(Opened { file, identity, allocated_bytes }))
}

/// What is in a file, scanned where the catalogue does not vouch for it. None: it was set aside.
fn read_segment(
    disk: &Arc<dyn Disk>,
    path: &Path,
    name_id: u64,
    row: Option<&SegmentRow>,
    opened: Opened,
    report: &mut QueueReport,
) -> Result<Option<(Segment, Option<ScanResult>)>, StoreError> {
    let Opened { file, identity, allocated_bytes } = opened;
    if let Some(row) = row
        && row.nonce == identity.nonce
        && row.valid_end <= allocated_bytes
        && row.valid_end > RECORDS_START
        && row.records > 0
        && row.first_sequence <= row.last_sequence
    {
        return Ok(Some((sealed_from_row(identity, file, allocated_bytes, row), None)));
    }
    let scan = segment::scan_all(&file, identity).map_err(StoreError::io("read", path))?;
    report.scanned += 1;
    if identity.id != name_id && !scan.records.is_empty() {
        // A recycled file shows its new id only before its first record, unless names were mixed up by hand.
        quarantine(disk, path, report)?;
        return Ok(None);
    }
    Ok(Some((sealed_from_scan(identity, file, allocated_bytes, &scan), Some(scan))))
}

fn quarantine(disk: &Arc<dyn Disk>, path: &Path, report: &mut QueueReport) -> Result<(), StoreError> {
    let target = segment::set_aside(disk.as_ref(), path).map_err(StoreError::io("set aside", path))?;
    report.quarantined.push(target);
    Ok(())
}

fn sealed_from_row(identity: Identity, file: Arc<dyn DiskFile>, allocated_bytes: u64, row: &SegmentRow) -> Segment {
    Segment {
        identity,
        file,
        state: SegmentState::Sealed,
        allocated_bytes,
        valid_end: row.valid_end,
        first: row.first_sequence,
        previous_end: row.previous_end,
        last: row.last_sequence,
        records: row.records,
        items: row.items,
        index: Vec::new(),
        // Whatever is in the cache after a restart is a gift.
        is_uncached: true,
        damage_seen: RangeSet::new(),
    }
}

fn sealed_from_scan(identity: Identity, file: Arc<dyn DiskFile>, allocated_bytes: u64, scan: &ScanResult) -> Segment {
    let sequence = |located: Option<&Located>| located.map_or(0, |located| located.header.sequence);
    let mut damage_seen = RangeSet::new();
    for gap in &scan.gaps {
        damage_seen.insert(gap.offset..gap.offset + gap.len);
    }
    Segment {
        identity,
        file,
        state: SegmentState::Sealed,
        allocated_bytes,
        valid_end: scan.valid_end,
        first: sequence(scan.records.first()),
        previous_end: scan.records.first().map_or(0, |located| end_after(located.header.previous)),
        last: sequence(scan.records.last()),
        records: scan.records.len() as u64,
        items: scan.records.iter().map(|located| u64::from(located.header.items)).sum(),
        index: Vec::new(),
        // Whatever is in the cache after a restart is a gift.
        is_uncached: true,
        damage_seen,
    }
}

/// A cursor for an exporter that was never seen: at the end only when the catalogue is known to be intact.
pub(super) fn birth_of_cursor(start: super::StartAt, intact: bool, oldest: u64, durable_end: u64) -> Cursor {
    #[cfg(test)]
    let intact = intact || mutant::is_on(Mutant::CursorBornAtEnd);
    match start {
        super::StartAt::End if intact => Cursor::at(durable_end),
        _ => Cursor::at(oldest),
    }
}
