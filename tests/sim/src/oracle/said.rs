//! The rules about `/metrics` and `/status`: what the relay says about itself agrees with the book.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::{Calm, Fault, Seen, TurnedDown, World, refused_at};
use crate::events::{Serial, identify};
use crate::support::metrics::{Metrics, conservation};
use crate::truth::{Acknowledge, Answer, Attempt, Config, Fate, Must};

mod always;
mod configured;

/// How long an event can wait before the output is late: 30 s, plus the longest `object_age` of an
/// `s3` output here, 8 s (see status-page.md), plus 2 s for the question.
pub(crate) const LATE: Duration = Duration::from_secs(40);

/// When the relay was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Moment {
    Any,
    /// The operator reads the status page.
    Looked,
    /// At the end of the calm time.
    Calm,
    /// The consumer with this index has accepted nothing since this time.
    Away(usize, Duration),
    /// Every event has been sent, and no sender has anything to send.
    Quiet,
}

/// The relay's answers to one question.
#[derive(Debug)]
pub(crate) struct Said {
    /// When this life of the relay began.
    pub(crate) started: Duration,
    pub(crate) asked: Duration,
    pub(crate) answered: Duration,
    pub(crate) moment: Moment,
    pub(crate) metrics: Metrics,
    pub(crate) status: Option<Status>,
}

/// The part of `/status` that the rules check.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Status {
    pub(crate) accepted_events: u64,
    pub(crate) lost_events: u64,
    pub(crate) acknowledge: String,
    pub(crate) queue: ShownQueue,
    pub(crate) verdict: Verdict,
    pub(crate) outputs: Vec<Shown>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ShownQueue {
    pub(crate) capacity_bytes: u64,
    pub(crate) when_full: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Shown {
    pub(crate) name: String,
    pub(crate) required: bool,
    #[serde(default)]
    pub(crate) addresses: Vec<Address>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Address {
    pub(crate) address: String,
    pub(crate) state: String,
    pub(crate) requests: u64,
    pub(crate) sent_bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) state: String,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Finding {
    pub(crate) state: String,
    pub(crate) about: String,
    pub(crate) text: String,
    #[serde(default)]
    consequences: Vec<Finding>,
}

impl Said {
    fn fault(&self, rule: &'static str, text: &str) -> Fault {
        let text = format!("asked at {:?}: {text}", self.asked);
        Fault { rule, output: String::new(), text }
    }

    /// Returns the counters by name and labels.
    fn counters(&self) -> BTreeMap<&str, f64> {
        let counter = |line| {
            let (series, value) = str::rsplit_once(line, ' ')?;
            let name = series.split('{').next()?;
            Some((series, value.parse().ok()?)).filter(|_| name.ends_with("_total"))
        };
        self.metrics.text.lines().filter_map(counter).collect()
    }

    /// Returns the findings that need attention, with their consequences.
    fn findings(&self) -> impl Iterator<Item = &Finding> {
        let first = self.status.iter().flat_map(|status| &status.verdict.findings);
        let findings = first.flat_map(|it| std::iter::once(it).chain(&it.consequences));
        findings.filter(|finding| matches!(finding.state.as_str(), "bad" | "warn"))
    }
}

/// The heap use of one life of the relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// The most bytes in use at one time.
    pub(crate) most: usize,
    /// The start and the end of the life.
    pub(crate) lived: (Duration, Duration),
}

/// The memory of the program itself (see guarantees.md). The 64 KiB for each connection are not
/// added: this part also covers code, stacks and pages, which are not counted here, and that leaves
/// room for a few hundred connections.
const PROGRAM: usize = 32 << 20;

/// The process needs at most the sum of its parts (see guarantees.md). Here they are the program,
/// `queue` (the queue and the requests of the outputs) and twice the bodies in memory, because the
/// largest event of an output can be one of these bodies.
pub(crate) fn memory(world: &World<'_>, memory: Memory, queue: usize) -> Option<Fault> {
    let Memory { most, lived: (from, to) } = memory;
    let mut changes = Vec::new();
    for attempt in &world.truth.attempts {
        let ended = attempt.ended.map_or(to, |(at, _)| at);
        if attempt.begun <= to && ended >= from {
            let known = attempt.serials.iter().filter_map(|it| world.truth.events.get(it));
            let bytes: usize = known.map(|known| known.event.bytes.len()).sum();
            changes.extend([(attempt.begun, 0, bytes), (ended, 1, bytes)]);
        }
    }
    changes.sort_unstable();
    let (mut bodies, mut most_bodies) = (0, 0);
    for (_, is_end, bytes) in changes {
        bodies = if is_end == 0 { bodies + bytes } else { bodies - bytes };
        most_bodies = most_bodies.max(bodies);
    }
    let bound = PROGRAM + queue + 2 * most_bodies;
    let text = format!(
        "the life from {from:?} to {to:?} had {most} bytes on its heap; the bound is {bound}, with \
         {most_bodies} in bodies under way and {queue} for the queue and the outputs"
    );
    (most > bound).then(|| Fault { rule: "memory", output: String::new(), text })
}

/// Runs all rules about the relay's answers, in the order of the answers.
pub(crate) fn judge(world: &World<'_>, said: &[Said], calm: Calm) -> Vec<Fault> {
    let mut faults = backwards(said);
    for said in said {
        let rules = [accepted(world, said), losses(said), identity(world, said)];
        faults.extend(rules.into_iter().flatten());
        faults.extend(letters(world, said));
        faults.extend(dropped(said));
        let rules = [needed(world, said), refused_for_good(world, said), shut_out(world, said)];
        faults.extend(rules.into_iter().flatten());
        faults.extend(at_ease(world, said, calm));
        faults.extend(at_rest(said));
        faults.extend(passes_over(world, said, calm));
        faults.extend(notices(world, said));
        faults.extend(configured::as_configured(world, said));
        faults.extend(always::agrees(said));
        faults.extend(always::named(world, said));
        faults.extend(always::late(world, said));
        faults.extend(always::in_motion(world, said));
        faults.extend(always::in_flight(world, said));
        faults.extend(untried(said));
    }
    faults
}

/// A counter never falls during a life of the relay.
pub(crate) fn backwards(said: &[Said]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for pair in said.windows(2) {
        let [before, after] = pair else { continue };
        // Two actors may ask at the same time.
        if before.started != after.started || before.answered > after.asked {
            continue;
        }
        let now = after.counters();
        for (series, was) in before.counters() {
            if let Some(is) = now.get(series).filter(|is| **is < was) {
                faults.push(after.fault("counters", &format!("{series} fell from {was} to {is}")));
            }
        }
    }
    faults
}

/// `event_total` counts at least the events that this life has accepted with a 200 before the
/// question, and at most those that it may have accepted.
pub(crate) fn accepted(world: &World<'_>, said: &Said) -> Option<Fault> {
    let counted = said.metrics.count("event_total", &[]);
    let (mut least, mut most) = (0, 0);
    for attempt in &world.truth.attempts {
        let events = attempt.serials.len() as u64;
        let is_over = attempt.ended.is_some_and(|(at, _)| at < said.started);
        if attempt.begun <= said.answered && !is_over && attempt.fate() != Fate::Refused {
            most += events;
        }
        let is_ours = attempt.begun >= said.started;
        if is_ours && matches!(attempt.ended, Some((at, Answer::Status(200))) if at <= said.asked) {
            least += events;
        }
    }
    let text = format!("event_total is {counted}, and from {least} to {most} events were accepted");
    (!(least..=most).contains(&counted)).then(|| said.fault("counters", &text))
}

/// The verdict is not good after a loss (see status-page.md).
pub(crate) fn losses(said: &Said) -> Option<Fault> {
    let status = said.status.as_ref()?;
    let is_hidden = status.lost_events > 0 && status.verdict.state == "good";
    let text = format!("the verdict is good, and {} events are lost", status.lost_events);
    is_hidden.then(|| said.fault("verdict", &text))
}

/// When the relay is idle, its counters add up (see monitoring.md), and `/status` shows the same
/// numbers of accepted and lost events.
pub(crate) fn identity(world: &World<'_>, said: &Said) -> Option<Fault> {
    if said.moment != Moment::Quiet {
        return None;
    }
    let config = world.truth.epochs.last().map(|epoch| &epoch.config.outputs);
    let names: Vec<_> = config.into_iter().flatten().map(|output| output.name.as_str()).collect();
    if let Err(difference) = conservation(&said.metrics, &names) {
        return Some(said.fault("identity", &difference));
    }
    let status = said.status.as_ref()?;
    let accepted = said.metrics.count("event_total", &[]);
    let lost = said.metrics.sum("error_total");
    let is_same = status.accepted_events == accepted && status.lost_events as f64 == lost;
    let text = format!(
        "/metrics has {accepted} accepted and {lost} lost events, and /status has {} and {}",
        status.accepted_events, status.lost_events
    );
    (!is_same).then(|| said.fault("identity", &text))
}

/// `dead_letter_events_total` counts the dead letters in the files, except one whose sync took
/// longer than the relay waits.
pub(crate) fn letters(world: &World<'_>, said: &Said) -> Vec<Fault> {
    let name = "dead_letter_events_total";
    let mut faults = Vec::new();
    for seen in world.outputs.iter().filter(|_| said.moment == Moment::Quiet) {
        let counted = said.metrics.count(name, &[("output", seen.view.output)]);
        let times = seen.view.letters.iter().map(|letter| letter.at);
        let times: Vec<_> = times.filter(|at| (said.started..=said.asked).contains(at)).collect();
        let hangs = |at: &&Duration| {
            let mut spans = world.truth.hanging_letters.iter();
            spans.any(|(from, to)| (*from..=*to).contains(*at))
        };
        let (written, hanging) = (times.len() as u64, times.iter().filter(hangs).count() as u64);
        let text =
            format!("{name} is {counted}, and there are {written} dead letters of this life");
        if !(written - hanging..=written).contains(&counted) {
            faults.push(seen.fault("identity", text));
        }
    }
    faults
}

/// `queue_needed_bytes` counts the bytes that required outputs still need (see metrics.md). It is 0
/// if nothing waits for a required output, and no required output has set an event aside. Events
/// that optional outputs have set aside do not count: the queue drops them when it needs room.
pub(crate) fn needed(world: &World<'_>, said: &Said) -> Option<Fault> {
    let needed = said.metrics.get("queue_needed_bytes", &[]).filter(|needed| *needed > 0.0)?;
    let configs: Vec<_> = world.truth.configs(said.started, said.answered).collect();
    let is_optional = |name: &str| {
        let mut outputs = configs.iter().filter_map(|config| config.output(name)).peekable();
        outputs.peek().is_some() && outputs.all(|output| !output.required)
    };
    // While its sender waits, a batch counts as accepted only after an output has begun to send it.
    let waits = |config: &&Config| config.acknowledge == Acknowledge::Delivered;
    if configs.iter().any(|config| config.on_disk || waits(config)) {
        return None;
    }
    let mut backlogs = said.metrics.all("output_backlog_events");
    backlogs.extend(said.metrics.all("output_aside_events"));
    let waits = |(labels, events): &(Vec<(String, String)>, f64)| {
        *events > 0.0 && !labels.iter().all(|(_, output)| is_optional(output))
    };
    let text = format!(
        "queue_needed_bytes is {needed}, and nothing waits for a required output: {backlogs:?}"
    );
    (!backlogs.is_empty() && !backlogs.iter().any(waits)).then(|| said.fault("counters", &text))
}

/// `queue_dropped_events_total` counts each event once. `error_total` counts it for each required
/// output that had not received it, or for the queue (see metrics.md).
pub(crate) fn dropped(said: &Said) -> Option<Fault> {
    let (dropped, lost) =
        (said.metrics.sum("queue_dropped_events_total"), said.metrics.sum("error_total"));
    let text = format!("{dropped} events were dropped by a full queue, and {lost} are lost at all");
    (dropped > lost).then(|| said.fault("counters", &text))
}

/// The requests that a layer below the listener refuses, by what is wrong with them.
const BELOW: [&str; 2] = ["two Hosts", "more behind the end"];

/// For five minutes, the findings say that requests were rejected for good.
pub(crate) fn refused_for_good(world: &World<'_>, said: &Said) -> Option<Fault> {
    let since = said.asked.saturating_sub(Duration::from_secs(290)).max(said.started);
    let is_final = |attempt: &&Attempt| {
        let is_refused = matches!(attempt.must, Must::Refuse(what, _) if !BELOW.contains(&what));
        let Some((at, Answer::Status(status))) = attempt.ended else { return false };
        let is_ours = attempt.begun >= since && at <= said.asked;
        is_refused && is_ours && matches!(status, 400 | 405 | 413 | 415)
    };
    let last = world.truth.attempts.iter().rfind(is_final)?;
    let is_said = said.findings().any(|it| it.text.starts_with("Requests were rejected"));
    let (at, answer) = last.ended?;
    let text = format!("a request was answered {answer} at {at:?}, and no finding says so");
    (said.status.is_some() && !is_said).then(|| said.fault("verdict", &text))
}

/// After four minutes of 429, a finding says for an hour that senders may have dropped events (see
/// status-page.md).
pub(crate) fn shut_out(world: &World<'_>, said: &Said) -> Option<Fault> {
    // A period of refusals ends after a minute without one.
    const PAUSE: Duration = Duration::from_secs(55);
    const LONG: Duration = Duration::from_secs(240);
    let is_429 = |attempt: &&Attempt| {
        let is_ours = attempt.begun >= said.started;
        is_ours && matches!(attempt.ended, Some((at, Answer::Status(429))) if at <= said.asked)
    };
    let refused = world.truth.attempts.iter().filter(is_429);
    let mut times: Vec<_> = refused.filter_map(|attempt| Some(attempt.ended?.0)).collect();
    times.sort_unstable();
    let spells = times.chunk_by(|one, next| *next <= *one + PAUSE);
    let mut spells = spells.filter_map(|spell| Some((*spell.first()?, *spell.last()?)));
    let (from, to) = spells.find(|(from, to)| *to >= *from + LONG)?;
    let is_said = said.findings().any(|it| it.text.starts_with("Senders may have dropped events"));
    let text = format!("senders were answered 429 from {from:?} to {to:?}, and no finding says so");
    (said.status.is_some() && !is_said).then(|| said.fault("verdict", &text))
}

/// While nothing is wrong, no finding says that an output or the queue is in trouble, unless a
/// consumer has events that it must refuse.
pub(crate) fn at_ease(world: &World<'_>, said: &Said, calm: Calm) -> Vec<Fault> {
    if said.moment != Moment::Calm {
        return Vec::new();
    }
    let refuses = |seen: &&Seen<'_>| {
        let since = said.asked.saturating_sub(calm.limit());
        let mut times = refused_at(world, seen).into_iter();
        times.any(|at| (since..=said.answered).contains(&at))
    };
    let is_at_fault = |output: &str| {
        let mut outputs = world.outputs.iter().filter(|seen| seen.view.output == output);
        outputs.any(|seen| refuses(&seen) || fails_on_one(seen, said))
    };
    // An address that was down may still be on trial. While it is down, its finding is correct.
    let has_another = |output: &str, text: &str| {
        let mut doors = world.outputs.iter().filter(|seen| seen.view.has_door);
        doors.any(|seen| seen.view.output == output)
            && text.contains(": the address ")
            && !text.contains("so are its other addresses")
    };
    // An output is unsteady until it has kept its state for two minutes (see status-json.md).
    // Events that were on the wire when the last trouble ended can still time out.
    let steady = Duration::from_secs(120);
    let is_settling = |text: &str| {
        text.contains(" keeps failing and recovering") && said.asked < calm.healed + steady
            || text.ends_with(": a delivery timed out in the last two minutes.")
                && said.asked < calm.healed + calm.limit() + steady
    };
    let is_wrong = |finding: &&Finding| match finding.about.strip_prefix("output ") {
        Some(_) if is_settling(&finding.text) => false,
        Some(output) if has_another(output, &finding.text) => false,
        Some(output) => !finding.text.contains("has dropped every event") && !is_at_fault(output),
        // The forecast looks back five minutes, to a time when something was wrong.
        None => {
            let is_forecast = finding.text.starts_with("At the current rate");
            let is_searching = world.outputs.iter().any(|seen| refuses(&seen));
            finding.about == "queue" && !is_forecast && !is_searching
        }
    };
    let wrong = said.findings().filter(is_wrong);
    let text = |it: &Finding| format!("nothing is wrong since {:?}, but: {}", calm.healed, it.text);
    wrong.map(|finding| said.fault("verdict", &text(finding))).collect()
}

/// Returns `true` if an event may be set aside. In this life of the relay, at most a minute before
/// the question, the consumer turned it down. By the question, it has neither arrived nor become a
/// dead letter. The relay retries such an event at least every 30 s, but an attempt may have to
/// wait for an address that is down.
fn fails_on_one(seen: &Seen<'_>, said: &Said) -> bool {
    let since = said.asked.saturating_sub(Duration::from_secs(60)).max(said.started);
    let is_late = |down: &&TurnedDown| (since..=said.asked).contains(&down.at);
    let is_over = |serial: Serial| {
        let has_arrived = seen.first_at(serial).is_some_and(|arrived| arrived <= said.asked);
        let mut letters = seen.view.letters.iter().filter(|letter| letter.at <= said.asked);
        has_arrived || letters.any(|letter| identify(&letter.event) == Some(serial))
    };
    let mut late = seen.view.turned_down.iter().filter(is_late).flat_map(|down| &down.events);
    late.any(|serial| !is_over(*serial))
}

/// An address that is down is in the findings if events arrive through the other one.
pub(crate) fn passes_over(world: &World<'_>, said: &Said, calm: Calm) -> Option<Fault> {
    let (consumer, address) = calm.away.filter(|_| said.moment == Moment::Calm)?;
    let config = &world.truth.epochs.last()?.config;
    let output = config.outputs.iter().find(|output| output.consumer == consumer)?;
    let seen = world.outputs.iter().find(|seen| seen.view.output == output.name)?;
    let mut arrived = seen.view.arrived.iter();
    let has_come = arrived.any(|it| (calm.begins..=said.asked).contains(&it.at));
    let of_address = format!("Output {}: the address {address} ", output.name);
    let is_said = said.findings().any(|finding| finding.text.starts_with(&of_address));
    let text = format!("{address} is away since {:?}, and no finding says so", calm.healed);
    (has_come && !is_said).then(|| said.fault("verdict", &text))
}

/// Once every event has been delivered, no finding says that events wait.
pub(crate) fn at_rest(said: &Said) -> Option<Fault> {
    let waits = |it: &&Finding| it.text.contains(" is late: ") || it.text.ends_with(" is growing.");
    let wrong = said.findings().filter(|_| said.moment == Moment::Quiet).find(waits)?;
    Some(said.fault("verdict", &format!("nothing waits, but: {}", wrong.text)))
}

/// Until something was sent to an address, it is `unknown` and not `up` (see status-json.md).
pub(crate) fn untried(said: &Said) -> Option<Fault> {
    let shown = said.status.iter().flat_map(|status| &status.outputs);
    let addresses = shown.flat_map(|output| output.addresses.iter().map(|it| (&output.name, it)));
    let is_untried =
        |(_, it): &(&String, &Address)| it.state == "up" && it.requests == 0 && it.sent_bytes == 0;
    let (output, address) = addresses.into_iter().find(is_untried)?;
    let Address { address, .. } = address;
    let text = format!("output {output}: {address} is called up, and nothing has gone there");
    Some(said.fault("verdict", &text))
}

/// An output whose consumer is down is in the findings if events wait for it.
pub(crate) fn notices(world: &World<'_>, said: &Said) -> Option<Fault> {
    let Moment::Away(consumer, since) = said.moment else { return None };
    let config = &world.truth.epochs.last()?.config;
    let output = config.outputs.iter().find(|output| output.consumer == consumer)?;
    let seen = world.outputs.iter().find(|seen| seen.view.output == output.name)?;
    let waits = world.stored.iter().find(|(serial, stored)| {
        let is_old = stored.until >= since && stored.until + LATE <= said.asked;
        let is_there = seen.first_at(**serial).is_some_and(|at| at <= said.answered);
        is_old && !is_there && world.is_owed(seen, **serial, **stored)
    });
    let about = format!("output {}", output.name);
    let is_said = said.findings().any(|finding| finding.about == about);
    let (serial, stored) = waits.filter(|_| said.status.is_some() && !is_said)?;
    let text = format!(
        "the consumer of {} is away since {since:?}, event {serial} waits since {:?}, and no \
         finding says so",
        output.name, stored.until
    );
    Some(said.fault("verdict", &text))
}

#[cfg(test)]
#[path = "said/tests.rs"]
pub(super) mod tests;
