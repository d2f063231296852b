//! The `proxy` key of http outputs: a real proxy, with and without credentials, and proxies that
//! misbehave.

use std::io::{Read as _, Write as _};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::support::ibm::{Credential, Ibm, Script, write_secret};
use crate::support::peers::Tinyproxy;
use crate::support::prelude::*;
use crate::support::server::Connection;
use crate::support::stream::Stream;

const PASSWORD: &str = "pa:ss%@wörd";
const CODED: &str = "pa%3Ass%25%40w%C3%B6rd";

#[test]
#[ignore = "needs peers or root: ./test"]
fn plain_and_tls_requests_go_through_a_proxy() {
    let files = Certificates::new();
    let tls = Some(files.server_config(&files.server, true));
    let secure = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let plain = HttpSink::accepting();
    let proxy = Tinyproxy::start(None);
    let urls = [
        format!("http://{}/a?b=c", plain.address()),
        format!("https://localhost:{}/d", secure.address().port()),
    ];
    let more = format!(
        "strategy = \"round_robin\"\nconcurrency = 1\nproxy = \"http://{}\"\n\
         tls = {{ ca = {:?}, certificate = {:?}, private_key = {:?} }}\n",
        proxy.address(),
        files.ca,
        files.client.certificate,
        files.client.key
    );
    let relay = Relay::start(&to_http(&urls, &more));
    let mut events = Vec::new();
    for seed in 0..6 {
        let batch = generated_batch(seed, 20, 900);
        events.extend(events_of(&batch));
        assert_eq!(relay.post(&batch).status, 200);
        relay.wait_until_delivered(PATIENCE);
    }
    assert_eq!((plain.count(), secure.count()), (3, 3));
    assert_eq!(plain.requests()[0].target, "/a?b=c");
    assert_eq!(plain.requests()[0].header("proxy-authorization"), None);
    assert_eq!(proxy.connects(), 2, "connections are kept");
    let received = [received_events(&plain), received_events(&secure)].concat();
    assert_same_set(&received, &events);
    let check = run_command(
        &["check", "--connect", "--config", text(&relay.config_file())],
        relay.config_file().parent().unwrap(),
    );
    let said = String::from_utf8(check.stderr).unwrap();
    assert!(check.status.success() && said.matches(": ok").count() == 2, "{said}");
    // An answer on the plain connection shows that the port does not expect TLS.
    assert_eq!(proxy.connects(), 4);
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn iam_and_ibm_cloud_logs_are_reached_through_a_proxy() {
    let ibm = Ibm::start(Script::default());
    let directory = tempfile::tempdir().unwrap();
    let [key, password] = ["api-key", "password"].map(|name| directory.path().join(name));
    write_secret(&key, &Credential::key("1"));
    std::fs::write(&password, "s3cr3tword\n").unwrap();
    let proxy = Tinyproxy::start(Some(("somebody", "s3cr3tword")));
    let keys = format!(
        "api_key_file = {key:?}\nproxy = \"http://somebody:${{file:{}}}@{}\"",
        password.display(),
        proxy.address()
    );
    let relay = ibm.relay(&format!("{BASE}{}", ibm.output("logs", &keys))).start();
    let sent = post_batch(&relay, 1, 20, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&ibm.memory().stored, &sent);
    assert_eq!(proxy.connects(), 2, "one connection to each service");
    ibm.assert_hides_secrets(&relay);
    let (code, said) = ibm.run(&["check", "--connect"], &relay.config_file());
    assert!(code == Some(0) && said.matches(": ok").count() == 2, "{said}");
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn credentials_are_sent_to_the_proxy_alone_and_shown_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "wr0ngsecret\n").unwrap();
    let sink = HttpSink::accepting();
    let proxy = Tinyproxy::start(Some(("somebody", "s3cr3tword")));
    let at = proxy.address();
    let url = format!("proxy = \"http://somebody:${{file:{}}}@{at}\"\n", file.display());
    let relay = Relay::start(&to_sink(sink.address(), &url));
    let sent = post_batch(&relay, 1, 20, 900);
    let status = || http::get(relay.admin(), "/status").unwrap().text();
    let refused = format!(
        "http://{}: the proxy http://{at}: answered 401 Unauthorized: it rejects the credentials \
         in its URL",
        sink.address()
    );
    wait_until("the proxy's refusal", PATIENCE, || status().contains(&refused));
    assert_eq!(sink.count(), 0);
    std::fs::write(&file, "s3cr3tword\n").unwrap();
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&received_events(&sink), &sent);
    for request in sink.requests() {
        assert_eq!(request.header("proxy-authorization"), None, "that is the proxy's");
    }
    let metrics = relay.metrics().text;
    for shown in [status(), relay.log_text(), metrics] {
        assert!(!shown.contains("wr0ngsecret") && !shown.contains("s3cr3tword"), "{shown}");
        assert!(!shown.contains("somebody"), "{shown}");
    }
    relay.finish(Backlog::Empty);
}

/// Method: tinyproxy, between the relay and its consumer, is killed and started again during every
/// other batch. Every event must arrive, and may arrive more than once.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_proxy_that_is_stopped_and_killed_loses_nothing() {
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(5)));
    let mut proxy = Tinyproxy::start(None);
    let more = format!(
        "concurrency = 1\nbatch = {{ max_events = 40 }}\nproxy = \"http://{}\"\n",
        proxy.address()
    );
    let relay = Relay::start(&to_sink(sink.address(), &more));
    let mut events = Vec::new();
    for seed in 0..6 {
        let batch = generated_batch(seed, 200, 900);
        events.extend(events_of(&batch));
        let requests = sink.count();
        assert_eq!(relay.post(&batch).status, 200);
        sink.wait_for_count(requests + 1, PATIENCE);
        if seed % 2 == 0 {
            proxy.process.kill();
            proxy.process.start();
        }
    }
    relay.wait_until_delivered(PATIENCE);
    assert_none_missing(&received_events(&sink), &events);
    relay.finish(Backlog::Empty);
}

/// Reads the head of a CONNECT request.
fn asked(stream: &mut Stream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or_default() == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A proxy that sends this answer to each request, and then keeps the connection open and silent.
fn answering(answer: &'static [u8]) -> Server {
    Server::start(Options::default(), move |mut stream: Stream, connection: &Connection| {
        let request = asked(&mut stream);
        if let Some(credentials) = request.split("\r\nProxy-Authorization: ").nth(1) {
            let pair = BASE64_STANDARD.encode(format!("user:{PASSWORD}"));
            assert_eq!(credentials, format!("Basic {pair}\r\n\r\n"));
        }
        if request.is_empty() || stream.write_all(answer).and_then(|()| stream.flush()).is_err() {
            return;
        }
        while connection.rest(Duration::from_secs(1)) {}
    })
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_proxy_that_misbehaves_is_a_failure_with_a_reason_and_nothing_is_lost() {
    let endless = |line: &[u8]| -> &'static [u8] {
        let head = [b"HTTP/1.1 200 OK\r\n", line.repeat(100_000 / line.len()).as_slice()].concat();
        Box::leak(head.into_boxed_slice())
    };
    // The second answer looks like a consumer's answer to a request that was never sent. It must
    // not count.
    let early = b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let cases: [(&'static [u8], &str, &str); 9] = [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", "protocol", "its response is not HTTP"),
        (b"HTTP/1.1 403 Filtered\r\n\r\n", "connect", "answered 403 Forbidden"),
        (b"HTTP/1.1 407 x\r\n\r\n", "connect", "it requires credentials"),
        (b"HTTP/1.1 407 x\r\n\r\n", "connect", "it rejects the credentials"),
        (b"HTTP/1.1 301 x\r\nlocation: http://x/\r\n\r\n", "connect", "answered 301"),
        (b"HTTP/1.1 200 OK\r\n", "timeout", "no response within the connect timeout"),
        (endless(b"x: y\r\n"), "protocol", "the head of its response is too long"),
        (endless(b"x"), "protocol", "the head of its response is too long"),
        (early, "closed", ""),
    ];
    for (answer, reason, said) in cases {
        let proxy = answering(answer);
        let more = format!(
            "proxy = \"http://user:{CODED}@{}\"\ntimeouts = {{ connect = \"500ms\", request = \"2s\" }}\n",
            proxy.address()
        );
        let nobody = HttpSink::accepting();
        let more = if said.contains("requires") {
            more.replace(&format!("user:{CODED}@"), "")
        } else {
            more
        };
        let relay = Relay::start(&to_sink(nobody.address(), &more));
        post_batch(&relay, 1, 5, 900);
        let labels = [("output", "consumer"), ("reason", reason)];
        relay.wait_for_metrics(reason, PATIENCE, |metrics| {
            (metrics.value("output_errors_total", &labels) >= 2.0).then_some(())
        });
        let metrics = relay.metrics();
        assert_eq!(metrics.sum("output_events_total"), 0.0, "{}", String::from_utf8_lossy(answer));
        let status = || http::get(relay.admin(), "/status").unwrap().text();
        // On a busy machine, a later attempt can end with its timeout.
        wait_until(said, PATIENCE, || status().contains(said));
        for shown in [status(), relay.log_text()] {
            assert!(!shown.contains(PASSWORD) && !shown.contains(CODED), "{shown}");
        }
        assert_eq!(nobody.count(), 0);
        drop(relay);
    }
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn what_a_proxy_sends_behind_its_answer_is_the_consumers() {
    // The proxy sends its answer in pieces. Everything after its answer comes from the consumer,
    // which answers each request with 200.
    let proxy = Server::start(Options::default(), |mut stream: Stream, _: &Connection| {
        let request = asked(&mut stream);
        assert!(request.starts_with("CONNECT consumer.example:8080 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nHost: consumer.example:8080\r\n"), "{request}");
        for piece in [&b"HTTP/1."[..], b"1 200 OK\r\nx: y\r", b"\n\r", b"\n"] {
            stream.write_all(piece).unwrap();
            stream.flush().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        loop {
            let head = asked(&mut stream);
            let Some(length) = head.split("content-length: ").nth(1) else { return };
            let length: u64 = length.split("\r\n").next().unwrap().parse().unwrap();
            std::io::copy(&mut (&mut stream).take(length), &mut std::io::sink()).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            stream.flush().unwrap();
        }
    });
    // Only the proxy can resolve this name.
    let more = format!("proxy = \"http://{}\"\n", proxy.address());
    let relay = Relay::start(&to_http(&["http://consumer.example:8080/".to_owned()], &more));
    for seed in 0..3 {
        post_batch(&relay, seed, 5, 900);
        relay.wait_until_delivered(PATIENCE);
    }
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    assert_eq!(proxy.history().len(), 1);
    relay.finish(Backlog::Empty);
}
