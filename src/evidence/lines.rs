//! The line hashes: for each range of events a random salt, and the SHA-256 of each line.
//!
//! They lie in files of their own below `lines/`, which are never served: who has the salt and a
//! hash can guess at an event. A file is a row of records, which are only appended:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | the number of bytes of the record behind these 8 bytes (big-endian, as all numbers) |
//! | 4 | CRC-32C of these bytes |
//! | 1 | 1, the kind of the record: lines as they came in |
//! | 8 | the first position of the range |
//! | 4 | the number of lines of the range |
//! | 16 | the salt |
//! | 32 each | the hashes of the lines |

use std::fmt;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::tlog::merkle::HASH_BYTES;
use crate::tlog::merkle::Hash;
use crate::tlog::merkle::root;

/// The number of bytes of a salt.
pub const SALT_BYTES: usize = 16;

/// The number of bytes before each record: its length and its checksum.
const FRAME: usize = 8;

/// The kind of a record with lines as they came in.
const ACCEPTED: u8 = 1;

/// The most bytes of a record. One of 4,096 lines has 131,105.
const RECORD_MAX: usize = 1 << 20;

/// The most bytes of a file that are read. The relay begins a new file much earlier.
pub(super) const FILE_BYTES_MAX: usize = 256 << 20;

/// A random number that belongs to a range. Without it, nobody can check a guess at a line against
/// the root in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; SALT_BYTES]);

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl Salt {
    /// Returns the hash of the tree's leaf for a line with this SHA-256.
    #[must_use]
    pub fn leaf(&self, line: &Hash) -> Hash {
        Hash::of(&[&[0], &self.0, &line.0])
    }
}

/// The hashes of the lines of a range, as the lines came in.
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
    /// Returns the root over the range, as the log has it.
    #[must_use]
    pub fn root(&self) -> Hash {
        root(self.leaves())
    }

    /// Returns the leaves of the tree over the range.
    pub fn leaves(&self) -> impl Iterator<Item = Hash> {
        self.lines.iter().map(|line| self.salt.leaf(line))
    }

    /// Returns the position behind the range.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    /// Appends the record of the range to a file's bytes.
    pub fn write(&self, file: &mut Vec<u8>) {
        let start = file.len();
        file.extend_from_slice(&[0; FRAME]);
        file.push(ACCEPTED);
        file.extend_from_slice(&self.first.to_be_bytes());
        let count = u32::try_from(self.lines.len()).unwrap_or(u32::MAX);
        file.extend_from_slice(&count.to_be_bytes());
        file.extend_from_slice(&self.salt.0);
        for Hash(line) in &self.lines {
            file.extend_from_slice(line);
        }
        let (frame, record) = file[start..].split_at_mut(FRAME);
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        frame[..4].copy_from_slice(&length.to_be_bytes());
        frame[4..].copy_from_slice(&crc32c::crc32c(record).to_be_bytes());
    }

    /// Reads a record's bytes behind its frame. Returns `None` if it is one of another kind.
    fn parse(record: &[u8]) -> io::Result<Option<Self>> {
        let wrong = || io::Error::other("a record of line hashes has another length than it says");
        let (kind, rest) = record.split_first().ok_or_else(wrong)?;
        if *kind != ACCEPTED {
            return Ok(None);
        }
        let (first, rest) = rest.split_first_chunk().ok_or_else(wrong)?;
        let (count, rest) = rest.split_first_chunk().ok_or_else(wrong)?;
        let (salt, rest) = rest.split_first_chunk().ok_or_else(wrong)?;
        let (lines, rest) = rest.as_chunks::<HASH_BYTES>();
        if !rest.is_empty() || lines.len() as u64 != u64::from(u32::from_be_bytes(*count)) {
            return Err(wrong());
        }
        let (first, lines) = (u64::from_be_bytes(*first), lines.iter().copied().map(Hash));
        let range = Self { first, salt: Salt(*salt), lines: lines.collect() };
        if first.checked_add(range.lines.len() as u64).is_none() {
            return Err(io::Error::other("a record of line hashes has positions above 2^64"));
        }
        Ok(Some(range))
    }
}

/// What was found in a file of line hashes.
#[derive(Debug, Default)]
pub struct Read {
    /// The ranges, in the order of the file.
    pub ranges: Vec<Range>,
    /// The number of bytes up to the end of the last whole record.
    pub bytes: u64,
    /// Why the rest of the file can't be read; `None` if there is no rest.
    pub damage: Option<String>,
}

/// Reads a file of line hashes up to the first record that is damaged or cut off.
#[must_use]
pub fn read(file: &[u8]) -> Read {
    let (mut read, mut rest) = (Read::default(), file);
    while !rest.is_empty() {
        match record(rest) {
            Ok((record, behind)) => match Range::parse(record) {
                Ok(range) => {
                    read.ranges.extend(range);
                    rest = behind;
                    read.bytes = (file.len() - rest.len()) as u64;
                }
                Err(error) => {
                    read.damage = Some(error.to_string());
                    break;
                }
            },
            Err(error) => {
                read.damage = Some(error.to_string());
                break;
            }
        }
    }
    read
}

/// Takes the first record from the bytes of a file. Returns it without its frame, and the bytes
/// behind it.
fn record(bytes: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let cut = || io::Error::other("a record of line hashes is cut off");
    let (length, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
    let (checksum, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > RECORD_MAX {
        return Err(io::Error::other("a record of line hashes says that it has more than 1 MiB"));
    }
    let (record, behind) = rest.split_at_checked(length).ok_or_else(cut)?;
    if crc32c::crc32c(record) != u32::from_be_bytes(*checksum) {
        return Err(io::Error::other("a record of line hashes has a wrong checksum"));
    }
    Ok((record, behind))
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
        let ranges = [range(0, 1), range(1, 4096), range(4097, 20)];
        let mut file = Vec::new();
        let mut ends = Vec::new();
        for range in &ranges {
            range.write(&mut file);
            ends.push(file.len());
        }
        let whole = read(&file);
        assert_eq!((whole.ranges.as_slice(), whole.bytes), (ranges.as_slice(), file.len() as u64));
        assert_eq!(whole.damage, None);
        for at in [0, 5, 8, ends[0], ends[0] + 100, ends[1] - 1, ends[2] - 1] {
            let found = ends.iter().filter(|end| **end <= at).count();
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            let damaged = read(&flipped);
            assert_eq!(damaged.ranges, ranges[..found], "{at}");
            assert!(damaged.damage.is_some(), "{at}");
            let cut = read(&file[..at]);
            assert_eq!(cut.ranges, ranges[..found], "{at}");
            assert_eq!(cut.damage.is_some(), at > 0 && !ends.contains(&at), "{at}");
        }
    }

    #[test]
    fn a_root_is_over_salted_hashes() {
        let range = range(5, 2);
        let leaf = |at: usize| {
            let entry = [range.salt.0.as_slice(), &range.lines[at].0].concat();
            Hash::of_leaf(&entry)
        };
        assert_eq!(range.root(), Hash::of_node(&leaf(0), &leaf(1)));
        assert_eq!(range.end(), 7);
    }
}
