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

use super::Frontier;
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
    /// The number of inputs that were not read to their ends: all of them until the last is done.
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
    let mut replay = Replay::new(Settings {
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
    for spool in replay.frontier.spools.iter_mut().flatten().filter_map(Arc::get_mut) {
        spool.start = Position::START;
        spool.left.bytes = spool.left.stored_bytes;
        // Whether a relay runs with the directory does not matter to a reader.
        spool.is_in_use = true;
    }
    let sizes = replay.sizes().collect();
    let Replay { settings, frontier: Frontier { spools, .. } } = replay;
    let plan = Plan { settings, spools, resumed: Vec::new(), as_lines: true };
    let (sender, items) = mpsc::channel(1);
    let (told, notes) = mpsc::channel(NOTES);
    let reader = std::thread::Builder::new().name("input-reader".to_owned());
    let started = reader.spawn(move || input::read_all(&plan, &sender, &told));
    started.map_err(|error| Unusable(format!("cannot start a thread: {error}")))?;
    let found = Found { cut_short_inputs: files.len() as u64, ..Found::default() };
    Ok(Reading { files, sizes, items, notes, found })
}

impl Reading {
    /// Returns the size of all inputs together, in bytes; of a queue, that of the lines that are
    /// stored. `None` if an input has no size, such as a pipe.
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
        loop {
            let item = tokio::select! {
                // A note precedes the item that counts it.
                biased;
                Some(note) = self.notes.recv() => {
                    tell(&note);
                    continue;
                }
                item = self.items.recv() => item?,
            };
            match item {
                Item::Batch(batch) => {
                    let before: u64 = self.sizes.iter().take(batch.end.file).flatten().sum();
                    self.found.bytes_read = before + batch.end.bytes_read;
                    self.found.bad_lines += batch.bad_lines;
                    self.found.missing_events += batch.damage.missing;
                    return Some(batch.body);
                }
                Item::End { cut_short } => self.found.cut_short_inputs = cut_short,
                Item::Failed { file, what, .. } => {
                    let directory = self.files.get(file).cloned().unwrap_or_default();
                    tell(&Note::Remark { directory, what });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::LevelCounts;
    use crate::config;
    use crate::queue::Append;
    use crate::queue::Disposition;
    use crate::queue::Queue;
    use crate::queue::Take;
    use crate::queue::tests::embedded_config;
    use crate::queue::tests::outputs;
    use crate::telemetry::Telemetry;
    use crate::tests::corpus_file;

    /// Method: of what a queue stores, its only output has finished the most.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_size_of_a_queue_is_that_of_the_lines_that_are_read() {
        let (directory, telemetry) = (tempfile::tempdir().unwrap(), Telemetry::new());
        let config =
            config::Queue { directory: Some(directory.path().to_owned()), ..embedded_config() };
        let (_, outputs) = outputs(&telemetry, &["archive"]);
        let (queue, mut cursors) = Queue::open(&config, &telemetry, &outputs).unwrap();
        let lines = corpus_file("audit.log");
        let events = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        let (lines, levels) = (lines.into(), LevelCounts::default());
        let mut ticket = queue.append(Append { lines, events, levels, list: None }).unwrap();
        ticket.acknowledged().await.unwrap();
        cursors[0].readable().await;
        let batch = cursors[0].next(Take { bytes: 1 << 20, events: events - 10 }).unwrap();
        cursors[0].acknowledge(batch.claim, Disposition::default());
        queue.close().await;

        let mut reading = read(vec![directory.path().to_owned()]).unwrap();
        let mut read = 0;
        while let Some(lines) = reading.next(&mut |note| panic!("{note:?}")).await {
            read += lines.len() as u64;
        }
        assert_eq!((reading.bytes(), reading.found.bytes_read), (Some(read), read));
        assert_eq!(reading.found, Found { bytes_read: read, ..Found::default() });
    }
}
