//! Decides about events and changes them: which events an audit policy wants, what is removed from
//! them, in which schema they are written, and who causes their bytes.
//!
//! This crate promises that the same event and the same rules give the same bytes, and that a value
//! which is to be redacted is removed in every spelling. The crate imports `audit` and `base`. It
//! must never open a file or a connection, or know a config key: rules come as values.

pub mod policy;
pub mod redact;
pub mod shape;
pub mod volume;
