//! Compares the quick look at recorded events with random changes with the reading of all members.

use super::*;
use look::Looked;
use random::{is_event, pick};

/// Texts that are put into strings, as they are written there: parts of the things that a redaction
/// looks for, and near misses.
static TEXTS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    list(
        r"
eyJh.eyJz.Sig|eyJh.eyJz|yJ|\u0065yJh.eyJz.Sig|eyJh\u002eeyJz.Sig|\u0026|\u00e9|\u0100|\\u0041
\\\u0041|\u003d|?token=s|?limit=1&token=s|?limit=1\u0026token=s|?limit=1\u0026t=s
?a\u0026b=c\u0026watch=true|?resourceVersion=1|?authorization=s|?Access-Token=s|?toke-n=s
?token[a]b12345=s|?user[token]=s|?t%6fken=s|?token =s|?token!=s|?+token+=s|?labelSelector=token
?fieldSelector=a.token=s|?LabelSelector=token+in+(s)|?command=--password&command=s
?container=c&command=env&command=PGPASSWORD=s|/a;passwd=s/b|/a=b|objectRef
?env=A=s|?x=1\u0026env=A=s|?%65nv=A%3Ds|?x=1\u0026sig=s|?X-Amz-Signature=s|?my_secret=s|?code=s
",
    )
});

/// Members that are put into events, before or after the event's own members.
static MEMBERS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    list(
        r#"
"objectRef":{"resource":"secrets"}|"object\u0052ef":{"resource":"secrets"}
"objectRef" : {"resource":"pods","r\u0065source":"secrets"}|"requestURI":"/a?token=s"
"request\u0055RI":"/a?token=s"
"requestObject":{"objectRef":{},"requestURI":"","kind":"Secret","data":{"a":"b"}}
"response\u004fbject":{"kind":"Secret","data":{"a":"b"}}|"annotations":{"a":"eyJh.eyJz.Sig"}
"x":"Ref"
"#,
    )
});

/// Changes the event at one random place.
fn mutate(rng: &mut fastrand::Rng, event: &mut String) {
    let places = |what: &str| event.match_indices(what).map(|(at, _)| at).collect::<Vec<_>>();
    let members: Vec<_> =
        walk::children(event.as_bytes(), event.as_bytes()).map(|child| child.value).collect();
    let of_uri = || {
        const KEY: &str = r#""requestURI":""#;
        let start = event.find(KEY)? + KEY.len();
        Some(start + event.get(start..)?.find('"')?)
    };
    match rng.u8(..8) {
        // One letter of the event becomes an escape.
        0 | 1 => {
            let at = rng.usize(1..event.len());
            if let Some(letter) = event.get(at..=at).filter(|text| text.is_ascii()) {
                let escape = format!("\\u{:04x}", letter.as_bytes()[0]);
                event.replace_range(at..=at, &escape);
            }
        }
        // A text is put at the end of the URI.
        2 | 3 => {
            if let Some(at) = of_uri() {
                event.insert_str(at, pick(rng, &TEXTS));
            }
        }
        // A text is put into some string, or next to it.
        4 => {
            let quotes = places("\"");
            event.insert_str(quotes[rng.usize(..quotes.len())], pick(rng, &TEXTS));
        }
        5 => {
            let ends = [1, event.len() - 1];
            let at = ends[rng.usize(..2)];
            let member = pick(rng, &MEMBERS);
            let with = if at == 1 { format!("{member},") } else { format!(",{member}") };
            event.insert_str(at, &with);
        }
        // The resource becomes one whose bodies are secret.
        6 => *event = event.replacen(r#""resource":"pods""#, r#""resource":"secrets""#, 1),
        // The last members are cut off, so that a part of the event is short.
        _ => {
            if let Some(value) = members.get(rng.usize(..members.len().max(1))) {
                let end = walk::place(event.as_bytes(), value).end;
                event.replace_range(end.., "}");
            }
        }
    }
}

#[test]
fn the_look_at_a_changed_recorded_event_hides_no_change() {
    let mut recorded = Vec::new();
    for (_, body) in corpus() {
        let lines = String::from_utf8(audit::decode(body).unwrap().lines.to_vec()).unwrap();
        // Longer events have nothing more to find, and would take most of the time.
        recorded.extend(lines.lines().filter(|line| line.len() < 4096).map(str::to_owned));
    }
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    let mut looked = Looked::default();
    let seeds = seeds(20_000);
    for seed in seeds.iter().copied() {
        let _failing = Failing(seed);
        let rng = &mut fastrand::Rng::with_seed(seed);
        let mut event = recorded[rng.usize(..recorded.len())].clone();
        for _ in 0..rng.usize(..4) {
            mutate(rng, &mut event);
        }
        if !is_event(&event) {
            continue;
        }
        looked.judge(&event, &change);
    }
    let least = Looked { events: 10_000, known: 4000, unseen: 4000, redacted: 2000 };
    looked.assert_more_than(least, seeds.len());
}
