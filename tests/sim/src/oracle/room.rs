//! How full the queue may have been at a time, and so whether it could refuse a batch. A request
//! gets 429 if the queue is full or `limits.max_in_flight` is reached (see http.md).

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Fault, Seen, World, outer};
use crate::events::Serial;
use crate::truth::{Answer, Attempt, Config, Fate, Must, Truth};

/// The queue's overhead for a batch, and the bytes of its body around the events.
const BATCH: usize = 512;

/// On disk, a group of batches begins at a multiple of this many bytes.
const BLOCK: usize = 4096;

/// While nothing is wrong, an event is removed from the queue this long after it has arrived.
const PROMPT: Duration = Duration::from_secs(1);

/// At any time, an event can stay in the queue this long after its last arrival: the response takes
/// up to 20 s and can get lost, and the pause after that is as long.
const LATE: Duration = Duration::from_secs(90);

const RECOVERS: Duration = Duration::from_secs(30);

/// The bodies that the queue may have held.
pub(super) struct Room<'a> {
    world: &'a World<'a>,
    bodies: Vec<Body>,
}

/// A body that was not refused.
struct Body {
    begun: Duration,
    ended: Duration,
    /// When an event of the body last arrived anywhere; `None` if one is missing at a required
    /// output.
    came: Option<Duration>,
    bytes: usize,
}

impl<'a> Room<'a> {
    pub(super) fn new(world: &'a World<'a>) -> Self {
        let last: Vec<_> = world.outputs.iter().map(last_arrivals).collect();
        let body = |attempt: &Attempt| {
            let mut came = Some(Duration::ZERO);
            for (seen, last) in world.outputs.iter().zip(&last) {
                for serial in attempt.serials.iter() {
                    let its = comes(world, seen, last, *serial);
                    came = came.zip(its).map(|(came, its)| came.max(its));
                }
            }
            let ended = attempt.ended.map_or(world.now, |(at, _)| at);
            Body { begun: attempt.begun, ended, came, bytes: bytes(world.truth, attempt) }
        };
        let possible = world.truth.attempts.iter().filter(|it| it.fate() != Fate::Refused);
        Self { world, bodies: possible.map(body).collect() }
    }

    /// Like [`Room::may_be_full`], for a time when nothing is wrong.
    pub(super) fn may_be_full_calmly(&self, attempt: &Attempt) -> bool {
        self.may_be_full(attempt, PROMPT)
    }

    /// Returns `true` if there may have been no room for this request's body. An event stays in the
    /// queue for `lingers` after its last arrival.
    ///
    /// Events are removed in order (see crates/queue/README.md): an event that waits keeps all
    /// later ones in the queue.
    fn may_be_full(&self, attempt: &Attempt, lingers: Duration) -> bool {
        let (truth, begun) = (self.world.truth, attempt.begun);
        let until = attempt.ended.map_or(self.world.now, |(at, _)| at);
        // A queue in memory holds nothing from an earlier life.
        let ends = truth.deaths.iter().filter_map(|death| death.ended);
        let life = ends.filter(|end| *end < begun).max().unwrap_or_default();
        let is_full = |config: &Config| {
            let since = if config.on_disk { Duration::ZERO } else { life };
            let there = || self.bodies.iter().filter(|it| it.begun <= until && it.ended >= since);
            let stays =
                |it: &&Body| it.came.is_none_or(|came| came.max(it.ended) + lingers >= begun);
            let oldest = there().filter(stays).map(|it| it.begun).min().unwrap_or(begun);
            let held = there().filter(|it| it.ended >= oldest).map(|it| it.bytes);
            let all: Vec<_> = held.chain([bytes(truth, attempt)]).collect();
            may_fill(config, &all)
        };
        truth.configs(begun, until).any(is_full)
    }

    /// A valid request gets 429 only if the queue may be full, if too many bodies are in memory, if
    /// the disk is in trouble, or if the relay shuts down.
    pub(super) fn refused(&self) -> Vec<Fault> {
        let truth = self.world.truth;
        let is_over = |from: Duration, to: Option<Duration>, attempt: &Attempt| {
            let ended = attempt.ended.map_or(self.world.now, |(at, _)| at);
            from <= ended && to.is_none_or(|to| to >= attempt.begun)
        };
        let is_unexplained = |attempt: &&Attempt| {
            let mut deaths = truth.deaths.iter();
            let mut disk = truth.refusing.iter();
            attempt.must == Must::Take
                && matches!(attempt.ended, Some((_, Answer::Status(429))))
                && !deaths.any(|death| is_over(death.begun, death.ended, attempt))
                && !disk.any(|(from, to)| is_over(*from, Some(*to + RECOVERS), attempt))
                && !outer::may_be_full(truth, attempt)
                && !self.may_be_full(attempt, LATE)
        };
        let text = |attempt: &Attempt| {
            format!(
                "a sound request of sender {} with {} bytes, begun at {:?}, was answered 429, and \
                 there was room",
                attempt.from.sender,
                bytes(truth, attempt),
                attempt.begun
            )
        };
        let refused = truth.attempts.iter().filter(is_unexplained);
        let fault = |text| Fault { rule: "answers", output: String::new(), text };
        refused.map(|it| fault(text(it))).collect()
    }
}

/// Returns how many bytes the body of a request takes in the queue.
fn bytes(truth: &Truth, attempt: &Attempt) -> usize {
    let known = attempt.serials.iter().filter_map(|it| truth.events.get(it));
    known.map(|known| known.event.bytes.len() + 1).sum::<usize>() + BATCH
}

/// Returns `true` if bodies of these sizes may not fit into the queue together. On disk, whole
/// segments are removed, and no batch spans two, so half of the room can be lost. One segment is
/// active, one is ready, and one is being deleted (see crates/queue/README.md).
fn may_fill(config: &Config, bodies: &[usize]) -> bool {
    match config.on_disk {
        false => bodies.iter().sum::<usize>() > config.queue_bytes,
        true => {
            let files: usize = bodies.iter().map(|bytes| 2 * (bytes + BLOCK)).sum();
            files + 3 * config.segment_bytes > config.queue_bytes
        }
    }
}

/// Returns `true` if the bodies that came in within `span` before this time may have filled the
/// queue. If the relay had only just started, those from before its last end count, too: it notices
/// after its start that their events have no evidence.
pub(crate) fn may_have_filled(truth: &Truth, at: Duration, span: Duration) -> bool {
    let mut since = at;
    for death in truth.deaths.iter().rev() {
        if death.ended.is_some_and(|ended| ended <= since && since <= ended + span) {
            since = death.begun;
        }
    }
    let since = since.saturating_sub(span);
    let is_recent = |attempt: &&Attempt| {
        attempt.begun <= at && attempt.ended.is_none_or(|(ended, _)| ended >= since)
    };
    let recent = truth.attempts.iter().filter(|it| it.fate() != Fate::Refused).filter(is_recent);
    let bodies: Vec<_> = recent.map(|attempt| bytes(truth, attempt)).collect();
    truth.configs(since, at).any(|config| config.on_disk && may_fill(config, &bodies))
}

fn last_arrivals(seen: &Seen<'_>) -> BTreeMap<Serial, Duration> {
    let arrived = seen.view.arrived.iter().zip(&seen.serials);
    let letters = seen.view.letters.iter();
    let letters = letters.filter_map(|it| Some((super::identify(&it.event)?, it.at)));
    arrived.filter_map(|(arrived, serial)| Some(((*serial)?, arrived.at))).chain(letters).collect()
}

/// Returns when an event last arrived at an output. If the output need not get it, returns a time
/// that delays nothing. Returns `None` if it should have arrived and has not.
fn comes(
    world: &World<'_>,
    seen: &Seen<'_>,
    last: &BTreeMap<Serial, Duration>,
    serial: Serial,
) -> Option<Duration> {
    if let Some(at) = last.get(&serial) {
        return Some(*at);
    }
    let known = world.truth.events.get(&serial);
    let Some((known, stored)) = known.zip(world.stored.get(&serial)) else {
        return Some(Duration::ZERO);
    };
    let mut outputs = world
        .truth
        .configs(stored.from, world.now)
        .filter_map(|config| config.output(seen.view.output).filter(|output| output.required));
    let was_there = world
        .truth
        .configs(stored.from, stored.until)
        .any(|config| config.output(seen.view.output).is_some());
    let is_owed = was_there && outputs.any(|output| output.filter.keeps(&known.event.facts));
    (!is_owed).then_some(Duration::ZERO)
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
