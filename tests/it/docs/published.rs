//! One line names the place where this project is published: `repository` in Cargo.toml. Pages,
//! manifests and scripts name places below it. With `KUBE_AUDIT_FORWARDER_BLESS=1` these tests
//! write the names of that line into them.

use crate::support::generated::assert_file;
use crate::support::prelude::*;

/// The folders and files that may name a published place.
const PLACES: [&str; 9] = [
    ".github",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "book.toml",
    "crates/telemetry/src",
    "deploy",
    "docs",
];

/// The owner of the repository, such as `kube-audit-forwarder`. The images are at ghcr.io, below
/// the same owner.
fn owner() -> &'static str {
    let path = env!("CARGO_PKG_REPOSITORY").strip_prefix("https://github.com/").unwrap();
    let (owner, name) = path.split_once('/').unwrap();
    assert_eq!(name, "kube-audit-forwarder", "the images and the chart have the project's name");
    owner
}

/// Writes the owner into each address of this project: what is between a host and what is behind.
fn published(text: &str, owner: &str) -> String {
    let mut made = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((host, at)) = ["github.com/", "ghcr.io/"]
        .into_iter()
        .filter_map(|host| rest.find(host).map(|at| (host, at)))
        .min_by_key(|found| found.1)
    {
        let (before, found) = rest.split_at(at + host.len());
        made.push_str(before);
        let is_of_a_name = |it: char| it.is_ascii_alphanumeric() || it == '-';
        let end = found.find(|it| !is_of_a_name(it)).unwrap_or(found.len());
        let (name, behind) = found.split_at(end);
        let is_ours = ["/kube-audit-forwarder", "/charts"].iter().any(|it| behind.starts_with(it));
        made.push_str(if is_ours && !name.is_empty() { owner } else { name });
        rest = behind;
    }
    made + rest
}

fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let entries = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|entry| files(&entry)).collect()
}

#[test]
fn each_published_place_is_below_the_repository_of_cargo_toml() {
    let mut named = 0;
    for file in PLACES.iter().flat_map(|place| files(&repository().join(place))) {
        // A picture is no text.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let path = text_below(&file);
        assert_file(&path, &published(&text, owner()));
        named += usize::from(text.contains("ghcr.io/") || text.contains("github.com/"));
    }
    assert!(named > 10, "{named} files name a place");
}

fn text_below(file: &Path) -> String {
    text(file.strip_prefix(repository()).unwrap()).to_owned()
}

#[test]
fn an_address_gets_its_owner_and_those_of_others_keep_theirs() {
    let text = "https://github.com/a-b/kube-audit-forwarder/x ghcr.io/old/charts/y \
                https://github.com/other/project ghcr.io/$OWNER";
    let expected = "https://github.com/new/kube-audit-forwarder/x ghcr.io/new/charts/y \
                    https://github.com/other/project ghcr.io/$OWNER";
    assert_eq!(published(text, "new"), expected);
}
