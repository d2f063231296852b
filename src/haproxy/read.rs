//! Reads a haproxy.cfg into sections, lines and words, by the rules of "Quoting and escaping" and
//! "Environment variables" in section 2 of HAProxy's configuration manual.
//!
//! Each word is returned as a string of the relay's config: an environment variable that HAProxy
//! would insert becomes `${env:NAME}`, and a literal `${` becomes `$${`.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use super::report::{Finding, Line, Notes, Verdict, shown};

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
}

/// The keywords with which a section of a haproxy.cfg begins.
const SECTIONS: &str = " acme backend cache crt-store defaults fcgi-app frontend global http-errors \
    listen log-forward log-profile mailers namespace_list peers program resolvers ring traces \
    userlist ";

/// Reads the text of a haproxy.cfg into sections and lines. `notes` gets the lines with `.if` and
/// similar keywords, and the lines that these switch off.
///
/// # Errors
///
/// The lines that make the file unreadable. HAProxy does not start with them either.
pub(super) fn read(text: &str, notes: &mut Notes) -> Result<File, Vec<Finding>> {
    let mut file = File::default();
    let mut refused = Notes::default();
    let mut environment = Environment::default();
    let mut blocks = Blocks::default();
    for (index, text) in text.lines().enumerate() {
        let (words, whole) = words(text, &environment);
        if words.is_empty() {
            continue;
        }
        let line = Line { number: index + 1, words };
        if line.word(0).starts_with('.') {
            match blocks.take(&line) {
                Ok(true) => notes.decide(&line, UNKNOWN),
                Ok(false) => notes.no_effect(&line, "the condition is evaluated here"),
                Err(why) => refused.decide(&line, why),
            }
        } else if let Some(may_be_read) = blocks.skips() {
            let (verdict, why) = match may_be_read {
                true => (Verdict::Section, "it is in another branch of a condition above"),
                false => (Verdict::NoEffect, "HAProxy does not read it: its condition is false"),
            };
            notes.add(&line, &shown(&line), verdict, why);
        } else if !whole {
            refused.decide(&line, "the quote has no end");
        } else if SECTIONS.contains(&format!(" {} ", line.word(0))) {
            file.begin(line, &mut refused);
        } else if let Some(section) = file.sections.last_mut() {
            if section.kind() == "global" {
                set(&mut environment, &line);
            }
            section.lines.push(line);
        } else {
            refused.decide(&line, "the line is in no section");
        }
    }
    if let Some(block) = blocks.0.pop() {
        refused.decide(&block.head, "the block has no `.endif`");
    }
    let refused = refused.findings();
    if refused.is_empty() { Ok(file) } else { Err(refused) }
}

/// The reason in the report about a condition whose value is not known.
const UNKNOWN: &str = "only HAProxy knows what this decides; the lines below it are read as if the \
     condition were true";

impl File {
    /// Begins a section with this line.
    fn begin(&mut self, head: Line, refused: &mut Notes) {
        let defaults = defaults_of(&self.sections, &head).unwrap_or_else(|why| {
            refused.decide(&head, why);
            None
        });
        let of_side = |kind: &str, side: &str| kind == side || kind == "listen";
        let (kind, name) = (head.word(0), head.word(1));
        let is_twin = |other: &Section| {
            let both = |side| of_side(kind, side) && of_side(other.kind(), side);
            other.name() == name && (both("frontend") || both("backend"))
        };
        if self.sections.iter().any(is_twin) {
            refused.decide(&head, "another section has this name");
        }
        self.sections.push(Section { head, lines: Vec::new(), defaults });
    }
}

/// Returns the index of the `defaults` section that applies to a new section, whose first line is
/// `head`: the one that is named after the word `from` or, without `from`, the last one before
/// `head`, whether it has a name or not. `None` if there is no such section, or if the new section
/// takes no defaults, such as `global`, or `defaults` without `from`.
///
/// # Errors
///
/// There is no `defaults` section of the name after `from`, or there are several.
fn defaults_of(sections: &[Section], head: &Line) -> Result<Option<usize>, &'static str> {
    if !matches!(head.word(0), "defaults" | "frontend" | "backend" | "listen") {
        return Ok(None);
    }
    let is_defaults = |section: &&Section| section.kind() == "defaults";
    // `defaults from OTHER` has no name: the word after `defaults` is the keyword itself.
    let at = if head.word(0) == "defaults" && head.word(1) == "from" { 1 } else { 2 };
    if head.word(at) != "from" {
        if head.word(0) == "defaults" {
            return Ok(None);
        }
        return Ok(sections.iter().rposition(|section| is_defaults(&section)));
    }
    let name = head.word(at + 1);
    let fits = |section: &Section| is_defaults(&section) && section.name() == name;
    match sections.iter().filter(|section| fits(section)).count() {
        1 => Ok(sections.iter().position(fits)),
        0 => Err("there is no `defaults` section of this name above it"),
        _ => Err("there are several `defaults` sections of this name"),
    }
}

/// The variables that `setenv` and `presetenv` of the `global` section set. The relay's environment
/// does not have them. Each has its value as text for the relay's config. The `bool` is `true` for
/// `presetenv`: a value in HAProxy's environment has precedence over this one.
type Environment = BTreeMap<String, (String, bool)>;

/// Reads a line of the `global` section. Lines that set no variable have no effect.
fn set(environment: &mut Environment, line: &Line) {
    let (name, value) = (line.word(1).to_owned(), line.word(2).to_owned());
    match line.word(0) {
        "setenv" => {
            environment.insert(name, (value, false));
        }
        "presetenv" => {
            environment.entry(name).or_insert((value, true));
        }
        _ => {}
    }
}

/// A block from `.if` to `.endif`.
#[derive(Debug)]
struct Block {
    head: Line,
    /// `true`: the lines of the current branch are read.
    is_read: bool,
    /// `true`: one of the branches is chosen, so the later ones are not read.
    is_decided: bool,
    /// `true`: the value of a condition is not known, so that HAProxy may read another branch.
    is_unknown: bool,
}

/// The blocks from `.if` to `.endif` in which the current line is, the innermost last.
#[derive(Debug, Default)]
struct Blocks(Vec<Block>);

impl Blocks {
    /// Returns `None` if the lines at this place are read. Otherwise they are skipped, and the
    /// result is `true` if HAProxy may read them nevertheless, because a condition is not known.
    fn skips(&self) -> Option<bool> {
        self.0.iter().find(|block| !block.is_read).map(|block| block.is_unknown)
    }

    /// Reads a line that begins with a dot. Only a condition that is a number or empty can be
    /// evaluated here; every other one is read as if it were true. Returns `true` if the user has
    /// to decide about the line, because HAProxy may evaluate it differently.
    ///
    /// # Errors
    ///
    /// There is no `.if` above an `.elif`, `.else` or `.endif`.
    fn take(&mut self, line: &Line) -> Result<bool, &'static str> {
        let value = match line.words.as_slice() {
            [_] => Some(line.word(0) == ".else"),
            [_, number] => number.parse::<i64>().ok().map(|number| number != 0),
            _ => None,
        };
        let is_skipped = self.skips().is_some();
        match line.word(0) {
            ".if" => {
                let is_read = value.unwrap_or(true);
                let is_unknown = value.is_none();
                let head = line.clone();
                self.0.push(Block { head, is_read, is_decided: is_read, is_unknown });
                Ok(is_unknown && !is_skipped)
            }
            ".elif" | ".else" => {
                let block = self.0.last_mut().ok_or("there is no `.if` above it")?;
                if block.is_decided {
                    block.is_read = false;
                    return Ok(false);
                }
                block.is_read = value.unwrap_or(true);
                block.is_decided = block.is_read;
                block.is_unknown |= value.is_none();
                Ok(value.is_none() && self.skips().is_none())
            }
            ".endif" => self.0.pop().map(|_| false).ok_or("there is no `.if` above it"),
            ".diag" | ".notice" | ".warning" => Ok(false),
            _ => Ok(!is_skipped),
        }
    }
}

/// Splits a line into words. The `bool` is `true` if all quotes in the line are closed.
fn words(text: &str, environment: &Environment) -> (Vec<String>, bool) {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => break,
            ' ' | '\t' | '\r' => words.extend(word.take()),
            '\\' => escaped(&mut chars, word.get_or_insert_default()),
            '\'' | '"' => {
                if !quoted(c, &mut chars, environment, word.get_or_insert_default()) {
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
        // `\xNN` is the character of this hexadecimal number.
        Some('x') => {
            let mut digit = || rest.next_if(char::is_ascii_hexdigit);
            let digits: String = digit().into_iter().chain(digit()).collect();
            match u8::from_str_radix(&digits, 16) {
                Ok(byte) if byte.is_ascii() => literal(char::from(byte), rest, word),
                _ => {
                    word.push_str("\\x");
                    word.push_str(&digits);
                }
            }
        }
        Some(c) if " #\\\"'$".contains(c) => literal(c, rest, word),
        Some(c) => {
            word.push('\\');
            literal(c, rest, word);
        }
        None => word.push('\\'),
    }
}

/// Reads up to the closing `quote` and appends the text before it to `word`. Between double quotes,
/// escapes are resolved, and variables get their form in the relay's config. Between single quotes,
/// no other character has a special meaning. Returns `false` if the quote is not closed.
fn quoted(
    quote: char,
    rest: &mut Peekable<Chars<'_>>,
    environment: &Environment,
    word: &mut String,
) -> bool {
    while let Some(c) = rest.next() {
        match c {
            c if c == quote => return true,
            '\\' if quote == '"' => escaped(rest, word),
            '$' if quote == '"' => variable(rest, environment, word),
            c => literal(c, rest, word),
        }
    }
    false
}

/// Reads a variable `$NAME`, `${NAME}` or `${NAME-default}`, whose `$` is read already, and appends
/// its form in the relay's config to `word`. A variable that the `global` section sets becomes its
/// value, because the relay's environment does not have it.
fn variable(rest: &mut Peekable<Chars<'_>>, environment: &Environment, word: &mut String) {
    let is_braced = rest.next_if_eq(&'{').is_some();
    let in_a_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    let name: String = std::iter::from_fn(|| rest.next_if(in_a_name)).collect();
    if name.is_empty() {
        word.push_str(if is_braced { "$${" } else { "$" });
        return;
    }
    let mut default = None;
    if is_braced {
        let has_default = rest.next_if_eq(&'-').is_some();
        let text: String = rest.by_ref().take_while(|&c| c != '}').collect();
        default = has_default.then_some(text);
    }
    match environment.get(&name) {
        // A default value can't hold another variable.
        Some((value, is_default)) if !is_default || value.contains("${") => {
            return word.push_str(value);
        }
        Some((value, _)) => default = Some(value.clone()),
        None => {}
    }
    let default = default.map_or_else(String::new, |default| format!(":-{default}"));
    word.push_str(&format!("${{env:{name}{default}}}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> (Vec<String>, bool) {
        words(text, &Environment::default())
    }

    #[track_caller]
    fn assert_words(text: &str, expected: &[&str]) {
        assert_eq!(plain(text), (expected.iter().map(|&word| word.to_owned()).collect(), true));
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
        assert_eq!(plain("log 'a"), (vec!["log".to_owned(), "a".to_owned()], false));
        assert_eq!(plain("log \"a"), (vec!["log".to_owned(), "a".to_owned()], false));
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
        let text = "defaults one\n mode http\ndefaults two\nbackend a\n server s 1:1\nbackend b from one\n";
        let notes = &mut Notes::default();
        let file = read(text, notes).unwrap();
        let seen: Vec<_> = file.sections.iter().map(|s| (s.kind(), s.name(), s.defaults)).collect();
        let expected = [
            ("defaults", "one", None),
            ("defaults", "two", None),
            ("backend", "a", Some(1)),
            ("backend", "b", Some(0)),
        ];
        assert_eq!(seen, expected);
        assert_eq!(file.sections[2].lines[0].number, 5);
        let refused = read(&format!("maxconn 5\n{text}.if 1\n"), notes).unwrap_err();
        assert_eq!(refused.iter().map(|it| it.line).collect::<Vec<_>>(), [1, 8]);
    }

    #[test]
    fn only_the_branch_that_haproxy_reads_is_read() {
        let mut notes = Notes::default();
        let file = read(
            "global\n.if defined(A)\n daemon\n.else\n quiet\n.endif\n.if 0\n noepoll\n.elif 1\n \
             nopoll\n.else\n debug\n.endif\n",
            &mut notes,
        );
        let lines = &file.unwrap().sections[0].lines;
        assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [3, 10]);
        let lines_of = |verdict| {
            let findings = notes.findings().into_iter().filter(|it| it.verdict == verdict);
            findings.map(|it| it.line).collect::<Vec<_>>()
        };
        // `defined(A)` depends on the environment, so that HAProxy may read line 5.
        assert_eq!(lines_of(Verdict::Decide), [2]);
        assert_eq!(lines_of(Verdict::Section), [5]);
        assert_eq!(lines_of(Verdict::NoEffect), [4, 6, 7, 8, 9, 11, 12, 13]);
    }

    #[test]
    fn variables_of_the_global_section_are_their_values() {
        let file = read(
            "global\n setenv H logs\n presetenv P 80\nlisten l\n server s \"$H:${P-1}\" \"$OTHER\"\n",
            &mut Notes::default(),
        )
        .unwrap();
        let words: Vec<&str> = file.sections[1].lines[0].words.iter().map(String::as_str).collect();
        assert_eq!(words[2..], ["logs:${env:P:-80}", "${env:OTHER}"]);
    }
}
