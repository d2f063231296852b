//! Helpers for the unit tests of several crates: seeds, recorded bodies, small languages for lists
//! and changes, and fakes.
//!
//! Only `[dev-dependencies]` name this crate. It imports the crates whose fakes it has. The unit
//! tests of such a crate cannot use the fakes: they would see two copies of each type.
#![allow(clippy::print_stdout, reason = "a test prints its seeds")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "only tests use it"
)]

mod alone;
pub mod simulated_disk;

pub use alone::runs_alone;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Returns the seeds for a randomised test, and prints them if there are several. The first half
/// are the numbers from 0. The second half begins at [`base()`], so that each commit is tested with
/// other seeds. The environment variable `KUBE_AUDIT_FORWARDER_SEEDS` replaces `usual`, the number
/// of seeds, or says how many percent of it are taken, such as `5%`; `KUBE_AUDIT_FORWARDER_SEED`
/// selects one seed.
pub fn seeds(usual: u64) -> Vec<u64> {
    if let Some(seed) = number("KUBE_AUDIT_FORWARDER_SEED") {
        return vec![seed];
    }
    let count = count(usual);
    let (fixed, base) = (0..count.div_ceil(2), base());
    let moving = base..base.saturating_add(count / 2);
    println!("seeds {fixed:?} and {moving:?}");
    fixed.chain(moving).collect()
}

/// Returns the number of cases for a test of proptest, which `KUBE_AUDIT_FORWARDER_SEEDS` changes
/// as it changes that of [`seeds`].
pub fn cases(usual: u32) -> u32 {
    u32::try_from(count(usual.into())).expect("a number of cases")
}

fn count(usual: u64) -> u64 {
    let variable = "KUBE_AUDIT_FORWARDER_SEEDS";
    let text = std::env::var(variable).unwrap_or_else(|_| "100%".to_owned());
    match text.strip_suffix('%') {
        Some(percent) => (usual * parsed(variable, percent)).div_ceil(100),
        None => parsed(variable, &text),
    }
}

/// Returns the first of the seeds that move: the variable `KUBE_AUDIT_FORWARDER_SEED_BASE`, or the
/// first 32 bits of the commit that is checked out, or, without git, the number of days since 1970.
fn base() -> u64 {
    number("KUBE_AUDIT_FORWARDER_SEED_BASE").or_else(commit).unwrap_or_else(|| {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        since_1970.as_secs() / 86_400
    })
}

/// Returns the first 32 bits of the hash of the commit that is checked out.
fn commit() -> Option<u64> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "HEAD"]).current_dir(repository("."));
    let hash = git.output().ok().filter(|output| output.status.success())?.stdout;
    u64::from_str_radix(std::str::from_utf8(hash.get(..8)?).ok()?, 16).ok()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(parsed(variable, &text))
}

fn parsed(variable: &str, text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{variable}: not a number: {text}"))
}

/// Returns a text before and after a change: `a«b»c«d→e»f` is `abcdf` before and `acef` after it. A
/// part between `«` and `»` is removed; if it has a `→`, the text before the `→` is replaced by the
/// text after it.
pub fn marked(text: &str) -> (String, String) {
    let (mut before, mut after) = (String::new(), String::new());
    for (index, part) in text.split(['«', '»']).enumerate() {
        let is_marked = index % 2 == 1;
        let (old, new) = match part.split_once('→') {
            Some(parts) if is_marked => parts,
            _ => (part, if is_marked { "" } else { part }),
        };
        before += old;
        after += new;
    }
    (before, after)
}

/// Returns the texts of a list, which are separated by `|` and line breaks. Line breaks at the
/// beginning and at the end do not count.
pub fn list(text: &str) -> Vec<&str> {
    text.trim_matches('\n').split(['|', '\n']).collect()
}

/// Returns `true` if the environment variable `KUBE_AUDIT_FORWARDER_SEED` selects one seed. A test
/// may then print each of its steps.
pub fn is_alone() -> bool {
    std::env::var_os("KUBE_AUDIT_FORWARDER_SEED").is_some()
}

/// A guard for the test of one seed: if the test panics, dropping the guard prints the command that
/// runs this seed alone.
pub struct Failing(pub u64);

impl Drop for Failing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            println!(
                "\nseed {seed} fails; alone: KUBE_AUDIT_FORWARDER_SEED={seed} cargo nextest run --workspace --lib {test}",
                seed = self.0
            );
        }
    }
}

/// Returns the path of a file or directory of the repository, such as `tests/corpus`.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Returns the contents of a file in `tests/corpus`, such as `audit.log`, which has 495 events, one
/// on each line.
pub fn corpus_file(name: &str) -> Vec<u8> {
    std::fs::read(repository("tests/corpus").join(name)).unwrap()
}

/// Returns the path and the contents of each recorded request body in `tests/corpus`, sorted by
/// path.
pub fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut bodies: Vec<_> = std::fs::read_dir(repository("tests/corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
        .collect();
    bodies.sort();
    assert_eq!(bodies.len(), 19);
    bodies
}
