//! The command line. Only this file and the files below it print: data to stdout, messages for
//! people to stderr.
#![allow(clippy::print_stderr, reason = "this is the file that prints")]

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use clap::Parser;
use clap::Subcommand;
use clap_complete::Shell;
use futures_util::FutureExt;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::check;
use crate::config;
use crate::config::Checked;
use crate::config::Config;
use crate::config::Problem;
use crate::config::Severity;
use crate::delivery::DeadLetters;
use crate::filter;
use crate::output;
use crate::relay;
use crate::source::Sources;
use crate::telemetry;
use crate::telemetry::Telemetry;

mod demo;
mod doctor;
mod documents;
mod drain;
mod evidence;
mod healthcheck;
mod migrate;
mod policy;
mod queue;
mod replay;
mod version;

/// The exit status of a command that failed while it ran.
const FAILED: u8 = 1;
/// The exit status for wrong usage or a wrong config. clap uses the same status.
const WRONG: u8 = 2;

/// The greatest number of worker threads of the tokio runtime. More threads would not be faster:
/// they would only move batches from one CPU core to another.
const WORKERS_MAX: usize = 4;

/// The number of CPU cores for each worker thread of the tokio runtime. Whenever a worker finds
/// work, tokio wakes another worker to look for more. At 100,000 events per second, two workers on
/// two cores began to wait 4.1 times for each batch, and one worker 1.9 times, which costs 15 %
/// less CPU time. The other core is not idle: the kernel, the threads of the queue on disk and the
/// log use it.
const CORES_PER_WORKER: usize = 2;

/// The time after which an idle thread for blocking work ends. The relay looks at its files once a
/// second, and each look uses such a thread. With tokio's default of ten seconds, these looks would
/// use each idle thread again before it ends, and all threads of a past peak would stay.
const IDLE_THREAD: Duration = Duration::from_millis(500);

/// Receives kube-apiserver's audit webhook and forwards the events to Logstash, syslog and HTTP
/// consumers.
#[derive(Parser)]
#[command(version, long_version = version::long())]
struct Arguments {
    /// The TOML file; without one, a default with a listener on 127.0.0.1:3000 and output to stdout
    #[arg(long, global = true, env = "KUBE_AUDIT_FORWARDER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay; this is also the default without a command
    Run,
    /// Print every problem of a config, and of the files that it names; changes nothing
    Check {
        /// Also look up the names of every output and source, connect, and do the TLS handshake
        #[arg(long)]
        connect: bool,
        /// For a config of another machine: missing files and directories are warnings
        #[arg(long, conflicts_with = "connect")]
        elsewhere: bool,
    },
    /// Print the config with every default filled in
    Config {
        /// Print all keys with kind, default and meaning instead
        #[arg(long)]
        reference: bool,
    },
    /// See the relay work: send events to a relay that this command starts, let its consumer go
    /// away for a while, and count the events that arrive
    Demo(demo::Arguments),
    /// Send the events of audit logs to a relay, as kube-apiserver's webhook would have sent them
    Replay(replay::Arguments),
    /// Turn the config of another forwarder into a config of this relay
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Look into the directory of a durable queue; changes nothing, and may run beside the relay
    #[command(subcommand)]
    Queue(queue::Command),
    /// Make a key for the evidence, look into its log, and check that nothing is missing in it
    #[command(subcommand)]
    Evidence(evidence::Command),
    /// Show which rule of an audit policy decides about an event, and why
    #[command(subcommand)]
    Policy(policy::Command),
    /// Print the reference of all metrics, as docs/reference/metrics.md has it
    #[command(hide = true)]
    Metrics,
    /// Print the completions for a shell
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the man page
    Man {
        /// Write a page for each command into this directory instead
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Ask a running relay whether it is ready: exit status 0 if it is, 1 and the reasons if not
    Healthcheck {
        /// http://HOST:PORT of the relay's admin address [default: admin.address of the config]
        url: Option<String>,
    },
    /// Say whether audit events are lost, where and why: compares what kube-apiserver counts with
    /// what the relays count. Exit status 0 if nothing is lost, 1 if something is, 2 if that is not
    /// known
    Doctor(doctor::Arguments),
    /// Wait until a running relay has delivered the events that it holds: exit status 0 when it
    /// has, 1 if that takes too long
    Drain {
        /// http://HOST:PORT of the relay's admin address [default: admin.address of the config]
        url: Option<String>,
        /// Wait at most this many seconds
        #[arg(long, default_value_t = 60, value_name = "N")]
        seconds: u64,
    },
}

/// Runs the command that the command line names, and returns the process's exit status.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let file = arguments.config.as_deref();
    let result = match arguments.command.unwrap_or(Command::Run) {
        Command::Run => run(file),
        Command::Check { connect, elsewhere } => check(file, connect, elsewhere),
        Command::Config { reference: true } => print(&config::reference(output::TYPES)),
        Command::Config { reference: false } => show(file),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Migrate(command) => migrate::run(&command),
        Command::Queue(command) => queue::run(&command),
        Command::Evidence(command) => evidence::run(&command),
        Command::Policy(command) => policy::run(&command),
        Command::Metrics => print(&telemetry::reference()),
        Command::Completions { shell } => documents::completions(shell, Arguments::command()),
        Command::Man { directory } => documents::man(directory.as_deref(), Arguments::command()),
        Command::Healthcheck { url } => healthcheck::run(url.as_deref(), file),
        Command::Doctor(arguments) => doctor::run(&arguments, file),
        Command::Drain { url, seconds } => drain::run(url.as_deref(), seconds, file),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => ExitCode::from(code),
    }
}

/// Reads the config file, or takes the built-in default config if `file` is `None`. Returns the
/// text of the config and the name of the config for messages. If the file cannot be read, `Err` is
/// the exit status.
fn read(file: Option<&Path>) -> Result<(String, String), u8> {
    let Some(file) = file else {
        return Ok((config::EMBEDDED.to_owned(), "embedded default".to_owned()));
    };
    match std::fs::read_to_string(file) {
        Ok(text) => Ok((text, file.display().to_string())),
        Err(error) => {
            eprintln!("{}: cannot read the config: {error}", file.display());
            Err(WRONG)
        }
    }
}

/// Prints every problem of the config. `Err` is the exit status if one of the problems is an error.
fn report(checked: &Checked, name: &str) -> Result<(), u8> {
    for problem in &checked.problems {
        eprintln!("{}", problem.render(name));
    }
    let is_wrong = |it: &Problem| matches!(it.severity, Severity::Error | Severity::Fault);
    if checked.problems.iter().any(is_wrong) { Err(WRONG) } else { Ok(()) }
}

/// Prints every mistake in the audit policy files that the config names. `Err` is the exit status
/// if there is a mistake. A policy file that does not exist is skipped here, because `report`
/// prints it as a problem of the config.
fn report_policies(checked: &Checked) -> Result<(), u8> {
    let mut result = Ok(());
    for policy in checked.policies.iter().filter(|policy| policy.exists()) {
        for mistake in filter::read_policy(policy).err().into_iter().flatten() {
            eprintln!("{mistake}");
            result = Err(WRONG);
        }
    }
    result
}

fn show(file: Option<&Path>) -> Result<(), u8> {
    let (text, name) = read(file)?;
    let checked = config::read(&text, output::TYPES);
    report(&checked, &name)?;
    print(&checked.effective())
}

/// Writes a text to standard output. `Err` is the exit status if that fails. A reader that has
/// closed the pipe early, as `head` does, is no failure.
fn print(text: &str) -> Result<(), u8> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("cannot write to standard output: {error}");
            Err(FAILED)
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn check(file: Option<&Path>, connect: bool, elsewhere: bool) -> Result<(), u8> {
    let Some(file) = file else {
        eprintln!("check needs --config FILE");
        return Err(WRONG);
    };
    let (text, name) = read(Some(file))?;
    let checked = looked_at(config::read(&text, output::TYPES), elsewhere);
    let reported = report(&checked, &name);
    report_policies(&checked)?;
    reported?;
    if let Some(config) = checked.config.as_ref().filter(|_| connect) {
        runtime()?.block_on(probe(config))?;
    }
    // `config` is `None` if a setting is in a file that does not exist on this machine.
    let parts = checked.config.as_ref().map(parts).unwrap_or_default();
    eprintln!("ok{parts}");
    Ok(())
}

/// Looks at the files and directories that the config names, and returns `checked` with their
/// problems added. `elsewhere` is `true` if the config is for another machine: then a missing file
/// is only a warning, and so is every problem of a directory.
fn looked_at(checked: Checked, elsewhere: bool) -> Checked {
    let mut problems = check::directories(&checked, &[]);
    if elsewhere {
        problems.iter_mut().for_each(|problem| problem.severity = Severity::Warning);
    }
    problems.extend(check::files(&checked));
    let is_whole = problems.is_empty()
        && checked.problems.iter().all(|problem| problem.severity == Severity::Warning);
    if let Some(config) = checked.config.as_ref().filter(|_| is_whole) {
        problems = check::rest(&checked, config);
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
    let part = |(count, name): (usize, &str)| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {name}{plural}")
    };
    let parts: Vec<_> = counts.into_iter().filter(|(count, _)| *count > 0).map(part).collect();
    format!(": {}", parts.join(", "))
}

/// Connects to every output and source of the config once, and prints for each address whether the
/// connection works. `Err` is the exit status if a connection fails, or if an output or source
/// cannot read its files and is therefore not connected.
async fn probe(config: &Config) -> Result<(), u8> {
    let telemetry = Arc::new(Telemetry::new());
    let dead_letters = DeadLetters::new(&telemetry);
    let mut result = Ok(());
    for output in &config.outputs {
        let mut prepared = output::prepare(output, &telemetry, &dead_letters);
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
                Ok(()) => eprintln!("output {}: {address}: ok", output.name),
                Err(error) => {
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

fn runtime() -> Result<tokio::runtime::Runtime, u8> {
    build_runtime().map_err(|error| {
        eprintln!("cannot start the runtime: {error}");
        FAILED
    })
}

fn build_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / CORES_PER_WORKER).clamp(1, WORKERS_MAX))
        .thread_keep_alive(IDLE_THREAD)
        .enable_all()
        .build()
}

fn run(file: Option<&Path>) -> Result<(), u8> {
    let (text, name) = read(file)?;
    let checked = config::read(&text, output::TYPES);
    let problems = check::files(&checked);
    let checked = checked.with(problems).strict();
    let Some(config) = &checked.config else {
        report(&checked, &name)?;
        return Err(WRONG);
    };
    if let Err(error) = telemetry::start_log(config.log) {
        eprintln!("cannot start the log: {error}");
        return Err(FAILED);
    }
    // From here on nothing is printed, because a stderr that nobody reads would block the process.
    for Problem { line, path: key, message, severity, .. } in &checked.problems {
        match severity {
            Severity::Error | Severity::Fault => {
                tracing::error!(config = name, line, key, "{message}");
            }
            Severity::Warning | Severity::MissingFile => {
                tracing::warn!(config = name, line, key, "{message}");
            }
        }
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = name, "starting");
    let result = run_relay(file, config.clone());
    match &result {
        // The relay has logged its totals already, and they are the last line of the log.
        Ok(()) | Err(relay::Error::Ended(_)) => {}
        Err(error @ (relay::Error::Config(_) | relay::Error::Run(_))) => {
            tracing::error!(%error, "the relay has failed");
        }
    }
    telemetry::end_log();
    result.map_err(|error| match error {
        relay::Error::Config(_) => WRONG,
        relay::Error::Run(_) | relay::Error::Ended(_) => FAILED,
    })
}

/// Runs the relay from its start to its end, in a tokio runtime that this function makes. `file` is
/// the config file, which a reload reads again.
fn run_relay(file: Option<&Path>, config: Config) -> Result<(), relay::Error> {
    let runtime = build_runtime()
        .map_err(|error| relay::Error::Run(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(async {
        let heard = Heard::new()
            .map_err(|error| relay::Error::Run(format!("cannot hear signals: {error}")))?;
        let Heard { first, second, reload, listening } = heard;
        let (stopped, aborted) = (first.cancelled_owned(), second.cancelled_owned());
        let signals = relay::Signals { stopped, aborted, reload, opened: None };
        let running = relay::run(file.map(Path::to_path_buf), config, signals);
        let ended = AssertUnwindSafe(running).catch_unwind().await;
        let result = ended.unwrap_or_else(|_| {
            Err(relay::Error::Run("the relay's own task has panicked".to_owned()))
        });
        if listening.is_finished() {
            let error = "the task that hears signals has panicked".to_owned();
            return result.and(Err(relay::Error::Run(error)));
        }
        result
    });
    // A thread that hangs in a file system or in a full pipe must not delay the end.
    runtime.shutdown_background();
    result
}

/// A second SIGTERM or SIGINT that comes within this time after the first one counts as the same
/// signal. timeout(1), for example, sends its signal to its child and then to the child's process
/// group, so that the child gets the signal twice.
const TWICE: Duration = Duration::from_millis(10);

/// The greatest number of requests to reload (SIGHUP) that wait while a reload runs. If this many
/// requests wait, a further request is ignored. The newest config is still read, because the
/// waiting reloads start after the ignored request.
const RELOADS: usize = 16;

/// Receives the signals of this process. The first SIGTERM or SIGINT cancels `first`, and a second
/// one cancels `second`. `reload` gets a message for each SIGHUP, unless too many messages wait.
struct Heard {
    first: CancellationToken,
    second: CancellationToken,
    reload: mpsc::Receiver<()>,
    /// The task that waits for signals until the process ends. If the task panics, `first` is
    /// cancelled, as if a first SIGTERM had come.
    listening: JoinHandle<()>,
}

impl Heard {
    fn new() -> std::io::Result<Self> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let (asked, reload) = mpsc::channel(RELOADS);
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let (for_task, ended) = ((first.clone(), second.clone()), first.clone().drop_guard());
        let listening = TaskTracker::new().spawn(async move {
            let ((first, second), _ended) = (for_task, ended);
            let mut heard: Option<Instant> = None;
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {
                        asked.try_send(()).ok();
                        continue;
                    }
                }
                match heard {
                    None => heard = Some(Instant::now()),
                    Some(at) if at.elapsed() >= TWICE => second.cancel(),
                    Some(_) => {}
                }
                first.cancel();
            }
        });
        Ok(Self { first, second, reload, listening })
    }
}
