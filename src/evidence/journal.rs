//! The records of the journal: entries that no checkpoint covers yet.
//!
//! A record is the number of the entry's bytes and their CRC-32C (4 bytes each), the index of the
//! entry (8 bytes), and the entry. Numbers are big-endian.

use crate::tlog::tile::ENTRY_BYTES_MAX;

/// The number of bytes of a record before the entry.
const FRAME: usize = 16;

/// The most bytes of a journal that are read. The store ends a journal much earlier, but entries
/// that say nothing of events may come on top of its limit.
pub(super) const JOURNAL_BYTES_MAX: usize = 128 << 20;

/// Appends a record to the bytes of a journal.
pub(super) fn write_record(index: u64, entry: &[u8], journal: &mut Vec<u8>) {
    let length = u32::try_from(entry.len()).unwrap_or(u32::MAX);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&index.to_be_bytes()), entry);
    journal.extend_from_slice(&length.to_be_bytes());
    journal.extend_from_slice(&checksum.to_be_bytes());
    journal.extend_from_slice(&index.to_be_bytes());
    journal.extend_from_slice(entry);
}

/// Takes the first record from the bytes of a journal: its index, its entry, and the bytes behind
/// it. Returns `None` if there is no whole record.
pub(super) fn record(journal: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (frame, rest) = journal.split_at_checked(FRAME)?;
    let (length, frame) = frame.split_first_chunk()?;
    let (checksum, index) = frame.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (entry, behind) = rest.split_at_checked(length)?;
    let found = crc32c::crc32c_append(crc32c::crc32c(index), entry);
    let index = u64::from_be_bytes(index.try_into().ok()?);
    let is_whole = length <= ENTRY_BYTES_MAX && found == u32::from_be_bytes(*checksum);
    is_whole.then_some((index, entry, behind))
}

/// Returns the entries of a journal with their indices, up to the first that is torn.
pub(super) fn entries(journal: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let (mut rest, mut found) = (journal, Vec::new());
    while let Some((index, entry, behind)) = record(rest) {
        rest = behind;
        found.push((index, entry.to_vec()));
    }
    found
}
