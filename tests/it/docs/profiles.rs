//! The profiles of `.config/nextest.toml`: which tests they run.

use std::process::Command;

use crate::support::repository;

/// `./test` runs the profile `all`. It would be green without a test that the profile leaves out,
/// or that is ignored.
#[test]
fn the_profile_all_leaves_out_no_test() {
    let text = std::fs::read_to_string(repository().join(".config/nextest.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["profile"]["all"]["default-filter"].as_str(), Some("all()"));
    let script = std::fs::read_to_string(repository().join("test")).unwrap();
    let runs = "run cargo nextest run \"${optimised[@]}\" \"${built[@]}\" --profile all\n";
    assert!(script.contains(runs), "./test runs another profile");
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
