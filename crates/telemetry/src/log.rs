//! The log: lines on stderr, written by a thread of its own.
//!
//! A pipe or a terminal that nobody reads blocks every thread that writes to it. A runtime thread
//! that waits for a log line would deliver nothing, answer nobody, and hear no signal. So only the
//! log's thread writes to stderr while the relay runs. All other threads put their lines into a
//! bounded queue and continue. A line that finds no room is dropped and counted
//! (`log_dropped_lines_total`). As soon as stderr is read again, the log has a line with the number
//! of dropped lines.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::park_timeout;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, reload};

use base::lock::lock;
use base::words::escape;
use config::{Log, LogFormat};

/// The maximum number of lines that may wait for the log's thread. [`BYTES_MAX`] is the second
/// bound.
const LINES_MAX: usize = 4096;

/// The maximum number of bytes in the lines that wait for the log's thread.
const BYTES_MAX: usize = 1024 * 1024;

/// The part of both bounds that lines below `warn` may use, as numerator and denominator.
const ORDINARY_PART: (usize, usize) = (3, 4);

/// The maximum number of bytes in one write of the log's thread. A longer line is written alone.
const GROUP_BYTES: usize = 64 * 1024;

/// The pause before another write to a full pipe, if another process has made it non-blocking.
const FULL_PIPE: Duration = Duration::from_millis(10);

/// The longest wait for the last log lines before the process ends. There is no wait if the log's
/// thread has already hung in one write for this time.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The longest wait of a panicking thread for its log line to be written, before a possible abort.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The pause before the log's thread starts again after a panic of its own.
const PAUSE: Duration = Duration::from_secs(1);

/// The target of the log line that reports the number of dropped lines.
const DROPPED: &str = "telemetry::log::dropped";

/// The crates of this repository. The target of each of their log lines begins with one of these
/// names. The test `docs::layers` compares this list with the crates.
const OURS: &[&str] = &[
    "audit",
    "base",
    "client",
    "config",
    "config_table",
    "delivery",
    "doctor",
    "evidence_log",
    "kube_audit_forwarder",
    "manual",
    "outputs",
    "process",
    "queue",
    "recorder",
    "relay",
    "telemetry",
    "tools",
    "transform",
    "verify",
];

type ChangeLog = Box<dyn Fn(Log) + Send + Sync>;

/// The function that changes the settings of the log. [`start_log`] sets this variable.
static CHANGE_LOG: OnceLock<ChangeLog> = OnceLock::new();

static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Starts the log: from now on, log lines and the messages of panics go to stderr. At every level,
/// dependencies log nothing below `warn`, because h2 would log HTTP headers with bearer tokens.
///
/// A second call in the same process changes nothing; use [`change_log`].
///
/// # Errors
///
/// The operating system refuses a thread or a file descriptor.
pub fn start_log(log: Log) -> io::Result<()> {
    if LINES.get().is_some() {
        return Ok(());
    }
    // `out` is a file of its own, because with `io::stderr` the thread would hold the lock while
    // nobody reads stderr.
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
            // An error means that the subscriber is gone, so nothing is logged any more.
            filter.reload(self::targets(log.level)).ok();
            format.reload(self::lines(log.format, &for_changes)).ok();
        };
        CHANGE_LOG.get_or_init(|| Box::new(change));
        LINES.get_or_init(|| queue);
        std::panic::set_hook(Box::new(tell_panic));
    }
    Ok(())
}

/// Applies new settings to the log. Does nothing if [`start_log`] was not called.
pub fn change_log(log: Log) {
    if let Some(change) = CHANGE_LOG.get() {
        change(log);
    }
}

/// Waits until the last log lines are written, for at most one second. Call this last.
pub fn end_log() {
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_LINES);
    }
}

/// Returns the number of lines that were dropped since the start of the process.
pub fn dropped_lines() -> u64 {
    LINES.get().map_or(0, |lines| lines.dropped.load(Ordering::Relaxed))
}

/// The panic hook. The hook of the standard library would write to stderr itself, and would block
/// if nobody reads stderr.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let said = panic.payload_as_str().unwrap_or("no message");
    let backtrace = Backtrace::capture();
    let is_captured = backtrace.status() == BacktraceStatus::Captured;
    tracing::error!(
        thread,
        location,
        panic = said,
        backtrace = is_captured.then(|| tracing::field::display(&backtrace)),
        "a thread of the relay has panicked: please report this bug"
    );
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_WORDS);
    }
}

/// Returns the error of the last write that failed since the start of the process.
pub fn log_error() -> Option<String> {
    LINES.get().and_then(|lines| lines.lock().error.clone())
}

/// Returns the filter for this level. Dependencies log only warnings and errors, if at all.
fn targets(level: Level) -> Targets {
    let others = level.min(Level::WARN);
    Targets::new()
        .with_default(LevelFilter::from_level(others))
        .with_targets(OURS.iter().map(|ours| (*ours, level)))
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

/// The bounded queue of log lines. Any thread adds lines; only the log's thread takes them out.
#[derive(Default)]
struct Lines {
    state: Mutex<LinesState>,
    /// Wakes the log's thread, because there is a line to write.
    more: Condvar,
    /// Wakes the threads in [`Lines::flush`], because all lines are written.
    idle: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct LinesState {
    /// The oldest line comes first. Each line has one `\n`, at its end.
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The start of the current write; `None` if the log's thread has nothing to write.
    writing: Option<Instant>,
    /// `true`: the last write failed, for example because the reader of stderr has ended.
    failing: bool,
    /// The error of the last write that failed.
    error: Option<String>,
    /// The number of dropped lines that the log has not reported yet.
    untold: u64,
}

impl LinesState {
    /// Returns `true` if a line about dropped lines is due. None is due while writes fail.
    fn has_to_tell(&self) -> bool {
        self.untold > 0 && !self.failing
    }

    /// Takes the lines of the next write: at most [`GROUP_BYTES`] bytes, or one longer line.
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

/// The importance of a log line: warnings and errors find room when other lines do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// The level is below `warn`. Such lines may fill three quarters of the queue.
    Ordinary,
    /// A warning or an error. Such lines may fill the whole queue.
    Urgent,
    /// A line about dropped lines, which always finds room. There are few such lines, because only
    /// the log's thread adds them, between two writes.
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

impl Lines {
    fn lock(&self) -> MutexGuard<'_, LinesState> {
        lock(&self.state)
    }

    /// Adds a line, or counts it as dropped if there is no room. Never waits for the log's thread.
    fn push(&self, line: Vec<u8>, rank: Rank) {
        let mut state = self.lock();
        if rank.has_room(&state, &line) {
            state.bytes += line.len();
            state.waiting.push_back(line);
            drop(state);
            self.more.notify_one();
        } else {
            state.untold += 1;
            // This line is dropped because the writes are slow, and not because of an older error.
            state.error = state.error.take().filter(|_| state.failing);
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The loop of the log's thread. It never returns.
    fn write_all(&self, out: &mut impl Write) {
        // `true`: the last write ended inside a line, so the next write begins with a line break.
        let mut torn = false;
        loop {
            let mut group = self.next_group();
            if torn {
                group.insert(0, b'\n');
            }
            let (written, error) = write_group(out, &group);
            let (done, left) = group.split_at(written);
            torn = done.last().map_or(torn, |last| *last != b'\n');
            self.wrote(left, error);
        }
    }

    /// Waits for lines, and returns those to write next. Logs the number of dropped lines before.
    fn next_group(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if state.has_to_tell() {
                let (lines, error) = (std::mem::take(&mut state.untold), state.error.clone());
                // The line about them is pushed by this thread.
                drop(state);
                match error {
                    Some(error) => tracing::error!(
                        target: DROPPED,
                        lines,
                        error,
                        "log lines were dropped: stderr could not be written"
                    ),
                    None => tracing::error!(
                        target: DROPPED,
                        lines,
                        "log lines were dropped: nobody reads stderr, or too slowly"
                    ),
                }
                state = self.lock();
            } else if !state.waiting.is_empty() {
                state.writing = Some(Instant::now());
                return state.take_group();
            } else {
                state.writing = None;
                self.idle.notify_all();
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Notes the end of a write. Each line whose end is in `left`, the unwritten part, is dropped.
    fn wrote(&self, left: &[u8], error: Option<io::Error>) {
        let lost = memchr::memchr_iter(b'\n', left).count() as u64;
        let mut state = self.lock();
        state.failing = !left.is_empty();
        state.error = error.map(|error| error.to_string()).or(state.error.take());
        state.untold += lost;
        drop(state);
        self.dropped.fetch_add(lost, Ordering::Relaxed);
    }

    /// Waits for at most `limit` until every line is written. Does not wait at all if the log's
    /// thread has already hung in one write for that time.
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

/// Writes the group, and returns the number of written bytes. After an error, they are fewer than
/// all.
#[allow(clippy::disallowed_methods, reason = "write_all does not say how far it came")]
fn write_group(out: &mut impl Write, group: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while let Some(rest) = group.get(written..).filter(|rest| !rest.is_empty()) {
        match out.write(rest) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => park_timeout(FULL_PIPE),
            // The log itself can't report this error yet. The lines are counted as dropped.
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

struct ToQueue {
    queue: Arc<Lines>,
    /// `true`: control characters must be escaped, so that text from outside can't look like a
    /// separate log line. `false` for the JSON format, which escapes those of ASCII itself.
    escapes: bool,
}

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
    /// Adds one whole line to the queue. The formatter calls this function once for each line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let bytes = if self.to.escapes { escaped(line) } else { line.to_vec() };
        self.to.queue.push(bytes, self.rank);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a line safe for a terminal. Bytes that are not UTF-8 are replaced.
fn escaped(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
    let mut safe = escape::message(&text);
    safe.push('\n');
    safe.into_bytes()
}

#[cfg(test)]
mod tests;
