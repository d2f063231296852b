//! Decides which events of a claim are sent, and in which form, if the output has a filter.
//!
//! A batch goes through the filter each time that it is sent, and comes out as lines again, or as
//! parts of a list if the output sends lists. Long runs of unchanged events are not copied. The
//! filter's decision about an event is kept as a *mark*, under the event's position, until the
//! event's claim is final. Only then is the decision counted, so it counts once, however many times
//! the event was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use super::lines::{Lines, events, line};
use super::offload::{has_large_event, offload};
use super::tapped::Tapping;
use crate::filter::{Changes, EventView, Filter, Seen, Verdict};
use audit::Events;
use base::mutant;
use evidence_log::tlog::merkle::Hash;
use queue::{Batch, Claim, Cursor, Disposition, Fate, Position, SentLine, lines};
use telemetry::OutputMetrics;

/// The buffer for one changed event is used again for the next event, unless it has grown beyond
/// this many bytes.
const CHANGED_BYTES_KEPT: usize = 1024 * 1024;

/// The delivery loop may inspect this many bytes of events without sending an event (because all
/// are filtered out or given up). Then it yields to the runtime, so that other tasks on this thread
/// can run.
pub(super) const INSPECTED_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The reason, in the log and in dead letters, for giving up events that are larger than
/// `filter.max_event_bytes` even without their request and response objects.
pub(super) const TOO_LARGE: &str = "larger than filter.max_event_bytes, even without its objects";

/// While the decisions about events that are not final hold this many bytes of lines, nothing more
/// is sent. Only an event that is too large for the filter has its line kept.
const TOO_LARGE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The filter of one output, and its decisions (*marks*) about events that are not final. The
/// ledger owns this value. Without a filter, every batch passes unchanged and costs nothing.
///
/// Phases of a claim: [`pass_to_send`] marks its events each time that it is sent. Then [`settle`]
/// says what becomes of it after the consumer has accepted it, [`released`] forgets the marks
/// because it is to be sent again, or [`originals`] gives it up.
///
/// Invariant: there are marks only for events of claims that are not final. The marks of a claim
/// come from the last time that the claim went through the filter.
///
/// [`pass_to_send`]: Filtering::pass_to_send
/// [`settle`]: Filtering::settle
/// [`released`]: Filtering::released
/// [`originals`]: Filtering::originals
pub(super) struct Filtering {
    filter: Option<Filter>,
    /// `true`: batches are sent as parts of JSON lists, where the filter has changed them too.
    sends_lists: bool,
    marks: Marks,
    /// The buffer into which the filter writes one changed event.
    changed: Vec<u8>,
    /// The position after the last claim that has gone through the filter. If a later claim begins
    /// after this position, the queue has dropped the events between the two claims.
    next: Position,
    /// `true`: there is evidence, which needs to know what becomes of each event.
    is_recorded: bool,
    /// With evidence, the lines that are sent, by the positions of their events. They are kept for
    /// batches in which the filter has changed or dropped an event, for as long as the marks are.
    sent: BTreeMap<Position, SentLine>,
    /// With evidence, the positions of the events of the current batch that the filter has changed.
    altered: BTreeSet<Position>,
    /// `true` while events do not get the form in which they are sent: they go to the dead letters.
    is_formless: bool,
    /// The copies of events on the wire for the taps.
    pub(super) tapping: Tapping,
}

/// The result of [`Filtering::settle`] for one claim.
pub(crate) enum Settled {
    /// The consumer has every event of the claim that the filter let through.
    Final(Disposition),
    /// Some events are too large to be sent, and are given up. The values are the numbers for the
    /// whole claim, and the lines of these events.
    Without(Disposition, Vec<Bytes>),
}

/// The filter's decisions about events that are not final. An event without a mark is sent, and the
/// filter counts nothing for it.
#[derive(Default)]
struct Marks {
    of: BTreeMap<Position, Mark>,
    /// The bytes of the lines that the marks hold.
    bytes: u64,
}

/// The filter's decision about one event that it does not send unchanged.
#[derive(Debug, PartialEq)]
enum Mark {
    /// The event is not sent: the filter does not select it for this output.
    Dropped,
    /// The event is not sent, because the same event was sent before.
    Duplicate,
    /// The event is sent in a changed form.
    Changed(Changes),
    /// The event is not sent, because it would be too large even without its request and response
    /// objects. The value is the line of the event as it was received.
    TooLarge(Bytes),
}

impl Mark {
    /// Returns the mark of an event; `None` if it is sent unchanged.
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

    /// Removes the marks of these events, and returns them in order.
    fn take(&mut self, positions: Range<Position>) -> Vec<(Position, Mark)> {
        let marks: Vec<_> = self.of.extract_if(positions, |_, _| true).collect();
        for (_, mark) in &marks {
            if let Mark::TooLarge(line) = mark {
                self.bytes -= line.len() as u64;
            }
        }
        marks
    }

    /// Returns the lines of those events of the claim that are too large to be sent.
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
    /// Makes the filtering of an output, for the events that `cursor` hands out from now on.
    /// `filter` is `None` if the output has no filter. `sends_lists`: the batches that are sent are
    /// parts of JSON lists.
    pub(crate) fn new(
        filter: Option<Filter>,
        cursor: &Cursor,
        tapping: Tapping,
        sends_lists: bool,
    ) -> Self {
        Self {
            filter,
            sends_lists,
            marks: Marks::default(),
            changed: Vec::new(),
            next: cursor.position(),
            is_recorded: cursor.is_recorded(),
            sent: BTreeMap::new(),
            altered: BTreeSet::new(),
            is_formless: false,
            tapping,
        }
    }

    /// Returns `true` if the decisions of the filter take so much memory that no more events should
    /// be sent. Only the decision that an event is too large takes much: it holds the line of the
    /// event until all events of the same claim are delivered or given up.
    pub(crate) fn is_full(&self) -> bool {
        self.marks.bytes >= TOO_LARGE_BYTES_MAX
    }

    /// Notes that the cursor was set back: it hands out events again, beginning with the first that
    /// is not final.
    pub(super) fn rewound(&mut self, cursor: &Cursor) {
        self.next = cursor.position();
        self.unmark(self.next..Position::MAX);
    }

    /// Notes that a claim is to be sent again. Its marks are removed, because the filter will
    /// decide again before the claim is sent.
    pub(super) fn released(&mut self, claim: Claim) {
        self.unmark(claim.start..claim.end);
    }

    /// Removes the marks of the events at these positions, and returns them in order.
    fn unmark(&mut self, positions: Range<Position>) -> Vec<(Position, Mark)> {
        self.tapping.forget(positions.start, positions.end);
        self.sent.extract_if(positions.clone(), |_, _| true).for_each(drop);
        self.marks.take(positions)
    }

    /// Tells the filter that the events at these positions were not sent: the queue has dropped
    /// them, they are given up, or it is not known which of them were sent. A later copy of such an
    /// event is then not taken for a duplicate.
    fn forget(&mut self, positions: Range<Position>) {
        if let Some(filter) = &mut self.filter {
            filter.forget(positions);
        }
    }

    /// Returns the filter's memory of the events that were sent, for the delivery that replaces
    /// this one. `None` if no filter removes duplicates, or if the memory is not complete.
    pub(super) fn into_seen(self) -> Option<Seen> {
        self.filter.and_then(Filter::into_seen)
    }

    /// Tells the queue by which rules events are chosen from now on. Then rebuilds the filter's
    /// memory of the events that were sent before, with which it recognizes duplicates. For this,
    /// it reads the recent events that are still in the queue; the filter says how recent they must
    /// be. It reads nothing if the filter needs no memory, or if it has a complete one from the
    /// previous delivery.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, only a part is rebuilt; events after that part may be sent twice.
    pub(super) async fn look_back(&mut self, cursor: &Cursor) {
        cursor.select(self.filter.as_ref().map_or(0, Filter::selection), self.next);
        let Some(filter) = &mut self.filter else { return };
        let Some(window) = filter.history_window() else { return };
        let mut before = cursor.before(window);
        while let Some((origin, lines)) = before.next().await {
            let remember = || {
                for (position, start, end) in events(&lines, &origin) {
                    let event = lines.get(start..end - 1).unwrap_or_default();
                    filter.remember(event, position, origin.age);
                }
            };
            offload(has_large_event(&lines), remember);
        }
        filter.history_loaded();
    }

    /// Returns `true` if the output has a filter.
    pub(super) fn is_enabled(&self) -> bool {
        self.filter.is_some()
    }

    /// Returns the events of a batch that are to be sent, in the form in which they are sent. The
    /// result may be a batch without events. The filter works on large events aside, so that other
    /// tasks do not wait for it.
    fn pass(&mut self, batch: Batch, cursor: &Cursor) -> Batch {
        let Some(filter) = &mut self.filter else { return batch };
        if filter.renew(cursor.watermark()) {
            cursor.select(filter.selection(), self.next);
        }
        self.begin_batch(&batch);
        let takes_long = batch.pieces.iter().any(|piece| has_large_event(piece));
        offload(takes_long, || self.judge_and_hash(batch))
    }

    /// Returns the events of a batch that are to be sent, as [`Filtering::pass`] does. Copies some
    /// of them, before they get their form, if a tap is open.
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

    /// Copies lines of a batch that no filter changes. If the queue has dropped some events of the
    /// claim, and the batch does not say which, nothing is copied.
    fn copy_lines(&mut self, batch: &Batch) {
        let Batch { claim, events, origins, .. } = batch;
        if origins.is_empty() && *events < claim.end - claim.start {
            return;
        }
        let counted = (0..if origins.is_empty() { *events } else { 0 }).map(|at| claim.start + at);
        for (event, position) in batch.events().zip(counted.chain(batch.positions())) {
            if !self.tapping.is_copying() {
                return;
            }
            self.tapping.copy(position, event);
        }
    }

    /// Asks the filter about each event of a batch, and marks its decisions. With evidence, also
    /// hashes the lines that are sent, if the filter has changed or dropped any event.
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

    /// Asks the filter about each event of a batch, and marks its decisions. Returns the events
    /// that are to be sent, in the form in which they are sent.
    fn judge(&mut self, batch: Batch) -> Batch {
        let Some(filter) = &mut self.filter else { return batch };
        let Self { changed, tapping, .. } = self;
        let gives_form = filter.gives_form();
        let mut lines = Lines::new(self.sends_lists);
        for ((piece, ends), origin) in batch.texts().zip(&batch.origins) {
            let (mut run, mut end, mut next) = (0, 0, origin.first);
            let mut events = filter.events(Events::of(piece, ends));
            while let Some((event, request, known)) = events.next() {
                let (start, position) = (end, next);
                (end, next) = (start + event.len() + 1, position.next());
                changed.clear();
                let asked = EventView { event, request, known, position, age: origin.age };
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
                    lines.count(position, origin);
                    continue;
                };
                lines.pass(piece, run, start);
                run = end;
                if matches!(mark, Mark::Changed(_)) {
                    lines.add(if self.is_formless { filter.before_form(event) } else { changed });
                    lines.count(position, origin);
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
        let (claim, (events, pieces, origins)) = (batch.claim, lines.end());
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        Batch { claim, events, bytes, pieces, ends: Vec::new(), origins }
    }

    /// Prepares the filter for a batch. The batch may have gone through the filter before, so
    /// earlier decisions about its events are forgotten. Events before the batch that the queue has
    /// dropped are forgotten too. If the queue has dropped some events of the batch, nobody knows
    /// which: all are forgotten, and the filter judges the others again.
    fn begin_batch(&mut self, batch: &Batch) {
        let Batch { claim, events, .. } = *batch;
        self.unmark(self.next.min(claim.start)..claim.end);
        if mutant!("dropped-events-stay-known", claim.start > self.next, false) {
            self.forget(self.next..claim.start);
        }
        self.next = self.next.max(claim.end);
        if mutant!("partly-dropped-claim-stays-known", events < claim.end - claim.start, false) {
            self.forget(claim.start..claim.end);
        }
    }

    /// Takes a batch that is given up. Returns the lines of its lost events, as they were received.
    /// Also returns how many of its events are lost, dropped by the filter, or duplicates. An event
    /// that the filter would have dropped, or that is a duplicate, is not lost, so its line is left
    /// out. An event that is too large for the filter is lost.
    pub(crate) fn originals(&mut self, batch: Batch, cursor: &Cursor) -> (Vec<Bytes>, Disposition) {
        if self.filter.is_none() {
            return (batch.pieces, Disposition::lost(batch.events));
        }
        // The batch may never have gone through the filter.
        self.pass(batch.clone(), cursor);
        let mut lines = Lines::new(false);
        for (piece, origin) in batch.pieces.iter().zip(&batch.origins) {
            let mut run = 0;
            for (position, start, end) in events(piece, origin) {
                match self.marks.of.get(&position) {
                    Some(Mark::Dropped | Mark::Duplicate) => {
                        lines.pass(piece, run, start);
                        run = end;
                    }
                    Some(Mark::Changed(_) | Mark::TooLarge(_)) | None => {
                        lines.count(position, origin);
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

    /// Takes a batch of events that are too long for the protocol. Returns their lines, redacted
    /// as if they were sent but without the form in which they would be sent. Also returns how many
    /// of the events are lost, dropped by the filter, or duplicates.
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

    /// Returns `true` if the filter has kept back the event at this position.
    pub(super) fn is_kept_back(&self, position: Position) -> bool {
        let mark = self.marks.of.get(&position);
        matches!(mark, Some(Mark::Dropped | Mark::Duplicate | Mark::TooLarge(_)))
    }

    /// Decides what becomes of a claim that the consumer has accepted. Returns `None`, and decides
    /// nothing, if no event of the claim is too large and `waits` is `true`.
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

    /// Notes that the claim is final. Counts its changed events in the metrics. Returns how many of
    /// its events the filter dropped, and how many were duplicates. Events that were too large are
    /// in neither number. With evidence, also returns the lines that were sent, if the filter has
    /// changed or dropped any event of the claim.
    fn finish(&mut self, claim: Claim, metrics: &OutputMetrics) -> Disposition {
        let positions = claim.start..claim.end;
        let sent: Vec<_> = self.sent.range(positions.clone()).map(|(_, line)| *line).collect();
        let is_plain = self.marks.of.range(positions).next().is_none()
            && sent.iter().all(|line| !line.is_changed);
        let mut disposition = self.dispose(claim, |Changes { lowered, redacted, trimmed }| {
            metrics.fates.filtered.lowered.increment(lowered.into());
            metrics.fates.filtered.redacted.increment(redacted.into());
            metrics.fates.filtered.trimmed.increment(trimmed.into());
        });
        disposition.fates.sent = if is_plain { Vec::new() } else { sent };
        disposition
    }

    /// Removes the marks of a claim that is final. Returns how many of its events the filter
    /// dropped, and how many were duplicates; with evidence, also the fate of each event that was
    /// not sent. Calls `changed` for each event that the filter has changed.
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

    /// Notes that no event of the claim was delivered: the claim was given up, or the queue dropped
    /// it. Returns how many of its events the filter had dropped, and how many were duplicates.
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

    /// Returns the filtering of an output that redacts, and the batch of one event about a Secret
    /// with this many bytes of data.
    fn secret(bytes: usize) -> (Filtering, Batch, Cursor) {
        let config = config::read(CONFIG, testing_config::TYPES).config.unwrap();
        let (queue, mut cursor) = opened(&config, &Arc::new(Telemetry::new()));
        cursor.tell_origins(true);
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
