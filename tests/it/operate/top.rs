//! The command `top` on a terminal, beside a real relay.

use crate::support::prelude::*;
use crate::support::terminal::Terminal;

/// Starts a relay with an output that works and one whose consumer answers with 500.
fn relay(good: &HttpSink, bad: &HttpSink) -> Relay {
    Relay::start(&format!("{BASE}{}{}", good.output("archive", ""), bad.output("siem", "")))
}

fn failing() -> HttpSink {
    HttpSink::start(|_| Answer::status(500))
}

#[test]
fn it_shows_trouble_first_and_says_that_a_relay_is_gone() {
    let (good, bad) = (HttpSink::accepting(), failing());
    let mut relay = relay(&good, &bad);
    assert_eq!(relay.post(&numbered::list(0, 0..300)).status, 200);
    let command = format!("{} top http://{} --interval 500ms", binary(), relay.admin());
    let mut terminal = Terminal::start(&command, 120, 40);
    terminal.wait_for("✕ 500 Internal Server Error. Output siem is down; its events are kept.");
    terminal.wait_for("accepted 300");
    terminal.wait_for("✓ archive");
    terminal.wait_for("siem: delivered 0");
    let text = terminal.text();
    assert!(text.find("✕ siem") < text.find("✓ archive"), "{text}");
    assert!(text.contains(&bad.address().to_string()), "{text}");
    assert_eq!(text.matches("version").count(), 1, "each text replaces the one before: {text}");
    relay.kill();
    terminal.wait_for("The relay has not responded");
    terminal.press("\u{3}");
    assert_eq!(terminal.wait(), Some(0));
}

#[test]
fn a_small_terminal_and_an_interrupt() {
    let (good, bad) = (HttpSink::accepting(), failing());
    let relay = relay(&good, &bad);
    assert_eq!(relay.post(&numbered::list(0, 0..3)).status, 200);
    let command = format!("{} top http://{}", binary(), relay.admin());
    let mut terminal = Terminal::start(&command, 80, 17);
    terminal.wait_for("✕ 500 Internal Server Error. Output siem is");
    terminal.wait_for("✓ archive");
    terminal.wait_for("more lines: the terminal is too low");
    terminal.press("\u{3}");
    assert_eq!(terminal.wait(), Some(0));
    drop(relay);
}

#[test]
fn a_signal_ends_it() {
    let (good, bad) = (HttpSink::accepting(), HttpSink::accepting());
    let relay = relay(&good, &bad);
    let end = relay.config_file().with_extension("end");
    // The shell becomes top; its child waits for a file and then sends the signal.
    let command = format!(
        "sh -c 'top=$$; (until [ -e {} ]; do sleep 0.05; done; kill -TERM $top) & \
         exec {} top http://{}'",
        end.display(),
        binary(),
        relay.admin()
    );
    let mut terminal = Terminal::start(&command, 100, 30);
    terminal.wait_for("Every output works, and no event accepted since the start is lost.");
    std::fs::write(&end, "").unwrap();
    assert_eq!(terminal.wait(), Some(0));
    relay.finish(Backlog::Empty);
}

#[test]
fn it_ends_when_its_terminal_is_closed() {
    let (good, bad) = (HttpSink::accepting(), HttpSink::accepting());
    let relay = relay(&good, &bad);
    let process = relay.config_file().with_extension("pid");
    let command = format!(
        "sh -c 'echo $$ > {}; exec {} top http://{}'",
        process.display(),
        binary(),
        relay.admin()
    );
    let terminal = Terminal::start(&command, 100, 30);
    terminal.wait_for("Every output works, and no event accepted since the start is lost.");
    let process = std::fs::read_to_string(process).unwrap();
    let process = format!("/proc/{}", process.trim());
    assert!(Path::new(&process).exists());
    drop(terminal);
    wait_until("top ends", PATIENCE, || !Path::new(&process).exists());
    relay.finish(Backlog::Empty);
}

#[test]
fn without_a_terminal_it_prints_the_screen_once() {
    let (good, bad) = (HttpSink::accepting(), failing());
    let relay = relay(&good, &bad);
    assert_eq!(relay.post(&numbered::list(0, 0..300)).status, 200);
    let url = format!("http://{}", relay.admin());
    relay.wait_for_log("output down, events are kept", PATIENCE);
    let output = run_command_with(&["top", &url], Path::new("/"), &[("COLUMNS", "100")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{text}");
    assert!(text.starts_with("kube-audit-forwarder "), "{text}");
    assert!(text.contains("✕ siem") && text.contains("accepted 300"), "{text}");
    assert!(!text.contains('\u{1b}') && text.lines().all(|line| line.chars().count() <= 100));
    drop(relay);
}

#[test]
fn a_relay_that_is_not_there_is_exit_status_1_and_a_wrong_url_2() {
    let port = free_port();
    for (url, code, words) in [
        (format!("http://127.0.0.1:{port}"), 1, "cannot connect"),
        ("ftp://127.0.0.1".to_owned(), 2, "is not an http:// URL"),
    ] {
        said(&["top", "--once", &url], Path::new("/")).assert(code, &[words]);
    }
}
