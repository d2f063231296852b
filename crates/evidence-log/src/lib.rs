//! The log of the evidence, as files: what an entry says, where its tiles and line hashes are, how
//! a log is read from outside and copied, and transparency logs themselves ([`tlog`]).
//!
//! The recorder writes these files and `verify` reads them; this crate is what the two agree on. It
//! promises that a byte has one reading, and that a reader is bounded whatever a file holds. It
//! imports `base`. What must never happen here: a decision about what a fault of a log means, or a
//! write into a log that somebody else records.

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

/// The format of the evidence, for `--version`: that of the entries, the files of line hashes, and
/// the files beside the log. Up to version 3 the entries that no checkpoint covered were in a
/// journal. The formats of checkpoints and tiles are those of the C2SP specifications.
pub const FORMAT: Format = Format { name: "evidence", reads: &[1, 2, 3, 4], writes: 4 };

/// The signed time of a cosignature may be at most this many seconds ahead of the relay's clock.
pub const AHEAD_MAX: u64 = 60;

/// Hashes and entries are made durable whenever this many bytes of lines have been taken from the
/// queue since they were last made durable. If somebody changes an event in the files of the queue
/// before, nothing shows it.
pub const COMMIT_BYTES: u64 = 16 << 20;

/// Hashes and entries are made durable at the latest this long after the first of them.
pub const COMMIT_EVERY: Duration = Duration::from_secs(1);
