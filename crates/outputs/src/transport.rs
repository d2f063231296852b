//! The code for connections over TCP and TLS that several protocols share, with two kinds of link.
//!
//! - `stream`: for a protocol that only writes; the peer's kernel acknowledges bytes.
//! - `acknowledged`: for a protocol whose consumer acknowledges events.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `encode` `socket` `tls_session` | a batch as bytes · what a socket has taken · certificates and handshakes |
//! | 2 | `connection` | dialling, and what a socket can tell |
//! | 3 | `session` | one connection's reading, writing, age and end |
//! | 4 | `stream` `acknowledged` | when events are final |

pub(crate) mod acknowledged;
pub(crate) mod connection;
pub(crate) mod encode;
mod session;
pub(crate) mod socket;
pub(crate) mod stream;
pub(super) mod tls_session;
