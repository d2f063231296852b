//! The result of a check: the counts, the faults, and what could not be checked.

use std::fmt;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use crate::audit::time::rfc3339;

/// The maximum number of faults that are kept. Further ones are counted.
const FAULTS_MAX: usize = 1000;

/// Some things, and those of them that are good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// The number of the good ones.
    pub good: u64,
    /// The number of all.
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

/// The numbers of a check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Checkpoints: that of the log, those that were given, and those among the stored lines. Good
    /// are those that are signed and fit the log.
    pub checkpoints: Share,
    /// With stored lines: the events that left by the log, and good are those whose line is stored.
    /// Otherwise the events that came in, and good are those whose line hash is there.
    pub events: Share,
    /// The events that left and whose line is not stored.
    pub missing: u64,
    /// The events in whose place another line is stored.
    pub changed: u64,
    /// The stored lines that never left.
    pub forged: u64,
    /// The stored lines that are there once more.
    pub duplicate: u64,
    /// The events that came in, and of which the log does not say yet what became of them.
    pub pending: u64,
    /// The events whose line hash is gone.
    pub unknown: u64,
    /// The events that are lost, by the log.
    pub lost: u64,
    /// The events that the filter of an output has dropped.
    pub dropped: u64,
    /// The stored lines of events that came in while evidence was off. Without stored lines: these
    /// events.
    pub without_evidence: u64,
    /// The stored lines and stored checkpoints that are newer than the last checkpoint of the log,
    /// and the lines that left after the stored lines were exported.
    pub newer: u64,
}

impl Counts {
    /// Adds the numbers of another log.
    pub(super) fn add(&mut self, of: &Self) {
        self.checkpoints.add(of.checkpoints);
        self.events.add(of.events);
        self.missing += of.missing;
        self.changed += of.changed;
        self.forged += of.forged;
        self.duplicate += of.duplicate;
        self.pending += of.pending;
        self.unknown += of.unknown;
        self.lost = self.lost.saturating_add(of.lost);
        self.dropped += of.dropped;
        self.without_evidence = self.without_evidence.saturating_add(of.without_evidence);
        self.newer += of.newer;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "checkpoints {} valid; events {} found; missing {}, changed {}, forged {}, \
             duplicate {}, pending {}, unknown {}\nlost {}, dropped {}, without evidence {}, newer {}",
            self.checkpoints,
            self.events,
            self.missing,
            self.changed,
            self.forged,
            self.duplicate,
            self.pending,
            self.unknown,
            self.lost,
            self.dropped,
            self.without_evidence,
            self.newer
        )
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The first position that it is about; `None` if it is about none.
    pub position: Option<u64>,
    /// The time that it is about, in milliseconds since 1970; `None` if nobody knows.
    pub at: Option<u64>,
    /// The end of the time that it is about, if it is about more than a moment.
    pub to: Option<u64>,
    /// The text that says it.
    pub text: String,
    /// The question that an auditor asks next.
    pub question: &'static str,
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
        write!(f, ": {}. Ask: {}", self.text, self.question)
    }
}

/// Returns a time in milliseconds since 1970 as text.
pub(super) fn time(at: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_millis(at))
}

/// The faults that were found.
#[derive(Debug, Default)]
pub struct Faults {
    kept: Vec<Fault>,
    count: u64,
}

impl Faults {
    /// Adds a fault without a position.
    pub(super) fn add(&mut self, at: Option<u64>, question: &'static str, text: impl fmt::Display) {
        self.push(Fault { position: None, at, to: None, text: text.to_string(), question });
    }

    /// Adds a fault at a position.
    pub(super) fn add_at(
        &mut self,
        position: u64,
        at: Option<u64>,
        question: &'static str,
        text: impl fmt::Display,
    ) {
        self.push(Fault {
            position: Some(position),
            at,
            to: None,
            text: text.to_string(),
            question,
        });
    }

    pub(super) fn push(&mut self, fault: Fault) {
        self.count += 1;
        if self.kept.len() < FAULTS_MAX {
            self.kept.push(fault);
        }
    }

    /// Takes the faults of another value, with a change to the text of each.
    pub(super) fn append(&mut self, other: Self, change: impl Fn(&mut String)) {
        let kept = other.kept.len() as u64;
        for mut fault in other.kept {
            change(&mut fault.text);
            self.push(fault);
        }
        self.count += other.count - kept;
    }

    /// Adds the time at which the event of a fault came in, where the fault has no time.
    pub(super) fn add_times(&mut self, time_of: impl Fn(u64) -> Option<u64>) {
        for fault in self.kept.iter_mut().filter(|fault| fault.at.is_none()) {
            fault.at = fault.position.and_then(&time_of);
        }
    }

    /// Keeps only some of the faults.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Fault) -> bool) {
        let before = self.kept.len();
        self.kept.retain(is_kept);
        self.count -= (before - self.kept.len()) as u64;
    }

    /// Returns the faults, at most 1,000.
    #[must_use]
    pub fn kept(&self) -> &[Fault] {
        &self.kept
    }

    /// Returns the number of all faults.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Report {
    /// The numbers.
    pub counts: Counts,
    /// For each output the fates of its events.
    pub outputs: Vec<String>,
    /// The starts, stops and reloads that changed something, and the times without a relay.
    pub runs: Vec<String>,
    /// The faults.
    pub faults: Faults,
    /// Things that could not be checked, each with the reason.
    pub unchecked: Vec<String>,
    /// Facts that are not faults, and that an auditor wants to know.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns the exit status: 0 if nothing is wrong, 1 if something is, 2 if not all of it could
    /// be checked.
    #[must_use]
    pub fn status(&self) -> u8 {
        match (self.faults.count, self.unchecked.is_empty() && self.counts.newer == 0) {
            (0, true) => 0,
            (0, false) => 2,
            (_, _) => 1,
        }
    }

    /// Adds the report about a log. `origin` names the log if there are several.
    pub(super) fn append(&mut self, of: Self, origin: Option<&str>) {
        let named = |mut text: String| {
            name(&mut text, origin);
            text
        };
        self.counts.add(&of.counts);
        self.outputs.extend(of.outputs.into_iter().map(named));
        self.runs.extend(of.runs.into_iter().map(named));
        self.faults.append(of.faults, |text| name(text, origin));
        self.unchecked.extend(of.unchecked.into_iter().map(named));
        self.notes.extend(of.notes.into_iter().map(named));
    }
}

/// Puts the name of a log before a text.
fn name(text: &mut String, origin: Option<&str>) {
    if let Some(origin) = origin {
        text.insert_str(0, &format!("{origin}: "));
    }
}
