//! Reads the inputs of a replay in one thread, and cuts them into requests. An input is a file or
//! the directory of a queue (`spool`).
//!
//! The inputs are read in the given order, one buffer at a time. The first bytes of a file tell
//! whether it is compressed (`packing`). Offsets and line numbers are those of the uncompressed
//! text. The reader holds at most one line, the text read ahead for it, two requests, and the
//! window of one decoder.

use std::fs::File;
use std::io;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::packing::{Counted, MAGIC_BYTES, Packing};
use super::resume::{Head, Read as Resumed};
use super::spool::Spool;
use super::{Note, OnBadLine, Settings, Span, Unit, line};
use audit::LIST_HEAD;
use base::named_file;
use base::position::Position;
use queue::inspect::{Fault, Finding, Seen};

/// The end of a request body, after the events of the EventList.
const LIST_TAIL: &[u8] = b"]}\n";

/// The maximum bytes of a line. With the rest of the EventList, an event of this length makes a
/// request body of 64 MiB, which a relay accepts by default.
const LINE_BYTES_MAX: usize = (64 << 20) - LIST_HEAD.len() - LIST_TAIL.len();

/// The maximum bytes of a request body. A larger event is sent in a request of its own.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// The size in bytes of the buffer for reads from a file.
const BUFFER: usize = 256 * 1024;

/// The maximum bytes of a buffer that is used again for the next line, or reserved for the next
/// request.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// The maximum number of bad lines (in a queue, also faults) in a batch. The reader then sends the
/// batch, even without events, so that the replay gets past these lines.
pub(super) const BAD_LINES_MAX: u64 = 1000;

/// The end of the message about a line at which a replay stops.
pub(super) const SKIP_LINE: &str = "with --on-bad-line skip such lines are counted and left out";

/// The end of the message about a file at whose damaged part a replay stops.
const SKIP_REST: &str = "with --on-bad-line skip the rest of such a file is left out";

pub(super) const STDIN: &str = "-";

/// A point between two lines of the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// The index of the input.
    pub(super) file: usize,
    /// The length and checksum of the beginning of the file's text. They identify the file in a
    /// later run.
    pub(super) head: Head,
    /// The bytes of uncompressed text before this point. For a queue's directory, the bytes of the
    /// lines that were read.
    pub(super) offset: u64,
    /// The number of lines of the file before this point. For a queue's directory, the position of
    /// the first event after this point.
    pub(super) lines: u64,
    /// The bytes on disk that were read to reach this point (compressed, for a compressed file).
    pub(super) bytes_read: u64,
}

/// The events of one request. The reader fills a batch and then sends it to the replay. A batch
/// without events makes no request, but says how far the reader has come.
#[derive(Default)]
pub(super) struct Batch {
    /// The request body: an EventList, or empty if there are no events. If [`Settings::only_looks`]
    /// is set, the events as JSON lines.
    pub(super) body: Vec<u8>,
    pub(super) as_lines: bool,
    pub(super) events: u64,
    /// The number of the line with the first event, counted from 1, or the position of this event
    /// in a queue; 0 without events.
    pub(super) first_line: u64,
    /// The same for the last event.
    pub(super) last_line: u64,
    /// The point after the last line that is done: all its events are in this batch or in earlier
    /// ones, or it was skipped as a bad line. A bad last line that may be unfinished is not done.
    pub(super) end: Place,
    /// The number of bad lines that were skipped since the previous batch.
    pub(super) bad_lines: u64,
    /// The damage found in a queue's directory since the previous batch.
    pub(super) damage: Damage,
    /// The number of gaps in a followed log since the previous batch.
    pub(super) gaps: u64,
}

/// The damage in a part of a queue's directory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Damage {
    /// The number of faults that may have cost events.
    pub(super) faults: u64,
    /// The number of events that are missing because of these faults.
    pub(super) missing: u64,
}

pub(super) enum Item {
    Batch(Batch),
    /// A line (in a queue, a position) can't be read or is not an event. No item follows.
    Failed {
        file: usize,
        line: u64,
        what: String,
    },
    /// All files were read, and no item follows. `cut_short` of them could not be read to their
    /// ends; a note reports each of them.
    End {
        cut_short: u64,
    },
}

/// The inputs to read, and the limits of a request.
pub(super) struct Plan {
    pub(super) settings: Settings,
    /// The queue of each input. `None` if the input is a file.
    pub(super) spools: Vec<Option<Arc<Spool>>>,
    /// The parts of the inputs that earlier runs have sent.
    pub(super) resumed: Vec<Resumed>,
}

/// The reason why reading has ended before the end of the last file.
pub(super) enum Ended {
    /// A line can't be read or is not an event. `line` is its number or position, and `what` is the
    /// reason.
    Failed { line: u64, what: String },
    /// The replay receives no more items.
    Unwanted,
}

impl From<mpsc::error::SendError<Item>> for Ended {
    fn from(_: mpsc::error::SendError<Item>) -> Self {
        Self::Unwanted
    }
}

/// Runs the reader thread: sends the events of all inputs in batches, and [`Item::Failed`] or
/// [`Item::End`] last. If nobody receives `items` any more, the thread ends without a last item.
pub(super) fn read_all(plan: &Plan, items: &mpsc::Sender<Item>, notes: &mpsc::Sender<Note>) {
    let mut reader = Reader { plan, items, notes, cut_short: 0 };
    let mut last = Ok(());
    for (file, path) in plan.settings.files.iter().enumerate() {
        let read = match plan.spools.get(file).and_then(Option::as_ref) {
            Some(spool) => reader.read_spool(file, path, spool),
            None => reader.read_file(file, path),
        };
        last = read.map_err(|ended| (file, ended));
        if last.is_err() {
            break;
        }
    }
    let item = match last {
        Ok(()) => Item::End { cut_short: reader.cut_short },
        Err((file, Ended::Failed { line, what })) => Item::Failed { file, line, what },
        Err((_, Ended::Unwanted)) => return,
    };
    items.blocking_send(item).ok();
}

/// The state of the reader thread. `cut_short` counts the files that could not be read to their
/// ends.
pub(super) struct Reader<'a> {
    pub(super) plan: &'a Plan,
    pub(super) items: &'a mpsc::Sender<Item>,
    pub(super) notes: &'a mpsc::Sender<Note>,
    pub(super) cut_short: u64,
}

impl Reader<'_> {
    /// Reads one file and sends its events. After an `Err`, the reader must not continue with the
    /// next file.
    fn read_file(&mut self, file: usize, path: &Path) -> Result<(), Ended> {
        let failed = |line, what| Ended::Failed { line, what };
        let stopped = |line, what, hint| failed(line, format!("{what}; {hint}"));
        let resumed = self.plan.resumed.get(file);
        let mut text = Text::open(path, file, resumed).map_err(|what| failed(1, what))?;
        let mut line = Vec::new();
        let as_lines = self.plan.settings.only_looks;
        let mut batch = Batch { end: text.place, as_lines, ..Batch::default() };
        loop {
            let before = text.place;
            let number = before.lines + 1;
            let found = match text.next(&mut line) {
                Ok(Next::End) => break,
                Ok(Next::Line) => line::find(&mut line).map_err(|what| explained(what, &line)),
                Ok(Next::TooLong) => Err(longer()),
                Err(error) => {
                    let what = format!("cannot read further: {}", text.packing.explain(&error));
                    batch.flush(self.items)?;
                    if self.plan.settings.on_bad_line == OnBadLine::Stop {
                        return Err(stopped(number, what, SKIP_REST));
                    }
                    self.cut_short += 1;
                    let span = Span::new(path, Unit::Line, number..=number);
                    self.notes.blocking_send(Note::CutShort { span, what }).ok();
                    return Ok(());
                }
            };
            let is_event = self.add(&mut batch, path, &line, found, number)?;
            if !is_event && text.is_torn {
                // The line may not have been written completely yet. The next run begins with it.
                batch.end = before;
                break;
            }
            // The events of one line may be in several requests. Only the last one is past the
            // line.
            batch.end = text.place;
            if batch.bad_lines >= BAD_LINES_MAX {
                batch.flush(self.items)?;
            }
        }
        // A batch without events is sent too: its place tells the replay that the file is done.
        batch.flush(self.items)
    }

    /// Adds the events of a line to the batch, which is sent each time it is full. `found` is the
    /// range of the events in the line, or the fault of the line. `number` is the line's number, or
    /// its position in a queue. Returns `false` if the line is bad and was skipped, and `Err` if
    /// nothing more is to be read.
    pub(super) fn add(
        &mut self,
        batch: &mut Batch,
        path: &Path,
        line: &[u8],
        found: Result<line::Found, String>,
        number: u64,
    ) -> Result<bool, Ended> {
        match found {
            Ok(line::Found { range, others }) => {
                if let Some(what) = others {
                    self.bad(batch, path, what, number)?;
                }
                let mut lines = line.get(range).unwrap_or_default();
                while !lines.is_empty() {
                    let end = memchr::memchr(b'\n', lines).unwrap_or(lines.len());
                    let event = lines.get(..end).unwrap_or_default();
                    lines = lines.get(end + 1..).unwrap_or_default();
                    if !batch.has_room(&self.plan.settings, event.len()) {
                        batch.flush(self.items)?;
                    }
                    batch.push(event, number);
                }
                Ok(true)
            }
            Err(what) => self.bad(batch, path, what, number).map(|()| false),
        }
    }

    /// Counts and reports a line that is bad, or has a record without an event. `Err` if nothing
    /// more is to be read.
    fn bad(
        &mut self,
        batch: &mut Batch,
        path: &Path,
        what: String,
        number: u64,
    ) -> Result<(), Ended> {
        if self.plan.settings.on_bad_line == OnBadLine::Stop {
            batch.flush(self.items)?;
            return Err(Ended::Failed { line: number, what: format!("{what}; {SKIP_LINE}") });
        }
        batch.bad_lines += 1;
        let is_queue = matches!(self.plan.spools.get(batch.end.file), Some(Some(_)));
        let unit = if is_queue { Unit::Position } else { Unit::Line };
        let span = Span::new(path, unit, number..=number);
        self.notes.blocking_send(Note::BadLine { span, what }).ok();
        Ok(())
    }

    /// Reads the events of a queue, beginning at `spool.start`. Damage is reported, and the events
    /// after it are sent. After an `Err`, the reader must not continue with the next input.
    fn read_spool(&mut self, file: usize, path: &Path, spool: &Spool) -> Result<(), Ended> {
        let lines = spool.start.get();
        let end = Place { file, offset: spool.offset, lines, ..Place::default() };
        let mut events = Events {
            batch: Batch { end, as_lines: self.plan.settings.only_looks, ..Batch::default() },
            reader: self,
            path,
            next: end,
            line: Vec::new(),
            is_too_long: false,
        };
        let mut ended = None;
        let read = spool.directory.read(spool.start, spool.output.as_deref(), &mut |seen| {
            events.see(seen).map_err(|stopped| {
                ended = Some(stopped);
                io::Error::other("the reading was stopped")
            })
        });
        let number = events.next.lines;
        match (ended, read) {
            (Some(ended), _) => return Err(ended),
            (None, Err(error)) => {
                events.batch.flush(events.reader.items)?;
                return Err(Ended::Failed { line: number, what: error.to_string() });
            }
            (None, Ok(_)) => events.batch.flush(events.reader.items)?,
        }
        let looks = self.plan.settings.only_looks;
        if !looks && !spool.is_in_use && spool.directory.is_in_use().unwrap_or(false) {
            let what = "a relay has since been started with this directory; its consumers may \
                        get every event twice";
            self.remark(path, what.to_owned());
        }
        Ok(())
    }

    pub(super) fn remark(&self, directory: &Path, what: String) {
        let directory = directory.to_owned();
        self.notes.blocking_send(Note::Remark { directory, what }).ok();
    }
}

/// A queue's events while they are read. The stored lines arrive in parts, which may end within a
/// line.
struct Events<'a, 'r> {
    reader: &'a mut Reader<'r>,
    path: &'a Path,
    batch: Batch,
    /// The point before the next event. Its `lines` is the position of this event.
    next: Place,
    /// The part of the line that was read so far.
    line: Vec<u8>,
    /// `true`: the line is longer than [`LINE_BYTES_MAX`] bytes, and `line` is empty.
    is_too_long: bool,
}

impl Events<'_, '_> {
    fn see(&mut self, seen: Seen<'_>) -> Result<(), Ended> {
        match seen {
            Seen::At(position) => {
                self.next.lines = self.next.lines.max(position.get());
                self.line.clear();
            }
            Seen::Lines(lines) => {
                for part in lines.split_inclusive(|byte| *byte == b'\n') {
                    self.part(part)?;
                }
            }
            Seen::Finding(finding) => self.fault(finding)?,
            Seen::Progress(..) => {}
        }
        Ok(())
    }

    /// Adds a part of a line, and the event if the line is now complete.
    fn part(&mut self, part: &[u8]) -> Result<(), Ended> {
        self.next.offset += part.len() as u64;
        self.next.bytes_read = self.next.offset;
        self.is_too_long |= self.line.len() + part.len() > LINE_BYTES_MAX + 1;
        if self.is_too_long {
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
        if part.last() != Some(&b'\n') {
            return Ok(());
        }
        let found = match std::mem::take(&mut self.is_too_long) {
            true => Err(longer()),
            false => line::find(&mut self.line),
        };
        let number = self.next.lines;
        self.reader.add(&mut self.batch, self.path, &self.line, found, number)?;
        self.line.clear();
        if self.line.capacity() > KEPT_BYTES_MAX {
            self.line = Vec::new();
        }
        self.next.lines += 1;
        self.done()
    }

    /// Reports a fault of the directory, and counts it if it may have cost events. The reader
    /// continues after it.
    fn fault(&mut self, finding: &Finding) -> Result<(), Ended> {
        let positions = finding.positions.clone();
        let last = positions.end.saturating_back(1);
        let what = match positions.is_empty() || matches!(finding.fault, Fault::Missing) {
            true => finding.to_string(),
            false => format!("{finding} (positions {} to {last})", positions.start),
        };
        self.reader.remark(self.path, what);
        // Damage without an event, such as that of a segment's header, is not counted.
        let is_damage = matches!(finding.fault, Fault::Damaged { .. });
        let costs_nothing = is_damage && finding.events == 0;
        self.batch.damage.faults += u64::from(!costs_nothing);
        self.batch.damage.missing += finding.events;
        self.next.lines = Position::new(self.next.lines).max(positions.end).get();
        self.done()
    }

    /// Records that everything before `next` is in this or an earlier batch. Sends the batch if it
    /// has many bad lines and faults.
    fn done(&mut self) -> Result<(), Ended> {
        self.batch.end = self.next;
        if self.batch.bad_lines + self.batch.damage.faults >= BAD_LINES_MAX {
            self.batch.flush(self.reader.items)?;
        }
        Ok(())
    }
}

impl Batch {
    /// Returns `true` if an event of this many bytes fits into the request. An empty request takes
    /// an event of any size.
    fn has_room(&self, settings: &Settings, bytes: usize) -> bool {
        let length = self.body.len() + 1 + bytes + LIST_TAIL.len();
        let has_room = self.events < u64::from(settings.batch_events());
        self.events == 0 || has_room && length <= BATCH_BYTES_MAX
    }

    fn push(&mut self, event: &[u8], line: u64) {
        if self.events == 0 {
            self.first_line = line;
        }
        let (before, behind): (&[u8], &[u8]) = match (self.as_lines, self.events) {
            (true, _) => (b"", b"\n"),
            (false, 0) => (LIST_HEAD, b""),
            (false, _) => (b",", b""),
        };
        for part in [before, event, behind] {
            self.body.extend_from_slice(part);
        }
        self.events += 1;
        self.last_line = line;
    }

    /// Sends the batch to the replay, even without events, and begins a new one.
    pub(super) fn flush(&mut self, items: &mpsc::Sender<Item>) -> Result<(), Ended> {
        let next = Self { end: self.end, as_lines: self.as_lines, ..Self::default() };
        let mut full = std::mem::replace(self, next);
        if full.events > 0 {
            // The next body will probably have the same length.
            let capacity = full.body.len() + full.body.len() / 8;
            self.body.reserve(capacity.min(KEPT_BYTES_MAX));
            full.body.extend_from_slice(if self.as_lines { b"" } else { LIST_TAIL });
        }
        Ok(items.blocking_send(Item::Batch(full))?)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Line,
    /// The line is longer than [`LINE_BYTES_MAX`] bytes and was skipped.
    TooLong,
    End,
}

pub(super) fn longer() -> String {
    format!("longer than {LINE_BYTES_MAX} bytes")
}

/// Adds advice to the fault `what` of a line with which a JSON document of several lines may begin.
fn explained(what: String, line: &[u8]) -> String {
    let filter = match line.trim_ascii() {
        [b'[', .., b'[' | b'{' | b','] | b"[" => ".[]",
        [b'{', .., b'[' | b'{' | b','] | b"{" => ".items[]? // .",
        _ => return what,
    };
    format!(
        "{what}. If a JSON document of several lines begins here, make lines of it with `jq -c \
         '{filter}' FILE`"
    )
}

/// The text of one file, read line by line.
pub(super) struct Text {
    reader: Box<dyn BufRead + Send>,
    /// The text after `place` that was read already. It begins at `ahead_at` in this buffer.
    ahead: Vec<u8>,
    ahead_at: usize,
    /// The bytes on disk that were read (compressed, for a compressed file).
    bytes_read: Arc<AtomicU64>,
    pub(super) packing: Packing,
    /// `true`: the last line that was read has no line break, so it may be incomplete.
    is_torn: bool,
    /// The point after the last line that was read.
    pub(super) place: Place,
}

impl Text {
    /// Opens a file at its beginning, or at the point up to which an earlier run has sent it. `Err`
    /// is the reason why the file can't be used.
    fn open(path: &Path, file: usize, resumed: Option<&Resumed>) -> Result<Self, String> {
        let cannot = |packing: Packing, error: &io::Error| {
            format!("cannot read it: {}", packing.explain(error))
        };
        let mut text =
            Self::at_start(path, file).map_err(|error| cannot(Packing::Plain, &error))?;
        let Some(resumed) = resumed.filter(|resumed| resumed.lines > 0) else {
            return Ok(text);
        };
        let packing = text.packing;
        text.next(&mut Vec::new()).map_err(|error| cannot(packing, &error))?;
        if !text.place.head.matches(resumed.head) {
            return Err(
                "is not the file that the resume file names: its first line is a different \
                        one. Name the files in the same order, or start again with another --resume"
                    .to_owned(),
            );
        }
        let skipped = text.skip_to(path, resumed).map_err(|error| cannot(packing, &error))?;
        if !skipped {
            return Err(format!(
                "is not the file that the resume file names: it is shorter than before, or no line \
                 ends at byte {}",
                resumed.offset
            ));
        }
        Ok(text)
    }

    fn at_start(path: &Path, file: usize) -> io::Result<Self> {
        let source: Box<dyn Read + Send> = if path.as_os_str() == STDIN {
            Box::new(io::stdin())
        } else {
            named_file::refuse_device(path)?;
            Box::new(File::open(path)?)
        };
        Self::of(source, file)
    }

    /// Begins to read from `source`, and detects the compression.
    pub(super) fn of(source: Box<dyn Read + Send>, file: usize) -> io::Result<Self> {
        let bytes_read = Arc::<AtomicU64>::default();
        let counted = Counted { source, bytes: Arc::clone(&bytes_read) };
        let mut raw = BufReader::with_capacity(BUFFER, counted);
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        raw.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
        let packing = Packing::of(&magic);
        let reader = packing.open(io::Cursor::new(magic).chain(raw), BUFFER)?;
        let place = Place { file, ..Place::default() };
        Ok(Self {
            reader,
            ahead: Vec::new(),
            ahead_at: 0,
            bytes_read,
            packing,
            is_torn: false,
            place,
        })
    }

    /// Skips the part that an earlier run has sent. Returns `false` if the file is shorter than
    /// this part, or if no line ends there.
    fn skip_to(&mut self, path: &Path, resumed: &Resumed) -> io::Result<bool> {
        let is_file = path.as_os_str() != STDIN && std::fs::metadata(path)?.is_file();
        match self.packing {
            Packing::Plain if is_file => {
                let mut raw = File::open(path)?;
                if raw.metadata()?.len() < resumed.offset {
                    return Ok(false);
                }
                let last = resumed.offset.min(1);
                raw.seek(SeekFrom::Start(resumed.offset - last))?;
                self.bytes_read.store(resumed.offset - last, Ordering::Relaxed);
                let source: Box<dyn Read + Send> = Box::new(raw);
                let counted = Counted { source, bytes: Arc::clone(&self.bytes_read) };
                self.reader = Box::new(BufReader::with_capacity(BUFFER, counted));
                if !self.skip(last)? {
                    return Ok(false);
                }
            }
            Packing::Plain | Packing::Gzip | Packing::Zstd => {
                let Some(left) = resumed.offset.checked_sub(self.place.offset) else {
                    return Ok(false);
                };
                if !self.skip(left)? {
                    return Ok(false);
                }
            }
        }
        (self.place.offset, self.place.lines) = (resumed.offset, resumed.lines);
        Ok(true)
    }

    /// Skips this many bytes of the text. Returns `false` if the text is shorter, or if no line
    /// ends there. The last line of a text may have got its line break only later.
    pub(super) fn skip(&mut self, mut left: u64) -> io::Result<bool> {
        let mut last = Some(b'\n');
        while left > 0 {
            let available = self.reader.fill_buf()?;
            let used = usize::try_from(left).unwrap_or(usize::MAX).min(available.len());
            if used == 0 {
                return Ok(false);
            }
            last = available[..used].last().copied();
            self.reader.consume(used);
            left -= used as u64;
        }
        let is_behind = last == Some(b'\n');
        Ok(is_behind || self.reader.fill_buf()?.first().is_none_or(|next| *next == b'\n'))
    }

    /// Reads ahead until the next line has its line break, or is too long. Returns `false` if the
    /// text ends before that; the text may grow later.
    pub(super) fn has_line(&mut self) -> io::Result<bool> {
        if memchr::memchr(b'\n', self.available()?).is_some() {
            return Ok(true);
        }
        self.ahead.drain(..std::mem::take(&mut self.ahead_at));
        loop {
            let more = self.reader.fill_buf()?;
            let (used, is_whole) = (more.len(), memchr::memchr(b'\n', more).is_some());
            self.ahead.extend_from_slice(more);
            self.reader.consume(used);
            if used == 0 || is_whole || self.ahead.len() > LINE_BYTES_MAX {
                return Ok(used > 0);
            }
        }
    }

    /// Returns the next bytes of the text; none at its end.
    fn available(&mut self) -> io::Result<&[u8]> {
        if self.ahead_at < self.ahead.len() {
            return Ok(&self.ahead[self.ahead_at..]);
        }
        self.reader.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        if self.ahead.is_empty() {
            return self.reader.consume(bytes);
        }
        self.ahead_at += bytes;
        if self.ahead_at == self.ahead.len() {
            (self.ahead, self.ahead_at) = (Vec::new(), 0);
        }
    }

    /// Reads the next line into `line`, and adds a `\n` if the last line of the text has none. A
    /// line that is too long is read to its end, but `line` gets only a part of it.
    pub(super) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Next> {
        line.clear();
        if line.capacity() > KEPT_BYTES_MAX {
            *line = Vec::new();
        }
        let (mut length, mut too_long) = (0, false);
        loop {
            let available = match self.available() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            let end = memchr::memchr(b'\n', available);
            let used = end.map_or(available.len(), |end| end + 1);
            if line.len() + used > LINE_BYTES_MAX + 1 {
                too_long = true;
                line.truncate(Head::BYTES_MAX);
            }
            if !too_long {
                line.extend_from_slice(&available[..used]);
            }
            self.consume(used);
            length += used as u64;
            if end.is_some() {
                break;
            }
            if used == 0 && length == 0 {
                return Ok(Next::End);
            }
            if used == 0 {
                line.push(b'\n');
                self.is_torn = true;
                break;
            }
        }
        if self.place.lines == 0 {
            self.place.head = Head::of(line);
        }
        self.place.offset += length;
        self.place.lines += 1;
        self.place.bytes_read = match self.packing {
            Packing::Plain => self.place.offset,
            Packing::Gzip | Packing::Zstd => self.bytes_read.load(Ordering::Relaxed),
        };
        Ok(if too_long { Next::TooLong } else { Next::Line })
    }
}
