//! A large body, decoded in pieces while it arrives.
//!
//! [`Pieces`] takes the bytes of a body as they come, cuts them between two events, and decodes
//! each piece as if it were a small body of its own. Memory holds about one piece and the largest
//! single event, whatever the body's size.
//!
//! A body has one of two forms. The pieces of an `EventList` are parts of its array `items`: each
//! is decoded with the head of a list before it and the end of one behind it. All bytes outside of
//! the array are kept (the *frame*), and decoded at the end with an empty array in their middle.
//! The pieces of JSON lines end at a line break between two events.
//!
//! The cuts decide nothing about validity. A frame that is a valid list with an empty array, and
//! pieces that are valid as contents of an array, make a valid list when they are put together.
//! Therefore a body that [`super::decode`] refuses is refused here too, wherever the cuts fell.

use std::borrow::Cow;

use super::Invalid;
use super::LIST_HEAD;
use super::LevelCounts;
use super::Split;
use super::decode_in_place;
use super::decode_lines_in_place;
use super::scan;

/// Bytes outside of `items` that a large list may have: 1 MiB, where kube-apiserver writes 76
/// bytes. With small pieces it is half of a piece.
const FRAME_MAX: usize = 1024 * 1024;

/// Stands behind the events of a piece while it is decoded: the end of a list, and room for the
/// last line's end.
const LIST_TAIL: &[u8; 4] = b"]}\n\n";

/// Takes the lines of a large body.
pub trait Store {
    /// Why lines could not be stored.
    type Error: From<Invalid>;

    /// Stores lines behind those before: `events` events, each followed by one `\n`.
    ///
    /// # Errors
    ///
    /// The body is not taken then.
    fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Self::Error>;
}

/// The form of a body, and the part of it that is arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Too little has come to tell the form.
    Unknown,
    /// The array `items` of a list.
    Items,
    /// Behind that array.
    Tail,
    /// JSON lines, or one event.
    Lines,
}

/// A body on its way in. The request that reads it owns it.
///
/// The window holds `LIST_HEAD`, and behind it the bytes of the body that were in no piece yet.
pub struct Pieces {
    /// Bytes after which a piece is cut at the next end of an event.
    piece_bytes: usize,
    window: Vec<u8>,
    /// Bytes of the window that were looked through.
    looked: usize,
    /// End of the last whole event that was seen in the window: at its comma, or behind its line
    /// break.
    cut: Option<usize>,
    /// Open brackets at `looked`, those around the events not counted.
    depth: usize,
    in_string: bool,
    /// A backslash in a text was the last byte that was looked at.
    escaped: bool,
    part: Part,
    /// A piece was handed on: what follows in JSON lines is no list.
    has_begun: bool,
    /// Bytes of the body before the window.
    before: usize,
    /// The body's bytes outside of `items`.
    frame: Vec<u8>,
    /// Bytes of the frame before the contents of `items`, and bytes of these contents.
    items_at: usize,
    items_bytes: usize,
    events: u64,
    levels: LevelCounts,
}

impl Pieces {
    /// An empty body, whose pieces are cut at the first end of an event after `piece_bytes` bytes.
    #[must_use]
    pub fn new(piece_bytes: usize) -> Self {
        Self {
            piece_bytes: piece_bytes.max(2),
            window: LIST_HEAD.to_vec(),
            looked: LIST_HEAD.len(),
            cut: None,
            depth: 0,
            in_string: false,
            escaped: false,
            part: Part::Unknown,
            has_begun: false,
            before: 0,
            frame: Vec::new(),
            items_at: 0,
            items_bytes: 0,
            events: 0,
            levels: LevelCounts::default(),
        }
    }

    /// Bytes of memory that it takes. An event that is much larger than a piece counts twice,
    /// because the window is copied when it grows.
    #[must_use]
    pub fn held(&self) -> usize {
        let copied = if self.waiting() > 4 * self.piece_bytes { self.waiting() } else { 0 };
        self.waiting() + copied + self.frame.len()
    }

    fn frame_max(&self) -> usize {
        FRAME_MAX.min(self.piece_bytes / 2)
    }

    /// Takes the next bytes of the body, and hands on the pieces that are whole.
    ///
    /// # Errors
    ///
    /// The body is invalid, or the store does not take its lines. The body is not taken then.
    pub fn push<S: Store>(&mut self, bytes: &[u8], store: &mut S) -> Result<(), S::Error> {
        for step in bytes.chunks(self.piece_bytes) {
            self.make_room(step.len());
            self.window.extend_from_slice(step);
            if self.part == Part::Unknown {
                self.skip_blanks();
                if self.waiting() > self.frame_max() {
                    self.recognise();
                }
            }
            self.look();
            if self.part == Part::Tail {
                self.end_items(store)?;
            } else if self.waiting() >= self.piece_bytes
                && let Some(cut) = self.cut
            {
                self.hand_on(cut, store)?;
            }
        }
        Ok(())
    }

    /// The body has ended. Returns the number of its events, and the same by level.
    ///
    /// # Errors
    ///
    /// As [`Pieces::push`].
    pub fn end<S: Store>(mut self, store: &mut S) -> Result<(u64, LevelCounts), S::Error> {
        if self.part == Part::Unknown {
            self.recognise();
            self.look();
        }
        match self.part {
            Part::Tail => {
                self.end_items(store)?;
                self.check_frame()?;
            }
            Part::Items => return Err(self.broken_off().into()),
            Part::Lines | Part::Unknown => {
                self.hand_on(self.window.len(), store)?;
                if self.events == 0 {
                    return Err(
                        Invalid { byte: 0, item: None, what: "the body is empty".into() }.into()
                    );
                }
            }
        }
        Ok((self.events, self.levels))
    }

    /// Bytes of the body in the window.
    fn waiting(&self) -> usize {
        self.window.len() - LIST_HEAD.len()
    }

    /// The window grows by a quarter where an event is large: doubling would hold three times the
    /// event while it is copied.
    fn make_room(&mut self, bytes: usize) {
        if self.window.capacity() - self.window.len() < bytes {
            self.window.reserve_exact(bytes + (self.window.len() / 4).max(self.piece_bytes));
        }
    }

    /// Forgets white space in front of the body, which may be long.
    fn skip_blanks(&mut self) {
        let body = &self.window[LIST_HEAD.len()..];
        let blanks = body.iter().position(|byte| !byte.is_ascii_whitespace());
        self.drop_front(blanks.unwrap_or(body.len()));
    }

    /// Tells the form of the body by its beginning.
    fn recognise(&mut self) {
        let body = &self.window[LIST_HEAD.len()..];
        let Some(length) = items_start(body) else {
            self.part = Part::Lines;
            return;
        };
        self.part = Part::Items;
        self.frame = body[..length].to_vec();
        self.items_at = length;
        self.drop_front(length);
    }

    /// Forgets the first bytes of the body in the window.
    fn drop_front(&mut self, bytes: usize) {
        let front = LIST_HEAD.len();
        self.window.drain(front..front + bytes);
        self.looked = self.looked.saturating_sub(bytes).max(front);
        self.before += bytes;
        self.cut = None;
    }

    /// Looks through the window for ends of events, up to its end or the end of the list.
    fn look(&mut self) {
        while matches!(self.part, Part::Items | Part::Lines) && self.looked < self.window.len() {
            if self.in_string {
                self.skip_text();
                continue;
            }
            match self.window[self.looked] {
                b'"' => self.in_string = true,
                b']' if self.depth == 0 && self.part == Part::Items => {
                    self.part = Part::Tail;
                    return;
                }
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b',' if self.depth == 0 && self.part == Part::Items => self.cut = Some(self.looked),
                b'\n' | b'\r' if self.depth == 0 && self.part == Part::Lines => {
                    self.cut = Some(self.looked + 1);
                }
                _ => {}
            }
            self.looked += 1;
        }
    }

    /// Goes on to behind the end of a text, or to the end of the window.
    fn skip_text(&mut self) {
        if std::mem::take(&mut self.escaped) {
            self.looked += 1;
            return;
        }
        let rest = &self.window[self.looked..];
        let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
            self.looked = self.window.len();
            return;
        };
        self.in_string = rest[found] != b'"';
        self.escaped = self.in_string;
        self.looked += found + 1;
    }

    /// Decodes the body's bytes in the window up to `cut`, and stores their lines.
    fn hand_on<S: Store>(&mut self, cut: usize, store: &mut S) -> Result<(), S::Error> {
        let is_list = self.part != Part::Lines && self.part != Part::Unknown;
        let front = LIST_HEAD.len();
        let tail = if is_list { &LIST_TAIL[..] } else { &LIST_TAIL[3..] };
        // The tail stands in place of the bytes behind the piece while it is decoded.
        let length = self.window.len();
        self.window.resize(length.max(cut + tail.len()), 0);
        let mut behind = [0; LIST_TAIL.len()];
        behind[..tail.len()].copy_from_slice(&self.window[cut..cut + tail.len()]);
        self.window[cut..cut + tail.len()].copy_from_slice(tail);
        let (from, shift) = if is_list { (0, front) } else { (front, 0) };
        let piece = &mut self.window[from..cut + tail.len()];
        let decoded = match self.part {
            Part::Lines if self.has_begun => decode_lines_in_place(piece),
            Part::Lines | Part::Unknown | Part::Items | Part::Tail => decode_in_place(piece),
        };
        let Split { lines, events, levels } = decoded.map_err(|error| self.place(error, shift))?;
        if events > 0 {
            store.store(&self.window[from + lines.start..from + lines.end], events)?;
        }
        self.window[cut..cut + tail.len()].copy_from_slice(&behind[..tail.len()]);
        self.window.truncate(length);
        if is_list && events == 0 && (self.part == Part::Items || self.events > 0) {
            let byte = self.before + cut - front;
            let what = Cow::from("not JSON: expected value");
            let item = usize::try_from(self.events).ok();
            return Err(Invalid { byte, item, what }.into());
        }
        self.events += events;
        for (sum, count) in self.levels.iter_mut().zip(levels) {
            *sum += count;
        }
        self.has_begun = true;
        let comma = usize::from(self.part == Part::Items);
        let taken = (cut + comma - front).min(self.waiting());
        if is_list {
            self.items_bytes += taken;
        }
        self.drop_front(taken);
        Ok(())
    }

    /// The array has ended: its last events are handed on, and all that comes is of the frame.
    fn end_items<S: Store>(&mut self, store: &mut S) -> Result<(), S::Error> {
        // The bracket is in the frame once the last events were handed on.
        if self.frame.len() == self.items_at {
            self.hand_on(self.looked, store)?;
        }
        // White space behind the list may be long, and says nothing.
        let rest = &self.window[LIST_HEAD.len()..];
        let is_whole = self.frame.last() == Some(&b'}');
        if !(is_whole && rest.iter().all(u8::is_ascii_whitespace)) {
            let said = rest.trim_ascii_end().len();
            let blank = rest.get(said..).and_then(<[u8]>::first);
            self.frame.extend_from_slice(&rest[..said]);
            self.frame.extend(blank);
        }
        self.drop_front(self.waiting());
        if self.frame.len() > self.frame_max() {
            let most = self.frame_max();
            let what = format!("more than {most} bytes of a large list are outside of items");
            return Err(Invalid { byte: self.before, item: None, what: what.into() }.into());
        }
        Ok(())
    }

    fn check_frame(&mut self) -> Result<(), Invalid> {
        self.frame.push(b'\n');
        let decoded = decode_in_place(&mut self.frame).map_err(|error| {
            let is_behind = error.byte > self.items_at;
            let byte = error.byte + if is_behind { self.items_bytes } else { 0 };
            Invalid { byte, ..error }
        })?;
        if decoded.events > 0 {
            let what = "kind is Event, where items is an array of more than a MiB".into();
            return Err(Invalid { byte: 0, item: None, what });
        }
        Ok(())
    }

    /// The body ended before its list did.
    fn broken_off(&mut self) -> Invalid {
        self.window.push(b'\n');
        match decode_in_place(&mut self.window) {
            Err(error) => self.place(error, LIST_HEAD.len()),
            // A list that does not end is never valid.
            Ok(_) => {
                Invalid { byte: self.before, item: None, what: "not JSON: it breaks off".into() }
            }
        }
    }

    /// An error of a piece, with the place that it has in the body.
    fn place(&self, error: Invalid, shift: usize) -> Invalid {
        let item = error
            .item
            .map(|item| item.saturating_add(usize::try_from(self.events).unwrap_or(usize::MAX)));
        Invalid { byte: self.before + error.byte.saturating_sub(shift), item, what: error.what }
    }
}

/// Offset behind the bracket that opens `items`, where the beginning of a body is that of a list.
fn items_start(body: &[u8]) -> Option<usize> {
    let open = body.iter().position(|byte| !byte.is_ascii_whitespace())?;
    if body[open] != b'{' {
        return None;
    }
    let mut has_kind = false;
    for member in scan::members(&body[open..]) {
        match &*scan::key(member.key) {
            // The first of duplicate keys counts. An event may have a member `items`, and stays an
            // event.
            b"kind"
                if !std::mem::replace(&mut has_kind, true)
                    && scan::string(member.value).as_deref() == Some(b"Event") =>
            {
                return None;
            }
            b"items" if member.value.first() == Some(&b'[') => {
                return Some(member.value.as_ptr() as usize - body.as_ptr() as usize + 1);
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
#[allow(
    clippy::panic_in_result_fn,
    reason = "a store that is tested, and an outcome that is compared"
)]
mod tests {
    use super::*;
    use crate::audit::decode;
    use crate::tests::corpus;
    use proptest::prelude::*;

    const PIECE_BYTES: usize = 600;

    #[derive(Default)]
    struct Lines {
        text: Vec<u8>,
        events: u64,
        largest: usize,
    }

    impl Store for Lines {
        type Error = Invalid;

        fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Invalid> {
            assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count() as u64, events);
            self.text.extend_from_slice(lines);
            self.events += events;
            self.largest = self.largest.max(lines.len());
            Ok(())
        }
    }

    type Outcome = Result<(Vec<u8>, u64, LevelCounts), Invalid>;

    fn in_pieces(body: &[u8], steps: &[usize]) -> Outcome {
        let (mut pieces, mut lines, mut rest) = (Pieces::new(PIECE_BYTES), Lines::default(), body);
        let mut steps = steps.iter().cycle();
        while !rest.is_empty() {
            let step = steps.next().map_or(rest.len(), |step| (*step).clamp(1, rest.len()));
            pieces.push(&rest[..step], &mut lines)?;
            rest = &rest[step..];
        }
        let (events, levels) = pieces.end(&mut lines)?;
        assert_eq!(events, lines.events);
        Ok((lines.text, events, levels))
    }

    fn whole(body: &[u8]) -> Outcome {
        let batch = decode(body.to_vec())?;
        Ok((batch.lines.to_vec(), batch.events, batch.levels))
    }

    /// The same events, or a refusal of both.
    fn compare(body: &[u8], steps: &[usize]) {
        let (expected, got) = (whole(body), in_pieces(body, steps));
        match (&expected, &got) {
            (Ok(expected), Ok(got)) => assert_eq!(expected, got),
            (Err(_), Err(_)) => {}
            _ => panic!(
                "whole: {:?}, in pieces of {steps:?}: {:?}: {}",
                expected.map(|it| it.1),
                got.map(|it| it.1),
                String::from_utf8_lossy(body)
            ),
        }
    }

    fn event(bytes: usize) -> String {
        format!(r#"{{"auditID":"a","stage":"Panic","x":"{}"}}"#, "\\\"]},[{".repeat(bytes / 7))
    }

    fn list(events: &[String]) -> String {
        let head = std::str::from_utf8(LIST_HEAD).unwrap();
        format!("{head}{}]}}\n", events.join(","))
    }

    #[test]
    fn the_corpus_comes_out_in_pieces_as_it_does_whole() {
        for (name, body) in corpus() {
            for steps in [&[usize::MAX][..], &[1], &[4096, 7, 100_000]] {
                assert_eq!(in_pieces(&body, steps), whole(&body), "{name}");
            }
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/audit.log");
        let log = std::fs::read(path).unwrap();
        assert_eq!(in_pieces(&log, &[1000]), whole(&log));
    }

    #[test]
    fn a_piece_is_hardly_larger_than_its_largest_event_makes_it() {
        let events: Vec<String> = (0..100).map(|_| event(100)).collect();
        let (mut pieces, mut lines) = (Pieces::new(PIECE_BYTES), Lines::default());
        for part in list(&events).as_bytes().chunks(50) {
            pieces.push(part, &mut lines).unwrap();
            assert!(pieces.window.capacity() < 4 * PIECE_BYTES, "{}", pieces.window.capacity());
        }
        pieces.end(&mut lines).unwrap();
        assert_eq!(lines.events, 100);
        assert!(lines.largest < PIECE_BYTES + 200, "{}", lines.largest);
    }

    #[test]
    fn refusals_name_the_byte_and_the_item_of_the_body() {
        let mut events: Vec<String> = (0..50).map(|number| event(number * 7)).collect();
        events[40] = r#"{"auditID":"a","stage":"Nothing","x":"much longer than a piece"}"#.into();
        let body = list(&events);
        assert_eq!(in_pieces(body.as_bytes(), &[100]), whole(body.as_bytes()));
        let lines = events.join("\n");
        assert_eq!(in_pieces(lines.as_bytes(), &[100]), whole(lines.as_bytes()));
    }

    #[test]
    fn forms_and_mistakes_are_told_apart_as_in_a_whole_body() {
        let long: Vec<String> = (0..30).map(|_| event(90)).collect();
        let (list, items) = (list(&long), long.join(","));
        let lines = long.join("\n");
        let cases = [
            format!(
                r#" {{ "items" : [ {items} ] , "apiVersion":"audit.k8s.io/v1","kind":"EventList" }} "#
            ),
            format!(
                r#"{{"items":[{items}],"apiVersion":"audit.k8s.io/v1","k\u0069nd":"EventList"}}"#
            ),
            format!(r#"{{"items":[{items}],"kind":"EventList"}}"#),
            format!(r#"{{"items":[{items}],"apiVersion":"audit.k8s.io/v1"}}"#),
            format!(
                r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{items}],"items":[]}}"#
            ),
            format!(
                r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[],"items":[{items}]}}"#
            ),
            format!(
                r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","x":{{"items":[{items}]}}}}"#
            ),
            format!(
                r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"a","stage":"Panic","items":[{items}]}}"#
            ),
            format!("{list}{list}"),
            format!("{lines}\n{list}"),
            format!("{list}{lines}"),
            format!("{lines}\n\n\r\n{lines}\n"),
            format!("{lines}{lines}"),
            format!("[{items}]"),
            list.replacen("},{", "},,{", 1),
            list.replacen(":[{", ":[,{", 1),
            list.replacen("]}\n", ",]}\n", 1),
            list.replacen("]}\n", "]}}\n", 1),
            list.replacen("]}\n", "}\n", 1),
            list.replacen("]}\n", "]", 1),
            list.replacen("},{", "}]},{", 1),
            list.replacen("},{", "} {", 1),
            list.replacen("\"x\"", "\"x", 1),
            " ".repeat(5000),
            "]".repeat(5000),
            "{".repeat(5000),
            "\"".repeat(5001),
            format!("{{\"x\":\"{}", "\\".repeat(5000)),
        ];
        for body in cases {
            for steps in [&[usize::MAX][..], &[1], &[599, 3]] {
                compare(body.as_bytes(), steps);
                compare(&body.as_bytes()[..body.len() / 2], steps);
            }
        }
        let framed = list.replacen("\"metadata\":{}", &format!("\"x\":\"{}\"", "y".repeat(600)), 1);
        // A head of more than a MiB is not looked through: then the body is decoded whole.
        compare(framed.as_bytes(), &[100]);
        let behind = list.replacen("]}\n", &format!("],\"x\":\"{}\"}}", "y".repeat(600)), 1);
        let error = in_pieces(behind.as_bytes(), &[100]).unwrap_err();
        assert!(error.what.contains("outside of items"), "{error}");
    }

    #[test]
    fn white_space_around_a_body_is_no_part_of_it() {
        let body = list(&(0..30).map(|_| event(90)).collect::<Vec<_>>());
        for blank in [" ", "\n", " \r\n\t"] {
            let (before, behind) = (blank.repeat(1000), blank.repeat(2000));
            let body = format!("{before}{}{behind}", body.trim_end());
            for steps in [&[usize::MAX][..], &[1], &[599, 3]] {
                assert_eq!(in_pieces(body.as_bytes(), steps), whole(body.as_bytes()));
            }
            // But a text that ends in blanks is not cut short of its end.
            let open = format!("{}{behind}", body.trim_end().trim_end_matches('}'));
            compare(open.as_bytes(), &[100]);
        }
    }

    #[test]
    fn an_empty_list_in_a_large_frame_is_empty() {
        let body = format!(
            r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{}]}}"#,
            " ".repeat(2000)
        );
        assert_eq!(in_pieces(body.as_bytes(), &[100]), Ok((Vec::new(), 0, LevelCounts::default())));
    }

    proptest! {
        /// Random bodies with one byte changed, cut or doubled somewhere, in random steps.
        #[test]
        fn a_body_is_taken_in_pieces_exactly_if_it_is_taken_whole(
            sizes in prop::collection::vec(0..500_usize, 1..20),
            as_list in any::<bool>(),
            steps in prop::collection::vec(1..900_usize, 1..5),
            change in prop::option::of((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8)),
        ) {
            let events: Vec<String> = sizes.into_iter().map(event).collect();
            let text = if as_list { list(&events) } else { events.join("\n") };
            let mut body = text.into_bytes();
            if let Some((at, byte, kind)) = change {
                let at = at.index(body.len());
                match kind {
                    0 => body[at] = byte,
                    1 => body[at] = b"{}[],:\"\\\n "[usize::from(byte) % 10],
                    2 => { body.remove(at); }
                    _ => body.insert(at, body[at]),
                }
            }
            compare(&body, &steps);
        }
    }
}
