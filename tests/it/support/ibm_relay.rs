//! Relays and commands that trust the fakes of IBM Cloud.

use std::path::Path;

use super::ibm::{Ibm, SECRET, TOKEN};
use super::relay::{Builder, Relay, run_command_with};
use super::{http, text};

impl Ibm {
    /// Returns a relay with this config. It trusts only the authority that signed the fakes'
    /// certificates.
    pub(crate) fn relay(&self, config: &str) -> Builder {
        Relay::with(config).variable("SSL_CERT_FILE", text(&self.certificates.ca))
    }

    /// Runs a command on a config file. Returns its exit status and its output.
    pub(crate) fn run(&self, command: &[&str], config: &Path) -> (Option<i32>, String) {
        let directory = config.parent().expect("a directory");
        let arguments = [command, &["--config", text(config)]].concat();
        let variables = [("SSL_CERT_FILE", text(&self.certificates.ca))];
        let output = run_command_with(&arguments, directory, &variables);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("text"))
    }

    /// Checks that the relay shows no secret and no token in its log, on its pages, and in the
    /// output of the commands that print its config.
    pub(crate) fn assert_hides_secrets(&self, relay: &Relay) {
        let mut shown = relay.log_lines().join("\n");
        for path in ["/", "/metrics", "/status", "/readyz?verbose"] {
            shown.push_str(&http::get(relay.admin(), path).expect("an answer").text());
        }
        for command in [&["config"][..], &["check"], &["check", "--connect"]] {
            shown.push_str(&self.run(command, &relay.config_file()).1);
        }
        for secret in [SECRET, TOKEN, "s3cr3t", "Bearer"] {
            let line = shown.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "shows {secret}");
        }
    }
}
