//! Finds credentials in a command, such as the values of the repeated URI parameter `command=`.
//!
//! Where a value ends is known only to the program that reads it: a shell, SQL, Python. So all that
//! follows the name of a credential goes, up to the end of the parameter. A text of several words
//! that holds such a name in an unknown form, as in `IDENTIFIED WITH PASSWORD 'x'`, goes as a
//! whole, because the credential may be before the name, as in `echo x | passwd --stdin`.

use std::ops::Range;

use super::named::{is_name_of_command, is_one_of, value_of, variable};

/// Words that may be between a name and its credential, as in `Authorization: Bearer …`.
const SCHEMES: [&[u8]; 5] = [b"bearer", b"basic", b"token", b"digest", b"apikey"];

/// The options whose value may be `USER:PASSWORD`, in lower case, without dashes.
const OF_USERS: [&[u8]; 3] = [b"u", b"user", b"proxyuser"];

/// The names that are also plain words. As an argument without an option, they name no value, as
/// in `kubectl get secret NAME`.
const WORDS: [&[u8]; 4] = [b"pass", b"pwd", b"secret", b"token"];

/// The longest name of a user, with its colon, that is looked for before a password.
const USER_BYTES_MAX: usize = 256;

/// Reads the parameters of one command, in their order.
#[derive(Debug, Default)]
pub(super) struct Command {
    expects: Expects,
}

/// The kind of text that follows a word, in the same parameter or in the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expects {
    #[default]
    Nothing,
    /// A credential, whatever it begins with: the last word was `token=` or `<<`, for example.
    Text,
    /// A credential, unless it is an option: the last word was `--password`, for example.
    Value,
    /// A credential somewhere in the parameters that follow: the last parameter was `password`.
    All,
    /// `USER:PASSWORD`: the last word was `--user`.
    User,
    /// `NAME=VALUE`: the last word was `--env`.
    Variable,
}

impl Command {
    /// Calls `found` with the ranges of the next parameter that must go.
    pub(super) fn part(&mut self, text: &[u8], found: impl FnMut(Range<usize>)) {
        let expects = self.expects;
        // The value may follow `Authorization:`, `Basic` and a separator of their own.
        let start = skip(text, 0, b" \t\r\n=:\"'`");
        let rest = text.get(start..).unwrap_or_default();
        if skip(text, start + scheme(rest), b" \t\r\n\"'`") == text.len() {
            if expects == Expects::Nothing && rest.eq_ignore_ascii_case(b"bearer") {
                self.expects = Expects::Value;
            }
            return;
        }
        self.expects = if expects == Expects::All { expects } else { Expects::Nothing };
        let rest = |start: usize| value_of(text, start..text.len());
        if let Some(start) = expects.start_in(text) {
            return rest(start).into_iter().for_each(found);
        }
        let (mut at, mut passwords) = (0, Vec::new());
        while let Some(word) = next_word(text, at) {
            at = word.end;
            if let Some(password) = password_of(text, &word) {
                at = password.end;
                passwords.extend(value_of(text, password));
                continue;
            }
            let start = match sense_of(text, &word) {
                Sense::Harmless => continue,
                Sense::Unknown => {
                    passwords = rest(0).into_iter().collect();
                    break;
                }
                Sense::Before(expects, start) if start == text.len() => {
                    self.expects = expects;
                    break;
                }
                Sense::Before(expects, start) => {
                    expects.start_in(text.get(start..).unwrap_or_default()).map(|at| start + at)
                }
            };
            if let Some(start) = start {
                passwords.extend(rest(start));
                break;
            }
        }
        passwords.into_iter().for_each(found);
    }
}

impl Expects {
    /// Returns the index at which the credential begins in a text that begins with what is
    /// expected; `None` if the text is something else.
    fn start_in(self, text: &[u8]) -> Option<usize> {
        let is_end = |byte: &u8| byte.is_ascii_whitespace();
        match self {
            Self::Nothing => None,
            Self::Text | Self::All => Some(0),
            Self::Value => (!is_option(text)).then_some(0),
            Self::User => {
                // A longer word before the colon is no name of a user.
                let start = text.get(..text.len().min(USER_BYTES_MAX))?;
                let word = start.split(is_end).next()?;
                let colon = memchr::memchr(b':', word)?;
                let (user, password) = (word.get(..colon)?, word.get(colon + 1..)?);
                let is_number = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
                // A URL, a format of a date, `NAME=VALUE`, or the ids of a user and a group.
                let is_other = password.starts_with(b"//")
                    || user.starts_with(b"+")
                    || user.contains(&b'=')
                    || is_number(user) && is_number(password);
                (!is_other).then_some(colon + 1)
            }
            Self::Variable => {
                let has_name = text.split(is_end).next()?.contains(&b'=');
                has_name.then(|| variable(text))
            }
        }
    }
}

/// The meaning of a word of a command: whether a credential follows it.
enum Sense {
    Harmless,
    /// The word is the name of a credential in an unknown form.
    Unknown,
    /// What is expected begins at this index, which may be the end of the text.
    Before(Expects, usize),
}

fn sense_of(text: &[u8], word: &Range<usize>) -> Sense {
    let name = text.get(word.clone()).unwrap_or_default();
    if name == HERE {
        return Sense::Before(Expects::Text, word.end);
    }
    let before = text.get(..word.start).unwrap_or_default();
    let options = name.iter().take_while(|byte| **byte == b'-').count();
    let option = name.get(options..).unwrap_or_default();
    let behind = skip(text, word.end, QUOTES);
    let is_apart = text.get(behind).is_none_or(u8::is_ascii_whitespace);
    let separator = skip(text, behind, SPACES);
    let is_assigned = matches!(text.get(separator), Some(b'=' | b':'));
    let value = skip(text, behind, b"=:> \t\r\n\"'`$(\\");
    // A short option may be directly before its value, as in `-HAuthorization:`.
    let is_name = is_name_of_command(name)
        || options == 1 && is_assigned && option.get(1..).is_some_and(is_name_of_command);
    if !is_name && options > 0 {
        // Behind `--user` and `--env` there is at most one `=`.
        let own = separator + usize::from(text.get(separator) == Some(&b'='));
        let own = skip(text, skip(text, own, SPACES), b"\"'");
        // Short options may share a dash, as in `curl -su USER:PASSWORD`.
        let is_user = options == 1 && is_apart && option.ends_with(b"u");
        if (is_assigned || is_apart) && (is_user || is_one_of(option, &[&OF_USERS])) {
            return Sense::Before(Expects::User, own);
        }
        if options == 1 && option.starts_with(b"u") && !is_apart {
            return Sense::Before(Expects::User, skip(text, word.start + 2, b"\"'"));
        }
        if (is_assigned || is_apart) && is_one_of(option, &[&[b"env"]]) {
            return Sense::Before(Expects::Variable, own);
        }
    }
    if is_name && is_assigned {
        let scheme = value + scheme(text.get(value..).unwrap_or_default());
        let is_missing = skip(text, scheme, b" \t\r\n\"'`") == text.len();
        return match is_missing {
            true => Sense::Before(Expects::Value, text.len()),
            false => Sense::Before(Expects::Text, value),
        };
    }
    let is_plain = is_one_of(name, &[&WORDS]);
    let is_whole = before.is_empty() && word.end == text.len();
    if is_apart && (is_name && options > 0 || name.eq_ignore_ascii_case(b"bearer")) {
        let is_quoted = text.get(separator..value).is_some_and(|it| it.iter().any(is_quote));
        let expects = if is_quoted { Expects::Text } else { Expects::Value };
        return Sense::Before(expects, value);
    }
    if is_name && is_whole && !is_plain {
        return Sense::Before(Expects::All, text.len());
    }
    // `/run/token` and `$TOKEN` are the place of a credential, `=token` is a value, and `pwd` is a
    // command.
    let is_place = [b"/".as_slice(), b"$", b"${", b"="].iter().any(|sign| before.ends_with(sign))
        || text.get(word.end) == Some(&b'/')
        || is_plain && (is_whole || is_one_of(name, &[&[b"pass", b"pwd"]]));
    if is_name && !is_place { Sense::Unknown } else { Sense::Harmless }
}

/// The sign before a here-document or a here-string of a shell.
const HERE: &[u8] = b"<<";

/// The sign before the user and the host of a URL.
const AUTHORITY: &[u8] = b"://";

const SPACES: &[u8] = b" \t\r\n";

const QUOTES: &[u8] = b"\"'`\\])}";

fn is_quote(byte: &u8) -> bool {
    matches!(byte, b'"' | b'\'')
}

/// Returns the next word at or behind an index: letters, digits, `_`, `-` and `.`, or one of the
/// signs [`HERE`] and [`AUTHORITY`].
fn next_word(text: &[u8], from: usize) -> Option<Range<usize>> {
    let rest = text.get(from..)?;
    let sign = |at: usize| {
        let rest = rest.get(at..).unwrap_or_default();
        [HERE, AUTHORITY].into_iter().find(|sign| rest.starts_with(sign))
    };
    let start = (0..rest.len()).find(|at| is_of_word(&rest[*at]) || sign(*at).is_some())?;
    let length = rest[start..].iter().take_while(|byte| is_of_word(byte)).count();
    let length = if length == 0 { sign(start).map_or(0, <[u8]>::len) } else { length };
    Some(from + start..from + start + length)
}

fn is_of_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// Returns the index of the first byte at or behind `at` that is none of these.
fn skip(text: &[u8], at: usize, bytes: &[u8]) -> usize {
    at + text.get(at..).unwrap_or_default().iter().take_while(|byte| bytes.contains(byte)).count()
}

/// Returns the range of the password behind the sign [`AUTHORITY`], as in
/// `ssh://user:password@host`, or of the whole user information in `https://TOKEN@host`. A host
/// contains no `@`, so the last one ends the password. A `?` or `#` ends the host, but it is part
/// of a password if the `@` follows it.
fn password_of(text: &[u8], sign: &Range<usize>) -> Option<Range<usize>> {
    if text.get(sign.clone())? != AUTHORITY {
        return None;
    }
    let (scheme, rest) = (text.get(..sign.start)?, text.get(sign.end..)?);
    let last = scheme.get(scheme.len().saturating_sub(b"https".len())..)?.to_ascii_lowercase();
    let is_web = last.ends_with(b"http") || last == b"https";
    let before = |ends: &[u8], is_web: bool| {
        let is_end = |byte: &u8| ends.contains(byte) || byte.is_ascii_whitespace();
        let authority = rest.split(is_end).next()?;
        let user = authority.get(..memchr::memrchr(b'@', authority)?)?;
        let colon = memchr::memchr(b':', user).map(|colon| colon + 1);
        Some(sign.end + colon.or(is_web.then_some(0))?..sign.end + user.len())
    };
    before(b"/?#", is_web).or_else(|| before(b"/", false))
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

/// Returns the length of the authentication scheme at the beginning of the text, such as `Bearer`;
/// 0 if the first word is another one. No more than a few bytes are read.
fn scheme(text: &[u8]) -> usize {
    let is_one = |scheme: &&&[u8]| {
        let is_end = text.get(scheme.len()).is_none_or(u8::is_ascii_whitespace);
        is_end && text.get(..scheme.len()).is_some_and(|word| word.eq_ignore_ascii_case(scheme))
    };
    SCHEMES.iter().find(is_one).map_or(0, |scheme| scheme.len())
}

#[cfg(test)]
mod tests {
    use super::super::named::{assigned, selected};
    use super::super::text::REDACTED;
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
    fn credentials_in_arguments_are_found() {
        for row in [
            "login|--token=«X→...»",
            "login|--password|«X→...»|y",
            "login|-password|«X→...»",
            "mysqladmin|password|«X→...»",
            "rabbitmqctl|change_password|«a→...»|«X→...»",
            "env|DB_PASSWORD=«X→...»|PGPASSWORD=«X→...»|z",
            "env|AWS_SECRET_ACCESS_KEY=«a/b+c=→...»",
            "helm|--set|auth.password=«X→...»",
            "kubectl|--from-literal=token=«X→...»",
            "curl|-H|Authorization: «Bearer X→...»",
            "curl|-HAuthorization:Basic|«X→...»",
            "curl|-H|Proxy-Authorization:|«Basic X Y→...»|b",
            "x|bearer|«X→...»",
            "curl|-H|Authorization:|Bearer|«X→...»|'Authorization:|Basic|«X→...»",
            "x|--token|Bearer|«X→...»|--password|=|«X→...»",
            "x|-userPassword=«X→...»|-upstream-token=«a:X→...»|-user-password|«X→...»",
            "x|--password|«-aX→...»|y",
            "x|--password|«-----BEGIN PRIVATE KEY----- X→...»",
            "x|--password=«--X→...»",
            "mysql|--password=«X 'Y' --a→...»|b",
            "x|--password|«X Y 'Z' --a→...»|b",
            "x|--env=C=«X Y→...»|--env|C=«X→...»|--env|prod|--env=prod",
            // No credentials.
            "mysql|--password|--host=h|h",
            "cat|/run/token|token",
            "kubectl|get|secrets|-n|token/a|get|secret|db|token|list|PASS",
            "x|--auth-type=token|-method=token|sh|-c|x && echo PASS || echo pass",
            "x|--token-file=/a|--tokens=2|compass=n",
            "x|--token=|--password",
            "pwd|&&|sh|-c|pwd; echo $PASSWORD ${TOKEN} \"$X_SECRET\"",
            "| |=|:|--|-=|'|://@|a://:@|<",
        ] {
            assert_found(row);
        }
    }

    #[test]
    fn all_that_follows_the_name_of_a_credential_goes() {
        for row in [
            "sh|-c|a --token «X;' b→...»|c",
            "sh|-c|a --password '«X Y' b→...»",
            "sh|-c|T_TOKEN=\"«X Y\" b→...»",
            "sh|-c|curl -H 'authorization: «bearer X' h→...»",
            "sh|-c|echo '{\"token\": \"«X\"}'→...»",
            r#"x|{"username":"u","password" : "«X","client_secret":"Y"}→...»"#,
            r#"x|{\"password\": \"«X\"}→...»"#,
            "sh|-c|password = «X b→...»",
            "sh|-c|pwd => «X d→...»",
            "sh|-c|x --password '«--X' b→...»",
            "sh|-c|x --password -h --password - --password -- --password=$(«echo X)→...»",
            "x|docker run --env='DB=«X Y' b→...»",
            "x|docker run --env=«DB[0]=X b→...»",
            "python|-c|import os; os.environ[\"DB_PASSWORD\"] = \"«X\"→...»",
            "python|-c|os.environ['TOKEN']='«X'; print(1)→...»",
            "sh|-c|mysql <<«EOF\nX\nEOF→...»",
            "sh|-c|x <<«<X→...»",
        ] {
            assert_found(row);
        }
    }

    #[test]
    fn a_name_in_an_unknown_form_takes_its_parameter_with_it() {
        for row in [
            "psql|-c|«ALTER ROLE a PASSWORD 'X'→...»|y",
            "mysql|-e|«CREATE USER a IDENTIFIED WITH PASSWORD 'X'→...»",
            "sh|-c|«echo X; passwd --stdin a→...»",
            "sh|-c|«echo X; echo a:X; htpasswd -b f a X→...»",
            "sh|-c|«read -s PASSWORD; X TOKEN=a→...»",
            "sh|-c|«kubectl create secret generic a --from-literal=b=X→...»",
            "sh|-c|«https://a:X@h set-password X→...»",
        ] {
            assert_found(row);
        }
    }

    #[test]
    fn the_password_of_a_user_is_found() {
        for row in [
            "curl|-u|u:«X→...»|h",
            "curl|--user|u:«X→...»|--proxy-user=u:«X→...»",
            "curl|-uu:«X→...»|-su|u:«X→...»|h",
            "sh|-c|curl --user 'u:«X' h→...»",
            "curl|-u\"u:«X\"→...»|-u$USER:«X→...»|-uu@a:«X→...»",
            "curl|-u|root|a:b|-user",
            // No users: URLs, a date, ids, a shell's options.
            "x|-u|http://10.0.0.1/a?id=1|-u|redis://h:1/0|-upstream=http://h:1/|-user",
            "date|-u|+%H:%M|docker|-u|1000:1000|sh|-c|set -eu\n: \"${A:?}\"",
            "curl|http://u:«X→...»@h/a?token=«X→...»",
            "curl|https://u:«p@X→...»@h?a=@",
            "curl|https://h,https://u:«X→...»@h/,https://u:«X→...»@h/#@",
            "curl|--url=https://u:«X@h,a→...»@b:c",
            "curl|https://u:«a#X?Y→...»@h/",
            "git|https://«X→...»@h/a|ssh://git@h|ssh://u:«X→...»@h",
            "sh|-c|curl ${A}://u:«X→...»@h/ \"$A\"://u:«X→...»@h",
            "curl|https://h?a=b@c|https://h?@|https://h#b@c",
            "x|https://h:1/a@b|https://h/a:b@c",
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
            "--user=",
            "-u",
            "<<",
            "--env a ",
        ] {
            let text = one.repeat((1 << 20) / one.len());
            Command::default().part(text.as_bytes(), |_| {});
            assigned(text.as_bytes());
            selected(text.as_bytes(), |_| {});
        }
    }
}
