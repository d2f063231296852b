//! The troubles of the seeds in [`DEMANDS`]: each asks the relay for one promise that needs a world
//! of its own. The operator directs them, as those of `staged.rs`.

use std::ops::Range;

use super::Plan;
use crate::consumers::Kind;
use crate::truth::Acknowledge;

/// The seeds that have one of these troubles each. Those from the end on may have any trouble.
pub(crate) const DEMANDS: Range<u64> = 7000..10_000;

/// A trouble, and the promise that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Many events are set aside and due. Each try takes long. Others arrive soon.
    ManyAside,
    /// A consumer without acknowledgements crashes before it has read what its kernel has taken,
    /// again and again, while events arrive steadily. They come again.
    DiesUnread,
    /// Requests wait for their consumer when the relay begins to drain. They are answered.
    WaitsInDrain,
    /// A witness cosigns, and its answers get lost, also at a start. The log goes on, and has no
    /// gap.
    WitnessUnheard,
    /// Events that have waited for long leave slowly. The heartbeats go on meanwhile.
    OldBacklog,
    /// `limits.max_connections` is reached. The right connection gives way.
    FullHouse,
    /// The power fails right after a file of the queue got a new name.
    LostAtRename,
    /// `limits.max_in_flight` is reached. Some bodies are refused, and then all are taken.
    InFlight,
    /// `rate_limit` is reached by a backlog.
    RateLimit,
    /// A policy lowers events, also those that kube-apiserver's own policy has lowered, and token
    /// requests are redacted in the group that they belong to.
    Policies,
}

impl Demand {
    pub(crate) const ALL: [Self; 10] = [
        Self::ManyAside,
        Self::DiesUnread,
        Self::WaitsInDrain,
        Self::WitnessUnheard,
        Self::OldBacklog,
        Self::FullHouse,
        Self::LostAtRename,
        Self::InFlight,
        Self::RateLimit,
        Self::Policies,
    ];

    /// Returns the kinds of consumers that can have the trouble.
    pub(super) fn kinds(self) -> &'static [Kind] {
        match self {
            Self::DiesUnread => &[Kind::Tcp, Kind::Syslog],
            Self::ManyAside | Self::WaitsInDrain => &[Kind::Http],
            Self::LostAtRename | Self::RateLimit | Self::Policies => &[Kind::Http, Kind::Relp],
            Self::WitnessUnheard | Self::OldBacklog | Self::FullHouse | Self::InFlight => {
                &[Kind::Http, Kind::Relp]
            }
        }
    }

    /// Returns `true` if the queue must be on disk, `false` if it must be in memory.
    pub(super) fn on_disk(self) -> Option<bool> {
        match self {
            Self::ManyAside | Self::WaitsInDrain => Some(false),
            Self::WitnessUnheard | Self::OldBacklog | Self::LostAtRename | Self::InFlight => {
                Some(true)
            }
            Self::DiesUnread | Self::FullHouse | Self::RateLimit | Self::Policies => None,
        }
    }

    /// Returns for how many times the usual time the trouble can last.
    pub(super) fn lasts(self) -> u32 {
        let is_long = matches!(self, Self::ManyAside | Self::WaitsInDrain | Self::WitnessUnheard);
        if is_long { 2 } else { 1 }
    }

    /// Changes the config for the trouble.
    pub(super) fn set_up(self, plan: &mut Plan) {
        let start = &mut plan.start;
        (start.queue, start.when_full) = (65536, "reject");
        match self {
            // The store fails on some events for the whole trouble.
            Self::ManyAside => start.own = vec![("rejected.after_server_errors", "\"60m\"")],
            Self::WaitsInDrain => {
                (start.acknowledge, start.drain) = (Acknowledge::Delivered, 20);
                start.own = vec![("timeouts.request", "\"20s\"")];
            }
            Self::WitnessUnheard => {
                (start.has_evidence, start.has_witness, start.heartbeat) = (true, true, 10);
            }
            Self::OldBacklog => {
                (start.has_evidence, start.heartbeat, start.batch_events) = (true, 10, Some(5));
            }
            // Files are reused soon.
            Self::LostAtRename => (start.queue, start.segment) = (512, 16),
            Self::RateLimit => start.batch_events = Some(5),
            Self::DiesUnread | Self::FullHouse | Self::InFlight | Self::Policies => {}
        }
    }
}
