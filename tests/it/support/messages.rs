//! Messages of the relay's log that tests in more than one file use.

/// The relay has received a signal to end.
pub(crate) const DRAINS: &str =
    "shutting down: the outputs have shutdown.drain_timeout to finish their deliveries";

/// The last line of a relay, with its totals. If events were lost, more words follow.
pub(crate) const ENDED: &str = "the relay has ended";
pub(crate) const ENDED_WITH_LOSSES: &str = "the relay has ended, and has lost accepted events";

pub(crate) const NOT_RELOADED: &str =
    "config not reloaded: the relay continues with the config in use";

pub(crate) const FULL: &str = "queue full: new events are not accepted (senders get 429) until the outputs have delivered others";
pub(crate) const HAS_ROOM: &str = "queue has room again: it is below 80 %";

/// An output has given up events, and there is no directory for dead letters.
pub(crate) const GIVEN_UP: &str = "events given up by an output: they are lost and counted";
/// An output was removed, and its backlog is lost.
pub(crate) const REMOVED: &str =
    "an output was removed before it had delivered all events: they are lost and counted";
/// The relay has ended, and its backlog is lost.
pub(crate) const UNDELIVERED: &str =
    "the relay ended before it had delivered all events: they are lost and counted";

pub(crate) const ADDRESS_DOWN: &str = "address down, the output uses its other addresses";

pub(crate) const EVIDENCE_NOT_WRITTEN: &str = "the evidence can't be written, retrying each \
    second: events are still forwarded, but without evidence until this is fixed";
pub(crate) const EVIDENCE_ROLLED_BACK: &str = "the evidence was restored from an older copy, or \
    another relay uses the same evidence.origin";
