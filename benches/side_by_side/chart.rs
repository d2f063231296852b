//! The CPU time as a chart in SVG, with the colours of a light and of a dark theme.

use std::fmt::Write as _;

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

// The layout, in pixels.
const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// The bars begin at `LEFT`, and the longest whisker ends at `RIGHT`.
const LEFT: f64 = 330.0;
const RIGHT: f64 = 860.0;
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;

const STYLE: &str = "
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 18px; font-weight: 600; } .part { font-size: 14px; font-weight: 600; }
  .small { font-size: 12px; fill: #59636e; } .end { text-anchor: end; } .mid { text-anchor: middle; }
  .page { fill: #ffffff; } .grid { stroke: #d1d9e0; } .whisker { stroke: #1f2328; fill: none; }
  .ours { fill: #3b82d6; } .proxy { fill: #9aa4b0; } .floor { fill: #59a66a; }
  .earlier { fill-opacity: 0.35; stroke-dasharray: 4 3; stroke: #59636e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .small { fill: #9198a1; } .page { fill: #0d1117; }
    .grid { stroke: #30363d; } .whisker { stroke: #f0f6fc; } .earlier { stroke: #9198a1; }
    .ours { fill: #4a8fe0; } .proxy { fill: #6e7783; } .floor { fill: #4d9160; }
  }
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
        rectangle(&mut body, x, y - 11.0, 12.0, 12.0, class);
        text(&mut body, x + 18.0, y, "small", what);
        x += 170.0;
    }
    for part in &parts {
        y = part.draw(&mut body, y + 34.0);
    }
    let height = y + MARGIN;
    let mut description = format!("{about}. {rounds}");
    for Part { title, bars, .. } in &parts {
        let bars: Vec<String> =
            bars.iter().map(|bar| format!("{} {}", bar.name, bar.figure())).collect();
        write!(description, " {title}: {}.", bars.join("; ")).expect("a String takes everything");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title desc\">\n\
         <title id=\"title\">CPU seconds for each GB of audit events</title>\n\
         <desc id=\"desc\">{}</desc>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n",
        escaped(&description)
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
        let mut tick = 0.0;
        while tick <= self.most {
            line(to, "grid", [at(tick), top, at(tick), bottom]);
            let label = format!("{:.1}", tick).trim_end_matches(".0").to_owned();
            text(to, at(tick), bottom + 16.0, "small mid", &label);
            tick += step;
        }
        for (index, bar) in self.bars.iter().enumerate() {
            let middle = top + ROW * (index as f64 + 0.5);
            let Spread { median, least, most } = bar.cpu;
            text(to, LEFT - 10.0, middle + 4.5, "end", &bar.name);
            rectangle(to, LEFT, middle - BAR / 2.0, at(median) - LEFT, BAR, bar.class);
            line(to, "whisker", [at(least), middle, at(most), middle]);
            for end in [least, most] {
                line(to, "whisker", [at(end), middle - 4.0, at(end), middle + 4.0]);
            }
            text(to, at(most) + 8.0, middle + 4.5, "", &bar.figure());
        }
        bottom + 16.0
    }
}

fn text(to: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = escaped(text);
    writeln!(to, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>")
        .expect("a String takes everything");
}

fn rectangle(to: &mut String, x: f64, y: f64, width: f64, height: f64, class: &str) {
    writeln!(
        to,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         class=\"{class}\"/>"
    )
    .expect("a String takes everything");
}

fn line(to: &mut String, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
    writeln!(
        to,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    )
    .expect("a String takes everything");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
