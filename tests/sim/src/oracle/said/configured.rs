//! The rule that `/status` and `/metrics` show the config that is in force.

use std::collections::BTreeSet;

use super::{Address, Fault, Said, Shown, World};
use crate::oracle::LEAVES;
use crate::truth::{Acknowledge, Config, Output};

/// `/status` shows the settings as configured (see status-json.md). The rule applies whenever only
/// one config can be in force, including after a reload.
pub(super) fn as_configured(world: &World<'_>, said: &Said) -> Vec<Fault> {
    let Some(status) = &said.status else { return Vec::new() };
    let mut configs = world.truth.configs(said.asked, said.answered);
    let (Some(config), None) = (configs.next(), configs.next()) else { return Vec::new() };
    let mut wrong = Vec::new();
    let mut compare = |what: &str, shown: String, set: String| {
        if shown != set {
            wrong.push(format!("{what} is shown as {shown}, and the config has {set}"));
        }
    };
    let acknowledge = match config.acknowledge {
        Acknowledge::Queued => "queued",
        Acknowledge::Delivered => "delivered",
        Acknowledge::Synced => "synced",
    };
    let (queue, capacity) = (&status.queue, config.queue_bytes.to_string());
    compare("queue.acknowledge", status.acknowledge.clone(), acknowledge.to_owned());
    compare("queue.when_full", queue.when_full.clone(), config.when_full.to_owned());
    compare("queue.max_bytes", queue.capacity_bytes.to_string(), capacity.clone());
    if let Some(bytes) = said.metrics.get("queue_capacity_bytes", &[]) {
        compare("queue_capacity_bytes", bytes.to_string(), capacity);
    }
    for output in &config.outputs {
        let shown = status.outputs.iter().find(|shown| shown.name == output.name);
        let shown = shown.map_or_else(|| "nothing".into(), as_shown);
        compare(&format!("output {}", output.name), shown, as_set(output));
    }
    let may_be_there = |shown: &Shown| {
        let is_its = |config: &Config| config.output(&shown.name).is_some();
        let since = said.asked.saturating_sub(LEAVES);
        shown.name == "out" || world.truth.configs(since, said.answered).any(is_its)
    };
    let others = status.outputs.iter().filter(|shown| !may_be_there(shown));
    wrong.extend(others.map(|shown| format!("output {} is shown, and there is none", shown.name)));
    wrong.into_iter().map(|text| said.fault("reload", &text)).collect()
}

fn as_shown(shown: &Shown) -> String {
    let addresses = shown.addresses.iter().map(numeric);
    told(shown.required, addresses.collect())
}

/// Returns an address as an IP address and a port. In `/status`, a host that is a name is followed
/// by the IP address it resolves to, as in `localhost:1000 (127.0.0.1)` (see status-json.md). Until
/// it is resolved, the name stands alone, and nothing has been sent to the address.
fn numeric(shown: &Address) -> String {
    let Address { address, state, requests, sent_bytes } = shown;
    let is_untried = state == "unknown" && *requests == 0 && *sent_bytes == 0;
    if let Some(port) = address.strip_prefix("localhost:").filter(|_| is_untried)
        && !port.contains(' ')
    {
        return format!("127.0.0.1:{port}");
    }
    let parts = address.strip_suffix(')').and_then(|it| it.split_once(" ("));
    let parts = parts.and_then(|(name, ip)| Some((name.rsplit_once(':')?.1, ip)));
    parts.map_or_else(|| address.clone(), |(port, ip)| format!("{ip}:{port}"))
}

fn as_set(output: &Output) -> String {
    told(output.required, output.addresses.iter().map(ToString::to_string).collect())
}

fn told(is_required: bool, addresses: BTreeSet<String>) -> String {
    let addresses: Vec<_> = addresses.into_iter().collect();
    format!("required = {is_required} with {}", addresses.join(" and "))
}

#[cfg(test)]
#[path = "configured_tests.rs"]
mod tests;
