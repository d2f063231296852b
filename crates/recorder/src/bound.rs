//! The file `evidence-head` beside the log: how far the evidence was durable when it was written,
//! under a MAC.
//!
//! It is replaced after each commit, when the line hashes and the journal are synced, and before
//! the recorder finishes its claims. So after a crash the journal is never behind it. A journal
//! that is shorter was cut or put back by somebody else, and so was a file of line hashes that is
//! missing or has another size. Only somebody who has kept an earlier copy of all these files can
//! put them back unnoticed, and only to a state that extends the newest checkpoint that others
//! hold.

use std::collections::BTreeMap;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use base::disk::{Disk, replace};
use evidence_log::journal::{Key, MAC};
use evidence_log::layout::{HEAD, LineFile, read};
use evidence_log::tlog::merkle::Hash;

/// The maximum size of the file in bytes. A file of line hashes takes less than 64.
const FILE_BYTES_MAX: usize = 4 << 20;

/// The files of line hashes with their sizes in bytes.
pub(crate) type Sizes = BTreeMap<LineFile, u64>;

/// The content of the file. Its second line is the MAC over the first one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bound {
    origin: String,
    /// The number of entries of the log, with those in the journal.
    pub entries: u64,
    /// The MAC of the last record of the journal.
    mac: Hash,
    /// The position after the last event that has an entry.
    pub next: u64,
    /// The files of line hashes: the two numbers of the name, and the size.
    lines: Vec<(u64, u32, u64)>,
}

impl Bound {
    pub(crate) fn new(
        origin: &str,
        (entries, mac): (u64, [u8; MAC]),
        next: u64,
        sizes: &Sizes,
    ) -> Self {
        let lines = sizes.iter().map(|(name, bytes)| (name.first, name.number, *bytes)).collect();
        Self { origin: origin.to_owned(), entries, mac: Hash(mac), next, lines }
    }

    pub(super) fn is_at(&self, mac: &[u8; MAC]) -> bool {
        self.mac.0 == *mac
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let file = |(first, number, bytes)| (LineFile { first, number }, bytes);
        self.lines.iter().copied().map(file).collect()
    }

    /// Reads the file. `None` if there is none for the log of this origin that has a right MAC.
    pub(crate) fn read(disk: &dyn Disk, keys: &[Key], origin: &str) -> io::Result<Option<Self>> {
        let text = read(disk, HEAD, FILE_BYTES_MAX)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let Some((content, mac)) = text.split_once('\n') else { return Ok(None) };
        let is_right = |key: &Key| STANDARD.encode(key.of_head(content.as_bytes())) == mac;
        let found = keys.iter().any(is_right).then(|| serde_json::from_str::<Self>(content));
        Ok(found.and_then(Result::ok).filter(|found| found.origin == origin))
    }

    /// Replaces the file.
    pub(crate) fn write(&self, disk: &dyn Disk, key: &Key) -> io::Result<()> {
        let content = serde_json::to_string(self).map_err(io::Error::other)?;
        let mac = STANDARD.encode(key.of_head(content.as_bytes()));
        replace(disk, HEAD, format!("{content}\n{mac}").as_bytes())
    }
}
