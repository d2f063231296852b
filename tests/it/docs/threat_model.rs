//! The threat model: a test shows what stops each threat, or the threat is accepted with a reason.
//! The tests that the page names exist.

use std::collections::BTreeSet;

use super::pages::Page;
use crate::support::{files, repository};

/// Returns the names of all tests in the sources and in `tests/it`.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let is_source = |path: &String| {
        path.ends_with(".rs")
            && ["src/", "crates/", "tests/it/"].iter().any(|it| path.starts_with(it))
    };
    for path in files().into_iter().filter(is_source) {
        let text = std::fs::read_to_string(repository().join(path)).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            let signature = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            match signature.and_then(|rest| rest.split_once('(')) {
                Some((name, _)) if is_test => {
                    found.insert(name.to_owned());
                    is_test = false;
                }
                Some(_) => is_test = false,
                None => is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test"),
            }
        }
    }
    found
}

#[test]
fn each_threat_names_tests_that_exist_or_why_it_is_accepted() {
    let (page, tests) = (Page::read("docs/internals/threat-model.md"), tests());
    let (mut rows, mut named) = (0, 0);
    let mut in_threats = false;
    for (number, line) in page.prose() {
        let cells: Vec<_> = line.split(" | ").collect();
        let is_head = line == "| threat | what stops it | shown by |";
        in_threats = is_head || in_threats && line.starts_with('|');
        if !in_threats || is_head || line.starts_with("|---") {
            continue;
        }
        let [_, _, shown] = cells[..] else { panic!("line {number}: three cells: {line}") };
        rows += 1;
        let shown = shown.trim_end_matches(" |");
        let words: Vec<_> = shown.split('`').skip(1).step_by(2).collect();
        for word in &words {
            let is_command = word.contains([' ', '/']);
            assert!(is_command || tests.contains(*word), "line {number}: no test {word}");
        }
        named += words.len();
        let is_accepted = shown.split_once("ccepted").is_some_and(|(_, reason)| reason.len() > 20);
        assert!(is_accepted || !words.is_empty(), "line {number}: nothing shows it: {line}");
    }
    assert!(rows > 30 && named > 40, "{rows} threats, {named} tests");
}
