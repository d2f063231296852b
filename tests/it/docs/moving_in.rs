//! The pages about installing the relay in a cluster and changing its config.

use super::pages::{Page, pages};

use crate::support::prelude::*;

/// The next apply undoes an edit of the ConfigMap in the cluster, so no page may show one.
#[test]
fn a_config_in_a_cluster_is_changed_in_one_way() {
    let forms = ["edit", "patch", "replace", "create"].map(|verb| format!("{verb} configmap"));
    for page in pages() {
        for form in &forms {
            assert!(!page.text.contains(form.as_str()), "{}: {form}", page.path);
        }
        assert!(!page.text.contains("edit cm"), "{}", page.path);
    }
    let page = Page::read("docs/operating/kubernetes.md");
    let (_, section) = page.text.split_once("\n## Change the config\n").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("a next section");
    let file = "deploy/base/relay.toml";
    assert!(section.contains("Always change") && section.contains(file), "{section}");
    assert!(section.contains("kubectl apply -k deploy/overlays/ibm-iks"), "{section}");
    assert!(repository().join(file).is_file());
}

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

/// Each table has at most as many steps on the right as on the left. The paths in `deploy` exist.
#[test]
fn no_tutorial_has_fewer_steps_than_we_have() {
    let page = Page::read("docs/tutorials.md");
    let mut tables = 0;
    for section in page.text.split("\n## ").skip(1) {
        let heading = section.lines().next().expect("a heading");
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        let rows = rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim));
        let cells: Vec<Vec<&str>> = rows.map(Iterator::collect).collect();
        let ours = cells.iter().filter(|row| row.get(1).is_some_and(|it| !it.is_empty())).count();
        assert!(ours > 0 && ours <= cells.len(), "{heading}: {ours} of {}", cells.len());
        tables += 1;
        for word in section.split(['`', ' ']).filter(|word| word.starts_with("deploy/")) {
            assert!(repository().join(word).exists(), "{heading}: {word}");
        }
    }
    assert_eq!(tables, 6);
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
