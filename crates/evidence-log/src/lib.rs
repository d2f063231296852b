//! The files of the evidence log: the entries, the tiles and the line hashes, how a log is read and
//! copied from outside of its relay, and transparency logs in general ([`tlog`]).
//!
//! The recorder writes these files and `verify` reads them; this crate is what the two agree on. It
//! promises that bytes have one meaning, and that reading is bounded whatever a file contains. It
//! imports `base`. What must never happen here: a decision about what a fault of a log means, or a
//! write into a log that another process records.

pub mod copy;
pub mod entry;
pub mod head;
pub mod layout;
pub mod lines;
pub mod reader;
pub mod tlog;

use std::time::Duration;

use base::release::Format;

pub use layout::{DIRECTORY, LineFile};

/// The format of the evidence except checkpoints and tiles, which are those of C2SP. Up to version
/// 3, a journal held the entries without a checkpoint.
pub const FORMAT: Format = Format { name: "evidence", reads: &[1, 2, 3, 4], writes: 4 };

/// The signed time of a cosignature may be at most this many seconds ahead of the relay's clock.
pub const AHEAD_MAX: u64 = 60;

/// Hashes and entries are made durable after this many bytes of lines. A change of an event in the
/// queue's files before that can't be noticed.
pub const COMMIT_BYTES: u64 = 16 << 20;

/// Hashes and entries are made durable at the latest this long after the first of them.
pub const COMMIT_EVERY: Duration = Duration::from_secs(1);
