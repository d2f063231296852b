//! The command `replay`. It sends the events of audit.log files again, as kube-apiserver's webhook
//! would have sent them. It also sends the events that a relay which no longer runs has left in its
//! queue's directory (`spool`).
//!
//! One thread reads and checks the inputs (`input`), and several requests are open at the same time
//! (`client`). The *frontier* is the point up to which everything was accepted without a gap. The
//! resume file holds the frontier as of its last write, so that a later run skips nothing that was
//! not accepted. A later run may send what comes after this frontier a second time.
//! The code here never prints: [`Replay::run`] sends notes to its caller. A command that only looks
//! at the events passes a function instead of a relay ([`To`]).
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `self` `client` `packing` `resume` `wrapping` | the run · requests · compression · the resume file · records around events |
//! | 2 | `line` `spool` | a line of a log · a queue's directory |
//! | 3 | `input` | what is read |
//! | 4 | `follow` | a log that grows and is rotated |

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
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
mod wrapping;

use client::{Client, Failed};
use input::{Batch, Item, Place};
use resume::State;
use spool::Spool;

pub use spool::Replayed;

pub use resume::FORMAT as RESUME_FORMAT;

/// The maximum number of requests after the frontier, as a multiple of `concurrency`. It bounds the
/// events that a run after an orderly end may send a second time.
const WINDOW: usize = 2;

/// The maximum bytes in the bodies of all open requests. A larger request is sent alone.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// The longest time between two checks whether the resume file must be written.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The longest delay that is made up for by sending faster than the configured rate.
const CATCH_UP: Duration = Duration::from_millis(100);

/// The configured rate divided by this number, but at least 1, is the maximum number of events in a
/// request, so that events arrive evenly: at 100 events per second, it is 25.
const REQUESTS_PER_SECOND: u32 = 4;

/// The reaction of a replay to a line that is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBadLine {
    /// The replay sends the events before the line and then stops.
    Stop,
    /// The replay skips the line, reports it to the operator, and counts it.
    Skip,
}

/// The settings of a replay: its input, its limits and its resume file.
#[derive(Debug, Clone)]
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
    /// The maximum number of events in a request.
    pub batch_events: usize,
    /// The maximum bytes of a request body. A larger event is sent in a request of its own.
    pub batch_bytes: usize,
    /// The maximum number of open requests.
    pub concurrency: usize,
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

/// The receiver of the batches.
pub enum To<'l> {
    /// A relay.
    Relay(Arc<Client>),
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
    frontier: Frontier,
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
                    "the resume file {} is of {there} files, but {named} are named: name all of them, in the same order",
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
        Ok(Self { settings, frontier: Frontier::new(state, spools) })
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
        let mut frontier = Frontier::new(state, vec![None]);
        (frontier.at.0, frontier.follows) = (0, true);
        Ok(Self { settings, frontier })
    }

    /// Returns remarks for the operator before the events are sent, one sentence each. They say
    /// which events of queues are sent, which outputs get some of them a second time, and where in
    /// a log the first run begins.
    pub fn remarks(&self) -> Vec<String> {
        let known = self.frontier.state.files.last().filter(|_| self.settings.follows);
        if let Some(log) = known.filter(|read| !read.is_begun()) {
            return vec![format!(
                "{}: begins with its first line; what was rotated before is not sent",
                log.path.display()
            )];
        }
        let inputs = self.settings.files.iter().zip(&self.frontier.spools);
        let spools = inputs.filter_map(|(path, spool)| Some((path, spool.as_ref()?)));
        spools.flat_map(|(path, spool)| spool.remarks(path)).collect()
    }

    /// Returns the line or position with which this run begins. `None` for a first run, and if the
    /// run begins with the first line or position of an input.
    pub fn resumes_at(&self) -> Option<Span> {
        let is_resumed = self.frontier.state.files.last().is_some_and(|last| last.lines > 0);
        is_resumed.then(|| self.frontier.place(&self.settings.files))
    }

    /// Returns the size of all inputs in bytes. `None` if the size of an input is not known, such
    /// as that of a pipe or of a log that is followed.
    pub fn file_bytes(&self) -> Option<u64> {
        self.sizes().sum::<Option<u64>>().filter(|_| !self.settings.follows)
    }

    /// Returns the size of each input in bytes. For a queue, this is the size of the lines that its
    /// outputs have not finished. It is not known if all stored lines are read.
    fn sizes(&self) -> impl Iterator<Item = Option<u64>> {
        self.settings.files.iter().zip(&self.frontier.spools).map(|(file, spool)| match spool {
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
        let Self { mut settings, frontier } = self;
        if let Some(rate) = settings.rate {
            let share = usize::try_from(rate.get() / REQUESTS_PER_SECOND).unwrap_or(usize::MAX);
            settings.batch_events = settings.batch_events.min(share.max(1));
        }
        let plan = input::Plan {
            settings: settings.clone(),
            spools: frontier.spools.clone(),
            resumed: frontier.state.files.clone(),
        };
        let (sender, items) = mpsc::channel(1);
        let for_reader = notes.clone();
        let read_all = if settings.follows { follow::read_all } else { input::read_all };
        // The thread ends when `items` is dropped. If it hangs in a read, it ends with the process.
        let reading = std::thread::Builder::new()
            .name("replay-reader".to_owned())
            .spawn(move || read_all(&plan, &sender, &for_reader));
        let running = Running {
            to,
            notes,
            progress,
            stop,
            sizes,
            frontier,
            saver: Saver::default(),
            lanes: FuturesUnordered::new(),
            idle: Vec::new(),
            in_flight_bytes: 0,
            due: Instant::now(),
            settings,
        };
        running.progress.send_modify(|progress| {
            progress.events_before = running.frontier.state.events;
        });
        match reading {
            Ok(_) => running.run(items).await,
            Err(error) => {
                let what = format!("cannot start the thread that reads: {error}");
                running.ended(Some(Trouble::here(what))).await
            }
        }
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

/// The frontier, and the requests after it.
struct Frontier {
    /// The contents for the resume file, which describe everything before the frontier.
    state: State,
    /// The number of the first request in `sent`. The requests of a run are numbered from 0.
    first: u64,
    /// The requests after the frontier, in the order of the files, without their bodies. The `bool`
    /// is `true` if the receiver has accepted the request, or if it has no events.
    sent: VecDeque<(Batch, bool)>,
    /// The frontier: the index of a file, and the number of its lines before the frontier. For a
    /// queue's directory, the position of the first event after the frontier.
    at: (usize, u64),
    /// The queue of each input. `None` if the input is a file.
    spools: Vec<Option<Arc<Spool>>>,
    /// `true`: the only input is a log that is followed. All its files have the index 0.
    follows: bool,
}

impl Frontier {
    fn new(state: State, spools: Vec<Option<Arc<Spool>>>) -> Self {
        let last = state.files.len().saturating_sub(1);
        let start = |spool: &Arc<Spool>| spool.start.get();
        let begin = spools.get(last).and_then(Option::as_ref).map(start);
        let lines = begin.or_else(|| state.files.last().map(|read| read.lines));
        let at = (last, lines.unwrap_or(0));
        Self { state, first: 0, sent: VecDeque::new(), at, spools, follows: false }
    }

    fn spool(&self, file: usize) -> Option<&Spool> {
        self.spools.get(file).and_then(Option::as_deref)
    }

    /// Adds a request to `sent` and returns its number.
    fn push(&mut self, sent: Batch) -> u64 {
        let is_accepted = sent.events == 0;
        self.sent.push_back((sent, is_accepted));
        self.first + self.sent.len() as u64 - 1
    }

    fn accepted(&mut self, number: u64) {
        let index = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if let Some((_, is_accepted)) = self.sent.get_mut(index) {
            *is_accepted = true;
        }
    }

    /// Moves the frontier past the first request in `sent` and returns the request. `None` if there
    /// is none, or if it is not accepted yet. `files` are the paths for the resume file.
    fn next(&mut self, files: &[PathBuf]) -> Option<Batch> {
        let (done, _) = self.sent.pop_front_if(|(_, is_accepted)| *is_accepted)?;
        self.first += 1;
        let Place { file, head, offset, lines, .. } = done.end;
        let saved = self.state.files.get(file).and_then(|read| read.queue.clone());
        let mut queue = saved.or_else(|| self.spool(file).map(|spool| spool.resumed.clone()));
        if let Some(queue) = &mut queue {
            queue.events += done.events;
            queue.missing += done.damage.missing;
            queue.faults += done.damage.faults;
        }
        let read = resume::Read {
            queue,
            path: files.get(file).cloned().unwrap_or_default(),
            head,
            offset,
            lines,
        };
        self.state.events += done.events;
        if self.follows {
            resume::go_on(&mut self.state.files, read, done.gaps > 0);
            self.at = (0, lines);
            return Some(done);
        }
        match self.state.files.get_mut(file) {
            Some(there) => *there = read,
            None => self.state.files.push(read),
        }
        // The reader also reports the ends of files that an earlier run has sent, which are before
        // the frontier.
        self.at = self.at.max((file, lines));
        Some(done)
    }

    fn place(&self, files: &[PathBuf]) -> Span {
        let (index, lines) = self.at;
        let file = files.get(index).cloned().unwrap_or_default();
        match self.spool(index) {
            Some(_) => Span::new(&file, Unit::Position, lines..=lines),
            None => Span::new(&file, Unit::Line, lines + 1..=lines + 1),
        }
    }

    /// Returns the result for each queue's directory that was begun.
    fn replayed(&self, files: &[PathBuf]) -> Vec<Replayed> {
        let result = |((directory, read), spool): ((&PathBuf, &resume::Read), &Option<_>)| {
            let queue = read.queue.as_ref()?;
            let dropped = |spool: &Arc<Spool>| {
                spool.left.dropped_in(Position::new(queue.begin)..Position::new(read.lines))
            };
            Some(Replayed {
                directory: directory.clone(),
                queue: queue.identity.clone(),
                events: queue.events,
                begin: Position::new(queue.begin),
                end: Position::new(read.lines),
                missing: queue.missing,
                dropped: spool.as_ref().map_or(0, dropped),
            })
        };
        files.iter().zip(&self.state.files).zip(&self.spools).filter_map(result).collect()
    }

    /// Returns a text about events in the queues that were not sent: those that were damaged or
    /// missing, in this run and earlier ones, and those that outputs have set aside. `None` if
    /// there are none.
    fn left_out(&self, files: &[PathBuf]) -> Option<String> {
        let queues = || self.state.files.iter().filter_map(|read| read.queue.as_ref());
        let faults: u64 = queues().map(|queue| queue.faults).sum();
        let missing: u64 = queues().map(|queue| queue.missing).sum();
        let damage = (faults > 0).then(|| {
            let places = spool::count(faults, "place");
            format!("damaged or missing events: {missing}, in {places}; they are left out")
        });
        let spools = files.iter().zip(&self.spools);
        let aside = spools.filter_map(|(path, spool)| {
            let aside = spool.as_ref()?.left.aside;
            (aside > 0).then(|| spool::aside_words(aside, path))
        });
        let texts: Vec<_> = damage.into_iter().chain(aside).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

#[derive(Default)]
struct Saver {
    /// The state in the resume file. `None` before the first successful write by this `Saver`.
    saved: Option<State>,
    writing: Option<tokio::task::JoinHandle<std::io::Result<State>>>,
}

impl Saver {
    /// Begins to write `state` to the resume file, unless there is no resume file, it has this
    /// state already, or another write is running.
    fn save(&mut self, file: Option<&PathBuf>, state: &State) {
        let Some(file) = file.filter(|_| self.writing.is_none()) else { return };
        if self.saved.as_ref() != Some(state) {
            let (file, state) = (file.clone(), state.clone());
            let write = move || state.save(&file).map(|()| state);
            self.writing = Some(tokio::task::spawn_blocking(write));
        }
    }

    /// Waits until the running write has ended. If no write is running, waits forever. `Err` is the
    /// text of the failure.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the write continues, and the next call waits for it.
    async fn written(&mut self) -> Result<(), String> {
        let Some(writing) = &mut self.writing else { return std::future::pending().await };
        let written = writing.await;
        self.writing = None;
        let saved = written.map_err(std::io::Error::from).flatten();
        let state = saved.map_err(|error| format!("cannot write the resume file: {error}"))?;
        self.saved = Some(state);
        Ok(())
    }
}

struct Trouble {
    what: String,
    /// The lines or positions that caused the stop, if any did.
    lines: Option<Span>,
    /// `true`: open requests may use all their attempts. `false`: no further attempt follows, and
    /// open requests end after at most five seconds.
    finishes: bool,
}

impl Trouble {
    /// Makes a `Trouble` that no input has caused. Open requests end within five seconds.
    fn here(what: String) -> Self {
        Self { what, lines: None, finishes: false }
    }

    /// Makes a `Trouble` for inputs of which not everything was sent. `lines` is the line or
    /// position that can't be used, if it is a single one. Open requests may use all attempts.
    fn reading(what: String, lines: Option<Span>) -> Self {
        Self { what, lines, finishes: true }
    }
}

/// The result of a lane, with the connection for a later lane.
struct Done {
    number: u64,
    events: u64,
    bytes: usize,
    connection: Option<Connection>,
    result: Result<(), Trouble>,
}

/// A future that sends one request, with all its attempts.
type Lane = std::pin::Pin<Box<dyn Future<Output = Done> + Send>>;

/// A running replay. [`Replay::run`] owns it, and its loop runs in the caller's task.
///
/// Each turn of the loop handles one occurrence, such as the end of a lane (the future that sends
/// one request), the next batch from the reader thread, or the end of a write of the resume file.
///
/// The loop holds at most one batch to send. `concurrency` limits the number of busy lanes,
/// [`WINDOW`] the requests after the frontier, and [`IN_FLIGHT_BYTES_MAX`] the bytes of open
/// requests. A later lane can use the connection of a lane that has ended.
///
/// The loop ends at the end of the inputs or at the first trouble, in both cases after the last
/// lane has ended. After a failure to read, the lanes may use all their attempts. Any other trouble
/// (a request that fails permanently, `stop`, a resume file that can't be written) cancels `stop`,
/// so that the lanes end within five seconds. If a request fails permanently after a failure to
/// read, only the request is reported. The resume file is written once more at the end.
///
/// If a log is followed, a cancelled `stop` is no trouble. Also, a batch is sent only when the
/// resume file covers everything before it, so that a kill repeats at most one batch.
///
/// The frontier never passes a request that was not accepted. Therefore a later run with the same
/// resume file may send events twice, but it skips no readable event that was not accepted.
struct Running<'l> {
    settings: Settings,
    to: To<'l>,
    notes: mpsc::Sender<Note>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    /// The sizes of the inputs in bytes; 0 if a size is not known.
    sizes: Vec<u64>,
    frontier: Frontier,
    saver: Saver,
    lanes: FuturesUnordered<Lane>,
    /// The open connections that no lane uses now.
    idle: Vec<Connection>,
    /// The bytes in the bodies of all open requests.
    in_flight_bytes: usize,
    /// The earliest time at which the rate allows the next request.
    due: Instant,
}

impl Running<'_> {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) -> Result<(), Stopped> {
        let mut next: Option<Batch> = None;
        let mut reading = true;
        let mut trouble: Option<Trouble> = None;
        let mut tick = tokio::time::interval(SAVE_EVERY);
        loop {
            let is_over = trouble.is_some() || !reading && next.is_none();
            if is_over && self.lanes.is_empty() {
                break;
            }
            if self.settings.follows {
                self.saver.save(self.settings.resume.as_ref(), &self.frontier.state);
            }
            let may_send =
                trouble.is_none() && next.as_ref().is_some_and(|next| self.has_room(next));
            tokio::select! {
                Some(done) = self.lanes.next() => {
                    // If a log is followed, a request that fails after the stop is no trouble.
                    let is_asked = self.settings.follows && self.stop.is_cancelled();
                    let met = self.done(done).err().filter(|_| !is_asked);
                    let is_first = trouble.as_ref().is_none_or(|trouble| trouble.finishes);
                    trouble = if is_first { met.or(trouble) } else { trouble };
                }
                item = items.recv(), if reading && next.is_none() && trouble.is_none() => match item {
                    Some(Item::Batch(batch)) => next = Some(batch),
                    Some(Item::End { cut_short: 0 }) => reading = false,
                    Some(Item::End { cut_short }) => {
                        reading = false;
                        let what = format!("{cut_short} of the files could not be read to their ends");
                        trouble = Some(Trouble::reading(what, None));
                    }
                    Some(Item::Failed { file, line, what }) => {
                        reading = false;
                        trouble = Some(Trouble::reading(what, Some(self.span(file, line..=line))));
                    }
                    None => {
                        reading = false;
                        trouble = Some(Trouble::here("the thread that reads has ended".to_owned()));
                    }
                },
                () = tokio::time::sleep_until(self.due), if may_send => {
                    if let Some(batch) = next.take() {
                        self.send(batch);
                    }
                }
                () = self.stop.cancelled(), if self.settings.follows && reading => {
                    (reading, next) = (false, None);
                }
                () = self.stop.cancelled(), if !self.settings.follows && trouble.is_none() => {
                    trouble = Some(Trouble::here("interrupted".to_owned()));
                }
                written = self.saver.written() => {
                    if let Err(what) = written {
                        trouble.get_or_insert(Trouble::here(what));
                    }
                }
                _ = tick.tick() => {
                    self.saver.save(self.settings.resume.as_ref(), &self.frontier.state);
                }
            }
            if trouble.as_ref().is_some_and(|trouble| !trouble.finishes) {
                self.stop.cancel();
            }
        }
        self.ended(trouble).await
    }

    fn span(&self, index: usize, numbers: RangeInclusive<u64>) -> Span {
        let unit = if self.frontier.spool(index).is_some() { Unit::Position } else { Unit::Line };
        let file = self.settings.files.get(index).cloned().unwrap_or_default();
        Span::new(&file, unit, numbers)
    }

    /// Returns `true` if the batch may be sent now: see [`Running`] for the limits.
    fn has_room(&self, batch: &Batch) -> bool {
        if self.settings.follows && self.saver.saved.as_ref() != Some(&self.frontier.state) {
            return false;
        }
        let (lanes, concurrency) = (self.lanes.len(), self.settings.concurrency);
        let fits = self.in_flight_bytes + batch.body.len() <= IN_FLIGHT_BYTES_MAX;
        lanes < concurrency
            && self.frontier.sent.len() < concurrency * WINDOW
            && (fits || lanes == 0)
    }

    /// Starts the lane that sends the batch. A batch without events is accepted without a lane.
    fn send(&mut self, mut batch: Batch) {
        let body = Bytes::from(std::mem::take(&mut batch.body));
        let (bytes, events) = (body.len(), batch.events);
        let span = self.span(batch.end.file, batch.first_line..=batch.last_line);
        let number = self.frontier.push(batch);
        if events == 0 {
            self.advance();
            return;
        }
        if let Some(rate) = self.settings.rate {
            let share = Duration::from_secs_f64(events as f64 / f64::from(rate.get()));
            let now = Instant::now();
            self.due = self.due.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + share;
        }
        self.in_flight_bytes += bytes;
        self.progress.send_modify(|progress| progress.sent += events);
        let client = match &mut self.to {
            To::Relay(client) => Arc::clone(client),
            To::Look(look) => {
                look(&body);
                let done = Done { number, events, bytes, connection: None, result: Ok(()) };
                self.lanes.push(Box::pin(std::future::ready(done)));
                return;
            }
        };
        let (notes, mut connection) = (self.notes.clone(), self.idle.pop());
        self.lanes.push(Box::pin(async move {
            let failed = |failed: Failed| {
                let note = Note::Retrying { span: span.clone(), failed };
                // If the channel is full of unread notes, this one is dropped.
                notes.try_send(note).ok();
            };
            let posted = client.post(&mut connection, &body, events, failed).await;
            let result = posted.map_err(|failure| Trouble {
                what: failure.to_string(),
                lines: Some(span),
                finishes: false,
            });
            Done { number, events, bytes, connection, result }
        }));
    }

    /// Handles the end of a lane: stores its connection for a later lane, and moves the frontier as
    /// far as possible. `Err` if the request has failed.
    fn done(&mut self, done: Done) -> Result<(), Trouble> {
        let Done { number, events, bytes, connection, result } = done;
        self.in_flight_bytes -= bytes;
        self.idle.extend(connection);
        result?;
        self.progress.send_modify(|progress| {
            progress.accepted += events;
            progress.bytes += bytes as u64;
        });
        self.frontier.accepted(number);
        self.advance();
        Ok(())
    }

    /// Moves the frontier to the first request that is not accepted yet.
    fn advance(&mut self) {
        while let Some(done) = self.frontier.next(&self.settings.files) {
            let before: u64 = self.sizes.iter().take(done.end.file).sum();
            self.progress.send_modify(|progress| {
                progress.bad_lines += done.bad_lines;
                progress.gaps += done.gaps;
                progress.file_bytes = before + done.end.bytes_read;
            });
        }
    }

    /// Writes the resume file for the last time and returns the result of the replay.
    async fn ended(mut self, trouble: Option<Trouble>) -> Result<(), Stopped> {
        if self.saver.writing.is_some() {
            // If this write has failed, the write below has the same state and reports the error.
            self.saver.written().await.ok();
        }
        self.saver.save(self.settings.resume.as_ref(), &self.frontier.state);
        let mut saved = Ok(());
        if self.saver.writing.is_some() {
            saved = self.saver.written().await;
        }
        for replayed in self.frontier.replayed(&self.settings.files) {
            // The send fails only if the caller has dropped the receiver.
            self.notes.send(Note::Replayed(replayed)).await.ok();
        }
        let trouble = match (trouble, saved, self.frontier.left_out(&self.settings.files)) {
            (Some(trouble), _, _) => trouble,
            (None, Err(what), _) => Trouble::here(what),
            (None, Ok(()), Some(what)) => Trouble::reading(what, None),
            (None, Ok(()), None) => return Ok(()),
        };
        let Trouble { what, lines, finishes } = trouble;
        let is_at_end = finishes && lines.is_none();
        let at = (!is_at_end).then(|| self.frontier.place(&self.settings.files));
        Err(Stopped { what, at, lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_is_written_again_if_its_write_has_failed() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("later").join("resume");
        let (mut saver, mut state) = (Saver::default(), State::default());
        state.events = 7;
        saver.save(Some(&file), &state);
        let failed = saver.written().await.unwrap_err();
        assert!(failed.starts_with("cannot write the resume file: "), "{failed}");
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        saver.save(Some(&file), &state);
        saver.written().await.unwrap();
        assert_eq!(State::load(&file).unwrap(), state);
        saver.save(Some(&file), &state);
        assert!(saver.writing.is_none(), "an unchanged state is written once");
    }
}
