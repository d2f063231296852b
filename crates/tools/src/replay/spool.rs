//! The directory of a queue as an input of a replay: the events that the outputs of a relay have
//! not finished, and what the operator is told about them.
//!
//! A directory is only read. The cursors of its outputs stay where they are, so the directory does
//! not show that its events were replayed. The resume file and the exit status show that.

use std::path::{Path, PathBuf};

use super::{Settings, Unusable, resume};
use base::position::Position;
use base::words::grouped;
use queue::inspect::{CursorsFile, Directory, Error, Leftover, printable};

/// A queue's directory that was opened for a replay, and the events in it that are left over: those
/// that its outputs, or the chosen one of them, have not finished.
#[derive(Debug)]
pub(super) struct Spool {
    pub(super) directory: Directory,
    pub(super) left: Leftover,
    /// The name of the output whose unfinished events are sent. `None`: an event is sent if at
    /// least one output has not finished it.
    pub(super) output: Option<String>,
    /// The position of the first event that this run sends.
    pub(super) start: Position,
    /// The record about this directory in the resume file, as it is when this run begins.
    pub(super) resumed: resume::Queue,
    /// The number of bytes in the lines that earlier runs have sent.
    pub(super) offset: u64,
    /// `true`: a relay was running with this directory when the replay began.
    pub(super) is_in_use: bool,
}

/// The result of a replay for one queue's directory.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The path of the directory.
    pub directory: PathBuf,
    /// The queue's identity, as [`Leftover::queue`] says it.
    pub queue: String,
    /// The number of events that the receiver has accepted without a gap, in this run and in
    /// earlier ones with the same resume file.
    pub events: u64,
    /// The position of the first event that was left over when the first run began.
    pub begin: Position,
    /// The position up to which everything is done. Each event from `begin` to `end` was accepted,
    /// is one of `missing` or `dropped`, or was skipped because a relay would not accept it.
    pub end: Position,
    /// The number of events before `end` that are damaged or missing in the directory.
    pub missing: u64,
    /// The number of events from `begin` to `end` that the relay itself had dropped and counted as
    /// lost.
    pub dropped: u64,
}

impl Spool {
    /// Opens a queue's directory and finds its events that are left over. `saved` is the record of
    /// the resume file about this input; `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// [`Unusable`] says why the directory can't be used: it holds no queue, a relay is running
    /// with it, it has no such output, or the resume file is about something else.
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
    /// and of the resume file for an error.
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
        // A relay that has run with the directory since then may have got further than the replay.
        self.start = self.left.begin.max(Position::new(saved.lines));
        self.resumed = queue.clone();
        self.offset = saved.offset;
        Ok(())
    }

    /// Returns the number of events that the relay itself has dropped, among those that this run
    /// would send.
    pub(super) fn dropped(&self) -> u64 {
        self.left.dropped_in(self.start..self.left.end)
    }

    /// Returns what the operator should know before the events are sent: first how many events
    /// are sent, then one sentence for each line.
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
            CursorsFile::Damaged | CursorsFile::Missing => format!(
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

    /// Returns a sentence for each output that has finished a part of the events that are sent.
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

/// Says that this many events that outputs have set aside are not sent, and how to send them.
pub(super) fn aside_words(events: u64, path: &Path) -> String {
    format!(
        "set aside by outputs and not sent: {}; `replay {}/set-aside/*.json --url …` sends them",
        count(events, "event"),
        path.display(),
    )
}

/// Returns a number of things as text, such as "1 event" or "1,200 events".
pub(super) fn count(number: u64, what: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{} {what}{end}", grouped(number))
}
