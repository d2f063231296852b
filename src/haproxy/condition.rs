//! Evaluates the condition of an `.if` or `.elif` line, as section 2.4 of HAProxy's configuration
//! manual describes. A part whose value depends on the machine on which HAProxy runs has no value.

use std::iter::Peekable;
use std::str::Chars;

/// How deep parentheses and exclamation marks may be nested. A condition that people write has two
/// or three; the bound keeps the stack small.
const DEPTH_MAX: u32 = 32;

/// The oldest version of HAProxy whose configs are migrated.
const VERSION: (u32, u32) = (2, 6);

/// Returns the value of a condition. `None` if the value depends on the machine on which HAProxy
/// runs, or if the condition cannot be read. `defines` says whether an environment variable is
/// defined, with `None` for "not known".
pub(super) fn value(text: &str, defines: impl Fn(&str) -> Option<bool>) -> Option<bool> {
    let mut parser = Parser { rest: text.chars().peekable(), defines: &defines };
    if text.trim().is_empty() {
        return Some(false);
    }
    let value = parser.any(DEPTH_MAX)?;
    parser.blanks();
    if parser.rest.peek().is_some() { None } else { value }
}

/// Reads a condition from the left to the right. Each method returns `None` if the text is no
/// condition, `Some(None)` if its value is not known, and `Some(Some(value))` otherwise.
struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    defines: &'a dyn Fn(&str) -> Option<bool>,
}

impl Parser<'_> {
    fn blanks(&mut self) {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {}
    }

    /// Takes an operator of two equal characters, `&&` or `||`, if it is next.
    fn operator(&mut self, c: char) -> bool {
        self.blanks();
        self.rest.next_if_eq(&c).is_some() && self.rest.next_if_eq(&c).is_some()
    }

    fn any(&mut self, depth: u32) -> Option<Option<bool>> {
        let mut value = self.all(depth)?;
        while self.operator('|') {
            let next = self.all(depth)?;
            value = match (value, next) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            };
        }
        Some(value)
    }

    fn all(&mut self, depth: u32) -> Option<Option<bool>> {
        let mut value = self.term(depth)?;
        while self.operator('&') {
            let next = self.term(depth)?;
            value = match (value, next) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            };
        }
        Some(value)
    }

    fn term(&mut self, depth: u32) -> Option<Option<bool>> {
        let depth = depth.checked_sub(1)?;
        self.blanks();
        if self.rest.next_if_eq(&'!').is_some() {
            return Some(self.term(depth)?.map(|value| !value));
        }
        if self.rest.next_if_eq(&'(').is_some() {
            let value = self.any(depth)?;
            self.blanks();
            return self.rest.next_if_eq(&')').map(|_| value);
        }
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(|&c| c.is_alphanumeric() || "_-.".contains(c)) {
            name.push(c);
        }
        if let Ok(number) = name.parse::<i64>() {
            return Some(Some(number != 0));
        }
        if name.is_empty() {
            return None;
        }
        let mut arguments = Vec::new();
        if self.rest.next_if_eq(&'(').is_some() {
            let text: String = self.rest.by_ref().take_while(|&c| c != ')').collect();
            arguments.extend(text.split(',').map(|argument| argument.trim().to_owned()));
        }
        Some(self.predicate(&name, &arguments))
    }

    /// Returns the value of a predicate; `None` if it is not known.
    fn predicate(&self, name: &str, arguments: &[String]) -> Option<bool> {
        let first = arguments.first()?;
        let both = || {
            let second = arguments.get(1)?;
            // A variable has its value only where HAProxy runs.
            let is_known = !first.contains("${env:") && !second.contains("${env:");
            is_known.then_some((first, second))
        };
        match name {
            "defined" => (self.defines)(first),
            "feature" if first == "OPENSSL" => Some(true),
            "streq" => both().map(|(a, b)| a == b),
            "strneq" => both().map(|(a, b)| a != b),
            "strstr" => both().map(|(a, b)| a.contains(b.as_str())),
            "version_atleast" => (version(first)? <= VERSION).then_some(true),
            "version_before" => (version(first)? <= VERSION).then_some(false),
            _ => None,
        }
    }
}

/// Returns the first two numbers of a version such as `2.8-dev3`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    Some((major, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_have_the_value_that_haproxy_gives_them_or_none() {
        for (text, expected) in [
            ("", Some(false)),
            ("0", Some(false)),
            ("1", Some(true)),
            ("!1", Some(false)),
            ("streq(a,a) && streq(a,b)", Some(false)),
            ("streq(a,b) || strneq(a,b) && strstr(abc,b)", Some(true)),
            ("!(streq(a,b) || 0)", Some(true)),
            ("defined(YES) && !defined(NO)", Some(true)),
            ("defined(OTHER)", None),
            ("0 && defined(OTHER)", Some(false)),
            ("1 || defined(OTHER)", Some(true)),
            ("feature(OPENSSL)", Some(true)),
            ("feature(LUA)", None),
            ("version_atleast(2.4-dev19)", Some(true)),
            ("version_atleast(3.0)", None),
            ("version_before(2.4)", Some(false)),
            ("streq(${env:A},a)", None),
            ("nonsense", None),
            ("1 1", None),
            ("(1", None),
        ] {
            let defines = |name: &str| match name {
                "YES" => Some(true),
                "NO" => Some(false),
                _ => None,
            };
            assert_eq!(value(text, defines), expected, "{text}");
        }
        assert_eq!(value(&"(".repeat(100_000), |_| None), None, "a deep nest");
    }
}
