//! `type = "kafka"` with librdkafka's mock cluster, whose brokers fail. No event is lost or out of
//! order within its partition, and the number of repeated events is limited.

use crate::support::kafka::{Cluster, PRODUCE, Record, Topic, ids};
use crate::support::numbered::list;
use crate::support::prelude::*;

/// Checks that each partition has the events of sender 0 in order, if only first arrivals count.
/// Returns how many events arrived again.
pub(super) fn repeats_in_order(records: &[Record], count: u64) -> usize {
    let mut fronts: BTreeMap<i32, u64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut repeats = 0;
    for (record, id) in records.iter().zip(ids(records)) {
        if !seen.insert(id.number) {
            repeats += 1;
            continue;
        }
        let front = fronts.entry(record.partition).or_default();
        assert!(*front <= id.number, "{} after {front} in {}", id.number, record.partition);
        *front = id.number;
    }
    assert_eq!(seen, (0..count).collect(), "every event");
    repeats
}

#[test]
fn each_event_is_a_message_as_it_was_received_with_its_audit_id_as_the_key() {
    send_the_corpus(&Cluster::start(3, 4), "");
}

/// Sends the corpus to a topic of four partitions through an output with these keys, and reads it
/// back. Each event must be there once, byte for byte, with its key. All events of a key must be in
/// one partition.
pub(super) fn send_the_corpus(topic: &Topic, keys: &str) {
    let relay = Relay::start(&format!("{BASE}{}", topic.output("topic", keys)));
    let mut expected = post_corpus(&relay);
    relay.wait_until_delivered(PATIENCE);
    let records = topic.records(expected.len(), PATIENCE);
    let mut partitions: BTreeMap<Vec<u8>, BTreeSet<i32>> = BTreeMap::new();
    for record in &records {
        let event: Value = serde_json::from_slice(&record.payload).unwrap();
        let key = record.key.clone().expect("a key");
        assert_eq!(event["auditID"].as_str().unwrap().as_bytes(), key);
        partitions.entry(key).or_default().insert(record.partition);
    }
    assert!(partitions.values().all(|partitions| partitions.len() == 1), "an ID in two partitions");
    let used: BTreeSet<i32> = partitions.into_values().flatten().collect();
    assert_eq!(used, (0..4).collect(), "all partitions are used");
    let mut got: Vec<Vec<u8>> = records.into_iter().map(|record| record.payload).collect();
    got.sort();
    expected.sort();
    assert!(got == expected);
    relay.finish(Backlog::Empty);
}

/// Posts these batches of sender 0 with `size` events each, and does not wait until they are
/// delivered.
fn post(relay: &Relay, batches: std::ops::Range<u64>, size: u64) {
    for batch in batches {
        let answer = relay.post(&list(0, batch * size..(batch + 1) * size));
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn without_a_key_and_compressed_the_bytes_are_the_same() {
    let cluster = Cluster::start(1, 2);
    for compression in ["gzip", "zstd"] {
        let keys = format!("key = \"none\"\ncompression = \"{compression}\"");
        let relay = Relay::start(&format!("{BASE}{}", cluster.output("topic", &keys)));
        post(&relay, 0..10, 40);
        relay.finish(Backlog::Empty);
    }
    let records = cluster.records(800, PATIENCE);
    assert!(records.iter().all(|record| record.key.is_none()));
    let mut numbers: Vec<u64> = ids(&records).iter().map(|id| id.number).collect();
    numbers.sort_unstable();
    let twice: Vec<u64> = (0..800).map(|number| number / 2).collect();
    assert_eq!(numbers, twice);
}

/// Method: the mock answers produce requests with errors that librdkafka retries by itself, while
/// partitions change their leader. Every event must arrive once, in order within its partition, and
/// the relay itself must not retry.
#[test]
fn what_brokers_refuse_for_a_while_comes_in_order_and_once() {
    use rdkafka::types::RDKafkaRespErr::*;

    let cluster = Cluster::start(3, 3);
    let relay = Relay::start(&format!("{BASE}{}", cluster.output("topic", "")));
    let errors = [
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        RD_KAFKA_RESP_ERR_NO_ERROR,
        RD_KAFKA_RESP_ERR__TRANSPORT,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_NO_ERROR,
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    ];
    for round in 0..8 {
        cluster.fail(PRODUCE, &errors);
        post(&relay, round * 10..round * 10 + 10, 20);
        let partition = i32::try_from(round % 3).unwrap();
        cluster.lead(partition, i32::try_from(round % 2).unwrap() + 1);
    }
    relay.wait_until_delivered(PATIENCE * 2);
    let records = cluster.records(1600, PATIENCE);
    assert_eq!(repeats_in_order(&records, 1600), 0);
    assert_eq!(relay.metrics().value("output_retries_total", &[("output", "topic")]), 0.0);
    relay.finish(Backlog::Empty);
}

/// Method: each broker is down for a while, and then answers late for a while. After that, all
/// brokers are down for longer than `timeouts.request`, so that the relay gives up its producer.
/// Every event must arrive, in order within its partition. A producer that is given up may repeat
/// at most one window of 200 events.
#[test]
fn brokers_that_go_and_come_lose_nothing() {
    let cluster = Cluster::start(3, 3);
    // A window is four batches, and a batch here has at most 50 events.
    let keys = "timeouts = { connect = \"2s\", request = \"5s\" }\nbatch = { max_events = 50 }\n";
    let relay = Relay::start(&format!("{BASE}{}", cluster.output("topic", keys)));
    let mut batches = 0;
    let mut more = |count: u64| {
        post(&relay, batches..batches + count, 20);
        batches += count;
    };
    more(10);
    relay.wait_until_delivered(PATIENCE * 2);
    for broker in 1..=3 {
        cluster.set_up(broker, false);
        more(10);
        cluster.set_up(broker, true);
        cluster.delay(broker, Duration::from_millis(300));
        more(10);
        cluster.delay(broker, Duration::ZERO);
    }
    cluster.set_up(-1, false);
    more(10);
    let down = |metrics: &Metrics| {
        let label = [("output", "topic")];
        let timeout = [("output", "topic"), ("reason", "timeout")];
        let is_down = metrics.value("output_up", &label) == 0.0;
        (is_down && metrics.value("output_errors_total", &timeout) >= 1.0).then_some(())
    };
    relay.wait_for_metrics("a producer given up", PATIENCE, down);
    let told = relay.wait_for_log("output down, events are kept", PATIENCE);
    assert!(told["error"].as_str().unwrap().contains("127.0.0.1:"), "{told}");
    more(10);
    cluster.set_up(-1, true);
    relay.wait_until_delivered(PATIENCE * 2);
    let count = batches * 20;
    let records = cluster.records(usize::try_from(count).unwrap(), PATIENCE);
    let repeats = repeats_in_order(&records, count);
    // An attempt that finds no broker repeats nothing.
    let metrics = relay.metrics();
    let unreached = [("output", "topic"), ("reason", "connect")];
    let given_up =
        metrics.sum("output_errors_total") - metrics.value("output_errors_total", &unreached);
    eprintln!("{repeats} of {count} events came twice, {given_up} producers given up");
    assert!(repeats as f64 <= given_up * 200.0, "{repeats} by {given_up} producers given up");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_topic_that_is_not_there_is_told_and_waited_for() {
    let cluster = Cluster::without_topic(1, 1);
    let relay = Relay::start(&format!("{BASE}{}", cluster.output("topic", "")));
    post(&relay, 0..3, 5);
    let told = relay.wait_for_log("output down, events are kept", PATIENCE);
    let error = told["error"].as_str().unwrap();
    assert!(
        error.contains("kafka audit at 127.0.0.1:") && error.contains("Unknown topic"),
        "{error}"
    );
    cluster.create_topic();
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(repeats_in_order(&cluster.records(15, PATIENCE), 15), 0);
    relay.finish(Backlog::Empty);
}

#[test]
fn what_is_nobodys_fault_but_a_settings_is_retried_and_loses_nothing() {
    use rdkafka::types::RDKafkaRespErr::*;

    let cluster = Cluster::start(1, 1);
    let relay = Relay::start(&format!("{BASE}{}", cluster.output("topic", "")));
    post(&relay, 0..1, 5);
    relay.wait_until_delivered(PATIENCE);
    cluster.fail(
        PRODUCE,
        &[
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
        ],
    );
    post(&relay, 1..40, 5);
    relay.wait_until_delivered(PATIENCE);
    let told = relay.wait_for_log("output down, events are kept", PATIENCE);
    assert!(told["error"].as_str().unwrap().contains("authorization failed"), "{told}");
    let records = cluster.records(200, PATIENCE);
    assert_eq!(repeats_in_order(&records, 200), 0);
    let metrics = relay.metrics();
    let protocol = [("output", "topic"), ("reason", "protocol")];
    assert!(metrics.value("output_errors_total", &protocol) >= 3.0, "{}", metrics.text);
    assert_eq!(metrics.value("error_total", &[("plugin", "topic")]), 0.0);
    relay.finish(Backlog::Empty);
}

/// The brokers' responses come in a fixed order, and are meant for particular events. If the relay
/// sends the refused event again before the new one, which happens in one of 43 runs, the test
/// starts again.
#[test]
fn an_event_that_brokers_refuse_is_given_up_alone_and_only_after_another_was_taken() {
    let is_tested = (0..5).any(|_| refuses_an_event());
    assert!(is_tested, "the refused event always came before the new one");
}

/// Returns `false` if the new event got the response that was meant for the refused one.
fn refuses_an_event() -> bool {
    use rdkafka::types::RDKafkaRespErr::*;

    const TOO_LARGE: rdkafka::types::RDKafkaRespErr = RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    let cluster = Cluster::start(1, 1);
    // The pauses are so long that only the test itself ends them.
    let keys = "retry = { initial_interval = \"60s\", max_interval = \"60s\", \
                randomization_factor = 0.0 }\n";
    let relay = Relay::start(&format!("{BASE}{}", cluster.output("topic", keys)));
    // The batch of four, its half and a single event are refused. Everything after that is
    // accepted, including the event that was refused alone.
    cluster.fail(PRODUCE, &[TOO_LARGE, TOO_LARGE, TOO_LARGE]);
    post(&relay, 0..1, 4);
    let refused = |count: f64| {
        relay.wait_for_metrics("refusals", PATIENCE, |metrics| {
            let protocol = [("output", "topic"), ("reason", "protocol")];
            (metrics.value("output_errors_total", &protocol) == count).then_some(())
        });
    };
    // Once the second event has been accepted, the first one could be given up, but it is first
    // sent several times.
    refused(3.0);
    relay.wait_until_delivered(PATIENCE);
    let numbers: Vec<u64> = ids(&cluster.records(4, PATIENCE)).iter().map(|id| id.number).collect();
    assert_eq!(numbers.iter().copied().collect::<BTreeSet<_>>(), (0..4).collect());

    // A lone event is not given up until another event has been accepted. It is then sent many
    // times, because the brokers have already accepted an event that they had refused before.
    let mut answers = vec![TOO_LARGE, TOO_LARGE, RD_KAFKA_RESP_ERR_NO_ERROR];
    answers.extend([TOO_LARGE; 60]);
    cluster.fail(PRODUCE, &answers);
    assert_eq!(relay.post(&list(0, 4..5)).status, 200);
    // The relay sends the event once more at once.
    refused(5.0);
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "topic")]), 0.0);
    assert_eq!(relay.post(&list(0, 5..6)).status, 200);
    let numbers = || -> BTreeSet<u64> {
        ids(&cluster.records(5, PATIENCE)).iter().map(|id| id.number).collect()
    };
    if numbers().contains(&4) {
        return false;
    }
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "topic")]), 1.0);
    let told = relay.wait_for_log(messages::GIVEN_UP, PATIENCE);
    assert!(told["error"].as_str().unwrap().contains("message of "), "{told}");
    assert_eq!(numbers(), [0, 1, 2, 3, 5].into_iter().collect());
    relay.finish(Backlog::Empty);
    true
}

#[test]
fn an_end_with_brokers_away_is_bounded_and_counts_what_is_lost() {
    let cluster = Cluster::start(1, 1);
    let config =
        format!("{BASE}{}[shutdown]\ndrain_timeout = \"1s\"\n", cluster.output("topic", ""));
    let mut relay = Relay::start(&config);
    post(&relay, 0..1, 5);
    relay.wait_until_delivered(PATIENCE);
    cluster.set_up(-1, false);
    post(&relay, 1..2, 5);
    let took = relay.stop();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let told = relay.wait_for_log(messages::ENDED_WITH_LOSSES, PATIENCE);
    assert_eq!(told["lost"], 5, "{told}");
}
