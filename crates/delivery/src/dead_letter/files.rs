//! The files of dead letters: bounded, rotated, synced, and readable by no other user.
//!
//! Letters may hold Secrets: the files have mode 0600, a directory that is made for them has mode
//! 0700, and neither may be a symbolic link. This process writes only to files that it has made
//! itself, because any other file may hold anything, belong to any user and end inside a line.
//! Before each write it checks that nobody has moved or replaced its file, or changed its length.
//! Processes may share a directory: each locks its file, and no process deletes a locked file.

use std::fs::{File, TryLockError};
use std::io;
use std::io::{BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use base::disk::make;
use telemetry::DroppedLetters;

/// The number of parts of `dead_letter.max_bytes`. A file has at most the size of one part, or a
/// single letter. To make room, the oldest file is deleted.
const FILES: u64 = 8;

/// At this number of files, old ones are deleted. Each process that writes letters makes a new one.
const COUNT_MAX: usize = 1024;

/// The maximum number of names that are tried for a new file. Other processes may use some.
const NAMES_MAX: u64 = 1000;

/// The limit for the number in a file's name, a time in milliseconds since 1970. A file with a
/// larger number (after the year 37,648) was not made by a relay.
const NUMBER_MAX: u64 = 1 << 50;

/// The pause before the third and last attempt to write letters.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Line<'a> {
    pub(super) head: &'a [u8],
    /// The event, without its line break.
    pub(super) event: &'a [u8],
}

const TAIL: &[u8] = b"}\n";

impl Line<'_> {
    fn bytes(&self) -> u64 {
        (self.head.len() + self.event.len() + TAIL.len()) as u64
    }
}

/// The dead-letter files of one directory. The writing thread owns this value.
pub(super) struct LetterFiles {
    path: PathBuf,
    max_bytes: u64,
    dropped: DroppedLetters,
    /// The file that letters are written to, if there is one.
    current: Option<Current>,
    /// `true` if the previous letters could not be written.
    failing: bool,
}

/// A file that this process has made. All its bytes are synced.
struct Current {
    file: File,
    name: String,
    bytes: u64,
}

impl LetterFiles {
    /// Makes the value for the directory `path`, whose files may have `max_bytes` together. Does
    /// not access the disk.
    pub(super) fn new(path: &Path, max_bytes: u64, dropped: DroppedLetters) -> Self {
        Self {
            // A slash at the end would make the kernel follow a link. The components leave it out.
            path: path.components().collect(),
            max_bytes,
            dropped,
            current: None,
            failing: false,
        }
    }

    pub(super) fn look(&self) -> io::Result<usize> {
        Ok(Directory::open(&self.path)?.files()?.len())
    }

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

    /// Returns the number of lines that fit together into one file, but at least 1: a line that is
    /// too long gets its own file.
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

    /// Writes and syncs lines in one file. After an error, tries again immediately. After a second
    /// error, tries again after a pause, unless the previous lines failed too. Returns the last
    /// error. Lines longer than `max_bytes` are an error without any attempt.
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

    /// Appends to the current file, or to a new file if the lines do not fit. A file with an error
    /// is never written to again, because a failed sync leaves unknown bytes on the disk.
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
            // The lines before the error are removed if the disk allows it.
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

    /// Deletes the oldest dead-letter files that no process writes to, until there is room for
    /// `bytes` more bytes and one more file, or until no such file is left. A file whose events
    /// can't be counted stays: it is an error if there is no room without it.
    fn make_room(
        &mut self,
        directory: &Directory,
        bytes: u64,
        current: Option<&Current>,
    ) -> io::Result<()> {
        let files = directory.files()?;
        let mut total: u64 = files.iter().map(|found| found.bytes).sum();
        let (mut count, mut uncounted, mut going) = (files.len(), None, Vec::new());
        for found in &files {
            if total + bytes <= self.max_bytes && count < COUNT_MAX {
                break;
            }
            if current.is_some_and(|current| current.name == found.name) {
                continue;
            }
            let events = match directory.count(&found.name) {
                Ok(Some(events)) => events,
                Ok(None) => continue,
                Err(error) => {
                    uncounted.get_or_insert((&found.name, error));
                    continue;
                }
            };
            going.push((&found.name, events));
            (total, count) = (total - found.bytes, count - 1);
        }
        if let Some((name, error)) = uncounted
            && (total + bytes > self.max_bytes || count >= COUNT_MAX)
        {
            let path = self.path.join(name);
            let what = format!("cannot read {}, to count and delete it: {error}", path.display());
            return Err(io::Error::new(error.kind(), what));
        }
        for (name, events) in going {
            directory.remove(name)?;
            self.dropped.add(events);
        }
        Ok(())
    }
}

impl Current {
    /// After an error, some of the lines may be in the file.
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

/// A dead-letter file, made by this process or by another one.
struct LetterFile {
    name: String,
    bytes: u64,
}

/// An open directory. It stays the same one if its path later leads elsewhere.
struct Directory(OwnedFd);

impl Directory {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::open(path, flags, Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT) => {
                make(path).map_err(io::Error::other)?;
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

    /// Returns the dead-letter files of all processes, the oldest first.
    fn files(&self) -> io::Result<Vec<LetterFile>> {
        let mut files = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if number_of(name).is_none() {
                continue;
            }
            // If there is no status, another process has most likely deleted the file.
            let Ok(stat) = self.stat(name) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                files.push(LetterFile { name: name.to_owned(), bytes: length(&stat) });
            }
        }
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    fn stat(&self, name: &str) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Returns `true` if the file still has its name, and the length that this process left.
    fn holds(&self, current: &Current) -> bool {
        let (Ok(there), Ok(ours)) = (self.stat(&current.name), rustix::fs::fstat(&current.file))
        else {
            return false;
        };
        let same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino);
        same && length(&ours) == current.bytes
    }

    /// Makes and locks a new file. Its name sorts after all others.
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
                    // Another process may have locked the file to delete it. Other errors of
                    // locking are ignored, because not every file system has locks.
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
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Returns the number of a file's events, or `None` if it is locked. A file that is gone has
    /// none.
    fn count(&self, name: &str) -> io::Result<Option<u64>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Some(0)),
            opened => File::from(opened?),
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            _ => count_lines(file).map(Some),
        }
    }
}

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

fn length(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// Returns the number in a file's name: the time when the file was made, in milliseconds since
/// 1970. The number is larger if the name was in use or a newer file existed.
fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".jsonl")?;
    let ours = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| ours)?;
    (number < NUMBER_MAX).then_some(number)
}
