//! The report of a migration: what became of each line of the haproxy.cfg.

use std::collections::{BTreeMap, BTreeSet};

use crate::words::escape;

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
    pub(super) fn is(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(index, word)| self.word(index) == *word)
    }
}

/// The consequence of a directive that is not carried over, for the users of the new config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Without the directive, something may change in what is sent, where it is sent, or who may
    /// send to the relay. The user has to decide about it.
    Decide,
    /// The directive is in a section that is not carried over. The user has to decide about that
    /// section.
    Section,
    /// Without the directive, nothing changes in what is sent, where it is sent, and who may send.
    NoEffect,
}

/// A directive of the haproxy.cfg that is not carried over, or whose counterpart works differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The line number of the directive in the haproxy.cfg, counted from 1.
    pub line: usize,
    /// The consequence of leaving the directive out.
    pub verdict: Verdict,
    /// The text of the directive, with single spaces between its words and without passwords.
    pub directive: String,
    /// The reason for the verdict.
    pub reason: String,
}

/// The result of a migration for each line of a haproxy.cfg.
#[derive(Debug, Default)]
pub struct Report {
    /// The number of `[[listener]]` tables in the new config.
    pub listeners: usize,
    /// The lines that are carried over, wholly or in part: the line numbers, counted from 1, each
    /// with the keys of the new config that have the settings of the line. There is no key if the
    /// relay does the same without a setting.
    pub carried: BTreeMap<usize, BTreeSet<String>>,
    /// The directives that are not carried over, in the order of their lines.
    pub findings: Vec<Finding>,
    /// The sentence that says whether HAProxy accepts the file.
    pub validity: String,
    /// Sentences about what the new config needs where it runs: Secrets, variables, ports. A text
    /// that begins with four spaces is a command for a shell, which belongs to the sentence above.
    pub needs: Vec<String>,
}

/// The lists of the report, each with its first line.
const LISTS: [(Verdict, &str); 3] = [
    (
        Verdict::Decide,
        "Decide these: they may change what leaves, where it goes, or who may send. \
         docs/replace-haproxy.md says what the relay has instead.",
    ),
    (Verdict::Section, "In sections that are not carried over (they are to decide about above):"),
    (Verdict::NoEffect, "Left out without effect; nothing needs to be done:"),
];

impl Report {
    /// Returns the number of findings with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Returns the report as lines of text: a summary, the lists of findings, and what the config
    /// needs. `name` is the name of the file, for places such as `NAME:LINE`.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let name = printable(name);
        let counted = |count: usize, noun: &str| {
            format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
        };
        let mut lines = vec![
            format!(
                "{name}: {} and 1 output; {} carried over, {} to decide, {} left out without effect",
                counted(self.listeners, "listener"),
                counted(self.carried.len(), "directive"),
                self.count(Verdict::Decide),
                self.count(Verdict::NoEffect),
            ),
            printable(&self.validity),
        ];
        for (verdict, head) in LISTS {
            if self.count(verdict) > 0 {
                lines.extend([String::new(), head.to_owned()]);
            }
            let findings = self.findings.iter().filter(|finding| finding.verdict == verdict);
            lines.extend(findings.map(|Finding { line, directive, reason, .. }| {
                format!("{name}:{line}: {directive}: {reason}")
            }));
        }
        if !self.needs.is_empty() {
            lines.extend([String::new(), "Before the relay runs with this config:".to_owned()]);
        }
        for need in &self.needs {
            let mark = if need.starts_with(COMMAND) { "" } else { "- " };
            lines.push(format!("{mark}{}", escape::masked(need, NEED_CHARS_MAX)));
        }
        lines
    }
}

/// The notes about the lines of the haproxy.cfg that have been handled so far: each is carried over
/// into the new config, reported to the user, or both.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    /// The lines that are carried over, as in [`Report::carried`].
    pub(super) carried: BTreeMap<usize, BTreeSet<String>>,
    /// The findings about each line, in the order in which they were made.
    findings: BTreeMap<usize, Vec<Finding>>,
}

impl Notes {
    /// Notes that a line is carried over into `key` of the new config. An empty key says that the
    /// relay does the same without a setting.
    pub(super) fn carried(&mut self, line: &Line, key: &str) {
        let keys = self.carried.entry(line.number).or_default();
        if !key.is_empty() {
            keys.insert(key.to_owned());
        }
    }

    /// Adds a finding that the user has to decide about `part` of a line.
    pub(super) fn decide_part(&mut self, line: &Line, part: &str, why: &str) {
        self.add(line, part, Verdict::Decide, why);
    }

    /// Adds a finding that the user has to decide about a line.
    pub(super) fn decide(&mut self, line: &Line, why: &str) {
        self.add(line, &shown(line), Verdict::Decide, why);
    }

    /// Adds a finding that a line is left out without effect.
    pub(super) fn no_effect(&mut self, line: &Line, why: &str) {
        self.add(line, &shown(line), Verdict::NoEffect, why);
    }

    /// Adds a finding that the relay has no setting for `part` of a line. `is_harmless`: the part
    /// has no effect on what is forwarded.
    pub(super) fn other(&mut self, line: &Line, part: &str, is_harmless: bool) {
        let (verdict, why) = match is_harmless {
            true => (Verdict::NoEffect, "it changes nothing of what is forwarded"),
            false => (Verdict::Decide, "the relay has nothing that corresponds to it here"),
        };
        self.add(line, part, verdict, why);
    }

    pub(super) fn add(&mut self, line: &Line, part: &str, verdict: Verdict, why: &str) {
        let (directive, reason) = (printable(part), printable(why));
        self.push(Finding { line: line.number, verdict, directive, reason });
    }

    fn push(&mut self, finding: Finding) {
        let of_line = self.findings.entry(finding.line).or_default();
        if !of_line.contains(&finding) {
            of_line.push(finding);
        }
    }

    /// Returns the numbers of the lines that are carried over into a key of the new config.
    pub(super) fn sources(&self, key: &str) -> impl Iterator<Item = usize> {
        self.carried.iter().filter(move |(_, keys)| keys.contains(key)).map(|(number, _)| *number)
    }

    /// Returns `true` if the line is carried over or reported already.
    pub(super) fn knows(&self, line: &Line) -> bool {
        self.carried.contains_key(&line.number) || self.findings.contains_key(&line.number)
    }

    /// Adds the notes of another part of the file.
    pub(super) fn merge(&mut self, other: &Self) {
        for (number, keys) in &other.carried {
            self.carried.entry(*number).or_default().extend(keys.iter().cloned());
        }
        other.findings.values().flatten().for_each(|finding| self.push(finding.clone()));
    }

    /// Returns all findings in the order of their lines.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.findings.values().flatten().cloned().collect();
        findings.sort_by_key(|finding| (finding.line, finding.verdict));
        findings
    }
}

/// The blanks before a command in [`Report::needs`].
pub(super) const COMMAND: &str = "    ";

/// The greatest number of characters of a sentence or a command about what the config needs. A
/// command has a few paths, and Linux allows 4,096 bytes for each.
const NEED_CHARS_MAX: usize = 32_768;

/// The greatest number of characters of a directive or a reason that a comment shows.
const SHOWN_CHARS_MAX: usize = 300;

/// Returns the text cut to [`SHOWN_CHARS_MAX`] characters and safe for a terminal, so that it fits
/// into a comment of one line.
pub(super) fn printable(text: &str) -> String {
    escape::masked(text, SHOWN_CHARS_MAX)
}

/// Parts of words after which a password or token may stand, in lower case.
const SECRETS: [&str; 9] = [
    "authorization",
    "token",
    "secret",
    "password",
    "passwd",
    "ca-sign-pass",
    "api-key",
    "apikey",
    "cookie-key",
];

/// Returns `true` if a header of this name, in lower case, has a secret as its value.
pub(super) fn is_of_secret(header: &str) -> bool {
    header == "cookie" || SECRETS.iter().any(|secret| header.contains(secret))
}

/// Returns the words of the line without words that hold passwords or tokens. An ellipsis shows
/// that words are left out.
pub(super) fn shown(line: &Line) -> String {
    shown_words(&line.words)
}

/// Returns words of a line as [`shown`] does.
pub(super) fn shown_words(words: &[String]) -> String {
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    let secret_from = match (word(0), word(1)) {
        ("stats", "auth") | ("user" | "setenv" | "presetenv", _) => Some(2),
        // The value of a header may be a token.
        (
            "http-request" | "http-response" | "http-after-response",
            "set-header" | "add-header" | "replace-header" | "replace-value",
        ) => Some(3),
        ("http-check", _) => words.iter().position(|word| word == "hdr").map(|at| at + 2),
        _ => None,
    };
    // One of the words before the secret may itself look like the name of a secret.
    if let Some(from) = secret_from {
        let rest = (words.len() > from).then(|| "…".to_owned());
        return words.iter().take(from).cloned().chain(rest).collect::<Vec<_>>().join(" ");
    }
    let mut shown: Vec<&str> = Vec::new();
    for word in words {
        let lower = word.to_ascii_lowercase();
        let ends = SECRETS.iter().filter_map(|name| Some(lower.find(name)? + name.len()));
        if let Some(end) = ends.min() {
            return format!("{} {}…", shown.join(" "), word.get(..end).unwrap_or_default())
                .trim_start()
                .to_owned();
        }
        shown.push(word);
    }
    shown.join(" ")
}
