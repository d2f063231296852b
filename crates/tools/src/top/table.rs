//! A table of text whose columns fit a width.

/// A column: its name, `true` if its cells are numbers, and the order in which columns are left out
/// if the width is too small: the greatest first, and 0 never.
pub(super) type Column = (&'static str, bool, u8);

/// Returns the lines of a table, the names of the columns first. If the table is wider than
/// `width`, columns are left out until it fits, and a last line names them.
pub(super) fn fitted(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let whole = |(index, (name, is_number, rank)): (usize, &Column)| {
        let cells = rows.iter().map(|row| row.get(index).map_or("", String::as_str));
        let cells: Vec<&str> = std::iter::once(*name).chain(cells).collect();
        let wide = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        (cells, wide, *is_number, *rank)
    };
    let mut shown: Vec<_> = columns.iter().enumerate().map(whole).collect();
    let mut worst = columns.iter().map(|column| column.2).max().unwrap_or(0);
    while worst > 0 && shown.iter().map(|(_, wide, ..)| wide + 2).sum::<usize>() > width + 2 {
        shown.retain(|(.., rank)| *rank < worst);
        worst -= 1;
    }
    let line = |row: usize| {
        let cells = shown.iter().map(|(cells, wide, is_number, _)| {
            let text = cells.get(row).copied().unwrap_or_default();
            if *is_number { format!("{text:>wide$}") } else { format!("{text:<wide$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<_> = (0..=rows.len()).map(line).collect();
    let left_out = columns.iter().filter(|column| column.2 > worst).map(|column| column.0.trim());
    let left_out: Vec<_> = left_out.collect();
    if !left_out.is_empty() {
        lines.push(format!("  not shown, the screen is too narrow: {}", left_out.join(", ")));
    }
    lines
}
