//! The meaning of answers in each protocol over HTTP: one table for each protocol, and one for the
//! answers that mean the same in all protocols.

use std::sync::Arc;

use hyper::header::HeaderValue;
use hyper::{HeaderMap, StatusCode, header};

use super::answer::meaning;
use super::api::{Api, Outcome, Reply, Sent};
use super::url::HttpEndpoint;
use crate::setup::Setup;
use crate::tests::{batch, output};
use crate::{elasticsearch, http, ibm_cloud_logs, loki, otlp, s3, splunk_hec};
use delivery::link::Verdict;
use telemetry::Telemetry;

const TYPES: [&str; 6] = ["http", "loki", "otlp", "elasticsearch", "splunk", "ibm_cloud_logs"];

/// Makes the protocol of an output. `name` is the type, or a name for a type with other settings.
fn api(name: &str) -> Arc<dyn Api> {
    let url = "urls = ['http://c.example:8088']";
    let keys = match name {
        "splunk" => {
            format!("type = 'splunk_hec'\n{url}\ntoken_file = '/t'\nacknowledge = 'accepted'\n")
        }
        "splunk_indexed" => format!("type = 'splunk_hec'\n{url}\ntoken_file = '/t'\n"),
        "elasticsearch" => format!("type = 'elasticsearch'\n{url}\nindex = 'audit'\n"),
        "ibm_cloud_logs" => format!(
            "type = 'ibm_cloud_logs'\n{url}\napi_key_file = '/k'\napplication_name = 'a'\n\
             subsystem_name = 's'\n"
        ),
        "s3" | "s3_unconditional" => format!(
            "type = 's3'\n{url}\nbucket = 'audit'\nregion = 'eu-central-1'\n\
             access_key_id_file = '/i'\nsecret_access_key_file = '/s'\n\
             conditional_writes = {}\n",
            name == "s3"
        ),
        name => format!("type = '{name}'\n{url}\n"),
    };
    let (config, telemetry) = (output(&keys), Arc::new(Telemetry::new()));
    let setup = Setup::new(&config, &telemetry);
    let kind = &config.kind;
    let found = kind.settings::<http::Settings>().map(http::Settings::api);
    let found = found.or_else(|| kind.settings::<loki::Settings>().map(loki::Settings::api));
    let found = found.or_else(|| kind.settings::<otlp::Settings>().map(otlp::Settings::api));
    let found = found.or_else(|| Some(kind.settings::<elasticsearch::Settings>()?.api(&setup)));
    let found = found.or_else(|| Some(kind.settings::<splunk_hec::Settings>()?.api()));
    let found = found.or_else(|| Some(kind.settings::<ibm_cloud_logs::Settings>()?.api(&setup)));
    let found = found.or_else(|| Some(kind.settings::<s3::Settings>()?.bucket(&setup)));
    found.expect("a protocol of the list")
}

/// Returns the meaning of this answer to a request with three events, as a short text. If the
/// protocol judges events, the text has a letter for each event: `d` delivered, `e` existing, `a`
/// again, `s` again because of a server error, `r` refused, `u` unsent, `x` unconfirmed. `p` and a
/// number stand for a part with this number of refused events.
fn means(api: &dyn Api, status: u16, media_type: &'static str, body: &[u8]) -> String {
    let mut headers = HeaderMap::new();
    if !media_type.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    means_with(api, status, &headers, Some(body))
}

/// Like [`means`], for an answer with these headers. `body` is `None` if it was not read.
fn means_with(api: &dyn Api, status: u16, headers: &HeaderMap, body: Option<&[u8]>) -> String {
    let (status, base) = (
        StatusCode::from_u16(status).unwrap(),
        HttpEndpoint::parse(None, "http://c.example").unwrap().base,
    );
    let sent = Sent::of(&batch(10, &["{}", "{}", "{}"]));
    let reply = Reply {
        status,
        headers,
        by_status: meaning(&base, api.path(), status, headers),
        body: body.filter(|_| api.answer_bytes() > 0),
        is_too_long: false,
        path: api.path(),
        base: &base,
    };
    let outcome = match status.is_success().then(|| api.acknowledged(&reply)) {
        Some(Err(what)) => reply.unclear(&what),
        Some(Ok(())) | None => api.judge(reply, &sent),
    };
    match outcome {
        Outcome::Accepted => "accepted".to_owned(),
        Outcome::Taken(number) => format!("taken {number}"),
        Outcome::Refused(_) => "refused".to_owned(),
        Outcome::Failed(failure) if failure.reason == telemetry::AttemptError::Status5xx => {
            "server error".to_owned()
        }
        Outcome::Failed(_) => "failed".to_owned(),
        // The link looks for the object.
        Outcome::Judged(parts) if parts.is_empty() => "unknown".to_owned(),
        Outcome::Judged(parts) => {
            assert_eq!(parts.last().map(|part| part.end.get()), Some(13), "the whole request");
            let word = |verdict: &Verdict| match verdict {
                Verdict::Delivered => "d".to_owned(),
                Verdict::Existing => "e".to_owned(),
                Verdict::Again(failure) if failure.may_be_the_events => "s".to_owned(),
                Verdict::Again(_) => "a".to_owned(),
                Verdict::Refused(_) => "r".to_owned(),
                Verdict::Partly { refused, .. } => format!("p{refused} "),
                Verdict::Unconfirmed => "x".to_owned(),
                Verdict::Unsent => "u".to_owned(),
                Verdict::TooLong => "t".to_owned(),
            };
            let all = parts.iter().map(|part| {
                let is_one_word = matches!(part.verdict, Verdict::Partly { .. });
                let times = if is_one_word { 1 } else { usize::try_from(part.events).unwrap() };
                word(&part.verdict).repeat(times)
            });
            all.collect::<String>().trim_end().to_owned()
        }
    }
}

fn compare(name: &str, table: &[(u16, &'static str, &str, &str)]) {
    let api = api(name);
    for (status, media_type, body, wanted) in table {
        let found = means(&*api, *status, media_type, body.as_bytes());
        assert_eq!(found, *wanted, "{name}: {status} {media_type} {body}");
    }
}

const JSON: &str = "application/json";

#[test]
fn an_answer_without_a_body_means_the_same_for_all_unless_it_is_2xx() {
    for name in TYPES {
        compare(
            name,
            &[
                // A balancer or a proxy may answer with these statuses, which say nothing about the
                // events.
                (301, "", "", "failed"),
                (302, "", "", "failed"),
                (304, "", "", "failed"),
                (307, "", "", "failed"),
                (308, "", "", "failed"),
                (401, "", "", "failed"),
                (403, "", "", "failed"),
                (404, "", "", "failed"),
                (405, "", "", "failed"),
                (408, "", "", "failed"),
                (409, "", "", "failed"),
                (411, "", "", "failed"),
                (415, "", "", "failed"),
                (429, "", "", "failed"),
                (500, "", "", "server error"),
                (502, "", "", "server error"),
                (503, "", "", "server error"),
                (504, "", "", "server error"),
                // These statuses say that the events, or their size, are at fault.
                (400, "", "", "refused"),
                (413, "", "", "refused"),
                (422, "", "", "refused"),
            ],
        );
    }
}

#[test]
fn a_sign_in_page_is_no_acknowledgement() {
    let page = "<!DOCTYPE html><title>Sign in</title>";
    for name in TYPES {
        for status in [200, 201, 203, 206] {
            compare(name, &[(status, "text/html", page, "failed")]);
        }
    }
}

#[test]
fn http_goes_by_the_status() {
    compare(
        "http",
        &[
            (200, "", "", "accepted"),
            (202, "", "", "accepted"),
            (204, "", "", "accepted"),
            (200, JSON, r#"{"error":"nothing was stored"}"#, "accepted"),
        ],
    );
}

#[test]
fn loki_stores_a_request_whole_and_says_so_by_204() {
    compare(
        "loki",
        &[
            (204, "", "", "accepted"),
            // A blocked tenant gets 260 and loses what it sends.
            (260, "", "", "failed"),
            (200, "", "", "accepted"),
            (201, "", "", "failed"),
            (202, "", "", "failed"),
            (207, "", "", "failed"),
            (200, JSON, r#"{"status":"error","errorType":"x"}"#, "failed"),
            (200, "text/html", "", "failed"),
            (400, "text/plain", "entry too far behind", "refused"),
            (429, "text/plain", "Ingestion rate limit exceeded", "failed"),
        ],
    );
}

#[test]
fn otlp_says_how_many_of_a_request_it_rejects() {
    compare(
        "otlp",
        &[
            (200, "application/x-protobuf", "", "accepted"),
            (200, JSON, "{}", "accepted"),
            (200, JSON, r#"{"partialSuccess":{}}"#, "accepted"),
            (200, JSON, r#"{"partialSuccess":{"rejectedLogRecords":"1"}}"#, "p1"),
            (200, JSON, r#"{"partialSuccess":{"rejectedLogRecords":2}}"#, "p2"),
            // Nothing was stored, because of each event or because of the receiver.
            (200, JSON, r#"{"partialSuccess":{"rejectedLogRecords":3}}"#, "refused"),
            (200, JSON, r#"{"partialSuccess":{"rejectedLogRecords":9}}"#, "refused"),
            (200, JSON, r#"{"partialSuccess":{"rejectedLogRecords":-1}}"#, "accepted"),
            (200, JSON, r#"{"status":"ok"}"#, "failed"),
            (201, JSON, r#"{"status":"error"}"#, "failed"),
            (200, JSON, "[]", "failed"),
            (200, "text/plain", "ok", "failed"),
            (200, "text/html; charset=utf-8", "", "failed"),
            // Field 1 with field 1 in it: one record is rejected.
            (200, "application/x-protobuf", "\u{a}\u{2}\u{8}\u{1}", "p1"),
            (200, "application/x-protobuf", "\u{a}\u{2}\u{8}", "failed"),
            (503, JSON, r#"{"code":14,"message":"no room"}"#, "server error"),
        ],
    );
}

/// Returns the answer of the bulk API about items with these members.
fn items(items: &[&str]) -> String {
    let all: Vec<_> = items.iter().map(|item| format!(r#"{{"create":{{{item}}}}}"#)).collect();
    format!(r#"{{"took":3,"errors":true,"items":[{}]}}"#, all.join(","))
}

#[test]
fn elasticsearch_judges_each_event() {
    let error = |status: u16, kind: &str| {
        format!(r#""status":{status},"error":{{"type":"{kind}","reason":"x"}}"#)
    };
    let conflict = error(409, "version_conflict_engine_exception");
    let read_only = error(409, "index_closed_exception");
    let busy = error(429, "es_rejected_execution_exception");
    let malformed = error(400, "mapper_parsing_exception");
    let (blocked, gone) =
        (error(403, "cluster_block_exception"), error(404, "index_not_found_exception"));
    let pipeline = error(500, "illegal_argument_exception");
    let stored = r#""status":201"#;
    let of = |all: [&str; 3], wanted: &str| {
        let body = items(&all);
        compare("elasticsearch", &[(200, JSON, body.as_str(), wanted)]);
    };
    of([stored, &conflict, stored], "ded");
    of([stored, &busy, &malformed], "dar");
    of([&busy, &busy, &busy], "aaa");
    of([&blocked, &gone, &pipeline], "sss");
    // A conflict of another kind does not mean that the consumer has the event, whatever it is
    // called, and neither does one without a kind.
    of([stored, &read_only, stored], "dsd");
    of([stored, &error(409, "IllegalState-2"), &error(409, "")], "dss");
    of([r#""status":409"#, r#""status":409,"error":{}"#, &conflict], "sse");
    // Some servers name another action than the request did.
    for action in ["index", "update"] {
        let body = items(&[stored, &malformed, stored]).replace("create", action);
        compare("elasticsearch", &[(200, JSON, body.as_str(), "drd")]);
    }
    let two = items(&[stored, stored]);
    compare(
        "elasticsearch",
        &[
            (200, JSON, r#"{"took":3,"errors":false,"items":[]}"#, "failed"),
            (200, JSON, two.as_str(), "failed"),
            (200, JSON, "", "failed"),
            (200, JSON, "{}", "failed"),
            (207, "", "", "failed"),
            (413, JSON, "", "refused"),
            (429, JSON, r#"{"error":{"type":"x","reason":"y"},"status":429}"#, "failed"),
        ],
    );
}

#[test]
fn splunk_says_by_a_code_what_is_wrong_and_at_which_event() {
    let common = [
        (200, JSON, "", "failed"),
        (200, JSON, r#"{"text":"?"}"#, "failed"),
        (200, JSON, r#"{"code":99}"#, "failed"),
        (200, JSON, r#"{"text":"HEC is healthy","code":17}"#, "failed"),
        (200, JSON, r#"{"text":"Server is busy","code":9}"#, "failed"),
        (201, "", "", "failed"),
        // The settings are wrong: no event is at fault.
        (403, JSON, r#"{"text":"Invalid token","code":4}"#, "failed"),
        (400, JSON, r#"{"text":"Incorrect index","code":7,"invalid-event-number":1}"#, "failed"),
        (503, JSON, r#"{"text":"Server is busy","code":9}"#, "server error"),
        // The first event is at fault: the request is halved.
        (400, JSON, r#"{"code":6,"invalid-event-number":0}"#, "refused"),
        (400, JSON, r#"{"code":6}"#, "refused"),
        // The request has no event with this index.
        (400, JSON, r#"{"code":6,"invalid-event-number":7}"#, "refused"),
    ];
    compare("splunk", &common);
    compare("splunk_indexed", &common);
    compare(
        "splunk",
        &[
            (200, JSON, r#"{"text":"Success","code":0}"#, "accepted"),
            (400, JSON, r#"{"code":6,"invalid-event-number":1}"#, "dru"),
            (400, JSON, r#"{"code":12,"invalid-event-number":2}"#, "ddr"),
            (503, JSON, r#"{"code":9,"invalid-event-number":2}"#, "dds"),
        ],
    );
    compare(
        "splunk_indexed",
        &[
            (200, JSON, r#"{"text":"Success","code":0,"ackId":7}"#, "taken 7"),
            (200, JSON, r#"{"text":"Success","code":0,"ackId":"8"}"#, "taken 8"),
            // Acknowledgements are off for this token.
            (200, JSON, r#"{"text":"Success","code":0}"#, "failed"),
            (400, JSON, r#"{"code":6,"invalid-event-number":1}"#, "xru"),
            (503, JSON, r#"{"code":9,"invalid-event-number":2}"#, "xxs"),
        ],
    );
}

#[test]
fn ibm_cloud_logs_goes_by_the_status() {
    compare(
        "ibm_cloud_logs",
        &[
            (200, JSON, "", "accepted"),
            (200, JSON, "{}", "accepted"),
            (204, "text/html", "", "failed"),
            (429, JSON, "", "failed"),
        ],
    );
}

/// A row has a status, `true` if there is an `ETag`, the media type, the code of the error (or
/// another body), and the meaning.
#[test]
fn s3_stores_an_object_whole_or_says_that_it_is_there() {
    const XML: &str = "application/xml";
    const PAGE: &str = "<html>Sign in</html>";
    let of = |name: &str, table: &[(u16, bool, &'static str, &str, &str)]| {
        let api = api(name);
        for (status, has_tag, media_type, code, wanted) in table {
            let mut headers = HeaderMap::new();
            if *has_tag {
                headers.insert(header::ETAG, HeaderValue::from_static("\"9b2cf535\""));
            }
            if !media_type.is_empty() {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
            }
            let body = match code.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                true if !code.is_empty() => {
                    format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>")
                }
                _ => (*code).to_owned(),
            };
            let found = means_with(&*api, *status, &headers, Some(body.as_bytes()));
            assert_eq!(found, *wanted, "{name}: {status} {media_type} {code}");
        }
    };
    let both = [
        (200, true, "", "", "accepted"),
        // A server that answers 200 may not have the object.
        (200, false, "", "", "failed"),
        (202, false, JSON, "{}", "failed"),
        (200, true, XML, "InternalError", "failed"),
        (200, false, XML, "SlowDown", "failed"),
        (200, true, "text/html", PAGE, "failed"),
        (200, true, "", PAGE, "failed"),
        // Another request for the same object has not ended, and may fail: the object may be
        // missing.
        (409, false, XML, "ConditionalRequestConflict", "failed"),
        (409, false, XML, "OperationAborted", "failed"),
        (409, false, "", "", "failed"),
        // The moment, the keys or a setting are at fault, and never the events.
        (400, false, XML, "BadDigest", "failed"),
        (400, false, XML, "ExpiredToken", "failed"),
        (400, false, XML, "EntityTooLarge", "failed"),
        (403, false, XML, "AccessDenied", "failed"),
        (404, false, XML, "NoSuchBucket", "failed"),
        (413, false, "", "", "failed"),
        (422, false, "", "", "failed"),
        (307, false, XML, "TemporaryRedirect", "failed"),
        (429, false, "", "", "failed"),
        (500, false, XML, "InternalError", "server error"),
        (501, false, XML, "NotImplemented", "server error"),
        (503, false, XML, "SlowDown", "server error"),
        (503, false, "text/html", PAGE, "server error"),
        // A proxy has a page for each status.
        (412, false, "text/html", PAGE, "failed"),
    ];
    of("s3", &both);
    of("s3_unconditional", &both);
    // Only a request with `If-None-Match` can find out that the object is there.
    of("s3", &[(412, false, XML, "PreconditionFailed", "eee"), (412, false, "", "", "unknown")]);
    of("s3_unconditional", &[(412, false, XML, "PreconditionFailed", "failed")]);
    // The answer may come before the whole object was sent: the body is not read then.
    assert_eq!(means_with(&*api("s3"), 412, &HeaderMap::new(), None), "unknown");
}

/// Returns the failure of an answer with this body, as an operator sees it.
fn said(api: &dyn Api, status: u16, code: &str) -> String {
    let status = StatusCode::from_u16(status).unwrap();
    let base = HttpEndpoint::parse(None, "http://c.example").unwrap().base;
    let (headers, batch) = (HeaderMap::new(), batch(10, &["{}"]));
    let body = format!("<Error><Code>{code}</Code></Error>");
    let reply = Reply {
        status,
        headers: &headers,
        by_status: meaning(&base, api.path(), status, &headers),
        body: Some(body.as_bytes()),
        is_too_long: false,
        path: api.path(),
        base: &base,
    };
    let Outcome::Failed(failure) = api.judge(reply, &Sent::of(&batch)) else {
        panic!("{code} is a failure")
    };
    failure.message
}

#[test]
fn s3_names_the_code_of_an_error_and_the_setting_for_a_server_without_conditions() {
    let said = |name: &str, status, code| said(&*api(name), status, code);
    let conflict = said("s3", 409, "ConditionalRequestConflict");
    assert!(conflict.ends_with("answered 409 Conflict (ConditionalRequestConflict)"), "{conflict}");
    assert!(said("s3", 503, "SlowDown").ends_with("(SlowDown)"));
    assert!(said("s3", 501, "NotImplemented").contains("set conditional_writes = false"));
    assert!(!said("s3_unconditional", 501, "NotImplemented").contains("conditional_writes"));
    assert!(!said("s3", 503, "SlowDown").contains("conditional_writes"));
}
