//! The report of a migration: what became of each line of the haproxy.cfg.

use std::collections::BTreeMap;

use base::words::escape;

/// A line of the haproxy.cfg with at least one word. Empty lines and comments are skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The line number, counted from 1.
    pub(super) number: usize,
    pub(super) words: Vec<String>,
}

impl Line {
    /// Returns the word with this index, or an empty text if there is none.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    pub(super) fn is<const N: usize>(&self, words: [&str; N]) -> bool {
        words.iter().enumerate().all(|(index, word)| self.word(index) == *word)
    }
}

/// The verdict about a directive of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The directive is not carried over. This may change the sent events, their receivers, or who
    /// may send. The user has to decide about it.
    Decide,
    /// The directive is not carried over. This changes neither the sent events, nor their
    /// receivers, nor who may send.
    NoEffect,
    /// The new config has the setting, or the relay behaves so without a setting.
    Carried,
}

/// A directive of the haproxy.cfg, or a part of it, and the verdict about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The line number of the directive, counted from 1.
    pub line: usize,
    /// The verdict.
    pub verdict: Verdict,
    /// The text of the directive, cut, with single spaces and without what looks like a password.
    pub directive: String,
    /// The reason for the verdict. For a directive that is carried over, the key in the new config,
    /// or the behaviour of the relay.
    pub reason: String,
}

/// The result of a migration for each line of a haproxy.cfg.
#[derive(Debug, Default)]
pub struct Report {
    /// At least one finding for each line that has words, in the order of the lines.
    pub findings: Vec<Finding>,
    /// The sentence that says whether HAProxy accepts the file.
    pub validity: String,
    /// Sentences about the Secrets that the new config needs. A text that begins with four spaces
    /// is a shell command for the sentence before it.
    pub needs: Vec<String>,
}

/// The verdicts in the order of the report, with their texts.
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

    /// Returns the report: a summary, the findings whose verdict is at most `last`, and the needs
    /// of the config. `name` is the name of the file, for places such as `NAME:LINE`.
    pub fn lines(&self, name: &str, last: Verdict) -> Vec<String> {
        let name = printable(name);
        let [decide, no_effect, carried] = VERDICTS.map(|(verdict, _)| self.count(verdict));
        let mut lines = vec![format!(
            "{name}: decide: {decide}, no effect: {no_effect}, carried over: {carried}. \
             docs/migrate-haproxy.md lists what the relay has instead."
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
            lines.extend([String::new(), "Before you run the relay with this config:".to_owned()]);
            lines.extend(self.needs.iter().map(|need| escape::masked(need, usize::MAX)));
        }
        lines
    }
}

/// The findings so far, by the numbers of their lines.
#[derive(Debug, Default)]
pub(super) struct Notes(BTreeMap<usize, Vec<Finding>>);

impl Notes {
    pub(super) fn carried(&mut self, line: &Line, key: &str) {
        self.add(line, &line.words, Verdict::Carried, key);
    }

    pub(super) fn decide(&mut self, line: &Line, why: &str) {
        self.add(line, &line.words, Verdict::Decide, why);
    }

    /// Adds the finding that the user has to decide about some words of a line whose other words
    /// are carried over. The first two words of the line are shown with them.
    pub(super) fn decide_part(&mut self, line: &Line, part: &[String], why: &str) {
        let begin = [line.word(0), line.word(1), "…"].map(str::to_owned);
        self.add(line, &[&begin, part].concat(), Verdict::Decide, why);
    }

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

    pub(super) fn knows(&self, line: &Line) -> bool {
        self.0.contains_key(&line.number)
    }

    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.0.into_values().flatten().collect()
    }
}

/// The maximum characters of a directive or a reason.
const SHOWN_CHARS_MAX: usize = 300;

/// Returns the text cut to [`SHOWN_CHARS_MAX`] characters and safe for a terminal and for a comment
/// of one line.
pub(super) fn printable(text: &str) -> String {
    escape::masked(text, SHOWN_CHARS_MAX)
}

/// Fragments of words, in lower case, that a password or token may follow.
const SECRETS: &str = "apikey api-key authorization bearer ca-sign-pass cookie passwd password \
    secret token";

/// Returns the index in a lower-case text at which a secret may begin.
pub(super) fn secret_in(text: &str) -> Option<usize> {
    SECRETS.split_whitespace().filter_map(|it| Some(text.find(it)? + it.len())).min()
}

/// The directives whose arguments may be any text.
const FREE: &str = "command http-after-response http-check http-error http-request http-response \
    redirect tcp-check tcp-request tcp-response";

/// The second words of such directives that are followed by names, numbers and conditions.
const HARMLESS: &str = "accept allow auth cache-store cache-use capture connect del-header deny \
    inspect-delay reject send-spoe-group set-bandwidth-limit set-log-level \
    silent-drop tarpit use-service";

/// The words in such a directive before an argument that may be any text.
const BEFORE_FREE: &str = "content-type errorfile errorfiles file hdr lf-file lf-string string";

/// The first words of conditions that compare with something that is no secret.
const COMPARED: &str = "always_false always_true dst dst_port method nbsrv path path_beg path_end \
    src src_port ssl_fc ssl_fc_has_crt";

/// Returns the words without what looks like a password or token. An ellipsis marks the gap.
pub(super) fn shown(words: &[String]) -> String {
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    let is_in = |list: &str, word: &str| list.split_whitespace().any(|it| it == word);
    // A condition in braces may compare with a secret.
    let shown = |before: usize| {
        let next = word(before + 1);
        let is_compared = next.starts_with('!') || is_in(COMPARED, next);
        match word(before) {
            one if is_in(BEFORE_FREE, one) && is_in(FREE, word(0)) => Some(before + 1),
            one if one.ends_with('{') && !is_compared => Some(before + 2),
            _ => None,
        }
    };
    let until_secret = (0..words.len()).find_map(shown).unwrap_or(words.len());
    let count = match (word(0), word(1)) {
        ("stats", "auth") | ("user" | "setenv" | "presetenv" | "set-var" | "set-var-fmt", _) => 2,
        // The value of a header may be a token.
        (_, "set-header" | "add-header" | "replace-header" | "replace-value") => 3,
        ("acl", _) if !is_in(COMPARED, word(2)) => 3,
        (directive, action) if is_in(FREE, directive) && !is_in(HARMLESS, action) => 2,
        _ => until_secret,
    };
    let mut text = words.iter().take(count).cloned().collect::<Vec<_>>().join(" ");
    let lower = text.to_ascii_lowercase();
    // A URL may have a username and a password.
    let in_url = text.split_once("://").filter(|(_, rest)| rest.contains('@'));
    let in_url = in_url.map(|(scheme, _)| scheme.len() + "://".len());
    let end = [secret_in(&lower), in_url].into_iter().flatten().min().unwrap_or(text.len());
    if end < text.len() || count < words.len() {
        text.truncate(end);
        text.push_str(" …");
    }
    text
}
