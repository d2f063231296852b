//! Tests of each change, on events that are written out here and on recorded events.

use super::*;
use audit::request::request;
use testing::{Failing, corpus, list, marked, seeds};

mod cut;
mod hostile;
mod look;
mod mutated;
mod oracle;
mod random;
pub(crate) mod tree;

fn rules(rules: &[(&str, &str, With)]) -> Redaction {
    let rules: Vec<_> = rules
        .iter()
        .map(|(resource, field, with)| Rule {
            resources: resource.split_whitespace().map(str::to_owned).collect(),
            fields: field.split_whitespace().map(str::to_owned).collect(),
            with: *with,
        })
        .collect();
    Redaction::new(&rules).unwrap()
}

/// Makes the change. Returns the changed event, or `None` if nothing changed, and the kinds of
/// changes. Asserts that the result is still one event.
fn changed(event: &str, change: &Change<'_>) -> (Option<String>, Done) {
    let is_event = |text: &[u8]| audit::decode(text.to_vec()).map(|batch| batch.events) == Ok(1);
    assert!(is_event(event.as_bytes()), "{event}");
    let mut out = b"before".to_vec();
    let done = apply(event.as_bytes(), &request(event.as_bytes()), 0, change, &mut out);
    let out = String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned();
    if out.is_empty() {
        assert!(done == Done::default() || done.is_too_large, "{done:?}: {event}");
        return (None, done);
    }
    assert!(done != Done::default(), "{event}");
    assert!(is_event(out.as_bytes()), "{out}");
    (Some(out), done)
}

/// Calls `is_one` twenty times for each seed, and returns how often the result was `true`.
fn times(is_one: impl Fn(&mut fastrand::Rng) -> bool) -> usize {
    let of_seed = |seed| {
        let _failing = Failing(seed);
        let rng = &mut fastrand::Rng::with_seed(seed);
        (0..20).filter(|_| is_one(rng)).count()
    };
    seeds(80).into_iter().map(of_seed).sum()
}

/// Returns an event about this resource, with `rest` added to its members.
fn event(resource: &str, rest: &str) -> String {
    let parts: Vec<_> = resource.split('/').collect();
    let (group, resource, sub) = match *parts {
        [resource] => ("", resource, ""),
        [group, resource] => (group, resource, ""),
        [group, resource, sub] => (group, resource, sub),
        _ => panic!("{resource}"),
    };
    format!(
        r#"{{"level":"RequestResponse","auditID":"a","stage":"ResponseComplete","objectRef":{{"apiGroup":"{group}","resource":"{resource}","subresource":"{sub}"}}{rest}}}"#
    )
}

/// Asserts that `before`, as part of an event about this resource, becomes `after`, and that a
/// second change does nothing more.
fn becomes(resource: &str, change: &Change<'_>, before: &str, after: &str) {
    let whole = event(resource, before);
    let (out, done) = changed(&whole, change);
    assert_eq!(out.clone().unwrap_or(whole), event(resource, after), "of {before}");
    assert_eq!(out.is_some(), before != after);
    if let Some(out) = out
        && change.redaction.is_some()
        && !out.contains("sha256:")
    {
        assert_eq!(changed(&out, change).0, None, "again: {out}");
    }
    assert_eq!(done.redacted, change.redaction.is_some() && before != after, "{before}");
}

#[test]
fn lowering_takes_bodies_away_and_writes_the_level() {
    let full = r#"{"level":"RequestResponse","auditID":"a","requestObject":{"a":1},"stage":"Panic","responseObject":[1],"x":1e400}"#;
    let lower = |level, event: &str| {
        let (out, done) = changed(event, &Change { level: Some(level), ..Change::default() });
        assert_eq!(done, Done { lowered: out.is_some(), ..Done::default() });
        out
    };
    assert_eq!(
        lower(Level::Metadata, full).unwrap(),
        r#"{"level":"Metadata","auditID":"a","stage":"Panic","x":1e400}"#
    );
    assert_eq!(
        lower(Level::Request, full).unwrap(),
        r#"{"level":"Request","auditID":"a","requestObject":{"a":1},"stage":"Panic","x":1e400}"#
    );
    for (level, row) in [
        // A level is never raised. Bodies that the level does not allow are removed even if the
        // level stays.
        (Level::Request, r#"{"level":"Metadata""#),
        (Level::Metadata, r#"{"level":"None""#),
        (Level::Request, r#"{"level":"Request""#),
        (Level::Metadata, r#"{"level":"Metadata"«,"requestObject":1»"#),
        // An unknown level may be higher than the wanted one, so it is lowered.
        (Level::Request, r#"{"level":"«Loud→Request»""#),
        (Level::Metadata, r#"{"level":«7→"Metadata"»"#),
        // Duplicate keys, escapes and white space.
        (
            Level::Metadata,
            r#"{ "level" : "«Request→Metadata»" , "x":1«,"requestObject":1 , "request\u004fbject" : {}»"#,
        ),
        (Level::Metadata, r#"{"level":"None","l\u0065vel":"«R\u0065quest→Metadata»""#),
        (Level::Metadata, r#"{"l\u0065vel":"M\u0065tadata""#),
        (Level::Metadata, r#"{«"responseObject":{},»"x":1"#),
    ] {
        let (before, after) = marked(row);
        let whole = |part: &str| format!(r#"{part},"auditID":"a","stage":"Panic"}}"#);
        let expected = (before != after).then(|| whole(&after));
        assert_eq!(lower(level, &whole(&before)), expected);
    }
    let annotated = |patch: &str| {
        format!(
            r#"{{"auditID":"a","stage":"Panic","annotations":{{"mutation.webhook.admission.k8s.io/round_0_index_1":"m"{patch}}},"level":"Metadata"}}"#
        )
    };
    let patched = annotated(r#","patch.webhook.admission.k8s.io/round_0_index_1":"p""#);
    assert_eq!(lower(Level::Metadata, &patched).unwrap(), annotated(""));
    assert_eq!(lower(Level::Request, &patched), None);
    // Without bodies, the level stays.
    let change = Change { without_bodies: true, ..Change::default() };
    let (out, done) = changed(&patched.replacen('{', "{\"requestObject\":1,", 1), &change);
    assert_eq!((out, done.lowered), (Some(annotated("")), true));
    assert_eq!(changed(&annotated(""), &change), (None, Done::default()));
    let last = r#"{"auditID":"a","stage":"Panic" , "requestObject":1 ,"responseObject":2 }"#;
    assert_eq!(lower(Level::Metadata, last).unwrap(), r#"{"auditID":"a","stage":"Panic" }"#);
}

#[test]
fn managed_fields_are_left_out_as_kube_apiserver_does() {
    let change = Change { omit_managed_fields: true, ..Change::default() };
    for row in [
        r#","requestObject":{"metadata":{"name":"n"«,"managedFields":[{}]»,"uid":"u"}}"#,
        r#","responseObject":{"items":[{"metadata":{«"managedFields":[]»}},{"metadata":{«"managed\u0046ields":[],»"a":1}}]}"#,
        r#","responseObject":{"kind":"Table","rows":[{"cells":[],"object":{"metadata":{«"managedFields":[]»}}}]}"#,
        r#","verb":"patch","requestObject":{"metadata":{"managedFields":[]}}"#,
        r#","requestObject":{"spec":{"metadata":{"managedFields":[]}}}"#,
        r#","requestObject":{"metadata":"managedFields"}"#,
        r#","x":{"metadata":{"managedFields":[]}}"#,
    ] {
        let (before, after) = marked(row);
        let (out, done) = changed(&event("pods", &before), &change);
        assert_eq!(out, (before != after).then(|| event("pods", &after)), "{before}");
        assert_eq!(done.lowered, before != after);
    }
}

#[test]
fn fields_go_by_rules_however_they_are_written() {
    let redaction = rules(&[
        ("configmaps", "requestObject.data.* requestObject.spec.password", With::Drop),
        ("apps/*", "responseObject.spec.*.env[*].value", With::Drop),
        ("", "user.extra.token userAgent", With::Drop),
    ]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    for row in [
        r#"configmaps ,"requestObject":{"data":{«"a":"s","b":{}»},"k":1}"#,
        r#"configmaps ,"requestObject":{"d\u0061ta":{«"a":"s"»},"data":{«"b":"s"»}}"#,
        r#"configmaps ,"requestObject":{"x":1},"r\u0065questObject":{"spec":{«"password":"s",»"u":1}}"#,
        r#"configmaps ,"requestObject":{"items":[{"data":{«"a":"s"»}},{"spec":{«"password":1»}}]}"#,
        r#"configmaps ,"requestObject":{"rows":[{"object":{"data":{«"a":"s"»}}}]}"#,
        r#"configmaps ,"requestObject":{"metadata":{"annotations":{"a":"b"«,"kubectl.kubernetes.io/last-applied-configuration":"s"»}}}"#,
        // Other members of the object repeat the value, and go with it.
        r#"configmaps ,"requestObject":{"rows":[{«"cells":["s"],»"object":{"metadata":{"name":"n"«,"managedFields":[{"fieldsV1":{"f:data":{"v:\"s\"":{}}}}]»}}}]}"#,
        r#"configmaps ,"requestObject":{"spec":{"user":"u"«,"$setElementOrder/password":["s"],"$deleteFromPrimitiveList/password":["s"]»}«,"$setElementOrder/data":["s"]»}"#,
        r#"configmaps ,"requestObject":{"spec":{"$setElementOrder/others":["v"]}}"#,
        r#"configmaps ,"responseStatus":{"reason":"Conflict"«,"message":"s"»,"details":{"name":"n"«,"causes":[{"message":"s"}]»},"code":409}"#,
        // Another value where the path expects an object.
        r#"configmaps «,"requestObject":"s"»,"x":1"#,
        r#"configmaps ,"requestObject":{«"data":"s"»}"#,
        r#"configmaps ,"requestObject":{"data":[«"s",{}»]}"#,
        r#"configmaps ,"requestObject":{«"spec":[{"password":"s"}]»}"#,
        r#"configmaps ,"requestObject":{"spec":null,"data":null}"#,
        // Rules choose events by their resource, and paths choose the body.
        r#"pods ,"requestObject":{"data":{"a":"s"}}"#,
        r#"x.example.com/configmaps ,"requestObject":{"data":{"a":"s"}}"#,
        r#"configmaps ,"responseObject":{"data":{"a":"s"}}"#,
        r#"/configmaps/status ,"requestObject":{"data":{«"a":"s"»}}"#,
        r#"apps/deployments ,"responseObject":{"spec":{"c":{"env":[{"n":1«,"value":"s"»},"t",{«"value":1»}]},"kind":"x"}}"#,
        r#"pods «,"userAgent":"s"»,"user":{"username":"u","extra":{«"token":["s"]»}}"#,
        // The server's message quotes the wrong value, unless the reason rules that out.
        r#"configmaps ,"responseStatus":{"reason":"Invalid"«,"message":"s"»,"details":{"name":"n"«,"causes":[{"message":"s"}]»},"code":422}"#,
        r#"configmaps ,"responseObject":{"kind":"Status"«,"message":"s"»,"code":400}"#,
        r#"configmaps ,"responseStatus":{"reason":"NotFound","message":"no n","code":404}"#,
        // Admission policies and webhooks may quote the value whatever reason they give.
        r#"configmaps ,"responseStatus":{"reason":"Forbidden"«,"message":"s"»,"code":403}"#,
        r#"configmaps ,"responseStatus":{"reason":"Unauthorized"«,"message":"s"»,"code":401}"#,
        r#"configmaps ,"responseStatus":{«"message":"admission \u0077ebhook \"w\" denied the request: s",»"reason":"NotFound"}"#,
        r#"pods ,"responseStatus":{"reason":"Invalid","message":"s"}"#,
    ] {
        let (resource, text) = row.split_once(' ').unwrap();
        let (before, after) = marked(text);
        becomes(resource, &change, &before, &after);
    }
    // The event names two objects, so all rules apply, and all bodies are dropped.
    let twice = event(
        "pods",
        r#","objectRef":{"resource":"configmaps"},"requestObject":{"data":{"a":"s"}}"#,
    );
    assert_eq!(
        changed(&twice, &change).0.unwrap(),
        event("pods", r#","objectRef":{"resource":"configmaps"}"#)
    );
}

#[test]
fn hashes_take_the_place_of_values() {
    let redaction = rules(&[
        ("pods", "requestObject.a requestURI", With::Sha256),
        ("pods", "requestObject.a.b", With::Drop),
    ]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    // The hash comes from `printf abc | sha256sum`.
    let abc = r#""sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad""#;
    becomes("pods", &change, r#","requestURI":"a\u0062c""#, &format!(r#","requestURI":{abc}"#));
    becomes("pods", &change, r#","requestURI":"abc""#, &format!(r#","requestURI":{abc}"#));
    // A path into a value that is hashed as a whole, and a path into a text.
    let redacted =
        changed(&event("pods", r#","requestObject":{"a":{"b":"s"},"c":1}"#), &change).0.unwrap();
    assert!(
        redacted.contains(r#""requestObject":{"a":"sha256:"#) && redacted.contains(r#"","c":1}"#),
        "{redacted}"
    );
    becomes("pods", &change, r#","requestObject":{"a":"s","c":1}"#, r#","requestObject":{"c":1}"#);
}

#[test]
fn json_patches_are_redacted_by_what_they_are_about() {
    let redaction = rules(&[(
        "configmaps",
        "requestObject.data.password requestObject.spec[\"a/b~\"].*",
        With::Drop,
    )]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    for row in [
        r#"{"op":"replace","path":"/data/password"«,"value":"s"»}"#,
        r#"{«"value":"s",»"op":"replace","path":"\/data\u002fpassword"}"#,
        // Operations on a value that holds the path's value, or on a part of it.
        r#"{"op":"add","path":"/data"«,"value":{"password":"s"}»}"#,
        r#"{"op":"add","path":""«,"value":{"data":{"password":"s"}}»}"#,
        r#"{"op":"add","path":"/data/password/x/0"«,"value":"s"»}"#,
        r#"{"op":"add","path":"/spec/a~1b~0/c"«,"value":"s"»}"#,
        // Operations with several paths, or without a path that can be read.
        r#"{"op":"add","path":"/x","path":"/data"«,"value":"s"»}"#,
        r#"{"op":"copy","from":"/data/password","path":"/x"«,"value":"s"»}"#,
        r#"{"op":"add"«,"value":"s"»}"#,
        r#"{"op":"add"«,"path":["s"],"value":"s"»}"#,
        r#"{"op":"add","path":"data"«,"value":"s","x":1»}"#,
        r#"«"s"»"#,
        r#"«["s"]»"#,
        r#"{"op":"add","path":"/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"«,"value":"s"»}"#,
        // Operations on other values.
        r#"{"op":"add","path":"/data/user","value":"v"}"#,
        r#"{"op":"add","path":"/spec/ab/c","value":"v"}"#,
    ] {
        let (before, after) = marked(row);
        let whole = |operation: &str| format!(r#","requestObject":[{operation}]"#);
        becomes("configmaps", &change, &whole(&before), &whole(&after));
    }
}

#[test]
fn secrets_and_tokens_never_leave_without_any_rule() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    for row in [
        r#"{"kind":"Secret","data":{«"a":"s"»},"stringData":{«"b":"s"»},"type":"Opaque"}"#,
        r#"{"d\u0061ta":{«"a":"s"»},"metadata":{"annotations":{«"x":"y","kubectl.kubernetes.io/last-applied-configur\u0061tion":"s","kapp.k14s.io/original":"s"»}}}"#,
        r#"{"metadata":{"name":"n","annotations":{«"openshift.io/token-secret.value":"s"»}},"type":"kubernetes.io/dockercfg"}"#,
        r#"{"metadata":{«"annotations":"s",»"uid":"u"}}"#,
        r#"{"kind":"SecretList","items":[{"data":{«"a":"s"»}},{"data":{«"b":"s","c":"s"»},"metadata":{"annotations":{«"kapp.k14s.io/original":"s"»}}}]}"#,
        r#"{"kind":"Secret"«,"data":"s"»}"#,
        r#"{"kind":"Status","status":"Failure","reason":"Invalid"«,"message":"map[data:s]"»}"#,
        r#"{"kind":"Status","status":"Success","details":{"name":"n"}}"#,
        r#"{"kind":"DeleteOptions","dryRun":["All"],"gracePeriodSeconds":0}"#,
        "null",
        // A body of an unknown shape is dropped.
        r#"«[{"op":"add","path":"/data/a","value":"s"}]»"#,
        r#"«"s"»"#,
        "«7»",
        r#"«{"kind":"Table","rows":[]}»"#,
        r#"«{"kind":"List","items":[]}»"#,
        r#"«{"kind":"Secret","kind":"Pod","spec":{}}»"#,
        r#"«{"kind":7}»"#,
        r#"«{"$patch":"replace","data":{"a":"s"}}»"#,
        r#"«{"Data":{"a":"s"}}»"#,
        r#"«{"type":{"a":"s"}}»"#,
        r#"{«"message":"s"»}"#,
        r#"«{"items":[{"kind":"Status","message":"s"}]}»"#,
        r#"«{"items":["s"]}»"#,
        r#"«{"items":[{"items":[{"data":{"a":"s"}}]}]}»"#,
    ] {
        let (before, after) = marked(row);
        for body in ["requestObject", "responseObject"] {
            let whole = |value: &str| {
                if value.is_empty() { String::new() } else { format!(r#","{body}":{value}"#) }
            };
            for resource in ["secrets", "image.openshift.io/imagestreams/secrets"] {
                becomes(resource, &change, &whole(&before), &whole(&after));
            }
            becomes("/imagestreams/secrets", &change, &whole(&before), &whole(&after));
            let body_and_more = format!("{},\"x\":1", whole(&before));
            becomes("secrets", &change, &body_and_more, &format!("{},\"x\":1", whole(&after)));
            becomes("pods", &change, &whole(&before), &whole(&before));
        }
    }
    for resource in [
        "/serviceaccounts/token",
        "authentication.k8s.io/tokenreviews",
        "oauth.openshift.io/oauthaccesstokens",
        "oauth.openshift.io/oauthauthorizetokens",
        "oauthaccesstokens",
    ] {
        becomes(
            resource,
            &change,
            r#","requestObject":{"spec":{}},"responseObject":{"status":{"token":"s"}},"x":1"#,
            r#","x":1"#,
        );
    }
    becomes(
        "serviceaccounts",
        &change,
        r#","requestObject":{"spec":{}}"#,
        r#","requestObject":{"spec":{}}"#,
    );
}

#[test]
fn the_variables_of_ephemeral_containers_lose_their_values() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    for row in [
        r#"{"spec":{"ephemeralContainers":[{"name":"d","env":[{"name":"A"«,"value":"s"»},{"name":"B","valueFrom":{}}],"command":["sh"]}]}}"#,
        r#"{"spec":{"$setElementOrder/ephemeralContainers":[{"name":"d"}],"ephemeralContainers":[{"\u0065nv":[{«"value":"s"»}]}]}}"#,
        r#"{"kind":"Pod","metadata":{"annotations":{«"kubectl.kubernetes.io/last-applied-configuration":"s"»}},"spec":{"containers":[{"env":[{"name":"A"«,"value":"s"»}]}],"initContainers":[{"env":[{"name":"A"«,"value":"s"»}]}]}}"#,
        r#"{"kind":"EphemeralContainers","ephemeralContainers":[{"env":[{"name":"A"«,"value":"s"»}]}]}"#,
        r#"[{"op":"add","path":"/spec/ephemeralContainers/-"«,"value":{"env":[{"value":"s"}]}»},{"op":"remove","path":"/metadata/x"}]"#,
    ] {
        let (before, after) = marked(row);
        for body in ["requestObject", "responseObject"] {
            let [before, after] =
                [&before, &after].map(|value| format!(r#","{body}":{value},"x":1"#));
            becomes("/pods/ephemeralcontainers", &change, &before, &after);
            becomes("pods", &change, &before, &before);
        }
    }
}

/// The value of an annotation that tells that a webhook has changed the object.
const MUTATION: &str =
    r#""{\"configuration\":\"c\",\"webhook\":\"w.example.com\",\"mutated\":true}""#;

/// Annotations of kube-apiserver and of OpenShift's OAuth server, with values as they write them.
const OF_THE_SERVER: [(&str, &str); 20] = [
    ("apiserver.k8s.io/unsafe-delete-ignore-read-error", r#""""#),
    ("apiserver.latency.k8s.io/etcd", r#""1.234567ms""#),
    ("apiserver.latency.k8s.io/total", r#""1h2m3.5s""#),
    ("apiserver.latency.k8s.io/apf-queue-wait", r#""500\u00b5s""#),
    ("audit.k8s.io/truncated", r#""true""#),
    ("authentication.k8s.io/legacy-token", r#""system:serviceaccount:ns:name""#),
    ("authentication.k8s.io/legacy-token-invalidated", r#""name-token-x/ns""#),
    (
        "authentication.k8s.io/stale-token",
        r#""subject: system:serviceaccount:ns:name, seconds after warning threshold: 17""#,
    ),
    ("authentication.kubernetes.io/issued-credential-id", r#""JTI=087e5e8d-ad7e-4652""#),
    ("authentication.openshift.io/decision", r#""deny""#),
    ("authentication.openshift.io/username", r#""Jane@example.com""#),
    ("authorization.k8s.io/decision", r#""forbid""#),
    ("authorization.k8s.io/reason", r#""RBAC: allowed by \"x\" of User \"y z\"""#),
    ("failed-open.mutation.webhook.admission.k8s.io/round_10_index_2", r#""w.example.com""#),
    ("failed-open.validating.webhook.admission.k8s.io/round_0_index_12", r#""w.example.com""#),
    ("k8s.io/deprecated", r#""true""#),
    ("k8s.io/removed-release", r#""1.22""#),
    ("mutation.webhook.admission.k8s.io/round_0_index_0", MUTATION),
    ("pod-security.kubernetes.io/enforce-policy", r#""privileged:latest""#),
    ("pod-security.kubernetes.io/exempt", r#""namespace""#),
];

#[test]
fn only_an_annotation_with_a_whole_name_of_the_servers_stays_beside_a_secret() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    let annotations = |all: &[(&str, &str)]| {
        let all: Vec<_> = all.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!(r#","annotations":{{{}}}"#, all.join(","))
    };
    let own = annotations(&OF_THE_SERVER);
    becomes("secrets", &change, &own, &own);
    // A policy writes its name, a slash and a key, and its name can be any that is before a slash.
    for (name, _) in OF_THE_SERVER {
        let (policy, key) = name.split_once('/').unwrap();
        for key in ["leak", &format!("{key}_"), &format!("2{key}"), &key.to_uppercase()] {
            let name = format!("{policy}/{key}");
            let with = [&[(&*name, "\"hunter\"")], &OF_THE_SERVER[..]].concat();
            becomes("secrets", &change, &annotations(&with), &own);
        }
    }
    for name in [
        "kube-audit-forwarder/leak",
        "missing-san.invalid-cert.kubernetes.io/leak",
        "insecure-sha1.invalid-cert.kubernetes.io/leak",
        "mutation.webhook.admission.k8s.io/round__index_0",
        "mutation.webhook.admission.k8s.io/round_0_index_",
        "mutation.webhook.admission.k8s.io/round_0_index_0_leak",
        "validating.webhook.admission.k8s.io/round_0_index_0",
        "authorization.k8s.io",
        "",
    ] {
        let with = [&OF_THE_SERVER[..], &[(name, "\"hunter\"")]].concat();
        becomes("secrets", &change, &annotations(&with), &own);
        becomes("pods", &change, &annotations(&with), &annotations(&with));
    }
}

/// kube-apiserver keeps the first value of an annotation, so a policy can choose the value under a
/// name that kube-apiserver has not used before admission.
#[test]
fn a_text_of_a_policys_under_a_name_of_the_servers_removes_all_annotations_beside_a_secret() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    for (name, _) in OF_THE_SERVER {
        if name == "authorization.k8s.io/reason" {
            continue;
        }
        let escaped = name.replacen('i', "\\u0069", 1);
        for value in [r#""c3Nz+aGhoaA==""#, r#""hunter 2!""#, r#"["hunter"]"#, r#"{"a":"b"}"#] {
            for name in [name, &*escaped] {
                let before = format!(
                    r#","annotations":{{"authorization.k8s.io/decision":"allow","{name}":{value}}}"#
                );
                becomes("secrets", &change, &before, r#","annotations":{}"#);
                becomes("pods", &change, &before, &before);
            }
        }
    }
}

#[test]
fn what_admission_records_of_a_body_goes_with_what_is_secret_in_it() {
    let redaction = rules(&[
        ("configmaps", "requestObject.data", With::Sha256),
        ("pods", "userAgent", With::Drop),
    ]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    let annotations = |more: &str| {
        format!(
            r#","annotations":{{"mutation.webhook.admission.k8s.io/round_0_index_0":{MUTATION},"authorization.k8s.io/decision":"allow"{more}}}"#
        )
    };
    let recorded = annotations(
        r#","p\u0061tch.webhook.admission.k8s.io/round_0_index_0":"{\"patch\":[]}","validation.policy.admission.k8s.io/validation_failure":"s","patch.webhook.admission.k8s.io/round_1_index_0":{},"webhook.example.com/value":"s","policy/value":"s","k8s.io/deprecated-no":"s","pod-security.kubernetes.io/audit-violations":"s""#,
    );
    for resource in
        ["secrets", "/serviceaccounts/token", "authentication.k8s.io/tokenreviews", "configmaps"]
    {
        becomes(resource, &change, &recorded, &annotations(""));
    }
    for resource in ["pods", "serviceaccounts"] {
        becomes(resource, &change, &recorded, &recorded);
    }
}

#[test]
fn credentials_in_a_uri_never_leave() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    for row in [
        r"/a?x=1\u0026token=«s→REDACTED»\u0026y=\u003cz\u003e",
        r"/a\u003ft\u006fken=«\u0073→REDACTED»\u0026y",
        r"/a/«\u0065yJh.\u0065yJi.s→REDACTED»/b",
        r"/a?\ud800\u0026token=«s→REDACTED»",
        r"/a?limit=500\u0026resourceVersion=0",
    ] {
        let (before, after) = marked(row);
        let whole = |uri: &str| format!(r#","requestURI":"{uri}","x":1"#);
        becomes("pods", &change, &whole(&before), &whole(&after));
    }
    becomes(
        "pods",
        &change,
        r#","requestURI":"/a","request\u0055RI":"/a?token=s""#,
        r#","requestURI":"/a","request\u0055RI":"/a?token=REDACTED""#,
    );
}

const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln-_";

#[test]
fn web_tokens_never_leave_wherever_they_stand() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    for gap in [
        r#","user":{"username":"T","extra":{"a":["b","xT"]}}"#,
        r#","impersonatedUser":{"username":"a","extra":{"T":["T,T"]}}"#,
        r#","userAgent":"curl/7 (Bearer T)","sourceIPs":["T"]"#,
        r#","annotations":{"authorization.k8s.io/reason":"T","a/T":"b"}"#,
        r#","requestObject":{"metadata":{"labels":{"a":"T"},"annotations":{"c":"{\"d\":\"T\"}"}}}"#,
        r#","requestObject":[{"op":"add","path":"/data/T","value":"T"}]"#,
        r#","responseObject":{"items":[{"data":{"T":"T"}}]},"responseStatus":{"message":"no T"}"#,
        r#","requestURI":"/a/T/b?c=T","x":{"T":"T"}"#,
        r#","requestURI":"/a?b=c","objectRef":{"name":"T"}"#,
    ] {
        // Only a second name that is a token gets a number, and none of these gaps has two.
        let (before, after) = (gap.replace('T', TOKEN), gap.replace('T', "REDACTED"));
        if gap.contains("objectRef") {
            // The event names two objects, so `becomes` cannot be used.
            let (out, done) = changed(&event("pods", &before), &change);
            assert_eq!(out.unwrap(), event("pods", &after));
            assert!(done.redacted);
            continue;
        }
        becomes("pods", &change, &before, &after);
    }
    let of_id = |id: &str| format!(r#"{{"auditID":"{id}","stage":"Panic"}}"#);
    let (out, done) = changed(&of_id(&format!("a-{TOKEN}-b")), &change);
    assert_eq!(out.unwrap(), of_id("a-REDACTED"));
    assert_eq!(done, Done { redacted: true, ..Done::default() });
    // Tokens are replaced only if the change has a redaction.
    let lower = Change { level: Some(Level::Metadata), ..Change::default() };
    assert_eq!(changed(&of_id(TOKEN), &lower), (None, Done::default()));
}

#[test]
fn a_hash_is_of_the_token_in_whose_place_it_stands() {
    let redaction = rules(&[("pods", "requestObject.a", With::Sha256)]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    let hashed = |token: &str| {
        let whole = event("pods", &format!(r#","requestObject":{{"a":"{token}"}}"#));
        changed(&whole, &change).0.unwrap()
    };
    assert!(hashed(TOKEN).contains(r#""a":"sha256:"#));
    assert_ne!(hashed(TOKEN), hashed(&TOKEN.replace("c2ln", "c2lm")));
}

#[test]
fn the_size_of_an_event_counts_without_its_web_tokens() {
    let redaction = rules(&[]);
    let of = |body: &str| event("pods", &format!(r#","requestObject":{{"a":"{body}"}}"#));
    let (long, short) = (of(TOKEN), of("REDACTED"));
    let at = |max| {
        let change =
            Change { redaction: Some(&redaction), event_bytes_max: Some(max), ..Change::default() };
        changed(&long, &change)
    };
    let redacted = Done { redacted: true, ..Done::default() };
    assert_eq!(at(long.len()), (Some(short.clone()), redacted));
    assert_eq!(at(short.len()), (Some(short.clone()), redacted));
    let (out, done) = at(short.len() - 1);
    assert!(done.trimmed && !out.unwrap().contains("requestObject"));
}

#[test]
fn random_events_lose_their_web_tokens_and_nothing_else() {
    assert!(times(random::loses_only_web_tokens) > 0, "no event had a token");
}

#[test]
fn what_is_too_large_goes_without_its_bodies() {
    let event = event(
        "pods",
        r#","requestObject":{"a":"0123456789012345678901234567890123456789"},"responseObject":{"b":"0123456789012345678901234567890123456789"}"#,
    );
    let trimmed =
        |max: usize| changed(&event, &Change { event_bytes_max: Some(max), ..Change::default() });
    let done = Done { trimmed: true, annotated: true, ..Done::default() };
    let truncated = r#","annotations":{"audit.k8s.io/truncated":"true"}"#;
    assert_eq!(trimmed(event.len()), (None, Done::default()));
    let without_response =
        format!("{}{truncated}}}", event.split(r#","responseObject"#).next().unwrap());
    assert_eq!(trimmed(event.len() - 1), (Some(without_response.clone()), done));
    assert_eq!(trimmed(without_response.len()).0, Some(without_response.clone()));
    let without_bodies =
        format!("{}{truncated}}}", event.split(r#","requestObject"#).next().unwrap());
    assert_eq!(trimmed(without_response.len() - 1), (Some(without_bodies.clone()), done));
    assert_eq!(trimmed(without_bodies.len()).0, Some(without_bodies.clone()));
    assert_eq!(
        trimmed(without_bodies.len() - 1),
        (Some(without_bodies), Done { is_too_large: true, ..done })
    );
    // An event without bodies cannot become smaller.
    let small = r#"{"auditID":"a","stage":"Panic"}"#;
    let change = Change { event_bytes_max: Some(30), ..Change::default() };
    assert_eq!(changed(small, &change), (None, Done { is_too_large: true, ..Done::default() }));
}

#[test]
fn what_is_too_large_loses_as_little_as_helps_of_patches_and_bodies() {
    const PATCH: &str = r#""p\u0061tch.webhook.admission.k8s.io/round_0_index_0":"0123456789""#;
    let event = |annotations: &str, response: &str, request: &str| {
        event("pods", &format!(r#"{request}{response},"annotations":{{{annotations}}}"#))
    };
    let (mutation, truncated) = (
        r#""mutation.webhook.admission.k8s.io/round_0_index_0":"m""#,
        r#""audit.k8s.io/truncated":"true""#,
    );
    let body = |name: &str, bytes: usize| format!(r#","{name}":"{}""#, "x".repeat(bytes));
    // The sizes of the bodies, the size to which the event must shrink, and the parts that stay.
    for (response, request, less, stays) in [
        (30, 30, 1, "response request"),
        (30, 30, PATCH.len() + 1, "response request"),
        (200, 200, PATCH.len() + 2, "patch request"),
        (10, 30, PATCH.len() + 2, "request"),
        (10, 100, 120, "patch"),
        (10, 10, 120, ""),
        (10, 10, 1000, ""),
    ] {
        let (response, request) =
            (body("responseObject", response), body("requestObject", request));
        let whole = event(&format!("{mutation},{PATCH}"), &response, &request);
        let part = |name: &str, text: &str| match stays.split(' ').any(|it| it == name) {
            true => text.to_owned(),
            false => String::new(),
        };
        let patch = part("patch", &format!(",{PATCH}"));
        let expected = event(
            &format!("{mutation}{patch},{truncated}"),
            &part("response", &response),
            &part("request", &request),
        );
        // The mark makes the event longer.
        let max = (whole.len() + truncated.len() + 1).saturating_sub(less).min(whole.len() - 1);
        let change = Change { event_bytes_max: Some(max), ..Change::default() };
        let (out, done) = changed(&whole, &change);
        assert_eq!(out.as_ref(), Some(&expected), "{less}");
        let is_too_large = expected.len() > max;
        assert_eq!(done, Done { trimmed: true, annotated: true, is_too_large, ..Done::default() });
        // With a redaction of bodies, the patch is removed whatever its size.
        let redaction = rules(&[("pods", "requestObject.a responseObject.a", With::Drop)]);
        let change = Change { redaction: Some(&redaction), ..change };
        let (out, done) = changed(&whole, &change);
        assert!(done.redacted && !out.unwrap().contains("0123456789"));
    }
    // A patch that is removed for another reason is not counted as trimmed.
    let change =
        Change { level: Some(Level::Metadata), event_bytes_max: Some(100), ..Change::default() };
    let (out, done) = changed(&event(PATCH, "", ""), &change);
    assert!(!out.unwrap().contains("truncated"));
    assert_eq!(done, Done { lowered: true, is_too_large: true, ..Done::default() });
}

#[test]
fn constants_are_added_and_no_key_is_replaced() {
    let annotations = Annotations::new([("cluster", "prod \"eu\""), ("forwarder", "f")]);
    let change = Change { annotations: Some(&annotations), ..Change::default() };
    let (cluster, forwarder) = (
        r#""kube-audit-forwarder/cluster":"prod \"eu\"""#,
        r#""kube-audit-forwarder/forwarder":"f""#,
    );
    let base = r#"{"auditID":"a","stage":"Panic""#;
    // CLUSTER and FORWARDER stand for the two annotations.
    for row in [
        r#"«→,"annotations":{CLUSTER,FORWARDER}»"#,
        r#","annotations":«null→{CLUSTER,FORWARDER}»"#,
        r#","annotations":{«→CLUSTER,FORWARDER» }"#,
        r#","annotations":{"a":"b"«→,CLUSTER,FORWARDER» } "#,
        r#","annotations":{"kube-audit-forwarder/cl\u0075ster":"other"«→,FORWARDER»}"#,
        r#","annotations":{«→CLUSTER,FORWARDER»},"annot\u0061tions":{"a":"b"«→,CLUSTER,FORWARDER»}"#,
        r#","annotations":"no object""#,
    ] {
        let (before, after) = marked(row);
        let after = after.replace("CLUSTER", cluster).replace("FORWARDER", forwarder);
        let (out, done) = changed(&format!("{base}{before}}}"), &change);
        let is_changed = before != after;
        assert_eq!(out, is_changed.then(|| format!("{base}{after}}}")));
        assert_eq!(done, Done { annotated: is_changed, ..Done::default() });
        if let Some(out) = out {
            assert_eq!(changed(&out, &change).0, None);
        }
    }
    // Some of the event's own annotations are dropped.
    let redaction = rules(&[("", "annotations.a annotations.b", With::Drop)]);
    let change = Change { redaction: Some(&redaction), ..change };
    for (before, after) in [
        (r#"{"a":"1","b":"2"}"#, format!("{{{cluster},{forwarder}}}")),
        (r#"{"a":"1","c":"2","b":"3"}"#, format!(r#"{{"c":"2",{cluster},{forwarder}}}"#)),
    ] {
        let (out, done) = changed(&format!(r#"{base},"annotations":{before}}}"#), &change);
        assert_eq!(out.unwrap(), format!(r#"{base},"annotations":{after}}}"#));
        assert_eq!(done, Done { annotated: true, redacted: true, ..Done::default() });
    }
}

#[test]
fn random_events_become_what_the_oracle_says_and_nothing_else_changes() {
    assert!(times(random::agrees_with_the_oracle) > 0, "no event was changed");
}

#[test]
fn a_secret_never_leaves_in_any_spelling() {
    times(|rng| {
        random::hides_the_secret(rng);
        true
    });
}

#[test]
fn the_deepest_event_and_the_longest_path_need_little_stack() {
    let work = || {
        // kube-apiserver takes 10,000 levels, and wraps them.
        let depth = 10_005;
        let path = format!("requestObject{}", ".a".repeat(path::STEPS_MAX - 1));
        let redaction = rules(&[("configmaps", &path, With::Drop)]);
        let change =
            Change { redaction: Some(&redaction), omit_managed_fields: true, ..Change::default() };
        for (open, close, is_met) in
            [("{\"a\":", "}", true), ("[", "]", false), ("{\"items\":[", "]}", false)]
        {
            let levels = depth / open.matches(['{', '[']).count() - 1;
            let body = format!("{}1{}", open.repeat(levels), close.repeat(levels));
            let whole =
                event("configmaps", &format!(r#","requestObject":{body},"x":"managedFields""#));
            let mut out = Vec::new();
            let done = apply(whole.as_bytes(), &request(whole.as_bytes()), 0, &change, &mut out);
            assert_eq!(done.redacted, is_met || open == "[", "{open}");
            assert_eq!(audit::scan::value_end(&out), (!out.is_empty()).then_some(out.len()));
        }
    };
    // The stack is much smaller than that of tokio's threads, which have 2 MiB.
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn recorded_events_stay_events_and_keep_no_secret() {
    let annotations = Annotations::new([("cluster", "c")]);
    let redaction = rules(&[
        ("*", "requestObject.spec.* user.uid", With::Sha256),
        ("", "sourceIPs", With::Drop),
    ]);
    let presets = rules(&[]);
    let all = Change {
        omit_managed_fields: true,
        redaction: Some(&redaction),
        annotations: Some(&annotations),
        event_bytes_max: Some(2000),
        ..Change::default()
    };
    let only = Change { redaction: Some(&presets), ..Change::default() };
    let (mut secrets, mut trimmed, mut untouched) = (0, 0, 0);
    for (name, body) in corpus() {
        let lines = audit::decode(body).unwrap().lines;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = std::str::from_utf8(line).unwrap();
            for level in [None, Some(Level::Metadata), Some(Level::Request)] {
                let (out, done) = changed(line, &Change { level, ..all });
                assert!(
                    done.is_too_large || out.is_some_and(|out| out.len() <= 2000),
                    "{name}: {line}"
                );
                trimmed += usize::from(done.trimmed);
            }
            // Every value of a Secret's data must be in the recorded event, and must not be in the
            // result.
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            let (out, done) = changed(line, &only);
            if event["objectRef"]["resource"] != "secrets" {
                assert!(!done.redacted, "{line}");
                untouched += 1;
                continue;
            }
            let out = out.unwrap_or_else(|| line.to_owned());
            for body in ["requestObject", "responseObject"] {
                let items = event[body]["items"].as_array().cloned().unwrap_or_default();
                for object in items.iter().chain([&event[body]]) {
                    for value in
                        object["data"].as_object().into_iter().flat_map(|data| data.values())
                    {
                        let value = value.as_str().unwrap();
                        assert!(line.contains(value) && !out.contains(value), "{name}: {out}");
                        secrets += 1;
                    }
                }
            }
        }
    }
    assert!(secrets >= 12 && trimmed > 50 && untouched > 1000, "{secrets} {trimmed} {untouched}");
}
