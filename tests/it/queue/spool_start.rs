//! Directories that can't be used. The relay does not start, says what to do, and changes nothing.

use std::os::unix::fs::{PermissionsExt as _, chown};

use crate::support::filesystem::{Kind, Mounted};
use crate::support::numbered::list;
use crate::support::prelude::*;
use crate::support::relay::spawn_run;
use crate::support::spool::{Entry, set_segment_version, set_slot_version, slots};

/// Returns a config with one output. Its consumer is down at first, so that all events stay in the
/// spool.
fn config(spool: &Spool, consumer: &Tallying) -> String {
    let queue = spool.queue("segment_bytes = \"64KiB\"\n");
    format!("{BASE}{}{queue}", consumer.output("out", ""))
}

/// Fills the spool with a few segments, and stops the relay.
fn fill(spool: &Spool, consumer: &Tallying) {
    let mut relay = Relay::start(&config(spool, consumer));
    for start in (0..1000).step_by(100) {
        assert_eq!(relay.post(&list(0, start..start + 100)).status, 200);
    }
    relay.stop();
}

/// Starts a relay that must fail. Returns its exit status and its standard error.
fn refusal(config: &str, launcher: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let (status, said) = spawn_run(launcher, &file, directory.path()).wait();
    (status.code(), said)
}

/// Checks that the relay does not start, prints these words, and does not change the spool.
fn assert_refused(spool: &Spool, config: &str, launcher: &[&str], words: &[&str]) {
    let before: BTreeMap<PathBuf, Entry> = spool.files();
    let (code, said) = refusal(config, launcher);
    assert!(matches!(code, Some(1 | 2)), "{code:?}: {said}");
    for word in words {
        assert!(said.contains(word), "no \"{word}\" in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(spool.files(), before, "{said}");
}

/// Checks that a relay can now start and delivers the backlog of [`fill`].
fn assert_intact(spool: &Spool, mut consumer: Tallying) {
    consumer.set_open(true);
    let relay = Relay::start(&config(spool, &consumer));
    relay.finish(Backlog::Empty);
    consumer.tally.wait_for_count(1000, PATIENCE);
    let arrived: Vec<u64> =
        consumer.tally.arrivals().iter().map(|arrival| arrival.id.number).collect();
    assert_eq!(arrived, (0..1000).collect::<Vec<u64>>());
}

#[test]
fn a_segment_of_a_newer_version() {
    let (spool, consumer) = (Spool::new(), Tallying::tcp().closed());
    fill(&spool, &consumer);
    let segments = spool.segments();
    assert!(segments.len() > 3, "{segments:?}");
    for segment in [&segments[0], &segments[1], segments.last().unwrap()] {
        spool.edit(segment, |bytes| set_segment_version(bytes, 3));
        let name = segment.file_name().unwrap().to_str().unwrap();
        let words = [name, "version 3", "run the version that wrote it"];
        assert_refused(&spool, &config(&spool, &consumer), &[], &words);
        spool.edit(segment, |bytes| set_segment_version(bytes, 2));
    }
    assert_intact(&spool, consumer);
}

/// Method: the files are a copy of the oldest segment, and one with the header of another queue.
#[test]
fn segments_that_the_queue_did_not_write() {
    let (spool, mut consumer) = (Spool::new(), Tallying::tcp().closed());
    fill(&spool, &consumer);
    let copy = std::fs::read(spool.path().join(&spool.segments()[0])).unwrap();
    let files = [(50_u64, copy), (100_000, vec![0xa5; 9000])].map(|(first, bytes)| {
        let file = spool.path().join(format!("segments/{first:020}.seg"));
        std::fs::write(&file, &bytes).unwrap();
        (file, bytes)
    });
    let directory = spool.path().display().to_string();
    let said = run_command(&["queue", "verify", &directory], spool.path());
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said.matches(": not written by this queue").count(), 2, "{said}");
    assert!(said.contains("in 2 places, 0 events missing"), "{said}");
    consumer.set_open(true);
    let relay = Relay::start(&config(&spool, &consumer));
    let text = "files in segments/ were not written by this queue: they are left alone, and none \
                of their events is sent or counted; find out who writes to queue.directory, and \
                move the files away";
    relay.wait_for_log(text, PATIENCE);
    consumer.tally.wait_for_count(1000, PATIENCE);
    assert_eq!(relay.metrics().count("error_total", &[("plugin", "out")]), 0);
    relay.finish(Backlog::Empty);
    files.iter().for_each(|(file, bytes)| assert_eq!(&std::fs::read(file).unwrap(), bytes));
}

#[test]
fn cursors_of_a_newer_version() {
    let (spool, consumer) = (Spool::new(), Tallying::tcp().closed());
    fill(&spool, &consumer);
    let cursors = Path::new("cursors");
    let of_both = slots(&std::fs::read(spool.path().join(cursors)).unwrap());
    for (slot, _) in &of_both {
        spool.edit(cursors, |bytes| set_slot_version(bytes, slot, 2));
        let words = ["cursors", "version 2", "run the version that wrote it"];
        assert_refused(&spool, &config(&spool, &consumer), &[], &words);
        spool.edit(cursors, |bytes| set_slot_version(bytes, slot, 1));
    }
    assert_intact(&spool, consumer);
}

/// Root ignores permissions. These words start the relay without that capability.
const WITHOUT_PRIVILEGE: &[&str] =
    &["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"];

const NOBODY: u32 = 65_534;

#[test]
fn a_path_that_is_a_file_or_leads_through_one() {
    let consumer = Tallying::tcp().closed();
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    std::fs::write(&file, "somebody's").unwrap();
    for path in [file.clone(), file.join("below")] {
        let spool = Spool::at(path);
        assert_refused(&spool, &config(&spool, &consumer), &[], &["file", "directory"]);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    for name in ["cursors", "spool.lock", "segments", "spare", "quarantine", "set-aside"] {
        let (spool, consumer) = (Spool::new(), Tallying::tcp().closed());
        fill(&spool, &consumer);
        std::fs::write(&victim, "somebody's").unwrap();
        let path = spool.path().join(name);
        let target = if path.is_dir() { outside.path() } else { &victim };
        let aside = spool.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(target, &path).unwrap();
        let (code, said) = refusal(&config(&spool, &consumer), &[]);
        assert!(matches!(code, Some(1 | 2)), "{name}: {code:?}: {said}");
        assert!(said.contains(name), "{said}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"somebody's", "{name} was followed");
        let outside = std::fs::read_dir(outside.path()).unwrap().count();
        assert_eq!(outside, 1, "{name} was followed");
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        assert_intact(&spool, consumer);
    }
}

#[test]
fn a_config_error_is_told_before_the_directory_is_touched() {
    let consumer = Tallying::tcp().closed();
    let missing = Spool::new();
    let wrong = |spool: &Spool| format!("{}\n[queue_]\n", config(spool, &consumer));
    assert_refused(&missing, &wrong(&missing), &[], &["queue_"]);
    assert!(!missing.path().exists());

    // This fault is only found when the files are read.
    let no_file = "bearer_token_file = \"/no/such/file\"\n";
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let no_token = config(&missing, &consumer).replace(listener, &format!("{listener}{no_file}"));
    assert_refused(&missing, &no_token, &[], &["/no/such/file"]);
    assert!(!missing.path().exists());

    let spool = Spool::new();
    fill(&spool, &consumer);
    assert_refused(&spool, &wrong(&spool), &[], &["queue_"]);
    assert_intact(&spool, consumer);
}

#[test]
fn an_address_in_use_leaves_the_backlog_alone() {
    let (spool, consumer) = (Spool::new(), Tallying::tcp().closed());
    fill(&spool, &consumer);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = config(&spool, &consumer).replace(
        "[[listener]]\naddress = \"127.0.0.1:0\"",
        &format!("[[listener]]\naddress = \"{address}\""),
    );
    let (code, said) = refusal(&config, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
    assert_intact(&spool, consumer);
}

/// Most of these tests need root.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_directory_that_another_relay_holds() {
        let (spool, consumer) = (Spool::new(), Tallying::tcp().closed());
        fill(&spool, &consumer);
        let config = config(&spool, &consumer);
        let relay = Relay::start(&config);
        relay.settle(Backlog::Stable);
        let path = spool.path().display().to_string();
        assert_refused(&spool, &config, &[], &[&path, "another process", "stop"]);
        // The first relay continues.
        assert_eq!(relay.metrics().value("output_start_events", &[("output", "out")]), 1000.0);
        relay.finish(Backlog::Stable);
        assert_intact(&spool, consumer);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_directory_whose_lock_file_somebody_has_deleted_under_a_relay() {
        let (spool, consumer) = (Spool::new(), Tallying::tcp().closed());
        fill(&spool, &consumer);
        let config = config(&spool, &consumer);
        let mut relay = Relay::start(&config);
        relay.settle(Backlog::Stable);
        std::fs::remove_file(spool.path().join("spool.lock")).unwrap();
        let path = spool.path().display().to_string();
        assert_refused(&spool, &config, &[], &[&path, "another process", "stop"]);
        relay.stop();
        assert_intact(&spool, consumer);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_directory_of_another_user() {
        let (spool, consumer) = (Spool::new(), Tallying::tcp().closed());
        fill(&spool, &consumer);
        let config = config(&spool, &consumer);
        let owner = |user| {
            chown(spool.path(), Some(user), Some(user)).expect("root, who may give files away");
        };
        owner(NOBODY);
        let path = spool.path().display().to_string();
        let words = [path.as_str(), "Permission denied", "writable by the user"];
        assert_refused(&spool, &config, WITHOUT_PRIVILEGE, &words);
        owner(0);

        // The directory is readable, but not writable.
        let mode = |mode| {
            std::fs::set_permissions(spool.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o500);
        std::fs::remove_file(spool.path().join("spool.lock")).unwrap();
        assert_refused(&spool, &config, WITHOUT_PRIVILEGE, &words);
        mode(0o700);
        // Only the directory of the segments is not writable.
        let segments = spool.path().join("segments");
        chown(&segments, Some(NOBODY), Some(NOBODY)).unwrap();
        let (code, said) = refusal(&config, WITHOUT_PRIVILEGE);
        assert!(matches!(code, Some(1 | 2)), "{code:?}: {said}");
        assert!(said.contains("Permission denied") && said.contains("segments"), "{said}");
        chown(&segments, Some(0), Some(0)).unwrap();
        assert_intact(&spool, consumer);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_directory_below_one_that_can_not_be_written() {
        let consumer = Tallying::tcp().closed();
        let parent = tempfile::tempdir().unwrap();
        let inside = parent.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        chown(&inside, Some(NOBODY), Some(NOBODY)).expect("root, who may give files away");
        let spool = Spool::at(inside.join("spool"));
        let words = ["Permission denied", "inside"];
        assert_refused(&spool, &config(&spool, &consumer), WITHOUT_PRIVILEGE, &words);
        assert!(!spool.path().exists());
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_read_only_file_system() {
        let disk = Mounted::new(Kind::Tmpfs, 32 * 1024 * 1024);
        let (spool, consumer) = (Spool::at(disk.path().join("spool")), Tallying::tcp().closed());
        let missing = Spool::at(disk.path().join("missing"));
        fill(&spool, &consumer);
        disk.make_read_only();
        let words = ["Read-only file system", "can be written"];
        assert_refused(&spool, &config(&spool, &consumer), &[], &words);
        assert_refused(&missing, &config(&missing, &consumer), &[], &words);
        disk.make_writable();
        assert_intact(&spool, consumer);
    }
}
