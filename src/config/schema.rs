//! Which keys there are, with their defaults, ranges and meanings, and what contradicts what.
//!
//! The order of the declarations is that of the effective config and of the reference.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::Acknowledge;
use super::BATCH_OVERHEAD;
use super::BasicAuth;
use super::BatchLimits;
use super::ClientTls;
use super::Compression;
use super::Config;
use super::DeadLetter;
use super::Filter;
use super::Framing;
use super::HostPort;
use super::HttpFormat;
use super::HttpOutput;
use super::Kafka;
use super::KafkaOutput;
use super::KafkaSource;
use super::Limits;
use super::LineFormat;
use super::Listener;
use super::ListenerTls;
use super::Log;
use super::LogFormat;
use super::LogLevel;
use super::LumberjackOutput;
use super::MessageKey;
use super::Messages;
use super::Output;
use super::OutputKind;
use super::Queue;
use super::Rejected;
use super::RelpOutput;
use super::Retry;
use super::Sasl;
use super::SaslMechanism;
use super::Severity;
use super::Source;
use super::SourceKind;
use super::Strategy;
use super::Stream;
use super::SyslogOutput;
use super::TcpOutput;
use super::Template;
use super::Timeouts;
use super::TlsVersion;
use super::WhenFull;
use super::filter;
use super::print;
use super::reader::Context;
use super::reader::Entry;
use super::table::TABLE;
use super::table::Table;
use super::table::derived;
use super::table::optional;
use super::table::required;
use super::targets;
use super::values;
use super::values::KIB;
use super::values::MIB;

/// Below it not even a single event would fit.
const ROOM_MIN: u64 = KIB;

/// The same on disk, where whole files count, and half of it bounds a body.
const DISK_MIN: u64 = 256 * KIB;

/// With smaller spool files the queue would mostly be making and syncing files.
const SEGMENT_MIN: u64 = 16 * KIB;

/// What is unacknowledged comes twice after a break. Nobody gains by more.
const WINDOW_MAX: u64 = 1 << 16;

/// Events are seen up to half of it, and the oldest of several files go first.
const DEAD_LETTER_MIN: u64 = MIB;

/// More sockets than a process is ever allowed; semaphores have a limit too.
const CONNECTIONS_MAX: u64 = 1 << 20;

/// Linux refuses a longer TCP_KEEPIDLE (MAX_TCP_KEEPIDLE).
const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);

/// The shortest time that is one.
const MOMENT: Duration = Duration::from_millis(1);

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

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

const TLS_VERSIONS: [(&str, TlsVersion); 2] =
    [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];

const COMPRESSIONS: [(&str, Compression); 3] =
    [("none", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)];

const LINE_FORMATS: [(&str, LineFormat); 2] =
    [("ndjson", LineFormat::Ndjson), ("audit_log", LineFormat::AuditLog)];

/// A config with every section and every type, from which all declarations can be read.
pub(super) const EVERYTHING: &str = "
[[listener]]
tls = {}
[filter]
match = [{ resources = [{}] }]
redact = [{}]
[[output]]
filter = { match = [{ resources = [{}] }], redact = [{}] }
type = 'http'
tls = {}
basic_auth = {}
[[output]]
filter = { match = [{ resources = [{}] }], redact = [{}] }
type = 'tcp'
tls = {}
[[output]]
filter = { match = [{ resources = [{}] }], redact = [{}] }
type = 'syslog'
tls = {}
[[output]]
filter = { match = [{ resources = [{}] }], redact = [{}] }
type = 'stdout'
[[output]]
filter = { match = [{ resources = [{}] }], redact = [{}] }
type = 'lumberjack'
tls = {}
[[output]]
filter = { match = [{ resources = [{}] }], redact = [{}] }
type = 'relp'
tls = {}
[[output]]
filter = { match = [{ resources = [{}] }], redact = [{}] }
type = 'kafka'
tls = {}
sasl = {}
[[source]]
type = 'kafka'
tls = {}
sasl = {}
[queue]
acknowledge = 'delivered'
";

/// All keys.
pub(super) fn entries() -> Vec<Entry> {
    let (cx, table) = Context::new(EVERYTHING, &|_| None);
    config(&cx, table);
    print::merged(cx.finish().items)
}

/// An output as far as it could be read: contradictions with others are looked for even where
/// something else in it is wrong.
pub(super) struct Draft {
    pub(super) path: String,
    name: Option<String>,
    required: bool,
    kind: Option<Type>,
    replay_window: Option<Duration>,
    pub(super) output: Option<Output>,
}

/// Reads the whole file. `None`, or anything at all, if there is an error among the problems.
pub(super) fn config<'a>(cx: &Context<'a>, table: DeTable<'a>) -> Option<Config> {
    let mut t = Table::root(cx, table);
    let has_input = t.has_any("listener") || t.has_any("source");
    let listeners = t.sections_if_any("listener", listener);
    let sources = t.sections_if_any("source", source);
    let is_durable = t.sets("queue", "directory");
    let mut limits = t.section("limits", |t| limits(t, is_durable));
    let queue = t.section("queue", queue);
    let filter = filter::filter(&mut t);
    let outputs = t.sections("output", output);
    let dead_letter = t.section("dead_letter", dead_letter);
    let admin = admin(&mut t);
    let log = t.section("log", log);
    let drain_timeout = t.section("shutdown", |t| {
        t.time(
            "drain_timeout",
            secs(20),
            ..,
            "SIGTERM: time to answer what is under way and to empty the queue",
        )
    });
    t.refuse_rest(|_| None);

    limits.max_body = effective_max_body(cx, &limits, &queue);
    if !has_input {
        cx.error("listener", "is missing, allowed: one or more [[listener]] or [[source]]");
    }
    contradictions_of_queue(cx, &queue, &outputs);
    contradictions_of_sources(cx, &queue, &sources);
    contradictions_of_addresses(cx, &listeners, admin);
    contradictions_of_outputs(cx, &outputs);
    targets::warn(cx, &listeners, admin, &outputs);
    warn_without_place(cx, &dead_letter, &outputs);

    Some(Config {
        listeners: listeners.into_iter().map(|(_, listener)| listener).collect::<Option<_>>()?,
        sources: sources.into_iter().map(|(_, source)| source).collect::<Option<_>>()?,
        limits,
        queue,
        outputs: with_filter(&filter?, outputs)?,
        dead_letter,
        admin: admin?,
        log: log?,
        drain_timeout,
    })
}

/// `admin.address`, of the root.
pub(super) fn admin(t: &mut Table<'_, '_>) -> Option<SocketAddr> {
    t.section("admin", |t| {
        t.word_or(
            ("address", "IP:PORT", "metrics, health and status page; GET only"),
            "127.0.0.1:9090",
            None,
            values::socket_address,
        )
    })
}

/// The outputs, each with what holds for all.
fn with_filter(all: &Filter, drafts: Vec<Draft>) -> Option<Vec<Output>> {
    let with = |output: Output| Output { filter: filter::merged(all, output.filter), ..output };
    drafts.into_iter().map(|draft| draft.output.map(with)).collect()
}

fn listener(t: &mut Table<'_, '_>) -> (Option<SocketAddr>, Option<Listener>) {
    let address = t
        .word(required("address", "IP:PORT", "where to listen for POSTs of events"), |text| {
            Ok((text.to_owned(), values::socket_address(text)?))
        });
    let path_prefix = t.word_or(
        ("path_prefix", "path", "POST to any path below it is ingest; others are 404"),
        "/",
        None,
        values::path_prefix,
    );
    let bearer_token_file = t.file(
        optional(
            "bearer_token_file",
            "path",
            "no authentication",
            "the token that senders need, blanks around it aside; kube-apiserver sends it over \
             HTTPS only",
        ),
        true,
    );
    let tls = t.optional_section(
        optional("tls", TABLE, "plain HTTP", "its presence makes it HTTPS (h2 and http/1.1)"),
        listener_tls,
    );
    if bearer_token_file.is_some() && tls.is_none() {
        // client-go leaves token, password and client certificate out where the server's URL is not
        // https (clientcmd, `ClientConfig`).
        let path = t.path_of("bearer_token_file");
        let message = "kube-apiserver sends no token over plain HTTP, so that each of its batches \
                       is 401, better: listener.tls, or no token and a NetworkPolicy";
        t.cx.problem_at(&path, &path, message, Severity::Warning);
    }
    let bound = address.as_ref().map(|(_, address)| *address);
    let read = || {
        let (label, address) = address?;
        let tls = match tls {
            Some(tls) => Some(tls?),
            None => None,
        };
        Some(Listener { label, address, path_prefix: path_prefix?, bearer_token_file, tls })
    };
    (bound, read())
}

fn listener_tls(t: &mut Table<'_, '_>) -> Option<ListenerTls> {
    let must_exist = !t.is_true("optional");
    let certificate =
        t.file(required("certificate", "path", "PEM chain, the leaf first"), must_exist);
    let private_key = t.file(required("private_key", "path", "PEM key of the leaf"), must_exist);
    let client_ca = t.file(
        optional(
            "client_ca",
            "path",
            "none",
            "its presence requires a client certificate (mTLS); once replaced, connections that \
             the old one let in end after the request under way",
        ),
        must_exist,
    );
    let optional = t.flag(
        "optional",
        false,
        "true: no error while the files are absent; the listener opens when they appear",
    );
    let min_version = min_version(t);
    Some(ListenerTls {
        certificate: certificate?,
        private_key: private_key?,
        client_ca,
        optional,
        min_version: min_version?,
    })
}

fn min_version(t: &mut Table<'_, '_>) -> Option<TlsVersion> {
    t.choice("min_version", &TLS_VERSIONS, Some(TlsVersion::V1_2), "lowest version of TLS")
}

/// `None` where the time is zero.
fn unless_zero(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

fn limits(t: &mut Table<'_, '_>, is_durable: bool) -> Limits {
    let max_body = if is_durable { 1024 * MIB } else { 256 * MIB };
    let key = derived(
        "max_body",
        "size, at least 1KiB",
        (Some(max_body), "`\"256MiB\"`, with queue.directory `\"1GiB\"`"),
        "decompressed, and as sent; larger: 413. What takes effect is the smallest of it, max_in_flight and \
         queue.max_bytes - 256 (with queue.directory: the smaller of it and queue.max_bytes / 2, and one \
         event is at most half of max_in_flight)",
    );
    Limits {
        max_body: t.size_of(key, KIB..).unwrap_or(max_body),
        max_in_flight: t.size(
            "max_in_flight",
            256 * MIB,
            ROOM_MIN..,
            "bytes of bodies in memory that are not yet in the queue or wait for their \
             acknowledgement; beyond: 429",
        ),
        max_connections: usize::try_from(t.count(
            "max_connections",
            4096,
            1..=CONNECTIONS_MAX,
            "all listeners together; for one more, a request that is refused already gives way, \
             else the connection that is longest without a whole head",
        ))
        .unwrap_or(usize::MAX),
        header_timeout: t.time(
            "header_timeout",
            secs(10),
            MOMENT..,
            "from the first byte of a request's head to its end",
        ),
        body_timeout: t.time(
            "body_timeout",
            secs(30),
            MOMENT..,
            "the whole body must have arrived by then: 408; that of a refused request gets 2s, and \
             2s more with each 128KiB",
        ),
        idle_timeout: t.time(
            "idle_timeout",
            secs(300),
            MOMENT..,
            "between requests of a kept connection",
        ),
        max_connection_age: unless_zero(t.time(
            "max_connection_age",
            secs(900),
            ..,
            "then Connection: close or GOAWAY after the current answer, jittered; \"0s\": never",
        )),
    }
}

/// Whether the queue is on disk, however wrong the name of its directory may be.
fn is_durable(cx: &Context<'_>) -> bool {
    cx.is_set("queue.directory")
}

fn queue(t: &mut Table<'_, '_>) -> Queue {
    let cx = t.cx;
    let max_bytes = t.size(
        "max_bytes",
        256 * MIB,
        ROOM_MIN..,
        "memory that waiting events may take (a batch counts its bytes plus 256), or disk when \
         directory is set: whole files, reserved space included, at least 256KiB",
    );
    let directory = t.directory(optional(
        "directory",
        "path",
        "memory only",
        "where the queue lives on disk; made 0700 if missing",
    ));
    if is_durable(cx) && max_bytes < DISK_MIN {
        let path = t.path_of("max_bytes");
        let least = values::show_size(DISK_MIN);
        cx.error(&path, format!("is too small with queue.directory, allowed: at least {least}"));
        // Other limits follow from it: they would only repeat this.
        cx.unknown.borrow_mut().insert(path);
    }
    let default = if is_durable(cx) { Acknowledge::Synced } else { Acknowledge::Queued };
    let acknowledge = t.choice(
        "acknowledge",
        &[
            ("queued", Acknowledge::Queued),
            ("delivered", Acknowledge::Delivered),
            ("synced", Acknowledge::Synced),
        ],
        Some(default),
        "when the sender gets its 200: once the batch is in the queue, once every required \
         output has acknowledged it, or once it is synced to disk (fdatasync). \"synced\" needs a directory, \
         and is the default and the only choice with one",
    );
    let delivered_timeout = t.time(
        "delivered_timeout",
        secs(25),
        MOMENT..,
        "with \"delivered\": 503 after it (kube-apiserver gives up at 30 s); with a directory: \
         503 after a batch has waited so long for its fdatasync",
    );
    let when_full = t.choice(
        "when_full",
        &[
            ("reject", WhenFull::Reject),
            ("drop_oldest", WhenFull::DropOldest),
            ("drop_newest", WhenFull::DropNewest),
        ],
        Some(WhenFull::Reject),
        "429 with Retry-After, or 200 and a counted loss (not with \"delivered\")",
    );
    let retry_after = t.time(
        "retry_after",
        secs(5),
        secs(1)..=secs(15),
        "Retry-After of 429 and 503, drawn evenly from 0.6 to 1.6 times it",
    );
    let segment_bytes = segment_bytes(t, max_bytes);
    Queue {
        max_bytes,
        directory,
        segment_bytes,
        acknowledge: acknowledge.unwrap_or(default),
        delivered_timeout,
        when_full: when_full.unwrap_or(WhenFull::Reject),
        retry_after,
    }
}

fn segment_bytes(t: &mut Table<'_, '_>, max_bytes: u64) -> u64 {
    let (cx, path) = (t.cx, t.path_of("segment_bytes"));
    let durable = is_durable(cx);
    let limit_known = cx.are_known(&["queue.max_bytes"]);
    let limit = max_bytes / 4;
    let default = limit.min(64 * MIB);
    let key = derived(
        "segment_bytes",
        "size, 16KiB to max_bytes / 4",
        ((durable && limit_known).then_some(default), "the smaller of 64MiB and max_bytes / 4"),
        "of one file of the queue; needs a directory",
    );
    let least = if durable { SEGMENT_MIN } else { 0 };
    let segment_bytes = t.size_of(key, least..).unwrap_or(default);
    if !limit_known {
        return segment_bytes;
    }
    if durable && segment_bytes > limit {
        let most = values::show_size(limit);
        cx.error(&path, format!("is larger than queue.max_bytes / 4, allowed: at most {most}"));
    }
    if !durable && segment_bytes != default {
        let only = values::show_size(default);
        let message = format!("needs queue.directory, allowed without it: {only}, or leave it out");
        cx.error(&path, message);
    }
    segment_bytes
}

fn output(t: &mut Table<'_, '_>) -> Draft {
    let name = t.word(
        required("name", "name", "label in metrics and logs; unique, not \"queue\""),
        values::output_name,
    );
    let kind = t.choice("type", &TYPES, None, "what it speaks");
    let required = t.flag(
        "required",
        true,
        "false: events are kept for it as long as nothing else needs the room, then dropped for it \
         alone, and counted; no 200 waits for it. At least one output is required",
    );
    let type_name = TYPES.iter().find(|(_, it)| Some(*it) == kind).map(|(name, _)| *name);
    t.cx.set_scope(type_name);
    let protocol = kind.and_then(|kind| match kind {
        Type::Http => http(t).map(OutputKind::Http),
        Type::Tcp => tcp(t).map(OutputKind::Tcp),
        Type::Syslog => syslog(t).map(OutputKind::Syslog),
        Type::Stdout => line_format(t).map(OutputKind::Stdout),
        Type::Lumberjack => lumberjack(t).map(OutputKind::Lumberjack),
        Type::Relp => relp(t).map(OutputKind::Relp),
        Type::Kafka => {
            let output = kafka_output(t);
            with_kafka(t, output)
        }
    });
    let retry = t.section("retry", retry);
    let timeouts = t.section("timeouts", timeouts);
    let batch = t.section("batch", batch);
    let rejected = t.section("rejected", |t| {
        t.choice(
            "action",
            &[
                ("dead_letter", Rejected::DeadLetter),
                ("drop", Rejected::Drop),
                ("retry", Rejected::Retry),
            ],
            Some(Rejected::DeadLetter),
            "for events that the consumer refuses for good; without a place for dead letters they \
             are dropped; both are counted as errors",
        )
    });
    if rejected == Some(Rejected::Retry) && retry.max_elapsed.is_some() {
        let path = format!("{}.retry.max_elapsed", t.path);
        t.cx.error(&path, "contradicts rejected.action = \"retry\", allowed with it: leave it out");
    }
    let filter = filter::filter(t);
    t.refuse_rest(|key| of_another_type(key, type_name));
    t.cx.set_scope(None);

    let replay_window = match &protocol {
        Some(OutputKind::Tcp(TcpOutput { replay_window, .. }))
        | Some(OutputKind::Syslog(SyslogOutput { replay_window, .. })) => Some(*replay_window),
        Some(
            OutputKind::Http(_)
            | OutputKind::Stdout(_)
            | OutputKind::Lumberjack(_)
            | OutputKind::Relp(_),
        )
        | None => None,
        #[cfg(feature = "kafka")]
        Some(OutputKind::Kafka(_)) => None,
    };
    let read = || {
        let (name, kind, rejected, filter) = (name.clone()?, protocol?, rejected?, filter?);
        Some(Output { name, required, kind, retry, timeouts, batch, rejected, filter })
    };
    let output = read();
    Draft { path: t.path.clone(), name, required, kind, replay_window, output }
}

/// What to say of a key that this type of output does not have but others do; nothing where the type
/// itself is the problem.
fn of_another_type(key: &str, type_name: Option<&str>) -> Option<String> {
    let owners: Vec<&str> = entries()
        .iter()
        .filter(|entry| entry.section == "output" && entry.name == key)
        .flat_map(|entry| entry.scopes.clone())
        .collect();
    if owners.is_empty() {
        return None;
    }
    let message =
        |name| format!("type {name} has no key `{key}`, allowed: with type {}", owners.join(", "));
    Some(type_name.map(message).unwrap_or_default())
}

fn strategy(t: &mut Table<'_, '_>) -> Option<Strategy> {
    t.choice(
        "strategy",
        &[("failover", Strategy::Failover), ("round_robin", Strategy::RoundRobin)],
        Some(Strategy::Failover),
        "the first healthy one, in order; or the next one, for each request (http) or each connect",
    )
}

fn http(t: &mut Table<'_, '_>) -> Option<HttpOutput> {
    let cx = t.cx;
    let urls = t.secrets(
        required("urls", "array of URLs", "http:// or https://, without user and password"),
        |text| values::url(text).map(drop),
    );
    let strategy = strategy(t);
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
    let compression = t.choice(
        "compression",
        &COMPRESSIONS,
        Some(Compression::None),
        "Content-Encoding of requests",
    );
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
        client_tls,
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
    let basic_auth = match basic_auth {
        Some(basic_auth) => Some(basic_auth?),
        None => None,
    };
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
    let topic = kafka_topic(t);
    let key = t.choice(
        "key",
        &[("audit_id", MessageKey::AuditId), ("none", MessageKey::None)],
        Some(MessageKey::AuditId),
        "of each message: the event's auditID, which keeps its stages in one partition, or none",
    );
    let compression = t.choice(
        "compression",
        &COMPRESSIONS,
        Some(Compression::None),
        "of the messages that are sent together; brokers and consumers keep it",
    );
    let cluster = kafka(t, topic);
    Some(KafkaOutput { cluster: cluster?, key: key?, compression: compression? })
}

fn kafka_topic(t: &mut Table<'_, '_>) -> Option<(Vec<HostPort>, String)> {
    let brokers = t.words(
        required("brokers", "array of host:port", "the others of the cluster are found by them"),
        values::host_port,
    );
    let topic = t.word(required("topic", "name", "it must exist"), values::topic);
    brokers.zip(topic)
}

/// The sections that outputs and sources have in common; they come behind a table's other keys.
fn kafka(t: &mut Table<'_, '_>, topic: Option<(Vec<HostPort>, String)>) -> Option<Kafka> {
    let sasl = t.optional_section(
        optional("sasl", TABLE, "none", "user and password for the brokers"),
        |t| {
            let mechanism = t.choice(
                "mechanism",
                &[
                    ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
                    ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
                    ("PLAIN", SaslMechanism::Plain),
                ],
                Some(SaslMechanism::ScramSha512),
                "as the brokers want it; PLAIN sends the password as it is",
            );
            let username = t.secret(required("username", "string", "user"), values::user_name);
            let file = required("password_file", "path", "file with the password");
            let password_file = t.file(file, true);
            Some(Sasl { mechanism: mechanism?, username: username?, password_file: password_file? })
        },
    );
    let tls = t
        .optional_section(optional("tls", TABLE, "plain TCP", "its presence means TLS"), kafka_tls);
    let is_plain = matches!(&sasl, Some(Some(Sasl { mechanism: SaslMechanism::Plain, .. })));
    if is_plain && tls.is_none() {
        let path = format!("{}.mechanism", t.path_of("sasl"));
        let message = "sends the password readable without tls, better: tls, or SCRAM-SHA-512";
        t.cx.problem_at(&path, &path, message, Severity::Warning);
    }
    let tls = match tls {
        Some(tls) => Some(tls?),
        None => None,
    };
    let sasl = match sasl {
        Some(sasl) => Some(sasl?),
        None => None,
    };
    let (brokers, topic) = topic?;
    Some(Kafka { brokers, topic, tls, sasl })
}

#[cfg(feature = "kafka")]
fn with_kafka(_: &Table<'_, '_>, output: Option<KafkaOutput>) -> Option<OutputKind> {
    output.map(OutputKind::Kafka)
}

#[cfg(not(feature = "kafka"))]
fn with_kafka(t: &Table<'_, '_>, _: Option<KafkaOutput>) -> Option<OutputKind> {
    without_kafka(t);
    None
}

/// Its keys were read all the same: they may hold more problems.
#[cfg(not(feature = "kafka"))]
fn without_kafka(t: &Table<'_, '_>) {
    let message = "this binary was built without kafka: build it, or the image, with the \
                   feature kafka (README, \"Scaling out on Kafka\")";
    t.cx.error(&t.path_of("type"), message);
}

/// A source's name, and itself as far as it could be read.
type SourceDraft = (Option<String>, Option<Source>);

fn source(t: &mut Table<'_, '_>) -> SourceDraft {
    let name = t.word(
        required("name", "name", "the label `listener` in metrics; unique"),
        values::output_name,
    );
    let kind = t.choice("type", &[("kafka", ())], None, "where events come from");
    let topic = kafka_topic(t);
    let group = t.word(
        required("group", "name", "consumer group: its relays share the topic's partitions"),
        |text| values::printable(text, 255),
    );
    let max_in_flight = t.size(
        "max_in_flight",
        64 * MIB,
        ROOM_MIN..,
        "bytes of messages taken that not every output has acknowledged: what a crash repeats",
    );
    let session_timeout = t.time(
        "session_timeout",
        secs(10),
        secs(1)..=secs(1800),
        "a relay that was killed is missed after so long, and the group's others take its partitions \
         over; brokers allow 6s to 30m by default",
    );
    let cluster = kafka(t, topic);
    #[cfg(not(feature = "kafka"))]
    if kind.is_some() {
        without_kafka(t);
    }
    let read = || {
        let ((), cluster, group) = (kind?, cluster?, group?);
        let kafka = KafkaSource { cluster, group, max_in_flight, session_timeout };
        Some(Source { name: name.clone()?, kind: kafka_source(kafka)? })
    };
    let source = read();
    (name, source)
}

#[cfg(feature = "kafka")]
#[allow(clippy::unnecessary_wraps, reason = "there is none in a binary without kafka")]
fn kafka_source(source: KafkaSource) -> Option<SourceKind> {
    Some(SourceKind::Kafka(source))
}

#[cfg(not(feature = "kafka"))]
fn kafka_source(_: KafkaSource) -> Option<SourceKind> {
    None
}

fn proxy(t: &mut Table<'_, '_>) -> Option<Template> {
    let meaning =
        "http://[USER:PASSWORD@]HOST[:PORT], which is asked for every connection (CONNECT)";
    t.secret(optional("proxy", "URL", "none", meaning), values::proxy_url)
}

fn line_format(t: &mut Table<'_, '_>) -> Option<LineFormat> {
    t.choice(
        "format",
        &LINE_FORMATS,
        Some(LineFormat::Ndjson),
        "lines: each event as received, or with kind and apiVersion as in kube-apiserver's audit.log",
    )
}

fn tcp(t: &mut Table<'_, '_>) -> Option<TcpOutput> {
    let format = line_format(t);
    let replay_window = replay_window(t);
    let stream = stream(t);
    Some(TcpOutput { format: format?, stream: stream?, replay_window })
}

fn syslog(t: &mut Table<'_, '_>) -> Option<SyslogOutput> {
    let framing = t.choice(
        "framing",
        &[("octet_counting", Framing::OctetCounting), ("newline", Framing::Newline)],
        Some(Framing::OctetCounting),
        "how messages are told apart (RFC 6587, RFC 5425)",
    );
    let messages = messages(t);
    let replay_window = replay_window(t);
    let stream = stream(t);
    Some(SyslogOutput { framing: framing?, messages: messages?, stream: stream?, replay_window })
}

fn lumberjack(t: &mut Table<'_, '_>) -> Option<LumberjackOutput> {
    let level = t.count("compression_level", 3, 0..=9, "of zlib; 0: events are not compressed");
    let window = t.count(
        "window",
        2048,
        1..=WINDOW_MAX,
        "events that may be unacknowledged; after a break they are sent again",
    );
    let stream = stream(t);
    let compression_level = u32::try_from(level).unwrap_or_default();
    Some(LumberjackOutput { compression_level, window, stream: stream? })
}

fn relp(t: &mut Table<'_, '_>) -> Option<RelpOutput> {
    let messages = messages(t);
    let window = t.count(
        "window",
        128,
        1..=WINDOW_MAX,
        "messages that may be unacknowledged; after a break they are sent again",
    );
    let stream = stream(t);
    Some(RelpOutput { messages: messages?, window, stream: stream? })
}

fn messages(t: &mut Table<'_, '_>) -> Option<Messages> {
    let facility = t.choice("facility", &values::FACILITIES, Some(16), "of each message");
    let severity = t.choice("severity", &values::SEVERITIES, Some(6), "of each message");
    let hostname = t.word_or(
        ("hostname", "name", "HOSTNAME of each message"),
        &machine_name(),
        Some("the machine's"),
        |text| values::printable(text, 255),
    );
    let app_name =
        t.word_or(("app_name", "name", "APP-NAME of each message"), "kube-audit", None, |text| {
            values::printable(text, 48)
        });
    let max_message_bytes =
        t.size("max_message_bytes", 0, .., "longer messages are rejected, never cut; 0: no limit");
    Some(Messages {
        priority: facility? * 8 + severity?,
        hostname: hostname?,
        app_name: app_name?,
        max_message_bytes,
    })
}

/// The name of this machine (in a pod, the pod's), or RFC 5424's word for none.
fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    values::printable(name.trim(), 255).unwrap_or_else(|_| "-".to_owned())
}

fn stream(t: &mut Table<'_, '_>) -> Option<Stream> {
    let addresses =
        t.words(required("addresses", "array of host:port", "IPv6 in brackets"), values::host_port);
    let strategy = strategy(t);
    let keepalive =
        t.time("keepalive", secs(30), secs(1)..=KEEPALIVE_MAX, "interval of TCP keepalive");
    let idle_timeout = unless_zero(t.time(
        "idle_timeout",
        Duration::ZERO,
        ..,
        "reconnect after so long without events, before a load balancer drops the connection; \
         \"0s\": never",
    ));
    let tls = t.optional_section(
        optional("tls", TABLE, "plain TCP", "its presence means TLS"),
        client_tls,
    );
    let tls = match tls {
        Some(tls) => Some(tls?),
        None => None,
    };
    Some(Stream { addresses: addresses?, strategy: strategy?, tls, keepalive, idle_timeout })
}

fn replay_window(t: &mut Table<'_, '_>) -> Duration {
    t.time(
        "replay_window",
        secs(1),
        ..=secs(300),
        "what was sent is final when no reset came for so long after the peer's kernel had it; \
         after a break everything younger is sent again",
    )
}

fn client_tls(t: &mut Table<'_, '_>) -> Option<ClientTls> {
    let ca = ca(t);
    let identity = identity(t);
    let server_name = t.word(
        optional("server_name", "name", "the host dialled", "SNI, and the name that is verified"),
        values::server_name,
    );
    let min_version = min_version(t);
    let insecure_skip_verify = insecure_skip_verify(t);
    Some(ClientTls { ca, identity, server_name, min_version: min_version?, insecure_skip_verify })
}

/// Names and versions are OpenSSL's affair.
fn kafka_tls(t: &mut Table<'_, '_>) -> Option<ClientTls> {
    let (ca, identity) = (ca(t), identity(t));
    let insecure_skip_verify = insecure_skip_verify(t);
    Some(ClientTls { ca, identity, insecure_skip_verify, ..ClientTls::default() })
}

fn ca(t: &mut Table<'_, '_>) -> Option<PathBuf> {
    t.file(
        optional(
            "ca",
            "path",
            "the system's roots",
            "PEM bundle that the peer's chain must end in",
        ),
        true,
    )
}

/// The client's certificate and its key.
fn identity(t: &mut Table<'_, '_>) -> Option<(PathBuf, PathBuf)> {
    let cx = t.cx;
    let certificate = t.file(
        optional("certificate", "path", "none", "PEM chain of the client, with private_key"),
        true,
    );
    let private_key =
        t.file(optional("private_key", "path", "none", "PEM key of certificate"), true);
    let [certificate_path, key_path] = ["certificate", "private_key"].map(|name| t.path_of(name));
    match (cx.is_set(&certificate_path), cx.is_set(&key_path)) {
        (true, false) => {
            cx.error(&certificate_path, "needs its private_key, allowed: both or none")
        }
        (false, true) => cx.error(&key_path, "needs its certificate, allowed: both or none"),
        (true, true) | (false, false) => {}
    }
    certificate.zip(private_key)
}

fn insecure_skip_verify(t: &mut Table<'_, '_>) -> bool {
    let insecure_skip_verify = t.flag(
        "insecure_skip_verify",
        false,
        "true: any certificate will do; warned of at every start",
    );
    if insecure_skip_verify {
        let path = t.path_of("insecure_skip_verify");
        let message = "anybody in between can read and change the audit trail, better: ca";
        t.cx.problem_at(&path, &path, message, Severity::Warning);
    }
    insecure_skip_verify
}

fn retry(t: &mut Table<'_, '_>) -> Retry {
    let retry = Retry {
        initial_interval: t.time("initial_interval", millis(500), MOMENT.., "first wait"),
        max_interval: t.time("max_interval", secs(30), MOMENT.., "longest wait, before jitter"),
        multiplier: t.number("multiplier", 2.0, 1.0.., "of each wait to the next"),
        randomization_factor: t.number(
            "randomization_factor",
            0.5,
            0.0..=1.0,
            "each wait is drawn from 1 ± this times the interval",
        ),
        max_elapsed: t.optional_time(
            "max_elapsed",
            MOMENT..,
            "for ever",
            "what is not delivered so long after its first attempt is given up when the next one \
             fails, as rejected.action says",
        ),
    };
    let cx = t.cx;
    let [initial, max] = ["initial_interval", "max_interval"].map(|name| t.path_of(name));
    if retry.initial_interval > retry.max_interval && cx.are_known(&[&initial, &max]) {
        if cx.is_set(&initial) {
            cx.error(&initial, "is longer than max_interval, allowed: at most that");
        } else {
            cx.error(&max, "is shorter than initial_interval, allowed: at least that");
        }
    }
    retry
}

fn timeouts(t: &mut Table<'_, '_>) -> Timeouts {
    Timeouts {
        connect: t.time(
            "connect",
            secs(5),
            MOMENT..,
            "for the lookup of a name; and for TCP, proxy and TLS together, for each address; as long \
             again for relp's open",
        ),
        request: t.time(
            "request",
            secs(60),
            MOMENT..,
            "without any progress towards an acknowledgement; longer than a slow consumer takes, \
             or it gets the same batch again and again. http: as soon as the consumer's kernel has \
             the whole request, until the end of the final answer's head",
        ),
        max_connection_age: unless_zero(t.time(
            "max_connection_age",
            Duration::ZERO,
            ..,
            "then a connection is finished in order and dialled again, jittered; \"0s\": never",
        )),
    }
}

fn batch(t: &mut Table<'_, '_>) -> BatchLimits {
    BatchLimits {
        max_bytes: t.size(
            "max_bytes",
            4 * MIB,
            1..,
            "of one request or one write; one larger event travels alone",
        ),
        max_events: t.count(
            "max_events",
            5000,
            1..=u64::from(u32::MAX),
            "of one request or one write",
        ),
    }
}

fn log(t: &mut Table<'_, '_>) -> Option<Log> {
    let level = t.choice(
        "level",
        &[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ],
        Some(LogLevel::Info),
        "debug: one line per request and delivery",
    );
    let format = t.choice(
        "format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        Some(LogFormat::Text),
        "for people (control characters escaped), or for machines",
    );
    Some(Log { level: level?, format: format? })
}

fn dead_letter(t: &mut Table<'_, '_>) -> DeadLetter {
    DeadLetter {
        directory: t.directory(optional(
            "directory",
            "path",
            "dead-letter/ below queue.directory",
            "where rejected events go, as JSON lines; made 0700 if missing; without either \
             directory they are dropped and counted",
        )),
        max_bytes: t.size(
            "max_bytes",
            64 * MIB,
            DEAD_LETTER_MIN..,
            "of all dead-letter files together; the oldest go first, counted",
        ),
    }
}

/// Says once that what is to be kept has no place.
fn warn_without_place(cx: &Context<'_>, dead_letter: &DeadLetter, outputs: &[Draft]) {
    if is_durable(cx) || dead_letter.directory.is_some() || cx.is_set("dead_letter.directory") {
        return;
    }
    let action = |draft: &Draft| format!("{}.rejected.action", draft.path);
    let asks = |draft: &&Draft| {
        cx.is_set(&action(draft))
            && draft.output.as_ref().is_some_and(|it| it.rejected == Rejected::DeadLetter)
    };
    if let Some(draft) = outputs.iter().find(asks) {
        let path = action(draft);
        let message = "needs dead_letter.directory or queue.directory: without either, rejected \
                       events are dropped and counted";
        cx.problem_at(&path, &path, message, Severity::Warning);
    }
}

/// A batch of 400 events at level RequestResponse is seldom larger. The default of `max_body` may
/// be beyond what the other bounds leave, which is worth a warning only below this.
const USUAL_BODY: u64 = 64 * MIB;

/// The smallest of the bounds, with a warning where that is not the one configured, or is less than
/// usual batches need.
///
/// With a directory a large body lies in a file while it arrives, so `max_in_flight` does not bound
/// it.
fn effective_max_body(cx: &Context<'_>, limits: &Limits, queue: &Queue) -> u64 {
    let (in_flight, room, room_shown) = if is_durable(cx) {
        (u64::MAX, queue.max_bytes / 2, "queue.max_bytes / 2 (with queue.directory)")
    } else {
        (limits.max_in_flight, queue.max_bytes - BATCH_OVERHEAD, "queue.max_bytes - 256")
    };
    let bounds = [
        (limits.max_body, "limits.max_body", "max_body"),
        (in_flight, "limits.max_in_flight", "limits.max_in_flight"),
        (room, "queue.max_bytes", room_shown),
    ];
    // The first of equals: max_body itself, if it is among them.
    let [configured, ..] = bounds;
    let smallest = bounds.into_iter().min_by_key(|(size, ..)| *size).unwrap_or(configured);
    let known = cx.are_known(&["limits.max_body", "limits.max_in_flight", "queue.max_bytes"]);
    let is_asked_for = cx.is_set(configured.1) || smallest.0 < USUAL_BODY;
    if smallest.0 < configured.0 && known && is_asked_for {
        // A default is overruled by the key that is set, and the place to look at is there.
        let spot = if cx.is_set(configured.1) { configured.1 } else { smallest.1 };
        let message = format!("{} is smaller, and takes effect instead", smallest.2);
        cx.problem_at(configured.1, spot, message, Severity::Warning);
    }
    smallest.0
}

fn contradictions_of_queue(cx: &Context<'_>, queue: &Queue, outputs: &[Draft]) {
    match (is_durable(cx), queue.acknowledge) {
        (false, Acknowledge::Queued) | (true, Acknowledge::Synced) => {}
        (false, Acknowledge::Delivered) => contradictions_of_delivered(cx, queue, outputs),
        (false, Acknowledge::Synced) => cx.error(
            "queue.acknowledge",
            "needs queue.directory, allowed without it: \"queued\", \"delivered\"",
        ),
        (true, Acknowledge::Queued | Acknowledge::Delivered) => cx
            .error("queue.acknowledge", "contradicts queue.directory, allowed with it: \"synced\""),
    }
}

fn contradictions_of_delivered(cx: &Context<'_>, queue: &Queue, outputs: &[Draft]) {
    if queue.when_full != WhenFull::Reject {
        let message = "contradicts acknowledge = \"delivered\", allowed with it: \"reject\"";
        cx.error("queue.when_full", message);
    }
    let timeout_path = "queue.delivered_timeout";
    for draft in outputs.iter().filter(|draft| draft.required) {
        let path = format!("{}.replay_window", draft.path);
        let Some(window) = draft.replay_window else { continue };
        if window >= queue.delivered_timeout && cx.are_known(&[timeout_path, &path]) {
            let spot = if cx.is_set(&path) { &path } else { timeout_path };
            let message = format!(
                "must be over before {timeout_path} is with acknowledge = \"delivered\", \
                 allowed: less than that"
            );
            cx.problem_at(&path, spot, message, Severity::Error);
        }
    }
}

/// An offset may be committed only when every output has the events.
fn contradictions_of_sources(cx: &Context<'_>, queue: &Queue, sources: &[SourceDraft]) {
    for (index, (name, _)) in sources.iter().enumerate() {
        let first = sources.iter().position(|(other, _)| other == name).filter(|_| name.is_some());
        if let Some(first) = first.filter(|first| *first < index) {
            let message = format!("is the name of source[{first}] too, allowed: another");
            cx.error(&format!("source[{index}].name"), message);
        }
    }
    let path = "queue.acknowledge";
    if sources.is_empty() || !cx.are_known(&[path]) {
        return;
    }
    if is_durable(cx) {
        let message = "contradicts [[source]]: offsets are committed when every output has the \
                       events, and what the disk has would come again after a restart, allowed: \
                       leave it out";
        cx.error("queue.directory", message);
    } else if queue.acknowledge != Acknowledge::Delivered {
        let spot = if cx.is_set(path) { path } else { "source[0]" };
        let message = "contradicts [[source]]: an offset would be committed before the outputs \
                       have the events, and a crash would lose them, allowed: \"delivered\"";
        cx.problem_at(path, spot, message, Severity::Error);
    }
}

/// Whether the kernel refuses to bind one of these while the other is bound.
fn meets(one: SocketAddr, other: SocketAddr) -> bool {
    let wildcard = |it: SocketAddr| it.ip().is_unspecified();
    let same_family = one.is_ipv4() == other.is_ipv4();
    one == other
        || (one.port() == other.port() && same_family && (wildcard(one) || wildcard(other)))
}

fn contradictions_of_addresses(
    cx: &Context<'_>,
    listeners: &[(Option<SocketAddr>, Option<Listener>)],
    admin: Option<SocketAddr>,
) {
    for (index, (address, _)) in listeners.iter().enumerate() {
        let Some(address) = address.filter(|address| address.port() != 0) else { continue };
        let path = format!("listener[{index}].address");
        let first =
            listeners.iter().position(|(other, _)| other.is_some_and(|it| meets(it, address)));
        if let Some(first) = first.filter(|first| *first < index) {
            let message = format!("is the address of listener[{first}] too, allowed: another");
            cx.error(&path, message);
        }
        if admin.is_some_and(|admin| meets(admin, address)) {
            let spot = if cx.is_set("admin.address") { "admin.address" } else { &path };
            let message = format!("is the address of listener[{index}] too, allowed: another");
            cx.problem_at("admin.address", spot, message, Severity::Error);
        }
    }
}

fn contradictions_of_outputs(cx: &Context<'_>, outputs: &[Draft]) {
    if let Some(first) = outputs.first()
        && outputs.iter().all(|draft| !draft.required)
    {
        let message =
            "is false for every output, allowed: true for at least one, which events are kept for";
        cx.error(&format!("{}.required", first.path), message);
    }
    for (index, draft) in outputs.iter().enumerate() {
        let before = outputs.iter().take(index);
        if let Some(name) = &draft.name
            && let Some(first) = before.clone().find(|other| other.name.as_ref() == Some(name))
        {
            let message = format!("is the name of {} too, allowed: another", first.path);
            cx.error(&format!("{}.name", draft.path), message);
        }
        if draft.kind == Some(Type::Stdout)
            && let Some(first) = before.clone().find(|other| other.kind == Some(Type::Stdout))
        {
            let message = format!("{} writes to stdout already, allowed: one", first.path);
            cx.error(&format!("{}.type", draft.path), message);
        }
    }
}
