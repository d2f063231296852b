//! Compares the reader with [`request`](super::super::request), which reads each event by itself.
//! Both must return the same for all valid events, whatever events came before.

use super::*;
use crate as audit;
use fastrand::Rng;
use testing::{Failing, corpus, corpus_file, seeds};

/// An event with all the members that the reader reads.
const FULL: &str = r#"{"level":"Request","auditID":"00000000-0000-4000-8000-000000000000","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/pods/b/log?c=d\u0026e","verb":"get","user":{"username":"system:serviceaccount:a:b","uid":"1","groups":["c","d"],"extra":{"e":["f","g"],"h":["i"]}},"impersonatedUser":{"username":"j","groups":["k"]},"sourceIPs":["10.0.0.1","10.0.0.2"],"userAgent":"l","objectRef":{"resource":"pods","namespace":"a","name":"b","uid":"2","apiGroup":"m","apiVersion":"v1","resourceVersion":"3","subresource":"log"},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z"}"#;

/// An event about no object, by a user who is not authenticated.
const BARE: &str = r#"{"level":"Metadata","auditID":"00000000-0000-4000-8000-000000000000","stage":"Panic","requestURI":"/","verb":"get","user":{},"sourceIPs":["::1"],"responseStatus":{"code":401}}"#;

/// Returns one reader for each way to find quotes that this CPU has.
fn readers(lines: &[u8]) -> Vec<Reader<'_>> {
    let best = Reader::new(lines);
    #[cfg(target_arch = "x86_64")]
    if best.avx2.is_some() {
        return vec![best, Reader { avx2: None, ..Reader::new(lines) }];
    }
    vec![best]
}

/// Reads lines in all ways, and asserts that each request is the one that `request` returns.
fn check(lines: &[u8]) {
    for mut reader in readers(lines) {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let (event, read) = reader.read().unwrap();
            assert!(event == line, "{} is no line", event.escape_ascii());
            let expected = audit::request::request(line);
            assert!(*read == expected, "{read:?} instead of {expected:?}: {}", line.escape_ascii());
        }
        assert!(reader.read().is_none());
    }
}

/// Returns the number of lines that are written as kube-apiserver writes them.
fn usual(lines: &[u8]) -> usize {
    let events = lines.split(|byte| *byte == b'\n').filter(|event| !event.is_empty());
    let mut reader = Reader::new(lines);
    events.filter(|event| reader.usual(event, quotes::portable).is_some()).count()
}

/// If `changed` is still a valid event, checks it among other events that begin like it, and
/// returns `true`.
fn check_changed(usual: &[u8], changed: Vec<u8>) -> bool {
    let Ok(batch) = audit::decode(changed) else { return false };
    let line = [usual, b"\n"].concat();
    check(&[&line, &*batch.lines, &line, &*batch.lines, &*batch.lines].concat());
    true
}

/// Returns the events of the recorded bodies that have at most `longest` bytes.
fn recorded(longest: usize) -> Vec<Vec<u8>> {
    let mut events: Vec<Vec<u8>> = Vec::new();
    for (_, body) in corpus() {
        let lines = audit::decode(body).unwrap().lines;
        let short = lines.split(|byte| *byte == b'\n').filter(|event| !event.is_empty());
        events.extend(short.filter(|event| event.len() <= longest).map(<[u8]>::to_vec));
    }
    events
}

/// Texts of the recorded events that do not have the usual form: a user agent with quotes, audit
/// IDs that the client has chosen, and a rare member.
const ODD: [&str; 4] =
    [r#" \"q\"""#, r#""client-chosen-"#, r#""dup-id""#, r#""authenticationMetadata""#];

#[test]
fn recorded_events_are_read_the_fast_way_and_say_the_same() {
    let log = ("audit.log".to_owned(), corpus_file("audit.log"));
    for (name, body) in corpus().into_iter().chain([log]) {
        let lines = audit::decode(body).unwrap().lines;
        check(&lines);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let is_odd = ODD.iter().any(|odd| memchr::memmem::find(line, odd.as_bytes()).is_some());
            assert!(usual(line) == 1 || is_odd, "{name}: {}", line.escape_ascii());
        }
    }
}

#[test]
fn what_the_tests_change_is_read_the_fast_way() {
    assert_eq!(usual(FULL.as_bytes()), 1);
    assert_eq!(usual(BARE.as_bytes()), 1);
    check(format!("{FULL}\n{BARE}\n{BARE}\n{FULL}\n{FULL}").as_bytes());
}

/// If the changed event is still valid, the reader must return the same request as `request`.
#[test]
fn every_byte_may_be_another_one() {
    let some = recorded(900);
    let step = some.len() / 4;
    let some = some.iter().step_by(step.max(1)).map(Vec::as_slice);
    let mut valid = 0_u32;
    for event in [FULL.as_bytes(), BARE.as_bytes()].into_iter().chain(some) {
        for at in 0..event.len() {
            for byte in *br#""\{}[],: 0ax"# {
                let mut changed = event.to_vec();
                changed[at] = byte;
                valid += u32::from(check_changed(event, changed));
            }
        }
    }
    assert!(valid > 10_000, "{valid}");
}

/// If the changed event is still valid, the reader must return the same request as `request`.
#[test]
fn anything_may_be_put_anywhere_or_missing() {
    const MORE: &str = r#"" \ \" \\ \u0041 "," {} , ","name":"x ] }"#;
    let mut valid = 0_u32;
    for event in [FULL, BARE] {
        for at in 0..event.len() {
            for more in MORE.split(' ').chain([" "]) {
                let (before, behind) = event.as_bytes().split_at(at);
                let changed = [before, more.as_bytes(), behind].concat();
                valid += u32::from(check_changed(event.as_bytes(), changed));
            }
            for length in 1..=64.min(event.len() - at) {
                let mut changed = event.as_bytes().to_vec();
                changed.drain(at..at + length);
                valid += u32::from(check_changed(event.as_bytes(), changed));
            }
        }
    }
    assert!(valid > 5000, "{valid}");
}

type Members = Vec<(Vec<u8>, Vec<u8>)>;

fn members(object: &[u8]) -> Members {
    scan::members(object).map(|member| (member.key.to_vec(), member.value.to_vec())).collect()
}

fn object(members: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let each = members.iter().map(|(key, value)| [b"\"", &key[..], b"\":", value].concat());
    [b"{", &*each.collect::<Vec<_>>().join(&b','), b"}"].concat()
}

/// Returns all variants of an object that differ from `text` in one point: a member is missing,
/// twice, elsewhere, of another type, or written with escapes. The same is done inside of the
/// members' values, `depth` levels deep.
fn variants(text: &[u8], depth: usize) -> Vec<Vec<u8>> {
    const VALUES: &str = r#"null true 7 "" "x" "\"" "\\" "\u0041" "a\"b" [] ["x"] ["]}},"] [1,"\u0041"] ["a",["b"]] {} {"a":"b"} {"resource":"x"} {"username":"x"} {"groups":["x"]} {"username":"","groups":[]}"#;
    let of = members(text);
    let mut all = Vec::new();
    for at in 0..of.len() {
        let mut with = |change: &dyn Fn(&mut Members)| {
            let mut changed = of.clone();
            change(&mut changed);
            all.push(object(&changed));
        };
        with(&|members| drop(members.remove(at)));
        for to in 0..of.len() {
            with(&|members| members.swap(at, to));
            with(&|members| members.insert(to, (of[at].0.clone(), br#""other""#.to_vec())));
            with(&|members| members.insert(to, of[at].clone()));
            with(&|members| members.insert(to, (b"x".to_vec(), of[at].1.clone())));
        }
        with(&|members| members.push(of[at].clone()));
        let escaped = |text: &[u8]| {
            [format!("\\u{:04x}", text[0]).as_bytes(), text.get(1..).unwrap_or_default()].concat()
        };
        with(&|members| members[at].0 = escaped(&of[at].0));
        if let Some(value) = of[at].1.strip_prefix(b"\"").filter(|value| value.len() > 1) {
            with(&|members| members[at].1 = [b"\"", &*escaped(value)].concat());
        }
        for value in VALUES.split_ascii_whitespace() {
            with(&|members| members[at].1 = value.into());
        }
        with(&|members| members[at].1.insert(0, b' '));
        with(&|members| members[at].1.push(b' '));
        if depth > 0 && of[at].1.starts_with(b"{") {
            for value in variants(&of[at].1, depth - 1) {
                with(&|members| members[at].1.clone_from(&value));
            }
        }
    }
    all
}

#[test]
fn members_may_be_missing_twice_elsewhere_escaped_or_of_another_kind() {
    let mut valid = 0_u32;
    for event in [FULL, BARE] {
        for changed in variants(event.as_bytes(), 2) {
            valid += u32::from(check_changed(event.as_bytes(), changed));
        }
    }
    assert!(valid > 1000, "{valid}");
}

/// Each seed makes a batch of up to 29 recorded events, changes up to two members of each, and
/// compares the reader with `request` for the whole batch.
#[test]
fn random_changes_of_members_of_random_events_in_random_batches() {
    let recorded = recorded(3000);
    for seed in seeds(100) {
        let _failing = Failing(seed);
        let mut rng = Rng::with_seed(seed);
        let mut lines = Vec::new();
        for _ in 0..rng.usize(1..30) {
            let mut event = recorded[rng.usize(..recorded.len())].clone();
            for _ in 0..[0, 0, 1, 2][rng.usize(..4)] {
                let variants = variants(&event, 2);
                event.clone_from(&variants[rng.usize(..variants.len())]);
            }
            if let Ok(batch) = audit::decode(event) {
                lines.extend_from_slice(&batch.lines);
            }
        }
        check(&lines);
    }
}

#[test]
fn texts_of_every_length_are_read() {
    for length in 0..300 {
        let text = "x".repeat(length);
        let named = FULL.replace("system:serviceaccount:a:b", &text);
        let lines = [
            FULL.replace("/api/v1", &text),
            FULL.replace("\"l\"", &format!("\"{text}\"")),
            FULL.replace("\"b\"", &format!("\"{text}\"")),
            named.replace("\"c\"", &format!("\"c{text}\"")),
            named.clone(),
            named,
        ]
        .join("\n");
        check(lines.as_bytes());
        assert_eq!(usual(lines.as_bytes()), 6);
    }
}

#[test]
fn no_bytes_panic_or_are_read_for_ever() {
    for seed in seeds(100) {
        let _failing = Failing(seed);
        let mut rng = Rng::with_seed(seed);
        let mut bytes = [FULL, BARE, "\n", "\n\n", FULL].concat().into_bytes();
        for _ in 0..rng.usize(..9) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        for mut reader in readers(&bytes) {
            // There cannot be more lines than bytes.
            for _ in 0..=bytes.len() {
                reader.read();
            }
            assert!(reader.read().is_none());
        }
    }
}
