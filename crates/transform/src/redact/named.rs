//! Finds credentials by the name that precedes them, as in `token=…` and `--password …`.
//!
//! Names are compared without regard to case, `-` and `_`: `ID-Token` and `accessToken` are found.
//! Outside of commands, names in brackets are found too: `token[]` and `user[token]`. Outside of
//! commands and selectors, the value of an environment variable (`env=NAME=…`) is a credential
//! whatever the variable's name is, because such variables often hold secrets.

use std::ops::Range;

use super::text::REDACTED;

/// The names of credentials anywhere, in lower case, without `-` and `_`. In a selector, only these
/// count, because the keys of labels are words such as `env` and `secret`.
const NAMES: [&[u8]; 11] = [
    b"token",
    b"accesstoken",
    b"idtoken",
    b"refreshtoken",
    b"bearertoken",
    b"authtoken",
    b"authorization",
    b"password",
    b"passwd",
    b"clientsecret",
    b"apikey",
];

/// More names of credentials in URIs and commands. There, a longer name also counts if it ends in a
/// name from this list or from [`NAMES`] after a `_`, `-` or `.`, as `AWS_SECRET_ACCESS_KEY` does.
const OF_COMMANDS: [&[u8]; 7] =
    [b"pass", b"passphrase", b"pwd", b"secret", b"secretkey", b"secretaccesskey", b"privatekey"];

/// More names of credentials in URIs, but not in commands: OAuth's code, signatures of URLs that
/// give access by themselves, and sessions. A longer name, such as `error_code`, does not count.
const OF_URIS: [&[u8]; 7] = [
    b"code",
    b"sig",
    b"signature",
    b"xamzsignature",
    b"xgoogsignature",
    b"sessionid",
    b"jsessionid",
];

/// The URI parameter with an environment variable, as in `env=NAME=VALUE`.
const ENV: &[u8] = b"env";

/// Words that may be between a name and its credential, as in `Authorization: Bearer …`.
const SCHEMES: [&[u8]; 5] = [b"bearer", b"basic", b"token", b"digest", b"apikey"];

/// The maximum length of a name in bytes, with its `-` and `_`. [`is_name_of_command`] compares
/// only the last 64 bytes of a longer text; elsewhere, a longer text is not a name.
const NAME_BYTES_MAX: usize = 64;

/// The characters that cannot be part of a name. The name before a `=` begins after the last of
/// these characters: in `a&token=b`, the name `token` begins after the `&`.
const BOUNDS: &[u8] = b"&;?,#/|!<>(){}\"' \t\r\n=";

const IS_BOUND: [bool; 256] = {
    let (mut table, mut at) = ([false; 256], 0);
    while at < BOUNDS.len() {
        table[BOUNDS[at] as usize] = true;
        at += 1;
    }
    table
};

/// Finds the first `NAME=VALUE` in which NAME is the name of a credential and VALUE is neither
/// empty nor redacted already. Returns the range from the value to the end of the text. For `env`,
/// the name of the variable stays visible and is not in the range, because variables such as
/// `LD_PRELOAD` decide which code runs.
pub(super) fn assigned(text: &[u8]) -> Option<Range<usize>> {
    memchr::memchr_iter(b'=', text).find_map(|equals| {
        let before = text.get(..equals)?.trim_ascii_end();
        let before = before.strip_suffix(b"!").unwrap_or(before).trim_ascii_end();
        let start =
            before.iter().rposition(|byte| IS_BOUND[usize::from(*byte)]).map_or(0, |at| at + 1);
        let name = before.get(start..)?;
        let is_env = has_part(name, |name| is_one_of(name, &[&[ENV]]));
        if !is_env
            && !has_part(name, |name| is_name_of_command(name) || is_one_of(name, &[&OF_URIS]))
        {
            return None;
        }
        let behind = text.get(equals + 1..)?;
        let value = behind.iter().position(|byte| !matches!(byte, b'=' | b' '))?;
        let name = if is_env { variable(behind.get(value..)?) } else { 0 };
        value_of(text, equals + 1 + value + name..text.len())
    })
}

/// Calls `found` with the value of each key in a label or field selector that is the name of a
/// credential, as in `token=a`, `x/token!=a` and `token in (a,b)`.
pub(super) fn selected(text: &[u8], mut found: impl FnMut(Range<usize>)) {
    let mut at = 0;
    while at < text.len() {
        let start = at;
        let mut is_inside = false;
        let is_end = |byte: &u8| {
            is_inside = (is_inside || *byte == b'(') && *byte != b')';
            *byte == b',' && !is_inside
        };
        let end = text[start..].iter().position(is_end).map_or(text.len(), |length| start + length);
        at = end + 1;
        let one = &text[start..end];
        let lead = one.iter().take_while(|byte| matches!(byte, b' ' | b'!')).count();
        let is_operator = |byte: &u8| b" =!<>(".contains(byte);
        let Some(length) = one[lead..].iter().position(is_operator) else { continue };
        let key = &one[lead..lead + length];
        let name = key.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if !has_part(name, |name| is_one_of(name, &[&NAMES])) {
            continue;
        }
        let behind = lead + length;
        let rest = &one[behind..];
        let values = match memchr::memchr(b'(', rest) {
            Some(open) => {
                let inside = behind + open + 1;
                let close = memchr::memchr(b')', &one[inside..]);
                inside..close.map_or(one.len(), |close| inside + close)
            }
            None => {
                let value = rest.iter().position(|byte| !is_operator(byte));
                value.map_or(one.len(), |value| behind + value)..one.len()
            }
        };
        if let Some(value) = value_of(text, start + values.start..start + values.end) {
            found(value);
        }
    }
}

/// Finds credentials in a command that arrives in several parts, in their order, such as the values
/// of the repeated URI parameter `command=`.
#[derive(Debug, Default)]
pub(super) struct Command {
    /// `true` if the next word is a credential, because the last word was `--password` or
    /// `Authorization:`, for example.
    expects: bool,
}

impl Command {
    /// Calls `found` with the range of each credential in the next part of the command: one
    /// argument, or a text for a shell with several arguments.
    pub(super) fn part(&mut self, text: &[u8], mut found: impl FnMut(Range<usize>)) {
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            if byte.is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let length = text[at..].iter().position(u8::is_ascii_whitespace);
            let end = length.map_or(text.len(), |length| at + length);
            let lead = |byte: &&u8| b"\"'`({[;|&,\\".contains(byte);
            let start = at + text[at..end].iter().take_while(lead).count();
            at = end;
            if start == end {
                continue;
            }
            if std::mem::take(&mut self.expects) {
                if is_scheme(&text[start..end]) {
                    self.expects = true;
                    continue;
                }
                // A word that begins with `-` counts as an option, and not as the value.
                if text[start] != b'-' {
                    let value = quoted(text, start, end);
                    at = end.max(value.end);
                    value_of(text, value).into_iter().for_each(&mut found);
                    continue;
                }
            }
            at = self.word(text, start..end, &mut found);
        }
    }

    /// Calls `found` with the range of each credential in one word. Returns the index at which the
    /// search continues; it may be after `end`, because a value in quotes may contain spaces.
    fn word(
        &mut self,
        text: &[u8],
        Range { start, end }: Range<usize>,
        found: &mut impl FnMut(Range<usize>),
    ) -> usize {
        let dashes = text[start..end].iter().take_while(|byte| **byte == b'-').count();
        let mut name = start + dashes;
        // A short option may be directly before its value: `-HAuthorization:`.
        let is_named = |name: usize, at: usize| {
            let is_short = dashes == 1 && name == start + 1 && name < at;
            is_name_of_command(&text[name..at])
                || is_short && is_name_of_command(&text[name + 1..at])
        };
        for at in start + dashes..end {
            match text[at] {
                b'=' | b':' if is_named(name, at) => {
                    let value = at + 1;
                    if value == end || is_scheme(&text[value..end]) {
                        self.expects = true;
                        return end;
                    }
                    let is_quote = matches!(text[value], b'"' | b'\'');
                    let value = quoted(text, value + usize::from(is_quote), end);
                    let end = end.max(value.end);
                    value_of(text, value).into_iter().for_each(found);
                    return end;
                }
                b'=' | b':' | b'?' | b'&' | b';' | b',' | b'/' | b'{' | b'(' | b'|' | b'#' => {
                    name = at + 1;
                }
                _ => {}
            }
        }
        let whole = &text[start..end];
        let is_option = dashes > 0 && is_name_of_command(&text[start + dashes..end]);
        self.expects = is_option || unquoted(whole).eq_ignore_ascii_case(b"bearer");
        if let Some(password) = password(whole) {
            value_of(text, start + password.start..start + password.end)
                .into_iter()
                .for_each(found);
        }
        end
    }
}

/// Returns the range of the password in `scheme://user:password@host`.
fn password(url: &[u8]) -> Option<Range<usize>> {
    let start = memchr::memmem::find(url, b"://")? + 3;
    let rest = url.get(start..)?;
    let end = memchr::memchr(b'@', rest.split(|byte| *byte == b'/').next()?)?;
    let colon = memchr::memchr(b':', rest.get(..end)?)?;
    Some(start + colon + 1..start + end)
}

/// Returns the range of the value that begins at `start`. If a quote precedes the value, it ends
/// before the closing quote. Otherwise, it ends at `end`, the end of the word, or before the quotes
/// there.
fn quoted(text: &[u8], start: usize, end: usize) -> Range<usize> {
    let quote = start.checked_sub(1).and_then(|before| text.get(before));
    if let Some(quote @ (b'"' | b'\'')) = quote {
        let rest = text.get(start..).unwrap_or_default();
        return start..memchr::memchr(*quote, rest).map_or(text.len(), |length| start + length);
    }
    let word = text.get(start..end).unwrap_or_default();
    let is_quote = |byte: &&u8| matches!(byte, b'"' | b'\'' | b'`');
    start..end - word.iter().rev().take_while(is_quote).count()
}

/// Returns the range `value`, unless it is empty or its text is already redacted.
fn value_of(text: &[u8], value: Range<usize>) -> Option<Range<usize>> {
    let is_one = text.get(value.clone()).is_some_and(|text| !text.is_empty() && text != REDACTED);
    is_one.then_some(value)
}

/// Returns the word without the quotes and backslashes at both ends.
fn unquoted(word: &[u8]) -> &[u8] {
    let is_word = |byte: &u8| !b"\"'`\\".contains(byte);
    let start = word.iter().position(is_word).unwrap_or(word.len());
    let end = word.iter().rposition(is_word).map_or(start, |last| last + 1);
    word.get(start..end).unwrap_or_default()
}

fn is_scheme(word: &[u8]) -> bool {
    SCHEMES.iter().any(|scheme| unquoted(word).eq_ignore_ascii_case(scheme))
}

/// Returns `true` if `is` holds for `name` or, in a name such as `user[token]`, for one of its
/// parts.
fn has_part(name: &[u8], is: impl Fn(&[u8]) -> bool) -> bool {
    name.split(|byte| matches!(byte, b'[' | b']')).any(|name| is(name.trim_ascii()))
}

/// Returns the length of `NAME=` at the beginning of the text; 0 if there is no plain name of a
/// variable.
fn variable(text: &[u8]) -> usize {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let end = text.iter().position(|byte| !is_name(byte)).filter(|end| *end > 0);
    end.filter(|end| text.get(*end) == Some(&b'=')).map_or(0, |end| end + 1)
}

/// Returns `true` for a known name, and for a longer name that ends in a known one after a `_`, `-`
/// or `.`, as in `AWS_SECRET_ACCESS_KEY`. A name that ends in `password` always counts, as in
/// `PGPASSWORD`.
fn is_name_of_command(name: &[u8]) -> bool {
    let name = unquoted(name);
    let name = name.get(name.len().saturating_sub(NAME_BYTES_MAX)..).unwrap_or_default();
    let is_known = |name: &[u8]| is_one_of(name, &[&NAMES, &OF_COMMANDS]);
    let last = name.get(name.len().saturating_sub(b"password".len())..).unwrap_or_default();
    let is_bound = |byte: &u8| matches!(byte, b'_' | b'-' | b'.');
    let mut ends = name.iter().enumerate().filter(|(_, byte)| is_bound(byte));
    last.eq_ignore_ascii_case(b"password")
        || is_known(name)
        || ends.any(|(at, _)| is_known(name.get(at + 1..).unwrap_or_default()))
}

/// Returns `true` if `name` equals one of the names in `lists`. Case, `-` and `_` are ignored:
/// `ID-Token` equals `idtoken`. A name of more than [`NAME_BYTES_MAX`] bytes equals none.
fn is_one_of(name: &[u8], lists: &[&[&[u8]]]) -> bool {
    let (mut folded, mut length) = ([0; NAME_BYTES_MAX], 0);
    if name.len() > folded.len() {
        return false;
    }
    for byte in name.iter().filter(|byte| !matches!(byte, b'-' | b'_')) {
        folded[length] = byte.to_ascii_lowercase();
        length += 1;
    }
    let folded = folded.get(..length).unwrap_or_default();
    lists.iter().any(|known| known.contains(&folded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::marked;

    #[test]
    fn credentials_in_the_words_of_a_command_are_found() {
        // The parts of a command are separated by `|`.
        for row in [
            "login|--token=«X→...»",
            "login|--password|«X→...»|y",
            "login|-password|«X→...»",
            "env|DB_PASSWORD=«X→...»|PGPASSWORD=«X→...»|z",
            "env|AWS_SECRET_ACCESS_KEY=«a/b+c=→...»",
            "helm|--set|auth.password=«X→...»",
            "kubectl|--from-literal=token=«X→...»",
            "curl|-H|Authorization: Bearer «X→...»",
            "curl|-HAuthorization:Basic|«X→...»",
            "curl|http://u:X@h/a?token=«X→...»",
            "curl|http://u:«X→...»@h/a",
            "sh|-c|a --token «X;→...» b",
            "sh|-c|a --password '«X Y→...»' b",
            "sh|-c|T_TOKEN=\"«X Y→...»\" b",
            "sh|-c|curl -H 'authorization: bearer «X→...»' h",
            "sh|-c|echo '{\"token\": \"«X→...»\"}'",
            "sh|-c|echo {\"token\":\"«X→...»\"}",
            "x|bearer|«X→...»",
            // No credentials.
            "mysql|--password|--host=h|h",
            "cat|/run/token|token",
            "x|--token-file=/a|--tokens=2|compass=n",
            "x|--token=|--password",
            "| |=|:|--|-=|'|://@|a://:@",
        ] {
            let (parts, expected) = marked(row);
            let mut command = Command::default();
            let shown = parts.split('|').map(|part| {
                let (mut found, mut text) = (Vec::new(), part.as_bytes().to_vec());
                command.part(part.as_bytes(), |value| found.push(value));
                for value in found.into_iter().rev() {
                    text.splice(value, *b"...");
                }
                String::from_utf8(text).unwrap()
            });
            assert_eq!(shown.collect::<Vec<_>>().join("|"), expected);
        }
    }

    #[test]
    fn a_long_command_costs_no_more_than_a_few_times_its_length() {
        // Reading each of these would take time quadratic in its length if every name were compared
        // from its beginning.
        for one in [
            "a",
            "-",
            "_",
            "=",
            ":",
            "token",
            "--token ",
            "token=",
            "'",
            "token='",
            "a://",
            "[",
            "(",
            "a_b-c.d_e-f=",
            "[a_b]=",
            "env=",
        ] {
            let text = one.repeat((1 << 20) / one.len());
            Command::default().part(text.as_bytes(), |_| {});
            assigned(text.as_bytes());
            selected(text.as_bytes(), |_| {});
        }
    }
}
