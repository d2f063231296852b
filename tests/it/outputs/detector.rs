//! `config/detector.toml`: events go to a store, and a copy goes to a detector that answers with
//! 200 before it has judged them. The detector is [`Falco`]. `docs/destinations/detector.md` states
//! the results.

use crate::support::falco::{BODIES_MAX, DEFAULTS, Falco, Limits};
use crate::support::metrics::assert_conservation;
use crate::support::prelude::*;
use crate::support::requests::shipped;
use crate::support::server::Options;

/// A relay with the shipped config, its two consumers, and the events that were posted.
struct Fed {
    relay: Relay,
    store: TcpSink,
    falco: Falco,
    sent: Vec<Vec<u8>>,
}

impl Fed {
    fn start(falco: Falco, more: &[(&str, &str)]) -> Self {
        let store = TcpSink::start();
        let [to_store, to_falco] = [store.address(), falco.address()].map(|it| it.to_string());
        let consumers = [
            ("logstash.example.com:5000", to_store.as_str()),
            ("falco.example.com:9765", to_falco.as_str()),
        ];
        let config = shipped("detector.toml", &[&consumers[..], more].concat());
        let relay = Relay::start(&format!("{config}[shutdown]\ndrain_timeout = \"500ms\"\n"));
        Self { relay, store, falco, sent: Vec::new() }
    }

    fn post(&mut self, batch: &[u8]) {
        let answer = self.relay.post(batch);
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.sent.extend(events_of(batch));
    }

    /// Waits until the detector has no backlog, and until its rules have seen as many events as the
    /// relay has delivered.
    fn settle(&self) -> Metrics {
        let metrics = self.relay.wait_for_metrics("the detector", PATIENCE, |metrics| {
            (of_falco(metrics, "output_backlog_events") == 0.0).then(|| metrics.clone())
        });
        wait_until("the rules", PATIENCE, || {
            let seen = self.falco.seen();
            seen.judged.len() + seen.log.len() >= delivered(&metrics)
        });
        metrics
    }

    /// Checks that the store has every event, in order, and that events are lost only for the
    /// detector.
    fn assert_stored(&self) {
        self.relay.wait_until_delivered(PATIENCE);
        wait_until("the last event", PATIENCE, || self.store.count() >= self.sent.len());
        assert!(self.store.lines() == self.sent, "the store got something else");
        let metrics = self.relay.metrics();
        assert_conservation(&metrics, &["store", "falco"]);
        assert_eq!(metrics.sum("error_total"), of_plugin(&metrics), "another loss");
        assert_eq!(metrics.sum("requests_rejected_total"), 0.0);
    }
}

fn of_falco(metrics: &Metrics, name: &str) -> f64 {
    metrics.value(name, &[("output", "falco")])
}

fn of_plugin(metrics: &Metrics) -> f64 {
    metrics.value("error_total", &[("plugin", "falco")])
}

fn delivered(metrics: &Metrics) -> usize {
    metrics.count("output_events_total", &[("output", "falco")]).try_into().expect("a count")
}

fn lost(metrics: &Metrics) -> usize {
    metrics.count("error_total", &[("plugin", "falco")]).try_into().expect("a count")
}

/// Method: one event of the recorded corpus is larger than the detector accepts. The store must get
/// every event unchanged, and the detector must judge each one: the large event without its bodies.
/// This runs over HTTP and over HTTPS.
#[test]
fn every_event_arrives_at_the_store_and_at_the_detector() {
    let certificates = Certificates::new();
    let tls = Options { tls: Some(certificates.server.server_config()), ..Options::default() };
    let secure = format!("format = \"event_list\"\ntls = {{ ca = {:?} }}", certificates.ca);
    let secure =
        [("http://127.0.0.1", "https://127.0.0.1"), ("format = \"event_list\"", secure.as_str())];
    for (options, more) in [(Options::default(), &[][..]), (tls, &secure[..])] {
        let mut fed = Fed::start(Falco::start(options, DEFAULTS), more);
        for body in corpus() {
            fed.post(&body.bytes);
        }
        fed.assert_stored();
        let metrics = fed.settle();
        assert_eq!((delivered(&metrics), lost(&metrics)), (fed.sent.len(), 0));
        let trimmed = [("output", "falco"), ("action", "trimmed")];
        let seen = fed.falco.seen();
        assert_eq!(seen.log, [""; 0]);
        let mut large = 0;
        for (sent, judged) in fed.sent.iter().zip(&seen.judged) {
            if sent.len() <= DEFAULTS.event_bytes {
                assert!(sent == judged, "{}", String::from_utf8_lossy(judged));
                continue;
            }
            large += 1;
            let [sent, judged] =
                [sent, judged].map(|event| serde_json::from_slice::<Value>(event).unwrap());
            assert_eq!(judged["auditID"], sent["auditID"]);
            assert_eq!(judged["annotations"]["audit.k8s.io/truncated"], "true");
            assert_eq!(judged["responseObject"], Value::Null);
        }
        assert!(large > 0);
        assert_eq!(metrics.count("filtered_events_total", &trimmed), large);
        drop(seen);
        fed.relay.finish(Backlog::Empty);
    }
}

/// Method: a batch of 14 MB is larger than the detector's limit for a request. Then the detector's
/// limit is lower than the config assumes.
#[test]
fn a_batch_larger_than_the_detector_takes_is_split() {
    let mut fed = Fed::start(Falco::start(Options::default(), DEFAULTS), &[]);
    let batch = generated_batch(1, 1400, 10_000);
    assert!(batch.len() > DEFAULTS.batch_bytes);
    fed.post(&batch);
    fed.assert_stored();
    fed.settle();
    assert!(fed.falco.seen().judged == fed.sent);
    for request in fed.falco.sink.requests() {
        assert!(request.is_accepted() && request.body.len() < 1024 * 1024 + 1024);
    }
    fed.relay.finish(Backlog::Empty);

    let small = Limits { batch_bytes: 32 * 1024, ..DEFAULTS };
    let mut fed = Fed::start(Falco::start(Options::default(), small), &[]);
    fed.post(&generated_batch(2, 100, 1000));
    fed.assert_stored();
    assert_eq!(lost(&fed.settle()), 0);
    assert!(!fed.falco.sink.requests()[0].is_accepted(), "100 KB in one request");
    assert_same_set(&fed.falco.seen().judged, &fed.sent);
    fed.relay.finish(Backlog::Empty);
}

fn event(user_agent: &str) -> String {
    let batch = generated_batch(3, 1, 1000);
    String::from_utf8(events_of(&batch).remove(0)).unwrap().replace("generated/1.0", user_agent)
}

fn list(events: &[String]) -> Vec<u8> {
    let events = events.join(",");
    format!(r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{events}]}}"#).into()
}

/// Method: even without its bodies, an event is larger than the detector accepts. With the shipped
/// config, the relay cuts it. Without `max_event_bytes`, the detector answers with 200 and skips
/// it, and the relay counts no loss.
#[test]
fn an_event_larger_than_the_detector_takes_is_cut_if_the_relay_knows_the_limit() {
    let events = [event("one"), event(&"x".repeat(300_000)), event("three")];
    let without = [("filter = { max_event_bytes = \"256KiB\" }", "")];
    for (more, is_known) in [(&[][..], true), (&without[..], false)] {
        let mut fed = Fed::start(Falco::start(Options::default(), DEFAULTS), more);
        fed.post(&list(&events));
        fed.assert_stored();
        let metrics = fed.settle();
        assert_eq!((lost(&metrics), delivered(&metrics)), (0, 3));
        let mut seen = fed.falco.seen();
        assert_eq!(seen.log.len(), usize::from(!is_known), "{:?}", seen.log);
        if is_known {
            let cut: Value = serde_json::from_slice(&seen.judged.remove(1)).unwrap();
            assert_eq!(cut["annotations"]["audit.k8s.io/truncated"], "true");
            let agent = cut["userAgent"].as_str().unwrap();
            assert!(agent.starts_with("xxx") && agent.ends_with("x…[cut, 300000 bytes]"));
        }
        assert!(seen.judged == [fed.sent[0].clone(), fed.sent[2].clone()]);
        drop(seen);
        fed.relay.finish(Backlog::Empty);
    }
}

/// Method: a body is nested too deeply for the detector's parser. The parser rejects the whole
/// request after the answer with 200. `batch.max_events` limits how many events a client can hide
/// in this way.
#[test]
fn a_body_that_the_detector_cannot_parse_hides_its_whole_request_and_no_more() {
    let mut fed = Fed::start(Falco::start(Options::default(), DEFAULTS), &[]);
    let nested = format!("{}0{}", "[".repeat(400), "]".repeat(400));
    let deep = event("deep").replacen(
        "\"requestObject\":{",
        &format!("\"requestObject\":{{\"deep\":{nested},"),
        1,
    );
    assert!(deep.contains("[[[["));
    let mut events: Vec<String> = (0..150).map(|number| event(&format!("{number}"))).collect();
    events[7] = deep;
    fed.post(&list(&events));
    fed.assert_stored();
    let metrics = fed.relay.wait_for_metrics("the detector", PATIENCE, |metrics| {
        (of_falco(metrics, "output_backlog_events") == 0.0).then(|| metrics.clone())
    });
    assert_eq!((lost(&metrics), delivered(&metrics)), (0, 150), "it said 200");
    wait_until("the rules", PATIENCE, || fed.falco.seen().judged.len() == 50);
    assert!(fed.falco.seen().judged == fed.sent[100..]);
    assert_eq!(fed.falco.seen().log.len(), 1);
    fed.relay.finish(Backlog::Empty);
}

/// The fault of a detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dead {
    Nothing,
    /// The detector refuses connections.
    Refused,
    /// The detector accepts requests, and never answers.
    Silent,
    /// The detector answers until its buffer is full, and judges nothing.
    Slow,
}

/// A small queue. The test's events fill its 2 MiB 4.5 times. In ten minutes, 4,000 events/s of 1
/// kB would fill the config's 256 MiB about nine times.
const ROOM: (&str, &str) = ("max_bytes = \"256MiB\"", "max_bytes = \"2MiB\"");
/// As shipped, an event is delivered once it has been on the wire for a second, and the test would
/// wait that long after each batch.
const SHORT_WINDOW: (&str, &str) = ("type = \"tcp\"", "type = \"tcp\"\nreplay_window = \"50ms\"");
/// As shipped, the pause between two attempts grows to 45 s, and a request without an answer is
/// sent again after a minute. A busy machine can need as long for the batches.
const PATIENT: (&str, &str) = (
    "format = \"event_list\"",
    "format = \"event_list\"\nretry = { max_interval = \"1s\" }\n\
     timeouts = { request = \"10m\" }",
);
const BATCHES: u64 = 60;
const EVENTS: usize = 160;

/// Posts all batches while the detector has this fault. Returns the mean time in seconds until the
/// store had an event.
fn feed(dead: Dead) -> f64 {
    let mut fed =
        Fed::start(Falco::start(Options::default(), DEFAULTS), &[ROOM, SHORT_WINDOW, PATIENT]);
    let is_silent = Arc::new(AtomicBool::new(dead == Dead::Silent));
    fed.falco.sink.stand_in_front({
        let is_silent = Arc::clone(&is_silent);
        move |request, consumer| match is_silent.load(Ordering::Relaxed) {
            true => Answer::never(),
            false => consumer(request),
        }
    });
    match dead {
        Dead::Nothing | Dead::Silent => {}
        Dead::Refused => fed.falco.sink.close(),
        Dead::Slow => fed.falco.stand(true),
    }
    for seed in 0..BATCHES {
        fed.post(&generated_batch(seed, EVENTS, 1000));
        fed.relay.wait_until_delivered(PATIENCE);
        let metrics = fed.relay.metrics();
        let store = [("output", "store")];
        assert_eq!(metrics.value("output_lag_seconds", &store), 0.0, "{dead:?}");
        assert_eq!(metrics.count("output_events_total", &store), fed.sent.len() as u64);
        let capacity = metrics.value("queue_capacity_bytes", &[]);
        assert!(metrics.value("queue_bytes", &[]) <= capacity);
        assert!(metrics.value("queue_needed_bytes", &[]) < capacity / 5.0);
    }
    fed.assert_stored();
    let metrics = fed.relay.metrics();
    let time = metrics.value("output_delivery_seconds_sum", &[("output", "store")]);
    if dead == Dead::Nothing {
        assert_eq!(lost(&fed.settle()), 0);
    } else {
        assert!(lost(&metrics) > fed.sent.len() / 4, "{dead:?}: it has lost {}", lost(&metrics));
        assert!(of_falco(&metrics, "output_lag_seconds") > 0.0);
    }

    // The detector works again, and gets the newest events, which the queue still has.
    is_silent.store(false, Ordering::Relaxed);
    fed.falco.stand(false);
    match dead {
        Dead::Nothing | Dead::Slow => {}
        Dead::Refused => fed.falco.sink.reopen(),
        Dead::Silent => fed.falco.sink.close_connections(),
    }
    let metrics = fed.settle();
    assert_eq!(delivered(&metrics) + lost(&metrics), fed.sent.len(), "{dead:?}");
    assert_conservation(&metrics, &["store", "falco"]);
    // A request that was on the wire is judged too, so the number of judged events does not show
    // the end.
    wait_until("the newest event", PATIENCE, || fed.falco.seen().judged.last() == fed.sent.last());
    let seen = fed.falco.seen();
    assert_eq!(seen.log, [""; 0]);
    // Events that were on the wire when the queue dropped them count as lost, but the slow detector
    // has accepted them.
    let on_wire = if dead == Dead::Slow { 100 } else { 0 };
    let beyond = seen.judged.len() - delivered(&metrics);
    assert!(beyond <= on_wire, "{dead:?}: {beyond} more were judged than delivered");
    let first = match dead {
        Dead::Slow => seen.judged.iter().zip(&fed.sent).take_while(|(a, b)| a == b).count(),
        Dead::Nothing | Dead::Refused | Dead::Silent => 0,
    };
    assert!(dead != Dead::Slow || first >= BODIES_MAX, "{first} were taken at first");
    let rest = seen.judged.len() - first;
    assert!(seen.judged[first..] == fed.sent[fed.sent.len() - rest..], "{dead:?}: not the newest");
    drop(seen);
    fed.relay.finish(Backlog::Empty);
    time / fed.sent.len() as f64
}

/// Method: batches that fill the queue several times are posted as fast as the store accepts them.
/// The detector works, refuses connections, is silent or does not judge. After each batch the store
/// must have everything. Only the detector loses events. The loss must be counted exactly, and the
/// detector must get the newest events once it works again.
#[test]
fn ten_minutes_of_a_dead_detector_leave_the_trail_as_it_is() {
    let well = feed(Dead::Nothing);
    for dead in [Dead::Refused, Dead::Silent, Dead::Slow] {
        let mean = feed(dead);
        assert!(
            mean < well + 0.25,
            "{dead:?}: {mean} s instead of {well} s until the store has it"
        );
    }
}
