//! Pages that are generated from the sources. A test generates the text and compares it with the
//! committed file. If they differ, the test fails and prints a unified diff. With
//! `KUBE_AUDIT_FORWARDER_BLESS=1`, it writes the file instead, and passes:
//!
//! ```text
//! KUBE_AUDIT_FORWARDER_BLESS=1 ./test it docs::
//! ```
//!
//! The diff compares line by line, so a page must have line breaks.

use std::path::Path;
use std::process::Command;

use super::{fed, repository};

/// If this environment variable is `1`, the committed files are overwritten instead of compared.
const BLESS: &str = "KUBE_AUDIT_FORWARDER_BLESS";

/// Fails with a unified diff unless the file `path` (below the repository's root) equals
/// `generated`.
#[track_caller]
pub(crate) fn assert_file(path: &str, generated: &str) {
    let result = compare(&repository().join(path), path, generated, is_blessed());
    result.unwrap_or_else(|difference| panic!("{difference}"));
}

/// The lines around the generated part of a page. The rest is written by hand. CONTRIBUTING.md says
/// how to write the part again.
const PART: [&str; 2] = ["<!-- Generated -->\n", "<!-- End -->\n"];

/// Fails with a unified diff unless the generated part of the page `path` equals `generated`.
#[track_caller]
pub(crate) fn assert_part(path: &str, generated: &str) {
    let page = std::fs::read_to_string(repository().join(path)).unwrap();
    let [begin, end] = PART;
    let (before, rest) = page.split_once(begin).expect("the page has a generated part");
    let (_, after) = rest.split_once(end).expect("the generated part has an end");
    assert_file(path, &format!("{before}{begin}\n{generated}\n{end}{after}"));
}

/// Wraps a paragraph at 100 columns. Each line after the first begins with `indent`.
pub(crate) fn wrapped(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("one at least");
        match line.chars().count() + 1 + word.chars().count() {
            0..=100 if !line.is_empty() => line.push_str(&format!(" {word}")),
            _ if line.is_empty() => line.push_str(word),
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines.join("\n") + "\n"
}

fn is_blessed() -> bool {
    std::env::var_os(BLESS).is_some_and(|value| value == "1")
}

/// Writes `generated` into `file` if `bless` is set. Otherwise returns a message if they differ.
fn compare(file: &Path, name: &str, generated: &str, bless: bool) -> Result<(), String> {
    let committed = std::fs::read_to_string(file).unwrap_or_default();
    if committed == generated {
        return Ok(());
    }
    if bless {
        std::fs::create_dir_all(file.parent().expect("a file is in a folder")).unwrap();
        std::fs::write(file, generated).unwrap();
        return Ok(());
    }
    let difference = difference(file, &committed, name, generated);
    Err(format!(
        "{name} is not what the sources generate. Run this test again with {BLESS}=1, which writes \
         the file:\n{difference}"
    ))
}

/// Returns the unified diff from `committed` to `generated`, as diff(1) prints it.
fn difference(file: &Path, committed: &str, name: &str, generated: &str) -> String {
    // diff(1) reads one text from a file, which may not exist, and the other from its stdin.
    let file = if committed.is_empty() { Path::new("/dev/null") } else { file };
    let mut diff = Command::new("diff");
    diff.args(["-U2", "--label", &format!("{name} (committed)")]);
    diff.args(["--label", &format!("{name} (generated)")]).arg(file).arg("-");
    String::from_utf8(fed(&mut diff, generated.as_bytes()).stdout).unwrap()
}

/// Method: a new page is compared, blessed and compared again; then a changed page is compared.
#[test]
fn a_generated_page_is_compared_line_by_line_and_written_when_blessed() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("docs/page.md");
    let lines = |count: u32| (1..=count).map(|line| format!("line {line}\n")).collect::<String>();
    let new = compare(&file, "page.md", &lines(2), false).unwrap_err();
    assert!(new.contains("+line 1\n+line 2\n"), "{new}");
    compare(&file, "page.md", &lines(100), true).unwrap();
    compare(&file, "page.md", &lines(100), false).unwrap();
    let changed = lines(100).replace("line 50\n", "another\n");
    let shown = compare(&file, "page.md", &changed, false).unwrap_err();
    assert!(shown.contains("\n-line 50\n+another\n"), "{shown}");
    assert!(shown.contains(BLESS) && shown.lines().count() < 12, "{shown}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), lines(100), "it was not blessed");
}
