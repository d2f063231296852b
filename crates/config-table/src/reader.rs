//! The state of reading one config file, and the reading of each type of value. The tables and the
//! declarations of their keys are in `table.rs`; `print.rs` prints the items that were recorded. No
//! key is named in these three files.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::ops::RangeBounds as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::literal::{cut, quoted, shown};
use super::problem::{Content, Named, Need, Problem, Severity};
use super::template::{ExpandError, Template};
use super::values;
use super::values::Range;
use base::named_file;

/// A function that returns the value of an environment variable. Tests pass their own.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The state of reading one config file: its text, and the problems, keys and files that were
/// recorded while its tables were read.
///
/// Reading continues after a problem, so that one run reports all problems. The records are in
/// `RefCell` and `Cell`, because several tables share them; only one thread uses them.
pub struct Context<'a> {
    text: &'a str,
    /// The function that returns the values of environment variables.
    pub env: Env<'a>,
    /// The problems, each with its byte position in the file.
    problems: RefCell<Vec<(usize, Problem)>>,
    /// The byte position of each value and table that was taken, by path: `output[0].name`.
    pub spots: RefCell<BTreeMap<String, usize>>,
    /// The strings with a `${…}`, as the file has them, by path: `filter.match[0].users[0]`.
    templates: RefCell<BTreeMap<String, String>>,
    /// The paths of keys that are required and missing, that are misspelt, or that have a wrong
    /// value. A contradiction with such a key is not reported, because nobody has configured the
    /// default in its place.
    pub unknown: RefCell<BTreeSet<String>>,
    /// The lines with a syntax error of TOML, each as the byte position of its start. Any other
    /// problem on such a line would only be a consequence of the syntax error, and is not reported.
    broken: BTreeSet<usize>,
    /// The sections and keys that were asked for, in order, even if the file does not have them.
    pub items: RefCell<Vec<Item>>,
    /// The files that the config names, in the order of reading.
    pub files: RefCell<Vec<PathBuf>>,
    /// The keys whose values are paths of files or directories.
    pub named: RefCell<Vec<Named>>,
    /// `true` if a `${file:…}` could not be read, so that the config is incomplete. A `${file:…}`
    /// in a possibly secret string does not count, because it is read again later.
    pub incomplete: Cell<bool>,
    /// `false` if a `${…}` in a string is an error, because the text is not a config file.
    pub expands: Cell<bool>,
    /// The type of output that is being read: the config reference lists the types that have a key.
    pub scope: Cell<Option<&'static str>>,
}

/// A section or key that was asked for. The effective config and the reference print these items.
pub enum Item {
    /// The header of a table as it is printed: `[section]` or `[[section]]`.
    Header(String),
    /// A key of the table whose `Header` is the last one before this item.
    Key(Entry),
}

/// A config key: the texts that declare it, and its value.
pub struct Entry {
    /// The table's path without indices: `output.tls`.
    pub section: String,
    /// The types of output that have the key; empty for a key outside of outputs.
    pub scopes: Vec<&'static str>,
    /// The key's name.
    pub name: &'static str,
    /// The type of the values, with the range: `size, at least 1KiB`.
    pub kind: String,
    /// The text in the column `default` of the config reference.
    pub default: String,
    /// The text in the column `meaning` of the config reference.
    pub meaning: &'static str,
    /// The value as TOML, from the file or the default. `None` if there is none, or for a section.
    pub value: Option<String>,
}

/// The value of a key that the file sets.
pub struct Found<'d> {
    /// The path of the key, with indices: `output[0].name`.
    pub path: String,
    /// The byte position of the value in the file.
    pub at: usize,
    /// The parsed TOML value.
    pub value: DeValue<'d>,
}

/// The reason why a value can't be used.
pub enum Wrong {
    /// The value is wrong. The message says why, and what is allowed.
    Is(String),
    /// The value contains a `${file:…}` whose file cannot be read. The message names the file.
    Missing(String),
    /// The problem is recorded already, so nothing more is reported.
    Told,
}

/// A value, or the reason why it can't be used.
pub type Read<T> = Result<T, Wrong>;

impl<'a> Context<'a> {
    /// Parses the text and records its syntax errors. The table has all that could be parsed.
    pub fn new(text: &'a str, env: Env<'a>) -> (Self, DeTable<'a>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut cx = Self {
            text,
            env,
            problems: RefCell::default(),
            spots: RefCell::default(),
            templates: RefCell::default(),
            unknown: RefCell::default(),
            broken: BTreeSet::new(),
            items: RefCell::default(),
            files: RefCell::default(),
            named: RefCell::default(),
            incomplete: Cell::default(),
            expands: Cell::new(true),
            scope: Cell::default(),
        };
        let mut errors: Vec<_> = errors
            .iter()
            .map(|error| (error.span().map_or(0, |span| span.start), error.message()))
            .collect();
        errors.sort_unstable();
        for (at, message) in errors {
            // If a line has several syntax errors, the later ones usually follow from the first.
            if cx.broken.insert(cx.line_start(at)) {
                let message = cx.unquoted(at).unwrap_or_else(|| message.to_owned());
                cx.push(at, String::new(), format!("not TOML: {message}"), Severity::Error);
            }
        }
        (cx, table.into_inner())
    }

    /// Returns the message about an unquoted string, if one is the likely cause of the syntax error
    /// at this position. The message does not show the string, which may be a secret.
    fn unquoted(&self, at: usize) -> Option<String> {
        let line = self.text.get(self.line_start(at)..)?.lines().next()?;
        let (key, value) = line.split_once('=')?;
        let (key, value) = (key.trim(), value.split('#').next()?.trim());
        let is_array = value.starts_with('[');
        let value = value.trim_start_matches('[').trim_start();
        let is_text = |c: char| c.is_alphabetic() || matches!(c, '/' | '~' | '$');
        let is_bare = |c: char| !matches!(c, '"' | '\'' | '{');
        let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let is_string = value.contains(is_text) || value.matches('.').count() > 1;
        if !is_string || !value.chars().all(is_bare) || key.is_empty() || !key.chars().all(is_key) {
            return None;
        }
        let better = if is_array { "[\"…\"]" } else { "\"…\"" };
        Some(format!("string values must be quoted, allowed: {key} = {better}"))
    }

    /// Removes the error that the key `path` is missing: the error about the misspelt key takes its
    /// place. Unless the file also sets `path`, this key then has no usable value.
    pub(crate) fn is_misspelt(&self, path: &str) {
        let is_consequence =
            |it: &Problem| it.path == path && it.message.starts_with("is required");
        self.problems.borrow_mut().retain(|(_, problem)| !is_consequence(problem));
        if !self.is_set(path) {
            self.unknown.borrow_mut().insert(path.to_owned());
        }
    }

    /// Returns the text before a byte position, or before the character that contains this byte.
    fn before(&self, at: usize) -> &str {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        self.text.get(..at).unwrap_or_default()
    }

    fn line_start(&self, at: usize) -> usize {
        self.before(at).rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// Returns the line and the column (in characters) of a byte position, counted from 1.
    pub fn place(&self, at: usize) -> (usize, usize) {
        let before = self.before(at);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        (line, column)
    }

    fn push(&self, at: usize, path: String, message: String, severity: Severity) {
        let (line, column) = self.place(at);
        let problem = Problem { line, column, path, message, severity, output: None };
        self.problems.borrow_mut().push((at, problem));
    }

    /// Records a problem, unless its line has a syntax error, which would be the cause.
    pub fn report(&self, at: usize, path: String, message: String, severity: Severity) {
        if !self.broken.contains(&self.line_start(at)) {
            self.push(at, path, message, severity);
        }
    }

    /// Records an error of the key `path` that is not about its value alone, such as a
    /// contradiction between two keys. Its position is that of the key's value, or else of the
    /// innermost table around the key. Nothing is recorded if the file has a syntax error anywhere.
    pub fn error(&self, path: &str, message: impl Into<String>) {
        self.problem_at(path, path, message, Severity::Error);
    }

    /// Records a problem of the key `path` at the position of `spot`, the path of any key or table.
    /// Nothing is recorded if the file has a syntax error anywhere.
    pub fn problem_at(
        &self,
        path: &str,
        spot: &str,
        message: impl Into<String>,
        severity: Severity,
    ) {
        // If a part of the file is not TOML, the key that seems absent may be in that part.
        if self.broken.is_empty() {
            self.report(self.spot(spot), path.to_owned(), message.into(), severity);
        }
    }

    /// Records a value that was taken: its position, and its text if the text has a `${…}`. Warns
    /// of a string that only a shell would expand.
    pub(crate) fn record(&self, path: &str, at: usize, value: &DeValue<'_>) {
        self.spots.borrow_mut().insert(path.to_owned(), at);
        if let Some(why) = only_for_shell(value) {
            self.report(at, path.to_owned(), why.to_owned(), Severity::Warning);
        }
        if let Some(text) = value.as_str().filter(|text| text.contains("${")) {
            self.templates.borrow_mut().insert(path.to_owned(), text.to_owned());
        }
    }

    /// Returns the string at `path` as messages may show it: as the file has it if it has a `${…}`,
    /// and otherwise `text`, the value that was read.
    pub fn unexpanded(&self, path: &str, text: &str) -> String {
        self.templates.borrow().get(path).cloned().unwrap_or_else(|| text.to_owned())
    }

    /// Returns a message that contains the value of the key `path`. If the value has a `${…}`, its
    /// content may be a secret, and a message without it is returned instead.
    pub fn without_secrets(&self, path: &str, message: impl Into<String>) -> String {
        let templates = self.templates.borrow();
        let Some(text) = templates.get(path) else { return message.into() };
        format!(
            "{} has a mistake after ${{…}} is expanded, which is not shown because it would reveal \
             the value: to see the mistake, run check with a harmless value in its place",
            cut(quoted(text))
        )
    }

    /// Returns the position of the value at `path`, or else of the innermost table around it, or 0.
    fn spot(&self, path: &str) -> usize {
        let spots = self.spots.borrow();
        enclosing(path).find_map(|path| spots.get(path)).copied().unwrap_or_default()
    }

    /// Returns the line of the key or table `path`, counted from 1; `None` if the file does not set
    /// it. Call this function only after the key was taken from its table.
    pub fn line_of(&self, path: &str) -> Option<usize> {
        self.spots.borrow().get(path).map(|at| self.place(*at).0)
    }

    /// Returns the path of a key for a message about another key: with the line, if the file sets
    /// the key, such as `listener[0].address (line 2)`.
    pub fn with_line(&self, path: &str) -> String {
        self.line_of(path).map_or_else(|| path.to_owned(), |line| format!("{path} (line {line})"))
    }

    /// Returns `true` if the file sets the key at this path. Call this function only after the key
    /// was taken from its table; before that, the result is always `false`.
    pub fn is_set(&self, path: &str) -> bool {
        self.spots.borrow().contains_key(path)
    }

    /// Returns `false` if one of these keys is misspelt, has a wrong value, or is required and
    /// missing.
    pub fn are_known(&self, paths: &[&str]) -> bool {
        let unknown = self.unknown.borrow();
        paths.iter().all(|path| !unknown.contains(*path))
    }

    /// Ends the reading and returns all problems, sorted by their position in the file.
    pub fn problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by(|(a, left), (b, right)| (a, &left.path).cmp(&(b, &right.path)));
        problems.into_iter().map(|(_, problem)| problem).collect()
    }

    /// Records `wrong` as a problem of the key `path`, unless it is recorded already.
    pub fn fail(&self, at: usize, path: &str, wrong: Wrong) {
        match wrong {
            Wrong::Is(message) => self.report(at, path.to_owned(), message, Severity::Error),
            Wrong::Missing(message) => {
                self.incomplete.set(true);
                self.report(at, path.to_owned(), message, Severity::MissingFile);
            }
            Wrong::Told => {}
        }
    }

    /// Reads a string that may contain `${…}`. The error about another type names `kind`.
    fn template(&self, value: &DeValue<'_>, kind: &str) -> Read<Template> {
        let DeValue::String(source) = value else { return Err(other_type(value, kind)) };
        if !self.expands.get() && source.contains("${") {
            return Err(Wrong::Is("has a `${`, which is not expanded here".to_owned()));
        }
        let template = Template::parse(source, self.env).map_err(Wrong::Is)?;
        self.files.borrow_mut().extend(template.files().map(Path::to_path_buf));
        Ok(template)
    }

    fn string(&self, value: &DeValue<'_>, kind: &str) -> Read<String> {
        let template = self.template(value, kind)?;
        template.expand().map_err(|error| Wrong::Missing(missing_part(&error)))
    }

    /// Reads a string, expands each `${…}` in it, and parses the result. An error of `parse` is
    /// only the end of a message, such as `is not IP:PORT`; the string is put in front of it.
    pub fn word<T>(
        &self,
        value: &DeValue<'_>,
        kind: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<T> {
        parse(&self.string(value, kind)?)
            .map_err(|why| Wrong::Is(format!("{} {why}", shown(value))))
    }

    /// Reads a string that no message may show, because it may be a secret. Each `${…}` in it is
    /// expanded, and `check` checks the result. If a `${file:…}` cannot be read, this is recorded
    /// as a problem, and the string is returned without a check.
    pub fn secret(
        &self,
        found: &Found<'_>,
        check: fn(&str) -> Result<(), String>,
    ) -> Read<Template> {
        let template = self.template(&found.value, "a string")?;
        match template.expand() {
            Ok(expanded) => check(&expanded).map_err(Wrong::Is)?,
            Err(error) => {
                let message = missing_part(&error);
                self.report(found.at, found.path.clone(), message, Severity::MissingFile);
            }
        }
        Ok(template)
    }

    fn path(&self, value: &DeValue<'_>, of: &str) -> Read<PathBuf> {
        self.word(value, "a path", |path| match path {
            "" => Err(format!("is empty, allowed: the path of {of}")),
            path => Ok(PathBuf::from(path)),
        })
    }

    fn name(&self, found: &Found<'_>, path: &Path, content: Content, need: Need) {
        let (key, path) = (found.path.clone(), path.to_owned());
        self.named.borrow_mut().push(Named { key, path, content, need });
    }

    /// Returns the keys below the table `path` that name a file with a token or a password.
    pub fn secrets_below(&self, path: &str) -> Vec<String> {
        let is_below = |key: &str| key.strip_prefix(path).is_some_and(|it| it.starts_with('.'));
        let is_secret = |it: &&Named| matches!(it.content, Content::Token | Content::Password);
        let named = self.named.borrow();
        let secrets = named.iter().filter(is_secret).filter(|it| is_below(&it.key));
        secrets.map(|it| it.key.clone()).collect()
    }

    /// Reads the path of a regular file. The path of anything else is an error, unless `need` is
    /// [`Need::Admin`]. The path is returned even if the file is missing or can't be read. If
    /// `need` is [`Need::Start`], such a file is recorded as a problem.
    pub fn file(&self, found: &Found<'_>, content: Content, need: Need) -> Read<PathBuf> {
        let path = self.path(&found.value, "a file")?;
        self.files.borrow_mut().push(path.clone());
        self.name(found, &path, content, need);
        match named_file::look(&path) {
            _ if need == Need::Admin => Ok(path),
            Err(error) if error.kind() == ErrorKind::IsADirectory => {
                let message = format!("{} is a directory, allowed: a file", shown(&found.value));
                Err(Wrong::Is(message))
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                let message = format!(
                    "{} can't be read: {error}, allowed: a regular file, or a symlink to one",
                    shown(&found.value)
                );
                Err(Wrong::Is(message))
            }
            Err(error) if need == Need::Start => {
                let file = shown(&found.value);
                let mut message = missing(&file, &error);
                if let Some(why) = only_for_shell(&found.value) {
                    message = format!("{message}: it {why}");
                    // This error has the text of the warning.
                    self.problems.borrow_mut().retain(|(_, it)| it.path != found.path);
                }
                self.report(found.at, found.path.clone(), message, Severity::MissingFile);
                Ok(path)
            }
            Err(_) | Ok(()) => Ok(path),
        }
    }

    /// Reads the path of a directory, which need not exist. The path of a file is an error.
    pub fn directory(&self, found: &Found<'_>) -> Read<PathBuf> {
        let path = self.path(&found.value, "a directory")?;
        self.name(found, &path, Content::Directory, Need::Start);
        match std::fs::metadata(&path) {
            Ok(metadata) if !metadata.is_dir() => {
                let shown = shown(&found.value);
                Err(Wrong::Is(format!("{shown} is a file, allowed: a directory, or a new path")))
            }
            Ok(_) | Err(_) => Ok(path),
        }
    }
}

/// Returns `path` and then the paths around it, the innermost first: `output[0].tls.ca`,
/// `output[0].tls`, `output[0]`, `output`.
pub fn enclosing(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        let item = path.strip_suffix(']').and_then(|path| path.rsplit_once('['));
        item.or_else(|| path.rsplit_once('.')).map(|(outer, _)| outer)
    })
}

/// Returns why this string is probably a mistake if a shell would expand it, but the relay does
/// not: it has the name of a variable after a `$`, or `~/` at the start. The text does not show the
/// string, which may be a secret.
fn only_for_shell(value: &DeValue<'_>) -> Option<&'static str> {
    match value.as_str()? {
        text if text.starts_with("~/") => {
            Some("begins with ~, which is not expanded here: write the whole path")
        }
        text if values::names_a_variable(text) => {
            Some("has a $ before a name, which is not expanded here: write ${env:NAME}")
        }
        _ => None,
    }
}

fn missing_part(error: &ExpandError) -> String {
    missing(&cut(quoted(&error.file.display().to_string())), &error.source)
}

fn missing(file: &str, error: &std::io::Error) -> String {
    if error.kind() == ErrorKind::NotFound {
        return format!("the file {file} does not exist");
    }
    format!("the file {file} cannot be read: {error}")
}

pub(crate) fn other_type(value: &DeValue<'_>, kind: &str) -> Wrong {
    let found = match value {
        DeValue::Integer(_) => "an integer",
        DeValue::Array(_) => "an array",
        DeValue::String(_) => "a string",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Table(_) => "a table",
    };
    Wrong::Is(format!("is {found}, allowed: {kind}"))
}

/// Returns the number if it is in the range. Otherwise, the error shows `value` as in the file.
pub fn within<T: Copy + PartialOrd>(
    number: T,
    value: &DeValue<'_>,
    range: &Range<T>,
    show: impl Fn(T) -> String,
) -> Read<T> {
    if range.contains(&number) {
        return Ok(number);
    }
    let allowed = values::allowed(range, show).unwrap_or_default();
    Err(Wrong::Is(format!("{} is out of range, allowed: {allowed}", shown(value))))
}

/// Reads a size in bytes: a string such as `"64MiB"`, or a number.
pub(crate) fn read_size(cx: &Context<'_>, value: &DeValue<'_>, range: &Range<u64>) -> Read<u64> {
    let kind = "a size such as \"64MiB\", or a number of bytes";
    let size = if value.is_integer() {
        read_integer(value).filter(|size| *size <= values::SIZE_MAX).ok_or_else(|| {
            Wrong::Is(format!("{} is out of range, allowed: {kind}", shown(value)))
        })?
    } else {
        cx.word(value, kind, values::size)?
    };
    within(size, value, range, values::show_size)
}

pub(crate) fn read_time(
    cx: &Context<'_>,
    value: &DeValue<'_>,
    range: &Range<Duration>,
) -> Read<Duration> {
    let time = cx.word(value, "a time such as \"10s\"", values::time)?;
    within(time, value, range, values::show_time)
}

/// Reads a whole number. `must_be` ends the error message about another type, or about a number
/// that does not fit `u64`.
pub(crate) fn read_count(value: &DeValue<'_>, range: &Range<u64>, must_be: &str) -> Read<u64> {
    let integer = value.as_integer().ok_or_else(|| other_type(value, must_be))?;
    match read_integer(value) {
        Some(number) => within(number, value, range, |number| number.to_string()),
        None => Err(Wrong::Is(format!("{integer} is out of range, allowed: {must_be}"))),
    }
}

/// Reads a number. `nan` and `inf` of TOML become NaN, which is outside of every range with a
/// limit.
pub(crate) fn read_number(value: &DeValue<'_>) -> Read<f64> {
    let digits = value.as_float().map(|float| float.as_str()).or_else(|| {
        let integer = value.as_integer().filter(|integer| integer.radix() == 10);
        integer.map(|integer| integer.as_str())
    });
    let number = digits.ok_or_else(|| other_type(value, "a number"))?.parse().ok();
    Ok(number.filter(|number: &f64| number.is_finite()).unwrap_or(f64::NAN))
}

/// Reads a whole number from 0 to the largest `u64`, in any notation of TOML (`0x10`, `1_000`).
fn read_integer(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

pub(crate) fn read_flag(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| other_type(value, "true or false"))
}
