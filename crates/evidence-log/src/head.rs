//! The file `evidence-head` next to the log: a note over all durable entries, signed by the key of
//! the log, and the newest of these entries.
//!
//! The note is a checkpoint with further lines: the number of entries in the tiles, and the sizes
//! of the files of line hashes. A bundle of the entries that are not in the tiles yet follows the
//! note. The format is in docs/internals/evidence-format.md.

use std::collections::BTreeMap;

use super::layout::LineFile;
use crate::tlog::checkpoint::{Checkpoint, Signed};
use crate::tlog::key::SigningKey;
use crate::tlog::malformed::Malformed;
use crate::tlog::note::{NOTE_BYTES_MAX, Note};
use crate::tlog::tile;

/// The maximum number of bytes of the file. The relay moves entries to tiles long before, unless
/// the disk refuses.
pub const HEAD_BYTES_MAX: usize = NOTE_BYTES_MAX + (128 << 20);

/// The files of line hashes with their sizes in bytes.
pub type Sizes = BTreeMap<LineFile, u64>;

/// The content of the file `evidence-head`.
#[derive(Debug)]
pub struct HeadFile {
    /// The size and the root of the log, signed. No signature is checked yet.
    pub signed: Signed,
    /// The number of entries that are in the tiles.
    pub tiles: u64,
    /// The entries that are not in the tiles. Only the root proves that these entries are those of
    /// the log.
    pub entries: Vec<Vec<u8>>,
    /// The sizes of the files of line hashes.
    pub sizes: Sizes,
}

impl HeadFile {
    /// Reads the content of the file.
    ///
    /// # Errors
    ///
    /// The bytes have another form.
    pub fn parse(file: &[u8]) -> Result<Self, Malformed> {
        let missing = Malformed("an empty line is missing");
        let empty_line = |from: usize| {
            let rest = file.get(from..).unwrap_or_default();
            rest.windows(2).position(|pair| pair == b"\n\n").map(|at| from + at + 1)
        };
        let signatures = empty_line(0).ok_or(missing)?;
        let end = empty_line(signatures + 1).ok_or(missing)?;
        let (note, bundle) = file.split_at(end);
        let signed = Signed::parse(note)?;
        let mut lines = signed.note.text().lines().skip(3);
        let tiles = lines.next().and_then(|line| line.strip_prefix("tiles ")?.parse().ok());
        let tiles = tiles.ok_or(Malformed("the number of entries in tiles is missing"))?;
        let size = |line: &str| {
            let (file, bytes) = line.split_once(' ')?;
            Some((LineFile::parse(file)?, bytes.parse().ok()?))
        };
        let sizes = lines.map(size).collect::<Option<_>>();
        let sizes = sizes.ok_or(Malformed("a size of line hashes has another form"))?;
        let count = signed.checkpoint.head.size.checked_sub(tiles);
        let entries = count.and_then(|count| tile::entries(bundle.get(1..)?, count).ok());
        let entries = entries.ok_or(Malformed("the entries are not those of its size"))?;
        let entries = entries.into_iter().map(<[u8]>::to_vec).collect();
        Ok(Self { signed, tiles, entries, sizes })
    }

    /// Returns the content of a file over `checkpoint`, signed by these keys. `entries` are the
    /// last entries of the log, which are not in the tiles.
    ///
    /// # Errors
    ///
    /// The origin can't be in a note, or an entry is too long.
    pub fn content(
        checkpoint: &Checkpoint,
        entries: &[Vec<u8>],
        sizes: &Sizes,
        keys: &[SigningKey],
    ) -> std::io::Result<Vec<u8>> {
        let tiles = checkpoint.head.size - entries.len() as u64;
        let mut text = format!("{checkpoint}tiles {tiles}\n");
        for (file, bytes) in sizes {
            text.push_str(&format!("{file} {bytes}\n"));
        }
        let mut note = Note::new(&text).map_err(std::io::Error::other)?;
        keys.iter().for_each(|key| note.sign(key));
        let mut content = format!("{note}\n").into_bytes();
        entries.iter().try_for_each(|entry| tile::push_entry(entry, &mut content))?;
        Ok(content)
    }
}
