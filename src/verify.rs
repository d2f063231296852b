//! Checks evidence logs from outside: that each is whole and signed, that it says what became of
//! each event, and that a consumer has the lines that left.
//!
//! Nothing is written but temporary files (see `compare`). A directory may be a copy, or the one
//! that a relay writes to meanwhile. Therefore the order of reading matters: the stored lines come
//! first, then the places of the outputs, the journal, the checkpoint, and last all that the
//! checkpoint covers. Only that is proven. An event that is not covered is called newer, and is
//! never a fault and never a pass.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `bounds` `compare` `positions` `report` `request` `stored` | entries that no relay writes · hashes in any number and order · a set of positions · counts and faults · what is asked · the lines of a file |
//! | 2 | `hashes` `live` `runs` `proof` | line hashes by their roots · the wait for a checkpoint · starts, stops and silence · a proof by itself |
//! | 3 | `history` | what the entries say together |
//! | 4 | `log` | a log and its checkpoints |
//! | 5 | `store` `queue` `witnesses` | a consumer's lines and checkpoints · the lines in the queue · what witnesses have seen |
//! | 6 | `events` | the fates of events, and the lines that left |
//! | 7 | `published` | a log that a server has |

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::evidence::DIRECTORY;
use crate::evidence::reader::Directory;
use crate::evidence::reader::Log;

mod bounds;
mod compare;
mod events;
mod hashes;
mod history;
mod live;
mod log;
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

use events::Compared;
use events::Left;
use live::Deadline;
use log::Check;
use log::Entries;
pub use published::published;
use queue::Places;
use queue::Queue;
use report::Report;
pub use request::Request;
use store::Store;

/// A directory with a log.
struct Place {
    /// The queue's directory, or that of a log that was kept aside in it.
    queue: PathBuf,
    files: Directory,
    deadline: Deadline,
    /// If the relay is running: the position after the last event of the queue when the stored
    /// lines were read.
    live: Option<u64>,
    beside: Option<Queue>,
}

/// A log that was read.
struct Read<'a> {
    check: Check<'a>,
    log: Option<Log<'a>>,
    places: Places,
    is_covered: bool,
}

/// Checks the logs in some directories: each a queue's, the log's own, or a copy of either. The
/// stored lines are compared with those that left by any of them. `read` is called with the number
/// of bytes of stored lines that were read since the last call.
///
/// # Errors
///
/// A file can't be read. Something that is missing or wrong is not an error: the report has it.
pub fn directories(
    directories: &[PathBuf],
    request: &Request,
    read: &mut dyn FnMut(u64),
) -> io::Result<Report> {
    let mut store = match request.events.is_empty() {
        false => Some(Store::read(request, read)?),
        true => None,
    };
    let (mut report, mut places) = (Report::default(), Vec::new());
    for directory in directories {
        match Place::open(directory, request)? {
            Some(place) => places.push(place),
            None => report.append(log::absent(directory.display()), None),
        }
    }
    let mut logs = Vec::new();
    for place in &places {
        logs.push(place.read(request, store.is_some())?);
    }
    drop_repeated(&mut logs, &mut report);
    checkpoints(&mut logs);
    let mut compared = compared(&mut logs, &places, request, store.as_mut())?;
    if let Some(store) = &mut store {
        name_outputs(&compared, request, &mut report);
        for kept in &store.kept {
            let name = store.name_of_checkpoint(kept.place);
            let text = format!("{name} is of {}, and no --directory has this log", kept.origin);
            report.unchecked.push(text);
        }
        let of_lines = events::compare(&mut compared, store)?;
        report.append(of_lines, None);
        report.append(std::mem::take(&mut store.report), None);
    }
    let is_one = logs.len() == 1;
    for read in logs {
        let origin = read.origin().filter(|_| !is_one);
        report.append(read.check.end(), origin.as_deref());
    }
    Ok(report)
}

/// Compares the checkpoints that were given with each log.
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

/// Checks the events of each log. Adds the lines that left to the store.
fn compared<'a, 'b>(
    logs: &'b mut [Read<'a>],
    places: &[Place],
    request: &Request,
    mut store: Option<&mut Store>,
) -> io::Result<Vec<Compared<'a, 'b>>> {
    let starts: Vec<_> = logs.iter().map(|log| log.check.history.runs.started_at).collect();
    let sources = u16::try_from(request.outputs.len()).unwrap_or(u16::MAX);
    let mut compared = Vec::new();
    for (at, (read, place)) in (0..).zip(logs.iter_mut().zip(places)) {
        let Read { check, log, places: outputs, is_covered } = read;
        let end = place.live.unwrap_or(u64::MAX);
        if let (Some(log), Some(store)) = (&*log, &mut store) {
            check.kept(store, log);
        }
        let first = sources.saturating_mul(at).saturating_add(1);
        let mut left = Left::new(first, end, check, store.as_deref());
        if let Some(log) = log {
            check.events(log, &mut left, store.as_deref_mut())?;
        }
        if let Some(queue) = &place.beside {
            check.queue(queue, outputs, store.as_mut().map(|store| &mut store.comparison))?;
        }
        // A log that was kept aside ends where the one after it begins.
        let beside = places.iter().zip(&starts).filter(|(other, _)| other.is_beside(place));
        let last = check.history.runs.last_at;
        check.judge(beside.filter_map(|(_, start)| start.filter(|at| Some(*at) >= last)).min());
        compared.push(Compared { check, left, is_covered: *is_covered });
    }
    Ok(compared)
}

impl Read<'_> {
    /// Returns the name of the log; `None` if it has no checkpoint.
    fn origin(&self) -> Option<String> {
        self.log.as_ref().map(|log| log.origin().to_owned())
    }
}

impl Place {
    /// Opens a directory; `None` if it has no log.
    fn open(directory: &Path, request: &Request) -> io::Result<Option<Self>> {
        let Ok(files) = Directory::find(directory) else {
            std::fs::read_dir(directory)?;
            return Ok(None);
        };
        let is_below = files.is_below(directory);
        let log = if is_below { directory.join(DIRECTORY) } else { directory.to_owned() };
        let queue = match is_below {
            true => directory.to_owned(),
            false => std::fs::canonicalize(&log)?.parent().unwrap_or(directory).to_owned(),
        };
        // A log in a directory with another name than `evidence` was kept aside, and no relay
        // writes to it.
        let is_own = is_below || log.canonicalize()?.ends_with(DIRECTORY);
        let owner = match is_own {
            true if is_below => Queue::open(&queue)?,
            // Only the log is asked about.
            true => Queue::open(&queue).ok().flatten(),
            false => None,
        };
        let in_use = owner.as_ref().filter(|queue| queue.is_in_use());
        let live = in_use.map(Queue::end).transpose()?;
        let deadline = Deadline::new(request, &files, &log);
        let beside = owner.filter(|_| is_below);
        Ok(Some(Self { queue, files, deadline, live, beside }))
    }

    /// Returns `true` if another log lies in the same queue's directory.
    fn is_beside(&self, other: &Self) -> bool {
        let same = |place: &Self| place.queue.canonicalize().ok();
        !std::ptr::eq(self, other) && same(self) == same(other)
    }

    /// Reads the log. If the relay is running, waits for a checkpoint that covers what the consumer
    /// may have.
    fn read<'a>(&'a self, request: &'a Request, has_lines: bool) -> io::Result<Read<'a>> {
        let mut is_covered = false;
        if let Some(end) = self.live {
            is_covered = self.deadline.wait_for_events(&self.files, end);
        }
        loop {
            let places = self.beside.as_ref().map(Queue::places).transpose()?.unwrap_or_default();
            let journal = self.files.journal()?;
            let mut check = Check::new(request, Some(&self.files), self.live.is_some());
            let log = check.log(&self.files, journal)?;
            let size = log.as_ref().map_or(0, Log::size);
            let waits = self.live.is_some_and(|end| {
                check.entries == Entries::Torn
                    || check.is_silent()
                    || (has_lines && check.is_pending_before(end))
            });
            if !waits || !self.deadline.wait_for_entries(&self.files, size) {
                if let Some(end) = self.live {
                    check.uncovered_before(end);
                }
                return Ok(Read { check, log, places, is_covered });
            }
        }
    }
}

impl Check<'_> {
    /// Reports the events of the queue before the position `end` that no checkpoint covers.
    fn uncovered_before(&mut self, end: u64) {
        let next = self.history.recorded_until();
        if next < end {
            self.report.unchecked.push(format!(
                "positions {next} to {}: no checkpoint covers these events of the queue",
                end - 1
            ));
        }
    }

    /// Returns `true` if an event before a position has no fate at an output that is asked about.
    fn is_pending_before(&self, end: u64) -> bool {
        let outputs = self.request.outputs.iter().filter_map(|it| self.history.outputs.get(it));
        let accepted: Vec<_> = self.history.accepted.within(0..end).collect();
        outputs
            .into_iter()
            .any(|output| accepted.iter().any(|range| !output.pending_in(range.clone()).is_empty()))
    }

    /// Compares the checkpoints among the stored lines with the log of their origin.
    fn kept(&mut self, store: &mut Store, log: &Log<'_>) {
        let own = log.signed.checkpoint.clone();
        let is_own = |kept: &mut store::Kept| kept.origin == own.origin;
        for kept in store.kept.extract_if(.., is_own).collect::<Vec<_>>() {
            let name = store.name_of_checkpoint(kept.place);
            if kept.head.size <= own.head.size {
                self.compare_root(&name, kept.head, log);
                continue;
            }
            // The log continued, so a stop at its end is not its last entry.
            self.goes_on = true;
            self.report.counts.newer += 1;
            let last = self.last_checkpoint();
            self.report.unchecked.push(format!(
                "{name} covers {} entries, and the log has only {}: it is newer than {last}, or the \
                 end of the log was cut off",
                kept.head.size, own.head.size
            ));
        }
    }

    fn end(self) -> Report {
        let mut report = self.report;
        let (history, spans) = (self.history, self.spans);
        report.notes.extend(history.notes);
        report.faults.add_times(|position| log::time_of(&spans, position));
        report
    }
}

/// Leaves out each log whose origin an earlier log has already.
fn drop_repeated(logs: &mut [Read<'_>], report: &mut Report) {
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

/// Reports the requested outputs that no log has.
fn name_outputs(logs: &[Compared<'_, '_>], request: &Request, report: &mut Report) {
    for output in &request.outputs {
        if !logs.iter().any(|log| log.check.history.outputs.contains_key(output)) {
            report.unchecked.push(format!("the log has no output {output}"));
        }
    }
}
