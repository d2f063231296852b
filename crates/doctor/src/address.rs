//! The address of the audit webhook, for comparison with the hosts in the metrics of
//! kube-apiserver.
//!
//! kube-apiserver writes the label `host` as in the URL of the webhook's kubeconfig: names in any
//! case, IPv6 addresses in any form, with or without the default port. Therefore the label is
//! compared as an address and not as text.

use std::net::{IpAddr, Ipv6Addr};

/// The default of `--secure-port` of kube-apiserver.
const PORT: u16 = 6443;

/// A host in a normalized form, and its port, if the text has one.
type HostPort = (Host, Option<u16>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: Host,
    port: u16,
    /// The port of a URL without a port.
    default_port: u16,
}

impl Address {
    /// Makes an address from the host and the port of a URL, such as `relay.example` or
    /// `[::1]:3000`. The default port depends on `https`.
    pub fn new(authority: &str, https: bool) -> Self {
        let (host, port) = parse(authority);
        let default_port = if https { 443 } else { 80 };
        Self { host, port: port.unwrap_or(default_port), default_port }
    }

    /// Returns `true` if the label `host` has this address.
    pub fn is(&self, label: &str) -> bool {
        let (host, port) = parse(label);
        host == self.host && port.unwrap_or(self.default_port) == self.port
    }
}

/// Returns `true` if two labels `host` have the same address. A label without a port differs from
/// one with a port, because the scheme is not known.
pub fn is_same(first: &str, second: &str) -> bool {
    parse(first) == parse(second)
}

/// Returns `true` for `[::1]`. kube-apiserver sends requests to itself at this address, unless it
/// listens only on IPv4.
pub fn is_own(label: &str) -> bool {
    parse(label).0 == Host::Ip(Ipv6Addr::LOCALHOST.into())
}

/// Returns `true` for a loopback address, and for any address with the default port of
/// kube-apiserver. A kube-apiserver that listens only on IPv4 sends requests to itself at such an
/// address, but a webhook may be there too.
pub fn may_be_own(label: &str) -> bool {
    let (host, port) = parse(label);
    let is_near = match &host {
        Host::Ip(ip) => ip.is_loopback(),
        Host::Name(name) => name == "localhost",
    };
    is_near || port == Some(PORT)
}

fn parse(text: &str) -> HostPort {
    if text.parse::<Ipv6Addr>().is_ok() {
        return (host(text), None);
    }
    match text.rsplit_once(':').map(|(before, port)| (before, port.parse())) {
        Some((before, Ok(port))) => (host(before), Some(port)),
        _ => (host(text), None),
    }
}

fn host(text: &str) -> Host {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match inner.parse::<IpAddr>() {
        // An IPv4 address may be written as an IPv6 address.
        Ok(ip) => Host::Ip(ip.to_canonical()),
        Err(_) => Host::Name(text.trim_end_matches('.').to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_compared_as_addresses() {
        for (authority, https, label, wanted) in [
            ("relay.example", true, "relay.example", true),
            ("relay.example", true, "relay.example:443", true),
            ("relay.example", true, "Relay.Example.:443", true),
            ("relay.example", true, "relay.example:80", false),
            ("relay.example", false, "relay.example:80", true),
            ("relay.example", false, "relay.example:443", false),
            ("relay.example:8443", true, "relay.example", false),
            ("relay.example:8443", true, "relay.example:8443", true),
            ("relay.example:8443", true, "relay.example:18443", false),
            ("[fd00::1]:3000", true, "[fd00:0:0::1]:3000", true),
            ("[fd00::1]:3000", true, "[FD00::1]:3000", true),
            ("[fd00::1]:3000", true, "[fd00::1]:3001", false),
            ("[fd00::1]", true, "[fd00::1]:443", true),
            ("[fd00::1]", true, "fd00::1", true),
            ("[fd00::1]", true, "[fd00::1:443]", false),
            ("10.0.0.1:3000", false, "[::ffff:10.0.0.1]:3000", true),
            ("10.0.0.1:3000", false, "10.0.0.10:3000", false),
            ("10.0.0.1", false, "10.0.0.1:8080", false),
            ("relay", false, "", false),
        ] {
            assert_eq!(Address::new(authority, https).is(label), wanted, "{authority} {label}");
        }
    }

    #[test]
    fn the_own_address_has_many_forms() {
        for (label, wanted) in [
            ("[::1]:6443", true),
            ("[0:0:0:0:0:0:0:1]:443", true),
            ("::1", true),
            ("[::10]:6443", false),
            ("127.0.0.1:3000", false),
        ] {
            assert_eq!(is_own(label), wanted, "{label}");
        }
        for (label, wanted) in [
            ("127.0.0.1:2040", true),
            ("localhost:1", true),
            ("10.0.0.5:6443", true),
            ("10.0.0.5:3000", false),
            ("relay.example", false),
        ] {
            assert_eq!(may_be_own(label), wanted, "{label}");
        }
        assert!(is_same("A:1", "a.:1") && !is_same("a", "a:443"));
    }
}
