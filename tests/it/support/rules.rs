//! Reads the file of the alert rules, in which each key has its own line.

/// Returns the values of the lines whose key is `key`.
pub(crate) fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.trim_start_matches([' ', '-']).strip_prefix(key);
    yaml.lines().filter_map(value).map(str::trim).collect()
}

/// Returns the rules with each duration (`[15m]`, `offset 1m`, `for: 3m`) this many times shorter.
/// Numbers without a unit stay.
pub(crate) fn faster(yaml: &str, times: u32) -> String {
    let mut text = String::new();
    let mut rest = yaml;
    while let Some(at) = rest.find(|it: char| it.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let end = from.find(|it: char| !it.is_ascii_digit()).unwrap_or(from.len());
        let (digits, after) = from.split_at(end);
        text.push_str(before);
        let unit = after.chars().next().and_then(|unit| match unit {
            's' => Some(1000),
            'm' => Some(60 * 1000),
            'h' => Some(3600 * 1000),
            _ => None,
        });
        let is_alone = before.ends_with(['[', ':', ' '])
            && !after.chars().nth(1).is_some_and(|it| it.is_alphanumeric() || it == '_');
        match (digits.parse::<u64>(), unit.filter(|_| is_alone)) {
            (Ok(number), Some(unit)) => {
                text.push_str(&format!("{}ms", number * unit / u64::from(times)));
                rest = after.split_at(1).1;
            }
            _ => {
                text.push_str(digits);
                rest = after;
            }
        }
    }
    text + rest
}

#[test]
fn durations_become_shorter_and_nothing_else_does() {
    let rule = "for: 3m\nexpr: a2m[6h:5m] offset 1m > 300 # 2 minutes, 90 s, p99s\n";
    let wanted = "for: 6000ms\nexpr: a2m[720000ms:10000ms] offset 2000ms > 300 \
                  # 2 minutes, 90 s, p99s\n";
    assert_eq!(faster(rule, 30), wanted);
}
