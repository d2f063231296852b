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
use super::report::{Report, Share};
use super::runs::{Clock, Said};
use super::store::Store;
use crate::config::show_time;
use crate::evidence::entry::{Delivered, Entry, Fate, Offset, Stamp};
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

/// An event of an entry about deliveries: its position, its fate if its line did not leave, and the
/// hash of its line if that is known.
type Settled = (u64, Option<Fate>, Option<Hash>);

impl Check<'_> {
    /// Reads the entries once more, counts the fates of the events, and adds the lines that left to
    /// the comparison, if there are stored lines.
    pub(super) fn events(
        &mut self,
        log: &Log<'_>,
        mut comparison: Option<&mut Comparison>,
    ) -> io::Result<()> {
        if !self.is_whole() {
            return Ok(());
        }
        let (mut frontier, mut clock) = (Frontier::default(), Clock::default());
        let mut fates = BTreeMap::new();
        for (index, bytes) in log.entries().map_while(Result::ok) {
            frontier.push(Hash::of_leaf(&bytes), &mut |_, _| {});
            let Ok(entry) = Entry::parse(&bytes) else { continue };
            let said = Said::new(index, &entry, Stamp::parse(&bytes));
            clock.feed(said);
            if let Entry::Delivered(delivered) = &entry {
                self.count(delivered, &mut fates);
            }
            if let Some(comparison) = &mut comparison {
                self.add_left(said, clock.now, comparison)?;
            }
        }
        if frontier.root() != log.head().root {
            self.report.fault("the files of the log were changed while they were read");
            return Ok(());
        }
        match comparison {
            Some(comparison) => {
                self.add_pending(comparison)?;
                self.add_journal(comparison)?;
                self.count_left();
            }
            None => self.count_accepted(),
        }
        let off = &self.history.off;
        self.report.counts.without_evidence = off.len_within(self.asked.positions.clone());
        self.tell_fates(&fates);
        Ok(())
    }

    /// Counts the fates of events at an output.
    fn count(&self, entry: &Delivered, fates: &mut BTreeMap<String, Fates>) {
        let fates = fates.entry(entry.output.clone()).or_default();
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
    fn tell_fates(&mut self, fates: &BTreeMap<String, Fates>) {
        let none = Fates::default();
        let asked = self.asked.positions.clone();
        for (name, output) in &self.history.outputs {
            let fates = fates.get(name).unwrap_or(&none);
            let (mut lost, mut given_up) = (Positions::default(), Positions::default());
            let losses = self.history.losses.iter().filter(|((of, _), _)| of == name);
            for ((_, reason), positions) in losses {
                let of_reason = if reason == GIVEN_UP { &mut given_up } else { &mut lost };
                positions.within(asked.clone()).for_each(|it| of_reason.insert(it));
            }
            let not_its_own = self.history.not_its_own(output).len_within(asked.clone());
            let of = |fate| fates.not_delivered.get(&fate).copied().unwrap_or_default();
            let dropped = of(Fate::Dropped);
            self.report.outputs.push(format!(
                "output {name}: dropped {dropped}, duplicate {}, changed {}, given up {}, dead \
                 letters {}, lost {}, not its own {not_its_own}",
                of(Fate::Duplicate),
                fates.changed,
                given_up.len(),
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
        let asked = self.asked.positions.clone();
        let mut pending = Positions::default();
        for (_, output) in self.history.outputs.iter().filter(|it| self.request.asks_of(it.0)) {
            let open = self.history.pending(output, asked.clone());
            open.into_iter().for_each(|it| pending.insert(it));
        }
        let (all, unknown) = (self.asked.events.len(), self.hashes.gone.len_within(asked));
        let counts = &mut self.report.counts;
        counts.events = Share { good: all - unknown, all };
        (counts.pending, counts.unknown) = (pending.len(), unknown);
        let is_whole = all > 0 && self.report.faults.count() == 0;
        let no_gap = if is_whole { "No event is missing in the log. " } else { "" };
        self.report.notes.push(format!(
            "proven: positions. {no_gap}Without --events, nobody knows what the consumer has stored"
        ));
    }

    /// Counts the lines that left.
    fn count_left(&mut self) {
        let asked = self.asked.events.ranges();
        let unknown = asked.map(|range| self.left.unhashed.len_within(range)).sum();
        let counts = &mut self.report.counts;
        counts.events.all = self.left.asked;
        (counts.pending, counts.unknown) = (self.left.pending, unknown);
        if unknown > 0 {
            let text = format!("{unknown} lines left, and their hashes are gone");
            self.report.unchecked.push(text);
        }
    }

    /// Adds the lines of an entry. `now` is the time of the log.
    fn add_left(
        &mut self,
        said: Said<'_>,
        now: u64,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        if let Entry::Delivered(entry) = said.entry
            && self.left.has(&entry.output)
        {
            return self.add_lines(said, now, entry, comparison);
        }
        if let Entry::Lost { output, first: Some(_), .. } = said.entry
            && self.left.has(output)
        {
            // The consumer may have got the events before they were lost.
            let accepted: Vec<_> = self.history.accepted.within(said.entry.range()).collect();
            for range in accepted {
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
        let line = |position: u64| {
            let fate = not_delivered.get(&Offset(position - first)).copied();
            let hash = match (fate, root, is_filtered) {
                (Some(_), _, _) | (None, None, false) => self.original(position),
                (None, Some(_), _) => own.next(),
                // A filter has changed or dropped events, but the entry has no root over the lines
                // that left.
                (None, None, true) => None,
            };
            (position, fate, hash)
        };
        entry.range().map(line).collect()
    }

    fn add_lines(
        &mut self,
        said: Said<'_>,
        now: u64,
        entry: &Delivered,
        comparison: &mut Comparison,
    ) -> io::Result<()> {
        let lines = self.lines_of(entry);
        let may_be_sent_again = self.may_be_sent_again(entry.first, (said.index, said.at));
        let left = &mut self.left;
        let Some(sent) = left.sent.iter_mut().find(|sent| sent.output == entry.output) else {
            return Ok(());
        };
        let changes = !entry.changed.is_empty();
        left.changes |= changes;
        left.filters |= changes || entry.not_delivered.values().any(|it| *it == Fate::Dropped);
        left.sent_again |= may_be_sent_again;
        let first = sent.enter(entry, now);
        for (number, (position, fate, hash)) in (first..).zip(lines) {
            if !self.history.accepted.contains(position) {
                // The queue lost the event before its line was hashed, or `history` has reported a
                // fault already.
                if self.history.lost.contains(position) {
                    left.unhashed.insert(position..position + 1);
                }
                continue;
            }
            let kind = match fate {
                // A consumer may have taken a part of a request that it refused.
                Some(Fate::Lost | Fate::DeadLetter) => {
                    left.has_doubtful = true;
                    Kind::May
                }
                Some(Fate::Dropped | Fate::Duplicate) => continue,
                None if sent.seen.contains(position) => Kind::Again,
                None if self.asked.events.contains(position) => Kind::Must,
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
                    comparison.add(hash, kind, (sent.source, number))?;
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

    /// Adds lines that the consumer may have, although the log does not say so, in the form in
    /// which they came in.
    fn allow(&mut self, range: Range<u64>, comparison: &mut Comparison) -> io::Result<()> {
        self.left.has_doubtful = true;
        for position in range {
            if let Some(hash) = self.original(position) {
                comparison.add(hash, Kind::May, (0, position))?;
            }
        }
        Ok(())
    }

    /// Adds the lines that may have left although the log does not say so yet.
    fn add_pending(&mut self, comparison: &mut Comparison) -> io::Result<()> {
        for name in &self.request.outputs {
            let Some(output) = self.history.outputs.get(name) else { continue };
            for range in self.history.pending(output, 0..u64::MAX) {
                self.left.pending += self.asked.events.len_within(range.clone());
                self.allow(range, comparison)?;
            }
        }
        Ok(())
    }

    /// Adds the lines of the entries that no checkpoint covers.
    fn add_journal(&mut self, comparison: &mut Comparison) -> io::Result<()> {
        for entry in &self.journal.entries {
            let found = if let Entry::Accepted { first, root, .. } = entry {
                self.hashes.range(None, *first, *root)
            } else if let Entry::Delivered(entry) = entry
                && let Delivered { output, first, root: Some(root), .. } = entry
                && self.left.has(output)
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

    /// Returns what may explain a stored line that this log does not have.
    fn explanations(&self) -> Vec<String> {
        let (left, hashes) = (&self.left, &self.hashes);
        let is_gone = left.unhashed.len() + hashes.gone.len() + hashes.gone_as_sent.len() > 0;
        let after = format!("it left after {}", self.last_checkpoint());
        [
            (!left.is_closed, after.as_str()),
            (self.history.off.len() > 0, "it came in while evidence was off"),
            (is_gone, "its line hash was deleted, or is missing"),
            (left.has_earlier_log, "it came in before this log began"),
            (
                self.asks_about_a_late_output(),
                "it left by an output that was there before: name it with --output too",
            ),
            (
                left.filters && left.sent_again,
                "it was sent again by other rules, after a crash or a change of the config",
            ),
            (
                left.changes && left.has_doubtful,
                "it was sent in a changed form, and by the log it was lost or is pending",
            ),
        ]
        .into_iter()
        .filter(|(may_be, _)| *may_be)
        .map(|(_, why)| why.to_owned())
        .collect()
    }
}

/// Compares the lines that left according to all logs with the stored lines.
pub(super) fn compare(logs: &mut [&mut Check<'_>], store: &mut Store) -> io::Result<Report> {
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
    let left: u64 = logs.iter().map(|log| log.report.counts.events.all).sum();
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
    logs: &[&mut Check<'_>],
    differences: &Differences,
    report: &mut Report,
) -> BTreeSet<Place> {
    let mut missing = BTreeSet::new();
    let counts = &mut report.counts;
    for check in logs {
        let settle = check.request.settle;
        let settle_ms = u64::try_from(settle.as_millis()).unwrap_or(u64::MAX);
        for sent in &check.left.sent {
            let (source, output) = (sent.source, &sent.output);
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
    logs: &mut [&mut Check<'_>],
    missing: &BTreeSet<Place>,
    changed: &BTreeMap<Place, u64>,
    store: &Store,
) {
    for check in logs {
        for sent in &check.left.sent {
            let (source, output) = (sent.source, &sent.output);
            let of_output = (source, 0)..=(source, u64::MAX);
            let mut positions = Positions::default();
            let all = missing.range(of_output.clone());
            for (_, number) in all.filter(|it| !changed.contains_key(it)) {
                let (position, _) = sent.place(*number);
                positions.insert(position..position.saturating_add(1));
            }
            for range in positions.ranges() {
                let text = match range.end - range.start {
                    1 => format!("the event left by {output}, and its line is not stored"),
                    count => {
                        format!("{count} events left by {output}, and their lines are not stored")
                    }
                };
                check.report.faults.add_at(range.start, None, text);
            }
            for ((_, number), place) in changed.range(of_output) {
                let name = store.name(*place);
                let text =
                    format!("the event left by {output}, and another line is in its place: {name}");
                check.report.faults.add_at(sent.place(*number).0, None, text);
            }
        }
    }
}

/// Reports the stored lines that the logs do not have. They are a fault only if nothing can explain
/// them.
fn tell_extra(
    logs: &[&mut Check<'_>],
    differences: &Differences,
    changed: &BTreeMap<Place, u64>,
    store: &Store,
    report: &mut Report,
) {
    if differences.newer > 0 {
        report.counts.newer += differences.newer;
        let last = logs.first().map(|log| log.last_checkpoint()).unwrap_or_default();
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
    let origins = store.kept.iter().map(|kept| &kept.checkpoint.origin);
    let of_others = origins.map(|origin| format!("it is of the log of {origin}"));
    let explanations = logs.iter().flat_map(|log| log.explanations()).chain(of_others);
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
