//! The check of a log and of its checkpoints.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::bounds::{FACTS_MAX, excess};
use super::hashes::{Found, Hashes};
use super::history::History;
use super::left::Left;
use super::positions::Positions;
use super::report::{Report, time};
use super::request::Request;
use super::runs::{Row, Said};
use crate::evidence::entry::{Delivered, Entry, Offset, QUEUE, Stamp, Started, now};
use crate::evidence::reader::{Directory, Files, Log, ReadError, is_foreign};
use crate::tlog::checkpoint::{Checkpoint, Signed};
use crate::tlog::merkle::{Frontier, Hash, Head, root_at};
use crate::tlog::tile::{BUNDLE_BYTES_MAX, Content, Growing, Tile, WIDTH, last_tiles};

/// The reasons of losses that `--allow-lost` does not allow: the queue's files were not what the
/// relay had written.
const NEVER_ALLOWED: [&str; 3] = ["damaged", "missing", "tampered"];

/// The maximum number of faults of a published log. After that, no further entries are fetched.
const FAULTS_MAX: u64 = 1000;

/// How a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The last entry is a stop, and nothing in the directory is newer.
    Stopped,
    /// A relay is running with the directory.
    Live,
    /// The relay was killed, or the directory is a copy of one in use: more events may have come
    /// in.
    Open,
}

/// A range of positions that an entry brought into the log.
pub(super) struct Span {
    pub(super) end: u64,
    /// The index of the entry.
    index: u64,
    /// The time of the entry.
    at: u64,
    /// The root over the line hashes, if they are there.
    pub(super) root: Option<Hash>,
}

/// The events that are asked about: all, or those of a period.
#[derive(Default)]
pub(super) struct Asked {
    /// The range from the first to the last of these events.
    pub(super) positions: Range<u64>,
    /// The events at these positions that came in.
    pub(super) events: Positions,
}

/// The journal. It is not signed, so it proves nothing.
#[derive(Default)]
pub(super) struct Journal {
    /// The entries that no checkpoint covers.
    pub(super) entries: Vec<Entry>,
    /// `true`: the journal begins after the end of the log, and entries between them are missing.
    has_gap: bool,
}

/// Whether the entries are those over which the checkpoint was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Entries {
    /// The entries were not read, or something is wrong with them.
    #[default]
    Wrong,
    /// The files end before the checkpoint does.
    Torn,
    /// All entries are there and match.
    Whole,
}

/// The check of one log.
pub(super) struct Check<'a> {
    pub(super) request: &'a Request,
    pub(super) report: Report,
    pub(super) history: History,
    /// The time at which the check began, if a relay is using the directory or publishing the log.
    live_at: Option<u64>,
    pub(super) hashes: Hashes<'a>,
    /// The ranges, by their first position.
    pub(super) spans: BTreeMap<u64, Span>,
    pub(super) asked: Asked,
    pub(super) left: Left,
    pub(super) journal: Journal,
    pub(super) entries: Entries,
    /// `true`: the consumer has a checkpoint over more entries than the log has.
    pub(super) goes_on: bool,
    /// The time of the newest cosignature of each witness, in seconds since 1970.
    pub(super) cosigned: BTreeMap<String, u64>,
}

impl<'a> Check<'a> {
    /// `evidence` is the directory with the line hashes; `None` if there are none, as in a
    /// published log. `is_live`: a relay is using the directory or publishing the log.
    pub(super) fn new(
        request: &'a Request,
        evidence: Option<&'a Directory>,
        is_live: bool,
    ) -> Self {
        Self {
            request,
            live_at: is_live.then(now),
            hashes: Hashes::of(evidence),
            report: Report::default(),
            history: History::default(),
            spans: BTreeMap::new(),
            asked: Asked::default(),
            left: Left::by(&request.outputs),
            journal: Journal::default(),
            entries: Entries::default(),
            goes_on: false,
            cosigned: BTreeMap::new(),
        }
    }

    /// Returns `true` if the entries are those that the checkpoint was signed over.
    pub(super) fn is_whole(&self) -> bool {
        self.entries == Entries::Whole
    }

    /// Checks the checkpoint, the tiles and the entries of the log, and the checkpoints that were
    /// given. `journal` has the entries that no checkpoint covers yet. Returns the log if it has a
    /// checkpoint.
    pub(super) fn log(
        &mut self,
        files: &'a dyn Files,
        journal: Vec<(u64, Vec<u8>)>,
    ) -> Option<Log<'a>> {
        self.report.counts.checkpoints.all += 1;
        let log = match Log::open(files) {
            Ok(log) => log,
            Err(ReadError::NoCheckpoint) => {
                let remembered = self.hashes.directory.and_then(Directory::remembered);
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
                return None;
            }
            Err(error) => {
                self.unread(&error);
                return None;
            }
        };
        // Line hashes are durable before the checkpoint over their entries, so they are read after
        // it.
        self.hashes.read();
        let own = log.signed.clone();
        match self.hashes.directory.map(|it| it.rolled_back(log.origin())).transpose() {
            Ok(Some(Some(why))) => {
                let text = format!("the relay has recorded nothing more: {why}");
                self.report.fault(text);
            }
            Ok(_) => {}
            Err(error) => self.finding(&error),
        }
        let signed = self.request.signed_by_key("checkpoint", &own);
        let is_signed = signed.map_err(|text| self.report.fault(text)).is_ok();
        let is_cosigned = self.cosignatures(&own);
        let mut faults = std::mem::take(&mut self.report.faults);
        self.entries = self.entries(&log);
        self.cut();
        // Faults outside of the time that is asked about are removed.
        let (request, asked) = (self.request, &self.asked.positions);
        self.report.faults.retain(|fault| match (fault.position, fault.at) {
            (Some(position), _) if asked.contains(&position) => true,
            (_, Some(at)) => request.asks_about(at, fault.to.unwrap_or(at)),
            (_, None) => true,
        });
        faults.append(std::mem::take(&mut self.report.faults), |text| text);
        self.report.faults = faults;
        if is_signed && is_cosigned && self.is_whole() {
            self.report.counts.checkpoints.good += 1;
            self.hear_witnesses(&own);
        }
        let size = log.size();
        self.journal.has_gap = journal.first().is_some_and(|(first, _)| *first > size);
        let newer = (size..).zip(journal.into_iter().skip_while(|(index, _)| *index < size));
        let newer = newer.take_while(|(expected, (index, _))| expected == index);
        let newer = newer.map_while(|(_, (_, entry))| Entry::parse(&entry).ok());
        self.journal.entries = newer.collect();
        Some(log)
    }

    /// Checks the checkpoints that were given, and those that witnesses have, against the log.
    /// `others` are the origins of other logs that are checked, which have checkpoints too.
    pub(super) fn given(&mut self, log: &Log<'_>, others: &[String]) {
        for (name, note) in &self.request.checkpoints {
            let of_other = |signed: Signed| others.contains(&signed.checkpoint.origin);
            if !Signed::parse(note).is_ok_and(of_other) {
                self.checkpoint(name, note, log);
            }
        }
        for (url, note) in &self.request.witnessed {
            self.newest_of_witness(url, note, log);
        }
        self.judge_witnesses(&log.signed);
    }

    /// Returns how the log ends.
    pub(super) fn ending(&self) -> Ending {
        let is_last = self.is_whole() && !self.goes_on;
        match self.history.runs.is_stopped() && is_last && self.journal.entries.is_empty() {
            // A relay that was started again may not have signed its start yet.
            _ if self.live_at.is_some() => Ending::Live,
            true => Ending::Stopped,
            false => Ending::Open,
        }
    }

    /// Finds the positions that are asked about: from the first to the last event of the period.
    /// All events between them count too, because the clock may have been wrong.
    fn cut(&mut self) {
        let Request { since, until, .. } = *self.request;
        let mut spans = self.spans.iter();
        let first = spans.find(|(_, span)| since.is_none_or(|since| since <= span.at));
        let last = self.spans.iter().rfind(|(_, span)| until.is_none_or(|until| span.at <= until));
        if let (Some((first, _)), Some((_, last))) = (first, last) {
            self.asked.positions = *first..last.end;
        }
        let is_after = since.zip(self.history.runs.last_at).is_some_and(|(it, last)| last < it);
        let is_before =
            until.zip(self.spans.values().next()).is_some_and(|(it, span)| it < span.at);
        if is_after || is_before {
            let text = "the log has nothing of the time that is asked about (--since, --until)";
            self.report.unchecked.push(text.to_owned());
        }
        let Asked { positions, events } = &mut self.asked;
        let accepted = self.history.accepted.within(positions.clone());
        accepted.for_each(|range| events.insert(range));
    }

    /// Checks a checkpoint that somebody has kept, and compares it with the log.
    pub(super) fn checkpoint(&mut self, name: &str, note: &[u8], log: &Log<'_>) {
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

    /// Compares a checkpoint that somebody has kept with the log. Returns what is wrong.
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

    /// Checks the entries, and the tiles over them.
    fn entries(&mut self, log: &Log<'_>) -> Entries {
        let mut tiles = Growing::default();
        let mut frontier = Frontier::default();
        for entry in log.entries() {
            let (index, bytes) = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    return self.torn(log, frontier.size(), &error);
                }
            };
            if index.is_multiple_of(WIDTH) && self.is_too_much() {
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
                    self.entry(said);
                }
                Err(error) => self.report.fault(format_args!("entry {index} is none: {error}")),
            }
            let made = &mut |level, hash| tiles.push(level, hash);
            frontier.push(Hash::of_leaf(&bytes), made);
            for (tile, hashes) in tiles.whole.drain(..) {
                let is_same = self.compare_tile(log, tile, &hashes, true);
                if !is_same && self.hashes.are_absent() {
                    // A server can send any number of such entries, so the check ends here.
                    let text = format!("the entries from {} on", index + 1);
                    self.report.unchecked.push(text);
                    return Entries::Wrong;
                }
            }
        }
        let is_stopped = self.history.runs.is_stopped();
        for (tile, hashes) in tiles.partial() {
            self.compare_tile(log, tile, hashes, is_stopped);
        }
        if let Err(error) = self.compare_older(log.size()) {
            self.finding(&error);
        }
        let is_signed = frontier.root() == log.head().root;
        if !is_signed {
            let text = "the entries are not those that the checkpoint was signed over";
            self.report.fault(text);
        }
        let unknown = self.history.end(&mut self.report.faults);
        self.report.unchecked.extend(unknown);
        self.report.notes.append(&mut self.history.notes);
        if is_signed { Entries::Whole } else { Entries::Wrong }
    }

    /// Reports that the entries from an index on can't be read. In a copy of a directory in use,
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

    /// Compares a tile with the hashes that it must have. Returns `true` if they are equal. With
    /// `is_there`, a missing tile is a fault.
    fn compare_tile(
        &mut self,
        log: &Log<'_>,
        tile: Tile,
        expected: &[Hash],
        is_there: bool,
    ) -> bool {
        // A running relay may replace the file at this moment.
        let found = log.hashes(tile).or_else(|_| log.hashes(tile));
        match found {
            Ok(hashes) if hashes == expected => return true,
            Ok(_) => {
                let text = format!("{} has other hashes than the entries", tile.path());
                self.report.fault(text);
            }
            Err(error) if !is_there && log.files.tile(tile).is_ok() => {
                self.report.unchecked.push(format!("{error}; its entries are there"));
            }
            Err(error) => self.unread(&error),
        }
        false
    }

    /// Reports a file of the directory that can't be read. It is a fault if no relay makes such a
    /// file: a symlink, a directory or a pipe in its place, or one of an impossible size.
    pub(super) fn finding(&mut self, error: &io::Error) {
        self.report.found(is_foreign(error), error);
    }

    /// Reports that a file can't be read. This is a fault only if the file itself is wrong.
    fn unread(&mut self, error: &ReadError) {
        self.report.found(error.is_of_the_log(), error);
    }

    /// Returns `true` if a log takes too much memory, or if a published log has so many faults that
    /// reading the rest is useless.
    fn is_too_much(&self) -> bool {
        let faults = self.report.faults.count();
        let facts = self.history.facts() + self.hashes.gone.facts();
        facts > FACTS_MAX || self.hashes.are_absent() && faults > FAULTS_MAX
    }

    /// Checks that an entry about a start names the size and the root of the log before it.
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

    fn entry(&mut self, said: Said<'_>) {
        if !self.history.feed(said, &mut self.report.faults) {
            return;
        }
        let Said { index, entry, at, .. } = said;
        if let Entry::Delivered(delivered) = entry {
            return self.as_sent(delivered);
        }
        let Some(Range { start, end }) = entry.in_queue() else { return };
        let mut span = Span { end, index, at, root: None };
        if let Entry::Accepted { count, root, .. } = entry {
            match self.hashes.range(None, start, *root) {
                Found::Range(found) if found.end() == end => span.root = Some(*root),
                Found::Range(_) | Found::Changed => {
                    let text = format!("the line hashes of {count} events were changed");
                    self.hashes.changed.push((start, at, text));
                }
                Found::Gone => {}
            }
            if span.root.is_none() {
                self.hashes.gone.insert(start..end);
            }
        }
        self.spans.insert(start, span);
    }

    /// Takes an entry about deliveries. If it has a root, because a filter has changed or dropped
    /// events, compares the hashes of the lines that were sent.
    fn as_sent(&mut self, entry: &Delivered) {
        let Delivered { output, first, count, at, root: Some(root), .. } = entry else { return };
        match self.hashes.range(Some(output), *first, *root) {
            Found::Range(found) => self.compare_as_sent(entry, &found.lines),
            Found::Changed => {
                let text = format!("the hashes of {count} lines that {output} sent were changed");
                self.hashes.changed.push((*first, *at, text));
            }
            Found::Gone => self.hashes.gone_as_sent.insert(entry.range()),
        }
    }

    /// Checks that the lines of an entry left as they came in, unless the entry lists them as
    /// changed.
    fn compare_as_sent(&mut self, entry: &Delivered, sent: &[Hash]) {
        let Delivered { output, first, count, at, not_delivered, changed, .. } = entry;
        let offsets = (0..*count).map(Offset).filter(|offset| !not_delivered.contains_key(offset));
        let left: Vec<_> = offsets.collect();
        let (by_log, hashed) = (left.len(), sent.len());
        if by_log != hashed {
            let text = format!(
                "by the log, {by_log} lines left by {output}, and the root is over {hashed}"
            );
            return self.report.faults.add_at(*first, Some(*at), text);
        }
        for (offset, sent) in left.into_iter().zip(sent) {
            let position = first.saturating_add(offset.0);
            let came = self.original(position);
            if came.is_some_and(|came| came != *sent) && !changed.contains(&offset) {
                let text = format!(
                    "the event left by {output} in another form than it came in, and the log says \
                     that it was not changed"
                );
                self.report.faults.add_at(position, Some(*at), text);
            }
        }
    }

    /// Compares the partial tiles of older checkpoints, which the relay keeps for a while, with the
    /// tiles that have grown out of them.
    fn compare_older(&mut self, size: u64) -> io::Result<()> {
        let Some(files) = self.hashes.directory else { return Ok(()) };
        for last in last_tiles(size) {
            let before = last.index.checked_sub(1);
            let before = before.map(|index| Tile { index, width: WIDTH, ..last });
            for newer in before.into_iter().chain([last]) {
                let Some(grown) = files.tile(newer)? else { continue };
                let widths = files.partial_widths(newer)?.into_iter();
                for width in widths.filter(|width| (1..newer.width).contains(width)) {
                    let tile = Tile { width, ..newer };
                    let path = tile.path();
                    if let Some(older) = files.read(&path, BUNDLE_BYTES_MAX)?
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

    /// Returns `true` if an event may have been sent earlier, perhaps in another form: it came in
    /// before a crash or a change of the config, and the entry with its fate, of this index and
    /// time, is a later one.
    pub(super) fn may_be_sent_again(&self, position: u64, settled: (u64, u64)) -> bool {
        let spans = self.spans.range(..=position).rev();
        // The events of a span came in after those of the span before it.
        let came_from = spans.map(|(_, span)| (span.index, span.at)).nth(1).unwrap_or_default();
        self.history.runs.has_turn_in(came_from, settled)
    }

    /// Returns the hash of the line at a position as it came in, not as it was sent; `None` if the
    /// hash is missing.
    pub(super) fn original(&mut self, position: u64) -> Option<Hash> {
        let (first, span) = self.spans.range(..=position).next_back()?;
        match self.hashes.range(None, *first, span.root?) {
            Found::Range(range) => range.hash(position).copied(),
            Found::Changed | Found::Gone => None,
        }
    }

    /// Judges the losses, and the statements that only the journal makes.
    pub(super) fn judge(&mut self) {
        for error in std::mem::take(&mut self.hashes.unread) {
            self.finding(&error);
        }
        if !self.is_whole() {
            return;
        }
        self.losses();
        self.unproven();
        if self.hashes.are_absent() {
            let text = "the line hashes are not published: no line was compared";
            self.report.notes.push(text.to_owned());
        } else {
            self.name_unknown();
        }
        let runs = &mut self.history.runs;
        let (rows, steps) = (std::mem::take(&mut runs.rows), std::mem::take(&mut runs.steps));
        let is_asked = |row: &Row| self.request.asks_about(row.from, row.to);
        self.report.runs.extend(rows.into_iter().filter(is_asked).map(|row| row.text));
        self.report.notes.extend(steps.into_iter().filter(is_asked).map(|row| row.text));
        let Some(at) = self.history.runs.last_at.map(time) else { return };
        match self.is_silent() {
            true => self.report.unchecked.push(format!(
                "the last entry is of {at}, although the relay is running: it records nothing any \
                 more, or a clock was set since then"
            )),
            false => self.report.notes.push(format!("the last entry is of {at}")),
        }
    }

    /// Returns `true` if the log of a running relay seems to be silent at its end.
    pub(super) fn is_silent(&self) -> bool {
        let is_asked = |at: u64| self.request.until.is_none_or(|until| at < until);
        self.live_at.is_some_and(|at| is_asked(at) && self.history.runs.is_silent(at))
    }

    /// Judges the events that are lost according to the log.
    fn losses(&mut self) {
        let mut all = BTreeMap::<&str, Positions>::new();
        for ((output, reason), positions) in &self.history.losses {
            if output != QUEUE && !self.request.asks_of(output) {
                continue;
            }
            let ranges: Vec<_> = positions.within(self.asked.positions.clone()).collect();
            let of_output = all.entry(output).or_default();
            ranges.iter().for_each(|range| of_output.insert(range.clone()));
            let is_allowed = self.request.allows_lost && !NEVER_ALLOWED.contains(&reason.as_str());
            let count: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            if count > 0 {
                let text = format!("by the log, {count} events were lost at {output}: {reason}");
                self.report.notes.push(text);
            }
            for range in ranges.iter().filter(|_| !is_allowed) {
                let count = range.end - range.start;
                let text = format!("{count} events were lost at {output}: {reason}");
                self.report.faults.add_at(range.start, None, text);
            }
        }
        let mut lost: u64 = all.values().map(Positions::len).sum();
        let request = self.request;
        let never_stored = self.history.never_stored.iter();
        for (at, count) in never_stored.filter(|it| request.asks_about(it.0, it.0)) {
            lost = lost.saturating_add(*count);
            let text = format!(
                "{count} events were answered 200 and never stored (when_full = \"drop_newest\")"
            );
            match request.allows_lost {
                true => self.report.notes.push(text),
                false => self.report.faults.add(Some(*at), text),
            }
        }
        self.report.counts.lost = lost;
    }

    /// Reports the statements that only the journal makes. It is not signed: whoever can write to
    /// the directory can put anything in it.
    fn unproven(&mut self) {
        let last = self.last_checkpoint();
        if self.journal.has_gap {
            let text = "the journal goes on behind more entries than the checkpoint covers: an \
                        older checkpoint was put back, or the files were copied while the relay \
                        was running";
            let ending = self.ending();
            if ending != Ending::Live {
                self.report.found(ending == Ending::Stopped, text);
            }
        }
        let newer = self.journal.entries.len();
        if newer > 0 {
            let text = format!(
                "{newer} entries of the journal are newer than {last}. They are not signed and prove \
                 nothing"
            );
            match self.live_at.is_some() {
                true => self.report.notes.push(text),
                false => self.report.unchecked.push(text),
            }
        }
    }

    pub(super) fn last_checkpoint(&self) -> String {
        let at = self.history.runs.last_at.map_or_else(|| "an unknown time".to_owned(), time);
        format!("the last checkpoint, whose last entry is of {at}")
    }

    /// Reports the ranges whose line hashes are missing.
    fn name_unknown(&mut self) {
        let pruned = self.history.pruned_below;
        // The hashes of a range that was sent again after a crash may be in two files.
        for (first, at, text) in std::mem::take(&mut self.hashes.changed) {
            if first >= pruned && self.asked.positions.contains(&first) {
                self.report.faults.add_at(first, Some(at), text);
            }
        }
        let mut is_gone = false;
        let Hashes { gone, gone_as_sent, .. } = &self.hashes;
        for (gone, hashes) in [(gone, "line hashes"), (gone_as_sent, "line hashes as sent")] {
            let asked = self.asked.events.ranges().flat_map(|range| gone.within(range));
            for range in asked.collect::<Vec<_>>() {
                for (part, why) in [
                    (range.start..range.end.min(pruned), "were deleted to make room, by the log"),
                    (range.start.max(pruned)..range.end, "are gone, and the log does not say why"),
                ] {
                    if !part.is_empty() {
                        is_gone |= part.end > pruned;
                        let (first, last) = (part.start, part.end - 1);
                        let text = format!("positions {first} to {last}: their {hashes} {why}");
                        self.report.unchecked.push(text);
                    }
                }
            }
        }
        let is_stopped = self.ending() == Ending::Stopped;
        for (damage, is_cut_off) in std::mem::take(&mut self.hashes.damages) {
            match is_gone {
                true => self.report.found(!is_cut_off || is_stopped, damage),
                // A record may have been cut off by a power failure while it was written.
                false => self.report.notes.push(format!("{damage}; nothing is missing")),
            }
        }
    }
}

/// Returns the time at which an event came in, or was lost.
pub(super) fn time_of(spans: &BTreeMap<u64, Span>, position: u64) -> Option<u64> {
    let span = spans.range(..=position).next_back();
    span.filter(|(_, span)| position < span.end).map(|(_, span)| span.at)
}

/// Checks that the log, which has at least as many entries, contains a checkpoint. Returns what is
/// wrong.
pub(super) fn contains(name: &str, kept: Head, log: &Log<'_>) -> Result<(), String> {
    let size = kept.size;
    match root_at(&log.nodes(), size) {
        Ok(root) if root == kept.root => Ok(()),
        Ok(_) => Err(format!(
            "{name} has another root for the first {size} entries than the log: there are two logs \
             of one origin"
        )),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
