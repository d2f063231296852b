//! The line hashes: for each range of events a random salt, and the SHA-256 of each line.
//!
//! The files are below `lines/` and are never served, because a salt and a hash are enough to check
//! a guess at an event. A file is a sequence of records, and is only appended to:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | the number of bytes of the record after these 8 bytes (big-endian, as all numbers) |
//! | 4 | CRC-32C of the record after these 8 bytes |
//! | 1 | the type of the record: 1 for lines as received, 2 for lines as sent |
//! | 8 | the first position of the range |
//! | 4 | the number of events of the range |
//! | 16 | the salt |
//! | 1, then as many | of type 2 only: the number of bytes of the output's name, and the name |
//! | 32 each | the hashes of the lines: of all events, or of those that were sent |

use std::{fmt, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::tlog::merkle::{HASH_BYTES, Hash, root};

/// The number of bytes of a salt.
pub const SALT_BYTES: usize = 16;

/// The number of bytes before each record: four of its length and four of its checksum.
const FRAME: usize = 8;

const ACCEPTED: u8 = 1;

const DELIVERED: u8 = 2;

/// The maximum number of bytes of a record without its frame. A record of 4,096 lines and a name of
/// 63 bytes has 131,165.
const RECORD_MAX: usize = 1 << 20;

/// The maximum number of bytes that are read from a file. The relay begins a new file much earlier.
pub const FILE_BYTES_MAX: usize = 256 << 20;

/// A random number of a range. Without it, nobody can check a guess at a line against the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; SALT_BYTES]);

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl Salt {
    /// Reads a salt in base64.
    pub fn parse(text: &str) -> Option<Self> {
        let salt = STANDARD.decode(text).ok()?;
        salt.try_into().ok().map(Self)
    }

    /// Returns the hash of the Merkle leaf for a line with this SHA-256.
    pub fn leaf(&self, line: &Hash) -> Hash {
        Hash::of(&[&[0], &self.0, &line.0])
    }
}

/// The hashes of the lines of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first position.
    pub first: u64,
    /// The salt of the range.
    pub salt: Salt,
    /// The SHA-256 of each line, without its line break.
    pub lines: Vec<Hash>,
}

impl Range {
    /// Returns the root over the range, as in the entry of the log.
    pub fn root(&self) -> Hash {
        root(self.leaves())
    }

    /// Returns the Merkle leaves of the range.
    pub fn leaves(&self) -> Vec<Hash> {
        self.lines.iter().map(|line| self.salt.leaf(line)).collect()
    }

    /// Returns the position after the range. The range must have the hash of each event.
    pub fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    /// Returns the SHA-256 of the line at a position. `None` if the position is outside of the
    /// range.
    pub fn hash(&self, position: u64) -> Option<&Hash> {
        self.lines.get(usize::try_from(position.checked_sub(self.first)?).ok()?)
    }
}

/// A record of a file of line hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The output that sent the lines. `None` for lines as received.
    pub output: Option<String>,
    /// The number of events of the range.
    pub count: u64,
    /// The line hashes of all events, or only of the sent ones. The entry says which events were
    /// sent.
    pub range: Range,
}

impl Record {
    /// Makes the record of lines as received.
    pub fn accepted(range: Range) -> Self {
        Self { output: None, count: range.lines.len() as u64, range }
    }

    /// Appends the record to a file's bytes.
    pub fn write(&self, file: &mut Vec<u8>) {
        let start = file.len();
        file.extend_from_slice(&[0; FRAME]);
        file.push(if self.output.is_some() { DELIVERED } else { ACCEPTED });
        file.extend_from_slice(&self.range.first.to_be_bytes());
        let count = u32::try_from(self.count).unwrap_or(u32::MAX);
        file.extend_from_slice(&count.to_be_bytes());
        file.extend_from_slice(&self.range.salt.0);
        if let Some(output) = &self.output {
            let length = u8::try_from(output.len()).unwrap_or(u8::MAX);
            file.push(length);
            file.extend(output.bytes().take(length.into()));
        }
        for Hash(line) in &self.range.lines {
            file.extend_from_slice(line);
        }
        let (frame, record) = file[start..].split_at_mut(FRAME);
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        frame[..4].copy_from_slice(&length.to_be_bytes());
        frame[4..].copy_from_slice(&crc32c::crc32c(record).to_be_bytes());
    }

    fn parse(record: &[u8]) -> Option<Self> {
        let (kind, rest) = record.split_first()?;
        let (first, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (salt, rest) = rest.split_first_chunk()?;
        let (output, rest) = match *kind {
            ACCEPTED => (None, rest),
            DELIVERED => {
                let (length, rest) = rest.split_first()?;
                let (name, rest) = rest.split_at_checked(usize::from(*length))?;
                (Some(String::from_utf8(name.to_vec()).ok()?), rest)
            }
            _ => return None,
        };
        let (lines, rest) = rest.as_chunks::<HASH_BYTES>();
        let (first, count) = (u64::from_be_bytes(*first), u64::from(u32::from_be_bytes(*count)));
        let hashes = lines.len() as u64;
        let fits = hashes == count || (output.is_some() && hashes < count);
        if !rest.is_empty() || !fits || first.checked_add(count).is_none() {
            return None;
        }
        let lines = lines.iter().copied().map(Hash).collect();
        Some(Self { output, count, range: Range { first, salt: Salt(*salt), lines } })
    }
}

/// The reason why the rest of a file of line hashes can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file ends within a record, or with zeros.
    #[error("a record of line hashes is cut off")]
    CutOff,
    /// A record claims to be longer than any record can be.
    #[error("a record of line hashes says that it has more than 1 MiB")]
    TooLong,
    /// A record was damaged or changed.
    #[error("a record of line hashes has a wrong checksum")]
    Checksum,
    /// The checksum is right, but the bytes are not a record.
    #[error("a record of line hashes has another form than any version writes")]
    Form,
}

/// The records of a file of line hashes, each with its offset in bytes. Damage ends the iteration.
pub struct Records<'a> {
    file: &'a [u8],
    bytes: usize,
    is_over: bool,
}

impl<'a> Records<'a> {
    /// Reads the records of a file.
    pub fn of(file: &'a [u8]) -> Self {
        Self { file, bytes: 0, is_over: false }
    }
}

impl Iterator for Records<'_> {
    type Item = (u64, Result<Record, Damage>);

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.bytes as u64;
        let rest = self.file.get(self.bytes..).filter(|rest| !rest.is_empty() && !self.is_over)?;
        let found = record(rest).and_then(|(record, behind)| {
            self.bytes = self.file.len() - behind.len();
            Record::parse(record).ok_or(Damage::Form)
        });
        self.is_over = found.is_err();
        Some((offset, found))
    }
}

/// Returns the number of bytes before the first damaged or cut off record.
pub fn whole_bytes(file: &[u8]) -> u64 {
    let damaged = Records::of(file).find(|(_, record)| record.is_err());
    damaged.map_or(file.len() as u64, |(offset, _)| offset)
}

/// Returns the record at an offset, if there is a valid one. `read` fills a buffer with the bytes
/// from an offset on, and fails with `UnexpectedEof` if the file ends too early.
///
/// # Errors
///
/// `read` has failed, except at the end of the file.
pub fn record_at(
    offset: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<Option<Record>> {
    let all_or_none = |bytes: &mut [u8], at: u64| match read(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    let mut bytes = vec![0; FRAME];
    if !all_or_none(&mut bytes, offset)? {
        return Ok(None);
    }
    let length = bytes.first_chunk().map_or(0, |length| u32::from_be_bytes(*length));
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(RECORD_MAX);
    bytes.resize(FRAME + length, 0);
    if !all_or_none(&mut bytes, offset)? {
        return Ok(None);
    }
    Ok(Records::of(&bytes).next().and_then(|(_, record)| record.ok()))
}

/// The number of bytes of a record's frame, type, first position and number of events.
pub const HEADING: usize = FRAME + 1 + 8 + 4;

/// The beginning of a record. Its checksum is not checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Heading {
    /// The number of bytes of the record, including its frame.
    pub bytes: u64,
    /// The positions of the events. `None` if the record has lines as sent.
    pub accepted: Option<std::ops::Range<u64>>,
}

impl Heading {
    /// Reads the beginning of a record. `None` if no record has this length.
    pub fn parse(heading: &[u8; HEADING]) -> Option<Self> {
        let (length, rest) = heading.split_first_chunk()?;
        let length = u32::from_be_bytes(*length);
        let (_checksum, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first()?;
        let (first, rest) = rest.split_first_chunk()?;
        let first = u64::from_be_bytes(*first);
        let count = u64::from(u32::from_be_bytes(*rest.first_chunk()?));
        let is_record = (HEADING - FRAME..=RECORD_MAX).contains(&usize::try_from(length).ok()?);
        let accepted = (*kind == ACCEPTED).then(|| first..first.saturating_add(count));
        is_record.then_some(Self { bytes: FRAME as u64 + u64::from(length), accepted })
    }
}

/// Returns the first record without its frame, and the bytes after this record.
fn record(bytes: &[u8]) -> Result<(&[u8], &[u8]), Damage> {
    // After a power failure, bytes that were not synced may be zeros.
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(Damage::CutOff);
    }
    let (length, rest) = bytes.split_first_chunk().ok_or(Damage::CutOff)?;
    let (checksum, rest) = rest.split_first_chunk().ok_or(Damage::CutOff)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > RECORD_MAX {
        return Err(Damage::TooLong);
    }
    let (record, behind) = rest.split_at_checked(length).ok_or(Damage::CutOff)?;
    match crc32c::crc32c(record) == u32::from_be_bytes(*checksum) {
        true => Ok((record, behind)),
        false => Err(Damage::Checksum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> Range {
        let lines = (first..first + count).map(|at| Hash::of(&[&at.to_be_bytes()])).collect();
        Range { first, salt: Salt([7; SALT_BYTES]), lines }
    }

    #[test]
    fn ranges_are_read_again_up_to_the_damage() {
        let sent = |count, range| Record { output: Some("siem".to_owned()), count, range };
        let ranges = [
            Record::accepted(range(0, 1)),
            sent(4096, range(1, 7)),
            Record::accepted(range(1, 4096)),
            sent(2, range(4097, 0)),
        ];
        let mut file = Vec::new();
        let mut ends = Vec::new();
        for record in &ranges {
            record.write(&mut file);
            ends.push(file.len());
        }
        let read = |file: &[u8]| -> (Vec<Record>, Option<Damage>) {
            let damage = Records::of(file).find_map(|(_, record)| record.err());
            (Records::of(file).filter_map(|(_, record)| record.ok()).collect(), damage)
        };
        assert_eq!(read(&file), (ranges.to_vec(), None));
        let offsets: Vec<_> = Records::of(&file).map(|(offset, _)| offset).collect();
        assert_eq!(offsets, [0, ends[0] as u64, ends[1] as u64, ends[2] as u64]);
        for at in [0, 5, 8, ends[0], ends[0] + 100, ends[1] - 1, ends[3] - 1] {
            let found = ends.iter().filter(|end| **end <= at).count();
            let whole = if found > 0 { ends[found - 1] as u64 } else { 0 };
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            let (records, damage) = read(&flipped);
            assert_eq!((records.as_slice(), whole_bytes(&flipped)), (&ranges[..found], whole));
            assert!(damage.is_some(), "{at}");
            let (records, damage) = read(&file[..at]);
            assert_eq!(records, ranges[..found], "{at}");
            let is_cut = at > 0 && !ends.contains(&at);
            assert_eq!(damage, is_cut.then_some(Damage::CutOff), "{at}");
        }
        let torn = [file.as_slice(), &[0; 50]].concat();
        assert_eq!(read(&torn), (ranges.to_vec(), Some(Damage::CutOff)));
        assert_eq!(whole_bytes(&torn), file.len() as u64);
    }
}
