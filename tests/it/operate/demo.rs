//! `demo`: the whole path without any setup, and a summary at the end that says what was lost.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::support::prelude::*;

fn figure(text: &str, name: &str) -> u64 {
    let lines = text.lines().map(|line| line.trim_end_matches('\r'));
    let mut found = lines.filter_map(|line| line.strip_prefix(&format!("{name}: ")));
    let found = found.next().unwrap_or_else(|| panic!("no {name} in {text}"));
    found.parse().unwrap()
}

fn status_page(text: &str) -> Option<SocketAddr> {
    let (_, rest) = text.split_once("status page: http://")?;
    rest.split_once('/').and_then(|(address, _)| address.parse().ok())
}

#[track_caller]
fn assert_nothing_lost(text: &str) {
    let [sent, delivered, lost] = ["sent", "delivered", "lost"].map(|name| figure(text, name));
    assert!(sent > 0 && delivered >= sent, "{text}");
    assert_eq!(lost, 0, "{text}");
    assert!(text.contains("Read next in docs/"), "{text}");
}

#[test]
fn in_a_pipe_it_prints_lines_and_loses_nothing_though_the_consumer_goes_away() {
    let Said { code, stdout: text, stderr } = said(&["demo", "--seconds", "3"], &repository());
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{text}");
    assert_nothing_lost(&text);
    assert!(status_page(&text).is_some(), "{text}");
    assert!(text.contains("the consumer was down for 0.") && !text.contains('\u{1b}'), "{text}");
    let first = text.lines().find(|line| line.contains(" in ") && line.contains(" queue "));
    assert!(first.is_some_and(|line| line.contains("lost 0")), "{text}");
}

#[test]
fn on_a_terminal_it_draws_one_line() {
    let binary = binary();
    let output = Command::new("script")
        .args(["-qec", &format!("{binary} demo --seconds 2"), "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .expect("script, of bsdutils");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_nothing_lost(&text);
    assert!(text.contains("\u{1b}[2K") && status_page(&text).is_some(), "{text}");
}

#[test]
fn an_interrupt_ends_it_early_with_the_summary() {
    let mut running = spawn_command(&["demo", "--seconds", "600"], &repository(), &[]);
    let mut said = || String::from_utf8(running.stdout()).unwrap();
    let admin = wait_for("the status page", PATIENCE, || status_page(&said()));
    let status = http::get(admin, "/status").unwrap();
    assert_eq!((status.status, status.json()["started"].as_bool()), (200, Some(true)));
    wait_for("figures", PATIENCE, || said().contains("lost 0").then_some(()));
    running.signal(libc::SIGINT);
    let (status, stderr) = running.wait();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    let text = wait_for("the summary", PATIENCE, || {
        let text = String::from_utf8(running.stdout()).unwrap();
        text.contains("Read next").then_some(text)
    });
    assert_nothing_lost(&text);
}
