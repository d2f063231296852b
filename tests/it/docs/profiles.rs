//! The profiles in `.config/nextest.toml`, which select the tests, and those in `Cargo.toml`, which
//! say how the program is built.

use std::collections::BTreeMap;

use crate::support::{files, repository};

/// The modules whose tests are ignored, and why.
const MODULES: [(&str, &str); 3] =
    [("peers", "needs peers or root"), ("alone", "measures times"), ("rest", "takes long")];

fn read(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).expect("a file of the repository")
}

/// Returns the filter of each profile of nextest.
fn filters() -> BTreeMap<String, String> {
    let config: toml::Table = read(".config/nextest.toml").parse().unwrap();
    let profiles = config["profile"].as_table().unwrap();
    let filter = |(name, profile): (&String, &toml::Value)| {
        Some((name.clone(), profile.get("default-filter")?.as_str()?.to_owned()))
    };
    profiles.iter().filter_map(filter).collect()
}

/// `./test` and `./test all` would still pass if a profile left out a test that no other has.
#[test]
fn each_test_is_run_by_a_part_of_the_script() {
    let (filters, script) = (filters(), read("test"));
    assert_eq!(filters["change"], "not test(/(^|::)(rest|instructions)::/)");
    assert_eq!(filters["rest"], "test(/(^|::)rest::/)");
    assert_eq!(filters["instructions"], "test(/(^|::)instructions::/)");
    assert_eq!(filters["all"], "all()");
    for (part, runs) in [
        ("change", "run_tests \"${built[@]}\" --profile change\n"),
        (
            "rest",
            "run_tests \"${built[@]}\" --lib -E 'package(/^(audit|delivery|outputs|queue|tools|transform)$/)'\n",
        ),
        ("rest", "run_tests \"${built[@]}\" --profile rest \"$@\""),
        ("instructions", "run_tests \"${built[@]}\" --profile instructions\n"),
        ("kafka", "run_tests \"${with_kafka[@]}\" --profile kafka\n"),
    ] {
        let (_, body) = script.split_once(&format!("\n{part}() {{")).expect("a function");
        let body = body.split_once("}\n").map_or(body, |(body, _)| body);
        assert!(format!("{body}}}").contains(runs.trim_end()), "{part} does not run {runs}");
    }
    assert!(script.contains("nextest() { run cargo nextest run --run-ignored all \"$@\"; }"));
    assert!(script.contains("\n  and_more \"${more[@]}\"\n"), "./test all leaves out parts");
}

/// `./test` runs what cargo ignores, by the names of modules. What is in none of these modules must
/// not be ignored, because nobody would run it.
#[test]
fn cargo_ignores_the_tests_of_some_modules_and_no_other() {
    let mut tests = 0;
    for file in files().iter().filter(|file| file.ends_with(".rs")) {
        let in_tests = file.starts_with("tests/it/") && file != "tests/it/main.rs";
        let folders = file.trim_end_matches(".rs").split('/');
        let of_file = folders.skip(2).find_map(|name| MODULES.iter().find(|(it, _)| *it == name));
        // The module of a part of a file, which ends where its indentation does.
        let mut of_part = None;
        let text = read(file);
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let code = line.trim_start();
            let indentation = line.len() - code.len();
            let begun = code.strip_prefix("mod ").and_then(|it| it.strip_suffix(" {"));
            let begun = MODULES.iter().find(|(name, _)| begun == Some(*name));
            if let (Some(begun), None) = (begun, of_part) {
                of_part = Some((begun, indentation));
            } else if code == "}" && of_part.is_some_and(|(_, begin)| begin == indentation) {
                of_part = None;
            }
            let module = of_file.or(of_part.map(|(module, _)| module)).filter(|_| in_tests);
            let next = lines.peek().map_or("", |line| line.trim_start());
            if code == "#[test]" {
                let wanted = module.map(|(_, reason)| format!("#[ignore = \"{reason}: ./test"));
                let is_right = match &wanted {
                    Some(wanted) => next.starts_with(wanted),
                    // A consumer's process is a "test" that other tests start by its name.
                    None => !next.starts_with("#[ignore") || next.contains("no test, but"),
                };
                assert!(is_right, "{file}: {next:?} where {wanted:?} is to stand");
                tests += usize::from(wanted.is_some());
            }
        }
    }
    assert!(tests > 150, "{tests} tests");
}

/// The profile `kafka` runs a part of the tests: the crates and the modules that name the feature.
#[test]
fn what_names_the_feature_kafka_is_tested_with_it() {
    let filter = &filters()["kafka"];
    let mut found = 0;
    let feature = ["feature = \"", "kafka\""].concat();
    for file in files().iter().filter(|file| file.ends_with(".rs")) {
        if !read(file).contains(&feature) {
            continue;
        }
        let mut folders = file.split('/');
        let is_named = match (folders.next(), folders.next(), folders.next()) {
            (Some("crates"), Some(name), _) => {
                filter.contains(&format!("({name}|")) || filter.contains(&format!("|{name}"))
            }
            // Names of tests below these have the word.
            (Some("tests"), Some("it"), Some("main.rs" | "support" | "support.rs" | "outputs")) => {
                true
            }
            (Some("tests"), Some("it"), Some("docs")) => filter.contains("docs|"),
            (Some("tests"), Some("it"), Some(_)) => {
                let name = file.rsplit('/').next().and_then(|it| it.strip_suffix(".rs"));
                name.is_some_and(|name| filter.contains(name))
            }
            // Benches are not tests.
            (Some("benches"), ..) => true,
            _ => false,
        };
        assert!(is_named, "{file}: .config/nextest.toml does not name it for Kafka");
        found += 1;
    }
    assert!(found > 20, "{found} files");
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
