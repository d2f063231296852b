//! What a delivery gives up: events refused for good, those that can't be put in the protocol, and those whose
//! `retry.max_elapsed` is over.
//!
//! Their lines are read from the queue, and handed over to be written as dead letters, if there is a place for them. A claim
//! is finished when its letters are safe, or known not to be.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::dead_letter::CLAIMS_MAX;
use super::dead_letter::DeadLetters;
use super::dead_letter::GROUP_BYTES_MAX;
use super::dead_letter::Writing;
use super::dead_letter::Written;
use super::failure::Failure;
use super::filtering::Filtering;
use super::filtering::INSPECTED_BYTES_MAX;
use super::health::Health;
use super::in_flight::Work;
use super::tried::Tried;
use crate::config::BatchLimits;
use crate::queue::Claim;
use crate::queue::Cursor;
use crate::queue::Disposition;
use crate::queue::Redelivery;
use crate::queue::Take;
use crate::telemetry::Cause;
use crate::telemetry::LostAs;

/// Owned by the delivery loop.
pub(super) struct GivenUp {
    /// As dead letters name it.
    output: Arc<str>,
    /// Where dead letters go; `None`: nowhere.
    place: Option<DeadLetters>,
    /// To be given up, and not on the wire.
    doomed: VecDeque<Doomed>,
    /// In the order in which their letters were handed over.
    endings: VecDeque<Ending>,
    /// Of the lines in `endings`.
    bytes: u64,
    /// The lines of what is to be given up next have to be read, which [`Cursor::readable`] does.
    pub(super) unread: bool,
    /// `retry.max_elapsed`: since when what is not finished is tried.
    tried: Option<Tried>,
    /// An attempt at all that is not final has failed for this reason, and what is too old is to be given up.
    failed: Option<Arc<str>>,
}

/// To be given up, when its lines are at hand.
struct Doomed {
    claim: Claim,
    events: u64,
    reason: Reason,
}

/// Why something is given up.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    cause: Cause,
    /// For the log and the dead letters.
    text: Arc<str>,
}

impl Reason {
    pub(super) fn new(cause: Cause, text: &str) -> Self {
        Self { cause, text: Arc::from(text) }
    }
}

/// Final, as soon as its dead letters are written.
struct Ending {
    claim: Claim,
    /// What of it the consumer did not get.
    disposition: Disposition,
    /// Of their lines.
    bytes: u64,
    reason: Reason,
    writing: Writing,
}

impl GivenUp {
    pub(super) fn new(config: &crate::config::Output) -> Self {
        Self {
            output: Arc::from(config.name.as_str()),
            place: None,
            doomed: VecDeque::new(),
            endings: VecDeque::new(),
            bytes: 0,
            unread: false,
            tried: config.retry.max_elapsed.map(Tried::new),
            failed: None,
        }
    }

    /// From now on there is a place for dead letters.
    pub(super) fn place(&mut self, place: DeadLetters) {
        self.place = Some(place);
    }

    /// So much waits for its letters that nothing more should be sent, which may have to be given up too.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= GROUP_BYTES_MAX || self.endings.len() >= CLAIMS_MAX
    }

    /// No letter is being written.
    pub(super) fn is_ended(&self) -> bool {
        self.endings.is_empty()
    }

    /// What is not final.
    pub(super) fn claims(&self) -> impl Iterator<Item = Claim> {
        let doomed = self.doomed.iter().map(|doomed| doomed.claim);
        doomed.chain(self.endings.iter().map(|ending| ending.claim))
    }

    /// A released claim is to be given up.
    pub(super) fn add(&mut self, work: &Work, error: &str) {
        let reason = Reason::new(Cause::Refused, error);
        self.doomed.push_back(Doomed { claim: work.claim, events: work.events, reason });
    }

    /// The cursor was rewound: what is to be given up is not claimed any more.
    pub(super) fn rewound(&mut self) {
        self.doomed.clear();
    }

    /// There is an attempt at this claim.
    pub(super) fn tried(&mut self, claim: Claim, cursor: &Cursor) {
        if let Some(tried) = &mut self.tried {
            tried.note(claim, cursor.watermark());
        }
    }

    /// What is said of events whose time is over.
    fn too_old(tried: &Tried, error: &str) -> Reason {
        let after = tried.max_elapsed;
        let text =
            format!("not delivered in {after:?} (retry.max_elapsed), the last error: {error}");
        Reason::new(Cause::TooOld, &text)
    }

    /// After a failure: takes those of the works that have been tried for too long. They are in order, and released.
    pub(super) fn take_old(&mut self, works: &mut VecDeque<Work>, failure: &Failure) {
        let Some(tried) = &self.tried else { return };
        let until = tried.over_until();
        let reason = Self::too_old(tried, &failure.message);
        while let Some(Work { claim, events, .. }) =
            works.pop_front_if(|work| work.claim.end <= until)
        {
            self.doomed.push_back(Doomed { claim, events, reason: reason.clone() });
        }
    }

    /// There is no link: an attempt at everything that is not final has failed.
    pub(super) fn all_failed(&mut self, failure: &Failure) {
        if self.tried.is_some() {
            self.failed = Some(Arc::from(failure.message.as_str()));
        }
    }

    /// There is one again.
    pub(super) fn connected(&mut self) {
        (self.failed, self.unread) = (None, false);
    }

    /// After [`GivenUp::all_failed`], where nothing else that was claimed is left: gives up what comes next for as long as it is
    /// too old. The first that is not has been tried now. As [`GivenUp::bury`], some at a time.
    pub(super) fn next_old(
        &mut self,
        cursor: &mut Cursor,
        filtering: &mut Filtering,
        health: &mut Health,
        max: BatchLimits,
    ) -> bool {
        let mut sifted = 0;
        while self.endings.is_empty()
            && self.doomed.is_empty()
            && !self.unread
            && let (Some(error), Some(tried)) = (&self.failed, &mut self.tried)
        {
            let until = tried.over_until();
            let old = until.saturating_since(cursor.position());
            let events = if old > 0 { old } else { u64::MAX }.min(max.max_events);
            match cursor.next(Take { bytes: max.max_bytes, events }) {
                Some(batch) if batch.claim.end <= until => {
                    let reason = Self::too_old(tried, error);
                    let claim = batch.claim;
                    sifted += batch.bytes;
                    let (lines, disposition) = filtering.originals(batch, cursor);
                    self.end_with(claim, disposition, lines, &reason, cursor, health);
                    if sifted >= INSPECTED_BYTES_MAX {
                        return true;
                    }
                }
                Some(batch) => {
                    tried.note(batch.claim, cursor.watermark());
                    cursor.rewind();
                    self.failed = None;
                }
                None if cursor.is_at_end() => self.failed = None,
                None => self.unread = true,
            }
        }
        false
    }

    /// Hands over the lines of what is given up, as far as there is room. `true`: the thread is others' now, and then there is
    /// more to do.
    pub(super) fn bury(
        &mut self,
        cursor: &mut Cursor,
        filtering: &mut Filtering,
        health: &mut Health,
    ) -> bool {
        let mut sifted = 0;
        while !self.is_full() && !self.unread && sifted < INSPECTED_BYTES_MAX {
            let Some(Doomed { claim, events, reason }) = self.doomed.pop_front() else { break };
            if self.place.is_none() && !filtering.is_on() {
                // A released claim may have been dropped already.
                if cursor.take_back(claim) {
                    let disposition = Disposition::lost(events);
                    self.end_with(claim, disposition, Vec::new(), &reason, cursor, health);
                }
                continue;
            }
            match cursor.redeliver(claim) {
                Redelivery::Batch(batch) => {
                    sifted += batch.bytes;
                    let (lines, disposition) = filtering.originals(batch, cursor);
                    self.end_with(claim, disposition, lines, &reason, cursor, health);
                }
                Redelivery::Gone => {
                    filtering.give_up(claim);
                }
                Redelivery::NotYet => {
                    self.doomed.push_front(Doomed { claim, events, reason });
                    self.unread = true;
                }
            }
        }
        sifted >= INSPECTED_BYTES_MAX
    }

    /// A claim is final, and these are the lines of what `disposition` counts as lost.
    pub(super) fn end_with(
        &mut self,
        claim: Claim,
        disposition: Disposition,
        lines: Vec<Bytes>,
        reason: &Reason,
        cursor: &Cursor,
        health: &mut Health,
    ) {
        if disposition.lost == 0 {
            // Nothing of it would have left.
            cursor.acknowledge(claim, disposition);
            return;
        }
        let bytes = lines.iter().map(|piece| piece.len() as u64).sum();
        let Reason { cause, text } = reason;
        let place = self.place.as_ref();
        let Some(writing) = place.and_then(|place| place.write(&self.output, lines, text)) else {
            health.given_up(disposition.lost, *cause, LostAs::Dropped, text);
            cursor.acknowledge(claim, disposition);
            return;
        };
        self.bytes += bytes;
        self.endings.push_back(Ending {
            claim,
            disposition,
            bytes,
            reason: reason.clone(),
            writing,
        });
    }

    /// Waits for the letters that were handed over first. For ever where there are none.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(super) async fn written(&mut self) -> Written {
        match self.endings.front_mut() {
            Some(ending) => ending.writing.done().await,
            None => std::future::pending().await,
        }
    }

    /// What [`GivenUp::written`] returned.
    pub(super) fn end(&mut self, written: Written, cursor: &Cursor, health: &mut Health) {
        let Some(ending) = self.endings.pop_front() else { return };
        let Ending { claim, disposition, bytes, reason: Reason { cause, text }, .. } = ending;
        cursor.acknowledge(claim, disposition);
        self.bytes -= bytes;
        health.metrics.dead_letters.increment(written.events);
        health.given_up(written.events, cause, LostAs::DeadLetter, &text);
        if let Some(error) = written.error {
            let unwritten = disposition.lost.saturating_sub(written.events);
            health.given_up(unwritten, cause, LostAs::Unwritten, &format!("{error}; {text}"));
        }
    }

    /// Waits for all letters that were handed over.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(super) async fn all_ended(&mut self, cursor: &Cursor, health: &mut Health) {
        while !self.endings.is_empty() {
            let written = self.written().await;
            self.end(written, cursor, health);
        }
    }
}
