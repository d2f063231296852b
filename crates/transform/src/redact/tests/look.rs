//! Compares the quick look at random events with the reading of all members: whatever an event
//! contains, the look must never hide a change.

use super::*;
use random::{is_event, pick};

use audit::request::Reader;

/// Parts of texts, as they are written between the quotes of a JSON string: tokens, names of
/// credentials and keys of an event, each with near misses and with other spellings.
static PARTS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let mut parts = list(
        r#"
|a|/|?|&|\u0026|=|\u003d|\u003D|%3d|;|,|.|\u002e|%2E|%| |+|\/|\\|\\\\|\"|\n|eyJ|EYJ|eyj|\u0065yJ
\u0065yJh.a.b|e\u0079Jh.a.|ey\u004ah\u002ea.b|\u0065\u0079\u004a|\\u0065yJ|%65yJ|%6|eyJh.eyJz.Sig
eyJh.eyJz|eyJh.eyJz.|eyJh\u002eeyJz\u002ea|eyJh%2eeyJz%2ea|token|TOKEN|t-o_k-en|t\u006fken|t%6fken
tokens|password|secret|limit|command|COMMAND|labelSelector|fieldSelector|token in (a|--password
authorization: bearer|https://u:p@h|ä|\u00e4|\u20ac|\ud83d\ude00|\ud800|\"objectRef\"|objectRef
requestURI|REDACTED|[]
"#,
    );
    // The Kelvin sign, which becomes a `k` in lower case.
    parts.push("\u{212a}");
    parts
});

/// Keys of an event that a redaction asks for, with other spellings and near misses.
static KEYS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    list(
        r"
objectRef|object\u0052ef|\u006fbjectRef|objectref|requestURI|request\u0055RI|requestUri
requestObject|request\u004fbject|responseObject|responseStatus|annotations|annot\u0061tions|user
eyJh.eyJz.Sig|eyJh.eyJz\u002eSig|a\u0026b|x
",
    )
});

static RESOURCES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    list(
        r#"
"resource":"pods"|"resource":"pods","name":"a","name":"b"|"resource":"pods","resource":"secrets"
"resource":"pods","r\u0065source":"secrets"|"resource":"secrets"|"resource":"s\u0065crets"
"resource":"serviceaccounts","subresource":"token"
"apiGroup":"","resource":"pods","apiGroup":"oauth.openshift.io"
"resource":"tokenreviews","apiGroup":"authentication.k8s.io"
"#,
    )
});

fn text(rng: &mut fastrand::Rng) -> String {
    let parts: Vec<_> = (0..rng.usize(..6)).map(|_| pick(rng, &PARTS)).collect();
    format!("\"{}\"", parts.concat())
}

fn object_value(rng: &mut fastrand::Rng) -> String {
    let colon = pick(rng, &[":", ":", " : ", ":\t"]);
    format!("{colon}{{{}}}", pick(rng, &RESOURCES))
}

fn value(rng: &mut fastrand::Rng, depth: usize) -> String {
    match rng.u8(..if depth == 0 { 4 } else { 7 }) {
        0..=2 => text(rng),
        3 => pick(rng, &["null", "1", "{}", "[]", r#"{"kind":"Status","message":"m"}"#]).to_owned(),
        4 => format!("[{},{}]", value(rng, depth - 1), value(rng, depth - 1)),
        _ => {
            let key = pick(rng, &KEYS);
            format!("{{\"{key}\":{},{}:1}}", value(rng, depth - 1), text(rng))
        }
    }
}

/// Returns a random event. Most events are plain, so that the look often finds nothing.
fn event(rng: &mut fastrand::Rng) -> String {
    let mut members = vec![r#""level":"Metadata""#.to_owned(), r#""auditID":"a""#.to_owned()];
    members.push(r#""stage":"Panic""#.to_owned());
    for _ in 0..rng.usize(..3) {
        members.push(format!(r#""requestURI":{}"#, text(rng)));
    }
    for _ in 0..pick(rng, &["", "o", "o", "o", "oo"]).len() {
        let key = pick(rng, &["objectRef", "objectRef", "objectRef", r"object\u0052ef"]);
        members.push(format!("\"{key}\"{}", object_value(rng)));
    }
    for _ in 0..rng.usize(..3) {
        members.push(format!("\"{}\":{}", pick(rng, &KEYS), value(rng, 2)));
    }
    rng.shuffle(&mut members[3..]);
    format!("{{{}}}", members.join(","))
}

/// The numbers of events at which the quick look was compared with the reading of all members.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) events: usize,
    /// The number of events of which the reader knows some bytes.
    pub(super) known: usize,
    /// The number of events in which the look saw nothing to redact.
    pub(super) unseen: usize,
    pub(super) redacted: usize,
}

impl Looked {
    /// Asserts that the look at an event hides no change, and counts the event.
    pub(super) fn judge(&mut self, event: &str, change: &Change<'_>) {
        let line = format!("{event}\n");
        let mut reader = Reader::new(line.as_bytes());
        let bytes = reader.advance().unwrap();
        let look = Look::at(bytes, reader.request(), reader.known());
        let unknown = Look::at(bytes, reader.request(), 0);
        assert_eq!(Look { known: 0, ..look }, unknown, "{event}");
        let apply = |look| {
            let mut out = Vec::new();
            let done =
                Asked { event: bytes, request: reader.request(), look }.apply(change, &mut out);
            (String::from_utf8(out).unwrap(), done)
        };
        let (seen, blind) = (apply(look), apply(Look::blind(bytes)));
        assert_eq!(seen, blind, "{event}\n{look:?}");
        self.events += 1;
        self.known += usize::from(reader.known() > 0);
        self.unseen += usize::from(look.is_clear());
        self.redacted += usize::from(seen.1.redacted);
    }

    /// Asserts that there were more events of each sort than in `least`, which is for 20,000 seeds.
    /// Asserts nothing after fewer than 1,000 seeds, such as one that repeats a failure.
    pub(super) fn assert_more_than(self, least: Self, seeds: usize) {
        println!("{self:?}");
        let counts = [
            (self.events, least.events),
            (self.known, least.known),
            (self.unseen, least.unseen),
            (self.redacted, least.redacted),
        ];
        let are_many = counts.iter().all(|(count, least)| count * 20_000 > least * seeds);
        assert!(seeds < 1000 || are_many, "{self:?}");
    }
}

/// The first members of an event, without its opening brace.
const HEAD: &str =
    r#""level":"Metadata","auditID":"00000000-0000-4000-8000-000000000000","stage":"Panic""#;

/// Returns a random event whose first members are written as kube-apiserver writes them, so that
/// the reader knows them. Texts in these members, and the members after them, are as hostile as in
/// other events.
fn usual_event(rng: &mut fastrand::Rng) -> String {
    let (uri, key, extra, agent) = (text(rng), pick(rng, &KEYS), text(rng), text(rng));
    let user = format!(r#"{{"username":"u","groups":["g"],"extra":{{"{key}":[{extra}]}}}}"#);
    let object = pick(
        rng,
        &[
            "",
            r#","objectRef":{"resource":"pods","name":"a"}"#,
            r#","objectRef":{"resource":"pods","name":"a","name":"b"}"#,
            r#","objectRef":{"resource":"pods","apiGroup":"a","resource":"secrets"}"#,
            r#","objectRef":{"resource":"pods","apiGroup":"a","subresource":"b"}"#,
            r#","objectRef":{"resource":"pods"},"objectRef":{"resource":"secrets"}"#,
            r#","objectRef":{"resource":"secrets","namespace":"a"}"#,
        ],
    );
    let mut event =
        format!(r#"{{{HEAD},"requestURI":{uri},"verb":"get","user":{user},"sourceIPs":["::1"]"#);
    event += &format!(r#","userAgent":{agent}{object}"#);
    for _ in 0..rng.usize(..3) {
        event += &match rng.u8(..4) {
            0 => format!(r#","requestURI":{}"#, text(rng)),
            1 => format!(",\"{}\"{}", pick(rng, &KEYS), object_value(rng)),
            _ => format!(",\"{}\":{}", pick(rng, &KEYS), value(rng, 2)),
        };
    }
    event + "}"
}

#[test]
fn the_look_at_an_event_hides_no_change() {
    let redactions = [
        rules(&[]),
        rules(&[
            ("pods", "requestObject.x user.*", With::Drop),
            ("", "annotations.x", With::Sha256),
        ]),
    ];
    let annotations = Annotations::new([("cluster", "c")]);
    let mut looked = Looked::default();
    let seeds = seeds(20_000);
    for seed in seeds.iter().copied() {
        let _failing = Failing(seed);
        let rng = &mut fastrand::Rng::with_seed(seed);
        let event = if rng.bool() { event(rng) } else { usual_event(rng) };
        if !is_event(&event) {
            continue;
        }
        let change = Change {
            level: [None, None, None, Some(Level::Metadata)][rng.usize(..4)],
            redaction: Some(&redactions[usize::from(rng.u8(..4) == 0)]),
            annotations: (rng.u8(..8) == 0).then_some(&annotations),
            event_bytes_max: (rng.u8(..8) == 0).then(|| rng.usize(..2 * event.len())),
            ..Change::default()
        };
        looked.judge(&event, &change);
    }
    let least = Looked { events: 10_000, known: 2000, unseen: 1000, redacted: 4000 };
    looked.assert_more_than(least, seeds.len());
}

#[test]
fn the_look_sees_nothing_in_what_kube_apiserver_writes_of_usual_requests() {
    let (mut events, mut unseen) = (0, 0);
    for (_, body) in corpus() {
        let lines = audit::decode(body).unwrap().lines;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            events += 1;
            unseen += usize::from(Look::at(line, &request(line), 0).is_clear());
        }
    }
    assert!(unseen * 100 >= events * 99, "{unseen} of {events}");
}
