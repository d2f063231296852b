//! What is wrong with an output: its consumer, its addresses, its backlog and its filter.

use super::{DAY, Findings, Kind, State};
use crate::status::thresholds::{ALL_DROPPED, STALLED_LATELY};
use crate::status::{Address, Aside, Output, Status};

/// The state of an address that answers again, and that one delivery at a time may use.
pub const ON_TRIAL: &str = "back, on trial";

/// The state of an address of an unsteady output is a finding after this time, in seconds.
const ADDRESS_FOR: f64 = 10.0;

/// Outputs with a greater `lag_max_seconds` hold or collect events, so their backlog may grow.
const COLLECTING: f64 = 60.0;

/// The number of characters after which [`cause`] cuts an error.
pub(super) const ERROR_MAX: usize = 160;

/// Returns `true` if the last attempts of this output have failed. An output that has not made an
/// attempt yet is not down.
pub fn is_down(it: &Output) -> bool {
    !it.health.up && it.health.down_seconds.is_some()
}

/// Returns `true` if an event has waited too long for this output, and the output is not paused.
pub fn is_late(it: &Output) -> bool {
    it.backlog.backlog_events > 0
        && it.backlog.lag_seconds > it.backlog.lag_max_seconds
        && !it.health.paused
}

/// Returns `true` if this output sends about as many bytes as `rate_limit` allows.
pub(super) fn is_limited(it: &Output) -> bool {
    let sent = it.counts.sent_bytes_per_second.unwrap_or_default();
    it.rate_limit_bytes_per_second.is_some_and(|limit| sent > 0.8 * limit as f64)
}

/// Returns `true` if this output is paused, and its oldest event has waited for more than a day.
fn is_forgotten(it: &Output) -> bool {
    it.health.paused && it.backlog.backlog_events > 0 && it.backlog.lag_seconds > DAY
}

/// Returns `true` if a delivery of this output has timed out in the last two minutes.
fn is_stalling(it: &Output) -> bool {
    it.health.stalled_seconds_ago.is_some_and(|ago| ago < STALLED_LATELY)
}

/// Returns `true` if the backlog of this output has grown for minutes. Returns `false` for a paused
/// output, and for one that collects events, as `s3` does for its objects.
pub fn is_growing(it: &Output) -> bool {
    it.backlog.growing && it.backlog.lag_max_seconds <= COLLECTING && !it.health.paused
}

/// Returns `true` if the filter of this output has dropped every event for minutes.
pub fn is_dropping_all(it: &Output) -> bool {
    it.all_dropped_seconds.is_some_and(|seconds| seconds >= ALL_DROPPED)
}

/// Returns `true` if deliveries pass over this address. An address on trial is not passed over.
pub fn is_passed_over(it: &Address) -> bool {
    !matches!(it.state.as_str(), "" | "up" | "unknown" | ON_TRIAL)
}

/// Shortens an error of an output or an address to 160 characters, without the URL or `HOST:PORT`
/// at its beginning. The finding names the output or the address itself.
pub fn cause(error: &str) -> String {
    let cause = match error.split_once(": ") {
        Some((place, rest)) if is_place(place) => rest,
        _ => error,
    };
    let cause = cause.strip_prefix("answered ").unwrap_or(cause).trim_end_matches('.');
    match cause.char_indices().nth(ERROR_MAX) {
        Some((end, _)) => format!("{} …", cause.split_at(end).0.trim_end()),
        None => cause.to_owned(),
    }
}

fn sentence(error: &str) -> String {
    let cause = cause(error);
    let mut rest = cause.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if cause.ends_with('…') { "" } else { "." };
    format!("{first}{}{end}", rest.as_str())
}

/// Returns `true` if this part of an error message is a URL, or a host and a port.
fn is_place(text: &str) -> bool {
    let port = text.rsplit_once(':').map_or("", |(_, port)| port);
    let has_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    !text.contains(' ') && (has_port || text.contains("://"))
}

pub(super) fn output(it: &Output, status: &Status, found: &mut Findings) {
    let about = format!("output {}", it.name);
    if it.health.unsteady {
        let why = it.health.last_error.as_deref().map(|error| format!(" ({})", cause(error)));
        let why = why.unwrap_or_default();
        let text = format!("Output {} keeps failing and recovering{why}.", it.name);
        let advice = "Its last error says why: the consumer may be overloaded, or fail on some of \
            the events.";
        found.add(Kind::OutputUnsteady, State::Warn, &about, text, advice);
    } else if is_down(it) {
        let state = if it.required { State::Bad } else { State::Warn };
        let fate = if it.keeps_events { "its events are kept" } else { "it may lose events" };
        // The error comes first: it is what the operator acts on.
        let text = match &it.health.last_error {
            Some(error) => format!("{} Output {} is down; {fate}.", sentence(error), it.name),
            None => format!("Output {} is down; {fate}.", it.name),
        };
        let advice = "Look at the consumer and its log, and at the network to it.";
        found.add(Kind::OutputDown, state, &about, text, advice);
        return;
    }
    if it.health.paused {
        paused(it, &about, status, found);
    }
    addresses_passed_over(it, &about, found);
    if is_late(it) || is_growing(it) {
        let (name, seconds) = (&it.name, it.backlog.lag_max_seconds);
        let is_limited = is_limited(it);
        let why = if is_limited { ", because rate_limit is reached" } else { "" };
        let text = match is_late(it) {
            true => format!(
                "Output {name} is late{why}: its oldest event has waited for more than {seconds} s."
            ),
            false => format!("The backlog of output {name} is growing{why}."),
        };
        let advice = match is_limited {
            true => "Raise rate_limit, or filter more events out.",
            false => "The consumer accepts events more slowly than they arrive.",
        };
        found.add(Kind::OutputLate, State::Warn, &about, text, advice);
    } else if is_stalling(it) {
        let text = format!("Output {}: a delivery timed out in the last two minutes.", it.name);
        let advice = "Check whether the consumer has stopped reading: its kernel may accept unread \
            events for a while.";
        found.add(Kind::OutputStalls, State::Warn, &about, text, advice);
    }
    if is_dropping_all(it) {
        let text = format!("The filter of output {} has dropped every event for minutes.", it.name);
        let advice = "If this is not intended, `policy explain` shows which rule applies to an \
            event; names of verbs, resources and users must match exactly.";
        found.add(Kind::AllFiltered, State::Warn, &about, text, advice);
    }
    if let Some(aside) = it.aside.as_ref().filter(|it| it.at_fault > 0) {
        let Aside { at_fault, position, bytes, .. } = aside;
        let text = format!(
            "Output {}: the consumer turns down {at_fault} of its events each time, the first at \
             position {position} with {bytes} bytes, and accepts the others.",
            it.name
        );
        let fate = match aside.crowded {
            true => {
                "There is no room to set more aside, so new ones push out the oldest ones, \
                which are given up unless rejected.action is \"retry\"."
            }
            false => {
                "They are set aside, hold up no others, and are given up after \
                rejected.after_server_errors unless rejected.action is \"retry\"."
            }
        };
        let advice = format!("{fate} `aside` in /status says what the consumer did.");
        found.add(Kind::EventsRefused, State::Warn, &about, text, &advice);
    }
    addresses_on_trial(it, &about, found);
}

/// Returns the addresses of an output that are worth a finding of their own. The state of a single
/// address is that of its output. Where many requests fail, an address is down after each of them.
fn addresses_apart(it: &Output) -> impl Iterator<Item = &Address> {
    let is_apart = |at: &&Address| {
        let has_lasted = at.state_seconds.is_none_or(|seconds| seconds >= ADDRESS_FOR);
        it.addresses.len() > 1 && (has_lasted || !it.health.unsteady)
    };
    it.addresses.iter().filter(is_apart)
}

/// A pause is what the operator has asked for, until it seems to be forgotten: its oldest event has
/// waited for a day, or its events need half of the queue.
fn paused(it: &Output, about: &str, status: &Status, found: &mut Findings) {
    let bytes = it.backlog.backlog_bytes;
    let is_half = it.required && bytes.saturating_mul(2) > status.queue.capacity_bytes;
    let (state, fate) = match it.backlog.backlog_events {
        0 => (State::Note, ""),
        _ if is_half => (State::Warn, ", and its events need half of the queue"),
        _ if is_forgotten(it) => (State::Warn, ", and its events have waited for more than a day"),
        _ => (State::Note, "; its events wait in the queue"),
    };
    let text = format!("Output {} is paused by the config{fate}.", it.name);
    let advice = "Remove `pause` from the config before the queue is full.";
    found.add(Kind::OutputPaused, state, about, text, advice);
}

fn addresses_passed_over(it: &Output, about: &str, found: &mut Findings) {
    let passed_over = it.addresses.iter().filter(|it| is_passed_over(it)).count();
    let rest = match passed_over < it.addresses.len() {
        true => "its other addresses take the events",
        false => "so are its other addresses",
    };
    for address in addresses_apart(it).filter(|it| is_passed_over(it)) {
        let (name, state) = (&address.address, &address.state);
        let why = address.last_error.as_deref().map(|error| format!(" ({})", cause(error)));
        let why = why.unwrap_or_default();
        let text = format!("Output {}: the address {name} is {state}{why}; {rest}.", it.name);
        let advice = "Look at the consumer at this address.";
        found.add(Kind::AddressDown, State::Warn, about, text, advice);
    }
}

fn addresses_on_trial(it: &Output, about: &str, found: &mut Findings) {
    for address in addresses_apart(it).filter(|it| it.state == ON_TRIAL) {
        let name = &address.address;
        let text = format!(
            "Output {}: the address {name} accepts connections again, but has taken no events \
             since it failed.",
            it.name
        );
        let advice = "It is on trial until one delivery to it succeeds.";
        found.add(Kind::AddressOnTrial, State::Warn, about, text, advice);
    }
}
