//! A witness of evidence logs, which shares no code with the relay.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::said::said;
use super::spool::Spool;
use super::{repository, text};

/// The name of the witness's key.
pub(crate) const NAME: &str = "witness.example/w1";

/// A witness with its key and its memory. Dropping it ends the witness.
pub(crate) struct Witness {
    directory: TempDir,
    log_key: String,
    process: Option<Child>,
    /// The witness's clock is this many seconds ahead.
    pub(crate) ahead: u64,
    pub(crate) url: String,
    pub(crate) verifier: String,
}

impl Witness {
    pub(crate) fn start(log_key: &str) -> Self {
        Self::ahead(log_key, 0)
    }

    /// Starts a witness whose clock is this many seconds ahead.
    pub(crate) fn ahead(log_key: &str, ahead: u64) -> Self {
        let (directory, log_key) = (TempDir::new().unwrap(), log_key.to_owned());
        let (url, verifier) = (String::new(), String::new());
        let mut witness = Self { directory, log_key, process: None, ahead, url, verifier };
        witness.come_back();
        witness
    }

    /// Makes a key of the log `relay` in this directory, and starts a witness of the log. Returns a
    /// config of evidence with both, a checkpoint each second, and a queue beside the key.
    pub(crate) fn of_a_log(directory: &Path) -> (Self, String) {
        let key = directory.join("key");
        let keygen = ["evidence", "keygen", "--origin", "relay", "--out", text(&key)];
        let made = said(&keygen, directory);
        made.assert(0, &[]);
        let witness = Self::start(made.stdout.trim_end());
        let config = format!(
            "{}[evidence]\norigin = \"relay\"\nkey_file = {key:?}\ncheckpoint_interval = \"1s\"\n{}",
            Spool::at(directory.join("queue")).queue(""),
            witness.config(),
        );
        (witness, config)
    }

    /// Starts the process, on the same port as before.
    pub(crate) fn come_back(&mut self) {
        let script = repository().join("tests/it/evidence/witness.py");
        let port = self.url.trim_end_matches("/below").rsplit(':').next().unwrap();
        let port = if port.is_empty() { "0" } else { port };
        let mut command = Command::new("python3");
        command.arg(script).arg(self.directory.path()).args([NAME, &self.log_key, port]);
        command.env("AHEAD", self.ahead.to_string());
        let mut process = command.stdout(Stdio::piped()).spawn().expect("python3");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        self.url = lines.next().expect("the witness has started").unwrap();
        self.verifier = lines.next().unwrap().unwrap();
        self.process = Some(process);
    }

    pub(crate) fn is_there(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn go_away(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub(crate) fn config(&self) -> String {
        let Self { url, verifier, .. } = self;
        format!("[[evidence.witness]]\nurl = \"{url}\"\nkey = \"{verifier}\"\n")
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.go_away();
        }
    }
}
