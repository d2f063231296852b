//! Answers of an HTTP consumer that come too early or never end. A 2xx acknowledges a request only
//! if the consumer had the whole request. An incomplete answer acknowledges nothing.

use std::io::{BufReader, Read as _, Write as _};

use crate::support::http::Unannounced;
use crate::support::prelude::*;
use crate::support::server::Connection;
use crate::support::stream::Stream;

/// The receive buffer of the consumer, in bytes. The bodies here are much larger.
const TAKEN: usize = 64 * 1024;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn say(stream: &mut Stream, bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).and_then(|()| stream.flush()).ok()
}

/// The consumer's behaviour for one request: it reads `read` bytes of the body, says `early`,
/// pauses, reads the rest, and says `late`.
#[derive(Debug, Clone, Copy)]
struct Act {
    read: usize,
    early: &'static [u8],
    pause: Duration,
    late: &'static [u8],
}

impl Act {
    /// Answers early and then says nothing, like a proxy that answers by itself.
    const fn early(read: usize, early: &'static [u8]) -> Self {
        Self { read, early, pause: Duration::from_millis(200), late: b"" }
    }
}

/// A consumer that performs these acts, one for each large request, and then accepts everything.
struct Hasty {
    server: Server,
    /// The bodies that the consumer had read completely before it answered with 2xx.
    taken: Arc<Mutex<Vec<Vec<u8>>>>,
    requests: Arc<AtomicUsize>,
    /// How many requests came on a connection that had already had an early answer.
    behind: Arc<AtomicUsize>,
}

impl Hasty {
    fn start(options: Options, is_proxy: bool, acts: Vec<Act>) -> Self {
        let (taken, requests, behind) =
            (Arc::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let bodies = Arc::clone(&taken);
        let (count, again) = (Arc::clone(&requests), Arc::clone(&behind));
        let options = Options { receive_buffer: Some(TAKEN), ..options };
        let server = Server::start(options, move |stream: Stream, connection: &Connection| {
            let mut reader = BufReader::with_capacity(4096, stream);
            if is_proxy && http::read_head(&mut reader).is_ok() {
                say(reader.get_mut(), b"HTTP/1.1 200 Made\r\n\r\n");
            }
            serve(&mut reader, connection, &acts, (&bodies, &count, &again));
        });
        Self { server, taken, requests, behind }
    }

    /// Returns the events of the bodies in `taken`.
    fn events(&self) -> Vec<Vec<u8>> {
        self.taken.lock().unwrap().iter().flat_map(|body| events_of(body)).collect()
    }
}

fn serve(
    reader: &mut BufReader<Stream>,
    connection: &Connection,
    acts: &[Act],
    (bodies, count, again): (&Mutex<Vec<Vec<u8>>>, &AtomicUsize, &AtomicUsize),
) -> Option<()> {
    let mut was_early = false;
    while let Ok(Some(head)) = http::read_head(reader) {
        again.fetch_add(usize::from(was_early), Ordering::SeqCst);
        let length: usize = head.header("content-length").map_or(0, |it| it.parse().unwrap());
        // Between two failures, the relay asks with a single event whether the consumer works.
        let is_small = length < 16 * TAKEN;
        let next = if is_small { None } else { acts.get(count.fetch_add(1, Ordering::SeqCst)) };
        let Some(act) = next else {
            let body = http::read_body(reader, &head, Unannounced::Empty).ok()?;
            bodies.lock().unwrap().push(body);
            say(reader.get_mut(), OK)?;
            continue;
        };
        assert!(length > act.read + 16 * TAKEN, "a body of {length} for {act:?}");
        let mut body = vec![0; length];
        reader.read_exact(&mut body[..act.read]).ok()?;
        say(reader.get_mut(), act.early)?;
        connection.rest(act.pause).then_some(())?;
        reader.read_exact(&mut body[act.read..]).ok()?;
        was_early = act.late.is_empty();
        if act.late.ends_with(b"\r\n\r\n") {
            bodies.lock().unwrap().push(body);
        }
        say(reader.get_mut(), act.late)?;
    }
    None
}

/// Sends one large batch to a consumer that performs these acts first, and checks that each event
/// arrives once. Returns the counted errors, the consumer and the relay's log.
fn survives(
    acts: &[Act],
    options: Options,
    is_proxy: bool,
    keys: impl FnOnce(&Hasty) -> (String, String),
) -> (BTreeMap<String, f64>, Hasty, String) {
    let hasty = Hasty::start(options, is_proxy, acts.to_vec());
    let (url, more) = keys(&hasty);
    let more = format!("concurrency = 1\nbatch = {{ max_bytes = \"32MiB\" }}\n{more}");
    let relay = Relay::start(&to_http(&[url], &more));
    // After the first failure, each large request is half as large as the one before.
    let sent = post_batch(&relay, 1, 400, 40_000);
    relay.wait_until_delivered(PATIENCE);
    assert!(hasty.events() == sent, "not each event once and in order");
    assert_eq!(of_output(&relay, "output_events_total"), 400.0);
    assert_eq!(hasty.behind.load(Ordering::SeqCst), 0, "a connection was used again");
    let errors = errors_by_reason(&relay);
    let log = relay.finish(Backlog::Empty);
    (errors, hasty, log)
}

fn plainly(hasty: &Hasty) -> (String, String) {
    (format!("http://{}/", hasty.server.address()), String::new())
}

/// Early 2xx answers: at the head, in the middle of the body, after an interim answer, and with a
/// body.
const TOO_EARLY: [Act; 5] = [
    Act::early(0, OK),
    Act::early(1_100_000, OK),
    Act::early(10_000, b"HTTP/1.1 204 No Content\r\n\r\n"),
    Act::early(
        10_000,
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
    ),
    Act::early(0, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nok\n"),
];

fn assert_protocol(errors: &BTreeMap<String, f64>, log: &str) {
    assert_eq!(*errors, BTreeMap::from([("protocol".to_owned(), 5.0)]));
    assert!(log.contains("before it had the whole request"), "{log}");
}

#[test]
fn a_2xx_before_the_last_byte_of_the_body_acknowledges_nothing() {
    let (errors, hasty, log) = survives(&TOO_EARLY, Options::default(), false, plainly);
    assert_protocol(&errors, &log);
    assert!(hasty.requests.load(Ordering::SeqCst) >= 6);
    // Without a pause, the consumer can have read the whole body when the relay reads the answer.
    let acts = TOO_EARLY.map(|act| Act { pause: Duration::ZERO, ..act });
    let (errors, ..) = survives(&acts, Options::default(), false, plainly);
    assert_eq!(errors, BTreeMap::from([("protocol".to_owned(), 5.0)]));
}

#[test]
fn a_2xx_before_the_last_byte_acknowledges_nothing_over_tls_and_through_a_proxy() {
    let files = Certificates::new();
    let tls = Some(files.server_config(&files.server, false));
    let (errors, _, log) =
        survives(&TOO_EARLY, Options { tls, ..Options::default() }, false, |hasty| {
            let port = hasty.server.address().port();
            (format!("https://localhost:{port}/"), format!("tls = {{ ca = {:?} }}\n", files.ca))
        });
    assert_protocol(&errors, &log);
    let (errors, _, log) = survives(&TOO_EARLY, Options::default(), true, |hasty| {
        let proxy = format!("proxy = \"http://{}\"\n", hasty.server.address());
        ("http://consumer.example/".to_owned(), proxy)
    });
    assert_protocol(&errors, &log);
}

#[test]
fn another_answer_before_the_last_byte_keeps_its_meaning_and_costs_the_connection() {
    let acts = [
        Act::early(0, b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
        Act::early(100_000, b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"),
        Act::early(0, b"HTTP/1.1 429 Slowly\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"),
        Act::early(0, b"HTTP/1.1 307 There\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"),
    ];
    let (errors, ..) = survives(&acts, Options::default(), false, plainly);
    let expected = ["status_4xx", "status_5xx", "status_429", "protocol"];
    assert_eq!(errors, expected.map(|reason| (reason.to_owned(), 1.0)).into_iter().collect());
}

#[test]
fn an_interim_answer_before_the_last_byte_is_none() {
    let act = |early| Act { read: 10_000, early, pause: Duration::from_millis(100), late: OK };
    let acts = [
        act(b"HTTP/1.1 100 Continue\r\n\r\n"),
        act(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"),
    ];
    for act in acts {
        let (errors, hasty, _) = survives(&[act], Options::default(), false, plainly);
        assert_eq!(errors, BTreeMap::new());
        assert_eq!(hasty.requests.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_head_that_begins_before_the_last_byte_and_ends_behind_it_is_too_early() {
    // The late part does not end with a blank line, so `serve` does not count the body as taken.
    let late = b"Content-Length: 0\r\n\n";
    let act = Act { late, ..Act::early(0, b"HTTP/1.1 200 OK\r\n") };
    let (errors, ..) = survives(&[act], Options::default(), false, plainly);
    assert_eq!(errors, BTreeMap::from([("protocol".to_owned(), 1.0)]));
}

/// A consumer that reads its first request, or only its head, and then says `word` ten times a
/// second for ever. It accepts all other requests.
fn talkative(reads: bool, word: &'static [u8]) -> (Server, Arc<Mutex<Vec<Vec<u8>>>>) {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&bodies);
    let first = AtomicUsize::new(0);
    let options = Options { receive_buffer: Some(TAKEN), ..Options::default() };
    let server = Server::start(options, move |stream, connection| {
        let mut reader = BufReader::with_capacity(4096, stream);
        while let Ok(Some(head)) = http::read_head(&mut reader) {
            let is_first = first.fetch_add(1, Ordering::SeqCst) == 0;
            if !is_first || reads {
                let Ok(body) = http::read_body(&mut reader, &head, Unannounced::Empty) else {
                    return;
                };
                if !is_first {
                    taken.lock().unwrap().push(body);
                }
            }
            let stream = reader.get_mut();
            if is_first && word.starts_with(b"X") {
                say(stream, b"HTTP/1.1 200 OK\r\n");
            }
            if is_first {
                while say(stream, word).is_some() && connection.rest(Duration::from_millis(100)) {}
                return;
            }
            if say(stream, OK).is_none() {
                return;
            }
        }
    });
    (server, bodies)
}

#[test]
fn a_consumer_that_talks_and_never_answers_is_left_after_the_timeout() {
    let words: [(bool, &[u8]); 4] = [
        (true, b"HTTP/1.1 102 Processing\r\n\r\n"),
        (true, b"X-Still: here\r\n"),
        (true, b"X"),
        (false, b"HTTP/1.1 102 Processing\r\n\r\n"),
    ];
    for (reads, word) in words {
        let (server, bodies) = talkative(reads, word);
        let more = "concurrency = 1\ntimeouts = { request = \"2s\" }\n";
        let relay = Relay::start(&to_sink(server.address(), more));
        let sent = post_batch(&relay, 1, 200, 5_000);
        relay.wait_until_delivered(PATIENCE);
        let taken: Vec<_> =
            bodies.lock().unwrap().iter().flat_map(|body| events_of(body)).collect();
        assert!(taken == sent, "{reads} {}", word.escape_ascii());
        assert_eq!(errors_by_reason(&relay), BTreeMap::from([("timeout".to_owned(), 1.0)]));
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_consumer_that_talks_and_never_answers_is_no_obstacle_to_fail_over() {
    let (first, _) = talkative(true, b"HTTP/1.1 102 Processing\r\n\r\n");
    let second = HttpSink::accepting();
    let urls = [first.address(), second.address()].map(|address| format!("http://{address}/"));
    let more = "concurrency = 1\ntimeouts = { request = \"1s\" }\n";
    let relay = Relay::start(&to_http(&urls, more));
    let sent = post_batch(&relay, 1, 100, 900);
    relay.wait_until_delivered(PATIENCE);
    assert!(accepted_events(&second) == sent);
    assert_eq!(errors_by_reason(&relay), BTreeMap::from([("timeout".to_owned(), 1.0)]));
    relay.finish(Backlog::Empty);
}

fn states(relay: &Relay) -> Vec<String> {
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let addresses = status["outputs"][0]["addresses"].as_array().unwrap().clone();
    addresses.iter().map(|it| it["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn urls_that_are_slow_and_work_get_each_event_once() {
    let slow = |_: &Request| Answer::status(200).after(Duration::from_millis(1500));
    let sinks = [HttpSink::start(slow), HttpSink::start(slow)];
    let urls = [0, 1].map(|index| format!("http://{}/", sinks[index].address()));
    let more = "strategy = \"round_robin\"\nbatch = { max_events = 50 }\n";
    let relay = Relay::start(&to_http(&urls, more));
    let sent = post_batch(&relay, 1, 800, 900);
    relay.wait_until_delivered(PATIENCE);
    let accepted: Vec<_> = sinks.iter().flat_map(accepted_events).collect();
    assert_same_set(&accepted, &sent);
    assert_eq!(errors_by_reason(&relay), BTreeMap::new());
    assert_eq!(states(&relay), ["up", "up"]);
    relay.finish(Backlog::Empty);
}
