//! Translates a forwarder's haproxy.cfg into a config of this relay: the work of `migrate haproxy`.
//!
//! HAProxy passes each request to one server of one backend, but in a relay every output gets every
//! event. One backend therefore becomes one output, the servers of that backend become the output's
//! URLs, and each frontend that sends to the backend becomes a listener. A line that has no
//! counterpart, or whose counterpart works differently, is reported with the reason. No line is
//! dropped in silence.
//!
//! Source: HAProxy's configuration manual, version 2.6.

use std::collections::BTreeSet;
use std::time::Duration;

use thiserror::Error;

use read::File;
use read::Line;
use read::Section;

mod options;
mod output;
mod read;
mod write;

use options::Bind;
use output::Output;

/// The result of a migration: a config of this relay that was made from a haproxy.cfg.
#[derive(Debug)]
pub struct Migrated {
    /// The config as TOML. It begins with a comment for each entry of `left`.
    pub config: String,
    /// The directives that the relay has no counterpart for, or whose counterpart works
    /// differently, in the order of their lines.
    pub left: Vec<Left>,
}

/// A directive of the haproxy.cfg that could not be carried over, or whose counterpart works
/// differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The line number of the directive in the haproxy.cfg, counted from 1.
    pub line: usize,
    /// The text of the directive, with single spaces between its words and without passwords.
    pub directive: String,
    /// The reason why the directive was not carried over, and what the relay does instead.
    pub reason: String,
}

/// The error for a haproxy.cfg from which no config can be made.
#[derive(Debug, Error)]
#[error("{missing}: nothing is written")]
pub struct Unusable {
    /// The reason why no config can be made, for the error message.
    missing: &'static str,
    /// The directives that the migration tried to use and could not use.
    pub left: Vec<Left>,
}

/// Translates `text`, a haproxy.cfg that forwards audit events, into a config of this relay that
/// does the same. `name` is the name of the file for comments in that config.
///
/// # Errors
///
/// No frontend has a usable `bind` line, or no frontend leads to a usable server.
pub fn migrate(text: &str, name: &str) -> Result<Migrated, Unusable> {
    let file = read::read(text);
    let mut notes = Notes::default();
    for (line, why) in &file.unreadable {
        notes.left(line, *why);
    }
    // Report only the lines that were tried: no config is written, so no other line is used either.
    let unusable = |missing: &'static str, notes: &mut Notes| {
        Err(Unusable { missing, left: std::mem::take(&mut notes.left) })
    };

    let global = Global::read(&file, &mut notes);
    let statistics = statistics_of(&file, &mut notes);
    let Some((backend, frontends)) = route(&file, statistics, &mut notes) else {
        return unusable("no frontend with `bind` leads to a backend with a server", &mut notes);
    };
    let mut binds: Vec<Bind> = frontends
        .iter()
        .flat_map(|&front| binds(&file.sections[front], &global, &mut notes))
        .collect();
    let mut addresses = BTreeSet::new();
    binds.retain(|bind| addresses.insert(bind.address.clone()));
    let Some(first) = binds.first() else {
        return unusable("no `bind` line can be carried over", &mut notes);
    };
    let port = first.port().to_owned();
    let chain = Chain { file: &file, frontends: &frontends, backend };
    let Some(output) = Output::read(&chain, &global, &port, &mut notes) else {
        return unusable("no `server` line can be carried over", &mut notes);
    };
    for line in chain.of_all(&["mode"]) {
        match line.word(1) {
            "http" => notes.carried(line),
            _ => notes.left(
                line,
                "the relay reads HTTP; TLS that HAProxy passed on unread needs listener.tls",
            ),
        }
    }
    let limits = Limits::read(&chain, &global, &mut notes);
    let log = Log::read(&chain, &mut notes);
    let admin = statistics.and_then(|place| bind_of_statistics(&file.sections[place], &mut notes));
    let admin = admin_address(admin, &binds);

    let used: BTreeSet<usize> = chain.sections().chain(statistics).collect();
    let left = notes.finish(&file, &used);
    let config = write::Config { name, left: &left, binds: &binds, limits, log, output, admin };
    Ok(Migrated { config: config.to_string(), left })
}

/// The lines of the haproxy.cfg that are dealt with so far: each is carried over into the new
/// config, reported to the user, or both.
#[derive(Debug, Default)]
struct Notes {
    /// The numbers of the lines that are carried over completely and need no explanation.
    carried: BTreeSet<usize>,
    left: Vec<Left>,
}

/// The greatest number of characters of a directive or a reason that a comment shows.
const SHOWN_CHARS_MAX: usize = 300;

impl Notes {
    /// Notes that a line is carried over completely, so that no report about it is needed.
    fn carried(&mut self, line: &Line) {
        self.carried.insert(line.number);
    }

    /// Adds a report that a whole line is not carried over, or works differently, with the reason.
    fn left(&mut self, line: &Line, reason: impl Into<String>) {
        self.part(line, &shown(line), reason);
    }

    /// Adds a report that `directive`, a part of a line, is not carried over, or works differently,
    /// with the reason.
    fn part(&mut self, line: &Line, directive: &str, reason: impl Into<String>) {
        let left = Left {
            line: line.number,
            directive: printable(directive),
            reason: printable(&reason.into()),
        };
        self.left.push(left);
    }

    /// Adds a report with a reason for every line that is neither carried over nor reported yet,
    /// and returns all reports in the order of their lines. `used` has the indices of the sections
    /// that are carried over into the new config.
    fn finish(mut self, file: &File, used: &BTreeSet<usize>) -> Vec<Left> {
        let explained: BTreeSet<usize> = self.left.iter().map(|left| left.line).collect();
        for (place, section) in file.sections.iter().enumerate() {
            let is_used = used.contains(&place) || section.kind() == "global";
            for line in &section.lines {
                if self.carried.contains(&line.number) || explained.contains(&line.number) {
                    continue;
                }
                let reason = if is_used { reason(line) } else { "its section is not carried over" };
                self.left(line, reason);
            }
            if !is_used && !explained.contains(&section.head.number) {
                self.left(&section.head, "nothing that is carried over uses it");
            }
        }
        self.left.sort_by_key(|left| left.line);
        self.left
    }
}

/// Returns the text cut to [`SHOWN_CHARS_MAX`] characters and without control characters, so that
/// the text can stand in a comment of one line.
fn printable(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(SHOWN_CHARS_MAX).map(printable).collect()
}

/// Returns the words of the line without words that hold passwords or tokens. An ellipsis stands
/// for the words that are left out.
fn shown(line: &Line) -> String {
    let secret_from = match (line.word(0), line.word(1)) {
        ("stats", "auth") | ("user", _) => 2,
        // The value of a header may be a token.
        ("http-request" | "http-response", "set-header" | "add-header") => 3,
        _ => usize::MAX,
    };
    let mut shown = line.words.iter().take(secret_from).cloned().collect::<Vec<_>>().join(" ");
    if line.words.len() > secret_from {
        shown.push_str(" …");
    }
    shown
}

/// Returns the reason why the relay has no counterpart for the directive in this line. The first
/// words of the directive decide which reason is returned.
fn reason(line: &Line) -> &'static str {
    match (line.word(0), line.word(1)) {
        ("option", "httplog" | "tcplog") | ("log-format", _) => {
            "log.level = \"debug\" writes a line for each request"
        }
        ("option", "httpchk" | "tcp-check" | "log-health-checks")
        | ("http-check" | "tcp-check", _) => {
            "an address that is down is tried by a connection (and a TLS handshake), and used again when it answers"
        }
        ("retries" | "retry-on", _) | ("option", "redispatch") => {
            "the relay keeps what is not delivered, and retries for ever, at any server"
        }
        ("option", _) => "the relay has no such option",
        ("acl" | "http-request" | "http-response" | "tcp-request" | "tcp-response", _) => {
            "the relay has no rules for requests; who may send is for a NetworkPolicy, listener.tls.client_ca or \
             listener.bearer_token_file"
        }
        ("stats", _) => "the relay's status page is at admin.address, without a password",
        ("monitor-uri" | "monitor", _) => "health is at admin.address: /livez and /readyz",
        ("cookie" | "stick" | "stick-table" | "hash-type", _) => "the relay keeps no sessions",
        ("errorfile" | "errorloc" | "errorfiles", _) => {
            "the relay's answers are Kubernetes Status objects, which kube-apiserver logs"
        }
        ("chroot" | "user" | "group" | "uid" | "gid" | "daemon" | "pidfile" | "ulimit-n", _) => {
            "the pod's security context and the container runtime take care of this"
        }
        ("nbthread" | "nbproc" | "cpu-map", _) => "the relay uses up to four cores by itself",
        ("resolvers" | "nameserver", _) => {
            "names are resolved at each connection and each 30 s, as resolv.conf says"
        }
        _ => "the relay has nothing that corresponds to it",
    }
}

/// The sections that are carried over: the frontends, and the backend to which all of them send.
struct Chain<'a> {
    file: &'a File,
    frontends: &'a [usize],
    backend: usize,
}

impl<'a> Chain<'a> {
    /// Returns the indices of the frontends' and the backend's sections, each followed by the index
    /// of its `defaults` section if it has one.
    fn sections(&self) -> impl Iterator<Item = usize> {
        let own = self.frontends.iter().copied().chain([self.backend]);
        let with_defaults = |place: usize| [Some(place), self.file.sections[place].defaults];
        own.flat_map(with_defaults).flatten()
    }

    /// Returns the lines that begin with `words` in the sections with the indices `places`. A
    /// section without such a line inherits the lines of its `defaults` section. Each line occurs
    /// only once in the result.
    fn lines(&self, places: &[usize], words: &[&str]) -> Vec<&'a Line> {
        let mut found: Vec<&Line> = Vec::new();
        for &place in places {
            let section = &self.file.sections[place];
            let own = matching(section, words);
            let own = match section.defaults {
                Some(defaults) if own.is_empty() => matching(&self.file.sections[defaults], words),
                _ => own,
            };
            for line in own {
                if !found.iter().any(|seen| seen.number == line.number) {
                    found.push(line);
                }
            }
        }
        found
    }

    /// Returns the lines of the frontends that begin with `words`. Lines that a frontend inherits
    /// from its `defaults` section are included.
    fn of_frontends(&self, words: &[&str]) -> Vec<&'a Line> {
        self.lines(self.frontends, words)
    }

    /// Returns the lines of the backend that begin with `words`. Lines that the backend inherits
    /// from its `defaults` section are included.
    fn of_backend(&self, words: &[&str]) -> Vec<&'a Line> {
        self.lines(&[self.backend], words)
    }

    /// Returns the lines of the frontends and of the backend that begin with `words`. Lines that
    /// they inherit from their `defaults` sections are included.
    fn of_all(&self, words: &[&str]) -> Vec<&'a Line> {
        self.lines(&[self.frontends, &[self.backend]].concat(), words)
    }
}

fn matching<'a>(section: &'a Section, words: &[&str]) -> Vec<&'a Line> {
    section.lines.iter().filter(|line| line.is(words)).collect()
}

/// The settings of the `global` sections that other sections depend on.
#[derive(Debug, Default)]
struct Global {
    ca_base: Option<String>,
    crt_base: Option<String>,
    /// `true`: `ssl-server-verify none` is set, so the certificates of servers are not checked.
    trusts_all_servers: bool,
    bind_options: Vec<String>,
    server_options: Vec<String>,
    maxconn: Option<u64>,
}

impl Global {
    fn read(file: &File, notes: &mut Notes) -> Self {
        let mut global = Self::default();
        let sections = file.sections.iter().filter(|section| section.kind() == "global");
        for line in sections.flat_map(|section| &section.lines) {
            let value = line.word(1).to_owned();
            match line.word(0) {
                "ca-base" => global.ca_base = Some(value),
                "crt-base" => global.crt_base = Some(value),
                "ssl-server-verify" => global.trusts_all_servers = value == "none",
                "ssl-default-bind-options" => global.bind_options = line.words[1..].to_vec(),
                "ssl-default-server-options" => global.server_options = line.words[1..].to_vec(),
                "maxconn" => match connections(line, notes) {
                    Some(count) => global.maxconn = Some(count),
                    None => continue,
                },
                // `Log::read` reads the `log` lines of this section and of the other sections
                // together.
                _ => continue,
            }
            notes.carried(line);
        }
        global
    }

    /// Returns the path of a file that a directive names. A relative `path` is joined to `base`, if
    /// there is a base directory such as `ca-base`.
    fn path(base: Option<&String>, path: &str) -> String {
        match base {
            Some(base) if !path.starts_with('/') => {
                format!("{}/{path}", base.trim_end_matches('/'))
            }
            _ => path.to_owned(),
        }
    }
}

/// Returns the index of a section that only shows HAProxy's statistics and sends to no server;
/// `None` if the file has no such section.
fn statistics_of(file: &File, notes: &mut Notes) -> Option<usize> {
    let place = file.sections.iter().position(|section| {
        let has = |words: &[&str]| !matching(section, words).is_empty();
        matches!(section.kind(), "frontend" | "listen")
            && (has(&["stats", "enable"]) || has(&["stats", "uri"]))
            && !has(&["server"])
            && !has(&["default_backend"])
            && !has(&["use_backend"])
    })?;
    let section = &file.sections[place];
    for words in [["stats", "enable"].as_slice(), &["stats", "refresh"], &["mode"]] {
        matching(section, words).into_iter().for_each(|line| notes.carried(line));
    }
    for line in matching(section, &["stats", "uri"]) {
        if line.word(2) == "/" {
            notes.carried(line);
        } else {
            notes.left(line, "the status page is at `/` of admin.address");
        }
    }
    Some(place)
}

/// Returns the address of HAProxy's statistics page, which becomes the address of the relay's
/// status page if no listener uses its port; `None` if the page has only addresses with TLS or
/// addresses that the relay cannot use.
fn bind_of_statistics(section: &Section, notes: &mut Notes) -> Option<Bind> {
    let binds = binds(section, &Global::default(), notes);
    binds.into_iter().find(|bind| bind.tls.is_none())
}

/// Returns the value of `admin.address` for the new config. If no listener uses the port of
/// HAProxy's statistics page, the result is the address of that page. Otherwise the result is
/// `0.0.0.0` with the first port from 9090 on that no listener uses.
fn admin_address(statistics: Option<Bind>, binds: &[Bind]) -> String {
    let is_free = |port: &str| binds.iter().all(|bind| bind.port() != port);
    if let Some(bind) = statistics.filter(|bind| is_free(bind.port())) {
        return bind.address;
    }
    let port = (9090..).find(|port: &u16| is_free(&port.to_string())).unwrap_or(9090);
    format!("0.0.0.0:{port}")
}

/// Returns the index of the backend to carry over and the indices of all frontends that send to
/// this backend. The backend is the one to which the first usable frontend sends; `None` if no
/// frontend leads to a server.
fn route(file: &File, statistics: Option<usize>, notes: &mut Notes) -> Option<(usize, Vec<usize>)> {
    let mut routes: Vec<(usize, usize)> = Vec::new();
    for (place, section) in file.sections.iter().enumerate() {
        let listens = matches!(section.kind(), "frontend" | "listen")
            && !matching(section, &["bind"]).is_empty()
            && Some(place) != statistics;
        if !listens {
            continue;
        }
        if let Some(line) = matching(section, &["disabled"]).first() {
            notes.left(line, "the section is disabled, and so left out");
            continue;
        }
        if let Some(backend) = backend_of(file, place, notes) {
            routes.push((place, backend));
        }
    }
    let backend = routes.first()?.1;
    let (ours, others): (Vec<_>, Vec<_>) = routes.into_iter().partition(|route| route.1 == backend);
    for (place, _) in others {
        let why = "a relay sends every event to every output: run another relay for the requests that come here";
        notes.left(&file.sections[place].head, why);
    }
    Some((backend, ours.into_iter().map(|(front, _)| front).collect()))
}

/// Returns the index of the section to whose servers a frontend sends; `None` if the frontend names
/// no section that exists. A `listen` section may have the servers itself.
fn backend_of(file: &File, place: usize, notes: &mut Notes) -> Option<usize> {
    let section = &file.sections[place];
    let find = |name: &str| {
        file.sections.iter().position(|section| {
            matches!(section.kind(), "backend" | "listen") && section.name() == name
        })
    };
    let mut backend = None;
    for line in matching(section, &["use_backend"]) {
        if line.words.len() == 2 && backend.is_none() {
            backend = find(line.word(1));
            notes.carried(line);
        } else {
            let why = "a relay sends every event to every output, whatever the request was";
            notes.left(line, why);
        }
    }
    if backend.is_none() && !matching(section, &["server"]).is_empty() {
        return Some(place);
    }
    let own = matching(section, &["default_backend"]);
    let inherited =
        section.defaults.map(|defaults| matching(&file.sections[defaults], &["default_backend"]));
    let line = own.last().copied().or_else(|| inherited?.last().copied());
    if let (None, Some(line)) = (backend, line) {
        backend = find(line.word(1));
        match backend {
            Some(_) => notes.carried(line),
            None => notes.left(line, "there is no backend of this name"),
        }
    }
    backend
}

/// Returns a listener for each usable address in the `bind` lines of a section.
fn binds(section: &Section, global: &Global, notes: &mut Notes) -> Vec<Bind> {
    let lines = matching(section, &["bind"]);
    lines.into_iter().flat_map(|line| Bind::read(line, global, notes)).collect()
}

/// The largest value that `limits.max_connections` accepts.
const CONNECTIONS_MAX: u64 = 1 << 20;

/// Returns the number in a `maxconn` line, but at most [`CONNECTIONS_MAX`]. `None` if the word is
/// not a number above 0.
fn connections(line: &Line, notes: &mut Notes) -> Option<u64> {
    let count = line.word(1).parse().ok().filter(|&count: &u64| count > 0)?;
    if count > CONNECTIONS_MAX {
        notes.left(line, format!("limits.max_connections is {CONNECTIONS_MAX} at the most"));
    }
    Some(count.min(CONNECTIONS_MAX))
}

/// The reason in the report about a time limit that the relay cannot take over, such as a limit of
/// zero or of more than a year.
const NO_TIME: &str =
    "not a time from 1ms to a year: the relay's default stays, because each of its waits must end";

/// Parses a time in HAProxy's syntax, such as `30s`; a number without a unit is in milliseconds.
/// `None` if the text is no time, if the time is zero (which means "no limit" in HAProxy), or if
/// the time is longer than a year.
fn time(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "us" => number.div_ceil(1000),
        "ms" | "" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "d" => number.checked_mul(86_400_000)?,
        _ => return None,
    };
    // The relay's config accepts no time above a year.
    (1..=31_536_000_000).contains(&millis).then(|| Duration::from_millis(millis))
}

/// The settings of `[limits]` in the new config. `None` means that the setting keeps its default.
#[derive(Debug, Default)]
struct Limits {
    max_connections: Option<u64>,
    header_timeout: Option<Duration>,
    body_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
}

/// The time for which kube-apiserver keeps an idle connection open. A server that closes the
/// connection earlier may break kube-apiserver's next request.
const KEPT_BY_SENDERS: Duration = Duration::from_secs(90);

/// The relay's default value of `limits.body_timeout`.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

impl Limits {
    fn read(chain: &Chain<'_>, global: &Global, notes: &mut Notes) -> Self {
        let mut limits = Self { max_connections: global.maxconn, ..Self::default() };
        for line in chain.of_frontends(&["maxconn"]) {
            let Some(count) = connections(line, notes) else { continue };
            let least = limits.max_connections.map_or(count, |other| other.min(count));
            limits.max_connections = Some(least);
            notes.carried(line);
        }
        let timeouts = ["http-request", "client", "http-keep-alive"];
        for line in timeouts.iter().flat_map(|name| chain.of_frontends(&["timeout", name])) {
            let Some(limit) = time(line.word(2)) else {
                notes.left(line, NO_TIME);
                continue;
            };
            match line.word(1) {
                "http-request" => limits.header_timeout = Some(limit),
                "client" if limit > BODY_TIMEOUT => limits.body_timeout = Some(limit),
                "client" => {
                    let why = "a whole body may take 30s here (limits.body_timeout), and a quiet connection stays open \
                               for 5m (limits.idle_timeout): kube-apiserver keeps its own for 90s";
                    notes.left(line, why);
                    continue;
                }
                "http-keep-alive" if limit > KEPT_BY_SENDERS => limits.idle_timeout = Some(limit),
                "http-keep-alive" => {
                    let why = "limits.idle_timeout stays 5m: kube-apiserver keeps a connection for 90s, and a request \
                               is lost if the relay closes the connection first";
                    notes.left(line, why);
                    continue;
                }
                _ => continue,
            }
            notes.carried(line);
        }
        limits
    }
}

/// The settings of `[log]` in the new config that differ from their defaults.
#[derive(Debug, Default)]
struct Log {
    level: Option<&'static str>,
    is_json: bool,
}

impl Log {
    fn read(chain: &Chain<'_>, notes: &mut Notes) -> Self {
        let mut log = Self::default();
        let uses = chain.of_all(&["log"]);
        let globals = chain.file.sections.iter().filter(|section| section.kind() == "global");
        let globals = globals.flat_map(|section| matching(section, &["log"]));
        let own = uses.iter().copied().filter(|line| line.word(1) != "global");
        for line in own.chain(globals) {
            log.take(line, notes);
        }
        uses.iter().filter(|line| line.word(1) == "global").for_each(|line| notes.carried(line));
        log
    }

    /// Reads the format and the level from a line `log TARGET [len N] [format F] … FACILITY [LEVEL
    /// [MINLEVEL]]`.
    fn take(&mut self, line: &Line, notes: &mut Notes) {
        if !["stdout", "stderr", "fd@1", "fd@2"].contains(&line.word(1)) {
            let why = "the relay logs to standard error, where the node's log collector takes it";
            return notes.left(line, why);
        }
        let format = line.words.iter().position(|word| word == "format");
        self.is_json |= format.is_some_and(|place| line.word(place + 1) == "json");
        let level = line.words.iter().skip(2).find_map(|word| match word.as_str() {
            "emerg" | "alert" | "crit" | "err" => Some("error"),
            "warning" => Some("warn"),
            "notice" | "info" => Some("info"),
            "debug" => Some("debug"),
            _ => None,
        });
        self.level = level.or(self.level);
        notes.carried(line);
    }
}

#[cfg(test)]
mod tests;
