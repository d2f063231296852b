//! `queue.directory` from one run to the next: a backlog that does not delay the end, outputs that
//! are added and removed, cursors that are lost or damaged, and the moment of the 200.

use crate::support::numbered::{Id, event, list};
use crate::support::prelude::*;
use crate::support::spool::{SLOT, slots};

fn config(outputs: &[String], spool: &Spool) -> String {
    format!("{BASE}{}{}", outputs.concat(), spool.queue("segment_bytes = \"256KiB\"\n"))
}

/// Posts the events `numbers` of sender 0 in batches of 50.
fn post(relay: &Relay, numbers: std::ops::Range<u64>) {
    let mut client = Client::connect(relay.address()).unwrap();
    for start in numbers.clone().step_by(50) {
        let body = list(0, start..numbers.end.min(start + 50));
        let answer = client.post("/audit", "application/json", &body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Returns the numbers of the events that this consumer has received, in order of arrival.
fn numbers(consumer: &Tallying) -> Vec<u64> {
    consumer.tally.arrivals().iter().map(|arrival| arrival.id.number).collect()
}

fn all(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.collect()
}

fn of_output(metrics: &Metrics, name: &str, output: &str) -> f64 {
    metrics.get(name, &[("output", output)]).unwrap_or_else(|| panic!("{name} of {output}"))
}

#[allow(clippy::cast_precision_loss, reason = "a few thousand")]
fn real(count: u64) -> f64 {
    count as f64
}

#[test]
fn a_stop_with_a_backlog_waits_for_nobody_and_the_next_start_delivers_it_once() {
    let spool = Spool::new();
    let (lines, requests) = (Tallying::tcp().closed(), Tallying::http().closed());
    let mut consumers = [lines, requests];
    let outputs = [consumers[0].output("lines", ""), consumers[1].output("requests", "")];
    let config = config(&outputs, &spool);
    let mut relay = Relay::start(&config);
    post(&relay, 0..2000);
    relay.settle(Backlog::Stable);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 2000.0);
    assert_eq!(metrics.sum("error_total"), 0.0);
    for output in ["lines", "requests"] {
        assert_eq!(of_output(&metrics, "output_start_events", output), 0.0);
        assert_eq!(of_output(&metrics, "output_backlog_events", output), 2000.0);
    }
    // The relay does not wait for `drain_timeout`, which is 20 s.
    let took = relay.stop();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let told = relay.log_text();
    assert!(!told.contains("lost and counted"), "nothing is lost: {told}");
    assert_eq!(relay.wait_for_log(messages::ENDED, PATIENCE)["lost"], 0, "{told}");

    let relay = Relay::start(&config);
    let metrics = relay.metrics();
    for output in ["lines", "requests"] {
        assert_eq!(of_output(&metrics, "output_start_events", output), 2000.0);
        assert_eq!(of_output(&metrics, "output_backlog_events", output), 2000.0);
        assert!(of_output(&metrics, "output_lag_seconds", output) > 0.0);
    }
    consumers.iter_mut().for_each(|consumer| consumer.reopen());
    post(&relay, 2000..2100);
    relay.finish(Backlog::Empty);
    for consumer in &consumers {
        consumer.tally.wait_for_count(2100, PATIENCE);
        assert_eq!(numbers(consumer), all(0..2100));
    }
}

#[test]
fn a_stop_with_a_consumer_that_hangs_gives_up_in_time_and_loses_nothing() {
    let spool = Spool::new();
    let hung = HttpSink::start(|request| match request.number {
        0 => Answer::never(),
        _ => Answer::status(200),
    });
    let more = format!("{}[shutdown]\ndrain_timeout = \"2s\"\n", spool.queue(""));
    let config = to_sink(hung.address(), &format!("concurrency = 1\n{more}"));
    let mut relay = Relay::start(&config);
    post(&relay, 0..100);
    hung.wait_for_count(1, PATIENCE);
    // The consumer could still answer a request that is on the wire, so the relay waits for
    // `drain_timeout`.
    let took = relay.stop();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(relay.wait_for_log(messages::ENDED, PATIENCE)["lost"], 0, "{}", relay.log_text());
    let relay = Relay::start(&config);
    relay.finish(Backlog::Empty);
    let expected: Vec<Vec<u8>> = (0..100).map(|number| event(Id { sender: 0, number })).collect();
    assert!(accepted_events(&hung) == expected);
}

/// Method: the recorded batches and two large ones are posted while the consumer is down, and the
/// relay is killed. After the next start, every event must arrive byte for byte and in order.
#[test]
fn the_recorded_batches_come_out_as_they_went_in_after_a_kill() {
    let spool = Spool::new();
    let mut sink = TcpSink::start();
    sink.close();
    let output = format!(
        "[[output]]\nname = \"out\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n\
         retry = {{ initial_interval = \"50ms\", max_interval = \"200ms\" }}\n",
        sink.address()
    );
    let config = config(&[output], &spool);
    let mut relay = Relay::start(&config);
    let mut expected = Vec::new();
    // Some batches are larger than a segment. The last one is as large as about eighty segments.
    let large = [list(0, 0..5000), list(0, 5000..60_000)];
    for body in corpus().into_iter().map(|body| body.bytes).chain(large) {
        assert_eq!(relay.post(&body).status, 200);
        expected.extend(events_of(&body));
    }
    relay.kill();
    sink.reopen();
    let relay = Relay::start(&config);
    relay.finish(Backlog::Empty);
    sink.wait_for_count(expected.len(), PATIENCE);
    assert!(sink.lines() == expected, "{} of {} events", sink.count(), expected.len());
}

#[test]
fn an_output_that_is_new_joins_at_the_end() {
    let spool = Spool::new();
    let (old, new) = (Tallying::tcp().closed(), Tallying::http());
    let mut old = old;
    let (old_output, new_output) = (old.output("old", ""), new.output("new", ""));
    let mut relay = Relay::start(&config(std::slice::from_ref(&old_output), &spool));
    post(&relay, 0..500);
    relay.stop();
    let relay = Relay::start(&config(&[old_output, new_output], &spool));
    let metrics = relay.metrics();
    assert_eq!(of_output(&metrics, "output_start_events", "old"), 500.0);
    assert_eq!(of_output(&metrics, "output_start_events", "new"), 0.0);
    let told = relay.log_fields();
    let begins = "the output is new: it gets the events that arrive from now on";
    let told = told.iter().find(|fields| fields["message"] == begins);
    assert_eq!(told.expect("it is said")["output"], "new");
    post(&relay, 500..700);
    old.reopen();
    relay.finish(Backlog::Empty);
    old.tally.wait_for_count(700, PATIENCE);
    assert_eq!(numbers(&old), all(0..700));
    assert_eq!(numbers(&new), all(500..700));
}

/// The spool of a relay that was stopped. `ahead` has received all 1,000 events, and `behind` the
/// first 400. No segment was deleted.
struct Halfway {
    spool: Spool,
    ahead: Tallying,
    behind: Tallying,
    config: String,
}

fn halfway() -> Halfway {
    let spool = Spool::new();
    let (ahead, mut behind) = (Tallying::tcp(), Tallying::http());
    let outputs = [ahead.output("ahead", ""), behind.output("behind", "")];
    let config = format!("{BASE}{}{}", outputs.concat(), spool.queue(""));
    let mut relay = Relay::start(&config);
    post(&relay, 0..400);
    relay.settle(Backlog::Empty);
    behind.close();
    post(&relay, 400..1000);
    relay.wait_for_metrics("one output to be ahead", PATIENCE, |metrics| {
        (of_output(metrics, "output_backlog_events", "ahead") == 0.0).then_some(())
    });
    relay.stop();
    assert_eq!(spool.segments().len(), 1, "one segment is larger than all of it");
    behind.reopen();
    Halfway { spool, ahead, behind, config }
}

/// Starts the relay again. The backlogs of `ahead` and `behind` must begin with `starts` events,
/// and everything from there on must be delivered.
fn assert_resumes_with(halfway: &Halfway, config: &str, starts: [u64; 2]) {
    let before = [numbers(&halfway.ahead).len(), numbers(&halfway.behind).len()];
    let relay = Relay::start(config);
    let metrics = relay.metrics();
    let found = ["ahead", "behind"].map(|name| of_output(&metrics, "output_start_events", name));
    assert_eq!(found, starts.map(real), "{}", relay.log_text());
    post(&relay, 1000..1010);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(relay.metrics().sum("error_total"), 0.0, "{}", relay.log_text());
    relay.finish(Backlog::Empty);
    for ((consumer, start), before) in
        [&halfway.ahead, &halfway.behind].into_iter().zip(starts).zip(before)
    {
        let wanted = all(1000 - start..1010);
        consumer.tally.wait_for_count(before + wanted.len(), PATIENCE);
        assert_eq!(numbers(consumer)[before..], wanted);
    }
}

/// Changes a byte of a slot of `cursors`. `which` = 0 is the newest slot.
fn damage_slot(spool: &Spool, which: usize) {
    spool.edit(Path::new("cursors"), |bytes| {
        assert_eq!(bytes.len(), 2 * SLOT);
        let (slot, _) = slots(bytes)[which].clone();
        bytes[slot.start + 30] ^= 0x10;
    });
}

type Damage = fn(&Spool);

/// Method: the cursors file of a stopped relay is intact, deleted, or damaged in its older slot or
/// in both slots. Without a good slot, every output starts at the oldest record.
#[test]
fn each_output_resumes_where_the_cursors_say_or_at_the_oldest_record() {
    let halfway = halfway();
    let whole = halfway.spool.path().display().to_string();
    let remove = |spool: &Spool| std::fs::remove_file(spool.path().join("cursors")).unwrap();
    let both = |spool: &Spool| [0, 1].map(|slot| damage_slot(spool, slot)).into_iter().collect();
    let cases: [(Damage, [u64; 2]); 4] = [
        (|_| (), [0, 600]),
        (|spool| damage_slot(spool, 1), [0, 600]),
        (remove, [1000, 1000]),
        (both, [1000, 1000]),
    ];
    for (damage, starts) in cases {
        let copy = halfway.spool.copy();
        damage(&copy);
        let config = halfway.config.replace(&whole, &copy.path().display().to_string());
        assert_resumes_with(&halfway, &config, starts);
        // The stop has written new cursors.
        let relay = Relay::start(&config);
        assert_eq!(relay.metrics().sum("output_start_events"), 0.0);
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_smaller_queue_or_other_segments_lose_nothing_at_the_next_start() {
    let spool = Spool::new();
    let mut consumer = Tallying::tcp().closed();
    let output = consumer.output("out", "");
    let with = |queue: &str| format!("{BASE}{output}{}", spool.queue(queue));
    let mut relay = Relay::start(&with("max_bytes = \"16MiB\"\nsegment_bytes = \"1MiB\"\n"));
    post(&relay, 0..10_000);
    relay.stop();
    let files = spool.usage().lengths;
    assert!(files > 2 << 20, "{files}");
    // The files use more than the queue may have. No batch is accepted, and no event is dropped.
    let relay = Relay::start(&with("max_bytes = \"2MiB\"\nsegment_bytes = \"64KiB\"\n"));
    assert_eq!(of_output(&relay.metrics(), "output_start_events", "out"), 10_000.0);
    assert_eq!(relay.post(&list(0, 10_000..10_001)).status, 429);
    consumer.reopen();
    relay.wait_until_delivered(PATIENCE);
    wait_until("room", PATIENCE, || relay.post(&list(0, 10_000..10_001)).status == 200);
    relay.finish(Backlog::Empty);
    consumer.tally.wait_for_count(10_001, PATIENCE);
    assert_eq!(numbers(&consumer), all(0..10_001));
}

#[test]
fn a_lone_batch_is_answered_without_waiting_for_others() {
    let spool = Spool::new();
    let consumer = Tallying::http();
    let relay = Relay::start(&config(&[consumer.output("out", "")], &spool));
    let mut client = Client::connect(relay.address()).unwrap();
    // If each sync waited 100 ms for more batches, 50 batches would take 5 s. A busy machine can
    // delay some of these runs.
    let took = [0, 50, 100].map(|first| {
        let begun = Instant::now();
        for number in first..first + 50 {
            let body = list(0, number..number + 1);
            let answer = client.post("/audit", "application/json", &body).unwrap();
            assert_eq!(answer.status, 200);
        }
        begun.elapsed()
    });
    assert!(took.iter().min() < Some(&Duration::from_millis(2500)), "{took:?}");
    let metrics = relay.metrics();
    let syncs = metrics.value("spool_sync_duration_seconds_count", &[]);
    assert!(syncs >= 150.0, "{syncs} syncs for 150 answers that waited for each other");
    relay.finish(Backlog::Empty);
}

/// A traced system call. `began` and `ended` are the numbers of the lines of the trace in which the
/// call began and ended.
struct Call {
    name: String,
    text: String,
    began: usize,
    ended: usize,
}

/// Returns the calls of a trace by `strace -f`, in which calls of several threads overlap.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished: BTreeMap<&str, Call> = BTreeMap::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, text)) = text.split_once(' ') else { continue };
        let text = text.trim_start();
        if text.starts_with("<... ") {
            // A call that began before the trace is left out.
            if let Some(mut call) = unfinished.remove(thread) {
                call.text.push_str(text);
                call.ended = line;
                calls.push(call);
            }
            continue;
        }
        let Some((name, _)) = text.split_once('(') else { continue };
        let call = Call { name: name.into(), text: text.into(), began: line, ended: line };
        if text.ends_with("<unfinished ...>") {
            unfinished.insert(thread, call);
        } else {
            calls.push(call);
        }
    }
    calls.sort_by_key(|call| call.began);
    calls
}

#[test]
fn files_and_directories_are_for_the_relay_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let spool = Spool::new();
    let consumer = Tallying::http().closed();
    let relay = Relay::start(&config(&[consumer.output("out", "")], &spool));
    post(&relay, 0..100);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(spool.path()), 0o700);
    for entry in std::fs::read_dir(spool.path()).unwrap().flatten() {
        let expected = if entry.path().is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&entry.path()), expected, "{}", entry.path().display());
    }
    for (path, file) in spool.files() {
        assert_eq!(file.mode, 0o600, "{}", path.display());
    }
    relay.finish(Backlog::Stable);

    // A directory that was made for the relay (in Kubernetes: by root, with the fsGroup) keeps its
    // mode.
    let made = Spool::new();
    std::fs::create_dir(made.path()).unwrap();
    let open = std::fs::Permissions::from_mode(0o2770);
    std::fs::set_permissions(made.path(), open).unwrap();
    let relay = Relay::start(&config(&[consumer.output("out", "")], &made));
    post(&relay, 0..10);
    relay.finish(Backlog::Stable);
    assert_eq!(mode(made.path()), 0o2770);
}

#[test]
fn readiness_and_status_know_the_durable_queue() {
    let spool = Spool::new();
    let consumer = Tallying::http().closed();
    let relay = Relay::start(&config(&[consumer.output("out", "")], &spool));
    post(&relay, 0..100);
    assert_eq!(http::get(relay.admin(), "/readyz").unwrap().status, 200);
    assert_eq!(http::get(relay.admin(), "/readyz?verbose").unwrap().status, 200);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    assert_eq!(status["outputs"][0]["backlog_events"], 100, "{status}");
    let metrics = relay.metrics();
    assert_eq!(metrics.get("queue_writable", &[]), Some(1.0));
    assert_eq!(metrics.get("spool_segments", &[]), Some(real(spool.segments().len() as u64)));
    assert_eq!(metrics.get("spool_corrupt_records_total", &[]), Some(0.0));
    assert_eq!(metrics.get("spool_write_errors_total", &[]), Some(0.0));
    assert_eq!(metrics.get("queue_events", &[]), Some(100.0));
    assert_eq!(metrics.get("queue_capacity_bytes", &[]), Some(256.0 * 1024.0 * 1024.0));
    // The metric counts whole files, including reserved space.
    let segments: u64 = spool
        .segments()
        .iter()
        .map(|segment| spool.path().join(segment).metadata().unwrap().len())
        .sum();
    assert!(metrics.value("queue_bytes", &[]) >= real(segments));
    relay.finish(Backlog::Stable);
}

/// These tests need strace.
mod peers {
    use super::*;

    /// Method: strace records the relay's system calls while one batch is posted. The write of the
    /// batch must end before its sync begins, and the sync must end before the answer is written.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn the_200_goes_out_after_the_sync_of_what_it_is_for() {
        let spool = Spool::new();
        let consumer = Tallying::http().closed();
        let traces = tempfile::tempdir().unwrap();
        let trace = traces.path().join("trace");
        let launcher = [
            "strace",
            "-D",
            "-f",
            "-y",
            "-s",
            "4096",
            "-e",
            "trace=fdatasync,fsync,pwritev,pwrite64,sendto,write,writev,sendmsg",
            "-o",
            text(&trace),
        ];
        let config = config(&[consumer.output("out", "")], &spool);
        let mut relay = Relay::with(&config).launcher(&launcher).start();
        let body = list(0, 77..78);
        assert_eq!(relay.post(&body).status, 200);
        relay.stop();
        // strace ends after the process that it traces.
        let whole = wait_for("the end of the trace", PATIENCE, || {
            let trace = String::from_utf8_lossy(&std::fs::read(&trace).ok()?).into_owned();
            trace.lines().any(|line| line.contains("+++ exited with 0")).then_some(trace)
        });
        let calls = calls(&whole);
        let first = |what: &str, check: &dyn Fn(&Call) -> bool| {
            let found = calls.iter().find(|call| check(call));
            found.unwrap_or_else(|| panic!("no {what} in the trace:\n{whole}"))
        };
        let written = first("write of the event", &|call| {
            call.name.starts_with("pwrite") && call.text.contains("4000-8000-00000000004d")
        });
        let file = written.text.split_once("</").map(|(_, rest)| rest.split('>').next().unwrap());
        let file = file.expect("-y names the file");
        assert!(file.ends_with(".seg"), "{file}");
        let synced = first("sync of it", &|call| {
            call.name == "fdatasync" && call.text.contains(file) && call.began > written.ended
        });
        assert!(synced.text.trim_end().ends_with("= 0"), "{}", synced.text);
        let answered = first("answer", &|call| {
            !call.name.starts_with("pwrite") && call.text.contains("accepted\\\":1")
        });
        assert!(
            answered.began > synced.ended,
            "answered in line {}, synced in line {}:\n{whole}",
            answered.began,
            synced.ended
        );
    }
}
