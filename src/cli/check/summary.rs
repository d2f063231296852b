//! The summary of a config for the command `check`: what the file alone does not show, such as
//! defaults and the values of variables, and how much was checked.

use crate::cli::table;
use base::words::escape;
use config::{
    Acknowledge, Checked, Config, Output, Problem, Severity, Target, WhenFull, show_size,
};
use outputs::syslog;
use outputs::syslog::Framing;

/// Returns the lines about a config without errors. `name` is the name of the config for messages.
/// `connects` is `true` if `check` tests the connections afterwards.
pub(super) fn of(checked: &Checked, name: &str, connects: bool) -> String {
    let mut rows = Vec::new();
    match &checked.config {
        Some(config) => parts(config, &mut rows),
        None => {
            rows.push(row("queue", "", "unknown: a setting is in a file that does not exist here"))
        }
    }
    let is_warning =
        |it: &&Problem| matches!(it.severity, Severity::Warning | Severity::MissingFile);
    let warnings = checked.problems.iter().filter(is_warning).count();
    rows.push(row("warnings", warnings, ""));
    if !connects {
        rows.push(row("not tested", "connections", "--connect tests them"));
    }
    let shown =
        rows.into_iter().map(|cells| cells.map(|cell| escape::message(&cell))).collect::<Vec<_>>();
    let table = table(&shown);
    let lines = table.lines().map(|line| format!("  {line}\n"));
    format!("{name}\n{}", lines.collect::<String>())
}

fn row(part: &str, name: impl ToString, what: &str) -> [String; 3] {
    [part.to_owned(), name.to_string(), what.to_owned()]
}

fn parts(config: &Config, rows: &mut Vec<[String; 3]>) {
    rows.push(row("queue", show_size(config.queue.max_bytes), &of_queue(config)));
    for output in &config.outputs {
        rows.push(row("output", &output.name, &of_output(output)));
    }
}

fn of_queue(config: &Config) -> String {
    let queue = &config.queue;
    let place = match &queue.directory {
        Some(directory) => format!("on disk in {}", directory.display()),
        None => "in memory".to_owned(),
    };
    let acknowledged = match queue.acknowledge {
        Acknowledge::Queued => "queued",
        Acknowledge::Delivered => "delivered by every required output",
        Acknowledge::Synced => "synced to disk",
    };
    let full = match queue.when_full {
        WhenFull::Reject => "429",
        WhenFull::DropOldest => "the oldest events are dropped",
        WhenFull::DropNewest => "new events are dropped",
    };
    format!("{place}; 200 once {acknowledged}; when full: {full}")
}

/// Returns the type of an output and its addresses, in which the variables and files of the config
/// are filled in.
fn of_output(output: &Output) -> String {
    let (proxies, addresses): (Vec<_>, Vec<_>) =
        output.kind.targets().into_iter().partition(Target::is_proxy);
    let shown =
        |targets: &[Target]| targets.iter().map(Target::address).collect::<Vec<_>>().join(", ");
    let mut text = format!("{} {}", output.kind.name(), shown(&addresses));
    if !proxies.is_empty() {
        text.push_str(&format!(", through the proxy {}", shown(&proxies)));
    }
    let syslog = output.kind.settings::<syslog::Settings>();
    if syslog.is_some_and(|it| it.framing == Framing::OctetCounting) {
        text.push_str(
            ", each message preceded by its length (syslog-ng: source syslog(), not network())",
        );
    }
    text
}
