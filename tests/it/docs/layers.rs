//! Checks the table of crates in `src/lib.rs` against their manifests, and the floor tables of
//! rooms against the sources. The compiler checks that a crate uses only its dependencies.
//!
//! A room is a module whose documentation has a table of floors. Its files import only from floors
//! below their own, so no two files of a room import each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::support::files;
use crate::support::prelude::*;

/// A source file: its path below `src`, and its text. A crate in `crates/` is treated as a module:
/// its `lib.rs` has the path `NAME.rs`, its other files have paths below `NAME/`, and `crate::`
/// becomes `crate::NAME::`.
struct Source {
    path: PathBuf,
    text: String,
}

fn sources() -> Vec<Source> {
    let read = |file: &str| std::fs::read_to_string(repository().join(file)).unwrap();
    let all = files().into_iter().filter(|file| file.ends_with(".rs"));
    let sources = all.filter_map(|file| {
        if let Some(path) = file.strip_prefix("src/") {
            return Some(Source { path: path.into(), text: ungrouped(&read(&file)) });
        }
        let (name, path) = file.strip_prefix("crates/")?.split_once("/src/")?;
        let name = name.replace('-', "_");
        let path = match path {
            "lib.rs" => format!("{name}.rs"),
            _ => format!("{name}/{path}"),
        };
        let text = ungrouped(&read(&file)).replace("crate::", &format!("crate::{name}::"));
        Some(Source { path: path.into(), text })
    });
    sources.collect()
}

/// Returns a source with one import on each line: `use a::b;` instead of `use a::{b, c};`.
fn ungrouped(text: &str) -> String {
    let (mut found, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once("::{") {
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let (kept, head) = before.split_at(start);
        let is_import = head.trim_start().trim_start_matches("pub").contains("use ");
        found.push_str(kept);
        let Some((names, after)) = behind.split_once("};").filter(|_| is_import) else {
            found.push_str(head);
            found.push_str("::{");
            rest = behind;
            continue;
        };
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            writeln!(found, "{head}::{name};").expect("a string takes any text");
        }
        rest = after.strip_prefix('\n').unwrap_or(after);
    }
    found + rest
}

/// Returns the row of each crate in the table in the documentation of `lib.rs`.
fn rows(lib: &str) -> BTreeMap<String, usize> {
    let mut rows = BTreeMap::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = line.split(" | ");
        // The table's header and the line below it have no number.
        let Some(Ok(row)) = cells.next().map(str::parse::<usize>) else { continue };
        let name = cells.next().expect("a cell with a crate").split('`').nth(1);
        let name = name.unwrap_or("kube-audit-forwarder").to_owned();
        assert!(rows.insert(name.clone(), row).is_none(), "{name} is in the table twice");
    }
    rows
}

/// Returns the names of the packages in a manifest's `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest");
    manifest["dependencies"].as_table().expect("a table").keys().cloned().collect()
}

/// Returns the lines of code with their numbers, without comments and without the tests at the end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
    lines
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .filter(|(_, line)| !line.starts_with("//"))
}

#[test]
fn a_crate_depends_only_on_crates_of_lower_rows() {
    let read = |file: &str| std::fs::read_to_string(repository().join(file)).unwrap();
    let rows = rows(&read("src/lib.rs"));
    let mut wrong = Vec::new();
    let crates = files().into_iter().filter_map(|file| {
        let name = file.strip_prefix("crates/")?.strip_suffix("/Cargo.toml")?;
        (!name.starts_with("testing")).then(|| (name.to_owned(), read(&file)))
    });
    let root = ("kube-audit-forwarder".to_owned(), read("Cargo.toml"));
    let crates: BTreeMap<_, _> = crates.chain([root]).collect();
    assert!(crates.keys().eq(rows.keys()), "{:?} and {:?}", crates.keys(), rows.keys());
    for (name, manifest) in &crates {
        for other in dependencies(manifest) {
            if rows.get(&other).is_some_and(|row| *row >= rows[name]) {
                wrong.push(format!("{name} depends on {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "against the table of src/lib.rs: {wrong:?}");
}

/// The log shows lines of foreign crates only from the level warn. It would treat a crate of ours
/// that is not in the list as foreign.
#[test]
fn the_log_knows_every_crate_of_ours() {
    let mut ours: Vec<String> = std::fs::read_dir(repository().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().replace('-', "_"))
        .filter(|name| !name.starts_with("testing"))
        .chain(["kube_audit_forwarder".to_owned()])
        .collect();
    ours.sort();
    let sources = sources();
    let log = sources.iter().find(|source| source.path.ends_with("telemetry/log.rs")).unwrap();
    let (_, list) = log.text.split_once("const OURS: &[&str] =").unwrap();
    let (list, _) = list.split_once("];").unwrap();
    let listed: Vec<_> = list.split('"').skip(1).step_by(2).collect();
    assert_eq!(listed, ours);
}

#[test]
fn imports_of_one_parent_share_a_line() {
    let rust = files().into_iter().filter(|file| file.ends_with(".rs"));
    for file in rust.filter(|file| file.starts_with("src/") || file.starts_with("crates/")) {
        let text = std::fs::read_to_string(repository().join(&file)).unwrap();
        let parent = |line: &str| {
            let path = line.strip_prefix("use ")?.split("::{").next()?.trim_end_matches(';');
            let is_group = line.contains("::{");
            let parent = if is_group { Some(path) } else { Some(path.rsplit_once("::")?.0) };
            parent.map(str::to_owned)
        };
        let (mut before, mut has_attribute) = (None, false);
        for line in text.lines() {
            // An import with an attribute stays on its own line.
            let own = parent(line).filter(|_| !has_attribute);
            let is_repeated = own.is_some() && own == before;
            assert!(!is_repeated, "{file}: group this import with the one before: {line}");
            (before, has_attribute) = (own, line.starts_with("#["));
        }
    }
}

#[test]
fn a_group_of_imports_is_read_as_its_lines() {
    let text =
        "//! x\nuse a::{b, c as d};\nfn f() { matches!(x, A::{}); }\npub use e::{\n    f,\n};\n";
    let lines = "//! x\nuse a::b;\nuse a::c as d;\nfn f() { matches!(x, A::{}); }\npub use e::f;\n";
    assert_eq!(ungrouped(text), lines);
}

/// Returns the floors of a room, from the table in its documentation: the name of each file without
/// its extension, and its floor. Returns `None` if there is no such table.
fn floors(text: &str) -> Option<BTreeMap<String, usize>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("//! | floor | files |"));
    lines.next()?;
    let mut floors = BTreeMap::new();
    let table = lines.take_while(|line| line.starts_with("//! |"));
    for line in table.filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = line.split(" | ");
        let Some(Ok(floor)) = cells.next().map(str::parse::<usize>) else { continue };
        let cell = cells.next().expect("a cell of files");
        for name in cell.split_whitespace().filter(|name| name.starts_with('`')) {
            let name = name.trim_matches('`').to_owned();
            assert!(floors.insert(name.clone(), floor).is_none(), "{name} has two floors");
        }
    }
    Some(floors)
}

/// In a table of floors, this name means every file that the table does not name. If it is on the
/// top floor, a new file in the room needs no change in the table.
const EVERY_OTHER: &str = "*";

/// In a table of floors, this name means the room's own file, which then has types that the files
/// above it use. In rooms without this name, no file imports from the room's own file.
const OWN_FILE: &str = "self";

/// Returns the floor of a file, or `None`. An empty name means the room's own file.
fn floor_of<'f>(floors: &'f BTreeMap<String, usize>, name: &str) -> Option<&'f usize> {
    match name {
        "" => floors.get(OWN_FILE),
        _ => floors.get(name).or_else(|| floors.get(EVERY_OTHER)),
    }
}

/// Returns the files of a room that a line of the file at `path` imports with `super::` or
/// `crate::`. `room` is a path below `src`, without `.rs`. An empty name means the room's own file.
fn imports_in_room(room: &Path, path: &Path, line: &str) -> Vec<String> {
    let own = path.with_extension("");
    let mut found = Vec::new();
    let in_room = |mut module: Vec<String>, rest: &str| {
        let names = rest.split("::").map(|name| {
            let end = |char: char| !(char.is_alphanumeric() || char == '_');
            name.split(end).next().unwrap_or_default().to_owned()
        });
        // Modules are in lower case. An item in upper case belongs to the module before it.
        module.extend(names.take_while(|name| {
            name.chars().next().is_some_and(|first| first.is_lowercase() || first == '_')
        }));
        let room: Vec<_> = room.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        module.starts_with(&room).then(|| module.get(room.len()).cloned().unwrap_or_default())
    };
    let parents = |levels: usize| {
        let mut module: Vec<_> = own.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        module.truncate(module.len().saturating_sub(levels));
        module
    };
    // `pub(in crate::…)` names a module, but does not import it.
    let paths = line.replace("(in crate::", "(");
    for rest in paths.split("crate::").skip(1) {
        found.extend(in_room(Vec::new(), rest));
    }
    if let Some(rest) = line.split_once("super::").map(|(_, rest)| rest) {
        let levels = 1 + rest.matches("super::").count();
        found.extend(in_room(parents(levels), rest.trim_start_matches("super::")));
    }
    found
}

/// Returns the imports of a room's files from their own or a higher floor, the files without a
/// floor, and the floors without a file.
fn floor_violations(sources: &[(PathBuf, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources {
        let Some(floors) = floors(text) else { continue };
        let room = path.with_extension("");
        for (path, text) in sources.iter().filter(|(path, _)| path.starts_with(&room)) {
            let inside = path.strip_prefix(&room).unwrap().with_extension("");
            let name = inside.iter().next().unwrap().to_str().unwrap().to_owned();
            if path
                .iter()
                .any(|part| part.to_string_lossy().trim_end_matches(".rs").ends_with("tests"))
            {
                continue;
            }
            let Some(own) = floor_of(&floors, &name) else {
                found.push(format!(
                    "{}: {name} has no floor in {}",
                    path.display(),
                    room.display()
                ));
                continue;
            };
            for (number, line) in code(text) {
                for import in imports_in_room(&room, path, line) {
                    // A name that is not a file is a function of the room's own file.
                    let floor = floor_of(&floors, &import).or_else(|| floors.get(OWN_FILE));
                    let is_below = floor.is_some_and(|floor| floor < own);
                    if import != name && !is_below {
                        let import =
                            if import.is_empty() { "the room's own file" } else { &import };
                        found.push(format!(
                            "{}:{number}: {name} (floor {own}) imports {import}",
                            path.display()
                        ));
                    }
                }
            }
        }
        let is_file = |name: &&String| ![EVERY_OTHER, OWN_FILE].contains(&name.as_str());
        for name in floors.keys().filter(is_file) {
            let file = room.join(name).with_extension("rs");
            if !sources.iter().any(|(path, _)| *path == file) {
                found.push(format!("{}: {name} has a floor and no file", room.display()));
            }
        }
    }
    found
}

/// The rooms that must have a table of floors.
const ROOMS: [&str; 17] = [
    "queue.rs",
    "config.rs",
    "config_table.rs",
    "delivery.rs",
    "delivery/endpoints.rs",
    "outputs.rs",
    "outputs/http.rs",
    "outputs/transport.rs",
    "transform/policy.rs",
    "transform/redact.rs",
    "recorder.rs",
    "relay.rs",
    "relay/admin.rs",
    "relay/listener.rs",
    "telemetry.rs",
    "tools/haproxy.rs",
    "tools/replay.rs",
];

#[test]
fn files_of_a_room_import_only_from_the_floors_below() {
    let sources: Vec<_> = sources().into_iter().map(|source| (source.path, source.text)).collect();
    for room in ROOMS {
        let (_, text) = sources.iter().find(|(path, _)| path == Path::new(room)).expect(room);
        assert!(floors(text).is_some_and(|floors| floors.len() > 2), "{room} has no floors");
    }
    let found = floor_violations(&sources);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn an_import_against_the_flow_inside_a_room_would_be_found() {
    let table = "//! | floor | files | x |\n//! |---|---|---|\n//! | 1 | `low` `side` | x |\n\
                 //! | 2 | `high` | x |\n";
    let count = |path: &str, text: &str| {
        let mut sources = vec![(PathBuf::from("room.rs"), table.to_owned())];
        for name in ["low", "side", "high"] {
            let file = PathBuf::from(format!("room/{name}.rs"));
            if file != Path::new(path) {
                sources.push((file, String::new()));
            }
        }
        sources.push((PathBuf::from(path), text.to_owned()));
        floor_violations(&sources).len()
    };
    for (path, text, wrong) in [
        ("room/high.rs", "use super::low::Item;\nuse crate::room::side::Item;", 0),
        ("room/high/deep.rs", "use super::super::low::Item;\nuse super::other;", 0),
        ("room/high/deep.rs", "use crate::room::high::Item;", 0),
        ("room/low.rs", "use super::high::Item;", 1),
        ("room/low.rs", "use super::side::Item;", 1),
        ("room/low/deep.rs", "use super::super::high::Item;", 1),
        ("room/low/deep.rs", "use crate::room::high;", 1),
        ("room/low.rs", "use super::Item;", 1),
        ("room/low.rs", "// use super::high::Item;", 0),
        ("room/low.rs", "pub(super) fn f() {}", 0),
        ("room/low.rs", "let x = super::high::f();", 1),
        ("room/low.rs", "#[cfg(test)]\nuse super::high::Item;", 0),
        ("room/new.rs", "", 1),
    ] {
        assert_eq!(count(path, text), wrong, "{path}: {text}");
    }
    let own = "//! | floor | files |\n//! | 1 | `low` |\n//! | 2 | `self` |\n//! | 3 | `high` |\n";
    let count = |path: &str| {
        let files = ["room/low.rs", "room/high.rs"].map(|file| {
            (PathBuf::from(file), if file == path { "use super::Item;" } else { "" }.to_owned())
        });
        let room = (PathBuf::from("room.rs"), own.to_owned());
        floor_violations(&[&[room][..], &files].concat()).len()
    };
    assert_eq!((count("room/low.rs"), count("room/high.rs")), (1, 0));
}
