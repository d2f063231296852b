//! `evidence verify` at the end of a seed: it accuses nobody of what nobody has done, and it
//! notices one change of the log or of the stored lines.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::consumers::Consumer;
use crate::consumers::Copies;
use crate::consumers::Kind;
use crate::kernel;
use crate::operator::Operator;
use crate::plan::Why;
use crate::senders;
use crate::truth::Attempt;
use crate::truth::Book;
use crate::truth::Fate;

/// The files of the log.
const LOG: &str = "queue/evidence";

/// An older copy of them.
const OLDER: &str = "older-evidence";

/// The newest checkpoint as somebody has kept it.
const KEPT: &str = "kept-checkpoint";

/// The stored lines.
const STORED: &str = "stored-lines";

/// The time of the simulation's begin, in seconds since 1970: noon.
const NOON: u64 = 1_780_315_200;

/// The beginning of the fault about events without evidence.
const WITHOUT: &str = "events came in while evidence was off or could not be written";

/// The change of a seed.
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
    /// `key` is the verifier key of the log.
    pub(crate) fn new(seed: u64, key: String) -> Self {
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
        Self { key, rng, change }
    }

    /// Copies the log, if it is to be set back to this copy later.
    pub(crate) fn may_copy(&self) {
        if matches!(self.change, Way::SetBack | Way::SetBackWithCheckpoint) {
            copy(Path::new(LOG), Path::new(OLDER));
        }
    }

    /// Checks the log of a relay that has stopped, changes one thing, and checks it again. Notes
    /// faults with the operator.
    pub(crate) fn run(mut self, operator: &mut Operator<'_>, book: &Book, consumers: &[Consumer]) {
        if !operator.has_libraries(2) {
            return;
        }
        let stored = self.store(book, consumers);
        let (status, untouched) = self.verify(operator, stored.as_deref(), false);
        if let Some((from, to)) = operator.evidence_was_off {
            // All that the log can say of that time is how many events came in.
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
        if !matches!(status, Some(0 | 2)) && !is_excused(operator, &untouched) {
            let what = format!("evidence: verify ends with {status:?}: {untouched}");
            operator.faults.push(what);
            return;
        }
        let Some((name, change)) = self.change(stored.is_some()) else { return };
        kernel::trace(format_args!("the evidence is changed: {change}"));
        let has_kept = self.change == Way::SetBackWithCheckpoint;
        let (status, said) = self.verify(operator, stored.as_deref(), has_kept);
        let before: BTreeSet<&str> = untouched.lines().collect();
        let mut new = said.lines().filter(|line| !before.contains(line));
        let is_told = |line: &str| {
            let is_judged = line.starts_with("FAULT") || line.starts_with("NOT CHECKED");
            // A record that no entry needs may be damaged, and then a note has its place.
            is_judged || (line.starts_with("note: ") && line.contains(&name))
        };
        if !new.any(is_told) {
            let what =
                format!("evidence: verify does not notice that {change}: {status:?}: {said}");
            operator.faults.push(what);
        }
        self.start_again(operator);
    }

    /// Starts the relay once more. It notices a log that was set back, and the removal of a file
    /// below its hands (evidence.md).
    fn start_again(&self, operator: &mut Operator<'_>) {
        let is_set_back = matches!(self.change, Way::SetBack | Way::SetBackWithCheckpoint);
        let is_whole = matches!(self.change, Way::LineRemoved | Way::LineChanged);
        if !operator.has_libraries(1) || !is_set_back && !is_whole {
            return;
        }
        operator.start();
        // A checkpoint is signed, and the files are looked at, each second.
        std::thread::sleep(Duration::from_secs(5));
        if is_whole {
            fs::remove_file(Path::new(LOG).join("checkpoint")).expect("it is there");
            std::thread::sleep(Duration::from_secs(5));
        }
        let reason = [("reason", "tampered")];
        let metrics = operator.metrics();
        let alarms = metrics.map(|metrics| metrics.count("evidence_errors_total", &reason));
        if alarms == Some(0) {
            let what = if is_set_back { "a log that was set back" } else { "a removed checkpoint" };
            operator.faults.push(format!("evidence: the relay does not notice {what}"));
        }
        operator.stop(Why::Signal);
    }

    /// Runs `evidence verify`. `outputs`: the outputs to which the stored lines belong.
    fn verify(
        &self,
        operator: &mut Operator<'_>,
        outputs: Option<&[String]>,
        has_kept: bool,
    ) -> (Option<i32>, String) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let second = now.saturating_sub(NOON) + 12 * 3600;
        let (day, hour) = (1 + second / 86400, second / 3600 % 24);
        let now = format!("2026-06-{day:02}T{hour:02}:{:02}:{:02}Z", second / 60 % 60, second % 60);
        let mut arguments =
            vec!["evidence", "verify", "--directory", "queue", "--key", &self.key, "--allow-lost"];
        if let Some(outputs) = outputs {
            arguments.extend(["--events", STORED, "--exported-at", &now]);
            outputs.iter().for_each(|output| arguments.extend(["--output", output.as_str()]));
        }
        if has_kept {
            arguments.extend(["--checkpoint", KEPT]);
        }
        operator.command(&arguments)
    }

    /// Writes the lines that one consumer has stored, and returns the names of its outputs. `None`
    /// if no consumer has lines that can be compared.
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

    /// Makes the change. Returns the name of the changed file and what the change is, or `None` if
    /// there is nothing to change. `has_lines`: there are stored lines.
    fn change(&mut self, has_lines: bool) -> Option<(String, String)> {
        match self.change {
            Way::LineRemoved | Way::LineChanged if has_lines => self.change_line(),
            Way::LineRemoved | Way::LineChanged => {
                self.change = Way::Flip;
                self.change(false)
            }
            Way::SetBack | Way::SetBackWithCheckpoint => {
                let kept = fs::read(Path::new(LOG).join("checkpoint")).ok()?;
                let older = fs::read(Path::new(OLDER).join("checkpoint")).ok()?;
                fs::write(KEPT, &kept).expect("a writable directory");
                fs::remove_dir_all(LOG).expect("it is there");
                fs::rename(OLDER, LOG).expect("it is there");
                let what = || "the log was set back to an older copy".to_owned();
                (kept != older).then(|| ("checkpoint".to_owned(), what()))
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
        // Another copy of the line would stand for it.
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

    /// Removes an entry from a bundle of the newest checkpoint.
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

    /// Flips a byte of a file, removes it, or cuts it.
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

/// Returns true if the lines of a consumer can be compared with the log.
fn is_comparable(consumer: &Consumer) -> bool {
    let promise = consumer.promise();
    // Nothing tells whether these have received an event. Equal events are one event to a store
    // that merges them. And a store may have events of a refused request that it does not name:
    // "all of them are named as lost or as dead letters" (evidence-format.md).
    let is_confirmed = !matches!(consumer.kind, Kind::Tcp | Kind::Syslog);
    is_confirmed && promise.copies != Copies::OnceMerged && !promise.counts
}

/// Returns the number of events that were accepted in this time.
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

/// Returns the number of events without evidence that `evidence verify` speaks of.
fn without(said: &str) -> usize {
    let lines = said.lines().filter_map(|line| line.split_once(WITHOUT));
    lines.filter_map(|(before, _)| before.split_whitespace().last()?.parse::<usize>().ok()).sum()
}

/// Returns true if the only faults are about events without evidence, and the disk has refused
/// writes before each of them: "If evidence can't be written, forwarding goes on, segments stay
/// until the queue is full".
fn is_excused(operator: &Operator<'_>, said: &str) -> bool {
    let Some(trouble) = operator.disk_refused else { return false };
    let mut faults = said.lines().filter(|line| line.starts_with("FAULT")).peekable();
    faults.peek().is_some()
        && faults.all(|line| {
            let at = line.split_whitespace().find_map(time_of);
            line.contains(WITHOUT) && at.is_some_and(|at| trouble <= at)
        })
}

/// Reads a time of the first day, such as `2026-06-01T12:00:35.861Z:`, as a simulated time.
pub(crate) fn time_of(word: &str) -> Option<Duration> {
    let time = word.strip_prefix("2026-06-01T")?.trim_end_matches(':').trim_end_matches('Z');
    let (clock, milliseconds) = time.split_once('.')?;
    let mut parts = clock.split(':').map_while(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let seconds = (hours.checked_sub(12)? * 60 + minutes) * 60 + seconds;
    Some(Duration::from_secs(seconds) + Duration::from_millis(milliseconds.parse().ok()?))
}

/// Returns the files of the log whose change must be noticed, below its directory, in order. Not
/// among them are:
///
/// - journals: "`evidence verify` has no private key, and can't check the MACs"
///   (evidence-format.md). The checkpoint of a stopped relay covers their entries.
/// - line hashes that were set aside, because they are those of other events.
/// - partial tiles that the newest checkpoint does not need. They stay for readers of the one
///   before it.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    list(Path::new(LOG), &mut found);
    let checkpoint = fs::read_to_string(Path::new(LOG).join("checkpoint")).unwrap_or_default();
    let size: u64 = checkpoint.lines().nth(1).and_then(|line| line.parse().ok()).unwrap_or(0);
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

/// Adds the files below a directory, in order, by their paths below [`LOG`].
fn list(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => list(&path, found),
            false => found.extend(path.strip_prefix(LOG).map(Path::to_path_buf)),
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let mut found = Vec::new();
    list(from, &mut found);
    for name in found {
        let path = to.join(&name);
        fs::create_dir_all(path.parent().expect("it is below a directory")).expect("it is new");
        // The relay may have deleted the file meanwhile.
        fs::copy(from.join(&name), path).ok();
    }
}
