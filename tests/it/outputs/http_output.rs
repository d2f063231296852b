//! `type = "http"`: the requests that a consumer receives, and answers of every kind. No answer may
//! lose or change an event.

use std::io::{BufReader, Read as _, Write as _};

use crate::support::corpus::audit_log;
use crate::support::http::Unannounced;
use crate::support::prelude::*;

const FORMATS: [&str; 4] = ["event_list", "ndjson", "json_array", "audit_log"];
/// If no output has another format, a list stays in the queue as it was received.
const LISTS: [&str; 2] = ["event_list", "json_array"];
const COMPRESSIONS: [&str; 3] = ["none", "gzip", "zstd"];

/// Returns the lines of the log whose level is not INFO.
fn complaints(relay: &Relay) -> Vec<Value> {
    let lines = relay.log_lines();
    let lines = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line["level"] != "INFO").collect()
}

/// Returns an event as kube-apiserver's audit.log has it.
fn as_logged(event: &[u8]) -> Vec<u8> {
    let head: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
    if event.starts_with(head) { event.to_vec() } else { [head, &event[1..]].concat() }
}

/// Posts the whole corpus to one relay that has an output for each format and compression.
fn every_format_carries_the_corpus(formats: &[&str], concurrency: usize) {
    let sink = HttpSink::accepting();
    let mut config = BASE.to_owned();
    for (format, compression) in
        formats.iter().flat_map(|format| COMPRESSIONS.map(|compression| (format, compression)))
    {
        let name = format!("{}-{compression}", format.replace('_', "-"));
        let url = format!("http://{}/{format}/{compression}", sink.address());
        config.push_str(&format!(
            "[[output]]\nname = \"{name}\"\ntype = \"http\"\nurls = [\"{url}\"]\n\
             format = \"{format}\"\ncompression = \"{compression}\"\nconcurrency = {concurrency}\n\
             batch = {{ max_bytes = \"200KiB\", max_events = 150 }}\n"
        ));
    }
    let relay = Relay::start(&config);
    let mut events = post_corpus(&relay);
    let log = audit_log();
    let answer = http::post(relay.address(), "/", "application/x-ndjson", &log).unwrap();
    assert_eq!(answer.status, 200);
    events.extend(log.split(|&byte| byte == b'\n').map(<[u8]>::to_vec));
    assert!(events.pop().unwrap().is_empty());

    relay.wait_until_delivered(PATIENCE * 2);
    let logged: Vec<_> = events.iter().map(|event| as_logged(event)).collect();
    let requests = sink.requests();
    for format in formats.iter().copied() {
        for compression in COMPRESSIONS {
            let target = format!("/{format}/{compression}");
            let of_this = requests.iter().filter(|request| request.target == target);
            let mut received = Vec::new();
            for request in of_this {
                assert_eq!(request.header("content-encoding").unwrap_or("none"), compression);
                let lines = matches!(format, "ndjson" | "audit_log");
                let kind = if lines { "application/x-ndjson" } else { "application/json" };
                assert_eq!(request.header("content-type"), Some(kind));
                let events = events_in(request);
                let bytes: usize = events.iter().map(|event| event.len() + 1).sum();
                assert!(events.len() == 1 || events.len() <= 150 && bytes <= 200 * 1024 + 150 * 48);
                received.extend(events);
            }
            let expected = if format == "audit_log" { &logged } else { &events };
            if concurrency == 1 {
                assert!(received == *expected, "{target}: other events, or another order");
            } else {
                assert_same_set(&received, expected);
            }
        }
    }
    assert_eq!(complaints(&relay), [] as [Value; 0]);
    relay.finish(Backlog::Empty);
}

#[test]
fn every_format_and_compression_carries_the_corpus_byte_for_byte_and_in_order() {
    every_format_carries_the_corpus(&FORMATS, 1);
    every_format_carries_the_corpus(&LISTS, 1);
}

#[test]
fn every_format_and_compression_carries_the_corpus_over_four_connections() {
    every_format_carries_the_corpus(&FORMATS, 4);
    every_format_carries_the_corpus(&LISTS, 4);
}

/// Method: the corpus goes through a relay whose outputs send lists, so that the queue keeps lists
/// as they were received, and through one that sends lines. Both have the same filter, which
/// changes nothing, changes some events or drops some. The consumers must get the same events in
/// the same order.
#[test]
fn a_filter_does_to_a_list_what_it_does_to_lines() {
    let filters = ["annotate = {}", "redact = []", "match = { verbs = ['get', 'create'] }"];
    let through = |formats: &[&str], filter: &str, is_on_disk: bool| {
        let sinks: Vec<_> = formats.iter().map(|_| HttpSink::accepting()).collect();
        let mut config = BASE.to_owned();
        for (format, sink) in formats.iter().zip(&sinks) {
            let keys = format!("concurrency = 1\nformat = \"{format}\"\nfilter.{filter}\n");
            config.push_str(&sink.output(&format.replace('_', "-"), &keys));
        }
        let directory = TempDir::new().unwrap();
        if is_on_disk {
            config.push_str(&format!("[queue]\ndirectory = {:?}\n", directory.path()));
        }
        let relay = Relay::start(&config);
        post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        sinks.iter().map(accepted_events).collect::<Vec<_>>()
    };
    for (filter, is_on_disk) in filters.iter().flat_map(|filter| [(filter, false), (filter, true)])
    {
        let lines = through(&["ndjson"], filter, is_on_disk).remove(0);
        assert!(lines.len() > 100, "{filter}: {} events", lines.len());
        for list in through(&LISTS, filter, is_on_disk) {
            assert!(list == lines, "{filter}, on disk: {is_on_disk}");
        }
    }
}

#[test]
fn a_list_is_sent_as_it_was_received_and_as_lines_to_an_output_that_joins() {
    let (list, lines) = (HttpSink::accepting(), HttpSink::accepting());
    // Several requests at once could arrive in another order.
    let before = format!("{BASE}{}", list.output("list", "concurrency = 1\n"));
    let relay = Relay::start(&before);
    let batch = |seed| generated_batch(seed, 400, 1000);
    assert_eq!(relay.post(&batch(1)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    // kube-apiserver ends a list with a line break, as the relay does.
    let sent = |sink: &HttpSink| sink.requests().last().map(|request| request.body.clone());
    assert!(sent(&list).unwrap().trim_ascii_end() == batch(1).trim_ascii_end());
    let more = lines.output("lines", "concurrency = 1\nformat = \"ndjson\"\n");
    relay.reload(&format!("{before}{more}"), "success");
    assert_eq!(relay.post(&batch(2)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    assert!(accepted_events(&lines) == events_of(&batch(2)), "other events, or another order");
    let both = [events_of(&batch(1)), events_of(&batch(2))].concat();
    assert!(accepted_events(&list) == both, "other events, or another order");
    relay.finish(Backlog::Empty);
}

/// Method: a proxy in front of the consumer answers with 200 and a sign-in page. A reload then sets
/// `accept_html`.
#[test]
fn a_web_page_is_no_acknowledgement_unless_the_config_says_so() {
    let page = || Answer::status(200).header("Content-Type", "Text/HTML; charset=utf-8");
    let sink = HttpSink::start(move |_| page().body("<html>sign in</html>"));
    let config = |more: &str| to_sink(sink.address(), more);
    let relay = Relay::start(&config(""));
    post_batch(&relay, 1, 40, 700);
    let line = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
    let words = "answered 200 OK: this looks like a sign-in page, not an acknowledgement";
    assert!(line.contains(words) && line.contains("accept_html"), "{line}");
    wait_for_errors(&relay, "protocol", 3.0);
    assert_eq!(of_output(&relay, "output_events_total"), 0.0);
    assert_eq!(of_output(&relay, "output_backlog_events"), 40.0);
    relay.reload(&config("accept_html = true\n"), "success");
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(of_output(&relay, "output_events_total"), 40.0);
    relay.finish(Backlog::Empty);
}

/// Method: the file has the credential in quotes, behind its scheme, or as the pair before its
/// encoding.
#[test]
fn a_credential_arrives_whatever_form_its_file_has() {
    let directory = TempDir::new().unwrap();
    for (keys, content, wanted) in [
        ("type = \"http\"\nbearer_token_file", "Authorization: Bearer abc", "Bearer abc"),
        ("type = \"splunk_hec\"\ntoken_file", "Splunk \"abc\"", "Splunk abc"),
        (ES, "id:key", "ApiKey aWQ6a2V5"),
        (ES, "\"aWQ6a2V5\"", "ApiKey aWQ6a2V5"),
        (ES, "ApiKey aWQ6a2V5", "ApiKey aWQ6a2V5"),
    ] {
        let file = directory.path().join("key");
        std::fs::write(&file, content).unwrap();
        let sink = HttpSink::accepting();
        let output = format!(
            "[[output]]\nname = \"consumer\"\n{keys} = {file:?}\nurls = [\"http://{}\"]\n",
            sink.address()
        );
        let relay = Relay::start(&format!("{BASE}{output}"));
        post_batch(&relay, 1, 1, 700);
        sink.wait_for_count(1, PATIENCE);
        assert_eq!(sink.requests()[0].header("authorization"), Some(wanted), "{content}");
    }
}

const ES: &str = "type = \"elasticsearch\"\nindex = \"a\"\napi_key_file";

/// Method: the answer has a folded header line and a space behind a name, which an HTTP client
/// takes (RFC 9112, 5.1 and 5.2).
#[test]
fn an_old_spelling_of_headers_acknowledges() {
    let old = "HTTP/1.1 200 OK\r\nX-Policy: a,\r\n\tb\r\nX-Name : c\r\nContent-Length: 2\r\n\r\nok";
    let sink = HttpSink::start(move |_| Answer::raw(old));
    let relay = Relay::start(&to_sink(sink.address(), ""));
    post_batch(&relay, 1, 30, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(sink.count(), 1);
    relay.finish(Backlog::Empty);
}

/// Method: consumers take each request, and answer in their own words. They may have stored the
/// events, so an event that arrives as often as the retries allow is there dozens of times.
#[test]
fn what_a_consumer_may_have_stored_arrives_only_a_few_times() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "t").unwrap();
    let elasticsearch = "type = \"elasticsearch\"\nindex = \"audit\"\n".to_owned();
    let answers = [
        (r#"{"took":3,"errors":false}"#, elasticsearch.clone()),
        (r#"{"took":3,"errors":false,"items":[]}"#, elasticsearch.clone()),
        (r#"{"num_ingested_docs":30}"#, elasticsearch),
        ("no protobuf", "type = \"otlp\"\n".to_owned()),
        (r#"{"ok":true}"#, format!("type = \"splunk_hec\"\ntoken_file = {:?}\n", token.path())),
    ];
    let started = answers.map(|(answer, keys)| {
        let json = Answer::status(200).header("Content-Type", "application/json");
        let sink = HttpSink::start(move |_| json.clone().body(answer));
        let url = format!("urls = [\"http://{}\"]\n", sink.address());
        let config = format!("{BASE}[[output]]\nname = \"consumer\"\n{keys}{url}{QUICK}");
        let relay = Relay::start(&config);
        let sent = post_batch(&relay, 1, 30, 700);
        (keys, sink, relay, sent)
    });
    for (keys, _, relay, _) in &started {
        let log = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
        assert!(log.contains("may have stored the events"), "{keys}: {log}");
    }
    std::thread::sleep(Duration::from_secs(2));
    for (keys, sink, _, sent) in &started {
        // All events twice, and then the first half. On a busy machine, the second half may have
        // left on another connection before the answer to the first one came.
        let copies = |event: &[u8]| {
            let event: Value = serde_json::from_slice(event).unwrap();
            let id = event["auditID"].as_str().unwrap();
            let bodies = sink.requests().into_iter().map(|it| it.decoded());
            bodies.filter(|body| memchr::memmem::find(body, id.as_bytes()).is_some()).count()
        };
        assert_eq!(copies(&sent[0]), 3, "{keys}");
        assert!((2..=3).contains(&copies(&sent[29])), "{keys}");
    }
}

/// Some frameworks declare an answer without a body as `text/html`.
#[test]
fn an_empty_answer_is_no_web_page() {
    let answers =
        [200, 204].map(|status| Answer::status(status).header("Content-Type", "text/html"));
    let sink = HttpSink::script(answers);
    let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
    for seed in 1..=2 {
        post_batch(&relay, seed, 10, 700);
        relay.wait_until_delivered(PATIENCE);
    }
    assert_eq!(of_output(&relay, "output_events_total"), 20.0);
    assert_eq!(sink.count(), 2);
    relay.finish(Backlog::Empty);
}

#[test]
fn headers_and_credentials_arrive_and_changed_files_are_taken_up() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, content).unwrap();
        file
    };
    let token = file("token", " first-token \t\r\n\n");
    let password = file("password", "pass:wörd\r\n");
    let tenant = file("tenant", "first-tenant");
    let sink = HttpSink::accepting();
    let more = format!(
        "headers = {{ X-Tenant = \"t/${{file:{}}}\", X-Env = \"${{env:WHERE}}\" }}\n\
         bearer_token_file = \"{}\"\n\
         [[output]]\nname = \"basic\"\ntype = \"http\"\nurls = [\"http://{}/basic?x=1\"]\n\
         basic_auth = {{ username = \"${{env:WHERE}}\", password_file = \"{}\" }}\n",
        text(&tenant),
        text(&token),
        sink.address(),
        text(&password),
    );
    let relay = Relay::with(&to_sink(sink.address(), &more)).variable("WHERE", "prod").start();
    let post = |number: u64| {
        let before = sink.count();
        post_batch(&relay, number, 1, 900);
        sink.wait_for_count(before + 2, PATIENCE);
        let requests = sink.requests().split_off(before);
        let of =
            |path: &str| requests.iter().find(|request| request.target == path).unwrap().clone();
        (of("/ingest"), of("/basic?x=1"))
    };
    let (bearer, basic) = post(1);
    assert_eq!(bearer.method, "POST");
    assert_eq!(bearer.header("authorization"), Some("Bearer first-token"));
    assert_eq!(bearer.header("x-tenant"), Some("t/first-tenant"));
    assert_eq!(bearer.header("x-env"), Some("prod"));
    assert_eq!(bearer.header("host"), Some(sink.address().to_string().as_str()));
    assert!(bearer.header("user-agent").unwrap().starts_with("kube-audit-forwarder/"));
    assert_eq!(bearer.header("content-length"), Some(bearer.body.len().to_string().as_str()));
    assert_eq!(bearer.header("transfer-encoding"), None);
    // The value comes from `printf 'prod:pass:wörd' | base64`.
    assert_eq!(basic.header("authorization"), Some("Basic cHJvZDpwYXNzOnfDtnJk"));
    assert_eq!(basic.header("x-tenant"), None);

    file("token", "second-token");
    file("password", "other");
    // A rename replaces the file, as when Kubernetes updates a mounted Secret.
    std::fs::rename(file("tenant-new", "second-tenant\n"), &tenant).unwrap();
    let changed = Instant::now();
    let mut number = 2;
    wait_until("the new secrets", PATIENCE, || {
        number += 1;
        let (bearer, basic) = post(number);
        bearer.header("authorization") == Some("Bearer second-token")
            && bearer.header("x-tenant") == Some("t/second-tenant")
            && basic.header("authorization") == Some("Basic cHJvZDpvdGhlcg==")
    });
    assert!(changed.elapsed() < Duration::from_secs(10), "3 s, and more for a loaded machine");
    // A deleted file, or content that is not valid in a header, changes nothing.
    std::fs::remove_file(&token).unwrap();
    file("password", "two\nlines\n\n");
    relay.wait_for_log(messages::NOT_RELOADED, PATIENCE);
    let (bearer, _) = post(1_000_000);
    assert_eq!(bearer.header("authorization"), Some("Bearer second-token"));
    relay.finish(Backlog::Empty);
}

#[test]
fn a_changed_url_is_used_at_once_also_where_a_connection_to_the_old_one_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("url");
    let (old, new) = (HttpSink::accepting(), HttpSink::accepting());
    std::fs::write(&file, format!("http://{}/old?token=1", old.address())).unwrap();
    let urls = [format!("${{file:{}}}", text(&file))];
    let relay = Relay::start(&to_http(&urls, "concurrency = 1\n"));
    post_batch(&relay, 1, 1, 900);
    relay.wait_until_delivered(PATIENCE);
    std::fs::write(&file, format!("http://{}/new?token=2", new.address())).unwrap();
    relay.wait_for_log("config reloaded", PATIENCE);
    post_batches(&relay, 2..6, 1, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(old.count(), 1, "the new token went to the old consumer");
    assert_eq!(accepted_events(&new).len(), 4);
    assert_eq!(new.requests()[0].target, "/new?token=2");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_connection_is_kept_and_used_again() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
    post_batches(&relay, 0..20, 5, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(sink.history().len(), 1);
    assert_eq!(accepted_events(&sink).len(), 100);

    // The idle connection is closed or reset. The relay replaces it, and counts no error.
    sink.close_connections();
    post_batch(&relay, 100, 5, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(sink.history().len(), 2);
    sink.reset_connections();
    post_batch(&relay, 101, 5, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(accepted_events(&sink).len(), 110);
    assert_eq!(errors_by_reason(&relay), BTreeMap::new());
    assert_eq!(complaints(&relay), [] as [Value; 0]);
    relay.finish(Backlog::Empty);
}

#[test]
fn no_more_connections_are_open_than_concurrency_says() {
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(30)));
    let more = "concurrency = 3\nbatch = { max_events = 10 }\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    post_batch(&relay, 0, 400, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(sink.history().len(), 3);
    assert_eq!(sink.count(), 40);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_kept_connection_that_the_peer_closes_as_we_write_is_replaced_without_a_complaint() {
    // The second request on a connection gets no answer, as if the server had closed the idle
    // connection before the request arrived.
    let seen = Mutex::new(BTreeSet::new());
    let sink = HttpSink::start(move |request| {
        let first = seen.lock().unwrap().insert(request.connection);
        match (first, request.connection % 2) {
            (true, _) => Answer::status(200),
            (false, 0) => Answer::hang_up(),
            (false, _) => Answer::reset(),
        }
    });
    let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
    let mut events = Vec::new();
    for seed in 0..8 {
        let body = generated_batch(seed, 3, 900);
        events.extend(events_of(&body));
        assert_eq!(relay.post(&body).status, 200);
        relay.wait_until_delivered(PATIENCE);
    }
    assert!(accepted_events(&sink) == events);
    assert_eq!(sink.history().len(), 8);
    assert_eq!(errors_by_reason(&relay), BTreeMap::new());
    assert_eq!(complaints(&relay), [] as [Value; 0]);
    relay.finish(Backlog::Empty);
}

/// A consumer that writes these answers in turn, each in pieces. Also returns the number of
/// requests.
fn in_pieces(answers: &'static [&'static [&'static [u8]]]) -> (Server, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let requests = Arc::clone(&count);
    let server = Server::start(Options::default(), move |stream, connection| {
        let mut reader = BufReader::new(stream);
        while let Ok(Some(head)) = http::read_head(&mut reader) {
            if http::read_body(&mut reader, &head, Unannounced::Empty).is_err() {
                return;
            }
            let number = requests.fetch_add(1, Ordering::SeqCst);
            for piece in answers[number % answers.len()] {
                let written =
                    reader.get_mut().write_all(piece).and_then(|()| reader.get_mut().flush());
                if written.is_err() || !connection.rest(Duration::from_millis(20)) {
                    return;
                }
                if *piece == b"" {
                    return;
                }
            }
        }
    });
    (server, count)
}

/// 2xx answers, each in pieces. An empty piece closes the connection.
const STRANGE_ANSWERS: [&[&[u8]]; 14] = [
    &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nok\r\n", b"0\r\n\r\n"],
    &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n"],
    &[b"H", b"TTP/1.1 20", b"0 OK\r\nContent-", b"Length: 5\r", b"\n\r\nhe", b"llo"],
    &[b"HTTP/1.1 204 No Content\r\n\r\n"],
    &[b"HTTP/1.1 202\r\nContent-Length: 0\r\n\r\n"],
    &[b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
    &[b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n"],
    &[b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b""],
    &[b"HTTP/1.1 200 OK\r\nconnection: Close\r\n\r\n", b"until", b" the end", b""],
    &[b"HTTP/1.0 200 OK\r\n\r\nold", b""],
    &[b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX-Empty:\r\nContent-Length: 0\r\n\r\n"],
    // The status is the acknowledgement. An error in the rest of the answer is not a failure.
    &[b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", b""],
    &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b""],
    &[b"HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\nmore than announced", b""],
];

#[test]
fn every_way_to_say_2xx_is_understood() {
    let (server, count) = in_pieces(&STRANGE_ANSWERS);
    let relay = Relay::start(&to_sink(server.address(), "concurrency = 1\n"));
    for seed in 0..u64::try_from(STRANGE_ANSWERS.len()).unwrap() {
        post_batch(&relay, seed, 2, 900);
        relay.wait_until_delivered(PATIENCE);
    }
    assert_eq!(count.load(Ordering::SeqCst), STRANGE_ANSWERS.len(), "some were sent twice");
    assert_eq!(errors_by_reason(&relay), BTreeMap::new());
    relay.finish(Backlog::Empty);
}

#[test]
fn an_answer_of_any_size_costs_a_connection_and_no_memory() {
    let huge = vec![b'x'; 40 * 1024 * 1024];
    let sink = HttpSink::start(move |_| Answer::status(200).body(huge.clone()));
    let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
    post_batches(&relay, 0..3, 2, 900);
    relay.wait_until_delivered(PATIENCE);
    assert!(relay.rss_bytes_max() < 40 * 1024 * 1024, "{}", relay.rss_bytes_max());
    assert_eq!(errors_by_reason(&relay), BTreeMap::new());
    relay.finish(Backlog::Empty);
}

#[test]
fn redirects_are_never_followed_and_lose_nothing() {
    let other = HttpSink::accepting();
    let location = format!("http://{}/elsewhere", other.address());
    let statuses = [301, 302, 303, 304, 307, 308, 300];
    let answers = statuses.map(|status| Answer::status(status).header("Location", &location));
    let sink = HttpSink::start(move |request| {
        answers.get(request.number).cloned().unwrap_or_else(|| Answer::status(200))
    });
    let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
    let sent = post_batch(&relay, 1, 10, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_none_missing(&accepted_events(&sink), &sent);
    assert_eq!(other.count(), 0);
    assert_eq!(errors_by_reason(&relay), BTreeMap::from([("protocol".to_owned(), 7.0)]));
    relay.finish(Backlog::Empty);
}

#[test]
fn statuses_of_the_connection_or_the_setting_are_retried_for_ever_and_loudly() {
    let statuses =
        [429, 500, 502, 503, 504, 401, 403, 404, 405, 408, 409, 411, 415, 431, 451, 499, 599];
    for &concurrency in &[1, 4] {
        let answers = statuses.iter().flat_map(|&status| vec![Answer::status(status); 4]);
        let answers: Vec<_> = answers.chain(vec![Answer::status(200); 500]).collect();
        let sink = HttpSink::start(move |request| answers[request.number].clone());
        let more = format!("concurrency = {concurrency}\nbatch = {{ max_events = 20 }}\n");
        let relay = Relay::start(&to_sink(sink.address(), &more));
        let sent = post_batch(&relay, 1, 100, 900);
        relay.wait_until_delivered(PATIENCE * 2);
        assert_none_missing(&accepted_events(&sink), &sent);
        let expected = [("status_429", 4.0), ("status_4xx", 11.0 * 4.0), ("status_5xx", 5.0 * 4.0)];
        let expected = expected.map(|(reason, count)| (reason.to_owned(), count));
        assert_eq!(errors_by_reason(&relay), BTreeMap::from(expected));
        let metrics = relay.metrics();
        // The requests become smaller, so more than 68 are sent again.
        assert!(metrics.value("output_retries_total", &[("output", "consumer")]) >= 68.0);
        assert_eq!(metrics.value("error_total", &[("plugin", "consumer")]), 0.0);
        assert_eq!(metrics.value("output_up", &[("output", "consumer")]), 1.0);
        let complaints = complaints(&relay);
        assert!((1..=4).contains(&complaints.len()), "{complaints:#?}");
        let is_down = |it: &&Value| it["fields"]["message"] == "output down, events are kept";
        assert_eq!(complaints.iter().filter(is_down).count(), 1, "{complaints:#?}");
        relay.wait_for_log("output up again", PATIENCE);
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn an_expired_token_is_told_once_a_minute_and_not_for_each_attempt() {
    let sink = HttpSink::start(|_| Answer::status(401).body("no"));
    let more = "retry = { initial_interval = \"2ms\", max_interval = \"5ms\" }\n";
    let config = to_sink(sink.address(), more).replacen(QUICK, "", 1);
    let relay = Relay::start(&format!("{config}[shutdown]\ndrain_timeout = \"200ms\"\n"));
    post_batch(&relay, 1, 100, 900);
    sink.wait_for_count(300, PATIENCE);
    // The first failure, and that the output is down.
    let complaints = complaints(&relay);
    let messages: Vec<_> = complaints.iter().map(|it| &it["fields"]["message"]).collect();
    let expected = ["a request failed: its events are sent again", "output down, events are kept"];
    assert_eq!(messages, expected, "{complaints:#?}");
    let said = complaints[1]["fields"]["error"].as_str().unwrap();
    assert!(said.contains("answered 401") && said.contains(&sink.address().to_string()), "{said}");
    let status = http::get(relay.admin(), "/status").unwrap().json();
    assert_eq!(status["outputs"][0]["up"], false);
    assert_eq!(status["outputs"][0]["last_error"], said);
    assert_eq!(status["outputs"][0]["backlog_events"], 100);
    let ready = http::get(relay.admin(), "/readyz?verbose").unwrap();
    assert_eq!(ready.status, 200, "a dead output is not unready");
    assert!(ready.text().contains(said), "{}", ready.text());
    relay.finish(Backlog::Stable);
}

#[test]
fn retry_after_in_seconds_is_heeded() {
    for status in [429, 503, 401] {
        let first = Answer::status(status).header("Retry-After", "1");
        let sink = HttpSink::script([first, Answer::status(200)]);
        let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
        post_batch(&relay, 1, 1, 900);
        relay.wait_until_delivered(PATIENCE);
        let requests = sink.requests();
        let waited = requests[1].began - requests[0].answered.unwrap().1;
        assert!(waited >= Duration::from_millis(990), "{status}: {waited:?}");
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn each_reason_of_failure_is_counted_under_its_name() {
    let hangs_up = HttpSink::start(|_| Answer::hang_up());
    let hangs = HttpSink::start(|_| Answer::never());
    let garbage = HttpSink::start(|_| Answer::raw("SSH-2.0-OpenSSH_9.2p1 Debian\r\n").closing());
    let huge_head = HttpSink::start(|_| {
        let head = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(2_000_000));
        Answer::raw(head).closing()
    });
    let plain = TcpSink::start();
    let nobody = free_port();
    // getaddrinfo refuses a label of more than 63 characters without asking a server.
    let no_name = format!("{}.invalid", "x".repeat(64));
    let outputs = [
        ("resolve", format!("http://{no_name}/")),
        ("connect", format!("http://127.0.0.1:{nobody}/")),
        ("tls", format!("https://{}/", plain.address())),
        ("timeout", format!("http://{}/", hangs.address())),
        ("closed", format!("http://{}/", hangs_up.address())),
        ("protocol", format!("http://{}/", garbage.address())),
        ("protocol-head", format!("http://{}/", huge_head.address())),
    ];
    let mut config = BASE.to_owned();
    for (name, url) in &outputs {
        // Only this output may time out. On a busy machine, the others can need more than 300 ms.
        let request = if *name == "timeout" { "300ms" } else { "60s" };
        config.push_str(&format!(
            "[[output]]\nname = \"{name}\"\ntype = \"http\"\nurls = [\"{url}\"]\n{QUICK}\
             timeouts = {{ request = \"{request}\", connect = \"2s\" }}\n"
        ));
    }
    config.push_str("[shutdown]\ndrain_timeout = \"200ms\"\n");
    let relay = Relay::start(&config);
    post_batch(&relay, 1, 10, 900);
    for (name, _) in &outputs {
        let reason = name.strip_suffix("-head").unwrap_or(name);
        relay.wait_for_metrics(&format!("three failures of {name}"), PATIENCE, |metrics| {
            let labels = [("output", *name), ("reason", reason)];
            (metrics.value("output_errors_total", &labels) >= 3.0).then_some(())
        });
    }
    // Each failure is counted under its own reason only.
    for (labels, value) in relay.metrics().all("output_errors_total") {
        let of = |key: &str| labels.iter().find(|(name, _)| name == key).unwrap().1.clone();
        let right = of("output").trim_end_matches("-head") == of("reason");
        assert!(right == (value > 0.0), "{labels:?}: {value}");
    }
    relay.finish(Backlog::Stable);
}

#[test]
fn an_answer_within_the_timeout_is_waited_for_however_close() {
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(1400)));
    let more = "concurrency = 1\ntimeouts = { request = \"3s\" }\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    let events = post_batches(&relay, 0..3, 400, 1600);
    relay.wait_until_delivered(PATIENCE);
    assert!(received_events(&sink) == events, "some were sent twice, or in another order");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_hung_consumer_is_left_after_the_timeout_and_not_later() {
    let first = AtomicUsize::new(0);
    let sink = HttpSink::start(move |_| match first.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::never(),
        _ => Answer::status(200),
    });
    let more = "concurrency = 1\ntimeouts = { request = \"3s\" }\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    let sent = post_batch(&relay, 1, 400, 1600);
    relay.wait_until_delivered(PATIENCE);
    assert!(accepted_events(&sink) == sent);
    let requests = sink.requests();
    let waited = requests[1].began - requests[0].read;
    assert!(waited >= Duration::from_millis(2900), "{waited:?}");
    assert!(waited < Duration::from_millis(5500), "{waited:?}");
    assert_eq!(errors_by_reason(&relay), BTreeMap::from([("timeout".to_owned(), 1.0)]));
    relay.finish(Backlog::Empty);
}

#[test]
fn a_consumer_that_hangs_in_the_middle_of_a_body_is_left_and_gets_it_again() {
    let sink =
        HttpSink::with(Options { receive_buffer: Some(16 * 1024), ..Options::default() }, |_| {
            Answer::status(200)
        });
    let more = "concurrency = 2\ntimeouts = { request = \"500ms\" }\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    sink.pause(true);
    let sent = post_batch(&relay, 1, 400, 20_000);
    relay.wait_for_metrics("timeouts", PATIENCE, |metrics| {
        (metrics.sum("output_errors_total") >= 3.0).then_some(())
    });
    sink.pause(false);
    relay.wait_until_delivered(PATIENCE);
    let mut accepted = accepted_events(&sink);
    accepted.sort();
    accepted.dedup();
    assert_same_set(&accepted, &sent.into_iter().collect::<Vec<_>>());
    assert_eq!(errors_by_reason(&relay).keys().collect::<Vec<_>>(), ["timeout"]);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_consumer_that_reads_slowly_but_reads_is_not_left() {
    // The consumer reads the body of 6 MB at 128 KiB per 200 ms, in about 10 s. The buffered bytes
    // alone take longer than the timeout of 1.5 s.
    let options = Options { receive_buffer: Some(64 * 1024), ..Options::default() };
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    let server = Server::start(options, move |stream, connection| {
        let mut reader = BufReader::with_capacity(4096, stream);
        while let Ok(Some(head)) = http::read_head(&mut reader) {
            count.fetch_add(1, Ordering::SeqCst);
            let mut left: usize = head.header("content-length").unwrap().parse().unwrap();
            let mut piece = vec![0; 128 * 1024];
            while left > 0 {
                let wanted = left.min(piece.len());
                if reader.read_exact(&mut piece[..wanted]).is_err() {
                    return;
                }
                left -= wanted;
                if !connection.rest(Duration::from_millis(200)) {
                    return;
                }
            }
            // The answer is slow too.
            for piece in [&b"HTTP/1.1 200 OK\r\n"[..], b"Content-Length: 0\r\n", b"\r\n"] {
                if reader.get_mut().write_all(piece).is_err()
                    || !connection.rest(Duration::from_millis(100))
                {
                    return;
                }
            }
        }
    });
    let more = "batch = { max_bytes = \"8MiB\" }\ntimeouts = { request = \"1500ms\" }\n";
    let relay = Relay::start(&to_sink(server.address(), more));
    post_batch(&relay, 1, 300, 20_000);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(requests.load(Ordering::SeqCst), 1, "it was sent again");
    assert_eq!(errors_by_reason(&relay), BTreeMap::new());
    relay.finish(Backlog::Empty);
}

#[test]
fn a_lone_event_does_not_wait_for_another() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), ""));
    let posted = Instant::now();
    post_batch(&relay, 1, 1, 900);
    sink.wait_for_count(1, PATIENCE);
    assert!(sink.requests()[0].read - posted < Duration::from_secs(2));
    relay.finish(Backlog::Empty);
}

#[test]
fn what_is_sent_is_counted_as_acknowledged_once_and_as_bytes_each_time() {
    let sink = HttpSink::script([Answer::status(500), Answer::status(200)]);
    let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
    let body = generated_batch(1, 40, 900);
    assert_eq!(relay.post(&body).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let metrics = relay.metrics();
    let of = |name: &str| metrics.value(name, &[("output", "consumer")]);
    assert_eq!(of("output_events_total"), 40.0);
    #[allow(clippy::cast_precision_loss, reason = "a few kilobytes")]
    let bytes = 2.0 * body.len() as f64;
    assert_eq!(of("output_bytes_total"), bytes);
    assert_eq!(of("output_retries_total"), 1.0);
    assert_eq!(metrics.get("output_delivery_seconds_count", &[("output", "consumer")]), Some(1.0));
    assert!(sink.accepted() == [body]);
    relay.finish(Backlog::Empty);
}
