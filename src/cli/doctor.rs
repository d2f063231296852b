//! The command `doctor`: its arguments, and its result as text or JSON.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::healthcheck::Credentials;
use super::{healthcheck, input, print, time_within, whole};
use client::ask::Target;
use doctor::judge::Kind;
use doctor::kubeconfig::Kubeconfig;
use doctor::sample::Source;
use doctor::{Plan, credentials, screen};

/// The exit status if events are lost.
const LOST: u8 = 1;
/// The exit status if it is not known whether events are lost.
const UNKNOWN: u8 = 2;

#[derive(Args)]
pub(super) struct Arguments {
    /// The metrics of kube-apiserver: a file with saved metrics, a URL, or `-` for standard input;
    /// may be repeated
    #[arg(long, value_name = "FILE|URL|-")]
    apiserver: Vec<String>,
    /// Ask every kube-apiserver of this kubeconfig's current context: each endpoint of the Service
    /// `kubernetes`. Its credentials are also used for each https URL of --apiserver
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The number of kube-apiservers behind each URL of --apiserver, or in the cluster of
    /// --kubeconfig [default: as many as are found]
    #[arg(long, value_name = "N", value_parser = whole(1..=100, "a whole number of kube-apiservers, 1 to 100, such as 3"))]
    instances: Option<u64>,
    /// The URL of a relay's admin address, or a file with its saved /status; may be repeated
    /// [default: admin.address of the config]
    #[arg(long, value_name = "URL|FILE")]
    relay: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
    // More time would show nothing more, because kube-apiserver holds a batch for a few minutes at
    // most.
    /// The time between the two samples, 0s to 1h; there is only one sample if every --apiserver is
    /// a file
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time_within("0s", "1h"))]
    interval: Duration,
    /// The kubeconfig in kube-apiserver's --audit-webhook-config-file: test its URL and
    /// certificate, and whether it leads to one of the relays, with a request without events
    #[arg(long, value_name = "FILE")]
    webhook: Option<PathBuf>,
    /// Send a few requests to kube-apiserver, and wait up to 45 s for their events at the relays
    #[arg(long, requires = "kubeconfig")]
    probe: bool,
    /// Print only one JSON object
    #[arg(long)]
    json: bool,
}

/// Examines the kube-apiservers and relays that the arguments name. `Err` is the exit status if
/// events are lost, or if that is not known. Without `--relay`, the config in `file` names the
/// relay.
pub(super) fn run(arguments: &Arguments, file: Option<&Path>) -> Result<(), u8> {
    let plan = plan(arguments, file)?;
    let is_quiet = arguments.json;
    let waiting = |what: &str| {
        if !is_quiet {
            eprintln!("{what}");
        }
    };
    let examined = healthcheck::block_on(doctor::examine(plan, waiting));
    let (findings, verdict) = examined.map_err(|_| UNKNOWN)?;
    let text = match arguments.json {
        true => format!("{:#}\n", screen::json(&findings, &verdict)),
        false => screen::text(&findings, &verdict),
    };
    print(&text).map_err(|_| UNKNOWN)?;
    match verdict.kind {
        Kind::Ok | Kind::Warning | Kind::SoFar => Ok(()),
        Kind::Lost => Err(LOST),
        Kind::Unknown => Err(UNKNOWN),
    }
}

fn wrong(option: &str, what: impl std::fmt::Display) -> u8 {
    super::wrong(format_args!("{option}: {what}"))
}

fn plan(arguments: &Arguments, file: Option<&Path>) -> Result<Plan, u8> {
    if arguments.apiserver.iter().filter(|text| *text == "-").count() > 1 {
        return Err(wrong("--apiserver", "- is standard input and can be named only once"));
    }
    for file in [&arguments.kubeconfig, &arguments.webhook].into_iter().flatten() {
        input(file, "the kubeconfig")?;
    }
    let kubeconfig = arguments.kubeconfig.as_deref().map(Kubeconfig::read).transpose();
    let kubeconfig = kubeconfig.map_err(|error| wrong("--kubeconfig", error))?;
    let apiservers = apiservers(arguments, kubeconfig.as_ref())?;
    let cluster = kubeconfig.as_ref().map(credentials::server_of).transpose();
    let cluster = cluster.map_err(|error| wrong("--kubeconfig", error))?;
    let relays = relays(arguments, file)?;
    let of_webhook = |error| wrong("--webhook", error);
    let read =
        arguments.webhook.as_deref().map(Kubeconfig::read).transpose().map_err(of_webhook)?;
    let webhook = read.as_ref().map(credentials::server_of).transpose().map_err(of_webhook)?;
    let is_insecure = read.is_some_and(|read| read.insecure);
    Ok(Plan {
        apiservers,
        cluster,
        instances: arguments.instances.and_then(|count| count.try_into().ok()),
        relays,
        interval: arguments.interval,
        webhook,
        is_insecure,
        probe: arguments.probe,
    })
}

/// Returns the kube-apiservers that are named. The kubeconfig has the credentials for their URLs.
fn apiservers(arguments: &Arguments, kubeconfig: Option<&Kubeconfig>) -> Result<Vec<Source>, u8> {
    let mut apiservers = Vec::new();
    for (place, text) in (1..).zip(&arguments.apiserver) {
        let source = match (is_url(text), kubeconfig) {
            (false, _) => Source::File(text.into()),
            (true, None) => Plan::apiserver(target("--apiserver", place, text)?),
            (true, Some(kubeconfig)) => {
                let target = target("--apiserver", place, text)?;
                let target = credentials::with_credentials(target, kubeconfig);
                Plan::apiserver(target.map_err(|error| wrong("--kubeconfig", error))?)
            }
        };
        add(&mut apiservers, source);
    }
    Ok(apiservers)
}

/// Returns the relays that are named, or else the relay of the config in `file`.
fn relays(arguments: &Arguments, file: Option<&Path>) -> Result<Vec<Source>, u8> {
    let mut relays = Vec::new();
    for (place, text) in (1..).zip(&arguments.relay) {
        let source = match Path::new(text).is_file() {
            true => Source::File(text.into()),
            false => Plan::relay(arguments.credentials.with(target("--relay", place, text)?)?),
        };
        add(&mut relays, source);
    }
    if relays.is_empty() {
        relays.push(Plan::relay(arguments.credentials.page(None, file, "/status")?.target));
    }
    Ok(relays)
}

/// Adds a source, unless it is the same file, or leads to the same address and path, as a source
/// that is there already. A process that is named twice is still only one.
fn add(sources: &mut Vec<Source>, source: Source) {
    let same = |other: &Source| match (other, &source) {
        (Source::Url(target, path), Source::Url(other, other_path)) => {
            target.to_string() == other.to_string() && path == other_path
        }
        (Source::File(file), Source::File(other)) => file == other,
        (Source::Url(..) | Source::File(_), _) => false,
    };
    if !sources.iter().any(same) {
        sources.push(source);
    }
}

/// Returns `true` if a text is meant as a URL, and not as the name of a file.
fn is_url(text: &str) -> bool {
    let is_web = |scheme: &str| ["http", "https"].iter().any(|it| scheme.eq_ignore_ascii_case(it));
    text.contains("://") || text.split_once(':').is_some_and(|(scheme, _)| is_web(scheme))
}

/// Makes a target of the option's value with the number `place`. A refused value is not printed,
/// because its user or its query may hold a password or a token.
fn target(option: &str, place: usize, text: &str) -> Result<Target, u8> {
    Target::new(text).map_err(|what| wrong(option, format!("value {place} {what}")))
}
