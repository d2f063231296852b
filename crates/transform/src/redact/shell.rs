//! Reads the quotes in the text of a command as a shell does.

/// The quotes that are open at an index of a text, as a shell reads it. The index only grows, so
/// following it through a text reads each byte once.
#[derive(Debug)]
pub(super) struct Quotes<'a> {
    text: &'a [u8],
    at: usize,
    is_escaped: bool,
    open: Option<Quote>,
}

/// A quote, and its index in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quote {
    pub(super) byte: u8,
    pub(super) at: usize,
}

impl<'a> Quotes<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, is_escaped: false, open: None }
    }

    /// Returns the quote before `at` that is not closed there.
    pub(super) fn open_at(&mut self, at: usize) -> Option<Quote> {
        while let Some(&byte) = self.text.get(self.at).filter(|_| self.at < at) {
            let open = self.open.map(|open| open.byte);
            if std::mem::take(&mut self.is_escaped) {
                // The byte means itself.
            } else if byte == b'\\' {
                self.is_escaped = open != Some(b'\'');
            } else if is_quote(byte) && open == Some(byte) {
                self.open = None;
            } else if is_quote(byte) && open.is_none() {
                self.open = Some(Quote { byte, at: self.at });
            }
            self.at += 1;
        }
        self.open
    }
}

/// The quotes around the beginning of a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// The quote that opens the value itself.
    pub(super) own: Option<u8>,
    /// The quote that was open before.
    pub(super) outer: Option<u8>,
    /// `true` if white space before the outer closing quote is part of the word.
    pub(super) is_one_word: bool,
}

/// Where a shell word ends, and where the outer quote is closed in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct WordEnd {
    pub(super) at: usize,
    pub(super) outer: Option<usize>,
}

/// Returns the end of the shell word that contains `start`: the next white space outside of quotes,
/// or the end of the text. It is unknown whether a shell reads the text, in which a backslash means
/// itself between single quotes, or another program. The later of both ends counts.
pub(super) fn word_end(text: &[u8], start: usize, around: Around) -> WordEnd {
    let end = |is_shell: bool| {
        let (mut at, Around { mut own, mut outer, is_one_word }) = (start, around);
        let mut closed = None;
        while let Some(&byte) = text.get(at) {
            let is_inside = own.is_some() || is_one_word && outer.is_some();
            if byte == b'\\' {
                at += usize::from(!is_shell || own.or(outer) != Some(b'\''));
            } else if is_quote(byte) && own == Some(byte) {
                own = None;
            } else if is_quote(byte) && own.is_none() && outer == Some(byte) {
                outer = None;
                closed = Some(at);
            } else if is_quote(byte) && own.is_none() {
                own = Some(byte);
            } else if byte.is_ascii_whitespace() && !is_inside {
                return WordEnd { at, outer: closed };
            }
            at += 1;
        }
        WordEnd { at: text.len(), outer: closed }
    };
    let (shell, other) = (end(true), end(false));
    if other.at > shell.at { other } else { shell }
}

/// Returns the index of the double quote that closes the JSON string whose text begins at `start`.
pub(super) fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut is_escaped = false;
    let is_end = |byte: &u8| {
        let is_end = !is_escaped && *byte == b'"';
        is_escaped = !is_escaped && *byte == b'\\';
        is_end
    };
    text.get(start..)?.iter().position(is_end).map(|length| start + length)
}

/// Returns the length of a value without its closing quote and what closes around it, as in `X"}'`.
/// A brace or another sign that is not behind a quote is part of the value.
pub(super) fn length_without_closing(value: &[u8]) -> usize {
    let mut end = value.len();
    loop {
        let inside = value.get(..end).unwrap_or_default();
        let is_closing = |byte: &&u8| b"}]),;|&".contains(byte);
        let closing = inside.iter().rev().take_while(is_closing).count();
        let last = end.checked_sub(closing + 1).and_then(|last| inside.get(last));
        let quotes = end - closing;
        if !last.is_some_and(|last| is_quote(*last)) {
            return end;
        }
        let is_quote = |byte: &&u8| is_quote(**byte);
        end = quotes - inside[..quotes].iter().rev().take_while(is_quote).count();
    }
}

pub(super) fn is_quote(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'')
}

/// Returns the number of backslashes at the end of the text.
pub(super) fn backslashes_before(text: &[u8]) -> usize {
    text.iter().rev().take_while(|byte| **byte == b'\\').count()
}
