//! One event that a client of the cluster has shaped costs nothing of the others in its batch.
//!
//! kube-apiserver drops a batch that gets 400 or 413, with the events of everybody in it. The
//! bodies here are what kube-apiserver 1.36.3 sends after such a request.

use crate::support::answers::{assert_accepted, assert_refusal};
use crate::support::http::Response;
use crate::support::prelude::*;
use crate::support::setup::start;

const HEAD: &str = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;

const TOLD: &str = "items from a sender are not audit events: they are in the dead letters, if \
                    the relay has a directory for them, and the other items of their bodies are \
                    accepted";

/// An event with this name and these members.
fn event(name: &str, members: &[u8]) -> Vec<u8> {
    let (id, time) = (format!("{name}-id"), "2026-11-30T10:00:00.000000Z");
    let head = format!(
        r#"{{"level":"Request","auditID":"{id}","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/configmaps/{name}","verb":"patch","user":{{"username":"{name}"}},"objectRef":{{"resource":"configmaps","namespace":"a","name":"{name}","apiVersion":"v1"}},"requestReceivedTimestamp":"{time}","stageTimestamp":"{time}""#
    );
    [head.as_bytes(), members, b"}"].concat()
}

fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [HEAD.as_bytes(), &items.join(&b','), b"]}"].concat()
}

/// Forty events of other users, and among them `own`.
fn batch(tag: &str, own: &[u8]) -> Vec<u8> {
    let mut items: Vec<_> = (0..40).map(|at| event(&format!("{tag}-{at}"), b"")).collect();
    items.insert(20, own.to_vec());
    list(&items)
}

fn nested(levels: usize) -> Vec<u8> {
    [&br#"{"x":"#.repeat(levels)[..], b"1", &b"}".repeat(levels)].concat()
}

/// The requestObject of an event after each kind of request, with its name.
fn shaped() -> Vec<(&'static str, Vec<u8>)> {
    let text = |bytes: &[u8]| [&br#"{"data":{"a":""#[..], bytes, br#""}}"#].concat();
    let members: Vec<_> = (0..100_000).map(|at| format!("\"m{at}\":{at}")).collect();
    vec![
        ("utf8", text(b"\xff\xfe")),
        ("surrogates", text(b"\xed\xa0\x80\xed\xb0\x80")),
        ("overlong", text(b"\xc0\xaf\xf4\x90\x80\x80")),
        ("cut", text(b"caf\xc3")),
        ("name", br#"{"data":{"\xff":"b"}}"#.map_back()),
        ("levels", nested(1_100)),
        ("arrays", [&b"[".repeat(10_000)[..], &b"]".repeat(10_000)].concat()),
        ("deepest", nested(10_000)),
        ("digits", [&br#"{"replicas":1"#[..], &b"0".repeat(100_000), b"}"].concat()),
        ("members", format!("{{{}}}", members.join(",")).into_bytes()),
        ("member", text(&b"x".repeat(10_000_000))),
        ("lone", text(br"\ud800")),
    ]
}

trait MapBack {
    fn map_back(&self) -> Vec<u8>;
}

impl MapBack for [u8] {
    /// Returns the text with the byte 0xff in place of the four characters that name it.
    fn map_back(&self) -> Vec<u8> {
        let at = memchr::memmem::find(self, br"\xff").unwrap();
        [&self[..at], b"\xff", &self[at + 4..]].concat()
    }
}

/// How many events of others and whether the one of the tag itself are in these lines.
fn arrived(lines: &[Vec<u8>], tag: &str) -> (usize, bool) {
    let has = |name: String| {
        let name = format!("configmaps/{name}\"");
        lines.iter().any(|line| memchr::memmem::find(line, name.as_bytes()).is_some())
    };
    ((0..40).filter(|at| has(format!("{tag}-{at}"))).count(), has(format!("{tag}-own")))
}

/// Each output has another kind of filter. The consumers take everything.
#[test]
fn all_others_and_the_shaped_event_itself_arrive_behind_every_kind_of_filter() {
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{ level: RequestResponse }]\n";
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, policy).unwrap();
    let filters = [
        String::new(),
        format!("policy = \"{}\"", file.display()),
        "redact = [{ resources = [\"configmaps\"], fields = [\"requestObject.data.b\"] }]"
            .to_owned(),
        "max_event_bytes = \"16KiB\"".to_owned(),
        "shape = \"ecs\"".to_owned(),
        "shape = \"ocsf\"".to_owned(),
    ];
    let sinks: Vec<_> = filters.iter().map(|_| TcpSink::start()).collect();
    let outputs = sinks.iter().zip(&filters).enumerate().map(|(at, (sink, filter))| {
        format!("{}[output.filter]\n{filter}\n", sink.output(&format!("o{at}"), ""))
    });
    let relay = Relay::start(&format!("{BASE}{}", outputs.collect::<String>()));
    let shaped = shaped();
    for (tag, object) in &shaped {
        let own = [&br#","requestObject":"#[..], object].concat();
        let response = relay.post(&batch(tag, &event(&format!("{tag}-own"), &own)));
        assert_accepted(&response, 41);
    }
    relay.wait_until_delivered(PATIENCE * 3);
    for (sink, filter) in sinks.iter().zip(&filters) {
        let lines: Vec<Vec<u8>> = sink.lines().into_iter().map(|line| line.to_vec()).collect();
        for (tag, _) in &shaped {
            assert_eq!(arrived(&lines, tag), (40, true), "{tag} behind {filter:?}");
        }
        for line in lines {
            assert!(std::str::from_utf8(&line).is_ok(), "{filter}");
        }
    }
    let metrics = relay.metrics();
    let listener = relay.listeners()[0].0.clone();
    let labels = [("listener", &*listener), ("change", "invalid_utf8")];
    assert_eq!(metrics.get("changed_events_total", &labels), Some(5.0));
    assert_eq!(lost(&relay), 0.0);
}

/// The bodies are a recorded list, in which one object is as kube-apiserver was seen to send it.
#[test]
fn all_events_of_a_recorded_list_arrive_beside_bytes_or_levels_that_a_client_chose() {
    let directory = repository().join("tests/corpus");
    let recorded = std::fs::read(directory.join("13-ssa-patch.json")).unwrap();
    let recorded = events_of(&recorded);
    let read = |name: &str| std::fs::read(directory.join("shaped").join(name)).unwrap();
    let object = |levels: usize| String::from_utf8(nested(levels)).unwrap();
    for (name, object) in [
        ("invalid-utf8.json", "{\"data\":{\"a\":\"\u{fffd}\u{fffd}\"}}".to_owned()),
        ("levels-1100.json", object(1_100)),
    ] {
        let (relay, sink) = start("", "");
        assert_accepted(&relay.post(&read(name)), 8);
        relay.wait_until_delivered(PATIENCE);
        let lines = sink.lines();
        assert_eq!(lines.len(), recorded.len(), "{name}");
        for (at, (line, event)) in lines.iter().zip(&recorded).enumerate() {
            let text = std::str::from_utf8(line).expect(name);
            match at {
                5 => assert!(text.contains(&format!("\"requestObject\":{object},")), "{name}"),
                _ => assert_eq!(line, event, "{name}"),
            }
        }
    }
}

#[test]
fn an_item_that_is_not_an_event_is_counted_told_and_kept_and_the_others_are_accepted() {
    let spool = Spool::new();
    let sink = TcpSink::start();
    let relay = Relay::start(&format!("{BASE}{}{}", sink.output("o", ""), spool.queue("")));
    let beta = br#","kind":"Event","apiVersion":"audit.k8s.io/v1beta1""#;
    let items: [&[u8]; 5] = [
        b"7",
        b"null",
        br#"{"level":"Request","stage":"ResponseComplete"}"#,
        br#"{"auditID":"a","stage":"ResponseComplete","kind":"Pod","apiVersion":"v1"}"#,
        &event("beta-own", beta),
    ];
    for (at, item) in items.iter().enumerate() {
        let response = relay.post(&batch(&format!("t{at}"), item));
        assert_eq!(response.status, 200);
        assert_eq!(response.body, br#"{"accepted":40,"rejected":1}"#);
    }
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(sink.lines().len(), 200);
    let metrics = relay.metrics();
    let listener = relay.listeners()[0].0.clone();
    assert_eq!(metrics.get("rejected_items_total", &[("listener", &*listener)]), Some(5.0));
    let line = relay.wait_for_log(TOLD, PATIENCE);
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("item 20") && error.contains("not an object"), "{error}");
    let letters = spool.path().join("dead-letter");
    let kept = || {
        let files = std::fs::read_dir(&letters).into_iter().flatten();
        let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        texts.collect::<String>()
    };
    let deadline = Instant::now() + PATIENCE;
    while kept().lines().count() < items.len() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    for (line, item) in kept().lines().zip(items) {
        assert!(line.ends_with(&format!("\"event\":{}}}", std::str::from_utf8(item).unwrap())));
    }
    assert_eq!(kept().lines().count(), items.len());
    // Nothing in these bodies is an event: they come from a wrong sender.
    for body in [list(&[b"7".to_vec()]), list(&[b"{}".to_vec(), b"null".to_vec()])] {
        assert_refusal(&relay.post(&body), 400);
    }
}

fn post(relay: &Relay, body: &[u8], headers: &str) -> Response {
    let mut client = Client::connect(relay.address()).unwrap();
    client.read_timeout(PATIENCE * 6);
    let head = format!("POST / HTTP/1.1\r\nHost: relay\r\n{headers}\r\n");
    client.send(head.as_bytes()).unwrap();
    client.send(body).unwrap();
    client.read_response().unwrap()
}

/// Twelve bytes for each `<` of two, as two events repeat a URI that Go escapes.
fn long_uri(name: &str, count: usize) -> Vec<u8> {
    let uri = format!(r#""requestURI":"/x?{}","#, r"\u003c".repeat(count));
    let event = String::from_utf8(event(name, b"")).unwrap();
    event.replacen("\"requestURI\":", &format!("{uri}\"other\":"), 1).into_bytes()
}

/// Method: batches far above `max_body`, whose large events are large in another member, with an
/// announced length, in chunks and as gzip, for a queue in memory and on disk.
#[test]
fn a_list_above_max_body_loses_only_what_makes_its_largest_events_large() {
    let limits = "[limits]\nmax_body = \"1MiB\"\n";
    let spool = Spool::new();
    for queue in [String::new(), spool.queue("")] {
        let (relay, sink) = start("", &format!("{queue}{limits}"));
        let bodies = |tag: &str| {
            let large = |name: &str| match tag {
                "uri" => long_uri(name, 60_000),
                "agent" => {
                    let agent = "a".repeat(300_000);
                    event(name, format!(r#","userAgent":"{agent}""#).as_bytes())
                }
                "object" => {
                    let object =
                        [&br#","requestObject":{"d":""#[..], &b"x".repeat(3_000_000), b"\"}"];
                    event(name, &object.concat())
                }
                _ => event(
                    name,
                    &[b",\"requestObject\":\"", &b"\xff".repeat(200_000)[..], b"\""].concat(),
                ),
            };
            let mut items: Vec<_> = (0..40).map(|at| event(&format!("{tag}-{at}"), b"")).collect();
            for at in 0..12 {
                items.insert(3 * at, large(&format!("{tag}-large{at}")));
            }
            items.push(large(&format!("{tag}-own")));
            list(&items)
        };
        for tag in ["uri", "agent", "object", "bytes"] {
            let body = bodies(tag);
            assert!(body.len() > 2 << 20, "{}", body.len());
            let response = match tag {
                "agent" => {
                    let mut chunks = Vec::new();
                    for piece in body.chunks(70_001) {
                        chunks.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                        chunks.extend_from_slice(piece);
                        chunks.extend_from_slice(b"\r\n");
                    }
                    chunks.extend_from_slice(b"0\r\n\r\n");
                    post(&relay, &chunks, "Transfer-Encoding: chunked\r\n")
                }
                _ => post(&relay, &body, &format!("Content-Length: {}\r\n", body.len())),
            };
            assert_accepted(&response, 53);
        }
        relay.wait_until_delivered(PATIENCE);
        let lines: Vec<Vec<u8>> = sink.lines().into_iter().map(|line| line.to_vec()).collect();
        for tag in ["uri", "agent", "object", "bytes"] {
            assert_eq!(arrived(&lines, tag), (40, true), "{tag}");
        }
        let whole = (0..40).map(|at| event(&format!("uri-{at}"), b""));
        for other in whole {
            assert!(lines.contains(&other), "the others are as they were sent");
        }
        let trimmed = lines.iter().filter(|line| {
            memchr::memmem::find(line, br#""audit.k8s.io/truncated":"true""#).is_some()
        });
        let listener = relay.listeners()[0].0.clone();
        let labels = [("listener", &*listener), ("change", "trimmed")];
        let counted = relay.metrics().get("changed_events_total", &labels).unwrap();
        assert_eq!(trimmed.count() as f64, counted);
        assert!(counted >= 30.0, "{counted}");
        // Not a list, and a list that ends early.
        let alone = event("a", &[b",\"x\":\"", &b"x".repeat(2 << 20)[..], b"\""].concat());
        let length = format!("Content-Length: {}\r\n", alone.len());
        assert_refusal(&post(&relay, &alone, &length), 413);
        let mut broken = bodies("broken");
        broken.truncate(broken.len() - 1);
        let length = format!("Content-Length: {}\r\n", broken.len());
        assert_refusal(&post(&relay, &broken, &length), 400);
    }
}

/// The events of a list go to the queue in parts, and its other items to the dead letters, as text.
#[test]
fn an_item_of_a_list_above_max_body_that_is_not_an_event_is_kept_as_text() {
    let (spool, sink) = (Spool::new(), TcpSink::start());
    let limits = "[limits]\nmax_body = \"16KiB\"\n";
    let config = format!("{BASE}{}{}{limits}", sink.output("o", ""), spool.queue(""));
    let relay = Relay::start(&config);
    let mut items: Vec<_> = (0..100).map(|at| event(&format!("e{at}"), b"")).collect();
    items.insert(50, b"{\"x\":\n\"\xff\"}".to_vec());
    let body = list(&items);
    let response = post(&relay, &body, &format!("Content-Length: {}\r\n", body.len()));
    assert_eq!(response.text(), r#"{"accepted":100,"rejected":1}"#);
    let letters = spool.path().join("dead-letter");
    wait_until("the letter", PATIENCE, || {
        let files = std::fs::read_dir(&letters).into_iter().flatten();
        let texts = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
        let text = texts.collect::<Vec<_>>().concat();
        text.ends_with("\"event\":{\"x\": \"\u{fffd}\"}}\n".as_bytes())
    });
    relay.finish(Backlog::Empty);
}

/// A list of small events has nothing to trim: its parts are batches of their own.
#[test]
fn a_list_of_small_events_above_max_body_is_taken_in_parts() {
    let (relay, sink) = start("", "[limits]\nmax_body = \"256KiB\"\n");
    let items: Vec<_> = (0..4_000).map(|at| event(&format!("e{at}"), b"")).collect();
    let body = list(&items);
    let response = post(&relay, &body, &format!("Content-Length: {}\r\n", body.len()));
    assert_accepted(&response, 4_000);
    relay.wait_until_delivered(PATIENCE);
    let lines: Vec<Vec<u8>> = sink.lines().into_iter().map(|line| line.to_vec()).collect();
    assert!(lines == items, "all events, as they were, in their order");
}
