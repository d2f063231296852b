//! Says what an audit policy does to recorded events, and which rules would reduce them.
//!
//! [`Cost`] counts, for each rule of a policy, the events and bytes before and after. [`Policy`]
//! decides about events and [`redact`] reduces them, as in the relay's own `filter.policy`, so the
//! bytes are those that a relay would send. [`Survey`] gathers what an [`Advice`] is made from;
//! nothing is ever applied.
//!
//! A recorded event has only what the policy of its cluster has recorded. Events and bodies that
//! this policy has dropped can't be counted: [`Row::recorded_below`] says for how many events a
//! rule asks for more than was recorded.
//!
//! Memory is bounded by the number of rules, and by the cells of a survey.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `self` `floor` | what a policy makes of events · which events no advice drops |
//! | 2 | `survey` | who reads what, and how many bytes it takes |
//! | 3 | `advice` | the fewest rules that reach an aim, as a policy |

use serde::Serialize;
use serde_json::{Value, json};

use audit::request::{Reader, Request};
use audit::scan;
use delivery::filter;
use transform::policy::{Decision, Level, Located, Policy, Users};
use transform::redact;
use transform::redact::Change;

mod advice;
mod floor;
mod survey;
#[cfg(test)]
mod tests;

pub use advice::Advice;
pub use survey::Survey;

/// A number of events, and their bytes as JSON without line breaks, as the webhook sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sum {
    /// The number of events.
    pub events: u64,
    /// The number of bytes.
    pub bytes: u64,
}

impl Sum {
    fn count(&mut self, bytes: usize) {
        self.events += 1;
        self.bytes += bytes as u64;
    }

    fn of(sums: impl Iterator<Item = Self>) -> Self {
        sums.fold(Self::default(), |sum, it| Self {
            events: sum.events + it.events,
            bytes: sum.bytes + it.bytes,
        })
    }

    /// Returns the bytes in percent of the bytes of `whole`; 0 if both are 0.
    pub fn percent_of(self, whole: Self) -> f64 {
        self.bytes as f64 * 100.0 / (whole.bytes.max(1)) as f64
    }

    /// Returns the share of the bytes in those of `whole`: `12.5 %`, and `< 0.1 %` for a small one.
    pub fn share_of(self, whole: Self) -> String {
        match self.percent_of(whole) {
            percent if percent > 0.0 && percent < 0.05 => "< 0.1 %".to_owned(),
            percent => format!("{percent:.1} %"),
        }
    }
}

/// The events about which one rule decided, or those that no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Row {
    /// The line of the rule in the policy. `None` for the events that no rule matches.
    pub line: Option<usize>,
    /// The level that the rule sets.
    pub level: &'static str,
    /// The events as recorded.
    pub before: Sum,
    /// The events that are kept, as a relay would send them.
    pub after: Sum,
    /// The number of kept events that were recorded below the level of the rule. `after` lacks the
    /// bodies that are missing in them.
    pub recorded_below: u64,
}

impl Row {
    /// Returns the row as JSON, with its shares of `total` as fractions of 1.
    pub fn as_json(&self, total: Sum) -> Value {
        let mut json = json!(self);
        json["share"] = json!(self.before.percent_of(total) / 100.0);
        json["share_after"] = json!(self.after.percent_of(total) / 100.0);
        json
    }
}

/// The rules of one policy, each with the events about which it decided.
pub struct Cost {
    policy: Policy,
    users: Users,
    /// The events that begin with `kind` or `apiVersion`, and the bytes of these members.
    pub unsent: Sum,
    /// A row for each rule, in their order, and a last one for the events that no rule matches.
    pub rows: Vec<Row>,
}

impl Cost {
    /// Begins to count for this policy.
    pub fn new(policy: Policy) -> Self {
        let row = |line, level: Level| Row { line, level: level.name(), ..Row::default() };
        let rows = policy.rules().iter().map(|rule| row(Some(rule.line), rule.level));
        let rows = rows.chain([row(None, Level::None)]).collect();
        Self { policy, users: Users::default(), unsent: Sum::default(), rows }
    }

    /// Returns the sum of the events as recorded.
    pub fn before(&self) -> Sum {
        Sum::of(self.rows.iter().map(|row| row.before))
    }

    /// Returns the sum of the kept events, as a relay would send them.
    pub fn after(&self) -> Sum {
        Sum::of(self.rows.iter().map(|row| row.after))
    }

    /// Counts events: JSON lines that [`audit`] has found valid.
    pub fn add(&mut self, lines: &[u8]) {
        each(lines, |event, request| {
            let decision = self.policy.decide_of(&Located::new(request), &mut self.users);
            let Decision { rule, level, omit_stage, omit_managed_fields } = decision;
            let last = self.rows.len() - 1;
            let row = &mut self.rows[rule.unwrap_or(last)];
            row.before.count(sent_bytes(event));
            match event.len() - sent_bytes(event) {
                0 => {}
                unsent => self.unsent.count(unsent),
            }
            if level != Level::None && !omit_stage {
                row.after.count(bytes_after(event, request, level, omit_managed_fields));
                let own = Level::of(&request.level).unwrap_or(Level::RequestResponse);
                row.recorded_below += u64::from(own < level);
            }
        });
    }
}

/// Returns the bytes of an event after the relay's filter has lowered it to a level.
fn bytes_after(
    event: &[u8],
    request: &Request<'_>,
    level: Level,
    omit_managed_fields: bool,
) -> usize {
    let level = filter::lowered(level, request);
    let change = Change { level, omit_managed_fields, ..Change::default() };
    let mut reduced = Vec::new();
    redact::apply(event, request, 0, &change, &mut reduced);
    sent_bytes(if reduced.is_empty() { event } else { &reduced })
}

/// Returns the bytes of an event as kube-apiserver's webhook sends it. In an audit.log, each event
/// begins with `kind` and `apiVersion`, which the webhook's events lack.
fn sent_bytes(event: &[u8]) -> usize {
    let first = scan::members(event).take(2);
    let unsent = first.filter(|member| matches!(member.key, b"kind" | b"apiVersion"));
    // The four bytes are the quotes of the name, a colon and a comma.
    event.len() - unsent.map(|member| member.key.len() + member.value.len() + 4).sum::<usize>()
}

/// Passes each event of JSON lines, which [`audit`] has found valid, to `look`.
fn each(lines: &[u8], mut look: impl FnMut(&[u8], &Request<'_>)) {
    let mut reader = Reader::new(lines);
    while let Some(event) = reader.advance() {
        look(event, reader.request());
    }
}
