//! Translates a forwarder's haproxy.cfg into a config of this relay: the work of `migrate haproxy`.
//!
//! HAProxy passes each request to one server of one backend, but in a relay every output gets every
//! event. One backend therefore becomes one output, the servers of that backend become the output's
//! URLs, and each frontend that sends to the backend becomes a listener. Frontends whose backends
//! would become different outputs do not fit into one relay: the first of them is carried over, and
//! the tables for the others stand in the config as comments, because somebody has to decide.
//!
//! The report says what became of each line. No line is dropped in silence: a line is carried over,
//! or it is for somebody to decide about, or the report says why it has no effect. `keywords` is
//! the table of all directives.
//!
//! Source: HAProxy's configuration manuals 2.6, 2.8 and 3.0.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use thiserror::Error;

use keywords::Fate;
use proxy::Proxy;
use read::Condition;
use read::File;
use read::Line;
use report::Notes;
use report::is_of_secret;
use report::shown;

mod condition;
mod files;
mod keywords;
mod options;
mod output;
mod proxy;
mod read;
mod report;
mod validity;
mod write;

use files::Files;
use options::Bind;
use output::Output;

pub use report::Carried;
pub use report::Finding;
pub use report::Report;
pub use report::Verdict;

/// What to migrate, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The name of the file, for the comments in the new config.
    pub name: &'a str,
    /// The `frontend` or `listen` section to carry over. `None`: the first one that forwards HTTP.
    pub frontend: Option<&'a str>,
    /// `true`: files stay at the paths of the haproxy.cfg, for a relay on HAProxy's machine.
    /// `false`: files are where the manifests of `deploy` mount Secrets.
    pub keeps_paths: bool,
}

/// The result of a migration: a config of this relay that was made from a haproxy.cfg.
#[derive(Debug)]
pub struct Migrated {
    /// The config as TOML. It begins with the report as comments.
    pub config: String,
    /// What became of each line of the haproxy.cfg.
    pub report: Report,
}

/// The error for a haproxy.cfg from which no config can be made.
#[derive(Debug, Error)]
#[error("{missing}: nothing is written")]
pub struct Unusable {
    /// The reason why no config can be made, for the error message.
    missing: String,
    /// The lines that are the reason: those that HAProxy refuses, or those that the migration tried
    /// to use and could not use.
    pub findings: Vec<Finding>,
}

/// Translates `text`, a haproxy.cfg that forwards audit events, into a config of this relay that
/// does the same.
///
/// # Errors
///
/// HAProxy would not start with the file, no frontend has a usable `bind` line, no frontend leads
/// to a usable server, or there is no frontend of the name in `options`.
pub fn migrate(text: &str, options: Options<'_>) -> Result<Migrated, Unusable> {
    let file = read::read(text);
    let mut notes = Notes::default();
    let refused = validity::refused(&file);
    if !refused.is_empty() {
        for (line, why) in &refused {
            let act = "correct the line; `haproxy -c -f FILE` names the mistakes of a file";
            notes.decide(line, &shown(line), why.as_str(), act);
        }
        let missing = "HAProxy would not start with this file".to_owned();
        return Err(Unusable { missing, findings: notes.findings() });
    }
    conditions(&file, &mut notes);
    let global = Global::read(&file, &mut notes);
    let fronts = Fronts::read(&file, &global);
    let (group, others) = fronts.choose(options.frontend)?;
    let mut binds: Vec<Bind> = Vec::new();
    for route in &group {
        notes.merge(route.notes.clone());
        binds.extend(route.binds.iter().cloned());
    }
    let binds = listeners(binds, &file, &mut notes);
    let fronts_of = || group.iter().map(|route| &route.front);
    let all: Vec<&Proxy<'_>> = group.iter().flat_map(|route| [&route.front, &route.back]).collect();
    for route in &group {
        modes(&file, route, &mut notes);
    }
    let limits = Limits::read(&fronts_of().collect::<Vec<_>>(), &binds, &global, &mut notes);
    let log = Log::read(&file, &all, &mut notes);
    let admin =
        fronts.statistics.iter().find_map(|&place| bind_of_statistics(&file, place, &mut notes));
    let admin = admin_address(admin, &binds);

    let mut files = Files::new(options.keeps_paths);
    let first = group[0];
    let (output, key) = files.output(&first.output, &notes);
    let binds: Vec<Bind> = binds.iter().map(|bind| files.listener(bind, &notes)).collect();
    let mut needs = files.needs(options.name);
    needs.extend(plain_secrets(&output));
    let tables = alternatives(&file, &group, &others, &mut files);
    for other in &others {
        other.decide(&file, first, &mut notes);
    }
    finish(&file, &fronts, &group, &others, &mut notes);

    let mut report = Report {
        listeners: binds.len(),
        outputs: 1,
        carried: notes.carried_lines(),
        findings: notes.findings(),
        needs: Vec::new(),
    };
    let mut config = write::Config {
        name: options.name,
        report: Vec::new(),
        notes: &notes,
        binds: &binds,
        limits,
        log,
        output: &output,
        key: key.as_deref(),
        admin,
        others: &tables,
    };
    needs.extend(variables(&config.to_string()));
    if !options.keeps_paths {
        needs.extend(ports(&binds));
    }
    report.needs = needs;
    config.report = report.lines(options.name);
    Ok(Migrated { config: config.to_string(), report })
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

/// Reports the lines `.if` and the like, and the lines that they switch off.
fn conditions(file: &File, notes: &mut Notes) {
    for (line, condition) in &file.conditions {
        match condition {
            Condition::Known => {
                notes.no_effect(line, &shown(line), "the condition is evaluated here");
            }
            Condition::Unknown => {
                let why = "the value depends on the machine on which HAProxy runs; the lines \
                           below it are read as if the condition were true";
                let act =
                    "if it is false there, remove the lines of this branch, and migrate again";
                notes.decide(line, &shown(line), why, act);
            }
        }
    }
    for (line, may_be_read) in &file.skipped {
        if *may_be_read {
            notes.in_section(line, "it is in another branch of a condition above");
        } else {
            notes.no_effect(line, &shown(line), "HAProxy does not read it: its condition is false");
        }
    }
}

/// Where the requests of a frontend go.
enum Destination {
    /// To the servers of the section with this index, by this line, unless one of the conditions
    /// holds. Without a line the section is a `listen` section that has servers.
    Servers(usize),
    /// To HAProxy's own status page or metrics.
    Statistics,
    /// To nothing that the file names.
    Nothing,
}

/// A frontend that forwards to a backend.
struct Route<'a> {
    front: Proxy<'a>,
    back: Proxy<'a>,
    output: Output,
    binds: Vec<Bind>,
    /// The backends to which rules with conditions lead.
    conditional: Vec<usize>,
    is_http: bool,
    notes: Notes,
}

impl Route<'_> {
    /// Notes that somebody has to decide about this frontend, which does not fit into the relay
    /// that `first` is carried over to.
    fn decide(&self, file: &File, first: &Route<'_>, notes: &mut Notes) {
        let head = &file.sections[self.front.place].head;
        let backend = file.sections[self.back.place].name();
        let other = file.sections[first.front.place].name();
        let to = file.sections[first.back.place].name();
        let how = if backend == to { " in another form, such as other headers" } else { "" };
        let why = format!(
            "it sends to `{backend}` what comes in here, and `{other}` sends to `{to}`{how}; in a \
             relay every event goes to every output"
        );
        let act = format!(
            "run a relay of its own for it (migrate haproxy --frontend {}), or let both consumers \
             get every event: take the tables at the end of the config into use",
            head.word(1)
        );
        notes.decide(head, &shown(head), why, act);
    }
}

/// The frontends of a file, by what they do.
struct Fronts<'a> {
    file: &'a File,
    routes: Vec<Route<'a>>,
    /// The indices of sections that show HAProxy's status or metrics.
    statistics: BTreeSet<usize>,
    /// The indices of sections that do nothing, each with the reason.
    idle: BTreeMap<usize, &'static str>,
    /// The notes about frontends that lead nowhere.
    lost: Notes,
}

impl<'a> Fronts<'a> {
    fn read(file: &'a File, global: &Global) -> Self {
        let mut fronts = Self {
            file,
            routes: Vec::new(),
            statistics: BTreeSet::new(),
            idle: BTreeMap::new(),
            lost: Notes::default(),
        };
        for (place, section) in file.sections.iter().enumerate() {
            if !matches!(section.kind(), "frontend" | "listen") {
                continue;
            }
            let front = Proxy::read(file, place);
            if front.is_disabled() {
                fronts.idle.insert(place, "the section is disabled");
            } else if !front.has(&["bind"]) {
                fronts.idle.insert(place, "the section listens nowhere");
            } else {
                fronts.take(front, global);
            }
        }
        fronts
    }

    fn take(&mut self, front: Proxy<'a>, global: &Global) {
        let mut notes = Notes::default();
        let mut conditional = Vec::new();
        let place = match self.destination(&front, &mut conditional, &mut notes) {
            Destination::Servers(place) => place,
            Destination::Statistics => {
                self.statistics.insert(front.place);
                return;
            }
            Destination::Nothing => {
                let head = &self.file.sections[front.place].head;
                let why = "HAProxy takes requests here and forwards none of them to a server";
                let act = "find out who sends here, and if somebody relies on the answer";
                self.lost.decide(head, &shown(head), why, act);
                return;
            }
        };
        let back = Proxy::read(self.file, place);
        let lines = front.all(&["bind"]);
        let binds: Vec<Bind> =
            lines.flat_map(|line| Bind::read(line, global, &mut notes)).collect();
        let ports = ports_of(&binds);
        let name = self.file.sections[place].name();
        let output = Output::read(name, &front, &back, global, &ports, &mut notes);
        let is_http = front.is_http();
        match output {
            Some(output) if !binds.is_empty() => {
                let route = Route { front, back, output, binds, conditional, is_http, notes };
                self.routes.push(route);
            }
            _ => {
                let head = &self.file.sections[front.place].head;
                let why = "it has no `bind` or no `server` line that could be carried over";
                let act = "write the address of the consumer where the report names a line";
                notes.decide(head, &shown(head), why, act);
                self.lost.merge(notes);
            }
        }
    }

    fn backend(&self, name: &str) -> Option<usize> {
        self.file.sections.iter().position(|section| {
            matches!(section.kind(), "backend" | "listen") && section.name() == name
        })
    }

    /// Returns `true` if the section has a server to which requests may go.
    fn has_servers(&self, place: usize) -> bool {
        let proxy = Proxy::read(self.file, place);
        ["server", "server-template", "dispatch"].iter().any(|word| proxy.has(&[word]))
    }

    /// Returns `true` if the section shows HAProxy's status page or metrics.
    fn is_statistics(&self, place: usize) -> bool {
        let proxy = Proxy::read(self.file, place);
        let exports = |line: &&Line| line.words.iter().any(|word| word == "prometheus-exporter");
        !self.has_servers(place)
            && (["enable", "uri", "auth", "admin", "refresh"]
                .iter()
                .any(|word| proxy.has(&["stats", word]))
                || proxy.lines.iter().any(exports))
    }

    /// Returns where the requests of a frontend go. Each rule with a condition is reported, and
    /// the backend to which it leads is added to `conditional`.
    fn destination(
        &mut self,
        front: &Proxy<'a>,
        conditional: &mut Vec<usize>,
        notes: &mut Notes,
    ) -> Destination {
        let mut target: Option<(&Line, usize)> = None;
        let mut rules: Vec<(&Line, Option<usize>)> = Vec::new();
        for line in front.all(&["use_backend"]) {
            let backend = self.backend(line.word(1));
            match (backend, line.words.len()) {
                _ if target.is_some() => {
                    let why = "HAProxy does not come to this rule: the one above has no condition";
                    notes.no_effect(line, &shown(line), why);
                }
                (Some(backend), 2) => target = Some((line, backend)),
                _ => rules.push((line, backend)),
            }
        }
        for line in front.all(&["default_backend"]) {
            match (self.backend(line.word(1)), target) {
                (Some(backend), None) => target = Some((line, backend)),
                (_, Some(_)) => {
                    let why = "HAProxy does not come to it: a `use_backend` has no condition";
                    notes.no_effect(line, &shown(line), why);
                }
                (None, None) => {
                    let why = "the name of the backend is known only where HAProxy runs";
                    notes.decide(line, &shown(line), why, "write the backend's name");
                }
            }
        }
        let mut place = target.map(|(_, place)| place);
        if place.is_none() && self.has_servers(front.place) {
            place = Some(front.place);
        }
        if place.is_none() {
            // Requests that fit no rule get 503.
            place = rules.iter().find_map(|(_, place)| place.filter(|&p| self.has_servers(p)));
        }
        if let Some((line, _)) = target {
            notes.carried(line, "output");
        }
        for (line, backend) in &rules {
            match *backend {
                Some(backend) if self.is_statistics(backend) => {
                    self.statistics.insert(backend);
                    let why = "the relay's status page and metrics are at admin.address";
                    notes.no_effect(line, &shown(line), why);
                }
                Some(backend) if Some(backend) == place && target.is_some() => {
                    let why = "it leads to the backend to which all requests go";
                    notes.no_effect(line, &shown(line), why);
                }
                backend if target.is_none() && place != Some(front.place) => {
                    let why = "HAProxy answered 503 to requests that fit no such rule; the relay \
                               takes every request, and sends every event to every output";
                    let act = "restrict the senders with listener.path_prefix or a \
                               NetworkPolicy, if others send here too";
                    notes.decide(line, &shown(line), why, act);
                    conditional.extend(backend.filter(|&backend| Some(backend) != place));
                }
                backend => {
                    let why = "HAProxy sent the requests that fit the condition to another \
                               backend; a relay sends every event to every output, whatever the \
                               request was";
                    let act = "if both consumers may get every event, take the table at the end \
                               of the config into use; or run a relay for each";
                    notes.decide(line, &shown(line), why, act);
                    conditional.extend(backend.filter(|&backend| Some(backend) != place));
                }
            }
        }
        match place {
            Some(place) if self.has_servers(place) => Destination::Servers(place),
            Some(place) if self.is_statistics(place) => {
                self.statistics.insert(place);
                Destination::Statistics
            }
            None if self.is_statistics(front.place) => Destination::Statistics,
            // Every rule leads to the status page.
            None if !rules.is_empty()
                && rules
                    .iter()
                    .all(|(_, place)| place.is_some_and(|place| self.is_statistics(place))) =>
            {
                Destination::Statistics
            }
            _ => Destination::Nothing,
        }
    }

    /// Returns the frontends that are carried over, and the others. All that are carried over lead
    /// to the same output. `name` names a frontend that has to be among them.
    fn choose(&self, name: Option<&str>) -> Result<(Vec<&Route<'a>>, Vec<&Route<'a>>), Unusable> {
        let name_of = |route: &Route<'_>| self.file.sections[route.front.place].name();
        let first = match name {
            Some(name) => self.routes.iter().find(|route| name_of(route) == name),
            None => self.routes.iter().find(|route| route.is_http).or_else(|| self.routes.first()),
        };
        let Some(first) = first else {
            let missing = match name {
                Some(name) => {
                    format!("no frontend `{}` leads to a server", report::printable(name))
                }
                None => "no frontend with `bind` leads to a backend with a server that can be \
                         carried over"
                    .to_owned(),
            };
            return Err(Unusable { missing, findings: self.lost.findings() });
        };
        let is_ours = |route: &&Route<'_>| route.output.is_same(&first.output);
        let (mut group, others): (Vec<_>, Vec<_>) = self.routes.iter().partition(is_ours);
        // The output has the name of the first one's backend.
        group.sort_by_key(|route| route.front.place != first.front.place);
        Ok((group, others))
    }
}

/// Returns the ports of listeners, each once.
fn ports_of(binds: &[Bind]) -> Vec<&str> {
    let mut ports: Vec<&str> = Vec::new();
    for port in binds.iter().map(Bind::port) {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

/// Returns the listeners without those that another one makes needless: an address that is named
/// twice, and all of IPv4 at a port where the relay listens on all of IPv6 too, which takes both.
fn listeners(binds: Vec<Bind>, file: &File, notes: &mut Notes) -> Vec<Bind> {
    let mut addresses = BTreeSet::new();
    let (mut kept, twice): (Vec<Bind>, Vec<Bind>) =
        binds.into_iter().partition(|bind| addresses.insert(bind.address.clone()));
    let all = kept.clone();
    let line_of = |bind: &Bind| {
        let lines = file.sections.iter().flat_map(|section| &section.lines);
        lines.into_iter().find(|line| line.number == bind.line)
    };
    for bind in twice {
        let Some(line) = line_of(&bind) else { continue };
        let first = all.iter().find(|other| other.address == bind.address);
        if first.is_some_and(|first| first.tls == bind.tls) {
            let why = "another line names this address";
            notes.no_effect(line, &format!("bind {}", line.word(1)), why);
        } else {
            let why = "another line names this address, with other settings of TLS";
            let act = "keep the settings of one of the two lines";
            notes.decide(line, &format!("bind {}", line.word(1)), why, act);
        }
    }
    let twin = |bind: &Bind, other: &Bind| {
        bind.is_all_of_v6()
            && other.address.strip_prefix("0.0.0.0:") == Some(bind.port())
            && bind.tls == other.tls
    };
    kept.retain(|bind| {
        let takes_both = all.iter().find(|other| twin(other, bind));
        if let (Some(other), Some(line)) = (takes_both, line_of(bind)) {
            let why = format!("the listener {} takes IPv4 as well", other.address);
            notes.no_effect(line, &format!("bind {}", line.word(1)), why);
        }
        takes_both.is_none()
    });
    for bind in &kept {
        let Some(line) = line_of(bind) else { continue };
        notes.carried(line, &format!("listener {}", bind.address));
        if bind.takes_more() && !all.iter().any(|other| twin(bind, other)) {
            let why = "HAProxy took IPv6 only; the relay takes IPv4 at this port as well";
            let act = "name the machine's own IPv6 address in listener.address, or keep IPv4 out \
                       with a NetworkPolicy";
            notes.decide(line, "bind … v6only", why, act);
        }
    }
    kept
}

/// Reports the `mode` lines of a frontend and its backend. Without such a line the mode is `tcp`:
/// HAProxy passes on bytes without reading them.
fn modes(file: &File, route: &Route<'_>, notes: &mut Notes) {
    for proxy in [&route.front, &route.back] {
        if let Some(line) = proxy.last(&["mode"]) {
            notes.carried(line, "");
        }
    }
    if route.is_http {
        return;
    }
    let head = &file.sections[route.front.place].head;
    let line = route.front.last(&["mode"]).unwrap_or(head);
    let part = match route.front.last(&["mode"]) {
        Some(line) => shown(line),
        None => format!("{} (without `mode`, which means tcp)", shown(head)),
    };
    let is_read = route.binds.iter().all(|bind| bind.tls.is_some())
        || route.output.urls.iter().all(|url| url.starts_with("https:"));
    if is_read {
        let why = "HAProxy takes TLS off or puts it on, so that the relay can read the requests";
        return notes.no_effect(line, &part, why);
    }
    let why = "HAProxy passed on all bytes; the relay reads HTTP. If the senders speak TLS through \
               HAProxy to the consumer, the relay cannot read it without a certificate";
    let act = "if the URL in the webhook's kubeconfig begins with https://, add [listener.tls]";
    notes.decide(line, &part, why, act);
}

/// Returns the tables for the other consumers of the file, which stand in the config as comments.
fn alternatives(
    file: &File,
    group: &[&Route<'_>],
    others: &[&Route<'_>],
    files: &mut Files,
) -> Vec<write::Other> {
    let mut tables: Vec<write::Other> = Vec::new();
    let names: BTreeSet<&str> = group.iter().map(|route| route.output.name.as_str()).collect();
    let unique = |tables: &[write::Other], output: &mut Output| {
        let base = output.name.clone();
        let mut count = 2;
        while names.contains(output.name.as_str())
            || tables.iter().any(|table| table.output.name == output.name)
        {
            output.name = format!("{base}-{count}");
            count += 1;
        }
    };
    for route in others {
        let (mut output, key) = files.output(&route.output, &route.notes);
        unique(&tables, &mut output);
        let binds = route.binds.iter().map(|bind| files.listener(bind, &route.notes)).collect();
        let name = file.sections[route.front.place].name();
        let why = format!(
            "For frontend `{name}`. With these tables both consumers get every event of both:"
        );
        tables.push(write::Other { why, binds, output, key });
    }
    let global = Global::read(file, &mut Notes::default());
    for route in group {
        for &place in &route.conditional {
            let back = Proxy::read(file, place);
            let ports = ports_of(&route.binds);
            let mut notes = Notes::default();
            let name = file.sections[place].name();
            let output = Output::read(name, &route.front, &back, &global, &ports, &mut notes);
            let Some(output) = output else { continue };
            if output.is_same(&route.output) || tables.iter().any(|t| t.output.is_same(&output)) {
                continue;
            }
            let (mut output, key) = files.output(&output, &notes);
            unique(&tables, &mut output);
            let why = format!(
                "For backend `{name}`, to which a rule leads. With this table both consumers get \
                 every event:"
            );
            tables.push(write::Other { why, binds: Vec::new(), output, key });
        }
    }
    tables
}

/// Returns a sentence for each environment variable that the config needs.
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
fn ports(binds: &[Bind]) -> Vec<String> {
    let expected = |bind: &Bind| if bind.tls.is_some() { "4443" } else { "3000" };
    let is_known = |bind: &&Bind| !options::is_variable(bind.port());
    let other = binds.iter().filter(is_known).filter(|bind| bind.port() != expected(bind));
    let need = |bind: &Bind| {
        format!(
            "deploy/base leads the Service to port {} of the pods, not to {}: change \
             listener.address, or the port in deployment.yaml, service.yaml and networkpolicy.yaml",
            expected(bind),
            bind.address
        )
    };
    other.map(need).collect()
}

/// The directives that HAProxy uses only in what faces the senders.
const OF_FRONTENDS: [&str; 4] = ["bind", "default_backend", "maxconn", "use_backend"];

/// The directives that HAProxy uses only in what faces the consumer.
const OF_BACKENDS: [&str; 5] =
    ["balance", "default-server", "dispatch", "server", "server-template"];

/// Returns `true` if HAProxy uses the line in a proxy that faces the senders (`is_front`) or the
/// consumer (`is_back`).
fn is_used(line: &Line, is_front: bool, is_back: bool) -> bool {
    let of_front = OF_FRONTENDS.contains(&line.word(0))
        || line.word(0) == "timeout"
            && matches!(line.word(1), "client" | "http-request" | "http-keep-alive");
    let of_back = OF_BACKENDS.contains(&line.word(0))
        || line.word(0) == "timeout" && matches!(line.word(1), "connect" | "server");
    match (of_front, of_back) {
        (true, _) => is_front,
        (_, true) => is_back,
        _ => is_front || is_back,
    }
}

/// Adds a report for every line that is neither carried over nor reported yet.
fn finish(
    file: &File,
    fronts: &Fronts<'_>,
    group: &[&Route<'_>],
    others: &[&Route<'_>],
    notes: &mut Notes,
) {
    notes.merge(fronts.lost.clone());
    let mut used: BTreeSet<usize> = BTreeSet::new();
    let (mut of_front, mut of_back) = (BTreeSet::new(), BTreeSet::new());
    let mut overridden: BTreeMap<usize, usize> = BTreeMap::new();
    for route in group {
        for (proxy, numbers) in [(&route.front, &mut of_front), (&route.back, &mut of_back)] {
            used.extend(&proxy.sections);
            numbers.extend(proxy.lines.iter().map(|line| line.number));
            overridden.extend(&proxy.overridden);
        }
    }
    let mut aside: BTreeMap<usize, String> = BTreeMap::new();
    for route in others {
        let name = file.sections[route.front.place].name();
        for &place in route.front.sections.iter().chain(&route.back.sections) {
            aside.entry(place).or_insert_with(|| format!("it is for `{name}`"));
        }
        for &place in &route.conditional {
            aside.entry(place).or_insert_with(|| format!("it is for `{name}`"));
        }
    }
    for route in group {
        let name = file.sections[route.front.place].name();
        for &place in &route.conditional {
            let why = format!("a rule of `{name}` leads to it");
            aside.entry(place).or_insert(why);
        }
    }
    let mut rules: Vec<&Line> = Vec::new();
    for (place, section) in file.sections.iter().enumerate() {
        let lines = section.lines.iter().filter(|line| !notes.knows(line.number));
        let lines: Vec<&Line> = lines.collect();
        if section.kind() == "global" {
            for line in lines {
                notes.fate(line, &shown(line), keywords::of_global(line));
            }
        } else if used.contains(&place) {
            for line in lines {
                if line.word(0) == "acl" {
                    rules.push(line);
                    continue;
                }
                let (front, back) =
                    (of_front.contains(&line.number), of_back.contains(&line.number));
                match overridden.get(&line.number) {
                    Some(by) if !front && !back => {
                        let why = format!("line {by} overrides it");
                        notes.no_effect(line, &shown(line), why);
                    }
                    _ if !is_used(line, front, back) => {
                        let why = "HAProxy does not use it in the sections that inherit it";
                        notes.no_effect(line, &shown(line), why);
                    }
                    _ => of_proxy(line, notes),
                }
            }
        } else if fronts.statistics.contains(&place) {
            if !notes.knows(section.head.number) {
                let why = "the relay's status page and metrics are at admin.address";
                notes.no_effect(&section.head, &shown(&section.head), why);
            }
            for line in lines {
                let fate = keywords::of_proxy(line);
                if fate == keywords::UNKNOWN {
                    notes.fate(line, &shown(line), fate);
                } else {
                    let why = "the relay's status page is at admin.address, without a password";
                    notes.no_effect(line, &shown(line), why);
                }
            }
        } else {
            unused(section, lines, fronts.idle.get(&place).copied(), aside.get(&place), notes);
        }
    }
    acls(&rules, file, notes);
    userlists(file, notes);
}

/// Reports a line of a section that is carried over, by the table of directives.
fn of_proxy(line: &Line, notes: &mut Notes) {
    let exports = line.words.iter().any(|word| word == "prometheus-exporter");
    if line.is(&["http-request", "use-service"]) && exports {
        let why = "the relay's metrics are at admin.address, under /metrics";
        return notes.no_effect(line, &shown(line), why);
    }
    if matches!(line.word(0), "no" | "default") {
        return notes.no_effect(line, &shown(line), "it switches off what the relay does not do");
    }
    if line.words.len() == 3 && line.is(&["tcp-request"]) && line.word(2) == "accept" {
        return notes.no_effect(line, &shown(line), "it takes everything, as the relay does");
    }
    notes.fate(line, &shown(line), keywords::of_proxy(line));
}

/// Reports the head and the lines of a section that is not carried over.
fn unused(
    section: &read::Section,
    lines: Vec<&Line>,
    idle: Option<&'static str>,
    aside: Option<&String>,
    notes: &mut Notes,
) {
    let head = &section.head;
    let is_proxy = matches!(section.kind(), "defaults" | "frontend" | "backend" | "listen");
    let fate = match section.kind() {
        "crt-store" => Fate::NoEffect("no line that is carried over uses it"),
        _ if is_proxy => Fate::NoEffect("nothing that is carried over uses it"),
        _ => keywords::of_section(head),
    };
    let is_known = notes.knows(head.number);
    if let Some(why) = idle {
        notes.no_effect(head, &shown(head), why);
        lines.iter().for_each(|line| notes.no_effect(line, &shown(line), why));
    } else if let Some(why) = aside {
        if !is_known {
            notes.in_section(head, why.as_str());
        }
        lines.iter().for_each(|line| notes.in_section(line, why.as_str()));
    } else if is_known {
        // The report has the head as something to decide.
        lines.iter().for_each(|line| notes.in_section(line, "its section is to decide about"));
    } else {
        // Some lines of a `crt-store` may be in use.
        if section.kind() != "crt-store" || lines.len() == section.lines.len() {
            notes.fate(head, &shown(head), fate);
        }
        for line in lines {
            match fate {
                Fate::NoEffect(why) => notes.no_effect(line, &shown(line), why),
                Fate::Carried | Fate::Matters { .. } => {
                    notes.in_section(line, "its section is to decide about");
                }
            }
        }
    }
}

/// Reports conditions that have a name. Such a condition matters if a rule that matters uses it.
fn acls(acls: &[&Line], file: &File, notes: &mut Notes) {
    let decided = notes.to_decide();
    // The words of the lines that matter, each with the number of the first such line.
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    let lines = file.sections.iter().flat_map(|section| &section.lines);
    for line in lines.filter(|line| decided.contains(&line.number)) {
        for word in &line.words {
            uses.entry(word.trim_start_matches('!')).or_insert(line.number);
        }
    }
    for acl in acls {
        if let Some(number) = uses.get(acl.word(1)) {
            let why = format!("line {number}, which is to decide about, uses this condition");
            let act = "decide about that line; the relay needs no file that the condition reads";
            notes.decide(acl, &shown(acl), why, act);
        } else {
            let why = "no rule that matters uses this condition";
            notes.no_effect(acl, &shown(acl), why);
        }
    }
}

/// Turns the report about a `userlist` into something to decide if a rule asks for its users.
fn userlists(file: &File, notes: &mut Notes) {
    let decided = notes.to_decide();
    for section in file.sections.iter().filter(|section| section.kind() == "userlist") {
        let calls =
            ["http_auth", "http_auth_group"].map(|call| format!("{call}({})", section.name()));
        let uses = |line: &&Line| {
            decided.contains(&line.number)
                && line.words.iter().any(|word| calls.iter().any(|call| word.contains(call)))
        };
        let line = file.sections.iter().flat_map(|section| &section.lines).find(uses);
        let Some(line) = line else { continue };
        let why = format!(
            "line {} asks senders for a user of this list; the relay knows no users",
            line.number
        );
        let act = "make one token for the senders: kubectl create secret generic audit-webhook -n \
                   ibm-kube-audit --from-file=token, and listener.bearer_token_file = \
                   \"/certificates/token\"";
        notes.forget(section.head.number);
        notes.decide(&section.head, &shown(&section.head), why, act);
        for line in &section.lines {
            notes.forget(line.number);
            notes.in_section(line, "its section is to decide about");
        }
    }
}

/// The settings of the `global` section and of `crt-store` sections that other sections depend on.
#[derive(Debug, Default)]
struct Global {
    ca_base: Option<String>,
    crt_base: Option<String>,
    /// `true`: `ssl-server-verify none` is set, so the certificates of servers are not checked.
    trusts_all_servers: bool,
    bind_options: Vec<String>,
    server_options: Vec<String>,
    maxconn: Option<u64>,
    stored: Vec<Stored>,
}

/// A certificate of a `crt-store` section (HAProxy 3.0).
#[derive(Debug)]
struct Stored {
    /// The names by which `crt` may ask for the certificate, such as `@store/site`.
    names: [String; 2],
    certificate: String,
    private_key: String,
}

impl Global {
    fn read(file: &File, notes: &mut Notes) -> Self {
        let mut global = Self::default();
        let mut key_base = None;
        let sections = file.sections.iter().filter(|section| section.kind() == "global");
        for line in sections.flat_map(|section| &section.lines) {
            let value = line.word(1).to_owned();
            let key = match line.word(0) {
                "ca-base" => {
                    global.ca_base = Some(value);
                    ""
                }
                "crt-base" => {
                    global.crt_base = Some(value);
                    ""
                }
                "key-base" => {
                    key_base = Some(value);
                    ""
                }
                "ssl-server-verify" => {
                    global.trusts_all_servers = value == "none";
                    ""
                }
                "ssl-default-bind-options" => {
                    global.bind_options = line.words[1..].to_vec();
                    ""
                }
                "ssl-default-server-options" => {
                    global.server_options = line.words[1..].to_vec();
                    ""
                }
                "setenv" | "presetenv" | "resetenv" | "unsetenv" => "",
                "maxconn" => match connections(line, notes) {
                    Some(count) => {
                        global.maxconn = Some(count);
                        "limits.max_connections"
                    }
                    None => continue,
                },
                // `Log::read` reads the `log` lines of this section and of the other sections
                // together.
                _ => continue,
            };
            notes.carried(line, key);
        }
        global.stores(file, key_base, notes);
        global
    }

    /// Reads the `crt-store` sections.
    fn stores(&mut self, file: &File, key_base: Option<String>, notes: &mut Notes) {
        let used: BTreeSet<&str> = file
            .sections
            .iter()
            .flat_map(|section| &section.lines)
            .filter(|line| line.word(0) == "bind")
            .flat_map(|line| line.words.iter().map(String::as_str))
            .filter(|word| word.starts_with('@'))
            .collect();
        for store in file.sections.iter().filter(|section| section.kind() == "crt-store") {
            let (mut crt_base, mut key_base) = (self.crt_base.clone(), key_base.clone());
            for line in &store.lines {
                let after = |name: &str| {
                    let at = line.words.iter().position(|word| word == name)?;
                    line.words.get(at + 1).cloned()
                };
                match line.word(0) {
                    "crt-base" => crt_base = Some(line.word(1).to_owned()),
                    "key-base" => key_base = Some(line.word(1).to_owned()),
                    "load" => {
                        let Some(crt) = after("crt") else { continue };
                        let certificate = Self::path(crt_base.as_ref(), &crt);
                        let key = after("key").map(|key| Self::path(key_base.as_ref(), &key));
                        let alias = after("alias").unwrap_or_else(|| crt.clone());
                        let name = |name: &str| format!("@{}/{name}", store.name());
                        let names = [name(&alias), name(&crt)];
                        if names.iter().any(|name| used.contains(name.as_str())) {
                            notes.carried(line, "listener.tls");
                            let bases = store
                                .lines
                                .iter()
                                .filter(|line| matches!(line.word(0), "crt-base" | "key-base"));
                            bases.for_each(|line| notes.carried(line, ""));
                        }
                        let private_key = key.unwrap_or_else(|| certificate.clone());
                        self.stored.push(Stored { names, certificate, private_key });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Returns the certificate of a `crt-store` section that `crt` asks for.
    fn stored(&self, name: &str) -> Option<&Stored> {
        self.stored.iter().find(|stored| stored.names.iter().any(|other| other == name))
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

/// Returns the address of HAProxy's statistics page, which becomes the address of the relay's
/// status page if no listener uses its port; `None` if the page has only addresses with TLS or
/// addresses that the relay cannot use.
fn bind_of_statistics(file: &File, place: usize, notes: &mut Notes) -> Option<Bind> {
    let lines = file.sections[place].lines.iter().filter(|line| line.word(0) == "bind");
    for line in lines {
        let binds = Bind::read(line, &Global::default(), &mut Notes::default());
        if let Some(bind) = binds.into_iter().find(|bind| bind.tls.is_none()) {
            notes.carried(line, "admin.address");
            return Some(bind);
        }
    }
    None
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

/// The largest value that `limits.max_connections` accepts.
const CONNECTIONS_MAX: u64 = 1 << 20;

/// Returns the number in a `maxconn` line, but at most [`CONNECTIONS_MAX`]. `None` if the word is
/// not a number above 0.
fn connections(line: &Line, notes: &mut Notes) -> Option<u64> {
    let count = number(line.word(1)).filter(|&count| count > 0)?;
    if count > CONNECTIONS_MAX {
        let why = format!("limits.max_connections is {CONNECTIONS_MAX} at the most");
        notes.no_effect(line, &shown(line), why);
    }
    Some(count.min(CONNECTIONS_MAX))
}

/// Returns the number at the beginning of a text, as HAProxy reads it: `10k` is 10.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.get(..digits)?.parse().ok()
}

/// The reason in the report about a time limit that the relay cannot take over, such as a limit of
/// zero or of more than a year.
const NO_TIME: &str =
    "not a time from 1ms to a year: the relay's default stays, because each of its waits must end";

/// Parses a time in HAProxy's syntax, such as `30s`; a number without a unit is in milliseconds.
/// `None` if the text is no time, or if the time is longer than a `u64` holds.
fn time_millis(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    // HAProxy reads no further than the unit.
    match unit.as_bytes() {
        [b'u', b's', ..] => Some(number.div_ceil(1000)),
        [b'm', b's', ..] | [] => Some(number),
        [b's', ..] => number.checked_mul(1000),
        [b'm', ..] => number.checked_mul(60_000),
        [b'h', ..] => number.checked_mul(3_600_000),
        [b'd', ..] => number.checked_mul(86_400_000),
        _ => None,
    }
}

/// Parses a time in HAProxy's syntax. `None` if the text is no time, if the time is zero (which
/// means "no limit" in HAProxy), or if the time is longer than a year.
fn time(text: &str) -> Option<Duration> {
    // The relay's config accepts no time above a year.
    let millis = time_millis(text).filter(|millis| (1..=31_536_000_000).contains(millis));
    millis.map(Duration::from_millis)
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
    fn read(fronts: &[&Proxy<'_>], binds: &[Bind], global: &Global, notes: &mut Notes) -> Self {
        let mut limits = Self::default();
        // HAProxy bounds each frontend and all of them together; the relay bounds all together.
        let mut sum = Some(0_u64);
        for front in fronts {
            let line = front.last(&["maxconn"]);
            let count = line.and_then(|line| connections(line, notes));
            if let (Some(line), Some(_)) = (line, count) {
                notes.carried(line, "limits.max_connections");
            }
            sum = sum.zip(count).map(|(sum, count)| sum.saturating_add(count));
        }
        let of_binds: Option<u64> = binds.iter().map(|bind| bind.maxconn).sum();
        let bounds = [sum, of_binds, global.maxconn];
        let least = bounds.into_iter().flatten().filter(|&count| count > 0).min();
        limits.max_connections = least.map(|count| count.min(CONNECTIONS_MAX));
        for name in ["http-request", "client", "http-keep-alive"] {
            let lines = fronts.iter().filter_map(|front| front.last(&["timeout", name]));
            for line in lines {
                limits.take(line, notes);
            }
        }
        limits
    }

    /// Reads a time limit of a frontend. Of several frontends, the one with the longest limit
    /// holds, so that no sender is cut off earlier than before.
    fn take(&mut self, line: &Line, notes: &mut Notes) {
        let Some(limit) = time(line.word(2)) else {
            return notes.no_effect(line, &shown(line), NO_TIME);
        };
        let why = match line.word(1) {
            "http-request" => {
                self.header_timeout = self.header_timeout.max(Some(limit));
                return notes.carried(line, "limits.header_timeout");
            }
            "client" if limit > BODY_TIMEOUT => {
                self.body_timeout = self.body_timeout.max(Some(limit));
                return notes.carried(line, "limits.body_timeout");
            }
            "client" => {
                "a whole body may take 30s here (limits.body_timeout), and a quiet connection \
                 stays open for 5m (limits.idle_timeout): kube-apiserver keeps its own for 90s"
            }
            _ if limit > KEPT_BY_SENDERS => {
                self.idle_timeout = self.idle_timeout.max(Some(limit));
                return notes.carried(line, "limits.idle_timeout");
            }
            _ => {
                "limits.idle_timeout stays 5m: kube-apiserver keeps a connection for 90s, and a \
                 request is lost if the relay closes the connection first"
            }
        };
        notes.no_effect(line, &shown(line), why);
    }
}

/// The settings of `[log]` in the new config that differ from their defaults.
#[derive(Debug, Default)]
struct Log {
    level: Option<&'static str>,
    is_json: bool,
}

impl Log {
    fn read(file: &File, proxies: &[&Proxy<'_>], notes: &mut Notes) -> Self {
        let mut log = Self::default();
        let mut seen = BTreeSet::new();
        let own = proxies.iter().flat_map(|proxy| proxy.all(&["log"]));
        let own: Vec<&Line> = own.filter(|line| seen.insert(line.number)).collect();
        let globals = file.sections.iter().filter(|section| section.kind() == "global");
        let globals = globals.flat_map(|section| &section.lines);
        let globals = globals.filter(|line| line.word(0) == "log");
        let targets = own.iter().copied().filter(|line| line.word(1) != "global");
        for line in targets.chain(globals) {
            log.take(line, notes);
        }
        let uses = own.iter().filter(|line| line.word(1) == "global");
        uses.for_each(|line| notes.carried(line, "log"));
        log
    }

    /// Reads the format and the level from a line `log TARGET [len N] [format F] … FACILITY [LEVEL
    /// [MINLEVEL]]`.
    fn take(&mut self, line: &Line, notes: &mut Notes) {
        if !["stdout", "stderr", "fd@1", "fd@2"].contains(&line.word(1)) {
            let why = "the relay logs to standard error, where the node's log agent takes it";
            return notes.no_effect(line, &shown(line), why);
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
        notes.carried(line, "log");
    }
}

#[cfg(test)]
mod tests;
