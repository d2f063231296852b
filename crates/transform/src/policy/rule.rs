//! The rules of a policy, and their terms: levels, stages, decisions.

use std::fmt;

use super::criteria::Criteria;

/// The maximum number of rules in a policy. The largest policies that providers ship have about
/// fifty.
pub const RULES_MAX: usize = 1024;

/// An audit level: how much of a request its event records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Nothing is recorded, and there is no event.
    None,
    /// The event says who asked, for what, when, and whether the request was allowed.
    Metadata,
    /// The event also has the body that the client sent.
    Request,
    /// The event also has the body of the response.
    RequestResponse,
}

impl Level {
    /// All levels; the one that records least is first.
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Request, Self::RequestResponse];

    /// Returns the name, as policies and events write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }

    /// Returns the level with exactly this name.
    pub fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name().as_bytes() == name)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An audit stage: the moment in a request's life at which an event is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// kube-apiserver has received the request, and has not handled it yet.
    RequestReceived,
    /// The head of the response is sent, but the body is not complete for a long time, as in a
    /// watch.
    ResponseStarted,
    /// The response is complete.
    ResponseComplete,
    /// The handler of the request panicked.
    Panic,
}

impl Stage {
    /// All stages, in the order of a request's life.
    pub const ALL: [Self; 4] =
        [Self::RequestReceived, Self::ResponseStarted, Self::ResponseComplete, Self::Panic];

    /// Returns the name, as policies and events write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }

    /// Returns the stage with exactly this name.
    pub fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name().as_bytes() == name)
    }
}

/// A rule of a policy, as the policy file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The line of the file in which the rule begins, counted from 1.
    pub line: usize,
    /// The level at which the events of matching requests are recorded.
    pub level: Level,
    /// The requests that the rule matches.
    pub criteria: Criteria,
    /// The stages whose events are dropped if this rule decides, in addition to those that the
    /// whole policy omits. They are not dropped if the rule matches only because the namespace or
    /// the name of the object is unknown.
    pub omit_stages: Vec<Stage>,
    /// `Some(true)` if `managedFields` are removed from the events; `None` if the policy's own
    /// `omitManagedFields` holds.
    pub omit_managed_fields: Option<bool>,
}

impl Rule {
    pub(super) fn keeps(&self) -> bool {
        self.level != Level::None
    }
}

/// The result of [`Policy::decide`](super::Policy::decide): how much of one event must be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The index of the rule that decided, counted from 0; `None` if no rule matches.
    pub rule: Option<usize>,
    /// The level at which the event must be recorded. It may be higher than the event's own level,
    /// but data that the event does not have cannot be added.
    pub level: Level,
    /// `true` if the event is dropped, because the policy omits events of its stage.
    pub omit_stage: bool,
    /// `true` if `metadata.managedFields` must be removed from the objects in the bodies.
    pub omit_managed_fields: bool,
}
