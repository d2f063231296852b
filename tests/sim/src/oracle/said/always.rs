//! The rules that apply at any time, even while the relay starts, reloads or is in trouble.

use std::time::Duration;

use super::{Fault, Said, World};
use crate::events::Serial;
use crate::oracle::{LEAVES, Seen, Stored, copies};
use crate::truth::{Acknowledge, Answer, Attempt, Config};

/// How long a sender can take to read its response.
const READS: Duration = Duration::from_secs(1);

/// `/metrics` and `/status` have the same counters (see status-json.md). Since `/status` is asked
/// second, its counters may only be higher.
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

/// Findings are about outputs in the config. A removed output can be in them until it is gone.
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

/// If an event has waited for an output for more than 30 s, the verdict says that the output is
/// late (see status-page.md). The rule knows that an event waits if this life has accepted it, and
/// it arrives only after the answer.
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

/// Returns `true` if every config that may have been in force has the output, with this consumer.
fn is_there(world: &World<'_>, seen: &Seen<'_>, from: Duration, to: Duration) -> bool {
    let has_it = |config: &Config| {
        let output = config.output(seen.view.output);
        output.is_some_and(|output| output.consumer == seen.view.consumer)
    };
    world.truth.configs(from, to).all(has_it)
}

/// When the relay is idle, each output's counters add up (see monitoring.md). At any other time,
/// the difference is at most the number of events in the bodies of unanswered requests.
pub(super) fn in_motion(world: &World<'_>, said: &Said) -> Vec<Fault> {
    let is_under_way = |attempt: &&Attempt| {
        attempt.begun <= said.answered && attempt.ended.is_none_or(|(at, _)| at >= said.asked)
    };
    let bodies = world.truth.attempts.iter().filter(is_under_way);
    let moving: usize = bodies.map(|attempt| attempt.serials.len()).sum();
    let mut faults = Vec::new();
    for seen in &world.outputs {
        let Some(difference) = difference(said, seen.view.output) else { continue };
        // The series of a removed output stay as they were.
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

/// `in_flight_bytes` counts the bytes of bodies that are not in the queue yet, or wait to be
/// acknowledged (see metrics.md). With `acknowledge = "delivered"`, a body is complete once one of
/// its events has reached a consumer, and waits until its sender has the response.
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

/// Returns the left side of the equation minus the right side, or `None` if the metrics do not have
/// the output.
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
