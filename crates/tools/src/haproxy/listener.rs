//! Makes listeners from the `bind` lines of a frontend.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::options::{Settings, Tls, host_and_port};
use super::read::Proxy;
use super::report::Notes;

/// The settings of a table `[[listener]]` in the new config.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Tls>,
}

impl Listener {
    /// Makes a listener for each address in the lines `bind ADDRESS[,…] [options]` of a frontend.
    /// The user has to decide about addresses that the relay can't use.
    pub(super) fn all(front: &Proxy<'_>, notes: &mut Notes) -> Vec<Self> {
        let (mut listeners, mut ports) = (Vec::<Self>::new(), BTreeSet::new());
        for line in front.all(["bind"]) {
            let tls = Settings::read(front, line, notes).tls;
            let other = listeners.iter().find_map(|listener| listener.tls.as_ref());
            if tls.as_ref().is_some_and(|tls| tls.pem.is_none() || *other.unwrap_or(tls) != *tls) {
                let why = "left out: a listener with `ssl` has one certificate (crt FILE), and all \
                    share the same TLS settings";
                notes.decide(line, why);
                continue;
            }
            for text in line.word(1).split(',') {
                let Some(address) = address(text).filter(|it| ports.insert(it.port())) else {
                    let why = "left out: each listener has its own IP address and port";
                    notes.decide_part(line, &[text.to_owned()], why);
                    continue;
                };
                notes.carried(line, "listener");
                listeners.push(Self { address, tls: tls.clone() });
            }
        }
        listeners
    }
}

/// Returns the address in a `bind` line. `*` and an empty host mean all IPv4 addresses.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = host_and_port(text)?;
    let ip = match host {
        "" | "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        host => host.parse().ok()?,
    };
    Some(SocketAddr::new(ip, port))
}
