//! The command `replay`. It sends the events of audit.log files again, as kube-apiserver's webhook
//! would have sent them. It also sends the events that a relay which no longer runs has left in its
//! queue's directory (`spool`).
//!
//! One thread reads and checks the inputs (`input`). The requests are sent one after the other
//! (`client`), so everything before the open request was accepted. The resume file says what was
//! accepted as of its last write, so that a later run skips nothing that was not accepted. A later
//! run may send what was accepted after this write a second time.
//! The code here never prints: [`Replay::run`] sends notes to its caller. A command that only looks
//! at the events passes a function instead of a relay ([`To`]).
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `self` `client` `packing` `resume` | the run · requests · compression · the resume file |
//! | 2 | `line` `spool` | a line of a log · a queue's directory |
//! | 3 | `input` | what is read |
//! | 4 | `follow` | a log that grows and is rotated |

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use ::client::ask::Connection;
use base::position::Position;

pub mod client;
mod follow;
mod input;
mod line;
pub mod packing;
mod resume;
mod spool;

use client::{Client, Failed};
use input::{Batch, Item, Place};
use resume::State;
use spool::Spool;

pub use spool::Replayed;

pub use resume::FORMAT as RESUME_FORMAT;

/// The maximum number of events in a request. Because one request is sent at a time, small requests
/// would be slow with a receiver that responds only when it has delivered the events.
const EVENTS_MAX: u32 = 2000;

/// The resume file is written when a request is accepted, but not more often than this. A log that
/// is followed has no such limit.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The longest delay that is made up for by sending faster than the configured rate.
const CATCH_UP: Duration = Duration::from_millis(100);

/// The configured rate divided by this number, but at least 1, is the maximum number of events in a
/// request, so that events arrive evenly: at 100 events per second, it is 25.
const REQUESTS_PER_SECOND: u32 = 4;

/// The reaction of a replay to a line that is not an event.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum OnBadLine {
    /// The replay sends the events before the line and then stops.
    #[default]
    Stop,
    /// The replay skips the line, reports it to the operator, and counts it.
    Skip,
}

/// The settings of a replay: its input, its limits and its resume file.
#[derive(Debug, Default, Clone)]
pub struct Settings {
    /// The inputs, in the order in which they are sent: files, and directories of queues. `-` is
    /// standard input.
    pub files: Vec<PathBuf>,
    /// The output whose unfinished events are sent from each directory. `None`: the events that at
    /// least one output has not finished.
    pub output: Option<String>,
    /// `true`: a directory is read even if a relay is using it.
    pub even_if_running: bool,
    /// The maximum number of events per second. `None`: as fast as the receiver accepts them.
    pub rate: Option<NonZeroU32>,
    /// The path of the resume file. `None`: the progress is not saved for a later run.
    pub resume: Option<PathBuf>,
    /// The reaction to a line of the files that is not an event.
    pub on_bad_line: OnBadLine,
    /// `true`: the batches are JSON lines, for [`To::Look`]. All stored events of a directory are
    /// read, even those that every output has finished.
    pub only_looks: bool,
    /// `true`: the only file is a log that is followed through its rotations until a stop is
    /// requested. A batch is sent only when the resume file covers the batch before it.
    pub follows: bool,
}

impl Settings {
    /// Returns the maximum number of events in a request.
    fn batch_events(&self) -> u32 {
        let share = self.rate.map(|rate| (rate.get() / REQUESTS_PER_SECOND).max(1));
        share.map_or(EVENTS_MAX, |share| share.min(EVENTS_MAX))
    }
}

/// The receiver of the batches.
pub enum To<'l> {
    /// A relay.
    Relay(Client),
    /// A function that gets the events, as JSON lines that a relay would accept.
    Look(&'l mut dyn FnMut(&[u8])),
}

/// The unit in which the events of an input are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The lines of a file, counted from 1.
    Line,
    /// The positions of a queue's directory, counted from 0.
    Position,
}

/// A range of lines of a file, or of positions of a queue's directory.
#[derive(Debug, Clone)]
pub struct Span {
    /// The path of the file or directory.
    pub file: PathBuf,
    /// The unit of `first` and `last`.
    pub unit: Unit,
    /// The number of the first line or position.
    pub first: u64,
    /// The number of the last line or position.
    pub last: u64,
}

impl Span {
    fn new(file: &Path, unit: Unit, numbers: RangeInclusive<u64>) -> Self {
        let (first, last) = numbers.into_inner();
        Self { file: file.to_owned(), unit, first, last }
    }
}

/// A message to the operator while the replay runs.
#[derive(Debug, Clone)]
pub enum Note {
    /// A line is not an event and was skipped.
    BadLine {
        /// The line or position.
        span: Span,
        /// The mistake in the line.
        what: String,
    },
    /// A file can't be read to its end. Its rest was skipped.
    CutShort {
        /// The line at which reading has ended.
        span: Span,
        /// The reason why the file can't be read to its end.
        what: String,
    },
    /// A request has failed, and another attempt follows.
    Retrying {
        /// The lines or positions of the request's events.
        span: Span,
        /// The reason for the failure, and the pause before the next attempt.
        failed: Failed,
    },
    /// A remark about a queue's directory, such as damage in it, or about a log that is followed.
    Remark {
        /// The path of the directory or log.
        directory: PathBuf,
        /// The text of the remark.
        what: String,
    },
    /// The result for a queue's directory. At the end of a replay, there is one note for each
    /// directory that was begun.
    Replayed(Replayed),
}

/// The progress of a replay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// The number of events in all requests. An event in a request that was retried counts once.
    pub sent: u64,
    /// The number of events that the receiver has accepted.
    pub accepted: u64,
    /// The number of bytes in the request bodies that the receiver has accepted.
    pub bytes: u64,
    /// The number of lines that were skipped because they are not events.
    pub bad_lines: u64,
    /// The number of gaps in a log that is followed: places at which events may be lost.
    pub gaps: u64,
    /// The bytes of the inputs that are done: every event in them was accepted, and every bad line
    /// was skipped. For a file, these are bytes on disk; for a queue, the bytes of its lines. For a
    /// compressed file, bytes that were read ahead count too, although their events may not be
    /// accepted yet.
    pub file_bytes: u64,
    /// The number of events that were accepted in earlier runs with the same resume file.
    pub events_before: u64,
}

impl Progress {
    /// Returns `true` if this run has skipped bad lines but sent no event, and no event was
    /// accepted in an earlier run.
    pub fn is_nothing(&self) -> bool {
        self.bad_lines > 0 && self.sent + self.events_before == 0
    }
}

/// The reason why a replay stopped, and where. A replay that has read everything, but has found
/// damage or events that were set aside, counts as stopped too.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// The reason.
    pub what: String,
    /// The line or position with which the next run begins: every event before it was accepted.
    /// `None`: every event that could be read was accepted.
    pub at: Option<Span>,
    /// The lines or positions that caused the stop, if any did.
    pub lines: Option<Span>,
}

/// The reason why a replay could not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

/// A replay with checked inputs, ready to run.
pub struct Replay {
    settings: Settings,
    /// The contents for the resume file: how much of each input was accepted.
    state: State,
    /// The place of the next event: the index of a file, and the number of its lines before the
    /// event. For a queue's directory, the position of the event. All files of a log that is
    /// followed have the index 0.
    at: (usize, u64),
    /// The queue of each input. `None` if the input is a file.
    spools: Vec<Option<Arc<Spool>>>,
}

impl Replay {
    /// Checks the inputs, and writes the resume file, if any. Sends nothing. Blocks the thread.
    ///
    /// # Errors
    ///
    /// An input, an option or the resume file cannot be used.
    pub fn new(settings: Settings) -> Result<Self, Unusable> {
        if settings.follows {
            return Self::following(settings);
        }
        let mut directories = Vec::new();
        for file in &settings.files {
            directories.push(is_directory(file)?);
        }
        if settings.output.is_some() && !directories.contains(&true) {
            return Err(Unusable(
                "--output is for the directory of a queue, and no directory is named".to_owned(),
            ));
        }
        let mut state = State::default();
        if let Some(file) = &settings.resume {
            state = State::load(file).map_err(Unusable)?;
            let (there, named) = (state.files.len(), settings.files.len());
            if there > named {
                return Err(Unusable(format!(
                    "the resume file {} is of {there} files, but this run names {named}: name all \
                     of them, in the same order",
                    file.display()
                )));
            }
        }
        let mut spools = Vec::new();
        for (index, (path, is_directory)) in settings.files.iter().zip(directories).enumerate() {
            let saved = state.files.get(index);
            if is_directory {
                spools.push(Some(Arc::new(Spool::open(path, &settings, saved)?)));
                continue;
            }
            spools.push(None);
            if let Some(queue) = saved.and_then(|saved| saved.queue.as_ref()) {
                return Err(Unusable(format!(
                    "the resume file is of the queue {:?}, but {} is a file: name the same inputs \
                     in the same order, or another file for --resume",
                    queue.identity,
                    path.display()
                )));
            }
        }
        if let Some(file) = &settings.resume {
            let saved = state.save(file);
            saved.map_err(|error| Unusable(format!("cannot write {}: {error}", file.display())))?;
        }
        Ok(Self::with(settings, state, spools))
    }

    /// Does what [`Replay::new`] does, for a log that is followed.
    fn following(settings: Settings) -> Result<Self, Unusable> {
        let ([log], Some(file)) = (&*settings.files, &settings.resume) else {
            let what = "--follow needs exactly one file, and --resume FILE";
            return Err(Unusable(what.to_owned()));
        };
        follow::check(log).map_err(Unusable)?;
        let mut state = State::load(file).map_err(Unusable)?;
        if state.files.len() > 2 || state.files.iter().any(|read| read.queue.is_some()) {
            return Err(Unusable(format!(
                "the resume file {} is not of a log that was followed: name another file for \
                 --resume",
                file.display()
            )));
        }
        let cannot = |what: &str, path: &Path, error: std::io::Error| {
            Unusable(format!("cannot {what} {}: {error}", path.display()))
        };
        if state.files.is_empty() {
            state.files = follow::begin(log).map_err(|error| cannot("read", log, error))?;
        }
        state.save(file).map_err(|error| cannot("write", file, error))?;
        Ok(Self::with(settings, state, vec![None]))
    }

    fn with(settings: Settings, state: State, spools: Vec<Option<Arc<Spool>>>) -> Self {
        let last = state.files.len().saturating_sub(1);
        let start = |spool: &Arc<Spool>| spool.start.get();
        let begin = spools.get(last).and_then(Option::as_ref).map(start);
        let lines = begin.or_else(|| state.files.last().map(|read| read.lines));
        let at = (if settings.follows { 0 } else { last }, lines.unwrap_or(0));
        Self { settings, state, at, spools }
    }

    /// Returns remarks for the operator before the events are sent, one sentence each. They say
    /// which events of queues are sent, which outputs get some of them a second time, and where in
    /// a log the first run begins.
    pub fn remarks(&self) -> Vec<String> {
        let known = self.state.files.last().filter(|_| self.settings.follows);
        if let Some(log) = known.filter(|read| !read.is_begun()) {
            return vec![format!(
                "{}: begins with its first line; what was rotated before is not sent",
                log.path.display()
            )];
        }
        let inputs = self.settings.files.iter().zip(&self.spools);
        let spools = inputs.filter_map(|(path, spool)| Some((path, spool.as_ref()?)));
        spools.flat_map(|(path, spool)| spool.remarks(path)).collect()
    }

    /// Returns the line or position with which this run begins. `None` for a first run, and if the
    /// run begins with the first line or position of an input.
    pub fn resumes_at(&self) -> Option<Span> {
        let is_resumed = self.state.files.last().is_some_and(|last| last.lines > 0);
        is_resumed.then(|| self.place())
    }

    /// Returns the size of all inputs in bytes. `None` if the size of an input is not known, such
    /// as that of a pipe or of a log that is followed.
    pub fn file_bytes(&self) -> Option<u64> {
        self.sizes().sum::<Option<u64>>().filter(|_| !self.settings.follows)
    }

    /// Returns the size of each input in bytes. For a queue, this is the size of the lines that its
    /// outputs have not finished. It is not known if all stored lines are read.
    fn sizes(&self) -> impl Iterator<Item = Option<u64>> {
        self.settings.files.iter().zip(&self.spools).map(|(file, spool)| match spool {
            Some(spool) => (!self.settings.only_looks).then_some(spool.left.bytes),
            None => std::fs::metadata(file).ok().filter(|it| it.is_file()).map(|it| it.len()),
        })
    }

    /// Sends the events until the inputs end, `stop` is cancelled, or something fails. `notes` gets
    /// messages for the operator, and `progress` the current numbers. Writes the resume file, if
    /// there is one, before it returns.
    ///
    /// # Errors
    ///
    /// [`Stopped`] has the reason and the place.
    pub async fn run(
        self,
        to: To<'_>,
        notes: mpsc::Sender<Note>,
        progress: watch::Sender<Progress>,
        stop: CancellationToken,
    ) -> Result<(), Stopped> {
        let sizes = self.sizes().map(Option::unwrap_or_default).collect();
        let plan = input::Plan {
            settings: self.settings.clone(),
            spools: self.spools.clone(),
            resumed: self.state.files.clone(),
        };
        let (sender, items) = mpsc::channel(1);
        let for_reader = notes.clone();
        let read_all = if self.settings.follows { follow::read_all } else { input::read_all };
        // The thread ends when `items` is dropped. If it hangs in a read, it ends with the process.
        let reading = std::thread::Builder::new()
            .name("replay-reader".to_owned())
            .spawn(move || read_all(&plan, &sender, &for_reader));
        progress.send_modify(|progress| progress.events_before = self.state.events);
        let now = Instant::now();
        let mut running = Running {
            replay: self,
            to,
            kept: None,
            notes,
            progress,
            stop,
            sizes,
            due: now,
            saved: now,
        };
        let sent = match reading {
            Ok(_) => running.send_all(items).await,
            Err(error) => {
                let what = format!("cannot start the thread that reads: {error}");
                Err(running.replay.stopped(what, None))
            }
        };
        running.ended(sent).await
    }

    /// Records that everything up to the end of this batch is done: its events were accepted, and
    /// its bad lines were skipped.
    fn advance(&mut self, done: &Batch) {
        let Place { file, head, offset, lines, .. } = done.end;
        let files = &self.settings.files;
        let saved = self.state.files.get(file).and_then(|read| read.queue.clone());
        let mut queue = saved.or_else(|| self.spool(file).map(|spool| spool.resumed.clone()));
        if let Some(queue) = &mut queue {
            queue.events += done.events;
            queue.missing += done.damage.missing;
            queue.faults += done.damage.faults;
        }
        let path = files.get(file).cloned().unwrap_or_default();
        let read = resume::Read { queue, path, head, offset, lines };
        self.state.events += done.events;
        if self.settings.follows {
            resume::go_on(&mut self.state.files, read, done.gaps > 0);
            self.at = (0, lines);
            return;
        }
        match self.state.files.get_mut(file) {
            Some(there) => *there = read,
            None => self.state.files.push(read),
        }
        // The reader also reports the ends of files that an earlier run has sent.
        self.at = self.at.max((file, lines));
    }

    fn spool(&self, file: usize) -> Option<&Spool> {
        self.spools.get(file).and_then(Option::as_deref)
    }

    /// Returns these lines of an input, or these positions of a queue's directory.
    fn span(&self, file: usize, numbers: RangeInclusive<u64>) -> Span {
        let unit = if self.spool(file).is_some() { Unit::Position } else { Unit::Line };
        let path = self.settings.files.get(file).cloned().unwrap_or_default();
        Span::new(&path, unit, numbers)
    }

    /// Returns the line or position of the next event: everything before it was accepted.
    fn place(&self) -> Span {
        let (file, done) = self.at;
        let next = if self.spool(file).is_some() { done } else { done + 1 };
        self.span(file, next..=next)
    }

    /// Returns the result for each queue's directory that was begun.
    fn replayed(&self) -> Vec<Replayed> {
        let result = |(read, spool): (&resume::Read, &Option<_>)| {
            let queue = read.queue.as_ref()?;
            let dropped = |spool: &Arc<Spool>| {
                spool.left.dropped_in(Position::new(queue.begin)..Position::new(read.lines))
            };
            Some(Replayed {
                queue: queue.identity.clone(),
                events: queue.events,
                begin: Position::new(queue.begin),
                end: Position::new(read.lines),
                missing: queue.missing,
                dropped: spool.as_ref().map_or(0, dropped),
            })
        };
        self.state.files.iter().zip(&self.spools).filter_map(result).collect()
    }

    /// Returns a text about events in the queues that were not sent: those that were damaged or
    /// missing, in this run and earlier ones, and those that outputs have set aside. `None` if
    /// there are none.
    fn left_out(&self) -> Option<String> {
        let queues = || self.state.files.iter().filter_map(|read| read.queue.as_ref());
        let faults: u64 = queues().map(|queue| queue.faults).sum();
        let missing: u64 = queues().map(|queue| queue.missing).sum();
        let damage = (faults > 0).then(|| {
            let places = spool::count(faults, "place");
            format!("damaged or missing events: {missing}, in {places}; they are left out")
        });
        let spools = self.settings.files.iter().zip(&self.spools);
        let aside = spools.filter_map(|(path, spool)| {
            let aside = spool.as_ref()?.left.aside;
            (aside > 0).then(|| spool::aside_words(aside, path))
        });
        let texts: Vec<_> = damage.into_iter().chain(aside).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// Writes the resume file, if there is one.
    async fn save(&self) -> Result<(), Stopped> {
        let Some(file) = self.settings.resume.clone() else { return Ok(()) };
        let state = self.state.clone();
        let saved = tokio::task::spawn_blocking(move || state.save(&file)).await;
        saved
            .map_err(std::io::Error::from)
            .flatten()
            .map_err(|error| self.stopped(format!("cannot write the resume file: {error}"), None))
    }

    /// Returns the reason for a stop before the next event. `lines` caused the stop, if any did.
    fn stopped(&self, what: String, lines: Option<Span>) -> Stopped {
        Stopped { what, at: Some(self.place()), lines }
    }
}

impl Stopped {
    /// Returns `true` if a line is not an event, so that the next run stops there again, unless
    /// `--on-bad-line skip` is given.
    pub fn is_bad_line(&self) -> bool {
        self.what.ends_with(input::SKIP_LINE)
    }

    /// Makes the reason for a stop after every event that could be read was accepted.
    fn at_end(what: String) -> Self {
        Self { what, at: None, lines: None }
    }
}

/// Returns `true` if this input is a directory.
///
/// # Errors
///
/// The input does not exist, or is a regular file that can't be opened.
fn is_directory(file: &Path) -> Result<bool, Unusable> {
    if file.as_os_str() == "-" {
        return Ok(false);
    }
    // A pipe is not opened here: it can be opened only once, because closing it would end it for
    // its writer.
    let found = std::fs::metadata(file).and_then(|found| {
        if found.is_file() {
            std::fs::File::open(file)?;
        }
        Ok(found.is_dir())
    });
    found.map_err(|error| Unusable(format!("cannot read {}: {error}", file.display())))
}

/// A running replay. [`Replay::run`] owns it, and its loop runs in the caller's task.
///
/// The loop sends one batch after the other, and ends at the end of the inputs or at the first
/// failure. Only an accepted batch advances the contents of the resume file. Therefore a later run
/// may send events twice, but it skips no readable event that was not accepted. A cancelled `stop`
/// ends a pause immediately, and an open request after at most five seconds. The resume file is
/// written once more at the end.
///
/// If a log is followed, a cancelled `stop` is not a failure. Also, a batch is sent only when the
/// resume file covers everything before it, so that a kill repeats at most one batch.
struct Running<'l> {
    replay: Replay,
    to: To<'l>,
    /// The open connection to the relay, for the next request.
    kept: Option<Connection>,
    notes: mpsc::Sender<Note>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    /// The sizes of the inputs in bytes; 0 if a size is not known.
    sizes: Vec<u64>,
    /// The earliest time at which the rate allows the next request.
    due: Instant,
    /// The time of the last write of the resume file.
    saved: Instant,
}

impl Running<'_> {
    /// Sends all batches. If `stop` is cancelled, [`Running::ended`] replaces the reason of an
    /// `Err`.
    async fn send_all(&mut self, mut items: mpsc::Receiver<Item>) -> Result<(), Stopped> {
        loop {
            match self.stop.run_until_cancelled(items.recv()).await.flatten() {
                Some(Item::Batch(batch)) => self.send(batch).await?,
                Some(Item::End { cut_short: 0 }) => return Ok(()),
                Some(Item::End { cut_short }) => {
                    let what = format!("{cut_short} of the files could not be read to their ends");
                    return Err(Stopped::at_end(what));
                }
                Some(Item::Failed { file, line, what }) => {
                    let lines = self.replay.span(file, line..=line);
                    return Err(self.replay.stopped(what, Some(lines)));
                }
                None => {
                    let what = "the thread that reads has ended";
                    return Err(self.replay.stopped(what.to_owned(), None));
                }
            }
        }
    }

    /// Sends a batch, and advances the replay once the batch is accepted. A batch without events
    /// makes no request.
    async fn send(&mut self, mut batch: Batch) -> Result<(), Stopped> {
        let body = Bytes::from(std::mem::take(&mut batch.body));
        if batch.events > 0 {
            self.pace(batch.events).await?;
            self.pass(&batch, &body).await?;
        }
        self.replay.advance(&batch);
        let before: u64 = self.sizes.iter().take(batch.end.file).sum();
        self.progress.send_modify(|progress| {
            progress.accepted += batch.events;
            progress.bytes += body.len() as u64;
            progress.bad_lines += batch.bad_lines;
            progress.gaps += batch.gaps;
            progress.file_bytes = before + batch.end.bytes_read;
        });
        if self.replay.settings.follows || self.saved.elapsed() >= SAVE_EVERY {
            self.replay.save().await?;
            self.saved = Instant::now();
        }
        Ok(())
    }

    /// Waits until the rate allows a request with this many events. `Err` if `stop` is cancelled
    /// before.
    async fn pace(&mut self, events: u64) -> Result<(), Stopped> {
        let Some(rate) = self.replay.settings.rate else { return Ok(()) };
        let due = tokio::time::sleep_until(self.due);
        if self.stop.run_until_cancelled(due).await.is_none() {
            return Err(self.interrupted());
        }
        let share = Duration::from_secs_f64(events as f64 / f64::from(rate.get()));
        let now = Instant::now();
        self.due = self.due.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + share;
        Ok(())
    }

    /// Passes a batch to the receiver. `Err` if the receiver has not accepted it.
    async fn pass(&mut self, batch: &Batch, body: &Bytes) -> Result<(), Stopped> {
        let client = match &mut self.to {
            To::Relay(client) => client,
            To::Look(look) => {
                self.progress.send_modify(|progress| progress.sent += batch.events);
                look(body);
                // The caller hears signals and shows the progress between two batches.
                tokio::task::yield_now().await;
                return Ok(());
            }
        };
        let span = self.replay.span(batch.end.file, batch.first_line..=batch.last_line);
        let failed = |failed: Failed| {
            let note = Note::Retrying { span: span.clone(), failed };
            // If the channel is full of unread notes, this one is dropped.
            self.notes.try_send(note).ok();
        };
        let posted = client.post(&mut self.kept, body, batch.events, failed).await;
        if client.has_sent() {
            self.progress.send_modify(|progress| progress.sent += batch.events);
        }
        let nothing = match self.progress.borrow().sent {
            0 => "; nothing was sent, because no connection was made",
            _ => "",
        };
        let stopped = |failure| self.replay.stopped(format!("{failure}{nothing}"), Some(span));
        posted.map_err(stopped)
    }

    fn interrupted(&self) -> Stopped {
        self.replay.stopped("interrupted".to_owned(), None)
    }

    /// Writes the resume file for the last time and returns the result of the replay.
    async fn ended(self, sent: Result<(), Stopped>) -> Result<(), Stopped> {
        let sent = match sent {
            Err(_) if self.stop.is_cancelled() && self.replay.settings.follows => Ok(()),
            Err(stopped)
                if self.stop.is_cancelled() && !stopped.what.starts_with("interrupted") =>
            {
                Err(self.interrupted())
            }
            sent => sent,
        };
        let saved = self.replay.save().await;
        for replayed in self.replay.replayed() {
            // The send fails only if the caller has dropped the receiver.
            self.notes.send(Note::Replayed(replayed)).await.ok();
        }
        let left_out = self.replay.left_out().map(Stopped::at_end);
        sent.and(saved).and(left_out.map_or(Ok(()), Err))
    }
}
