//! The directives and options of HAProxy without effect on what is forwarded, to whom, and who may
//! send: logs, checks, answers, and the resources of HAProxy's process.
//!
//! The files beside this one carry directives over. The user has to decide about each directive
//! that none of them carries over and that is not listed here. A directive that is missing here
//! therefore costs the user a look, but hides nothing.
//!
//! The lists are in `words.txt`.

use super::report::Line;

/// The lists of options of `bind` lines: those that `bind` carries over, and those without effect.
pub(super) const BIND: [&str; 2] = ["bind, carried", "bind"];

/// The lists of options of `server` lines: those that `output` carries over, and those without
/// effect.
pub(super) const SERVER: [&str; 2] = ["server, carried", "server"];

/// Returns `true` if the list with the title `list` has the word `name`.
fn has(list: &str, name: &str) -> bool {
    let title = format!("[{list}]");
    let list = include_str!("words.txt").lines().skip_while(|line| *line != title).skip(1);
    let list = list.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with('#'));
    let fits = |entry: &str| match entry.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => entry == name,
    };
    list.flat_map(str::split_whitespace).any(fits)
}

/// Returns `true` if the line of a `global` section has no effect on what is forwarded.
pub(super) fn is_harmless_in_global(line: &Line) -> bool {
    has("global", line.word(0))
}

/// Returns `true` if a section of this kind has no effect on what is forwarded. This is so only if
/// nothing that is carried over uses the section.
pub(super) fn is_harmless_section(kind: &str) -> bool {
    has("sections", kind)
}

/// Returns `true` if the line of a proxy, which is not carried over, has no effect on what is
/// forwarded.
pub(super) fn is_harmless_in_proxy(line: &Line) -> bool {
    // The relay does nothing by itself that such a line could switch off.
    if matches!(line.word(0), "no" | "default") {
        return true;
    }
    // The page with HAProxy's metrics.
    if line.is(&["http-request", "use-service", "prometheus-exporter"]) {
        return true;
    }
    let mut words = line.words.iter().map(|word| word.split('(').next().unwrap_or_default());
    let first = words.next().unwrap_or_default();
    let is_level = |word: &&str| matches!(*word, "connection" | "session" | "content");
    let second = match first {
        "tcp-request" => words.find(|word| !is_level(word)),
        "compression" if matches!(line.word(1), "algo-req" | "direction") => return false,
        _ => words.next(),
    };
    let both = format!("{first}/{}", second.unwrap_or_default());
    [first, &both].iter().any(|name| has("proxy", name) || has("proxy, carried", name))
}

/// Looks up an option in two lists: first the options that are carried over, then those without
/// effect. Returns whether it is in the first list, and whether the next word is its value. `None`
/// if it is in neither list.
fn option(lists: [&str; 2], name: &str) -> Option<(bool, bool)> {
    let name = name.split('(').next().unwrap_or_default();
    let valued = format!("{name}=");
    lists.iter().enumerate().find_map(|(index, list)| match () {
        () if has(list, name) => Some((index == 0, false)),
        () if has(list, &valued) => Some((index == 0, true)),
        () => None,
    })
}

/// An option of a `bind` or `server` line, such as `maxconn 100`. `value` is empty if the option
/// takes no value, or if the value is missing.
#[derive(Debug, Clone)]
pub(super) struct Switch {
    pub(super) name: String,
    pub(super) value: String,
    /// `true`: the option has no effect on what is forwarded.
    pub(super) is_harmless: bool,
}

/// Groups the words of a `bind` or `server` line into options with their values. An option that is
/// in neither of `lists` gets the next word as its value, unless that word is in `lists`.
pub(super) fn switches(words: &[String], lists: [&str; 2]) -> Vec<Switch> {
    let mut switches = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(name) = words.next() {
        let known = option(lists, name);
        let value = match known {
            Some((_, true)) => words.next(),
            Some((_, false)) => None,
            None => words.next_if(|word| option(lists, word).is_none()),
        };
        switches.push(match (known, value) {
            (Some((_, true)), None) => Switch {
                name: format!("{name} (without its value)"),
                value: String::new(),
                is_harmless: false,
            },
            (_, value) => Switch {
                name: name.clone(),
                value: value.cloned().unwrap_or_default(),
                is_harmless: known.is_some_and(|(is_carried, _)| !is_carried),
            },
        });
    }
    switches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Line {
        Line { number: 1, words: words.split_whitespace().map(str::to_owned).collect() }
    }

    /// Directives that change what leaves, where it goes, or who may send.
    const DANGEROUS: &str = "\
        acl a src 10.0.0.1, block if a, capture request header Host len 9, capture response \
        header Server len 9, error-log-format %hr, tcp-request content capture \
        req.payload(0,0) len 9, compression algo-req gzip, declare capture request len 9, \
        disabled, filter spoe engine a, frobnicate 1, http-request allow, http-request auth, \
        http-request capture src len 9, http-request deny, http-request lua.a, http-request \
        redirect location /, http-request reject, http-request replace-path a b, http-request \
        return, http-request set-dst hdr(a), http-request set-header a b, http-request set-src \
        src, http-request silent-drop, http-request tarpit, http-request use-service lua.a, \
        http-send-name-header X, log-format %hr, option allbackups, option forwardfor, option \
        frobnicate, option transparent, rate-limit sessions 5, redirect scheme https, source \
        10.0.0.1, stick on src, tcp-request connection accept, tcp-request connection expect- \
        proxy layer4, tcp-request connection reject, tcp-request content reject if a, tcp- \
        request content set-dst src, tcp-request session reject, timeout frobnicate 5s, \
        unique-id-header X, use-fcgi-app a, use-server s if a";

    #[test]
    fn no_directive_that_changes_what_is_forwarded_is_without_effect() {
        for words in DANGEROUS.split(", ") {
            assert!(!is_harmless_in_proxy(&line(words)), "{words}");
        }
        for words in ["frobnicate", "issuers-chain-path /a", "lua-load /a", "maxconnrate 5", "tune"]
        {
            assert!(!is_harmless_in_global(&line(words)), "{words}");
        }
        for kind in ["acme", "log-forward", "namespace_list", "program", "userlist"] {
            assert!(!is_harmless_section(kind), "{kind}");
        }
    }

    #[test]
    fn options_have_their_values_and_one_without_its_value_is_never_harmless() {
        let words = "ssl crt /a.pem frobnicate 1 name ssl accept-proxy alpn";
        let switches = switches(&line(words).words, BIND);
        let seen: Vec<_> = switches
            .iter()
            .map(|it| (it.name.as_str(), it.value.as_str(), it.is_harmless))
            .collect();
        let expected = [
            ("ssl", "", false),
            ("crt", "/a.pem", false),
            ("frobnicate", "1", false),
            ("name", "ssl", true),
            ("accept-proxy", "", false),
            ("alpn (without its value)", "", false),
        ];
        assert_eq!(seen, expected);
    }
}
