//! One file of the durable log: its bytes, and how it is read after any damage.
//!
//! A [`Scan`] goes from one whole record of a segment to the next. It writes nothing, and reports
//! damage instead of failing. The format follows.
#![cfg_attr(doc, doc = include_str!("../../../docs/internals/spool-format.md"))]

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use base::disk::{Disk, File, SEGMENTS};
use base::position::Position;
use base::release::Format;

/// A group (records that are acknowledged together) starts at a multiple of this many bytes.
pub(crate) const BLOCK: u64 = 4096;

/// The size of a sector in bytes. A disk writes, or loses, a sector as a whole.
const SECTOR: u64 = 512;

pub(super) const FIRST_RECORD: u64 = BLOCK;

pub(super) const RECORD_HEADER: u64 = 64;

const RECORD_HEADER_LENGTH: usize = 64;

/// The size of a segment's header in bytes. Zeros follow it, up to the first record.
pub(super) const SEGMENT_HEADER: usize = 48;

pub(crate) const VERSION: u32 = 2;

/// The format version whose checksums do not depend on the segment. It is read, and never written.
const UNSEEDED: u32 = 1;

pub(crate) const FORMAT: Format =
    Format { name: "queue segments", reads: &[UNSEEDED, VERSION], writes: VERSION };

/// The flag in a segment's header that says that the file was another segment before.
const REUSED: u32 = 1;

// No event can contain these bytes: UTF-8 has no byte 0xFF, and JSON has no byte 0.
const SEGMENT_MAGIC: [u8; 8] = *b"\xFFKAFSEG\0";
const RECORD_MAGIC: [u8; 8] = *b"\xFFKAFREC\0";

/// The usual number of bytes that a scan reads in one step and keeps in memory ([`Scan::ahead`]).
pub(crate) const WINDOW: u64 = 1 << 20;

/// The number of bytes in each step of a search, or of a checksum over a long record.
const STEP: usize = if cfg!(test) { 2 << 10 } else { 256 << 10 };

/// The smallest run of zeros that shows an unwritten sector: a single zero may be damage.
const ZEROS_MIN: u64 = 2;

pub(crate) const READS: u32 = 3;

pub(crate) fn file_name(first: Position) -> String {
    format!("{SEGMENTS}/{first:020}.seg")
}

/// Returns the first position in a segment's file name, or `None` for another name.
pub(super) fn position_of(name: &str) -> Option<Position> {
    let digits = name.strip_suffix(".seg")?;
    let all = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().ok().map(Position::new)).flatten()
}

pub(crate) fn list(disk: &dyn Disk) -> io::Result<Vec<Position>> {
    let names = disk.list(SEGMENTS)?;
    let mut positions: Vec<Position> = names.iter().filter_map(|name| position_of(name)).collect();
    positions.sort_unstable();
    Ok(positions)
}

/// Returns the number at the offset `at`; 0 if there are too few bytes.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    field.map_or(0, u64::from_le_bytes)
}

/// A place in the log: how many events are before it, and how many bytes their lines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub(super) struct LogOffset {
    pub position: Position,
    pub byte: u64,
}

/// The start value of the checksums of a segment's records. Two segments nearly always have
/// different ones, so that a record of another segment is invalid.
///
/// Such records exist because the file of a finished segment is reused for a later segment. Until
/// the file is overwritten, its end holds records of the finished segment, at lower positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seed(u32);

impl Seed {
    /// The seed of segments of format version 1, whose files were never reused.
    pub(crate) const NONE: Self = Self(0);

    /// Returns the seed of the segment that begins at `first`. Two segments can have the same seed
    /// only if the upper 32 bits of their first positions differ, as those of 5 and 2^32 + 4 do. An
    /// old record then shows its age by its low position.
    #[allow(clippy::cast_possible_truncation, reason = "both halves of the number are used")]
    pub(crate) fn of(first: Position) -> Self {
        Self(first.get() as u32 ^ (first.get() >> 32) as u32)
    }

    pub(super) fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }

    /// Returns the start value of a checksum that is computed in parts.
    pub(crate) fn start(self) -> u32 {
        self.0
    }

    /// Returns the seed of a segment, and `true` if its file may have been reused.
    pub(crate) fn of_file(
        header: Option<SegmentHeader>,
        file: &dyn File,
        first: Position,
    ) -> (Self, bool) {
        header.map(|header| (header.seed(), header.reused)).unwrap_or_else(|| {
            let seed = Self::guess(file, first);
            (seed, seed != Self::NONE)
        })
    }

    /// Returns the seed with which at least one record header is valid, for a segment with a
    /// damaged header. Without such a record, returns the seed of the newest format.
    fn guess(file: &dyn File, first: Position) -> Self {
        let begin = (FIRST_RECORD, first);
        let has_records = |seed| {
            let limit = Position::MAX;
            let mut scan = Scan::new(file, seed, begin, u64::MAX, limit, Check::Headers);
            std::iter::from_fn(|| scan.next()).any(|found| matches!(found, Found::Record(_)))
        };
        let newest = Self::of(first);
        if !has_records(newest) && has_records(Self::NONE) { Self::NONE } else { newest }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// The format version: 1 or 2.
    pub version: u32,
    /// `true` if the file was another segment before, and may still hold bytes of that segment.
    pub reused: bool,
    pub first: Position,
    /// The number of bytes of all lines in the log before this segment.
    pub(super) first_byte: u64,
    /// The time when the segment was made, in ms since 1970.
    pub made: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// The header is damaged.
    Damaged,
    /// The header is whole, and its position is not that of the file name.
    Misnamed,
    /// A newer version of the program has written the header, with this format version.
    Newer(u32),
}

impl SegmentHeader {
    pub(crate) fn new(begin: LogOffset, made: u64, reused: bool) -> Self {
        let (first, first_byte) = (begin.position, begin.byte);
        Self { version: VERSION, reused, first, first_byte, made }
    }

    pub(crate) fn seed(self) -> Seed {
        if self.version == UNSEEDED { Seed::NONE } else { Seed::of(self.first) }
    }

    pub(crate) fn encode(self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&(u32::from(self.reused) * REUSED).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.get().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_byte.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.made.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let checks = bytes.len() >= SEGMENT_HEADER
            && bytes.starts_with(&SEGMENT_MAGIC)
            && u32_at(bytes, 44) == crc32c::crc32c(&bytes[..44]);
        match (checks, u32_at(bytes, 8)) {
            (false, _) | (true, 0) => Err(BadHeader::Damaged),
            (true, version @ (UNSEEDED | VERSION)) => Ok(Self {
                version,
                reused: u32_at(bytes, 12) & REUSED != 0,
                first: Position::new(u64_at(bytes, 16)),
                first_byte: u64_at(bytes, 24),
                made: u64_at(bytes, 32),
            }),
            (true, newer) => Err(BadHeader::Newer(newer)),
        }
    }

    /// Reads a segment's header. If the header can't be read, it is damaged.
    pub(crate) fn read(file: &dyn File, first: Position) -> Result<Self, BadHeader> {
        let mut bytes = [0; SEGMENT_HEADER];
        (0..READS).any(|_| file.read_at(&mut bytes, 0).is_ok());
        let header = Self::decode(&bytes)?;
        if header.first == first { Ok(header) } else { Err(BadHeader::Misnamed) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub first: Position,
    /// The number of bytes of all lines in the log before this record.
    pub(super) first_byte: u64,
    /// The time when the batch was received, in ms since 1970.
    pub received: u64,
    /// The number of bytes of the lines.
    pub length: u64,
    /// The number of events, at least 1.
    pub events: u64,
    /// The first position of the record's group.
    pub group: Position,
    /// The CRC-32C of the lines, with the segment's seed.
    pub(super) crc: u32,
}

impl RecordHeader {
    pub(crate) fn end(&self) -> Position {
        self.first + self.events
    }

    pub(super) fn end_byte(&self) -> u64 {
        self.first_byte + self.length
    }

    pub(super) fn end_place(&self) -> LogOffset {
        LogOffset { position: self.end(), byte: self.end_byte() }
    }

    pub(crate) fn size(&self) -> u64 {
        RECORD_HEADER + self.length
    }

    pub(crate) fn encode(&self, seed: Seed) -> [u8; RECORD_HEADER_LENGTH] {
        let mut bytes = [0; RECORD_HEADER_LENGTH];
        bytes[..8].copy_from_slice(&RECORD_MAGIC);
        let fields = [
            self.first.get(),
            self.first_byte,
            self.received,
            self.length,
            self.events,
            self.group.get(),
        ];
        for (field, value) in bytes[8..56].chunks_exact_mut(8).zip(fields) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes[56..60].copy_from_slice(&self.crc.to_le_bytes());
        let crc = seed.crc(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER_LENGTH)?;
        if !bytes.starts_with(&RECORD_MAGIC) || u32_at(bytes, 60) != seed.crc(&bytes[..60]) {
            return None;
        }
        let header = Self {
            first: Position::new(u64_at(bytes, 8)),
            first_byte: u64_at(bytes, 16),
            received: u64_at(bytes, 24),
            length: u64_at(bytes, 32),
            events: u64_at(bytes, 40),
            group: Position::new(u64_at(bytes, 48)),
            crc: u32_at(bytes, 56),
        };
        // A forged record may have a correct checksum. These limits ensure that no sum overflows.
        let sane = header.events > 0
            && header.length >= header.events
            && header.group <= header.first
            && [header.first.get(), header.first_byte].iter().all(|number| *number < 1 << 62)
            && header.length < 1 << 62;
        sane.then_some(header)
    }
}

/// The parts of a record that a scan reads and verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    Headers,
    Lines,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Record(Record),
    Damage(Damage),
}

/// A record with a valid checksum of the header and, if the scan verifies lines, of the lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The offset of the header in the file.
    pub offset: u64,
    pub header: RecordHeader,
    /// `None` if the scan reads only headers, or if the lines are too long for memory.
    /// [`Scan::read_lines`] reads long lines in parts.
    pub lines: Option<Bytes>,
}

/// Bytes of a segment that are neither a valid record nor padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The offsets in the file.
    pub bytes: Range<u64>,
    /// The number of events: from the record's header if it is valid, otherwise the number of line
    /// breaks after the first 64 bytes (the size of a header).
    pub events: u64,
    /// The number of bytes of lines: from the record's header if it is valid, otherwise all bytes
    /// after the first 64.
    pub lines: u64,
    /// `true` if the bytes look like a write that was interrupted before its sync: there are
    /// sectors of zeros, or the end of the record is missing.
    pub torn: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentFile<'a> {
    pub file: &'a dyn File,
    pub first: Position,
    pub seed: Seed,
    /// `true` if the file may have bytes of an earlier segment after the last record.
    pub reused: bool,
    /// The offset in the file at which reading stops.
    pub size: u64,
    /// The first position that does not belong to the segment. Records from there on were never
    /// acknowledged: their positions belong to the next segment, or to one that was dropped.
    pub limit: Position,
}

impl<'a> SegmentFile<'a> {
    /// Makes a scan that begins at this offset, where the record with this position is expected.
    pub(crate) fn scan(&self, begin: (u64, Position), check: Check) -> Scan<'a> {
        Scan::new(self.file, self.seed, begin, self.size, self.limit, check)
    }
}

/// The reader of a segment file, which goes from record to record.
///
/// At each offset it expects a record with a certain position:
///
/// - A valid record is returned, and the scan continues after it.
/// - Zeros up to the next block of 4,096 bytes are padding, and are skipped.
/// - A record with a valid header and wrong lines or positions is returned as damage.
/// - Otherwise the scan searches for the next valid header, and returns the bytes before it as
///   damage, usually without zeros at their end.
///
/// The scan ends at the end of the file, at a given offset, or at a record of the next segment. A
/// part of the file is in memory (the window), and returned lines share it without a copy. Bytes
/// that can't be read are treated as zeros, but count as damage and never as an unfinished write.
///
/// Invariant: the positions of the returned records rise. A record must never be returned if a
/// checksum that the scan verifies is wrong.
pub(crate) struct Scan<'a> {
    file: &'a dyn File,
    seed: Seed,
    window: Bytes,
    window_at: u64,
    /// The number of bytes that one step reads if lines are verified, in addition to a block. The
    /// lines of a longer record are verified in parts, and are not kept in memory.
    ahead: u64,
    at: u64,
    end: u64,
    /// The first position of the next segment, at which the scan ends.
    limit: Position,
    /// The expected position of the next record.
    next: Position,
    check: Check,
    /// The offsets of the blocks that could not be read and are treated as zeros.
    unreadable: BTreeSet<u64>,
}

impl<'a> Scan<'a> {
    /// Makes a scan from the offset `at`, where the record with the position `next` is expected, to
    /// the offset `end` or the end of the file. `limit` is the first position of the next segment.
    pub(crate) fn new(
        file: &'a dyn File,
        seed: Seed,
        (at, next): (u64, Position),
        end: u64,
        limit: Position,
        check: Check,
    ) -> Self {
        // If the length is unknown, reads fail too. The scan ends at `end` or, without one, where
        // it begins.
        let unknown = if end == u64::MAX { at } else { end };
        let end = file.bytes().map_or(unknown, |bytes| bytes.min(end));
        Self {
            file,
            seed,
            window: Bytes::new(),
            window_at: 0,
            ahead: WINDOW,
            at,
            end,
            limit,
            next,
            check,
            unreadable: BTreeSet::new(),
        }
    }

    /// Returns `true` if the scan has met no unreadable byte so far.
    pub(super) fn has_read_all(&self) -> bool {
        self.unreadable.is_empty()
    }

    /// Returns `false` if one of these bytes is known to be unreadable.
    pub(super) fn has_read(&self, bytes: &Range<u64>) -> bool {
        self.unreadable_end(bytes).is_none()
    }

    pub(crate) fn seed(&self) -> Seed {
        self.seed
    }

    pub(crate) fn offset(&self) -> u64 {
        self.at
    }

    /// Returns the position after the last record that was found; before the first one, the
    /// position at which the scan begins.
    pub(crate) fn position(&self) -> Position {
        self.next
    }

    pub(crate) fn ahead(mut self, bytes: u64) -> Self {
        self.ahead = bytes;
        self
    }

    /// Returns `true` if the whole next record is in memory already.
    pub(crate) fn is_ahead(&self) -> bool {
        let end = self.window_at + self.window.len() as u64;
        let inside = |at: u64| {
            let from = usize::try_from(at.checked_sub(self.window_at)?).ok()?;
            let header = RecordHeader::decode(self.window.get(from..)?, self.seed)?;
            Some(at + header.size() <= end)
        };
        inside(self.at).or_else(|| inside(self.at.next_multiple_of(BLOCK))).unwrap_or(false)
    }

    /// Returns the next record, or the damage in its place. `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Found> {
        loop {
            if self.at >= self.end || self.next >= self.limit {
                self.at = self.end;
                return None;
            }
            let offset = self.at;
            let Some(header) = self.header(offset) else {
                // Zeros up to the end of the block are padding.
                let block = (offset + 1).next_multiple_of(BLOCK).min(self.end);
                let inside = !offset.is_multiple_of(BLOCK);
                let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
                if inside
                    && is_zero(self.peek(offset, block - offset))
                    && self.has_read(&(offset..block))
                {
                    self.at = block;
                    continue;
                }
                let found = self.find(offset + 1);
                self.at = found.unwrap_or(self.end);
                let mut bytes = self.trim(offset..self.at);
                let next = found.and_then(|found| self.header(found));
                if bytes.is_empty() && next.is_some_and(|next| next.first > self.next) {
                    // There are zeros where records should be.
                    bytes = offset..self.at;
                }
                if bytes.is_empty() {
                    continue;
                }
                return Some(Found::Damage(self.damage(bytes, None)));
            };
            if header.first >= self.limit {
                self.at = self.end;
                return None;
            }
            let end = offset + header.size();
            // A record that reaches into the next segment is forged: no write makes one.
            let is_here = header.first >= self.next && header.end() <= self.limit;
            let whole = end <= self.end && is_here;
            let lines = match (whole, self.check) {
                (false, _) => None,
                (true, Check::Headers) => Some(None),
                (true, Check::Lines) => self.lines(offset + RECORD_HEADER, &header),
            };
            self.at = end.min(self.end);
            let Some(lines) = lines else {
                return Some(Found::Damage(self.damage(offset..end, Some(header))));
            };
            self.next = header.end();
            return Some(Found::Record(Record { offset, header, lines }));
        }
    }

    /// Skips all records that end at or before `position`.
    pub(crate) fn skip_to(&mut self, position: Position) {
        loop {
            let before = (self.at, self.next);
            let record = std::iter::from_fn(|| self.next()).find_map(|found| match found {
                Found::Record(record) => Some(record),
                Found::Damage(_) => None,
            });
            if record.is_none_or(|record| record.header.end() > position) {
                (self.at, self.next) = before;
                return;
            }
        }
    }

    /// Returns whole lines of a record that ends at the offset `end`, from the offset `from` on:
    /// about `about` bytes, and at least one line.
    pub(crate) fn read_lines(&mut self, from: u64, end: u64, about: u64) -> Bytes {
        let size = about.max(1).min(end - from);
        let read = self.read(from, size);
        if from + size == end {
            return read;
        }
        if let Some(last) = memchr::memrchr(b'\n', &read) {
            return read.slice(..=last);
        }
        drop(read);
        // The end of a long line is found first, so that memory holds the line only once.
        let until = self.nth_line(from + size..end, 1);
        self.read(from, until - from)
    }

    /// Returns the offset of the `n`th line (from 0) in a range of the file, or the end of the
    /// range.
    pub(super) fn nth_line(&mut self, bytes: Range<u64>, n: u64) -> u64 {
        let (mut at, mut left) = (bytes.start, n);
        while left > 0 && at < bytes.end {
            let read = self.read(at, (STEP as u64).min(bytes.end - at));
            for end in memchr::memchr_iter(b'\n', &read) {
                left -= 1;
                if left == 0 {
                    return at + end as u64 + 1;
                }
            }
            at += read.len() as u64;
        }
        at
    }

    /// Reads and verifies the lines of a record at the offset `at`. `None` if the checksum is
    /// wrong, `Some(None)` if it is right and the lines are too long for memory.
    fn lines(&mut self, at: u64, header: &RecordHeader) -> Option<Option<Bytes>> {
        if header.length <= self.ahead {
            let lines = self.read(at, header.length);
            return (self.seed.crc(&lines) == header.crc).then_some(Some(lines));
        }
        let (mut crc, mut done) = (self.seed.start(), 0);
        while done < header.length {
            let read = self.read(at + done, (STEP as u64).min(header.length - done));
            crc = crc32c::crc32c_append(crc, &read);
            done += read.len() as u64;
        }
        (crc == header.crc).then_some(None)
    }

    /// Returns the offset of the next valid header of the expected record or a later one.
    fn find(&mut self, from: u64) -> Option<u64> {
        let finder = memchr::memmem::Finder::new(&RECORD_MAGIC);
        let mut at = from;
        while at < self.end {
            let read = self.read(at, (STEP as u64).min(self.end - at));
            for found in finder.find_iter(&read) {
                let found = at + found as u64;
                if self.header(found).is_some_and(|header| header.first >= self.next) {
                    return Some(found);
                }
            }
            // A header may begin in the last bytes of this step.
            let overlap =
                if at + (read.len() as u64) < self.end { RECORD_MAGIC.len() - 1 } else { 0 };
            at += (read.len() - overlap) as u64;
        }
        None
    }

    pub(crate) fn header(&mut self, at: u64) -> Option<RecordHeader> {
        let seed = self.seed;
        RecordHeader::decode(self.peek(at, RECORD_HEADER), seed)
    }

    /// Describes damaged bytes. `header` is `None` if the record's header is damaged too.
    fn damage(&mut self, bytes: Range<u64>, header: Option<RecordHeader>) -> Damage {
        let (mut torn, mut newlines) = (bytes.end > self.end, 0);
        let mut at = bytes.start;
        let end = bytes.end.min(self.end);
        while at < end {
            let step = (at + STEP as u64).next_multiple_of(SECTOR).min(end) - at;
            let read = self.read(at, step);
            // A line break within the bytes of the header ends no line.
            let head = (bytes.start + RECORD_HEADER).saturating_sub(at);
            let lines = usize::try_from(head).ok().and_then(|head| read.get(head..));
            newlines += memchr::memchr_iter(b'\n', lines.unwrap_or_default()).count() as u64;
            let mut sector = 0;
            while sector < read.len() {
                let length = SECTOR - (at + sector as u64) % SECTOR;
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(read.len() - sector);
                let zeros = read[sector..sector + length].iter().all(|byte| *byte == 0);
                torn |= zeros && length as u64 >= ZEROS_MIN;
                sector += length;
            }
            at += step;
        }
        let (events, lines) = match header {
            Some(header) => {
                // An unfinished write may have written only the front of the record.
                let rest = self.read(end.saturating_sub(ZEROS_MIN), ZEROS_MIN);
                torn |= rest.iter().all(|byte| *byte == 0);
                (header.events, header.length)
            }
            None => {
                let lines = (end - bytes.start).saturating_sub(RECORD_HEADER);
                // Every record is longer than a header, so the end of this one was not written.
                torn |= lines == 0;
                (newlines, lines)
            }
        };
        let bytes = bytes.start..end;
        let torn = torn && self.unreadable_end(&bytes).is_none();
        Damage { bytes, events, lines, torn }
    }

    fn unreadable_end(&self, bytes: &Range<u64>) -> Option<u64> {
        let last = self.unreadable.range(..bytes.end).next_back()?;
        Some((last + BLOCK).min(bytes.end)).filter(|end| *end > bytes.start)
    }

    /// Removes zeros from the end of the range. Unreadable bytes, which are treated as zeros, stay.
    fn trim(&mut self, bytes: Range<u64>) -> Range<u64> {
        let (mut end, mut last) = (bytes.end, bytes.start);
        while end > bytes.start && last == bytes.start {
            let from = end.saturating_sub(STEP as u64).max(bytes.start);
            let read = self.read(from, end - from);
            if let Some(found) = read.iter().rposition(|byte| *byte != 0) {
                last = from + found as u64 + 1;
            }
            end = from;
        }
        bytes.start..last.max(self.unreadable_end(&bytes).unwrap_or(last))
    }

    fn peek(&mut self, at: u64, size: u64) -> &[u8] {
        let range = self.reach(at, size);
        &self.window[range]
    }

    /// Returns `size` bytes at the offset `at`, without a copy. Bytes after the file's end are
    /// zeros.
    pub(crate) fn read(&mut self, at: u64, size: u64) -> Bytes {
        let range = self.reach(at, size);
        self.window.slice(range)
    }

    /// Loads these bytes into the window if they are missing. Returns their range in the window.
    fn reach(&mut self, at: u64, size: u64) -> Range<usize> {
        let inside = at >= self.window_at && at + size <= self.window_at + self.window.len() as u64;
        if !inside {
            self.load(at, size);
        }
        let index = |at: u64| usize::try_from(at - self.window_at).expect("it is in memory");
        index(at)..index(at + size)
    }

    /// Reads at least `size` bytes into the window. If that fails, reads each block alone, so that
    /// one bad block does not make others unreadable. Unreadable blocks are treated as zeros.
    fn load(&mut self, at: u64, size: u64) {
        let ahead = match self.check {
            Check::Headers => BLOCK,
            Check::Lines => self.ahead + BLOCK,
        };
        let size = size.max(ahead.min(self.end.saturating_sub(at)));
        // The old window is freed before the new one is read, so that memory never holds both.
        self.window = Bytes::new();
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        if self.file.read_at(&mut buffer, at).is_err() {
            let (mut from, mut rest) = (at, buffer.as_mut_slice());
            while !rest.is_empty() {
                let length = usize::try_from(BLOCK - from % BLOCK).unwrap_or(usize::MAX);
                let (part, others) = rest.split_at_mut(length.min(rest.len()));
                if !(0..READS).any(|_| self.file.read_at(part, from).is_ok()) {
                    part.fill(0);
                    self.unreadable.insert(from / BLOCK * BLOCK);
                }
                from += part.len() as u64;
                rest = others;
            }
        }
        self.window = Bytes::from(buffer);
        self.window_at = at;
    }
}

#[cfg(test)]
mod tests;
