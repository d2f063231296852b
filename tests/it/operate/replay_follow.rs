//! `replay --follow`: every event of a log that grows and is rotated arrives, no matter when the
//! command is killed. At most one batch arrives twice for each kill.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::process::Command;
use std::thread::JoinHandle;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::numbered::Id;
use crate::support::prelude::*;
use crate::support::relay::Running;

/// The maximum number of events in a request.
const BATCH: usize = 2000;

/// The bytes with which kube-apiserver begins each event in its log.
const HEAD: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;

/// Returns a line as kube-apiserver logs the event with this number.
fn line(number: u64) -> Vec<u8> {
    let event = numbered::event(Id { sender: 0, number });
    [HEAD.as_bytes(), &event[1..], b"\n"].concat()
}

fn lines(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(line).collect()
}

/// Returns the numbers of the events that were accepted, in the order of their arrival.
fn arrivals(sink: &HttpSink) -> Vec<u64> {
    let number = |event: Vec<u8>| {
        let rest = event.strip_prefix(HEAD.as_bytes()).expect("an event as it was logged");
        numbered::identify(&[b"{", rest].concat()).number
    };
    accepted_events(sink).into_iter().map(number).collect()
}

/// A directory with a log, and the command that follows it.
struct Place {
    directory: TempDir,
    url: String,
}

impl Place {
    fn new(sink: &HttpSink) -> Self {
        let url = format!("http://{}/", sink.address());
        Self { directory: TempDir::new().unwrap(), url }
    }

    /// Returns a log of ten events, all of which were sent before the command was stopped, and
    /// their consumer.
    fn with_ten_sent() -> (Self, HttpSink) {
        let sink = HttpSink::accepting();
        let place = Self::new(&sink);
        place.append(&lines(0..10));
        let running = place.follow();
        wait_for_events(&sink, 10);
        stop(running);
        (place, sink)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn append(&self, bytes: &[u8]) {
        append(&self.path("audit.log"), bytes);
    }

    fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Returns the number of sent events according to the resume file.
    fn saved(&self) -> u64 {
        let Ok(state) = std::fs::read(self.path("state")) else { return 0 };
        let state: Value = serde_json::from_slice(&state).expect("a resume file");
        state["events"].as_u64().unwrap()
    }

    fn follow(&self) -> Running {
        let arguments =
            ["replay", "--follow", "audit.log", "--resume", "state", "--url", &self.url];
        spawn_command(&arguments, self.directory.path(), &[])
    }
}

fn append(file: &Path, bytes: &[u8]) {
    let file = OpenOptions::new().create(true).append(true).open(file);
    file.unwrap().write_all(bytes).unwrap();
}

/// Stops a command as a kubelet does. It must end with status 0.
fn stop(mut running: Running) -> Said {
    running.signal(libc::SIGTERM);
    running.stdout();
    let (status, stderr) = running.wait();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let stdout = wait_for("the summary", PATIENCE, || {
        let stdout = String::from_utf8(running.stdout()).unwrap();
        stdout.contains("events per second: ").then_some(stdout)
    });
    Said { code: status.code(), stdout, stderr }
}

fn wait_for_events(sink: &HttpSink, events: u64) {
    wait_until(&format!("{events} events"), PATIENCE, || arrivals(sink).len() as u64 >= events);
}

/// Compresses a file as kube-apiserver and gzip(1) do: for a while, both files exist, and the
/// compressed one is not complete.
fn compress(file: &Path) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&std::fs::read(file).unwrap()).unwrap();
    let packed = encoder.finish().unwrap();
    let mut written = File::create(format!("{}.gz", text(file))).unwrap();
    let (first, second) = packed.split_at(packed.len() / 2);
    written.write_all(first).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    written.write_all(second).unwrap();
    std::fs::remove_file(file).unwrap();
}

/// How the log is rotated.
#[derive(Clone, Copy)]
enum Rotation {
    /// By kube-apiserver itself: the file is renamed, and compressed a moment later.
    Rename,
    /// By logrotate: the file is copied and truncated, and the copy before it is compressed. Lines
    /// that are written in between are lost, so nothing may be written.
    CopyTruncate,
}

impl Rotation {
    fn rotate(self, log: &Path, number: u64) {
        let directory = log.parent().unwrap();
        let path = |name: String| directory.join(name);
        match self {
            Self::Rename => {
                let name = format!("audit-2026-11-20T10-{:02}-00.000.log", number);
                let rotated = path(name);
                std::fs::rename(log, &rotated).unwrap();
                // For a moment, there is no log.
                std::thread::sleep(Duration::from_millis(2));
                File::create(log).unwrap();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(300));
                    compress(&rotated);
                });
            }
            Self::CopyTruncate => {
                for index in (2..=number).rev() {
                    let [from, to] =
                        [index, index + 1].map(|it| path(format!("audit.log.{it}.gz")));
                    std::fs::rename(from, to).ok();
                }
                if number > 0 {
                    let second = path("audit.log.2".to_owned());
                    std::fs::rename(path("audit.log.1".to_owned()), &second).unwrap();
                    compress(&second);
                }
                std::fs::copy(log, path("audit.log.1".to_owned())).unwrap();
                OpenOptions::new().write(true).open(log).unwrap().set_len(0).unwrap();
            }
        }
    }
}

/// Starts to write this many events to a log, 4,000 a second, with this many rotations. Some lines
/// are written in two pieces.
fn write_log(log: PathBuf, rotation: Rotation, (events, rotations): (u64, u64)) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let begun = Instant::now();
        let mut rotated = 0;
        for number in 0..events {
            let due = begun + Duration::from_micros(number * 250);
            if number % 40 == 0 {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            if number >= (rotated + 1) * events / (rotations + 1) {
                rotation.rotate(&log, rotated);
                rotated += 1;
            }
            let line = line(number);
            let (first, second) = line.split_at(if number % 7 == 0 { line.len() / 2 } else { 0 });
            append(&log, first);
            append(&log, second);
        }
        assert_eq!(rotated, rotations);
    })
}

/// Checks that each event has arrived, in the order of the log, and that at most one batch was
/// repeated for each kill.
fn assert_all_arrived(arrivals: &[u64], events: u64, kills: u64) {
    let mut seen = vec![0_u32; usize::try_from(events).unwrap()];
    let mut next = 0;
    for number in arrivals {
        assert!(*number <= next, "{next} to {number} did not come");
        next = next.max(number + 1);
        seen[usize::try_from(*number).unwrap()] += 1;
    }
    assert_eq!(next, events);
    let repeats = arrivals.len() - seen.len();
    let most = seen.iter().max().unwrap();
    eprintln!("{events} events, {kills} kills: {repeats} repeats, an event at most {most} times");
    assert!(repeats <= BATCH * usize::try_from(kills).unwrap(), "{repeats} repeats");
}

/// Method: a log is written and rotated while the command that follows it is killed at random
/// moments. `KUBE_AUDIT_FORWARDER_FOLLOWED` sets the number of events. There are 8 rotations and 5
/// kills for 40,000 events, and 20 rotations and 11 kills for 200,000.
fn every_event_arrives_through(rotation: Rotation) {
    let events = number_from("KUBE_AUDIT_FORWARDER_FOLLOWED", 40_000);
    let scale = if events > 40_000 { 2 } else { 1 };
    let (rotations, kills) = (events / 5000 / scale, events / 10_000 / scale + 1);
    let mut random = rng();
    let sink = HttpSink::accepting();
    let place = Place::new(&sink);
    // The lifetimes are chosen so that the kills happen while events are written.
    let life = Duration::from_micros(events * 250) / u32::try_from(kills).unwrap();
    let writer = write_log(place.path("audit.log"), rotation, (events, rotations));
    for _ in 0..kills {
        let mut running = place.follow();
        std::thread::sleep(life.mul_f64(0.2 + 0.8 * random.f64()));
        running.signal(libc::SIGKILL);
        let (_, stderr) = running.wait();
        assert!(!stderr.contains("error: ") && !stderr.contains("skipped"), "{stderr}");
    }
    let last = place.follow();
    writer.join().unwrap();
    wait_until("every event", PATIENCE * 4, || place.saved() == events);
    let said = stop(last);
    said.assert(0, &["bad lines: 0\n", "gaps: 0\n"]);
    assert_all_arrived(&arrivals(&sink), events, kills);
}

#[test]
fn every_event_arrives_through_renames_and_kills() {
    every_event_arrives_through(Rotation::Rename);
}

#[test]
fn every_event_arrives_through_copies_with_truncation_and_kills() {
    every_event_arrives_through(Rotation::CopyTruncate);
}

/// Method: the resume file cannot be written for a while, because its new version is a pipe that
/// nobody reads. In this state, the command is killed.
#[test]
fn nothing_is_sent_before_the_resume_file_has_the_batch_before_it() {
    let sink = HttpSink::accepting();
    let place = Place::new(&sink);
    place.append(&lines(0..10));
    let mut running = place.follow();
    wait_until("the first batch", PATIENCE, || place.saved() == 10);
    assert!(Command::new("mkfifo").arg(place.path("state.new")).status().unwrap().success());
    place.append(&lines(10..20));
    wait_for_events(&sink, 20);
    place.append(&lines(20..30));
    std::thread::sleep(Duration::from_secs(1));
    running.signal(libc::SIGKILL);
    running.wait();
    std::fs::remove_file(place.path("state.new")).unwrap();
    let running = place.follow();
    wait_until("every event", PATIENCE, || place.saved() == 30);
    stop(running);
    assert!(arrivals(&sink).into_iter().eq((0..20).chain(10..30)));
}

#[test]
fn a_relay_that_answers_429_is_waited_for_and_a_stop_repeats_nothing() {
    let is_full = Arc::new(AtomicBool::new(true));
    let full = Arc::clone(&is_full);
    let sink = HttpSink::start(move |request| match full.load(Ordering::Relaxed) {
        true if request.number % 2 == 0 => Answer::status(429).header("Retry-After", "0"),
        true => Answer::status(429),
        false => Answer::status(200),
    });
    let place = Place::new(&sink);
    // The log is made after the command has started.
    let first = place.follow();
    wait_until("the first words", PATIENCE, || first.stderr().contains("begins with its first"));
    place.append(&lines(0..1000));
    sink.wait_for_count(4, PATIENCE);
    let said = stop(first);
    said.assert(0, &["answered 429", "attempt 3, the next in", "accepted: 0\n", "gaps: 0\n"]);
    place.rename("audit.log", "audit.log.1");
    place.append(&lines(1000..1500));
    let second = place.follow();
    sink.wait_for_count(sink.count() + 2, PATIENCE);
    is_full.store(false, Ordering::Relaxed);
    wait_for_events(&sink, 1500);
    stop(second).assert(0, &["accepted: 1500\n", "bad lines: 0\n"]);
    compress(&place.path("audit.log.1"));
    place.append(&lines(1500..1600));
    let third = place.follow();
    wait_for_events(&sink, 1600);
    let said = stop(third);
    said.assert(0, &["continuing with audit.log, line 501", "accepted: 100\n"]);
    assert!(arrivals(&sink).into_iter().eq(0..1600));
}

#[test]
fn a_place_that_is_gone_is_an_error_that_is_counted_and_gone_on_behind() {
    let sink = HttpSink::accepting();
    let place = Place::new(&sink);
    // A file that was rotated before the first run is not sent.
    std::fs::write(place.path("audit.log.3"), lines(5000..5010)).unwrap();
    place.append(&lines(0..10));
    let first = place.follow();
    wait_for_events(&sink, 10);
    stop(first).assert(0, &["begins with its first line; what was rotated before is not sent"]);
    // The file in which the command stopped is deleted before all of it was sent.
    place.append(&lines(10..20));
    std::fs::remove_file(place.path("audit.log")).unwrap();
    std::fs::write(place.path("audit.log.2"), lines(20..30)).unwrap();
    std::fs::write(place.path("audit.log.1.gz"), []).unwrap();
    place.append(&lines(30..40));
    let second = place.follow();
    wait_for_events(&sink, 30);
    let said = stop(second);
    said.assert(
        0,
        &[
            "audit.log: error: line 10 (byte ",
            "is gone from the log: the events behind it, up to the oldest file that is newer, are",
            "audit.log: goes on with the beginning of ",
            "audit.log.2\n",
            "accepted: 20\n",
            "gaps: 1\n",
        ],
    );
    // Somebody overwrites the log.
    let third = place.follow();
    std::fs::write(place.path("audit.log"), lines(40..50)).unwrap();
    wait_for_events(&sink, 40);
    stop(third).assert(0, &["line 10 (byte ", "goes on with the beginning", "gaps: 1\n"]);
    let wanted: Vec<_> = (0..10).chain(20..50).collect();
    assert_eq!(arrivals(&sink), wanted);
}

#[test]
fn a_line_without_an_end_is_skipped_and_hides_no_event() {
    let sink = HttpSink::accepting();
    let place = Place::new(&sink);
    let half = &line(99)[..100];
    // A kube-apiserver crashed within a line, and the next one continued that line.
    place.append(&[&lines(0..5), half, &lines(5..10)].concat());
    let running = place.follow();
    wait_for_events(&sink, 10);
    // This line never gets an end, and the next event has no line break yet.
    place.append(half);
    place.rename("audit.log", "audit-2026-11-20T10-00-00.000.log");
    let whole = lines(10..20);
    place.append(&whole[..whole.len() - 1]);
    wait_for_events(&sink, 19);
    place.append(b"\n");
    wait_for_events(&sink, 20);
    // Each of these lines is a bad line. Ten bad lines are printed.
    place.append(&b"no event\n".repeat(20));
    place.append(&lines(20..21));
    wait_for_events(&sink, 21);
    let said = stop(running);
    said.assert(0, &["line 6: skipped", "line 11: skipped", "bad lines: 22\n", "gaps: 0\n"]);
    said.assert(0, &["12 more bad lines were skipped"]);
    assert_eq!(said.stderr.matches(": skipped: ").count(), 10, "{said:?}");
    assert!(arrivals(&sink).into_iter().eq(0..21));
}

#[test]
fn the_rest_of_a_damaged_file_is_left_out_and_counted() {
    let (place, sink) = Place::with_ten_sent();
    place.append(&lines(10..2000));
    place.rename("audit.log", "audit.log.1");
    compress(&place.path("audit.log.1"));
    let packed = place.path("audit.log.1.gz");
    let bytes = std::fs::read(&packed).unwrap();
    std::fs::write(&packed, &bytes[..bytes.len() / 2]).unwrap();
    place.append(&lines(2000..2010));
    let running = place.follow();
    wait_until("the last event", PATIENCE, || arrivals(&sink).contains(&2009));
    let said = stop(running);
    said.assert(0, &["skipped: cannot read further: the gzip data are cut off", "gaps: 1\n"]);
    let arrivals = arrivals(&sink);
    let before = arrivals.len() as u64 - 10;
    assert!((11..2000).contains(&before), "{before}");
    assert!(arrivals.into_iter().eq((0..before).chain(2000..2010)));
}

#[test]
fn a_machine_that_has_lost_the_end_of_its_log_gets_that_file_sent_again() {
    let (place, sink) = Place::with_ten_sent();
    std::fs::write(place.path("audit.log"), [lines(0..8), lines(10..30)].concat()).unwrap();
    let running = place.follow();
    wait_for_events(&sink, 38);
    stop(running).assert(0, &["audit.log: the place is not behind a line of ", "gaps: 0\n"]);
    assert!(arrivals(&sink).into_iter().eq((0..10).chain(0..8).chain(10..30)));
}

#[test]
fn an_answer_that_cannot_get_better_ends_it_with_the_place() {
    let sink = HttpSink::start(|_| Answer::status(400));
    let place = Place::new(&sink);
    place.append(&lines(0..10));
    let mut running = place.follow();
    let (status, stderr) = running.wait();
    assert_eq!(status.code(), Some(1), "{stderr}");
    for wanted in ["lines 1 to 10: http", "answered 400", "everything before line 1 of audit.log"] {
        assert!(stderr.contains(wanted), "{wanted}: {stderr}");
    }
}

#[test]
fn what_cannot_be_followed_is_refused_with_status_2() {
    let place = TempDir::new().unwrap();
    let packed = [0x1f, 0x8b, 8, 0];
    for (name, bytes) in [("a.log", &b""[..]), ("b.log", b""), ("packed", &packed)] {
        std::fs::write(place.path().join(name), bytes).unwrap();
    }
    let three = r#"{"version":1,"events":0,"files":[FILE,FILE,FILE]}"#;
    let file = r#"{"path":"a","first_line_bytes":1,"first_line_crc32c":1,"offset":1,"lines":1}"#;
    std::fs::write(place.path().join("other"), three.replace("FILE", file)).unwrap();
    for (arguments, what) in [
        (&["a.log"][..], "--resume <FILE>"),
        (&["a.log", "b.log", "--resume", "s"], "exactly one file"),
        (&["-", "--resume", "s"], "a plain file"),
        (&[".", "--resume", "s"], "a plain file"),
        (&["packed", "--resume", "s"], "a plain file"),
        (&["a.log", "--resume", "other"], "not of a log that was followed"),
    ] {
        let all = [&["replay", "--follow", "--url", "http://127.0.0.1:9/"], arguments].concat();
        said(&all, place.path()).assert_refused(what);
    }
}
