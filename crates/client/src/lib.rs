//! What talks to other servers, and what TLS and TCP are made of: TLS settings of certificate
//! files, sockets, single HTTP requests, and the clients of a Kafka cluster (feature `kafka`).
//!
//! This crate promises that every wait has a limit, that every body has a size limit, and that no
//! message shows a token or the query of a URL. It imports `audit` (times), `base`, `config` and
//! `telemetry` (the words for why an attempt failed). What must never happen here: an event is
//! read, or a decision is made about what is sent again.

pub mod ask;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod net;
pub mod tls;
