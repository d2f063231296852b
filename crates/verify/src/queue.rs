//! The check of the queue next to a log: its lines, and the places of its outputs.

use std::io;
use std::path::Path;

use super::compare::Comparison;
use super::events::Events;
use super::log::{Check, Ending};
use base::words::counted;
use evidence_log::tlog::merkle::{Hash, Hasher};
use queue::inspect;
use queue::inspect::Seen;

pub(crate) struct Queue(inspect::Directory);

/// The place of each output when the check began: the first position that it had not finished.
pub(crate) type Places = Vec<(String, u64)>;

impl Queue {
    /// Opens the queue in a directory. `None` if the directory has no queue.
    pub(crate) fn open(directory: &Path) -> Result<Option<Self>, inspect::Error> {
        match inspect::Directory::open(directory) {
            Ok(directory) => Ok(Some(Self(directory))),
            Err(inspect::Error::NoQueue(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn is_in_use(&self) -> bool {
        // A file system without locks can't tell. The directory is then checked like a copy.
        self.0.is_in_use().unwrap_or(false)
    }

    /// Returns the position after the last event.
    pub(crate) fn end(&self) -> Result<u64, inspect::Error> {
        self.0.summary().map(|summary| summary.end.get())
    }

    /// Returns the first position that each output has not finished.
    pub(crate) fn places(&self) -> Result<Places, inspect::Error> {
        let places = self.0.places()?;
        Ok(places.into_iter().map(|(name, place)| (name, place.get())).collect())
    }
}

/// Returns the result of a read. An error becomes a line in `unchecked`.
pub(crate) fn seen<T>(read: Result<T, inspect::Error>, unchecked: &mut Vec<String>) -> Option<T> {
    read.map_err(|error| unchecked.push(format!("the queue: {error}"))).ok()
}

impl Check<'_> {
    /// Compares the lines in the queue with their hashes, and the places of its outputs with the
    /// log. Adds the lines of events that no checkpoint covers to `comparison`.
    pub(crate) fn queue(
        &mut self,
        events: &mut Events<'_>,
        queue: &Queue,
        places: &Places,
        mut comparison: Option<&mut Comparison>,
    ) {
        if !self.is_whole() {
            return;
        }
        self.places(events, places);
        let mut lines = QueueLines::default();
        let mut findings = Vec::new();
        let told = queue.0.export(None, &mut |seen| {
            match seen {
                Seen::At(position) => lines.begin(position.get()),
                Seen::Lines(bytes) => lines.take(bytes, |position, hash| {
                    if position >= events.history.next() {
                        let add = |it: &mut Comparison| it.add_newer(hash, position);
                        return comparison.as_deref_mut().map_or(Ok(()), add);
                    }
                    if events.original(position).is_some_and(|expected| expected != hash) {
                        let text = "the queue has another line than the one that came in";
                        self.report.faults.add_at(position, None, text);
                    }
                    Ok(())
                })?,
                Seen::Finding(finding) => findings.push(finding.to_string()),
                Seen::Progress(..) => {}
            }
            Ok(())
        });
        seen(told, &mut self.report.unchecked);
        for finding in findings {
            let text = format!("the queue: {finding}");
            // The files of a copy may be from different moments.
            self.report.found(self.ending(events) != Ending::Open, text);
        }
    }

    /// If no relay runs, checks that the log has the fate of every event before an output's place.
    fn places(&mut self, events: &Events<'_>, places: &Places) {
        let (ending, history) = (self.ending(events), &events.history);
        if ending == Ending::Live {
            return;
        }
        for (name, place) in places {
            let output = history.outputs.get(name).filter(|output| output.is_there);
            // An output that was just added is not in an entry yet.
            let Some(output) = output else { continue };
            let open = history.pending(output, 0..*place).into_iter();
            let open = open.flat_map(|range| output.passed_over.missing_in(range));
            let next = history.next();
            let newer = (1..*place).contains(&next).then_some(next..*place);
            for range in open.chain(newer) {
                let count = range.end - range.start;
                let text = format!(
                    "the queue says that {name} is finished with {}, and the log does not: the end \
                     of the log was cut off, or the queue's cursors were changed",
                    counted(count, "event", "events")
                );
                if ending == Ending::Stopped {
                    self.report.faults.add_at(range.start, None, text);
                } else {
                    let text = format!("position {}: {text}, or they are newer", range.start);
                    self.report.unchecked.push(text);
                }
            }
        }
    }
}

/// The lines of the queue, which arrive in pieces.
#[derive(Default)]
struct QueueLines {
    next: u64,
    open: Hasher,
}

impl QueueLines {
    /// Notes that the next lines begin with the event at this position.
    fn begin(&mut self, position: u64) {
        (self.next, self.open) = (position, Hasher::default());
    }

    /// Adds bytes. Calls `line` with the position and the hash of each line that ends in them.
    fn take(
        &mut self,
        mut bytes: &[u8],
        mut line: impl FnMut(u64, Hash) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (last, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            self.open.update(last);
            line(self.next, std::mem::take(&mut self.open).finish())?;
            self.next += 1;
        }
        self.open.update(bytes);
        Ok(())
    }
}
