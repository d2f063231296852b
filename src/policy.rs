//! Audit policies: which rule an event's request matches, and what that rule asks for.
//!
//! [`Policy::read`] takes a file in the format of kube-apiserver's `--audit-policy-file` and
//! reports every mistake in it with its line and column. [`Policy::decide`] decides as
//! kube-apiserver does: the first rule whose criteria all hold decides; if no rule matches, the
//! level is None. [`Policy::explain`] tells an operator why. [`Matcher`] finds the first match,
//! both for a policy's rules and for any other list of [`Criteria`].
//!
//! Decisions are made on recorded events. A recorded event may contain facts that kube-apiserver
//! did not know when it decided, such as the name that a create request gave to its object;
//! decisions ignore such facts if they can be told apart. The code here only decides: it changes no
//! event.

mod criteria;
mod explain;
mod matcher;
mod read;
#[cfg(test)]
mod tests;
mod users;

pub use criteria::Criteria;
pub use criteria::GroupResources;
pub use criteria::Mistake;
pub use criteria::Names;
pub use criteria::Step;
pub use explain::Explanation;
pub use matcher::Located;
pub use matcher::Matcher;
pub use users::Users;

pub use crate::yaml::Problem;

use std::fmt;

use crate::audit::request::Request;

/// The largest policy file in bytes, 1 MiB; a larger file is refused. A larger ConfigMap would not
/// fit into etcd either.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// The largest number of rules in a policy. The largest policies that providers ship have about
/// fifty.
pub const RULES_MAX: usize = 1024;

/// An audit level: how much of a request its event records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Nothing is recorded, and there is no event.
    None,
    /// The event says who asked, for what, when, and whether the request was allowed.
    Metadata,
    /// The event has everything that it has at the level `Metadata`, and the body that the client
    /// sent.
    Request,
    /// The event has everything that it has at the level `Request`, and the body of the response.
    RequestResponse,
}

impl Level {
    /// All levels, ordered by how much they record: the level that records least is first.
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Request, Self::RequestResponse];

    /// Returns the level's name, as policies and events write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }

    /// Returns the level with exactly this name; `None` if no level has the name.
    #[must_use]
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

    /// Returns the stage's name, as policies and events write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }

    /// Returns the stage with exactly this name; `None` if no stage has the name.
    #[must_use]
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
    /// The stages whose events are dropped if this rule decides, in addition to the stages that the
    /// whole policy omits.
    pub omit_stages: Vec<Stage>,
    /// `Some(true)`: `managedFields` are left out of the events of matching requests. `None`: the
    /// rule does not have this field, and the policy's own `omitManagedFields` holds.
    pub omit_managed_fields: Option<bool>,
}

impl Rule {
    /// Returns `true` if the rule keeps the events that it matches: its level is not `None`.
    fn keeps(&self) -> bool {
        self.level != Level::None
    }
}

/// The result of [`Policy::decide`]: how much of one event must be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The index of the rule that decided, counted from 0; `None` if no rule matches.
    pub rule: Option<usize>,
    /// The level at which the event must be recorded. The level may be higher than the event's own
    /// level, but data that the event does not have cannot be added.
    pub level: Level,
    /// `true`: the event is dropped, because the policy omits events of its stage.
    pub omit_stage: bool,
    /// `true`: `metadata.managedFields` must be removed from the objects in the bodies of the
    /// event.
    pub omit_managed_fields: bool,
}

/// A policy that is ready to decide. It never changes, so that any number of threads can share it.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    matcher: Matcher,
    /// For each rule, the result if the rule decides.
    outcomes: Vec<Outcome>,
    /// The result if no rule matches.
    otherwise: Outcome,
    /// The values in the rules that match no request; empty if the policy was not read from a text.
    doubts: Vec<Problem>,
}

/// The result for an event that one rule decides about: the rule's own settings, completed by the
/// settings of the whole policy.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    level: Level,
    omit_stages: Stages,
    omit_managed_fields: bool,
}

/// A set of audit stages, with one bit for each stage.
#[derive(Debug, Clone, Copy)]
struct Stages(u8);

impl Stages {
    fn of<'a>(stages: impl IntoIterator<Item = &'a Stage>) -> Self {
        Self(stages.into_iter().fold(0, |bits, stage| bits | Self::bit(*stage)))
    }

    fn bit(stage: Stage) -> u8 {
        match stage {
            Stage::RequestReceived => 1,
            Stage::ResponseStarted => 2,
            Stage::ResponseComplete => 4,
            Stage::Panic => 8,
        }
    }

    fn has(self, stage: &[u8]) -> bool {
        self.0 != 0 && Stage::of(stage).is_some_and(|stage| self.0 & Self::bit(stage) != 0)
    }
}

impl Policy {
    /// Returns the rules as a text, which differs from that of every policy that decides otherwise.
    #[must_use]
    pub fn rules_as_text(&self) -> String {
        format!("{:?}", (&self.rules, &self.outcomes, self.otherwise))
    }

    /// Reads a policy from its text in YAML or JSON.
    ///
    /// # Errors
    ///
    /// All mistakes in the text, in the order of their lines.
    pub fn read(text: &str) -> Result<Self, Vec<Problem>> {
        read::read(text)
    }

    /// Makes a policy from these rules. `omit_stages` and `omit_managed_fields` hold for every
    /// rule, but a rule's own `omit_managed_fields` has priority. Rules after the first
    /// [`RULES_MAX`] are dropped.
    #[must_use]
    pub fn new(omit_stages: &[Stage], omit_managed_fields: bool, mut rules: Vec<Rule>) -> Self {
        rules.truncate(RULES_MAX);
        let outcome = |rule: &Rule| Outcome {
            level: rule.level,
            omit_stages: Stages::of(omit_stages.iter().chain(&rule.omit_stages)),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(omit_managed_fields),
        };
        Self {
            matcher: Matcher::of_rules(rules.iter().map(|rule| (&rule.criteria, rule.keeps()))),
            outcomes: rules.iter().map(outcome).collect(),
            otherwise: Outcome {
                level: Level::None,
                omit_stages: Stages::of(omit_stages),
                omit_managed_fields,
            },
            rules,
            doubts: Vec::new(),
        }
    }

    /// Returns the values in the policy's text that are allowed, and that match no request of a
    /// Kubernetes client.
    #[must_use]
    pub fn doubts(&self) -> &[Problem] {
        &self.doubts
    }

    /// Decides how much of an event must be recorded; `request` is the request that the event
    /// describes. The first rule that matches the request decides.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        self.decide_of(&Located::new(request), &mut Users::default())
    }

    /// Does what [`Self::decide`] does, and remembers in `users` what the rules say of the
    /// request's user. With the same memory, the next request of this user is decided faster. If
    /// several policies are asked about the same `located` request, its URL is read once for all of
    /// them.
    #[must_use]
    pub fn decide_of(&self, located: &Located<'_>, users: &mut Users) -> Decision {
        self.decision(self.matcher.first(located, users), located.request())
    }

    /// Explains, rule by rule, why [`Self::decide`] decides as it does for this request.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        Explanation::new(self, request)
    }

    /// Returns the rules of the policy, in the order of the file.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn decision(&self, rule: Option<usize>, request: &Request<'_>) -> Decision {
        let outcome = rule.and_then(|rule| self.outcomes.get(rule)).unwrap_or(&self.otherwise);
        Decision {
            rule,
            level: outcome.level,
            omit_stage: outcome.omit_stages.has(&request.stage),
            omit_managed_fields: outcome.omit_managed_fields,
        }
    }
}
