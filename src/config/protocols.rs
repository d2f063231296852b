//! What each `type` of `[[output]]` has of keys of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::ClientTls;
use super::Compression;
use super::Kafka;
use super::LineFormat;
use super::Messages;
use super::Strategy;
use super::Stream;
use super::Template;
use super::table::TABLE;
use super::table::Table;
use super::table::optional;
use super::table::required;
use super::table::whole;
use super::values;

/// The value of `type`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Type {
    Http,
    Tcp,
    Syslog,
    Stdout,
    Lumberjack,
    Relp,
    Kafka,
}

/// All types of output.
pub(super) const TYPES: [(&str, Type); 7] = [
    ("http", Type::Http),
    ("tcp", Type::Tcp),
    ("syslog", Type::Syslog),
    ("stdout", Type::Stdout),
    ("lumberjack", Type::Lumberjack),
    ("relp", Type::Relp),
    ("kafka", Type::Kafka),
];

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

    /// The value of `replay_window`; `None`: the protocol has no such key.
    pub(super) fn replay_window(&self) -> Option<Duration> {
        match self {
            Self::Tcp(tcp) => Some(tcp.replay_window),
            Self::Syslog(syslog) => Some(syslog.replay_window),
            Self::Http(_) | Self::Stdout(_) | Self::Lumberjack(_) | Self::Relp(_) => None,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => None,
        }
    }
}

/// Reads the keys of a type. `None`: there is a problem.
pub(super) fn read(t: &mut Table<'_, '_>, kind: Type) -> Option<OutputKind> {
    match kind {
        Type::Http => http(t).map(OutputKind::Http),
        Type::Tcp => tcp(t).map(OutputKind::Tcp),
        Type::Syslog => syslog(t).map(OutputKind::Syslog),
        Type::Stdout => LineFormat::read(t).map(OutputKind::Stdout),
        Type::Lumberjack => lumberjack(t).map(OutputKind::Lumberjack),
        Type::Relp => relp(t).map(OutputKind::Relp),
        Type::Kafka => {
            let output = kafka_output(t);
            with_kafka(t, output)
        }
    }
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
    /// Sent bytes are final when no reset came for so long after the peer's kernel acknowledged
    /// them.
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
    /// Sent bytes are final when no reset came for so long after the peer's kernel acknowledged
    /// them.
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

/// `framing` of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `LENGTH SP MESSAGE` (RFC 6587 §3.4.1, RFC 5425 §4.3).
    OctetCounting,
    /// `MESSAGE LF` (RFC 6587 §3.4.2).
    Newline,
}

fn http(t: &mut Table<'_, '_>) -> Option<HttpOutput> {
    let cx = t.cx;
    let urls = t.secrets(
        required("urls", "array of URLs", "http:// or https://, without user and password"),
        |text| values::url(text).map(drop),
    );
    let strategy = Strategy::read(t);
    let format = t.choice(
        "format",
        &[
            ("event_list", HttpFormat::EventList),
            ("ndjson", HttpFormat::Ndjson),
            ("json_array", HttpFormat::JsonArray),
            ("audit_log", HttpFormat::AuditLog),
        ],
        Some(HttpFormat::EventList),
        "body of a request: as kube-apiserver sends it, lines, an array, or the lines of audit.log",
    );
    let compression = Compression::read(t, "Content-Encoding of requests");
    let headers = t.secret_map(
        ("headers", "table of strings", "extra request headers"),
        values::header_name,
        values::header_value,
    );
    let concurrency = t.count("concurrency", 4, 1..=256, "requests at once; 1 keeps the order");
    let bearer_token_file = t.file(
        optional("bearer_token_file", "path", "none", "file with the token for Authorization"),
        true,
    );
    let proxy = proxy(t);
    let basic_auth = t.optional_section(
        optional("basic_auth", TABLE, "none", "user and password for Authorization"),
        |t| {
            let username = t.secret(required("username", "string", "user"), values::user_name);
            let file = required("password_file", "path", "file with the password");
            let password_file = t.file(file, true);
            Some(BasicAuth { username: username?, password_file: password_file? })
        },
    );
    let tls = t.optional_section(
        optional("tls", TABLE, "its defaults", "settings for https URLs"),
        ClientTls::keys,
    );

    let [basic, bearer, tls_path] =
        ["basic_auth", "bearer_token_file", "tls"].map(|name| t.path_of(name));
    if cx.is_set(&basic) && cx.is_set(&bearer) {
        cx.error(&basic, "contradicts bearer_token_file, allowed: one of the two");
    }
    for path in [&basic, &bearer] {
        if cx.is_set(path) && headers.contains_key("authorization") {
            cx.error(path, "contradicts the header `authorization`, allowed: one of the two");
        }
    }
    let is_plain = |url: &Template| {
        let url = url.expand().ok().and_then(|url| values::url(&url).ok());
        url.is_some_and(|url| url.scheme() == "http")
    };
    if tls.is_some() && urls.as_ref().is_some_and(|urls| urls.iter().all(is_plain)) {
        cx.error(&tls_path, "is for https, but all urls are http://, allowed: leave it out");
    }

    let tls = tls.unwrap_or_else(|| Some(ClientTls::default()));
    let basic_auth = whole(basic_auth)?;
    Some(HttpOutput {
        urls: urls?,
        strategy: strategy?,
        tls: tls?,
        format: format?,
        compression: compression?,
        headers,
        bearer_token_file,
        basic_auth,
        concurrency: usize::try_from(concurrency).unwrap_or(usize::MAX),
        proxy,
    })
}

fn kafka_output(t: &mut Table<'_, '_>) -> Option<KafkaOutput> {
    let topic = Kafka::read_topic(t);
    let key = t.choice(
        "key",
        &[("audit_id", MessageKey::AuditId), ("none", MessageKey::None)],
        Some(MessageKey::AuditId),
        "of each message: the event's auditID, which keeps its stages in one partition, or none",
    );
    let compression = Compression::read(
        t,
        "of the messages that are sent together; brokers and consumers keep it",
    );
    let cluster = Kafka::read(t, topic);
    Some(KafkaOutput { cluster: cluster?, key: key?, compression: compression? })
}

#[cfg(feature = "kafka")]
fn with_kafka(_: &Table<'_, '_>, output: Option<KafkaOutput>) -> Option<OutputKind> {
    output.map(OutputKind::Kafka)
}

#[cfg(not(feature = "kafka"))]
fn with_kafka(t: &Table<'_, '_>, _: Option<KafkaOutput>) -> Option<OutputKind> {
    super::kafka::without_kafka(t);
    None
}

fn proxy(t: &mut Table<'_, '_>) -> Option<Template> {
    let meaning =
        "http://[USER:PASSWORD@]HOST[:PORT], which is asked for every connection (CONNECT)";
    t.secret(optional("proxy", "URL", "none", meaning), values::proxy_url)
}

fn tcp(t: &mut Table<'_, '_>) -> Option<TcpOutput> {
    let format = LineFormat::read(t);
    let replay_window = Stream::read_replay_window(t);
    let stream = Stream::read(t);
    Some(TcpOutput { format: format?, stream: stream?, replay_window })
}

fn syslog(t: &mut Table<'_, '_>) -> Option<SyslogOutput> {
    let framing = t.choice(
        "framing",
        &[("octet_counting", Framing::OctetCounting), ("newline", Framing::Newline)],
        Some(Framing::OctetCounting),
        "how messages are told apart (RFC 6587, RFC 5425)",
    );
    let messages = Messages::read(t);
    let replay_window = Stream::read_replay_window(t);
    let stream = Stream::read(t);
    Some(SyslogOutput { framing: framing?, messages: messages?, stream: stream?, replay_window })
}

fn lumberjack(t: &mut Table<'_, '_>) -> Option<LumberjackOutput> {
    let level = t.count("compression_level", 3, 0..=9, "of zlib; 0: events are not compressed");
    let window = Stream::read_window(
        t,
        2048,
        "events that may be unacknowledged; after a break they are sent again",
    );
    let stream = Stream::read(t);
    let compression_level = u32::try_from(level).unwrap_or_default();
    Some(LumberjackOutput { compression_level, window, stream: stream? })
}

fn relp(t: &mut Table<'_, '_>) -> Option<RelpOutput> {
    let messages = Messages::read(t);
    let window = Stream::read_window(
        t,
        128,
        "messages that may be unacknowledged; after a break they are sent again",
    );
    let stream = Stream::read(t);
    Some(RelpOutput { messages: messages?, window, stream: stream? })
}
