//! The log: lines on stderr, written by a thread of its own.
//!
//! A pipe or a terminal that nobody reads blocks whoever writes to it, for as long as nobody reads.
//! While the relay runs, only the log's thread writes to stderr. All others put their line into a
//! bounded queue and go on: a runtime thread that waits for a log line delivers nothing, answers
//! nobody, and hears no signal. A line that finds no room is dropped and counted, and the log says
//! how many were dropped as soon as somebody reads again.

use std::backtrace::Backtrace;
use std::backtrace::BacktraceStatus;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::panic::PanicHookInfo;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::park_timeout;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Level;
use tracing::Metadata;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Log;
use crate::config::LogFormat;
use crate::config::LogLevel;

/// Lines that may wait for the thread, and their bytes. The first bound that is met counts.
const LINES_MAX: usize = 4096;
const BYTES_MAX: usize = 1024 * 1024;

/// Lines below `warn` leave the last quarter of both to warnings and errors.
const ORDINARY_PART: (usize, usize) = (3, 4);

/// Bytes that the thread takes and writes at once, or one longer line.
const GROUP_BYTES: usize = 64 * 1024;

/// A pipe that somebody else has made non-blocking is tried again so often while it is full.
const FULL_PIPE: Duration = Duration::from_millis(10);

/// The end of the process waits so long for the last lines. Where the thread has hung in one write
/// for so long already, the end does not wait at all.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A thread that panics waits so long for its line to be written: what follows a panic may be an
/// abort.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// After a panic in the log's own thread.
const PAUSE: Duration = Duration::from_secs(1);

/// The target of the line that tells of dropped lines.
const DROPPED: &str = "kube_audit_forwarder::telemetry::log::dropped";

/// Applies other settings to the log that was started.
type ChangeLog = Box<dyn Fn(Log) + Send + Sync>;

static CHANGE_LOG: OnceLock<ChangeLog> = OnceLock::new();

/// The lines of the log that was started.
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Sends the log to stderr, and with it what panics say. Dependencies speak from warn on: h2 would
/// show headers, and with them tokens, below.
///
/// A second call in the same process changes nothing; [`change_log`] does.
///
/// # Errors
///
/// The kernel gives no thread or no descriptor for it.
pub fn start_log(log: Log) -> io::Result<()> {
    if LINES.get().is_some() {
        return Ok(());
    }
    // Not through `io::stderr`, whose lock the thread would hold for as long as nobody reads.
    let mut out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Arc::<Lines>::default();
    let for_thread = Arc::clone(&queue);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        while catch_unwind(AssertUnwindSafe(|| for_thread.write_all(&mut out))).is_err() {
            park_timeout(PAUSE);
        }
    })?;
    let (targets, filter) = reload::Layer::new(targets(log.level));
    let (lines, format) = reload::Layer::new(lines(log.format, &queue));
    if tracing_subscriber::registry().with(targets).with(lines).try_init().is_ok() {
        let for_changes = Arc::clone(&queue);
        let change = move |log: Log| {
            // An error means that nobody logs any more.
            filter.reload(self::targets(log.level)).ok();
            format.reload(self::lines(log.format, &for_changes)).ok();
        };
        CHANGE_LOG.get_or_init(|| Box::new(change));
        LINES.get_or_init(|| queue);
        std::panic::set_hook(Box::new(tell_panic));
    }
    Ok(())
}

/// Other settings for the log that was started.
pub fn change_log(log: Log) {
    if let Some(change) = CHANGE_LOG.get() {
        change(log);
    }
}

/// The end of the process: waits until the last lines are written, and for a second at most.
pub fn end_log() {
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_LINES);
    }
}

/// Lines that were dropped since the start of the process.
pub(super) fn dropped_lines() -> u64 {
    LINES.get().map_or(0, |lines| lines.dropped.load(Ordering::Relaxed))
}

/// What a panic says becomes a line of the log: std's own words would block where nobody reads.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let said = panic.payload_as_str().unwrap_or("no message");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, location, panic = said, %backtrace, "panicked");
    } else {
        tracing::error!(thread, location, panic = said, "panicked");
    }
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_WORDS);
    }
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let others = level.min(Level::WARN);
    Targets::new()
        .with_default(LevelFilter::from_level(others))
        .with_target("kube_audit_forwarder", level)
}

fn lines<S>(format: LogFormat, queue: &Arc<Lines>) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false);
    let to_queue = |escapes| ToQueue { queue: Arc::clone(queue), escapes };
    match format {
        LogFormat::Json => Box::new(layer.json().with_writer(to_queue(false))),
        LogFormat::Text => Box::new(layer.with_target(false).with_writer(to_queue(true))),
    }
}

/// Lines on their way to stderr: the queue in front of the thread that writes them.
#[derive(Default)]
struct Lines {
    state: Mutex<LinesState>,
    /// Tells the thread that there is a line.
    more: Condvar,
    /// Tells whoever waits for the last lines that all are written.
    idle: Condvar,
    /// Since the start.
    dropped: AtomicU64,
}

#[derive(Default)]
struct LinesState {
    /// In the order of their making, each ended by its only `\n`.
    waiting: VecDeque<Vec<u8>>,
    /// Their bytes.
    bytes: usize,
    /// Since when the thread has been at work on what it took last; `None` while it has nothing to
    /// do.
    writing: Option<Instant>,
    /// The last write has failed: the reader has gone, or a disk is full.
    failing: bool,
    /// Dropped lines that the log has not told of.
    untold: u64,
}

impl LinesState {
    /// Dropped lines are told of in a line of their own. While writes fail that would be one more
    /// that is lost.
    fn has_to_tell(&self) -> bool {
        self.untold > 0 && !self.failing
    }

    /// The next lines that are written together.
    fn take_group(&mut self) -> Vec<u8> {
        let mut group = Vec::new();
        while let Some(line) = self.waiting.front()
            && (group.is_empty() || group.len() + line.len() <= GROUP_BYTES)
        {
            group.extend_from_slice(line);
            self.bytes -= line.len();
            self.waiting.pop_front();
        }
        group
    }
}

/// How much of the room a line may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// Below `warn`.
    Ordinary,
    /// Warnings and errors.
    Urgent,
    /// Tells of dropped lines: always taken. There is one for each group of lines that is written
    /// at most.
    Notice,
}

impl Rank {
    fn of(line: &Metadata<'_>) -> Self {
        match *line.level() <= Level::WARN {
            true if line.target() == DROPPED => Self::Notice,
            true => Self::Urgent,
            false => Self::Ordinary,
        }
    }

    /// Whether a line finds room beside those that wait.
    fn has_room(self, state: &LinesState, line: &[u8]) -> bool {
        let (part, whole) = match self {
            Self::Ordinary => ORDINARY_PART,
            Self::Urgent => (1, 1),
            Self::Notice => return true,
        };
        state.waiting.len() < LINES_MAX / whole * part
            && state.bytes + line.len() <= BYTES_MAX / whole * part
    }
}

/// What the thread does next.
enum Work {
    Tell(u64),
    Write(Vec<u8>),
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, LinesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, or counts it as dropped. Never waits for the thread.
    fn push(&self, line: Vec<u8>, rank: Rank) {
        let mut state = self.lock();
        if rank.has_room(&state, &line) {
            state.bytes += line.len();
            state.waiting.push_back(line);
            drop(state);
            self.more.notify_one();
        } else {
            state.untold += 1;
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The thread: writes whatever comes, for ever.
    fn write_all(&self, out: &mut impl Write) {
        // The last write ended inside a line.
        let mut torn = false;
        loop {
            match self.work() {
                Work::Tell(lines) => tracing::error!(
                    target: DROPPED,
                    lines,
                    "log lines were dropped: nobody reads stderr, or too slowly"
                ),
                Work::Write(mut group) => {
                    if torn {
                        group.insert(0, b'\n');
                    }
                    let written = write_group(out, &group);
                    let (done, left) = group.split_at(written);
                    torn = done.last().map_or(torn, |last| *last != b'\n');
                    self.wrote(left);
                }
            }
        }
    }

    /// Waits for the next thing to do.
    fn work(&self) -> Work {
        let mut state = self.lock();
        loop {
            if state.has_to_tell() {
                return Work::Tell(std::mem::take(&mut state.untold));
            }
            if !state.waiting.is_empty() {
                state.writing = Some(Instant::now());
                return Work::Write(state.take_group());
            }
            state.writing = None;
            self.idle.notify_all();
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts the lines that could not be written.
    fn wrote(&self, left: &[u8]) {
        let lost = memchr::memchr_iter(b'\n', left).count() as u64;
        let mut state = self.lock();
        state.failing = !left.is_empty();
        state.untold += lost;
        drop(state);
        self.dropped.fetch_add(lost, Ordering::Relaxed);
    }

    /// Waits until all is written, and so long at most; not at all where the thread has hung for so
    /// long already.
    fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while state.writing.is_some() || state.has_to_tell() || !state.waiting.is_empty() {
            let hung = state.writing.map_or(Duration::ZERO, |since| since.elapsed());
            let left = end.saturating_duration_since(Instant::now());
            let wait = left.min(limit.saturating_sub(hung));
            if wait.is_zero() {
                return;
            }
            let waited = self.idle.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Writes a group and says how far it came.
#[allow(clippy::disallowed_methods, reason = "write_all does not say how far it came")]
fn write_group(out: &mut impl Write, group: &[u8]) -> usize {
    let mut written = 0;
    while let Some(rest) = group.get(written..).filter(|rest| !rest.is_empty()) {
        match out.write(rest) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => park_timeout(FULL_PIPE),
            // The error has no log to go to; its lines are counted.
            Err(_) => break,
        }
    }
    written
}

/// Puts lines into the queue.
struct ToQueue {
    queue: Arc<Lines>,
    /// Whether control characters are escaped: what a peer says can't forge a line. JSON escapes
    /// them itself.
    escapes: bool,
}

/// One line's way there.
struct Line<'a> {
    to: &'a ToQueue,
    rank: Rank,
}

impl<'a> MakeWriter<'a> for ToQueue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { to: self, rank: Rank::Ordinary }
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Line<'a> {
        Line { to: self, rank: Rank::of(line) }
    }
}

impl Write for Line<'_> {
    /// The formatter hands over one whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let bytes = if self.to.escapes { escaped(line) } else { line.to_vec() };
        self.to.queue.push(bytes, self.rank);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn escaped(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
    let mut safe = String::with_capacity(line.len());
    for char in text.chars() {
        if char.is_control() { safe.extend(char.escape_default()) } else { safe.push(char) }
    }
    safe.push('\n');
    safe.into_bytes()
}

#[cfg(test)]
mod tests;
