//! The screen in terminals of several sizes, drawn into memory.

use std::time::Duration;

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::{Key, View};

/// The state of a relay with `outputs` outputs; those at even places have a dead address.
fn status(outputs: usize) -> Value {
    let output = |index: usize| {
        let second = if index.is_multiple_of(2) { "down" } else { "up" };
        json!({
            "name": format!("output-{index:02}"), "type": "lumberjack", "required": true,
            "up": true, "keeps_events": true, "lag_max_seconds": 30.0, "delivered_events": 100,
            "latency_p99_seconds": 0.012, "last_error": "connection refused",
            "last_error_seconds_ago": 3.0, "errors": { "connect": 3 },
            "addresses": [
                { "address": "10.0.0.1:5044", "state": "up", "used": true, "requests": 7,
                    "sent_bytes": 4096, "state_seconds": 61.0 },
                { "address": "10.0.0.2:5044", "state": second },
            ],
        })
    };
    json!({
        "version": "0.1.0", "host": "relay-0", "time_seconds": 1_000_000.0,
        "start_time_seconds": 1.0, "uptime_seconds": 100, "started": true,
        "acknowledge": "synced", "memory_bytes": 20 << 20, "accepted_events": 1000,
        "last_event_seconds_ago": 0.2,
        "queue": { "kind": "disk", "bytes": 5000, "capacity_bytes": 10_000, "events": 12,
            "when_full": "reject", "retry_after_seconds": 5.0 },
        "outputs": (0..outputs).map(output).collect::<Value>(),
    })
}

fn history() -> Value {
    let times: Vec<_> = (0..360).map(|step| 1_000_000.0 - 10.0 * f64::from(360 - step)).collect();
    let rates: Vec<_> = (0..360).map(|step| (step != 7).then(|| f64::from(step % 50))).collect();
    json!({ "interval_seconds": 10, "time_seconds": times, "accepted_events_per_second": rates })
}

fn view(status: Value) -> View {
    let mut view = View::new("http://127.0.0.1:9090", true);
    view.answered(serde_json::from_value(status).unwrap());
    view
}

fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| super::draw(view, frame)).unwrap();
    let cells = terminal.backend().buffer().content.chunks(usize::from(width));
    let text = |line: &[ratatui::buffer::Cell]| line.iter().map(|cell| cell.symbol()).collect();
    cells.map(text).collect()
}

#[track_caller]
fn line_of(lines: &[String], words: &str) -> usize {
    let found = lines.iter().position(|line| line.contains(words));
    found.unwrap_or_else(|| panic!("no {words} in\n{}", lines.join("\n")))
}

#[test]
fn at_80_by_24_the_verdict_and_all_of_three_outputs_are_visible() {
    let mut view = view(status(3));
    view.remembered(serde_json::from_value(history()).unwrap());
    let lines = drawn(&view, 80, 24);
    assert!(lines[0].starts_with("kube-audit-forwarder relay-0 · version 0.1.0"), "{lines:#?}");
    let verdict = line_of(&lines, "! Output output-00: the address 10.0.0.2:5044 is down");
    let queue = line_of(&lines, "50.0 % · 4.9 KiB of 9.8 KiB · 12 events");
    let first = line_of(&lines, "! output-00");
    assert!(verdict < queue && queue < first, "{lines:#?}");
    for name in ["✓ output-01", "! output-02"] {
        assert!(line_of(&lines, name) > first, "{lines:#?}");
    }
    line_of(&lines, "up, 1 of 2 down");
    line_of(&lines, "q quit");
}

#[test]
fn outputs_in_trouble_come_first_and_the_selection_follows_its_output() {
    let mut view = view(status(4));
    let lines = drawn(&view, 120, 50);
    let places = ["! output-00", "! output-02", "✓ output-01", "✓ output-03"]
        .map(|words| line_of(&lines, words));
    assert!(places.is_sorted(), "{lines:#?}");
    assert!(line_of(&lines, "output-00: delivered 100") > places[3], "{lines:#?}");
    view.press(Key::Down);
    view.press(Key::Down);
    line_of(&drawn(&view, 120, 50), "output-01: delivered");
    // Output 01 is down now, and therefore first; its details stay.
    let mut worse = status(4);
    worse["outputs"][1]["up"] = json!(false);
    worse["outputs"][1]["down_seconds"] = json!(65.0);
    view.answered(serde_json::from_value(worse).unwrap());
    let lines = drawn(&view, 120, 50);
    line_of(&lines, "output-01: delivered");
    assert!(line_of(&lines, "✕ output-01") < line_of(&lines, "! output-00"), "{lines:#?}");
    line_of(&lines, "down for 1 min 5 s");
    view.press(Key::Details);
    assert!(!drawn(&view, 120, 50).join("").contains("output-01: delivered"));
}

#[test]
fn a_tall_terminal_shows_the_last_hour_with_its_axes() {
    let mut view = view(status(1));
    assert!(!drawn(&view, 120, 50).join("").contains("-60 min"));
    view.remembered(serde_json::from_value(history()).unwrap());
    let lines = drawn(&view, 120, 50);
    for words in ["-60 min", "now", "50.0", "last hour, events/s: accepted"] {
        line_of(&lines, words);
    }
}

#[test]
fn the_details_of_an_output_have_its_addresses_and_their_figures() {
    let lines = drawn(&view(status(1)), 160, 40);
    let line = &lines[line_of(&lines, "→ 10.0.0.1:5044")];
    for words in ["up", "1 min 1 s", "7", "4.0 KiB"] {
        assert!(line.contains(words), "{line}");
    }
    line_of(&lines, "  10.0.0.2:5044");
    line_of(&lines, "errors: connect 3");
    line_of(&lines, "connection refused (last error, 3 s ago)");
}

#[test]
fn a_relay_that_does_not_answer_is_named_and_old_figures_are_called_old() {
    let mut view = View::new("http://127.0.0.1:9090", true);
    view.failed("cannot connect", Duration::from_secs(3));
    line_of(&drawn(&view, 80, 24), "✕ The relay does not respond: cannot connect");
    view.answered(serde_json::from_value(status(1)).unwrap());
    view.failed("cannot connect", Duration::from_secs(3));
    line_of(
        &drawn(&view, 100, 24),
        "has not responded for 3 s (cannot connect). Everything below is older.",
    );
}

#[test]
fn a_paused_view_keeps_its_figures() {
    let mut view = view(status(1));
    view.press(Key::Pause);
    let mut later = status(1);
    later["accepted_events"] = json!(123_456);
    view.answered(serde_json::from_value(later.clone()).unwrap());
    line_of(&drawn(&view, 120, 40), "accepted 1,000");
    line_of(&drawn(&view, 120, 40), "paused");
    // Whether the relay responds is shown although the figures stay.
    view.failed("cannot connect", Duration::from_secs(3));
    line_of(&drawn(&view, 120, 40), "has not responded for 3 s");
    view.answered(serde_json::from_value(later.clone()).unwrap());
    assert!(!drawn(&view, 120, 40).join("").contains("has not responded"));
    view.press(Key::Pause);
    view.answered(serde_json::from_value(later).unwrap());
    line_of(&drawn(&view, 120, 40), "accepted 123,456");
}

#[test]
fn a_relay_without_verdict_and_history_is_judged_by_its_figures() {
    let mut old = status(1);
    old["outputs"][0]["addresses"] = json!([]);
    old["queue"]["fault"] = json!("No space left on device");
    let lines = drawn(&view(old), 80, 24);
    line_of(&lines, "✕ The queue cannot store events: No space left on device.");
}

#[test]
fn the_help_explains_the_columns() {
    let mut view = view(status(1));
    view.press(Key::Help);
    line_of(&drawn(&view, 80, 24), "BACKLOG   events that the consumer");
}

proptest! {
    /// Texts of a relay (names of hosts, errors of consumers) can't send commands to the terminal,
    /// and no size of a terminal is too small.
    #[test]
    fn any_text_and_any_size_is_drawn_without_control_characters(
        text in any::<String>(), width in 1_u16..200, height in 1_u16..60, outputs in 0_usize..30,
    ) {
        let mut status = status(outputs);
        status["host"] = json!(text);
        status["queue"]["fault"] = json!(text);
        for output in status["outputs"].as_array_mut().unwrap() {
            output["last_error"] = json!(text);
            output["name"] = json!(text);
            output["addresses"][0]["address"] = json!(text);
        }
        let mut view = view(status);
        view.remembered(serde_json::from_value(history()).unwrap());
        let hostile = |char: char| char.is_control() || ('\u{202a}'..='\u{202e}').contains(&char);
        for line in drawn(&view, width, height) {
            prop_assert!(!line.contains(hostile), "{line:?}");
        }
    }
}
