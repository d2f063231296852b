//! The programs compared.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::process::Process;
use crate::relay::Relay;
use crate::sink::Wire;

/// The relay's queue in every variant: holds what the senders are ahead and more than twice the
/// replay window.
pub(crate) const QUEUE: &str = "queue.max_bytes 2GiB";

/// Longest wait for a start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What stands between load and sink.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    Haproxy,
    RelayHttp,
    RelayTcp,
    RelaySyslog,
}

impl Through {
    /// In the order of a round.
    pub(crate) const ALL: [Self; 4] =
        [Self::Haproxy, Self::RelayHttp, Self::RelayTcp, Self::RelaySyslog];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy",
            Self::RelayHttp => "relay http → http event_list",
            Self::RelayTcp => "relay http → tcp lines",
            Self::RelaySyslog => "relay http → syslog octet counting",
        }
    }

    /// The `type` of the relay's output.
    pub(crate) fn output(self) -> Option<&'static str> {
        match self {
            Self::Haproxy => None,
            Self::RelayHttp => Some("http"),
            Self::RelayTcp => Some("tcp"),
            Self::RelaySyslog => Some("syslog"),
        }
    }

    pub(crate) fn wire(self) -> Wire {
        match self {
            Self::Haproxy | Self::RelayHttp => Wire::Http,
            Self::RelayTcp | Self::RelaySyslog => Wire::Stream,
        }
    }
}

/// A running proxy.
pub(crate) enum Proxy {
    Haproxy { process: Process, address: SocketAddr, _directory: TempDir },
    Relay(Relay),
}

impl Proxy {
    pub(crate) fn start(
        through: Through,
        relay: &Path,
        replay_window: &str,
        consumer: SocketAddr,
    ) -> Self {
        let Some(kind) = through.output() else { return start_haproxy(consumer) };
        let keys = match through.wire() {
            Wire::Http => format!("urls = ['http://{consumer}/']"),
            Wire::Stream => {
                format!("addresses = ['{consumer}']\nreplay_window = '{replay_window}'")
            }
        };
        let (key, value) = QUEUE.split_once(' ').expect("a key and its value");
        let queue = format!("{key} = '{value}'");
        Self::Relay(Relay::start(relay, &queue, &format!("type = '{kind}'\n{keys}")))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Haproxy { address, .. } => *address,
            Self::Relay(relay) => relay.address,
        }
    }

    pub(crate) fn process(&self) -> &Process {
        match self {
            Self::Haproxy { process, .. } => process,
            Self::Relay(relay) => &relay.process,
        }
    }

    /// Waits until the relay's consumer has acknowledged so many events, and it holds no more.
    /// HAProxy holds nothing.
    pub(crate) fn wait_until_empty(&self, events: u64) {
        if let Self::Relay(relay) = self {
            relay.wait_until_empty(events);
        }
    }
}

/// HAProxy with the config of the forwarder that the relay replaces, on every core as is its
/// default. Its log goes to /dev/null. `./test` installs it.
fn start_haproxy(consumer: SocketAddr) -> Proxy {
    for _ in 0..5 {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = probe.local_addr().expect("bound");
        drop(probe);
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("haproxy.cfg");
        let config = format!(
            "global
  log stdout format raw local0 info
defaults
  mode http
  timeout client 10s
  timeout connect 5s
  timeout server 10s
  timeout http-request 10s
  log global
frontend audit
  bind {address}
  default_backend consumer
backend consumer
  server consumer {consumer}
"
        );
        std::fs::write(&file, config).expect("a writable directory");
        let mut command = Command::new(haproxy());
        // -db: one process in the foreground.
        command.args(["-db", "-f"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        let end = Instant::now() + PATIENCE;
        // It ends at once where somebody else has got the port.
        while process.child().try_wait().expect("our child").is_none() && Instant::now() < end {
            if TcpStream::connect(address).is_ok() {
                return Proxy::Haproxy { process, address, _directory: directory };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("HAProxy does not start");
}

/// Debian puts it where only root's PATH leads.
pub(crate) fn haproxy() -> PathBuf {
    let debian = Path::new("/usr/sbin/haproxy");
    if debian.exists() { debian.to_owned() } else { "haproxy".into() }
}
