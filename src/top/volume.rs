//! The table of who causes the bytes that come in, for `top --by` and the command `volume`.

use crate::volume::Figures;
use crate::volume::Row;
use crate::words::bytes;
use crate::words::escape;
use crate::words::grouped;
use crate::words::scaled;
use crate::words::span;
use crate::words::whole;

/// The number of cells of the bar that shows a share.
const BAR_CELLS: f64 = 20.0;

/// Returns the lines of the table of a dimension, the heaviest names first, by bytes or by events.
/// They are safe for a terminal.
pub fn table(figures: &Figures, by: &str, by_events: bool) -> Vec<String> {
    let mut rows: Vec<_> = figures.by.get(by).into_iter().flat_map(|it| &it.rows).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(if by_events { row.events } else { row.bytes }));
    let line = |[share, error, bytes, events, bar]: [&str; 5], name: &str| {
        format!("{share:>8} {error:>8} {bytes:>10} {events:>13}  {bar:<20} {name}")
    };
    let row = |row: &Row| {
        let (value, error, all) = match by_events {
            true => (row.events, row.events_error, figures.events),
            false => (row.bytes, row.bytes_error, figures.bytes),
        };
        let part = |value: u64| value as f64 / all.max(1) as f64;
        let [share, error] =
            [value, error].map(|value| format!("{} %", scaled(part(value) * 100.0)));
        let cells = whole((part(value) * BAR_CELLS).min(BAR_CELLS));
        let bar: String = (0..cells).map(|_| '█').collect();
        let name = match &row.name[..] {
            [one] if !one.is_empty() => escape::message(one),
            parts => parts.iter().map(|it| escape::field(it, "")).collect::<Vec<_>>().join(" "),
        };
        line([&share, &error, &bytes(row.bytes as f64), &grouped(row.events), &bar], &name)
    };
    let summary = format!(
        "last {} · {} · {} events, of which {} were read",
        span(figures.seconds),
        bytes(figures.bytes as f64),
        grouped(figures.events),
        grouped(figures.read_events),
    );
    let head = line(["SHARE", "±", "BYTES", "EVENTS", ""], &by.to_uppercase());
    [summary, head].into_iter().chain(rows.into_iter().map(row)).collect()
}
