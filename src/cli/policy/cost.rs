//! The command `policy cost`: prints what a policy makes of events, rule by rule.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use serde_json::json;

use super::inputs;
use super::inputs::Read;
use super::read_policy;
use crate::cli::cannot_read;
use crate::cli::print;
use crate::cli::shown;
use crate::cli::table;
use crate::config;
use crate::cost::Cost;
use crate::cost::Costs;
use crate::cost::Row;
use crate::cost::Sum;
use crate::words::grouped;

/// The number of bytes for which `--price` is the price.
const PRICED_BYTES: f64 = 1e9;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The policy, in YAML or JSON
    #[arg(value_name = "POLICY.yaml")]
    policy: PathBuf,
    /// The events: audit logs, plain or compressed with gzip or zstd; objects of an S3 archive; the
    /// queue.directory of a relay. `-` is standard input
    #[arg(value_name = "INPUT", required_unless_present = "relay")]
    inputs: Vec<PathBuf>,
    /// Another policy, to print the difference between the two
    #[arg(long, value_name = "OTHER.yaml")]
    against: Option<PathBuf>,
    /// The price of a GB, which is 1,000,000,000 bytes
    #[arg(long, value_name = "PRICE", value_parser = price)]
    price: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// http://HOST:PORT of the admin address of a relay: look at the events that leave it, a sample
    /// as of the command `tap`
    #[arg(long, value_name = "URL", conflicts_with = "inputs", requires = "token_file")]
    relay: Option<String>,
    /// Look at the relay for this long
    #[arg(long = "for", value_name = "TIME", default_value = "1m", requires = "relay",
          value_parser = config::time)]
    time: Duration,
    /// Look at the events of this output only
    #[arg(long, value_name = "NAME", requires = "relay")]
    output: Option<String>,
    /// The file with the token of the relay's admin.tap_token_file
    #[arg(long, value_name = "FILE", requires = "relay")]
    token_file: Option<PathBuf>,
}

/// Parses a price.
fn price(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|price: &f64| price.is_finite() && *price >= 0.0);
    number.ok_or_else(|| "allowed: a number such as 0.50".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let Arguments { policy, inputs, against, relay, token_file, .. } = arguments;
    let files: Vec<&Path> = std::iter::once(policy).chain(against).map(PathBuf::as_path).collect();
    let policies = files.iter().map(|file| read_policy(file)).collect::<Result<Vec<_>, _>>()?;
    let mut costs = Costs::new(policies);
    let mut look = |lines: &[u8]| costs.add(lines);
    let read = match (relay, token_file) {
        (Some(url), Some(file)) => {
            let token = config::read_token_of_command(file);
            let token = token.map_err(|error| cannot_read(file, "the token", &error))?;
            let output = arguments.output.as_deref();
            inputs::relay(url, &token, output, arguments.time, &mut look)?
        }
        _ => inputs::files(inputs, &mut look)?,
    };
    let (text, json) = report(&files, &costs, arguments.price, &read);
    print(&if arguments.json { format!("{json:#}\n") } else { text })?;
    read.tell(costs.total)
}

/// Returns what is printed, as text and as JSON.
fn report(files: &[&Path], costs: &Costs, price: Option<f64>, read: &Read) -> (String, Value) {
    let money = |bytes: f64| price.map(|price| bytes / PRICED_BYTES * price);
    let said = |bytes: f64| money(bytes).map(|it| format!(", price {it:.2}")).unwrap_or_default();
    let Costs { total, policies } = costs;
    let mut text = format!("input: {}{}\n", counted(*total), said(total.bytes as f64));
    if let Some(sample) = read.sample() {
        text += &format!("this is {sample}\n");
    }
    let mut json = json!({
        "events": total.events, "bytes": total.bytes, "price": money(total.bytes as f64),
        "read": read, "policies": [],
    });
    for (file, cost) in files.iter().zip(policies) {
        let after = cost.after();
        let price = said(after.bytes as f64);
        let (table, rules) = rows(cost, *total);
        text += &format!("\n{}: leaves {}{price}\n{table}", shown(file), counted(after));
        if let Some(list) = json["policies"].as_array_mut() {
            list.push(json!({
                "file": file.to_string_lossy(), "events_after": after.events,
                "bytes_after": after.bytes, "price_after": money(after.bytes as f64),
                "share_after": after.percent_of(*total) / 100.0, "rules": rules,
            }));
        }
    }
    if let [one, other] = &policies[..] {
        let difference =
            |of: fn(Sum) -> u64| i128::from(of(other.after())) - i128::from(of(one.after()));
        let (events, bytes) = (difference(|sum| sum.events), difference(|sum| sum.bytes));
        text +=
            &format!("\ndifference: {events:+} events, {bytes:+} bytes{}\n", said(bytes as f64));
    }
    text += "\nWhat the recording policy has dropped or left out is not in the input.\n";
    (text, json)
}

/// Returns the rules of a policy with what they make of the events, and what is not known of it: as
/// a table for people, and as JSON.
fn rows(cost: &Cost, total: Sum) -> (String, Vec<Value>) {
    let rules = cost.policy.rules();
    let (mut unknown, mut never, mut json) = (String::new(), Vec::new(), Vec::new());
    let head =
        ["RULE", "LEVEL", "EVENTS", "BYTES", "SHARE", "EVENTS AFTER", "BYTES AFTER", "SHARE"];
    let mut lines = vec![head.map(str::to_owned)];
    for (index, row) in cost.rows.iter().enumerate() {
        let Row { before, after, below } = row;
        let rule = rules.get(index);
        let level = rule.map_or("None", |rule| rule.level.name());
        let line = rule.map(|rule| rule.line);
        let name = match line {
            Some(line) => format!("{} (line {line})", index + 1),
            None => "no rule".to_owned(),
        };
        let [share, share_after] = [before, after].map(|sum| sum.percent_of(total));
        json.push(json!({
            "rule": line.map(|_| index + 1), "line": line, "level": level,
            "events": before.events, "bytes": before.bytes, "share": share / 100.0,
            "events_after": after.events, "bytes_after": after.bytes,
            "share_after": share_after / 100.0, "recorded_below": below,
        }));
        if *below > 0 {
            let below = grouped(*below);
            unknown += &format!("rule {name}: {below} events were recorded below {level}, so ");
            unknown += "what it would add to them is not known\n";
        }
        if before.events == 0 && rule.is_some() {
            never.push(name.clone());
        }
        let [one, two] = [(before, share), (after, share_after)]
            .map(|(sum, share)| [grouped(sum.events), grouped(sum.bytes), format!("{share:.1} %")]);
        let [events, bytes, share] = one;
        let [events_after, bytes_after, share_after] = two;
        let level = level.to_owned();
        lines.push([name, level, events, bytes, share, events_after, bytes_after, share_after]);
    }
    if !never.is_empty() {
        unknown += &format!("rules that never matched: {}\n", never.join(", "));
    }
    (table(&lines) + &unknown, json)
}

fn counted(sum: Sum) -> String {
    format!("{} events, {} bytes", grouped(sum.events), grouped(sum.bytes))
}
