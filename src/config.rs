//! The config file: its schema, its defaults, and every problem in it at once.
//!
//! [`read`] is the only way in. This module is the only one that knows the keys (`schema` declares
//! them); past it, values are checked and typed: nobody checks twice. It looks whether the files
//! that a config names are there, but does not judge what is in them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod print;
mod reader;
mod schema;
mod table;
mod template;
mod values;

#[cfg(test)]
mod tests;

pub use template::ExpandError;
pub use template::Template;
pub use template::read_secret;

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
}

impl Problem {
    /// `FILE:LINE:COLUMN: key.path: what is wrong, what is allowed`.
    pub fn render(&self, file: &str) -> String {
        let Self { line, column, path, message, severity } = self;
        let colon = if path.is_empty() { "" } else { ": " };
        let warning = match severity {
            Severity::Error => "",
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
    effective: String,
}

impl Checked {
    /// The config as TOML with every default filled in and `${…}` as it is; reads back to the same
    /// config. Means something only without errors.
    pub fn effective(&self) -> String {
        self.effective.clone()
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
        config: config.map(|config| Config { files: found.files, ..config }),
        problems: found.problems,
        effective: print::effective(&found.items),
    }
}

/// All keys with kind, default and meaning, as a Markdown table.
pub fn reference() -> String {
    print::reference(&schema::entries(), &schema::TYPES.map(|(name, _)| name))
}

/// A whole, valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[[listener]]`, at least one.
    pub listeners: Vec<Listener>,
    /// `[limits]`.
    pub limits: Limits,
    /// `[queue]`.
    pub queue: Queue,
    /// `[[output]]`, at least one.
    pub outputs: Vec<Output>,
    /// `[admin]`.
    pub admin: SocketAddr,
    /// `[log]`.
    pub log: Log,
    /// `shutdown.drain_timeout`.
    pub drain_timeout: Duration,
    /// See [`Config::files`].
    files: Vec<PathBuf>,
}

impl Config {
    /// All files that the config names, sorted: certificates, keys, secrets, `${file:…}`.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.clone()
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
    /// Effective: the smallest of the configured `max_body`, `max_in_flight` and `queue.max_bytes` - 256 (with a
    /// directory: half of it).
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
    /// The oldest batches that no output has on the wire are lost and counted.
    DropOldest,
    /// The new batch is lost and counted.
    DropNewest,
}

/// One `[[output]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Unique; label in metrics.
    pub name: String,
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
}

/// `type = "syslog"`.
#[derive(Debug, Clone, PartialEq)]
pub struct SyslogOutput {
    /// How messages are told apart.
    pub framing: Framing,
    /// PRI: facility × 8 + severity.
    pub priority: u8,
    /// HOSTNAME: 1 to 255 printable ASCII characters. Default: the machine's.
    pub hostname: String,
    /// APP-NAME: 1 to 48 printable ASCII characters.
    pub app_name: String,
    /// Longer messages are rejected; 0: no limit.
    pub max_message_bytes: u64,
    /// The connection.
    pub stream: Stream,
}

/// What `tcp` and `syslog` have in common.
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
    /// Sent bytes are final when no reset came for so long after the peer's kernel acknowledged them.
    pub replay_window: Duration,
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
}

/// `[output.timeouts]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// Resolve, connect and TLS handshake together.
    pub connect: Duration,
    /// Without any progress towards an acknowledgement.
    pub request: Duration,
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
    /// Dead letters; without a directory for them as `Drop`.
    DeadLetter,
    /// Counted and gone.
    Drop,
    /// Sent again for ever.
    Retry,
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
