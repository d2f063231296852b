//! Reads a haproxy.cfg into sections, lines and words, by the rules of "Quoting and escaping" and
//! "Environment variables" in section 2 of HAProxy's configuration manual.
//!
//! Each word is returned as a string of the relay's config: an environment variable that HAProxy
//! would insert becomes `${env:NAME}`, and a literal `${` becomes `$${`.

use std::iter::Peekable;
use std::str::Chars;

/// A line of the haproxy.cfg that has at least one word. Empty lines and comments are skipped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The line number in the haproxy.cfg, counted from 1.
    pub(super) number: usize,
    /// The words of the line; at least one.
    pub(super) words: Vec<String>,
}

impl Line {
    /// Returns the word with this index, counted from 0, or an empty text if the line has fewer
    /// words.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// Returns `true` if the line begins with these words.
    pub(super) fn is(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(index, word)| self.word(index) == *word)
    }
}

/// A section of the haproxy.cfg: the line with its keyword, and all lines up to the next section's
/// keyword.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// The line with the section's keyword, such as `frontend main`.
    pub(super) head: Line,
    pub(super) lines: Vec<Line>,
    /// The index of the `defaults` section whose lines hold for this section too; `None` if there
    /// is no such section.
    pub(super) defaults: Option<usize>,
}

impl Section {
    pub(super) fn kind(&self) -> &str {
        self.head.word(0)
    }

    pub(super) fn name(&self) -> &str {
        self.head.word(1)
    }
}

/// The contents of a haproxy.cfg.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) sections: Vec<Section>,
    /// The lines that cannot be read or are in no section, each with the reason.
    pub(super) unreadable: Vec<(Line, &'static str)>,
}

/// The keywords with which a section of a haproxy.cfg begins.
const SECTIONS: [&str; 19] = [
    "acme",
    "backend",
    "cache",
    "crt-store",
    "defaults",
    "fcgi-app",
    "frontend",
    "global",
    "http-errors",
    "listen",
    "log-forward",
    "log-profile",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

/// Reads the text of a haproxy.cfg into sections and lines. Lines that cannot be read do not end
/// the reading; they are collected in `File::unreadable`.
pub(super) fn read(text: &str) -> File {
    let mut file = File::default();
    for (index, text) in text.lines().enumerate() {
        let (words, whole) = words(text);
        if words.is_empty() {
            continue;
        }
        let line = Line { number: index + 1, words };
        if !whole {
            file.unreadable.push((line, "the quote has no end"));
        } else if line.word(0).starts_with('.') {
            let why = "conditions are not evaluated: the lines inside are read as if the conditions were true";
            file.unreadable.push((line, why));
        } else if SECTIONS.contains(&line.word(0)) {
            let defaults = defaults_of(&file.sections, &line);
            file.sections.push(Section { head: line, lines: Vec::new(), defaults });
        } else if let Some(section) = file.sections.last_mut() {
            section.lines.push(line);
        } else {
            file.unreadable.push((line, "the line is in no section"));
        }
    }
    file
}

/// Returns the index of the `defaults` section that applies to a new section, whose first line is
/// `head`. If `head` has the word `from`, the next word is the name of the `defaults` section.
/// Without `from`, the last `defaults` section before `head` applies. `None` if there is no such
/// section, or if `head` begins a `defaults` section and has no `from`.
fn defaults_of(sections: &[Section], head: &Line) -> Option<usize> {
    let from = match head.words.iter().position(|word| word == "from") {
        Some(place) => head.word(place + 1),
        None if head.word(0) == "defaults" => return None,
        None => "",
    };
    let matches = |section: &Section| {
        section.kind() == "defaults" && (from.is_empty() || section.name() == from)
    };
    sections.iter().rposition(matches)
}

/// Splits a line into words. The `bool` is `true` if all quotes in the line are closed.
fn words(text: &str) -> (Vec<String>, bool) {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => break,
            ' ' | '\t' | '\r' => words.extend(word.take()),
            '\\' => escaped(&mut chars, word.get_or_insert_default()),
            '\'' => {
                if !strong(&mut chars, word.get_or_insert_default()) {
                    words.extend(word);
                    return (words, false);
                }
            }
            '"' => {
                if !weak(&mut chars, word.get_or_insert_default()) {
                    words.extend(word);
                    return (words, false);
                }
            }
            c => literal(c, &mut chars, word.get_or_insert_default()),
        }
    }
    words.extend(word);
    (words, true)
}

/// Appends a character without a special meaning to `word`. A literal `${` becomes `$${`, because
/// `${` alone begins a variable in the relay's config.
fn literal(c: char, rest: &mut Peekable<Chars<'_>>, word: &mut String) {
    word.push(c);
    if c == '$' && rest.peek() == Some(&'{') {
        word.push('$');
    }
}

/// Reads the rest of an escape, such as the `n` of `\n`, and appends the character that the escape
/// stands for to `word`. The backslash is read already.
fn escaped(rest: &mut Peekable<Chars<'_>>, word: &mut String) {
    match rest.next() {
        Some('n') => word.push('\n'),
        Some('r') => word.push('\r'),
        Some('t') => word.push('\t'),
        Some(c) if " #\\\"'$".contains(c) => literal(c, rest, word),
        Some(c) => {
            word.push('\\');
            literal(c, rest, word);
        }
        None => word.push('\\'),
    }
}

/// Reads up to the closing `'` and appends the text before it to `word`. Between single quotes, no
/// other character has a special meaning. Returns `false` if the quote is not closed.
fn strong(rest: &mut Peekable<Chars<'_>>, word: &mut String) -> bool {
    while let Some(c) = rest.next() {
        if c == '\'' {
            return true;
        }
        literal(c, rest, word);
    }
    false
}

/// Reads up to the closing `"` and appends the text before this quote to `word`. In the text,
/// escapes are resolved, and variables get their form in the relay's config. Returns `false` if the
/// quote is not closed.
fn weak(rest: &mut Peekable<Chars<'_>>, word: &mut String) -> bool {
    while let Some(c) = rest.next() {
        match c {
            '"' => return true,
            '\\' => escaped(rest, word),
            '$' => variable(rest, word),
            c => literal(c, rest, word),
        }
    }
    false
}

/// Reads a variable `$NAME`, `${NAME}` or `${NAME-default}`, whose `$` is read already, and appends
/// its form in the relay's config to `word`.
fn variable(rest: &mut Peekable<Chars<'_>>, word: &mut String) {
    let is_braced = rest.next_if_eq(&'{').is_some();
    let in_a_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    let mut name = String::new();
    while let Some(c) = rest.next_if(in_a_name) {
        name.push(c);
    }
    if name.is_empty() {
        word.push_str(if is_braced { "$${" } else { "$" });
        return;
    }
    word.push_str("${env:");
    word.push_str(&name);
    if is_braced {
        if rest.next_if_eq(&'-').is_some() {
            word.push_str(":-");
        }
        word.extend(rest.by_ref().take_while(|&c| c != '}'));
    }
    word.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_words(text: &str, expected: &[&str]) {
        assert_eq!(words(text), (expected.iter().map(|&word| word.to_owned()).collect(), true));
    }

    #[test]
    fn lines_are_cut_into_words_as_haproxy_does() {
        assert_words("", &[]);
        assert_words("  # a comment", &[]);
        assert_words(
            "\tserver s1 10.0.0.1:80\tcheck # its comment\r",
            &["server", "s1", "10.0.0.1:80", "check"],
        );
        assert_words(r#"a\ b "c d" 'e f' g"h"'i' "" \#"#, &["a b", "c d", "e f", "ghi", "", "#"]);
        assert_words(r#""a \" b" 'c \' d"#, &["a \" b", "c \\", "d"]);
        assert_eq!(words("log 'a"), (vec!["log".to_owned(), "a".to_owned()], false));
        assert_eq!(words("log \"a"), (vec!["log".to_owned(), "a".to_owned()], false));
    }

    #[test]
    fn variables_are_those_of_our_config_and_what_looks_like_one_is_not() {
        assert_words(r#""${HOST}:$PORT/""#, &["${env:HOST}:${env:PORT}/"]);
        assert_words(r#""${HOST-localhost}:80""#, &["${env:HOST:-localhost}:80"]);
        assert_words(r#"${HOST} '${HOST}' "\${HOST}""#, &["$${HOST}"; 3]);
        assert_words(r#""$" "${}" $5"#, &["$", "$${}", "$5"]);
    }

    #[test]
    fn sections_start_from_the_defaults_before_them_or_those_they_name() {
        let file = read(
            "maxconn 5\ndefaults one\n mode http\ndefaults two\nbackend a\n server s 1:1\n\
             backend b from one\n.if TRUE\n",
        );
        let seen: Vec<_> = file.sections.iter().map(|s| (s.kind(), s.name(), s.defaults)).collect();
        let expected = [
            ("defaults", "one", None),
            ("defaults", "two", None),
            ("backend", "a", Some(1)),
            ("backend", "b", Some(0)),
        ];
        assert_eq!(seen, expected);
        assert_eq!(file.sections[2].lines[0].number, 6);
        let unreadable: Vec<usize> = file.unreadable.iter().map(|(line, _)| line.number).collect();
        assert_eq!(unreadable, [1, 8]);
    }
}
