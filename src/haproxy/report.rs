//! The report of a migration: what became of each line of the haproxy.cfg.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::keywords::Fate;
use super::keywords::UNKNOWN;
use super::read::Line;

/// What a directive that is not carried over means for those who use the new config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Without the directive, something changes in what leaves, where it goes, or who may send.
    /// Somebody has to decide about it.
    Decide,
    /// The directive is in a section that is not carried over, about which somebody has to decide.
    Section,
    /// Nothing of that changes without the directive.
    NoEffect,
}

/// A directive of the haproxy.cfg that is not carried over, or whose counterpart works differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The line number of the directive in the haproxy.cfg, counted from 1.
    pub line: usize,
    /// The text of the directive, with single spaces between its words and without passwords.
    pub directive: String,
    /// What its absence means.
    pub verdict: Verdict,
    /// The reason why the directive was not carried over, and what the relay does instead.
    pub reason: String,
    /// What to do about it; empty unless `verdict` is [`Verdict::Decide`].
    pub action: String,
}

/// A line of the haproxy.cfg that is carried over, wholly or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The line number in the haproxy.cfg, counted from 1.
    pub line: usize,
    /// The keys of the new config that hold what the line says. Empty if the relay does by itself
    /// what the line says.
    pub keys: Vec<String>,
}

/// What became of each line of a haproxy.cfg.
#[derive(Debug, Default)]
pub struct Report {
    /// The number of `[[listener]]` tables in the new config.
    pub listeners: usize,
    /// The number of `[[output]]` tables in the new config.
    pub outputs: usize,
    /// The lines that are carried over, in their order.
    pub carried: Vec<Carried>,
    /// The directives that are not carried over, in the order of their lines.
    pub findings: Vec<Finding>,
    /// Sentences about what the new config needs where it runs: Secrets, variables, ports. Those
    /// that begin with four spaces are commands for a shell, which belong to the sentence above.
    pub needs: Vec<String>,
}

impl Report {
    /// Returns the number of findings with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.with(verdict).count()
    }

    fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.verdict == verdict)
    }

    /// Returns the report as lines of text: a summary, then what somebody has to decide about, then
    /// what was left out without effect, then what the config needs. `name` is the name of the file
    /// with which each place begins, as `NAME:LINE`.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let mut lines = vec![format!(
            "{}: {} and {}; {} carried over, {} to decide, {} left out without effect",
            printable(name),
            counted(self.listeners, "listener"),
            counted(self.outputs, "output"),
            counted(self.carried.len(), "directive"),
            self.count(Verdict::Decide),
            self.count(Verdict::NoEffect),
        )];
        let place = |finding: &Finding| {
            format!("{}:{}: {}", printable(name), finding.line, finding.directive)
        };
        for finding in self.with(Verdict::Decide) {
            if lines.len() == 1 {
                let text = "Decide these: they change what leaves, where it goes, or who may send.";
                lines.extend([String::new(), text.to_owned()]);
            }
            lines.push(place(finding));
            lines.push(format!("  why: {}", finding.reason));
            lines.push(format!("  do: {}", finding.action));
        }
        for (verdict, head) in [
            (
                Verdict::Section,
                "In sections that are not carried over (they are to decide about above):",
            ),
            (Verdict::NoEffect, "Left out without effect; nothing needs to be done:"),
        ] {
            for (index, finding) in self.with(verdict).enumerate() {
                if index == 0 {
                    lines.extend([String::new(), head.to_owned()]);
                }
                lines.push(format!("{}: {}", place(finding), finding.reason));
            }
        }
        if !self.needs.is_empty() {
            lines.extend([String::new(), "Before the relay runs with this config:".to_owned()]);
            for need in &self.needs {
                let need = printable_to(need, NEED_CHARS_MAX);
                lines.push(if need.starts_with(COMMAND) { need } else { format!("- {need}") });
            }
        }
        lines
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The lines of the haproxy.cfg that are dealt with so far: each is carried over into the new
/// config, reported to the user, or both.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    /// The numbers of the lines that are carried over, each with the keys that hold them.
    carried: BTreeMap<usize, BTreeSet<String>>,
    /// The findings about each line.
    findings: BTreeMap<usize, Vec<Finding>>,
    /// The files that the lines name, each with the number of the first line that does.
    files: BTreeMap<String, usize>,
}

impl Notes {
    /// Notes that a line is carried over into `key` of the new config. An empty key says that the
    /// relay does by itself what the line says.
    pub(super) fn carried(&mut self, line: &Line, key: &str) {
        let keys = self.carried.entry(line.number).or_default();
        if !key.is_empty() {
            keys.insert(key.to_owned());
        }
    }

    /// Adds a report that somebody has to decide about `directive`, a part of a line or all of it.
    pub(super) fn decide(
        &mut self,
        line: &Line,
        directive: &str,
        why: impl Into<String>,
        act: impl Into<String>,
    ) {
        self.add(line, directive, Verdict::Decide, &why.into(), &act.into());
    }

    /// Adds a report that `directive`, a part of a line or all of it, is left out without effect.
    pub(super) fn no_effect(&mut self, line: &Line, directive: &str, why: impl Into<String>) {
        self.add(line, directive, Verdict::NoEffect, &why.into(), "");
    }

    /// Adds a report that a line is in a section that is not carried over.
    pub(super) fn in_section(&mut self, line: &Line, why: impl Into<String>) {
        self.add(line, &shown(line), Verdict::Section, &why.into(), "");
    }

    /// Adds the report that a table has for `directive`, a part of a line or all of it.
    pub(super) fn fate(&mut self, line: &Line, directive: &str, fate: Fate) {
        match fate {
            Fate::Carried => self.fate(line, directive, super::keywords::NOT_CARRIED),
            Fate::Matters { why, act } => self.decide(line, directive, why, act),
            Fate::NoEffect(why) => self.no_effect(line, directive, why),
        }
    }

    /// Adds a report about an option without its value.
    pub(super) fn lacks_value(&mut self, line: &Line, directive: &str) {
        self.decide(line, directive, "its value is missing", "correct the line, and migrate again");
    }

    /// Adds a report about an option that no HAProxy knows.
    pub(super) fn unknown(&mut self, line: &Line, directive: &str) {
        self.fate(line, directive, UNKNOWN);
    }

    fn add(&mut self, line: &Line, directive: &str, verdict: Verdict, why: &str, act: &str) {
        let finding = Finding {
            line: line.number,
            directive: printable(directive),
            verdict,
            reason: printable(why),
            action: printable(act),
        };
        self.push(finding);
    }

    fn push(&mut self, finding: Finding) {
        let of_line = self.findings.entry(finding.line).or_default();
        if !of_line.contains(&finding) {
            of_line.push(finding);
        }
    }

    /// Notes that a line names a file, whose path the new config may map to another one.
    pub(super) fn file(&mut self, line: &Line, path: &str) {
        self.files.entry(path.to_owned()).or_insert(line.number);
    }

    /// Returns the number of the line that names the file; 0 if none does.
    pub(super) fn line_of_file(&self, path: &str) -> usize {
        self.files.get(path).copied().unwrap_or(0)
    }

    /// Returns the numbers of the lines that are carried over into a key of the new config.
    pub(super) fn sources(&self, key: &str) -> Vec<usize> {
        let of_key =
            |(number, keys): (&usize, &BTreeSet<String>)| keys.contains(key).then_some(*number);
        self.carried.iter().filter_map(of_key).collect()
    }

    /// Returns `true` if the line is carried over or reported already.
    pub(super) fn knows(&self, number: usize) -> bool {
        self.carried.contains_key(&number) || self.findings.contains_key(&number)
    }

    /// Takes back the findings about a line.
    pub(super) fn forget(&mut self, number: usize) {
        self.findings.remove(&number);
    }

    /// Returns the numbers of the lines about which somebody has to decide.
    pub(super) fn to_decide(&self) -> BTreeSet<usize> {
        let decide = |finding: &&Finding| finding.verdict == Verdict::Decide;
        self.findings.values().flatten().filter(decide).map(|finding| finding.line).collect()
    }

    /// Adds the notes of another part of the file.
    pub(super) fn merge(&mut self, other: Self) {
        for (number, keys) in other.carried {
            self.carried.entry(number).or_default().extend(keys);
        }
        other.findings.into_values().flatten().for_each(|finding| self.push(finding));
        for (path, line) in other.files {
            self.files.entry(path).or_insert(line);
        }
    }

    /// Returns all findings in the order of their lines.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.findings.values().flatten().cloned().collect();
        findings.sort_by_key(|finding| (finding.line, finding.verdict));
        findings
    }

    /// Returns the lines that are carried over, in their order.
    pub(super) fn carried_lines(&self) -> Vec<Carried> {
        let carried = |(line, keys): (&usize, &BTreeSet<String>)| Carried {
            line: *line,
            keys: keys.iter().cloned().collect(),
        };
        self.carried.iter().map(carried).collect()
    }
}

/// The blanks before a command in [`Report::needs`].
pub(super) const COMMAND: &str = "    ";

/// The greatest number of characters of a sentence or a command about what the config needs. A
/// command has a few paths, and Linux allows 4,096 bytes for each.
const NEED_CHARS_MAX: usize = 32_768;

/// The greatest number of characters of a directive or a reason that a comment shows.
const SHOWN_CHARS_MAX: usize = 300;

/// Returns the text cut to [`SHOWN_CHARS_MAX`] characters and without control characters, so that
/// the text can stand in a comment of one line.
pub(super) fn printable(text: &str) -> String {
    printable_to(text, SHOWN_CHARS_MAX)
}

fn printable_to(text: &str, chars_max: usize) -> String {
    // Characters that change the direction of writing could make a line look like another one.
    let is_shown = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let printable = |c: char| if is_shown(c) { c } else { '\u{fffd}' };
    text.chars().take(chars_max).map(printable).collect()
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

/// Returns the words of the line without words that hold passwords or tokens. An ellipsis stands
/// for the words that are left out.
pub(super) fn shown(line: &Line) -> String {
    shown_words(&line.words)
}

/// Returns words of a line as [`shown`] does.
pub(super) fn shown_words(words: &[String]) -> String {
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    let secret_from = match (word(0), word(1)) {
        ("stats", "auth") | ("user" | "setenv" | "presetenv", _) => 2,
        // The value of a header may be a token.
        (
            "http-request" | "http-response" | "http-after-response",
            "set-header" | "add-header" | "replace-header" | "replace-value",
        ) => 3,
        ("http-check", _) => words.iter().position(|word| word == "hdr").map_or(999, |at| at + 2),
        _ => 999,
    };
    let mut shown: Vec<String> = Vec::new();
    for (index, word) in words.iter().enumerate() {
        if index >= secret_from {
            shown.push("…".to_owned());
            break;
        }
        let lower = word.to_ascii_lowercase();
        let end = SECRETS
            .iter()
            .filter_map(|secret| lower.find(secret).map(|start| start + secret.len()))
            .min();
        // `user` and header lines show the name, which may itself look like a secret's.
        if let Some(end) = end.filter(|_| secret_from == 999) {
            shown.push(format!("{}…", word.get(..end).unwrap_or_default()));
            break;
        }
        shown.push(word.clone());
    }
    shown.join(" ")
}
