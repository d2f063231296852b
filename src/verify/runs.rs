//! The runs of the relay: starts, stops, reloads, what each of them changed, and the times in
//! which nothing was recorded.

use std::collections::BTreeSet;

use super::report::Fault;
use super::report::Faults;
use super::report::time;
use crate::evidence::entry::Entry;
use crate::evidence::entry::Running;
use crate::evidence::entry::Started;

/// A silence is reported if it is longer than one and a half heartbeats, and longer than one
/// heartbeat by at least this many milliseconds.
const SILENCE_MIN: u64 = 2000;

/// The relay signs the entry that ends a silence within about this many milliseconds. Until then a
/// running relay is not called silent.
const UNSIGNED_MAX: u64 = 2000;

/// The question for the auditor when the relay was silent.
const WHO_STOPPED: &str =
    "what happened to the relay in this time, and who had access to its clock and its key?";

/// The state of the relay after an entry.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No start has come yet.
    #[default]
    Unknown,
    Running,
    /// The relay has stopped at this time.
    Stopped(u64),
    /// The relay has stopped, but entries without a start followed.
    Wrong,
}

/// A fact about a moment or a period. Times are in milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) text: String,
}

/// The runs of the relay, collected entry by entry.
#[derive(Debug, Default)]
pub(super) struct Runs {
    state: State,
    /// The latest time among the entries and the events in them.
    pub(super) last_at: Option<u64>,
    heartbeat_ms: u64,
    /// The time of the first start.
    pub(super) started_at: Option<u64>,
    /// The config and the outputs in the last entry that names them.
    before: Option<(String, BTreeSet<String>)>,
    /// The times of the starts after a crash, and of the changes of the config. Events that were
    /// sent shortly before such a time may have been sent again under other rules.
    turns: Vec<u64>,
    /// The starts, stops and reloads that changed something, and the periods without a relay.
    pub(super) rows: Vec<Row>,
    /// The times at which the clock was set back.
    pub(super) set_back: Vec<Row>,
}

impl Runs {
    pub(super) fn feed(&mut self, index: u64, entry: &Entry, faults: &mut Faults) {
        let before = self.last_at;
        self.hear(index, entry, faults);
        if let Entry::Start(Started { running, .. }) = entry {
            self.start(running, before);
            self.compare("start", running);
            self.state = State::Running;
            self.started_at.get_or_insert(running.at);
        } else if let Entry::Reload(running) = entry {
            self.compare("reload", running);
        } else if let Entry::Stop(running) = entry {
            self.compare("stop", running);
            self.state = State::Stopped(running.at);
        }
    }

    /// Lists the time without a relay before a start. `before` is the time of the entry before the
    /// start.
    fn start(&mut self, running: &Running, before: Option<u64>) {
        let (from, how) = match (self.state, before) {
            (State::Stopped(at), _) => (at, "it had been stopped"),
            (State::Running, Some(at)) => {
                self.turns.push(running.at);
                (at, "it had ended without a stop")
            }
            (State::Unknown | State::Wrong | State::Running, _) => return,
        };
        let to = running.at;
        let text = format!(
            "no relay ran from {} to {} ({}): {how}",
            time(from),
            time(to),
            seconds(to.saturating_sub(from))
        );
        self.rows.push(Row { from, to, text });
    }

    /// Lists an entry if it changed the config or the outputs.
    fn compare(&mut self, kind: &str, running: &Running) {
        self.heartbeat_ms = running.heartbeat_ms;
        let outputs: BTreeSet<String> = running.outputs.keys().cloned().collect();
        let config = &running.config_sha256;
        let mut changes = Vec::new();
        match &self.before {
            None => {
                let names: Vec<_> = outputs.iter().map(String::as_str).collect();
                changes.push(format!("config_sha256 {config}, outputs {}", names.join(", ")));
            }
            Some((before, had)) => {
                if before != config {
                    self.turns.push(running.at);
                    changes.push(format!("config_sha256 {config} instead of {before}"));
                }
                let new = outputs.difference(had).map(|name| format!("output {name} joined"));
                let gone = had.difference(&outputs).map(|name| format!("output {name} left"));
                let again = outputs.intersection(had).filter(|it| running.left.contains_key(*it));
                let again = again.map(|name| format!("output {name} left and joined again"));
                changes.extend(new.chain(gone).chain(again));
            }
        }
        self.before = Some((config.clone(), outputs));
        if !changes.is_empty() {
            let at = running.at;
            let text = format!("{kind} {}: {}", time(at), changes.join("; "));
            self.rows.push(Row { from: at, to: at, text });
        }
    }

    /// Checks that there was no silence before the entry, and that the entry does not follow a
    /// stop.
    fn hear(&mut self, index: u64, entry: &Entry, faults: &mut Faults) {
        let at = entry.at();
        // These entries have the time of their events, which may have waited for the entry.
        let is_of_events = matches!(entry, Entry::Accepted { .. } | Entry::Delivered(_));
        let is_start = matches!(entry, Entry::Start(_));
        // An alarm is about something that a start has found, and may come before the entry about
        // the start.
        if let State::Stopped(stopped) = self.state
            && !is_start
            && !matches!(entry, Entry::Alarm { .. })
        {
            let text = format!("entry {index} is behind a stop, and there is no start between");
            let question = "which program has written the log while the relay was stopped?";
            faults.add(Some(stopped), question, text);
            self.state = State::Wrong;
        }
        let Some(last) = self.last_at else {
            self.last_at = Some(at);
            return;
        };
        if self.state == State::Running
            && !is_start
            && let Some(fault) = self.silence(last, at, 0, &format!("before entry {index}"))
        {
            faults.push(fault);
        }
        if at < last && !is_of_events {
            let text = format!(
                "the clock was set back by {} before entry {index}, from {} to {}",
                seconds(last - at),
                time(last),
                time(at)
            );
            self.set_back.push(Row { from: at, to: last, text });
        }
        self.last_at = Some(if is_of_events { last.max(at) } else { at });
    }

    /// Returns a fault if the time without an entry was too long. `more` milliseconds are allowed
    /// beyond the usual limit. `end` names the place of the silence in the log.
    fn silence(&self, from: u64, to: u64, more: u64, end: &str) -> Option<Fault> {
        let heartbeat = self.heartbeat_ms;
        let longest = heartbeat.saturating_add((heartbeat / 2).max(SILENCE_MIN) + more);
        let silence = to.saturating_sub(from);
        (silence > longest).then(|| Fault {
            position: None,
            at: Some(from),
            to: Some(to),
            text: format!(
                "nothing was recorded for {} s {end}, although the relay was running: a heartbeat \
                 was due each {} s",
                silence / 1000,
                heartbeat.div_ceil(1000)
            ),
            question: WHO_STOPPED,
        })
    }

    /// Returns a fault if the time from the last entry to `until` is too long. `is_live`: the relay
    /// is running; it gets some more time, because its newest entry may not be signed yet.
    pub(super) fn silence_at_end(&self, until: u64, is_live: bool) -> Option<Fault> {
        let last = self.last_at?;
        let is_open = matches!(self.state, State::Running | State::Wrong);
        let more = if is_live { UNSIGNED_MAX } else { 0 };
        let end = format!("up to {}, at the end of the log", time(until));
        self.silence(last, until, more, &end).filter(|_| is_open)
    }

    /// Returns the time of the stop that is the last entry; `None` if the log ends otherwise.
    pub(super) fn stopped_at(&self) -> Option<u64> {
        match self.state {
            State::Stopped(at) => Some(at),
            State::Unknown | State::Running | State::Wrong => None,
        }
    }

    /// Returns `true` if the relay has started, and no stop has come yet.
    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Returns `true` if the relay was started after a crash, or got another config, in this
    /// period.
    pub(super) fn has_turn_in(&self, from: u64, to: u64) -> bool {
        let first = self.turns.partition_point(|turn| *turn < from);
        self.turns.get(first).is_some_and(|turn| *turn <= to)
    }

    pub(super) fn facts(&self) -> usize {
        self.rows.len() + self.set_back.len() + self.turns.len()
    }
}

/// Returns a number of milliseconds as seconds.
fn seconds(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} s", ms / 1000),
    }
}
