//! Reads a haproxy.cfg into sections, lines and words, by the rules of "Quoting and escaping" in
//! section 2 of HAProxy's configuration manual, and collects the lines that apply to a proxy.

use super::report::{Line, Notes};

/// A section of the haproxy.cfg: the line with its keyword, and all lines before the next section.
#[derive(Debug)]
pub(super) struct Section {
    /// The line with the keyword, such as `frontend main`.
    pub(super) head: Line,
    pub(super) lines: Vec<Line>,
}

impl Section {
    pub(super) fn kind(&self) -> &str {
        self.head.word(0)
    }

    pub(super) fn name(&self) -> &str {
        self.head.word(1)
    }
}

/// The keywords that begin a section.
const SECTIONS: &str = "acme backend cache crt-store defaults fcgi-app frontend global http-errors \
    listen log-forward log-profile mailers namespace_list peers program resolvers ring traces \
    userlist";

/// Reads the sections of a haproxy.cfg. `notes` gets the lines that can't be read, and the lines of
/// sections that can't be read: the user has to decide about them.
pub(super) fn read(text: &str, notes: &mut Notes) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    // The number of open `.if` conditions.
    let mut depth = 0_usize;
    let mut is_in_section = false;
    for (index, text) in text.lines().enumerate() {
        let read = words(text);
        let is_read = read.is_some();
        let words: Vec<String> =
            read.unwrap_or_else(|| text.split_whitespace().map(str::to_owned).collect());
        if words.is_empty() {
            continue;
        }
        let line = Line { number: index + 1, words };
        let is_head = SECTIONS.split_whitespace().any(|kind| kind == line.word(0));
        depth += usize::from(line.is([".if"]));
        let why = if depth > 0 || line.word(0).starts_with('.') {
            "only HAProxy can evaluate the condition"
        } else if !is_read {
            "it has a variable, an escape, a quote or a byte that cannot be carried over"
        } else if is_head && line.words.iter().skip(1).any(|word| word == "from") {
            "only a section without `from` can be carried over"
        } else if is_head {
            is_in_section = true;
            sections.push(Section { head: line, lines: Vec::new() });
            continue;
        } else if let Some(section) = sections.last_mut().filter(|_| is_in_section) {
            section.lines.push(line);
            continue;
        } else {
            "it is not in a section that can be carried over"
        };
        depth -= usize::from(depth > 0 && line.is([".endif"]));
        is_in_section &= !is_head;
        notes.decide(&line, why);
    }
    sections
}

/// Splits a line into words. `None` if a quote is not closed, or if the line has an environment
/// variable, a rare escape or, before a comment, a byte that is not UTF-8 (U+FFFD). `${` is refused
/// because it begins a variable in the relay's config too, and that variable would have another
/// value.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('#', None) => break,
            (' ' | '\t' | '\r', None) => words.extend(word.take()),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(end)) if c == end => quote = None,
            ('$', Some('"')) => return None,
            ('\\', None | Some('"')) => {
                let escaped = chars.next().filter(|c| " #\\\"'$".contains(*c))?;
                word.get_or_insert_default().push(escaped);
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let is_odd = |word: &String| word.contains("${") || word.contains(char::REPLACEMENT_CHARACTER);
    (quote.is_none() && !words.iter().any(is_odd)).then_some(words)
}

/// A proxy (a `frontend`, `backend` or `listen` section) or a ring, with all lines that apply to
/// it.
#[derive(Debug, Clone)]
pub(super) struct Proxy<'a> {
    pub(super) section: &'a Section,
    /// The sections whose lines apply, in this order: `global`, `defaults`, and `section`.
    pub(super) sections: Vec<&'a Section>,
}

impl<'a> Proxy<'a> {
    /// Collects the lines that apply to the section with the index `place`: its own, those of the
    /// last `defaults` above it (except for a ring), and those of the `global` sections above it.
    pub(super) fn read(file: &'a [Section], place: usize) -> Self {
        let (above, section) = (&file[..place], &file[place]);
        let defaults = above.iter().rfind(|section| section.kind() == "defaults");
        let defaults = defaults.filter(|_| section.kind() != "ring");
        let global = above.iter().filter(|section| section.kind() == "global");
        Self { section, sections: global.chain(defaults).chain([section]).collect() }
    }

    /// Returns the applicable lines that begin with `words`, the proxy's own lines last.
    pub(super) fn all<'b, const N: usize>(
        &'b self,
        words: [&'b str; N],
    ) -> impl DoubleEndedIterator<Item = &'a Line> + Clone + 'b {
        let lines = self.sections.iter().flat_map(|section| &section.lines);
        lines.filter(move |line| line.is(words))
    }

    /// Returns the last line that begins with `words`: the one that counts for a repeated setting.
    pub(super) fn last<const N: usize>(&self, words: [&str; N]) -> Option<&'a Line> {
        self.all(words).next_back()
    }

    /// Returns `true` if HAProxy reads the requests as HTTP: it does so only with `mode http`.
    pub(super) fn is_http(&self) -> bool {
        self.last(["mode"]).is_some_and(|line| line.word(1) == "http")
    }

    /// Returns `true` if the proxy is enabled and has servers.
    pub(super) fn has_servers(&self) -> bool {
        self.last(["server"]).is_some() && self.last(["disabled"]).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::Verdict;

    #[track_caller]
    fn assert_words(text: &str, expected: &[&str]) {
        assert_eq!(words(text).unwrap(), expected);
    }

    #[test]
    fn lines_are_cut_into_words_as_haproxy_does() {
        assert_words("", &[]);
        assert_words("  # a comment with a ' and a \\x", &[]);
        assert_words(
            "\tserver s1 10.0.0.1:80\tcheck # its comment\r",
            &["server", "s1", "10.0.0.1:80", "check"],
        );
        assert_words(r#"a\ b "c d" 'e f' g"h"'i' "" \#"#, &["a b", "c d", "e f", "ghi", "", "#"]);
        assert_words(r#""a \" b" 'c \' d"#, &["a \" b", "c \\", "d"]);
        assert_words(r"$5 '$HOME' $HOST", &["$5", "$HOME", "$HOST"]);
    }

    #[test]
    fn what_the_config_would_read_otherwise_is_not_read() {
        for text in ["log 'a", "log \"a", r"a \n", r"a\", r#""$HOST""#, r#""${A-b}""#, "'${A}'"] {
            assert_eq!(words(text), None, "{text}");
        }
    }

    #[track_caller]
    fn assert_lines(text: &str, place: usize, expected: &[usize]) {
        let file = read(text, &mut Notes::default());
        let proxy = Proxy::read(&file, place);
        assert_eq!(proxy.all([]).map(|line| line.number).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn global_and_the_last_defaults_section_above_hold_and_no_other() {
        let text = "global\n a\ndefaults one\n b\ndefaults two\n c\nbackend f\n d\nring r\n e\n\
                    defaults\n g\n";
        assert_lines(text, 3, &[2, 6, 8]);
        assert_lines(text, 4, &[2, 10]);
    }

    #[test]
    fn what_may_not_hold_is_to_decide_about_and_in_no_section() {
        let mut notes = Notes::default();
        let text = "mode http\nglobal\n daemon\n.if 1\n quiet\n.if 0\n.endif\nbackend a\n.endif\n \
                    server s 1:1\nbackend b\n server s \"1:1\n debug\nbackend c from x\n mode http\n";
        let file = read(text, &mut notes);
        let lines = file.iter().flat_map(|section| &section.lines);
        assert_eq!(lines.map(|line| line.number).collect::<Vec<_>>(), [3, 13]);
        let findings = notes.into_findings();
        let is_decide = |it: &crate::haproxy::Finding| it.verdict == Verdict::Decide;
        assert!(findings.iter().all(is_decide), "{findings:?}");
        let numbers: Vec<usize> = findings.iter().map(|finding| finding.line).collect();
        assert_eq!(numbers, [1, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15]);
    }
}
