//! The check of lines: those that a consumer has stored, and those in the queue.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::compare::Comparison;
use super::compare::Differences;
use super::compare::Kind;
use super::hashes::Found;
use super::log::Check;
use super::positions::Positions;
use super::stored;
use super::stored::Line;
use crate::evidence::entry::Entry;
use crate::evidence::entry::Fate;
use crate::evidence::entry::Offset;
use crate::evidence::entry::RANGE_MAX;
use crate::evidence::reader::Files;
use crate::evidence::reader::Log;
use crate::queue::inspect;
use crate::queue::inspect::Seen;
use crate::tlog::merkle::Hash;
use crate::tlog::merkle::Hasher;

/// The question of an auditor where a consumer's lines are not those that left.
const WHO_CHANGED: &str = "who could change the consumer's store since this time?";

/// The question of an auditor where the queue's files are not what came in.
const WHO_WROTE_QUEUE: &str = "who could write to the queue's directory since this time?";

/// A queue beside the evidence, and how far its outputs were when the check began.
pub(super) struct Queue {
    directory: inspect::Directory,
    places: Vec<(String, u64)>,
}

impl Queue {
    /// Opens the queue in a directory; `None` if there is none.
    pub(super) fn open(directory: Option<&Path>) -> io::Result<Option<Self>> {
        let Some(directory) = directory else { return Ok(None) };
        let directory = match inspect::Directory::open(directory) {
            Ok(directory) => directory,
            Err(inspect::Error::NoQueue(_)) => return Ok(None),
            Err(error) => return Err(io::Error::other(error)),
        };
        let places = directory.places().map_err(io::Error::other)?;
        let places = places.into_iter().map(|(name, place)| (name, place.get())).collect();
        Ok(Some(Self { directory, places }))
    }
}

impl Check<'_> {
    /// Returns the hashes of the lines at these positions as they came in; `None` for those whose
    /// hashes are gone.
    fn accepted(&mut self, positions: Range<u64>) -> io::Result<Vec<Option<Hash>>> {
        let mut found = Vec::new();
        let mut next = positions.start;
        while next < positions.end {
            let range = self.hashed.range(..=next).next_back();
            let range = range.filter(|(_, (end, _))| next < *end).map(|(at, it)| (*at, *it));
            let Some((first, (end, root))) = range else {
                found.push(None);
                next += 1;
                continue;
            };
            let end = end.min(positions.end);
            match self.hashes.range(None, first, root)? {
                Found::Range(range) => {
                    let at = |position: u64| usize::try_from(position - first).unwrap_or(0);
                    let hashes = range.lines.get(at(next)..at(end)).unwrap_or_default();
                    found.extend(hashes.iter().copied().map(Some));
                }
                Found::Changed | Found::Gone => found.extend((next..end).map(|_| None)),
            }
            next = end;
        }
        Ok(found)
    }

    /// Compares the lines that left with those that are stored, if there are any. Without stored
    /// lines, counts the events that came in.
    pub(super) fn events<F: Files>(
        &mut self,
        files: &F,
        read: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let Some(mut comparison) = self.comparison.take() else {
            self.count_accepted();
            return Ok(());
        };
        let output = self.request.output.as_deref().unwrap_or_default();
        if !self.history.outputs.contains_key(output) {
            let text = format!("the log has no output {output}");
            self.report.unchecked.push(text);
        }
        self.add_pending(output, &mut comparison)?;
        self.add_stored(files, &mut comparison, read)?;
        let differences = comparison.differences()?;
        let changed = changed(&differences, &mut comparison)?;
        self.tell(&differences, &changed);
        Ok(())
    }

    /// Counts the events that came in, where no stored lines are there to be compared.
    fn count_accepted(&mut self) {
        let (mut unknown, mut pending) = (0, Positions::default());
        let asked = self.request.output.as_ref();
        let outputs = self.history.outputs.iter();
        let outputs: Vec<_> = outputs.filter(|it| asked.is_none_or(|name| name == it.0)).collect();
        for range in self.window.ranges() {
            unknown += self.unhashed.len_within(range.clone());
            for (_, output) in &outputs {
                output.pending_in(range.clone()).into_iter().for_each(|it| pending.insert(it));
            }
        }
        let counts = &mut self.report.counts;
        counts.events = self.window.len();
        counts.found = counts.events - unknown;
        (counts.pending, counts.unknown) = (pending.len(), unknown);
        let text = "proven: positions. No event is missing in the log. Without --events, nobody \
                    knows what the consumer has stored";
        self.report.notes.push(text.to_owned());
    }

    /// Adds the lines that left by an entry about deliveries, if lines are compared.
    pub(super) fn add_left(&mut self, entry: &Entry) -> io::Result<()> {
        let Some(mut comparison) = self.comparison.take() else { return Ok(()) };
        let added = self.add_lines(entry, &mut comparison);
        self.comparison = Some(comparison);
        added
    }

    fn add_lines(&mut self, entry: &Entry, comparison: &mut Comparison) -> io::Result<()> {
        let Entry::Delivered { output, first, count, root, not_delivered, changed, .. } = entry
        else {
            return Ok(());
        };
        self.left.changes |= !changed.is_empty();
        let is_filtered = !changed.is_empty()
            || not_delivered.values().any(|it| matches!(it, Fate::Dropped | Fate::Duplicate));
        let own = match root {
            Some(root) => match self.hashes.range(Some(output), *first, *root)? {
                Found::Range(range) => range.lines.clone(),
                Found::Changed | Found::Gone => Vec::new(),
            },
            None => Vec::new(),
        };
        let mut own = own.into_iter();
        let range = *first..first.saturating_add(*count);
        let accepted = self.accepted(range.clone())?;
        for (position, as_it_came) in range.zip(accepted) {
            if !self.history.accepted.contains(position) {
                // The queue lost it before its line was hashed, or the history has named a fault.
                if self.history.lost.contains(position) {
                    self.left.unhashed.insert(position..position + 1);
                    self.left.unexplained += 1;
                }
                continue;
            }
            match not_delivered.get(&Offset(position - first)) {
                None => {}
                Some(Fate::Lost | Fate::DeadLetter) => {
                    self.left.unexplained += 1;
                    // A consumer may have taken a part of a request that it refused.
                    if let Some(hash) = as_it_came {
                        comparison.add(hash, Kind::Allowed, position)?;
                    }
                    continue;
                }
                Some(Fate::Dropped | Fate::Duplicate) => continue,
            }
            let hash = match (root, is_filtered) {
                (Some(_), _) => own.next(),
                (None, false) => as_it_came,
                // The hashes of the lines were forgotten.
                (None, true) => None,
            };
            let is_asked = self.window.contains(position);
            if is_asked {
                self.left.asked.insert(position..position + 1);
            }
            match hash {
                Some(hash) => {
                    let kind = if is_asked { Kind::Left } else { Kind::Outside };
                    comparison.add(hash, kind, position)?;
                }
                None => self.left.unhashed.insert(position..position + 1),
            }
        }
        Ok(())
    }

    /// Adds the lines of events that the output lost. The consumer may have got them before.
    pub(super) fn add_lost(&mut self, range: Range<u64>) -> io::Result<()> {
        let Some(mut comparison) = self.comparison.take() else { return Ok(()) };
        let accepted: Vec<_> = self.history.accepted.within(range).collect();
        let mut added = Ok(());
        for range in accepted {
            self.left.unexplained += range.end - range.start;
            added = added.and_then(|()| self.allow(range, &mut comparison));
        }
        self.comparison = Some(comparison);
        added
    }

    /// Adds lines that the consumer may have, as they came in.
    fn allow(&mut self, range: Range<u64>, comparison: &mut Comparison) -> io::Result<()> {
        let mut next = range.start;
        while next < range.end {
            let end = range.end.min(next.saturating_add(RANGE_MAX));
            for (position, hash) in (next..end).zip(self.accepted(next..end)?) {
                if let Some(hash) = hash {
                    comparison.add(hash, Kind::Allowed, position)?;
                }
            }
            next = end;
        }
        Ok(())
    }

    /// Adds the lines that may have left, and of which the log does not say so yet.
    fn add_pending(&mut self, output: &str, comparison: &mut Comparison) -> io::Result<()> {
        let Some(of_output) = self.history.outputs.get(output) else { return Ok(()) };
        let accepted = self.history.accepted.ranges();
        let open: Vec<_> = accepted.flat_map(|range| of_output.pending_in(range)).collect();
        for range in open {
            self.left.pending += self.window.len_within(range.clone());
            self.allow(range, comparison)?;
        }
        Ok(())
    }

    /// Reads the stored lines. Checkpoints among them are checked at once.
    fn add_stored<F: Files>(
        &mut self,
        files: &F,
        comparison: &mut Comparison,
        read: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let log = Log::open(files).ok();
        let (mut place, mut notes) = (0, BTreeSet::new());
        for path in &self.request.events {
            let mut line = |line| {
                match line {
                    Line::Event { hash, plain } => {
                        let kind = if plain.is_some() { Kind::Either } else { Kind::Stored };
                        comparison.add(hash, kind, place)?;
                        if let Some(plain) = plain {
                            comparison.add(plain, Kind::Plain, place)?;
                        }
                        place += 1;
                    }
                    Line::Checkpoint(note) => {
                        // The same one may have come twice.
                        if notes.insert(Hash::of(&[&note]))
                            && let Some(log) = &log
                        {
                            self.checkpoint("a checkpoint among the stored lines", &note, log);
                        }
                    }
                }
                Ok(())
            };
            stored::read(path, &mut line, read).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
            // Lines of two files are no neighbours.
            place += 2;
        }
        Ok(())
    }

    /// Adds the differences to the report.
    fn tell(&mut self, differences: &Differences, changed: &BTreeSet<u64>) {
        let left = std::mem::take(&mut self.left);
        let unknown: u64 = self.window.ranges().map(|range| left.unhashed.len_within(range)).sum();
        // Without line hashes nobody knows how these lines looked.
        let changed_or_lost = left.pending + left.unexplained;
        let may_fit = unknown + if left.changes { changed_or_lost } else { 0 };
        let extra = differences.extra_count - changed.len() as u64;
        let unexplained = extra.min(may_fit);
        let counts = &mut self.report.counts;
        counts.events = left.asked.len();
        counts.found = differences.found;
        counts.missing = differences.missing_count - changed.len() as u64;
        counts.changed = changed.len() as u64;
        counts.forged = extra - unexplained;
        counts.duplicate = differences.duplicate;
        (counts.pending, counts.unknown) = (left.pending, unknown);
        if differences.ambiguous > 0 {
            let text = format!(
                "{} stored lines may each be either of two events that left, with and without \
                 kind and apiVersion",
                differences.ambiguous
            );
            self.report.unchecked.push(text);
        }
        if differences.with_added > 0 && differences.without_added > 0 {
            let text = format!(
                "{} stored lines have kind and apiVersion, which the events that left lack, and {} \
                 have not: an output with format = \"audit_log\" adds them to each event",
                differences.with_added, differences.without_added
            );
            self.report.unchecked.push(text);
        }
        if unexplained > 0 {
            let text = format!("{unexplained} stored lines, which may be events without a hash");
            self.report.unchecked.push(text);
        }
        let forged = counts.forged;
        let faults = &mut self.report.faults;
        let output = self.request.output.as_deref().unwrap_or_default();
        let mut missing = Positions::default();
        let not_there = differences.missing.iter().filter(|it| !changed.contains(it));
        not_there.for_each(|position| missing.insert(*position..position + 1));
        for range in missing.ranges() {
            let count = range.end - range.start;
            let text = match count {
                1 => format!("the event left by {output}, and its line is not stored"),
                _ => format!("{count} events left by {output}, and their lines are not stored"),
            };
            faults.add_at(range.start, None, WHO_CHANGED, text);
        }
        for position in changed {
            let text = format!("the event left by {output}, and another line is in its place");
            faults.add_at(*position, None, WHO_CHANGED, text);
        }
        if forged > 0 {
            let places = differences.extra.iter().take(5).map(|place| (place + 1).to_string());
            let places: Vec<_> = places.collect();
            let text = match changed.is_empty() && unexplained == 0 {
                true => format!(
                    "{forged} stored lines never left by {output}: the first are lines {} of what \
                     was read",
                    places.join(", ")
                ),
                false => format!("{forged} stored lines never left by {output}"),
            };
            faults.add(None, "who could add lines to the consumer's store?", text);
        }
        if differences.found > 0 || left.asked.len() == 0 {
            let text = "proven: bytes. Each line that was found is the one that left";
            self.report.notes.push(text.to_owned());
        } else {
            let text = "proven: positions. No stored line is one that left; a store that writes \
                        events in its own way can't be compared byte by byte";
            self.report.notes.push(text.to_owned());
        }
    }

    /// Compares the lines in the queue with their hashes, and the places of its outputs with the
    /// log.
    pub(super) fn queue(&mut self, queue: &Queue) -> io::Result<()> {
        self.places(queue);
        let mut lines = QueueLines::default();
        let mut findings = Vec::new();
        let told = queue.directory.export(None, &mut |seen| {
            match seen {
                Seen::At(position) => lines.begin(position.get()),
                Seen::Lines(bytes) => lines
                    .take(bytes, |position, hash| self.compare_stored_in_queue(position, hash))?,
                Seen::Finding(finding) => findings.push(finding.to_string()),
                Seen::Progress(..) => {}
            }
            Ok(())
        });
        told.map_err(io::Error::other)?;
        for finding in findings {
            self.report.faults.add(None, WHO_WROTE_QUEUE, format_args!("the queue: {finding}"));
        }
        Ok(())
    }

    fn compare_stored_in_queue(&mut self, position: u64, hash: Hash) -> io::Result<()> {
        if position >= self.history.next()
            && let Some(mut comparison) = self.comparison.take()
        {
            // The relay has not come to hash this event. The consumer may have it nevertheless.
            self.left.unexplained += 1;
            let added = comparison.add(hash, Kind::Allowed, position);
            self.comparison = Some(comparison);
            return added;
        }
        let expected = self.accepted(position..position.saturating_add(1))?;
        if let Some(Some(expected)) = expected.first()
            && *expected != hash
        {
            let text = "the queue has another line than the one that came in";
            self.report.faults.add_at(position, None, WHO_WROTE_QUEUE, text);
        }
        Ok(())
    }

    /// Checks that the log and its journal say what became of all events before the place of each
    /// output.
    fn places(&mut self, queue: &Queue) {
        for (name, place) in &queue.places {
            let output = self.history.outputs.get(name).filter(|output| output.is_there);
            // An output that has just joined is in no entry yet.
            let Some(output) = output else { continue };
            let accepted = self.history.accepted.within(0..*place);
            let mut open: Vec<_> = accepted.flat_map(|range| output.pending_in(range)).collect();
            let next = self.history.next();
            if (1..*place).contains(&next) {
                open.push(next..*place);
            }
            for range in open {
                let count = range.end - range.start;
                let text = format!(
                    "the queue says that {name} is finished with {count} events, and the log does \
                     not: the end of the log was cut off, or the queue's cursors were changed"
                );
                self.report.faults.add_at(range.start, None, WHO_WROTE_QUEUE, text);
            }
        }
    }
}

/// Finds the stored lines that lie where a line is missing. Returns the positions.
fn changed(differences: &Differences, comparison: &mut Comparison) -> io::Result<BTreeSet<u64>> {
    if differences.missing.is_empty() || differences.extra.is_empty() {
        return Ok(BTreeSet::new());
    }
    let beside = |place: &u64| [place.saturating_sub(1), place + 1];
    let places: BTreeSet<_> = differences.extra.iter().flat_map(beside).collect();
    let known = comparison.positions_at(&places)?;
    let (mut missing, mut changed) = (differences.missing.clone(), BTreeSet::new());
    let mut last = None;
    for place in &differences.extra {
        // A line beside a changed one is behind it.
        let before = place.checked_sub(1).and_then(|at| known.get(&at).copied());
        let before = before.or(last.filter(|(at, _)| at + 1 == *place).map(|(_, it)| it));
        let behind = known.get(&(place + 1)).copied();
        let found = match (before, behind) {
            (Some(before), Some(behind)) if before < behind => {
                missing.range(before + 1..behind).next().copied()
            }
            (Some(before), _) => missing.range(before + 1..).next().copied(),
            (None, Some(behind)) => missing.range(..behind).next_back().copied(),
            (None, None) => None,
        };
        if let Some(position) = found {
            missing.remove(&position);
            changed.insert(position);
            last = Some((*place, position));
        }
    }
    Ok(changed)
}

/// The lines of the queue, which come in pieces.
#[derive(Default)]
struct QueueLines {
    next: u64,
    open: Option<Hasher>,
}

impl QueueLines {
    /// The next lines begin with the event at this position.
    fn begin(&mut self, position: u64) {
        (self.next, self.open) = (position, None);
    }

    /// Takes the next bytes. Calls `line` with the position and the hash of each line that ends in
    /// them.
    fn take(
        &mut self,
        mut bytes: &[u8],
        mut line: impl FnMut(u64, Hash) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (last, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            let mut hasher = self.open.take().unwrap_or_default();
            hasher.update(last);
            line(self.next, hasher.finish())?;
            self.next += 1;
        }
        if !bytes.is_empty() {
            self.open.get_or_insert_default().update(bytes);
        }
        Ok(())
    }
}
