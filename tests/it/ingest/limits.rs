//! The limits of the ingest side: deadlines, connections, bytes in flight and memory. A limit
//! affects only the sender that exceeds it, and not a good sender at the same time.

use std::io::Write as _;
use std::sync::atomic::AtomicU64;

use crate::support::alone::runs_alone;
use crate::support::answers::{
    NO_EVENTS, assert_accepted, assert_head_refusal, assert_kept, assert_refusal,
};
use crate::support::h2;
use crate::support::h2::H2;
use crate::support::http::post;
use crate::support::prelude::*;
use crate::support::setup::{start, start_with_dead_consumer};

const JSON: &str = "application/json";
const MIB: usize = 1024 * 1024;
const EVENT: &str = r#"{"auditID":"a","stage":"Panic"}"#;

/// Returns the head of a POST with a body of `length` bytes.
fn head(length: usize) -> Vec<u8> {
    format!("POST /audit HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

fn connect(relay: &Relay) -> Client {
    Client::connect(relay.address()).unwrap()
}

fn wait_for_gauge(relay: &Relay, name: &str, wanted: f64) {
    relay.wait_for_metrics(&format!("{name} {wanted}"), PATIENCE, |metrics| {
        (metrics.sum(name) == wanted).then_some(())
    });
}

/// Sends a byte every 20 ms until the relay answers. Returns how long that took.
fn trickle(client: &mut Client, byte: &[u8]) -> Duration {
    let began = Instant::now();
    client.read_timeout(Duration::from_millis(20));
    let mut peeked = [0];
    while client.stream().socket().peek(&mut peeked).is_err() {
        assert!(began.elapsed() < PATIENCE, "no answer");
        // The relay may just have answered and closed the connection.
        drop(client.send(byte));
    }
    client.read_timeout(PATIENCE);
    began.elapsed()
}

#[test]
fn a_head_must_end_within_header_timeout_however_its_bytes_come() {
    let (relay, _sink) = start("", "[limits]\nheader_timeout = \"400ms\"\n");
    let mut client = connect(&relay);
    client.send(b"POST /audit HTTP/1.1\r\nX: ").unwrap();
    let took = trickle(&mut client, b"x");
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert_head_refusal(&client.read_response().unwrap(), 408);
    assert!(client.is_closed_by_server());

    // The same limit applies to the second head of a kept connection, from its first byte on.
    let mut client = connect(&relay);
    assert_kept(&mut client);
    std::thread::sleep(Duration::from_millis(700));
    client.send(b"P").unwrap();
    let took = trickle(&mut client, b"O");
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert_head_refusal(&client.read_response().unwrap(), 408);
    assert!(client.is_closed_by_server());
    assert_eq!(relay.metrics().value("requests_rejected_total", &[("reason", "timeout")]), 2.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn the_beginning_of_a_pipelined_head_has_header_timeout_too() {
    let tables = "[limits]\nheader_timeout = \"400ms\"\n";
    let (relay, _sink) = start("", tables);
    let sized = plain(NO_EVENTS.as_bytes());
    let chunked = in_chunks(NO_EVENTS.as_bytes(), 20);
    let bodiless = b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n".to_vec();
    let mut clients = Vec::new();
    for (request, status) in [(sized, 200), (chunked, 200), (bodiless, 405)] {
        for beginning in ["P", "POST /audit HTTP/1.1\r\nX: ", "POST / HTTP/1.1\r\nHost: a\r\n\r"] {
            let mut client = connect(&relay);
            client.send(&[&request, beginning.as_bytes()].concat()).unwrap();
            assert_eq!(client.read_response().unwrap().status, status);
            clients.push((client, beginning));
        }
    }
    for (client, beginning) in &mut clients {
        let answer = client.read_response();
        assert_head_refusal(&answer.unwrap_or_else(|error| panic!("{beginning:?}: {error}")), 408);
        assert!(client.is_closed_by_server());
    }
    // An empty line after a request does not begin a head, because old clients send one (RFC 9112
    // §2.2).
    let mut kept = connect(&relay);
    kept.send(&[&plain(NO_EVENTS.as_bytes()), &b"\r\n"[..]].concat()).unwrap();
    assert_accepted(&kept.read_response().unwrap(), 0);
    std::thread::sleep(Duration::from_millis(900));
    assert_kept(&mut kept);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "timeout")]), 9.0);
    relay.finish(Backlog::Empty);
}

/// A connection that waits for a request for two seconds gives its buffers back. They may hold the
/// beginning of the next head, which came with the request before.
#[test]
fn the_beginning_of_a_pipelined_head_outlives_the_buffers_of_its_connection() {
    let (relay, _sink) = start("", "");
    let request = plain(NO_EVENTS.as_bytes());
    let head_bytes = request.len() - NO_EVENTS.len();
    let clients = [1, 5, head_bytes / 2, head_bytes - 1].map(|cut| {
        let mut client = connect(&relay);
        client.send(&[&request, &request[..cut]].concat()).unwrap();
        assert_accepted(&client.read_response().unwrap(), 0);
        (client, cut)
    });
    std::thread::sleep(Duration::from_secs(3));
    for (mut client, cut) in clients {
        client.send(&request[cut..]).unwrap();
        assert_accepted(&client.read_response().unwrap(), 0);
        assert_kept(&mut client);
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn a_body_must_end_within_body_timeout_however_its_bytes_come() {
    let (relay, _sink) = start("path_prefix = \"/audit\"", "[limits]\nbody_timeout = \"400ms\"\n");
    let refused = b"POST /other HTTP/1.1\r\nHost: relay\r\nContent-Length: 60000\r\n\r\n";
    for request in [&head(60_000)[..], &refused[..]] {
        let mut client = connect(&relay);
        client.send(request).unwrap();
        let took = trickle(&mut client, b" ");
        assert!(took >= Duration::from_millis(300), "{took:?}");
        let response = client.read_response().unwrap();
        assert_refusal(&response, 408);
        assert_eq!(response.header("connection"), Some("close"));
        assert!(client.is_closed_by_server());
    }
    let mut client = H2::connect(relay.address()).unwrap();
    client.post_head(1, Some(1000)).unwrap();
    client.frame(h2::DATA, 0, 1, b"{").unwrap();
    assert!(!client.wait_for(h2::HEADERS).is_200());
    // The connection is closed in order, so that the sender opens another one.
    assert!(client.rest().iter().any(|frame| frame.kind == h2::GOAWAY));
    let metrics = relay.metrics();
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "timeout")]), 3.0);
    assert_eq!(metrics.value("in_flight_bytes", &[]), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn at_max_connections_the_one_that_is_longest_without_a_head_makes_room() {
    let (relay, _sink) = start("", "[limits]\nmax_connections = 3\n");
    // `busy` is opened first, but makes a request after the second connection is opened.
    let mut busy = connect(&relay);
    wait_for_gauge(&relay, "connections", 1.0);
    let mut silent = connect(&relay);
    silent.send(b"POST /audit HT").unwrap();
    wait_for_gauge(&relay, "connections", 2.0);
    assert_kept(&mut busy);
    let mut h2 = H2::connect(relay.address()).unwrap();
    h2.post(1, NO_EVENTS.as_bytes()).unwrap();
    assert!(h2.wait_for(h2::HEADERS).is_200());
    wait_for_gauge(&relay, "connections", 3.0);

    let mut fourth = connect(&relay);
    assert!(silent.is_closed_by_server(), "the oldest head makes room");
    assert_kept(&mut fourth);
    let mut fifth = connect(&relay);
    assert!(busy.is_closed_by_server(), "then the one that is idle longest");
    let mut sixth = connect(&relay);
    let after = h2.rest();
    assert!(
        after.iter().all(|frame| frame.kind != h2::HEADERS),
        "then h2, which idles too: {after:?}"
    );
    assert_kept(&mut fourth);
    assert_kept(&mut fifth);
    assert_kept(&mut sixth);
    wait_for_gauge(&relay, "connections", 3.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn where_every_connection_is_in_a_request_the_new_one_is_closed() {
    let (relay, sink) = start("", "[limits]\nmax_connections = 2\n");
    let body = generated_batch(1, 1, 500);
    let mut working = [connect(&relay), connect(&relay)];
    for client in &mut working {
        client.send(&[head(body.len()), body[..100].to_vec()].concat()).unwrap();
    }
    wait_for_gauge(&relay, "in_flight_bytes", 200.0);
    for _ in 0..3 {
        assert!(connect(&relay).is_closed_by_server());
    }
    for client in &mut working {
        client.send(&body[100..]).unwrap();
        assert_accepted(&client.read_response().unwrap(), 1);
    }
    // Both connections are idle now.
    let mut next = connect(&relay);
    assert_kept(&mut next);
    assert!(working[0].is_closed_by_server());
    assert_kept(&mut working[1]);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 2);
}

struct Guarded {
    _directory: TempDir,
    relay: Relay,
}

const TOKEN: (&str, &str) = ("Authorization", "Bearer right");

impl Guarded {
    fn start(tables: &str) -> (Self, TcpSink) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "right").unwrap();
        let keys = format!("path_prefix = \"/audit\"\nbearer_token_file = \"{}\"\n", text(&file));
        let (relay, sink) = start(&keys, tables);
        (Self { _directory: directory, relay }, sink)
    }

    /// POSTs with the right token, and checks that the answer is 200.
    fn assert_good(&self, client: &mut Client) {
        let body = NO_EVENTS.as_bytes();
        let answer = client.request("POST", "/audit", &[TOKEN], body);
        assert_accepted(&answer.expect("the good connection is kept"), 0);
    }

    /// Sends a head that is refused and the first byte of its body, and waits until the relay has
    /// discarded that byte.
    fn begin_refused(&self, bytes: &[u8]) -> Client {
        let mut client = connect(&self.relay);
        self.wait_for_byte(|| client.send(bytes).unwrap());
        client
    }

    fn wait_for_byte(&self, send: impl FnOnce()) {
        let received = || self.relay.metrics().sum("received_bytes_total");
        let before = received();
        send();
        wait_until("the first byte of a refused body", PATIENCE, || received() > before);
    }
}

/// Requests that are refused because of their heads, each with the first byte of its body, and the
/// status of the answer.
const REFUSED: [(&str, u16); 8] = [
    ("POST /audit HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n{", 401),
    ("POST /audit HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", 401),
    (
        "POST /b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer right\r\nContent-Length: 9\r\n\r\n{",
        404,
    ),
    (
        "PUT /audit HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer right\r\nContent-Length: 9\r\n\r\n{",
        405,
    ),
    (
        "POST /audit HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer right\r\nContent-Type: a/b\r\n\
         Content-Length: 9\r\n\r\n{",
        415,
    ),
    (
        "POST /audit HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer right\r\nContent-Encoding: br\r\n\
         Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        415,
    ),
    ("POST /audit HTTP/1.1\r\nAuthorization: Bearer right\r\nContent-Length: 9\r\n\r\n{", 400),
    // This request is refused because of the beginning of its body. The rest of the body is
    // discarded too.
    (
        "POST /audit HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer right\r\nContent-Encoding: gzip\r\n\
         Content-Length: 90\r\n\r\nthis is no gzip",
        400,
    ),
];

#[test]
fn requests_that_are_refused_already_give_way_before_a_good_idle_connection() {
    let (guarded, _sink) = Guarded::start("[limits]\nmax_connections = 3\n");
    for (bytes, _) in REFUSED {
        // The good sender has been without a request for longer than the others have been refused.
        let mut good = connect(&guarded.relay);
        guarded.assert_good(&mut good);
        let refused = [0; 2].map(|_| guarded.begin_refused(bytes.as_bytes()));
        let mut second = connect(&guarded.relay);
        guarded.assert_good(&mut second);
        let mut third = connect(&guarded.relay);
        guarded.assert_good(&mut third);
        guarded.assert_good(&mut good);
        guarded.assert_good(&mut second);
        drop((refused, good, second, third));
        wait_for_gauge(&guarded.relay, "connections", 0.0);
    }
    guarded.relay.finish(Backlog::Empty);
}

#[test]
fn h2_gives_way_where_all_its_streams_are_refused_and_not_where_one_is_good() {
    let (relay, sink) = start("", "[limits]\nmax_connections = 2\n");
    let guarded = |send: &mut dyn FnMut()| {
        let received = || relay.metrics().sum("received_bytes_total");
        let before = received();
        send();
        wait_until("the first byte of a refused body", PATIENCE, || received() > before);
    };
    let refused_head = || {
        let mut block = h2::post_fields(None);
        block.extend_from_slice(b"\x00\x10content-encoding\x02br");
        block
    };
    let mut good = connect(&relay);
    assert_kept(&mut good);
    let mut h2 = H2::connect(relay.address()).unwrap();
    for stream in [1, 3] {
        guarded(&mut || {
            h2.frame(h2::HEADERS, h2::END_HEADERS, stream, &refused_head()).unwrap();
            h2.frame(h2::DATA, 0, stream, b"{").unwrap();
        });
    }
    let mut next = connect(&relay);
    assert_kept(&mut next);
    assert_kept(&mut good);
    h2.rest();
    drop((next, good));
    wait_for_gauge(&relay, "connections", 0.0);

    let body = generated_batch(1, 1, 500);
    let mut h2 = H2::connect(relay.address()).unwrap();
    let mut working = connect(&relay);
    working.send(&[head(body.len()), body[..100].to_vec()].concat()).unwrap();
    h2.post_head(1, Some(body.len())).unwrap();
    h2.frame(h2::DATA, 0, 1, &body[..100]).unwrap();
    wait_for_gauge(&relay, "in_flight_bytes", 200.0);
    guarded(&mut || {
        h2.frame(h2::HEADERS, h2::END_HEADERS, 3, &refused_head()).unwrap();
        h2.frame(h2::DATA, 0, 3, b"{").unwrap();
    });
    assert!(connect(&relay).is_closed_by_server(), "every one is in a good request");
    // The refused stream is answered and reset long before `body_timeout`, and its connection is
    // kept.
    let answer = h2.wait_for(h2::HEADERS);
    assert_eq!((answer.stream, answer.is_200()), (3, false));
    let reset = h2.wait_for(h2::RST_STREAM);
    assert_eq!((reset.stream, reset.code()), (3, 0));
    h2.frame(h2::DATA, h2::END_STREAM, 1, &body[100..]).unwrap();
    assert!(h2.wait_for(h2::HEADERS).is_200());
    working.send(&body[100..]).unwrap();
    assert_accepted(&working.read_response().unwrap(), 1);
    drop(h2);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 2);
}

#[test]
fn a_refused_request_gets_2_s_for_a_body_that_does_not_come() {
    // No other limit ends these requests during the test.
    let (guarded, _sink) = Guarded::start("[limits]\nbody_timeout = \"5m\"\n");
    let began = Instant::now();
    let mut silent: Vec<_> = REFUSED
        .iter()
        .map(|(bytes, status)| {
            let mut client = connect(&guarded.relay);
            client.send(bytes.as_bytes()).unwrap();
            (client, *status)
        })
        .collect();
    // A byte now and then is not progress.
    let mut trickling = connect(&guarded.relay);
    trickling.send(REFUSED[0].0.as_bytes()).unwrap();
    let took = trickle(&mut trickling, b" ");
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    silent.push((trickling, 401));
    for (client, status) in &mut silent {
        let response = client.read_response().unwrap();
        assert_refusal(&response, *status);
        assert_eq!(response.header("connection"), Some("close"));
        assert!(client.is_closed_by_server());
    }
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    wait_for_gauge(&guarded.relay, "connections", 0.0);
    let metrics = guarded.relay.metrics();
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "unauthorized")]), 3.0);
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "timeout")]), 0.0);
    guarded.relay.finish(Backlog::Empty);
}

#[test]
fn a_refused_body_that_comes_for_longer_than_2_s_is_read_to_its_end() {
    let (guarded, _sink) = Guarded::start("");
    let mut client = connect(&guarded.relay);
    let piece = vec![b' '; 96 * 1024];
    client.send(&head(50 * piece.len())).unwrap();
    for _ in 0..50 {
        client.send(&piece).unwrap();
        std::thread::sleep(Duration::from_millis(60));
    }
    let response = client.read_response().unwrap();
    assert_refusal(&response, 401);
    assert_eq!(response.header("connection"), None, "a sender that was cut off would find close");
    guarded.assert_good(&mut client);
    guarded.relay.finish(Backlog::Empty);
}

#[test]
fn a_batch_that_is_429_by_its_head_gives_way_too_and_gets_2_s() {
    let tables = "[limits]\nmax_connections = 3\n[queue]\nmax_bytes = \"64KiB\"\n";
    let (relay, _sink) = start_with_dead_consumer("", tables);
    // The queue has a little room left, but not for the bodies that the refused requests announce.
    assert_accepted(&relay.post(&generated_batch(1, 10, 900)), 10);
    let mut good = connect(&relay);
    assert_kept(&mut good);
    let mut refused: Vec<_> = (0..2)
        .map(|_| {
            let received = || relay.metrics().sum("received_bytes_total");
            let before = received();
            let mut client = connect(&relay);
            client.send(&[head(60_000), b"{".to_vec()].concat()).unwrap();
            wait_until("the first byte of a refused body", PATIENCE, || received() > before);
            client
        })
        .collect();
    let mut next = connect(&relay);
    assert_kept(&mut next);
    assert_kept(&mut good);
    let response = refused[1].read_response().unwrap();
    assert_refusal(&response, 429);
    assert_eq!(response.header("connection"), Some("close"));
    drop(refused);
    relay.finish(Backlog::Stable);
}

#[test]
fn answers_that_refuse_and_are_not_read_give_way() {
    let (guarded, _sink) =
        Guarded::start("[limits]\nmax_connections = 2\nheader_timeout = \"5m\"\n");
    let mut good = connect(&guarded.relay);
    guarded.assert_good(&mut good);
    let mut unread = connect(&guarded.relay);
    unread.stream().socket().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let requests = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let answered = || guarded.relay.metrics().sum("requests_total");
    let mut at = 0;
    // In the middle of its answers, the relay stops reading and answering requests.
    wait_until("a relay that can write no more", PATIENCE, || {
        let (before, mut socket, mut wrote) = (answered(), unread.stream().socket(), false);
        while let Ok(count) = socket.write(&requests[at..]) {
            at = (at + count) % requests.len();
            wrote = true;
        }
        std::thread::sleep(Duration::from_millis(500));
        !wrote && answered() == before
    });
    let mut next = connect(&guarded.relay);
    guarded.assert_good(&mut next);
    guarded.assert_good(&mut good);
    guarded.relay.finish(Backlog::Empty);
}

#[test]
fn bytes_beyond_max_in_flight_are_429_and_the_sender_who_came_first_goes_on() {
    let tables = "[limits]\nmax_in_flight = \"1MiB\"\nmax_body = \"1MiB\"\n";
    let (relay, sink) = start("", tables);
    let first = generated_batch(1, 100, 9000);
    let second = generated_batch(2, 50, 9000);
    let mut slow = connect(&relay);
    slow.send(&[head(first.len()), first[..800_000].to_vec()].concat()).unwrap();
    wait_for_gauge(&relay, "in_flight_bytes", 800_000.0);
    let mut refused = connect(&relay);
    for _ in 0..3 {
        let response = refused.post("/audit", JSON, &second).unwrap();
        let message = assert_refusal(&response, 429);
        assert!(message.contains("in progress"), "{message}");
    }
    assert_kept(&mut refused);
    wait_for_gauge(&relay, "in_flight_bytes", 800_000.0);
    slow.send(&first[800_000..]).unwrap();
    assert_accepted(&slow.read_response().unwrap(), 100);
    assert_accepted(&refused.post("/audit", JSON, &second).unwrap(), 50);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "in_flight_full")]), 3.0);
    assert_eq!(metrics.value("in_flight_bytes", &[]), 0.0);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert!(sink.lines() == [events_of(&first), events_of(&second)].concat());
}

#[test]
fn bytes_in_flight_are_given_back_however_a_request_ends() {
    let (relay, _sink) = start("", "");
    let body = generated_batch(1, 10, 9000);
    for reset in [false, true] {
        let mut client = connect(&relay);
        client.send(&[head(body.len()), body[..50_000].to_vec()].concat()).unwrap();
        wait_for_gauge(&relay, "in_flight_bytes", 50_000.0);
        if reset {
            let socket = socket2::SockRef::from(client.stream().socket());
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        wait_for_gauge(&relay, "in_flight_bytes", 0.0);
        wait_for_gauge(&relay, "connections", 0.0);
    }
    let mut client = H2::connect(relay.address()).unwrap();
    client.post_head(1, None).unwrap();
    client.frame(h2::DATA, 0, 1, &body[..10_000]).unwrap();
    wait_for_gauge(&relay, "in_flight_bytes", 10_000.0);
    client.frame(h2::RST_STREAM, 0, 1, &8_u32.to_be_bytes()).unwrap();
    wait_for_gauge(&relay, "in_flight_bytes", 0.0);
    client.post(3, NO_EVENTS.as_bytes()).unwrap();
    assert!(client.wait_for(h2::HEADERS).is_200());
    relay.finish(Backlog::Empty);
}

#[test]
fn sockets_that_announce_much_and_send_nothing_take_no_room() {
    if !runs_alone() {
        return;
    }
    let (relay, sink) = start("", "");
    let batch = generated_batch(1, 400, 2000);
    let send_some = || {
        for _ in 0..20 {
            assert_accepted(&relay.post(&batch), 400);
            relay.wait_until_delivered(PATIENCE);
        }
    };
    send_some();
    let before = relay.rss_bytes();
    let mut idle: Vec<Client> = (0..64).map(|_| connect(&relay)).collect();
    for client in &mut idle {
        client.send(&head(60 * MIB)).unwrap();
    }
    wait_for_gauge(&relay, "connections", 64.0);
    send_some();
    // Each sender sends one byte, so that the buffers exist.
    for client in &mut idle {
        client.send(b"{").unwrap();
    }
    wait_for_gauge(&relay, "in_flight_bytes", 64.0);
    send_some();
    let grown = relay.rss_bytes().saturating_sub(before);
    assert!(grown < 24 * MIB as u64, "{grown} bytes for 64 bytes of bodies");
    drop(idle);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 60 * 400);
}

/// Method: each of many connections carries a batch and then waits, like those of kube-apiserver.
/// The resident memory is compared with the memory before these connections.
#[test]
fn a_connection_that_waits_after_a_batch_takes_less_than_64_kib() {
    const CONNECTIONS: u64 = 200;
    let (relay, sink) = start("", "");
    let batch = generated_batch(1, 400, 800);
    let send = |client: &mut Client| {
        assert_accepted(&client.post("/audit", JSON, &batch).unwrap(), 400);
        // A backlog would leave memory mapped in the pool for bodies.
        relay.wait_until_delivered(PATIENCE);
    };
    (0..20).for_each(|_| send(&mut connect(&relay)));
    wait_for_gauge(&relay, "connections", 0.0);
    let before = relay.rss_bytes();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| connect(&relay)).collect();
    clients.iter_mut().for_each(send);
    let begun = Instant::now();
    loop {
        let each = relay.rss_bytes().saturating_sub(before) / CONNECTIONS;
        if each < 64 * 1024 {
            eprintln!("{each} bytes for each connection after {:?}", begun.elapsed());
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{each} bytes for each connection");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(clients);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 220 * 400);
}

#[test]
fn a_kept_connection_may_pause_for_longer_than_header_timeout() {
    let (relay, _sink) = start("", "[limits]\nheader_timeout = \"200ms\"\nidle_timeout = \"1m\"\n");
    let mut fresh = connect(&relay);
    let mut kept = connect(&relay);
    let mut h2 = H2::connect(relay.address()).unwrap();
    assert_kept(&mut kept);
    h2.post(1, NO_EVENTS.as_bytes()).unwrap();
    assert!(h2.wait_for(h2::HEADERS).is_200());
    std::thread::sleep(Duration::from_millis(900));
    assert_kept(&mut kept);
    h2.post(3, NO_EVENTS.as_bytes()).unwrap();
    assert!(h2.wait_for(h2::HEADERS).is_200());
    assert_kept(&mut fresh);
    assert_eq!(relay.metrics().value("requests_rejected_total", &[("reason", "timeout")]), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn idle_timeout_closes_without_a_word_and_h2_with_goaway() {
    let (relay, _sink) = start("", "[limits]\nidle_timeout = \"1s\"\n");
    let began = Instant::now();
    let mut kept = connect(&relay);
    assert_kept(&mut kept);
    let mut fresh = connect(&relay);
    let mut h2 = H2::connect(relay.address()).unwrap();
    h2.post(1, NO_EVENTS.as_bytes()).unwrap();
    assert!(h2.wait_for(h2::HEADERS).is_200());
    assert!(kept.is_closed_by_server());
    assert!(began.elapsed() >= Duration::from_millis(950), "{:?}", began.elapsed());
    assert!(fresh.is_closed_by_server());
    assert!(h2.rest().iter().any(|frame| frame.kind == h2::GOAWAY), "no race with a request");
    // A client that ignores GOAWAY is disconnected too.
    let mut deaf = H2::connect(relay.address()).unwrap();
    deaf.post(1, NO_EVENTS.as_bytes()).unwrap();
    wait_for_gauge(&relay, "connections", 0.0);
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("requests_rejected_total"), 0.0);
    relay.finish(Backlog::Empty);
}

/// Method: three hundred connections carry a batch each and then rest. They must keep little
/// memory. Every kind of next request must work as on a connection that never rested.
#[test]
fn a_connection_that_rests_keeps_little_memory_and_works_as_before() {
    let (relay, sink) = start("", "[limits]\nheader_timeout = \"2s\"\nidle_timeout = \"12s\"\n");
    let batch = generated_batch(1, 100, 1000);
    for _ in 0..20 {
        assert_accepted(&relay.post(&batch), 100);
        relay.wait_until_delivered(PATIENCE);
    }
    let before = relay.rss_bytes();
    let mut last = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..300 {
        last = Instant::now();
        let mut client = connect(&relay);
        assert_accepted(&client.post("/audit", JSON, &batch).unwrap(), 100);
        clients.push(client);
    }
    relay.wait_until_delivered(PATIENCE);
    let grown = || relay.rss_bytes().saturating_sub(before) / 300;
    wait_until("64 KiB for each connection", Duration::from_secs(8), || grown() < 64 * 1024);
    eprintln!("a connection that rests keeps {} bytes", grown());

    let [mut again, mut slow, mut stuck, mut both, mut halved] =
        std::array::from_fn(|_| clients.pop().unwrap());
    assert_accepted(&again.post("/audit", JSON, &batch).unwrap(), 100);
    let request = [head(NO_EVENTS.len()), NO_EVENTS.into()].concat();
    slow.send(&request[..20]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    slow.send(&request[20..]).unwrap();
    assert_accepted(&slow.read_response().unwrap(), 0);
    stuck.send(&request[..20]).unwrap();
    assert_head_refusal(&stuck.read_response().unwrap(), 408);
    both.send(&request.repeat(2)).unwrap();
    assert_accepted(&both.read_response().unwrap(), 0);
    assert_accepted(&both.read_response().unwrap(), 0);
    halved.send(&request).unwrap();
    halved.stream().socket().shutdown(std::net::Shutdown::Write).unwrap();
    assert_accepted(&halved.read_response().unwrap(), 0);
    assert!(halved.is_closed_by_server());
    // Resting does not restart the idle timeout.
    let mut resting = clients.pop().unwrap();
    assert!(resting.is_closed_by_server());
    let idle = last.elapsed();
    assert!((Duration::from_secs(11)..Duration::from_secs(14)).contains(&idle), "{idle:?}");
    drop((clients, again, slow, both));
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), (20 + 300 + 1) * 100);
}

#[test]
fn a_connection_of_age_ends_after_its_next_answer_and_h2_with_goaway() {
    let (relay, _sink) = start("", "[limits]\nmax_connection_age = \"1s\"\n");
    let mut client = connect(&relay);
    let mut h2 = H2::connect(relay.address()).unwrap();
    h2.post(1, NO_EVENTS.as_bytes()).unwrap();
    assert!(h2.wait_for(h2::HEADERS).is_200());
    let began = Instant::now();
    let mut answers = 0;
    loop {
        let response = client.post("/audit", JSON, NO_EVENTS.as_bytes()).unwrap();
        assert_accepted(&response, 0);
        answers += 1;
        if response.header("connection") == Some("close") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "kept for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        began.elapsed() >= Duration::from_millis(850),
        "{answers} answers in {:?}",
        began.elapsed()
    );
    assert!(client.is_closed_by_server());
    let frames = h2.rest();
    assert!(frames.iter().any(|frame| frame.kind == h2::GOAWAY), "{frames:?}");
    relay.finish(Backlog::Empty);
}

#[test]
fn h2_streams_under_way_end_well_when_their_connection_is_of_age() {
    let (relay, sink) = start("", "[limits]\nmax_connection_age = \"500ms\"\n");
    let mut client = H2::connect(relay.address()).unwrap();
    let body = generated_batch(1, 1, 800);
    client.post_head(1, Some(body.len())).unwrap();
    client.frame(h2::DATA, 0, 1, &body[..100]).unwrap();
    client.wait_for(h2::GOAWAY);
    client.frame(h2::DATA, h2::END_STREAM, 1, &body[100..]).unwrap();
    assert!(client.wait_for(h2::HEADERS).is_200());
    client.rest();
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 1);
}

#[test]
fn a_client_that_does_not_read_its_answers_is_closed() {
    let tables = "[limits]\nheader_timeout = \"500ms\"\nidle_timeout = \"2s\"\n";
    let (relay, _sink) = start("", tables);
    let mut client = connect(&relay);
    socket2::SockRef::from(client.stream().socket()).set_recv_buffer_size(4096).unwrap();
    client.stream().socket().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let requests = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let mut sent = 0;
    while client.send(&requests).is_ok() {
        sent += requests.len();
        assert!(sent < 256 * MIB, "requests are read though no answer is");
    }
    wait_for_gauge(&relay, "connections", 0.0);
    let grown = relay.rss_bytes_max();
    assert!(grown < 64 * MIB as u64, "{grown} bytes for one connection");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_drain_does_not_wait_for_a_client_that_does_not_hear_goaway() {
    let (relay, _sink) = start("", "[shutdown]\ndrain_timeout = \"25s\"\n");
    let mut deaf = H2::connect(relay.address()).unwrap();
    deaf.post(1, NO_EVENTS.as_bytes()).unwrap();
    assert!(deaf.wait_for(h2::HEADERS).is_200());
    let mut half = connect(&relay);
    half.send(b"POST /audit HTTP/1.1\r\nHo").unwrap();
    wait_for_gauge(&relay, "connections", 2.0);
    let began = Instant::now();
    relay.finish(Backlog::Empty);
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[test]
#[allow(unsafe_code, reason = "getrlimit and setrlimit have no safe form without another crate")]
fn the_soft_limit_of_open_files_does_not_bound_max_connections() {
    if !runs_alone() {
        return;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both functions get the address of a live local variable. The process is this
    // test's own.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(256);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    let (relay, _sink) = start("", "");
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the same as above.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    let idle: Vec<Client> = (0..400).map(|_| connect(&relay)).collect();
    wait_for_gauge(&relay, "connections", 400.0);
    assert_accepted(&relay.post(NO_EVENTS.as_bytes()), 0);
    drop(idle);
    relay.finish(Backlog::Empty);
}

/// Ends a thread's loop when it is dropped, which a panic of the test does too.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Opens a thousand connections. Half of them never finish a head, and the others never finish a
/// body.
fn slow_connections(address: SocketAddr, over: &AtomicBool) {
    let mut slow: Vec<Client> = (0..1000).map(|_| Client::connect(address).unwrap()).collect();
    for (index, client) in slow.iter_mut().enumerate() {
        let beginning =
            if index % 2 == 0 { b"POST / HTTP/1.1\r\nX: ".to_vec() } else { head(1_000_000) };
        drop(client.send(&beginning));
    }
    while !over.load(Ordering::Relaxed) {
        for client in &mut slow {
            // The relay may have closed some of these connections.
            drop(client.send(b" "));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sends this many random bytes, as bodies and without HTTP.
fn garbage(address: SocketAddr, seed: u64, bytes: usize) {
    let mut piece = Vec::with_capacity(5 * MIB);
    let mut random = seed | 1;
    while piece.len() < 5 * MIB {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        piece.extend_from_slice(&random.to_le_bytes());
    }
    let mut sent = 0;
    while sent < bytes {
        if let Ok(mut client) = Client::connect(address) {
            let response = client.post("/audit", JSON, &piece).unwrap();
            assert_refusal(&response, 400);
        }
        let mut client = Client::connect(address).unwrap();
        // The relay closes the connection at some point, so a write can fail.
        drop(client.send(&piece));
        sent += 2 * piece.len();
    }
}

/// No other test runs beside these.
mod alone {
    use super::*;

    /// Method: a thousand slow connections and several senders of garbage run at the same time as a
    /// good sender, which posts batches on new and kept connections. Each of its batches must get a
    /// 200 within a second.
    #[test]
    #[ignore = "measures times: ./test"]
    fn garbage_and_a_thousand_slow_connections_leave_a_good_sender_below_one_second() {
        let (relay, sink) = start("", "");
        let address = relay.address();
        let over = Arc::new(AtomicBool::new(false));
        let flag = Flag(Arc::clone(&over));
        let slow = std::thread::spawn(move || slow_connections(address, &over));
        relay.wait_for_metrics("the slow connections", PATIENCE, |metrics| {
            (metrics.sum("connections") >= 1000.0).then_some(())
        });
        let spoilers: Vec<_> = (0..2)
            .map(|seed| std::thread::spawn(move || garbage(address, seed, 50 * MIB)))
            .collect();
        let batch = generated_batch(1, 400, 1600);
        let mut client = Client::connect(address).unwrap();
        let (mut longest, mut posted) = (Duration::ZERO, 0);
        while posted < 100 || spoilers.iter().any(|spoiler| !spoiler.is_finished()) {
            let began = Instant::now();
            // Every other batch uses a new connection, because accepting must not be slow either.
            if posted % 2 == 0 {
                client = Client::connect(address).unwrap();
            }
            assert_accepted(&client.post("/audit", JSON, &batch).unwrap(), 400);
            longest = longest.max(began.elapsed());
            posted += 1;
        }
        for spoiler in spoilers {
            spoiler.join().unwrap();
        }
        drop(flag);
        slow.join().unwrap();
        assert!(longest < Duration::from_secs(1), "an answer took {longest:?}");
        relay.finish(Backlog::Empty);
        sink.wait_until_left();
        assert_eq!(sink.count(), posted * 400);
    }
}

const IN_FLIGHT: u64 = 32 * MIB as u64;
const QUEUE: u64 = 64 * MIB as u64;
const BOUNDS: &str = "[limits]\nmax_in_flight = \"32MiB\"\n[queue]\nmax_bytes = \"64MiB\"\n";

/// Sends a request repeatedly on `connections` connections. Returns how many requests were accepted
/// and how many were refused.
fn hammer(relay: &Relay, connections: usize, rounds: usize, request: &[u8]) -> (u64, u64) {
    let (accepted, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut client = connect(relay);
                for _ in 0..rounds {
                    client.send(request).unwrap();
                    let response = client.read_response().unwrap();
                    let counter = if response.status == 200 { &accepted } else { &refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                    if response.header("connection") == Some("close") {
                        client = connect(relay);
                    }
                }
            });
        }
    });
    (accepted.into_inner(), refused.into_inner())
}

/// Checks that the relay's highest resident memory was within the limit, for a TCP output.
#[track_caller]
fn assert_within_bounds(relay: &Relay, connections: usize) {
    // The pages of the program itself do not count: they are 13 MiB in the build that the tests
    // run, more without optimization, and 7 MiB in a release. 24 MiB are for everything that is
    // neither in flight nor in the queue.
    let used = relay.rss_bytes_max() - relay.rss_file_bytes();
    let allowed = IN_FLIGHT + QUEUE + 24 * MIB as u64 + 64 * 1024 * connections as u64;
    assert!(used <= allowed, "{} MiB, allowed are {} MiB", used / MIB as u64, allowed / MIB as u64);
}

fn plain(body: &[u8]) -> Vec<u8> {
    [head(body.len()), body.to_vec()].concat()
}

fn in_chunks(body: &[u8], size: usize) -> Vec<u8> {
    let mut request =
        b"POST /audit HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for piece in body.chunks(size) {
        request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

fn zipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).unwrap();
    let packed = encoder.finish().unwrap();
    let head = format!(
        "POST /audit HTTP/1.1\r\nHost: relay\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        packed.len()
    );
    [head.into_bytes(), packed].concat()
}

/// Returns one event of `bytes` bytes.
fn one_event(bytes: usize) -> Vec<u8> {
    let mut event = EVENT.as_bytes().to_vec();
    event.pop();
    event.extend_from_slice(b",\"x\":\"");
    event.resize(bytes - 2, b'x');
    event.extend_from_slice(b"\"}");
    event
}

#[test]
fn memory_stays_bounded_with_senders_at_full_speed_and_a_dead_consumer() {
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    let batch = generated_batch(1, 400, 2500);
    let (accepted, refused) = hammer(&relay, 8, 60, &plain(&batch));
    assert!(accepted >= 60 && refused >= 300, "{accepted} accepted, {refused} refused");
    let (_, refused) = hammer(&relay, 8, 60, &in_chunks(&batch, 50_000));
    assert_eq!(refused, 480);
    assert_within_bounds(&relay, 8);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_with_small_batches_in_chunks() {
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    // At this size, the unused part of a body's buffer is largest in relation to the bytes that the
    // queue counts for the body.
    let batch = generated_batch(1, 1, 1150);
    let (accepted, refused) = hammer(&relay, 8, 8000, &in_chunks(&batch, 600));
    assert!(accepted > 20_000 && refused > 1000, "{accepted} accepted, {refused} refused");
    assert_within_bounds(&relay, 8);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_with_bodies_as_large_as_allowed() {
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    let event = one_event(31 * MIB);
    hammer(&relay, 6, 4, &plain(&event));
    assert_within_bounds(&relay, 6);
    hammer(&relay, 6, 4, &in_chunks(&event, 100_000));
    assert_within_bounds(&relay, 6);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_with_many_bodies_of_60_mib_at_once() {
    let tables = "[limits]\nmax_in_flight = \"64MiB\"\n[queue]\nmax_bytes = \"64MiB\"\n";
    let (relay, _sink) = start_with_dead_consumer("", tables);
    let request = plain(&one_event(60 * MIB));
    let (accepted, refused) = hammer(&relay, 10, 2, &request);
    assert!(refused >= 18, "{accepted} accepted, {refused} refused");
    let (used, allowed) = (relay.rss_bytes_max(), (64 + 64 + 32 + 1) * MIB as u64);
    assert!(used <= allowed, "{} MiB, allowed are {} MiB", used / MIB as u64, allowed / MIB as u64);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_with_gzip_bombs() {
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    let bomb = zipped(&one_event(31 * MIB));
    assert!(bomb.len() < MIB / 8);
    hammer(&relay, 8, 6, &bomb);
    assert_within_bounds(&relay, 8);
    let (accepted, _) = hammer(&relay, 8, 6, &zipped(&one_event(100 * MIB)));
    assert_eq!(accepted, 0);
    assert_within_bounds(&relay, 8);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_with_the_smallest_events() {
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    let lines = format!("{EVENT}\n").repeat(7 * MIB / 32);
    hammer(&relay, 8, 4, &plain(lines.as_bytes()));
    assert_within_bounds(&relay, 8);
    let list = format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{}{EVENT}]}}"#,
        format!("{EVENT},").repeat(7 * MIB / 32)
    );
    hammer(&relay, 8, 4, &zipped(list.as_bytes()));
    assert_within_bounds(&relay, 8);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_where_the_list_is_large_and_its_events_are_small() {
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    let junk = "x".repeat(MIB);
    let before = format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{{"x":"{junk}"}},"items":[{EVENT}]}}"#
    );
    let after = format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{EVENT}],"metadata":{{"x":"{junk}"}}}}"#
    );
    let between = format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{EVENT},{}{EVENT}]}}"#,
        " ".repeat(MIB)
    );
    for body in [before, after, between] {
        let (accepted, _) = hammer(&relay, 4, 50, &plain(body.as_bytes()));
        assert_eq!(accepted, 200);
        assert_within_bounds(&relay, 4);
    }
    assert!(relay.metrics().value("queue_bytes", &[]) < MIB as f64);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_with_many_heads_that_never_end() {
    if !runs_alone() {
        return;
    }
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    let mut idle: Vec<Client> = (0..1000).map(|_| connect(&relay)).collect();
    let mut beginning = b"POST /audit HTTP/1.1\r\nX: ".to_vec();
    // The heads are ten times as large as real ones. Heads twice as large would be allowed, but
    // hyper copies a growing buffer, and for a moment the old buffers use as much again.
    beginning.resize(31 * 1024, b'x');
    for client in &mut idle {
        // The relay may have refused this connection.
        drop(client.send(&beginning));
    }
    wait_until("the heads", PATIENCE, || relay.metrics().sum("connections") >= 1000.0);
    let used = relay.rss_bytes_max();
    let allowed = (32 + 1000 / 16) * MIB as u64;
    assert!(used <= allowed, "{} MiB, allowed are {} MiB", used / MIB as u64, allowed / MIB as u64);
    assert_accepted(&post(relay.address(), "/", JSON, NO_EVENTS.as_bytes()).unwrap(), 0);
    drop(idle);
    relay.finish(Backlog::Stable);
}

#[test]
fn memory_stays_bounded_with_millions_of_items_that_are_no_events() {
    let (relay, _sink) = start_with_dead_consumer("", BOUNDS);
    let list = format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{}1]}}"#,
        "1,".repeat(15 * MIB)
    );
    let lines = format!("{EVENT}\n{}", "1\n".repeat(15 * MIB));
    // The lines have one event, which is accepted.
    for (body, events_max) in [(list, 0), (lines, 8)] {
        let (accepted, _) = hammer(&relay, 4, 2, &zipped(body.as_bytes()));
        assert!(accepted <= events_max, "{accepted}");
        assert_within_bounds(&relay, 4);
    }
    relay.finish(Backlog::Stable);
}
