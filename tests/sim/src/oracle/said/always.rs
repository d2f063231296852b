//! The rules about answers that hold at any moment, also while the relay starts, reloads or is in
//! trouble.

use std::time::Duration;

use super::{Fault, Said, World};
use crate::events::Serial;
use crate::oracle::{LEAVES, Seen, Stored, copies};
use crate::truth::{Acknowledge, Answer, Attempt, Config};

/// How long a sender may take to read its answer.
const READS: Duration = Duration::from_secs(1);

/// `/status` is asked after `/metrics`, and both have the same counters (status-json.md).
pub(super) fn agrees(said: &Said) -> Option<Fault> {
    let status = said.status.as_ref()?;
    let accepted = said.metrics.count("event_total", &[]);
    let lost = said.metrics.sum("error_total");
    let text = format!(
        "/metrics has {accepted} accepted and {lost} lost events, and /status has {} and {} later",
        status.accepted_events, status.lost_events
    );
    let falls = status.accepted_events < accepted || (status.lost_events as f64) < lost;
    falls.then(|| said.fault("counters", &text))
}

/// Findings are about the outputs of the config (status-json.md). One that a reload has removed is
/// there until it has left.
pub(super) fn named(world: &World<'_>, said: &Said) -> Option<Fault> {
    let from = said.asked.saturating_sub(LEAVES);
    let configs: Vec<_> = world.truth.configs(from, said.answered).collect();
    let is_unknown = |output: &&str| {
        *output != "out" && !configs.iter().any(|config| config.output(output).is_some())
    };
    let outputs = said.findings().filter_map(|finding| finding.about.strip_prefix("output "));
    let output = outputs.into_iter().find(is_unknown)?;
    Some(said.fault("verdict", &format!("a finding is about {output}, which is no output")))
}

/// "An output is late when an event has waited for it for more than 30 s" (status-page.md), and the
/// verdict then says so. An event has waited that was accepted in this life, and has come only
/// after the answer.
pub(super) fn late(world: &World<'_>, said: &Said) -> Vec<Fault> {
    if said.status.is_none() {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for seen in &world.outputs {
        let waits = |(serial, stored): (&_, &Stored)| {
            let known = world.truth.events.get(serial)?;
            let is_old = stored.from >= said.started && stored.until + seen.view.late <= said.asked;
            let comes_later = seen.first_at(*serial).is_some_and(|at| at > said.answered);
            let is_one = is_old && comes_later && copies(world.truth, known) == 1;
            let has_waited = is_one
                && !seen.may_refuse(known)
                && is_there(world, seen, stored.from, said.answered)
                && world.is_owed(seen, *serial, *stored);
            has_waited.then_some((*serial, stored.until))
        };
        if seen.view.is_unconfirmed || seen.view.promise.aside {
            continue;
        }
        let Some((serial, since)) = world.stored.iter().find_map(waits) else { continue };
        let about = format!("output {}", seen.view.output);
        if !said.findings().any(|finding| finding.about == about) {
            let text = format!(
                "asked at {:?}: event {serial} waits since {since:?}, and no finding says so",
                said.asked
            );
            faults.push(seen.fault("verdict", text));
        }
    }
    faults
}

/// Returns true if the output was in each config that may have been in force in this span, with the
/// same consumer.
fn is_there(world: &World<'_>, seen: &Seen<'_>, from: Duration, to: Duration) -> bool {
    let has_it = |config: &Config| {
        let output = config.output(seen.view.output);
        output.is_some_and(|output| output.consumer == seen.view.consumer)
    };
    world.truth.configs(from, to).all(has_it)
}

/// "Whenever nothing is in motion" the identity over the counters holds for each output
/// (monitoring.md). At any moment, no more events can be missing in it or too many than there are
/// in bodies that are under way.
pub(super) fn in_motion(world: &World<'_>, said: &Said) -> Vec<Fault> {
    let is_under_way = |attempt: &&Attempt| {
        attempt.begun <= said.answered && attempt.ended.is_none_or(|(at, _)| at >= said.asked)
    };
    let bodies = world.truth.attempts.iter().filter(is_under_way);
    let moving: usize = bodies.map(|attempt| attempt.serials.len()).sum();
    let mut faults = Vec::new();
    for seen in &world.outputs {
        let Some(difference) = difference(said, seen.view.output) else { continue };
        // The series of an output that has left stay as they were.
        let is_judged = is_there(world, seen, said.asked.saturating_sub(LEAVES), said.answered);
        if is_judged && difference.abs() > moving as f64 {
            let text = format!(
                "asked at {:?}: {difference} events are missing in the identity, and {moving} are \
                 in bodies that are under way",
                said.asked
            );
            faults.push(seen.fault("identity", text));
        }
    }
    faults
}

/// `in_flight_bytes` has the "bytes of bodies that are not yet in the queue or wait for their
/// acknowledgement" (metrics.md). With `acknowledge = "delivered"`, a body of which an event has
/// come to a consumer is there whole, and waits until its sender has the answer.
pub(super) fn in_flight(world: &World<'_>, said: &Said) -> Option<Fault> {
    let counted = said.metrics.get("in_flight_bytes", &[])?;
    let has_come = |attempt: &Attempt, serial: &Serial| {
        let is_one = world.truth.events.get(serial).is_some_and(|it| copies(world.truth, it) == 1);
        let mut first = world.outputs.iter().filter_map(|seen| seen.first_at(*serial));
        is_one && first.any(|at| attempt.begun <= at && at < said.asked)
    };
    let waits = |attempt: &&Attempt| {
        let is_delivered = |config: &Config| config.acknowledge == Acknowledge::Delivered;
        let Some((ended, Answer::Status(200))) = attempt.ended else { return false };
        attempt.begun >= said.started
            && attempt.begun < said.asked
            && ended > said.answered + READS
            && world.truth.configs(attempt.begun, ended).all(is_delivered)
            && attempt.serials.iter().any(|serial| has_come(attempt, serial))
    };
    let waiting = world.truth.attempts.iter().filter(waits);
    let known =
        waiting.flat_map(|it| it.serials.iter().filter_map(|it| world.truth.events.get(it)));
    let bytes: usize = known.map(|known| known.event.bytes.len()).sum();
    let text = format!("in_flight_bytes is {counted}, and bodies with {bytes} bytes wait");
    (counted < bytes as f64).then(|| said.fault("counters", &text))
}

/// Returns what is missing on the right side of the identity. Returns `None` if the output is not
/// in the answer.
fn difference(said: &Said, output: &str) -> Option<f64> {
    let of_output = |name: &str| said.metrics.get(name, &[("output", output)]);
    let lost = |plugin| said.metrics.count("error_total", &[("plugin", plugin)]) as f64;
    let filtered = |action| {
        let labels = [("output", output), ("action", action)];
        said.metrics.get("filtered_events_total", &labels).unwrap_or_default()
    };
    let left = said.metrics.count("event_total", &[]) as f64 + of_output("output_start_events")?;
    let right = of_output("output_events_total")?
        + of_output("output_backlog_events")?
        + of_output("output_aside_events").unwrap_or_default();
    let gone = lost(output) + lost("queue") + filtered("dropped") + filtered("duplicate");
    Some(left - right - gone)
}

#[cfg(test)]
#[path = "always_tests.rs"]
mod tests;
