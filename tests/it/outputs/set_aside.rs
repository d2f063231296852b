//! A single event never stops the queue. An event that a consumer refuses while it accepts others
//! is set aside, and even a small queue rejects no batch because of it.

use std::process::Command;

use crate::support::prelude::*;

const QUEUE: &str = "max_bytes = \"2MiB\"\n";

const EVENTS: u32 = 10_000;

/// The events that the consumer answers with 500 until `works` is `true`.
#[derive(Clone)]
struct Poison {
    events: Arc<BTreeSet<Vec<u8>>>,
    works: Arc<AtomicBool>,
}

impl Poison {
    /// Chooses `count` events of these batches, at equal distances.
    fn of(batches: &[Vec<u8>], count: u32) -> Self {
        let all = batches.iter().flat_map(|batch| events_of(batch));
        let chosen = all.skip(37).step_by((EVENTS / count) as usize);
        Self { events: Arc::new(chosen.collect()), works: Arc::default() }
    }

    fn sink(&self) -> HttpSink {
        let Self { events, works } = self.clone();
        HttpSink::start(move |request| {
            let is_poisoned = events_in(request).iter().any(|event| events.contains(event));
            let fails = is_poisoned && !works.load(Ordering::SeqCst);
            Answer::status(if fails { 500 } else { 200 })
        })
    }
}

fn batches() -> Vec<Vec<u8>> {
    (0..100).map(|seed| generated_batch(seed, EVENTS as usize / 100, 900)).collect()
}

/// Posts all batches, about 1 MB per second. Returns the longest time that an event has waited for
/// the consumer. Each batch must be accepted at once.
fn post_all(relay: &Relay, batches: &[Vec<u8>]) -> f64 {
    let mut lag = 0_f64;
    for batch in batches {
        assert_eq!(relay.post(batch).status, 200, "{}", relay.metrics().text);
        lag = lag.max(of_output(relay, "output_lag_seconds"));
        std::thread::sleep(Duration::from_millis(90));
    }
    lag
}

fn aside(relay: &Relay) -> f64 {
    of_output(relay, "output_aside_events")
}

fn wait_for_aside(relay: &Relay, count: u32) {
    wait_until("the others are delivered, and these are set aside", PATIENCE * 3, || {
        let delivered = of_output(relay, "output_events_total");
        delivered == f64::from(EVENTS - count) && aside(relay) == f64::from(count)
    });
}

/// Method: the longest wait of an event is compared with that of a run without such events, because
/// other tests can slow the machine down for seconds.
#[test]
fn poisoned_events_refuse_no_batch_and_hold_up_no_other_event() {
    let batches = batches();
    let healthy = HttpSink::start(|_| Answer::status(200));
    let relay = Relay::start(&to_sink(healthy.address(), &format!("[queue]\n{QUEUE}")));
    let usual = post_all(&relay, &batches);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    // An ordered output (`concurrency = 1`) pauses once for each such event.
    for (count, concurrency) in [(1, 1), (1, 4), (100, 4)] {
        let poison = Poison::of(&batches, count);
        let sink = poison.sink();
        let more = format!("concurrency = {concurrency}\n[queue]\n{QUEUE}");
        let relay = Relay::start(&to_sink(sink.address(), &more));
        let lag = post_all(&relay, &batches);
        let most = 5.0 + 3.0 * usual;
        assert!(lag < most, "{lag} s of {most} s, {count} events, {concurrency}");
        wait_for_aside(&relay, count);
        let metrics = relay.metrics();
        assert_eq!(metrics.value("requests_rejected_total", &[("reason", "queue_full")]), 0.0);
        assert_eq!(lost(&relay), 0.0);
        let shown = http::get(relay.admin(), "/status").unwrap().json();
        assert_eq!(shown["outputs"][0]["aside"]["events"], count);
        assert_eq!(shown["outputs"][0]["backlog_events"], 0);
        poison.works.store(true, Ordering::SeqCst);
        relay.wait_until_delivered(PATIENCE * 3);
        assert_eq!(of_output(&relay, "output_events_total"), f64::from(EVENTS));
        relay.finish(Backlog::Empty);
    }
}

/// Method: 100 events are set aside on disk. The relay is killed and started, reloaded, stopped and
/// started. In the end the consumer accepts the events.
#[test]
fn what_is_set_aside_on_disk_survives_a_kill_a_reload_and_a_stop() {
    let (batches, count) = (batches(), 100);
    let all = f64::from(count);
    let poison = Poison::of(&batches, count);
    let sink = poison.sink();
    let spool = Spool::new();
    let config = |concurrency: u32| {
        let more = format!("concurrency = {concurrency}\n{}", spool.queue(QUEUE));
        to_sink(sink.address(), &more)
    };
    let mut relay = Relay::start(&config(4));
    post_all(&relay, &batches);
    wait_for_aside(&relay, count);
    let files = || std::fs::read_dir(spool.path().join("set-aside")).unwrap().count();
    assert_eq!(files(), count as usize);
    // Cursors are saved within a second.
    std::thread::sleep(Duration::from_secs(2));
    relay.kill();
    let relay = Relay::start(&config(4));
    assert_eq!(of_output(&relay, "output_start_events"), all);
    wait_until("all are set aside again", PATIENCE, || aside(&relay) == all);
    relay.reload(&config(2), "success");
    assert_eq!((aside(&relay), lost(&relay)), (all, 0.0));
    relay.finish(Backlog::Stable);
    assert_eq!(files(), count as usize);
    let relay = Relay::start(&config(2));
    poison.works.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE * 3);
    assert_eq!((of_output(&relay, "output_events_total"), lost(&relay)), (all, 0.0));
    relay.finish(Backlog::Empty);
    assert_eq!(files(), 0);
    let accepted: BTreeSet<_> = accepted_events(&sink).into_iter().collect();
    let sent: BTreeSet<_> = batches.iter().flat_map(|batch| events_of(batch)).collect();
    assert_eq!(accepted.len(), EVENTS as usize);
    assert_eq!(accepted, sent);
}

/// Method: directories stand in the places of the files of events that are set aside, so that no
/// file can be written, as on a full disk. Then they are removed.
#[test]
fn events_that_cannot_be_set_aside_hold_up_no_other_event() {
    for concurrency in [1, 4] {
        let requests = Arc::new(AtomicUsize::new(0));
        let sink = HttpSink::start({
            let requests = Arc::clone(&requests);
            move |request| {
                requests.fetch_add(1, Ordering::SeqCst);
                let is_bad = events_in(request).iter().any(|event| event.len() > 2_000);
                Answer::status(if is_bad { 500 } else { 200 })
            }
        });
        let spool = Spool::new();
        let more = format!("concurrency = {concurrency}\n{}", spool.queue(QUEUE));
        let relay = Relay::start(&to_sink(sink.address(), &more));
        let place =
            |position: u32| spool.path().join(format!("set-aside/consumer-{position:020}.json"));
        for position in 0..180 {
            std::fs::create_dir_all(place(position).join("in-the-way")).expect("a free place");
        }
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for seed in 0..15 {
            good.extend(post_batch(&relay, seed, 10, 900));
            bad.extend(post_batch(&relay, 100 + seed, 2, 4_000));
        }
        let is_delivered = || of_output(&relay, "output_events_total") == good.len() as f64;
        wait_until("the events of others", PATIENCE, is_delivered);
        assert_none_missing(&accepted_events(&sink), &good);
        // An event that waits costs others nothing, and is sent a few times.
        let before = requests.load(Ordering::SeqCst);
        assert!(before < 600, "{before} requests for 180 events");
        std::thread::sleep(Duration::from_secs(10));
        let more = requests.load(Ordering::SeqCst) - before;
        assert!((30..300).contains(&more), "{more} requests in 10 s for 30 events that wait");
        let later = post_batch(&relay, 1000, 50, 900);
        let all = (good.len() + later.len()) as f64;
        let begun = Instant::now();
        let is_delivered = || of_output(&relay, "output_events_total") == all;
        wait_until("what comes later", PATIENCE, is_delivered);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!((aside(&relay), lost(&relay)), (0.0, 0.0));
        let told = relay.log_text().matches("cannot write the file of an event").count();
        assert_eq!(told, 1, "{}", relay.log_text());
        for position in 0..180 {
            std::fs::remove_dir_all(place(position)).expect("it is there");
        }
        wait_until("all are set aside", PATIENCE * 2, || aside(&relay) == bad.len() as f64);
        assert_eq!(lost(&relay), 0.0);
        relay.finish(Backlog::Stable);
    }
}

/// Method: the consumer refuses more events than fit into a quarter of the queue.
#[test]
fn the_oldest_event_becomes_a_dead_letter_when_no_more_can_be_set_aside() {
    let batches: Vec<_> = (0..20).map(|seed| generated_batch(seed, 100, 900)).collect();
    let bad: BTreeSet<_> = batches.iter().flat_map(|batch| events_of(batch)).step_by(2).collect();
    let poison = Poison { events: Arc::new(bad), works: Arc::default() };
    let sink = poison.sink();
    let letters = TempDir::new().unwrap();
    let more = format!(
        "[queue]\n{QUEUE}[dead_letter]\ndirectory = \"{}\"\n",
        letters.path().join("letters").display()
    );
    let relay = Relay::start(&to_sink(sink.address(), &more));
    for batch in &batches {
        wait_until("the batch is accepted", PATIENCE, || relay.post(batch).status == 200);
    }
    // One scrape reads all values, because an event can be given up between two scrapes.
    let output = [("output", "consumer")];
    // New events show again and again that the consumer works.
    let (mut seen, mut new) = ((0.0, 0.0), 0_u32);
    wait_until("each bad event is set aside, or a dead letter", PATIENCE * 3, || {
        let posted = relay.post(&generated_batch(1000 + u64::from(new), 1, 900));
        new += u32::from(posted.status == 200);
        let metrics = relay.metrics();
        let value = |name: &str| metrics.value(name, &output);
        let letters = value("dead_letter_events_total");
        let lost = metrics.value("error_total", &[("plugin", "consumer")]);
        seen = (value("output_aside_events"), letters);
        let is_each = seen.0 + letters == 1000.0 && lost == letters;
        is_each && value("output_events_total") >= 1000.0
    });
    let (kept, given_up) = seen;
    assert!(kept > 100.0 && given_up > 100.0, "{kept} are set aside, {given_up} given up");
    poison.works.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE * 3);
    // A few more may have been given up before the consumer works.
    let given_up = of_output(&relay, "dead_letter_events_total");
    assert_eq!(of_output(&relay, "output_events_total"), 2000.0 + f64::from(new) - given_up);
    relay.finish(Backlog::Empty);
}

/// Method: while no relay runs, something is done to the files of events that are set aside. Each
/// event whose file is not whole counts as lost, at once, and the others arrive.
#[test]
fn a_file_that_is_not_whole_is_the_loss_of_its_event_alone() {
    let batches = [generated_batch(7, 100, 900)];
    let poison = Poison {
        events: Arc::new(events_of(&batches[0]).into_iter().step_by(10).collect()),
        works: Arc::default(),
    };
    let sink = poison.sink();
    let spool = Spool::new();
    let config = to_sink(sink.address(), &spool.queue(QUEUE));
    let relay = Relay::start(&config);
    assert_eq!(relay.post(&batches[0]).status, 200);
    wait_until("they are set aside", PATIENCE, || aside(&relay) == 10.0);
    relay.finish(Backlog::Stable);
    let directory = spool.path().join("set-aside");
    let mut files: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    let queue_verify = || run_command(&["queue", "verify", text(spool.path())], spool.path());
    assert_eq!(queue_verify().status.code(), Some(0));
    let change = |file: &Path, change: fn(&mut Vec<u8>)| {
        let mut content = std::fs::read(file).unwrap();
        change(&mut content);
        std::fs::write(file, content).unwrap();
    };
    change(&files[0], |content| {
        let at = memchr::memmem::find(content, b"10.0.0.1").unwrap();
        content[at + 7] ^= 1;
    });
    change(&files[1], Vec::clear);
    change(&files[2], |content| content.extend_from_slice(b" "));
    std::fs::File::options().write(true).open(&files[3]).unwrap().set_len(100 << 30).unwrap();
    files[4..9].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    std::os::unix::fs::symlink("/etc/hostname", &files[4]).unwrap();
    std::fs::create_dir(&files[5]).unwrap();
    assert!(Command::new("mkfifo").arg(&files[6]).status().unwrap().success());
    std::fs::write(directory.join("a stranger's"), "file").unwrap();
    let verified = queue_verify();
    let said = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert!(said.contains("damaged in 9 places, 9 events missing"), "{said}");
    poison.works.store(true, Ordering::SeqCst);
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!((lost(&relay), of_output(&relay, "output_events_total")), (9.0, 1.0));
    let foreign = "files in set-aside/ are not events of the relay: they are left alone; find out \
                   who writes to queue.directory";
    relay.wait_for_log(foreign, PATIENCE);
    relay.finish(Backlog::Empty);
    // Nothing is counted twice, and the stranger's file is still there.
    let relay = Relay::start(&config);
    assert_eq!((lost(&relay), of_output(&relay, "output_start_events")), (0.0, 0.0));
    relay.finish(Backlog::Empty);
    assert_eq!(std::fs::read(directory.join("a stranger's")).unwrap(), b"file");
}

/// Method: while no relay runs, somebody puts thousands of files into the directory. The start must
/// leave most of them alone, whatever their names are: each one that it deletes may wait for the
/// disk.
#[test]
fn files_that_no_output_needs_cost_a_start_only_their_names() {
    let poison = Poison {
        events: Arc::new(
            events_of(&generated_batch(7, 100, 900)).into_iter().step_by(10).collect(),
        ),
        works: Arc::default(),
    };
    let sink = poison.sink();
    let spool = Spool::new();
    let config = to_sink(sink.address(), &spool.queue(QUEUE));
    let relay = Relay::start(&config);
    assert_eq!(relay.post(&generated_batch(7, 100, 900)).status, 200);
    wait_until("they are set aside", PATIENCE, || aside(&relay) == 10.0);
    relay.finish(Backlog::Stable);
    let directory = spool.path().join("set-aside");
    let names = |name: fn(u32) -> String| (0..3000).map(name);
    let strange = names(|n| format!("consumer-{:020}.json", 1_000_000 + n))
        .chain(names(|n| format!("consumer-{:020}.json.new", 1_000_000 + n)))
        .chain(names(|n| format!("other-{n}-{n:020}.json")))
        .chain(names(|n| format!("a stranger's {n}")));
    strange.for_each(|name| std::fs::write(directory.join(name), "{}\n").unwrap());
    let relay = Relay::start(&config);
    let left = std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(left, 10 + 12_000 - 1000, "the next starts delete more");
    assert_eq!((lost(&relay), aside(&relay)), (0.0, 10.0));
    let told = relay.log_text().matches("set-aside/").count();
    assert_eq!(told, 2, "{}", relay.log_text());
    poison.works.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(lost(&relay), 0.0);
    relay.finish(Backlog::Empty);
}

/// With `delivered`, a sender gets no answer as long as an event of its batch is set aside.
#[test]
fn a_sender_that_waits_for_delivery_waits_for_what_is_set_aside() {
    let batches = [generated_batch(0, 20, 900)];
    let bad = batches.iter().flat_map(|batch| events_of(batch)).skip(7).take(1).collect();
    let poison = Poison { events: Arc::new(bad), works: Arc::default() };
    let sink = poison.sink();
    let more = "[queue]\nacknowledge = \"delivered\"\ndelivered_timeout = \"6s\"\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    assert_eq!(relay.post(&batches[0]).status, 503, "one event is not delivered");
    wait_until("the event is set aside", PATIENCE, || aside(&relay) == 1.0);
    let works = Arc::clone(&poison.works);
    let heals = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        works.store(true, Ordering::SeqCst);
    });
    wait_until("its try is accepted", PATIENCE, || relay.post(&batches[0]).status == 200);
    heals.join().unwrap();
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(of_output(&relay, "output_events_total"), 20.0);
    relay.finish(Backlog::Empty);
}
