//! Reads the options of `bind` and `server` lines, and makes listeners of `bind` lines.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::Global;
use super::Notes;
use super::keywords::BIND;
use super::keywords::Choice;
use super::keywords::Fate;
use super::keywords::choice;
use super::read::Line;
use super::report::shown_words;

/// An option of a `bind` or `server` line, such as `maxconn 100`. `value` is empty if the option
/// takes no value, or if the value is missing.
#[derive(Debug, Clone)]
pub(super) struct Switch {
    pub(super) name: String,
    pub(super) value: String,
    /// What becomes of the option; `None` if no HAProxy knows it.
    pub(super) fate: Option<Fate>,
    /// `true`: the option needs a value and has none.
    pub(super) lacks_value: bool,
}

impl Switch {
    /// Returns the option's name and, after a space, its value if it has one and the value is no
    /// password.
    pub(super) fn shown(&self) -> String {
        let words = [self.name.clone(), self.value.clone()];
        shown_words(if self.value.is_empty() { &words[..1] } else { &words })
    }
}

/// Groups the option words of a `bind` or `server` line into options with their values. An option
/// that `table` does not have takes the next word as its value, unless the table has that word.
pub(super) fn switches(words: &[String], table: &'static [Choice]) -> Vec<Switch> {
    let mut switches = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(name) = words.next() {
        let known = choice(table, name);
        let value = match known {
            Some((_, true)) => words.next().cloned(),
            Some((_, false)) => None,
            None => words.next_if(|word| choice(table, word).is_none()).cloned(),
        };
        switches.push(Switch {
            name: name.clone(),
            lacks_value: known.is_some_and(|(_, takes_value)| takes_value) && value.is_none(),
            value: value.unwrap_or_default(),
            fate: known.map(|(row, _)| row.fate),
        });
    }
    switches
}

/// Returns the lowest TLS version that the option demands. `None`: the option does not set a lowest
/// TLS version. `Some(None)`: the relay's default, TLS 1.2 and later, already satisfies the option.
pub(super) fn min_version(switch: &Switch) -> Option<Option<&'static str>> {
    match (switch.name.as_str(), switch.value.as_str()) {
        ("ssl-min-ver", "TLSv1.3") | ("force-tlsv13" | "no-tlsv12", _) => Some(Some("1.3")),
        // The relay never accepts a TLS version below 1.2, so these options need no setting.
        ("ssl-min-ver", _) | ("force-tlsv12" | "no-sslv3" | "no-tlsv10" | "no-tlsv11", _) => {
            Some(None)
        }
        _ => None,
    }
}

/// Returns `true` if the option also allows versions of TLS that the relay refuses.
pub(super) fn allows_old(switch: &Switch) -> bool {
    let is_old = matches!(switch.value.as_str(), "SSLv3" | "TLSv1.0" | "TLSv1.1");
    switch.name == "ssl-min-ver" && is_old
}

/// The reason in the report about an option for which [`allows_old`] is true.
pub(super) const NO_OLD: &str =
    "the relay speaks no TLS below 1.2, and neither does kube-apiserver by default";

/// Returns `true` if the option allows no version of TLS that the relay speaks.
pub(super) fn is_too_old(switch: &Switch) -> bool {
    match switch.name.as_str() {
        "force-sslv3" | "force-tlsv10" | "force-tlsv11" => true,
        "ssl-max-ver" => matches!(switch.value.as_str(), "SSLv3" | "TLSv1.0" | "TLSv1.1"),
        _ => false,
    }
}

/// The settings of one listener, made from one address of a `bind` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bind {
    /// The address of the listener, as `IP:PORT`.
    pub(super) address: String,
    pub(super) tls: Option<BindTls>,
    /// `maxconn` of the line.
    pub(super) maxconn: Option<u64>,
    /// `true`: HAProxy takes only IPv6 at this address.
    is_v6_only: bool,
    /// The number of the `bind` line.
    pub(super) line: usize,
}

/// The settings of a table `[listener.tls]` in the new config. Paths are those of the haproxy.cfg.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BindTls {
    /// The file that holds the certificate chain.
    pub(super) certificate: String,
    /// The file that holds the private key, which HAProxy allows to be the same one.
    pub(super) private_key: String,
    pub(super) client_ca: Option<String>,
    pub(super) min_version: Option<&'static str>,
}

/// The greatest number of ports of a `bind` line that become listeners. A forwarder of audit events
/// has one or two.
const PORTS_MAX: usize = 32;

impl Bind {
    /// Returns the port of the listener. A server whose address has no port gets the port of the
    /// first listener.
    pub(super) fn port(&self) -> &str {
        host_and_port(&self.address).map_or("", |(_, port)| port)
    }

    /// Returns `true` if the listener takes requests at all IPv6 addresses of the machine.
    pub(super) fn is_all_of_v6(&self) -> bool {
        self.address.starts_with("[::]:")
    }

    /// Returns `true` if HAProxy takes only IPv6 at this address, and the relay takes IPv4 too.
    pub(super) fn takes_more(&self) -> bool {
        self.is_v6_only && self.is_all_of_v6()
    }

    /// Makes a listener for each address in `bind ADDRESS[,…] [options]`. An address that the relay
    /// cannot use is reported and left out.
    pub(super) fn read(line: &Line, global: &Global, notes: &mut Notes) -> Vec<Self> {
        let mut words = global.bind_options.clone();
        words.extend_from_slice(line.words.get(2..).unwrap_or_default());
        let mut options = BindOptions::new(line, global);
        for switch in &switches(&words, BIND) {
            options.take(switch, notes);
        }
        let (maxconn, is_v6_only) = (options.maxconn, options.is_v6_only);
        let tls = options.tls(notes);
        let mut binds = Vec::new();
        for text in line.word(1).split(',') {
            let addresses = bind_addresses(text);
            if addresses.is_empty() {
                let why = "HAProxy took requests at this address; a listener has an IP address \
                           and a port, and speaks TCP";
                let act = "name an IP address and a port in listener.address, and send there";
                notes.decide(line, &format!("bind {text}"), why, act);
            }
            binds.extend(addresses.into_iter().map(|address| Self {
                address,
                tls: tls.clone(),
                maxconn,
                is_v6_only,
                line: line.number,
            }));
        }
        binds
    }
}

/// The options of a `bind` line that are read so far.
struct BindOptions<'a> {
    line: &'a Line,
    global: &'a Global,
    is_tls: bool,
    tls: BindTls,
    ca: Option<String>,
    /// The value of `verify`.
    verify: String,
    maxconn: Option<u64>,
    is_v6_only: bool,
}

impl<'a> BindOptions<'a> {
    fn new(line: &'a Line, global: &'a Global) -> Self {
        Self {
            line,
            global,
            is_tls: false,
            tls: BindTls::default(),
            ca: None,
            verify: "none".to_owned(),
            maxconn: None,
            is_v6_only: false,
        }
    }

    fn take(&mut self, switch: &Switch, notes: &mut Notes) {
        let (line, global) = (self.line, self.global);
        let part = format!("bind … {}", switch.shown());
        if switch.lacks_value {
            return notes.lacks_value(line, &part);
        }
        if is_too_old(switch) {
            let why = "HAProxy took only versions of TLS that the relay refuses (below 1.2)";
            let act = "let the senders use TLS 1.2, as kube-apiserver does";
            return notes.decide(line, &part, why, act);
        }
        if allows_old(switch) {
            notes.no_effect(line, &part, NO_OLD);
        }
        if let Some(version) = min_version(switch) {
            self.tls.min_version = version.or(self.tls.min_version);
            return;
        }
        match (switch.name.as_str(), switch.value.as_str()) {
            ("ssl", _) => self.is_tls = true,
            ("crt" | "default-crt", path) => self.tls.take(line, path, &part, global, notes),
            ("crt-list", path) => {
                let path = Global::path(global.crt_base.as_ref(), path);
                if self.tls.certificate.is_empty() {
                    self.tls.certificate.clone_from(&path);
                    self.tls.private_key.clone_from(&path);
                }
                let why = "HAProxy chose one of the certificates of this list, by the name that \
                           the sender asks for; a listener has one certificate";
                let act = "put the certificate and the key that kube-apiserver expects into the \
                           files that the config names";
                notes.decide(line, &part, why, act);
                notes.file(line, &path);
            }
            ("ca-file", path) => self.ca = Some(Global::path(global.ca_base.as_ref(), path)),
            ("verify", value) => value.clone_into(&mut self.verify),
            ("maxconn", value) => {
                self.maxconn = value.parse().ok();
                let why = "limits.max_connections is for all listeners together";
                notes.no_effect(line, &part, why);
            }
            ("v6only", _) => self.is_v6_only = true,
            ("v4v6", _) => self.is_v6_only = false,
            // The relay offers both HTTP/1.1 and HTTP/2, so the option needs no setting.
            ("alpn", _) => {}
            _ => match switch.fate {
                Some(fate) => notes.fate(line, &part, fate),
                None => notes.unknown(line, &part),
            },
        }
    }

    /// Returns the settings of TLS; `None` if the line has no `ssl`.
    fn tls(mut self, notes: &mut Notes) -> Option<BindTls> {
        match self.verify.as_str() {
            "required" if self.is_tls => {
                if let Some(ca) = &self.ca {
                    notes.file(self.line, ca);
                }
                self.tls.client_ca = self.ca;
            }
            "optional" if self.is_tls => {
                let why = "HAProxy asked for a client certificate and took senders without one; \
                           the relay requires one or asks for none, and here it asks for none";
                let act = "if every sender has a certificate, set listener.tls.client_ca";
                notes.decide(self.line, "bind … verify optional", why, act);
            }
            _ => {}
        }
        self.is_tls.then_some(self.tls)
    }
}

impl BindTls {
    /// Reads the value of `crt`: a file, a directory of files, or the name of a certificate in a
    /// `crt-store` section.
    fn take(&mut self, line: &Line, path: &str, part: &str, global: &Global, notes: &mut Notes) {
        if !self.certificate.is_empty() {
            let why = "HAProxy chose one of several certificates, by the name that the sender \
                       asks for; a listener has one certificate";
            let act = "make one certificate with all names, or a listener for each certificate";
            return notes.decide(line, part, why, act);
        }
        if let Some(stored) = global.stored(path) {
            self.certificate.clone_from(&stored.certificate);
            self.private_key.clone_from(&stored.private_key);
        } else {
            self.certificate = Global::path(global.crt_base.as_ref(), path);
            self.private_key.clone_from(&self.certificate);
        }
        if path.ends_with('/') {
            let why = "HAProxy chose one of the certificates in this directory, by the name that \
                       the sender asks for; a listener has one certificate";
            let act = "put the certificate and the key that kube-apiserver expects into the files \
                       that the config names";
            notes.decide(line, part, why, act);
        }
        notes.file(line, &self.certificate);
        notes.file(line, &self.private_key);
    }
}

/// Returns the `IP:PORT` of each listener for an address in the form `[ADDRESS]:PORT` or
/// `[ADDRESS]:FIRST-LAST`. If ADDRESS is missing or `*`, the IP is `0.0.0.0` (all IPv4 addresses).
/// The result is empty if ADDRESS is anything else than an IP address or an environment variable,
/// or if PORT is missing or wrong.
fn bind_addresses(text: &str) -> Vec<String> {
    if let Some(addresses) = ports(text) {
        return addresses;
    }
    bind_address(text).into_iter().collect()
}

/// Returns an address for each port of a range such as `:3000-3003`; `None` if there is no range.
fn ports(text: &str) -> Option<Vec<String>> {
    let (host, range) = text.rsplit_once(':')?;
    let (first, last) = range.split_once('-').filter(|_| !is_variable(text))?;
    let range: RangeInclusive<u16> = first.parse().ok()?..=last.parse().ok()?;
    if range.clone().count() > PORTS_MAX {
        return Some(Vec::new());
    }
    Some(range.filter_map(|port| bind_address(&format!("{host}:{port}"))).collect())
}

fn bind_address(text: &str) -> Option<String> {
    let (host, port) = host_and_port(text)?;
    match host {
        "" | "*" if text.starts_with("ipv6@") => Some(format!("[::]:{port}")),
        "" | "*" | "0" => Some(format!("0.0.0.0:{port}")),
        "localhost" => Some(format!("127.0.0.1:{port}")),
        host if is_variable(host) => Some(format!("{host}:{port}")),
        host => match host.parse().ok()? {
            IpAddr::V4(host) => Some(format!("{host}:{port}")),
            IpAddr::V6(host) => Some(format!("[{host}]:{port}")),
        },
    }
}

/// Returns `true` if the text contains an environment variable, whose value is known only when the
/// relay runs.
pub(super) fn is_variable(text: &str) -> bool {
    text.contains("${env:")
}

/// Splits an address into its host, without brackets, and its port. `None` if the port is missing
/// or wrong: a port is a number from 1 to 65535 or an environment variable.
pub(super) fn host_and_port(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    let (host, port) = match text.rsplit_once(':')? {
        // A variable, such as `${env:PORT}`, contains a colon itself.
        (_, rest) if rest.contains('}') => {
            let place = text.find(":${")?;
            (text.get(..place)?, text.get(place + 1..)?)
        }
        parts => parts,
    };
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = is_variable(port) || is_number && port.parse::<u16>().is_ok_and(|port| port > 0);
    is_port.then(|| (host.trim_matches(['[', ']']), port))
}
