//! `policy explain`: its output for recorded events under the shipped policies, and for mistakes.

use crate::support::corpus::audit_log;
use crate::support::prelude::*;

/// Returns the arguments of the command for a policy and these events.
fn words<'a>(policy: &'a str, events: &'a str) -> [&'a str; 5] {
    ["policy", "explain", "--policy", policy, events]
}

/// Checks that the command succeeded without a message, and returns its standard output.
fn succeeded(said: Said) -> String {
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    said.stdout
}

/// Runs the command with a file of `tests/policies` and a file below `tests`. Returns its standard
/// output.
fn explained(policy: &str, events: &str) -> String {
    let (policy, events) = (format!("tests/policies/{policy}"), format!("tests/{events}"));
    succeeded(said(&words(&policy, &events), &repository()))
}

/// Runs the command with these contents of the two files. Checks that its exit status is 2, and
/// returns its standard error.
fn refused(policy: &str, events: &str) -> String {
    let directory = TempDir::new().unwrap();
    for (name, text) in [("policy.yaml", policy), ("events.json", events)] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let said = said(&words("policy.yaml", "events.json"), directory.path());
    said.assert_refused("");
    said.stderr
}

#[test]
fn one_event_has_the_rule_that_decides_and_what_becomes_of_it() {
    assert_eq!(
        explained("ibm-default.yaml", "corpus/06-single-min.json"),
        "event 1 (ResponseStarted, auditID ba994f1f-97aa-46c4-88cf-1dfc54c6bcac): list /api/v1/namespaces/drive/pods by nobody\n  \
         rule 1 (line 9): userGroups: nobody was authenticated\n  \
         rule 2 (line 17) matches: level Metadata\n  \
         the event is kept, at its own level Metadata\n"
    );
}

#[test]
fn a_namespace_that_only_the_body_has_is_said_to_be_none() {
    let said = explained("quiet-namespace.yaml", "policies/cluster-role-binding.json");
    assert!(
        said.ends_with(
            "rule 1 (line 4): namespaces [quiet] do not have \"\", which the URL says (the \"quiet\" in objectRef is from the request's body)\n  \
             rule 2 (line 6) matches: level RequestResponse\n  \
             the event is kept, at its own level RequestResponse\n"
        ),
        "{said}"
    );
}

#[test]
fn every_event_of_a_list_and_of_a_log_has_its_block() {
    let said = explained("ibm-default.yaml", "corpus/02-batch-requestresponse-allstages.json");
    let blocks: Vec<&str> = said.split("\n\n").collect();
    assert_eq!(blocks.len(), 400);
    assert!(blocks[399].starts_with("event 400 ("));
    let count = |words: &str| blocks.iter().filter(|block| block.contains(words)).count();
    assert_eq!(count("  rule 1 (line 9) matches: level None\n  the event is dropped"), 10);
    assert_eq!(count("  rule 2 (line 17) matches: level Metadata\n"), 390);
    assert_eq!(count("  the event is dropped: the stage RequestReceived is omitted"), 178);
    assert_eq!(
        count("  the event is lowered from RequestResponse to Metadata: without requestObject and"),
        212
    );
    let said = explained("ibm-default.yaml", "corpus/audit.log");
    assert_eq!(said.split("\n\n").count(), 495);
}

#[test]
fn events_come_from_standard_input_too_and_a_single_event_is_one() {
    let log = audit_log();
    let event = log.split(|byte| *byte == b'\n').next().unwrap();
    let words = words("tests/policies/ibm-verbose.yaml", "-");
    let said = succeeded(said_to(event, &words, &repository()));
    assert!(said.starts_with("event 1 (") && said.matches("auditID").count() == 1, "{said}");
    let said = refused("", "");
    assert_eq!(said, "policy.yaml:1:1: there is nothing in it\n");
}

#[test]
fn mistakes_of_the_policy_are_printed_with_their_places_and_nothing_else() {
    let policy =
        "apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules:\n- level: Metdata\n  verb: [get]\n";
    assert_eq!(
        refused(policy, "{}"),
        "policy.yaml:1:13: audit.k8s.io/v1beta1 was removed in Kubernetes 1.24: write audit.k8s.io/v1, the fields are the same\n\
         policy.yaml:4:10: \"Metdata\" is unknown, did you mean Metadata?\n\
         policy.yaml:5:3: unknown field \"verb\", did you mean verbs?\n"
    );
}

#[test]
fn events_that_are_none_and_files_that_are_missing_are_wrong_usage() {
    let policy = std::fs::read_to_string(repository().join("tests/policies/ibm-default.yaml"));
    let policy = policy.unwrap();
    let said = refused(&policy, "{\"kind\":\"Pod\"}");
    assert!(
        said.starts_with("events.json: cannot read the events: ") && said.lines().count() == 1,
        "{said}"
    );
    let without_a_policy = said_to(b"", &["policy", "explain", "none.json"], Path::new("/"));
    without_a_policy.assert_refused("--policy");
}

#[test]
fn what_a_sender_writes_into_an_event_moves_no_cursor() {
    let directory = TempDir::new().unwrap();
    let corpus = std::fs::read(repository().join("tests/corpus/06-single-min.json")).unwrap();
    let event = String::from_utf8(events_of(&corpus).remove(0)).unwrap();
    let mut event: Value = serde_json::from_str(&event).unwrap();
    let hostile = "\u{1b}[2J\n\u{9b}x";
    for field in ["auditID", "verb", "requestURI"] {
        event[field] = hostile.into();
    }
    event["user"] = serde_json::json!({"username": hostile, "groups": [hostile]});
    event["objectRef"]["resource"] = hostile.into();
    std::fs::write(directory.path().join("event.json"), event.to_string()).unwrap();
    let policy = repository().join("tests/policies/ibm-default-old.yaml");
    let words = words(policy.to_str().unwrap(), "event.json");
    // The policy names resources that do not exist, of which the command warns.
    let said = said(&words, directory.path());
    assert_eq!(said.code, Some(0), "{said:?}");
    for text in [&said.stdout, &said.stderr] {
        assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{text:?}");
    }
}
