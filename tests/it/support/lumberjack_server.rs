//! A lumberjack server that we did not write (the crate ferro-lumberjack). A test can kill and stop
//! its process, which is this test binary, started again for the ignored test below. The server
//! writes the events of each window into a file, one per line, and then acknowledges the window.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ferro_lumberjack::server::{Server, ServerConnection};
use tempfile::TempDir;

use super::peers::{Process, lines_of, start_on_free_port};
use super::text;

const PORT: &str = "KUBE_AUDIT_FORWARDER_TEST_LUMBERJACK_PORT";
const FILE: &str = "KUBE_AUDIT_FORWARDER_TEST_LUMBERJACK_FILE";

/// The server's process, and the directory of its file.
pub(crate) struct LumberjackServer {
    pub(crate) process: Process,
    directory: TempDir,
}

impl LumberjackServer {
    pub(crate) fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        // The name of a test is its module path without the crate's name.
        let path = concat!(module_path!(), "::the_process");
        let name = path.split_once("::").expect("a module of this crate").1;
        let process = start_on_free_port(|port| {
            let this = std::env::current_exe().expect("this binary");
            let arguments = [name, "--exact", "--ignored", "--nocapture"];
            Process::new(this, &arguments, port, directory.path())
                .variable(PORT, &port.to_string())
                .variable(FILE, text(&directory.path().join("events")))
        });
        Self { process, directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }

    /// Returns each stored event, in the order of arrival.
    pub(crate) fn events(&self) -> Vec<Vec<u8>> {
        lines_of(&self.directory.path().join("events"))
    }

    /// Returns how many bytes the server has stored.
    pub(crate) fn bytes(&self) -> u64 {
        let file = self.directory.path().join("events");
        std::fs::metadata(file).map_or(0, |file| file.len())
    }

    /// Removes an event that was written only in part before a kill. Returns how many complete
    /// events remain.
    pub(crate) fn cut_partial_line(&self) -> usize {
        super::peers::cut_partial_line(&self.directory.path().join("events"));
        self.events().len()
    }
}

#[test]
#[ignore = "no test, but the server's process, which tests start"]
fn the_process() {
    let Ok(port) = std::env::var(PORT) else { return };
    let port = port.parse::<u16>().expect("a port");
    let file = std::env::var(FILE).expect("told with the port");
    let file = std::fs::File::options().create(true).append(true).open(Path::new(&file));
    let file = Arc::new(Mutex::new(file.expect("a writable directory")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = Server::builder().bind(("127.0.0.1", port)).await.expect("a free port");
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let connection = listener.accept().await.expect("plain TCP");
            connections.spawn(serve(connection, Arc::clone(&file)));
        }
    });
}

async fn serve(mut connection: ServerConnection, file: Arc<Mutex<std::fs::File>>) {
    loop {
        let window = match connection.read_window().await {
            Ok(Some(window)) => window,
            Ok(None) => return,
            Err(error) => return eprintln!("{error}"),
        };
        let lines: Vec<u8> = window
            .events
            .iter()
            .flat_map(|event| [event.payload.as_slice(), b"\n"].concat())
            .collect();
        file.lock().expect("not poisoned").write_all(&lines).expect("a writable file");
        if let Err(error) = connection.send_ack(window.last_seq).await {
            return eprintln!("{error}");
        }
    }
}
