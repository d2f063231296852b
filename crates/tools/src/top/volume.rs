//! The table of users or resources that cause the received bytes, for `top --by` and `volume`.

use base::words::{bytes, counted_in_groups, escape, grouped, scaled, span, whole};
use transform::volume::report::{Figures, Row};

/// The width, in cells, of the bar that shows a share.
const BAR_CELLS: f64 = 20.0;

/// Returns the table of a dimension, one text for each line, the names with the most bytes first.
/// The texts are safe for a terminal.
pub fn table(figures: &Figures, by: &str) -> Vec<String> {
    let summary = format!(
        "last {} · {} · {}, of which {} read",
        span(figures.seconds),
        bytes(figures.bytes as f64),
        counted_in_groups(figures.events, "event", "events"),
        counted_in_groups(figures.read_events, "was", "were"),
    );
    let line = |[share, error, bytes, events, bar, name]: [&str; 6]| {
        format!("{share:>8} {error:>8} {bytes:>10} {events:>13}  {bar:<20} {name}")
    };
    let row = |row: &Row| {
        let part = |bytes: u64| bytes as f64 / figures.bytes.max(1) as f64;
        let percent = |bytes: u64| format!("{} %", scaled(part(bytes) * 100.0));
        let cells = whole((part(row.bytes) * BAR_CELLS).min(BAR_CELLS));
        let bar: String = (0..cells).map(|_| '█').collect();
        let name: Vec<_> = row.name.iter().map(|part| escape::field(part, "")).collect();
        let (share, error) = (percent(row.bytes), percent(row.bytes_error));
        let (bytes, events) = (bytes(row.bytes as f64), grouped(row.events));
        line([&share, &error, &bytes, &events, &bar, &name.join(" ")])
    };
    let rows = figures.by.get(by).map_or(&[][..], |it| &it.rows[..]);
    let head = line(["SHARE", "±", "BYTES", "EVENTS", "", &by.to_uppercase()]);
    [summary, head].into_iter().chain(rows.iter().map(row)).collect()
}
