//! The names of the evidence files, and functions that read a file or a tile. Each read has a
//! limit, which is greater than the size that a relay gives the file.

use std::{fmt, io};

use crate::tlog::tile::{Tile, WIDTH};
use base::disk;
use base::disk::{Access, Disk, File};

/// The directory of the log, in the queue's directory.
pub const DIRECTORY: &str = "evidence";

/// The file in the log's directory in which earlier versions kept entries without a checkpoint
/// ([`super::journal`]).
pub const JOURNAL: &str = "journal";

/// The file next to the log with the origin of a log that a witness has contradicted, and the
/// reason.
pub const ROLLED_BACK: &str = "evidence-rolled-back";

/// The file next to the log with a copy of the newest checkpoint. The copy reveals that the log was
/// cut.
pub const KNOWN: &str = "evidence-checkpoint";

/// The file next to the log with a signature over all durable entries ([`super::head`]).
pub const HEAD: &str = "evidence-head";

/// The file next to the log with the positions of events that came in while evidence was off.
pub const OFF: &str = "evidence-off";

/// The directory of the files of line hashes, in the log's directory.
pub const LINES: &str = "lines";

/// The maximum size of the file [`ROLLED_BACK`] in bytes.
pub const ROLLED_BACK_MAX: usize = 16 << 10;

/// The files of a log, in a directory or on a server.
pub trait Files {
    /// Returns the content of a file. `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// The file can't be read, or has more than `max` bytes.
    fn read(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>>;

    /// Returns the width (the number of hashes or entries) of the file to read if the partial file
    /// of `_tile` was deleted. By default, this is the width of a whole tile, for a log whose files
    /// can't be listed.
    fn wider(&self, _tile: Tile) -> io::Result<u64> {
        Ok(WIDTH)
    }

    /// Returns the bytes of a tile or bundle, if the log has it. If a partial file was deleted, the
    /// bytes are taken from the wider file that replaced it.
    ///
    /// # Errors
    ///
    /// The file can't be read, or its content does not match its name.
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

/// Turns a `NotFound` error into `None`.
pub fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Returns the content of a file, or `None` if it does not exist. A file of more than `max` bytes
/// is an error, because no relay writes one.
pub fn read(disk: &dyn Disk, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = if_there(disk.open(path, Access::Read))? else { return Ok(None) };
    let bytes = file.bytes()?;
    if bytes > max as u64 {
        let what = format!("{path} has {bytes} bytes, and the relay writes at most {max}");
        return Err(io::Error::other(Tampered(what)));
    }
    read_at_most(&*file, max).map(Some)
}

/// Fills the buffer with the bytes from `offset` on.
///
/// # Errors
///
/// The file ends too early, or the disk refuses.
pub fn read_exact(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_at(buffer, offset)? {
        read if read == buffer.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Returns the content of a file, or the first `max` bytes of a longer one.
pub fn read_at_most(file: &dyn File, max: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(file.bytes()?).unwrap_or(usize::MAX).min(max)];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok(content)
}

/// The error that another program has changed the log, so that no relay can continue it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Tampered(pub String);

impl Tampered {
    /// Returns `true` if the error is a [`Tampered`], or is about a symlink.
    pub fn is(error: &io::Error) -> bool {
        disk::is_link(error) || error.get_ref().is_some_and(|error| error.is::<Self>())
    }
}

/// Returns the reason in the text of the file [`ROLLED_BACK`], or `None` if the text is about
/// another origin.
pub fn rolled_back(text: &[u8], origin: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let (of, why) = text.split_once('\n').unwrap_or((&text, ""));
    (of == origin).then(|| why.trim_end().to_owned())
}

/// Returns the path of a file of the log below the queue's directory.
pub fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// The name of a file of line hashes: the first position in 20 digits. A number follows if an
/// earlier file with this position became full before another event came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineFile {
    /// The first position. The file may also have lines of earlier positions that were sent later.
    pub first: u64,
    /// The number of earlier files with this first position.
    pub number: u32,
}

impl LineFile {
    /// Reads the name of a file. `None` if the text is not such a name.
    pub fn parse(name: &str) -> Option<Self> {
        let (first, number) = name.split_once('-').unwrap_or((name, "0"));
        let file = Self { first: first.parse().ok()?, number: number.parse().ok()? };
        (file.to_string() == name).then_some(file)
    }

    /// Returns the path relative to the log's directory.
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
