//! The log on a disk that fails, and in the hands of somebody else.

use std::collections::BTreeMap;

use super::*;
use evidence_log::entry::Running;
use evidence_log::tlog::key::Kind;
use evidence_log::tlog::merkle::{extends, root};
use testing::simulated_disk::{SimulatedDisk, is_crash};

const ORIGIN: &str = "example.org/relay-0";

fn key() -> SigningKey {
    SigningKey::generate(ORIGIN).expect("random numbers").0
}

fn open(disk: &SimulatedDisk, key: &SigningKey) -> io::Result<Store> {
    Store::open(Arc::new(disk.clone()), ORIGIN, std::slice::from_ref(key))
}

fn commit(store: &mut Store, key: &SigningKey) -> io::Result<()> {
    store.commit(&Sizes::new(), std::slice::from_ref(key))
}

/// Makes all entries durable, and publishes a checkpoint over them.
fn sign(store: &mut Store, key: &SigningKey) -> io::Result<Option<Note>> {
    commit(store, key)?;
    store.sign(std::slice::from_ref(key))
}

/// Returns all entries of a store.
pub(crate) fn entries(store: &Store) -> Vec<Vec<u8>> {
    let size = store.tiled.size;
    let bundle = |at| entries_of(&*store.disk, at, size).expect("it is whole");
    let bundles = (0..size.div_ceil(WIDTH)).flat_map(bundle);
    bundles.chain(store.pending.entries.iter().cloned()).collect()
}

/// A log under random faults and crashes, and a list of the entries that must be in it.
struct Model {
    rng: fastrand::Rng,
    disk: SimulatedDisk,
    key: SigningKey,
    entries: Vec<Vec<u8>>,
    /// The number of entries, from the first on, that were made durable.
    durable: usize,
    /// The checkpoints that somebody may have seen.
    seen: Vec<Head>,
    made: u64,
    /// The maximum number of entries that a step makes.
    entries_max: usize,
    bytes_max: usize,
}

impl Model {
    /// Opens the log as a start does, and compares it with the list.
    fn open(&mut self) -> Option<Store> {
        let store = match open(&self.disk, &self.key) {
            Ok(store) => store,
            Err(error) if is_crash(&error) => return None,
            Err(error) => panic!("the log can't be opened: {error}"),
        };
        assert_eq!(store.alarms.as_slice(), [], "nobody else has written");
        self.assert_tiles();
        let found = entries(&store);
        assert!(found.len() >= self.durable, "{} of {}", found.len(), self.durable);
        assert_eq!(found, self.entries[..found.len()]);
        let leaves: Vec<_> = found.iter().map(|entry| Hash::of_leaf(entry)).collect();
        assert_eq!(store.head().root, root(leaves.iter().copied()));
        for seen in &self.seen {
            let (old, new) = (seen.size, store.head());
            assert!(old <= new.size, "{old} entries were signed, {} are left", new.size);
            let path = consistency(leaves.as_slice(), old, new.size);
            assert!(extends(*seen, new, &path.expect("all hashes are there")));
        }
        self.entries.truncate(found.len());
        self.durable = found.len();
        Some(store)
    }

    /// Checks that each tile and bundle on the disk is one of the log, also those that nobody
    /// needs.
    fn assert_tiles(&self) {
        let leaves: Vec<_> = self.entries.iter().map(|entry| Hash::of_leaf(entry)).collect();
        for name in self.disk.names() {
            let tile = name.strip_prefix("evidence/").and_then(Tile::parse);
            let Some(Tile { content, index, width }) = tile else { continue };
            let (bytes, begin) = (self.disk.contents(&name), index * WIDTH);
            let index = |at: u64| usize::try_from(at).expect("a few");
            let numbers = index(begin)..index(begin + width);
            match content {
                Content::Entries => {
                    let found = tile::entries(&bytes, width).expect("it is whole");
                    assert!(numbers.map(|at| &self.entries[at]).eq(found), "{name}");
                }
                Content::Hashes(level) => {
                    let found = tile::hashes(&bytes, width).expect("it is whole");
                    let below = 256_usize.pow(level);
                    let hash = |at| root(leaves[at * below..(at + 1) * below].iter().copied());
                    assert!(numbers.map(hash).eq(found), "{name}");
                }
            }
        }
    }

    /// Does something at random. Returns an error of the disk.
    fn step(&mut self, store: &mut Store) -> io::Result<()> {
        match self.rng.u8(..10) {
            0..6 => {
                for _ in 0..self.rng.usize(1..=self.entries_max) {
                    self.made += 1;
                    let length = self.rng.usize(..self.bytes_max);
                    let entry = [self.made.to_be_bytes().to_vec(), vec![b'x'; length]].concat();
                    self.entries.push(entry.clone());
                    store.push(entry)?;
                }
            }
            6..8 => {
                commit(store, &self.key)?;
                self.durable = self.entries.len();
                self.assert_tiles();
            }
            _ => {
                // The checkpoint may be visible although an error followed.
                let head = store.head();
                let signed = sign(store, &self.key);
                if let Ok(Some(note)) = &signed {
                    let of_note = Checkpoint::of_text(note.text()).expect("it is one");
                    assert_eq!(of_note.head, head);
                    self.durable = self.entries.len();
                    self.seen.push(head);
                }
                signed?;
                store.remember()?;
                assert!(store.is_there()?, "nobody else has written");
            }
        }
        Ok(())
    }
}

/// Lets a log live and crash `lives` times, under random faults. Each start checks that nothing is
/// missing, and that there is no alarm.
fn live(seed: u64, lives: usize, (entries_max, bytes_max): (usize, usize), operations: u64) {
    println!("seed {seed}");
    let rng = fastrand::Rng::with_seed(seed);
    let (disk, key) = (SimulatedDisk::new(seed), key());
    let (entries, seen) = (Vec::new(), Vec::new());
    let (durable, made) = (0, 0);
    let mut model = Model { rng, disk, key, entries, durable, seen, made, entries_max, bytes_max };
    for _ in 0..lives {
        model.disk.calm();
        let Some(mut store) = model.open() else {
            model.disk = model.disk.crash(&mut model.rng);
            continue;
        };
        if model.rng.bool() {
            model.disk.faults(0.05);
        }
        model.disk.crash_after(model.rng.u64(1..operations));
        for _ in 0..200 {
            match model.step(&mut store) {
                Err(error) if is_crash(&error) => break,
                // The next steps try again.
                Ok(()) | Err(_) => {}
            }
        }
        // Sometimes only the process ends, and not the machine.
        if model.disk.is_dead() || model.rng.bool() {
            model.disk = model.disk.crash(&mut model.rng);
        }
    }
    model.disk.calm();
    let mut store = model.open().expect("no crash is set");
    sign(&mut store, &model.key).expect("no fault is set");
    assert_eq!(store.newest.head, store.head());
    model.assert_tiles();
}

#[test]
fn what_was_signed_stays_whatever_the_disk_does() {
    (0..60).for_each(|seed| live(seed, 6, (60, 40), 120));
}

/// Method: entries are so long that tiles are written between two checkpoints, too.
#[test]
fn tiles_without_a_checkpoint_are_those_of_the_log() {
    (0..10).for_each(|seed| live(seed, 10, (4, 30_000), 80));
}

/// Method: 800 short lives, so that there are crashes at each step of writing.
#[test]
fn no_crash_is_an_alarm() {
    (0..40).for_each(|seed| live(seed, 20, (3, 40), 50));
}

/// Method: the checkpoint is removed, and replaced by an older one. As long as `evidence-head` is
/// there, the log continues where it was. Without it, a log without a checkpoint could sign another
/// root for a size that was signed before.
#[test]
fn a_log_whose_checkpoint_was_set_back_goes_on_where_it_was_or_not_at_all() {
    let (disk, key) = (SimulatedDisk::new(1), key());
    let name = "evidence/checkpoint";
    let mut notes = Vec::new();
    for round in 0..3 {
        let mut store = open(&disk, &key).expect("it is whole");
        for entry in 0..10_u8 {
            store.push(vec![round, entry]).expect("it is short");
        }
        sign(&mut store, &key).expect("no fault is set");
        store.push(vec![round]).expect("it is short");
        commit(&mut store, &key).expect("no fault is set");
        notes.push(disk.contents(name));
    }
    for note in &notes {
        replace(&disk, name, note).expect("no fault is set");
        let store = open(&disk, &key).expect("it is whole");
        assert_eq!((store.head().size, store.alarms.as_slice()), (33, &[][..]));
    }
    let (newest, head) = (disk.contents(name), disk.contents(HEAD));
    disk.remove(HEAD).expect("it is there");
    replace(&disk, name, &notes[1]).expect("no fault is set");
    let store = open(&disk, &key).expect("it is whole");
    assert_eq!((store.head().size, store.alarms.as_slice()), (21, &[Alarm::Removed][..]));
    disk.remove(name).expect("it is there");
    let error = open(&disk, &key).map(|store| store.head()).expect_err("it is gone");
    assert!(Tampered::is(&error) && error.to_string().contains("is missing"), "{error}");
    replace(&disk, name, &newest).expect("no fault is set");
    replace(&disk, HEAD, &head).expect("no fault is set");
    assert_eq!(open(&disk, &key).expect("it is whole").head().size, 33);
    disk.remove(name).expect("it is there");
    assert_eq!(open(&disk, &key).expect("it is whole").head().size, 33);
    let again = Signed::parse(&disk.contents(name)).expect("it was written again");
    assert_eq!(again.checkpoint.head.size, 33);
}

#[test]
fn a_log_of_another_key_or_with_other_hashes_is_not_gone_on_with() {
    let (disk, own) = (SimulatedDisk::new(1), key());
    let mut store = open(&disk, &own).expect("it is empty");
    store.push(b"entry".to_vec()).expect("it is short");
    sign(&mut store, &own).expect("no fault is set");
    assert!(open(&disk, &key()).is_err());
    assert_eq!(open(&disk, &own).expect("it is its own").head().size, 1);
    for name in disk.names().into_iter().filter(|name| name.starts_with("evidence/tile/")) {
        disk.flip(&name, 5, 1);
        assert!(open(&disk, &own).is_err(), "{name}");
        disk.flip(&name, 5, 1);
    }
}

/// A log with a checkpoint and later entries, whose relay was killed.
struct Killed {
    disk: SimulatedDisk,
    key: SigningKey,
    /// The content of `evidence-head` when the checkpoint was made.
    older: Vec<u8>,
    newest: Vec<u8>,
}

impl Killed {
    /// The number of entries that the checkpoint covers.
    const SIGNED: u64 = 10;
    const SIZE: u64 = 13;

    fn new() -> Self {
        // Each call makes the same files.
        let key = SigningKey::of_seed(ORIGIN, Kind::Note, &[7; 32]).expect("it is a name");
        let disk = SimulatedDisk::new(1);
        let mut store = open(&disk, &key).expect("it is new");
        (0..10).for_each(|entry| store.push(vec![entry]).expect("it is short"));
        sign(&mut store, &key).expect("no fault is set");
        store.remember().expect("no fault is set");
        let older = disk.contents(HEAD);
        (10..13).for_each(|entry| store.push(vec![entry]).expect("it is short"));
        commit(&mut store, &key).expect("no fault is set");
        let newest = disk.contents(HEAD);
        Self { disk, key, older, newest }
    }

    fn open(&self) -> Store {
        open(&self.disk, &self.key).expect("it can be opened")
    }

    /// Puts other bytes into a file, as somebody else does.
    fn put(&self, name: &str, bytes: &[u8]) {
        replace(&self.disk, name, bytes).expect("no fault is set");
    }

    /// Removes the files whose names begin with `beginning`.
    fn remove(&self, beginning: &str) {
        let names = self.disk.names().into_iter();
        for name in names.filter(|name| name.starts_with(beginning)) {
            self.disk.remove(&name).expect("it is there");
        }
    }

    /// Opens the log. Checks that the log ends with the checkpoint, that an alarm says so, and that
    /// the next start does not raise the alarm again.
    fn assert_cut(&self, why: &str) {
        let mut store = self.open();
        let found = (store.head().size, store.alarms.as_slice(), store.is_cut);
        assert_eq!(found, (Self::SIGNED, &[Alarm::Removed][..], true), "{why}");
        store.push(b"alarm".to_vec()).expect("it is short");
        commit(&mut store, &self.key).expect("no fault is set");
        let store = self.open();
        assert_eq!((store.head().size, store.alarms.as_slice()), (Self::SIGNED + 1, &[][..]));
    }
}

/// Returns the content of an `evidence-head` over this log, as anybody with the key can make it.
fn made(key: &SigningKey, origin: &str, head: Head, entries: &[&[u8]]) -> Vec<u8> {
    let checkpoint = Checkpoint { origin: origin.to_owned(), head };
    let entries: Vec<_> = entries.iter().map(|entry| entry.to_vec()).collect();
    let keys = std::slice::from_ref(key);
    HeadFile::content(&checkpoint, &entries, &Sizes::new(), keys).expect("they are short")
}

#[test]
fn the_entries_of_a_killed_relay_are_there_if_the_key_has_signed_them() {
    let killed = Killed::new();
    let store = killed.open();
    assert_eq!((store.head().size, store.alarms.as_slice()), (Killed::SIZE, &[][..]));
    let head = store.head();
    let own: [&[u8]; 3] = [&[10], &[11], &[12]];
    let nothing = Head { size: 0, root: Hash::of_nothing() };
    let forged: [&[u8]; 3] = [&[10], &[11], b"forged"];
    let changed = |from: usize, to: u8| {
        let mut file = killed.newest.clone();
        let at = file.len() - from;
        file[at] = to;
        file
    };
    let text = |from, to| String::from_utf8_lossy(&killed.newest).replace(from, to).into_bytes();
    for (why, file) in [
        ("another key", made(&key(), ORIGIN, head, &own)),
        ("another origin", made(&killed.key, "other", head, &own)),
        ("another root", made(&killed.key, ORIGIN, Head { size: 13, ..nothing }, &own)),
        ("another entry", made(&killed.key, ORIGIN, head, &forged)),
        ("an entry less", made(&killed.key, ORIGIN, head, &own[1..])),
        ("an entry in another place", made(&killed.key, ORIGIN, head, &[own[1], own[0], own[2]])),
        ("more entries", made(&killed.key, ORIGIN, Head { size: 14, ..head }, &own)),
        ("a log that is shorter than the checkpoint", made(&killed.key, ORIGIN, nothing, &[])),
        ("the checkpoint", killed.disk.contents("evidence/checkpoint")),
        ("a changed entry", changed(1, 13)),
        ("a length that was changed", changed(2, 2)),
        ("a torn file", killed.newest[..killed.newest.len() - 1].to_vec()),
        ("more line hashes", text("tiles 10\n", "tiles 10\n00000000000000000000 7\n")),
        ("fewer tiles", text("tiles 10\n", "tiles 9\n")),
        ("a file of an earlier version", br#"{"origin":"example.org/relay-0"}"#.to_vec()),
        ("nothing", Vec::new()),
        ("other bytes", b"other bytes\n\n".repeat(100)),
    ] {
        let attacked = Killed::new();
        attacked.put(HEAD, &file);
        attacked.assert_cut(why);
    }
    let attacked = Killed::new();
    attacked.disk.remove(HEAD).expect("it is there");
    attacked.assert_cut("it was removed");
    // Somebody who has kept a copy can put it back, up to the checkpoint.
    killed.put(HEAD, &killed.older);
    let store = killed.open();
    assert_eq!((store.head().size, store.alarms.as_slice()), (Killed::SIGNED, &[][..]));
}

/// Method: the entries after the checkpoint are so long that they are in tiles, each of which is
/// removed or changed.
#[test]
fn tiles_behind_the_checkpoint_that_were_changed_are_an_alarm() {
    let long = || {
        let killed = Killed::new();
        let mut store = killed.open();
        store.push(vec![b'x'; ENTRY_BYTES_MAX]).expect("it is short enough");
        commit(&mut store, &killed.key).expect("no fault is set");
        store.push(vec![1]).expect("it is short");
        commit(&mut store, &killed.key).expect("no fault is set");
        killed
    };
    let killed = long();
    assert_eq!(killed.open().head().size, Killed::SIZE + 2);
    let names = killed.disk.names().into_iter();
    let tiles: Vec<_> = names.filter(|name| name.ends_with(".p/14")).collect();
    assert_eq!(tiles.len(), 2, "{:?}", killed.disk.names());
    for tile in tiles {
        let killed = long();
        killed.disk.remove(&tile).expect("it is there");
        killed.assert_cut(&tile);
        let killed = long();
        killed.disk.flip(&tile, 5, 1);
        killed.assert_cut(&tile);
    }
}

/// Method: the relay is killed with the old key, with both keys, and then has only the next one.
#[test]
fn the_log_goes_on_while_a_key_is_followed_by_the_next_one() {
    let disk = SimulatedDisk::new(1);
    let texts = [(); 2].map(|()| SigningKey::generate(ORIGIN).expect("random numbers").1);
    let [old, next] = texts.map(|text| move || SigningKey::parse(&text).expect("it is a key"));
    for (keys, size) in [(vec![old()], 0), (vec![old(), next()], 2), (vec![next()], 4)] {
        let mut store = Store::open(Arc::new(disk.clone()), ORIGIN, &keys).expect("it is whole");
        assert_eq!((store.alarms.as_slice(), store.head().size), (&[][..], size));
        store.push(vec![1]).expect("it is short");
        store.commit(&Sizes::new(), &keys).expect("no fault is set");
        store.sign(&keys).expect("no fault is set");
        store.push(vec![2]).expect("it is short");
        store.commit(&Sizes::new(), &keys).expect("no fault is set");
    }
}

/// Method: a version with a journal has ended in order, or was killed with entries in its journal.
/// Or somebody has written the journal, and the last signed entry does not say that a relay ended.
#[test]
fn the_journal_of_an_earlier_version_is_an_alarm_if_it_may_have_entries() {
    let left = |begin: u64| [b"\xFFKAFJRN\x03".as_slice(), &begin.to_be_bytes()].concat();
    let stop = Entry::Stop(Running {
        at: 1,
        version: "0.1.0".to_owned(),
        config_sha256: "0".repeat(64),
        heartbeat_ms: 1,
        outputs: BTreeMap::new(),
        left: BTreeMap::new(),
        directory: None,
    });
    // The size of the log before the journal's first entry is more than this, or less.
    for (more, has_ended, alarms) in [
        (Some(-1), true, &[][..]),
        (Some(-1), false, &[Alarm::Removed]),
        (Some(-10), false, &[Alarm::Removed]),
        (Some(0), true, &[Alarm::Journal]),
        (Some(1), true, &[Alarm::Journal]),
        (Some(1), false, &[Alarm::Journal]),
        (None, true, &[Alarm::Journal]),
    ] {
        let killed = Killed::new();
        if has_ended {
            let mut store = killed.open();
            store.push(stop.bytes()).expect("it is short");
            sign(&mut store, &killed.key).expect("no fault is set");
        }
        let signed = killed.open().signed().size;
        let begin = more.map(|more| left(signed.saturating_add_signed(more)));
        killed.put("evidence/journal", &begin.unwrap_or(b"short".to_vec()));
        killed.put(HEAD, br#"{"origin":"example.org/relay-0"}"#);
        let mut store = killed.open();
        assert_eq!((store.alarms.as_slice(), store.head().size), (alarms, signed));
        assert_eq!(store.is_cut, !alarms.is_empty());
        store.push(vec![1]).expect("it is short");
        commit(&mut store, &killed.key).expect("no fault is set");
        assert_eq!(killed.open().alarms, []);
        let names = killed.disk.names();
        let journal = killed.disk.contents("evidence/journal");
        assert_eq!(journal.len(), journal::EMPTY_BYTES);
        let is_aside = names.iter().any(|name| name.contains(REFUSED));
        assert_eq!(is_aside, alarms.contains(&Alarm::Journal));
    }
}

/// Method: an older version, which knows no `evidence-head` and keeps a journal, and this one take
/// turns. Each run ends in order, or the older version is killed with entries in its journal. Or
/// somebody has cut the log to the end of an older version's run.
#[test]
fn a_log_that_an_older_version_goes_on_with_is_no_alarm() {
    let running = |version: &str| Running {
        at: 1,
        version: version.to_owned(),
        config_sha256: "0".repeat(64),
        heartbeat_ms: 1,
        outputs: BTreeMap::new(),
        left: BTreeMap::new(),
        directory: None,
    };
    let killed = Killed::new();
    let run = |version: &str, ends: bool, round: i32| {
        let mut store = killed.open();
        assert_eq!(store.alarms, [], "{version} in round {round}");
        let (before, is_cut) = (store.head(), store.is_cut);
        let start = evidence_log::entry::Started { running: running(version), previous: before };
        store.push(Entry::Start(start).bytes()).expect("it is short");
        if ends {
            store.push(Entry::Stop(running(version)).bytes()).expect("it is short");
        }
        sign(&mut store, &killed.key).expect("no fault is set");
        store.remember().expect("no fault is set");
        (before.size, is_cut)
    };
    run("0.2.0", true, -1);
    for round in 0..20 {
        let newest = killed.disk.contents(HEAD);
        let is_killed = round % 3 == 2;
        let (begin, _) = run("0.1.0", !is_killed, round);
        killed.put(HEAD, &newest);
        let begin = if is_killed { begin + 100 } else { begin };
        let journal = [b"\xFFKAFJRN\x03".as_slice(), &begin.to_be_bytes()].concat();
        killed.put("evidence/journal", &journal);
        // The events of a killed process that no checkpoint covers are not proven.
        assert_eq!(run("0.2.0", true, round).1, is_killed, "round {round}");
    }
    // Without the signed end of an older version, a journal excuses nothing.
    let (newest, size) = (killed.disk.contents(HEAD), killed.open().head().size);
    run("0.2.0", false, 99);
    killed.put(HEAD, &newest);
    let journal = [b"\xFFKAFJRN\x03".as_slice(), &size.to_be_bytes()].concat();
    killed.put("evidence/journal", &journal);
    assert_eq!(killed.open().alarms, [Alarm::Removed]);
}

/// Method: files of a log are removed, or replaced by older ones, while no relay runs.
#[test]
fn a_log_that_is_shorter_than_the_queue_knows_is_an_alarm() {
    // Another log with this key is longer than the one that is known.
    let killed = Killed::new();
    killed.remove("evidence");
    killed.put(KNOWN, &{
        let other = Killed::new();
        let mut store = other.open();
        store.push(b"more".to_vec()).expect("it is short");
        let keys = std::slice::from_ref(&killed.key);
        signed(ORIGIN, store.head(), keys).expect("it is a name").to_string().into_bytes()
    });
    let mut store = killed.open();
    assert_eq!((store.alarms.as_slice(), store.head().size), (&[Alarm::Removed][..], 0));
    (20..40).for_each(|entry| store.push(vec![entry]).expect("it is short"));
    sign(&mut store, &killed.key).expect("no fault is set");
    assert_eq!(killed.open().alarms, [Alarm::Removed]);

    // The log was removed, and not the file next to it.
    let killed = Killed::new();
    killed.remove("evidence/");
    let store = killed.open();
    assert_eq!((store.alarms.as_slice(), store.head().size), (&[Alarm::Removed][..], 0));
    assert!(store.is_cut);

    // The checkpoint and `evidence-head` are older, and the newer tiles are still there.
    let killed = Killed::new();
    let older = killed.disk.contents("evidence/checkpoint");
    let mut store = killed.open();
    store.push(b"more".to_vec()).expect("it is short");
    sign(&mut store, &killed.key).expect("no fault is set");
    store.remember().expect("no fault is set");
    killed.put("evidence/checkpoint", &older);
    killed.put(HEAD, &killed.newest);
    let store = killed.open();
    assert_eq!((store.alarms.as_slice(), store.head().size), (&[Alarm::Removed][..], Killed::SIZE));
}
