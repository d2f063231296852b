//! The pages for auditors who check a log. Each command runs as written, in order, against running
//! relays, a witness, and the lines that a consumer has stored.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use super::moving_in::commands;
use super::pages::Page;

use crate::support::prelude::*;

/// The pages whose commands run, in this order.
const PAGES: [&str; 2] = ["docs/prove/verify.md", "docs/prove/witnesses.md"];

/// A relay whose output `archive` sends events and checkpoints.
pub(super) struct Logged {
    pub(super) spool: Spool,
    pub(super) sink: TcpSink,
    verifier: String,
    pub(super) events: Vec<Vec<u8>>,
    pub(super) relay: Relay,
}

impl Logged {
    pub(super) fn start(place: &Path, name: &str, witness: &mut Option<Witness>) -> Self {
        let origin = format!("example.org/prod-eu/{name}");
        let key = place.join(name);
        let arguments = ["evidence", "keygen", "--origin", &origin, "--out", text(&key)];
        let made = run_command(&arguments, place);
        let verifier = String::from_utf8(made.stdout).unwrap().trim_end().to_owned();
        std::fs::write(place.join(format!("{name}.vkey")), &verifier).unwrap();
        let (spool, sink) = (Spool::new(), TcpSink::start());
        if name == "relay-0" {
            *witness = Some(Witness::start(&verifier));
        }
        let witness = witness.as_ref().filter(|_| name == "relay-0");
        let (queue, key) = (spool.queue(""), key.display());
        let relay = Relay::start(&format!(
            "{BASE}[[output]]\nname = \"archive\"\ntype = \"tcp\"\ncheckpoints = true\n\
             addresses = [\"{}\"]\n{queue}[evidence]\nkey_file = \"{key}\"\norigin = \"{origin}\"\n\
             checkpoint_interval = \"1s\"\n{}",
            sink.address(),
            witness.map(Witness::config).unwrap_or_default(),
        ));
        Self { spool, sink, verifier, events: Vec::new(), relay }
    }

    pub(super) fn post(&mut self, body: &[u8]) {
        assert_eq!(self.relay.post(body).status, 200);
        self.events.extend(events_of(body));
        self.relay.wait_until_delivered(PATIENCE);
        wait_until("the last line", PATIENCE, || self.sink.has(self.events.last().unwrap()));
    }

    pub(super) fn checkpoint(&self) -> Option<String> {
        std::fs::read_to_string(self.spool.path().join("evidence/checkpoint")).ok()
    }

    /// Waits until a checkpoint covers all events and has this many signatures.
    pub(super) fn wait_until_signed(&self, signatures: usize) {
        let directory = text(self.spool.path());
        let last = (self.events.len() - 1).to_string();
        wait_until("a checkpoint", PATIENCE, || {
            let prove = ["evidence", "prove", directory, "--position", &last];
            let count = |note: String| note.lines().filter(|it| it.starts_with('\u{2014}')).count();
            run_command(&prove, Path::new("/")).status.success()
                && self.checkpoint().is_some_and(|note| count(note) == signatures)
        });
    }
}

/// Writes a consumer's lines to a gzip file, and creates the file's directory.
pub(super) fn store(file: &Path, lines: &[Vec<u8>]) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let lines: Vec<u8> = lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
    let file = std::fs::File::create(file).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &lines).unwrap();
    gzip.finish().unwrap();
}

/// Runs a command of a page with bash. Returns the exit status and the output.
fn run(command: &str, place: &Path) -> (i32, String) {
    let path = format!("{}:{}", text(&place.join("bin")), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .current_dir(place)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn each_command_of_the_pages_works_against_a_running_relay() {
    let scratch = TempDir::new().unwrap();
    let place = scratch.path();
    std::fs::create_dir(place.join("bin")).unwrap();
    std::os::unix::fs::symlink(binary(), place.join("bin/kube-audit-forwarder")).unwrap();
    let mut witness = None;
    let mut first = Logged::start(place, "relay-0", &mut witness);
    let mut other = Logged::start(place, "relay-1", &mut witness);
    let witness = witness.expect("the first relay has one");
    std::fs::write(place.join("witness.vkey"), &witness.verifier).unwrap();
    first.post(&generated_batch(1, 200, 500));
    first.wait_until_signed(2);
    std::fs::create_dir(place.join("kept")).unwrap();
    std::fs::write(place.join("kept/2026-11-20"), first.checkpoint().unwrap()).unwrap();
    first.post(&generated_batch(2, 200, 500));
    other.post(&generated_batch(3, 200, 500));
    first.wait_until_signed(2);
    other.wait_until_signed(1);
    // The output also sends checkpoints.
    let has_note = |logged: &Logged| {
        logged.sink.lines().iter().any(|it| it.starts_with(br#"{"kind":"Checkpoint""#))
    };
    wait_until("a checkpoint among the lines", PATIENCE, || has_note(&first));
    store(&place.join("lines/first.gz"), &first.sink.lines());
    store(&place.join("both/first.gz"), &first.sink.lines());
    store(&place.join("both/other.gz"), &other.sink.lines());
    std::fs::write(place.join("event.json"), &first.events[47]).unwrap();
    for (name, logged) in [("evidence-0", &first), ("evidence-1", &other)] {
        let copied = ["evidence", "copy", text(logged.spool.path()), name];
        assert!(run_command(&copied, place).status.success());
    }
    assert_ne!(first.verifier, other.verifier);

    let found: Vec<String> = PAGES.iter().flat_map(|page| commands(&Page::read(page))).collect();
    assert!(found.len() >= 11, "{found:#?}");
    for command in &found {
        let command = command
            .replace("/var/lib/kube-audit-forwarder", text(first.spool.path()))
            .replace("http://127.0.0.1:9090", &format!("http://{}", first.relay.admin()))
            .replace("https://witness.example.org", &witness.url);
        let (status, said) = run(&command, place);
        // Status 2: not everything can be compared while the relay runs. There must be no fault.
        let is_good = status == 0 || status == 2 && command.contains("evidence verify");
        assert!(is_good && !said.contains("FAULT"), "{command}: {status}: {said}");
        assert!(!said.contains("error: "), "{command}: {said}");
        if command.contains("--proof") {
            assert!(status == 0 && said.contains("the line is the event at position 47"), "{said}");
        }
        if command.contains("lines/*.gz --") || command.ends_with("lines/*.gz") {
            assert!(
                said.contains("; events 400/400 found; missing 0, changed 0, extra 0"),
                "{said}"
            );
        }
        if command.contains("--witness-max-age") {
            assert_eq!(status, 0, "{command}: {said}");
        }
    }
    let mode = std::fs::metadata(place.join("evidence-2026-11-27")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let stored = std::fs::read_to_string(place.join("kept/stored")).unwrap();
    assert!(stored.starts_with("example.org/prod-eu/relay-0\n"), "{stored}");
    first.relay.finish(Backlog::Empty);
    other.relay.finish(Backlog::Empty);
}
