//! The parts of the screen, from the top: the relay, the verdict, the flow of events, the last
//! hour, the table of outputs, the details of one output, and the keys.
//!
//! If the terminal is not high enough, first the chart of the last hour gets smaller or is left
//! out, then the details are cut, and then the table. The advice of findings is left out if it
//! needs too many lines, and columns of the table if the terminal is too narrow.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Cell, Chart, Dataset, GraphType, Paragraph, Row, Table, TableState};

use super::view::View;
use base::words::escape::message;
use base::words::{ago, bytes, grouped, latency, scaled, span, whole};
use telemetry::status::verdict::State;
use telemetry::status::{Address, Evidence, History, Output, Status, verdict};

/// The number of lines for the parts that do not depend on outputs, addresses and findings.
const FIXED_LINES: usize = 30;

/// The minimum and maximum lines of the chart of the last hour.
const CHART_LINES: (u16, u16) = (6, 10);

/// The minimum width of a table with all columns. A table of at least [`MEDIUM`] has most of them.
const WIDE: u16 = 110;
const MEDIUM: u16 = 90;

/// The width, in cells, of the bar that shows the fill of the queue.
const BAR_CELLS: u64 = 20;

/// The longest time that the chart shows, in seconds.
const HOUR: f64 = 3600.0;

/// The possible lengths of the chart, in seconds, while the history covers at most half an hour.
const SPANS: [f64; 3] = [300.0, 900.0, 1800.0];

const QUIET: Style = Style::new().fg(Color::DarkGray);
const ACCEPTED: Style = Style::new().fg(Color::Cyan);
const DELIVERED: Style = Style::new().fg(Color::Magenta);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

/// Returns the colour and the sign of a state. The sign is enough for a reader without colours.
fn look(state: State) -> (Style, &'static str) {
    match state {
        State::Good => (Style::new().fg(Color::Green), "✓"),
        State::Note => (Style::new().fg(Color::Blue), "i"),
        State::Warn => (Style::new().fg(Color::Yellow), "!"),
        State::Bad => (Style::new().fg(Color::Red), "✕"),
    }
}

/// Returns a height, in lines, that usually is enough for all parts.
pub fn height(view: &View) -> u16 {
    let Some(status) = &view.status else { return 3 };
    let addresses = view.shown_output().map_or(0, |it| it.addresses.len());
    let findings = status.verdict.as_ref().map_or(1, |it| it.findings.len());
    let rows = view.volume.as_ref().map_or(status.outputs.len(), Vec::len);
    let lines = FIXED_LINES + findings * 2 + rows + addresses;
    short(lines)
}

/// Draws a view into the whole frame.
pub fn draw(view: &View, frame: &mut Frame<'_>) {
    let area = frame.area();
    let Some(status) = &view.status else {
        frame.render_widget(Paragraph::new(unanswered(view)), area);
        return;
    };
    if view.help {
        help(frame, area);
        return;
    }
    let top = head(view, status, area.width, area.height / 3);
    let flow = flow(status, area.width);
    if let Some(table) = &view.volume {
        let table = [""].into_iter().chain(table.iter().map(String::as_str)).map(Line::from);
        let all: Vec<_> = top.into_iter().chain(flow).chain(table).collect();
        frame.render_widget(Paragraph::new(all), area);
        return;
    }
    let shown = view.shown_output();
    let details = shown.map(|it| details(it, area.width)).unwrap_or_default();
    let addresses = shown.map_or(0, |it| it.addresses.len() + 1);
    let lines = Lines {
        top: count(&top),
        flow: count(&flow),
        table: short(status.outputs.len()).saturating_add(1),
        details: count(&details).saturating_add(short(addresses)),
        chart: if view.history.is_some() { CHART_LINES.1 } else { 0 },
    };
    let [top_area, flow_area, title, chart, table, details_area, keys_area] =
        lines.fitted(area.height).areas(area);
    frame.render_widget(Paragraph::new(top), top_area);
    frame.render_widget(Paragraph::new(flow), flow_area);
    if let Some(history) = view.history.as_ref().filter(|_| !chart.is_empty()) {
        hour(history, status, frame, title, chart);
    }
    outputs_table(view, status, frame, table);
    if let Some(output) = shown {
        let [words, addresses] =
            Layout::vertical([Constraint::Length(count(&details)), Constraint::Min(0)])
                .areas(details_area);
        frame.render_widget(Paragraph::new(details), words);
        addresses_table(output, frame, addresses);
    }
    frame.render_widget(Paragraph::new(keys(view)), keys_area);
}

fn unanswered(view: &View) -> Vec<Line<'static>> {
    let first = Line::from(format!("kube-audit-forwarder · {}", view.url));
    let second = match &view.failure {
        Some(failure) => {
            let (style, sign) = look(State::Bad);
            Line::styled(format!("{sign} The relay does not respond: {failure}"), style)
        }
        None => Line::from("asking the relay …"),
    };
    vec![first, second]
}

/// The heights of the parts of the screen.
struct Lines {
    top: u16,
    flow: u16,
    /// The table of outputs and its head.
    table: u16,
    /// The details of one output and the table of its addresses; 0 if they are hidden.
    details: u16,
    /// The chart of the last hour without its title; 0 if there is none.
    chart: u16,
}

impl Lines {
    /// Shortens the parts to a terminal of this height: first the chart loses lines or is left out,
    /// then the details and the table lose lines, in this order.
    fn fitted(self, height: u16) -> Self {
        // The three are the blank lines before the flow and the table, and the line of keys.
        let used = self.top.saturating_add(self.flow).saturating_add(3);
        let free = height.saturating_sub(used);
        let table = self.table.min(free);
        let free = free - table;
        let details = if free > self.details { self.details } else { free.saturating_sub(1) };
        let free = free.saturating_sub(details + u16::from(details > 0));
        let chart = if free > CHART_LINES.0 { self.chart.min(free - 1) } else { 0 };
        Self { table, details, chart, ..self }
    }

    /// Returns the areas from top to bottom: relay and verdict, flow, the chart's title, chart,
    /// table, details, keys.
    fn areas(&self, area: Rect) -> [Rect; 7] {
        let length = Constraint::Length;
        let [top, _, flow, title, chart, _, table, _, details, _, keys] = Layout::vertical([
            length(self.top),
            length(1),
            length(self.flow),
            length(u16::from(self.chart > 0)),
            length(self.chart),
            length(1),
            length(self.table),
            length(u16::from(self.details > 0)),
            length(self.details),
            Constraint::Min(0),
            length(1),
        ])
        .areas(area);
        [top, flow, title, chart, table, details, keys]
    }
}

fn count(lines: &[Line<'_>]) -> u16 {
    short(lines.len())
}

fn short(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// Returns the lines about the relay and the findings. The findings have at most `lines_max` lines,
/// where a value below 3 counts as 3.
fn head(view: &View, status: &Status, width: u16, lines_max: u16) -> Vec<Line<'static>> {
    let memory = match status.process.memory_limit_bytes {
        Some(limit) => {
            format!("{} of {}", bytes(status.process.memory_bytes as f64), bytes(limit as f64))
        }
        None => bytes(status.process.memory_bytes as f64),
    };
    let mut facts = format!(
        " {} · version {} · up {} · memory {memory}",
        message(&status.process.host),
        message(&status.process.version),
        span(status.process.uptime_seconds as f64),
    );
    let name_width = "kube-audit-forwarder".len();
    if name_width + facts.chars().count() + view.url.chars().count() + 3 <= usize::from(width) {
        facts.push_str(&format!(" · {}", view.url));
    }
    if view.paused {
        facts.push_str(" · paused");
    }
    if view.has_restarted {
        facts.push_str(" · the relay has restarted");
    }
    let mut lines =
        vec![Line::from(vec![Span::styled("kube-audit-forwarder", STRONG), facts.into()])];
    if let Some(failure) = &view.failure {
        let since = span(view.silence.as_secs_f64());
        let (style, sign) = look(State::Bad);
        let text = format!(
            "{sign} The relay has not responded for {since} ({failure}). Everything below is older."
        );
        lines.extend(styled(&text, width, style));
    }
    lines.extend(findings(status, width, usize::from(lines_max.max(3))));
    lines
}

/// Returns the findings of the verdict, in at most `lines_max` lines.
fn findings(status: &Status, width: u16, lines_max: usize) -> Vec<Line<'static>> {
    let of = |with_advice: bool| {
        let mut lines = Vec::new();
        for finding in status.verdict.iter().flat_map(|verdict| &verdict.findings) {
            let (style, sign) = look(finding.state);
            let text = format!("{sign} {}", message(&finding.text));
            lines.extend(styled(&text, width, style.add_modifier(Modifier::BOLD)));
            if let Some(advice) = finding.advice.as_ref().filter(|_| with_advice) {
                lines.extend(styled(&format!("  {}", message(advice)), width, Style::new()));
            }
        }
        lines
    };
    let mut found = of(true);
    if found.len() > lines_max {
        found = of(false);
    }
    if found.len() > lines_max {
        found.truncate(lines_max - 1);
        let text = "  … and more: the terminal is too small for all findings";
        found.push(Line::styled(text, QUIET));
    }
    found
}

/// Wraps a text between words at `width` columns. Lines after the first are indented by two spaces.
fn styled(text: &str, width: u16, style: Style) -> Vec<Line<'static>> {
    let width = usize::from(width).max(20);
    let mut lines = Vec::new();
    let mut line: String = text.chars().take_while(|char| *char == ' ').collect();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, "  ".to_owned()));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines.into_iter().map(|line| Line::styled(line, style)).collect()
}

fn flow(status: &Status, width: u16) -> Vec<Line<'static>> {
    let mut lines = vec![incoming(status)];
    lines.extend(queue(status, width));
    lines.push(lost(status));
    lines.extend(apiservers(status));
    lines.extend(status.evidence.as_ref().map(evidence));
    lines
}

fn name(text: &'static str) -> Span<'static> {
    Span::styled(format!("{text:<8}"), QUIET)
}

fn incoming(status: &Status) -> Line<'static> {
    let last = match status.intake.last_event_seconds_ago {
        Some(seconds) => format!("last event {}", ago(seconds)),
        None => "no event since the start".to_owned(),
    };
    let mut refused = match status.intake.refused_429_per_second {
        Some(rate) if rate > 0.0 => format!(" · 429: {}/s", scaled(rate)),
        _ => String::new(),
    };
    let connections: u64 = status.intake.refused_connections.values().map(|it| it.count).sum();
    if connections > 0 {
        refused.push_str(&format!(" · {} connections refused", grouped(connections)));
    }
    let intake = &status.intake;
    let rates = intake.accepted_events_per_second.zip(intake.received_bytes_per_second);
    let events = match rates {
        Some((events, size)) => format!("{} events/s · {}/s", scaled(events), bytes(size)),
        None => "– events/s".to_owned(),
    };
    let input = format!(" · accepted {}{refused} · {last}", grouped(status.intake.accepted_events));
    Line::from(vec![name("in"), Span::styled(events, STRONG), input.into()])
}

fn queue(status: &Status, width: u16) -> Vec<Line<'static>> {
    let queue = &status.queue;
    let fill = queue.needed() as f64 / (queue.capacity_bytes as f64).max(1.0);
    let cells = whole(fill * BAR_CELLS as f64).min(BAR_CELLS);
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < cells { '█' } else { '░' }).collect();
    let state = if queue.full { State::Bad } else { State::Good };
    let held = format!(
        " {} % · {} of {} · {} events",
        scaled(fill * 100.0),
        bytes(queue.needed() as f64),
        bytes(queue.capacity_bytes as f64),
        grouped(queue.events),
    );
    let mut settings = message(&queue.kind);
    for (name, value) in
        [("acknowledge", &status.intake.acknowledge), ("when full", &queue.when_full)]
    {
        if let Some(value) = value {
            settings.push_str(&format!(" · {name} {}", message(value)));
        }
    }
    let mut line = Line::from(vec![name("queue"), Span::styled(bar, look(state).0), held.into()]);
    if line.width() + settings.chars().count() + 3 <= usize::from(width) {
        line.push_span(format!(" · {settings}"));
        return vec![line];
    }
    vec![line, Line::from(vec![name(""), settings.into()])]
}

fn lost(status: &Status) -> Line<'static> {
    let state = if status.losses.lost_events > 0 { State::Bad } else { State::Good };
    let mut lost = grouped(status.losses.lost_events);
    if status.losses.lost_events > 0 {
        let rate = status.losses.lost_events_per_second.unwrap_or_default();
        lost.push_str(&format!(" · now {}/s", scaled(rate)));
        if let Some(seconds) = status.losses.last_lost_seconds_ago {
            lost.push_str(&format!(" · the last one {}", ago(seconds)));
        }
    }
    Line::from(vec![name("lost"), Span::styled(lost, look(state).0)])
}

fn apiservers(status: &Status) -> Option<Line<'static>> {
    let ages = status.apiservers.iter().map(|it| it.last_heard_seconds_ago);
    let longest = ages.max_by(f64::total_cmp)?;
    let text = match status.apiservers.len() {
        1 => format!("1 kube-apiserver · last heard {}", ago(longest)),
        count => format!("{count} kube-apiservers · quietest last heard {}", ago(longest)),
    };
    Some(Line::from(vec![name("senders"), text.into()]))
}

fn evidence(evidence: &Evidence) -> Line<'static> {
    let checkpoint = match evidence.last_checkpoint_seconds_ago {
        Some(seconds) => format!("checkpoint {}", ago(seconds)),
        None => "no checkpoint since the start".to_owned(),
    };
    let mut text = format!("{} entries · {checkpoint}", grouped(evidence.size));
    for witness in &evidence.witnesses {
        let when = witness.last_seconds_ago.map_or_else(|| "not yet".to_owned(), ago);
        text.push_str(&format!(" · {} {when}", message(&witness.name)));
    }
    Line::from(vec![name("evidence"), " ".into(), text.into()])
}

/// Draws the last hour: the events accepted per second, and those that the slowest required output
/// has delivered per second.
fn hour(history: &History, status: &Status, frame: &mut Frame<'_>, title_area: Rect, area: Rect) {
    let now = status.process.time_seconds;
    // In the first minutes after startup, the chart of an hour would be nearly empty.
    let known = history.time_seconds.first().map_or(0.0, |first| now - first);
    let span = SPANS.into_iter().find(|span| *span >= known).unwrap_or(HOUR);
    let shown = if span < HOUR { format!("{:.0} min", span / 60.0) } else { "hour".to_owned() };
    let points = |values: &[Option<f64>]| -> Vec<(f64, f64)> {
        let times = history.time_seconds.iter().map(|time| time - now);
        let known = times.zip(values).filter_map(|(time, value)| value.map(|value| (time, value)));
        known.filter(|(time, _)| *time >= -span).collect()
    };
    let accepted = points(&history.accepted_events_per_second);
    let required = status.outputs.iter().filter(|it| it.required);
    let slowest = required.min_by_key(|it| it.counts.delivered_events);
    let delivered = slowest
        .and_then(|it| Some((message(&it.name), history.outputs.get(&it.name)?)))
        .map(|(name, it)| (name, points(&it.delivered_events_per_second)));
    let values = accepted.iter().chain(delivered.iter().flat_map(|(_, points)| points));
    // The axis ends at 1, 2 or 5 times a power of ten.
    let greatest = values.map(|(_, value)| *value).fold(1.0, f64::max);
    let power = 10_f64.powf(greatest.log10().floor());
    let mut ends = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power);
    let top = ends.find(|end| *end >= greatest).unwrap_or(1.0);
    let mut title = vec![
        Span::styled(format!("last {shown}, events/s: "), QUIET),
        Span::styled("accepted", ACCEPTED),
    ];
    let set =
        |style| Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(style);
    let mut sets = vec![set(ACCEPTED).data(&accepted)];
    if let Some((name, points)) = &delivered {
        sets.push(set(DELIVERED).data(points));
        title.push(Span::styled(format!(" · delivered by {name}"), DELIVERED));
    }
    frame.render_widget(Paragraph::new(Line::from(title)), title_area);
    let across = Axis::default()
        .bounds([-span, 0.0])
        .style(QUIET)
        .labels([format!("-{:.0} min", span / 60.0), "now".to_owned()]);
    let up = Axis::default().bounds([0.0, top]).style(QUIET).labels([
        "0".to_owned(),
        scaled(top / 2.0),
        scaled(top),
    ]);
    frame.render_widget(Chart::new(sets).x_axis(across).y_axis(up), area);
}

/// Returns the severity of an output's state, and the state in a few words.
fn state_words(it: &Output) -> (State, String) {
    if it.health.unsteady {
        return (it.trouble.unwrap_or(State::Warn), "unsteady".to_owned());
    }
    if verdict::is_down(it) {
        let since = it.health.down_seconds.map(span).unwrap_or_default();
        return (it.trouble.unwrap_or(State::Bad), format!("down for {since}"));
    }
    if !it.health.up {
        return (State::Note, "not connected yet".to_owned());
    }
    let bad = it.addresses.iter().filter(|it| verdict::is_passed_over(it)).count();
    let trials = it.addresses.iter().filter(|it| it.state == verdict::ON_TRIAL).count();
    let mut words = Vec::new();
    for (count, what) in [(bad, "down"), (trials, "on trial")] {
        if count > 0 {
            words.push(format!("{count} of {} {what}", it.addresses.len()));
        }
    }
    if verdict::is_dropping_all(it) {
        words.push("all filtered".to_owned());
    }
    if verdict::is_late(it) {
        words.push("late".to_owned());
    } else if verdict::is_growing(it) {
        words.push("backlog grows".to_owned());
    }
    match words.is_empty() {
        true => (it.trouble.unwrap_or(State::Good), "up".to_owned()),
        false => (State::Warn, format!("up, {}", words.join(", "))),
    }
}

fn outputs_table(view: &View, status: &Status, frame: &mut Frame<'_>, area: Rect) {
    let (is_wide, is_medium) = (area.width >= WIDE, area.width >= MEDIUM);
    // For each column: its head, its width (the minimum for the first column), `true` if it is
    // shown.
    let columns = [
        ("  OUTPUT", 12, true),
        ("TYPE", 13, is_medium),
        ("STATE", if is_medium { 24 } else { 17 }, true),
        ("EVENTS/S", 9, true),
        ("BACKLOG", if is_medium { 10 } else { 9 }, true),
        ("LAG", if is_medium { 10 } else { 8 }, true),
        ("P99", if is_medium { 9 } else { 7 }, true),
        ("RETRIES", 9, is_wide),
        ("LOST", 9, true),
    ];
    let numbers_from = 3;
    let shown = || columns.iter().enumerate().filter(|(_, (_, _, is_shown))| *is_shown);
    let head = shown().map(|(index, (name, _, _))| match index >= numbers_from {
        true => right((*name).to_owned()),
        false => Cell::from(*name),
    });
    let widths = shown().map(|(index, (_, width, _))| match index {
        0 => Constraint::Min(*width),
        _ => Constraint::Length(*width),
    });
    let rows = status.outputs.iter().map(|it| {
        let cells = output_cells(it).into_iter().zip(&columns);
        Row::new(cells.filter(|(_, (_, _, is_shown))| *is_shown).map(|(cell, _)| cell))
    });
    let table = Table::new(rows, widths)
        .header(Row::new(head).style(QUIET))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .column_spacing(1);
    let mut state = TableState::default().with_selected(view.selected_row(status));
    frame.render_stateful_widget(table, area, &mut state);
}

fn output_cells(it: &Output) -> [Cell<'static>; 9] {
    let (state, words) = state_words(it);
    let (style, sign) = look(state);
    let rate = it.counts.delivered_events_per_second.map_or_else(|| "–".to_owned(), scaled);
    let lag = match it.backlog.backlog_events > 0 && it.backlog.lag_seconds >= 1.0 {
        true => span(it.backlog.lag_seconds),
        false => "–".to_owned(),
    };
    let lost = match it.counts.lost_events {
        0 => right("0".to_owned()),
        lost => right(grouped(lost)).style(look(it.trouble.unwrap_or(State::Warn)).0),
    };
    let optional = if it.required { "" } else { " (optional)" };
    [
        Cell::from(Line::from(vec![
            Span::styled(format!("{sign} "), style),
            Span::from(message(&it.name)),
            Span::styled(optional, QUIET),
        ])),
        Cell::from(message(&it.kind)),
        Cell::from(words).style(style),
        right(rate),
        right(grouped(it.backlog.backlog_events)),
        right(lag),
        right(latency(it.counts.latency_p99_seconds)),
        right(grouped(it.counts.retries)),
        lost,
    ]
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// Returns more facts about one output than the table shows.
fn details(it: &Output, width: u16) -> Vec<Line<'static>> {
    let mut facts = vec![
        format!("delivered {}", grouped(it.counts.delivered_events)),
        format!("sent {}", bytes(it.counts.sent_bytes as f64)),
        format!("backlog {}", bytes(it.backlog.backlog_bytes as f64)),
        format!("retried {}", grouped(it.counts.retries)),
        format!("latency p50 {}", latency(it.counts.latency_p50_seconds)),
        format!("p99 {}", latency(it.counts.latency_p99_seconds)),
    ];
    if it.counts.existing_events > 0 {
        facts.push(format!("already existed {}", grouped(it.counts.existing_events)));
    }
    if it.counts.dead_letter_events > 0 {
        facts.push(format!("dead letters {}", grouped(it.counts.dead_letter_events)));
    }
    if let Some(aside) = &it.aside {
        facts.push(format!("set aside {}", grouped(aside.events)));
    }
    let filtered = it.counts.filtered.iter().filter(|(_, count)| **count > 0);
    facts
        .extend(filtered.map(|(action, count)| format!("{} {}", message(action), grouped(*count))));
    let errors: Vec<_> = errors(&it.counts.errors).collect();
    if !errors.is_empty() {
        facts.push(format!("errors: {}", errors.join(", ")));
    }
    if let Some(seconds) = it.health.next_retry_seconds {
        facts.push(format!("next retry in {}", span(seconds)));
    }
    let title = format!("{}: {}", message(&it.name), facts.join(" · "));
    let mut lines = styled(&title, width, Style::new());
    if let Some(error) = &it.health.last_error {
        let age = it.health.last_error_seconds_ago.map(|age| format!(", {}", ago(age)));
        let text = format!("{} (last error{})", message(error), age.unwrap_or_default());
        let style = if it.health.up { Style::new() } else { look(State::Bad).0 };
        lines.extend(styled(&text, width, style));
    }
    lines
}

/// Returns the error reasons with their counts, the most frequent one first.
fn errors(counts: &std::collections::BTreeMap<String, u64>) -> impl Iterator<Item = String> {
    let mut counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    counts.into_iter().map(|(reason, count)| format!("{} {}", message(reason), grouped(*count)))
}

fn addresses_table(it: &Output, frame: &mut Frame<'_>, area: Rect) {
    let known = |count: Option<u64>| count.map_or_else(|| "–".to_owned(), grouped);
    let row = |address: &Address| {
        let state = match verdict::is_passed_over(address) {
            true => State::Bad,
            false if address.state == verdict::ON_TRIAL => State::Warn,
            false if address.state == "unknown" => State::Note,
            false => State::Good,
        };
        let used = if address.used { "→ " } else { "  " };
        let all: Vec<_> = errors(&address.errors).collect();
        let age = address.last_error_seconds_ago.map(ago).unwrap_or_default();
        let cause = |text: &str| message(&verdict::cause(text));
        let last = address.last_error.as_deref().map(|text| format!("{}, {age}", cause(text)));
        Row::new([
            Cell::from(format!("{used}{}", message(&address.address))),
            Cell::from(message(&address.state)).style(look(state).0),
            right(address.state_seconds.map_or_else(|| "–".to_owned(), span)),
            right(known(address.requests)),
            right(address.sent_bytes.map_or_else(|| "–".to_owned(), |it| bytes(it as f64))),
            right(latency(address.latency_p50_seconds)),
            right(latency(address.latency_p99_seconds)),
            Cell::from(all.join(", ")),
            Cell::from(last.unwrap_or_default()),
        ])
    };
    let names =
        ["  ADDRESS", "STATE", "SINCE", "REQUESTS", "SENT", "P50", "P99", "ERRORS", "LAST ERROR"];
    let head = names.iter().enumerate().map(|(index, name)| match (2..7).contains(&index) {
        true => right((*name).to_owned()),
        false => Cell::from(*name),
    });
    let widths = [
        Constraint::Min(20),
        Constraint::Length(14),
        Constraint::Length(11),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Fill(1),
        Constraint::Fill(2),
    ];
    let table = Table::new(it.addresses.iter().map(row), widths)
        .header(Row::new(head).style(QUIET))
        .column_spacing(1);
    frame.render_widget(table, area);
}

fn keys(view: &View) -> Line<'static> {
    let pause = if view.paused { "continue" } else { "pause" };
    Line::styled(format!("q quit · ↑ ↓ select · Enter details · p {pause} · h help"), QUIET)
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let text = [
        "q, Esc, Ctrl-C   ends top",
        "↑ ↓, k j         select an output",
        "Enter            shows or hides the details of the selected output",
        "p, Space         pauses or resumes updates",
        "h, ?             shows or hides this text",
        "",
        "The table shows outputs in trouble first: ✕ needs action now, ! is worth a look.",
        "",
        "STATE     unsteady: it keeps failing and recovering",
        "EVENTS/S  events that the consumer has acknowledged, over the last minute",
        "BACKLOG   events that the consumer has not acknowledged yet",
        "LAG       the age of the oldest of them, if 1 s or more",
        "P99       1 in 100 recent events took longer from acceptance to acknowledgement",
        "RETRIES   attempts after the first",
        "LOST      events lost or refused for good since the relay's start",
        "SINCE     how long an address has been in its state; → marks the address used last",
    ];
    frame.render_widget(Paragraph::new(text.map(Line::from).to_vec()), area);
}
