//! Walking one queue's segments without keeping them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
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
    gaps: Vec<Gap>,
    last: Option<u64>,
}

/// Bytes that are no record, and the sequences that may have been there; empty where nothing tells.
#[derive(Debug)]
struct Gap {
    damage: Damage,
    sequences: Range<u64>,
}

#[derive(Default)]
struct Segment {
    survey: SegmentSurvey,
    lags: BTreeMap<String, CursorSurvey>,
    gaps: Vec<Gap>,
    missing: Vec<(Range<u64>, String)>,
    last: Option<u64>,
}

/// A segment that was looked at, and may be once more when the next one says that something is missing.
struct Looked {
    path: PathBuf,
    id: u64,
    /// The last sequence before it.
    last: Option<u64>,
    segment: Segment,
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
    let mut before: Option<Looked> = None;
    for entry in entries.iter().filter(|entry| !entry.is_dir) {
        let path = dir.join(&entry.name);
        if entry.name.ends_with(".damaged") {
            walked.survey.set_aside.push(entry.name.clone());
        }
        let Some(id) = segment::parse_file_name(&entry.name) else { continue };
        let look = |path: &Path, id, last| look_twice(|| look(disk, path, id, cursors, last, depth), path);
        let mut last = before.as_ref().and_then(|before| before.segment.last);
        let Some(mut segment) = look(&path, id, last)? else { continue };
        for _ in 1..LOOKS_MAX {
            let (false, Some(before)) = (segment.missing.is_empty(), &mut before) else { break };
            // Its owner may have gone on in the segment before this one after we had been there.
            let Some(again) = look(&before.path, before.id, before.last)? else { break };
            before.segment = again;
            last = before.segment.last;
            let Some(again) = look(&path, id, last)? else { break };
            segment = again;
        }
        if let Some(before) = before.replace(Looked { path, id, last, segment }) {
            walked.take(before.segment, &mut lags);
        }
    }
    if let Some(before) = before {
        walked.take(before.segment, &mut lags);
    }
    walked.survey.next_sequence = walked.last.map_or(0, |last| last + 1);
    walked.survey.cursors = lags.into_values().collect();
    Ok(walked)
}

impl Walked {
    fn take(&mut self, segment: Segment, lags: &mut BTreeMap<String, CursorSurvey>) {
        for (name, lag) in segment.lags {
            let sum = lags.entry(name).or_default();
            sum.lag_records += lag.lag_records;
            sum.lag_items += lag.lag_items;
            sum.lag_bytes += lag.lag_bytes;
            sum.oldest_unix_ns = sum.oldest_unix_ns.or(lag.oldest_unix_ns);
        }
        self.last = segment.last.or(self.last);
        self.missing.extend(segment.missing);
        self.survey.records += segment.survey.records;
        self.survey.items += segment.survey.items;
        self.survey.allocated_bytes += segment.survey.allocated_bytes;
        self.gaps.extend(segment.gaps);
        self.survey.segments.push(segment.survey);
    }

    /// Of what was not met, what some cursor still needs is lost; holes were reported already, or never acknowledged.
    /// Without cursors (nobody reads it, or there is no witness) what was given back and what was lost look the same.
    pub fn note_missing(&mut self, cursors: &BTreeMap<String, Cursor>, durable_end: u64, holes: &RangeSet) {
        let gaps = self.gaps.drain(..);
        let Some(low) = cursors.values().map(Cursor::low).min() else {
            self.survey.damage.extend(gaps.map(|gap| gap.damage));
            return;
        };
        // What `repair` has settled stays where it lies, and is no news.
        let is_settled = |range: &Range<u64>| {
            let mut open = holes.gaps(range.start.max(low)..range.end).into_iter();
            open.all(|part| part.is_empty() || settled_by_all(cursors, &part))
        };
        let news = gaps.filter(|gap| gap.sequences.is_empty() || !is_settled(&gap.sequences));
        self.survey.damage.extend(news.map(|gap| gap.damage));
        let tail = self.last.map_or(0, |last| last + 1)..durable_end;
        if !tail.is_empty() {
            let segment = self.survey.segments.last().map_or_else(String::new, |segment| segment.segment.clone());
            self.missing.push((tail, segment));
        }
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

/// Looks again at what seems damaged; what was seen once only was being written. None when it is no longer there.
fn look_twice(look: impl Fn() -> io::Result<Option<Segment>>, path: &Path) -> Result<Option<Segment>, StoreError> {
    let look = || look().map_err(StoreError::io("read", path));
    let Some(mut segment) = look()? else { return Ok(None) };
    for _ in 1..LOOKS_MAX {
        if segment.gaps.is_empty() {
            break;
        }
        let Some(again) = look()? else { return Ok(None) };
        let before = std::mem::replace(&mut segment, again);
        segment.gaps.retain(|gap| before.gaps.iter().any(|other| other.damage.offset == gap.damage.offset));
    }
    Ok(Some(segment))
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
    let damage = |offset, bytes, reason: &str| Gap {
        damage: Damage { segment: format!("{id:016x}"), offset, bytes, sequences: None, reason: reason.to_owned() },
        sequences: 0..0,
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
        let behind_last = self.last.map_or(0, |last| last + 1);
        if let Some(gap) = self.gaps.last_mut().filter(|gap| gap.damage.offset >= self.survey.used_bytes) {
            gap.sequences = behind_last..header.sequence;
        }
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
