//! The addresses of one output: which is used next, which are down, and what their names resolve
//! to.
//!
//! A set ([`Endpoints`]) holds the configured `host:port`s in order. A name stands for all
//! addresses that it resolves to. Each address has a circuit, which says whether it may be used. A
//! delivery takes an [`Attempt`] at the address whose turn it is, and reports its result. A
//! [`Watch`] probes the addresses that are down, so that no event has to test them, and notices
//! when the addresses of a name change.
//!
//! An output never waits for its addresses: if every address is down, deliveries try each of them
//! in turn. A resolver that hangs delays only connections to a name without a known address.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `figures` `circuit` | what is counted at one address · whether one address may be used |
//! | 2 | `address` | an endpoint and its addresses |
//! | 3 | `table` | all addresses, and whose turn it is, without I/O |
//! | 4 | `set` | the table behind its lock, and lookups of names |
//! | 5 | `attempt` `watch` | deliveries and connections · probes |

mod address;
mod attempt;
mod circuit;
mod figures;
mod set;
mod table;
mod watch;

pub use address::{Endpoint, ResolvedAddress};
pub use attempt::{Attempt, Probed};
pub use circuit::UNANSWERED_MAX;
pub use figures::Figures;
pub use set::Endpoints;
pub use watch::Watch;

#[cfg(test)]
mod tests;
