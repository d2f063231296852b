//! What an event says, and what is made of it: which events an audit policy asks for, what is taken
//! out of them, in which schema they are written, and who causes their bytes.
//!
//! This crate promises that the same event and the same rules give the same bytes, and that a value
//! which is to be redacted leaves in no spelling. It imports `audit` and `base`. What must never
//! happen here: a file, a connection, or a config key: rules come as values.

pub mod policy;
pub mod redact;
pub mod shape;
pub mod volume;
