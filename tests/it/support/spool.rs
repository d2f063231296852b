//! A spool as another program sees it: the files that docs/internals/spool-format.md describes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::text;

const SEGMENT_MAGIC: &[u8] = b"\xFFKAFSEG\0";
const RECORD_MAGIC: &[u8] = b"\xFFKAFREC\0";

/// Groups of records start at multiples of this many bytes.
const BLOCK: usize = 4096;

/// The size of a record's header, in bytes.
const RECORD_HEADER: usize = 64;

/// The size of a slot in `cursors`, in bytes.
pub(crate) const SLOT: usize = 16 * 1024;

/// The directory. Dropping this value removes it, unless [`Spool::at`] made the value.
pub(crate) struct Spool {
    path: PathBuf,
    _own: Option<TempDir>,
}

/// The place of a record in its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The segment's path below the directory.
    pub(crate) segment: PathBuf,
    pub(crate) bytes: Range<usize>,
    pub(crate) positions: Range<u64>,
}

/// The space that a directory uses, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The lengths of all files.
    pub(crate) lengths: u64,
    /// The bytes that the file system has allocated for them.
    pub(crate) allocated: u64,
}

impl Spool {
    /// Returns a spool whose directory does not exist yet.
    pub(crate) fn new() -> Self {
        let own = TempDir::new().expect("a temporary directory");
        Self { path: own.path().join("spool"), _own: Some(own) }
    }

    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, _own: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a `[queue]` table that uses the directory. `more` adds keys.
    pub(crate) fn queue(&self, more: &str) -> String {
        format!("[queue]\ndirectory = {:?}\n{more}\n", text(&self.path))
    }

    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        // A queue without events has no segments, and the directory for them.
        std::fs::create_dir_all(copy.path.join("segments")).unwrap();
        for (path, file) in self.files() {
            let to = copy.path.join(path);
            std::fs::create_dir_all(to.parent().expect("below the directory")).unwrap();
            std::fs::write(to, file.bytes).unwrap();
        }
        copy
    }

    /// Returns every file, by its path below the directory.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Entry> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for path in entries.map(|entry| entry.expect("a readable directory").path()) {
                // A file that is being deleted may be missing by now.
                let Ok(metadata) = path.symlink_metadata() else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                    continue;
                }
                let Ok(bytes) = std::fs::read(&path) else { continue };
                let below = path.strip_prefix(&self.path).expect("below it").to_owned();
                files.insert(below, Entry { bytes, mode: metadata.permissions().mode() & 0o7777 });
            }
        }
        files
    }

    /// Returns the space that the directory uses now. A relay may be running in it.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage { lengths: 0, allocated: 0 };
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let Ok(metadata) = path.symlink_metadata() else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                } else {
                    usage.lengths += metadata.len();
                    usage.allocated += metadata.blocks() * 512;
                }
            }
        }
        usage
    }

    /// Returns the paths of the segments below the directory, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path.join("segments")) else { return Vec::new() };
        let name = |entry: std::fs::DirEntry| PathBuf::from("segments").join(entry.file_name());
        let mut segments: Vec<PathBuf> = entries.flatten().map(name).collect();
        segments.sort();
        segments
    }

    pub(crate) fn edit(&self, file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path.join(file);
        let mut bytes = std::fs::read(&path).expect("a file of the spool");
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    /// Returns every complete record, in order.
    pub(crate) fn records(&self) -> Vec<Record> {
        let records = |segment: PathBuf| {
            let bytes = std::fs::read(self.path.join(&segment)).expect("a segment");
            assert!(bytes.starts_with(SEGMENT_MAGIC), "{}", segment.display());
            records_of(&segment, &bytes)
        };
        self.segments().into_iter().flat_map(records).collect()
    }
}

/// A file of the directory: its contents and its permissions.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, mode {:o}, ", self.bytes.len(), self.mode)?;
        write!(f, "CRC {:08x}", crc32c::crc32c(&self.bytes))
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn records_of(segment: &Path, bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let seed = seed_of(segment);
    let mut at = BLOCK;
    while at + RECORD_HEADER <= bytes.len() {
        let header = &bytes[at..at + RECORD_HEADER];
        let checks = header.starts_with(RECORD_MAGIC)
            && crc32c::crc32c_append(seed, &header[..60]).to_le_bytes() == header[60..];
        if !checks {
            at = (at + 1).next_multiple_of(BLOCK);
            continue;
        }
        let length = usize::try_from(number(header, 32)).expect("a length");
        let (first, events) = (number(header, 8), number(header, 40));
        let end = at + RECORD_HEADER + length;
        let lines = &bytes[at + RECORD_HEADER..end];
        let crc = crc32c::crc32c_append(seed, lines);
        assert_eq!(crc.to_le_bytes(), header[56..60], "at {at}");
        let bytes = at..end;
        let positions = first..first + events;
        records.push(Record { segment: segment.to_owned(), bytes, positions });
        at = end;
    }
    records
}

/// Returns the seed of a segment's checksums: the first position, which is in the segment's name.
fn seed_of(segment: &Path) -> u32 {
    let stem = segment.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let first: u64 = stem.parse().expect("a position");
    u32::try_from(first).expect("the upper half is 0")
}

/// Changes the lines of a record in a segment, and corrects its checksums. The number of bytes must
/// not change.
pub(crate) fn forge_lines(record: &Record, segment: &mut [u8], forge: impl FnOnce(&mut [u8])) {
    let seed = seed_of(&record.segment);
    let (header, lines) = segment[record.bytes.clone()].split_at_mut(RECORD_HEADER);
    forge(lines);
    header[56..60].copy_from_slice(&crc32c::crc32c_append(seed, lines).to_le_bytes());
    let crc = crc32c::crc32c_append(seed, &header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
}

/// Sets the format version in a segment's header, and corrects the header's CRC.
pub(crate) fn set_segment_version(bytes: &mut [u8], version: u32) {
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&crc.to_le_bytes());
}

/// Returns the slots of `cursors`, newest first: the range of bytes and the generation of each.
pub(crate) fn slots(bytes: &[u8]) -> Vec<(Range<usize>, u64)> {
    let slot = |at: usize| {
        let length = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().expect("4 bytes"));
        let length = usize::try_from(length).expect("a length");
        (at..at + length, number(bytes, at + 16))
    };
    let mut slots = vec![slot(0), slot(SLOT)];
    slots.sort_by_key(|(_, generation)| std::cmp::Reverse(*generation));
    slots
}

/// Sets the format version of a slot, and corrects the slot's CRC.
pub(crate) fn set_slot_version(bytes: &mut [u8], slot: &Range<usize>, version: u32) {
    bytes[slot.start + 8..slot.start + 12].copy_from_slice(&version.to_le_bytes());
    let crc_at = slot.end - 4;
    let crc = crc32c::crc32c(&bytes[slot.start..crc_at]);
    bytes[crc_at..slot.end].copy_from_slice(&crc.to_le_bytes());
}
