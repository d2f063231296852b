//! Strings of the config file with `${env:NAME}`, `${env:NAME:-default}` and `${file:PATH}`.
//!
//! Variables are expanded once, when the config is read. Files are read again at every
//! [`Template::expand`], so that a rotated secret is used without a restart. The content of a
//! variable or a file is never shown: `Debug` shows the string as the config file has it, and a
//! message names the variable or the file.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use base::named_file;

/// The maximum number of bytes of a secret. A larger file was surely named by mistake.
const SECRET_BYTES_MAX: u64 = 1024 * 1024;

/// A string of the config file, in which the variables are expanded already.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq)]
enum Part {
    /// Text from the string itself, or from a variable.
    Text(String),
    File(PathBuf),
}

/// The file of a `${file:PATH}` cannot be read. The message never shows the file's content.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the file {}", file.display())]
pub struct ExpandError {
    /// The PATH of `${file:PATH}`.
    pub file: PathBuf,
    /// The reason why the file cannot be read.
    pub source: io::Error,
}

impl Template {
    /// Parses a string of the config file and expands its variables; no file is read.
    ///
    /// # Errors
    ///
    /// Every mistake in the string, separated by semicolons, without the values of variables.
    pub fn parse(source: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut text = String::new();
        let mut parts = Vec::new();
        let mut wrong = Vec::new();
        let mut rest = source;
        while let Some((before, after)) = rest.split_once("${") {
            if let Some(before) = before.strip_suffix('$') {
                text.push_str(before);
                text.push_str("${");
                rest = after;
                continue;
            }
            text.push_str(before);
            let Some((inside, after)) = after.split_once('}') else {
                wrong.push("a `${` has no `}`, write `$${` for a literal `${`".to_owned());
                break;
            };
            rest = after;
            match part(inside, env) {
                Ok(Part::Text(value)) => text.push_str(&value),
                Ok(file) => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(file);
                }
                Err(why) => wrong.push(why),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Self { source: source.to_owned(), parts })
    }

    /// Returns the string with the contents that its files have now. The call blocks while it reads
    /// the files, which can take long on a network file system: do not make it on an async thread.
    ///
    /// # Errors
    ///
    /// The error of the first file that cannot be read.
    pub fn expand(&self) -> Result<String, ExpandError> {
        let mut expanded = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => expanded.push_str(text),
                Part::File(file) => expanded.push_str(
                    &read_secret(file)
                        .map_err(|source| ExpandError { file: file.clone(), source })?,
                ),
            }
        }
        Ok(expanded)
    }

    /// Returns the string with its variables expanded and its files as `${file:PATH}`.
    pub fn without_files(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::File(file) => format!("${{file:{}}}", file.display()),
        };
        self.parts.iter().map(part).collect()
    }

    /// Returns the string as the config file has it, with each `${…}` unexpanded.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the paths of the files that [`Template::expand`] reads.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::File(file) => Some(file.as_path()),
        })
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.source, f)
    }
}

/// Parses the text between `${` and `}`. An error is the message for the operator.
fn part(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Part, String> {
    if inside.contains("${") {
        return Err("a `${…}` cannot be inside another one".to_owned());
    }
    if let Some(path) = inside.strip_prefix("file:") {
        if path.is_empty() {
            return Err("`${file:}` names no file, write `${file:PATH}`".to_owned());
        }
        return Ok(Part::File(PathBuf::from(path)));
    }
    let Some(inside) = inside.strip_prefix("env:") else {
        return Err("an unknown `${…}`, allowed: `${env:NAME}`, `${env:NAME:-default}`, \
                    `${file:PATH}`, and `$${` for a literal `${`"
            .to_owned());
    };
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err("`${env:…}` needs the name of a variable: letters, digits and `_`, then an \
                    optional `:-default`"
            .to_owned());
    }
    // As in a shell, `:-` also replaces a variable that is set but empty.
    let value = env(name).filter(|value| default.is_none() || !value.is_empty());
    value.or(default.map(str::to_owned)).map(Part::Text).ok_or_else(|| {
        format!("the variable {name} is not set: set it, or write `${{env:{name}:-default}}`")
    })
}

/// Returns the content of a file that holds a secret: the value of a `*_file` key, or the file of a
/// `${file:…}`. One line break at the end is removed. The call blocks while it reads the file.
///
/// # Errors
///
/// The file cannot be read, has more than 1 MiB, is not UTF-8, or is not a regular file.
pub fn read_secret(path: &Path) -> io::Result<String> {
    secret(named_file::read(path, SECRET_BYTES_MAX)?)
}

fn secret(content: Vec<u8>) -> io::Result<String> {
    let text = String::from_utf8(content);
    let mut secret = text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))?;
    if secret.ends_with('\n') {
        secret.pop();
        if secret.ends_with('\r') {
            secret.pop();
        }
    }
    Ok(secret)
}

/// Reads a bearer token from a file. Blanks and line breaks around it are removed: editors and
/// `echo` add them, and no token can contain them (RFC 6750 §2.1). The call blocks while it reads.
///
/// # Errors
///
/// The errors of [`read_secret`]. The token is empty, or has U+FEFF or a control character other
/// than a tab: no header can carry these, so nobody could present the token.
pub fn read_token(path: &Path) -> io::Result<String> {
    token(&read_secret(path)?)
}

/// Does what [`read_token`] does for a file that a command line names. The file may be a pipe, as
/// shells make one for `<(…)`.
///
/// # Errors
///
/// The same as those of [`read_token`].
pub fn read_token_of_command(path: &Path) -> io::Result<String> {
    token(&secret(named_file::read_of_command(path, SECRET_BYTES_MAX)?)?)
}

/// Reads a token or key that the relay sends, in the forms in which people keep it: alone, in
/// quotes, or behind its scheme as in a header (`Authorization: Bearer …`). The call blocks while
/// it reads.
///
/// # Errors
///
/// The errors of [`read_token`], and those of [`credential`].
pub fn read_credential(path: &Path) -> io::Result<String> {
    credential(&read_token(path)?).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
}

/// The schemes that may stand before a token. The relay writes its own in their place.
const SCHEMES: [&str; 4] = ["apikey", "bearer", "splunk", "token"];

/// Returns the token alone, without the quotes and the scheme around it.
///
/// # Errors
///
/// The text is JSON, a setting, or credentials for `basic_auth`, or has a blank inside. The text of
/// the error ends a sentence, and has no secret.
pub fn credential(text: &str) -> Result<String, String> {
    let unquoted = |text: &str| {
        let inside = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
        inside('"').or_else(|| inside('\'')).unwrap_or(text).trim_ascii().to_owned()
    };
    let mut token = unquoted(text.trim_ascii());
    if token.starts_with(['{', '[']) {
        return Err("it contains JSON, allowed: the token or key alone, such as the value of \
                    `encoded`, `apikey` or `token`"
            .to_owned());
    }
    let header = "authorization:";
    if token.get(..header.len()).is_some_and(|start| start.eq_ignore_ascii_case(header)) {
        token = token.split_off(header.len()).trim_ascii().to_owned();
    }
    if let Some((scheme, rest)) = token.split_once([' ', '\t']) {
        if scheme.eq_ignore_ascii_case("basic") {
            return Err("it contains credentials of the scheme Basic: set `basic_auth`".to_owned());
        }
        if SCHEMES.iter().any(|it| scheme.eq_ignore_ascii_case(it)) {
            token = unquoted(rest.trim_ascii());
        }
    }
    // The padding of Base64 is no value, and its text mixes upper and lower case.
    let is_variable = |(name, value): (&str, &str)| {
        let is_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let is_key = name.trim_ascii().starts_with("aws_");
        value.bytes().any(|byte| byte != b'=')
            && name.contains('_')
            && (is_key || name.trim_ascii().bytes().all(is_name))
    };
    if token.split_once('=').is_some_and(is_variable) {
        return Err("it contains NAME=VALUE, allowed: the value alone".to_owned());
    }
    if token.is_empty() || SCHEMES.iter().any(|it| token.eq_ignore_ascii_case(it)) {
        return Err("it contains no token".to_owned());
    }
    match token.contains([' ', '\t']) {
        true => Err("it contains a blank, allowed: the token or key alone".to_owned()),
        false => Ok(token),
    }
}

fn token(secret: &str) -> io::Result<String> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let token = secret.trim_ascii();
    if token.is_empty() {
        return Err(invalid("the file contains no token"));
    }
    // Editors on Windows put U+FEFF in front of a text.
    if token.chars().any(|c| (c.is_control() && c != '\t') || c == '\u{feff}') {
        return Err(invalid(
            "the token contains a line break or another control character, allowed: one line",
        ));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("logs.example".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${file:/etc/passwd}".to_owned()),
            _ => None,
        }
    }

    fn expanded(source: &str) -> Result<String, String> {
        Template::parse(source, &env)?.expand().map_err(|error| error.to_string())
    }

    #[test]
    fn a_credential_is_taken_in_the_forms_in_which_people_keep_it() {
        for text in [
            "s3cr-t==",
            " \"s3cr-t==\"",
            "'s3cr-t=='",
            "Bearer s3cr-t==",
            "splunk \t s3cr-t==",
            "ApiKey \"s3cr-t==\"",
            "Authorization: Bearer s3cr-t==",
            "authorization:Splunk s3cr-t==",
            "\"Bearer s3cr-t==\"",
            "bearer 's3cr-t=='",
        ] {
            assert_eq!(credential(text).as_deref(), Ok("s3cr-t=="), "{text}");
        }
        for token in ["ab_cd==", "glc_eyJ9==", "Zm9v_Yg=", "a_b=c"] {
            assert_eq!(credential(token).as_deref(), Ok(token));
        }
        for (text, what) in [
            ("Bearer \"\"", "no token"),
            ("Bearer", "no token"),
            (r#"{"id":"a","encoded":"s3cr-t"}"#, "JSON"),
            ("[\"s3cr-t\"]", "JSON"),
            ("Basic czNjci10", "basic_auth"),
            ("SPLUNK_TOKEN=s3cr-t", "NAME=VALUE"),
            ("aws_access_key_id = s3cr-t", "NAME=VALUE"),
            ("s3cr-t s3cr-t", "a blank"),
        ] {
            let error = credential(text).unwrap_err();
            assert!(error.contains(what) && !error.contains("s3cr-t"), "{text}: {error}");
        }
    }

    #[test]
    fn variables_are_expanded_and_defaults_fill_the_unset_and_the_empty() {
        for (source, expected) in [
            ("", ""),
            ("plain $ and $$ and }", "plain $ and $$ and }"),
            ("https://${env:HOST}/", "https://logs.example/"),
            ("${env:HOST}${env:HOST}", "logs.examplelogs.example"),
            ("${env:NOT_SET:-10s}", "10s"),
            ("${env:NOT_SET:-}", ""),
            ("${env:EMPTY:-full}", "full"),
            ("[${env:EMPTY}]", "[]"),
            ("${env:HOST:-unused}", "logs.example"),
            ("$${env:HOST}", "${env:HOST}"),
            ("$$${env:HOST}", "$${env:HOST}"),
            ("${env:TRICKY}", "${file:/etc/passwd}"),
        ] {
            assert_eq!(expanded(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn everything_else_after_a_dollar_brace_is_refused() {
        for (source, expected) in [
            ("${HOST}", "an unknown `${…}`"),
            ("${env:HOST", "has no `}`"),
            ("${env:}", "needs the name of a variable"),
            ("${env:A-B}", "needs the name of a variable"),
            ("${env:1A}", "needs the name of a variable"),
            ("${env:A:-${env:HOST}}", "cannot be inside another"),
            ("${file:}", "names no file"),
            ("${env:NOT_SET}", "NOT_SET is not set"),
            ("${env:NOT_SET} ${env:NOR_THIS}", "NOR_THIS is not set"),
        ] {
            let error = expanded(source).unwrap_err();
            assert!(error.contains(expected), "{source}: {error}");
        }
    }

    #[test]
    fn a_token_is_read_without_the_blanks_around_it_and_a_password_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        for around in ["tok/en=", "tok/en=\n", "tok/en= ", "tok/en= \r\n", " \ttok/en=\t\n\n"] {
            std::fs::write(&file, around).unwrap();
            assert_eq!(read_token(&file).unwrap(), "tok/en=", "{around:?}");
        }
        std::fs::write(&file, " pass \n").unwrap();
        assert_eq!(read_secret(&file).unwrap(), " pass ");
    }

    #[test]
    fn a_token_that_nobody_could_present_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        for wrong in ["", "\n", " \t\r\n", "sEcReT\nsEcReT", "sEc\0ReT", "\u{feff}sEcReT"] {
            std::fs::write(&file, wrong).unwrap();
            let error = read_token(&file).unwrap_err().to_string();
            assert!(error.contains("token") && !error.contains("sEc"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn files_are_read_at_every_expansion_and_lose_one_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let source = format!("Bearer ${{file:{}}}", file.display());
        let template = Template::parse(&source, &env).unwrap();
        let error = template.expand().unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read the file {}", file.display()));
        for (written, read) in
            [("a\n", "a"), ("b\r\n", "b"), ("c\n\n", "c\n"), ("d", "d"), ("e\r", "e\r")]
        {
            std::fs::write(&file, written).unwrap();
            assert_eq!(template.expand().unwrap(), format!("Bearer {read}"));
        }
        assert_eq!(template.files().collect::<Vec<_>>(), [file.as_path()]);
        assert_eq!(template.source(), source);
        assert_eq!(format!("{template:?}"), format!("{source:?}"));
    }

    #[test]
    fn a_file_too_large_for_a_secret_is_refused() {
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len(SECRET_BYTES_MAX + 1).unwrap();
        let error = read_secret(large.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
