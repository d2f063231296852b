//! Clients of other servers: lookups of names, sockets, TLS settings from certificate files (those
//! of listeners too), single HTTP requests, and the clients of a Kafka cluster (feature `kafka`).
//! Every wait and every body has a limit, set here or by the caller. No message shows a token or
//! the query of a URL. This crate imports `audit` (times), `base`, `config` and `telemetry`
//! (reasons of failures). It must never read an event, or decide what is sent again.

pub mod ask;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod names;
pub mod net;
pub mod tls;
