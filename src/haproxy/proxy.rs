//! The settings of a proxy (a `frontend`, `backend` or `listen` section) together with those that
//! it inherits from `defaults` sections, by the rules of section 4 of HAProxy's configuration
//! manual.

use super::read::File;
use super::report::Line;

/// A proxy with the lines that hold for it.
#[derive(Debug, Clone)]
pub(super) struct Proxy<'a> {
    /// The index of the proxy's own section in the file.
    pub(super) place: usize,
    /// The indices of the sections whose lines hold for the proxy: first the `defaults` section
    /// that inherits from no other, last the proxy's own section.
    pub(super) sections: Vec<usize>,
    /// The lines that hold for the proxy, those of `defaults` sections before its own. A line is
    /// not here if a later line overrides it.
    pub(super) lines: Vec<&'a Line>,
}

impl<'a> Proxy<'a> {
    /// Collects the lines that hold for the section with the index `place`.
    pub(super) fn read(file: &'a File, place: usize) -> Self {
        // A `defaults` section inherits only from one above it, so the walk ends.
        let parent = |place: &usize| file.sections[*place].defaults;
        let mut sections: Vec<usize> = std::iter::successors(Some(place), parent).collect();
        sections.reverse();
        let mut lines: Vec<&'a Line> = Vec::new();
        for line in sections.iter().flat_map(|&section| &file.sections[section].lines) {
            if line.is(&["no", "log"]) {
                lines.retain(|earlier| earlier.word(0) != "log");
            } else if let Some(setting) = setting(line) {
                lines.retain(|earlier| self::setting(earlier) != Some(setting));
            }
            lines.push(line);
        }
        Self { place, sections, lines }
    }

    /// Returns the lines that begin with `words`.
    pub(super) fn all<'b>(&'b self, words: &'b [&str]) -> impl Iterator<Item = &'a Line> + 'b {
        self.lines.iter().copied().filter(move |line| line.is(words))
    }

    /// Returns the last line that begins with `words`, which is the one that holds if the setting
    /// has one value.
    pub(super) fn last(&self, words: &[&str]) -> Option<&'a Line> {
        self.lines.iter().rev().copied().find(|line| line.is(words))
    }

    pub(super) fn has(&self, words: &[&str]) -> bool {
        self.last(words).is_some()
    }

    /// Returns `true` if HAProxy reads the requests as HTTP; without a line `mode` it does not.
    pub(super) fn is_http(&self) -> bool {
        self.last(&["mode"]).is_some_and(|line| line.word(1) == "http")
    }
}

/// The directives that have one value, so that a later line overrides an earlier one. The other
/// directives add up, such as `server`, or have no effect on what is forwarded.
const SINGLE: [&str; 12] = [
    "balance",
    "default_backend",
    "disabled",
    "dispatch",
    "error-log-format",
    "http-send-name-header",
    "log-format",
    "log-format-sd",
    "maxconn",
    "mode",
    "source",
    "unique-id-header",
];

/// Returns the name of the setting that the line changes. A later line with the same setting
/// overrides this one. `None` if lines of this kind add up.
fn setting(line: &Line) -> Option<(&str, &str)> {
    let at = usize::from(matches!(line.word(0), "no" | "default"));
    match (line.word(at), line.word(at + 1)) {
        ("enabled", _) => Some(("disabled", "")),
        ("timeout" | "option" | "rate-limit", second) => Some((line.word(at), second)),
        (first, _) => SINGLE.contains(&first).then_some((first, "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::read;
    use crate::haproxy::report::Notes;

    #[track_caller]
    fn assert_lines(text: &str, place: usize, expected: &[usize]) {
        let file = read::read(text, &mut Notes::default()).unwrap();
        let proxy = Proxy::read(&file, place);
        assert_eq!(proxy.lines.iter().map(|line| line.number).collect::<Vec<_>>(), expected);
    }

    const CHAIN: &str = "\
defaults base
  timeout connect 5s
  timeout server 10s
  option httplog
  log global
defaults audit from base
  timeout server 90s
  no option httplog
  http-request set-header X-A 1
frontend in from audit
  bind :3000
  http-request set-header X-B 2
defaults
  timeout connect 9s
backend out from base
  server s 10.0.0.1:80
backend last
  server s 10.0.0.1:80
";

    #[test]
    fn values_come_through_chains_of_defaults_and_nearer_ones_win() {
        assert_lines(CHAIN, 2, &[2, 5, 7, 8, 9, 11, 12]);
    }

    #[test]
    fn a_name_after_from_wins_over_the_defaults_section_just_above() {
        assert_lines(CHAIN, 4, &[2, 3, 4, 5, 16]);
    }

    #[test]
    fn without_from_the_last_defaults_section_above_holds_and_no_other() {
        assert_lines(CHAIN, 5, &[14, 18]);
    }

    #[test]
    fn logs_add_up_until_no_log() {
        let text = "defaults\n log a local0\nfrontend f\n log b local0\nfrontend g\n no log\n";
        assert_lines(text, 1, &[2, 4]);
        assert_lines(text, 2, &[6]);
    }
}
