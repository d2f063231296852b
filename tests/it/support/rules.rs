//! Reads the file of the alert rules, in which each key has its own line.

/// Returns the values of the lines whose key is `key`.
pub(crate) fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.trim_start_matches([' ', '-']).strip_prefix(key);
    yaml.lines().filter_map(value).map(str::trim).collect()
}
