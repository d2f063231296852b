//! The profiles of `.config/nextest.toml`: which tests they run.

use crate::support::{files, repository};

/// `./test` runs the profile `all`. It would be green without a test that the profile leaves out,
/// or that is ignored.
#[test]
fn the_profile_all_leaves_out_no_test() {
    let text = std::fs::read_to_string(repository().join(".config/nextest.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["profile"]["all"]["default-filter"].as_str(), Some("all()"));
    let script = std::fs::read_to_string(repository().join("test")).unwrap();
    let runs = "run cargo nextest run \"${built[@]}\" --profile all\n";
    assert!(script.contains(runs), "./test runs another profile");
    for file in files().iter().filter(|file| file.ends_with(".rs")) {
        let text = std::fs::read_to_string(repository().join(file)).unwrap();
        let mut ignored = text.lines().filter(|line| line.trim_start().starts_with("#[ignore"));
        // A consumer's process is a "test" that other tests start by its name.
        let ignored = ignored.find(|line| !line.contains("no test, but"));
        assert_eq!(ignored, None, "{file}: an ignored test runs nowhere");
    }
}
