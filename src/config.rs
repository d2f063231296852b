//! The config file: its schema, its defaults, and every problem in it at once.
//!
//! [`read`] is the only way in. This module is the only one that knows the keys (`schema` declares
//! them); past it, values are checked and typed: nobody checks twice. It looks whether the files
//! that a config names are there, but does not judge what is in them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod filter;
mod print;
mod reader;
mod schema;
mod table;
mod targets;
mod template;
mod values;

#[cfg(test)]
mod tests;

pub use filter::Filter;
pub use template::ExpandError;
pub use template::Template;
pub use template::read_secret;
pub use template::read_token;
pub use values::header_name;
pub use values::header_value;
pub use values::server_name;
pub use values::size;
pub use values::time;

/// What a batch counts in the queue beyond its bytes, for the bookkeeping of it.
pub const BATCH_OVERHEAD: u64 = 256;

/// What `run` uses where no file is named.
pub const EMBEDDED: &str = r#"[[listener]]
address = "127.0.0.1:3000"

[[output]]
name = "stdout"
type = "stdout"

[admin]
address = "127.0.0.1:9090"
"#;

/// Something in the config file that its author should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// `output[1].retry.multiplier`, indices from 0; empty where the file is not TOML.
    pub path: String,
    /// What is wrong, what is allowed. One line, without the value of any variable or secret.
    pub message: String,
    /// What follows from it.
    pub severity: Severity,
}

/// What follows from a [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The config cannot be used.
    Error,
    /// It can.
    Warning,
    /// A file that the config names is missing: a warning where the config is checked away from its
    /// files, else an error; see [`Checked::strict`].
    MissingFile,
    /// `check` refuses it. A relay starts with it and says so, since most of it works all the same:
    /// a certificate that has expired, dead letters that can't be written.
    Fault,
}

impl Problem {
    /// `FILE:LINE:COLUMN: key.path: what is wrong, what is allowed`.
    pub fn render(&self, file: &str) -> String {
        let Self { line, column, path, message, severity } = self;
        let colon = if path.is_empty() { "" } else { ": " };
        let warning = match severity {
            Severity::Error | Severity::Fault => "",
            Severity::Warning | Severity::MissingFile => "warning: ",
        };
        format!("{file}:{line}:{column}: {path}{colon}{warning}{message}")
    }
}

/// What a reading of a config file found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// `None` if any problem is an error, or if a setting comes from a missing `${file:…}`. With
    /// other files missing there is one.
    pub config: Option<Config>,
    /// By position.
    pub problems: Vec<Problem>,
    /// All files that the config names, sorted: certificates, keys, secrets, `${file:…}`. Also of one that can't be used.
    pub files: Vec<PathBuf>,
    /// Those of them that are audit policies, each once.
    pub policies: BTreeSet<PathBuf>,
    /// The keys that name files and directories, in the order of reading. Also of a config that
    /// can't be used.
    pub named: Vec<Named>,
    effective: String,
    /// Line and column of each value and table header, by path.
    places: BTreeMap<String, (usize, usize)>,
}

/// A key that names a file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// `listener[0].tls.certificate`.
    pub key: String,
    /// The path that it names.
    pub path: PathBuf,
    /// Whether it names a directory.
    pub is_directory: bool,
    /// False: the file may be absent (`tls.optional`).
    pub must_exist: bool,
}

impl Checked {
    /// The config as TOML with every default filled in and `${…}` as it is; reads back to the same
    /// config. Means something only without errors.
    pub fn effective(&self) -> String {
        self.effective.clone()
    }

    /// A problem of a key, at the place where the key stands, or the innermost table around it.
    #[must_use]
    pub fn problem(&self, key: &str, message: impl Into<String>, severity: Severity) -> Problem {
        let place = reader::enclosing(key).find_map(|path| self.places.get(path));
        let (line, column) = place.copied().unwrap_or((1, 1));
        Problem { line, column, path: key.to_owned(), message: message.into(), severity }
    }

    /// Adds problems that were found in what the config names. An error among them leaves no
    /// config.
    #[must_use]
    pub fn with(mut self, problems: Vec<Problem>) -> Self {
        let failed = problems.iter().any(|problem| problem.severity == Severity::Error);
        self.config = self.config.filter(|_| !failed);
        self.problems.extend(problems);
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self
    }

    /// For those who need the files now: a missing one is an error.
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

/// Reads a config file, with the variables of this process.
pub fn read(text: &str) -> Checked {
    read_with(text, &|name| std::env::var(name).ok())
}

/// Reads a config file, with these variables.
pub fn read_with(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Checked {
    // A byte order mark would shift the columns of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (cx, table) = reader::Context::new(text, env);
    let config = schema::config(&cx, table);
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

/// `admin.address` alone, also of a config that can't be used.
///
/// # Errors
///
/// What is wrong with it, and with the file as far as it is no TOML.
pub fn admin_address(text: &str) -> Result<SocketAddr, Vec<Problem>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let env = |name: &str| std::env::var(name).ok();
    let (cx, table) = reader::Context::new(text, &env);
    let address = schema::admin(&mut table::Table::root(&cx, table));
    let as_error = |problem| Problem { severity: Severity::Error, ..problem };
    address.ok_or_else(|| cx.finish().problems.into_iter().map(as_error).collect())
}

/// All keys with kind, default and meaning, as a Markdown table.
pub fn reference() -> String {
    print::reference(&schema::entries(), &schema::TYPES.map(|(name, _)| name))
}

/// A whole, valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[[listener]]`; at least one of them or of the sources.
    pub listeners: Vec<Listener>,
    /// `[[source]]`.
    pub sources: Vec<Source>,
    /// `[limits]`.
    pub limits: Limits,
    /// `[queue]`.
    pub queue: Queue,
    /// `[[output]]`, at least one.
    pub outputs: Vec<Output>,
    /// `[dead_letter]`.
    pub dead_letter: DeadLetter,
    /// `[admin]`.
    pub admin: SocketAddr,
    /// `[log]`.
    pub log: Log,
    /// `shutdown.drain_timeout`.
    pub drain_timeout: Duration,
}

impl Config {
    /// Where dead letters go: as configured, or below the queue's directory; `None` without either.
    #[must_use]
    pub fn dead_letter_directory(&self) -> Option<PathBuf> {
        let below = || self.queue.directory.as_ref().map(|queue| queue.join("dead-letter"));
        self.dead_letter.directory.clone().or_else(below)
    }
}

/// One `[[listener]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// As the config has it (after `${…}`): the value of the label `listener`.
    pub label: String,
    /// Where to bind.
    pub address: SocketAddr,
    /// Requests outside it are 404. Starts with `/`.
    pub path_prefix: String,
    /// Its presence makes a bearer token required.
    pub bearer_token_file: Option<PathBuf>,
    /// Its presence makes the listener HTTPS.
    pub tls: Option<ListenerTls>,
}

/// `[listener.tls]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerTls {
    /// PEM chain, leaf first.
    pub certificate: PathBuf,
    /// PEM key of the leaf.
    pub private_key: PathBuf,
    /// Its presence requires a client certificate.
    pub client_ca: Option<PathBuf>,
    /// The listener opens when the files appear.
    pub optional: bool,
    /// Lowest protocol version offered.
    pub min_version: TlsVersion,
}

/// `"1.2"` or `"1.3"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3.
    V1_2,
    /// TLS 1.3 only.
    V1_3,
}

/// `[limits]`. Sizes are bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Effective: the smallest of the configured `max_body`, `max_in_flight` and `queue.max_bytes`
    /// - 256. With a directory `max_in_flight` is not among them, and half of `queue.max_bytes` is.
    pub max_body: u64,
    /// Bytes of bodies that are not yet in the queue or wait for their acknowledgement.
    pub max_in_flight: u64,
    /// Of all listeners together.
    pub max_connections: usize,
    /// From the first byte of a head to its end.
    pub header_timeout: Duration,
    /// From the end of a head to the end of its body.
    pub body_timeout: Duration,
    /// Between requests of a kept connection.
    pub idle_timeout: Duration,
    /// `None`: never.
    pub max_connection_age: Option<Duration>,
}

/// `[queue]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// In memory a batch counts its bytes plus 256; on disk whole files count, with what is reserved in them.
    pub max_bytes: u64,
    /// Where the durable queue lives; `None`: memory only.
    pub directory: Option<PathBuf>,
    /// Size of one spool file; means something only with a directory.
    pub segment_bytes: u64,
    /// What 200 means: with a directory `Synced`, else one of the others.
    pub acknowledge: Acknowledge,
    /// 503 after it, where `acknowledge` is `Delivered` or `Synced`.
    pub delivered_timeout: Duration,
    /// What an append to a full queue does.
    pub when_full: WhenFull,
    /// The middle of the `Retry-After` that is drawn.
    pub retry_after: Duration,
}

/// `queue.acknowledge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// 200 once in the queue.
    Queued,
    /// 200 once every required output has acknowledged or counted it.
    Delivered,
    /// 200 after fdatasync.
    Synced,
}

/// `queue.when_full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// 429 with Retry-After.
    Reject,
    /// The oldest batches that no required output has on the wire are lost and counted.
    DropOldest,
    /// The new batch is lost and counted.
    DropNewest,
}

/// One `[[output]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Unique; label in metrics.
    pub name: String,
    /// The queue keeps events until it has them; at least one output is.
    pub required: bool,
    /// What it speaks, with that protocol's own keys.
    pub kind: OutputKind,
    /// `[output.retry]`.
    pub retry: Retry,
    /// `[output.timeouts]`.
    pub timeouts: Timeouts,
    /// `[output.batch]`.
    pub batch: BatchLimits,
    /// `[output.rejected]`.
    pub rejected: Rejected,
    /// `[filter]` and `[output.filter]`.
    pub filter: Filter,
}

/// The protocol of an output.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputKind {
    /// `type = "http"`.
    Http(HttpOutput),
    /// `type = "tcp"`.
    Tcp(TcpOutput),
    /// `type = "syslog"`.
    Syslog(SyslogOutput),
    /// `type = "stdout"`.
    Stdout(LineFormat),
    /// `type = "lumberjack"`.
    Lumberjack(LumberjackOutput),
    /// `type = "relp"`.
    Relp(RelpOutput),
    /// `type = "kafka"`.
    #[cfg(feature = "kafka")]
    Kafka(KafkaOutput),
}

impl OutputKind {
    /// The value of `type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Syslog(_) => "syslog",
            Self::Stdout(_) => "stdout",
            Self::Lumberjack(_) => "lumberjack",
            Self::Relp(_) => "relp",
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => "kafka",
        }
    }
}

/// One `[[source]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Unique; the label `listener` in metrics.
    pub name: String,
    /// What it reads from, with that protocol's own keys.
    pub kind: SourceKind,
}

/// The protocol of a source. In a binary without Kafka there is none.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// `type = "kafka"`.
    #[cfg(feature = "kafka")]
    Kafka(KafkaSource),
}

impl Source {
    /// The values of `type`, `topic` and `group`.
    #[must_use]
    pub fn origin(&self) -> [&str; 3] {
        match self.kind {
            #[cfg(feature = "kafka")]
            SourceKind::Kafka(ref kafka) => ["kafka", &kafka.cluster.topic, &kafka.group],
        }
    }
}

/// `[[source]]` of `type = "kafka"`.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaSource {
    /// Where the topic is.
    pub cluster: Kafka,
    /// Relays of one group share the topic's partitions.
    pub group: String,
    /// Bytes of messages that are taken and not acknowledged by every output yet; a larger message is taken alone.
    pub max_in_flight: u64,
    /// A member of the group that is not heard of for so long is replaced.
    pub session_timeout: Duration,
}

/// `[[output]]` of `type = "kafka"`.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaOutput {
    /// Where the topic is.
    pub cluster: Kafka,
    /// What decides about a message's partition.
    pub key: MessageKey,
    /// Of the messages that are sent together.
    pub compression: Compression,
}

/// A topic, and how to get at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Kafka {
    /// Not empty; the others of the cluster are found through them.
    pub brokers: Vec<HostPort>,
    /// 1 to 249 characters of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`.
    pub topic: String,
    /// Its presence means TLS. Without `server_name`, and with the lowest version that OpenSSL takes.
    pub tls: Option<ClientTls>,
    /// How it authenticates, besides a client certificate.
    pub sasl: Option<Sasl>,
}

/// `sasl = { mechanism, username, password_file }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sasl {
    /// How.
    pub mechanism: SaslMechanism,
    /// User name.
    pub username: Template,
    /// File with the password.
    pub password_file: PathBuf,
}

/// `mechanism` of `sasl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// RFC 4616.
    Plain,
    /// RFC 7677.
    ScramSha256,
    /// RFC 7677, with the longer hash.
    ScramSha512,
}

/// `key` of a Kafka output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKey {
    /// The event's `auditID`: its stages are in one partition, in order.
    AuditId,
    /// None: spread evenly.
    None,
}

/// `type = "http"`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpOutput {
    /// Not empty; each expands to an http or https URL (checked at load where its files exist).
    pub urls: Vec<Template>,
    /// Which of them is taken.
    pub strategy: Strategy,
    /// Settings of https URLs; defaults where the section is absent.
    pub tls: ClientTls,
    /// Shape of the request body.
    pub format: HttpFormat,
    /// Content-Encoding of requests.
    pub compression: Compression,
    /// Extra request headers; names are valid and lower case.
    pub headers: BTreeMap<String, Template>,
    /// `Authorization: Bearer`.
    pub bearer_token_file: Option<PathBuf>,
    /// `Authorization: Basic`.
    pub basic_auth: Option<BasicAuth>,
    /// Requests at once, at least 1.
    pub concurrency: usize,
    /// Expands to `http://[USER:PASSWORD@]HOST[:PORT]`: connections are asked of it, by CONNECT.
    pub proxy: Option<Template>,
}

/// `basic_auth = { username, password_file }`.
#[derive(Debug, Clone, PartialEq)]
pub struct BasicAuth {
    /// User name.
    pub username: Template,
    /// File with the password.
    pub password_file: PathBuf,
}

/// `type = "tcp"`.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpOutput {
    /// Shape of a line.
    pub format: LineFormat,
    /// The connection.
    pub stream: Stream,
    /// Sent bytes are final when no reset came for so long after the peer's kernel acknowledged them.
    pub replay_window: Duration,
}

/// `type = "syslog"`.
#[derive(Debug, Clone, PartialEq)]
pub struct SyslogOutput {
    /// How messages are told apart.
    pub framing: Framing,
    /// What is in them.
    pub messages: Messages,
    /// The connection.
    pub stream: Stream,
    /// Sent bytes are final when no reset came for so long after the peer's kernel acknowledged them.
    pub replay_window: Duration,
}

/// `type = "lumberjack"`.
#[derive(Debug, Clone, PartialEq)]
pub struct LumberjackOutput {
    /// Of zlib, 0 to 9; 0: events are not compressed.
    pub compression_level: u32,
    /// Events that may be unacknowledged, at least 1.
    pub window: u64,
    /// The connection.
    pub stream: Stream,
}

/// `type = "relp"`.
#[derive(Debug, Clone, PartialEq)]
pub struct RelpOutput {
    /// What is in the messages.
    pub messages: Messages,
    /// Messages that may be unacknowledged, at least 1.
    pub window: u64,
    /// The connection.
    pub stream: Stream,
}

/// The messages of `syslog` and `relp`.
#[derive(Debug, Clone, PartialEq)]
pub struct Messages {
    /// PRI: facility × 8 + severity.
    pub priority: u8,
    /// HOSTNAME: 1 to 255 printable ASCII characters. Default: the machine's.
    pub hostname: String,
    /// APP-NAME: 1 to 48 printable ASCII characters.
    pub app_name: String,
    /// Longer messages are rejected; 0: no limit.
    pub max_message_bytes: u64,
}

/// What `tcp`, `syslog`, `lumberjack` and `relp` have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// Not empty.
    pub addresses: Vec<HostPort>,
    /// Which of them is taken.
    pub strategy: Strategy,
    /// Its presence means TLS.
    pub tls: Option<ClientTls>,
    /// TCP keepalive interval.
    pub keepalive: Duration,
    /// Reconnect after so long without events; `None`: never.
    pub idle_timeout: Option<Duration>,
}

/// `host:port`, IPv6 in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `[output.tls]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientTls {
    /// PEM bundle; else the system's roots.
    pub ca: Option<PathBuf>,
    /// Client certificate and its key: both or none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// SNI and the name verified; else the host of the address.
    pub server_name: Option<String>,
    /// Lowest protocol version accepted.
    pub min_version: TlsVersion,
    /// Accepts any certificate.
    pub insecure_skip_verify: bool,
}

impl Default for ClientTls {
    fn default() -> Self {
        Self {
            ca: None,
            identity: None,
            server_name: None,
            min_version: TlsVersion::V1_2,
            insecure_skip_verify: false,
        }
    }
}

/// `strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The first healthy one, in order.
    Failover,
    /// http: the next for each request; others: the next at each connect.
    RoundRobin,
}

/// `format` of http.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpFormat {
    /// `{"kind":"EventList",…,"items":[…]}`, as kube-apiserver sends it.
    EventList,
    /// Each event a line, as received.
    Ndjson,
    /// `[…]`.
    JsonArray,
    /// Each event a line of kube-apiserver's audit.log.
    AuditLog,
}

/// `format` of tcp and stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    /// Each event as received.
    Ndjson,
    /// With kind and apiVersion first, as kube-apiserver's audit.log.
    AuditLog,
}

/// `compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As is.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// `framing` of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `LENGTH SP MESSAGE` (RFC 6587 §3.4.1, RFC 5425 §4.3).
    OctetCounting,
    /// `MESSAGE LF` (RFC 6587 §3.4.2).
    Newline,
}

/// `[output.retry]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// First wait.
    pub initial_interval: Duration,
    /// Longest wait before jitter.
    pub max_interval: Duration,
    /// At least 1.
    pub multiplier: f64,
    /// 0 to 1: each wait is drawn from `1 ± factor` times the interval.
    pub randomization_factor: f64,
    /// What could not be delivered for so long since its first attempt is given up; `None`: never.
    pub max_elapsed: Option<Duration>,
}

/// `[output.timeouts]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// Of a lookup; and of connect, CONNECT and TLS handshake together, for each address.
    pub connect: Duration,
    /// Without any progress towards an acknowledgement.
    pub request: Duration,
    /// `None`: never.
    pub max_connection_age: Option<Duration>,
}

/// `[output.batch]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Of one request or write; one larger event travels alone.
    pub max_bytes: u64,
    /// At least 1.
    pub max_events: u64,
}

/// `[output.rejected]` `action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// Into the dead-letter files; without a directory for them as `Drop`.
    DeadLetter,
    /// Counted and gone.
    Drop,
    /// Sent again for ever.
    Retry,
}

/// `[dead_letter]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where the files are; `None`: see [`Config::dead_letter_directory`].
    pub directory: Option<PathBuf>,
    /// Of all files together.
    pub max_bytes: u64,
}

/// `[log]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Lowest level that is written.
    pub level: LogLevel,
    /// Shape of a line.
    pub format: LogFormat,
}

/// `log.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Something is lost or somebody must act.
    Error,
    /// Unexpected, nothing lost.
    Warn,
    /// Changes of state.
    Info,
    /// One line per request and delivery.
    Debug,
    /// Everything.
    Trace,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; control characters escaped.
    Text,
    /// For machines.
    Json,
}
