//! Finds the mistakes with which HAProxy does not start. Only mistakes that every version from 2.6
//! to 3.0 refuses are here: what is doubtful is for the report.

use std::collections::BTreeSet;

use super::options::is_variable;
use super::proxy::Proxy;
use super::read::File;
use super::read::Line;
use super::time_millis;

/// Returns the lines with which HAProxy does not start, each with the reason.
pub(super) fn refused(file: &File) -> Vec<(Line, String)> {
    let mut refused: Vec<(Line, String)> =
        file.refused.iter().map(|(line, why)| (line.clone(), (*why).to_owned())).collect();
    let mut fronts = BTreeSet::new();
    let mut backs = BTreeSet::new();
    for (place, section) in file.sections.iter().enumerate() {
        let kind = section.kind();
        let is_proxy = matches!(kind, "frontend" | "backend" | "listen");
        if is_proxy {
            let name = section.name();
            if name.is_empty() {
                refused.push((section.head.clone(), "the section has no name".to_owned()));
            }
            let is_new = (kind == "backend" || fronts.insert(name))
                & (kind == "frontend" || backs.insert(name));
            if !is_new {
                refused.push((section.head.clone(), "another section has this name".to_owned()));
            }
            if !matches!(section.head.word(2), "" | "from") {
                let why = format!("`{}` is not expected here", section.head.word(2));
                refused.push((section.head.clone(), why));
            }
        }
        if is_proxy || kind == "defaults" {
            for line in &section.lines {
                refused.extend(mistake(line).map(|why| (line.clone(), why)));
            }
        }
        if matches!(kind, "frontend" | "listen") {
            refused.extend(missing_backends(file, &Proxy::read(file, place)));
        }
    }
    refused.sort_by_key(|(line, _)| line.number);
    refused.dedup_by_key(|(line, _)| line.number);
    refused
}

/// Returns the reason why HAProxy refuses a line of a proxy; `None` if it takes the line, or if
/// that is not sure.
fn mistake(line: &Line) -> Option<String> {
    let count = line.words.len();
    match (line.word(0), line.word(1)) {
        ("timeout", _) if count < 3 => Some("the time is missing".to_owned()),
        ("timeout", _) if !is_variable(line.word(2)) => match time_millis(line.word(2)) {
            None => Some(format!("`{}` is not a time", line.word(2))),
            Some(millis) if millis > TIMEOUT_MILLIS_MAX => {
                Some(format!("`{}` is longer than HAProxy's timers", line.word(2)))
            }
            Some(_) => None,
        },
        ("mode", text) if !is_variable(text) && !MODES.contains(&text) => {
            Some(format!("there is no mode `{text}`"))
        }
        ("bind", "") => Some("the address is missing".to_owned()),
        ("server", _) if count < 3 => Some("the address is missing".to_owned()),
        ("bind", text) if text.split(',').any(has_wrong_port) => {
            Some(format!("`{text}` has no port from 1 to 65535"))
        }
        ("bind", _) => {
            let has = |word: &str| line.words.iter().any(|other| other == word);
            let has_certificate = ["crt", "crt-list", "default-crt"].into_iter().any(has);
            (has("ssl") && !has_certificate && !has("generate-certificates"))
                .then(|| "`ssl` needs a certificate (crt FILE)".to_owned())
        }
        ("default_backend" | "use_backend", "") => Some("the name is missing".to_owned()),
        _ => None,
    }
}

/// The longest timeout that HAProxy takes, about 24.8 days.
const TIMEOUT_MILLIS_MAX: u64 = i32::MAX as u64;

/// The modes of proxies in HAProxy 2.6 to 3.0.
const MODES: [&str; 5] = ["tcp", "http", "log", "health", "syslog"];

/// Returns `true` if an address of a `bind` line ends in a port that HAProxy refuses. Unix sockets
/// and inherited file descriptors have no port.
fn has_wrong_port(text: &str) -> bool {
    let is_other = text.starts_with('/')
        || ["unix@", "abns@", "abnsz@", "fd@", "sockpair@", "rhttp@", "uxst@", "uxdg@"]
            .iter()
            .any(|prefix| text.starts_with(prefix));
    if is_other || is_variable(text) {
        return false;
    }
    let Some((_, port)) = text.rsplit_once(':') else { return true };
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    match port.split_once('-') {
        Some((first, last)) => !is_port(first) || !is_port(last),
        None => !is_port(port),
    }
}

/// Returns the lines of a proxy that name a backend which does not exist.
fn missing_backends(file: &File, proxy: &Proxy<'_>) -> Vec<(Line, String)> {
    if proxy.is_disabled() {
        return Vec::new();
    }
    let exists = |name: &str| {
        file.sections
            .iter()
            .any(|section| matches!(section.kind(), "backend" | "listen") && section.name() == name)
    };
    let names = proxy.lines.iter().filter(|line| {
        let is_static = !line.word(1).contains('%') && !is_variable(line.word(1));
        matches!(line.word(0), "default_backend" | "use_backend")
            && is_static
            && !line.word(1).is_empty()
            && !exists(line.word(1))
    });
    names.map(|line| ((*line).clone(), format!("there is no backend `{}`", line.word(1)))).collect()
}
