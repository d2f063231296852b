//! The config file: every key with its kind, default and range, and every problem at once.
//!
//! [`read`] is the only way in. Each table of the file has a module here: its struct, the reading
//! of its keys, and what its keys contradict. Beyond this module values are checked and typed, so
//! that nobody checks them twice. Three things are not done here: the files that a config names are
//! looked for, but what is in them is not judged (`check` does that); names are not resolved; and
//! nothing is connected.
//!
//! A new key is one call in the function that reads its table, beside a field of the struct. The
//! effective config, the reference and the messages follow from that call; see [`table::Table`].
//!
//! A type of output is no part of this module: its file in `src/output` declares its keys by the
//! same means, as [`OutputSettings`] describes.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `literal` `problem` `template` `values` | TOML as text · problems · `${…}` · sizes, times, names |
//! | 2 | `reader` | one reading: positions and records |
//! | 3 | `print` `table` `targets` | what is printed · tables and keys · addresses of outputs |
//! | 4 | `compression` `delivery` `filter` `log` `messages` `protocol` `tls` | sections, and the interface for types of output |
//! | 5 | `kafka` `listener` `output` `stream` | tables, and keys that several types of output share |
//! | 6 | `http` `queue` | as above |
//! | 7 | `dead_letter` `limits` `source` | tables that depend on the queue |

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod compression;
mod dead_letter;
mod delivery;
mod filter;
mod http;
mod kafka;
mod limits;
mod listener;
mod literal;
mod log;
mod messages;
mod output;
mod print;
mod problem;
mod protocol;
mod queue;
mod reader;
mod source;
mod stream;
pub mod table;
mod targets;
mod template;
mod tls;
mod values;

#[cfg(test)]
mod tests;

use table::Table;

pub use compression::Compression;
pub use dead_letter::DeadLetter;
pub use delivery::BatchLimits;
pub use delivery::Rejected;
pub use delivery::Retry;
pub use delivery::Timeouts;
pub use filter::Filter;
pub use http::BasicAuth;
pub use http::HttpClient;
pub use http::HttpKeys;
pub use kafka::Kafka;
pub use kafka::KafkaTopic;
pub use kafka::Sasl;
pub use kafka::SaslMechanism;
#[cfg(not(feature = "kafka"))]
pub(crate) use kafka::without_kafka;
pub use limits::Limits;
pub use listener::Listener;
pub use listener::ListenerTls;
pub use log::Log;
pub use log::LogFormat;
pub use log::LogLevel;
pub use messages::Messages;
pub use output::Output;
pub use problem::Content;
pub use problem::Named;
pub use problem::Problem;
pub use problem::Severity;
pub use protocol::OutputKind;
pub use protocol::OutputSettings;
pub use protocol::OutputType;
pub use queue::Acknowledge;
pub use queue::BATCH_OVERHEAD;
pub use queue::Queue;
pub use queue::WhenFull;
pub use source::KafkaSource;
pub use source::Source;
pub use source::SourceKind;
pub use stream::Strategy;
pub use stream::Stream;
pub use targets::Target;
pub use template::ExpandError;
pub use template::Template;
pub use template::read_secret;
pub use template::read_token;
pub use tls::ClientTls;
pub use tls::TlsVersion;
pub use values::HostPort;
pub use values::header_name;
pub use values::header_value;
pub use values::host_port;
pub use values::printable;
pub use values::proxy_url;
pub use values::server_name;
pub use values::size;
pub use values::time;
pub use values::url;
pub use values::user_name;

/// The config that `run` uses if no file is named.
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
    /// The config. `None` if one of the problems is an error, or if a setting comes from a
    /// `${file:…}` that is missing. Other missing files leave a config.
    pub config: Option<Config>,
    /// All problems, by their position in the file.
    pub problems: Vec<Problem>,
    /// All files that the config names, sorted: certificates, keys, secrets, `${file:…}`. They are
    /// known even if there is no config.
    pub files: Vec<PathBuf>,
    /// The audit policies among the files.
    pub policies: BTreeSet<PathBuf>,
    /// The keys that name files and directories, in the order of reading. They are known even if
    /// there is no config.
    pub named: Vec<Named>,
    /// The text that [`Checked::effective`] returns: the config as TOML with all defaults.
    effective: String,
    /// Line and column of each value and table header in the file, by the path of its key.
    places: BTreeMap<String, (usize, usize)>,
}

impl Checked {
    /// The config as TOML with every default filled in, and with each `${…}` unexpanded. Reading it
    /// gives the same config. The text means nothing if one of the problems is an error.
    pub fn effective(&self) -> String {
        self.effective.clone()
    }

    /// A problem of the key `key`, at the position of its value. If the file does not set the key,
    /// the position is that of the innermost table around it.
    #[must_use]
    pub fn problem(&self, key: &str, message: impl Into<String>, severity: Severity) -> Problem {
        let place = reader::enclosing(key).find_map(|path| self.places.get(path));
        let (line, column) = place.copied().unwrap_or((1, 1));
        Problem { line, column, path: key.to_owned(), message: message.into(), severity }
    }

    /// Adds problems that were found later, in the files that the config names. An error among them
    /// takes the config away.
    #[must_use]
    pub fn with(mut self, problems: Vec<Problem>) -> Self {
        let failed = problems.iter().any(|problem| problem.severity == Severity::Error);
        self.config = self.config.filter(|_| !failed);
        self.problems.extend(problems);
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self
    }

    /// Turns each missing file into an error, for callers that need the files now. The config is
    /// taken away if there is one.
    #[must_use]
    pub fn strict(mut self) -> Self {
        for problem in &mut self.problems {
            if problem.severity == Severity::MissingFile {
                problem.severity = Severity::Error;
                self.config = None;
            }
        }
        self
    }
}

/// Reads a config file, with the environment variables of this process. `types` are the types of
/// output that a config may have.
pub fn read(text: &str, types: &[OutputType]) -> Checked {
    read_with(text, types, &|name| std::env::var(name).ok())
}

/// Reads a config file, with `env` as the environment: it returns the value of a variable, or
/// `None` if the variable is not set.
pub fn read_with(
    text: &str,
    types: &[OutputType],
    env: &dyn Fn(&str) -> Option<String>,
) -> Checked {
    // Editors on Windows begin a file with U+FEFF, which would shift the columns of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (cx, table) = reader::Context::new(text, env);
    let config = whole(&cx, table, types);
    let found = cx.finish();
    let failed = found.problems.iter().any(|problem| problem.severity == Severity::Error);
    let config = config.filter(|_| !failed && found.complete);
    Checked {
        config,
        problems: found.problems,
        files: found.files,
        policies: found.policies,
        named: found.named,
        places: found.places,
        effective: print::effective(&found.items),
    }
}

/// Reads `admin.address` alone, so that `healthcheck` and `drain` find a relay whose config file
/// has problems elsewhere by now.
///
/// # Errors
///
/// The problems of that key, and the syntax errors of the file, if the address can't be read.
pub fn admin_address(text: &str) -> Result<SocketAddr, Vec<Problem>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let env = |name: &str| std::env::var(name).ok();
    let (cx, table) = reader::Context::new(text, &env);
    let address = admin(&mut Table::root(&cx, table));
    let as_error = |problem| Problem { severity: Severity::Error, ..problem };
    address.ok_or_else(|| cx.finish().problems.into_iter().map(as_error).collect())
}

/// All keys with kind, default and meaning, as a Markdown table: `config --reference`.
pub fn reference(types: &[OutputType]) -> String {
    let names: Vec<_> = types.iter().map(|it| it.name).collect();
    print::reference(&entries(types), &names)
}

/// A whole, valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[[listener]]`. There is at least one listener or source.
    pub listeners: Vec<Listener>,
    /// `[[source]]`.
    pub sources: Vec<Source>,
    /// `[limits]`.
    pub limits: Limits,
    /// `[queue]`.
    pub queue: Queue,
    /// `[[output]]`. There is at least one, and at least one is required.
    pub outputs: Vec<Output>,
    /// `[dead_letter]`.
    pub dead_letter: DeadLetter,
    /// `admin.address`.
    pub admin: SocketAddr,
    /// `[log]`.
    pub log: Log,
    /// `shutdown.drain_timeout`.
    pub drain_timeout: Duration,
}

impl Config {
    /// The directory for dead letters: the configured one, else `dead-letter` below the queue's
    /// directory. `None`: neither is configured, and there are no dead letters.
    #[must_use]
    pub fn dead_letter_directory(&self) -> Option<PathBuf> {
        let below = || self.queue.directory.as_ref().map(|queue| queue.join("dead-letter"));
        self.dead_letter.directory.clone().or_else(below)
    }
}

/// Reads all tables of the file. The result means nothing if there is an error among the problems.
///
/// The order of the calls is the order of the effective config and of the reference.
fn whole<'a>(
    cx: &reader::Context<'a>,
    table: toml::de::DeTable<'a>,
    types: &[OutputType],
) -> Option<Config> {
    let mut t = Table::root(cx, table);
    let has_input = t.has_any("listener") || t.has_any("source");
    let listeners = t.sections_if_any("listener", listener::read);
    let sources = t.sections_if_any("source", source::read);
    let is_durable = t.sets("queue", "directory");
    let mut limits = t.section("limits", |t| limits::read(t, is_durable));
    let queue = t.section("queue", queue::read);
    let filter = filter::filter(&mut t);
    let outputs = t.sections("output", |t| output::read(t, types, &|| entries(types)));
    let dead_letter = t.section("dead_letter", dead_letter::read);
    let admin = admin(&mut t);
    let log = t.section("log", log::read);
    let drain_timeout = t.section("shutdown", drain_timeout);
    t.refuse_rest(|_| None);

    limits.max_body = limits::effective_max_body(cx, &limits, &queue);
    if !has_input {
        cx.error("listener", "is missing, allowed: one or more [[listener]] or [[source]]");
    }
    queue::contradictions(cx, &queue, &outputs);
    source::contradictions(cx, &queue, &sources);
    listener::contradictions(cx, &listeners, admin);
    output::contradictions(cx, &outputs);
    let own = listener::own_addresses(&listeners, admin);
    targets::warn(cx, &own, outputs.iter().filter_map(output::Draft::targets));
    dead_letter::warn_without_directory(cx, &dead_letter, &outputs);

    Some(Config {
        listeners: listeners.into_iter().map(|(_, listener)| listener).collect::<Option<_>>()?,
        sources: sources.into_iter().map(|(_, source)| source).collect::<Option<_>>()?,
        limits,
        queue,
        outputs: output::with_filter(&filter?, outputs)?,
        dead_letter,
        admin: admin?,
        log: log?,
        drain_timeout,
    })
}

/// Reads `[admin]`. `None`: the address has a problem.
fn admin(t: &mut Table<'_, '_>) -> Option<SocketAddr> {
    t.section("admin", |t| {
        t.word_or(
            ("address", "IP:PORT", "metrics, health and status page; GET only"),
            "127.0.0.1:9090",
            None,
            values::socket_address,
        )
    })
}

/// Reads `[shutdown]`.
fn drain_timeout(t: &mut Table<'_, '_>) -> Duration {
    t.time(
        "drain_timeout",
        values::secs(20),
        ..,
        "SIGTERM: time to answer what is under way and to empty the queue",
    )
}

/// A config with every section and every type of output and source. Its values are missing or
/// empty, which does not matter: reading it declares every key.
fn sample(types: &[OutputType]) -> String {
    let filter = "filter = { match = [{ resources = [{}] }], redact = [{}] }";
    let output = |OutputType { name, sample, .. }: &OutputType| {
        format!("[[output]]\n{filter}\ntype = '{name}'\n{sample}\n")
    };
    let outputs: String = types.iter().map(output).collect();
    format!(
        "{filter}\n[[listener]]\ntls = {{}}\n{outputs}[[source]]\ntype = 'kafka'\ntls = {{}}\n\
         sasl = {{}}\n[queue]\nacknowledge = 'delivered'\n"
    )
}

/// All keys, for the reference and for messages about keys of another type of output.
fn entries(types: &[OutputType]) -> Vec<reader::Entry> {
    let text = sample(types);
    let (cx, table) = reader::Context::new(&text, &|_| None);
    whole(&cx, table, types);
    print::merged(cx.finish().items)
}
