//! Transparency logs: the formats and the mathematics of a log that can only grow.
//!
//! A log is a list of entries. Over its first `size` entries there is one root hash, which no other
//! list of entries has. A *checkpoint* is a signed note with the size and the root. Somebody who
//! has kept an older checkpoint can check that a newer one only adds entries to it.
//!
//! The hashes are those of RFC 6962, and the formats are those of the C2SP specifications
//! `signed-note`, `tlog-checkpoint`, `tlog-cosignature`, `tlog-tiles` and `tlog-proof`, so that
//! other tools can read them. This module does not know what the entries say, and does no I/O:
//! whoever has the tiles passes a [`merkle::Nodes`].
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `malformed` `merkle` | what is wrong with a text · hashes of trees, and proofs |
//! | 2 | `key` `tile` | who signs · how a tree is cut into files |
//! | 3 | `note` | texts with signatures |
//! | 4 | `checkpoint` | the size and the root of a log, signed |
//! | 5 | `proof` | that an entry is in a log, for somebody who has only this proof |

pub mod checkpoint;
pub mod key;
pub mod malformed;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod tile;
