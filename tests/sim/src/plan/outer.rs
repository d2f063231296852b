//! The additions of the seeds in [`OUTER`]: a listener with TLS whose certificate is replaced,
//! consumers with TLS, limits that are small enough to be reached, events that are too long for an
//! output, and an observer who asks the relay at any time.

use std::time::Duration;

use super::{Action, Change, Plan, Timed};
use crate::consumers::{Kind, Longest};
use crate::events::UNCUTTABLE;
use crate::pki::Wrong;
use crate::senders;
use crate::truth::Acknowledge;

/// The seeds with these additions.
pub(crate) const OUTER: std::ops::Range<u64> = 4000..5000;

/// The settings of the listener and the limits that differ from the defaults.
#[derive(Debug, Clone, Default)]
pub(crate) struct Front {
    /// `Some`: the listener uses TLS. `true`: it asks for client certificates.
    pub(crate) tls: Option<bool>,
    /// `true` if the listener needs a token.
    pub(crate) has_token: bool,
    /// `limits.max_in_flight`, in KiB.
    pub(crate) in_flight: Option<u64>,
    /// `limits.max_connections`.
    pub(crate) connections: Option<u32>,
    /// `limits.max_body`, in KiB.
    pub(crate) body: Option<u64>,
    /// `limits.header_timeout` and `limits.body_timeout`, in seconds.
    pub(crate) timeouts: Option<(u64, u64)>,
}

/// The additions that are neither in the config nor actions.
#[derive(Debug, Default)]
pub(crate) struct Outer {
    /// The consumers with TLS.
    pub(crate) secured: Vec<usize>,
    /// The consumers whose outputs limit the length of an event.
    pub(crate) longest: Vec<(usize, Longest)>,
    /// The `s3` consumer whose output collects events for half a minute.
    pub(crate) collects: Option<usize>,
    /// When the observer asks.
    pub(crate) looks: Vec<Duration>,
}

pub(super) fn add(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "outer");
    match rng.u32(..6) {
        0 => too_long(plan, &mut rng),
        1 => too_large(plan, &mut rng),
        _ => {}
    }
    if rng.u32(..4) > 0 {
        rotations(plan, &mut rng);
    }
    for consumer in 0..plan.consumers.len() {
        let has_door = plan.wider.doors.iter().any(|(it, _)| *it == consumer);
        // The certificates name the first address only.
        if plan.consumers[consumer].may_have_tls() && !has_door && rng.bool() {
            plan.outer.secured.push(consumer);
        }
    }
    limits(plan, &mut rng);
    lengths(plan, &mut rng);
    let mut at = Duration::from_millis(rng.u64(2_000..10_000));
    while at < plan.length {
        plan.outer.looks.push(at);
        at += Duration::from_millis(rng.u64(500..20_000));
    }
    plan.actions.sort_by_key(|timed| timed.at);
}

/// Gives the listener TLS, and replaces its files, sometimes with wrong ones.
fn rotations(plan: &mut Plan, rng: &mut fastrand::Rng) {
    plan.start.front.tls = Some(rng.bool());
    let length = plan.length.as_secs() * 1000;
    for _ in 0..rng.u32(1..4) {
        let at = Duration::from_millis(rng.u64(3_000..length));
        let action = match rng.u32(..3) {
            0 => Action::WrongCertificate(Wrong::ALL[rng.usize(..Wrong::ALL.len())]),
            _ => Action::Rotate,
        };
        plan.actions.push(Timed { at, action });
    }
}

/// Draws limits that are reached, but that do not refuse the events of a scene.
fn limits(plan: &mut Plan, rng: &mut fastrand::Rng) {
    let has_large = !plan.outer.longest.is_empty();
    let start = &mut plan.start;
    match rng.u32(..6) {
        0 | 1 if !has_large => {
            start.front.in_flight = Some([48, 64, 128][rng.usize(..3)]);
            start.queue = start.queue.max(2048);
        }
        2 | 3 => {
            start.front.connections = Some(rng.u32(8..14));
            start.front.has_token = true;
        }
        _ => start.front.has_token = rng.u32(..3) == 0,
    }
    if rng.u32(..3) == 0 && !has_large {
        start.front.body = Some([16, 32][rng.usize(..2)]);
    }
    if rng.u32(..3) == 0 {
        start.front.timeouts = Some((rng.u64(1..4), rng.u64(2..6)));
    }
}

fn lengths(plan: &mut Plan, rng: &mut fastrand::Rng) {
    for consumer in 0..plan.consumers.len() {
        if plan.outer.longest.iter().any(|(it, _)| *it == consumer) {
            continue;
        }
        let has_messages = matches!(plan.consumers[consumer], Kind::Syslog | Kind::Relp);
        let longest = match rng.u32(..6) {
            0 | 1 if has_messages => Longest::Message([2_000, 4_000, 10_000][rng.usize(..3)]),
            2 => Longest::Event([1_024, 2_048, 8_192][rng.usize(..3)]),
            _ => continue,
        };
        plan.outer.longest.push((consumer, longest));
    }
}

/// Adds events longer than `max_message_bytes`. They wait until a reload lets the output give up on
/// them.
fn too_long(plan: &mut Plan, rng: &mut fastrand::Rng) {
    let consumer = plan.start.outputs[rng.usize(..plan.start.outputs.len())].consumer;
    plan.consumers[consumer] = [Kind::Syslog, Kind::Relp][rng.usize(..2)];
    plan.outer.longest.push((consumer, Longest::Message(20_000)));
    // These events hold up the queue, so it needs room for all others.
    plan.start.queue = 65536;
    let at = Duration::from_millis(rng.u64(10_000..40_000));
    plan.actions.push(Timed { at, action: Action::TooLong(consumer) });
}

/// Adds events larger than `filter.max_event_bytes`: more than the output can keep until its object
/// is complete.
fn too_large(plan: &mut Plan, rng: &mut fastrand::Rng) {
    let start = &mut plan.start;
    if start.acknowledge == Acknowledge::Delivered {
        return;
    }
    // The config refuses `delivered` with a required output of this kind.
    plan.actions.retain(|timed| !matches!(timed.action, Action::Reload(Change::Acknowledge)));
    (start.queue, start.when_full) = (65536, "reject");
    let consumer = start.outputs[rng.usize(..start.outputs.len())].consumer;
    plan.consumers[consumer] = Kind::S3;
    plan.outer.longest.push((consumer, Longest::Event(UNCUTTABLE)));
    plan.outer.collects = Some(consumer);
    let at = Duration::from_millis(rng.u64(10_000..40_000));
    plan.actions.push(Timed { at, action: Action::TooLarge(consumer) });
}
