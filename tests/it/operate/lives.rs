//! Successive processes of a relay: the ephemeral queue of a pod that ends counts as lost, a kill
//! leaves a trace, and the losses of an earlier process stay on the page.

use std::process::Command;

use crate::support::metrics::assert_conservation;
use crate::support::prelude::*;
use crate::support::relay::Stdout;

/// Returns a config whose consumer is down.
fn dead_end(more: &str) -> String {
    to_sink(SocketAddr::from(([127, 0, 0, 1], free_port())), more)
}

/// Adds `process.state_directory` to a config.
fn with_state(config: &str, directory: &Path) -> String {
    let key = format!("best_effort\", state_directory = {:?}", text(directory));
    config.replace("best_effort\"", &key)
}

/// Returns the fields of the log's very last line.
fn last_words(relay: &Relay) -> Value {
    let line: Value = serde_json::from_str(relay.log_lines().last().unwrap()).expect("JSON");
    line["fields"].clone()
}

fn status(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status").unwrap().json()
}

/// Returns the state of the first finding with this beginning, or `None` if there is none.
fn finding(relay: &Relay, begin: &str) -> Option<String> {
    let status = status(relay);
    let findings = status["verdict"]["findings"].as_array().expect("findings").iter();
    let mut found = findings.filter(|it| it["text"].as_str().unwrap().starts_with(begin));
    found.next().map(|it| it["state"].as_str().unwrap().to_owned())
}

const KILLED_IN_MEMORY: &str = "Accepted events may be lost: the last process was killed at ";
const KILLED_ON_DISK: &str = "The last process was killed at ";
const KILLED_IN_LOG: &str = "the previous process of the relay was killed, or its machine failed";
const LOST_BEFORE: &str = "Events lost or refused for good before the last restart: ";

#[test]
fn what_a_pod_takes_with_it_is_lost_counted_scraped_and_the_exit_status_is_1() {
    let spool = Spool::new();
    let queue = spool.queue("ephemeral = true\n[shutdown]\ndrain_timeout = \"12s\"");
    let mut relay = Relay::start(&dead_end(&queue));
    assert_eq!(relay.post(&generated_batch(1, 10, 900)).status, 200);
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "consumer")]), 0.0);
    relay.signal(libc::SIGTERM);
    let scraped = wait_for("a scrape that sees the loss", PATIENCE, || {
        let metrics = Metrics::parse(&http::get(relay.admin(), "/metrics").ok()?.text());
        (metrics.value("error_total", &[("plugin", "consumer")]) == 10.0).then_some(metrics)
    });
    assert_conservation(&scraped, &["consumer"]);
    assert_eq!(relay.wait().code(), Some(1));
    let told = relay.wait_for_log(messages::UNDELIVERED, PATIENCE);
    assert_eq!((told["output"].as_str(), told["events"].as_u64()), (Some("consumer"), Some(10)));
    let last = last_words(&relay);
    assert_eq!(
        (&last["message"], &last["lost"], &last["kept"]),
        (&messages::ENDED_WITH_LOSSES.into(), &10.into(), &0.into())
    );

    // Only the container has restarted: the events are delivered, so they were not lost.
    let consumer = HttpSink::accepting();
    let again = Relay::start(&to_sink(consumer.address(), &queue));
    wait_until("the events", PATIENCE, || accepted_events(&consumer).len() == 10);
    assert_eq!(finding(&again, LOST_BEFORE), None);
    again.finish(Backlog::Empty);
}

/// Method: a relay with its queue in memory is killed. The next one has a queue on disk, as the
/// runbook of the alert advises.
#[test]
fn a_kill_of_a_queue_in_memory_is_not_called_harmless_because_the_next_queue_is_on_disk() {
    let (state, spool) = (TempDir::new().unwrap(), Spool::new());
    let mut relay = Relay::start(&with_state(&dead_end(""), state.path()));
    assert_eq!(relay.post(&generated_batch(1, 3, 900)).status, 200);
    relay.kill();
    let sink = HttpSink::accepting();
    let again = Relay::start(&with_state(&to_sink(sink.address(), &spool.queue("")), state.path()));
    assert_eq!(finding(&again, KILLED_IN_MEMORY).as_deref(), Some("warn"));
    assert_eq!(finding(&again, KILLED_ON_DISK), None);
    again.finish(Backlog::Empty);
}

#[test]
fn an_ephemeral_queue_goes_on_delivering_until_the_drain_is_over() {
    let spool = Spool::new();
    let mut consumer = HttpSink::accepting();
    consumer.close();
    let queue = spool.queue("ephemeral = true\n[shutdown]\ndrain_timeout = \"30s\"");
    let mut relay = Relay::start(&to_sink(consumer.address(), &queue));
    assert_eq!(relay.post(&generated_batch(1, 10, 900)).status, 200);
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    consumer.reopen();
    assert_eq!(relay.wait().code(), Some(0));
    assert_eq!(accepted_events(&consumer).len(), 10);
}

#[test]
fn whoever_mounts_the_volume_decides_whether_it_is_ephemeral() {
    for (key, variable, code, left) in
        [("", "true", 1, (10, 0)), ("ephemeral = true\n", "false", 0, (0, 10))]
    {
        let spool = Spool::new();
        let config = dead_end(&spool.queue(&format!("{key}[shutdown]\ndrain_timeout = \"1s\"")));
        let relay = Relay::with(&config).variable("KUBE_AUDIT_FORWARDER_EPHEMERAL", variable);
        let mut relay = relay.start();
        assert_eq!(relay.post(&generated_batch(1, 10, 900)).status, 200);
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.wait().code(), Some(code), "{variable}");
        let last = last_words(&relay);
        assert_eq!((last["lost"].as_u64(), last["kept"].as_u64()), (Some(left.0), Some(left.1)));
    }
}

#[test]
fn after_a_kill_page_metric_and_doctor_say_for_a_day_what_nobody_can_know() {
    let (state, spool) = (TempDir::new().unwrap(), Spool::new());
    let drain = "[shutdown]\ndrain_timeout = \"200ms\"\n";
    let in_memory = with_state(&dead_end(drain), state.path());
    let on_disk = dead_end(&spool.queue(drain));
    let killed = |relay: &Relay| relay.metrics().value("last_killed_timestamp_seconds", &[]);
    for (config, life, words, severity) in [
        (in_memory, state.path().join("life"), KILLED_IN_MEMORY, "warn"),
        (on_disk, spool.path().join("life"), KILLED_ON_DISK, "note"),
    ] {
        let mut first = Relay::start(&config);
        assert_eq!((finding(&first, words), killed(&first)), (None, 0.0), "the first life");
        first.stop();
        let mut second = Relay::start(&config);
        assert_eq!((finding(&second, words), killed(&second)), (None, 0.0), "it was stopped");
        second.kill();
        let mut third = Relay::start(&config);
        assert_eq!(finding(&third, words).as_deref(), Some(severity));
        let (at, now) = (killed(&third), status(&third)["time_seconds"].as_f64().unwrap());
        assert!((0.0..60.0).contains(&(now - at)), "{at} of {now}");
        third.wait_for_log(KILLED_IN_LOG, PATIENCE);
        let relay = format!("http://{}", third.admin());
        let said = run_command(&["doctor", "--relay", &relay, "--interval", "0s"], state.path());
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!(said.contains(words), severity == "warn", "{said}");
        third.stop();
        // The next process also reports the kill, until a day has passed.
        let mut fourth = Relay::start(&config);
        assert_eq!(finding(&fourth, words).as_deref(), Some(severity));
        fourth.stop();
        let mut content: Value = serde_json::from_slice(&std::fs::read(&life).unwrap()).unwrap();
        assert_eq!(content["ended"], true);
        content["last_killed"] = (content["last_killed"].as_u64().unwrap() - 86_500).into();
        std::fs::write(&life, content.to_string()).unwrap();
        let mut fifth = Relay::start(&config);
        assert_eq!((finding(&fifth, words), killed(&fifth)), (None, 0.0));
        fifth.stop();
    }
}

/// Method: a relay with its queue in memory ends with events that it could not deliver. The next
/// ones do or do not find its record.
#[test]
fn losses_of_a_process_that_left_no_record_are_said_to_be_unknown_and_those_of_a_record_are_counted()
 {
    let state = TempDir::new().unwrap();
    let in_memory = dead_end("[shutdown]\ndrain_timeout = \"200ms\"\n");
    let with_state = with_state(&in_memory, state.path());
    let end = |config: &str| {
        let mut relay = Relay::start(config);
        assert_eq!(relay.post(&generated_batch(1, 10, 900)).status, 200);
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.wait().code(), Some(1));
        assert_eq!(last_words(&relay)["lost"], 10);
    };
    // The second process begins to keep records: it is the first one that uses the directory.
    end(&in_memory);
    for config in [&in_memory, &with_state] {
        let mut relay = Relay::start(config);
        assert_eq!(status(&relay)["earlier_known"], false);
        assert_eq!(relay.metrics().value("earlier_lost_events", &[]), 0.0);
        let unknown = finding(&relay, "What earlier processes have lost is not known");
        assert_eq!(unknown.as_deref(), Some("note"));
        assert_eq!(finding(&relay, "Every output works, and no accepted event is lost"), None);
        let url = format!("http://{}", relay.admin());
        let said = run_command(&["doctor", "--relay", &url, "--interval", "0s"], state.path());
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let words = format!("what processes of relay {url} before its start at ");
        assert!(said.contains(&words) && !said.ends_with("VERDICT: OK\n"), "{said}");
        relay.stop();
    }
    end(&with_state);
    let mut relay = Relay::start(&with_state);
    assert_eq!(status(&relay)["earlier_known"], true);
    assert_eq!(relay.metrics().value("earlier_lost_events", &[]), 10.0);
    assert_eq!(finding(&relay, &format!("{LOST_BEFORE}10,")).as_deref(), Some("warn"));
    relay.stop();
}

#[test]
fn losses_of_before_a_restart_stay_on_the_page_after_a_stop_and_after_a_kill() {
    let spool = Spool::new();
    let keys = "max_bytes = \"256KiB\"\nsegment_bytes = \"16KiB\"\nwhen_full = \"drop_newest\"\n";
    let config = dead_end(&spool.queue(&format!("{keys}[shutdown]\ndrain_timeout = \"200ms\"")));
    let mut relay = Relay::start(&config);
    let lost = wait_for("a loss", PATIENCE, || {
        assert_eq!(relay.post(&generated_batch(1, 50, 900)).status, 200);
        let lost = relay.metrics().sum("error_total");
        (lost > 0.0).then_some(lost)
    });
    relay.stop();
    let stays = |relay: &Relay| {
        assert_eq!(status(relay)["earlier_lost_events"].as_f64(), Some(lost));
        assert_eq!(status(relay)["lost_events"], 0, "of this process");
        assert_eq!(relay.metrics().value("earlier_lost_events", &[]), lost);
        assert_eq!(finding(relay, &format!("{LOST_BEFORE}{lost},")).as_deref(), Some("warn"));
    };
    let mut second = Relay::start(&config);
    stays(&second);
    second.kill();
    let mut third = Relay::start(&config);
    stays(&third);
    third.stop();
}

#[test]
fn stdout_that_nobody_reads_is_late_on_the_page_and_its_loss_ends_the_process_with_1() {
    let output = "[[output]]\nname = \"stdout\"\ntype = \"stdout\"\n";
    let config = format!("{BASE}[shutdown]\ndrain_timeout = \"1s\"\n{output}");
    let mut relay = Relay::with(&config).stdout(Stdout::Held).start();
    for seed in 0..5 {
        assert_eq!(relay.post(&generated_batch(seed, 100, 1000)).status, 200);
    }
    // An output is late after 30 s.
    wait_until("lateness", PATIENCE * 2, || finding(&relay, "Output stdout is late").is_some());
    assert_eq!(status(&relay)["outputs"][0]["trouble"], "warn");
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1));
    assert!(last_words(&relay)["lost"].as_u64() > Some(0));
}

/// Tests that need root.
mod peers {
    use super::*;

    /// A mount over the cgroups gives the process a limit of 64 MiB, in both versions of cgroups.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn settings_above_the_memory_limit_are_said_with_their_sum_at_the_start_and_by_check() {
        let script = "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && \
                      echo 67108864 | tee /sys/fs/cgroup/memory.max \
                      >/sys/fs/cgroup/memory/memory.limit_in_bytes && exec \"$0\" \"$@\"";
        let words = ["unshare", "--mount", "sh", "-c", script];
        let sum = "allows, with the other settings, 560 MiB of memory (256 queue + 256 \
                   limits.max_in_flight + 32 program + 16 outputs), but the kernel kills the relay \
                   above the memory limit of 64MiB";
        let consumer = HttpSink::accepting();
        let small = "[queue]\nmax_bytes = \"4MiB\"\n[limits]\nmax_in_flight = \"4MiB\"\n";
        for (config, is_told) in
            [(to_sink(consumer.address(), ""), true), (to_sink(consumer.address(), small), false)]
        {
            let relay = Relay::with(&config).launcher(&words).start();
            assert_eq!(relay.metrics().value("memory_limit_bytes", &[]), 67_108_864.0);
            assert_eq!(relay.log_text().contains(sum), is_told, "{}", relay.log_text());
            let mut check = Command::new("unshare");
            check.args(&words[1..]).arg(binary()).arg("check").arg(relay.config_file());
            let output = check.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), said.contains(sum)), (Some(0), is_told), "{said}");
            let elsewhere = check.arg("--elsewhere").output().unwrap();
            assert!(!String::from_utf8_lossy(&elsewhere.stderr).contains(sum));
            relay.finish(Backlog::Empty);
        }
    }
}
