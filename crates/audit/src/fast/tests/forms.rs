//! Bodies with every form of one thing at a time: characters, escapes, numbers, lengths of strings,
//! depths, envelopes, and the keys that have a meaning in an event.

use super::*;
use crate::DEPTH_MAX;

/// Places for a text inside of a string, as the bytes before and after it.
const TEXTS: [(&str, &str); 4] = [
    (r#""x":""#, r#""}"#),
    (r#""x":["a"#, r#"z"]}"#),
    (r#""x":{""#, r#"":0}}"#),
    (r#""x":{"a"#, r#"z":"\n"}}"#),
];

/// Places for a value, as the bytes before and after it.
const VALUES: [(&str, &str); 4] =
    [(r#""x":"#, "}"), (r#""x":"#, r#","y":1}"#), (r#""x":[0,"#, "]}"), (r#""x":["#, ",{}]}")];

/// Returns the outcome for a text in an event. Asserts that the outcome is the same at all offsets
/// in a small chunk.
fn at_every_offset(before: &str, text: impl AsRef<[u8]>, behind: &str) -> Outcome {
    let outcome = |offset: usize| {
        let padding = "x".repeat(offset);
        let head = format!(r#"{{"level":"None","auditID":"a{padding}","stage":"Panic",{before}"#);
        check(&list([head.as_bytes(), text.as_ref(), behind.as_bytes()].concat()))
    };
    let first = outcome(0);
    for offset in 1..SMALL {
        assert_eq!(outcome(offset), first, "{offset}: {}", text.as_ref().escape_ascii());
    }
    first
}

/// Asserts that a text has the expected outcome at each of `places`.
fn everywhere(places: &[(&str, &str)], text: impl AsRef<[u8]>, expected: Outcome) {
    let text = text.as_ref();
    for (before, behind) in places {
        let outcome = at_every_offset(before, text, behind);
        assert_eq!(outcome, expected, "{before}{}{behind}", text.escape_ascii());
    }
}

/// Fills two chunks with numbers, escapes or brackets, as dense as they can be, and makes one of
/// them wrong: the first, the last, and some between them. The scanner lists such places for each
/// chunk, and must lose none.
#[test]
fn one_fault_among_as_many_of_its_kind_as_a_chunk_can_hold() {
    for (before, valid, wrong, behind) in [
        (r#""x":["#, "1,", "a,", "0]}"),
        (r#""x":["#, "1,", "-,", "0]}"),
        (r#""x":""#, r"\t", r"\x", r#""}"#),
        (r#""x":""#, r"\u00e4", r"\u00g4", r#""}"#),
        (r#""x":["#, "{},", "{],", "0]}"),
        (r#""x":["#, "[],", "[},", "0]}"),
    ] {
        let count = 2 * CHUNK / valid.len();
        let body = |fault: usize| {
            let text = |at| if at == fault { wrong } else { valid };
            let text: String = (0..count).map(text).collect();
            let head = r#"{"level":"None","auditID":"a","stage":"Panic","#;
            list([head, before, &text, behind].concat())
        };
        assert_eq!(check(&body(count)), Outcome::Usual, "{valid}");
        for fault in (0..count).step_by(13).chain([count - 1]) {
            assert_eq!(check(&body(fault)), Outcome::Refused, "{wrong} at {fault}");
        }
    }
}

#[test]
fn every_byte_in_and_outside_of_a_string() {
    for byte in 0..=u8::MAX {
        let inside = match byte {
            b'"' | 0..0x20 | 0x80.. => Outcome::Refused,
            // The byte `\` is valid too: together with the `b` after it, it is the escape of a
            // backspace.
            _ => Outcome::Usual,
        };
        assert_eq!(at_every_offset(r#""x":"a"#, [byte], r#"b"}"#), inside, "{byte:#x}");
        let outside = match byte {
            b' ' | b'\t' | b'\n' | b'\r' => Outcome::Unusual,
            b'-' | b'1'..=b'9' => Outcome::Usual,
            _ => Outcome::Refused,
        };
        assert_eq!(at_every_offset(r#""x":[1,"#, [byte], "2]}"), outside, "{byte:#x}");
    }
}

/// A key with an escape makes the body unusual.
#[test]
fn escapes() {
    let right = r#"\" \\ \/ \b \f \n \r \t \u0000 \u00e4 \uABCD \uabcd \ud800 \udfff \ud83d\ude00 \ude00\ud83d
                   \u005c \u0022 \\u12 \\\u0000 \u00000 \n\u0020"#;
    let wrong = r"\u \u0 \u00 \u000 \u000g \ug000 \u12G4 \u-123 \u+123 \u1:23 \u12`4 \u12/4 \u12@4 \U0000 \u\u0000
                  \u00\n \x41 \a \v \0 \1 \' \, \: \{ \} \[ \] \N \T \\\ \\\u \ä";
    for escape in right.split_ascii_whitespace() {
        everywhere(&TEXTS, escape, Outcome::Usual);
        // A key with an escape may be one of the keys that have a meaning.
        everywhere(&[(r#"""#, r#"":1}"#), (r#""x":1,"a"#, r#"":{}}"#)], escape, Outcome::Unusual);
    }
    for escape in wrong.split_ascii_whitespace().chain(["\\ ", "\\\n", "\\u 123", "\\\u{7f}"]) {
        everywhere(&TEXTS, escape, Outcome::Refused);
    }
}

/// Runs of 0 to 199 backslashes before the end of a string. After an odd number the quote belongs
/// to the string.
#[test]
fn runs_of_backslashes() {
    for length in 0..200 {
        let run = vec![b'\\'; length];
        let [even, odd] = match length % 2 {
            0 => [Outcome::Usual, Outcome::Refused],
            _ => [Outcome::Refused, Outcome::Usual],
        };
        everywhere(&[(r#""x":""#, r#"","y":1}"#)], &run, even);
        // After an odd number of backslashes, the first quote belongs to the string.
        everywhere(&[(r#""x":""#, r#""","y":1}"#)], &run, odd);
    }
}

#[test]
fn utf8() {
    let right: [&[u8]; 8] = [
        b"\xc2\x80",
        b"\xdf\xbf",
        b"\xe0\xa0\x80",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xef\xbf\xbf",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
    ];
    let wrong: [&[u8]; 20] = [
        b"\x80",
        b"\xbf",
        b"\xc0\x80",
        b"\xc0\xa2",
        b"\xc1\xbf",
        b"\xc2",
        b"\xc2\xc0",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xf0\x9f\x98",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff",
    ];
    for text in right {
        everywhere(&TEXTS, text, Outcome::Usual);
        everywhere(&VALUES, text, Outcome::Refused);
    }
    for text in wrong {
        everywhere(&TEXTS, text, Outcome::Refused);
    }
    // Borders of blocks and chunks cut these characters at each of their bytes.
    everywhere(&TEXTS, "ä€😀".repeat(1000), Outcome::Usual);
}

#[test]
fn numbers_and_literals() {
    let long = "7".repeat(700);
    let right = format!(
        "0 -0 1 -1 10 0.0 -0.10 1.5 0e0 0E+0 0e-0 1e999 1.25E-400 1e1 true false null {long} -0.{long} 1E+{long}"
    );
    let wrong = "- +1 01 00 -01 --1 1. -1. .5 -.5 1.e1 1e 1e+ 1e- 1e+-1 1e1.5 1.5.5 1-1 1e1e1 0x1 1_0 1f 1n 1null 0true \
                 Infinity -Infinity NaN nan tru truee True TRUE nul nulll Null fals falsee falsefalse nulltrue n t f none \
                 undefined 'a' a -a 1a 1\\u0030 \\ \\n / \
                 // /**/1 1/**/ # \u{feff}1 1\u{2028} 1\u{0} \u{0} 1\u{7f}";
    for text in right.split_ascii_whitespace() {
        everywhere(&VALUES, text, Outcome::Usual);
    }
    for text in wrong.split_ascii_whitespace() {
        everywhere(&VALUES, text, Outcome::Refused);
    }
}

/// The characters of these strings would be syntax outside of a string.
#[test]
fn strings_of_every_length() {
    for length in 0..1100 {
        let text: String = r#"},{]:[n\""#.chars().cycle().take(length).collect();
        // A cut inside of an escape would leave a backslash before the closing quote.
        let text = text.strip_suffix('\\').unwrap_or(&text);
        for (value, expected) in [
            (format!(r#"["{text}","{text}"]"#), Outcome::Usual),
            (format!(r#"{{"{text}":"{text}","{text}":{{}}}}"#), Outcome::Usual),
            (format!(r#""{text}""#), Outcome::Usual),
            (format!(r#"{{"{text}"}}"#), Outcome::Refused),
            (format!(r#"{{"a":1,"{text}"}}"#), Outcome::Refused),
            (format!(r#"["{text}":1]"#), Outcome::Refused),
            (format!(r#""{text}":1"#), Outcome::Refused),
        ] {
            assert_eq!(check(&list(event(&value))), expected, "{value}");
        }
    }
}

/// Nesting around the limits of the scanner (61) and of events ([`DEPTH_MAX`]).
#[test]
fn depths() {
    // The first two fields are the brackets that are opened and closed in turn. The last shape has
    // other containers on every level, which are one level deeper.
    let shapes: [(&[&str], &[&str], usize); 4] = [
        (&["["], &["]"], 0),
        (&[r#"{"a":"#], &["}"], 0),
        (&["[", r#"{"a":"#], &["]", "}"], 0),
        (&["[0,", r#"{"":[],"a":"#], &[",{}]", r#","b":""}"#], 1),
    ];
    for (open, close, neighbour) in shapes {
        for depth in (50..=70).chain([126, 127, 128, 129]).chain([
            DEPTH_MAX - 1,
            DEPTH_MAX,
            DEPTH_MAX + 1,
            3_000_000,
        ]) {
            // The event itself is the first level.
            let levels = depth - 1 - neighbour;
            let before: String = (0..levels).map(|level| open[level % open.len()]).collect();
            let behind: String =
                (0..levels).rev().map(|level| close[level % close.len()]).collect();
            for (leaf, is_right) in [("1", true), (r#""""#, true), ("01", false), ("[}", false)] {
                let event = event(&format!("{before}{leaf}{behind}"));
                let expected = match depth {
                    _ if !is_right || depth > DEPTH_MAX => Outcome::Refused,
                    _ if depth > DEPTH => Outcome::Unusual,
                    _ => Outcome::Usual,
                };
                assert!(check(&list(&event)) == expected, "{depth} {open:?} {leaf}");
                if depth <= DEPTH_MAX + 1 {
                    let events = format!("{VARIED},{event},{VARIED}");
                    assert!(check(&list(events)) == expected, "{depth} {open:?} {leaf}");
                }
            }
        }
    }
    for count in [1, 2, 59, 60, 61, 62, 63, 64, 65, 127, 128, 4000, 100_000] {
        for bracket in ["{", "}", "[", "]", "[{", "}]", r#"{"a":"#, "]["] {
            assert!(
                check(&list(event(&bracket.repeat(count)))) == Outcome::Refused,
                "{bracket} {count}"
            );
        }
    }
}

/// Chunks that consist of brackets fill the list of brackets completely.
#[test]
fn chunks_full_of_brackets() {
    let pile = format!("{}{}", "[".repeat(59), "]".repeat(59));
    for text in ["[]", "{}", "[[]]", "[{},[]]", r#"{"":{}}"#, &pile] {
        for count in [1, 30, 300, 3000] {
            let many = vec![text; count].join(",");
            for (value, expected) in [
                (format!("[{many}]"), Outcome::Usual),
                (format!("[{many}}}"), Outcome::Refused),
                (format!("[{many},]"), Outcome::Refused),
                (format!("[{many}]]"), Outcome::Refused),
                (format!("[[{many}]"), Outcome::Refused),
                (format!("[{{{many}]"), Outcome::Refused),
            ] {
                assert!(check(&list(event(&value))) == expected, "{text} {count}");
            }
        }
    }
}

/// An event with every type of JSON value and most escapes, in few bytes.
const VARIED: &str = concat!(
    r#"{"level":"Request","auditID":"7\"","stage":"ResponseStarted","user":{"n":"\\","g":["a",""],"e":{},"x":[]},"#,
    r#""code":-1.5e+3,"ok":true,"no":null,"t":"\u00e4ä€😀\n","o":{"kind":"Pod","k":[[{"a":[false,0]}]]}}"#,
);

/// At each byte of two bodies: the byte is replaced by every other byte, a text is inserted, up to
/// five bytes are removed, or the rest is cut off and closed again. The scanner and `strict` must
/// agree about every body.
#[test]
fn one_change_at_every_byte() {
    const INSERTED: &str = r#"" \ \" , : { } [ ] 0 - . e ä 1, ,1 "", "": {}, [], null, \u \n
                              "kind":1, "kind":{}, "k\"":1, "stage":"x","#;
    let mut counts = Counts::default();
    let recorded = corpus().swap_remove(5).1;
    for body in [recorded, list(format!("{VARIED},{VARIED}"))] {
        for at in 0..body.len() {
            let (before, rest) = body.split_at(at);
            let (byte, behind) = rest.split_first().unwrap();
            for other in 0..=u8::MAX {
                counts.check(&[before, &[other], behind].concat());
            }
            for text in INSERTED.split_ascii_whitespace().chain([" ", "\n"]) {
                counts.check(&[before, text.as_bytes(), rest].concat());
            }
            for length in 1..6.min(rest.len()) {
                counts.check(&[before, &rest[length..]].concat());
            }
            // The byte occurs twice, or the rest of the body comes before its beginning, or the
            // rest is alone.
            counts.check(&[before, &[*byte], rest].concat());
            counts.check(&[rest, before].concat());
            counts.check(rest);
            for end in ["", "]}", "}]}", "\"}]}", "\"]}", "1}]}", "}}]}\n"] {
                counts.check(&[before, end.as_bytes()].concat());
            }
        }
    }
    let Counts { refused, unusual, usual } = counts;
    assert!(refused > 100_000 && unusual > 1000 && usual > 10_000, "{counts:?}");
}

/// A recorded body that is cut anywhere is refused; the scanner and `strict` must agree about the
/// cut body with a new end.
#[test]
fn recorded_bodies_cut_at_every_byte() {
    for (name, body) in corpus().into_iter().filter(|(_, body)| body.len() < 5000) {
        for end in 0..body.len() - 1 {
            assert_eq!(check(&body[..end]), Outcome::Refused, "{name} up to {end}");
            for mended in ["]}", "}]}\n", "\"}]}", "}}]}"] {
                check(&[&body[..end], mended.as_bytes()].concat());
            }
        }
    }
}

/// Each envelope is tried at all offsets: if a fault lies after the last full block, no byte of
/// that block shows it.
#[test]
fn envelopes() {
    for offset in 0..SMALL {
        envelope(&event(&format!("\"{}\"", "x".repeat(offset))));
    }
    for body in ["", "\n", "}", "]}", "{}", "[]", "]}\n"] {
        assert_eq!(check(body.as_bytes()), Outcome::Refused, "{body}");
    }
}

/// Checks the outcome for texts around a body, ends of the list, other items, and other heads.
fn envelope(event: &str) {
    let body = String::from_utf8(list(event)).unwrap();
    let body = body.trim_end();
    for (around, expected) in [
        ("_", Outcome::Usual),
        ("_\n", Outcome::Usual),
        ("_\n\n", Outcome::Unusual),
        ("_\r\n", Outcome::Unusual),
        ("_ ", Outcome::Unusual),
        (" _", Outcome::Unusual),
        ("\u{feff}_", Outcome::Refused),
        ("_}", Outcome::Refused),
        ("_,", Outcome::Refused),
        ("__", Outcome::Refused),
        ("_\n_\n", Outcome::Refused),
        ("[_]", Outcome::Refused),
    ] {
        assert_eq!(check(around.replace('_', body).as_bytes()), expected, "{around}");
    }
    for (end, expected) in [
        (r#"],"a":[]}"#, Outcome::Unusual),
        (r#"],"items":[]}"#, Outcome::Refused),
        (r#"],"kind":"Pod"}"#, Outcome::Unusual),
        ("", Outcome::Refused),
        ("]", Outcome::Refused),
        ("}", Outcome::Refused),
        ("}}", Outcome::Refused),
        (",}", Outcome::Refused),
        (":}", Outcome::Refused),
        ("\"}", Outcome::Refused),
        ("1}", Outcome::Refused),
        ("]]}", Outcome::Refused),
        ("]}}", Outcome::Refused),
        ("},{}", Outcome::Refused),
        ("]},{}", Outcome::Refused),
        ("]},{", Outcome::Refused),
        ("],[{}]}", Outcome::Refused),
    ] {
        let body = body.replace("]}", end);
        assert_eq!(check(body.as_bytes()), expected, "{end}");
    }
    for (items, expected) in [
        ("_,_", Outcome::Usual),
        ("_,_,_", Outcome::Usual),
        ("", Outcome::Unusual),
        (" _", Outcome::Unusual),
        ("_ ,_", Outcome::Unusual),
        ("_, _", Outcome::Unusual),
        ("__", Outcome::Refused),
        ("_,,_", Outcome::Refused),
        ("_:_", Outcome::Refused),
        ("_,", Outcome::Refused),
        (",_", Outcome::Refused),
        ("{_", Outcome::Refused),
        ("[_", Outcome::Refused),
        ("[_]", Outcome::Refused),
        ("_,[_]", Outcome::Refused),
        ("1,_", Outcome::Refused),
        ("_,1", Outcome::Refused),
        ("_,\"\"", Outcome::Refused),
        ("_,[]", Outcome::Refused),
        ("_,{}", Outcome::Refused),
        ("{},_", Outcome::Refused),
        ("\"a\":_", Outcome::Refused),
        ("_,\"a\":_", Outcome::Refused),
        // The first event is one byte shorter than the shortest event. Its `auditID` is empty.
        (r#"_,{"auditID":"","stage":"Panic"}"#, Outcome::Refused),
        (r#"_,{"auditID":"a","stage":"Panic"}"#, Outcome::Usual),
    ] {
        assert_eq!(check(&list(items.replace('_', event))), expected, "{items}");
    }
    for (from, to, expected) in [
        ("EventList", "List", Outcome::Refused),
        ("audit.k8s.io/v1", "audit.k8s.io/v1beta1", Outcome::Refused),
        (r#""metadata":{},"#, "", Outcome::Unusual),
        (r#""metadata":{}"#, r#""metadata":{"continue":""}"#, Outcome::Unusual),
        (r#""kind""#, r#""\u006bind""#, Outcome::Unusual),
        (r#""items""#, r#""items":1,"items""#, Outcome::Refused),
        ("[", "{", Outcome::Refused),
    ] {
        assert_eq!(check(body.replacen(from, to, 1).as_bytes()), expected, "{to}");
    }
    assert_eq!(check(event.as_bytes()), Outcome::Unusual);
}

/// An object that is too short for an event is not added to the list of events. For a body of the
/// smallest objects that list would take several times the size of the body.
#[test]
fn what_is_too_short_for_an_event_takes_no_place() {
    let body = list(["{}"; 1000].join(","));
    let body = body.strip_suffix(b"}\n").unwrap();
    for isa in Isa::ALL {
        let mut events = Vec::new();
        let is_right = array::<CHUNK>(isa, body, &mut events);
        assert!(!is_right && events.capacity() == 0, "{isa:?}");
    }
}

/// All sequences of up to four members, valid and invalid. Most of their keys have a meaning.
#[test]
fn members_that_count() {
    const MEMBERS: &str = r#""level":"Metadata" "level":"RequestResponse" "level":"Requestor" "level":null
        "auditID":"a" "auditID":"\"" "auditID":"" "auditID":["a"] "audit\u0049D":""
        "stage":"Panic" "stage":"RequestReceived" "stage":"Panicked" "stage":{} "st\u0061ge":"Other"
        "kind":"Event" "kind":"Pod" "\u006bind":"Event"
        "apiVersion":"audit.k8s.io/v1" "apiVersion":"audit.k8s.io/v1beta1" "apiVersio\u006e":{}
        "objectRef":{"kind":"Pod","apiVersion":"v1","stage":"x","auditID":"","k\u0069nd":1,"level":["None"]}
        "x":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa""#;
    let members: Vec<_> = MEMBERS.split_ascii_whitespace().collect();
    let mut counts = Counts::default();
    let mut at_first_look = 0;
    for length in 1..=4 {
        for mut number in 0..members.len().pow(length) {
            let mut chosen = Vec::new();
            for _ in 0..length {
                chosen.push(members[number % members.len()]);
                number /= members.len();
            }
            let event = format!("{{{}}}", chosen.join(","));
            let usual = counts.usual;
            counts.check(&list(&event));
            // `check_usual` must return the same as the full check, whenever it returns something.
            if counts.usual > usual
                && let Some(level) = check_usual(event.as_bytes())
            {
                assert_eq!(event::check(event.as_bytes()), Ok(level), "{event}");
                at_first_look += 1;
            }
        }
    }
    assert_eq!(counts, Counts { refused: 238_938, unusual: 1296, usual: 5176 });
    // There are events of two levels, one ID and two stages, alone or followed by one of 14 other
    // members. The ID that has a quote is left to the full check.
    assert_eq!(at_first_look, 4 + 4 * 14);
}

/// In an event's own members, `kind` and `apiVersion` have a meaning, even if the keys are written
/// with escapes; in nested objects they have none.
#[test]
fn kinds_and_versions() {
    const EVENT: &str = r#""level":"None","auditID":"a","stage":"Panic""#;
    const BOTH: &str = r#""kind":"Event","apiVersion":"audit.k8s.io/v1""#;
    const NAMES: &str = r#""kind" "apiVersion" "\u006bind" "kin\u0064" "api\u0056ersion"
        "\u0061\u0070\u0069\u0056\u0065\u0072\u0073\u0069\u006f\u006e""#;
    const VALUES: &str = r#""Event" "audit.k8s.io/v1" "Pod" "\u0045vent" "" null {} [1]"#;
    let x = "x".repeat(1000);
    for name in NAMES.split_ascii_whitespace() {
        for value in VALUES.split_ascii_whitespace() {
            let member = format!("{name}:{value}");
            for object in [
                format!("{{_,{EVENT}}}"),
                format!("{{{EVENT},_}}"),
                format!(r#"{{"x":{{}},_,{EVENT}}}"#),
                format!(r#"{{{EVENT},"x":[{{}}],_,"y":{{}}}}"#),
                format!(r#"{{{EVENT},"x":"{x}",_,"y":{{}}}}"#),
                format!(r#"{{{EVENT},_,"x":"{x}","y":{{}}}}"#),
                format!("{{_,_,{EVENT}}}"),
            ] {
                for members in
                    [member.clone(), format!("{member},{BOTH}"), format!("{BOTH},{member}")]
                {
                    let object = object.replace('_', &members);
                    assert_ne!(check(&list(&object)), Outcome::Usual, "{object}");
                }
            }
            for object in [
                format!(r#"{{{EVENT},"x":{{{member}}}}}"#),
                format!(r#"{{{EVENT},"x":[{{"a":{{{member},{member}}}}}]}}"#),
                format!(r#"{{{EVENT},"x":[{name},{value}],"y":{name}}}"#),
            ] {
                assert_eq!(check(&list(&object)), Outcome::Usual, "{object}");
            }
        }
    }
    assert_eq!(check(&list(format!("{{{BOTH},{EVENT}}}"))), Outcome::Unusual);
    // A key that only looks like `kind` or `apiVersion` is left to serde_json, which costs time and
    // changes no result.
    for (key, expected) in [
        ("kine", Outcome::Unusual),
        ("xxnx", Outcome::Unusual),
        ("xxxxxxxxxn", Outcome::Unusual),
        // The text that begins in the string before it has the length of `apiVersion`.
        (r#"x":"","xxxxxxn"#, Outcome::Unusual),
        (r#"x":"x","xxxxxxn"#, Outcome::Usual),
        ("kid", Outcome::Usual),
        ("kinds", Outcome::Usual),
        ("Kidn", Outcome::Usual),
        ("apiversio", Outcome::Usual),
        ("xapiVersion", Outcome::Usual),
        ("apiVersiom", Outcome::Usual),
    ] {
        assert_eq!(at_every_offset(&format!(r#""{key}":"#), "1", r#","y":{}}"#), expected, "{key}");
    }
}
