//! What an operator runs beside a relay: recorded events are sent again (`replay`), a config of
//! HAProxy becomes one of the relay (`migrate haproxy`), recorded events are counted under a policy
//! (`policy cost`), and the state of a running relay is drawn on a terminal (`top`).
//!
//! This crate promises that an event which it can't read is named and counted, and that a line of a
//! foreign config is carried over or printed, never dropped. It imports `queue` and `delivery`
//! (files and filters) and what is below them. What must never happen here: a module imports
//! another one, or a relay imports one of them.

pub mod cost;
pub mod haproxy;
pub mod replay;
pub mod top;
