//! Code that the tests share. None of it links the relay's code: the tests see the program from
//! outside.
//!
//! Every wait polls and has a time limit, every port is on 127.0.0.1, and every child process is
//! ended by its own process id. A fake consumer records a request or message before it answers it.
//! Once a test has seen the answer, the record exists.

pub(crate) mod alertmanager;
#[path = "../testing/src/alone.rs"]
#[allow(unreachable_pub, reason = "the crate `testing` exports what this file has")]
pub(crate) mod alone;
pub(crate) mod answers;
pub(crate) mod apiserver;
pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod chance;
pub(crate) mod clock;
pub(crate) mod common;
pub(crate) mod consumer;
pub(crate) mod corpus;
pub(crate) mod elasticsearch;
pub(crate) mod falco;
pub(crate) mod filesystem;
pub(crate) mod generated;
pub(crate) mod h2;
pub(crate) mod hello;
pub(crate) mod http;
pub(crate) mod http_sink;
pub(crate) mod ibm;
pub(crate) mod ibm_relay;
pub(crate) mod instructions;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
pub(crate) mod letters;
pub(crate) mod loki;
pub(crate) mod lumberjack_server;
pub(crate) mod lumberjack_sink;
pub(crate) mod messages;
pub(crate) mod metrics;
pub(crate) mod middleman;
pub(crate) mod moment;
pub(crate) mod needs;
pub(crate) mod numbered;
pub(crate) mod otlp;
pub(crate) mod peers;
pub(crate) mod png;
pub(crate) mod prelude;
pub(crate) mod prometheus;
pub(crate) mod relay;
pub(crate) mod relp_sink;
pub(crate) mod requests;
pub(crate) mod rules;
pub(crate) mod s3;
pub(crate) mod said;
pub(crate) mod seaweedfs;
pub(crate) mod senders;
pub(crate) mod sequence;
pub(crate) mod server;
pub(crate) mod setup;
pub(crate) mod splunk;
pub(crate) mod spool;
pub(crate) mod stream;
pub(crate) mod tally;
#[cfg(feature = "kafka")]
pub(crate) mod tansu;
pub(crate) mod tcp_sink;
pub(crate) mod terminal;
pub(crate) mod webhook;
pub(crate) mod witness;

use std::hash::BuildHasher as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The longest wait for something that normally takes milliseconds, but can take seconds on a
/// loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Polls `check` until it returns `Some`, and returns that value. Panics with `what` after `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, check: impl FnMut() -> Option<T>) -> T {
    try_wait_for(limit, check).unwrap_or_else(|| panic!("waited {limit:?} for {what}"))
}

/// Polls `check` until it is true. Panics with `what` after `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    wait_for(what, limit, || check().then_some(()));
}

/// Polls `check` until it returns `Some`, and returns that value. Returns `None` after `limit`. A
/// poll can be expensive (a scrape, a query to a browser), so the pause between polls grows: it is
/// a tenth of the time waited so far, at least 5 ms and at most 100 ms.
pub(crate) fn try_wait_for<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        let waited = begun.elapsed();
        if waited >= limit {
            return None;
        }
        std::thread::sleep(
            (waited / 10).clamp(Duration::from_millis(5), Duration::from_millis(100)),
        );
    }
}

/// Returns a port of 127.0.0.1 that was free a moment ago, for a peer that needs its port in its
/// config. No other test gets the port until this test's process has ended. A relay keeps dialling
/// a consumer that is down, and must not reach another test's consumer there.
///
/// The kernel does not choose the port (port 0), because it takes such ports from the range for
/// outgoing connections (32768 and above). While a peer is stopped, another connection could then
/// get the peer's port. A client that keeps dialling the port could even connect to itself. Another
/// program may still take the port before the peer binds it; the caller then asks for another one.
pub(crate) fn free_port() -> u16 {
    for _ in 0..1000 {
        // Each `RandomState` has new keys, which is random enough to keep parallel tests apart.
        let random = std::hash::RandomState::new().hash_one(std::process::id());
        let port = 10_000 + u16::try_from(random % 20_000).expect("below 20,000");
        if reserve(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 10000 and 30000");
}

/// Reserves a port for this process. Returns `false` if the port is already reserved. The
/// reservation is an abstract Unix socket named after the port. The kernel gives such a name to
/// only one socket, and frees it when the process ends.
fn reserve(port: u16) -> bool {
    let name = format!("kube-audit-forwarder-test-port-{port}");
    let address = UnixAddress::from_abstract_name(name).expect("a short name");
    let reserved = UnixListener::bind_addr(&address).ok();
    reserved.map(std::mem::forget).is_some()
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is a folder of it").into()
}

/// Returns the paths of all files in the repository, relative to its root, except those in `target`
/// and `.git`. This does not ask git, because the sources may be a copy without it.
pub(crate) fn files() -> Vec<String> {
    let root = repository();
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let below = text(path.strip_prefix(&root).expect("below the root")).to_owned();
            match path.is_dir() {
                true if [".git", "target"].iter().any(|it| path.ends_with(it)) => {}
                true => folders.push(path),
                false => found.push(below),
            }
        }
    }
    found.sort();
    found
}

/// Returns the path of the program under test. Cargo puts the program into the profile's directory,
/// such as `target/debug`, and the tests' binary into `deps` below that. The variable
/// `KUBE_AUDIT_FORWARDER_PROGRAM` names another program: `./test cross` sets it to one that runs
/// the program of another architecture.
pub(crate) fn binary() -> &'static str {
    static BINARY: LazyLock<String> = LazyLock::new(|| {
        if let Ok(program) = std::env::var("KUBE_AUDIT_FORWARDER_PROGRAM") {
            return program;
        }
        let own = std::env::current_exe().expect("a path of this program");
        let profile = own.ancestors().nth(2).expect("the directory of the profile");
        let binary = profile.join("kube-audit-forwarder");
        assert!(binary.exists(), "{} is missing: run `./test it`", binary.display());
        text(&binary).to_owned()
    });
    &BINARY
}

/// Runs a program to its end with these bytes as standard input, which it need not read in full.
pub(crate) fn fed(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("our child");
    writer.join().expect("writing does not panic");
    output
}

/// Returns the complete lines of this text, without their line feeds. Bytes after the last line
/// feed are an incomplete line and are left out.
pub(crate) fn lines_in(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    lines.pop();
    lines
}

/// Returns the path as text, for config files.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
