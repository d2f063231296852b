//! Makes an `http` output of a backend and its servers.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::Chain;
use super::Global;
use super::NO_TIME;
use super::Notes;
use super::options::Switch;
use super::options::host_and_port;
use super::options::is_variable;
use super::options::min_version;
use super::options::switches;
use super::read::Line;
use super::time;
use crate::config;

/// The settings of a table `[[output]]` in the new config. A setting that is `None` keeps its
/// default.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) urls: Vec<String>,
    /// `true`: `strategy` is `round_robin`; `false`: the strategy keeps its default.
    pub(super) is_round_robin: bool,
    pub(super) headers: Vec<(String, String)>,
    pub(super) tls: Option<ServerTls>,
    pub(super) connect: Option<Duration>,
    pub(super) request: Option<Duration>,
}

/// The settings of a table `[output.tls]` in the new config.
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
}

/// The relay's default value of `timeouts.request`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

impl Output {
    /// Makes the output for the backend of `chain`. `port`, the port of the first listener, is used
    /// for each server whose address has no port. `None` if the relay can use no server of the
    /// backend.
    pub(super) fn read(
        chain: &Chain<'_>,
        global: &Global,
        port: &str,
        notes: &mut Notes,
    ) -> Option<Self> {
        let mut servers = servers(chain, global, port, notes);
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
                notes.left(server.line, why);
            }
            fits
        });
        let is_round_robin = balance(chain, &servers, notes);
        let mut urls: Vec<String> = Vec::new();
        for server in &servers {
            let scheme = if server.tls.is_some() { "https" } else { "http" };
            let url = format!("{scheme}://{}/", server.address);
            // All servers of a `server-template` have the same URL.
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() {
            return None;
        }
        let (connect, request) = timeouts(chain, notes);
        let name = name(chain.file.sections[chain.backend].name());
        let headers = headers(chain, notes);
        Some(Self { name, urls, is_round_robin, headers, tls, connect, request })
    }
}

/// Returns `true` if the output takes its URLs in turn (`strategy = "round_robin"`), as HAProxy
/// takes servers in turn by default.
fn balance(chain: &Chain<'_>, servers: &[Server<'_>], notes: &mut Notes) -> bool {
    let has_backup = servers.iter().any(|server| server.is_backup);
    let lines = chain.of_backend(&["balance"]);
    let algorithm = lines.last().map_or("roundrobin", |line| line.word(1));
    let in_turn = servers.len() > 1 && algorithm != "first" && !has_backup;
    for line in &lines {
        match algorithm {
            _ if servers.len() < 2 => notes.carried(line),
            _ if has_backup => {
                let why = "with a backup, the relay uses the first server that works, in the order of urls";
                notes.left(line, why);
            }
            "roundrobin" | "static-rr" | "first" => notes.carried(line),
            _ => notes.left(line, "the servers are taken in turn (strategy = \"round_robin\")"),
        }
    }
    let in_service = servers.iter().filter(|server| !server.is_backup).count();
    if lines.is_empty() && has_backup && in_service > 1 {
        for server in servers.iter().filter(|server| server.is_backup) {
            let why = "with a backup, the relay uses the first server that works, in the order of urls; it does not use the servers in turn";
            notes.part(server.line, "server … backup", why);
        }
    }
    in_turn
}

fn timeouts(chain: &Chain<'_>, notes: &mut Notes) -> (Option<Duration>, Option<Duration>) {
    let (mut connect, mut request) = (None, None);
    let timeouts = ["connect", "server", "queue", "check"];
    for line in timeouts.iter().flat_map(|name| chain.of_backend(&["timeout", name])) {
        match (line.word(1), time(line.word(2))) {
            ("connect" | "server", None) => {
                notes.left(line, NO_TIME);
                continue;
            }
            ("connect", Some(limit)) => connect = Some(limit),
            ("server", Some(limit)) if limit >= REQUEST_TIMEOUT => request = Some(limit),
            ("server", Some(_)) => {
                let why = "timeouts.request stays 60s: a shorter one sends a slow consumer the same batch again and \
                           again";
                notes.left(line, why);
                continue;
            }
            ("queue", _) => {
                notes.left(
                    line,
                    "events that wait stay in the queue, as long as the queue has room",
                );
                continue;
            }
            ("check", _) => {
                notes.left(line, "an address that is down is tried within timeouts.connect");
                continue;
            }
            _ => continue,
        }
        notes.carried(line);
    }
    (connect, request)
}

/// Returns the name and value of each header that a line such as `http-request set-header NAME
/// VALUE` sets. Lines with a condition or an expression are reported and left out.
fn headers(chain: &Chain<'_>, notes: &mut Notes) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for line in chain.of_all(&["http-request"]) {
        let sets = matches!(line.word(1), "set-header" | "add-header");
        let (name, value) = (line.word(2).to_lowercase(), line.word(3));
        let fits = line.words.len() == 4
            && !value.contains('%')
            && config::header_name(&name).is_ok()
            && config::header_value(value).is_ok();
        if sets && fits {
            if name == "authorization" {
                let why = "the config holds the credentials as plain text: bearer_token_file and basic_auth read them from a file";
                notes.part(line, "http-request … Authorization", why);
            }
            headers.retain(|(other, _)| *other != name);
            headers.push((name, value.to_owned()));
            notes.carried(line);
        } else if sets {
            notes.left(line, "output.headers can hold only values that are the same for every request, and no header that the relay sets itself");
        }
    }
    headers
}

fn servers<'a>(
    chain: &Chain<'a>,
    global: &Global,
    port: &str,
    notes: &mut Notes,
) -> Vec<Server<'a>> {
    let mut defaults = global.server_options.clone();
    for line in chain.of_backend(&["default-server"]) {
        defaults.extend_from_slice(&line.words[1..]);
        notes.carried(line);
    }
    let mut servers = Vec::new();
    for line in &chain.file.sections[chain.backend].lines {
        let at = match line.word(0) {
            "server" => 2,
            // The address in `server-template PREFIX COUNT NAME:PORT` follows the prefix and the
            // count. One URL is enough, because the relay uses all addresses of a name.
            "server-template" => 3,
            _ => continue,
        };
        let mut words = defaults.clone();
        words.extend_from_slice(line.words.get(at + 1..).unwrap_or_default());
        notes.carried(line);
        let Some(address) = address(line.word(at), port) else {
            let why = format!(
                "left out: `{}` is not HOST:PORT: write the address of the consumer there",
                line.word(at)
            );
            notes.left(line, why);
            continue;
        };
        servers.extend(server(line, address, &switches(&words), global, notes));
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
    let (mut is_tls, mut is_backup) = (false, false);
    for switch in switches {
        if !switch.is_whole() {
            part(line, switch, "its value is missing", notes);
            continue;
        }
        if let Some(version) = min_version(switch) {
            tls.min_version = version.or(tls.min_version);
            continue;
        }
        let value = switch.value.as_str();
        match switch.name.as_str() {
            "check" | "no-check" | "enabled" | "check-ssl" => {}
            "backup" => is_backup = true,
            "no-backup" => is_backup = false,
            "ssl" => is_tls = true,
            "no-ssl" => is_tls = false,
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
                    part(
                        line,
                        switch,
                        "the name is the host of the URL, or output.tls.server_name",
                        notes,
                    );
                }
            },
            "disabled" => {
                notes.left(line, "left out: the server is disabled");
                return None;
            }
            "weight" if value == "0" => {
                notes.left(line, "left out: the weight of the server is 0");
                return None;
            }
            _ => part(line, switch, reason(switch), notes),
        }
    }
    if is_tls && tls.insecure_skip_verify {
        let why =
            "as before, anybody on the way can read and change events: output.tls.ca is better";
        notes.part(line, &format!("server {} … verify none", line.word(1)), why);
    }
    if is_tls && !tls.insecure_skip_verify && tls.server_name.is_none() {
        let host = host_and_port(&address).map_or("", |(host, _)| host);
        let why = format!(
            "HAProxy checks only who has signed the certificate; the relay also checks that it names {host}: set \
             output.tls.server_name if it names another host"
        );
        notes.part(line, &format!("server {} … ssl", line.word(1)), why);
    }
    Some(Server { line, address, tls: is_tls.then_some(tls), is_backup })
}

/// Returns `true` if the text can be a host name in a certificate, or contains an environment
/// variable.
fn is_name(text: &str) -> bool {
    is_variable(text) || config::server_name(text).is_ok()
}

fn part(line: &Line, switch: &Switch, reason: &str, notes: &mut Notes) {
    notes.part(line, &format!("server {} … {}", line.word(1), switch.shown()), reason);
}

fn reason(switch: &Switch) -> &'static str {
    match switch.name.as_str() {
        "inter" | "fastinter" | "downinter" | "rise" | "fall" | "port" | "addr" | "observe"
        | "on-error" | "error-limit" | "check-sni" | "check-alpn" | "check-proto"
        | "agent-check" | "agent-port" | "agent-addr" | "agent-inter" => {
            "a server is down when a request fails, and up when a connection to it succeeds again"
        }
        "weight" => "all servers have the same weight",
        "maxconn" | "minconn" | "maxqueue" | "pool-max-conn" => {
            "output.concurrency is the number of requests at once, 4 by default"
        }
        "send-proxy" | "send-proxy-v2" => {
            "the relay does not speak the PROXY protocol: the consumer must not wait for it"
        }
        "proto" | "alpn" => "http outputs speak HTTP/1.1",
        "resolvers" | "resolve-prefer" | "resolve-net" | "resolve-opts" | "init-addr" => {
            "names are resolved at each connection and each 30 s, as resolv.conf says"
        }
        "ciphers" | "ciphersuites" | "curves" => {
            "the TLS library rustls has no weak cipher suites that could be left out"
        }
        _ => "the relay has nothing that corresponds to it",
    }
}

/// Returns the `host:port` for the URL of the server whose address is `text`. If the address has no
/// port, `port` is used. `None` if the address names no host.
fn address(text: &str, port: &str) -> Option<String> {
    let (host, port) = host_and_port(text).unwrap_or((text, port));
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_name = !host.is_empty() && host.chars().all(in_a_name);
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
