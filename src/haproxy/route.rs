//! Finds the backends to which the frontends of a haproxy.cfg send, and the frontends that fit into
//! one relay.

use std::collections::BTreeSet;

use super::Unusable;
use super::bind::Bind;
use super::global::Global;
use super::output::Output;
use super::proxy::Proxy;
use super::read::File;
use super::report::{Line, Notes, Verdict, printable, shown};
use super::settings::rings;

/// A frontend that forwards to a backend.
pub(super) struct Route<'a> {
    pub(super) front: Proxy<'a>,
    pub(super) back: Proxy<'a>,
    pub(super) output: Output,
    pub(super) binds: Vec<Bind<'a>>,
    /// The indices of the other backends to which rules of the frontend lead.
    pub(super) conditional: Vec<usize>,
    pub(super) notes: Notes,
}

/// The frontends of a file, by what they do.
pub(super) struct Fronts<'a> {
    file: &'a File,
    pub(super) routes: Vec<Route<'a>>,
    /// The indices of sections that show HAProxy's status or metrics.
    pub(super) statistics: BTreeSet<usize>,
    /// The indices of sections that are disabled or listen nowhere.
    pub(super) idle: BTreeSet<usize>,
    /// The findings about frontends that lead nowhere.
    pub(super) lost: Notes,
    /// The indices of the backends of these frontends, each with that of a frontend.
    pub(super) backs_of_lost: Vec<(usize, usize)>,
}

impl<'a> Fronts<'a> {
    pub(super) fn read(file: &'a File, global: &Global<'a>) -> Self {
        let mut fronts = Self {
            file,
            routes: Vec::new(),
            statistics: BTreeSet::new(),
            idle: BTreeSet::new(),
            lost: Notes::default(),
            backs_of_lost: Vec::new(),
        };
        for (place, section) in file.sections.iter().enumerate() {
            let is_front = matches!(section.kind(), "frontend" | "listen");
            let front = Proxy::read(file, place);
            if is_front && (front.has(&["disabled"]) || !front.has(&["bind"])) {
                fronts.idle.insert(place);
            } else if is_front {
                fronts.take(front, global);
            }
        }
        fronts
    }

    fn take(&mut self, front: Proxy<'a>, global: &Global<'a>) {
        let mut notes = Notes::default();
        let mut conditional = Vec::new();
        let place = self.destination(&front, &mut conditional, &mut notes);
        if place.is_none() && self.statistics.contains(&front.place) {
            return;
        }
        let head = &self.file.sections[front.place].head;
        let mut why = "HAProxy takes requests here and forwards none of them to a server";
        if let Some(place) = place {
            let back = Proxy::read(self.file, place);
            let lines = front.all(&["bind"]);
            let binds: Vec<Bind<'_>> =
                lines.flat_map(|line| Bind::read(line, global, &mut notes)).collect();
            let (name, ports) = (self.file.sections[place].name(), ports_of(&binds));
            let output = Output::read(name, &front, &back, global, &ports, &mut notes);
            if let Some(output) = output.filter(|_| !binds.is_empty()) {
                return self.routes.push(Route { front, back, output, binds, conditional, notes });
            }
            why = "it has no `bind` or no `server` line that could be carried over";
        }
        // Nothing of the section is in the new config, even if some of its lines were usable.
        notes.carried.clear();
        self.lost.decide(head, why);
        self.lost.merge(&notes);
        conditional.extend(place);
        self.backs_of_lost.extend(conditional.into_iter().map(|back| (back, front.place)));
    }

    fn backend(&self, name: &str) -> Option<usize> {
        let mut sections = self.file.sections.iter();
        sections.position(|section| {
            matches!(section.kind(), "backend" | "listen") && section.name() == name
        })
    }

    /// Returns `true` if the section has a line that names servers.
    fn has_servers(&self, place: usize) -> bool {
        let proxy = Proxy::read(self.file, place);
        ["server", "server-template", "dispatch"].iter().any(|word| proxy.has(&[word]))
    }

    /// Returns `true` if the section shows HAProxy's status page or metrics.
    fn is_statistics(&self, place: usize) -> bool {
        let proxy = Proxy::read(self.file, place);
        let shows = ["enable", "uri", "auth", "admin", "refresh"];
        let exports = |line: &&Line| line.words.iter().any(|word| word == "prometheus-exporter");
        !self.has_servers(place)
            && (shows.iter().any(|word| proxy.has(&["stats", word]))
                || proxy.lines.iter().any(exports))
    }

    /// Returns the index of the section to whose servers the requests of a frontend go. Each rule
    /// that leads elsewhere is reported, and its backend is added to `conditional`. The result is
    /// `None` if there is no such section, as with a frontend for HAProxy's status.
    fn destination(
        &mut self,
        front: &Proxy<'a>,
        conditional: &mut Vec<usize>,
        notes: &mut Notes,
    ) -> Option<usize> {
        let mut for_all = None;
        let mut rules: Vec<(&Line, Option<usize>)> = Vec::new();
        for line in front.all(&["use_backend"]).chain(front.last(&["default_backend"])) {
            match self.backend(line.word(1)) {
                _ if for_all.is_some() => {
                    notes.no_effect(line, "HAProxy does not come to it: a rule above always holds");
                }
                Some(backend) if line.words.len() == 2 => for_all = Some((line, backend)),
                backend => rules.push((line, backend)),
            }
        }
        let of_all = for_all.map_or(front.place, |(_, backend)| backend);
        let takes_all = Some(of_all).filter(|&place| self.has_servers(place));
        // If the other requests go to no server, HAProxy answers them itself: with 503, an error
        // or its status. Here, the first backend with servers to which a rule leads is then taken
        // for all requests.
        let with_servers =
            |&(_, place): &(_, Option<usize>)| place.filter(|&p| self.has_servers(p));
        let place = takes_all.or_else(|| rules.iter().find_map(with_servers));
        let mut leads_to_statistics = place.is_none() && self.is_statistics(of_all);
        match for_all {
            Some((line, _)) if takes_all.is_some() => notes.carried(line, "output"),
            for_all => rules.extend(for_all.map(|(line, backend)| (line, Some(backend)))),
        }
        for (line, backend) in rules {
            match backend {
                Some(backend) if self.is_statistics(backend) => {
                    self.statistics.insert(backend);
                    leads_to_statistics |= place.is_none();
                    notes.no_effect(line, STATISTICS);
                }
                Some(backend) if Some(backend) == takes_all => {
                    notes.no_effect(line, "it leads to the backend to which all requests go");
                }
                None => notes.decide(line, "the file has no backend of this name"),
                Some(backend) => {
                    let why = match self.has_servers(backend) {
                        true => SENT_TO_ALL.to_owned(),
                        false => self.answers_itself(backend),
                    };
                    notes.decide(line, &why);
                    conditional.extend(Some(backend).filter(|_| Some(backend) != place));
                }
            }
        }
        if leads_to_statistics {
            self.statistics.insert(front.place);
        }
        place
    }

    /// Returns the reason in the report about a rule that leads to a backend without servers.
    fn answers_itself(&self, backend: usize) -> String {
        let proxy = Proxy::read(self.file, backend);
        let rules = ["http-request", "tcp-request", "redirect", "errorfile"];
        let rule = proxy.lines.iter().rfind(|line| rules.contains(&line.word(0)));
        let by = rule.map_or_else(String::new, |line| format!(" (`{}`)", shown(line)));
        format!(
            "no server is behind `{}`: HAProxy itself answered these requests{by} and forwarded \
             none of them. The relay takes every request at its listeners, and sends the events to \
             every output: decide who may reach the listeners",
            self.file.sections[backend].name()
        )
    }

    /// Returns a hint for a file whose frontends lead to no server: the bodies may leave in the
    /// lines of the log, to the servers of a ring. An empty text if there is none.
    fn of_rings(&self) -> String {
        let output = rings(self.file).find_map(Output::of_ring);
        let Some(Output { urls, .. }) = output else { return String::new() };
        let addresses: Vec<_> = urls.iter().map(|url| format!("\"{}\"", printable(url))).collect();
        format!(
            ". HAProxy's log goes to a ring, perhaps with the bodies: an output with type = \
             \"syslog\" and addresses = [{}] sends each event to its servers",
            addresses.join(", ")
        )
    }

    /// Returns the frontends that are carried over, and the others. All that are carried over lead
    /// to the same output. `name` names a frontend that has to be among them.
    pub(super) fn choose(
        &self,
        name: Option<&str>,
    ) -> Result<(Vec<&Route<'a>>, Vec<&Route<'a>>), Unusable> {
        let name_of = |route: &Route<'_>| self.file.sections[route.front.place].name();
        let first = match name {
            Some(name) => self.routes.iter().find(|route| name_of(route) == name),
            None => {
                let first = self.routes.iter().find(|route| route.front.is_http());
                first.or_else(|| self.routes.first())
            }
        };
        let Some(first) = first else {
            let missing = match name {
                Some(name) => format!("no frontend `{}` leads to a server", printable(name)),
                None => "no frontend with `bind` leads to a backend with a server that can be \
                         carried over"
                    .to_owned(),
            };
            let missing = missing + &self.of_rings();
            return Err(Unusable { missing, findings: self.lost.findings() });
        };
        let is_ours = |route: &&Route<'_>| route.output.is_same(&first.output);
        let (mut group, others): (Vec<_>, Vec<_>) = self.routes.iter().partition(is_ours);
        // The output has the name of the first one's backend.
        group.sort_by_key(|route| route.front.place != first.front.place);
        Ok((group, others))
    }
}

/// The reason in the report about a rule that leads to another backend than the output's.
const SENT_TO_ALL: &str = "a relay sends every event to every output, whatever the request was";

/// The reason in the report about lines that show HAProxy's status or metrics.
pub(super) const STATISTICS: &str = "the relay's status page and metrics are at admin.address";

/// Returns the ports of listeners, each once.
pub(super) fn ports_of<'b>(binds: &'b [Bind<'_>]) -> Vec<&'b str> {
    let mut ports: Vec<&str> = Vec::new();
    for port in binds.iter().map(Bind::port) {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

/// Notes the `mode` lines of a frontend and its backend as carried over, and reports a mode other
/// than `http`. Without such a line the mode is `tcp`: HAProxy passes on bytes without reading
/// them.
pub(super) fn modes(file: &File, route: &Route<'_>, notes: &mut Notes) {
    for line in [&route.front, &route.back].iter().filter_map(|proxy| proxy.last(&["mode"])) {
        notes.carried(line, "");
    }
    if route.front.is_http() {
        return;
    }
    let line = route.front.last(&["mode"]).unwrap_or(&file.sections[route.front.place].head);
    let is_read = route.binds.iter().all(|bind| bind.tls.is_some())
        || route.output.urls.iter().all(|url| url.starts_with("https:"));
    if is_read {
        let why = "HAProxy takes TLS off or puts it on, so that the relay can read the requests";
        return notes.no_effect(line, why);
    }
    let why = "without `mode http` HAProxy passed on all bytes; the relay reads HTTP, and needs \
               [listener.tls] if the URL in the webhook's kubeconfig begins with https://";
    notes.decide(line, why);
}

/// Returns the listeners without those that another listener makes needless. These are an address
/// that is named twice, and `0.0.0.0` at a port where the relay also listens on `[::]`, which
/// accepts IPv4 too.
pub(super) fn listeners<'a>(binds: &[Bind<'a>], notes: &mut Notes) -> Vec<Bind<'a>> {
    let mut kept: Vec<Bind<'a>> = Vec::new();
    for bind in binds {
        let part = format!("bind {}", bind.line.word(1));
        let is_v4_of = |other: &Bind<'_>| {
            bind.address.strip_prefix("0.0.0.0:") == Some(other.port()) && other.is_all_of_v6()
        };
        let first = kept.iter().find(|other| other.address == bind.address);
        let other =
            first.or_else(|| binds.iter().find(|other| is_v4_of(other) && other.tls == bind.tls));
        match other {
            Some(other) if other.tls == bind.tls => {
                let why = format!("the listener {} takes these requests", other.address);
                notes.add(bind.line, &part, Verdict::NoEffect, &why);
            }
            Some(_) => {
                let why = "another line names this address, with other settings of TLS";
                notes.decide_part(bind.line, &part, why);
            }
            None => {
                notes.carried(bind.line, &format!("listener {}", bind.address));
                kept.push(bind.clone());
            }
        }
    }
    for bind in kept.iter().filter(|bind| bind.is_v6_only && bind.is_all_of_v6()) {
        let v4 = format!("0.0.0.0:{}", bind.port());
        if !binds.iter().any(|other| other.address == v4 && other.tls == bind.tls) {
            let why = "HAProxy took IPv6 only; the relay takes IPv4 at this port as well";
            notes.decide_part(bind.line, "bind … v6only", why);
        }
    }
    kept
}
