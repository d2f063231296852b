//! The events of inputs for a command that only looks at them: the same inputs as those of a
//! replay, read by the same rules.
//!
//! A file is read from its beginning to its end. Of a queue's directory all stored events are read,
//! whether or not an output has finished them, and a relay may be running with it. A line that is
//! not an event is reported, and does not end the reading.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::mpsc;

use super::Note;
use super::OnBadLine;
use super::Replay;
use super::Settings;
use super::Unusable;
use super::input;
use super::input::Item;
use super::input::Plan;
use crate::position::Position;

/// The greatest number of bytes of a part, unless a single event is longer.
const PART_BYTES: usize = 1 << 20;

/// The greatest number of notes that wait to be printed.
const NOTES: usize = 256;

/// Inputs that a thread is reading. The thread ends when this value is dropped; if it hangs in a
/// read, it is left behind.
pub struct Reading {
    files: Vec<PathBuf>,
    /// The size of each input in bytes; `None` for a pipe.
    sizes: Vec<Option<u64>>,
    items: mpsc::Receiver<Item>,
    notes: mpsc::Receiver<Note>,
    /// The lines and stored events found so far that are not in the figures.
    pub found: Found,
}

/// The numbers of lines, events and inputs that could not be read as events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Found {
    /// The number of lines that are not events.
    pub bad_lines: u64,
    /// The number of stored events of a queue that are damaged or missing.
    pub missing_events: u64,
    /// The number of inputs that could not be opened, or not be read to their ends.
    pub cut_short_inputs: u64,
    /// The number of bytes of all inputs that were read so far, as they are on disk.
    #[serde(skip)]
    pub bytes_read: u64,
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
    let plan = Plan { settings, spools, resumed: Vec::new(), as_lines: true };
    let (sender, items) = mpsc::channel(1);
    let (told, notes) = mpsc::channel(NOTES);
    let reader = std::thread::Builder::new().name("input-reader".to_owned());
    let started = reader.spawn(move || input::read_all(&plan, &sender, &told));
    started.map_err(|error| Unusable(format!("cannot start a thread: {error}")))?;
    Ok(Reading { files, sizes, items, notes, found: Found::default() })
}

impl Reading {
    /// Returns the size of all inputs together, in bytes; of a queue, that of its unfinished
    /// events. `None` if an input has no size, such as a pipe.
    pub fn bytes(&self) -> Option<u64> {
        self.sizes.iter().copied().sum()
    }

    /// Waits for the next events, which are JSON lines and may be none; `None` at the end of the
    /// inputs, or of the first that cannot be read further. Notes are passed to `tell`.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self, tell: &mut dyn FnMut(&Note)) -> Option<Vec<u8>> {
        let (file, what) = loop {
            let item = tokio::select! {
                // A note precedes the item that counts it.
                biased;
                Some(note) = self.notes.recv() => {
                    tell(&note);
                    continue;
                }
                item = self.items.recv() => item,
            };
            match item {
                Some(Item::Batch(batch)) => {
                    let before: u64 = self.sizes.iter().take(batch.end.file).flatten().sum();
                    self.found.bytes_read = before + batch.end.bytes_read;
                    self.found.bad_lines += batch.bad_lines;
                    self.found.missing_events += batch.damage.missing;
                    return Some(batch.body);
                }
                Some(Item::End { cut_short }) => {
                    self.found.cut_short_inputs += cut_short;
                    return None;
                }
                Some(Item::Failed { file, what, .. }) => break (file, what),
                None => break (0, "the thread that reads has panicked".to_owned()),
            }
        };
        self.found.cut_short_inputs += 1;
        let directory = self.files.get(file).cloned().unwrap_or_default();
        tell(&Note::Remark { directory, what });
        None
    }
}
