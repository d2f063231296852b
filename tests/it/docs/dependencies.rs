//! The rules of CONTRIBUTING.md about dependencies, as far as the repository's files show them. The
//! rest is checked by `cargo deny`.

use crate::support::{files, repository};

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// Returns the dependencies in a Cargo.toml: the name of each, its line, and whether a comment
/// gives its reason, above the line or at its end.
fn dependencies(path: &str) -> Vec<(String, String, bool)> {
    let mut found = Vec::new();
    let (mut in_table, mut above) = (false, false);
    for line in read(path).lines() {
        if line.starts_with('[') {
            in_table = line.ends_with("dependencies]");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| in_table) {
            let name = name.trim_end_matches(".workspace");
            found.push((name.to_owned(), line.to_owned(), above || line.contains(" # ")));
        }
        above = line.starts_with('#');
    }
    found
}

/// Each foreign dependency has its reason in the workspace's table or in the package's Cargo.toml.
#[test]
fn each_dependency_has_its_reason() {
    let is_taken = |line: &str| line.contains("workspace = true");
    let is_ours = |line: &str| line.contains("path = ");
    let all = dependencies("Cargo.toml");
    assert!(all.iter().filter(|(_, line, _)| !is_taken(line)).count() > 40, "{all:?}");
    for path in files().iter().filter(|path| path.ends_with("Cargo.toml")) {
        for (name, line, has_reason) in dependencies(path) {
            let is_explained = has_reason || is_taken(&line) || is_ours(&line);
            assert!(is_explained, "{path}: {name} has no reason");
        }
    }
}

#[test]
fn each_exception_of_cargo_deny_has_its_reason() {
    let deny: toml::Table = read("deny.toml").parse().unwrap();
    let lists = [&deny["advisories"]["ignore"], &deny["bans"]["deny"]];
    for exception in lists.into_iter().flat_map(|list| list.as_array().unwrap()) {
        let reason = exception.get("reason").and_then(|reason| reason.as_str());
        assert!(reason.is_some_and(|reason| reason.len() > 10), "{exception:?}");
    }
}

/// The compiler in the image is the one that Cargo.toml names, and the base image cannot change.
#[test]
fn the_containerfile_names_its_base_by_digest_and_with_the_rust_of_cargo() {
    let cargo: toml::Table = read("Cargo.toml").parse().unwrap();
    let version = cargo["workspace"]["package"]["rust-version"].as_str().unwrap();
    let containerfile = read("deploy/Containerfile");
    let of_registry: Vec<_> = containerfile
        .lines()
        .filter_map(|line| line.strip_prefix("FROM "))
        .filter(|from| !from.starts_with("scratch") && !from.starts_with("${BINARY}"))
        .collect();
    let [from] = of_registry[..] else { panic!("{of_registry:?}") };
    let base = format!("docker.io/library/rust:{version}-bookworm@sha256:");
    let digest = from.strip_prefix(&base).and_then(|rest| rest.strip_suffix(" AS build"));
    let is_hex =
        |digest: &str| digest.len() == 64 && digest.bytes().all(|it| it.is_ascii_hexdigit());
    assert!(digest.is_some_and(is_hex), "{from}");
}
