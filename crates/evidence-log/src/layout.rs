//! The names of the files of the evidence, how they are read, and the file in which a tile is
//! found. Every read is bounded by what the relay may have written.

use std::{fmt, io};

use crate::tlog::tile::{Tile, WIDTH};
use base::disk;
use base::disk::{Access, Disk, File};

/// The name of the directory of the log, below that of the queue.
pub const DIRECTORY: &str = "evidence";

/// The name of a file in which earlier versions kept the entries that no checkpoint covered, below
/// the directory of the log.
pub const JOURNAL: &str = "journal";

/// The file in the queue's directory, beside the log, which says that a witness has contradicted
/// the log. It has two lines: the origin and the reason.
pub const ROLLED_BACK: &str = "evidence-rolled-back";

/// The file in the queue's directory, beside the log, with a copy of the newest checkpoint. If the
/// log is shorter than this checkpoint, somebody has cut or removed it.
pub const KNOWN: &str = "evidence-checkpoint";

/// The file in the queue's directory, beside the log, that is signed over all entries that are
/// durable. It is a checkpoint with further lines.
pub const HEAD: &str = "evidence-head";

/// The file in the queue's directory, beside the log, with the positions of the events that came in
/// while evidence was off.
pub const OFF: &str = "evidence-off";

/// The directory of the files of line hashes, below that of the log.
pub const LINES: &str = "lines";

/// The maximum size of the file [`ROLLED_BACK`] in bytes.
pub const ROLLED_BACK_MAX: usize = 16 << 10;

/// A place that has the files of a log, such as a directory or a server.
pub trait Files {
    /// Returns the content of a file; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The file can't be read, or has more than `max` bytes.
    fn read(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>>;

    /// Returns the width of a file that begins with `_tile`, if the tile has no file of its own. A
    /// place that can't list its files does not know its partial files, and returns the width of
    /// the whole file.
    ///
    /// # Errors
    ///
    /// The directory of the tile can't be read.
    fn wider(&self, _tile: Tile) -> io::Result<u64> {
        Ok(WIDTH)
    }

    /// Returns the bytes of a tile or bundle; `None` if the log does not have it. If a partial file
    /// was deleted, its bytes are read from the wider file that replaced it.
    ///
    /// # Errors
    ///
    /// The file can't be read, or has another content than its name says.
    fn tile(&self, tile: Tile) -> io::Result<Option<Vec<u8>>> {
        let found = self.read(&tile.path(), tile.bytes_max())?;
        if found.is_some() || tile.width == WIDTH {
            return Ok(found);
        }
        let wider = Tile { width: self.wider(tile)?, ..tile };
        let bytes = self.read(&wider.path(), wider.bytes_max())?;
        bytes.map(|bytes| tile.of_wider(&bytes, wider.width)).transpose()
    }
}

/// Returns `None` if a file or directory is not there.
pub fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Returns the content of a file; `None` if there is none. The relay never writes more than `max`
/// bytes to it.
pub fn read(disk: &dyn Disk, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = if_there(disk.open(path, Access::Read))? else { return Ok(None) };
    let bytes = file.bytes()?;
    if bytes > max as u64 {
        let what = format!("{path} has {bytes} bytes, and the relay writes at most {max}");
        return Err(io::Error::other(Tampered(what)));
    }
    read_all(&*file, max).map(Some)
}

/// Fills the buffer with bytes of a file.
///
/// # Errors
///
/// The file ends before, or the disk refuses.
pub fn read_exact(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_at(buffer, offset)? {
        read if read == buffer.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads the first bytes of a file, at most this many.
pub fn read_all(file: &dyn File, max: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(file.bytes()?).unwrap_or(usize::MAX).min(max)];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok(content)
}

/// A log that somebody else has changed in such a way that it can't be continued.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Tampered(pub String);

impl Tampered {
    /// Returns `true` if the error is of this kind, or is about a symlink.
    pub fn is(error: &io::Error) -> bool {
        disk::is_link(error) || error.get_ref().is_some_and(|error| error.is::<Self>())
    }
}

/// Reads the file [`ROLLED_BACK`]. Returns the reason; `None` if it is about another origin.
pub fn rolled_back(text: &[u8], origin: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let (of, why) = text.split_once('\n').unwrap_or((&text, ""));
    (of == origin).then(|| why.trim_end().to_owned())
}

/// Returns the path of a file of the log below the queue's directory.
pub fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// The name of a file of line hashes: the first position in it, with 20 digits. If a file is full
/// and no event has come in since it began, the next file has the same position and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineFile {
    /// The first position in the file. The file may also have hashes of lines that came in earlier
    /// and were sent later.
    pub first: u64,
    /// Counts the files with this first position, from 0 on.
    pub number: u32,
}

impl LineFile {
    /// Reads the name of a file; `None` if the text is not such a name.
    pub fn parse(name: &str) -> Option<Self> {
        let (first, number) = name.split_once('-').unwrap_or((name, "0"));
        let file = Self { first: first.parse().ok()?, number: number.parse().ok()? };
        (file.to_string() == name).then_some(file)
    }

    /// Returns the path of the file below the directory of the log.
    pub fn path(self) -> String {
        format!("{LINES}/{self}")
    }
}

impl fmt::Display for LineFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}", self.first)?;
        if self.number > 0 { write!(f, "-{}", self.number) } else { Ok(()) }
    }
}
