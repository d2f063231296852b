//! The processes compared, and what `/proc` says of them. Each is ended by its own id when dropped.

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::ops::Sub;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStderr;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::sink::Wire;

/// The relay's queue in every variant: holds what the senders are ahead and more than twice the
/// replay window.
pub(crate) const QUEUE: &str = "queue.max_bytes 2GiB";

/// Longest wait for a start or for an empty queue.
const PATIENCE: Duration = Duration::from_secs(60);

/// Unit of CPU time in `/proc/PID/stat` (USER_HZ): 100 on every Linux with glibc.
const TICKS_PER_SECOND: f64 = 100.0;

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
pub(crate) struct Proxy {
    child: Child,
    address: SocketAddr,
    /// Of the relay.
    admin: Option<SocketAddr>,
    _directory: TempDir,
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
        let output = format!("type = '{kind}'\n{keys}");
        start_relay(relay, &output)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time of the process, of its threads that have ended, and of children waited for.
    pub(crate) fn cpu(&self) -> Cpu {
        cpu_of(&self.child.id().to_string())
    }

    /// A line of `/proc/PID/status`, in MiB.
    pub(crate) fn memory(&self, key: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a memory line");
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kibibytes / 1024.0
    }

    /// Waits until the relay's consumer has acknowledged so many events, and it holds no more.
    /// HAProxy holds nothing.
    pub(crate) fn wait_until_empty(&self, events: u64) {
        let Some(admin) = self.admin else { return };
        let end = Instant::now() + PATIENCE;
        loop {
            let metrics = get(admin, "/metrics");
            let delivered = metric(&metrics, "output_events_total");
            assert!(delivered <= events, "each event is counted once");
            // One scrape is no snapshot: both have to say it.
            if delivered == events && metric(&metrics, "output_backlog_events") == 0 {
                assert_eq!(metric(&metrics, "output_retries_total"), 0);
                return;
            }
            assert!(Instant::now() < end, "{delivered} of {events} events delivered");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn start_relay(binary: &Path, output: &str) -> Proxy {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("relay.toml");
    let (name, value) = QUEUE.split_once(' ').expect("a key and its value");
    let config = format!(
        "log = {{ format = 'json' }}\nadmin = {{ address = '127.0.0.1:0' }}\n{name} = '{value}'\n\
         [[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'sink'\n{output}\n"
    );
    std::fs::write(&file, config).expect("a writable directory");
    let mut command = Command::new(binary);
    command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the relay runs");
    let (address, admin) = addresses(child.stderr.take().expect("piped"));
    Proxy { child, address, admin: Some(admin), _directory: directory }
}

/// Reads from the relay's log where it listens, and goes on reading in a thread that ends with it.
fn addresses(log: ChildStderr) -> (SocketAddr, SocketAddr) {
    let mut lines = BufReader::new(log).lines();
    let (mut listener, mut admin) = (None, None);
    for line in lines.by_ref().map_while(Result::ok) {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let fields = &line["fields"];
        let address = fields["address"].as_str().and_then(|text| text.parse().ok());
        match fields["message"].as_str() {
            Some("listening") => listener = address,
            Some("admin listening") => admin = address,
            _ => {}
        }
        if let (Some(listener), Some(admin)) = (listener, admin) {
            std::thread::spawn(move || {
                for line in lines.map_while(Result::ok).filter(|line| !line.contains("\"INFO\"")) {
                    eprintln!("{line}");
                }
            });
            return (listener, admin);
        }
    }
    panic!("the relay does not start");
}

/// HAProxy with the config of the forwarder that the relay replaces, on every core as is its
/// default. Its log goes to /dev/null.
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
        let child = command.spawn().expect("HAProxy runs; ./test installs it");
        let mut proxy = Proxy { child, address, admin: None, _directory: directory };
        let end = Instant::now() + PATIENCE;
        // It ends at once where somebody else has got the port.
        while proxy.child.try_wait().expect("our child").is_none() && Instant::now() < end {
            if TcpStream::connect(address).is_ok() {
                return proxy;
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

/// User and system seconds.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Cpu {
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}

/// CPU time of this process: load and sink.
pub(crate) fn own_cpu() -> Cpu {
    cpu_of("self")
}

fn cpu_of(process: &str) -> Cpu {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    let stat = stat.expect("the process lives");
    // Behind the name, which may hold anything: field 3 and on (proc(5)).
    let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |field: usize| {
        let ticks: f64 = fields[field - 3].parse().expect("a number");
        ticks / TICKS_PER_SECOND
    };
    // utime and stime, cutime and cstime.
    Cpu { user: seconds(14) + seconds(16), system: seconds(15) + seconds(17) }
}

/// CPU seconds of the calling thread.
pub(crate) fn thread_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds: f64 =
        text.split(' ').next().and_then(|text| text.parse().ok()).expect("a number");
    nanoseconds / 1e9
}

/// A metric without its prefix, of the one output.
fn metric(metrics: &str, name: &str) -> u64 {
    let series = format!("kube_audit_forwarder_{name}{{output=\"sink\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series}"))
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the relay listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("the relay reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
