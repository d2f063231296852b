//! The command `volume`: prints who causes the bytes that relays accept.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Args;

use super::healthcheck::Credentials;
use super::top::get;
use super::{failed, healthcheck, print, wrong};
use base::words::escape;
use tools::top;
use transform::volume::report::{DIMENSIONS, Report, SPANS};

#[derive(Args)]
pub(super) struct Arguments {
    /// http://HOST:PORT or https://HOST:PORT of the relays' admin addresses; their numbers are
    /// added up [default: admin.address of the config]
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// The same as URL; may be repeated
    #[arg(long, value_name = "URL")]
    relay: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// What to count by. A cause is a combination of user, verb and resource
    #[arg(long, value_name = "NAME", default_value = "cause", value_parser = DIMENSIONS)]
    by: String,
    /// The period to count
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = SPANS.map(|(name, _)| name))]
    since: String,
    /// Print all dimensions as JSON
    #[arg(long)]
    json: bool,
}

/// Asks the relays, and prints the sum of their responses. If one of them does not respond, no sum
/// is printed, because it would be wrong. `Err` is the exit status.
pub(super) fn run(arguments: &Arguments, file: Option<&Path>) -> Result<(), u8> {
    let (mut sum, mut asked) = (Report::default(), BTreeSet::new());
    let named = arguments.urls.iter().chain(&arguments.relay);
    let urls = named.clone().map(|url| Some(url.as_str()));
    for url in urls.chain(named.clone().next().is_none().then_some(None)) {
        let page = arguments.credentials.page(url, file, "/status/volume")?;
        if !asked.insert(page.url.clone()) {
            return Err(wrong(format_args!("{page} is named twice")));
        }
        let told = |what: &str| failed(format_args!("{page}: {}", escape::message(what)));
        let report = healthcheck::block_on(get::<Report>(&page))?.map_err(|error| told(&error))?;
        if !report.enabled {
            return Err(told("nothing is counted: its config has volume.enabled = false"));
        }
        sum.add(report);
    }
    let none = || failed("no relay has figures of this time");
    let figures = sum.spans.get(&arguments.since).ok_or_else(none)?;
    match arguments.json {
        true => print(&format!("{:#}\n", serde_json::json!(figures))),
        false => print(&(top::table(figures, &arguments.by).join("\n") + "\n")),
    }
}
