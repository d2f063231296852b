//! `evidence verify` at the end of a seed. It must not report faults that nobody has caused, and it
//! must notice one change of the log or of the stored lines.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::consumers::{Consumer, Copies, Kind};
use crate::operator::{Operator, Restored};
use crate::oracle::said::Moment;
use crate::oracle::{Calm, room};
use crate::plan::{Back, Why};
use crate::truth::{Attempt, Book, Fate};
use crate::{kernel, senders};

const LOG: &str = "queue/evidence";

/// The copy of the newest checkpoint beside the log.
const BESIDE: &str = "queue/evidence-checkpoint";

/// An older copy of the log.
const OLDER: &str = "older-evidence";

/// An older copy of the checkpoint beside the log.
const OLDER_BESIDE: &str = "older-checkpoint";

/// The newest checkpoint, as somebody may keep it.
pub(crate) const KEPT: &str = "kept-checkpoint";

/// The lines that a consumer has stored.
const STORED: &str = "stored-lines";

/// The start of the simulation, in seconds since 1970: noon.
const NOON: u64 = 1_780_315_200;

/// The start of the fault about events without evidence.
const WITHOUT: &str = "came in while evidence was off or could not be written";

/// The start of the fault about a relay that ran and recorded nothing, not even a heartbeat.
const SILENT: &str = "nothing was recorded for";

/// How long events can wait for their evidence, which is written every second.
const WRITTEN: Duration = Duration::from_secs(2);

/// How long after a slow disk evidence can be late: some syncs wait for each other.
const SYNCED: Duration = Duration::from_secs(20);

/// The change that a seed makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Flip,
    Remove,
    Cut,
    Entry,
    SetBack,
    SetBackWithCheckpoint,
    LineRemoved,
    LineChanged,
}

/// The check of a seed's evidence.
pub(crate) struct Check {
    key: String,
    rng: fastrand::Rng,
    change: Way,
}

impl Check {
    pub(crate) fn new(seed: u64, key: String, has_witness: bool) -> Self {
        let mut rng = senders::rng(seed, "evidence");
        let change = match rng.u32(..16) {
            0..4 => Way::Flip,
            4..6 => Way::Remove,
            6..8 => Way::Cut,
            8 | 9 => Way::Entry,
            10 => Way::SetBack,
            11 => Way::SetBackWithCheckpoint,
            12 | 13 => Way::LineRemoved,
            _ => Way::LineChanged,
        };
        let is_set_back = has_witness && senders::rng(seed, "set back").bool();
        let change = if is_set_back { Way::SetBack } else { change };
        Self { key, rng, change }
    }

    /// Copies the log, if this copy is to replace it later.
    pub(crate) fn may_copy(&self) {
        if matches!(self.change, Way::SetBack | Way::SetBackWithCheckpoint) {
            copy(Path::new(LOG), Path::new(OLDER));
            // The relay writes this file with its first checkpoint.
            fs::copy(BESIDE, OLDER_BESIDE).ok();
        }
    }

    /// Checks the log of a stopped relay, changes one thing, checks it again, and records faults.
    pub(crate) fn run(
        mut self,
        operator: &mut Operator<'_>,
        book: &Book,
        consumers: &[Consumer],
        calm: Calm,
    ) {
        alarms(operator);
        goes_on(operator, book, calm);
        if !operator.has_libraries(2) {
            return;
        }
        if let Some(restored) = operator.restored.take() {
            return self.look_at_restored(operator, book, &restored);
        }
        let stored = self.store(book, consumers);
        let (status, untouched) = self.verify(operator, stored.as_deref(), false);
        let mut lines = untouched.lines();
        let is_about_witness =
            |line: &&str| line.starts_with("NOT CHECKED") && line.contains("witness");
        if let Some(line) = lines.find(is_about_witness) {
            operator.faults.push(format!("evidence: every witness is there, and verify: {line}"));
        }
        if let Some((from, to)) = operator.evidence_was_off {
            // For that time, the log can only say how many events came in.
            let (said, accepted) = (without(&untouched), accepted(book, from, to));
            if said < accepted {
                let what = format!(
                    "evidence: verify knows of {said} events without evidence, and at least \
                     {accepted} came in while it was off: {untouched}"
                );
                operator.faults.push(what);
            }
            return;
        }
        if !matches!(status, Some(0 | 2)) && !is_excused(operator, book, &untouched) {
            let what = format!("evidence: verify ends with {status:?}: {untouched}");
            operator.faults.push(what);
            return;
        }
        let Some((name, change)) = self.change(stored.is_some(), operator.witness.is_some()) else {
            return;
        };
        kernel::trace(format_args!("the evidence is changed: {change}"));
        let has_kept = self.change == Way::SetBackWithCheckpoint;
        let (status, said) = self.verify(operator, stored.as_deref(), has_kept);
        let before: BTreeSet<&str> = untouched.lines().collect();
        let mut new = said.lines().filter(|line| !before.contains(line));
        let is_told = |line: &str| {
            let is_judged = line.starts_with("FAULT") || line.starts_with("NOT CHECKED");
            // An older copy may not know the name that an output has since.
            let is_older = line.starts_with("the log has no output");
            // If a record that no entry needs is damaged, only a note names it.
            is_judged || is_older || (line.starts_with("note: ") && line.contains(&name))
        };
        if !new.any(is_told) {
            let what =
                format!("evidence: verify does not notice that {change}: {status:?}: {said}");
            operator.faults.push(what);
        }
        self.start_again(operator);
    }

    /// Judges the log of a relay whose queue was restored from an older copy. The loss must be
    /// reported:
    ///
    /// - If only the queue's files are older, the relay says so, and `evidence verify` reports
    ///   positions that were used twice.
    /// - If everything is older, the relay cannot notice without a witness (see trouble.md). A
    ///   checkpoint that somebody kept shows it. A witness with a newer checkpoint ends the log.
    fn look_at_restored(&self, operator: &mut Operator<'_>, book: &Book, restored: &Restored) {
        let Restored { back, gone: (copied, ended), sizes: (older, newer), .. } = *restored;
        let is_whole = back == Back::Whole;
        let log = String::from_utf8_lossy(operator.log.get(restored.log..).unwrap_or_default());
        let says_so = log.contains("the evidence has more events than the queue");
        let recorded = accepted(book, copied, ended.saturating_sub(Duration::from_secs(5)));
        if !is_whole && recorded > 0 && !says_so && operator.disk_refused.is_none() {
            let what = format!("its evidence has {recorded} events more, and it does not say so");
            operator.faults.push(format!("evidence: only the queue was set back, {what}"));
        }
        let contradicts = is_whole && restored.witnessed > older;
        if contradicts && !Path::new("queue/evidence-rolled-back").exists() {
            let what =
                format!("{} entries, and the log was set back to {older}", restored.witnessed);
            operator.faults.push(format!("evidence: the witness knows {what}: nobody says so"));
        }
        let is_shown = if is_whole { newer > older } else { says_so };
        let (status, said) = self.verify(operator, None, is_whole);
        if is_shown && (status != Some(1) || !said.contains("FAULT")) {
            let what = format!("the {back:?} of it was set back: {status:?}: {said}");
            operator.faults.push(format!("evidence: verify does not notice that {what}"));
        }
    }

    /// Starts the relay once more. It must notice an older copy of the log, and a checkpoint that
    /// is removed while it runs (see trouble.md).
    fn start_again(&self, operator: &mut Operator<'_>) {
        let is_set_back = matches!(self.change, Way::SetBack | Way::SetBackWithCheckpoint);
        let is_whole = matches!(self.change, Way::LineRemoved | Way::LineChanged);
        if !operator.has_libraries(1) || !is_set_back && !is_whole {
            return;
        }
        operator.start();
        // Every second, a checkpoint is signed, and the files are checked.
        std::thread::sleep(Duration::from_secs(5));
        if is_whole {
            fs::remove_file(Path::new(LOG).join("checkpoint")).expect("it is there");
            std::thread::sleep(Duration::from_secs(5));
        }
        // The checkpoint beside the log is an old one, too, so only the witness knows a newer one.
        let is_witnessed = is_set_back && operator.witness.is_some();
        let reason = [("reason", if is_witnessed { "rolled_back" } else { "tampered" })];
        let metrics = operator.metrics();
        let alarms = metrics.map(|metrics| metrics.count("evidence_errors_total", &reason));
        if alarms == Some(0) {
            let what = if is_set_back { "a log that was set back" } else { "a removed checkpoint" };
            operator.faults.push(format!("evidence: the relay does not notice {what}"));
        }
        operator.stop(Why::Signal);
    }

    /// Runs `evidence verify`. `outputs` are the outputs of the stored lines.
    fn verify(
        &self,
        operator: &mut Operator<'_>,
        outputs: Option<&[String]>,
        has_kept: bool,
    ) -> (Option<i32>, String) {
        let mut arguments =
            vec!["evidence", "verify", "--directory", "queue", "--key", &self.key, "--allow-lost"];
        if let Some(outputs) = outputs {
            arguments.extend(["--events", STORED]);
            outputs.iter().for_each(|output| arguments.extend(["--output", output.as_str()]));
        }
        if has_kept {
            arguments.extend(["--checkpoint", KEPT]);
        }
        let witness = operator.witness.as_ref().map(|it| (it.key.clone(), it.url()));
        if let Some((key, url)) = &witness {
            arguments.extend(["--witness", key, "--witness-url", url]);
        }
        operator.command(&arguments)
    }

    /// Writes the lines that one consumer has stored, and returns the names of its outputs, or
    /// `None` if no consumer has lines that can be compared.
    fn store(&mut self, book: &Book, consumers: &[Consumer]) -> Option<Vec<String>> {
        let of = |number| {
            let names = book.read(|truth| {
                let outputs = truth.epochs.iter().flat_map(|epoch| &epoch.config.outputs);
                let outputs = outputs.filter(|output| output.consumer == number);
                outputs.map(|output| output.name.clone()).collect::<BTreeSet<String>>()
            });
            (number, names)
        };
        let mut fit: Vec<_> = (0..consumers.len()).map(of).collect();
        fit.retain(|(number, names)| is_comparable(&consumers[*number]) && !names.is_empty());
        let (number, names) =
            (!fit.is_empty()).then(|| fit.swap_remove(self.rng.usize(..fit.len())))?;
        let mut text = Vec::new();
        for arrived in consumers[number].arrived_since(0) {
            text.extend(arrived.event);
            text.push(b'\n');
        }
        fs::write(STORED, text).expect("a writable directory");
        Some(names.into_iter().collect())
    }

    /// Makes the change of this seed. Returns the name of the changed file and a description, or
    /// `None` if nothing can be changed. `has_lines` means that there are stored lines.
    fn change(&mut self, has_lines: bool, has_witness: bool) -> Option<(String, String)> {
        match self.change {
            Way::LineRemoved | Way::LineChanged if has_lines => self.change_line(),
            Way::LineRemoved | Way::LineChanged => {
                self.change = Way::Flip;
                self.change(false, has_witness)
            }
            Way::SetBack | Way::SetBackWithCheckpoint => {
                let kept = fs::read(Path::new(LOG).join("checkpoint")).ok()?;
                let older = fs::read(Path::new(OLDER).join("checkpoint")).ok()?;
                fs::write(KEPT, &kept).expect("a writable directory");
                fs::remove_dir_all(LOG).expect("it is there");
                fs::rename(OLDER, LOG).expect("it is there");
                let what = || "the log was set back to an older copy".to_owned();
                if has_witness {
                    fs::rename(OLDER_BESIDE, BESIDE).ok()?;
                }
                (size(&kept) != size(&older)).then(|| ("checkpoint".to_owned(), what()))
            }
            Way::Entry => self.change_entry(),
            Way::Flip | Way::Remove | Way::Cut => self.change_file(),
        }
    }

    fn change_line(&mut self) -> Option<(String, String)> {
        let text = fs::read(STORED).ok()?;
        let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        if lines.is_empty() {
            return None;
        }
        let at = self.rng.usize(..lines.len());
        let line = lines[at].to_vec();
        // Any other copy of the line is removed, too: it would replace the line.
        lines.retain(|other| *other != line.as_slice());
        let mut text = lines.concat();
        let what = if self.change == Way::LineChanged {
            let mut changed = line;
            let byte = self.rng.usize(..changed.len() - 1);
            changed[byte] = if changed[byte] == b'x' { b'y' } else { b'x' };
            text.extend(changed);
            format!("byte {byte} of stored line {} is another one", at + 1)
        } else {
            format!("stored line {} is gone", at + 1)
        };
        fs::write(STORED, text).expect("a writable directory");
        Some((STORED.to_owned(), what))
    }

    /// Removes an entry from a bundle of entries.
    fn change_entry(&mut self) -> Option<(String, String)> {
        let files = files().into_iter().filter(|it| it.starts_with("tile/entries"));
        let files: Vec<_> = files.collect();
        let name = files.get(self.rng.usize(..files.len().max(1)))?;
        let mut rest = fs::read(Path::new(LOG).join(name)).ok()?;
        let mut entries = Vec::new();
        while let Some((length, _)) = rest.split_first_chunk() {
            let behind = rest.split_off(2 + usize::from(u16::from_be_bytes(*length)));
            entries.push(std::mem::replace(&mut rest, behind));
        }
        let at = self.rng.usize(..entries.len());
        entries.remove(at);
        fs::write(Path::new(LOG).join(name), entries.concat()).expect("a writable directory");
        let name = name.display().to_string();
        let what = format!("entry {at} of {name} is gone");
        Some((name, what))
    }

    /// Flips a bit of a file, removes the file, or truncates it.
    fn change_file(&mut self) -> Option<(String, String)> {
        let files = files();
        let name = files.get(self.rng.usize(..files.len().max(1)))?;
        let path = Path::new(LOG).join(name);
        let mut content = fs::read(&path).ok()?;
        let at = self.rng.usize(..content.len().max(1));
        let name = name.display().to_string();
        if self.change == Way::Remove || content.is_empty() {
            fs::remove_file(&path).expect("it is there");
            let what = format!("{name} is gone");
            return Some((name, what));
        }
        let what = if self.change == Way::Cut {
            content.truncate(at);
            format!("{name} ends at byte {at}")
        } else {
            content[at] ^= 1 << self.rng.u32(..8);
            format!("byte {at} of {name} is another one")
        };
        fs::write(&path, content).expect("a writable directory");
        Some((name, what))
    }
}

/// Unless somebody has changed the log, no alarm is raised. Unless an older copy was put back, the
/// witness is never asked to cosign a contradiction.
fn alarms(operator: &mut Operator<'_>) {
    let restored = operator.restored.as_ref().filter(|it| it.back == Back::Whole);
    let set_back = restored.map(|restored| restored.gone.1);
    let mut faults = Vec::new();
    for said in &operator.said {
        for reason in ["tampered", "rolled_back"] {
            let count = said.metrics.count("evidence_errors_total", &[("reason", reason)]);
            let is_right = reason == "rolled_back" && set_back.is_some_and(|at| said.asked >= at);
            if count > 0 && !is_right {
                let what = format!("evidence_errors_total has {count} {reason}");
                faults.push(format!("evidence: nobody has changed the log, and {what}"));
            }
        }
    }
    faults.dedup();
    let violations = operator.witness.as_ref().filter(|_| set_back.is_none());
    let violations = violations.map(|it| it.violations()).unwrap_or_default();
    faults.extend(violations.iter().take(3).map(|it| format!("evidence: the witness got {it}")));
    operator.faults.extend(faults);
}

/// While nothing is wrong, checkpoints are signed and cosigned. At the end of the calm time, they
/// cover all events up to 15 s before.
fn goes_on(operator: &mut Operator<'_>, book: &Book, calm: Calm) {
    let Some(said) = operator.said.iter().find(|said| said.moment == Moment::Calm) else { return };
    let until = said.asked.saturating_sub(Duration::from_secs(15));
    let is_ours = |at: &Duration| (calm.begins..=until).contains(at);
    let newest = book.read(|truth| {
        let accepted = truth.attempts.iter().filter_map(|attempt| match attempt.fate() {
            Fate::Accepted(at) => Some(at).filter(is_ours),
            Fate::Refused | Fate::Unknown => None,
        });
        accepted.max()
    });
    let rolled_back = [("reason", "rolled_back")];
    let ended = said.metrics.count("evidence_errors_total", &rolled_back) > 0;
    let Some(newest) = newest.filter(|_| !ended) else { return };
    let signed = said.metrics.sum("evidence_last_checkpoint_timestamp_seconds");
    let cosigned = said.metrics.sum("evidence_witness_timestamp_seconds");
    let (due, has_witness) = ((NOON + newest.as_secs()) as f64, operator.witness.is_some());
    for (time, what) in [(signed, "signed"), (cosigned, "cosigned")] {
        if time + 1.0 < due && (what == "signed" || has_witness) {
            let text = format!(
                "evidence: events came in at {newest:?}, and {:?} later the newest checkpoint that \
                 is {what} is {} s older than they are",
                said.asked - newest,
                due - time
            );
            operator.faults.push(text);
        }
    }
}

/// Returns `true` if a consumer's lines can be compared with the log.
fn is_comparable(consumer: &Consumer) -> bool {
    let promise = consumer.promise();
    // `tcp` and `syslog` never show which events arrived. A store that merges equal events has one
    // line for them. A store with `counts` may have stored events of a refused request, all of
    // which count as lost or as dead letters.
    let is_confirmed = !matches!(consumer.kind, Kind::Tcp | Kind::Syslog);
    is_confirmed && promise.copies != Copies::OnceMerged && !promise.counts
}

/// Returns how many events were sent and accepted within this span.
fn accepted(book: &Book, from: Duration, to: Duration) -> usize {
    let is_ours = |attempt: &&Attempt| {
        let times = from..=to;
        matches!(attempt.fate(), Fate::Accepted(at) if times.contains(&at))
            && times.contains(&attempt.begun)
    };
    let count = |attempts: &[Attempt]| {
        attempts.iter().filter(is_ours).map(|attempt| attempt.serials.len()).sum()
    };
    book.read(|truth| count(&truth.attempts))
}

/// Returns how many events without evidence `evidence verify` reports.
fn without(said: &str) -> usize {
    let lines = said.lines().filter_map(|line| line.split_once(WITHOUT));
    lines
        .filter_map(|(before, _)| before.split_whitespace().rev().nth(1)?.parse::<usize>().ok())
        .sum()
}

/// Returns `true` if the only faults are about events without evidence or about silence, and before
/// or during each of them, the disk refused writes or was slow: the relay then forwards events
/// without evidence. A fault about silence begins with the time of the entry before it, which can
/// be earlier than the disk's trouble. A small queue may have needed the room of events before
/// their evidence was written (see evidence-format.md).
fn is_excused(operator: &Operator<'_>, book: &Book, said: &str) -> bool {
    let is_excuse = |from: Duration, until: Duration| {
        let has_refused = operator.disk_refused.is_some_and(|trouble| trouble <= until + WRITTEN);
        let mut slow = operator.disk_slow.iter();
        has_refused || slow.any(|(begin, end)| *begin <= until && from < *end + SYNCED)
    };
    let mut faults = said.lines().filter(|line| line.starts_with("FAULT")).peekable();
    faults.peek().is_some()
        && faults.all(|line| {
            let is_of_disk = line.contains(WITHOUT) || line.contains(SILENT);
            let from = line.split_whitespace().find_map(time_of);
            let needs_room = |at| {
                line.contains(WITHOUT) && book.read(|it| room::may_have_filled(it, at, WRITTEN))
            };
            is_of_disk
                && from
                    .is_some_and(|from| is_excuse(from, from + silence(line)) || needs_room(from))
        })
}

/// Returns for how long nothing was recorded, according to a fault; zero for other faults.
fn silence(fault: &str) -> Duration {
    let seconds = fault.split_once(SILENT).and_then(|(_, rest)| rest.split_whitespace().next());
    Duration::from_secs(seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(0))
}

/// Reads a time of the first day, such as `2026-06-01T12:00:35.861Z:`, as simulated time.
pub(crate) fn time_of(word: &str) -> Option<Duration> {
    let time = word.strip_prefix("2026-06-01T")?.trim_end_matches(':').trim_end_matches('Z');
    let (clock, milliseconds) = time.split_once('.')?;
    let mut parts = clock.split(':').map_while(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let seconds = (hours.checked_sub(12)? * 60 + minutes) * 60 + seconds;
    Some(Duration::from_secs(seconds) + Duration::from_millis(milliseconds.parse().ok()?))
}

/// Returns the files of the log whose change must be noticed, in order. These are not among them:
///
/// - `evidence-head` beside the log: the checkpoint of a stopped relay covers the same entries.
/// - Line hashes that were set aside because they belong to other events.
/// - Partial tiles that only readers of the checkpoint before the newest one need.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    list(Path::new(LOG), Path::new(LOG), &mut found);
    let size = checkpoint(Path::new("queue")).1;
    found.retain(|path| {
        let name = path.to_string_lossy();
        if let Some((tile, width)) = name.split_once(".p/") {
            let mut parts = tile.split('/').skip(1);
            let level = parts.next().and_then(|level| level.parse().ok()).unwrap_or(0);
            let of_level = size >> (8 * level);
            let last = format!("{:03}", of_level / 256);
            return parts.next() == Some(last.as_str()) && width == (of_level % 256).to_string();
        }
        name == "checkpoint" || name.starts_with("tile/") || name.starts_with("lines/")
    });
    found
}

/// Returns the newest checkpoint of the log in a queue's directory, and its size.
pub(crate) fn checkpoint(queue: &Path) -> (Vec<u8>, u64) {
    let note = fs::read(queue.join("evidence/checkpoint")).unwrap_or_default();
    let size = size(&note);
    (note, size)
}

/// Returns the size in a checkpoint, or 0 if there is none.
fn size(note: &[u8]) -> u64 {
    let line = std::str::from_utf8(note).ok().and_then(|note| note.lines().nth(1));
    line.and_then(|line| line.parse().ok()).unwrap_or(0)
}

/// Adds the files below a directory, in order, as paths below `root`.
fn list(root: &Path, directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => list(root, &path, found),
            false => found.extend(path.strip_prefix(root).map(Path::to_path_buf)),
        }
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    let mut found = Vec::new();
    list(from, from, &mut found);
    for name in found {
        let path = to.join(&name);
        fs::create_dir_all(path.parent().expect("it is below a directory")).expect("it is new");
        // The relay may have deleted the file in the meantime.
        fs::copy(from.join(&name), path).ok();
    }
}
