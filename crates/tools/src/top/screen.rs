//! The parts of the screen, from the top: the relay, the verdict, the flow of events, the table of
//! outputs, and the details of each output in trouble.

use super::table::{Column, fitted};
use super::view::View;
use base::words::escape::message;
use base::words::{ago, bytes, counted_in_groups, grouped, latency, scaled, span, whole};
use telemetry::status::verdict::{Finding, Kind, State};
use telemetry::status::{Address, Evidence, Output, Status, verdict};

/// The width, in cells, of the bar that shows the fill of the queue.
const BAR_CELLS: u64 = 20;

/// Returns the sign of a state.
fn sign(state: State) -> &'static str {
    match state {
        State::Good => "✓",
        State::Note => "i",
        State::Warn => "!",
        State::Bad => "✕",
    }
}

/// Returns the lines of the screen. Texts are wrapped at `width` columns, and tables fit it.
pub fn lines(view: &View, width: usize) -> Vec<String> {
    let Some(status) = &view.status else { return unanswered(view) };
    let mut lines = head(view, status, width);
    lines.push(String::new());
    lines.extend(flow(status, width));
    lines.push(String::new());
    if let Some(table) = &view.volume {
        lines.extend_from_slice(table);
        return lines;
    }
    lines.extend(outputs(status, width));
    let in_trouble = |it: &&Output| matches!(it.trouble, Some(State::Bad | State::Warn));
    for output in status.outputs.iter().filter(in_trouble) {
        lines.push(String::new());
        lines.extend(details(output, width));
        if !output.addresses.is_empty() {
            lines.extend(addresses(output, width));
        }
    }
    lines
}

fn unanswered(view: &View) -> Vec<String> {
    let second = match &view.failure {
        Some((failure, _)) => {
            format!("{} The relay does not respond: {failure}", sign(State::Bad))
        }
        None => "asking the relay …".to_owned(),
    };
    vec![format!("kube-audit-forwarder · {}", view.url), second]
}

/// Returns the lines about the relay and the findings.
fn head(view: &View, status: &Status, width: usize) -> Vec<String> {
    let memory = match status.process.memory_limit_bytes {
        Some(limit) => {
            format!("{} of {}", bytes(status.process.memory_bytes as f64), bytes(limit as f64))
        }
        None => bytes(status.process.memory_bytes as f64),
    };
    let mut facts = format!(
        "kube-audit-forwarder {} · version {} · up {} · memory {memory} · {}",
        message(&status.process.host),
        message(&status.process.version),
        span(status.process.uptime_seconds as f64),
        view.url,
    );
    if view.has_restarted {
        facts.push_str(" · the relay has restarted");
    }
    let mut lines = wrapped(&facts, width);
    if let Some((failure, silence)) = &view.failure {
        let since = span(silence.as_secs_f64());
        let sign = sign(State::Bad);
        let text = format!(
            "{sign} The relay has not responded for {since} ({failure}). Everything below is older."
        );
        lines.extend(wrapped(&text, width));
    }
    let advice = |finding: &Finding| finding.advice_and_runbook(Some(&view.url));
    for finding in status.verdict.iter().flat_map(|verdict| &verdict.findings) {
        let text = format!("{} {}", sign(finding.state), message(&finding.text));
        lines.extend(wrapped(&text, width));
        // Lost events stay lost when the cause ends, so the advice about them is needed.
        let lasts = |it: &&Finding| [Kind::EventsLost, Kind::SendersGaveUp].contains(&it.kind);
        let follows = finding.consequences.iter().flat_map(|it| {
            std::iter::once(it.text.clone()).chain(Some(it).filter(lasts).and_then(advice))
        });
        let below = advice(finding).into_iter().chain(follows);
        lines.extend(below.flat_map(|it| wrapped(&format!("  {}", message(&it)), width)));
    }
    lines
}

/// Wraps a text between words at `width` columns. Lines after the first are indented by two spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(20);
    let mut lines: Vec<String> = vec![text.chars().take_while(|char| *char == ' ').collect()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.trim().is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("  {word}")),
        }
    }
    lines
}

fn flow(status: &Status, width: usize) -> Vec<String> {
    let mut parts =
        vec![("in", incoming(status)), ("queue", queue(status)), ("lost", lost(status))];
    parts.extend(apiservers(status).map(|text| ("senders", text)));
    parts.extend(status.evidence.as_ref().map(|it| ("evidence", evidence(it))));
    let mut lines = Vec::new();
    for (name, text) in parts {
        for (index, line) in wrapped(&text, width.saturating_sub(8)).into_iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            lines.push(format!("{name:<7} {}", line.trim_start()));
        }
    }
    lines
}

fn incoming(status: &Status) -> String {
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
        refused.push_str(&format!(
            " · {} refused",
            counted_in_groups(connections, "connection", "connections")
        ));
    }
    let intake = &status.intake;
    let rates = intake.accepted_events_per_second.zip(intake.received_bytes_per_second);
    let events = match rates {
        Some((events, size)) => format!("{} events/s · {}/s", scaled(events), bytes(size)),
        None => "– events/s".to_owned(),
    };
    let accepted = grouped(status.intake.accepted_events);
    format!("{events} · accepted {accepted}{refused} · {last}")
}

fn queue(status: &Status) -> String {
    let queue = &status.queue;
    let fill = queue.needed() as f64 / (queue.capacity_bytes as f64).max(1.0);
    let cells = whole(fill * BAR_CELLS as f64).min(BAR_CELLS);
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < cells { '█' } else { '░' }).collect();
    let mut text = format!(
        "{bar} {} % · {} of {} · {} · {}",
        scaled(fill * 100.0),
        bytes(queue.needed() as f64),
        bytes(queue.capacity_bytes as f64),
        counted_in_groups(queue.events, "event", "events"),
        message(&queue.kind),
    );
    for (name, value) in
        [("acknowledge", &status.intake.acknowledge), ("when full", &queue.when_full)]
    {
        if let Some(value) = value {
            text.push_str(&format!(" · {name} {}", message(value)));
        }
    }
    text
}

fn lost(status: &Status) -> String {
    let mut lost = grouped(status.losses.lost_events);
    if status.losses.lost_events > 0 {
        let rate = status.losses.lost_events_per_second.unwrap_or_default();
        lost.push_str(&format!(" · now {}/s", scaled(rate)));
        if let Some(seconds) = status.losses.last_lost_seconds_ago {
            lost.push_str(&format!(" · the last one {}", ago(seconds)));
        }
    }
    if !status.losses.earlier_known {
        lost.push_str(" · before the start: unknown");
    }
    lost
}

fn apiservers(status: &Status) -> Option<String> {
    let ages = status.apiservers.iter().map(|it| it.last_heard_seconds_ago);
    let longest = ages.max_by(f64::total_cmp)?;
    let text = match status.apiservers.len() {
        1 => format!("1 kube-apiserver · last heard {}", ago(longest)),
        count => format!("{count} kube-apiservers · quietest last heard {}", ago(longest)),
    };
    Some(text)
}

fn evidence(evidence: &Evidence) -> String {
    let checkpoint = match evidence.last_checkpoint_seconds_ago {
        Some(seconds) => format!("checkpoint {}", ago(seconds)),
        None => "no checkpoint since the start".to_owned(),
    };
    let mut text =
        format!("{} · {checkpoint}", counted_in_groups(evidence.size, "entry", "entries"));
    for witness in &evidence.witnesses {
        let when = witness.last_seconds_ago.map_or_else(|| "not yet".to_owned(), ago);
        text.push_str(&format!(" · {} {when}", message(&witness.name)));
    }
    text
}

/// Returns the severity of an output's state, and the state in a few words.
fn state_words(it: &Output) -> (State, String) {
    if it.health.paused {
        let words = match it.backlog.backlog_events {
            0 => "paused".to_owned(),
            _ => format!("paused for {}", span(it.backlog.lag_seconds)),
        };
        return (it.trouble.unwrap_or(State::Note), words);
    }
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

fn outputs(status: &Status, width: usize) -> Vec<String> {
    const COLUMNS: [Column; 9] = [
        ("  OUTPUT", false, 0),
        ("TYPE", false, 5),
        ("STATE", false, 0),
        ("EVENTS/S", true, 2),
        ("BACKLOG", true, 0),
        ("LAG", true, 3),
        ("P99", true, 4),
        ("RETRIES", true, 6),
        ("LOST", true, 0),
    ];
    let row = |it: &Output| {
        let (state, words) = state_words(it);
        let lag = match it.backlog.backlog_events > 0 && it.backlog.lag_seconds >= 1.0 {
            true => span(it.backlog.lag_seconds),
            false => "–".to_owned(),
        };
        let optional = if it.required { "" } else { " (optional)" };
        vec![
            format!("{} {}{optional}", sign(state), message(&it.name)),
            message(&it.kind),
            words,
            it.counts.delivered_events_per_second.map_or_else(|| "–".to_owned(), scaled),
            grouped(it.backlog.backlog_events),
            lag,
            latency(it.counts.latency_p99_seconds),
            grouped(it.counts.retries),
            grouped(it.counts.lost_events),
        ]
    };
    fitted(&COLUMNS, &status.outputs.iter().map(row).collect::<Vec<_>>(), width)
}

/// Returns more facts about one output than the table shows.
fn details(it: &Output, width: usize) -> Vec<String> {
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
    let mut lines = wrapped(&title, width);
    if let Some(error) = &it.health.last_error {
        let age = it.health.last_error_seconds_ago.map(|age| format!(", {}", ago(age)));
        let text = format!("{} (last error{})", message(error), age.unwrap_or_default());
        lines.extend(wrapped(&text, width));
    }
    lines
}

/// Returns the error reasons with their counts, the most frequent one first.
fn errors(counts: &std::collections::BTreeMap<String, u64>) -> impl Iterator<Item = String> {
    let mut counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    counts.into_iter().map(|(reason, count)| format!("{} {}", message(reason), grouped(*count)))
}

fn addresses(it: &Output, width: usize) -> Vec<String> {
    const COLUMNS: [Column; 9] = [
        ("  ADDRESS", false, 0),
        ("STATE", false, 0),
        ("SINCE", true, 4),
        ("REQUESTS", true, 5),
        ("SENT", true, 6),
        ("P50", true, 7),
        ("P99", true, 3),
        ("ERRORS", false, 1),
        ("LAST ERROR", false, 8),
    ];
    let known = |count: Option<u64>| count.map_or_else(|| "–".to_owned(), grouped);
    let row = |address: &Address| {
        let used = if address.used { "→ " } else { "  " };
        let age = address.last_error_seconds_ago.map(ago).unwrap_or_default();
        let cause = |text: &str| message(&verdict::cause(text));
        let last = address.last_error.as_deref().map(|text| format!("{}, {age}", cause(text)));
        vec![
            format!("{used}{}", message(&address.address)),
            message(&address.state),
            address.state_seconds.map_or_else(|| "–".to_owned(), span),
            known(address.requests),
            address.sent_bytes.map_or_else(|| "–".to_owned(), |it| bytes(it as f64)),
            latency(address.latency_p50_seconds),
            latency(address.latency_p99_seconds),
            errors(&address.errors).collect::<Vec<_>>().join(", "),
            last.unwrap_or_default(),
        ]
    };
    fitted(&COLUMNS, &it.addresses.iter().map(row).collect::<Vec<_>>(), width)
}
