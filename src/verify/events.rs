//! The check of events: what became of them at each output, and whether a consumer has the lines
//! that left.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use super::compare::Comparison;
use super::compare::Differences;
use super::compare::Kind;
use super::compare::Place;
use super::hashes::Found;
use super::history::GIVEN_UP;
use super::log::Check;
use super::log::Ending;
use super::log::WHO_WROTE;
use super::positions::Positions;
use super::report::Report;
use super::report::time;
use super::store::Store;
use crate::evidence::entry::Delivered;
use crate::evidence::entry::Entry;
use crate::evidence::entry::Fate;
use crate::evidence::entry::Offset;
use crate::evidence::entry::RANGE_MAX;
use crate::evidence::reader::Log;
use crate::tlog::merkle::Frontier;
use crate::tlog::merkle::Hash;

/// The question for the auditor when a consumer's lines are not those that left.
const WHO_CHANGED: &str = "who could change the consumer's store since this time?";

/// A line that was delivered less than this many milliseconds before the export may be missing from
/// the stored lines.
const EXPORT_SLACK: u64 = 500;

/// The maximum number of stored lines that a fault names.
const PLACES_MAX: usize = 20;

/// The statements of a log about the fates of events at one output.
#[derive(Default)]
pub(super) struct Fates {
    /// The events with a fate. An event whose fate is recorded again after a crash counts once.
    seen: Positions,
    changed: u64,
    not_delivered: BTreeMap<Fate, u64>,
}

/// The lines of one log that left by the outputs that are asked about.
#[derive(Default)]
pub(super) struct Left {
    /// The source of the lines that left by the request's first output, in this log. Each further
    /// output of the request has the next number.
    first_source: u16,
    /// The events that left and are asked about, by the source of the lines.
    pub(super) asked: BTreeMap<u16, Positions>,
    /// The events whose line hash is gone.
    unhashed: Positions,
    /// The number of events whose fate is not in the log yet.
    pending: u64,
    /// The number of events that the consumer may have got although the log calls them lost. Their
    /// form is unknown if the filter changes events.
    unexplained: u64,
    /// The number of events that may have been sent twice, in different forms.
    twice: u64,
    /// The number of events without a fate that were in the queue when the stored lines were read.
    open: u64,
    /// The position after the last of the events that were in the queue then.
    end: u64,
    /// `true`: the filter of the output changes events.
    changes: bool,
    /// `true`: the filter of the output changes or drops events.
    filters: bool,
    /// Lines that left at this time or later may have left after the export.
    late_from: u64,
    fates: BTreeMap<String, Fates>,
}

/// An event of an entry about deliveries: its position, its fate if its line did not leave, and the
/// hash of its line if that is known.
type Settled = (u64, Option<Fate>, Option<Hash>);

impl Left {
    /// `first_source` is the source of the lines of the first output. `end` is the position after
    /// the last event that was in the queue when the stored lines were read.
    pub(super) fn new(
        first_source: u16,
        end: u64,
        check: &Check<'_>,
        store: Option<&Store>,
    ) -> Self {
        let exported_at = store.map_or(u64::MAX, |store| store.exported_at);
        let slack = match check.ending() {
            // Nothing was delivered after the stop.
            Ending::Stopped(at) if at <= exported_at => 0,
            Ending::Stopped(_) | Ending::Live | Ending::Open => EXPORT_SLACK,
        };
        let late_from = exported_at.saturating_sub(slack);
        Self { first_source, end, late_from, ..Self::default() }
    }

    /// Returns the source of the lines of an output; `None` if the request does not ask about it.
    fn source(&self, check: &Check<'_>, output: &str) -> Option<u16> {
        let at = check.request.outputs.iter().position(|asked| asked == output)?;
        Some(self.first_source.saturating_add(u16::try_from(at).ok()?))
    }
}

impl Check<'_> {
    /// Reads the entries once more, counts the fates of the events, and, if there is a store, adds
    /// the lines that left to the comparison.
    pub(super) fn events(
        &mut self,
        log: &Log<'_>,
        left: &mut Left,
        mut store: Option<&mut Store>,
    ) -> io::Result<()> {
        if !self.is_whole() {
            return Ok(());
        }
        let mut frontier = Frontier::default();
        for (_, bytes) in log.entries().map_while(Result::ok) {
            frontier.push(Hash::of_leaf(&bytes), &mut |_, _| {});
            let Ok(entry) = Entry::parse(&bytes) else { continue };
            if let Entry::Delivered(delivered) = &entry {
                self.count(delivered, left);
            }
            if let Some(store) = &mut store {
                self.add_left(&entry, left, &mut store.comparison)?;
            }
        }
        if frontier.root() != log.head().root {
            let text = "the files of the log were changed while they were read";
            self.report.faults.add(None, WHO_WROTE, text);
            return Ok(());
        }
        match store {
            Some(store) => {
                self.add_pending(left, &mut store.comparison)?;
                self.add_journal(left, &mut store.comparison)?;
                self.count_left(left);
            }
            None => self.count_accepted(),
        }
        self.tell_fates(left);
        Ok(())
    }

    /// Counts the fates of events at an output.
    fn count(&self, entry: &Delivered, left: &mut Left) {
        let fates = left.fates.entry(entry.output.clone()).or_default();
        let is_new = |offset: &Offset| {
            let position = entry.first.saturating_add(offset.0);
            self.asked.positions.contains(&position) && !fates.seen.contains(position)
        };
        fates.changed += entry.changed.iter().filter(|offset| is_new(offset)).count() as u64;
        for (_, fate) in entry.not_delivered.iter().filter(|it| is_new(it.0)) {
            *fates.not_delivered.entry(*fate).or_default() += 1;
        }
        fates.seen.insert(entry.range());
    }

    /// Adds a line for each output to the report.
    fn tell_fates(&mut self, left: &Left) {
        let none = Fates::default();
        let asked = self.asked.positions.clone();
        for (name, output) in &self.history.outputs {
            let fates = left.fates.get(name).unwrap_or(&none);
            let mut lost = Positions::default();
            let mut given_up = 0;
            for ((of, reason), positions) in &self.history.losses {
                if of == name {
                    match reason == GIVEN_UP {
                        true => given_up += positions.len_within(asked.clone()),
                        false => positions.within(asked.clone()).for_each(|it| lost.insert(it)),
                    }
                }
            }
            let not_its_own = self.history.not_its_own(output).len_within(asked.clone());
            let of = |fate| fates.not_delivered.get(&fate).copied().unwrap_or_default();
            let (dropped, duplicate) = (of(Fate::Dropped), of(Fate::Duplicate));
            self.report.outputs.push(format!(
                "output {name}: dropped {dropped}, duplicate {duplicate}, changed {}, given up \
                 {given_up}, dead letters {}, lost {}, not its own {not_its_own}",
                fates.changed,
                of(Fate::DeadLetter),
                lost.len()
            ));
            if self.request.asks_of(name) {
                self.report.counts.dropped += dropped;
            }
        }
    }

    /// Counts the events that came in, for a check without stored lines.
    fn count_accepted(&mut self) {
        let (mut unknown, mut pending) = (0, Positions::default());
        for range in self.asked.events.ranges() {
            unknown += self.hashes.gone.len_within(range.clone());
            for (name, output) in &self.history.outputs {
                if self.request.asks_of(name) {
                    output.pending_in(range.clone()).into_iter().for_each(|it| pending.insert(it));
                }
            }
        }
        let counts = &mut self.report.counts;
        counts.events.all = self.asked.events.len();
        counts.events.good = counts.events.all - unknown;
        (counts.pending, counts.unknown) = (pending.len(), unknown);
        counts.without_evidence = self.history.off.len_within(self.asked.positions.clone());
        let is_whole = counts.events.all > 0 && self.report.faults.count() == 0;
        let no_gap = if is_whole { "No event is missing in the log. " } else { "" };
        self.report.notes.push(format!(
            "proven: positions. {no_gap}Without --events, nobody knows what the consumer has stored"
        ));
    }

    /// Counts the lines that left.
    fn count_left(&mut self, left: &Left) {
        let unknown = self.asked.events.ranges().map(|range| left.unhashed.len_within(range)).sum();
        let counts = &mut self.report.counts;
        counts.events.all = left.asked.values().map(Positions::len).sum();
        (counts.pending, counts.unknown) = (left.pending, unknown);
        if unknown > 0 {
            let text = format!("{unknown} lines left, and their hashes are gone");
            self.report.unchecked.push(text);
        }
    }

    /// Adds the lines of an entry.
    fn add_left(
        &mut self,
        entry: &Entry,
        left: &mut Left,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        if let Entry::Delivered(entry) = entry {
            return match left.source(self, &entry.output) {
                Some(source) => self.add_lines(entry, source, left, comparison),
                None => self.add_elsewhere(entry, comparison),
            };
        }
        if let Entry::Lost { output, first: Some(first), count, .. } = entry
            && let Some(source) = left.source(self, output)
        {
            // The consumer may have got the events before they were lost.
            let range = *first..first.saturating_add(*count);
            let accepted: Vec<_> = self.history.accepted.within(range).collect();
            for range in accepted {
                left.unexplained += range.end - range.start;
                self.allow(range, source, comparison)?;
            }
        }
        Ok(())
    }

    /// Returns for each event of an entry about deliveries whether a line left, and its hash if it
    /// is known.
    fn lines_of(&mut self, entry: &Delivered) -> io::Result<Vec<Settled>> {
        let Delivered { output, first, root, not_delivered, changed, .. } = entry;
        let is_filtered = !changed.is_empty()
            || not_delivered.values().any(|it| matches!(it, Fate::Dropped | Fate::Duplicate));
        let mut own = Vec::new().into_iter();
        if let Some(root) = root
            && let Found::Range(range) = self.hashes.range(Some(output), *first, *root)?
        {
            own = range.lines.clone().into_iter();
        }
        let accepted = self.accepted(entry.range())?;
        let line = |(position, as_it_came): (u64, Option<Hash>)| {
            let fate = not_delivered.get(&Offset(position - first)).copied();
            let hash = match (fate, root, is_filtered) {
                (Some(_), _, _) => as_it_came,
                (None, Some(_), _) => own.next(),
                (None, None, false) => as_it_came,
                // A filter has changed or dropped events, but the entry has no root over the lines
                // that left.
                (None, None, true) => None,
            };
            (position, fate, hash)
        };
        Ok(entry.range().zip(accepted).map(line).collect())
    }

    fn add_lines(
        &mut self,
        entry: &Delivered,
        source: u16,
        left: &mut Left,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        let changes = !entry.changed.is_empty();
        left.changes |= changes;
        left.filters |= changes || entry.not_delivered.values().any(|it| *it == Fate::Dropped);
        if self.may_have_two_forms(entry.first, entry.at) {
            left.twice += entry.count;
            self.add_earlier(entry, source, comparison)?;
        }
        for (position, fate, hash) in self.lines_of(entry)? {
            if !self.history.accepted.contains(position) {
                // The queue lost the event before its line was hashed, or `history` has reported a
                // fault already.
                if self.history.lost.contains(position) {
                    left.unhashed.insert(position..position + 1);
                    left.unexplained += 1;
                }
                continue;
            }
            match fate {
                None => {}
                Some(Fate::Lost | Fate::DeadLetter) => {
                    left.unexplained += 1;
                    // A consumer may have taken a part of a request that it refused.
                    if let Some(hash) = hash {
                        comparison.add(hash, Kind::Allowed, (source, position))?;
                    }
                    continue;
                }
                Some(Fate::Dropped | Fate::Duplicate) => continue,
            }
            let is_asked = self.asked.events.contains(position);
            if is_asked {
                left.asked.entry(source).or_default().insert(position..position + 1);
            }
            match hash {
                Some(hash) => {
                    let kind = match is_asked {
                        true if entry.at > left.late_from => Kind::Late,
                        true => Kind::Left,
                        false => Kind::Outside,
                    };
                    comparison.add(hash, kind, (source, position))?;
                }
                None => left.unhashed.insert(position..position + 1),
            }
        }
        Ok(())
    }

    /// Adds the events of an entry that were dropped or changed, as they came in, because they may
    /// have left in this form before.
    fn add_earlier(
        &mut self,
        entry: &Delivered,
        source: u16,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        let dropped = entry.not_delivered.iter().filter(|(_, fate)| **fate == Fate::Dropped);
        let offsets: BTreeSet<_> = dropped.map(|it| it.0).chain(&entry.changed).copied().collect();
        if offsets.is_empty() {
            return Ok(());
        }
        for (position, hash) in entry.range().zip(self.accepted(entry.range())?) {
            if let Some(hash) = hash.filter(|_| offsets.contains(&Offset(position - entry.first))) {
                comparison.add(hash, Kind::Earlier, (source, position))?;
            }
        }
        Ok(())
    }

    /// Adds the lines that left by other outputs while the outputs that are asked about were not in
    /// the config: an output may have been renamed.
    fn add_elsewhere(&mut self, entry: &Delivered, comparison: &mut Comparison) -> io::Result<()> {
        let mut asked =
            self.history.outputs.iter().filter(|it| self.request.asks_of(it.0)).peekable();
        if asked.peek().is_none() || !asked.all(|(_, output)| output.is_away_in(entry.range())) {
            return Ok(());
        }
        for (position, fate, hash) in self.lines_of(entry)? {
            if let (None, Some(hash)) = (fate, hash) {
                comparison.add(hash, Kind::Elsewhere, (0, position))?;
            }
        }
        Ok(())
    }

    /// Adds lines that the consumer may have, in the form in which they came in.
    fn allow(
        &mut self,
        range: Range<u64>,
        source: u16,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        let mut next = range.start;
        while next < range.end {
            let end = range.end.min(next.saturating_add(RANGE_MAX));
            for (position, hash) in (next..end).zip(self.accepted(next..end)?) {
                if let Some(hash) = hash {
                    comparison.add(hash, Kind::Allowed, (source, position))?;
                }
            }
            next = end;
        }
        Ok(())
    }

    /// Adds the lines that may have left although the log does not say so yet.
    fn add_pending(&mut self, left: &mut Left, comparison: &mut Comparison) -> io::Result<()> {
        for name in &self.request.outputs {
            let (Some(output), Some(source)) =
                (self.history.outputs.get(name), left.source(self, name))
            else {
                continue;
            };
            let accepted = self.history.accepted.ranges();
            let open: Vec<_> = accepted.flat_map(|range| output.pending_in(range)).collect();
            for range in open {
                left.pending += self.asked.events.len_within(range.clone());
                left.open += range.end.min(left.end).saturating_sub(range.start);
                self.allow(range, source, comparison)?;
            }
        }
        Ok(())
    }

    /// Adds the lines of the entries that no checkpoint covers.
    fn add_journal(&mut self, left: &Left, comparison: &mut Comparison) -> io::Result<()> {
        for entry in &self.journal.entries {
            let found = if let Entry::Accepted { first, root, .. } = entry {
                self.hashes.range(None, *first, *root)?
            } else if let Entry::Delivered(entry) = entry
                && let Delivered { output, first, root: Some(root), .. } = entry
                && left.source(self, output).is_some()
            {
                self.hashes.range(Some(output), *first, *root)?
            } else {
                continue;
            };
            if let Found::Range(range) = found {
                for hash in &range.lines {
                    comparison.add(*hash, Kind::Newer, (0, range.first))?;
                }
            }
        }
        Ok(())
    }
}

/// A log, and the lines that left by it.
pub(super) struct Compared<'a, 'b> {
    pub(super) check: &'b mut Check<'a>,
    pub(super) left: Left,
    /// `true`: a checkpoint covers all events that were in the queue when the stored lines were
    /// read.
    pub(super) is_covered: bool,
}

impl Compared<'_, '_> {
    /// Returns `true` if events that no checkpoint covers may have left.
    fn is_open(&self) -> bool {
        match self.check.ending() {
            Ending::Stopped(_) => false,
            Ending::Live => !self.is_covered,
            Ending::Open => true,
        }
    }

    /// Returns the number of events that may have left in a form that no checkpoint covers.
    fn in_another_form(&self) -> u64 {
        match (self.check.ending(), self.left.changes) {
            (_, true) => self.left.open + self.left.unexplained,
            (Ending::Stopped(_), false) => 0,
            (Ending::Live | Ending::Open, false) => self.left.open,
        }
    }
}

/// Compares the lines that left according to all logs with the stored lines.
pub(super) fn compare(logs: &mut [Compared<'_, '_>], store: &mut Store) -> io::Result<Report> {
    let differences = store.comparison.differences()?;
    let changed = changed(&differences, &mut store.comparison)?;
    let mut report = Report::default();
    report.counts.events.good = differences.found;
    report.counts.missing = differences.missing_count - changed.len() as u64;
    report.counts.changed = changed.len() as u64;
    report.counts.duplicate = differences.duplicate;
    tell_missing(logs, &differences, &changed, store);
    tell_extra(logs, &differences, &changed, store, &mut report);
    tell_forms(&differences, &mut report);
    let left: u64 = logs.iter().map(|log| log.check.report.counts.events.all).sum();
    let text = match (differences.found, left) {
        (0, 0) => "nothing was compared: by the log, no line left that is asked about",
        (0, _) => {
            "proven: positions. No stored line is one that left; a store that writes events in its \
             own way can't be compared byte by byte"
        }
        (_, _) => "proven: bytes. Each line that was found is the one that left",
    };
    report.notes.push(text.to_owned());
    Ok(report)
}

/// Adds a fault for each line that left and is not stored as it left.
fn tell_missing(
    logs: &mut [Compared<'_, '_>],
    differences: &Differences,
    changed: &BTreeMap<Place, u64>,
    store: &Store,
) {
    for Compared { check, left, .. } in logs {
        let request = check.request;
        for (source, output) in (left.first_source..).zip(&request.outputs) {
            let of_output = (source, 0)..=(source, u64::MAX);
            let mut missing = Positions::default();
            let all = differences.missing.range(of_output.clone());
            for (_, position) in all.filter(|it| !changed.contains_key(it)) {
                missing.insert(*position..position.saturating_add(1));
            }
            for range in missing.ranges() {
                let count = range.end - range.start;
                let text = match count {
                    1 => format!("the event left by {output}, and its line is not stored"),
                    _ => format!("{count} events left by {output}, and their lines are not stored"),
                };
                check.report.faults.add_at(range.start, None, WHO_CHANGED, text);
            }
            for ((_, position), place) in changed.range(of_output) {
                let text = format!(
                    "the event left by {output}, and another line is in its place: {}",
                    store.name(*place)
                );
                check.report.faults.add_at(*position, None, WHO_CHANGED, text);
            }
        }
    }
}

/// Says how the stored lines that match no line that left can be explained. Only lines without any
/// other explanation are called forged.
fn tell_extra(
    logs: &[Compared<'_, '_>],
    differences: &Differences,
    changed: &BTreeMap<Place, u64>,
    store: &Store,
    report: &mut Report,
) {
    let mut extra = differences.extra_count - changed.len() as u64;
    let all = extra;
    let mut take = |at_most: u64| {
        let taken = extra.min(at_most);
        extra -= taken;
        taken
    };
    let off = take(logs.iter().map(|log| log.check.history.off.len()).sum());
    // An event without evidence may have been sent again, as any other.
    report.counts.duplicate += if off > 0 { take(differences.extra_copies) } else { 0 };
    let unknown = take(logs.iter().map(|log| log.left.unhashed.len()).sum());
    // Without a filter there is only one form.
    let twice: u64 = logs.iter().map(|log| if log.left.filters { log.left.twice } else { 0 }).sum();
    let twice = take(twice.saturating_sub(differences.earlier));
    for (count, what) in [
        (off, ", which may be events from a time without evidence"),
        (unknown, " fit nothing, and may be events whose line hashes are gone"),
        (
            differences.earlier,
            " are events as they came in, which did not leave so by the log: they may be earlier \
             forms of events that were sent again by other rules, after a crash or a change of the \
             config",
        ),
        (
            twice,
            " fit nothing, and may be earlier forms of events that were sent again by other rules, \
             after a crash or a change of the config",
        ),
    ] {
        if count > 0 {
            report.unchecked.push(format!("{count} stored lines{what}"));
        }
    }
    report.counts.without_evidence = off;
    report.counts.unknown += differences.earlier + twice;
    let open = logs.iter().find(|log| log.is_open());
    let may_fit = logs.iter().map(Compared::in_another_form).sum();
    let newer = take(if open.is_some() { u64::MAX } else { may_fit });
    tell_newer(newer, open.or(logs.first()), differences, store, report);
    report.counts.forged = extra;
    if extra > 0 {
        let changed: BTreeSet<_> = changed.values().copied().collect();
        let never_left = differences.extra.difference(&changed).take(PLACES_MAX);
        let first = never_left.map(|place| store.name(*place)).collect::<Vec<_>>().join(", ");
        let which = if extra == all { "" } else { "some of " };
        let names = logs.first().map(|log| log.check.request.outputs.join(" or "));
        let text = format!(
            "{extra} stored lines never left by {}: {which}{first}",
            names.unwrap_or_default()
        );
        report.faults.add(None, "who could add lines to the consumer's store?", text);
    }
}

/// Says which lines are newer than the last checkpoint of a log, or than the stored lines. `newer`
/// is the number of stored lines that match nothing and may be newer.
fn tell_newer(
    newer: u64,
    log: Option<&Compared<'_, '_>>,
    differences: &Differences,
    store: &Store,
    report: &mut Report,
) {
    let last = log.map(|log| log.check.last_checkpoint()).unwrap_or_default();
    let after_last = format!("after {last}");
    let after_export =
        format!("after the stored lines were exported at {}", time(store.exported_at));
    for (count, what, than) in [
        (newer, "stored lines fit nothing, and may be events that left", &after_last),
        (differences.newer, "stored lines are events that came in", &after_last),
        (differences.late, "lines left, and are not stored: they left", &after_export),
    ] {
        if count > 0 {
            report.counts.newer += count;
            report.unchecked.push(format!("{count} {what} {than}"));
        }
    }
    if differences.elsewhere > 0 {
        report.unchecked.push(format!(
            "{} stored lines left by another output, before the one that is asked about joined: \
             name it with --output too",
            differences.elsewhere
        ));
    }
}

/// Says how many stored lines may have two forms.
fn tell_forms(differences: &Differences, report: &mut Report) {
    if differences.ambiguous > 0 {
        report.unchecked.push(format!(
            "{} stored lines may each be either of two events that left, with and without kind and \
             apiVersion",
            differences.ambiguous
        ));
    }
    if differences.with_added > 0 && differences.without_added > 0 {
        report.unchecked.push(format!(
            "{} stored lines have kind and apiVersion, which the events that left lack, and {} have \
             not: an output with format = \"audit_log\" adds them to each event",
            differences.with_added, differences.without_added
        ));
    }
}

/// Finds the stored lines that are where a line is missing. Returns the number of each by the place
/// of the missing line.
fn changed(
    differences: &Differences,
    comparison: &mut Comparison,
) -> io::Result<BTreeMap<Place, u64>> {
    if differences.missing.is_empty() || differences.extra.is_empty() {
        return Ok(BTreeMap::new());
    }
    // An empty line or a checkpoint may be between two events.
    let before = |place: u64| (1..=2).filter_map(move |by| place.checked_sub(by));
    let behind = |place: u64| (1..=2).map(move |by| place + by);
    let beside = |place: &u64| before(*place).chain(behind(*place));
    let places: BTreeSet<_> = differences.extra.iter().flat_map(beside).collect();
    let known = comparison.positions_at(&places)?;
    let (mut missing, mut changed) = (differences.missing.clone(), BTreeMap::new());
    let mut last = None;
    for place in &differences.extra {
        // If the line before is a changed one too, this line comes after that line's event.
        let last_one = last.filter(|(at, _)| at + 1 == *place).map(|(_, it)| it);
        let before = last_one.or(before(*place).find_map(|at| known.get(&at).copied()));
        let behind = behind(*place).find_map(|at| known.get(&at).copied());
        // Positions of two sources are not neighbours.
        let behind = behind.filter(|behind| before.is_none_or(|before| before.0 == behind.0));
        let found = match (before, behind) {
            (Some(before), Some(behind)) if before < behind => {
                missing.range((before.0, before.1 + 1)..behind).next().copied()
            }
            (Some((source, before)), _) => {
                missing.range((source, before + 1)..=(source, u64::MAX)).next().copied()
            }
            (None, Some(behind)) => missing.range((behind.0, 0)..behind).next_back().copied(),
            (None, None) => None,
        };
        if let Some(position) = found {
            missing.remove(&position);
            changed.insert(position, *place);
            last = Some((*place, position));
        }
    }
    Ok(changed)
}
