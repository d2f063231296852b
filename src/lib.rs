//! A relay for the Kubernetes audit webhook. The relay accepts kube-apiserver's batches of audit
//! events, holds them in a bounded queue, and forwards them, with retries and back-pressure, to
//! Logstash, syslog, Kafka and HTTP consumers.
//!
//! # The life of a batch
//!
//! In: [`listener`] accepts a connection and reads a POST within its limits. [`audit`] checks the
//! body and splits it in place into lines. [`queue`] takes the lines, in memory or synced to disk,
//! or refuses them. The HTTP response tells the sender which of the two happened. A [`source`] does
//! the same with the messages of a topic.
//!
//! Out: each output has a cursor in the queue. The output's [`delivery`] loop claims the next
//! events, sends them in the consumer's protocol (a file of [`output`]), and finishes the claim
//! when the consumer has them. Events that every cursor has finished leave the queue. If the output
//! has a [`filter`], fewer events may be sent than were claimed: only those that the audit
//! [`policy`] asks for, without the values that are to be [redacted](redact), and in another
//! [`shape`] if the config says so.
//!
//! # Layers
//!
//! The parts below are crates of their own (`crates`), and the compiler keeps their borders:
//!
//! | crate | what it knows |
//! |---|---|
//! | [`audit`] | JSON and events |
//! | [`base`] | words, positions, locks, files on disk: what has no state and no owner |
//! | [`transform`] | audit policies, redaction, schemas, who causes the bytes |
//! | [`evidence-log`](::evidence_log) | the log of the evidence as files, transparency logs |
//! | [`config-table`](::config_table) | how a config file is read, without the name of any key |
//! | [`config`] | the config file |
//! | [`telemetry`] | metrics, the log, the JSON of `/status` and the verdict on it |
//! | [`client`] | TLS, sockets, single HTTP requests, clients of Kafka |
//! | [`process`] | what the kernel grants the process, and what it gives up |
//! | [`queue`] | positions, lines and limits; the log in files; no JSON, no HTTP |
//! | [`delivery`] | the loop of an output, its filter, events that a person looks at |
//! | [`outputs`] | the protocols |
//! | [`recorder`] | what proves that the log is whole |
//! | [`tools`] | what an operator runs beside a relay |
//! | [`verify`] | whether the evidence is whole |
//! | [`doctor`] | what kube-apiserver and the relays count, side by side |
//!
//! Of the modules here, a row imports only from rows above it. Listeners, sources and outputs meet
//! at the queue and nowhere else. The test `tests/it/docs/layers.rs` compares this table with the
//! sources.
//!
//! | row | modules | what they know |
//! |---|---|---|
//! | 6 | [`listener`] [`source`] | requests · topics |
//! | 8 | [`admin`] [`check`] | metrics, health, status · files that a config names |
//! | 9 | [`relay`] | which parts there are; how they change and end |
//! | 10 | [`demo`] | a relay between its own sender and consumer |
//! | 11 | [`cli`] | commands; the only one that prints |
//!
//! # Invariants
//!
//! - An acknowledged event is never lost without being counted. At rest, for every output: events
//!   accepted = events acknowledged by the consumer + backlog + events kept back by the filter (and
//!   counted) + events counted as lost.
//! - With `queue.directory`, no event is acknowledged to its sender, or handed to an output, before
//!   it is synced.
//! - Only the queue holds events. An event that an output has on the wire is still in the queue,
//!   unless the output is optional and the queue needed the room.
//! - Everything has a limit, and every wait ends when the process is told to end.

pub mod cli;
pub mod demo;
