//! The formats of the evidence files, and functions that read and copy a log without its relay.
//! Transparency logs in general are in [`tlog`].
//!
//! The recorder writes the files, and `verify` reads them. This crate promises that both give the
//! same bytes the same meaning, and that a read is bounded whatever a file contains. It imports
//! `base`. What must never happen here: a decision about what a fault of a log means, or a write
//! into a log that another process records.

pub mod copy;
pub mod entry;
pub mod head;
pub mod journal;
pub mod layout;
pub mod lines;
pub mod reader;
pub mod tlog;

use std::time::Duration;

use base::release::Format;

pub use layout::{DIRECTORY, LineFile};

/// The format of the evidence files. Checkpoints and tiles have the formats of C2SP instead. Up to
/// version 3, a journal held the entries that no checkpoint covered.
pub const FORMAT: Format = Format { name: "evidence", reads: &[1, 2, 3, 4], writes: 4 };

/// The maximum number of seconds by which the time of a cosignature may be ahead of this machine's
/// clock.
pub const AHEAD_MAX: u64 = 60;

/// The number of bytes of lines after which hashes and entries are made durable. Until they are, a
/// change of an event in the queue's files may go unnoticed.
pub const COMMIT_BYTES: u64 = 16 << 20;

/// The time after which new hashes and entries are made durable, except while witnesses are asked.
pub const COMMIT_EVERY: Duration = Duration::from_secs(1);
