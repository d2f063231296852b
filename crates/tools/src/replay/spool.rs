//! A queue's directory as an input of a replay: the events that the outputs of a relay have not
//! finished, and the remarks for the operator.
//!
//! A directory is only read. The cursors of its outputs do not move, so the directory does not show
//! that its events were replayed.

use std::path::Path;

use super::{Settings, Unusable, resume};
use base::position::Position;
use base::words::counted_in_groups;
use queue::inspect::{CursorsFile, Directory, Error, Leftover, printable};

/// A queue's directory that was opened for a replay, and its remaining events: those that its
/// outputs, or the chosen output, have not finished.
#[derive(Debug)]
pub(super) struct Spool {
    pub(super) directory: Directory,
    pub(super) left: Leftover,
    /// The output whose unfinished events are sent. `None`: the events that at least one output has
    /// not finished.
    pub(super) output: Option<String>,
    /// The position with which this run begins.
    pub(super) start: Position,
    /// The record in the resume file when this run begins.
    pub(super) resumed: resume::Queue,
    /// The bytes of the lines that earlier runs have sent.
    pub(super) offset: u64,
    /// `true`: a relay was using the directory when the replay began.
    pub(super) is_in_use: bool,
}

/// The result of a replay for one queue's directory.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The queue's identity, from [`Leftover::queue`].
    pub queue: String,
    /// The number of events that were accepted, in all runs with the same resume file.
    pub events: u64,
    /// The position of the first remaining event when the first run began.
    pub begin: Position,
    /// The position up to which everything is done. Events before it were accepted, are among
    /// `missing` or `dropped`, or were skipped because a relay would not accept them. A relay that
    /// used the directory between two runs may have finished some of them.
    pub end: Position,
    /// The number of events before `end` that are damaged or missing.
    pub missing: u64,
    /// The number of events from `begin` to `end` that the relay had dropped and counted as lost.
    pub dropped: u64,
}

impl Spool {
    /// Opens a queue's directory and finds its remaining events. `saved` is the record in the
    /// resume file about this input.
    ///
    /// # Errors
    ///
    /// The directory can't be read, it has no queue or no such output, a relay is using it, or the
    /// resume file is about another input.
    pub(super) fn open(
        path: &Path,
        settings: &Settings,
        saved: Option<&resume::Read>,
    ) -> Result<Self, Unusable> {
        let name = path.display();
        let unusable = |error: Error| {
            Unusable(match matches!(error, Error::NoQueue(_)) {
                true => format!(
                    "{name} is a directory and holds no queue (it has no directory segments): \
                     name the queue.directory of a relay, or single files"
                ),
                false => error.to_string(),
            })
        };
        let directory = Directory::open(path).map_err(unusable)?;
        let is_in_use = match directory.is_in_use() {
            Ok(is_in_use) => is_in_use,
            Err(_) if settings.even_if_running => false,
            Err(error) => {
                return Err(Unusable(format!(
                    "{error}; so it is not known whether a relay is running with {name}, and \
                     --even-if-running goes on nevertheless"
                )));
            }
        };
        if is_in_use && !settings.even_if_running {
            return Err(Unusable(format!(
                "a relay is running with {name}, and delivers these events itself: stop it, or \
                 take --even-if-running, and its consumers may get every event twice"
            )));
        }
        let output = settings.output.clone();
        let left = directory.leftover(output.as_deref()).map_err(unusable)?;
        let mut spool = Self {
            resumed: resume::Queue::new(&left, output.clone()),
            start: if settings.only_looks { Position::START } else { left.begin },
            offset: 0,
            directory,
            left,
            output,
            is_in_use,
        };
        if let (Some(saved), Some(file)) = (saved, &settings.resume) {
            spool.resume(saved, &name.to_string(), &file.display().to_string())?;
        }
        Ok(spool)
    }

    /// Takes over the progress of earlier runs. `path` and `file` are the names of the directory
    /// and of the resume file, for the error.
    fn resume(&mut self, saved: &resume::Read, path: &str, file: &str) -> Result<(), Unusable> {
        let refused = |what: String| {
            Err(Unusable(format!(
                "{what}: name the same inputs in the same order, or another file for --resume"
            )))
        };
        let Some(queue) = &saved.queue else {
            let was = saved.path.display();
            return refused(format!("the resume file {file} is of the file {was}, not of {path}"));
        };
        if queue.identity != self.left.queue {
            let (was, is) = (printable(&queue.identity), &self.left.queue);
            return refused(format!(
                "the resume file {file} is of the queue {was}, but {path} holds the queue {is}"
            ));
        }
        if queue.output != self.output {
            let shown = |output: &Option<String>| match output {
                Some(name) => format!("--output {}", printable(name)),
                None => "all outputs, without --output".to_owned(),
            };
            let (was, is) = (shown(&queue.output), shown(&self.output));
            return refused(format!("the resume file {file} is of {was}, but this run is of {is}"));
        }
        if saved.lines > self.left.end.get() {
            let (got, end) = (saved.lines, self.left.end);
            return refused(format!(
                "the resume file {file} has got to position {got}, but {path} ends at {end}: the \
                 directory was set back, and what it holds now may be something else"
            ));
        }
        // A relay that has used the directory since then may be further than the replay.
        self.start = self.left.begin.max(Position::new(saved.lines));
        self.resumed = queue.clone();
        self.offset = saved.offset;
        Ok(())
    }

    /// Returns the number of this run's events that the relay had dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.left.dropped_in(self.start..self.left.end)
    }

    /// Returns the remarks before the events are sent, one sentence each. The first has the number
    /// of events.
    pub(super) fn remarks(&self, path: &Path) -> Vec<String> {
        let (left, name, mut told) = (&self.left, path.display(), Vec::new());
        let dropped = self.dropped();
        let events = left.end.saturating_since(self.start).saturating_sub(dropped);
        let of = self.output.as_deref().map(printable);
        let of = of.map_or_else(|| "at least one output".to_owned(), |of| format!("output {of}"));
        let (events, start) = (count(events, "event"), self.start);
        told.push(match left.cursors {
            CursorsFile::Whole | CursorsFile::Half => {
                format!("{name}: {events} that {of} has not finished, from position {start} on")
            }
            CursorsFile::Damaged | CursorsFile::Missing | CursorsFile::Newer(_) => format!(
                "{name}: all {events} that are stored, from position {start} on: the cursors file \
                 is {}, so nobody knows what the outputs have finished",
                left.cursors,
            ),
        });
        if left.cursors == CursorsFile::Half {
            told.push(format!(
                "{name}: one of the two slots of the cursors file is damaged; by the other one, \
                 events that an output has finished may be sent again"
            ));
        }
        if self.is_in_use {
            told.push(format!(
                "{name}: a relay is running with this directory; its consumers may get every \
                 event twice"
            ));
        }
        if self.output.is_none() {
            told.extend(self.repeated(path));
        }
        if dropped > 0 {
            told.push(format!(
                "{name}: {} cannot be sent: the relay itself had dropped them because its queue \
                 was full, and counted them as lost",
                count(dropped, "event"),
            ));
        }
        let (files, bytes) = left.quarantine;
        if files > 0 {
            told.push(format!(
                "{name}: {} with copies of damaged records in quarantine/ ({bytes} bytes) is not \
                 sent; the relay has counted their events as lost",
                count(files, "file"),
            ));
        }
        let (files, bytes) = left.dead_letters;
        if files > 0 {
            told.push(format!(
                "{name}: {} of dead letters ({bytes} bytes) is not sent; `replay {name}/\
                 dead-letter/* --url …` sends them",
                count(files, "file"),
            ));
        }
        if left.aside > 0 {
            told.push(format!("{name}: {}", aside_words(left.aside, path)));
        }
        told
    }

    /// Returns a sentence for each output that has already finished some of the events.
    fn repeated(&self, path: &Path) -> Vec<String> {
        let ahead = self.left.outputs.iter().filter(|(_, at)| *at > self.start);
        ahead
            .map(|(name, at)| {
                format!(
                    "{}: output {} gets {} a second time: it has finished everything before \
                     position {at}. With --output NAME, only what NAME has not finished is sent",
                    path.display(),
                    printable(name),
                    count((*at - self.start) - self.left.dropped_in(self.start..*at), "event"),
                )
            })
            .collect()
    }
}

pub(super) fn aside_words(events: u64, path: &Path) -> String {
    format!(
        "set aside by outputs and not sent: {}; `replay {}/set-aside/*.json --url …` sends them",
        count(events, "event"),
        path.display(),
    )
}

/// Returns a number with its noun, such as "1 event" or "1,200 events".
pub(super) fn count(number: u64, what: &str) -> String {
    counted_in_groups(number, what, &format!("{what}s"))
}
