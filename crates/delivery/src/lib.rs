//! Delivering: one loop for each output takes events from the queue and hands them to a protocol.
//!
//! Each claimed event is delivered, dropped by the filter, or counted as lost, exactly once. Until
//! then it is in the queue or set aside. This crate imports `queue`, `transform`, `evidence-log`
//! (the marks of a log) and what is below them. It must never name a protocol, or give up an event
//! because of the size, the name or the sender of another one.
//!
//! A file imports only from files on the floors below its own.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `filter` `tap` | which events leave, and as what · events that a person looks at |
//! | 2 | `failure` `lines` `trial` `offload` `tapped` `rate` | why an attempt failed · lines of a batch · what a turned down event is tried for · work that takes long · copies for taps · bytes a second |
//! | 3 | `files` `retry` `endpoints` `dead_letter` `in_flight` `checkpoints` `reason` | files that an output reads · waits · addresses and their circuits · letters and their files · claims and their states · the newest checkpoint · why events are given up |
//! | 4 | `link` `pacing` `turns` `aside` | the contract with a protocol · when something is sent · how many events a request has, and how many tries there are · events that have left the queue and are tried again |
//! | 5 | `filtering` `health` `orders` `search` | the events of a batch that leave · "down" and "up again" · the orders that a delivery hears · which event takes its turn |
//! | 6 | `given_up` | events that leave the queue without having been delivered, and their files |
//! | 7 | `ledger` | every decision about claims |
//! | 8 | `run` | the loop: it waits, and asks the ledger |
//! | 9 | `prepared` | an output that can be started |
//!
//! A protocol (a file of the crate `outputs`) imports `link` and the floors below, and never the
//! loop.

mod aside;
pub mod checkpoints;
pub mod dead_letter;
pub mod endpoints;
pub mod failure;
pub mod files;
pub mod filter;
mod filtering;
mod given_up;
pub mod health;
mod in_flight;
mod ledger;
pub mod lines;
pub mod link;
mod offload;
mod orders;
mod pacing;
pub mod prepared;
mod rate;
mod reason;
pub mod retry;
mod run;
mod search;
pub mod tap;
mod tapped;
mod trial;
mod turns;

pub use checkpoints::Published;
pub use dead_letter::{DeadLetters, FORMAT as DEAD_LETTER_FORMAT};
pub use files::Files;
pub use health::{Snapshot, Status};
pub use orders::{HandOver, Orders};
pub use prepared::{Prepared, Running};
