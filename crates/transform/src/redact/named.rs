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

/// Returns the range `value`, unless it is empty or its text is already redacted.
pub(super) fn value_of(text: &[u8], value: Range<usize>) -> Option<Range<usize>> {
    let is_one = text.get(value.clone()).is_some_and(|text| !text.is_empty() && text != REDACTED);
    is_one.then_some(value)
}

/// Returns the word without the quotes, backslashes and dots at both ends.
fn unquoted(word: &[u8]) -> &[u8] {
    let is_word = |byte: &u8| !b"\"'`\\.".contains(byte);
    let start = word.iter().position(is_word).unwrap_or(word.len());
    let end = word.iter().rposition(is_word).map_or(start, |last| last + 1);
    word.get(start..end).unwrap_or_default()
}

/// Returns `true` if `is` holds for `name` or, in a name such as `user[token]`, for one of its
/// parts.
fn has_part(name: &[u8], is: impl Fn(&[u8]) -> bool) -> bool {
    name.split(|byte| matches!(byte, b'[' | b']')).any(|name| is(name.trim_ascii()))
}

/// Returns the length of `NAME=` at the beginning of the text; 0 if there is no plain name of a
/// variable.
pub(super) fn variable(text: &[u8]) -> usize {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let end = text.iter().position(|byte| !is_name(byte)).filter(|end| *end > 0);
    end.filter(|end| text.get(*end) == Some(&b'=')).map_or(0, |end| end + 1)
}

/// Returns `true` for a known name, and for a longer name that ends in a known one after a `_`, `-`
/// or `.`, as in `AWS_SECRET_ACCESS_KEY`. A name that ends in `password` or `passwd` always counts,
/// as in `PGPASSWORD`.
pub(super) fn is_name_of_command(name: &[u8]) -> bool {
    let name = unquoted(name);
    let name = name.get(name.len().saturating_sub(NAME_BYTES_MAX)..).unwrap_or_default();
    let is_known = |name: &[u8]| is_one_of(name, &[&NAMES, &OF_COMMANDS]);
    let ends_in = |end: &[u8]| {
        name.get(name.len().saturating_sub(end.len())..)
            .unwrap_or_default()
            .eq_ignore_ascii_case(end)
    };
    let is_bound = |byte: &u8| matches!(byte, b'_' | b'-' | b'.');
    let mut ends = name.iter().enumerate().filter(|(_, byte)| is_bound(byte));
    ends_in(b"password")
        || ends_in(b"passwd")
        || is_known(name)
        || ends.any(|(at, _)| is_known(name.get(at + 1..).unwrap_or_default()))
}

/// Returns `true` if `name` equals one of the names in `lists`. Case, `-` and `_` are ignored:
/// `ID-Token` equals `idtoken`. A name of more than [`NAME_BYTES_MAX`] bytes equals none.
pub(super) fn is_one_of(name: &[u8], lists: &[&[&[u8]]]) -> bool {
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
