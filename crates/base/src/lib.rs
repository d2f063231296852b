//! Small helpers that every part of the relay may use. This crate imports no other crate of the
//! relay, and does not change because a part above it changes. It must never contain a thread, a
//! connection or a metric, or know HTTP, the fields of an event or the keys of the config.

pub mod disk;
pub mod fate;
#[cfg(test)]
mod known_answers;
pub mod lock;
pub mod named_file;
pub mod position;
pub mod random;
pub mod release;
pub mod staged;
pub mod words;
pub mod yaml;
