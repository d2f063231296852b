//! The events of inputs for a command that only looks at them: the same inputs as those of a
//! replay, read by the same rules.
//!
//! A file is read from its beginning to its end. Of a queue's directory all stored events are read,
//! whether or not an output has finished them, and a relay may be running with it. A line that is
//! not an event is reported, and does not end the reading.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Note;
use super::OnBadLine;
use super::Replay;
use super::Settings;
use super::Unusable;
use super::input;
use super::input::Item;
use super::input::Plan;
use crate::audit;
use crate::position::Position;

/// The greatest number of bytes of a part, unless a single event is longer.
const PART_BYTES: usize = 1 << 20;

/// The greatest number of notes that wait to be printed.
const NOTES: usize = 256;

/// What is read from the inputs.
pub enum Seen {
    /// The next events, and what was found between the events before and these.
    Part {
        /// The events as JSON lines; may be empty.
        lines: Vec<u8>,
        /// The number of lines that are not events.
        bad_lines: u64,
        /// The number of stored events of a queue that are damaged or missing.
        missing: u64,
        /// The number of bytes of all inputs that were read so far, as they are on disk.
        bytes_read: u64,
    },
    /// A message for the operator: a line that is not an event, or damage in a queue's directory.
    Note(Note),
    /// Nothing follows: everything was read, except for the ends of this many files.
    End {
        /// The number of files that could not be read to their ends.
        cut_short: u64,
    },
    /// Nothing follows: this input could not be opened, or read further. The text says why.
    Failed(PathBuf, String),
}

/// Inputs that a thread is reading. The thread ends when this value is dropped; if it hangs in a
/// read, it is left behind.
pub struct Reading {
    files: Vec<PathBuf>,
    /// The size of each input in bytes; `None` for a pipe.
    sizes: Vec<Option<u64>>,
    items: mpsc::Receiver<Item>,
    notes: mpsc::Receiver<Note>,
}

/// Checks that the inputs can be read, and starts the thread that reads them. Blocks the thread.
///
/// # Errors
///
/// [`Unusable`] names the input that cannot be used.
pub fn read(files: Vec<PathBuf>) -> Result<Reading, Unusable> {
    let replay = Replay::new(Settings {
        files: files.clone(),
        output: None,
        even_if_running: true,
        rate: None,
        batch_events: usize::MAX,
        batch_bytes: PART_BYTES,
        concurrency: 1,
        resume: None,
        on_bad_line: OnBadLine::Skip,
    })?;
    let sizes = replay.sizes().collect();
    let Replay { settings, frontier } = replay;
    let mut spools = frontier.spools;
    for spool in spools.iter_mut().flatten().filter_map(Arc::get_mut) {
        // Whether a relay runs with the directory does not matter to a reader.
        (spool.start, spool.is_in_use) = (Position::START, true);
    }
    let plan = Plan { settings, spools, resumed: Vec::new() };
    let (sender, items) = mpsc::channel(1);
    let (told, notes) = mpsc::channel(NOTES);
    let reader = std::thread::Builder::new().name("input-reader".to_owned());
    let started = reader.spawn(move || input::read_all(&plan, &sender, &told));
    started.map_err(|error| Unusable(format!("cannot start a thread: {error}")))?;
    Ok(Reading { files, sizes, items, notes })
}

impl Reading {
    /// Returns the size of all inputs together, in bytes; of a queue, that of its unfinished
    /// events. `None` if an input has no size, such as a pipe.
    pub fn bytes(&self) -> Option<u64> {
        self.sizes.iter().copied().sum()
    }

    /// Waits for what is read next.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Seen {
        let item = tokio::select! {
            // A note precedes the item that counts it.
            biased;
            Some(note) = self.notes.recv() => return Seen::Note(note),
            item = self.items.recv() => item,
        };
        match item {
            Some(Item::Batch(batch)) => {
                let before: u64 = self.sizes.iter().take(batch.end.file).flatten().sum();
                Seen::Part {
                    bad_lines: batch.bad_lines,
                    missing: batch.damage.missing,
                    bytes_read: before + batch.end.bytes_read,
                    lines: lines(batch.body),
                }
            }
            Some(Item::End { cut_short }) => Seen::End { cut_short },
            Some(Item::Failed { file, what, .. }) => {
                Seen::Failed(self.files.get(file).cloned().unwrap_or_default(), what)
            }
            None => Seen::Failed(PathBuf::new(), "the thread that reads has panicked".to_owned()),
        }
    }
}

/// Turns the body of a request into the lines of its events.
fn lines(mut body: Vec<u8>) -> Vec<u8> {
    // The last byte of a body is a line break, which is the room that is needed. The reader has
    // checked the events, so only a body without any is refused.
    let lines = audit::decode_in_place(&mut body).map_or(0..0, |split| split.lines);
    body.truncate(lines.end);
    body.drain(..lines.start);
    body
}
