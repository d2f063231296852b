//! Says what an audit policy makes of recorded events, and which rules would make them fewer.
//!
//! [`Costs`] counts, for each rule of a policy, the events and bytes before and after. Events are
//! decided about by [`Policy`] and reduced by [`redact`], as the relay's own `filter.policy` does
//! it, so the bytes are those that would leave. [`Survey`] gathers what an advice needs, and makes
//! it; nothing is ever applied.
//!
//! A recorded event has no more than its own policy has recorded. Events that were dropped then,
//! and bodies that were left out, cannot be counted: [`Row::below`] says for how many events a rule
//! asks for more than was recorded.
//!
//! Memory is bounded by the number of rules, and by the cells of a survey.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `self` `floor` | what a policy makes of events · which events no advice drops |
//! | 2 | `survey` | who reads what, and how many bytes it takes |
//! | 3 | `advice` | the fewest rules that reach an aim, as a policy |

use std::ops::AddAssign;

use crate::audit::request::Reader;
use crate::audit::request::Request;
use crate::filter;
use crate::policy::Decision;
use crate::policy::Level;
use crate::policy::Located;
use crate::policy::Policy;
use crate::policy::Users;
use crate::redact;
use crate::redact::Change;

mod advice;
mod floor;
mod survey;
#[cfg(test)]
mod tests;

pub use advice::Advice;
pub use survey::Survey;

/// The largest buffer for a reduced event, in bytes, that is kept for the next event.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// A number of events, and of the bytes of their JSON without line breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// The number of events.
    pub events: u64,
    /// The number of bytes.
    pub bytes: u64,
}

impl Sum {
    /// Adds one event of this many bytes.
    fn count(&mut self, bytes: usize) {
        *self += Self { events: 1, bytes: bytes as u64 };
    }

    /// Returns the part of `whole` that these bytes are, in percent; 0 of nothing.
    pub fn percent_of(self, whole: Self) -> f64 {
        self.bytes as f64 * 100.0 / (whole.bytes.max(1)) as f64
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
    }
}

/// The events that one rule decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row {
    /// The events as they were recorded.
    pub before: Sum,
    /// The events that are kept, as they would leave.
    pub after: Sum,
    /// The number of events that are kept and were recorded at a lower level than the rule asks
    /// for. The bodies that are missing in them are not in `after`.
    pub below: u64,
}

/// The rules of one policy, each with the events that it has decided about.
pub struct Cost {
    /// The policy.
    pub policy: Policy,
    users: Users,
    /// A row for each rule, in their order, and the last one for the events that no rule matches.
    pub rows: Vec<Row>,
    buffer: Vec<u8>,
}

impl Cost {
    fn new(policy: Policy) -> Self {
        let rows = vec![Row::default(); policy.rules().len() + 1];
        Self { policy, users: Users::default(), rows, buffer: Vec::new() }
    }

    /// Returns all events that are kept, as they would leave.
    pub fn after(&self) -> Sum {
        let mut sum = Sum::default();
        self.rows.iter().for_each(|row| sum += row.after);
        sum
    }

    fn add(&mut self, event: &[u8], located: &Located<'_>, request: &Request<'_>) {
        let decision = self.policy.decide_of(located, &mut self.users);
        let last = self.rows.len() - 1;
        let row = &mut self.rows[decision.rule.unwrap_or(last)];
        row.before.count(event.len());
        if let Some(bytes) = bytes_after(decision, event, request, &mut self.buffer) {
            row.after.count(bytes);
            let own = Level::of(&request.level).unwrap_or(Level::RequestResponse);
            row.below += u64::from(own < decision.level);
        }
    }
}

/// Returns the number of bytes of an event after the relay's filter has reduced it as a policy asks
/// for; `None` if the event is dropped. `buffer` is room for the reduced event.
fn bytes_after(
    decision: Decision,
    event: &[u8],
    request: &Request<'_>,
    buffer: &mut Vec<u8>,
) -> Option<usize> {
    if decision.level == Level::None || decision.omit_stage {
        return None;
    }
    let change = Change {
        level: filter::lowered(decision.level, request),
        omit_managed_fields: decision.omit_managed_fields,
        ..Change::default()
    };
    buffer.clear();
    buffer.shrink_to(BUFFER_BYTES_KEPT);
    redact::apply(event, request, 0, &change, buffer);
    Some(if buffer.is_empty() { event.len() } else { buffer.len() })
}

/// Counts what policies make of the same events.
pub struct Costs {
    /// All events, as they were recorded.
    pub total: Sum,
    /// The policies, each with its decisions about these events.
    pub policies: Vec<Cost>,
}

impl Costs {
    /// Begins to count for these policies.
    pub fn new(policies: impl IntoIterator<Item = Policy>) -> Self {
        Self { total: Sum::default(), policies: policies.into_iter().map(Cost::new).collect() }
    }

    /// Counts events, which are JSON lines that [`audit`] has found valid.
    pub fn add(&mut self, lines: &[u8]) {
        let mut reader = Reader::new(lines);
        while let Some(event) = reader.advance() {
            let request = reader.request();
            let located = Located::new(request);
            self.total.count(event.len());
            self.policies.iter_mut().for_each(|cost| cost.add(event, &located, request));
        }
    }
}
