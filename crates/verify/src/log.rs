//! The check of a log and of its checkpoints.

use std::collections::BTreeMap;
use std::io;

use super::bounds::excess;
use super::events::Events;
use super::report::{Report, time};
use super::request::Request;
use super::runs::{Row, Said};
use base::disk::named;
use base::words::counted;
use evidence_log::entry::{Entry, Stamp, Started, now};
use evidence_log::head::HeadFile;
use evidence_log::layout::HEAD;
use evidence_log::reader::{Directory, Files, Log, ReadError, is_foreign};
use evidence_log::tlog::checkpoint::{Checkpoint, Signed};
use evidence_log::tlog::merkle::{Frontier, Hash, Head};
use evidence_log::tlog::tile::{
    BUNDLE_BYTES_MAX, CHECKPOINT, Content, Growing, Tile, WIDTH, last_tiles,
};

/// The maximum number of faults of a published log. If there are more, no further bundle is read.
const FAULTS_MAX: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The last entry is a stop, and the directory has nothing newer.
    Stopped,
    /// A relay is using the directory, or publishing the log.
    Live,
    /// The relay was killed, or the directory is a copy of one in use: more events may have been
    /// received.
    Open,
}

/// The relation between the entries and the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Entries {
    /// The entries were not read, or do not match the checkpoint.
    #[default]
    Wrong,
    /// The files end before the checkpoint.
    Torn,
    /// All entries exist and match the checkpoint.
    Whole,
}

/// The check of one log: its files, and what its checkpoints prove. [`Events`] has the statements
/// of its entries about events.
pub(crate) struct Check<'a> {
    pub request: &'a Request,
    pub report: Report,
    /// The log's directory. `None` for a published log.
    pub directory: Option<&'a Directory>,
    /// The time at which the check began, if a relay is using the directory or publishing the log.
    live_at: Option<u64>,
    published: Option<Signed>,
    /// The number of entries after the published checkpoint.
    uncosigned: u64,
    pub entries: Entries,
    /// `true`: a stored checkpoint or [`HEAD`] covers more entries than the log has.
    pub goes_on: bool,
    /// The time of the newest cosignature of each witness, in seconds since 1970.
    pub cosigned: BTreeMap<String, u64>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(
        request: &'a Request,
        directory: Option<&'a Directory>,
        is_live: bool,
    ) -> Self {
        let (report, published, entries) = Default::default();
        let (goes_on, uncosigned, cosigned) = Default::default();
        let live_at = is_live.then(now);
        Self {
            request,
            report,
            directory,
            live_at,
            published,
            uncosigned,
            entries,
            goes_on,
            cosigned,
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.entries == Entries::Whole
    }

    /// Checks the checkpoint, the tiles and the entries of the log, and passes the entries to
    /// `events`. Returns the log if its checkpoint can be read.
    pub(crate) fn log(&mut self, files: &'a dyn Files, events: &mut Events<'a>) -> Option<Log<'a>> {
        self.report.counts.checkpoints.all += 1;
        let log = Log::open(files).map_err(|error| self.no_log(&error)).ok()?;
        let own = &log.signed.clone();
        self.published = Some(own.clone());
        self.remembered(own);
        let log = self.up_to_head(log);
        // The line hashes are read after the signed note: they are durable before a note covers
        // their entries.
        events.hashes.read();
        match self.directory.map_or(Ok(None), |it| it.rolled_back(log.origin())) {
            Ok(None) => {}
            Ok(Some(why)) => {
                self.report.fault(format_args!("the relay has recorded nothing more: {why}"));
            }
            Err(error) => self.finding(&error),
        }
        let signed = self.request.signed_by_key("checkpoint", own);
        let is_signed = signed.map_err(|text| self.report.fault(text)).is_ok();
        let is_cosigned = self.cosignatures(own);
        self.entries = self.entries(&log, events);
        events.cut(self.request, &mut self.report);
        // Faults outside of the requested time are removed.
        let (request, period) = (self.request, &events.period);
        self.report.faults.retain(|fault| match (fault.position, fault.at) {
            (Some(position), _) if period.contains(&position) => true,
            (_, Some(at)) => request.asks_about(at, fault.to.unwrap_or(at)),
            (_, None) => true,
        });
        if is_signed && is_cosigned && self.is_whole() {
            self.report.counts.checkpoints.good += 1;
            self.hear_witnesses(own);
        }
        Some(log)
    }

    /// Compares the checkpoint with its copy next to the log. The relay writes the checkpoint
    /// first.
    fn remembered(&mut self, Signed { checkpoint: own, .. }: &Signed) {
        let known = self.directory.and_then(Directory::remembered).map(|known| known.checkpoint);
        let is_newer =
            |known: &Checkpoint| known.origin == own.origin && known.head.size > own.head.size;
        if self.live_at.is_none() && known.as_ref().is_some_and(is_newer) {
            self.report.unchecked.push(
                "evidence-checkpoint beside the log is newer than checkpoint: an older checkpoint \
                 was put back, or the files were copied while the relay was running"
                    .to_owned(),
            );
        }
    }

    /// Returns the log with the entries after its checkpoint that the file [`HEAD`] covers. Returns
    /// `log`, which ends with its checkpoint, if there is no such file, if it is not valid, or if
    /// files of these entries are missing.
    fn up_to_head(&mut self, log: Log<'a>) -> Log<'a> {
        let file = match self.directory.map_or(Ok(None), Directory::head) {
            Ok(Some(file)) => file,
            Ok(None) => return log,
            Err(error) => {
                self.finding(&error);
                return log;
            }
        };
        let size = log.size();
        let found = self.head_of(&file, &log).and_then(|newest| {
            let Some(newest) = newest else { return Ok(None) };
            let bundle = last_tiles(newest.tiled()).next().map(|bundle| newest.files.tile(bundle));
            let root = newest.root_at(newest.size());
            match bundle.transpose().and_then(|bundle| Ok((bundle, root?))) {
                Ok((bundle, root)) if bundle != Some(None) => {
                    if root != newest.head().root {
                        return Err(format!("{HEAD} was signed over other entries"));
                    }
                    contains(CHECKPOINT, log.head(), &newest).map(|()| Some(newest))
                }
                _ => {
                    // The files may have been copied one after the other.
                    self.goes_on = true;
                    if self.live_at.is_none() {
                        self.report.unchecked.push(format!(
                            "the entries from {size} on: {HEAD} covers {} entries, and their files \
                             are missing. Was the directory copied while the relay was running? \
                             `evidence copy` makes a whole copy",
                            newest.size()
                        ));
                    }
                    Ok(None)
                }
            }
        });
        match found {
            Ok(newest) => newest.unwrap_or(log),
            Err(text) => {
                self.report.fault(text);
                log
            }
        }
    }

    /// Returns the log with all entries that the file [`HEAD`] covers. `None`: it covers no more
    /// than the checkpoint does. The error says what is wrong with the file.
    fn head_of(&self, file: &[u8], log: &Log<'a>) -> Result<Option<Log<'a>>, String> {
        let head = HeadFile::parse(file).map_err(|error| format!("{HEAD}: {error}"))?;
        let Checkpoint { origin, .. } = &head.signed.checkpoint;
        if origin != log.origin() {
            return Err(format!("{HEAD} is of {origin}, and the log is that of {}", log.origin()));
        }
        self.request.signed_by_key(HEAD, &head.signed)?;
        let own = head.signed.checkpoint.head;
        match log.up_to(head) {
            // The file was read before the relay replaced it, or copied before the checkpoint.
            None => contains(HEAD, own, log).map(|()| None),
            newest => Ok(newest),
        }
    }

    /// Reports that the checkpoint is missing or can't be read.
    fn no_log(&mut self, error: &ReadError) {
        if !matches!(error, ReadError::NoCheckpoint) {
            return self.unread(error);
        }
        let remembered = self.directory.and_then(Directory::remembered);
        let is_asked = |signed: &Signed| {
            let origin = &signed.checkpoint.origin;
            self.request.keys.iter().all(|key| key.name() == origin)
        };
        let is_gone = remembered.is_some_and(|signed| is_asked(&signed));
        let text = match is_gone {
            true => {
                "the log has no checkpoint, although the relay had signed one: it is in \
                 evidence-checkpoint beside the log"
            }
            false => "the log has no checkpoint yet: nothing is proven",
        };
        self.report.found(is_gone, text);
    }

    /// Compares the given checkpoints, and those of witnesses, with the log. `others` are the
    /// origins of other checked logs, to which some of the checkpoints belong.
    pub(crate) fn given(&mut self, log: &Log<'_>, others: &[String]) {
        for (name, note) in &self.request.checkpoints {
            let of_other = |signed: Signed| others.contains(&signed.checkpoint.origin);
            if !Signed::parse(note).is_ok_and(of_other) {
                self.checkpoint(name, note, log);
            }
        }
        for (url, note) in &self.request.witnessed {
            self.newest_of_witness(url, note, log);
        }
        if let Some(published) = self.published.take() {
            self.judge_witnesses(&published);
            self.uncosigned = log.size().saturating_sub(published.checkpoint.head.size);
        }
    }

    pub(crate) fn ending(&self, events: &Events<'_>) -> Ending {
        let is_last = self.is_whole() && !self.goes_on;
        match is_last && events.history.runs.is_stopped() {
            // A relay that was started again may not have signed its start yet.
            _ if self.live_at.is_some() => Ending::Live,
            true => Ending::Stopped,
            false => Ending::Open,
        }
    }

    /// Checks a checkpoint that somebody has kept, and compares it with the log.
    pub(crate) fn checkpoint(&mut self, name: &str, note: &[u8], log: &Log<'_>) {
        self.report.counts.checkpoints.all += 1;
        let signed = Signed::parse(note).map_err(|error| format!("{name}: {error}"));
        match signed.and_then(|kept| self.compare_kept(name, &kept, log).map(|()| kept)) {
            Ok(kept) => {
                self.report.counts.checkpoints.good += 1;
                self.hear_witnesses(&kept);
            }
            Err(text) => self.report.fault(text),
        }
    }

    /// Compares a kept checkpoint with the log. The error says what is wrong.
    fn compare_kept(&self, name: &str, signed: &Signed, log: &Log<'_>) -> Result<(), String> {
        let (Checkpoint { origin, head }, own) = (&signed.checkpoint, &log.signed.checkpoint);
        if *origin != own.origin {
            let own = &own.origin;
            return Err(format!(
                "{name} is a checkpoint of {origin}, and the log is that of {own}"
            ));
        }
        self.request.signed_by_key(name, signed)?;
        let (size, own) = (head.size, own.head.size);
        if size > own {
            return Err(format!(
                "{name} covers {size} entries, and the log has only {own}: its end was cut off"
            ));
        }
        contains(name, *head, log)
    }

    fn entries(&mut self, log: &Log<'_>, events: &mut Events<'_>) -> Entries {
        let mut tiles = Growing::default();
        let mut frontier = Frontier::default();
        for entry in log.entries() {
            let (index, bytes) = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    return self.torn(log, frontier.size(), &error);
                }
            };
            let faults = self.report.faults.count();
            let is_useless = self.directory.is_none() && faults > FAULTS_MAX;
            if index.is_multiple_of(WIDTH) && (events.are_too_many() || is_useless) {
                let text = format!("the entries from {index} on: too much is wrong before them");
                self.report.unchecked.push(text);
                return Entries::Wrong;
            }
            match Entry::parse(&bytes) {
                Ok(entry) if let Some(excess) = excess(&entry) => {
                    self.report.fault(format_args!("entry {index} {excess}"));
                }
                Ok(entry) => {
                    let said = Said::new(index, &entry, Stamp::parse(&bytes));
                    self.previous(said, &frontier);
                    events.feed(said, &mut self.report.faults);
                }
                Err(error) => self.report.fault(format_args!("entry {index} is none: {error}")),
            }
            let is_tiled = index < log.tiled();
            frontier.push(Hash::of_leaf(&bytes), &mut |level, hash| {
                if is_tiled {
                    tiles.push(level, hash);
                }
            });
            for (tile, hashes) in tiles.whole.drain(..) {
                let is_same = self.compare_tile(log, tile, &hashes, true);
                if !is_same && self.directory.is_none() {
                    // A server can send any number of such entries, so the check ends here.
                    let text = format!("the entries from {} on", index + 1);
                    self.report.unchecked.push(text);
                    return Entries::Wrong;
                }
            }
        }
        let is_stopped = events.history.runs.is_stopped();
        for (tile, hashes) in tiles.partial() {
            self.compare_tile(log, tile, hashes, is_stopped);
        }
        if let Err(error) = self.compare_older(log.tiled()) {
            self.finding(&error);
        }
        let is_signed = frontier.root() == log.head().root;
        if !is_signed {
            let text = "the entries are not those that the checkpoint was signed over";
            self.report.fault(text);
        }
        let unknown = events.history.end(&mut self.report.faults);
        self.report.unchecked.extend(unknown);
        self.report.notes.append(&mut events.history.notes);
        self.report.notes.extend(events.history.changed.take());
        if is_signed { Entries::Whole } else { Entries::Wrong }
    }

    /// Reports that the entries from an index on can't be read. In the copy of a directory in use,
    /// the files may be older than the checkpoint.
    fn torn(&mut self, log: &Log<'_>, from: u64, error: &ReadError) -> Entries {
        let index = from / WIDTH;
        let bundle = |width| Tile { content: Content::Entries, index, width };
        let width = log.size().saturating_sub(index * WIDTH).min(WIDTH);
        let is_missing = matches!(log.files.tile(bundle(width)), Ok(None));
        let is_older = index > 0 || matches!(log.files.tile(bundle(1)), Ok(Some(_)));
        let is_torn = is_missing && is_older;
        if !is_torn {
            self.unread(error);
        }
        self.report.unchecked.push(format!(
            "the entries from {from} on: {error}. The checkpoint covers {} entries. Was the \
             directory copied while the relay was running? `evidence copy` makes a whole copy",
            log.size()
        ));
        if is_torn { Entries::Torn } else { Entries::Wrong }
    }

    /// Compares a tile with the hashes that it must have. Returns `true` if they are the same. If
    /// `must_exist` is `false`, a missing tile is not a fault.
    fn compare_tile(
        &mut self,
        log: &Log<'_>,
        tile: Tile,
        expected: &[Hash],
        must_exist: bool,
    ) -> bool {
        // A running relay may be replacing the file: a second attempt follows.
        let found = log.hashes(tile).or_else(|_| log.hashes(tile));
        match found {
            Ok(hashes) if hashes == expected => return true,
            Ok(_) => {
                let text = format!("{} has other hashes than the entries", tile.path());
                self.report.fault(text);
            }
            Err(error) if !must_exist && log.files.tile(tile).is_ok() => {
                self.report.unchecked.push(format!("{error}; its entries are there"));
            }
            Err(error) => self.unread(&error),
        }
        false
    }

    /// Reports a file of the directory that can't be read. This is a fault if no relay makes such a
    /// file, for example a symlink, a directory, a pipe, or a file of an impossible size.
    pub(crate) fn finding(&mut self, error: &io::Error) {
        self.report.found(is_foreign(error), error);
    }

    /// Reports that a file can't be read. This is a fault only if the file itself is wrong.
    fn unread(&mut self, error: &ReadError) {
        self.report.found(error.is_of_the_log(), error);
    }

    /// Checks that an entry about a start names the size and the root of the log before this entry.
    fn previous(&mut self, Said { index, entry, at, .. }: Said<'_>, frontier: &Frontier) {
        let Entry::Start(Started { previous: Head { size, root }, .. }) = entry else { return };
        if (*size, *root) != (index, frontier.root()) {
            let text = format!(
                "entry {index} says that the relay found {size} entries, and another log is before \
                 it"
            );
            self.report.faults.add(Some(at), text);
        }
    }

    /// Compares the partial tiles of older checkpoints, which the relay keeps for a while, with the
    /// newer tiles that begin with the same hashes or entries.
    fn compare_older(&mut self, size: u64) -> io::Result<()> {
        let Some(files) = self.directory else { return Ok(()) };
        for last in last_tiles(size) {
            let before = last.index.checked_sub(1);
            let before = before.map(|index| Tile { index, width: WIDTH, ..last });
            for newer in before.into_iter().chain([last]) {
                let Some(grown) = files.tile(newer)? else { continue };
                let widths = files.partial_widths(newer)?.into_iter();
                for width in widths.filter(|width| (1..newer.width).contains(width)) {
                    let tile = Tile { width, ..newer };
                    let path = tile.path();
                    let older = files.read(&path, BUNDLE_BYTES_MAX).map_err(named(&path))?;
                    if let Some(older) = older
                        && tile.of_wider(&grown, newer.width).is_ok_and(|part| part != older)
                    {
                        let text = format!("{path} is not the beginning of {}", newer.path());
                        self.report.fault(text);
                    }
                }
            }
        }
        Ok(())
    }

    /// Completes the report: losses, missing line hashes, entries that no witness has seen, runs,
    /// and silence.
    pub(crate) fn judge(&mut self, events: &mut Events<'_>) {
        for error in std::mem::take(&mut events.hashes.unread) {
            self.finding(&error);
        }
        if !self.is_whole() {
            return;
        }
        events.losses(self.request, &mut self.report);
        self.tell_uncosigned();
        if self.directory.is_none() {
            let text = "the line hashes are not published: no line was compared";
            self.report.notes.push(text.to_owned());
        } else {
            events.tell_gone(self.ending(events) == Ending::Stopped, &mut self.report);
        }
        let runs = &events.history.runs;
        let is_asked = |row: &&Row| self.request.asks_about(row.from, row.to);
        let texts = |rows: &[Row]| -> Vec<_> {
            rows.iter().filter(is_asked).map(|row| row.text.clone()).collect()
        };
        self.report.runs.extend(texts(&runs.rows));
        self.report.notes.extend(texts(&runs.steps));
        self.report.notes.extend(events.extent());
        let Some(at) = runs.last_at.map(time) else { return };
        match self.is_silent(events) {
            true => self.report.unchecked.push(format!(
                "the last entry is of {at}, although the relay is running: it records nothing any \
                 more, or a clock was set since then"
            )),
            false => self.report.notes.push(format!("the last entry is of {at}")),
        }
    }

    /// Returns `true` if a running relay has recorded nothing for too long.
    pub(crate) fn is_silent(&self, events: &Events<'_>) -> bool {
        let is_asked = |at: u64| self.request.until.is_none_or(|until| at < until);
        self.live_at.is_some_and(|at| is_asked(at) && events.history.runs.is_silent(at))
    }

    /// Reports the entries that no witness can have cosigned, because they are after the published
    /// checkpoint.
    fn tell_uncosigned(&mut self) {
        if self.request.witnesses.is_empty() || self.uncosigned == 0 {
            return;
        }
        let text = format!(
            "{} newer than the checkpoint: signed by the key, and by no witness",
            counted(self.uncosigned, "entry is", "entries are")
        );
        match self.live_at.is_some() {
            true => self.report.notes.push(text),
            false => self.report.unchecked.push(text),
        }
    }
}

/// Checks that the log contains the checkpoint `kept`, which must not cover more entries than the
/// log has. The error says what is wrong.
pub(crate) fn contains(name: &str, kept: Head, log: &Log<'_>) -> Result<(), String> {
    let size = kept.size;
    match log.root_at(size) {
        Ok(root) if root == kept.root => Ok(()),
        Ok(_) => Err(format!(
            "{name} has another root for the first {size} entries than the log: there are two logs \
             of one origin"
        )),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
