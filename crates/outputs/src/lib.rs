//! The protocols that outputs speak: each has a file and a row in the table `PROTOCOLS`.
//!
//! This crate promises that an event is reported as accepted only for an answer that the protocol
//! defines as acceptance. In a protocol without answers, an event is accepted once it was written
//! (`stdout`) or once the peer's kernel has had its bytes for `replay_window` (`tcp`, `syslog`).
//! The crate imports `delivery`, `queue`, `client` and what is below them. What must never happen
//! here: a decision about whether or when an event is retried.
//!
//! # A new type of output
//!
//! A new type needs one file here, with the type `Settings`, its `mod` line, and its row in
//! `PROTOCOLS`. In the file, two traits list what the compiler asks for:
//!
//! - [`OutputSettings`](config::OutputSettings): the name, the keys, the addresses. `check`,
//!   `config`, the reference, the messages about wrong keys and a reload follow from this trait.
//! - `setup::IntoConnector`: how a connector is made. The trait's documentation names the
//!   connectors for protocols over TCP and HTTP; any other protocol implements
//!   `delivery::link::Connect` itself. Metrics, retries, dead letters and `check --connect` follow
//!   from the connector.
//!
//! Tests ask for the rest: the generated page of the config (`docs/reference/config.md`), and a row
//! in the code map for the new file. Two rows are needed although no test asks for them: one in
//! `tests/it/outputs/faults/outputs.rs`, so that the faults strike the protocol's consumer too, and
//! one in the table of `docs/destinations/choose.md`.
//!
//! A protocol does not know the delivery loop, and imports only files on floors below its own.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `transport` | TCP, TLS, and sessions on them |
//! | 2 | `event_time` `setup` | the times of an event · settings and connectors of any type |
//! | 3 | `event_fields` `json_lines` `syslog` | the members of an event · batches as lines · RFC 5424 messages, and the protocol of that name |
//! | 4 | `http` `kafka` `lumberjack` `relp` `stdout` `tcp` | one protocol each |
//! | 5 | `tokens` | tokens that are renewed |
//! | 6 | `iam` | tokens of IBM Cloud |
//! | 7 | `*` (every other file) | protocols over HTTP |

use std::sync::Arc;

use config::OutputType;
use delivery::{DeadLetters, Prepared};
use telemetry::Telemetry;

mod elasticsearch;
mod event_fields;
mod event_time;
mod http;
mod iam;
mod ibm_cloud_logs;
mod json_lines;
mod kafka;
mod loki;
mod lumberjack;
mod otlp;
mod relp;
mod s3;
mod setup;
mod splunk_hec;
mod stdout;
pub mod syslog;
mod tcp;
mod tokens;
mod transport;

pub use transport::encode::{Encode, Encoded};

use setup::{Row, Setup};

/// One row for each protocol that an output can speak (`http`, `tcp`, …), in the order of the
/// config reference.
const PROTOCOLS: &[Row] = &[
    Row::of::<http::Settings>(),
    Row::of::<tcp::Settings>(),
    Row::of::<syslog::Settings>(),
    Row::of::<stdout::Settings>(),
    Row::of::<lumberjack::Settings>(),
    Row::of::<relp::Settings>(),
    Row::of::<kafka::Settings>(),
    Row::of::<splunk_hec::Settings>(),
    Row::of::<elasticsearch::Settings>(),
    Row::of::<ibm_cloud_logs::Settings>(),
    Row::of::<s3::Settings>(),
    Row::of::<loki::Settings>(),
    Row::of::<otlp::Settings>(),
];

/// All types of output, such as `http`: an argument of [`config::read`], because each type has its
/// own config keys.
pub const TYPES: &[OutputType] = &Row::types::<{ PROTOCOLS.len() }>(PROTOCOLS);

/// Returns the output that `config` describes. It has made no connection and read no file yet.
/// Events that the output gives up on are written to `dead_letters`, if the config says so.
pub fn prepare(
    config: &config::Output,
    telemetry: &Arc<Telemetry>,
    dead_letters: &DeadLetters,
) -> Prepared {
    let setup = Setup::new(config, telemetry);
    let connector = PROTOCOLS
        .iter()
        .find_map(|row| (row.connector)(&config.kind, &setup))
        .expect("configs are read with the types of this table");
    Prepared::new(connector, config, setup.metrics, dead_letters)
}

#[cfg(test)]
mod config_tests;
#[cfg(test)]
pub(crate) mod tests;
