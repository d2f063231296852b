//! Reads a log from an HTTP server, which an attacker may control.

use std::cell::{Cell, OnceCell};
use std::io;

use tokio::runtime::Runtime;

use client::ask;
use client::ask::{AskFault, Target};
use evidence_log::reader::Files;
use evidence_log::tlog::merkle::Hash;
use evidence_log::tlog::note::NOTE_BYTES_MAX;
use evidence_log::tlog::tile::CHECKPOINT;

/// The greatest number of bytes that one check reads. A longer log must be copied, and checked as a
/// directory.
const BYTES_MAX: u64 = 64 << 30;

/// A log on an HTTP server. Its checkpoint is requested only once, so that the server can't change
/// it during a check. A log that grows during a check is checked as it was at that checkpoint.
pub(super) struct Published {
    target: Target,
    /// The path of the log, without a slash at its end.
    base: String,
    runtime: Runtime,
    checkpoint: OnceCell<Option<Vec<u8>>>,
    /// The number of bytes that were read so far, for the limit [`BYTES_MAX`].
    read: Cell<u64>,
}

impl Published {
    /// Makes the log whose files are below the path of the target's URL, or below `/evidence` if
    /// the URL has no path.
    ///
    /// # Errors
    ///
    /// The runtime cannot start.
    pub(super) fn new(target: Target) -> Result<Self, String> {
        Self::with(target, "/evidence")
    }

    /// Makes a log of which the server has only the checkpoint, at `BASE/ORIGIN-HASH/checkpoint`.
    /// This is where a witness serves it (C2SP `tlog-witness`, "Monitor Retrieval Mechanism").
    ///
    /// # Errors
    ///
    /// The runtime cannot start.
    pub(super) fn at_witness(target: Target, origin: &str) -> Result<Self, String> {
        let published = Self::with(target, "")?;
        let Hash(hash) = Hash::of(&[origin.as_bytes()]);
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let base = format!("{}/{hash}", published.base);
        Ok(Self { base, ..published })
    }

    fn with(target: Target, default: &str) -> Result<Self, String> {
        let base = target.given().unwrap_or(default).trim_end_matches('/').to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
        let (checkpoint, read) = (OnceCell::new(), Cell::new(0));
        Ok(Self { target, base, runtime, checkpoint, read })
    }

    /// Returns the checkpoint as the server has it; `None` if it has none.
    ///
    /// # Errors
    ///
    /// There is no complete response, its status is neither 200 nor 404, or its body is too long.
    pub(super) fn checkpoint(&self) -> io::Result<Option<Vec<u8>>> {
        self.get(CHECKPOINT, NOTE_BYTES_MAX)
    }

    fn get(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        let mut total = self.read.get();
        let got =
            self.runtime.block_on(self.target.get(&format!("{}/{path}", self.base), |part| {
                total += part.len() as u64;
                if body.len() + part.len() > max {
                    return Err(format!("the file has more than {max} bytes"));
                }
                if total > BYTES_MAX {
                    return Err(
                        "the log has more than 64 GiB: check a copy of its directory, with \
                                --directory"
                            .to_owned(),
                    );
                }
                body.extend_from_slice(part);
                Ok(())
            }));
        self.read.set(total);
        match got {
            Ok(_) => Ok(Some(body)),
            Err(error) if error.fault == AskFault::Status(404) => Ok(None),
            // Any other error counts as a lost connection, which says nothing about the log.
            Err(error) => {
                let todo = ask::remedy_at_admin(error.fault, &error.reason);
                let todo = todo.map_or(String::new(), |todo| format!(". {todo}"));
                Err(io::Error::new(io::ErrorKind::NotConnected, format!("{error}{todo}")))
            }
        }
    }
}

impl Files for Published {
    fn read(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        if path != CHECKPOINT {
            return self.get(path, max);
        }
        if let Some(checkpoint) = self.checkpoint.get() {
            return Ok(checkpoint.clone());
        }
        let checkpoint = self.checkpoint()?;
        Ok(self.checkpoint.get_or_init(|| checkpoint).clone())
    }
}
