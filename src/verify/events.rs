//! The check of events: what became of them at each output, and whether a consumer has the lines
//! that left.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use super::compare::{Comparison, Differences, Kind, Place};
use super::hashes::Found;
use super::history::GIVEN_UP;
use super::log::Check;
use super::positions::Positions;
use super::report::Report;
use super::runs::Clock;
use super::store::Store;
use crate::config::show_time;
use crate::evidence::entry::{Delivered, Entry, Fate, Offset, RANGE_MAX, Stamp};
use crate::evidence::reader::Log;
use crate::tlog::merkle::{Frontier, Hash};

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

/// The lines that left by one output of one log. Each line has a number: the lines are counted in
/// the order in which the log has their deliveries.
#[derive(Default)]
struct Sent {
    /// For each entry about deliveries the number of its first line, the position of this line, and
    /// the log's time.
    entries: Vec<(u64, u64, u64)>,
    /// The number of the next line.
    next: u64,
    /// The positions of the events that left.
    seen: Positions,
    /// The numbers of the lines that left and are asked about.
    must: Positions,
}

impl Sent {
    /// Takes the next entry. Returns the number of its first line.
    fn enter(&mut self, entry: &Delivered, now: u64) -> u64 {
        let first = self.next;
        self.entries.push((first, entry.first, now));
        self.next = self.next.saturating_add(entry.count);
        first
    }

    /// Returns the position of a line, and the log's time at which it was delivered.
    fn place(&self, number: u64) -> (u64, u64) {
        let at = self.entries.partition_point(|entry| entry.0 <= number);
        let entry = at.checked_sub(1).and_then(|at| self.entries.get(at));
        entry.map_or((0, 0), |(first, position, at)| (position + (number - first), *at))
    }

    /// Returns two numbers of lines, if the last line that is stored has the number `last`: that
    /// from which on lines need not have settled, and that from which on they are not exported.
    /// `settle` is in milliseconds.
    fn end_of_export(&self, last: Option<u64>, settle: u64) -> (u64, u64) {
        let Some(last) = last else { return (0, 0) };
        let end = self.place(last).1;
        let at = self.entries.partition_point(|entry| entry.2.saturating_add(settle) <= end);
        let settled = self.entries.get(at).map_or(last, |entry| entry.0);
        (settled.min(last), last + 1)
    }
}

/// The lines of one log that left by the outputs that are asked about.
#[derive(Default)]
pub(super) struct Left {
    /// The source of the lines that left by the request's first output, in this log. Each further
    /// output of the request has the next number.
    first_source: u16,
    /// The lines that left, by their source.
    sent: BTreeMap<u16, Sent>,
    /// The number of events that left and are asked about.
    asked: u64,
    /// The events that left and whose line hash is gone.
    unhashed: Positions,
    /// The number of events whose fate is not in the log yet.
    pending: u64,
    /// `true`: the consumer may have got events that the log calls lost or pending.
    has_doubtful: bool,
    /// `true`: the filter of the output changes events.
    changes: bool,
    /// `true`: the filter of the output changes or drops events.
    filters: bool,
    /// `true`: events may have been sent twice, because of a crash or a change of the config.
    sent_again: bool,
    fates: BTreeMap<String, Fates>,
}

/// An event of an entry about deliveries: its position, its fate if its line did not leave, and the
/// hash of its line if that is known.
type Settled = (u64, Option<Fate>, Option<Hash>);

impl Left {
    /// `first_source` is the source of the lines of the first output.
    pub(super) fn new(first_source: u16) -> Self {
        Self { first_source, ..Self::default() }
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
        let (mut frontier, mut clock) = (Frontier::default(), Clock::default());
        for (index, bytes) in log.entries().map_while(Result::ok) {
            frontier.push(Hash::of_leaf(&bytes), &mut |_, _| {});
            let Ok(entry) = Entry::parse(&bytes) else { continue };
            clock.feed(Stamp::parse(&bytes), entry.at());
            if let Entry::Delivered(delivered) = &entry {
                self.count(delivered, left);
            }
            if let Some(store) = &mut store {
                self.add_left(index, clock.now, &entry, left, &mut store.comparison)?;
            }
        }
        if frontier.root() != log.head().root {
            let text = "the files of the log were changed while they were read";
            self.report.faults.add(None, text);
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
        let off = &self.history.off;
        self.report.counts.without_evidence = off.len_within(self.asked.positions.clone());
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
        counts.events.all = left.asked;
        (counts.pending, counts.unknown) = (left.pending, unknown);
        if unknown > 0 {
            let text = format!("{unknown} lines left, and their hashes are gone");
            self.report.unchecked.push(text);
        }
    }

    /// Adds the lines of an entry.
    fn add_left(
        &mut self,
        index: u64,
        now: u64,
        entry: &Entry,
        left: &mut Left,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        if let Entry::Delivered(entry) = entry {
            return match left.source(self, &entry.output) {
                Some(source) => self.add_lines(index, now, entry, source, left, comparison),
                None => Ok(()),
            };
        }
        if let Entry::Lost { output, first: Some(first), count, .. } = entry
            && left.source(self, output).is_some()
        {
            // The consumer may have got the events before they were lost.
            let range = *first..first.saturating_add(*count);
            let accepted: Vec<_> = self.history.accepted.within(range).collect();
            for range in accepted {
                left.has_doubtful = true;
                self.allow(range, comparison)?;
            }
        }
        Ok(())
    }

    /// Returns for each event of an entry about deliveries whether a line left, and its hash if it
    /// is known.
    fn lines_of(&mut self, entry: &Delivered) -> Vec<Settled> {
        let Delivered { output, first, root, not_delivered, changed, .. } = entry;
        let is_filtered = !changed.is_empty()
            || not_delivered.values().any(|it| matches!(it, Fate::Dropped | Fate::Duplicate));
        let mut own = Vec::new().into_iter();
        if let Some(root) = root
            && let Found::Range(range) = self.hashes.range(Some(output), *first, *root)
        {
            own = range.lines.clone().into_iter();
        }
        let accepted = self.accepted(entry.range());
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
        entry.range().zip(accepted).map(line).collect()
    }

    fn add_lines(
        &mut self,
        index: u64,
        now: u64,
        entry: &Delivered,
        source: u16,
        left: &mut Left,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        let changes = !entry.changed.is_empty();
        left.changes |= changes;
        left.filters |= changes || entry.not_delivered.values().any(|it| *it == Fate::Dropped);
        left.sent_again |= self.may_be_sent_again(entry.first, (index, entry.at));
        let sent = left.sent.entry(source).or_default();
        let first = sent.enter(entry, now);
        for (position, fate, hash) in self.lines_of(entry) {
            let number = first.saturating_add(position - entry.first);
            if !self.history.accepted.contains(position) {
                // The queue lost the event before its line was hashed, or `history` has reported a
                // fault already.
                if self.history.lost.contains(position) {
                    left.unhashed.insert(position..position + 1);
                }
                continue;
            }
            let is_asked = self.asked.events.contains(position);
            let kind = match fate {
                // A consumer may have taken a part of a request that it refused.
                Some(Fate::Lost | Fate::DeadLetter) => {
                    left.has_doubtful = true;
                    Kind::May
                }
                Some(Fate::Dropped | Fate::Duplicate) => continue,
                None if sent.seen.contains(position) => Kind::Again,
                None if is_asked => Kind::Must,
                None => Kind::Outside,
            };
            if fate.is_none() {
                sent.seen.insert(position..position + 1);
            }
            let must = u64::from(kind == Kind::Must);
            left.asked += must;
            match hash {
                Some(hash) => {
                    sent.must.insert(number..number + must);
                    comparison.add(hash, kind, (source, number))?;
                }
                None if fate.is_none() => left.unhashed.insert(position..position + 1),
                None => {}
            }
        }
        Ok(())
    }

    /// Returns `true` if no output that is asked about was there all the time.
    fn asks_about_a_late_output(&self) -> bool {
        let outputs = self.history.outputs.iter().filter(|it| self.request.asks_of(it.0));
        let mut away = outputs.map(|(_, output)| self.history.not_its_own(output).len());
        away.all(|events| events > 0)
    }

    /// Adds lines that the consumer may have, in the form in which they came in.
    fn allow(&mut self, range: Range<u64>, comparison: &mut Comparison) -> io::Result<()> {
        let mut next = range.start;
        while next < range.end {
            let end = range.end.min(next.saturating_add(RANGE_MAX));
            for (position, hash) in (next..end).zip(self.accepted(next..end)) {
                if let Some(hash) = hash {
                    comparison.add(hash, Kind::May, (0, position))?;
                }
            }
            next = end;
        }
        Ok(())
    }

    /// Adds the lines that may have left although the log does not say so yet.
    fn add_pending(&mut self, left: &mut Left, comparison: &mut Comparison) -> io::Result<()> {
        for name in &self.request.outputs {
            let Some(output) = self.history.outputs.get(name) else { continue };
            let accepted = self.history.accepted.ranges();
            let open: Vec<_> = accepted.flat_map(|range| output.pending_in(range)).collect();
            for range in open {
                left.pending += self.asked.events.len_within(range.clone());
                left.has_doubtful = true;
                self.allow(range, comparison)?;
            }
        }
        Ok(())
    }

    /// Adds the lines of the entries that no checkpoint covers.
    fn add_journal(&mut self, left: &Left, comparison: &mut Comparison) -> io::Result<()> {
        for entry in &self.journal.entries {
            let found = if let Entry::Accepted { first, root, .. } = entry {
                self.hashes.range(None, *first, *root)
            } else if let Entry::Delivered(entry) = entry
                && let Delivered { output, first, root: Some(root), .. } = entry
                && left.source(self, output).is_some()
            {
                self.hashes.range(Some(output), *first, *root)
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
    /// `true`: all that left by this log when the stored lines were read is in the log.
    pub(super) is_closed: bool,
    /// `true`: the events before the first one of this log may be those of a log that is not given.
    pub(super) has_earlier_log: bool,
}

impl Compared<'_, '_> {
    /// Returns what may explain a stored line that this log does not have.
    fn explanations(&self) -> Vec<String> {
        let (check, left) = (&self.check, &self.left);
        let is_gone =
            left.unhashed.len() + check.hashes.gone.len() + check.hashes.gone_as_sent.len();
        [
            (!self.is_closed, format!("it left after {}", check.last_checkpoint())),
            (check.history.off.len() > 0, "it came in while evidence was off".to_owned()),
            (is_gone > 0, "its line hash was deleted, or is missing".to_owned()),
            (self.has_earlier_log, "it came in before this log began".to_owned()),
            (
                check.asks_about_a_late_output(),
                "it left by an output that was there before: name it with --output too".to_owned(),
            ),
            (
                left.filters && left.sent_again,
                "it was sent again by other rules, after a crash or a change of \
                                  the config"
                    .to_owned(),
            ),
            (
                left.changes && left.has_doubtful,
                "it was sent in a changed form, and by the log it was lost or is pending"
                    .to_owned(),
            ),
        ]
        .into_iter()
        .filter_map(|(may_be, why)| may_be.then_some(why))
        .collect()
    }
}

/// Compares the lines that left according to all logs with the stored lines.
pub(super) fn compare(logs: &mut [Compared<'_, '_>], store: &mut Store) -> io::Result<Report> {
    let differences = store.comparison.differences()?;
    let mut report = Report::default();
    let missing = missing(logs, &differences, &mut report);
    let changed = changed(&missing, &differences, &mut store.comparison)?;
    report.counts.events.good = differences.found;
    report.counts.missing -= changed.len() as u64;
    report.counts.changed = changed.len() as u64;
    report.counts.duplicate = differences.duplicate;
    tell_missing(logs, &missing, &changed, store);
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

/// Returns the lines that left before the end of the export of their output and are not stored.
/// Counts them, those that need not have settled, and those behind the end.
fn missing(
    logs: &[Compared<'_, '_>],
    differences: &Differences,
    report: &mut Report,
) -> BTreeSet<Place> {
    let mut missing = BTreeSet::new();
    let counts = &mut report.counts;
    for Compared { check, left, .. } in logs {
        let settle = check.request.settle;
        let settle_ms = u64::try_from(settle.as_millis()).unwrap_or(u64::MAX);
        for (source, output) in (left.first_source..).zip(&check.request.outputs) {
            let Some(sent) = left.sent.get(&source) else { continue };
            let last = differences.ends.get(&source).copied();
            let (settled, end) = sent.end_of_export(last, settle_ms);
            let of = |from, to| differences.absent.range((source, from)..(source, to)).copied();
            missing.extend(of(0, settled));
            let not_settled = of(settled, end).count() as u64;
            let not_exported = sent.must.len_within(end..u64::MAX);
            counts.not_settled += not_settled;
            counts.not_exported += not_exported;
            let newest = match last {
                Some(last) => {
                    let (position, _) = sent.place(last);
                    format!("the newest line that is stored, at position {position}")
                }
                None => "the begin of the log, for no line is stored".to_owned(),
            };
            for (count, when) in [
                (not_settled, format!("within {} before", show_time(settle))),
                (not_exported, "after".to_owned()),
            ] {
                if count > 0 {
                    let text = format!("{count} lines left by {output} {when} {newest}");
                    report.unchecked.push(format!("{text}: they are not in this export yet"));
                }
            }
        }
    }
    // More lines may be absent than are kept one by one.
    let explained = counts.not_exported + counts.not_settled;
    counts.missing = differences.absent_count.saturating_sub(explained);
    missing
}

/// Adds a fault for each line that left and is not stored as it left.
fn tell_missing(
    logs: &mut [Compared<'_, '_>],
    missing: &BTreeSet<Place>,
    changed: &BTreeMap<Place, u64>,
    store: &Store,
) {
    for Compared { check, left, .. } in logs {
        for (source, output) in (left.first_source..).zip(&check.request.outputs) {
            let Some(sent) = left.sent.get(&source) else { continue };
            let of_output = (source, 0)..=(source, u64::MAX);
            let mut positions = Positions::default();
            let all = missing.range(of_output.clone());
            for (_, number) in all.filter(|it| !changed.contains_key(it)) {
                let (position, _) = sent.place(*number);
                positions.insert(position..position.saturating_add(1));
            }
            for range in positions.ranges() {
                let count = range.end - range.start;
                let text = match count {
                    1 => format!("the event left by {output}, and its line is not stored"),
                    _ => format!("{count} events left by {output}, and their lines are not stored"),
                };
                check.report.faults.add_at(range.start, None, text);
            }
            for ((_, number), place) in changed.range(of_output) {
                let text = format!(
                    "the event left by {output}, and another line is in its place: {}",
                    store.name(*place)
                );
                check.report.faults.add_at(sent.place(*number).0, None, text);
            }
        }
    }
}

/// Reports the stored lines that the logs do not have. They are a fault only if nothing can explain
/// them.
fn tell_extra(
    logs: &[Compared<'_, '_>],
    differences: &Differences,
    changed: &BTreeMap<Place, u64>,
    store: &Store,
    report: &mut Report,
) {
    if differences.newer > 0 {
        report.counts.newer += differences.newer;
        let last = logs.first().map(|log| log.check.last_checkpoint()).unwrap_or_default();
        let newer = differences.newer;
        report.unchecked.push(format!("{newer} stored lines are events that came in after {last}"));
    }
    let extra = differences.extra_count - changed.len() as u64;
    if extra == 0 {
        return;
    }
    let changed: BTreeSet<_> = changed.values().copied().collect();
    let names = differences.extra.difference(&changed).take(PLACES_MAX);
    let names = names.map(|place| store.name(*place)).collect::<Vec<_>>().join(", ");
    let of_others = store.kept.iter().map(|kept| format!("it is of the log of {}", kept.origin));
    let explanations = logs.iter().flat_map(Compared::explanations).chain(of_others);
    let explanations: BTreeSet<_> = explanations.collect();
    let text = format!("{extra} stored lines are not in the log: {names}");
    if explanations.is_empty() {
        report.counts.extra = extra;
        return report.faults.add(None, text);
    }
    report.counts.unexplained += extra;
    let explanations: Vec<_> = explanations.into_iter().collect();
    report.unchecked.push(format!("{text}. For each, perhaps {}", explanations.join("; or ")));
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
    missing: &BTreeSet<Place>,
    differences: &Differences,
    comparison: &mut Comparison,
) -> io::Result<BTreeMap<Place, u64>> {
    if missing.is_empty() || differences.extra.is_empty() {
        return Ok(BTreeMap::new());
    }
    // An empty line or a checkpoint may be between two events.
    let before = |place: u64| (1..=2).filter_map(move |by| place.checked_sub(by));
    let behind = |place: u64| (1..=2).map(move |by| place + by);
    let beside = |place: &u64| before(*place).chain(behind(*place));
    let places: BTreeSet<_> = differences.extra.iter().flat_map(beside).collect();
    let known = comparison.positions_at(&places)?;
    let (mut missing, mut changed) = (missing.clone(), BTreeMap::new());
    let mut last = None;
    for place in &differences.extra {
        // If the line before is a changed one too, this line comes after that line's event.
        let last_one = last.filter(|(at, _)| at + 1 == *place).map(|(_, it)| it);
        let before = last_one.or(before(*place).find_map(|at| known.get(&at).copied()));
        let behind = behind(*place).find_map(|at| known.get(&at).copied());
        // Lines of two sources are not neighbours.
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
        if let Some(line) = found {
            missing.remove(&line);
            changed.insert(line, *place);
            last = Some((*place, line));
        }
    }
    Ok(changed)
}
