//! Many senders, the writer's thread and several outputs, on a real disk.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::contract::Redelivery;
use base::disk::RealDisk;

const SENDERS: usize = 64;

const BATCHES: usize = 25;

/// A test that waits for longer than this for the queue or a task has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const NAMES: [&str; 3] = ["quick", "slow", "clumsy"];

fn open(directory: &Path, config: &config::Queue) -> (Queue, Vec<Cursor>, Telemetry) {
    let telemetry = Telemetry::new();
    let (_, outputs) = outputs(&telemetry, &NAMES);
    let disk = Arc::new(RealDisk::own(directory).expect("nobody else has it"));
    let opened = Queue::open(disk, directory, config, &telemetry, &outputs);
    let (queue, cursors) = opened.expect("it can be used");
    (queue, cursors, telemetry)
}

/// Sends one batch after another. Each event holds its sender and its number.
async fn send(queue: Queue, sender: usize, full: Arc<AtomicUsize>) {
    let mut rng = fastrand::Rng::with_seed(sender as u64);
    let mut number = 0;
    for _ in 0..BATCHES {
        let mut lines = String::new();
        let events = rng.u64(1..20);
        for _ in 0..events {
            let filler = "x".repeat(rng.usize(..200));
            lines.push_str(&format!("{sender} {number} {filler}\n"));
            number += 1;
        }
        let append =
            Append { lines: lines.into(), events, levels: LevelCounts::default(), list: None };
        loop {
            match queue.append(append.clone(), None) {
                Ok(mut ticket) => {
                    let stored = timeout(PATIENCE, ticket.acknowledged()).await;
                    stored.expect("it is synced").expect("the disk is well");
                    break;
                }
                Err(refused) => {
                    assert_eq!(refused, Refused::Full);
                    full.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
    }
}

async fn receive(mut cursor: Cursor, name: &str, mut left: u64) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut got = Vec::new();
    while left > 0 {
        timeout(PATIENCE, cursor.readable()).await.expect("more events");
        let take = Take { bytes: rng.u64(100..30_000), events: left };
        let Some(mut batch) = cursor.next(take) else { continue };
        if name == "slow" && rng.u8(..4) == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        if name == "clumsy" && rng.u8(..4) == 0 {
            let claim = batch.claim;
            cursor.release(claim);
            batch = loop {
                match cursor.redeliver(claim) {
                    Redelivery::Batch(batch) => break batch,
                    Redelivery::NotYet => {
                        timeout(PATIENCE, cursor.readable()).await.expect("the lines are read");
                    }
                    Redelivery::Gone => panic!("nothing is dropped"),
                }
            };
        }
        left -= batch.events;
        let lines = batch.pieces.concat();
        let lines = String::from_utf8(lines).expect("as it was sent");
        got.extend(lines.lines().map(str::to_owned));
        cursor.acknowledge(batch.claim, Disposition::default());
    }
    got
}

fn total() -> u64 {
    let of = |sender: usize| {
        let mut rng = fastrand::Rng::with_seed(sender as u64);
        let batch = |_| {
            let events = rng.u64(1..20);
            for _ in 0..events {
                rng.usize(..200);
            }
            events
        };
        (0..BATCHES).map(batch).sum::<u64>()
    };
    (0..SENDERS).map(of).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_senders_and_outputs_lose_nothing_and_keep_the_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = settings(512 << 10, 32 << 10, WhenFull::Reject);
    let total = total();
    let full = Arc::new(AtomicUsize::new(0));
    let (queue, cursors, telemetry) = open(directory.path(), &config);
    // The first task that fails ends the test: the other ones would wait for it.
    let mut tasks = JoinSet::new();
    for sender in 0..SENDERS {
        let sending = send(queue.clone(), sender, Arc::clone(&full));
        tasks.spawn(async move {
            sending.await;
            None
        });
    }
    // The outputs leave different numbers of events for the next start.
    let left = [0, 100, 333];
    for ((cursor, name), left) in cursors.into_iter().zip(NAMES).zip(left) {
        tasks.spawn(async move { Some((name, receive(cursor, name, total - left).await)) });
    }
    let mut got: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        got.extend(ended.expect("it ends"));
    }
    assert_eq!(values(&telemetry, ["event_total"]), [total]);
    let backlogs: Vec<u64> = queue.backlogs().iter().map(|(_, backlog)| backlog.events).collect();
    assert_eq!(backlogs, left);
    queue.close().await;
    drop(queue);

    let (queue, cursors, telemetry) = open(directory.path(), &config);
    let backlogs: Vec<u64> = queue.backlogs().iter().map(|(_, backlog)| backlog.events).collect();
    assert_eq!(backlogs, left, "exactly, after an end in order");
    for ((cursor, name), left) in cursors.into_iter().zip(NAMES).zip(left) {
        let rest = receive(cursor, name, left).await;
        got.entry(name).or_default().extend(rest);
    }
    queue.close().await;
    assert_eq!(queue.held().1, 0);
    assert_eq!(values(&telemetry, ["spool_corrupt_records_total"]), [0]);

    let first = &got["quick"];
    assert!(got.values().all(|events| events == first), "all in the same order");
    assert_eq!(first.len() as u64, total);
    let mut next = [0; SENDERS];
    for event in first {
        let mut words = event.split(' ').map(str::parse::<usize>);
        let [Some(Ok(sender)), Some(Ok(number))] = [words.next(), words.next()] else {
            panic!("{event}")
        };
        assert_eq!(number, next[sender], "of sender {sender}");
        next[sender] += 1;
    }
    println!("{total} events, the queue was full {} times", full.load(Ordering::Relaxed));
}
