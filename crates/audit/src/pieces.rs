//! Decodes a large body in pieces while it arrives.
//!
//! [`Pieces`] takes the bytes of a body as they come, cuts them between two events, and decodes
//! each piece as if the piece were a small body. Memory holds about one piece, or the largest
//! single event, once, whatever the body's size.
//!
//! A body has one of two forms. The pieces of an `EventList` are parts of its array `items`: each
//! piece is decoded between the head and the end of a list. All bytes outside of the array, the
//! *frame*, are kept, and are decoded at the end with an empty array in their middle. The pieces of
//! JSON lines end at a line break between two events.
//!
//! The places of the cuts have no influence on validity. If the frame is a valid list with an empty
//! array, and each piece is valid as the contents of an array, then the whole body is a valid list.
//! Therefore a body that [`super::decode`] refuses is refused here too, wherever it was cut.

use std::borrow::Cow;

use crate::{Invalid, LIST_HEAD, LevelCounts, Split, decode_in_place, decode_lines_in_place, scan};
use window::Window;

mod window;

/// The largest number of bytes that a large list of events may have outside of the contents of its
/// array `items`. kube-apiserver writes 77 bytes there. The limit is never more than half the size
/// of a piece.
const FRAME_MAX: usize = 1024 * 1024;

/// The bytes that are put after the events of a piece, so that the piece can be decoded as a list.
/// They are the end of a list (`]}`), a line break, and one byte of room for the line break after
/// the last event.
const LIST_TAIL: &[u8; 4] = b"]}\n\n";

/// Receives the lines of a large body, piece by piece.
pub trait Store {
    /// The reason why a body was not accepted: its lines could not be stored, or the body is
    /// invalid.
    type Error: From<Invalid>;

    /// Appends `lines` to the lines of the body that were stored before. `lines` holds `events`
    /// events, each followed by one `\n`.
    ///
    /// # Errors
    ///
    /// The lines could not be stored. The whole body is refused then.
    fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Self::Error>;
}

/// The form of a body, and, for a list, the part whose bytes are arriving now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Too few bytes have come to recognise the form of the body.
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
/// The bytes that arrive are appended to a buffer, the window. [`Pieces::push`] searches the new
/// bytes once and remembers the end of the last complete event. When the window holds enough bytes
/// for a piece, its complete events are decoded, given to the [`Store`] and removed from the
/// window. [`Pieces::end`] decodes the last bytes. For a list, it also decodes the frame: all bytes
/// of the body outside of the array `items`.
///
/// The window always begins with `LIST_HEAD`, so that a piece of a list can be decoded without
/// moving its bytes. After `LIST_HEAD` come the bytes of the body that are not decoded yet.
pub struct Pieces {
    /// As soon as the window holds this many bytes of the body, its complete events are decoded as
    /// one piece.
    piece_bytes: usize,
    /// The bytes of the body that are not decoded yet, after `LIST_HEAD`.
    window: Window,
    search: Search,
    part: Part,
    /// `true`: at least one piece of the body was decoded. If the body is JSON lines, all later
    /// pieces must then contain events, not lists of events.
    has_begun: bool,
    /// The number of bytes at the beginning of the body that are no longer in the window.
    before: usize,
    /// The bytes of the body outside of the array `items`, as far as they have arrived.
    frame: Vec<u8>,
    /// The number of bytes at the beginning of `frame` that stand before the contents of `items`.
    items_at: usize,
    /// The number of bytes inside of the array `items` that were decoded and removed from the
    /// buffer `window`.
    items_bytes: usize,
    /// The number of events in the pieces that were decoded.
    events: u64,
    /// The number of events of each level in the pieces that were decoded.
    levels: LevelCounts,
}

/// The search for ends of events in the window. All offsets are in the window.
struct Search {
    /// The offset up to which the window was searched.
    at: usize,
    /// The last place where a piece can end. In a list, this place is the comma after an event. In
    /// JSON lines, it is the byte after a line break. `None` if the window has no such place.
    cut: Option<usize>,
    /// The number of brackets that are open at `at`. The brackets of the list itself and of its
    /// array `items` do not count.
    depth: usize,
    text: Text,
}

impl Search {
    /// Moves past the byte that a backslash escapes. Without such a byte, moves to after the next
    /// closing quote or backslash, or to the end of the window.
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

/// Whether the search has stopped inside of a JSON string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    /// Directly after a backslash that escapes the next byte.
    Escape,
}

impl Pieces {
    /// Makes the state for a body of which no byte has arrived yet. The body will be cut into
    /// pieces of about `piece_bytes` bytes. The caller lets at most about `waiting_max` bytes of it
    /// wait here ([`Pieces::held`]); if more wait, they may take their memory twice.
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

    /// Returns the number of bytes of the body that are in memory here: the bytes that are not
    /// decoded yet, and the bytes outside of the array `items`.
    pub fn held(&self) -> usize {
        self.waiting() + self.frame.len()
    }

    /// Returns [`FRAME_MAX`], or half the size of a piece if that is less.
    fn frame_max(&self) -> usize {
        FRAME_MAX.min(self.piece_bytes / 2)
    }

    /// Takes the next bytes of the body. Decodes each piece that is complete now, and gives the
    /// lines of the piece to `store`.
    ///
    /// # Errors
    ///
    /// The body is invalid, or the store could not take its lines. The whole body is refused then.
    pub fn push<S: Store>(&mut self, bytes: &[u8], store: &mut S) -> Result<(), S::Error> {
        for step in bytes.chunks(self.piece_bytes) {
            self.window.extend(step);
            if self.part == Part::Unknown {
                // Much white space before the body takes no memory.
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

    /// Ends the body after its last byte has arrived: decodes the bytes that are not decoded yet,
    /// and gives their lines to `store`. Returns the number of events of the whole body, and the
    /// number of events of each level.
    ///
    /// # Errors
    ///
    /// The body is invalid, or `store` could not take its lines. The whole body is refused then.
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

    /// Returns the number of bytes of the body that are in the buffer `window`, and therefore not
    /// decoded yet.
    fn waiting(&self) -> usize {
        self.window.len() - LIST_HEAD.len()
    }

    /// Decides from the first bytes of the body if the body is a list of events or JSON lines. If
    /// the body is a list, moves its beginning from the buffer `window` to `frame`. The beginning
    /// ends with the opening bracket of the array `items`.
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

    /// Removes the first `bytes` bytes of the body that are in the window.
    fn drop_front(&mut self, bytes: usize) {
        let front = LIST_HEAD.len();
        self.window.remove(front, bytes);
        self.search.at = self.search.at.saturating_sub(bytes).max(front);
        self.before += bytes;
        self.search.cut = None;
    }

    /// Searches the new bytes in the window for ends of events. In a list, the search stops at the
    /// closing bracket of the array `items`.
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

    /// Decodes the bytes of the body that lie before the offset `cut` in the buffer `window`, as
    /// one piece. Stores the lines of the piece, and removes its bytes from the buffer.
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

    /// Decodes the last events of the array `items`, after the end of the array has arrived. Then
    /// moves the bytes after these events from the buffer `window` to `frame`, which collects the
    /// bytes of the body outside of `items`.
    fn end_items<S: Store>(&mut self, store: &mut S) -> Result<(), S::Error> {
        // The frame is longer than `items_at` once the last events were decoded, because the
        // array's closing bracket is in the frame then.
        if self.frame.len() == self.items_at {
            self.hand_on(self.search.at, store)?;
        }
        // White space after the list may be long. Leaving it out changes nothing.
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

    /// Checks the frame by decoding it as a list with an empty array. If the fault lies after the
    /// array, the number of bytes inside of the array is added to its offset. The result is the
    /// offset of the fault in the whole body, except that white space that was left out of the
    /// frame is not counted.
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
            // A list that does not end is never valid, so that this case cannot occur.
            Ok(_) => Invalid {
                byte: self.before,
                item: None,
                what: "not JSON: the body ends inside the list".into(),
            },
        }
    }

    /// Converts an error about one piece into an error about the whole body. The result has the
    /// offset of the fault, and the index of the faulty event, in the whole body. `shift` is the
    /// number of bytes that were put before the piece while it was decoded.
    fn place(&self, error: Invalid, shift: usize) -> Invalid {
        let item = error
            .item
            .map(|item| item.saturating_add(usize::try_from(self.events).unwrap_or(usize::MAX)));
        Invalid { byte: self.before + error.byte.saturating_sub(shift), item, what: error.what }
    }
}

/// Returns the offset in `body` after the opening bracket of the array `items`. Returns `None` if
/// the body is not a list: it is not an object, it has no array `items`, or its kind is `Event`. A
/// `kind` after the array `items` is not read.
fn items_start(body: &[u8]) -> Option<usize> {
    let open = body.iter().position(|byte| !byte.is_ascii_whitespace())?;
    if body[open] != b'{' {
        return None;
    }
    let mut has_kind = false;
    for member in scan::members(&body[open..]) {
        match &*member.name() {
            // The first of two keys with the same name counts. An event may have a member `items`
            // and is still an event.
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
        /// Random bodies, in which one byte is changed, removed or doubled, arrive in random steps.
        /// A body must be accepted in pieces exactly if it is accepted whole, with the same events.
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
