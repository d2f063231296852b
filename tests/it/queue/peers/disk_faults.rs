//! Disks that are full or fail. No batch is acknowledged before it is safe, deliveries continue,
//! and the relay accepts batches again by itself once the disk works.
//!
//! Full disks are real: a small tmpfs, and ext4 on a loop device. Delays, and a file system that
//! reserves no space, come from strace, which delays or replaces the relay's system calls. The
//! simulation in `crates/queue/src/spool/tests` and the simulator let any operation fail.

use std::ops::Range;

use crate::support::answers::assert_refusal;
use crate::support::filesystem::{Kind, Mounted};
use crate::support::numbered::list;
use crate::support::prelude::*;
use crate::support::tally::{Sent, accepted, accepted_ids, check};

const MIB: u64 = 1024 * 1024;

/// A spool and two consumers: `live` is up from the start, `late` is down at first.
struct Scene {
    spool: Spool,
    queue: &'static str,
    live: Tallying,
    late: Tallying,
    sent: Vec<Sent>,
    refused: u32,
}

impl Scene {
    fn new(spool: Spool, queue: &'static str) -> Self {
        let (live, late) = (Tallying::http(), Tallying::tcp().closed());
        Self { spool, queue, live, late, sent: Vec::new(), refused: 0 }
    }

    fn config(&self) -> String {
        let outputs = [self.live.output("live", ""), self.late.output("late", "")].concat();
        format!("{BASE}{outputs}{}", self.spool.queue(self.queue))
    }

    fn start(&self) -> Relay {
        Relay::start(&self.config())
    }

    /// Posts the next `events` events. Returns `true` if they were accepted, and `false` if they
    /// were refused because of the disk. Panics on any other answer.
    fn post(&mut self, relay: &Relay, events: u64) -> bool {
        let numbers = self.next(events);
        let answer = relay.post(&list(0, numbers.clone()));
        let accepted = answer.status == 200;
        if !accepted {
            assert_refusal(&answer, 503);
            assert_eq!(answer.header("connection"), Some("close"), "another replica may be better");
            self.refused += 1;
        }
        self.sent.push(Sent { sender: 0, numbers, accepted });
        accepted
    }

    fn next(&self, events: u64) -> Range<u64> {
        let number = self.sent.last().map_or(0, |sent| sent.numbers.end);
        number..number + events
    }

    /// Posts until a batch is accepted.
    fn post_until_accepted(&mut self, relay: &Relay) {
        wait_until("an accepted batch", PATIENCE, || self.post(relay, 20));
    }

    fn accepted(&self) -> u64 {
        accepted(&self.sent)
    }

    /// Waits until every accepted event has arrived at the live consumer.
    fn wait_for_live(&self) {
        let expected = accepted_ids(&self.sent);
        wait_until("the live consumer's events", PATIENCE, || {
            self.live.tally.ids().is_superset(&expected)
        });
    }

    /// Opens the `late` consumer, and checks that every accepted event arrives at both.
    fn finish(mut self, relay: Relay) {
        self.late.set_open(true);
        relay.finish(Backlog::Empty);
        wait_until("what was sent to be read", PATIENCE, || self.late.open() == 0);
        check("live", &self.sent, &self.live.tally.arrivals());
        check("late", &self.sent, &self.late.tally.arrivals());
    }
}

fn rejected(metrics: &Metrics) -> f64 {
    metrics.value("requests_rejected_total", &[("reason", "disk")])
}

#[allow(clippy::cast_precision_loss, reason = "a few thousand")]
fn real(count: u64) -> f64 {
    count as f64
}

const LARGER_THAN_THE_DISK: &str = "max_bytes = \"1GiB\"\nsegment_bytes = \"1MiB\"\n";

/// Fills a disk of 40 MiB until the relay refuses batches: a foreign file takes all but 10 MiB, and
/// posted batches fill the rest. Checks the answers, the metrics and `/readyz`, and that accepted
/// events are still delivered.
fn filled(kind: Kind) -> (Mounted, PathBuf, Scene, Relay) {
    let disk = Mounted::new(kind, 40 * MIB);
    let ballast = disk.path().join("ballast");
    let mut scene = Scene::new(Spool::at(disk.path().join("spool")), LARGER_THAN_THE_DISK);
    let relay = scene.start();
    assert!(scene.post(&relay, 100));
    disk.fill_up_to(10 * MIB, &ballast);
    let mut posts = 0;
    while scene.post(&relay, 400) {
        posts += 1;
        assert!(posts < 400, "60 MB are in 10 MiB");
    }
    assert!(scene.accepted() > 4000, "{} events fill 10 MiB?", scene.accepted());
    for _ in 0..3 {
        scene.post(&relay, 400);
    }
    let metrics = relay.metrics();
    assert_eq!(metrics.get("queue_writable", &[]), Some(0.0));
    assert_eq!(rejected(&metrics), f64::from(scene.refused));
    assert_eq!(metrics.value("event_total", &[]), real(scene.accepted()));
    assert_eq!(metrics.sum("error_total"), 0.0);
    let ready = http::get(relay.admin(), "/readyz").unwrap();
    assert_eq!(ready.status, 200, "a failing disk is not unready: {}", ready.text());
    let verbose = http::get(relay.admin(), "/readyz?verbose").unwrap();
    let said = verbose.text();
    assert_eq!(verbose.status, 200);
    assert!(said.contains("disk") || said.contains("space"), "it is to be told: {said}");
    scene.wait_for_live();
    (disk, ballast, scene, relay)
}

fn assert_recovered(scene: &mut Scene, relay: &Relay) {
    scene.post_until_accepted(relay);
    assert_eq!(relay.metrics().get("queue_writable", &[]), Some(1.0));
    for _ in 0..20 {
        assert!(scene.post(relay, 20), "it had resumed");
    }
}

/// Method: the relay is killed on a full disk and started again, then stopped and started again. It
/// must start, deliver the whole backlog, and accept batches again by itself: once because
/// deliveries free space, and once because the foreign file is deleted. Both consumers must receive
/// every accepted event.
fn a_full_disk_is_served_again(kind: Kind) {
    let (disk, ballast, mut scene, mut relay) = filled(kind);
    relay.kill();
    let mut relay = scene.start();
    let start = relay.metrics().value("output_start_events", &[("output", "late")]);
    assert!(start >= real(scene.accepted()), "{start} of {}", scene.accepted());
    // The disk is still full, so the batch may be accepted or refused. `finish` checks that an
    // accepted batch arrives.
    scene.post(&relay, 400);
    relay.stop();
    let relay = scene.start();
    scene.late.set_open(true);
    relay.wait_until_delivered(PATIENCE);
    wait_until("deleted segments", PATIENCE, || disk.free_bytes() > 4 * MIB);
    assert_recovered(&mut scene, &relay);
    relay.wait_until_delivered(PATIENCE);
    scene.late.set_open(false);
    disk.fill_up_to(2 * MIB, &disk.path().join("more ballast"));
    wait_until("a full disk again", PATIENCE, || !scene.post(&relay, 400));
    std::fs::remove_file(&ballast).unwrap();
    assert_recovered(&mut scene, &relay);
    scene.finish(relay);
}

/// Checks that no batch is accepted, at once and three seconds later, and that the log, the metrics
/// and the page name the cause.
fn assert_refuses(scene: &mut Scene, relay: &Relay, cause: &str) {
    assert!(!scene.post(relay, 20), "a start would not find it");
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..5 {
        assert!(!scene.post(relay, 20), "a start would not find it");
    }
    assert_eq!(relay.metrics().get("queue_writable", &[]), Some(0.0));
    assert!(relay.log_text().contains(cause), "{}", relay.log_text());
    let status = http::get(relay.admin(), "/status").unwrap().text();
    assert!(status.contains(cause), "{status}");
}

/// A scene with events in several segments, which only the live consumer has.
fn with_backlog(spool: Spool) -> (Scene, Relay) {
    let mut scene = Scene::new(spool, "segment_bytes = \"64KiB\"\n");
    let relay = scene.start();
    (0..10).for_each(|_| assert!(scene.post(&relay, 100)));
    scene.wait_for_live();
    assert!(scene.spool.segments().len() > 2);
    (scene, relay)
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn nothing_is_accepted_into_a_directory_that_was_deleted_and_its_events_are_lost() {
    for part in ["", "segments"] {
        let (mut scene, mut relay) = with_backlog(Spool::new());
        std::fs::remove_dir_all(scene.spool.path().join(part)).unwrap();
        assert_refuses(&mut scene, &relay, "queue.directory was deleted: restart the relay");
        relay.signal(libc::SIGTERM);
        let is_all = part.is_empty();
        assert_eq!(relay.wait_at_most(PATIENCE).code(), Some(is_all.into()));
        let (message, lost, kept) = match is_all {
            true => ("the relay has ended, and has lost accepted events", 1000, json!(0)),
            false => ("the relay has ended", 0, json!("unknown")),
        };
        let end = relay.wait_for_log(message, PATIENCE);
        assert_eq!((&end["lost"], &end["kept"]), (&json!(lost), &kept), "{end}");
        let relay = scene.start();
        assert!(scene.post(&relay, 20));
        scene.late.set_open(true);
        relay.wait_until_delivered(PATIENCE);
        // The files beside the segments say what was in them.
        let left = if is_all { 0.0 } else { 1000.0 };
        assert_eq!(relay.metrics().value("error_total", &[("plugin", "late")]), left);
        relay.finish(Backlog::Empty);
    }
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn nothing_is_accepted_while_the_directory_is_moved_away_or_covered() {
    let disk = Mounted::new(Kind::Tmpfs, 40 * MIB);
    let (here, there) = (disk.path().join("spool"), disk.path().join("moved"));
    let (mut scene, relay) = with_backlog(Spool::at(here.clone()));
    std::fs::rename(&here, &there).unwrap();
    let moved = "queue.directory was moved away, replaced or covered by a mount";
    assert_refuses(&mut scene, &relay, moved);
    std::fs::create_dir(&here).unwrap();
    assert_refuses(&mut scene, &relay, moved);
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0, "it is not the relay's");
    std::fs::remove_dir(&here).unwrap();
    std::fs::rename(&there, &here).unwrap();
    assert_recovered(&mut scene, &relay);
    for part in ["spool", "spool/segments", "spool/set-aside"] {
        disk.cover(part);
        assert_refuses(&mut scene, &relay, moved);
        disk.uncover(part);
        assert_recovered(&mut scene, &relay);
    }
    scene.finish(relay);
}

/// The relay can't know what a start finds while the directory is away.
#[test]
#[ignore = "needs peers or root: ./test"]
fn the_end_beside_a_directory_that_was_moved_away_does_not_say_how_much_is_kept() {
    let (scene, mut relay) = with_backlog(Spool::new());
    let away = scene.spool.path().with_extension("away");
    std::fs::rename(scene.spool.path(), &away).unwrap();
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.wait_at_most(PATIENCE).code(), Some(0));
    let end = relay.wait_for_log("the relay has ended", PATIENCE);
    assert_eq!((&end["lost"], &end["kept"]), (&json!(0), &json!("unknown")), "{end}");
    std::fs::rename(away, scene.spool.path()).unwrap();
    let relay = scene.start();
    scene.finish(relay);
}

/// Without the oldest segment, without all but the newest, and without all. What is in the memory
/// of the relay still arrives. After a start, the rest is counted as lost.
#[test]
#[ignore = "needs peers or root: ./test"]
fn deleted_segments_are_given_up_after_ten_seconds_and_counted() {
    for which in 0..3 {
        let (mut scene, mut relay) = with_backlog(Spool::new());
        let mut segments = scene.spool.segments();
        match which {
            0 => segments.truncate(1),
            1 => drop(segments.pop()),
            _ => {}
        }
        for segment in &segments {
            std::fs::remove_file(scene.spool.path().join(segment)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1200));
        assert_refuses(&mut scene, &relay, "files in segments/ were deleted");
        assert_recovered(&mut scene, &relay);
        if which == 2 {
            relay.stop();
            assert_eq!(relay.wait_for_log("the relay has ended", PATIENCE)["kept"], "unknown");
            relay = scene.start();
        }
        scene.late.set_open(true);
        relay.wait_until_delivered(PATIENCE);
        let metrics = relay.metrics();
        let lost = metrics.sum("error_total");
        let delivered = metrics.value("output_events_total", &[("output", "late")]);
        assert_eq!(lost + delivered, real(scene.accepted()), "{which}");
        assert_eq!(lost > 0.0, which == 2, "{lost} of segments {which}");
        relay.finish(Backlog::Empty);
    }
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_full_tmpfs_is_served_again_once_there_is_room_by_deliveries_or_by_somebody() {
    a_full_disk_is_served_again(Kind::Tmpfs);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_full_ext4_is_served_again_once_there_is_room_by_deliveries_or_by_somebody() {
    a_full_disk_is_served_again(Kind::Ext4);
}

/// Starts a relay under strace, which makes some of its system calls fail or delays them.
/// `injection` names the call and the fault. `-D` makes strace a grandchild, so that the relay
/// remains our child.
fn start_with(config: &str, injection: &str) -> Relay {
    let call = injection.split(':').next().expect("a system call");
    let (trace, inject) = (format!("trace={call}"), format!("inject={injection}"));
    let words = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let mut relay = Relay::with(config).launcher(&words).launch();
    assert!(relay.listens_or_exits(1), "{injection}: it does not start:\n{}", relay.log_text());
    relay
}

/// Segments that have room for only a few batches.
const SMALL_SEGMENTS: &str = "segment_bytes = \"64KiB\"\n";

/// Method: strace makes every reservation of space fail, as on a file system that does not support
/// it. Every batch must be accepted, and everything must arrive after a kill.
#[test]
#[ignore = "needs peers or root: ./test"]
fn where_the_file_system_reserves_nothing_the_files_grow() {
    let mut scene = Scene::new(Spool::new(), SMALL_SEGMENTS);
    let mut relay = start_with(&scene.config(), "fallocate:error=EOPNOTSUPP");
    for _ in 0..60 {
        assert!(scene.post(&relay, 20));
    }
    relay.kill();
    let relay = scene.start();
    scene.finish(relay);
}

/// Method: strace delays every sync by 300 ms, while 16 senders post single events. No answer may
/// come before a sync could end, the senders must share syncs, and `/readyz` must answer at once.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_slow_disk_is_shared_by_all_who_wait_and_holds_up_nobody_else() {
    const SYNC: Duration = Duration::from_millis(300);
    let scene = Scene::new(Spool::new(), "");
    let injection = format!("fdatasync:delay_enter={}", SYNC.as_micros());
    let relay = start_with(&scene.config(), &injection);
    let address = relay.address();
    let begun = Instant::now();
    let senders: Vec<_> = (0..16)
        .map(|sender| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address).unwrap();
                for number in 0..4 {
                    let asked = Instant::now();
                    let body = list(sender, number..number + 1);
                    let answer = client.post("/audit", "application/json", &body).unwrap();
                    assert_eq!(answer.status, 200);
                    assert!(asked.elapsed() >= SYNC, "answered before a sync could end");
                }
            })
        })
        .collect();
    let mut waits = Vec::new();
    while senders.iter().any(|sender| !sender.is_finished()) {
        let asked = Instant::now();
        assert_eq!(http::get(relay.admin(), "/readyz").unwrap().status, 200);
        waits.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    // Without sharing, 64 batches would take 64 syncs one after the other, which is 19 s.
    let took = begun.elapsed();
    assert!(took < SYNC * 40, "{took:?}");
    // If `/readyz` waited for the syncs, the median would be about half a sync or more. Single
    // answers can be late on a busy machine.
    waits.sort_unstable();
    let half = waits[waits.len() / 2];
    assert!(half < SYNC / 3, "/readyz waited {half:?}");
    let arrived = wait_for("the live consumer", PATIENCE, || {
        (scene.live.tally.count() >= 64).then(|| scene.live.tally.count())
    });
    assert_eq!(arrived, 64);
    relay.finish(Backlog::Stable);
}

/// Method: strace delays every sync by a minute, from the eighth on. The relay must continue to
/// deliver the events that are already safe, and must end within 12 s of SIGTERM, although a sync
/// hangs. After the next start, every event that was answered with 200 must arrive.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_disk_that_hangs_holds_up_neither_the_end_nor_what_is_safe() {
    let mut scene = Scene::new(Spool::new(), "[shutdown]\ndrain_timeout = \"3s\"\n");
    // The first syncs, which belong to the start, do not hang.
    let injection = "fdatasync:delay_enter=60000000:when=8+";
    let mut relay = start_with(&scene.config(), injection);
    let address = relay.address();
    let stuck = wait_for("a sync that hangs", PATIENCE, || {
        let numbers = scene.next(1);
        let body = list(0, numbers.clone());
        let mut client = Client::connect(address).unwrap();
        client.read_timeout(Duration::from_secs(2));
        let accepted = client.post("/audit", "application/json", &body).is_ok();
        scene.sent.push(Sent { sender: 0, numbers, accepted });
        (!accepted).then_some(client)
    });
    scene.wait_for_live();
    assert_eq!(http::get(relay.admin(), "/readyz?verbose").unwrap().status, 200);
    relay.signal(libc::SIGTERM);
    let ended = relay.wait_for_log(messages::ENDED, Duration::from_secs(12));
    assert_eq!(ended["lost"], 0, "{}", relay.log_text());
    // The traced process can't end while strace delays its system call.
    relay.kill_tracer();
    relay.kill();
    drop(stuck);
    let relay = scene.start();
    scene.finish(relay);
}

/// Method: strace delays one sync by 17 s. The log must say once that the disk does not respond,
/// and once that it responds again.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_disk_that_hangs_and_goes_on_is_told_in_the_log_once() {
    let mut scene = Scene::new(Spool::new(), "");
    // The first syncs, which belong to the start, do not hang.
    let relay = start_with(&scene.config(), "fdatasync:delay_enter=17000000:when=8");
    wait_until("a sync that hangs", PATIENCE, || {
        scene.post(&relay, 1);
        relay.log_text().contains("does not respond")
    });
    let told = |message: &str| {
        let lines = relay.log_lines();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_it = |line: &Value| line["fields"]["message"] == message;
        lines.filter(is_it).map(|line| line["level"].clone()).collect::<Vec<_>>()
    };
    relay.wait_for_log("the queue's disk responds again", PATIENCE);
    let hangs = told("the queue's disk does not respond: senders get 503 until it does");
    assert_eq!(hangs, ["ERROR"]);
    assert_eq!(told("the queue's disk responds again"), ["INFO"]);
    scene.finish(relay);
}

/// Method: strace delays the first sync of the start by 8 s. The log must say that the queue is not
/// open yet, before the relay listens.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_start_that_waits_for_the_disk_is_told_in_the_log() {
    let mut scene = Scene::new(Spool::new(), "");
    let relay = start_with(&scene.config(), "fdatasync:delay_enter=8000000:when=1");
    let log = relay.log_text();
    let waits = log.find("the queue on disk is not open after 5 s").expect("a warning");
    assert!(waits < log.find("\"listening\"").expect("it listens"), "{log}");
    assert!(scene.post(&relay, 1));
    scene.finish(relay);
}

/// Method: strace delays every sync by 1.2 s. `/status` must show the latency, and a finding about
/// it.
#[test]
#[ignore = "needs peers or root: ./test"]
fn answers_that_wait_for_a_slow_disk_are_shown_and_a_warning() {
    let mut scene = Scene::new(Spool::new(), "");
    let relay = start_with(&scene.config(), "fdatasync:delay_enter=1200000");
    assert!(scene.post(&relay, 1));
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let slowest = status["listeners"][0]["latency_p99_seconds"].as_f64().unwrap();
    assert!(slowest > 1.0, "{status}");
    let findings = status["verdict"]["findings"].to_string();
    assert!(findings.contains("127.0.0.1:0 responds slowly"), "{findings}");
    scene.finish(relay);
}

/// Method: the first start finds a disk without a free byte. The relay must either refuse batches,
/// or end with status 1 and name the cause. Once there is room, it must work.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_disk_without_any_room_at_the_first_start_is_named_or_waited_for() {
    for kind in [Kind::Tmpfs, Kind::Ext4] {
        let disk = Mounted::new(kind, 16 * MIB);
        let ballast = disk.path().join("ballast");
        let mut scene = Scene::new(Spool::at(disk.path().join("spool")), LARGER_THAN_THE_DISK);
        disk.fill_up_to(0, &ballast);
        let mut relay = Relay::with(&scene.config()).launch();
        if relay.listens_or_exits(1) {
            assert!(!scene.post(&relay, 1), "{kind:?}: stored where there is no room");
            std::fs::remove_file(&ballast).unwrap();
        } else {
            let said = relay.log_text();
            assert_eq!(relay.wait().code(), Some(1), "{kind:?}: {said}");
            assert!(said.contains("No space left"), "{kind:?}: {said}");
            std::fs::remove_file(&ballast).unwrap();
            relay = scene.start();
        }
        assert_recovered(&mut scene, &relay);
        scene.finish(relay);
    }
}
