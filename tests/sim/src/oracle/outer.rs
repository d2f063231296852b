//! The rules about limits, about events that are too long, and about the listener's certificate.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Calm, Fault, LEAVES, Seen, World};
use crate::consumers::Longest;
use crate::events::Serial;
use crate::operator::APPLIES;
use crate::truth::{Answer, Attempt, Epoch, Handshake, Must, Truth};

/// Of this many requests of a sender, at least one gets a response.
const SERVED_OF: usize = 4;

/// How long a body can stay in memory after its sender is gone.
const LINGERS: Duration = Duration::from_secs(2);

/// The bytes of a body outside of its events.
const ENVELOPE: usize = 100;

fn fault(rule: &'static str, text: String) -> Fault {
    Fault { rule, output: String::new(), text }
}

/// No event is longer than the output's limit. A longer message is rejected, not truncated (see
/// config.md), and so is an event that is too large even without its bodies (see filters/size.md).
pub(super) fn lengths(_: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let Some(Longest::Message(most) | Longest::Event(most)) = seen.view.longest else {
        return Vec::new();
    };
    let longer = seen.view.arrived.iter().filter(|arrived| arrived.event.len() > most);
    let text = |at: Duration, bytes| {
        format!("an event of {bytes} bytes came at {at:?}; the limit is {most}")
    };
    longer.map(|it| seen.fault("bytes", text(it.at, it.event.len()))).collect()
}

/// Returns `true` if the line may be an event that `filter.max_event_bytes` has trimmed: it is
/// short enough, and has the `audit.k8s.io/truncated` annotation (see filters/size.md).
pub(super) fn is_trimmed(longest: Option<Longest>, line: &[u8], sent: &[u8]) -> bool {
    let Some(Longest::Event(most)) = longest else { return false };
    let is_marked = || memchr::memmem::find(line, b"\"audit.k8s.io/truncated\":").is_some();
    sent.len() > most && line.len() <= most && is_marked()
}

/// A request gets 408 only if its head or body came too slowly (see http.md), so not before the
/// shorter of the two limits has passed.
pub(super) fn hurried(truth: &Truth) -> Vec<Fault> {
    let is_early = |attempt: &&Attempt| {
        let Some((at, Answer::Status(408))) = attempt.ended else { return false };
        let limits = truth.configs(attempt.begun, at).map(|config| config.limits.slow);
        limits.min().is_some_and(|least| at < attempt.begun + least)
    };
    let text = |attempt: &Attempt| {
        let (sender, begun) = (attempt.from.sender, attempt.begun);
        format!("a request of sender {sender}, begun at {begun:?}, was answered 408 too early")
    };
    truth.attempts.iter().filter(is_early).map(|it| fault("answers", text(it))).collect()
}

/// Returns `true` if `limits.max_in_flight` may have been reached (429, see http.md): together, the
/// bodies in memory at the same time are larger than the limit.
pub(super) fn may_be_full(truth: &Truth, attempt: &Attempt) -> bool {
    let until = attempt.ended.map_or(Duration::MAX, |(at, _)| at);
    let mut limits = truth.configs(attempt.begun, until).map(|config| config.limits.in_flight);
    let Some(most) = limits.next().flatten() else { return false };
    let is_beside = |other: &&Attempt| {
        let ended = other.ended.map_or(Duration::MAX, |(at, _)| at + LINGERS);
        other.begun <= until && ended >= attempt.begun
    };
    let beside = truth.attempts.iter().filter(is_beside);
    let events = beside.flat_map(|other| other.serials.iter().map(|it| truth.events.get(it)));
    let bytes = events.flatten().map(|known| known.event.bytes.len() + ENVELOPE);
    bytes.sum::<usize>() > most
}

/// With a small `limits.max_connections`, a new connection replaces one whose requests were all
/// refused (see config.md). So in the calm time, each sender with the token that makes four
/// requests or more gets at least one response, even if many others have no token.
pub(super) fn served(world: &World<'_>, calm: Calm) -> Vec<Fault> {
    let mut configs = world.truth.configs(calm.begins, calm.ends);
    if !configs.any(|config| config.limits.connections.is_some()) {
        return Vec::new();
    }
    let mut senders = BTreeMap::<u32, (usize, usize)>::new();
    for attempt in &world.truth.attempts {
        let is_sound = attempt.must == Must::Take && attempt.begun >= calm.begins;
        let ended = attempt.ended.filter(|(at, _)| is_sound && *at <= calm.ends);
        // A sender that disconnects is not served.
        if let Some((_, answer)) = ended.filter(|(_, answer)| *answer != Answer::Unread) {
            let of = senders.entry(attempt.from.sender).or_default();
            let has_answer = matches!(answer, Answer::Status(_) | Answer::Unhelpful(_));
            *of = (of.0 + 1, of.1 + usize::from(has_answer));
        }
    }
    let left = senders.into_iter().filter(|(_, (all, taken))| *all >= SERVED_OF && *taken == 0);
    let text = |sender, all| {
        format!(
            "none of {all} sound requests of sender {sender} was served although nothing is wrong \
             since {:?}",
            calm.healed
        )
    };
    left.map(|(sender, (all, _))| fault("progress", text(sender, all))).collect()
}

/// Returns `true` if a reload has renamed the event's output, the event arrived while the old one
/// waited for events in flight (see reload.md), and `other` was accepted for the new one. Events
/// have an order only within one output (see guarantees.md).
pub(super) fn is_of_another_output(
    world: &World<'_>,
    seen: &Seen<'_>,
    serial: Serial,
    other: Serial,
    at: Duration,
) -> bool {
    let stored = |serial: Serial| world.stored.get(&serial);
    let (Some(stored), Some(later)) = (stored(serial), stored(other)) else { return false };
    let name = |epoch: &Epoch| {
        let mut outputs = epoch.config.outputs.iter();
        let output = outputs.find(|output| output.consumer == seen.view.consumer);
        output.map(|output| output.name.clone())
    };
    let is_renamed = |pair: &[Epoch]| {
        let [before, after] = pair else { return false };
        stored.from <= after.begins
            && later.until >= after.begins
            && at <= after.settled.unwrap_or(at) + LEAVES
            && name(before) != name(after)
    };
    world.truth.epochs.windows(2).any(is_renamed)
}

/// Returns `true` if an event that is too long for the output was accepted before this one, and the
/// output may not give up on it. Later events then wait (see refused-events.md), and the relay may
/// send one of them as a test (see guarantees.md). Here the relay itself refuses the event.
pub(super) fn waits_behind(world: &World<'_>, seen: &Seen<'_>, serial: Serial) -> bool {
    let Some(longest) = seen.view.longest else { return false };
    let Some(stored) = world.stored.get(&serial) else { return false };
    world.stored.iter().any(|(other, long)| {
        let is_long = || {
            let known = world.truth.events.get(other);
            known.is_some_and(|known| longest.may_reject(&known.event.bytes))
        };
        let mut configs = world.truth.configs(long.until, stored.until);
        long.from <= stored.until
            && configs.any(|config| config.keeps == Some(seen.view.consumer))
            && is_long()
    })
}

/// Each handshake shows a certificate that was in the listener's files. While nothing is wrong, it
/// is the newest one, within seconds of a change (see reload.md). Wrong files change nothing.
pub(super) fn certificates(truth: &Truth, calm: Calm) -> Vec<Fault> {
    let put = &truth.certificates;
    let is_wrong = |shake: &&Handshake| {
        let is_calm = (calm.begins..=calm.ends).contains(&shake.begun);
        let ends = truth.deaths.iter().filter_map(|death| death.ended);
        let life = ends.filter(|end| *end <= shake.begun).max().unwrap_or_default();
        let since = if is_calm { shake.begun.saturating_sub(APPLIES).max(life) } else { life };
        // The certificate that was in the files at that time, and all later ones.
        let first = put.iter().rposition(|(at, _)| *at <= since).unwrap_or(0);
        let mut may_be_shown = put.iter().skip(first).filter(|(at, _)| *at <= shake.ended);
        !may_be_shown.any(|(_, certificate)| *certificate == shake.certificate)
    };
    let text = |shake: &Handshake| {
        let place = put.iter().position(|(_, certificate)| *certificate == shake.certificate);
        let shown =
            place.map_or_else(|| "an unknown one".into(), |place| format!("number {place}"));
        format!("the certificate in a handshake from {:?} on is {shown}", shake.begun)
    };
    let wrong = truth.handshakes.iter().filter(is_wrong);
    wrong.map(|it| fault("certificate", text(it))).collect()
}

/// While nothing is wrong, a new certificate breaks no request: connections stay open (see
/// reload.md). A small `limits.max_connections` may close some.
pub(super) fn connections_stay(truth: &Truth, calm: Calm) -> Vec<Fault> {
    let mut configs = truth.configs(calm.begins, calm.ends);
    if configs.any(|config| config.limits.connections.is_some()) {
        return Vec::new();
    }
    let is_broken = |attempt: &&Attempt| {
        let Some((ended, Answer::Broken)) = attempt.ended else { return false };
        let is_near = |at: Duration| attempt.begun <= at + APPLIES && at <= ended;
        attempt.must == Must::Take
            && attempt.begun >= calm.begins
            && ended <= calm.ends
            && truth.certificates.iter().any(|(at, _)| is_near(*at))
    };
    let text = |attempt: &Attempt| {
        let (sender, begun) = (attempt.from.sender, attempt.begun);
        format!("a request of sender {sender}, begun at {begun:?}, broke while it was replaced")
    };
    truth.attempts.iter().filter(is_broken).map(|it| fault("certificate", text(it))).collect()
}

#[cfg(test)]
#[path = "outer_tests.rs"]
mod tests;
