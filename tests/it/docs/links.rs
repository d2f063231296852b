//! The links between the documents, and the contents of the book.

use std::collections::{BTreeMap, BTreeSet};

use super::pages::{Page, pages};

use crate::support::prelude::*;

/// Every link of every page is followed: to a file or folder of the repository, and to a heading
/// where it has an anchor. Links to other sites are not asked for.
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
