//! A relay for the Kubernetes audit webhook: it accepts kube-apiserver's batches of audit events, holds them in a bounded
//! queue and forwards them, with retries and back-pressure, to Logstash, syslog and HTTP consumers.
//!
//! # The life of a batch
//!
//! In: [`listener`] accepts a connection and reads a POST within its bounds; [`audit`] checks the body and splits it in
//! place into lines; [`queue`] takes the lines, in memory or synced to disk, or refuses them; the answer says which. A
//! [`source`] does the same with messages of a topic.
//!
//! Out: each [`output`] has a cursor in the queue. Its delivery loop claims what comes next, sends it in the consumer's
//! protocol, and finishes the claim when the consumer has it. What every cursor has finished leaves the queue. Where the output has a
//! [`filter`], less leaves than was claimed: what the audit [`policy`] asks for, without what is to be [redacted](redact).
//!
//! # Layers
//!
//! A row imports only from rows above it; listeners, sources and outputs meet at the queue and
//! nowhere else. `tests/it/docs/layers.rs` holds this table against the sources.
//!
//! | row | modules | what they know |
//! |---|---|---|
//! | 1 | [`audit`] | JSON and events |
//! | 2 | [`policy`] [`redact`] | audit policies · one event's change |
//! | 3 | [`config`] | the config file |
//! | 4 | [`telemetry`] [`tls`] [`net`] [`process`] [`haproxy`] | every metric and the log · certificates · TCP · the kernel's limits · another's config |
//! | 5 | [`queue`] [`filter`] [`kafka`](self) | positions, lines and bounds; no JSON, no HTTP · what of an event leaves by an output · clients of a cluster (feature `kafka`) |
//! | 6 | [`listener`] [`source`] [`output`] [`replay`] | requests · topics · deliveries · files of events |
//! | 7 | [`admin`] [`check`] | metrics, health, status · what a config names |
//! | 8 | [`relay`] | which parts there are; how they change and end |
//! | 9 | [`demo`] | the relay between a sender and a consumer of its own |
//! | 10 | [`cli`] | commands; the only one that prints |
//!
//! # Invariants
//!
//! - Acknowledged means never lost, or counted: at rest, for every output, events accepted = acknowledged + backlog +
//!   kept back by its filter, and counted + counted as lost.
//! - With a directory, nothing is acknowledged, or handed to an output, that is not synced.
//! - Nothing but the queue holds events; what an output holds on the wire is still in the queue, unless that output is
//!   optional and the room was needed.
//! - Everything is bounded, and every wait hears the end.

pub mod admin;
pub mod audit;
pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
pub mod filter;
pub mod haproxy;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod listener;
pub mod net;
pub mod output;
pub mod policy;
pub mod process;
pub mod queue;
pub mod redact;
pub mod relay;
pub mod replay;
pub mod source;
pub mod telemetry;
pub mod tls;

#[cfg(test)]
mod tests;
