//! Evidence: a log that proves which events came in.
//!
//! A thread of its own reads the queue, hashes each line, and enters ranges of events with a root
//! over their hashes into a transparency log ([`crate::tlog`]) below the queue's directory. The
//! roots are signed by checkpoints. Whoever has kept a checkpoint can tell later if an event was
//! taken out, changed or added. The log itself holds nothing from which an event could be guessed.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `entry` `journal` `layout` `lines` | what an entry says · entries without a checkpoint · names of files · hashes of lines |
//! | 2 | `bound` `outcome` `reader` | how far the log was durable · entries about events that outputs have finished · a log in a directory, read from outside |
//! | 3 | `copy` `hashes` `off` `originals` `store` | a copy of a log · the files of line hashes · the positions without evidence · whether a line is the one that came in · the files of the log, and the order in which they are written |
//! | 4 | `witness` | who cosigns checkpoints |
//! | 5 | `recorder` | the thread |

mod bound;
pub mod copy;
pub mod entry;
mod hashes;
mod journal;
mod layout;
pub mod lines;
pub(crate) mod off;
pub(crate) mod originals;
pub(crate) mod outcome;
pub mod reader;
pub(crate) mod recorder;
mod store;
mod witness;

pub use layout::{DIRECTORY, LineFile};
pub use recorder::{COMMIT_BYTES, COMMIT_EVERY};
pub use witness::AHEAD_MAX;

use base::release::Format;

/// The format of the evidence, for `--version`: that of the entries, the journal and the files of
/// line hashes. Version 2 has MACs in the journal, and the files beside the log; version 3 also has
/// `evidence-head` there. The formats of checkpoints and tiles are those of the C2SP
/// specifications.
pub const FORMAT: Format = Format { name: "evidence", reads: &[1, 2, 3], writes: 3 };
