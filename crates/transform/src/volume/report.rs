//! The JSON of `/status/volume`. `docs/operating/volume.md` has its fields.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The maximum number of bytes in a part of a name. The user agents of kube-controller-manager have
/// 122.
pub(super) const NAME_BYTES_MAX: usize = 128;

/// Separates the parts of a name, which have no line breaks.
pub(super) const PARTS: &str = "\n";

/// The number of names with the most bytes in a list. At most as many names with the most events
/// are listed too; a name may be among both.
const ROWS: usize = 20;

/// The names of the dimensions by which volume is counted. A cause is the user, the verb and the
/// resource together. Only requests for deprecated APIs count in `deprecated`: user, resource,
/// version, and the release that removes it.
pub const DIMENSIONS: [&str; 9] =
    ["cause", "user", "verb", "resource", "namespace", "agent", "level", "deprecated", "code"];

/// The spans of time before now, with their names.
pub const SPANS: [(&str, Duration); 2] =
    [("1h", Duration::from_hours(1)), ("24h", Duration::from_hours(24))];

/// The response of `/status/volume`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// `false` if the config has `volume.enabled = false`; then there are no spans.
    pub enabled: bool,
    /// The figures of each of [`SPANS`].
    #[serde(flatten)]
    pub spans: BTreeMap<String, Figures>,
}

/// The volume that was received during a span of time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Figures {
    /// The time that the figures cover, in seconds.
    pub seconds: f64,
    /// All accepted bytes, exactly.
    pub bytes: u64,
    /// All accepted events, exactly.
    pub events: u64,
    /// The number of events that were read.
    pub read_events: u64,
    /// The heaviest names of each dimension.
    pub by: BTreeMap<String, Counted>,
}

/// The heaviest names of one dimension.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// The names, those with the most bytes first.
    pub rows: Vec<Row>,
    /// The maximum number of bytes of a name outside of the list, according to the events that were
    /// read; an estimate if not all events were read.
    pub unlisted_bytes_estimate: u64,
    /// The maximum number of events of a name outside of the list, estimated in the same way.
    pub unlisted_events_estimate: u64,
}

/// The figures of one name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Row {
    /// The name in parts: three for a cause, four for a deprecated API, otherwise one.
    pub name: Vec<String>,
    /// The estimated bytes.
    pub bytes: u64,
    /// The maximum error of `bytes` in 95 of 100 cases; 0 if they are exact.
    pub bytes_error: u64,
    /// The estimated events.
    pub events: u64,
    /// The maximum error of `events` in 95 of 100 cases; 0 if they are exact.
    pub events_error: u64,
}

impl Report {
    /// Adds the figures of another relay. Sums saturate, so that wrong figures cannot end the
    /// command by an overflow.
    pub fn add(&mut self, other: Self) {
        for (span, other) in other.spans {
            let sum = self.spans.entry(span).or_default();
            sum.seconds = sum.seconds.max(other.seconds);
            sum.bytes = sum.bytes.saturating_add(other.bytes);
            sum.events = sum.events.saturating_add(other.events);
            sum.read_events = sum.read_events.saturating_add(other.read_events);
            for (by, counted) in other.by {
                sum.by.entry(by).or_default().add(&counted);
            }
        }
    }
}

impl Counted {
    /// Makes the list of the heaviest names in `rows`. By the samples, a name that is not in `rows`
    /// has at most `bytes_max` bytes and `events_max` events.
    pub(super) fn new(mut rows: Vec<Row>, [mut bytes_max, mut events_max]: [u64; 2]) -> Self {
        let mut events: Vec<u64> = rows.iter().map(|row| row.events).collect();
        events.sort_unstable_by(|a, b| b.cmp(a));
        let few = events.get(ROWS).copied().unwrap_or(0);
        rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        let mut place = 0..;
        rows.retain(|row| {
            let is_listed = place.next() < Some(ROWS) || row.events > few;
            if !is_listed {
                bytes_max = bytes_max.max(row.bytes.saturating_add(row.bytes_error));
                events_max = events_max.max(row.events.saturating_add(row.events_error));
            }
            is_listed
        });
        Self { rows, unlisted_bytes_estimate: bytes_max, unlisted_events_estimate: events_max }
    }

    /// Adds the figures of another relay. A name that only one of the two lists has may also have
    /// events at the other relay: its error grows by the other list's maximum for unlisted names.
    fn add(&mut self, other: &Self) {
        let both = |name: &[String]| {
            let [one, two] = [&*self, other].map(|counted| counted.row(name));
            Row {
                name: name.to_vec(),
                bytes: one.bytes.saturating_add(two.bytes),
                bytes_error: one.bytes_error.saturating_add(two.bytes_error),
                events: one.events.saturating_add(two.events),
                events_error: one.events_error.saturating_add(two.events_error),
            }
        };
        let names: BTreeSet<_> =
            self.rows.iter().chain(&other.rows).map(|row| &row.name[..]).collect();
        let (rows, unlisted) = (names.into_iter().map(both).collect(), both(&[]));
        *self = Self::new(rows, [unlisted.bytes_error, unlisted.events_error]);
    }

    /// Returns the figures of a name. The figures of an unlisted name are 0, with its maximum as
    /// the error.
    fn row(&self, name: &[String]) -> Row {
        let found = self.rows.iter().find(|row| row.name == name).cloned();
        found.unwrap_or_else(|| Row {
            bytes_error: self.unlisted_bytes_estimate,
            events_error: self.unlisted_events_estimate,
            ..Row::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, figures: [u64; 4]) -> Row {
        let [bytes, bytes_error, events, events_error] = figures;
        Row { name: vec![name.to_owned()], bytes, bytes_error, events, events_error }
    }

    #[test]
    fn a_name_that_one_relay_does_not_list_may_have_its_bound_there() {
        let one = Counted::new(vec![row("a", [90, 1, 9, 0]), row("b", [50, 0, 5, 0])], [7, 2]);
        let mut sum = one.clone();
        sum.add(&Counted::new(vec![row("a", [10, 2, 1, 1]), row("c", [60, 0, 6, 0])], [40, 3]));
        let expected =
            [row("a", [100, 3, 10, 1]), row("c", [60, 7, 6, 2]), row("b", [50, 40, 5, 3])];
        assert_eq!(sum, Counted::new(expected.into(), [47, 5]));
    }

    #[test]
    fn figures_that_no_relay_can_have_do_not_end_the_command() {
        let most = u64::MAX;
        let counted = Counted::new(vec![row("a", [most; 4])], [most; 2]);
        let by = BTreeMap::from([("user".to_owned(), counted)]);
        let figures = Figures { bytes: most, events: most, read_events: most, seconds: 1.0, by };
        let spans = BTreeMap::from([("1h".to_owned(), figures)]);
        let report = Report { enabled: true, spans };
        let mut sum = report.clone();
        sum.add(report);
        assert_eq!(sum.spans["1h"].by["user"].rows[0].bytes, most);
    }
}
