//! An output gives up on an event only after responses that the consumer has really given.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Fault, Letter, Seen, World, identify};
use crate::events::Serial;

/// The number of refusals of an event alone after which it is given up (see refused-events.md).
const REFUSALS_MIN: usize = 8;

/// The number of other failures of an event alone after which it may be given up.
pub(super) const FAILURES_MIN: usize = 4;

/// The end of the reason if the output gave up on an event to set another one aside.
const NO_ROOM: &str = ", and no more events can be set aside";

/// The most events that an output sets aside (see refused-events.md).
const ASIDE_MAX: usize = 10_000;

/// Their most bytes: this, or a quarter of `queue.max_bytes`.
const ASIDE_BYTES_MAX: usize = 64 << 20;

/// The most bytes that a file of an event that is set aside has beside the event.
const HEAD_MAX: usize = 1024;

/// The time of a letter is accurate to a millisecond.
const ROUNDED: Duration = Duration::from_millis(1);

/// If a dead letter quotes a response, the consumer has given this response to the event alone, and
/// has turned the event down often enough, in one life of the relay.
pub(super) fn answered(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if !seen.view.refuses_requests || seen.view.promise.counts {
        return Vec::new();
    }
    let fault = |letter: &Letter| {
        let (status, serial) = (status_of(&letter.reason)?, identify(&letter.event)?);
        if letter.reason.ends_with(NO_ROOM) {
            return None;
        }
        let until = letter.at + ROUNDED;
        let ends = world.truth.deaths.iter().filter_map(|it| it.ended);
        let life = ends.filter(|it| *it <= letter.at).max();
        let is_its = |at: Duration| (life.unwrap_or_default()..=until).contains(&at);
        let alone = seen.view.turned_down.iter().filter(|it| it.events == [serial]);
        let (mut refusals, mut failures, mut tries, mut has_status) = (0, 0, 0, false);
        for down in alone.filter(|down| is_its(down.at)) {
            // With 200, a consumer either refuses an event, or answers with a web page.
            refusals += usize::from(matches!(down.status, 200 | 400 | 413 | 422));
            failures += usize::from(!matches!(down.status, 400 | 413 | 422));
            tries += 1;
            // An answer that the consumer writes as raw bytes has no status in its notes. The relay
            // may have read a 200 from it.
            has_status |= down.status == status || (down.status == 0 && status == 200);
        }
        let is_enough = refusals >= REFUSALS_MIN || failures >= FAILURES_MIN;
        let text = format!(
            "event {serial} was given up at {:?} for an answer {status}; its consumer has turned \
             it down {} times alone, {}",
            letter.at,
            tries,
            if has_status { "and by this status" } else { "and never by this status" },
        );
        (!is_enough || !has_status).then(|| seen.fault("reasons", text))
    };
    seen.view.letters.iter().filter_map(fault).collect()
}

/// Returns the events that were given up so that others could be set aside (see refused-events.md).
/// The consumer had turned each of them down alone at least [`FAILURES_MIN`] times, and the events
/// that it had turned down alone by then may have filled the room.
pub(super) fn pushed_out(world: &World<'_>, seen: &Seen<'_>) -> BTreeSet<Serial> {
    let its = |letter: &&Letter| letter.reason.ends_with(NO_ROOM);
    let pushed_out = seen.view.letters.iter().filter(its).filter_map(|letter| {
        let (serial, until) = (identify(&letter.event)?, letter.at + ROUNDED);
        let downs = seen.view.turned_down.iter().filter(|down| down.at <= until);
        let alone: Vec<_> = downs
            .filter_map(|down| match down.events[..] {
                [event] => Some(event),
                _ => None,
            })
            .collect();
        let is_at_fault = alone.iter().filter(|it| **it == serial).count() >= FAILURES_MIN;
        (is_at_fault && was_full(world, seen, letter.at, alone)).then_some(serial)
    });
    pushed_out.collect()
}

/// Returns `true` if there may have been no room for another event at this time, beside those of
/// these events that had neither arrived nor a letter.
fn was_full(world: &World<'_>, seen: &Seen<'_>, at: Duration, alone: Vec<Serial>) -> bool {
    let before = seen.view.letters.iter().filter(|letter| letter.at < at);
    let before: BTreeSet<_> = before.filter_map(|letter| identify(&letter.event)).collect();
    let is_there = |serial: &Serial| {
        !before.contains(serial) && seen.first_at(*serial).is_none_or(|came| came > at)
    };
    let aside: BTreeSet<_> = alone.into_iter().filter(is_there).collect();
    let known = aside.iter().filter_map(|serial| world.truth.events.get(serial));
    let bytes: usize = known.map(|known| known.event.bytes.len() + HEAD_MAX).sum();
    let mut configs = world.truth.configs(at, at);
    aside.len() >= ASIDE_MAX
        || configs.any(|config| bytes > ASIDE_BYTES_MAX.min(config.queue_bytes / 4))
}

/// Returns the status that a reason quotes, or `None` if the reason is about one event of a
/// request, or quotes no response.
fn status_of(reason: &str) -> Option<u16> {
    let (_, status) = reason.split_once(" answered ")?;
    status.get(..3)?.parse().ok()
}

#[cfg(test)]
#[path = "given_up_tests.rs"]
mod tests;
