//! Makes an output from a backend, or a ring, and its servers.

use std::net::Ipv6Addr;

use url::Url;

use super::options::{Settings, Tls, host_and_port, time};
use super::read::Proxy;
use super::report::{Line, Notes, secret_in};

/// The settings of a table `[[output]]` in the new config.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: String,
    /// The value of `type`: `http`, `tcp` or `syslog`.
    pub(super) kind: &'static str,
    /// The `urls` of an `http` output, the `addresses` of any other one.
    pub(super) urls: Vec<String>,
    /// `true`: `strategy` is `round_robin`. `false`: the default.
    pub(super) is_round_robin: bool,
    pub(super) headers: Vec<(String, String)>,
    pub(super) tls: Option<Tls>,
    /// `timeouts.connect`. `None`: the default.
    pub(super) connect: Option<String>,
}

impl Output {
    /// Makes an output of this type for the servers of `back`, which gets its requests from
    /// `front`. `None` if the relay can use no server.
    pub(super) fn read(
        kind: &'static str,
        front: &Proxy<'_>,
        back: &Proxy<'_>,
        notes: &mut Notes,
    ) -> Option<Self> {
        let mut servers: Vec<Settings<'_>> =
            back.all(["server"]).filter_map(|line| server(back, line, notes)).collect();
        // The output tries its URLs in order, so the backup servers come last.
        servers.sort_by_key(|server| server.is_backup);
        let tls = servers.iter().find_map(|server| server.tls.clone());
        servers.retain(|server| {
            let fits = server.tls == tls || server.tls.is_none() && kind == "http";
            match fits {
                true => notes.carried(server.line, "output.urls"),
                false => notes.decide(server.line, "left out: an output has a single TLS table"),
            }
            fits
        });
        let backups: Vec<_> = servers.iter().filter(|server| server.is_backup).collect();
        let takes_turns = takes_turns(back, notes) && servers.len() - backups.len() > 1;
        for server in backups.iter().filter(|_| takes_turns) {
            let why = "with a backup, the relay uses the first healthy server, not all in turn";
            notes.decide_part(server.line, &["backup".to_owned()], why);
        }
        let mut output = Self {
            name: name(back.section.name()),
            kind,
            urls: Vec::new(),
            is_round_robin: takes_turns && backups.is_empty(),
            headers: Vec::new(),
            tls,
            connect: time(back, "connect", "output.timeouts.connect", notes),
        };
        let mut path = "/";
        for proxy in [front, back].into_iter().filter(|it| it.is_http() && kind == "http") {
            proxy.all(["http-request"]).for_each(|line| output.rule(line, &mut path, notes));
        }
        let url = |server: &Settings<'_>| {
            let address = address(server.line.word(2))?;
            Some(match (kind, &server.tls) {
                ("http", None) => format!("http://{address}{path}"),
                ("http", Some(_)) => format!("https://{address}{path}"),
                _ => address,
            })
        };
        output.urls = servers.iter().filter_map(url).collect();
        (!output.urls.is_empty()).then_some(output)
    }

    /// Applies a rule that sets a header or the path to a fixed value for each request.
    fn rule<'a>(&mut self, line: &'a Line, path: &mut &'a str, notes: &mut Notes) {
        let (name, value) = (line.word(2).to_lowercase(), line.word(3));
        let is_header = config::header_name(&name).is_ok() && config::header_value(value).is_ok();
        match (line.word(1), line.words.len()) {
            ("set-header", 4) if is_header && !value.contains('%') => {
                let key = match secret_in(&name) {
                    Some(_) => "output.headers; prefer \"${file:PATH}\" to plain text",
                    None => "output.headers",
                };
                notes.carried(line, key);
                self.headers.retain(|(other, _)| *other != name);
                self.headers.push((name, value.to_owned()));
            }
            ("set-path", 3) if is_path(line.word(2)) => {
                *path = line.word(2);
                notes.carried(line, "output.urls");
            }
            _ => {}
        }
    }
}

/// Returns the settings of a `server` line. `None` if HAProxy does not use the server, or the relay
/// can't.
fn server<'a>(back: &Proxy<'a>, line: &'a Line, notes: &mut Notes) -> Option<Settings<'a>> {
    let settings = Settings::read(back, line, notes);
    if settings.is_unused || address(line.word(2)).is_none() {
        let why = format!("left out: `{}` is not HOST:PORT, or is unused", line.word(2));
        notes.decide(line, &why);
        return None;
    }
    let names_nothing = |tls: &Tls| !tls.insecure_skip_verify && tls.server_name.is_none();
    if settings.tls.as_ref().is_some_and(names_nothing) {
        let why = "HAProxy checks only who signed the certificate; the relay also checks that the \
            certificate names the server, or output.tls.server_name if set";
        notes.decide_part(line, &["ssl".to_owned()], why);
    }
    Some(settings)
}

/// Returns `true` if HAProxy spreads requests over the servers. In a ring, each server gets every
/// line, and with `balance first`, a server gets requests when the one before it is full.
fn takes_turns(back: &Proxy<'_>, notes: &mut Notes) -> bool {
    let line = back.last(["balance"]);
    let is_known = |line: &&Line| matches!(line.word(1), "roundrobin" | "static-rr" | "first");
    line.filter(is_known).into_iter().for_each(|line| notes.carried(line, "output.strategy"));
    line.is_none_or(|line| line.word(1) != "first") && back.section.kind() != "ring"
}

/// Returns `true` if the text is a URL path that HAProxy uses literally, without a sample
/// expression.
fn is_path(text: &str) -> bool {
    let in_a_path = |c: char| c.is_ascii_graphic() && !"%\"<>\\^`{|}#?".contains(c);
    text.starts_with('/') && text.chars().all(in_a_path)
}

/// Returns the `host:port` for the URL of a server. `None` if there is none that a URL can have.
fn address(text: &str) -> Option<String> {
    let (host, port) = host_and_port(text)?;
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let address = match host.parse::<Ipv6Addr>() {
        Ok(host) => format!("[{host}]:{port}"),
        Err(_) => format!("{}:{port}", Some(host).filter(|host| host.chars().all(in_a_name))?),
    };
    Url::parse(&format!("http://{address}/")).ok().map(|_| address)
}

/// Makes the name of an output from that of a backend. Metrics and the cursors file use the name,
/// so only some characters are allowed.
fn name(backend: &str) -> String {
    let part = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = backend.chars().map(part).take(56).collect();
    match name.trim_start_matches('-') {
        // In metrics, `queue` is the queue itself.
        "" | "queue" => "consumer".to_owned(),
        name => name.to_owned(),
    }
}
