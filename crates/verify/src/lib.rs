//! Checks evidence logs from outside: that each log is whole and signed, that it records the fate
//! of each event, and that a consumer has stored the lines that were sent.
//!
//! This crate promises that a fault is reported only with proof, and that the report names whatever
//! could not be compared. It imports `evidence-log`, `queue` (its files, seen from outside) and
//! `tools` (packed files). What must never happen here: a write into a log, or a fault that rests
//! on a clock alone.
//!
//! Only temporary files are written (see `matching`). A directory may be a copy, or a relay may be
//! writing to it. Therefore the order of reading matters: the stored lines come first, then the
//! places of the outputs, the checkpoint, the newer note next to the log, and last the entries that
//! the checkpoint and the note cover. Only events in these entries are proven. A later event is
//! called newer, and counts neither as a fault nor as a success.
//!
//! Three types share the work. `Check` (in `log`) has the files of one log and the results about
//! its checkpoints. `Events` has the statements of the entries about events. `Comparison` (in
//! `compare`) has the sent lines of all logs and the stored lines.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `bounds` `matching` `positions` `report` `request` `stored` | entries that no relay writes · hashes in any number and order · a set of positions · counts and faults · what is asked · the lines of a file |
//! | 2 | `hashes` `live` `runs` `proof` | line hashes by their roots · the wait for a checkpoint · starts, stops and silence · a proof by itself |
//! | 3 | `history` | what the entries say together |
//! | 4 | `events` `store` | the fates of events, and their lines · a consumer's lines and checkpoints |
//! | 5 | `log` | a log and its checkpoints |
//! | 6 | `compare` `witnesses` | the lines that left, and those that are stored · what witnesses have seen |
//! | 7 | `published` `queue` | a log that a server has · the lines in the queue |

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use base::disk;
use evidence_log::DIRECTORY;
use evidence_log::reader::{Directory, Log};

mod bounds;
mod compare;
mod events;
mod hashes;
mod history;
mod live;
mod log;
mod matching;
mod positions;
pub mod proof;
mod published;
mod queue;
pub mod report;
mod request;
mod runs;
mod store;
mod stored;
#[cfg(test)]
mod tests;
mod witnesses;

use compare::{Comparison, read_again};
use events::Events;
use history::History;
use live::Deadline;
use log::{Check, Ending, Entries};
pub use published::published;
use queue::{Places, Queue};
use report::{Number, Report};
pub use request::Request;
use store::Store;

struct Place {
    /// The queue's directory, also for a log that was set aside in it.
    queue: PathBuf,
    files: Directory,
    deadline: Deadline,
    /// The position after the last event of the queue, read after the stored lines. `None` if no
    /// relay is running, or if the queue can't be read.
    live: Option<u64>,
    beside: Option<Queue>,
}

struct Read<'a> {
    place: &'a Place,
    check: Check<'a>,
    events: Events<'a>,
    log: Option<Log<'a>>,
    outputs: Places,
    is_covered: bool,
}

/// The reason why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request names something that does not exist.
    #[error("{0}")]
    Usage(String),
    /// A temporary file can't be written, or a server does not answer.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checks the logs in these directories, each a queue's directory, a log, or a copy of either. The
/// stored lines are compared with the sent lines of all these logs. `read` is called with the
/// number of bytes that were read from the files of stored lines since the last call. The report
/// names each file that is missing, wrong or unreadable.
///
/// # Errors
///
/// A directory has no log, a requested output is in no log, or a temporary file can't be written.
pub fn directories(
    directories: &[PathBuf],
    request: &Request,
    read: &mut dyn FnMut(u64),
) -> Result<Report, Error> {
    let mut report = Report::default();
    let store = match request.events.is_empty() {
        false => Store::read(request, read, &mut report),
        true => None,
    };
    let mut comparison = store.map(Comparison::of);
    let unchecked = &mut report.unchecked;
    let places = directories.iter().map(|directory| Place::open(directory, request, unchecked));
    let places = places.collect::<Result<Vec<_>, _>>()?;
    let mut logs: Vec<_> =
        places.iter().map(|place| place.read(request, comparison.is_some())).collect();
    reject_repeated(&mut logs, &mut report);
    names_are_known(&logs, request)?;
    checkpoints(&mut logs);
    events(&mut logs, comparison.as_mut())?;
    if let Some(comparison) = comparison {
        for kept in &comparison.store.kept {
            let name = comparison.store.name_of_checkpoint(kept.place);
            let origin = &kept.checkpoint.origin;
            let text = format!("{name} is of {origin}, and no --directory has this log");
            report.unchecked.push(text);
        }
        let mut reports: Vec<_> = logs.iter_mut().map(|read| &mut read.check.report).collect();
        report.append(comparison.compare(request, &mut reports)?, None);
    }
    let is_one = logs.len() == 1;
    for mut read in logs {
        let origin = read.origin().filter(|_| !is_one);
        read.check.report.faults.add_times(|position| read.events.time_of(position));
        report.append(read.check.report, origin.as_deref());
    }
    Ok(report)
}

/// Compares each log with the given checkpoints that are not of another log.
fn checkpoints(logs: &mut [Read<'_>]) {
    let origins: Vec<_> = logs.iter().map(Read::origin).collect();
    for (at, Read { check, log, .. }) in logs.iter_mut().enumerate() {
        let others = origins.iter().enumerate().filter(|(other, _)| *other != at);
        let others: Vec<_> = others.filter_map(|(_, origin)| origin.clone()).collect();
        if let Some(log) = log {
            check.given(log, &others);
        }
    }
}

/// Checks the events of each log. Adds the sent lines to the comparison.
fn events(logs: &mut [Read<'_>], mut comparison: Option<&mut Comparison>) -> io::Result<()> {
    let given: Vec<_> = logs.iter().map(|log| log.place).collect();
    let ends: Vec<_> = logs.iter().map(|log| log.events.history.begin_and_end().1).collect();
    for Read { place, check, events, log, outputs, is_covered } in logs {
        if let Some(comparison) = &mut comparison {
            comparison.begin(check.request);
        }
        if let Some(log) = log {
            if let Some(comparison) = &mut comparison {
                kept(check, events, &mut comparison.store, log);
            }
            read_again(check, events, log, comparison.as_deref_mut())?;
        }
        if let Some(queue) = &place.beside {
            check.queue(events, queue, outputs, comparison.as_deref_mut());
        }
        check.judge(events);
        let Some(comparison) = &mut comparison else { continue };
        let is_closed = match check.ending(events) {
            Ending::Live => *is_covered,
            Ending::Stopped => place.is_closed(&events.history),
            Ending::Open => false,
        };
        // A log that begins where another log of the same directory ends is its continuation.
        let (begin, _) = events.history.begin_and_end();
        let mut others = given.iter().zip(&ends).filter(|(other, _)| other.is_beside(place));
        let begins_later = begin > 0 && !others.any(|(_, end)| *end >= begin);
        let has_earlier = begins_later || place.has_log_aside(&given);
        comparison.explain(is_closed, has_earlier, check.request, events);
    }
    Ok(())
}

impl Read<'_> {
    fn origin(&self) -> Option<String> {
        self.log.as_ref().map(|log| log.origin().to_owned())
    }
}

impl Place {
    /// Opens a directory. Errors of the queue are added to `unchecked`.
    fn open(
        directory: &Path,
        request: &Request,
        unchecked: &mut Vec<String>,
    ) -> Result<Self, Error> {
        let files = Directory::find(directory).map_err(|error| Error::Usage(error.to_string()))?;
        let is_below = files.is_below(directory);
        let log = if is_below { directory.join(DIRECTORY) } else { directory.to_owned() };
        let queue = match is_below {
            true => directory.to_owned(),
            false => std::fs::canonicalize(&log)?.parent().unwrap_or(directory).to_owned(),
        };
        // A log in a directory with another name was set aside, and no relay writes to it.
        let is_own = is_below || log.canonicalize()?.ends_with(DIRECTORY);
        let owner = is_own.then(|| Queue::open(&queue)).transpose();
        // If the log itself was named, its queue is not checked.
        let owner = owner.or_else(|error| if is_below { Err(error) } else { Ok(None) });
        let owner = queue::seen(owner, unchecked).flatten().flatten();
        let in_use = owner.as_ref().filter(|queue| queue.is_in_use());
        let live = in_use.and_then(|queue| queue::seen(queue.end(), unchecked));
        let deadline = Deadline::new(request, &files, &log);
        let beside = owner.filter(|_| is_below);
        Ok(Self { queue, files, deadline, live, beside })
    }

    /// Returns `true` if the queue's directory has another log, which is not in `given`.
    fn has_log_aside(&self, given: &[&Self]) -> bool {
        let beside = Directory::beside(&self.queue).into_iter();
        let mut aside = beside.filter(|log| *log != self.files);
        aside.any(|log| given.iter().all(|place| place.files != log))
    }

    /// Returns `true` if no event came after the stop at the end of this log. The directory must be
    /// the relay's own instead of a copy. Its queue, if it is read, must end where the log ends.
    fn is_closed(&self, history: &History) -> bool {
        let identity = disk::identity(&self.queue.join(DIRECTORY));
        let ends = |queue: &Queue| queue.end().is_ok_and(|end| end <= history.recorded_until());
        identity.is_some()
            && identity == history.runs.stopped_in
            && self.beside.as_ref().is_none_or(ends)
    }

    /// Returns `true` if `other` is another log in the same queue's directory.
    fn is_beside(&self, other: &Self) -> bool {
        let same = |place: &Self| place.queue.canonicalize().ok();
        !std::ptr::eq(self, other) && same(self) == same(other)
    }

    /// Reads the log. If the relay is running, waits until the signed entries cover all events that
    /// the consumer may have, but not after the deadline.
    fn read<'a>(&'a self, request: &'a Request, has_lines: bool) -> Read<'a> {
        let mut is_covered = false;
        if let Some(end) = self.live {
            is_covered = self.deadline.wait_for_events(&self.files, end);
        }
        loop {
            let mut check = Check::new(request, Some(&self.files), self.live.is_some());
            let mut events = Events::of(Some(&self.files));
            let unchecked = &mut check.report.unchecked;
            let outputs = self.beside.as_ref().map(Queue::places);
            let outputs = outputs.and_then(|it| queue::seen(it, unchecked)).unwrap_or_default();
            let log = check.log(&self.files, &mut events);
            let size = log.as_ref().map_or(0, Log::size);
            let waits = self.live.is_some_and(|end| {
                check.entries == Entries::Torn
                    || check.is_silent(&events)
                    || (has_lines && is_pending_before(end, request, &events.history))
            });
            if !waits || !self.deadline.wait_for_entries(&self.files, size) {
                // The events of the queue that no checkpoint covers.
                let next = events.history.recorded_until();
                if let Some(end) = self.live.filter(|end| next < *end) {
                    check.report.unchecked.push(format!(
                        "positions {next} to {}: no checkpoint covers these events of the queue",
                        end - 1
                    ));
                }
                return Read { place: self, check, events, log, outputs, is_covered };
            }
        }
    }
}

/// Returns `true` if an event before `end` has no fate at a requested output.
fn is_pending_before(end: u64, request: &Request, history: &History) -> bool {
    let mut outputs = request.outputs.iter().filter_map(|it| history.outputs.get(it));
    outputs.any(|output| !history.pending(output, 0..end).is_empty())
}

/// Compares the checkpoints among the stored lines with the log of their origin.
fn kept(check: &mut Check<'_>, events: &Events<'_>, store: &mut Store, log: &Log<'_>) {
    let own = &log.signed.checkpoint;
    let is_own = |kept: &mut store::Kept| kept.checkpoint.origin == own.origin;
    for kept in store.kept.extract_if(.., is_own).collect::<Vec<_>>() {
        let (name, head) = (store.name_of_checkpoint(kept.place), kept.checkpoint.head);
        if head.size <= own.head.size {
            match log::contains(&name, head, log) {
                Ok(()) => check.report.counts.checkpoints.good += 1,
                Err(text) => check.report.fault(text),
            }
            continue;
        }
        // The log was continued elsewhere, so a stop at the end of this copy is not the last entry.
        check.goes_on = true;
        check.report.counts[Number::Newer] += 1;
        let last = events.history.runs.last_checkpoint();
        check.report.unchecked.push(format!(
            "{name} covers {} entries, and the log has only {}: it is newer than {last}, or the end \
             of the log was cut off",
            head.size, own.head.size
        ));
    }
}

/// Marks a log as wrong if an earlier log has the same origin, so that no event counts twice.
fn reject_repeated(logs: &mut [Read<'_>], report: &mut Report) {
    let mut origins = BTreeSet::new();
    for read in logs {
        if let Some(origin) = read.origin()
            && !origins.insert(origin.clone())
        {
            read.check.entries = Entries::Wrong;
            report.unchecked.push(format!(
                "a second log of {origin}: the events of a log can be counted once only. Two relays \
                 with one origin are a fork"
            ));
        }
    }
}

/// Returns an error if a requested output is in none of the logs. If one of the logs is not whole,
/// there is no error, because the entries that name the output may be missing.
fn names_are_known(logs: &[Read<'_>], request: &Request) -> Result<(), Error> {
    let known = logs.iter().flat_map(|read| read.events.history.outputs.keys());
    let known: BTreeSet<_> = known.map(String::as_str).collect();
    let unknown = request.outputs.iter().find(|output| !known.contains(output.as_str()));
    match unknown.filter(|_| logs.iter().all(|read| read.check.is_whole())) {
        None => Ok(()),
        Some(output) => {
            let known: Vec<_> = known.into_iter().collect();
            let text = format!("the log has no output {output}; it has {}", known.join(", "));
            Err(Error::Usage(text))
        }
    }
}
