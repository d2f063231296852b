//! Random JSON without white space, as dense as the bodies of kube-apiserver, and with more
//! variety.

use fastrand::Rng;

use super::*;

/// The contents of strings: characters that must be escaped or may be, characters that are syntax
/// outside of strings, and the first and last characters of each length in UTF-8.
const CHARACTERS: &str = concat!(
    r#"a b n kind apiVersion xxxxxxxxxxxxxxxxxxxxxxxx { } [ ] , : / \" \\ \/ \b \f \n \r \t \u0000 \u00e4 \ud800 \uDfFf "#,
    r#"\uD83D\uDE00 \\\\\\\\ \\\" ä "#,
    "\u{7f} \u{80} \u{7ff} \u{800} \u{d7ff} \u{e000} \u{ffff} \u{2028} \u{10000} \u{10ffff}",
);

const NUMBERS: &str = "0 -0 7 -1 10 0.0 -0.10 1.5 1e9 1E+2 0e-0 1.25E-400 1e999 9007199254740993 \
                       123456789012345678901234567890";

/// Keys that have a meaning in an event or in a list.
const KEYS: &str = "kind apiVersion level auditID stage items metadata";

pub(super) fn word<'a>(rng: &mut Rng, words: &'a str) -> &'a str {
    let words: Vec<_> = words.split_ascii_whitespace().collect();
    words[rng.usize(..words.len())]
}

fn string(rng: &mut Rng) -> String {
    let most = if rng.u8(..20) == 0 { 300 } else { 6 };
    let characters = (0..rng.usize(..most)).map(|_| match rng.u8(..10) {
        0 => " ",
        _ => word(rng, CHARACTERS),
    });
    format!("\"{}\"", characters.collect::<String>())
}

/// Returns up to four results of `make`, with commas between them.
fn several(rng: &mut Rng, make: impl Fn(&mut Rng) -> String) -> String {
    (0..rng.usize(..5)).map(|_| make(rng)).collect::<Vec<_>>().join(",")
}

/// Returns a random value with at most `depth` levels of nesting.
pub(super) fn value(rng: &mut Rng, depth: usize) -> String {
    match rng.u8(..if depth == 0 { 4 } else { 8 }) {
        0 => word(rng, "true false null").into(),
        1 => word(rng, NUMBERS).into(),
        2 | 3 => string(rng),
        4 | 5 => format!("[{}]", several(rng, |rng| value(rng, depth - 1))),
        _ => {
            let member = |rng: &mut Rng| {
                let key = match rng.u8(..3) {
                    0 => format!("\"{}\"", word(rng, KEYS)),
                    _ => string(rng),
                };
                format!("{key}:{}", value(rng, depth - 1))
            };
            format!("{{{}}}", several(rng, member))
        }
    }
}

/// Returns a random event, which mostly begins as kube-apiserver's events do.
pub(super) fn event(rng: &mut Rng) -> String {
    let level = word(rng, "None Metadata Request RequestResponse Loud");
    let stage = word(rng, "RequestReceived ResponseStarted ResponseComplete Panic");
    let mut members = vec![
        format!(r#""level":"{level}""#),
        format!(r#""auditID":"a{}"#, string(rng).split_off(1)),
        format!(r#""stage":"{stage}""#),
    ];
    if rng.u8(..10) == 0 {
        rng.shuffle(&mut members);
    }
    for key in ["requestURI", "objectRef", "requestObject", "sourceIPs", "annotations", "x"] {
        if rng.bool() {
            members.push(format!("\"{key}\":{}", value(rng, 5)));
        }
    }
    format!("{{{}}}", members.join(","))
}

/// Bodies of random events must all be accepted by the scanner, with the result of [`strict`].
#[test]
fn generated_bodies_need_no_serde_json() {
    for seed in seeds(5000) {
        let _failing = Failing(seed);
        let mut rng = Rng::with_seed(seed);
        let events: Vec<_> = (0..rng.usize(1..5)).map(|_| event(&mut rng)).collect();
        assert_eq!(check(&list(events.join(","))), Outcome::Usual);
    }
}
