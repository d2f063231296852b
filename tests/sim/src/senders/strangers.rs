//! The senders that are not kube-apiserver: log shippers, clients that disconnect, bodies that must
//! be refused, and a tenant that tries to occupy the listener.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::client::{Http1, Line, head, judged, judged_beside};
use super::shop::Job;
use super::{Actor, Kind, apiserver};
use crate::events::{Event, Serial};
use crate::truth::{Answer, Must, SentBy};
use crate::{events, kernel};

/// The most connections that a tenant holds at the same time.
const CONNECTIONS_MAX: u8 = 12;

impl Actor {
    /// Waits for the next turn. Returns `false` once no more events should be made.
    pub(super) fn is_next(&self, rng: &mut fastrand::Rng) -> bool {
        let (Kind::Lines { gap }
        | Kind::Vanishing { gap }
        | Kind::Malformed { gap }
        | Kind::Repeats { gap }
        | Kind::Tenant { gap }
        | Kind::Large { gap, .. }
        | Kind::TooLarge { gap }
        | Kind::Intruder { gap, .. }) = self.profile.kind
        else {
            return false;
        };
        self.shop.pause(gap.mul_f64(rng.f64()))
    }
}

/// Requests that are written by hand, each on its own connection.
pub(super) struct Single<'a> {
    pub(super) actor: &'a Actor,
    /// The number of connections so far.
    pub(super) connections: u64,
}

impl Single<'_> {
    /// Adds the request to the book, connects, and lets `talk` return the result.
    pub(super) fn request(
        &mut self,
        serials: &Arc<[Serial]>,
        must: Must,
        talk: impl FnOnce(&mut Http1, Duration) -> Result<Answer, Answer>,
    ) {
        let connect = |deadline| Http1::connect(self.actor, deadline);
        self.request_over(serials, must, connect, talk);
    }

    /// Like [`Single::request`], over a connection that `connect` makes.
    pub(super) fn request_over(
        &mut self,
        serials: &Arc<[Serial]>,
        must: Must,
        connect: impl FnOnce(Duration) -> Result<Http1, Answer>,
        talk: impl FnOnce(&mut Http1, Duration) -> Result<Answer, Answer>,
    ) {
        self.connections += 1;
        let actor = self.actor;
        let from = SentBy { sender: actor.profile.sender, connection: self.connections };
        let attempt = actor.book.begun(from, serials, must);
        let deadline = kernel::now() + apiserver::ATTEMPT + Duration::from_secs(10);
        let talked = connect(deadline).and_then(|mut http| talk(&mut http, deadline));
        actor.book.ended(attempt, talked.unwrap_or_else(|answer| answer));
    }
}

pub(super) fn write_all(
    http: &mut Http1,
    parts: &[&[u8]],
    deadline: Duration,
) -> Result<(), Answer> {
    match http.socket().write(&parts.concat(), deadline) {
        // The response may have come before the whole request was written.
        Ok(()) | Err(Answer::Broken) => Ok(()),
        Err(answer) => Err(answer),
    }
}

/// Sends JSON lines, some of them compressed or in chunks. Half of the bodies are retried.
pub(super) fn lines(actor: &Actor, role: u32) {
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut line = Line::new(actor, 1 << 40);
    let mut single = Single { actor, connections: 0 };
    while actor.is_next(&mut rng) {
        let events = actor.events(&mut maker, rng.usize(1..20));
        if events.is_empty() {
            continue;
        }
        let body = events::lines(&events);
        if rng.bool() {
            let mut job = Job::new(actor, &events, body, Duration::from_secs(2));
            actor.shop.busy(true);
            apiserver::deliver(actor, &mut line, &mut job, &mut rng);
            actor.shop.busy(false);
            continue;
        }
        let serials = actor.book.made(&events);
        let (headers, body) = match rng.u8(..3) {
            0 => (("Content-Encoding", "gzip"), gzip(&body)),
            1 => (("Transfer-Encoding", "chunked"), chunked(&body, &mut rng)),
            _ => (("Content-Type", "application/x-ndjson"), body),
        };
        let head = head(actor, "POST", &[headers], body.len());
        single.request(&serials, Must::Take, |http, deadline| {
            write_all(http, &[head.as_bytes(), &body], deadline)?;
            Ok(judged(&http.reply(deadline)?, serials.len()))
        });
    }
}

/// How often a body is repeated at most.
const REPEATED_MAX: u8 = 3;

/// The longest pause before a repetition, in seconds.
const LATER: f64 = 20.0;

/// Sends accepted bodies again, some of them much later.
pub(super) fn repeats(actor: &Actor, role: u32) {
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut line = Line::new(actor, 1 << 40);
    while actor.is_next(&mut rng) {
        let events = actor.events(&mut maker, rng.usize(1..10));
        if events.is_empty() {
            continue;
        }
        let mut job = Job::new(actor, &events, events::lines(&events), Duration::from_secs(2));
        for _ in 0..=rng.u8(..=REPEATED_MAX) {
            actor.shop.busy(true);
            let delivered = apiserver::deliver(actor, &mut line, &mut job, &mut rng);
            actor.shop.busy(false);
            let pause = Duration::from_secs_f64(LATER * rng.f64() * rng.f64());
            if !delivered || !actor.shop.pause(pause) {
                break;
            }
            job = job.again();
        }
    }
}

pub(super) fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("memory takes everything")
}

pub(super) fn chunked(body: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut chunks = Vec::new();
    for chunk in body.chunks(rng.usize(100..5_000)) {
        chunks.extend(format!("{:x}\r\n", chunk.len()).bytes());
        chunks.extend(chunk);
        chunks.extend(b"\r\n");
    }
    chunks.extend(b"0\r\n\r\n");
    chunks
}

/// Sends valid bodies. Then it disconnects at once or later without reading the response, or it
/// half-closes the connection and reads the response.
pub(super) fn vanishing(actor: &Actor, role: u32) {
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut single = Single { actor, connections: 0 };
    while actor.is_next(&mut rng) {
        let events = actor.events(&mut maker, rng.usize(1..30));
        if events.is_empty() {
            continue;
        }
        let (serials, body) = (actor.book.made(&events), events::list(&events));
        let head = head(actor, "POST", &[], body.len());
        let (how, stays) = (rng.u8(..3), Duration::from_millis(rng.u64(..6_000)));
        single.request(&serials, Must::Take, |http, deadline| {
            write_all(http, &[head.as_bytes(), &body], deadline)?;
            match how {
                0 => {}
                1 => std::thread::sleep(stays),
                // A half-open connection is enough to read the response.
                _ => {
                    http.socket().finish_writing();
                    let reply = http.reply(deadline).map_err(|answer| {
                        if answer == Answer::Broken { Answer::HalfClosed } else { answer }
                    });
                    return Ok(judged(&reply?, serials.len()));
                }
            }
            Ok(Answer::Unread)
        });
    }
}

/// Sends requests that must be refused, bodies that break off, and events that a client of the
/// cluster has shaped, among others.
pub(super) fn malformed(actor: &Actor, role: u32) {
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut single = Single { actor, connections: 0 };
    while actor.is_next(&mut rng) {
        let events = actor.events(&mut maker, rng.usize(1..8));
        if events.is_empty() {
            continue;
        }
        match rng.u8(..4) {
            0 => shaped_event(&mut single, events, &mut rng),
            1 => broken_body(&mut single, &events, &mut rng),
            2 => wrong_request(&mut single, &events, &mut rng),
            _ => cut_body(&mut single, &events, &mut rng),
        }
    }
}

fn shaped_event(single: &mut Single<'_>, mut events: Vec<Event>, rng: &mut fastrand::Rng) {
    let (body, others) = events::shape(&mut events, rng);
    let serials = single.actor.book.made(&events);
    let head = head(single.actor, "POST", &[], body.len());
    single.request(&serials, Must::Take, |http, deadline| {
        write_all(http, &[head.as_bytes(), &body], deadline)?;
        Ok(judged_beside(&http.reply(deadline)?, serials.len(), others))
    });
}

fn broken_body(single: &mut Single<'_>, events: &[Event], rng: &mut fastrand::Rng) {
    let (mut body, what) = events::broken(events, rng);
    let mut headers = Vec::new();
    if rng.u8(..8) == 0 && !body.is_empty() {
        body = gzip(&body);
        body.truncate(body.len() - rng.usize(0..body.len().min(9)));
        headers.push(("Content-Encoding", "gzip"));
    }
    let serials = single.actor.book.made(events);
    let head = head(single.actor, "POST", &headers, body.len());
    single.request(&serials, Must::Refuse(what, &[400]), |http, deadline| {
        write_all(http, &[head.as_bytes(), &body], deadline)?;
        Ok(judged(&http.reply(deadline)?, serials.len()))
    });
}

/// Sends valid events in a request that must be refused.
fn wrong_request(single: &mut Single<'_>, events: &[Event], rng: &mut fastrand::Rng) {
    let (actor, mut body) = (single.actor, events::list(events));
    let post = |headers: &[(&str, &str)]| head(actor, "POST", headers, body.len());
    let (head, must) = match rng.u8(..8) {
        0 => (head(actor, "PUT", &[], body.len()), Must::Refuse("PUT", &[405])),
        1 => {
            let head = post(&[("Content-Type", "application/xml")]);
            (head, Must::Refuse("another media type", &[415]))
        }
        2 => {
            let head = post(&[("Content-Encoding", "br")]);
            (head, Must::Refuse("another encoding", &[415]))
        }
        3 => (post(&[("Host", "a"), ("Host", "b")]), Must::Refuse("two Hosts", &[400])),
        4 => {
            let head = post(&[("Content-Length", "99999999999")]);
            // A list is read as it arrives, however long it is.
            body = events::lines(events);
            (head, Must::Refuse("too large", &[413]))
        }
        5 if actor.target.token.is_some() => {
            let head = post(&[("Authorization", "Bearer another")]);
            (head, Must::Refuse("a wrong token", &[401]))
        }
        _ => {
            let head = post(&[("Content-Length", &(body.len() + 10).to_string())]);
            body.extend(b"]         ");
            (head, Must::Refuse("more behind the end", &[400]))
        }
    };
    let serials = actor.book.made(events);
    single.request(&serials, must, |http, deadline| {
        write_all(http, &[head.as_bytes(), &body], deadline)?;
        Ok(judged(&http.reply(deadline)?, serials.len()))
    });
}

/// Sends a part of a valid body, and then nothing more, or closes the connection.
fn cut_body(single: &mut Single<'_>, events: &[Event], rng: &mut fastrand::Rng) {
    let (actor, body) = (single.actor, events::list(events));
    let head = head(actor, "POST", &[], body.len());
    // A list without its last line break is still complete.
    let part = body.get(..rng.usize(0..body.len() - 3)).unwrap_or_default().to_vec();
    let serials = actor.book.made(events);
    let how = rng.u8(..8);
    single.request(&serials, Must::Never, |http, deadline| {
        write_all(http, &[head.as_bytes(), &part], deadline)?;
        match how {
            0..4 => return Ok(Answer::Unread),
            4..7 => http.socket().finish_writing(),
            // The relay decides when to give up (`limits.body_timeout`).
            _ => {}
        }
        Ok(judged(&http.reply(deadline)?, serials.len()))
    });
}

/// Opens connections quickly. On each of them, it sends nothing, garbage, a part of a request, or a
/// request that is refused.
pub(super) fn hammering(actor: &Actor, role: u32) {
    let mut rng = actor.rng(role);
    let mut held = Vec::new();
    while actor.is_next(&mut rng) {
        for _ in 0..rng.u8(1..6) {
            let soon = kernel::now() + Duration::from_secs(5);
            let Ok(mut http) = Http1::connect(actor, soon) else { break };
            let bytes: &[u8] = match rng.u8(..6) {
                0 => b"",
                1 => b"\x16\x03\x01\x00\x05hello",
                2 => b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{\"kind\"",
                3 => b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
                4 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x01",
                _ => {
                    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\nffffffff\r\n"
                }
            };
            // The relay's response to this does not matter.
            if http.socket().write(bytes, soon).is_ok() {
                held.push(http);
            }
        }
        // The oldest connections are closed, even if they have unread bytes.
        let surplus = held.len().saturating_sub(usize::from(CONNECTIONS_MAX));
        held.drain(..surplus);
    }
}

/// Sends heads slowly, three bytes at a time, on one connection after another (slowloris).
pub(super) fn slow_heads(actor: &Actor, role: u32) {
    let mut rng = actor.rng(role);
    while actor.is_next(&mut rng) {
        let soon = kernel::now() + Duration::from_secs(5);
        let Ok(mut http) = Http1::connect(actor, soon) else { continue };
        for byte in b"POST /audit HTTP/1.1\r\nHost: localhost\r\nX: yes\r\n".chunks(3) {
            let soon = kernel::now() + Duration::from_secs(5);
            let pause = Duration::from_millis(rng.u64(300..1_500));
            if http.socket().write(byte, soon).is_err() || !actor.shop.pause(pause) {
                break;
            }
        }
    }
}
