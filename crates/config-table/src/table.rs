//! Tables of the config file: a key is declared by the call that takes it out of its table.
//!
//! One declaration (name, kind, default, allowed values, meaning) yields four things: the typed
//! value, each problem with its line and column, the line of the effective config, and the row of
//! the reference. A key that no call has taken is unknown, and is reported as such.
//!
//! [`Table`] is also the interface by which the outputs read their own keys. It knows no key
//! itself.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::literal::{bare_or_quoted, literal, quoted};
use super::problem::{Content, Severity};
use super::reader::{
    Context, Entry, Found, Item, Read, Wrong, other_type, read_count, read_flag, read_number,
    read_size, read_time, within,
};
use super::template::Template;
use super::values;
use super::values::{Range, bounds};
use base::words::nearest;

/// The declaration of a config key: its name, the kind of its values, its default and its meaning,
/// as the config reference prints them.
///
/// Outside of this file, a `Key` is made by [`required`], [`optional`] or [`derived`].
pub struct Key {
    /// The name of the key in its table.
    name: &'static str,
    /// The kind of the values, with their range: `size, at least 1KiB`.
    kind: String,
    /// The treatment of the key if the file does not set it.
    absent: Absent,
    /// The text in the column `meaning` of the config reference.
    meaning: &'static str,
}

/// The `kind` of a key that is a section of its own, such as `[output.tls]`.
pub const TABLE: &str = "table";

/// The treatment of a key that the file does not set.
enum Absent {
    /// The key is required: a file without the key has an error.
    Required,
    /// The key has no default. The text says how the relay behaves without the key, such as `memory
    /// only`; the config reference prints it.
    Optional(Cow<'static, str>),
    /// The key has a default. The first text is the default as TOML, the second text is the default
    /// as the config reference prints it.
    Default(String, String),
}

impl Absent {
    /// Returns the treatment of a key whose default, written as TOML, is the same in every config.
    fn same(default: String) -> Self {
        Self::Default(default.clone(), default)
    }
}

/// Parses a string. An error is the end of a message that begins with the string.
pub type Parse = fn(&str) -> Result<String, String>;

/// Checks a string that may be a secret. An error is the end of a message, and does not show it.
pub type Check = fn(&str) -> Result<(), String>;

/// Declares a required key. `kind` names the kind of the key's values, such as `host:port`.
pub fn required(name: &'static str, kind: &str, meaning: &'static str) -> Key {
    Key { name, kind: kind.to_owned(), absent: Absent::Required, meaning }
}

/// Declares a key that may be absent. `otherwise` says how the relay behaves without the key, such
/// as `no authentication`.
pub fn optional(
    name: &'static str,
    kind: &str,
    otherwise: &'static str,
    meaning: &'static str,
) -> Key {
    Key { name, kind: kind.to_owned(), absent: Absent::Optional(otherwise.into()), meaning }
}

/// Declares a key with a default that is the same in every config. `default` is the value as TOML.
fn defaulted(name: &'static str, kind: String, default: String, meaning: &'static str) -> Key {
    Key { name, kind, absent: Absent::same(default), meaning }
}

/// Declares a key for a size whose default depends on other keys. `default` is the default in this
/// config (`None`: there is no default). `reference` is the text that the config reference prints
/// as the default.
pub fn derived(
    name: &'static str,
    kind: &str,
    (default, reference): (Option<u64>, &'static str),
    meaning: &'static str,
) -> Key {
    let absent = match default {
        Some(size) => Absent::Default(size_literal(size), reference.to_owned()),
        None => Absent::Optional(reference.into()),
    };
    Key { name, kind: kind.to_owned(), absent, meaning }
}

/// Returns a kind of values and their range as one text: `size, at least 1KiB`. If `allowed` is
/// `None`, the text has no range.
fn kind(kind: &str, allowed: Option<String>) -> String {
    allowed.map_or_else(|| kind.to_owned(), |allowed| format!("{kind}, {allowed}"))
}

/// Returns a kind of values for an error message about a key that is not set: `a path`, `an array
/// of strings`, or `one of "a", "b"` for a choice.
fn wanted(kind: &str) -> String {
    match kind.chars().next() {
        Some('"') if kind.contains(" · ") => format!("one of {}", kind.replace(" · ", ", ")),
        // A single string, and the form "IP:PORT", need no article.
        Some('"' | 'I') => kind.to_owned(),
        Some('a') => format!("an {kind}"),
        Some(_) | None => format!("a {kind}"),
    }
}

/// Returns the words of a choice in quotation marks, with `between` between them.
fn listed(words: &[&str], between: &str) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(between)
}

/// Returns a size as TOML: `"64MiB"`, or `1000` without quotes if it is a number of bytes.
fn size_literal(size: u64) -> String {
    let shown = values::show_size(size);
    if shown.parse::<u64>().is_ok() { shown } else { quoted(&shown) }
}

/// Converts the result of [`Table::optional_section`] so that a caller can use `?` to stop at a
/// section with a problem. `None` (no section was read) becomes `Some(None)`. `Some(None)` (a
/// section with a problem) becomes `None`. `Some(Some(…))` does not change.
pub fn whole<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    section.map_or(Some(None), |read| read.map(Some))
}

/// One table of the config file while it is being read.
///
/// Each method that reads a key also declares the key for the config reference, and takes it out of
/// the table. If the value of the key is wrong, the method records the problem with its position,
/// and returns the default, or `None` if there is no default. Reading then continues, so that one
/// run reports every problem. A default in the place of a wrong value does no harm, because a
/// config with an error is never used. After a table was read, each key that is left in it is
/// reported as unknown.
///
/// In the methods, `meaning` is the text about the key in the config reference, and `otherwise` the
/// text about how the relay behaves without the key.
///
/// The order of the calls is the order of the keys in the effective config and in the config
/// reference. Plain keys come before sections: in TOML, a key after the header `[output.tls]`
/// belongs to that section.
pub struct Table<'c, 'a> {
    /// The records of reading this config file, such as problems. All tables of the file share
    /// them.
    pub cx: &'c Context<'a>,
    /// The path of this table with indices: `output[0].tls`. It is empty for the whole file.
    pub path: String,
    /// The path of this table without indices: `output.tls`.
    section: String,
    /// The keys that no call has taken yet. Each entry has the byte position of the key's name, and
    /// the key's value.
    keys: BTreeMap<String, (usize, Spanned<DeValue<'a>>)>,
    /// The name of every key that a call has asked for, even if the table does not contain the key.
    known: Vec<&'static str>,
}

/// Inner tables that were taken out of an outer table, but are not read yet. See
/// [`Table::found_tables`].
pub struct Tables<'a> {
    /// The name of the key in the outer table.
    name: &'static str,
    /// The kind of the values that the key allows, for error messages.
    kind: String,
    /// The values of the key, one for each table. Some of the values may not be tables; this is
    /// reported only when the tables are read.
    pub tables: Vec<Spanned<DeValue<'a>>>,
}

impl<'c, 'a> Table<'c, 'a> {
    /// Makes the table of the whole file.
    pub fn root(cx: &'c Context<'a>, table: DeTable<'a>) -> Self {
        Self::new(cx, String::new(), String::new(), table)
    }

    /// Makes a table that is ready for reading. `path` is its path with indices, `section` its path
    /// without indices.
    fn new(cx: &'c Context<'a>, path: String, section: String, table: DeTable<'a>) -> Self {
        let keys = table
            .into_iter()
            .map(|(key, value)| {
                let at = key.span().start;
                (key.into_inner().into_owned(), (at, value))
            })
            .collect();
        Self { cx, path, section, keys, known: Vec::new() }
    }

    /// Returns the full path of a key of this table: `output[0].tls` for `tls`.
    pub fn path_of(&self, name: &str) -> String {
        let name = bare_or_quoted(name);
        match self.path.as_str() {
            "" => name,
            path => format!("{path}.{name}"),
        }
    }

    /// Returns `true` if the file sets the key `name` of this table. Call this function only after
    /// the key was taken; before that, the result is always `false`.
    pub fn is_set(&self, name: &str) -> bool {
        self.cx.is_set(&self.path_of(name))
    }

    /// Records an error of the key `name` that is not about its value alone, such as a
    /// contradiction. The key must have been taken before. The error is reported at the position of
    /// the key's value, or at that of this table's header if the file does not set the key.
    pub fn error(&self, name: &str, message: impl Into<String>) {
        self.cx.error(&self.path_of(name), message);
    }

    /// Records a warning about the key `name`, at the position that [`Table::error`] would use.
    pub fn warn(&self, name: &str, message: impl Into<String>) {
        let path = self.path_of(name);
        self.cx.problem_at(&path, &path, message, Severity::Warning);
    }

    /// Takes the key `name` out of the table and returns its value. Records that the key is known,
    /// and the position of its value. Returns `None` if the file does not set the key.
    fn remove(&mut self, name: &'static str) -> Option<Found<'a>> {
        self.known.push(name);
        let (_, value) = self.keys.remove(name)?;
        let path = self.path_of(name);
        let at = value.span().start;
        self.cx.spots.borrow_mut().insert(path.clone(), at);
        Some(Found { path, at, value: value.into_inner() })
    }

    /// Records a key for the effective config and for the config reference. `found` is the key's
    /// value in the file. It is `None` if the file does not set the key, or if
    /// [`Table::read_tables`] prints the value elsewhere.
    fn declare(&self, key: &Key, found: Option<&DeValue<'a>>) {
        let (default, reference) = match &key.absent {
            Absent::Required => (None, "required"),
            Absent::Optional(otherwise) => (None, &**otherwise),
            Absent::Default(default, shown) => (Some(default.clone()), shown.as_str()),
        };
        // A table is printed as a section of its own.
        let printed = found.filter(|_| key.kind != TABLE).map(literal).or(default);
        self.record(key.name, &key.kind, reference, key.meaning, printed);
    }

    /// Adds one key to the records from which the effective config and the config reference are
    /// made. `default` and `meaning` are the texts that the reference prints about the key's
    /// default and its meaning. `value` is the value for the effective config, as TOML: the key's
    /// value in the file, or its default. It is `None` if the key has neither of them, or if its
    /// value is printed as a section.
    fn record(
        &self,
        name: &'static str,
        kind: &str,
        default: &str,
        meaning: &'static str,
        value: Option<String>,
    ) {
        self.cx.items.borrow_mut().push(Item::Key(Entry {
            section: self.section.clone(),
            scopes: self.cx.scope.get().into_iter().collect(),
            name,
            kind: kind.to_owned(),
            default: default.to_owned(),
            meaning,
            value,
        }));
    }

    /// Takes the key out of the table, and declares it. Returns its value in the file. `None`: the
    /// file does not set it; if it is required, its absence is recorded as a problem.
    fn take(&mut self, key: &Key) -> Option<Found<'a>> {
        let found = self.remove(key.name);
        self.declare(key, found.as_ref().map(|found| &found.value));
        if found.is_none() && matches!(key.absent, Absent::Required) {
            let path = self.path_of(key.name);
            self.cx.error(&path, format!("is required: {}", wanted(&key.kind)));
            self.cx.unknown.borrow_mut().insert(path);
        }
        found
    }

    /// Returns the value that was read. After an error, records the problem and returns `None`.
    ///
    /// The methods below are compiled for each type and each parser. They are short, because
    /// everything that does not depend on the type is in functions that are compiled once.
    fn usable<T>(&self, found: &Found<'a>, read: Read<T>) -> Option<T> {
        read.map_err(|wrong| self.unusable(found, wrong)).ok()
    }

    fn unusable(&self, found: &Found<'a>, wrong: Wrong) {
        self.cx.fail(found.at, &found.path, wrong);
        self.cx.unknown.borrow_mut().insert(found.path.clone());
    }

    /// Takes a size in bytes: `"64MiB"`, or a number.
    pub fn size(
        &mut self,
        name: &'static str,
        default: u64,
        range: impl RangeBounds<u64>,
        meaning: &'static str,
    ) -> u64 {
        let range = bounds(&range);
        let kind = kind("size", values::allowed(&range, values::show_size));
        let key = defaulted(name, kind, size_literal(default), meaning);
        self.size_of(key, range).unwrap_or(default)
    }

    /// Takes a size in bytes whose default depends on other keys: see [`derived`]. After `None`,
    /// the caller uses the default, if there is one.
    pub fn size_of(&mut self, key: Key, range: impl RangeBounds<u64>) -> Option<u64> {
        let found = self.take(&key)?;
        self.usable(&found, read_size(self.cx, &found.value, &bounds(&range)))
    }

    /// Takes a time, such as `"10s"`.
    pub fn time(
        &mut self,
        name: &'static str,
        default: Duration,
        range: impl RangeBounds<Duration>,
        meaning: &'static str,
    ) -> Duration {
        let absent = Absent::same(quoted(&values::show_time(default)));
        self.time_in(name, absent, &bounds(&range), meaning).unwrap_or(default)
    }

    /// Takes a time that has no default.
    pub fn optional_time(
        &mut self,
        name: &'static str,
        range: impl RangeBounds<Duration>,
        otherwise: &'static str,
        meaning: &'static str,
    ) -> Option<Duration> {
        self.time_in(name, Absent::Optional(otherwise.into()), &bounds(&range), meaning)
    }

    fn time_in(
        &mut self,
        name: &'static str,
        absent: Absent,
        range: &Range<Duration>,
        meaning: &'static str,
    ) -> Option<Duration> {
        let kind = kind("time", values::allowed(range, values::show_time));
        let found = self.take(&Key { name, kind, absent, meaning })?;
        self.usable(&found, read_time(self.cx, &found.value, range))
    }

    /// Takes a whole number.
    pub fn count(
        &mut self,
        name: &'static str,
        default: u64,
        range: impl RangeBounds<u64>,
        meaning: &'static str,
    ) -> u64 {
        let range = bounds(&range);
        let allowed = values::allowed(&range, |number| number.to_string());
        let kind = kind("integer", allowed.clone());
        let must_be = format!("an integer, {}", allowed.unwrap_or_default());
        let key = defaulted(name, kind, default.to_string(), meaning);
        let Some(found) = self.take(&key) else { return default };
        self.usable(&found, read_count(&found.value, &range, &must_be)).unwrap_or(default)
    }

    /// Takes a number that may have a fraction.
    pub fn number(
        &mut self,
        name: &'static str,
        default: f64,
        range: impl RangeBounds<f64>,
        meaning: &'static str,
    ) -> f64 {
        let show = |number: f64| format!("{number:?}");
        let range = bounds(&range);
        let kind = kind("number", values::allowed(&range, show));
        let Some(found) = self.take(&defaulted(name, kind, show(default), meaning)) else {
            return default;
        };
        let read =
            read_number(&found.value).and_then(|number| within(number, &found.value, &range, show));
        self.usable(&found, read).unwrap_or(default)
    }

    /// Takes a flag: `true` or `false`.
    pub fn flag(&mut self, name: &'static str, default: bool, meaning: &'static str) -> bool {
        let key = defaulted(name, "boolean".to_owned(), default.to_string(), meaning);
        let Some(found) = self.take(&key) else { return default };
        self.usable(&found, read_flag(&found.value)).unwrap_or(default)
    }

    /// Takes one of a few strings. `words` are these strings, each with the value that is returned
    /// for it. If `default` is `None`, a file without the key has an error.
    pub fn choice<T: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        default: Option<T>,
        meaning: &'static str,
    ) -> Option<T> {
        let of_default = words.iter().find(|(_, value)| Some(*value) == default);
        let absent = match of_default {
            Some((word, _)) => Absent::same(quoted(word)),
            None => Absent::Required,
        };
        self.one_of(name, words, absent, meaning).or(default)
    }

    /// Takes one of a few strings, as [`Table::choice`] does. `otherwise` is the text about how the
    /// relay behaves without the key. Returns `None` if the key is absent or wrong.
    pub fn optional_choice<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        otherwise: String,
        meaning: &'static str,
    ) -> Option<T> {
        self.one_of(name, words, Absent::Optional(otherwise.into()), meaning)
    }

    /// Takes a key whose value is one of `words`. Returns `None` if the key is absent or wrong.
    fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        absent: Absent,
        meaning: &'static str,
    ) -> Option<T> {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let chosen = self.index_of(name, &known, absent, meaning)?;
        words.get(chosen).map(|(_, value)| *value)
    }

    /// Takes a key whose value is one of `words`, and returns its index.
    fn index_of(
        &mut self,
        name: &'static str,
        words: &[&'static str],
        absent: Absent,
        meaning: &'static str,
    ) -> Option<usize> {
        let found = self.take(&Key { name, kind: listed(words, " · "), absent, meaning })?;
        let allowed = listed(words, ", ");
        let unknown = |text: &str| match nearest(text, words.iter().copied()) {
            Some(near) => format!("is unknown, did you mean {near:?}? Allowed: {allowed}"),
            None => format!("is unknown, allowed: {allowed}"),
        };
        let read = self.cx.word(&found.value, &format!("one of {allowed}"), |text| {
            words.iter().position(|word| *word == text).ok_or_else(|| unknown(text))
        });
        self.usable(&found, read)
    }

    /// Takes a key whose value is a string, and parses the string. `parse` returns only the end of
    /// an error message, such as `is not IP:PORT, allowed: …`; this function puts the string in
    /// front of that end. Returns `None` if the key is absent or its value is wrong.
    pub fn word<T>(
        &mut self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.word(&found.value, "a string", parse))
    }

    /// Takes a key with a string value and a default, and parses the value as [`Table::word`] does.
    /// If the key is absent, `default` is parsed. The config reference prints `reference` as the
    /// default, or `default` itself if `reference` is `None`. Returns `None` if the value in the
    /// file is wrong, or if the key is absent and `parse` refuses `default`.
    pub fn word_or<T>(
        &mut self,
        (name, kind, meaning): (&'static str, &str, &'static str),
        default: &str,
        reference: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let literal = quoted(default);
        let reference = reference.map_or_else(|| literal.clone(), str::to_owned);
        let absent = Absent::Default(literal, reference);
        let Some(found) = self.take(&Key { name, kind: kind.to_owned(), absent, meaning }) else {
            return parse(default).ok();
        };
        self.usable(&found, self.cx.word(&found.value, "a string", parse))
    }

    /// Takes a key whose value is the path of a file. The content is not read here; the module
    /// `check` verifies later that the content is of the kind `content`. The path is returned even
    /// if the file is missing; this is recorded as a problem if `must_exist` is `true`. Returns
    /// `None` if the key is absent or its value is wrong.
    pub fn file(&mut self, key: Key, content: Content, must_exist: bool) -> Option<PathBuf> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.file(&found, content, must_exist))
    }

    /// Returns the value of a variable of the environment, which is not a part of the config file;
    /// `None` if it is not set.
    pub fn env(&self, name: &str) -> Option<String> {
        (self.cx.env)(name)
    }

    /// Takes a key whose value is the path of a directory, which need not exist. Returns `None` if
    /// the key is absent or its value is wrong.
    pub fn directory(&mut self, key: Key) -> Option<PathBuf> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.directory(&found))
    }

    /// Takes a key whose value is a string that may be a secret: no message shows it. The string
    /// may come from a file by `${file:…}`; if that file is missing, `check` is not called. Returns
    /// `None` if the key is absent or its value is wrong.
    pub fn secret(&mut self, key: Key, check: Check) -> Option<Template> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.secret(&found, check))
    }

    /// Takes a key whose value is an array of at least one string, and reads each string by `read`.
    /// Returns `None` if the key is absent, or if one of the strings is wrong.
    fn array<T>(&mut self, key: &Key, read: impl Fn(&Found<'a>) -> Read<T>) -> Option<Vec<T>> {
        let found = self.take(key)?;
        let elements = self.usable(&found, self.elements(&found))?;
        let mut values = Vec::new();
        for element in &elements {
            match read(element) {
                Ok(value) => values.push(value),
                Err(wrong) => self.cx.fail(element.at, &element.path, wrong),
            }
        }
        let is_whole = values.len() == elements.len();
        self.usable(&found, if is_whole { Ok(values) } else { Err(Wrong::Told) })
    }

    /// Returns the elements of an array, which must have at least one.
    fn elements(&self, found: &Found<'a>) -> Read<Vec<Found<'a>>> {
        let DeValue::Array(array) = &found.value else {
            return Err(other_type(&found.value, "an array of strings"));
        };
        if array.is_empty() {
            return Err(Wrong::Is("is empty, allowed: at least one".to_owned()));
        }
        let element = |(index, value): (usize, &Spanned<DeValue<'a>>)| {
            let path = format!("{}[{index}]", found.path);
            let element = Found { path, at: value.span().start, value: value.get_ref().clone() };
            self.cx.spots.borrow_mut().insert(element.path.clone(), element.at);
            element
        };
        Ok(array.iter().enumerate().map(element).collect())
    }

    /// Takes a key whose value is an array of at least one string, and parses each string as
    /// [`Table::word`] does. Returns `None` if the key is absent, or if one of the strings is
    /// wrong.
    pub fn words<T>(
        &mut self,
        key: Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let cx = self.cx;
        self.array(&key, |found| cx.word(&found.value, "a string", &parse))
    }

    /// Takes a key whose value is an array of at least one string, and checks each string. The
    /// error of `check` must be a whole sentence that names the string, because nothing is put in
    /// front of it. Returns `None` if the key is absent, or if one of the strings is wrong.
    pub fn texts(
        &mut self,
        key: Key,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<Vec<String>> {
        let cx = self.cx;
        self.array(&key, |found| {
            let text = cx.word(&found.value, "a string", |text| Ok(text.to_owned()))?;
            check(&text).map_err(Wrong::Is).map(|()| text)
        })
    }

    /// Takes a key whose value is an array of at least one string, and reads each string as
    /// [`Table::secret`] does. Returns `None` if the key is absent, or if one of the strings is
    /// wrong.
    pub fn secrets(&mut self, key: Key, check: Check) -> Option<Vec<Template>> {
        let cx = self.cx;
        self.array(&key, |found| cx.secret(found, check))
    }

    /// Takes a table whose keys the user chooses (`headers = { X-Scope = "a" }`), and whose values
    /// may be secrets. `declared` is the table's own name, its kind and its meaning. Each key is
    /// parsed by `parse_name`, and each value is checked by `check`. Returns an empty map if the
    /// table is absent. A wrong entry is left out of the map, and is recorded as a problem.
    pub fn secret_map(
        &mut self,
        declared: (&'static str, &str, &'static str),
        parse_name: Parse,
        check: Check,
    ) -> BTreeMap<String, Template> {
        let cx = self.cx;
        self.map(declared, parse_name, |found| cx.secret(found, check))
    }

    /// Takes a table whose keys the user chooses, and whose values are not secret. `declared` is
    /// the table's own name, its kind and its meaning. Each key is parsed by `parse_name`, and each
    /// value is parsed by `parse`, as [`Table::word`] does. Returns an empty map if the table is
    /// absent. A wrong entry is left out of the map, and is recorded as a problem.
    pub fn word_map(
        &mut self,
        declared: (&'static str, &str, &'static str),
        parse_name: Parse,
        parse: Parse,
    ) -> BTreeMap<String, String> {
        let cx = self.cx;
        self.map(declared, parse_name, |found| cx.word(&found.value, "a string", parse))
    }

    /// Takes a table whose keys the user chooses, such as `headers`. Each key is parsed by
    /// `parse_name`, and each value is read by `read`. Returns an empty map if the table is absent.
    /// A wrong entry is left out of the map, and is recorded as a problem.
    fn map<T>(
        &mut self,
        (name, kind, meaning): (&'static str, &str, &'static str),
        parse_name: Parse,
        read: impl Fn(&Found<'a>) -> Read<T>,
    ) -> BTreeMap<String, T> {
        let mut map = BTreeMap::new();
        let key = defaulted(name, kind.to_owned(), "{}".to_owned(), meaning);
        let Some(found) = self.take(&key) else { return map };
        let DeValue::Table(table) = &found.value else {
            self.unusable(&found, other_type(&found.value, kind));
            return map;
        };
        for (name, value) in table {
            let (name_at, name) = (name.span().start, name.get_ref());
            let path = format!("{}.{}", found.path, bare_or_quoted(name));
            let found = Found { path, at: value.span().start, value: value.get_ref().clone() };
            let value = read(&found);
            let parsed = match parse_name(name) {
                Ok(parsed) if map.contains_key(&parsed) => {
                    Err("is there twice: remove one (upper and lower case are the same)".to_owned())
                }
                parsed => parsed,
            };
            if let Err(why) = &parsed {
                let wrong = Wrong::Is(format!("{} {why}", quoted(name)));
                self.cx.fail(name_at, &found.path, wrong);
            }
            match (parsed, value) {
                (Ok(parsed), Ok(value)) => drop(map.insert(parsed, value)),
                (_, Err(wrong)) => self.cx.fail(found.at, &found.path, wrong),
                (Err(_), Ok(_)) => {}
            }
        }
        map
    }

    /// Returns `true` if no key is left in the table: the table was empty, or all of its keys were
    /// taken.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Accepts the key `other` as another spelling of the key `name`. If the file sets both keys,
    /// `other` stays in the table and is reported as unknown.
    pub fn rename(&mut self, other: &str, name: &str) {
        if !self.keys.contains_key(name)
            && let Some(value) = self.keys.remove(other)
        {
            self.keys.insert(name.to_owned(), value);
        }
    }

    /// Returns `true` if the file sets the key `name` to `true`. Use this if the default or meaning
    /// of a key depends on a flag that is read after that key. Call this function before the flag
    /// is taken out of this table for reading; after that, the result is always `false`.
    pub fn is_true(&self, name: &str) -> bool {
        self.keys.get(name).is_some_and(|(_, value)| value.get_ref().as_bool() == Some(true))
    }

    /// Returns the table `name` inside this table, ready for reading, and records its header. If
    /// `name` is an array of tables, `index` says which element is returned.
    fn child(&self, name: &str, index: Option<usize>, table: DeTable<'a>) -> Self {
        let mut path = self.path_of(name);
        if let Some(index) = index {
            path = format!("{path}[{index}]");
        }
        let section = match self.section.as_str() {
            "" => name.to_owned(),
            outer => format!("{outer}.{name}"),
        };
        let (open, close) = if index.is_some() { ("[[", "]]") } else { ("[", "]") };
        self.cx.items.borrow_mut().push(Item::Header(format!("{open}{section}{close}")));
        Self::new(self.cx, path, section, table)
    }

    /// Takes the section `[name]`, reads it by `read`, and returns the result. If the section is
    /// absent, an empty section is read, so that its keys have their defaults.
    pub fn section<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Self) -> T) -> T {
        let mut table = self.begin(name);
        let value = read(&mut table);
        table.refuse_rest(&|_| None);
        value
    }

    /// Takes the section `[name]`. Returns an empty section if it is absent or not a table.
    fn begin(&mut self, name: &'static str) -> Self {
        let table = match self.remove(name) {
            Some(Found { value: DeValue::Table(table), .. }) => table,
            Some(found) => {
                self.cx.fail(found.at, &found.path, other_type(&found.value, "a table"));
                DeTable::new()
            }
            None => DeTable::new(),
        };
        self.child(name, None, table)
    }

    /// Takes a section whose presence has a meaning, such as `[output.tls]`, reads it by `read`,
    /// and returns the result. Returns `None` if the section is absent, or is not a table. If
    /// `read` itself returns an `Option`, see [`whole`].
    pub fn optional_section<T>(
        &mut self,
        key: Key,
        read: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let found = self.take(&key)?;
        let table = found.value.as_table().cloned();
        let table = table.ok_or_else(|| other_type(&found.value, "a table"));
        let mut table =
            self.usable(&found, table).map(|table| self.child(key.name, None, table))?;
        let value = read(&mut table);
        table.refuse_rest(&|_| None);
        Some(value)
    }

    /// Takes all tables `[[name]]` out of this table, calls `read` for each of them, and returns
    /// the results. If there is no such table, an error is recorded, and the result is empty.
    pub fn sections<T>(&mut self, name: &'static str, read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let is_missing = !self.has_any(name);
        let values = self.sections_if_any(name, read);
        if is_missing {
            self.cx.error(name, format!("is required: one or more [[{name}]]"));
        }
        values
    }

    /// Returns `true` if the file sets `key` in the inner table `table` of this table. Use this if
    /// the default of a key depends on a table that is read after that key. Call this function
    /// before the inner table is taken out of this table for reading; after that, the result is
    /// always `false`.
    pub fn sets(&self, table: &str, key: &str) -> bool {
        let section = self.keys.get(table).and_then(|(_, value)| value.get_ref().as_table());
        section.is_some_and(|section| section.contains_key(key))
    }

    /// Returns `true` if the file has at least one table `[[name]]` in this table. A value that is
    /// not an array counts as one table. Call this function before the tables are taken out of this
    /// table for reading; after that, the result is always `false`.
    pub fn has_any(&self, name: &str) -> bool {
        let value = self.keys.get(name).map(|(_, value)| value.get_ref());
        value.is_some_and(|value| value.as_array().is_none_or(|array| !array.is_empty()))
    }

    /// Takes all tables `[[name]]` out of this table, calls `read` for each of them, and returns
    /// the results. If the file has no such table, the result is empty, and no error is recorded.
    pub fn sections_if_any<T>(
        &mut self,
        name: &'static str,
        read: impl FnMut(&mut Self) -> T,
    ) -> Vec<T> {
        let found = self.found_sections(name);
        self.read_tables(found, read)
    }

    fn found_sections(&mut self, name: &'static str) -> Tables<'a> {
        let kind = format!("one or more [[{name}]]");
        let tables = match self.remove(name) {
            Some(Found { value: DeValue::Array(array), .. }) => array.into_iter().collect(),
            Some(found) => {
                self.cx.fail(found.at, &found.path, other_type(&found.value, &kind));
                // The file has `[output]` instead of `[[output]]`. Its keys may have more problems.
                // With `[output.siem]` it has none of these keys, and one error is enough.
                let has_keys = found.value.as_table().is_some_and(|table| {
                    table.is_empty() || table.values().any(|value| !value.get_ref().is_table())
                });
                let one = has_keys.then(|| Spanned::new(found.at..found.at, found.value));
                one.into_iter().collect()
            }
            None => Vec::new(),
        };
        Tables { name, kind, tables }
    }

    /// Takes the key, whose value is a table or an array of tables, without reading these inner
    /// tables. The plain keys of this table can then be read first; [`Table::read_tables`] reads
    /// the inner tables after them. Returns `None` if the key is absent.
    pub fn found_tables(&mut self, key: Key) -> Option<Tables<'a>> {
        let (name, kind) = (key.name, key.kind.clone());
        let is_empty = |value: &DeValue<'_>| value.as_array().is_some_and(|array| array.is_empty());
        let found = self.remove(name);
        // The keys in the tables are declared, and printed, when the tables are read. Only an empty
        // array has to be printed here.
        self.declare(
            &key,
            found.as_ref().map(|found| &found.value).filter(|value| is_empty(value)),
        );
        let found = found?;
        let tables = if let DeValue::Array(array) = found.value {
            array.into_iter().collect()
        } else if found.value.is_table() {
            vec![Spanned::new(found.at..found.at, found.value)]
        } else {
            self.cx.fail(found.at, &found.path, other_type(&found.value, &kind));
            Vec::new()
        };
        Some(Tables { name, kind, tables })
    }

    /// Calls `read` for each of the tables that were taken before, and returns the results.
    pub fn read_tables<T>(
        &mut self,
        found: Tables<'a>,
        mut read: impl FnMut(&mut Self) -> T,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for (index, value) in found.tables.into_iter().enumerate() {
            let Some(mut table) = self.element(found.name, index, value, &found.kind) else {
                continue;
            };
            values.push(read(&mut table));
            table.refuse_rest(&|_| None);
        }
        values
    }

    /// Returns one element of the array of tables `name`. `None` if it is not a table, which is
    /// recorded as a problem; `allowed` is the end of the error message.
    fn element(
        &self,
        name: &str,
        index: usize,
        value: Spanned<DeValue<'a>>,
        allowed: &str,
    ) -> Option<Self> {
        let (at, path) = (value.span().start, format!("{}[{index}]", self.path_of(name)));
        let value = value.into_inner();
        let DeValue::Table(table) = value else {
            self.cx.fail(at, &path, other_type(&value, allowed));
            return None;
        };
        self.cx.spots.borrow_mut().insert(path, at);
        Some(self.child(name, Some(index), table))
    }

    /// Reports an error for each key that no call has taken, because the key is unknown. `explain`
    /// may return a better message for a key. If `explain` returns an empty message, the key is not
    /// reported.
    pub fn refuse_rest(&mut self, explain: &dyn Fn(&str) -> Option<String>) {
        for (name, (at, _)) in std::mem::take(&mut self.keys) {
            let message = explain(&name).unwrap_or_else(|| {
                let allowed = || self.known.join(", ");
                let shown = bare_or_quoted(&name);
                match nearest(&name, self.known.iter().copied()) {
                    Some(near) => {
                        self.cx.is_misspelt(&self.path_of(near));
                        format!("unknown key `{shown}`, did you mean `{near}`?")
                    }
                    None => format!("unknown key `{shown}`, allowed: {}", allowed()),
                }
            });
            if !message.is_empty() {
                self.cx.report(at, self.path_of(&name), message, Severity::Error);
            }
        }
    }
}
