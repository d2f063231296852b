//! The rule that a 200 for `delivered` is true even if a reload changes the outputs before it.

use std::time::Duration;

use super::{Fault, Seen, World, named};
use crate::truth::{Acknowledge, Config};

/// With `acknowledge = "delivered"`, an acknowledged event survives everything (see guarantees.md).
/// So when the 200 comes, some consumer has the event, even if reloads have removed or renamed
/// outputs. The rule does not apply if an output may give up on the event, gets no
/// acknowledgements, or has a filter that drops the event.
pub(super) fn nowhere(world: &World<'_>) -> Vec<Fault> {
    let view = |name: &str| world.outputs.iter().find(|seen| seen.view.output == name);
    let has_it = |seen: &Seen<'_>, serial, until| {
        seen.letters.contains(serial) || seen.first_at(*serial).is_some_and(|at| at <= until)
    };
    let mut late = Vec::new();
    for (serial, stored) in world.stored.iter().filter(|(_, stored)| stored.acknowledged) {
        let Some(known) = world.truth.events.get(serial) else { continue };
        let is_promised = |config: &Config| {
            config.acknowledge == Acknowledge::Delivered
                && config.outputs.iter().all(|output| {
                    let is_sure =
                        |seen: &Seen<'_>| !seen.view.is_unconfirmed && !seen.may_refuse(known);
                    output.filter.keeps(&known.event.facts)
                        && view(&output.name).is_some_and(is_sure)
                })
        };
        // A filter that a reload has replaced may have dropped the event shortly before.
        let before = stored.from.saturating_sub(Duration::from_secs(60));
        if world.truth.configs(before, stored.until).all(is_promised)
            && !world.outputs.iter().any(|seen| has_it(seen, serial, stored.until))
        {
            late.push((*serial, stored.until));
        }
    }
    if late.is_empty() {
        return Vec::new();
    }
    let text = format!(
        "{} events were answered 200 with delivered, and no consumer had them: {}",
        late.len(),
        named(late)
    );
    vec![Fault { rule: "delivered", output: String::new(), text }]
}
