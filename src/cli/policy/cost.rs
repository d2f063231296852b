//! The commands `policy cost`, which prints what a policy makes of events, rule by rule, and
//! `policy advise`, which prints the fewest rules that reach an aim. Both read events from files
//! and directories.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::read_policy;
use crate::cli::{failed, print, replay, shown, table};
use base::words::{counted, counted_in_groups, escape, grouped};
use tools::cost::{Advice, Cost, Sum, Survey};

const HEAD: [&str; 9] =
    ["RULE", "LEVEL", "EVENTS", "BYTES", "SHARE", "EVENTS AFTER", "BYTES AFTER", "SHARE", "BELOW"];

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The policy, in YAML or JSON
    #[arg(value_name = "POLICY.yaml")]
    policy: PathBuf,
    /// The events: audit logs, plain or compressed with gzip or zstd; objects from an S3 archive; a
    /// relay's queue.directory. `-` is standard input
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// A second policy to compare with
    #[arg(long, value_name = "OTHER.yaml")]
    against: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(in crate::cli) struct Aim {
    /// The percentage of bytes that the rules must save, such as 60%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    cut: f64,
    /// The events, in the formats that `policy cost` reads. `-` is standard input
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
}

/// Parses a percentage; the percent sign may be left out.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok();
    let number = number.filter(|percent| *percent > 0.0 && *percent <= 100.0);
    number.ok_or_else(|| "allowed: a part such as 60%, above 0% and up to 100%".to_owned())
}

pub(super) fn cost(Arguments { policy, inputs, against, json }: &Arguments) -> Result<(), u8> {
    let files: Vec<&Path> = std::iter::once(policy).chain(against).map(PathBuf::as_path).collect();
    let costs = files.iter().map(|file| Ok((*file, Cost::new(read_policy(file)?))));
    let mut costs = costs.collect::<Result<Vec<_>, u8>>()?;
    let mut look = |lines: &[u8]| costs.iter_mut().for_each(|(_, cost)| cost.add(lines));
    let (bad_lines, stopped) = replay::look(inputs, &mut look)?;
    let (total, unsent) = (costs[0].1.before(), costs[0].1.unsent);
    print(&match json {
        true => {
            let policies = costs.iter().map(|(file, cost)| {
                let (file, after) = (file.to_string_lossy(), cost.after());
                let rules: Vec<_> = cost.rows.iter().map(|row| row.as_json(total)).collect();
                json!({ "file": file, "after": after, "rules": rules })
            });
            let policies: Vec<_> = policies.collect();
            let json = json!({
                "total": total, "unsent": unsent, "bad_lines": bad_lines, "stopped": stopped,
                "policies": policies,
            });
            format!("{json:#}\n")
        }
        false => text(&costs, total),
    })?;
    tell(bad_lines, stopped.as_deref(), total)
}

pub(super) fn advise(Aim { cut, inputs }: &Aim) -> Result<(), u8> {
    let mut survey = Survey::default();
    let (bad_lines, stopped) = replay::look(inputs, &mut |lines| survey.add(lines))?;
    let advice = Advice::new(&survey, *cut);
    if survey.total.events > 0 {
        print(&advice.page)?;
    }
    tell(bad_lines, stopped.as_deref(), survey.total)?;
    match advice.is_reached {
        true => Ok(()),
        false => Err(failed(format_args!(
            "the aim of {cut} % is not reached: above the floor, {} can be saved",
            advice.saves.share_of(survey.total),
        ))),
    }
}

/// Prints a message if the figures lack a part of the input, or if there are no events. `Err` is
/// then the exit status.
fn tell(bad_lines: u64, stopped: Option<&str>, total: Sum) -> Result<(), u8> {
    let stopped = stopped.map_or(String::new(), |why| format!("; {}", escape::message(why)));
    match (bad_lines, &*stopped, total.events) {
        (0, "", 0) => Err(failed("there are no events in the input")),
        (0, "", _) => Ok(()),
        _ => Err(failed(format_args!(
            "not in the figures: {}{stopped}",
            counted(bad_lines, "line that is not an event", "lines that are not events")
        ))),
    }
}

fn text(costs: &[(&Path, Cost)], total: Sum) -> String {
    let events = |number| counted_in_groups(number, "event", "events");
    let counted = |sum: Sum| format!("{}, {} bytes\n", events(sum.events), grouped(sum.bytes));
    let mut text = format!("input: {}", counted(total));
    if let Some((_, Cost { unsent: unsent @ Sum { events: 1.., .. }, .. })) = costs.first() {
        text += &format!(
            "not counted: {} bytes, the `kind` and `apiVersion` of {}, which an audit.log has and \
             the webhook does not send\n",
            grouped(unsent.bytes),
            events(unsent.events),
        );
    }
    for (file, cost) in costs {
        let (file, after) = (shown(file), counted(cost.after()));
        text += &format!("\n{file}: leaves {after}{}", rows(cost, total));
    }
    if let [(_, one), (_, other)] = costs {
        let [one, other] = [one, other].map(Cost::after);
        let events = other.events as f64 - one.events as f64;
        let bytes = other.bytes as f64 - one.bytes as f64;
        text += &format!("\ndifference: {events:+} events, {bytes:+} bytes\n");
    }
    text + "\nWhat the recording policy has dropped or left out is not in the input.\n"
}

/// Returns a table of the rules with the events and bytes before and after, and a list of the rules
/// that never matched.
fn rows(cost: &Cost, total: Sum) -> String {
    let (mut never, mut lines) = (Vec::new(), vec![HEAD.map(str::to_owned)]);
    for (index, row) in cost.rows.iter().enumerate() {
        let name = match row.line {
            Some(line) => format!("{} (line {line})", index + 1),
            None => "no rule".to_owned(),
        };
        if row.before.events == 0 && row.line.is_some() {
            never.push(name.clone());
        }
        let [[events, bytes, share], [events_after, bytes_after, share_after]] =
            [row.before, row.after].map(|sum| {
                let share = sum.share_of(total);
                [grouped(sum.events), grouped(sum.bytes), share]
            });
        let (level, below) = (row.level.to_owned(), grouped(row.recorded_below));
        lines.push([
            name,
            level,
            events,
            bytes,
            share,
            events_after,
            bytes_after,
            share_after,
            below,
        ]);
    }
    match never.is_empty() {
        true => table(&lines),
        false => format!("{}rules that never matched: {}\n", table(&lines), never.join(", ")),
    }
}
