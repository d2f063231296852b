//! The address and the version of this project are in Cargo.toml: `repository` and `version`.
//! Pages, manifests and scripts repeat them. With `KUBE_AUDIT_FORWARDER_BLESS=1`, these tests
//! correct the address and the version there.
//!
//! Whether a release exists is in `deploy/published`, and the pages show the way that works.

use std::process::Command;

use super::pages::{Page, pages};
use crate::support::generated::assert_file;
use crate::support::prelude::*;

/// The folders and files that may contain an address of this project.
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

/// Returns the owner of the repository, such as `kube-audit-forwarder`. The images at ghcr.io have
/// the same owner.
fn owner() -> &'static str {
    let path = env!("CARGO_PKG_REPOSITORY").strip_prefix("https://github.com/").unwrap();
    let (owner, name) = path.split_once('/').unwrap();
    assert_eq!(name, "kube-audit-forwarder", "the images and the chart have the project's name");
    owner
}

/// Writes the owner into each address of this project, between the host and the project's name.
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

/// The words before a version that must be the current one: image tags, downloads, git tags, the
/// chart, and what the program prints. A page about an earlier version says "version 0.1.0" or
/// "release 0.1.0", which are not in this list.
const BEFORE_VERSION: [&str; 16] = [
    "kube-audit-forwarder:",
    "kube-audit-forwarder-",
    "kube-audit-forwarder_",
    "kube-audit-forwarder ",
    "charts/kube-audit-forwarder --version ",
    "`--version ",
    "releases/download/v",
    "gh release download v",
    "release-of-tag.sh v",
    "tag `v",
    "tag such as v",
    "the version, such as ",
    "\n   deploy/release.sh ",
    "target/release-",
    "newTag: ",
    "· version ",
];

/// The same for Chart.yaml.
const BEFORE_VERSION_OF_THE_CHART: [&str; 2] = ["\nversion: ", "\nappVersion: "];

/// Returns the length of the version at the start of the text, such as `0.2.0`, or `None` if there
/// is none.
fn version_length(text: &str) -> Option<usize> {
    let end = text.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(text.len());
    let found = text.get(..end)?.trim_end_matches('.');
    let parts: Vec<&str> = found.split('.').collect();
    (parts.len() == 3 && parts.iter().all(|part| !part.is_empty())).then_some(found.len())
}

/// Writes the version after each of these words that has one. Returns the text, and the number of
/// versions in it.
fn versioned(text: &str, before: &[&str], version: &str) -> (String, usize) {
    let mut text = text.to_owned();
    let mut places = 0;
    for word in before {
        let mut parts = text.split(word);
        let mut made = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let old = version_length(part);
            places += usize::from(old.is_some());
            made.push_str(word);
            made.push_str(if old.is_some() { version } else { "" });
            made.push_str(part.get(old.unwrap_or(0)..).unwrap_or_default());
        }
        text = made;
    }
    (text, places)
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
        // A picture is not text.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let path = text_below(&file);
        assert_file(&path, &published(&text, owner()));
        named += usize::from(text.contains("ghcr.io/") || text.contains("github.com/"));
    }
    assert!(named > 10, "{named} files name a place");
}

#[test]
fn each_version_of_what_is_published_is_that_of_cargo_toml() {
    let version = env!("CARGO_PKG_VERSION");
    let mut count = 0;
    // The changelog keeps the versions that it describes.
    for place in PLACES.iter().filter(|place| **place != "CHANGELOG.md") {
        for file in files(&repository().join(place)) {
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            let path = text_below(&file);
            let (mut made, mut places) = versioned(&text, &BEFORE_VERSION, version);
            if path == "deploy/chart/Chart.yaml" {
                let (chart, found) = versioned(&made, &BEFORE_VERSION_OF_THE_CHART, version);
                assert_eq!(found, 2, "{path}");
                (made, places) = (chart, places + found);
            }
            assert_file(&path, &made);
            count += places;
        }
    }
    assert!(count > 40, "{count} places name the version");
}

#[test]
fn a_download_gets_the_version_and_what_is_said_of_an_earlier_one_stays() {
    let text = "x/releases/download/v0.1.0/kube-audit-forwarder-0.1.0-linux-amd64.tar.gz \
                ghcr.io/o/kube-audit-forwarder:0.1.0. Since version 0.1.0 newTag: 0.1.0\n\
                kube-audit-forwarder-0 kube-audit-forwarder:1 other:0.1.0";
    let expected = "x/releases/download/v1.2.3/kube-audit-forwarder-1.2.3-linux-amd64.tar.gz \
                    ghcr.io/o/kube-audit-forwarder:1.2.3. Since version 0.1.0 newTag: 1.2.3\n\
                    kube-audit-forwarder-0 kube-audit-forwarder:1 other:0.1.0";
    assert_eq!(versioned(text, &BEFORE_VERSION, "1.2.3"), (expected.to_owned(), 4));
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

/// Makes a copy of the pages, with a release or without one. Returns its directory.
pub(super) fn pages_with(release: bool) -> TempDir {
    let directory = TempDir::new().unwrap();
    let files = ["Cargo.toml", "deploy/published", "deploy/published.sh"].map(str::to_owned);
    for path in files.into_iter().chain(pages().into_iter().map(|page| page.path)) {
        let copy = directory.path().join(&path);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(repository().join(&path), copy).unwrap();
    }
    let state = if release { env!("CARGO_PKG_VERSION") } else { "none" };
    let script = directory.path().join("deploy/published.sh");
    assert!(Command::new(script).arg(state).status().unwrap().success());
    directory
}

/// The pages are as `deploy/published` says, and a change of it can be undone.
#[test]
fn each_page_shows_the_way_that_works() {
    let state = std::fs::read_to_string(repository().join("deploy/published")).unwrap();
    let with_release = match state.trim() {
        "none" => false,
        version => {
            assert_eq!(version, env!("CARGO_PKG_VERSION"));
            true
        }
    };
    let (here, other) = (pages_with(with_release), pages_with(!with_release));
    let mut differ = Vec::new();
    for page in pages() {
        let read = |root: &Path| std::fs::read_to_string(root.join(&page.path)).unwrap();
        let ours = read(&repository());
        assert_eq!(read(here.path()), ours, "run deploy/published.sh {state}");
        if read(other.path()) != ours {
            differ.push(page.path);
        }
    }
    assert!(differ.contains(&"README.md".to_owned()) && differ.len() >= 6, "{differ:?}");
    let back = Command::new(other.path().join("deploy/published.sh")).arg(state.trim()).status();
    assert!(back.unwrap().success());
    for path in &differ {
        let read = |root: &Path| std::fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read(other.path()), read(&repository()), "{path}");
    }
    let wrong = Command::new(other.path().join("deploy/published.sh")).arg("9.9.9").output();
    assert_eq!(wrong.unwrap().status.code(), Some(2));
}

/// Without a release, no page names a download, or an image or a chart that only a release has.
#[test]
fn without_a_release_no_page_asks_for_what_was_never_published() {
    let root = pages_with(false);
    for page in pages() {
        let page = Page::read_in(root.path(), &page.path);
        for block in page.blocks() {
            for place in ["ghcr.io/", "releases/download", "gh release"] {
                assert!(!block.code.contains(place), "{}: {}", page.path, block.code);
            }
        }
    }
}
