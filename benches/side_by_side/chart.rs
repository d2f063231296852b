//! The CPU time as a chart in SVG, with the colours of a light and of a dark theme.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::Arguments;
use crate::aims::Measured;
use crate::figures::{self, Spread};
use crate::proxy::{Mode, Route, Through};
use crate::report::{self, cpu, over};

// The layout, in pixels. Numbers are written without decimals, and the lines of one colour are one
// path, because the file is part of the documentation.
const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// The bars begin at `LEFT`, and the longest whisker ends at `RIGHT`.
const LEFT: f64 = 330.0;
const RIGHT: f64 = 860.0;
const ROW: f64 = 24.0;

const STYLE: &str = "
text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:18px;font-weight:600}
.part{font-size:14px;font-weight:600}.small{font-size:12px;fill:#59636e}.end{text-anchor:end}
.mid{text-anchor:middle}.page{fill:#fff}.grid{stroke:#d1d9e0}.whisker{stroke:#1f2328;fill:none}
.ours{stroke:#3b82d6}.proxy{stroke:#9aa4b0}.ours,.proxy{stroke-width:14}
@media (prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.page{fill:#0d1117}
.grid{stroke:#30363d}.whisker{stroke:#f0f6fc}.ours{stroke:#4a8fe0}.proxy{stroke:#6e7783}}
";

/// A row of the chart.
struct Bar {
    name: String,
    /// The CSS class that gives the bar its colour.
    class: &'static str,
    cpu: Spread,
}

/// Returns the chart of the first work that was measured.
pub(crate) fn svg(measured: &[Measured], arguments: &Arguments) -> String {
    let about = format!(
        "{} · {} · commit {} · {}",
        figures::now(),
        figures::cpu_model(),
        figures::commit(),
        report::haproxy(&arguments.haproxy),
    );
    let rounds = format!(
        "Medians of {} rounds. The thin lines go from the least to the most.",
        arguments.pairs
    );
    let mut body = String::new();
    let mut y = MARGIN + 14.0;
    text(&mut body, MARGIN, y, "title", "CPU seconds for each GB of audit events (less is better)");
    y += 20.0;
    text(&mut body, MARGIN, y, "small", &about);
    y += 18.0;
    text(&mut body, MARGIN, y, "small", &rounds);
    y += 24.0;
    let mut x = MARGIN;
    let legend = [("ours", "kube-audit-forwarder"), ("proxy", "other programs")];
    for (class, what) in legend {
        path(&mut body, class, &bar(x, y - 5.0, x + 12.0));
        text(&mut body, x + 18.0, y, "small", what);
        x += 170.0;
    }
    if let Some(Measured { throughput, .. }) = measured.first() {
        y += 34.0;
        let title = format!("{}, at saturation", throughput.work.name);
        text(&mut body, MARGIN, y, "part", &title);
        let rows = throughput.rows.iter().filter(|row| is_shown(row.through));
        let bars: Vec<Bar> =
            rows.map(|row| Bar::new(row.through, over(&row.samples, cpu))).collect();
        y = draw(&bars, &mut body, y + 12.0);
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>CPU seconds for each GB of audit events</title>\n<style>{STYLE}</style>\n\
         <path class=\"page\" d=\"M0 0h{WIDTH}v{height}H0\"/>\n{body}</svg>\n",
    )
}

/// Returns `true` if the chart shows this proxy. It does not show floors, gzip, filters, syslog,
/// any route after the first four, or the modes `Delivered` and `NoVolume`.
fn is_shown(through: Through) -> bool {
    match through {
        Through::Haproxy(_) => !through.name().contains("gzip"),
        Through::Buffering(_) => true,
        Through::Loop | Through::Floor => false,
        Through::Relay(route, mode) => {
            let is_shown_route = !route.is_further() && !matches!(route, Route::Syslog);
            let is_other_mode = mode.filters() || matches!(mode, Mode::Delivered | Mode::NoVolume);
            is_shown_route && !is_other_mode
        }
    }
}

impl Bar {
    fn new(through: Through, cpu: Spread) -> Self {
        let class = match through {
            Through::Relay(..) => "ours",
            Through::Haproxy(_) | Through::Buffering(_) | Through::Loop | Through::Floor => "proxy",
        };
        Self { name: through.name(), class, cpu }
    }
}

/// Draws the bars below `top`, and returns where they end.
fn draw(bars: &[Bar], to: &mut String, top: f64) -> f64 {
    let longest = bars.iter().map(|bar| bar.cpu.most).fold(0.0, f64::max);
    let at = |value: f64| LEFT + (RIGHT - LEFT) * value / longest;
    let bottom = top + ROW * bars.len() as f64;
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
        .into_iter()
        .find(|step| longest / step <= 8.0)
        .unwrap_or(longest);
    let (mut grid, mut tick) = (String::new(), 0.0);
    while tick <= longest {
        add(&mut grid, format_args!("M{:.0} {top:.0}V{bottom:.0}", at(tick)));
        let label = format!("{:.1}", tick).trim_end_matches(".0").to_owned();
        text(to, at(tick), bottom + 16.0, "small mid", &label);
        tick += step;
    }
    path(to, "grid", &grid);
    let (mut lines, mut whiskers) = (BTreeMap::<_, String>::new(), String::new());
    for (index, shown) in bars.iter().enumerate() {
        let middle = top + ROW * (index as f64 + 0.5);
        let Spread { median, least, most } = shown.cpu;
        text(to, LEFT - 10.0, middle + 5.0, "end", &shown.name);
        text(to, at(most) + 8.0, middle + 5.0, "", &format!("{median:.2}"));
        *lines.entry(shown.class).or_default() += &bar(LEFT, middle, at(median));
        whiskers += &bar(at(least), middle, at(most));
        for end in [least, most] {
            let top = middle - 4.0;
            add(&mut whiskers, format_args!("M{:.0} {top:.0}v8", at(end)));
        }
    }
    lines.iter().for_each(|(class, lines)| path(to, class, lines));
    path(to, "whisker", &whiskers);
    bottom + 16.0
}

fn add(to: &mut String, text: fmt::Arguments<'_>) {
    to.write_fmt(text).expect("a String takes everything");
}

fn text(to: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let text = escaped(text);
    add(to, format_args!("<text x=\"{x:.0}\" y=\"{y:.0}\"{class}>{text}</text>\n"));
}

fn path(to: &mut String, class: &str, lines: &str) {
    add(to, format_args!("<path class=\"{class}\" d=\"{lines}\"/>\n"));
}

/// Returns a horizontal line for a path.
fn bar(x: f64, y: f64, end: f64) -> String {
    format!("M{x:.0} {y:.0}H{end:.0}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
