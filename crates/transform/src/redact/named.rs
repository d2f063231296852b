//! Finds credentials by the name that precedes them, as in `token=…` and `--password …`.
//!
//! Names are compared without regard to case, `-` and `_`: `ID-Token` and `accessToken` are found.
//! Outside of commands, names in brackets are found too: `token[]` and `user[token]`. Outside of
//! commands and selectors, the value of an environment variable (`env=NAME=…`) is a credential
//! whatever the variable's name is, because such variables often hold secrets.

use std::ops::Range;

use super::shell::{self, Around, Quotes, WordEnd};
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
    /// `true` if the next part begins with a credential, because the last word was `--password` or
    /// `Authorization:`, for example.
    expects: bool,
}

/// A name in a command, and what is known about its value.
#[derive(Default)]
struct Named {
    /// The index at which the word with the name begins.
    word: usize,
    /// The index behind the name and the `=` or `:`.
    behind: usize,
    /// `true` for the name of a member of a JSON object, such as `"password":`.
    is_member: bool,
    /// `true` for the header `Authorization`, whose value may be several words.
    is_header: bool,
    /// `true` for `--env=`, whose value is `NAME=VALUE`.
    is_env: bool,
}

impl Command {
    /// Calls `found` with the range of each credential in the next part of the command: one
    /// argument, or a text for a shell with several arguments.
    pub(super) fn part(&mut self, text: &[u8], mut found: impl FnMut(Range<usize>)) {
        if std::mem::take(&mut self.expects) {
            // The part is an argument of its own, so all of it is the value.
            let Some(Start { at, quote }) = start_of_value(text, 0) else {
                self.expects = true;
                return;
            };
            if quote.is_some() || !is_option(&text[at..]) {
                value_of(text, at..text.len()).into_iter().for_each(found);
                return;
            }
        }
        let mut quotes = Quotes::new(text);
        let (mut at, mut end) = (0, 0);
        while at < text.len() {
            at += spaces(&text[at..]);
            if end <= at {
                let length = text[at..].iter().position(u8::is_ascii_whitespace);
                end = length.map_or(text.len(), |length| at + length);
            }
            at = self.word(&mut quotes, text, at..end, &mut found);
        }
    }

    /// Calls `found` with the range of each credential in one word. It stops after the first
    /// credential that follows a name, and returns the index at which the search continues: in the
    /// same word, or after it, because a value in quotes may contain spaces.
    fn word(
        &mut self,
        quotes: &mut Quotes<'_>,
        text: &[u8],
        Range { start: word, end }: Range<usize>,
        found: &mut impl FnMut(Range<usize>),
    ) -> usize {
        let lead = |byte: &&u8| b"\"'`({[;|&,\\".contains(byte);
        let start = word + text[word..end].iter().take_while(lead).count();
        let options = start + text[start..end].iter().take_while(|byte| **byte == b'-').count();
        // A short option may be directly before its value: `-HAuthorization:`.
        let is_named = |name: usize, at: usize| {
            let is_short = options == start + 1 && name == options && name < at;
            is_name_of_command(&text[name..at])
                || is_short && is_name_of_command(&text[name + 1..at])
        };
        let named = |name: usize, at: usize, separator: usize| Named {
            word,
            behind: separator + 1,
            is_member: text[separator] == b':' && text[name..at].ends_with(b"\""),
            is_header: is_header(&text[name..at]),
            is_env: false,
        };
        let (mut at, mut name, mut password) = (options, options, None::<Range<usize>>);
        while at < end {
            if let Some(password) = password.take_if(|password| password.start == at) {
                at = password.end;
                name = at;
                value_of(text, password).into_iter().for_each(&mut *found);
                continue;
            }
            match text[at] {
                b'=' | b':' if is_named(name, at) => {
                    return self.value(quotes, text, &named(name, at, at), found);
                }
                b'=' if name == options && is_env(&text[start..at], &text[at + 1..end]) => {
                    let named = Named { word, behind: at + 1, is_env: true, ..Named::default() };
                    return self.value(quotes, text, &named, found);
                }
                b':' if text[at..end].starts_with(b"://") => {
                    password = password_of(text, at + 3..end);
                    name = at + 1;
                }
                b'=' | b':' | b'?' | b'&' | b';' | b',' | b'/' | b'{' | b'(' | b'|' | b'#' => {
                    name = at + 1;
                }
                _ => {}
            }
            at += 1;
        }
        // The separator may be in the next word: `password = …` and `"token" : …`.
        let next = end + spaces(&text[end..]);
        if matches!(text.get(next), Some(b'=' | b':')) && is_named(name, end) {
            return self.value(quotes, text, &named(name, end, next), found);
        }
        let is_credential = options > start && is_name_of_command(&text[options..end]);
        if is_credential || unquoted(&text[start..end]).eq_ignore_ascii_case(b"bearer") {
            let named = Named { word, behind: end, ..Named::default() };
            return self.value(quotes, text, &named, found);
        }
        end
    }

    /// Calls `found` with the range of the value behind a name. Returns the index at which the
    /// search continues: after the shell word with the value, or at the closing quote of a JSON
    /// string.
    fn value(
        &mut self,
        quotes: &mut Quotes<'_>,
        text: &[u8],
        named: &Named,
        found: &mut impl FnMut(Range<usize>),
    ) -> usize {
        let Some(Start { mut at, mut quote }) = start_of_value(text, named.behind) else {
            self.expects = true;
            return text.len();
        };
        // If the next word is an option, the command has no value: the program asks for it.
        let is_apart = at > named.behind && quote.is_none();
        if is_apart && !named.is_header && is_option(&text[at..]) {
            return at;
        }
        let outer = quotes.open_at(quote.unwrap_or(at));
        let is_one_word = outer.is_some_and(|outer| outer.at >= named.word);
        let outer = outer.map(|outer| outer.byte);
        // No shell reads a part that begins with an option and its value.
        let is_argument =
            named.word == 0 && text[0] == b'-' && matches!(text[named.behind - 1], b'=' | b':');
        // Behind a space, a quote is part of the header: `Authorization: "…" …`.
        let is_text = |quote: usize| named.is_header && !named.is_member && quote > named.behind;
        quote = quote.filter(|quote| !is_argument && !is_text(*quote));
        // An escaped quote opens no word, so its end is unknown.
        let before = quote.map_or(0, |quote| shell::backslashes_before(&text[..quote]));
        let is_escaped = before > 0;
        if is_escaped {
            at = quote.take().map_or(at, |quote| quote - before);
        }
        let own = quote.map(|quote| text[quote]);
        if named.is_env {
            at += variable(&text[at..]);
        }
        if named.is_member
            && own == Some(b'"')
            && let Some(end) = shell::string_end(text, at)
        {
            let next = text.get(end + 1);
            let is_end = |next: &u8| b",}] \t\r\n".contains(next) || outer == Some(*next);
            if next.is_none_or(is_end) {
                value_of(text, at..end).into_iter().for_each(found);
                return end;
            }
        }
        // A header, an array and an object end where the text or the quotes around them end.
        let opens = matches!(text.get(at), Some(b'[' | b'{'));
        let is_long = own.is_none() && (named.is_header || is_escaped || opens);
        let is_one_word = is_one_word || is_long;
        let end = if is_argument || is_long && outer.is_none() {
            WordEnd { at: text.len(), outer: None }
        } else {
            shell::word_end(text, at, Around { own, outer, is_one_word })
        };
        let closing = at + shell::length_without_closing(&text[at..end.at]);
        let value = if own.is_some() && text.get(closing) == own.as_ref() {
            at..closing
        } else {
            // Quotes inside the value go with it, so that those that stay are pairs.
            let start = if named.is_env { at } else { quote.unwrap_or(at) };
            start..end.outer.filter(|outer| *outer >= closing).unwrap_or(end.at)
        };
        value_of(text, value).into_iter().for_each(found);
        end.at
    }
}

/// The beginning of a value.
struct Start {
    at: usize,
    /// The index of the quote that opens the value.
    quote: Option<usize>,
}

/// Returns where the value begins whose name or separator ends at `from`: behind white space, the
/// rest of a separator such as `=>`, an opening quote, and words such as `Bearer`. Returns `None`
/// if the text ends before.
fn start_of_value(text: &[u8], from: usize) -> Option<Start> {
    let (mut at, mut quote) = (from, None);
    loop {
        let before = at;
        at += spaces(&text[at..]);
        if quote.is_none() {
            let length = text[at..].iter().take_while(|byte| b"=:>`$(\\".contains(byte)).count();
            match text.get(at + length) {
                Some(b'"' | b'\'') => {
                    quote = Some(at + length);
                    at += length + 1;
                }
                Some(next) if !next.is_ascii_whitespace() => {}
                _ => at += length,
            }
        }
        at += scheme(&text[at..]);
        if at == before {
            return (at < text.len()).then_some(Start { at, quote });
        }
    }
}

/// Returns the range of the password in `user:password@host`, which begins a range of the text. A
/// host contains no `@`, so the last one ends the password. A `?` or `#` ends the host, but it is
/// part of a password if the `@` follows it.
fn password_of(text: &[u8], Range { start, end }: Range<usize>) -> Option<Range<usize>> {
    let before = |ends: &[u8]| {
        let authority = text[start..end].split(|byte| ends.contains(byte)).next()?;
        let user = authority.get(..memchr::memrchr(b'@', authority)?)?;
        let colon = memchr::memchr(b':', user)?;
        Some(start + colon + 1..start + user.len())
    };
    before(b"/?#").or_else(|| before(b"/"))
}

/// Returns `true` if the text begins with an option such as `-l` or `--help`. A longer word behind
/// one dash may be a credential that begins with a dash, and so may `-----BEGIN PRIVATE KEY`.
fn is_option(text: &[u8]) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_whitespace);
    match text {
        [b'-', b'-', rest @ ..] => {
            is_end(rest.first()) || rest.first().is_some_and(u8::is_ascii_alphanumeric)
        }
        [b'-', rest @ ..] => is_end(rest.first()) || is_end(rest.get(1)),
        _ => false,
    }
}

/// Returns `true` for the option `--env=NAME=VALUE`. `--env=production` sets no variable.
fn is_env(option: &[u8], value: &[u8]) -> bool {
    option.strip_prefix(b"-").is_some_and(|option| is_one_of(option, &[&[ENV]]))
        && memchr::memchr(b'=', value).is_some()
}

/// Returns `true` for `Authorization` and names that end in it, such as `Proxy-Authorization`.
fn is_header(name: &[u8]) -> bool {
    let (name, known) = (unquoted(name), b"authorization");
    let last = name.get(name.len().saturating_sub(known.len())..).unwrap_or_default();
    last.eq_ignore_ascii_case(known)
}

/// Returns the number of white spaces at the beginning of the text.
fn spaces(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Returns the length of the authentication scheme at the beginning of the text, such as `Bearer`;
/// 0 if the first word is another one. No more than a few bytes are read.
fn scheme(text: &[u8]) -> usize {
    let is_one = |scheme: &&&[u8]| {
        let is_end = text.get(scheme.len()).is_none_or(u8::is_ascii_whitespace);
        is_end && text.get(..scheme.len()).is_some_and(|word| word.eq_ignore_ascii_case(scheme))
    };
    SCHEMES.iter().find(is_one).map_or(0, |scheme| scheme.len())
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

    /// Asserts that the credentials in a command are found, and none in what remains. The parts of
    /// the command are separated by `|`.
    #[track_caller]
    fn assert_found(row: &str) {
        let (parts, expected) = marked(row);
        let redacted = |parts: &str| {
            let mut command = Command::default();
            let shown = parts.split('|').map(|part| {
                let (mut found, mut text) = (Vec::new(), part.as_bytes().to_vec());
                command.part(part.as_bytes(), |value| found.push(value));
                assert!(found.is_sorted_by(|one, next| one.end <= next.start), "{found:?}");
                for value in found.into_iter().rev() {
                    text.splice(value, REDACTED.iter().copied());
                }
                String::from_utf8(text).unwrap()
            });
            shown.collect::<Vec<_>>().join("|")
        };
        let expected = expected.replace("...", "REDACTED");
        assert_eq!(redacted(&parts), expected);
        assert_eq!(redacted(&expected), expected, "again");
    }

    #[test]
    fn credentials_in_the_words_of_a_command_are_found() {
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
            "curl|http://u:«X→...»@h/a?token=«X→...»",
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
            assert_found(row);
        }
    }

    #[test]
    fn every_credential_of_a_word_is_found() {
        for row in [
            r#"x|{"username":"u","password":"«X→...»","client_secret":"«X→...»"}"#,
            r#"x|{"token":"","password":"«X→...»"}"#,
            r#"x|{"token":"REDACTED","password":"«X→...»","a":"b"}"#,
            r#"x|{"token": "REDACTED", "password": "«X→...»", "a": "b"}"#,
            r#"x|{"password" : "«X→...»", "token": «X→...»"#,
            r#"x|{"password":«["X","Y"],"a":"b"}→...»"#,
            r#"x|{"password": «{"a": "X"}}→...»"#,
            r#"sh|-c|x '{"token":"«a\"X Y→...»","password":"«X Y→...»","a":"b c"}' d"#,
            r#"sh|-c|x "{\"token\": «\"X Y\"}→...»" d"#,
            r#"sh|-c|x "{\"token\": «\"X\", \"password\": \"Y\"}→...»" d"#,
            r#"sh|-c|TOKEN=«"a";PASSWORD=X→...» b"#,
            r#"sh|-c|TOKEN="«a→...»"; PASSWORD=«X→...» b"#,
            r#"sh|-c|TOKEN=«"";PASSWORD=X→...» b"#,
            "curl|https://u:«X→...»@h/?token=«X→...»",
        ] {
            assert_found(row);
        }
    }

    #[test]
    fn all_of_the_shell_word_with_a_value_is_found() {
        for row in [
            "sh|-c|x --password=«'a'X→...» b",
            r#"sh|-c|x --password "«a\"X→...»" b"#,
            r#"sh|-c|x --password "«a\" X→...»" b"#,
            r#"sh|-c|x --password=«'a'"X Y"→...» b"#,
            r#"sh|-c|x --password '«a'\'' X→...»' b"#,
            r#"sh|-c|x --password=«a"X Y"Z→...» b"#,
            r"sh|-c|x --password «a\ X→...» b",
            "sh|-c|x --password=$'«a\\'X Y→...»' b",
            "sh|-c|x --password '«a'' X→...»' b",
            "sh|-c|x '--password=«a X→...»' b",
            "sh|-c|x \"--password=«a X→...»\" b",
            "sh|-c|ssh h 'x --password=\"«a\"\" X→...»\" b'",
            "sh|-c|ssh h 'x --password=«\"a\"X→...»' b",
            "sh|-c|x --password ' «X Y→...»' b",
            "sh|-c|x --password «'X Y→...»",
            // An argument of its own is the value as a whole, or a name and the value.
            "mysql|--password=«X 'Y' --a→...»|b",
            "mysql|--password='«a' X→...»|b",
            "x|--password|«X Y 'Z' --a→...»|b",
            "x|-H|Authorization:|Basic «X Y→...»|b",
        ] {
            assert_found(row);
        }
    }

    #[test]
    fn all_of_an_authorization_is_found_whatever_its_scheme() {
        for row in [
            "curl|-H|Authorization: «Splunk X→...»|h",
            "curl|-H|Authorization: «Negotiate X→...»",
            "curl|-H|Authorization: «AWS4-HMAC-SHA256 Credential=a/b, Signature=X→...»",
            r#"curl|-H|Authorization: Digest «username="u", response="X"→...»"#,
            r#"curl|-H|Proxy-Authorization: "«a" X→...»"#,
            "curl|-HAuthorization: «Splunk X→...»|h",
            "curl|--header=Authorization: «Splunk X→...»|h",
            "sh|-c|curl -H 'Authorization: «Splunk X→...»' h",
            "sh|-c|curl -H 'a: b; Authorization: «Splunk X→...»' h",
            r#"sh|-c|curl -H "Authorization: Digest «username=\"u\", response=\"X\"→...»" h"#,
            r#"sh|-c|curl -H 'Authorization: Digest «username="u", response="X"→...»' h"#,
            "sh|-c|curl -H Authorization:'«Splunk X→...»' h",
            r"sh|-c|curl -H Authorization:«Splunk\ X h→...»",
            r#"x|{"Authorization":"«Splunk X→...»","a":"b","token":"«X→...»"}"#,
            r#"x|{"Authorization": "Bearer «X→...»", "a": "b"}"#,
        ] {
            assert_found(row);
        }
    }

    #[test]
    fn the_password_of_every_url_in_a_word_is_found() {
        for row in [
            "curl|https://u:«p@X→...»@h/",
            "curl|https://u:«p@X→...»@h?a=@",
            "curl|https://h,https://u:«X→...»@h/,https://u:«X→...»@h/#@",
            "curl|--url=https://u:«X@h,a→...»@b:c",
            "curl|https://u:«a#X?Y→...»@h/",
            "x|https://h:1/a@b|https://h/a:b@c",
        ] {
            assert_found(row);
        }
    }

    #[test]
    fn unusual_values_are_found() {
        for row in [
            "x|--password|«-aX→...»|y",
            "x|--password|«-----BEGIN PRIVATE KEY----- X→...»",
            "sh|-c|x --password «-aX→...» y; x --password -h --password - --password -- a",
            "x|--password=«--X→...»",
            "sh|-c|password = «X→...» b; token : '«X→...»' c; pwd => «X→...» d",
            "x|docker run --env=DB=«X→...» b|--env=C=«X Y→...»",
            "x|docker run --env='DB=«X Y→...»' b --env=prod",
        ] {
            assert_found(row);
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
            " --env=a=b",
            "\"token\":\"a\",",
            "\"token\": \"a\" ,",
            "token='a';",
            "token='\\'' ",
            "token = ",
            "token bearer ",
            "authorization:'a' ",
            "'authorization: a' ",
            "a://b:c@d,",
            "a://b:c@d/",
            "\\",
            "\\\"",
            "\"}",
            "token=\"}'",
            "--token -a ",
            "--token -aa ",
        ] {
            let text = one.repeat((1 << 20) / one.len());
            Command::default().part(text.as_bytes(), |_| {});
            assigned(text.as_bytes());
            selected(text.as_bytes(), |_| {});
        }
    }
}
