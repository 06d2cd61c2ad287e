//! One segment file: its header page, and the scan that finds the records in it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
#[cfg(test)]
use super::mutant::{self, Mutant};
use super::record::{self, ALIGN, HEADER_LEN, Header, NonceSeed, PAYLOAD_LEN_MAX, Record};

/// The header has a page of its own, and a second one with the same in it.
pub const HEADER_PAGE_LEN: u64 = 4096;
/// Records start behind both.
pub const RECORDS_START: u64 = 2 * HEADER_PAGE_LEN;
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"FOREBAYS";
const HEADER_USED_LEN: usize = 60;
/// Bytes read at once while scanning. A longer record is read alone: others in the same memory would keep it when it is
/// settled, and a chunk that ends inside a record is read twice.
const CHUNK_LEN: usize = 64 << 10;

/// What identifies one life of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub id: u64,
    pub nonce: [u8; 16],
    /// No record in this segment has a lower sequence.
    pub sequence_floor: u64,
}

/// What the first page of a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum HeaderPage {
    Valid(Identity),
    /// Ours, but of a format that this version does not know.
    UnknownVersion(u32),
    Damaged,
}

impl Identity {
    pub fn seed(&self) -> NonceSeed {
        NonceSeed::new(&self.nonce)
    }

    /// Both header pages.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; HEADER_PAGE_LEN as usize];
        page[0..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[16..24].copy_from_slice(&self.id.to_le_bytes());
        page[24..40].copy_from_slice(&self.nonce);
        page[40..48].copy_from_slice(&self.sequence_floor.to_le_bytes());
        let check = crc32c::crc32c(&page[..56]);
        page[56..60].copy_from_slice(&check.to_le_bytes());
        page.repeat(2)
    }

    /// The header of the file of that name: of its two copies one that is whole, rather one that fits the name. A copy
    /// that cannot be read is no worse than a damaged one while the other can.
    pub fn read(file: &dyn DiskFile, name_id: u64) -> io::Result<HeaderPage> {
        let read_page = |offset| {
            let mut page = vec![0; HEADER_PAGE_LEN as usize];
            let read = file.read_at(&mut page, offset)?;
            Ok(Identity::decode(&page[..read]))
        };
        let (first, second): (io::Result<_>, io::Result<_>) = (read_page(0), read_page(HEADER_PAGE_LEN));
        let fits = |page: &io::Result<HeaderPage>| matches!(page, Ok(HeaderPage::Valid(found)) if found.id == name_id);
        let is_valid = |page: &io::Result<HeaderPage>| matches!(page, Ok(HeaderPage::Valid(_)));
        // Its check is right, so it is no damage.
        let is_unknown = |page: &io::Result<HeaderPage>| matches!(page, Ok(HeaderPage::UnknownVersion(_)));
        if is_unknown(&first) {
            return first;
        }
        if is_unknown(&second) || fits(&second) && !fits(&first) || is_valid(&second) && !is_valid(&first) {
            return second;
        }
        match (first, second) {
            // Nobody knows what stands there.
            (Ok(HeaderPage::Damaged), Err(error)) => Err(error),
            (first, _) => first,
        }
    }

    pub fn decode(page: &[u8]) -> HeaderPage {
        let Some(page) = page.get(..HEADER_USED_LEN) else { return HeaderPage::Damaged };
        let u32_at = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if page[0..8] != MAGIC || crc32c::crc32c(&page[..56]) != u32_at(56) {
            return HeaderPage::Damaged;
        }
        if u32_at(8) != FORMAT_VERSION {
            return HeaderPage::UnknownVersion(u32_at(8));
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&page[24..40]);
        HeaderPage::Valid(Identity { id: u64_at(16), nonce, sequence_floor: u64_at(40) })
    }
}

/// `0000000000000042.seg`: ids are hexadecimal, so names sort as they were made.
pub fn file_name(id: u64) -> String {
    format!("{id:016x}.seg")
}

/// So many segments there never are: a file of a greater id is none of ours, and no id may come near the end of numbers.
pub const ID_MAX: u64 = u64::MAX / 2;

/// New ids follow those that are found, but none that is greater: damage and strangers must not use ids up.
const ID_FOLLOWED_MAX: u64 = ID_MAX - (1 << 32);

/// The id that may be given out where this one was found.
pub fn id_behind(found: u64) -> Option<u64> {
    (found <= ID_FOLLOWED_MAX).then_some(found + 1)
}

pub fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let id = (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    id.filter(|id| *id <= ID_MAX)
}

/// Of a segment that was set aside.
pub fn parse_aside_name(name: &str) -> Option<u64> {
    name.find(".damaged").and_then(|end| parse_file_name(&name[..end]))
}

/// Names that one file's copies may take when they are set aside.
const ASIDE_MAX: u32 = 1000;

/// Puts a file away under a name of its own, where nobody reads it and nothing is written over it.
pub fn set_aside(disk: &dyn Disk, path: &Path) -> io::Result<PathBuf> {
    for n in 0..ASIDE_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(if n == 0 { ".damaged".to_owned() } else { format!(".damaged.{n}") });
        let aside = PathBuf::from(name);
        match disk.rename_new(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            renamed => return renamed.map(|()| aside),
        }
    }
    Err(io::Error::other("too many files of that name were set aside; look into them and remove some"))
}

pub fn path_in(dir: &Path, id: u64) -> PathBuf {
    dir.join(file_name(id))
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    pub offset: u64,
    pub header: Header,
}

/// A stretch of bytes that is no record, with records (or the known end) behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub offset: u64,
    pub len: u64,
}

/// What a scan of a whole segment found.
#[derive(Debug, Default)]
pub struct ScanResult {
    pub records: Vec<Located>,
    pub gaps: Vec<Gap>,
    /// End of the last whole record.
    pub valid_end: u64,
}

/// Reads a file in chunks, keeping one chunk in memory.
struct Window {
    file: Arc<dyn DiskFile>,
    start: u64,
    bytes: Bytes,
}

impl Window {
    fn new(file: Arc<dyn DiskFile>) -> Window {
        Window { file, start: 0, bytes: Bytes::new() }
    }

    /// The `len` bytes at `offset`, or fewer at the end of the file.
    fn get(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let within = offset.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        if let Some(at) = within
            && at + len <= self.bytes.len()
        {
            return Ok(self.bytes.slice(at..at + len));
        }
        // With the next header behind a long record, the next read is of one whole record again.
        let wanted = if len > CHUNK_LEN { len + HEADER_LEN } else { CHUNK_LEN };
        let read = match self.file.read(wanted, offset) {
            // What lies before a place that cannot be read is read without it.
            Err(_) if len < wanted => self.file.read(len, offset),
            read => read,
        };
        self.bytes = Bytes::from(read?);
        self.start = offset;
        Ok(self.bytes.slice(..len.min(self.bytes.len())))
    }

    /// What is in memory from `offset` on, or else the next chunk.
    fn rest(&mut self, offset: u64) -> io::Result<Bytes> {
        let within = offset.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        match within {
            Some(at) if at + ALIGN as usize <= self.bytes.len() => Ok(self.bytes.slice(at..)),
            _ => self.get(offset, CHUNK_LEN),
        }
    }
}

/// Walks the records of a segment one by one, resynchronising behind damage on the nonce and rising sequences.
pub struct Scanner {
    identity: Identity,
    seed: NonceSeed,
    window: Window,
    offset: u64,
    end: u64,
    last_sequence: Option<u64>,
}

/// One step of a [`Scanner`].
pub enum Step {
    Record(Located, Record),
    /// Bytes that are no record; a whole one follows.
    Gap(Gap),
    /// Nothing valid from here to the end.
    End,
}

impl Scanner {
    /// Scans from `offset` (a record boundary, or [`RECORDS_START`]) up to `end`.
    pub fn new(file: Arc<dyn DiskFile>, identity: Identity, offset: u64, end: u64) -> Scanner {
        Scanner { seed: identity.seed(), identity, window: Window::new(file), offset, end, last_sequence: None }
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The header at the present offset alone, to hop over records that nobody wants.
    pub fn peek_header(&mut self) -> io::Result<Option<Header>> {
        let bytes = self.window.get(self.offset, HEADER_LEN)?;
        Ok(Header::decode(&bytes, self.identity.id, self.seed))
    }

    /// Steps over the record that [`Scanner::peek_header`] showed.
    pub fn hop(&mut self, header: &Header) {
        self.offset += header.record_len();
        self.last_sequence = Some(header.sequence);
    }

    /// The header of the next record, whose payload is not read where its header is whole. None: the end.
    pub fn next_header(&mut self) -> io::Result<Option<Header>> {
        loop {
            if let Some(header) = self.peek_header()? {
                self.hop(&header);
                return Ok(Some(header));
            }
            match self.step()? {
                Step::Record(located, _) => return Ok(Some(located.header)),
                Step::Gap(_) => {}
                Step::End => return Ok(None),
            }
        }
    }

    pub fn step(&mut self) -> io::Result<Step> {
        if let Some((located, record)) = self.record_at(self.offset)? {
            self.offset += located.header.record_len();
            self.last_sequence = Some(located.header.sequence);
            return Ok(Step::Record(located, record));
        }
        let start = self.offset;
        let mut at = start + ALIGN;
        while let Some(candidate) = self.find_magic(at)? {
            if self.record_at(candidate)?.is_some() {
                self.offset = candidate;
                return Ok(Step::Gap(Gap { offset: start, len: candidate - start }));
            }
            at = candidate + ALIGN;
        }
        Ok(Step::End)
    }

    /// The first record boundary from `at` on that begins with a record's magic number.
    fn find_magic(&mut self, mut at: u64) -> io::Result<Option<u64>> {
        while at + HEADER_LEN as u64 <= self.end {
            // Not a chunk from `at` on each time: a client may have filled a payload with the magic number.
            let chunk = self.window.rest(at)?;
            if let Some(index) = chunk.chunks_exact(ALIGN as usize).position(|word| word[..4] == record::MAGIC) {
                let found = at + index as u64 * ALIGN;
                return Ok(Some(found).filter(|found| found + HEADER_LEN as u64 <= self.end));
            }
            at += (chunk.len() as u64).max(ALIGN) / ALIGN * ALIGN;
        }
        Ok(None)
    }

    fn record_at(&mut self, offset: u64) -> io::Result<Option<(Located, Record)>> {
        if offset + HEADER_LEN as u64 > self.end {
            return Ok(None);
        }
        let head = self.window.get(offset, HEADER_LEN)?;
        let Some(header) = Header::decode(&head, self.identity.id, self.seed) else { return Ok(None) };
        let floor = self.identity.sequence_floor;
        #[cfg(test)]
        let floor = if mutant::is_on(Mutant::StaleRecord) { 0 } else { floor };
        let rises = self.last_sequence.is_none_or(|last| header.sequence > last) && header.sequence >= floor;
        let len = header.record_len();
        if !rises || u64::from(header.stored_len) > PAYLOAD_LEN_MAX || offset + len > self.end {
            return Ok(None);
        }
        let whole = self.window.get(offset, len as usize)?;
        Ok(record::decode(&whole, self.identity.id, self.seed)
            .map(|(header, record)| (Located { offset, header }, record)))
    }
}

/// Scans the whole segment without keeping payloads. A read that fails is an error, not damage: nobody knows what is
/// there.
pub fn scan_all(file: &Arc<dyn DiskFile>, identity: Identity) -> io::Result<ScanResult> {
    let end = file.size()?;
    let mut scanner = Scanner::new(Arc::clone(file), identity, RECORDS_START, end);
    let mut result = ScanResult { valid_end: RECORDS_START, ..ScanResult::default() };
    loop {
        match scanner.step()? {
            Step::Record(located, _) => {
                result.valid_end = scanner.offset();
                result.records.push(located);
            }
            Step::Gap(gap) => result.gaps.push(gap),
            Step::End => return Ok(result),
        }
    }
}
