//! Reads an evidence log in a directory. A relay may be writing to the directory, or the directory
//! may be a copy.

use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::head::{HEAD_BYTES_MAX, HeadFile};
pub use super::layout::Files;
use super::layout::{
    DIRECTORY, HEAD, KNOWN, LINES, LineFile, ROLLED_BACK, ROLLED_BACK_MAX, if_there,
};
use super::lines::{FILE_BYTES_MAX, Range, Record};
use super::{entry, layout, lines};
use crate::tlog::checkpoint::Signed;
use crate::tlog::malformed::Malformed;
use crate::tlog::merkle::{Frontier, Hash, Head, Nodes, root_at};
use crate::tlog::note::NOTE_BYTES_MAX;
use crate::tlog::tile;
use crate::tlog::tile::{CHECKPOINT, Content, Tile, WIDTH};
use base::disk::named;
use base::named_file;

const NAMES_MAX: usize = 20;

/// The directory of a log.
#[derive(Debug, PartialEq, Eq)]
pub struct Directory(PathBuf);

impl Directory {
    /// Finds the log, which is the directory itself or `evidence` in it. A log without a checkpoint
    /// is found by its tiles.
    ///
    /// # Errors
    ///
    /// Neither of the two has a checkpoint or tiles.
    pub fn find(directory: &Path) -> io::Result<Self> {
        // A symlink is followed only if it is the named directory itself.
        let named = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let places = [named.join(DIRECTORY), named];
        let has = |place: &Path, name| place.join(name).symlink_metadata().is_ok();
        let found = [CHECKPOINT, "tile"].iter().find_map(|name| {
            places.iter().find(|place| has(place, name)).map(|place| Self(place.clone()))
        });
        found.ok_or_else(|| {
            let names: Vec<_> = names_in(directory).into_iter().take(NAMES_MAX).collect();
            io::Error::other(format!(
                "{} holds no evidence: neither it nor evidence in it has a file {CHECKPOINT}. It \
                 has: {}",
                directory.display(),
                names.join(", ")
            ))
        })
    }

    /// Returns the checkpoint in the file [`KNOWN`] next to the log. `None` if the file is missing,
    /// as in a copy, or can't be read.
    pub fn remembered(&self) -> Option<Signed> {
        let file = open(self.0.parent()?, KNOWN).ok()??;
        Signed::parse(&read_from(&file, NOTE_BYTES_MAX).ok()?).ok()
    }

    /// Returns the logs with a checkpoint in a queue's directory: the relay's own log, and logs
    /// that were set aside.
    pub fn beside(queue: &Path) -> Vec<Self> {
        let names = names_in(queue).into_iter().filter(|name| name.starts_with(DIRECTORY));
        let places = names.map(|name| queue.join(name));
        let places = places.filter(|place| place.join(CHECKPOINT).symlink_metadata().is_ok());
        places.map(|place| Self(place.canonicalize().unwrap_or(place))).collect()
    }

    /// Returns the log in this directory. It may have no checkpoint yet.
    pub fn at(log: &Path) -> Self {
        Self(log.to_owned())
    }

    /// Returns `true` if the log is in the directory `evidence` of this queue.
    pub fn is_below(&self, queue: &Path) -> bool {
        queue.canonicalize().is_ok_and(|queue| self.0 == queue.join(DIRECTORY))
    }

    /// Returns the content of the file [`HEAD`]. `None` if the file is missing, as in a copy, or
    /// has no signature, as in earlier versions.
    ///
    /// # Errors
    ///
    /// The file can't be read.
    pub fn head(&self) -> io::Result<Option<Vec<u8>>> {
        // The file of a log that was set aside is in the log's own directory.
        let around = self.0.parent().filter(|_| self.0.ends_with(DIRECTORY)).unwrap_or(&self.0);
        let file = open(around, HEAD).map_err(named(HEAD))?;
        let content = file.map(|file| read_from(&file, HEAD_BYTES_MAX).map_err(named(HEAD)));
        Ok(content.transpose()?.filter(|content| !content.starts_with(b"{")))
    }

    /// Returns the reason why a witness contradicted the log of this origin, if one did.
    ///
    /// # Errors
    ///
    /// The file [`ROLLED_BACK`] can't be read.
    pub fn rolled_back(&self, origin: &str) -> io::Result<Option<String>> {
        let text = self.rolled_back_file()?;
        Ok(text.and_then(|text| layout::rolled_back(&text, origin)))
    }

    /// Returns the content of the file [`ROLLED_BACK`]. A copy has this file inside of the log.
    pub(super) fn rolled_back_file(&self) -> io::Result<Option<Vec<u8>>> {
        for place in [self.0.parent(), Some(self.0.as_path())].into_iter().flatten() {
            if let Some(file) = open(place, ROLLED_BACK).map_err(named(ROLLED_BACK))? {
                return read_from(&file, ROLLED_BACK_MAX).map(Some).map_err(named(ROLLED_BACK));
            }
        }
        Ok(None)
    }

    /// Returns the names of the files of line hashes, sorted.
    pub fn line_files(&self) -> io::Result<Vec<LineFile>> {
        let mut files = self.names(Path::new(LINES), LineFile::parse)?;
        files.sort_unstable();
        Ok(files)
    }

    /// Returns the widths of the partial files of a tile, sorted.
    pub fn partial_widths(&self, tile: Tile) -> io::Result<Vec<u64>> {
        let path = Tile { width: 1, ..tile }.path();
        let directory = Path::new(&path).parent().unwrap_or(Path::new(""));
        let width = |name: &str| name.parse().ok().filter(|width: &u64| width.to_string() == name);
        let mut widths = self.names(directory, width)?;
        widths.sort_unstable();
        Ok(widths)
    }

    /// Returns the directory below which no symlink may be followed, and the file's path relative
    /// to it. For a log in a queue's directory, this directory is the queue's, so that `evidence`
    /// itself must not be a symlink.
    fn below(&self, path: &Path) -> (&Path, PathBuf) {
        match self.0.parent().filter(|_| self.0.ends_with(DIRECTORY)) {
            Some(queue) => (queue, Path::new(DIRECTORY).join(path)),
            None => (&self.0, path.to_owned()),
        }
    }

    fn open(&self, path: &str) -> io::Result<Option<fs::File>> {
        let (root, path) = self.below(Path::new(path));
        if_there(named_file::open_below(root, path))
    }

    fn names<T>(&self, directory: &Path, read: impl Fn(&str) -> Option<T>) -> io::Result<Vec<T>> {
        let name = directory.display().to_string();
        let (root, path) = self.below(directory);
        if !named_file::is_directory_below(root, &path).map_err(named(&name))? {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let entries = if_there(fs::read_dir(self.0.join(directory))).map_err(named(&name))?;
        for entry in entries.into_iter().flatten() {
            let entry = entry.map_err(named(&name))?;
            found.extend(entry.file_name().to_str().and_then(&read));
        }
        Ok(found)
    }

    /// Returns the content of a file of line hashes; empty if the file was deleted.
    pub fn line_file(&self, file: LineFile) -> io::Result<Vec<u8>> {
        let path = file.path();
        Ok(self.read(&path, FILE_BYTES_MAX).map_err(named(&path))?.unwrap_or_default())
    }

    /// Returns the record at an offset of a file of line hashes. `None` if the file was deleted or
    /// has no valid record there.
    pub fn line_record(&self, file: LineFile, offset: u64) -> io::Result<Option<Record>> {
        let path = file.path();
        let Some(file) = self.open(&path).map_err(named(&path))? else { return Ok(None) };
        let read = |bytes: &mut [u8], at| file.read_exact_at(bytes, at);
        lines::record_at(offset, read).map_err(named(&path))
    }

    /// Returns the line hashes of received events with this first position, number and root. `None`
    /// if no file has them.
    pub fn range_of(&self, first: u64, count: u64, root: Hash) -> io::Result<Option<Range>> {
        let mut files = self.line_files()?;
        files.retain(|file| file.first <= first);
        // Usually the last of these files has the range. After a crash, an earlier file may have it
        // too.
        files.sort_unstable_by(|a, b| b.cmp(a));
        for file in files {
            let content = self.line_file(file)?;
            for record in lines::Records::of(&content).filter_map(|(_, record)| record.ok()) {
                let is_same = record.output.is_none() && record.count == count;
                if is_same && record.range.first == first && record.range.root() == root {
                    return Ok(Some(record.range));
                }
            }
        }
        Ok(None)
    }
}

/// Returns `true` if the error is about a file that no relay writes: a symlink, a pipe, a
/// directory, or an oversized file.
pub fn is_foreign(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::FileTooLarge)
}

/// Returns the sorted names in a directory, or none if it can't be read.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Opens a file below a directory that other users may write to. `None` if it does not exist.
fn open(directory: &Path, path: &str) -> io::Result<Option<fs::File>> {
    if_there(named_file::open_below(directory, path))
}

fn read_from(file: &fs::File, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > max {
        true => {
            let text = format!("the file has more than {max} bytes");
            Err(io::Error::new(io::ErrorKind::FileTooLarge, text))
        }
        false => Ok(bytes),
    }
}

impl Files for Directory {
    fn read(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        self.open(path)?.map(|file| read_from(&file, max)).transpose()
    }

    fn wider(&self, tile: Tile) -> io::Result<u64> {
        let widths = self.partial_widths(tile)?.into_iter();
        Ok(widths.filter(|width| (tile.width..WIDTH).contains(width)).max().unwrap_or(WIDTH))
    }
}

/// The reason why a log can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log has no checkpoint.
    #[error("the log has no checkpoint")]
    NoCheckpoint,
    /// The file [`CHECKPOINT`] does not contain a checkpoint.
    #[error("{CHECKPOINT}: {0}")]
    Checkpoint(#[source] Malformed),
    /// A file can't be read.
    #[error("{path}: {error}")]
    File {
        /// The path of the file, relative to the log.
        path: String,
        /// The reason.
        error: io::Error,
    },
}

impl ReadError {
    pub(super) fn of(tile: Tile, error: io::Error) -> Self {
        Self::File { path: tile.path(), error }
    }

    /// Returns `true` if the log itself is at fault: a file is missing, wrong, or not a regular
    /// file. Returns `false` if the reader had no access or no connection, or if the disk failed.
    pub fn is_of_the_log(&self) -> bool {
        let Self::File { error, .. } = self else { return true };
        is_foreign(error)
            || matches!(
                error.kind(),
                io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            )
    }
}

/// A log up to its checkpoint or up to the note of a [`HeadFile`]. Signatures and hashes are not
/// checked.
pub struct Log<'a> {
    /// The files of the log.
    pub files: &'a dyn Files,
    /// The checkpoint, or the note of a [`HeadFile`].
    pub signed: Signed,
    /// The last entries, from the [`HeadFile`]. The entries before them are in the tiles.
    behind: Vec<Vec<u8>>,
}

impl<'a> Log<'a> {
    /// Reads the checkpoint of a log.
    ///
    /// # Errors
    ///
    /// There is no checkpoint, or it can't be read.
    pub fn open(files: &'a dyn Files) -> Result<Self, ReadError> {
        let failed = |error| ReadError::File { path: CHECKPOINT.to_owned(), error };
        let note = files.read(CHECKPOINT, NOTE_BYTES_MAX).map_err(failed)?;
        let note = note.ok_or(ReadError::NoCheckpoint)?;
        let signed = Signed::parse(&note).map_err(ReadError::Checkpoint)?;
        Ok(Self { files, signed, behind: Vec::new() })
    }

    /// Reads the log up to the end of the file [`HEAD`] or up to the checkpoint, whichever covers
    /// more entries.
    ///
    /// # Errors
    ///
    /// There is no checkpoint, or it can't be read.
    pub fn newest(directory: &'a Directory) -> Result<Self, ReadError> {
        let log = Self::open(directory)?;
        let head = directory.head().ok().flatten().and_then(|file| HeadFile::parse(&file).ok());
        let head = head.filter(|head| head.signed.checkpoint.origin == log.origin());
        Ok(head.and_then(|head| log.up_to(head)).unwrap_or(log))
    }

    /// Returns the log up to the end of a file [`HEAD`]. `None` if the checkpoint covers at least
    /// as many entries.
    pub fn up_to(&self, head: HeadFile) -> Option<Self> {
        let HeadFile { signed, tiles, mut entries, .. } = head;
        if signed.checkpoint.head.size <= self.size() {
            return None;
        }
        // The checkpoint may cover some of the file's entries.
        let covered = usize::try_from(self.size().saturating_sub(tiles)).ok()?;
        let behind = entries.split_off(covered.min(entries.len()));
        Some(Self { files: self.files, signed, behind })
    }

    /// Returns the size and the root that [`Log::signed`] covers.
    pub fn head(&self) -> Head {
        self.signed.checkpoint.head
    }

    /// Returns the number of entries that [`Log::signed`] covers.
    pub fn size(&self) -> u64 {
        self.head().size
    }

    /// Returns the number of entries that are read from the tiles.
    pub fn tiled(&self) -> u64 {
        self.size().saturating_sub(self.behind.len() as u64)
    }

    /// Returns the name of the log.
    pub fn origin(&self) -> &str {
        &self.signed.checkpoint.origin
    }

    fn tile<T>(
        &self,
        tile: Tile,
        read: impl FnOnce(&[u8]) -> io::Result<T>,
    ) -> Result<T, ReadError> {
        let missing = || io::Error::other(format!("{} is missing", tile.path()));
        let bytes = self.files.tile(tile).and_then(|bytes| bytes.ok_or_else(missing));
        bytes.and_then(|bytes| read(&bytes)).map_err(|error| ReadError::of(tile, error))
    }

    /// Returns the hashes of a tile.
    ///
    /// # Errors
    ///
    /// The tile is missing, can't be read, or has the wrong number of hashes.
    pub fn hashes(&self, tile: Tile) -> Result<Vec<Hash>, ReadError> {
        self.tile(tile, |bytes| tile::hashes(bytes, tile.width))
    }

    /// Returns the entries that [`Log::signed`] covers, each with its index. The iteration ends
    /// after an error.
    pub fn entries(&self) -> impl Iterator<Item = Result<(u64, Vec<u8>), ReadError>> {
        let bundles =
            (0..self.tiled().div_ceil(WIDTH)).flat_map(|index| match self.bundle(index) {
                Ok(entries) => (index * WIDTH..).zip(entries).map(Ok).collect(),
                Err(error) => vec![Err(error)],
            });
        let behind = (self.tiled()..).zip(self.behind.iter().cloned()).map(Ok);
        let mut has_failed = false;
        bundles
            .chain(behind)
            .take_while(move |entry| !std::mem::replace(&mut has_failed, entry.is_err()))
    }

    /// Returns the position after the last event that came in or that the queue lost. `None` if no
    /// entry is about such an event.
    ///
    /// # Errors
    ///
    /// A bundle is missing or can't be read.
    pub fn end_in_queue(&self) -> Result<Option<u64>, ReadError> {
        entry::end_in_queue(self.tiled(), &self.behind, |index| self.bundle(index))
    }

    fn bundle(&self, index: u64) -> Result<Vec<Vec<u8>>, ReadError> {
        let width = self.tiled().saturating_sub(index * WIDTH).min(WIDTH);
        let tile = Tile { content: Content::Entries, index, width };
        self.tile(tile, |bytes| {
            Ok(tile::entries(bytes, width)?.into_iter().map(<[u8]>::to_vec).collect())
        })
    }

    /// Returns the root over the first `size` entries.
    ///
    /// # Errors
    ///
    /// A tile is missing or can't be read, or the log is shorter.
    pub fn root_at(&self, size: u64) -> io::Result<Hash> {
        let nodes = self.nodes();
        let Some(behind) = size.checked_sub(self.tiled()) else { return root_at(&nodes, size) };
        let mut frontier = Frontier::read(&nodes, self.tiled())?;
        let behind = self.behind.get(..usize::try_from(behind).unwrap_or(usize::MAX));
        let behind = behind.ok_or_else(|| io::Error::other("the log is shorter"))?;
        behind.iter().for_each(|entry| frontier.push(Hash::of_leaf(entry), &mut |_, _| {}));
        Ok(frontier.root())
    }

    /// Returns the hashes of the log's tree, read from the tiles.
    pub fn nodes(&self) -> impl Nodes {
        tile::Tiles::new(self.tiled(), |tile| {
            self.hashes(tile).map_err(|error| match &error {
                ReadError::File { error: cause, .. } => io::Error::new(cause.kind(), error),
                ReadError::NoCheckpoint | ReadError::Checkpoint(_) => io::Error::other(error),
            })
        })
    }
}
