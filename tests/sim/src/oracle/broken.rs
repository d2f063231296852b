//! The rules about requests that end without an answer, and about answers in a drain.
//!
//! A sender gets a status for each request that has reached the relay, also if the request is
//! refused (see http.md). Its connection breaks only if the process ends, or if the connection was
//! kept open and is closed at the moment at which the request comes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Fault;
use crate::truth::{Acknowledge, Answer, Attempt, Death, Kind, Must, SentBy, Truth};

/// How long a request can be on its way, and an answer.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// The time after which a refused request whose body does not come is answered, and its connection
/// closed. A sender that sends more of the body later does not see the answer.
const REFUSED: Duration = Duration::from_secs(2);

/// `queue.delivered_timeout`.
const DELIVERED: Duration = Duration::from_secs(25);

/// The shortest `shutdown.drain_timeout` for which the answers in a drain are judged: a refused
/// body may need two seconds after half of it.
const DRAIN_MIN: Duration = Duration::from_secs(10);

/// Returns a fault for each request whose connection broke, or that nobody answered, while nothing
/// had ended the relay.
pub(super) fn unanswered(truth: &Truth, now: Duration) -> Vec<Fault> {
    let mut before = BTreeSet::<(u32, u64)>::new();
    let mut faults = Vec::new();
    for attempt in &truth.attempts {
        let SentBy { sender, connection } = attempt.from;
        let is_kept = !before.insert((sender, connection)) && connection > 0;
        let Some((ended, answer)) = attempt.ended else { continue };
        let lasted = ended.saturating_sub(attempt.begun);
        let mut configs = truth.configs(attempt.begun, ended);
        let has_answer = match answer {
            // A small `limits.max_connections` may close a connection before its request is whole.
            Answer::Broken => {
                is_kept || lasted > REFUSED || configs.any(|it| it.limits.connections.is_some())
            }
            // With `delivered`, the relay can't tell such a sender from one that has gone.
            Answer::HalfClosed => {
                lasted > REFUSED || configs.any(|it| it.acknowledge == Acknowledge::Delivered)
            }
            Answer::Status(_)
            | Answer::Miscounted
            | Answer::Unhelpful(_)
            | Answer::NoConnection
            | Answer::TimedOut
            | Answer::Unread => true,
        };
        if has_answer || !is_certain(attempt) || is_ending(truth, attempt.begun, ended, now) {
            continue;
        }
        let text = format!(
            "a request of sender {sender}, begun at {:?}, got no answer: {answer} at {ended:?}",
            attempt.begun
        );
        faults.push(Fault { rule: "answers", output: String::new(), text });
    }
    faults
}

/// Returns `true` if the relay must answer this request when it has come.
fn is_certain(attempt: &Attempt) -> bool {
    match attempt.must {
        Must::Take => true,
        Must::Refuse(_, statuses) => !statuses.is_empty(),
        Must::Never => false,
    }
}

/// Returns `true` if a life of the relay has ended, or begun, at some time in this span.
fn is_ending(truth: &Truth, from: Duration, to: Duration, now: Duration) -> bool {
    let ends = |death: &Death| {
        // The next life begins to listen some time later.
        let next = truth.epochs.iter().filter_map(|epoch| epoch.settled);
        let next = next.filter(|at| death.ended.is_some_and(|ended| *at >= ended)).min();
        death.begun <= to && next.unwrap_or(now) + ON_ITS_WAY >= from
    };
    let first = truth.epochs.first().and_then(|epoch| epoch.settled).unwrap_or(now);
    from <= first || truth.deaths.iter().any(ends)
}

/// Requests that are under way when the relay begins to drain are answered by half of
/// `shutdown.drain_timeout`. Until then, none of them gets 503 (see architecture.md).
pub(super) fn in_a_drain(truth: &Truth) -> Vec<Fault> {
    let mut faults = Vec::new();
    for death in truth.deaths.iter().filter(|death| death.kind == Kind::Drain) {
        let drains = || truth.configs(death.begun, death.begun).map(|config| config.drain);
        let (Some(least), Some(most)) = (drains().min(), drains().max()) else { continue };
        // A relay that has just started may not have read a request yet that waits in its kernel.
        let mut settled = truth.epochs.iter().filter_map(|epoch| epoch.settled);
        let earlier = truth.deaths.iter().filter_map(|earlier| earlier.ended);
        let born = earlier.filter(|ended| *ended < death.begun).max().unwrap_or_default();
        let has_begun = settled.any(|at| at >= born && at + ON_ITS_WAY <= death.begun);
        if least < DRAIN_MIN || !has_begun {
            continue;
        }
        for attempt in &truth.attempts {
            let ended = attempt.ended.map_or(Duration::MAX, |(at, _)| at);
            let is_under_way = attempt.begun + ON_ITS_WAY <= death.begun && ended > death.begun;
            if !is_under_way || attempt.must != Must::Take {
                continue;
            }
            let why = match attempt.ended.map(|(_, answer)| answer) {
                Some(Answer::Unread) => continue,
                Some(Answer::Status(503)) if ended + least / 100 < death.begun + least / 2 => {
                    if may_be_503(truth, attempt, ended) {
                        continue;
                    }
                    "which is too early"
                }
                _ if ended > death.begun + most / 2 + REFUSED + ON_ITS_WAY => "which is too late",
                // A sender that gives up earlier was too impatient.
                Some(Answer::Broken | Answer::HalfClosed | Answer::NoConnection) => {
                    "which is no answer"
                }
                _ => continue,
            };
            let answer = attempt.ended.map_or_else(|| "nothing".into(), |(_, it)| it.to_string());
            let text = format!(
                "a request of sender {}, begun at {:?}, got {answer} at {ended:?} in the drain \
                 from {:?} on, {why}",
                attempt.from.sender, attempt.begun, death.begun
            );
            faults.push(Fault { rule: "drain", output: String::new(), text });
        }
    }
    faults
}

/// Returns `true` if there may be another reason for a 503 than the drain: the disk, or a consumer
/// that has not taken the events in time.
fn may_be_503(truth: &Truth, attempt: &Attempt, ended: Duration) -> bool {
    let mut refusing = truth.refusing.iter();
    refusing.any(|(from, to)| *from <= ended && attempt.begun <= *to + ON_ITS_WAY)
        || ended >= attempt.begun + DELIVERED
}

#[cfg(test)]
#[path = "broken_tests.rs"]
mod tests;
