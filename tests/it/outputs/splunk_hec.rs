//! `type = "splunk_hec"`: an event is final once the indexer has confirmed it, and not before.
//! `tests/sim` tests all kinds of answers.

use crate::support::letters::events_in_letters;
use crate::support::peers::{Haproxy, forwarder};
use crate::support::prelude::*;
use crate::support::splunk::{Acks, Balancer, Mood, Script, Splunk, TOKEN, to_splunk};

/// Short intervals, so that tests do not wait long.
const FAST: &str = "ack_interval = \"100ms\"\nretry.initial_interval = \"10ms\"\n\
                    retry.max_interval = \"100ms\"";

/// A directory with the token's file, and with a directory for dead letters.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join("letters")).unwrap();
        std::fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        text(&self.directory.path().join(name)).to_owned()
    }

    fn config(&self, splunk: &Splunk, more: &str) -> String {
        self.config_to(splunk.address(), more)
    }

    fn config_to(&self, address: SocketAddr, more: &str) -> String {
        format!(
            "{BASE}{}[dead_letter]\ndirectory = \"{}\"\n",
            to_splunk(address, &self.path("token"), &format!("{FAST}\n{more}")),
            self.path("letters")
        )
    }

    fn letters(&self) -> Vec<Vec<u8>> {
        events_in_letters(&self.directory.path().join("letters"))
    }
}

/// Asserts that the collector has indexed each of these events, maybe more than once, and no other.
fn assert_indexed(splunk: &Splunk, sent: &[Vec<u8>]) {
    let indexed: BTreeSet<_> = splunk.store().indexed.iter().cloned().collect();
    assert_same_set(&indexed.into_iter().collect::<Vec<_>>(), sent);
}

#[test]
fn the_corpus_arrives_with_its_envelopes_and_is_final_when_it_is_indexed() {
    let (files, may_index) = (Files::new(), Arc::new(AtomicBool::new(false)));
    let indexes = Arc::clone(&may_index);
    let splunk = Splunk::start(Script {
        indexes: Box::new(move || indexes.load(Ordering::SeqCst)),
        ..Script::default()
    });
    let more = "index = \"audit\"\nfields = { cluster = \"a \\\"b\\\"\" }\ncompression = \"gzip\"";
    let relay = Relay::start(&files.config(&splunk, more));
    let sent = post_corpus(&relay);
    // The collector has accepted more requests than there are connections, and no event is final.
    let all = |store: &[usize]| store.iter().sum::<usize>() == sent.len();
    wait_until("all events to be taken", PATIENCE, || all(&splunk.store().requests));
    wait_until("some questions", PATIENCE, || splunk.store().questions.len() > 3);
    assert!(splunk.store().waiting() > 4, "{} requests wait", splunk.store().waiting());
    assert_eq!((of_output(&relay, "output_events_total"), splunk.store().indexed.len()), (0.0, 0));
    may_index.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    let store = splunk.store();
    assert_same_set(&store.indexed, &sent);
    assert!(store.questions.iter().any(|asked| *asked > 1), "{:?}", store.questions);
    for envelope in &store.envelopes {
        let wanted = BTreeMap::from([
            ("time".to_owned(), envelope["time"].clone()),
            ("host".to_owned(), "\"h\"".to_owned()),
            ("source".to_owned(), "\"kubernetes\"".to_owned()),
            ("sourcetype".to_owned(), "\"_json\"".to_owned()),
            ("index".to_owned(), "\"audit\"".to_owned()),
            ("fields".to_owned(), r#"{"cluster":"a \"b\""}"#.to_owned()),
        ]);
        assert_eq!(*envelope, wanted);
    }
    drop(store);
    assert_eq!(of_output(&relay, "output_events_total"), sent.len() as f64);
    relay.finish(Backlog::Empty);
}

/// Method: one event in the middle of a batch is bad. The collector has accepted the events before
/// it, and has not read the events after it.
#[test]
fn a_bad_event_in_the_middle_costs_nothing_but_itself() {
    for (acknowledge, acks, repeats) in [("accepted", Acks::Off, 0), ("indexed", Acks::On, 10)] {
        let files = Files::new();
        let is_bad: fn(&[u8]) -> bool =
            |event| event.windows(14).any(|part| part == b"generated-10\",");
        let splunk = Splunk::start(Script { acks, is_bad, ..Script::default() });
        let more = format!("acknowledge = \"{acknowledge}\"");
        let relay = Relay::start(&files.config(&splunk, &more));
        let body = generated_batch(1, 20, 700);
        let events = events_of(&body);
        assert_eq!(events.iter().filter(|event| is_bad(event)).count(), 1, "{events:?}");
        assert_eq!(relay.post(&body).status, 200);
        relay.wait_until_delivered(PATIENCE);
        let good: Vec<_> = events.iter().filter(|event| !is_bad(event)).cloned().collect();
        let bad: Vec<_> = events.iter().filter(|event| is_bad(event)).cloned().collect();
        let store = splunk.store();
        let once: BTreeSet<_> = store.indexed.iter().cloned().collect();
        assert_same_set(&once.into_iter().collect::<Vec<_>>(), &good);
        assert!(store.indexed.len() <= good.len() + repeats, "{acknowledge}");
        assert_eq!(store.questions.is_empty(), acknowledge == "accepted", "who is asked");
        assert_same_set(&files.letters(), &bad);
        drop(store);
        relay.finish(Backlog::Empty);
    }
}

/// Returns how often each event was indexed.
fn times_indexed(splunk: &Splunk) -> BTreeMap<Vec<u8>, usize> {
    let mut times = BTreeMap::new();
    for event in &splunk.store().indexed {
        *times.entry(event.clone()).or_default() += 1;
    }
    times
}

/// Method: about one event of a hundred is bad, so that most requests have several bad events. The
/// events that the collector accepted before a bad event have no `ackId`. They may be indexed once
/// more, but not again for each later bad event.
#[test]
fn an_event_before_bad_ones_is_indexed_twice_at_most() {
    let is_bad: fn(&[u8]) -> bool = |event| {
        let add = |sum: u32, byte: &u8| sum.wrapping_mul(31).wrapping_add(u32::from(*byte));
        event.iter().fold(0, add) % 97 == 0
    };
    for (acknowledge, acks, most) in [("indexed", Acks::On, 2), ("accepted", Acks::Off, 1)] {
        let files = Files::new();
        let splunk = Splunk::start(Script { acks, is_bad, ..Script::default() });
        let more = format!("acknowledge = \"{acknowledge}\"");
        let relay = Relay::start(&files.config(&splunk, &more));
        let sent = post_batches(&relay, 0..25, 398, 700);
        relay.wait_until_delivered(PATIENCE);
        let (bad, good): (Vec<_>, Vec<_>) = sent.into_iter().partition(|event| is_bad(event));
        assert!(bad.len() > 50, "{} bad events", bad.len());
        let times = times_indexed(&splunk);
        let indexed: usize = times.values().sum();
        let requests = splunk.store().requests.len();
        eprintln!("{} bad, {indexed} of {} indexed, {requests} requests", bad.len(), good.len());
        assert_same_set(&times.keys().cloned().collect::<Vec<_>>(), &good);
        let often = times.values().max().copied().unwrap_or_default();
        assert!(often <= most, "{acknowledge}: an event was indexed {often} times");
        assert_same_set(&files.letters(), &bad);
        assert!(
            errors(&relay, "item") >= bad.len() as f64,
            "each bad event is an error of an item"
        );
        assert_eq!(errors(&relay, "status_4xx"), 0.0);
        relay.finish(Backlog::Empty);
    }
}

/// Method: in each of three requests, the collector accepts seven events and then answers that it
/// is busy. The relay must not send these events again with the others.
#[test]
fn what_a_busy_collector_took_does_not_go_again_with_the_rest() {
    for (acknowledge, acks, most) in [("indexed", Acks::On, 2), ("accepted", Acks::Off, 1)] {
        let (files, mut requests) = (Files::new(), 0);
        let mood = move || {
            requests += 1;
            if requests <= 3 { Mood::BusyAfter(7) } else { Mood::Serves }
        };
        let splunk = Splunk::start(Script { acks, mood: Box::new(mood), ..Script::default() });
        let more = format!("acknowledge = \"{acknowledge}\"");
        let relay = Relay::start(&files.config(&splunk, &more));
        let sent = post_batch(&relay, 1, 40, 700);
        relay.wait_until_delivered(PATIENCE);
        let times = times_indexed(&splunk);
        assert_same_set(&times.keys().cloned().collect::<Vec<_>>(), &sent);
        let often = times.values().max().copied().unwrap_or_default();
        assert!(often <= most, "{acknowledge}: an event was indexed {often} times");
        assert!(errors(&relay, "status_5xx") >= 1.0);
        assert_eq!(lost(&relay), 0.0);
        relay.finish(Backlog::Empty);
    }
}

/// Method: a setting is wrong: the token, its acknowledgement, its indexes or the header. The relay
/// must not give up an event, the log must say what is wrong, and the events must arrive after the
/// repair.
#[test]
fn a_wrong_setting_is_told_and_costs_no_event() {
    for (status, code, words) in [
        (400, 14, "turn it on in Splunk"),
        (403, 4, "Splunk does not know the token"),
        (400, 7, "may not write to this index"),
        (401, 2, "Authorization header is missing or wrong"),
    ] {
        let (files, is_well) = (Files::new(), Arc::new(AtomicBool::new(false)));
        let well = Arc::clone(&is_well);
        let splunk = Splunk::start(Script {
            mood: Box::new(move || match well.load(Ordering::SeqCst) {
                true => Mood::Serves,
                false => Mood::Refuses(status, code),
            }),
            ..Script::default()
        });
        let relay = Relay::start(&files.config(&splunk, ""));
        let sent = post_batch(&relay, 1, 40, 700);
        wait_until("attempts", PATIENCE, || errors(&relay, "status_4xx") > 5.0);
        assert_eq!(lost(&relay), 0.0);
        is_well.store(true, Ordering::SeqCst);
        relay.wait_until_delivered(PATIENCE);
        assert_same_set(&splunk.store().indexed, &sent);
        wait_until(words, PATIENCE, || relay.log_text().contains(words));
        let log = relay.finish(Backlog::Empty);
        assert!(!log.contains(TOKEN), "code {code}: {log}");
    }
}

/// The time of each request, with its events.
type Taken = Vec<(Instant, Vec<Vec<u8>>)>;

/// A collector whose token has indexer acknowledgement on or off. If off, the collector ignores the
/// channel, as Splunk does, and its answers have no `ackId`. It indexes every event that it
/// accepts.
struct Token {
    sink: HttpSink,
    is_on: Arc<AtomicBool>,
    indexed: Arc<Mutex<Taken>>,
}

impl Token {
    /// `says` answers a query for indexed requests while acknowledgement is off.
    fn start(is_on: bool, says: fn() -> Answer) -> Self {
        let (is_on, indexed) = (Arc::new(AtomicBool::new(is_on)), Arc::<Mutex<Taken>>::default());
        let (on, taken) = (Arc::clone(&is_on), Arc::clone(&indexed));
        let sink = HttpSink::start(move |request| {
            let said = |status, text: Value| Answer::status(status).body(text.to_string());
            let is_on = on.load(Ordering::SeqCst);
            if is_on && request.header("x-splunk-request-channel").is_none() {
                return said(400, json!({"text": "Data channel is missing", "code": 10}));
            }
            let body = request.decoded();
            if request.target.ends_with("/ack") {
                let asked: BTreeMap<String, Vec<u64>> = serde_json::from_slice(&body).unwrap();
                let acks: BTreeMap<_, _> = asked["acks"].iter().map(|it| (it, true)).collect();
                return if is_on { said(200, json!({"acks": acks})) } else { says() };
            }
            let mut events = Vec::new();
            for envelope in serde_json::Deserializer::from_slice(&body).into_iter() {
                let envelope: BTreeMap<String, Box<serde_json::value::RawValue>> =
                    envelope.unwrap();
                events.push(envelope["event"].get().as_bytes().to_vec());
            }
            if events.is_empty() {
                return said(400, json!({"text": "No data", "code": 5}));
            }
            let mut indexed = taken.lock().unwrap();
            indexed.push((Instant::now(), events));
            let mut answer = json!({"text": "Success", "code": 0});
            if is_on {
                answer["ackId"] = indexed.len().into();
            }
            said(200, answer)
        });
        Self { sink, is_on, indexed }
    }

    fn events(&self) -> Vec<Vec<u8>> {
        self.indexed.lock().unwrap().iter().flat_map(|(_, events)| events.clone()).collect()
    }

    /// Returns how often the most repeated event was indexed.
    fn copies(&self) -> usize {
        let mut times = BTreeMap::<_, usize>::new();
        for event in self.events() {
            *times.entry(event).or_default() += 1;
        }
        times.into_values().max().unwrap_or_default()
    }

    /// Asserts that the collector has exactly these events, each at most `copies_max` times.
    fn assert_has(&self, sent: &[Vec<u8>], copies_max: usize) {
        let indexed: BTreeSet<_> = self.events().into_iter().collect();
        assert_same_set(&indexed.into_iter().collect::<Vec<_>>(), sent);
        assert!(self.copies() <= copies_max, "an event was indexed {} times", self.copies());
    }
}

const ACK_IS_OFF: fn() -> Answer =
    || Answer::status(400).body(r#"{"text":"ACK is disabled","code":14}"#);

/// Method: acknowledgement is off for the token, and Splunk indexes the events that it gets.
/// Retries must not index them again until acknowledgement is on.
#[test]
fn a_token_without_acknowledgement_indexes_events_once_and_is_asked_until_it_has_one() {
    let (files, token) = (Files::new(), Token::start(false, ACK_IS_OFF));
    let relay = Relay::start(&files.config_to(token.sink.address(), ""));
    let mut sent = post_batch(&relay, 1, 40, 700);
    let line = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
    for words in ["useACK = true", "acknowledge = \\\"accepted\\\""] {
        assert!(line.contains(words), "{words}: {line}");
    }
    sent.extend(post_batch(&relay, 2, 40, 700));
    wait_until("attempts", PATIENCE, || errors(&relay, "status_4xx") > 10.0);
    assert_eq!(token.copies(), 1, "the events of the first attempt, and no others");
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let error = status["outputs"][0]["last_error"].as_str().unwrap();
    assert!(error.contains("set acknowledge = \"accepted\""), "{error}");
    assert_eq!((of_output(&relay, "output_events_total"), lost(&relay)), (0.0, 0.0));
    token.is_on.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    token.assert_has(&sent, 2);
    relay.finish(Backlog::Empty);
}

/// Method: queries for indexed requests succeed, but no answer to events has an `ackId`.
#[test]
fn events_without_a_number_are_sent_again_after_pauses_that_grow() {
    let says = || Answer::status(200).body(r#"{"acks":{"0":false}}"#);
    let (files, token) = (Files::new(), Token::start(false, says));
    let relay = Relay::start(&files.config_to(token.sink.address(), ""));
    let sent = post_batch(&relay, 1, 40, 700);
    wait_until("a third attempt", PATIENCE, || token.copies() >= 3);
    std::thread::sleep(Duration::from_secs(2));
    let times: Vec<_> = token.indexed.lock().unwrap().iter().map(|(at, _)| *at).collect();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, seconds) in pauses.iter().zip([0.0, 4.9, 9.9, 19.9]) {
        assert!(pause.as_secs_f64() >= seconds, "{pauses:?}");
    }
    token.is_on.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    token.assert_has(&sent, pauses.len() + 2);
    relay.finish(Backlog::Empty);
}

/// Method: a proxy passes events on, and answers queries for indexed requests with 404.
#[test]
fn events_are_not_sent_again_while_nobody_can_say_what_is_indexed() {
    let (files, token) = (Files::new(), Token::start(true, ACK_IS_OFF));
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    token.sink.stand_in_front(move |request, collector| {
        match request.target.ends_with("/ack") && !opened.load(Ordering::SeqCst) {
            true => Answer::status(404),
            false => collector(request),
        }
    });
    let relay = Relay::start(&files.config_to(token.sink.address(), "ack_timeout = \"1s\""));
    let sent = post_batch(&relay, 1, 40, 700);
    let words = "(the request was for /services/collector/ack)";
    wait_until("the reason in the log", PATIENCE, || relay.log_text().contains(words));
    let asked = errors(&relay, "status_4xx");
    wait_until("attempts", PATIENCE, || errors(&relay, "status_4xx") > asked + 10.0);
    assert_eq!(token.copies(), 1);
    is_open.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    token.assert_has(&sent, 2);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_token_with_acknowledgement_leads_to_the_key_that_asks_for_it() {
    let (files, token) = (Files::new(), Token::start(true, ACK_IS_OFF));
    let config = files.config_to(token.sink.address(), "acknowledge = \"accepted\"");
    let file = files.path("relay.toml");
    std::fs::write(&file, &config).unwrap();
    let words =
        "code 10: indexer acknowledgement is on for this token: set acknowledge = \"indexed\"";
    let Said { code, stderr, .. } =
        said(&["check", "--connect", "--config", &file], Path::new("/"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(words.trim_start_matches("code 10: ")), "{stderr}");
    let relay = Relay::start(&config);
    post_batch(&relay, 1, 40, 700);
    relay.wait_for_log("output down, events are kept", PATIENCE);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let error = status["outputs"][0]["last_error"].as_str().unwrap();
    assert!(error.contains(words), "{error}");
    assert_eq!(lost(&relay), 0.0);
    relay.settle(Backlog::Stable);
}

/// Method: the collector accepts events and indexes none until `ack_timeout` has passed. After
/// that, it indexes every event.
#[test]
fn events_that_are_not_indexed_in_time_are_sent_again() {
    let (files, may_index) = (Files::new(), Arc::new(AtomicBool::new(false)));
    let indexes = Arc::clone(&may_index);
    let splunk = Splunk::start(Script {
        indexes: Box::new(move || indexes.load(Ordering::SeqCst)),
        ..Script::default()
    });
    let relay = Relay::start(&files.config(&splunk, "ack_timeout = \"1s\""));
    let sent = post_batch(&relay, 1, 40, 700);
    wait_until("a second request", PATIENCE, || splunk.store().requests.len() > 1);
    assert_eq!(of_output(&relay, "output_events_total"), 0.0);
    assert!(errors(&relay, "acknowledgement") >= 1.0);
    may_index.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_indexed(&splunk, &sent);
    relay.finish(Backlog::Empty);
}

/// Method: the collector ends the connection whose requests it has not indexed. They must be sent
/// again on a new connection with a new channel, which the collector checks.
#[test]
fn what_waits_on_a_connection_that_ends_is_sent_again() {
    let (files, may_index) = (Files::new(), Arc::new(AtomicBool::new(false)));
    let indexes = Arc::clone(&may_index);
    let splunk = Splunk::start(Script {
        indexes: Box::new(move || indexes.load(Ordering::SeqCst)),
        ..Script::default()
    });
    let relay = Relay::start(&files.config(&splunk, ""));
    post_batch(&relay, 1, 40, 700);
    wait_until("a question about the first request", PATIENCE, || {
        !splunk.store().questions.is_empty()
    });
    splunk.sink.close_connections();
    wait_until("a second request", PATIENCE, || splunk.store().requests.len() == 2);
    may_index.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(of_output(&relay, "output_events_total"), 40.0);
    assert!(errors(&relay, "acknowledgement") >= 1.0);
    relay.finish(Backlog::Empty);
}

/// Method: the collector forgets a request that it has not indexed, and gives its number to the
/// next request on the same connection. A confirmation of that number must not count for both
/// requests.
#[test]
fn a_number_that_comes_again_says_nothing_about_the_request_before() {
    let (files, may_index) = (Files::new(), Arc::new(AtomicBool::new(false)));
    let indexes = Arc::clone(&may_index);
    let splunk = Splunk::start(Script {
        indexes: Box::new(move || indexes.load(Ordering::SeqCst)),
        ..Script::default()
    });
    let relay = Relay::start(&files.config(&splunk, "concurrency = 1"));
    let [first, second] = [1, 2].map(|seed| generated_batch(seed, 20, 700));
    assert_eq!(relay.post(&first).status, 200);
    wait_until("a question about the first request", PATIENCE, || {
        !splunk.store().questions.is_empty()
    });
    splunk.store().forget();
    assert_eq!(relay.post(&second).status, 200);
    wait_until("a third request", PATIENCE, || splunk.store().requests.len() >= 3);
    may_index.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    let sent = [events_of(&first), events_of(&second)].concat();
    assert_indexed(&splunk, &sent);
    relay.finish(Backlog::Empty);
}

/// Method: the collector forgets a request that it has not indexed, as after a restart, and takes
/// the next one. A proxy answers in its place, so nobody knows that the number has come again.
#[test]
fn an_answer_without_a_number_puts_what_waits_in_doubt() {
    for status in [504, 200] {
        let (files, restarted) = (Files::new(), Arc::new(AtomicBool::new(false)));
        let (indexes, babbles) = (Arc::new(AtomicBool::new(false)), Arc::clone(&restarted));
        let may_index = Arc::clone(&indexes);
        let splunk = Splunk::start(Script {
            mood: Box::new(move || match babbles.load(Ordering::SeqCst) {
                true => Mood::Babbles(status),
                false => Mood::Serves,
            }),
            indexes: Box::new(move || indexes.load(Ordering::SeqCst)),
            ..Script::default()
        });
        // A question in this moment would get the proxy's answer, and put all in doubt, too.
        let slow = files.config(&splunk, "concurrency = 1").replace("\"100ms\"", "\"1s\"");
        let relay = Relay::start(&slow);
        let [first, second] = [1, 2].map(|seed| generated_batch(seed, 20, 700));
        assert_eq!(relay.post(&first).status, 200);
        wait_until("a question about the first request", PATIENCE, || {
            !splunk.store().questions.is_empty()
        });
        splunk.store().forget();
        restarted.store(true, Ordering::SeqCst);
        assert_eq!(relay.post(&second).status, 200);
        wait_until("a second request", PATIENCE, || splunk.store().requests.len() >= 2);
        restarted.store(false, Ordering::SeqCst);
        may_index.store(true, Ordering::SeqCst);
        relay.wait_until_delivered(PATIENCE);
        let sent = [events_of(&first), events_of(&second)].concat();
        assert_indexed(&splunk, &sent);
        relay.finish(Backlog::Empty);
    }
}

/// Method: the preferred endpoint accepts everything and indexes nothing. The events must go to the
/// other one.
#[test]
fn an_address_that_never_confirms_is_passed_over() {
    let files = Files::new();
    let blocked = Splunk::start(Script { indexes: Box::new(|| false), ..Script::default() });
    let well = Splunk::start(Script::default());
    let config = files.config(&blocked, "ack_timeout = \"1s\"");
    let url = |splunk: &Splunk| format!("\"http://{}\"", splunk.address());
    let both = format!("{}, {}", url(&blocked), url(&well));
    let relay = Relay::start(&config.replace(&url(&blocked), &both));
    let sent = post_batch(&relay, 1, 40, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_indexed(&well, &sent);
    assert!(!blocked.store().requests.is_empty());
    relay.finish(Backlog::Empty);
}

/// Method: a bad event is retried for ever. The others must become final, and must not be indexed
/// repeatedly together with it.
#[test]
fn a_bad_event_that_is_retried_does_not_repeat_the_others() {
    let (files, splunk) = (
        Files::new(),
        Splunk::start(Script {
            is_bad: |event| event.windows(14).any(|part| part == b"generated-10\","),
            ..Script::default()
        }),
    );
    let relay = Relay::start(&files.config(&splunk, "rejected = { action = \"retry\" }"));
    let sent = post_batch(&relay, 1, 20, 700);
    wait_until("the others", PATIENCE, || {
        of_output(&relay, "output_events_total") == 19.0
            && of_output(&relay, "output_aside_events") == 1.0
    });
    let indexed = || splunk.store().indexed.iter().filter(|event| sent.contains(event)).count();
    let before = indexed();
    let requests = splunk.store().requests.len();
    wait_until("more attempts", PATIENCE, || splunk.store().requests.len() > requests + 12);
    assert_eq!(indexed(), before, "what was final was indexed again");
    assert_eq!(lost(&relay), 0.0);
    relay.settle(Backlog::Stable);
}

/// Method: without cookies, a query can reach a different collector than the request did. No event
/// may count as delivered unless it is indexed, and the errors must show the cause.
#[test]
fn a_balancer_without_sticky_sessions_shows_by_errors_of_acknowledgements() {
    let (files, balancer) = (Files::new(), Balancer::start(2));
    // Two requests on one connection get the same number if no query comes between them.
    let more = "concurrency = 1\nbatch.max_events = 10\nack_timeout = \"1s\"";
    let relay = Relay::start(&files.config_to(balancer.sink.address(), more));
    post_batch(&relay, 1, 100, 700);
    wait_until("errors", PATIENCE, || errors(&relay, "acknowledgement") >= 1.0);
    let says = || relay.log_text().contains("a load balancer without sticky sessions");
    wait_until("the reason in the log", PATIENCE, says);
    // The number of indexed events is read last, because it only grows.
    let delivered = of_output(&relay, "output_events_total");
    let indexed: BTreeSet<_> = balancer.indexed().into_iter().collect();
    assert!(delivered <= indexed.len() as f64, "{delivered} of {}", indexed.len());
    assert_eq!(lost(&relay), 0.0);
    relay.settle(Backlog::Stable);
}

/// Method: connections reach their age limit several times before their requests are indexed. They
/// must stay open until then, and nothing may be sent twice.
#[test]
fn the_age_limit_of_a_connection_waits_for_its_acknowledgements() {
    let files = Files::new();
    let mut asked = 0;
    let splunk = Splunk::start(Script {
        indexes: Box::new(move || {
            asked += 1;
            asked % 12 == 0
        }),
        ..Script::default()
    });
    let more = "concurrency = 1\ntimeouts.max_connection_age = \"300ms\"";
    let relay = Relay::start(&files.config(&splunk, more));
    let mut sent = Vec::new();
    for batch in 0..12 {
        let body = post_batch(&relay, batch, 10, 700);
        sent.extend(body);
        std::thread::sleep(Duration::from_millis(150));
    }
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&splunk.store().indexed, &sent);
    assert!(splunk.sink.history().len() > 2, "no connection has reached its limit");
    relay.finish(Backlog::Empty);
}

/// These tests need HAProxy.
mod peers {
    use super::*;

    /// Method: a real load balancer assigns each connection to one of two collectors with a cookie.
    /// A collector rejects a channel that is used on two connections, so HAProxy must keep them
    /// apart.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn haproxy_with_sticky_sessions_asks_the_collector_that_took_the_request() {
        let (files, collectors) =
            (Files::new(), [(); 2].map(|()| Splunk::start(Script::default())));
        let [a, b] = collectors.each_ref().map(Splunk::address);
        let backend = format!(
            "  http-reuse never\n  balance roundrobin\n  cookie route insert indirect nocache\n  \
             server a {a} cookie a\n  server b {b} cookie b"
        );
        let haproxy =
            Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend));
        let relay = Relay::start(&files.config_to(haproxy.address(), ""));
        let sent = post_batches(&relay, 0..10, 100, 700);
        relay.wait_until_delivered(PATIENCE);
        let indexed =
            collectors.iter().flat_map(|it| it.store().indexed.clone()).collect::<Vec<_>>();
        assert_same_set(&indexed, &sent);
        assert_eq!(errors(&relay, "acknowledgement"), 0.0);
        let log = relay.finish(Backlog::Empty);
        assert!(!log.contains("route="), "a cookie is in the log");
    }
}
