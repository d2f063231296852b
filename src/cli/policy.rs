//! The commands about audit policies. `policy explain` prints which rule of a policy decides about
//! an event, why no rule before it does, and what happens to the event.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{WRONG, cannot_read, print, read_input};
use audit::request::{Request, request};
use audit::scan;
use base::words::escape;
use base::yaml::Problem;
use delivery::filter;
use transform::policy::Policy;

mod cost;

/// The greatest size of a file with events, in bytes. An audit.log is usually rotated at 100 MiB.
const EVENT_BYTES_MAX: u64 = 256 << 20;

#[derive(Subcommand)]
pub(super) enum Command {
    /// For each event, print the rule that applies, why earlier rules do not match, and what
    /// happens to the event
    ///
    /// If the policy has mistakes, each one is printed with its line and column, and the exit
    /// status is 2.
    Explain {
        /// The policy, in YAML or JSON: a Policy of audit.k8s.io/v1, as for kube-apiserver's
        /// --audit-policy-file
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// The events: one Event, an EventList, or JSON lines such as an audit.log; `-` is standard
        /// input
        #[arg(value_name = "EVENT.json")]
        events: PathBuf,
    },
    /// Count what a policy does to recorded events: for each rule, the events and bytes before and
    /// after
    ///
    /// The "after" bytes are what the relay would send with this filter.policy. The exit status is
    /// 1 if part of the input could not be read.
    Cost(cost::Arguments),
    /// Print the smallest set of rules that reduces the recorded bytes by a given percentage, as a
    /// policy you can paste
    ///
    /// Changes nothing. Some events are never dropped, such as writes, reads of Secrets, and
    /// requests that were refused. The exit status is 1 if the percentage cannot be reached, or if
    /// part of the input could not be read.
    Advise(cost::Aim),
}

pub(super) fn run(command: &Command) -> Result<(), u8> {
    match command {
        Command::Explain { policy, events } => explain(policy, events),
        Command::Cost(arguments) => cost::cost(arguments),
        Command::Advise(aim) => cost::advise(aim),
    }
}

/// Reads a policy, and prints warnings about it. If it has mistakes, prints them; `Err` is the exit
/// status.
fn read_policy(file: &Path) -> Result<Policy, u8> {
    let policy = filter::read_policy_of_command(file).map_err(|mistakes| {
        mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
        WRONG
    })?;
    for Problem { line, column, what } in policy.doubts() {
        eprintln!("{}:{line}:{column}: warning: {what}", file.display());
    }
    Ok(policy)
}

fn explain(policy: &Path, events: &Path) -> Result<(), u8> {
    let policy = read_policy(policy)?;
    let batch = read_input(events, EVENT_BYTES_MAX)
        .and_then(|body| audit::decode(body).map_err(std::io::Error::other));
    let batch = batch.map_err(|error| cannot_read(events, "the events", &error))?;
    if let Some(told) = batch.rejected.told() {
        eprintln!("{}: warning: not explained: {told}", events.display());
    }
    let lines = batch.lines;
    let mut text = String::new();
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for (index, event) in lines.enumerate() {
        if index > 0 {
            text.push('\n');
        }
        let request = request(event);
        text.push_str(&head(index + 1, event, &request));
        for line in policy.explain(&request).lines {
            // A write into memory cannot fail.
            writeln!(text, "  {line}").ok();
        }
    }
    print(&text)
}

/// Returns the line that names an event in the printed text.
fn head(number: usize, event: &[u8], request: &Request<'_>) -> String {
    let id = scan::member(event, "auditID").and_then(scan::string).unwrap_or_default();
    let user = match &request.user {
        Some(user) => format!("by {:?}", String::from_utf8_lossy(&user.name)),
        None => "by nobody".to_owned(),
    };
    format!(
        "event {number} ({}, auditID {}): {} {} {user}\n",
        printable(&request.stage),
        printable(&id),
        printable(&request.verb),
        printable(&request.uri.text()),
    )
}

fn printable(text: &[u8]) -> String {
    escape::message(&String::from_utf8_lossy(text))
}
