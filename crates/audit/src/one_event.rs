//! One event of a list, which a client of the cluster has shaped, beside others.
//!
//! Two drivers choose the shape: the test below, from random numbers, and
//! `fuzz/fuzz_targets/one_event.rs`, which includes this file, from the bytes of libFuzzer.

use crate::{DEPTH_MAX, Ended, Invalid, Items, LIST_HEAD, NOT_UTF8, decode, scan};

/// A recorded list, whose events 1, 3, 5 and 7 have annotations and bodies.
const RECORDED: &[u8] = include_bytes!("../../../tests/corpus/13-ssa-patch.json");

/// The members that decide if an object is an audit event.
const DECIDING: [&[u8]; 4] = [b"auditID", b"stage", b"kind", b"apiVersion"];

/// A change of one event.
#[derive(Debug)]
pub(crate) struct Shape<'a> {
    /// The changed event, and the string or the member in it, both counted round and round.
    pub(crate) event: usize,
    pub(crate) spot: usize,
    /// `true`: `bytes` replace what is between the quotes of a string, which may be a name.
    /// `false`: `bytes` replace the value of a member of the event.
    pub(crate) is_inside: bool,
    pub(crate) bytes: &'a [u8],
    /// The sizes of the pieces in which the list is read, in turn.
    pub(crate) sizes: &'a [u8],
}

/// The events of a body, the number of those with replaced bytes, and the number of items that are
/// not events.
type Taken = (Vec<u8>, u64, u64);

/// Checks what becomes of the recorded list with this change.
///
/// # Panics
///
/// If another event does not arrive as it is, if the changed event is neither there nor reported,
/// or if a body is accepted whose JSON is broken.
pub(crate) fn check(shape: &Shape<'_>) {
    let recorded = decode(RECORDED.to_vec()).expect("a list");
    let mut events: Vec<&[u8]> = recorded.lines.trim_ascii_end().split(|it| *it == b'\n').collect();
    let place = shape.event % events.len();
    let (own, may_decide) = shaped(events[place], shape);
    events[place] = &own;
    let list = [LIST_HEAD, &events.join(&b','), b"]}\n"].concat();
    let whole = decode(list.clone());
    let in_pieces = in_pieces(&list, shape.sizes);
    if !is_json(&list) {
        whole.expect_err("the JSON of the body is broken");
        in_pieces.expect_err("the JSON of the body is broken");
        return;
    }
    // If the event alone is not JSON, its bytes are a part of the list's own text.
    if !is_json(&own) {
        return;
    }
    let batch = whole.expect("a sound body is taken");
    let taken = (batch.lines.to_vec(), batch.mended, batch.rejected.count);
    assert_eq!(in_pieces, Ok(taken));
    let text = as_go_reads(&own);
    let is_mended = text.as_bytes() != own;
    let text = text.replace(['\n', '\r'], " ");
    let mut lines: Vec<&[u8]> = batch.lines.split(|it| *it == b'\n').collect();
    assert_eq!(lines.pop(), Some(&b""[..]), "each line has an end");
    if lines.len() == events.len() {
        assert_eq!((batch.mended, batch.rejected.count), (is_mended.into(), 0));
        assert_unchanged(lines.remove(place), &text, is_mended);
    } else {
        assert!(may_decide || depth(&text) > DEPTH_MAX, "rejected: {}", text.escape_debug());
        assert_eq!((batch.mended, batch.rejected.count), (0, 1));
        assert_eq!(batch.rejected.first[0].text, text);
    }
    events.remove(place);
    assert!(lines == events, "the others arrive as they are, in their order");
}

/// Returns the changed event. The second value is `true` if the change may make it something else
/// than an audit event.
fn shaped(event: &[u8], shape: &Shape<'_>) -> (Vec<u8>, bool) {
    let offset = |part: &[u8]| part.as_ptr() as usize - event.as_ptr() as usize;
    let members: Vec<_> = scan::members(event).collect();
    let spots: Vec<(usize, usize)> = if shape.is_inside {
        let quotes: Vec<_> = (0..event.len()).filter(|at| is_quote(event, *at)).collect();
        quotes.chunks(2).map(|pair| (pair[0] + 1, pair[1])).collect()
    } else {
        let values = members.iter().map(|member| member.value);
        values.map(|value| (offset(value), offset(value) + value.len())).collect()
    };
    let (start, end) = spots[shape.spot % spots.len()];
    let owner = members.iter().rfind(|member| offset(member.key) <= start);
    let is_name = members.iter().any(|member| offset(member.key) == start);
    let may_decide = is_name || owner.is_some_and(|member| DECIDING.contains(&member.key));
    ([&event[..start], shape.bytes, &event[end..]].concat(), may_decide)
}

/// Returns `true` if a quote at this place begins or ends a string.
fn is_quote(event: &[u8], at: usize) -> bool {
    let backslashes = event[..at].iter().rev().take_while(|it| **it == b'\\').count();
    event[at] == b'"' && backslashes.is_multiple_of(2)
}

/// Takes the list as the listener takes one that is larger than `limits.max_body`: item by item.
fn in_pieces(list: &[u8], sizes: &[u8]) -> Result<Taken, Option<Invalid>> {
    let (mut lines, mut mended, mut rejected) = (Vec::new(), 0, 0);
    let (mut items, mut item) = (Items::default(), LIST_HEAD.to_vec());
    let mut sizes = sizes.iter().map(|size| usize::from(*size) + 1).cycle();
    let mut rest = list;
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(list.len()).min(rest.len());
        let (count, ended) = items.read(&rest[..size], &mut item)?;
        rest = &rest[count..];
        if ended == Ended::Input {
            continue;
        }
        item.extend_from_slice(b"]}");
        match decode(std::mem::replace(&mut item, LIST_HEAD.to_vec())) {
            Ok(batch) => {
                lines.extend_from_slice(&batch.lines);
                mended += batch.mended;
            }
            Err(fault) if fault.is_sound => rejected += 1,
            Err(fault) => return Err(Some(fault)),
        }
    }
    items.finish()?;
    Ok((lines, mended, rejected))
}

/// Returns the text that Go's reader of JSON finds in these bytes.
fn as_go_reads(bytes: &[u8]) -> String {
    let (mut text, mut rest) = (String::new(), bytes);
    while let Some((_, behind)) = rest.split_first() {
        let character = (1..=rest.len().min(4)).find_map(|size| {
            let (first, behind) = rest.split_at(size);
            Some((std::str::from_utf8(first).ok()?, behind))
        });
        let (character, behind) = character.unwrap_or(("\u{fffd}", behind));
        text.push_str(character);
        rest = behind;
    }
    text
}

fn is_json(bytes: &[u8]) -> bool {
    // serde_json skips a value of any depth without recursion.
    serde_json::from_str::<serde::de::IgnoredAny>(&as_go_reads(bytes)).is_ok()
}

/// Returns the number of levels of a JSON text.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest) = (0_usize, 0);
    let mut is_string = false;
    for (at, byte) in text.bytes().enumerate() {
        is_string ^= byte == b'"' && is_quote(text.as_bytes(), at);
        match byte {
            b'{' | b'[' if !is_string => open += 1,
            b'}' | b']' if !is_string => open -= 1,
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest
}

/// Checks that a line is this event, with the mark if it must have one.
fn assert_unchanged(line: &[u8], event: &str, is_marked: bool) {
    if !is_marked {
        assert_eq!(line, event.as_bytes());
        return;
    }
    let line = std::str::from_utf8(line).expect("UTF-8");
    assert!(is_json(line.as_bytes()), "{line}");
    let annotations = |text: &str| scan::member(text.as_bytes(), "annotations").map(<[u8]>::to_vec);
    let others = |text: &str| {
        let members = scan::members(text.as_bytes());
        let pairs = members.map(|member| (member.key.to_vec(), member.value.to_vec()));
        pairs.filter(|(key, _)| key != b"annotations").collect::<Vec<_>>()
    };
    assert_eq!(others(line), others(event));
    let (before, after) = (annotations(event), annotations(line).expect("annotations"));
    match before.as_deref() {
        // kube-apiserver's annotations are always an object.
        Some([b'{' | b'n', ..]) | None => {
            assert_eq!(scan::member(&after, NOT_UTF8), Some(&b"\"true\""[..]), "{line}");
        }
        Some(other) => assert_eq!(after, other),
    }
    if let Some([b'{', ..]) = before.as_deref() {
        let kept: Vec<_> =
            scan::members(&after).filter(|it| it.key != NOT_UTF8.as_bytes()).collect();
        assert_eq!(kept, scan::members(before.as_deref().unwrap_or_default()).collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::{Failing, seeds};

    /// The parts of the bytes that replace a string or a value.
    const PARTS: [&[u8]; 30] = [
        b"\xff",
        b"\xfe",
        b"\x80",
        b"\xc3",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
        b"\xf4\x90\x80\x80",
        "ä😀".as_bytes(),
        b"\"",
        b"\\",
        b"\\\"",
        br"\ud800",
        br"\n",
        b"\n",
        b"\r\n",
        b"\0",
        b" ",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"-1.5e400",
        b"{}",
        br#""a":[{"b":"c"}]"#,
        br#"},{"auditID":"a","stage":"Panic""#,
        br#"]},"items":["#,
    ];

    /// Half of the values are valid JSON, but for bytes that are not UTF-8.
    fn value(rng: &mut fastrand::Rng) -> Vec<u8> {
        let parts = |rng: &mut fastrand::Rng, from: &[&[u8]]| {
            (0..rng.usize(..6)).map(|_| from[rng.usize(..from.len())]).collect::<Vec<_>>().concat()
        };
        let inner = match rng.u8(..6) {
            0 | 1 => return parts(rng, &PARTS),
            2 => [b"\"", &parts(rng, &PARTS)[..], b"\""].concat(),
            // The first parts are neither quotes nor escapes.
            3 | 4 => [b"\"", &parts(rng, &PARTS[..9])[..], b"\""].concat(),
            _ => b"7".to_vec(),
        };
        let levels = match rng.u8(..16) {
            0 => 1_100,
            1 => rng.usize(DEPTH_MAX - 3..DEPTH_MAX + 3),
            _ => rng.usize(..3),
        };
        let (open, close) = [(&b"["[..], &b"]"[..]), (b"{\"\xff\":", b"}")][rng.usize(..2)];
        [&open.repeat(levels)[..], &inner, &close.repeat(levels)].concat()
    }

    /// Method: a string or a member of a recorded event becomes something else, for each seed.
    #[test]
    fn whatever_stands_in_an_event_the_others_of_its_list_arrive() {
        for seed in seeds(1500) {
            let _failing = Failing(seed);
            let mut rng = fastrand::Rng::with_seed(seed);
            let bytes = value(&mut rng);
            let is_inside = rng.bool();
            let quoted = is_inside && bytes.first() == Some(&b'"') && bytes.len() > 1;
            let sizes: Vec<u8> = (0..7).map(|_| 1 << rng.u8(..8)).collect();
            check(&Shape {
                event: rng.usize(..),
                spot: rng.usize(..),
                is_inside,
                bytes: if quoted { &bytes[1..bytes.len() - 1] } else { &bytes },
                sizes: &sizes,
            });
        }
    }
}
