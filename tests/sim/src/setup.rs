//! A config as TOML for the relay, and its facts for the oracle.

use std::fmt::Write as _;
use std::time::Duration;

use crate::consumers::{Consumer, Kind};
use crate::plan::{Change, Front, Setup};
use crate::truth;
use crate::truth::{Acknowledge, Filter, Limits, Output};

/// The address of the relay's listener.
pub(crate) const LISTENER: &str = "127.0.0.1:8080";

/// The address of the operator's listener, if the senders need TLS or a token.
pub(crate) const OPERATOR: &str = "127.0.0.1:8082";

/// The listener's token, and the file with it.
pub(crate) const TOKEN: &str = "s3cr3t-of-the-listener";
pub(crate) const TOKEN_FILE: &str = "secrets/token";

/// The names and the rules of the audit policies for all outputs and for each output. The lower
/// level of the two counts (see filters/README.md).
pub(crate) const POLICIES: [(&str, &str); 2] = [
    (
        "all.yaml",
        "- {level: Metadata, verbs: [update]}\n\
         - {level: Request, verbs: [create, patch]}\n\
         - {level: RequestResponse}\n",
    ),
    (
        "own.yaml",
        "- {level: Metadata, verbs: [create]}\n\
         - {level: Request, verbs: [update]}\n\
         - {level: None, verbs: [delete]}\n\
         - {level: RequestResponse}\n",
    ),
];

/// The relay's admin address.
pub(crate) const ADMIN: &str = "127.0.0.1:9090";

impl Setup {
    pub(crate) fn toml(&self, consumers: &[Consumer]) -> String {
        let mut text = format!(
            "admin = {{ address = \"{ADMIN}\" }}\nshutdown = {{ drain_timeout = \"{}s\" }}\n\
             limits = {{ max_connection_age = \"60s\", idle_timeout = \"45s\"{} }}\n\
             [[listener]]\naddress = \"{LISTENER}\"\n{}[queue]\nmax_bytes = \"{}KiB\"\n\
             acknowledge = \"{}\"\n",
            self.drain,
            self.front.limits(),
            self.front.listener(),
            self.queue,
            match self.acknowledge {
                Acknowledge::Queued => "queued",
                Acknowledge::Delivered => "delivered",
                Acknowledge::Synced => "synced",
            },
        );
        if self.when_full != "reject" {
            text += &format!("when_full = \"{}\"\n", self.when_full);
        }
        if self.on_disk {
            // Writing to a String cannot fail.
            writeln!(text, "directory = \"queue\"\nsegment_bytes = \"{}KiB\"", self.segment).ok();
        }
        if let Some(second) = self.second {
            text += &format!("[[listener]]\naddress = \"{second}\"\n");
        }
        text += "[dead_letter]\ndirectory = \"letters\"\n";
        if self.has_policies {
            text += &format!("[filter]\npolicy = \"{}\"\nredact = []\n", POLICIES[0].0);
        }
        if self.has_evidence {
            text += &format!(
                "[evidence]\nkey_file = \"evidence.key\"\norigin = \"relay\"\n\
                 checkpoint_interval = \"1s\"\nheartbeat_interval = \"{}s\"\n",
                self.heartbeat
            );
        }
        if self.has_stdout {
            text += "[[output]]\nname = \"out\"\ntype = \"stdout\"\n";
        }
        for output in &self.outputs {
            let keys = self.with_own(consumers[output.consumer].keys());
            let Output { name, required, .. } = output;
            write!(text, "[[output]]\nname = \"{name}\"\nrequired = {required}\n{keys}").ok();
            if self.keeps == Some(output.consumer) {
                text += "rejected.action = \"retry\"\n";
            }
            if let Some(events) = self.batch_events {
                writeln!(text, "batch.max_events = {events}").ok();
            }
            if let Some(criteria) = output.filter.toml() {
                writeln!(text, "filter.match = {criteria}").ok();
            }
            if self.has_policies {
                writeln!(text, "filter.policy = \"{}\"", POLICIES[1].0).ok();
            }
            if output.deduplicates {
                text += "filter.deduplicate = \"2h\"\n";
            }
        }
        text
    }

    /// Returns the keys of an output. The config's own keys replace those of the consumer.
    fn with_own(&self, keys: &str) -> String {
        let is_own =
            |line: &str| self.own.iter().any(|(key, _)| line.starts_with(&format!("{key} = ")));
        let mut lines: Vec<String> =
            keys.lines().filter(|line| !is_own(line)).map(str::to_owned).collect();
        lines.extend(self.own.iter().map(|(key, value)| format!("{key} = {value}")));
        lines.join("\n") + "\n"
    }

    /// Returns the largest body that a sender may make, in bytes. A batch must fit into the queue
    /// and, on disk, into a part of it. Several bodies must fit into `max_in_flight`.
    pub(crate) fn body_max(&self) -> usize {
        let Front { in_flight, body, .. } = self.front;
        let least = (self.queue / 8).min(in_flight.map_or(u64::MAX, |it| it / 4));
        bytes(least.min(body.unwrap_or(u64::MAX)))
    }

    /// Returns the smallest size of a body above `limits.max_body`, in bytes, if that is set.
    pub(crate) fn too_large(&self) -> Option<usize> {
        self.front.body.map(|body| bytes(body) + 1)
    }

    /// Returns how many bytes of memory the queue and the requests of the outputs to these
    /// consumers can take (see guarantees.md). A queue with a directory takes 32 MiB, even if
    /// `queue.max_bytes` is less. Requests hold events of the queue.
    pub(crate) fn memory(&self, consumers: &[Kind]) -> usize {
        let queue = usize::try_from(self.queue * 1024).unwrap_or(usize::MAX);
        let held = if self.on_disk { 32 << 20 } else { queue };
        let output = |kind: &Kind| match kind {
            Kind::Loki | Kind::Otlp => (4 * queue).min(16 << 20),
            Kind::Elasticsearch => queue.min(4 << 20) + (8 << 20),
            Kind::S3 => 4 << 20,
            Kind::Http | Kind::Tcp | Kind::Syslog | Kind::Relp | Kind::Lumberjack => {
                queue.min(16 << 20)
            }
            Kind::Splunk | Kind::Ibm => queue.min(16 << 20),
        };
        held + consumers.iter().map(output).sum::<usize>()
    }

    /// Returns the facts that the oracle needs.
    pub(crate) fn known(&self, consumers: &[Consumer], leaving: &[String]) -> truth::Config {
        let output = |output: &Output| {
            let consumer = &consumers[output.consumer];
            let promise = consumer.promise();
            let second = consumer.has_door().then(|| consumer.address(true));
            let addresses = [consumer.address(false)].into_iter().chain(second).collect();
            let may_lose = if !output.required {
                Some("it is optional")
            } else if leaving.contains(&output.name) {
                Some("a reload removes it")
            } else if self.when_full != "reject" {
                Some(truth::FULL)
            } else if self.is_damaged {
                Some(truth::DAMAGED)
            } else if !self.on_disk {
                Some("what a queue in memory still has at the end of a drain is counted as lost")
            } else if promise.aside {
                Some("its events that are set aside may be given up")
            } else {
                None
            };
            Output { may_lose, addresses, ..output.clone() }
        };
        truth::Config {
            on_disk: self.on_disk,
            when_full: self.when_full,
            queue_bytes: bytes(self.queue),
            segment_bytes: bytes(self.segment),
            acknowledge: self.acknowledge,
            drain: Duration::from_secs(self.drain),
            limits: self.front.known(),
            keeps: self.keeps,
            outputs: self.outputs.iter().map(output).collect(),
        }
    }

    /// Changes the config. `spare` is the consumer of the output that is added or removed.
    pub(crate) fn change(&mut self, change: &Change, spare: usize) {
        let count = self.outputs.len();
        match change {
            Change::Spare => {
                let at = self.outputs.iter().position(|output| output.consumer == spare);
                match at {
                    Some(at) => drop(self.outputs.remove(at)),
                    None => self.outputs.push(Output {
                        name: "spare".to_owned(),
                        consumer: spare,
                        required: true,
                        filter: Filter::default(),
                        may_lose: None,
                        deduplicates: false,
                        addresses: Vec::new(),
                    }),
                }
            }
            Change::Rename(at) => self.outputs[at % count].name += "x",
            Change::Filter(at, filter) => self.outputs[at % count].filter = filter.clone(),
            Change::Required(at) => {
                let is_last = self.outputs.iter().filter(|output| output.required).count() == 1;
                let output = &mut self.outputs[at % count];
                output.required = !output.required || is_last;
            }
            Change::Acknowledge => {
                self.acknowledge = match self.acknowledge {
                    Acknowledge::Queued => Acknowledge::Delivered,
                    Acknowledge::Delivered => Acknowledge::Queued,
                    Acknowledge::Synced => Acknowledge::Synced,
                }
            }
            Change::Nothing | Change::Wrong => {}
        }
    }
}

fn bytes(kib: u64) -> usize {
    usize::try_from(kib.saturating_mul(1024)).unwrap_or(usize::MAX)
}

impl Front {
    /// Returns the keys of `[limits]`, each with a comma before it.
    fn limits(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        if let Some(in_flight) = self.in_flight {
            write!(text, ", max_in_flight = \"{in_flight}KiB\"").ok();
        }
        if let Some(connections) = self.connections {
            write!(text, ", max_connections = {connections}").ok();
        }
        if let Some(body) = self.body {
            write!(text, ", max_body = \"{body}KiB\"").ok();
        }
        if let Some((header, body)) = self.timeouts {
            write!(text, ", header_timeout = \"{header}s\", body_timeout = \"{body}s\"").ok();
        }
        text
    }

    /// Returns the other keys of the senders' listener, and the operator's listener.
    fn listener(&self) -> String {
        let mut text = String::new();
        if let Some(asks) = self.tls {
            let client_ca = if asks { ", client_ca = \"tls/ca.crt\"" } else { "" };
            text += &format!(
                "tls = {{ certificate = \"tls/tls.crt\", \
                 private_key = \"tls/tls.key\"{client_ca} }}\n"
            );
        }
        if self.has_token {
            text += &format!("bearer_token_file = \"{TOKEN_FILE}\"\n");
        }
        if !text.is_empty() {
            text += &format!("[[listener]]\naddress = \"{OPERATOR}\"\n");
        }
        text
    }

    /// Returns the address to which the operator sends.
    pub(crate) fn operator(&self) -> &'static str {
        if self.tls.is_some() || self.has_token { OPERATOR } else { LISTENER }
    }

    /// Returns the limits that the oracle needs.
    fn known(&self) -> Limits {
        let timeouts = self.timeouts.map(|(head, body)| Duration::from_secs(head.min(body)));
        Limits {
            in_flight: self.in_flight.map(bytes),
            connections: self.connections,
            slow: timeouts.unwrap_or(Limits::default().slow),
        }
    }
}
