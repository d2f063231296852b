//! The events that the outputs of a relay have not finished, as its queue's directory shows them:
//! their positions and number, and whether the relay is still running.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use super::walk::Want;
use super::{CursorsFile, Directory, Error, Tell, Verdict, no_output};
use crate::cursors::Hole;
use crate::identity::Identity;
use crate::segment::{READS, SEGMENT_HEADER};
use crate::{cursors, identity, segment, shelf};
use base::disk;
use base::disk::{ASIDE, Access, RealDisk};
use base::position::Position;

/// The directory for dead letters inside the queue's directory, if the config names no other one.
const DEAD_LETTERS: &str = "dead-letter";

/// The events of a queue's directory that outputs have not finished.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// A name of the queue: the identity (32 hexadecimal digits) or, if there is none, the checksum
    /// of the first segment's header, such as `unnamed-1a2b3c4d`.
    pub queue: String,
    /// The state of the cursors file. If it is missing or damaged, all events count as unfinished.
    pub cursors: CursorsFile,
    /// The position of the first event that is still needed.
    pub begin: Position,
    /// The position after the last event in the log.
    pub end: Position,
    /// The number of bytes in the lines from `begin` on. Without a cursors file it is an estimate.
    pub bytes: u64,
    holes: Vec<Hole>,
    /// The name of each output in the cursors file, and the first position that it has not
    /// finished.
    pub outputs: Vec<(String, Position)>,
    /// The number of files with copies of damaged records, and of their bytes.
    pub quarantine: (u64, u64),
    /// The number of files with dead letters in the queue's directory, and of their bytes.
    pub dead_letters: (u64, u64),
    /// The number of events that the outputs (or the chosen one) have set aside in separate files.
    pub aside: u64,
}

impl Leftover {
    /// Returns how many of these positions the relay has dropped and counted as lost.
    pub fn dropped_in(&self, positions: Range<Position>) -> u64 {
        cursors::missing_in(&self.holes, &positions)
    }
}

impl Directory {
    /// Returns `true` if a running relay holds the directory's lock. The check takes a shared lock
    /// for a moment.
    ///
    /// # Errors
    ///
    /// The lock file can't be opened, or its file system has no locks.
    pub fn is_in_use(&self) -> Result<bool, Error> {
        RealDisk::is_locked(&self.root).map_err(|error| self.failed(disk::LOCK, error))
    }

    /// Returns the events that `output` has not finished or, if it is `None`, that at least one
    /// output has not finished. If the cursors file is missing or damaged, these are all stored
    /// events, also if `output` is `Some`.
    ///
    /// # Errors
    ///
    /// The directory can't be read, a newer version of the program has written it, or its cursors
    /// file does not have this output. Damaged events are not an error.
    pub fn leftover(&self, output: Option<&str>) -> Result<Leftover, Error> {
        let found = self.cursors()?;
        let summary = self.summary()?;
        let contents = found.contents.as_ref();
        let place = match (contents, output) {
            (None, _) => None,
            (Some(contents), None) => contents.outputs.values().min().copied(),
            (Some(contents), Some(name)) => {
                let place = contents.outputs.get(name);
                Some(*place.ok_or_else(|| no_output(name, Some(&contents.outputs)))?)
            }
        };
        let begin = place.map_or(summary.first, |place| place.position);
        let outputs = contents.into_iter().flat_map(|contents| &contents.outputs);
        // The summary has the number of bytes of each output's backlog. One of them begins at
        // `begin`.
        let at = |name: &String| contents.and_then(|contents| contents.outputs.get(name));
        let backlogs = summary.outputs.iter().filter(|output| at(&output.name).copied() == place);
        Ok(Leftover {
            queue: self.name()?,
            cursors: found.state,
            begin,
            end: summary.end.max(begin),
            bytes: backlogs.map(|output| output.bytes).max().unwrap_or(summary.segment_bytes),
            holes: contents.map(|contents| contents.holes.clone()).unwrap_or_default(),
            outputs: outputs.map(|(name, place)| (name.clone(), place.position)).collect(),
            quarantine: summary.quarantine,
            dead_letters: disk::sizes(&*self.disk, DEAD_LETTERS),
            aside: self.aside(&found, output)?,
        })
    }

    /// Returns the number of events that `output` (`None`: any output) has set aside. An event at
    /// or after an output's place does not count: the output gets it from the log.
    pub(super) fn aside(
        &self,
        cursors: &cursors::Found,
        output: Option<&str>,
    ) -> Result<u64, Error> {
        let found = self.shelved(cursors)?;
        let contents = cursors.contents.as_ref();
        let of = found.iter().filter(|(name, _)| output.is_none_or(|output| output == **name));
        let counted = of.map(|(name, events)| {
            let place = contents.map_or(Position::MAX, |contents| {
                contents.outputs.get(name).map_or(Position::START, |place| place.position)
            });
            events.iter().filter(|position| **position < place).count() as u64
        });
        Ok(counted.sum())
    }

    /// Returns the events that outputs have set aside. Without a list, some of them may come from
    /// the log.
    pub(super) fn shelved(
        &self,
        cursors: &cursors::Found,
    ) -> Result<BTreeMap<String, BTreeSet<Position>>, Error> {
        let contents = cursors.contents.as_ref();
        let is_output = |name: &str| contents.is_none_or(|it| it.outputs.contains_key(name));
        let found = shelf::find(&*self.disk, cursors, is_output);
        Ok(found.map_err(|error| self.failed(ASIDE, error))?.events)
    }

    /// Passes all undamaged lines from `from` on, and all faults, to `tell`, the oldest first. If
    /// `output` is `Some`, only events that this output has not finished can count as missing.
    /// Returns the totals.
    ///
    /// # Errors
    ///
    /// The directory can't be read, a newer version of the program has written it, or `tell` has
    /// failed.
    pub fn read(
        &self,
        from: Position,
        output: Option<&str>,
        tell: &mut Tell<'_>,
    ) -> Result<Verdict, Error> {
        self.walk(&self.cursors()?, Want { lines: true, output, from }, tell)
    }

    fn name(&self) -> Result<String, Error> {
        match Identity::read(&*self.disk) {
            Ok(Some(identity)) => return Ok(identity.to_string()),
            // The file does not exist, or its content is not an identity.
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Other => {}
            Err(error) => return Err(self.failed(identity::FILE, error)),
        }
        let mut header = [0; SEGMENT_HEADER];
        if let Some(first) = self.segments()?.first()
            && let Ok(file) = self.disk.open(&segment::file_name(*first), Access::Read)
        {
            // A header that can't be read counts as zeros.
            (0..READS).any(|_| file.read_at(&mut header, 0).is_ok());
        }
        Ok(format!("unnamed-{:08x}", crc32c::crc32c(&header)))
    }
}
