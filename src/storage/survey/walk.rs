//! Walking one queue's segments without keeping them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::storage::cursor::Cursor;
use crate::storage::disk::Disk;
use crate::storage::ranges::RangeSet;
use crate::storage::record::{Header, NO_PREVIOUS};
use crate::storage::segment::{self, HeaderPage, Identity, RECORDS_START, Scanner, Step};
use crate::storage::store::StoreError;

use super::{CursorSurvey, Damage, QueueSurvey, SegmentSurvey, settled_by_all};

/// Looks at a segment that seems damaged: its owner may have been writing or recycling it.
const LOOKS_MAX: u32 = 3;

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The records' headers; payloads are not checked.
    Headers,
    /// Every byte.
    Records,
}

#[derive(Debug, Default)]
pub struct Walked {
    pub survey: QueueSurvey,
    /// Sequences that were written and not met, with the segment behind them.
    missing: Vec<(Range<u64>, String)>,
    last: Option<u64>,
}

#[derive(Default)]
struct Segment {
    survey: SegmentSurvey,
    lags: BTreeMap<String, CursorSurvey>,
    gaps: Vec<Damage>,
    missing: Vec<(Range<u64>, String)>,
    last: Option<u64>,
}

pub fn queue(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    cursors: &BTreeMap<String, Cursor>,
    depth: Depth,
) -> Result<Walked, StoreError> {
    let mut walked = Walked::default();
    let mut lags: BTreeMap<String, CursorSurvey> = BTreeMap::new();
    for (name, cursor) in cursors {
        let ranges_above = cursor.above().len() as u64;
        let lag = CursorSurvey { exporter: name.clone(), low: cursor.low(), ranges_above, ..CursorSurvey::default() };
        lags.insert(name.clone(), lag);
    }
    let entries = match disk.list(dir) {
        Ok(entries) => entries,
        // The witness knows the queue: then all its records are missing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(StoreError::io("list", dir)(error)),
    };
    for entry in entries.iter().filter(|entry| !entry.is_dir) {
        let path = dir.join(&entry.name);
        if entry.name.ends_with(".damaged") {
            walked.survey.set_aside.push(entry.name.clone());
        }
        let Some(id) = segment::parse_file_name(&entry.name) else { continue };
        let look = || look(disk, &path, id, cursors, walked.last, depth).map_err(StoreError::io("read", &path));
        let Some(mut segment) = look()? else { continue };
        for _ in 1..LOOKS_MAX {
            if segment.gaps.is_empty() {
                break;
            }
            let Some(again) = look()? else {
                segment = Segment::default();
                break;
            };
            let before = std::mem::replace(&mut segment, again);
            segment.gaps.retain(|gap| before.gaps.iter().any(|other| other.offset == gap.offset));
        }
        if segment.survey.segment.is_empty() {
            continue;
        }
        for (name, lag) in segment.lags {
            let sum = lags.entry(name).or_default();
            sum.lag_records += lag.lag_records;
            sum.lag_items += lag.lag_items;
            sum.lag_bytes += lag.lag_bytes;
            sum.oldest_unix_ns = sum.oldest_unix_ns.or(lag.oldest_unix_ns);
        }
        walked.last = segment.last.or(walked.last);
        walked.missing.extend(segment.missing);
        walked.survey.records += segment.survey.records;
        walked.survey.items += segment.survey.items;
        walked.survey.allocated_bytes += segment.survey.allocated_bytes;
        walked.survey.damage.extend(segment.gaps);
        walked.survey.segments.push(segment.survey);
    }
    walked.survey.next_sequence = walked.last.map_or(0, |last| last + 1);
    walked.survey.cursors = lags.into_values().collect();
    Ok(walked)
}

impl Walked {
    /// Of what was not met, what some cursor still needs is lost; holes were reported already, or never acknowledged.
    pub fn note_missing(&mut self, cursors: &BTreeMap<String, Cursor>, durable_end: u64, holes: &RangeSet) {
        let tail = self.last.map_or(0, |last| last + 1)..durable_end;
        if !tail.is_empty() {
            let segment = self.survey.segments.last().map_or_else(String::new, |segment| segment.segment.clone());
            self.missing.push((tail, segment));
        }
        let low = cursors.values().map(Cursor::low).min().unwrap_or(0);
        for (range, segment) in self.missing.drain(..).flat_map(|(range, segment)| {
            let unknown = holes.gaps(range.start.max(low)..range.end);
            unknown.into_iter().map(move |range| (range, segment.clone()))
        }) {
            if !range.is_empty() && !settled_by_all(cursors, &range) {
                self.survey.damage.push(Damage {
                    segment,
                    offset: 0,
                    bytes: 0,
                    sequences: Some((range.start, range.end)),
                    reason: "durable records are missing".to_owned(),
                });
            }
        }
    }
}

/// One look at one segment; None when it is no longer there.
fn look(
    disk: &Arc<dyn Disk>,
    path: &Path,
    id: u64,
    cursors: &BTreeMap<String, Cursor>,
    last: Option<u64>,
    depth: Depth,
) -> io::Result<Option<Segment>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let allocated_bytes = file.size()?;
    let mut found = Segment {
        survey: SegmentSurvey { segment: format!("{id:016x}"), allocated_bytes, ..SegmentSurvey::default() },
        last,
        ..Segment::default()
    };
    let damage = |offset, bytes, reason: &str| Damage {
        segment: format!("{id:016x}"),
        offset,
        bytes,
        sequences: None,
        reason: reason.to_owned(),
    };
    let identity = match Identity::read(file.as_ref(), id)? {
        HeaderPage::Valid(identity) if identity.id == id => identity,
        HeaderPage::Valid(_) => {
            found.gaps.push(damage(0, 0, "the file has the header of another segment"));
            return Ok(Some(found));
        }
        HeaderPage::UnknownVersion(version) => {
            found.gaps.push(damage(0, 0, &format!("its format is unknown (version {version})")));
            return Ok(Some(found));
        }
        HeaderPage::Damaged => {
            found.gaps.push(damage(0, RECORDS_START, "the segment's header is damaged; the catalogue may know it"));
            return Ok(Some(found));
        }
    };
    found.survey.used_bytes = RECORDS_START;
    let mut scanner = Scanner::new(file, identity, RECORDS_START, allocated_bytes);
    loop {
        if depth == Depth::Headers
            && let Some(header) = scanner.peek_header()?
            && scanner.offset() + header.record_len() <= allocated_bytes
        {
            scanner.hop(&header);
            found.take(&header, cursors);
            found.survey.used_bytes = scanner.offset();
            continue;
        }
        match scanner.step() {
            Ok(Step::Record(located, _)) => {
                found.take(&located.header, cursors);
                found.survey.used_bytes = scanner.offset();
            }
            Ok(Step::Gap(gap)) => found.gaps.push(damage(gap.offset, gap.len, "bytes that are no record")),
            Ok(Step::End) => return Ok(Some(found)),
            Err(error) => {
                let reason = format!("the disk could not read it: {error}");
                found.gaps.push(damage(scanner.offset(), 0, &reason));
                return Ok(Some(found));
            }
        }
    }
}

impl Segment {
    fn take(&mut self, header: &Header, cursors: &BTreeMap<String, Cursor>) {
        if header.previous != NO_PREVIOUS && self.last.is_none_or(|last| header.previous > last) {
            let from = self.last.map_or(0, |last| last + 1);
            self.missing.push((from..header.previous + 1, self.survey.segment.clone()));
        }
        self.last = Some(header.sequence);
        let survey = &mut self.survey;
        survey.records += 1;
        survey.items += u64::from(header.items);
        survey.first_sequence = survey.first_sequence.or(Some(header.sequence));
        survey.last_sequence = Some(header.sequence);
        for (name, _) in cursors.iter().filter(|(_, cursor)| !cursor.is_settled(header.sequence)) {
            let lag = self.lags.entry(name.clone()).or_default();
            lag.lag_records += 1;
            lag.lag_items += u64::from(header.items);
            lag.lag_bytes += header.record_len();
            lag.oldest_unix_ns = lag.oldest_unix_ns.or(Some(header.received_unix_ns));
        }
    }
}
