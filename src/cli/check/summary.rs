//! The summary of a config for the command `check`: a line for each part that the config sets up.

use crate::cli::table;
use base::words::escape;
use config::{
    Acknowledge, Admin, Checked, Config, Listener, ListenerTls, Output, Severity, WhenFull,
    show_size,
};
use outputs::syslog;
use outputs::syslog::Framing;

/// The part of the checks that `check` has left out.
pub(super) enum Untried {
    /// Nothing is left out.
    Nothing,
    /// No connection was made.
    Connections,
    /// No connection was made, and the files may be on another machine.
    FilesAndConnections,
}

/// The greatest number of addresses of one output that are printed.
const ADDRESSES_MAX: usize = 8;

/// Returns the lines about a config without errors: its file, and a line for each part. `name` is
/// the name of the config for messages.
pub(super) fn of(checked: &Checked, name: &str, untried: Untried) -> String {
    let mut rows = Vec::new();
    match &checked.config {
        Some(config) => parts(config, &mut rows),
        None => {
            rows.push(row("parts", "", "unknown: a setting is in a file that does not exist here"))
        }
    }
    let is_warning = |severity| match severity {
        Severity::Warning | Severity::MissingFile => true,
        Severity::Error | Severity::Fault => false,
    };
    let warnings = checked.problems.iter().filter(|it| is_warning(it.severity)).count();
    let named = checked.files.len();
    let state = match untried {
        Untried::Nothing | Untried::Connections => "read",
        Untried::FilesAndConnections => "named, may not exist here",
    };
    if named > 0 {
        rows.push(row("files", named, state));
    }
    rows.push(row("warnings", warnings, ""));
    match untried {
        Untried::Nothing => {}
        Untried::Connections | Untried::FilesAndConnections => {
            rows.push(row("not tested", "connections", "--connect tests them"));
        }
    }
    let shown =
        rows.into_iter().map(|cells| cells.map(|cell| escape::message(&cell))).collect::<Vec<_>>();
    let table = table(&shown);
    let lines = table.lines().map(|line| format!("  {}\n", line.trim_end()));
    format!("{name}\n{}", lines.collect::<String>())
}

fn row(part: &str, name: impl ToString, what: &str) -> [String; 3] {
    [part.to_owned(), name.to_string(), what.to_owned()]
}

fn parts(config: &Config, rows: &mut Vec<[String; 3]>) {
    for listener in &config.listeners {
        rows.push(row("listener", listener.address, &of_listener(listener)));
    }
    for source in &config.sources {
        let [kind, topic, group] = source.origin();
        rows.push(row("source", &source.name, &format!("{kind} topic {topic}, group {group}")));
    }
    rows.push(row("queue", show_size(config.queue.max_bytes), &of_queue(config)));
    for output in &config.outputs {
        rows.push(row("output", &output.name, &of_output(output)));
    }
    if let Some(evidence) = &config.evidence {
        let witnesses = match evidence.witnesses.len() {
            0 => "no witness".to_owned(),
            1 => "1 witness".to_owned(),
            count => format!("{count} witnesses"),
        };
        rows.push(row("evidence", &evidence.origin, &witnesses));
    }
    rows.push(row("admin", config.admin.address, &of_admin(&config.admin)));
    if let Some(address) = config.admin.probe_address {
        rows.push(row("admin", address, "plain HTTP, probes only"));
    }
}

fn of_admin(admin: &Admin) -> String {
    let mut text = of_tls(admin.tls.as_ref());
    for (file, pages) in [
        (&admin.bearer_token_file, "bearer token"),
        (&admin.metrics_token_file, "bearer token for metrics"),
        (&admin.tap_token_file, "bearer token for taps"),
    ] {
        let Some(file) = file else { continue };
        text.push_str(&format!(", {pages}"));
        if !file.exists() {
            text.push_str(" (the file does not exist yet)");
        }
    }
    text
}

fn of_tls(tls: Option<&ListenerTls>) -> String {
    let Some(tls) = tls else { return "plain HTTP".to_owned() };
    let optional = if tls.optional { ", opens once its certificate exists" } else { "" };
    match tls.client_ca {
        Some(_) => format!("TLS, client certificate required{optional}"),
        None => format!("TLS{optional}"),
    }
}

fn of_listener(listener: &Listener) -> String {
    let mut text = of_tls(listener.tls.as_ref());
    if listener.bearer_token_file.is_some() {
        text.push_str(", bearer token");
    }
    if listener.path_prefix != "/" {
        text.push_str(&format!(", below {}", listener.path_prefix));
    }
    text
}

fn of_queue(config: &Config) -> String {
    let queue = &config.queue;
    let place = match &queue.directory {
        Some(directory) => format!(
            "on disk in {}, files of {}",
            directory.display(),
            show_size(queue.segment_bytes)
        ),
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

fn of_output(output: &Output) -> String {
    let mut text = output.kind.name().to_owned();
    let targets = output.kind.targets();
    let (proxies, addresses): (Vec<_>, Vec<_>) =
        targets.iter().partition(|target| target.is_proxy());
    for (index, target) in addresses.iter().take(ADDRESSES_MAX).enumerate() {
        text.push_str(if index == 0 { " " } else { ", " });
        text.push_str(&target.address());
    }
    if addresses.len() > ADDRESSES_MAX {
        text.push_str(&format!(" and {} more", addresses.len() - ADDRESSES_MAX));
    }
    if addresses.is_empty() && output.kind.name() != "stdout" {
        text.push_str(", its address is in a file that does not exist here");
    }
    for proxy in proxies {
        text.push_str(&format!(", through the proxy {}", proxy.address()));
    }
    if targets.iter().any(config::Target::is_tls) {
        text.push_str(", TLS");
    }
    let syslog = output.kind.settings::<syslog::Settings>();
    if syslog.is_some_and(|it| it.framing == Framing::OctetCounting) {
        text.push_str(
            ", each message preceded by its length (syslog-ng: source syslog(), not network())",
        );
    }
    if !output.filter.is_empty() {
        text.push_str(", filtered");
    }
    if output.checkpoints {
        text.push_str(", with checkpoints");
    }
    if !output.required {
        text.push_str(", not required");
    }
    text
}
