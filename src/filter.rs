//! What leaves: decided for each output between the queue and its protocol.
//!
//! It knows events and what an output's settings ask of them. It knows neither the queue nor deliveries: positions are
//! numbers here, and time is what the caller says it is.

pub mod seen;
