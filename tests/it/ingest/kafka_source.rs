//! `[[source]]` of type kafka with librdkafka's mock cluster. A relay commits an offset only if
//! every output has acknowledged all events before it. A relay that starts again continues there,
//! after any fault of the relay, the brokers or the consumers.

use crate::support::kafka::{Cluster, FETCH, OFFSET_COMMIT, Topic};
use crate::support::numbered::{Id, event, events, list};
use crate::support::prelude::*;
use crate::support::tally::Tally;
use crate::support::try_wait_for;

/// The beginning of the configs: no listener, and the `acknowledge` value that a source requires.
const WORKER: &str = r#"
log = { format = "json" }
admin = { address = "127.0.0.1:0" }
queue = { acknowledge = "delivered" }
"#;

/// Starts a relay between the topic and these outputs.
pub(super) fn worker(topic: &Topic, source: &str, outputs: &str) -> Relay {
    Relay::start(&format!("{WORKER}{}{outputs}", topic.source(source)))
}

/// Waits until the group has committed these offsets, in the order of the partitions. Panics if an
/// offset is greater.
pub(super) fn wait_until_committed(topic: &Topic, offsets: &[i64]) {
    let wanted: BTreeMap<i32, i64> = (0..).zip(offsets.iter().copied()).collect();
    let mut last = BTreeMap::new();
    wait_until(&format!("{offsets:?} committed"), PATIENCE, || {
        last = topic.committed();
        for (partition, offset) in &last {
            assert!(*offset <= wanted[partition], "{last:?} is beyond {offsets:?}");
        }
        last == wanted
    });
}

/// Puts events into each partition. An event's sender is the number of its partition, and the
/// event's number is its offset.
pub(super) fn put(topic: &Topic, partitions: u32, numbers: std::ops::Range<u64>) {
    for partition in 0..partitions {
        let number = i32::try_from(partition).expect("few");
        topic.put(number, &events(partition, numbers.clone()));
    }
}

pub(super) fn ids_of(partitions: u32, numbers: std::ops::Range<u64>) -> BTreeSet<Id> {
    let of = |sender| numbers.clone().map(move |number| Id { sender, number });
    (0..partitions).flat_map(of).collect()
}

/// The committed offsets and the number of arrived events, at one moment.
pub(super) struct Moment {
    committed: BTreeMap<i32, i64>,
    arrived: usize,
}

impl Moment {
    /// Records the moment, and checks that every event before a committed offset has arrived.
    pub(super) fn take(topic: &Topic, tally: &Tally) -> Self {
        let committed = topic.committed();
        let ids = tally.ids();
        for (&partition, &offset) in &committed {
            let sender = u32::try_from(partition).unwrap();
            let missing = (0..u64::try_from(offset).unwrap())
                .find(|&number| !ids.contains(&Id { sender, number }));
            assert_eq!(missing, None, "{committed:?} is committed, this of {partition} is missing");
        }
        Self { committed, arrived: tally.count() }
    }

    /// Checks that no event that was committed at this moment arrived later.
    pub(super) fn check(&self, tally: &Tally) {
        for arrival in tally.arrivals().iter().skip(self.arrived) {
            let Id { sender, number } = arrival.id;
            let committed = self.committed[&i32::try_from(sender).unwrap()];
            let number = i64::try_from(number).unwrap();
            assert!(number >= committed, "{:?} came again, {:?}", arrival.id, self.committed);
        }
    }
}

/// How many clusters a test tries. librdkafka's mock has a bug: if a member's timeout expires while
/// the member waits to be admitted, the mock removes the member and sends no answer. The member
/// then waits five minutes, as it must with real brokers. A test whose relay gets no partitions
/// starts again with another cluster.
const CLUSTERS: usize = 5;

/// How long a test waits for partitions. The group needs two seconds each time that it forms.
const SHARE: Duration = Duration::from_secs(20);

/// Waits until each relay has partitions. Returns `false` if one of them has none after [`SHARE`].
fn are_shared(relays: &[&Relay]) -> bool {
    let is_assigned = |line: &Value| {
        let partitions = line["partitions"].as_str().unwrap_or_default();
        line["message"] == "partitions assigned" && partitions != "[]"
    };
    let all = || relays.iter().all(|relay| relay.log_fields().iter().any(is_assigned));
    try_wait_for(SHARE, || all().then_some(())).is_some()
}

/// Returns how many events arrived more than once.
pub(super) fn repeats(tally: &Tally) -> usize {
    tally.count() - tally.ids().len()
}

#[test]
fn every_form_of_body_is_read_and_the_offset_behind_it_committed() {
    let cluster = Cluster::start(2, 2);
    let sink = TcpSink::start();
    let output = format!(
        "[[output]]\nname = \"lines\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n",
        sink.address()
    );
    let mut lists = Vec::new();
    let mut expected = Vec::new();
    for body in corpus() {
        expected.extend(events_of(&body.bytes));
        lists.push(body.bytes);
    }
    cluster.put(0, &lists);
    let lines = [events(1, 0..30).join(&b'\n'), b"\n".to_vec()].concat();
    let mut others = vec![lines, event(Id { sender: 1, number: 30 })];
    others.extend(events(1, 31..500));
    cluster.put(1, &others);
    expected.extend(events(1, 0..500));
    let relay = worker(&cluster, "", &output);
    wait_until("every event", PATIENCE, || sink.count() >= expected.len());
    let mut got = sink.lines();
    got.sort();
    expected.sort();
    assert!(got == expected);
    wait_until_committed(&cluster, &[lists.len() as i64, others.len() as i64]);
    let metrics = relay.metrics();
    let messages = (lists.len() + others.len()) as f64;
    assert_eq!(
        metrics.value("requests_total", &[("listener", "topic"), ("code", "200")]),
        messages
    );
    let bytes: usize = lists.iter().chain(&others).map(Vec::len).sum();
    assert_eq!(metrics.value("received_bytes_total", &[("listener", "topic")]), bytes as f64);
    relay.finish(Backlog::Empty);
}

const SKIPPED: &str = "a Kafka message is too large or has no valid audit events: it is skipped, \
                       and its events are lost and counted";

#[test]
fn a_message_without_events_is_counted_told_and_passed_over() {
    let cluster = Cluster::start(1, 1);
    let consumer = Tallying::tcp();
    let empty = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[]}"#.to_vec();
    let messages = [
        event(Id { sender: 0, number: 0 }),
        b"hunter2".to_vec(),
        Vec::new(),
        empty,
        [event(Id { sender: 0, number: 1 }), b"\n{\"hunter2\":1}\n".to_vec()].concat(),
        vec![b' '; 70_000],
        event(Id { sender: 0, number: 2 }),
        b"hunter2".to_vec(),
    ];
    cluster.put(0, &messages);
    let limits = "limits = { max_body = \"64KiB\" }\n";
    let config = format!("{WORKER}{limits}{}{}", cluster.source(""), consumer.output("lines", ""));
    let relay = Relay::start(&config);
    wait_until_committed(&cluster, &[8]);
    consumer.tally.wait_for_count(3, PATIENCE);
    // An event beside something else is taken.
    assert_eq!(consumer.tally.ids(), [0, 1, 2].map(|number| Id { sender: 0, number }).into());
    let metrics = relay.metrics();
    let of = |name: &str, label: (&str, &str)| metrics.value(name, &[label]);
    assert_eq!(of("requests_rejected_total", ("reason", "invalid")), 4.0);
    assert_eq!(of("requests_rejected_total", ("reason", "too_large")), 1.0);
    let answered = |code| metrics.value("requests_total", &[("listener", "topic"), ("code", code)]);
    assert_eq!((answered("200"), answered("400"), answered("413")), (4.0, 3.0, 1.0));
    assert_eq!(of("rejected_items_total", ("listener", "topic")), 1.0);
    let told = relay.wait_for_log(SKIPPED, PATIENCE);
    assert_eq!((&told["topic"], &told["partition"]), (&"audit".into(), &0.into()), "{told}");
    assert_eq!(told["offset"], 1, "{told}");
    let log = relay.finish(Backlog::Empty);
    assert!(!log.contains("hunter2"), "{log}");
}

/// Method: the relay reads everything while its consumer is down, and is killed. Nothing may have
/// been committed, and the next relay must read everything again and deliver each event once.
/// An Event Hub of Azure, to which the diagnostic setting of an AKS cluster exports: a message has
/// several records, each with the text of one event. A record of another category has none.
#[test]
fn the_records_of_an_event_hub_are_unwrapped_byte_for_byte() {
    let cluster = Cluster::start(1, 1);
    let sink = TcpSink::start();
    let output = format!(
        "[[output]]\nname = \"lines\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n",
        sink.address()
    );
    let record = |category: &str, log: &[u8]| {
        let log = Value::from(std::str::from_utf8(log).unwrap());
        format!(r#"{{"time":"t","category":"{category}","properties":{{"log":{log}}}}}"#)
    };
    let logged = events(0, 0..3);
    let hub =
        |records: &[String]| format!(r#"{{"records": [{}]}}"#, records.join(",")).into_bytes();
    let ours: Vec<String> = logged[..2].iter().map(|event| record("kube-audit", event)).collect();
    let scheduler = record("kube-scheduler", b"I1125 11:00:00 a line");
    let mixed = [scheduler.clone(), record("kube-audit", &logged[2])];
    cluster.put(0, &[hub(&ours), hub(&mixed), hub(&[scheduler])]);
    let relay = worker(&cluster, "", &output);
    wait_until_committed(&cluster, &[3]);
    wait_until("every event", PATIENCE, || sink.count() >= 3);
    assert!(sink.lines() == logged);
    // Each message with a record without an event is counted.
    let metrics = relay.metrics();
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "invalid")]), 2.0);
    let partly = "a Kafka message has records without a valid audit event: they are skipped and \
                  counted, and the events of its other records are taken";
    let told = relay.wait_for_log(partly, PATIENCE);
    assert!(told["error"].as_str().unwrap().contains("one record that can't be used"), "{told}");
    let answered = |code| metrics.value("requests_total", &[("listener", "topic"), ("code", code)]);
    assert_eq!((answered("200"), answered("400")), (2.0, 1.0));
    relay.finish(Backlog::Empty);
}

#[test]
fn what_no_output_has_acknowledged_is_read_again_after_a_kill() {
    let cluster = Cluster::start(1, 2);
    let mut consumer = Tallying::http().closed();
    let output = consumer.output("out", "");
    put(&cluster, 2, 0..300);
    let mut relay = worker(&cluster, "", &output);
    relay.wait_for_metrics("all of it in the queue", PATIENCE, |metrics| {
        (metrics.value("queue_events", &[]) == 600.0).then_some(())
    });
    // librdkafka would commit within this pause.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(cluster.committed(), BTreeMap::from([(0, 0), (1, 0)]));
    relay.kill();
    consumer.set_open(true);
    let relay = worker(&cluster, "", &output);
    wait_until_committed(&cluster, &[300, 300]);
    assert_eq!(consumer.tally.ids(), ids_of(2, 0..300));
    assert_eq!(repeats(&consumer.tally), 0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_full_queue_stops_the_reading_and_not_the_membership() {
    let cluster = Cluster::start(1, 2);
    let mut consumer = Tallying::tcp().closed();
    put(&cluster, 2, 0..2000);
    let config = format!(
        "{}{}{}",
        WORKER.replace("{ acknowledge", "{ max_bytes = \"64KiB\", acknowledge"),
        cluster.source(""),
        consumer.output("lines", "")
    );
    let relay = Relay::start(&config);
    relay.wait_for_log(messages::FULL, PATIENCE);
    // After this time, the source has paused its partitions.
    std::thread::sleep(Duration::from_secs(2));
    let held = relay.metrics().value("queue_bytes", &[]);
    assert!((1.0..=65_536.0).contains(&held), "{held}");
    assert_eq!(cluster.committed(), BTreeMap::from([(0, 0), (1, 0)]));
    consumer.set_open(true);
    wait_until_committed(&cluster, &[2000, 2000]);
    consumer.tally.wait_for_count(4000, PATIENCE);
    assert_eq!(consumer.tally.ids(), ids_of(2, 0..2000));
    assert_eq!(repeats(&consumer.tally), 0);
    let assigned = relay.log_fields();
    let assigned = assigned.iter().filter(|line| line["message"] == "partitions assigned");
    assert_eq!(assigned.count(), 1, "{}", relay.log_text());
    relay.finish(Backlog::Empty);
}

/// Method: a message has as many bytes as an empty queue has room for, without the line break that
/// the queue adds.
#[test]
fn a_message_that_never_fits_into_the_queue_is_passed_over() {
    let cluster = Cluster::start(1, 1);
    let consumer = Tallying::tcp();
    let [first, last] = [0, 1].map(|number| Id { sender: 0, number });
    let mut large = event(Id { sender: 1, number: 0 });
    large.pop();
    large.extend(b",\"pad\":\"");
    large.resize(65_536 - 256 - 2, b'a');
    large.extend(b"\"}");
    cluster.put(0, &[event(first), large, event(last)]);
    let queue = WORKER.replace("{ acknowledge", "{ max_bytes = \"64KiB\", acknowledge");
    let relay =
        Relay::start(&format!("{queue}{}{}", cluster.source(""), consumer.output("lines", "")));
    wait_until_committed(&cluster, &[3]);
    consumer.tally.wait_for_count(2, PATIENCE);
    assert_eq!(consumer.tally.ids(), [first, last].into());
    let metrics = relay.metrics();
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "too_large")]), 1.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn no_more_is_taken_than_max_in_flight() {
    let cluster = Cluster::start(1, 1);
    let mut consumer = Tallying::tcp().closed();
    put(&cluster, 1, 0..2000);
    let relay = worker(&cluster, "max_in_flight = \"16KiB\"", &consumer.output("lines", ""));
    let held = relay.wait_for_metrics("something in the queue", PATIENCE, |metrics| {
        Some(metrics.value("queue_bytes", &[])).filter(|held| *held > 0.0)
    });
    std::thread::sleep(Duration::from_millis(500));
    let later = relay.metrics().value("queue_bytes", &[]);
    // A batch that is larger than the limit is read alone.
    assert!(later <= (1024.0 + 256.0) * 1024.0 && later >= held, "{held}, {later}");
    consumer.set_open(true);
    wait_until_committed(&cluster, &[2000]);
    assert_eq!(repeats(&consumer.tally), 0);
    relay.finish(Backlog::Empty);
}

#[test]
fn an_end_in_order_commits_what_is_delivered_and_gives_back_the_rest() {
    let passed = (0..CLUSTERS).find_map(|_| end_in_order());
    assert!(passed.is_some(), "a member was put out in each of {CLUSTERS} clusters");
}

/// Runs the test on one cluster. Returns `None` if the mock has removed a member. This can also
/// happen if the machine was too busy for longer than `session_timeout`: commits of the member are
/// then refused, and its events arrive again.
fn end_in_order() -> Option<()> {
    let cluster = Cluster::start(1, 2);
    let mut consumer = Tallying::http();
    let output = consumer.output("out", "");
    put(&cluster, 2, 0..100);
    let mut relay = worker(&cluster, "max_in_flight = \"64KiB\"", &output);
    consumer.tally.wait_for_count(200, PATIENCE);
    relay.wait_until_delivered(PATIENCE);
    // The relay has read as many events as `max_in_flight` allows, which is not all of them, and
    // delivers them while it ends.
    consumer.set_open(false);
    put(&cluster, 2, 100..2000);
    wait_until_taken(&relay);
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    consumer.set_open(true);
    let status = relay.wait_at_most(PATIENCE * 2);
    assert_eq!(status.code(), Some(0), "{}", relay.log_text());
    let told = relay.wait_for_log(messages::ENDED, PATIENCE);
    assert_eq!(told["lost"], 0, "{told}");
    was_never_put_out(&relay).then_some(())?;
    let committed: i64 = cluster.committed().values().sum();
    assert_eq!(usize::try_from(committed).unwrap(), consumer.tally.count());
    assert!((201..4000).contains(&committed), "{committed}");
    Moment::take(&cluster, &consumer.tally);
    // With the consumer down, the events that the relay has read are not lost. The next relay reads
    // them again.
    consumer.set_open(false);
    let bounded = format!("{output}[shutdown]\ndrain_timeout = \"2s\"\n");
    let mut relay = worker(&cluster, "", &bounded);
    are_shared(&[&relay]).then_some(())?;
    wait_until_taken(&relay);
    let took = relay.stop();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(cluster.committed().values().sum::<i64>(), committed);
    consumer.set_open(true);
    let relay = worker(&cluster, "", &output);
    are_shared(&[&relay]).then_some(())?;
    wait_until_committed(&cluster, &[2000, 2000]);
    assert_eq!(consumer.tally.ids(), ids_of(2, 0..2000));
    was_never_put_out(&relay).then_some(())?;
    assert_eq!(repeats(&consumer.tally), 0);
    relay.finish(Backlog::Empty);
    Some(())
}

/// Returns `true` if the relay got its partitions exactly once.
fn was_never_put_out(relay: &Relay) -> bool {
    let lines = relay.log_fields();
    lines.iter().filter(|line| line["message"] == "partitions assigned").count() == 1
}

/// Waits until the relay has read an event that its consumer has not received.
fn wait_until_taken(relay: &Relay) {
    relay.wait_for_metrics("something in the queue", PATIENCE, |metrics| {
        (metrics.value("queue_events", &[]) > 0.0).then_some(())
    });
}

/// Method: in each of twelve rounds, fetches fail, commits fail, the consumer is down, the relay is
/// killed, a partition changes its leader, or all brokers are down for a moment. After each fault,
/// every event before a committed offset must have arrived. In the end all events must have arrived
/// and all offsets must be committed, and no event may have arrived again after it was committed.
#[test]
fn faults_of_brokers_and_consumers_lose_nothing_and_commit_nothing_too_early() {
    use rdkafka::types::RDKafkaRespErr::*;

    let mut rng = rng();
    let cluster = Cluster::start(2, 2);
    let mut consumer = Tallying::http();
    let output = consumer.output("out", "");
    let source = "max_in_flight = \"64KiB\"";
    let mut relay = worker(&cluster, source, &output);
    let (mut end, mut kills, mut moments) = (0, 0, Vec::new());
    for round in 0..12 {
        put(&cluster, 2, end..end + 200);
        end += 200;
        match round % 6 {
            0 => cluster.fail(FETCH, &[RD_KAFKA_RESP_ERR__TRANSPORT; 3]),
            1 => cluster.fail(OFFSET_COMMIT, &[RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE; 2]),
            2 => consumer.set_open(false),
            3 => {
                relay.kill();
                kills += 1;
                relay = worker(&cluster, source, &output);
            }
            4 => cluster.lead(0, rng.i32(1..=2)),
            _ => {
                cluster.set_up(-1, false);
                std::thread::sleep(Duration::from_millis(rng.u64(..300)));
                cluster.set_up(-1, true);
            }
        }
        std::thread::sleep(Duration::from_millis(rng.u64(..300)));
        moments.push(Moment::take(&cluster, &consumer.tally));
        consumer.set_open(true);
    }
    let all = i64::try_from(end).unwrap();
    wait_until_committed(&cluster, &[all, all]);
    assert_eq!(consumer.tally.ids(), ids_of(2, 0..end));
    moments.iter().for_each(|moment| moment.check(&consumer.tally));
    let repeats = repeats(&consumer.tally);
    eprintln!("{repeats} of {} events came twice, after {kills} kills", 2 * end);
    relay.finish(Backlog::Empty);
}

/// Method: up to three relays join one group, one leaves in order, and one is killed. Partitions
/// must be shared evenly, and an orderly change of members must repeat nothing. After the kill
/// every event must arrive, and no event that was committed may arrive again.
#[test]
fn relays_of_a_group_share_the_partitions_and_take_over_from_one_that_is_killed() {
    let passed = (0..CLUSTERS).find_map(|_| share_and_take_over());
    assert!(passed.is_some(), "no share in {CLUSTERS} clusters");
}

/// Runs the test on one cluster. Returns `None` if the mock has removed a member.
fn share_and_take_over() -> Option<()> {
    let cluster = Cluster::start(1, 4);
    let consumer = Tallying::http();
    let output = consumer.output("out", "");
    let source = "max_in_flight = \"64KiB\"";
    let first = worker(&cluster, source, &output);
    are_shared(&[&first]).then_some(())?;
    let mut second = worker(&cluster, source, &output);
    are_shared(&[&first, &second]).then_some(())?;
    put(&cluster, 4, 0..200);
    wait_until_committed(&cluster, &[200; 4]);
    // An orderly change of members repeats nothing.
    assert_eq!((consumer.tally.ids(), repeats(&consumer.tally)), (ids_of(4, 0..200), 0));
    let share = |relay: &Relay| relay.metrics().value("event_total", &[]);
    assert_eq!((share(&first), share(&second)), (400.0, 400.0));
    let third = worker(&cluster, source, &output);
    are_shared(&[&third]).then_some(())?;
    put(&cluster, 4, 200..400);
    wait_until_committed(&cluster, &[400; 4]);
    assert_eq!(repeats(&consumer.tally), 0);
    third.finish(Backlog::Empty);

    let before = Moment::take(&cluster, &consumer.tally);
    put(&cluster, 4, 400..600);
    second.kill();
    put(&cluster, 4, 600..800);
    wait_until_committed(&cluster, &[800; 4]);
    assert_eq!(consumer.tally.ids(), ids_of(4, 0..800));
    before.check(&consumer.tally);
    let repeats = repeats(&consumer.tally);
    eprintln!("{repeats} events came twice after the kill");
    first.finish(Backlog::Empty);
    Some(())
}

/// Posts batches as kube-apiserver does, each until the answer is 200. `front` has the relay's
/// current address.
fn post_until_accepted(front: &Mutex<SocketAddr>, sender: u32, batches: std::ops::Range<u64>) {
    for batch in batches {
        let body = list(sender, batch * 20..(batch + 1) * 20);
        wait_until("an answer of 200", PATIENCE, || {
            let address = *front.lock().unwrap();
            let answer = http::post(address, "/audit", "application/json", &body);
            answer.is_ok_and(|answer| answer.status == 200)
        });
    }
}

/// Method: a relay with a queue in memory writes to the topic and two relays read from it, while
/// senders post each batch until the answer is 200. One of the readers is killed, then the writer,
/// which is replaced. Every event must arrive at the consumer, and may arrive more than once.
#[test]
fn stateless_relays_before_and_behind_the_topic_lose_nothing_when_one_is_killed() {
    let consumer = Tallying::http();
    let (cluster, mut first, second) = (0..CLUSTERS)
        .find_map(|_| {
            let cluster = Cluster::start(3, 4);
            let output = consumer.output("out", "");
            let behind = || worker(&cluster, "max_in_flight = \"256KiB\"", &output);
            let relays = (behind(), behind());
            let shared = are_shared(&[&relays.0, &relays.1]);
            shared.then_some((cluster, relays.0, relays.1))
        })
        .expect("a share for each");
    let edge = || {
        let queue = "queue = { acknowledge = \"delivered\" }\n";
        Relay::start(&format!("{queue}{BASE}{}", cluster.output("topic", "")))
    };
    let mut front = edge();
    let address = Mutex::new(front.address());
    std::thread::scope(|threads| {
        for sender in 0..2 {
            let address = &address;
            threads.spawn(move || post_until_accepted(address, sender, 0..150));
        }
        consumer.tally.wait_for_count(1000, PATIENCE);
        first.kill();
        consumer.tally.wait_for_count(2000, PATIENCE);
        front.kill();
        front = edge();
        *address.lock().unwrap() = front.address();
    });
    front.finish(Backlog::Empty);
    wait_until("every event", PATIENCE, || consumer.tally.ids().len() == 6000);
    second.wait_until_delivered(PATIENCE);
    let in_topic = cluster.records(6000, PATIENCE);
    let kept = |partition| in_topic.iter().any(|it| (it.partition, it.offset) == (partition, 0));
    assert!((0..4).all(kept), "more than the mock keeps");
    let (in_topic, arrived) = (in_topic.len() - 6000, repeats(&consumer.tally));
    eprintln!("of 6000 events {in_topic} are twice in the topic, {arrived} came twice");
    second.finish(Backlog::Empty);
}

fn shown(relay: &Relay) -> Value {
    let status = http::get(relay.admin(), "/status").unwrap();
    let mut status: Value = serde_json::from_slice(&status.body).unwrap();
    let sources = status["sources"].as_array_mut().expect("an array");
    assert_eq!(sources.len(), 1);
    sources.remove(0)
}

#[test]
fn status_shows_what_a_source_reads_and_what_its_last_trouble_was() {
    let cluster = Cluster::start(1, 2);
    let sink = Tallying::http();
    let relay = worker(&cluster, "", &sink.output("o", ""));
    put(&cluster, 1, 0..10);
    sink.tally.wait_for_count(10, PATIENCE);
    let source = shown(&relay);
    let expected = serde_json::json!({
        "name": source["name"], "type": "kafka", "topic": source["topic"], "group": source["group"],
        "state": "reading", "partitions": [0, 1], "last_error": null,
        "received_bytes": source["received_bytes"],
    });
    assert!(source["received_bytes"].as_u64() > Some(0), "{source}");
    assert_eq!(source, expected);
    cluster.set_up(1, false);
    wait_until("the trouble", PATIENCE, || shown(&relay)["last_error"].is_string());
    cluster.set_up(1, true);
    // The error can arrive late. Messages that are read after it clear it.
    let mut next = 10;
    wait_until("no trouble", PATIENCE, || {
        put(&cluster, 1, next..next + 1);
        next += 1;
        shown(&relay)["last_error"].is_null()
    });
    relay.finish(Backlog::Empty);
}

#[test]
fn a_reload_puts_no_source_onto_a_queue_on_disk() {
    let cluster = Cluster::start(1, 1);
    let consumer = Tallying::tcp();
    let (spool, output) = (Spool::new(), consumer.output("out", ""));
    put(&cluster, 1, 0..10);
    let relay = Relay::start(&format!("{BASE}{}{output}", spool.queue("")));
    // `check` accepts this config, but the queue's directory can't change while the relay runs.
    let memory = "[queue]\nacknowledge = \"delivered\"\n";
    let config = format!("{BASE}{memory}{}{output}", cluster.source(""));
    std::fs::write(relay.config_file(), config).unwrap();
    relay.signal(libc::SIGHUP);
    let told = relay.wait_for_log(messages::NOT_RELOADED, PATIENCE);
    let error = told["error"].as_str().expect("why");
    assert!(error.contains("[[source]]") && error.contains("queue.directory"), "{error}");
    let status = http::get(relay.admin(), "/status").unwrap().json();
    assert_eq!(status["sources"].as_array().map(Vec::len), Some(0), "{status}");
    assert!(cluster.committed().values().all(|offset| *offset == 0));
    relay.finish(Backlog::Empty);
}
