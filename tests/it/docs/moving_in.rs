//! The pages about installing the relay in a cluster and changing its config.

use super::pages::Page;

use crate::support::prelude::*;

/// Returns the text below a heading of a page, up to the next heading.
fn section(page: &Page, heading: &str) -> Page {
    let (_, rest) = page.text.split_once(&format!("\n{heading}\n")).expect(heading);
    let text = rest.split("\n#").next().unwrap_or(rest).to_owned();
    Page { path: page.path.clone(), text }
}

/// Returns the commands in a section's shell blocks, one for each line. A line after a trailing
/// backslash belongs to the same command.
pub(super) fn commands(section: &Page) -> Vec<String> {
    let shell = section.blocks().into_iter().filter(|block| block.language == "sh");
    let code: String = shell.map(|block| block.code).collect();
    let lines = code.replace("\\\n", " ");
    let is_command = |line: &&str| !line.is_empty() && !line.starts_with('#');
    lines.lines().map(str::trim).filter(is_command).map(str::to_owned).collect()
}

/// Method: the test counts the commands and edits of each way, and compares them with the page's
/// table. There are at most 5 commands and 1 edit, and no line has two commands.
#[test]
fn the_ways_from_a_clone_to_events_are_as_short_as_the_page_says() {
    let page = Page::read("docs/operating/kubernetes.md");
    let table = section(&page, "## Install the relays");
    let ways = [
        ("### With Helm", "[with Helm](#with-helm)"),
        ("### With kubectl", "[with kubectl](#with-kubectl)"),
        (
            "### With an image of your own",
            "[with an image of your own](#with-an-image-of-your-own)",
        ),
        (
            "### On a cluster of your own",
            "[on a cluster of your own](#on-a-cluster-of-your-own), with Helm",
        ),
    ];
    for (heading, link) in ways {
        let way = section(&page, heading);
        let commands = commands(&way);
        for command in &commands {
            let hides = [" && ", " || ", " | ", "; "].iter().any(|join| command.contains(join));
            assert!(!hides, "two commands in one line: {command}");
        }
        let edits = way.text.matches("**Edit**").count();
        let row = format!("| {link} | {} | {edits} |", commands.len());
        assert!(table.text.contains(&row), "{heading}: {row}: {commands:#?}");
        assert!(commands.len() <= 5 && edits <= 1, "{row}");
        // The last command shows the events.
        let last = commands.last().expect("commands");
        assert!(last.contains("port-forward") && last.ends_with(" 9090"), "{last}");
        assert!(commands.iter().any(|it| it.starts_with("deploy/connect.sh ")), "{row}");
    }
    for (path, words) in [
        ("README.md", "three commands and one\nedit"),
        ("docs/start.md", "three commands and one edit"),
    ] {
        assert!(Page::read(path).text.contains(words), "{path}");
        assert_eq!(commands(&section(&page, "### With Helm")).len(), 3);
    }
}

#[test]
fn a_command_over_two_lines_counts_once() {
    let text = "```sh\n# Why.\nhelm install a \\\n  b\npodman push c   # where\n```\n".to_owned();
    let found = commands(&Page { path: "x.md".to_owned(), text });
    assert_eq!(found.len(), 2, "{found:?}");
}

/// Method: two recorded events must match a rule of level Metadata, which records no bodies.
#[test]
fn the_shipped_audit_policy_records_who_did_what() {
    for event in ["06-single-min.json", "08-single-max.json"] {
        let event = format!("tests/corpus/{event}");
        let words = ["policy", "explain", "--policy", "deploy/audit-policy.yaml", &event];
        said(&words, &repository()).assert(0, &["matches: level Metadata"]);
    }
}
