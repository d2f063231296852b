//! The line hashes of a log: its ranges, found by their roots.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::positions::Positions;
use evidence_log::lines::{Damage, Range, Record};
use evidence_log::reader::Directory;
use evidence_log::tlog::merkle::Hash;
use evidence_log::{LineFile, lines};

/// The key of a range of line hashes: the output that sent the lines (`None` for lines as
/// received), the first position, and the root.
type Key = (Option<String>, u64, Hash);

/// The number of ranges that stay in memory after they were read: usually one of received lines,
/// and the others of outputs.
const CACHED: usize = 4;

const UNREAD_MAX: usize = 100;

/// The line hashes in a directory. Only the offsets of the records are in memory: about 150 bytes
/// for each range.
#[derive(Default)]
pub(crate) struct Hashes<'a> {
    /// `None` if there are no line hashes, as for a published log.
    directory: Option<&'a Directory>,
    places: HashMap<Key, (LineFile, u64)>,
    firsts: HashSet<(Option<String>, u64)>,
    cached: Vec<(Key, Arc<Range>)>,
    /// The damaged files, whose ranges may be missing. `true`: the file only ends too early, like a
    /// copy that was made while a relay wrote to the file.
    pub damages: Vec<(String, bool)>,
    /// The ranges whose line hashes differ from the root in the log: the first position, the time,
    /// and the text of the fault.
    pub changed: Vec<(u64, u64, String)>,
    /// The first errors of unreadable files and records, at most [`UNREAD_MAX`].
    pub unread: Vec<io::Error>,
    /// `true`: a whole file or the directory could not be read.
    is_unread: bool,
    /// The received events whose line hashes are missing or were changed.
    pub gone: Positions,
    /// The events for which the hashes of the sent lines are missing.
    pub(super) gone_as_sent: Positions,
}

pub(crate) enum Found {
    /// The line hashes with the root in the log.
    Range(Arc<Range>),
    /// The line hashes at this place have another root.
    Changed,
    Gone,
}

impl<'a> Hashes<'a> {
    /// Returns the line hashes of a directory, which are read later.
    pub(crate) fn of(directory: Option<&'a Directory>) -> Self {
        Self { directory, ..Self::default() }
    }

    pub(crate) fn read(&mut self) {
        let Some(directory) = self.directory else { return };
        let files = directory.line_files().map_err(|error| self.add_unread(error));
        for file in files.unwrap_or_default() {
            let content = directory.line_file(file).map_err(|error| self.add_unread(error));
            let content = content.unwrap_or_default();
            for (offset, record) in lines::Records::of(&content) {
                match record {
                    Ok(record) => self.add(record, (file, offset)),
                    Err(damage) => {
                        let text = format!("lines/{file}, byte {offset}: {damage}");
                        self.damages.push((text, matches!(damage, Damage::CutOff)));
                    }
                }
            }
        }
        self.is_unread = !self.unread.is_empty();
    }

    fn add(&mut self, record: Record, place: (LineFile, u64)) {
        let Record { output, range, .. } = record;
        self.firsts.insert((output.clone(), range.first));
        self.places.insert((output, range.first, range.root()), place);
    }

    fn add_unread(&mut self, error: io::Error) {
        if self.unread.len() < UNREAD_MAX {
            self.unread.push(error);
        }
    }

    /// Returns the line hashes of an entry's range: as sent by `output`, or as received.
    pub(crate) fn range(&mut self, output: Option<&str>, first: u64, root: Hash) -> Found {
        let key = (output.map(str::to_owned), first, root);
        if let Some((_, range)) = self.cached.iter().find(|(cached, _)| *cached == key) {
            return Found::Range(Arc::clone(range));
        }
        let (Some((file, offset)), Some(directory)) = (self.places.get(&key), self.directory)
        else {
            // After damage, the ranges in the rest of the file are unknown.
            let is_known = self.damages.is_empty() && !self.is_unread;
            let is_changed = is_known && self.firsts.contains(&(key.0, first));
            return if is_changed { Found::Changed } else { Found::Gone };
        };
        let range = match directory.line_record(*file, *offset) {
            Ok(Some(record)) => Arc::new(record.range),
            // The relay has deleted the file since.
            Ok(None) => return Found::Gone,
            Err(error) => {
                self.add_unread(error);
                return Found::Gone;
            }
        };
        if self.cached.len() >= CACHED {
            self.cached.remove(0);
        }
        self.cached.push((key, Arc::clone(&range)));
        Found::Range(range)
    }
}
