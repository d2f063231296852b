//! `check --connect` says in the operator's words what is wrong with a consumer: the token, the
//! index, the address or TLS. It sends no event.

use std::io::{Read as _, Write as _};
use std::sync::atomic::AtomicUsize;

use crate::support::prelude::*;

/// The expected method, path and body of a test request.
type Asked = (&'static str, &'static str, &'static str);

/// The status, the media type (empty: none) and the body of an answer.
type Told = (u16, &'static str, &'static str);

/// A type of output, its expected test requests, and answers to them.
struct Case {
    kind: &'static str,
    /// The keys that the type needs besides `urls`.
    keys: &'static str,
    requests: &'static [Asked],
    /// The answers to the first requests, and the words that the command must then print. `None`:
    /// the command must report success.
    answers: &'static [(&'static [Told], Option<&'static str>)],
}

const NO_DATA: Told = (400, "application/json", r#"{"text":"No data","code":5}"#);

/// The answer of a Go server whose port expects TLS.
const WANTS_TLS: Told = (400, "", "Client sent an HTTP request to an HTTPS server.\n");

const MAKES_INDICES: Told =
    (200, "application/json", r#"{"defaults":{"action.auto_create_index":"true"}}"#);

const MAKES_NO_INDEX: Told =
    (200, "application/json", r#"{"persistent":{"action.auto_create_index":"-audit,+*"}}"#);

const SIGN_IN: Told = (200, "text/html; charset=utf-8", "<html>sign in</html>");

const IS_PAGE: Option<&str> = Some("this is a web page, not an acknowledgement");

const NOT_UNDERSTOOD: Option<&str> = Some("the server does not understand the request");

const CASES: &[Case] = &[
    Case {
        kind: "splunk_hec",
        keys: "token_file = \"DIR/token\"",
        requests: &[
            ("POST", "/base/services/collector/event", ""),
            ("POST", "/base/services/collector/ack", r#"{"acks":[0]}"#),
        ],
        answers: &[
            (&[NO_DATA, (200, "application/json", r#"{"acks":{"0":false}}"#)], None),
            (
                &[NO_DATA, (400, "application/json", r#"{"text":"ACK is disabled","code":14}"#)],
                Some("turn it on in Splunk"),
            ),
            (&[NO_DATA, SIGN_IN], IS_PAGE),
            (
                &[NO_DATA, (200, "", r#"{"text":"Success","code":0}"#)],
                Some("the response does not say which requests are indexed"),
            ),
            (&[NO_DATA, (404, "", "")], Some("(the request was for /services/collector/ack)")),
            (&[SIGN_IN], IS_PAGE),
            (&[WANTS_TLS], NOT_UNDERSTOOD),
            (
                &[(403, "", r#"{"text":"Invalid token","code":4}"#)],
                Some("Splunk does not know the token"),
            ),
            (&[(503, "", r#"{"text":"Server is busy","code":9}"#)], Some("Splunk is busy")),
            (&[(404, "", "<html>")], Some("(the request was for /services/collector/event)")),
        ],
    },
    Case {
        kind: "splunk_hec",
        keys: "token_file = \"DIR/token\"\nacknowledge = \"accepted\"",
        requests: &[("POST", "/base/services/collector/event", "")],
        answers: &[(&[NO_DATA], None), (&[SIGN_IN], IS_PAGE)],
    },
    Case {
        kind: "elasticsearch",
        keys: "index = \"audit\"\napi_key_file = \"DIR/token\"",
        requests: &[
            ("HEAD", "/base/audit", ""),
            ("GET", "/base/_cluster/settings?include_defaults=true&flat_settings=true", ""),
        ],
        answers: &[
            (&[(200, "application/json", "")], None),
            // An API key that may only write.
            (&[(403, "application/json", "")], None),
            // The first event would create the index, or would not, or this can't be found out.
            (&[(404, "", ""), MAKES_INDICES], None),
            (
                &[(404, "", ""), MAKES_NO_INDEX],
                Some("the index or data stream audit does not exist"),
            ),
            (
                &[(404, "", ""), (403, "", "")],
                Some("the index or data stream audit does not exist"),
            ),
            (&[(401, "", "")], Some("the credentials are missing or wrong")),
            (&[(503, "", "")], Some("is not accepting events now")),
            (&[(200, "text/html", "")], IS_PAGE),
            (&[(403, "text/html", "")], IS_PAGE),
            (&[(400, "", "")], NOT_UNDERSTOOD),
        ],
    },
    Case {
        kind: "loki",
        keys: "bearer_token_file = \"DIR/token\"",
        requests: &[("POST", "/base/loki/api/v1/push", r#"{"streams":[]}"#)],
        answers: &[
            (&[(204, "", "")], None),
            (&[(422, "text/plain", "no streams")], None),
            (&[(401, "", "no org id")], Some("the token or password is missing, wrong")),
            (&[(404, "", "")], Some("there is no such service at this URL")),
            (&[WANTS_TLS], NOT_UNDERSTOOD),
            (&[SIGN_IN], IS_PAGE),
            (&[(260, "", "")], Some("Loki blocks writes for this tenant")),
        ],
    },
    Case {
        kind: "http",
        keys: "bearer_token_file = \"DIR/token\"",
        requests: &[(
            "POST",
            "/base",
            r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[]}"#,
        )],
        answers: &[
            (&[(200, "", "ok")], None),
            (&[(204, "", "")], None),
            (&[(404, "", "")], Some("takes no events at the path of the URL: correct the path")),
            (&[(405, "", "")], Some("takes no events at the path of the URL: correct the path")),
            (&[(401, "", "")], Some("the token or password is missing, wrong")),
            (&[(403, "", "")], Some("the token or password is missing, wrong")),
            (&[(415, "", "")], Some("does not take the Content-Type application/json")),
            (&[(500, "", "")], Some("is not accepting events now")),
            (&[(302, "", "")], Some("is not accepting events now")),
            (&[SIGN_IN], Some("this looks like a sign-in page")),
        ],
    },
    Case {
        kind: "http",
        keys: "format = \"json_array\"",
        requests: &[("POST", "/base", "[]")],
        answers: &[(&[(202, "", "")], None)],
    },
    Case {
        kind: "http",
        keys: "format = \"ndjson\"",
        requests: &[("POST", "/base", "")],
        answers: &[(&[(200, "text/plain", "")], None)],
    },
    Case {
        kind: "otlp",
        keys: "bearer_token_file = \"DIR/token\"",
        requests: &[("POST", "/base/v1/logs", "\n\0")],
        answers: &[
            (&[(200, "", "")], None),
            (&[(201, "", "")], None),
            (&[(400, "application/json", r#"{"message":"no records"}"#)], None),
            (&[(401, "", "")], Some("the token or password is missing, wrong")),
            (&[(404, "", "")], Some("there is no such service at this URL")),
            (&[WANTS_TLS], NOT_UNDERSTOOD),
            (&[(201, "text/html", "<html>")], IS_PAGE),
            (&[(200, "text/plain", "ok")], Some("is not an ExportLogsServiceResponse")),
        ],
    },
];

/// Runs `check --connect` with one output of this type. Returns the exit status and what the
/// command has printed.
fn check(directory: &Path, kind: &str, url: &str, keys: &str) -> (Option<i32>, String) {
    let keys = keys.replace("DIR", text(directory));
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"{kind}\"\nurls = [\"{url}\"]\n{keys}\n"
    );
    std::fs::write(directory.join("c.toml"), config).unwrap();
    let output = run_command(&["check", "--connect", "--config", "c.toml"], directory);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), said)
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "s3cr3t-t0ken\n").unwrap();
    directory
}

#[test]
fn a_consumer_that_would_not_take_events_is_told_in_words() {
    let directory = directory();
    for Case { kind, keys, requests, answers } in CASES {
        for (told, words) in *answers {
            // What is refused is asked again without compression, and gets the same answer.
            let packed = AtomicUsize::new(0);
            let sink = HttpSink::start(move |request| {
                let (status, media_type, body) =
                    told[request.number - packed.load(Ordering::Relaxed)];
                if request.header("content-encoding").is_some() && [400, 422].contains(&status) {
                    packed.fetch_add(1, Ordering::Relaxed);
                }
                let answer = Answer::status(status).body(body);
                match media_type {
                    "" => answer,
                    media_type => answer.header("Content-Type", media_type),
                }
            });
            let url = format!("http://{}/base", sink.address());
            let (code, said) = check(directory.path(), kind, &url, keys);
            assert_eq!(code, Some(if words.is_some() { 1 } else { 0 }), "{kind}, {told:?}: {said}");
            assert!(said.contains(words.unwrap_or(": ok")), "{kind}, {told:?}: {said}");
            let line = said.lines().find(|line| line.starts_with("output consumer: ")).unwrap();
            let base = format!("http://{}", sink.address());
            assert_eq!(line.matches(&base).count(), 1, "the address once: {line}");
            assert!(!said.contains("s3cr3t") && !said.contains("/base"), "{said}");
            let asked = sink.requests().into_iter();
            let mut asked: Vec<_> = asked
                .map(|it| {
                    let body = String::from_utf8(it.decoded()).unwrap();
                    (it.method, it.target, body)
                })
                .collect();
            asked.dedup();
            let asked: Vec<_> = asked.iter().map(|(a, b, c)| (&**a, &**b, &**c)).collect();
            assert_eq!(asked, requests[..told.len()], "{kind}, {told:?}");
        }
    }
}

/// Method: consumers that can't decompress a body, and refuse it with each status of such ones.
#[test]
fn a_consumer_that_can_not_read_the_compression_is_told() {
    let (directory, token) =
        (directory(), "token_file = \"DIR/token\"\nacknowledge = \"accepted\"\n");
    for (kind, keys) in [("otlp", ""), ("loki", ""), ("splunk_hec", token), ("http", "")] {
        for status in [400, 415, 422] {
            for compression in ["gzip", "none"] {
                let sink = HttpSink::start(move |request| {
                    let is_packed = request.header("content-encoding").is_some();
                    let text = r#"{"text":"Success","code":0}"#;
                    let answer = Answer::status(if is_packed { status } else { 200 });
                    answer.header("Content-Type", "application/json").body(match kind {
                        "splunk_hec" => text,
                        _ => "{}",
                    })
                });
                let keys = format!("{keys}compression = \"{compression}\"\n");
                let url = format!("http://{}", sink.address());
                let (code, said) = check(directory.path(), kind, &url, &keys);
                let words = "to a body with Content-Encoding: gzip, and 200 OK without: set comp";
                let is_told = compression == "gzip";
                assert_eq!(said.contains(words), is_told, "{kind}, {status}: {said}");
                assert_eq!(said.contains(": ok"), !is_told, "{kind}, {status}: {said}");
                assert_eq!(code, Some(i32::from(is_told)), "{kind}, {status}: {said}");
            }
        }
    }
}

/// The tutorial's HAProxy sends `/post?timeout=30s` on to its consumer.
#[test]
fn a_consumer_that_serves_another_path_or_takes_no_empty_list_is_not_called_ok() {
    let directory = directory();
    let sink = HttpSink::with(Options::default(), |request| match &*request.target {
        "/post?token=s3cr3t" => Answer::status(204),
        "/strict?token=s3cr3t" => Answer::status(422),
        _ => Answer::status(404),
    });
    for (path, code, words) in [
        ("/post?token=s3cr3t", 0, ": ok"),
        ("", 1, "takes no events at /: add the path that the consumer serves to the URL"),
        ("/", 1, "takes no events at /: add the path that the consumer serves to the URL"),
        ("/other?token=s3cr3t", 1, "takes no events at the path of the URL: correct the path"),
        ("/strict?token=s3cr3t", 0, ": not tested: it answered 422 Unprocessable Entity to a req"),
    ] {
        let url = format!("http://{}{path}", sink.address());
        let (status, said) = check(directory.path(), "http", &url, "");
        assert!(status == Some(code) && said.contains(words), "{path}: {said}");
        assert_eq!(said.contains(": ok"), words == ": ok", "{path}: {said}");
        assert!(!said.contains("s3cr3t") && !said.contains("/other"), "{said}");
    }
}

/// Method: two consumers without TLS, a consumer with a certificate of an unknown CA, and an
/// address where nothing listens.
#[test]
fn the_wrong_mode_of_tls_is_told_with_the_key_to_change() {
    let (directory, certificates) = (directory(), Certificates::new());
    let plain = HttpSink::with(Options::default(), |_| Answer::status(204));
    // Most servers answer a request that they do not understand.
    let answering = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let answers = answering.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in answering.incoming().map_while(Result::ok) {
            stream.read_exact(&mut [0; 5]).ok();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
            // Closing the connection before the client has sent everything could discard the
            // answer.
            stream.read_to_end(&mut Vec::new()).ok();
        }
    });
    let tls = Some(certificates.server_config(&certificates.server, false));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(204));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, words) in [
        (answers, "this port does not speak TLS"),
        (plain.address(), "as by a port that does not speak TLS"),
        (sink.address(), "set tls.ca to a file with the CA"),
        (nobody, "cannot connect: "),
    ] {
        let url = format!("https://{address}/base");
        let (code, said) = check(directory.path(), "http", &url, "");
        assert!(code == Some(1) && said.contains(words), "{said}");
        let line = said.lines().find(|line| line.starts_with("output consumer: ")).unwrap();
        assert_eq!(line.matches(&address.to_string()).count(), 1, "the address once: {line}");
    }
}

/// Method: each consumer's port expects TLS, and the URL begins with `http://`.
#[test]
fn http_to_a_port_that_expects_tls_is_told() {
    let (directory, certificates) = (directory(), Certificates::new());
    let tls = Some(certificates.server_config(&certificates.server, false));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(204));
    let http = Case { kind: "http", keys: "", requests: &[], answers: &[] };
    for Case { kind, keys, .. } in CASES.iter().chain([&http]) {
        let url = format!("http://{}/base", sink.address());
        let (code, said) = check(directory.path(), kind, &url, keys);
        let words = "this port expects TLS, so the URL must begin with https://";
        assert!(code == Some(1) && said.contains(words), "{kind}: {said}");
    }
    assert_eq!(sink.count(), 0, "nothing was sent");
}
