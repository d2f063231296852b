//! Transparency logs: the formats and the mathematics of a log that can only grow.
//!
//! A log is a list of entries. The root is one hash over its first `size` entries, and no other
//! list of entries has this root. A *checkpoint* is a signed note with the size and the root. A
//! reader who has kept an older checkpoint can check that a newer one only adds entries to it.
//!
//! The hashes are those of RFC 6962, and the formats are those of the C2SP specifications
//! `signed-note`, `tlog-checkpoint`, `tlog-cosignature`, `tlog-tiles` and `tlog-proof`, so that
//! other tools can read them. This module does not interpret entries and does no I/O: the caller,
//! who has the tiles, passes a [`merkle::Nodes`].
//!
//! The crates `signed_note` and `tlog_tiles` (0.2.0) are not used. `tlog_tiles` has the paths of
//! Go's `sumdb` and refuses `tile/0/…` and `tile/entries/…`. Its `Tile::from_path` panics at level
//! 64 and at width 0, its proofs assert, and it has neither bundles nor `tlog-proof`. `signed_note`
//! ignores a second signature of the same key, even a forged one. It has no witness keys, and
//! allows control characters in names. The two would add fourteen crates, and a second version of
//! two crates that are in use.
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
