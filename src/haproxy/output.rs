//! Makes an output of a backend and its servers, or of a ring and its servers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::bind::{Tls, host_and_port, is_variable, min_version};
use super::global::Global;
use super::proxy::Proxy;
use super::read::Section;
use super::report::{Line, Notes, Verdict};
use super::settings::time;
use super::words;
use super::words::{Switch, switches};
use crate::config;

/// The settings of a table `[[output]]` in the new config. A setting that is `None` keeps its
/// default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) name: String,
    /// The value of `type`: `http`, `tcp` or `syslog`.
    pub(super) kind: &'static str,
    /// The URLs of an `http` output. The `addresses` of any other one.
    pub(super) urls: Vec<String>,
    /// `true`: `strategy` is `round_robin`; `false`: the strategy keeps its default.
    pub(super) is_round_robin: bool,
    pub(super) compression: Option<&'static str>,
    pub(super) concurrency: Option<u64>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) tls: Option<Tls>,
    pub(super) connect: Option<Duration>,
}

/// The settings of one `server` line of the backend.
struct Server<'a> {
    line: &'a Line,
    /// The server's address, as `host:port`.
    address: String,
    is_tls: bool,
    tls: Tls,
    is_backup: bool,
    is_disabled: bool,
    weight: Option<u64>,
    maxconn: Option<u64>,
}

/// The relay's default value of `output.concurrency`, in requests.
const CONCURRENCY: u64 = 4;

impl Output {
    /// Makes the output for the requests that come in at `front` and go to `back`. The first of
    /// `ports`, the ports of the listeners, is used for each server whose address has no port.
    /// `None` if the relay can use no server of the backend.
    pub(super) fn read(
        name: &str,
        front: &Proxy<'_>,
        back: &Proxy<'_>,
        global: &Global<'_>,
        ports: &[&str],
        notes: &mut Notes,
    ) -> Option<Self> {
        let mut servers = servers(back, global, ports, notes);
        // The output tries its URLs in order, so the backup servers come after all other servers.
        servers.sort_by_key(|server| server.is_backup);
        let tls = one_tls(&mut servers, notes);
        // The smallest `maxconn` limits all requests together, so that no server gets more than its
        // own limit allows.
        let least = servers.iter().filter_map(|server| server.maxconn).min();
        // Only reported: the limit of a request keeps its default.
        time(back, "server", notes);
        let mut output = Self {
            name: self::name(name),
            kind: "http",
            urls: Vec::new(),
            is_round_robin: balance(back, &servers, notes),
            compression: None,
            concurrency: least.filter(|&count| count < CONCURRENCY),
            headers: Vec::new(),
            tls,
            connect: time(back, "connect", notes),
        };
        // A `listen` section that has the servers itself is one proxy.
        let proxies = if front.place == back.place { vec![front] } else { vec![front, back] };
        let (mut path, mut query) = ("/", String::new());
        for proxy in &proxies {
            for line in proxy.all(&["http-request"]) {
                if proxy.is_http() {
                    output.rule(line, &mut path, &mut query, notes);
                } else {
                    notes.no_effect(line, "HAProxy ignores it, because the mode is tcp");
                }
            }
        }
        for server in &servers {
            let scheme = if server.is_tls { "https" } else { "http" };
            let url = format!("{scheme}://{}{path}{query}", server.address);
            // All servers of a `server-template` have the same URL.
            if !output.urls.contains(&url) {
                output.urls.push(url);
            }
        }
        output.compress(&proxies, notes);
        (!output.urls.is_empty()).then_some(output)
    }

    /// Returns this output for a consumer behind a frontend of `mode tcp`.
    pub(super) fn as_tcp(&self) -> Self {
        let host = |url: &String| url.split('/').nth(2).unwrap_or(url).to_owned();
        let urls = self.urls.iter().map(host).collect();
        Self {
            kind: "tcp",
            urls,
            headers: Vec::new(),
            compression: None,
            concurrency: None,
            ..self.clone()
        }
    }

    /// Makes a `syslog` output of a section `ring`, whose servers get HAProxy's log lines over TCP.
    /// `None` if it has no server that can be used.
    pub(super) fn of_ring(ring: &Section) -> Option<Self> {
        let servers = ring.lines.iter().filter(|line| line.word(0) == "server");
        let urls: Vec<String> = servers.filter_map(|line| address(line.word(2), "514")).collect();
        (!urls.is_empty()).then(|| Self {
            name: name(ring.name()),
            kind: "syslog",
            urls,
            is_round_robin: false,
            compression: None,
            concurrency: None,
            headers: Vec::new(),
            tls: None,
            connect: None,
        })
    }

    /// Returns `true` if the consumer gets the same from both outputs, whatever their names are.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        *self == Self { name: self.name.clone(), ..other.clone() }
    }

    /// Reads a rule that sets something to a fixed value for each request. `finish` reports every
    /// other rule.
    fn rule<'a>(
        &mut self,
        line: &'a Line,
        path: &mut &'a str,
        query: &mut String,
        notes: &mut Notes,
    ) {
        let value = line.word(2);
        match (line.word(1), line.words.len()) {
            ("set-header" | "add-header", 4) => self.header(line, notes),
            ("del-header", 3) => {
                let name = value.to_lowercase();
                self.headers.retain(|(other, _)| *other != name);
            }
            ("set-path", 3)
                if value.starts_with('/') && is_query(value) && !value.contains('?') =>
            {
                *path = value;
                notes.carried(line, "output.urls");
            }
            ("set-query", 3) if is_query(value) => {
                *query = format!("?{value}");
                notes.carried(line, "output.urls");
            }
            ("set-method", 3) if value == "POST" => notes.carried(line, ""),
            _ => {}
        }
    }

    /// Reads a rule that sets a header, unless the relay sets the header itself or the value is an
    /// expression.
    fn header(&mut self, line: &Line, notes: &mut Notes) {
        let (name, value) = (line.word(2).to_lowercase(), line.word(3));
        let is_valid = config::header_name(&name).is_ok() && config::header_value(value).is_ok();
        if !is_valid || value.contains('%') {
            return;
        }
        let is_first = self.headers.iter().all(|(other, _)| *other != name);
        if line.word(1) == "add-header" && !is_first {
            notes.decide(line, "HAProxy sent the header twice; the relay sends the last value");
        }
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.to_owned()));
        notes.carried(line, "output.headers");
    }

    /// Carries gzip over if HAProxy compresses requests, as it can since version 2.8.
    fn compress(&mut self, proxies: &[&Proxy<'_>], notes: &mut Notes) {
        let last = |words: &[&str]| proxies.iter().find_map(|proxy| proxy.last(words));
        let lines = (last(&["compression", "algo-req"]), last(&["compression", "direction"]));
        let (Some(algorithm), Some(direction)) = lines else { return };
        if algorithm.word(2) == "gzip" && matches!(direction.word(2), "request" | "both") {
            self.compression = Some("gzip");
            notes.carried(algorithm, "output.compression");
            notes.carried(direction, "output.compression");
        }
    }
}

/// Returns the TLS settings for all URLs of the output. Removes the servers that need other TLS
/// settings.
fn one_tls(servers: &mut Vec<Server<'_>>, notes: &mut Notes) -> Option<Tls> {
    // Settings that verify certificates have precedence: one server without verification must not
    // switch it off for the others.
    let settings = || servers.iter().filter(|server| server.is_tls).map(|server| &server.tls);
    let verifying = settings().find(|tls| !tls.insecure_skip_verify);
    let tls = verifying.or_else(|| settings().next()).cloned();
    servers.retain(|server| {
        let fits = !server.is_tls || Some(&server.tls) == tls.as_ref();
        if !fits {
            let why = "left out: an output has the same TLS settings for all its URLs";
            notes.decide(server.line, why);
        }
        fits
    });
    tls
}

/// Returns `true` if the output takes its URLs in turn (`strategy = "round_robin"`), which is
/// HAProxy's default for servers. Reports the options about this.
fn balance(back: &Proxy<'_>, servers: &[Server<'_>], notes: &mut Notes) -> bool {
    let in_service = servers.iter().filter(|server| !server.is_backup).count();
    let line = back.last(&["balance"]);
    let algorithm = line.map_or("roundrobin", |line| line.word(1));
    let algorithm = algorithm.split('(').next().unwrap_or_default();
    let takes_turns = in_service > 1 && algorithm != "first";
    let has_backup = in_service < servers.len();
    let weights: BTreeSet<u64> = servers.iter().map(|server| server.weight.unwrap_or(1)).collect();
    for Server { line, is_backup, weight, .. } in servers {
        let part = |option: &str| format!("server {} … {option}", line.word(1));
        if *is_backup && takes_turns {
            let why = "with a backup, the relay uses the first server that works, in the order of \
                       urls; it does not use the servers in turn";
            notes.decide_part(line, &part("backup"), why);
        }
        if let Some(weight) = weight {
            let verdict = match takes_turns && !has_backup && weights.len() > 1 {
                true => Verdict::Decide,
                false => Verdict::NoEffect,
            };
            let why = "the relay gives each server that is in use the same share of the requests";
            notes.add(line, &part(&format!("weight {weight}")), verdict, why);
        }
    }
    if let Some(line) = line {
        match algorithm {
            _ if in_service < 2 => notes.no_effect(line, "there is one server in use"),
            "roundrobin" | "static-rr" | "first" | "leastconn" | "random" => {
                notes.carried(line, "output.strategy");
            }
            _ => notes.decide(
                line,
                "HAProxy sent requests that are alike to the same server; the relay takes the \
                 servers in turn",
            ),
        }
    }
    takes_turns && !has_backup
}

/// Returns `true` if the text can be in the path or the query of a URL, and HAProxy uses it as it
/// is, without a sample expression.
fn is_query(text: &str) -> bool {
    let in_a_url = |c: char| c.is_ascii_graphic() && !"%\"<>\\^`{|}#".contains(c);
    !text.is_empty() && text.chars().all(in_a_url)
}

/// Returns the servers of a backend to which requests may go.
fn servers<'a>(
    back: &Proxy<'a>,
    global: &Global<'_>,
    ports: &[&str],
    notes: &mut Notes,
) -> Vec<Server<'a>> {
    let port = ports.first().copied().unwrap_or_default();
    let mut defaults = global.server_options.clone();
    for line in back.all(&["default-server"]) {
        defaults.extend_from_slice(&line.words[1..]);
        notes.carried(line, "output");
    }
    let has_servers = back.has(&["server"]) || back.has(&["server-template"]);
    let server = |line: &'a Line, at: usize, address: String, notes: &mut Notes| {
        let mut words = if at == 1 { Vec::new() } else { defaults.clone() };
        words.extend_from_slice(line.words.get(at + 1..).unwrap_or_default());
        Server::read(line, address, &words, global, notes)
    };
    let (mut servers, mut of_srv) = (Vec::new(), Vec::new());
    for &line in &back.lines {
        let at = match line.word(0) {
            "server" => 2,
            // The address in `server-template PREFIX COUNT NAME:PORT` follows the prefix and the
            // count. One URL is enough, because the relay uses all addresses of a name.
            "server-template" => 3,
            // `dispatch` is the address of a backend without servers, and has no options.
            "dispatch" if !has_servers => 1,
            _ => continue,
        };
        if let Some(host) = srv_host(line.word(at)) {
            let is_tls = line.words.iter().chain(&defaults).any(|word| word == "ssl");
            let port = if is_tls { 443 } else { 80 };
            of_srv.push((line, at, format!("{host}:{port}")));
            continue;
        }
        let Some(address) = address(line.word(at), port) else {
            notes.decide(line, &format!("left out: `{}` is not HOST:PORT", line.word(at)));
            continue;
        };
        if ports.len() > 1 && host_and_port(line.word(at)).is_none() {
            let why = format!(
                "HAProxy sent each request to the port of the server at which the request came in; \
                 the relay sends all of them to port {port}"
            );
            notes.decide(line, &why);
        }
        servers.extend(server(line, at, address, notes));
    }
    for (line, at, address) in of_srv {
        let until_then = match servers.is_empty() {
            true => format!("until then {address} stands for them, whose port is a guess"),
            false => "until then they are left out".to_owned(),
        };
        let why = format!(
            "HAProxy took hosts and ports from the SRV records of `{}`; the relay looks up \
             addresses only. Write a URL for each server into output.urls; {until_then}",
            line.word(at)
        );
        notes.decide(line, &why);
        if servers.is_empty() {
            servers.extend(server(line, at, address, notes));
        }
    }
    servers
}

impl<'a> Server<'a> {
    /// Reads the options of a `server` line. `None` if HAProxy sends no requests to the server.
    fn read(
        line: &'a Line,
        address: String,
        words: &[String],
        global: &Global<'_>,
        notes: &mut Notes,
    ) -> Option<Self> {
        let tls = Tls { insecure_skip_verify: global.trusts_all_servers, ..Default::default() };
        let mut server = Self {
            line,
            address,
            is_tls: false,
            tls,
            is_backup: false,
            is_disabled: false,
            weight: None,
            maxconn: None,
        };
        for switch in &switches(words, words::SERVER) {
            server.take(switch, global, notes);
        }
        if server.is_disabled || server.weight == Some(0) {
            notes.no_effect(line, "left out: the server is disabled, or its weight is 0");
            return None;
        }
        notes.carried(line, "output.urls");
        if server.is_tls {
            server.verification(notes);
        }
        Some(server)
    }

    fn take(&mut self, switch: &Switch, global: &Global<'_>, notes: &mut Notes) {
        let tls = &mut self.tls;
        let value = switch.value.as_str();
        match switch.name.as_str() {
            // The relay watches every server by itself.
            "check" | "no-check" | "check-ssl" | "stick" | "non-stick" => {}
            "enabled" => self.is_disabled = false,
            "disabled" => self.is_disabled = true,
            "backup" => self.is_backup = true,
            "no-backup" => self.is_backup = false,
            "ssl" => self.is_tls = true,
            "no-ssl" => self.is_tls = false,
            "verify" => tls.insecure_skip_verify = value == "none",
            "ca-file" if value == "@system-ca" => tls.ca = None,
            "ca-file" => tls.ca = Some(Global::path(global.ca_base, value)),
            "crt" => {
                tls.certificate = Some(Global::path(global.crt_base, value));
                tls.private_key = tls.certificate.clone();
            }
            "verifyhost" if is_name(value) => tls.server_name = Some(value.to_owned()),
            "sni" if fixed_name(value).is_some() => {
                tls.server_name = tls.server_name.take().or_else(|| fixed_name(value));
            }
            "weight" => self.weight = value.parse().ok(),
            "maxconn" => self.maxconn = value.parse().ok().filter(|&count| count > 0),
            // The relay's requests are HTTP/1.1, which such a server takes too.
            "alpn" if value.contains("http/1.1") => {}
            "proto" if matches!(value, "h1" | "none") => {}
            _ => match min_version(switch) {
                Some(version) => tls.min_version = version.or(tls.min_version),
                None => {
                    let part = format!("server {} … {}", self.line.word(1), switch.shown());
                    notes.other(self.line, &part, switch.is_harmless);
                }
            },
        }
    }

    /// Reports what happens to the check of the server's certificate.
    fn verification(&self, notes: &mut Notes) {
        let part = |option: &str| format!("server {} … {option}", self.line.word(1));
        if self.tls.insecure_skip_verify {
            let why = "carried over: as before, anybody on the way can read and change events; \
                       output.tls.ca is better";
            return notes.add(self.line, &part("verify none"), Verdict::NoEffect, why);
        }
        if self.tls.server_name.is_some() {
            return;
        }
        let host = host_and_port(&self.address).map_or("", |(host, _)| host);
        // A certificate usually names a host, and seldom an IP address.
        let verdict = match host.parse::<IpAddr>() {
            Ok(_) => Verdict::Decide,
            Err(_) => Verdict::NoEffect,
        };
        let why = format!(
            "HAProxy checks only who has signed the certificate; the relay also checks that it \
             names {host}, or output.tls.server_name if that is set"
        );
        notes.add(self.line, &part("ssl"), verdict, &why);
    }
}

/// Returns the name in an expression `str(NAME)` that gives every request the same name.
fn fixed_name(expression: &str) -> Option<String> {
    let name = expression.strip_prefix("str(")?.strip_suffix(')')?;
    is_name(name).then(|| name.to_owned())
}

/// Returns `true` if the text can be a host name in a certificate, or contains an environment
/// variable.
fn is_name(text: &str) -> bool {
    is_variable(text) || config::server_name(text).is_ok()
}

/// Returns the host in the name of an SRV record, such as `_http._tcp.logs.example.com`. The host
/// often has the addresses of the servers. `None` if `text` is not the name of an SRV record.
fn srv_host(text: &str) -> Option<&str> {
    let (_, rest) = text.strip_prefix('_')?.split_once("._")?;
    let (_, host) = rest.split_once('.')?;
    is_host(host).then_some(host)
}

fn is_host(text: &str) -> bool {
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    !text.is_empty() && !text.starts_with('_') && text.chars().all(in_a_name)
}

/// Returns the `host:port` for the URL of the server whose address is `text`. If the address has no
/// port, `port` is used. `None` if the address names no host, such as that of a Unix socket.
fn address(text: &str, port: &str) -> Option<String> {
    let (host, port) = host_and_port(text).unwrap_or((text, port));
    match host.parse::<Ipv6Addr>() {
        Ok(host) => Some(format!("[{host}]:{port}")),
        Err(_) if is_host(host) || is_variable(host) => Some(format!("{host}:{port}")),
        Err(_) => None,
    }
}

/// Makes the name of an output from the name of a backend. Only some characters are allowed,
/// because metrics and the cursors file use the name.
fn name(backend: &str) -> String {
    let part = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = backend.chars().map(part).take(56).collect();
    match name.trim_start_matches('-') {
        "" => "consumer".to_owned(),
        // Metrics use `queue` for the queue itself.
        "queue" => "backend-queue".to_owned(),
        name => name.to_owned(),
    }
}
