//! Events that a test can tell apart and check one by one. Each event is generated from the number
//! of its sender and its own number. Its auditID contains both, so the auditID determines every
//! byte.

use std::ops::Range;

/// The sender of an event, and the event's number among those of this sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) sender: u32,
    pub(crate) number: u64,
}

/// JSON text that a careless relay would change, in pieces of about 24 bytes.
const PIECES: [&str; 6] = [
    "plain ascii of 24 bytes ",
    r"escaped \u00e9\ud83d\ude00",
    "größer als 16 Bytes, ja ",
    r#"\"quotes\" and \\ and \/ "#,
    r"tabs\tand\nline\r\nbreaks",
    "日本語日本語日本",
];

/// Generates the event. Most events are small; one in a thousand is large.
pub(crate) fn event(id: Id) -> Vec<u8> {
    let Id { sender, number } = id;
    let mut draw = mix(u64::from(sender) << 32 ^ number);
    let pieces = match draw % 1000 {
        0 => 1000,
        1..30 => 80,
        _ => 2 + draw / 1000 % 10,
    };
    let mut event = format!(
        r#"{{"level":"RequestResponse","auditID":"{sender:08x}-0000-4000-8000-{number:012x}","stage":"ResponseComplete","n":[1e400,{draw},-0.10, 1.0],"text":""#
    );
    for _ in 0..pieces {
        draw = mix(draw);
        event.push_str(PIECES[usize::try_from(draw % 6).expect("below 6")]);
    }
    event.push_str("\"}");
    event.into_bytes()
}

/// splitmix64: turns neighbouring numbers into unrelated ones.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns the id of this event. Panics if any byte differs from the generated event.
pub(crate) fn identify(bytes: &[u8]) -> Id {
    let told = || String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
    unchanged(bytes).unwrap_or_else(|| panic!("not an event that was sent, or changed: {}", told()))
}

fn unchanged(bytes: &[u8]) -> Option<Id> {
    id_of(bytes).filter(|id| event(*id) == bytes)
}

fn id_of(bytes: &[u8]) -> Option<Id> {
    const BEFORE: &[u8] = br#"{"level":"RequestResponse","auditID":""#;
    let id = bytes.strip_prefix(BEFORE)?.get(..36)?;
    let id = std::str::from_utf8(id).ok()?;
    Some(Id {
        sender: u32::from_str_radix(id.get(..8)?, 16).ok()?,
        number: u64::from_str_radix(id.get(24..)?, 16).ok()?,
    })
}

/// Returns the events of a sender with these numbers, in order.
pub(crate) fn events(sender: u32, numbers: Range<u64>) -> Vec<Vec<u8>> {
    numbers.map(|number| event(Id { sender, number })).collect()
}

/// Returns a body as kube-apiserver sends it. If `alone`, the body is a single event without a
/// list.
pub(crate) fn body(sender: u32, numbers: Range<u64>, alone: bool) -> Vec<u8> {
    if alone {
        assert_eq!(numbers.end - numbers.start, 1, "one event");
        return event(Id { sender, number: numbers.start });
    }
    let mut body =
        br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    for (index, event) in events(sender, numbers).into_iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend(event);
    }
    body.extend(b"]}\n");
    body
}

/// Returns an EventList as kube-apiserver sends it.
pub(crate) fn list(sender: u32, numbers: Range<u64>) -> Vec<u8> {
    body(sender, numbers, false)
}

#[test]
fn an_event_says_whose_it_is_and_any_change_shows() {
    for number in 0..5000 {
        let id = Id { sender: 7, number };
        let event = event(id);
        assert_eq!(identify(&event), id);
        serde_json::from_slice::<Box<serde_json::value::RawValue>>(&event).unwrap();
    }
    let event = event(Id { sender: 1, number: 2 });
    for at in 0..event.len() {
        let mut changed = event.clone();
        changed[at] ^= 1;
        assert_eq!(unchanged(&changed), None, "byte {at}");
    }
    let listed = super::corpus::events_of(&list(3, 0..500));
    assert_eq!(listed, events(3, 0..500));
}
