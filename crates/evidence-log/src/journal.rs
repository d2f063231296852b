//! The journal: the entries that no checkpoint covers yet, each with a message authentication code.
//!
//! A journal is a header and a row of records. The header names the checkpoint that the journal
//! continues, by its size and its root. Each MAC is an HMAC-SHA-256 over the MAC before it, so that
//! no record can be taken out, moved, or put into another journal. The key is derived from the
//! signing key of the log. The format is in docs/internals/evidence-format.md.
//!
//! A crash may leave a record at the end that is not whole. Whatever follows it is dropped. A
//! record that is whole and has another MAC was written by somebody else: then nothing in the
//! journal counts.

use ring::hmac;

use crate::tlog::key::SigningKey;
use crate::tlog::merkle::{Hash, Head};
use crate::tlog::tile::ENTRY_BYTES_MAX;

/// The first bytes of a journal; the version follows. Version 1 of the program reads them as the
/// length of a record and finds that the record is not there.
const MAGIC: [u8; 7] = *b"\xFFKAFJRN";

/// The version that is written. It differs from version 2 only in that the file `evidence-head` is
/// always there before the journal is.
const VERSION: u8 = 3;

/// The number of bytes of a MAC.
pub const MAC: usize = 32;

/// The number of bytes of a record before the MAC: length, checksum and index.
const FRAME: usize = 16;

/// The maximum size in bytes of a journal that is read. The store begins a new journal much
/// earlier, but entries that are not about events may still be added above its limit.
pub const JOURNAL_BYTES_MAX: usize = 128 << 20;

/// The purposes for which the keys of the MACs are derived from the signing key: for those of a
/// journal, and for that of `evidence-head`.
const PURPOSES: [&str; 2] = ["evidence journal 2", "evidence head 1"];

/// The keys of the MACs.
#[derive(Debug, Clone)]
pub struct Key {
    journal: hmac::Key,
    head: hmac::Key,
}

impl Key {
    /// Derives the keys from a signing key.
    pub fn of(key: &SigningKey) -> Self {
        let [journal, head] =
            PURPOSES.map(|purpose| hmac::Key::new(hmac::HMAC_SHA256, &key.derive(purpose)));
        Self { journal, head }
    }

    /// Returns the MAC of the content of `evidence-head`.
    pub fn of_head(&self, content: &[u8]) -> [u8; MAC] {
        mac(&self.head, &[content])
    }

    /// Returns the MAC of the header of a journal that continues this checkpoint.
    fn begin(&self, version: u8, origin: &str, head: Head) -> [u8; MAC] {
        let origin_bytes = (origin.len() as u64).to_be_bytes();
        let (size, origin) = (head.size.to_be_bytes(), origin.as_bytes());
        let parts = [&MAGIC[..], &[version], &origin_bytes, origin, &size, &head.root.0];
        mac(&self.journal, &parts)
    }

    fn next(&self, before: &[u8; MAC], index: u64, entry: &[u8]) -> [u8; MAC] {
        mac(&self.journal, &[before, &index.to_be_bytes(), entry])
    }
}

fn mac(key: &hmac::Key, parts: &[&[u8]]) -> [u8; MAC] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut mac = [0; MAC];
    mac.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
    mac
}

/// The end of a journal that is being written.
#[derive(Debug, Clone)]
pub struct Chain {
    key: Key,
    /// The MAC of the last record, or of the header.
    pub last: [u8; MAC],
}

impl Chain {
    /// Begins a journal that continues the checkpoint with this head. Also returns the header.
    pub fn begin(key: Key, origin: &str, head: Head) -> (Self, Vec<u8>) {
        let last = key.begin(VERSION, origin, head);
        let size = head.size.to_be_bytes();
        let header = [&MAGIC[..], &[VERSION], &size, &head.root.0, &last].concat();
        (Self { key, last }, header)
    }

    /// Appends a record to the bytes of the journal.
    pub fn push(&mut self, index: u64, entry: &[u8], journal: &mut Vec<u8>) {
        self.last = self.key.next(&self.last, index, entry);
        let length = u32::try_from(entry.len()).unwrap_or(u32::MAX);
        let mut checksum = crc32c::crc32c(&index.to_be_bytes());
        checksum = crc32c::crc32c_append(checksum, &self.last);
        checksum = crc32c::crc32c_append(checksum, entry);
        journal.extend_from_slice(&length.to_be_bytes());
        journal.extend_from_slice(&checksum.to_be_bytes());
        journal.extend_from_slice(&index.to_be_bytes());
        journal.extend_from_slice(&self.last);
        journal.extend_from_slice(entry);
    }
}

/// The records of a journal that has a MAC for each of them.
struct Records<'a> {
    version: u8,
    head: Head,
    mac: &'a [u8],
    records: &'a [u8],
}

impl<'a> Records<'a> {
    /// Takes the header from a journal. `None` if an earlier version has written the journal, or if
    /// the bytes are not a journal.
    fn of(journal: &'a [u8]) -> Option<Self> {
        let (version, rest) = journal.strip_prefix(&MAGIC)?.split_first()?;
        let (size, rest) = rest.split_first_chunk()?;
        let (root, rest) = rest.split_first_chunk()?;
        let (mac, records) = rest.split_at_checked(MAC)?;
        let head = Head { size: u64::from_be_bytes(*size), root: Hash(*root) };
        (2..=VERSION).contains(version).then_some(Self { version: *version, head, mac, records })
    }
}

/// A journal that the relay has written.
pub struct Own {
    /// The size and the root of the checkpoint that the journal continues.
    pub head: Head,
    /// The entries behind that checkpoint.
    pub entries: Vec<Vec<u8>>,
    /// The MAC of the header, and of the record of each entry.
    macs: Vec<[u8; MAC]>,
    /// `true`: the file `evidence-head` was there before the journal was.
    pub has_head: bool,
}

impl Own {
    /// Returns the MAC of the record with which the log has this many entries; `None` if the
    /// journal ends before. Of entries that the journal's checkpoint covers there is no MAC.
    pub fn mac(&self, entries: u64) -> Option<&[u8; MAC]> {
        self.macs.get(usize::try_from(entries.checked_sub(self.head.size)?).ok()?)
    }
}

/// Reads a journal. `None` unless the MACs of the whole journal were made with one of these keys,
/// for the log with the name `origin`.
pub fn written_by(keys: &[Key], origin: &str, journal: &[u8]) -> Option<Own> {
    let Records { version, head, mac, mut records } = Records::of(journal)?;
    let key = keys.iter().find(|key| key.begin(version, origin, head) == mac)?;
    let mut last = key.begin(version, origin, head);
    let mut own = Own { head, entries: Vec::new(), macs: vec![last], has_head: version >= 3 };
    while let Some((index, mac, entry, behind)) = record(records, MAC) {
        let expected = head.size + own.entries.len() as u64;
        last = key.next(&last, expected, entry);
        if last != mac || index != expected {
            return None;
        }
        own.entries.push(entry.to_vec());
        own.macs.push(last);
        records = behind;
    }
    Some(own)
}

/// Returns the entries of a journal with their indices, up to the first that is torn. No MAC is
/// checked, so anybody may have written them. Also reads the journal of an earlier version.
pub fn entries(journal: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let (mut rest, mac) = match Records::of(journal) {
        Some(Records { records, .. }) => (records, MAC),
        None => (journal, 0),
    };
    let mut found = Vec::new();
    while let Some((index, _, entry, behind)) = record(rest, mac) {
        rest = behind;
        found.push((index, entry.to_vec()));
    }
    found
}

/// Returns `true` if an earlier version of the program may have written the journal, without MACs.
pub fn is_without_macs(journal: &[u8]) -> bool {
    Records::of(journal).is_none() && record(journal, 0).is_some()
}

/// A record: its index, its MAC, its entry, and the bytes after it.
type Record<'a> = (u64, &'a [u8], &'a [u8], &'a [u8]);

/// Takes the first record from the bytes of a journal whose MACs have the length `mac_bytes`.
/// Returns `None` if there is no whole record.
fn record(journal: &[u8], mac_bytes: usize) -> Option<Record<'_>> {
    let (frame, rest) = journal.split_at_checked(FRAME)?;
    let (length, frame) = frame.split_first_chunk()?;
    let (checksum, index) = frame.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (mac, rest) = rest.split_at_checked(mac_bytes)?;
    let (entry, behind) = rest.split_at_checked(length)?;
    let found = crc32c::crc32c_append(crc32c::crc32c(index), mac);
    let found = crc32c::crc32c_append(found, entry);
    let index = u64::from_be_bytes(index.try_into().ok()?);
    let is_whole = length <= ENTRY_BYTES_MAX && found == u32::from_be_bytes(*checksum);
    is_whole.then_some((index, mac, entry, behind))
}
