//! Translates a forwarder's haproxy.cfg into a config of this relay, for `migrate haproxy`.
//!
//! HAProxy passes each request to one server of one backend, but in a relay every output gets every
//! event. One frontend is carried over: its addresses become listeners, its backend becomes the
//! output, and the servers of the backend become the output's URLs. Tables for the other consumers
//! of the file are in the config as comments.
//!
//! The settings of IBM Cloud's tutorial and of plain forwarders are carried over. No line is
//! dropped silently: the user has to decide about every other line, except those that `is_harmless`
//! knows.
//!
//! Source: HAProxy's configuration manuals 2.6, 2.8 and 3.0.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `report` | a line, and what is said of it |
//! | 2 | `read` `judge` | sections, lines and words of a file · HAProxy's own judgement |
//! | 3 | `options` | options of addresses, and times |
//! | 4 | `listener` `output` | addresses that are listened on · servers |
//! | 5 | `write` | the new config |

use std::collections::BTreeSet;

use thiserror::Error;

mod judge;
mod listener;
mod options;
mod output;
mod read;
mod report;
mod write;

use listener::Listener;
use options::{short_time, time};
use output::Output;
use read::{Proxy, Section};
use report::{Line, Notes, printable};

pub use judge::judge;
pub use report::{Finding, Report, Verdict};

/// The options of a migration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The name of the file, for comments in the new config.
    pub name: &'a str,
    /// The `frontend` or `listen` section to carry over. `None`: the first one that forwards HTTP
    /// to a server, or else the first one that leads to a server.
    pub frontend: Option<&'a str>,
    /// `true`: the config has the paths of the haproxy.cfg, for a relay on HAProxy's machine.
    /// `false`: it has the paths at which the manifests of `deploy` mount Secrets.
    pub keeps_paths: bool,
    /// The report's sentence on whether HAProxy accepts the file.
    pub validity: &'a str,
}

/// The result of a migration.
#[derive(Debug)]
pub struct Migrated {
    /// The config as TOML. It begins with the report as comments.
    pub config: String,
    /// The findings for the lines of the haproxy.cfg.
    pub report: Report,
}

/// The error for a haproxy.cfg from which no config can be made.
#[derive(Debug, Error)]
#[error("{missing}: nothing is written")]
pub struct Unusable {
    /// The reason, for the error message.
    missing: String,
    /// The lines that are the reason: they can't be read, or the migration could not use them.
    pub findings: Vec<Finding>,
}

/// Translates `text`, a haproxy.cfg that forwards audit events, into a config of this relay that
/// does the same.
///
/// # Errors
///
/// No frontend, or none with the name in `options`, has a `bind` line and a server that can be
/// carried over.
pub fn migrate(text: &str, options: Options<'_>) -> Result<Migrated, Unusable> {
    let mut notes = Notes::default();
    let file = read::read(text, &mut notes);
    let used = route(&file, options.frontend)
        .and_then(|(front, back)| Some((carried(&front, &back, &mut notes)?, front, back)));
    let Some(((listeners, output), front, back)) = used else {
        let mut findings = notes.into_findings();
        findings.retain(|finding| finding.verdict == Verdict::Decide);
        let of_name = options.frontend.map(|it| format!(" `{}`", printable(it)));
        let of_name = of_name.unwrap_or_default();
        let missing = format!(
            "no frontend{of_name} with `bind` leads to a `server NAME HOST:PORT` that can be \
             carried over"
        );
        return Err(Unusable { missing, findings });
    };
    let config = write::Config {
        max_connections: max_connections(&front, &mut notes),
        header_timeout: time(&front, "http-request", "limits.header_timeout", &mut notes),
        others: others(&file, &back, &output),
        listeners,
        output,
        keeps_paths: options.keeps_paths,
    };
    let used: BTreeSet<usize> =
        front.sections.iter().chain(&back.sections).map(|section| section.head.number).collect();
    // The default log format contains the captured parts of requests.
    let logs_requests = ["log-format", "capture"].iter().any(|word| text.contains(word));
    for section in &file {
        finish(section, used.contains(&section.head.number), logs_requests, &mut notes);
    }
    let (findings, validity) = (notes.into_findings(), options.validity.to_owned());
    let report = Report { findings, validity, needs: config.needs() };
    let name = printable(options.name);
    let mut head = format!("# Made from {name} by `kube-audit-forwarder migrate haproxy`.\n#\n");
    for line in report.lines(options.name, Verdict::Carried) {
        head += &format!("{}\n", format!("# {line}").trim_end());
    }
    Ok(Migrated { config: head + &config.text(), report })
}

/// Returns the first frontend that leads to a server, preferably one for HTTP, and the section with
/// the servers. `name` is the name that the frontend must have.
fn route<'a>(file: &'a [Section], name: Option<&str>) -> Option<(Proxy<'a>, Proxy<'a>)> {
    let is_front = |place: &usize| matches!(file[*place].kind(), "frontend" | "listen");
    let fronts = (0..file.len()).filter(is_front).map(|place| Proxy::read(file, place));
    let fronts = fronts.filter(|front| name.is_none_or(|name| name == front.section.name()));
    let fronts = fronts.filter(|it| it.last(["bind"]).is_some() && it.last(["disabled"]).is_none());
    let routes = fronts.filter_map(|front| destination(file, &front).map(|back| (front, back)));
    routes.min_by_key(|(front, _)| !front.is_http())
}

/// Returns the section whose servers get the requests of a frontend: its `default_backend`, the
/// frontend itself, or the backend of a rule. Otherwise returns the ring to which the frontend's
/// log goes, if the log has the bodies of requests.
fn destination<'a>(file: &'a [Section], front: &Proxy<'a>) -> Option<Proxy<'a>> {
    let named = |kinds: [&str; 2], name: &str| {
        let is_it = |it: &Section| kinds.contains(&it.kind()) && it.name() == name;
        let place = file.iter().position(is_it)?;
        Some(Proxy::read(file, place)).filter(Proxy::has_servers)
    };
    let default = front.last(["default_backend"]);
    if default.is_none() && front.has_servers() {
        return Some(front.clone());
    }
    let mut rules = default.into_iter().chain(front.all(["use_backend"]));
    rules.find_map(|line| named(["backend", "listen"], line.word(1))).or_else(|| {
        let mut words = front.all([]).flat_map(|line| &line.words);
        words.clone().find(|word| word.contains("req.body"))?;
        named(["ring", ""], words.find_map(|word| word.strip_prefix("ring@"))?)
    })
}

/// Makes the listeners and the output of a frontend, and reports the lines that connect them.
/// `None` if the relay can use no address or no server.
fn carried(
    front: &Proxy<'_>,
    back: &Proxy<'_>,
    notes: &mut Notes,
) -> Option<(Vec<Listener>, Output)> {
    let listeners = Listener::all(front, notes);
    let kind = if back.section.kind() == "ring" { "syslog" } else { "http" };
    let output = Output::read(kind, front, back, notes).filter(|_| !listeners.is_empty())?;
    if let Some(line) = back.last(["mode"]).filter(|_| back.is_http()) {
        notes.carried(line, "the relay reads HTTP");
    }
    // Without a line `mode`, HAProxy forwards bytes that it does not read. The relay can read the
    // requests nevertheless if HAProxy ends or begins TLS.
    let is_read = listeners.iter().all(|listener| listener.tls.is_some())
        || output.urls.iter().all(|url| url.starts_with("https:"));
    match front.last(["mode"]).unwrap_or(&front.section.head) {
        line if front.is_http() || is_read => notes.carried(line, "the relay reads HTTP"),
        line => notes.decide(
            line,
            "without `mode http`, HAProxy forwarded raw bytes; the relay reads HTTP, and needs \
             [listener.tls] if the URL in the webhook's kubeconfig begins with https://",
        ),
    }
    if let Some(line) = front.last(["default_backend", back.section.name()]) {
        notes.carried(line, "output");
    }
    Some((listeners, output))
}

fn max_connections(front: &Proxy<'_>, notes: &mut Notes) -> Option<u64> {
    let line = front.last(["maxconn"])?;
    let number = line.word(1).parse().ok().filter(|number| (1..=1 << 20).contains(number))?;
    notes.carried(line, "limits.max_connections");
    Some(number)
}

/// Returns the outputs for the other consumers of the file, each with the comment that introduces
/// it.
fn others(file: &[Section], used: &Proxy<'_>, output: &Output) -> Vec<(String, Output)> {
    let mut names = BTreeSet::from([output.name.clone()]);
    let mut others = Vec::new();
    for back in (0..file.len()).map(|place| Proxy::read(file, place)) {
        let head = &back.section.head;
        let kind = match back.section.kind() {
            _ if head.number == used.section.head.number => continue,
            "ring" => "syslog",
            "backend" | "listen" if back.is_http() => "http",
            "backend" | "listen" => "tcp",
            _ => continue,
        };
        let other = Output::read(kind, &back, &back, &mut Notes::default());
        let Some(mut other) = other else { continue };
        if !names.insert(other.name.clone()) {
            other.name = format!("{}-{}", other.name, head.number);
        }
        let (kind, name) = (head.word(0), head.word(1));
        let why = format!("For `{kind} {name}`. With this table, it also gets every event:");
        others.push((why, other));
    }
    others
}

/// Adds a finding for every line of a section that has none. `is_used`: the section is carried
/// over. `logs_requests`: HAProxy's log may have parts of requests.
fn finish(section: &Section, is_used: bool, logs_requests: bool, notes: &mut Notes) {
    let Section { head, lines } = section;
    if is_used && !notes.knows(head) {
        notes.carried(head, "its lines are listed here");
    }
    for line in std::iter::once(head).chain(lines) {
        let why = match line.word(0) {
            _ if notes.knows(line) => continue,
            first if is_used && is_harmless(line) && !(first == "log" && logs_requests) => {
                notes.no_effect(line, "it does not affect what is forwarded or who may send");
                continue;
            }
            "frontend" | "listen" if !is_used => {
                "the section is not carried over: add a [[listener]] for it if its consumer is the \
                 same, or run a separate relay for it (migrate haproxy --frontend NAME)"
            }
            _ if !is_used => "its section is not carried over",
            "default_backend" | "use_backend" => {
                "the relay sends every event of every request to every output: decide who may \
                 reach the listeners"
            }
            "log" => {
                "the relay logs to standard error, not to this target. If HAProxy's log lines \
                 contain request bodies (log-format), they carried the events: an output of type \
                 syslog sends each event to a syslog server over TCP"
            }
            "timeout" => {
                "the relay keeps its default, unless another line says otherwise: it has no health \
                 checks that mark a server as down, so each event would wait this long for a hung \
                 server that is the only one, or in mode tcp"
            }
            "monitor-uri" => {
                "/readyz and /livez on the relay's admin address ([admin] address) take its place: \
                 they answer GET, HEAD and OPTIONS"
            }
            _ => "the relay has no equivalent, or does not use it here",
        };
        notes.decide(line, why);
    }
}

/// The directives that change neither the forwarded events, nor their receivers, nor who may send.
/// A `/` separates the first two words of a line.
const HARMLESS: &str = "ca-base chroot crt-base daemon description errorfile gid group \
    http-check log-tag log/global log/stderr log/stdout master-worker nbproc nbthread node \
    option/clitcpka option/dontlog-normal option/dontlognull option/http-buffer-request \
    option/http-keep-alive option/http-server-close option/httpchk option/httpclose \
    option/httplog option/log-health-checks option/redispatch option/srvtcpka option/tcp-check \
    option/tcpka option/tcplog pidfile quiet retries retry-on stats/socket stats/timeout \
    timeout/check timeout/client timeout/client-fin timeout/http-keep-alive timeout/queue \
    timeout/server timeout/server-fin timeout/tarpit uid ulimit-n user";

/// Returns `true` if the line is in [`HARMLESS`]. With `no` or `default` in front, such a line is
/// harmless too: the relay has nothing that it could switch off. A long time limit is never
/// harmless: the relay's waits are short, because no health check marks a server as down.
fn is_harmless(line: &Line) -> bool {
    let at = usize::from(matches!(line.word(0), "no" | "default"));
    let first = line.word(at);
    let both = format!("{first}/{}", line.word(at + 1));
    let is_short = first != "timeout" || short_time(line.word(at + 2)).is_some();
    is_short && HARMLESS.split_whitespace().any(|entry| entry == first || entry == both)
}

#[cfg(test)]
mod tests;
