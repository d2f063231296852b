//! The events of one log: the statements of its entries about them, and the hashes of their lines.

use std::collections::BTreeMap;
use std::ops;

use super::bounds::FACTS_MAX;
use super::hashes::{Found, Hashes};
use super::history::{GIVEN_UP, History};
use super::positions::Positions;
use super::report::{Faults, Number, Report, Share, time};
use super::request::Request;
use super::runs::Said;
use base::words::counted;
use evidence_log::entry::{Delivered, Entry, Fate, Offset, QUEUE};
use evidence_log::reader::Directory;
use evidence_log::tlog::merkle::Hash;

/// The reasons of losses that `--allow-lost` does not allow: the queue's files were not what the
/// relay had written.
const NEVER_ALLOWED: [&str; 3] = ["damaged", "missing", "tampered"];

/// A range of positions that an entry added to the log.
struct Span {
    end: u64,
    index: u64,
    at: u64,
    /// The root over the line hashes, if the entry has one.
    root: Option<Hash>,
}

/// The events of a log, collected by calls of [`Events::feed`].
pub(crate) struct Events<'a> {
    pub history: History,
    pub hashes: Hashes<'a>,
    spans: BTreeMap<u64, Span>,
    /// The range from the first to the last requested event.
    pub period: ops::Range<u64>,
    /// The received events in `period`.
    pub asked: Positions,
}

/// The fates of events at one output, counted in a second reading of the entries.
#[derive(Default)]
pub(crate) struct Fates {
    /// The events with a final fate. An event whose fate was recorded again after a crash counts
    /// once.
    seen: Positions,
    changed: u64,
    not_delivered: BTreeMap<Fate, u64>,
}

/// An event of a [`Delivered`] entry: its position, its fate if its line was not sent, and the hash
/// of its line if that is known.
pub(crate) type Settled = (u64, Option<Fate>, Option<Hash>);

impl<'a> Events<'a> {
    /// Makes an empty collection. `evidence` is the directory with the line hashes, and `None` for
    /// a published log.
    pub(crate) fn of(evidence: Option<&'a Directory>) -> Self {
        let (history, hashes) = (History::default(), Hashes::of(evidence));
        Self { history, hashes, spans: BTreeMap::new(), period: 0..0, asked: Positions::default() }
    }

    pub(super) fn are_too_many(&self) -> bool {
        self.history.facts() + self.hashes.gone.facts() > FACTS_MAX
    }

    pub(crate) fn feed(&mut self, said: Said<'_>, faults: &mut Faults) {
        if !self.history.feed(said, faults) {
            return;
        }
        let Said { index, entry, at, .. } = said;
        if let Entry::Delivered(delivered) = entry {
            return self.as_sent(delivered, faults);
        }
        let Some(ops::Range { start, end }) = entry.in_queue() else { return };
        let mut span = Span { end, index, at, root: None };
        if let Entry::Accepted { count, root, .. } = entry {
            match self.hashes.range(None, start, *root) {
                Found::Range(found) if found.end() == end => span.root = Some(*root),
                Found::Range(_) | Found::Changed => {
                    let events = counted(*count, "event", "events");
                    let text = format!("the line hashes of {events} were changed");
                    self.hashes.changed.push((start, at, text));
                }
                Found::Gone => {}
            }
            if span.root.is_none() {
                self.hashes.gone.insert(start..end);
            }
        }
        self.spans.insert(start, span);
    }

    /// Checks the hashes of the sent lines, if the entry has a root over them. An entry has one
    /// only if a filter has changed or dropped events.
    fn as_sent(&mut self, entry: &Delivered, faults: &mut Faults) {
        let Delivered { output, first, count, at, root: Some(root), .. } = entry else { return };
        match self.hashes.range(Some(output), *first, *root) {
            Found::Range(found) => self.compare_as_sent(entry, &found.lines, faults),
            Found::Changed => {
                let lines = counted(*count, "line", "lines");
                let text = format!("the hashes of {lines} that {output} sent were changed");
                self.hashes.changed.push((*first, *at, text));
            }
            Found::Gone => self.hashes.gone_as_sent.insert(entry.range()),
        }
    }

    /// Checks that the lines of an entry were sent as received, unless the entry lists them as
    /// changed.
    fn compare_as_sent(&mut self, entry: &Delivered, sent: &[Hash], faults: &mut Faults) {
        let Delivered { output, first, count, at, not_delivered, changed, .. } = entry;
        let offsets = (0..*count).map(Offset).filter(|offset| !not_delivered.contains_key(offset));
        let left: Vec<_> = offsets.collect();
        let (by_log, hashed) = (left.len(), sent.len());
        if by_log != hashed {
            let text = format!(
                "by the log, {by_log} lines left by {output}, and the root is over {hashed}"
            );
            return faults.add_at(*first, Some(*at), text);
        }
        for (offset, sent) in left.into_iter().zip(sent) {
            let position = first.saturating_add(offset.0);
            let came = self.original(position);
            if came.is_some_and(|came| came != *sent) && !changed.contains(&offset) {
                let text = format!(
                    "the event left by {output} in another form than it came in, and the log says \
                     that it was not changed"
                );
                faults.add_at(position, Some(*at), text);
            }
        }
    }

    /// Finds the requested positions: from the first to the last event of the requested time. All
    /// events between them count too, because the clock may have been wrong.
    pub(crate) fn cut(&mut self, request: &Request, report: &mut Report) {
        let Request { since, until, .. } = *request;
        let mut spans = self.spans.iter();
        let first = spans.find(|(_, span)| since.is_none_or(|since| since <= span.at));
        let last = self.spans.iter().rfind(|(_, span)| until.is_none_or(|until| span.at <= until));
        if let (Some((first, _)), Some((_, last))) = (first, last) {
            self.period = *first..last.end;
        }
        let is_after = since.zip(self.history.runs.last_at).is_some_and(|(it, last)| last < it);
        let is_before =
            until.zip(self.spans.values().next()).is_some_and(|(it, span)| it < span.at);
        if is_after || is_before {
            let text = "the log has nothing of the time that is asked about (--since, --until)";
            report.unchecked.push(text.to_owned());
        }
        self.asked = self.history.accepted.within(self.period.clone()).collect();
    }

    /// Returns the hash of the line at a position as received. `None` if it is missing or changed.
    pub(crate) fn original(&mut self, position: u64) -> Option<Hash> {
        let (first, span) = self.spans.range(..=position).next_back()?;
        match self.hashes.range(None, *first, span.root?) {
            Found::Range(range) => range.hash(position).copied(),
            Found::Changed | Found::Gone => None,
        }
    }

    /// Returns the events of an entry, with the hashes of the sent lines as far as they are known.
    pub(crate) fn lines_of(&mut self, entry: &Delivered) -> Vec<Settled> {
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
                // A filter has changed or dropped events, but the entry has no root over the sent
                // lines.
                (None, None, true) => None,
            };
            (position, fate, hash)
        };
        entry.range().map(line).collect()
    }

    /// Returns `true` if an event may have been sent before, perhaps in another form: a crash or a
    /// changed config is between its reception and the entry with its fate.
    pub(super) fn may_be_sent_again(&self, position: u64, settled: Said<'_>) -> bool {
        let spans = self.spans.range(..=position).rev();
        // The events of a span were received after those of the span before it.
        let came_from = spans.map(|(_, span)| (span.index, span.at)).nth(1).unwrap_or_default();
        self.history.runs.has_turn_in(came_from, (settled.index, settled.at))
    }

    /// Returns the sentence that says about which events of the log the report speaks.
    pub(crate) fn extent(&self) -> Option<String> {
        let ops::Range { start, end } = self.period;
        let last = end.checked_sub(1).filter(|last| start <= *last)?;
        let [from, to] = [start, last].map(|position| self.time_of(position).map(time));
        Some(format!(
            "this is about the events at positions {start} to {last}, received from {} to {}, and \
             about no others",
            from?, to?
        ))
    }

    /// Returns the time at which an event was received or lost.
    pub(crate) fn time_of(&self, position: u64) -> Option<u64> {
        let span = self.spans.range(..=position).next_back();
        span.filter(|(_, span)| position < span.end).map(|(_, span)| span.at)
    }

    pub(crate) fn count(&self, entry: &Delivered, fates: &mut BTreeMap<String, Fates>) {
        let fates = fates.entry(entry.output.clone()).or_default();
        let is_new = |offset: &Offset| {
            let position = entry.first.saturating_add(offset.0);
            self.period.contains(&position) && !fates.seen.contains(position)
        };
        fates.changed += entry.changed.iter().filter(|offset| is_new(offset)).count() as u64;
        for (_, fate) in entry.not_delivered.iter().filter(|it| is_new(it.0)) {
            *fates.not_delivered.entry(*fate).or_default() += 1;
        }
        let aside: Positions = entry.with(Fate::Aside).collect();
        fates.seen.extend(aside.missing_in(entry.range()));
    }

    pub(super) fn tell_fates(
        &self,
        fates: &BTreeMap<String, Fates>,
        request: &Request,
        report: &mut Report,
    ) {
        let (none, history, period) = (Fates::default(), &self.history, &self.period);
        for (name, output) in &history.outputs {
            let fates = fates.get(name).unwrap_or(&none);
            let lost = |is_given_up: bool| -> Positions {
                let of_output = history
                    .losses
                    .iter()
                    .filter(|((of, reason), _)| of == name && (reason == GIVEN_UP) == is_given_up);
                of_output.flat_map(|(_, positions)| positions.within(period.clone())).collect()
            };
            let not_its_own = history.not_its_own(output).len_within(period.clone());
            let of = |fate| fates.not_delivered.get(&fate).copied().unwrap_or_default();
            let dropped = of(Fate::Dropped);
            report.outputs.push(format!(
                "output {name}: dropped {dropped}, duplicate {}, changed {}, given up {}, dead \
                 letters {}, lost {}, not its own {not_its_own}, set aside {}",
                of(Fate::Duplicate),
                fates.changed,
                lost(true).len(),
                of(Fate::DeadLetter),
                lost(false).len(),
                output.aside.len_within(period.clone())
            ));
            if request.asks_of(name) {
                report.counts[Number::Dropped] += dropped;
            }
        }
    }

    /// Counts the received events, for a check without stored lines.
    pub(super) fn count_accepted(&self, request: &Request, report: &mut Report) {
        let (mut pending, mut aside) = (Positions::default(), Positions::default());
        for (_, output) in self.history.outputs.iter().filter(|it| request.asks_of(it.0)) {
            pending.extend(self.history.pending(output, self.period.clone()));
            aside.extend(output.aside.within(self.period.clone()));
        }
        report.counts[Number::Pending] = pending.len();
        report.counts[Number::SetAside] = aside.len();
        let (all, unknown) = (self.asked.len(), self.hashes.gone.len_within(self.period.clone()));
        report.counts.events = Share { good: all - unknown, all };
        report.counts[Number::Unknown] = unknown;
        let is_whole = all > 0 && report.faults.count() == 0;
        let no_gap = if is_whole { "No event is missing in the log. " } else { "" };
        report.notes.push(format!(
            "proven: positions. {no_gap}Without --events, nobody knows what the consumer has stored"
        ));
    }

    pub(crate) fn losses(&self, request: &Request, report: &mut Report) {
        let mut all = BTreeMap::<&str, Positions>::new();
        for ((output, reason), positions) in &self.history.losses {
            if output != QUEUE && !request.asks_of(output) {
                continue;
            }
            let asked: Positions = positions.within(self.period.clone()).collect();
            let is_allowed = request.allows_lost && !NEVER_ALLOWED.contains(&reason.as_str());
            let lost_at = |count| {
                format!("{} lost at {output}: {reason}", counted(count, "event was", "events were"))
            };
            if asked.len() > 0 {
                report.notes.push(format!("by the log, {}", lost_at(asked.len())));
            }
            for range in asked.ranges().filter(|_| !is_allowed) {
                report.faults.add_at(range.start, None, lost_at(range.end - range.start));
            }
            all.entry(output).or_default().extend(asked.ranges());
        }
        let mut lost = all.values().map(Positions::len).fold(0, u64::saturating_add);
        let never_stored = self.history.never_stored.iter();
        for (at, count) in never_stored.filter(|it| request.asks_about(it.0, it.0)) {
            lost = lost.saturating_add(*count);
            let text = format!(
                "{} never stored, in spite of a 200 (when_full = \"drop_newest\")",
                counted(*count, "event was", "events were")
            );
            match request.allows_lost {
                true => report.notes.push(text),
                false => report.faults.add(Some(*at), text),
            }
        }
        report.counts[Number::Lost] = lost;
    }

    /// Reports the ranges whose line hashes are missing. `is_stopped`: this is the directory of a
    /// relay that has stopped.
    pub(super) fn tell_gone(&self, is_stopped: bool, report: &mut Report) {
        let pruned = self.history.pruned_below;
        // After a crash, a range may have records with different salts in two files. If the log has
        // pruned one of them, the other is no fault.
        for (first, at, text) in &self.hashes.changed {
            if *first >= pruned && self.period.contains(first) {
                report.faults.add_at(*first, Some(*at), text);
            }
        }
        let mut is_gone = false;
        let Hashes { gone, gone_as_sent, damages, .. } = &self.hashes;
        for (gone, hashes) in [(gone, "line hashes"), (gone_as_sent, "line hashes as sent")] {
            for range in self.asked.ranges().flat_map(|range| gone.within(range)) {
                for (part, why) in [
                    (range.start..range.end.min(pruned), "were deleted to make room, by the log"),
                    (range.start.max(pruned)..range.end, "are gone, and the log does not say why"),
                ] {
                    if !part.is_empty() {
                        is_gone |= part.end > pruned;
                        let (first, last) = (part.start, part.end - 1);
                        let text = format!("positions {first} to {last}: their {hashes} {why}");
                        report.unchecked.push(text);
                    }
                }
            }
        }
        for (damage, is_cut_off) in damages {
            match is_gone {
                true => report.found(!is_cut_off || is_stopped, damage),
                // A power failure may have cut off a record during its write.
                false => report.notes.push(format!("{damage}; nothing is missing")),
            }
        }
    }
}
