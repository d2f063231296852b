//! `[[source]]` of type kafka with a real broker: the group, its offsets, and kills of the broker
//! and the relay.

use crate::ingest::kafka_source::{Moment, ids_of, put, repeats, wait_until_committed, worker};
use crate::support::prelude::*;
use crate::support::tansu::Tansu;

/// The number of events that each round puts into each of the two partitions.
const ROUND: u64 = 300;

/// Method: in each of three rounds, events are put into the topic. While the relay reads them, the
/// broker is killed, then the relay with its consumer down, then both, and the killed programs
/// start again. Every event before a committed offset must have arrived, all events must arrive in
/// the end, and no committed event may arrive again.
#[test]
#[ignore = "needs peers or root: ./test"]
fn everything_in_a_real_topic_arrives_when_broker_and_relay_are_killed() {
    let mut random = rng();
    let mut broker = Tansu::start(2);
    let mut consumer = Tallying::http();
    let output = consumer.output("out", "");
    let mut relay = worker(broker.topic(), "", &output);
    let (mut end, mut moments) = (0, Vec::new());
    for (kill_broker, kill_relay) in [(true, false), (false, true), (true, true)] {
        let arrived = consumer.tally.ids().len();
        put(broker.topic(), 2, end..end + ROUND);
        end += ROUND;
        consumer.tally.wait_for_count(arrived + 1, PATIENCE);
        consumer.set_open(!kill_relay);
        std::thread::sleep(Duration::from_millis(random.u64(..300)));
        moments.push(Moment::take(broker.topic(), &consumer.tally));
        if kill_broker {
            broker.kill();
        }
        if kill_relay {
            relay.kill();
        }
        std::thread::sleep(Duration::from_millis(random.u64(..300)));
        if kill_broker {
            broker.start_again();
        }
        if kill_relay {
            relay = worker(broker.topic(), "", &output);
        }
        consumer.set_open(true);
        let count = usize::try_from(2 * end).unwrap();
        wait_until("every event", PATIENCE, || consumer.tally.ids().len() == count);
    }
    let all = i64::try_from(end).unwrap();
    wait_until_committed(broker.topic(), &[all, all]);
    assert_eq!(consumer.tally.ids(), ids_of(2, 0..end));
    moments.iter().for_each(|moment| moment.check(&consumer.tally));
    eprintln!("{} of {} events came twice", repeats(&consumer.tally), 2 * end);
    relay.finish(Backlog::Empty);
}
