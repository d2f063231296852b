//! The settings of a proxy (a `frontend`, `backend` or `listen` section) together with those that
//! it inherits from `defaults` sections, by the rules of section 4 of HAProxy's configuration
//! manual.

use std::collections::BTreeMap;

use super::read::File;
use super::read::Line;

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
    /// The numbers of the lines that a later line overrides, each with the number of that line.
    pub(super) overridden: BTreeMap<usize, usize>,
}

impl<'a> Proxy<'a> {
    /// Collects the lines that hold for the section with the index `place`.
    pub(super) fn read(file: &'a File, place: usize) -> Self {
        let mut sections = vec![place];
        // A `defaults` section inherits only from one above it, so the walk ends.
        let mut next = file.sections[place].defaults;
        while let Some(defaults) = next {
            sections.push(defaults);
            next = file.sections[defaults].defaults;
        }
        sections.reverse();
        let mut lines: Vec<&'a Line> = Vec::new();
        let mut overridden = BTreeMap::new();
        for line in sections.iter().flat_map(|&section| &file.sections[section].lines) {
            if let Some(setting) = setting(line) {
                lines.retain(|earlier| {
                    let stays = self::setting(earlier).as_ref() != Some(&setting);
                    if !stays {
                        overridden.insert(earlier.number, line.number);
                    }
                    stays
                });
            } else if line.is(&["no", "log"]) {
                lines.retain(|earlier| {
                    let stays = earlier.word(0) != "log";
                    if !stays {
                        overridden.insert(earlier.number, line.number);
                    }
                    stays
                });
            }
            lines.push(line);
        }
        Self { place, sections, lines, overridden }
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

    /// Returns `true` if the proxy takes no requests because of the line `disabled`.
    pub(super) fn is_disabled(&self) -> bool {
        self.has(&["disabled"])
    }
}

/// Returns the name of the setting that the line gives a value, so that a later line for the same
/// setting overrides this one. `None` if lines of this kind add up, such as `server` or `log`.
fn setting(line: &Line) -> Option<String> {
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    let words = match words.as_slice() {
        ["no" | "default", rest @ ..] => rest,
        words => words,
    };
    let (first, second) = (*words.first()?, words.get(1).copied().unwrap_or_default());
    let name = match first {
        "timeout" | "option" | "email-alert" | "external-check" | "persist" | "rate-limit" => {
            format!("{first} {second}")
        }
        "stats" if !matches!(second, "auth" | "admin" | "http-request" | "scope" | "socket") => {
            format!("{first} {second}")
        }
        "disabled" | "enabled" => "disabled".to_owned(),
        "backlog"
        | "balance"
        | "clitcpka-cnt"
        | "clitcpka-idle"
        | "clitcpka-intvl"
        | "cookie"
        | "default_backend"
        | "description"
        | "dispatch"
        | "dynamic-cookie-key"
        | "error-log-format"
        | "fullconn"
        | "guid"
        | "hash-balance-factor"
        | "hash-type"
        | "http-reuse"
        | "http-send-name-header"
        | "id"
        | "load-server-state-from-file"
        | "log-format"
        | "log-format-sd"
        | "log-tag"
        | "max-keep-alive-queue"
        | "max-session-srv-conns"
        | "maxconn"
        | "mode"
        | "monitor-uri"
        | "retries"
        | "retry-on"
        | "server-state-file-name"
        | "source"
        | "srvtcpka-cnt"
        | "srvtcpka-idle"
        | "srvtcpka-intvl"
        | "unique-id-format"
        | "unique-id-header" => first.to_owned(),
        _ => return None,
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::read;

    #[track_caller]
    fn assert_lines(text: &str, place: usize, expected: &[usize]) {
        let file = read::read(text);
        assert_eq!(file.refused, []);
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

    #[test]
    fn what_is_overridden_is_known_with_the_line_that_overrides_it() {
        let file = read::read(CHAIN);
        let overridden = Proxy::read(&file, 2).overridden;
        assert_eq!(overridden.into_iter().collect::<Vec<_>>(), [(3, 7), (4, 8)]);
    }
}
