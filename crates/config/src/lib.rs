//! Reads and checks the config file. One run reports all problems of the file.
//!
//! The function [`read`] does this. A top-level table of the file has a module here. Its three
//! parts are: the struct of the settings, the reading of its keys, and the checks for keys that
//! contradict each other. Only the small tables `[volume]` and `[shutdown]` are read in this file.
//!
//! This crate promises that the values of a [`Config`] are typed and checked, so that no part of
//! the relay checks them again. It imports `config-table`, `transform` (policies and rules of a
//! filter) and `evidence-log` (keys of the log). What must never happen here: a host name is
//! resolved, a connection is opened, or a certificate is judged (the module `check` does the last).
//!
//! A new key needs two things: a field of its struct, and one call in the function that reads its
//! table. That call also declares the key for the effective config (all values, with defaults), for
//! the config reference, and for the error messages; see [`config_table::table::Table`].
//!
//! The types of outputs are not part of this crate. The file of each type in `crates/outputs/src`
//! declares its keys in the same way, as [`OutputSettings`] describes.
//!
//! Each file of this crate is on a floor, and imports only from the floors below:
//!
//! | floor | files | content |
//! |---|---|---|
//! | 1 | `targets` | addresses of outputs |
//! | 2 | `compression` `delivery` `filter` `log` `messages` `process` `protocol` `tls` | sections, and the interface for types of output |
//! | 3 | `kafka` `listener` `output` `stream` | tables, and keys that several types of output share |
//! | 4 | `admin` `http` `queue` | tables with the keys of a listener or an output · keys that the HTTP outputs share |
//! | 5 | `dead_letter` `evidence` `limits` `source` | tables that depend on the queue |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod admin;
mod compression;
mod dead_letter;
mod delivery;
mod evidence;
mod filter;
mod http;
mod kafka;
mod limits;
mod listener;
mod log;
mod messages;
mod output;
mod process;
mod protocol;
mod queue;
mod source;
mod stream;
mod targets;
mod tls;

use config_table::table::Table;
use config_table::{print, reader, table, values};

pub use admin::Admin;
pub use compression::Compression;
pub use config_table::problem::{Content, Named, Need, Problem, Severity};
pub use config_table::template::{
    ExpandError, Template, credential, read_credential, read_secret, read_token,
    read_token_of_command,
};
pub use config_table::values::{
    BatchBytes, HostPort, header_name, header_value, host_port, printable, proxy_url, server_name,
    show_size, show_time, size, time, url, user_name,
};
pub use dead_letter::DeadLetter;
pub use delivery::{BatchLimits, Rejected, Retry, Timeouts};
pub use evidence::{Evidence, Witness};
pub use filter::{Filter, read_match};
pub use http::{BasicAuth, HttpClient, HttpKeys};
#[cfg(not(feature = "kafka"))]
pub use kafka::without_kafka;
pub use kafka::{Kafka, KafkaTopic, Sasl, SaslMechanism};
pub use limits::Limits;
pub use listener::{Listener, ListenerTls};
pub use log::{Log, LogFormat};
pub use messages::Messages;
pub use messages::machine_name;
pub use output::Output;
pub use process::Restrict;
pub use protocol::{OutputKind, OutputSettings, OutputType};
pub use queue::{Acknowledge, BATCH_OVERHEAD, Queue, WhenFull};
pub use source::{KafkaSource, Source, SourceKind};
pub use stream::{Strategy, Stream};
pub use targets::Target;
pub use tls::{ClientTls, TlsVersion};

/// The maximum size of a config file in bytes, which is also that of a ConfigMap.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The config that the command `run` uses if the user names no config file.
pub const EMBEDDED: &str = r#"[[listener]]
address = "127.0.0.1:3000"

[[output]]
name = "stdout"
type = "stdout"

[admin]
address = "127.0.0.1:9090"
"#;

/// The result of reading a config file.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The config. `None` if there is an error, or if the file of a `${file:…}` cannot be read,
    /// except in a string that may be a secret. No other missing file has an effect here.
    pub config: Option<Config>,
    /// All problems, sorted by their position in the config file.
    pub problems: Vec<Problem>,
    /// The paths of all files that the config names, sorted: certificates, keys, secrets and the
    /// files of `${file:…}`. The list is filled even if `config` is `None`.
    pub files: Vec<PathBuf>,
    /// The keys whose values are paths of files or directories, in the order of reading. The list
    /// is filled even if `config` is `None`.
    pub named: Vec<Named>,
    effective: String,
    /// The line and the column of each value and table header, by path: `output[0].name`.
    places: BTreeMap<String, (usize, usize)>,
    /// The path of each output's table, such as `output[0]`, with the output's name as messages
    /// show it. `None`: the output has no usable name.
    outputs: Vec<(String, Option<String>)>,
}

impl Checked {
    /// Returns the config as TOML, with the default of each key that the file does not set, and
    /// each `${…}` unexpanded. Reading the text gives the same config, unless a problem is an
    /// error.
    pub fn effective(&self) -> String {
        self.effective.clone()
    }

    /// Returns a problem at the value of `key`, or else at the innermost table around `key`, or
    /// line 1.
    pub fn problem(&self, key: &str, message: impl Into<String>, severity: Severity) -> Problem {
        let place = reader::enclosing(key).find_map(|path| self.places.get(path));
        let (line, column) = place.copied().unwrap_or((1, 1));
        let (path, output) = (key.to_owned(), output::name_of(&self.outputs, key));
        Problem { line, column, path, message: message.into(), severity, output }
    }

    /// Adds problems that were found after the reading, such as a broken certificate in a named
    /// file. An error among them makes `config` `None`.
    pub fn with(mut self, problems: Vec<Problem>) -> Self {
        let failed = problems.iter().any(|problem| problem.severity == Severity::Error);
        self.config = self.config.filter(|_| !failed);
        self.problems.extend(problems);
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self
    }

    /// Turns each problem about a missing file into an error, for callers that need the files now.
    /// If there is one, `config` becomes `None`. The files of the admin address are no such case
    /// ([`Need::Admin`]): their problems become faults.
    pub fn strict(mut self) -> Self {
        let is_of_admin = |key: &str| {
            self.named.iter().any(|named| named.need == Need::Admin && named.key == key)
        };
        for problem in &mut self.problems {
            if problem.severity == Severity::MissingFile {
                problem.severity = match is_of_admin(&problem.path) {
                    true => Severity::Fault,
                    false => Severity::Error,
                };
            }
            if problem.severity == Severity::Error {
                self.config = None;
            }
        }
        self
    }
}

/// Reads and checks the text of a config file, with the environment variables of this process.
/// `types` are the types of output that the config may use.
pub fn read(text: &str, types: &[OutputType]) -> Checked {
    read_with(text, types, &|name| std::env::var(name).ok())
}

/// Does what [`read`] does, but `env` replaces the environment of the process: it returns the value
/// of a variable, or `None` if it is not set.
pub fn read_with(
    text: &str,
    types: &[OutputType],
    env: &dyn Fn(&str) -> Option<String>,
) -> Checked {
    // Editors on Windows begin a file with U+FEFF, which would shift the columns of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (cx, table) = reader::Context::new(text, env);
    let mut outputs = Vec::new();
    let config = whole(&cx, table, types, &mut outputs);
    let effective = print::effective(&cx.items.borrow());
    let is_complete = !cx.incomplete.get();
    let spots = cx.spots.borrow().clone();
    let places = spots.into_iter().map(|(path, at)| (path, cx.place(at))).collect();
    let mut files = cx.files.take();
    files.sort_unstable();
    files.dedup();
    let (named, mut problems) = (cx.named.take(), cx.problems());
    for problem in &mut problems {
        problem.output = output::name_of(&outputs, &problem.path);
    }
    let failed = problems.iter().any(|problem| problem.severity == Severity::Error);
    let config = config.filter(|_| !failed && is_complete);
    Checked { config, problems, files, named, effective, places, outputs }
}

/// Reads only the section `[admin]`. Commands that ask a running relay, such as `healthcheck` and
/// `top`, can thus find the relay even if the config file now has a mistake in another section.
///
/// # Errors
///
/// The problems of the section, and the syntax errors of the file.
pub fn admin_of(text: &str) -> Result<Admin, Vec<Problem>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let env = |name: &str| std::env::var(name).ok();
    let (cx, table) = reader::Context::new(text, &env);
    let (_, admin) = admin::read(&mut Table::root(&cx, table));
    let as_error = |problem| Problem { severity: Severity::Error, ..problem };
    admin.ok_or_else(|| cx.problems().into_iter().map(as_error).collect())
}

/// Returns the output of `config --reference`: a Markdown table of all keys.
pub fn reference(types: &[OutputType]) -> String {
    let names: Vec<_> = types.iter().map(|it| it.name).collect();
    print::reference(&entries(types), &names)
}

/// A complete and valid config: the settings of all tables of the config file.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Each `[[listener]]`, an address for requests. There is at least one listener or source.
    pub listeners: Vec<Listener>,
    /// Each `[[source]]`, such as a Kafka topic from which the relay reads events.
    pub sources: Vec<Source>,
    /// `[limits]`: the limits of requests and connections.
    pub limits: Limits,
    /// `[queue]`: the queue that holds the events until the outputs have finished them.
    pub queue: Queue,
    /// Each `[[output]]`, to which the relay sends the events. At least one output is required.
    pub outputs: Vec<Output>,
    /// `[dead_letter]`: the files for events that an output has given up.
    pub dead_letter: DeadLetter,
    /// `[evidence]`: the log, if there is one, that proves which events were received.
    pub evidence: Option<Evidence>,
    /// `[admin]`: the address and the tokens of metrics, health checks and the status page.
    pub admin: Admin,
    /// `[log]`: the level and the format of the log.
    pub log: Log,
    /// `volume.enabled`: whether the relay counts who causes the bytes that it receives.
    pub volume: bool,
    /// `process.restrict`: whether the process gives up rights that it does not need.
    pub restrict: Restrict,
    /// `process.workers`: the number of worker threads. 0: the number of cores decides.
    pub workers: usize,
    /// `process.state_directory`: the directory in which a process tells the next one how it ended.
    /// `None` for the queue's directory, if there is one.
    pub state_directory: Option<PathBuf>,
    /// `shutdown.drain_timeout`: the maximum time that the relay takes to end after SIGTERM. In it,
    /// the relay finishes its requests, and empties a queue in memory. From a queue with a
    /// directory, it takes nothing more: the next process sends the rest.
    pub drain_timeout: Duration,
}

impl Config {
    /// Returns `process.state_directory`, or else the queue's directory. `None`: there is neither,
    /// and no process learns how the one before it ended.
    pub fn directory_of_state(&self) -> Option<&Path> {
        self.state_directory.as_deref().or(self.queue.directory.as_deref())
    }

    /// Returns `dead_letter.directory`, or else `dead-letter` in the queue's directory. If neither
    /// directory is configured, dead letters are dropped.
    pub fn dead_letter_directory(&self) -> Option<PathBuf> {
        let below = || self.queue.directory.as_ref().map(|queue| queue.join("dead-letter"));
        self.dead_letter.directory.clone().or_else(below)
    }
}

/// Reads all tables of the config file, and records their problems in `cx`. If one of the problems
/// is an error, the result must not be used. Returns `None` only if there is such an error or a
/// missing `${file:…}`. Adds the path of each output's table to `names`, with the output's name.
///
/// The order of the calls is the order of the tables in the effective config and in the reference.
fn whole<'a>(
    cx: &reader::Context<'a>,
    table: toml::de::DeTable<'a>,
    types: &[OutputType],
    names: &mut Vec<(String, Option<String>)>,
) -> Option<Config> {
    let mut t = Table::root(cx, table);
    let has_input = t.has_any("listener") || t.has_any("source");
    let listeners = t.sections_if_any("listener", listener::read);
    let sources = t.sections_if_any("source", source::read);
    let mut limits = t.section("limits", limits::read);
    let queue = t.section("queue", queue::read);
    let filter = filter::filter(&mut t, None);
    // A source only repeats a message after a restart, so it can wait.
    let is_awaited = queue.acknowledge == Acknowledge::Delivered && !listeners.is_empty();
    let outputs = t.sections("output", |t| output::read(t, types, is_awaited, &|| entries(types)));
    names.extend(outputs.iter().map(|draft| (draft.path.clone(), draft.shown_name(cx))));
    let dead_letter = t.section("dead_letter", dead_letter::read);
    let meaning = "if present, the relay keeps a log that proves which events it received; \
                   requires `queue.directory`; changes require a restart";
    let key = table::optional("evidence", table::TABLE, "no log", meaning);
    let evidence = t.optional_section(key, evidence::read);
    let (admin_addresses, admin) = admin::read(&mut t);
    let volume = t.section("volume", volume);
    let log = t.section("log", log::read);
    let (restrict, workers, state_directory) = t.section("process", process::read);
    let drain_timeout = t.section("shutdown", drain_timeout);
    t.refuse_rest(&|_| None);

    limits.max_body = limits::effective_max_body(cx, &limits, &queue);
    if !has_input && cx.are_known(&["listener", "source"]) {
        cx.error("listener", "is required: one or more [[listener]] or [[source]]");
    }
    queue::contradictions(cx, &queue, &outputs);
    evidence::contradictions(cx, matches!(evidence, Some(Some(_))));
    source::contradictions(cx, &queue, &sources);
    listener::contradictions(cx, &listeners, &admin_addresses);
    admin::contradictions(cx, &admin_addresses);
    output::contradictions(cx, &outputs, evidence.is_some());
    output::warn_of_large_events(cx, &outputs);
    if is_awaited {
        output::warn_of_long_waits(cx, &outputs);
    }
    let own = listener::own_addresses(&listeners, &admin_addresses);
    targets::warn(cx, &own, outputs.iter().filter_map(output::Draft::targets));
    dead_letter::warn_without_directory(cx, &dead_letter, &outputs);

    Some(Config {
        listeners: listeners.into_iter().map(|(_, listener)| listener).collect::<Option<_>>()?,
        sources: sources.into_iter().map(|(_, source)| source).collect::<Option<_>>()?,
        limits,
        queue,
        outputs: output::with_filter(&filter?, outputs)?,
        dead_letter,
        evidence: table::whole(evidence)?,
        admin: admin?,
        volume,
        log: log?,
        restrict,
        workers,
        state_directory,
        drain_timeout,
    })
}

fn volume(t: &mut Table<'_, '_>) -> bool {
    let meaning = "count incoming bytes by user, verb and resource (GET /status/volume)";
    t.flag("enabled", true, meaning)
}

fn drain_timeout(t: &mut Table<'_, '_>) -> Duration {
    t.time(
        "drain_timeout",
        values::secs(20),
        ..,
        "time after SIGTERM to finish open requests and deliveries",
    )
}

/// Returns a config with every type of output and source, and with every section that is read only
/// if it is present. Required values are missing: the text is read only to declare every key.
pub fn sample(types: &[OutputType]) -> String {
    let filter = "filter = { match = [{ resources = [{}] }], redact = [{}] }";
    // A required output that collects events contradicts the value of `queue.acknowledge` below.
    let output = |OutputType { name, sample, collects, .. }: &OutputType| {
        let required = !collects;
        format!("[[output]]\n{filter}\ntype = '{name}'\nrequired = {required}\n{sample}\n")
    };
    let outputs: String = types.iter().map(output).collect();
    format!(
        "{filter}\n[[listener]]\ntls = {{}}\n{outputs}[[source]]\ntype = 'kafka'\ntls = {{}}\n\
         sasl = {{}}\n[queue]\nacknowledge = 'delivered'\n[evidence]\n[admin]\ntls = {{}}\n"
    )
}

/// Returns the declarations of all keys, for the config reference, and for the error message about
/// a key that only another type of output has.
fn entries(types: &[OutputType]) -> Vec<reader::Entry> {
    let text = sample(types);
    let (cx, table) = reader::Context::new(&text, &|_| None);
    whole(&cx, table, types, &mut Vec::new());
    print::merged(cx.items.into_inner())
}
