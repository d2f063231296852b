//! Reads the text format of Prometheus (version 0.0.4), in which kube-apiserver and the relays
//! serve their metrics.
//!
//! A [`Reader`] takes the text in parts of any size and keeps only the wanted families of metrics.
//! kube-apiserver serves tens of megabytes, of which the reader keeps a few kilobytes. The reader
//! checks every line, even of other families. Otherwise an error page, or text that was cut off
//! within a line, would look like metrics without the wanted families. Timestamps, the exemplars of
//! OpenMetrics and a byte order mark at the beginning are accepted and ignored.
//!
//! Memory is bounded for any text: by the length of a line, the number of kept series, and the
//! bytes of their labels.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// The maximum number of bytes of a line. A series of kube-apiserver has at most a few hundred.
const LINE_MAX: usize = 64 << 10;

/// The maximum number of kept series. Most wanted families have about ten series; the largest has
/// one for each host and status of kube-apiserver's own requests.
const SERIES_MAX: usize = 10_000;

/// The maximum number of bytes of the names and values of all kept labels. 10,000 series of
/// kube-apiserver's own requests have about 1 MiB.
const LABELS_MAX: usize = 4 << 20;

/// The UTF-8 byte order mark, which some editors and shells write at the beginning of a file.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The reason why a text is not in the Prometheus format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The number of the first wrong line, from 1 on.
    pub line: u64,
    /// The fault, as the end of a message.
    pub what: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not Prometheus metrics: line {} {}", self.line, self.what)
    }
}

/// The labels of a series: each name with its value.
pub type Labels = BTreeMap<String, String>;

/// The kept series, by the name of their family.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    families: HashMap<String, BTreeMap<Labels, f64>>,
}

impl Exposition {
    /// Reads a whole text and keeps the families with these names.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the text is not in the format.
    pub fn parse(text: &[u8], wanted: &[String]) -> Result<Self, Fault> {
        let mut reader = Reader::new(wanted.to_vec());
        reader.feed(text)?;
        reader.finish()
    }

    /// Returns the series of a family, or none if the text has no such family.
    pub fn family<'e>(&'e self, name: &str) -> impl Iterator<Item = (&'e Labels, f64)> + use<'e> {
        self.families.get(name).into_iter().flatten().map(|(labels, value)| (labels, *value))
    }
}

/// Reads a text part by part.
#[derive(Debug, Default)]
pub struct Reader {
    wanted: Vec<String>,
    /// The beginning of an incomplete line.
    begun: Vec<u8>,
    lines: u64,
    series: usize,
    /// The bytes of the kept labels.
    label_bytes: usize,
    found: Exposition,
}

impl Reader {
    /// Makes a reader that keeps the families with these names.
    pub fn new(wanted: Vec<String>) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Reads the next part of the text.
    ///
    /// # Errors
    ///
    /// [`Fault`]: a line is not in the format. The reader must not be used again.
    pub fn feed(&mut self, mut part: &[u8]) -> Result<(), Fault> {
        while let Some(end) = memchr::memchr(b'\n', part) {
            let (line, rest) = part.split_at(end);
            part = rest.get(1..).unwrap_or_default();
            if self.begun.is_empty() {
                self.line(line)?;
            } else {
                self.begin(line)?;
                let line = std::mem::take(&mut self.begun);
                self.line(&line)?;
            }
        }
        self.begin(part)
    }

    /// Ends the text. A last line without a line break is read as a line.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the last line is not in the format.
    pub fn finish(mut self) -> Result<Exposition, Fault> {
        let last = std::mem::take(&mut self.begun);
        self.line(&last)?;
        Ok(self.found)
    }

    /// Keeps a part of an incomplete line.
    fn begin(&mut self, part: &[u8]) -> Result<(), Fault> {
        if self.begun.len() + part.len() > LINE_MAX {
            return Err(Fault { line: self.lines + 1, what: "is longer than 64 KiB" });
        }
        self.begun.extend_from_slice(part);
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.lines += 1;
        let at = self.lines;
        let fault = |what| Fault { line: at, what };
        if line.len() > LINE_MAX {
            return Err(fault("is longer than 64 KiB"));
        }
        let line = if at == 1 { line.strip_prefix(MARK).unwrap_or(line) } else { line };
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(());
        }
        let line = std::str::from_utf8(line).map_err(|_| fault("is not UTF-8"))?;
        let mut scanner = Scanner { rest: line };
        let name = scanner.name(true).ok_or_else(|| fault("does not begin with a name"))?;
        let is_wanted = self.wanted.iter().any(|wanted| wanted == name);
        let mut labels = Labels::new();
        if scanner.skip('{') {
            let mut take = |name: &str, value: String| labels.insert(name.to_owned(), value);
            scanner.labels(is_wanted, &mut take).map_err(fault)?;
        }
        let value = scanner.number().ok_or_else(|| fault("has no number after the name"))?;
        scanner.end().map_err(fault)?;
        if !is_wanted {
            return Ok(());
        }
        if self.series == SERIES_MAX {
            return Err(fault("is the 10001st series of the families that are read"));
        }
        self.series += 1;
        let bytes = |(name, value): (&String, &String)| name.len() + value.len();
        self.label_bytes += labels.iter().map(bytes).sum::<usize>();
        if self.label_bytes > LABELS_MAX {
            return Err(fault("is where the labels that are read have more than 4 MiB"));
        }
        let family = self.found.families.entry(name.to_owned()).or_default();
        match family.insert(labels, value) {
            None => Ok(()),
            Some(_) => Err(fault("has a series that was there before: save one scrape in a file")),
        }
    }
}

/// The unread rest of a line.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    /// Removes blanks and then `char`. Returns `false` if `char` does not follow.
    fn skip(&mut self, char: char) -> bool {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let rest = self.rest.strip_prefix(char);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Removes a name and returns it. `colons` is `true` for a family, whose name may have colons,
    /// and `false` for a label. `None` if no name follows.
    fn name(&mut self, colons: bool) -> Option<&'a str> {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let is_of_name =
            |char: char| char.is_ascii_alphanumeric() || char == '_' || colons && char == ':';
        let end = self.rest.find(|char| !is_of_name(char)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        let is_name = !name.is_empty() && !name.starts_with(|char: char| char.is_ascii_digit());
        is_name.then_some(name)
    }

    /// Removes labels up to the closing brace. If `is_wanted` is `false`, the labels are only
    /// checked. `take` stores a label and returns the value that this name already had, if any.
    fn labels(
        &mut self,
        is_wanted: bool,
        take: &mut dyn FnMut(&str, String) -> Option<String>,
    ) -> Result<(), &'static str> {
        while !self.skip('}') {
            let name = self.name(false).ok_or("has braces without the name of a label")?;
            if !self.skip('=') || !self.skip('"') {
                return Err("has a label without a value in quotes");
            }
            let value = self.quoted(is_wanted).ok_or("has a quote without an end")?;
            if is_wanted && take(name, value).is_some() {
                return Err("has a label twice");
            }
            if !self.skip(',') && !self.rest.starts_with('}') {
                return Err("has a label that is followed by neither a comma nor a brace");
            }
        }
        Ok(())
    }

    /// Removes a text up to its closing quote. Returns the text without its escapes, or an empty
    /// text if it is not wanted. `None` if there is no closing quote.
    fn quoted(&mut self, is_wanted: bool) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((index, char)) = chars.next() {
            let char = match char {
                '"' => {
                    self.rest = self.rest.get(index + 1..)?;
                    return Some(text);
                }
                '\\' => match chars.next()?.1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    // The format has no other escapes. The backslash is kept, as in Prometheus, so
                    // that two values that differ only in a backslash stay different.
                    other => {
                        if is_wanted {
                            text.push('\\');
                        }
                        other
                    }
                },
                other => other,
            };
            if is_wanted {
                text.push(char);
            }
        }
        None
    }

    fn number(&mut self) -> Option<f64> {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let end = self.rest.find([' ', '\t']).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        number.parse().ok()
    }

    /// Checks the end of a line, which may have a timestamp or an exemplar.
    fn end(&mut self) -> Result<(), &'static str> {
        if !self.is_at_end() && !self.rest.starts_with('#') && self.number().is_none() {
            return Err("has something else than a timestamp after its value");
        }
        if self.is_at_end() {
            return Ok(());
        }
        let is_exemplar = self.skip('#') && self.skip('{');
        if !is_exemplar {
            return Err("has something else than an exemplar after its value");
        }
        self.labels(false, &mut |_, _| None)?;
        let has_value = self.number().is_some();
        let has_time = self.is_at_end() || self.number().is_some();
        match has_value && has_time && self.is_at_end() {
            true => Ok(()),
            false => Err("has a wrong exemplar"),
        }
    }

    fn is_at_end(&mut self) -> bool {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Vec<String> {
        vec!["a".to_owned(), "b:c".to_owned()]
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn lines_are_read_whatever_their_blanks_labels_and_ends_are() {
        for (line, wanted_labels, value) in [
            ("a 1", &[][..], 1.0),
            ("  a\t\t1.5e3 1700000000000\r", &[], 1500.0),
            ("a{} 7", &[], 7.0),
            ("a{x=\"\"} 0", &[("x", "")], 0.0),
            ("a { x = \"1\" , y=\"2\", } 3", &[("x", "1"), ("y", "2")], 3.0),
            (r#"a{x="q\"b\\n\n}"} 1"#, &[("x", "q\"b\\n\n}")], 1.0),
            (r#"a{x="C:\temp",y="\u00e9"} 1"#, &[("x", r"C:\temp"), ("y", r"\u00e9")], 1.0),
            ("\u{feff}a 5", &[], 5.0),
            ("\u{feff}# HELP a b\na 5", &[], 5.0),
            (
                "a{host=\"[::1]:6443\",code=\"<error>\"} 2",
                &[("code", "<error>"), ("host", "[::1]:6443")],
                2.0,
            ),
            ("a 4 # {trace_id=\"x\"} 0.3", &[], 4.0),
            ("a 4 1700000000.1 # {} 0.3 1700000000.1", &[], 4.0),
            ("a +Inf", &[], f64::INFINITY),
        ] {
            let found = Exposition::parse(line.as_bytes(), &wanted()).unwrap();
            let series: Vec<_> = found.family("a").collect();
            assert_eq!(series, [(&labels(wanted_labels), value)], "{line}");
        }
    }

    #[test]
    fn only_the_asked_families_are_kept() {
        let text = b"# HELP a \"x\n# TYPE a counter\na{x=\"1\"} 1\na{x=\"2\"} 2\nz 3\nz 3\n\nb:c 4\n# EOF\n";
        let found = Exposition::parse(text, &wanted()).unwrap();
        assert_eq!(found.family("a").map(|(_, value)| value).sum::<f64>(), 3.0);
        assert_eq!(found.family("b:c").map(|(_, value)| value).collect::<Vec<_>>(), [4.0]);
        assert_eq!((found.family("z").count(), found.family("y").count()), (0, 0));
    }

    #[test]
    fn a_text_that_is_no_exposition_is_told_with_its_line() {
        for (text, line, what) in [
            ("<html>", 1, "name"),
            ("{\"kind\":\"Status\"}", 1, "name"),
            ("a 1\n\nerror: no such host\n", 3, "name"),
            ("a", 1, "number"),
            ("a one", 1, "number"),
            ("a 1 x", 1, "timestamp"),
            ("a 1 2 3", 1, "exemplar"),
            ("a 1 # {} x", 1, "exemplar"),
            ("a{x=\"1\" y=\"2\"} 1", 1, "comma"),
            ("a{x=1} 1", 1, "quotes"),
            ("a{x=\"1} 1", 1, "without an end"),
            ("a{1=\"1\"} 1", 1, "label"),
            ("a{x=\"1\",x=\"2\"} 1", 1, "twice"),
            ("z{x=\"1\"", 1, "comma"),
            ("z{x=\"1\\", 1, "without an end"),
            ("a 1\na 2", 2, "before"),
            ("1a 1", 1, "name"),
            ("a 1\n\u{feff}b:c 1", 2, "name"),
            ("\u{feff}\u{feff}a 1", 1, "name"),
        ] {
            let fault = Exposition::parse(text.as_bytes(), &wanted()).unwrap_err();
            assert_eq!(fault.line, line, "{text}: {fault}");
            assert!(fault.what.contains(what), "{text}: {fault}");
        }
        let fault = Exposition::parse(b"a 1\na{x=\"\xff\"} 1", &wanted()).unwrap_err();
        assert_eq!(fault, Fault { line: 2, what: "is not UTF-8" });
    }

    #[test]
    fn lines_series_and_the_bytes_of_all_labels_have_a_limit() {
        let long = vec![b'a'; LINE_MAX + 1];
        for text in [long.clone(), [&long, b"\n".as_slice()].concat()] {
            assert_eq!(Exposition::parse(&text, &[]).unwrap_err().what, "is longer than 64 KiB");
        }
        let series = |name: &str, count: usize, value: &str| -> String {
            (0..count).map(|n| format!("{name}{{n=\"{n}{value}\"}} 1\n")).collect()
        };
        let many = series("a", SERIES_MAX + 1, "");
        assert_eq!(Exposition::parse(many.as_bytes(), &wanted()).unwrap_err().line, 10_001);
        // 68 times 60 KiB are below 4 MiB, and a family that is not read takes nothing of them.
        let value = "x".repeat(60 << 10);
        let text = series("z", 100, &value) + &series("a", 68, &value);
        assert_eq!(Exposition::parse(text.as_bytes(), &wanted()).unwrap().family("a").count(), 68);
        let fault = Exposition::parse(series("a", 100, &value).as_bytes(), &wanted()).unwrap_err();
        assert!(fault.line == 69 && fault.what.contains("4 MiB"), "{fault}");
    }

    #[test]
    fn the_parts_in_which_a_text_comes_change_nothing() {
        let text = b"\xef\xbb\xbfa{x=\"1\"} 1\n# c\nz 3 # {} 1\na{x=\"\\\"\"} 2\r\nb:c 4";
        let whole = Exposition::parse(text, &wanted()).unwrap();
        for size in 1..text.len() {
            let mut reader = Reader::new(wanted());
            text.chunks(size).for_each(|part| reader.feed(part).unwrap());
            assert_eq!(reader.finish().unwrap(), whole, "{size}");
        }
    }

    #[test]
    fn changed_bytes_never_panic() {
        let text = b"a{x=\"1\",y=\"\\n\"} 1 12 # {z=\"1\"} 1 1\nb:c 4\n".to_vec();
        for index in 0..text.len() {
            for byte in [0, b'\n', b'"', b'\\', b'{', b'}', b' ', b'#', 0xc3, 0xff] {
                let mut text = text.clone();
                text[index] = byte;
                drop(Exposition::parse(&text, &wanted()));
                drop(Exposition::parse(&text[..index], &wanted()));
            }
        }
    }
}
