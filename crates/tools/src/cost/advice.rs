//! Finds the fewest rules that reach an aim, and writes them as an audit policy.
//!
//! A rule of an advice does one of these:
//!
//! - it drops reads of one user (the kubelets count as one), of resources or of paths, or writes of
//!   one component of the cluster. It lists these resources or paths by name, and only those of
//!   which no such request in the input is above the [floor];
//! - it lowers all reads to Metadata, or everything.
//!
//! Two rules that drop never match the same event, so taking the largest ones first gives the
//! fewest. Each of the three lowerings (nothing, reads, everything) is tried with as many of these
//! rules as it needs.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::json;

use super::survey::{Cause, Cell, NODES, Survey};
use super::{Sum, floor};
use base::words::{bytes, counted_in_groups};
use transform::policy::{Level, Policy};

/// The maximum number of rules that drop events. Nobody would read more of them.
const DROPPING_MAX: usize = 200;

/// Rules that reduce events, and their savings for the events of the survey.
#[derive(Debug)]
pub struct Advice {
    /// The dropped events, and the bytes that all rules save together.
    pub saves: Sum,
    /// `true`: the aim is reached.
    pub is_reached: bool,
    /// The number of rules that drop or lower events, without the one that is always there.
    pub rules: usize,
    /// The text of the policy: YAML with comments, as kube-apiserver takes it.
    pub page: String,
}

/// The cells of one user that one rule can drop.
type Unit<'s> = Vec<(&'s Cause, &'s Cell)>;

struct Plan<'s> {
    /// The requests that are lowered to Metadata: 0 for none, 1 for reads, 2 for all. Requests for
    /// [`floor::SECRET_KINDS`] are always lowered.
    lowering: usize,
    units: Vec<Unit<'s>>,
    saved: u64,
}

impl Advice {
    /// Returns the fewest rules that save `aim` percent of the bytes, or the rules that come
    /// nearest if the aim can't be reached.
    pub fn new(survey: &Survey, aim: f64) -> Self {
        let wanted = base::words::whole((survey.total.bytes as f64 * aim / 100.0).ceil());
        let units = units(survey);
        // Among plans with equally few rules, the first one wins: lowering reads hides no request,
        // and an investigation needs the bodies of changes most.
        let plans = [1, 0, 2].map(|lowering| Plan::new(survey, &units, lowering, wanted));
        let rank = |plan: &Plan<'_>| (wanted.saturating_sub(plan.saved), plan.rules());
        let plan = plans.into_iter().min_by_key(rank).expect("there are three plans");
        let events = plan.units.iter().flatten().map(|(_, cell)| cell.events).sum();
        let (is_reached, rules) = (plan.saved >= wanted, plan.rules());
        let all = counted_in_groups(survey.total.events, "event", "events");
        let saves = Sum { events, bytes: plan.saved };
        let (saved, is) = (survey.part(plan.saved), if is_reached { "is" } else { "is NOT" });
        let head = format!(
            "# Rules: {rules}. Saved: {saved} of {all}. The aim of {aim} % {is} reached.\n"
        );
        Self { saves, is_reached, rules, page: head + HEAD + &plan.rules_as_text(survey) }
    }
}

/// Returns the cells that may be dropped, grouped by user and verbs, and by resources or paths,
/// because a rule has only one of the two. A cell whose rule would be refused or doubtful is left
/// out.
fn units(survey: &Survey) -> Vec<Unit<'_>> {
    let mut units: BTreeMap<(&str, &[&str], bool), Unit<'_>> = BTreeMap::new();
    let is_trusted = |cause: &Cause| {
        survey.is_openshift || is_read(cause) || !floor::needs_openshift(&cause.who)
    };
    let cells = survey.cells.iter().filter(|(cause, cell)| !cell.is_kept && is_trusted(cause));
    for cell @ (cause, _) in cells {
        let policy = Policy::read(&format!("{HEAD}{}", dropping(&[cell])));
        if policy.is_ok_and(|policy| policy.doubts().is_empty()) {
            units.entry((&cause.who, cause.verbs, cause.group.is_none())).or_default().push(cell);
        }
    }
    units.into_values().collect()
}

fn is_read(cause: &Cause) -> bool {
    *cause.verbs == floor::READS
}

/// Returns the rule that drops a unit. Values are written as JSON, which is also YAML.
fn dropping(unit: &[(&Cause, &Cell)]) -> String {
    let (mut who, mut verbs, mut kinds) = ("", &[][..], BTreeMap::<_, Vec<&str>>::new());
    for (cause, _) in unit {
        (who, verbs) = (&cause.who, cause.verbs);
        kinds.entry(&cause.group).or_default().push(&cause.what);
    }
    let field = if who == NODES { "userGroups" } else { "users" };
    let what = match kinds.remove(&&None) {
        Some(paths) => format!("nonResourceURLs: {}", json!(paths)),
        None => {
            let kinds = kinds.iter().map(|(group, of)| json!({ "group": group, "resources": of }));
            format!("resources: {}", json!(kinds.collect::<Vec<_>>()))
        }
    };
    let (who, verbs) = (json!([who]), json!(verbs));
    format!("- level: None\n  {field}: {who}\n  verbs: {verbs}\n  {what}\n")
}

/// Returns the bytes that dropping these cells saves in addition to the lowering.
fn beyond(lowering: usize, unit: &[(&Cause, &Cell)]) -> u64 {
    let is_lowered = |cause: &Cause| lowering > usize::from(!is_read(cause));
    unit.iter().map(|(cause, cell)| cell.bytes[usize::from(is_lowered(cause))]).sum()
}

impl Survey {
    fn part(&self, saved: u64) -> String {
        let share = Sum { events: 0, bytes: saved }.share_of(self.total);
        format!("{share} ({})", bytes(saved as f64))
    }
}

impl<'s> Plan<'s> {
    /// Makes the plan with this lowering that has the fewest rules, without cells that it does not
    /// need.
    fn new(survey: &Survey, units: &[Unit<'s>], lowering: usize, wanted: u64) -> Self {
        let mut saved = survey.bodies.iter().take(1 + lowering).sum();
        let mut units = units.to_vec();
        units.sort_by_key(|unit| Reverse(beyond(lowering, unit)));
        units.truncate(DROPPING_MAX);
        units.retain(|unit| {
            let is_needed = saved < wanted && beyond(lowering, unit) > 0;
            saved += if is_needed { beyond(lowering, unit) } else { 0 };
            is_needed
        });
        for unit in &mut units {
            unit.sort_by_key(|cell| Reverse(beyond(lowering, &[*cell])));
            while let [_, .., last] = unit[..]
                && saved - beyond(lowering, &[last]) >= wanted
            {
                saved -= beyond(lowering, &[last]);
                unit.pop();
            }
        }
        Self { lowering, units, saved }
    }

    fn rules(&self) -> usize {
        self.units.len() + usize::from(self.lowering > 0)
    }

    /// Returns the rules of the policy, each with a comment. The texts of causes are plain
    /// characters, which can't end a comment.
    fn rules_as_text(&self, survey: &Survey) -> String {
        let ([secret, reads, rest], part) = (survey.bodies, |saved| survey.part(saved));
        let top = survey.top.max(Some(Level::Metadata)).unwrap_or(Level::Metadata);
        let mut text = String::new();
        if self.lowering < 2 && top != Level::Metadata {
            let (saved, kinds) = (part(secret), json!(*floor::SECRET_KINDS));
            text += &format!("# Always there: the bodies of these show secrets. Saves {saved}.\n");
            text += &format!("- level: Metadata\n  resources: {kinds}\n");
        }
        for unit in &self.units {
            let events = unit.iter().map(|(_, cell)| cell.events).sum();
            let events = counted_in_groups(events, "event", "events");
            let saved = part(beyond(self.lowering, unit));
            let Some((cause, _)) = unit.first() else { continue };
            let (who, verbs) = (&cause.who, cause.verbs.join(" and "));
            let (what, whom) = match is_read(cause) {
                true => ("reads", String::new()),
                false => (&*verbs, format!("# Concerns {}.\n", floor::concerned(who))),
            };
            text += &format!(
                "# Saves {saved}: {events}. No longer seen: {what} of these by {who}.\n\
                 {whom}{}",
                dropping(unit)
            );
        }
        let all = part(secret + reads + rest);
        let (reads, verbs) = (part(reads), json!(floor::READS));
        text + &match self.lowering {
            0 => format!("# Everything else.\n- level: {top}\n"),
            1 => format!(
                "# Saves {reads}. No longer seen: the bodies of reads.\n\
                 - level: Metadata\n  verbs: {verbs}\n# Everything else.\n- level: {top}\n"
            ),
            _ => format!(
                "# Everything else. Saves {all}. No longer seen: all bodies.\n- level: Metadata\n"
            ),
        }
    }
}

const HEAD: &str = "\
# As filter.policy of the relay, it does what it says. For kube-apiserver, compare it with your
# policy first: what that dropped, this one records, up to the level of the last rule.
# A policy knows neither the response nor who is impersonated. What is dropped had no 401, no 403
# and no impersonation in the input; if there is one later, it is not seen.
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
";
