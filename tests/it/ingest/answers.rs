//! Every answer of the listener to requests that are sent raw over a socket: the status and its
//! object, the headers, the counters, and whether the connection is kept.

use std::io::{Read as _, Write as _};

use crate::support::answers::{
    Counted, NO_EVENTS, assert_accepted, assert_head_refusal, assert_kept, assert_refusal,
};
use crate::support::corpus::audit_log;
use crate::support::h2;
use crate::support::h2::H2;
use crate::support::prelude::*;
use crate::support::setup::start;

const EVENT: &str = r#"{"level":"Metadata","auditID":"a","stage":"ResponseComplete"}"#;
const HEAD: &str = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
const JSON: &str = "application/json";

fn list(items: &str) -> Vec<u8> {
    format!("{HEAD}{items}]}}").into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns a POST with these header lines, each with its line break, and this body. The header
/// lines can contradict the body's length.
fn raw(headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST /audit HTTP/1.1\r\nHost: relay\r\n{headers}\r\n").into_bytes();
    request.extend_from_slice(body);
    request
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut chunks = Vec::new();
    for piece in body.chunks(size) {
        chunks.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunks.extend_from_slice(piece);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    chunks
}

/// Sends these bytes on a new connection. Checks that they are refused with `code` and counted
/// once, under `reason`. Returns the connection and the message.
fn refused(relay: &Relay, bytes: &[u8], code: u16, reason: &str) -> (Client, String) {
    let before = Counted::of(relay);
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(bytes).unwrap();
    let response = client.read_response().unwrap_or_else(|error| {
        panic!(
            "{code} was to come, not {error}: {}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
        )
    });
    let message = assert_refusal(&response, code);
    assert_eq!(Counted::of(relay), before.and(&code.to_string(), Some(reason)), "{message}");
    (client, message)
}

/// Like [`refused`], and checks that the connection is kept.
fn refused_and_kept(relay: &Relay, bytes: &[u8], code: u16, reason: &str) -> String {
    let (mut client, message) = refused(relay, bytes, code, reason);
    assert_kept(&mut client);
    message
}

/// Like [`refused`], and checks that the connection is closed.
fn refused_and_closed(relay: &Relay, bytes: &[u8], code: u16, reason: &str) -> String {
    let (mut client, message) = refused(relay, bytes, code, reason);
    assert!(client.is_closed_by_server(), "kept after: {message}");
    message
}

/// Sends bytes that are no whole head on a new connection. Checks that they are refused with `code`
/// and counted once, under `reason`. Returns the connection.
fn head_refused(relay: &Relay, bytes: &[u8], code: u16, reason: &str) -> Client {
    let class = if code == 431 { "4xx".to_owned() } else { code.to_string() };
    let expected = Counted::of(relay).and(&class, Some(reason));
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(bytes).unwrap();
    assert_head_refusal(&client.read_response().unwrap(), code);
    // The relay counts this refusal when the connection has ended.
    wait_until("the count", PATIENCE, || Counted::of(relay) == expected);
    client
}

fn post(body: &[u8]) -> Vec<u8> {
    raw(&format!("Content-Type: {JSON}\r\nContent-Length: {}\r\n", body.len()), body)
}

#[test]
fn an_item_that_is_not_an_event_is_left_out_and_one_that_is_not_json_refuses_the_body() {
    let (relay, sink) = start("", "");
    let second = HEAD.len() + EVENT.len() + 1;
    let deep = format!(
        r#"{{"auditID":"a","stage":"Panic","x":{}1{}}}"#,
        "[".repeat(10_016),
        "]".repeat(10_016)
    );
    let mut taken = 0;
    for (item, at, says) in [
        ("1", 0, "not an object"),
        ("null", 0, "not an object"),
        ("[]", 0, "not an object"),
        (r#"{"stage":"Panic"}"#, 0, "auditID is missing"),
        (r#"{"auditID":"","stage":"Panic"}"#, 11, "auditID is empty"),
        (r#"{"auditID":7,"stage":"Panic"}"#, 11, "auditID is not a string"),
        (r#"{"auditID":null,"stage":"Panic"}"#, 11, "auditID is not a string"),
        (r#"{"auditID":"a"}"#, 0, "stage is missing"),
        (r#"{"auditID":"a","stage":"Done"}"#, 23, "stage is not one of"),
        (r#"{"auditID":"a","stage":7}"#, 23, "stage is not one of"),
        // With duplicate keys, the first one counts.
        (r#"{"auditID":"a","stage":"Done","stage":"Panic"}"#, 23, "stage is not one of"),
        (r#"{"auditID":"a","stage":"Panic","kind":"Pod"}"#, 38, "kind is not Event"),
        (
            r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1","auditID":"a","stage":"Panic"}"#,
            29,
            "1.24",
        ),
        (&deep, 0, "nested more than 10016 deep"),
    ] {
        let response = relay.post(&list(&format!("{EVENT},{item}")));
        assert_eq!(response.text(), r#"{"accepted":1,"rejected":1}"#, "{item}");
        taken += 1;
        // Alone, it is a body in which nothing is an event.
        let message = refused_and_kept(&relay, &post(&list(item)), 400, "invalid");
        let place = format!("item 0 at byte {}: ", HEAD.len() + at);
        assert!(message.starts_with(&place) && message.contains(says), "{item}: {message}");
    }
    for (item, at, says) in [
        (r#"{"auditID":"a","stage":tru}"#, 26, "not JSON"),
        (r#"{"auditID":"a" "stage":"Panic"}"#, 15, "not JSON"),
        // serde_json gives the position of the byte before a control character.
        ("{\"auditID\":\"a\nb\",\"stage\":\"Panic\"}", 12, "not JSON"),
        (r#"{"auditID":"\u12G4","stage":"Panic"}"#, 17, "not JSON"),
        (r#"{"auditID":"a","stage":"Panic","n":01}"#, 36, "not JSON"),
    ] {
        let body = list(&format!("{EVENT},{item}"));
        let message = refused_and_kept(&relay, &post(&body), 400, "invalid");
        let place = format!("item 1 at byte {}: ", second + at);
        assert!(message.starts_with(&place) && message.contains(says), "{item}: {message}");
    }
    // A level that Kubernetes does not have is not a reason to refuse an event.
    let odd = r#"{"level":"Odd","auditID":"a","stage":"Panic"}"#;
    assert_accepted(&relay.post(&list(odd)), 1);
    sink.wait_for_count(taken + 1, PATIENCE);
    let mut expected = vec![EVENT.as_bytes(); taken];
    expected.push(odd.as_bytes());
    assert_eq!(sink.lines(), expected, "nothing of a refused body was taken");
    relay.finish(Backlog::Empty);
}

#[test]
fn bytes_that_are_not_utf_8_outside_of_strings_are_400_and_named_by_item_and_byte() {
    let (relay, _sink) = start("", "");
    let mut body = list(&format!("{EVENT},{EVENT}"));
    let at = HEAD.len() + EVENT.len() + 1 + EVENT.find("\"auditID").unwrap();
    body[at] = 0xff;
    let message = refused_and_kept(&relay, &post(&body), 400, "invalid");
    assert!(message.starts_with(&format!("item 1 at byte {at}: not JSON")), "{message}");
    // The end of the body cuts a character in two.
    let message = refused_and_kept(&relay, &post(b"{\"kind\":\"\xc3"), 400, "invalid");
    assert!(message.contains("not JSON"), "{message}");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_body_of_another_kind_or_version_is_400_that_says_so() {
    let (relay, sink) = start("", "");
    let list = |kind: &str, version: &str, items: &str| {
        format!("{{{kind}{version}\"metadata\":{{}}{items}}}")
    };
    let (kind, version) = (r#""kind":"EventList","#, r#""apiVersion":"audit.k8s.io/v1","#);
    let beta = r#""apiVersion":"audit.k8s.io/v1beta1","#;
    let alpha = r#""apiVersion":"audit.k8s.io/v1alpha1","#;
    let items = r#","items":[]"#;
    for (body, says) in [
        (String::new(), "empty"),
        (" \r\n\t".to_owned(), "empty"),
        ("null".to_owned(), "neither an audit event"),
        ("[]".to_owned(), "the body is a JSON array"),
        ("17".to_owned(), "neither an audit event"),
        ("\"text\"".to_owned(), "neither an audit event"),
        ("text".to_owned(), "not JSON"),
        ("{".to_owned(), "not JSON"),
        ("\0".to_owned(), "not JSON"),
        ("\u{feff}{}".to_owned(), "not JSON"),
        ("{}".to_owned(), "auditID is missing"),
        (list(r#""kind":"PodList","#, version, items), "PodList"),
        (list(r#""kind":7,"#, version, items), "kind is not a string"),
        (list("", version, items), "kind is missing"),
        (list(kind, "", items), "apiVersion is missing"),
        (list(kind, r#""apiVersion":1,"#, items), "apiVersion is not a string"),
        (list(kind, r#""apiVersion":"audit.k8s.io/v2","#, items), "audit.k8s.io/v2"),
        (list(kind, beta, items), "1.24"),
        (list(kind, alpha, items), "1.24"),
        (list(kind, version, ""), "items is missing"),
        (list(kind, version, r#","items":null"#), "items is not an array"),
        (list(kind, version, r#","items":{}"#), "items is not an array"),
        (list(kind, version, r#","items":"[]""#), "items is not an array"),
        (list(kind, version, r#","items":-1"#), "items is not an array"),
        (list(kind, version, r#","items":[],"items":[]"#), "twice"),
        (list(kind, version, items) + "{}", "more follows"),
        (list(kind, version, items) + "]", "more follows"),
        (format!("{EVENT}{EVENT}"), "two events on one line"),
        (format!("{EVENT}\n{EVENT},\n"), "not JSON"),
    ] {
        let message = refused_and_kept(&relay, &post(body.as_bytes()), 400, "invalid");
        assert!(message.contains(says), "{body}: {message}");
        assert!(message.contains("at byte ") || message.contains("empty"), "{body}: {message}");
    }
    assert_eq!(relay.metrics().value("event_total", &[]), 0.0);
    relay.finish(Backlog::Empty);
    assert_eq!(sink.count(), 0);
}

#[test]
fn an_empty_list_is_accepted_with_no_events() {
    let (relay, sink) = start("", "");
    assert_accepted(&relay.post(&list("")), 0);
    assert_accepted(
        &relay
            .post(b"{\"items\" :\n[ ] ,\"apiVersion\":\"audit.k8s.io/v1\",\"kind\":\"EventList\"}"),
        0,
    );
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 0.0);
    assert_eq!(metrics.value("queue_bytes", &[]), 0.0, "not even 256 bytes");
    relay.finish(Backlog::Empty);
    assert_eq!(sink.count(), 0);
}

#[test]
fn a_broken_or_truncated_gzip_body_is_400() {
    let (relay, sink) = start("", "");
    let send = |body: &[u8]| {
        raw(&format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", body.len()), body)
    };
    let whole = gzip(&generated_batch(1, 20, 500));
    let mut wrong_sum = whole.clone();
    let sum = wrong_sum.len() - 6;
    wrong_sum[sum] ^= 1;
    let mut wrong_middle = whole.clone();
    let middle = wrong_middle.len() / 2;
    wrong_middle[middle..middle + 20].fill(0xff);
    let mut followed = whole.clone();
    followed.extend_from_slice(b"more");
    let mut bodies =
        vec![wrong_sum, wrong_middle, followed, list(EVENT), b"\x1f".to_vec(), Vec::new()];
    bodies.extend(
        [2, 10, 11, whole.len() / 2, whole.len() - 8, whole.len() - 1]
            .map(|end| whole[..end].to_vec()),
    );
    for body in bodies {
        let message = refused_and_kept(&relay, &send(&body), 400, "invalid");
        assert!(message.contains("gzip") || body.is_empty(), "{} bytes: {message}", body.len());
    }
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&send(&whole)).unwrap();
    assert_accepted(&client.read_response().unwrap(), 20);
    // Two gzip members are one stream (RFC 1952 §2.2).
    let body = generated_batch(2, 20, 500);
    let two = [gzip(&body[..5000]), gzip(&body[5000..])].concat();
    client.send(&send(&two)).unwrap();
    assert_accepted(&client.read_response().unwrap(), 20);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.lines(), [events_of(&generated_batch(1, 20, 500)), events_of(&body)].concat());
}

#[test]
fn a_body_shorter_than_its_content_length_is_400() {
    let (relay, sink) = start("", "");
    for request in [
        raw("Content-Length: 500\r\n", &list(EVENT)),
        raw("Content-Length: 500\r\n", b""),
        raw("Transfer-Encoding: chunked\r\n", b"5\r\n{\"kin"),
        raw("Transfer-Encoding: chunked\r\n", b"5\r\n{\"kin\r\n"),
    ] {
        let before = Counted::of(&relay);
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&request).unwrap();
        client.stream().finish_writing().unwrap();
        let response = client.read_response().unwrap();
        let message = assert_refusal(&response, 400);
        assert!(message.contains("shorter"), "{message}");
        assert!(client.is_closed_by_server());
        assert_eq!(Counted::of(&relay), before.and("400", Some("invalid")));
    }
    // A chunked body without valid chunks.
    refused_and_closed(&relay, &raw("Transfer-Encoding: chunked\r\n", b"xyz\r\n"), 400, "invalid");
    relay.finish(Backlog::Empty);
    assert_eq!(sink.count(), 0);
}

#[test]
fn a_sender_that_has_finished_writing_still_gets_its_answer() {
    let (relay, sink) = start("", "");
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&post(&list(EVENT))).unwrap();
    client.stream().finish_writing().unwrap();
    assert_accepted(&client.read_response().unwrap(), 1);
    assert!(client.is_closed_by_server());
    sink.wait_for_count(1, PATIENCE);
    relay.finish(Backlog::Empty);
}

#[test]
fn http_1_1_has_exactly_one_host() {
    let (relay, _sink) = start("", "");
    let length = NO_EVENTS.len();
    let request = |version: &str, hosts: &str| {
        format!("POST / HTTP/{version}\r\n{hosts}Content-Length: {length}\r\n\r\n{NO_EVENTS}")
            .into_bytes()
    };
    let message = refused_and_kept(&relay, &request("1.1", ""), 400, "invalid");
    assert!(message.contains("Host"), "{message}");
    refused_and_kept(&relay, &request("1.1", "Host: a\r\nHost: b\r\n"), 400, "invalid");
    refused_and_kept(&relay, &request("1.1", "Host: a\r\nHost: a\r\n"), 400, "invalid");
    for good in [request("1.1", "hOST: a\r\n"), request("1.0", "")] {
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&good).unwrap();
        assert_accepted(&client.read_response().unwrap(), 0);
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn a_request_with_two_lengths_is_never_read_as_two() {
    let (relay, _sink) = start("", "");
    let inner = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{NO_EVENTS}",
        NO_EVENTS.len()
    );
    let chunks = String::from_utf8(chunked(NO_EVENTS.as_bytes(), 1000)).unwrap();
    for headers in [
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", chunks.len() + inner.len()),
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", chunks.len()),
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        format!("Content-Length: {}\r\nContent-Length: 4\r\n", chunks.len()),
        "Transfer-Encoding: xchunked\r\n".to_owned(),
        "Transfer-Encoding: chunked, gzip\r\n".to_owned(),
    ] {
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&raw(&headers, format!("{chunks}{inner}").as_bytes())).unwrap();
        let response = client.read_response().unwrap();
        if response.status != 200 {
            assert_head_refusal(&response, 400);
        }
        assert!(client.is_closed_by_server(), "{headers}: a second answer came");
    }
    for length in ["-1", "+1", "0x10", "1 1", "99999999999999999999", ""] {
        let head = raw(&format!("Content-Length: {length}\r\n"), b"");
        assert!(head_refused(&relay, &head, 400, "invalid").is_closed_by_server());
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn chunked_bodies_are_read_like_others() {
    let (relay, sink) = start("", "");
    let batches: Vec<_> = (0..4).map(|seed| generated_batch(seed, 40, 1000)).collect();
    let mut client = Client::connect(relay.address()).unwrap();
    for (batch, size) in batches.iter().zip([1, 7, 4096, 1_000_000]) {
        client.send(&raw("Transfer-Encoding: chunked\r\n", &chunked(batch, size))).unwrap();
        assert_accepted(&client.read_response().unwrap(), 40);
    }
    let packed = gzip(&batches[0]);
    let headers = "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\nTrailer: X\r\n";
    let mut body = chunked(&packed, 100);
    body.truncate(body.len() - 2);
    body.extend_from_slice(b"X: trailers say nothing\r\n\r\n");
    client.send(&raw(headers, &body)).unwrap();
    assert_accepted(&client.read_response().unwrap(), 40);
    assert_kept(&mut client);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    let expected: Vec<_> =
        batches.iter().chain(&batches[..1]).flat_map(|batch| events_of(batch)).collect();
    assert!(sink.lines() == expected);
}

#[test]
fn a_path_outside_the_prefix_is_404_and_another_method_405() {
    let (relay, sink) = start("path_prefix = \"/audit\"", "");
    let request = |method: &str, target: &str| {
        let length = NO_EVENTS.len();
        format!(
            "{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{NO_EVENTS}"
        )
        .into_bytes()
    };
    for outside in
        ["/", "/auditx", "/audi", "/AUDIT", "//audit", "/x/audit", "/?/audit", "/%61udit", "*"]
    {
        refused_and_kept(&relay, &request("POST", outside), 404, "not_found");
    }
    refused_and_kept(&relay, &request("GET", "/auditx"), 404, "not_found");
    for probe in ["GET", "OPTIONS"] {
        refused_and_kept(&relay, &request(probe, "/"), 404, "probe");
        refused_and_kept(&relay, &request(probe, "/?from=balancer"), 404, "probe");
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "BREW"] {
        refused_and_kept(&relay, &request(method, "/audit/any"), 405, "method");
    }
    for inside in ["/audit", "/audit/", "/audit/x/y?timeout=30s", "/audit?x", "http://other/audit"]
    {
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&request("POST", inside)).unwrap();
        assert_accepted(&client.read_response().unwrap(), 0);
    }
    // An answer to HEAD must not have a body, because the client would take it for the next answer.
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(b"HEAD /audit HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.stream().read_exact(&mut byte).unwrap();
        head.extend_from_slice(&byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 405 "), "{}", String::from_utf8_lossy(&head));
    assert_kept(&mut client);
    relay.finish(Backlog::Empty);
    assert_eq!(sink.count(), 0);
}

#[test]
fn a_prefix_with_a_slash_at_its_end_is_the_same_prefix_and_the_root_takes_any_path() {
    let (relay, _sink) = start("path_prefix = \"/a/b/\"", "");
    for (target, inside) in
        [("/a/b", true), ("/a/b/", true), ("/a/b/c", true), ("/a/bc", false), ("/a", false)]
    {
        let response = http::post(relay.address(), target, JSON, NO_EVENTS.as_bytes()).unwrap();
        assert_eq!(response.status == 200, inside, "{target}");
    }
    relay.finish(Backlog::Empty);
    let (relay, _sink) = start("", "");
    for target in ["/", "/auditx", "//", "/?", "/a b".trim_end_matches(" b"), "/%00/../x"] {
        let response = http::post(relay.address(), target, JSON, NO_EVENTS.as_bytes()).unwrap();
        assert_accepted(&response, 0);
    }
    let options = b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n";
    refused_and_kept(&relay, options, 405, "method");
    refused_and_kept(&relay, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "probe");
    let status: Value = http::get(relay.admin(), "/status").unwrap().json();
    assert_eq!(status["last_rejected"]["reason"], "method", "a probe hides nothing: {status}");
    relay.finish(Backlog::Empty);
}

/// A load balancer has no token, and events are not lost by its checks.
#[test]
fn a_probe_without_the_token_is_answered_401_and_is_no_unauthorized_sender() {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "right").unwrap();
    let (relay, _sink) = start(&format!("bearer_token_file = {:?}", text(&token)), "");
    for (path, reason) in [("/", "probe"), ("/x", "unauthorized")] {
        assert_eq!(http::get(relay.address(), path).unwrap().status, 401);
        let rejected = relay.metrics().value("requests_rejected_total", &[("reason", reason)]);
        assert_eq!(rejected, 1.0, "{path}");
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn another_media_type_or_encoding_is_415() {
    let (relay, _sink) = start("", "");
    let request = |headers: &str| {
        raw(&format!("{headers}Content-Length: {}\r\n", NO_EVENTS.len()), NO_EVENTS.as_bytes())
    };
    for headers in [
        "Content-Type: application/yaml\r\n",
        "Content-Type: application/jsonx\r\n",
        "Content-Type: application/vnd.kubernetes.protobuf\r\n",
        "Content-Type: text/plainer\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Encoding: br\r\n",
        "Content-Encoding: deflate\r\n",
        "Content-Encoding: zstd\r\n",
        "Content-Encoding: gzip, gzip\r\n",
        "Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n",
    ] {
        refused_and_kept(&relay, &request(headers), 415, "media_type");
    }
    for headers in [
        "",
        "Content-Type:\r\n",
        "Content-Type: application/json\r\n",
        "Content-Type: Application/JSON ; charset=utf-8\r\n",
        "Content-Type: application/x-ndjson\r\n",
        "Content-Type: text/plain;charset=x\r\n",
        "Content-Encoding: identity\r\n",
    ] {
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&request(headers)).unwrap();
        assert_accepted(&client.read_response().unwrap(), 0);
    }
    relay.finish(Backlog::Empty);
}

const MIB: usize = 1024 * 1024;
const SMALL: &str = "[limits]\nmax_body = \"1MiB\"\n";

/// Returns a body of exactly this size: events, then white space.
fn padded(size: usize) -> Vec<u8> {
    let mut body = generated_batch(9, 10, 1000);
    body.resize(size, b' ');
    body
}

#[test]
fn a_body_of_max_body_is_accepted_and_above_it_what_is_not_a_list_is_413() {
    let (relay, sink) = start("", SMALL);
    let gzip_headers =
        |length: usize| format!("Content-Encoding: gzip\r\nContent-Length: {length}\r\n");
    let mut client = Client::connect(relay.address()).unwrap();
    let packed = gzip(&padded(MIB));
    for request in [
        post(&padded(MIB)),
        raw("Transfer-Encoding: chunked\r\n", &chunked(&padded(MIB), 10_000)),
        raw(&gzip_headers(packed.len()), &packed),
    ] {
        client.send(&request).unwrap();
        assert_accepted(&client.read_response().unwrap(), 10);
    }
    // The answer to bytes that begin no list comes at once, and the connection is closed.
    let lines = format!("{EVENT}\n").repeat(MIB / EVENT.len() + 1).into_bytes();
    let announced = raw(&format!("Content-Length: {}\r\n", MIB + 1), b"text");
    refused_and_closed(&relay, &announced, 413, "too_large");
    refused(&relay, &post(&lines), 413, "too_large");
    let chunks = chunked(&lines, 10_000);
    refused(&relay, &raw("Transfer-Encoding: chunked\r\n", &chunks), 413, "too_large");
    // The compressed body is small enough to be read, and is too large after decompression.
    let packed = gzip(&lines);
    refused_and_kept(&relay, &raw(&gzip_headers(packed.len()), &packed), 413, "too_large");
    let bomb = gzip(&vec![b'x'; 64 * MIB]);
    assert!(bomb.len() < MIB);
    let (_, message) = refused(&relay, &raw(&gzip_headers(bomb.len()), &bomb), 413, "too_large");
    assert!(message.contains("1048576"), "{message}");
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 30);
}

#[test]
fn a_single_event_that_fits_max_body_but_not_the_queue_is_no_429_for_ever() {
    let (relay, _sink) = start("", "[queue]\nmax_bytes = \"1MiB\"\n");
    let filler = "x".repeat(MIB - 256 - EVENT.len() - r#","x":"""#.len());
    let event = EVENT.replace('}', &format!(r#","x":"{filler}"}}"#));
    assert_eq!(event.len(), MIB - 256, "the effective max_body");
    let response = relay.post(event.as_bytes());
    assert!(response.status == 200 || response.status == 413, "{}", response.text());
    let response = relay.post(&event.as_bytes()[1..]);
    assert_refusal(&response, 400);
    let shorter = event.replacen('x', "", 1);
    assert_accepted(&relay.post(shorter.as_bytes()), 1);
    relay.finish(Backlog::Empty);
}

#[test]
fn the_sender_of_a_body_that_is_too_large_finds_the_answer_and_no_reset() {
    let (relay, _sink) = start("", SMALL);
    for extra in [100_000, 900_000] {
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&raw("Content-Length: 50000000\r\n", b"text")).unwrap();
        wait_until("the answer", PATIENCE, || {
            relay.metrics().value("requests_rejected_total", &[("reason", "too_large")]) > 0.0
        });
        for _ in 0..extra / 10_000 {
            client.send(&[b' '; 10_000]).unwrap();
        }
        assert_refusal(&client.read_response().unwrap(), 413);
        assert!(client.is_closed_by_server());
    }
    // The relay does not read for ever from a sender that continues to write.
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&raw("Content-Length: 5000000000\r\n", b"text")).unwrap();
    let mut sent = 0;
    while client.send(&[b' '; 10_000]).is_ok() {
        sent += 10_000;
        assert!(sent < 64 * MIB, "64 MiB of a refused body were taken");
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn a_sender_that_expects_100_continue_is_asked_or_refused_at_once() {
    let (relay, sink) = start("path_prefix = \"/audit\"", SMALL);
    let body = list(EVENT);
    let expecting = |target: &str, length: usize, headers: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{headers}Content-Length: {length}\r\n\r\n")
            .into_bytes()
    };
    let mut client = Client::connect(relay.address()).unwrap();
    for _ in 0..2 {
        client.send(&expecting("/audit", body.len(), "")).unwrap();
        assert_eq!(client.read_response().unwrap().status, 100);
        client.send(&body).unwrap();
        assert_accepted(&client.read_response().unwrap(), 1);
    }
    // A sender that does not wait for 100 Continue is served too.
    client.send(&[expecting("/audit", body.len(), ""), body.clone()].concat()).unwrap();
    let first = client.read_response().unwrap();
    let last = if first.status == 100 { client.read_response().unwrap() } else { first };
    assert_accepted(&last, 1);

    let type_ = "Content-Type: image/png\r\n";
    for (target, length, headers, code, reason) in [
        ("/other", body.len(), "", 404, "not_found"),
        ("/audit", body.len(), type_, 415, "media_type"),
    ] {
        refused_and_closed(&relay, &expecting(target, length, headers), code, reason);
        // A sender that sends the body without waiting gets the answer too.
        let request = [expecting(target, length, headers), body.clone()].concat();
        refused_and_closed(&relay, &request, code, reason);
    }
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 3);
}

#[test]
fn a_request_without_the_bearer_token_is_401() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "secret-token\n").unwrap();
    let (relay, sink) =
        start(&format!("bearer_token_file = \"{}\"\npath_prefix = \"/audit\"", text(&file)), "");
    let body = generated_batch(3, 400, 2000);
    let request = |authorization: &str| {
        raw(&format!("{authorization}Content-Length: {}\r\n", body.len()), &body)
    };
    for wrong in [
        "",
        "Authorization:\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Bearer secret-toke\r\n",
        "Authorization: Bearer secret-token2\r\n",
        "Authorization: Bearer SECRET-TOKEN\r\n",
        "Authorization: Basic secret-token\r\n",
        "Authorization: secret-token\r\n",
        "Authorization: Bearer wrong\r\nAuthorization: Bearer secret-token\r\n",
    ] {
        let message = refused_and_kept_with(
            &relay,
            &request(wrong),
            &request("Authorization: Bearer secret-token\r\n"),
        );
        assert!(!message.contains("secret"), "{message}");
    }
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&request("authorization: bEARER secret-token\r\n")).unwrap();
    assert_accepted(&client.read_response().unwrap(), 400);
    // If the body has not been sent yet, the answer comes at once.
    let expecting = raw("Expect: 100-continue\r\nContent-Length: 1000\r\n", b"");
    refused_and_closed(&relay, &expecting, 401, "unauthorized");
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 11 * 400);
}

#[test]
fn blanks_around_the_token_in_its_file_or_in_the_header_are_no_part_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    for content in ["secret-token ", " \tsecret-token\t \r\n\n"] {
        std::fs::write(&file, content).unwrap();
        let (relay, _sink) = start(&format!("bearer_token_file = \"{}\"", text(&file)), "");
        let mut client = Client::connect(relay.address()).unwrap();
        for header in ["Bearer secret-token", "Bearer  secret-token ", "Bearer \tsecret-token\t"] {
            let headers = [("Authorization", header)];
            let answer = client.request("POST", "/", &headers, NO_EVENTS.as_bytes()).unwrap();
            assert_eq!(answer.status, 200, "{content:?} {header:?}: {}", answer.text());
        }
        for header in ["Bearer secret-token x", "Bearer secret token", "Bearer"] {
            let headers = [("Authorization", header)];
            let answer = client.request("POST", "/", &headers, NO_EVENTS.as_bytes()).unwrap();
            assert_eq!(answer.status, 401, "{content:?} {header:?}: {}", answer.text());
        }
        relay.finish(Backlog::Empty);
    }
}

/// Checks for a 401, and that the same connection then accepts the good request. Returns the
/// message.
fn refused_and_kept_with(relay: &Relay, bytes: &[u8], good: &[u8]) -> String {
    let (mut client, message) = refused(relay, bytes, 401, "unauthorized");
    client.send(good).unwrap();
    assert_accepted(&client.read_response().unwrap(), 400);
    message
}

#[test]
fn a_full_queue_is_429_after_the_body_and_stores_nothing() {
    let tables = "[queue]\nmax_bytes = \"1MiB\"\n[limits]\nmax_body = \"1MiB\"\n";
    let (relay, mut sink) = start("", tables);
    sink.close();
    let first = generated_batch(1, 100, 6000);
    assert_accepted(&relay.post(&first), 100);
    let second = generated_batch(2, 100, 6000);
    let message = refused_and_kept(&relay, &post(&second), 429, "queue_full");
    assert!(message.contains("queue"), "{message}");
    refused_and_kept(
        &relay,
        &raw("Transfer-Encoding: chunked\r\n", &chunked(&second, 10_000)),
        429,
        "queue_full",
    );
    assert_eq!(relay.metrics().value("event_total", &[]), 100.0);
    sink.reopen();
    relay.wait_until_delivered(PATIENCE);
    assert_accepted(&relay.post(&second), 100);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert!(sink.lines().ends_with(&events_of(&second)));
}

#[test]
fn a_batch_that_no_consumer_takes_in_time_is_503_and_taken_out_again() {
    let tables = "[queue]\nacknowledge = \"delivered\"\ndelivered_timeout = \"2s\"\n";
    let (relay, mut sink) = start("", tables);
    sink.close();
    let body = generated_batch(1, 10, 1000);
    refused_and_closed(&relay, &post(&body), 503, "delivery_timeout");
    let metrics = relay.metrics();
    assert_eq!((metrics.value("event_total", &[]), metrics.value("queue_bytes", &[])), (0.0, 0.0));
    assert_eq!(metrics.value("in_flight_bytes", &[]), 0.0);
    sink.reopen();
    let retried = wait_for_accepted(&relay, &body);
    assert_accepted(&retried, 10);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert!(sink.lines() == events_of(&body), "once, not once for each try");
}

/// Sends the body until it is accepted, as kube-apiserver does, and returns that answer.
fn wait_for_accepted(relay: &Relay, body: &[u8]) -> http::Response {
    wait_for("a 200", PATIENCE, || {
        let response = relay.post(body);
        (response.status == 200).then_some(response)
    })
}

#[test]
fn a_body_under_way_at_the_end_is_503_at_half_of_the_drain() {
    let (mut relay, sink) = start("", "[shutdown]\ndrain_timeout = \"6s\"\n");
    let body = list(EVENT);
    let mut finishing = Client::connect(relay.address()).unwrap();
    let mut hanging = Client::connect(relay.address()).unwrap();
    for client in [&mut finishing, &mut hanging] {
        client.send(&post(&body)[..post(&body).len() - 10]).unwrap();
    }
    relay.wait_for_metrics("two connections", PATIENCE, |metrics| {
        (metrics.sum("connections") == 2.0
            && metrics.value("in_flight_bytes", &[]) > 2.0 * (body.len() - 11) as f64)
            .then_some(())
    });
    let before = Counted::of(&relay);
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    finishing.send(&body[body.len() - 10..]).unwrap();
    let response = finishing.read_response().unwrap();
    assert_accepted(&response, 1);
    assert_eq!(response.header("connection"), Some("close"));
    assert!(finishing.is_closed_by_server());
    wait_until("the listener's end", PATIENCE, || Client::connect(relay.address()).is_err());
    let response = hanging.read_response().unwrap();
    assert_refusal(&response, 503);
    assert_eq!(response.header("connection"), Some("close"));
    // The admin routes work until the process ends, so this scrape may fail.
    if let Ok(scrape) = http::get(relay.admin(), "/metrics") {
        let metrics = Metrics::parse(&scrape.text());
        let expected = before.and("200", None).and("503", Some("shutting_down"));
        assert_eq!(Counted::in_metrics(&metrics), expected);
        crate::support::metrics::assert_conservation(&metrics, &["out"]);
    }
    assert!(hanging.is_closed_by_server());
    assert_eq!(relay.wait().code(), Some(0));
    sink.wait_for_count(1, PATIENCE);
    assert_eq!(sink.lines(), [EVENT.as_bytes()]);
}

#[test]
fn slow_heads_and_slow_bodies_are_408() {
    let tables = "[limits]\nheader_timeout = \"300ms\"\nbody_timeout = \"300ms\"\n";
    let (relay, _sink) = start("path_prefix = \"/audit\"", tables);
    for begun in [&b"POST /audit HTT"[..], b"POST /audit HTTP/1.1\r\nHost: a\r\nContent-Le", b"PRI"]
    {
        assert!(head_refused(&relay, begun, 408, "timeout").is_closed_by_server());
    }
    refused_and_closed(&relay, &raw("Content-Length: 100\r\n", b""), 408, "timeout");
    refused_and_closed(&relay, &raw("Content-Length: 100\r\n", b"{\"kind\":"), 408, "timeout");
    refused_and_closed(&relay, &raw("Transfer-Encoding: chunked\r\n", b"10\r\n{"), 408, "timeout");
    // The timeout also applies to a body that is discarded.
    let lost = b"POST /other HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
    refused_and_closed(&relay, lost, 408, "timeout");
    assert_eq!(relay.metrics().value("in_flight_bytes", &[]), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn json_lines_and_single_events_pass_as_they_are() {
    let (relay, sink) = start("", "");
    let with_kind =
        r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"b","stage":"Panic"}"#;
    let mut expected: Vec<Vec<u8>> = Vec::new();
    for (body, events) in [
        (EVENT.to_owned(), vec![EVENT.to_owned()]),
        (format!("  {with_kind}\n"), vec![with_kind.to_owned()]),
        (format!("{EVENT}\n{with_kind}"), vec![EVENT.to_owned(), with_kind.to_owned()]),
        (format!("\n{EVENT}\r\n\r\n{with_kind}\r\n"), vec![EVENT.to_owned(), with_kind.to_owned()]),
        (
            "{\n  \"auditID\": \"c\",\r\n  \"stage\": \"Panic\"\n}\n".to_owned(),
            vec!["{   \"auditID\": \"c\",    \"stage\": \"Panic\" }".to_owned()],
        ),
    ] {
        for media_type in [JSON, "application/x-ndjson", "text/plain"] {
            let response = http::post(relay.address(), "/", media_type, body.as_bytes()).unwrap();
            assert_accepted(&response, events.len() as u64);
            expected.extend(events.iter().map(|event| event.clone().into_bytes()));
        }
    }
    let log = audit_log();
    let response = http::post(relay.address(), "/", "text/plain", &log).unwrap();
    assert_accepted(&response, 495);
    expected.extend(
        log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec),
    );
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert!(sink.lines() == expected);
}

#[test]
fn the_whole_corpus_arrives_byte_for_byte_in_order() {
    let (relay, sink) = start("", "");
    let bodies = corpus();
    let mut client = Client::connect(relay.address()).unwrap();
    for body in &bodies {
        let events = events_of(&body.bytes).len() as u64;
        let response = client.post("/audit?timeout=30s", JSON, &body.bytes).unwrap();
        assert_accepted(&response, events);
    }
    for body in &bodies {
        let packed = gzip(&body.bytes);
        let headers = [("Content-Type", JSON), ("Content-Encoding", "gzip")];
        let response = client.request("POST", "/", &headers, &packed).unwrap();
        assert_accepted(&response, events_of(&body.bytes).len() as u64);
    }
    let events: Vec<_> = bodies.iter().flat_map(|body| events_of(&body.bytes)).collect();
    let levels = ["None", "Metadata", "Request", "RequestResponse", "other"];
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 2.0 * events.len() as f64);
    assert_eq!(metrics.sum("level_total"), 2.0 * events.len() as f64);
    assert!(levels.iter().all(|level| metrics.get("level_total", &[("level", level)]).is_some()));
    let sent: usize = bodies.iter().map(|body| body.bytes.len() + gzip(&body.bytes).len()).sum();
    assert_eq!(metrics.sum("received_bytes_total"), sent as f64);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert!(sink.lines() == [events.clone(), events].concat());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (relay, sink) = start("", "");
    let bodies: Vec<_> = (0..20).map(|seed| generated_batch(seed, 3, 600)).collect();
    let mut stream = Vec::new();
    for body in &bodies {
        stream.extend_from_slice(&post(body));
        stream.extend_from_slice(&post(b"{"));
        stream.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&stream).unwrap();
    for _ in &bodies {
        assert_accepted(&client.read_response().unwrap(), 3);
        assert_refusal(&client.read_response().unwrap(), 400);
        assert_refusal(&client.read_response().unwrap(), 405);
    }
    assert_kept(&mut client);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert!(sink.lines() == bodies.iter().flat_map(|body| events_of(body)).collect::<Vec<_>>());
}

#[test]
fn what_is_no_http_is_400_and_a_head_beyond_its_bounds_431() {
    let (relay, _sink) = start("", "");
    for garbage in [
        &b"hello\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"POST /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHo st: a\r\n\r\n",
        b"{\"kind\":\"EventList\"}\r\n\r\n",
    ] {
        assert!(head_refused(&relay, garbage, 400, "invalid").is_closed_by_server());
    }
    let long = format!("X: {}\r\n", "x".repeat(100_000));
    assert!(head_refused(&relay, &raw(&long, b""), 431, "invalid").is_closed_by_server());
    let many = "X: x\r\n".repeat(200);
    assert!(head_refused(&relay, &raw(&many, b""), 431, "invalid").is_closed_by_server());
    let endless = vec![b'x'; 300_000];
    head_refused(&relay, &endless, 431, "invalid");
    let fits = format!("X: {}\r\nContent-Length: {}\r\n", "x".repeat(60_000), NO_EVENTS.len());
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&raw(&fits, NO_EVENTS.as_bytes())).unwrap();
    assert_accepted(&client.read_response().unwrap(), 0);
    relay.finish(Backlog::Empty);
}

/// Runs curl. Returns the status, the HTTP version and the number of new connections for each
/// transfer, and the whole output.
fn curl(arguments: &[&str]) -> (Vec<String>, String) {
    let output = crate::support::peers::curl(arguments, b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {out}");
    let told = out.lines().filter_map(|line| line.strip_prefix("== ")).map(str::to_owned).collect();
    (told, out)
}

const TOLD: &str = "\n== %{http_code} %{http_version} %{num_connects}\n";

#[test]
fn http_2_requests_share_a_connection_and_a_refusal_harms_no_other() {
    let (relay, sink) = start("", SMALL);
    let mut client = H2::connect(relay.address()).unwrap();
    let event = list(EVENT);
    // Stream 1 has sent a part of its body, and waits.
    client.post_head(1, Some(event.len())).unwrap();
    client.frame(h2::DATA, 0, 1, &event[..20]).unwrap();
    // Six bodies are refused at once, because they are too large and not lists. Together they are
    // larger than a connection's window, so the relay must give their share of the window back.
    for stream in (3..27).step_by(4) {
        client.post_head(stream, Some(50_000_000)).unwrap();
        client.frame(h2::DATA, 0, stream, b"text").unwrap();
        let refusal = client.wait_for(h2::HEADERS);
        assert_eq!((refusal.stream, refusal.is_200()), (stream, false));
        let reset = client.wait_for(h2::RST_STREAM);
        assert_eq!((reset.stream, reset.code()), (stream, 0), "NO_ERROR");
        // The client sends as many bytes as the window of a stream permits.
        for _ in 0..63 {
            client.frame(h2::DATA, 0, stream, &[b' '; 16 * 1024]).unwrap();
        }
        client.post(stream + 2, &event).unwrap();
        let answer = client.wait_for(h2::HEADERS);
        assert_eq!((answer.stream, answer.is_200()), (stream + 2, true));
    }
    client.frame(h2::DATA, h2::END_STREAM, 1, &event[20..]).unwrap();
    let answer = client.wait_for(h2::HEADERS);
    assert_eq!((answer.stream, answer.is_200()), (1, true));
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 7);
}

#[test]
fn http_2_is_known_by_its_preface_however_it_is_cut() {
    let (relay, _sink) = start("", "");
    for cut in [1, 2, 3, 10, h2::PREFACE.len() - 1] {
        let mut client = H2::dial(relay.address()).unwrap();
        client.send(&h2::PREFACE[..cut]).unwrap();
        // The relay has read this beginning once the gauge counts the connection and a later
        // request has been answered.
        wait_until("the connection", PATIENCE, || relay.metrics().sum("connections") >= 1.0);
        assert_accepted(&relay.post(NO_EVENTS.as_bytes()), 0);
        client.send(&h2::PREFACE[cut..]).unwrap();
        client.settings().unwrap();
        client.post(1, NO_EVENTS.as_bytes()).unwrap();
        assert!(client.wait_for(h2::HEADERS).is_200(), "cut after {cut}");
    }
    relay.finish(Backlog::Empty);
}

/// These tests need curl.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn http_2_by_curl_with_prior_knowledge() {
        let (relay, sink) = start("path_prefix = \"/audit\"", SMALL);
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let file = directory.path().join(name);
            std::fs::write(&file, bytes).unwrap();
            format!("@{}", text(&file))
        };
        let batch = generated_batch(5, 400, 2000);
        let batch_file = file("batch", &batch);
        // curl 7.88 treats RST_STREAM(NO_ERROR) as a failure, so no body here is refused at once.
        // The first body is too large only after decompression. The second one is read, and refused
        // for its content.
        let bomb = file("bomb", &gzip(&vec![b'x'; 20 * MIB]));
        let invalid = file("invalid", &padded(MIB).split_off(1));
        let url = |path: &str| format!("http://{}{path}", relay.address());
        let (good, other) = (url("/audit"), url("/other"));
        let arguments_for = |url: &str, body: &str, encoding: &str| -> Vec<String> {
            let fixed = ["-w", TOLD, "-H", "Content-Type: application/json"];
            let own = ["-H", encoding, "--data-binary", body, url];
            fixed.iter().chain(&own).map(|&argument| argument.to_owned()).collect()
        };
        // All transfers use one process and one connection. A refused body must not end the
        // connection.
        let mut arguments = vec!["--http2-prior-knowledge".to_owned()];
        for (url, body, encoding) in [
            (&good, &batch_file, "X: y"),
            (&good, &bomb, "Content-Encoding: gzip"),
            (&good, &batch_file, "X: y"),
            (&other, &invalid, "X: y"),
            (&good, &invalid, "X: y"),
            (&good, &batch_file, "X: y"),
        ] {
            if arguments.len() > 1 {
                // With prior knowledge a second time, curl 7.88 fails on an existing connection.
                arguments.extend(["--next", "--silent", "--http2"].map(str::to_owned));
            }
            arguments.extend(arguments_for(url, body, encoding));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (told, bodies) = curl(&arguments);
        assert_eq!(
            told,
            ["200 2 1", "413 2 0", "200 2 0", "404 2 0", "400 2 0", "200 2 0"],
            "{bodies}"
        );
        assert!(
            bodies.contains("RequestEntityTooLarge") && bodies.contains("{\"accepted\":400}"),
            "{bodies}"
        );
        relay.finish(Backlog::Empty);
        sink.wait_until_left();
        let events = events_of(&batch);
        assert!(sink.lines() == [events.clone(), events.clone(), events].concat());
    }
}
