//! The profiles of `.config/nextest.toml`: which tests they run.

use std::process::Command;

use crate::support::needs::Pattern;
use crate::support::needs::left_out;
use crate::support::repository;

/// `./test` runs the profile `all`. It would be green without a test that the profile leaves out,
/// or that is ignored.
#[test]
fn the_profile_all_leaves_out_no_test() {
    let text = std::fs::read_to_string(repository().join(".config/nextest.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["profile"]["all"]["default-filter"].as_str(), Some("all()"));
    let script = std::fs::read_to_string(repository().join("test")).unwrap();
    assert!(script.contains("cargo nextest run --profile all"), "./test runs another profile");
    let listed = Command::new("git")
        .args(["grep", "-nE", r"^\s*#\[ignore", "--", "*.rs"])
        .current_dir(repository())
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    // A consumer's process is a "test" that other tests start by its name.
    let ignored: Vec<&str> = listed.lines().filter(|it| !it.contains("no test, but")).collect();
    assert!(ignored.is_empty(), "ignored tests run nowhere: {ignored:#?}");
}

/// A pattern that matches no test is left over from a test that has another name now.
#[test]
fn each_pattern_of_the_default_filter_matches_a_test() {
    let own = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let listed = String::from_utf8(own.stdout).unwrap();
    let names: Vec<&str> = listed.lines().filter_map(|it| it.strip_suffix(": test")).collect();
    assert!(names.len() > 100, "{listed}");
    let is_here = |pattern: &&Pattern| {
        // The tests of Kafka are built with their feature alone.
        let (Pattern::Exact(text) | Pattern::Prefix(text)) = pattern;
        cfg!(feature = "kafka") || !text.contains("::kafka_")
    };
    for pattern in left_out().iter().filter(is_here) {
        assert!(names.iter().any(|name| pattern.matches(name)), "no test is {pattern:?}");
    }
}
