//! Audit events as kube-apiserver writes them (audit.k8s.io/v1). Each has its own serial.
//!
//! The serial is in the user agent, in the query of the URI and in one of kube-apiserver's
//! annotations, so it survives a policy that lowers the event, a redaction and a shape. `auditID`
//! is not used: clients of kube-apiserver can choose it, and some choose the same one.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use memchr::memmem;

/// The sender of an event, and the event's number, counted for each sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Serial {
    pub(crate) sender: u32,
    pub(crate) number: u64,
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.sender, self.number)
    }
}

/// The text before a serial. An event contains it nowhere else.
const BEFORE: &str = "serial-";
/// The text after a serial, which shows that the serial is complete.
const AFTER: &str = "-end";

impl Serial {
    /// Returns the serial's text in the event. No protocol escapes its characters.
    fn mark(self) -> String {
        format!("{BEFORE}{:08x}-{:012x}{AFTER}", self.sender, self.number)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = text.strip_prefix(BEFORE.as_bytes())?;
        let (digits, rest) = text.split_at_checked(21)?;
        if !rest.starts_with(AFTER.as_bytes()) {
            return None;
        }
        let (sender, number) = std::str::from_utf8(digits).ok()?.split_once('-')?;
        let sender = u32::from_str_radix(sender, 16).ok()?;
        let number = u64::from_str_radix(number, 16).ok()?;
        Some(Self { sender, number })
    }
}

/// Returns the serial of an event that arrived whole or with fields removed, alone or in the
/// envelope of a protocol. Returns `None` if the bytes have no serial, or those of several events.
pub(crate) fn identify(bytes: &[u8]) -> Option<Serial> {
    let mut found = None;
    for at in memmem::find_iter(bytes, BEFORE) {
        let serial = Serial::parse(bytes.get(at..)?)?;
        if found.is_some_and(|found| found != serial) {
            return None;
        }
        found = Some(serial);
    }
    found
}

/// Returns the serials of all events in a body, in ascending order, each once.
pub(crate) fn identify_all(body: &[u8]) -> Vec<Serial> {
    let places = memmem::find_iter(body, BEFORE);
    let found: BTreeSet<_> = places.filter_map(|at| Serial::parse(body.get(at..)?)).collect();
    found.into_iter().collect()
}

/// The members of an event that a filter can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) level: &'static str,
    pub(crate) stage: &'static str,
    pub(crate) verb: &'static str,
    /// Empty if the resource has no namespace.
    pub(crate) namespace: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) user: &'static str,
}

/// An event as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) serial: Serial,
    pub(crate) facts: Facts,
    pub(crate) bytes: Arc<[u8]>,
}

impl Event {
    /// Adds an annotation so that the event has this length, or is a little longer.
    pub(crate) fn with_bytes(mut self, bytes: usize) -> Self {
        let (before, behind) = self.bytes.split_at(self.bytes.len() - b"}}".len());
        let more = bytes.saturating_sub(self.bytes.len());
        let annotation = format!(r#","large":"{}""#, "x".repeat(more));
        self.bytes = [before, annotation.as_bytes(), behind].concat().into();
        self
    }

    /// Makes the event a little longer than these bytes, in three members of which a trimmed event
    /// keeps so much that it does not fit into [`UNCUTTABLE`] bytes.
    pub(crate) fn uncuttable(mut self, bytes: usize) -> Self {
        let text = String::from_utf8_lossy(&self.bytes);
        let long = "x".repeat(bytes.div_ceil(3));
        let agent = format!(r#""userAgent":"{long} "#);
        let more = format!(r#"{{"impersonatedUser":"{long}","authenticationMetadata":"{long}","#);
        let text = text.replacen(r#""userAgent":""#, &agent, 1).replacen('{', &more, 1);
        self.bytes = text.into_bytes().into();
        self
    }
}

/// The `filter.max_event_bytes` for an output that cannot send an [uncuttable](Event::uncuttable)
/// event.
pub(crate) const UNCUTTABLE: usize = 1024;

pub(crate) const VERBS: [&str; 6] = ["get", "list", "create", "update", "patch", "delete"];
pub(crate) const NAMESPACES: [&str; 4] = ["default", "kube-system", "team-a", "team-b"];
pub(crate) const RESOURCES: [&str; 4] = ["pods", "configmaps", "events", "deployments"];
pub(crate) const USERS: [&str; 4] =
    ["system:apiserver", "system:node:n1", "system:serviceaccount:team-a:default", "ada"];
pub(crate) const LEVELS: [&str; 3] = ["Metadata", "Request", "RequestResponse"];
pub(crate) const STAGES: [&str; 3] = ["RequestReceived", "ResponseStarted", "ResponseComplete"];

/// A store that refuses events for good refuses those with this text.
pub(crate) const REFUSED: &str = "refused-by-the-store";
/// A store that always fails on some events fails on those with this text.
pub(crate) const FAILING: &str = "fails-the-store";

/// The shares of events that stores do not accept, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) refused: u16,
    pub(crate) failing: u16,
}

pub(crate) struct Maker {
    sender: u32,
    next: u64,
    rng: fastrand::Rng,
    marks: Marks,
}

impl Maker {
    pub(crate) fn new(sender: u32, rng: fastrand::Rng, marks: Marks) -> Self {
        Self { sender, next: 0, rng, marks }
    }

    /// Makes an event with the stage `ResponseComplete` or, rarely, another one.
    pub(crate) fn event(&mut self) -> Event {
        let stage = if self.rng.u8(..6) == 0 { self.one(&STAGES) } else { "ResponseComplete" };
        self.event_of(stage)
    }

    pub(crate) fn event_of(&mut self, stage: &'static str) -> Event {
        let serial = Serial { sender: self.sender, number: self.next };
        self.next += 1;
        let facts = Facts {
            level: if self.rng.u8(..3) > 0 { "Metadata" } else { self.one(&LEVELS) },
            stage,
            verb: self.one(&VERBS),
            namespace: self.one(&NAMESPACES),
            resource: self.one(&RESOURCES),
            user: self.one(&USERS),
        };
        let bytes = self.written(serial, facts).into_bytes().into();
        Event { serial, facts, bytes }
    }

    /// Makes an event of this length. The bytes are added in an annotation, not in a body.
    pub(crate) fn large_event(&mut self, bytes: usize) -> Event {
        self.event_of("RequestReceived").with_bytes(bytes)
    }

    /// Makes an event of at least this length, with a long body.
    pub(crate) fn large(&mut self, bytes: usize) -> Event {
        let event = self.event_of("ResponseComplete");
        let text = String::from_utf8_lossy(&event.bytes).into_owned();
        let object = format!(r#","requestObject":{{"text":"{}"}},"annotations""#, self.text(bytes));
        let bytes = text.replacen(r#","annotations""#, &object, 1).into_bytes().into();
        Event { bytes, ..event }
    }

    /// Makes an [uncuttable](Event::uncuttable) event that is a little longer than these bytes.
    pub(crate) fn uncuttable(&mut self, bytes: usize) -> Event {
        self.event_of("ResponseComplete").uncuttable(bytes)
    }

    pub(crate) fn events(&mut self, count: usize) -> Vec<Event> {
        (0..count).map(|_| self.event()).collect()
    }

    fn one(&mut self, of: &[&'static str]) -> &'static str {
        of.get(self.rng.usize(..of.len())).copied().unwrap_or_default()
    }

    /// Writes the event with its members in kube-apiserver's order.
    fn written(&mut self, serial: Serial, facts: Facts) -> String {
        let Facts { level, stage, verb, namespace, resource, user } = facts;
        let mark = serial.mark();
        let draw = self.rng.u16(..1000);
        let client = match draw.checked_sub(self.marks.refused) {
            None => REFUSED,
            Some(draw) if draw < self.marks.failing => FAILING,
            Some(_) => "(linux/amd64)",
        };
        let audit_id = self.audit_id(serial);
        let name = format!("{}-{}", resource, self.rng.u16(..));
        let group = if resource == "deployments" { "apps" } else { "" };
        let root = if group.is_empty() { "api/v1".into() } else { format!("apis/{group}/v1") };
        let uri = format!("/{root}/namespaces/{namespace}/{resource}/{name}?fieldManager={mark}");
        let mut event = format!(
            r#"{{"level":"{level}","auditID":"{audit_id}","stage":"{stage}","requestURI":"{uri}\u0026timeout=10s","verb":"{verb}","user":{{"username":"{user}","groups":["system:authenticated"]}},"sourceIPs":["10.0.0.{}"],"userAgent":"kubectl/v1.36.2 {client} {mark}","objectRef":{{"resource":"{resource}","namespace":"{namespace}","name":"{name}""#,
            self.rng.u8(1..)
        );
        if !group.is_empty() {
            event.push_str(r#","apiGroup":"apps""#);
        }
        event.push_str(r#","apiVersion":"v1"}"#);
        if stage != "RequestReceived" {
            let code = if self.rng.u8(..10) == 0 { 403 } else { 200 };
            event.push_str(&format!(r#","responseStatus":{{"metadata":{{}},"code":{code}}}"#));
        }
        if level != "Metadata" {
            let body = self.body(resource);
            event.push_str(&format!(r#","requestObject":{body}"#));
        }
        if level == "RequestResponse" && stage == "ResponseComplete" {
            let body = self.body(resource);
            event.push_str(&format!(r#","responseObject":{body}"#));
        }
        let (received, done) = self.times();
        event.push_str(&format!(
            r#","requestReceivedTimestamp":"{received}","stageTimestamp":"{done}","annotations":{{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"RBAC: {mark} \u003callowed\u003e by ClusterRoleBinding"}}}}"#
        ));
        // White space between tokens, which kube-apiserver does not write.
        if self.rng.u16(..200) == 0 {
            event = event.replacen(r#","verb""#, ",\r\n\t \"verb\"", 1);
        }
        event
    }

    /// Returns an audit ID as JSON without its quotes. Most are unique, but a client may choose it.
    fn audit_id(&mut self, serial: Serial) -> String {
        match self.rng.u8(..40) {
            0 => "chosen-by-a-client".into(),
            1 => r"\u0041\ud83d\ude00\n\\ größe \/".into(),
            2 => "x".repeat(self.rng.usize(1..300)),
            3 => format!("00000000-0000-4000-8000-{:012x}", serial.number % 3),
            _ => format!("{:08x}-0000-4000-8000-{:012x}", serial.sender, serial.number),
        }
    }

    /// Returns the times of the request and of the stage.
    fn times(&mut self) -> (String, String) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let took = Duration::from_micros(self.rng.u64(100..20_000));
        (time(now.saturating_sub(took)), time(now))
    }

    /// Returns an API object. Most are ordinary, some are large, and some could break a parser.
    fn body(&mut self, resource: &str) -> String {
        let data = match self.rng.u16(..300) {
            0 => format!(r#"{{"text":"{}"}}"#, self.text(60_000)),
            1..6 => format!(r#"{{"text":"{}"}}"#, self.text(8_000)),
            6..12 => self.deep(),
            12..20 => r#"[1e400,-0,-0.10, 1.0,123456789012345678901234567890,1E-7,0.1e+2]"#.into(),
            20..28 => r#"{"":"","\u0061uditID":"no","a":1,"a":2,"items":[{},[],null]}"#.into(),
            28..34 => r#"{"kind":"EventList","items":[{"auditID":"no","stage":"Panic"}]}"#.into(),
            _ => {
                let bytes = self.rng.usize(10..700);
                format!(r#"{{"text":"{}"}}"#, self.text(bytes))
            }
        };
        let managed = if self.rng.u8(..8) == 0 {
            r#","managedFields":[{"manager":"kubectl","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:data":{".":{},"f:text":{}}}}]"#
        } else {
            ""
        };
        format!(
            r#"{{"kind":"{resource}","apiVersion":"v1","metadata":{{"creationTimestamp":null{managed}}},"data":{data}}}"#
        )
    }

    /// Returns at least this many bytes of a JSON string, without its quotes.
    fn text(&mut self, bytes: usize) -> String {
        const PIECES: [&str; 8] = [
            "plain ascii of 24 bytes ",
            r"\u003ctag\u003e \u0026 ",
            "größer als 16 Bytes, ja ",
            r#"\"quotes\" and \\ and \/ "#,
            r"tabs\tand\nline\r\nbreaks ",
            "日本語日本語日本 ",
            r"\ud83d\ude00\u0000\u2028\u007f",
            r#"]},{\"auditID\":\"no\"}]} "#,
        ];
        let mut text = String::with_capacity(bytes + 32);
        while text.len() < bytes {
            text.push_str(self.one(&PIECES));
        }
        text
    }

    fn deep(&mut self) -> String {
        let depth = self.rng.usize(1..450);
        let (open, close) = if self.rng.bool() { (r#"{"a":"#, "}") } else { ("[", "]") };
        format!("{}1{}", open.repeat(depth), close.repeat(depth))
    }
}

/// Returns an EventList as kube-apiserver sends it.
pub(crate) fn list(events: &[Event]) -> Vec<u8> {
    let mut body =
        br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    body.extend(joined(events, b","));
    body.extend(b"]}\n");
    body
}

/// Returns the events as lines, as `replay` and log shippers send them.
pub(crate) fn lines(events: &[Event]) -> Vec<u8> {
    let mut body = Vec::new();
    for event in events {
        body.extend(one_line(&event.bytes));
        body.push(b'\n');
    }
    body
}

fn joined(events: &[Event], between: &[u8]) -> Vec<u8> {
    events.iter().map(|event| &event.bytes[..]).collect::<Vec<_>>().join(between)
}

/// Returns the event as the relay must send it: byte for byte, but with spaces for raw line breaks
/// (see guarantees.md). In valid JSON, these are only between tokens.
pub(crate) fn one_line(event: &[u8]) -> Vec<u8> {
    event.iter().map(|&byte| if byte == b'\n' || byte == b'\r' { b' ' } else { byte }).collect()
}

/// Returns a body with these events that the relay must refuse with 400, and its fault.
pub(crate) fn broken(events: &[Event], rng: &mut fastrand::Rng) -> (Vec<u8>, &'static str) {
    let body = list(events);
    let text = String::from_utf8_lossy(&body).into_owned();
    let item = |item: &str| text.replacen(r#""items":["#, &format!(r#""items":[{item},"#), 1);
    let (text, what) = match rng.u8(..8) {
        // After the last `]}` there is only a line break.
        0 => return (cut(body, rng), "cut"),
        1 => (text.replacen("EventList", "PodList", 1), "another kind"),
        2 => (text.replacen("audit.k8s.io/v1\"", "audit.k8s.io/v1beta1\"", 1), "a beta version"),
        3 => (r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":null}"#.into(), "null"),
        4 => (format!("{text}]"), "more behind the end"),
        5 => (String::new(), "an empty body"),
        6 => (item(r#"{"auditID":"a","stage":"Panic","n":01}"#), "not a number of JSON"),
        _ => {
            let mut body = body;
            if let Some(at) = memmem::find(&body, b"{\"kind\"") {
                body.insert(at + 1, 0xff);
            }
            return (body, "a byte between tokens that is not UTF-8");
        }
    };
    (text.into_bytes(), what)
}

/// The annotation of an event in which the relay has replaced bytes (see guarantees.md).
const REPLACED: &str = r#""kube-audit-forwarder/invalid-utf8":"true","#;

/// Shapes one of these events as a client of the cluster can, or adds an item that is not an event.
/// The events become those that must arrive. Returns the body as it is sent, and the number of
/// items that are not events.
pub(crate) fn shape(events: &mut [Event], rng: &mut fastrand::Rng) -> (Vec<u8>, usize) {
    let place = rng.usize(..events.len());
    let member = r#""annotations":{"#;
    let with = |event: &Event, to: &str| {
        let text = String::from_utf8_lossy(&event.bytes).replacen(member, to, 1);
        Event { bytes: text.into_bytes().into(), ..event.clone() }
    };
    match rng.u8(..5) {
        shape @ 0..2 => {
            // Bytes that no text has, a character that is cut off, a surrogate, an overlong slash.
            let bytes: &[u8] =
                [b"\xff\xfe", &b"\xc3"[..], b"\xed\xa0\x80", b"\xc0\xaf"][rng.usize(..4)];
            let (before, after) = match shape {
                0 => (r#""requestObject":{"data":{"a":""#, r#""}},"#),
                _ => (r#""requestObject":{"data":{""#, r#"":"a"}},"#),
            };
            let arrives = format!("{before}{}{after}", "\u{fffd}".repeat(bytes.len()));
            let to = format!("{arrives}{member}{REPLACED}");
            let sent = [before.as_bytes(), bytes, after.as_bytes(), member.as_bytes()].concat();
            events[place] = with(&events[place], &to);
            let body = list(events);
            let at = memmem::find(&body, to.as_bytes()).expect("it was put there");
            ([&body[..at], &sent, &body[at + to.len()..]].concat(), 0)
        }
        2 | 3 => {
            let levels = rng.usize(1_000..1_200);
            let object = format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
            let to = format!(r#""requestObject":{object},{member}"#);
            events[place] = with(&events[place], &to);
            (list(events), 0)
        }
        _ => {
            let item = [
                "7",
                "null",
                r#"{"auditID":"a","stage":"Later"}"#,
                r#"{"auditID":"","stage":"Panic"}"#,
                r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1","auditID":"a","stage":"Panic"}"#,
            ][rng.usize(..5)];
            let body = String::from_utf8_lossy(&list(events)).into_owned();
            let with = body.replacen(r#""items":["#, &format!(r#""items":[{item},"#), 1);
            (with.into_bytes(), 1)
        }
    }
}

fn cut(mut body: Vec<u8>, rng: &mut fastrand::Rng) -> Vec<u8> {
    body.truncate(rng.usize(1..body.len().max(3) - 2));
    body
}

/// Writes a time since 1970 as kube-apiserver does: in UTC, with microseconds.
fn time(since: Duration) -> String {
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since March of the year 0: in this calendar, a year begins in March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let day = day - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month < 3);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::value::RawValue;

    use super::*;

    fn maker() -> Maker {
        Maker::new(7, fastrand::Rng::with_seed(3), Marks::default())
    }

    #[test]
    fn every_event_is_json_with_its_serial_and_the_sizes_are_as_said() {
        let events = maker().events(3000);
        let mut sizes: Vec<usize> = events.iter().map(|event| event.bytes.len()).collect();
        sizes.sort_unstable();
        for (number, event) in (0..).zip(&events) {
            assert_eq!(event.serial, Serial { sender: 7, number });
            assert_eq!(identify(&event.bytes), Some(event.serial));
            serde_json::from_slice::<&RawValue>(&event.bytes).unwrap();
        }
        assert!(sizes[0] > 300 && sizes[1500] < 1500 && sizes[2800] < 3000, "{sizes:?}");
        assert!(sizes[2999] > 30_000, "{sizes:?}");
        let two = [&events[0].bytes[..], &events[1].bytes].concat();
        assert_eq!(identify(&two), None, "two events");
        assert_eq!(identify(&events[0].bytes[..100]), None, "before the serial");
    }

    #[test]
    fn an_uncuttable_event_is_as_long_as_asked_for() {
        let event = maker().event();
        let long = event.clone().uncuttable(60_000);
        let added = long.bytes.len() - event.bytes.len();
        assert!((60_000..60_100).contains(&added), "{added}");
        assert_eq!(identify(&long.bytes), Some(event.serial));
        serde_json::from_slice::<&RawValue>(&long.bytes).unwrap();
    }

    #[test]
    fn as_many_events_as_wished_are_such_as_stores_refuse() {
        let marks = Marks { refused: 100, failing: 20 };
        let events = Maker::new(7, fastrand::Rng::with_seed(3), marks).events(1000);
        let count = |text: &str| {
            let has = |event: &&Event| memmem::find(&event.bytes, text.as_bytes()).is_some();
            events.iter().filter(has).count()
        };
        assert!((70..130).contains(&count(REFUSED)), "{}", count(REFUSED));
        assert!((10..30).contains(&count(FAILING)), "{}", count(FAILING));
    }

    #[test]
    fn a_body_is_split_again_into_its_events() {
        let events = maker().events(50);
        let list = list(&events);
        let list: BTreeMap<String, &RawValue> = serde_json::from_slice(&list).unwrap();
        let items: Vec<&RawValue> = serde_json::from_str(list["items"].get()).unwrap();
        let found = items.iter().map(|item| identify(item.get().as_bytes()).unwrap());
        assert!(found.eq(events.iter().map(|event| event.serial)));
        let lines = lines(&events);
        let found: Vec<_> = lines.split(|&byte| byte == b'\n').filter_map(identify).collect();
        assert_eq!(found, events.iter().map(|event| event.serial).collect::<Vec<_>>());
    }

    #[test]
    fn a_shaped_event_must_arrive_as_it_was_sent_but_for_bytes_that_are_no_text() {
        let (mut rng, mut seen) = (fastrand::Rng::with_seed(5), [0; 3]);
        for _ in 0..100 {
            let mut events = maker().events(4);
            let (body, others) = shape(&mut events, &mut rng);
            let serials: Vec<_> = events.iter().map(|event| event.serial).collect();
            assert_eq!(identify_all(&body), serials);
            let (sent, must_arrive) = (String::from_utf8_lossy(&body), list(&events));
            let must_arrive = String::from_utf8(must_arrive).unwrap();
            let is_replaced = must_arrive.contains(REPLACED);
            assert_eq!(is_replaced, std::str::from_utf8(&body).is_err());
            assert_eq!(others == 0, sent == must_arrive.replace(REPLACED, ""));
            seen[if is_replaced { 2 } else { others }] += 1;
        }
        assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
    }

    #[test]
    fn times_are_as_kube_apiserver_writes_them() {
        assert_eq!(time(Duration::from_micros(1)), "1970-01-01T00:00:00.000001Z");
        let nanos = Duration::from_nanos(1_795_155_862_439_323_000);
        assert_eq!(time(nanos), "2026-11-20T06:24:22.439323Z");
        assert_eq!(time(Duration::from_secs(1_709_164_800)), "2024-02-29T00:00:00.000000Z");
    }
}
