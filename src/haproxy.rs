//! Translates a forwarder's haproxy.cfg into a config of this relay: the work of `migrate haproxy`.
//!
//! HAProxy passes each request to one server of one backend, but in a relay every output gets every
//! event. One backend therefore becomes one output, the servers of that backend become the output's
//! URLs, and each frontend that sends to the backend becomes a listener. Frontends whose backends
//! would become different outputs do not fit into one relay. The first of them is carried over. The
//! tables for the others are in the config as comments, because the user has to decide about them.
//!
//! The report says what became of each line. No line is dropped in silence: a line is carried over,
//! or the user has to decide about it, or the report says that it has no effect. Only the
//! directives that `words` lists have no effect, so the user has to decide about every directive
//! that is not known here. The installed HAProxy judges whether the file is valid (`judge`).
//!
//! Source: HAProxy's configuration manuals 2.6, 2.8 and 3.0.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `report` | a line, and what is said of it |
//! | 2 | `read` `words` | sections, lines and words of a file · words without effect |
//! | 3 | `global` `judge` `proxy` | settings of `global` · HAProxy's own judgement · frontends and backends |
//! | 4 | `bind` | addresses that are listened on |
//! | 5 | `settings` | limits and log |
//! | 6 | `self` `output` | why a file cannot be carried over · servers |
//! | 7 | `files` `route` `write` | files that are named · which frontend leads where · the new config |

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

mod bind;
mod files;
mod global;
mod judge;
mod output;
mod proxy;
mod read;
mod report;
mod route;
mod settings;
mod words;
mod write;

use bind::{Bind, is_variable};
use files::{CONSUMER, Files, LISTENER};
use global::Global;
use output::Output;
use proxy::Proxy;
use read::{File, Section};
use report::{Notes, is_of_secret, shown};
use route::{Fronts, Route, STATISTICS};
use settings::{Limits, Log};

pub use judge::judge;
pub use report::{Finding, Report, Verdict};

/// The options of a migration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The name of the file, for the comments in the new config.
    pub name: &'a str,
    /// The `frontend` or `listen` section to carry over. `None` stands for the first one that
    /// forwards HTTP.
    pub frontend: Option<&'a str>,
    /// `true`: files stay at the paths of the haproxy.cfg, for a relay on HAProxy's machine.
    /// `false`: files are where the manifests of `deploy` mount Secrets.
    pub keeps_paths: bool,
    /// The sentence in the report that says whether HAProxy accepts the file.
    pub validity: &'a str,
}

/// The result of a migration: a config of this relay that was made from a haproxy.cfg.
#[derive(Debug)]
pub struct Migrated {
    /// The config as TOML. It begins with the report as comments.
    pub config: String,
    /// The result for each line of the haproxy.cfg.
    pub report: Report,
}

/// The error for a haproxy.cfg from which no config can be made.
#[derive(Debug, Error)]
#[error("{missing}: nothing is written")]
pub struct Unusable {
    /// The reason why no config can be made, for the error message.
    missing: String,
    /// The lines that are the reason: those that cannot be read, or those that the migration tried
    /// to use and could not use.
    pub findings: Vec<Finding>,
}

/// Translates `text`, a haproxy.cfg that forwards audit events, into a config of this relay that
/// does the same.
///
/// # Errors
///
/// The sections of the file cannot be told apart, no frontend has a usable `bind` line, no frontend
/// leads to a usable server, or there is no frontend of the name in `options`.
pub fn migrate(text: &str, options: Options<'_>) -> Result<Migrated, Unusable> {
    let mut notes = Notes::default();
    let file = read::read(text, &mut notes).map_err(|findings| {
        let missing = "HAProxy would not start with this file".to_owned();
        Unusable { missing, findings }
    })?;
    let global = Global::read(&file, &mut notes);
    let fronts = Fronts::read(&file, &global);
    let (group, others) = fronts.choose(options.frontend)?;
    let first = group[0];
    let mut binds = listeners(&file, &group, &mut notes);
    let of_senders: Vec<&Proxy<'_>> = group.iter().map(|route| &route.front).collect();
    let all: Vec<&Proxy<'_>> = group.iter().flat_map(|route| [&route.front, &route.back]).collect();
    let limits = Limits::read(&of_senders, &binds, &global, &mut notes);
    let log = Log::read(&file, &all, &mut notes);
    let admin = admin_address(&file, &fronts, &binds, &mut notes);
    others.iter().for_each(|other| aside(&file, first, other, &mut notes));
    finish(&file, &fronts, &group, &others, &mut notes);

    let mut output = first.output.clone();
    let mut tables = alternatives(&file, &group, &others, &global);
    let mut needs = match options.keeps_paths {
        true => Vec::new(),
        false => placed(&mut output, &mut binds, &mut tables),
    };
    let mut config = write::Config {
        name: options.name,
        report: Vec::new(),
        notes: &notes,
        binds: &binds,
        limits,
        log,
        output: &output,
        admin,
        others: &tables,
    };
    needs.extend(plain_secrets(&output));
    needs.extend(variables(&config.to_string()));
    if !options.keeps_paths {
        needs.extend(ports(&binds));
    }
    let report = Report {
        listeners: binds.len(),
        carried: notes.carried.clone(),
        findings: notes.findings(),
        validity: options.validity.to_owned(),
        needs,
    };
    config.report = report.lines(options.name);
    Ok(Migrated { config: config.to_string(), report })
}

/// Returns the listeners of these routes, and adds the notes of the routes to `notes`.
fn listeners<'f>(file: &File, group: &[&Route<'f>], notes: &mut Notes) -> Vec<Bind<'f>> {
    let mut binds = Vec::new();
    for route in group {
        notes.merge(&route.notes);
        binds.extend(route.binds.iter().cloned());
        route::modes(file, route, notes);
    }
    route::listeners(&binds, notes)
}

/// Replaces the paths of all files by those in the relay's pod. Returns sentences about the Secrets
/// that the listeners and the output need there.
fn placed(
    output: &mut Output,
    binds: &mut [Bind<'_>],
    tables: &mut [write::Other<'_>],
) -> Vec<String> {
    let mut files = Files::default();
    files.place_all(&CONSUMER, output.tls.as_mut());
    binds.iter_mut().for_each(|bind| files.place_all(&LISTENER, bind.tls.as_mut()));
    let needs = files.needs();
    for other in tables {
        other.binds.iter_mut().for_each(|bind| files.place_all(&LISTENER, bind.tls.as_mut()));
        files.place_all(&CONSUMER, other.output.tls.as_mut());
    }
    needs
}

/// Returns a sentence about each header of the output whose value is a secret.
fn plain_secrets(output: &Output) -> impl Iterator<Item = String> {
    let secrets = output.headers.iter().map(|(name, _)| name).filter(|name| is_of_secret(name));
    secrets.map(|name| {
        format!(
            "The header {name} is a secret that the config has as plain text: put the value into a \
             file, and write \"{name}\" = \"${{file:PATH}}\" in output.headers"
        )
    })
}

/// Returns the value of `admin.address` for the new config: the address of HAProxy's statistics
/// page or, if there is none without TLS and on a port that no listener uses, `0.0.0.0` with the
/// first free port from 9090 on.
fn admin_address(
    file: &File,
    fronts: &Fronts<'_>,
    binds: &[Bind<'_>],
    notes: &mut Notes,
) -> String {
    let is_free = |port: &str| binds.iter().all(|bind| bind.port() != port);
    let lines = fronts.statistics.iter().flat_map(|&place| &file.sections[place].lines);
    for line in lines.filter(|line| line.word(0) == "bind") {
        let shown = Bind::read(line, &Global::default(), &mut Notes::default());
        if let Some(bind) =
            shown.into_iter().find(|bind| bind.tls.is_none() && is_free(bind.port()))
        {
            notes.carried(line, "admin.address");
            return bind.address;
        }
    }
    let port = (9090..).find(|port: &u16| is_free(&port.to_string())).unwrap_or(9090);
    format!("0.0.0.0:{port}")
}

/// Reports a frontend that does not fit into one relay together with `first`.
fn aside(file: &File, first: &Route<'_>, other: &Route<'_>, notes: &mut Notes) {
    let name = |proxy: &Proxy<'_>| file.sections[proxy.place].name();
    let head = &file.sections[other.front.place].head;
    let why = format!(
        "it sends to `{}`, and `{}` sends to `{}`, perhaps with other headers; in a relay every \
         event goes to every output. Run a relay of its own for it (migrate haproxy --frontend {}), \
         or take the tables at the end of the config into use",
        name(&other.back),
        name(&first.front),
        name(&first.back),
        head.word(1)
    );
    notes.decide(head, &why);
}

/// Returns the tables for the other consumers of the file, which are comments in the config.
fn alternatives<'a>(
    file: &'a File,
    group: &[&Route<'a>],
    others: &[&Route<'a>],
    global: &Global<'a>,
) -> Vec<write::Other<'a>> {
    let mut tables: Vec<write::Other<'a>> = Vec::new();
    for route in others {
        let name = file.sections[route.front.place].name();
        let (why, binds, output) = match group[0].front.is_http() && !route.front.is_http() {
            true => (
                format!(
                    "For frontend `{name}` (mode tcp), from which the relay takes nothing but HTTP. \
                     With this table its consumer gets every event as a line:"
                ),
                Vec::new(),
                route.output.as_tcp(),
            ),
            false => (
                format!(
                    "For frontend `{name}`. With these tables both consumers get every event of \
                     both:"
                ),
                route.binds.clone(),
                route.output.clone(),
            ),
        };
        tables.push(write::Other { why, binds, output });
    }
    for (route, place) in group.iter().flat_map(|r| r.conditional.iter().map(move |p| (r, *p))) {
        let (back, name) = (Proxy::read(file, place), file.sections[place].name());
        let ports = route::ports_of(&route.binds);
        let notes = &mut Notes::default();
        let output = Output::read(name, &route.front, &back, global, &ports, notes);
        let known = |output: &Output| {
            output.is_same(&route.output) || tables.iter().any(|it| it.output.is_same(output))
        };
        let Some(output) = output.filter(|output| !known(output)) else { continue };
        let why = format!(
            "For backend `{name}`, to which a rule leads. With this table both consumers get every \
             event:"
        );
        tables.push(write::Other { why, binds: Vec::new(), output });
    }
    for ring in settings::rings(file) {
        let Some(output) = Output::of_ring(ring) else { continue };
        let why = format!(
            "For `ring {}`, to which HAProxy's log goes. With this table its servers get every \
             event:",
            ring.name()
        );
        tables.push(write::Other { why, binds: Vec::new(), output });
    }
    let mut names: BTreeSet<String> = group.iter().map(|route| route.output.name.clone()).collect();
    for Output { name, .. } in tables.iter_mut().map(|table| &mut table.output) {
        let base = name.clone();
        let mut count = 2;
        while !names.insert(name.clone()) {
            *name = format!("{base}-{count}");
            count += 1;
        }
    }
    tables
}

/// Returns a sentence for each environment variable that the config needs and gives no default.
fn variables(config: &str) -> Vec<String> {
    let mut names = BTreeSet::new();
    let lines = config.lines().filter(|line| !line.starts_with('#'));
    for rest in lines.flat_map(|line| line.split("${env:").skip(1)) {
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let has_default = rest.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with(":-"));
        if !has_default {
            names.insert(name);
        }
    }
    let need = |name: &String| {
        format!(
            "the variable {name} is in the relay's environment, with the value that HAProxy has"
        )
    };
    names.iter().map(need).collect()
}

/// Returns a sentence for each listener to which the Service of the manifests does not lead.
fn ports(binds: &[Bind<'_>]) -> Vec<String> {
    let expected = |bind: &Bind<'_>| if bind.tls.is_some() { "4443" } else { "3000" };
    let is_known = |bind: &&Bind<'_>| !is_variable(bind.port());
    let other = binds.iter().filter(is_known).filter(|bind| bind.port() != expected(bind));
    let need = |bind: &Bind<'_>| {
        format!(
            "deploy/base leads the Service to port {} of the pods, not to {}: change \
             listener.address, or the port in deployment.yaml, service.yaml and networkpolicy.yaml",
            expected(bind),
            bind.address
        )
    };
    other.map(need).collect()
}

/// Adds a finding for every line that is neither carried over nor reported yet.
fn finish(
    file: &File,
    fronts: &Fronts<'_>,
    group: &[&Route<'_>],
    others: &[&Route<'_>],
    notes: &mut Notes,
) {
    notes.merge(&fronts.lost);
    let proxies = || group.iter().flat_map(|route| [&route.front, &route.back]);
    let used: BTreeSet<usize> = proxies().flat_map(|it| it.sections.iter().copied()).collect();
    let holding: BTreeSet<usize> =
        proxies().flat_map(|it| &it.lines).map(|line| line.number).collect();
    // The sections of frontends that are not carried over, and the other backends to which rules
    // lead. Each has the name of a frontend that uses it.
    let mut asides: BTreeMap<usize, &str> = BTreeMap::new();
    for route in others.iter().chain(group) {
        let name = file.sections[route.front.place].name();
        let of_others = others.iter().any(|other| other.front.place == route.front.place);
        let own = [&route.front.sections, &route.back.sections].into_iter().filter(|_| of_others);
        for &place in own.flatten().chain(&route.conditional) {
            asides.entry(place).or_insert(name);
        }
    }
    for &(back, front) in fronts.backs_of_lost.iter().filter(|(back, _)| !used.contains(back)) {
        asides.entry(back).or_insert(file.sections[front].name());
    }
    for (place, Section { head, lines, .. }) in file.sections.iter().enumerate() {
        let kind = head.word(0);
        let is_carried = kind == "global" || used.contains(&place);
        let shows = fronts.statistics.contains(&place);
        if !is_carried && !words::is_harmless_section(kind) && !notes.knows(head) {
            notes.other(head, &shown(head), false);
        }
        let of_section = match asides.get(&place) {
            _ if shows => (Verdict::NoEffect, STATISTICS.to_owned()),
            _ if fronts.idle.contains(&place) => {
                (Verdict::NoEffect, "the section is disabled or listens nowhere".to_owned())
            }
            Some(name) => {
                let why = format!("it is about requests of `{name}` that are not carried over");
                (Verdict::Section, why)
            }
            None if kind == "ring" && settings::rings(file).any(|ring| ring.head == *head) => {
                (Verdict::Section, "HAProxy's log goes to it".to_owned())
            }
            None if notes.knows(head) => {
                (Verdict::Section, "its section is to decide about".to_owned())
            }
            None => (Verdict::NoEffect, "nothing else that is carried over uses it".to_owned()),
        };
        for line in std::iter::once(head).chain(lines) {
            let is_head = line.number == head.number;
            if notes.knows(line) || is_carried && is_head {
                continue;
            }
            if kind == "global" {
                notes.other(line, &shown(line), words::is_harmless_in_global(line));
            } else if is_carried && !holding.contains(&line.number) {
                notes.no_effect(line, "a later line overrides it");
            } else if is_carried || shows && !is_head {
                notes.other(line, &shown(line), words::is_harmless_in_proxy(line));
            } else {
                notes.add(line, &shown(line), of_section.0, &of_section.1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
