//! The plan of the seeds in [`CHOOSY`]: one output, and a consumer that takes only some events
//! (`operator/choosy.rs`). The senders are silent until that is over.

use std::ops::Range;
use std::time::Duration;

use super::{Action, Plan, Timed};
use crate::consumers::{Kind, Way};
use crate::senders;
use crate::truth::{Acknowledge, Filter};

/// The seeds of this kind.
pub(crate) const CHOOSY: Range<u64> = 6000..7000;

/// How long the consumer chooses at most. The senders are silent for this time.
const LONG: Duration = Duration::from_secs(1200);

/// The pattern of the events that the consumer does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// A share of all events: this many of 100, at random.
    Share(u32),
    /// Runs of this length, each followed by as many events that it takes.
    Runs(usize),
    /// Events that are longer than this number of bytes. Their sizes are around it.
    Longer(usize),
}

/// A plan for a consumer that takes only some events: which, and how it turns down the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choosy {
    pub(crate) pattern: Pattern,
    pub(crate) ways: Vec<Way>,
    /// The consumer turns down requests with more events than this.
    pub(crate) most: Option<usize>,
    /// The number of events in each round.
    pub(crate) events: usize,
    pub(crate) rounds: usize,
    /// `true` if the consumer takes nothing at the start of each other round.
    pub(crate) has_outages: bool,
}

pub(super) fn add(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "choosy");
    let kinds = [Kind::Http, Kind::Otlp, Kind::Loki, Kind::Ibm, Kind::Splunk, Kind::Elasticsearch];
    let streams = [Kind::Relp, Kind::Lumberjack, Kind::Syslog, Kind::Tcp];
    let is_stream = seed % 3 == 2;
    let kind = match is_stream {
        true => streams[rng.usize(..streams.len())],
        false => kinds[rng.usize(..kinds.len())],
    };
    let pattern = match rng.u32(..3) {
        0 => Pattern::Share([2, 10, 50][rng.usize(..3)]),
        1 => Pattern::Runs([1, 3, 10, 60][rng.usize(..4)]),
        _ => Pattern::Longer(rng.usize(2000..6000)),
    };
    let others = [Way::Ends, Way::Resets, Way::Half, Way::Silent];
    let mut ways: Vec<_> = (0..rng.usize(1..4)).map(|_| others[rng.usize(..4)]).collect();
    if !is_stream && rng.u32(..3) > 0 {
        let statuses = Way::STATUSES;
        ways = (0..rng.usize(1..5)).map(|_| Way::Status(statuses[rng.usize(..14)])).collect();
        if rng.u32(..4) == 0 {
            ways.push(others[rng.usize(..4)]);
        }
    }
    if matches!(kind, Kind::Tcp | Kind::Syslog) {
        // The relay does not wait for an answer.
        ways = vec![Way::Resets];
    }
    let is_slow = ways.contains(&Way::Silent) || matches!(kind, Kind::Tcp | Kind::Syslog);
    let choosy = Choosy {
        pattern,
        most: (rng.u32(..4) == 0 && !is_stream).then(|| rng.usize(1..20)),
        events: if is_slow { 12 } else { [30, 120, 240][rng.usize(..3)] },
        ways,
        rounds: rng.usize(1..4),
        has_outages: rng.bool(),
    };
    let begin = Duration::from_secs(20);
    plan.consumers[0] = kind;
    for kind in plan.consumers.iter_mut().skip(1).filter(|kind| **kind == Kind::S3) {
        *kind = Kind::Http;
    }
    let start = &mut plan.start;
    start.outputs.retain(|output| output.consumer == 0);
    start.acknowledge = if start.on_disk { Acknowledge::Synced } else { Acknowledge::Queued };
    start.queue = 65536;
    for output in &mut start.outputs {
        (output.required, output.filter) = (true, Filter::default());
    }
    start.own = vec![("timeouts.request", "\"1s\""), ("retry.max_interval", "\"1s\"")];
    if rng.u32(..3) == 0 {
        start.own.push(("rejected.after_server_errors", "\"8s\""));
    }
    plan.actions = vec![Timed { at: begin, action: Action::Choose(choosy) }];
    plan.silent = begin + LONG;
    plan.length = begin + LONG + Duration::from_secs(20);
}
