//! Shows a person the events that leave, while they leave: the *taps*. A tap is one reader on the
//! admin address. Deliveries copy lines for the tap; the reader's own task does the rest.
//!
//! - While no tap is open, a delivery reads one number for each batch.
//! - A delivery never waits for a tap. The copies for one tap are limited in bytes per second,
//!   and in the bytes that wait for the reader. Lines beyond a limit are counted, not copied.
//! - A line is shown after the output's filter and the redactions that always hold. A line that is
//!   not JSON is not shown, but counted.
//! - An event is shown when the consumer has acknowledged it.
//! - Each acknowledged event is handed over or counted, if it was sent while the tap was open.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use base::lock::lock;
use telemetry::TapMetrics;

mod view;

pub use view::{Looked, View};

/// The maximum number of open taps. Each tap may take several MiB of memory.
pub const TAPS_MAX: usize = 4;

/// The limit for the bytes of a tap's lines, `LINE_OVERHEAD` for each included. A line counts from
/// its copy until the reader's task is done with it.
const ROOM_BYTES: usize = 2 << 20;

/// The maximum number of bytes per second that are copied for one tap, which may all come at the
/// same moment. It is above the rate of most clusters, so that a rare event is found among all
/// others.
const BYTES_PER_SECOND: u32 = 4 << 20;

/// The least number of bytes that an event counts as for [`BYTES_PER_SECOND`], because reading a
/// small event takes time too. At most 2,048 events per second are therefore copied.
const EVENT_BYTES_MIN: usize = 2 << 10;

/// The largest event that a tap shows, in bytes. A larger one is counted: redaction needs whole
/// events.
const EVENT_BYTES_MAX: usize = 256 << 10;

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
        let (sender, lines) = mpsc::unbounded_channel();
        let reader = Arc::new(Reader {
            output,
            room: Arc::new(Semaphore::new(ROOM_BYTES)),
            allowance: Mutex::new(Allowance::new()),
            lines: sender,
            skipped: AtomicU64::new(0),
        });
        readers.push(Arc::clone(&reader));
        self.tell(readers.len());
        drop(readers);
        Some(Tap { taps: Arc::clone(self), reader, lines })
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
    /// The acknowledged lines that the reader's task has not taken.
    lines: mpsc::UnboundedReceiver<Line>,
}

impl Tap {
    /// Waits for the next line, in the order of the acknowledgements of each output.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Line {
        self.lines.recv().await.expect("the reader of this tap has a sender")
    }

    /// Returns the next line; `None` if there is none yet.
    pub fn try_next(&mut self) -> Option<Line> {
        self.lines.try_recv().ok()
    }

    /// Returns the counters of shown and skipped events.
    pub fn metrics(&self) -> &TapMetrics {
        &self.taps.metrics
    }

    /// Returns the number of acknowledged events that were not handed to this tap since the last
    /// call.
    pub fn take_skipped(&self) -> u64 {
        self.reader.skipped.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.taps.close(&self.reader);
        self.reader.room.close();
    }
}

/// The side of a tap that the deliveries use.
pub struct Reader {
    output: Option<String>,
    /// One permit for each byte of [`ROOM_BYTES`] that no copied line takes.
    room: Arc<Semaphore>,
    allowance: Mutex<Allowance>,
    /// The permits of `room` limit the lines in this channel.
    lines: mpsc::UnboundedSender<Line>,
    skipped: AtomicU64,
}

impl Reader {
    fn wants(&self, output: &str) -> bool {
        self.output.as_deref().is_none_or(|name| name == output)
    }

    /// Copies an event for this tap. Returns `None` if a limit does not allow it, or if the tap is
    /// closed.
    pub fn copy(&self, output: &Arc<str>, event: &[u8]) -> Option<Line> {
        if event.len() > EVENT_BYTES_MAX {
            return None;
        }
        let size = u32::try_from(event.len() + LINE_OVERHEAD).ok()?;
        let room = Arc::clone(&self.room).try_acquire_many_owned(size).ok()?;
        let is_allowed = lock(&self.allowance).take(event.len().max(EVENT_BYTES_MIN));
        is_allowed.then(|| Line { output: Arc::clone(output), event: event.into(), _room: room })
    }

    /// Hands over acknowledged lines, and counts acknowledged events without a line.
    pub fn deliver(&self, lines: impl IntoIterator<Item = Line>, skipped: u64) {
        self.skipped.fetch_add(skipped, Ordering::Relaxed);
        for line in lines {
            // Fails only if the tap is closed.
            self.lines.send(line).ok();
        }
    }
}

/// The part of [`BYTES_PER_SECOND`] that is not used yet.
struct Allowance {
    left: f64,
    refilled: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { left: f64::from(BYTES_PER_SECOND), refilled: Instant::now() }
    }

    /// Takes this many bytes and returns `true`, or returns `false` if fewer are left.
    fn take(&mut self, bytes: usize) -> bool {
        let (now, per_second) = (Instant::now(), f64::from(BYTES_PER_SECOND));
        let passed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        self.left = passed.mul_add(per_second, self.left).min(per_second);
        let is_left = self.left >= bytes as f64;
        if is_left {
            self.left -= bytes as f64;
        }
        is_left
    }
}

/// A copy of one event for one tap, after the output's filter. The redactions that always hold may
/// be missing.
pub struct Line {
    output: Arc<str>,
    event: Box<[u8]>,
    /// The line's part of [`ROOM_BYTES`].
    _room: OwnedSemaphorePermit,
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
    async fn copies_are_limited_in_bytes_per_second_and_in_room() {
        let taps = taps();
        let tap = taps.open(None).unwrap();
        let (reader, output) = (only(&taps, "o"), Arc::from("o"));
        let small = || reader.copy(&output, b"{}").is_some();
        assert_eq!((0..5000).filter(|_| small()).count(), 2048);
        tokio::time::advance(Duration::from_millis(10)).await;
        let few = (0..100).filter(|_| small()).count();
        assert!((19..=21).contains(&few), "{few}");

        // The room is smaller than the bytes of a second.
        tokio::time::advance(Duration::from_secs(5)).await;
        let large = vec![b' '; EVENT_BYTES_MAX];
        let copies = || std::iter::from_fn(|| reader.copy(&output, &large));
        let held: Vec<_> = copies().collect();
        assert_eq!(held.len(), ROOM_BYTES / (EVENT_BYTES_MAX + LINE_OVERHEAD));
        drop(held);
        assert_eq!(copies().count(), (4 << 20) / EVENT_BYTES_MAX - 7);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(reader.copy(&output, &vec![b' '; EVENT_BYTES_MAX + 1]).is_none());
        drop(tap);
        assert_eq!(reader.room.available_permits(), ROOM_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_tap_holds_nothing_and_takes_nothing() {
        let taps = taps();
        let mut tap = taps.open(None).unwrap();
        let (reader, output) = (only(&taps, "o"), Arc::from("o"));
        let line = || reader.copy(&output, b"{}").unwrap();
        reader.deliver([line(), line()], 3);
        assert_eq!(tap.next().await.event(), b"{}");
        assert_eq!((tap.take_skipped(), tap.take_skipped()), (3, 0));
        let late = line();
        drop(tap);
        reader.deliver([late], 0);
        assert_eq!(reader.room.available_permits(), ROOM_BYTES);
        assert!(reader.copy(&output, b"{}").is_none());
    }
}
