//! Bodies with all sequences of a few tokens or bytes, at all offsets in a block, and at all
//! borders of blocks and chunks.

use super::*;

const TOKENS: &str = r#"{ } [ ] , : "a" 1 "" "\n""#;

/// More tokens, valid and invalid; `_` stands for a space.
const MORE: &str = r#"{ } [ ] , : "a" 1 true null -0 0 .5 e1 _ "kind" "\"" ":" "," "{" "\\" ä"#;

/// Bytes of brackets, strings, escapes and literals.
const BYTES: &str = r#"" \ u 1 n : , { } [ ]"#;

/// The text between the event's beginning and a sequence, and the text after the sequence up to the
/// end of the body.
type Place<'a> = (&'a str, &'a str);

const VALUE: Place<'_> = (r#""x":"#, r#","y":"z"}]}"#);
const LAST_VALUE: Place<'_> = (r#""x":"#, "}]}\n");
const ELEMENT: Place<'_> = (r#""x":[1,"#, r#",{}]}]}"#);
const MEMBER: Place<'_> = (r#""x":{"a":1"#, r#"}}]}"#);
const STRING: Place<'_> = (r#""x":""#, r#"","y":1}]}"#);
const BEHIND_EVENT: Place<'_> =
    (r#""x":1}"#, r#",{"level":"None","auditID":"b","stage":"Panic"}]}"#);
const END: Place<'_> = (r#""x":[{"a":1"#, "");

/// Returns a body that contains `sequence`, `offset` bytes later than at its earliest place.
fn body(sequence: &str, (before, behind): Place<'_>, offset: usize) -> Vec<u8> {
    let padding = "x".repeat(offset);
    let event = format!(r#"{{"level":"Request","auditID":"a{padding}","stage":"Panic","#);
    [LIST_HEAD, event.as_bytes(), before.as_bytes(), sequence.as_bytes(), behind.as_bytes()]
        .concat()
}

/// Calls `call` for each sequence of up to `most` words.
fn for_each(words: &str, most: u32, mut call: impl FnMut(&str)) {
    let words: Vec<_> = words.split(' ').map(|word| word.replace('_', " ")).collect();
    let mut sequence = String::new();
    for length in 0..=most {
        for mut number in 0..words.len().pow(length) {
            sequence.clear();
            for _ in 0..length {
                sequence.push_str(&words[number % words.len()]);
                number /= words.len();
            }
            call(&sequence);
        }
    }
}

/// Checks all sequences at one place, each at one offset. Over all sequences, each offset in a
/// small chunk occurs.
fn each_once(words: &str, most: u32, place: Place<'_>) -> Counts {
    let (mut counts, mut offset) = (Counts::default(), 0);
    for_each(words, most, |sequence| {
        // The step 197 has no common divisor with the size of the chunk or with the number of
        // words.
        offset = (offset + 197) % SMALL;
        counts.check(&body(sequence, place, offset));
    });
    counts
}

#[test]
fn six_tokens_as_a_value() {
    let counts = each_once(TOKENS, 6, VALUE);
    assert_eq!(counts, Counts { refused: 1_110_903, unusual: 40, usual: 168 });
}

#[test]
fn five_tokens_anywhere_else() {
    for (place, unusual, usual) in [
        (LAST_VALUE, 16, 82),
        (ELEMENT, 0, 203),
        (MEMBER, 1, 41),
        (STRING, 0, 19_608),
        (BEHIND_EVENT, 0, 1),
        (END, 0, 1),
    ] {
        let counts = each_once(TOKENS, 5, place);
        assert_eq!(
            counts,
            Counts { refused: 111_111 - unusual - usual, unusual, usual },
            "{place:?}"
        );
    }
}

#[test]
fn four_tokens_of_more_kinds() {
    for (place, unusual, usual) in [(VALUE, 260, 129), (ELEMENT, 836, 513), (MEMBER, 80, 244)] {
        let counts = each_once(MORE, 4, place);
        assert_eq!(
            counts,
            Counts { refused: 245_411 - unusual - usual, unusual, usual },
            "{place:?}"
        );
    }
}

#[test]
fn five_bytes() {
    for (place, usual) in [(VALUE, 901), (STRING, 76_216)] {
        let counts = each_once(BYTES, 5, place);
        assert_eq!(counts, Counts { refused: 177_156 - usual, unusual: 0, usual }, "{place:?}");
    }
}

#[test]
fn three_tokens_at_every_offset() {
    let mut counts = Counts::default();
    for offset in 0..SMALL {
        for_each(TOKENS, 3, |sequence| counts.check(&body(sequence, VALUE, offset)));
    }
    // The offsets reach up to a chunk's border and beyond it.
    for offset in CHUNK - 100..CHUNK {
        for_each(TOKENS, 3, |sequence| counts.check(&body(sequence, VALUE, offset)));
    }
    assert_eq!(counts, Counts { refused: 612 * 1099, unusual: 0, usual: 612 * 12 });
}

/// The bracket that shows that a token is wrong may lie in the next chunk. Between the sequence and
/// that bracket are two chunks of other members.
#[test]
fn three_tokens_far_from_the_next_bracket() {
    for member in
        [r#","k":1"#.into(), r#","k":"v""#.into(), format!(r#","{0}":"{0}""#, "x,".repeat(50))]
    {
        let members = member.repeat(2 * CHUNK / member.len());
        let elements = members.replace(':', ",");
        for (before, behind, usual) in [
            (r#""x":{"a":1"#, format!("{members}}}}}]}}"), 4),
            (r#""x":{"a":[]"#, format!("{members},\"z\":[]}}}}]}}"), 1),
            (r#""x":[1"#, format!("{elements}]}}]}}"), 15),
            (r#""x":[{}"#, format!("{elements},[]]}}]}}"), 8),
        ] {
            let counts = each_once(TOKENS, 3, (before, &behind));
            assert_eq!(
                counts,
                Counts { refused: 1111 - usual, unusual: 0, usual },
                "{before} {member}"
            );
        }
    }
}
