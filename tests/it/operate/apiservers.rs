//! The kube-apiservers from which a relay has heard, in `/status` and in the metric.

use std::time::SystemTime;

use crate::support::corpus::{lease_update, list_of};
use crate::support::prelude::*;

/// Returns the names and ids in `/status`. Each must have been heard in the last ten minutes.
fn heard(relay: &Relay) -> Vec<(String, String)> {
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let text = |it: &Value| it.as_str().unwrap().to_owned();
    let apiserver = |it: &Value| {
        let ago = it["last_heard_seconds_ago"].as_f64().unwrap();
        assert!((0.0..600.0).contains(&ago), "{it}");
        (text(&it["name"]), text(&it["id"]))
    };
    status["apiservers"].as_array().unwrap().iter().map(apiserver).collect()
}

fn names(relay: &Relay) -> Vec<String> {
    heard(relay).into_iter().map(|(name, _)| name).collect()
}

/// Method: events of three kube-apiservers arrive, with other events in between. The volume by
/// cause is off, which must make no difference.
#[test]
fn each_kube_apiserver_that_is_heard_is_shown() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), "[volume]\nenabled = false\n"));
    assert!(names(&relay).is_empty());
    assert_eq!(relay.metrics().all("apiserver_last_heard_timestamp_seconds"), []);
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let before = now();
    let all = ["apiserver-3aaaaaaa", "apiserver-1aaaaaaa", "apiserver-2aaaaaaa"];
    for name in all {
        assert_eq!(relay.post(&generated_batch(7, 3, 900)).status, 200);
        assert_accepted(&relay.post(&list_of(&[lease_update(name), lease_update(name)])), 2);
    }
    assert_eq!(names(&relay), ["apiserver-1aaaaaaa", "apiserver-2aaaaaaa", "apiserver-3aaaaaaa"]);
    let metrics = relay.metrics();
    // The first id is the beginning of `printf apiserver-1aaaaaaa | sha256sum`.
    let ids: Vec<_> = heard(&relay).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, ["8d9455df", "4de82b7a", "2e5d0d7e"]);
    for id in ids {
        let at = metrics.value("apiserver_last_heard_timestamp_seconds", &[("apiserver", &id)]);
        // The metric counts back from a clock that is read a moment later.
        assert!((before - 1.0..=now() + 1.0).contains(&at), "{at} since {before}");
    }
    relay.finish(Backlog::Empty);
}

/// Method: each event is like the real one of a kube-apiserver, except for one difference.
#[test]
fn what_others_write_about_a_kube_apiserver_is_not_heard() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), ""));
    let real = lease_update("apiserver-12345678");
    let long = format!("apiserver-{}", "x".repeat(65));
    for (from, to) in [
        (r#""username":"system:apiserver""#, r#""username":"system:serviceaccount:a:b""#),
        (r#""sourceIPs""#, r#""impersonatedUser":{"username":"system:apiserver"},"sourceIPs""#),
        ("namespaces/kube-system", "namespaces/prod"),
        (r#""verb":"update""#, r#""verb":"get""#),
        (r#""code":200"#, r#""code":403"#),
        ("apiserver-12345678", "apiserver-1234567"),
        ("apiserver-12345678", &long),
    ] {
        assert!(real.contains(from), "{from}: {real}");
        assert_accepted(&relay.post(&list_of(&[real.replace(from, to)])), 1);
        assert_eq!(names(&relay), [""; 0], "{to}");
    }
    // A body that is refused does not count either.
    let broken = list_of(&[real.clone(), "{x".to_owned()]);
    assert_eq!(relay.post(&broken).status, 400);
    assert_eq!(names(&relay), [""; 0]);
    assert_accepted(&relay.post(&list_of(&[real])), 1);
    assert_eq!(names(&relay), ["apiserver-12345678"]);
    relay.finish(Backlog::Empty);
}

/// Method: a sender invents names.
#[test]
fn sixteen_names_are_the_most() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), ""));
    let events: Vec<_> =
        (0..20).map(|number| lease_update(&format!("apiserver-{number:08}"))).collect();
    assert_accepted(&relay.post(&list_of(&events)), 20);
    assert_accepted(&relay.post(&list_of(&events)), 20);
    let first: Vec<_> = (0..16).map(|number| format!("apiserver-{number:08}")).collect();
    assert_eq!(names(&relay), first);
    assert_eq!(relay.metrics().all("apiserver_last_heard_timestamp_seconds").len(), 16);
    let log = relay.finish(Backlog::Empty);
    let told = "events of more than 16 kube-apiservers arrived in the last hour";
    assert_eq!(log.matches(told).count(), 1, "{log}");
}
