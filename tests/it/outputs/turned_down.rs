//! A consumer that turns down some events, in whatever way, gets all others in time: see "Progress"
//! in docs/concepts/guarantees.md.

use crate::support::peers::SyslogNg;
use crate::support::prelude::*;
use crate::support::relp_sink::{RelpSink, ok};

/// The longest time until all other events are delivered.
const IN_TIME: Duration = Duration::from_secs(90);

/// A short time limit, so that silence takes seconds and not minutes.
const SHORT: &str = "timeouts = { request = \"1s\" }\n[shutdown]\ndrain_timeout = \"200ms\"\n";

/// Each way to turn a request down, except by a refusal (`http_refused`).
fn ways() -> Vec<(&'static str, Answer)> {
    let cut = || Answer::raw(b"HTTP/1.1 ".to_vec()).closing();
    vec![
        ("403", Answer::status(403)),
        ("404", Answer::status(404)),
        ("302", Answer::status(302)),
        ("429", Answer::status(429)),
        ("close", Answer::hang_up()),
        ("reset", Answer::reset()),
        ("half an answer", cut()),
        ("garbage", Answer::raw(b"220 mail.example ESMTP\r\n".to_vec()).closing()),
        ("silence", Answer::never()),
    ]
}

fn aside(relay: &Relay) -> Value {
    let status = http::get(relay.admin(), "/status").unwrap().json();
    status["outputs"][0]["aside"].clone()
}

/// Method: the consumer turns down each request with one of three events. All others must arrive,
/// and the three must be set aside and named, while the output is up.
#[test]
fn three_events_hold_up_no_other_in_whatever_way_they_are_turned_down() {
    for concurrency in [1, 4] {
        for (name, way) in ways() {
            let batches: Vec<_> = (0..3).map(|seed| generated_batch(seed, 30, 900)).collect();
            let all = batches.iter().flat_map(|batch| events_of(batch)).enumerate();
            let (bad, good): (Vec<_>, Vec<_>) =
                all.partition(|(place, _)| [0, 44, 45].contains(place));
            let (bad, good): (BTreeSet<Vec<u8>>, Vec<Vec<u8>>) = (
                bad.into_iter().map(|(_, event)| event).collect(),
                good.into_iter().map(|(_, event)| event).collect(),
            );
            let turned_down = bad.clone();
            let sink = HttpSink::start(move |request| {
                match events_in(request).iter().any(|event| turned_down.contains(event)) {
                    true => way.clone(),
                    false => Answer::status(200),
                }
            });
            let more = format!("concurrency = {concurrency}\n{SHORT}");
            let relay = Relay::start(&to_sink(sink.address(), &more));
            for batch in &batches {
                assert_eq!(relay.post(batch).status, 200);
            }
            // Later events show that the consumer works.
            let mut later = Vec::new();
            let begun = Instant::now();
            let mut seed = 100;
            while of_output(&relay, "output_aside_events") < 3.0 {
                assert!(begun.elapsed() < IN_TIME, "{name}, {concurrency}: {}", relay.log_text());
                seed += 1;
                later.extend(post_batch(&relay, seed, 1, 900));
                std::thread::sleep(Duration::from_millis(100));
            }
            let delivered = (good.len() + later.len()) as f64;
            wait_until("the others are delivered", IN_TIME, || {
                of_output(&relay, "output_events_total") == delivered
            });
            assert_none_missing(&accepted_events(&sink), &[good, later].concat());
            assert_eq!(lost(&relay), 0.0, "{name}");
            let shown = aside(&relay);
            assert_eq!((&shown["events"], &shown["server_errors"]), (&3.into(), &true.into()));
            let named = bad.iter().any(|event| {
                let event: Value = serde_json::from_slice(event).unwrap();
                shown["audit_id"] == event["auditID"]
            });
            assert!(named, "{name}: {shown}");
            relay.finish(Backlog::Stable);
        }
    }
}

/// Method: a proxy resets bodies above a limit, without an answer. The backlog of an outage must
/// arrive, in smaller requests.
#[test]
fn a_proxy_that_resets_large_bodies_gets_smaller_ones() {
    for answer in [Answer::reset(), Answer::hang_up(), Answer::status(403)] {
        let sink = HttpSink::start(move |request| match request.body.len() > 300_000 {
            true => answer.clone(),
            false => Answer::status(200),
        });
        let relay = Relay::start(&to_sink(sink.address(), SHORT));
        let sent: Vec<_> = (0..4).flat_map(|seed| post_batch(&relay, seed, 400, 2_000)).collect();
        wait_until("everything is delivered", IN_TIME, || {
            of_output(&relay, "output_events_total") == sent.len() as f64
        });
        assert_none_missing(&accepted_events(&sink), &sent);
        assert_eq!((lost(&relay), of_output(&relay, "output_aside_events")), (0.0, 0.0));
        relay.finish(Backlog::Empty);
    }
}

/// Method: a client makes a run of events to which the consumer answers 500. The events of others
/// must arrive within seconds.
#[test]
fn a_run_of_events_that_get_500_holds_up_no_other() {
    let sink = refusing(500, |event| event.len() > 2_000);
    let relay = Relay::start(&to_sink(sink.address(), "[shutdown]\ndrain_timeout = \"200ms\"\n"));
    let mut good = Vec::new();
    for seed in 0..5 {
        good.extend(post_batch(&relay, seed, 5, 900));
        post_batch(&relay, 100 + seed, 60, 4_000);
    }
    let begun = Instant::now();
    let mut seed = 1000;
    // Without an event that is taken meanwhile, the rest of the run would look like an outage.
    while of_output(&relay, "output_aside_events") < 300.0 {
        assert!(begun.elapsed() < IN_TIME, "{}", of_output(&relay, "output_aside_events"));
        seed += 1;
        good.extend(post_batch(&relay, seed, 1, 900));
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until("the events of others", IN_TIME, || {
        of_output(&relay, "output_events_total") == good.len() as f64
    });
    assert_none_missing(&accepted_events(&sink), &good);
    assert_eq!(lost(&relay), 0.0);
    relay.finish(Backlog::Stable);
}

/// Method: a receiver of RELP closes the connection at a message above its limit, as rsyslog's
/// imrelp does with `oversizeMode="abort"`.
#[test]
fn a_receiver_of_relp_that_closes_at_a_long_message_gets_the_others() {
    let sink = RelpSink::with(|command| (command.data.len() < 20_000).then(|| ok(command)));
    let output = stream_output("relp", &[sink.address()], "");
    let relay = Relay::start(&format!("{BASE}{output}{SHORT}"));
    others_arrive(&relay, |events| {
        let messages: Vec<Vec<u8>> = sink.commands().into_iter().map(|it| it.data).collect();
        events.iter().all(|event| messages.iter().any(|message| message.ends_with(event)))
    });
}

/// A consumer that may have stored the events, because nobody can read its 200, is asked again only
/// every 30 s. If it answers so about one event alone, the others do not wait for that.
#[test]
fn a_200_that_can_not_be_read_about_one_event_costs_the_others_no_pause() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "t").unwrap();
    for concurrency in [1, 4] {
        let sink = HttpSink::start(|request| {
            let is_bad = memchr::memmem::find(&request.decoded(), b"POISON").is_some();
            let text = if is_bad { r#"{"ok":true}"# } else { r#"{"text":"Success","code":0}"# };
            Answer::status(200).header("Content-Type", "application/json").body(text)
        });
        let keys = format!(
            "type = \"splunk_hec\"\nacknowledge = \"accepted\"\ntoken_file = {:?}\n\
             urls = [\"http://{}\"]\n{SHORT}",
            token.path(),
            sink.address()
        );
        let relay = Relay::start(&format!(
            "{BASE}[[output]]\nname = \"consumer\"\nconcurrency = {concurrency}\n{keys}"
        ));
        post_batch(&relay, 1, 400, 900);
        let bad = r#"{"level":"Metadata","auditID":"1","stage":"Panic","verb":"POISON"}"#;
        assert_eq!(relay.post(bad.as_bytes()).status, 200);
        post_batch(&relay, 2, 400, 900);
        wait_until("the others are delivered", Duration::from_secs(20), || {
            of_output(&relay, "output_events_total") == 800.0
        });
        for seed in 100..120 {
            post_batch(&relay, seed, 1, 900);
            std::thread::sleep(Duration::from_millis(50));
        }
        wait_until("later events are delivered", Duration::from_secs(20), || {
            of_output(&relay, "output_events_total") == 820.0
        });
        assert_eq!(lost(&relay), 0.0);
    }
}

/// Method: the consumer stores the events, and its 200 is longer than what is read. The same
/// request would get the same answer, so each event may arrive twice at first: with the others, and
/// alone.
#[test]
fn a_200_that_is_too_long_to_read_is_asked_for_again_after_a_pause() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "t").unwrap();
    let splunk = format!(
        "type = \"splunk_hec\"\nacknowledge = \"accepted\"\ntoken_file = {:?}\n",
        token.path()
    );
    for (kind, bytes) in
        [("type = \"otlp\"\n", 3 << 20), (&splunk, 100 << 10), ("type = \"loki\"\n", 100 << 10)]
    {
        let sink = HttpSink::start(move |_| {
            let text = format!(r#"{{"text":"{}","code":0}}"#, "w".repeat(bytes));
            Answer::status(200).header("Content-Type", "application/json").body(text)
        });
        let relay = Relay::start(&format!(
            "{BASE}[[output]]\nname = \"consumer\"\nconcurrency = 1\n{kind}\
             urls = [\"http://{}\"]\n{SHORT}",
            sink.address()
        ));
        let sent = post_batch(&relay, 1, 20, 900);
        let told = relay.wait_for_log("output down, events are kept", PATIENCE);
        assert!(told["error"].as_str().unwrap().contains("too long to read"), "{told}");
        std::thread::sleep(Duration::from_secs(2));
        let bodies: Vec<_> = sink.requests().iter().map(|it| it.decoded()).collect();
        for event in sent {
            let event: Value = serde_json::from_slice(&event).unwrap();
            let id = event["auditID"].as_str().unwrap().to_owned();
            let copies =
                bodies.iter().filter(|it| memchr::memmem::find(it, id.as_bytes()).is_some());
            assert!((1..=2).contains(&copies.count()), "{kind}");
        }
        relay.finish(Backlog::Stable);
    }
}

/// Posts 60 events, one of which is too long for the receiver, and then one event after the other
/// until that one is set aside. All others must be there.
fn others_arrive(relay: &Relay, have_arrived: impl Fn(&[Vec<u8>]) -> bool) {
    let mut good = post_batch(relay, 1, 30, 900);
    post_batch(relay, 2, 1, 70_000);
    good.extend(post_batch(relay, 3, 29, 900));
    let begun = Instant::now();
    let mut seed = 100;
    while of_output(relay, "output_aside_events") == 0.0 {
        assert!(begun.elapsed() < 2 * IN_TIME, "{}", relay.log_text());
        seed += 1;
        good.extend(post_batch(relay, seed, 1, 900));
        std::thread::sleep(Duration::from_millis(200));
    }
    wait_until("the others arrive", IN_TIME, || have_arrived(&good));
    assert_eq!(lost(relay), 0.0);
    assert_eq!(aside(relay)["events"], 1);
}

/// Tests that need peers.
mod peers {
    use super::*;

    /// syslog-ng closes the connection at a message above `log-msg-size`, 64 KiB by default.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn syslog_ng_that_closes_at_a_long_message_gets_the_others() {
        let certificates = Certificates::new();
        let syslog_ng = SyslogNg::with_limit(65_536, Security::Plain, &certificates);
        let output = stream_output("syslog", &[syslog_ng.address()], "replay_window = \"200ms\"\n");
        let relay = Relay::start(&format!("{BASE}{output}{SHORT}"));
        others_arrive(&relay, |events| {
            let messages: BTreeSet<_> = syslog_ng.messages().into_iter().collect();
            events.iter().all(|event| messages.contains(event))
        });
    }
}

/// Method: a balancer of connections, such as a Service of Kubernetes. Each second connection leads
/// to a node that takes nothing and keeps the connection; the others lead to one that works.
#[test]
fn a_connection_to_a_node_that_takes_nothing_is_not_kept() {
    let statuses = [401, 403, 408, 429, 500, 502, 503];
    for (concurrency, status) in statuses.into_iter().flat_map(|status| [(1, status), (4, status)])
    {
        let sink = HttpSink::start(move |request| {
            Answer::status(if request.connection % 2 == 0 { status } else { 200 })
        });
        let more = format!("concurrency = {concurrency}\n[shutdown]\ndrain_timeout = \"200ms\"\n");
        let relay = Relay::start(&to_sink(sink.address(), &more));
        let sent: Vec<_> = (0..5).flat_map(|seed| post_batch(&relay, seed, 20, 900)).collect();
        relay.wait_until_delivered(PATIENCE);
        assert_none_missing(&accepted_events(&sink), &sent);
        assert_eq!(lost(&relay), 0.0, "{status}, {concurrency}");
        relay.finish(Backlog::Empty);
    }
}
