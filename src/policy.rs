//! Audit policies: which rule an event's request falls under, and what that rule asks for.
//!
//! [`Policy::read`] takes a file of the kind that `--audit-policy-file` of kube-apiserver takes and names every mistake
//! where it stands. [`Policy::decide`] answers as kube-apiserver does: the first rule whose criteria all hold decides, no
//! rule is level None. [`Policy::explain`] says why. What [`Matcher`] does for the rules of a policy it does for any list
//! of [`Criteria`].
//!
//! Decisions are made on recorded events. What kube-apiserver learned after it had decided is left out of account where
//! that can be told (the name of what a create request made); nothing is changed here, only decided.

mod criteria;
mod explain;
mod matcher;
mod read;
#[cfg(test)]
mod tests;
mod yaml;

pub use criteria::Criteria;
pub use criteria::GroupResources;
pub use criteria::Mistake;
pub use criteria::Names;
pub use criteria::Step;
pub use explain::Explanation;
pub use matcher::Matcher;

use std::fmt;

use crate::audit::request::Request;

/// A file of more bytes is not read: etcd would not hold it either, were it a ConfigMap.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Rules of a policy. The largest that providers ship have about fifty.
pub const RULES_MAX: usize = 1024;

/// How much of a request an event records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Nothing: there is no event.
    None,
    /// Who, what, when and whether it was allowed.
    Metadata,
    /// The same, and what the client sent.
    Request,
    /// The same, and what it got.
    RequestResponse,
}

impl Level {
    /// From the least to the most.
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Request, Self::RequestResponse];

    /// As policies and events have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }

    /// The level of this name, exactly.
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

/// When in a request's life an event is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Before it is handled.
    RequestReceived,
    /// The head of an answer is sent whose body takes long.
    ResponseStarted,
    /// Nothing more is sent.
    ResponseComplete,
    /// There was a panic.
    Panic,
}

impl Stage {
    /// In the order of a request's life.
    pub const ALL: [Self; 4] =
        [Self::RequestReceived, Self::ResponseStarted, Self::ResponseComplete, Self::Panic];

    /// As policies and events have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }

    /// The stage of this name, exactly.
    #[must_use]
    pub fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name().as_bytes() == name)
    }
}

/// A rule as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Of its file.
    pub line: usize,
    /// How much the events of its requests record.
    pub level: Level,
    /// Which requests.
    pub criteria: Criteria,
    /// Besides those that the policy omits.
    pub omit_stages: Vec<Stage>,
    /// `None`: as the policy says.
    pub omit_managed_fields: Option<bool>,
}

impl Rule {
    /// Whether events of what it matches leave, at whichever level.
    fn keeps(&self) -> bool {
        self.level != Level::None
    }
}

/// A mistake in a policy file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong and what is allowed.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

/// What a policy asks for of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The index of the rule that decided; `None`: none matches.
    pub rule: Option<usize>,
    /// What is to be recorded. It may be more than the event has.
    pub level: Level,
    /// There is no event of this stage.
    pub omit_stage: bool,
    /// The bodies are without `managedFields`.
    pub omit_managed_fields: bool,
}

/// A policy, ready to decide. Shared by all who ask; nothing in it changes.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    matcher: Matcher,
    outcomes: Vec<Outcome>,
    otherwise: Outcome,
}

/// What a rule and its policy say together.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    level: Level,
    omit_stages: Stages,
    omit_managed_fields: bool,
}

/// A set of stages, a bit for each.
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
    /// Reads a policy in YAML or JSON.
    ///
    /// # Errors
    ///
    /// Every mistake that the text has, in its order.
    pub fn read(text: &str) -> Result<Self, Vec<Problem>> {
        read::read(text)
    }

    /// A policy of these rules, of which only the first [`RULES_MAX`] count.
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
        }
    }

    /// What this policy asks for of the event of this request.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        self.decision(self.matcher.first(request), request)
    }

    /// Why [`Self::decide`] decides as it does.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        Explanation::new(self, request)
    }

    /// As they are written.
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
