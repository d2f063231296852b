//! The requests: EventLists as kube-apiserver writes them. They differ from each other, because a
//! CPU's branch predictor would learn every quote of a repeated body.

#![allow(dead_code, reason = "no bench needs everything")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::value::RawValue;

/// The bytes around the events of an EventList, as kube-apiserver and the relay's `event_list`
/// write them.
const HEAD: &str = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
const TAIL: &str = "]}\n";

/// The number of different bodies in a work with batches. Together they are larger than the caches
/// of a core.
const BATCHES: u64 = 40;

/// The number of different bodies in a work with single events.
const SINGLES: u64 = 4000;

/// The bytes before an event's auditID.
const AUDIT_ID: &[u8] = br#""auditID":""#;

/// The number of hexadecimal digits that replace the start of each auditID. The shortest recorded
/// auditID is this long.
const DIGITS: usize = 6;

/// Similar requests, which a load sends in turn.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    /// One of the bodies, uncompressed. All bodies have the same number of bytes and of events.
    pub(crate) body: Vec<u8>,
    /// The requests, each a head and a body.
    pub(crate) requests: Vec<Vec<u8>>,
    /// The number of events in each body.
    pub(crate) events: u64,
    /// See [`Work::distinct`].
    distinct: Option<Distinct>,
}

/// The parts of the requests that change each time a request is sent.
struct Distinct {
    /// For each request, the offsets of its auditIDs.
    places: Vec<Vec<usize>>,
    /// The number that the next request gets.
    next: AtomicU32,
}

impl Work {
    fn new(name: &'static str, events: u64, bodies: impl Iterator<Item = Vec<u8>>) -> Self {
        let bodies: Vec<Vec<u8>> = bodies.collect();
        let (head, tail, bytes) = (HEAD.as_bytes(), TAIL.as_bytes(), bodies[0].len());
        for body in &bodies {
            let list = body.starts_with(head) && body.ends_with(tail);
            assert!(list && body.len() == bytes, "{name}");
        }
        let requests = bodies.iter().map(|body| request(body, "")).collect();
        let body = bodies.into_iter().next().expect("at least one");
        Self { name, body, requests, events, distinct: None }
    }

    /// Returns recorded events at level Metadata. Each body has the events in a different order.
    pub(crate) fn metadata() -> Self {
        Self::recorded("metadata, 400 events of 0.8 KB", "01-batch400-metadata.json", 400)
    }

    /// Returns recorded events with request and response objects. Each body has the events in a
    /// different order.
    pub(crate) fn responses() -> Self {
        let file = "02-batch-requestresponse-allstages.json";
        Self::recorded("requests and responses, 400 events of 1.0 KB", file, 400)
    }

    fn recorded(name: &'static str, file: &str, events: u64) -> Self {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/");
        let body = std::fs::read_to_string(format!("{corpus}{file}"));
        let body = body.expect("tests/corpus is part of the repository");
        let list: BTreeMap<&str, &RawValue> = serde_json::from_str(&body).expect("an EventList");
        let items: Vec<&RawValue> = serde_json::from_str(list["items"].get()).expect("an array");
        assert_eq!(items.len() as u64, events, "{file}");
        let bodies = (0..BATCHES).map(|seed| {
            let mut items: Vec<&str> = items.iter().map(|item| item.get()).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut items);
            format!("{HEAD}{}{TAIL}", items.join(",")).into_bytes()
        });
        Self::new(name, events, bodies)
    }

    /// Returns generated events of 1.0 to 2.0 KB.
    pub(crate) fn generated() -> Self {
        let bodies = (0..BATCHES).map(|seed| generated(seed, 400, 1500));
        Self::new("generated, 400 events of 1.5 KB", 400, bodies)
    }

    pub(crate) fn single() -> Self {
        let bodies = (0..SINGLES).map(|seed| generated(seed, 1, 2000));
        Self::new("single event of 2 KB", 1, bodies)
    }

    /// Returns generated bodies with `events` events of 1.5 KB on average.
    pub(crate) fn batches_of(events: u64) -> Self {
        let count = (BATCHES * 400 / events).clamp(8, SINGLES);
        let length = usize::try_from(events).expect("a batch");
        let bodies = (0..count).map(|seed| generated(seed, length, 1500));
        Self::new("generated, events of 1.5 KB", events, bodies)
    }

    /// Returns the same work with each body compressed by gzip at its default level, 6. The
    /// requests differ in length. [`Self::body`] is still uncompressed.
    pub(crate) fn gzipped(&self) -> Self {
        let requests = self.requests.iter().map(|request| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(body_of(request)).expect("a Vec takes everything");
            let body = encoder.finish().expect("a Vec takes everything");
            self::request(&body, "Content-Encoding: gzip\r\n")
        });
        Self { requests: requests.collect(), body: self.body.clone(), distinct: None, ..*self }
    }

    /// Returns the same work without repetition: each time a request is sent, its auditIDs begin
    /// with a new number, so that no two sent events have the same bytes.
    pub(crate) fn distinct(self) -> Self {
        let places = self.requests.iter().map(|request| {
            let ids = memchr::memmem::find_iter(request, AUDIT_ID);
            let places: Vec<usize> = ids.map(|at| at + AUDIT_ID.len()).collect();
            assert_eq!(places.len() as u64, self.events, "{}", self.name);
            let long = |&at: &usize| !request[at..at + DIGITS].contains(&b'"');
            assert!(places.iter().all(long), "{}: an auditID is too short", self.name);
            places
        });
        let distinct = Distinct { places: places.collect(), next: AtomicU32::new(0) };
        Self { distinct: Some(distinct), ..self }
    }

    /// Returns the request for this turn. It is made in `copy` if the work is [`Self::distinct`].
    pub(crate) fn request<'a>(&'a self, turn: u64, copy: &'a mut Vec<u8>) -> &'a [u8] {
        let turn = turn % self.requests.len() as u64;
        let turn = usize::try_from(turn).expect("an index");
        let request = &self.requests[turn];
        let Some(distinct) = &self.distinct else { return request };
        let number = format!("{:0DIGITS$x}", distinct.next.fetch_add(1, Ordering::Relaxed));
        copy.clear();
        copy.extend_from_slice(request);
        for &place in &distinct.places[turn] {
            copy[place..place + DIGITS].copy_from_slice(number.as_bytes());
        }
        copy
    }

    /// Returns how many requests have, together, at least `bytes` bytes of bodies.
    pub(crate) fn requests_of(&self, bytes: f64) -> u64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an argument")]
        let requests = (bytes / self.body.len() as f64).ceil() as u64;
        requests
    }

    /// Returns the size of the events in one request: see [`lines_of_list`].
    pub(crate) fn lines(&self) -> u64 {
        lines_of_list(self.body.len() as u64)
    }
}

/// Returns a request as kube-apiserver writes it, with `more` header lines.
fn request(body: &[u8], more: &str) -> Vec<u8> {
    let head = format!(
        "POST /?timeout=30s HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: {}\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\
         {more}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub(crate) fn body_of(request: &[u8]) -> &[u8] {
    let head = memchr::memmem::find(request, b"\r\n\r\n").expect("a head");
    &request[head + 4..]
}

/// Returns the size of the events in an EventList of `body` bytes, with one more byte for each
/// event. The sum over all lists does not depend on how a relay splits and joins batches.
pub(crate) fn lines_of_list(body: u64) -> u64 {
    (body + 1).saturating_sub((HEAD.len() + TAIL.len()) as u64)
}

/// Returns an EventList whose events have `event_bytes` bytes on average. About half of an event is
/// text with JSON escapes and with two-byte characters in UTF-8. Each seed gives a different list
/// of the same length.
fn generated(seed: u64, events: usize, event_bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut body = String::from(HEAD);
    let mut differs = 0;
    for index in 0..events {
        if index > 0 {
            body.push(',');
        }
        // Of each two events, one is as much longer than the average as the other is shorter.
        let bytes = if index % 2 == 1 {
            event_bytes - differs
        } else if index + 1 < events {
            differs = random.usize(..event_bytes / 3);
            event_bytes + differs
        } else {
            event_bytes
        };
        event(&mut random, bytes, &mut body);
    }
    body.push_str(TAIL);
    body.into_bytes()
}

/// Appends an event of exactly `bytes` bytes.
fn event(random: &mut fastrand::Rng, bytes: usize, to: &mut String) {
    const WORDS: [&str; 6] =
        [r"alpha\n", "bravo ", "größe ", r#"\"quoted\" "#, r"\u003ctag\u003e ", "delta "];
    const TAIL: &str = r#""}},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.678901Z","annotations":{"authorization.k8s.io/decision":"allow"}}"#;
    let start = to.len();
    let id = random.u64(..1 << 48);
    let verb = random.choice(["create", "update", "patch"]).expect("three");
    let namespace = random.choice(["team", "kube-system", "a-longer-name"]).expect("three");
    let name = random.u32(..100_000);
    write!(
        to,
        r#"{{"level":"Request","auditID":"00000000-0000-4000-8000-{id:012x}","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/{namespace}/configmaps/generated-{name}","verb":"{verb}","user":{{"username":"system:serviceaccount:{namespace}:default","uid":"7c0f6f1c-6b1d-4f0e-9a39-6d1f5f3f2b11","groups":["system:serviceaccounts","system:authenticated"]}},"sourceIPs":["10.0.0.1"],"userAgent":"generated/1.0","objectRef":{{"resource":"configmaps","namespace":"{namespace}","name":"generated-{name}","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"code":200}},"requestObject":{{"kind":"ConfigMap","data":{{"text":""#
    )
    .expect("a String takes everything");
    let end = start + bytes - TAIL.len();
    loop {
        let word = random.choice(WORDS).expect("six");
        if to.len() + word.len() > end {
            break;
        }
        to.push_str(word);
    }
    while to.len() < end {
        to.push('.');
    }
    to.push_str(TAIL);
}

/// Returns an EventList whose events differ in length, names, numbers and members of the object. A
/// CPU learns from one event as much about the next one as it does with real events. The same seed
/// gives the same bytes.
pub(crate) fn varied(seed: u64, events: usize, event_bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut body = String::from(HEAD);
    for index in 0..events {
        if index > 0 {
            body.push(',');
        }
        let (start, tail) = (
            body.len(),
            r#"}},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.678901Z","annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":""}}"#,
        );
        fill(&mut random, BEGINNING, &mut body);
        while body.len() - start + tail.len() < event_bytes {
            let part = random.choice(PARTS).expect("there are some");
            fill(&mut random, part, &mut body);
        }
        body.push_str(tail);
    }
    body.push_str(TAIL);
    body.into_bytes()
}

/// The beginning of an event. `~` stands for a word, `^` for a number, and `%` for a digit.
const BEGINNING: &str = r#"{"level":"RequestResponse","auditID":"00000000-%%%%-4000-8000-%%%%%%%%%%%%","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/~/~/~-^","verb":"~","user":{"username":"system:serviceaccount:~:~","uid":"00000000-%%%%-4000-8000-%%%%%%%%%%%%","groups":["system:serviceaccounts","system:serviceaccounts:~","system:authenticated"]},"sourceIPs":["10.0.0.%"],"userAgent":"~/v1.36.2 (linux/amd64)","objectRef":{"resource":"~","namespace":"~","name":"~-^","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":20%},"requestObject":{"kind":"~","apiVersion":"v1","spec":{"replicas":%"#;

/// Members of an object. Each one begins with the comma after the previous member.
const PARTS: &[&str] = &[
    r#","labels":{"app":"~","app.kubernetes.io/name":"~","pod-template-hash":"^"}"#,
    r#","annotations":{"kubernetes.io/restartedAt":"2026-01-02T0%:0%:0%Z","example/revision":"%"}"#,
    r#","containers":[{"name":"~","image":"registry.example/~/~:1.%","ports":[{"containerPort":^,"protocol":"TCP"}]}]"#,
    r#","env":[{"name":"~","value":"~"},{"name":"~","value":"http://~.~.svc:^/~"}]"#,
    r#","tolerations":[{"key":"node.kubernetes.io/~","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}]"#,
    r#","status":"~","reason":"~","message":"~ has been set by ~-^","observedGeneration":^"#,
    r#","ownerReferences":[{"apiVersion":"apps/v1","kind":"~","name":"~-^","controller":true}]"#,
    r#","data":{"~":"~=\"~\"\n~=\u003c~\u003e\n","~":"^"}"#,
];

fn fill(random: &mut fastrand::Rng, pattern: &str, body: &mut String) {
    const WORDS: [&str; 8] =
        ["web", "kube-system", "a", "ingress-controller", "default", "pv", "coredns", "team-alpha"];
    for char in pattern.chars() {
        match char {
            '~' => body.push_str(random.choice(WORDS).expect("there are some")),
            '^' => write!(body, "{}", random.u16(1..)).expect("a String takes everything"),
            '%' => body.push(char::from(random.u8(b'0'..b'8'))),
            char => body.push(char),
        }
    }
}
