//! `type = "s3"`: where objects end and when they are stored, so that each event is in exactly one
//! object; keys and signatures; a real server. `tests/sim` tests all kinds of answers.

use std::io::{Read as _, Write as _};

use crate::support::numbered::list;
use crate::support::prelude::*;
use crate::support::s3::{Keys, Mood, ROLE, S3, SECRET, Sts, lines};
use crate::support::seaweedfs::SeaweedFs;
use crate::support::server::Options;

/// Small objects, and short intervals between attempts.
const SMALL: &str = "object_age = \"200ms\"\nobject_bytes = \"64KiB\"\n\
                     retry = { initial_interval = \"10ms\", max_interval = \"100ms\" }";

/// Objects that end at an age of 100 ms.
const YOUNG: &str = "object_age = \"100ms\"\n\
                     retry = { initial_interval = \"10ms\", max_interval = \"100ms\" }";

fn value(relay: &Relay, metric: &str) -> f64 {
    relay.metrics().value(metric, &[("output", "archive")])
}

/// Returns the config of a relay with this output, and with a queue in this directory.
fn durable(output: &str, spool: &TempDir) -> String {
    format!("{BASE}{output}[queue]\ndirectory = \"{}\"\n", text(spool.path()))
}

/// Starts a server that answers with 503 until the value is `true`.
fn busy_server() -> (S3, Arc<AtomicBool>) {
    let calm = Arc::new(AtomicBool::new(false));
    let is_calm = Arc::clone(&calm);
    let server = S3::start(move || match is_calm.load(Ordering::SeqCst) {
        true => Mood::Stores,
        false => Mood::Fails(503, "SlowDown"),
    });
    (server, calm)
}

fn lines_of(server: &S3) -> Vec<Vec<u8>> {
    server.store().lines()
}

/// Checks that the lines are exactly the events, in the same order.
#[track_caller]
fn assert_are(lines: &[Vec<u8>], events: &[Vec<u8>]) {
    assert_eq!(lines.len(), events.len(), "the number of lines");
    assert!(lines == events, "the lines are not the events in their order");
}

#[test]
fn the_corpus_is_in_objects_that_are_named_by_time_and_position() {
    let keys = Keys::new();
    for compression in ["zstd", "gzip", "none"] {
        let server = S3::start(|| Mood::Stores);
        let more = format!(
            "{SMALL}\ncompression = \"{compression}\"\n\
             headers = {{ x-amz-storage-class = \"GLACIER_IR\" }}"
        );
        let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), &more)));
        let events = post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE * 2);
        let store = server.store();
        assert_are(&store.lines(), &events);
        assert!(store.objects.len() > 5, "{} objects", store.objects.len());
        assert_eq!((store.again, store.puts), (0, store.objects.len()));
        assert_eq!(store.classes.len(), store.puts);
        let extension = match compression {
            "zstd" => ".jsonl.zst",
            "gzip" => ".jsonl.gz",
            _ => ".jsonl",
        };
        assert!(store.objects.keys().all(|name| name.ends_with(extension)));
        drop(store);
        assert_eq!(value(&relay, "output_retries_total"), 0.0);
        relay.finish(Backlog::Empty);
    }
}

/// Method: the server stores an object, but its answer is lost. The relay is killed, so that only
/// the saved range says where the object ended. More events are there now: if the object ended
/// elsewhere, it would have another name.
#[test]
fn an_object_has_the_same_end_after_a_crash() {
    let stored = Arc::new(AtomicUsize::new(0));
    let calm = Arc::new(AtomicBool::new(false));
    let (count, is_calm) = (Arc::clone(&stored), Arc::clone(&calm));
    let server = S3::start(move || match is_calm.load(Ordering::SeqCst) {
        true => Mood::Stores,
        false => {
            count.fetch_add(1, Ordering::SeqCst);
            Mood::HangsUp(true)
        }
    });
    let (keys, spool) = (Keys::new(), TempDir::new().unwrap());
    let config = durable(&keys.output(server.address(), YOUNG), &spool);
    let mut relay = Relay::start(&config);
    let first = post_batch(&relay, 1, 50, 700);
    wait_until("a request", PATIENCE, || stored.load(Ordering::SeqCst) > 0);
    let mut events = first;
    events.extend(post_batches(&relay, 2..5, 50, 700));
    relay.kill();
    calm.store(true, Ordering::SeqCst);
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    assert_are(&lines_of(&server), &events);
    assert!(server.store().again > 0);
    assert!(value(&relay, "output_existing_events_total") >= 50.0);
    assert_eq!(value(&relay, "output_events_total"), 200.0);
    relay.finish(Backlog::Empty);
}

/// Method: the server stores an object, its answer is lost, and the relay is killed. The next relay
/// is stopped when it has read some of the object's events: the filter keeps one event of each
/// claim, so that the output pauses after it. A part of the object would have another name.
#[test]
fn no_part_of_an_object_that_may_be_stored_is_stored_when_the_relay_stops() {
    let calm = Arc::new(AtomicBool::new(false));
    let is_calm = Arc::clone(&calm);
    let server = S3::start(move || match is_calm.load(Ordering::SeqCst) {
        true => Mood::Stores,
        false => Mood::HangsUp(true),
    });
    let (keys, spool) = (Keys::new(), TempDir::new().unwrap());
    let more = "object_age = \"4s\"\nbatch = { max_events = 10 }\n\
                [[output.filter.match]]\nverbs = [\"get\"]";
    let config = durable(&keys.output(server.address(), more), &spool);
    let mut relay = Relay::start(&config);
    let mut events = Vec::new();
    for number in 0..40 {
        let rare =
            format!(r#"{{"level":"Metadata","auditID":"{number}","stage":"Panic","verb":"get"}}"#);
        assert_eq!(relay.post(&generated_batch(number, 9, 700)).status, 200);
        assert_eq!(relay.post(rare.as_bytes()).status, 200);
        events.push(rare.into_bytes());
    }
    wait_until("an object", PATIENCE, || !server.store().objects.is_empty());
    relay.kill();
    calm.store(true, Ordering::SeqCst);
    let mut relay = Relay::start(&config);
    std::thread::sleep(Duration::from_millis(500));
    relay.stop();
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    assert_are(&lines_of(&server), &events);
    relay.finish(Backlog::Empty);
}

/// Method: objects end at an age of 24 hours, and the relay gets SIGTERM after a second. It must
/// store the events before it ends, whether the queue is in memory or on disk.
#[test]
fn what_was_collected_is_stored_when_the_relay_stops() {
    let (keys, spool) = (Keys::new(), TempDir::new().unwrap());
    for has_spool in [false, true] {
        let server = S3::start(|| Mood::Stores);
        let output = keys.output(server.address(), "object_age = \"24h\"");
        let config = match has_spool {
            true => durable(&output, &spool),
            false => format!("{BASE}{output}"),
        };
        let mut relay = Relay::start(&config);
        let bodies = [generated_batch(1, 30, 700), generated_batch(2, 30, 700)];
        for body in &bodies {
            assert_eq!(relay.post(body).status, 200);
        }
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(server.store().puts, 0, "the object is young");
        assert_eq!(value(&relay, "output_events_total"), 0.0);
        let took = relay.stop();
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_are(&lines_of(&server), &bodies.map(|body| events_of(&body)).concat());
        assert_eq!(server.store().objects.len(), 1);
    }
}

/// Method: a reload changes the output while it collects events. The old delivery must store them
/// at once, and must not delay the new one.
#[test]
fn a_reload_stores_what_was_collected() {
    let (keys, server) = (Keys::new(), S3::start(|| Mood::Stores));
    let config = |age: &str| {
        format!("{BASE}{}", keys.output(server.address(), &format!("object_age = \"{age}\"")))
    };
    let mut relay = Relay::start(&config("24h"));
    let (first, second) = (generated_batch(1, 30, 700), generated_batch(2, 30, 700));
    assert_eq!(relay.post(&first).status, 200);
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(relay.config_file(), config("23h")).unwrap();
    relay.signal(libc::SIGHUP);
    wait_until("the object", Duration::from_secs(9), || server.store().objects.len() == 1);
    assert_eq!(relay.post(&second).status, 200);
    relay.stop();
    assert_are(&lines_of(&server), &[events_of(&first), events_of(&second)].concat());
    assert_eq!(server.store().objects.len(), 2);
}

/// Method: the first request for an object gets no answer, and the next two get 409, as if the
/// first one still ran. The first request has stored the object in one run, and has failed in the
/// other.
/// A store, or a gateway before it, that refuses each object with one of two events: by its
/// content, by a policy. Nothing else of the object waits for long, the two events are set aside,
/// and new events arrive at the same time.
#[test]
fn an_object_with_events_that_the_store_refuses_is_divided() {
    for status in [403, 500] {
        let server = S3::start(move || Mood::FailsOn(status, "POISON"));
        let keys = Keys::new();
        let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), SMALL)));
        let mut events = post_batch(&relay, 1, 40, 600);
        let poison = r#"{"level":"Metadata","auditID":"1","stage":"Panic","verb":"POISON"}"#;
        for number in 2..9 {
            if number % 3 == 0 {
                assert_eq!(relay.post(poison.as_bytes()).status, 200);
            }
            events.extend(post_batch(&relay, number, 40, 600));
        }
        let aside = || value(&relay, "output_aside_events");
        wait_until("two events are set aside", PATIENCE, || aside() == 2.0);
        wait_until("all others", PATIENCE, || lines_of(&server).len() == events.len());
        events.extend(post_batch(&relay, 9, 40, 600));
        wait_until("new events", PATIENCE, || lines_of(&server).len() == events.len());
        let mut lines = lines_of(&server);
        lines.sort_unstable();
        events.sort_unstable();
        assert_are(&lines, &events);
        assert_eq!((relay.metrics().sum("error_total"), aside()), (0.0, 2.0), "{status}");
        relay.finish(Backlog::Stable);
    }
}

/// An outage of the store does not divide the object that waits: when the outage ends, it has all
/// its events.
#[test]
fn an_outage_divides_no_object() {
    let (server, calm) = busy_server();
    let keys = Keys::new();
    let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), YOUNG)));
    let mut events = post_batch(&relay, 1, 300, 600);
    wait_until("the store is asked often", PATIENCE, || server.store().puts > 12);
    events.extend(post_batch(&relay, 2, 10, 600));
    wait_until("it is asked often", PATIENCE, || server.store().puts > 30);
    calm.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    let store = server.store();
    let largest = store.objects.values().map(|bytes| lines_in(bytes)).max();
    assert_eq!(largest, Some(300), "{} objects", store.objects.len());
    // Up to six of the later events were tried as objects of their own.
    assert!(store.objects.len() <= 4 + 6, "{} objects", store.objects.len());
    drop(store);
    assert_are(&lines_of(&server), &events);
    relay.finish(Backlog::Empty);
}

/// Returns the number of lines in an object that is compressed with zstd.
fn lines_in(object: &[u8]) -> usize {
    let lines = zstd::decode_all(object).expect("zstd");
    lines.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn a_conflict_neither_refuses_an_object_nor_acknowledges_it() {
    let keys = Keys::new();
    for stores in [true, false] {
        let conflict = Mood::Fails(409, "ConditionalRequestConflict");
        let mut moods = [Mood::HangsUp(stores), conflict, conflict].into_iter();
        let server = S3::start(move || moods.next().unwrap_or(Mood::Stores));
        let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), YOUNG)));
        let events = post_batch(&relay, 1, 50, 700);
        relay.wait_until_delivered(PATIENCE);
        assert_are(&lines_of(&server), &events);
        // After the second failure, the relay looks whether the object is there.
        let store = server.store();
        assert_eq!((store.puts, store.again), (if stores { 2 } else { 4 }, 0));
        drop(store);
        let existing = if stores { 50.0 } else { 0.0 };
        assert_eq!(value(&relay, "output_existing_events_total"), existing);
        assert_eq!(value(&relay, "output_events_total"), 50.0);
        assert_eq!(relay.metrics().sum("error_total"), 0.0);
        relay.finish(Backlog::Empty);
    }
}

/// The store has taken an object, and its answer was lost. A gateway then refuses the object, each
/// time it is sent. It is there, so it is neither divided nor sent for ever.
#[test]
fn an_object_that_is_there_is_found_although_it_is_refused() {
    for lost in [Mood::HangsUp(true), Mood::StoresAndFails] {
        let keys = Keys::new();
        let mut first = Some(lost);
        let refuses = Mood::FailsOn(403, "POISON");
        let server = S3::start(move || first.take().unwrap_or(refuses));
        let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), YOUNG)));
        let poison = r#"{"level":"Metadata","auditID":"1","stage":"Panic","verb":"POISON"}"#;
        assert_eq!(relay.post(poison.as_bytes()).status, 200);
        post_batch(&relay, 1, 49, 700);
        relay.wait_until_delivered(PATIENCE);
        let store = server.store();
        assert_eq!((store.objects.len(), store.again), (1, 0));
        drop(store);
        assert_eq!(lines_of(&server).len(), 50);
        assert_eq!(value(&relay, "output_existing_events_total"), 50.0);
        relay.finish(Backlog::Empty);
    }
}

/// A gateway answers 412 to requests, and stores nothing: with the words of a store and without,
/// and after an answer that leaves in doubt whether the object is there. Then the store has the
/// object from a request whose answer was lost.
#[test]
fn a_412_counts_only_for_an_object_that_is_there() {
    for (may_look, moods) in [
        (true, vec![Mood::Fails(412, "PreconditionFailed"), Mood::Fails(412, "AccessDenied")]),
        (true, vec![Mood::HangsUp(false), Mood::Fails(412, "AccessDenied")]),
        (true, vec![Mood::HangsUp(true)]),
        (false, vec![Mood::Fails(412, "AccessDenied")]),
        (false, vec![Mood::HangsUp(true)]),
    ] {
        let keys = Keys::new();
        // After another failure, the log says already that the output is down.
        let is_first = matches!(moods[0], Mood::Fails(..));
        let mut moods = moods.into_iter();
        let server =
            S3::for_key(may_look, Options::default(), move || moods.next().unwrap_or(Mood::Stores));
        let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), YOUNG)));
        assert_eq!(relay.post(&list(0, 0..20)).status, 200);
        relay.wait_until_delivered(PATIENCE);
        assert_eq!(lines_of(&server).len(), 20);
        assert_eq!(server.store().objects.len(), 1);
        let log = relay.finish(Backlog::Empty);
        assert_eq!(log.contains("but the object is not there"), is_first, "{log}");
    }
}

/// Method: each start begins a segment, so one object of each life has the last events of one
/// segment and the first events of the next. The relay is killed once the server has this object.
/// The queue must not save a cursor between the two parts, because the object could not be made
/// again from there.
#[test]
fn an_object_with_events_of_two_segments_is_stored_once_over_a_kill() {
    let (keys, spool) = (Keys::new(), TempDir::new().unwrap());
    let server = S3::start(|| Mood::Stores);
    let more = "object_age = \"24h\"\nobject_bytes = \"64KiB\"";
    let config = durable(&keys.output(server.address(), more), &spool);
    let (mut events, stored) = (Vec::new(), || server.store().objects.len());
    for life in 0..12 {
        let (mut relay, before) = (Relay::start(&config), stored());
        events.extend(post_batch(&relay, life, 100, 700));
        wait_until("an object", PATIENCE, || stored() > before);
        std::thread::sleep(Duration::from_millis(30));
        relay.kill();
    }
    // A stop leaves an object in the queue if its events are not read within a second.
    for _ in 0..3 {
        let mut relay = Relay::start(&config);
        relay.stop();
        if lines_of(&server).len() >= events.len() {
            break;
        }
    }
    assert_are(&lines_of(&server), &events);
}

/// Method: an optional output, whose consumer is down, fills the queue. The required output has
/// only a little left to store. Its object must not end early, because no batch waits for its
/// space.
#[test]
fn an_object_does_not_end_early_for_what_only_an_optional_output_needs() {
    let (keys, server) = (Keys::new(), S3::start(|| Mood::Stores));
    let archive = keys.output(server.address(), "object_age = \"24h\"\nobject_bytes = \"256KiB\"");
    let away = format!(
        "[[output]]\nname = \"away\"\ntype = \"tcp\"\nrequired = false\n\
         addresses = [\"127.0.0.1:{}\"]\n",
        free_port()
    );
    let mut relay = Relay::start(&format!("{BASE}{archive}{away}[queue]\nmax_bytes = \"2MiB\"\n"));
    let mut events = Vec::new();
    for seed in 0..40 {
        let body = generated_batch(seed, 100, 700);
        wait_until("room", PATIENCE, || relay.post(&body).status == 200);
        events.extend(events_of(&body));
    }
    let last = generated_batch(40, 1, 700);
    wait_until("objects of a quarter of a MiB", PATIENCE, || {
        lines_of(&server).len() >= events.len() - 400
    });
    assert_eq!(relay.post(&last).status, 200);
    events.extend(events_of(&last));
    let metrics = relay.metrics();
    let figure = |name: &str| metrics.value(name, &[]);
    assert!(figure("queue_bytes") > 0.75 * 2_097_152.0, "{}", figure("queue_bytes"));
    let needed = figure("queue_needed_bytes");
    assert!(needed > 0.0 && needed < 0.25 * 2_097_152.0, "{needed}");
    let stored = server.store().puts;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.store().puts, stored, "the object is young");
    relay.stop();
    assert_are(&lines_of(&server), &events);
}

/// Method: the queue is much smaller than an object. An object must end before the queue is full,
/// so that no sender waits for `object_age`.
#[test]
fn an_object_ends_before_the_queue_is_full() {
    let (keys, server) = (Keys::new(), S3::start(|| Mood::Stores));
    let output = keys.output(server.address(), "object_age = \"24h\"");
    let mut relay = Relay::start(&format!("{BASE}{output}[queue]\nmax_bytes = \"2MiB\"\n"));
    let mut events = Vec::new();
    for seed in 0..40 {
        let body = generated_batch(seed, 300, 700);
        wait_until("room", PATIENCE, || relay.post(&body).status == 200);
        events.extend(events_of(&body));
    }
    relay.stop();
    assert_are(&lines_of(&server), &events);
    assert!(server.store().objects.len() >= 10, "{} objects", server.store().objects.len());
}

/// Method: the filter drops 100 of 101 events, so the queue is full long before an object reaches
/// its size or age. The object must end then, so that no sender waits for 24 hours.
#[test]
fn an_object_ends_when_the_filter_keeps_back_what_fills_the_queue() {
    let (keys, server) = (Keys::new(), S3::start(|| Mood::Stores));
    let more = "object_age = \"24h\"\n[[output.filter.match]]\nverbs = [\"get\"]";
    let output = keys.output(server.address(), more);
    let mut relay = Relay::start(&format!("{BASE}{output}[queue]\nmax_bytes = \"2MiB\"\n"));
    let rare = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[
        {"level":"Metadata","auditID":"a","stage":"Panic","verb":"get"}]}"#;
    for seed in 0..30 {
        let body = generated_batch(seed, 100, 2000);
        wait_until("room", PATIENCE, || relay.post(&body).status == 200);
        wait_until("room", PATIENCE, || relay.post(rare).status == 200);
    }
    relay.stop();
    assert_are(&lines_of(&server), &vec![events_of(rare).concat(); 30]);
    assert!(server.store().objects.len() >= 2, "{} objects", server.store().objects.len());
}

/// Method: the saved notes have an object's range that begins in the middle of a batch, as after a
/// crash if the earlier events were given up. The object must get this range again, and the events
/// around it must be in other objects.
#[test]
fn a_saved_range_stays_an_object_amid_other_events() {
    let (server, calm) = busy_server();
    let (keys, spool) = (Keys::new(), TempDir::new().unwrap());
    let config = durable(&keys.output(server.address(), YOUNG), &spool);
    let mut relay = Relay::start(&config);
    let events = post_batch(&relay, 1, 50, 700);
    wait_until("an attempt", PATIENCE, || server.store().puts > 0);
    relay.kill();
    let ranges = r#"[{"first":20,"last":39,"stored":true}]"#;
    let notes = format!("{:08x}\n{ranges}", crc32c::crc32c(ranges.as_bytes()));
    std::fs::write(spool.path().join("notes-archive"), &notes).unwrap();
    calm.store(true, Ordering::SeqCst);
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    let names: Vec<_> = server.store().objects.keys().cloned().collect();
    assert!(names.len() == 3 && names[1].contains("-20-39-"), "{names:?}");
    assert_are(&server.store().lines(), &events);
    relay.finish(Backlog::Empty);
}

/// Method: events come one by one, so that an object has many small batches, and the first attempt
/// to store it fails. The second attempt must come within 5 s, although the events took up to 6 s.
#[test]
fn an_object_of_many_batches_is_soon_sent_again() {
    let mut moods = [Mood::Fails(503, "SlowDown")].into_iter();
    let server = S3::start(move || moods.next().unwrap_or(Mood::Stores));
    let keys = Keys::new();
    let more = "object_age = \"6s\"\nretry.initial_interval = \"10ms\"";
    let mut relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), more)));
    let (mut events, mut seeds) = (Vec::new(), 0..);
    // Batches are posted until the object ends, so a slow machine posts fewer of them.
    wait_until("an attempt", PATIENCE, || {
        let sent = post_batch(&relay, seeds.next().expect("they do not end"), 1, 700);
        events.extend(sent);
        std::thread::sleep(Duration::from_millis(51));
        server.store().puts > 0
    });
    wait_until("the next one", Duration::from_secs(5), || server.store().puts > 1);
    relay.stop();
    assert_are(&lines_of(&server), &events);
}

/// Method: the relay can't write its notes, because a directory has the name of the file. The
/// events must be stored nevertheless, and the log must say so once.
#[test]
fn a_disk_that_refuses_the_notes_keeps_no_event_back() {
    let (keys, spool) = (Keys::new(), TempDir::new().unwrap());
    let server = S3::start(|| Mood::Stores);
    let config = durable(&keys.output(server.address(), YOUNG), &spool);
    std::fs::create_dir(spool.path().join("notes-archive.new")).unwrap();
    let relay = Relay::start(&config);
    let mut events = Vec::new();
    for seed in 0..3 {
        let sent = post_batch(&relay, seed, 20, 700);
        events.extend(sent);
        relay.wait_until_delivered(PATIENCE);
    }
    assert_are(&lines_of(&server), &events);
    let said = "cannot save the state of the current S3 object";
    let told = || relay.log_lines().iter().filter(|line| line.contains(said)).count();
    wait_until("the line", PATIENCE, || told() > 0);
    assert_eq!(told(), 1, "{}", relay.log_text());
    relay.finish(Backlog::Empty);
}

/// Method: a server that does not implement `If-None-Match` answers with 501. The log must name the
/// key, the events must wait, and a reload with the key must store them.
#[test]
fn a_server_without_if_none_match_names_the_key_and_works_with_it() {
    let (keys, server) = (Keys::new(), S3::start(|| Mood::Unconditional));
    let config = |more: &str| {
        format!("{BASE}{}", keys.output(server.address(), &format!("{YOUNG}\n{more}")))
    };
    let relay = Relay::start(&config(""));
    let sent = post_batch(&relay, 1, 20, 700);
    let line = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
    let words = "501 Not Implemented (NotImplemented): if the server does not implement \
                 If-None-Match, set conditional_writes = false";
    assert!(line.contains(words), "{line}");
    assert!(server.store().objects.is_empty());
    std::fs::write(relay.config_file(), config("conditional_writes = false")).unwrap();
    relay.signal(libc::SIGHUP);
    relay.wait_until_delivered(PATIENCE);
    assert_are(&lines_of(&server), &sent);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_store_that_knows_no_checksum_gets_objects_without_one() {
    for (status, code) in [(400, "InvalidArgument"), (501, "NotImplemented")] {
        let (keys, server) = (Keys::new(), S3::start(move || Mood::NoChecksum(status, code)));
        let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), YOUNG)));
        let sent = post_batch(&relay, 1, 20, 700);
        let line = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
        assert!(line.contains("the store refuses the headers of the checksum"), "{line}");
        assert!(!line.contains("conditional_writes"), "{line}");
        relay.wait_until_delivered(PATIENCE);
        let _more = post_batch(&relay, 2, 20, 700);
        relay.wait_until_delivered(PATIENCE);
        assert_eq!(server.store().puts, 3, "only the first request was refused");
        assert_eq!(lines_of(&server).len(), 40);
        assert!(sent.iter().all(|event| lines_of(&server).contains(event)));
        relay.finish(Backlog::Empty);
    }
}

/// Method: the config has a header that the relay sets itself, the token of temporary keys, and a
/// URL with a path and a query. The fake checks the signature of each request.
#[test]
fn headers_of_the_config_and_the_parts_of_a_url_are_signed() {
    let (keys, server) = (Keys::new(), S3::start(|| Mood::Stores));
    let more =
        "x-amz-date = \"never\", x-amz-meta-cluster = \"prod\", x-amz-security-token = \"t0ken\"";
    let more = format!("{YOUNG}\nheaders = {{ {more} }}");
    let output = keys.output(server.address(), &more);
    let address = server.address().to_string();
    let output = output.replace(&address, &format!("{address}/gate+way/?b=2&a=x/y"));
    let relay = Relay::start(&format!("{BASE}{output}"));
    let sent = post_batch(&relay, 1, 20, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_are(&lines_of(&server), &sent);
    assert_eq!(server.store().sessions, ["t0ken"]);
    relay.finish(Backlog::Empty);
}

/// Method: the key is wrong at first, and is then corrected. The log must give the server's reason
/// and no secret, and the events must be stored.
#[test]
fn a_changed_key_is_taken_up_and_a_refusal_is_explained() {
    let (keys, server) = (Keys::new(), S3::start(|| Mood::Stores));
    keys.write("AKIDEXAMPLE", "wr0ng-s3cr3t");
    let relay = Relay::start(&format!("{BASE}{}", keys.output(server.address(), YOUNG)));
    let sent = post_batch(&relay, 1, 20, 700);
    let line = relay.wait_for_log("output down, events are kept", PATIENCE);
    assert!(line.to_string().contains("403 Forbidden (SignatureDoesNotMatch)"), "{line}");
    keys.write("AKIDEXAMPLE", SECRET);
    relay.wait_until_delivered(PATIENCE);
    assert_are(&lines_of(&server), &sent);
    assert!(value(&relay, "output_retries_total") >= 1.0);
    let log = relay.finish(Backlog::Empty);
    assert!(!log.contains("wr0ng-s3cr3t") && !log.contains(SECRET), "{log}");
}

/// Method: keys are valid for two seconds, and the pod's token is wrong at first. The log must say
/// so. The relay must get keys once the token is right, and renew them before they expire.
#[test]
fn a_pod_gets_keys_for_its_role_and_renews_them() {
    let (server, sts) = (S3::start(|| Mood::Stores), Sts::start("p0d-t0ken"));
    let (keys, pod) = (Keys::new(), TempDir::new().unwrap());
    let token = pod.path().join("token");
    std::fs::write(&token, "an-old-t0ken\n").unwrap();
    let output = keys.output(server.address(), YOUNG);
    let output: Vec<_> = output.lines().filter(|line| !line.contains("_key")).collect();
    let config = format!("{BASE}{}\n", output.join("\n"));
    let relay = Relay::with(&config)
        .variable("AWS_ROLE_ARN", ROLE)
        .variable("AWS_WEB_IDENTITY_TOKEN_FILE", text(&token))
        .variable("AWS_ENDPOINT_URL_STS", &format!("http://{}", sts.sink.address()))
        .start();
    let mut events = Vec::new();
    for seed in 0..8 {
        let sent = post_batch(&relay, seed, 20, 700);
        events.extend(sent);
        if seed == 0 {
            let line = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
            let words = format!("STS does not accept the token in {} for the role", text(&token));
            assert!(line.contains(&words), "{line}");
            std::fs::write(&token, "p0d-t0ken\n").unwrap();
        }
        relay.wait_until_delivered(PATIENCE);
        std::thread::sleep(Duration::from_millis(600));
    }
    let store = server.store();
    assert_are(&store.lines(), &events);
    let sessions: BTreeSet<_> = store.sessions.iter().collect();
    assert!(sessions.len() >= 3, "{sessions:?}");
    assert_eq!(store.sessions.len(), store.puts);
    drop(store);
    let log = relay.finish(Backlog::Empty);
    assert!(!log.contains("t0ken") && !log.contains(SECRET) && !log.contains("session+"), "{log}");
}

/// Method: a proxy between the relay and the server records the host that the relay asks for.
#[test]
fn the_bucket_can_be_in_the_name_of_the_host() {
    let server = S3::start(|| Mood::Stores);
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let target = server.address();
    let asked = std::thread::spawn(move || {
        let (mut client, _) = proxy.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut server = std::net::TcpStream::connect(target).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let there = std::thread::spawn(move || {
            drop(std::io::copy(&mut from, &mut to));
            drop(to.shutdown(std::net::Shutdown::Write));
        });
        drop(std::io::copy(&mut server, &mut client));
        drop(client.shutdown(std::net::Shutdown::Both));
        there.join().unwrap();
        String::from_utf8(head).unwrap()
    });
    let keys = Keys::new();
    let more = format!("{YOUNG}\npath_style = false\nproxy = \"http://{address}\"");
    let output = keys.output(server.address(), &more);
    let output = output.replace(&format!("http://{target}"), "http://s3.example:8080");
    let mut relay = Relay::start(&format!("{BASE}{output}"));
    let sent = post_batch(&relay, 1, 20, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_are(&lines_of(&server), &sent);
    let hosts: Vec<_> = server.store().hosts.iter().cloned().collect();
    assert_eq!(hosts, ["audit-archive.s3.example:8080"]);
    relay.stop();
    let head = asked.join().unwrap();
    assert!(head.starts_with("CONNECT audit-archive.s3.example:8080 HTTP/1.1\r\n"), "{head}");
}

#[test]
fn a_config_that_cannot_work_is_refused_in_words() {
    let keys = Keys::new();
    let address = "127.0.0.1:9".parse().unwrap();
    let output = |more: &str| keys.output(address, more);
    let cases = [
        (
            format!("{}[queue]\nacknowledge = \"delivered\"\n", output("")),
            "queue.acknowledge: \"delivered\" conflicts with output \"archive\" (line 7) of type \
             s3, which collects events for minutes",
        ),
        (output("").replace("audit-archive", "a b"), "bucket"),
        (output("").replace("eu-central-1", "eu central"), "region"),
        (output("").replace("clusters/prod+1", "a/../b"), "prefix"),
        (output("object_bytes = \"2GiB\""), "object_bytes"),
        (
            output("").replace("access_key_id_file", "# "),
            "access_key_id_file: is required together with secret_access_key_file",
        ),
        (
            output("").replace("access_key_id_file", "# ").replace("secret_access_key_file", "# "),
            "access_key_id_file: is required, with secret_access_key_file; or",
        ),
        (output("headers = { authorization = \"x\" }"), "headers"),
    ];
    let directory = TempDir::new().unwrap();
    for (config, words) in cases {
        std::fs::write(directory.path().join("c.toml"), format!("{BASE}{config}")).unwrap();
        let checked = run_command(&["check", "--config", "c.toml"], directory.path());
        let said = String::from_utf8([checked.stdout, checked.stderr].concat()).unwrap();
        assert!(said.contains(words), "{words}: {said}");
        assert_eq!(checked.status.code(), Some(2), "{said}");
    }
}

/// These tests need SeaweedFS.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn check_connect_tells_a_wrong_key_and_a_missing_bucket() {
        let server = SeaweedFs::start();
        let (keys, directory) = (Keys::new(), TempDir::new().unwrap());
        let config = format!("{BASE}{}", keys.output(server.address(), ""));
        std::fs::write(directory.path().join("c.toml"), config).unwrap();
        let check = || {
            let arguments = ["check", "--connect", "--config", "c.toml"];
            let output = run_command(&arguments, directory.path());
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            (output.status.code(), said)
        };
        let (code, said) = check();
        assert!(
            code == Some(1) && said.contains("the bucket audit-archive does not exist"),
            "{said}"
        );
        server.make_bucket();
        assert_eq!(check().0, Some(0));
        keys.write("AKIDEXAMPLE", "wr0ng-s3cr3t");
        let (code, said) = check();
        assert!(code == Some(1) && said.contains("the access key is wrong"), "{said}");
        assert!(!said.contains("wr0ng-s3cr3t"), "{said}");
    }

    /// Method: a real server gets the whole corpus and generated events. First the relay and then
    /// the server is killed and started again. Each event must be in exactly one object when they
    /// are read back.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn seaweedfs_has_each_event_in_one_object_after_crashes() {
        let mut rng = rng();
        let mut server = SeaweedFs::start();
        server.make_bucket();
        let (keys, spool) = (Keys::new(), TempDir::new().unwrap());
        let config = durable(&keys.output(server.address(), SMALL), &spool);
        let mut relay = Relay::start(&config);
        let mut sent = post_corpus(&relay);
        for round in 0..2 {
            for batch in 0..5 {
                sent.extend(post_batch(&relay, round * 100 + batch, 100, 700));
                std::thread::sleep(Duration::from_millis(rng.u64(0..100)));
            }
            if round == 0 {
                relay.kill();
                relay = Relay::start(&config);
            } else {
                server.kill();
                std::thread::sleep(Duration::from_millis(rng.u64(0..300)));
                server.start_again();
            }
        }
        relay.wait_until_delivered(PATIENCE * 2);
        relay.finish(Backlog::Empty);
        assert_are(&lines(&server.objects()), &sent);
    }
}
