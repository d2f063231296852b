//! The links between the documents, and the book's table of contents.

use std::collections::{BTreeMap, BTreeSet};

use super::pages::{Page, pages};

use crate::support::prelude::*;

/// Method: every link must lead to a file or folder of the repository, and to a heading if it has
/// an anchor. Links to other sites are not checked.
#[test]
fn links_lead_to_files_and_to_headings() {
    let pages = pages();
    let mut anchors = BTreeMap::new();
    for page in &pages {
        anchors.insert(PathBuf::from(&page.path), page.anchors());
    }
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in &pages {
        for link in page.links() {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (file, heading) = match link.split_once('#') {
                Some((file, heading)) => (file, Some(heading)),
                None => (link, None),
            };
            let target = if file.is_empty() { (&page.path).into() } else { page.resolve(file) };
            if !repository().join(&target).exists() {
                wrong.push(format!("{}: {link}: no such file", page.path));
            } else if let Some(heading) = heading
                && !anchors.get(&target).is_some_and(|known| known.contains(heading))
            {
                wrong.push(format!("{}: {link}: no such heading", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 200, "{count}");
}

#[test]
fn the_contents_name_every_page_once_and_every_page_begins_with_its_title() {
    let contents = Page::read("docs/SUMMARY.md");
    let mut named = BTreeSet::new();
    for link in contents.links() {
        assert!(named.insert(contents.resolve(link)), "{link} is named twice");
    }
    let is_page = |page: &Page| page.path.starts_with("docs/") && page.path != contents.path;
    let pages: Vec<Page> = pages().into_iter().filter(is_page).collect();
    let all: BTreeSet<PathBuf> = pages.iter().map(|page| PathBuf::from(&page.path)).collect();
    assert_eq!(named, all);
    for page in pages {
        let title = page.prose().find(|(_, line)| line.starts_with('#'));
        assert!(title.is_some_and(|(_, line)| line.starts_with("# ")), "{}", page.path);
    }
}

/// A section has at most nine pages. A page has at most 250 lines, unless it is generated or one of
/// [`LISTS`].
#[test]
fn the_contents_have_two_levels_and_no_section_and_no_page_is_long() {
    let contents = Page::read("docs/SUMMARY.md");
    let (mut section, mut entries) = ("", 0);
    for (number, line) in contents.prose().filter(|(_, line)| !line.is_empty()) {
        if let Some(heading) = line.strip_prefix("# ") {
            (section, entries) = (heading, 0);
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        let is_entry = line.trim_start().starts_with("- [");
        assert!(is_entry && [0, 2].contains(&depth), "line {number} is on a third level: {line}");
        assert!(depth == 0 || entries > 0, "line {number} is below no page: {line}");
        entries += 1;
        assert!(entries <= 9, "more than nine pages in the section {section}: {line}");
    }
    for page in pages().into_iter().filter(|page| page.path.starts_with("docs/")) {
        let lines = page.text.lines().count();
        let is_generated = page.text.contains("<!-- Generated from ");
        let is_list = LISTS.contains(&page.path.as_str());
        assert!(lines <= 250 || is_generated || is_list, "{}: {lines} lines", page.path);
    }
}

/// Pages that nobody reads from beginning to end: a row for each metric, or each field of an
/// object. Tests compare these pages with the sources.
const LISTS: [&str; 2] = ["docs/reference/metrics.md", "docs/reference/status-json.md"];
