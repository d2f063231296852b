//! The screen in several widths.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{View, lines};

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

fn view(status: Value) -> View {
    let mut view = View::new("http://127.0.0.1:9090");
    view.answered(serde_json::from_value(status).unwrap());
    view
}

#[track_caller]
fn line_of(lines: &[String], words: &str) -> usize {
    let found = lines.iter().position(|line| line.contains(words));
    found.unwrap_or_else(|| panic!("no {words} in\n{}", lines.join("\n")))
}

#[test]
fn the_verdict_comes_first_and_outputs_in_trouble_before_the_others() {
    let lines = lines(&view(status(4)), 120);
    assert!(lines[0].starts_with("kube-audit-forwarder relay-0 · version 0.1.0"), "{lines:#?}");
    let places = [
        "! Output output-00: the address 10.0.0.2:5044 is down",
        "queue   ██████████░░░░░░░░░░ 50.0 % · 4.9 KiB of 9.8 KiB · 12 events",
        "! output-00",
        "! output-02",
        "✓ output-01",
        "✓ output-03",
        "output-00: delivered 100",
        "output-02: delivered 100",
    ];
    let places = places.map(|words| line_of(&lines, words));
    assert!(places.is_sorted(), "{lines:#?}");
    line_of(&lines, "up, 1 of 2 down");
    assert!(!lines.join("\n").contains("output-01: delivered"), "{lines:#?}");
}

#[test]
fn columns_that_do_not_fit_are_left_out_as_a_whole_and_named() {
    const WHOLE: usize = 128;
    const LEAST: usize = 78;
    let mut wide = status(2);
    wide["outputs"][0]["lag_seconds"] = json!(227.0);
    wide["outputs"][0]["backlog_events"] = json!(1_234_567);
    wide["outputs"][0]["name"] = json!("an output with a name of some length");
    let view = view(wide);
    // The narrowest has the name, the state and the numbers of events.
    for width in (40..=200).chain([30]) {
        let lines = lines(&view, width);
        let line = &lines[line_of(&lines, "! an output with a name of some length")];
        let told = lines.iter().find(|line| line.contains("too narrow: "));
        let told = told.map_or("", |line| line.rsplit_once(": ").unwrap().1);
        assert_eq!(told.is_empty(), width >= WHOLE, "{width}: {lines:#?}");
        assert!(line.chars().count() <= width || width < LEAST, "{width}: {lines:#?}");
        for (column, cell) in [("TYPE", "lumberjack"), ("LAG", "3 min 47 s"), ("P99", "12 ms")] {
            let is_there = line.contains(cell);
            assert_eq!(is_there, !told.contains(column), "{width}, {column}: {lines:#?}");
        }
        assert!(line.contains("1,234,567"), "{width}: {lines:#?}");
    }
}

#[test]
fn the_details_of_an_output_have_its_addresses_and_their_figures() {
    let lines = lines(&view(status(1)), 160);
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
    let mut view = View::new("http://127.0.0.1:9090");
    line_of(&lines(&view, 80), "asking the relay …");
    view.failed("cannot connect", Duration::from_secs(3));
    line_of(&lines(&view, 80), "✕ The relay does not respond: cannot connect");
    view.answered(serde_json::from_value(status(1)).unwrap());
    view.failed("cannot connect", Duration::from_secs(3));
    let words = "has not responded for 3 s (cannot connect). Everything below is older.";
    line_of(&lines(&view, 100), words);
    view.answered(serde_json::from_value(status(1)).unwrap());
    assert!(!lines(&view, 100).join("").contains("has not responded"));
}

#[test]
fn a_relay_without_a_verdict_is_judged_by_its_figures() {
    let mut old = status(1);
    old["outputs"][0]["addresses"] = json!([]);
    old["queue"]["fault"] = json!("No space left on device");
    let lines = lines(&view(old), 80);
    line_of(&lines, "✕ The queue cannot store events: No space left on device.");
}

proptest! {
    /// Texts of a relay (names of hosts, errors of consumers) can't send commands to the terminal,
    /// and no terminal is too narrow.
    #[test]
    fn any_text_and_any_width_has_no_control_characters(
        text in any::<String>(), width in 0_usize..200, outputs in 0_usize..30,
    ) {
        let mut status = status(outputs);
        status["host"] = json!(text);
        status["queue"]["fault"] = json!(text);
        for output in status["outputs"].as_array_mut().unwrap() {
            output["last_error"] = json!(text);
            output["name"] = json!(text);
            output["addresses"][0]["address"] = json!(text);
        }
        let hostile = |char: char| char.is_control() || ('\u{202a}'..='\u{202e}').contains(&char);
        for line in lines(&view(status), width) {
            prop_assert!(!line.contains(hostile), "{line:?}");
        }
    }
}
