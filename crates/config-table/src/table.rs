//! Tables of the config file: a key is declared by the call that takes it out of its table.
//!
//! One declaration (name, kind, default, allowed values, meaning) yields the typed value, each
//! problem with its line and column, the line of the effective config, and the row of the
//! reference. The kind of a key is the type of its values. A key that no call has taken is unknown,
//! and is reported as such.
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
use super::problem::{Content, Need, Severity};
use super::reader::{
    Context, Entry, Found, Item, Read, Wrong, other_type, read_count, read_flag, read_number,
    read_size, read_time, within,
};
use super::template::Template;
use super::values;
use super::values::{Range, bounds};
use base::words::nearest;

/// The declaration of a config key, with the texts that the config reference prints. Outside of
/// this file, a `Key` is made by [`required`], [`optional`] or [`derived`].
pub struct Key {
    name: &'static str,
    /// The kind of the values, with their range: `size, at least 1KiB`.
    kind: String,
    absent: Absent,
    meaning: &'static str,
}

/// The `kind` of a key that is a section of its own, such as `[output.tls]`.
pub const TABLE: &str = "table";

/// The treatment of a key that the file does not set.
enum Absent {
    Required,
    /// There is no default. The text says how the relay behaves instead, such as `in memory`.
    Optional(Cow<'static, str>),
    /// The default as TOML, and as the config reference prints it.
    Default(String, String),
}

impl Absent {
    fn same(default: String) -> Self {
        Self::Default(default.clone(), default)
    }
}

/// A function that parses a string. An error is the end of a message that begins with the string.
pub type Parse = fn(&str) -> Result<String, String>;

/// A function that checks a possible secret. An error is the end of a message without the string.
pub type Check = fn(&str) -> Result<(), String>;

/// Declares a required key. `kind` names the kind of its values, such as `host:port`.
pub fn required(name: &'static str, kind: &str, meaning: &'static str) -> Key {
    Key { name, kind: kind.to_owned(), absent: Absent::Required, meaning }
}

/// Declares a key without a default. `otherwise` is a text such as `no authentication`.
pub fn optional(
    name: &'static str,
    kind: &str,
    otherwise: &'static str,
    meaning: &'static str,
) -> Key {
    Key { name, kind: kind.to_owned(), absent: Absent::Optional(otherwise.into()), meaning }
}

fn defaulted(name: &'static str, kind: String, default: String, meaning: &'static str) -> Key {
    Key { name, kind, absent: Absent::same(default), meaning }
}

/// Declares a key for a size whose default depends on other keys. `default` is the default with
/// this config, if there is one; `reference` is the text in the config reference.
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

/// Returns a size as TOML: `"64MiB"`, or `1000` without quotes for a number of bytes.
fn size_literal(size: u64) -> String {
    let shown = values::show_size(size);
    if shown.parse::<u64>().is_ok() { shown } else { quoted(&shown) }
}

/// Converts the result of [`Table::optional_section`], so that `?` stops only at a section with a
/// problem: `None` (no section) becomes `Some(None)`, and `Some(None)` (a problem) becomes `None`.
pub fn whole<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    section.map_or(Some(None), |read| read.map(Some))
}

/// One table of the config file while it is being read.
///
/// Each method that reads a key also declares the key for the config reference, and takes it out of
/// the table. If the value is wrong, the method records the problem with its position, and returns
/// the default or `None`. Reading then continues, so that one run reports every problem. A default
/// in the place of a wrong value does no harm, because a config with an error is never used. After
/// a table was read, each key that is left in it is reported as unknown.
///
/// In the methods, `meaning` is the text about the key in the config reference, and `otherwise`
/// says how the relay behaves without the key. A method without a default returns `None` if the key
/// is absent or its value is wrong.
///
/// The order of the calls is the order of the keys in the effective config and in the reference.
/// Plain keys come before sections: in TOML, a key after `[output.tls]` belongs to that section.
pub struct Table<'c, 'a> {
    /// The records of reading this file. All tables of the file share them.
    pub cx: &'c Context<'a>,
    /// The path with indices: `output[0].tls`. It is empty for the whole file.
    pub path: String,
    /// The path without indices: `output.tls`.
    section: String,
    /// The keys that no call has taken yet, each with the byte position of its name.
    keys: BTreeMap<String, (usize, Spanned<DeValue<'a>>)>,
    /// The keys that a call has asked for, even if the table does not contain them.
    known: Vec<&'static str>,
}

/// Inner tables that were taken out, but are not read yet: see [`Table::found_tables`].
pub struct Tables<'a> {
    name: &'static str,
    kind: String,
    /// The values of the key. One that is not a table is reported only when the tables are read.
    pub tables: Vec<Spanned<DeValue<'a>>>,
}

impl<'c, 'a> Table<'c, 'a> {
    /// Makes the table of the whole file.
    pub fn root(cx: &'c Context<'a>, table: DeTable<'a>) -> Self {
        Self::new(cx, String::new(), String::new(), table)
    }

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

    /// Returns `true` if the file sets the key, and the key was taken already.
    pub fn is_set(&self, name: &str) -> bool {
        self.cx.is_set(&self.path_of(name))
    }

    /// Records an error of the key `name` that is not about the key's value alone, such as a
    /// contradiction. Call this method only after the key was taken. The position is that of the
    /// value, or else of the innermost table around the key.
    pub fn error(&self, name: &str, message: impl Into<String>) {
        self.cx.error(&self.path_of(name), message);
    }

    /// Records a warning about the key `name`, at the position that [`Table::error`] would use.
    pub fn warn(&self, name: &str, message: impl Into<String>) {
        let path = self.path_of(name);
        self.cx.problem_at(&path, &path, message, Severity::Warning);
    }

    /// Takes the key out of the table, and records it as known, with its position.
    fn remove(&mut self, name: &'static str) -> Option<Found<'a>> {
        self.known.push(name);
        let (_, value) = self.keys.remove(name)?;
        let path = self.path_of(name);
        let at = value.span().start;
        self.cx.record(&path, at, value.get_ref());
        Some(Found { path, at, value: value.into_inner() })
    }

    /// Records a key for the effective config and the config reference. `found` is `None` if the
    /// file does not set the key, or if [`Table::read_tables`] prints the value elsewhere.
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

    /// Takes the key and declares it. If it is required, its absence is recorded as a problem.
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

    /// Returns the value that was read. After an error, records the problem and returns `None`. The
    /// methods below are compiled for each type and parser, so they are short: everything that does
    /// not depend on the type is in functions that are compiled once.
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
        let shown = quoted(&values::show_time(default));
        self.time_with(name, (default, shown), range, meaning)
    }

    /// Takes a time whose default depends on other keys. `shown` is the default's text in the
    /// config reference.
    pub fn time_with(
        &mut self,
        name: &'static str,
        (default, shown): (Duration, String),
        range: impl RangeBounds<Duration>,
        meaning: &'static str,
    ) -> Duration {
        let absent = Absent::Default(quoted(&values::show_time(default)), shown);
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

    /// Takes one of `words`, and returns its value. Without a `default`, the key is required.
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

    /// Takes one of a few strings, as [`Table::choice`] does, without a default.
    pub fn optional_choice<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        otherwise: String,
        meaning: &'static str,
    ) -> Option<T> {
        self.one_of(name, words, Absent::Optional(otherwise.into()), meaning)
    }

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

    /// Takes a string and parses it. An error of `parse` is only the end of a message, such as `is
    /// not IP:PORT, allowed: …`; the string is put in front of it.
    pub fn word<T>(
        &mut self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.word(&found.value, "a string", parse))
    }

    /// Takes a string and parses it as [`Table::word`] does. If the key is absent, parses
    /// `default`. `None` only if the value is wrong. The config reference prints `reference`, or
    /// else `default`.
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

    /// Takes the path of a file that must exist. The command `check` verifies later that the file
    /// contains `content`. The path is returned even if the file is missing.
    pub fn file(&mut self, key: Key, content: Content) -> Option<PathBuf> {
        self.file_if(key, content, Need::Start)
    }

    /// Does what [`Table::file`] does, but `need` says whether the relay starts without the file.
    pub fn file_if(&mut self, key: Key, content: Content, need: Need) -> Option<PathBuf> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.file(&found, content, need))
    }

    /// Returns the value of an environment variable, which is not a part of the config file.
    pub fn env(&self, name: &str) -> Option<String> {
        (self.cx.env)(name)
    }

    /// Takes the path of a directory, which need not exist.
    pub fn directory(&mut self, key: Key) -> Option<PathBuf> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.directory(&found))
    }

    /// Takes a string that no message may show, because it may be a secret. It may come from a file
    /// by `${file:…}`; if that file is missing, `check` is not called.
    pub fn secret(&mut self, key: Key, check: Check) -> Option<Template> {
        let found = self.take(&key)?;
        self.usable(&found, self.cx.secret(&found, check))
    }

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
            self.cx.record(&element.path, element.at, &element.value);
            element
        };
        Ok(array.iter().enumerate().map(element).collect())
    }

    /// Takes an array of at least one string, and parses each as [`Table::word`] does.
    pub fn words<T>(
        &mut self,
        key: Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let cx = self.cx;
        self.array(&key, |found| cx.word(&found.value, "a string", &parse))
    }

    /// Takes an array of at least one string, and checks each. An error of `check` must be a whole
    /// sentence that names the string, because nothing is put in front of it. If the string has a
    /// `${…}`, this sentence is not shown.
    pub fn texts(
        &mut self,
        key: Key,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<Vec<String>> {
        let cx = self.cx;
        self.array(&key, |found| {
            let text = cx.word(&found.value, "a string", |text| Ok(text.to_owned()))?;
            let wrong = |why| Wrong::Is(cx.without_secrets(&found.path, why));
            check(&text).map_err(wrong).map(|()| text)
        })
    }

    /// Takes an array of at least one string, and reads each as [`Table::secret`] does.
    pub fn secrets(&mut self, key: Key, check: Check) -> Option<Vec<Template>> {
        let cx = self.cx;
        self.array(&key, |found| cx.secret(found, check))
    }

    /// Takes a table whose keys the user chooses (`headers = { X-Scope = "a" }`), and whose values
    /// may be secrets. `declared` is the table's own name, kind and meaning. `parse_name` parses
    /// each key. A wrong entry is left out, and recorded as a problem. An absent table is empty.
    pub fn secret_map(
        &mut self,
        declared: (&'static str, &str, &'static str),
        parse_name: Parse,
        check: Check,
    ) -> BTreeMap<String, Template> {
        let cx = self.cx;
        self.map(declared, parse_name, |found| cx.secret(found, check))
    }

    /// Does what [`Table::secret_map`] does for values that are not secret, parsed as by
    /// [`Table::word`].
    pub fn word_map(
        &mut self,
        declared: (&'static str, &str, &'static str),
        parse_name: Parse,
        parse: Parse,
    ) -> BTreeMap<String, String> {
        let cx = self.cx;
        self.map(declared, parse_name, |found| cx.word(&found.value, "a string", parse))
    }

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
            self.cx.record(&found.path, found.at, &found.value);
            let value = read(&found);
            let parsed = match parse_name(name) {
                Ok(parsed) if map.contains_key(&parsed) => {
                    Err("appears twice: remove one (upper and lower case are the same)".to_owned())
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

    /// Returns `true` if every key of the table was taken.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Accepts the key `other` as a spelling of `name`. If both are set, `other` is unknown.
    pub fn rename(&mut self, other: &str, name: &str) {
        if !self.keys.contains_key(name)
            && let Some(value) = self.keys.remove(other)
        {
            self.keys.insert(name.to_owned(), value);
        }
    }

    /// Returns `true` if the file sets the flag `name` to `true` and the flag was not taken yet. A
    /// key that depends on the flag, but is read before the flag, needs this method.
    pub fn is_true(&self, name: &str) -> bool {
        self.keys.get(name).is_some_and(|(_, value)| value.get_ref().as_bool() == Some(true))
    }

    /// Returns the table `name`, or its element with this index, and records the table's header.
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

    /// Takes the section `[name]`, and calls `read` with it. If it is absent, `read` gets an empty
    /// one.
    pub fn section<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Self) -> T) -> T {
        let mut table = self.begin(name);
        let value = read(&mut table);
        table.refuse_rest(&|_| None);
        value
    }

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

    /// Takes a section whose presence has a meaning, such as `[output.tls]`, and calls `read` with
    /// it. If `read` itself returns an `Option`, see [`whole`].
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

    /// Takes all tables `[[name]]` and calls `read` for each. At least one is required.
    pub fn sections<T>(&mut self, name: &'static str, read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let is_missing = !self.has_any(name);
        let values = self.sections_if_any(name, read);
        if is_missing {
            self.cx.error(name, format!("is required: one or more [[{name}]]"));
        }
        values
    }

    /// Returns `true` if the file sets `key` in the inner table `table` and that table was not
    /// taken yet. A key that depends on the table, but is read before the table, needs this method.
    pub fn sets(&self, table: &str, key: &str) -> bool {
        let section = self.keys.get(table).and_then(|(_, value)| value.get_ref().as_table());
        section.is_some_and(|section| section.contains_key(key))
    }

    /// Returns `true` if the file has at least one table `[[name]]`. A value that is not an array
    /// counts as one table. After the tables were taken, the result is always `false`.
    pub fn has_any(&self, name: &str) -> bool {
        let value = self.keys.get(name).map(|(_, value)| value.get_ref());
        value.is_some_and(|value| value.as_array().is_none_or(|array| !array.is_empty()))
    }

    /// Takes all tables `[[name]]`, if there are any, and calls `read` for each of them.
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
                // If it is `[output.siem]`, it has only inner tables, and one error is enough.
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

    /// Takes the inner table, or the array of inner tables, that `key` names, but does not read it
    /// yet. The caller can then read the plain keys of `self` first, and after them the inner
    /// tables with [`Table::read_tables`].
    pub fn found_tables(&mut self, key: Key) -> Option<Tables<'a>> {
        let (name, kind) = (key.name, key.kind.clone());
        let is_empty = |value: &DeValue<'_>| value.as_array().is_some_and(|array| array.is_empty());
        let found = self.remove(name);
        // Only an empty array is printed here: tables declare their keys when they are read.
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
            self.unusable(&found, other_type(&found.value, &kind));
            Vec::new()
        };
        Some(Tables { name, kind, tables })
    }

    /// Calls `read` for each of the tables that [`Table::found_tables`] returned.
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

    /// Returns one element of the array of tables `name`; `allowed` ends an error message.
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

    /// Reports each key that no call has taken as unknown. `explain` may return a better message
    /// for a key; a key with an empty message is not reported.
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
