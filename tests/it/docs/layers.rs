//! The layer table of `src/lib.rs`, held against the sources: a row imports from rows above it only, the metrics are
//! named in `telemetry` alone, and `cli` alone prints.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use crate::support::repository;

/// A source file: the module of the crate's root that it belongs to, and its text.
struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = repository().join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push(source(&root, path, text));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn source(root: &Path, path: PathBuf, text: String) -> Source {
    let inside = path.strip_prefix(root).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    let module = first.trim_end_matches(".rs").to_owned();
    Source { path, module, text }
}

/// Modules with their rows, from the table in the documentation of `lib.rs`.
fn rows(lib: &str) -> BTreeMap<String, usize> {
    let mut rows = BTreeMap::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = line.split(" | ");
        // The head of the table and the line below it have no number.
        let Some(Ok(row)) = cells.next().map(str::parse::<usize>) else { continue };
        for name in cells.next().expect("a cell of modules").split('[').skip(1) {
            let name = name.trim_start_matches('`').split('`').next().unwrap().to_owned();
            assert!(rows.insert(name.clone(), row).is_none(), "{name} is in the table twice");
        }
    }
    rows
}

/// The lines that are code: without comments, and without the tests at the end of a file.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
    lines
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .filter(|(_, line)| !line.starts_with("//"))
}

/// What a piece of code names after `crate::`, wherever it does.
fn imports(line: &str) -> impl Iterator<Item = String> {
    line.split("crate::").skip(1).map(|rest| {
        rest.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect()
    })
}

/// Everything that the table forbids.
fn violations(sources: &[Source], rows: &BTreeMap<String, usize>) -> Vec<String> {
    let mut found = Vec::new();
    for Source { path, module, text } in sources {
        let of = |line: usize, what: String| format!("{}:{line}: {what}", path.display());
        // A `tests.rs` beside its module is in no build but the tests'.
        if module == "main" || module == "lib" || path.ends_with("tests.rs") {
            continue;
        }
        let Some(own) = rows.get(module) else {
            found.push(of(1, format!("{module} is in no row of the table in lib.rs")));
            continue;
        };
        for (number, line) in code(text) {
            for import in imports(line) {
                match rows.get(&import) {
                    _ if import == *module => {}
                    Some(row) if row < own => {}
                    Some(row) => found.push(of(
                        number,
                        format!("{module} (row {own}) imports {import} (row {row})"),
                    )),
                    None => found.push(of(number, format!("crate::{import} is in no row"))),
                }
            }
            if module != "telemetry" && line.contains("kube_audit_forwarder_") {
                found.push(of(number, "a metric is named outside telemetry".to_owned()));
            }
            let makes = [
                "counter!",
                "gauge!",
                "histogram!",
                "describe_",
                "with_recorder",
                "register_counter",
            ];
            if module != "telemetry" && makes.iter().any(|make| line.contains(make)) {
                found.push(of(number, "a metric is made outside telemetry".to_owned()));
            }
            let prints = ["println!", "print!", "eprint!", "dbg!", "io::stdout()", "io::stderr()"];
            // The output of this name writes events to stdout, and the log goes to stderr.
            // Tests print seeds.
            let is_test = path.components().any(|part| part.as_os_str() == "tests");
            let may_print = module == "cli"
                || path.ends_with("output/stdout.rs")
                || module == "telemetry"
                || is_test;
            if !may_print && prints.iter().any(|print| line.contains(print)) {
                found.push(of(number, "prints, which cli alone does".to_owned()));
            }
        }
    }
    found
}

#[test]
fn the_sources_keep_to_the_layer_table() {
    let sources = sources();
    let lib = sources.iter().find(|source| source.module == "lib").expect("src/lib.rs");
    let rows = rows(&lib.text);
    assert!(rows.len() >= 11 && rows["audit"] == 1 && rows["cli"] > rows["relay"], "{rows:?}");
    for name in rows.keys() {
        assert!(
            sources.iter().any(|source| source.module == *name),
            "{name} is in the table and not in src"
        );
    }
    let found = violations(&sources, &rows);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    // One import a line, so that edges are seen.
    for Source { path, text, .. } in &sources {
        for (number, line) in code(text).filter(|(_, line)| line.contains("use crate::")) {
            assert!(!line.contains('{'), "{}:{number}: {line}", path.display());
        }
    }
}

#[test]
fn a_violation_would_be_found() {
    let table = "//! | row | modules | what |\n//! |---|---|---|\n//! | 1 | [`audit`] [`config`] | x |\n\
                 //! | 2 | [`telemetry`] | x |\n//! | 3 | [`queue`] | x |\n//! | 4 | [`listener`] [`output`] | x |\n\
                 //! | 5 | [`cli`] | x |\n";
    let rows = rows(table);
    assert_eq!(rows["output"], 4);
    let count = |path: &str, text: &str| {
        let root = Path::new("/src");
        violations(&[source(root, root.join(path), text.to_owned())], &rows).len()
    };
    for (path, text, wrong) in [
        (
            "listener/ingest.rs",
            "use crate::queue::Queue;\nuse crate::audit;\nuse super::answer;",
            0,
        ),
        ("listener/ingest.rs", "use crate::listener::Gate;", 0),
        ("listener/ingest.rs", "// use crate::output;\n/// [`crate::cli`]", 0),
        ("listener.rs", "x\n#[cfg(test)]\nuse crate::output;", 0),
        ("listener.rs", "use crate::output::Status;", 1),
        ("listener/ingest.rs", "    let status = crate::output::Status::new();", 1),
        ("config.rs", "use crate::audit;", 1),
        ("queue/memory.rs", "use crate::listener;\nuse crate::cli;", 2),
        ("queue.rs", "pub(crate) use crate::{listener};", 1),
        ("strange.rs", "", 1),
        ("queue.rs", "use crate::strange;", 1),
        ("queue.rs", "let name = \"kube_audit_forwarder_x_total\";", 1),
        ("telemetry.rs", "let name = \"kube_audit_forwarder_x_total\";", 0),
        ("queue.rs", "metrics::counter!(\"x\").increment(1);", 1),
        ("queue.rs", "println!(\"x\");", 1),
        ("queue.rs", "eprintln!(\"x\");", 1),
        ("cli.rs", "println!(\"x\");", 0),
    ] {
        assert_eq!(count(path, text), wrong, "{path}: {text}");
    }
}
