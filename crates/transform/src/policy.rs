//! Audit policies: which rule an event's request matches, and what that rule asks for.
//!
//! [`Policy::read`] takes a file in the format of kube-apiserver's `--audit-policy-file` and
//! reports every mistake in it with its line and column. [`Policy::decide`] decides as
//! kube-apiserver does: the first rule whose criteria all hold decides; if no rule matches, the
//! level is None. [`Policy::explain`] tells an operator why. [`Matcher`] finds the first match,
//! both for a policy's rules and for the tables of the config's `match`.
//!
//! Decisions are made on recorded events, which may contain facts that kube-apiserver did not know
//! when it decided, such as the name that a create request gave to its object. Decisions ignore
//! such facts where they can be recognized. The code here only decides, and changes no event.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `criteria` `users` | what a rule may ask for · which rules a user can match |
//! | 2 | `rule` | levels, stages, and the rules of a policy |
//! | 3 | `matcher` `read` `explain` | the first rule that matches · the text of a policy · a decision in words |

mod criteria;
mod explain;
mod matcher;
mod read;
mod rule;
#[cfg(test)]
mod tests;
mod users;

pub use criteria::{Criteria, GroupResources, Match, Mistake, Names, Step};
pub use explain::Explanation;
pub use matcher::{Located, Matcher};
pub use read::FILE_BYTES_MAX;
pub use rule::{Decision, Level, RULES_MAX, Rule, Stage};
pub use users::Users;

pub use base::yaml::Problem;

use audit::request::Request;

/// A policy that is ready to decide. It never changes, so any number of threads can share it.
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

/// The result of one rule: the rule's settings, completed by those of the whole policy.
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
        1 << stage as u8
    }

    fn has(self, stage: &[u8]) -> bool {
        self.0 != 0 && Stage::of(stage).is_some_and(|stage| self.0 & Self::bit(stage) != 0)
    }
}

impl Policy {
    /// Returns the rules as a text. Two policies with the same text decide in the same way.
    pub fn rules_as_text(&self) -> String {
        format!("{:?}", (&self.rules, &self.outcomes, self.otherwise))
    }

    /// Reads a policy from its text in YAML or JSON.
    ///
    /// # Errors
    ///
    /// The mistakes in the text, in the order of their lines.
    pub fn read(text: &str) -> Result<Self, Vec<Problem>> {
        let read::File { omit_stages, omit_managed_fields, rules, doubts } = read::read(text)?;
        Ok(Self { doubts, ..Self::new(&omit_stages, omit_managed_fields, rules) })
    }

    /// Makes a policy from `rules`. `omit_stages` and `omit_managed_fields` hold for every rule,
    /// but a rule's own `omit_managed_fields` has priority. Rules after the first [`RULES_MAX`] are
    /// dropped.
    pub fn new(omit_stages: &[Stage], omit_managed_fields: bool, mut rules: Vec<Rule>) -> Self {
        rules.truncate(RULES_MAX);
        let outcome = |rule: &Rule| Outcome {
            level: rule.level,
            omit_stages: Stages::of(omit_stages.iter().chain(&rule.omit_stages)),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(omit_managed_fields),
        };
        Self {
            matcher: Matcher::of_rules(
                rules.iter().map(|rule| (&rule.criteria, rule.keeps())),
                false,
            ),
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

    /// Returns the values in the policy's text that are allowed but match no request of a
    /// Kubernetes client, and the reasons why kube-apiserver would not load the text.
    pub fn doubts(&self) -> &[Problem] {
        &self.doubts
    }

    /// Decides how much of the event that describes `request` must be recorded.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        self.decide_of(&Located::new(request), &mut Users::default())
    }

    /// Does what [`Self::decide`] does, and remembers in `users` which rules the user can match, so
    /// that the next request of this user is decided faster. Several policies that are asked about
    /// the same `located` request read the URL only once.
    #[must_use]
    pub fn decide_of(&self, located: &Located<'_>, users: &mut Users) -> Decision {
        self.decision(self.matcher.first(located, users), located.request())
    }

    /// Explains, rule by rule, why [`Self::decide`] decides as it does for this request.
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        Explanation::new(&self.rules, request, |rule| self.decision(rule, request))
    }

    /// Returns the rules of the policy, in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn decision(&self, rule: Option<usize>, request: &Request<'_>) -> Decision {
        let outcome = rule.and_then(|rule| self.outcomes.get(rule)).unwrap_or(&self.otherwise);
        let is_omitted = outcome.omit_stages.has(&request.stage);
        Decision {
            rule,
            level: outcome.level,
            omit_stage: is_omitted && self.may_omit(rule, request),
            omit_managed_fields: outcome.omit_managed_fields,
        }
    }

    /// Returns `true` if an event may be dropped because the rule that decides omits its stage:
    /// every rule omits the stage, or the rule also matches if an unknown namespace or object name
    /// meets no criterion. An unknown value therefore never causes an event to be dropped.
    fn may_omit(&self, rule: Option<usize>, request: &Request<'_>) -> bool {
        let rule = rule.and_then(|rule| self.rules.get(rule));
        self.otherwise.omit_stages.has(&request.stage)
            || rule.is_some_and(|rule| rule.criteria.unmet(request, false).is_none())
    }
}
