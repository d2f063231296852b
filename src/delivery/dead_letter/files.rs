//! The files of dead letters: bounded, rotated, synced, and for no other user's eyes.
//!
//! They hold Secrets: 0600 in a directory 0700, and no link is followed to either. Nothing that was in the directory before is
//! written to, so that it does not matter what it is, whose, or how it ends; and what somebody takes away, or puts in the
//! way, is noticed before each write. Several processes may share a directory: the file that one writes to is locked, and no
//! other deletes it.

use std::fs::DirBuilder;
use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::telemetry::DroppedLetters;

/// A new file is begun when the last has a part of all: so much goes at once when the oldest goes.
const FILES: u64 = 8;

/// However small they are: each start makes one when it has something to write.
const COUNT_MAX: usize = 1024;

/// Names that are tried for a new file, where another process makes files at the same moment.
const NAMES_MAX: u64 = 1000;

/// What has a larger number was not named here: it is the year 37,648.
const NUMBER_MAX: u64 = 1 << 50;

/// Before the last attempt to write, unless the disk refused before.
const PAUSE: Duration = Duration::from_secs(1);

/// A line of a file, which no other is in front of.
pub(super) struct Line<'a> {
    /// Up to the event.
    pub(super) head: &'a [u8],
    pub(super) event: &'a [u8],
}

/// Behind the event.
const TAIL: &[u8] = b"}\n";

impl Line<'_> {
    fn bytes(&self) -> u64 {
        (self.head.len() + self.event.len() + TAIL.len()) as u64
    }
}

/// The files of one directory. Owned by the thread that writes them.
pub(super) struct Files {
    path: PathBuf,
    max_bytes: u64,
    dropped: DroppedLetters,
    current: Option<Current>,
    /// The last attempts have failed.
    failing: bool,
}

/// The file that is written to: made by this process, and synced up to its end.
struct Current {
    file: File,
    name: String,
    bytes: u64,
}

impl Files {
    pub(super) fn new(path: &Path, max_bytes: u64, dropped: DroppedLetters) -> Self {
        Self {
            // A slash at the end would follow a link.
            path: path.components().collect(),
            max_bytes,
            dropped,
            current: None,
            failing: false,
        }
    }

    /// Makes the directory where it is missing, and says how many files there are.
    pub(super) fn look(&self) -> io::Result<usize> {
        Ok(Directory::open(&self.path)?.files()?.len())
    }

    /// Writes and syncs all lines, and says for each whether it is safe.
    pub(super) fn write(&mut self, lines: &[Line<'_>]) -> Vec<Result<(), String>> {
        let mut results = Vec::with_capacity(lines.len());
        let mut rest = lines;
        while !rest.is_empty() {
            let (some, others) = rest.split_at(self.fitting(rest));
            let stored = self.store(some).map_err(|error| error.to_string());
            results.extend(some.iter().map(|_| stored.clone()));
            rest = others;
        }
        results
    }

    /// How many of the lines go into one file together, at least one.
    fn fitting(&self, lines: &[Line<'_>]) -> usize {
        let mut left = self.file_bytes();
        let fits = |line: &&Line<'_>| {
            let rest = left.checked_sub(line.bytes());
            left = rest.unwrap_or_default();
            rest.is_some()
        };
        lines.iter().take_while(fits).count().max(1)
    }

    fn file_bytes(&self) -> u64 {
        self.max_bytes / FILES
    }

    /// What failed once may do in another file, or a moment later.
    fn store(&mut self, lines: &[Line<'_>]) -> io::Result<()> {
        let bytes = lines.iter().map(Line::bytes).sum();
        if bytes > self.max_bytes {
            return Err(io::Error::other("the event is longer than dead_letter.max_bytes"));
        }
        let mut stored = self.append(lines, bytes).or_else(|_| self.append(lines, bytes));
        if stored.is_err() && !self.failing {
            std::thread::park_timeout(PAUSE);
            stored = self.append(lines, bytes);
        }
        self.failing = stored.is_err();
        stored
    }

    /// After an error the file is not written to again: what a failed sync has left behind is not known.
    fn append(&mut self, lines: &[Line<'_>], bytes: u64) -> io::Result<()> {
        let directory = Directory::open(&self.path)?;
        let goes_on = self.current.take().filter(|current| {
            current.bytes + bytes <= self.file_bytes() && directory.holds(current)
        });
        self.make_room(&directory, bytes, goes_on.as_ref())?;
        let mut current = match goes_on {
            Some(current) => current,
            None => directory.create()?,
        };
        if let Err(error) = current.append(lines) {
            // No half line stays, if that can be helped.
            if current.bytes == 0 {
                directory.remove(&current.name).ok();
            } else {
                current.file.set_len(current.bytes).ok();
            }
            return Err(error);
        }
        current.bytes += bytes;
        self.current = Some(current);
        Ok(())
    }

    /// Deletes the oldest files that nobody writes to until so many bytes fit.
    fn make_room(
        &mut self,
        directory: &Directory,
        bytes: u64,
        current: Option<&Current>,
    ) -> io::Result<()> {
        let files = directory.files()?;
        let mut total: u64 = files.iter().map(|found| found.bytes).sum();
        let mut count = files.len();
        for found in &files {
            if total + bytes <= self.max_bytes && count < COUNT_MAX {
                break;
            }
            if current.is_some_and(|current| current.name == found.name) {
                continue;
            }
            let Some(events) = directory.drop_file(&found.name)? else { continue };
            (total, count) = (total - found.bytes, count - 1);
            self.dropped.add(events);
        }
        Ok(())
    }
}

impl Current {
    fn append(&mut self, lines: &[Line<'_>]) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(64 * 1024, &self.file);
        for line in lines {
            out.write_all(line.head)?;
            out.write_all(line.event)?;
            out.write_all(TAIL)?;
        }
        out.flush()?;
        drop(out);
        self.file.sync_data()
    }
}

/// A file that may be deleted.
struct Found {
    name: String,
    bytes: u64,
}

/// The directory as it is now. Names are looked up in it, wherever its path leads meanwhile.
struct Directory(OwnedFd);

impl Directory {
    /// Opens it, and makes it where it is missing.
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::open(path, flags, Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT) => {
                make(path)?;
                open()
            }
            opened => opened,
        };
        opened.map(Self).map_err(|error| {
            let remedy = match error {
                Errno::NOTDIR | Errno::LOOP => "; name a directory, not a file or a link",
                Errno::ACCESS => "; it must be writable by the user that runs the relay",
                _ => "",
            };
            let (path, error) = (path.display(), io::Error::from(error));
            io::Error::new(error.kind(), format!("cannot open {path}: {error}{remedy}"))
        })
    }

    /// Our kind of file, ours or another process's, oldest first.
    fn files(&self) -> io::Result<Vec<Found>> {
        let mut files = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if number_of(name).is_none() {
                continue;
            }
            // One may go at any time.
            let Ok(stat) = self.stat(name) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                files.push(Found { name: name.to_owned(), bytes: length(&stat) });
            }
        }
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    fn stat(&self, name: &str) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Whether a file is still in its place, and as long as it was left.
    fn holds(&self, current: &Current) -> bool {
        let (Ok(there), Ok(ours)) = (self.stat(&current.name), rustix::fs::fstat(&current.file))
        else {
            return false;
        };
        let same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino);
        same && length(&ours) == current.bytes
    }

    /// A new file, which sorts behind all that are there.
    fn create(&self) -> io::Result<Current> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or_default();
        // The clock may have been set back.
        let files = self.files()?;
        let last = files.last().and_then(|found| number_of(&found.name));
        let first = last.map_or(now, |last| now.max(last.saturating_add(1)));
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        for number in first..first.saturating_add(NAMES_MAX) {
            let name = format!("{number:020}.jsonl");
            match rustix::fs::openat(&self.0, name.as_str(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    let current = Current { file: file.into(), name, bytes: 0 };
                    // Another process may be deleting it. Not every file system has locks.
                    let lost = matches!(current.file.try_lock(), Err(TryLockError::WouldBlock));
                    if lost || !self.holds(&current) {
                        continue;
                    }
                    if let Err(error) = rustix::fs::fsync(&self.0) {
                        self.remove(&current.name).ok();
                        return Err(error.into());
                    }
                    return Ok(current);
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::from(Errno::EXIST))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            // Somebody was quicker.
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Deletes a file and says how many events were in it; `None` where another process writes to it.
    fn drop_file(&self, name: &str) -> io::Result<Option<u64>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut events = 0;
        // What can't be read goes all the same.
        if let Ok(file) = rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
            let file = File::from(file);
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                return Ok(None);
            }
            events = count_lines(file).unwrap_or_default();
        }
        self.remove(name)?;
        Ok(Some(events))
    }
}

/// Whole lines of a file.
fn count_lines(mut file: File) -> io::Result<u64> {
    let (mut buffer, mut lines) = (vec![0; 64 * 1024], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(lines),
            Ok(size) => {
                let read = buffer.get(..size).unwrap_or_default();
                lines += memchr::memchr_iter(b'\n', read).count() as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes a directory, and those around it that are missing. Each is synced into the one around it: else a power loss takes
/// it away again, with what is in it.
fn make(path: &Path) -> io::Result<()> {
    let around = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let around = around.unwrap_or(Path::new("."));
    let create = || DirBuilder::new().mode(0o700).create(path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && around != path => {
            make(around)?;
            create()?;
        }
        created => created?,
    }
    File::open(around)?.sync_all()
}

fn length(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// The number in the name of one of our files: when it was made, in milliseconds since 1970, or one more than the last.
fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".jsonl")?;
    let ours = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| ours)?;
    (number < NUMBER_MAX).then_some(number)
}
