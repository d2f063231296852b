//! `evidence copy`: a copy of a directory in use is intact, and the directory does not change.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::recorded::Recorded;
use super::verify::{Checked, check};
use crate::support::prelude::*;

fn copy(directory: &Path, to: &Path) -> Checked {
    let arguments = ["evidence", "copy", directory.to_str().unwrap(), to.to_str().unwrap()];
    let output = run_command(&arguments, Path::new("/"));
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    Checked { status: output.status.code().unwrap(), text }
}

/// Returns each file and directory below a place, with its mode.
fn modes(place: &Path) -> Vec<(String, u32)> {
    let found = Command::new("find").arg(place).args(["-printf", "%P %m\n"]).output().unwrap();
    let lines = String::from_utf8(found.stdout).unwrap();
    let parse = |line: &str| {
        let (name, mode) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), u32::from_str_radix(mode, 8).unwrap())
    };
    lines.lines().map(parse).collect()
}

/// Method: 1,200 events come in per second, a checkpoint is signed every second, and the line
/// hashes have so little room that the oldest ones are deleted all the time.
#[test]
fn a_copy_under_load_always_verifies() {
    let recorded = Recorded::new();
    let config = recorded.config("max_bytes = \"1MiB\"\n");
    let relay = Relay::start(&config);
    let address = relay.address();
    // The oldest hashes are deleted when all hashes take 1 MiB: 32,768 events.
    post_batches(&relay, 0..12, 4000, 300);
    let log = recorded.log();
    wait_until("a checkpoint", PATIENCE, || log.join("checkpoint").exists());
    let is_over = AtomicBool::new(false);
    let place = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for seed in 100.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let body = generated_batch(seed, 120, 300);
                http::post(address, "/", "application/json", &body).ok();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let over = Over(&is_over);
        let mut has_new = false;
        // The copies continue until a checkpoint was signed during one of them.
        for number in 0..1000 {
            if has_new && number >= 20 {
                break;
            }
            let directory = if number % 2 == 0 { recorded.spool.path() } else { log.as_path() };
            let to = place.path().join(number.to_string());
            let copied = copy(directory, &to);
            // A slow machine may sign two checkpoints while one is read.
            if copied.text.contains("run the command again") {
                copied.assert(1, &[]);
                continue;
            }
            copied.assert(0, &[" of line hashes\n"]);
            // The first copies can have a single entry.
            let has_entries =
                [" entry of ", " entries of "].iter().any(|it| copied.text.contains(it));
            assert!(has_entries, "{}", copied.text);
            let to = to.display().to_string();
            let checked = check(&["--directory", &to, "--key", &recorded.verifier]);
            assert!(checked.status == 0 || checked.status == 2, "{}", checked.text);
            assert!(!checked.text.contains("FAULT"), "{}", checked.text);
            let unexplained = checked.text.contains("the log does not say why");
            assert!(!unexplained, "{}{}", copied.text, checked.text);
            has_new |= std::fs::read(log.join("checkpoint")).unwrap()
                != std::fs::read(Path::new(&to).join("checkpoint")).unwrap();
        }
        drop(over);
        assert!(has_new, "no checkpoint was signed meanwhile");
    });
    let first = |place: &Path| std::fs::read_dir(place.join("lines")).unwrap().count();
    assert!(first(&log) > 0);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
}

/// Ends the load when the test ends, even if it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_copy_has_what_the_checkpoint_covers_and_nothing_else() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 600);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    std::fs::write(recorded.spool.path().join("evidence-rolled-back"), "other\nwhy\n").unwrap();
    let before = modes(recorded.spool.path());
    let place = TempDir::new().unwrap();
    let to = place.path().join("copy");
    // The target may be an empty directory.
    std::fs::create_dir(&to).unwrap();
    copy(recorded.spool.path(), &to).assert(0, &[]);
    assert_eq!(modes(recorded.spool.path()), before);
    let copied = modes(&to);
    for (name, mode) in &copied {
        let is_file = to.join(name).is_file();
        assert_eq!(*mode, if is_file { 0o600 } else { 0o700 }, "{name}");
        let known = ["checkpoint", "evidence-rolled-back"].contains(&name.as_str());
        let below = ["tile", "lines", ""].contains(&name.split('/').next().unwrap());
        assert!(known || below, "{name}");
    }
    assert!(copied.iter().any(|(name, _)| name.starts_with("lines/0")), "{copied:?}");
    assert!(!place.path().join("copy.part").exists());
    // The copy verifies completely, and is enough for a proof.
    let to_name = to.display().to_string();
    let found = "events 600/600 found; missing 0";
    check(&["--directory", &to_name, "--key", &recorded.verifier]).assert(0, &[found]);
    let proof = run_command(&["evidence", "prove", &to_name, "--position", "5"], Path::new("/"));
    assert!(proof.status.success() && String::from_utf8(proof.stdout).unwrap().contains("\nsalt "));
    // A copy can be copied.
    copy(&to, &place.path().join("second")).assert(0, &[]);
    assert_eq!(modes(&place.path().join("second")), copied);
}

/// Method: somebody deletes all files of line hashes of a stopped relay.
#[test]
fn a_copy_without_any_line_hashes_says_which_are_missing() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 300);
    relay.finish(Backlog::Stable);
    let lines = recorded.spool.path().join("evidence/lines");
    for file in std::fs::read_dir(&lines).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let place = TempDir::new().unwrap();
    let said = "the line hashes of positions 0 to 299 are missing, and no entry of the log says";
    copy(recorded.spool.path(), &place.path().join("copy")).assert(0, &[said]);
}

#[test]
fn a_place_that_is_taken_is_refused_and_stays_as_it_is() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 300);
    relay.finish(Backlog::Stable);
    let from = recorded.spool.path();
    let place = TempDir::new().unwrap();
    let full = place.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("mine"), "mine").unwrap();
    copy(from, &full).assert(2, &["there is something already"]);
    assert_eq!(std::fs::read(full.join("mine")).unwrap(), b"mine");
    copy(from, &full.join("mine")).assert(2, &["there is something already"]);
    copy(from, &from.join("evidence/copy")).assert(2, &["nothing is written to the directory"]);
    copy(from, &from.join("copy")).assert(2, &["nothing is written to the directory"]);
    copy(from, &place.path().join("none/copy")).assert(2, &["No such file"]);
    std::fs::create_dir(place.path().join("left.part")).unwrap();
    copy(from, &place.path().join("left")).assert(2, &["left.part is there", "delete it"]);
    copy(place.path(), &place.path().join("new")).assert(2, &["holds no evidence"]);
    assert!(!place.path().join("new").exists());

    // If tiles are changed or missing, nothing is left at the target.
    let damaged = recorded.spool.copy();
    let tiles = damaged.path().join("evidence/tile/0");
    let tile = damaged.files().into_keys().filter(|path| path.starts_with("evidence/tile/0"));
    tile.for_each(|path| damaged.edit(&path, |bytes| bytes[0] ^= 1));
    let to = place.path().join("damaged");
    copy(damaged.path(), &to).assert(1, &["the log is damaged"]);
    std::fs::remove_dir_all(tiles).unwrap();
    copy(damaged.path(), &to).assert(1, &["tile/0/000", "missing"]);
    assert!(!to.exists() && !place.path().join("damaged.part").exists());
    let mode = std::fs::metadata(from.join("evidence")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
