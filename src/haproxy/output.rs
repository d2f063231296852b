//! Makes an `http` output of a backend and its servers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::time::Duration;

use super::Global;
use super::NO_TIME;
use super::Notes;
use super::keywords::SERVER;
use super::options::NO_OLD;
use super::options::Switch;
use super::options::allows_old;
use super::options::host_and_port;
use super::options::is_too_old;
use super::options::is_variable;
use super::options::min_version;
use super::options::switches;
use super::proxy::Proxy;
use super::read::Line;
use super::report::shown;
use super::time;
use crate::config;

/// The settings of a table `[[output]]` in the new config. A setting that is `None` keeps its
/// default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) urls: Vec<String>,
    /// `true`: `strategy` is `round_robin`; `false`: the strategy keeps its default.
    pub(super) is_round_robin: bool,
    pub(super) compression: Option<&'static str>,
    pub(super) concurrency: Option<u64>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) tls: Option<ServerTls>,
    pub(super) connect: Option<Duration>,
    pub(super) request: Option<Duration>,
}

/// The settings of a table `[output.tls]` in the new config. Paths are those of the haproxy.cfg.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerTls {
    pub(super) ca: Option<String>,
    /// The file that holds both the certificate chain and the private key; `None` if HAProxy
    /// presents no certificate to the server.
    pub(super) certificate: Option<String>,
    pub(super) server_name: Option<String>,
    pub(super) min_version: Option<&'static str>,
    pub(super) insecure_skip_verify: bool,
}

/// The settings of one `server` line of the backend.
struct Server<'a> {
    line: &'a Line,
    /// The server's address, as `host:port`.
    address: String,
    tls: Option<ServerTls>,
    is_backup: bool,
    /// `weight`, if the server has one; 1 by default.
    weight: Option<u64>,
    /// `maxconn`, if the server has one.
    maxconn: Option<u64>,
}

/// The relay's default value of `timeouts.request`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

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
        global: &Global,
        ports: &[&str],
        notes: &mut Notes,
    ) -> Option<Self> {
        let mut servers = servers(back, global, ports, notes);
        // The output tries its URLs in order, so the backup servers come after all other servers.
        servers.sort_by_key(|server| server.is_backup);
        // If the servers' TLS settings differ, settings that verify certificates win: one server
        // without verification must not switch it off for the others.
        let settings = || servers.iter().filter_map(|server| server.tls.as_ref());
        let verifying = settings().find(|tls| !tls.insecure_skip_verify);
        let tls = verifying.or_else(|| settings().next()).cloned();
        servers.retain(|server| {
            let fits = server.tls.is_none() || server.tls == tls;
            if !fits {
                let why = "left out: an output has the same TLS settings for all its URLs";
                let act = "let all servers have one CA and one client certificate, or make a \
                           relay for each";
                notes.decide(server.line, &shown(server.line), why, act);
            }
            fits
        });
        let is_round_robin = balance(back, &servers, notes);
        let concurrency = concurrency(&servers);
        let mut request = Request::default();
        for proxy in proxies(front, back) {
            if proxy.is_http() {
                request.read(proxy, notes);
                continue;
            }
            for line in proxy.all(&["http-request"]) {
                notes.no_effect(line, &shown(line), "HAProxy ignores it, because the mode is tcp");
            }
        }
        let mut urls: Vec<String> = Vec::new();
        for server in &servers {
            let scheme = if server.tls.is_some() { "https" } else { "http" };
            let Request { path, query, .. } = &request;
            let url = format!("{scheme}://{}{path}{query}", server.address);
            // All servers of a `server-template` have the same URL.
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() {
            return None;
        }
        let (connect, timeout) = timeouts(back, notes);
        let compression = compression(front, back, notes);
        let headers = request.headers;
        let name = self::name(name);
        Some(Self {
            name,
            urls,
            is_round_robin,
            compression,
            concurrency,
            headers,
            tls,
            connect,
            request: timeout,
        })
    }

    /// Returns `true` if the consumer gets the same from both outputs, whatever their names are.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        *self == Self { name: self.name.clone(), ..other.clone() }
    }
}

/// Returns the proxies that a request passes: one if a `listen` section has the servers itself.
fn proxies<'a, 'b>(front: &'b Proxy<'a>, back: &'b Proxy<'a>) -> Vec<&'b Proxy<'a>> {
    if front.place == back.place { vec![front] } else { vec![front, back] }
}

/// Returns `true` if the output takes its URLs in turn (`strategy = "round_robin"`), as HAProxy
/// takes servers in turn by default.
fn balance(back: &Proxy<'_>, servers: &[Server<'_>], notes: &mut Notes) -> bool {
    let in_service = servers.iter().filter(|server| !server.is_backup).count();
    let has_backup = in_service < servers.len();
    let line = back.last(&["balance"]);
    let algorithm = line.map_or("roundrobin", |line| line.word(1));
    let algorithm = algorithm.split('(').next().unwrap_or_default();
    if has_backup && in_service > 1 && algorithm != "first" {
        for server in servers.iter().filter(|server| server.is_backup) {
            let why = "with a backup, the relay uses the first server that works, in the order of \
                       urls; it does not use the servers in turn";
            let act = "remove the URL of the backup and set strategy = \"round_robin\", or keep \
                       the order of urls";
            notes.decide(
                server.line,
                &format!("server {} … backup", server.line.word(1)),
                why,
                act,
            );
        }
    }
    let backups = servers.len() - in_service;
    if let Some(line) = back.last(&["option", "allbackups"]).filter(|_| backups > 1) {
        let why = "HAProxy used all backup servers at once; the relay uses the first that works";
        let act = "check that one backup takes the whole load";
        notes.decide(line, &shown(line), why, act);
    }
    let in_turn = in_service > 1 && algorithm != "first" && !has_backup;
    weights(servers, in_turn, notes);
    let Some(line) = line else { return in_turn };
    match algorithm {
        _ if in_service < 2 => notes.no_effect(line, &shown(line), "there is one server in use"),
        "roundrobin" | "static-rr" | "first" => notes.carried(line, "output.strategy"),
        "leastconn" | "random" => {
            let why = "any server may get any request, as with strategy = \"round_robin\"";
            notes.no_effect(line, &shown(line), why);
        }
        _ => {
            let why = "HAProxy sent requests that are alike to the same server; the relay takes \
                       the servers in turn";
            let act = "if the servers do not store into one place, keep one URL for each output";
            notes.decide(line, &shown(line), why, act);
        }
    }
    in_turn
}

/// Reports the weights of servers.
fn weights(servers: &[Server<'_>], in_turn: bool, notes: &mut Notes) {
    let weights: BTreeSet<u64> = servers.iter().map(|server| server.weight.unwrap_or(1)).collect();
    for server in servers {
        let Some(weight) = server.weight else { continue };
        let part = format!("server {} … weight {weight}", server.line.word(1));
        if in_turn && weights.len() > 1 {
            let why = "the servers had different shares of the requests; the relay gives each \
                       the same";
            let act = "check that the weakest server takes its share, or leave out its URL";
            notes.decide(server.line, &part, why, act);
        } else {
            let why = "there is one server in use at a time, or all weights are the same";
            notes.no_effect(server.line, &part, why);
        }
    }
}

/// Returns the number of requests at once, if the servers allow fewer than the relay's default. The
/// least `maxconn` bounds all requests together, so that no server gets more than its own.
fn concurrency(servers: &[Server<'_>]) -> Option<u64> {
    let least = servers.iter().filter_map(|server| server.maxconn).min()?;
    (least < CONCURRENCY).then_some(least)
}

fn timeouts(back: &Proxy<'_>, notes: &mut Notes) -> (Option<Duration>, Option<Duration>) {
    let (mut connect, mut request) = (None, None);
    for name in ["connect", "server"] {
        let Some(line) = back.last(&["timeout", name]) else { continue };
        match (name, time(line.word(2))) {
            (_, None) => notes.no_effect(line, &shown(line), NO_TIME),
            ("connect", Some(limit)) => {
                connect = Some(limit);
                notes.carried(line, "output.timeouts.connect");
            }
            (_, Some(limit)) if limit >= REQUEST_TIMEOUT => {
                request = Some(limit);
                notes.carried(line, "output.timeouts.request");
            }
            _ => {
                let why = "timeouts.request stays 60s: a shorter one sends a slow consumer the \
                           same batch again and again";
                notes.no_effect(line, &shown(line), why);
            }
        }
    }
    (connect, request)
}

/// Returns the value of `compression` if HAProxy compressed requests (since version 2.8).
fn compression(front: &Proxy<'_>, back: &Proxy<'_>, notes: &mut Notes) -> Option<&'static str> {
    let proxies = proxies(front, back);
    let line = proxies.iter().find_map(|proxy| proxy.last(&["compression", "algo-req"]))?;
    let directions =
        || proxies.iter().filter_map(|proxy| proxy.last(&["compression", "direction"]));
    let compresses = directions().find(|line| matches!(line.word(2), "request" | "both"))?;
    if line.word(2) != "gzip" {
        return None;
    }
    notes.carried(line, "output.compression");
    notes.carried(compresses, "output.compression");
    Some("gzip")
}

/// What rules change in each request, without a condition.
#[derive(Debug)]
struct Request {
    /// The path of the URL, from its `/` on.
    path: String,
    /// The query of the URL with its `?`, or an empty text.
    query: String,
    headers: Vec<(String, String)>,
}

impl Default for Request {
    fn default() -> Self {
        Self { path: "/".to_owned(), query: String::new(), headers: Vec::new() }
    }
}

/// Returns `true` if HAProxy uses the text as it is, without a sample expression.
fn is_literal(text: &str) -> bool {
    !text.contains('%')
}

impl Request {
    /// Reads the rules of a proxy that set something to a fixed value. Rules with a condition or an
    /// expression are reported and left out.
    fn read(&mut self, proxy: &Proxy<'_>, notes: &mut Notes) {
        for line in proxy.all(&["http-request"]) {
            let value = line.word(2);
            let is_url = |first: char| {
                value.starts_with(first)
                    && line.words.len() == 3
                    && is_literal(value)
                    && value.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}#".contains(c))
            };
            match line.word(1) {
                "set-header" | "add-header" => self.header(line, notes),
                "del-header" if line.words.len() == 3 => {
                    let name = value.to_lowercase();
                    self.headers.retain(|(other, _)| *other != name);
                }
                "set-path" if is_url('/') && !value.contains('?') => {
                    value.clone_into(&mut self.path);
                    notes.carried(line, "output.urls");
                }
                "set-query" if line.words.len() == 3 && is_literal(value) && is_query(value) => {
                    self.query = format!("?{value}");
                    notes.carried(line, "output.urls");
                }
                "set-method" if line.words.len() == 3 && value == "POST" => {
                    notes.no_effect(line, &shown(line), "the relay sends POST");
                }
                "set-path" | "set-query" => {
                    let why = "the path of the request depended on this line; the relay POSTs to \
                               the path of the URL";
                    let act = "write the path that the consumer expects into output.urls";
                    notes.decide(line, &shown(line), why, act);
                }
                _ => {}
            }
        }
    }

    fn header(&mut self, line: &Line, notes: &mut Notes) {
        let (name, value) = (line.word(2).to_lowercase(), line.word(3));
        let is_ours = config::header_name(&name).is_err();
        let fits = line.words.len() == 4
            && is_literal(value)
            && !is_ours
            && config::header_value(value).is_ok();
        if !fits {
            let why = if is_ours {
                "the relay sets this header itself, by the URL and the body"
            } else {
                "output.headers holds only values that are the same for every request"
            };
            let act = if name == "host" {
                "write the host that the consumer expects into output.urls"
            } else {
                "if the consumer needs the header, set a fixed value in output.headers, or have \
                 the consumer take the value from the event itself"
            };
            return notes.decide(line, &shown(line), why, act);
        }
        if line.word(1) == "add-header" && self.headers.iter().any(|(other, _)| *other == name) {
            let why = "HAProxy sent the header twice; the relay sends the last value only";
            notes.decide(line, &shown(line), why, "write one value that the consumer understands");
        }
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.to_owned()));
        notes.carried(line, "output.headers");
    }
}

/// Returns `true` if the text can be the query of a URL.
fn is_query(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}#".contains(c))
}

fn servers<'a>(
    back: &Proxy<'a>,
    global: &Global,
    ports: &[&str],
    notes: &mut Notes,
) -> Vec<Server<'a>> {
    let port = ports.first().copied().unwrap_or_default();
    let mut defaults = global.server_options.clone();
    for line in back.all(&["default-server"]) {
        defaults.extend_from_slice(&line.words[1..]);
        notes.carried(line, "output");
    }
    let mut servers = Vec::new();
    for line in &back.lines {
        let at = match line.word(0) {
            "server" => 2,
            // The address in `server-template PREFIX COUNT NAME:PORT` follows the prefix and the
            // count. One URL is enough, because the relay uses all addresses of a name.
            "server-template" => 3,
            _ => continue,
        };
        let mut words = defaults.clone();
        words.extend_from_slice(line.words.get(at + 1..).unwrap_or_default());
        let Some(address) = address(line.word(at), port) else {
            let why = format!("left out: `{}` is not HOST:PORT", line.word(at));
            let act = "write the address of the consumer into output.urls";
            notes.decide(line, &shown(line), why, act);
            continue;
        };
        if ports.len() > 1 && host_and_port(line.word(at)).is_none() {
            let why = format!(
                "HAProxy sent each request to the port of the server at which the request came in; \
                 the relay sends all of them to port {port}"
            );
            let act = "write the port of the consumer into output.urls";
            notes.decide(line, &format!("server {} {}", line.word(1), line.word(at)), why, act);
        }
        servers.extend(server(line, address, &switches(&words, SERVER), global, notes));
    }
    // `dispatch` is the address of a backend without servers.
    if let Some(line) = back.last(&["dispatch"]).filter(|_| servers.is_empty())
        && let Some(address) = address(line.word(1), port)
    {
        notes.carried(line, "output.urls");
        servers.push(Server {
            line,
            address,
            tls: None,
            is_backup: false,
            weight: None,
            maxconn: None,
        });
    }
    servers
}

fn server<'a>(
    line: &'a Line,
    address: String,
    switches: &[Switch],
    global: &Global,
    notes: &mut Notes,
) -> Option<Server<'a>> {
    let mut tls =
        ServerTls { insecure_skip_verify: global.trusts_all_servers, ..Default::default() };
    let (mut is_tls, mut is_backup, mut is_disabled) = (false, false, false);
    let (mut weight, mut maxconn) = (None, None);
    let name = line.word(1);
    for switch in switches {
        let part = format!("server {name} … {}", switch.shown());
        if switch.lacks_value {
            notes.lacks_value(line, &part);
            continue;
        }
        if is_too_old(switch) {
            let why = "HAProxy spoke only versions of TLS that the relay refuses (below 1.2)";
            notes.decide(line, &part, why, "let the consumer take TLS 1.2");
            continue;
        }
        if allows_old(switch) {
            notes.no_effect(line, &part, NO_OLD);
        }
        if let Some(version) = min_version(switch) {
            tls.min_version = version.or(tls.min_version);
            continue;
        }
        let value = switch.value.as_str();
        match switch.name.as_str() {
            // The relay watches every server by itself.
            "check" | "no-check" | "check-ssl" => {}
            "enabled" => is_disabled = false,
            "disabled" => is_disabled = true,
            "backup" => is_backup = true,
            "no-backup" => is_backup = false,
            "ssl" => is_tls = true,
            "no-ssl" => is_tls = false,
            "stick" | "non-stick" => {}
            "verify" => tls.insecure_skip_verify = value == "none",
            "ca-file" if value == "@system-ca" => tls.ca = None,
            "ca-file" => tls.ca = Some(Global::path(global.ca_base.as_ref(), value)),
            "crt" => tls.certificate = Some(Global::path(global.crt_base.as_ref(), value)),
            "verifyhost" if is_name(value) => tls.server_name = Some(value.to_owned()),
            "sni" => match value.strip_prefix("str(").and_then(|name| name.strip_suffix(')')) {
                Some(name) if is_name(name) => {
                    tls.server_name = tls.server_name.or_else(|| Some(name.to_owned()));
                }
                _ => {
                    let why = "the name depended on the request; the relay asks for the host of \
                               the URL, or for output.tls.server_name";
                    let act = "set output.tls.server_name to the name that the consumer expects";
                    notes.decide(line, &part, why, act);
                }
            },
            "weight" => weight = value.parse().ok(),
            "maxconn" => maxconn = value.parse().ok().filter(|&count| count > 0),
            // The relay's requests are HTTP/1.1, which such a server takes too.
            "alpn" if value.contains("http/1.1") => {}
            "proto" if value == "h1" || value == "none" => {}
            "alpn" | "proto" => {
                let why = "http outputs speak HTTP/1.1, and HAProxy spoke another protocol here";
                notes.decide(line, &part, why, "check that the consumer takes HTTP/1.1");
            }
            _ => match switch.fate {
                Some(fate) => notes.fate(line, &part, fate),
                None => notes.unknown(line, &part),
            },
        }
    }
    if is_disabled {
        notes.no_effect(line, &shown(line), "left out: the server is disabled");
        return None;
    }
    if weight == Some(0) {
        notes.no_effect(line, &shown(line), "left out: the weight of the server is 0");
        return None;
    }
    notes.carried(line, "output.urls");
    let tls = is_tls.then_some(tls);
    if let Some(tls) = &tls {
        verification(line, &address, tls, notes);
    }
    Some(Server { line, address, tls, is_backup, weight, maxconn })
}

/// Reports what becomes of the check of a server's certificate.
fn verification(line: &Line, address: &str, tls: &ServerTls, notes: &mut Notes) {
    for path in [&tls.ca, &tls.certificate].into_iter().flatten() {
        notes.file(line, path);
    }
    let name = line.word(1);
    if tls.insecure_skip_verify {
        let why = "carried over: as before, anybody on the way can read and change events; \
                   output.tls.ca is better";
        return notes.no_effect(line, &format!("server {name} … verify none"), why);
    }
    if tls.server_name.is_some() {
        return;
    }
    let host = host_and_port(address).map_or("", |(host, _)| host);
    let why = format!(
        "HAProxy checks only who has signed the certificate; the relay also checks that it names \
         {host}"
    );
    let part = format!("server {name} … ssl");
    if host.parse::<IpAddr>().is_ok() {
        let act = "run `check --connect`; set output.tls.server_name to a name that is in the \
                   consumer's certificate";
        notes.decide(line, &part, why, act);
    } else {
        notes.no_effect(line, &part, why);
    }
}

/// Returns `true` if the text can be a host name in a certificate, or contains an environment
/// variable.
fn is_name(text: &str) -> bool {
    is_variable(text) || config::server_name(text).is_ok()
}

/// Returns the `host:port` for the URL of the server whose address is `text`. If the address has no
/// port, `port` is used. `None` if the address names no host, as a Unix socket or an SRV record.
fn address(text: &str, port: &str) -> Option<String> {
    let (host, port) = host_and_port(text).unwrap_or((text, port));
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_service = host.starts_with('_');
    let is_name = !host.is_empty() && !is_service && host.chars().all(in_a_name);
    match host.parse::<Ipv6Addr>() {
        Ok(host) => Some(format!("[{host}]:{port}")),
        Err(_) if is_name || is_variable(host) => Some(format!("{host}:{port}")),
        Err(_) => None,
    }
}

/// Makes the name of an output from the name of a backend. Metrics and the cursors file use the
/// output's name, so that only some characters are allowed.
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
