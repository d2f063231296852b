//! The commands that an operator runs next to a relay: `replay` sends recorded events again,
//! `migrate haproxy` turns a haproxy.cfg into a config of the relay, `policy cost` counts recorded
//! events under a policy, and `top` draws the state of a running relay on a terminal.
//!
//! This crate promises that an event which it can't read is named and counted, and that a line of a
//! haproxy.cfg is carried over or printed, never dropped. It imports `queue` and `delivery` (files
//! and filters) and what is below them. What must never happen here: a module imports another one,
//! or a relay imports one of them.

pub mod cost;
pub mod haproxy;
pub mod replay;
pub mod top;
