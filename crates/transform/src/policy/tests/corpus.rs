//! The shipped policies, applied to recorded events. A policy must keep unchanged what
//! kube-apiserver recorded under that policy. From events that were recorded in full, the default
//! policy must keep what kube-apiserver would have recorded under it.

use std::collections::BTreeMap;

use super::super::{Decision, Level};
use super::shipped;
use audit::decode;
use audit::request::{Request, request};
use testing::corpus_file;

/// Calls `call` for each event of a recorded body. Returns the number of events.
fn each(name: &str, mut call: impl FnMut(&[u8], &Request<'_>)) -> usize {
    let lines = decode(corpus_file(name)).unwrap().lines;
    let events = lines.split(|byte| *byte == b'\n').filter(|event| !event.is_empty());
    events.map(|event| call(event, &request(event))).count()
}

#[test]
fn all_of_them_load() {
    for (name, rules) in [
        ("ibm-default.yaml", 2),
        ("ibm-verbose.yaml", 4),
        ("ibm-default-old.yaml", 15),
        ("ibm-verbose-old.yaml", 4),
        ("openshift-default.yaml", 15),
    ] {
        assert_eq!(shipped(name).rules().len(), rules, "{name}");
    }
}

#[test]
fn what_was_recorded_under_a_policy_is_kept_by_it_at_its_own_level() {
    for (body, policy, events) in [
        ("01-batch400-metadata.json", "ibm-default.yaml", 400),
        ("18-batch40-h2.json", "ibm-default.yaml", 40),
        ("19-verbose-writes.json", "ibm-verbose.yaml", 113),
    ] {
        let policy = shipped(policy);
        let count = each(body, |event, request| {
            let decision = policy.decide(request);
            let event = String::from_utf8_lossy(event);
            assert_eq!(Some(decision.level), Level::of(&request.level), "{event}");
            assert!(!decision.omit_stage, "{event}");
            assert!(decision.omit_managed_fields);
        });
        assert_eq!(count, events);
    }
}

#[test]
fn of_writes_recorded_in_full_the_default_keeps_metadata() {
    let policy = shipped("ibm-default.yaml");
    let count = each("19-verbose-writes.json", |event, request| {
        let decision = policy.decide(request);
        assert_eq!(decision.level, Level::Metadata, "{}", String::from_utf8_lossy(event));
        assert!(!decision.omit_stage);
    });
    assert_eq!(count, 113);
}

/// Returns the level of an event, and `true` if its stage is omitted, worked out from the event's
/// JSON alone, without a policy.
fn expected(event: &serde_json::Value) -> (Level, bool) {
    let path = event["requestURI"].as_str().unwrap().split('?').next().unwrap().to_owned();
    let about_path = event.get("objectRef").is_none();
    let dropped = ["/version", "/healthz", "/readyz", "/livez"].contains(&path.as_str())
        || path.starts_with("/api");
    let somebody = !event["user"]["groups"].as_array().unwrap_or(&Vec::new()).is_empty();
    let level = match about_path && dropped && somebody {
        true => Level::None,
        false => Level::Metadata,
    };
    (level, event["stage"] == "RequestReceived")
}

#[test]
fn of_all_stages_in_full_the_default_keeps_what_it_would_have_recorded() {
    let policy = shipped("ibm-default.yaml");
    let mut outcomes = BTreeMap::new();
    for name in [
        "02-batch-requestresponse-allstages.json",
        "09-pods-exec-log-patch.json",
        "10-unauthorized-401.json",
        "11-forbidden-403.json",
        "12-impersonation.json",
        "13-ssa-patch.json",
        "14-invalid-requests.json",
        "15-client-audit-id-xff.json",
        "16-watch.json",
        "17-truncated.json",
        "audit.log",
    ] {
        each(name, |event, request| {
            let Decision { level, omit_stage, .. } = policy.decide(request);
            let parsed: serde_json::Value = serde_json::from_slice(event).unwrap();
            assert_eq!((level, omit_stage), expected(&parsed), "{name}: {parsed}");
            *outcomes.entry((name, level, omit_stage)).or_insert(0) += 1;
        });
    }
    let of = |name, level, omit_stage| outcomes.get(&(name, level, omit_stage)).copied();
    let all = "02-batch-requestresponse-allstages.json";
    // The body has 183 events of the stage RequestReceived and 217 of later stages. 10 of its 12
    // events about paths are about /readyz.
    assert_eq!(of(all, Level::None, true), Some(5));
    assert_eq!(of(all, Level::None, false), Some(5));
    assert_eq!(of(all, Level::Metadata, true), Some(178));
    assert_eq!(of(all, Level::Metadata, false), Some(212));
    assert_eq!(of("10-unauthorized-401.json", Level::Metadata, true), Some(1));
    assert_eq!(of("10-unauthorized-401.json", Level::Metadata, false), Some(3));
}
