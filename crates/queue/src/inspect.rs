//! Reads a queue's directory from outside: while a relay is running, after a crash, or on a
//! read-only copy.
//!
//! An inspection changes nothing and prints nothing. It takes only shared locks: on each segment
//! file while the file is open, so that a relay does not overwrite it, and for a moment on the lock
//! file ([`Directory::is_in_use`]). A running relay makes and deletes segments, writes to the last
//! one, and rewrites the cursors file. Three rules keep that from looking like damage:
//!
//! - The cursors file is read before the list of segments: the log reaches at least as far as the
//!   file says.
//! - Events do not count as missing if no output needs them after the cursors file is read again:
//!   the relay writes that file before it deletes a segment.
//! - Damaged bytes in the last segment are read again several times, because the relay may be
//!   writing them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, io};

use super::contract::now;
pub use super::cursors::CursorsFile;
use super::cursors::{Contents, Found};
use super::segment::{BadHeader, Check, FIRST_RECORD, LogOffset, SegmentHeader};
use super::synced::Synced;
use super::tail::Known;
use super::{cursors, foreign, segment, synced};
use base::disk;
use base::disk::{Disk, File, QUARANTINE, RealDisk, SEGMENTS};
use base::position::Position;
use base::words::counted;

mod leftover;
mod walk;

pub use leftover::Leftover;
use walk::{Walk, Want};

/// The number of attempts to read bytes that a relay may be writing. They take about 0.2 s, because
/// a thread of the relay may be stopped that long in the middle of a write.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 20 });

/// The reason why a queue's directory can't be inspected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory does not exist.
    #[error("{}: there is no such directory; name the one that is queue.directory in the config", .0.display())]
    Absent(PathBuf),
    /// The directory holds no queue.
    #[error(
        "{} holds no queue: it has no directory segments; name the one that is queue.directory in the config",
        .0.display()
    )]
    NoQueue(PathBuf),
    /// A newer version of the program has written a file of the directory.
    #[error(
        "{} has format version {version}, this program reads {}: use the version that wrote it",
        .path.display(),
        segment::VERSION
    )]
    Newer {
        /// The file that the newer version has written.
        path: PathBuf,
        /// The format version of the file.
        version: u32,
    },
    /// The cursors file has no output of this name.
    #[error("there is no output {} in the cursors file, which has the outputs: {names}", printable(.name))]
    NoOutput {
        /// The name that was not found.
        name: String,
        /// The names of the outputs in the cursors file, joined by commas.
        names: String,
    },
    /// The operating system refuses to read a file or directory.
    #[error("cannot read {}: {error}{}", .path.display(), remedy(.error))]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The error that the caller's function [`Tell`] has returned.
    #[error(transparent)]
    Told(io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; run this as the user that runs the relay, or as root"
    } else {
        ""
    }
}

/// Escapes a name for a terminal. The name may come from a damaged file. The result is one word,
/// and not empty.
pub fn printable(name: &str) -> String {
    let escape = |char: char| match char.is_whitespace() {
        true => char.escape_unicode().to_string(),
        false => char.escape_debug().to_string(),
    };
    if name.is_empty() { "\"\"".to_owned() } else { name.chars().map(escape).collect() }
}

/// A queue's directory, opened for inspection.
#[derive(Debug)]
pub struct Directory {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

/// A summary of a queue's directory.
#[derive(Debug)]
pub struct Summary {
    /// The highest format version of the segments, or that of this program if no header can be
    /// read.
    pub format: u32,
    /// The backlogs of the outputs, in the order of their names.
    pub outputs: Vec<Output>,
    /// The state of the cursors file.
    pub cursors: CursorsFile,
    /// The number of segments that could be opened.
    pub segments: u64,
    /// The number of bytes in the files of the segments that could be opened.
    pub segment_bytes: u64,
    /// The first position of the oldest segment; without segments, the same as `end`.
    pub first: Position,
    /// The position after the last event in the log.
    pub end: Position,
    /// The number of segments before `end` with a damaged header.
    pub damaged_headers: u64,
    /// The number of files in the quarantine, and of their bytes.
    pub quarantine: (u64, u64),
    /// The number of events that outputs have set aside.
    pub aside: u64,
    /// A fault for each segment that could not be opened.
    pub unreadable: Vec<Finding>,
}

/// The events that one output has not finished, as the cursors file says.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// The output's name.
    pub name: String,
    /// The number of its unfinished events.
    pub events: u64,
    /// The number of bytes in the lines of these events.
    pub bytes: u64,
    /// The age of the oldest unfinished event that can be read; `None` if none can be read. 0 if
    /// all events are finished.
    pub oldest: Option<Duration>,
}

/// A fault in the queue's directory.
#[derive(Debug)]
pub struct Finding {
    /// The type of the fault and its place.
    pub fault: Fault,
    /// The number of events that are missing because of the fault; 0 if unknown.
    pub events: u64,
    /// The positions of the missing events; empty if unknown.
    pub positions: Range<Position>,
}

/// The types of faults. Files are named by their path relative to the queue's directory.
#[derive(Debug)]
pub enum Fault {
    /// Some bytes of a segment are damaged.
    Damaged {
        /// The path of the file.
        file: String,
        /// The offset in the file of the first damaged byte.
        offset: u64,
        /// The number of damaged bytes.
        bytes: u64,
    },
    /// No segment has these events, and an output may still need them. Dropped events don't count.
    Missing,
    /// A segment can't be opened.
    Unreadable {
        /// The path of the file.
        file: String,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The cursors file is missing, or at least one of its slots is damaged.
    Cursors(CursorsFile),
    /// A file has the name of a segment, and the queue did not write it. A relay leaves it alone.
    Foreign {
        /// The path of the file.
        file: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, events, positions: Range { start, end } } = self;
        let file = cursors::FILE;
        let events = counted(*events, "event", "events");
        match fault {
            Fault::Damaged { file, offset, bytes } => {
                let bytes = counted(*bytes, "byte", "bytes");
                write!(f, "{file} offset {offset}: {bytes} damaged, {events} missing")
            }
            Fault::Missing => {
                let last = end.saturating_back(1);
                write!(f, "positions {start} to {last}: {events} missing, no segment has them")
            }
            Fault::Unreadable { file, error } => {
                let remedy = remedy(error);
                write!(f, "{file}: cannot be read, {events} missing: {error}{remedy}")
            }
            Fault::Foreign { file } => {
                write!(f, "{file}: not written by this queue; a relay leaves it alone")
            }
            Fault::Cursors(CursorsFile::Half) => {
                write!(f, "{file}: one of two slots damaged; a relay goes on from the other one")
            }
            Fault::Cursors(state) => {
                write!(f, "{file}: {state}; with a relay every output starts at the oldest event")
            }
        }
    }
}

/// A message to the caller's function during an inspection.
#[derive(Debug)]
pub enum Seen<'a> {
    /// The next lines begin with the event at this position.
    At(Position),
    /// The next bytes of the stored lines. In a large batch, they may end inside a line.
    Lines(&'a [u8]),
    /// A fault that was found.
    Finding(&'a Finding),
    /// The number of segments that were read or skipped so far, and the number of all segments.
    Progress(usize, usize),
}

/// The caller's function, which gets each [`Seen`]. Its error ends the inspection.
pub type Tell<'a> = dyn FnMut(Seen<'_>) -> io::Result<()> + 'a;

/// The totals of an inspection.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The number of segments that were read.
    pub segments: u64,
    /// The number of stored events with a valid checksum.
    pub events: u64,
    /// The number of bytes in their lines.
    pub bytes: u64,
    /// The number of faults.
    pub findings: u64,
    /// The number of events that are missing because of these faults.
    pub missing: u64,
    /// The file and offset of an unfinished write. Its events were never acknowledged.
    pub unfinished: Option<(String, u64)>,
}

impl Directory {
    /// Opens a queue's directory for inspection.
    ///
    /// # Errors
    ///
    /// The directory does not exist, holds no queue, or can't be read.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let directory = Self { disk: Arc::new(RealDisk::look(root)), root: root.to_owned() };
        match fs::metadata(root) {
            Ok(_) => {}
            Err(error) if is_absent(&error) => return Err(Error::Absent(root.to_owned())),
            Err(error) => return Err(Error::Read { path: root.to_owned(), error }),
        }
        directory.segments()?;
        Ok(directory)
    }

    /// Returns a summary, for which this reads the headers of all segments, the headers of records
    /// up to each output's first unfinished event, and the end of the log.
    ///
    /// # Errors
    ///
    /// The directory can't be read, or a newer version of the program has written it. Damage, or a
    /// segment that can't be opened, is not an error.
    pub fn summary(&self) -> Result<Summary, Error> {
        for _ in 1..ATTEMPTS {
            let (summary, settled) = self.look()?;
            if settled {
                return Ok(summary);
            }
        }
        Ok(self.look()?.0)
    }

    /// Returns the name of each output in the cursors file, and the position of the first event
    /// that the output has not finished.
    ///
    /// # Errors
    ///
    /// The cursors file can't be read, or a newer version of the program has written it.
    pub fn places(&self) -> Result<Vec<(String, Position)>, Error> {
        let found = self.cursors()?;
        let outputs = found.contents.into_iter().flat_map(|contents| contents.outputs);
        Ok(outputs.map(|(name, place)| (name, place.position)).collect())
    }

    /// Passes lines to `tell`, the oldest first: those of all undamaged events or, if `output` is
    /// `Some`, of those that this output has not finished. Also passes damage to `tell`, which is
    /// not an error. Returns the totals.
    ///
    /// # Errors
    ///
    /// The directory can't be read, a newer version of the program has written it, its cursors file
    /// does not have this output, or `tell` has failed.
    pub fn export(&self, output: Option<&str>, tell: &mut Tell<'_>) -> Result<Verdict, Error> {
        let found = self.cursors()?;
        let mut from = Position::START;
        if let Some(name) = output {
            let outputs = found.contents.as_ref().map(|contents| &contents.outputs);
            let place = outputs.and_then(|outputs| outputs.get(name));
            from = place.ok_or_else(|| no_output(name, outputs))?.position;
        }
        self.walk(&found, Want { lines: true, output, from }, tell)
    }

    /// Reads all segments, and passes each fault and the progress to `tell`. Returns the totals.
    ///
    /// # Errors
    ///
    /// The directory can't be read, a newer version of the program has written it, or `tell` has
    /// failed.
    pub fn verify(&self, tell: &mut Tell<'_>) -> Result<Verdict, Error> {
        let found = self.cursors()?;
        self.walk(&found, Want { lines: false, output: None, from: Position::START }, tell)
    }

    /// Reads the segments. The file `synced` must be read before they are listed: otherwise events
    /// in segments that a relay makes in between would count as missing.
    fn walk(&self, found: &Found, want: Want<'_>, tell: &mut Tell<'_>) -> Result<Verdict, Error> {
        Walk::new(self, want, tell).run(found, self.synced()?)
    }

    fn failed(&self, file: &str, error: io::Error) -> Error {
        Error::Read { path: self.root.join(file), error }
    }

    fn synced(&self) -> Result<Option<Synced>, Error> {
        synced::read(&*self.disk).map_err(|error| self.failed(synced::FILE, error))
    }

    /// Reads the cursors file. Repeats this while a slot is not valid: a relay may be writing it.
    fn cursors(&self) -> Result<Found, Error> {
        let mut attempts = ATTEMPTS;
        loop {
            let read = cursors::read(&*self.disk);
            let found = read.map_err(|error| self.failed(cursors::FILE, error))?;
            attempts -= 1;
            match found.state {
                CursorsFile::Newer(version) => {
                    return Err(Error::Newer { path: self.root.join(cursors::FILE), version });
                }
                CursorsFile::Half | CursorsFile::Damaged if attempts > 0 => pause(),
                CursorsFile::Whole
                | CursorsFile::Half
                | CursorsFile::Damaged
                | CursorsFile::Missing => return Ok(found),
            }
        }
    }

    /// Returns the first positions of the segments, and those in the names of foreign files.
    fn files(&self) -> Result<(Vec<Position>, Vec<Position>), Error> {
        let list = || {
            segment::list(&*self.disk).map_err(|error| match is_absent(&error) {
                true => Error::NoQueue(self.root.clone()),
                false => self.failed(SEGMENTS, error),
            })
        };
        // A list that is made while files are made and deleted may have a new file and lack an
        // older one. The second list has this older file.
        let newest = list()?.last().copied();
        let mut segments = list()?;
        segments.retain(|first| Some(*first) <= newest);
        let foreign = foreign::find(&*self.disk, &segments);
        segments.retain(|first| !foreign.contains(first));
        Ok((segments, foreign))
    }

    fn segments(&self) -> Result<Vec<Position>, Error> {
        Ok(self.files()?.0)
    }

    fn segment(&self, first: Position) -> io::Result<Option<Arc<dyn File>>> {
        disk::open_if_there(&*self.disk, &segment::file_name(first))
    }

    /// Reads a segment's header. `None` if it is damaged or not written yet. A relay may be writing
    /// the header of the last segment, so that one is read several times.
    fn header(
        &self,
        file: &dyn File,
        first: Position,
        is_last: bool,
    ) -> Result<Option<SegmentHeader>, Error> {
        let mut attempts = if is_last { ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            match SegmentHeader::read(file, first) {
                Ok(header) => return Ok(Some(header)),
                Err(BadHeader::Newer(version)) => {
                    let path = self.root.join(segment::file_name(first));
                    return Err(Error::Newer { path, version });
                }
                Err(BadHeader::Damaged | BadHeader::Misnamed) if attempts == 0 => return Ok(None),
                Err(BadHeader::Damaged | BadHeader::Misnamed) => pause(),
            }
        }
    }

    /// Returns the end of the log. `Ok(None)` if a segment was deleted that must be read for this.
    fn end(
        &self,
        segments: &[Position],
        contents: &Contents,
        mut synced: Option<Synced>,
    ) -> Result<Option<LogOffset>, Error> {
        let mut known = Known::end(contents.known(), synced);
        let mut next = None;
        for &first in segments.iter().rev() {
            let file = match self.segment(first) {
                Ok(Some(file)) => file,
                Ok(None) => return Ok(None),
                Err(_) => break,
            };
            let header = self.header(&*file, first, next.is_none())?;
            let limit = walk::limit(first, next, &contents.holes);
            let byte = header.map_or(0, |it| it.first_byte);
            let segment = walk::open(&*file, first, header, limit);
            let known_here = Known::new(known, synced, first);
            let end = walk::tail(&segment, byte, known_here).end.max(known);
            if header.is_some() || end.position > first {
                return Ok(Some(end));
            }
            // The header of this segment was not written yet, so the log ends here. The segment
            // before it knows the byte number.
            (next, known.position, synced) = (Some(first), first, None);
        }
        Ok(Some(known))
    }

    /// Makes a summary. The `bool` is `false` if it must be made again, because a file was deleted.
    fn look(&self) -> Result<(Summary, bool), Error> {
        let found = self.cursors()?;
        let contents = found.contents.clone().unwrap_or_default();
        let synced = self.synced()?;
        let segments = self.segments()?;
        let end = self.end(&segments, &contents, synced)?;
        let (mut settled, end) = (end.is_some(), end.unwrap_or(contents.known()));
        let mut summary = Summary {
            format: 0,
            outputs: Vec::new(),
            cursors: found.state,
            segments: 0,
            segment_bytes: 0,
            first: segments.first().copied().unwrap_or(end.position),
            end: end.position,
            damaged_headers: 0,
            quarantine: disk::sizes(&*self.disk, QUARANTINE),
            aside: self.aside(&found, None)?,
            unreadable: Vec::new(),
        };
        for (first, next) in with_next(&segments) {
            match self.segment(first) {
                Ok(Some(file)) => {
                    summary.segments += 1;
                    summary.segment_bytes += file.bytes().unwrap_or(0);
                    let header = self.header(&*file, first, false)?;
                    let version = header.map_or(0, |header| header.version);
                    summary.format = summary.format.max(version);
                    // A segment at the end of the log may have no header yet.
                    summary.damaged_headers += u64::from(header.is_none() && first < end.position);
                }
                Ok(None) => {}
                Err(error) => {
                    let end = next.map_or(first, |_| walk::limit(first, next, &contents.holes));
                    let events = end - first;
                    let fault = Fault::Unreadable { file: segment::file_name(first), error };
                    let positions = first..first + events;
                    summary.unreadable.push(Finding { fault, events, positions });
                }
            }
        }
        for (name, place) in contents.outputs {
            let dropped = cursors::missing_from(&contents.holes, place.position);
            let events = (end.position - place.position).saturating_sub(dropped.0);
            let bytes = end.byte.saturating_sub(place.byte).saturating_sub(dropped.1);
            let (oldest, found) = match events {
                0 => (Some(Duration::ZERO), true),
                _ => self.age(&segments, place.position),
            };
            settled &= found;
            summary.outputs.push(Output { name, events, bytes, oldest });
        }
        if summary.format == 0 {
            summary.format = segment::VERSION;
        }
        Ok((summary, settled))
    }

    /// Returns the age of the event at this position, or of the next undamaged one. The `bool` is
    /// `false` if the caller should try again, because a file was deleted.
    fn age(&self, segments: &[Position], position: Position) -> (Option<Duration>, bool) {
        let index = segments.partition_point(|first| *first <= position).saturating_sub(1);
        for (first, next) in with_next(segments).skip(index) {
            let Ok(file) = self.segment(first) else { continue };
            let Some(file) = file else { return (None, false) };
            let limit = next.unwrap_or(Position::MAX);
            let header = SegmentHeader::read(&*file, first).ok();
            let segment = walk::open(&*file, first, header, limit);
            let mut scan = segment.scan((FIRST_RECORD, first), Check::Headers);
            scan.skip_to(position);
            while let Some(found) = scan.next() {
                if let segment::Found::Record(record) = found {
                    let age = now().saturating_sub(record.header.received);
                    return (Some(Duration::from_millis(age)), true);
                }
            }
        }
        (None, true)
    }
}

fn with_next(segments: &[Position]) -> impl Iterator<Item = (Position, Option<Position>)> {
    let next = segments.iter().skip(1).copied().map(Some).chain([None]);
    segments.iter().copied().zip(next)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn no_output(name: &str, outputs: Option<&BTreeMap<String, LogOffset>>) -> Error {
    let names: Vec<String> =
        outputs.into_iter().flatten().map(|(name, _)| printable(name)).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Error::NoOutput { name: name.to_owned(), names }
}

#[allow(
    clippy::disallowed_methods,
    reason = "commands have no runtime whose threads it could block"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests;
