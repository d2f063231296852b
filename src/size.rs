//! `size`: how much queue, disk, memory and CPU a relay needs for a load, with the formula of each
//! figure.
//!
//! The computation knows only numbers. `measured` has the constants, each with the measurement or
//! the code that it comes from; `metrics` takes the load from the metrics of a running relay or
//! kube-apiserver. Every result grows with the load: more events, larger events or a longer outage
//! never need less.
//!
//! # Floors
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `measured` | the constants |
//! | 2 | `load` `settings` | the load · what a config allows |
//! | 3 | `plan` | the computation |
//! | 4 | `metrics` | the load of what runs |

pub mod load;
pub mod measured;
pub mod metrics;
pub mod plan;
mod settings;

pub use load::{Load, Place};
pub use plan::{Figure, Plan};
pub use settings::memory;

#[cfg(test)]
mod tests;
