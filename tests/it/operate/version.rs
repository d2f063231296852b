//! `--version`: what an operator compares before an upgrade or a rollback.

use crate::support::prelude::*;
use crate::support::relay::revision;

/// Returns the lines of `--version` below the line `formats of files:`, without their indent.
fn formats() -> Vec<String> {
    let said = said(&["--version"], Path::new("/"));
    let (_, formats) = said.stdout.split_once("formats of files:\n").expect("a list of formats");
    formats.lines().map(|line| line.strip_prefix("  ").expect("indented").to_owned()).collect()
}

#[test]
fn version_says_revision_features_and_the_versions_of_each_format() {
    let Said { code, stdout, stderr } = said(&["--version"], Path::new("/"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let features = if cfg!(feature = "kafka") { "kafka" } else { "none" };
    let (_, scanner) = stdout.split_once("\nscanner: ").expect("the instructions of the scanner");
    let scanner = scanner.lines().next().unwrap();
    assert!(["AVX-512", "AVX2", "NEON", "SSE2", "portable"].contains(&scanner), "{scanner}");
    let expected = format!(
        "kube-audit-forwarder {}\n\
         revision: {}\n\
         features: {features}\n\
         scanner: {scanner}\n\
         formats of files:\n\
         \x20 queue segments: reads 1 and 2, writes 2\n\
         \x20 queue cursors: reads 1, writes 1\n\
         \x20 queue end of the log: reads 1, writes 1\n\
         \x20 events set aside: reads 1 and 2, writes 2\n\
         \x20 dead letters: reads 1, writes 1\n\
         \x20 evidence: reads 1 and 2 and 3 and 4, writes 4\n\
         \x20 resume files of replay: reads 1, writes 1\n",
        env!("CARGO_PKG_VERSION"),
        revision(),
    );
    assert_eq!(stdout, expected);
    let command = |line: &[&str]| said(line, Path::new("/")).assert(0, &[]).stdout.clone();
    assert_eq!(command(&["version", "--verbose"]), stdout);
    assert_eq!(command(&["version"]), command(&["-V"]));
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), ""));
    assert_eq!(relay.wait_for_log("the relay is starting", PATIENCE)["scanner"], scanner);
    relay.finish(Backlog::Empty);
}

#[test]
fn the_page_about_upgrades_shows_the_formats_of_this_program() {
    let page = std::fs::read_to_string(repository().join("docs/operating/upgrade.md")).unwrap();
    for line in formats() {
        assert!(page.lines().any(|found| found.trim() == line), "upgrade.md lacks: {line}");
    }
}
