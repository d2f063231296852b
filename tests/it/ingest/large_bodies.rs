//! A large batch is accepted as a whole and kept in order, and the relay needs no more memory than
//! guarantee 4 promises. A refusal leaves nothing of it. A crash before the answer may leave its
//! first events, and the sender sends all of it again.
//!
//! Anybody who can edit a namespace can cause such a batch: 45 writes of 1 MB within a second and a
//! half, at level RequestResponse, make one body of 90 MB, and the same body has the events of all
//! other users.

use std::io::Write as _;
use std::net::TcpListener;

use crate::support::answers::{assert_accepted, assert_refusal};
use crate::support::http::Response;
use crate::support::prelude::*;
use crate::support::setup::start;

const MIB: usize = 1024 * 1024;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn post(address: SocketAddr, headers: &str, body: &[u8]) -> std::io::Result<Response> {
    let mut client = Client::connect(address)?;
    client.read_timeout(PATIENCE * 6);
    let length = body.len();
    let head =
        format!("POST / HTTP/1.1\r\nHost: relay\r\n{headers}Content-Length: {length}\r\n\r\n");
    client.send(head.as_bytes())?;
    client.send(body)?;
    client.read_response()
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut request =
        b"POST / HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for piece in body.chunks(50_000) {
        request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

/// Returns an EventList of exactly `size` bytes, padded with white space.
fn body_of(seed: u64, size: usize, event_bytes: usize) -> Vec<u8> {
    let one = generated_batch(seed, 1, event_bytes).len();
    let mut events = size / one;
    let mut body = generated_batch(seed, events.max(1), event_bytes);
    while body.len() > size && events > 1 {
        events -= 1 + (body.len() - size) / one;
        body = generated_batch(seed, events, event_bytes);
    }
    assert!(body.len() <= size, "{} of {size}", body.len());
    body.resize(size, b' ');
    body
}

/// Returns the config of an output whose consumer is down.
fn away() -> String {
    away_from(free_port())
}

fn away_from(port: u16) -> String {
    format!("[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"127.0.0.1:{port}\"]\n")
}

/// Returns all events in a queue's directory, in order.
fn exported(spool: &Spool) -> Vec<Vec<u8>> {
    let output = run_command(&["queue", "export", text(spool.path())], Path::new("/"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(<[u8]>::to_vec).collect()
}

/// A consumer that only counts lines and their bytes, because the test has no memory for all
/// events.
fn counting_consumer() -> (SocketAddr, Arc<Mutex<(u64, u64)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new((0, 0)));
    let counts = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(count @ 1..) = std::io::Read::read(&mut stream, &mut buffer) {
                let lines = memchr::memchr_iter(b'\n', &buffer[..count]).count();
                let mut seen = counts.lock().unwrap();
                *seen = (seen.0 + lines as u64, seen.1 + count as u64);
            }
        }
    });
    (address, seen)
}

/// Method: a body of exactly `max_in_flight`, 128 MiB, is sent and delivered. Every event and every
/// byte must arrive, and the highest resident memory must be within guarantee 4. The relay must
/// answer 100 Continue to a body of this size.
#[test]
fn the_largest_body_is_taken_and_delivered_within_the_memory_that_is_promised() {
    const BODY: usize = 128 * MIB;
    let (consumer, seen) = counting_consumer();
    let spool = Spool::new();
    let relay = Relay::start(&format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"{consumer}\"]\n{}\
         [limits]\nmax_in_flight = \"128MiB\"\nbody_timeout = \"5m\"\n",
        spool.queue("max_bytes = \"1GiB\"\n")
    ));
    let idle = relay.rss_bytes();
    let connect = |length: usize, more: &str| {
        let mut client = Client::connect(relay.address()).unwrap();
        client.read_timeout(PATIENCE * 6);
        let head =
            format!("POST / HTTP/1.1\r\nHost: relay\r\n{more}Content-Length: {length}\r\n\r\n");
        client.send(head.as_bytes()).unwrap();
        client
    };
    let answer = connect(BODY, "Expect: 100-continue\r\n").read_response().unwrap();
    assert_eq!(answer.status, 100);
    let head = generated_batch(7, 1, MIB);
    let event = events_of(&head).remove(0);
    let list_head = head.len() - event.len() - b"]}\n".len();
    let events = (BODY - list_head - 100) / (event.len() + 1);
    let mut client = connect(BODY, "");
    client.send(&head[..list_head]).unwrap();
    let mut left = BODY - list_head - b"]}\n".len();
    for number in 0..events {
        let comma: &[u8] = if number == 0 { b"" } else { b"," };
        client.send(comma).unwrap();
        client.send(&event).unwrap();
        left -= comma.len() + event.len();
    }
    client.send(&vec![b' '; left]).unwrap();
    client.send(b"]}\n").unwrap();
    assert_accepted(&client.read_response().unwrap(), events as u64);
    let bytes = (events * (event.len() + 1)) as u64;
    wait_until("all events at the consumer", PATIENCE * 6, || {
        *seen.lock().unwrap() >= (events as u64, bytes)
    });
    // Guarantee 4 (docs/concepts/guarantees.md) is, beyond an idle process: max_in_flight, 32 MiB
    // for the queue, 32 MiB more, 64 KiB for each connection, and here twice an event of 1 MiB.
    let most = idle + (128 + 32 + 32 + 2 + 2) * MIB as u64;
    let used = relay.rss_bytes_max();
    assert!(used < most, "{} MiB were resident, {} promised", used >> 20, most >> 20);
    assert_eq!(relay.metrics().value("accepted_bytes_total", &[]), bytes as f64);
    relay.finish(Backlog::Empty);
    assert_eq!(*seen.lock().unwrap(), (events as u64, bytes));
}

/// Returns an EventList of ten small events, one of `bytes` bytes, and ten more.
fn with_neighbours(bytes: usize) -> Vec<u8> {
    let [before, after] = [1, 3].map(|seed| events_of(&generated_batch(seed, 10, 500)).join(&b','));
    let text = "x".repeat(bytes);
    let large = format!(r#"{{"level":"Request","auditID":"large","stage":"Panic","x":"{text}"}}"#);
    let head = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
    [head, before.as_slice(), b",", large.as_bytes(), b",", &after, b"]}\n"].concat()
}

/// Method: an event of nearly `max_in_flight` comes between small ones, in each form of a body. It
/// must be accepted, together with its neighbours.
#[test]
fn an_event_of_nearly_max_in_flight_is_taken_with_its_neighbours() {
    let spool = Spool::new();
    let sink = TcpSink::start();
    let relay = Relay::start(&format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n\
         replay_window = \"100ms\"\n[limits]\nmax_in_flight = \"1MiB\"\n{}",
        sink.address(),
        spool.queue("max_bytes = \"64MiB\"\n")
    ));
    let list = with_neighbours(850_000);
    let events = events_of(&list);
    assert!(events[10].len() > 800_000, "{}", events[10].len());
    let lines = events.join(&b'\n');
    let bodies = [("", list.clone()), ("", lines), ("Content-Encoding: gzip\r\n", gzip(&list))];
    for (headers, body) in &bodies {
        assert_accepted(&post(relay.address(), headers, body).unwrap(), 21);
    }
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&chunked(&list)).unwrap();
    assert_accepted(&client.read_response().unwrap(), 21);
    sink.wait_for_count(4 * 21, PATIENCE);
    assert!(sink.lines() == vec![events; 4].concat(), "the events are others than those sent");
    assert_eq!(relay.metrics().value("in_flight_bytes", &[]), 0.0);
    // A larger one is trimmed, and its neighbours are as they were.
    let list = with_neighbours(1_100_000);
    assert_accepted(&relay.post(&list), 21);
    sink.wait_for_count(5 * 21, PATIENCE);
    let (lines, mut events) = (sink.lines().split_off(4 * 21), events_of(&list));
    let trimmed = String::from_utf8(lines[10].clone()).unwrap();
    assert!(trimmed.len() < 2000 && trimmed.contains("audit.k8s.io/truncated"), "{trimmed}");
    events[10] = lines[10].clone();
    assert!(lines == events, "the events are others than those sent");
    relay.finish(Backlog::Empty);
}

/// Method: one event of nearly `max_in_flight` is posted while the consumer is down. The relay
/// starts again and delivers it. Both times, the highest resident memory must be within guarantee
/// 4.
#[test]
fn an_event_of_nearly_max_in_flight_is_in_memory_once() {
    let (consumer, seen) = counting_consumer();
    let spool = Spool::new();
    let config = |port| {
        format!(
            "{BASE}{}{}[limits]\nmax_in_flight = \"128MiB\"\nbody_timeout = \"5m\"\n",
            away_from(port),
            spool.queue("max_bytes = \"512MiB\"\n")
        )
    };
    // The parts of the sum, beyond an idle process: 32 MiB for the queue, 32 MiB more, 64 KiB for
    // each connection, and `max_in_flight` or the output's largest event.
    let most = |idle: u64| idle + (32 + 32 + 2 + 128) * MIB as u64;
    let mut relay = Relay::start(&config(free_port()));
    let idle = relay.rss_bytes();
    let body = with_neighbours(120 * MIB);
    // A busy disk can need longer than a sender may wait. The answer is then 503, and the body is
    // sent again.
    let mut posts = (0..5).map(|_| post(relay.address(), "", &body).unwrap());
    let answer = posts.find(|answer| answer.status != 503);
    assert_accepted(&answer.expect("five times 503"), 21);
    let used = relay.rss_bytes_max();
    assert!(used < most(idle), "{} MiB are resident, {} promised", used >> 20, most(idle) >> 20);
    relay.stop();

    let relay = Relay::start(&config(consumer.port()));
    wait_until("all events at the consumer", PATIENCE * 6, || seen.lock().unwrap().0 >= 21);
    relay.wait_until_delivered(PATIENCE);
    let used = relay.rss_bytes_max();
    assert!(used < most(idle), "{} MiB are resident, {} promised", used >> 20, most(idle) >> 20);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_batch_of_90_mb_hides_no_event_by_the_defaults_in_memory() {
    let sink = TcpSink::start();
    let relay = Relay::start(&format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n\
         replay_window = \"100ms\"\n[limits]\nbody_timeout = \"5m\"\n",
        sink.address()
    ));
    let mut body = generated_batch(1, 45, 2_000_000);
    let binding = r#"{"level":"RequestResponse","auditID":"b","stage":"ResponseComplete","objectRef":{"resource":"clusterrolebindings","name":"evil"}}"#;
    body.truncate(body.len() - b"]}\n".len());
    body.extend_from_slice(format!(",{binding}]}}\n").as_bytes());
    assert!(body.len() > 90_000_000);
    let response = post(relay.address(), "", &body).unwrap();
    assert_accepted(&response, 46);
    sink.wait_for_count(46, PATIENCE * 3);
    assert!(sink.has(binding.as_bytes()));
    assert!(sink.lines() == events_of(&body), "the events are others than those sent");
    relay.finish(Backlog::Empty);
}

#[test]
fn large_bodies_of_every_form_arrive_byte_for_byte_and_in_order() {
    let spool = Spool::new();
    let sink = TcpSink::start();
    let relay = Relay::start(&format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n\
         replay_window = \"100ms\"\n{}",
        sink.address(),
        spool.queue("max_bytes = \"64MiB\"\n")
    ));
    let mut expected = Vec::new();
    let list = body_of(1, 3 * MIB, 900);
    let lines = |body: &[u8]| {
        let mut lines = events_of(body).join(&b'\n');
        lines.push(b'\n');
        lines
    };
    let spaced = String::from_utf8(body_of(2, 2 * MIB, 900)).unwrap().replace("},{", "}\n ,\r\n {");
    let as_lines = lines(&body_of(3, 2 * MIB, 400_000));
    let small = generated_batch(4, 10, 500);
    let packed = body_of(5, 5 * MIB, 5000);
    let in_chunks = body_of(6, 2 * MIB + 1, 300);
    for (headers, body, source) in [
        ("", list.clone(), list),
        ("", spaced.clone().into_bytes(), spaced.into_bytes()),
        ("", as_lines, body_of(3, 2 * MIB, 400_000)),
        ("", small.clone(), small),
        ("Content-Encoding: gzip\r\n", gzip(&packed), packed),
    ] {
        let events = events_of(&source);
        assert_accepted(&post(relay.address(), headers, &body).unwrap(), events.len() as u64);
        expected.extend(events);
    }
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&chunked(&in_chunks)).unwrap();
    let events = events_of(&in_chunks);
    assert_accepted(&client.read_response().unwrap(), events.len() as u64);
    expected.extend(events);
    sink.wait_for_count(expected.len(), PATIENCE);
    assert!(sink.lines() == expected, "the events are others than those sent, or in another order");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_large_body_that_is_refused_leaves_nothing() {
    let spool = Spool::new();
    let relay =
        Relay::start(&format!("{BASE}{}{}", away(), spool.queue("max_bytes = \"16MiB\"\n")));
    let good = body_of(1, MIB, 900);
    let count = events_of(&good).len();
    assert_accepted(&relay.post(&good), count as u64);
    let held = |relay: &Relay| relay.metrics().value("queue_bytes", &[]);
    let before = held(&relay);

    let mut broken = body_of(2, 4 * MIB, 900);
    let last = broken.iter().rposition(|&byte| byte == b':').unwrap();
    broken[last] = b';';
    let response = relay.post(&broken);
    assert_refusal(&response, 400);
    let item = events_of(&body_of(2, 4 * MIB, 900)).len() - 1;
    assert!(response.text().contains(&format!("item {item} at byte ")), "{}", response.text());
    let cut_off = &body_of(2, 4 * MIB, 900)[..3 * MIB];
    assert_refusal(&relay.post(cut_off), 400);
    // The body is larger than `max_body`, which is half of `max_bytes` here, and is not a list. The
    // size of a chunked body is only seen while it arrives.
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&chunked(&events_of(&body_of(4, 9 * MIB, 900)).join(&b'\n'))).ok();
    assert_refusal(&client.read_response().unwrap(), 413);
    // These senders close their connections in the middle of a body.
    for sent in [MIB / 2, 2 * MIB, 6 * MIB] {
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7000000\r\n\r\n").unwrap();
        client.send(&body_of(5, 7_000_000, 900)[..sent]).unwrap();
        drop(client);
    }
    // The relay may not have noticed yet that a sender has closed its connection.
    wait_until("the room to be free again", PATIENCE, || {
        held(&relay) <= before && relay.metrics().value("in_flight_bytes", &[]) == 0.0
    });
    assert_accepted(
        &relay.post(&body_of(6, 5 * MIB, 900)),
        events_of(&body_of(6, 5 * MIB, 900)).len() as u64,
    );
    relay.finish(Backlog::Stable);
    let expected = [events_of(&good), events_of(&body_of(6, 5 * MIB, 900))].concat();
    assert!(exported(&spool) == expected, "the log holds other events than those accepted");
}

#[test]
fn a_large_body_without_room_is_429_and_its_repetition_counts_once_as_accepted() {
    let spool = Spool::new();
    let sink = TcpSink::start();
    let dead = free_port();
    let relay = Relay::start(&format!(
        "{BASE}{}{}",
        away_from(dead),
        spool.queue("max_bytes = \"16MiB\"\n")
    ));
    let bodies: Vec<Vec<u8>> = (0..4).map(|seed| body_of(seed, 6 * MIB, 900)).collect();
    let answers: Vec<u16> = bodies.iter().map(|body| relay.post(body).status).collect();
    assert_eq!(answers, [200, 200, 429, 429]);
    let lines = |bodies: &[Vec<u8>]| -> f64 {
        bodies.iter().flat_map(|body| events_of(body)).map(|event| event.len() as f64 + 1.0).sum()
    };
    let metrics = relay.metrics();
    assert_eq!(metrics.value("accepted_bytes_total", &[]), lines(&bodies[..2]));
    // A body that is refused because of its Content-Length is still read, and counts as received.
    assert_eq!(metrics.sum("received_bytes_total"), 4.0 * 6.0 * MIB as f64);
    // A reload adds a consumer, so the repeated bodies find room.
    let config = std::fs::read_to_string(relay.config_file()).unwrap();
    let config = config.replace(&format!("127.0.0.1:{dead}"), &sink.address().to_string());
    std::fs::write(relay.config_file(), config).unwrap();
    relay.signal(libc::SIGHUP);
    relay.wait_until_delivered(PATIENCE);
    for body in &bodies[2..] {
        wait_until("200", PATIENCE, || relay.post(body).status == 200);
    }
    assert_eq!(relay.metrics().value("accepted_bytes_total", &[]), lines(&bodies));
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    let expected: Vec<Vec<u8>> = bodies.iter().flat_map(|body| events_of(body)).collect();
    assert_same_set(&sink.lines(), &expected);
}

#[test]
fn a_full_queue_that_drops_counts_the_events_of_large_bodies_too() {
    for when_full in ["drop_newest", "drop_oldest"] {
        let spool = Spool::new();
        let queue = format!("max_bytes = \"16MiB\"\nwhen_full = \"{when_full}\"\n");
        let relay = Relay::start(&format!("{BASE}{}{}", away(), spool.queue(&queue)));
        let bodies: Vec<Vec<u8>> = (0..5).map(|seed| body_of(seed, 6 * MIB, 900)).collect();
        let counts: Vec<usize> = bodies.iter().map(|body| events_of(body).len()).collect();
        for (body, count) in bodies.iter().zip(&counts) {
            assert_accepted(&relay.post(body), *count as u64);
        }
        let kept = match when_full {
            "drop_newest" => &bodies[..2],
            _ => &bodies[3..],
        };
        let lost: usize = counts.iter().sum::<usize>()
            - kept.iter().map(|body| events_of(body).len()).sum::<usize>();
        assert_eq!(relay.metrics().sum("error_total"), lost as f64, "{when_full}");
        relay.finish(Backlog::Stable);
        let expected: Vec<Vec<u8>> = kept.iter().flat_map(|body| events_of(body)).collect();
        assert!(exported(&spool) == expected, "{when_full}: other events than those kept");
    }
}

/// Method: in each round, on its own spool, a batch is acknowledged, and then a body of random
/// size, often close to a limit, is sent. The relay is killed at a random moment while the body
/// arrives, is stored or is answered. After the next start, the log must have all of the body if
/// the sender got a 200, and otherwise nothing or its first events.
#[test]
fn a_kill_while_a_large_body_arrives_loses_nothing_that_was_acknowledged() {
    let mut rng = rng();
    let rounds = number_from("KUBE_AUDIT_FORWARDER_KILLS", 10);
    let (mut whole, mut parts, mut none) = (0, 0, 0);
    for round in 0..rounds {
        let spool = Spool::new();
        let config = format!(
            "{BASE}{}{}",
            away(),
            spool.queue("max_bytes = \"16MiB\"\nsegment_bytes = \"256KiB\"\n")
        );
        let mut relay = Relay::start(&config);
        let first = generated_batch(round << 8, 10, 500);
        assert_accepted(&relay.post(&first), 10);
        // A body of more than 2 MiB becomes several records, and one above 8 MiB is refused.
        let limit = *rng.choice(&[256 << 10, 2 << 20, 4 << 20, 8 << 20]).unwrap();
        let size =
            if rng.bool() { limit - 2 + rng.usize(..5) } else { rng.usize(300_000..8_000_000) };
        let event_bytes = rng.usize(300..100_000);
        let body = body_of((round << 8) + 1, size, event_bytes);
        let sender = {
            let (address, body) = (relay.address(), body.clone());
            std::thread::spawn(move || {
                post(address, "", &body).map(|response| response.status).ok()
            })
        };
        let is_killed = rng.u8(..5) > 0;
        if is_killed {
            std::thread::sleep(Duration::from_micros(rng.u64(..40_000 + size as u64 / 40)));
            relay.kill();
        }
        let answer = sender.join().unwrap();
        if !is_killed {
            relay.kill();
        }
        let after = || {
            let relay = Relay::start(&config);
            let second = generated_batch((round << 8) + 2, 10, 500);
            assert_accepted(&relay.post(&second), 10);
            relay.finish(Backlog::Stable);
            events_of(&second)
        };
        let second = after();
        let stored = exported(&spool);
        let (first, events) = (events_of(&first), events_of(&body));
        let about = format!(
            "{size} bytes, answered {answer:?}, {} of {} events",
            stored.len(),
            events.len()
        );
        let of_body = (stored.len() - first.len()).saturating_sub(second.len());
        let front = events.get(..of_body).expect("not more than was sent");
        assert!(stored == [&first, front, &second].concat(), "round {round}: {about}");
        let is_whole = of_body == events.len();
        match answer {
            Some(200) => assert!(is_whole, "round {round}: {about}"),
            Some(413) => assert!(of_body == 0 && size > 8 << 20, "round {round}: {about}"),
            None => {}
            Some(other) => panic!("round {round}: {other}, {about}"),
        }
        let count = match of_body {
            0 => &mut none,
            _ if is_whole => &mut whole,
            _ => &mut parts,
        };
        *count += 1;
    }
    println!("{rounds} rounds: {whole} bodies whole, {parts} in part, {none} not there");
}

#[test]
fn gzip_without_content_is_refused_before_it_costs_cpu() {
    let (relay, _sink) = start("", "");
    let member = gzip(b"");
    let empties = member.repeat(40_000_000 / member.len());
    let mut client = Client::connect(relay.address()).unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        empties.len()
    );
    client.send(head.as_bytes()).unwrap();
    client.send(&empties).unwrap();
    let response = client.read_response().unwrap();
    assert_refusal(&response, 400);
    assert!(response.text().contains("members without content"), "{}", response.text());
    // A body of many gzip members with content, one for each 900 bytes, is still accepted.
    let body = generated_batch(1, 2000, 800);
    let members: Vec<u8> = body.chunks(900).flat_map(gzip).collect();
    let response = post(relay.address(), "Content-Encoding: gzip\r\n", &members).unwrap();
    assert_accepted(&response, 2000);
    relay.finish(Backlog::Empty);

    let (relay, _sink) = start("", "[limits]\nmax_body = \"1MiB\"\n");
    let body = body_of(1, MIB - 10, 900);
    let stored = {
        let level = flate2::Compression::none();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(&body).unwrap();
        encoder.finish().unwrap()
    };
    assert!(stored.len() > MIB, "it is larger as sent than what is in it");
    let response = post(relay.address(), "Content-Encoding: gzip\r\n", &stored).unwrap();
    assert_accepted(&response, events_of(&body).len() as u64);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_sender_over_http_outputs_gets_large_bodies_in_batches() {
    let sink = HttpSink::start(|_| Answer::status(200));
    let spool = Spool::new();
    let config = to_sink(sink.address(), &spool.queue("max_bytes = \"32MiB\"\n"));
    let relay = Relay::start(&config);
    let body = body_of(1, 9 * MIB, 900);
    let events = events_of(&body);
    assert_accepted(&relay.post(&body), events.len() as u64);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events);
    relay.finish(Backlog::Empty);
}
