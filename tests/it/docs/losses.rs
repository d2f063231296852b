//! One list has all losses without a counter. A page with a sentence about such a loss must link to
//! that list.

use super::pages::{Page, pages};

use crate::support::prelude::*;

const LIST: &str = "docs/concepts/guarantees.md";
const HEADING: &str = "what-no-counter-counts";

/// Phrases that say that nothing counts a loss.
const PHRASES: [&str; 4] = ["no counter", "nobody counts", "uncounted", "without a counter"];

/// Phrases that say the same if the sentence has a word for a loss, such as `lost`.
const PHRASES_WITH_LOSS: [&str; 5] =
    ["not counted", "never counted", "nothing counts", "counts nothing", "count nothing"];

/// Sentences about something other than lost events: the page, and words of the sentence.
const OTHERS: [(&str, &str); 1] = [
    // The sender keeps the events of a closed connection.
    ("docs/runbooks/KubeAuditForwarderConnectionsRefused.md", "No counter of requests"),
];

/// Returns the sentences of a page that have one of the phrases.
fn sentences(page: &Page) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, paragraph) in page.paragraphs() {
        for sentence in paragraph.split_inclusive(". ") {
            let lower = sentence.to_lowercase();
            let has = |phrase: &&str| lower.contains(*phrase);
            let is_of_losses = ["lost", "lose", "losing", "loss"].iter().any(has);
            if PHRASES.iter().any(has) || is_of_losses && PHRASES_WITH_LOSS.iter().any(has) {
                found.push((number, sentence.trim().to_owned()));
            }
        }
    }
    found
}

/// Returns `true` if a page has a link to the list.
fn leads_to_the_list(page: &Page) -> bool {
    page.links().into_iter().any(|link| {
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        heading == HEADING && page.resolve(file) == Path::new(LIST)
    })
}

#[test]
fn each_loss_without_a_counter_leads_to_the_one_list() {
    let (mut wrong, mut used, mut count) = (Vec::new(), BTreeSet::<&(&str, &str)>::new(), 0);
    for page in pages().iter().filter(|page| page.path.starts_with("docs/") && page.path != LIST) {
        for (number, sentence) in sentences(page) {
            let other =
                OTHERS.iter().find(|(path, words)| *path == page.path && sentence.contains(words));
            used.extend(other);
            if other.is_none() {
                count += 1;
                if !leads_to_the_list(page) {
                    wrong.push(format!("{}:{number}: {sentence}", page.path));
                }
            }
        }
    }
    let list = format!("{LIST}#{HEADING}");
    assert!(wrong.is_empty(), "no link to {list} on the page of:\n{}", wrong.join("\n"));
    assert!(count >= 5, "{count} sentences");
    assert_eq!(used.len(), OTHERS.len(), "an exception is not used: only {used:?}");
}

#[test]
fn the_promise_of_the_readme_leads_to_the_list() {
    let (readme, list) = (Page::read("README.md"), Page::read(LIST));
    assert!(list.anchors().contains(HEADING), "{LIST} has no {HEADING}");
    let promise = readme.text.split("\n**A 200 means ").nth(1).expect("the promise");
    let promise = promise.split("\n## ").next().expect("its text").split("\n\nThe relay is").next();
    let promise = Page { path: readme.path, text: promise.expect("its text").to_owned() };
    assert!(leads_to_the_list(&promise), "{}", promise.text);
}

#[test]
fn a_sentence_is_found_over_the_end_of_a_line_and_not_in_code() {
    let text =
        "A crash loses them, and no\ncounter shows it. More is not counted.\n\n`no counter`\n";
    let text = text.to_owned();
    let page = Page { path: "docs/x/y.md".to_owned(), text };
    let found = sentences(&page);
    assert_eq!(found, [(1, "A crash loses them, and no counter shows it.".to_owned())]);
    let link = |to: &str| Page { path: "docs/x/y.md".to_owned(), text: format!("[a]({to})") };
    assert!(leads_to_the_list(&link("../concepts/guarantees.md#what-no-counter-counts")));
    assert!(!leads_to_the_list(&link("../concepts/guarantees.md")) && !leads_to_the_list(&page));
}
