//! Evidence: a log that proves which events came in.
//!
//! This crate promises that the log says what became of each event, or for which positions it can't
//! say this. It imports `queue`, `evidence-log` and `client` (witnesses). What must never happen
//! here: an event is changed, or a response to a sender waits for a witness.
//!
//! A separate thread reads the queue and hashes each line. For each range of events, the thread
//! adds an entry with a root over the hashes to a transparency log ([`evidence_log::tlog`]) below
//! the queue's directory. A checkpoint signs the log up to an entry. Whoever has kept a checkpoint
//! can tell later if an event was taken out, changed or added. The log itself holds nothing from
//! which an event could be guessed.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `outcome` | entries about events that outputs have finished |
//! | 2 | `hashes` `off` `originals` `store` | the files of line hashes · the positions without evidence · whether a line is the one that came in · the files of the log, and the order in which they are written |
//! | 3 | `witness` | who cosigns checkpoints |
//! | 4 | `recorder` | the thread |

mod hashes;
pub mod off;
pub mod originals;
pub mod outcome;
pub mod recorder;
mod store;
mod witness;
