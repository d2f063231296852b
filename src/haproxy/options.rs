//! Reads the options of `bind` and `server` lines, and makes listeners of `bind` lines.

use std::net::IpAddr;

use super::Global;
use super::Notes;
use super::read::Line;

/// The options of `bind` and `server` lines that have no value. Every other option is followed by
/// one word, its value.
const ALONE: [&str; 46] = [
    "accept-proxy",
    "agent-check",
    "allow-0rtt",
    "backup",
    "check",
    "check-send-proxy",
    "check-ssl",
    "check-via-socks4",
    "defer-accept",
    "disabled",
    "enabled",
    "force-sslv3",
    "force-tlsv10",
    "force-tlsv11",
    "force-tlsv12",
    "force-tlsv13",
    "generate-certificates",
    "no-agent-check",
    "no-backup",
    "no-ca-names",
    "no-check",
    "no-check-ssl",
    "no-send-proxy",
    "no-send-proxy-v2",
    "no-ssl",
    "no-ssl-reuse",
    "no-sslv3",
    "no-tls-tickets",
    "no-tlsv10",
    "no-tlsv11",
    "no-tlsv12",
    "no-tlsv13",
    "non-stick",
    "prefer-client-ciphers",
    "quic-force-retry",
    "send-proxy",
    "send-proxy-v2",
    "ssl",
    "ssl-reuse",
    "stick",
    "strict-sni",
    "tfo",
    "tls-tickets",
    "transparent",
    "v4v6",
    "v6only",
];

/// An option of a `bind` or `server` line, such as `maxconn 100`. `value` is empty if the option
/// takes no value, or if the value is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Switch {
    pub(super) name: String,
    pub(super) value: String,
}

impl Switch {
    /// Returns `true` if the option is complete: it takes no value, or its value is there.
    pub(super) fn is_whole(&self) -> bool {
        !self.value.is_empty() || ALONE.contains(&self.name.as_str())
    }

    /// Returns the option's name and, after a space, its value if it has one.
    pub(super) fn shown(&self) -> String {
        if self.value.is_empty() {
            self.name.clone()
        } else {
            format!("{} {}", self.name, self.value)
        }
    }
}

/// Groups the option words of a `bind` or `server` line into options with their values.
pub(super) fn switches(words: &[String]) -> Vec<Switch> {
    let mut switches = Vec::new();
    let mut words = words.iter();
    while let Some(name) = words.next() {
        let is_alone = ALONE.contains(&name.as_str());
        let value = if is_alone { None } else { words.next() };
        switches.push(Switch { name: name.clone(), value: value.cloned().unwrap_or_default() });
    }
    switches
}

/// Returns the lowest TLS version that the option demands. `None`: the option does not set a lowest
/// TLS version. `Some(None)`: the relay's default, TLS 1.2 and later, already satisfies the option.
pub(super) fn min_version(switch: &Switch) -> Option<Option<&'static str>> {
    match (switch.name.as_str(), switch.value.as_str()) {
        ("ssl-min-ver", "TLSv1.3") | ("force-tlsv13" | "no-tlsv12", _) => Some(Some("1.3")),
        // The relay never accepts a TLS version below 1.2, so these options need no setting.
        ("ssl-min-ver", _) | ("no-sslv3" | "no-tlsv10" | "no-tlsv11", _) => Some(None),
        _ => None,
    }
}

/// The settings of one listener, made from one address of a `bind` line.
#[derive(Debug)]
pub(super) struct Bind {
    /// The address of the listener, as `IP:PORT`.
    pub(super) address: String,
    pub(super) tls: Option<BindTls>,
}

/// The settings of a table `[listener.tls]` in the new config.
#[derive(Debug, Clone, Default)]
pub(super) struct BindTls {
    /// The file that holds both the certificate chain and the private key.
    pub(super) certificate: String,
    pub(super) client_ca: Option<String>,
    pub(super) min_version: Option<&'static str>,
}

impl Bind {
    /// Returns the port of the listener. A server whose address has no port gets the port of the
    /// first listener.
    pub(super) fn port(&self) -> &str {
        host_and_port(&self.address).map_or("", |(_, port)| port)
    }

    /// Makes a listener for each address in `bind ADDRESS[,…] [options]`. An address that the relay
    /// cannot use is reported and left out. If the line asks for TLS but names no certificate file,
    /// the whole line is left out and the result is empty.
    pub(super) fn read(line: &Line, global: &Global, notes: &mut Notes) -> Vec<Self> {
        let mut words = global.bind_options.clone();
        words.extend_from_slice(line.words.get(2..).unwrap_or_default());
        let switches = switches(&words);
        let mut tls = BindTls::default();
        let (mut is_tls, mut ca, mut verify) = (false, None, "none".to_owned());
        for switch in &switches {
            if !switch.is_whole() {
                notes.part(line, &format!("bind … {}", switch.name), "its value is missing");
                continue;
            }
            if let Some(version) = min_version(switch) {
                tls.min_version = version.or(tls.min_version);
                continue;
            }
            match switch.name.as_str() {
                "ssl" => is_tls = true,
                "crt" if tls.certificate.is_empty() && !switch.value.ends_with('/') => {
                    tls.certificate = Global::path(global.crt_base.as_ref(), &switch.value);
                }
                "ca-file" => ca = Some(Global::path(global.ca_base.as_ref(), &switch.value)),
                "verify" => verify.clone_from(&switch.value),
                // The relay offers both HTTP/1.1 and HTTP/2, so the option needs no setting.
                "alpn" if switch.value.contains("http/1.1") || switch.value.contains("h2") => {}
                _ => notes.part(line, &format!("bind … {}", switch.shown()), reason(switch)),
            }
        }
        if is_tls && tls.certificate.is_empty() {
            let why = "left out: the relay needs one file with the chain and the key (crt FILE)";
            notes.left(line, why);
            return Vec::new();
        }
        match verify.as_str() {
            "required" => tls.client_ca = ca,
            "optional" => {
                let why =
                    "a client certificate is required or not asked for; here it is not asked for";
                notes.part(line, "bind … verify optional", why);
            }
            _ => {}
        }
        let tls = is_tls.then_some(tls);
        let mut binds = Vec::new();
        for address in line.word(1).split(',') {
            match bind_address(address) {
                Some(address) => binds.push(Self { address, tls: tls.clone() }),
                None => {
                    let why = "left out: listeners have an IP address and one port, or none for all of IPv4";
                    notes.part(line, &format!("bind {address}"), why);
                }
            }
        }
        notes.carried(line);
        binds
    }
}

fn reason(switch: &Switch) -> &'static str {
    match switch.name.as_str() {
        "accept-proxy" => {
            "the relay does not speak the PROXY protocol: whoever sends it here must stop doing so"
        }
        "crt" | "crt-list" => "a listener has one certificate, chain and key in one file",
        "name" | "id" => "the relay names a listener by its address",
        "maxconn" => "limits.max_connections is for all listeners together",
        "ciphers" | "ciphersuites" | "curves" | "ecdhe" | "ssl-dh-param-file" => {
            "the TLS library rustls has no weak cipher suites that could be left out"
        }
        _ => "the relay has nothing that corresponds to it",
    }
}

/// Returns the `IP:PORT` of a listener for an address in the form `[ADDRESS]:PORT`. If ADDRESS is
/// missing or `*`, the IP is `0.0.0.0` (all IPv4 addresses). `None` if ADDRESS is anything else
/// than an IP address or an environment variable, or if PORT is missing or wrong.
fn bind_address(text: &str) -> Option<String> {
    let (host, port) = host_and_port(text)?;
    match host {
        "" | "*" => Some(format!("0.0.0.0:{port}")),
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
