//! Reloads with a source that follows a script.

#![cfg(feature = "kafka")]

use std::sync::mpsc;

use bytes::Bytes;

use super::*;
use audit::LevelCounts;
use queue::{Append, Output};

/// A source whose thread runs a function of the test.
struct Scripted<F>(F);

impl<F: Fn(&Queue, Orders) + Send + Sync> Source for Scripted<F> {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        Ok(Box::new(|| ()))
    }

    fn probe(&self) -> (String, Result<(), String>) {
        (String::new(), Ok(()))
    }

    fn run(&self, queue: &Queue, orders: Orders) {
        (self.0)(queue, orders);
    }

    fn status(&self) -> Arc<Status> {
        Arc::default()
    }
}

const CONFIG: &str = "
[[source]]
name = \"topic\"
type = \"kafka\"
brokers = [\"127.0.0.1:9\"]
topic = \"audit\"
group = \"relays\"

[queue]
acknowledge = \"delivered\"

[[output]]
name = \"o\"
type = \"stdout\"
";

/// A reload removes a source that is about to take its last batch. `close_leaving` must wait until
/// that batch is in the queue.
#[tokio::test]
async fn one_that_a_reload_removes_has_taken_its_last_before_the_settings_change() {
    let config = config::read(CONFIG, outputs::TYPES).config.expect("it is right");
    let telemetry = Telemetry::new();
    let output = Output {
        name: "o".to_owned(),
        required: true,
        metrics: telemetry.output("o"),
        recorder: None,
    };
    let (queue, _cursors) = Queue::open(&config.queue, &telemetry, &[output]).unwrap();
    let (go, waits) = mpsc::channel();
    let mut sources = Sources::default();
    let mut planned = sources.plan(&config.sources, 1000, &telemetry);
    // The source is busy when it is told to close, and takes one more batch after that.
    let waits = Mutex::new(waits);
    planned[0].source = Arc::new(Scripted(move |queue: &Queue, mut orders: Orders| {
        waits.lock().expect("no holder panics").recv().expect("the test says go");
        let lines = Bytes::from_static(b"{}\n");
        let batch = Append { lines, events: 1, levels: LevelCounts::default(), list: None };
        let ticket = queue.append(batch).expect("there is room");
        orders.taking = None;
        while !orders.stop.is_cancelled() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        drop(ticket);
    }));
    sources.commit(planned, &queue);

    // A reload with the same config closes no source.
    let same = sources.plan(&config.sources, 1000, &telemetry);
    sources.close_leaving(&same).await;
    assert!(!sources.slots[0].closing.is_cancelled());
    sources.commit(same, &queue);

    {
        let mut closed = std::pin::pin!(sources.close_leaving(&[]));
        let early = tokio::time::timeout(Duration::from_millis(20), &mut closed).await;
        assert!(early.is_err(), "it may still take something");
        go.send(()).unwrap();
        closed.await;
    }
    assert_eq!(queue.held().1, 1, "what it takes is there when the settings change");
    sources.commit(Vec::new(), &queue);
    sources.end(Duration::from_secs(60)).await;
    assert!(sources.tasks.is_empty());
}

#[tokio::test]
async fn one_that_ends_unasked_is_a_failure_of_the_relay() {
    let config = config::read(CONFIG, outputs::TYPES).config.expect("it is right");
    let telemetry = Telemetry::new();
    let (queue, _cursors) = Queue::open(&config.queue, &telemetry, &[]).unwrap();
    for (panics, what) in [(true, "panicked"), (false, "ended")] {
        let failures = Failures::default();
        let mut sources = Sources::new(failures.clone());
        let mut planned = sources.plan(&config.sources, 1000, &telemetry);
        planned[0].source =
            Arc::new(Scripted(move |_: &Queue, _: Orders| assert!(!panics, "by design")));
        sources.commit(planned, &queue);
        assert_eq!(failures.wait().await, format!("source topic: its thread has {what}"));
    }
}
