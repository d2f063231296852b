//! The files of dead letters: bounded, rotated, synced, and readable by no other user.
//!
//! Letters may hold Secrets: the files have mode 0600 in a directory of mode 0700, and no symbolic
//! link is followed to either. This process writes only to files that it has made itself. A file
//! that was there before may therefore hold anything, belong to any user and end inside a line.
//! Before each write it notices if somebody has moved, replaced or changed its file. Several
//! processes may share a directory: each locks the file that it writes to, and no process deletes a
//! locked file.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::io::{BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use telemetry::DroppedLetters;

/// The number of parts into which `dead_letter.max_bytes` is divided. A file is full when it has
/// the size of one part. When room is needed, the oldest file is deleted as a whole, and with it
/// about an eighth of all letters.
const FILES: u64 = 8;

/// The maximum number of dead-letter files in the directory, even if they are small. Each start of
/// the relay that writes dead letters makes a new file.
const COUNT_MAX: usize = 1024;

/// The maximum number of names that are tried for a new file. A name may be in use already, because
/// another process has made a file at the same moment.
const NAMES_MAX: u64 = 1000;

/// The limit for the number in the name of a dead-letter file, which is a time in milliseconds
/// since 1970. A file with a larger number (a time after the year 37,648) was not made by a relay.
const NUMBER_MAX: u64 = 1 << 50;

/// The pause before the third and last attempt to write dead letters. If the letters before these
/// could not be written, there is no pause and no third attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// One dead letter, which is one line of a file.
pub(super) struct Line<'a> {
    /// The first bytes of the letter, which come before the event.
    pub(super) head: &'a [u8],
    /// The event, without its line break.
    pub(super) event: &'a [u8],
}

/// The last bytes of a dead letter, which come after the event.
const TAIL: &[u8] = b"}\n";

impl Line<'_> {
    fn bytes(&self) -> u64 {
        (self.head.len() + self.event.len() + TAIL.len()) as u64
    }
}

/// The dead-letter files of one directory. The thread that writes them owns this value.
pub(super) struct LetterFiles {
    path: PathBuf,
    max_bytes: u64,
    dropped: DroppedLetters,
    /// The file that letters are written to; `None` before the first letter, and after an error.
    current: Option<Current>,
    /// `true` if the previous letters could not be written.
    failing: bool,
}

/// The file that letters are written to. This process has made it, and all its bytes are synced.
struct Current {
    file: File,
    name: String,
    /// The length of the file, in bytes.
    bytes: u64,
}

impl LetterFiles {
    /// Makes the state for the directory `path`. The files in the directory may have at most
    /// `max_bytes` together. The call does not access the disk.
    pub(super) fn new(path: &Path, max_bytes: u64, dropped: DroppedLetters) -> Self {
        Self {
            // The components leave out a slash at the end of the path. With the slash, the kernel
            // would follow a symbolic link.
            path: path.components().collect(),
            max_bytes,
            dropped,
            current: None,
            failing: false,
        }
    }

    /// Makes the directory if it is missing. Returns the number of dead-letter files in it.
    pub(super) fn look(&self) -> io::Result<usize> {
        Ok(Directory::open(&self.path)?.files()?.len())
    }

    /// Writes and syncs all lines. Returns one result for each line; an error is the reason why the
    /// line is not synced.
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

    /// Returns how many of the lines, counted from the first, fit together into one file. The
    /// result is at least 1, because a single line that is too long gets a file of its own.
    fn fitting(&self, lines: &[Line<'_>]) -> usize {
        let mut left = self.file_bytes();
        let fits = |line: &&Line<'_>| {
            let rest = left.checked_sub(line.bytes());
            left = rest.unwrap_or_default();
            rest.is_some()
        };
        lines.iter().take_while(fits).count().max(1)
    }

    /// Returns the size in bytes at which a file is full. A single letter that is longer gets a
    /// file of its own.
    fn file_bytes(&self) -> u64 {
        self.max_bytes / FILES
    }

    /// Writes and syncs lines in one file. After an error, it tries another file at once. After a
    /// second error, it pauses and tries a third time. If the previous attempts to store lines
    /// failed too, the pause and the third attempt are left out. Returns the error of the last
    /// attempt. If the lines are longer than `max_bytes`, returns an error without any attempt.
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

    /// Writes and syncs lines in the current file, or in a new file if they do not fit. After an
    /// error the file is never written to again, because nobody knows what a failed sync has left
    /// on the disk.
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
            // The lines that were written before the error are removed again, if the disk allows
            // it.
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

    /// Deletes the oldest dead-letter files that no process writes to. Stops when there is room for
    /// `bytes` more bytes and one more file, or when no such file is left.
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
    /// Appends lines to the file and syncs it. After an error, some of the lines may be in the
    /// file.
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

/// A dead-letter file in the directory, made by this process or by another one.
struct LetterFile {
    name: String,
    bytes: u64,
}

/// The open directory of the dead letters. Files are opened relative to this handle. If the
/// directory's path later leads to another directory, the handle still means the first one.
struct Directory(OwnedFd);

impl Directory {
    /// Opens the directory at `path`, and makes it if it is missing.
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

    /// Returns the dead-letter files in the directory, the oldest first. Files that other processes
    /// have made are included.
    fn files(&self) -> io::Result<Vec<LetterFile>> {
        let mut files = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if number_of(name).is_none() {
                continue;
            }
            // A file that has just been deleted by another process is left out.
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

    /// Returns `true` if the file still has its name in the directory, and still has the length
    /// that it had after the last write of this process.
    fn holds(&self, current: &Current) -> bool {
        let (Ok(there), Ok(ours)) = (self.stat(&current.name), rustix::fs::fstat(&current.file))
        else {
            return false;
        };
        let same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino);
        same && length(&ours) == current.bytes
    }

    /// Makes and locks a new dead-letter file. Its name sorts after the names of all such files in
    /// the directory.
    fn create(&self) -> io::Result<Current> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or_default();
        // The clock may have been set back. So the number is at least one more than that of the
        // newest file.
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
                    // Another process may be deleting the file, and then has its lock. Other errors
                    // of locking are ignored: not every file system has locks.
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

    /// Deletes a file of the directory. It is not an error if the file is gone already.
    fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            // Another process has already deleted the file.
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Deletes a dead-letter file. Returns the number of events that were in it. Returns `None`,
    /// and deletes nothing, if another process is writing to the file.
    fn drop_file(&self, name: &str) -> io::Result<Option<u64>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut events = 0;
        // A file that can't be read is also deleted, and counts as empty.
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

/// Returns the number of whole lines in a file.
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

/// Makes a directory, and its missing parents. The parent of each new directory is synced;
/// otherwise a power loss could take the directory away again, with its files.
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

/// Returns the number in the name of a dead-letter file: the time when it was made, in milliseconds
/// since 1970, or a larger number if the name was in use or a newer file was there already. Returns
/// `None` if `name` is not the name of a dead-letter file.
fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".jsonl")?;
    let ours = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| ours)?;
    (number < NUMBER_MAX).then_some(number)
}
