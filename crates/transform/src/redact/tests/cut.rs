//! Events that are too large without their bodies. A client shapes the parts that are cut.

use super::*;
use serde_json::{Value, json};

use crate::redact::cut::KNOWN;

/// Cuts the event to at most `max` bytes, without any other change, and reads the result.
fn cut_to(event: &str, max: usize) -> (String, Value) {
    let change = Change { event_bytes_max: Some(max), ..Change::default() };
    let (out, done) = changed(event, &change);
    assert_eq!(done, Done { trimmed: true, annotated: true, ..Done::default() }, "{event:.200}");
    let out = out.unwrap();
    assert!(out.len() <= max, "{} bytes: {out:.200}", out.len());
    let read = serde_json::from_str(&out).unwrap();
    (out, read)
}

/// An event as kube-apiserver writes it, of an anonymous request that was denied.
fn denied() -> Value {
    json!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": "5d2e0c1a-8a3f-4c57-9a55-0f6a3e1f7b21",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/namespaces/shop/pods?limit=500",
        "verb": "list",
        "user": {"username": "system:anonymous", "groups": ["system:unauthenticated"]},
        "impersonatedUser": {"username": "ada", "extra": {"a": ["b"]}},
        "sourceIPs": ["192.0.2.1"],
        "userAgent": "curl/7.88.1",
        "objectRef": {"resource": "pods", "namespace": "shop", "name": "p", "apiVersion": "v1"},
        "responseStatus": {
            "metadata": {},
            "status": "Failure",
            "message": "pods is forbidden",
            "reason": "Forbidden",
            "details": {"kind": "pods", "causes": [{"message": "m"}]},
            "code": 403
        },
        "requestReceivedTimestamp": "2026-11-25T10:00:00.000001Z",
        "stageTimestamp": "2026-11-25T10:00:00.000002Z",
        "annotations": {
            "authorization.k8s.io/decision": "forbid",
            "authorization.k8s.io/reason": ""
        }
    })
}

const MARK: &str = "audit.k8s.io/truncated";

/// Returns a list of this many strings.
fn many(times: usize) -> Value {
    (0..times).map(|number| json!(format!("10.{number}.0.1"))).collect()
}

/// Returns an object with this many members.
fn members(times: usize) -> Value {
    (0..times).map(|number| (format!("a{number}.example.com/x"), json!("b"))).collect()
}

#[test]
fn whichever_part_is_large_the_event_fits_and_the_other_parts_stay() {
    let long = || json!("<".repeat(100_000));
    for (pointer, large, keeps_beginning) in [
        ("/requestURI", json!(format!("/x/{}", "y".repeat(100_000))), true),
        ("/requestURI", json!(format!("/x?{}", "<".repeat(100_000))), false),
        ("/auditID", json!("i".repeat(100_000)), true),
        ("/verb", long(), true),
        ("/userAgent", long(), true),
        ("/user/username", long(), true),
        ("/user/groups", many(10_000), true),
        ("/user/uid", long(), true),
        ("/user/extra", members(10_000), true),
        ("/impersonatedUser/username", long(), true),
        ("/impersonatedUser/groups/0", long(), true),
        ("/impersonatedUser/extra", members(10_000), true),
        ("/impersonatedUser/extra/a", many(10_000), true),
        ("/sourceIPs", many(10_000), true),
        ("/objectRef/name", long(), true),
        ("/objectRef/namespace", long(), true),
        ("/objectRef/resource", long(), true),
        ("/objectRef/subresource", long(), true),
        ("/responseStatus/message", long(), true),
        ("/responseStatus/reason", long(), true),
        ("/responseStatus/status", long(), true),
        ("/responseStatus/details", members(10_000), true),
        ("/responseStatus/details/causes", many(10_000), true),
        ("/responseStatus/details/causes/0/message", long(), true),
        ("/responseStatus/metadata", members(10_000), true),
        ("/annotations", members(10_000), false),
        ("/annotations/validation.example.com~1x", long(), true),
        ("/requestReceivedTimestamp", long(), true),
        ("/unknown", long(), false),
        ("/unknown", many(10_000), false),
        ("/unknown", members(10_000), false),
    ] {
        let mut whole = denied();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let name = name.replace("~1", "/");
        match whole.pointer_mut(parent) {
            Some(Value::Object(members)) => match (members.get_mut(&name), &large) {
                (Some(Value::Object(old)), Value::Object(large)) => old.extend(large.clone()),
                _ => drop(members.insert(name, large.clone())),
            },
            Some(Value::Array(elements)) => elements.push(large.clone()),
            _ => {
                *whole.pointer_mut(parent.strip_suffix("/groups").unwrap()).unwrap() =
                    json!({"groups": [large]})
            }
        }
        for max in [2_000, 65_536] {
            let (out, read) = cut_to(&whole.to_string(), max);
            assert_eq!(read["annotations"][MARK], "true", "{pointer}: {out}");
            let is_wasteful = keeps_beginning && out.len() < max / 10;
            assert!(max == 2_000 || !is_wasteful, "{pointer}: {} of {max}", out.len());
            let large = read.pointer(pointer);
            if keeps_beginning {
                let beginning = ["<<<<<", "/x/yyy", "iiiii", "10.0.0.1", "a0.example.com/x"];
                let text = large.unwrap().to_string();
                assert!(beginning.iter().any(|it| text.contains(it)), "{pointer}: {text}");
            }
            if let Some(text) = large.and_then(Value::as_str) {
                assert!(
                    text.ends_with("…[cut, 100000 bytes]") || text.ends_with("3 bytes]"),
                    "{text}"
                );
            }
            // All members except the one that was large stay.
            for (name, value) in denied().as_object().unwrap() {
                let is_large = pointer.split('/').nth(1) == Some(name);
                assert!(
                    is_large || name == "annotations" || read[name] == *value,
                    "{pointer}: {out}"
                );
            }
            for part in
                ["/user/username", "/sourceIPs/0", "/responseStatus/code", "/stageTimestamp"]
            {
                assert!(read.pointer(part).is_some(), "{part} of {pointer}: {out}");
            }
            assert_eq!(read["annotations"]["authorization.k8s.io/decision"], "forbid", "{out}");
        }
    }
}

#[test]
fn the_address_of_the_connection_stays_behind_a_flood_of_forwarded_addresses() {
    let mut event = denied();
    let sources = event["sourceIPs"].as_array_mut().unwrap();
    *sources = many(50_000).as_array().unwrap().clone();
    sources.push(json!("198.51.100.7"));
    let (_, read) = cut_to(&event.to_string(), 4096);
    let sources = read["sourceIPs"].as_array().unwrap();
    assert!(sources.len() > 10, "{sources:?}");
    assert_eq!(
        (&sources[0], sources.last().unwrap()),
        (&json!("10.0.0.1"), &json!("198.51.100.7"))
    );
}

#[test]
fn the_largest_strings_are_cut_and_the_audit_id_last() {
    let mut event = denied();
    event["userAgent"] = json!("u".repeat(50_000));
    event["auditID"] = json!("i".repeat(3_000));
    event["responseStatus"]["message"] = json!("m".repeat(1_000));
    let (_, read) = cut_to(&event.to_string(), 10_000);
    assert_eq!(
        (&read["auditID"], &read["responseStatus"]),
        (&event["auditID"], &event["responseStatus"])
    );
    assert_eq!(read["userAgent"].as_str().unwrap().len(), 5_000);
    // The message and the names are cut before the auditID.
    let (_, read) = cut_to(&event.to_string(), 4_096);
    assert_eq!(read["auditID"], event["auditID"]);
    assert!(read["userAgent"].as_str().unwrap().starts_with("uuu"));
    let (_, read) = cut_to(&event.to_string(), 2_048);
    let id = read["auditID"].as_str().unwrap();
    assert!(id.starts_with("iii") && id.ends_with("…[cut, 3000 bytes]"), "{id}");
}

#[test]
fn a_string_is_cut_between_characters_and_escapes() {
    for part in ["ä", "日", "😀", r"\u00e4", r"\u003c", r"\ud83d\ude00", r"\n", r"\\", r#"\""#]
    {
        for before in 0..13 {
            let text = format!("{}{}", "x".repeat(before), part.repeat(2_000));
            let event = format!(
                r#"{{"auditID":"a","stage":"Panic","userAgent":"{text}","x":"{}"}}"#,
                "y".repeat(2_000)
            );
            let (out, read) = cut_to(&event, 1_000);
            let agent = out.split(r#""userAgent":""#).nth(1).unwrap().split('…').next().unwrap();
            let parts = agent.strip_prefix(&"x".repeat(before)).unwrap();
            let left = parts.replace(part, "");
            assert!(left.is_empty() && parts.len() > 100, "{part}: {left}");
            assert!(
                read["userAgent"].as_str().unwrap().ends_with(&format!("{} bytes]", text.len()))
            );
        }
    }
}

/// Method: an event is cut before an output redacts it, at every place of its URI or user agent. No
/// part of the credential may leave.
#[test]
fn a_cut_hides_no_credential_from_a_later_redaction() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    let filler = |length: usize| "z".repeat(length);
    for (name, begin, secret) in [
        ("requestURI", "/api/v1/pods?x=", "\\u0026token=SECRETSECRET"),
        ("requestURI", "/p/exec?x=", "\\u0026command=curl\\u0026command=https://u:SECRETSECRET@h"),
        ("requestURI", "/p/exec?x=", "\\u0026command=echo+SECRETSECRET+|+passwd+--stdin"),
        ("requestURI", "/p/exec?x=", "\\u0026command=-p\\u0026command=SECRETSECRET"),
        ("requestURI", "/p/", "/eyJhbGciOiJ.eyJSECRETSECRET.SECRETSECRET"),
        ("requestURI", "/p/", "/a;token=SECRETSECRET/b"),
        ("userAgent", "", " eyJhbGciOiJ.eyJSECRETSECRET.SECRETSECRET"),
        ("userAgent", "", " \\u0065yJhbGciOiJ\\u002eeyJSECRETSECRET.SECRETSECRET"),
    ] {
        for length in 300..420 {
            let text = format!("{begin}{}{secret}{}", filler(length), ",".repeat(2_000));
            let event = format!(
                r#"{{"auditID":"a","stage":"Panic","{name}":"{text}","annotations":{{}}}}"#
            );
            let (out, _) = cut_to(&event, 1_000);
            let redacted = changed(&out, &change).0.unwrap_or(out);
            assert!(!redacted.contains("SEC"), "{redacted}");
            assert!(redacted.contains("zzz") || name == "requestURI", "{redacted}");
        }
    }
}

/// Returns a string of random characters, of at most `length` characters.
fn text(rng: &mut fastrand::Rng, length: usize) -> String {
    let parts = [
        "a", "<", "ä", "😀", "\\u003c", "\\\\", "\\\"", "\\ud83d", "?", "\\u0026", ".", "eyJ",
        "%41",
    ];
    let few: Vec<_> = (0..3).map(|_| parts[rng.usize(..parts.len())]).collect();
    let length = if length > 0 { rng.usize(..length) } else { 0 };
    (0..length).map(|_| few[rng.usize(..few.len())]).collect()
}

/// Returns a random value. Few values are larger than `size` bytes by much.
fn value(rng: &mut fastrand::Rng, size: usize, depth: usize) -> String {
    let space = || " ".to_owned();
    let list = |rng: &mut fastrand::Rng, is_object: bool| {
        let (count, mut entries) = (rng.usize(..size.clamp(2, 3_000)), Vec::new());
        for _ in 0..count {
            let entry = value(rng, size / count, depth - 1);
            let name = format!("\"{}\":", text(rng, 6));
            entries.push(if is_object { name + &entry } else { entry });
        }
        entries.join(",")
    };
    match rng.u8(..if depth == 0 { 3 } else { 6 }) {
        0 => format!("\"{}\"", text(rng, size)),
        1 => format!("1{}", "0".repeat(rng.usize(..=size))),
        2 => ["null", "true", "\"\"", "-1e400"][rng.usize(..4)].to_owned() + &space(),
        3 => format!("[{}]", list(rng, false)),
        4 => format!("{{{}}}", list(rng, true)),
        _ => {
            let levels = rng.usize(..=size.min(800) / 5);
            format!("{}1{}", "{\"\":[".repeat(levels), "]}".repeat(levels))
        }
    }
}

#[test]
fn every_random_event_fits_stays_an_event_and_keeps_who_what_and_when() {
    let mut cut = 0;
    for seed in seeds(40) {
        let _failing = Failing(seed);
        let rng = &mut fastrand::Rng::with_seed(seed);
        let usual = [
            ("auditID", "\"a\""),
            ("stage", "\"\\u0050\\u0061\\u006e\\u0069\\u0063\""),
            ("level", "\"Metadata\""),
            ("verb", "\"get\""),
            ("user", r#"{"username":"system:serviceaccount:shop:importer"}"#),
            ("requestReceivedTimestamp", "\"2026-11-25T10:00:00.000001Z\""),
            ("stageTimestamp", "\"2026-11-25T10:00:00.000002Z\""),
        ];
        let mut members: Vec<_> =
            usual.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let size = [100, 3_000, 12_000][rng.usize(..3)];
        for _ in 0..rng.usize(1..20) {
            let name = match rng.usize(..KNOWN.len() + 4) {
                number if number < KNOWN.len() => {
                    String::from_utf8(KNOWN[number].to_vec()).unwrap()
                }
                _ => text(rng, 8),
            };
            if !usual.iter().any(|(own, _)| *own == name)
                && !matches!(&*name, "kind" | "apiVersion")
            {
                members.push((name, value(rng, size, 3)));
            }
        }
        rng.shuffle(&mut members);
        let members: Vec<_> =
            members.iter().map(|(name, value)| format!("\"{name}\" :{value}")).collect();
        let event = format!("{{{}}}", members.join(" , "));
        let max = rng.usize(4_096..20_000);
        if event.len() <= max {
            continue;
        }
        cut += 1;
        let (out, done) =
            changed(&event, &Change { event_bytes_max: Some(max), ..Change::default() });
        let out = out.unwrap();
        assert!(out.len() <= max && done.trimmed && !done.is_too_large, "{}: {out}", out.len());
        let read = |text: &str| {
            let request = request(text.as_bytes());
            let [id, received, at] =
                audit::scan::firsts(text.as_bytes(), ["auditID", usual[5].0, usual[6].0])
                    .map(|value| value.map(<[u8]>::to_vec));
            let name = request.user.map(|user| user.name.into_owned());
            (
                request.stage.into_owned(),
                request.level.into_owned(),
                request.verb.into_owned(),
                name,
                id,
                received,
                at,
            )
        };
        assert_eq!(read(&out), read(&event), "{out}");
    }
    assert!(cut > 0 || seeds(40).len() < 20, "no event was too large");
}

#[test]
fn an_event_of_many_members_levels_or_digits_is_cut() {
    let deep = |open: &str, close: &str, times: usize| {
        format!(r#""x":{}1{}"#, open.repeat(times), close.repeat(times))
    };
    for (member, is_kept_whole) in [
        (r#""":1,"#.repeat(50_000) + r#""x":1"#, false),
        (format!(r#""annotations":{{{}"b":1}}"#, r#""a":"","#.repeat(50_000)), false),
        (format!(r#""user":[1{}]"#, ",1".repeat(50_000)), false),
        (
            format!(
                r#""responseStatus":{{"details":{{"causes":[{{}}{}]}}}}"#,
                ",{}".repeat(50_000)
            ),
            false,
        ),
        (format!(r#""x":1{}"#, "0".repeat(100_000)), false),
        (format!(r#""code":-1{}"#, "0".repeat(100_000)), false),
        (format!(r#""{}":1"#, "n".repeat(100_000)), false),
        (deep("{\"a\":", "}", 50_000), false),
        (deep("[", "]", 50_000), false),
        (deep("{\"a\":[", "]}", 10_005) + &format!(r#","u":"{}""#, "v".repeat(200_000)), true),
    ] {
        let event = format!(r#"{{"auditID":"a","stage":"Panic",{member}}}"#);
        for max in [4_096, 90_000] {
            let change = Change { event_bytes_max: Some(max), ..Change::default() };
            let mut out = Vec::new();
            let done = apply(event.as_bytes(), &Request::default(), 0, &change, &mut out);
            assert!(done.trimmed && !done.is_too_large && out.len() <= max, "{member:.50}");
            assert_eq!(audit::scan::value_end(&out), Some(out.len()));
            assert!(!is_kept_whole || max < 90_000 || out.len() > 60_000, "{}", out.len());
        }
    }
}
