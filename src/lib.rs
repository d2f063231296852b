//! A relay for the Kubernetes audit webhook. The relay accepts kube-apiserver's batches of audit
//! events, holds them in a bounded queue, and forwards them, with retries and back-pressure, to
//! Logstash, syslog, Kafka and HTTP consumers.
//!
//! # The life of a batch
//!
//! In: [`relay::listener`] accepts a connection and reads a POST within its limits. [`audit`]
//! checks the body and splits it in place into lines. [`queue`] takes the lines, in memory or
//! synced to disk, or refuses them. The HTTP response tells the sender which of the two happened. A
//! [`relay::source`] does the same with the messages of a topic.
//!
//! Out: each output has a cursor in the queue. The output's loop ([`delivery`]) claims the next
//! events, sends them in the consumer's protocol (a file of [`outputs`]), and finishes the claim
//! when the consumer has them. Events that every cursor has finished leave the queue. If the output
//! has a filter ([`delivery::filter`]), fewer events may be sent than were claimed: only those that
//! the audit policy asks for ([`transform::policy`]), without the values that are to be redacted,
//! and in another shape if the config says so.
//!
//! # Crates
//!
//! Each part is a crate in `crates`. A crate imports only from rows above its own. Cargo refuses
//! two crates that import each other. Listeners, sources and outputs meet at the queue and nowhere
//! else.
//!
//! | row | crate | what it knows |
//! |---|---|---|
//! | 1 | [`audit`] | JSON and events |
//! | 1 | [`manual`] | the pages of the manual as HTML, rendered while the program is built |
//! | 1 | [`base`] | words, positions, locks, files on disk: what has no state and no owner |
//! | 2 | [`transform`] | audit policies, redaction, schemas, who causes the bytes |
//! | 2 | [`evidence-log`](::evidence_log) | the log of the evidence as files, transparency logs |
//! | 2 | `config-table` | how a config file is read, without the name of any key |
//! | 3 | [`config`] | the config file |
//! | 4 | [`telemetry`] | metrics, the log, the JSON of `/status` and the verdict on it |
//! | 4 | [`process`] | what the kernel grants the process, and what it gives up |
//! | 5 | [`client`] | TLS, sockets, single HTTP requests, clients of Kafka |
//! | 5 | [`queue`] | positions, lines and limits; the log in files; no JSON, no HTTP |
//! | 6 | [`delivery`] | the loop of an output, its filter, events that a person looks at |
//! | 6 | `recorder` | what proves that the log is whole |
//! | 6 | [`doctor`] | what kube-apiserver and the relays count, side by side |
//! | 7 | [`outputs`] | the protocols |
//! | 7 | [`tools`] | what an operator runs beside a relay |
//! | 8 | [`verify`] | whether the evidence is whole |
//! | 8 | [`relay`] | which parts there are; how they change and end |
//! | 9 | this one | the commands ([`cli`], which alone prints) and the demonstration ([`demo`]) |
//!
//! Two more are for tests only: `testing`, with what the unit tests of several crates share, and
//! `testing-config`, with a type of output that has no protocol.
//!
//! # Invariants
//!
//! - An acknowledged event is never lost without being counted. At rest, for every output: events
//!   accepted = events acknowledged by the consumer + backlog + events set aside + events dropped
//!   by the filter (and counted) + events counted as lost.
//! - If `queue.directory` is set, no event is acknowledged to its sender, or handed to an output,
//!   before it is synced.
//! - Events are held only by the queue and, once an output has set them aside, by that output. An
//!   event on the wire is still in one of these two places, unless the output is optional and the
//!   queue needed the room.
//! - Everything has a limit, and every wait ends when the process is told to end.

pub mod cli;
pub mod demo;
