//! Tests of each shape, on events that are written out here, on recorded events, and on random
//! ones.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::redact::tests::tree::{Pairs, Tree};
use testing::{corpus, list};

impl Tree {
    fn members(&self) -> &[(String, Tree)] {
        match self {
            Self::Object(members) => members,
            Self::Plain(_) | Self::Text(_) | Self::Array(_) => &[],
        }
    }

    /// Returns the value at a path of names and indices.
    fn at(&self, path: &[&str]) -> Option<&Tree> {
        path.iter().try_fold(self, |value, step| match value {
            Self::Object(members) => members.iter().find(|(key, _)| key == step).map(|it| &it.1),
            Self::Array(values) => values.get(step.parse::<usize>().ok()?),
            Self::Plain(_) | Self::Text(_) => None,
        })
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Plain(_) | Self::Array(_) | Self::Object(_) => None,
        }
    }

    /// Calls `found` with the path and the value of each leaf. An empty object or list is a leaf.
    fn leaves(&self, path: &mut Vec<String>, found: &mut dyn FnMut(&[String], &Tree)) {
        let children: Vec<(String, &Tree)> = match self {
            Self::Object(members) => members.iter().map(|(key, it)| (key.clone(), it)).collect(),
            Self::Array(values) => {
                values.iter().enumerate().map(|(index, it)| (index.to_string(), it)).collect()
            }
            Self::Plain(_) | Self::Text(_) => Vec::new(),
        };
        if children.is_empty() {
            found(path, self);
        }
        for (step, child) in children {
            path.push(step);
            child.leaves(path, found);
            path.pop();
        }
    }

    fn assert_no_key_twice(&self) {
        let keys: Vec<_> = self.members().iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), keys.iter().collect::<BTreeSet<_>>().len(), "{keys:?}");
    }
}

const SHAPES: [Shape; 3] = [Shape::Event, Shape::Ecs, Shape::Ocsf];
const BODIES: [Bodies; 2] = [Bodies::Keep, Bodies::String];

/// Returns the document of an event. Asserts that it is one JSON object in one line.
fn document(event: &str, shape: Shape, bodies: Bodies) -> String {
    let mut out = b"before".to_vec();
    let stream = DataStream::of("logs-kubernetes.audit_logs-prod");
    Form { shape, bodies, ..Form::default() }.write(event.as_bytes(), stream.as_ref(), &mut out);
    let out = String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned();
    let out = if out.is_empty() { event.to_owned() } else { out };
    assert!(out.starts_with('{') && !out.contains('\n'), "{out}");
    serde_json::from_str::<serde::de::IgnoredAny>(&out).expect(&out);
    out
}

/// Returns the user as it must be in a store that makes a field of each name.
fn with_known_names(user: &Tree, raw: &str) -> Tree {
    let Tree::Object(members) = user else { return user.clone() };
    let Pairs(pairs) = serde_json::from_str(raw).unwrap();
    let members = members.iter().zip(&pairs).map(|((key, value), (_, written))| {
        (key.clone(), if key == "extra" { extra(value, written.get()) } else { value.clone() })
    });
    Tree::Object(members.collect())
}

fn extra(extra: &Tree, raw: &str) -> Tree {
    let Tree::Object(members) = extra else { return extra.clone() };
    let Pairs(pairs) = serde_json::from_str(raw).unwrap();
    // These are enough for the names that the events of the tests have.
    let known = ["oid", "reason", "authentication.kubernetes.io/credential-id"];
    let (mut written, mut others) = (Vec::new(), Vec::new());
    for ((key, value), (name, raw)) in members.iter().zip(&pairs) {
        match known.contains(&key.as_str()) {
            true => written.push((key.clone(), value.clone())),
            false => others.push(format!("{}:{}", name.get(), raw.get())),
        }
    }
    if !others.is_empty() {
        written.push(("other".to_owned(), Tree::Text(format!("{{{}}}", others.join(",")))));
    }
    Tree::Object(written)
}

/// Returns the event with both users as they must be in a store that makes a field of each name.
fn with_known_names_of_users(event: &str) -> Tree {
    let (tree, Pairs(pairs)) = (Tree::read(event), serde_json::from_str(event).unwrap());
    let members = tree.members().iter().zip(&pairs).map(|((key, value), (_, raw))| {
        let is_user = matches!(key.as_str(), "user" | "impersonatedUser");
        (key.clone(), if is_user { with_known_names(value, raw.get()) } else { value.clone() })
    });
    Tree::Object(members.collect())
}

/// Returns the event as it must be in a document that holds all of it.
fn expected(event: &Tree, bodies: Bodies, raw: &str, is_ecs: bool) -> Tree {
    let Pairs(pairs) = serde_json::from_str(raw).unwrap();
    let mut members = Vec::new();
    for ((key, value), (_, written)) in event.members().iter().zip(&pairs) {
        let value = match key.as_str() {
            "user" | "impersonatedUser" if is_ecs || bodies == Bodies::String => {
                with_known_names(value, written.get())
            }
            "requestObject" | "responseObject"
                if bodies == Bodies::String && written.get() != "null" =>
            {
                Tree::Text(written.get().to_owned())
            }
            "annotations" if is_ecs => dotless(value),
            _ => value.clone(),
        };
        members.push((key.clone(), value));
    }
    Tree::Object(members)
}

/// Returns the annotations as an ECS document must have them.
fn dotless(annotations: &Tree) -> Tree {
    let Tree::Object(members) = annotations else { return annotations.clone() };
    let mut written: BTreeSet<String> = members.iter().map(|(key, _)| key.clone()).collect();
    let renamed = members.iter().map(|(key, value)| {
        let new = key.replace('.', "_");
        // A key with a lone surrogate is compared, and kept, as it is written.
        let stays = new == *key || key.contains("\\u") || !written.insert(new.clone());
        (if stays { key.clone() } else { new }, value.clone())
    });
    Tree::Object(renamed.collect())
}

/// Asserts what must be true of every document of every event.
fn check(event: &str) {
    let tree = Tree::read(event);
    for bodies in BODIES {
        let whole = document(event, Shape::Event, bodies);
        assert_eq!(Tree::read(&whole), expected(&tree, bodies, event, false), "{event}");

        let ecs = document(event, Shape::Ecs, bodies);
        let ecs = Tree::read(&ecs);
        let audit = ecs.at(&["kubernetes", "audit"]).unwrap();
        assert_eq!(*audit, expected(&tree, bodies, event, true), "{event}");
        ecs.assert_no_key_twice();
        ecs.members().iter().for_each(|(_, value)| value.assert_no_key_twice());
        assert_eq!(ecs.members().last().unwrap().0, "kubernetes");

        let ocsf = Tree::read(&document(event, Shape::Ocsf, bodies));
        assert_ocsf_is_made_right(&ocsf);
    }
}

/// Asserts that no object that the shape has made has a key twice, and that the members that the
/// schema requires are there.
fn assert_ocsf_is_made_right(document: &Tree) {
    fn visit(value: &Tree) {
        value.assert_no_key_twice();
        value.members().iter().for_each(|(_, value)| visit(value));
    }
    document.assert_no_key_twice();
    for (key, value) in document.members() {
        match key.as_str() {
            "unmapped" => {
                value.assert_no_key_twice();
                for name in ["user", "objectRef", "responseStatus"] {
                    if let Some(nested) = value.at(&[name]) {
                        nested.assert_no_key_twice();
                    }
                }
            }
            _ => visit(value),
        }
    }
    for path in [
        &["class_uid"][..],
        &["activity_id"],
        &["category_uid"],
        &["type_uid"],
        &["severity_id"],
        &["metadata", "version"],
        &["metadata", "product", "name"],
        &["api", "operation"],
        &["actor"],
        &["src_endpoint"],
    ] {
        assert!(document.at(path).is_some(), "{path:?} is missing: {document:?}");
    }
}

/// The places of an OCSF document to which members of the event go.
const PLACES: [(&str, &str); 20] = [
    ("apiVersion", "metadata.product.version"),
    ("level", "metadata.log_level"),
    ("auditID", "api.request.uid"),
    ("stage", "message"),
    ("verb", "api.operation"),
    ("user.username", "actor.user.name"),
    ("user.uid", "actor.user.uid"),
    ("userAgent", "http_request.user_agent"),
    ("objectRef.name", "resources.0.name"),
    ("objectRef.namespace", "resources.0.namespace"),
    ("objectRef.uid", "resources.0.uid"),
    ("objectRef.resourceVersion", "resources.0.version"),
    ("objectRef.resource", "resources.0.type"),
    ("objectRef.apiGroup", "api.group.name"),
    ("objectRef.apiVersion", "api.version"),
    ("responseStatus.code", "api.response.code"),
    ("responseStatus.message", "api.response.message"),
    ("responseStatus.reason", "api.response.error"),
    ("responseStatus.status", "api.response.error_message"),
    ("requestReceivedTimestamp", "start_time_dt"),
];

/// Asserts that each leaf of an event is in its OCSF document, at its place or in `unmapped`.
/// Returns how many leaves are at places of their own.
fn assert_all_is_there(event: &str) -> usize {
    let ocsf = Tree::read(&document(event, Shape::Ocsf, Bodies::Keep));
    let (mut placed, mut unmapped) = (0, 0);
    with_known_names_of_users(event).leaves(&mut Vec::new(), &mut |path, leaf| {
        let steps: Vec<&str> = path.iter().map(String::as_str).collect();
        if ocsf.at(&[&["unmapped"], &steps[..]].concat()) == Some(leaf) {
            unmapped += 1;
            return;
        }
        placed += 1;
        let found = match &*steps {
            ["requestURI"] => {
                let of = |name| ocsf.at(&["http_request", "url", name]).and_then(Tree::as_text);
                let query = of("query_string").map(|query| format!("?{query}"));
                let path = of("path").unwrap_or_default();
                Some(Tree::Text(format!("{path}{}", query.unwrap_or_default())))
            }
            ["user", "groups", index] => {
                ocsf.at(&["actor", "user", "groups", index, "name"]).cloned()
            }
            ["sourceIPs", "0"] => ocsf.at(&["src_endpoint", "ip"]).cloned(),
            ["sourceIPs", index] => {
                let index = (index.parse::<usize>().unwrap() - 1).to_string();
                ocsf.at(&["src_endpoint", "intermediate_ips", &index]).cloned()
            }
            ["stageTimestamp"] => ocsf.at(&["time_dt"]).cloned(),
            _ => {
                let (_, place) = PLACES
                    .iter()
                    .find(|(from, _)| *from == steps.join("."))
                    .unwrap_or_else(|| panic!("{steps:?} is nowhere: {event}"));
                ocsf.at(&place.split('.').collect::<Vec<_>>()).cloned()
            }
        };
        assert_eq!(found.as_ref(), Some(leaf), "{steps:?}: {event}");
    });
    // No leaf is in `unmapped` besides those that have no place of their own.
    let mut there = 0;
    if let Some(rest) = ocsf.at(&["unmapped"]) {
        rest.leaves(&mut Vec::new(), &mut |_, _| there += 1);
    }
    assert_eq!(there, unmapped, "{event}");
    placed
}

fn recorded() -> Vec<String> {
    let mut events = Vec::new();
    for (_, body) in corpus() {
        let lines = audit::decode(body).unwrap().lines;
        events.extend(String::from_utf8(lines.to_vec()).unwrap().lines().map(str::to_owned));
    }
    events
}

#[test]
fn recorded_events_are_whole_in_every_shape() {
    let (mut events, mut placed) = (0, 0);
    for event in recorded() {
        check(&event);
        placed += assert_all_is_there(&event);
        events += 1;
    }
    assert!(events > 1000, "{events}");
    // An event of kube-apiserver has about fifteen members with a place.
    assert!(placed / events >= 12, "{placed} of {events}");
}

/// An event with every member that a shape moves.
const FULL: &str = concat!(
    r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"8b8398cd","#,
    r#""stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/pods?dryRun=All\u0026x=%3F?","#,
    r#""verb":"create","user":{"username":"ada","uid":"7","groups":["g1","g2"],"extra":{"oid":["v"]}},"#,
    r#""sourceIPs":["192.0.2.7","10.0.0.1","2001:db8::1"],"userAgent":"kubectl/v1","#,
    r#""objectRef":{"resource":"pods","namespace":"a","name":"p","uid":"u","apiGroup":"x.io","#,
    r#""apiVersion":"v1","resourceVersion":"12","subresource":"status"},"#,
    r#""responseStatus":{"metadata":{},"status":"Failure","message":"no \"p\"","reason":"Forbidden","#,
    r#""details":{"name":"p"},"code":403},"requestObject":{"a":1.00,"b":"\u0041"},"responseObject":null,"#,
    r#""requestReceivedTimestamp":"2026-11-20T06:24:22.400000Z","#,
    r#""stageTimestamp":"2026-11-20T06:24:22.439323Z","#,
    r#""annotations":{"authorization.k8s.io/decision":"forbid","plain":"1"},"more":1e400}"#,
);

#[test]
fn an_ecs_document_has_the_fields_of_the_integration_and_the_whole_event() {
    assert_eq!(
        document(FULL, Shape::Ecs, Bodies::String),
        concat!(
            r#"{"@timestamp":"2026-11-20T06:24:22.439323Z","ecs":{"version":"8.11.0"},"#,
            r#""event":{"kind":"event","dataset":"kubernetes.audit_logs","action":"create","outcome":"failure"},"#,
            r#""user":{"name":"ada","id":"7"},"user_agent":{"original":"kubectl/v1"},"#,
            r#""source":{"ip":["192.0.2.7","10.0.0.1","2001:db8::1"]},"client":{"ip":"192.0.2.7"},"#,
            r#""data_stream":{"type":"logs","dataset":"kubernetes.audit_logs","namespace":"prod"},"#,
            r#""kubernetes":{"audit":{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","#,
            r#""auditID":"8b8398cd","stage":"ResponseComplete","#,
            r#""requestURI":"/api/v1/namespaces/a/pods?dryRun=All\u0026x=%3F?","#,
            r#""verb":"create","user":{"username":"ada","uid":"7","groups":["g1","g2"],"extra":{"oid":["v"]}},"#,
            r#""sourceIPs":["192.0.2.7","10.0.0.1","2001:db8::1"],"userAgent":"kubectl/v1","#,
            r#""objectRef":{"resource":"pods","namespace":"a","name":"p","uid":"u","apiGroup":"x.io","#,
            r#""apiVersion":"v1","resourceVersion":"12","subresource":"status"},"#,
            r#""responseStatus":{"metadata":{},"status":"Failure","message":"no \"p\"","reason":"Forbidden","#,
            r#""details":{"name":"p"},"code":403},"requestObject":"{\"a\":1.00,\"b\":\"\\u0041\"}","#,
            r#""responseObject":null,"requestReceivedTimestamp":"2026-11-20T06:24:22.400000Z","#,
            r#""stageTimestamp":"2026-11-20T06:24:22.439323Z","#,
            r#""annotations":{"authorization_k8s_io/decision":"forbid","plain":"1"},"more":1e400}}}"#,
        )
    );
}

#[test]
fn an_ocsf_document_has_every_member_at_its_place_or_in_unmapped() {
    assert_eq!(
        document(FULL, Shape::Ocsf, Bodies::Keep),
        concat!(
            r#"{"time_dt":"2026-11-20T06:24:22.439323Z","time":1795155862439,"#,
            r#""start_time_dt":"2026-11-20T06:24:22.400000Z","start_time":1795155862400,"#,
            r#""class_uid":6003,"category_uid":6,"activity_id":1,"type_uid":600301,"severity_id":1,"#,
            r#""message":"ResponseComplete","metadata":{"version":"1.5.0","profiles":["datetime"],"#,
            r#""product":{"name":"Kubernetes","vendor_name":"Kubernetes","version":"audit.k8s.io/v1"},"#,
            r#""log_level":"RequestResponse"},"api":{"operation":"create","request":{"uid":"8b8398cd"},"#,
            r#""version":"v1","group":{"name":"x.io"},"response":{"code":403,"message":"no \"p\"","#,
            r#""error":"Forbidden","error_message":"Failure"}},"#,
            r#""actor":{"user":{"name":"ada","uid":"7","groups":[{"name":"g1"},{"name":"g2"}]}},"#,
            r#""src_endpoint":{"ip":"192.0.2.7","intermediate_ips":["10.0.0.1","2001:db8::1"]},"#,
            r#""http_request":{"url":{"path":"/api/v1/namespaces/a/pods","query_string":"dryRun=All\u0026x=%3F?"},"#,
            r#""user_agent":"kubectl/v1"},"#,
            r#""resources":[{"name":"p","namespace":"a","uid":"u","version":"12","type":"pods"}],"#,
            r#""unmapped":{"kind":"Event","annotations":{"authorization.k8s.io/decision":"forbid","plain":"1"},"#,
            r#""more":1e400,"requestObject":{"a":1.00,"b":"\u0041"},"responseObject":null,"#,
            r#""user":{"extra":{"oid":["v"]}},"objectRef":{"subresource":"status"},"#,
            r#""responseStatus":{"metadata":{},"details":{"name":"p"}}}}"#,
        )
    );
    check(FULL);
    assert_all_is_there(FULL);
}

#[test]
fn an_event_that_lacks_everything_still_leaves() {
    assert_eq!(
        document("{}", Shape::Ecs, Bodies::String),
        concat!(
            r#"{"ecs":{"version":"8.11.0"},"event":{"kind":"event","dataset":"kubernetes.audit_logs"},"#,
            r#""data_stream":{"type":"logs","dataset":"kubernetes.audit_logs","namespace":"prod"},"#,
            r#""kubernetes":{"audit":{}}}"#
        )
    );
    assert_eq!(
        document(r#"{"user":{},"userAgent":"curl"}"#, Shape::Ocsf, Bodies::Keep),
        concat!(
            r#"{"class_uid":6003,"category_uid":6,"activity_id":99,"type_uid":600399,"severity_id":1,"#,
            r#""metadata":{"version":"1.5.0","profiles":["datetime"],"#,
            r#""product":{"name":"Kubernetes","vendor_name":"Kubernetes"}},"api":{"operation":"unknown"},"#,
            r#""actor":{"invoked_by":"curl"},"src_endpoint":{"name":"unknown"},"#,
            r#""http_request":{"user_agent":"curl"},"unmapped":{"user":{}}}"#
        )
    );
}

#[test]
fn an_outcome_is_the_decision_or_else_that_of_the_code() {
    let outcome = |event: &str| {
        let ecs = Tree::read(&document(event, Shape::Ecs, Bodies::Keep));
        ecs.at(&["event", "outcome"]).and_then(Tree::as_text).map(str::to_owned)
    };
    let decided = |decision: &str, code: &str| {
        format!(
            r#"{{"annotations":{{"authorization.k8s.io/decision":{decision}}},"responseStatus":{{"code":{code}}}}}"#
        )
    };
    for (decision, code, expected) in [
        (r#""allow""#, "500", Some("success")),
        (r#""forbid""#, "200", Some("failure")),
        (r#""f\u006frbid""#, "200", Some("failure")),
        (r#""maybe""#, "399", Some("success")),
        ("7", "400", Some("failure")),
        ("null", "1e2", None),
        ("null", "99999999999", None),
        ("null", r#""200""#, None),
    ] {
        assert_eq!(outcome(&decided(decision, code)).as_deref(), expected, "{decision} {code}");
    }
    assert_eq!(outcome(r#"{"responseStatus":{"code":201}}"#).as_deref(), Some("success"));
    assert_eq!(outcome(r#"{"annotations":[],"responseStatus":3}"#), None);
}

#[test]
fn keys_of_annotations_lose_their_dots_and_none_is_lost() {
    for (before, after) in [
        (r#"{"a.b":1}"#, r#"{"a_b":1}"#),
        (r#"{"a.b":1,"a_b":2}"#, r#"{"a.b":1,"a_b":2}"#),
        (r#"{"a_b":1,"a.b":2}"#, r#"{"a_b":1,"a.b":2}"#),
        (r#"{"a.b.c":1,"a.b_c":2,"a_b.c":3}"#, r#"{"a_b_c":1,"a.b_c":2,"a_b.c":3}"#),
        (r#"{"a.b":1,"a.b":2}"#, r#"{"a_b":1,"a.b":2}"#),
        (r#"{"a\u002eb":1,"x\"y.z":2}"#, r#"{"a_b":1,"x\"y_z":2}"#),
        (r#"{"\ud800.b":1,"c.d":2}"#, r#"{"\ud800.b":1,"c_d":2}"#),
        (r#"{"a\nb":1}"#, r#"{"a\nb":1}"#),
        (r#"{ "a.b" : "x.y" , ".":{"c.d":1}}"#, r#"{"a_b":"x.y","_":{"c.d":1}}"#),
        (r#"["a.b"]"#, r#"["a.b"]"#),
        ("{}", "{}"),
    ] {
        let event = format!(r#"{{"annotations":{before}}}"#);
        let ecs = document(&event, Shape::Ecs, Bodies::Keep);
        let end = format!(r#""kubernetes":{{"audit":{{"annotations":{after}}}}}}}"#);
        assert!(ecs.ends_with(&end), "{ecs}\n{end}");
    }
}

/// Clients choose the names in `extra` by their headers `Impersonate-Extra-…`.
#[test]
fn members_of_extra_with_unknown_names_are_one_string_in_every_store_of_fields() {
    let known = r#""authentication.kubernetes.io/credential-id":["JTI=1"],"oid":["2"]"#;
    for (before, after) in [
        (format!("{{{known}}}"), format!("{{{known}}}")),
        (format!(r#"{{"":["1"],{known}}}"#), format!(r#"{{{known},"other":"{{\"\":[\"1\"]}}"}}"#)),
        (
            r#"{"a":["x\"y"],"a.b":[ "1" ]}"#.to_owned(),
            r#"{"other":"{\"a\":[\"x\\\"y\"],\"a.b\":[ \"1\" ]}"}"#.to_owned(),
        ),
        (
            r#"{"oid.b":["1"],"\u006fid":["2"],"OID":["3"],"other":["4"]}"#.to_owned(),
            r#"{"\u006fid":["2"],"other":"{\"oid.b\":[\"1\"],\"OID\":[\"3\"],\"other\":[\"4\"]}"}"#
                .to_owned(),
        ),
        (r#"{"\ud800":["1"]}"#.to_owned(), r#"{"other":"{\"\\ud800\":[\"1\"]}"}"#.to_owned()),
        (r#"["a"]"#.to_owned(), r#"["a"]"#.to_owned()),
        ("null".to_owned(), "null".to_owned()),
        ("{}".to_owned(), "{}".to_owned()),
    ] {
        let event = |extra: &str| {
            format!(
                r#"{{"user":{{"username":"u","extra":{extra}}},"impersonatedUser":{{"username":"i","extra":{extra}}}}}"#
            )
        };
        let extra = format!(r#""extra":{after}"#);
        let (before, after) = (event(&before), event(&after));
        check(&before);
        assert_all_is_there(&before);
        assert_eq!(document(&before, Shape::Event, Bodies::Keep), before);
        assert_eq!(document(&before, Shape::Event, Bodies::String), after);
        let ecs = document(&before, Shape::Ecs, Bodies::Keep);
        assert_eq!(std::str::from_utf8(event_in(ecs.as_bytes())).unwrap(), after);
        let ocsf = document(&before, Shape::Ocsf, Bodies::Keep);
        assert_eq!(ocsf.matches(&extra).count(), 2, "{ocsf}");
    }
}

#[test]
fn bodies_become_strings_wherever_they_stand() {
    let formed = |event: &str, bodies| document(event, Shape::Event, bodies);
    for (event, as_string) in [
        (r#"{"a":1}"#, r#"{"a":1}"#),
        (r#"{"requestObject":{}}"#, r#"{"requestObject":"{}"}"#),
        (
            r#"{"requestObject":[1, "x\\"],"responseObject":"s","a":1}"#,
            r#"{"requestObject":"[1, \"x\\\\\"]","responseObject":"\"s\"","a":1}"#,
        ),
        (
            r#"{"a":1 , "request\u004fbject" : 1.50 , "b":2,"responseObject":null}"#,
            r#"{"a":1 , "request\u004fbject" : "1.50" , "b":2,"responseObject":null}"#,
        ),
        (
            "{ \"requestObject\":{\t\"a\":1},\"b\":{\"requestObject\":1},\"requestObject\":2 }",
            r#"{ "requestObject":"{\t\"a\":1}","b":{"requestObject":1},"requestObject":"2" }"#,
        ),
    ] {
        assert_eq!(formed(event, Bodies::Keep), event);
        assert_eq!(formed(event, Bodies::String), as_string);
        check(event);
    }
}

#[test]
fn members_of_the_wrong_type_stay_in_the_event_and_in_unmapped() {
    for event in [
        r#"{"user":7,"sourceIPs":"10.0.0.1","verb":["get"],"stageTimestamp":"yesterday"}"#,
        r#"{"user":{"username":1,"uid":"","groups":["a"]},"sourceIPs":["10.0.0.1",7]}"#,
        r#"{"user":{"username":"u","groups":["a",1]},"sourceIPs":["not an address"]}"#,
        r#"{"user":null,"sourceIPs":[],"objectRef":[],"responseStatus":"no","level":false}"#,
        r#"{"objectRef":{"resource":"pods","namespace":"n","name":"","apiVersion":{}}}"#,
        r#"{"responseStatus":{"code":2e2,"message":{},"reason":"","status":[]}}"#,
        r#"{"stageTimestamp":"2026-02-30T00:00:00Z","requestReceivedTimestamp":"2026-02-28T00:00:00Z"}"#,
        r#"{"requestURI":"","userAgent":"","auditID":"","stage":"","apiVersion":""}"#,
        r#"{"requestURI":"/a?"}"#,
        r#"{"requestURI":"?"}"#,
        r#"{"requestURI":"/a\u003fb=c\\?d\"?"}"#,
    ] {
        check(event);
        assert_all_is_there(event);
    }
    let ecs = document(
        r#"{"sourceIPs":["x",1,"fe80::1%eth0","\u0031.1.1.1","::1"],"stageTimestamp":"x","requestReceivedTimestamp":"2026-02-28T00:00:00Z"}"#,
        Shape::Ecs,
        Bodies::Keep,
    );
    assert!(
        ecs.contains(r#""source":{"ip":["\u0031.1.1.1","::1"]},"client":{"ip":"\u0031.1.1.1"}"#)
    );
    assert!(ecs.starts_with(r#"{"@timestamp":"2026-02-28T00:00:00Z","#), "{ecs}");
}

#[test]
fn the_first_of_two_equal_keys_counts() {
    let event = r#"{"verb":"get","v\u0065rb":"delete","user":{"username":"a","username":"b"},"x":1,"\u0078":2}"#;
    let ecs = document(event, Shape::Ecs, Bodies::Keep);
    assert!(ecs.contains(r#""action":"get""#) && ecs.contains(r#""user":{"name":"a"}"#), "{ecs}");
    let ocsf = document(event, Shape::Ocsf, Bodies::Keep);
    assert!(ocsf.contains(r#""activity_id":2"#) && ocsf.contains(r#""name":"a""#), "{ocsf}");
    assert!(ocsf.ends_with(r#""unmapped":{"x":1}}"#), "{ocsf}");
    check(event);
}

#[test]
fn a_document_says_its_time_first_and_an_event_does_not() {
    let time = |document: &str| time_of(document.as_bytes()).map(<[u8]>::to_vec);
    let own = b"2026-11-20T06:24:22.439323Z".to_vec();
    assert_eq!(time(&document(FULL, Shape::Ecs, Bodies::Keep)), Some(own.clone()));
    assert_eq!(time(&document(FULL, Shape::Ocsf, Bodies::Keep)), Some(own));
    for other in [FULL, "{}", r#"{"@timestamp":"x"}"#, r#"{"@timestamp":"2026-11-20T06:24:22Z"#] {
        assert_eq!(time(other), None, "{other}");
    }
    assert!(has_timestamp(document(FULL, Shape::Ecs, Bodies::Keep).as_bytes()));
    assert!(!has_timestamp(document("{}", Shape::Ecs, Bodies::Keep).as_bytes()));
}

#[test]
fn the_event_and_its_id_are_found_in_a_document_whatever_its_sender_wrote() {
    let trap = r#""kubernetes":{"audit":{"auditID":"trap"}}"#;
    let text = trap.replace('"', "\\\"");
    for event in [
        FULL.to_owned(),
        format!(r#"{{"auditID":"own","userAgent":"{text}","verb":"{text}",{trap}}}"#),
        format!(r#"{{{trap},"user":{{"username":"{text}",{trap}}},"auditID":"own"}}"#),
        format!(r#"{{"sourceIPs":["{text}"],"auditID":"own","requestObject":{{{trap}}}}}"#),
    ] {
        let id = scan::member(event.as_bytes(), "auditID");
        let ecs = document(&event, Shape::Ecs, Bodies::Keep);
        let inner = event.replace("authorization.k8s.io", "authorization_k8s_io");
        assert_eq!(String::from_utf8_lossy(event_in(ecs.as_bytes())), inner);
        for shape in SHAPES {
            assert_eq!(audit_id(document(&event, shape, Bodies::Keep).as_bytes()), id);
        }
        assert_eq!(event_in(event.as_bytes()), event.as_bytes());
    }
    for shape in SHAPES {
        assert_eq!(audit_id(document("{}", shape, Bodies::Keep).as_bytes()), None);
    }
}

#[test]
fn an_index_of_three_parts_is_a_data_stream() {
    let stream = |kind: &str, dataset: &str, namespace: &str| {
        let [kind, dataset, namespace] = [kind, dataset, namespace].map(str::to_owned);
        Some(DataStream { kind, dataset, namespace })
    };
    assert_eq!(
        DataStream::of("logs-kubernetes.audit_logs-default"),
        stream("logs", "kubernetes.audit_logs", "default")
    );
    for other in ["audit", "kube-audit", "a-b-c-d", "logs--default", "-a-b", "a-b-", ""] {
        assert_eq!(DataStream::of(other), None, "{other}");
    }
}

/// kube-apiserver takes bodies of 10,000 levels.
///
/// Method: a stack on which a call for each level has no room.
#[test]
fn an_event_of_ten_thousand_levels_gets_every_form() {
    let stack = std::thread::Builder::new().stack_size(256 * 1024);
    let test = || {
        let lists = format!("{}{}", "[".repeat(10_005), "]".repeat(10_005));
        let objects = format!("{}1{}", r#"{"a.b":"#.repeat(10_005), "}".repeat(10_005));
        for deep in [lists, objects] {
            for place in [
                r#""requestObject":D"#,
                r#""user":{"username":"u","uid":D,"extra":{"oid":D,"x":D}},"impersonatedUser":{"extra":D}"#,
                r#""annotations":{"a.b":D},"responseStatus":{"code":200,"details":D}"#,
                r#""annotations":D,"objectRef":{"name":"n","x":D},"sourceIPs":D,"verb":D"#,
                r#""objectRef":D,"responseStatus":D,"user":D,"more":D"#,
            ] {
                let event = format!(
                    r#"{{"auditID":"a",{},"stageTimestamp":"2026-11-20T06:24:22.439323Z"}}"#,
                    place.replace('D', &deep)
                );
                for (shape, bodies) in SHAPES.into_iter().flat_map(|it| BODIES.map(|of| (it, of))) {
                    let document = document(&event, shape, bodies);
                    let document = document.as_bytes();
                    assert_eq!(audit_id(document), Some(br#""a""#.as_slice()));
                    assert!(shape == Shape::Event || time_of(document).is_some());
                }
            }
        }
    };
    stack.spawn(test).unwrap().join().unwrap();
}

#[test]
fn a_large_event_costs_no_more_than_a_few_times_its_length() {
    // Each of these would take hours if names were compared with all names before them.
    let members = |of: &dyn Fn(usize) -> String| (0..200_000).map(of).collect::<Vec<_>>().join(",");
    let dotted = members(&|index| format!(r#""a.{index}":1"#));
    let equal = members(&|index| format!(r#""{}":1"#, if index % 2 == 0 { "a.b" } else { "a_b" }));
    for event in [
        format!(r#"{{"annotations":{{{dotted}}}}}"#),
        format!(r#"{{"annotations":{{{equal}}}}}"#),
        format!("{{{dotted}}}"),
        format!(r#"{{"user":{{{dotted}}}}}"#),
        format!(r#"{{"user":{{"extra":{{{dotted}}}}}}}"#),
        format!(r#"{{"user":{{{}}}}}"#, members(&|_| r#""extra":{"":1}"#.to_owned())),
        format!("{{{}}}", members(&|_| r#""requestObject":1"#.to_owned())),
        format!(r#"{{"sourceIPs":[{}"::1"]}}"#, r#""::1","#.repeat(200_000)),
        format!(r#"{{"x":{}{}}}"#, "[".repeat(100), "]".repeat(100)),
    ] {
        for shape in SHAPES {
            for bodies in BODIES {
                document(&event, shape, bodies);
            }
        }
    }
}

/// Returns random keys, with escapes too; the keys of events are more frequent.
fn key() -> impl Strategy<Value = String> {
    let known = list(
        r"
kind|apiVersion|level|auditID|stage|requestURI|verb|user|sourceIPs|userAgent|objectRef
responseStatus|requestObject|responseObject|requestReceivedTimestamp|stageTimestamp|annotations
username|uid|groups|code|message|reason|status|name|namespace|resource|apiGroup|resourceVersion
authorization.k8s.io/decision
",
    );
    let strange = list(
        r#"
|.|a.b|a_b|a\u002eb|oid|\u006fid|extra|impersonatedUser|\u0073tage|v\u0065rb|\ud800|\ud83d\ude00|\"|\\|ü|\n|@timestamp|unmapped
kubernetes
"#,
    );
    prop_oneof![
        4 => prop::sample::select(known).prop_map(str::to_owned),
        2 => prop::sample::select(strange).prop_map(str::to_owned),
    ]
}

/// Returns random JSON values, with and without white space between their tokens.
fn value() -> impl Strategy<Value = String> {
    let plain = list(
        r#"
null|true|false|0|-0.0|1e400|403|200|12345678901234567890123|""|"get"|"allow"|"forbid"|"10.0.0.1"
"::1"|"\ud800"|"/a?b=\u0026c"|"\\"|"\u002e"|"ü\""|{}|[]|["10.0.0.1"]|"2026-11-20T06:24:22.439323Z"
"2026-11-20T06:24:22+25:00"
"#,
    );
    let leaf = prop::sample::select(plain).prop_map(str::to_owned);
    leaf.prop_recursive(5, 40, 6, |inner| {
        let space = || prop::sample::select(vec!["", "", " ", "\t", "\r"]);
        let member = (key(), space(), inner.clone())
            .prop_map(|(key, space, value)| format!("{space}\"{key}\"{space}:{value}{space}"));
        prop_oneof![
            prop::collection::vec(member, 0..6).prop_map(|all| format!("{{{}}}", all.join(","))),
            (prop::collection::vec(inner, 0..6), space())
                .prop_map(|(all, space)| format!("[{space}{}]", all.join(","))),
        ]
    })
}

/// Adds the fields that Elasticsearch makes of a document: the path of each name, which a dot
/// divides, with `true` for an object.
fn fields(value: &Tree, path: &str, found: &mut BTreeMap<String, bool>) {
    match value {
        Tree::Object(members) => {
            for (key, value) in members {
                assert!(
                    key.split('.').all(|part| !part.trim().is_empty()),
                    "a name of dots: {key:?}"
                );
                let mut path = path.to_owned();
                for part in key.split('.') {
                    if !path.is_empty() {
                        let was_object = found.insert(path.clone(), true);
                        assert_ne!(was_object, Some(false), "{path} is a value and an object");
                        path.push('.');
                    }
                    path += part;
                }
                fields(value, &path, found);
            }
        }
        Tree::Array(values) => values.iter().for_each(|value| fields(value, path, found)),
        Tree::Text(_) | Tree::Plain(_) => {
            let was_object = found.insert(path.to_owned(), false);
            assert_ne!(was_object, Some(true), "{path} is an object and a value");
        }
    }
}

proptest! {
    /// A client chooses the names of `extra` in many events of one index. None may be refused, and
    /// the names must not fill the index's limit of fields.
    #[test]
    fn no_names_of_extra_cost_a_field_or_a_conflict(
        names in prop::collection::vec(prop_oneof![
            4 => "[a.]{0,4}",
            1 => prop::sample::select(vec!["", "arn", "arn.x", "authentication", "sigs", "scopes",
                "authentication.kubernetes", "oid", "other", "other.x", "principalId", " "])
                .prop_map(str::to_owned),
            1 => "\\PC{0,8}",
        ], 1..40),
        shape in prop::sample::select(SHAPES.to_vec()),
    ) {
        let mut found = BTreeMap::new();
        for name in &names {
            let name = serde_json::Value::from(name.as_str());
            let event = format!(
                r#"{{"user":{{"username":"u","extra":{{{name}:["v"]}}}},"impersonatedUser":{{"username":"i","extra":{{{name}:["v"]}}}}}}"#
            );
            fields(&Tree::read(&document(&event, shape, Bodies::String)), "", &mut found);
        }
        prop_assert!(found.len() < 60, "{found:?}");
    }

    #[test]
    fn any_object_becomes_one_valid_document(
        members in prop::collection::vec((key(), value()), 0..24),
    ) {
        let members: Vec<_> =
            members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        check(&format!("{{{}}}", members.join(",")));
    }

    #[test]
    fn a_recorded_event_with_other_values_is_still_whole(
        at in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..4),
    ) {
        static EVENTS: LazyLock<Vec<String>> = LazyLock::new(recorded);
        let event = at.get(&EVENTS);
        let Pairs(mut pairs) = serde_json::from_str(event).unwrap();
        for (at, value) in changes {
            let at = at.index(pairs.len());
            pairs[at].1 = RawValue::from_string(value.trim().to_owned()).unwrap();
        }
        let members: Vec<_> =
            pairs.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        check(&format!("{{{}}}", members.join(",")));
    }
}
