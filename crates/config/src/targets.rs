//! Warnings about addresses of outputs: one that is configured twice, and one that leads back to
//! the relay itself. Both are allowed, and nearly always a mistake.
//!
//! Nothing is resolved or connected: a name is compared as it is written.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use url::{Host, Url};

use config_table::problem::Severity;
use config_table::reader::Context;
use config_table::template::Template;
use config_table::values::HostPort;

pub(super) const PROXY: &str = "proxy";

/// One address of an output, in a form that can be compared with other addresses.
pub struct Target {
    /// The key's path below the output: `urls[1]`.
    key: String,
    /// The host in lower case, without brackets and without a dot at the end.
    host: String,
    /// The port, or the default port of the URL's scheme.
    port: u16,
    /// The whole URL, or host and port. Targets of an output with equal texts are duplicates.
    whole: String,
    /// `true` if a proxy resolves the host. `localhost` then means the proxy's machine, not this
    /// one.
    resolved_elsewhere: bool,
    /// The scheme of a URL, such as `https`; `None` for a host and a port.
    scheme: Option<String>,
}

/// Warns of each address that an output has twice, and of each that leads to this relay itself.
///
/// `own` are the addresses that this relay binds, each with the path of its key. `outputs` are the
/// paths of the outputs (`output[0]`) with their targets.
pub(crate) fn warn<'o>(
    cx: &Context<'_>,
    own: &[(String, SocketAddr)],
    outputs: impl Iterator<Item = (&'o str, Vec<Target>)>,
) {
    for (path, targets) in outputs {
        let warn = |key: &str, message: String| {
            let key = format!("{path}.{key}");
            cx.problem_at(&key, &key, message, Severity::Warning);
        };
        for (index, target) in targets.iter().enumerate() {
            if targets.iter().take(index).any(|it| it.whole == target.whole) {
                warn(&target.key, "duplicates an earlier address: remove it".to_owned());
            }
            if let Some((key, _)) = own.iter().find(|(_, address)| target.is(*address)) {
                let message = format!(
                    "points back to this relay, at {}: use a consumer's address",
                    cx.with_line(key)
                );
                warn(&target.key, message);
            }
        }
    }
}

/// Returns a host in lower case, without a dot at the end; an IP address in its shortest form.
fn plain(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    host.parse::<IpAddr>().map_or_else(|_| host.to_owned(), |address| address.to_string())
}

impl Target {
    /// Returns the targets of `addresses`, the value of `key`.
    pub fn of_addresses(key: &str, addresses: &[HostPort]) -> Vec<Self> {
        let target = |(index, address): (usize, &HostPort)| {
            let host = plain(&address.host);
            let whole = format!("{host} {}", address.port);
            let (key, port) = (format!("{key}[{index}]"), address.port);
            Self { key, host, port, whole, resolved_elsewhere: false, scheme: None }
        };
        addresses.iter().enumerate().map(target).collect()
    }

    /// Returns the target of a URL. `key` is the path of the URL below the output, such as
    /// `urls[0]`. `None` if the URL cannot be read, which is reported elsewhere.
    pub fn of_url(key: String, url: &Template, resolved_elsewhere: bool) -> Option<Self> {
        let url = Url::parse(&url.expand().ok()?).ok()?;
        let host = match url.host()? {
            Host::Domain(name) => plain(name),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let port = url.port_or_known_default()?;
        let scheme = Some(url.scheme().to_owned());
        Some(Self { key, host, port, whole: url.to_string(), resolved_elsewhere, scheme })
    }

    /// Returns the address without anything that may be secret: `host:port`, or the scheme, host
    /// and port of a URL.
    pub fn address(&self) -> String {
        let address = HostPort { host: self.host.clone(), port: self.port };
        match &self.scheme {
            Some(scheme) => format!("{scheme}://{address}"),
            None => address.to_string(),
        }
    }

    /// Returns `true` if the address is that of a proxy, which passes on what the output sends.
    pub fn is_proxy(&self) -> bool {
        self.key == PROXY
    }

    /// Returns `true` if a connection to the target is known to reach the socket of this machine
    /// that is bound to `bound`. No name is resolved.
    fn is(&self, bound: SocketAddr) -> bool {
        if bound.port() == 0 || bound.port() != self.port || self.resolved_elsewhere {
            return false;
        }
        let bound = bound.ip().to_canonical();
        match self.host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            // A connection to 0.0.0.0 or [::] goes to loopback.
            Ok(address) if address.is_unspecified() || bound.is_unspecified() => {
                let reaches = if address.is_unspecified() { bound } else { address };
                reaches.is_unspecified() || reaches.is_loopback() || is_of_this_machine(reaches)
            }
            Ok(address) => address == bound,
            Err(_) if self.host == "localhost" || self.host.ends_with(".localhost") => {
                bound.is_unspecified() || bound.is_loopback()
            }
            Err(_) => self.host == machine_name() && !bound.is_loopback(),
        }
    }
}

fn machine_name() -> String {
    plain(&rustix::system::uname().nodename().to_string_lossy())
}

/// Returns `true` if this machine has the IP address: a socket can be bound to it. Nothing is sent.
fn is_of_this_machine(address: IpAddr) -> bool {
    address != IpAddr::V4(Ipv4Addr::BROADCAST)
        && !address.is_multicast()
        && UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u16) -> Target {
        let (key, host) = (String::new(), plain(host));
        let whole = String::new();
        Target { key, host, port, whole, resolved_elsewhere: false, scheme: None }
    }

    #[test]
    fn an_address_of_the_relay_is_known_in_every_spelling() {
        for (host, bound) in [
            ("localhost", "127.0.0.1:3000"),
            ("LOCALHOST.", "0.0.0.0:3000"),
            ("localhost", "[::1]:3000"),
            ("relay.localhost", "[::]:3000"),
            ("127.0.0.1", "127.0.0.1:3000"),
            ("127.0.0.1", "0.0.0.0:3000"),
            ("127.0.0.9", "0.0.0.0:3000"),
            ("127.0.0.1", "[::]:3000"),
            ("::ffff:127.0.0.1", "127.0.0.1:3000"),
            ("0.0.0.0", "127.0.0.1:3000"),
            ("0.0.0.0", "0.0.0.0:3000"),
            ("::", "[::]:3000"),
            ("::", "0.0.0.0:3000"),
            ("::1", "[::]:3000"),
            ("0:0:0:0:0:0:0:1", "[::1]:3000"),
            ("10.1.2.3", "10.1.2.3:3000"),
        ] {
            assert!(target(host, 3000).is(bound.parse().unwrap()), "{host} {bound}");
        }
        assert!(target(&machine_name(), 3000).is("0.0.0.0:3000".parse().unwrap()));
    }

    #[test]
    fn another_machine_or_port_is_none_of_the_relays() {
        for (host, bound) in [
            ("localhost", "127.0.0.1:3001"),
            ("localhost", "10.1.2.3:3000"),
            ("127.0.0.1", "127.0.0.2:3000"),
            ("127.0.0.1", "[::1]:3000"),
            // TEST-NET-1 (RFC 5737).
            ("192.0.2.7", "0.0.0.0:3000"),
            ("logs.example", "0.0.0.0:3000"),
            ("localhost.example", "0.0.0.0:3000"),
        ] {
            assert!(!target(host, 3000).is(bound.parse().unwrap()), "{host} {bound}");
        }
        assert!(!target("localhost", 0).is("127.0.0.1:0".parse().unwrap()));
        let proxied = Target { resolved_elsewhere: true, ..target("localhost", 3000) };
        assert!(!proxied.is("127.0.0.1:3000".parse().unwrap()));
    }
}
