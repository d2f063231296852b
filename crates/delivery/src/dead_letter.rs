//! Dead letters: events that were given up, kept in files for people to look into.
//!
//! A letter is one line, `{"time":…,"output":…,"reason":…,"event":{…}}`, with the event as
//! received, or redacted if it is too long for the protocol. A separate thread writes the letters
//! (`files`). Waiting letters are written and synced together, and only then does a delivery finish
//! their claims. If the disk refuses writes or hangs, events are counted as lost without a letter.
//! A delivery waits for a letter for ten seconds at most.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use audit::time::rfc3339;
use base::lock::lock;
use base::release::Format;
use config::Config;
use queue::lines;
use telemetry::{DroppedLetters, Telemetry};

mod files;

use files::{LetterFiles, Line};

/// The format of dead letters, for `--version`. The files do not contain the number.
pub const FORMAT: Format = Format { name: "dead letters", reads: &[1], writes: 1 };

/// The bytes of a full group of letters. An output also stops sending while this many bytes of its
/// letters are not written.
pub(super) const GROUP_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The maximum number of claims of one output that wait for their letters. At this number, the
/// output sends nothing more.
pub const CLAIMS_MAX: usize = 4096;

/// A job has the letters that a delivery hands over in one call. If this many jobs wait, letters of
/// further jobs are not written.
const JOBS_MAX: usize = 16 * CLAIMS_MAX;

/// The longest time that a delivery waits for its letters. The events then count as lost without a
/// letter.
pub const PATIENCE: Duration = Duration::from_secs(10);

const CLOSING: Duration = Duration::from_secs(2);

/// The maximum length of the reason in a dead letter. A longer one is cut.
const REASON_BYTES_MAX: usize = 1024;

const SILENT: &str = "the disk of the dead letters does not answer";

/// Takes the dead letters of all outputs. All clones share one state. The crate `relay` closes the
/// value when the deliveries have ended.
#[derive(Clone)]
pub struct DeadLetters {
    dropped: DroppedLetters,
    state: Arc<Mutex<WriterState>>,
    /// Tracks the writing threads that may still run.
    threads: TaskTracker,
}

#[derive(Default)]
struct WriterState {
    /// `None` if dead letters are not kept.
    target: Option<LetterDirectory>,
    writer: Option<Writer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LetterDirectory {
    directory: PathBuf,
    max_bytes: u64,
}

/// The handle of a thread that writes dead letters into one directory.
///
/// The thread owns the directory's files ([`LetterFiles`]) and shares nothing with deliveries
/// except the lines of a job and the time in `busy`. It writes waiting jobs together, up to
/// [`GROUP_BYTES_MAX`], and then reports to each delivery how many of its letters are safe.
///
/// Either the thread takes the lines of a job, or the delivery takes them back after [`PATIENCE`],
/// never both. Lines that were taken back are never written, and do not stay in memory while the
/// disk hangs.
///
/// The thread ends when `jobs` is dropped, after it has written all jobs. Nobody joins the thread,
/// because a broken disk may block it permanently. After the thread has been writing one group for
/// [`PATIENCE`], new letters are refused without a wait. After a panic, the next letter starts a
/// new thread.
struct Writer {
    jobs: mpsc::Sender<Job>,
    busy: Arc<BusySince>,
}

impl Writer {
    fn is_stuck(&self) -> bool {
        lock(&self.busy).is_some_and(|since| since.elapsed() >= PATIENCE)
    }
}

/// The moment at which the writing thread began its current group, if it has one.
type BusySince = Mutex<Option<Instant>>;

/// The dead letters of one output that have the same reason and are handed over in one call.
struct Job {
    output: Arc<str>,
    reason: Arc<str>,
    lines: Arc<Lines>,
    done: oneshot::Sender<Written>,
}

/// The lines of a job, each with `\n`; `None` after the thread or the delivery has taken them.
type Lines = Mutex<Option<Vec<Bytes>>>;

/// The result of writing the dead letters of one job.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// The number of the job's events whose dead letters are written and synced.
    pub events: u64,
    /// The reason why the other events of the job have no dead letters; `None` if all have one.
    pub error: Option<String>,
}

impl Written {
    fn failed(error: impl Into<String>) -> Self {
        Self { events: 0, error: Some(error.into()) }
    }
}

/// A delivery's receipt for dead letters. Dropping the receipt does not stop the writing.
pub(super) struct Writing {
    done: oneshot::Receiver<Written>,
    deadline: Instant,
    lines: Arc<Lines>,
}

impl Writing {
    fn new(done: oneshot::Receiver<Written>, lines: Arc<Lines>) -> Self {
        Self { done, deadline: Instant::now() + PATIENCE, lines }
    }

    /// Waits for the result until [`PATIENCE`] has passed since the letters were handed over. If
    /// the writing thread has not taken the letters by then, they are taken back and never written.
    /// Nothing is lost when the future is dropped. Must not be called again after it has returned.
    pub(crate) async fn done(&mut self) -> Written {
        match tokio::time::timeout_at(self.deadline, &mut self.done).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Written::failed("the thread that writes dead letters has ended"),
            Err(_) => {
                drop(lock(&self.lines).take());
                Written::failed(SILENT)
            }
        }
    }
}

impl DeadLetters {
    /// Makes a value without a directory: no letters are kept before [`DeadLetters::reconfigure`].
    pub fn new(telemetry: &Telemetry) -> Self {
        let dropped = telemetry.dead_letters_dropped();
        Self { dropped, state: Arc::default(), threads: TaskTracker::new() }
    }

    /// Sets the directory. Letters that were handed over earlier go to the previous one.
    pub fn reconfigure(&self, config: &Config) {
        let max_bytes = config.dead_letter.max_bytes;
        let target = |directory| LetterDirectory { directory, max_bytes };
        self.set(config.dead_letter_directory().map(target));
    }

    fn set(&self, target: Option<LetterDirectory>) {
        let mut state = self.lock();
        if state.target != target {
            state.target = target;
            // The previous thread ends after its last job. If it hangs in a broken disk, the new
            // thread can still write to its own directory.
            state.writer = None;
            let started = self.start(&mut state);
            drop(state);
            tell(started);
        }
    }

    /// Waits until all dead letters are written, for at most two seconds. The caller must first end
    /// the deliveries, because letters that are handed over later are not kept.
    pub async fn close(&self) {
        *self.lock() = WriterState::default();
        self.threads.close();
        if tokio::time::timeout(CLOSING, self.threads.wait()).await.is_err() {
            tracing::error!(
                "the disk of the dead letters does not respond at the end of the relay: the last \
                 dead letters may be lost"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, WriterState> {
        lock(&self.state)
    }

    fn start(&self, state: &mut WriterState) -> io::Result<()> {
        let Some(LetterDirectory { directory, max_bytes }) = &state.target else { return Ok(()) };
        let files = LetterFiles::new(directory, *max_bytes, self.dropped.clone());
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let living = self.threads.token();
        let busy = Arc::<BusySince>::default();
        let (at_work, directory) = (Arc::clone(&busy), directory.clone());
        let started =
            std::thread::Builder::new().name("dead-letters".to_owned()).spawn(move || {
                let _living = living;
                write_all(files, &directory, queue, &at_work);
            });
        started.map(|_| state.writer = Some(Writer { jobs, busy }))
    }

    /// Keeps an item that a listener has received among events, and that is not an audit event.
    /// Does not wait until its letter is written. Does nothing if dead letters are not kept.
    pub fn keep(&self, listener: &Arc<str>, reason: &str, item: &[u8]) {
        let line = Bytes::from([item, b"\n"].concat());
        drop(self.write(listener, vec![line], &reason.into()));
    }

    /// Hands over lines, each ended by `\n`. Returns `None` if dead letters are not kept.
    pub(crate) fn write(
        &self,
        output: &Arc<str>,
        lines: Vec<Bytes>,
        reason: &Arc<str>,
    ) -> Option<Writing> {
        let mut state = self.lock();
        state.target.as_ref()?;
        let (done, waiting) = oneshot::channel();
        let (output, reason) = (Arc::clone(output), Arc::clone(reason));
        let lines = Arc::new(Lines::new(Some(lines)));
        let writing = Writing::new(waiting, Arc::clone(&lines));
        let mut job = Job { output, reason, lines, done };
        let mut started = Ok(());
        // A thread that has panicked, or could not be started, gets a successor.
        for _ in 0..2 {
            match &state.writer {
                Some(writer) if writer.is_stuck() => {
                    job.done.send(Written::failed(SILENT)).ok();
                    break;
                }
                Some(writer) => match writer.jobs.try_send(job) {
                    Ok(()) => break,
                    Err(TrySendError::Full(job)) => {
                        let slow = "the disk is too slow for the dead letters";
                        job.done.send(Written::failed(slow)).ok();
                        break;
                    }
                    Err(TrySendError::Closed(returned)) => job = returned,
                },
                None => {}
            }
            started = self.start(&mut state);
        }
        drop(state);
        tell(started);
        Some(writing)
    }
}

fn tell(started: io::Result<()>) {
    if let Err(error) = started {
        tracing::error!(
            %error,
            "cannot start the thread that writes dead letters: rejected events are lost and \
             counted until it can be started"
        );
    }
}

/// The loop of the writing thread; see [`Writer`].
fn write_all(
    mut files: LetterFiles,
    directory: &Path,
    mut queue: mpsc::Receiver<Job>,
    busy: &BusySince,
) {
    let directory = directory.display();
    match files.look() {
        Ok(0) => {}
        Ok(files) => tracing::info!(
            %directory,
            files,
            "dead letters from earlier runs are in their directory: replay or delete them"
        ),
        Err(error) => tracing::error!(
            %directory,
            %error,
            "cannot use the directory of the dead letters: rejected events are lost and counted \
             until the relay can write to it"
        ),
    }
    while let Some(first) = queue.blocking_recv() {
        *lock(busy) = Some(Instant::now());
        let (mut group, mut bytes, mut next) = (Vec::new(), 0, Some(first));
        while let Some(job) = next {
            let lines = lock(&job.lines).take();
            if let Some(lines) = lines {
                bytes += lines.iter().map(|piece| piece.len() as u64).sum::<u64>();
                group.push((job, lines));
            }
            next = if bytes < GROUP_BYTES_MAX { queue.try_recv().ok() } else { None };
        }
        let results = write_group(&mut files, &group);
        *lock(busy) = None;
        for ((job, _), written) in group.into_iter().zip(results) {
            // `send` fails if the delivery has stopped waiting.
            job.done.send(written).ok();
        }
    }
}

fn write_group(files: &mut LetterFiles, group: &[(Job, Vec<Bytes>)]) -> Vec<Written> {
    let head = |(job, _): &(Job, _)| letter_head(&job.output, &job.reason, None);
    let heads: Vec<Vec<u8>> = group.iter().map(head).collect();
    let letters: Vec<Line<'_>> = group
        .iter()
        .zip(&heads)
        .flat_map(|((job, pieces), head)| {
            let (output, reason) = (&*job.output, &*job.reason);
            lines(pieces).map(move |event| Line { output, reason, head, event })
        })
        .collect();
    let mut results = files.write(&letters).into_iter();
    let written = |(_, pieces): &(Job, Vec<Bytes>)| {
        let mut written = Written { events: 0, error: None };
        for result in results.by_ref().take(lines(pieces).count()) {
            match result {
                Ok(()) => written.events += 1,
                Err(error) => written.error = Some(error),
            }
        }
        written
    };
    group.iter().map(written).collect()
}

/// Returns the part of a dead letter before its event. `more` is for an event that is set aside.
pub(super) fn letter_head(output: &str, reason: &str, more: Option<More>) -> Vec<u8> {
    let time = rfc3339(SystemTime::now());
    let reason = reason.get(..reason.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default();
    let (output, reason) = (serde_json::Value::from(output), serde_json::Value::from(reason));
    let more = more
        .map(|More { received, refused }| format!(r#""received":{received},"refused":{refused},"#));
    let more = more.unwrap_or_default();
    format!(r#"{{"time":"{time}","output":{output},"reason":{reason},{more}"event":"#).into_bytes()
}

/// The additional members of the file of an event that is set aside.
#[derive(Debug, Clone, Copy)]
pub struct More {
    /// The time at which the event was accepted, in milliseconds since 1970.
    pub received: u64,
    /// `true` if the consumer refuses the event, `false` if it turns it down in another way.
    pub refused: bool,
}

#[cfg(test)]
pub(super) mod tests;
