//! `queue inspect`, `queue export` and `queue verify`: what they print about the directory of a
//! running, a stopped and a killed relay, and that they change no file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::lines_in;
use crate::support::prelude::*;
use crate::support::requests::received_events;

/// A queue's directory, inside a temporary directory that is removed with it.
struct Spool {
    parent: TempDir,
}

/// The state of a file: contents, mode, time of the last change (seconds and nanoseconds), length.
type Seen = (Vec<u8>, u32, (i64, i64), u64);

impl Spool {
    fn new() -> Self {
        Self { parent: TempDir::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.parent.path().join("spool")
    }

    /// Returns a config with this directory, small segments and these outputs. An output is given
    /// as its name and its consumer's address.
    fn config(&self, more: &str, outputs: &[(&str, &str)]) -> String {
        let directory = self.path();
        let mut config = format!(
            "{BASE}[queue]\ndirectory = {directory:?}\nsegment_bytes = \"64KiB\"\n{more}\n"
        );
        for (name, to) in outputs {
            let output = format!("[[output]]\nname = \"{name}\"\ntype = \"http\"\n");
            config
                .push_str(&format!("{output}urls = [\"http://{to}/\"]\nconcurrency = 1\n{QUICK}"));
            config.push_str("batch = { max_events = 20 }\n");
        }
        config
    }

    fn files(&self) -> BTreeMap<PathBuf, Seen> {
        let (mut files, mut folders) = (BTreeMap::new(), vec![self.path()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                if metadata.is_dir() {
                    folders.push(path.clone());
                }
                let bytes = std::fs::read(&path).unwrap_or_default();
                let times = (metadata.mtime(), metadata.mtime_nsec());
                files.insert(path, (bytes, metadata.mode(), times, metadata.len()));
            }
        }
        files
    }

    /// Returns the paths of the segments, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let segments = std::fs::read_dir(self.path().join("segments")).unwrap();
        let mut segments: Vec<PathBuf> = segments.map(|entry| entry.unwrap().path()).collect();
        segments.sort();
        segments
    }

    /// Runs `queue` with these arguments. Returns the exit status, the standard output and the
    /// standard error.
    fn queue(&self, words: &[&str]) -> (Option<i32>, Vec<u8>, String) {
        split(run_command(&[&["queue"], words].concat(), self.parent.path()))
    }

    fn inspect(&self) -> Value {
        let (code, stdout, stderr) = self.queue(&["inspect", "--json", "spool"]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        serde_json::from_slice(&stdout).unwrap()
    }

    /// Runs `queue verify`, checks that nothing is damaged, and returns its line of output.
    fn verify(&self) -> String {
        let (code, stdout, stderr) = self.queue(&["verify", "spool"]);
        let stdout = String::from_utf8(stdout).unwrap();
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
        assert!(stdout.lines().count() == 1 && stdout.contains(" bytes: whole"), "{stdout}");
        stdout
    }

    /// Runs `queue export`, checks that nothing is damaged, and returns the events.
    fn export(&self, more: &[&str]) -> Vec<Vec<u8>> {
        let (code, stdout, stderr) = self.queue(&[&["export", "spool"], more].concat());
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        lines_of(&stdout)
    }
}

fn split(output: Output) -> (Option<i32>, Vec<u8>, String) {
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

fn lines_of(stdout: &[u8]) -> Vec<Vec<u8>> {
    assert!(stdout.is_empty() || stdout.ends_with(b"\n"), "the last line has no end");
    lines_in(stdout)
}

fn stop(mut relay: Relay) {
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0));
}

/// POSTs a batch for each seed, and returns their events.
fn post(relay: &Relay, seeds: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let mut events = Vec::new();
    for seed in seeds {
        let batch = generated_batch(seed, 25, 900);
        assert_eq!(relay.post(&batch).status, 200);
        events.extend(events_of(&batch));
    }
    events
}

/// An address at which nothing listens.
const DEAD: &str = "127.0.0.1:1";

/// Returns the queue of a stopped relay with a backlog of `batches` batches, and its events.
fn stopped(batches: u64) -> (Spool, Vec<Vec<u8>>) {
    let spool = Spool::new();
    let relay = Relay::start(&spool.config("", &[("dead", DEAD)]));
    let events = post(&relay, 0..batches);
    stop(relay);
    (spool, events)
}

/// Senders that post until they are told to stop, and their events that got a 200.
struct Load {
    accepted: Arc<Mutex<Vec<Vec<u8>>>>,
    over: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn on(relay: &Relay) -> Self {
        let (accepted, over) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let address = relay.address();
        let send = |sender: u64| {
            let (accepted, over) = (Arc::clone(&accepted), Arc::clone(&over));
            std::thread::spawn(move || {
                let mut client = Client::connect(address).unwrap();
                for seed in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let events = [1, 40, 7, 90][usize::try_from(seed % 4).unwrap()];
                    let batch = generated_batch(sender << 32 | seed, events, 700);
                    match client.post("/audit", "application/json", &batch).map(|it| it.status) {
                        Ok(200) => accepted.lock().unwrap().extend(events_of(&batch)),
                        Ok(429) => {}
                        // The relay was killed.
                        Err(_) => return,
                        Ok(status) => panic!("answered {status}"),
                    }
                    std::thread::sleep(Duration::from_millis(15));
                }
            })
        };
        let threads = (0..2).map(send).collect();
        Self { accepted, over, threads }
    }

    fn accepted(&self) -> Vec<Vec<u8>> {
        self.accepted.lock().unwrap().clone()
    }

    fn end(self) -> Vec<Vec<u8>> {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.accepted.lock().unwrap().clone()
    }
}

fn assert_holds(exported: &[Vec<u8>], expected: &[Vec<u8>], delivered: &[Vec<u8>]) {
    let there: BTreeSet<&[u8]> = exported.iter().chain(delivered).map(Vec::as_slice).collect();
    let missing = expected.iter().filter(|event| !there.contains(event.as_slice())).count();
    assert_eq!(missing, 0, "of {} events", expected.len());
}

/// The minimum time for which the commands run beside a relay, and the minimum number of rounds.
const BESIDE: (Duration, u32) = (Duration::from_secs(2), 6);

/// Method: a relay writes, delivers and deletes under load, while the three commands run on its
/// directory again and again. No command may report damage. Every export must have each event that
/// was accepted before it began and had not been delivered when it ended.
#[test]
fn beside_a_relay_that_writes_and_deletes_nothing_is_damaged_or_missing() {
    let spool = Spool::new();
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(3)));
    let address = sink.address().to_string();
    let relay = Relay::start(&spool.config("max_bytes = \"16MiB\"", &[("consumer", &address)]));
    let load = Load::on(&relay);
    wait_until("a deleted segment", PATIENCE, || spool.inspect()["first_position"] != 0);
    let (begun, mut rounds, mut firsts) = (Instant::now(), 0, BTreeSet::new());
    while begun.elapsed() < BESIDE.0 || rounds < BESIDE.1 {
        rounds += 1;
        let before = load.accepted();
        let exported = spool.export(&[]);
        assert_holds(&exported, &before, &received_events(&sink));
        let before = load.accepted();
        let exported = spool.export(&["--output", "consumer"]);
        assert_holds(&exported, &before, &accepted_events(&sink));
        spool.verify();
        let before = load.accepted().len() as u64;
        let told = spool.inspect();
        assert!(told["end_position"].as_u64().unwrap() >= before, "{before}: {told}");
        assert_eq!((&told["damaged_headers"], &told["cursors"]), (&0.into(), &"whole".into()));
        firsts.insert(told["first_position"].as_u64().unwrap());
    }
    assert!(firsts.len() > 2, "no segment was deleted: {firsts:?}");
    load.end();
    relay.wait_until_delivered(PATIENCE * 2);
    stop(relay);
    let told = spool.inspect();
    assert_eq!(told["outputs"][0]["backlog_events"], 0);
    spool.verify();
}

#[test]
fn after_a_stop_the_backlog_is_exact_and_nothing_is_changed() {
    let spool = Spool::new();
    let sink = HttpSink::accepting();
    let address = sink.address().to_string();
    let relay = Relay::start(&spool.config("", &[("consumer", &address), ("dead", DEAD)]));
    let events = post(&relay, 0..12);
    wait_until("the events", PATIENCE, || accepted_events(&sink).len() == events.len());
    let begun = Instant::now();
    stop(relay);

    let before = spool.files();
    let told = spool.inspect();
    let bytes: usize = events.iter().map(|event| event.len() + 1).sum();
    assert_eq!(told["format_version"], 2);
    assert_eq!((&told["first_position"], &told["end_position"]), (&0.into(), &300.into()));
    assert_eq!(told["segments"], spool.segments().len());
    let size = |path: &PathBuf| path.metadata().unwrap().len();
    assert_eq!(told["segment_bytes"], spool.segments().iter().map(size).sum::<u64>());
    let [consumer, dead] = told["outputs"].as_array().unwrap().as_slice() else { panic!("{told}") };
    assert_eq!((&consumer["name"], &consumer["backlog_events"]), (&"consumer".into(), &0.into()));
    assert_eq!((&dead["name"], &dead["backlog_events"]), (&"dead".into(), &300.into()));
    assert_eq!(dead["backlog_bytes"], bytes);
    let age = dead["oldest_age_seconds"].as_f64().unwrap();
    assert!(age >= begun.elapsed().as_secs_f64() - 0.01 && age < 600.0, "{age}");

    // The table has one line for each output, so that a script can cut it into columns.
    let (code, table, stderr) = spool.queue(&["inspect", "spool"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let table = String::from_utf8(table).unwrap();
    let words: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["OUTPUT", "EVENTS", "BYTES", "AGE_SECONDS"]);
    assert_eq!(words[1], ["consumer", "0", "0", "0"]);
    assert_eq!(words[2][..3], ["dead", "300", &bytes.to_string()]);
    assert!(words[3].is_empty() && words.contains(&vec!["end_position", "300"]), "{table}");

    assert!(spool.export(&[]) == events);
    assert!(spool.export(&["--output", "dead"]) == events);
    assert!(spool.export(&["--output", "consumer"]).is_empty());
    assert_eq!(
        spool.verify().split(" bytes").next().unwrap().split(", ").nth(1),
        Some("300 events")
    );
    assert!(spool.files() == before, "a file was changed");
}

#[test]
fn changed_bytes_are_told_with_their_place_and_cost_nothing_else() {
    let (spool, events) = stopped(12);
    let segment = spool.segments()[1].clone();
    let whole = std::fs::read(&segment).unwrap();
    let name = format!("segments/{}", segment.file_name().unwrap().to_str().unwrap());
    let first: usize = segment.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    // Each changed byte lies in the segment's first record, which begins at byte 4096 and holds 25
    // events.
    for at in [4096, 4130, 4200, 20_000] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&segment, bytes).unwrap();
        let before = spool.files();
        let (code, stdout, stderr) = spool.queue(&["verify", "spool"]);
        let stdout = String::from_utf8(stdout).unwrap();
        assert_eq!((code, stderr.as_str()), (Some(1), ""));
        let place = stdout.lines().next().unwrap();
        assert!(place.starts_with(&format!("{name} offset 4096: ")), "{stdout}");
        assert!(place.ends_with(" bytes damaged, 25 events missing"), "{stdout}");
        let summary = stdout.lines().nth(1).unwrap();
        assert!(summary.contains(", 275 events, ") && stdout.lines().count() == 2, "{stdout}");

        let (code, exported, stderr) = spool.queue(&["export", "spool"]);
        assert_eq!((code, stderr.trim_end()), (Some(1), place));
        assert!(lines_of(&exported) == [&events[..first], &events[first + 25..]].concat());
        spool.inspect();
        assert!(spool.files() == before, "a file was changed");
    }
    std::fs::remove_file(&segment).unwrap();
    let (code, stdout, _) = spool.queue(&["verify", "spool"]);
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(stdout.starts_with(&format!("positions {first} to ")), "{stdout}");
    assert_eq!(code, Some(1));
}

#[test]
fn a_read_only_mount_is_enough() {
    let (spool, events) = stopped(6);
    let before = spool.files();
    for (words, wanted) in [("inspect", "dead    150 "), ("verify", ": whole"), ("export", "")] {
        let mut command = where_it_is_read_only(&spool.path());
        command.args(["queue", words, "spool"]).current_dir(spool.parent.path());
        let (code, stdout, stderr) = split(command.output().unwrap());
        assert_eq!(code, Some(0), "{words}: {stderr}");
        assert!(String::from_utf8_lossy(&stdout).contains(wanted), "{words}");
        assert!(words != "export" || lines_of(&stdout) == events);
    }
    assert!(spool.files() == before, "a file was changed");
}

/// Returns a command that runs the program with this directory mounted read-only.
pub(super) fn where_it_is_read_only(directory: &Path) -> Command {
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && \
                  ! touch \"$0/x\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    if !is_root(directory) {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c", script]).arg(directory).arg(binary());
    command
}

/// Returns `true` if this file, which the process has made, belongs to root.
fn is_root(made: &Path) -> bool {
    made.metadata().unwrap().uid() == 0
}

/// Runs the binary without the capabilities that let root read every file.
fn as_anybody(words: &[&str], directory: &Path) -> (Option<i32>, Vec<u8>, String) {
    let capabilities = "-dac_override,-dac_read_search";
    let mut command = Command::new("setpriv");
    if is_root(directory) {
        command.args(["--inh-caps", capabilities, "--bounding-set", capabilities]);
    }
    command.arg(binary()).args(words).current_dir(directory);
    split(command.output().unwrap())
}

#[test]
fn what_may_not_be_read_is_told_with_the_remedy_and_the_rest_is_read() {
    let (spool, events) = stopped(6);
    let segments = spool.segments();
    let lacks =
        |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
    lacks(&segments[0]);
    let second: usize = segments[1].file_stem().unwrap().to_str().unwrap().parse().unwrap();
    for command in ["inspect", "verify", "export"] {
        let (code, stdout, stderr) = as_anybody(&["queue", command, "spool"], spool.parent.path());
        let stdout = String::from_utf8(stdout).unwrap();
        assert_eq!(code, Some(1), "{command}: {stdout}{stderr}");
        let told = if command == "verify" { &stdout } else { &stderr };
        assert!(told.contains("00000.seg: cannot be read") && told.contains("as root"), "{told}");
        match command {
            "inspect" => assert!(stdout.contains("dead    150 "), "{stdout}"),
            "verify" => {
                assert!(stdout.contains(&format!(", {} events, ", 150 - second)), "{stdout}")
            }
            _ => assert!(lines_of(stdout.as_bytes()) == events[second..]),
        }
    }
    for closed in ["cursors", "segments", ""] {
        lacks(&spool.path().join(closed));
        for command in ["inspect", "verify", "export"] {
            let (code, stdout, stderr) =
                as_anybody(&["queue", command, "spool"], spool.parent.path());
            assert_eq!(
                (code, stdout.as_slice()),
                (Some(1), &b""[..]),
                "{command} {closed}: {stderr}"
            );
            assert!(stderr.contains("cannot read spool") && stderr.contains("as root"), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    std::fs::set_permissions(spool.path(), Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(spool.path().join("segments"), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn what_is_no_queue_or_a_newer_one_is_told_in_one_line() {
    let (spool, _) = stopped(1);
    std::fs::create_dir(spool.parent.path().join("empty")).unwrap();
    std::fs::write(spool.parent.path().join("file"), "x").unwrap();
    let newer = spool.segments()[0].clone();
    let mut bytes = std::fs::read(&newer).unwrap();
    bytes[8] = 3;
    let crc = crc32c::crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&newer, bytes).unwrap();
    for command in ["inspect", "verify", "export"] {
        for (directory, status, told) in [
            ("absent", 2, ": cannot read the queue: No such file or directory"),
            ("empty", 2, "holds no queue"),
            ("file", 2, "holds no queue"),
            ("spool", 1, "has format version 3, this program reads 2"),
        ] {
            let (code, stdout, stderr) = spool.queue(&[command, directory]);
            assert_eq!((code, stdout.as_slice()), (Some(status), &b""[..]), "{directory}");
            assert!(stderr.contains(directory) && stderr.contains(told), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(spool.parent.path().join("empty")).unwrap().collect();
    assert!(left.is_empty(), "something was made");
}

#[test]
fn an_output_that_the_queue_does_not_have_is_refused() {
    let (spool, _) = stopped(1);
    let (code, stdout, stderr) = spool.queue(&["export", "spool", "--output", "nobody"]);
    assert_eq!((code, stdout.as_slice()), (Some(2), &b""[..]));
    assert!(
        stderr.contains("no output nobody") && stderr.contains("which has the outputs: dead"),
        "{stderr}"
    );
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let (spool, events) = stopped(40);
    let mut child = spawn_command(&["queue", "export", "spool"], spool.parent.path(), &[]);
    let mut stdout = child.take_stdout();
    let mut first = vec![0; events[0].len() + 1];
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let (status, stderr) = child.wait();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    assert!(first.strip_suffix(b"\n") == Some(&events[0]));
}

#[test]
fn a_relay_starts_while_its_directory_is_read() {
    let (spool, events) = stopped(40);
    // The export fills the pipe, and then waits for its reader.
    let mut child = spawn_command(&["queue", "export", "spool"], spool.parent.path(), &[]);
    let mut stdout = child.take_stdout();
    let mut exported = vec![0; 1];
    stdout.read_exact(&mut exported).unwrap();
    let sink = HttpSink::accepting();
    let address = sink.address().to_string();
    let relay = Relay::start(&spool.config("", &[("dead", &address)]));
    relay.wait_until_delivered(PATIENCE);
    post(&relay, 100..101);
    wait_until("deletes", PATIENCE, || spool.segments().len() == 1);
    stdout.read_to_end(&mut exported).unwrap();
    let (status, stderr) = child.wait();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    // The export may leave out events that were delivered while it ran.
    assert_holds(&lines_of(&exported), &events, &accepted_events(&sink));
    stop(relay);
}
