//! The pages about installing the relay in a cluster and changing its config.

use super::pages::Page;
use super::published::pages_with;

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

/// Method: the test counts the commands and edits of each way, with a release and without one, and
/// compares them with the page's table. There are at most 5 commands and 2 edits, and no line has
/// two commands.
#[test]
fn the_ways_from_a_clone_to_events_are_as_short_as_the_page_says() {
    for release in [false, true] {
        let root = pages_with(release);
        let page = Page::read_in(root.path(), "docs/operating/kubernetes.md");
        let table = section(&page, "## Install the relays");
        let ways = [
            ("### With kubectl", "[with kubectl](#with-kubectl)"),
            ("### With Helm", "[with Helm](#with-helm)"),
            (
                "### On a cluster of your own",
                "[on a cluster of your own](#on-a-cluster-of-your-own)",
            ),
        ];
        for (heading, link) in ways {
            let way = section(&page, heading);
            let commands = commands(&way);
            for command in &commands {
                let joins = [" && ", " || ", " | ", "; "];
                let hides = joins.iter().any(|join| command.contains(join));
                assert!(!hides, "two commands in one line: {command}");
            }
            let edits = way.text.matches("**Edit**").count();
            let row = format!("| {link} | {} | {edits} |", commands.len());
            assert!(table.text.contains(&row), "{heading}: {row}: {commands:#?}");
            assert!(commands.len() <= 5 && edits <= 2, "{row}");
            // The first command makes the image, unless there is a release. The last command shows
            // the events.
            assert_eq!(commands[0].starts_with("deploy/image.sh "), !release, "{row}");
            let last = commands.last().expect("commands");
            assert!(last.contains("port-forward") && last.ends_with(" 9090"), "{last}");
            assert!(commands.iter().any(|it| it.starts_with("deploy/connect.sh ")), "{row}");
        }
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
