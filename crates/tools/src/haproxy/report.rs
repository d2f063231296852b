//! The report of a migration: what became of each line of the haproxy.cfg.

use std::collections::BTreeMap;

use base::words::escape;

/// A line of the haproxy.cfg that has at least one word. Empty lines and comments are skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub(super) fn is<const N: usize>(&self, words: [&str; N]) -> bool {
        words.iter().enumerate().all(|(index, word)| self.word(index) == *word)
    }
}

/// The verdict about a directive of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The directive is not carried over. Without it, something may change in what is sent, where
    /// it is sent, or who may send to the relay. The user has to decide about it.
    Decide,
    /// The directive is not carried over. Without it, nothing changes in what is sent, where it is
    /// sent, and who may send.
    NoEffect,
    /// The new config has the setting, or the relay does the same without one.
    Carried,
}

/// A directive of the haproxy.cfg, or a part of it, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The line number of the directive in the haproxy.cfg, counted from 1.
    pub line: usize,
    /// The verdict about the directive.
    pub verdict: Verdict,
    /// The text of the directive, with single spaces between its words and without passwords.
    pub directive: String,
    /// The reason for the verdict. For a directive that is carried over, the key of the new config.
    pub reason: String,
}

/// The result of a migration for each line of a haproxy.cfg.
#[derive(Debug, Default)]
pub struct Report {
    /// The verdicts about all directives: at least one finding for each line that has words. They
    /// are sorted by their lines.
    pub findings: Vec<Finding>,
    /// The sentence that says whether HAProxy accepts the file.
    pub validity: String,
    /// Sentences about the Secrets that the new config needs where it runs. A text that begins with
    /// four spaces is a command for a shell, which belongs to the sentence above.
    pub needs: Vec<String>,
}

/// The verdicts in the order in which the report shows them, with their texts.
const VERDICTS: [(Verdict, &str); 3] = [
    (Verdict::Decide, "decide"),
    (Verdict::NoEffect, "no effect"),
    (Verdict::Carried, "carried over"),
];

impl Report {
    /// Returns the number of findings with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Returns the report as lines of text: a summary, the findings whose verdict is at most
    /// `last`, and what the config needs. `name` is the name of the file, for places such as
    /// `NAME:LINE`.
    pub fn lines(&self, name: &str, last: Verdict) -> Vec<String> {
        let name = printable(name);
        let [decide, no_effect, carried] = VERDICTS.map(|(verdict, _)| self.count(verdict));
        let mut lines = vec![format!(
            "{name}: {decide} to decide, {no_effect} without effect, {carried} carried over. \
             docs/migrate-haproxy.md says what the relay has instead."
        )];
        lines.push(printable(&self.validity));
        let is_shown = |verdict| verdict <= last && self.count(verdict) > 0;
        for (verdict, text) in VERDICTS.into_iter().filter(|(verdict, _)| is_shown(*verdict)) {
            lines.push(String::new());
            let findings = self.findings.iter().filter(|finding| finding.verdict == verdict);
            lines.extend(findings.map(|Finding { line, directive, reason, .. }| {
                format!("{text}: {name}:{line}: {directive}: {reason}")
            }));
        }
        if !self.needs.is_empty() {
            lines.extend([String::new(), "Before the relay runs with this config:".to_owned()]);
            lines.extend(self.needs.iter().map(|need| escape::masked(need, usize::MAX)));
        }
        lines
    }
}

/// The findings about the lines of the haproxy.cfg that have been handled so far, by the numbers of
/// the lines.
#[derive(Debug, Default)]
pub(super) struct Notes(BTreeMap<usize, Vec<Finding>>);

impl Notes {
    /// Notes that a line is carried over into `key` of the new config.
    pub(super) fn carried(&mut self, line: &Line, key: &str) {
        self.add(line, &line.words, Verdict::Carried, key);
    }

    /// Adds a finding that the user has to decide about a line.
    pub(super) fn decide(&mut self, line: &Line, why: &str) {
        self.add(line, &line.words, Verdict::Decide, why);
    }

    /// Adds a finding that the user has to decide about some words of a line, which is carried over
    /// apart from them. The first two words of the line say what the words belong to.
    pub(super) fn decide_part(&mut self, line: &Line, part: &[String], why: &str) {
        let begin = [line.word(0), line.word(1), "…"].map(str::to_owned);
        self.add(line, &[&begin, part].concat(), Verdict::Decide, why);
    }

    /// Adds a finding that a line is left out without effect.
    pub(super) fn no_effect(&mut self, line: &Line, why: &str) {
        self.add(line, &line.words, Verdict::NoEffect, why);
    }

    fn add(&mut self, line: &Line, words: &[String], verdict: Verdict, why: &str) {
        let (directive, reason) = (printable(&shown(words)), printable(why));
        let finding = Finding { line: line.number, verdict, directive, reason };
        let of_line = self.0.entry(line.number).or_default();
        if !of_line.contains(&finding) {
            of_line.push(finding);
        }
    }

    /// Returns `true` if there is a finding about the line already.
    pub(super) fn knows(&self, line: &Line) -> bool {
        self.0.contains_key(&line.number)
    }

    /// Returns all findings in the order of their lines.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.0.into_values().flatten().collect()
    }
}

/// The greatest number of characters of a directive or a reason that a comment shows.
const SHOWN_CHARS_MAX: usize = 300;

/// Returns the text cut to [`SHOWN_CHARS_MAX`] characters and safe for a terminal, so that it fits
/// into a comment of one line.
pub(super) fn printable(text: &str) -> String {
    escape::masked(text, SHOWN_CHARS_MAX)
}

/// Parts of words after which a password or token may stand, in lower case.
const SECRETS: &str = "apikey api-key authorization bearer ca-sign-pass cookie passwd password \
    secret token";

/// Returns the place in a text, in lower case, after which a secret may stand; `None` if there is
/// no such place.
pub(super) fn secret_in(text: &str) -> Option<usize> {
    SECRETS.split_whitespace().filter_map(|it| Some(text.find(it)? + it.len())).min()
}

/// Returns words of a line without those that may hold a password or a token. An ellipsis shows
/// that something is left out.
pub(super) fn shown(words: &[String]) -> String {
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    let secret_from = match (word(0), word(1)) {
        ("stats", "auth") | ("user" | "setenv" | "presetenv", _) => 2,
        // The value of a header may be a token.
        (_, "set-header" | "add-header" | "replace-header" | "replace-value") => 3,
        _ => words.len(),
    };
    let mut text = words.iter().take(secret_from).cloned().collect::<Vec<_>>().join(" ");
    let end = secret_in(&text.to_ascii_lowercase()).unwrap_or(text.len());
    if end < text.len() || secret_from < words.len() {
        text.truncate(end);
        text.push_str(" …");
    }
    text
}
