//! The relay's own program, with a listener and an admin address on ports that the kernel chooses.

#![allow(dead_code, reason = "no bench needs everything")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::Process;

/// The longest wait for an empty queue.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running relay. The name of its first output is `sink`.
pub(crate) struct Relay {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    /// The time from the start of the process until it listens.
    pub(crate) until_listening: Duration,
    _config: TempDir,
}

impl Relay {
    /// Starts a relay. `queue` holds top-level keys of the config with their values. `output` holds
    /// the keys of the first output's table, except the name.
    pub(crate) fn start(binary: &Path, queue: &str, output: &str) -> Self {
        Self::start_with(binary, queue, "", output)
    }

    /// Like [`Self::start`], but `listener` holds more keys of the listener's table.
    pub(crate) fn start_with(binary: &Path, queue: &str, listener: &str, output: &str) -> Self {
        Self::start_by(Command::new(binary), queue, listener, output)
    }

    /// Like [`Self::start_with`], but with a command to which the relay's arguments are added.
    pub(crate) fn start_by(
        mut command: Command,
        queue: &str,
        listener: &str,
        output: &str,
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("relay.toml");
        let config = format!(
            "log = {{ format = 'json' }}\nadmin = {{ address = '127.0.0.1:0' }}\n{queue}\n\
             [[listener]]\naddress = '127.0.0.1:0'\n{listener}\n\
             [[output]]\nname = 'sink'\n{output}\n"
        );
        std::fs::write(&file, config).expect("a writable directory");
        command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let begun = Instant::now();
        let mut process = Process::start(command.stderr(Stdio::piped()));
        let log = process.child().stderr.take().expect("piped");
        let (address, admin) = addresses(log);
        Self { process, address, admin, until_listening: begun.elapsed(), _config: directory }
    }

    /// Scrapes `/metrics`.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics(get(self.admin, "/metrics"))
    }

    /// Returns how many events the consumer of `sink` has acknowledged.
    pub(crate) fn delivered(&self) -> u64 {
        self.metrics().of_output("output_events_total")
    }

    /// Waits until the consumer has acknowledged `events` events, each when it was first sent, and
    /// the relay holds none.
    pub(crate) fn wait_until_empty(&self, events: u64) {
        let metrics = self.wait_until_delivered(events);
        assert_eq!(metrics.of_output("output_retries_total"), 0);
    }

    /// Waits until the consumer has acknowledged `events` events and the relay holds none.
    pub(crate) fn wait_until_delivered(&self, events: u64) -> Metrics {
        let end = Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics();
            let delivered = metrics.of_output("output_events_total");
            assert!(delivered <= events, "each event is counted once");
            // The numbers of a scrape are not of the same moment, so both of them must be right.
            if delivered == events && metrics.of_output("output_backlog_events") == 0 {
                return metrics;
            }
            assert!(Instant::now() < end, "{delivered} of {events} events delivered");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Reads the addresses of the listener and of the admin server from the relay's log. A thread reads
/// the rest of the log, and prints every line that is not at level INFO.
fn addresses(log: ChildStderr) -> (SocketAddr, SocketAddr) {
    let mut lines = BufReader::new(log).lines();
    let (mut listener, mut admin) = (None, None);
    for line in lines.by_ref().map_while(Result::ok) {
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let fields = &parsed["fields"];
        let address = fields["address"].as_str().and_then(|text| text.parse().ok());
        match fields["message"].as_str() {
            Some("listening") => listener = address,
            Some("admin listening") => admin = address,
            _ => show_trouble(&line),
        }
        if let (Some(listener), Some(admin)) = (listener, admin) {
            std::thread::spawn(move || {
                lines.map_while(Result::ok).for_each(|line| show_trouble(&line));
            });
            return (listener, admin);
        }
    }
    panic!("the relay does not start");
}

fn show_trouble(line: &str) {
    if !line.contains("\"INFO\"") {
        eprintln!("{line}");
    }
}

/// A scrape in Prometheus' text format.
pub(crate) struct Metrics(String);

impl Metrics {
    /// Returns the value of a metric of the output `sink`. `name` is without the relay's prefix.
    pub(crate) fn of_output(&self, name: &str) -> u64 {
        self.series(&format!("{name}{{output=\"sink\"}}"))
    }

    /// Returns the value of a series, whose name is without the relay's prefix.
    pub(crate) fn series(&self, series: &str) -> u64 {
        let series = format!("kube_audit_forwarder_{series} ");
        let value = self.0.lines().find_map(|line| line.strip_prefix(&series));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series}"))
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the relay listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("the relay reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
