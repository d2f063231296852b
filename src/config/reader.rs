//! One reading of a config file: its positions, its problems, and how each kind of value is read.
//!
//! Tables and the declarations of their keys are `table.rs`, which keys there are is `schema.rs`,
//! what is done with the items that a reading leaves is `print.rs`.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::RangeBounds;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;
use toml::de::DeValue;

use super::ExpandError;
use super::Named;
use super::Problem;
use super::Severity;
use super::Template;
use super::print::cut;
use super::print::quoted;
use super::print::shown;
use super::values;

/// Variables of the environment, real or a test's.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One reading of one config file: what all its tables share.
pub(super) struct Context<'a> {
    text: &'a str,
    env: Env<'a>,
    /// With their byte positions.
    problems: RefCell<Vec<(usize, Problem)>>,
    /// Where the value of a key, or the header of a table, stands, by its path.
    pub(super) spots: RefCell<BTreeMap<String, usize>>,
    /// Paths whose value is not known: contradictions with them are not looked for.
    pub(super) unknown: RefCell<BTreeSet<String>>,
    /// Lines (by the position of their start) that are not TOML: what else is wrong there follows
    /// from that.
    broken: BTreeSet<usize>,
    pub(super) items: RefCell<Vec<Item>>,
    files: RefCell<Vec<PathBuf>>,
    pub(super) policies: RefCell<BTreeSet<PathBuf>>,
    named: RefCell<Vec<Named>>,
    incomplete: Cell<bool>,
    /// The type of the output that is being read, for the reference.
    pub(super) scope: Cell<Option<&'static str>>,
}

/// What a reading found.
pub(super) struct Finished {
    /// By position.
    pub(super) problems: Vec<Problem>,
    pub(super) items: Vec<Item>,
    /// Sorted, each once.
    pub(super) files: Vec<PathBuf>,
    pub(super) policies: BTreeSet<PathBuf>,
    pub(super) named: Vec<Named>,
    /// Line and column of what stands in the file, by path.
    pub(super) places: BTreeMap<String, (usize, usize)>,
    /// No setting is in a missing file.
    pub(super) complete: bool,
}

/// What the effective config and the reference are made of, in the order of reading.
pub(super) enum Item {
    /// `[section]` or `[[section]]`.
    Header(String),
    /// A key of the latest header.
    Key(Entry),
}

/// A key as declared, and as found.
pub(super) struct Entry {
    /// Without indices: `output.tls`.
    pub(super) section: String,
    /// Types of output that have it.
    pub(super) scopes: Vec<&'static str>,
    pub(super) name: &'static str,
    pub(super) kind: String,
    /// As the reference shows it.
    pub(super) default: String,
    pub(super) meaning: &'static str,
    /// Set or default, as TOML; `None`: neither.
    pub(super) value: Option<String>,
}

/// A key's value where it stands.
pub(super) struct Found<'d> {
    pub(super) path: String,
    pub(super) at: usize,
    pub(super) value: DeValue<'d>,
}

/// Why a value is none.
pub(super) enum Wrong {
    /// What is wrong and what is allowed.
    Is(String),
    /// A `${file:…}` in it is missing.
    Missing(String),
    /// The problem is on record already.
    Told,
}

/// A value, or why it is none.
pub(super) type Read<T> = Result<T, Wrong>;

impl<'a> Context<'a> {
    /// Parses the text, puts its syntax errors on record, and hands out its keys.
    pub(super) fn new(text: &'a str, env: Env<'a>) -> (Self, DeTable<'a>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut cx = Self {
            text,
            env,
            problems: RefCell::default(),
            spots: RefCell::default(),
            unknown: RefCell::default(),
            broken: BTreeSet::new(),
            items: RefCell::default(),
            files: RefCell::default(),
            policies: RefCell::default(),
            named: RefCell::default(),
            incomplete: Cell::default(),
            scope: Cell::default(),
        };
        let mut errors: Vec<_> = errors
            .iter()
            .map(|error| (error.span().map_or(0, |span| span.start), error.message()))
            .collect();
        errors.sort_unstable();
        for (at, message) in errors {
            // What follows on the same line mostly follows from the first.
            if cx.broken.insert(cx.line_start(at)) {
                cx.push(at, String::new(), format!("not TOML: {message}"), Severity::Error);
            }
        }
        (cx, table.into_inner())
    }

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

    /// Line and column of a byte position.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.before(at);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        (line, column)
    }

    fn push(&self, at: usize, path: String, message: String, severity: Severity) {
        let (line, column) = self.place(at);
        let problem = Problem { line, column, path, message, severity };
        self.problems.borrow_mut().push((at, problem));
    }

    /// Puts a problem on record, unless its line is broken anyway.
    pub(super) fn report(&self, at: usize, path: String, message: String, severity: Severity) {
        if !self.broken.contains(&self.line_start(at)) {
            self.push(at, path, message, severity);
        }
    }

    /// A contradiction, or whatever else concerns a key as a whole: stands at its value, or at the
    /// header of the innermost table around it.
    pub(super) fn error(&self, path: &str, message: impl Into<String>) {
        self.problem_at(path, path, message, Severity::Error);
    }

    /// As [`Context::error`], but about `path` and at `spot`.
    pub(super) fn problem_at(
        &self,
        path: &str,
        spot: &str,
        message: impl Into<String>,
        severity: Severity,
    ) {
        // What is absent or contradicts in a file that is not TOML may be in its broken part.
        if self.broken.is_empty() {
            self.report(self.spot(spot), path.to_owned(), message.into(), severity);
        }
    }

    fn spot(&self, path: &str) -> usize {
        let spots = self.spots.borrow();
        enclosing(path).find_map(|path| spots.get(path)).copied().unwrap_or_default()
    }

    /// Whether the file sets it.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.spots.borrow().contains_key(path)
    }

    /// Whether all of these have a value, their own or a default.
    pub(super) fn are_known(&self, paths: &[&str]) -> bool {
        let unknown = self.unknown.borrow();
        paths.iter().all(|path| !unknown.contains(*path))
    }

    /// What is declared from here on belongs to this type of output.
    pub(super) fn set_scope(&self, scope: Option<&'static str>) {
        self.scope.set(scope);
    }

    /// What the reading found.
    pub(super) fn finish(self) -> Finished {
        let spots = self.spots.borrow().clone();
        let places = spots.into_iter().map(|(path, at)| (path, self.place(at))).collect();
        let mut problems = self.problems.into_inner();
        problems.sort_by(|(a, left), (b, right)| (a, &left.path).cmp(&(b, &right.path)));
        let mut files = self.files.into_inner();
        files.sort_unstable();
        files.dedup();
        Finished {
            problems: problems.into_iter().map(|(_, problem)| problem).collect(),
            items: self.items.into_inner(),
            files,
            policies: self.policies.into_inner(),
            named: self.named.into_inner(),
            places,
            complete: !self.incomplete.get(),
        }
    }

    /// Puts on record why a value is none.
    pub(super) fn fail(&self, at: usize, path: &str, wrong: Wrong) {
        match wrong {
            Wrong::Is(message) => self.report(at, path.to_owned(), message, Severity::Error),
            Wrong::Missing(message) => {
                self.incomplete.set(true);
                self.report(at, path.to_owned(), message, Severity::MissingFile);
            }
            Wrong::Told => {}
        }
    }

    fn template(&self, value: &DeValue<'_>, kind: &str) -> Read<Template> {
        let DeValue::String(source) = value else { return Err(other_type(value, kind)) };
        let template = Template::parse(source, self.env).map_err(Wrong::Is)?;
        self.files.borrow_mut().extend(template.files().map(Path::to_path_buf));
        Ok(template)
    }

    fn string(&self, value: &DeValue<'_>, kind: &str) -> Read<String> {
        let template = self.template(value, kind)?;
        template.expand().map_err(|error| Wrong::Missing(missing_part(&error)))
    }

    /// A string by its parser, whose complaint gets the value in front.
    pub(super) fn word<T>(
        &self,
        value: &DeValue<'_>,
        kind: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<T> {
        parse(&self.string(value, kind)?)
            .map_err(|why| Wrong::Is(format!("{} {why}", shown(value))))
    }

    /// A secret string: its complaint does not show it, and a missing file leaves it a template.
    pub(super) fn secret(
        &self,
        found: &Found<'_>,
        check: impl FnOnce(&str) -> Result<(), String>,
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

    fn name(&self, found: &Found<'_>, path: &Path, is_directory: bool, must_exist: bool) {
        let (key, path) = (found.path.clone(), path.to_owned());
        self.named.borrow_mut().push(Named { key, path, is_directory, must_exist });
    }

    /// Names a file; `must_exist` says so where it does not.
    pub(super) fn file(&self, found: &Found<'_>, must_exist: bool) -> Read<PathBuf> {
        let path = self.path(&found.value, "a file")?;
        self.files.borrow_mut().push(path.clone());
        self.name(found, &path, false, must_exist);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                let message = format!("{} is a directory, allowed: a file", shown(&found.value));
                return Err(Wrong::Is(message));
            }
            // Only a regular file is opened: a pipe would wait for its writer.
            Ok(metadata) if !metadata.is_file() => {}
            found_one => {
                let opened = found_one.and_then(|_| std::fs::File::open(&path));
                if let (Err(error), true) = (opened, must_exist) {
                    let message = missing(&shown(&found.value), &error);
                    self.report(found.at, found.path.clone(), message, Severity::MissingFile);
                }
            }
        }
        Ok(path)
    }

    /// Names a directory, which need not exist. It is none of the files that the config names.
    pub(super) fn directory(&self, found: &Found<'_>) -> Read<PathBuf> {
        let path = self.path(&found.value, "a directory")?;
        self.name(found, &path, true, true);
        match std::fs::metadata(&path) {
            Ok(metadata) if !metadata.is_dir() => {
                let shown = shown(&found.value);
                Err(Wrong::Is(format!("{shown} is a file, allowed: a directory, or a new path")))
            }
            Ok(_) | Err(_) => Ok(path),
        }
    }
}

/// A path, then those of the items and tables around it, outwards.
pub(super) fn enclosing(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        let item = path.strip_suffix(']').and_then(|path| path.rsplit_once('['));
        item.or_else(|| path.rsplit_once('.')).map(|(outer, _)| outer)
    })
}

/// The complaint about a `${file:…}`.
fn missing_part(error: &ExpandError) -> String {
    missing(&cut(quoted(&error.file.display().to_string())), &error.source)
}

/// The complaint about a file, by its name as TOML.
fn missing(file: &str, error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound {
        return format!("the file {file} is missing, allowed: one that is there");
    }
    format!("the file {file} cannot be read: {error}, allowed: one that the relay may read")
}

/// The complaint about a value of another type than `kind`.
pub(super) fn other_type(value: &DeValue<'_>, kind: &str) -> Wrong {
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

/// The number, if it is in its range.
pub(super) fn within<T: Copy + PartialOrd>(
    number: T,
    value: &DeValue<'_>,
    range: &impl RangeBounds<T>,
    show: impl Fn(T) -> String,
) -> Read<T> {
    if range.contains(&number) {
        return Ok(number);
    }
    let allowed = values::allowed(range, show).unwrap_or_default();
    Err(Wrong::Is(format!("{} is out of range, allowed: {allowed}", shown(value))))
}

/// `"64MiB"`, or a number of bytes.
pub(super) fn read_size(
    cx: &Context<'_>,
    value: &DeValue<'_>,
    range: &impl RangeBounds<u64>,
) -> Read<u64> {
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

/// `"10s"`.
pub(super) fn read_time(
    cx: &Context<'_>,
    value: &DeValue<'_>,
    range: &impl RangeBounds<Duration>,
) -> Read<Duration> {
    let time = cx.word(value, "a time such as \"10s\"", values::time)?;
    within(time, value, range, values::show_time)
}

/// A whole number that is not negative, in any notation of TOML.
pub(super) fn read_integer(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// `true` or `false`.
pub(super) fn read_flag(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| other_type(value, "true or false"))
}
