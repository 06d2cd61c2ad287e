//! Opening: which letters the files hold, and what is lost of them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::disk::{Disk, DiskFile};
use crate::storage::record::NO_PREVIOUS;
use crate::storage::salvage;
use crate::storage::segment::{self, Gap, HEADER_PAGE_LEN, HeaderPage, Identity, RECORDS_START, Scanner, Step};

use super::damage::{Damage, Loss};
use super::index::Index;
use super::seals::{self, SealRow, Seals};
use super::segments::{Kind, TEMPORARY_PREFIX, tombstone_ids};

/// What opening found.
#[derive(Debug, Default)]
pub struct Opened {
    /// What is lost, by segment.
    pub damage: Vec<Damage>,
}

/// What the files hold, found without changing them, and what is to be done to them.
#[derive(Default)]
pub(super) struct Look {
    pub index: Index,
    pub damage: Vec<Damage>,
    /// What the next segment may have at the least: a file that cannot be read is in no index, and must not be written
    /// over.
    next_id: u64,
    seals: BTreeMap<u64, SealRow>,
    /// Nothing in them can be read.
    useless: Vec<PathBuf>,
    headers: Vec<(PathBuf, Identity)>,
    found: Vec<Found>,
    tails: Vec<Tail>,
}

/// The end of a segment that was being written, or whose room was not given back.
struct Tail {
    id: u64,
    /// Of the last group: perhaps its sync never returned.
    unsure: Range<u64>,
}

/// What a segment is expected to hold once its damage is settled. What lies behind its seal was never confirmed.
struct Found {
    id: u64,
    end: u64,
    letters: u64,
    told: Vec<u64>,
}

/// One segment's records.
struct Contents {
    end: u64,
    /// Where the group of the last record began.
    last_group: u64,
    gaps: Vec<Gap>,
    /// What lies before this a later group stands behind.
    confirmed_end: u64,
    /// Records of letters that lie before what the seal tells of.
    letters: u64,
}

/// The id in a file's name, whatever stands around it: of a segment, one that was set aside, or one that was begun.
fn id_in(name: &str) -> Option<u64> {
    let name = name.strip_prefix(TEMPORARY_PREFIX).unwrap_or(name);
    name.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok())
}

fn at(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Looks at all segments and mends what a crash or damage left: the index, what there is to tell, and the id that the
/// next segment may have at the least. Unless it `settles` what is lost, that is told again the next time.
pub(super) fn recover(disk: &dyn Disk, dir: &Path, settles: bool) -> io::Result<(Index, Opened, u64)> {
    disk.create_dir(dir).map_err(at(dir))?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent).map_err(at(parent))?;
    }
    salvage::finish(disk, dir)?;
    for entry in disk.list(dir)?.iter().filter(|entry| !entry.is_dir && entry.name.starts_with(TEMPORARY_PREFIX)) {
        disk.remove(&dir.join(&entry.name))?;
    }
    let mut look = look(disk, dir)?;
    if settles {
        look.settle(disk)?;
    }
    look.mend(disk)?;
    let rows = look.index.seals();
    if rows != look.seals.into_values().collect::<Vec<_>>() {
        // Names that are found may not be durable: the process may have died before it synced them.
        disk.sync_dir(dir).map_err(at(dir))?;
        seals::write(disk, dir, rows)?;
    }
    Ok((look.index, Opened { damage: look.damage }, look.next_id))
}

/// Reads everything and changes nothing.
pub(super) fn look(disk: &dyn Disk, dir: &Path) -> io::Result<Look> {
    let seals = seals::read(disk, dir).map_err(at(&seals::path(dir)))?;
    let mut look = Look { next_id: 1, ..Look::default() };
    let mut ids = Vec::new();
    let entries = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(at(dir))?,
    };
    for entry in entries {
        look.next_id = look.next_id.max(id_in(&entry.name).and_then(segment::id_behind).unwrap_or(1));
        if !entry.is_dir {
            ids.extend(segment::parse_file_name(&entry.name));
        } else if entry.name.ends_with(".seg") {
            let path = dir.join(&entry.name);
            tracing::warn!(path = %path.display(), "a directory in the place of a dead-letter segment is left alone");
        }
    }
    match &seals {
        Seals::Known(_) => {}
        Seals::Absent if ids.is_empty() => {}
        Seals::Absent => tracing::info!(
            path = %seals::path(dir).display(), "what the dead-letter segments held is not known; what is found counts"
        ),
        Seals::Damaged => tracing::warn!(
            path = %seals::path(dir).display(),
            "the seals of the dead-letter segments are damaged and are made anew: what was lost with a whole file is not noticed this time"
        ),
    }
    look.seals = seals.into_rows();
    look.next_id = look.seals.keys().filter_map(|id| segment::id_behind(*id)).fold(look.next_id, u64::max);
    ids.sort_unstable();
    let newest = ids.last().copied();
    let mut losses = Vec::new();
    for id in &ids {
        let path = segment::path_in(dir, *id);
        let seal = look.seals.get(id).cloned();
        losses.extend(look.segment(disk, &path, *id, seal, Some(*id) == newest).map_err(at(&path))?);
    }
    for row in look.seals.values().filter(|row| !ids.contains(&row.id)) {
        let what = format!("{} is missing", segment::path_in(dir, row.id).display());
        losses.push(Loss { what, seal: Some(row.clone()), found: 0 });
    }
    // Also of those in which nothing can be read.
    look.index.missing =
        look.seals.values().filter(|row| !look.index.segments.contains_key(&row.id)).cloned().collect();
    look.damage = losses.into_iter().map(|loss| loss.weigh(&look.index)).collect();
    look.index.drop_orphans();
    Ok(look)
}

impl Look {
    /// Takes in what one file holds; what is lost of it, if something is.
    fn segment(
        &mut self,
        disk: &dyn Disk,
        path: &Path,
        id: u64,
        seal: Option<SealRow>,
        is_newest: bool,
    ) -> io::Result<Option<Loss>> {
        let file = disk.open(path)?;
        let whole = |what: String, seal| Some(Loss { what, seal, found: 0 });
        let known = seal.as_ref().and_then(SealRow::identity);
        let identity = match (Identity::read(file.as_ref(), id)?, known) {
            (HeaderPage::Valid(identity), _) if identity.id == id => identity,
            (HeaderPage::UnknownVersion(version), _) => {
                let message = format!("it has format {version}, which this version does not know");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            (HeaderPage::Valid(other), _) => {
                self.useless.push(path.to_owned());
                return Ok(whole(format!("{} is another segment, {:016x}", path.display(), other.id), seal));
            }
            // Both copies are damaged, but what they said is known.
            (HeaderPage::Damaged, Some(identity)) => {
                self.headers.push((path.to_owned(), identity));
                identity
            }
            (HeaderPage::Damaged, None) => {
                self.useless.push(path.to_owned());
                return Ok(whole(format!("{} has no valid header", path.display()), seal));
            }
        };
        // One of another life says nothing about this one.
        let seal = seal.filter(|row| row.is_sealed && row.nonce == identity.nonce);
        let allocated_bytes = file.size()?;
        self.index.add_segment(identity, Arc::clone(&file), allocated_bytes, allocated_bytes);
        let mut scanner = Scanner::new(Arc::clone(&file), identity, RECORDS_START, allocated_bytes);
        let found = read_segment(&mut scanner, &mut self.index, seal.as_ref())?;
        let Contents { end, ref gaps, letters, .. } = found;
        if let Some(row) = self.index.segments.get_mut(&id) {
            row.end = end;
            if let Some(seal) = &seal {
                row.expect(seal);
            }
        }
        self.found.push(Found {
            id,
            end: seal.as_ref().map_or(end, |seal| seal.end.min(end)),
            letters,
            told: gaps.iter().flat_map(|gap| [gap.offset, gap.len]).collect(),
        });
        let Some(seal) = seal else {
            return self.unsealed(path, id, &found, is_newest, file.as_ref(), allocated_bytes);
        };
        let is_news = |gap: &&Gap| gap.offset < seal.end && !seal.was_told(gap);
        let news: Vec<&Gap> = gaps.iter().filter(is_news).collect();
        let what = match (end < seal.end, news.as_slice()) {
            (false, []) => return Ok(None),
            (true, []) => format!("{} is damaged at byte {end}, {} bytes", path.display(), seal.end - end),
            (_, [gap, ..]) => places(path, gap, news.len() - 1 + usize::from(end < seal.end)),
        };
        Ok(Some(Loss { what, seal: Some(seal), found: letters }))
    }

    /// Of one that was being written, or was written before there were seals.
    fn unsealed(
        &mut self,
        path: &Path,
        id: u64,
        found: &Contents,
        is_newest: bool,
        file: &dyn DiskFile,
        allocated_bytes: u64,
    ) -> io::Result<Option<Loss>> {
        let end = found.end;
        let used = end.next_multiple_of(HEADER_PAGE_LEN);
        let is_blank = used >= allocated_bytes || is_zero(file, end, allocated_bytes)?;
        let loss = |what| Ok(Some(Loss { what, seal: None, found: 0 }));
        if !is_newest && !is_blank {
            return loss(format!("{} is damaged from byte {end} on", path.display()));
        }
        if !is_blank {
            tracing::warn!(
                segment = %path.display(), byte = end,
                "the end of the dead letters is no whole letter and is cut off: a write that a crash broke off, or damage"
            );
        }
        // What was allocated and never written, or never confirmed.
        self.tails.push(Tail { id, unsure: found.last_group..end });
        let mut confirmed = found.gaps.iter().filter(|gap| gap.offset < found.confirmed_end);
        match confirmed.next() {
            None => Ok(None),
            Some(first) => loss(places(path, first, confirmed.count())),
        }
    }

    /// What is told is not told again, and what was found is expected from now on.
    fn settle(&mut self, disk: &dyn Disk) -> io::Result<()> {
        for path in &self.useless {
            // Nothing is read from it any more; somebody may want to look into it.
            let aside = segment::set_aside(disk, path)?;
            tracing::warn!(path = %aside.display(), "a dead-letter segment in which nothing can be read was set aside");
        }
        self.index.missing.clear();
        for Found { id, end, letters, told } in std::mem::take(&mut self.found) {
            if let Some(row) = self.index.segments.get_mut(&id) {
                row.seal_at(end, letters);
                (row.told, row.is_sealed) = (told, true);
            }
        }
        Ok(())
    }

    fn mend(&mut self, disk: &dyn Disk) -> io::Result<()> {
        for (path, identity) in &self.headers {
            let file = disk.open(path)?;
            file.write_all_at(&mut [io::IoSlice::new(&identity.encode())], 0).map_err(at(path))?;
            file.sync_data().map_err(at(path))?;
            tracing::warn!(path = %path.display(), "the header of a dead-letter segment was damaged and was written anew");
        }
        for Tail { id, unsure } in std::mem::take(&mut self.tails) {
            let Some(segment) = self.index.segments.get_mut(&id) else { continue };
            let used = segment.end.next_multiple_of(HEADER_PAGE_LEN);
            if used < segment.allocated_bytes {
                segment.file.set_len(used)?;
                segment.allocated_bytes = used;
            }
            // It is expected from now on, and so must be durable.
            crate::storage::recovery::rewrite(segment.file.as_ref(), unsure)?;
            segment.file.sync_data()?;
        }
        Ok(())
    }
}

fn places(path: &Path, first: &Gap, more: usize) -> String {
    let Gap { offset, len } = first;
    match more {
        0 => format!("{} is damaged at byte {offset}, {len} bytes", path.display()),
        more => format!("{} is damaged at byte {offset}, {len} bytes, and at {more} more places", path.display()),
    }
}

/// Takes the records in, checking each.
fn read_segment(scanner: &mut Scanner, index: &mut Index, seal: Option<&SealRow>) -> io::Result<Contents> {
    let mut found = Contents {
        end: RECORDS_START,
        last_group: RECORDS_START,
        gaps: Vec::new(),
        confirmed_end: RECORDS_START,
        letters: 0,
    };
    loop {
        match scanner.step()? {
            Step::Record(located, record) => {
                // Of a group whose sync never returned any part may be missing. What a later group stands behind was
                // confirmed: its loss is damage.
                let confirmed = located.header.durable_end;
                found.confirmed_end = found.confirmed_end.max(confirmed);
                found.end = scanner.offset();
                found.last_group = confirmed.clamp(RECORDS_START, found.end);
                debug_assert_ne!(located.header.previous, NO_PREVIOUS);
                let kind = Kind::of(&located.header);
                if kind == Some(Kind::Letter) && seal.is_none_or(|seal| located.offset < seal.end) {
                    found.letters += 1;
                }
                let ended = if kind == Some(Kind::Tombstone) { tombstone_ids(&record.metadata) } else { Vec::new() };
                index.take(&located.header, located.offset, &ended);
            }
            Step::Gap(gap) => found.gaps.push(gap),
            // Nothing after it is whole: the end, or a write that was never confirmed.
            Step::End => return Ok(found),
        }
    }
}

fn is_zero(file: &dyn DiskFile, mut at: u64, end: u64) -> io::Result<bool> {
    let mut chunk = vec![0; 64 << 10];
    while at < end {
        let read = file.read_at(&mut chunk, at)?;
        if chunk[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        if read == 0 {
            break;
        }
        at += read as u64;
    }
    Ok(true)
}
