//! Delivering: one loop for each output takes events from the queue and hands them to a protocol.
//!
//! The files of this directory are on floors: a file imports only from files on the floors below
//! its own.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `failure` `lines` `tried` `parked` `aside` `tapped` `rate` | why an attempt failed · lines of a batch · ages · the tries of events that a consumer does not take · work that takes long · copies for taps · bytes a second |
//! | 2 | `files` `retry` `endpoints` `dead_letter` `in_flight` `checkpoints` | files that an output reads · waits · addresses and their circuits · letters and their files · claims and their states · the newest checkpoint |
//! | 3 | `link` `health` `pacing` `orders` `isolation` | the contract with a protocol · "down" and "up again" · when and how much is sent · the orders that a delivery hears · which refused event is at fault |
//! | 4 | `filtering` | the events of a batch that leave |
//! | 5 | `given_up` | events that are given up, and their letters |
//! | 6 | `ledger` | every decision about claims |
//! | 7 | `run` | the loop: it waits, and asks the ledger |
//! | 8 | `prepared` | an output that can be started |
//!
//! A protocol (a file of [`output`](crate::output)) imports `link` and the floors below, and never
//! the loop.

mod aside;
pub(crate) mod checkpoints;
pub(crate) mod dead_letter;
pub(crate) mod endpoints;
pub(crate) mod failure;
pub(crate) mod files;
mod filtering;
mod given_up;
pub(crate) mod health;
mod in_flight;
mod isolation;
mod ledger;
pub(crate) mod lines;
pub(crate) mod link;
mod orders;
mod pacing;
mod parked;
pub(crate) mod prepared;
mod rate;
pub(crate) mod retry;
mod run;
mod tapped;
mod tried;

pub use checkpoints::Published;
pub use dead_letter::{DeadLetters, FORMAT as DEAD_LETTER_FORMAT};
pub use endpoints::{AddressState, FiguresShown};
pub use files::Files;
pub use health::{ParkedEvents, Snapshot, Status};
pub use orders::{HandOver, Orders};
pub use prepared::{Prepared, Running};
