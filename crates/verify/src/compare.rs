//! The comparison of the lines that all checked logs sent with the lines that a consumer has
//! stored.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use super::events::Events;
use super::log::Check;
use super::matching::{Class, DIFFERENCES_MAX, Differences, Line, Place, Reason};
use super::positions::Positions;
use super::report::{Number, Report};
use super::request::Request;
use super::runs::{Clock, Said};
use super::store::Store;
use base::words::counted;
use config::show_time;
use evidence_log::entry::{Delivered, Entry, Fate, Stamp};
use evidence_log::reader::Log;
use evidence_log::tlog::merkle::{Frontier, Hash};

/// The maximum number of stored lines that a fault names.
const PLACES_MAX: usize = 20;

/// The maximum difference between the numbers of two neighbouring stored lines: an empty line or a
/// checkpoint may be between two events.
const BESIDE: u64 = 2;

/// The lines that one output of one log sent. Their numbers count all events of the output's
/// [`Delivered`] entries, in the order of the log.
#[derive(Default)]
struct Sent {
    /// The index of the log among the checked logs.
    log: usize,
    output: String,
    /// For each [`Delivered`] entry, the number of its first line, the position of this line, and
    /// the time of the log ([`Clock`]).
    entries: Vec<(u64, u64, u64)>,
    next: u64,
    /// The positions of the sent events.
    seen: Positions,
    /// The position after the highest one of all entries so far. A line that is added below this
    /// position was sent late.
    newest: u64,
    /// The end of the export: the number of the last sent line that is stored, and the log's time
    /// of its delivery.
    end: Option<(u64, u64)>,
    /// The number of lines that are not stored and were sent shortly before the end of the export.
    not_settled: u64,
    /// The number of lines that are not stored and were sent after the end of the export.
    not_exported: u64,
}

/// Facts about the current log that may explain why it lacks some of the stored lines.
#[derive(Default)]
struct Unsaid {
    /// `true`: the hash of a sent line is missing.
    is_unhashed: bool,
    /// `true`: the consumer may have got events that the log calls lost, pending or set aside.
    has_doubtful: bool,
    /// `true`: the filter of the output changes events.
    changes: bool,
    /// `true`: the filter of the output changes or drops events.
    filters: bool,
    /// `true`: events may have been sent twice, because of a crash or a changed config.
    sent_again: bool,
}

/// The comparison. [`Comparison::begin`] begins with a log, then its entries are added, and
/// [`Comparison::explain`] ends the log.
#[derive(Default)]
pub(crate) struct Comparison {
    pub store: Store,
    /// The lines of each requested output, log by log. The source ([`Place`]) of the first is 1.
    sent: Vec<Sent>,
    /// The number of added logs, including the current one.
    logs: usize,
    unsaid: Unsaid,
    /// The possible explanations of stored lines that no log has.
    explanations: BTreeSet<String>,
    /// The newest checkpoint of the first log, for the report.
    last_checkpoint: Option<String>,
}

/// Reads the entries of a log once more, counts the fates of the events, and adds the sent lines to
/// the comparison, if there are stored lines.
pub(super) fn read_again(
    check: &mut Check<'_>,
    events: &mut Events<'_>,
    log: &Log<'_>,
    mut comparison: Option<&mut Comparison>,
) -> io::Result<()> {
    if !check.is_whole() {
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
            events.count(delivered, &mut fates);
        }
        if let Some(comparison) = &mut comparison {
            comparison.add(said, clock.now, events, &mut check.report)?;
        }
    }
    if frontier.root() != log.head().root {
        check.report.fault("the files of the log were changed while they were read");
        return Ok(());
    }
    match comparison {
        Some(comparison) => comparison.add_pending(check, events)?,
        None => events.count_accepted(check.request, &mut check.report),
    }
    let without = events.history.off.len_within(events.period.clone());
    check.report.counts[Number::WithoutEvidence] = without;
    events.tell_fates(&fates, check.request, &mut check.report);
    Ok(())
}

impl Sent {
    /// Adds an entry. Returns the number of its first line.
    fn enter(&mut self, entry: &Delivered, now: u64) -> u64 {
        let first = self.next;
        self.entries.push((first, entry.first, now));
        self.next = self.next.saturating_add(entry.count);
        first
    }

    /// Returns the position of a line, and the log's time of its delivery.
    fn place(&self, number: u64) -> (u64, u64) {
        let at = self.entries.partition_point(|entry| entry.0 <= number);
        let entry = at.checked_sub(1).and_then(|at| self.entries.get(at));
        entry.map_or((0, 0), |(first, position, at)| (position + (number - first), *at))
    }

    /// Returns `true` if a sent line that is not stored is missing, and otherwise counts the line.
    /// A line is missing if it was sent at least `settle` milliseconds before the end of the
    /// export. A late line must have been sent earlier than that, because entries of the same time
    /// are sorted by position.
    fn is_missing(&mut self, number: u64, is_late: bool, settle: u64) -> bool {
        let Some((_, end)) = self.end.filter(|(last, _)| number < *last) else {
            self.not_exported += 1;
            return false;
        };
        let settled = self.place(number).1.saturating_add(settle);
        let is_settled = settled < end || settled == end && !is_late;
        self.not_settled += u64::from(!is_settled);
        is_settled
    }

    /// Reports the lines that need not be stored yet.
    fn tell_open(&self, request: &Request, report: &mut Report) {
        let Self { output, not_settled, not_exported, .. } = self;
        let newest = match self.end {
            Some((last, _)) => {
                format!("the newest line that is stored, at position {}", self.place(last).0)
            }
            None => "the begin of the log, for no line is stored".to_owned(),
        };
        let within = format!("within {} before", show_time(request.settle));
        for (count, when) in [(not_settled, within.as_str()), (not_exported, "after")] {
            if *count > 0 {
                report.unchecked.push(format!(
                    "{} left by {output} {when} {newest}: not in this export yet",
                    counted(*count, "line", "lines")
                ));
            }
        }
        report.counts[Number::NotSettled] += not_settled;
        report.counts[Number::NotExported] += not_exported;
    }
}

impl Comparison {
    pub(crate) fn of(store: Store) -> Self {
        Self { store, ..Self::default() }
    }

    pub(crate) fn begin(&mut self, request: &Request) {
        let log = self.logs;
        let sent = |it: &String| Sent { log, output: it.clone(), ..Sent::default() };
        self.sent.extend(request.outputs.iter().map(sent));
        self.logs += 1;
    }

    /// Returns the index of an output of the current log. `None` if its lines are not requested.
    fn find(&self, output: &str) -> Option<usize> {
        self.sent.iter().position(|sent| sent.log + 1 == self.logs && sent.output == output)
    }

    /// Adds the lines of an entry. `now` is the time of the log.
    fn add(
        &mut self,
        said: Said<'_>,
        now: u64,
        events: &mut Events<'_>,
        report: &mut Report,
    ) -> io::Result<()> {
        if let Entry::Delivered(entry) = said.entry
            && let Some(at) = self.find(&entry.output)
        {
            self.unsaid.sent_again |= events.may_be_sent_again(entry.first, said);
            return self.add_lines(at, now, entry, events, report);
        }
        if let Entry::Lost { output, first: Some(_), .. } = said.entry
            && self.find(output).is_some()
        {
            // The consumer may have got the events before they were lost.
            let accepted: Vec<_> = events.history.accepted.within(said.entry.range()).collect();
            return accepted.into_iter().try_for_each(|range| self.allow(range, events));
        }
        Ok(())
    }

    fn add_lines(
        &mut self,
        at: usize,
        now: u64,
        entry: &Delivered,
        events: &mut Events<'_>,
        report: &mut Report,
    ) -> io::Result<()> {
        let lines = events.lines_of(entry);
        let (Some(sent), unsaid) = (self.sent.get_mut(at), &mut self.unsaid) else {
            return Ok(());
        };
        unsaid.changes |= !entry.changed.is_empty();
        unsaid.filters |=
            unsaid.changes || entry.not_delivered.values().any(|it| *it == Fate::Dropped);
        let (source, newest) = (source_of(at), sent.newest);
        sent.newest = newest.max(entry.range().end);
        for (number, (position, fate, hash)) in (sent.enter(entry, now)..).zip(lines) {
            if !events.history.accepted.contains(position) {
                // The queue lost the event before its line was hashed, or `history` has already
                // reported a fault.
                unsaid.is_unhashed |= events.history.lost.contains(position);
                continue;
            }
            let line = match fate {
                // A consumer may have stored a part of a request that it refused.
                Some(Fate::Lost | Fate::DeadLetter) => {
                    unsaid.has_doubtful = true;
                    Line::May(Reason::Doubtful)
                }
                Some(Fate::Dropped | Fate::Duplicate | Fate::Aside) => continue,
                None if sent.seen.contains(position) => Line::May(Reason::Again),
                None => match (events.asked.contains(position), position < newest) {
                    (true, true) => Line::May(Reason::Late),
                    (true, false) => Line::Must,
                    // The line may be stored, but does not show the end of the export.
                    (false, true) => Line::May(Reason::Doubtful),
                    (false, false) => Line::May(Reason::Outside),
                },
            };
            let is_asked = matches!(line, Line::Must | Line::May(Reason::Late));
            if fate.is_none() {
                sent.seen.insert(position..position + 1);
            }
            unsaid.is_unhashed |= fate.is_none() && hash.is_none();
            report.counts.events.all += u64::from(is_asked);
            match hash {
                Some(hash) => self.store.lines.add(hash, line, (source, number))?,
                None => report.counts[Number::Unknown] += u64::from(is_asked),
            }
        }
        Ok(())
    }

    /// Adds the received lines of a range: the consumer may have them, although the log does not
    /// say so.
    fn allow(&mut self, range: Range<u64>, events: &mut Events<'_>) -> io::Result<()> {
        self.unsaid.has_doubtful = true;
        for position in range {
            if let Some(hash) = events.original(position) {
                self.store.lines.add(hash, Line::May(Reason::Doubtful), (0, position))?;
            }
        }
        Ok(())
    }

    /// Adds the lines of pending events and of events that were set aside: they may have been sent
    /// already. Reports the lines whose hashes are missing.
    fn add_pending(&mut self, check: &mut Check<'_>, events: &mut Events<'_>) -> io::Result<()> {
        let counts = &mut check.report.counts;
        for name in &check.request.outputs {
            let Some(output) = events.history.outputs.get(name) else { continue };
            let pending = events.history.pending(output, 0..u64::MAX);
            let aside = output.aside.ranges().collect();
            for (number, ranges) in [(Number::Pending, pending), (Number::SetAside, aside)] {
                for range in ranges {
                    counts[number] += events.asked.len_within(range.clone());
                    self.allow(range, events)?;
                }
            }
        }
        let unknown = counts[Number::Unknown];
        if unknown > 0 {
            let lines = counted(unknown, "line", "lines");
            let text = format!("{lines} left, whose hashes are gone");
            check.report.unchecked.push(text);
        }
        Ok(())
    }

    /// Adds a line that no checkpoint covers, but that the consumer may have.
    pub(super) fn add_newer(&mut self, hash: Hash, position: u64) -> io::Result<()> {
        self.store.lines.add(hash, Line::May(Reason::Newer), (0, position))
    }

    /// Ends the current log: finds the possible explanations of stored lines that it does not have.
    /// `is_closed`: the log covers everything that was sent before the stored lines were read.
    /// `has_earlier`: events before the first one of this log may be in a log that was not given.
    pub(crate) fn explain(
        &mut self,
        is_closed: bool,
        has_earlier: bool,
        request: &Request,
        events: &Events<'_>,
    ) {
        let (unsaid, hashes) = (std::mem::take(&mut self.unsaid), &events.hashes);
        let is_gone = unsaid.is_unhashed || hashes.gone.len() + hashes.gone_as_sent.len() > 0;
        let last = events.history.runs.last_checkpoint();
        let after = format!("it left after {last}");
        self.last_checkpoint.get_or_insert(last);
        let explanations = [
            (!is_closed, after.as_str()),
            (events.history.off.len() > 0, "it came in while evidence was off"),
            (is_gone, "its line hash was deleted, or is missing"),
            (has_earlier, "it came in before this log began"),
            (
                events.history.asks_about_a_late_output(request),
                "it left by an output that was there before: name it with --output too",
            ),
            (
                unsaid.filters && unsaid.sent_again,
                "it was sent again by other rules, after a crash or a change of the config",
            ),
            (
                unsaid.changes && unsaid.has_doubtful,
                "it was sent in a changed form, and by the log it was lost, is pending or is set \
                 aside",
            ),
        ];
        let explanations = explanations.iter().filter(|(may_be, _)| *may_be);
        self.explanations.extend(explanations.map(|(_, why)| (*why).to_owned()));
    }

    /// Compares the sent lines of all logs with the stored lines. `reports` are those of the logs,
    /// in the order in which the logs were added.
    pub(crate) fn compare(
        mut self,
        request: &Request,
        reports: &mut [&mut Report],
    ) -> io::Result<Report> {
        let mut report = Report::default();
        let differences = self.store.lines.differences()?;
        let missing = self.missing(&differences, request, &mut report)?;
        report.counts.events.good = differences.found;
        report.counts[Number::Duplicate] = differences.of(Class::Copy);
        self.tell_missing(&missing, reports);
        self.tell_extra(&differences, &missing, &mut report);
        tell_forms(&differences, &mut report);
        let left: u64 = reports.iter().map(|report| report.counts.events.all).sum();
        let text = match (differences.found, left) {
            (0, 0) => "nothing was compared: by the log, no line left that is asked about",
            (0, _) => {
                "proven: positions. No stored line is one that left; a store that writes events in \
                 its own way can't be compared byte by byte"
            }
            (_, _) => "proven: bytes. Each line that was found is the one that left",
        };
        report.notes.push(text.to_owned());
        report.append(self.store.report, None);
        Ok(report)
    }

    /// Finds the lines that were sent before the end of the export and are not stored. Each value
    /// is the place of the line that is stored instead, if there is one. Also counts the lines that
    /// need not be stored yet.
    fn missing(
        &mut self,
        differences: &Differences,
        request: &Request,
        report: &mut Report,
    ) -> io::Result<BTreeMap<Place, Option<u64>>> {
        let settle = u64::try_from(request.settle.as_millis()).unwrap_or(u64::MAX);
        for (at, sent) in self.sent.iter_mut().enumerate() {
            let last = differences.ends.get(&source_of(at));
            sent.end = last.map(|last| (*last, sent.place(*last).1));
        }
        let (mut missing, mut count) = (BTreeMap::new(), 0);
        if differences.absent == 0 {
            return Ok(missing);
        }
        let beside = |place: &u64| place.saturating_sub(BESIDE)..=place + BESIDE;
        let places: BTreeSet<_> = differences.extra.iter().flat_map(beside).collect();
        let known = self.store.lines.absent(&places, &mut |place, is_late| {
            let sent = self.sent.get_mut(usize::from(place.0).wrapping_sub(1));
            if sent.is_some_and(|sent| sent.is_missing(place.1, is_late, settle)) {
                count += 1;
                missing.insert(place, None);
                if missing.len() > DIFFERENCES_MAX {
                    missing.pop_last();
                }
            }
        })?;
        self.sent.iter().for_each(|sent| sent.tell_open(request, report));
        let changed = find_changed(&mut missing, &differences.extra, &known);
        report.counts[Number::Changed] = changed;
        report.counts[Number::Missing] = count - changed;
        Ok(missing)
    }

    /// Adds faults for the sent lines that are not stored as sent.
    fn tell_missing(&self, missing: &BTreeMap<Place, Option<u64>>, reports: &mut [&mut Report]) {
        for (at, sent) in self.sent.iter().enumerate() {
            let Some(report) = reports.get_mut(sent.log) else { continue };
            let (source, output) = (source_of(at), &sent.output);
            let of_output = missing.range((source, 0)..=(source, u64::MAX));
            let of_output = of_output.map(|((_, number), line)| (sent.place(*number).0, *line));
            let (changed, absent): (Vec<_>, Vec<_>) = of_output.partition(|it| it.1.is_some());
            let absent = absent.into_iter().map(|(at, _)| at..at.saturating_add(1));
            for range in absent.collect::<Positions>().ranges() {
                let text = match range.end - range.start {
                    1 => format!("the event left by {output}, and its line is not stored"),
                    count => {
                        format!("{count} events left by {output}, and their lines are not stored")
                    }
                };
                report.faults.add_at(range.start, None, text);
            }
            for (position, place) in changed {
                let name = self.store.name(place.unwrap_or_default());
                let text =
                    format!("the event left by {output}, and another line is in its place: {name}");
                report.faults.add_at(position, None, text);
            }
        }
    }

    /// Reports the stored lines that the logs do not have. They are a fault only without a possible
    /// explanation.
    fn tell_extra(
        &self,
        differences: &Differences,
        missing: &BTreeMap<Place, Option<u64>>,
        report: &mut Report,
    ) {
        let (newer, kept) = (differences.of(Class::Newer), &self.store.kept);
        if newer > 0 {
            report.counts[Number::Newer] = newer;
            let last = self.last_checkpoint.as_deref().unwrap_or_default();
            let lines = counted(newer, "stored line is an event", "stored lines are events");
            let text = format!("{lines} that came in after {last}");
            report.unchecked.push(text);
        }
        let changed: BTreeSet<_> = missing.values().flatten().copied().collect();
        let extra = differences.of(Class::Extra) - changed.len() as u64;
        if extra == 0 {
            return;
        }
        let names = differences.extra.difference(&changed).take(PLACES_MAX);
        let names = names.map(|place| self.store.name(*place)).collect::<Vec<_>>().join(", ");
        let lines = counted(extra, "stored line is", "stored lines are");
        let text = format!("{lines} not in the log: {names}");
        let of_others = kept.iter().map(|kept| &kept.checkpoint.origin);
        let of_others = of_others.map(|origin| format!("it is of the log of {origin}"));
        let explanations: BTreeSet<_> =
            self.explanations.iter().cloned().chain(of_others).collect();
        if explanations.is_empty() {
            report.counts[Number::Extra] = extra;
            return report.fault(text);
        }
        report.counts[Number::Unexplained] = extra;
        let explanations: Vec<_> = explanations.into_iter().collect();
        report.unchecked.push(format!("{text}. For each, perhaps {}", explanations.join("; or ")));
    }
}

fn source_of(at: usize) -> u16 {
    u16::try_from(at + 1).unwrap_or(u16::MAX)
}

/// Reports how many stored lines match two sent lines, and whether only some have the added
/// members.
fn tell_forms(differences: &Differences, report: &mut Report) {
    let Differences { ambiguous, with_added, without_added, .. } = differences;
    if *ambiguous > 0 {
        report.unchecked.push(format!(
            "{ambiguous} stored lines may each be either of two events that left, with and without \
             kind and apiVersion"
        ));
    }
    if *with_added > 0 && *without_added > 0 {
        report.unchecked.push(format!(
            "{with_added} stored lines have kind and apiVersion, which the events that left lack, \
             and {without_added} have not: an output with format = \"audit_log\" adds them to each \
             event"
        ));
    }
}

/// Pairs the lines of `extra`, which are stored but were not sent, with missing lines, and enters
/// the place of each stored line in `missing`. The missing line was sent between the two lines that
/// are stored beside the extra one or, if only one of the two is known, it is the nearest one after
/// or before that one. `known` has the places of sent lines, by the places of the equal stored
/// lines. Returns the number of pairs.
fn find_changed(
    missing: &mut BTreeMap<Place, Option<u64>>,
    extra: &BTreeSet<u64>,
    known: &BTreeMap<u64, Place>,
) -> u64 {
    let mut open: BTreeSet<Place> = missing.keys().copied().collect();
    let mut last = None;
    for place in extra {
        // If the line before was found to replace a missing line, this line comes after that
        // missing line.
        let last_one = last.filter(|(at, _)| at + 1 == *place).map(|(_, it)| it);
        let mut known_before = known.range(place.saturating_sub(BESIDE)..*place);
        let before = last_one.or(known_before.next_back().map(|(_, left)| *left));
        let behind = known.range(place + 1..=place + BESIDE).next().map(|(_, left)| *left);
        // Lines of two sources are not neighbours.
        let behind = behind.filter(|behind| before.is_none_or(|before| before.0 == behind.0));
        let found = match (before, behind) {
            (Some(before), Some(behind)) if before < behind => {
                open.range((before.0, before.1 + 1)..behind).next().copied()
            }
            (Some((source, before)), _) => {
                open.range((source, before + 1)..=(source, u64::MAX)).next().copied()
            }
            (None, Some(behind)) => open.range((behind.0, 0)..behind).next_back().copied(),
            (None, None) => None,
        };
        if let Some(line) = found {
            open.remove(&line);
            missing.insert(line, Some(*place));
            last = Some((*place, line));
        }
    }
    (missing.len() - open.len()) as u64
}
