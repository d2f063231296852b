//! Tests of the dead letters' files as another program sees them, and a `Desk`, with which tests of
//! deliveries report results of letters themselves, in place of the writer thread.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use rustix::process::{Resource, Rlimit};
use tempfile::TempDir;

use super::*;

/// The letters that a delivery hands over, for a test that reports the results.
pub(crate) struct Desk {
    queue: mpsc::Receiver<Job>,
    /// The letters whose lines are taken, so that their delivery can't take them back.
    taken: VecDeque<Given>,
}

pub(crate) struct Given {
    pub(crate) reason: String,
    pub(crate) events: Vec<String>,
    done: oneshot::Sender<Written>,
}

impl Desk {
    /// Returns dead letters without a thread, and the desk where they arrive.
    pub(crate) fn new(telemetry: &Telemetry) -> (DeadLetters, Self) {
        let letters = DeadLetters::new(telemetry);
        let (jobs, desk) = mpsc::channel(JOBS_MAX);
        let directory = PathBuf::from("/nowhere");
        *letters.lock() = WriterState {
            target: Some(LetterDirectory { directory, max_bytes: 1 << 20 }),
            writer: Some(Writer { jobs, busy: Arc::default() }),
        };
        (letters, Self { queue: desk, taken: VecDeque::new() })
    }

    /// Waits for the next job; `None` if nobody can hand one over any more.
    pub(crate) async fn next(&mut self) -> Option<Given> {
        loop {
            if let Some(given) = self.taken.pop_front() {
                return Some(given);
            }
            self.taken.extend(Given::of(self.queue.recv().await?));
        }
    }

    /// Returns the next job that has already been handed over, if there is one.
    pub(crate) fn try_next(&mut self) -> Option<Given> {
        while let Ok(job) = self.queue.try_recv() {
            self.taken.extend(Given::of(job));
        }
        self.taken.pop_front()
    }

    /// Lets this time pass, and takes the lines of all jobs that are handed over in the meantime.
    pub(crate) async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(Some(job)) = tokio::time::timeout_at(end, self.queue.recv()).await {
            self.taken.extend(Given::of(job));
        }
        tokio::time::sleep_until(end).await;
    }
}

impl Given {
    /// Takes the lines of a job. Returns `None` if the delivery has taken them back.
    fn of(job: Job) -> Option<Self> {
        let text = |event: &[u8]| String::from_utf8(event.to_vec()).unwrap();
        let events = lines(&lock(&job.lines).take()?).map(text).collect();
        Some(Self { reason: job.reason.to_string(), events, done: job.done })
    }

    /// Reports the result, as the thread does. Returns `false` if the delivery does not wait any
    /// more.
    pub(crate) fn written(self, events: u64, error: Option<&str>) -> bool {
        self.done.send(Written { events, error: error.map(str::to_owned) }).is_ok()
    }
}

struct Scene {
    root: TempDir,
    telemetry: Telemetry,
    letters: DeadLetters,
}

const MAX_BYTES: u64 = 80_000;

impl Scene {
    fn new() -> Self {
        let telemetry = Telemetry::new();
        let letters = DeadLetters::new(&telemetry);
        let scene = Self { root: TempDir::new().unwrap(), telemetry, letters };
        scene.letters.set(scene.target());
        scene
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("a/dead-letter")
    }

    fn target(&self) -> Option<LetterDirectory> {
        Some(LetterDirectory { directory: self.path(), max_bytes: MAX_BYTES })
    }

    async fn restart(&mut self) {
        self.letters.close().await;
        self.letters = DeadLetters::new(&self.telemetry);
        self.letters.set(self.target());
    }

    fn hand_over(&self, events: &[String]) -> Writing {
        let lines = events.iter().map(|event| Bytes::from(format!("{event}\n"))).collect();
        let written = self.letters.write(&Arc::from("o"), lines, &Arc::from("why \"not\""));
        written.expect("a place")
    }

    async fn write(&self, events: &[String]) -> Written {
        self.hand_over(events).done().await
    }

    async fn write_safely(&self, events: &[String]) {
        assert_eq!(self.write(events).await, Written { events: events.len() as u64, error: None });
    }

    /// Returns the files of letters and their text, the oldest first.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let Ok(entries) = fs::read_dir(self.path()) else { return Vec::new() };
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        paths.sort();
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        };
        paths.into_iter().map(read).collect()
    }

    fn events(&self) -> Vec<String> {
        let text: String = self.files().into_iter().map(|(_, text)| text).collect();
        text.lines().map(event_of).collect()
    }

    fn dropped(&self) -> u64 {
        let text = self.telemetry.render();
        let name = "kube_audit_forwarder_dead_letter_dropped_events_total ";
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    }
}

/// Checks a letter, and returns its event byte for byte.
fn event_of(letter: &str) -> String {
    let (head, event) = letter.split_once(r#","event":"#).expect("a letter");
    let event = event.strip_suffix('}').unwrap();
    let rest = head.strip_prefix(r#"{"time":""#).unwrap();
    let (time, rest) = rest.split_once('"').unwrap();
    assert!(time.starts_with("20") && time.len() == 24 && time.ends_with('Z'), "{time}");
    assert_eq!(rest, r#","output":"o","reason":"why \"not\"""#);
    let whole: serde_json::Value = serde_json::from_str(letter).unwrap();
    assert!(whole["event"].is_object());
    event.to_owned()
}

fn event(number: usize, bytes: usize) -> String {
    format!(r#"{{"auditID":"{number}","n": 1.0,"x":"{}"}}"#, "ä".repeat(bytes / 2))
}

fn events(numbers: std::ops::Range<usize>, bytes: usize) -> Vec<String> {
    numbers.map(|number| event(number, bytes)).collect()
}

#[tokio::test]
async fn a_letter_has_the_event_as_it_was_received_and_is_for_nobody_else() {
    let scene = Scene::new();
    let some = events(0..3, 100);
    scene.write_safely(&some).await;
    assert_eq!(scene.events(), some);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(scene.path()), 0o700);
    assert_eq!(mode(scene.path().parent().unwrap().to_owned()), 0o700);
    let files = scene.files();
    assert_eq!(files.len(), 1);
    assert_eq!(mode(files[0].0.clone()), 0o600);
}

#[tokio::test]
async fn what_waits_is_written_together_and_each_is_told_of_its_own() {
    let scene = Scene::new();
    let all = events(0..300, 20);
    let mut waiting: Vec<_> = all.chunks(3).map(|some| scene.hand_over(some)).collect();
    for writing in &mut waiting {
        assert_eq!(writing.done().await, Written { events: 3, error: None });
    }
    assert_eq!(scene.events(), all);
}

#[tokio::test]
async fn an_event_longer_than_all_files_may_be_costs_only_itself() {
    let scene = Scene::new();
    let some = [event(0, 10), event(1, 100_000), event(2, 10)];
    let written = scene.write(&some).await;
    assert_eq!(written.events, 2);
    assert!(written.error.unwrap().contains("longer than dead_letter.max_bytes"));
    assert_eq!(scene.events(), [event(0, 10), event(2, 10)]);
    // A letter that is longer than a file may be has a file of its own, and the older files are
    // deleted.
    let large = event(3, 79_800);
    scene.write_safely(std::slice::from_ref(&large)).await;
    assert!(scene.events() == [large], "it alone is left");
    assert_eq!(scene.dropped(), 2);
}

#[tokio::test]
async fn all_files_together_are_bounded_and_the_oldest_go_first_and_are_counted() {
    let mut scene = Scene::new();
    for round in 0..40 {
        scene.write_safely(&events(round * 10..(round + 1) * 10, 500)).await;
        if round % 7 == 0 {
            scene.restart().await;
        }
        let bytes: usize = scene.files().iter().map(|(_, text)| text.len()).sum();
        assert!(bytes as u64 <= MAX_BYTES, "{bytes}");
    }
    let (left, dropped) = (scene.events(), usize::try_from(scene.dropped()).unwrap());
    assert_eq!(left, events(dropped..400, 500), "what is left is the youngest, without a gap");
    assert!(left.len() > 70, "{} of about 120 that fit", left.len());
    assert!(scene.files().len() > 4);
}

/// Returns an event of this user, of about `bytes` bytes.
fn event_by(user: &str, number: usize, bytes: usize) -> String {
    let text = "ä".repeat(bytes / 2);
    format!(r#"{{"auditID":"{number}","x":"{text}","user":{{"username":"{user}"}}}}"#)
}

/// Method: many users have letters, and then one client without an account causes ten times as much
/// as fits, in large or in small letters, and across restarts. The letters of the others stay.
#[tokio::test]
async fn a_flood_pushes_out_its_own_letters_and_those_of_nobody_else() {
    for (bytes, times) in [(12_000, 70), (300, 2_500)] {
        let mut scene = Scene::new();
        let others: Vec<_> =
            (0..40).map(|number| event_by(&format!("u{number}"), number, 400)).collect();
        for other in &others {
            scene.write_safely(std::slice::from_ref(other)).await;
        }
        scene.restart().await;
        let flood: Vec<_> =
            (0..times).map(|number| event_by("system:anonymous", number, bytes)).collect();
        for (round, some) in flood.chunks(times / 35).enumerate() {
            scene.write_safely(some).await;
            if round % 10 == 9 {
                scene.restart().await;
            }
            let bytes: usize = scene.files().iter().map(|(_, text)| text.len()).sum();
            assert!(bytes as u64 <= MAX_BYTES, "{bytes}");
        }
        let left = scene.events();
        assert!(others.iter().all(|other| left.contains(other)), "{} are left", left.len());
        assert!(left.contains(&flood[times - 1]), "the newest letter of the flood");
        let dropped = usize::try_from(scene.dropped()).unwrap();
        assert_eq!(left.len() + dropped, others.len() + times, "what goes is counted");
        assert!(left.iter().map(String::len).sum::<usize>() > 40_000, "the room is used");
    }
}

#[tokio::test]
async fn each_of_several_floods_keeps_a_share() {
    let scene = Scene::new();
    let quiet = event_by("quiet", 0, 500);
    scene.write_safely(std::slice::from_ref(&quiet)).await;
    // The accounts of one namespace are one sender.
    let users = ["system:anonymous", "ada", "system:serviceaccount:a:"];
    for number in 0..300 {
        for user in users {
            let user = if user.ends_with(':') { format!("{user}{number}") } else { user.into() };
            scene.write_safely(&[event_by(&user, number, 1_000)]).await;
        }
    }
    let left = scene.events();
    assert!(left.contains(&quiet), "{} are left", left.len());
    for user in users {
        let held = left.iter().filter(|event| event.contains(&format!(r#""{user}"#))).count();
        assert!(held >= 10, "{held} of {user}");
    }
}

#[test]
fn an_origin_is_an_output_a_kind_of_reason_and_a_sender() {
    let recent = files::Recent::default();
    let origin = |output: &str, reason: &str, user: &str| {
        recent.origin(output.as_bytes(), reason.as_bytes(), event_by(user, 1, 10).as_bytes())
    };
    let one = origin("a", "http://h:1: answered 400: failed to parse [x]", "ada");
    for (output, reason, user, is_same) in [
        ("a", "http://h:2: answered 422: failed to parse [y]", "ada", true),
        ("b", "http://h:1: answered 400: failed to parse [x]", "ada", false),
        ("a", "longer than max_message_bytes", "ada", false),
        ("a", "http://h:1: answered 400: failed to parse [x]", "bob", false),
    ] {
        assert_eq!(origin(output, reason, user) == one, is_same, "{output} {reason} {user}");
    }
    let account = origin("a", "", "system:serviceaccount:shop:importer");
    assert_eq!(origin("a", "", "system:serviceaccount:shop:other"), account);
    for other in ["system:serviceaccount:team:importer", "shop", "system:anonymous", ""] {
        assert_ne!(origin("a", "", other), account, "{other}");
    }
    // Lines that are torn or have no event do not panic.
    for line in ["", "{", "[1]", "null", r#"{"user":{"username"#] {
        recent.origin(b"", b"", line.as_bytes());
    }
}

#[tokio::test]
async fn a_start_goes_on_in_a_new_file_and_leaves_a_torn_one_as_it_is() {
    let mut scene = Scene::new();
    scene.write_safely(&events(0..2, 10)).await;
    let (path, text) = scene.files().remove(0);
    let torn = text.strip_suffix("}}\n").unwrap();
    fs::write(&path, torn).unwrap();
    scene.restart().await;
    scene.write_safely(&events(1..3, 10)).await;
    let files = scene.files();
    assert_eq!((&files[0].0, files[0].1.as_str()), (&path, torn));
    assert_eq!(files[1].1.lines().map(event_of).collect::<Vec<_>>(), events(1..3, 10));
    // The clock was set back, but the names still sort by age.
    let later = scene.path().join(format!("{:020}.jsonl", 9_000_000_000_000_u64));
    fs::write(&later, "").unwrap();
    scene.restart().await;
    scene.write_safely(&events(3..4, 10)).await;
    let (last, text) = scene.files().pop().unwrap();
    assert!(last > later && event_of(text.trim_end()) == event(3, 10), "{last:?}");
}

#[tokio::test]
async fn links_are_not_followed_and_what_is_not_ours_stays() {
    let scene = Scene::new();
    let target = scene.root.path().join("target");
    fs::create_dir(&target).unwrap();
    // A link replaces the directory.
    fs::create_dir(scene.path().parent().unwrap()).ok();
    // The writer thread may make the directory at any moment, so the test tries until the link is
    // there.
    while std::os::unix::fs::symlink(&target, scene.path()).is_err() {
        fs::remove_dir(scene.path()).ok();
    }
    let written = scene.write(&events(0..1, 10)).await;
    assert!(written.error.unwrap().contains("not a file or a link"));
    fs::remove_file(scene.path()).unwrap();
    // Links have the names of the next files, and other files have similar names.
    fs::create_dir(scene.path()).ok();
    let secret = scene.root.path().join("secret");
    fs::write(&secret, "x".repeat(100_000)).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    for ahead in 0..300_u128 {
        let link = scene.path().join(format!("{:020}.jsonl", now + ahead));
        std::os::unix::fs::symlink(&secret, link).unwrap();
    }
    let strangers =
        ["notes.txt", "1.jsonl", "99999999999999999999.jsonl", "x0000000000000000000.jsonl"];
    for name in strangers {
        fs::write(scene.path().join(name), "x".repeat(100_000)).unwrap();
    }
    fs::create_dir(scene.path().join("00000000000000000001.jsonl")).unwrap();
    let begun = Instant::now();
    let written = loop {
        let written = scene.write(&events(0..1, 10)).await;
        if written.error.is_none() || begun.elapsed() > Duration::from_secs(30) {
            break written;
        }
    };
    assert_eq!(written, Written { events: 1, error: None });
    assert_eq!(fs::metadata(&secret).unwrap().len(), 100_000);
    for round in 0..40 {
        scene.write_safely(&events(round * 10..(round + 1) * 10, 500)).await;
    }
    assert!(scene.dropped() > 0);
    assert!(strangers.iter().all(|name| scene.path().join(name).exists()));
    assert!(scene.path().join("00000000000000000001.jsonl").is_dir());
    let links = fs::read_dir(scene.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_symlink());
    assert_eq!(links.count(), 300);
}

#[tokio::test]
async fn what_is_taken_away_or_changed_below_it_costs_no_letter() {
    let scene = Scene::new();
    scene.write_safely(&events(0..1, 10)).await;
    let taken = scene.root.path().join("taken.jsonl");
    fs::rename(&scene.files()[0].0, &taken).unwrap();
    scene.write_safely(&events(1..2, 10)).await;
    assert_eq!(fs::read_to_string(&taken).unwrap().lines().count(), 1, "not written to any more");
    // Another program writes into the current file.
    fs::write(&scene.files()[0].0, "stranger\n").unwrap();
    scene.write_safely(&events(2..3, 10)).await;
    let files = scene.files();
    assert_eq!((files.len(), files[0].1.as_str()), (2, "stranger\n"));
    fs::remove_dir_all(scene.path()).unwrap();
    scene.write_safely(&events(3..4, 10)).await;
    assert_eq!(scene.events(), events(3..4, 10));
}

/// Method: a limit for the size of files cuts the letter off. The limit holds for the process.
#[tokio::test]
async fn a_letter_that_is_only_partly_written_is_cut_off_before_it_is_written_elsewhere() {
    if !testing::runs_alone() {
        return;
    }
    let scene = Scene::new();
    let all = [event(0, 3000), event(1, 3500)];
    scene.write_safely(&all[..1]).await;
    // Without a handler, the signal at the limit ends the process.
    let at_limit = tokio::signal::unix::SignalKind::from_raw(25);
    let _handler = tokio::signal::unix::signal(at_limit).unwrap();
    let limit = rustix::process::getrlimit(Resource::Fsize);
    let lower = Rlimit { current: Some(4000), ..limit };
    rustix::process::setrlimit(Resource::Fsize, lower).unwrap();
    let written = scene.write(&all[1..]).await;
    rustix::process::setrlimit(Resource::Fsize, limit).unwrap();
    assert_eq!(written, Written { events: 1, error: None });
    assert_eq!((scene.files().len(), scene.events()), (2, all.to_vec()));
}

#[tokio::test]
async fn two_processes_share_a_directory_and_neither_deletes_what_the_other_writes_to() {
    let scene = Scene::new();
    let other = DeadLetters::new(&scene.telemetry);
    other.set(scene.target());
    let write = async |number, bytes| {
        let lines = vec![Bytes::from(event(number, bytes) + "\n")];
        let written = other.write(&Arc::from("o"), lines, &Arc::from("why \"not\""));
        assert_eq!(written.expect("a place").done().await, Written { events: 1, error: None });
    };
    for number in 0..20 {
        write(number, 10).await;
        scene.write_safely(&events(number + 100..number + 101, 10)).await;
    }
    let mut found = scene.events();
    found.sort();
    let mut expected = [events(0..20, 10), events(100..120, 10)].concat();
    expected.sort();
    assert_eq!((found, scene.files().len()), (expected, 2));
    // The other process's file is the oldest by now, and this process needs all the room.
    for round in 0..100 {
        scene.write_safely(&events(round * 2..(round + 1) * 2, 2000)).await;
    }
    write(99, 10).await;
    let found = scene.events();
    assert!(events(0..20, 10).iter().chain(&events(99..100, 10)).all(|it| found.contains(it)));
    let bytes: usize = scene.files().iter().map(|(_, text)| text.len()).sum();
    assert!(bytes as u64 <= MAX_BYTES, "{bytes}");
}

#[tokio::test]
async fn however_small_the_files_are_there_are_not_too_many() {
    let mut scene = Scene::new();
    scene.write_safely(&events(0..1, 10)).await;
    for number in 1..1100 {
        let name = format!("{:020}.jsonl", 2_000_000_000_000_u64 + number);
        fs::write(scene.path().join(name), "{}\n").unwrap();
    }
    scene.restart().await;
    scene.write_safely(&events(1..2, 10)).await;
    assert_eq!((scene.files().len(), scene.dropped()), (1024, 77));
}

#[tokio::test]
async fn another_place_at_run_time_gets_what_comes_next() {
    let scene = Scene::new();
    scene.write_safely(&events(0..1, 10)).await;
    let elsewhere = scene.root.path().join("b");
    let there = Some(LetterDirectory { directory: elsewhere.clone(), max_bytes: MAX_BYTES });
    let mut before = scene.hand_over(&events(1..2, 10));
    scene.letters.set(there.clone());
    let mut after = scene.hand_over(&events(2..3, 10));
    assert_eq!((before.done().await.events, after.done().await.events), (1, 1));
    assert_eq!(scene.events(), events(0..2, 10));
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
    for _ in 0..100 {
        scene.letters.set(None);
        assert!(scene.letters.write(&Arc::from("o"), Vec::new(), &Arc::from("")).is_none());
        scene.letters.set(there.clone());
    }
    scene.letters.close().await;
    assert!(scene.letters.threads.is_empty(), "all were waited for");
    assert!(scene.letters.write(&Arc::from("o"), Vec::new(), &Arc::from("")).is_none());
}

#[tokio::test]
async fn a_disk_that_hangs_costs_letters_and_holds_up_nobody_for_long() {
    let scene = Scene::new();
    *lock(&scene.letters.lock().writer.as_ref().unwrap().busy) = Some(Instant::now());
    let letters = scene.letters.clone();
    tokio::time::pause();
    // The test says that the thread began to write before the clock moved, so the thread counts as
    // stuck.
    tokio::time::advance(PATIENCE).await;
    let lines = vec![Bytes::from_static(b"{}\n")];
    let mut writing = letters.write(&Arc::from("o"), lines, &Arc::from("")).expect("a place");
    assert_eq!(
        writing.done().await,
        Written::failed("the disk of the dead letters does not answer")
    );
    let (_keep, silent) = oneshot::channel();
    let begun = Instant::now();
    let mut writing = Writing::new(silent, Arc::default());
    assert_eq!(
        writing.done().await,
        Written::failed("the disk of the dead letters does not answer")
    );
    assert!(begun.elapsed() < PATIENCE + Duration::from_secs(1));
}

/// Returns a scene whose thread takes no letters, and the channel in which they wait. The channel
/// has room for `jobs` jobs.
fn waiting(jobs: usize) -> (Scene, mpsc::Receiver<Job>) {
    let scene = Scene::new();
    let (jobs, queue) = mpsc::channel(jobs);
    scene.letters.lock().writer = Some(Writer { jobs, busy: Arc::default() });
    (scene, queue)
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_was_waited_for_in_vain_is_lost_and_neither_kept_in_memory_nor_written_later()
{
    let (scene, queue) = waiting(10);
    let lost = events(0..3, 1000);
    let mut late = scene.hand_over(&lost);
    tokio::time::advance(PATIENCE / 2).await;
    let mut good = scene.hand_over(&events(3..6, 10));
    assert_eq!(late.done().await, Written::failed("the disk of the dead letters does not answer"));
    assert!(lock(&late.lines).take().is_none(), "nobody holds its lines");
    assert_eq!(queue.len(), 2);
    // A thread takes the letters after all.
    scene.letters.lock().writer = None;
    let files = LetterFiles::new(&scene.path(), MAX_BYTES, scene.letters.dropped.clone());
    let directory = scene.path();
    let written = tokio::task::spawn_blocking(move || {
        write_all(files, &directory, queue, &BusySince::default());
    });
    written.await.unwrap();
    assert_eq!(good.done().await, Written { events: 3, error: None });
    assert_eq!(scene.events(), events(3..6, 10), "what was counted as lost is in no file");
}

/// Method: the thread gives up the capabilities by which root reads any file.
#[test]
fn a_file_whose_events_cannot_be_counted_is_not_deleted() {
    // The capabilities of other tests, which may use this thread next, stay.
    std::thread::spawn(cannot_count).join().unwrap();
}

fn cannot_count() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new();
    let mut files = LetterFiles::new(&scene.path(), MAX_BYTES, scene.letters.dropped.clone());
    let event = "x".repeat(usize::try_from(MAX_BYTES / 4).unwrap());
    let line = || Line { output: "o", reason: "", head: b"{\"event\":", event: event.as_bytes() };
    (0..3).for_each(|_| assert!(files.write(&[line()])[0].is_ok()));
    let secret = scene.files().remove(0).0;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let mut may = rustix::thread::capabilities(None).unwrap();
    for capability in [
        rustix::thread::CapabilitySet::DAC_OVERRIDE,
        rustix::thread::CapabilitySet::DAC_READ_SEARCH,
    ] {
        may.effective -= capability;
    }
    rustix::thread::set_capabilities(None, may).unwrap();
    // The others are counted and deleted, until there is no room without the first one.
    let written: Vec<_> = (0..3).map(|_| files.write(&[line()]).remove(0)).collect();
    assert!(written[..2].iter().all(Result::is_ok), "{written:?}");
    assert_eq!((scene.dropped(), secret.exists()), (3, true));
    let too_large = "x".repeat(usize::try_from(MAX_BYTES).unwrap() - 1000);
    let line = Line { output: "o", reason: "", head: b"{\"event\":", event: too_large.as_bytes() };
    let refused = files.write(&[line]).remove(0).unwrap_err();
    assert!(refused.contains("to count and delete it"), "{refused}");
    assert!(secret.exists());
    assert_eq!(scene.dropped(), 3, "no other file is deleted in vain");
}

#[tokio::test]
async fn more_letters_than_may_wait_are_lost_at_once_and_say_so() {
    let (scene, mut queue) = waiting(2);
    let kept = [scene.hand_over(&events(0..1, 10)), scene.hand_over(&events(1..2, 10))];
    let refused = scene.write(&events(2..3, 10)).await;
    assert_eq!(refused, Written::failed("the disk is too slow for the dead letters"));
    assert_eq!(kept.len(), queue.len());
    queue.try_recv().unwrap();
    let _kept = scene.hand_over(&events(3..4, 10));
    assert_eq!(queue.len(), 2);
}
