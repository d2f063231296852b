//! The files of dead letters: bounded, rotated, synced, and readable by no other user.
//!
//! Letters may hold Secrets: the files have mode 0600, a directory that is made for them has mode
//! 0700, and neither may be a symbolic link. This process writes only to files that it has made
//! itself, because any other file may hold anything, belong to any user and end inside a line.
//! Before each write it checks that nobody has moved or replaced its file, or changed its length.
//! Processes may share a directory: each locks its files, and no process deletes a locked file.
//!
//! A flood of letters pushes out its own letters and not those of others. The *origin* of a letter
//! is its output, its reason and its sender. While the recent letters of one origin take more than
//! a [`SHARES`]th of the room, the origin gets files of its own. To make room, the oldest file of
//! the origin whose own files hold most goes first, if they hold more than that share, and else the
//! oldest file. The origins of files of earlier processes are read from their letters.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use audit::request::request;
use audit::scan;
use base::disk::make;
use telemetry::DroppedLetters;

/// The number of parts of `dead_letter.max_bytes`. A file has at most the size of one part, or a
/// single letter. To make room, whole files are deleted.
const FILES: u64 = 16;

/// The number of shares of `dead_letter.max_bytes`. An origin with more than one share is a flood.
const SHARES: u64 = 8;

/// The maximum number of files that are open for writing: one for each flood that can be recent at
/// the same time. If there are more, they begin new files more often.
const CURRENT_MAX: usize = 8;

/// The maximum number of origins whose bytes are counted. The letters of further origins count as
/// those of no flood.
const ORIGINS_MAX: usize = 4096;

/// The maximum number of bytes of a reason that distinguish it from others.
const REASON_BYTES_MAX: usize = 100;

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
    pub(super) output: &'a str,
    pub(super) reason: &'a str,
    /// The part of the letter before its event, with the output and the reason.
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
    /// The files that letters are written to, at most [`CURRENT_MAX`]. The one that was used last
    /// is the last one.
    current: Vec<Current>,
    /// The origin of each file whose letters all have the same one; `None` for any other file. A
    /// file whose letters were not read is missing.
    origins: HashMap<String, Option<Origin>>,
    recent: Recent,
    /// `true` if the previous letters could not be written.
    failing: bool,
}

/// A file that this process has made. All its bytes are synced.
struct Current {
    file: File,
    name: String,
    bytes: u64,
    /// The flood whose letters are in the file; `None` if it has those of all other origins.
    flood: Option<Origin>,
}

/// The hash of a letter's output, reason and sender. It differs in each process, so that nobody can
/// choose a name with the hash of another.
pub(super) type Origin = u64;

/// The bytes of recent letters by their origin. They are halved each time that they are more than
/// `dead_letter.max_bytes` together.
#[derive(Default)]
pub(super) struct Recent {
    hasher: RandomState,
    bytes: HashMap<Origin, u64>,
    sum: u64,
}

impl Recent {
    /// Only the first words of a reason count, without digits: a consumer may quote the event, and
    /// a sender must not get a share for each text that it can make a consumer say. Service
    /// accounts of a namespace are one sender, because who controls the namespace can make more.
    pub(super) fn origin(&self, output: &[u8], reason: &[u8], event: &[u8]) -> Origin {
        let is_end = |byte: &u8| matches!(byte, b'"' | b'\'' | b'`' | b'[' | b'{' | b'(');
        let words = reason.split(is_end).next().unwrap_or_default();
        let words = words.iter().filter(|byte| !byte.is_ascii_digit()).take(REASON_BYTES_MAX);
        let words: Vec<u8> = words.copied().collect();
        let user = request(event).user.unwrap_or_default().name;
        let is_colon = |byte: &u8| *byte == b':';
        let sender = match user.strip_prefix(b"system:serviceaccount:") {
            Some(account) => account.split(is_colon).next().unwrap_or_default(),
            None => &*user,
        };
        self.hasher.hash_one((output, words, user.len() > sender.len(), sender))
    }

    /// Returns the origin of the line if it is that of a flood, and counts the line.
    fn flood(&mut self, line: &Line<'_>, max_bytes: u64) -> Option<Origin> {
        let origin = self.origin(line.output.as_bytes(), line.reason.as_bytes(), line.event);
        if self.bytes.len() >= ORIGINS_MAX && !self.bytes.contains_key(&origin) {
            return None;
        }
        let bytes = self.bytes.entry(origin).or_default();
        *bytes += line.bytes();
        self.sum += line.bytes();
        let is_flood = *bytes > max_bytes / SHARES;
        if self.sum > max_bytes {
            self.bytes.values_mut().for_each(|bytes| *bytes /= 2);
            self.bytes.retain(|_, bytes| *bytes > 0);
            self.sum = self.bytes.values().sum();
        }
        is_flood.then_some(origin)
    }
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
            current: Vec::new(),
            origins: HashMap::new(),
            recent: Recent::default(),
            failing: false,
        }
    }

    pub(super) fn look(&self) -> io::Result<usize> {
        Ok(Directory::open(&self.path)?.files()?.len())
    }

    /// Writes letters, and returns the result of each.
    pub(super) fn write(&mut self, lines: &[Line<'_>]) -> Vec<Result<(), String>> {
        let mut groups: Vec<(Option<Origin>, Vec<usize>)> = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let flood = self.recent.flood(line, self.max_bytes);
            match groups.iter_mut().find(|(other, _)| *other == flood) {
                Some((_, indices)) => indices.push(index),
                None => groups.push((flood, vec![index])),
            }
        }
        let mut results = vec![Ok(()); lines.len()];
        for (flood, indices) in groups {
            let mut rest = &*indices;
            while !rest.is_empty() {
                let group: Vec<_> = rest.iter().filter_map(|index| lines.get(*index)).collect();
                let fitting = self.fitting(&group);
                let some = group.get(..fitting).unwrap_or_default();
                let stored = self.store(some, flood).map_err(|error| error.to_string());
                let (indices, others) = rest.split_at(fitting);
                for index in indices {
                    results[*index].clone_from(&stored);
                }
                rest = others;
            }
        }
        results
    }

    /// Returns the number of lines that fit together into one file, but at least 1: a line that is
    /// too long gets its own file.
    fn fitting(&self, lines: &[&Line<'_>]) -> usize {
        let mut left = self.file_bytes();
        let fits = |line: &&&Line<'_>| {
            let rest = left.checked_sub(line.bytes());
            left = rest.unwrap_or_default();
            rest.is_some()
        };
        lines.iter().take_while(fits).count().max(1)
    }

    fn file_bytes(&self) -> u64 {
        self.max_bytes / FILES
    }

    /// Writes and syncs lines in one file, that of the `flood` if they are of one. After an error,
    /// tries again immediately. After a second error, tries again after a pause, unless the
    /// previous lines failed too. Returns the last error. Lines longer than `max_bytes` are an
    /// error without any attempt.
    fn store(&mut self, lines: &[&Line<'_>], flood: Option<Origin>) -> io::Result<()> {
        let bytes = lines.iter().map(|line| line.bytes()).sum();
        if bytes > self.max_bytes {
            return Err(io::Error::other("the event is longer than dead_letter.max_bytes"));
        }
        let mut append = || self.append(lines, bytes, flood);
        let mut stored = append().or_else(|_| append());
        if stored.is_err() && !self.failing {
            std::thread::park_timeout(PAUSE);
            stored = self.append(lines, bytes, flood);
        }
        self.failing = stored.is_err();
        stored
    }

    /// Appends to a current file, or to a new file if the lines do not fit. A file with an error is
    /// never written to again, because a failed sync leaves unknown bytes on the disk.
    fn append(&mut self, lines: &[&Line<'_>], bytes: u64, flood: Option<Origin>) -> io::Result<()> {
        let directory = Directory::open(&self.path)?;
        let at = self.current.iter().position(|current| current.flood == flood);
        let goes_on = at.map(|at| self.current.remove(at)).filter(|current| {
            current.bytes + bytes <= self.file_bytes() && directory.holds(current)
        });
        self.make_room(&directory, bytes, goes_on.as_ref())?;
        let mut current = match goes_on {
            Some(current) => current,
            None => directory.create(flood)?,
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
        self.origins.insert(current.name.clone(), flood);
        self.current.push(current);
        if self.current.len() > CURRENT_MAX {
            self.current.remove(0);
        }
        Ok(())
    }

    /// Deletes dead-letter files that no other process writes to, in the order of
    /// [`Self::first_to_go`], until there is room for `bytes` more bytes and one more file, or
    /// until no such file is left. The file `current` stays. So does a file whose events can't be
    /// counted: it is an error if there is no room without it.
    fn make_room(
        &mut self,
        directory: &Directory,
        bytes: u64,
        current: Option<&Current>,
    ) -> io::Result<()> {
        let mut files = directory.files()?;
        let mut total: u64 = files.iter().map(|found| found.bytes).sum();
        let (mut count, mut uncounted, mut going) = (files.len(), None, Vec::new());
        let has_room = |total: u64, count| total + bytes <= self.max_bytes && count < COUNT_MAX;
        if has_room(total, count) {
            return Ok(());
        }
        self.origins.retain(|name, _| files.iter().any(|found| found.name == *name));
        let mut held = HashMap::new();
        for found in &files {
            if !self.origins.contains_key(&found.name)
                && let Ok(Some(origin)) =
                    directory.origin(&found.name, &self.recent, self.max_bytes)
            {
                self.origins.insert(found.name.clone(), origin);
            }
            if let Some(Some(origin)) = self.origins.get(&found.name) {
                *held.entry(*origin).or_default() += found.bytes;
            }
        }
        while !has_room(total, count) && !files.is_empty() {
            let found = files.remove(self.first_to_go(&files, &held));
            if current.is_some_and(|current| current.name == found.name) {
                continue;
            }
            // A file that this process writes to is unlocked by closing it.
            self.current.retain(|current| current.name != found.name);
            let events = match directory.count(&found.name) {
                Ok(Some(events)) => events,
                Ok(None) => continue,
                Err(error) => {
                    uncounted.get_or_insert((found.name, error));
                    continue;
                }
            };
            (total, count) = (total - found.bytes, count - 1);
            if let Some(Some(origin)) = self.origins.get(&found.name) {
                held.entry(*origin).and_modify(|held| *held -= found.bytes);
            }
            going.push((found.name, events));
        }
        if let Some((name, error)) = uncounted
            && !has_room(total, count)
        {
            let path = self.path.join(name);
            let what = format!("cannot read {}, to count and delete it: {error}", path.display());
            return Err(io::Error::new(error.kind(), what));
        }
        for (name, events) in going {
            directory.remove(&name)?;
            self.dropped.add(events);
        }
        Ok(())
    }

    /// Returns the index of the file that goes first: the oldest of the flood that holds most, or
    /// the oldest of all. `files` are sorted by age, and `held` has the bytes that each origin
    /// holds in files of its own.
    fn first_to_go(&self, files: &[LetterFile], held: &HashMap<Origin, u64>) -> usize {
        let of_flood = |(at, found): (usize, &LetterFile)| {
            let origin = (*self.origins.get(&found.name)?)?;
            let held = *held.get(&origin)?;
            (held > self.max_bytes / SHARES).then_some((held, Reverse(at)))
        };
        let first = files.iter().enumerate().filter_map(of_flood).max();
        first.map_or(0, |(_, Reverse(at))| at)
    }
}

impl Current {
    /// After an error, some of the lines may be in the file.
    fn append(&mut self, lines: &[&Line<'_>]) -> io::Result<()> {
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

    /// Makes and locks a new file, for the letters of `flood` alone if there is one. Its name sorts
    /// after all others.
    fn create(&self, flood: Option<Origin>) -> io::Result<Current> {
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
                    let current = Current { file: file.into(), name, bytes: 0, flood };
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
        match self.unlocked(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(0)),
            file => file?.map(count_lines).transpose(),
        }
    }

    /// Returns the origin of a file's letters, or `Some(None)` if they do not all have the same
    /// one; `None` if the file is locked. Reads `max_bytes` bytes: no relay writes more.
    fn origin(
        &self,
        name: &str,
        recent: &Recent,
        max_bytes: u64,
    ) -> io::Result<Option<Option<Origin>>> {
        let file = self.unlocked(name)?;
        file.map(|file| origin_of(file.take(max_bytes), recent)).transpose()
    }

    /// Opens a file for reading, and locks it; `None` if another process, or this one, writes to
    /// it.
    fn unlocked(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.0, name, flags, Mode::empty())?);
        let is_locked = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        Ok((!is_locked).then_some(file))
    }
}

fn origin_of(file: impl Read, recent: &Recent) -> io::Result<Option<Origin>> {
    let (mut letters, mut letter, mut first) = (BufReader::new(file), Vec::new(), None);
    while letters.read_until(b'\n', &mut letter)? > 0 {
        let text = |value: Option<_>| value.and_then(scan::string).unwrap_or_default();
        let [output, reason, event] = scan::firsts(&letter, ["output", "reason", "event"]);
        let origin = recent.origin(&text(output), &text(reason), event.unwrap_or_default());
        if *first.get_or_insert(origin) != origin {
            return Ok(None);
        }
        letter.clear();
    }
    Ok(first)
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
