//! A table of text whose columns fit a width.

/// A column: its name, `true` if its cells are numbers, and the order in which columns are left out
/// if the width is too small: the greatest first, and 0 never.
pub(super) type Column = (&'static str, bool, u8);

/// Returns the lines of a table, the names of the columns first. If the table is wider than
/// `width`, columns are left out until it fits, and a last line names them.
pub(super) fn fitted(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let length = |text: &str| text.chars().count();
    let wide = |index: usize| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| length(cell));
        cells.chain([columns.get(index).map_or(0, |column| length(column.0))]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(wide).collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let rank = |index: &usize| columns.get(*index).map_or(0, |column| column.2);
    loop {
        let total: usize =
            shown.iter().filter_map(|index| widths.get(*index)).map(|it| it + 2).sum();
        let worst = shown.iter().copied().max_by_key(rank).filter(|index| rank(index) > 0);
        match worst.filter(|_| total > width + 2) {
            Some(worst) => shown.retain(|index| *index != worst),
            None => break,
        }
    }
    let line = |cell: &dyn Fn(usize) -> String| {
        let cells = shown.iter().map(|index| {
            let (text, width) = (cell(*index), widths.get(*index).copied().unwrap_or_default());
            match columns.get(*index).is_some_and(|column| column.1) {
                true => format!("{text:>width$}"),
                false => format!("{text:<width$}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let name = |index: usize| columns.get(index).map_or("", |column| column.0).to_owned();
    let mut lines = vec![line(&name)];
    lines.extend(rows.iter().map(|row| line(&|index| row.get(index).cloned().unwrap_or_default())));
    let left_out: Vec<_> = (0..columns.len()).filter(|index| !shown.contains(index)).collect();
    if !left_out.is_empty() {
        let names: Vec<_> =
            left_out.into_iter().map(|index| name(index).trim().to_owned()).collect();
        lines.push(format!("  not shown, the screen is too narrow: {}", names.join(", ")));
    }
    lines
}
