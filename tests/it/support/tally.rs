//! The events that have arrived at a consumer, and checks that they are the right ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::http_sink::{Answer, HttpSink};
use super::numbered::{Id, identify};
use super::requests::events_in;
use super::server::{Connection, Options, Server};
use super::stream::Stream;
use super::wait_until;

/// An event that has arrived, byte for byte as it was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    /// The connection that carried the event, counted from 0.
    pub(crate) run: usize,
    pub(crate) id: Id,
}

/// Arrivals in order. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Vec<Arrival>>>);

impl Tally {
    fn add(&self, run: usize, events: impl IntoIterator<Item = Vec<u8>>) {
        let at = Instant::now();
        let came = events.into_iter().map(|event| Arrival { at, run, id: identify(&event) });
        let came: Vec<Arrival> = came.collect();
        self.0.lock().expect("not poisoned").extend(came);
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.0.lock().expect("not poisoned").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().expect("not poisoned").len()
    }

    pub(crate) fn ids(&self) -> BTreeSet<Id> {
        self.arrivals().iter().map(|arrival| arrival.id).collect()
    }

    pub(crate) fn wait_for_count(&self, count: usize, limit: Duration) {
        wait_until(&format!("{count} events"), limit, || self.count() >= count);
    }
}

/// A consumer of numbered events that keeps only a [`Tally`]. It `Deref`s to its [`Server`].
pub(crate) struct Tallying {
    server: Kind,
    pub(crate) tally: Tally,
}

enum Kind {
    Tcp(Server),
    Http(HttpSink),
}

impl Tallying {
    pub(crate) fn tcp() -> Self {
        Self::tcp_with(Options::default())
    }

    pub(crate) fn tcp_with(options: Options) -> Self {
        let tally = Tally::default();
        let for_handler = tally.clone();
        let server = Server::start(options, move |stream, connection| {
            read_lines(stream, connection, &for_handler);
        });
        Self { server: Kind::Tcp(server), tally }
    }

    /// Starts an HTTP consumer that responds to every request with 200.
    pub(crate) fn http() -> Self {
        Self::http_with(Options::default())
    }

    pub(crate) fn http_with(options: Options) -> Self {
        let tally = Tally::default();
        let for_handler = tally.clone();
        let sink = HttpSink::forgetful_with(options, move |request| {
            for_handler.add(request.connection, events_in(request));
            Answer::status(200)
        });
        Self { server: Kind::Http(sink), tally }
    }

    pub(crate) fn closed(mut self) -> Self {
        self.close();
        self
    }

    /// Returns the config of an output with this name that sends to this consumer. `more` adds
    /// keys, with inline tables.
    pub(crate) fn output(&self, name: &str, more: &str) -> String {
        let address = self.address();
        let kind = match self.server {
            Kind::Tcp(_) => {
                let window =
                    if more.contains("replay_window") { "" } else { "replay_window = \"100ms\"\n" };
                format!("type = \"tcp\"\naddresses = [\"{address}\"]\n{window}")
            }
            Kind::Http(_) => {
                // The relay promises the order of events only with one request at a time.
                let one = if more.contains("concurrency") { "" } else { "concurrency = 1\n" };
                format!("type = \"http\"\nurls = [\"http://{address}/\"]\n{one}")
            }
        };
        format!(
            "[[output]]\nname = \"{name}\"\n{kind}retry = {{ initial_interval = \"20ms\", \
             max_interval = \"100ms\" }}\n{more}\n"
        )
    }

    /// Makes the consumer open or closed.
    pub(crate) fn set_open(&mut self, open: bool) {
        match (open, self.is_listening()) {
            (true, false) => self.reopen(),
            (false, true) => self.close(),
            _ => {}
        }
    }
}

impl Deref for Tallying {
    type Target = Server;

    fn deref(&self) -> &Server {
        match &self.server {
            Kind::Tcp(server) => server,
            Kind::Http(sink) => sink,
        }
    }
}

impl DerefMut for Tallying {
    fn deref_mut(&mut self) -> &mut Server {
        match &mut self.server {
            Kind::Tcp(server) => server,
            Kind::Http(sink) => sink,
        }
    }
}

fn read_lines(mut stream: Stream, connection: &Connection, tally: &Tally) {
    let mut buffer = vec![0; 64 * 1024];
    let mut pending = Vec::new();
    while connection.may_go_on() {
        let Ok(size @ 1..) = stream.read(&mut buffer) else { return };
        pending.extend_from_slice(&buffer[..size]);
        let Some(last) = memchr::memrchr(b'\n', &pending) else { continue };
        let rest = pending.split_off(last + 1);
        let lines = pending[..last].split(|&byte| byte == b'\n').map(<[u8]>::to_vec);
        tally.add(connection.number, lines);
        pending = rest;
    }
}

/// The events that a sender posted in one body, and whether the response was 200.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) sender: u32,
    pub(crate) numbers: Range<u64>,
    /// `false` if the response was not 200 or did not arrive. The events may still be stored.
    pub(crate) accepted: bool,
}

pub(crate) fn accepted(sent: &[Sent]) -> u64 {
    let accepted = sent.iter().filter(|sent| sent.accepted);
    accepted.map(|sent| sent.numbers.end - sent.numbers.start).sum()
}

pub(crate) fn accepted_ids(sent: &[Sent]) -> BTreeSet<Id> {
    let accepted = sent.iter().filter(|sent| sent.accepted);
    let ids = |sent: &Sent| {
        let sender = sent.sender;
        sent.numbers.clone().map(move |number| Id { sender, number }).collect::<Vec<_>>()
    };
    accepted.flat_map(ids).collect()
}

/// An arrival of an event that had arrived before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repeat {
    pub(crate) id: Id,
    /// The time of the event's previous arrival.
    pub(crate) before: Instant,
}

/// Checks that all accepted events have arrived, and those of each sender in order. Each connection
/// must carry a sender's accepted events without a gap, from the sender's first event that had not
/// arrived, or an earlier one. Returns the repeated arrivals.
pub(crate) fn check(consumer: &str, sent: &[Sent], arrivals: &[Arrival]) -> Vec<Repeat> {
    let mut fates: BTreeMap<u32, BTreeMap<u64, bool>> = BTreeMap::new();
    for sent in sent {
        let fates = fates.entry(sent.sender).or_default();
        fates.extend(sent.numbers.clone().map(|number| (number, sent.accepted)));
    }
    let skipped = |sender: u32, numbers: Range<u64>| {
        let of_sender =
            fates.get(&sender).into_iter().flat_map(|fates| fates.range(numbers.clone()));
        of_sender.filter(|(_, accepted)| **accepted).map(|(number, _)| *number).next()
    };
    let mut last_seen: BTreeMap<Id, Instant> = BTreeMap::new();
    // For each sender, the number after its highest event that has arrived.
    let mut fronts: BTreeMap<u32, u64> = BTreeMap::new();
    // For each connection and sender, the number after the last event on this connection.
    let mut places: BTreeMap<(usize, u32), u64> = BTreeMap::new();
    let mut repeats = Vec::new();
    for Arrival { at, run, id } in arrivals.iter().copied() {
        let Id { sender, number } = id;
        let known = fates.get(&sender).is_some_and(|fates| fates.contains_key(&number));
        assert!(known, "{consumer}: {id:?} was never sent");
        let front = fronts.entry(sender).or_default();
        let place = *places.get(&(run, sender)).unwrap_or(&number.min(*front));
        assert!(place <= number, "{consumer}: {id:?} comes after {place} on connection {run}");
        if let Some(missing) = skipped(sender, place..number) {
            panic!("{consumer}: connection {run} skips {missing} before {id:?}; front {front}");
        }
        places.insert((run, sender), number + 1);
        match last_seen.insert(id, at) {
            Some(before) => repeats.push(Repeat { id, before }),
            None => assert!(number >= *front, "{consumer}: {id:?} comes out of its turn"),
        }
        *front = (*front).max(number + 1);
    }
    for (&sender, fates) in &fates {
        let front = fronts.get(&sender).copied().unwrap_or(0);
        let end = fates.last_key_value().map_or(0, |(number, _)| number + 1);
        let missing = skipped(sender, front..end);
        assert_eq!(missing, None, "{consumer}: of sender {sender} nothing came from {front} on");
    }
    repeats
}

/// Like [`check`], for a consumer that may get events in any order.
pub(crate) fn check_unordered(consumer: &str, sent: &[Sent], arrivals: &[Arrival]) -> Vec<Repeat> {
    let mut last_seen: BTreeMap<Id, Instant> = BTreeMap::new();
    let repeats = arrivals.iter().filter_map(|arrival| {
        let before = last_seen.insert(arrival.id, arrival.at)?;
        Some(Repeat { id: arrival.id, before })
    });
    let repeats = repeats.collect();
    let missing = accepted_ids(sent).into_iter().find(|id| !last_seen.contains_key(id));
    assert_eq!(missing, None, "{consumer}: missing, perhaps with others");
    repeats
}

#[test]
fn a_check_finds_gaps_turns_and_repeats() {
    let start = Instant::now();
    let sent: Vec<Sent> = [(0, 0..2, true), (0, 2..4, false), (0, 4..6, true), (1, 0..1, true)]
        .into_iter()
        .map(|(sender, numbers, accepted)| Sent { sender, numbers, accepted })
        .collect();
    let repeats = |arrivals: &[(usize, u32, u64)]| {
        let arrival = |&(run, sender, number): &(usize, u32, u64)| Arrival {
            at: start,
            run,
            id: Id { sender, number },
        };
        let arrivals: Vec<Arrival> = arrivals.iter().map(arrival).collect();
        std::panic::catch_unwind(|| check("test", &sent, &arrivals).len()).ok()
    };
    let first = [(0, 0, 0), (0, 1, 0), (0, 0, 1)];
    let with = |rest: &[(usize, u32, u64)]| repeats(&[&first[..], rest].concat());
    assert_eq!(with(&[(0, 0, 4), (0, 0, 5)]), Some(0));
    assert_eq!(with(&[(0, 0, 2), (0, 0, 3), (0, 0, 4), (0, 0, 5)]), Some(0));
    assert_eq!(with(&[(1, 0, 1), (1, 0, 4), (1, 0, 5)]), Some(1));
    assert_eq!(with(&[(1, 0, 4), (2, 0, 0), (2, 0, 1), (2, 0, 4), (2, 0, 5)]), Some(3));
    assert_eq!(with(&[(0, 0, 4)]), None, "the last is missing");
    assert_eq!(with(&[(0, 0, 5)]), None, "a gap");
    assert_eq!(with(&[(1, 0, 5)]), None, "a gap on a new connection");
    assert_eq!(with(&[(0, 0, 5), (0, 0, 4)]), None, "out of order");
    assert_eq!(with(&[(0, 0, 4), (0, 0, 5), (0, 0, 4)]), None, "repeated on one connection");
    assert_eq!(with(&[(0, 0, 4), (0, 0, 5), (1, 0, 2)]), None, "it was skipped before");
    assert_eq!(with(&[(0, 0, 4), (0, 0, 5), (1, 0, 7)]), None, "never sent");
    assert_eq!(repeats(&[(0, 0, 0), (0, 0, 1), (0, 0, 4), (0, 0, 5)]), None, "a sender is missing");
}
