//! Follows the audit.log of a kube-apiserver through its rotations, in one thread, until nobody
//! receives the events any more.
//!
//! The log is a live file and the rotated files next to it, in the order of their names (`Age`). A
//! place in the log is a file and an offset; *the place* is how far the reader has come. A file is
//! recognised by the first line of its text (`Head`), never by its name or inode alone. Therefore a
//! rename, a compression and a copy with truncation (`copytruncate`) look the same: the next text
//! is the rest of the file with this beginning, and then the file after it. The reader goes on to
//! the next file only when that file has text. Before that, it reads the current file to its end
//! once more: a line may have been added.
//!
//! inotify is not used, because it does not see all changes on network file systems and bind
//! mounts. If no file has the place, events may be lost. This is reported and counted, and the
//! reader continues with the oldest newer file. The same happens if it is not certain which of
//! several files with the same first line has the place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use super::input::{self, Batch, Ended, Item, Next, Plan, Reader, STDIN, Text};
use super::packing::{MAGIC_BYTES, Packing};
use super::resume::{self, Head};
use super::{Note, OnBadLine, Span, Unit, line};
use audit::EVENT_HEAD;
use base::lock::lock;
use base::named_file;

/// The time between two looks at a log that has no further line.
const POLL: Duration = Duration::from_millis(200);

/// The place counts as lost after more than this many looks in a row without a file that has the
/// place. While files are renamed, one look may miss a file.
const GONE_LOOKS: u32 = 10;

/// The size in bytes of the buffers for reads of a first line.
const BUFFER: usize = 16 * 1024;

const NO_LOG: &str = "--follow needs the log into which kube-apiserver writes, a plain file";

/// The age of a file of the log, by its name. Older files compare as less.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Age {
    /// Rotated at this time: kube-apiserver's own `audit-2026-11-20T10-00-00.000.log`, or
    /// `audit.log-20261120` of logrotate's `dateext`. A rule of logrotate for `*.log` renames the
    /// former once more, to `audit-2026-11-20T10-00-00.000.log.1`, and may leave an empty file
    /// with the old name, whose number is 0.
    At(String, std::cmp::Reverse<u64>),
    /// Rotated this many times: `audit.log.2`.
    Rotated(std::cmp::Reverse<u64>),
    /// The file into which kube-apiserver writes.
    Live,
}

impl Age {
    /// Returns the age of the file `name` of the log `live`, or `None` if the file is not of this
    /// log. The names have no `.gz` or `.zst`.
    fn of(name: &str, live: &str) -> Option<Self> {
        if name == live {
            return Some(Self::Live);
        }
        let dot = live.rfind('.').unwrap_or(live.len());
        let (stem, extension) = live.split_at(dot);
        let rest = name.strip_prefix(stem)?;
        let again = rest.rsplit_once('.').filter(|(time, number)| {
            let is_number = !number.is_empty() && number.bytes().all(|it| it.is_ascii_digit());
            is_number && time.starts_with('-') && !extension.is_empty() && time.ends_with(extension)
        });
        let (rest, number) = again.unwrap_or((rest, "0"));
        let number = number.parse().ok().map(std::cmp::Reverse)?;
        let rest = rest.strip_prefix(extension).or_else(|| rest.strip_suffix(extension))?;
        match rest.split_at_checked(1)? {
            (".", number) => number.parse().ok().map(std::cmp::Reverse).map(Self::Rotated),
            ("-", time) => {
                let is_time = |byte: u8| byte.is_ascii_digit() || b"-T.".contains(&byte);
                let has_digit = time.starts_with(|first: char| first.is_ascii_digit());
                (has_digit && time.bytes().all(is_time)).then(|| Self::At(time.to_owned(), number))
            }
            _ => None,
        }
    }
}

/// A file of the log that has text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    /// The numbers of the device and the inode.
    inode: (u64, u64),
    /// `None` if the first line can't be read. Such a file is not known to be any other.
    head: Option<Head>,
}

impl Found {
    fn begins_like(&self, read: &resume::Read) -> bool {
        self.head.is_some_and(|head| head.matches(read.head))
    }
}

/// The file that is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The rest of the file with the place.
    Rest,
    /// The file after the one with the place.
    Next,
    /// The oldest file after that of the previous record, or the oldest of all, because the file
    /// with the place is not known or is missing.
    Newer,
}

#[derive(Debug, PartialEq, Eq)]
enum Choice<T> {
    File(T),
    /// The wanted file does not exist yet.
    Later,
    /// No file has the place.
    Gone,
    /// Several files may have the place.
    Doubtful,
}

/// Chooses a file from `files`, where the oldest is first. `known` is that of [`Follower`]. Of
/// several files that begin like the one with the place, the file with the inode `held` has it, or
/// else the only one for which `may_have` returns `true`.
fn choose<'f>(
    files: &'f [Found],
    known: &[resume::Read],
    wanted: Wanted,
    held: Option<(u64, u64)>,
    may_have: &dyn Fn(&Found) -> bool,
) -> Choice<&'f Found> {
    let alike = |read: &resume::Read| -> Vec<(usize, &Found)> {
        files.iter().enumerate().filter(|(_, file)| file.begins_like(read)).collect()
    };
    let (last, before) = match known {
        [.., before, last] => (Some(last), Some(before)),
        _ => (known.last(), None),
    };
    let from = match wanted {
        _ if files.is_empty() => return Choice::Later,
        Wanted::Newer => {
            let before = before.map(alike).unwrap_or_default();
            before.first().map_or(0, |(at, _)| at + 1)
        }
        Wanted::Rest | Wanted::Next => {
            let mut alike = last.map(alike).unwrap_or_default();
            if alike.is_empty() {
                return Choice::Gone;
            }
            if alike.len() > 1 {
                let is_held = |file: &Found| Some(file.inode) == held;
                let has_held = alike.iter().any(|(_, file)| is_held(file));
                alike.retain(|(_, file)| if has_held { is_held(file) } else { may_have(file) });
            }
            let [(at, _)] = *alike else { return Choice::Doubtful };
            at + usize::from(wanted == Wanted::Next)
        }
    };
    files.get(from).map_or(Choice::Later, Choice::File)
}

/// Returns the files of the log that have text, the oldest first. A compressed file is ignored
/// while its plain file exists, because it may not be complete yet.
fn files(log: &Path) -> io::Result<Vec<Found>> {
    let live = log.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let directory = log.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut ages = BTreeMap::new();
    let entries = match std::fs::read_dir(directory.unwrap_or(Path::new("."))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst"));
        let Some(age) = Age::of(plain.unwrap_or(name), live) else { continue };
        if plain.is_none() || !ages.contains_key(&age) {
            ages.insert(age, path);
        }
    }
    let mut found = Vec::new();
    for (age, path) in ages {
        match beginning(&path, age == Age::Live) {
            Ok(file) => found.extend(file),
            // The file was renamed or deleted after the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
        }
    }
    Ok(found)
}

/// Returns the facts about a file of the log, or `None` if it has no text or is not a regular file.
/// An incomplete first line of the live file counts only from [`Head::BYTES_MAX`] bytes on.
fn beginning(path: &Path, is_live: bool) -> io::Result<Option<Found>> {
    let file = match named_file::open(path) {
        // A FIFO, for example.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(None),
        opened => opened?,
    };
    let about = file.metadata()?;
    if !about.is_file() {
        return Ok(None);
    }
    let mut raw = BufReader::with_capacity(BUFFER, file);
    let magic = raw.fill_buf()?;
    let magic = magic.get(..MAGIC_BYTES.min(magic.len())).unwrap_or_default().to_vec();
    let text = Packing::of(&magic).open(raw, BUFFER)?;
    let mut line = Vec::new();
    let read = text.take(Head::BYTES_MAX as u64).read_until(b'\n', &mut line);
    let inode = (about.dev(), about.ino());
    if read.is_err() && !is_live {
        return Ok(Some(Found { path: path.to_owned(), inode, head: None }));
    }
    if !line.ends_with(b"\n") && line.len() < Head::BYTES_MAX {
        // The reader completes a last line without a line break in the same way.
        line.push(b'\n');
        if is_live || line.len() == 1 {
            return Ok(None);
        }
    }
    Ok(Some(Found { path: path.to_owned(), inode, head: Some(Head::of(&line)) }))
}

/// Checks that a log is a regular file without compression, or does not exist yet. `Err` is the
/// reason why it can't be followed.
pub(super) fn check(log: &Path) -> Result<(), String> {
    let mut magic = Vec::new();
    let read = std::fs::metadata(log).and_then(|about| match about.is_file() {
        true => File::open(log)?.take(MAGIC_BYTES as u64).read_to_end(&mut magic).map(|_| true),
        false => Ok(false),
    });
    match read {
        Ok(true) if Packing::of(&magic) == Packing::Plain => Ok(()),
        Ok(_) => Err(NO_LOG.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && log != Path::new(STDIN) => Ok(()),
        Err(error) => Err(format!("{NO_LOG}: {}: {error}", log.display())),
    }
}

/// Returns the records of a run that begins with the live file, after all rotated files.
pub(super) fn begin(log: &Path) -> io::Result<Vec<resume::Read>> {
    let read = |head| resume::Read { path: log.to_owned(), head, ..resume::Read::default() };
    let files = files(log)?;
    let rotated =
        files.iter().rfind(|file| file.head.is_some() && file.path.file_name() != log.file_name());
    Ok(rotated.and_then(|file| file.head).into_iter().chain([Head::default()]).map(read).collect())
}

/// The maximum bytes before the place that are compared again.
const TAIL: usize = 256;

/// The last bytes that were read of a file, and where they end.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    end: u64,
}

/// A reader of a file. It ends early if the file no longer begins with `beginning`, or no longer
/// has the bytes that were read last: the file was then truncated and written again.
struct Source {
    file: Arc<File>,
    beginning: Arc<[u8]>,
    tail: Arc<Mutex<Tail>>,
}

impl Source {
    fn has(&self, bytes: &[u8], at: u64) -> io::Result<bool> {
        let mut now = vec![0; bytes.len()];
        Ok(self.file.read_at(&mut now, at)? == now.len() && now == bytes)
    }

    fn begins_the_same(&self) -> io::Result<bool> {
        self.has(&self.beginning, 0)
    }

    fn is_same(&self) -> io::Result<bool> {
        let tail = lock(&self.tail);
        let has_tail = self.has(&tail.bytes, tail.end - tail.bytes.len() as u64)?;
        Ok(has_tail && self.begins_the_same()?)
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = (&*self.file).read(buffer)?;
        // The check comes after the read, so that bytes of a new text are never returned.
        if !self.is_same()? {
            return Ok(0);
        }
        let mut tail = lock(&self.tail);
        tail.end += read as u64;
        tail.bytes.extend_from_slice(&buffer[read.saturating_sub(TAIL)..read]);
        let surplus = tail.bytes.len().saturating_sub(TAIL);
        tail.bytes.drain(..surplus);
        Ok(read)
    }
}

struct Open {
    path: PathBuf,
    inode: (u64, u64),
    /// `false`: the first line could not be read.
    has_head: bool,
    source: Source,
    text: Text,
}

impl Open {
    /// Opens a file at the place `at`, or at its beginning if `at` is `None`, is beyond the end, or
    /// is not after a line of a plain file. In the last case, a crash of the machine may have lost
    /// the end of the file, and other text was written there.
    fn new(found: &Found, at: Option<&resume::Read>) -> io::Result<Self> {
        match at {
            Some(at) => Self::at(found, at)?.map_or_else(|| Self::at_start(found), Ok),
            None => Self::at_start(found),
        }
    }

    /// Opens a file at the place `at`. Returns `None` if it is not after a line of this file.
    fn at(found: &Found, at: &resume::Read) -> io::Result<Option<Self>> {
        let mut open = Self::at_start(found)?;
        let is_there = open.text.skip(at.offset)?;
        (open.text.place.offset, open.text.place.lines) = (at.offset, at.lines);
        Ok(is_there.then_some(open))
    }

    fn at_start(found: &Found) -> io::Result<Self> {
        let file = Arc::new(named_file::open(&found.path)?);
        let (about, mut beginning) = (file.metadata()?, vec![0; Head::BYTES_MAX]);
        let read = file.read_at(&mut beginning, 0)?;
        let line = memchr::memchr(b'\n', &beginning).map_or(read, |end| end + 1);
        beginning.truncate(line.min(read));
        let beginning: Arc<[u8]> = beginning.into();
        let tail = Arc::default();
        let source = || Source {
            file: Arc::clone(&file),
            beginning: Arc::clone(&beginning),
            tail: Arc::clone(&tail),
        };
        let mut text = Text::of(Box::new(source()), 0)?;
        text.place.head = found.head.unwrap_or_default();
        let (path, inode) = (found.path.clone(), (about.dev(), about.ino()));
        Ok(Self { path, inode, has_head: found.head.is_some(), source: source(), text })
    }
}

/// Runs the reader thread of a log that is followed. The thread ends when nobody receives `items`
/// any more, or after [`Item::Failed`].
pub(super) fn read_all(plan: &Plan, items: &mpsc::Sender<Item>, notes: &mpsc::Sender<Note>) {
    let Some(log) = plan.settings.files.first() else { return };
    let known = plan.resumed.clone();
    let is_begun = known.last().is_some_and(resume::Read::is_begun);
    let end = known.last().map_or_else(input::Place::default, |last| input::Place {
        head: last.head,
        offset: last.offset,
        lines: last.lines,
        ..input::Place::default()
    });
    let mut follower = Follower {
        log,
        reader: Reader { plan, items, notes, cut_short: 0 },
        known,
        wanted: if is_begun { Wanted::Rest } else { Wanted::Newer },
        gone: 0,
        gap: false,
        unreadable: Vec::new(),
        batch: Batch { end, ..Batch::default() },
        line: Vec::new(),
    };
    if let Err(Ended::Failed { line, what }) = follower.run() {
        items.blocking_send(Item::Failed { file: 0, line, what }).ok();
    }
}

struct Follower<'a> {
    log: &'a Path,
    reader: Reader<'a>,
    /// The records of the file with the place and of the file before it, as in the resume file.
    known: Vec<resume::Read>,
    wanted: Wanted,
    /// The number of consecutive looks without a file that has the place.
    gone: u32,
    /// `true`: events may be missing before the file that is opened next.
    gap: bool,
    /// The inodes of the files without a readable first line that were reported since the place was
    /// last in another file. No record is about such a file.
    unreadable: Vec<(u64, u64)>,
    batch: Batch,
    line: Vec<u8>,
}

impl Follower<'_> {
    /// Reads one file after the other. The loop ends only with an error.
    fn run(&mut self) -> Result<(), Ended> {
        let mut next = None;
        loop {
            let mut open = match next.take() {
                Some(open) => open,
                None => self.wait()?,
            };
            if !open.has_head {
                match open.text.has_line() {
                    Err(error) => {
                        self.unreadable.push(open.inode);
                        self.damaged(&open, &error)?;
                    }
                    // It can be read by now.
                    Ok(_) => self.pause()?,
                }
                continue;
            }
            self.unreadable.clear();
            self.enter(&open)?;
            next = self.read(&mut open)?;
        }
    }

    fn wait(&mut self) -> Result<Open, Ended> {
        loop {
            if let Some(open) = self.find(None)? {
                return Ok(open);
            }
            self.pause()?;
        }
    }

    fn pause(&self) -> Result<(), Ended> {
        std::thread::park_timeout(POLL);
        if self.reader.items.is_closed() { Err(Ended::Unwanted) } else { Ok(()) }
    }

    /// Looks once for the wanted file, and opens it. `None`: it was not found, or was renamed
    /// between the look and the opening. `held` is the inode of the file that was read last, if
    /// that file is still open: no other file can have this inode then.
    fn find(&mut self, held: Option<(u64, u64)>) -> Result<Option<Open>, Ended> {
        let found = self.files().map_err(|error| self.failed(&error))?;
        let choice = self.choose(&found, held);
        let found = match choice {
            Choice::File(found) => found,
            Choice::Later => {
                self.gone = 0;
                return Ok(None);
            }
            Choice::Gone | Choice::Doubtful => {
                let is_doubtful = choice == Choice::Doubtful;
                self.gone += 1;
                if self.gone > GONE_LOOKS {
                    self.lose(is_doubtful);
                }
                return Ok(None);
            }
        };
        self.gone = 0;
        let place = self.known.last().filter(|_| self.wanted == Wanted::Rest);
        let open = Open::new(found, place).and_then(|open| Ok((open, self.files()?)));
        match open {
            Ok((open, again)) => {
                let again = self.choose(&again, held);
                let is_sure = again == Choice::File(found) && open.inode == found.inode;
                Ok(is_sure.then_some(open))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Returns the files of the log, without those that were reported as damaged.
    fn files(&self) -> io::Result<Vec<Found>> {
        let mut found = files(self.log)?;
        found.retain(|file| file.head.is_some() || !self.unreadable.contains(&file.inode));
        Ok(found)
    }

    fn choose<'f>(&self, files: &'f [Found], held: Option<(u64, u64)>) -> Choice<&'f Found> {
        choose(files, &self.known, self.wanted, held, &|found| {
            let last = self.known.last();
            // A file that can't be read may have the place.
            last.is_none_or(|last| !matches!(Open::at(found, last), Ok(None)))
        })
    }

    /// Reports that no file has the place any more, or that several files may have it. The oldest
    /// newer file is wanted next, from its beginning.
    fn lose(&mut self, is_doubtful: bool) {
        let (lines, offset) = self.known.last().map_or((0, 0), |read| (read.lines, read.offset));
        let what = if is_doubtful {
            "may be in several files of the log that begin alike: they are sent from their \
             beginning, and what was sent of them comes twice"
        } else {
            "is gone from the log: the events behind it, up to the oldest file that is newer, are \
             not sent"
        };
        self.reader.remark(self.log, format!("error: line {lines} (byte {offset}) {what}"));
        (self.gone, self.gap, self.wanted) = (0, true, Wanted::Newer);
    }

    /// Sends the place at which the reading of a file begins, before any event of the file, so that
    /// a later run finds the file.
    fn enter(&mut self, open: &Open) -> Result<(), Ended> {
        let place = open.text.place;
        let before = self.known.last().filter(|_| self.wanted == Wanted::Rest);
        let name = open.path.display();
        if before.is_some_and(|before| before.offset > place.offset) {
            let what = format!("the place is not behind a line of {name}, which is sent again");
            self.reader.remark(self.log, what);
        }
        if self.gap {
            self.reader.remark(self.log, format!("goes on with the beginning of {name}"));
            self.batch.gaps += 1;
        }
        let record = self.record(open);
        resume::go_on(&mut self.known, record, self.gap);
        (self.gap, self.wanted) = (false, Wanted::Next);
        self.batch.end = place;
        self.batch.flush(self.reader.items)
    }

    fn record(&self, open: &Open) -> resume::Read {
        let input::Place { head, offset, lines, .. } = open.text.place;
        resume::Read { path: self.log.to_owned(), head, offset, lines, queue: None }
    }

    /// Reads a file until it gets no more text. Returns the next file, if it is open already.
    fn read(&mut self, open: &mut Open) -> Result<Option<Open>, Ended> {
        let mut next = None;
        loop {
            loop {
                match open.text.has_line() {
                    Ok(true) => self.line(open)?,
                    Ok(false) => break,
                    Err(error) => return self.damaged(open, &error).map(|()| None),
                }
            }
            if next.is_some() {
                // A last line without a line break is complete only if it is an event.
                return self.line(open).map(|()| next);
            }
            if self.batch.events + self.batch.bad_lines > 0 {
                self.batch.flush(self.reader.items)?;
            }
            let record = self.record(open);
            resume::go_on(&mut self.known, record, false);
            if !open.source.is_same().map_err(|error| self.failed(&error))? {
                self.wanted = Wanted::Rest;
                if open.source.begins_the_same().map_err(|error| self.failed(&error))? {
                    self.cut(open);
                }
                return Ok(None);
            }
            let live = std::fs::metadata(self.log);
            if live.map_or(true, |live| (live.dev(), live.ino()) != open.inode) {
                next = self.find(Some(open.inode))?;
            }
            if next.is_none() {
                self.pause()?;
            }
        }
    }

    /// Sends a file again from its beginning: somebody has cut it behind its first line, and may
    /// have written new text there. Counts a gap, because lines may have gone before they were
    /// read.
    fn cut(&mut self, open: &Open) {
        let what = "was cut while it was followed: it is sent again from its beginning, and lines \
                    that were cut off before they were read are missing";
        self.reader.remark(self.log, format!("error: {} {what}", open.path.display()));
        if let Some(last) = self.known.last_mut() {
            (last.offset, last.lines) = (0, 0);
        }
        self.gap = true;
    }

    /// Reads the next line of a file, if there is one, and adds its event to the batch, or counts
    /// it as a bad line.
    fn line(&mut self, open: &mut Open) -> Result<(), Ended> {
        let number = open.text.place.lines + 1;
        let mut found = match open.text.next(&mut self.line) {
            Ok(Next::End) => return Ok(()),
            Ok(Next::Line) => line::find(&mut self.line),
            Ok(Next::TooLong) => Err(input::longer()),
            Err(error) => return Err(self.failed(&error)),
        };
        let (batch, log) = (&mut self.batch, self.log);
        if found.is_err()
            && let Some(at) = memchr::memmem::rfind(&self.line, EVENT_HEAD).filter(|at| *at > 0)
        {
            // After a crash within a line, kube-apiserver continues in the same line.
            let mut event = self.line.split_off(at);
            if let Ok(range) = line::find(&mut event) {
                self.reader.add(batch, log, &[], found, number)?;
                (found, self.line) = (Ok(range), event);
            }
        }
        self.reader.add(batch, log, &self.line, found, number)?;
        batch.end = open.text.place;
        if batch.bad_lines >= input::BAD_LINES_MAX {
            batch.flush(self.reader.items)?;
        }
        Ok(())
    }

    /// Stops the replay at a file that can't be read further, or skips the rest of a packed one.
    fn damaged(&mut self, open: &Open, error: &io::Error) -> Result<(), Ended> {
        let packing = open.text.packing;
        let what = format!("cannot read further: {}", packing.explain(error));
        let line = open.text.place.lines + 1;
        let skips = self.reader.plan.settings.on_bad_line == OnBadLine::Skip;
        if skips && packing != Packing::Plain {
            let span = Span::new(&open.path, Unit::Line, line..=line);
            self.reader.notes.blocking_send(Note::CutShort { span, what }).ok();
            self.batch.gaps += 1;
            return self.batch.flush(self.reader.items);
        }
        self.batch.flush(self.reader.items)?;
        Err(Ended::Failed { line, what })
    }

    fn failed(&self, error: &io::Error) -> Ended {
        let line = self.known.last().map_or(0, |read| read.lines) + 1;
        Ended::Failed { line, what: format!("cannot read further: {error}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &[u8]) {
        std::fs::write(directory.join(name), text).unwrap();
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let found = files(&directory.join("audit.log")).unwrap();
        let name = |found: &Found| found.path.file_name().unwrap().to_str().unwrap().to_owned();
        found.iter().map(name).collect()
    }

    #[test]
    fn the_files_of_a_log_are_found_from_the_oldest_to_the_live_one() {
        let schemes: [&[&str]; 5] = [
            &[
                "audit-2026-11-19T23-59-59.999.log.2.gz",
                "audit-2026-11-20T10-00-00.000.log.1",
                "audit-2026-11-20T10-00-00.000.log",
                "audit-2026-11-20T11-00-00.000.log",
            ],
            &["audit-2026-11-19T23-59-59.999.log", "audit-2026-11-20T10-00-00.000.log.gz"],
            &["audit.log.10.gz", "audit.log.9.zst", "audit.log.2", "audit.log.1"],
            &["audit.log-20261119.gz", "audit.log-20261120", "audit.log-20261120-1763596800"],
            &["audit.2.log.gz", "audit.1.log"],
        ];
        for scheme in schemes {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            for name in scheme.iter().rev().chain(&["audit.log"]) {
                let text = format!("{name}\n");
                let is_packed = name.ends_with(".gz");
                write(
                    path,
                    name,
                    &if is_packed { gzip(text.as_bytes()) } else { text.into_bytes() },
                );
            }
            assert_eq!(names(path), [scheme, &["audit.log"]].concat());
            // None of these is a file of this log with text.
            for other in ["audit.log.", "audit-.log", "audit-old.log", "audits.log", "audit.log.x"]
            {
                write(path, other, b"x\n");
            }
            write(path, "audit.log.77", b"");
            write(path, "audit.log.78.gz", &gzip(b""));
            std::fs::create_dir(path.join("audit.log.79")).unwrap();
            let fifo = path.join("audit.log.80");
            assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
            assert_eq!(names(path), [scheme, &["audit.log"]].concat());
        }
    }

    #[test]
    fn a_file_that_is_being_compressed_is_read_as_it_was_and_a_live_line_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let packed = gzip(b"one\n");
        write(path, "audit.log.1", b"one\n");
        write(path, "audit.log.1.gz", &packed[..packed.len() / 2]);
        write(path, "audit.log", b"no line break");
        assert_eq!(names(path), ["audit.log.1"]);
        let plain = files(&path.join("audit.log")).unwrap();
        write(path, "audit.log.1.gz", &packed);
        std::fs::remove_file(path.join("audit.log.1")).unwrap();
        let packed = files(&path.join("audit.log")).unwrap();
        assert_eq!(packed.len(), 1);
        assert_eq!(packed[0].head, plain[0].head, "the same text");
        // A rotated file gets no further line break, so its last line is one without it.
        write(path, "audit.log.1.gz", &gzip(b"one"));
        assert_eq!(files(&path.join("audit.log")).unwrap()[0].head, plain[0].head);
    }

    fn found(name: &str) -> Found {
        let head = Head::of(name.trim_end_matches(" copy").as_bytes());
        Found { path: name.into(), inode: (0, 0), head: Some(head) }
    }

    fn read(name: &str) -> resume::Read {
        resume::Read { head: found(name).head.unwrap(), ..resume::Read::default() }
    }

    #[test]
    fn the_place_is_found_by_the_text_and_what_follows_by_the_order() {
        let [a, b, c] = ["a", "b", "c"].map(found);
        let all = [a.clone(), b.clone(), c.clone()];
        for (known, wanted, expected) in [
            (vec![read("a"), read("b")], Wanted::Rest, Choice::File(&b)),
            (vec![read("b")], Wanted::Next, Choice::File(&c)),
            (vec![read("b"), read("c")], Wanted::Next, Choice::Later),
            // The file with the place is gone; what is before it was sent.
            (vec![read("a"), read("x")], Wanted::Rest, Choice::Gone),
            (vec![read("a"), read("x")], Wanted::Next, Choice::Gone),
            (vec![read("a"), read("x")], Wanted::Newer, Choice::File(&b)),
            (vec![read("c"), read("x")], Wanted::Newer, Choice::Later),
            (vec![read("y"), read("x")], Wanted::Newer, Choice::File(&a)),
            // A first run, with and without rotated files.
            (vec![read("b"), resume::Read::default()], Wanted::Newer, Choice::File(&c)),
            (vec![resume::Read::default()], Wanted::Newer, Choice::File(&a)),
        ] {
            let chosen = choose(&all, &known, wanted, None, &|_| false);
            assert_eq!(chosen, expected, "{known:?} {wanted:?}");
        }
        // Without any file, the place does not count as gone.
        assert_eq!(choose(&[], &[read("c")], Wanted::Rest, None, &|_| true), Choice::Later);
    }

    #[test]
    fn of_files_that_begin_alike_only_a_certain_one_is_chosen() {
        let [a, mut copy, c] = ["a", "c copy", "c"].map(found);
        copy.inode = (0, 1);
        let files = [a, copy, c];
        let [_, copy, c] = &files;
        let all = |_: &Found| true;
        let whole = |found: &Found| found.path != Path::new("c copy");
        let none = |_: &Found| false;
        let known = [read("a"), read("c")];
        for (wanted, held, may_have, expected) in [
            // An unfinished copy is not taken for the live file, nor the live file for its
            // successor.
            (Wanted::Rest, None, &whole as &dyn Fn(&Found) -> bool, Choice::File(c)),
            (Wanted::Next, None, &whole, Choice::Later),
            // The file that is open has the place, whatever the other one has.
            (Wanted::Next, Some((0, 0)), &none, Choice::Later),
            (Wanted::Next, Some((0, 1)), &whole, Choice::File(c)),
            (Wanted::Next, Some((7, 7)), &whole, Choice::Later),
            // Nothing tells which file it is. Both are newer than the file before them.
            (Wanted::Rest, None, &all, Choice::Doubtful),
            (Wanted::Next, Some((7, 7)), &all, Choice::Doubtful),
            (Wanted::Rest, None, &none, Choice::Doubtful),
            (Wanted::Newer, None, &all, Choice::File(copy)),
        ] {
            let chosen = choose(&files, &known, wanted, held, may_have);
            assert_eq!(chosen, expected, "{wanted:?} {held:?}");
        }
        // If the file before begins like others, the first of them counts.
        let chosen = choose(&files, &[read("c"), read("x")], Wanted::Newer, None, &none);
        assert_eq!(chosen, Choice::File(c));
    }

    const A: &str = "audit-2026-11-20T10-00-00.000.log";
    const B: &str = "audit-2026-11-21T10-00-00.000.log";

    /// Returns an event whose first 5,000 bytes are those of all others, with these words.
    fn event(words: &str) -> String {
        let head =
            r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"a","stage":"Panic""#;
        format!("{head},\"requestURI\":\"/{}\",\"n\":\"{words}\"}}\n", "x".repeat(5000))
    }

    fn events(words: &[&str]) -> Vec<u8> {
        words.iter().map(|it| event(it)).collect::<String>().into_bytes()
    }

    /// Follows the log in this directory from the place in these records.
    fn follow(directory: &Path, resumed: Vec<resume::Read>) -> mpsc::Receiver<Item> {
        let settings = super::super::Settings {
            files: vec![directory.join("audit.log")],
            output: None,
            even_if_running: false,
            rate: None,
            resume: None,
            on_bad_line: OnBadLine::Skip,
            only_looks: false,
            follows: true,
        };
        let plan = Plan { settings, spools: Vec::new(), resumed };
        let ((items, received), (notes, _)) = (mpsc::channel(100), mpsc::channel(100));
        std::thread::spawn(move || read_all(&plan, &items, &notes));
        received
    }

    /// Receives events until this one. Returns the words of all, the gaps, and the place.
    fn until(items: &mut mpsc::Receiver<Item>, last: &str) -> (Vec<String>, u64, input::Place) {
        let (mut words, mut gaps) = (Vec::new(), 0);
        loop {
            let Some(Item::Batch(batch)) = items.blocking_recv() else { panic!("{words:?}") };
            let body = String::from_utf8(batch.body).unwrap();
            let named = body.split("\"n\":\"").skip(1);
            words.extend(named.map(|it| it.split('"').next().unwrap().to_owned()));
            gaps += batch.gaps;
            if words.last().is_some_and(|it| it == last) {
                return (words, gaps, batch.end);
            }
        }
    }

    #[test]
    fn a_file_that_begins_like_the_one_before_it_is_sent_from_its_beginning() {
        // The first lines have only their beginning in common, or are the same.
        for [first, other] in [["a1", "b1"], ["same", "same"]] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            write(path, "audit.log", &events(&[first, "a2"]));
            let mut items = follow(path, vec![resume::Read::default()]);
            assert_eq!(until(&mut items, "a2").0, [first, "a2"]);
            std::fs::rename(path.join("audit.log"), path.join(A)).unwrap();
            write(path, B, &events(&[other, "b2"]));
            write(path, "audit.log", &events(&["c1"]));
            let (words, gaps, _) = until(&mut items, "c1");
            assert_eq!((words.as_slice(), gaps), (&[other, "b2", "c1"].map(str::to_owned)[..], 0));
        }
    }

    /// The new text is shorter or longer than what was cut off, and may have its line breaks at the
    /// same places.
    #[test]
    fn a_log_that_is_cut_and_grows_again_is_sent_again_and_is_a_gap() {
        for new in [&["b1"][..], &["b1", "b2"], &["b1", "b2", "b3", "b4", "b5"]] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            write(path, "audit.log", &events(&["a1", "a2", "a3"]));
            let mut items = follow(path, vec![resume::Read::default()]);
            assert_eq!(until(&mut items, "a3").0, ["a1", "a2", "a3"]);
            let log = path.join("audit.log");
            let mut file = File::options().append(true).open(log).unwrap();
            file.set_len(event("a1").len() as u64).unwrap();
            io::Write::write_all(&mut file, &events(new)).unwrap();
            let (words, gaps, _) = until(&mut items, new.last().unwrap());
            assert_eq!(words, [&["a1"], new].concat());
            assert_eq!(gaps, 1);
        }
    }

    #[test]
    fn a_later_run_does_not_guess_which_of_several_files_it_has_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        write(path, "audit.log", &events(&["same"]));
        let mut items = follow(path, vec![resume::Read::default()]);
        let input::Place { head, offset, lines, .. } = until(&mut items, "same").2;
        drop(items);
        let place = resume::Read { head, offset, lines, ..resume::Read::default() };
        write(path, A, &events(&["same", "a2"]));
        write(path, "audit.log", &events(&["c1"]));
        for (file, wanted, wanted_gaps) in [
            // Only one file begins like the one that was read; then two do.
            (&["b1", "b2"][..], &["a2", "b1", "b2", "c1"][..], 0),
            (&["same", "b2"], &["same", "a2", "same", "b2", "c1"], 1),
        ] {
            write(path, B, &events(file));
            let mut items = follow(path, vec![place.clone()]);
            let (words, gaps, _) = until(&mut items, "c1");
            assert_eq!(
                (words, gaps),
                (wanted.iter().map(|it| (*it).to_owned()).collect(), wanted_gaps)
            );
        }
    }

    #[test]
    fn each_file_whose_first_line_is_damaged_is_a_gap_and_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for name in ["audit.log.4.gz", "audit.log.3.gz", "audit.log.1.gz"] {
            write(path, name, b"\x1f\x8bnonsense");
        }
        write(path, "audit.log.5", &events(&["a1"]));
        write(path, "audit.log.2", &events(&["b1"]));
        write(path, "audit.log", &events(&["c1"]));
        let mut items = follow(path, vec![resume::Read::default()]);
        let (words, gaps, input::Place { head, offset, lines, .. }) = until(&mut items, "c1");
        assert_eq!((words, gaps), (["a1", "b1", "c1"].map(str::to_owned).to_vec(), 3));
        drop(items);
        // A place that is gone is one gap more, also if damaged files come next.
        let gone = resume::Read { head: Head::of(b"gone"), offset, lines, ..read("") };
        let before = resume::Read { head: Head::of(&events(&["a1"])), ..gone.clone() };
        let mut items = follow(path, vec![before, gone]);
        let (words, gaps, _) = until(&mut items, "c1");
        assert_eq!((words, gaps), (["b1", "c1"].map(str::to_owned).to_vec(), 4));
        // Damage before the place is nothing new.
        write(path, "audit.log.1.gz", &gzip(&events(&["b2"])));
        let mut items = follow(path, vec![resume::Read { head, offset, lines, ..read("") }]);
        std::fs::rename(path.join("audit.log"), path.join("audit.log.0")).unwrap();
        write(path, "audit.log", &events(&["d1"]));
        let (words, gaps, _) = until(&mut items, "d1");
        assert_eq!((words, gaps), (vec!["d1".to_owned()], 0));
    }

    #[test]
    fn a_place_is_behind_a_line() {
        let skip = |bytes| {
            let text: Box<dyn Read + Send> = Box::new(&b"one\ntwo\nend"[..]);
            Text::of(text, 0).unwrap().skip(bytes).unwrap()
        };
        for (bytes, is_place) in [
            (0, true),
            (2, false),
            (3, true),
            (4, true),
            (5, false),
            (10, false),
            (11, true),
            (12, false),
        ] {
            assert_eq!(skip(bytes), is_place, "{bytes}");
        }
    }

    #[test]
    fn a_file_that_was_cut_off_and_written_again_ends_where_it_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.log");
        write(directory.path(), "audit.log", b"one\ntwo\nthr");
        let mut open = Open::new(&files(&log).unwrap()[0], None).unwrap();
        let mut line = Vec::new();
        for wanted in ["one\n", "two\n"] {
            assert!(open.text.has_line().unwrap());
            assert_eq!(open.text.next(&mut line).unwrap(), Next::Line);
            assert_eq!(line, wanted.as_bytes());
        }
        assert!(!open.text.has_line().unwrap());
        assert!(open.source.is_same().unwrap());
        let place = resume::Read { offset: 8, lines: 2, ..read("") };
        // The file is written again beyond the place before anybody looks.
        write(directory.path(), "audit.log", b"other\nevents\nhere\n");
        assert!(!open.text.has_line().unwrap());
        assert!(!open.source.is_same().unwrap());
        assert_eq!(open.text.place.offset, 8);
        // The copy has the rest.
        write(directory.path(), "audit.log.1", b"one\ntwo\nthree\n");
        let mut copy = Open::new(&files(&log).unwrap()[0], Some(&place)).unwrap();
        assert!(copy.text.has_line().unwrap());
        copy.text.next(&mut line).unwrap();
        assert_eq!((line.as_slice(), copy.text.place.lines), (&b"three\n"[..], 3));
        // A place within a line is not a place of this file.
        let place = resume::Read { offset: 6, ..place };
        let open = Open::new(&files(&log).unwrap()[0], Some(&place)).unwrap();
        assert_eq!(open.text.place.offset, 0);
    }

    #[test]
    fn the_record_of_a_place_has_the_file_before_it_and_no_file_that_is_gone() {
        let mut files = vec![resume::Read::default()];
        let mut known = |name: &str, is_after_gap| {
            resume::go_on(&mut files, read(name), is_after_gap);
            files.iter().map(|it| it.head).collect::<Vec<_>>()
        };
        let heads = |names: &[&str]| names.iter().map(|it| read(it).head).collect::<Vec<_>>();
        assert_eq!(known("a", false), heads(&["a"]));
        assert_eq!(known("a", false), heads(&["a"]));
        assert_eq!(known("b", false), heads(&["a", "b"]));
        assert_eq!(known("c", false), heads(&["b", "c"]));
        assert_eq!(known("e", true), heads(&["b", "e"]));
    }
}
