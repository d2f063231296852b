//! Pages, and parts of pages, that are generated from the sources. A test generates the text and
//! compares it with the committed file. If they differ, the test fails and prints a unified diff;
//! with `KUBE_AUDIT_FORWARDER_BLESS=1` it writes the file instead, and passes:
//!
//! ```text
//! KUBE_AUDIT_FORWARDER_BLESS=1 ./test it docs::
//! ```
//!
//! The diff goes line by line, so a page must have line breaks. [`assert_file`] is for a file that
//! is generated from its first byte to its last, [`assert_block`] for the part of a file between
//! two markers.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use super::repository;

/// If this environment variable is `1`, the committed files are overwritten instead of compared.
const BLESS: &str = "KUBE_AUDIT_FORWARDER_BLESS";

/// Fails with a unified diff unless the file `path` is equal to `generated`. The path is relative
/// to the repository's root.
#[track_caller]
pub(crate) fn assert_file(path: &str, generated: &str) {
    let result = compare(&repository().join(path), path, generated, is_blessed());
    result.unwrap_or_else(|difference| panic!("{difference}"));
}

/// Fails with a unified diff unless the part of the file `path` between `begin` and `end` is equal
/// to `generated`. The part starts after the line break that follows `begin`, and ends before
/// `end`. Both markers must be in the file; they are never written.
#[track_caller]
pub(crate) fn assert_block(path: &str, begin: &str, end: &str, generated: &str) {
    let file = repository().join(path);
    let result = compare_block(&file, path, [begin, end], generated, is_blessed());
    result.unwrap_or_else(|difference| panic!("{difference}"));
}

fn is_blessed() -> bool {
    std::env::var_os(BLESS).is_some_and(|value| value == "1")
}

/// Writes `generated` into `file` if `bless` is set. Otherwise returns what to print if they
/// differ.
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

/// Like [`compare`], for the part of the file between two markers.
fn compare_block(
    file: &Path,
    name: &str,
    [begin, end]: [&str; 2],
    generated: &str,
    bless: bool,
) -> Result<(), String> {
    let committed = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{name}: {error}"));
    let missing = |marker: &str| format!("{name} has no line {marker:?}");
    let (before, rest) = committed.split_once(&*format!("{begin}\n")).ok_or(missing(begin))?;
    let (_, after) = rest.split_once(end).ok_or(missing(end))?;
    compare(file, name, &format!("{before}{begin}\n{generated}{end}{after}"), bless)
}

/// Returns the unified diff from `committed` to `generated`, as diff(1) prints it.
fn difference(file: &Path, committed: &str, name: &str, generated: &str) -> String {
    // diff(1) reads one text from a file, which may not exist yet, and the other from its stdin.
    let file = if committed.is_empty() { Path::new("/dev/null") } else { file };
    let mut diff = Command::new("diff")
        .args(["-U2", "--label", &format!("{name} (committed)")])
        .args(["--label", &format!("{name} (generated)")])
        .arg(file)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("diff: {error}"));
    let mut stdin = diff.stdin.take().expect("it is piped");
    let generated = generated.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(generated.as_bytes()));
    let output = diff.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Compares, sees the lines that differ and no other, blesses, and compares again.
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

/// The part between the markers is compared and written; the rest of the file stays.
#[test]
fn a_generated_block_leaves_the_rest_of_its_page_alone() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("page.md");
    std::fs::write(&file, "head\n<!-- begin -->\nold\n<!-- end -->\nfoot\n").unwrap();
    let markers = ["<!-- begin -->", "<!-- end -->"];
    let of = |generated: &str, bless| compare_block(&file, "page.md", markers, generated, bless);
    of("old\n", false).unwrap();
    let shown = of("new\n", false).unwrap_err();
    assert!(shown.contains("\n-old\n+new\n") && shown.contains("\n foot\n"), "{shown}");
    of("new\n", true).unwrap();
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written, "head\n<!-- begin -->\nnew\n<!-- end -->\nfoot\n");
    let missing = compare_block(&file, "page.md", ["<!-- no -->", "<!-- end -->"], "", true);
    assert_eq!(missing.unwrap_err(), "page.md has no line \"<!-- no -->\"");
}
