//! `evidence verify` on random logs: an untouched log never gets a fault, and a log with one random
//! change never passes. The logs have the same troubles as those of honest operators: clocks that
//! are set, kills, reloads, hashes that were deleted for room, restored directories, witnesses that
//! are down, repeated batches, and exports to several files.

use std::ops::Range;

use fastrand::Rng;

use crate::evidence::recorded::{keygen, text_of};
use crate::evidence::verify::{Checked, check};
use crate::support::clock::WallClock;
use crate::support::prelude::*;
use crate::support::spool::Entry;
use crate::support::witness::Witness;

/// The number of random changes for each log.
const CHANGES: usize = 40;

/// The events in a flood. The line hashes of two floods exceed the smallest `evidence.max_bytes`.
const FLOOD: usize = 20_000;

/// The clocks of a relay, in seconds ahead of the machine's clock. The last one is in 1970.
const CLOCKS: [i64; 6] = [0, -7_200, 7_200, -1, 34_560_000, -1_795_000_000];

/// A relay with its own log.
struct Source {
    spool: Spool,
    key: PathBuf,
    origin: String,
    verifier: String,
    witness: Option<Witness>,
    relay: Option<Relay>,
    clock: WallClock,
    /// In the last config: whether there was an output besides `consumer`, and its filter.
    has_other: bool,
    filter: &'static str,
    /// An earlier copy of the directory.
    backup: Option<Spool>,
}

/// What has happened to a cluster. Some of it keeps a check from passing completely.
#[derive(Debug, Clone, Copy, Default)]
struct Had {
    /// The number of floods. After two of them, some line hashes are missing.
    floods: usize,
    restores: usize,
    /// A witness was down, or its clock was not the relay's.
    witness_away: bool,
}

impl Had {
    /// Returns `true` if a check of all logs can pass with all lines found.
    fn is_whole(self) -> bool {
        self.floods < 2 && self.restores == 0 && !self.witness_away
    }
}

/// One or two relays, and the store for the lines of both.
struct Cluster {
    directory: TempDir,
    sink: HttpSink,
    other: HttpSink,
    sources: Vec<Source>,
    seed: u64,
    /// `true` if `evidence.max_bytes` has its smallest value.
    is_small: bool,
    had: Had,
}

const FILTERS: [&str; 3] = ["", "filter = { policy = \"POLICY\" }\n", "DEDUPLICATE"];

const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
                      - {level: None, namespaces: [team-1]}\n\
                      - {level: Metadata, namespaces: [team-2]}\n- level: RequestResponse\n";

impl Cluster {
    fn new(has_witness: bool, rng: &mut Rng) -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("policy.yaml"), POLICY).unwrap();
        let count = rng.usize(1..=2);
        let sources = (0..count).map(|number| {
            let key = directory.path().join(format!("key-{number}"));
            let origin = format!("example.org/prod-eu/relay-{number}");
            let verifier = keygen(&origin, &key);
            // With two logs, a check would need cosignatures of each named witness in both.
            let witness = (count == 1 && has_witness).then(|| Witness::start(&verifier));
            Source {
                spool: Spool::new(),
                key,
                origin,
                verifier,
                witness,
                relay: None,
                clock: WallClock::new(),
                has_other: rng.bool(),
                filter: rng.choice(FILTERS).unwrap_or_default(),
                backup: None,
            }
        });
        let sources = sources.collect();
        let [sink, other] = [0; 2].map(|_| HttpSink::start(|_| Answer::status(200)));
        let (is_small, had) = (rng.u8(..4) == 0, Had::default());
        Self { directory, sink, other, sources, seed: 0, is_small, had }
    }

    fn config(&self, at: usize) -> String {
        let Source { spool, key, origin, witness, has_other, filter, .. } = &self.sources[at];
        let policy = self.directory.path().join("policy.yaml").display().to_string();
        let filter = match *filter {
            "DEDUPLICATE" => "filter = { deduplicate = \"1h\" }\n".to_owned(),
            filter => filter.replace("POLICY", &policy),
        };
        let other = match has_other {
            true => {
                let url = self.other.address();
                format!(
                    "[[output]]\nname = \"other\"\ntype = \"http\"\nurls = [\"http://{url}/\"]\n"
                )
            }
            false => String::new(),
        };
        let output = to_sink(self.sink.address(), &filter);
        let queue = spool.queue("segment_bytes = \"256KiB\"\n");
        let key = key.display();
        let witness = witness.as_ref().map(Witness::config).unwrap_or_default();
        let most = if self.is_small { "max_bytes = \"1MiB\"\n" } else { "" };
        format!(
            "{output}{other}{queue}[evidence]\nkey_file = \"{key}\"\norigin = \"{origin}\"\n\
             checkpoint_interval = \"1s\"\nheartbeat_interval = \"1h\"\n{most}{witness}"
        )
    }

    /// Starts a relay, if it is not running.
    fn start(&mut self, at: usize) -> &mut Relay {
        let config = self.config(at);
        let source = &mut self.sources[at];
        source.relay.get_or_insert_with(|| {
            let mut relay = Relay::with(&config);
            for (name, value) in source.clock.variables() {
                relay = relay.variable(name, &value);
            }
            relay.start()
        })
    }

    /// Replaces the directory of a stopped relay by a backup, with a new origin and a new key, as
    /// docs/prove/trouble.md says.
    fn restore(&mut self, at: usize) {
        let Some(backup) = self.sources[at].backup.take() else { return };
        self.had.restores += 1;
        let source = &mut self.sources[at];
        source.spool = backup;
        source.origin.push('a');
        source.key = self.directory.path().join(format!("key-{at}-{}", self.had.restores));
        source.verifier = keygen(&source.origin, &source.key);
        source.witness = source.witness.take().map(|_| Witness::start(&source.verifier));
    }

    /// Does something random to a random relay.
    fn step(&mut self, rng: &mut Rng) {
        let at = rng.usize(..self.sources.len());
        self.start(at);
        match rng.u8(..20) {
            0 => self.end_one(at, true),
            1 => self.end_one(at, false),
            2 => {
                self.sources[at].has_other = rng.bool();
                self.sources[at].filter = rng.choice(FILTERS).unwrap_or_default();
                let config = self.config(at);
                let relay = self.start(at);
                // The events so far are delivered under the old config.
                relay.wait_until_delivered(PATIENCE);
                relay.reload(&config, "success");
            }
            3 => std::thread::sleep(Duration::from_millis(rng.u64(..1500))),
            4 | 5 => {
                self.sources[at].clock.set(rng.choice(CLOCKS).unwrap_or_default());
                // The relay refuses a cosignature from the future.
                self.had.witness_away |= self.sources[at].witness.is_some();
            }
            6 => {
                if let Some(witness) = &mut self.sources[at].witness {
                    self.had.witness_away = true;
                    match witness.is_there() {
                        true => witness.go_away(),
                        false => witness.come_back(),
                    }
                }
            }
            // Without a checkpoint, nothing would show that there was an earlier log.
            7 if !has_no_log(&self.sources[at]) => {
                self.sources[at].backup = Some(self.sources[at].spool.copy());
            }
            8 => {
                if self.sources[at].backup.is_some() {
                    self.end_one(at, rng.bool());
                    self.restore(at);
                }
            }
            9 if self.is_small => {
                self.had.floods += 1;
                self.seed += 1;
                let body = generated_batch(self.seed, FLOOD, 500);
                assert_eq!(self.start(at).post(&body).status, 200);
            }
            _ => {
                // A sender that got no response sends its batch again, now or later.
                let is_again = self.seed > 0 && rng.u8(..6) == 0;
                let seed = if is_again { rng.u64(1..=self.seed) } else { self.seed + 1 };
                self.seed = self.seed.max(seed);
                let body = generated_batch(seed, rng.usize(1..120), 700);
                for _ in 0..rng.usize(1..=2) {
                    assert_eq!(self.start(at).post(&body).status, 200);
                }
            }
        }
    }

    /// Ends a relay: by a kill, or in order with everything delivered.
    fn end_one(&mut self, at: usize, by_kill: bool) {
        let mut relay = self.sources[at].relay.take().expect("it was started");
        match by_kill {
            true => relay.kill(),
            false => {
                relay.wait_until_delivered(PATIENCE);
                relay.stop();
            }
        }
    }

    /// Ends all relays in order, with everything delivered.
    fn end(&mut self) {
        for at in 0..self.sources.len() {
            self.start(at);
            self.end_one(at, false);
        }
    }

    /// Checks directories against stored lines. `kept` are checkpoints that the auditor has kept.
    fn check(&self, spools: &[&Spool], stored: &[Vec<u8>], kept: &[PathBuf]) -> Checked {
        let mut arguments = vec!["--no-wait".to_owned()];
        for (source, spool) in self.sources.iter().zip(spools) {
            arguments.extend(["--directory".to_owned(), spool.path().display().to_string()]);
            arguments.extend(["--key".to_owned(), source.verifier.clone()]);
        }
        if let [Source { witness: Some(witness), .. }] = self.sources.as_slice() {
            arguments.extend(["--witness".to_owned(), witness.verifier.clone()]);
        }
        for note in kept {
            arguments.extend(["--checkpoint".to_owned(), note.display().to_string()]);
        }
        arguments.extend(["--output", "consumer"].map(str::to_owned));
        for (number, text) in stored.iter().enumerate() {
            let file = self.directory.path().join(format!("stored-{number}"));
            std::fs::write(&file, text).unwrap();
            arguments.extend(["--events".to_owned(), file.display().to_string()]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        check(&arguments)
    }

    /// Copies the newest checkpoint of each log, like an auditor who does not trust the disk.
    fn keep_checkpoints(&self) -> Vec<PathBuf> {
        let keep = |(at, source): (usize, &Source)| {
            let note = self.directory.path().join(format!("kept-{at}"));
            std::fs::copy(source.spool.path().join("evidence/checkpoint"), &note).unwrap();
            note
        };
        self.sources.iter().enumerate().map(keep).collect()
    }

    fn spools(&self) -> Vec<&Spool> {
        self.sources.iter().map(|source| &source.spool).collect()
    }

    fn stored(&self) -> Vec<Vec<u8>> {
        accepted_events(&self.sink)
    }
}

/// Distributes lines over files, like a consumer that has several. `before` is the number of lines
/// that the consumer had when all files but the last were copied.
fn export(lines: &[Vec<u8>], before: usize, rng: &mut Rng) -> Vec<Vec<u8>> {
    let count = rng.usize(1..=3);
    let mut files = vec![Vec::new(); count];
    for (number, line) in lines.iter().enumerate() {
        let at = rng.usize(..count);
        if at + 1 == count || number < before {
            files[at].extend_from_slice(line);
            files[at].push(b'\n');
        }
    }
    files
}

/// Method: one or two relays with a shared store go through random steps ([`Cluster::step`]). At
/// random moments, their directories are copied and the lines are exported. Nothing is wrong at
/// these moments, so no check may report a fault. At the end, the check must pass, except for what
/// the auditor really lacks.
#[test]
fn a_log_that_nobody_touched_never_gets_a_fault() {
    let mut rng = rng();
    let (mut checks, mut whole) = (0, 0);
    let lives = number_from("KUBE_AUDIT_FORWARDER_LOGS", 2);
    for _ in 0..lives {
        let mut cluster = Cluster::new(rng.bool(), &mut rng);
        let mut before = 0;
        for _ in 0..25 {
            cluster.step(&mut rng);
            if !rng.bool() || cluster.sources.iter().any(has_no_log) {
                continue;
            }
            let is_before = rng.bool();
            let mut stored = cluster.stored();
            let copies: Vec<_> = cluster.spools().into_iter().map(Spool::copy).collect();
            if !is_before {
                stored = cluster.stored();
            }
            let before = std::mem::replace(&mut before, stored.len());
            let files = export(&stored, before, &mut rng);
            let copied = cluster.check(&copies.iter().collect::<Vec<_>>(), &files, &[]);
            assert!([0, 2].contains(&copied.status), "copied: {}", copied.text);
            let live = cluster.check(&cluster.spools(), &files, &[]);
            assert!([0, 2].contains(&live.status), "live: {}", live.text);
            checks += 2;
        }
        cluster.end();
        let stored = cluster.stored();
        let files = export(&stored, stored.len(), &mut rng);
        let last = cluster.check(&cluster.spools(), &files, &[]);
        let had = cluster.had;
        assert!(passes(&last, had), "{had:?}: {}", last.text);
        (checks, whole) = (checks + 1, whole + usize::from(last.status == 0));
    }
    println!(
        "{lives} lives, {checks} checks without a fault, {whole} lives passed whole at the end"
    );
}

/// Returns `true` if there is no fault, and only what [`Had`] or a kill explains was not checked.
/// After a kill, a reload or a cosignature can be missing, and lines can have been sent under
/// earlier rules.
fn passes(checked: &Checked, had: Had) -> bool {
    if !had.is_whole() {
        return [0, 2].contains(&checked.status);
    }
    let mut unchecked = checked.text.lines().filter(|line| line.starts_with("NOT CHECKED"));
    let said = ["may have recorded too late that the output", "are not in the log: ", "cosign"];
    let is_of_kill = |line: &str| said.iter().any(|said| line.contains(said));
    checked.status == 0 || checked.status == 2 && unchecked.all(is_of_kill)
}

/// Returns `true` if the relay has signed nothing yet under its origin.
fn has_no_log(source: &Source) -> bool {
    let checkpoint = std::fs::read_to_string(source.spool.path().join("evidence/checkpoint"));
    !checkpoint.is_ok_and(|note| note.lines().next() == Some(&source.origin))
}

/// Method: after random steps of one or two relays, one random thing is changed in a copy of the
/// log or in the stored lines. No such change may pass.
#[test]
fn one_random_change_never_passes() {
    let mut rng = rng();
    let (mut changes, mut strict) = (0, 0);
    let lives = number_from("KUBE_AUDIT_FORWARDER_LOGS", 2);
    for _ in 0..lives {
        let mut cluster = Cluster::new(false, &mut rng);
        for _ in 0..15 {
            cluster.step(&mut rng);
        }
        let older: Vec<_> = cluster.spools().into_iter().map(Spool::copy).collect();
        cluster.end();
        let stored = [text_of(&cluster.stored())];
        let kept = cluster.keep_checkpoints();
        let untouched = cluster.check(&cluster.spools(), &stored, &kept);
        assert!(passes(&untouched, cluster.had), "{:?}: {}", cluster.had, untouched.text);
        for _ in 0..CHANGES {
            let copies: Vec<_> = cluster.spools().into_iter().map(Spool::copy).collect();
            let mut lines = stored.clone();
            let change = match rng.bool() && !lines[0].is_empty() {
                true => change_lines(&mut lines[0], &mut rng),
                false => {
                    let at = rng.usize(..copies.len());
                    change_log(&copies[at], &older[at], &mut rng)
                }
            };
            let Some(change) = change else { continue };
            let checked = cluster.check(&copies.iter().collect::<Vec<_>>(), &lines, &kept);
            assert_ne!(checked.status, 0, "{change}: {}", checked.text);
            (changes, strict) = (changes + 1, strict + usize::from(untouched.status == 0));
        }
    }
    println!(
        "{lives} lives, {changes} changes of which none passed; {strict} of them in logs that had \
         passed whole before"
    );
}

/// Returns the byte ranges of the lines that occur exactly once.
fn lines_once(stored: &[u8]) -> Vec<Range<usize>> {
    let mut places = std::collections::HashMap::<&[u8], (Range<usize>, u32)>::new();
    let mut start = 0;
    for line in stored.split_inclusive(|byte| *byte == b'\n') {
        let place = start..start + line.len();
        start = place.end;
        places.entry(line).or_insert((place, 0)).1 += 1;
    }
    let mut once: Vec<_> =
        places.into_values().filter(|(_, times)| *times == 1).map(|(place, _)| place).collect();
    once.sort_by_key(|place| place.start);
    once
}

/// Changes one thing in the stored lines, and returns what. `None`: nothing was changed.
fn change_lines(stored: &mut Vec<u8>, rng: &mut Rng) -> Option<String> {
    let lines = lines_once(stored);
    let line = rng.choice(&lines)?.clone();
    let text = format!("line at byte {}", line.start);
    match rng.u8(..5) {
        0 => {
            stored.drain(line);
            Some(format!("{text} removed"))
        }
        1 => {
            let at = rng.usize(line.start..line.end - 1);
            // No other byte may become a line break.
            stored[at] ^= if stored[at] == b'\n' ^ 1 { 2 } else { 1 };
            Some(format!("{text}: byte {at}"))
        }
        2 => {
            let invented = stored[line.clone()].to_vec();
            let invented = String::from_utf8(invented).ok()?.replacen("team-", "taem-", 1);
            if invented.as_bytes() == &stored[line.clone()] {
                return None;
            }
            stored.extend_from_slice(invented.as_bytes());
            Some(format!("{text}: an invented copy at the end"))
        }
        3 => {
            // A digit of the time at which the request arrived.
            let name = b"\"requestReceivedTimestamp\":\"20";
            let at = memchr::memmem::find(&stored[line.clone()], name)?;
            let digit = line.start + at + name.len() + 1;
            stored[digit] = if stored[digit] == b'9' { b'1' } else { stored[digit] + 1 };
            Some(format!("{text}: its time"))
        }
        _ => {
            stored.truncate(line.start);
            Some(format!("{text} and all later ones removed"))
        }
    }
}

/// Changes one thing in the files of a log, and returns what. `None`: nothing was changed.
fn change_log(log: &Spool, older: &Spool, rng: &mut Rng) -> Option<String> {
    let files: Vec<_> = log
        .files()
        .into_iter()
        .filter(|(path, file)| {
            // A kill can leave a file with the ending `new`. Only version 0.1 reads the journal.
            let is_read =
                path.extension() != Some("new".as_ref()) && !path.ends_with("evidence/journal");
            path.starts_with("evidence") && is_read && !file.bytes.is_empty()
        })
        .collect();
    let (path, file) = rng.choice(&files)?;
    let name = path.display();
    let place = log.path().join(path);
    match rng.u8(..4) {
        0 => {
            if is_replaced(path, &files) {
                // A log may delete partial tiles once a wider one exists (C2SP tlog-tiles).
                return None;
            }
            std::fs::remove_file(place).unwrap();
            Some(format!("{name} removed"))
        }
        1 => {
            let at = rng.usize(..file.bytes.len());
            log.edit(path, |bytes| bytes[at] ^= 1 << rng.u8(..8));
            Some(format!("{name}: byte {at}"))
        }
        2 => {
            let length = rng.usize(..file.bytes.len());
            log.edit(path, |bytes| bytes.truncate(length));
            Some(format!("{name}: cut to {length} bytes"))
        }
        _ => {
            let before = std::fs::read(older.path().join(path)).ok()?;
            if before == file.bytes {
                return None;
            }
            std::fs::write(&place, before).unwrap();
            Some(format!("{name}: set back to an older one"))
        }
    }
}

/// Returns `true` if this is a partial tile, and there is a wider one in its place.
fn is_replaced(path: &Path, files: &[(PathBuf, Entry)]) -> bool {
    let width = |path: &Path| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let is_partial = path.parent().is_some_and(|parent| parent.extension() == Some("p".as_ref()));
    is_partial
        && files
            .iter()
            .any(|(other, _)| other.parent() == path.parent() && width(other) > width(path))
}
