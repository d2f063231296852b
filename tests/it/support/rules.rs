//! The file of the alerts' rules, in which each key has a line of its own.

/// Returns the values of `key` in the lines that have it.
pub(crate) fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.trim_start_matches([' ', '-']).strip_prefix(key);
    yaml.lines().filter_map(value).map(str::trim).collect()
}
