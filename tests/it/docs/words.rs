//! Phrases that non-native readers have to look up or to read twice. The pages, the help, the
//! metrics and the texts of the program must use plainer ones.

use super::pages::{Page, pages};
use super::reference::helps;

use crate::support::files;
use crate::support::prelude::*;

/// The refused phrases, each with a better form.
///
/// In a phrase, `a|b` is one of two words, `!a|b` any word except these, `*` any word, `STATUS` an
/// HTTP status code, and `^` the beginning of a sentence.
const REFUSED: [(&str, &str); 24] = [
    ("whoever", "the person or program by its name, or `who` in a shorter sentence"),
    ("whatever", "`each`, `all that`, or a sentence of its own"),
    ("wherever", "`in each place where`, or the places by name"),
    ("whichever", "`the one that`"),
    ("is|are|was|were|be|been|being|goes|go|went|gone|going away", "`is down`, `ends` or `closes`"),
    ("come|comes|came|coming again", "`is sent again`, or `arrives a second time`"),
    ("answer|answers|answered|answering STATUS", "`responds with 200`, `gets 200`"),
    ("answer|answers|answered|answering a|an|with STATUS", "`responds with 200`, `gets 200`"),
    ("answer|answers|answered|answering with a|an STATUS", "`responds with 200`, `gets 200`"),
    ("under way", "`not finished yet`, `being sent`, or what it does"),
    ("meanwhile", "`during that time`, or the time by its name"),
    ("anew", "`again`"),
    ("of yours", "`your`"),
    ("dearest", "`most expensive`"),
    ("mend|mends|mended", "`repair`, `correct`"),
    ("for so long", "`for that time`, or the time by its name"),
    ("at a start", "`when the relay starts`"),
    ("nowhere", "`not … anywhere`, `in no place`"),
    ("!there is|are|was|were no !longer|more|less", "`is not a`, `has no`"),
    ("^ not !all|every|each|only|one|yet is|are|was|were", "the subject first: `X is not …`"),
    ("lets|letting", "`allows`, `so that … can`"),
    ("leaves|leaving again", "`is sent again`"),
    ("leaves|leaving the relay", "`is sent`"),
    ("leaves|leaving for the", "`is sent to`"),
];

/// Texts that may have a refused phrase: the file, the phrase as found, and the reason.
const ALLOWED: [(&str, &str, &str); 0] = [];

/// Returns the words of a text in lower case. A character that ends a phrase, such as a comma, is
/// also a word. Markup such as `**` is left out.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for char in text.chars().chain([' ']) {
        match char {
            _ if char.is_alphanumeric() || matches!(char, '\'' | '’' | '-') => {
                word.extend(char.to_lowercase());
            }
            '*' | '_' | '[' | ']' | '"' => {}
            _ => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                if !char.is_whitespace() {
                    words.push(char.to_string());
                }
            }
        }
    }
    words
}

fn is_word(text: &str) -> bool {
    text.starts_with(char::is_alphabetic)
}

/// Returns the words of a text from this index on that match a phrase. `None`: they do not.
fn found<'w>(words: &'w [String], at: usize, phrase: &str) -> Option<&'w [String]> {
    let mut end = at;
    for part in phrase.split(' ') {
        if part == "^" {
            let before = at.checked_sub(1).and_then(|before| words.get(before));
            if before.is_some_and(|word| is_word(word) || [",", "`", ")"].contains(&&**word)) {
                return None;
            }
            continue;
        }
        let word = words.get(end)?.as_str();
        let fits = match part.strip_prefix('!') {
            _ if part == "STATUS" => {
                word.len() == 3 && word.parse().is_ok_and(|it: u16| (100..600).contains(&it))
            }
            Some(others) => is_word(word) && others.split('|').all(|other| other != word),
            None => part == "*" && is_word(word) || part.split('|').any(|it| it == word),
        };
        if !fits {
            return None;
        }
        end += 1;
    }
    words.get(at..end)
}

/// Returns the refused phrases in a text, each with a better form.
fn refused(text: &str) -> Vec<(String, &'static str)> {
    let words = words(text);
    let phrases = REFUSED.iter().flat_map(|(phrase, better)| {
        let words = &words;
        let found = (0..words.len()).filter_map(move |at| found(words, at, phrase));
        found.map(|found| (found.join(" "), *better))
    });
    phrases.collect()
}

/// Returns the strings of a source, without those of its tests, each with the line on which it
/// begins. A mark replaces each field in braces.
fn strings(source: &str) -> Vec<(usize, String)> {
    let source = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(source);
    let chars: Vec<char> = source.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or_default();
    let (mut strings, mut index, mut line) = (Vec::new(), 0, 1);
    while index < chars.len() {
        match at(index) {
            '/' if at(index + 1) == '/' => {
                while index < chars.len() && at(index + 1) != '\n' {
                    index += 1;
                }
            }
            // This is a character, such as '"', or a lifetime.
            '\'' if at(index + 1) == '\\' => {
                index += 3;
                while index < chars.len() && at(index) != '\'' {
                    index += 1;
                }
            }
            '\'' if at(index + 2) == '\'' => index += 2,
            '"' => {
                let hashes = chars[..index].iter().rev().take_while(|&&it| it == '#').count();
                let is_raw = index > hashes && at(index - hashes - 1) == 'r';
                let (first, mut text) = (line, String::new());
                index += 1;
                while index < chars.len() {
                    let char = at(index);
                    let is_end = (1..=hashes).all(|more| at(index + more) == '#');
                    line += usize::from(char == '\n');
                    match char {
                        '"' if !is_raw || is_end => break,
                        '\\' if !is_raw && at(index + 1) == '\n' => {
                            line += 1;
                            index += 1;
                            while at(index + 1) == ' ' {
                                index += 1;
                            }
                        }
                        '\\' if !is_raw => {
                            text.push(if at(index + 1) == 'n' { '\n' } else { ' ' });
                            index += 1;
                        }
                        _ => text.push(char),
                    }
                    index += 1;
                }
                strings.push((first, without_fields(&text)));
            }
            '\n' => line += 1,
            _ => {}
        }
        index += 1;
    }
    strings
}

/// Returns a string of a source with a mark instead of each field, such as `{name}`.
fn without_fields(text: &str) -> String {
    let mut parts = text.split('{');
    let mut made = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        made.push('`');
        made.push_str(part.split_once('}').map_or(part, |(_, behind)| behind));
    }
    made
}

/// Returns the paths of the program's sources, without its tests.
fn sources() -> impl Iterator<Item = String> {
    files().into_iter().filter(|path| {
        let is_source = path.starts_with("src/") || path.starts_with("crates/");
        let is_test = ["/tests.rs", "_tests.rs", "/tests/", "_tests/", "tests/testing"];
        path.ends_with(".rs") && is_source && !is_test.iter().any(|part| path.contains(part))
    })
}

/// Returns a line for each refused phrase in these texts that is not allowed.
fn report(path: &str, texts: &[(usize, String)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, text) in texts {
        for (phrase, better) in refused(text) {
            let is_allowed = ALLOWED.iter().any(|(file, it, _)| *file == path && *it == phrase);
            if !is_allowed {
                lines.push(format!("{path}:{number}: \"{phrase}\": better {better}"));
            }
        }
    }
    lines
}

#[test]
fn the_pages_have_none_of_the_refused_words() {
    let others = files().into_iter().filter(|path| {
        let is_of_a_crate = path.starts_with("crates/") && path.ends_with("/README.md");
        is_of_a_crate || path == "tests/README.md"
    });
    let others = others.map(|path| Page::read(&path));
    let is_read = |page: &Page| {
        let is_of_benches = page.path.starts_with("benches/");
        page.path != "CHANGELOG.md" && (!is_of_benches || page.path == "benches/README.md")
    };
    let pages: Vec<Page> = pages().into_iter().chain(others).filter(is_read).collect();
    let lines: Vec<String> =
        pages.iter().flat_map(|page| report(&page.path, &page.paragraphs())).collect();
    assert!(lines.is_empty(), "{} phrases:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn the_help_of_the_commands_has_none_of_the_refused_words() {
    let helps = helps().into_iter().map(|(name, help)| {
        let lines = help.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned()));
        (format!("help of {name}"), lines.collect::<Vec<_>>())
    });
    let lines: Vec<String> = helps.flat_map(|(name, texts)| report(&name, &texts)).collect();
    assert!(lines.is_empty(), "{} phrases:\n{}", lines.len(), lines.join("\n"));
}

/// Method: the strings of the sources are the log, the errors, the help and the commands' output.
#[test]
fn the_texts_of_the_program_have_none_of_the_refused_words() {
    let (mut lines, mut count) = (Vec::new(), 0);
    for path in sources() {
        let strings = strings(&std::fs::read_to_string(repository().join(&path)).unwrap());
        let texts: Vec<_> = strings.into_iter().filter(|(_, text)| text.contains(' ')).collect();
        count += texts.len();
        lines.extend(report(&path, &texts));
    }
    assert!(count > 2000, "{count} texts");
    assert!(lines.is_empty(), "{} phrases:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn each_allowed_phrase_is_there() {
    for (path, phrase, reason) in ALLOWED {
        let text = std::fs::read_to_string(repository().join(path)).unwrap();
        let texts = match path.ends_with(".md") {
            true => Page { path: path.to_owned(), text }.paragraphs(),
            false => strings(&text),
        };
        let is_there = texts.iter().any(|(_, text)| refused(text).iter().any(|it| it.0 == phrase));
        assert!(is_there && reason.len() > 10, "{path}: {phrase} is allowed and not there");
    }
}

#[test]
fn the_phrases_are_found_and_what_is_near_to_them_is_not() {
    for (text, phrase) in [
        ("Whoever may write", "whoever"),
        ("the consumer **is away** for a while", "is away"),
        ("the relay answered 200 to it", "answered 200"),
        ("It answers with a 429.", "answers with a 429"),
        ("checkpoints leaves\nthe relay", "leaves the relay"),
        ("a zero byte is no sign of it", "byte is no sign"),
        ("| a | Not noticed are faults |", "not noticed are"),
        ("x: not noticed is that", "not noticed is"),
        ("which lets it pass", "lets"),
    ] {
        let found: Vec<_> = refused(text).into_iter().map(|(phrase, _)| phrase).collect();
        assert_eq!(found, [phrase], "{text}");
    }
    for text in [
        "there is no token, and it is no longer here",
        "is, away",
        "answered 2000 times, and it answers. 200 of them",
        "Not all are there, and it is not noticed is it",
        "an outlet",
    ] {
        assert_eq!(refused(text), [], "{text}");
    }
}

#[test]
fn the_strings_of_a_source_are_found_and_no_comments_and_tests() {
    let source = "// \"a\"\nf('\"', \"b {c} d\\n\\\n    e\");\nfn x<'a>() { g(r#\"f \"g\" h\"#) }\n\
                  i(\"j\");\n#[cfg(test)]\nmod tests {\n\"k\"";
    let wanted = [(2, "b ` d\ne"), (4, "f \"g\" h"), (5, "j")];
    let wanted = wanted.map(|(line, text)| (line, text.to_owned()));
    assert_eq!(strings(source), wanted);
}
