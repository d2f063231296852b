//! The command `check`: prints every problem of a config, or a short summary.
//!
//! All of it is for people and goes to stderr. If nothing fails, the last line begins with `ok`. No
//! line shows a secret: of a URL, only scheme, host and port are printed.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{ConfigFile, FAILED, WRONG, in_time, read, report, runtime, wrong};
use base::words::counted;
use config::{Checked, Config, Severity};
use delivery::DeadLetters;
use relay::check;
use relay::source::Sources;
use telemetry::Telemetry;

mod summary;

#[derive(Args)]
pub(super) struct Arguments {
    /// The TOML file; --config or KUBE_AUDIT_FORWARDER_CONFIG can name it instead
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Also connect to every output and source, with TLS, and send HTTP consumers a request without
    /// events, at the very URL
    #[arg(long)]
    connect: bool,
    /// Check a config for use on another machine: missing files and directories are only warnings
    #[arg(long, conflicts_with = "connect")]
    elsewhere: bool,
}

/// Checks the config that the arguments name. `Err` is the exit status.
pub(super) fn run(arguments: &Arguments, named: &ConfigFile) -> Result<(), u8> {
    let Some(file) = named.with("check", arguments.file.as_deref())? else {
        return Err(wrong("check needs a config: check FILE, or check --config FILE"));
    };
    let (text, name) = read(Some(file))?;
    let elsewhere = arguments.elsewhere;
    let checked = in_time(move || looked_at(config::read(&text, outputs::TYPES), elsewhere))?;
    report(&checked, &name)?;
    eprint!("{}", summary::of(&checked, &name, arguments.connect));
    if let Some(config) = checked.config.as_ref().filter(|_| arguments.connect) {
        runtime()?.block_on(probe(config))?;
    }
    // `config` is `None` if a setting is in a file that does not exist on this machine.
    let parts = checked.config.as_ref().map(parts).unwrap_or_default();
    eprintln!("ok{parts}");
    Ok(())
}

/// Looks at the files and directories that the config names, and returns `checked` with their
/// problems added. If `elsewhere` is `true`, the config is for another machine: a missing file is
/// then only a warning, and so is every problem of a directory.
fn looked_at(checked: Checked, elsewhere: bool) -> Checked {
    let mut problems = check::directories(&checked, &[]);
    if elsewhere {
        problems.iter_mut().for_each(|problem| problem.severity = Severity::Warning);
    }
    problems.extend(check::files(&checked));
    problems.extend(check::admin_tokens(&checked));
    // The next three checks are about the disk, the kernel and the memory of this machine.
    problems.extend(check::room(&checked).filter(|_| !elsewhere));
    problems.extend(check::kernel(&checked).filter(|_| !elsewhere));
    let limit = telemetry::memory_limit().filter(|_| !elsewhere);
    problems.extend(check::memory(&checked, limit));
    let mut all = problems.iter().chain(&checked.problems);
    let is_whole = all.all(|problem| problem.severity == Severity::Warning);
    if let Some(config) = checked.config.as_ref().filter(|_| is_whole) {
        problems.extend(check::rest(&checked, config));
    }
    let checked = checked.with(problems);
    if elsewhere { checked } else { checked.strict() }
}

/// Returns the number of listeners, sources and outputs for the end of a message, such as `: 2
/// listeners, 1 output`.
fn parts(config: &Config) -> String {
    let counts = [
        (config.listeners.len(), "listener"),
        (config.sources.len(), "source"),
        (config.outputs.len(), "output"),
    ];
    let part = |(count, name): (usize, &str)| counted(count as u64, name, &format!("{name}s"));
    let parts: Vec<_> = counts.into_iter().filter(|(count, _)| *count > 0).map(part).collect();
    format!(": {}", parts.join(", "))
}

/// Returns the text of an error without the address, because the printed line already begins with
/// the address.
fn without_address(error: &str, address: &str) -> String {
    let error = error.strip_prefix(&format!("{address}: ")).unwrap_or(error);
    let address = address.split_once("://").map_or(address, |(_, address)| address);
    let mut error = error.replacen(&format!("no connection to {address} "), "no connection ", 1);
    for before in [" to", " with", " at"] {
        error = error.replacen(&format!("{before} {address}: "), ": ", 1);
    }
    error = error.replacen(&format!(": {address}/bootstrap: "), ": ", 1);
    let (host, _) = address.rsplit_once(':').unwrap_or((address, ""));
    error.replacen(&format!("cannot resolve {host}: "), "cannot resolve the name: ", 1)
}

/// Connects to every output and source of the config once, and prints for each address whether the
/// connection works. `Err` is the exit status if a connection fails, or if an output or source
/// cannot read its files and is therefore not connected.
async fn probe(config: &Config) -> Result<(), u8> {
    let telemetry = Arc::new(Telemetry::new());
    let dead_letters = DeadLetters::new(&telemetry);
    let mut result = Ok(());
    for output in &config.outputs {
        let mut prepared = outputs::prepare(output, &telemetry, &dead_letters);
        match prepared.files().map(|files| files.stage()) {
            Some(Err(error)) => {
                eprintln!("output {}: {error}", output.name);
                result = Err(WRONG);
                continue;
            }
            Some(Ok(staged)) => staged(),
            None => {}
        }
        for (address, dialled) in prepared.probe().await {
            match dialled {
                Ok(unclear) => {
                    let said = unclear.as_deref().unwrap_or("ok");
                    eprintln!("output {}: {address}: {said}", output.name);
                }
                Err(error) => {
                    let error = without_address(&error.to_string(), &address.to_string());
                    eprintln!("output {}: {address}: {error}", output.name);
                    result = Err(FAILED);
                }
            }
        }
    }
    let sources = Sources::default().plan(&config.sources, config.limits.max_body, &telemetry);
    for source in sources {
        let staged = tokio::task::block_in_place(|| source.stage());
        match staged {
            Err(error) => {
                eprintln!("{error}");
                result = Err(WRONG);
                continue;
            }
            Ok(staged) => staged(),
        }
        let (place, found) = tokio::task::block_in_place(|| source.probe());
        let name = source.name();
        match found {
            Ok(()) => eprintln!("source {name}: {place}: ok"),
            Err(error) => {
                eprintln!("source {name}: {place}: {error}");
                result = Err(FAILED);
            }
        }
    }
    result
}
