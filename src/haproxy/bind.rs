//! Makes listeners of `bind` lines.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::global::Global;
use super::report::{Line, Notes, shown_words};
use super::words;
use super::words::{Switch, switches};

/// The settings of one listener, made from one address of a `bind` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bind<'a> {
    /// The address of the listener, as `IP:PORT`.
    pub(super) address: String,
    pub(super) tls: Option<Tls>,
    /// `maxconn` of the line.
    pub(super) maxconn: Option<u64>,
    /// `true`: HAProxy accepts only IPv6 at this address.
    pub(super) is_v6_only: bool,
    pub(super) line: &'a Line,
}

/// The settings of a table `[listener.tls]` or `[output.tls]` in the new config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// The file that holds the certificate chain; `None` if HAProxy presents no certificate.
    pub(super) certificate: Option<String>,
    /// The file that holds the private key. With HAProxy this is usually the same file.
    pub(super) private_key: Option<String>,
    /// The CAs that may sign the certificate of the peer. `None` if a listener asks for no
    /// certificate, or if an output takes the CAs of the system.
    pub(super) ca: Option<String>,
    pub(super) server_name: Option<String>,
    pub(super) min_version: Option<&'static str>,
    pub(super) insecure_skip_verify: bool,
}

/// The options of a `bind` line.
#[derive(Default)]
struct Settings {
    is_tls: bool,
    tls: Tls,
    /// The value of `verify`.
    verify: String,
    maxconn: Option<u64>,
    is_v6_only: bool,
}

/// The greatest number of ports of a `bind` line that become listeners. A forwarder of audit events
/// has one or two.
const PORTS_MAX: usize = 32;

impl<'a> Bind<'a> {
    /// Returns the port of the listener. A server whose address has no port gets the port of the
    /// first listener.
    pub(super) fn port(&self) -> &str {
        host_and_port(&self.address).map_or("", |(_, port)| port)
    }

    /// Returns `true` if the listener accepts requests at all IPv6 addresses of the machine.
    pub(super) fn is_all_of_v6(&self) -> bool {
        self.address.starts_with("[::]:")
    }

    /// Makes a listener for each address in `bind ADDRESS[,…] [options]`. An address that the relay
    /// cannot use is reported and left out.
    pub(super) fn read(line: &'a Line, global: &Global<'_>, notes: &mut Notes) -> Vec<Self> {
        let mut words = global.bind_options.clone();
        words.extend_from_slice(line.words.get(2..).unwrap_or_default());
        let mut settings = Settings::default();
        for switch in &switches(&words, words::BIND) {
            settings.take(switch, line, global, notes);
        }
        let (maxconn, is_v6_only) = (settings.maxconn, settings.is_v6_only);
        if settings.is_tls && settings.tls.certificate.is_none() {
            notes.decide(line, "left out: `ssl` has no certificate (crt FILE)");
            return Vec::new();
        }
        let tls = settings.tls(line, notes);
        let mut binds = Vec::new();
        for text in line.word(1).split(',') {
            let addresses = addresses(text);
            if addresses.is_empty() {
                let why = "left out: a listener has an IP address and a port, and speaks TCP";
                notes.decide_part(line, &format!("bind {text}"), why);
            }
            let bind = |address| Self { address, tls: tls.clone(), maxconn, is_v6_only, line };
            binds.extend(addresses.into_iter().map(bind));
        }
        binds
    }
}

/// The reason in the report about more than one certificate.
const ONE_CERTIFICATE: &str = "HAProxy chose one of several certificates, by the name that the \
     sender asks for; a listener has one certificate";

impl Settings {
    fn take(&mut self, switch: &Switch, line: &Line, global: &Global<'_>, notes: &mut Notes) {
        let part = format!("bind … {}", switch.shown());
        match (switch.name.as_str(), switch.value.as_str()) {
            ("ssl", _) => self.is_tls = true,
            ("crt" | "default-crt", _) if self.tls.certificate.is_some() => {
                notes.decide_part(line, &part, ONE_CERTIFICATE);
            }
            ("crt" | "crt-list" | "default-crt", path) => {
                if switch.name == "crt-list" || path.ends_with('/') {
                    notes.decide_part(line, &part, ONE_CERTIFICATE);
                }
                let (certificate, private_key) = global.certificate(path, notes);
                self.tls.certificate = Some(certificate);
                self.tls.private_key = Some(private_key);
            }
            ("ca-file", path) => self.tls.ca = Some(Global::path(global.ca_base, path)),
            ("verify", value) => value.clone_into(&mut self.verify),
            ("maxconn", value) => self.maxconn = value.parse().ok(),
            ("v6only", _) => self.is_v6_only = true,
            ("v4v6", _) => self.is_v6_only = false,
            // The relay offers both HTTP/1.1 and HTTP/2, so the option needs no setting.
            ("alpn", _) => {}
            _ => match min_version(switch) {
                Some(version) => self.tls.min_version = version.or(self.tls.min_version),
                None => notes.other(line, &part, switch.is_harmless),
            },
        }
    }

    /// Returns the settings of TLS; `None` if the line has no `ssl`.
    fn tls(mut self, line: &Line, notes: &mut Notes) -> Option<Tls> {
        let is_required = self.verify == "required" && self.tls.ca.is_some();
        if !is_required && self.is_tls && !matches!(self.verify.as_str(), "" | "none") {
            let part = format!("bind … verify {}", self.verify);
            let why = "the relay asks for no client certificate here: it requires one from every \
                       sender if listener.tls.client_ca is set, and else from none";
            notes.decide_part(line, &part, why);
        }
        self.tls.ca = self.tls.ca.filter(|_| is_required);
        self.is_tls.then_some(self.tls)
    }
}

impl Switch {
    /// Returns the option's name and, after a space, its value if it has one and the value is not a
    /// password.
    pub(super) fn shown(&self) -> String {
        let words = [self.name.clone(), self.value.clone()];
        shown_words(if self.value.is_empty() { &words[..1] } else { &words })
    }
}

/// Returns the lowest TLS version that the option demands. `Some(None)` if the relay's default, TLS
/// 1.2 and later, already satisfies the option. `None` if the option is about something else, or is
/// `ssl-min-ver` with a version that the relay refuses.
pub(super) fn min_version(switch: &Switch) -> Option<Option<&'static str>> {
    match (switch.name.as_str(), switch.value.as_str()) {
        ("ssl-min-ver", "TLSv1.3") | ("force-tlsv13" | "no-tlsv12", _) => Some(Some("1.3")),
        ("ssl-min-ver", "TLSv1.2")
        | ("force-tlsv12" | "no-sslv3" | "no-tlsv10" | "no-tlsv11", _) => Some(None),
        _ => None,
    }
}

/// Returns the `IP:PORT` of each listener for an address in the form `ADDRESS:PORT` or
/// `ADDRESS:FIRST-LAST`. If ADDRESS is missing or `*`, the IP is `0.0.0.0` (all IPv4 addresses).
/// The result is empty if ADDRESS is anything else than an IP address, `localhost` or an
/// environment variable, if PORT is missing or wrong, or if there are more than [`PORTS_MAX`]
/// ports.
fn addresses(text: &str) -> Vec<String> {
    if is_variable(text) {
        return address(text).into_iter().collect();
    }
    let range = |text: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        // In HAProxy, a number with a `+` is an offset from another port.
        let port = |text: &str| text.parse().ok().filter(|_| !text.starts_with('+'));
        Some(port(first)?..=port(last)?)
    };
    match text.rsplit_once(':').and_then(|(host, ports)| Some((host, range(ports)?))) {
        Some((host, ports)) if ports.len() <= PORTS_MAX => {
            ports.filter_map(|port| address(&format!("{host}:{port}"))).collect()
        }
        _ => Vec::new(),
    }
}

fn address(text: &str) -> Option<String> {
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
