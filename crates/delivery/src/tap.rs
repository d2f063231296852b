//! Shows a person the events that leave, while they leave: the *taps*. A tap is one reader on the
//! admin address. Deliveries copy lines for the tap; the reader's own task does the rest.
//!
//! - While no tap is open, a delivery reads one number for each batch.
//! - A delivery never waits for a tap. The copies for one tap are limited in lines and bytes per
//!   second, and in the bytes that wait for the reader. Lines beyond a limit are counted, not
//!   copied.
//! - A line is shown after the output's filter and the redactions that always hold. A line that is
//!   not JSON is not shown, but counted.
//! - An event is shown when the consumer has acknowledged it.
//! - Each acknowledged event is handed over or counted, if it was sent while the tap was open.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `fields` | what an event says |
//! | 2 | `condition` | what a reader asks for |
//! | 3 | `view` | one line, redacted and compared |

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::Instant;

use base::lock::lock;
use telemetry::TapMetrics;

mod condition;
mod fields;
mod view;

pub use condition::Conditions;
pub use fields::Fields;
pub use view::{Looked, View};

/// The maximum number of open taps. Each tap may take several MiB of memory.
pub const TAPS_MAX: usize = 4;

/// The limit for the bytes of a tap's lines, `LINE_OVERHEAD` for each included. A line counts from
/// its copy until the reader's task is done with it.
pub const ROOM_BYTES: usize = 2 << 20;

/// The limit for lines per second, which may all come at the same moment. It is above the rate of
/// most clusters, so that a rare event is found among all others.
pub const LINES_PER_SECOND: u32 = 2000;

/// The maximum number of bytes per second that are copied for one tap.
pub const BYTES_PER_SECOND: u32 = 4 << 20;

/// The largest event that a tap shows, in bytes. A larger one is counted: redaction needs whole
/// events.
pub const EVENT_BYTES_MAX: usize = 256 << 10;

const LINE_OVERHEAD: usize = 128;

/// The taps of a relay. The relay, its deliveries and the admin server share this value.
pub struct Taps {
    /// While no tap is open, deliveries read only this number.
    open: AtomicUsize,
    readers: Mutex<Vec<Arc<Reader>>>,
    metrics: TapMetrics,
}

impl Taps {
    /// Makes the taps of a relay, of which none is open.
    pub fn new(metrics: TapMetrics) -> Self {
        Self { open: AtomicUsize::new(0), readers: Mutex::default(), metrics }
    }

    /// Opens a tap for the events of one output, or of all. Returns `None` if [`TAPS_MAX`] taps are
    /// open. Dropping the value closes the tap.
    pub fn open(self: &Arc<Self>, output: Option<String>) -> Option<Tap> {
        let mut readers = lock(&self.readers);
        if readers.len() >= TAPS_MAX {
            return None;
        }
        let reader = Arc::new(Reader::new(output));
        readers.push(Arc::clone(&reader));
        self.tell(readers.len());
        drop(readers);
        Some(Tap { taps: Arc::clone(self), reader })
    }

    /// Returns `true` if a tap is open.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn readers_of(&self, output: &str) -> Vec<Arc<Reader>> {
        let wants = |reader: &&Arc<Reader>| reader.wants(output);
        lock(&self.readers).iter().filter(wants).map(Arc::clone).collect()
    }

    fn close(&self, reader: &Arc<Reader>) {
        let mut readers = lock(&self.readers);
        readers.retain(|one| !Arc::ptr_eq(one, reader));
        self.tell(readers.len());
    }

    fn tell(&self, open: usize) {
        self.open.store(open, Ordering::Relaxed);
        self.metrics.open(open);
    }
}

/// The side of an open tap that the reader's task uses.
pub struct Tap {
    taps: Arc<Taps>,
    reader: Arc<Reader>,
}

impl Tap {
    /// Waits for the next line, in the order of the acknowledgements of each output.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&self) -> Line {
        loop {
            if let Some(line) = self.try_next() {
                return line;
            }
            self.reader.arrived.notified().await;
        }
    }

    /// Returns the next line; `None` if there is none yet.
    pub fn try_next(&self) -> Option<Line> {
        lock(&self.reader.state).lines.pop_front()
    }

    /// Returns the counters of shown and skipped events.
    pub fn metrics(&self) -> &TapMetrics {
        &self.taps.metrics
    }

    /// Returns the numbers of acknowledged events that were not handed to this tap since the last
    /// call.
    pub fn take_skipped(&self) -> Skipped {
        std::mem::take(&mut lock(&self.reader.state).skipped)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.taps.close(&self.reader);
        let mut state = lock(&self.reader.state);
        state.is_closed = true;
        // The lines are dropped after the lock, because each one then changes `held`.
        let lines = std::mem::take(&mut state.lines);
        drop(state);
        drop(lines);
    }
}

/// The numbers of acknowledged events that a tap has not shown, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Skipped {
    /// More events matched than the reader wants in a second.
    pub sample: u64,
    /// More events left than are copied in a second. The rest was not compared.
    pub rate: u64,
    /// [`ROOM_BYTES`] were taken: the reader or the output's consumer is slow.
    pub full: u64,
    /// Events of more than [`EVENT_BYTES_MAX`] bytes.
    pub large: u64,
    /// The size in bytes of the largest of these large events.
    pub largest_bytes: u64,
    /// Lines that are not JSON objects, which might therefore contain a secret.
    pub unreadable: u64,
}

impl Skipped {
    /// Returns the number of all events that were not shown.
    pub fn events(&self) -> u64 {
        self.sample + self.rate + self.full + self.large + self.unreadable
    }

    /// Adds the counts of `other`, and keeps the larger `largest_bytes`.
    pub fn add(&mut self, other: Self) {
        let Self { sample, rate, full, large, largest_bytes, unreadable } = other;
        self.sample += sample;
        self.rate += rate;
        self.full += full;
        self.large += large;
        self.largest_bytes = self.largest_bytes.max(largest_bytes);
        self.unreadable += unreadable;
    }
}

/// The reason why no more lines of a batch are copied for a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The tap has used up its lines or bytes of this second.
    Rate,
    /// [`ROOM_BYTES`] are taken, or the tap is closed.
    Full,
}

/// The side of a tap that the deliveries use.
pub struct Reader {
    output: Option<String>,
    /// The bytes of all copied lines that exist, at most [`ROOM_BYTES`].
    held: AtomicUsize,
    state: Mutex<ReaderState>,
    arrived: Notify,
}

struct ReaderState {
    /// The acknowledged lines that the reader's task has not taken.
    lines: VecDeque<Line>,
    skipped: Skipped,
    allowed: [Allowance; 2],
    is_closed: bool,
}

impl Reader {
    fn new(output: Option<String>) -> Self {
        let state = ReaderState {
            lines: VecDeque::new(),
            skipped: Skipped::default(),
            allowed: [LINES_PER_SECOND, BYTES_PER_SECOND].map(Allowance::new),
            is_closed: false,
        };
        let (held, arrived) = (AtomicUsize::new(0), Notify::new());
        Self { output, held, state: Mutex::new(state), arrived }
    }

    fn wants(&self, output: &str) -> bool {
        self.output.as_deref().is_none_or(|name| name == output)
    }

    /// Copies an event for this tap, if the limits allow it.
    pub fn copy(self: &Arc<Self>, output: &Arc<str>, event: &[u8]) -> Result<Line, Why> {
        let size = event.len() + LINE_OVERHEAD;
        let mut state = lock(&self.state);
        if self.held.load(Ordering::Relaxed) + size > ROOM_BYTES || state.is_closed {
            return Err(Why::Full);
        }
        state.take(size).ok_or(Why::Rate)?;
        // Only this function adds to `held`, and it has the lock.
        self.held.fetch_add(size, Ordering::Relaxed);
        drop(state);
        Ok(Line { output: Arc::clone(output), event: event.into(), reader: Arc::clone(self) })
    }

    /// Hands over acknowledged lines, and counts acknowledged events without a line.
    pub fn deliver(&self, lines: impl IntoIterator<Item = Line>, skipped: Skipped) {
        let mut state = lock(&self.state);
        if state.is_closed {
            // The lines are dropped after the lock.
            drop(state);
            return;
        }
        state.skipped.add(skipped);
        let had = state.lines.len();
        state.lines.extend(lines);
        let has_more = state.lines.len() > had;
        drop(state);
        if has_more {
            self.arrived.notify_one();
        }
    }
}

impl ReaderState {
    fn take(&mut self, size: usize) -> Option<()> {
        let [lines, bytes] = &mut self.allowed;
        // A size is at most EVENT_BYTES_MAX and the overhead.
        let size = f64::from(u32::try_from(size).unwrap_or(u32::MAX));
        (bytes.has(size) && lines.take(1.0)).then(|| bytes.left -= size)
    }
}

/// An amount per second, which may be taken all at the same moment.
pub struct Allowance {
    per_second: f64,
    left: f64,
    refilled: Instant,
}

impl Allowance {
    /// Makes an allowance from which nothing is taken yet.
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, refilled: Instant::now() }
    }

    fn has(&mut self, amount: f64) -> bool {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        self.left = passed.mul_add(self.per_second, self.left).min(self.per_second);
        self.left >= amount
    }

    /// Takes this much and returns `true`, or returns `false` if less is left.
    pub fn take(&mut self, amount: f64) -> bool {
        let is_left = self.has(amount);
        if is_left {
            self.left -= amount;
        }
        is_left
    }
}

/// A copy of one event for one tap, after the output's filter. The redactions that always hold may
/// be missing.
pub struct Line {
    output: Arc<str>,
    event: Box<[u8]>,
    reader: Arc<Reader>,
}

impl Line {
    /// Returns the name of the output that has sent the event.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// Returns the event, without a line break. It may contain secrets.
    pub fn event(&self) -> &[u8] {
        &self.event
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let size = self.event.len() + LINE_OVERHEAD;
        self.reader.held.fetch_sub(size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use telemetry::Telemetry;

    fn taps() -> Arc<Taps> {
        Arc::new(Taps::new(Telemetry::new().taps()))
    }

    fn only(taps: &Taps, output: &str) -> Arc<Reader> {
        let readers = taps.readers_of(output);
        assert_eq!(readers.len(), 1);
        Arc::clone(&readers[0])
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_four_taps_are_open_at_once() {
        let taps = taps();
        assert!(!taps.is_open());
        let mut open: Vec<_> = (0..TAPS_MAX).map(|_| taps.open(None).unwrap()).collect();
        assert!(taps.is_open() && taps.open(None).is_none());
        open.pop();
        let again = taps.open(Some("a".to_owned())).unwrap();
        assert_eq!((taps.readers_of("a").len(), taps.readers_of("b").len()), (4, 3));
        drop((open, again));
        assert!(!taps.is_open() && taps.readers_of("a").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn copies_are_limited_in_lines_bytes_and_room() {
        let taps = taps();
        let tap = taps.open(None).unwrap();
        let (reader, output) = (only(&taps, "o"), Arc::from("o"));
        for _ in 0..LINES_PER_SECOND {
            drop(reader.copy(&output, b"{}").unwrap());
        }
        assert_eq!(reader.copy(&output, b"{}").err(), Some(Why::Rate));
        tokio::time::advance(Duration::from_millis(10)).await;
        let few = (0..100).take_while(|_| reader.copy(&output, b"{}").is_ok()).count();
        assert!((19..=21).contains(&few), "{few}");

        // Bytes: the room is smaller than a second's worth.
        tokio::time::advance(Duration::from_secs(5)).await;
        let large = vec![b' '; EVENT_BYTES_MAX];
        let mut held = Vec::new();
        while let Ok(line) = reader.copy(&output, &large) {
            held.push(line);
        }
        assert_eq!(reader.copy(&output, &large).err(), Some(Why::Full));
        assert_eq!(held.len(), ROOM_BYTES / (EVENT_BYTES_MAX + LINE_OVERHEAD));
        held.clear();
        while let Ok(line) = reader.copy(&output, &large) {
            held.push(line);
            held.truncate(1);
        }
        drop(held);
        assert_eq!(reader.copy(&output, &large).err(), Some(Why::Rate));
        drop(tap);
        assert_eq!(reader.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_tap_holds_nothing_and_takes_nothing() {
        let taps = taps();
        let tap = taps.open(None).unwrap();
        let (reader, output) = (only(&taps, "o"), Arc::from("o"));
        let line = || reader.copy(&output, b"{}").unwrap();
        reader.deliver([line(), line()], Skipped { rate: 3, ..Skipped::default() });
        assert_eq!(tap.next().await.event(), b"{}");
        assert_eq!(tap.take_skipped().events(), 3);
        assert_eq!(tap.take_skipped(), Skipped::default());
        let late = line();
        drop(tap);
        reader.deliver([late], Skipped::default());
        assert_eq!(reader.held.load(Ordering::Relaxed), 0);
        assert_eq!(reader.copy(&output, b"{}").err(), Some(Why::Full));
    }
}
