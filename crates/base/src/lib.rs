//! What every part of the relay may use and none owns: words for numbers and sizes, locks,
//! positions, files that a config names, the operations on the files of the queue, and which
//! program this is.
//!
//! This crate promises small things that have no state of their own, so that it never has to change
//! because a part above it does. It imports no other crate of the relay. What must never happen
//! here: a thread, a connection, a metric, or a word about JSON, HTTP or the config.

pub mod disk;
pub mod fate;
pub mod lock;
pub mod mutants;
pub mod named_file;
pub mod position;
pub mod random;
pub mod release;
pub mod staged;
pub mod words;
pub mod yaml;
