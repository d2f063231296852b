//! Copies an evidence log while its relay may be running.
//!
//! The copy has the newest checkpoint, exactly the tiles and entries that this checkpoint covers,
//! and the line hashes of the events in these entries. The only file next to the log that is copied
//! is `evidence-rolled-back`.
//!
//! During the copy, the relay may delete files:
//!
//! - the partial tiles of older checkpoints. They are read directly after the checkpoint, and the
//!   relay keeps them until it has signed two newer ones. If one is missing nevertheless, the copy
//!   fails. Whole tiles are never changed or deleted.
//! - the oldest line hashes. A later checkpoint covers the entry about their deletion. The copy
//!   then waits for a newer checkpoint, so that the copied log explains each deleted hash.
//!
//! The copy is made in a directory next to its target and renamed at the end. Nothing is written to
//! the directory of the log.

use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use tokio::time::Instant;

use super::entry::Entry;
use super::layout::{LINES, ROLLED_BACK, if_there};
use super::lines;
use super::reader::{Directory, Files as _, Log, ReadError};
use crate::tlog::merkle::root_at;
use crate::tlog::tile;
use crate::tlog::tile::{CHECKPOINT, Content, Tile, WIDTH, last_tiles};

/// The longest wait for a checkpoint that explains deleted line hashes: twice the default of
/// `evidence.checkpoint_interval`, and some time for the relay.
const EXPLAINED_WITHIN: Duration = Duration::from_secs(25);

const PAUSE: Duration = Duration::from_millis(100);

/// The reason why the copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target directory can't be used.
    #[error("{0}")]
    Target(String),
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The relay has deleted a file of the checkpoint that was being copied.
    #[error("the relay replaced the checkpoint during the copy; run the command again")]
    Changing,
    /// The copy can't be written.
    #[error("cannot write the copy: {0}")]
    Write(#[from] io::Error),
}

/// The result of [`copy`].
#[derive(Debug)]
pub struct Copied {
    /// The name of the log.
    pub origin: String,
    /// The number of entries that the checkpoint covers.
    pub entries: u64,
    /// The number of files of line hashes.
    pub line_files: u64,
    /// The positions whose line hashes are missing from the front of the log although no entry says
    /// that they were deleted.
    pub unexplained: Option<Range<u64>>,
}

/// Copies the log `files` in `directory` to the directory `to`, which must be empty or not exist.
///
/// # Errors
///
/// See [`CopyError`]. The directory `to` is then as it was, unless only the last sync has failed.
pub fn copy(files: &Directory, directory: &Path, to: &Path) -> Result<Copied, CopyError> {
    let part = part_of(directory, to)?;
    let copied = Copying { files, part: &part, explained: Explained::default(), bundles: 0 }.run();
    let copied = copied.and_then(|copied| {
        fs::rename(&part, to)?;
        fs::File::open(around(&part))?.sync_all()?;
        Ok(copied)
    });
    if copied.is_err() {
        fs::remove_dir_all(&part).ok();
    }
    copied
}

fn around(path: &Path) -> &Path {
    let around = path.parent().filter(|around| !around.as_os_str().is_empty());
    around.unwrap_or(Path::new("."))
}

/// Checks the target, and makes the directory `TO.part` for the unfinished copy.
fn part_of(directory: &Path, to: &Path) -> Result<PathBuf, CopyError> {
    let shown = to.display();
    let refused = |why: &str| CopyError::Target(format!("{shown}: {why}"));
    let is_free = match fs::read_dir(to) {
        Ok(mut names) => names.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => to.symlink_metadata().is_err(),
        Err(_) => false,
    };
    if !is_free {
        return Err(refused("there is something already; name a directory that does not exist"));
    }
    let name = to.file_name().ok_or_else(|| refused("this is not the name of a new directory"))?;
    let part = to.with_file_name([name, ".part".as_ref()].join("".as_ref()));
    let around = around(&part).canonicalize();
    let around = around.map_err(|error| refused(&format!("its directory: {error}")))?;
    if directory.canonicalize().is_ok_and(|directory| around.starts_with(directory)) {
        return Err(refused("nothing is written to the directory that is copied"));
    }
    fs::DirBuilder::new().mode(0o700).create(&part).map_err(|error| {
        let name = part.display();
        if error.kind() == io::ErrorKind::AlreadyExists {
            refused(&format!(
                "{name} is there, as a copy that was not finished leaves it: delete it"
            ))
        } else {
            refused(&format!("cannot make {name}: {error}"))
        }
    })?;
    Ok(part)
}

/// The positions whose line hashes must exist, according to the entries.
#[derive(Debug, Default)]
struct Explained {
    first: Option<u64>,
    /// The line hashes at positions below this one were deleted, according to the log.
    below: u64,
    /// The position after the last event of the log.
    end: u64,
}

impl Explained {
    fn add(&mut self, bundle: &[u8], width: u64) -> io::Result<()> {
        for entry in tile::entries(bundle, width)? {
            // An entry that can't be read is copied as it is.
            let Ok(entry) = Entry::parse(entry) else { continue };
            if let Entry::Accepted { first, .. } = &entry {
                self.first.get_or_insert(*first);
            } else if let Entry::Pruned { below, .. } = &entry {
                self.below = self.below.max(*below);
            }
            self.end = self.end.max(entry.in_queue().map_or(0, |range| range.end));
        }
        Ok(())
    }
}

struct Copying<'a> {
    files: &'a Directory,
    part: &'a Path,
    /// The result for the entries of the whole bundles that were copied. The entries of the last,
    /// partial bundle are added only to a copy of this value, because each attempt reads that
    /// bundle again.
    explained: Explained,
    bundles: u64,
}

/// A checkpoint and its partial tiles, which the relay may delete after a later checkpoint.
struct Begun<'a> {
    log: Log<'a>,
    partial: Vec<(Tile, Vec<u8>)>,
}

impl<'a> Copying<'a> {
    fn run(mut self) -> Result<Copied, CopyError> {
        let until = Instant::now() + EXPLAINED_WITHIN;
        loop {
            let begun = self.begin()?;
            self.whole_tiles(begun.log.size())?;
            let mut explained = Explained { ..self.explained };
            for (tile, bytes) in &begun.partial {
                if tile.content == Content::Entries {
                    explained.add(bytes, tile.width).map_err(|error| failed(*tile, error))?;
                }
            }
            let (line_files, oldest) = self.line_hashes(explained.end)?;
            let from = explained.below.max(explained.first.unwrap_or(u64::MAX));
            let gap = from..oldest.unwrap_or(explained.end);
            // The relay itself deletes the oldest line hashes, and never all of them.
            if oldest.is_some()
                && !gap.is_empty()
                && Instant::now() < until
                && self.has_newer(&begun.log, until)
            {
                continue;
            }
            self.end(&begun)?;
            return Ok(Copied {
                origin: begun.log.origin().to_owned(),
                entries: begun.log.size(),
                line_files,
                unexplained: Some(gap).filter(|gap| !gap.is_empty()),
            });
        }
    }

    fn begin(&self) -> Result<Begun<'a>, CopyError> {
        let log = Log::open(self.files)?;
        let mut partial = Vec::new();
        for tile in last_tiles(log.size()).filter(|tile| tile.width < WIDTH) {
            match self.files.tile(tile).map_err(|error| failed(tile, error))? {
                Some(bytes) => partial.push((tile, bytes)),
                // Only a newer checkpoint explains why the file was deleted.
                None if Log::open(self.files)?.head() == log.head() => return Err(gone(tile)),
                None => return Err(CopyError::Changing),
            }
        }
        Ok(Begun { log, partial })
    }

    /// Copies the whole tiles and bundles of a log of `size` entries, except those that an earlier
    /// call has copied.
    fn whole_tiles(&mut self, size: u64) -> Result<(), CopyError> {
        for index in self.bundles..size / WIDTH {
            let tile = Tile { content: Content::Entries, index, width: WIDTH };
            let bytes = self.whole_tile(tile)?;
            self.explained.add(&bytes, WIDTH).map_err(|error| failed(tile, error))?;
            let mut level = 0;
            // The last entry of a tile may also complete tiles of the levels above.
            let mut ended = index + 1;
            self.whole_tile(Tile { content: Content::Hashes(level), index, width: WIDTH })?;
            while ended.is_multiple_of(WIDTH) {
                (ended, level) = (ended / WIDTH, level + 1);
                let content = Content::Hashes(level);
                self.whole_tile(Tile { content, index: ended - 1, width: WIDTH })?;
            }
            self.bundles = index + 1;
        }
        Ok(())
    }

    fn whole_tile(&self, tile: Tile) -> Result<Vec<u8>, CopyError> {
        let bytes = self.files.tile(tile).map_err(|error| failed(tile, error))?;
        let bytes = bytes.ok_or_else(|| gone(tile))?;
        self.write_tile(tile, &bytes)?;
        Ok(bytes)
    }

    fn write_tile(&self, tile: Tile, bytes: &[u8]) -> Result<(), CopyError> {
        if let Content::Hashes(_) = tile.content {
            tile::hashes(bytes, tile.width).map_err(|error| failed(tile, error))?;
        }
        self.write(&tile.path(), bytes)
    }

    /// Copies the records of line hashes whose first position is below `end`. Returns the number of
    /// files, and the lowest position with the hash of a received line.
    fn line_hashes(&self, end: u64) -> Result<(u64, Option<u64>), CopyError> {
        let failed =
            |error: io::Error| CopyError::Log(ReadError::File { path: LINES.to_owned(), error });
        if_there(fs::remove_dir_all(self.part.join(LINES)))?;
        let (mut count, mut oldest) = (0, None);
        for file in self.files.line_files().map_err(failed)? {
            let content = self.files.line_file(file).map_err(failed)?;
            let mut kept = Vec::new();
            for record in lines::Records::of(&content).map_while(|(_, record)| record.ok()) {
                let first = record.range.first;
                if record.output.is_none() {
                    oldest = Some(oldest.map_or(first, |oldest| first.min(oldest)));
                }
                if first < end {
                    record.write(&mut kept);
                }
            }
            if !kept.is_empty() {
                self.write(&file.path(), &kept)?;
                count += 1;
            }
        }
        Ok((count, oldest))
    }

    /// Waits for a checkpoint that is newer than that of `log`. Returns `false` if none came in
    /// time.
    #[expect(clippy::disallowed_methods, reason = "this runs in a command, not in a runtime")]
    fn has_newer(&self, log: &Log<'_>, until: Instant) -> bool {
        while Instant::now() < until {
            if Log::open(self.files).is_ok_and(|newest| newest.size() > log.size()) {
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    fn end(&self, begun: &Begun<'_>) -> Result<(), CopyError> {
        for (tile, bytes) in &begun.partial {
            self.write_tile(*tile, bytes)?;
        }
        if let Some(why) = self.files.rolled_back_file()? {
            self.write(ROLLED_BACK, &why)?;
        }
        self.write(CHECKPOINT, begun.log.signed.note.to_string().as_bytes())?;
        let copy = Directory::at(self.part);
        let copy = Log::open(&copy)?;
        if root_at(&copy.nodes(), copy.size())? != copy.head().root {
            return Err(CopyError::Write(io::Error::other(
                "the tiles are not those that the checkpoint was signed over: the log is damaged",
            )));
        }
        // One call syncs all files of the copy.
        rustix::fs::syncfs(fs::File::open(self.part)?).map_err(io::Error::from)?;
        Ok(())
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), CopyError> {
        let path = self.part.join(path);
        if let Some(around) = path.parent() {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(around)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
        Ok(file.write_all(bytes)?)
    }
}

fn failed(tile: Tile, error: io::Error) -> CopyError {
    CopyError::Log(ReadError::of(tile, error))
}

fn gone(tile: Tile) -> CopyError {
    failed(tile, io::Error::other("the file is missing"))
}
