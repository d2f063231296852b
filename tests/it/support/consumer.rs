//! Our own consumers as processes that a test can kill and stop. The process is this test binary,
//! started again for one ignored test.
//!
//! A consumer stores the events in files, one for each connection, and acknowledges only what it
//! has stored. The HTTP consumer stores a request before it answers. The consumer of lines stores
//! bytes before it takes them out of the kernel's buffer. So whenever it is killed, each event is
//! either stored or unread.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::certificates::{Certificates, Pair};
use super::http_sink::{Answer, HttpSink};
use super::peers::{Process, lines_of, start_on_free_port};
use super::requests::events_in;
use super::server::{Connection, Options, Server};
use super::stream::Stream;
use super::text;

/// The environment variables that tell the process what to do.
const PROTOCOL: &str = "KUBE_AUDIT_FORWARDER_CONSUMER";
const PORT: &str = "KUBE_AUDIT_FORWARDER_CONSUMER_PORT";
const DIRECTORY: &str = "KUBE_AUDIT_FORWARDER_CONSUMER_DIRECTORY";
const CERTIFICATE: &str = "KUBE_AUDIT_FORWARDER_CONSUMER_CERTIFICATE";
const KEY: &str = "KUBE_AUDIT_FORWARDER_CONSUMER_KEY";

/// The size of the consumer's receive buffer, in bytes. A small buffer fills quickly, so the relay
/// soon notices that a stopped consumer takes nothing.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The time between storing a request and answering it. After a fault in that time, the relay sends
/// the stored events again.
const ANSWER_TIME: Duration = Duration::from_millis(10);

/// The protocol that the consumer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// JSON lines over TCP.
    Lines,
    Http,
    /// HTTP over TLS, presenting [`Certificates::server`].
    Https,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Lines, Self::Http, Self::Https];

    fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The consumer's process, and the directory of the files that it stores.
pub(crate) struct Consumer {
    pub(crate) process: Process,
    directory: TempDir,
}

impl Consumer {
    pub(crate) fn start(protocol: Protocol, certificates: &Certificates) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let this = std::env::current_exe().expect("this binary");
        // The name of a test is its module path without the crate's name.
        let path = concat!(module_path!(), "::the_process");
        let name = path.split_once("::").expect("a module of this crate").1;
        let arguments = [name, "--exact", "--ignored", "--nocapture"];
        let process = start_on_free_port(|port| {
            Process::new(this.clone(), &arguments, port, directory.path())
                .variable(PROTOCOL, protocol.name())
                .variable(PORT, &port.to_string())
                .variable(DIRECTORY, text(directory.path()))
                .variable(CERTIFICATE, text(&certificates.server.certificate))
                .variable(KEY, text(&certificates.server.key))
        });
        Self { process, directory }
    }

    /// Returns the complete events of each connection, in the order in which the connections began.
    pub(crate) fn connections(&self) -> Vec<Vec<Vec<u8>>> {
        self.files().iter().map(|file| lines_of(file)).collect()
    }

    /// Returns how many bytes are stored so far, including an incomplete last event.
    pub(crate) fn bytes(&self) -> u64 {
        let length = |file: &PathBuf| std::fs::metadata(file).map_or(0, |file| file.len());
        self.files().iter().map(length).sum()
    }

    /// Returns the files of all runs of the process, in order.
    fn files(&self) -> Vec<PathBuf> {
        let lives = sorted(self.directory.path()).into_iter().filter(|path| path.is_dir());
        lives.flat_map(|life| sorted(&life)).collect()
    }
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths
}

#[test]
#[ignore = "no test, but the consumer's process, which tests start"]
fn the_process() {
    let Ok(protocol) = std::env::var(PROTOCOL) else { return };
    let protocol = Protocol::ALL.into_iter().find(|known| known.name() == protocol);
    let told = |name: &str| std::env::var(name).expect("told with the protocol");
    let directory = PathBuf::from(told(DIRECTORY));
    let lives = sorted(&directory).iter().filter(|path| path.is_dir()).count();
    let life = directory.join(format!("{lives:04}"));
    std::fs::create_dir(&life).expect("the first of its name");
    let protocol = protocol.expect("a known protocol");
    let pair = Pair { certificate: told(CERTIFICATE).into(), key: told(KEY).into() };
    let options = Options {
        tls: (protocol == Protocol::Https).then(|| pair.server_config()),
        receive_buffer: Some(RECEIVE_BUFFER),
        port: Some(told(PORT).parse().expect("a port")),
        ..Options::default()
    };
    let _server: Box<dyn std::any::Any> = match protocol {
        Protocol::Lines => Box::new(Server::start(options, move |stream, connection| {
            let Stream::Plain(socket) = stream else { panic!("lines come without TLS") };
            store_lines(socket, connection, file(&life, connection.number));
        })),
        Protocol::Http | Protocol::Https => {
            Box::new(HttpSink::forgetful_with(options, move |request| {
                let lines = events_in(request).into_iter().map(|event| [event, b"\n".to_vec()]);
                let lines: Vec<u8> = lines.flatten().flatten().collect();
                file(&life, request.connection).write_all(&lines).expect("a writable file");
                Answer::status(200).after(ANSWER_TIME)
            }))
        }
    };
    // The process runs until a signal ends it.
    loop {
        std::thread::park();
    }
}

/// Opens the file of a connection for appending, so that stored events are kept.
fn file(life: &Path, connection: usize) -> File {
    let path = life.join(format!("{connection:06}"));
    File::options().create(true).append(true).open(path).expect("a writable directory")
}

/// Stores the bytes that are in the kernel's buffer before it takes them out.
fn store_lines(mut socket: TcpStream, connection: &Connection, mut file: File) {
    let mut buffer = vec![0; 64 * 1024];
    while connection.may_go_on() {
        let Ok(size @ 1..) = socket.peek(&mut buffer) else { return };
        file.write_all(&buffer[..size]).expect("a writable file");
        if socket.read_exact(&mut buffer[..size]).is_err() {
            return;
        }
    }
}
