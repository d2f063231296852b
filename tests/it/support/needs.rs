//! The tests that need more than a toolchain: a peer that `./test setup` installs, or root.
//!
//! The `default-filter` in `.config/nextest.toml` names these tests, so that `cargo nextest run`
//! leaves them out; the profile `all` runs every test. Each helper that uses a peer calls
//! [`needs`], which fails a test that the filter does not name: a test that is added without
//! being named fails in `./test`, and not first on a machine that has no peers.

use super::repository;

/// The file with the default profile's filter.
const CONFIG: &str = ".config/nextest.toml";

/// Panics if the default profile would run this test, although it needs `what`.
pub(crate) fn needs(what: &str) {
    // `cargo test` runs many tests in a process, and does not say which of them this is.
    let Some(name) = own_name() else { return };
    assert!(
        left_out().iter().any(|pattern| pattern.matches(&name)),
        "{name} needs {what}: name it in the default-filter of {CONFIG}"
    );
}

/// The name of the test that this process runs. nextest starts each test alone, by
/// `--exact NAME`; `None` without that.
fn own_name() -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--exact").skip(1);
    arguments.find(|argument| !argument.starts_with("--"))
}

/// One `test(…)` of the filter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// `test(=NAME)`: the test with this name.
    Exact(String),
    /// `test(/^PREFIX/)`: all tests whose names begin so.
    Prefix(String),
}

impl Pattern {
    pub(crate) fn matches(&self, name: &str) -> bool {
        match self {
            Pattern::Exact(exact) => name == exact,
            Pattern::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

/// What the default profile leaves out.
pub(crate) fn left_out() -> Vec<Pattern> {
    let text = std::fs::read_to_string(repository().join(CONFIG)).expect("nextest's config");
    let config: toml::Table = text.parse().expect("the config is TOML");
    let filter = config["profile"]["default"]["default-filter"].as_str().expect("a text");
    patterns(filter)
}

/// The patterns of a filter that reads `not (test(…) | test(…) | …)`.
fn patterns(filter: &str) -> Vec<Pattern> {
    let inner = filter.trim().strip_prefix("not (").and_then(|rest| rest.strip_suffix(')'));
    let inner = inner.unwrap_or_else(|| panic!("the filter is not `not (…)`: {filter}"));
    let pattern = |text: &str| {
        let inside = text.trim().strip_prefix("test(")?.strip_suffix(')')?;
        if let Some(name) = inside.strip_prefix('=') {
            return Some(Pattern::Exact(name.to_owned()));
        }
        let prefix = inside.strip_prefix("/^")?.strip_suffix('/')?;
        let literal =
            |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
        prefix.chars().all(literal).then(|| Pattern::Prefix(prefix.to_owned()))
    };
    let each = |text: &str| {
        pattern(text).unwrap_or_else(|| panic!("neither test(=NAME) nor test(/^PREFIX/): {text}"))
    };
    inner.trim().trim_end_matches('|').split('|').map(each).collect()
}
