//! The CPU time as a chart in SVG, with the colours of a light and of a dark theme.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::Arguments;
use crate::aims::Measured;
use crate::figures::{self, Spread};
use crate::fixed;
use crate::proxy::{Mode, Through};
use crate::report::{self, cpu, over};

/// The rate of the second part, in events per second.
const RATE: u32 = 100_000;
const RATE_TEXT: &str = "100,000";

/// Figures of 2026-11-20 for the same job, which this bench does not measure: the name, and the
/// least and the greatest CPU s/GB. They are from docs/concepts/comparison.md.
const EARLIER: [(&str, f64, f64); 3] = [
    ("kube-audit-forwarder of that day", 0.9, 0.9),
    ("Fluent Bit 5.1", 23.0, 24.0),
    ("Vector 0.57", 41.0, 57.0),
];

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
.ours{stroke:#3b82d6}.proxy{stroke:#9aa4b0}.floor{stroke:#59a66a}
.ours,.proxy,.floor{stroke-width:14}.earlier{stroke-opacity:.35}
@media (prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.page{fill:#0d1117}
.grid{stroke:#30363d}.whisker{stroke:#f0f6fc}.ours{stroke:#4a8fe0}.proxy{stroke:#6e7783}
.floor{stroke:#4d9160}}
";

/// A row of the chart.
struct Bar {
    name: String,
    /// The CSS class that gives the bar its colour.
    class: &'static str,
    cpu: Spread,
}

/// Bars with a common scale.
struct Part {
    title: String,
    bars: Vec<Bar>,
    /// The value at [`RIGHT`].
    most: f64,
}

/// Returns the chart of the first work that was measured.
pub(crate) fn svg(measured: &[Measured], arguments: &Arguments) -> String {
    let parts = parts(measured);
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
    let legend =
        [("ours", "kube-audit-forwarder"), ("proxy", "other programs"), ("floor", "floors")];
    for (class, what) in legend {
        path(&mut body, class, &bar(x, y - 5.0, x + 12.0));
        text(&mut body, x + 18.0, y, "small", what);
        x += 170.0;
    }
    for part in &parts {
        y = part.draw(&mut body, y + 34.0);
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>CPU seconds for each GB of audit events</title>\n<style>{STYLE}</style>\n\
         <path class=\"page\" d=\"M0 0h{WIDTH}v{height}H0\"/>\n{body}</svg>\n",
    )
}

fn parts(measured: &[Measured]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut add = |title: String, bars: Vec<Bar>| {
        if !bars.is_empty() {
            parts.push(Part { title, bars, most: 0.0 });
        }
    };
    if let Some(Measured { throughput, fixed, .. }) = measured.first() {
        let name = throughput.work.name;
        let rows = throughput.rows.iter().filter(|row| is_shown(row.through));
        let bars = rows.map(|row| Bar::new(row.through, over(&row.samples, cpu)));
        add(format!("{name}, at saturation"), bars.collect());
        let rows = fixed.rows.iter().filter(|row| row.events == RATE && is_shown(row.through));
        let bars = rows.map(|row| Bar::new(row.through, over(&row.samples, fixed::cpu)));
        add(format!("{name}, at {RATE_TEXT} events/s"), bars.collect());
    }
    // The measured parts have a common scale.
    let most = parts.iter().map(Part::longest).fold(0.0, f64::max);
    parts.iter_mut().for_each(|part| part.most = most);
    let bars = EARLIER.map(|(name, least, most)| {
        let class = if name.starts_with("kube") { "ours earlier" } else { "proxy earlier" };
        Bar { name: name.to_owned(), class, cpu: Spread { median: least, least, most } }
    });
    let title = "not of this run, but of 2026-11-20: http → tcp lines, disk (another scale)";
    let earlier = Part { title: title.to_owned(), bars: bars.into(), most: 0.0 };
    parts.push(Part { most: earlier.longest(), ..earlier });
    parts
}

/// Returns `true` if the chart shows this proxy. It does not show gzip, any route after the first
/// four, or the modes `Delivered` and `NoVolume`.
fn is_shown(through: Through) -> bool {
    match through {
        Through::Haproxy(_) => !through.name().contains("gzip"),
        Through::Buffering(_) | Through::Loop | Through::Floor => true,
        Through::Relay(route, mode) => {
            !route.is_further() && !matches!(mode, Mode::Delivered | Mode::NoVolume)
        }
    }
}

impl Bar {
    fn new(through: Through, cpu: Spread) -> Self {
        let class = match through {
            Through::Haproxy(_) | Through::Buffering(_) => "proxy",
            Through::Loop | Through::Floor => "floor",
            Through::Relay(..) => "ours",
        };
        Self { name: through.name(), class, cpu }
    }

    fn figure(&self) -> String {
        let Spread { median, least, most } = self.cpu;
        if self.class.ends_with("earlier") && least < most {
            format!("{least} to {most}")
        } else if self.class.ends_with("earlier") {
            median.to_string()
        } else {
            format!("{median:.2}")
        }
    }
}

impl Part {
    fn longest(&self) -> f64 {
        self.bars.iter().map(|bar| bar.cpu.most).fold(0.0, f64::max)
    }

    /// Draws the part below `y`, and returns where it ends.
    fn draw(&self, to: &mut String, y: f64) -> f64 {
        text(to, MARGIN, y, "part", &self.title);
        let at = |value: f64| LEFT + (RIGHT - LEFT) * value / self.most;
        let top = y + 12.0;
        let bottom = top + ROW * self.bars.len() as f64;
        let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
            .into_iter()
            .find(|step| self.most / step <= 8.0)
            .unwrap_or(self.most);
        let (mut grid, mut tick) = (String::new(), 0.0);
        while tick <= self.most {
            add(&mut grid, format_args!("M{:.0} {top:.0}V{bottom:.0}", at(tick)));
            let label = format!("{:.1}", tick).trim_end_matches(".0").to_owned();
            text(to, at(tick), bottom + 16.0, "small mid", &label);
            tick += step;
        }
        path(to, "grid", &grid);
        let (mut bars, mut whiskers) = (BTreeMap::<_, String>::new(), String::new());
        for (index, shown) in self.bars.iter().enumerate() {
            let middle = top + ROW * (index as f64 + 0.5);
            let Spread { median, least, most } = shown.cpu;
            text(to, LEFT - 10.0, middle + 5.0, "end", &shown.name);
            text(to, at(most) + 8.0, middle + 5.0, "", &shown.figure());
            *bars.entry(shown.class).or_default() += &bar(LEFT, middle, at(median));
            whiskers += &bar(at(least), middle, at(most));
            for end in [least, most] {
                let top = middle - 4.0;
                add(&mut whiskers, format_args!("M{:.0} {top:.0}v8", at(end)));
            }
        }
        bars.iter().for_each(|(class, lines)| path(to, class, lines));
        path(to, "whisker", &whiskers);
        bottom + 16.0
    }
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
