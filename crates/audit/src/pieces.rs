//! Decodes a large body in pieces while it arrives.
//!
//! [`Pieces`] takes the bytes of a body as they come, cuts them between two events, and decodes
//! each piece as if it were a small body. Whatever the body's size, memory holds about one piece
//! or, if it is larger, the largest event.
//!
//! A body has one of two forms. The pieces of an `EventList` are parts of its array `items`: each
//! piece is decoded between the head and the end of a list. All bytes outside of the array, the
//! *frame*, are kept, and are decoded at the end with an empty array in their middle. The pieces of
//! JSON lines end at a line break between two events.
//!
//! The places of the cuts have no influence on validity: the whole body is a valid list if the
//! frame is a valid list with an empty array, and each piece is valid as the contents of an array.
//! Therefore a body that [`super::decode`] refuses is refused here too, wherever it was cut.

use std::borrow::Cow;

use crate::{Invalid, LIST_HEAD, LevelCounts, Split, decode_in_place, decode_lines_in_place, scan};
use window::Window;

mod window;

/// The maximum size of the frame in bytes, or half the size of a piece if that is less.
/// kube-apiserver writes 77 bytes.
const FRAME_MAX: usize = 1024 * 1024;

/// The bytes after the events of a piece that is decoded as a list: the end of the list (`]}`), a
/// line break, and one byte of room for the line break after the last event.
const LIST_TAIL: &[u8; 4] = b"]}\n\n";

/// Receives the lines of a large body, piece by piece.
pub trait Store {
    /// The lines could not be stored, or the body is invalid.
    type Error: From<Invalid>;

    /// Appends `lines`, with `events` events, each followed by one `\n`, to the lines of the body.
    ///
    /// # Errors
    ///
    /// The lines could not be stored. The whole body is then refused.
    fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Self::Error>;
}

/// The form of a body, and, for a list, the part that is arriving now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Too few bytes have arrived to recognise the form.
    Unknown,
    /// The array `items` of a list is arriving.
    Items,
    /// The array `items` has ended; the rest of the list is arriving.
    Tail,
    /// The body is JSON lines, or a single event.
    Lines,
}

/// A large body that is arriving, and that is decoded in pieces. The request that reads the body
/// owns this value.
///
/// The bytes that arrive are appended to a buffer, the window. When the window holds enough bytes
/// for a piece, its complete events are decoded, given to the [`Store`] and removed from the
/// window.
///
/// The window always begins with `LIST_HEAD`, so that a piece of a list can be decoded without
/// moving its bytes. The bytes of the body that are not decoded yet come after it.
pub struct Pieces {
    /// A piece is decoded when the window holds at least this many bytes and a complete event.
    piece_bytes: usize,
    window: Window,
    search: Search,
    part: Part,
    /// `true` if a piece was decoded: all later JSON lines must be events, not lists of events.
    has_begun: bool,
    /// The number of bytes at the beginning of the body that are no longer in the window.
    before: usize,
    /// The bytes of the body outside of the array `items`, as far as they have arrived.
    frame: Vec<u8>,
    /// The number of bytes in `frame` before the contents of `items`.
    items_at: usize,
    /// The number of bytes of `items` that were decoded and removed from the window.
    items_bytes: usize,
    events: u64,
    levels: LevelCounts,
}

/// The search for ends of events in the window. All offsets are in the window.
struct Search {
    /// The offset up to which the window was searched.
    at: usize,
    /// The last possible end of a piece: in a list, before the comma after an event; in JSON lines,
    /// after a line break.
    cut: Option<usize>,
    /// The number of brackets that are open at `at`, without those of the list and of its `items`.
    depth: usize,
    text: Text,
}

impl Search {
    /// Moves past an escaped byte, or else past the next closing quote or backslash, or to the end.
    fn skip_text(&mut self, window: &[u8]) {
        if self.text == Text::Escape {
            self.text = Text::Inside;
            self.at += 1;
            return;
        }
        let rest = &window[self.at..];
        let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
            self.at = window.len();
            return;
        };
        self.text = if rest[found] == b'"' { Text::Outside } else { Text::Escape };
        self.at += found + 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    /// Directly after a backslash that escapes the next byte.
    Escape,
}

impl Pieces {
    /// Makes the state for a new body. Its pieces have about `piece_bytes` bytes. If more than
    /// about `waiting_max` bytes wait here ([`Pieces::held`]), they are moved, and are in memory
    /// twice meanwhile.
    pub fn new(piece_bytes: usize, waiting_max: usize) -> Self {
        let piece_bytes = piece_bytes.max(2);
        let window_max = waiting_max.saturating_add(LIST_HEAD.len() + LIST_TAIL.len());
        Self {
            piece_bytes,
            window: Window::new(LIST_HEAD, piece_bytes, window_max),
            search: Search { at: LIST_HEAD.len(), cut: None, depth: 0, text: Text::Outside },
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

    /// Returns the number of the body's bytes in memory here: those not yet decoded, and the frame.
    pub fn held(&self) -> usize {
        self.waiting() + self.frame.len()
    }

    fn frame_max(&self) -> usize {
        FRAME_MAX.min(self.piece_bytes / 2)
    }

    /// Takes the next bytes of the body, and stores the lines of each piece that is now complete.
    ///
    /// # Errors
    ///
    /// The body is invalid, or its lines could not be stored. The whole body is then refused.
    pub fn push<S: Store>(&mut self, bytes: &[u8], store: &mut S) -> Result<(), S::Error> {
        for step in bytes.chunks(self.piece_bytes) {
            self.window.extend(step);
            if self.part == Part::Unknown {
                // White space before the body is dropped, so that it takes no memory.
                let body = &self.window[LIST_HEAD.len()..];
                let blanks = body.iter().position(|byte| !byte.is_ascii_whitespace());
                self.drop_front(blanks.unwrap_or(body.len()));
                if self.waiting() > self.frame_max() {
                    self.recognise();
                }
            }
            self.look();
            if self.part == Part::Tail {
                self.end_items(store)?;
            } else if self.waiting() >= self.piece_bytes
                && let Some(cut) = self.search.cut
            {
                self.hand_on(cut, store)?;
            }
        }
        Ok(())
    }

    /// Decodes and stores the last bytes, after the whole body has arrived. Returns the number of
    /// events of the whole body, and the number of events of each level.
    ///
    /// # Errors
    ///
    /// The body is invalid, or its lines could not be stored. The whole body is then refused.
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

    /// Returns the number of bytes of the body that are in the window.
    fn waiting(&self) -> usize {
        self.window.len() - LIST_HEAD.len()
    }

    /// Recognises a list or JSON lines. Moves a list's beginning, with the `[` of `items`, to
    /// `frame`.
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

    fn drop_front(&mut self, bytes: usize) {
        let front = LIST_HEAD.len();
        self.window.remove(front, bytes);
        self.search.at = self.search.at.saturating_sub(bytes).max(front);
        self.before += bytes;
        self.search.cut = None;
    }

    /// Searches the new bytes for ends of events, in a list only up to the end of `items`.
    fn look(&mut self) {
        let Self { window, search, part, .. } = self;
        while matches!(part, Part::Items | Part::Lines) && search.at < window.len() {
            if search.text != Text::Outside {
                search.skip_text(window);
                continue;
            }
            match window[search.at] {
                b'"' => search.text = Text::Inside,
                b']' if search.depth == 0 && *part == Part::Items => {
                    *part = Part::Tail;
                    return;
                }
                b'{' | b'[' => search.depth += 1,
                b'}' | b']' => search.depth = search.depth.saturating_sub(1),
                b',' if search.depth == 0 && *part == Part::Items => search.cut = Some(search.at),
                b'\n' | b'\r' if search.depth == 0 && *part == Part::Lines => {
                    search.cut = Some(search.at + 1);
                }
                _ => {}
            }
            search.at += 1;
        }
    }

    /// Decodes and stores the bytes before the offset `cut` as one piece, and removes them.
    fn hand_on<S: Store>(&mut self, cut: usize, store: &mut S) -> Result<(), S::Error> {
        let is_list = self.part != Part::Lines && self.part != Part::Unknown;
        let front = LIST_HEAD.len();
        let tail = if is_list { &LIST_TAIL[..] } else { &LIST_TAIL[3..] };
        // While the piece is decoded, the tail takes the place of the bytes after the piece.
        let length = self.window.len();
        self.window.resize(length.max(cut + tail.len()));
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
        self.window.resize(length);
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

    /// Decodes the last events of `items`, and moves the bytes after them to `frame`.
    fn end_items<S: Store>(&mut self, store: &mut S) -> Result<(), S::Error> {
        // Once the last events were decoded, the frame also has the array's closing bracket.
        if self.frame.len() == self.items_at {
            self.hand_on(self.search.at, store)?;
        }
        // White space after the list may be long, and does not matter, so most of it is left out.
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

    /// Decodes the frame as a list with an empty array. The offset of a fault is that in the whole
    /// body, except that white space that was left out of the frame is not counted.
    fn check_frame(&mut self) -> Result<(), Invalid> {
        self.frame.push(b'\n');
        let decoded = decode_in_place(&mut self.frame).map_err(|error| {
            let is_behind = error.byte > self.items_at;
            let byte = error.byte + if is_behind { self.items_bytes } else { 0 };
            Invalid { byte, ..error }
        })?;
        if decoded.events > 0 {
            let what =
                "kind is Event, but items is a large array: a list of events has kind EventList"
                    .into();
            return Err(Invalid { byte: 0, item: None, what });
        }
        Ok(())
    }

    /// Returns the error for a list that is not complete although the body has ended.
    fn broken_off(&mut self) -> Invalid {
        self.window.extend(b"\n");
        match decode_in_place(&mut self.window) {
            Err(error) => self.place(error, LIST_HEAD.len()),
            // A list that does not end is never valid, so this case cannot occur.
            Ok(_) => Invalid {
                byte: self.before,
                item: None,
                what: "not JSON: the body ends inside the list".into(),
            },
        }
    }

    /// Converts an error about one piece into an error about the whole body. `shift` is the number
    /// of bytes that were put before the piece while it was decoded.
    fn place(&self, error: Invalid, shift: usize) -> Invalid {
        let item = error
            .item
            .map(|item| item.saturating_add(usize::try_from(self.events).unwrap_or(usize::MAX)));
        Invalid { byte: self.before + error.byte.saturating_sub(shift), item, what: error.what }
    }
}

/// Returns the offset after the opening bracket of `items`. `None` if the body is not a list: it is
/// not an object, has no array `items`, or has (before `items`) the kind `Event`.
fn items_start(body: &[u8]) -> Option<usize> {
    let open = body.iter().position(|byte| !byte.is_ascii_whitespace())?;
    if body[open] != b'{' {
        return None;
    }
    let mut has_kind = false;
    for member in scan::members(&body[open..]) {
        match &*member.name() {
            // The first of two equal keys counts. An event may have a member `items`.
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
    use crate::decode;
    use proptest::prelude::*;
    use testing::{corpus, corpus_file};

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
        let mut pieces = Pieces::new(PIECE_BYTES, 8 * PIECE_BYTES);
        let (mut lines, mut rest) = (Lines::default(), body);
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

    /// Asserts that a body in pieces gives the same events as the whole body, or that both are
    /// refused.
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
        let log = corpus_file("audit.log");
        assert_eq!(in_pieces(&log, &[1000]), whole(&log));
    }

    #[test]
    fn a_piece_is_hardly_larger_than_its_largest_event_makes_it() {
        let events: Vec<String> = (0..100).map(|_| event(100)).collect();
        let mut pieces = Pieces::new(PIECE_BYTES, 8 * PIECE_BYTES);
        let mut lines = Lines::default();
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
        // The test's limit for a frame is 300 bytes. A longer beginning is not searched for
        // `items`, and the body becomes one piece.
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
            // The white space at the end must not hide that the list was never closed.
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
        /// Random bodies, in which at most one byte is changed, removed or doubled, arrive in
        /// random steps. A body must be accepted in pieces exactly if it is accepted whole, with
        /// the same events.
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
