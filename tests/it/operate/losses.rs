//! The log's lines about losses. Each kind is logged at its first event and then only now and then,
//! with numbers that add up to the counters. The log says that events are kept only if they are,
//! and ends with the totals. With `delivered`, no sender may get a 200 for events that are lost.

use std::net::SocketAddr;

use crate::support::prelude::*;
use crate::support::relay::Stdout;

/// Returns the message and the fields of the lines of this level.
fn lines(relay: &Relay, level: &str) -> Vec<Value> {
    let parsed = |line: &String| serde_json::from_str::<Value>(line).ok();
    let all = relay.log_lines();
    let of_level = all.iter().filter_map(parsed).filter(|line| line["level"] == level);
    of_level.map(|line| line["fields"].clone()).collect()
}

fn with_message(lines: &[Value], message: &str) -> Vec<Value> {
    lines.iter().filter(|line| line["message"] == message).cloned().collect()
}

fn sum(lines: &[Value], field: &str) -> u64 {
    lines.iter().map(|line| line[field].as_u64().expect("a number")).sum()
}

/// Waits for the end of the log, and returns the fields of its very last line.
fn last_line(relay: &Relay) -> Value {
    wait_until("the log's end", PATIENCE, || relay.log_text().contains(messages::ENDED));
    let line: Value = serde_json::from_str(relay.log_lines().last().unwrap()).expect("JSON");
    line["fields"].clone()
}

fn dead_end(queue: &str) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    to_sink(address, &format!("{queue}[shutdown]\ndrain_timeout = \"200ms\"\n"))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn counted(relay: &Relay, plugin: &str) -> u64 {
    relay.metrics().value("error_total", &[("plugin", plugin)]) as u64
}

#[test]
fn what_a_full_queue_drops_is_said_with_the_numbers_and_never_that_it_is_kept() {
    let spool = Spool::new();
    let memory = "[queue]\nmax_bytes = \"64KiB\"\n".to_owned();
    let disk = spool.queue("max_bytes = \"512KiB\"\nsegment_bytes = \"32KiB\"");
    let oldest = "queue full: the oldest events are dropped and counted, as queue.when_full says";
    let newest = "queue full: new events are dropped and counted, as queue.when_full says";
    for (queue, when_full, message, plugin) in [
        (&memory, "drop_oldest", oldest, "consumer"),
        (&memory, "drop_newest", newest, "queue"),
        (&disk, "drop_oldest", oldest, "consumer"),
    ] {
        let begun = Instant::now();
        let mut relay = Relay::start(&dead_end(&format!("{queue}when_full = \"{when_full}\"\n")));
        let mut accepted = 0;
        for seed in 0..120 {
            // While all batches are on the wire, which lasts as long as an attempt, the response is
            // 429.
            wait_until("room", PATIENCE, || {
                relay.post(&generated_batch(seed, 10, 1000)).status == 200
            });
            accepted += 10;
        }
        relay.wait_for_log(message, PATIENCE);
        let down =
            ["output down, events wait and may be lost", "output down, events are being lost"];
        wait_until("the output's state", PATIENCE, || {
            down.iter().any(|line| relay.log_text().contains(line))
        });
        let before = counted(&relay, plugin);
        assert!(before > 0);
        relay.stop();
        let errors = lines(&relay, "ERROR");
        let told = with_message(&errors, message);
        // There are at most these lines: the first, one every ten seconds, and one at the end.
        let most = 2 + begun.elapsed().as_secs() / 10;
        assert!((1..=most).contains(&(told.len() as u64)), "{} of {most}", told.len());
        let output = (plugin != "queue").then_some(plugin);
        assert!(told.iter().all(|line| line["output"].as_str() == output), "{told:?}");
        let dropped = sum(&told, "events");
        assert_eq!(Some(dropped), told.last().unwrap()["total"].as_u64());
        assert!(dropped >= before, "{dropped} of {before}");
        let full = "queue full: events are dropped until the outputs have delivered others";
        let states = [lines(&relay, "WARN"), lines(&relay, "INFO")].concat();
        let full = with_message(&states, full).len() as u64;
        // A drop makes room, so the queue can be below 80 % whenever its state is logged.
        let room = with_message(&states, messages::HAS_ROOM).len() as u64;
        assert!(full <= most && full + room > 0, "{full} and {room} of {most}");
        assert!(!relay.log_text().contains("events are kept"), "{}", relay.log_text());
        let ended = last_line(&relay);
        assert_eq!(ended["message"], messages::ENDED_WITH_LOSSES);
        assert_eq!(ended["accepted"].as_u64(), Some(accepted), "{ended}");
        let at_the_end = with_message(&errors, messages::UNDELIVERED);
        let lost = dropped + sum(&at_the_end, "events");
        assert_eq!(ended["lost"].as_u64(), Some(lost), "all of its life: {ended}");
        let kept = if queue.contains("directory") { accepted - lost } else { 0 };
        assert_eq!(ended["kept"].as_u64(), Some(kept), "{ended}");
        assert_eq!(ended["delivered"].as_u64(), Some(accepted - lost - kept), "{ended}");
        let each = ended["outputs"].as_str().expect("by output").to_owned();
        assert!(each.starts_with("consumer: ") && each.contains("; queue: "), "{each}");
    }
}

#[test]
fn what_is_given_up_is_said_and_never_that_it_is_kept() {
    let batch = generated_batch(1, 10, 1000);
    let consumer = all_but(&batch);
    let mut relay =
        Relay::start(&to_sink(consumer.address(), "rejected = { action = \"drop\" }\n"));
    give_up(&relay, &batch);
    relay.stop();
    let ended = last_line(&relay);
    let told = with_message(&lines(&relay, "ERROR"), messages::GIVEN_UP);
    assert_eq!((sum(&told, "events"), &ended["lost"]), (10, &10.into()), "{told:?}");
    for line in told {
        assert_eq!((&line["cause"], &line["fate"]), (&"refused".into(), &"dropped".into()));
    }
    // Before the consumer has taken another event, the output may be down for a moment.
    let log = relay.log_text().replace("output down, events are kept", "");
    assert!(!log.contains("events are kept"), "{log}");
}

#[test]
fn a_removed_outputs_backlog_is_said_when_it_is_lost_by_a_reload_and_by_a_restart() {
    let spool = Spool::new();
    let consumer = HttpSink::accepting();
    let queue = spool.queue("");
    let address = consumer.address();
    let one = to_sink(address, &queue);
    let away = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let second = format!(
        "{one}[[output]]\nname = \"second\"\ntype = \"http\"\nurls = [\"http://{away}/\"]\n"
    );
    let message = messages::REMOVED;
    let mut relay = Relay::start(&second);
    assert_eq!(relay.post(&generated_batch(1, 10, 1000)).status, 200);
    wait_until("the batch", PATIENCE, || accepted_events(&consumer).len() == 10);
    std::fs::write(relay.config_file(), &one).unwrap();
    relay.signal(libc::SIGHUP);
    let told = relay.wait_for_log(message, PATIENCE);
    assert_eq!((told["output"].as_str(), told["events"].as_u64()), (Some("second"), Some(10)));
    relay.stop();
    assert_eq!(last_line(&relay)["lost"], 10);

    let mut relay = Relay::start(&second);
    assert_eq!(relay.post(&generated_batch(2, 20, 1000)).status, 200);
    // The other output has all events, so only the removed one has a backlog.
    wait_until("30 events at the consumer", PATIENCE, || {
        let backlog = &[("output", "consumer")];
        relay.metrics().value("output_backlog_events", backlog) == 0.0
    });
    relay.stop();
    assert_eq!(last_line(&relay)["kept"], 20);
    let mut relay = Relay::start(&one);
    let told = relay.wait_for_log(message, PATIENCE);
    assert_eq!((told["output"].as_str(), told["events"].as_u64()), (Some("second"), Some(20)));
    assert_eq!(with_message(&lines(&relay, "ERROR"), message).len(), 1);
    relay.stop();
    assert_eq!(last_line(&relay)["lost"], 20);
}

#[test]
fn a_sender_that_waits_for_an_output_that_ends_is_told_503_and_not_200() {
    const STDOUT: &str = "[queue]\nacknowledge = \"delivered\"\n[[output]]\nname = \"stdout\"\n\
                          type = \"stdout\"\n";
    for others in [false, true] {
        let consumer = HttpSink::accepting();
        let web = if others { consumer.output("web", "") } else { String::new() };
        let config = format!("{BASE}{STDOUT}{web}");
        let mut relay = Relay::with(&config).stdout(Stdout::Held).start();
        let pipe = relay.take_stdout();
        let address = relay.address();
        // The batches do not fit into the pipe. Some are on the wire, and the output has not begun
        // the others.
        let batches: Vec<_> = (0..4).map(|seed| generated_batch(seed, 300, 1000)).collect();
        let senders: Vec<_> = batches
            .iter()
            .cloned()
            .map(|batch| {
                std::thread::spawn(move || http::post(address, "/", "application/json", &batch))
            })
            .collect();
        relay.wait_for_metrics("all of them", PATIENCE, |metrics| {
            (metrics.value("queue_events", &[]) >= 1200.0).then_some(())
        });
        drop(pipe);
        for sender in senders {
            let answer = sender.join().unwrap().expect("an answer");
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert!(answer.header("retry-after").is_some());
        }
        assert_eq!(relay.wait().code(), Some(1), "{}", relay.log_text());
        let ended = last_line(&relay);
        // The batches that the output had begun count as lost. The others were not accepted, so
        // they are not counted.
        let (accepted, lost) = (ended["accepted"].as_u64(), ended["lost"].as_u64());
        assert!(lost <= accepted && lost.is_some(), "{ended}");
        if others {
            let sent: usize = batches.iter().map(|batch| events_of(batch).len()).sum();
            assert!(accepted_events(&consumer).len() <= sent);
        }
        let each = ended["outputs"].as_str().expect("by output");
        assert!(each.contains("stdout: 0 delivered"), "{each}");
    }
}
