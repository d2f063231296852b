//! A consumer that takes some events, and turns down each request that has one of the others. It
//! chooses by content: an event that it does not take today, it does not take tomorrow either.

use std::collections::BTreeSet;

use fastrand::Rng;

use crate::events::Serial;
use crate::support::http_sink::Answer;

/// The way in which a consumer turns a request down. Consumers of streams have no statuses: they
/// end the connection instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Status(u16),
    /// The connection ends (FIN).
    Ends,
    /// The connection is reset (RST).
    Resets,
    /// Half of an answer comes, and then the connection ends.
    Half,
    /// There is no answer until the time-out.
    Silent,
}

impl Way {
    /// Statuses that neither ask for a pause nor are about a token.
    pub(crate) const STATUSES: [u16; 14] =
        [400, 413, 422, 500, 502, 503, 504, 507, 402, 404, 405, 409, 415, 302];

    pub(super) fn answer(self) -> Answer {
        match self {
            Self::Status(status) => Answer::status(status),
            Self::Ends => Answer::hang_up(),
            Self::Resets => Answer::reset(),
            Self::Half => Answer::raw("HTTP/1.1 200 OK\r\nContent-Le").cut(usize::MAX),
            Self::Silent => Answer::never(),
        }
    }
}

/// The events and requests that a consumer does not take, and how it turns them down.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The events that the consumer never takes.
    refused: BTreeSet<Serial>,
    /// The ways in which requests are turned down. Empty: the consumer takes everything now.
    ways: Vec<Way>,
    /// Requests with more events than this are turned down.
    most: Option<usize>,
    /// `true`: the consumer takes nothing.
    is_down: bool,
    rng: Option<Rng>,
}

impl Choice {
    pub(super) fn add(&mut self, events: impl IntoIterator<Item = Serial>) {
        self.refused.extend(events);
    }

    pub(super) fn begin(&mut self, ways: &[Way], most: Option<usize>, rng: Rng) {
        (self.ways, self.most, self.rng) = (ways.to_vec(), most, Some(rng));
    }

    pub(super) fn set_down(&mut self, is_down: bool) {
        self.is_down = is_down;
    }

    pub(super) fn has(&self, event: Serial) -> bool {
        self.refused.contains(&event)
    }

    /// Returns the way in which a request with these events is turned down, or `None` if it is
    /// taken.
    pub(super) fn turns_down(&mut self, events: &[Serial]) -> Option<Way> {
        let is_refused = self.is_down
            || self.most.is_some_and(|most| events.len() > most)
            || events.iter().any(|event| self.refused.contains(event));
        let rng = self.rng.as_mut().filter(|_| is_refused && !self.ways.is_empty())?;
        Some(self.ways[rng.usize(..self.ways.len())])
    }
}
