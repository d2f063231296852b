//! Explains a policy's decision to people: one line for each rule up to the first that matches,
//! then what the decision means for the event.

use super::rule::{Decision, Level, Rule, Stage};
use audit::request::Request;

/// An explanation of a policy's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The decision that is explained.
    pub decision: Decision,
    /// One line for each rule that was compared, and then lines about the result.
    pub lines: Vec<String>,
}

impl Explanation {
    /// `decide` returns the decision for the index of the rule that matches, or for `None`.
    pub(super) fn new(
        rules: &[Rule],
        request: &Request<'_>,
        decide: impl FnOnce(Option<usize>) -> Decision,
    ) -> Self {
        let mut lines = Vec::new();
        let mut matching = None;
        for (index, rule) in rules.iter().enumerate() {
            let number = index + 1;
            let Rule { line, level, criteria, .. } = rule;
            match criteria.unmet(request, rule.keeps()) {
                Some(unmet) => lines.push(format!("rule {number} (line {line}): {unmet}")),
                None => {
                    lines.push(format!("rule {number} (line {line}) matches: level {level}"));
                    matching = Some(index);
                    break;
                }
            }
        }
        let decision = decide(matching);
        if matching.is_none() {
            lines.push("no rule matches: level None".to_owned());
        }
        lines.push(consequence(decision, request));
        if decision.omit_managed_fields && !decision.omit_stage {
            lines.extend(managed_fields(decision, request));
        }
        Self { decision, lines }
    }
}

/// Returns what the decision means for the event, except for `managedFields`.
fn consequence(decision: Decision, request: &Request<'_>) -> String {
    if decision.level == Level::None {
        return "the event is dropped".to_owned();
    }
    if let (true, Some(stage)) = (decision.omit_stage, Stage::of(&request.stage)) {
        return format!("the event is dropped: the stage {} is omitted", stage.name());
    }
    let Some(own) = Level::of(&request.level) else {
        let level = String::from_utf8_lossy(&request.level);
        return format!("the event is kept; its own level {level:?} is unknown");
    };
    match decision.level {
        wanted if wanted == own => format!("the event is kept, at its own level {own}"),
        wanted if wanted > own => {
            format!("the event is kept, at its own level {own}: what was not recorded stays out")
        }
        wanted => {
            let bodies = match (wanted, own) {
                (Level::Metadata, Level::RequestResponse) => "requestObject and responseObject",
                (Level::Metadata, _) => "requestObject",
                _ => "responseObject",
            };
            format!("the event is lowered from {own} to {wanted}: without {bodies}")
        }
    }
}

/// Returns what happens to `managedFields`, which occur only in bodies; `None` if no body is kept,
/// or if the event's own level is unknown. A patch in `requestObject` is not changed:
/// kube-apiserver records it as the client sent it.
fn managed_fields(decision: Decision, request: &Request<'_>) -> Option<String> {
    const PATCH: &str = "requestObject is a patch, and keeps what was sent";
    let own = Level::of(&request.level)?;
    let is_patch = *request.verb == *b"patch";
    let taken = |bodies: &str| format!("managedFields are taken out of {bodies}");
    match (decision.level.min(own), is_patch) {
        (Level::None | Level::Metadata, _) => None,
        (Level::Request, false) => Some(taken("requestObject")),
        (Level::Request, true) => Some(format!("managedFields stay: {PATCH}")),
        (Level::RequestResponse, false) => Some(taken("requestObject and responseObject")),
        (Level::RequestResponse, true) => Some(format!("{}; {PATCH}", taken("responseObject"))),
    }
}
