//! `check --connect` says in the operator's words what is wrong with a consumer: the token, the
//! index, the address. It sends no event.

use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::relay::BASE;
use crate::support::relay::run_command;
use crate::support::text;

/// A type of output, and answers to its test request.
struct Case {
    kind: &'static str,
    /// The keys that the type needs besides `urls`.
    keys: &'static str,
    /// The method, path and body of the test request.
    request: (&'static str, &'static str, &'static str),
    /// The status and body of an answer, and words that the command must say; `None`: all is well.
    answers: &'static [(u16, &'static str, Option<&'static str>)],
}

const CASES: &[Case] = &[
    Case {
        kind: "splunk_hec",
        keys: "token_file = \"DIR/token\"",
        request: ("POST", "/base/services/collector/event", ""),
        answers: &[
            (400, r#"{"text":"No data","code":5}"#, None),
            (403, r#"{"text":"Invalid token","code":4}"#, Some("Splunk does not know the token")),
            (400, r#"{"text":"ACK is disabled","code":14}"#, Some("turn it on in Splunk")),
            (503, r#"{"text":"Server is busy","code":9}"#, Some("Splunk is busy")),
            (404, "<html>", Some("there is no such service at this URL")),
        ],
    },
    Case {
        kind: "elasticsearch",
        keys: "index = \"audit\"\napi_key_file = \"DIR/token\"",
        request: ("HEAD", "/base/audit", ""),
        answers: &[
            (200, "", None),
            // A key that may only write.
            (403, "", None),
            (404, "", Some("there is no index or data stream audit")),
            (401, "", Some("the credentials are missing or wrong")),
            (503, "", Some("would not take events now")),
        ],
    },
    Case {
        kind: "loki",
        keys: "bearer_token_file = \"DIR/token\"",
        request: ("POST", "/base/loki/api/v1/push", r#"{"streams":[]}"#),
        answers: &[
            (204, "", None),
            (422, "no streams", None),
            (401, "no org id", Some("the token or password is missing, wrong")),
            (404, "", Some("there is no such service at this URL")),
        ],
    },
    Case {
        kind: "otlp",
        keys: "bearer_token_file = \"DIR/token\"",
        request: ("POST", "/base/v1/logs", ""),
        answers: &[
            (200, "", None),
            (401, "", Some("the token or password is missing, wrong")),
            (404, "", Some("there is no such service at this URL")),
        ],
    },
];

#[test]
fn a_consumer_that_would_not_take_events_is_told_in_words() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "s3cr3t-t0ken\n").unwrap();
    for Case { kind, keys, request, answers } in CASES {
        for (status, body, words) in *answers {
            let sink = HttpSink::script([Answer::status(*status).body(*body)]);
            let address = sink.address();
            let keys = keys.replace("DIR", text(directory.path()));
            let config = format!(
                "{BASE}[[output]]\nname = \"consumer\"\ntype = \"{kind}\"\n\
                 urls = [\"http://{address}/base\"]\n{keys}\n"
            );
            std::fs::write(directory.path().join("c.toml"), config).unwrap();
            let output =
                run_command(&["check", "--connect", "--config", "c.toml"], directory.path());
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            let code = if words.is_some() { 1 } else { 0 };
            assert_eq!(output.status.code(), Some(code), "{kind}, {status}: {said}");
            let words = words.unwrap_or(": ok");
            assert!(said.contains(words), "{kind}, {status}: {said}");
            assert!(!said.contains("s3cr3t") && !said.contains("/base"), "{said}");
            let asked = sink.requests().pop().expect("one request");
            let asked = (asked.method.as_str(), asked.target.as_str(), asked.body.as_slice());
            assert_eq!(asked, (request.0, request.1, request.2.as_bytes()), "{kind}");
        }
    }
}
