//! Texts for people: numbers, sizes and durations as on the status page, and safe texts.

pub mod escape;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Rounds to a whole number; NaN and numbers below 0 become 0.
#[expect(clippy::cast_possible_truncation, reason = "a cast from float to integer saturates")]
#[expect(clippy::cast_sign_loss, reason = "the value is not below 0")]
pub fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

/// Returns a number with a comma between groups of three digits: `1,234,567`.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a number with what is counted: `1 line`, `2000 lines`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Returns the same with a comma between groups of three digits: `2,000 lines`.
pub fn counted_in_groups(number: u64, one: &str, many: &str) -> String {
    if number == 1 { counted(1, one, many) } else { format!("{} {many}", grouped(number)) }
}

/// Returns a rate or a share: with one decimal, with two below 0.1, or without one for 0 and from
/// 99.95 on. What is not 0 is never shown as 0.
pub fn scaled(value: f64) -> String {
    match value.max(0.0) {
        value if value == 0.0 || value >= 99.95 => grouped(whole(value)),
        value if value < 0.005 => "< 0.01".to_owned(),
        value if value < 0.095 => format!("{value:.2}"),
        value => format!("{value:.1}"),
    }
}

/// Returns a number of bytes: `1.5 MiB`.
pub fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = value.max(0.0);
    let mut unit = 0;
    while value >= 1023.5 && unit < units.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    let number = if unit == 0 { grouped(whole(value)) } else { scaled(value) };
    format!("{number} {}", units[unit])
}

/// Returns a duration in its two largest units: `1 d 2 h`, `3 min 4 s`, `5 s`.
pub fn span(seconds: f64) -> String {
    let seconds = whole(seconds);
    let (size, unit, rest, rest_unit) = match seconds {
        DAY.. => (DAY, "d", HOUR, "h"),
        HOUR.. => (HOUR, "h", MINUTE, "min"),
        MINUTE.. => (MINUTE, "min", 1, "s"),
        _ => return format!("{seconds} s"),
    };
    match (seconds % size) / rest {
        0 => format!("{} {unit}", seconds / size),
        rest => format!("{} {unit} {rest} {rest_unit}", seconds / size),
    }
}

/// Returns a short duration: `850 µs`, `12 ms`, `3.4 s`. `–` if it is unknown.
pub fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => "–".to_owned(),
        Some(seconds) if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) if seconds < 100.0 => format!("{seconds:.1} s"),
        Some(seconds) => span(seconds),
    }
}

/// Returns the word with the smallest edit distance from `text`. The greatest allowed distance is a
/// third of the characters of `text`, and at least 1.
pub fn nearest<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let typos_max = (text.chars().count() / 3).max(1);
    let typos = |word: &str| strsim::damerau_levenshtein(text, word);
    let near = words.into_iter().map(|word| (typos(word), word));
    near.filter(|(typos, _)| *typos <= typos_max).min().map(|(_, word)| word)
}

/// Returns the age of something: `just now`, `5 s ago`.
pub fn ago(seconds: f64) -> String {
    if seconds < 1.0 { "just now".to_owned() } else { format!("{} ago", span(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_on_the_page() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1000, 1_234_567].map(grouped)[..]);
        assert_eq!(["0", "0.5", "99.9", "100"], [0.0, 0.5, 99.9, 99.96].map(scaled)[..]);
        assert_eq!(["< 0.01", "0.01", "0.09", "0.1"], [1e-9, 0.012, 0.094, 0.095].map(scaled)[..]);
        let lines = |count| counted(count, "line", "lines");
        assert_eq!(["0 lines", "1 line", "2000 lines"], [0, 1, 2000].map(lines)[..]);
        assert_eq!(
            ["0 B", "1,023 B", "1.0 KiB", "1.5 MiB"],
            [0.0, 1023.0, 1024.0, 1_572_864.0].map(bytes)[..]
        );
        assert_eq!(
            ["0 s", "59 s", "1 min", "1 min 1 s", "2 h", "1 d 2 h"],
            [0.2, 59.0, 60.0, 61.0, 7200.0, 93_600.0].map(span)[..]
        );
        assert_eq!(
            ["–", "850 µs", "12 ms", "3.4 s", "2 min"],
            [None, Some(0.00085), Some(0.012), Some(3.4), Some(120.0)].map(latency)[..]
        );
    }
}
