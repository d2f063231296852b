//! `type = "kafka"` with a real broker: its topic has the events as they were received, and has
//! each one once after the broker was killed and started again.

use crate::outputs::kafka_output::{repeats_in_order, send_the_corpus};
use crate::support::numbered::list;
use crate::support::prelude::*;
use crate::support::tansu::{Moment, Tansu};

const BATCH: u64 = 20;

/// By default, messages have keys, and all replicas must acknowledge.
const ZSTD: &str = "compression = \"zstd\"\n";

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_real_broker_has_each_event_as_it_was_received_with_its_key() {
    send_the_corpus(Tansu::start(4).topic(), ZSTD);
}

/// Sets a flag when it is dropped, also by a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Posts batches of sender 0 until `is_over`, for at most 30 seconds. Returns the number of events,
/// all of which the relay has accepted.
fn post_until(relay: &Relay, is_over: &AtomicBool) -> u64 {
    let pause = Duration::from_millis(20);
    for batch in 0..1500 {
        if is_over.load(Ordering::SeqCst) {
            return batch * BATCH;
        }
        let answer = relay.post(&list(0, batch * BATCH..(batch + 1) * BATCH));
        assert_eq!(answer.status, 200);
        std::thread::sleep(pause);
    }
    panic!("the rounds took longer than 30 seconds");
}

/// Method: while events are posted, the broker is killed six times: either before it has stored a
/// batch, or after it has stored the batch and before it answers. It starts again with the stored
/// events. Every event must be in the topic once, in order within its partition, because the broker
/// recognizes a repeated batch by the producer's sequence numbers.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_real_broker_that_is_killed_has_every_event_once_and_in_order() {
    let mut random = rng();
    let mut broker = Tansu::start(2);
    let relay = Relay::start(&format!("{BASE}{}", broker.topic().output("topic", ZSTD)));
    let is_over = AtomicBool::new(false);
    let count = std::thread::scope(|threads| {
        let sender = threads.spawn(|| post_until(&relay, &is_over));
        let over = SetOnDrop(&is_over);
        for round in 0..6 {
            let moment = if round % 2 == 0 { Moment::BeforeBatch } else { Moment::AfterBatch };
            broker.kill_at(moment, random.u32(0..20));
            std::thread::sleep(Duration::from_millis(random.u64(..300)));
            broker.start_again();
        }
        drop(over);
        sender.join().expect("the sender does not panic")
    });
    relay.wait_until_delivered(PATIENCE);
    let records = broker.topic().records(usize::try_from(count).unwrap(), PATIENCE);
    let repeats = repeats_in_order(&records, count);
    let retries = relay.metrics().value("output_retries_total", &[("output", "topic")]);
    assert_eq!((repeats, retries), (0, 0.0), "of {count} events");
    relay.finish(Backlog::Empty);
}
