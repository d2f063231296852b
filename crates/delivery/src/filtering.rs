//! Decides which events of a claim are sent, and in which form, if the output has a filter.
//!
//! A batch goes through the filter each time that it is sent, and comes out as lines again, or as
//! parts of a list if the output sends lists. Long runs of unchanged events are not copied. The
//! filter's decision about an event is kept as a *mark*, under the event's position, until the
//! event's claim is final. Only then is the decision counted, so that resent events are not counted
//! twice.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use super::lines::{Lines, events, line};
use super::offload::{has_large_event, offload};
use super::tapped::Tapping;
use crate::filter::{Changes, EventView, Filter, Seen, Verdict};
use audit::Events;
use evidence_log::tlog::merkle::Hash;
use queue::{Batch, Claim, Cursor, Disposition, Fate, Position, SentLine, lines};
use telemetry::{Filtered, OutputMetrics};

/// The capacity that the buffer for a changed event may keep for the next batch.
const CHANGED_BYTES_KEPT: usize = 1024 * 1024;

/// After this many bytes of events that are filtered out or given up, the delivery loop yields to
/// other tasks on this thread.
pub(super) const INSPECTED_BYTES_MAX: u64 = 8 * 1024 * 1024;

pub(super) const TOO_LARGE: &str =
    "larger than filter.max_event_bytes, even with all of its parts cut: raise it to 4KiB or more";

/// While the lines of too large events in the marks have this many bytes, nothing is sent.
const TOO_LARGE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The filter of one output, and the decisions (*marks*) about events that are not final. The
/// ledger owns this value. Without a filter, every batch passes unchanged.
///
/// Phases of a claim: [`pass_to_send`] marks its events each time that it is sent. Then [`settle`]
/// decides about a claim that the consumer has accepted, [`released`] forgets the marks of a claim
/// that will be sent again, or [`originals`] gives it up.
///
/// Invariant: there are marks only for events that are not final. A mark is the decision from the
/// last time that the event went through the filter.
///
/// [`pass_to_send`]: Filtering::pass_to_send
/// [`settle`]: Filtering::settle
/// [`released`]: Filtering::released
/// [`originals`]: Filtering::originals
#[derive(Default)]
pub(super) struct Filtering {
    filter: Option<Filter>,
    sends_lists: bool,
    marks: Marks,
    changed: Vec<u8>,
    /// The position after the last filtered claim. If a later claim starts after this position, the
    /// queue has dropped the events between the two.
    next: Position,
    /// `true` if there is evidence, which needs the fate of each event.
    is_recorded: bool,
    /// If evidence is recorded, the sent lines of batches in which the filter has changed or
    /// dropped an event.
    sent: BTreeMap<Position, SentLine>,
    /// If evidence is recorded, the events of the current batch that the filter has changed.
    altered: BTreeSet<Position>,
    /// `true` while events do not get their form, because they will be dead letters.
    is_formless: bool,
    pub(super) tapping: Tapping,
}

/// The result for a claim that the consumer has accepted, or of which the filter has let nothing
/// through.
pub(crate) enum Settled {
    /// The consumer has every event that passed the filter.
    Final(Disposition),
    /// Some events are too large, and are given up. The values are the numbers of lost, dropped and
    /// duplicate events, and the lines of the too large events.
    Without(Disposition, Vec<Bytes>),
}

/// The marks by position. An event without a mark is sent, and no change of it is counted.
#[derive(Default)]
struct Marks {
    of: BTreeMap<Position, Mark>,
    bytes: u64,
}

#[derive(Debug, PartialEq)]
enum Mark {
    /// The filter does not select the event for this output.
    Dropped,
    Duplicate,
    Changed(Changes),
    /// The event would be too large however it is cut. The value is its line as received.
    TooLarge(Bytes),
}

impl Mark {
    fn of(verdict: Verdict, event: &[u8]) -> Option<Self> {
        match verdict {
            Verdict::Untouched => None,
            Verdict::Changed(changes) => Some(Self::Changed(changes)),
            Verdict::Dropped => Some(Self::Dropped),
            Verdict::Duplicate => Some(Self::Duplicate),
            Verdict::TooLarge => Some(Self::TooLarge(line(event))),
        }
    }
}

impl Marks {
    fn note(&mut self, position: Position, mark: Mark) {
        match &mark {
            // An event that only got annotations is not counted.
            Mark::Changed(changes) if *changes == Changes::default() => return,
            Mark::TooLarge(line) => self.bytes += line.len() as u64,
            Mark::Changed(_) | Mark::Dropped | Mark::Duplicate => {}
        }
        self.of.insert(position, mark);
    }

    fn take(&mut self, positions: Range<Position>) -> Vec<(Position, Mark)> {
        let marks: Vec<_> = self.of.extract_if(positions, |_, _| true).collect();
        for (_, mark) in &marks {
            if let Mark::TooLarge(line) = mark {
                self.bytes -= line.len() as u64;
            }
        }
        marks
    }

    fn too_large(&self, claim: Claim) -> Vec<Bytes> {
        let marks = self.of.range(claim.start..claim.end);
        marks
            .filter_map(
                |(_, mark)| if let Mark::TooLarge(line) = mark { Some(line.clone()) } else { None },
            )
            .collect()
    }
}

impl Filtering {
    pub(crate) fn new(
        filter: Option<Filter>,
        cursor: &Cursor,
        tapping: Tapping,
        sends_lists: bool,
    ) -> Self {
        let (next, is_recorded) = (cursor.position(), cursor.is_recorded());
        Self { filter, sends_lists, next, is_recorded, tapping, ..Self::default() }
    }

    /// Returns `true` if the marks have so many bytes of too large events that nothing more should
    /// be sent.
    pub(crate) fn is_full(&self) -> bool {
        self.marks.bytes >= TOO_LARGE_BYTES_MAX
    }

    /// Forgets the marks after the cursor, which was set back to the first event that is not final.
    pub(super) fn rewound(&mut self, cursor: &Cursor) {
        self.next = cursor.position();
        self.unmark(self.next..Position::MAX);
    }

    /// Forgets the marks of a claim that will be sent again: the filter will decide again.
    pub(super) fn released(&mut self, claim: Claim) {
        self.unmark(claim.start..claim.end);
    }

    fn unmark(&mut self, positions: Range<Position>) -> Vec<(Position, Mark)> {
        self.tapping.forget(positions.start, positions.end);
        self.sent.extract_if(positions.clone(), |_, _| true).for_each(drop);
        self.marks.take(positions)
    }

    /// Removes events from the memory of sent events: they were dropped, given up or set aside, or
    /// nobody knows which of them were sent. A later copy is then no duplicate.
    fn forget(&mut self, positions: Range<Position>) {
        if let Some(filter) = &mut self.filter {
            filter.forget(positions);
        }
    }

    /// Returns the filter's memory, if duplicates are removed and the memory is complete.
    pub(super) fn into_seen(self) -> Option<Seen> {
        self.filter.and_then(Filter::into_seen)
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.filter.is_some()
    }

    /// Returns the events to be sent, in their form. During work on large events, another thread
    /// runs the other tasks of this thread.
    fn pass(&mut self, batch: Batch, cursor: &Cursor) -> Batch {
        let Some(filter) = &mut self.filter else { return batch };
        filter.renew(cursor.watermark());
        self.begin_batch(&batch);
        let takes_long = batch.pieces.iter().any(|piece| has_large_event(piece));
        offload(takes_long, || self.judge_and_hash(batch))
    }

    /// Like [`Filtering::pass`], with copies for open taps.
    pub(super) fn pass_to_send(&mut self, batch: Batch, cursor: &Cursor) -> Batch {
        if !self.tapping.begin(batch.claim) {
            return self.pass(batch, cursor);
        }
        if self.filter.is_none() {
            self.copy_lines(&batch);
        }
        let passed = self.pass(batch, cursor);
        self.tapping.end(passed.events > 0);
        passed
    }

    /// Copies the lines for taps. Does nothing if events are missing and the batch does not say
    /// which.
    fn copy_lines(&mut self, batch: &Batch) {
        let Batch { claim, events, acceptances, .. } = batch;
        if acceptances.is_empty() && *events < claim.end - claim.start {
            return;
        }
        let counted =
            (0..if acceptances.is_empty() { *events } else { 0 }).map(|at| claim.start + at);
        for (event, position) in batch.events().zip(counted.chain(batch.positions())) {
            self.tapping.copy(position, event);
        }
    }

    /// Judges a batch. If evidence is recorded and the filter has changed or dropped an event, also
    /// hashes the lines.
    fn judge_and_hash(&mut self, batch: Batch) -> Batch {
        let events = batch.events;
        let passed = self.judge(batch);
        if self.is_recorded && (passed.events < events || !self.altered.is_empty()) {
            for (line, position) in lines(&passed.pieces).zip(passed.positions()) {
                let Hash(hash) = Hash::of(&[line]);
                let is_changed = self.altered.contains(&position);
                self.sent.insert(position, SentLine { position, hash, is_changed });
            }
            self.altered.clear();
        }
        passed
    }

    fn judge(&mut self, batch: Batch) -> Batch {
        let Some(filter) = &mut self.filter else { return batch };
        let Self { changed, tapping, .. } = self;
        let gives_form = filter.gives_form();
        let mut lines = Lines::new(self.sends_lists);
        for ((piece, ends), acceptance) in batch.texts().zip(&batch.acceptances) {
            let (mut run, mut end, mut next) = (0, 0, acceptance.first);
            let mut events = filter.events(Events::of(piece, ends));
            while let Some((event, request, known)) = events.next() {
                let (start, position) = (end, next);
                (end, next) = (start + event.len() + 1, position.next());
                changed.clear();
                let asked = EventView { event, request, known, position, age: acceptance.age };
                let verdict = filter.judge(&asked, changed);
                if tapping.is_copying() {
                    match verdict {
                        Verdict::Untouched | Verdict::Changed(_) if gives_form => {
                            tapping.copy(position, filter.before_form(event));
                        }
                        Verdict::Untouched => tapping.copy(position, event),
                        Verdict::Changed(_) => tapping.copy(position, changed),
                        Verdict::Dropped | Verdict::Duplicate | Verdict::TooLarge => {}
                    }
                }
                let Some(mark) = Mark::of(verdict, event) else {
                    lines.count(position, acceptance);
                    continue;
                };
                lines.pass(piece, run, start);
                run = end;
                if matches!(mark, Mark::Changed(_)) {
                    let is_formless = self.is_formless && gives_form;
                    lines.add(if is_formless { filter.before_form(event) } else { changed });
                    lines.count(position, acceptance);
                    if self.is_recorded {
                        self.altered.insert(position);
                    }
                }
                self.marks.note(position, mark);
            }
            lines.pass(piece, run, piece.len());
        }
        if changed.capacity() > CHANGED_BYTES_KEPT {
            *changed = Vec::new();
        }
        let (claim, (events, pieces, acceptances)) = (batch.claim, lines.end());
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        Batch { claim, events, bytes, pieces, ends: Vec::new(), acceptances }
    }

    /// Forgets earlier decisions about the batch, and the events before it that the queue has
    /// dropped. If the queue has dropped some events of the batch, nobody knows which: all are
    /// forgotten and judged again.
    fn begin_batch(&mut self, batch: &Batch) {
        let Batch { claim, events, .. } = *batch;
        self.unmark(self.next.min(claim.start)..claim.end);
        if claim.start > self.next {
            self.forget(self.next..claim.start);
        }
        self.next = self.next.max(claim.end);
        if events < claim.end - claim.start {
            self.forget(claim.start..claim.end);
        }
    }

    /// Returns the events of a batch that is given up or set aside, as received, but none that is
    /// dropped or a duplicate. Also returns the numbers of lost, dropped and duplicate events.
    pub(crate) fn originals(&mut self, batch: Batch, cursor: &Cursor) -> (Vec<Bytes>, Disposition) {
        if self.filter.is_none() {
            return (batch.pieces, Disposition::lost(batch.events));
        }
        // The batch may never have gone through the filter.
        self.pass(batch.clone(), cursor);
        let mut lines = Lines::new(false);
        for (piece, acceptance) in batch.pieces.iter().zip(&batch.acceptances) {
            let mut run = 0;
            for (position, start, end) in events(piece, acceptance) {
                match self.marks.of.get(&position) {
                    Some(Mark::Dropped | Mark::Duplicate) => {
                        lines.pass(piece, run, start);
                        run = end;
                    }
                    Some(Mark::Changed(_) | Mark::TooLarge(_)) | None => {
                        lines.count(position, acceptance);
                    }
                }
            }
            lines.pass(piece, run, piece.len());
        }
        let (lost, pieces, _) = lines.end();
        let mut disposition = Disposition { lost, ..self.give_up(batch.claim) };
        disposition.fates.rest = Some(Fate::Lost);
        (pieces, disposition)
    }

    /// Returns the dead letters of a batch that is too long for the protocol, and the numbers of
    /// lost, dropped and duplicate events. Events that the filter lets through are redacted, but do
    /// not get their form. Events that are too large for the filter follow as received.
    pub(crate) fn too_long(
        &mut self,
        batch: Batch,
        cursor: &Cursor,
        metrics: &OutputMetrics,
    ) -> (Vec<Bytes>, Disposition) {
        let claim = batch.claim;
        self.is_formless = true;
        let Batch { mut pieces, events, .. } = self.pass(batch, cursor);
        self.is_formless = false;
        let too_large = self.marks.too_large(claim);
        let lost = events + too_large.len() as u64;
        pieces.extend(too_large);
        self.forget(claim.start..claim.end);
        let mut disposition = Disposition { lost, ..self.finish(claim, metrics) };
        disposition.fates.sent.clear();
        disposition.fates.rest = Some(Fate::Lost);
        (pieces, disposition)
    }

    pub(super) fn is_kept_back(&self, position: Position) -> bool {
        let mark = self.marks.of.get(&position);
        matches!(mark, Some(Mark::Dropped | Mark::Duplicate | Mark::TooLarge(_)))
    }

    /// Returns the result for an accepted claim. Returns `None` if the claim `waits` for an earlier
    /// one and has no event that is too large.
    pub(crate) fn settle(
        &mut self,
        claim: Claim,
        waits: bool,
        metrics: &OutputMetrics,
    ) -> Option<Settled> {
        let too_large = self.marks.too_large(claim);
        if waits && too_large.is_empty() {
            return None;
        }
        let disposition = self.finish(claim, metrics);
        Some(match too_large.len() {
            0 => Settled::Final(disposition),
            lost => Settled::Without(Disposition { lost: lost as u64, ..disposition }, too_large),
        })
    }

    /// Counts the changed events of a final claim. Returns the numbers of dropped and duplicate
    /// events. If evidence is recorded and the filter has changed or dropped an event, also returns
    /// the sent lines.
    fn finish(&mut self, claim: Claim, metrics: &OutputMetrics) -> Disposition {
        let positions = claim.start..claim.end;
        let sent: Vec<_> = self.sent.range(positions.clone()).map(|(_, line)| *line).collect();
        let is_plain = self.marks.of.range(positions).next().is_none()
            && sent.iter().all(|line| !line.is_changed);
        let mut disposition = self.dispose(claim, |Changes { lowered, redacted, trimmed }| {
            let counters = &metrics.fates.filtered;
            counters.of(Filtered::Lowered).increment(lowered.into());
            counters.of(Filtered::Redacted).increment(redacted.into());
            counters.of(Filtered::Trimmed).increment(trimmed.into());
        });
        disposition.fates.sent = if is_plain { Vec::new() } else { sent };
        disposition
    }

    /// Removes the marks of a final claim, and calls `changed` for each changed event. Returns the
    /// numbers of dropped and duplicate events. If evidence is recorded, also returns the fate of
    /// each event that was not sent.
    fn dispose(&mut self, claim: Claim, changed: impl Fn(Changes)) -> Disposition {
        let mut disposition = Disposition::default();
        for (position, mark) in self.unmark(claim.start..claim.end) {
            let fate = match mark {
                Mark::Dropped => Fate::Dropped,
                Mark::Duplicate => Fate::Duplicate,
                Mark::TooLarge(_) => Fate::Lost,
                Mark::Changed(changes) => {
                    changed(changes);
                    continue;
                }
            };
            disposition.dropped += u64::from(fate == Fate::Dropped);
            disposition.duplicate += u64::from(fate == Fate::Duplicate);
            if self.is_recorded {
                disposition.fates.not_delivered.push((position, fate));
            }
        }
        disposition
    }

    /// Forgets a claim that was given up or set aside, or that the queue dropped. Returns the
    /// numbers of dropped and duplicate events.
    pub(crate) fn give_up(&mut self, claim: Claim) -> Disposition {
        let disposition = self.dispose(claim, drop);
        self.forget(claim.start..claim.end);
        disposition
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::task::JoinSet;

    use super::*;
    use crate::filter::Rules;
    use crate::in_flight::tests::opened;
    use queue::{Append, Take};
    use telemetry::Telemetry;

    const CONFIG: &str = "[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'o'\n\
                          type = 'stdout'\nfilter.redact = []\n";

    /// Returns the filtering of an output that redacts, and a batch of one event about a Secret
    /// with this many bytes of data.
    fn secret(bytes: usize) -> (Filtering, Batch, Cursor) {
        let config = config::read(CONFIG, testing_config::TYPES).config.unwrap();
        let (queue, mut cursor) = opened(&config, &Arc::new(Telemetry::new()));
        cursor.tell_acceptances(true);
        let member = r#","a":"b""#;
        let members = member.repeat(bytes / member.len());
        let body = format!(
            r#"{{"level":"Request","auditID":"a","stage":"Panic",{object},{body}}}"#,
            object = r#""objectRef":{"resource":"secrets"}"#,
            body = format_args!(r#""requestObject":{{"data":{{"a":"b"{members}}}}}"#)
        );
        let audit::Batch { lines, events, levels, .. } = audit::decode(body.into_bytes()).unwrap();
        let _ticket = queue.append(Append { lines, events, levels, list: None }).unwrap();
        let batch = cursor.next(Take { bytes: 1, events: 1 }).unwrap();
        let rules = Rules::new(&config.outputs[0].filter, config::Rejected::Retry);
        let filter = Filter::new(Arc::new(rules), None);
        (Filtering::new(Some(filter), &cursor, Tapping::default(), false), batch, cursor)
    }

    /// Returns an event with bodies, annotations and an unknown member that are nested this deep.
    fn deep_event(open: &str, close: &str, levels: usize, id: usize) -> String {
        let deep = format!("{}\"eyJh.eyJz.Sig\"{}", open.repeat(levels), close.repeat(levels));
        format!(
            r#"{{"level":"RequestResponse","auditID":"{id}","stage":"Panic","verb":"patch",{object},{bodies},{more}}}"#,
            object = r#""objectRef":{"resource":"configmaps"}"#,
            bodies = format_args!(r#""requestObject":{deep},"responseObject":{deep}"#),
            more = format_args!(r#""annotations":{{"a":{deep}}},"x":{deep}"#),
        )
    }

    /// Method: kube-apiserver takes bodies of 10,000 levels, and wraps them. Each kind of rule
    /// judges such events on a small stack.
    #[test]
    fn the_deepest_event_passes_every_kind_of_rule() {
        const RULES: &str = "filter.max_event_bytes = '4KiB'\nfilter.deduplicate = '1m'\n\
            filter.match = { verbs = ['patch'], unless = { users = ['x'] } }\n\
            filter.annotate = { cluster = 'c' }\n\
            filter.redact = [{ fields = ['requestObject.a.a', 'annotations.*.a.a'] }]\n";
        const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
            - level: RequestResponse\n  omitManagedFields: true\n";
        let work = || {
            for (rules, is_cut) in [(RULES, true), (RULES.split_once('\n').unwrap().1, false)] {
                let config = CONFIG.replace("filter.redact = []\n", rules);
                let config = config::read(&config, testing_config::TYPES).config.unwrap();
                let rules = Rules::new(&config.outputs[0].filter, config::Rejected::DeadLetter);
                rules.apply(vec![transform::policy::Policy::read(POLICY).unwrap()]);
                let mut filter = Filter::new(Arc::new(rules), None);
                let forms =
                    [("{\"a\":", "}", 10_005), ("[", "]", 10_005), ("{\"a\":[", "]}", 5_003)];
                for (id, (open, close, levels)) in forms.into_iter().enumerate() {
                    let line = deep_event(open, close, levels, id) + "\n";
                    let mut changed = Vec::new();
                    let mut judge = |position| {
                        changed.clear();
                        let mut events = filter.events(Events::of(line.as_bytes(), None));
                        let (event, request, known) = events.next().unwrap();
                        let age = std::time::Duration::ZERO;
                        let asked = EventView { event, request, known, position, age };
                        filter.judge(&asked, &mut changed)
                    };
                    let first = Position::START + 2 * id as u64;
                    let Verdict::Changed(changes) = judge(first) else { panic!("{open}") };
                    assert_eq!((changes.redacted, changes.trimmed), (true, is_cut), "{open}");
                    assert_eq!(judge(first.next()), Verdict::Duplicate);
                    judge(first);
                    assert!(!is_cut || changed.len() <= 4096, "{}", changed.len());
                    assert_eq!(audit::scan::value_end(&changed), Some(changed.len()));
                    assert!(memchr::memmem::find(&changed, b"eyJz").is_none());
                }
            }
        };
        std::thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap().join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_tasks_go_on_while_a_large_event_is_redacted() {
        let ticks = Arc::new(AtomicU64::new(0));
        let mut ticking = JoinSet::new();
        let counter = Arc::clone(&ticks);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            ticking.spawn(async move {
                loop {
                    counter.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            });
            let (mut filtering, batch, cursor) = secret(4 << 20);
            let before = ticks.load(Ordering::SeqCst);
            let passed = filtering.pass(batch, &cursor);
            let after = ticks.load(Ordering::SeqCst);
            assert_eq!(passed.events, 1);
            assert!(passed.bytes < 1000, "{} bytes", passed.bytes);
            assert!(after > before, "{before} ticks before, {after} after");
        });
        tasks.join_all().await;
    }
}
