//! The integration tests: the real binary between raw clients and real or scripted consumers.
//!
//! One binary, one file per promise; what they share is in `support`. A test ends with
//! `Relay::finish`, which checks the conservation of events (`event_total` against the sum of
//! what left, what waits and what was counted as lost).

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "threads, real clocks and blocking sockets: the runtime is in the process under test"
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic_in_result_fn,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, and says what it saw"
)]

mod admin;
mod alerts;
mod backpressure;
mod bit_flips;
mod check;
mod commands;
mod commands_queue;
mod configs;
mod configs_http;
mod connection_age;
mod dashboard;
mod dead_letters;
mod demo;
mod deploy;
mod disk_bounds;
mod disk_faults;
mod documents;
mod drain;
mod durability;
mod egress_proxy;
mod failover;
mod faults;
mod filter;
mod healthcheck;
mod http_early;
mod http_endpoints;
mod http_output;
mod http_refused;
mod http_tls;
mod ingest;
mod instructions;
#[cfg(feature = "kafka")]
mod kafka_output;
#[cfg(feature = "kafka")]
mod kafka_source;
#[cfg(feature = "kafka")]
mod kafka_tls;
mod kills;
mod large_bodies;
mod layers;
mod limits;
mod log;
mod losses;
mod lumberjack;
mod migrate;
mod names;
mod optional;
mod page;
mod peers_work;
mod policy;
mod readme;
mod reload;
mod relp;
mod replay;
mod secrets;
mod shutdown;
mod spool_start;
mod stdout;
mod support;
mod syslog;
mod tcp;
mod tls;
