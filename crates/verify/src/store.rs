//! The store of a consumer: the hashes of its lines, and the checkpoints among them.
//!
//! The store is read before the logs, because a relay may be running. A log that is read later can
//! cover all lines that were stored before.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::matching::{Form, Line, Lines};
use super::report::Report;
use super::request::Request;
use super::stored;
use evidence_log::tlog::checkpoint::{Checkpoint, Signed};
use evidence_log::tlog::merkle::Hash;

/// A checkpoint among the stored lines, with a valid signature.
pub(crate) struct Kept {
    pub place: u64,
    pub checkpoint: Checkpoint,
}

/// The lines of a consumer. The place of a line is a number that grows from line to line, through
/// all files.
#[derive(Default)]
pub(crate) struct Store {
    /// The stored lines, to which the comparison adds the sent lines.
    pub lines: Lines,
    pub kept: Vec<Kept>,
    /// The place before the first line of each file, and the name of the file.
    files: Vec<(u64, PathBuf)>,
    /// The counts of the checkpoints among the lines, and a fault for each one without a valid
    /// signature.
    pub report: Report,
}

impl Store {
    /// Reads the files with stored lines. If one can't be read, nobody knows which lines are
    /// missing: the report gets the error, `None` is returned, and no line is compared.
    pub(crate) fn read(
        request: &Request,
        read: &mut dyn FnMut(u64),
        report: &mut Report,
    ) -> Option<Self> {
        let mut store = Self::default();
        let (mut place, mut notes) = (0, BTreeSet::new());
        for path in &request.events {
            store.files.push((place, path.clone()));
            let mut line = |line| {
                place += 1;
                match line {
                    stored::Line::Event { hash, plain } => {
                        let form = if plain.is_some() { Form::Added } else { Form::Only };
                        store.lines.add(hash, Line::Stored(form), (0, place))?;
                        if let Some(plain) = plain {
                            store.lines.add(plain, Line::Stored(Form::Plain), (0, place))?;
                        }
                    }
                    stored::Line::Checkpoint(note) => {
                        // The same checkpoint may be stored several times.
                        if notes.insert(Hash::of(&[&note])) {
                            store.keep(place, &note, request);
                        }
                    }
                    stored::Line::Empty => {}
                }
                Ok(())
            };
            if let Err(error) = stored::read(path, &mut line, read) {
                report.unchecked.push(format!("{error}. No stored line was compared"));
                return None;
            }
            // The lines of two files must not have neighbouring places.
            place += 3;
        }
        Some(store)
    }

    fn keep(&mut self, place: u64, note: &[u8], request: &Request) {
        self.report.counts.checkpoints.all += 1;
        let name = self.name_of_checkpoint(place);
        let signed = Signed::parse(note).map_err(|error| format!("{name}: {error}"));
        let signed = signed.and_then(|it| request.signed_by_key(&name, &it).map(|()| it));
        match signed {
            Ok(signed) => self.kept.push(Kept { place, checkpoint: signed.checkpoint }),
            Err(fault) => self.report.fault(fault),
        }
    }

    pub(super) fn name_of_checkpoint(&self, place: u64) -> String {
        format!("a checkpoint among the stored lines ({})", self.name(place))
    }

    /// Returns the file of a place and the number of its line.
    pub(crate) fn name(&self, place: u64) -> String {
        let file = self.files.iter().rfind(|(before, _)| *before < place);
        file.map_or_else(String::new, |(before, path)| {
            format!("{}:{}", path.display(), place - before)
        })
    }
}
