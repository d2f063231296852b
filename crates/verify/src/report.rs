//! The result of a check: the counts, the faults, and what could not be checked.

use std::fmt;
use std::ops::{Index, IndexMut};
use std::time::{Duration, UNIX_EPOCH};

use audit::time::rfc3339;

/// The maximum number of faults that are kept. Further ones are only counted.
const FAULTS_MAX: usize = 1000;

/// The number of [`Number`] values in the first printed line. The rest follow in the second line.
const IN_FIRST_LINE: usize = 8;

/// The number of things of one sort, and how many of them are good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// The number of good things.
    pub good: u64,
    /// The number of all things, good or not.
    pub all: u64,
}

impl Share {
    fn add(&mut self, of: Self) {
        self.good += of.good;
        self.all += of.all;
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.good, self.all)
    }
}

/// A count in a report. The variants are in the order in which the counts are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// The events that were sent well before the end of the export, and whose line is not stored.
    Missing,
    /// The events for which another line is stored.
    Changed,
    /// The stored lines that the log does not have, without a possible explanation.
    Extra,
    /// The stored lines that the log does not have, with a possible explanation.
    Unexplained,
    /// The events that were sent shortly before the end of the export, and whose line is not
    /// stored.
    NotSettled,
    /// The events that were sent after the end of the export.
    NotExported,
    /// The stored lines and stored checkpoints that are newer than the last checkpoint of the log.
    Newer,
    /// The events that were received, but have no fate in the log yet.
    Pending,
    /// The events that are lost according to the log.
    Lost,
    /// The events that the filter of an output has dropped.
    Dropped,
    /// The events about which the log proves nothing, for example because evidence was off.
    WithoutEvidence,
    /// The events that were set aside and have no final fate in the log yet.
    SetAside,
    /// The stored lines that are further copies of a sent line.
    Duplicate,
    /// The events whose line hash is missing.
    Unknown,
}

/// The printed names, in the order of [`Number`].
const NAMES: &str = "missing, changed, extra, unexplained, not settled, not exported, newer, \
                     pending, lost, dropped, without evidence, set aside, duplicate, unknown";

/// The numbers in a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The log's checkpoint, the given ones, and those among the stored lines. A good checkpoint is
    /// signed and fits the log.
    pub checkpoints: Share,
    /// With stored lines: the events that were sent. Those whose line is stored are good. Without
    /// stored lines: the events that were received. Those with a line hash are good.
    pub events: Share,
    numbers: [u64; Number::Unknown as usize + 1],
}

impl Index<Number> for Counts {
    type Output = u64;

    fn index(&self, number: Number) -> &u64 {
        &self.numbers[number as usize]
    }
}

impl IndexMut<Number> for Counts {
    fn index_mut(&mut self, number: Number) -> &mut u64 {
        &mut self.numbers[number as usize]
    }
}

impl Counts {
    fn add(&mut self, of: &Self) {
        self.checkpoints.add(of.checkpoints);
        self.events.add(of.events);
        for (sum, more) in self.numbers.iter_mut().zip(of.numbers) {
            *sum = sum.saturating_add(more);
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checkpoints, events, numbers } = self;
        write!(f, "checkpoints {checkpoints} valid; events {events} found; ")?;
        for (at, (name, number)) in NAMES.split(", ").zip(numbers).enumerate() {
            let before = match at {
                0 => "",
                IN_FIRST_LINE => "\n",
                _ => ", ",
            };
            write!(f, "{before}{name} {number}")?;
        }
        Ok(())
    }
}

/// A fault that the check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The first position of the fault, if it has one.
    pub position: Option<u64>,
    /// The time of the fault in milliseconds since 1970, or `None` if it is unknown.
    pub at: Option<u64>,
    /// The end of this time, if it is a period.
    pub to: Option<u64>,
    /// The text of the report. It says what differs, and accuses nobody.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FAULT")?;
        if let Some(position) = self.position {
            write!(f, " position {position}")?;
        }
        if let Some(at) = self.at {
            write!(f, " {}", time(at))?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Formats a time in milliseconds since 1970.
pub fn time(at: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_millis(at))
}

/// The faults: their number, and the first of them.
#[derive(Debug, Default)]
pub struct Faults {
    kept: Vec<Fault>,
    count: u64,
}

impl Faults {
    /// Adds a fault without a position, at this time.
    pub fn add(&mut self, at: Option<u64>, text: impl fmt::Display) {
        self.push(Fault { position: None, at, to: None, text: text.to_string() });
    }

    pub(super) fn add_at(&mut self, position: u64, at: Option<u64>, text: impl fmt::Display) {
        self.push(Fault { position: Some(position), at, to: None, text: text.to_string() });
    }

    pub(super) fn push(&mut self, fault: Fault) {
        self.count += 1;
        if self.kept.len() < FAULTS_MAX {
            self.kept.push(fault);
        }
    }

    /// Adds the faults of `other`. `change` is applied to the text of each.
    pub fn append(&mut self, other: Self, change: impl Fn(String) -> String) {
        let kept = other.kept.len() as u64;
        for fault in other.kept {
            self.push(Fault { text: change(fault.text), ..fault });
        }
        self.count += other.count - kept;
    }

    /// Sets the missing times of faults that have a position, with `time_of`.
    pub(super) fn add_times(&mut self, time_of: impl Fn(u64) -> Option<u64>) {
        for fault in self.kept.iter_mut().filter(|fault| fault.at.is_none()) {
            fault.at = fault.position.and_then(&time_of);
        }
    }

    /// Removes the kept faults for which `is_kept` returns `false`.
    pub fn retain(&mut self, is_kept: impl Fn(&Fault) -> bool) {
        let before = self.kept.len();
        self.kept.retain(is_kept);
        self.count -= (before - self.kept.len()) as u64;
    }

    /// Returns the kept faults, at most 1,000.
    pub fn kept(&self) -> &[Fault] {
        &self.kept
    }

    /// Returns the number of all faults, including those that are not kept.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Report {
    /// The counts.
    pub counts: Counts,
    /// A line for each output, with the fates of its events.
    pub outputs: Vec<String>,
    /// The starts, stops and reloads that changed something, and the periods without a relay.
    pub runs: Vec<String>,
    /// The faults.
    pub faults: Faults,
    /// The checks that could not be made, each with the reason.
    pub unchecked: Vec<String>,
    /// Facts that are not faults, but interest an auditor.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns the exit status: 1 if there is a fault, otherwise 2 if something could not be
    /// checked, otherwise 0.
    pub fn status(&self) -> u8 {
        match (self.faults.count, self.unchecked.is_empty()) {
            (0, true) => 0,
            (0, false) => 2,
            (_, _) => 1,
        }
    }

    /// Adds a fault without a position and a time.
    pub fn fault(&mut self, text: impl fmt::Display) {
        self.faults.add(None, text);
    }

    /// Adds a fault if `is_fault` is set, and otherwise a line to `unchecked`.
    pub fn found(&mut self, is_fault: bool, text: impl fmt::Display) {
        match is_fault {
            true => self.fault(text),
            false => self.unchecked.push(text.to_string()),
        }
    }

    /// Adds the report of a log. `origin` names the log if there are several.
    pub fn append(&mut self, of: Self, origin: Option<&str>) {
        let prefix = origin.map(|origin| format!("{origin}: ")).unwrap_or_default();
        let named = |text: String| format!("{prefix}{text}");
        self.counts.add(&of.counts);
        self.outputs.extend(of.outputs.into_iter().map(named));
        self.runs.extend(of.runs.into_iter().map(named));
        self.faults.append(of.faults, named);
        self.unchecked.extend(of.unchecked.into_iter().map(named));
        self.notes.extend(of.notes.into_iter().map(named));
    }
}
