//! The runs of the relay: starts, stops, reloads, their changes, and the times in which nothing was
//! recorded.
//!
//! Silence is judged only by the stamps of the entries, which count the time within one process of
//! the relay. The machine's clock may step, or start in 1970, and is only shown.

use std::collections::BTreeSet;

use super::report::{Fault, Faults, time};
use evidence_log::entry::{Entry, Running, Stamp, Started};
use evidence_log::{COMMIT_BYTES, COMMIT_EVERY};

/// The minimum tolerance for a late heartbeat, in milliseconds. Half of the heartbeat interval is
/// the tolerance if that is longer.
const SILENCE_MIN: u64 = 2000;

/// The longest step of the machine's clock that is not reported, in milliseconds.
const STEP_MIN: u64 = 2000;

/// The state of the relay after an entry.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There was no entry about a start yet.
    #[default]
    Unknown,
    Running,
    /// The relay stopped at this time.
    Stopped(u64),
    /// Entries without a start followed a stop.
    Wrong,
}

/// A line of the report about a moment or a period. Times are milliseconds since 1970.
#[derive(Debug)]
pub(crate) struct Row {
    pub from: u64,
    pub to: u64,
    pub text: String,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'a> {
    pub index: u64,
    pub entry: &'a Entry,
    /// The time of the entry in milliseconds since 1970.
    pub at: u64,
    pub stamp: Option<Stamp>,
}

impl<'a> Said<'a> {
    pub(crate) fn new(index: u64, entry: &'a Entry, stamp: Option<Stamp>) -> Self {
        Self { index, entry, at: entry.at(), stamp }
    }
}

/// The time of the log: the sum of the milliseconds between its entries. Times without a relay are
/// unknown and count as 0.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: Option<(Option<Stamp>, u64)>,
    pub now: u64,
}

impl Clock {
    /// Adds an entry. Returns the time since the entry before it, or `None` if this time is not
    /// proven.
    pub(crate) fn feed(&mut self, Said { stamp, at, .. }: Said<'_>) -> Option<u64> {
        let (passed, is_proven) = match (self.last.replace((stamp, at)), stamp) {
            (Some((Some(last), _)), Some(stamp)) if last.boot == stamp.boot => {
                (stamp.up.saturating_sub(last.up), true)
            }
            // Versions without stamps have only the machine's clock.
            (Some((None, last)), None) => (at.saturating_sub(last), false),
            (_, _) => (0, false),
        };
        self.now = self.now.saturating_add(passed);
        is_proven.then_some(passed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Runs {
    state: State,
    pub(super) last_at: Option<u64>,
    clock: Clock,
    /// The process that wrote the last stamped entry (`Stamp::boot`), and when it started by the
    /// machine's clock, in milliseconds since 1970. `None` until one of its entries has an exact
    /// time.
    began: Option<(u32, i128)>,
    heartbeat_ms: u64,
    /// The config and the outputs of the last entry that has them.
    before: Option<(String, BTreeSet<String>)>,
    /// The identity of the log's directory in the last entry about a stop.
    pub(super) stopped_in: Option<String>,
    /// The indices and times of the entries about a start after a crash, and of those with a
    /// changed config. Events sent shortly before may have been sent again under other rules.
    turns: (BTreeSet<u64>, BTreeSet<u64>),
    /// The starts, stops and reloads that changed something, and the periods without a relay.
    pub rows: Vec<Row>,
    pub steps: Vec<Row>,
}

impl Runs {
    pub(crate) fn feed(&mut self, said: Said<'_>, faults: &mut Faults) {
        let before = self.last_at;
        self.hear(said, faults);
        if let Entry::Start(Started { running, .. }) = said.entry {
            self.start(said.index, running, before);
            self.compare(said.index, "start", running);
            self.state = State::Running;
        } else if let Entry::Reload(running) = said.entry {
            self.compare(said.index, "reload", running);
        } else if let Entry::Stop(running) = said.entry {
            self.compare(said.index, "stop", running);
            self.state = State::Stopped(running.at);
            self.stopped_in.clone_from(&running.directory);
        }
    }

    /// Adds a row about the time without a relay before a start. `before` is the time of the entry
    /// before the start.
    fn start(&mut self, index: u64, running: &Running, before: Option<u64>) {
        let (from, how) = match (self.state, before) {
            (State::Stopped(at), _) => (at, "it had been stopped".to_owned()),
            (State::Running, Some(at)) => {
                self.turns.0.insert(index);
                self.turns.1.insert(running.at);
                let how = format!(
                    "it had ended without a stop; up to {} s or {} MiB of events before this \
                     crash, nothing was proven",
                    COMMIT_EVERY.as_secs(),
                    COMMIT_BYTES >> 20
                );
                (at, how)
            }
            (State::Unknown | State::Wrong | State::Running, _) => return,
        };
        let to = running.at;
        let long = match to.checked_sub(from) {
            Some(ms) => seconds(ms),
            None => "the clock was set back in between".to_owned(),
        };
        let text = format!("no relay ran from {} to {} ({long}): {how}", time(from), time(to));
        self.rows.push(Row { from: from.min(to), to: to.max(from), text });
    }

    /// Adds a row about the entry if the config or the outputs have changed.
    fn compare(&mut self, index: u64, kind: &str, running: &Running) {
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
                    self.turns.0.insert(index);
                    self.turns.1.insert(running.at);
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

    /// Checks that there was no silence before the entry, and that a stop is followed only by a
    /// start or an alarm.
    fn hear(&mut self, said: Said<'_>, faults: &mut Faults) {
        let Said { index, entry, at, .. } = said;
        let is_start = matches!(entry, Entry::Start(_));
        // An alarm about something that a start found may precede the entry about the start.
        if let State::Stopped(stopped) = self.state
            && !is_start
            && !matches!(entry, Entry::Alarm { .. })
        {
            let text = format!("entry {index} is behind a stop, and there is no start between");
            faults.add(Some(stopped), text);
            self.state = State::Wrong;
        }
        let silence = self.clock.feed(said);
        if self.state == State::Running
            && !is_start
            && let Some(silence) = silence.filter(|silence| *silence > self.longest())
        {
            faults.push(Fault {
                position: None,
                at: self.last_at,
                to: Some(at),
                text: format!(
                    "nothing was recorded for {} s before entry {index}, although the relay was \
                     running: a heartbeat was due each {} s",
                    silence / 1000,
                    self.heartbeat_ms.div_ceil(1000)
                ),
            });
        }
        if let Some(stamp) = said.stamp {
            self.step(said, stamp);
        }
        self.last_at = Some(at);
    }

    /// Adds a row if the machine's clock was set before the entry.
    fn step(&mut self, said: Said<'_>, Stamp { boot, up }: Stamp) {
        let Said { index, entry, at, .. } = said;
        let began = i128::from(at) - i128::from(up);
        let before = self.began.filter(|it| it.0 == boot).map(|it| it.1);
        // Entries of other types have the time of their events, which may have waited.
        let is_exact = matches!(
            entry,
            Entry::Start(_) | Entry::Stop(_) | Entry::Heartbeat { .. } | Entry::Pruned { .. }
        );
        let Some(before) = before else {
            self.began = is_exact.then_some((boot, began));
            return;
        };
        let by = u64::try_from(began.abs_diff(before)).unwrap_or(u64::MAX);
        if began > before || is_exact {
            self.began = Some((boot, began));
        }
        if by > STEP_MIN && (began > before || is_exact) {
            let way = if began > before { "forward" } else { "back" };
            let text = format!(
                "the machine's clock was set {way} by {} before entry {index}, of {}",
                seconds(by),
                time(at)
            );
            self.steps.push(Row { from: at.saturating_sub(by), to: at.saturating_add(by), text });
        }
    }

    /// Returns the longest acceptable silence of a running relay, in milliseconds.
    fn longest(&self) -> u64 {
        self.heartbeat_ms.saturating_add((self.heartbeat_ms / 2).max(SILENCE_MIN))
    }

    /// Returns `true` if the log of a running relay ends long before `now`, by this machine's
    /// clock.
    pub(crate) fn is_silent(&self, now: u64) -> bool {
        let last = self.last_at.unwrap_or(u64::MAX);
        matches!(self.state, State::Running) && now.saturating_sub(last) > self.longest()
    }

    /// Describes the newest checkpoint of the log.
    pub(super) fn last_checkpoint(&self) -> String {
        let at = self.last_at.map_or_else(|| "an unknown time".to_owned(), time);
        format!("the last checkpoint, whose last entry is of {at}")
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped(_))
    }

    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Returns `true` if a start after a crash, or a changed config, is between two entries, by
    /// their indices or by their times.
    pub(super) fn has_turn_in(&self, from: (u64, u64), to: (u64, u64)) -> bool {
        let is_in = |turns: &BTreeSet<u64>, from: u64, to: u64| {
            turns.range(from..).next().is_some_and(|turn| *turn <= to)
        };
        is_in(&self.turns.0, from.0, to.0) || is_in(&self.turns.1, from.1, to.1)
    }

    pub(crate) fn facts(&self) -> usize {
        self.rows.len() + self.steps.len() + self.turns.0.len()
    }
}

fn seconds(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} s", ms / 1000),
    }
}
