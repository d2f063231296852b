//! The files into which a log is cut (C2SP `tlog-tiles`).
//!
//! A tile of level 0 holds the hashes of 256 entries, one of level 1 the hashes of 256 whole tiles
//! of level 0, and so on. A bundle holds 256 entries themselves. The last tile of each level may be
//! *partial*: it has fewer hashes, and their number is in its name.

use std::io;

use super::merkle::{HASH_BYTES, Hash, Nodes};

/// The number of hashes of a whole tile, and of entries of a whole bundle.
pub const WIDTH: u64 = 256;

/// The number of tree levels between the hashes of a tile and those of the tile above it.
const HEIGHT: u32 = WIDTH.trailing_zeros();

/// The maximum size of an entry in bytes.
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;

/// The maximum size of a bundle in bytes.
pub const BUNDLE_BYTES_MAX: usize = (ENTRY_BYTES_MAX + 2) << HEIGHT;

/// The name of the file with the checkpoint.
pub const CHECKPOINT: &str = "checkpoint";

/// The content of a tile's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Entries.
    Entries,
    /// Hashes of this level.
    Hashes(u32),
}

/// The name of a file of hashes or entries, whole or partial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    /// Entries or hashes.
    pub content: Content,
    /// The index of the tile in its level. The first index is 0.
    pub index: u64,
    /// The number of hashes or entries, 1 to 256.
    pub width: u64,
}

impl Tile {
    /// Returns the path relative to the log's directory or URL, such as `tile/0/x001/234.p/17`.
    pub fn path(&self) -> String {
        let mut path = match self.content {
            Content::Entries => "tile/entries".to_owned(),
            Content::Hashes(level) => format!("tile/{level}"),
        };
        let (mut groups, mut rest) = (vec![self.index % 1000], self.index / 1000);
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for (left, group) in groups.iter().enumerate().rev() {
            let sign = if left > 0 { "x" } else { "" };
            path.push_str(&format!("/{sign}{group:03}"));
        }
        if self.width < WIDTH {
            path.push_str(&format!(".p/{}", self.width));
        }
        path
    }

    /// Reads a path as [`Tile::path`] writes it. `None` for any other text.
    pub fn parse(path: &str) -> Option<Self> {
        let (content, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let content = match content {
            "entries" => Content::Entries,
            level => Content::Hashes(level.parse().ok().filter(|level| *level < u64::BITS)?),
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => (index, width.parse().ok()?),
            None => (rest, WIDTH),
        };
        let mut number: u64 = 0;
        for group in index.split('/') {
            let digits: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
            number = number.checked_mul(1000)?.checked_add(digits)?;
        }
        // Other spellings of the same numbers are refused: each tile has exactly one path.
        let tile = Self { content, index: number, width };
        ((1..=WIDTH).contains(&width) && tile.path() == path).then_some(tile)
    }

    /// Returns the bytes of this partial tile, cut from those of the same tile with the width
    /// `wider`.
    ///
    /// # Errors
    ///
    /// The bytes are not those of a tile with `wider` hashes or entries.
    pub fn of_wider(&self, bytes_of_wider: &[u8], wider: u64) -> io::Result<Vec<u8>> {
        let width = usize::try_from(self.width).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        match self.content {
            Content::Entries => {
                let entries = entries(bytes_of_wider, wider)?.into_iter().take(width);
                for entry in entries {
                    push_entry(entry, &mut bytes)?;
                }
            }
            Content::Hashes(_) => {
                let hashes = hashes(bytes_of_wider, wider)?.into_iter().take(width);
                bytes.extend(hashes.flat_map(|hash| hash.0));
            }
        }
        Ok(bytes)
    }

    /// Returns the maximum number of bytes of the tile's file.
    pub fn bytes_max(&self) -> usize {
        let width = usize::try_from(self.width).unwrap_or(usize::MAX);
        match self.content {
            Content::Entries => width.saturating_mul(ENTRY_BYTES_MAX + 2),
            Content::Hashes(_) => width.saturating_mul(HASH_BYTES),
        }
    }
}

/// For a log of `size` entries, returns the last bundle, and the last tile of each level that has
/// hashes.
pub fn last_tiles(size: u64) -> impl Iterator<Item = Tile> {
    let last = |content, count: u64| {
        let index = count.saturating_sub(1) / WIDTH;
        (count > 0).then(|| Tile { content, index, width: count - index * WIDTH })
    };
    let levels = (0..u64::BITS / HEIGHT).map(move |level| (level, size >> (HEIGHT * level)));
    let hashes = levels.filter_map(move |(level, count)| last(Content::Hashes(level), count));
    last(Content::Entries, size).into_iter().chain(hashes)
}

/// The tiles of a growing log.
#[derive(Debug, Default)]
pub struct Growing {
    /// For each level, the number of whole tiles and the hashes after them.
    levels: Vec<(u64, Vec<Hash>)>,
    /// The completed tiles. The owner must remove them from this list.
    pub whole: Vec<(Tile, Vec<Hash>)>,
}

impl Growing {
    /// Adds the hash of a subtree with `2^level` entries. Tiles have only every eighth level, so
    /// hashes of other levels are ignored.
    pub fn push(&mut self, level: u32, hash: Hash) {
        if level.is_multiple_of(HEIGHT) {
            let level = level / HEIGHT;
            let (index, hashes) = self.level(level);
            hashes.push(hash);
            if hashes.len() as u64 == WIDTH {
                let tile = Tile { content: Content::Hashes(level), index: *index, width: WIDTH };
                let hashes = std::mem::take(hashes);
                *index += 1;
                self.whole.push((tile, hashes));
            }
        }
    }

    /// Sets the last tile of a level, at startup. The next hash of the level is added after
    /// `hashes`.
    pub fn go_on(&mut self, level: u32, index: u64, hashes: Vec<Hash>) {
        *self.level(level) = match hashes.len() as u64 == WIDTH {
            true => (index + 1, Vec::new()),
            false => (index, hashes),
        };
    }

    /// Returns the partial tile of each level that has one.
    pub fn partial(&self) -> impl Iterator<Item = (Tile, &[Hash])> {
        let levels = (0..).zip(&self.levels).filter(|(_, (_, hashes))| !hashes.is_empty());
        levels.map(|(level, (index, hashes))| {
            let width = hashes.len() as u64;
            (Tile { content: Content::Hashes(level), index: *index, width }, hashes.as_slice())
        })
    }

    fn level(&mut self, level: u32) -> &mut (u64, Vec<Hash>) {
        let at = level as usize;
        if self.levels.len() <= at {
            self.levels.resize(at + 1, (0, Vec::new()));
        }
        &mut self.levels[at]
    }
}

/// Returns the tile with the hash of a node in a log of `size` entries, and the index of this hash
/// in the tile. `level` must be a multiple of 8.
pub fn tile_of(level: u32, index: u64, size: u64) -> (Tile, usize) {
    let content = Content::Hashes(level / HEIGHT);
    let count = size >> level;
    let first = index / WIDTH * WIDTH;
    let width = (count - first.min(count)).min(WIDTH);
    let place = usize::try_from(index - first).unwrap_or(usize::MAX);
    (Tile { content, index: index / WIDTH, width }, place)
}

/// The nodes of a tree of `size` entries, read from its tiles.
pub struct Tiles<R> {
    size: u64,
    read: R,
}

impl<R: Fn(Tile) -> io::Result<Vec<Hash>>> Tiles<R> {
    /// Makes the nodes. `read` must return as many hashes as the width of the tile says.
    pub fn new(size: u64, read: R) -> Self {
        Self { size, read }
    }
}

impl<R: Fn(Tile) -> io::Result<Vec<Hash>>> Nodes for Tiles<R> {
    fn node(&self, level: u32, index: u64) -> io::Result<Hash> {
        let beyond = || io::Error::other(format!("the log of {} has no such node", self.size));
        if level >= u64::BITS || index >= self.size >> level {
            return Err(beyond());
        }
        // Tiles have only every eighth level. The node is computed from the hashes below it.
        let above = level % HEIGHT;
        let first = index << above;
        let (tile, place) = tile_of(level - above, first, self.size);
        let hashes = (self.read)(tile)?;
        let below = hashes.get(place..place + (1 << above)).ok_or_else(beyond)?;
        below.node(above, 0)
    }
}

/// Reads the hashes of a tile.
///
/// # Errors
///
/// The number of bytes does not fit the width.
pub fn hashes(bytes: &[u8], width: u64) -> io::Result<Vec<Hash>> {
    let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
    if !rest.is_empty() || hashes.len() as u64 != width {
        return Err(io::Error::other(format!(
            "a tile of {width} hashes has {} bytes",
            bytes.len()
        )));
    }
    Ok(hashes.iter().copied().map(Hash).collect())
}

/// Appends an entry to a bundle: its length in two bytes, and the entry.
///
/// # Errors
///
/// The entry has more than [`ENTRY_BYTES_MAX`] bytes.
pub fn push_entry(entry: &[u8], bundle: &mut Vec<u8>) -> io::Result<()> {
    let length = u16::try_from(entry.len());
    let length = length.map_err(|_| io::Error::other("an entry is longer than 65535 bytes"))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// Reads the `width` entries of a bundle.
///
/// # Errors
///
/// The bundle has another number of entries, or ends within one.
pub fn entries(bundle: &[u8], width: u64) -> io::Result<Vec<&[u8]>> {
    let (mut rest, mut found) = (bundle, Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        let Some((entry, behind)) = behind.split_at_checked(length) else { break };
        found.push(entry);
        rest = behind;
    }
    if !rest.is_empty() || found.len() as u64 != width {
        return Err(io::Error::other(format!(
            "a bundle of {width} entries has {} and {} other bytes",
            found.len(),
            rest.len()
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tlog::merkle::{Frontier, consistency, inclusion, root};

    fn hashed(level: u32, index: u64, width: u64) -> Tile {
        Tile { content: Content::Hashes(level), index, width }
    }

    #[test]
    fn paths_are_those_of_the_specification() {
        for (tile, path) in [
            (hashed(0, 1_234_067, WIDTH), "tile/0/x001/x234/067"),
            (hashed(0, 0, WIDTH), "tile/0/000"),
            (hashed(3, 999, 1), "tile/3/999.p/1"),
            (hashed(63, 1000, 255), "tile/63/x001/000.p/255"),
            (Tile { content: Content::Entries, ..hashed(0, 273, 112) }, "tile/entries/273.p/112"),
        ] {
            assert_eq!(tile.path(), path);
            assert_eq!(Tile::parse(path), Some(tile));
        }
        let wrong = "checkpoint tile/0 tile/0/ tile/0/0 tile/0/0000 tile/0/x000/067 tile/0/001/067 \
                     tile/0/x001 tile/0/x01/067 tile/00/067 tile/+0/067 tile/64/067 tile/0/067.p/0 \
                     tile/0/067.p/256 tile/0/067.p/01 tile/0/067.p/1/2 tile/0/../067 /tile/0/067 \
                     tile/0/x999/x999/x999/x999/x999/x999/x999/999";
        for wrong in wrong.split(' ').chain([""]) {
            assert_eq!(Tile::parse(wrong), None, "{wrong}");
        }
    }

    /// The example of the specification: a log of 70,000 entries, and one of 256.
    #[test]
    fn a_log_has_the_last_tiles_of_the_specification() {
        let of = |size| last_tiles(size).map(|tile| tile.path()).collect::<Vec<_>>();
        assert_eq!(
            of(70_000),
            ["tile/entries/273.p/112", "tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]
        );
        assert_eq!(of(256), ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(of(0), [""; 0]);
    }

    #[test]
    fn tiles_are_the_nodes_of_the_tree() {
        let leaves: Vec<_> = (0_u64..70_000).map(|at| Hash::of_leaf(&at.to_be_bytes())).collect();
        let (mut frontier, mut growing) = (Frontier::default(), Growing::default());
        for leaf in &leaves {
            frontier.push(*leaf, &mut |level, hash| growing.push(level, hash));
        }
        let partial = growing.partial().map(|(tile, hashes)| (tile, hashes.to_vec()));
        let all = growing.whole.iter().cloned().chain(partial);
        let tiles: BTreeMap<_, _> =
            all.map(|(tile, hashes)| ((tile.content, tile.index), hashes)).collect();
        for size in [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 69_999, 70_000] {
            let read = |tile: Tile| {
                let hashes = &tiles[&(tile.content, tile.index)];
                Ok(hashes[..usize::try_from(tile.width).unwrap()].to_vec())
            };
            let nodes = Tiles::new(size, read);
            let all = &leaves[..usize::try_from(size).unwrap()];
            assert_eq!(Frontier::read(&nodes, size).unwrap().root(), root(all.iter().copied()));
            for index in [0, 1, size / 3, size / 2, size - 1] {
                let index = index.min(size - 1);
                let expected = inclusion(all, index, size).unwrap();
                assert_eq!(inclusion(&nodes, index, size).unwrap(), expected, "{index} of {size}");
                let expected = consistency(all, index, size).unwrap();
                assert_eq!(consistency(&nodes, index, size).unwrap(), expected, "{index}");
            }
            assert!(nodes.node(0, size).is_err());
        }
    }

    #[test]
    fn a_bundle_is_read_only_whole() {
        let mut bundle = Vec::new();
        let long = vec![b'x'; ENTRY_BYTES_MAX];
        for entry in [b"".as_slice(), b"{}", &long] {
            push_entry(entry, &mut bundle).unwrap();
        }
        assert_eq!(entries(&bundle, 3).unwrap(), [b"".as_slice(), b"{}", &long]);
        assert!(entries(&bundle, 2).is_err());
        assert!(entries(&bundle, 4).is_err());
        assert!(entries(&bundle[..bundle.len() - 1], 3).is_err());
        assert!(push_entry(&[long, vec![0]].concat(), &mut bundle).is_err());
        assert!(hashes(&[0; 64], 2).is_ok() && hashes(&[0; 63], 2).is_err());
        assert!(hashes(&[0; 64], 1).is_err() && hashes(&[], 1).is_err());
    }
}
