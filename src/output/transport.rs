//! What several protocols share: connections over TCP and TLS, and the two kinds of session on them.
//!
//! - `stream`: a protocol that only writes; the peer's kernel acknowledges bytes.
//! - `acknowledged`: a protocol whose consumer acknowledges events.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `encode` `tls_session` | a batch as bytes · certificates and handshakes |
//! | 2 | `connection` | dialling, and what a socket knows |
//! | 3 | `stream` `acknowledged` | sessions |

pub(super) mod acknowledged;
pub(super) mod connection;
pub(super) mod encode;
pub(super) mod stream;
pub(super) mod tls_session;
