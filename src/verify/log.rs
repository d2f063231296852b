//! The check of a log and of its checkpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use super::bounds::FACTS_MAX;
use super::bounds::excess;
use super::compare::Comparison;
use super::hashes::Found;
use super::hashes::Hashes;
use super::history::History;
use super::positions::Positions;
use super::report::Faults;
use super::report::Report;
use super::report::time;
use super::request::Request;
use crate::evidence::entry::Entry;
use crate::evidence::entry::Started;
use crate::evidence::reader::Directory;
use crate::evidence::reader::Files;
use crate::evidence::reader::Log;
use crate::evidence::reader::ReadError;
use crate::tlog::checkpoint::Signed;
use crate::tlog::merkle::Frontier;
use crate::tlog::merkle::Hash;
use crate::tlog::merkle::root_at;
use crate::tlog::note::Signed as Signature;
use crate::tlog::tile::Content;
use crate::tlog::tile::Tile;
use crate::tlog::tile::WIDTH;

/// The question of an auditor where files of the log are wrong.
pub(super) const WHO_WROTE: &str = "who could write to the directory of the evidence?";

/// The question of an auditor where a signature is wrong.
pub(super) const WHICH_KEY: &str = "which relay has written this log, with which key?";

/// The question of an auditor where the cosignature of a witness is missing.
pub(super) const WITNESS_HAS: &str = "has the witness seen another log?";

/// The question of an auditor where a log is not the one that was seen before.
const WHO_SET_BACK: &str =
    "who set the log back, or ran two relays with one origin, since this checkpoint was seen?";

/// The most faults of a published log. The entries behind them are not asked for.
const FAULTS_MAX: u64 = 1000;

/// Returns the report about a place without evidence.
pub(super) fn absent(place: impl fmt::Display) -> Report {
    let mut report = Report::default();
    let text = format!("{place} has no evidence: there is no checkpoint");
    report.faults.add(None, "was the evidence turned off, or removed, and by whom?", text);
    report
}

/// A check that is under way.
pub(super) struct Check<'a> {
    pub(super) request: &'a Request,
    pub(super) report: Report,
    pub(super) history: History,
    evidence: Option<&'a Directory>,
    pub(super) hashes: Hashes<'a>,
    /// Ranges whose line hashes are others than the log has: the output or `None`, the first
    /// position, the number of events, and the time.
    changed: Vec<(Option<String>, u64, u64, u64)>,
    /// The events whose line hashes as they were sent are gone, of any output.
    unhashed_as_sent: Positions,
    /// The ranges of events that came in and whose line hashes are there: their end and root, by
    /// their first position.
    pub(super) hashed: BTreeMap<u64, (u64, Hash)>,
    /// The events that came in and whose line hashes are gone.
    pub(super) unhashed: Positions,
    /// The events that came in at a time that is asked about.
    pub(super) window: Positions,
    /// The lines of the output that is asked about, and those that are stored. `None` if no lines
    /// are compared.
    pub(super) comparison: Option<Comparison>,
    pub(super) left: Left,
    /// The time of the newest cosignature of each witness, in seconds since 1970.
    pub(super) cosigned: BTreeMap<String, u64>,
    /// `true`: the entries are from the journal now.
    is_beyond: bool,
}

/// The events that left by the output that is asked about.
#[derive(Default)]
pub(super) struct Left {
    /// The events that came in at a time that is asked about.
    pub(super) asked: Positions,
    /// The events whose line hash is gone.
    pub(super) unhashed: Positions,
    /// The number of events of which the log does not say yet what became of them.
    pub(super) pending: u64,
    /// The number of events that the consumer may have got, and whose form is not known if the
    /// filter changes events.
    pub(super) unexplained: u64,
    /// `true`: the filter of the output changes events.
    pub(super) changes: bool,
}

impl<'a> Check<'a> {
    /// `evidence` has the line hashes; `None` if they are not there.
    pub(super) fn new(request: &'a Request, evidence: Option<&'a Directory>) -> Self {
        let mut report = Report::default();
        if evidence.is_none() {
            let text = "the line hashes are not published: no line was compared";
            report.unchecked.push(text.to_owned());
        }
        Self {
            request,
            evidence,
            hashes: Hashes::none(),
            changed: Vec::new(),
            unhashed_as_sent: Positions::default(),
            report,
            history: History::default(),
            hashed: BTreeMap::new(),
            unhashed: Positions::default(),
            window: Positions::default(),
            comparison: (!request.events.is_empty()).then(Comparison::new),
            left: Left::default(),
            cosigned: BTreeMap::new(),
            is_beyond: false,
        }
    }

    /// Returns `true` if this is a directory, and not what a server has published.
    pub(super) fn has_line_hashes(&self) -> bool {
        self.evidence.is_some()
    }

    fn faults(&mut self) -> &mut Faults {
        &mut self.report.faults
    }

    /// Checks the log: its checkpoint, its tiles, its entries, and the checkpoints that were given.
    /// `journal` has the entries that are not covered yet.
    pub(super) fn log<F: Files>(
        &mut self,
        files: &F,
        journal: Option<&[(u64, Vec<u8>)]>,
    ) -> io::Result<()> {
        self.report.counts.checkpoints += 1;
        let log = match Log::open(files) {
            Ok(log) => log,
            Err(ReadError::NoCheckpoint) => {
                self.report = absent("this place");
                return Ok(());
            }
            Err(error @ ReadError::Checkpoint(_)) => {
                self.faults().add(None, WHO_WROTE, error);
                return Ok(());
            }
            Err(ReadError::File { error, .. }) => return Err(error),
        };
        // The hashes that the checkpoint is about were on the disk before it.
        if let Some(evidence) = self.evidence {
            self.hashes = Hashes::read(evidence)?;
        }
        let own = log.signed().clone();
        let rolled_back = self.evidence.map(|it| it.rolled_back(&own.checkpoint.origin));
        if let Some(why) = rolled_back.transpose()?.flatten() {
            let text = format!("the relay has recorded nothing more: {why}");
            self.faults().add(None, WHO_SET_BACK, text);
        }
        let is_signed = self.signatures("checkpoint", &own, true);
        let is_whole = self.entries(&log)?;
        if is_signed && is_whole {
            self.report.counts.valid += 1;
            self.hear_witnesses(&own);
        }
        if let Some((first, _)) = journal.and_then(|journal| journal.first())
            && *first > log.size()
        {
            let size = log.size();
            let text = format!(
                "the checkpoint covers {size} entries, and the journal goes on from entry {first}: \
                 an older checkpoint was put back"
            );
            self.faults().add(None, WHO_SET_BACK, text);
        }
        for (name, note) in &self.request.checkpoints {
            self.checkpoint(name, note, &log);
        }
        for (url, note) in &self.request.witnessed {
            self.newest_of_witness(url, note, &log);
        }
        self.judge_witnesses(&own);
        self.journal(log.size(), journal.unwrap_or_default())
    }

    /// Takes the entries that no checkpoint covers yet. They prove nothing, but they explain what
    /// a consumer has got since the last checkpoint.
    fn journal(&mut self, size: u64, journal: &[(u64, Vec<u8>)]) -> io::Result<()> {
        let faults = std::mem::take(&mut self.report.faults);
        self.is_beyond = true;
        for (index, entry) in journal.iter().filter(|(index, _)| *index >= size) {
            if let Ok(entry) = Entry::parse(entry) {
                self.entry(*index, &entry)?;
            }
        }
        self.report.faults = faults;
        Ok(())
    }

    /// Checks the signatures of a checkpoint, also those of the witnesses if `is_own`. A witness
    /// that has not signed is judged later, by what else it has cosigned.
    fn signatures(&mut self, name: &str, signed: &Signed, is_own: bool) -> bool {
        let Signed { checkpoint, note } = signed;
        let request = self.request;
        let found: Vec<_> = request.keys.iter().map(|key| (key, note.check(key))).collect();
        let is_valid = found.iter().any(|(key, found)| {
            matches!(found, Signature::Valid(None)) && key.name() == checkpoint.origin
        });
        let is_forged = found.iter().any(|(_, found)| *found == Signature::Forged);
        if is_forged || !is_valid {
            let why = match is_forged {
                true => "has a forged signature of the key",
                false => "is not signed by the key",
            };
            let origin = &checkpoint.origin;
            self.faults().add(None, WHICH_KEY, format_args!("{name} of {origin} {why}"));
        }
        let mut is_witnessed = true;
        for witness in request.witnesses.iter().filter(|_| is_own) {
            match note.check(witness) {
                Signature::Valid(Some(at)) => {
                    let at = time(at.saturating_mul(1000));
                    let text = format!("the witness {} has cosigned at {at}", witness.name());
                    self.report.notes.push(text);
                }
                Signature::Absent => {}
                Signature::Valid(None) | Signature::Forged => {
                    is_witnessed = false;
                    let witness = witness.name();
                    let text = format!("{name} has no valid cosignature of the witness {witness}");
                    self.faults().add(None, WITNESS_HAS, text);
                }
            }
        }
        is_valid && !is_forged && is_witnessed
    }

    /// Checks a checkpoint that somebody has kept against the log.
    pub(super) fn checkpoint<F: Files>(&mut self, name: &str, note: &[u8], log: &Log<F>) {
        self.report.counts.checkpoints += 1;
        let signed = match Signed::parse(note) {
            Ok(signed) => signed,
            Err(error) => {
                self.faults().add(None, WHICH_KEY, format_args!("{name}: {error}"));
                return;
            }
        };
        let (kept, own) = (&signed.checkpoint, &log.signed().checkpoint);
        if kept.origin != own.origin {
            let (kept, own) = (&kept.origin, &own.origin);
            let text = format!("{name} is a checkpoint of {kept}, and the log is that of {own}");
            self.faults().add(None, WHICH_KEY, text);
            return;
        }
        if !self.signatures(name, &signed, false) {
            return;
        }
        let size = kept.head.size;
        if size > own.head.size {
            let text = format!(
                "{name} covers {size} entries, and the log has only {}: its end was cut off",
                own.head.size
            );
            self.faults().add(None, WHO_SET_BACK, text);
            return;
        }
        match root_at(&log.nodes(), size) {
            Ok(root) if root == kept.head.root => {
                self.report.counts.valid += 1;
                self.hear_witnesses(&signed);
            }
            Ok(_) => {
                let text = format!(
                    "{name} has another root for the first {size} entries than the log: there are \
                     two logs of one origin"
                );
                self.faults().add(None, WHO_SET_BACK, text);
            }
            Err(error) => self.faults().add(None, WHO_WROTE, format_args!("{name}: {error}")),
        }
    }

    /// Checks the entries, and the tiles over them. Returns `true` if they are those that were
    /// signed.
    fn entries<F: Files>(&mut self, log: &Log<F>) -> io::Result<bool> {
        let mut tiles = Tiles::default();
        let mut frontier = Frontier::default();
        for entry in log.entries() {
            let (index, bytes) = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.unread(&error);
                    let text = format!("the entries from {} on", frontier.size());
                    self.report.unchecked.push(text);
                    return Ok(false);
                }
            };
            if index.is_multiple_of(WIDTH) && self.is_too_much() {
                let text = format!("the entries from {index} on: too much is wrong before them");
                self.report.unchecked.push(text);
                return Ok(false);
            }
            match Entry::parse(&bytes) {
                Ok(entry) if let Some(excess) = excess(&entry) => {
                    self.faults().add(None, WHO_WROTE, format_args!("entry {index} {excess}"));
                }
                Ok(entry) => {
                    self.previous(index, &entry, &frontier);
                    self.entry(index, &entry)?;
                }
                Err(error) => {
                    let text = format!("entry {index} is none: {error}");
                    self.faults().add(None, WHO_WROTE, text);
                }
            }
            let made = &mut |level, hash| tiles.push(level, hash);
            frontier.push(Hash::of_leaf(&bytes), made);
            for (tile, hashes) in tiles.whole.drain(..) {
                let is_same = compare_tile(log, tile, &hashes, &mut self.report);
                if !is_same && !self.has_line_hashes() {
                    // The server may have any number of such entries.
                    let text = format!("the entries from {} on", index + 1);
                    self.report.unchecked.push(text);
                    return Ok(false);
                }
            }
        }
        for (tile, hashes) in tiles.partial() {
            compare_tile(log, tile, hashes, &mut self.report);
        }
        let is_signed = frontier.root() == log.signed().checkpoint.head.root;
        if !is_signed {
            let text = "the entries are not those that the checkpoint was signed over";
            self.faults().add(None, WHO_WROTE, text);
        }
        self.history.end(&mut self.report.faults);
        self.report.notes.append(&mut self.history.notes);
        Ok(is_signed)
    }

    /// Notes that a file can't be read. Only what the file itself shows is a fault.
    fn unread(&mut self, error: &ReadError) {
        match error.is_of_the_log() {
            true => self.faults().add(None, WHO_WROTE, error),
            false => self.report.unchecked.push(error.to_string()),
        }
    }

    /// Returns `true` if a log takes too much memory, or if a published one has so many faults that
    /// the rest need not be asked for.
    fn is_too_much(&self) -> bool {
        let faults = self.report.faults.count();
        let facts = self.history.facts() + self.window.facts() + self.unhashed.facts();
        facts > FACTS_MAX || !self.has_line_hashes() && faults > FAULTS_MAX
    }

    /// Checks that a start names the log before it.
    fn previous(&mut self, index: u64, entry: &Entry, frontier: &Frontier) {
        let Entry::Start(Started { running, previous }) = entry else { return };
        if (previous.size, previous.root) != (index, frontier.root()) {
            let at = Some(running.at);
            let text = format!(
                "entry {index} says that the relay found {} entries, and another log is before it",
                previous.size
            );
            self.faults().add(at, WHO_SET_BACK, text);
        }
    }

    /// Takes the next entry.
    fn entry(&mut self, index: u64, entry: &Entry) -> io::Result<()> {
        let mut faults = Faults::default();
        let is_usable = self.history.feed(index, entry, &mut faults);
        self.report.faults.append(faults, |at| self.request.asks_about(at));
        if !is_usable {
            return Ok(());
        }
        match entry {
            Entry::Accepted { first, count, at, root } => {
                let range = *first..first.saturating_add(*count);
                if self.request.asks_about(*at) && !self.is_beyond {
                    self.window.insert(range.clone());
                }
                match self.hashes.range(None, *first, *root) {
                    Ok(Found::Range(found)) if found.end() == range.end => {
                        self.hashed.insert(range.start, (range.end, *root));
                        return Ok(());
                    }
                    Ok(Found::Range(_) | Found::Changed) => {
                        self.changed.push((None, *first, *count, *at));
                    }
                    Ok(Found::Gone) => {}
                    Err(error) => self.faults().add_at(*first, Some(*at), WHO_WROTE, error),
                }
                if !self.is_beyond {
                    self.unhashed.insert(range);
                }
            }
            Entry::Delivered { output, first, count, at, root, .. } => {
                if let Some(root) = root.filter(|_| !self.is_beyond) {
                    match self.hashes.range(Some(output), *first, root)? {
                        Found::Range(_) => {}
                        Found::Changed => {
                            self.changed.push((Some(output.clone()), *first, *count, *at));
                        }
                        Found::Gone => {
                            let range = *first..first.saturating_add(*count);
                            self.unhashed_as_sent.insert(range);
                        }
                    }
                }
                let is_asked = self.request.output.as_ref().is_some_and(|asked| asked == output);
                if is_asked {
                    self.add_left(entry)?;
                }
            }
            Entry::Lost { output, first: Some(first), count, .. } => {
                if self.request.output.as_ref() == Some(output) {
                    self.add_lost(*first..first.saturating_add(*count))?;
                }
            }
            Entry::Lost { .. }
            | Entry::Start(_)
            | Entry::Reload(_)
            | Entry::Stop(_)
            | Entry::Heartbeat { .. }
            | Entry::Pruned { .. }
            | Entry::Key { .. }
            | Entry::Alarm { .. } => {}
        }
        Ok(())
    }

    /// Adds what is left to say, and returns the report.
    pub(super) fn end<F: Files>(mut self, files: &F) -> io::Result<Report> {
        self.name_unknown();
        if self.history.never_stored > 0 {
            let text = format!(
                "{} events were answered 200 and never stored (when_full = \"drop_newest\")",
                self.history.never_stored
            );
            self.report.notes.push(text);
        }
        self.report.notes.extend(self.history.losses());
        if let Some(at) = self.history.last_at() {
            self.report.notes.push(format!("the last entry is of {}", time(at)));
        }
        let Self { mut report, .. } = self;
        if report.faults.kept().iter().any(|fault| fault.at.is_none() && fault.position.is_some()) {
            add_times(files, &mut report);
        }
        Ok(report)
    }

    /// Names the ranges whose line hashes are gone.
    fn name_unknown(&mut self) {
        if self.hashes.is_absent() {
            return;
        }
        let pruned = self.history.pruned_below;
        // The hashes of a range that was sent again after a crash may be in two files.
        for (output, first, count, at) in std::mem::take(&mut self.changed) {
            if first >= pruned {
                let text = match output {
                    None => format!("the line hashes of {count} events were changed"),
                    Some(output) => {
                        format!("the hashes of {count} lines that {output} sent were changed")
                    }
                };
                self.faults().add_at(first, Some(at), WHO_WROTE, text);
            }
        }
        let mut is_gone = false;
        for (gone, hashes) in
            [(&self.unhashed, "line hashes"), (&self.unhashed_as_sent, "line hashes as sent")]
        {
            let asked = self.window.ranges().flat_map(|range| gone.within(range));
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
        for damage in std::mem::take(&mut self.hashes.damages) {
            match is_gone {
                true => self.faults().add(None, WHO_WROTE, damage),
                // Such as a record that was being written when the power failed.
                false => self.report.notes.push(format!("{damage}; nothing is missing")),
            }
        }
    }
}

/// Adds to each fault the time at which its event came in.
fn add_times<F: Files>(files: &F, report: &mut Report) {
    let Ok(log) = Log::open(files) else { return };
    let mut open: Vec<_> =
        report.faults.kept_mut().iter_mut().filter(|fault| fault.at.is_none()).collect();
    for entry in log.entries().map_while(Result::ok) {
        if let Ok(Entry::Accepted { first, count, at, .. }) = Entry::parse(&entry.1) {
            let range = first..first.saturating_add(count);
            for fault in &mut open {
                if fault.position.is_some_and(|position| range.contains(&position)) {
                    fault.at = Some(at);
                }
            }
        }
    }
}

/// The tiles over the entries so far.
#[derive(Default)]
struct Tiles {
    /// For each level the number of whole tiles, and the hashes of the last one.
    levels: Vec<(u64, Vec<Hash>)>,
    /// Whole tiles that were not compared yet.
    whole: Vec<(Tile, Vec<Hash>)>,
}

impl Tiles {
    /// Takes the hash of a subtree with `2^level` entries.
    fn push(&mut self, level: u32, hash: Hash) {
        if !level.is_multiple_of(8) {
            return;
        }
        let level = level / 8;
        let at = level as usize;
        if self.levels.len() <= at {
            self.levels.resize(at + 1, (0, Vec::new()));
        }
        let (index, hashes) = &mut self.levels[at];
        hashes.push(hash);
        if hashes.len() as u64 == WIDTH {
            let tile = Tile { content: Content::Hashes(level), index: *index, width: WIDTH };
            self.whole.push((tile, std::mem::take(hashes)));
            *index += 1;
        }
    }

    /// Returns the last tile of each level, if it is partial.
    fn partial(&self) -> impl Iterator<Item = (Tile, &[Hash])> {
        let levels = (0..).zip(&self.levels).filter(|(_, (_, hashes))| !hashes.is_empty());
        levels.map(|(level, (index, hashes))| {
            let width = hashes.len() as u64;
            (Tile { content: Content::Hashes(level), index: *index, width }, hashes.as_slice())
        })
    }
}

/// Compares a tile with the hashes that it must have. Returns `true` if it has them.
fn compare_tile<F: Files>(
    log: &Log<F>,
    tile: Tile,
    expected: &[Hash],
    report: &mut Report,
) -> bool {
    match log.hashes(tile) {
        Ok(hashes) if hashes == expected => return true,
        Ok(_) => {
            let text = format!("{} has other hashes than the entries", tile.path());
            report.faults.add(None, WHO_WROTE, text);
        }
        Err(error) if error.is_of_the_log() => report.faults.add(None, WHO_WROTE, error),
        Err(error) => report.unchecked.push(error.to_string()),
    }
    false
}
