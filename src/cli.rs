//! The command line. Only this file and the files below it print: data to stdout, messages for
//! people to stderr.
#![allow(clippy::print_stderr, reason = "this is the file that prints")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::poll_fn;
use std::io::Write;
use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::task::Poll;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use audit::Isa;
use base::named_file;
use base::words::escape;
use config::{Checked, Config, Problem, Severity};

mod check;
mod demo;
mod doctor;
mod documents;
mod drain;
mod evidence;
mod healthcheck;
mod help;
mod migrate;
mod policy;
mod queue;
mod replay;
mod restrict;
mod tap;
mod top;
mod version;
mod volume;

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

/// Receives kube-apiserver's audit webhook and forwards the events to Splunk, Elasticsearch, S3,
/// Kafka, Logstash, syslog and other consumers.
#[derive(Parser)]
#[command(version, long_version = version::long())]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay (the default command)
    Run {
        /// The TOML file; --config or KUBE_AUDIT_FORWARDER_CONFIG can name it instead
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print every problem in a config and in the files that it names, or a summary if there are
    /// none; changes nothing
    Check(check::Arguments),
    /// Print the config with every default filled in
    Config {
        /// Print a table of all keys instead: kind, default and meaning
        #[arg(long)]
        reference: bool,
    },
    /// Watch a relay at work: start one, send it events, stop its consumer for a while, and count
    /// the events that arrive
    Demo(demo::Arguments),
    /// Send the events of audit logs to a relay, as kube-apiserver's webhook would have sent them
    Replay(replay::Arguments),
    /// Convert another forwarder's config to a config for this relay
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Inspect the directory of a durable queue; changes nothing, and works while the relay is
    /// running
    #[command(subcommand)]
    Queue(queue::Command),
    /// Create an evidence key, read an evidence log, and verify that nothing is missing from it
    #[command(subcommand)]
    Evidence(evidence::Command),
    /// Explain which rule of an audit policy applies to an event, count what a policy would save,
    /// or suggest rules
    #[command(subcommand)]
    Policy(policy::Command),
    /// Print shell completions
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
    /// Print the version, as -V does
    Version {
        /// Print the revision, the scanner and the formats of files too, as --version does
        #[arg(long)]
        verbose: bool,
    },
    /// Ask a running relay whether it is ready: exit status 0 if it is, 1 and the reasons if not
    Healthcheck(healthcheck::Relay),
    /// Find out whether, where and why audit events are lost, by comparing the counters of
    /// kube-apiserver and the relays. Exit status 0 if nothing is lost, 1 if something is, 2 if
    /// unknown
    Doctor(doctor::Arguments),
    /// Watch a running relay in the terminal: its problems, its senders, its queue and its outputs
    Top(top::Arguments),
    /// Print which users, verbs, resources and so on account for the bytes that relays accept, over
    /// the last hour or the last 24 hours
    Volume(volume::Arguments),
    /// Wait until a running relay has delivered the events in its queue: exit status 0 if it has, 1
    /// if that takes too long
    Drain {
        #[command(flatten)]
        relay: healthcheck::Relay,
        /// Wait at most this many seconds
        #[arg(long, default_value_t = 60, value_name = "N", value_parser = whole(0..=u64::MAX, "a whole number of seconds, 0 or more, such as 60"))]
        seconds: u64,
    },
    /// Show the events that a running relay sends, live and redacted. Requires
    /// admin.tap_token_file in the relay's config
    Tap(tap::Arguments),
}

/// The commands that read the config file, and therefore have the option `--config`, with the help
/// of the option. Without a command, the program does what `run` does.
const READ_CONFIG: [(&str, &str); 9] = [
    ("run", OR_DEFAULT),
    ("check", "The TOML file; the same as FILE"),
    ("config", OR_DEFAULT),
    ("healthcheck", FOR_THE_ADDRESS),
    ("doctor", FOR_THE_ADDRESS),
    ("drain", FOR_THE_ADDRESS),
    ("top", FOR_THE_ADDRESS),
    ("volume", FOR_THE_ADDRESS),
    ("tap", "The TOML file with admin.address and admin.tap_token_file"),
];

/// The help of `--config` for commands that use the whole config.
const OR_DEFAULT: &str =
    "The TOML file; without one, a default with a listener on 127.0.0.1:3000 and output to stdout";

/// The help of `--config` for commands that ask a relay.
const FOR_THE_ADDRESS: &str = "The TOML file; its admin.address is used if no URL is given";

/// The name of the option `--config`.
const CONFIG: &str = "config";

/// The variable that names the config file if the command line does not.
const CONFIG_VARIABLE: &str = "KUBE_AUDIT_FORWARDER_CONFIG";

/// The config file that the command line and the environment name.
struct ConfigFile {
    option: Option<PathBuf>,
    variable: Option<PathBuf>,
}

impl ConfigFile {
    /// Returns the file to use: the option wins over the variable. `None`: neither names a file.
    fn path(&self) -> Option<&Path> {
        self.option.as_deref().or(self.variable.as_deref())
    }

    /// Returns the file to use for a command that also takes the file as an argument. `argument`
    /// wins over the variable, and must not contradict the option. If it does, prints that, and
    /// `Err` is the exit status.
    fn with<'a>(
        &'a self,
        command: &str,
        argument: Option<&'a Path>,
    ) -> Result<Option<&'a Path>, u8> {
        if let (Some(file), Some(option)) = (argument, self.option.as_deref())
            && file != option
        {
            let (file, option) = (shown(file), shown(option));
            let what =
                format!("{command} takes one config: {file}, or --config {option}, not both");
            return Err(wrong(what));
        }
        Ok(argument.or_else(|| self.path()))
    }
}

/// Returns the whole command line: every command with its options and with its examples. Besides
/// the program itself, only the commands of [`READ_CONFIG`] have `--config`.
fn command() -> clap::Command {
    let option = |help| {
        Arg::new(CONFIG)
            .long("config")
            .env(CONFIG_VARIABLE)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .display_order(0)
            .help(help)
    };
    let mut command = Arguments::command().arg(option(OR_DEFAULT));
    for (name, help) in READ_CONFIG {
        command = command.mut_subcommand(name, |it| it.arg(option(help)));
    }
    help::add(command)
}

/// Returns the config file that the parsed command line names. `--config` may stand before the
/// command or after it, and the one after it wins.
///
/// # Errors
///
/// The option stands before a command that reads no config.
fn config_file(
    command: &mut clap::Command,
    matches: &ArgMatches,
) -> clap::error::Result<ConfigFile> {
    let from = |matches: &ArgMatches, source| {
        let is_from = matches.value_source(CONFIG) == Some(source);
        matches.get_one::<PathBuf>(CONFIG).filter(|_| is_from).cloned()
    };
    let before = from(matches, ValueSource::CommandLine);
    let variable = from(matches, ValueSource::EnvVariable);
    match matches.subcommand() {
        Some((name, matches)) if READ_CONFIG.iter().any(|(other, _)| *other == name) => {
            let option = from(matches, ValueSource::CommandLine).or(before);
            Ok(ConfigFile { option, variable: from(matches, ValueSource::EnvVariable) })
        }
        Some((name, _)) if before.is_some() => {
            let message = format!("the command '{name}' reads no config: remove '--config'");
            Err(command.error(ErrorKind::ArgumentConflict, message))
        }
        Some(_) | None => Ok(ConfigFile { option: before, variable }),
    }
}

/// Runs the command that the process's command line names, and returns the process's exit status.
pub fn main() -> ExitCode {
    ExitCode::from(run_with(std::env::args_os()))
}

/// Runs the command that these arguments name, and returns the exit status. The first argument is
/// the name of the program. If the arguments do not parse, or for options such as `--help`, the
/// function ends the process.
pub fn run_with(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let (mut command, words) = (command(), Vec::from_iter(arguments));
    let parsed = command.try_get_matches_from_mut(&words).and_then(|matches| {
        let file = config_file(&mut command, &matches)?;
        Ok((Arguments::from_arg_matches(&matches)?, file))
    });
    let (arguments, config_file) =
        parsed.unwrap_or_else(|error| explained(error, &command, &words).exit());
    let file = config_file.path();
    let result = match arguments.command.unwrap_or(Command::Run { file: None }) {
        Command::Run { file } => config_file.with("run", file.as_deref()).and_then(run),
        Command::Check(arguments) => check::run(&arguments, &config_file),
        Command::Config { reference: true } => print(&config::reference(outputs::TYPES)),
        Command::Config { reference: false } => show(file),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Migrate(command) => migrate::run(&command),
        Command::Queue(command) => queue::run(&command),
        Command::Evidence(command) => evidence::run(&command),
        Command::Policy(command) => policy::run(&command),
        Command::Completions { shell } => documents::completions(shell, command),
        Command::Man { directory } => documents::man(directory.as_deref(), command),
        Command::Version { verbose: true } => print(&command.render_long_version()),
        Command::Version { verbose: false } => print(&command.render_version()),
        Command::Healthcheck(relay) => healthcheck::run(&relay, file),
        Command::Doctor(arguments) => doctor::run(&arguments, file),
        Command::Top(arguments) => top::run(&arguments, file),
        Command::Volume(arguments) => volume::run(&arguments, file),
        Command::Drain { relay, seconds } => drain::run(&relay, seconds, file),
        Command::Tap(arguments) => tap::run(&arguments, file),
    };
    result.err().unwrap_or(0)
}

/// Adds a tip to an error about the command line: the help of the option with the wrong value, or
/// the list of the commands if there is no such command.
fn explained(mut error: clap::Error, all: &clap::Command, words: &[OsString]) -> clap::Error {
    let at = words.iter().fold(all, |at, word| at.find_subcommand(word).unwrap_or(at));
    let named = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let named = at.get_arguments().find(|it| it.to_string() == named).and_then(Arg::get_help);
    let tip = match (error.kind(), named, error.get(ContextKind::SuggestedSubcommand)) {
        (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(help), _) => help.clone(),
        (ErrorKind::InvalidSubcommand, _, None) => {
            let names: Vec<_> = at.get_subcommands().map(clap::Command::get_name).collect();
            format!("what there is: {}", names.join(", ").replace(", help", "")).into()
        }
        _ => return error,
    };
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    error
}

/// Checks an input that the command line names: the file or directory must exist, and it must be
/// possible to open a regular file. A pipe is not opened, because that is possible only once. `-`
/// is standard input and needs no check. `what` is a short description, such as `the config`. If
/// there is a fault, this function prints it, and `Err` is the exit status.
fn input(path: &Path, what: &str) -> Result<(), u8> {
    if path.as_os_str() == "-" {
        return Ok(());
    }
    let found = std::fs::metadata(path).and_then(|found| match found.is_file() {
        true => std::fs::File::open(path).map(drop),
        false => Ok(()),
    });
    found.map_err(|error| cannot_read(path, what, &error))
}

fn failed(why: impl std::fmt::Display) -> u8 {
    eprintln!("{why}");
    FAILED
}

fn wrong(what: impl std::fmt::Display) -> u8 {
    eprintln!("{what}");
    WRONG
}

/// Reads a whole file that the command line names; `-` is standard input. It is an error if the
/// file has more than `bytes_max` bytes.
fn read_input(file: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    match file == Path::new("-") {
        true => named_file::whole(std::io::stdin(), bytes_max),
        false => named_file::read_of_command(file, bytes_max),
    }
}

/// Returns the parser of an option whose value is a whole number in this range.
fn whole(
    range: RangeInclusive<u64>,
    allowed: &'static str,
) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("allowed: {allowed}"))
    }
}

/// Returns the parser of an option whose value is a time from `least` to `most`.
fn time_within(
    least: &'static str,
    most: &'static str,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| match config::time(text)? {
        time if time < config::time(least)? || time > config::time(most)? => {
            Err(format!("allowed: {least} to {most}"))
        }
        time => Ok(time),
    }
}

/// Prints that a file or directory cannot be read, and returns the exit status. `what` is a short
/// description, such as `the config`. The control characters of the name are escaped.
fn cannot_read(path: &Path, what: &str, error: &std::io::Error) -> u8 {
    wrong(format_args!("{}: cannot read {what}: {error}", shown(path)))
}

/// Returns the rows as a table, one line of text for each row. Each column is as wide as its widest
/// cell. No line ends with spaces.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn shown(file: &Path) -> String {
    escape::message(&file.to_string_lossy())
}

/// Reads the config file, or takes the built-in default config if `file` is `None`. Returns the
/// text of the config and the name of the config for messages. If the file cannot be read, `Err` is
/// the exit status.
fn read(file: Option<&Path>) -> Result<(String, String), u8> {
    let Some(file) = file else {
        return Ok((config::EMBEDDED.to_owned(), "embedded default".to_owned()));
    };
    let (regular, whole) = (file.to_owned(), file.to_owned());
    // Reading a pipe has no time limit, because its writer may be slow.
    let content = match in_time(move || named_file::is_regular(&regular))? {
        true => in_time(move || named_file::read(&whole, config::FILE_BYTES_MAX))?,
        false => named_file::read_of_command(file, config::FILE_BYTES_MAX),
    };
    let invalid =
        |_| std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not text (UTF-8)");
    match content.and_then(|content| String::from_utf8(content).map_err(invalid)) {
        Ok(text) => Ok((text, shown(file))),
        Err(error) => Err(cannot_read(file, "the config", &error)),
    }
}

/// Runs `work`, which uses files, on a thread of its own, and returns its result. If `work` takes
/// longer than [`named_file::WAIT_MAX`], prints which files are being read, and `Err` is the exit
/// status.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, u8> {
    let (done, result) = std::sync::mpsc::channel();
    let worker = std::thread::Builder::new().spawn(move || done.send(work()).ok());
    let worker = worker.map_err(|error| failed(format_args!("cannot start a thread: {error}")))?;
    match result.recv_timeout(named_file::WAIT_MAX) {
        Ok(result) => Ok(result),
        Err(RecvTimeoutError::Timeout) => {
            let (limit, names) = (named_file::WAIT_MAX, named_file::names_of_files_being_read());
            let why =
                format!("the file system has not responded within {limit:?}: cannot read {names}");
            Err(failed(why))
        }
        // The thread has panicked, which is a fault of the program.
        Err(RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => Err(FAILED),
        },
    }
}

/// Prints every problem of the config. `Err` is the exit status if one of the problems is an error
/// or a fault.
fn report(checked: &Checked, name: &str) -> Result<(), u8> {
    for problem in &checked.problems {
        eprintln!("{}", problem.render(name));
    }
    if checked.problems.iter().any(Problem::is_error) { Err(WRONG) } else { Ok(()) }
}

fn show(file: Option<&Path>) -> Result<(), u8> {
    let (text, name) = read(file)?;
    let checked = in_time(move || config::read(&text, outputs::TYPES))?;
    report(&checked, &name)?;
    print(&checked.effective())
}

/// Writes a text to standard output. `Err` is the exit status if that fails. It is not a failure if
/// the reader has closed the pipe early, as `head` does.
fn print(text: &str) -> Result<(), u8> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(failed(format_args!("cannot write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, u8> {
    build_runtime(0).map_err(|error| failed(format_args!("cannot start the runtime: {error}")))
}

/// Makes a runtime with this number of worker threads. If `workers` is 0, the number of cores
/// decides.
fn build_runtime(workers: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let by_cores = (cores / CORES_PER_WORKER).clamp(1, WORKERS_MAX);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(if workers == 0 { by_cores } else { workers })
        .thread_keep_alive(IDLE_THREAD)
        .enable_all()
        .build()
}

fn run(file: Option<&Path>) -> Result<(), u8> {
    let (text, name) = read(file)?;
    let checked = in_time(move || {
        let checked = config::read(&text, outputs::TYPES);
        let mut problems = relay::check::files(&checked);
        problems.extend(relay::check::room(&checked));
        // `State::tell` logs what is missing under `best_effort`.
        let kernel = relay::check::kernel(&checked);
        problems.extend(kernel.filter(|problem| problem.severity == Severity::Error));
        problems.extend(relay::check::memory(&checked, telemetry::memory_limit()));
        checked.with(problems).strict()
    })?;
    let Some(config) = &checked.config else {
        report(&checked, &name)?;
        return Err(WRONG);
    };
    // The threads that are started from here on inherit the restriction.
    let restricted = restrict::before_threads(file, &checked.files, config)?;
    telemetry::start_log(config.log)
        .map_err(|error| failed(format_args!("cannot start the log: {error}")))?;
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
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        scanner = Isa::best().name(),
        config = name,
        "the relay is starting"
    );
    let result = restricted.and_then(|state| {
        state.tell();
        run_relay(file, config.clone())
    });
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
    let runtime = build_runtime(config.workers)
        .map_err(|error| relay::Error::Run(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(async {
        let heard = Heard::new()
            .map_err(|error| relay::Error::Run(format!("cannot listen for signals: {error}")))?;
        let Heard { first, second, reload, listening } = heard;
        let (stopped, aborted) = (first.cancelled_owned(), second.cancelled_owned());
        let signals = relay::Signals { stopped, aborted, reload, opened: None };
        let running = relay::run(file.map(Path::to_path_buf), config, manual::PAGES, signals);
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

/// The time after the first SIGTERM, SIGINT or SIGQUIT in which a second one counts as the same
/// signal. timeout(1), for example, sends its signal to its child and then to the child's process
/// group, so that the child gets the signal twice.
const TWICE: Duration = Duration::from_millis(10);

/// The greatest number of requests to reload (SIGHUP) that wait while a reload runs. If this many
/// requests wait, a further request is ignored. The newest config is still read, because the
/// waiting reloads start after the ignored request.
const RELOADS: usize = 16;

/// The signals that would end the process without a word, and have no meaning for it. SIGXFSZ comes
/// when a file reaches the limit of its size (`ulimit -f`). The write then also fails, with EFBIG.
const UNUSED: [(Signal, &str); 10] = [
    (Signal::ALARM, "SIGALRM"),
    (Signal::IO, "SIGIO"),
    (Signal::POWER, "SIGPWR"),
    (Signal::PROF, "SIGPROF"),
    (Signal::STKFLT, "SIGSTKFLT"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::USR2, "SIGUSR2"),
    (Signal::VTALARM, "SIGVTALRM"),
    (Signal::XCPU, "SIGXCPU"),
    (Signal::XFSZ, "SIGXFSZ"),
];

/// An unused signal is logged once in this time.
const UNUSED_AGAIN: Duration = Duration::from_secs(60);

/// Receives the signals of this process. The first SIGTERM, SIGINT or SIGQUIT cancels `first`, and
/// another one, at least [`TWICE`] later, cancels `second`. `reload` gets the requests by SIGHUP.
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
        let (mut terminate, mut interrupt, mut quit) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::quit())?,
        );
        let unused = UNUSED.map(|(raw, name)| {
            signal(SignalKind::from_raw(raw.as_raw())).map(|unused| (name, unused))
        });
        let mut unused = unused.into_iter().collect::<std::io::Result<Vec<_>>>()?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (asked, reload) = mpsc::channel(RELOADS);
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let (for_task, ended) = ((first.clone(), second.clone()), first.clone().drop_guard());
        let listening = TaskTracker::new().spawn(async move {
            let ((first, second), _ended) = (for_task, ended);
            let mut heard: Option<Instant> = None;
            let mut told = BTreeMap::<_, Instant>::new();
            loop {
                let any_unused = poll_fn(|cx| {
                    let mut names = unused.iter_mut();
                    let heard =
                        names.find_map(|(name, it)| it.poll_recv(cx).is_ready().then_some(*name));
                    heard.map_or(Poll::Pending, Poll::Ready)
                });
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = quit.recv() => {}
                    name = any_unused => {
                        if told.get(name).is_none_or(|at| at.elapsed() >= UNUSED_AGAIN) {
                            told.insert(name, Instant::now());
                            tracing::warn!(
                                signal = name,
                                "the relay ignores this signal: it has no meaning for it"
                            );
                        }
                        continue;
                    }
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
