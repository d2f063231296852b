//! `replay`: sends the events of audit.log files again, as kube-apiserver's webhook would have.
//!
//! One thread reads and checks (`input`), some requests are under way at once (`client`), and a *frontier* follows what has
//! been accepted without a gap: the resume file holds it, and nothing behind it is ever passed over. What was accepted
//! beyond it comes again after a stop; requests that may be are bounded. It never prints: [`Replay::run`] sends notes.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub mod client;
mod input;
mod line;
mod resume;

use client::Client;
use client::Connection;
use client::Failed;
use client::Failure;
use input::Batch;
use input::Item;
use input::Place;
use resume::State;

/// Requests that may be accepted beyond one that is not, as a multiple of those under way.
const WINDOW: usize = 2;

/// Bytes of requests under way; a larger one goes alone.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// The resume file is written so often.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// With a rate, requests may be so much late and still be followed at once by the next.
const CATCH_UP: Duration = Duration::from_millis(100);

/// With a rate, so many requests a second at least, if need be with fewer events each.
const REQUESTS_PER_SECOND: u32 = 4;

/// What to do with a line that is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBadLine {
    /// Nothing behind it is sent.
    Stop,
    /// It is told and counted.
    Skip,
}

/// What to send, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// In this order; `-` is standard input.
    pub files: Vec<PathBuf>,
    /// Events per second.
    pub rate: Option<NonZeroU32>,
    /// Events of a request, at most.
    pub batch_events: usize,
    /// Bytes of a request, at most; one larger event goes alone.
    pub batch_bytes: usize,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Where the progress is kept.
    pub resume: Option<PathBuf>,
    /// See there.
    pub on_bad_line: OnBadLine,
}

/// Something to tell while it runs.
#[derive(Debug, Clone)]
pub enum Note {
    /// A line that is skipped.
    BadLine {
        /// Its file.
        file: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// A request that is tried again.
    Retrying {
        /// Its file, and its lines counted from 1.
        file: PathBuf,
        /// The first.
        first_line: u64,
        /// And the last.
        last_line: u64,
        /// Why and when.
        failed: Failed,
    },
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Events in requests, each counted once.
    pub sent: u64,
    /// Those that were accepted.
    pub accepted: u64,
    /// Bytes of the bodies that were accepted.
    pub bytes: u64,
    /// Lines that were skipped.
    pub bad_lines: u64,
    /// Of the files' sizes, what is done without a gap.
    pub file_bytes: u64,
    /// Events that earlier runs of this resume file have sent.
    pub events_before: u64,
}

/// Why it has ended before the end of the files.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// What happened.
    pub what: String,
    /// Everything before this place is accepted: the file, and the line to go on with, counted from 1. `None`: everything
    /// that could be read is.
    pub at: Option<(PathBuf, u64)>,
    /// The lines of the request that was not accepted, in a file.
    pub lines: Option<(PathBuf, u64, u64)>,
}

/// Why it has not begun.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

/// What is ready to be run.
pub struct Replay {
    settings: Settings,
    state: State,
}

impl Replay {
    /// Looks at the files and reads the resume file. Blocks.
    ///
    /// # Errors
    ///
    /// [`Unusable`]: what can't be read or written.
    pub fn new(settings: Settings) -> Result<Self, Unusable> {
        for file in settings.files.iter().filter(|file| file.as_os_str() != "-") {
            // A pipe is opened once, or its writer would meet the end of the first opening.
            let found = std::fs::metadata(file).and_then(|found| {
                if found.is_file() {
                    std::fs::File::open(file)?;
                }
                Ok(found)
            });
            match found {
                Ok(found) if found.is_dir() => {
                    return Err(Unusable(format!("{} is a directory", file.display())));
                }
                Ok(_) => {}
                Err(error) => {
                    return Err(Unusable(format!("cannot read {}: {error}", file.display())));
                }
            }
        }
        let mut state = State::default();
        if let Some(file) = &settings.resume {
            state = State::load(file).map_err(Unusable)?;
            let (there, named) = (state.files.len(), settings.files.len());
            if there > named {
                return Err(Unusable(format!(
                    "{} is of {there} files, {named} are named: name all of them in the same order",
                    file.display()
                )));
            }
            let saved = state.save(file);
            saved.map_err(|error| Unusable(format!("cannot write {}: {error}", file.display())))?;
        }
        Ok(Self { settings, state })
    }

    /// Where it goes on, if another run has begun: the file, and the line counted from 1.
    #[must_use]
    pub fn resumes_at(&self) -> Option<(PathBuf, u64)> {
        let last = self.state.files.last().filter(|last| last.lines > 0)?;
        let file = self.settings.files.get(self.state.files.len() - 1)?;
        Some((file.clone(), last.lines + 1))
    }

    /// The files' sizes together, where all of them have one.
    #[must_use]
    pub fn file_bytes(&self) -> Option<u64> {
        let size = |file: &PathBuf| {
            let found = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file);
            found.map(|found| found.len())
        };
        self.settings.files.iter().map(size).sum()
    }

    /// Sends everything, until `stop`.
    ///
    /// # Errors
    ///
    /// [`Stopped`]: what can't be sent or read, or `stop`. The resume file is written.
    pub async fn run(
        self,
        client: Client,
        notes: mpsc::Sender<Note>,
        progress: watch::Sender<Progress>,
        stop: CancellationToken,
    ) -> Result<(), Stopped> {
        let Self { settings, state } = self;
        let events_max = settings.rate.map_or(settings.batch_events, |rate| {
            let share = usize::try_from(rate.get() / REQUESTS_PER_SECOND).unwrap_or(usize::MAX);
            settings.batch_events.min(share.max(1))
        });
        let plan = input::Plan {
            files: settings.files.clone(),
            resumed: state.files.clone(),
            events_max,
            bytes_max: settings.batch_bytes,
            on_bad_line: settings.on_bad_line,
        };
        let (sender, items) = mpsc::channel(1);
        let for_reader = notes.clone();
        // It ends when nobody takes its items any more. One that hangs in a read is left behind with the process.
        let reading = std::thread::Builder::new()
            .name("replay-reader".to_owned())
            .spawn(move || input::read_all(&plan, &sender, &for_reader));
        let sizes =
            settings.files.iter().map(|file| std::fs::metadata(file).map_or(0, |it| it.len()));
        let running = Running {
            client: Arc::new(client),
            notes,
            progress,
            stop,
            sizes: sizes.collect(),
            frontier: Frontier::new(state),
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
            Err(error) => running.ended(Some(Trouble::here(format!("no thread: {error}")))).await,
        }
    }
}

/// A request that has been sent, in the order of the files.
struct Sent {
    end: Place,
    events: u64,
    bad_lines: u64,
    accepted: bool,
}

/// What has been accepted without a gap, and what has been sent behind it.
struct Frontier {
    state: State,
    /// The number of the first request in `sent`.
    first: u64,
    sent: VecDeque<Sent>,
    /// The file that it is in, and the lines before it there.
    at: (usize, u64),
}

impl Frontier {
    fn new(state: State) -> Self {
        let at = (0, state.files.first().map_or(0, |first| first.lines));
        Self { state, first: 0, sent: VecDeque::new(), at }
    }

    fn push(&mut self, sent: Sent) -> u64 {
        self.sent.push_back(sent);
        self.first + self.sent.len() as u64 - 1
    }

    fn accepted(&mut self, number: u64) {
        let index = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if let Some(sent) = self.sent.get_mut(index) {
            sent.accepted = true;
        }
    }

    /// Takes what is done at its front.
    fn next(&mut self, files: &[PathBuf]) -> Option<Sent> {
        let done = self.sent.pop_front_if(|sent| sent.accepted)?;
        self.first += 1;
        let Place { file, head, offset, lines, .. } = done.end;
        let read = resume::Read {
            path: files.get(file).cloned().unwrap_or_default(),
            head,
            offset,
            lines,
        };
        match self.state.files.get_mut(file) {
            Some(there) => *there = read,
            None => self.state.files.push(read),
        }
        self.state.events += done.events;
        self.at = (file, lines);
        Some(done)
    }
}

/// Writes the resume file beside everything else.
#[derive(Default)]
struct Saver {
    saved: Option<State>,
    writing: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

impl Saver {
    /// Begins to write, where something has changed and nothing is being written.
    fn save(&mut self, file: Option<&PathBuf>, state: &State) {
        let Some(file) = file.filter(|_| self.writing.is_none()) else { return };
        if self.saved.as_ref() != Some(state) {
            let (file, state) = (file.clone(), state.clone());
            self.saved = Some(state.clone());
            self.writing = Some(tokio::task::spawn_blocking(move || state.save(&file)));
        }
    }

    /// Waits until it is written.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it is written on; it is waited for by the next call.
    async fn written(&mut self) -> Result<(), String> {
        let Some(writing) = &mut self.writing else { return std::future::pending().await };
        let written = writing.await;
        self.writing = None;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("cannot write the resume file: {error}")),
            Err(error) => Err(format!("cannot write the resume file: {error}")),
        }
    }
}

/// Why it stops.
struct Trouble {
    what: String,
    /// The file and the lines that it is about.
    lines: Option<(PathBuf, u64, u64)>,
    /// What was read before is sent to its end, with all attempts.
    finishes: bool,
}

impl Trouble {
    fn here(what: String) -> Self {
        Self { what, lines: None, finishes: false }
    }

    fn reading(what: String, lines: Option<(PathBuf, u64, u64)>) -> Self {
        Self { what, lines, finishes: true }
    }
}

/// As [`Client::post`], with what to say of a failure.
async fn post(
    client: &Client,
    connection: &mut Option<Connection>,
    body: &Bytes,
    events: u64,
    failed: impl Fn(Failed),
) -> Result<(), String> {
    let posted = client.post(connection, body, events, failed).await;
    posted.map_err(|failure| match failure {
        Failure::Final(what) => what,
        Failure::GivenUp(what) => format!("given up, all attempts are used up: {what}"),
        Failure::Stopped => "interrupted".to_owned(),
    })
}

/// What a lane brings back.
struct Done {
    number: u64,
    events: u64,
    bytes: usize,
    connection: Option<Connection>,
    result: Result<(), Trouble>,
}

type Lane = std::pin::Pin<Box<dyn Future<Output = Done> + Send>>;

struct Running {
    settings: Settings,
    client: Arc<Client>,
    notes: mpsc::Sender<Note>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    sizes: Vec<u64>,
    frontier: Frontier,
    saver: Saver,
    lanes: FuturesUnordered<Lane>,
    idle: Vec<Connection>,
    in_flight_bytes: usize,
    /// When the next request may go, by the rate.
    due: Instant,
}

impl Running {
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
            let may_send =
                trouble.is_none() && next.as_ref().is_some_and(|next| self.has_room(next));
            tokio::select! {
                Some(done) = self.lanes.next() => {
                    let met = self.done(done).err();
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
                        trouble = Some(Trouble::reading(what, Some((self.file(file), line, line))));
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
                () = self.stop.cancelled(), if trouble.is_none() => {
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

    fn file(&self, index: usize) -> PathBuf {
        self.settings.files.get(index).cloned().unwrap_or_default()
    }

    fn has_room(&self, batch: &Batch) -> bool {
        let (lanes, concurrency) = (self.lanes.len(), self.settings.concurrency);
        let fits = self.in_flight_bytes + batch.body.len() <= IN_FLIGHT_BYTES_MAX;
        lanes < concurrency
            && self.frontier.sent.len() < concurrency * WINDOW
            && (fits || lanes == 0)
    }

    fn send(&mut self, batch: Batch) {
        let Batch { body, events, first_line, last_line, end, bad_lines } = batch;
        let bytes = body.len();
        let sent = Sent { end, events, bad_lines, accepted: events == 0 };
        let number = self.frontier.push(sent);
        if events == 0 {
            self.advance();
            return;
        }
        if let Some(rate) = self.settings.rate {
            let share = Duration::from_secs_f64(events as f64 / f64::from(rate.get()));
            // What a consumer has held up is not sent the faster, what a busy machine has is.
            let now = Instant::now();
            self.due = self.due.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + share;
        }
        self.in_flight_bytes += bytes;
        self.progress.send_modify(|progress| progress.sent += events);
        let (client, notes) = (Arc::clone(&self.client), self.notes.clone());
        let (mut connection, file) = (self.idle.pop(), self.file(end.file));
        self.lanes.push(Box::pin(async move {
            let failed = |failed: Failed| {
                let file = file.clone();
                let note = Note::Retrying { file, first_line, last_line, failed };
                // Whoever reads none of hundreds misses one.
                notes.try_send(note).ok();
            };
            let posted = post(&client, &mut connection, &body, events, failed).await;
            let lines = Some((file, first_line, last_line));
            let result = posted.map_err(|what| Trouble { what, lines, finishes: false });
            Done { number, events, bytes, connection, result }
        }));
    }

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

    fn advance(&mut self) {
        while let Some(done) = self.frontier.next(&self.settings.files) {
            let before: u64 = self.sizes.iter().take(done.end.file).sum();
            self.progress.send_modify(|progress| {
                progress.bad_lines += done.bad_lines;
                progress.file_bytes = before + done.end.bytes_read;
            });
        }
    }

    /// Writes the resume file a last time.
    async fn ended(mut self, trouble: Option<Trouble>) -> Result<(), Stopped> {
        if self.saver.writing.is_some() {
            // The next one says it again.
            self.saver.written().await.ok();
        }
        self.saver.save(self.settings.resume.as_ref(), &self.frontier.state);
        let mut saved = Ok(());
        if self.saver.writing.is_some() {
            saved = self.saver.written().await;
        }
        let trouble = match (trouble, saved) {
            (Some(trouble), _) => trouble,
            (None, Err(what)) => Trouble::here(what),
            (None, Ok(())) => return Ok(()),
        };
        let (file, lines_before) = self.frontier.at;
        let Trouble { what, lines, finishes } = trouble;
        let is_at_end = finishes && lines.is_none();
        let at = (!is_at_end).then(|| (self.file(file), lines_before + 1));
        Err(Stopped { what, at, lines })
    }
}
