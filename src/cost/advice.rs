//! Finds the fewest rules that reach an aim, and writes them as an audit policy.
//!
//! A rule of an advice is one of these:
//!
//! - it drops reads of one user (the kubelets count as one), of kinds of objects or of paths. It
//!   names all of them, and only those of which no read is above the [floor];
//! - it lowers all reads to Metadata, or everything.
//!
//! Two rules that drop never match the same event, so the largest ones are the fewest. Each of the
//! three lowerings (nothing, reads, everything) is tried with as many of them as it needs.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use super::Sum;
use super::floor;
use super::survey::Cause;
use super::survey::Cell;
use super::survey::NODES;
use super::survey::Survey;
use crate::policy::Criteria;
use crate::policy::GroupResources;
use crate::policy::Level;
use crate::policy::Names;
use crate::words::bytes;
use crate::words::grouped;

/// The greatest number of rules that drop events. Nobody would read more of them.
const DROPPING_MAX: usize = 200;

/// Rules that make events fewer, and what they save of the events that were surveyed.
#[derive(Debug)]
pub struct Advice {
    /// The events that are dropped, and the bytes that all rules save together.
    pub saves: Sum,
    /// `true`: the aim is reached.
    pub is_reached: bool,
    /// The number of rules that save something.
    pub rules: usize,
    /// The text of the policy: YAML with comments, as kube-apiserver takes it.
    pub page: String,
}

/// The events that a plan lowers to the level Metadata, each with those before it. Their order is
/// that of [`Survey::bodies`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lowering {
    /// Nothing but what must never have a body.
    Nothing = 0,
    Reads = 1,
    Everything = 2,
}

/// The cells of one user that one rule can drop.
type Unit<'s> = Vec<(&'s Cause, &'s Cell)>;

/// A set of rules.
struct Plan<'s> {
    lowering: Lowering,
    /// The bytes that the lowering saves by itself.
    lowered: u64,
    units: Vec<Unit<'s>>,
    saved: u64,
}

impl Advice {
    /// Returns the fewest rules that save `aim` percent of the bytes; if the aim cannot be reached,
    /// the rules that come nearest to it.
    pub fn new(survey: &Survey, aim: f64) -> Self {
        let wanted = crate::words::whole((survey.total.bytes as f64 * aim / 100.0).ceil());
        let units = units(survey);
        // The first of plans with as many rules is the best one: to lower reads hides no request,
        // and the bodies of changes are what an investigation needs most.
        let plans = [Lowering::Reads, Lowering::Nothing, Lowering::Everything]
            .map(|lowering| Plan::new(survey, &units, lowering, wanted));
        let rank = |plan: &Plan<'_>| (wanted.saturating_sub(plan.saved), plan.rules());
        let [first, others @ ..] = plans;
        let better = |best, plan| if rank(&plan) < rank(&best) { plan } else { best };
        let plan = others.into_iter().fold(first, better);
        let cells = plan.units.iter().flatten();
        Self {
            saves: Sum {
                events: cells.map(|(_, cell)| cell.whole.events).sum(),
                bytes: plan.saved,
            },
            is_reached: plan.saved >= wanted,
            rules: plan.rules(),
            page: plan.page(survey, aim, wanted),
        }
    }
}

/// Returns the cells that may be dropped, by user, and apart for kinds and paths, because a rule is
/// about one or the other.
fn units(survey: &Survey) -> Vec<Unit<'_>> {
    let mut units: BTreeMap<(&str, bool), Unit<'_>> = BTreeMap::new();
    for (cause, cell) in &survey.cells {
        let unit = [(cause, cell)];
        let (criteria, names) = (criteria(&unit), Names::POLICY);
        let is_valid = criteria.mistakes(&names).is_empty() && criteria.doubts(&names).is_empty();
        if is_valid && !cell.is_kept && !survey.nodes.contains(&cause.who) {
            units.entry((&cause.who, cause.group.is_none())).or_default().extend(unit);
        }
    }
    units.into_values().collect()
}

/// Returns what a rule names that drops a unit.
fn criteria(unit: &[(&Cause, &Cell)]) -> Criteria {
    let mut criteria = Criteria::default();
    let Criteria { resources, non_resource_urls, .. } = &mut criteria;
    for (Cause { group, what, .. }, _) in unit {
        let Some(group) = group.clone() else {
            non_resource_urls.push(what.clone());
            continue;
        };
        match resources.iter_mut().find(|of| of.group == group) {
            Some(of) => of.resources.push(what.clone()),
            None => resources.push(GroupResources {
                group,
                resources: vec![what.clone()],
                ..GroupResources::default()
            }),
        }
    }
    criteria
}

impl Lowering {
    /// Returns the bytes that dropping these cells saves beyond the lowering.
    fn beyond(self, unit: &[(&Cause, &Cell)]) -> u64 {
        let bytes = |cell: &Cell| match self {
            Self::Nothing => cell.whole.bytes,
            Self::Reads | Self::Everything => cell.lowered,
        };
        unit.iter().map(|(_, cell)| bytes(cell)).sum()
    }
}

impl<'s> Plan<'s> {
    /// Makes the plan with this lowering that has the fewest rules, and leaves out cells that are
    /// not needed.
    fn new(survey: &Survey, units: &[Unit<'s>], lowering: Lowering, wanted: u64) -> Self {
        let lowered = survey.bodies.iter().take(1 + lowering as usize).sum();
        let (mut units, mut saved) = (units.to_vec(), lowered);
        units.sort_by_key(|unit| Reverse(lowering.beyond(unit)));
        units.truncate(DROPPING_MAX);
        units.retain(|unit| {
            let is_needed = saved < wanted && lowering.beyond(unit) > 0;
            saved += if is_needed { lowering.beyond(unit) } else { 0 };
            is_needed
        });
        for unit in &mut units {
            unit.sort_by_key(|cell| Reverse(lowering.beyond(&[*cell])));
            while let [_, .., last] = unit[..]
                && saved - lowering.beyond(&[last]) >= wanted
            {
                saved -= lowering.beyond(&[last]);
                unit.pop();
            }
        }
        Self { lowering, lowered, units, saved }
    }

    fn rules(&self) -> usize {
        self.units.len() + usize::from(self.lowering != Lowering::Nothing)
    }

    /// Returns the text of the policy. Values are JSON, which is YAML too. Texts of events are
    /// plain, so that they can stand in a comment.
    fn page(&self, survey: &Survey, aim: f64, wanted: u64) -> String {
        let total = survey.total;
        let part = |saved: u64| {
            let percent = Sum { events: 0, bytes: saved }.percent_of(total);
            format!("{percent:.1} % ({})", bytes(saved as f64))
        };
        let (rules, events, saved) = (self.rules(), grouped(total.events), part(self.saved));
        let reached = if self.saved >= wanted { "is" } else { "is NOT" };
        let mut page = format!(
            "# Rules: {rules}. Saved: {saved} of {events} events. The aim of {aim} % {reached} reached.\n{HEAD}"
        );
        let is_lowered = self.lowering == Lowering::Everything;
        let last = if is_lowered { Level::Metadata } else { survey.top };
        if last != Level::Metadata {
            let saved = part(survey.bodies[0]);
            page += &format!("# Always there: the bodies of these show secrets. Saves {saved}.\n");
            page += "- level: Metadata\n";
            page += &format!("  resources: {}\n", listed(&survey.secret));
        }
        let reads = json!(floor::READS);
        for unit in &self.units {
            let events = grouped(unit.iter().map(|(_, cell)| cell.whole.events).sum());
            let saved = part(self.lowering.beyond(unit));
            let who = unit.first().map_or("", |(cause, _)| &cause.who);
            let field = if who == NODES { "userGroups" } else { "users" };
            page += &format!(
                "# Saves {saved}: {events} events. No longer seen: reads of these by {who}.\n"
            );
            page += &format!("- level: None\n  {field}: {}\n  verbs: {reads}\n", json!([who]));
            let Criteria { resources, non_resource_urls, .. } = criteria(unit);
            page += &match non_resource_urls.is_empty() {
                true => format!("  resources: {}\n", listed(&resources)),
                false => format!("  nonResourceURLs: {}\n", json!(non_resource_urls)),
            };
        }
        let lowered = part(self.lowered - if is_lowered { 0 } else { survey.bodies[0] });
        page += &match self.lowering {
            Lowering::Nothing => String::new(),
            Lowering::Everything => format!("# Saves {lowered}. No longer seen: all bodies.\n"),
            Lowering::Reads => format!(
                "# Saves {lowered}. No longer seen: the bodies of reads.\n\
                 - level: Metadata\n  verbs: {reads}\n"
            ),
        };
        page + &format!("# Everything else.\n- level: {last}\n")
    }
}

/// Returns kinds of objects as a rule lists them.
fn listed(kinds: &[GroupResources]) -> Value {
    kinds.iter().map(|of| json!({ "group": of.group, "resources": of.resources })).collect()
}

/// The beginning of each policy.
const HEAD: &str = "\
# As filter.policy of the relay, it does what it says. For kube-apiserver, compare it with your
# policy first: what that dropped, this one records, up to the level of the last rule.
# A policy knows neither the response nor who is impersonated. What is dropped had no 401, no 403
# and no impersonation in the input; if there is one later, it is not seen.
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
";
