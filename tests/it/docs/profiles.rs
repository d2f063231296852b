//! The profiles in `.config/nextest.toml`, which select the tests, and those in `Cargo.toml`, which
//! say how the program is built.

use crate::support::{files, repository};

/// `./test` runs the profile `all`. It would still pass if that profile left out a test, or if a
/// test were ignored.
#[test]
fn the_profile_all_leaves_out_no_test() {
    let text = std::fs::read_to_string(repository().join(".config/nextest.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["profile"]["all"]["default-filter"].as_str(), Some("all()"));
    let script = std::fs::read_to_string(repository().join("test")).unwrap();
    let runs = "run cargo nextest run \"${built[@]}\" --profile all \"$@\"\n}\n";
    assert!(script.contains(runs), "run_tests of ./test runs another profile");
    assert!(script.contains("\n  run_tests\n  sim\n"), "./test does not run all tests");
    for file in files().iter().filter(|file| file.ends_with(".rs")) {
        let text = std::fs::read_to_string(repository().join(file)).unwrap();
        let mut ignored = text.lines().filter(|line| line.trim_start().starts_with("#[ignore"));
        // A consumer's process is a "test" that other tests start by its name.
        let ignored = ignored.find(|line| !line.contains("no test, but"));
        assert_eq!(ignored, None, "{file}: an ignored test runs nowhere");
    }
}

/// Link-time optimisation uses the opt-level of the program's package for all crates. With "s"
/// there, the relay's loops did not use the CPU's wide registers, and redaction cost four times as
/// much. The counts of instructions did not show this, because that program had another level.
#[test]
fn what_has_a_program_is_built_with_the_level_of_the_release() {
    let manifest = |file: &str| -> toml::Table {
        std::fs::read_to_string(repository().join(file)).unwrap().parse().unwrap()
    };
    let release = &manifest("Cargo.toml")["profile"]["release"];
    assert_eq!(release["opt-level"].as_integer(), Some(2));
    let manifests: Vec<_> = files().into_iter().filter(|it| it.ends_with("Cargo.toml")).collect();
    assert!(manifests.len() > 10, "{manifests:?}");
    for file in manifests {
        let folder = std::path::Path::new(&file).parent().unwrap();
        let main = repository().join(folder).join("src/main.rs");
        let manifest = manifest(&file);
        let Some(name) = manifest.get("package").and_then(|package| package["name"].as_str())
        else {
            continue;
        };
        let has_program = manifest.contains_key("bin") || main.exists();
        let own = release["package"].get(name).and_then(|package| package.get("opt-level"));
        assert!(!has_program || own.is_none(), "{name} is built with opt-level {own:?}");
    }
}

/// Without this feature, zlib-rs is built for a CPU without AVX2 and PCLMULQDQ, and gzip costs a
/// third more.
#[test]
fn gzip_uses_the_instructions_of_the_cpu_that_it_runs_on() {
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let flate2 = &manifest["workspace"]["dependencies"]["flate2"];
    let features = flate2["features"].as_array().expect("a list of features");
    assert!(features.iter().any(|it| it.as_str() == Some("runtime_detection")), "{features:?}");
    // The feature belongs to the crate behind flate2.
    assert!(features.iter().any(|it| it.as_str() == Some("zlib-rs")), "{features:?}");
}
