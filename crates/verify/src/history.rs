//! The history that the entries tell together: positions without gaps, no silence, and a fate for
//! each event.

use std::collections::BTreeMap;
use std::ops::Range;

use super::positions::Positions;
use super::report::{Faults, time};
use super::request::Request;
use super::runs::{Runs, Said};
use base::words::counted;
use evidence_log::entry::{Alarm, Entry, Fate, QUEUE, RANGE_MAX, Running, Started};
use evidence_log::journal;

/// The reason that the report gives for the losses in an [`Entry::Delivered`], which names none.
pub(super) const GIVEN_UP: &str = "given up";

/// The statements of the log about one output.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// The events with a final fate, and those that were set aside.
    pub settled: Positions,
    /// The events that were set aside and have no final fate yet.
    pub aside: Positions,
    /// The events that this output did not have to deliver, because it was not configured when they
    /// were received.
    pub(super) not_its_own: Positions,
    /// The position before which the output has finished all events, and the time of the entry that
    /// says so.
    place: (u64, u64),
    /// `true`: the last entry that lists outputs has this one.
    pub is_there: bool,
    /// The position at which the output was removed. Later events are not its own.
    until: Option<u64>,
    /// The events that may have no fate at this output without a fault:
    ///
    /// - events between the output's place before a crash and its place at the next start. The
    ///   relay may have removed the output before the crash, and added it again, without an entry.
    ///   It may also have been unable to record the fates before the queue needed the room;
    /// - events before the output's place at the first start of the log, which it finished under
    ///   another log or while evidence was off.
    pub passed_over: Positions,
}

/// The facts of a log, collected entry by entry.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The position after the last event that has an entry.
    next: Option<u64>,
    pub accepted: Positions,
    /// The events that the queue lost.
    pub lost: Positions,
    /// The events about which nothing is proven ([`Alarm::Off`]).
    pub off: Positions,
    /// According to the log, the hashes of received lines at positions below this one were deleted.
    pub(super) pruned_below: u64,
    pub outputs: BTreeMap<String, Output>,
    pub runs: Runs,
    has_started: bool,
    /// The version of the program at the last start, and the number of changes so far.
    version: (String, u64),
    /// The version with a journal that was killed before this version went on with its log, until
    /// the log has new events.
    killed: Option<String>,
    /// Sentences about what this version could not check.
    unproven: Vec<String>,
    /// The last change of the version.
    pub(super) changed: Option<String>,
    /// Facts for the report that are not faults.
    pub notes: Vec<String>,
    /// The events that were acknowledged, never stored, and counted as lost: the time of each
    /// entry, and the number of its events.
    pub(super) never_stored: Vec<(u64, u64)>,
    /// The lost events, by the name of the output, or `queue`, and by the reason.
    pub losses: BTreeMap<(String, String), Positions>,
}

impl History {
    /// Adds an entry. Returns `false` if it can't be used.
    pub(crate) fn feed(&mut self, said: Said<'_>, faults: &mut Faults) -> bool {
        if !is_usable(said, faults) {
            return false;
        }
        let Said { index, entry, at, .. } = said;
        let (range, is_after_crash) = (entry.range(), self.runs.is_running());
        self.runs.feed(said, faults);
        match entry {
            Entry::Accepted { .. } => {
                self.follow(said, &range, faults);
                self.accepted.insert(range);
                self.killed = None;
            }
            Entry::Delivered(entry) => {
                self.settle(said, &entry.output, &entry.with(Fate::Aside).collect(), faults);
                entry.with(Fate::Lost).for_each(|it| self.lose(&entry.output, GIVEN_UP, it));
            }
            Entry::Lost { output, first: None, count, .. } if output == QUEUE => {
                self.never_stored.push((at, *count));
            }
            Entry::Lost { output, reason, .. } if output == QUEUE => {
                self.follow(said, &range, faults);
                self.lost.insert(range.clone());
                self.lose(output, reason, range);
            }
            Entry::Lost { output, count, reason, .. } => {
                if reason == "tampered" {
                    let text = format!(
                        "{} changed in the queue before {output} could send {} (entry {index})",
                        counted(*count, "event was", "events were"),
                        if *count == 1 { "it" } else { "them" }
                    );
                    faults.add_at(range.start, Some(at), text);
                }
                self.settle(said, output, &Positions::default(), faults);
                self.lose(output, reason, range);
            }
            Entry::Start(Started { running, previous }) => {
                self.list(running, is_after_crash);
                let (last, is_older) = (&self.version.0, self.version.0 != running.version);
                let is_killed = is_after_crash && is_older && last.starts_with(journal::VERSIONS);
                self.killed = is_killed.then(|| last.clone());
                self.started_as(&running.version, (previous.size, index));
                self.has_started = true;
            }
            Entry::Reload(running) | Entry::Stop(running) => self.list(running, false),
            Entry::Heartbeat { .. } => {}
            Entry::Pruned { below, .. } => self.pruned_below = self.pruned_below.max(*below),
            Entry::Key { verifier_key, .. } => {
                let text = format!("entry {index} names the next key: {verifier_key}");
                self.notes.push(text);
            }
            Entry::Alarm { what, .. } => self.alarm(said, what, faults),
        }
        true
    }

    /// `entries`: the number of entries before this start, and the index of its own entry.
    fn started_as(&mut self, version: &str, entries: (u64, u64)) {
        let (last, changes) = &mut self.version;
        if self.has_started && last != version {
            *changes += 1;
            self.changed = Some(format!(
                "another version of the relay has gone on with this log (in all, {changes} changes \
                 of the version): version {last} wrote up to entry {}, and version {version} from \
                 entry {} on",
                entries.0.saturating_sub(1),
                entries.1
            ));
        }
        version.clone_into(last);
    }

    /// Adds an alarm. It is a fault, unless it is about the events of an older version that was
    /// killed: its newest entries are in its journal, which this version does not read.
    fn alarm(&mut self, said: Said<'_>, what: &Alarm, faults: &mut Faults) {
        let Said { index, at, .. } = said;
        let what = match what {
            Alarm::Off { first, count } => {
                let range = said.entry.range();
                self.follow(said, &range, faults);
                self.off.insert(range);
                if let Some(version) = &self.killed {
                    return self.unproven.push(format!(
                        "{} from position {first} on came in before version {version} of the relay \
                         was killed. Nothing is proven about them, because version {} does not read \
                         the journal of that version (entry {index})",
                        counted(*count, "event", "events"),
                        self.version.0
                    ));
                }
                let text = format!(
                    "{} came in while evidence was off or could not be written (entry {index})",
                    counted(*count, "event", "events")
                );
                return faults.add_at(*first, Some(at), text);
            }
            Alarm::Journal => "the relay set a journal aside that it did not write",
            Alarm::Removed => "entries that the relay had written were gone",
        };
        faults.add(Some(at), format_args!("{what} (entry {index})"));
    }

    fn lose(&mut self, output: &str, reason: &str, range: Range<u64>) {
        let losses = self.losses.entry((output.to_owned(), reason.to_owned())).or_default();
        losses.insert(range);
    }

    /// Checks that a range begins where the events before it end.
    fn follow(&mut self, said: Said<'_>, range: &Range<u64>, faults: &mut Faults) {
        let Said { index, at, .. } = said;
        let (start, next) = (range.start, self.next.unwrap_or(range.start));
        if start > next {
            let count = start - next;
            let events = counted(count, "event has", "events have");
            let text = format!("{events} no entry: entry {index} begins at position {start}");
            faults.add_at(next, Some(at), text);
        } else if start < next {
            let text = format!("entry {index} has positions that another entry had before");
            faults.add_at(start, Some(at), text);
        }
        self.next = Some(next.max(range.end));
    }

    /// Adds fates of events at an output. The fates of events in `aside` are not final.
    fn settle(&mut self, said: Said<'_>, output: &str, aside: &Positions, faults: &mut Faults) {
        let range = said.entry.range();
        // Events from before the beginning of the log need no entry.
        let begin = self.accepted.ranges().next().map_or(u64::MAX, |first| first.start);
        let unknown = self.accepted.missing_in(range.start.max(begin)..range.end).into_iter();
        let unknown = unknown.flat_map(|range| self.lost.missing_in(range));
        for unknown in unknown.flat_map(|range| self.off.missing_in(range)) {
            let text = format!(
                "entry {} says what became of events at {output} that never came in",
                said.index
            );
            faults.add_at(unknown.start, Some(said.at), text);
        }
        let output = self.outputs.entry(output.to_owned()).or_default();
        aside.missing_in(range.clone()).into_iter().for_each(|it| output.aside.remove(it));
        // After a crash, an event that already has its final fate may be set aside again.
        let new = aside.ranges().flat_map(|it| output.settled.missing_in(it));
        output.aside.extend(new);
        output.settled.insert(range);
    }

    /// Updates the outputs and their places from an entry that lists them.
    fn list(&mut self, running: &Running, is_after_crash: bool) {
        let next = self.next.unwrap_or_default();
        for (name, output) in &mut self.outputs {
            let left = running.left.get(name).copied();
            if output.is_there && (left.is_some() || !running.outputs.contains_key(name)) {
                (output.is_there, output.until) = (false, Some(left.unwrap_or(next)));
                if is_after_crash {
                    output.passed_over.insert(output.place.0..next);
                }
            }
        }
        for (name, place) in &running.outputs {
            let is_new = !self.outputs.contains_key(name);
            let output = self.outputs.entry(name.clone()).or_default();
            // A new output begins at the end of the queue.
            if !output.is_there && (self.has_started || !is_new) {
                let from = output.until.unwrap_or(output.place.0);
                output.not_its_own.insert(from..*place);
            }
            (output.is_there, output.until) = (true, None);
            // The log knows nothing about the time before its first start.
            if is_after_crash || !self.has_started {
                output.passed_over.insert(output.place.0..*place);
            }
            if *place >= output.place.0 {
                output.place = (*place, running.at);
            }
        }
    }

    /// Checks, after the last entry, that every event before the place of an output has a fate
    /// there. Returns a sentence about each range of [`Output::passed_over`] without a fate.
    pub(crate) fn end(&self, faults: &mut Faults) -> Vec<String> {
        let mut unknown = self.unproven.clone();
        for (name, output) in &self.outputs {
            let (place, at) = output.place;
            for open in self.pending(output, 0..place) {
                let (first, count) = (open.start, open.end - open.start);
                if output.passed_over.missing_in(open).is_empty() {
                    unknown.push(format!(
                        "{} from position {first} on without a fate at {name}: it had finished \
                         them before this log began, or the relay ended without a stop, and may \
                         have recorded too late that the output had left and joined again, or not \
                         at all what became of these events",
                        counted(count, "event", "events")
                    ));
                    continue;
                }
                let text = format!(
                    "{} no fate at {name}, although the log says at {} that it is finished with \
                     them",
                    counted(count, "event has", "events have"),
                    time(at)
                );
                faults.add_at(first, None, text);
            }
        }
        unknown
    }

    /// Returns the received events of a range that have no fate at this output, but must get one.
    pub(crate) fn pending(&self, output: &Output, range: Range<u64>) -> Vec<Range<u64>> {
        let end = output.until.map_or(range.end, |until| until.min(range.end));
        let accepted = self.accepted.within(range.start..end);
        let open = accepted.flat_map(|range| output.settled.missing_in(range));
        open.flat_map(|range| output.not_its_own.missing_in(range)).collect()
    }

    pub(crate) fn facts(&self) -> usize {
        let of_output = |it: &Output| {
            let sets = [&it.settled, &it.aside, &it.not_its_own, &it.passed_over];
            1 + sets.map(Positions::facts).iter().sum::<usize>()
        };
        let outputs: usize = self.outputs.values().map(of_output).sum();
        let losses: usize = self.losses.values().map(|lost| 1 + lost.facts()).sum();
        let positions = self.accepted.facts() + self.lost.facts() + self.off.facts();
        let others = self.notes.len() + self.unproven.len() + self.never_stored.len();
        positions + outputs + losses + others + self.runs.facts()
    }

    /// Returns the position after the last event that was received, or lost from the queue.
    pub(crate) fn next(&self) -> u64 {
        self.next.unwrap_or_default()
    }

    /// Returns the first position that the log knows, and the position after the last one.
    pub(super) fn begin_and_end(&self) -> (u64, u64) {
        let ranges = [&self.accepted, &self.lost, &self.off].map(|it| it.ranges().next());
        let first = ranges.into_iter().flatten().map(|range| range.start).min();
        (first.unwrap_or_else(|| self.recorded_until()), self.recorded_until())
    }

    /// Returns the position after the last event that the log knows. For a log without events, this
    /// is the highest place of its outputs.
    pub(crate) fn recorded_until(&self) -> u64 {
        let places = self.outputs.values().map(|output| output.place.0);
        self.next.or(places.max()).unwrap_or_default()
    }

    /// Returns `true` if every requested output that the log names missed some events, because it
    /// was not configured all the time.
    pub(super) fn asks_about_a_late_output(&self, request: &Request) -> bool {
        let mut outputs = self.outputs.iter().filter(|it| request.asks_of(it.0));
        outputs.all(|(_, output)| self.not_its_own(output).len() > 0)
    }

    /// Returns the received events that do not belong to this output.
    pub(super) fn not_its_own(&self, output: &Output) -> Positions {
        let away = output.until.map(|until| until..self.next());
        let ranges = output.not_its_own.ranges().chain(away);
        ranges.flat_map(|range| self.accepted.within(range)).collect()
    }
}

/// Returns `true` if the entry is about no events, or about an acceptable number. Otherwise adds a
/// fault.
fn is_usable(Said { index, entry, at, .. }: Said<'_>, faults: &mut Faults) -> bool {
    let Some((first, count)) = entry.events() else { return true };
    let is_range = matches!(entry, Entry::Accepted { .. } | Entry::Delivered(_));
    let max = if is_range { RANGE_MAX } else { u64::MAX };
    let is_usable = (1..=max).contains(&count) && first.checked_add(count).is_some();
    if !is_usable {
        let events = counted(count, "event", "events");
        let text = format!("entry {index} is about {events} from position {first} on");
        faults.add(Some(at), text);
    }
    is_usable
}

#[cfg(test)]
mod tests {
    use super::*;
    use evidence_log::entry::{Delivered, Stamp};
    use evidence_log::tlog::merkle::{Hash, Head};

    fn running(at: u64, places: &[(&str, u64)]) -> Running {
        let (version, config_sha256) = (String::new(), String::new());
        let outputs = places.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        let (left, directory) = (BTreeMap::new(), None);
        Running { at, version, config_sha256, heartbeat_ms: 10_000, outputs, left, directory }
    }

    fn start(at: u64, places: &[(&str, u64)]) -> Entry {
        let previous = Head { size: 0, root: Hash::of_nothing() };
        Entry::Start(Started { running: running(at, places), previous })
    }

    fn accepted(first: u64, count: u64, at: u64) -> Entry {
        Entry::Accepted { first, count, at, root: Hash::of_nothing() }
    }

    fn delivered(output: &str, first: u64, count: u64, at: u64) -> Entry {
        let (not_delivered, changed) = (BTreeMap::new(), Vec::new());
        let (output, root) = (output.to_owned(), None);
        Entry::Delivered(Delivered { output, first, count, at, root, not_delivered, changed })
    }

    fn lost(output: &str, first: Option<u64>, count: u64, at: u64) -> Entry {
        let (output, reason) = (output.to_owned(), "when_full".to_owned());
        Entry::Lost { output, first, count, at, reason }
    }

    /// Returns the texts of the faults of a log with these entries.
    fn faults(entries: &[Entry]) -> Vec<String> {
        let (mut history, mut faults) = (History::default(), Faults::default());
        let mut up = 0;
        for (index, entry) in (0..).zip(entries) {
            up = entry.at().max(up);
            let stamp = Some(Stamp { boot: 1, up });
            history.feed(Said::new(index, entry, stamp), &mut faults);
        }
        history.end(&mut faults);
        faults.kept().iter().map(|fault| fault.to_string()).collect()
    }

    #[track_caller]
    fn assert_one(entries: &[Entry], text: &str) {
        let faults = faults(entries);
        assert!(matches!(faults.as_slice(), [fault] if fault.contains(text)), "{faults:?}");
    }

    #[test]
    fn a_log_without_faults_has_none() {
        let entries = [
            start(0, &[("a", 5)]),
            accepted(5, 10, 1),
            delivered("a", 5, 10, 2),
            lost("queue", Some(15), 5, 3),
            lost("queue", None, 7, 3),
            accepted(20, 1, 4),
            lost("a", Some(20), 1, 5),
            Entry::Reload(running(6, &[("a", 21), ("b", 21)])),
            accepted(21, 4, 7),
            delivered("b", 21, 4, 8),
            Entry::Stop(running(9, &[("a", 21), ("b", 25)])),
            start(1_000_000, &[("a", 21), ("b", 25)]),
            delivered("a", 21, 4, 1_000_001),
            Entry::Heartbeat { at: 1_012_000 },
            Entry::Stop(running(1_012_001, &[("a", 25), ("b", 25)])),
        ];
        assert_eq!(faults(&entries), [""; 0]);
    }

    #[test]
    fn gaps_and_repeated_positions_are_faults() {
        assert_one(&[accepted(0, 5, 1), accepted(6, 5, 1)], "position 5 1970");
        assert_one(&[accepted(0, 5, 1), accepted(4, 5, 1)], "entry 1 has positions");
        assert_one(&[accepted(0, 5, 1), delivered("a", 3, 4, 1)], "that never came in");
        assert_one(&[accepted(0, 5000, 1)], "about 5000 events");
        let huge = [lost("queue", None, u64::MAX, 1), lost("queue", Some(0), u64::MAX - 1, 1)];
        assert_eq!(faults(&huge), [""; 0]);
        assert_one(&[huge[1].clone(), accepted(u64::MAX, 1, 1)], "about 1 event ");
        assert_one(&[lost("a", Some(7), u64::MAX, 1)], "from position 7 on");
    }

    #[test]
    fn silence_is_a_fault_only_while_the_relay_runs() {
        let quiet = |gap| [start(0, &[]), Entry::Heartbeat { at: gap }];
        assert_eq!(faults(&quiet(15_000)), [""; 0]);
        assert_one(&quiet(15_001), "nothing was recorded for 15 s before entry 1");
        let mut short = running(0, &[]);
        short.heartbeat_ms = 1000;
        let short = |at| [start(0, &[]), Entry::Reload(short.clone()), Entry::Heartbeat { at }];
        assert_eq!(faults(&short(3000)), [""; 0]);
        assert_one(&short(3001), "nothing was recorded");
        let crashed = [start(0, &[]), start(100_000, &[])];
        assert_eq!(faults(&crashed), [""; 0]);
        let back = [start(100_000, &[]), Entry::Heartbeat { at: 0 }, Entry::Heartbeat { at: 9000 }];
        assert_eq!(faults(&back), [""; 0]);
        // Events that waited in the queue for their entry have an old time.
        let old = [start(100_000, &[]), accepted(0, 1, 5), Entry::Heartbeat { at: 110_000 }];
        assert_eq!(faults(&old), [""; 0]);
    }

    #[test]
    fn an_event_without_a_fate_is_a_fault_where_the_output_is_behind_it() {
        let open = [start(0, &[("a", 0)]), accepted(0, 10, 1), delivered("a", 0, 4, 2)];
        assert_eq!(faults(&open), [""; 0]);
        let stop = Entry::Stop(running(3, &[("a", 10)]));
        let said = [open.as_slice(), &[stop]].concat();
        assert_one(&said, "position 4: 6 events have no fate at a");
    }

    /// Method: a log begins with events that one of the outputs has finished: the directory was
    /// restored under a new origin, or evidence was off. Nobody knows what became of them there.
    #[test]
    fn events_that_an_output_had_finished_when_the_log_began_are_unknown_and_no_fault() {
        let entries =
            [start(0, &[("a", 7), ("b", 0)]), accepted(0, 10, 1), delivered("b", 0, 10, 2)];
        let entries = [&entries[..], &[delivered("a", 7, 3, 3)]].concat();
        let (mut history, mut faults) = (History::default(), Faults::default());
        for (index, entry) in (0..).zip(&entries) {
            history.feed(Said::new(index, entry, None), &mut faults);
        }
        let unknown = history.end(&mut faults);
        assert_eq!(faults.count(), 0);
        assert!(matches!(unknown.as_slice(), [it] if it.starts_with("7 events from position 0")));
    }

    /// Method: an output ends some time after the reload that removes it, and is added again.
    #[test]
    fn events_between_a_late_end_of_an_output_and_its_next_beginning_are_not_its_own() {
        let again = |left: &[(&str, u64)]| {
            let left = left.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
            Entry::Reload(Running { left, ..running(5, &[("a", 36)]) })
        };
        let entries = |left| {
            let removed = Entry::Reload(running(2, &[("a", 0)]));
            let before = [start(0, &[("a", 0)]), accepted(0, 20, 1), removed];
            let away = [lost("a", Some(0), 30, 3), accepted(30, 6, 4), again(left)];
            let [first, second, third] = before;
            let [fourth, fifth, sixth] = away;
            [first, second, third, accepted(20, 10, 2), fourth, fifth, sixth]
        };
        assert_eq!(faults(&entries(&[("a", 30)])), [""; 0]);
        assert_one(&entries(&[]), "position 30: 6 events have no fate at a");
        assert_one(&entries(&[("a", 32)]), "position 30: 2 events have no fate at a");
    }

    /// Method: an output is removed without an entry about it, the relay is killed, and the output
    /// is added again.
    #[test]
    fn an_output_that_left_before_a_crash_may_have_left_at_any_time() {
        let entries = [
            start(0, &[("a", 0), ("b", 0)]),
            accepted(0, 10, 1),
            delivered("a", 0, 4, 2),
            start(3, &[("b", 0)]),
            accepted(10, 5, 4),
            Entry::Reload(running(5, &[("a", 15), ("b", 0)])),
        ];
        assert_eq!(faults(&entries), [""; 0]);
        let (mut history, mut faults) = (History::default(), Faults::default());
        for (index, entry) in (0..).zip(&entries) {
            history.feed(Said::new(index, entry, None), &mut faults);
        }
        let unknown = history.end(&mut faults);
        assert!(matches!(unknown.as_slice(), [it] if it.starts_with("6 events from position 4")));
    }

    /// Method: a version with a journal is killed or ends, and another version goes on.
    #[test]
    fn the_events_of_an_older_version_that_was_killed_are_unproven_and_no_fault() {
        let started = |at, version: &str| {
            let Entry::Start(it) = start(at, &[]) else { unreachable!("it is a start") };
            let version = version.to_owned();
            Entry::Start(Started { running: Running { version, ..it.running }, ..it })
        };
        let off = |first| Entry::Alarm { at: 3, what: Alarm::Off { first, count: 5 } };
        let check = |older: &str, entries: &[Entry]| {
            let (mut history, mut faults) = (History::default(), Faults::default());
            let all = [&[started(0, older), accepted(0, 10, 1)], entries].concat();
            for (index, entry) in (0..).zip(&all) {
                history.feed(Said::new(index, entry, None), &mut faults);
            }
            (history.end(&mut faults).len(), faults.count())
        };
        let new = started(2, "0.2.0");
        assert_eq!(check("0.1.0", &[new.clone(), off(10)]), (1, 0));
        // The same version, or one that has ended, has left all its entries.
        assert_eq!(check("0.2.0", &[new.clone(), off(10)]), (0, 1));
        let stop = Entry::Stop(running(2, &[]));
        assert_eq!(check("0.1.0", &[stop, new.clone(), off(10)]), (0, 1));
        // Later events came in under the new version.
        assert_eq!(check("0.1.0", &[new, accepted(10, 5, 2), off(15)]), (0, 1));
    }

    #[test]
    fn an_output_that_was_away_has_no_fates_in_that_time() {
        let entries = [
            start(0, &[("a", 0)]),
            accepted(0, 10, 1),
            lost("a", Some(0), 10, 2),
            Entry::Reload(running(2, &[("b", 10)])),
            accepted(10, 10, 3),
            delivered("b", 10, 10, 3),
            Entry::Reload(running(4, &[("a", 20), ("b", 20)])),
            accepted(20, 5, 5),
        ];
        assert_eq!(faults(&entries), [""; 0]);
    }
}
