//! Follows the framing of HTTP/1: the places in a connection's bytes at which requests begin and
//! end (RFC 9112 §2.2, §6, §7.1).
//!
//! hyper reads ahead: with the end of one request it may read the beginning of the next head, and
//! does not report this. [`Framing`] follows the same bytes, so that a head that begins while
//! another request is served has its deadline too. The framing decides nothing else. Bytes that it
//! does not understand count as a head that has begun; only hyper accepts and refuses.

/// The maximum number of bytes that are stored of a line. The lines that matter (`Content-Length`,
/// `Transfer-Encoding`, the size of a chunk) are shorter in practice.
const LINE_BYTES: usize = 64;

/// Follows the bytes of an HTTP/1 connection, and knows to which part of a request the next byte
/// belongs.
pub(super) struct Framing {
    state: State,
    /// The beginning of the line that is being read: a line of a head, a chunk size or a trailer.
    line: Line,
    /// The `Content-Length` of the current head in bytes; 0 if the head has none.
    length: u64,
    /// `true`: the current head announces a body in chunks. Its `Content-Length` is ignored.
    chunked: bool,
}

/// The part of a request to which the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next request has not begun. Empty lines are skipped in this state.
    Between,
    /// The next byte belongs to a request line or to the headers.
    Head,
    /// The given number of bytes of a body with `Content-Length` have not arrived yet.
    Sized(u64),
    /// The next byte belongs to the line before a chunk, which has the size of the chunk.
    ChunkSize,
    /// The given number of bytes of a chunk and of its line break have not arrived yet.
    Chunk(u64),
    /// The next byte belongs to the trailer lines after the last chunk.
    Trailers,
    /// A line was not valid, or was cut where its end matters. hyper decides about such bytes.
    Lost,
}

/// The beginning of the line that is being read: at most its first [`LINE_BYTES`] bytes.
struct Line {
    bytes: [u8; LINE_BYTES],
    kept: usize,
    /// `true`: the line has more bytes than are stored in `bytes`.
    is_cut: bool,
}

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        let room = self.bytes.get_mut(self.kept..).unwrap_or_default();
        let count = room.len().min(bytes.len());
        if let (Some(room), Some(bytes)) = (room.get_mut(..count), bytes.get(..count)) {
            room.copy_from_slice(bytes);
        }
        self.kept += count;
        self.is_cut |= count < bytes.len();
    }

    /// Returns the stored bytes of the line, without the line break.
    fn text(&self) -> &[u8] {
        let kept = self.bytes.get(..self.kept).unwrap_or_default();
        if self.is_cut { kept } else { kept.strip_suffix(b"\r").unwrap_or(kept) }
    }

    fn clear(&mut self) {
        self.kept = 0;
        self.is_cut = false;
    }
}

impl Framing {
    pub(super) fn new() -> Self {
        let line = Line { bytes: [0; LINE_BYTES], kept: 0, is_cut: false };
        Self { state: State::Between, line, length: 0, chunked: false }
    }

    /// Returns `true` if the head of a request has begun and is not complete, or if the framing is
    /// [`State::Lost`].
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head | State::Lost)
    }

    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Lost => return,
                State::Between => {
                    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
                    let rest = bytes.get(blank.count()..).unwrap_or_default();
                    if !rest.is_empty() {
                        (self.length, self.chunked) = (0, false);
                        self.state = State::Head;
                    }
                    rest
                }
                State::Sized(left) => {
                    let (left, rest) = skip(left, bytes);
                    self.state = if left == 0 { State::Between } else { State::Sized(left) };
                    rest
                }
                State::Chunk(left) => {
                    let (left, rest) = skip(left, bytes);
                    self.state = if left == 0 { State::ChunkSize } else { State::Chunk(left) };
                    rest
                }
                State::Head | State::ChunkSize | State::Trailers => {
                    let end = memchr::memchr(b'\n', bytes);
                    let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                    // A whole line of a head that begins with any other byte is neither empty nor
                    // one of the headers `Content-Length` and `Transfer-Encoding`.
                    let is_other = end.is_some()
                        && self.state == State::Head
                        && self.line.kept == 0
                        && !matches!(line.first(), None | Some(b'\r' | b'C' | b'c' | b'T' | b't'));
                    if !is_other {
                        self.line.push(line);
                        if end.is_some() {
                            self.state = self.after_line();
                            self.line.clear();
                        }
                    }
                    rest.get(1..).unwrap_or_default()
                }
            };
        }
    }

    fn after_line(&mut self) -> State {
        let is_empty = self.line.text().is_empty();
        match self.state {
            State::Head if !is_empty => {
                if self.header().is_some() {
                    State::Head
                } else {
                    State::Lost
                }
            }
            State::Head if self.chunked => State::ChunkSize,
            State::Head if self.length > 0 => State::Sized(self.length),
            State::ChunkSize => match self.chunk_size() {
                Some(0) => State::Trailers,
                Some(size) => State::Chunk(size.saturating_add(2)),
                None => State::Lost,
            },
            State::Trailers if !is_empty => State::Trailers,
            State::Head | State::Trailers => State::Between,
            State::Between | State::Sized(_) | State::Chunk(_) | State::Lost => State::Lost,
        }
    }

    /// Reads a header line, and notes `Content-Length` or `Transfer-Encoding`. `None` if the length
    /// is not valid, or one of these headers is too long. All other headers are ignored.
    fn header(&mut self) -> Option<()> {
        let line = self.line.text();
        // If the target of a request line is a whole URL, the line also has a colon, but no header
        // name before it.
        let colon = line.iter().position(|byte| *byte == b':');
        let Some((name, value)) = colon.map(|colon| line.split_at(colon)) else { return Some(()) };
        let value = value.get(1..)?.trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            // `parse` alone would accept "+5" as well.
            if self.line.is_cut || !value.iter().all(u8::is_ascii_digit) {
                return None;
            }
            self.length = std::str::from_utf8(value).ok()?.parse().ok()?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.line.is_cut {
                return None;
            }
            let last = value.rsplit(|byte| *byte == b',').next()?.trim_ascii();
            self.chunked = last.eq_ignore_ascii_case(b"chunked");
        }
        Some(())
    }

    /// Returns the size in bytes of the next chunk, from the line before the chunk. Chunk
    /// extensions are ignored. `None` if the line does not begin with a valid size.
    fn chunk_size(&self) -> Option<u64> {
        let line = self.line.text();
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits == LINE_BYTES {
            return None;
        }
        let digits = std::str::from_utf8(line.get(..digits)?).ok()?;
        u64::from_str_radix(digits, 16).ok()
    }
}

/// Skips up to `left` bytes. Returns the number of bytes that remain to be skipped, and the rest of
/// `bytes`.
fn skip(left: u64, bytes: &[u8]) -> (u64, &[u8]) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (left - count as u64, bytes.get(count..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Form {
        Bodiless,
        Sized(usize),
        Chunked(Vec<usize>, bool),
    }

    fn forms() -> impl Strategy<Value = Form> {
        prop_oneof![
            Just(Form::Bodiless),
            (0..3000_usize).prop_map(Form::Sized),
            (proptest::collection::vec(1..300_usize, 0..4), any::<bool>())
                .prop_map(|(chunks, extras)| Form::Chunked(chunks, extras)),
        ]
    }

    /// Returns the head and the body of a request. The bodies look like heads, ends of heads and
    /// chunk sizes.
    fn request(form: &Form, end: &str) -> (Vec<u8>, Vec<u8>) {
        let junk =
            |count: usize| b"GET / HTTP/1.1\r\n\r\n0\r\n\r\n".iter().copied().cycle().take(count);
        let long = "x".repeat(200);
        let head = |more: &str| {
            format!("POST /a:b HTTP/1.1{end}Host: a{end}X-Long: {long}{end}{more}{end}")
                .into_bytes()
        };
        match form {
            Form::Bodiless => (head(""), Vec::new()),
            Form::Sized(size) => {
                (head(&format!("cOntent-length:  {size} {end}")), junk(*size).collect())
            }
            Form::Chunked(chunks, extras) => {
                let (extension, trailer) =
                    if *extras { (";a=\"b\"", "X-Trailer: y\r\n") } else { ("", "") };
                let mut body = Vec::new();
                for size in chunks {
                    body.extend(format!("{size:X}{extension}\r\n").into_bytes());
                    body.extend(junk(*size));
                    body.extend(b"\r\n");
                }
                body.extend(format!("000{extension}\r\n{trailer}\r\n").into_bytes());
                (
                    head(&format!("Transfer-Encoding: gzip, Chunked{end}Content-Length: 3{end}")),
                    body,
                )
            }
        }
    }

    proptest! {
        /// Random requests, with bodies that look like heads, arrive in pieces of random sizes.
        /// After each piece the framing must know if a head has begun and not ended.
        #[test]
        fn a_head_is_known_from_its_first_byte_to_its_last_however_the_bytes_are_cut(
            requests in proptest::collection::vec((forms(), any::<bool>(), any::<bool>()), 1..6),
            cuts in proptest::collection::vec(1..700_usize, 1..40),
        ) {
            let (mut bytes, mut in_head) = (Vec::new(), Vec::new());
            for (form, bare, blank) in &requests {
                let (head, body) = request(form, if *bare { "\n" } else { "\r\n" });
                let before = if *blank { &b"\r\n"[..] } else { b"" };
                // The expected value is `true` after each byte of the head but its last.
                in_head.extend(std::iter::repeat_n(false, before.len()));
                in_head.extend((1..=head.len()).map(|taken| taken < head.len()));
                in_head.extend(std::iter::repeat_n(false, body.len()));
                bytes.extend([before, &head, &body].concat());
            }
            let mut framing = Framing::new();
            let (mut at, mut cuts) = (0, cuts.iter().cycle());
            while at < bytes.len() {
                let end = bytes.len().min(at + cuts.next().unwrap());
                framing.advance(&bytes[at..end]);
                at = end;
                prop_assert_eq!(framing.is_in_head(), in_head[at - 1], "behind {} bytes", at);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut framing = Framing::new();
            framing.advance(&bytes);
        }
    }

    #[test]
    fn what_is_not_understood_counts_as_a_head_that_has_begun() {
        let zeros = "0".repeat(100);
        for body in [
            "Content-Length: +5\r\n\r\n12345",
            "Content-Length: 5, 5\r\n\r\n12345",
            &format!("Content-Length: {zeros}5\r\n\r\n12345"),
            "Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
            &format!("Transfer-Encoding: chunked\r\n\r\n{zeros}5\r\n12345\r\n0\r\n\r\n"),
        ] {
            let mut framing = Framing::new();
            framing.advance(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").as_bytes());
            assert!(framing.is_in_head(), "{body}");
        }
    }
}
